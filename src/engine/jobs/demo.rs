//! `falconer demo`: a small living cluster in an empty embedded store, made through the real write path with real files.
//!
//! ids → objects → children → heads → snapshots (by their own jobs) → what dead processes leave behind → look at it all →
//! a restore that runs on. Until it has looked, a failure takes everything back, by the ids that it took.

mod ids;
mod leftovers;
mod scene;
mod seed;
mod undo;

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::restore_plan::some_of;
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::ids::{CollectionId, JobId, KeyPrefix, MetaRev, ObjectKey, UnixMs};
use crate::engine::meta::{Cond, MetaReader, RangeOpts, Span, Write};
use crate::engine::model::jobs::{JobKind, JobState};
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};
use crate::engine::profile::Roots;
use ids::IdMap;
use leftovers::SNAPSHOTS;
use scene::{EXTRA, Scene};

/// Objects written in one step.
const SLICE: usize = 64;
/// Of them at once.
const AT_ONCE: usize = 16;
/// How long the restore should take to look at.
const RESTORE_SECS: u64 = 180;
/// Database and name that it restores into.
const TARGET: (&str, &str) = ("analytics", "metrics_restored");

/// Where the machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    #[default]
    Ids,
    Objects,
    Children,
    Heads,
    Snapshot,
    Pin,
    Pending,
    Deleting,
    Look,
    Restore,
    UndoJobs,
    UndoKeys,
    UndoObjects,
}

/// What is journaled.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    step: Step,
    /// First of the ids taken.
    first: i64,
    /// The moment that the scene is drawn for.
    now: UnixMs,
    /// Objects written.
    objects: usize,
    /// Snapshots made.
    snapshots: usize,
    /// The job that makes the next one.
    child: Option<JobId>,
}

impl State {
    fn to(mut self, step: Step) -> Self {
        self.step = step;
        self
    }
}

/// The demo machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demo;

/// The scene, drawn again by each step: the journal holds only what decides it.
fn scene(cx: &JobCx, state: &State) -> Result<Scene> {
    let seed = seed::read()?;
    let ids = IdMap::of(&seed, state.first);
    scene::draw(&seed, &ids, state.now, cx.objects.root())
}

fn meta_root(roots: &Roots) -> KeyPrefix {
    let parts = [roots.root.as_str(), roots.meta.as_str()];
    let parts = parts.iter().map(|p| p.trim_matches('/'));
    let parts: Vec<&str> = parts.filter(|p| !p.is_empty()).collect();
    KeyPrefix::new(&parts.join("/"))
}

fn puts(cx: &JobCx, records: Vec<(Key, Vec<u8>)>) -> Vec<Write> {
    let put = |(key, value): (Key, Vec<u8>)| Write::put(key.to_key(&cx.roots), value);
    records.into_iter().map(put).collect()
}

impl Demo {
    async fn ids(cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let seed = seed::read()?;
        let count = IdMap::of(&seed, 0).count() + EXTRA;
        state.first = cx.take_ids(count).await?.first;
        state.now = cx.clock.now();
        Ok(Next::Step(state.to(Step::Objects)))
    }

    async fn objects(cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let scene = scene(cx, &state)?;
        let bytes: u64 = scene.objects.iter().map(|(_, b)| b.len() as u64).sum();
        cx.progress().totals(0, scene.objects.len() as u64, bytes);
        cx.check_cancel()?;
        let all = scene.objects.len();
        let slice = scene.objects.into_iter().skip(state.objects).take(SLICE);
        let mut puts = futures::stream::iter(slice)
            .map(|(key, bytes)| async move {
                cx.put_object(&key, bytes.clone()).await?;
                cx.progress().file(bytes.len() as u64);
                Ok::<_, Error>(())
            })
            .buffer_unordered(AT_ONCE);
        while let Some(put) = puts.next().await {
            put?;
        }
        drop(puts);
        state.objects = all.min(state.objects + SLICE);
        let done = state.objects == all;
        let next = if done { Step::Children } else { Step::Objects };
        Ok(Next::Step(state.to(next)))
    }

    async fn children(cx: &JobCx, state: State) -> Result<Next<State>> {
        let scene = scene(cx, &state)?;
        cx.commit(Change {
            name: "children".into(),
            // Still empty, in the same transaction as the first write.
            conds: vec![Cond::NoneUnder(meta_root(&cx.roots))],
            writes: puts(cx, scene.children),
            atomic: false,
        })
        .await?;
        Ok(Next::Step(state.to(Step::Heads)))
    }

    async fn heads(cx: &JobCx, state: State) -> Result<Next<State>> {
        let scene = scene(cx, &state)?;
        let writes = puts(cx, scene.heads);
        cx.commit(Change {
            name: "heads".into(),
            conds: writes
                .iter()
                .map(|w| Cond::Absent(w.key().clone()))
                .collect(),
            writes,
            atomic: true,
        })
        .await?;
        Ok(Next::Step(state.to(Step::Snapshot)))
    }

    /// Snapshots are made one after the other by the job that makes every snapshot.
    async fn snapshot(cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let Some(wanted) = SNAPSHOTS.get(state.snapshots) else {
            return Ok(Next::Step(state.to(Step::Pin)));
        };
        let Some(job) = state.child else {
            let intent = wanted.intent(&scene(cx, &state)?.cast);
            state.child = Some(cx.children()?.begin(cx.job, intent, None).await?);
            return Ok(Next::Step(state));
        };
        let ended = cx.children()?.ended(job).await?;
        if ended.state != JobState::Verified {
            let why = ended
                .error
                .clone()
                .unwrap_or_else(|| "no reason recorded".into());
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{} did not succeed: {why}", ended.title),
            ));
        }
        state.child = None;
        state.snapshots += 1;
        Ok(Next::Step(state))
    }

    /// Every file that a record names is there.
    async fn look(cx: &JobCx, state: State) -> Result<Next<State>> {
        let scene = scene(cx, &state)?;
        let mut there: BTreeSet<ObjectKey> = BTreeSet::new();
        let mut listing = cx
            .objects
            .list(&ObjectKey(cx.objects.root().to_owned()), None);
        while let Some(object) = listing.next().await {
            there.insert(object?.key);
        }
        let missing: Vec<&str> = scene
            .objects
            .iter()
            .filter(|(key, _)| !there.contains(key))
            .map(|(key, _)| key.0.as_str())
            .collect();
        if !missing.is_empty() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} objects are missing: {}",
                    missing.len(),
                    some_of(&missing)
                ),
            ));
        }
        cx.note(format!(
            "{} files in {}",
            there.len(),
            cx.objects.describe()
        ));
        Ok(Next::Step(state.to(Step::Restore)))
    }

    async fn restore(cx: &JobCx, state: State) -> Result<Next<State>> {
        let scene = scene(cx, &state)?;
        let (snapshot, _) = leftovers::record(cx, &scene.cast, SNAPSHOTS[0].name).await?;
        let of = scene.cast.metrics.0.to_string();
        let bytes: u64 = scene
            .objects
            .iter()
            .filter(|(key, _)| key.0.split('/').any(|part| part == of))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        let intent = Intent::Restore {
            snapshot,
            database: TARGET.0.into(),
            collection: TARGET.1.into(),
        };
        let rate = Some((bytes / RESTORE_SECS).max(1));
        let job = cx.children()?.begin(cx.job, intent, rate).await?;
        cx.note(format!(
            "job {job} restores {} into {}.{}, slowly",
            SNAPSHOTS[0].name, TARGET.0, TARGET.1
        ));
        Ok(Next::Verified(state))
    }
}

#[async_trait]
impl Job for Demo {
    const KIND: JobKind = JobKind::Demo;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let seed = seed::read()?;
        let scene = scene::draw(
            &seed,
            &IdMap::of(&seed, 1 << 50),
            cx.clock.now(),
            cx.objects.root(),
        )?;
        let root = meta_root(&cx.roots);
        let opts = RangeOpts {
            limit: 1,
            keys_only: true,
            ..RangeOpts::default()
        };
        let page = cx.meta.range(&Span::prefix(&root), opts).await?;
        let found = page.kvs.first().map(|kv| {
            format!(
                "key {} exists: the demo is only built into an empty store; give it a folder of its own with --data-dir",
                kv.key
            )
        });
        let name = String::from_utf8_lossy(root.bytes()).into_owned();
        Ok(Plan {
            intent: intent.clone(),
            title: "build the demo cluster".into(),
            checks: vec![Check {
                name: "the store is empty".into(),
                failed: found,
                detail: format!("no key under {}", name.trim_end_matches('/')),
            }],
            steps: vec![
                format!("write {} objects", scene.objects.len()),
                format!(
                    "write {} records, then the databases and collections",
                    scene.children.len()
                ),
                format!(
                    "create {} snapshots, and leave one half made and one half dropped",
                    SNAPSHOTS.len()
                ),
                "look for every file".into(),
                format!("begin to restore {}.{}, slowly", TARGET.0, TARGET.1),
            ],
            changes: scene
                .heads
                .iter()
                .map(|(key, _)| KeyChange {
                    key: format!("{}/<new>", key.family().path()),
                    before: None,
                    after: Some(key.family().title().to_owned()),
                })
                .collect(),
            objects: ObjectChange {
                puts: scene.objects.len() as u64,
                samples: scene
                    .objects
                    .iter()
                    .take(5)
                    .map(|(key, _)| key.0.clone())
                    .collect(),
                ..ObjectChange::default()
            },
            warnings: Vec::new(),
            undo: "delete the store's file and the folder of its objects".into(),
            danger: Danger::Low,
            type_to_confirm: None,
            based_on: page.rev,
            rests_on: Vec::new(),
            hash: String::new(),
        })
    }

    fn locks(&self, _: &Plan) -> Vec<Lock> {
        vec![Lock::alone("demo")]
    }

    fn begin(&self, _: &Plan) -> Result<State> {
        Ok(State::default())
    }

    fn collection(&self, _: &State) -> Option<CollectionId> {
        None
    }

    async fn step(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        match state.step {
            Step::Ids => Self::ids(cx, state).await,
            Step::Objects => Self::objects(cx, state).await,
            Step::Children => Self::children(cx, state).await,
            Step::Heads => Self::heads(cx, state).await,
            Step::Snapshot => Self::snapshot(cx, state).await,
            Step::Pin => {
                leftovers::pin(cx, &scene(cx, &state)?.cast, state.now).await?;
                Ok(Next::Step(state.to(Step::Pending)))
            }
            Step::Pending => {
                leftovers::pending(cx, &scene(cx, &state)?.cast, state.now).await?;
                Ok(Next::Step(state.to(Step::Deleting)))
            }
            Step::Deleting => {
                leftovers::deleting(cx, &scene(cx, &state)?.cast).await?;
                Ok(Next::Published(state.to(Step::Look)))
            }
            Step::Look => Self::look(cx, state).await,
            Step::Restore => Self::restore(cx, state).await,
            Step::UndoJobs | Step::UndoKeys | Step::UndoObjects => Err(Error::new(
                ErrorKind::Internal,
                "a demo that is being undone was asked to go on",
            )),
        }
    }

    async fn undo(&self, cx: &JobCx, state: State, _: &Error) -> Result<Next<State>> {
        undo::step(cx, state).await
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, at) = match state.step {
            Step::Ids => ("taking ids", 0),
            Step::Objects => ("writing objects", 1),
            Step::Children => ("writing records", 2),
            Step::Heads => ("publishing databases and collections", 3),
            Step::Snapshot => ("creating snapshots", 4),
            Step::Pin => ("pinning a snapshot", 5),
            Step::Pending => ("leaving a snapshot half made", 6),
            Step::Deleting => ("leaving a snapshot half dropped", 7),
            Step::Look => ("looking for every file", 8),
            Step::Restore => ("beginning a restore", 9),
            Step::UndoJobs => ("undo: waiting for jobs", 0),
            Step::UndoKeys => ("undo: removing records", 0),
            Step::UndoObjects => ("undo: removing objects", 0),
        };
        (text.to_owned(), at, 10)
    }
}

/// Everything under the meta root; it was empty when the demo began.
async fn all_keys(
    meta: &MetaReader,
    roots: &Roots,
) -> Result<(MetaRev, Vec<crate::engine::meta::KeyValue>)> {
    let page = meta.range_all(&Span::prefix(&meta_root(roots))).await?;
    Ok((page.rev, page.kvs))
}
