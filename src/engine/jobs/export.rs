//! Export as a step machine: pin → record → copy → check → manifests → publish → verify → unpin (`spec/snapshot.md` §3.9).
//!
//! Everything is written below one prefix that holds a UUID of the job's own. The metadata JSON is the bundle's commit mark and comes
//! last; whoever takes the job back removes it first, then everything else below the prefix. Unlike Milvus's own, a failed or
//! cancelled export leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::copy::{self, CopyFile, Done, Ran};
use super::copy_host::{Host, Sources};
use super::cx::JobCx;
use super::export_contents::{at, contents, fingerprint_of, put_and_compare};
use super::export_files::{files, whole};
use super::export_record::tell;
use super::export_state::STEPS;
pub use super::export_state::{State, Step};
use super::obstacles::{passes, stuck};
use super::restore::reads;
use super::restore_copy::{digest, size_up};
use super::restore_map::Source;
use super::restore_pin::{HeldPin, keep_pin, release_pin, set_pin, while_pinned};
use super::restore_plan::some_of;
use super::restore_source::Reads;
use super::{Job, Lock, Next, PlanCx, export_plan, export_undo};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::bundle::uuid;
use crate::engine::format::fingerprint;
use crate::engine::format::pb::data::{ExportSnapshotJobState as Told, SegmentDescription};
use crate::engine::format::snapshot::write_metadata;
use crate::engine::ids::{CollectionId, JobId};
use crate::engine::model::jobs::{BUNDLE, JobKind};
use crate::engine::plan::{Intent, Plan};

/// Rounds of copying again what the check found wanting.
const ROUNDS: u32 = 3;

/// The snapshot and its files, read again from the store by each process.
struct Loaded {
    source: Source,
    segments: Vec<SegmentDescription>,
    files: Vec<CopyFile>,
    /// Whether this process has looked at what the target already holds.
    listed: bool,
}

/// The export machine.
#[derive(Default)]
pub struct Export {
    cache: Mutex<BTreeMap<JobId, Arc<Loaded>>>,
}

impl Export {
    fn cached(&self, job: JobId) -> Option<Arc<Loaded>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(&job).cloned()
    }

    fn keep(&self, job: JobId, loaded: Option<Arc<Loaded>>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Some(loaded) => cache.insert(job, loaded),
            None => cache.remove(&job),
        };
    }

    async fn load(&self, cx: &JobCx, state: &State) -> Result<Arc<Loaded>> {
        if let Some(found) = self.cached(cx.job) {
            return Ok(found);
        }
        let reads = reads(cx);
        let record = reads.record(&state.source().key()).await?;
        let record = record.ok_or_else(|| state.source().gone())?;
        let source = reads.source(&record).await?;
        let root = cx.objects.root();
        let mut files = files(&source, &state.bundle(cx)?, root)?;
        size_up(&reads, None, &mut files).await?;
        if digest(&files) != state.objects {
            let what = format!(
                "objects of snapshot {} have changed since the plan was made",
                state.snapshot
            );
            return Err(
                Error::new(ErrorKind::Conflict, what).fix("plan the export again and compare")
            );
        }
        let loaded = Arc::new(Loaded {
            segments: whole(&source, root)?,
            source,
            files,
            listed: false,
        });
        self.keep(cx.job, Some(loaded.clone()));
        Ok(loaded)
    }

    async fn look(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let mut bytes = [0; 16];
        cx.entropy.fill(&mut bytes);
        state.uuid = uuid(bytes);
        let reads = reads(cx);
        let found = export_plan::survey(&reads, state.snapshot, &state.target, &state.uuid).await?;
        found.refuse()?;
        let Some(source) = &found.source else {
            let what = "the survey passed without a snapshot";
            return Err(Error::new(ErrorKind::Internal, what));
        };
        let collection = source.metadata.collection.as_ref();
        if let Some(schema) = collection.and_then(|c| c.schema.as_ref()) {
            state.db_name.clone_from(&schema.db_name);
            state.collection_name.clone_from(&schema.name);
        }
        state.of = found.of;
        state.name.clone_from(&source.record.name);
        state.started = cx.clock.now();
        state.objects = digest(&found.files);
        state.files = found.files.len() as u64;
        state.bytes = found.files.iter().map(|f| f.size).sum();
        let segments = whole(source, cx.objects.root())?;
        let (metadata, _) = contents(cx, &state, source, &segments)?;
        state.fingerprint = fingerprint_of(&metadata, &segments, &cx.objects)?;
        state.plan = fingerprint::plan(
            &state.fingerprint,
            &state.uri_root(),
            found
                .files
                .iter()
                .map(|f| (f.from.0.as_str(), f.to.0.as_str(), f.size)),
        );
        state.pin = Some(HeldPin::draw(&*cx.entropy, cx.clock.now()));
        Ok(Next::Step(state.to(Step::Pin)))
    }

    /// One slice of copying. The first slice of a process looks at what is already there.
    async fn copy(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        state.pin = keep_pin(cx, state.source(), state.pin).await?;
        let loaded = self.load(cx, &state).await?;
        let (beside, bundle) = (state.beside(cx)?, state.bundle(cx)?);
        let files = &loaded.files;
        if !loaded.listed {
            beside.give_up_unfinished(&bundle.root().into()).await?;
            let there = at(cx, beside.read()).list(&bundle.files().into()).await?;
            state.done = Done::from_listing(files, &there);
            if state.done.count() > 0 {
                cx.note(format!(
                    "{} of {} files were there",
                    state.done.count(),
                    files.len()
                ));
            }
            cx.progress()
                .totals(loaded.segments.len() as u64, state.files, state.bytes);
            let listed = Loaded {
                source: loaded.source.clone(),
                segments: loaded.segments.clone(),
                files: files.clone(),
                listed: true,
            };
            self.keep(cx.job, Some(Arc::new(listed)));
        }
        let host = Host {
            cx,
            sources: &Sources::of(&cx.objects, None)?,
            beside: Some(&beside),
        };
        let (of, mut pin) = (state.source(), state.pin);
        let run = copy::run(&host, files, &mut state.done, copy::SLICE);
        let ran = while_pinned(cx, of, &mut pin, run).await;
        state.pin = pin;
        cx.files().idle();
        if ran.is_err() {
            // The step is taken again with the state journaled last: look at what is there, do not copy it twice.
            self.keep(cx.job, None);
        }
        let (segments, bytes) = standing(&loaded, &state.done);
        cx.progress()
            .set_done(segments, state.done.count().into(), bytes);
        let ran = match ran {
            Err(e) if !passes(cx, &e) => {
                tell(cx, &state, Told::ExportSnapshotJobExecuting, "").await?;
                return wait(cx, state, &e).await;
            }
            ran => ran?,
        };
        match ran {
            Ran::SourceMissing => {
                // Find them all, then fail for good.
                size_up(&reads(cx), None, &mut files.clone()).await?;
                let what = "a source object was missing for a moment and is there again";
                Err(Error::new(ErrorKind::Unreachable, what)
                    .fix("check whether the object store is consistent"))
            }
            Ran::More => {
                tell(cx, &state, Told::ExportSnapshotJobExecuting, "").await?;
                Ok(Next::Step(state))
            }
            Ran::All => {
                tell(cx, &state, Told::ExportSnapshotJobExecuting, "").await?;
                Ok(Next::Step(state.to(Step::Check)))
            }
        }
    }

    /// Size of every copied object, by listing; what is missing or short is copied again, a few times.
    async fn check(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let loaded = self.load(cx, &state).await?;
        let good = self.listed(cx, &state, &loaded).await?;
        if good.count() as usize == loaded.files.len() {
            return Ok(Next::Step(state.to(Step::Manifests)));
        }
        if state.round >= ROUNDS {
            state.round = 0;
            let why = short(&loaded.files, &good);
            state.done = good;
            return wait(cx, state.to(Step::Copy), &why).await;
        }
        cx.note(format!(
            "{} files are missing or short after copying: copied again",
            loaded.files.len() - good.count() as usize
        ));
        state.round += 1;
        state.done = good;
        Ok(Next::Step(state.to(Step::Copy)))
    }

    async fn listed(&self, cx: &JobCx, state: &State, loaded: &Loaded) -> Result<Done> {
        let beside = state.beside(cx)?;
        let files = state.bundle(cx)?.files();
        let there = at(cx, beside.read()).list(&files.into()).await?;
        Ok(Done::from_listing(&loaded.files, &there))
    }

    /// Manifests, several at once; then the metadata, staged: if it cannot be written whole, that is found out here.
    async fn manifests(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        state.pin = keep_pin(cx, state.source(), state.pin).await?;
        let loaded = self.load(cx, &state).await?;
        let (metadata, manifests) = contents(cx, &state, &loaded.source, &loaded.segments)?;
        let beside = &state.beside(cx)?;
        stream::iter(manifests)
            .map(|(key, bytes)| {
                async move { beside.put_object(&key, Bytes::from(bytes)).await }.boxed()
            })
            .buffer_unordered(cx.parallel() as usize)
            .try_collect::<()>()
            .await?;
        cx.check_cancel()?;
        let staging = state.bundle(cx)?.staging();
        put_and_compare(beside, &staging, write_metadata(&metadata)?).await?;
        tell(cx, &state, Told::ExportSnapshotJobPublishing, "").await?;
        Ok(Next::Step(state.to(Step::Publish)))
    }

    async fn publish(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        let loaded = self.load(cx, &state).await?;
        let (metadata, _) = contents(cx, &state, &loaded.source, &loaded.segments)?;
        let beside = state.beside(cx)?;
        let key = state.bundle(cx)?.metadata(state.of, state.snapshot);
        put_and_compare(&beside, &key, write_metadata(&metadata)?).await?;
        cx.note(format!("{BUNDLE}{}", state.uri()));
        Ok(Next::Published(state.to(Step::Verify)))
    }

    async fn verify(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        state.pin = keep_pin(cx, state.source(), state.pin).await?;
        match self.read_back(cx, &state).await {
            Ok(()) => Ok(Next::Step(state.to(Step::Unpin))),
            Err(e) if passes(cx, &e) => Err(e),
            // It is published and stays for whoever wants to know what became of it; nobody waits for it any more.
            Err(e) => {
                tell(cx, &state, Told::ExportSnapshotJobFailed, &e.to_string()).await?;
                release_pin(cx, state.source(), state.pin).await?;
                Err(e)
            }
        }
    }

    /// Reads the bundle as an external restore would, and compares it with what was to be written.
    async fn read_back(&self, cx: &JobCx, state: &State) -> Result<()> {
        let loaded = self.load(cx, state).await?;
        let bundle = state.bundle(cx)?;
        let beside = state.beside(cx)?;
        let inside = beside.read().rooted(&bundle.files());
        let mut record = loaded.source.record.clone();
        record.s3_location = bundle.metadata(state.of, state.snapshot).0;
        let read = at(cx, &inside).read_source(record).await?;
        let found = fingerprint_of(&read.metadata, &read.segments, &inside)?;
        if found != state.fingerprint {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the bundle reads differently from the snapshot it was made of",
            )
            .fix(format!("delete {} and export again", state.uri_root())));
        }
        let good = self.listed(cx, state, &loaded).await?;
        if good.count() as usize != loaded.files.len() {
            return Err(short(&loaded.files, &good));
        }
        cx.note(format!(
            "verified: {} segments and {} objects read back from {}",
            read.segments.len(),
            state.files,
            state.uri()
        ));
        Ok(())
    }
}

fn standing(loaded: &Loaded, done: &Done) -> (u64, u64) {
    let mut open = vec![false; loaded.segments.len()];
    let mut bytes = 0;
    for (i, file) in (0..).zip(&loaded.files) {
        if done.has(i) {
            bytes += file.size;
        } else if let Some(flag) = open.get_mut(file.group as usize) {
            *flag = true;
        }
    }
    (open.iter().filter(|o| !**o).count() as u64, bytes)
}

fn short(files: &[CopyFile], good: &Done) -> Error {
    let short: Vec<&str> = (0..)
        .zip(files)
        .filter(|(i, _)| !good.has(*i))
        .map(|(_, f)| f.to.0.as_str())
        .collect();
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "{} copied objects are missing or short: {}",
            short.len(),
            some_of(&short)
        ),
    )
    .fix("check the object store's health")
}

#[async_trait]
impl Job for Export {
    const KIND: JobKind = JobKind::Export;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let reads = Reads {
            meta: &cx.meta,
            objects: &cx.objects,
            roots: &cx.roots,
        };
        export_plan::plan(&reads, intent).await
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::Export { snapshot, .. } => vec![Lock::shared(format!("snapshot:{snapshot}"))],
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match &plan.intent {
            Intent::Export { snapshot, target } => Ok(State {
                snapshot: *snapshot,
                target: target.clone(),
                ..State::default()
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not an export plan")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        Some(state.of).filter(|c| c.0 != 0)
    }

    async fn step(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        match state.step {
            Step::Begin => self.look(cx, state).await,
            Step::Pin => {
                if let Some(pin) = state.pin {
                    set_pin(cx, state.source(), pin).await?;
                }
                Ok(Next::Step(state.to(Step::Record)))
            }
            Step::Record => {
                tell(cx, &state, Told::ExportSnapshotJobExecuting, "").await?;
                Ok(Next::Step(state.to(Step::Copy)))
            }
            Step::Copy => self.copy(cx, state).await,
            Step::Check => self.check(cx, state).await,
            Step::Manifests => self.manifests(cx, state).await,
            Step::Publish => self.publish(cx, state).await,
            Step::Verify => self.verify(cx, state).await,
            Step::Unpin => {
                tell(cx, &state, Told::ExportSnapshotJobCompleted, "").await?;
                let staging = state.bundle(cx)?.staging();
                state.beside(cx)?.delete_object(&staging).await?;
                release_pin(cx, state.source(), state.pin).await?;
                self.keep(cx.job, None);
                Ok(Next::Verified(state))
            }
            Step::UndoObjects | Step::UndoPin | Step::UndoRecord => Err(Error::new(
                ErrorKind::Internal,
                "an export that is being undone was asked to go on",
            )),
        }
    }

    async fn undo(&self, cx: &JobCx, state: State, why: &Error) -> Result<Next<State>> {
        self.keep(cx.job, None);
        export_undo::step(cx, state, why).await
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, at) = state.step.words();
        (text.to_owned(), at, STEPS)
    }
}

/// Waits for the operator: what is there is worth keeping.
async fn wait(cx: &JobCx, mut state: State, why: &Error) -> Result<Next<State>> {
    let (why, until) = stuck(cx, state.source(), &mut state.pin, why).await?;
    Ok(Next::Stuck(state, why, until))
}
