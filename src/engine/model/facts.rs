//! What verdicts of garbage collection rest on: records as far as they matter there, and what snapshots refer to.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::data;
use crate::engine::ids::{
    BuildId, CollectionId, IndexId, ObjectKey, SegmentId, SnapshotId, Tso, UnixMs, UnixNs, VChannel,
};

/// Everything that a snapshot refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Segments.
    pub segments: BTreeSet<SegmentId>,
    /// Index, text and JSON builds.
    pub builds: BTreeSet<BuildId>,
    /// Files, one by one: deltas of descendants belong to other segments (`spec/snapshot.md` §4.3).
    pub files: BTreeSet<ObjectKey>,
    /// Folders of manifest segments, without trailing slash: everything below.
    pub folders: BTreeSet<ObjectKey>,
}

/// Whether a snapshot's references are known. Fails closed: anything but `Loaded` holds its whole collection and all
/// owners that nobody knows (`spec/snapshot.md` §3.6, defects D3 and D12).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reference {
    /// Not read yet.
    #[default]
    NotLoaded,
    /// Read, strictly and whole.
    Loaded(Arc<References>),
    /// Cannot be read, because of this.
    Failed(String),
}

/// Milvus's SnapshotState numbers; 0 is a committed record from before states.
pub mod snapshot_state {
    /// Being created.
    pub const PENDING: i32 = 1;
    /// Valid.
    pub const COMMITTED: i32 = 2;
    /// Being dropped.
    pub const DELETING: i32 = 3;
}

/// A snapshot record with what it refers to.
#[derive(Clone, Debug)]
pub struct SnapshotFacts {
    /// Id.
    pub id: SnapshotId,
    /// Collection.
    pub collection: CollectionId,
    /// Name.
    pub name: Arc<str>,
    /// SnapshotState.
    pub state: i32,
    /// When PENDING began.
    pub pending_since: Option<UnixMs>,
    /// Pins.
    pub pins: Vec<data::Pin>,
    /// What it refers to.
    pub reference: Reference,
}

impl SnapshotFacts {
    /// From the read model; `reference` is loaded apart.
    #[must_use]
    pub fn of(snapshot: &data::Snapshot, reference: Reference) -> Self {
        Self {
            id: snapshot.id,
            collection: snapshot.collection,
            name: snapshot.name.clone(),
            state: snapshot.state.number,
            pending_since: snapshot.pending_since,
            pins: snapshot.pins.clone(),
            reference,
        }
    }

    pub(super) fn label(&self) -> String {
        format!("snapshot {} ({})", self.name, self.id)
    }
}

/// A segment record, as far as verdicts look.
#[derive(Clone, Debug)]
pub struct SegmentFacts {
    /// Id.
    pub id: SegmentId,
    /// Collection.
    pub collection: CollectionId,
    /// Channel.
    pub channel: VChannel,
    /// SegmentState's name or number, for the eye.
    pub state: String,
    /// The state is Dropped.
    pub dropped: bool,
    /// When.
    pub dropped_at: Option<UnixNs>,
    /// Last consumed position.
    pub dml: Tso,
    /// Set on parents of a compaction.
    pub compacted: bool,
    /// Parents.
    pub from: Vec<SegmentId>,
    /// Level zero: never indexed.
    pub l0: bool,
    /// Rows.
    pub rows: i64,
}

/// SegmentState Dropped.
pub const DROPPED: i32 = 6;
/// SegmentLevel L0.
pub const L0: i32 = 1;

impl From<&data::Segment> for SegmentFacts {
    fn from(segment: &data::Segment) -> Self {
        Self {
            id: segment.id,
            collection: segment.collection,
            channel: VChannel(segment.channel.to_string()),
            state: if segment.state.name.is_empty() {
                segment.state.number.to_string()
            } else {
                segment.state.name.to_owned()
            },
            dropped: segment.state.number == DROPPED,
            dropped_at: segment.dropped_at,
            dml: segment.dml,
            compacted: segment.compacted,
            from: segment.compaction_from.clone(),
            l0: segment.level.number == L0,
            rows: segment.rows,
        }
    }
}

/// A segment index row.
#[derive(Clone, Debug)]
pub struct BuildFacts {
    /// Build.
    pub build: BuildId,
    /// Definition.
    pub index: IndexId,
    /// Collection.
    pub collection: CollectionId,
    /// Segment.
    pub segment: SegmentId,
    /// IndexState Finished.
    pub finished: bool,
    /// Marked deleted.
    pub deleted: bool,
}

impl From<&data::SegmentIndex> for BuildFacts {
    fn from(row: &data::SegmentIndex) -> Self {
        Self {
            build: row.build,
            index: row.index,
            collection: row.collection,
            segment: row.segment,
            finished: row.state.number == 3,
            deleted: row.deleted,
        }
    }
}

/// A channel's checkpoint and removal mark.
#[derive(Clone, Debug, Default)]
pub struct ChannelFacts {
    /// Checkpoint; `None` without a key.
    pub checkpoint: Option<Tso>,
    /// Removal mark; `None` without a key.
    pub mark: Option<String>,
}

/// A running job or task, ours or a coordinator's.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// In words: `restore job 17`.
    pub by: String,
    /// The collection it fills or works on as a whole.
    pub collection: Option<CollectionId>,
    /// Segments it reads or writes.
    pub segments: BTreeSet<SegmentId>,
    /// Builds it reads or writes.
    pub builds: BTreeSet<BuildId>,
    /// Snapshot it creates or reads.
    pub snapshot: Option<SnapshotId>,
}

/// Tolerances, with Milvus's defaults (`spec/layout.md` §3.15, `spec/snapshot.md` §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tolerances {
    /// `dataCoord.gc.dropTolerance`, ms.
    pub drop_ms: i64,
    /// `dataCoord.gc.missingTolerance`, ms.
    pub missing_ms: i64,
    /// `dataCoord.snapshot.pendingTimeout`, ms.
    pub pending_ms: i64,
}

impl Default for Tolerances {
    fn default() -> Self {
        Self {
            drop_ms: 10_800_000,
            missing_ms: 86_400_000,
            pending_ms: 3_600_000,
        }
    }
}
