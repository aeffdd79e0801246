//! The copying part of a restore: what is to be copied, and how far it is.

use std::collections::BTreeMap;

use prost::Message;

use super::copy::{CopyFile, Done};
use super::copy_host::sizes;
use super::cx::JobCx;
use super::restore::{Loaded, put, watchable};
use super::restore_map::{Blueprint, SEGMENTS_PER_TASK, Source, WalStart, channels};
use super::restore_plan;
use super::restore_source::{Reads, hex};
use super::restore_state::State;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb;
use crate::engine::format::pb::data::{CopySegmentJobState, CopySegmentTaskState};
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{CollectionId, ObjectKey, Tso, UnixMs};
use crate::engine::plan::execute::Change;

/// Longest that copied segments stay unrecorded, in ms.
const TELL_MS: i64 = 60_000;

/// Fills in sizes from listings of the source; every missing object is named (rule 10 of `spec/oncall.md` §7).
pub(super) async fn size_up(
    reads: &Reads<'_>,
    outside: Option<&str>,
    files: &mut [CopyFile],
) -> Result<()> {
    let missing = sizes(reads, outside, files).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|key| key.0.as_str()).collect();
    // The plan lists them all; this goes into the journal.
    Err(Error::new(
        ErrorKind::NotFound,
        format!(
            "{} objects of the snapshot are missing: {}",
            names.len(),
            restore_plan::some_of(&names)
        ),
    )
    .fix("bring them back from a backup of the bucket, or use another snapshot"))
}

/// Digest of sources and sizes, so that a resume works on what was planned.
#[must_use]
pub fn digest(files: &[CopyFile]) -> String {
    use sha2::{Digest, Sha256};
    let mut sorted: Vec<(&ObjectKey, u64)> = files.iter().map(|f| (&f.from, f.size)).collect();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    for (key, size) in sorted {
        hash.update((key.0.len() as u64).to_be_bytes());
        hash.update(key.0.as_bytes());
        hash.update(size.to_be_bytes());
    }
    hex(&hash.finalize())
}

/// Segments whose files are all done, and bytes done.
pub(super) fn standing(blueprint: &Blueprint, done: &Done) -> (u32, u64) {
    let mut open = vec![false; blueprint.segments.len()];
    let mut bytes = 0;
    for (i, file) in (0..).zip(&blueprint.files) {
        if done.has(i) {
            bytes += file.size;
        } else if let Some(flag) = open.get_mut(file.group as usize) {
            *flag = true;
        }
    }
    (open.iter().filter(|o| !**o).count() as u32, bytes)
}

/// Keeps the watchable records true: a task is Completed when all files of its segments are there. A task is written once.
/// The job's record, which names every segment, is written when the whole percent of copied segments has moved, or once a
/// minute: each writing of it stays in etcd's history until that is compacted.
pub(super) async fn progress(cx: &JobCx, mut state: State, loaded: &Loaded) -> Result<State> {
    let (segments, bytes) = standing(&loaded.blueprint, &state.done);
    cx.progress()
        .set_done(segments.into(), state.done.count().into(), bytes);
    if segments == state.copied {
        return Ok(state);
    }
    let mut open = vec![false; loaded.blueprint.tasks.len()];
    for (i, file) in (0..).zip(&loaded.blueprint.files) {
        let task = file.group as usize / SEGMENTS_PER_TASK;
        if let Some(flag) = open.get_mut(task).filter(|_| !state.done.has(i)) {
            *flag = true;
        }
    }
    let now = cx.clock.now();
    let watch = watchable(cx, &state, loaded);
    let mut writes = Vec::new();
    let all = loaded.blueprint.segments.len();
    let job_is_due = due(all, (state.copied, state.told), (segments, now));
    if job_is_due {
        let executing = CopySegmentJobState::CopySegmentJobExecuting;
        writes.push(put(cx, watch.job(executing, segments.into(), None, "")));
    }
    let mut tasks = state.tasks.clone();
    for at in (0..).take(open.len()) {
        if open[at as usize] || tasks.has(at) {
            continue;
        }
        let completed = CopySegmentTaskState::CopySegmentTaskCompleted;
        let task = watch.task(at as usize, completed, Some(now), "");
        writes.extend(task.map(|t| put(cx, t)));
        tasks.add(at);
    }
    if writes.is_empty() {
        return Ok(state);
    }
    cx.commit_own(Change {
        name: format!("progress-{segments}-{}", now.0),
        writes,
        ..Change::default()
    })
    .await?;
    state.tasks = tasks;
    if job_is_due {
        (state.copied, state.told) = (segments, now);
    }
    Ok(state)
}

/// Whether the job's record is to be written again: `told` and `now` are copied segments of `all`, and when.
fn due(all: usize, told: (u32, UnixMs), now: (u32, UnixMs)) -> bool {
    let percent = |n: u32| u64::from(n) * 100 / (all as u64).max(1);
    percent(told.0) != percent(now.0) || now.1.0 - told.1.0 >= TELL_MS
}

/// Where the new channels begin: the newest position known on the same physical channel, which no message of the new
/// collection can precede. Without one, the boundary of the snapshot.
pub(super) async fn starts(
    reads: &Reads<'_>,
    source: &Source,
) -> Result<BTreeMap<String, WalStart>> {
    let mut best: BTreeMap<String, (u64, WalStart)> = BTreeMap::new();
    let mut offer = |name: &str, position: &pb::msg::MsgPosition| {
        let at = Tso(position.timestamp);
        if position.msg_id.is_empty() || at.is_dropped() {
            return;
        }
        let ChannelName::Shard { pchannel, .. } = ChannelName::parse(name) else {
            return;
        };
        let newer = best
            .get(pchannel)
            .is_none_or(|(have, _)| *have < position.timestamp);
        if newer {
            let start = WalStart {
                id: position.msg_id.clone(),
                wal: position.wal_name,
            };
            best.insert(pchannel.to_owned(), (position.timestamp, start));
        }
    };
    for position in &source.record.channel_seek_positions {
        offer(&position.channel_name, position);
    }
    for kv in reads.family(Family::ChannelCheckpoint).await?.kvs {
        let Some(Key::ChannelCheckpoint(channel)) = Key::parse(reads.roots, &kv.key.0).known()
        else {
            continue;
        };
        // A checkpoint that cannot be read is one candidate less.
        if let Ok(position) = pb::msg::MsgPosition::decode(kv.value.clone()) {
            offer(&channel.0, &position);
        }
    }
    let mut wanted = BTreeMap::new();
    for (_, _, pchannel) in channels(source, CollectionId(0))? {
        if let Some((_, start)) = best.get(&pchannel) {
            wanted.insert(pchannel, start.clone());
        }
    }
    Ok(wanted)
}
