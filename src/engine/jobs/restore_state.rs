//! What a restore journals: a few facts that decide everything else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::copy::Done;
use super::restore_map::{Given, WalStart};
use super::restore_pin::{HeldPin, Pinned};
use super::restore_since::Milvus;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, DbId, SnapshotId, UnixMs};
use crate::engine::plan::execute::IdRange;

/// Where the machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Look at everything once more; choose a pin and the channels' starts.
    #[default]
    Begin,
    /// Pin the snapshot.
    Pin,
    /// Take ids.
    Ids,
    /// Write the records that others watch.
    Record,
    /// Copy objects.
    Copy,
    /// List what was copied.
    Check,
    /// Write all records but the collection's own.
    Children,
    /// Write that one.
    Publish,
    /// Read everything back.
    Verify,
    /// Release the snapshot.
    Unpin,
    /// Undo: objects.
    UndoObjects,
    /// Undo: keys.
    UndoKeys,
    /// Undo: the pin.
    UndoPin,
    /// Undo: say so in the watchable records.
    UndoLabel,
}

/// What is journaled.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Snapshot.
    pub snapshot: SnapshotId,
    /// The bundle it lies in, by the URI of its metadata; `None`: it is one of the cluster's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its collection.
    pub of: CollectionId,
    /// Target database.
    pub db: DbId,
    /// Its name.
    pub db_name: String,
    /// Target collection's name.
    pub name: String,
    /// The fingerprint of the source when planned.
    pub fingerprint: String,
    /// Digest of all source objects with their sizes when planned.
    pub objects: String,
    /// The step to take.
    pub step: Step,
    /// The pin.
    pub pin: Option<HeldPin>,
    /// Channel starts, then everything else that decides the outcome.
    pub starts: BTreeMap<String, WalStart>,
    /// What told that no Milvus process had come, when it was planned, or when all was looked at again.
    #[serde(default)]
    pub milvus: Option<Milvus>,
    /// Ids taken.
    pub ids: Option<Range>,
    /// Begin.
    pub started: UnixMs,
    /// When it was published.
    pub ended: Option<UnixMs>,
    /// Files copied.
    pub done: Done,
    /// Segments whose files are all there, as recorded.
    pub copied: u32,
    /// When that was recorded.
    #[serde(default)]
    pub told: UnixMs,
    /// Tasks that are recorded as Completed.
    #[serde(default)]
    pub tasks: Done,
    /// Rounds of copying.
    pub round: u32,
    /// The collection's record is written.
    pub published: bool,
    /// What an undo could not take back, in words.
    #[serde(default)]
    pub left: Vec<String>,
}

/// Ids taken, as journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First.
    pub first: i64,
    /// How many.
    pub count: u32,
}

impl From<IdRange> for Range {
    fn from(range: IdRange) -> Self {
        Self {
            first: range.first,
            count: range.count,
        }
    }
}

impl State {
    /// The target collection, once ids are taken.
    #[must_use]
    pub fn collection(&self) -> Option<CollectionId> {
        self.ids.map(|r| CollectionId(r.first))
    }

    pub(super) fn given(&self) -> Result<Given> {
        let ids = self.ids.ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                "a restore step needs ids that were never taken",
            )
        })?;
        Ok(Given {
            db: self.db,
            db_name: self.db_name.clone(),
            name: self.name.clone(),
            first_id: ids.first,
            now: self.started,
            starts: self.starts.clone(),
        })
    }

    /// The snapshot that is read; of no meaning when it lies in a bundle.
    pub(super) fn source(&self) -> Pinned {
        Pinned(self.of, self.snapshot)
    }

    pub(super) fn to(mut self, step: Step) -> Self {
        self.step = step;
        self
    }
}
