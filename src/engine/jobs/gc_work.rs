//! Who is at work on what, and what may be loaded: read by the scan of garbage collection.

use super::gc_scan::{Reading, parse};
use super::restore_source::Reads;
use super::runner::records;
use super::snapshot_create::works_on;
use crate::engine::error::Result;
use crate::engine::format::keys::{Family, Key, Role};
use crate::engine::format::pb;
use crate::engine::ids::{CollectionId, JobId, SegmentId};
use crate::engine::model::facts::Work;
use crate::engine::plan::Intent;
use crate::engine::plan::journal::{JobRecord, Keys};

/// Whether a query node may have something loaded: stored targets, and load records while a query node is registered.
pub(super) async fn loaded(reads: &Reads<'_>, out: &mut Reading) -> Result<()> {
    let nodes = reads.family(Family::Session).await?.kvs.iter().any(|kv| {
        matches!(
            parse(reads, kv),
            Some(Key::Session(Role::QueryNode | Role::StreamingNode, _))
        )
    });
    if nodes {
        for kv in reads.family(Family::CollectionLoad).await?.kvs {
            match parse(reads, &kv) {
                Some(Key::CollectionLoad(c)) => {
                    out.facts.served.insert(c);
                }
                _ => out.bad(None, format!("load record {} cannot be read", kv.key)),
            }
        }
    }
    for kv in reads.family(Family::CollectionTarget).await?.kvs {
        let Some(Key::CollectionTarget(c)) = parse(reads, &kv) else {
            continue;
        };
        let key = Key::CollectionTarget(c);
        if let Some(target) = out.read::<pb::query::CollectionTarget>(&key, &kv, Some(c)) {
            for channel in target.channel_targets {
                let segments = channel.partition_targets.iter().flat_map(|p| &p.segments);
                out.facts.targeted.extend(segments.map(|s| SegmentId(s.id)));
            }
        }
    }
    Ok(())
}

/// More segments than any compaction is given ids for.
const MOST_GIVEN: i64 = 100_000;

/// Work of coordinators that was not finished when they stopped: they will take it up again.
pub(super) async fn foreign(reads: &Reads<'_>, out: &mut Reading) -> Result<()> {
    for kv in reads.family(Family::CopySegmentJob).await?.kvs {
        let Some(Key::CopySegmentJob(id)) = parse(reads, &kv) else {
            out.bad(None, format!("copy job key {} cannot be read", kv.key));
            continue;
        };
        let key = Key::CopySegmentJob(id);
        if let Some(job) = out.read::<pb::data::CopySegmentJob>(&key, &kv, None)
            && matches!(job.state, 1 | 2)
        {
            out.facts.work.push(Work {
                by: format!("restore job {id}"),
                collection: Some(CollectionId(job.collection_id)),
                segments: job
                    .id_mappings
                    .iter()
                    .flat_map(|m| [m.source_segment_id, m.target_segment_id])
                    .map(SegmentId)
                    .collect(),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::ImportJob).await?.kvs {
        let Some(Key::ImportJob(id)) = parse(reads, &kv) else {
            out.bad(None, format!("import job key {} cannot be read", kv.key));
            continue;
        };
        let key = Key::ImportJob(id);
        if let Some(job) = out.read::<pb::data::ImportJob>(&key, &kv, None)
            && !matches!(job.state, 4 | 5)
        {
            out.facts.work.push(Work {
                by: format!("import job {id}"),
                collection: Some(CollectionId(job.collection_id)),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::ExportSnapshotJob).await?.kvs {
        let Some(Key::ExportSnapshotJob(id)) = parse(reads, &kv) else {
            out.bad(None, format!("export job key {} cannot be read", kv.key));
            continue;
        };
        let key = Key::ExportSnapshotJob(id);
        if let Some(job) = out.read::<pb::data::ExportSnapshotJob>(&key, &kv, None)
            && !matches!(job.state, 3 | 4)
        {
            out.facts.work.push(Work {
                by: format!("export job {id}"),
                collection: Some(CollectionId(job.collection_id)),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::CompactionTask).await?.kvs {
        let Some(key) = parse(reads, &kv) else {
            out.bad(None, format!("compaction key {} cannot be read", kv.key));
            continue;
        };
        if let Some(task) = out.read::<pb::data::CompactionTask>(&key, &kv, None)
            && matches!(task.state, 1 | 2 | 6 | 7 | 9 | 10)
        {
            let ids = task.input_segments.iter().chain(&task.result_segments);
            let ids = ids.chain(&task.tmp_segments).copied();
            // A worker may have written a result under one of these ids, of which no record tells until the coordinator is back.
            let given = task.pre_allocated_segment_i_ds.as_ref();
            let given = given.map_or(0..0, |range| range.begin..range.end);
            let known = (1..=MOST_GIVEN).contains(&(given.end.saturating_sub(given.start)));
            out.facts.work.push(Work {
                by: format!("compaction {}", task.plan_id),
                // Without such ids its results may be anywhere in the collection.
                collection: (!known).then_some(CollectionId(task.collection_id)),
                segments: ids.chain(given.filter(|_| known)).map(SegmentId).collect(),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::StatsTask).await?.kvs {
        let Some(key) = parse(reads, &kv) else {
            out.bad(None, format!("stats task key {} cannot be read", kv.key));
            continue;
        };
        if let Some(task) = out.read::<pb::index::StatsTask>(&key, &kv, None)
            && matches!(task.state, 1 | 2 | 5)
        {
            out.facts.work.push(Work {
                by: format!("stats task {}", task.task_id),
                segments: [task.segment_id, task.target_segment_id]
                    .into_iter()
                    .filter(|id| *id != 0)
                    .map(SegmentId)
                    .collect(),
                ..Work::default()
            });
        }
    }
    Ok(())
}

/// Our own jobs that have not ended, in this process or another.
pub(super) async fn ours(reads: &Reads<'_>, out: &mut Reading, me: Option<JobId>) -> Result<()> {
    let keys = Keys::new(reads.roots);
    let prefix = keys.jobs();
    let (kvs, _) = records(reads.meta, &keys).await?;
    for kv in kvs {
        let rest = &kv.key.0[prefix.bytes().len()..];
        // What lies below a record that is gone.
        if rest.contains(&b'/') {
            continue;
        }
        match serde_json::from_slice::<JobRecord>(&kv.value) {
            Ok(job) => {
                if job.state.ended()
                    || Some(job.id) == me
                    || matches!(job.intent, Intent::Gc { .. } | Intent::Orphans { .. })
                {
                    continue;
                }
                out.facts.work.push(Work {
                    by: format!("job {} ({})", job.id, job.title),
                    collection: job.collection,
                    snapshot: match job.intent {
                        Intent::Restore { snapshot, .. }
                        | Intent::Export { snapshot, .. }
                        | Intent::DropSnapshot { snapshot } => Some(snapshot),
                        Intent::CreateSnapshot { .. } => works_on(&job.machine),
                        _ => None,
                    },
                    ..Work::default()
                });
            }
            Err(e) => out.bad(None, format!("job record {} cannot be read: {e}", kv.key)),
        }
    }
    Ok(())
}
