//! What a job looks like from outside: plain data for screens and the CLI. The step machines live in `jobs`.

use std::sync::Arc;

use super::quarantine::Quarantine;
use super::tickets::Ticket;
use crate::engine::ids::{CollectionId, JobId, UnixMs};

/// Our own jobs, newest first, and what else we keep beside the root. Foreign jobs are [`Task`](super::data::Task)s.
#[derive(Clone, Debug, Default)]
pub struct JobsView {
    /// All that are known, running and ended.
    pub jobs: Vec<Arc<JobInfo>>,
    /// Pauses of garbage collection, those that are over included until somebody takes them away.
    pub tickets: Vec<Arc<Ticket>>,
    /// What was moved aside, newest first.
    pub quarantine: Vec<Arc<Quarantine>>,
    /// The journal has been read: a job that is not here does not exist.
    pub known: bool,
}

/// What the note of an export begins with that says where its bundle is.
pub const BUNDLE: &str = "bundle: ";

/// A kind of job.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Snapshot create.
    CreateSnapshot,
    /// Snapshot drop.
    DropSnapshot,
    /// A pin put on a snapshot.
    PinSnapshot,
    /// Pins taken off a snapshot.
    UnpinSnapshot,
    /// A snapshot read back and compared.
    VerifySnapshot,
    /// Restore into a new collection.
    Restore,
    /// Copying a snapshot out, as a bundle.
    Export,
    /// One garbage collection pass.
    Gc,
    /// One scan for objects that nobody owns.
    Orphans,
    /// Putting back what was moved aside.
    QuarantineRestore,
    /// Deleting what was moved aside long enough ago.
    QuarantinePurge,
    /// Building the demo cluster.
    Demo,
    /// A change of collections, partitions or index definitions.
    Ddl,
}

/// Where a job stands. *Completed* is not *Verified* (law 7).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Accepted, not begun.
    Pending,
    /// A step is running.
    Running,
    /// It could not go on, keeps what it has, and waits for the operator: retry what failed, or cancel. After
    /// [`JobInfo::until`] it is taken back.
    Stuck,
    /// Taking back what it did.
    Undoing,
    /// Published; not verified yet.
    Completed,
    /// Published and checked.
    Verified,
    /// Ended with an error; what it made has been taken back, or is labelled.
    Failed,
    /// Stopped on request and taken back.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen by itself.
    #[must_use]
    pub const fn ended(self) -> bool {
        matches!(self, Self::Verified | Self::Failed | Self::Cancelled)
    }

    /// Whether nothing happens now: it has ended, or it waits for the operator.
    #[must_use]
    pub const fn rests(self) -> bool {
        self.ended() || matches!(self, Self::Stuck)
    }
}

/// A file that is being copied, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Copying {
    /// Key of the target.
    pub object: String,
    /// Its size.
    pub bytes: u64,
    /// How long it has taken, ms.
    pub took_ms: u64,
}

/// A file that would not copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileError {
    /// Key of the source.
    pub object: String,
    /// The first error: later ones are often its echo.
    pub error: String,
    /// Tries that failed.
    pub tries: u32,
    /// It was not tried again.
    pub given_up: bool,
}

/// How a job's copies go, file by file; bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Copies {
    /// Copies at once, as asked for now; 0 = the job copies nothing, or nobody runs it.
    pub parallel: u32,
    /// Bytes a second that it is held to; `None` = no limit.
    pub limit: Option<u64>,
    /// Objects a second that its deletes and moves are held to; `None` = no limit.
    pub pace: Option<u64>,
    /// Under way, the longest first.
    pub running: Vec<Copying>,
    /// The one that took longest, of those that are done.
    pub slowest: Option<Copying>,
    /// Those that failed and are not there yet, first ones first.
    pub failed: Vec<FileError>,
    /// How many failed and are not there yet, those not named above too.
    pub failing: u64,
}

/// Counters of a job. Totals are 0 while unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Segments done and all.
    pub segments: (u64, u64),
    /// Files done and all.
    pub files: (u64, u64),
    /// Bytes done and all.
    pub bytes: (u64, u64),
    /// Bytes a second over the last seconds.
    pub rate: f64,
    /// Milliseconds left by that rate.
    pub eta_ms: Option<u64>,
    /// Rows in what it makes; 0 while unknown.
    #[serde(default)]
    pub rows: u64,
}

/// One job.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct JobInfo {
    /// Its id: from the cluster's allocator, so that records in the root can carry it.
    pub id: JobId,
    /// Kind.
    pub kind: JobKind,
    /// One line: `restore books@nightly → books_copy`.
    pub title: String,
    /// State.
    pub state: JobState,
    /// The step it is in, in words.
    pub step: String,
    /// Steps done and all.
    pub steps: (u32, u32),
    /// Counters.
    pub progress: Progress,
    /// Collection it makes or works on.
    pub collection: Option<CollectionId>,
    /// Begin.
    pub started: UnixMs,
    /// Last movement: a stuck job is one whose time stands still.
    pub moved: UnixMs,
    /// End.
    pub ended: Option<UnixMs>,
    /// The first true error.
    pub error: Option<String>,
    /// What it found or decided, in order; bounded.
    pub notes: Vec<String>,
    /// It was taken up again after a crash: `resumed` or `undone`, and why.
    pub recovered: Option<String>,
    /// Its copies, where it has any.
    pub copies: Copies,
    /// [`JobState::Stuck`] until then.
    pub until: Option<UnixMs>,
}
