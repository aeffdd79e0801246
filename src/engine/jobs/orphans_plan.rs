//! What an orphan scan would take and what it keeps: the executor's own verdicts without its last step.

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::PlanCx;
use super::orphans::Minds;
use super::orphans_scan::Seen;
use super::restore_source::Reads;
use super::tickets;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::{ObjPath, ParsedPath, SegmentBase};
use crate::engine::ids::{CollectionId, ObjectKey};
use crate::engine::model::holds::Reason;
use crate::engine::model::orphans::{
    ByPrefix, Known, PREFIXES, Report, Tally, Verdict, judge, newest_of, prefix, sum,
};
use crate::engine::model::quarantine::{KEEP_DAYS, Yard};
use crate::engine::model::text::bytes;
use crate::engine::objects::ObjectMeta;
use crate::engine::plan::journal::Keys;
use crate::engine::plan::{Check, Danger, Intent, ObjectChange, Plan};

/// Names kept for the eye.
const SAMPLES: usize = 20;
/// Folders looked into at once.
const LOOKS: usize = 16;

/// What a scan looks at.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only objects whose path names this collection.
    pub collection: Option<CollectionId>,
    /// Prefixes below the root, whole when empty.
    pub prefixes: Vec<String>,
    /// Orphans are deleted, not moved aside.
    pub delete: bool,
}

impl Scope {
    /// Of an intent. A prefix that Milvus does not have is an error, not an empty scan.
    pub fn of(intent: &Intent) -> Result<Self> {
        let Intent::Orphans {
            collection,
            prefixes,
            delete,
        } = intent
        else {
            return Err(Error::new(ErrorKind::Internal, "not an orphan scan"));
        };
        if let Some(bad) = prefixes
            .iter()
            .find(|p| PREFIXES.binary_search(&p.as_str()).is_err())
        {
            return Err(
                Error::new(ErrorKind::Invalid, format!("there is no prefix {bad:?}"))
                    .fix(format!("use one of {}", PREFIXES.join(", "))),
            );
        }
        Ok(Self {
            collection: *collection,
            prefixes: prefixes.iter().cloned().collect(),
            delete: *delete,
        })
    }

    /// What is listed, one after the other.
    #[must_use]
    pub fn walks(&self, root: &str) -> Vec<ObjectKey> {
        let root = root.trim_end_matches('/');
        if self.prefixes.is_empty() {
            return vec![ObjectKey(root.to_owned())];
        }
        let below = |p: &String| {
            if root.is_empty() {
                ObjectKey(p.clone())
            } else {
                ObjectKey(format!("{root}/{p}"))
            }
        };
        self.prefixes.iter().map(below).collect()
    }

    /// The verdict on a listed object; `None` when it is out of scope.
    #[must_use]
    pub fn judge(
        &self,
        known: &Known,
        root: &str,
        yard: &Yard,
        object: &ObjectMeta,
    ) -> Option<Verdict> {
        if yard.holds(&object.key) {
            return None;
        }
        let path = ObjPath::parse(root, &object.key.0);
        if self.collection.is_some() {
            let of = match &path {
                ParsedPath::Known(path) => path.owner().collection,
                ParsedPath::Unknown => None,
            };
            if of != self.collection {
                return None;
            }
        }
        Some(judge(known, &path, &object.key, object.modified))
    }
}

/// Fails unless a file of one of these segments is there (`spec/oncall.md` rule 16). Holds when there is no segment.
async fn own_bucket(reads: &Reads<'_>, sample: &[SegmentBase]) -> Result<Check> {
    let root = reads.objects.root();
    let looks: Vec<_> = sample
        .iter()
        .map(|base| {
            async move {
                let folder = ObjectKey(base.to_path(root));
                let mut listed = reads.objects.list(&folder, None);
                Ok::<_, Error>(listed.try_next().await?.is_some())
            }
            .boxed()
        })
        .collect();
    let mut looks = stream::iter(looks).buffer_unordered(LOOKS);
    let mut is_ours = sample.is_empty();
    while !is_ours && let Some(there) = looks.try_next().await? {
        is_ours = there;
    }
    Ok(Check {
        name: "the bucket is this cluster's".into(),
        detail: if sample.is_empty() {
            "no segment has a record".into()
        } else {
            "segments have files".into()
        },
        failed: (!is_ours).then(|| {
            format!(
                "no insert log of {} segments is in bucket {:?} under root {root:?}: is this the cluster's bucket? Compare \
                 minio.bucketName and minio.rootPath with its configuration",
                sample.len(),
                reads.objects.bucket(),
            )
        }),
    })
}

/// Whether an object stays because the metadata may be too old to know it.
#[must_use]
pub fn is_newer(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Keep(hold) if hold.reason == Reason::NewerThanMetadata)
}

/// Why nothing may go by metadata that is older than the bucket.
#[must_use]
pub fn too_old(seen: &Seen, id: i64, key: &ObjectKey) -> String {
    format!(
        "the bucket holds {key} with id {id}, and the newest id of any record is {}: was etcd put back from a backup? Live data would be \
         taken for orphans",
        seen.known.newest.unwrap_or_default()
    )
}

/// Two checks: that the bucket is this cluster's, and that the metadata is.
pub async fn ours(reads: &Reads<'_>, seen: &Seen) -> Result<[Check; 2]> {
    let whole = if seen.empty {
        Some(format!(
            "there is no record of any collection, segment or snapshot under root {:?}: every object would be an orphan. Compare \
             etcd.rootPath and etcd.metaSubPath with the cluster's configuration",
            reads.roots.root
        ))
    } else {
        None
    };
    Ok([
        own_bucket(reads, &seen.sample).await?,
        Check {
            name: "the metadata is this cluster's".into(),
            detail: format!(
                "{} collections, {} segments, {} snapshots",
                seen.known.collections.len(),
                seen.known.segments.len(),
                seen.known.snapshots.len()
            ),
            failed: whole,
        },
    ])
}

/// The plan that an operator sees: the whole bucket is listed, nothing of it is kept in memory but counts.
pub(super) async fn plan(cx: &PlanCx, intent: &Intent, minds: &Minds) -> Result<Plan> {
    let reads = Reads {
        meta: &cx.meta,
        objects: &cx.objects,
        roots: &cx.roots,
    };
    let scope = Scope::of(intent)?;
    let cutoff = cx.clock.now();
    let (paused, tickets) =
        tickets::check(&cx.meta, &Keys::new(&cx.roots), scope.collection, cutoff).await?;
    let mut seen = minds.look(&reads, cutoff).await?;
    seen.known.tickets = tickets;
    let root = cx.objects.root();
    let yard = Yard::of(root);
    let (mut report, mut samples) = (Report::default(), Vec::new());
    let mut above: Option<(i64, ObjectKey)> = None;
    for walk in scope.walks(root) {
        let mut listed = cx.objects.list(&walk, None);
        while let Some(object) = listed.try_next().await? {
            let Some(verdict) = scope.judge(&seen.known, root, &yard, &object) else {
                continue;
            };
            report.count(prefix(root, &object.key), object.size, &verdict);
            if is_newer(&verdict)
                && let Some(id) = ObjPath::parse(root, &object.key.0)
                    .known()
                    .and_then(|path| newest_of(&path))
                && above.as_ref().is_none_or(|(most, _)| *most < id)
            {
                above = Some((id, object.key.clone()));
            }
            if let Verdict::Orphan(rule) = verdict
                && samples.len() < SAMPLES
            {
                samples.push(format!("{} ({})", object.key.0, rule.name()));
            }
        }
    }
    let [bucket, metadata] = ours(&reads, &seen).await?;
    let above = above.map(|(id, key)| too_old(&seen, id, &key));
    // A writer that died leaves such objects in a sound cluster too. They stay whatever is done; the rest may be put back, unless it is
    // deleted for good.
    let (failed, doubt) = if scope.delete {
        (above, None)
    } else {
        (None, above)
    };
    let checks = vec![
        bucket,
        metadata,
        Check {
            name: "the metadata is as new as the bucket".into(),
            failed,
            detail: match &doubt {
                Some(_) => "in doubt, see the warnings; objects of newer ids stay".into(),
                None => format!("newest id {}", seen.known.newest.unwrap_or_default()),
            },
        },
        Check {
            name: "references are read".into(),
            failed: None,
            detail: if seen.unreadable.is_empty() {
                format!("{} snapshots", seen.known.snapshots.len())
            } else {
                format!(
                    "{} cannot be read; what they may refer to is kept",
                    seen.unreadable.len()
                )
            },
        },
        paused,
    ];
    let mut plan = words(intent, &scope, &yard, &seen, &report, checks, samples);
    plan.warnings.splice(..0, doubt);
    Ok(plan)
}

fn words(
    intent: &Intent,
    scope: &Scope,
    yard: &Yard,
    seen: &Seen,
    report: &Report,
    checks: Vec<Check>,
    samples: Vec<String>,
) -> Plan {
    let found = report.found();
    let verb = if scope.delete { "delete" } else { "move aside" };
    let mut steps = vec![format!(
        "everything is judged as of {}; owners and holds are read again right before each batch, and each object is looked at right \
         before it goes",
        seen.known.now.utc()
    )];
    for (rule, by) in &report.orphans {
        steps.push(format!("{}: {verb} {}", rule.name(), line(by)));
    }
    if report.orphans.is_empty() {
        steps.push("nothing is an orphan".into());
    }
    let mut objects = ObjectChange {
        deletes: found.objects,
        delete_bytes: found.bytes,
        samples,
        ..ObjectChange::default()
    };
    if !scope.delete {
        objects.copies = found.objects;
        objects.copy_bytes = found.bytes;
        steps.push(format!(
            "each is copied to {}/JOB/…, its size is compared, then the original goes",
            yard.all()
        ));
    }
    Plan {
        intent: intent.clone(),
        title: format!(
            "orphans: {verb} {} objects, {}, of {} listed, {}",
            found.objects,
            bytes(found.bytes),
            report.all().objects,
            bytes(report.all().bytes)
        ),
        checks,
        steps,
        changes: Vec::new(),
        objects,
        warnings: warnings(seen, report),
        undo: if scope.delete {
            "none: deleted objects are gone".into()
        } else {
            format!(
                "falconer quarantine restore JOB, until a purge takes them (after {KEEP_DAYS} days by default)"
            )
        },
        danger: if scope.delete {
            Danger::High
        } else {
            Danger::Medium
        },
        type_to_confirm: scope.delete.then(|| "delete orphans".into()),
        based_on: seen.rev,
        rests_on: Vec::new(),
        hash: String::new(),
    }
}

/// What is kept, and what should make one think twice.
fn warnings(seen: &Seen, report: &Report) -> Vec<String> {
    let mut out = Vec::new();
    let (found, all) = (report.found(), report.all());
    let unknown = report
        .kept
        .get(&Reason::Unknown)
        .map_or_else(Tally::default, |by| sum(by.values()));
    if found.objects * 2 > all.objects.saturating_sub(unknown.objects) && found.objects > 100 {
        out.push(format!(
            "more than half of all that is known here is an orphan ({} of {}): is this the right metadata for this bucket?",
            found.objects, all.objects
        ));
    }
    for (reason, by) in &report.kept {
        out.push(format!("kept because {}: {}", reason.code(), line(by)));
    }
    if let Some(next) = report.next {
        out.push(format!("the first of these becomes free at {}", next.utc()));
    }
    let blocked = seen.unreadable.iter().take(SAMPLES);
    out.extend(blocked.map(|why| format!("blocks the scan: {why}")));
    out
}

/// `1,234 objects, 5 GiB: insert_log 1,200 (4 GiB), stats_log 34 (1 GiB)`.
#[must_use]
pub fn line(by: &ByPrefix) -> String {
    let all = sum(by.values());
    let parts: Vec<String> = by
        .iter()
        .map(|(prefix, t)| format!("{prefix} {} ({})", t.objects, bytes(t.bytes)))
        .collect();
    format!(
        "{} objects, {}: {}",
        all.objects,
        bytes(all.bytes),
        parts.join(", ")
    )
}
