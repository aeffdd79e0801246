//! Restore as a step machine: pin → ids → record → copy → check → children → publish → verify → unpin.
//!
//! Nothing is visible before `publish`, which writes the collection's own record in one transaction, last (the order of
//! 2.6.12 and later, `spec/layout.md` §0.6): segments, indexes and checkpoints of a collection without it are read by nobody. Everything
//! before it is taken back by the ids that the job took, never by name (defects D45, D58).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::copy::{self, Done, Ran};
use super::copy_host::{Host, Sources};
use super::cx::JobCx;
use super::obstacles::{passes, stuck};
use super::references::Keeper;
use super::restore_copy::{digest, progress, size_up, standing, starts};
use super::restore_map::{Blueprint, Source, draw, ids_needed};
use super::restore_names::name_is_free;
use super::restore_pin::{HeldPin, keep_pin, release_pin, set_pin, while_pinned};
use super::restore_plan::{Wanted, survey};
use super::restore_references::Held;
use super::restore_since::Milvus;
use super::restore_source::{Reads, prefixes};
pub use super::restore_state::{Range, State, Step};
use super::restore_watch::{Watchable, complete};
use super::{Job, Lock, Next, PlanCx, restore_bundle, restore_plan, restore_undo, verify};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb::data::{CopySegmentJobState, CopySegmentTaskState};
use crate::engine::ids::{CollectionId, DbId, ObjectKey};
use crate::engine::meta::{Cond, Write};
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Intent, Plan};

/// Rounds of copying again what the check found wanting.
const ROUNDS: u32 = 3;
/// Looks at the database's names before publishing is given up.
const PUBLISHES: u32 = 8;

/// The snapshot and the picture, read again from the store by each process: the journal holds only what decides them.
pub(super) struct Loaded {
    pub source: Source,
    pub blueprint: Blueprint,
    /// Whether this process has looked at what the target already holds.
    pub listed: bool,
}

/// The restore machine.
#[derive(Default)]
pub struct Restore {
    keeper: Keeper,
    cache: Mutex<BTreeMap<i64, Arc<Loaded>>>,
    /// Jobs of which this process has told what was there when it came: after a failed try that is no news.
    told: Mutex<BTreeSet<i64>>,
}

impl Restore {
    /// With the references that the engine keeps.
    #[must_use]
    pub fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            ..Self::default()
        }
    }

    fn cached(&self, first: i64) -> Option<Arc<Loaded>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(&first).cloned()
    }

    fn keep(&self, first: i64, loaded: Option<Loaded>) -> Option<Arc<Loaded>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Some(loaded) => {
                let loaded = Arc::new(loaded);
                cache.insert(first, loaded.clone());
                Some(loaded)
            }
            None => cache.remove(&first),
        }
    }

    fn is_news(&self, cx: &JobCx) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(cx.job.0)
    }

    fn forget(&self, cx: &JobCx, state: &State) {
        if let Some(ids) = state.ids {
            self.keep(ids.first, None);
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.remove(&cx.job.0);
    }

    /// Reads the snapshot again and draws the picture. All missing objects are named at once.
    async fn load(&self, cx: &JobCx, state: &State) -> Result<Arc<Loaded>> {
        let given = state.given()?;
        if let Some(found) = self.cached(given.first_id) {
            return Ok(found);
        }
        let reads = reads(cx);
        let source = source(cx, state).await?;
        let mut blueprint = draw(&source, &given, cx.objects.root(), cx.objects.bucket())?;
        size_up(&reads, source.outside.as_deref(), &mut blueprint.files).await?;
        if digest(&blueprint.files) != state.objects {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "objects of snapshot {} have changed since the plan was made",
                    state.snapshot
                ),
            )
            .fix("plan the restore again and compare"));
        }
        let loaded = Loaded {
            source,
            blueprint,
            listed: false,
        };
        self.keep(given.first_id, Some(loaded))
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the restore lost its picture"))
    }

    async fn look(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let reads = reads(cx);
        // Before anything else is read: what moves it later has moved since.
        let milvus = Milvus::seen(&reads).await?;
        let wanted = Wanted {
            snapshot: state.snapshot,
            from: state.from.as_deref(),
            database: &state.db_name,
            name: &state.name,
        };
        let found = survey(&reads, &self.keeper, cx.clock.now(), wanted).await?;
        found.refuse()?;
        let (Some(source), Some(db)) = (&found.source, found.db) else {
            return Err(Error::new(
                ErrorKind::Internal,
                "the survey passed without a snapshot or a database",
            ));
        };
        state.milvus = Some(milvus);
        state.db = db;
        state.of = found.of;
        state.fingerprint.clone_from(&source.fingerprint);
        state.objects = digest(&found.files);
        state.started = cx.clock.now();
        state.starts = starts(&reads, source).await?;
        if state.from.is_none() {
            state.pin = Some(HeldPin::draw(&*cx.entropy, cx.clock.now()));
        }
        Ok(Next::Step(state.to(Step::Pin)))
    }

    async fn ids(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let source = source(cx, &state).await?;
        let range = cx.take_ids(ids_needed(&source)?).await?.into();
        Held::of(cx, &self.keeper, range).await?.refuse()?;
        state.ids = Some(range);
        Ok(Next::Step(state.to(Step::Record)))
    }

    async fn record(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        let loaded = self.load(cx, &state).await?;
        let watch = watchable(cx, &state, &loaded);
        let mut writes = vec![put(
            cx,
            watch.job(CopySegmentJobState::CopySegmentJobExecuting, 0, None, ""),
        )];
        for at in 0..loaded.blueprint.tasks.len() {
            let task = watch.task(at, CopySegmentTaskState::CopySegmentTaskPending, None, "");
            writes.extend(task.map(|t| put(cx, t)));
        }
        cx.commit(Change {
            name: "record".into(),
            writes,
            ..Change::default()
        })
        .await?;
        Ok(Next::Step(state.to(Step::Copy)))
    }

    /// One slice of copying. The first slice of a process looks at what is already there.
    async fn copy(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        state.pin = keep_pin(cx, state.source(), state.pin).await?;
        let loaded = self.load(cx, &state).await?;
        let files = &loaded.blueprint.files;
        if !loaded.listed {
            let targets: BTreeSet<&ObjectKey> = files.iter().map(|f| &f.to).collect();
            cx.give_up_unfinished(&|key| targets.contains(key)).await?;
            let there = reads(cx)
                .list_all(prefixes(cx.objects.root(), files.iter().map(|f| &f.to)))
                .await?;
            let found = Done::from_listing(files, &there);
            let now = Milvus::seen(&reads(cx)).await?;
            if state.milvus.as_ref().is_some_and(|then| *then != now) {
                cx.note(format!(
                    "changed since by Milvus: {}; all is checked again before publishing",
                    now.words()
                ));
            }
            if self.is_news(cx) && found.count() > 0 {
                cx.note(format!(
                    "{} of {} files were there",
                    found.count(),
                    files.len()
                ));
            }
            state.done = found;
            let bytes: u64 = files.iter().map(|f| f.size).sum();
            let (segments, done_bytes) = standing(&loaded.blueprint, &state.done);
            cx.progress().totals(
                loaded.blueprint.segments.len() as u64,
                files.len() as u64,
                bytes,
            );
            cx.progress()
                .set_done(segments.into(), state.done.count().into(), done_bytes);
            let rows: i64 = loaded.blueprint.segments.iter().map(|s| s.rows).sum();
            cx.progress().set_rows(u64::try_from(rows).unwrap_or(0));
            self.keep(
                state.given()?.first_id,
                Some(Loaded {
                    source: loaded.source.clone(),
                    blueprint: loaded.blueprint.clone(),
                    listed: true,
                }),
            );
        }
        let host = Host {
            cx,
            sources: &Sources::of(&cx.objects, state.from.as_deref())?,
            beside: None,
        };
        let (of, mut pin) = (state.source(), state.pin);
        let run = copy::run(&host, files, &mut state.done, copy::SLICE);
        let ran = while_pinned(cx, of, &mut pin, run).await;
        state.pin = pin;
        cx.files().idle();
        if ran.is_err() {
            // The step is taken again with the state journaled last: look at what is there, do not copy it twice.
            self.keep(state.given()?.first_id, None);
        }
        let ran = match ran {
            Err(e) if !passes(cx, &e) => {
                let state = progress(cx, state, &loaded).await?;
                // Whoever says *retry* later wants to know again what is there.
                self.forget(cx, &state);
                return wait(cx, state, &e).await;
            }
            ran => ran?,
        };
        match ran {
            Ran::SourceMissing => {
                // Find them all, then fail for good.
                let mut again = files.clone();
                size_up(&reads(cx), state.from.as_deref(), &mut again).await?;
                Err(Error::new(
                    ErrorKind::Unreachable,
                    "a source object was missing for a moment and is there again",
                )
                .fix("check whether the object store is consistent"))
            }
            Ran::More => {
                state = progress(cx, state, &loaded).await?;
                Ok(Next::Step(state))
            }
            Ran::All => {
                state = progress(cx, state, &loaded).await?;
                Ok(Next::Step(state.to(Step::Check)))
            }
        }
    }

    /// Size of every copied object, by listing; what is missing or short is copied again, a few times.
    async fn check(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let loaded = self.load(cx, &state).await?;
        let files = &loaded.blueprint.files;
        let there = reads(cx)
            .list_all(prefixes(cx.objects.root(), files.iter().map(|f| &f.to)))
            .await?;
        let good = Done::from_listing(files, &there);
        if good.count() as usize == files.len() {
            return Ok(Next::Step(state.to(Step::Children)));
        }
        if state.round >= ROUNDS {
            let short: Vec<String> = (0..)
                .zip(files)
                .filter(|(i, _)| !good.has(*i))
                .map(|(_, f)| format!("{} ({:?} of {} bytes)", f.to, there.get(&f.to), f.size))
                .collect();
            let short: Vec<&str> = short.iter().map(String::as_str).collect();
            let e = Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} copied objects are missing or short: {}",
                    short.len(),
                    restore_plan::some_of(&short)
                ),
            )
            .fix("check the object store's health");
            state.round = 0;
            state.done = good;
            return wait(cx, state.to(Step::Copy), &e).await;
        }
        cx.note(format!(
            "{} files are missing or short after copying: copied again",
            files.len() - good.count() as usize
        ));
        state.round += 1;
        state.done = good;
        Ok(Next::Step(state.to(Step::Copy)))
    }

    async fn children(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        state.pin = keep_pin(cx, state.source(), state.pin).await?;
        let loaded = self.load(cx, &state).await?;
        let writes = loaded
            .blueprint
            .children
            .iter()
            .map(|record| put(cx, record.clone()))
            .collect();
        // The ids are ours alone: whatever stands under them already was put there by someone else.
        let c = [loaded.blueprint.collection.0];
        let mut conds = [
            Family::Partition,
            Family::Field,
            Family::Segment,
            Family::FieldIndex,
            Family::SegmentIndex,
        ]
        .map(|family| Cond::NoneUnder(family.under(&cx.roots, &c)))
        .to_vec();
        let absent = loaded.blueprint.children.iter();
        conds.extend(absent.map(|(key, _)| Cond::Absent(key.to_key(&cx.roots))));
        cx.commit(Change {
            name: "children".into(),
            conds,
            writes,
            atomic: false,
        })
        .await?;
        Ok(Next::Step(state.to(Step::Publish)))
    }

    async fn publish(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        if state.ended.is_none() {
            // Journaled first: whoever finds the collection published knows since when.
            state.ended = Some(cx.clock.now());
            return Ok(Next::Step(state));
        }
        let loaded = self.load(cx, &state).await?;
        let mut tries = 0;
        loop {
            tries += 1;
            // Nobody else has the id: it is published, and what came after is not looked at here.
            if reads(cx).record(&loaded.blueprint.head.0).await?.is_some() {
                break;
            }
            // Whoever was there while nobody of us was: everything is looked at again, and the publishing rests on it.
            let now = Milvus::seen(&reads(cx)).await?;
            if state.milvus.as_ref().is_some_and(|then| *then != now) {
                return self.look_again(cx, state, now).await;
            }
            let collection = Some(loaded.blueprint.collection);
            let mut conds = name_is_free(&reads(cx), state.db, &state.name, collection).await?;
            conds.extend(database_stands(cx, &state).await?);
            conds.push(now.unmoved(&cx.roots));
            let published = cx
                .commit(Change {
                    name: "publish".into(),
                    conds,
                    writes: vec![put(cx, loaded.blueprint.head.clone())],
                    atomic: true,
                })
                .await;
            match published {
                // Some other collection of the database moved: look again. A taken name is an error of its own.
                Err(e) if e.kind() == ErrorKind::Conflict && tries < PUBLISHES => {}
                Err(e) => return Err(e),
                Ok(_) => break,
            }
        }
        state.published = true;
        Ok(Next::Published(state.to(Step::Verify)))
    }

    /// A Milvus process has registered since the job began. Copies, records and the pin are compared with what was left, before anything is
    /// published on top of what has changed.
    async fn look_again(&self, cx: &JobCx, mut state: State, now: Milvus) -> Result<Next<State>> {
        let loaded = self.load(cx, &state).await?;
        cx.note(format!(
            "changed since by Milvus: {}; copies, records and the pin are checked again",
            now.words()
        ));
        let changed = verify::unpublished(&reads(cx), &loaded.blueprint).await?;
        if let Some(first) = changed.first() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "changed since by Milvus in {} points: {first}",
                    changed.len()
                ),
            )
            .fix("what was made is taken back; plan the restore again"));
        }
        if let Some(pin) = state.pin {
            let again = HeldPin::renewed(pin, cx.clock.now());
            set_pin(cx, state.source(), again).await?;
            state.pin = Some(again);
        }
        state.milvus = Some(now);
        let files = &loaded.blueprint.files;
        let there = reads(cx)
            .list_all(prefixes(cx.objects.root(), files.iter().map(|f| &f.to)))
            .await?;
        let good = Done::from_listing(files, &there);
        if good.count() as usize == files.len() {
            return Ok(Next::Step(state));
        }
        cx.note(format!(
            "changed since by Milvus: {} copied files are gone or short and are copied again",
            files.len() - good.count() as usize
        ));
        state.done = good;
        Ok(Next::Step(state.to(Step::Copy)))
    }

    async fn verify(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        if let Some(ended) = state.ended {
            complete(cx, ended).await?;
        }
        state.pin = keep_pin(cx, state.source(), state.pin).await?;
        let loaded = self.load(cx, &state).await?;
        let report = verify::restored(&reads(cx), &loaded.source, &loaded.blueprint).await?;
        for line in &report.passed {
            cx.note(format!("verified: {line}"));
        }
        if let Some(first) = report.failed.first() {
            for line in &report.failed {
                cx.note(format!("NOT verified: {line}"));
            }
            // A published collection is not taken back; nothing more will be read from the snapshot either.
            release_pin(cx, state.source(), state.pin).await?;
            let now = Milvus::seen(&reads(cx)).await?;
            if state.milvus.as_ref().is_some_and(|then| *then != now) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "collection {} was published and cannot be verified any more: changed since by Milvus ({}) in {} points: {first}",
                        state.name,
                        now.words(),
                        report.failed.len()
                    ),
                )
                .fix("compare it with the snapshot yourself, or drop it and restore again; the snapshot is untouched"));
            }
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "collection {} was restored but does not verify in {} points: {first}",
                    state.name,
                    report.failed.len()
                ),
            )
            .fix(
                "do not use it: drop the collection and restore again; the snapshot is untouched",
            ));
        }
        Ok(Next::Step(state.to(Step::Unpin)))
    }
}

#[async_trait]
impl Job for Restore {
    const KIND: JobKind = JobKind::Restore;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let reads = Reads {
            meta: &cx.meta,
            objects: &cx.objects,
            roots: &cx.roots,
        };
        restore_plan::plan(&reads, &self.keeper, cx.clock.now(), intent).await
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::Restore {
                snapshot,
                database,
                collection,
            } => vec![
                Lock::alone(format!("target:{database}:{collection}")),
                Lock::shared(format!("snapshot:{snapshot}")),
            ],
            Intent::RestoreBundle {
                database,
                collection,
                ..
            } => vec![Lock::alone(format!("target:{database}:{collection}"))],
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match &plan.intent {
            Intent::Restore {
                snapshot,
                database,
                collection,
            } => Ok(State {
                snapshot: *snapshot,
                db_name: database.clone(),
                name: collection.clone(),
                ..State::default()
            }),
            Intent::RestoreBundle {
                uri,
                database,
                collection,
            } => Ok(State {
                from: Some(uri.clone()),
                db_name: database.clone(),
                name: collection.clone(),
                ..State::default()
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a restore plan")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        state.collection()
    }

    async fn step(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        match state.step {
            Step::Begin => self.look(cx, state).await,
            Step::Pin => {
                let pin = state.pin;
                if let Some(pin) = pin {
                    set_pin(cx, state.source(), pin).await?;
                }
                Ok(Next::Step(state.to(Step::Ids)))
            }
            Step::Ids => self.ids(cx, state).await,
            Step::Record => self.record(cx, state).await,
            Step::Copy => self.copy(cx, state).await,
            Step::Check => self.check(cx, state).await,
            Step::Children => self.children(cx, state).await,
            Step::Publish => self.publish(cx, state).await,
            Step::Verify => self.verify(cx, state).await,
            Step::Unpin => {
                release_pin(cx, state.source(), state.pin).await?;
                self.forget(cx, &state);
                Ok(Next::Verified(state))
            }
            Step::UndoObjects | Step::UndoKeys | Step::UndoPin | Step::UndoLabel => {
                Err(Error::new(
                    ErrorKind::Internal,
                    "a restore that is being undone was asked to go on",
                ))
            }
        }
    }

    async fn undo(&self, cx: &JobCx, state: State, why: &Error) -> Result<Next<State>> {
        self.forget(cx, &state);
        let next = restore_undo::step(cx, &self.keeper, state, why).await?;
        // It stays, as the record of its collection shows: then nobody may wait for the job.
        if let Next::Step(state) = &next
            && state.published
            && let Some(ended) = state.ended
        {
            complete(cx, ended).await?;
        }
        Ok(next)
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, at) = match state.step {
            Step::Begin => ("reading the snapshot", 0),
            Step::Pin => ("pinning the snapshot", 1),
            Step::Ids => ("taking ids", 2),
            Step::Record => ("recording the job", 3),
            Step::Copy => ("copying objects", 4),
            Step::Check => ("checking copied objects", 5),
            Step::Children => ("writing records", 6),
            Step::Publish => ("publishing the collection", 7),
            Step::Verify => ("verifying", 8),
            Step::Unpin => ("releasing the snapshot", 9),
            Step::UndoObjects => ("undo: removing copied objects", 0),
            Step::UndoKeys => ("undo: removing records", 0),
            Step::UndoPin => ("undo: releasing the snapshot", 0),
            Step::UndoLabel => ("undo: labelling the job", 0),
        };
        (text.to_owned(), at, 10)
    }
}

/// Waits for the operator: what is there is worth keeping.
async fn wait(cx: &JobCx, mut state: State, why: &Error) -> Result<Next<State>> {
    let (why, until) = stuck(cx, state.source(), &mut state.pin, why).await?;
    Ok(Next::Stuck(state, why, until))
}

pub(super) fn reads(cx: &JobCx) -> Reads<'_> {
    Reads {
        meta: &cx.meta,
        objects: &cx.objects,
        roots: &cx.roots,
    }
}

pub(super) fn put(cx: &JobCx, (key, value): (Key, Vec<u8>)) -> Write {
    Write::put(key.to_key(&cx.roots), value)
}

async fn source(cx: &JobCx, state: &State) -> Result<Source> {
    let reads = reads(cx);
    let source = if let Some(uri) = &state.from {
        restore_bundle::open(&reads, uri).await?
    } else {
        let of = state.source();
        let kv = reads.record(&of.key()).await?;
        reads.source(&kv.ok_or_else(|| of.gone())?).await?
    };
    if source.fingerprint == state.fingerprint {
        return Ok(source);
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "files of snapshot {} have changed since the plan was made",
            state.snapshot
        ),
    )
    .fix("plan the restore again and compare"))
}

/// The target database is there and stays there for one transaction. A root from before databases has no record of the default one.
async fn database_stands(cx: &JobCx, state: &State) -> Result<Option<Cond>> {
    match reads(cx).record(&Key::Database(state.db)).await? {
        Some(kv) => Ok(Some(Cond::At(kv.key, kv.mod_rev))),
        None if state.db == DbId(1) => Ok(None),
        None => Err(Error::new(
            ErrorKind::NotFound,
            format!("database {} ({}) is gone", state.db_name, state.db),
        )
        .fix("restore into another database")),
    }
}

pub(super) fn watchable<'a>(cx: &JobCx, state: &State, loaded: &'a Loaded) -> Watchable<'a> {
    Watchable {
        job: cx.job,
        blueprint: &loaded.blueprint,
        source: &loaded.source,
        pin: state.pin.map_or(0, |p| p.id),
        started: state.started,
    }
}
