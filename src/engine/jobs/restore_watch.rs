//! A restore as Milvus's own tools see it: CopySegmentJob and CopySegmentTask records.
//!
//! They are kept true while the job runs. Should a coordinator wake up in the middle, it finds tasks without a node and takes them for
//! its own; our next write is then refused by the fence, and what we made is taken back once the coordinator is gone.

use prost::Message;

use super::restore_map::{Blueprint, SEGMENTS_PER_TASK, Source};
use crate::engine::format::keys::Key;
use crate::engine::format::pb;
use crate::engine::ids::{JobId, Tso, UnixMs};

/// The records that let other tools watch (`spec/snapshot.md` §1.2): ours, in Milvus's own shape.
#[derive(Clone, Copy, Debug)]
pub struct Watchable<'a> {
    /// The job.
    pub job: JobId,
    /// The picture.
    pub blueprint: &'a Blueprint,
    /// The snapshot.
    pub source: &'a Source,
    /// Pin of the snapshot.
    pub pin: i64,
    /// Begin.
    pub started: UnixMs,
}

impl Watchable<'_> {
    fn mappings(&self) -> Vec<pb::data::CopySegmentIdMapping> {
        self.blueprint
            .segments
            .iter()
            .map(|s| pb::data::CopySegmentIdMapping {
                source_segment_id: s.source.0,
                target_segment_id: s.target.segment.0,
                partition_id: s.target.partition.0,
            })
            .collect()
    }

    /// The job's record. `ended` in Unix ms.
    #[must_use]
    pub fn job(
        &self,
        state: pb::data::CopySegmentJobState,
        copied: i64,
        ended: Option<UnixMs>,
        reason: &str,
    ) -> (Key, Vec<u8>) {
        let option = |key: &str, value: &str| pb::common::KeyValuePair {
            key: key.into(),
            value: value.into(),
        };
        let mappings = self.mappings();
        let record = pb::data::CopySegmentJob {
            job_id: self.job.0,
            collection_id: self.blueprint.collection.0,
            state: state as i32,
            reason: reason.to_owned(),
            total_segments: i64::try_from(mappings.len()).unwrap_or(i64::MAX),
            id_mappings: mappings,
            // TSO, three hours after the end: Milvus's retention (`spec/snapshot.md` §5.4).
            cleanup_ts: ended.map_or(0, |at| Tso::from_ms(UnixMs(at.0 + 10_800_000)).0),
            start_ts: ns(self.started),
            complete_ts: ended.map_or(0, ns),
            options: vec![
                option("copy_index", "true"),
                option("source_type", "snapshot"),
            ],
            copied_segments: copied,
            total_rows: self.blueprint.segments.iter().map(|s| s.rows).sum(),
            snapshot_name: self.source.record.name.clone(),
            source_collection_id: self.source.record.collection_id,
            pin_id: self.pin,
            ..Default::default()
        };
        (Key::CopySegmentJob(self.job), record.encode_to_vec())
    }

    /// Segments of task `at`, as indexes into the picture's.
    #[must_use]
    pub fn segments_of(at: usize) -> std::ops::Range<usize> {
        at * SEGMENTS_PER_TASK..(at + 1) * SEGMENTS_PER_TASK
    }

    /// A task's record. No Milvus node runs it: its node stays −1, which also lets Milvus collect it (defect D57).
    #[must_use]
    pub fn task(
        &self,
        at: usize,
        state: pb::data::CopySegmentTaskState,
        ended: Option<UnixMs>,
        reason: &str,
    ) -> Option<(Key, Vec<u8>)> {
        let id = *self.blueprint.tasks.get(at)?;
        let range = Self::segments_of(at);
        let record = pb::data::CopySegmentTask {
            task_id: id.0,
            job_id: self.job.0,
            collection_id: self.blueprint.collection.0,
            node_id: -1,
            task_slot: 1,
            state: state as i32,
            reason: reason.to_owned(),
            id_mappings: self
                .mappings()
                .into_iter()
                .skip(range.start)
                .take(range.len())
                .collect(),
            created_ts: ns(self.started),
            complete_ts: ended.map_or(0, ns),
            ..Default::default()
        };
        Some((Key::CopySegmentTask(id), record.encode_to_vec()))
    }
}

fn ns(at: UnixMs) -> u64 {
    u64::try_from(at.to_ns().0).unwrap_or(0)
}
