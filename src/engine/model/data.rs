//! Plain data: what a cluster is made of, once its keys have been read and joined. No I/O, no clock.
//!
//! Every struct keeps the revision of its newest key (`rev`), so that a screen can tint what has just changed.
//! Names and numbers are Milvus's (`spec/layout.md`); a state that this build does not know stays visible by number.

use std::sync::Arc;

use super::ddl::TRUNCATING;
use super::totals::state;

use crate::engine::ids::{
    BuildId, CollectionId, DbId, FieldId, IndexId, JobId, MetaKey, MetaRev, NodeId, PartitionId,
    PartitionScope, PinId, ReplicaId, SegmentId, SnapshotId, TaskId, Tso, UnixMs, UnixNs, UnixSecs,
    VChannel,
};

/// A name and a number: an enum value as stored. Unknown numbers keep an empty name (`spec/layout.md` §0.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Enum {
    /// The stored number.
    pub number: i32,
    /// Milvus's name without its type prefix, e.g. `Flushed`; empty when unknown.
    pub name: &'static str,
}

/// `root-coord/database/db-info/{dbID}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    /// Id; 1 is `default`.
    pub id: DbId,
    /// Name.
    pub name: Arc<str>,
    /// DatabaseState (Created is 1 here).
    pub state: Enum,
    /// Creation.
    pub created: Tso,
    /// Properties, secrets masked.
    pub properties: Vec<(String, String)>,
    /// Newest revision.
    pub rev: MetaRev,
}

/// A field of a schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Field id; user fields start at 100.
    pub id: FieldId,
    /// Name.
    pub name: String,
    /// DataType.
    pub data_type: Enum,
    /// Element type of arrays.
    pub element_type: Enum,
    /// Primary key.
    pub primary_key: bool,
    /// Ids given by Milvus.
    pub auto_id: bool,
    /// Partition key.
    pub partition_key: bool,
    /// Clustering key.
    pub clustering_key: bool,
    /// The `$meta` field.
    pub dynamic: bool,
    /// May be null.
    pub nullable: bool,
    /// `dim`, `max_length`, …
    pub type_params: Vec<(String, String)>,
    /// Member of this struct field, if any.
    pub parent: Option<FieldId>,
    /// Description.
    pub description: String,
}

/// A collection with its children joined (`spec/layout.md` §2.4).
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    /// Id.
    pub id: CollectionId,
    /// Database (legacy 0 is shown as 1).
    pub db: DbId,
    /// Name.
    pub name: Arc<str>,
    /// Description.
    pub description: String,
    /// CollectionState.
    pub state: Enum,
    /// Creation.
    pub created: Tso,
    /// Last schema change, if recorded.
    pub updated: Tso,
    /// Shards.
    pub shards: i32,
    /// ConsistencyLevel.
    pub consistency: Enum,
    /// Properties, secrets masked.
    pub properties: Vec<(String, String)>,
    /// Fields by id, system fields included, struct members after their struct.
    pub fields: Vec<Field>,
    /// Functions: name and FunctionType.
    pub functions: Vec<(String, Enum)>,
    /// Dynamic fields allowed.
    pub dynamic: bool,
    /// Virtual channels in order.
    pub vchannels: Vec<VChannel>,
    /// Physical channels in the same order.
    pub pchannels: Vec<String>,
    /// Schema version.
    pub schema_version: i32,
    /// Aliases.
    pub aliases: Vec<String>,
    /// What is damaged or missing (no fields, no partitions), in words; empty when whole.
    pub damage: Vec<String>,
    /// Newest revision of the collection and its children.
    pub rev: MetaRev,
}

/// `root-coord/partitions/{c}/{p}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    /// Id.
    pub id: PartitionId,
    /// Collection.
    pub collection: CollectionId,
    /// Name.
    pub name: Arc<str>,
    /// PartitionState.
    pub state: Enum,
    /// Creation.
    pub created: Tso,
    /// Newest revision.
    pub rev: MetaRev,
}

/// An alias of a collection, in any of its three layouts (`spec/layout.md` §2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Alias {
    /// Database (legacy 0 is shown as 1).
    pub db: DbId,
    /// Name.
    pub name: Arc<str>,
    /// What it stands for.
    pub collection: CollectionId,
    /// AliasState.
    pub state: Enum,
    /// Creation.
    pub created: Tso,
    /// Newest revision.
    pub rev: MetaRev,
}

/// Logs of one kind of a segment, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSum {
    /// Files.
    pub files: u32,
    /// Entries: rows for the field with most entries of insert logs, deletes for delta logs.
    pub entries: u64,
    /// `log_size` summed, bytes as Milvus recorded them (not always the object's size: lab README).
    pub bytes: u64,
}

/// A segment with its four log prefixes joined.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Id.
    pub id: SegmentId,
    /// Collection.
    pub collection: CollectionId,
    /// Partition; −1 on an L0 = all partitions.
    pub partition: PartitionId,
    /// Virtual channel.
    pub channel: Arc<str>,
    /// SegmentState.
    pub state: Enum,
    /// SegmentLevel.
    pub level: Enum,
    /// `num_of_rows`.
    pub rows: i64,
    /// 0 = V1, 2 = V2, 3 = V3.
    pub storage_version: i64,
    /// Insert logs.
    pub insert: LogSum,
    /// Delta logs.
    pub delta: LogSum,
    /// Primary-key statistics.
    pub stats: LogSum,
    /// BM25 statistics.
    pub bm25: LogSum,
    /// Start position's timestamp.
    pub start: Tso,
    /// Last consumed position's timestamp.
    pub dml: Tso,
    /// When it was dropped; `None` when it was not.
    pub dropped_at: Option<UnixNs>,
    /// Set on parents of a compaction.
    pub compacted: bool,
    /// Parents.
    pub compaction_from: Vec<SegmentId>,
    /// An import or a restore is still filling it.
    pub importing: bool,
    /// Hidden from queries.
    pub invisible: bool,
    /// Allocated by a streaming node (2.6); meaningful only before it is flushed.
    pub by_streaming: bool,
    /// Sorted by primary key.
    pub sorted: bool,
    /// Sorted by namespace.
    pub namespace_sorted: bool,
    /// Made by a compaction.
    pub by_compaction: bool,
    /// Stands for no data (`is_fake`).
    pub fake: bool,
    /// Commit timestamp (imports, 3.0); unset otherwise.
    pub commit_ts: Tso,
    /// Manifest (V3, or V2 with manifest).
    pub manifest: Option<Arc<str>>,
    /// Newest revision of the segment's keys.
    pub rev: MetaRev,
}

/// `streamingcoord-meta/pchannel/{pchannel}`: who has the log of a physical channel.
#[derive(Clone, Debug, PartialEq)]
pub struct PChannel {
    /// Server id; 0 for a Falconer, which never registers a session.
    pub node: Option<NodeId>,
    /// Address of the node, or name of the Falconer.
    pub address: String,
    /// How often it has changed hands.
    pub term: i64,
    /// `PChannelMetaState`.
    pub state: Enum,
    /// Revision.
    pub rev: MetaRev,
}

/// A virtual channel, joined from checkpoint, removal mark, collection and legacy watch key.
#[derive(Clone, Debug, PartialEq)]
pub struct Channel {
    /// Name.
    pub name: VChannel,
    /// Collection, parsed from the name.
    pub collection: Option<CollectionId>,
    /// Checkpoint; `None` without a key, [`Tso::DROPPED`] for the sentinel.
    pub checkpoint: Option<Tso>,
    /// Value of the removal mark: `non-removed`, `removed`, or what stands there.
    pub mark: Option<String>,
    /// Legacy watch: node and state.
    pub watch: Option<(NodeId, Enum)>,
    /// The record of its physical channel (streaming).
    pub owner: Option<Arc<PChannel>>,
    /// Recovery state of the streaming node: `NORMAL`, `DROPPED`; `None` without a key.
    pub recovery: Option<Enum>,
    /// A collection lists it among its virtual channels.
    pub listed: bool,
    /// Newest revision.
    pub rev: MetaRev,
}

/// `field-index/{c}/{indexID}`.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexDef {
    /// Id.
    pub id: IndexId,
    /// Collection.
    pub collection: CollectionId,
    /// Field.
    pub field: FieldId,
    /// Name.
    pub name: Arc<str>,
    /// `index_type` of the parameters.
    pub index_type: String,
    /// `metric_type` of the parameters.
    pub metric: String,
    /// All index parameters.
    pub params: Vec<(String, String)>,
    /// Deleted, waiting for collection.
    pub deleted: bool,
    /// Creation.
    pub created: Tso,
    /// Newest revision.
    pub rev: MetaRev,
}

/// `segment-index/{c}/{p}/{s}/{buildID}`.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentIndex {
    /// Build.
    pub build: BuildId,
    /// Index definition.
    pub index: IndexId,
    /// Collection.
    pub collection: CollectionId,
    /// Partition.
    pub partition: PartitionId,
    /// Segment.
    pub segment: SegmentId,
    /// IndexState.
    pub state: Enum,
    /// Rows.
    pub rows: i64,
    /// Files (none for small segments and FLAT).
    pub files: u32,
    /// Bytes.
    pub bytes: u64,
    /// Deleted, waiting for collection.
    pub deleted: bool,
    /// Why it failed.
    pub fail_reason: String,
    /// Creation.
    pub created: UnixSecs,
    /// Newest revision.
    pub rev: MetaRev,
}

/// A pin of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Id.
    pub id: PinId,
    /// `None` = never expires.
    pub expires: Option<UnixMs>,
}

impl Pin {
    /// Whether its time is not over (`spec/snapshot.md` §3.8): no end, or one that has not passed.
    #[must_use]
    pub fn is_active(&self, now: UnixMs) -> bool {
        self.expires.is_none_or(|at| at >= now)
    }

    /// What is left of it in words.
    #[must_use]
    pub fn left(&self, now: UnixMs) -> String {
        match self.expires {
            None => "never expires".into(),
            Some(at) if at >= now => format!("{} left", super::text::age(at.since(now))),
            Some(at) => format!("expired {} ago", super::text::age(now.since(at))),
        }
    }
}

/// `datacoord-meta/snapshot/{c}/{id}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Id.
    pub id: SnapshotId,
    /// Source collection (may be gone).
    pub collection: CollectionId,
    /// Name, unique per collection.
    pub name: Arc<str>,
    /// Description.
    pub description: String,
    /// SnapshotState.
    pub state: Enum,
    /// Lowest boundary over the channels.
    pub create_ts: Tso,
    /// When PENDING began.
    pub pending_since: Option<UnixMs>,
    /// End of compaction protection.
    pub protected_until: Option<UnixSecs>,
    /// Partitions.
    pub partitions: Vec<PartitionId>,
    /// Boundary per channel.
    pub boundary: Vec<(VChannel, Tso)>,
    /// Pins.
    pub pins: Vec<Pin>,
    /// Key of the metadata JSON.
    pub location: String,
    /// Newest revision.
    pub rev: MetaRev,
}

/// Any task of the coordinators, and the foreign restore, import and export jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Task or job id.
    pub id: TaskId,
    /// `copy-segment-job`, `compaction`, `stats`, `analyze`, `import-job`, …
    pub kind: &'static str,
    /// Its own state enum.
    pub state: Enum,
    /// Sub-kind: compaction type, stats job type.
    pub detail: String,
    /// Job it belongs to.
    pub job: Option<JobId>,
    /// Collection.
    pub collection: CollectionId,
    /// Node.
    pub node: Option<NodeId>,
    /// Done and all, in the task's own unit (segments).
    pub progress: Option<(i64, i64)>,
    /// Why it failed.
    pub reason: String,
    /// Begin.
    pub started: Option<UnixMs>,
    /// End.
    pub ended: Option<UnixMs>,
    /// The key.
    pub key: MetaKey,
    /// Newest revision.
    pub rev: MetaRev,
}

impl Task {
    /// Its own state says that it is not over, one way or the other.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        const OVER: [&str; 5] = ["completed", "finished", "failed", "timeout", "cleaned"];
        let state = self.state.name.to_ascii_lowercase();
        !OVER.iter().any(|word| state.contains(word))
    }
}

/// `session/…`.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Last key element, e.g. `datanode-7`.
    pub name: Arc<str>,
    /// Role without id.
    pub role: String,
    /// `ServerID`.
    pub server: NodeId,
    /// `Address`.
    pub address: String,
    /// `HostName`.
    pub host: String,
    /// `Version`.
    pub version: String,
    /// Going down.
    pub stopping: bool,
    /// The key's lease; 0 = a session without a lease, which nobody renews.
    pub lease: i64,
    /// Is one of the five coordinator roles (`spec/layout.md` §1.4): blocks every write.
    pub coordinator: bool,
    /// Newest revision.
    pub rev: MetaRev,
}

/// Load state of a collection (`querycoord-collection-loadinfo/{c}`).
#[derive(Clone, Debug, PartialEq)]
pub struct LoadInfo {
    /// Collection.
    pub collection: CollectionId,
    /// LoadStatus.
    pub status: Enum,
    /// LoadType.
    pub load_type: Enum,
    /// Replicas wanted.
    pub replicas: i32,
    /// Loaded partitions with their LoadStatus.
    pub partitions: Vec<(PartitionId, Enum)>,
    /// Newest revision.
    pub rev: MetaRev,
}

/// `querycoord-replica/{c}/{id}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Id.
    pub id: ReplicaId,
    /// Collection.
    pub collection: CollectionId,
    /// Nodes.
    pub nodes: Vec<NodeId>,
    /// Resource group.
    pub resource_group: String,
    /// Newest revision.
    pub rev: MetaRev,
}

/// `<root>/config/{name}`: an override of the configuration file (`spec/layout.md` §10.3).
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigItem {
    /// The whole key.
    pub key: MetaKey,
    /// Name as written.
    pub name: Arc<str>,
    /// Value, secrets masked.
    pub value: String,
    /// Newest revision.
    pub rev: MetaRev,
}

/// A value that could not be read, visible with the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Undecodable {
    /// The key.
    pub key: MetaKey,
    /// Why.
    pub reason: String,
    /// Bytes of the value.
    pub len: u32,
    /// Newest revision.
    pub rev: MetaRev,
}

impl Collection {
    /// Between the first acknowledgement of a truncate and its end (`spec/lifecycle.md` §1 rule 7).
    #[must_use]
    pub fn is_truncating(&self) -> bool {
        let mark = |(k, v): &(String, String)| k == TRUNCATING && v == "1";
        self.properties.iter().any(mark)
    }
}

impl Segment {
    /// The partitions that it is about: only deletes (L0) may be about all of them. `None` where the record says so of any other
    /// segment, or names a partition below zero (`spec/lifecycle.md` §12 rule 8): damaged.
    #[must_use]
    pub fn scope(&self) -> Option<PartitionScope> {
        PartitionScope::of(self.partition, self.is_l0())
    }

    /// An L0 that is written and visible: what a channel's view calls level zero (`spec/lifecycle.md` §5 rule 1).
    #[must_use]
    pub fn is_written_l0(&self) -> bool {
        let written = matches!(self.state.number, state::FLUSHED | state::FLUSHING);
        let logs = self.insert.files + self.delta.files > 0;
        let placed = self.first_position() != Tso::UNSET || logs;
        let shown = !self.invisible && !self.importing && !self.fake;
        self.is_l0() && self.scope().is_some() && written && placed && shown
    }

    /// Where it begins, or else where it was read to; unset without either.
    #[must_use]
    pub fn first_position(&self) -> Tso {
        if self.start == Tso::UNSET {
            self.dml
        } else {
            self.start
        }
    }

    /// Deletes only (`spec/lifecycle.md` §I.1).
    #[must_use]
    pub const fn is_l0(&self) -> bool {
        self.level.number == 1
    }

    /// Bytes of all logs, as recorded.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.insert
            .bytes
            .saturating_add(self.delta.bytes)
            .saturating_add(self.stats.bytes)
            .saturating_add(self.bm25.bytes)
    }

    /// Number of log files.
    #[must_use]
    pub const fn files(&self) -> u32 {
        self.insert
            .files
            .saturating_add(self.delta.files)
            .saturating_add(self.stats.files)
            .saturating_add(self.bm25.files)
    }
}
