//! What the write path leaves behind, and where: under `falconer/{root}/`, beside the Milvus root, never in it (law 4).
//!
//! | key after `falconer/{root}/` | value |
//! |---|---|
//! | `owner` | [`Owner`], bound to the writer's lease |
//! | `epoch` | decimal, one more with each owner |
//! | `lock/{name}` | decimal id of the job that works on it |
//! | `job/{id}` | [`JobRecord`]; gone [`RETENTION`] after the job's end |
//! | `job/{id}/live` | [`Live`]: the counters between two entries, for whoever watches from elsewhere |
//! | `job/{id}/order/{ms}-{random}` | [`Ordered`]: what another process asks of the one that runs the job; written without owning the root |
//! | `history/{id}` | [`Past`]: what stays of a job for good |
//! | `job/{id}/mark/{change}/{chunk}` | [`Mark`]: that chunk has happened |
//! | `job/{id}/pre/{change}/{chunk}[/{part}]` | [`PreImage`]: the values that the chunk replaced |
//! | `snapshot/{id}/made`, `/since`, `/verified` | what is known of a snapshot beside its record (`jobs::snapshot_notes`) |
//! | `snapshot/{id}/pin/{pin}` | who holds the pin, and why |
//! | `wal/{pchannel}/head` | [`Head`](crate::engine::model::log::Head): term and end of a channel's log; whoever moves it owns the log |
//! | `wal/{pchannel}/segment/{first id}` | [`Segment`](crate::engine::model::log::Segment): an object that is part of the log |
//! | `root` | [`Mark`](crate::engine::coordinator::mark::Mark): this root is ours, its channels too |
//! | `broadcast/{id}` | what Milvus's own record of a broadcast has no field for (`broadcast`) |
//! | `pause/{ticket}` | [`Ticket`](crate::engine::model::tickets::Ticket): written without ownership, see [`super::tickets`] |
//! | `quarantine/{job}` | [`Quarantine`](crate::engine::model::quarantine::Quarantine) |
//! | `audit/{revision}-{job}-{change}-{chunk}` | [`Audit`]; the revision is the store's just before, 20 digits, so that keys sort by time |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Intent;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{
    BroadcastId, CollectionId, JobId, KeyPrefix, MessageId, MetaKey, MetaRev, PinId, SnapshotId,
    UnixMs,
};
use crate::engine::model::jobs::{Copies, JobInfo, JobKind, JobState, Progress};
use crate::engine::profile::Roots;

pub use super::past::{Live, Order, Ordered, Past, RETENTION};

/// Builds our own keys.
#[derive(Clone, Debug)]
pub struct Keys {
    base: String,
}

impl Keys {
    /// For one Milvus root.
    #[must_use]
    pub fn new(roots: &Roots) -> Self {
        Self {
            base: format!("falconer/{}", roots.root.trim_matches('/')),
        }
    }

    /// Who may write.
    #[must_use]
    pub fn owner(&self) -> MetaKey {
        format!("{}/owner", self.base).into()
    }

    /// How often the owner has changed.
    #[must_use]
    pub fn epoch(&self) -> MetaKey {
        format!("{}/epoch", self.base).into()
    }

    /// Mutual exclusion of jobs, also across processes.
    #[must_use]
    pub fn lock(&self, name: &str) -> MetaKey {
        format!("{}/lock/{name}", self.base).into()
    }

    /// All jobs, with everything under them.
    #[must_use]
    pub fn jobs(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/job", self.base))
    }

    /// A job's record.
    #[must_use]
    pub fn job(&self, id: JobId) -> MetaKey {
        format!("{}/job/{id}", self.base).into()
    }

    /// Everything under a job's record, the record itself not.
    #[must_use]
    pub fn under_job(&self, id: JobId) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/job/{id}", self.base))
    }

    /// A job's markers.
    #[must_use]
    pub fn marks(&self, id: JobId) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/job/{id}/mark", self.base))
    }

    /// The markers of one change.
    #[must_use]
    pub fn marks_of(&self, id: JobId, change: &str) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/job/{id}/mark/{change}", self.base))
    }

    /// The marker of one chunk.
    #[must_use]
    pub fn mark(&self, id: JobId, change: &str, chunk: u32) -> MetaKey {
        format!("{}/job/{id}/mark/{change}/{chunk:06}", self.base).into()
    }

    /// The pre-images of one chunk.
    #[must_use]
    pub fn pre(&self, id: JobId, change: &str, chunk: u32) -> MetaKey {
        format!("{}/job/{id}/pre/{change}/{chunk:06}", self.base).into()
    }

    /// A piece of a pre-image too large for the transaction itself.
    #[must_use]
    pub fn pre_part(&self, id: JobId, change: &str, chunk: u32, part: usize) -> MetaKey {
        format!("{}/job/{id}/pre/{change}/{chunk:06}/{part:04}", self.base).into()
    }

    /// What is kept beside the records of all snapshots.
    #[must_use]
    pub fn snapshots(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/snapshot", self.base))
    }

    /// What is kept beside one snapshot's record: it goes with the record.
    #[must_use]
    pub fn under_snapshot(&self, id: SnapshotId) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/snapshot/{id}", self.base))
    }

    /// One thing kept beside a snapshot's record: `made`, `since`, `verified`.
    #[must_use]
    pub fn snapshot_note(&self, id: SnapshotId, what: &str) -> MetaKey {
        format!("{}/snapshot/{id}/{what}", self.base).into()
    }

    /// Who holds a pin.
    #[must_use]
    pub fn pin_note(&self, id: SnapshotId, pin: PinId) -> MetaKey {
        format!("{}/snapshot/{id}/pin/{pin}", self.base).into()
    }

    /// A job's counters.
    #[must_use]
    pub fn live(&self, id: JobId) -> MetaKey {
        format!("{}/job/{id}/live", self.base).into()
    }

    /// What other processes ask of a job.
    #[must_use]
    pub fn orders(&self, id: JobId) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/job/{id}/order", self.base))
    }

    /// One of it.
    #[must_use]
    pub fn order(&self, id: JobId, at: UnixMs, random: u64) -> MetaKey {
        format!("{}/job/{id}/order/{:020}-{random:016x}", self.base, at.0).into()
    }

    /// What stays of all jobs.
    #[must_use]
    pub fn history(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/history", self.base))
    }

    /// What stays of one job. Twenty digits, so that they sort by begin.
    #[must_use]
    pub fn past(&self, id: JobId) -> MetaKey {
        format!("{}/history/{:020}", self.base, id.0).into()
    }

    /// Whether the key is one of ours: it lies beside the Milvus root, so a live coordinator does not matter to it.
    #[must_use]
    pub fn is_ours(&self, key: &MetaKey) -> bool {
        key.0
            .strip_prefix(self.base.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// Everything of all logs.
    #[must_use]
    pub fn wals(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/wal", self.base))
    }

    /// Term and end of a channel's log.
    #[must_use]
    pub fn wal_head(&self, pchannel: &str) -> MetaKey {
        format!("{}/wal/{pchannel}/head", self.base).into()
    }

    /// The index of a channel's log.
    #[must_use]
    pub fn wal_segments(&self, pchannel: &str) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/wal/{pchannel}/segment", self.base))
    }

    /// One segment of it, by the id of its first message. Twenty digits, so that they sort.
    #[must_use]
    pub fn wal_segment(&self, pchannel: &str, first: MessageId) -> MetaKey {
        format!("{}/wal/{pchannel}/segment/{:020}", self.base, first.0).into()
    }

    /// That the root is ours.
    #[must_use]
    pub fn root(&self) -> MetaKey {
        format!("{}/root", self.base).into()
    }

    /// What is kept beside the records of all broadcasts.
    #[must_use]
    pub fn broadcasts(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/broadcast", self.base))
    }

    /// What is kept beside one broadcast's record.
    #[must_use]
    pub fn broadcast(&self, id: BroadcastId) -> MetaKey {
        format!("{}/broadcast/{id}", self.base).into()
    }

    /// All pauses of garbage collection.
    #[must_use]
    pub fn tickets(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/pause", self.base))
    }

    /// One pause.
    #[must_use]
    pub fn ticket(&self, id: &str) -> MetaKey {
        format!("{}/pause/{id}", self.base).into()
    }

    /// The records of what was moved aside.
    #[must_use]
    pub fn quarantines(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/quarantine", self.base))
    }

    /// What one job moved aside.
    #[must_use]
    pub fn quarantine(&self, id: JobId) -> MetaKey {
        format!("{}/quarantine/{id}", self.base).into()
    }

    /// All audit entries.
    #[must_use]
    pub fn audits(&self) -> KeyPrefix {
        KeyPrefix::new(&format!("{}/audit", self.base))
    }

    /// One audit entry.
    #[must_use]
    pub fn audit(&self, rev: MetaRev, id: JobId, change: &str, chunk: u32) -> MetaKey {
        format!("{}/audit/{:020}-{id}-{change}-{chunk:06}", self.base, rev.0).into()
    }
}

/// Who may write into the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Random; tells two owners with the same name apart.
    pub token: String,
    /// Number of this ownership.
    pub epoch: u64,
    /// `user@host pid 123`.
    pub actor: String,
    /// Begin.
    pub since: UnixMs,
}

/// A chunk has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// First write of the change that the chunk holds.
    pub from: usize,
    /// One past its last write.
    pub to: usize,
    /// It was the last chunk.
    pub last: bool,
    /// SHA-256 over all writes of the change: a resumed job must build the same ones.
    pub digest: String,
}

/// One line of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditKey {
    /// The key.
    pub key: String,
    /// Revision of the value that was replaced; `None` = there was none.
    pub old: Option<MetaRev>,
    /// `put 123 bytes`, `delete`.
    pub what: String,
}

/// Who changed what, written in the same transaction as the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// When.
    pub at: UnixMs,
    /// Who.
    pub actor: String,
    /// For which job.
    pub job: JobId,
    /// The plan that was confirmed.
    pub plan: String,
    /// Name of the change.
    pub change: String,
    /// The keys.
    pub keys: Vec<AuditKey>,
}

/// A value as it stood before a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// The key.
    pub key: MetaKey,
    /// Revision and value; `None` = it did not exist.
    pub old: Option<(MetaRev, Bytes)>,
}

/// The values a chunk replaced. Keys that did not exist are in the [`Audit`] alone, and so are a job's own records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreImage {
    /// In the order of the writes.
    pub entries: Vec<Before>,
}

#[derive(Serialize, Deserialize)]
struct PreHead {
    key: String,
    rev: Option<MetaRev>,
    len: usize,
}

impl PreImage {
    /// One line of JSON that says which keys, then the values one after the other, raw.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let heads: Vec<PreHead> = self
            .entries
            .iter()
            .map(|e| PreHead {
                key: e.key.text(),
                rev: e.old.as_ref().map(|(rev, _)| *rev),
                len: e.old.as_ref().map_or(0, |(_, v)| v.len()),
            })
            .collect();
        let mut out = json(&heads)?.to_vec();
        out.push(b'\n');
        for (_, value) in self.entries.iter().filter_map(|e| e.old.as_ref()) {
            out.extend_from_slice(value);
        }
        Ok(out)
    }

    /// The reverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| Error::new(ErrorKind::Corrupt, format!("pre-image record: {why}"));
        let cut = bytes
            .iter()
            .position(|b| *b == b'\n')
            .ok_or_else(|| bad("no first line"))?;
        let heads: Vec<PreHead> = serde_json::from_slice(&bytes[..cut])
            .map_err(|e| bad("the first line is not ours").caused_by(e))?;
        let mut rest = &bytes[cut + 1..];
        let mut entries = Vec::with_capacity(heads.len());
        for head in heads {
            let old = match head.rev {
                None => None,
                Some(rev) => {
                    let (value, tail) = rest
                        .split_at_checked(head.len)
                        .ok_or_else(|| bad("a value is cut short"))?;
                    rest = tail;
                    Some((rev, Bytes::copy_from_slice(value)))
                }
            };
            entries.push(Before {
                key: head.key.into(),
                old,
            });
        }
        if rest.is_empty() {
            Ok(Self { entries })
        } else {
            Err(bad("bytes behind the last value"))
        }
    }
}

/// A job as it is journaled: all that a resumed job has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobRecord {
    /// Id.
    pub id: JobId,
    /// Kind.
    pub kind: JobKind,
    /// What was wanted.
    pub intent: Intent,
    /// [`Plan::hash`](super::Plan::hash) that was confirmed.
    pub plan: String,
    /// Who confirmed it.
    pub actor: String,
    /// One line.
    pub title: String,
    /// Where it stands.
    pub state: JobState,
    /// The step it is in.
    pub step: String,
    /// Steps done and all.
    pub steps: (u32, u32),
    /// Counters when last journaled.
    pub progress: Progress,
    /// Collection it makes or works on.
    pub collection: Option<CollectionId>,
    /// The machine's own state.
    pub machine: serde_json::Value,
    /// Names it excludes others from.
    pub locks: Vec<String>,
    /// Begin.
    pub started: UnixMs,
    /// Last step.
    pub moved: UnixMs,
    /// End.
    pub ended: Option<UnixMs>,
    /// The first true error.
    pub error: Option<String>,
    /// It was asked to stop.
    pub cancelled: bool,
    /// What it found or decided.
    pub notes: Vec<String>,
    /// `resumed` or `undone` after a crash, and why.
    pub recovered: Option<String>,
    /// Bytes a second that its copies are held to: still so after a restart.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Objects a second that its deletes and moves are held to: still so after a restart.
    #[serde(default)]
    pub pace: Option<u64>,
    /// Copies at once that somebody asked for: still so after a restart.
    #[serde(default)]
    pub parallel: Option<u32>,
    /// Its copies when last journaled.
    #[serde(default)]
    pub copies: Copies,
    /// Stuck until then.
    #[serde(default)]
    pub until: Option<UnixMs>,
}

impl JobRecord {
    /// As a screen sees it.
    #[must_use]
    pub fn info(&self) -> JobInfo {
        JobInfo {
            id: self.id,
            kind: self.kind,
            title: self.title.clone(),
            state: self.state,
            step: self.step.clone(),
            steps: self.steps,
            progress: self.progress,
            collection: self.collection,
            started: self.started,
            moved: self.moved,
            ended: self.ended,
            error: self.error.clone(),
            notes: self.notes.clone(),
            recovered: self.recovered.clone(),
            copies: self.copies.clone(),
            until: self.until,
        }
    }
}

/// Our records are JSON.
pub fn json<T: Serialize>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| {
        Error::new(
            ErrorKind::Internal,
            "a journal record cannot be written as JSON",
        )
        .caused_by(e)
    })
}

/// Reads one of our records.
pub fn from_json<T: serde::de::DeserializeOwned>(key: &MetaKey, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| {
        Error::new(
            ErrorKind::Corrupt,
            format!("journal record {key} cannot be read"),
        )
        .caused_by(e)
        .fix("use the Falconer version that wrote it")
    })
}
