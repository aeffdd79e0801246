//! What verdicts of garbage collection rest on: records as far as they matter there, and what snapshots refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::data;
use super::holds::World;
use super::references::References;
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, IndexId, SegmentId, SnapshotId, TaskId, Tso, UnixMs, UnixNs,
    VChannel,
};

/// Whether a snapshot's references are known. Fails closed: anything but `Loaded` holds its whole collection and all
/// owners that nobody knows (`spec/snapshot.md` §3.6, defects D3 and D12).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reference {
    /// Not read yet.
    #[default]
    NotLoaded,
    /// Read, strictly, as far as [`References::extent`] says.
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
    /// Parents.
    pub from: Vec<SegmentId>,
    /// Level zero: never indexed.
    pub l0: bool,
    /// Rows.
    pub rows: i64,
    /// Text and JSON indexes, as the record names them: older versions of the same are superseded.
    pub field_indexes: Vec<FieldIndexFacts>,
}

/// Which files of a field's own index are in use (`spec/layout.md` §7.2, §7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldIndexFacts {
    /// Of which kind.
    pub kind: FieldIndexKind,
    /// Field.
    pub field: FieldId,
    /// Build.
    pub build: BuildId,
    /// Version of the build.
    pub version: i64,
}

/// A kind of index that a segment's own record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FieldIndexKind {
    /// `text_log/`
    Text,
    /// JSON in this data format: 1 is `json_key_index_log/`, later ones are `json_stats/{format}/`.
    Json(i64),
}

/// SegmentState Dropped.
pub const DROPPED: i32 = 6;
/// SegmentLevel L0.
pub const L0: i32 = 1;

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

/// Everything that verdicts rest on, at one cut-off time: plain tables. [`indexed`](Self::indexed) makes a [`World`] of it, which answers.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The cut-off: fixed before anything is listed (law 5).
    pub now: UnixMs,
    /// Tolerances.
    pub tolerances: Tolerances,
    /// Segment records.
    pub segments: BTreeMap<SegmentId, SegmentFacts>,
    /// Segment index rows.
    pub builds: BTreeMap<BuildId, BuildFacts>,
    /// Index definitions that are not deleted.
    pub indexes: BTreeMap<CollectionId, BTreeSet<IndexId>>,
    /// Index definitions that are marked deleted.
    pub deleted_indexes: BTreeSet<(CollectionId, IndexId)>,
    /// Analyze tasks: the version that is in use.
    pub analyze: BTreeMap<TaskId, i64>,
    /// Snapshot records.
    pub snapshots: Vec<SnapshotFacts>,
    /// Channels.
    pub channels: BTreeMap<VChannel, ChannelFacts>,
    /// Collections that RootCoord knows, in any state, and those whose record cannot be read.
    pub collections: BTreeSet<CollectionId>,
    /// Collections that a live query node may serve.
    pub served: BTreeSet<CollectionId>,
    /// Segments that a stored query target names.
    pub targeted: BTreeSet<SegmentId>,
    /// Segments of which the record of another segment, in use, names a file.
    pub borrowed: BTreeMap<SegmentId, SegmentId>,
    /// Running work.
    pub work: Vec<Work>,
    /// Collections with a record that cannot be read.
    pub unreadable: BTreeMap<CollectionId, String>,
    /// Set when something that may concern any collection cannot be read.
    pub unreadable_any: Option<String>,
}

impl Facts {
    /// Ready to be asked.
    #[must_use]
    pub fn indexed(self) -> World {
        World::new(self)
    }
}
