//! What a step may touch: reads of everything, writes only through the executor.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::filebook::FileBook;
use super::meter::ProgressMeter;
use super::pace::Pace;
use crate::engine::clock::{Clock, Entropy};
use crate::engine::coordinator::{Coordinator, Service};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, ObjectKey};
use crate::engine::meta::MetaReader;
use crate::engine::meta::scope::Scope;
use crate::engine::model::jobs::{Copies, JobInfo};
use crate::engine::objects::{Copied, ObjectRead, Origin};
use crate::engine::plan::Intent;
use crate::engine::plan::execute::{Change, Committed, Executor, IdRange, Who};
use crate::engine::profile::{Elsewhere, Roots};

/// Notes kept of one job; the oldest go first.
pub const NOTES: usize = 200;
/// Bytes of one note or error; 200 notes fit a transaction with the record around them.
const TEXT: usize = 4 * 1024;
/// Copies at once until somebody says otherwise.
pub const PARALLEL: u32 = 16;

/// A text short enough for the journal.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > TEXT {
        let all = text.len();
        let mut at = TEXT - 64;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
        let more = format!("… ({} bytes more)", all - at);
        text.push_str(&more);
    }
    text
}

/// What the outside sees and sets while a job runs.
pub struct Dials {
    /// Counters.
    pub meter: ProgressMeter,
    /// Copies, file by file.
    pub files: FileBook,
    notes: Mutex<Vec<String>>,
    parallel: AtomicU32,
    /// Somebody asked for it.
    asked: AtomicBool,
    /// Bytes a second; 0 = no limit.
    throttle: AtomicU64,
    /// Deletes and moves a second; 0 = no limit.
    pace: AtomicU64,
    paced: Pace,
    /// Told of every movement.
    pub changed: Arc<Notify>,
    clock: Arc<dyn Clock>,
    /// When a store began to refuse us, [`Clock::mono`].
    refused: Mutex<Option<Duration>>,
}

/// How long a job bears that a store refuses it: a key that is being rotated, a rule that is being mended. What is refused longer
/// is meant so.
const REFUSED: Duration = Duration::from_mins(2);

impl Dials {
    /// Fresh ones; `changed` is told of every movement.
    pub fn new(clock: Arc<dyn Clock>, changed: Arc<Notify>) -> Self {
        Self {
            meter: ProgressMeter::new(clock.clone(), changed.clone()),
            files: FileBook::new(clock.clone()),
            notes: Mutex::default(),
            clock,
            refused: Mutex::default(),
            parallel: AtomicU32::new(PARALLEL),
            asked: AtomicBool::new(false),
            throttle: AtomicU64::new(0),
            pace: AtomicU64::new(0),
            paced: Pace::default(),
            changed,
        }
    }

    /// Whether what failed may be tried again although we were refused.
    pub fn bears(&self, e: &Error) -> bool {
        if e.kind() != ErrorKind::Denied {
            return false;
        }
        let now = self.clock.mono();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_sub(*refused.get_or_insert(now)) < REFUSED
    }

    /// A step went through.
    pub fn relieved(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Adds a note, unless it is the last one again.
    pub fn note(&self, text: String) {
        let text = cut(text);
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.last() != Some(&text) {
            if notes.len() >= NOTES {
                notes.remove(0);
            }
            notes.push(text);
        }
        self.changed.notify_one();
    }

    /// All notes.
    pub fn notes(&self) -> Vec<String> {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Continues with the journaled ones.
    pub fn set_notes(&self, notes: Vec<String>) {
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    }

    /// Copies at once.
    pub fn parallel(&self) -> u32 {
        self.parallel.load(Ordering::Relaxed)
    }

    /// What the outside sees of the copies: nothing of a job that copies no files.
    pub fn copies(&self) -> Copies {
        Copies {
            parallel: self.parallel(),
            limit: self.throttle(),
            pace: self.pace(),
            ..self.files.read()
        }
    }

    /// Copies at once, if somebody asked for a number.
    pub fn asked_parallel(&self) -> Option<u32> {
        let asked = self.asked.load(Ordering::Relaxed);
        asked.then(|| self.parallel())
    }

    /// Copies at once, 1 to 256.
    pub fn set_parallel(&self, n: u32) {
        self.asked.store(true, Ordering::Relaxed);
        self.parallel.store(n.clamp(1, 256), Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Bytes a second.
    pub fn throttle(&self) -> Option<u64> {
        Some(self.throttle.load(Ordering::Relaxed)).filter(|r| *r > 0)
    }

    /// Bytes a second.
    pub fn set_throttle(&self, rate: Option<u64>) {
        self.throttle.store(rate.unwrap_or(0), Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Deletes and moves a second.
    pub fn pace(&self) -> Option<u64> {
        Some(self.pace.load(Ordering::Relaxed)).filter(|r| *r > 0)
    }

    /// Deletes and moves a second.
    pub fn set_pace(&self, rate: Option<u64>) {
        self.pace.store(rate.unwrap_or(0), Ordering::Relaxed);
        self.changed.notify_one();
    }
}

/// What a job may ask of its runner: other jobs, each with a record, locks and an end of its own.
#[async_trait]
pub trait Children: Send + Sync {
    /// The job that answers this intent, begun after `parent` and not failed; else plans and begins one, its copies held to
    /// `rate` bytes a second. So a step that is taken again after a crash finds the job it began.
    async fn begin(&self, parent: JobId, intent: Intent, rate: Option<u64>) -> Result<JobId>;

    /// Waits until it has ended.
    async fn ended(&self, job: JobId) -> Result<Arc<JobInfo>>;
}

/// The world of one job.
#[derive(Clone)]
pub struct JobCx {
    /// The job.
    pub job: JobId,
    /// Reads of the metadata.
    pub meta: MetaReader,
    /// Reads of the objects.
    pub objects: ObjectRead,
    /// Key roots.
    pub roots: Roots,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Set when the job is asked to stop: a step looks at it between its own parts.
    pub cancel: CancellationToken,
    who: Who,
    executor: Arc<Executor>,
    dials: Arc<Dials>,
    children: Option<Arc<dyn Children>>,
    coordinator: Option<Arc<Coordinator>>,
}

impl JobCx {
    /// For `job`, under the plan with this hash. The executor's scope is that of the step: when it is cancelled the step is to stop. Its
    /// fence must be held before anything is written.
    pub fn new(executor: Arc<Executor>, job: JobId, plan: String, dials: Arc<Dials>) -> Self {
        Self {
            job,
            meta: executor.reader(),
            objects: executor.objects().clone(),
            roots: executor.roots().clone(),
            clock: executor.clock().clone(),
            entropy: executor.entropy().clone(),
            cancel: executor.scope().token().clone(),
            who: Who {
                job,
                plan,
                epoch: None,
            },
            executor,
            dials,
            children: None,
            coordinator: None,
        }
    }

    /// The same, resting on what was read under this epoch: under another one nothing is written (`Fenced`).
    #[must_use]
    pub fn bound_to(mut self, epoch: u64) -> Self {
        self.who.epoch = Some(epoch);
        self
    }

    /// The epoch is still the one that the job's state belongs to.
    fn bound(&self) -> Result<()> {
        let fence = self.executor.fence();
        match self.who.epoch {
            Some(epoch) if fence.epoch() != Some(epoch) => Err(fence.lost()),
            _ => Ok(()),
        }
    }

    /// The same with a runner to ask for other jobs.
    #[must_use]
    pub fn with_children(mut self, children: Arc<dyn Children>) -> Self {
        self.children = Some(children);
        self
    }

    /// The same with a coordinator for broadcasts.
    #[must_use]
    pub fn with_coordinator(mut self, coordinator: Arc<Coordinator>) -> Self {
        self.coordinator = Some(coordinator);
        self
    }

    /// The root's channels and broadcasts, open under the epoch of this job.
    pub async fn service(&self) -> Result<Arc<Service>> {
        self.bound()?;
        let coordinator = self
            .coordinator
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "this job was given no coordinator"))?;
        let open = coordinator.service().await?;
        self.bound()?;
        Ok(open)
    }

    /// The scope of the step.
    pub fn scope(&self) -> &Scope {
        self.executor.scope()
    }

    /// On whose behalf it writes.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// The runner, for a job that has others do a part of it.
    pub fn children(&self) -> Result<&dyn Children> {
        self.bound()?;
        self.children
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "this job was given no runner to ask"))
    }

    /// Makes a change happen, or finds that it has (by its name, from this job). `Conflict` names the key that moved and its
    /// revision; `Fenced` says who is in the way.
    pub async fn commit(&self, change: Change) -> Result<Committed> {
        self.executor.commit(&self.who, &change).await
    }

    /// The same for records that this job made itself and that nobody else writes: what they held is not kept.
    pub async fn commit_own(&self, change: Change) -> Result<Committed> {
        self.executor.commit_own(&self.who, &change).await
    }

    /// Makes the object `key` consist of `bytes`.
    pub async fn put_object(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        self.bound()?;
        self.executor.put_object(key, bytes).await
    }

    /// One try to make `to` a copy of an object of `source`, compared when this returns: the copy pool repeats.
    pub async fn copy_object(
        &self,
        source: &ObjectRead,
        from: Origin<'_>,
        to: &ObjectKey,
    ) -> Result<Copied> {
        self.executor.copy_object(None, source, from, to).await
    }

    /// Removes one object; `false` when it was not there.
    pub async fn delete_object(&self, key: &ObjectKey) -> Result<bool> {
        self.bound()?;
        self.executor.delete_object(key).await
    }

    /// Gives up uploads and copies to keys that are `mine`, which a crash of this job left unfinished, and says how many.
    pub async fn give_up_unfinished(
        &self,
        mine: &(dyn Fn(&ObjectKey) -> bool + Sync),
    ) -> Result<()> {
        self.bound()?;
        let root = ObjectKey(self.objects.root().to_owned());
        let found = self.executor.give_up_unfinished(None, &root, mine).await?;
        self.say_given_up(found);
        Ok(())
    }

    fn say_given_up(&self, found: Option<usize>) {
        if let Some(n) = found.filter(|n| *n > 0) {
            self.note(format!(
                "{n} copies that a crash had left unfinished were given up"
            ));
        }
    }

    /// The store that `there` names, with the same right to write.
    pub fn beside(&self, there: &Elsewhere) -> Result<Beside> {
        let place = self.executor.beside(there)?;
        Ok(Beside {
            cx: self.clone(),
            place,
        })
    }

    /// New ids from the cluster's allocator.
    pub async fn take_ids(&self, n: u32) -> Result<IdRange> {
        self.executor.take_ids(&self.who, n).await
    }

    /// Counters.
    pub fn progress(&self) -> &ProgressMeter {
        &self.dials.meter
    }

    /// Copies, file by file.
    pub fn files(&self) -> &FileBook {
        &self.dials.files
    }

    /// Says something that the operator should know. Journaled with the next step.
    pub fn note(&self, text: impl Into<String>) {
        self.dials.note(text.into());
    }

    /// Whether what failed may be tried again although a store refused us ([`Dials::bears`]).
    pub fn bears(&self, e: &Error) -> bool {
        self.dials.bears(e)
    }

    /// How many copies may run at once; may change while they do.
    pub fn parallel(&self) -> u32 {
        self.dials.parallel()
    }

    /// The same, for requests that copy nothing.
    pub fn at_once(&self) -> usize {
        usize::try_from(self.parallel()).unwrap_or(1).max(1)
    }

    /// Bytes a second; may change while copies run.
    pub fn throttle(&self) -> Option<u64> {
        self.dials.throttle()
    }

    /// Waits until one more object of so many bytes may be deleted or moved. The rates may change meanwhile; `Cancelled` once the job
    /// has been asked to stop.
    pub async fn paced(&self, bytes: u64) -> Result<()> {
        let dials = &self.dials;
        loop {
            self.check_cancel()?;
            let now = self.clock.mono();
            match dials.paced.take(now, dials.pace(), dials.throttle(), bytes) {
                None => return Ok(()),
                Some(wait) => self.clock.sleep(wait).await,
            }
        }
    }

    /// `Cancelled` once the job has been asked to stop.
    pub fn check_cancel(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            Err(Error::new(ErrorKind::Cancelled, "stopped on request"))
        } else {
            Ok(())
        }
    }

    /// Who we are, for records.
    pub fn actor(&self) -> &str {
        self.executor.actor()
    }

    /// Our own keys, for jobs that read what another left behind.
    pub fn keys(&self) -> &crate::engine::plan::journal::Keys {
        self.executor.keys()
    }
}

/// Another store, for jobs that write outside the cluster's own.
#[derive(Clone)]
pub struct Beside {
    cx: JobCx,
    place: crate::engine::plan::blobs::Beside,
}

impl Beside {
    /// The right to read it.
    pub fn read(&self) -> &ObjectRead {
        self.place.read()
    }

    /// As [`JobCx::put_object`].
    pub async fn put_object(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        self.cx.bound()?;
        let executor = &self.cx.executor;
        executor.put_at(Some(&self.place), key, bytes).await
    }

    /// As [`JobCx::copy_object`].
    pub async fn copy_object(
        &self,
        source: &ObjectRead,
        from: Origin<'_>,
        to: &ObjectKey,
    ) -> Result<Copied> {
        let executor = &self.cx.executor;
        executor
            .copy_object(Some(&self.place), source, from, to)
            .await
    }

    /// As [`JobCx::delete_object`].
    pub async fn delete_object(&self, key: &ObjectKey) -> Result<bool> {
        self.cx.bound()?;
        let executor = &self.cx.executor;
        executor.delete_at(Some(&self.place), key).await
    }

    /// As [`JobCx::give_up_unfinished`], for everything below `prefix`.
    pub async fn give_up_unfinished(&self, prefix: &ObjectKey) -> Result<()> {
        self.cx.bound()?;
        let executor = &self.cx.executor;
        let found = executor
            .give_up_unfinished(Some(&self.place), prefix, &|_| true)
            .await?;
        self.cx.say_given_up(found);
        Ok(())
    }
}
