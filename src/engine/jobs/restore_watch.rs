//! A restore as Milvus's own tools see it: CopySegmentJob and CopySegmentTask records.
//!
//! They are kept true while the job runs. Should a coordinator wake up in the middle, it finds tasks without a node and takes them for
//! its own; our next write is then refused by the fence, and what we made is taken back once the coordinator is gone.

use prost::Message;

use super::cx::JobCx;
use super::restore::reads;
use super::restore_map::{Blueprint, SEGMENTS_PER_TASK, Source};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::pb;
use crate::engine::format::wire::Patch;
use crate::engine::ids::{JobId, Tso, UnixMs};
use crate::engine::meta::check::ETCD_LIMITS;
use crate::engine::meta::{Cond, Write};
use crate::engine::plan::execute::Change;

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
    fn mappings(&self, of: std::ops::Range<usize>) -> Vec<pb::data::CopySegmentIdMapping> {
        let segments = &self.blueprint.segments;
        let to = of.end.min(segments.len());
        segments
            .get(of.start..to)
            .unwrap_or_default()
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
        let mappings = self.mappings(0..self.blueprint.segments.len());
        let record = pb::data::CopySegmentJob {
            job_id: self.job.0,
            collection_id: self.blueprint.collection.0,
            state: state as i32,
            reason: reason.to_owned(),
            total_segments: i64::try_from(mappings.len()).unwrap_or(i64::MAX),
            id_mappings: mappings,
            cleanup_ts: ended.map_or(0, retention),
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
            external: self.source.outside.is_some(),
            // Without credentials: `external_spec` stays empty (defect D63).
            snapshot_s3_location: self.source.outside.clone().unwrap_or_default(),
            snapshot_fingerprint: match &self.source.outside {
                Some(_) => self.source.fingerprint.clone(),
                None => String::new(),
            },
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
        let record = pb::data::CopySegmentTask {
            task_id: id.0,
            job_id: self.job.0,
            collection_id: self.blueprint.collection.0,
            node_id: -1,
            task_slot: 1,
            state: state as i32,
            reason: reason.to_owned(),
            id_mappings: self.mappings(Self::segments_of(at)),
            created_ts: ns(self.started),
            complete_ts: ended.map_or(0, ns),
            ..Default::default()
        };
        Some((Key::CopySegmentTask(id), record.encode_to_vec()))
    }
}

/// Whether the CopySegmentJob record of a restore of so many segments fits one value of etcd. It names each of them, and Milvus knows
/// no other form: found out here, not when it is written.
pub fn record_fits(segments: usize) -> Result<String> {
    // The rest of the record, its key in journal and audit, and the reason when it fails.
    const REST: usize = 64 << 10;
    // Three ids of nine bytes, each with its tag; their length and their tag.
    const MAPPING: usize = 32;
    let most = (ETCD_LIMITS.bytes - REST) / MAPPING;
    if segments <= most {
        return Ok(format!("{segments} segments of at most {most}"));
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "the snapshot has {segments} segments; the record of a restore holds at most {most}"
        ),
    )
    .fix("let Milvus compact the collection into fewer segments, and make a new snapshot"))
}

/// TSO, three hours after the end: Milvus's retention (`spec/snapshot.md` §5.4).
fn retention(ended: UnixMs) -> u64 {
    Tso::from_ms(UnixMs(ended.0 + 10_800_000)).0
}

/// Marks the job's record Completed once the collection is published. In a change of its own, because the record names every
/// segment and would leave no room beside the collection's. Taken from the record as it stands, so that nothing of the snapshot is needed;
/// twice is the same as once.
pub(super) async fn complete(cx: &JobCx, ended: UnixMs) -> Result<()> {
    let key = Key::CopySegmentJob(JobId(cx.job.0));
    let Some(kv) = reads(cx).record(&key).await? else {
        return Ok(());
    };
    let completed = pb::data::CopySegmentJobState::CopySegmentJobCompleted as u64;
    let mut patch = Patch::parse(&kv.value)?;
    if patch.integer(5) == Some(completed) {
        return Ok(());
    }
    patch.set_integer(5, completed);
    patch.clear(6);
    patch.set_integer(9, retention(ended));
    patch.set_integer(11, ns(ended));
    let all = patch.integer(13).unwrap_or(0);
    patch.set_integer(14, all);
    cx.commit_own(Change {
        name: format!("completed-{}", kv.mod_rev),
        conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
        writes: vec![Write::put(kv.key, patch.finish())],
        ..Change::default()
    })
    .await?;
    Ok(())
}

fn ns(at: UnixMs) -> u64 {
    u64::try_from(at.to_ns().0).unwrap_or(0)
}
