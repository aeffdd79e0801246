//! What must hold before an export may begin, and what it would do: looked at by the plan, and once more by the job's first step.

use prost::Message;

use super::copy::CopyFile;
use super::copy_host::sizes;
use super::export_files::{files, whole};
use super::restore_map::Source;
use super::restore_plan::some_of;
use super::restore_source::Reads;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::bundle::{Bundle, parse_place};
use crate::engine::format::pb;
use crate::engine::ids::{CollectionId, MetaRev, ObjectKey, SnapshotId};
use crate::engine::model::text;
use crate::engine::objects::ObjectRead;
use crate::engine::plan::{Check, Danger, Intent, ObjectChange, Plan};
use crate::engine::profile::Elsewhere;

/// Everything found out.
#[derive(Default)]
pub(super) struct Survey {
    pub checks: Vec<Check>,
    pub of: CollectionId,
    pub source: Option<Source>,
    /// Sized; only when all are there.
    pub files: Vec<CopyFile>,
    pub rev: MetaRev,
    pub rests_on: Vec<(String, MetaRev)>,
}

impl Survey {
    fn check(&mut self, name: &str, outcome: Result<String>) -> bool {
        let (failed, detail) = match outcome {
            Ok(detail) => (None, detail),
            Err(e) => (Some(e.to_string()), String::new()),
        };
        let good = failed.is_none();
        self.checks.push(Check {
            name: name.to_owned(),
            failed,
            detail,
        });
        good
    }

    /// The first failure as an error.
    pub fn refuse(&self) -> Result<()> {
        match self
            .checks
            .iter()
            .find_map(|c| Some((c, c.failed.as_deref()?)))
        {
            None => Ok(()),
            Some((check, why)) => Err(Error::new(
                ErrorKind::Conflict,
                format!("{}: {why}", check.name),
            )
            .fix("plan the export again")),
        }
    }
}

/// Where an export goes: the store, and the prefix of everything it writes there.
pub(super) fn place(own: &ObjectRead, target: &str) -> Result<(Elsewhere, String)> {
    let (there, prefix) = parse_place(target)?;
    let prefix = match there {
        // Whole where the own keys are absolute paths.
        Elsewhere::Here if !prefix.starts_with('/') => own.key(&prefix)?.0,
        _ => prefix,
    };
    let root = own.root().trim_matches('/');
    let inside =
        |key: &str| key == root || key.strip_prefix(root).is_some_and(|r| r.starts_with('/'));
    // By whatever name. Keys that are absolute paths have no outside: there the root is the store.
    match own.here(&there, &prefix) {
        Some(key) if !root.is_empty() && !own.is_absolute() && inside(&key) => Err(Error::new(
            ErrorKind::Invalid,
            format!("{target} lies among the cluster's own data, where only Milvus may write"),
        )
        .fix("choose a prefix outside minio.rootPath")),
        _ => Ok((there, prefix)),
    }
}

/// Looks at everything. An error means that looking itself failed; what does not hold is a failed check.
pub(super) async fn survey(
    reads: &Reads<'_>,
    snapshot: SnapshotId,
    target: &str,
    uuid: &str,
) -> Result<Survey> {
    let mut out = Survey::default();
    let place = place(reads.objects, target);
    let bundle = match &place {
        Ok((_, prefix)) => Bundle::new(prefix, uuid),
        Err(_) => Bundle::at(uuid),
    };
    let whose = place.map(|(there, _)| {
        let credentials = reads.objects.credentials_for(&there);
        format!("{target}, with {credentials}")
    });
    if out.check("the target is a place for a bundle", whose)
        && let Err(e) = reachable(reads.objects, target).await
    {
        if e.is_transient() {
            return Err(e);
        }
        out.check("the target answers", Err(e));
    }
    let record = match reads.snapshot(snapshot).await {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            out.check("snapshot exists", Err(e));
            return Ok(out);
        }
        found => found?,
    };
    out.rev = record.mod_rev;
    out.rests_on.push((record.key.text(), record.mod_rev));
    let info = pb::data::SnapshotInfo::decode(record.value.clone()).map_err(|e| {
        let what = format!("snapshot record {} cannot be decoded", record.key);
        Error::new(ErrorKind::Corrupt, what).caused_by(e)
    })?;
    out.of = CollectionId(info.collection_id);
    let state = info.state();
    let committed = match info.state {
        0 | 2 => Ok(format!("{} ({})", info.name, info.id)),
        _ => Err(Error::new(
            ErrorKind::Conflict,
            format!("snapshot {} is {}", info.name, state.as_str_name()),
        )
        .fix("choose another snapshot")),
    };
    if !out.check("snapshot is committed", committed) {
        return Ok(out);
    }
    let source = match reads.read_source(info).await {
        Err(e) if e.is_transient() => return Err(e),
        Err(e) => {
            out.check("snapshot files are readable", Err(e));
            return Ok(out);
        }
        Ok(source) => source,
    };
    out.check(
        "snapshot files are readable",
        Ok(format!("{} segments", source.segments.len())),
    );
    out.check("not an external collection", external(&source));
    out.check("nothing of it is new to this version", understood(&source));
    let root = reads.objects.root();
    let planned = files(&source, &bundle, root).and_then(|f| whole(&source, root).map(|_| f));
    match planned {
        Err(e) => {
            out.check("every object has a place in the bundle", Err(e));
        }
        Ok(mut files) => {
            let missing = sizes(reads, None, &mut files).await?;
            let bytes: u64 = files.iter().map(|f| f.size).sum();
            let there = if missing.is_empty() {
                Ok(format!("{} objects, {}", files.len(), text::bytes(bytes)))
            } else {
                Err(absent(&missing))
            };
            if out.check("all objects are there", there) {
                out.files = files;
            }
        }
    }
    out.source = Some(source);
    Ok(out)
}

fn absent(missing: &[ObjectKey]) -> Error {
    let names: Vec<&str> = missing.iter().map(|key| key.0.as_str()).collect();
    Error::new(
        ErrorKind::NotFound,
        format!(
            "{} objects of the snapshot are missing: {}",
            names.len(),
            some_of(&names)
        ),
    )
    .fix("bring them back from a backup of the bucket, or export another snapshot")
}

/// One request to the target. A folder that is not there yet will be made.
async fn reachable(own: &ObjectRead, target: &str) -> Result<()> {
    let (there, prefix) = place(own, target)?;
    if let Elsewhere::Folder(dir) = &there
        && !dir.exists()
    {
        return Ok(());
    }
    own.elsewhere(&there)?
        .probe(&ObjectKey(prefix))
        .await
        .map(drop)
}

fn external(source: &Source) -> Result<String> {
    let collection = source.metadata.collection.as_ref();
    let schema = collection.and_then(|c| c.schema.as_ref());
    match schema.map(|s| s.external_source.as_str()) {
        Some(place) if !place.is_empty() => Err(Error::new(
            ErrorKind::Unsupported,
            "the collection's data lies outside the cluster: there is nothing to export",
        )),
        _ => Ok("its data is in the bucket".into()),
    }
}

/// The bundle's metadata is written anew: what this version does not know would not be in it (law 1).
fn understood(source: &Source) -> Result<String> {
    if source.unknown.is_empty() {
        return Ok("every member of the metadata is known".into());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "the metadata has members that this version does not know and would lose: {}",
            source.unknown.join(", ")
        ),
    )
    .fix("export it with a newer Falconer, or with the Milvus that made it"))
}

/// The plan that an operator sees.
pub(super) async fn plan(reads: &Reads<'_>, intent: &Intent) -> Result<Plan> {
    let Intent::Export { snapshot, target } = intent else {
        return Err(Error::new(ErrorKind::Internal, "not an export"));
    };
    // What may hold a password is not even planned: a plan is shown.
    parse_place(target)?;
    let found = survey(reads, *snapshot, target, "(new id)").await?;
    let label = found
        .source
        .as_ref()
        .map_or_else(|| snapshot.to_string(), |s| s.record.name.clone());
    let bytes: u64 = found.files.iter().map(|f| f.size).sum();
    let segments = found.source.as_ref().map_or(0, |s| s.segments.len() as u64);
    Ok(Plan {
        intent: intent.clone(),
        title: format!("export {label} → {target}"),
        steps: vec![
            "pin the snapshot for one hour, renewed while the job runs".into(),
            "record the job where Milvus's own tools see it, without credentials".into(),
            format!(
                "copy {} objects ({}) below {target}/exports/(new id)/files",
                found.files.len(),
                text::bytes(bytes)
            ),
            "list every copied object and compare its size".into(),
            format!("write {segments} manifests, then the metadata JSON, last"),
            "read the bundle as an external restore would and compare it with the snapshot".into(),
            "release the snapshot".into(),
        ],
        changes: Vec::new(),
        objects: ObjectChange {
            puts: segments + 2,
            copies: found.files.len() as u64,
            copy_bytes: bytes,
            samples: found.files.iter().take(5).map(|f| f.to.0.clone()).collect(),
            ..ObjectChange::default()
        },
        checks: found.checks,
        warnings: vec![
            "whoever can read the target can read the collection: the bundle holds its schema and its data".into(),
        ],
        undo: "cancelling the job removes what it copied; a finished bundle is removed by deleting its folder".into(),
        danger: Danger::Low,
        type_to_confirm: None,
        based_on: found.rev,
        rests_on: found.rests_on,
        hash: String::new(),
    })
}
