//! Taking a restore back: objects, then records, then the pin, then the label. All by the ids the job took, which nobody else
//! has; nothing is looked up by name, and the snapshot's files need not be readable.

use futures::stream::TryStreamExt;
use prost::Message;
use sha2::{Digest, Sha256};

use super::Next;
use super::cx::JobCx;
use super::obstacles::{Kept, delete_all, kept_in_words, left, nothing_left, pin_left};
use super::references::Keeper;
use super::restore::{Range, State, Step, reads};
use super::restore_pin::release_pin;
use super::restore_references::Held;
use super::restore_source::hex;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb;
use crate::engine::format::pb::data::{CopySegmentJobState, CopySegmentTaskState};
use crate::engine::format::vchannel;
use crate::engine::format::wire::Patch;
use crate::engine::ids::{CollectionId, JobId, MetaKey, ObjectKey, Tso, UnixMs};
use crate::engine::meta::Write;
use crate::engine::plan::execute::Change;

/// Tries against others that change a record at the same time.
const TRIES: u32 = 8;

/// One step back.
pub(super) async fn step(
    cx: &JobCx,
    keeper: &Keeper,
    mut state: State,
    why: &Error,
) -> Result<Next<State>> {
    match state.step {
        Step::UndoObjects => {
            if let Some(ids) = state.ids {
                match remove_objects(cx, keeper, ids).await {
                    Ok((gone, kept)) => {
                        cx.note(format!("undo: {gone} objects removed"));
                        if let Some((what, e)) = kept_in_words(kept) {
                            left(cx, &mut state.left, &what, e)?;
                        }
                    }
                    Err(e) => {
                        let what = format!("objects of collection {}", ids.first);
                        left(cx, &mut state.left, &what, e)?;
                    }
                }
            }
            Ok(Next::Step(at(state, Step::UndoKeys)))
        }
        Step::UndoKeys => {
            if let Some(ids) = state.ids {
                match remove_keys(cx, ids).await {
                    Ok(gone) => cx.note(format!("undo: {gone} records removed")),
                    Err(e) => {
                        let what = format!("records of collection {}", ids.first);
                        left(cx, &mut state.left, &what, e)?;
                    }
                }
            }
            Ok(Next::Step(at(state, Step::UndoPin)))
        }
        Step::UndoPin => {
            let of = state.source();
            if let (Err(e), Some(pin)) = (release_pin(cx, of, state.pin).await, state.pin) {
                pin_left(cx, &mut state.left, (of, pin), e)?;
            }
            Ok(Next::Step(at(state, Step::UndoLabel)))
        }
        Step::UndoLabel => {
            if !state.published
                && let Err(e) = label(cx, why).await
            {
                let what = format!("copy segment job {}, still Executing", cx.job);
                left(cx, &mut state.left, &what, e)?;
            }
            nothing_left(&state.left)?;
            Ok(Next::Undone(state))
        }
        _ => {
            // The publishing transaction may have happened although nobody was told: the record decides, not the journal.
            if let (false, Some(ids)) = (state.published, state.ids) {
                let head = Key::Collection(state.db, CollectionId(ids.first));
                state.published = reads(cx).record(&head).await?.is_some();
            }
            if state.published {
                cx.note(format!(
                    "collection {} ({}) is published and stays; drop it if it is not wanted",
                    state.name,
                    state.ids.map_or(0, |r| r.first)
                ));
                return Ok(Next::Step(at(state, Step::UndoPin)));
            }
            Ok(Next::Step(at(state, Step::UndoObjects)))
        }
    }
}

fn at(mut state: State, step: Step) -> State {
    state.step = step;
    state
}

/// Whether an object can only be ours: its collection is the one we made, or its build is one of ours.
fn is_ours(root: &str, key: &ObjectKey, ids: Range) -> bool {
    let within = |id: i64| id >= ids.first && id < ids.first.saturating_add(i64::from(ids.count));
    let Some(path) = ObjPath::parse(root, &key.0).known() else {
        return false;
    };
    let owner = path.owner();
    match (owner.collection, owner.build, owner.segment) {
        (Some(collection), ..) => collection == CollectionId(ids.first),
        (None, Some(build), Some(segment)) => within(build.0) && within(segment.0),
        _ => false,
    }
}

/// Lists everything that may be ours and deletes what is, unless a snapshot refers to it. Answers how many went, and what did not.
async fn remove_objects(cx: &JobCx, keeper: &Keeper, ids: Range) -> Result<(usize, Kept)> {
    let root = cx.objects.root();
    cx.give_up_unfinished(&|key| is_ours(root, key, ids))
        .await?;
    let below = |rest: String| {
        ObjectKey(if root.is_empty() {
            rest
        } else {
            format!("{}/{rest}", root.trim_end_matches('/'))
        })
    };
    let collection = ids.first;
    let mut found: Vec<ObjectKey> = Vec::new();
    for kind in [
        "insert_log",
        "stats_log",
        "delta_log",
        "bm25_stats",
        "index_v1",
    ] {
        let listed = reads(cx)
            .list(&below(format!("{kind}/{collection}")))
            .await?;
        found.extend(listed.into_keys());
    }
    // Rooted at the build: ours are the newest ids, so a store that lists in order starts at them.
    for kind in ["index_files", "text_log", "json_key_index_log"] {
        let first = below(format!("{kind}/{}", ids.first));
        let mut listed = cx.objects.list(&below(kind.into()), Some(&first));
        while let Some(object) = listed.try_next().await? {
            found.push(object.key);
        }
    }
    found.extend(
        reads(cx)
            .list(&below("json_stats".into()))
            .await?
            .into_keys(),
    );
    found.retain(|key| is_ours(root, key, ids));
    found.sort_unstable();
    found.dedup();
    let held = Held::of(cx, keeper, ids).await?;
    let mut kept = Kept::new();
    found.retain(|key| match held.keeps(root, key) {
        Some(why) => {
            kept.push((key.clone(), why));
            false
        }
        None => true,
    });
    let (gone, more) = delete_all(cx, None, found).await?;
    kept.extend(more);
    Ok((gone, kept))
}

/// Removes our records, also while somebody else touches one.
async fn remove_keys(cx: &JobCx, ids: Range) -> Result<usize> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_remove_keys(cx, ids).await {
            Err(e) if e.kind() == ErrorKind::Conflict && tries < TRIES => {}
            done => return done,
        }
    }
}

/// Lists every record under our collection's id and deletes exactly those keys.
async fn try_remove_keys(cx: &JobCx, ids: Range) -> Result<usize> {
    let collection = CollectionId(ids.first);
    let reads = reads(cx);
    let mut keys: Vec<MetaKey> = Vec::new();
    // Segments before their collection's parts: whoever looks meanwhile finds less, never something half.
    for family in [
        Family::SegmentIndex,
        Family::Binlog,
        Family::Statslog,
        Family::Deltalog,
        Family::Bm25log,
        Family::Segment,
        Family::FieldIndex,
        Family::Function,
        Family::StructField,
        Family::Field,
        Family::Partition,
    ] {
        let page = reads.under(family, &[collection.0]).await?;
        keys.extend(page.kvs.into_iter().map(|kv| kv.key));
    }
    for family in [Family::ChannelCheckpoint, Family::ChannelRemoval] {
        for kv in reads.family(family).await?.kvs {
            let Some(Key::ChannelCheckpoint(channel) | Key::ChannelRemoval(channel)) =
                Key::parse(&cx.roots, &kv.key.0).known()
            else {
                continue;
            };
            if vchannel::collection(&channel) == Some(collection) {
                keys.push(kv.key);
            }
        }
    }
    if keys.is_empty() {
        return Ok(0);
    }
    // What is left differs after a crash in the middle, so the change is named after it.
    let mut hash = Sha256::new();
    for key in &keys {
        hash.update(&key.0);
        hash.update([0]);
    }
    let name = hex(&hash.finalize()[..8]);
    let count = keys.len();
    cx.commit(Change {
        name: format!("undo-keys-{name}"),
        writes: keys.into_iter().map(Write::Delete).collect(),
        ..Change::default()
    })
    .await?;
    Ok(count)
}

/// Marks the watchable records Failed, with the reason, so that nobody waits for them.
async fn label(cx: &JobCx, why: &Error) -> Result<()> {
    let reads = reads(cx);
    let job = Key::CopySegmentJob(JobId(cx.job.0));
    let Some(kv) = reads.record(&job).await? else {
        return Ok(());
    };
    let now = cx.clock.now();
    let reason = why.to_string();
    let failed = |patch: &mut Patch<'_>, state: (u32, u64), reason_tag: u32| {
        patch.set_integer(state.0, state.1);
        patch.set_bytes(reason_tag, reason.as_bytes());
        // complete_ts, Unix ns, tag 11 of both.
        patch.set_integer(11, u64::try_from(now.to_ns().0).unwrap_or(0));
    };
    let mut patch = Patch::parse(&kv.value)?;
    let state = (5, CopySegmentJobState::CopySegmentJobFailed as u64);
    failed(&mut patch, state, 6);
    // Retention is a TSO three hours on (`spec/snapshot.md` §5.4).
    patch.set_integer(9, Tso::from_ms(UnixMs(now.0 + 10_800_000)).0);
    let mut writes = vec![Write::put(kv.key.clone(), patch.finish())];
    for task in reads.family(Family::CopySegmentTask).await?.kvs {
        let ours = pb::data::CopySegmentTask::decode(task.value.clone())
            .is_ok_and(|t| t.job_id == cx.job.0);
        if ours {
            let state = (7, CopySegmentTaskState::CopySegmentTaskFailed as u64);
            let mut patch = Patch::parse(&task.value)?;
            failed(&mut patch, state, 8);
            writes.push(Write::put(task.key.clone(), patch.finish()));
        }
    }
    cx.commit(Change {
        name: format!("label-{}", kv.mod_rev),
        writes,
        ..Change::default()
    })
    .await?;
    Ok(())
}
