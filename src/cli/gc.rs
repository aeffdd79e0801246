//! `gc …` and `quarantine …`.

use std::collections::BTreeSet;
use std::io::Write;

use clap::{Args, Subcommand};

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::{Handle, Request};
use crate::engine::ids::{CollectionId, JobId};
use crate::engine::model::resource::{self, Kind, Scope};
use crate::engine::plan::Intent;

use super::verbs::{collection, look, tree};
use super::{ApplyArgs, Format, OutputArgs, jobs, output, rate, time};

/// `gc …`.
#[derive(Debug, Subcommand)]
pub enum GcCommand {
    /// Show what one pass would collect and what it keeps and why. Changes nothing.
    Plan {
        /// Which.
        #[command(flatten)]
        scope: GcScope,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// What each snapshot refers to, and which garbage is kept where that cannot be read.
    References {
        /// Only snapshots of this collection.
        #[arg(short, long)]
        collection: Option<String>,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Run one pass.
    Run {
        /// Which.
        #[command(flatten)]
        scope: GcScope,
        /// How fast: `100/s` objects, `20MiB` bytes moved a second; may be given twice.
        #[arg(long, value_name = "N/s|BYTES", value_parser = limit)]
        rate: Vec<Limit>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Find objects that nobody owns, in every prefix, and move them aside.
    #[command(subcommand)]
    Orphans(OrphansCommand),
    /// Pause our passes: with a reason and an end.
    Pause {
        /// For how long: `30m`, `2h`, `7d`.
        #[arg(long = "for", value_name = "TIME", value_parser = time)]
        time: u64,
        /// Why, for whoever finds it at night.
        #[arg(long)]
        reason: String,
        /// Only this collection.
        #[arg(short, long)]
        collection: Option<String>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// End a pause: this one, or the only one there is.
    Resume {
        /// Its name, from `gc tickets`.
        ticket: Option<String>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Who has paused what, why and until when.
    Tickets {
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
}

/// `gc orphans …`.
#[derive(Debug, Subcommand)]
pub enum OrphansCommand {
    /// Show what would be moved aside, by rule and prefix, and what is kept and why. Changes nothing.
    Plan {
        /// Which.
        #[command(flatten)]
        scope: OrphanScope,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Run one scan.
    Run {
        /// Which.
        #[command(flatten)]
        scope: OrphanScope,
        /// How fast: `100/s` objects, `20MiB` bytes moved a second; may be given twice.
        #[arg(long, value_name = "N/s|BYTES", value_parser = limit)]
        rate: Vec<Limit>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
}

/// What an orphan scan looks at.
#[derive(Clone, Debug, Args)]
pub struct OrphanScope {
    /// Only objects whose path names this collection: its id when it is gone.
    #[arg(short, long)]
    pub collection: Option<String>,
    /// Only this prefix, e.g. `insert_log`; may be given several times.
    #[arg(short, long)]
    pub prefix: Vec<String>,
    /// Delete for good instead of moving aside.
    #[arg(long)]
    pub delete: bool,
}

/// `quarantine …`.
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// List what was moved aside, or what lies there of one job.
    List {
        /// Of this job.
        job: Option<i64>,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Put back what a job moved aside; never over an object that exists.
    Restore {
        /// The job that moved it.
        job: i64,
        /// Only objects whose original key begins with this.
        #[arg(short, long, default_value = "")]
        prefix: String,
        /// How fast: `100/s` objects, `20MiB` bytes a second; may be given twice.
        #[arg(long, value_name = "N/s|BYTES", value_parser = limit)]
        rate: Vec<Limit>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Delete for good what was moved aside long enough ago.
    Purge {
        /// Days since it was moved aside.
        #[arg(long, value_name = "DAYS", default_value_t = crate::engine::model::quarantine::KEEP_DAYS)]
        older_than: u32,
        /// How fast: `100/s` objects.
        #[arg(long, value_name = "N/s", value_parser = limit)]
        rate: Vec<Limit>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
}

/// A limit of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Objects a second.
    Objects(u64),
    /// Bytes a second.
    Bytes(u64),
}

/// What a pass looks at.
#[derive(Clone, Debug, Args)]
pub struct GcScope {
    /// Only this collection.
    #[arg(short, long)]
    pub collection: Option<String>,
    /// Only this rule; may be given several times.
    #[arg(short, long)]
    pub rule: Vec<String>,
    /// Move objects aside instead of deleting them: `quarantine restore JOB` brings the objects back, not the records.
    #[arg(long)]
    pub quarantine: bool,
}

/// `100/s` objects, or bytes as [`rate`] reads them; `20MiB/s` is the same.
fn limit(text: &str) -> std::result::Result<Limit, String> {
    let each = text.strip_suffix("/s").unwrap_or(text);
    if each.len() < text.len()
        && let Ok(n) = each.parse()
    {
        return Ok(Limit::Objects(n));
    }
    rate(each)
        .map(Limit::Bytes)
        .map_err(|_| "give objects as 100/s, or bytes as 20MiB".into())
}

/// The last word of each kind counts.
fn pace(limits: &[Limit]) -> jobs::Pace {
    let mut pace = jobs::Pace::default();
    for limit in limits {
        match *limit {
            Limit::Objects(n) => pace.objects = Some(n),
            Limit::Bytes(n) => pace.rate = Some(n),
        }
    }
    pace
}

fn scope_of(handle: &Handle, name: Option<&str>) -> Result<Option<CollectionId>> {
    name.map(|name| collection(handle, name)).transpose()
}

/// A collection that is gone has no name any more, and orphans are what is left of such: then the id does.
fn gone_or_not(handle: &Handle, name: Option<&str>) -> Result<Option<CollectionId>> {
    match name.map(|name| (name, name.parse())) {
        Some((name, Ok(id))) => Ok(Some(collection(handle, name).unwrap_or(id))),
        _ => scope_of(handle, name),
    }
}

fn pass(handle: &Handle, scope: &GcScope) -> Result<Intent> {
    Ok(Intent::Gc {
        collection: scope_of(handle, scope.collection.as_deref())?,
        rules: scope.rule.iter().cloned().collect::<BTreeSet<_>>(),
        quarantine: scope.quarantine,
    })
}

fn orphans(handle: &Handle, scope: &OrphanScope) -> Result<Intent> {
    Ok(Intent::Orphans {
        collection: gone_or_not(handle, scope.collection.as_deref())?,
        prefixes: scope.prefix.iter().cloned().collect(),
        delete: scope.delete,
    })
}

async fn planned(
    handle: &Handle,
    intent: Intent,
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let plan = jobs::plan(handle, intent).await?;
    output::plan(out, &plan, format)?;
    Ok(if plan.applicable() { 0 } else { 4 })
}

/// `gc …`.
pub async fn gc(
    handle: &mut Handle,
    command: GcCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    match command {
        GcCommand::Plan { scope, out: format } => {
            planned(handle, pass(handle, &scope)?, format.output, out).await
        }
        GcCommand::References {
            collection: name,
            out: format,
        } => references(handle, name.as_deref(), format.output, out).await,
        GcCommand::Run { scope, rate, apply } => {
            let intent = pass(handle, &scope)?;
            jobs::apply_at(handle, intent, &apply, pace(&rate), out).await
        }
        GcCommand::Orphans(OrphansCommand::Plan { scope, out: format }) => {
            planned(handle, orphans(handle, &scope)?, format.output, out).await
        }
        GcCommand::Orphans(OrphansCommand::Run { scope, rate, apply }) => {
            let intent = orphans(handle, &scope)?;
            jobs::apply_at(handle, intent, &apply, pace(&rate), out).await
        }
        GcCommand::Pause {
            time,
            reason,
            collection,
            apply,
        } => {
            let collection = gone_or_not(handle, collection.as_deref())?;
            let intent = Intent::PauseGc {
                collection,
                secs: time,
                reason,
            };
            jobs::apply(handle, intent, &apply, out).await
        }
        GcCommand::Resume { ticket, apply } => {
            jobs::apply(handle, Intent::ResumeGc { ticket }, &apply, out).await
        }
        GcCommand::Tickets { out: format } => {
            list(handle, Kind::Tickets, format.output, out)?;
            if matches!(format.output, Format::Table | Format::Wide) {
                output::raw(out, milvus(handle).as_bytes())?;
            }
            Ok(0)
        }
    }
}

/// What can be known of Milvus's own pause: it keeps it in memory and stores nothing; its switch may be overridden.
fn milvus(handle: &Handle) -> String {
    let catalog = handle.catalog.borrow().clone();
    let plain = |name: &str| name.to_ascii_lowercase().replace(['.', '/', '_'], "");
    let switch = catalog
        .config
        .values()
        .find(|c| plain(&c.name).ends_with("datacoordenablegarbagecollection"));
    let switch = switch.map_or_else(
        || "no override of dataCoord.enableGarbageCollection is stored".to_owned(),
        |c| format!("{} is overridden: {}", c.name, c.value),
    );
    format!(
        "Milvus keeps a pause of its own in its coordinator's memory and stores nothing: ask the coordinator; a restart clears it. {switch}.\n"
    )
}

fn list(handle: &Handle, kind: Kind, format: Format, out: &mut dyn Write) -> Result<()> {
    look(handle, |view| {
        let rows = resource::ids(view, kind, &Scope::default());
        output::rows(out, view, kind, rows, None, None, format)
    })
}

/// `quarantine …`.
pub async fn quarantine(
    handle: &mut Handle,
    command: QuarantineCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    match command {
        QuarantineCommand::List {
            job: None,
            out: format,
        } => {
            list(handle, Kind::Quarantine, format.output, out)?;
            Ok(0)
        }
        QuarantineCommand::List {
            job: Some(job),
            out: format,
        } => {
            let reply = handle.request(Request::Quarantine(JobId(job))).await?;
            tree(reply, format.output, out)?;
            Ok(0)
        }
        QuarantineCommand::Restore {
            job,
            prefix,
            rate,
            apply,
        } => {
            let intent = Intent::QuarantineRestore {
                job: JobId(job),
                prefix,
            };
            jobs::apply_at(handle, intent, &apply, pace(&rate), out).await
        }
        QuarantineCommand::Purge {
            older_than,
            rate,
            apply,
        } => {
            let intent = Intent::QuarantinePurge { days: older_than };
            jobs::apply_at(handle, intent, &apply, pace(&rate), out).await
        }
    }
}

/// How often a long reading says how far it is.
const WORD: std::time::Duration = std::time::Duration::from_secs(5);

/// `gc references`: 7 when a snapshot cannot be read.
async fn references(
    handle: &mut Handle,
    of: Option<&str>,
    format: Format,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let of = of.map(|name| collection(handle, name)).transpose()?;
    if handle.place.bucket == "none" {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "what snapshots refer to stands in the bucket, and none is configured",
        )
        .fix("name it, e.g. --bucket s3://NAME/ROOT or --bucket file:///FOLDER"));
    }
    let clock = handle.clock.clone();
    loop {
        let index = handle.references.borrow_and_update().clone();
        if index.is_settled() {
            break;
        }
        tokio::select! {
            changed = handle.references.changed() => if changed.is_err() {
                return Err(jobs::unexpected());
            },
            () = clock.sleep(WORD) => {
                let (read, all) = (index.read(), index.entries().count());
                let _ = writeln!(std::io::stderr(), "falconer: {read} of {all} snapshots are read");
            }
        }
    }
    look(handle, |view| output::references(out, view, of, format))
}
