//! The verbs: each resolves names against the catalog, asks the engine, prints.

use std::io::Write;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::{Handle, Reply, Request};
use crate::engine::ids::{CollectionId, JobId, PinId, SnapshotId};
use crate::engine::model::jobs::{JobKind, JobState};
use crate::engine::model::references::{Entry, Index, Status};
use crate::engine::model::resource::{self, Kind, RowId, Scope, View};
use crate::engine::plan::Intent;

use super::{
    ApplyArgs, DescribeArgs, DoctorArgs, ExportCommand, Format, GetArgs, RestoreCommand,
    SnapshotCommand, jobs, output,
};

fn kind(name: &str) -> Result<Kind> {
    Kind::parse(name).ok_or_else(|| {
        let names: Vec<&str> = Kind::ALL.iter().map(|k| k.spec().name).collect();
        Error::new(ErrorKind::Invalid, format!("there is no kind {name:?}"))
            .fix(format!("use one of {}", names.join(", ")))
    })
}

/// Runs `with` over what is known now.
pub(super) fn look<T>(handle: &Handle, with: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
    let catalog = handle.catalog.borrow().clone();
    let jobs = handle.jobs.borrow().clone();
    let references = handle.references.borrow().clone();
    let broadcasts = handle.broadcasts.borrow().clone();
    with(&View {
        catalog: &catalog,
        jobs: &jobs,
        broadcasts: &broadcasts,
        references: &references,
        now: handle.clock.now(),
    })
}

fn one(view: &View<'_>, kind: Kind, name: &str) -> Result<RowId> {
    resource::find(view, kind, name)
}

pub(super) fn collection(handle: &Handle, name: &str) -> Result<CollectionId> {
    look(handle, |view| match one(view, Kind::Collections, name)? {
        RowId::Collection(id) => Ok(id),
        other => Err(Error::new(
            ErrorKind::Internal,
            format!("{name} is not a collection: {other:?}"),
        )),
    })
}

fn snapshot_id(handle: &Handle, name: &str) -> Result<SnapshotId> {
    look(handle, |view| match one(view, Kind::Snapshots, name)? {
        RowId::Snapshot(id) => Ok(id),
        other => Err(Error::new(
            ErrorKind::Internal,
            format!("{name} is not a snapshot: {other:?}"),
        )),
    })
}

/// Longest wait of a list of snapshots for what they refer to.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// Where a kind shows what snapshots refer to, waits a little until their ids have been read, or could not be.
pub async fn known(handle: &mut Handle, of: &str) -> Result<()> {
    if kind(of)? != Kind::Snapshots || handle.place.bucket == "none" {
        return Ok(());
    }
    let clock = handle.clock.clone();
    let looked_at = |index: &std::sync::Arc<Index>| {
        let unread = |e: &Entry| matches!(e.status, Status::NotLoaded);
        index.known && !index.entries().any(unread)
    };
    tokio::select! {
        _ = handle.references.wait_for(looked_at) => {}
        () = clock.sleep(PATIENCE) => {}
    }
    Ok(())
}

/// `get`.
pub fn get(handle: &Handle, args: &GetArgs, out: &mut dyn Write) -> Result<()> {
    let kind = kind(&args.kind)?;
    let scope = match &args.collection {
        Some(name) => Scope {
            collection: Some(collection(handle, name)?),
            ..Scope::default()
        },
        None => Scope::default(),
    };
    look(handle, |view| {
        let rows = match &args.name {
            Some(name) => vec![one(view, kind, name)?],
            None => resource::ids(view, kind, &scope),
        };
        output::rows(
            out,
            view,
            kind,
            rows,
            args.filter.as_deref(),
            args.sort.as_deref(),
            args.out.output,
        )
    })
}

/// `describe`.
pub async fn describe(
    handle: &Handle,
    args: &DescribeArgs,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    let kind = kind(&args.kind)?;
    let (row, keys) = look(handle, |view| {
        let row = one(view, kind, &args.name)?;
        let keys = resource::keys(view, &row);
        Ok((row, keys))
    })?;
    let mut raw = Vec::new();
    for key in keys.into_iter().take(output::RAW_KEYS) {
        if let Reply::Raw(value) = handle.request(Request::Raw(key)).await? {
            raw.push(value);
        }
    }
    look(handle, |view| {
        output::detail(out, view, &row, &raw, args.out.output)
    })
}

/// `snapshot …`.
pub async fn snapshot(
    handle: &mut Handle,
    command: SnapshotCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    match command {
        SnapshotCommand::Create {
            collection: name_of,
            name,
            description,
            protect,
            operation,
            apply,
        } => {
            let collection = collection(handle, &name_of)?;
            let intent = Intent::CreateSnapshot {
                collection,
                name,
                description,
                protection_secs: protect,
                operation,
            };
            jobs::apply(handle, intent, &apply, out).await
        }
        SnapshotCommand::List {
            collection: of,
            out: format,
        } => {
            known(handle, "snapshots").await?;
            let scope = match of {
                Some(name) => Scope {
                    collection: Some(collection(handle, &name)?),
                    ..Scope::default()
                },
                None => Scope::default(),
            };
            look(handle, |view| {
                let rows = resource::ids(view, Kind::Snapshots, &scope);
                output::rows(out, view, Kind::Snapshots, rows, None, None, format.output)
            })?;
            Ok(0)
        }
        SnapshotCommand::Describe {
            snapshot,
            out: format,
        } => {
            let id = snapshot_id(handle, &snapshot)?;
            tree(
                handle.request(Request::SnapshotDetail(id)).await?,
                format.output,
                out,
            )?;
            Ok(0)
        }
        SnapshotCommand::Verify {
            snapshot,
            deep,
            apply,
        } => {
            let snapshot = snapshot_id(handle, &snapshot)?;
            verify(handle, snapshot, deep, &apply, out).await
        }
        SnapshotCommand::Pins {
            snapshot,
            out: format,
        } => {
            let id = snapshot
                .map(|name| snapshot_id(handle, &name))
                .transpose()?;
            match handle.request(Request::SnapshotPins(id)).await? {
                Reply::Tree(pins) => output::pins(out, &pins, format.output)?,
                _ => return Err(jobs::unexpected()),
            }
            Ok(0)
        }
        SnapshotCommand::Pin {
            snapshot,
            ttl,
            owner,
            reason,
            apply,
        } => {
            let intent = Intent::PinSnapshot {
                snapshot: snapshot_id(handle, &snapshot)?,
                ttl_secs: ttl,
                owner,
                reason,
            };
            jobs::apply(handle, intent, &apply, out).await
        }
        SnapshotCommand::Unpin {
            snapshot,
            pin,
            all_expired: _,
            apply,
        } => {
            let intent = Intent::UnpinSnapshot {
                snapshot: snapshot_id(handle, &snapshot)?,
                pin: pin.map(PinId),
            };
            jobs::apply(handle, intent, &apply, out).await
        }
        SnapshotCommand::Drop { snapshot, apply } => {
            let snapshot = snapshot_id(handle, &snapshot)?;
            jobs::apply(handle, Intent::DropSnapshot { snapshot }, &apply, out).await
        }
    }
}

/// `snapshot verify`: by a job that keeps the result, where something can be written; else the look alone. 7 when it is not whole.
async fn verify(
    handle: &mut Handle,
    snapshot: SnapshotId,
    deep: bool,
    apply: &ApplyArgs,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let intent = Intent::VerifySnapshot { snapshot, deep };
    let why = match &handle.place.read_only {
        Some(why) if !apply.plan => why.clone(),
        _ => {
            let plan = jobs::plan(handle, intent.clone()).await?;
            let coordinator = plan
                .failures()
                .find(|c| c.name == "no coordinator is registered");
            match coordinator.and_then(|c| c.failed.clone()) {
                Some(why) if !apply.plan => why,
                _ => return jobs::apply(handle, intent, apply, out).await,
            }
        }
    };
    let reply = handle
        .request(Request::SnapshotVerify { snapshot, deep })
        .await?;
    let whole = matches!(&reply, Reply::Tree(found) if found["whole"] == true);
    tree(reply, apply.out.output, out)?;
    // Not part of the answer.
    let _ = writeln!(
        std::io::stderr(),
        "falconer: the result is not kept, because nothing can be written: {why}"
    );
    Ok(if whole { 0 } else { 7 })
}

/// `restore …`.
pub async fn restore(
    handle: &mut Handle,
    command: RestoreCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    match command {
        RestoreCommand::Start {
            snapshot,
            target,
            from,
            pace,
            apply,
        } => {
            let (snapshot, target) = match (snapshot, target, &from) {
                (Some(snapshot), Some(target), None) => (Some(snapshot), target),
                // The only word is the target then.
                (Some(target), None, Some(_)) => (None, target),
                _ => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        "give a snapshot and a target, or --from URI and a target",
                    )
                    .fix("falconer restore start --from URI TARGET"));
                }
            };
            let (database, collection) = match target.split_once('/') {
                Some((db, name)) => (db.to_owned(), name.to_owned()),
                None => ("default".to_owned(), target),
            };
            let intent = match (snapshot, from) {
                (Some(snapshot), _) => Intent::Restore {
                    snapshot: snapshot_id(handle, &snapshot)?,
                    database,
                    collection,
                },
                (None, from) => Intent::RestoreBundle {
                    uri: from.unwrap_or_default(),
                    database,
                    collection,
                },
            };
            jobs::apply_at(handle, intent, &apply, pace, out).await
        }
        RestoreCommand::Watch {
            job,
            pace,
            out: format,
        } => watch(handle, JobId(job), pace, format.output, out).await,
        RestoreCommand::List { out: format } => {
            let kinds = (JobKind::Restore, "copy-segment-job");
            list(handle, kinds, format.output, out)?;
            Ok(0)
        }
        RestoreCommand::Cancel { job } => cancel(handle, JobId(job), out).await,
        RestoreCommand::Retry { job, out: format } => {
            retry(handle, JobId(job), format.output, out).await
        }
    }
}

/// Follows a job to its end, its copies at another pace if one is asked for.
async fn watch(
    handle: &mut Handle,
    job: JobId,
    pace: jobs::Pace,
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let known = handle.jobs.borrow().jobs.iter().any(|j| j.id == job);
    if !known {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no job {job} of ours"),
        )
        .fix("list them with: falconer get jobs"));
    }
    pace.set(handle, job).await?;
    jobs::follow(handle, job, format, jobs::Say::Progress, out).await
}

async fn retry(
    handle: &mut Handle,
    job: JobId,
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    jobs::retry(handle, job).await?;
    left_stuck(handle, job).await;
    jobs::follow(handle, job, format, jobs::Say::Progress, out).await
}

async fn cancel(handle: &mut Handle, job: JobId, out: &mut (dyn Write + Send)) -> Result<u8> {
    jobs::cancel(handle, job).await?;
    left_stuck(handle, job).await;
    jobs::follow(handle, job, Format::Table, jobs::Say::Progress, out).await
}

/// Waits until the order to a stuck job shows: what is followed before that would be the old state.
async fn left_stuck(handle: &mut Handle, job: JobId) {
    let clock = handle.clock.clone();
    let moved = handle.jobs.wait_for(|view| {
        let it = view.jobs.iter().find(|j| j.id == job);
        it.is_none_or(|j| j.state != JobState::Stuck)
    });
    tokio::select! {
        // An error means that the engine has stopped; following says so.
        _ = moved => {}
        () = clock.sleep(super::PATIENCE) => {}
    }
}

/// Jobs of a kind, and what a Milvus calls its own.
fn list(
    handle: &Handle,
    (kind, theirs): (JobKind, &str),
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    look(handle, |view| {
        let mut ours = resource::ids(view, Kind::Jobs, &Scope::default());
        ours.retain(|row| {
            let job = |id| view.jobs.jobs.iter().find(|j| j.id == id);
            matches!(row, RowId::Job(id) if job(*id).is_some_and(|j| j.kind == kind))
        });
        let mut foreign = resource::ids(view, Kind::Tasks, &Scope::default());
        foreign.retain(|row| match row {
            RowId::Task(key) => view
                .catalog
                .tasks
                .get(key)
                .is_some_and(|t| t.kind == theirs),
            _ => false,
        });
        let both = [(Kind::Jobs, ours), (Kind::Tasks, foreign)];
        output::kinds(out, view, both, format)
    })
}

/// `export …`.
pub async fn export(
    handle: &mut Handle,
    command: ExportCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    match command {
        ExportCommand::Start {
            snapshot,
            target,
            pace,
            apply,
        } => {
            let snapshot = snapshot_id(handle, &snapshot)?;
            let intent = Intent::Export { snapshot, target };
            jobs::apply_at(handle, intent, &apply, pace, out).await
        }
        ExportCommand::List { out: format } => {
            let kinds = (JobKind::Export, "export-job");
            list(handle, kinds, format.output, out)?;
            Ok(0)
        }
        ExportCommand::Watch {
            job,
            pace,
            out: format,
        } => watch(handle, JobId(job), pace, format.output, out).await,
        ExportCommand::Cancel { job } => cancel(handle, JobId(job), out).await,
        ExportCommand::Retry { job, out: format } => {
            retry(handle, JobId(job), format.output, out).await
        }
    }
}

/// `doctor`: 7 when a check failed.
pub async fn doctor(handle: &Handle, args: DoctorArgs, out: &mut (dyn Write + Send)) -> Result<u8> {
    let reply = handle.request(Request::Doctor { deep: args.deep }).await?;
    let failed = match &reply {
        Reply::Tree(tree) => tree["checks"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["status"] == "fail")),
        _ => false,
    };
    match (&reply, args.out.output) {
        (Reply::Tree(report), format @ (Format::Table | Format::Wide)) => {
            output::doctor(out, report, format)?;
        }
        _ => tree(reply, args.out.output, out)?,
    }
    Ok(if failed { 7 } else { 0 })
}

pub(super) fn tree(reply: Reply, format: Format, out: &mut (dyn Write + Send)) -> Result<()> {
    match reply {
        Reply::Tree(tree) => output::tree(out, &tree, format),
        _ => Err(jobs::unexpected()),
    }
}
