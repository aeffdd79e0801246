//! The door between the engine and its clients. State goes through `watch` (latest wins), questions through `oneshot`,
//! facts that happened once through `broadcast`. Nothing the engine sends can block it or grow without bound.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::error::{Error, ErrorKind, Result};
use super::ids::{JobId, MetaKey, MetaRev, UnixMs};
use super::model::broadcast::BroadcastsView;
use super::model::catalog::Catalog;
use super::model::jobs::JobsView;
use super::model::references::Index;
use super::plan::{Intent, Plan};

/// The connection, as the header shows it.
#[derive(Clone, Debug)]
pub enum Conn {
    /// Not there yet.
    Connecting {
        /// From 1.
        attempt: u32,
        /// Why the last one failed.
        why: Option<Error>,
    },
    /// First listing.
    Syncing {
        /// Keys so far.
        keys: u64,
    },
    /// Following.
    Live {
        /// Revision shown.
        rev: MetaRev,
        /// When the store was last heard.
        heard: UnixMs,
    },
    /// What is on screen is old.
    Stale {
        /// Since when.
        since: UnixMs,
        /// Why.
        why: Error,
        /// Next try in.
        next: Duration,
    },
    /// A dump: nothing will change.
    Static {
        /// Revision of the dump.
        rev: MetaRev,
    },
}

/// Something that happened once.
#[derive(Clone, Debug)]
pub struct Notice {
    /// When.
    pub at: UnixMs,
    /// Good, or not.
    pub bad: bool,
    /// One line.
    pub text: String,
}

/// A raw key with its value and its reading.
#[derive(Clone, Debug)]
pub struct RawValue {
    /// The key.
    pub key: MetaKey,
    /// The bytes, `None` when the key does not exist.
    pub value: Option<bytes::Bytes>,
    /// Creation and last revision, version, lease.
    pub revs: (MetaRev, MetaRev, i64, i64),
    /// What the key is, e.g. `data.SegmentInfo`.
    pub family: String,
    /// The value decoded to a JSON tree, secrets masked; `Err` says why it cannot be.
    pub decoded: std::result::Result<serde_json::Value, String>,
}

/// A question or an order.
#[derive(Clone, Debug)]
pub enum Request {
    /// Make a plan.
    Plan(Intent),
    /// Apply the plan with this hash, as confirmed by typing this.
    Apply {
        /// [`Plan::hash`].
        hash: String,
        /// What was typed.
        typed: String,
    },
    /// Stop a job and take back what it did, wherever it is run.
    Cancel(JobId),
    /// Try again what failed, of a job that is stuck.
    Retry(JobId),
    /// Bytes a second for a job's copies; `None` = no limit.
    Throttle(JobId, Option<u64>),
    /// Deletes and moves a second of a job; `None` = no limit.
    Pace(JobId, Option<u64>),
    /// How many copies a job runs at once.
    Parallel(JobId, u32),
    /// One key, decoded.
    Raw(MetaKey),
    /// Everything known of a snapshot: metadata JSON and manifests read, bytes by kind, missing objects.
    SnapshotDetail(super::ids::SnapshotId),
    /// The pins of a snapshot, or of all: whose, and how long.
    SnapshotPins(Option<super::ids::SnapshotId>),
    /// Whether a snapshot is whole; the result is kept nowhere.
    SnapshotVerify {
        /// This one.
        snapshot: super::ids::SnapshotId,
        /// Also count rows and open files.
        deep: bool,
    },
    /// What a job moved aside: its record, what lies there by prefix, some of the names.
    Quarantine(JobId),
    /// Rows of a segment, from its files. With a sender they go there, a few at a time, as they are read, and the answer is what was
    /// counted; without one they are in the answer, vectors and documents cut short.
    Scan(super::scan::Scan, Option<mpsc::Sender<super::scan::Found>>),
    /// Health checks; `deep` compares the bucket's listing with every reference.
    Doctor {
        /// Compare listings.
        deep: bool,
    },
}

impl Request {
    /// What is asked for, as the list of calls names it.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self {
            Self::Plan(_) => "plan",
            Self::Apply { .. } => "apply",
            Self::Cancel(_) => "cancel a job",
            Self::Retry(_) => "retry a job",
            Self::Throttle(..) => "throttle a job",
            Self::Pace(..) => "pace a job",
            Self::Parallel(..) => "copies at once of a job",
            Self::Raw(_) => "one key",
            Self::SnapshotDetail(_) => "one snapshot",
            Self::SnapshotPins(_) => "pins",
            Self::SnapshotVerify { .. } => "verify a snapshot",
            Self::Quarantine(_) => "quarantine",
            Self::Scan(..) => "rows of a segment",
            Self::Doctor { .. } => "doctor",
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To [`Request::Plan`].
    Planned(Arc<Plan>),
    /// To [`Request::Apply`]: the job that runs.
    Accepted(JobId),
    /// To [`Request::Apply`]: it is done already, and came to this.
    Settled(String),
    /// To [`Request::Cancel`], [`Request::Retry`], [`Request::Throttle`], [`Request::Pace`] and [`Request::Parallel`]: obeyed, or in
    /// the journal for the process that runs the job.
    Done,
    /// To [`Request::Raw`].
    Raw(Arc<RawValue>),
    /// A tree to show, secrets masked.
    Tree(Arc<serde_json::Value>),
}

/// A request on its way.
pub struct Envelope {
    /// What is asked.
    pub request: Request,
    /// The caller's own limit: later the answer is [`ErrorKind::DeadlineExceeded`].
    pub within: Option<Duration>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Reply>>,
}

/// What a client holds. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    /// Requests; bounded.
    pub requests: mpsc::Sender<Envelope>,
    /// The read model.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// Our jobs.
    pub jobs: watch::Receiver<Arc<JobsView>>,
    /// Broadcasts that this process drives; not open where it drives none.
    pub broadcasts: watch::Receiver<Arc<BroadcastsView>>,
    /// What each snapshot refers to, and whether that is known: whatever is not known, holds.
    pub references: watch::Receiver<Arc<Index>>,
    /// The connection.
    pub conn: watch::Receiver<Conn>,
    /// What happened.
    pub notices: broadcast::Sender<Notice>,
    /// Where we are: profile name, metadata and bucket in one masked line each, and whether writing is possible.
    pub place: Arc<Place>,
    /// The clock of the engine: ages on screen use it.
    pub clock: Arc<dyn super::clock::Clock>,
}

/// For the header.
#[derive(Clone, Debug)]
pub struct Place {
    /// Profile name.
    pub profile: String,
    /// `embedded`, `cluster`, `dump`.
    pub attach: &'static str,
    /// e.g. `etcd http://127.0.0.1:2379 by-dev/meta`.
    pub meta: String,
    /// e.g. `a-bucket/files at http://…`; `none` without one.
    pub bucket: String,
    /// Why nothing can be written, or `None`.
    pub read_only: Option<String>,
    /// What to do about that.
    pub to_write: &'static str,
}

/// What to do where the profile, the dump or the missing bucket keeps us from writing.
pub const TO_WRITE: &str =
    "attach to the live store, with its bucket, and allow writing with --write";

impl Handle {
    /// Asks and waits for the answer.
    pub async fn request(&self, request: Request) -> Result<Reply> {
        self.ask(request, None).await
    }

    /// The same for so long at most.
    pub async fn request_within(&self, request: Request, limit: Duration) -> Result<Reply> {
        self.ask(request, Some(limit)).await
    }

    async fn ask(&self, request: Request, within: Option<Duration>) -> Result<Reply> {
        let (reply, answer) = oneshot::channel();
        let gone = || {
            Error::new(ErrorKind::Internal, "the engine has stopped").fix("start Falconer again")
        };
        self.requests
            .send(Envelope {
                request,
                within,
                reply,
            })
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
