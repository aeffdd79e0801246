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
use serde::{Deserialize, Serialize};

use super::copy::{self, CopyFile, Done, Ran};
use super::copy_host::{Host, Sources};
use super::cx::{Beside, JobCx};
use super::export_files::{files, whole};
use super::export_plan::{self, place};
use super::export_record::tell;
use super::restore::reads;
use super::restore_copy::{digest, size_up};
use super::restore_map::Source;
use super::restore_pin::{HeldPin, keep_pin, release_pin, set_pin};
use super::restore_plan::some_of;
use super::restore_source::Reads;
use super::restore_state;
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::bundle::{Bundle, Contents, Relocation, uuid};
use crate::engine::format::fingerprint;
use crate::engine::format::keys::Key;
use crate::engine::format::pb::data::{
    ExportSnapshotJobState as Told, SegmentDescription, SnapshotMetadata,
};
use crate::engine::format::snapshot::write_metadata;
use crate::engine::ids::{CollectionId, JobId, ObjectKey, SnapshotId, UnixMs};
use crate::engine::model::jobs::JobKind;
use crate::engine::objects::ObjectRead;
use crate::engine::plan::{Intent, Plan};

/// Rounds of copying again what the check found wanting.
const ROUNDS: u32 = 3;
/// Objects deleted at once.
const DELETES: usize = 16;

/// Where the machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Look at everything once more; choose the pin and the prefix.
    #[default]
    Begin,
    /// Pin the snapshot.
    Pin,
    /// Write the record that others watch.
    Record,
    /// Copy objects.
    Copy,
    /// List what was copied.
    Check,
    /// Write the manifests and the staged metadata.
    Manifests,
    /// Write the metadata in its place.
    Publish,
    /// Read the bundle as a restore would.
    Verify,
    /// Release the snapshot, tidy up.
    Unpin,
    /// Undo: objects.
    UndoObjects,
    /// Undo: the pin.
    UndoPin,
    /// Undo: say so in the record.
    UndoRecord,
}

/// What is journaled. Never a credential: `target` is a key or a URI without user, password and query.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Snapshot.
    pub snapshot: SnapshotId,
    /// Its collection.
    pub of: CollectionId,
    /// Its name.
    pub name: String,
    /// Its collection's database, by name.
    pub db_name: String,
    /// Its collection, by name.
    pub collection_name: String,
    /// Where to, as the operator wrote it.
    pub target: String,
    /// Of this export alone.
    pub uuid: String,
    /// The step to take.
    pub step: Step,
    /// Fingerprint of the snapshot as it lies in the bundle.
    pub fingerprint: String,
    /// Fingerprint of the plan, for the record.
    pub plan: String,
    /// Digest of all source objects with their sizes when planned.
    pub objects: String,
    /// The pin.
    pub pin: Option<HeldPin>,
    /// Begin.
    pub started: UnixMs,
    /// Files copied.
    pub done: Done,
    /// Files in all.
    pub files: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Rounds of copying.
    pub round: u32,
}

impl State {
    fn to(mut self, step: Step) -> Self {
        self.step = step;
        self
    }

    /// What others read of where the bundle is: in the operator's own words.
    pub(super) fn uri_root(&self) -> String {
        Bundle::new(&self.target, &self.uuid).root().to_owned()
    }

    /// The metadata's URI.
    pub(super) fn uri(&self) -> String {
        Bundle::at(&self.uri_root())
            .metadata(self.of, self.snapshot)
            .0
    }

    fn bundle(&self, cx: &JobCx) -> Result<Bundle> {
        let (_, prefix) = place(&cx.objects, &self.target)?;
        Ok(Bundle::new(&prefix, &self.uuid))
    }

    fn beside(&self, cx: &JobCx) -> Result<Beside> {
        let (there, _) = place(&cx.objects, &self.target)?;
        cx.beside(&there)
    }

    /// The pin's part, as the functions that keep it know it.
    fn held(&self) -> restore_state::State {
        restore_state::State {
            snapshot: self.snapshot,
            of: self.of,
            pin: self.pin,
            ..restore_state::State::default()
        }
    }

    async fn keep_pin(mut self, cx: &JobCx) -> Result<Self> {
        self.pin = keep_pin(cx, self.held()).await?.pin;
        Ok(self)
    }
}

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
        let key = Key::Snapshot(state.of, state.snapshot);
        let record = reads.record(&key).await?.ok_or_else(|| {
            let what = format!(
                "snapshot {} of collection {} is gone",
                state.snapshot, state.of
            );
            Error::new(ErrorKind::NotFound, what).fix("choose another snapshot")
        })?;
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
    async fn copy(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        let mut state = state.keep_pin(cx).await?;
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
        let ran = copy::run(&host, files, &mut state.done, copy::SLICE).await;
        cx.files().idle();
        if ran.is_err() {
            // The step is taken again with the state journaled last: look at what is there, do not copy it twice.
            self.keep(cx.job, None);
        }
        let ran = ran?;
        let (segments, bytes) = standing(&loaded, &state.done);
        cx.progress()
            .set_done(segments, state.done.count().into(), bytes);
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
            return Err(short(&loaded.files, &good));
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
    async fn manifests(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        let state = state.keep_pin(cx).await?;
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
        cx.note(format!("bundle: {}", state.uri()));
        Ok(Next::Published(state.to(Step::Verify)))
    }

    /// Reads the bundle as an external restore would, and compares it with what was to be written.
    async fn verify(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        let state = state.keep_pin(cx).await?;
        let loaded = self.load(cx, &state).await?;
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
            .fix("delete it and export again"));
        }
        let good = self.listed(cx, &state, &loaded).await?;
        if good.count() as usize != loaded.files.len() {
            return Err(short(&loaded.files, &good));
        }
        cx.note(format!(
            "verified: {} segments and {} objects read back from {}",
            read.segments.len(),
            state.files,
            state.uri()
        ));
        Ok(Next::Step(state.to(Step::Unpin)))
    }

    async fn undo_objects(&self, cx: &JobCx, state: &State) -> Result<()> {
        if state.uuid.is_empty() {
            return Ok(());
        }
        let (beside, bundle) = (state.beside(cx)?, state.bundle(cx)?);
        // The commit mark first: nobody must find it beside half a bundle.
        let mark = bundle.metadata(state.of, state.snapshot);
        beside.delete_object(&mark).await?;
        let root: ObjectKey = bundle.root().into();
        beside.give_up_unfinished(&root).await?;
        let found = at(cx, beside.read()).list(&root).await?;
        let all = found.len();
        let beside = &beside;
        stream::iter(found.into_keys())
            .map(|key| async move { beside.delete_object(&key).await.map(drop) }.boxed())
            .buffer_unordered(DELETES)
            .try_collect::<()>()
            .await?;
        cx.note(format!("undo: {all} objects removed"));
        Ok(())
    }
}

/// Reads of another store.
fn at<'a>(cx: &'a JobCx, objects: &'a ObjectRead) -> Reads<'a> {
    Reads {
        meta: &*cx.meta,
        objects,
        roots: &cx.roots,
    }
}

fn contents(
    cx: &JobCx,
    state: &State,
    source: &Source,
    segments: &[SegmentDescription],
) -> Result<Contents> {
    let own = (cx.objects.root(), cx.objects.bucket());
    // The record in the metadata store is the newer one: names and boundary are the same, and it is what is being exported.
    let metadata = &source.metadata;
    let bundle = state.bundle(cx)?;
    bundle.contents(metadata, segments, own, &state.uri())
}

/// The snapshot's fingerprint, its paths relative to where its data lies: below the root of `objects`.
fn fingerprint_of(
    metadata: &SnapshotMetadata,
    segments: &[SegmentDescription],
    objects: &ObjectRead,
) -> Result<String> {
    let here = Relocation::new(objects.root(), "");
    let mut inside = segments.to_vec();
    for segment in &mut inside {
        here.segment(segment, objects.bucket())?;
        if segment.storage_version >= 3 {
            segment.binlogs.clear();
        }
    }
    Ok(fingerprint::snapshot(metadata, &inside))
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

async fn put_and_compare(beside: &Beside, key: &ObjectKey, bytes: Vec<u8>) -> Result<()> {
    let bytes = Bytes::from(bytes);
    beside.put_object(key, bytes.clone()).await?;
    if beside.read().get(key).await? == bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("object {key} does not hold what was just written to it"),
    )
    .fix("check the object store's health"))
}

#[async_trait]
impl Job for Export {
    const KIND: JobKind = JobKind::Export;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let reads = Reads {
            meta: &*cx.meta,
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
                    set_pin(cx, state.held().source(), pin).await?;
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
                release_pin(cx, &state.held()).await?;
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
        match state.step {
            Step::UndoObjects => {
                self.undo_objects(cx, &state).await?;
                Ok(Next::Step(state.to(Step::UndoPin)))
            }
            Step::UndoPin => {
                release_pin(cx, &state.held()).await?;
                Ok(Next::Step(state.to(Step::UndoRecord)))
            }
            Step::UndoRecord => {
                // Without a start there was no record.
                if state.started != UnixMs::default() {
                    tell(cx, &state, Told::ExportSnapshotJobFailed, &why.to_string()).await?;
                }
                Ok(Next::Undone(state))
            }
            _ => Ok(Next::Step(state.to(Step::UndoObjects))),
        }
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, at) = match state.step {
            Step::Begin => ("reading the snapshot", 0),
            Step::Pin => ("pinning the snapshot", 1),
            Step::Record => ("recording the job", 2),
            Step::Copy => ("copying objects", 3),
            Step::Check => ("checking copied objects", 4),
            Step::Manifests => ("writing manifests", 5),
            Step::Publish => ("writing the metadata", 6),
            Step::Verify => ("reading the bundle back", 7),
            Step::Unpin => ("releasing the snapshot", 8),
            Step::UndoObjects => ("undo: removing what was copied", 0),
            Step::UndoPin => ("undo: releasing the snapshot", 0),
            Step::UndoRecord => ("undo: labelling the job", 0),
        };
        (text.to_owned(), at, 9)
    }
}
