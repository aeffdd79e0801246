//! What is kept of ended jobs, and for how long: the record with its pre-images for [`RETENTION`], a line of history for good, the
//! CopySegmentJob that Milvus's tools watched until its `cleanup_ts`, the ExportSnapshotJob for as long as Milvus keeps its own.

use prost::Message;

use crate::engine::error::Result;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb;
use crate::engine::ids::{JobId, MetaKey, Tso, UnixMs};
use crate::engine::jobs::board::Board;
use crate::engine::jobs::drive::delete_under;
use crate::engine::meta::{Cond, RangeOpts, Span, Write};
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::execute::{Change, Executor, Who};
use crate::engine::plan::journal::{JobRecord, Past, RETENTION, json};

/// Ended jobs whose record is kept at most, of those that others cannot watch any more.
const KEPT: usize = 100;
/// Lines of history.
const HISTORY: usize = 1_000;
/// Audit entries that are kept.
const AUDITS: usize = 10_000;
/// What others watch is kept three hours (`dataCoord.copySegmentTaskRetention`, `dataCoord.snapshot.exportJobRetention`): before that
/// there is nothing to look for.
const WATCHED_MS: u64 = 10_800_000;

fn age(record: &JobRecord, now: UnixMs) -> u64 {
    now.since(record.ended.unwrap_or(record.moved))
}

/// Whether a record is over its time, so that it is worth taking the root for.
pub(super) fn is_due(board: &Board, now: UnixMs) -> bool {
    let ended = board.ended();
    let mut ended = ended.into_iter().filter_map(|job| board.get(job));
    ended.any(|record| u128::from(age(&record, now)) >= RETENTION.as_millis())
}

/// Tidies our own keys, and the records in the Milvus root that ended jobs of ours left there. Needs ownership of the root.
pub(super) async fn tidy(executor: &Executor, board: &Board) -> Result<()> {
    let keys = executor.keys();
    let now = executor.clock().now();
    let ended = board.ended();
    let many = ended.len().saturating_sub(KEPT);
    for (at, job) in ended.into_iter().enumerate() {
        let Some(record) = board.get(job) else {
            continue;
        };
        let age = age(&record, now);
        // A record whose CopySegmentJob or ExportSnapshotJob cannot go yet stays with it, and is looked at again after the next job.
        if age < WATCHED_MS || retire(executor, &record, now).await.is_err() {
            continue;
        }
        if at >= many && u128::from(age) < RETENTION.as_millis() {
            continue;
        }
        delete_under(executor, &Span::prefix(&keys.under_job(job))).await?;
        let past = Past::of(&record);
        let line = Write::put(keys.past(job), json(&past)?);
        executor.note(&[line, Write::Delete(keys.job(job))]).await?;
        board.learn_past(past);
        board.forget(job);
    }
    let past = board.past();
    for job in past.iter().take(past.len().saturating_sub(HISTORY)) {
        executor.note(&[Write::Delete(keys.past(*job))]).await?;
        board.forget_past(*job);
    }
    audits(executor).await
}

/// Removes what others watched of an ended job, once its time has passed, as a coordinator would.
async fn retire(executor: &Executor, record: &JobRecord, now: UnixMs) -> Result<()> {
    let gone = match record.kind {
        JobKind::Restore => copies(executor, record, now).await?,
        JobKind::Export => export(executor, record).await?,
        _ => Vec::new(),
    };
    let Some(Cond::At(_, rev)) = gone.last().map(|(_, cond)| cond.clone()) else {
        return Ok(());
    };
    let (keys, conds): (Vec<MetaKey>, Vec<Cond>) = gone.into_iter().unzip();
    let who = Who {
        job: record.id,
        plan: record.plan.clone(),
        epoch: None,
    };
    let change = Change {
        name: format!("retire-{rev}"),
        conds,
        writes: keys.into_iter().map(Write::Delete).collect(),
        atomic: false,
    };
    executor.commit_own(&who, &change).await?;
    let marks = executor.keys().marks(record.id);
    delete_under(executor, &Span::prefix(&marks)).await
}

/// The CopySegmentJob of an ended restore and its tasks once their `cleanup_ts` has passed (`spec/snapshot.md` §5.4): tasks first, so
/// that no task is without its job.
async fn copies(
    executor: &Executor,
    record: &JobRecord,
    now: UnixMs,
) -> Result<Vec<(MetaKey, Cond)>> {
    let (meta, roots) = (executor.reader(), executor.roots());
    let key = Key::CopySegmentJob(record.id).to_key(roots);
    let Some(kv) = meta.get(&key).await? else {
        return Ok(Vec::new());
    };
    let due = pb::data::CopySegmentJob::decode(kv.value.clone())
        .ok()
        .and_then(|job| Tso(job.cleanup_ts).time())
        .is_some_and(|end| end <= now);
    if !due {
        return Ok(Vec::new());
    }
    let tasks = Span::prefix(&Family::CopySegmentTask.prefix(roots));
    let mut gone: Vec<(MetaKey, Cond)> = Vec::new();
    for task in meta.range_all(&tasks).await?.kvs {
        let ours = pb::data::CopySegmentTask::decode(task.value.clone())
            .is_ok_and(|t| JobId(t.job_id) == record.id);
        if ours {
            gone.push((task.key.clone(), Cond::At(task.key, task.mod_rev)));
        }
    }
    gone.push((key.clone(), Cond::At(key, kv.mod_rev)));
    Ok(gone)
}

/// The ExportSnapshotJob of an ended export (`spec/snapshot.md` §3.9). It has no time of its own: the job's end is it.
async fn export(executor: &Executor, record: &JobRecord) -> Result<Vec<(MetaKey, Cond)>> {
    let key = Key::ExportSnapshotJob(record.id).to_key(executor.roots());
    let found = executor.reader().get(&key).await?;
    Ok(found
        .map(|kv| (key.clone(), Cond::At(key, kv.mod_rev)))
        .into_iter()
        .collect())
}

/// Keeps the youngest audit entries.
async fn audits(executor: &Executor) -> Result<()> {
    let audits = Span::prefix(&executor.keys().audits());
    let opts = RangeOpts {
        keys_only: true,
        limit: AUDITS + 1_000,
        ..RangeOpts::default()
    };
    let page = executor.reader().range(&audits, opts).await?;
    let more = page.kvs.len().checked_sub(AUDITS).filter(|n| *n > 0);
    let Some(first_kept) = more.and_then(|n| page.kvs.get(n)) else {
        return Ok(());
    };
    let old = Span {
        start: audits.start,
        end: Some(first_kept.key.0.clone()),
    };
    delete_under(executor, &old).await
}
