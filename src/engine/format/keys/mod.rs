//! Every key Milvus keeps in its metadata store, as one type, in both directions (`spec/layout.md` §1 to §5, §10.3).
//!
//! `Key::parse` accepts a key only when it is written exactly as Milvus writes it (no padded numbers, no empty parts),
//! so that `parse` then `to_bytes` always gives the same bytes. Everything else is [`ParsedKey::Unknown`]: shown, never
//! guessed at. Ids cost no allocation; names and channels cost one.

mod compose;
mod family;
mod parse;

use crate::engine::ids::{
    BuildId, CollectionId, DbId, FieldId, FunctionId, IndexId, JobId, NodeId, PartitionId,
    ReplicaId, SegmentId, SnapshotId, TaskId, Tso, VChannel,
};
pub use crate::engine::profile::Roots;
pub use compose::normalise_config;
pub use family::{Area, Family, Shape};
pub(super) use parse::number;

/// What `Key::parse` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedKey {
    /// A key of a known family.
    Known(Key),
    /// Outside the roots, or of no family listed here.
    Unknown,
}

impl ParsedKey {
    /// The key, when it is known.
    #[must_use]
    pub fn known(self) -> Option<Key> {
        match self {
            Self::Known(key) => Some(key),
            Self::Unknown => None,
        }
    }
}

/// Who registers a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `rootcoord`
    RootCoord,
    /// `datacoord`
    DataCoord,
    /// `indexcoord`
    IndexCoord,
    /// `querycoord`
    QueryCoord,
    /// `mixcoord`
    MixCoord,
    /// `proxy`
    Proxy,
    /// `querynode`
    QueryNode,
    /// `datanode`
    DataNode,
    /// `indexnode`
    IndexNode,
    /// `streamingnode`
    StreamingNode,
    /// `cdc`
    Cdc,
    /// A role this version does not know.
    Other(String),
}

impl Role {
    /// The role as written in the key.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::RootCoord => "rootcoord",
            Self::DataCoord => "datacoord",
            Self::IndexCoord => "indexcoord",
            Self::QueryCoord => "querycoord",
            Self::MixCoord => "mixcoord",
            Self::Proxy => "proxy",
            Self::QueryNode => "querynode",
            Self::DataNode => "datanode",
            Self::IndexNode => "indexnode",
            Self::StreamingNode => "streamingnode",
            Self::Cdc => "cdc",
            Self::Other(name) => name,
        }
    }

    /// The role of a name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match name {
            "rootcoord" => Self::RootCoord,
            "datacoord" => Self::DataCoord,
            "indexcoord" => Self::IndexCoord,
            "querycoord" => Self::QueryCoord,
            "mixcoord" => Self::MixCoord,
            "proxy" => Self::Proxy,
            "querynode" => Self::QueryNode,
            "datanode" => Self::DataNode,
            "indexnode" => Self::IndexNode,
            "streamingnode" => Self::StreamingNode,
            "cdc" => Self::Cdc,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether a live session of this role keeps us from writing (`spec/layout.md` §1.4).
    #[must_use]
    pub fn is_coordinator(&self) -> bool {
        matches!(
            self,
            Self::RootCoord
                | Self::DataCoord
                | Self::IndexCoord
                | Self::QueryCoord
                | Self::MixCoord
        )
    }
}

/// Where Woodpecker keeps its metadata; not ours to touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WoodpeckerRoot {
    /// `<root>/woodpecker/`, 3.0.
    UnderRoot,
    /// `<root>/wp/`, 2.6.
    Wp,
    /// A top-level `woodpecker/` of an older cluster.
    TopLevel,
}

/// Prefixes that old versions wrote and no version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leftover {
    /// `flushed-segment/`
    FlushedSegment,
    /// `segmentRefer/`
    SegmentRefer,
    /// `querycoord-handoff/`
    Handoff,
    /// `queryCoord-segmentMeta/`
    QuerySegmentMeta,
    /// `queryCoord-sealedSegmentChangeInfo/`
    SealedSegmentChange,
    /// `queryCoord-collectionMeta/`
    QueryCollectionMeta,
    /// `queryCoord-partitionMeta/`
    QueryPartitionMeta,
    /// `datacoord-meta/global-segment-expire/`
    GlobalSegmentExpire,
}

/// One of the four log prefixes of a segment, in the metadata store and in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogKind {
    /// Rows: `datacoord-meta/binlog`, `insert_log`.
    Insert,
    /// Primary-key statistics: `datacoord-meta/statslog`, `stats_log`.
    Stats,
    /// Deletes: `datacoord-meta/deltalog`, `delta_log`.
    Delta,
    /// BM25 statistics: `datacoord-meta/bm25log`, `bm25_stats`.
    Bm25,
}

/// A key, root excluded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    // allocators
    /// `gid/idTimestamp`: the cluster's id allocator.
    IdAllocator,
    /// `gid/timestamp`: the TSO allocator.
    TsoAllocator,
    /// `querycoord-id-allocator/idTimestamp`
    QueryIdAllocator,
    // outside meta
    /// `<root>/config/{name}`, any spelling.
    Config(String),
    /// Woodpecker's own metadata.
    Woodpecker(WoodpeckerRoot, String),
    // sessions
    /// `session/id`: the next server id.
    SessionNextId,
    /// `session/version`: the cluster's version, 2.6.8+.
    SessionVersion,
    /// `session/{role}` or `session/{role}-{server}`.
    Session(Role, Option<NodeId>),
    // root coord
    /// `root-coord/database/db-info/{db}`
    Database(DbId),
    /// `root-coord/database/collection-info/{db}/{collection}`
    Collection(DbId, CollectionId),
    /// `root-coord/collection/{collection}`: up to 2.2, read forever.
    LegacyCollection(CollectionId),
    /// `root-coord/partitions/{collection}/{partition}`
    Partition(CollectionId, PartitionId),
    /// `root-coord/fields/{collection}/{field}`
    Field(CollectionId, FieldId),
    /// `root-coord/struct-array-fields/{collection}/{field}`
    StructField(CollectionId, FieldId),
    /// `root-coord/functions/{collection}/{function}`
    Function(CollectionId, FunctionId),
    /// `root-coord/database/aliases/{db}/{alias}`
    Alias(DbId, String),
    /// `root-coord/aliases/{alias}`: 2.2.
    LegacyAlias(String),
    /// `root-coord/collection-alias/{alias}`: up to 2.1; the value is a `CollectionInfo`.
    OldestAlias(String),
    /// `root-coord/credential/users/{user}`
    User(String),
    /// `root-coord/credential/roles/{role}`
    UserRole(String),
    /// `root-coord/credential/user-role-mapping/{user}/{role}`
    RoleOfUser(String, String),
    /// `root-coord/credential/grantee-privileges/{role}/{object type}/{object}`
    Grantee {
        /// Who is granted.
        role: String,
        /// `Collection`, `Global`, `User` …
        object_type: String,
        /// `db.object`, or `object` alone in old records of the default database.
        object: String,
    },
    /// `root-coord/credential/grantee-id/{grantee}/{privilege}`
    GranteePrivilege(String, String),
    /// `root-coord/privilege-group/{name}`
    PrivilegeGroup(String),
    /// `root-coord/file_resource_info/{id}`
    RootFileResource(i64),
    /// `root-coord/file_resource_version`
    RootFileResourceVersion,
    /// `snapshots/{root-coord key}_ts{ts}`: a timestamped copy, up to 2.6.14. Nothing to do with collection snapshots.
    TimestampedCopy(Box<Key>, Tso),
    // data coord
    /// `datacoord-meta/s/{collection}/{partition}/{segment}`
    Segment(CollectionId, PartitionId, SegmentId),
    /// `datacoord-meta/{binlog|statslog|deltalog|bm25log}/{collection}/{partition}/{segment}/{field or group}`
    Log(LogKind, CollectionId, PartitionId, SegmentId, FieldId),
    /// `datacoord-meta/channel-cp/{vchannel}`
    ChannelCheckpoint(VChannel),
    /// `datacoord-meta/channel-removal/{vchannel}`
    ChannelRemoval(VChannel),
    /// `channelwatch/{node}/{vchannel}`: up to 2.5; node `i64::MIN` means unassigned.
    ChannelWatch(NodeId, VChannel),
    /// `datacoord-meta/import-job/{job}`
    ImportJob(JobId),
    /// `datacoord-meta/preimport-task/{task}`
    PreImportTask(TaskId),
    /// `datacoord-meta/import-task/{task}`
    ImportTask(TaskId),
    /// `importtask/{task}`: bulk insert of 2.2 and 2.3.
    LegacyImportTask(TaskId),
    /// `datacoord-meta/compaction-task/{type name}/{trigger}/{plan}`
    CompactionTask {
        /// The compaction type's name, or its decimal number when Milvus had no name for it.
        type_name: String,
        /// The trigger that made the plan.
        trigger: i64,
        /// The plan.
        plan: TaskId,
    },
    /// `datacoord-meta/compaction-target/{id}`: master only.
    CompactionTarget(i64),
    /// `datacoord-meta/analyze-task/{task}`
    AnalyzeTask(TaskId),
    /// `datacoord-meta/stats-task/{task}`
    StatsTask(TaskId),
    /// `datacoord-meta/partition-stats/{collection}/{partition}/{vchannel}/{version}`
    PartitionStats(CollectionId, PartitionId, VChannel, i64),
    /// `datacoord-meta/current-partition-stats-version/{collection}/{partition}/{vchannel}`
    PartitionStatsVersion(CollectionId, PartitionId, VChannel),
    /// `datacoord-meta/file_resource/{id}`: 2.6.
    FileResource(i64),
    /// `datacoord-meta/file_resource_info/{id}`: 3.0.
    FileResourceInfo(i64),
    /// `datacoord-meta/file_resource_version`: 3.0.
    FileResourceVersion,
    /// `datacoord-meta/snapshot/{collection}/{snapshot}`
    Snapshot(CollectionId, SnapshotId),
    /// `datacoord-meta/copy-segment-job/{job}`
    CopySegmentJob(JobId),
    /// `datacoord-meta/copy-segment-task/{task}`
    CopySegmentTask(TaskId),
    /// `datacoord-meta/external-collection-refresh-job/{job}`
    RefreshJob(JobId),
    /// `datacoord-meta/external-collection-refresh-task/{task}`
    RefreshTask(TaskId),
    /// `datacoord-meta/export-snapshot-job/{job}`
    ExportSnapshotJob(JobId),
    /// `field-index/{collection}/{index}`
    FieldIndex(CollectionId, IndexId),
    /// `segment-index/{collection}/{partition}/{segment}/{build}`
    SegmentIndex(CollectionId, PartitionId, SegmentId, BuildId),
    // query coord
    /// `querycoord-collection-loadinfo/{collection}`
    CollectionLoad(CollectionId),
    /// `querycoord-partition-loadinfo/{collection}/{partition}`
    PartitionLoad(CollectionId, PartitionId),
    /// `querycoord-replica/{collection}/{replica}`
    Replica(CollectionId, ReplicaId),
    /// `queryCoord-ResourceGroup/{name}`
    ResourceGroup(String),
    /// `queryCoord-Collection-Target/{collection}`
    CollectionTarget(CollectionId),
    /// `queryCoord-ReplicaMeta/{rest}`: up to 2.1, still read.
    LegacyReplica(String),
    // streaming coord
    /// `streamingcoord-meta/version`; `true` for the form with a trailing slash that 2.6.13 to 2.6.15 wrote.
    StreamingVersion(bool),
    /// `streamingcoord-meta/cchannel`; `true` for the form with a trailing slash.
    ControlChannel(bool),
    /// `streamingcoord-meta/pchannel/{pchannel}`
    PChannel(String),
    /// `streamingcoord-meta/broadcast-task/{broadcast id}`
    BroadcastTask(u64),
    /// `streamingcoord-meta/replicate-configuration`
    ReplicateConfiguration,
    /// `streamingcoord-meta/replicating-pchannel/{target cluster}-{source pchannel}`; not split, both may hold `-`.
    ReplicatingPChannel(String),
    // streaming node
    /// `streamingnode-meta/wal/{pchannel}/consume-checkpoint`
    WalCheckpoint(String),
    /// `streamingnode-meta/wal/{pchannel}/vchannel/{vchannel}`
    WalVChannel(String, VChannel),
    /// `streamingnode-meta/wal/{pchannel}/vchannel/{vchannel}/schema/{time tick}`
    WalSchema(String, VChannel, Tso),
    /// `streamingnode-meta/wal/{pchannel}/segment-assign/{segment}`
    WalSegment(String, SegmentId),
    /// `streamingnode-meta/wal/{pchannel}/salvage-checkpoint/{source cluster}`
    SalvageCheckpoint(String, String),
    // left behind
    /// A key under a prefix that no version reads any more.
    Leftover(Leftover, String),
}
