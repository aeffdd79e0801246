//! The families of keys: title, value codec, prefix. One table.

use crate::engine::format::codec::Codec;
use crate::engine::ids::{KeyPrefix, MetaKey};

use super::{Key, LogKind, Roots};

/// Which root a family lives under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// `<root>/<metaSubPath>/`
    Meta,
    /// `<root>/<kvSubPath>/`
    Kv,
    /// `<root>/`
    Root,
}

/// Whether a family is one key or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Keys under a prefix, which is listed with its trailing slash.
    Tree,
    /// Exactly one key.
    Single,
}

macro_rules! families {
    ($($(#[$doc:meta])* $name:ident $title:literal $area:ident $shape:ident $path:literal $codec:expr;)*) => {
        /// A family of keys.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Family {
            $($(#[$doc])* #[doc = concat!("`", $path, "`")] $name,)*
        }

        impl Family {
            /// Every family, in the order of `spec/layout.md`.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            const fn row(self) -> (&'static str, Area, Shape, &'static str, Codec) {
                match self {
                    $(Self::$name => ($title, Area::$area, Shape::$shape, $path, $codec),)*
                }
            }
        }
    };
}

use Codec::{BigEndianNanos, Decimal, Empty, Json, Opaque, Proto, Text, ZstdProto};

families! {
    IdAllocator "Id allocator" Kv Single "gid/idTimestamp" BigEndianNanos;
    TsoAllocator "TSO allocator" Kv Single "gid/timestamp" BigEndianNanos;
    QueryIdAllocator "QueryCoord id allocator" Kv Single "querycoord-id-allocator/idTimestamp" BigEndianNanos;
    Config "Dynamic configuration" Root Tree "config" Text;
    Woodpecker "Woodpecker metadata" Root Tree "woodpecker" Opaque;
    SessionNextId "Next server id" Meta Single "session/id" Decimal;
    SessionVersion "Cluster version" Meta Single "session/version" Text;
    Session "Sessions" Meta Tree "session" Json;
    Database "Databases" Meta Tree "root-coord/database/db-info" Proto("milvus.proto.etcd.DatabaseInfo");
    Collection "Collections" Meta Tree "root-coord/database/collection-info" Proto("milvus.proto.etcd.CollectionInfo");
    LegacyCollection "Collections, 2.2 layout" Meta Tree "root-coord/collection" Proto("milvus.proto.etcd.CollectionInfo");
    Partition "Partitions" Meta Tree "root-coord/partitions" Proto("milvus.proto.etcd.PartitionInfo");
    Field "Fields" Meta Tree "root-coord/fields" Proto("milvus.proto.schema.FieldSchema");
    StructField "Struct array fields" Meta Tree "root-coord/struct-array-fields" Proto("milvus.proto.schema.StructArrayFieldSchema");
    Function "Functions" Meta Tree "root-coord/functions" Proto("milvus.proto.schema.FunctionSchema");
    Alias "Aliases" Meta Tree "root-coord/database/aliases" Proto("milvus.proto.etcd.AliasInfo");
    LegacyAlias "Aliases, 2.2 layout" Meta Tree "root-coord/aliases" Proto("milvus.proto.etcd.AliasInfo");
    OldestAlias "Aliases, 2.1 layout" Meta Tree "root-coord/collection-alias" Proto("milvus.proto.etcd.CollectionInfo");
    User "Users" Meta Tree "root-coord/credential/users" Json;
    UserRole "Roles" Meta Tree "root-coord/credential/roles" Json;
    RoleOfUser "Roles of users" Meta Tree "root-coord/credential/user-role-mapping" Empty;
    Grantee "Grantees" Meta Tree "root-coord/credential/grantee-privileges" Text;
    GranteePrivilege "Granted privileges" Meta Tree "root-coord/credential/grantee-id" Text;
    PrivilegeGroup "Privilege groups" Meta Tree "root-coord/privilege-group" Proto("milvus.proto.milvus.PrivilegeGroupInfo");
    RootFileResource "File resources" Meta Tree "root-coord/file_resource_info" Proto("milvus.proto.internal.FileResourceInfo");
    RootFileResourceVersion "File resource version" Meta Single "root-coord/file_resource_version" Decimal;
    /// The codec is that of the copied key: ask [`Key::codec`].
    TimestampedCopy "Timestamped copies" Meta Tree "snapshots" Opaque;
    Segment "Segments" Meta Tree "datacoord-meta/s" Proto("milvus.proto.data.SegmentInfo");
    Binlog "Insert logs" Meta Tree "datacoord-meta/binlog" Proto("milvus.proto.data.FieldBinlog");
    Statslog "Stats logs" Meta Tree "datacoord-meta/statslog" Proto("milvus.proto.data.FieldBinlog");
    Deltalog "Delta logs" Meta Tree "datacoord-meta/deltalog" Proto("milvus.proto.data.FieldBinlog");
    Bm25log "BM25 logs" Meta Tree "datacoord-meta/bm25log" Proto("milvus.proto.data.FieldBinlog");
    ChannelCheckpoint "Channel checkpoints" Meta Tree "datacoord-meta/channel-cp" Proto("milvus.proto.msg.MsgPosition");
    ChannelRemoval "Channel removal marks" Meta Tree "datacoord-meta/channel-removal" Text;
    ChannelWatch "Channel watches" Meta Tree "channelwatch" Proto("milvus.proto.data.ChannelWatchInfo");
    ImportJob "Import jobs" Meta Tree "datacoord-meta/import-job" Proto("milvus.proto.data.ImportJob");
    PreImportTask "Pre-import tasks" Meta Tree "datacoord-meta/preimport-task" Proto("milvus.proto.data.PreImportTask");
    ImportTask "Import tasks" Meta Tree "datacoord-meta/import-task" Proto("milvus.proto.data.ImportTaskV2");
    LegacyImportTask "Bulk-insert tasks, 2.3" Meta Tree "importtask" Proto("milvus.proto.data.ImportTaskInfo");
    CompactionTask "Compaction tasks" Meta Tree "datacoord-meta/compaction-task" Proto("milvus.proto.data.CompactionTask");
    CompactionTarget "Compaction targets" Meta Tree "datacoord-meta/compaction-target" Proto("milvus.proto.data.CompactionTarget");
    AnalyzeTask "Analyze tasks" Meta Tree "datacoord-meta/analyze-task" Proto("milvus.proto.index.AnalyzeTask");
    StatsTask "Stats tasks" Meta Tree "datacoord-meta/stats-task" Proto("milvus.proto.index.StatsTask");
    PartitionStats "Partition statistics" Meta Tree "datacoord-meta/partition-stats" Proto("milvus.proto.data.PartitionStatsInfo");
    PartitionStatsVersion "Current partition statistics" Meta Tree "datacoord-meta/current-partition-stats-version" Decimal;
    FileResource "File resources, 2.6" Meta Tree "datacoord-meta/file_resource" Proto("milvus.proto.data.FileResourceInfo");
    FileResourceInfo "File resources, 3.0" Meta Tree "datacoord-meta/file_resource_info" Proto("milvus.proto.internal.FileResourceInfo");
    FileResourceVersion "File resource version, 3.0" Meta Single "datacoord-meta/file_resource_version" Decimal;
    Snapshot "Snapshots" Meta Tree "datacoord-meta/snapshot" Proto("milvus.proto.data.SnapshotInfo");
    CopySegmentJob "Restore jobs" Meta Tree "datacoord-meta/copy-segment-job" Proto("milvus.proto.data.CopySegmentJob");
    CopySegmentTask "Restore tasks" Meta Tree "datacoord-meta/copy-segment-task" Proto("milvus.proto.data.CopySegmentTask");
    RefreshJob "External refresh jobs" Meta Tree "datacoord-meta/external-collection-refresh-job" Proto("milvus.proto.data.ExternalCollectionRefreshJob");
    RefreshTask "External refresh tasks" Meta Tree "datacoord-meta/external-collection-refresh-task" Proto("milvus.proto.data.ExternalCollectionRefreshTask");
    ExportSnapshotJob "Export jobs" Meta Tree "datacoord-meta/export-snapshot-job" Proto("milvus.proto.data.ExportSnapshotJob");
    FieldIndex "Indexes" Meta Tree "field-index" Proto("milvus.proto.index.FieldIndex");
    SegmentIndex "Segment indexes" Meta Tree "segment-index" Proto("milvus.proto.index.SegmentIndex");
    CollectionLoad "Loaded collections" Meta Tree "querycoord-collection-loadinfo" Proto("milvus.proto.query.CollectionLoadInfo");
    PartitionLoad "Loaded partitions" Meta Tree "querycoord-partition-loadinfo" Proto("milvus.proto.query.PartitionLoadInfo");
    Replica "Replicas" Meta Tree "querycoord-replica" Proto("milvus.proto.query.Replica");
    ResourceGroup "Resource groups" Meta Tree "queryCoord-ResourceGroup" Proto("milvus.proto.query.ResourceGroup");
    CollectionTarget "Query targets" Meta Tree "queryCoord-Collection-Target" ZstdProto("milvus.proto.query.CollectionTarget");
    LegacyReplica "Replicas, 2.1 layout" Meta Tree "queryCoord-ReplicaMeta" Proto("milvus.proto.milvus.ReplicaInfo");
    StreamingVersion "Streaming version" Meta Single "streamingcoord-meta/version" Proto("milvus.proto.streaming.StreamingVersion");
    ControlChannel "Control channel" Meta Single "streamingcoord-meta/cchannel" Proto("milvus.proto.streaming.CChannelMeta");
    PChannel "Physical channels" Meta Tree "streamingcoord-meta/pchannel" Proto("milvus.proto.streaming.PChannelMeta");
    BroadcastTask "Broadcast tasks" Meta Tree "streamingcoord-meta/broadcast-task" Proto("milvus.proto.streaming.BroadcastTask");
    ReplicateConfiguration "Replication" Meta Single "streamingcoord-meta/replicate-configuration" Proto("milvus.proto.streaming.ReplicateConfigurationMeta");
    ReplicatingPChannel "Replicating channels" Meta Tree "streamingcoord-meta/replicating-pchannel" Proto("milvus.proto.streaming.ReplicatePChannelMeta");
    WalCheckpoint "WAL checkpoints" Meta Tree "streamingnode-meta/wal" Proto("milvus.proto.streaming.WALCheckpoint");
    WalVChannel "WAL vchannels" Meta Tree "streamingnode-meta/wal" Proto("milvus.proto.streaming.VChannelMeta");
    WalSchema "WAL schemas" Meta Tree "streamingnode-meta/wal" Proto("milvus.proto.streaming.CollectionSchemaOfVChannel");
    WalSegment "WAL segment assignments" Meta Tree "streamingnode-meta/wal" Proto("milvus.proto.streaming.SegmentAssignmentMeta");
    SalvageCheckpoint "Salvage checkpoints" Meta Tree "streamingnode-meta/wal" Proto("milvus.proto.common.ReplicateCheckpoint");
    /// Several prefixes; this is the first of them.
    Leftover "Left behind by old versions" Meta Tree "flushed-segment" Opaque;
}

impl Family {
    /// What a person calls it.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().0
    }

    /// Which root it lives under.
    #[must_use]
    pub fn area(self) -> Area {
        self.row().1
    }

    /// One key or many.
    #[must_use]
    pub fn shape(self) -> Shape {
        self.row().2
    }

    /// The path below the area, without a trailing slash.
    #[must_use]
    pub fn path(self) -> &'static str {
        self.row().3
    }

    /// How values are encoded. For copies use [`Key::codec`].
    #[must_use]
    pub fn codec(self) -> Codec {
        self.row().4
    }

    /// Whether a deletion may be a tombstone value instead of a missing key (`spec/layout.md` §2.6).
    #[must_use]
    pub fn has_tombstones(self) -> bool {
        self == Self::TimestampedCopy || self.path().starts_with("root-coord/")
    }

    /// What to list to see the whole family, trailing slash included. For a [`Shape::Single`] family it is the folder
    /// the trailing-slash variant of the key would be in; read [`single`](Self::single) as well.
    #[must_use]
    pub fn prefix(self, roots: &Roots) -> KeyPrefix {
        KeyPrefix::new(&format!(
            "{}{}",
            area_prefix(self.area(), roots),
            self.path()
        ))
    }

    /// The prefix below which `ids` are the leading parts, e.g. one collection's segments.
    #[must_use]
    pub fn under(self, roots: &Roots, ids: &[i64]) -> KeyPrefix {
        use std::fmt::Write as _;
        let mut text = format!("{}{}/", area_prefix(self.area(), roots), self.path());
        for id in ids {
            // Writing to a String cannot fail.
            let _ = write!(text, "{id}/");
        }
        KeyPrefix::new(&text)
    }

    /// The family's only key, when it is [`Shape::Single`].
    #[must_use]
    pub fn single(self, roots: &Roots) -> Option<MetaKey> {
        (self.shape() == Shape::Single).then(|| {
            MetaKey::from(format!(
                "{}{}",
                area_prefix(self.area(), roots),
                self.path()
            ))
        })
    }
}

/// `<root>/<metaSubPath>/` and its siblings; an empty part is left out, as Go's path join does.
pub(super) fn area_prefix(area: Area, roots: &Roots) -> String {
    let sub = match area {
        Area::Meta => roots.meta.as_str(),
        Area::Kv => roots.kv.as_str(),
        Area::Root => "",
    };
    let mut out = String::with_capacity(roots.root.len() + sub.len() + 2);
    for part in [roots.root.as_str(), sub] {
        if !part.is_empty() {
            out.push_str(part);
            out.push('/');
        }
    }
    out
}

impl Key {
    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::IdAllocator => Family::IdAllocator,
            Self::TsoAllocator => Family::TsoAllocator,
            Self::QueryIdAllocator => Family::QueryIdAllocator,
            Self::Config(_) => Family::Config,
            Self::Woodpecker(..) => Family::Woodpecker,
            Self::SessionNextId => Family::SessionNextId,
            Self::SessionVersion => Family::SessionVersion,
            Self::Session(..) => Family::Session,
            Self::Database(_) => Family::Database,
            Self::Collection(..) => Family::Collection,
            Self::LegacyCollection(_) => Family::LegacyCollection,
            Self::Partition(..) => Family::Partition,
            Self::Field(..) => Family::Field,
            Self::StructField(..) => Family::StructField,
            Self::Function(..) => Family::Function,
            Self::Alias(..) => Family::Alias,
            Self::LegacyAlias(_) => Family::LegacyAlias,
            Self::OldestAlias(_) => Family::OldestAlias,
            Self::User(_) => Family::User,
            Self::UserRole(_) => Family::UserRole,
            Self::RoleOfUser(..) => Family::RoleOfUser,
            Self::Grantee { .. } => Family::Grantee,
            Self::GranteePrivilege(..) => Family::GranteePrivilege,
            Self::PrivilegeGroup(_) => Family::PrivilegeGroup,
            Self::RootFileResource(_) => Family::RootFileResource,
            Self::RootFileResourceVersion => Family::RootFileResourceVersion,
            Self::TimestampedCopy(..) => Family::TimestampedCopy,
            Self::Segment(..) => Family::Segment,
            Self::Log(LogKind::Insert, ..) => Family::Binlog,
            Self::Log(LogKind::Stats, ..) => Family::Statslog,
            Self::Log(LogKind::Delta, ..) => Family::Deltalog,
            Self::Log(LogKind::Bm25, ..) => Family::Bm25log,
            Self::ChannelCheckpoint(_) => Family::ChannelCheckpoint,
            Self::ChannelRemoval(_) => Family::ChannelRemoval,
            Self::ChannelWatch(..) => Family::ChannelWatch,
            Self::ImportJob(_) => Family::ImportJob,
            Self::PreImportTask(_) => Family::PreImportTask,
            Self::ImportTask(_) => Family::ImportTask,
            Self::LegacyImportTask(_) => Family::LegacyImportTask,
            Self::CompactionTask { .. } => Family::CompactionTask,
            Self::CompactionTarget(_) => Family::CompactionTarget,
            Self::AnalyzeTask(_) => Family::AnalyzeTask,
            Self::StatsTask(_) => Family::StatsTask,
            Self::PartitionStats(..) => Family::PartitionStats,
            Self::PartitionStatsVersion(..) => Family::PartitionStatsVersion,
            Self::FileResource(_) => Family::FileResource,
            Self::FileResourceInfo(_) => Family::FileResourceInfo,
            Self::FileResourceVersion => Family::FileResourceVersion,
            Self::Snapshot(..) => Family::Snapshot,
            Self::CopySegmentJob(_) => Family::CopySegmentJob,
            Self::CopySegmentTask(_) => Family::CopySegmentTask,
            Self::RefreshJob(_) => Family::RefreshJob,
            Self::RefreshTask(_) => Family::RefreshTask,
            Self::ExportSnapshotJob(_) => Family::ExportSnapshotJob,
            Self::FieldIndex(..) => Family::FieldIndex,
            Self::SegmentIndex(..) => Family::SegmentIndex,
            Self::CollectionLoad(_) => Family::CollectionLoad,
            Self::PartitionLoad(..) => Family::PartitionLoad,
            Self::Replica(..) => Family::Replica,
            Self::ResourceGroup(_) => Family::ResourceGroup,
            Self::CollectionTarget(_) => Family::CollectionTarget,
            Self::LegacyReplica(_) => Family::LegacyReplica,
            Self::StreamingVersion(_) => Family::StreamingVersion,
            Self::ControlChannel(_) => Family::ControlChannel,
            Self::PChannel(_) => Family::PChannel,
            Self::BroadcastTask(_) => Family::BroadcastTask,
            Self::ReplicateConfiguration => Family::ReplicateConfiguration,
            Self::ReplicatingPChannel(_) => Family::ReplicatingPChannel,
            Self::WalCheckpoint(_) => Family::WalCheckpoint,
            Self::WalVChannel(..) => Family::WalVChannel,
            Self::WalSchema(..) => Family::WalSchema,
            Self::WalSegment(..) => Family::WalSegment,
            Self::SalvageCheckpoint(..) => Family::SalvageCheckpoint,
            Self::Leftover(..) => Family::Leftover,
        }
    }

    /// How the value is encoded; for a timestamped copy, that of the copied key.
    #[must_use]
    pub fn codec(&self) -> Codec {
        match self {
            Self::TimestampedCopy(of, _) => of.codec(),
            key => key.family().codec(),
        }
    }
}
