//! Health checks: is everything reachable, is it the right place, would writing be safe. Reads only; the quick form answers
//! within two seconds whatever the servers do, and every failure names the configuration key to change.

mod bucket;
mod meta;
mod quarantine;
mod references;
mod roots;
mod snapshots;

use std::time::Duration;

use futures::future::{Either, join, select};
use serde::{Serialize, Serializer};

use super::clock::Clock;
use super::error::Error;
use super::meta::MetaReader;
use super::objects::ObjectRead;
use super::profile::Roots;

pub use references::{Reference, references};

/// Deadline of each quick check; they run side by side.
pub const QUICK: Duration = Duration::from_millis(1_800);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Fine.
    Ok,
    /// Works, but somebody should look.
    Warn,
    /// Broken.
    Fail,
    /// Not made; the detail says why.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was checked; stable.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// One line: what was found.
    pub detail: String,
    /// What to do; names the configuration key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The single things that were found wrong, e.g. each missing object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<String>,
    /// How long it took, in milliseconds when serialised.
    #[serde(rename = "took_ms", serialize_with = "millis")]
    pub took: Duration,
}

fn millis<S: Serializer>(took: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u64(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

impl Check {
    fn new(name: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Self {
            name,
            status,
            detail: detail.into(),
            fix: None,
            items: Vec::new(),
            took: Duration::ZERO,
        }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, detail)
    }

    fn warn(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Warn, detail)
    }

    fn fail(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Fail, detail)
    }

    fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self::new(name, Status::Skipped, why)
    }

    /// A failure from an error: its advice becomes the fix.
    fn from_error(name: &'static str, e: &Error, otherwise: &str) -> Self {
        let fix = e.advice().unwrap_or(otherwise).to_owned();
        let line = e.to_string();
        let detail = line.strip_suffix(&format!("; {fix}")).unwrap_or(&line);
        Self::fail(name, detail).fix(fix)
    }

    fn fix(mut self, text: impl Into<String>) -> Self {
        self.fix = Some(text.into());
        self
    }

    fn items(mut self, items: Vec<String>) -> Self {
        self.items = items;
        self
    }
}

/// All checks.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    /// In the order of the connection: store, root, coordinators, bucket, snapshots.
    pub checks: Vec<Check>,
}

impl DoctorReport {
    /// Whether a check failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.checks.iter().any(|c| c.status == Status::Fail)
    }

    /// The check of this name.
    #[must_use]
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|c| c.name == name)
    }
}

/// What is examined.
pub struct Patient<'a> {
    /// The metadata store.
    pub meta: &'a MetaReader,
    /// The bucket; `None` for a dump without one.
    pub objects: Option<&'a ObjectRead>,
    /// Key roots.
    pub roots: &'a Roots,
    /// Clock.
    pub clock: &'a dyn Clock,
}

/// The quick checks: side by side, done within two seconds.
pub async fn run(patient: &Patient<'_>) -> DoctorReport {
    let p = patient;
    let store = join(
        join(
            timed(p, "etcd", Status::Fail, meta::store(p)),
            timed(p, "root path", Status::Fail, roots::check(p)),
        ),
        join(
            join(
                timed(p, "coordinators", Status::Skipped, meta::coordinators(p)),
                timed(p, "versions", Status::Skipped, meta::versions(p)),
            ),
            join(
                timed(p, "clock", Status::Skipped, meta::clock(p)),
                timed(p, "id allocator", Status::Skipped, meta::allocator(p)),
            ),
        ),
    );
    let objects = join(
        timed(p, "bucket", Status::Fail, bucket::reach(p)),
        join(
            timed(p, "right bucket", Status::Skipped, bucket::identity(p)),
            join(
                timed(p, "snapshots", Status::Skipped, bucket::snapshots(p)),
                timed(p, "quarantine", Status::Skipped, quarantine::records(p)),
            ),
        ),
    );
    let (((store, root), ((coordinators, versions), (clock, ids))), (reach, (right, kept))) =
        join(store, objects).await;
    let (snapshots, aside) = kept;
    let writing = vec![Check::skipped(
        "write permission",
        "not tried: nothing is ever written to find out; the first put of a job shows it",
    )];
    let groups = [
        store,
        root,
        coordinators,
        versions,
        clock,
        ids,
        reach,
        right,
        snapshots,
        aside,
        writing,
    ];
    DoctorReport {
        checks: groups.into_iter().flatten().collect(),
    }
}

/// The quick checks, then every object that live segments and snapshots refer to against one listing of the bucket. Takes as long as
/// that listing does. `more` are references that the caller knows of besides (e.g. of its own jobs).
pub async fn run_deep(patient: &Patient<'_>, more: &[Reference]) -> DoctorReport {
    let mut report = run(patient).await;
    let start = patient.clock.mono();
    let mut deep = references::check(patient, more).await;
    for check in &mut deep {
        check.took = patient.clock.mono().saturating_sub(start);
    }
    report.checks.extend(deep);
    report
}

/// Runs one group of checks against the deadline. `late` is what it means when it does not answer.
async fn timed(
    patient: &Patient<'_>,
    name: &'static str,
    late: Status,
    work: impl Future<Output = Vec<Check>>,
) -> Vec<Check> {
    let start = patient.clock.mono();
    let work = std::pin::pin!(work);
    let mut done = match select(work, patient.clock.sleep(QUICK)).await {
        Either::Left((checks, _)) => checks,
        Either::Right(_) => {
            let line = format!("no answer within {} ms", QUICK.as_millis());
            let fix = match name {
                "etcd" | "root path" => Some("check etcd.endpoints and the network to it"),
                "bucket" => Some("check minio.address and the network to it"),
                _ => None,
            };
            let check = Check::new(name, late, line);
            vec![match fix {
                Some(fix) => check.fix(fix),
                None => check,
            }]
        }
    };
    let took = patient.clock.mono().saturating_sub(start);
    for check in &mut done {
        check.took = took;
    }
    done
}
