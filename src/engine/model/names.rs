//! Milvus's names for stored enum numbers, without the prefixes that protobuf forces on them.

use crate::engine::format::pb;

use super::data::Enum;

macro_rules! named {
    ($($(#[$doc:meta])* $fn:ident $path:path, [$($prefix:literal),*];)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $fn(number: i32) -> Enum {
            use $path as E;
            let name = E::try_from(number).map_or("", |e| e.as_str_name());
            $(let name = name.strip_prefix($prefix).unwrap_or(name);)*
            Enum { number, name }
        }
    )*};
}

named! {
    /// DatabaseState.
    database_state pb::etcd::DatabaseState, ["Database"];
    /// CollectionState.
    collection_state pb::etcd::CollectionState, ["Collection"];
    /// PartitionState.
    partition_state pb::etcd::PartitionState, ["Partition"];
    /// AliasState.
    alias_state pb::etcd::AliasState, ["Alias"];
    /// ConsistencyLevel.
    consistency pb::common::ConsistencyLevel, [];
    /// DataType.
    data_type pb::schema::DataType, [];
    /// FunctionType.
    function_type pb::schema::FunctionType, [];
    /// SegmentState.
    segment_state pb::common::SegmentState, ["SegmentState"];
    /// SegmentLevel.
    segment_level pb::data::SegmentLevel, [];
    /// IndexState.
    index_state pb::common::IndexState, ["IndexState"];
    /// SnapshotState.
    snapshot_state pb::data::SnapshotState, ["SnapshotState"];
    /// ChannelWatchState.
    watch_state pb::data::ChannelWatchState, [];
    /// VChannelState of the streaming node.
    vchannel_state pb::streaming::VChannelState, ["VCHANNEL_STATE_"];
    /// PChannelMetaState.
    pchannel_state pb::streaming::PChannelMetaState, ["PCHANNEL_META_STATE_"];
    /// LoadStatus.
    load_status pb::query::LoadStatus, [];
    /// LoadType.
    load_type pb::query::LoadType, [];
    /// CompactionTaskState.
    compaction_state pb::data::CompactionTaskState, [];
    /// CompactionType.
    compaction_type pb::data::CompactionType, [];
    /// JobState of stats, analyze and refresh tasks.
    job_state pb::index::JobState, ["JobState"];
    /// StatsSubJob.
    stats_job pb::index::StatsSubJob, [];
    /// ImportJobState.
    import_job_state pb::internal::ImportJobState, [];
    /// ImportTaskStateV2.
    import_task_state pb::data::ImportTaskStateV2, [];
    /// ImportState of the 2.3 bulk insert.
    import_state pb::common::ImportState, ["Import"];
    /// CopySegmentJobState.
    copy_job_state pb::data::CopySegmentJobState, ["CopySegmentJob"];
    /// CopySegmentTaskState.
    copy_task_state pb::data::CopySegmentTaskState, ["CopySegmentTask"];
    /// ExportSnapshotJobState.
    export_state pb::data::ExportSnapshotJobState, ["ExportSnapshotJob"];
    /// BroadcastTaskState.
    broadcast_state pb::streaming::BroadcastTaskState, ["BROADCAST_TASK_STATE_"];
}

impl Enum {
    /// The name, or the number when this build has no name for it.
    #[must_use]
    pub fn text(&self) -> std::borrow::Cow<'static, str> {
        if self.name.is_empty() {
            self.number.to_string().into()
        } else {
            self.name.into()
        }
    }
}
