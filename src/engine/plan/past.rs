//! Beside a job's record: what others ask of it, how it goes between two entries, and what stays of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::JobRecord;
use crate::engine::ids::{CollectionId, JobId, UnixMs};
use crate::engine::model::jobs::{Copies, JobInfo, JobKind, JobState, Progress};

/// How long the record of an ended job stays, with its pre-images; its [`Past`] is kept longer.
pub const RETENTION: Duration = Duration::from_hours(72);

/// What may be asked of a job that another process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Stop, and take back what it did.
    Cancel,
    /// Hold its copies to so many bytes a second.
    Throttle {
        /// `None` = no limit.
        rate: Option<u64>,
    },
    /// Hold its deletes and moves to so many objects a second.
    Pace {
        /// `None` = no limit.
        objects: Option<u64>,
    },
    /// Run so many copies at once.
    Parallel {
        /// 1 to 256.
        copies: u32,
    },
    /// Try again what failed, of a job that is stuck.
    Retry,
}

/// An order as it is journaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// Who asks.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub order: Order,
}

/// How a running job goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// When.
    pub at: UnixMs,
    /// Counters.
    pub progress: Progress,
    /// Copies.
    pub copies: Copies,
}

/// A job of long ago in a few facts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// Id.
    pub id: JobId,
    /// Kind.
    pub kind: JobKind,
    /// One line.
    pub title: String,
    /// Who confirmed it.
    pub actor: String,
    /// How it ended.
    pub state: JobState,
    /// What it came to: rows, files, bytes.
    pub progress: Progress,
    /// Collection it made or worked on.
    pub collection: Option<CollectionId>,
    /// Begin.
    pub started: UnixMs,
    /// End.
    pub ended: UnixMs,
    /// The first true error.
    pub error: Option<String>,
    /// It was taken up after a crash.
    pub recovered: Option<String>,
}

impl Past {
    /// What stays of an ended job.
    #[must_use]
    pub fn of(record: &JobRecord) -> Self {
        Self {
            id: record.id,
            kind: record.kind,
            title: record.title.clone(),
            actor: record.actor.clone(),
            state: record.state,
            progress: record.progress,
            collection: record.collection,
            started: record.started,
            ended: record.ended.unwrap_or(record.moved),
            error: record.error.clone(),
            recovered: record.recovered.clone(),
        }
    }

    /// As a screen sees it.
    #[must_use]
    pub fn info(&self) -> JobInfo {
        JobInfo {
            id: self.id,
            kind: self.kind,
            title: self.title.clone(),
            state: self.state,
            step: String::new(),
            steps: (0, 0),
            progress: self.progress,
            collection: self.collection,
            started: self.started,
            moved: self.ended,
            ended: Some(self.ended),
            error: self.error.clone(),
            notes: Vec::new(),
            recovered: self.recovered.clone(),
            copies: Copies::default(),
            until: None,
        }
    }
}
