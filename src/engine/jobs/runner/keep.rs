//! What is kept of ended jobs, and for how long: the record with its pre-images for [`RETENTION`], a line of history for good, the
//! CopySegmentJob that Milvus's tools watched until its `cleanup_ts`.

use prost::Message;

use crate::engine::error::Result;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb;
use crate::engine::ids::{JobId, MetaKey, Tso, UnixMs};
use crate::engine::jobs::board::Board;
use crate::engine::jobs::drive::delete_under;
use crate::engine::meta::{Cond, RangeOpts, Span, Write};
use crate::engine::plan::execute::{Change, Executor, Who};
use crate::engine::plan::journal::{JobRecord, Past, RETENTION, json};

/// Ended jobs whose record is kept at most, of those whose CopySegmentJob is gone.
const KEPT: usize = 100;
/// Lines of history.
const HISTORY: usize = 1_000;
/// Audit entries that are kept.
const AUDITS: usize = 10_000;
/// A CopySegmentJob is kept three hours (`dataCoord.copySegmentTaskRetention`): before that there is nothing to look for.
const COPIES_MS: u64 = 10_800_000;

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
        // A record whose CopySegmentJob cannot go yet stays with it, and is looked at again after the next job.
        if age < COPIES_MS || retire(executor, &record, now).await.is_err() {
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

/// Removes the CopySegmentJob of an ended restore and its tasks once their `cleanup_ts` has passed, as a coordinator would
/// (`spec/snapshot.md` §5.4): tasks first, so that no task is without its job.
async fn retire(executor: &Executor, record: &JobRecord, now: UnixMs) -> Result<()> {
    let (meta, roots) = (executor.reader(), executor.roots());
    let key = Key::CopySegmentJob(record.id).to_key(roots);
    let Some(kv) = meta.get(&key).await? else {
        return Ok(());
    };
    let due = pb::data::CopySegmentJob::decode(kv.value.clone())
        .ok()
        .and_then(|job| Tso(job.cleanup_ts).time())
        .is_some_and(|end| end <= now);
    if !due {
        return Ok(());
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
    let (keys, conds): (Vec<MetaKey>, Vec<Cond>) = gone.into_iter().unzip();
    let who = Who {
        job: record.id,
        plan: record.plan.clone(),
        epoch: None,
    };
    let change = Change {
        name: format!("retire-{}", kv.mod_rev),
        conds,
        writes: keys.into_iter().map(Write::Delete).collect(),
        atomic: false,
    };
    executor.commit_own(&who, &change).await?;
    let marks = executor.keys().marks(record.id);
    delete_under(executor, &Span::prefix(&marks)).await
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
