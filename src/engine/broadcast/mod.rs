//! The broadcaster: one message to many channels, then callbacks, as one thing that either happens or never began
//! (`spec/lifecycle.md` §1, chapter II).
//!
//! ```text
//! lock keys → take an id → persist PENDING → append to each channel → per channel: callback, then record acked
//!           → callback of all → persist TOMBSTONE → release keys → answer
//! ```
//!
//! - From the moment that the record is persisted the operation happens, whoever stops waiting for it.
//! - Each task has one driver, which nobody can cancel but the end of the service. Whatever is told to a task (an append's place, an
//!   observation, a moved checkpoint) is kept in its state, and the driver looks at the whole state in every round: nothing told can be
//!   missed (II-9).
//! - A channel is acked only after its own callback succeeded (II-5). Both callbacks run at least once: they must be idempotent. One that
//!   commits through `plan` under the broadcast's id as the job gets "at most once" from the step marker.
//! - With `ack_sync_up` a data channel is acked when its checkpoint has reached the message, or when the channel is dropped. There is no
//!   deadline; [`Shown::waiting`] says from the first moment what it waits for.
//! - After a crash, copies that are in a log already are found there, not appended again.
//!
//! Lawful users: the DDL callbacks (through [`Callbacks`]), the data path (through [`Consumer`]). Not done here: records that arrive from
//! another cluster by replication are not made; existing ones are driven to their end.

mod driver;
mod follow;
mod open;
mod pace;
mod truncate;
mod view;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::error::{Error, ErrorKind, Result};
use super::format::message::{Draft, Stored};
use super::format::pb::messages::{Message, MessageType};
use super::format::pb::msg::MsgPosition;
use super::ids::{BroadcastId, JobId, MetaRev, Term, UnixMs, VChannel};
use super::meta::scope::Scope;
use super::model::broadcast::{
    AckedAt, BroadcastsView, Locks, Resource, ResourceKeys, Shown, Task, TombstoneLimits,
    Tombstones, Turn,
};
use super::plan::execute::{Executor, Who};
use super::wal::Wal;
use super::wal::channels::Channels;
use super::wal::checkpoints::Checkpoints;

/// One channel's acknowledgement.
#[derive(Clone, Debug)]
pub struct Acked {
    /// The broadcast.
    pub id: BroadcastId,
    /// Its message, as its record keeps it.
    pub message: Message,
    /// The channel.
    pub channel: VChannel,
    /// It is the control channel.
    pub control: bool,
    /// Where the copy is: act at this tick.
    pub at: AckedAt,
    /// On whose behalf: the broadcast's own, which outlives whoever asked for it.
    pub scope: Scope,
    /// As of [`AllAcked::who`].
    pub who: Who,
}

/// Every channel's.
#[derive(Clone, Debug)]
pub struct AllAcked {
    /// The broadcast.
    pub id: BroadcastId,
    /// Its message, as its record keeps it.
    pub message: Message,
    /// In the order of its header: where each copy is. A tick of 0 is unknown, not a time.
    pub copies: Vec<(VChannel, AckedAt)>,
    /// The job that asked for it; 0 when a Milvus did.
    pub asked_by: JobId,
    /// On whose behalf it was begun, with the broadcast's id as the job: so that what the callback commits is one change however often
    /// it is called.
    pub who: Who,
    /// As of [`Acked`].
    pub scope: Scope,
}

/// What a broadcast does. Each at least once: the same call again must come to the same.
#[async_trait]
pub trait Callbacks: Send + Sync {
    /// One channel has it (*ack-once*). Several channels at a time; an error is tried again.
    async fn ack_once(&self, acked: &Acked) -> Result<()>;

    /// All have it (*ack-all*): alone among those that share a key, in the order of the control channel. An error is tried again
    /// without end; "already gone" is success.
    async fn ack_all(&self, all: &AllAcked) -> Result<()>;
}

/// The data path of the channels: takes the messages in, and knows what it has not written to objects yet.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// A log is open, and nothing of it has been taken in. What this appends comes before anything that is appended later; an error is
    /// tried again.
    async fn begin(&self, log: &dyn Wal) -> Result<()> {
        let _ = log;
        Ok(())
    }

    /// The next message of a physical channel, in order, from a log that is held under `term`. After a crash the same ones again:
    /// idempotent. An error is tried again, as long as the log has not ended.
    async fn take(&self, term: Term, message: &Stored) -> Result<()>;

    /// The earliest position of a virtual channel that is taken in and not in objects: its checkpoint stays there. When that is written,
    /// the data path itself reports the new one ([`Checkpoints::update`]).
    fn unsynced(&self, channel: &VChannel) -> Option<MsgPosition>;
}

/// No data path: whatever is on the log is all there is.
pub struct NoData;

#[async_trait]
impl Consumer for NoData {
    async fn take(&self, _: Term, _: &Stored) -> Result<()> {
        Ok(())
    }

    fn unsynced(&self, _: &VChannel) -> Option<MsgPosition> {
        None
    }
}

/// What is to be broadcast, under keys that are held.
#[derive(Clone, Debug)]
pub struct Order {
    /// Type, header and body.
    pub draft: Draft,
    /// Where it goes; the control channel among them, for all but imports and manual flushes (§II.2 rule 6).
    pub channels: Vec<VChannel>,
    /// Data channels are acked by their checkpoints.
    pub ack_sync_up: bool,
}

/// What a [`Broadcaster`] is made of. The executor must own the root as long as it runs.
pub struct Parts {
    /// The writer.
    pub executor: Arc<Executor>,
    /// The root's channels.
    pub channels: Arc<Channels>,
    /// Their checkpoints.
    pub checkpoints: Arc<Checkpoints>,
    /// What broadcasts do.
    pub callbacks: Arc<dyn Callbacks>,
    /// The data path.
    pub consumer: Arc<dyn Consumer>,
    /// How long finished tasks are remembered.
    pub tombstones: TombstoneLimits,
}

/// What is kept beside a record: Milvus's has no field for it. Absent for a task that a Milvus began.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    /// Begin.
    since: UnixMs,
    /// Plan that was confirmed.
    plan: String,
    /// Job that asked for it.
    job: JobId,
}

/// The broadcaster of a root. Cheap to share.
pub struct Broadcaster {
    inner: Arc<Inner>,
    /// Of whoever asks through it.
    scope: Scope,
    /// Dropping it ends the service.
    is_last: bool,
}

struct Inner {
    parts: Parts,
    state: Mutex<State>,
    /// Counts what may let somebody go: a place given up, a task ended.
    moved: watch::Sender<u64>,
    /// Counts what a screen would show differently.
    changed: watch::Sender<u64>,
    stop: CancellationToken,
    /// Why it ended by itself.
    ended: watch::Sender<Option<Error>>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    /// Who holds the resource keys, and who waits.
    keys: Locks,
    /// Whose callback of all runs, and who waits.
    order: Locks,
    /// Unfinished tasks.
    tasks: BTreeMap<BroadcastId, Arc<Cell>>,
    tombstones: Tombstones,
    /// Revisions of the tombstones' records.
    buried: BTreeMap<BroadcastId, MetaRev>,
    /// Why a log is not followed further now, by physical channel.
    troubles: BTreeMap<String, Error>,
}

/// An unfinished task.
struct Cell {
    task: Mutex<Task>,
    /// Bound to the task.
    executor: Arc<Executor>,
    note: Note,
    /// Something was told to it.
    told: Notify,
    /// Its place among the holders of keys; none for a replicated one.
    turn: Option<Turn>,
    doing: Mutex<Doing>,
    done: watch::Sender<bool>,
    /// The service's.
    changed: watch::Sender<u64>,
}

/// What its driver is at, for the eye.
#[derive(Clone, Debug, Default)]
struct Doing {
    retries: u32,
    error: Option<(&'static str, Option<VChannel>, Error)>,
    order: Option<Turn>,
    calling: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One more.
fn count(changes: &watch::Sender<u64>) {
    changes.send_modify(|n| *n += 1);
}

impl Cell {
    fn new(
        executor: Arc<Executor>,
        task: Task,
        note: Note,
        turn: Option<Turn>,
        changed: watch::Sender<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            task: Mutex::new(task),
            executor,
            note,
            told: Notify::new(),
            turn,
            doing: Mutex::default(),
            done: watch::Sender::new(false),
            changed,
        })
    }

    fn task(&self) -> MutexGuard<'_, Task> {
        lock(&self.task)
    }

    fn who(&self, id: BroadcastId) -> Who {
        Who {
            job: JobId(id.0),
            plan: self.note.plan.clone(),
            epoch: None,
        }
    }

    /// A try failed: what it was at, of which channel, and why.
    fn fails(&self, at: &'static str, channel: Option<VChannel>, e: Error) {
        let mut doing = lock(&self.doing);
        doing.retries = doing.retries.saturating_add(1);
        doing.error = Some((at, channel, e));
        drop(doing);
        count(&self.changed);
    }

    fn succeeds(&self) {
        let mut doing = lock(&self.doing);
        let failed = doing.error.is_some();
        (doing.retries, doing.error) = (0, None);
        drop(doing);
        if failed {
            count(&self.changed);
        }
    }
}

/// Keys that are held until it is dropped, or until the task that it is given to has ended.
pub struct Guard {
    inner: Arc<Inner>,
    turn: Option<Turn>,
    keys: ResourceKeys,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.inner.leave(turn);
        }
    }
}

/// A task that exists: it will happen.
pub struct Ticket {
    cell: Arc<Cell>,
    inner: Arc<Inner>,
}

impl Ticket {
    /// The broadcast.
    #[must_use]
    pub fn id(&self) -> BroadcastId {
        self.cell.task().id()
    }

    /// Waits until the callback has succeeded and the tombstone is persisted; where each copy is. `OutcomeUnknown` when the service ends
    /// first: the next one finishes it. Not waiting changes nothing.
    pub async fn done(&self) -> Result<Vec<(VChannel, AckedAt)>> {
        let mut done = self.cell.done.subscribe();
        let mut ended = self.inner.ended.subscribe();
        loop {
            if *done.borrow_and_update() {
                let task = self.cell.task();
                let copies = task.copies().iter();
                return Ok(copies
                    .filter_map(|c| Some((c.channel.clone(), c.acked?)))
                    .collect());
            }
            if let Some(why) = ended.borrow_and_update().clone() {
                return Err(Error::new(
                    ErrorKind::OutcomeUnknown,
                    format!("broadcast {} is persisted and not finished", self.id()),
                )
                .caused_by(why)
                .fix("it is taken up again by whoever owns the root next"));
            }
            tokio::select! {
                _ = done.changed() => {}
                _ = ended.changed() => {}
            }
        }
    }
}

impl Broadcaster {
    /// The same on behalf of another, as long as the first one lives. What is begun by it outlives the scope.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            inner: self.inner.clone(),
            scope: scope.clone(),
            is_last: false,
        }
    }

    /// Waits for the keys, in the order in which they were asked for, as long as the scope lasts. Dropping the wait gives the place up.
    pub async fn lock(&self, keys: ResourceKeys) -> Result<Guard> {
        let mut moved = self.inner.moved.subscribe();
        let turn = self.inner.state().keys.enter(keys.clone());
        // Whoever is in the way blocks one more now.
        self.inner.seen();
        let guard = Guard {
            inner: self.inner.clone(),
            turn: Some(turn),
            keys,
        };
        loop {
            moved.borrow_and_update();
            self.inner.alive()?;
            if self.inner.state().keys.is_granted(turn) {
                return Ok(guard);
            }
            tokio::select! {
                _ = moved.changed() => {}
                () = self.inner.stop.cancelled() => {}
                why = self.scope.over() => return Err(why),
            }
        }
    }

    /// Takes the keys now, or nothing: `Busy` names the one in the way.
    pub fn try_lock(&self, keys: ResourceKeys) -> Result<Guard> {
        self.inner.alive()?;
        let mut state = self.inner.state();
        match state.keys.try_enter(keys.clone()) {
            Ok(turn) => Ok(Guard {
                inner: self.inner.clone(),
                turn: Some(turn),
                keys,
            }),
            Err((by, over)) => Err(in_the_way(&state, by, &over)),
        }
    }

    /// Persists a broadcast under the keys that `guard` holds, and begins it. When this returns, it will happen. An error says that it was
    /// not created, except `OutcomeUnknown`; so does a caller that leaves before the answer know nothing.
    pub async fn broadcast(&self, who: &Who, guard: Guard, order: Order) -> Result<Ticket> {
        let (inner, scope) = (&self.inner, &self.scope);
        inner.alive()?;
        let executor = inner.parts.executor.within(scope);
        // After the keys: ids of those that exclude each other grow in their order (II-2).
        let id = BroadcastId(executor.take_ids(who, 1).await?.first);
        let Order {
            draft,
            channels,
            ack_sync_up,
        } = order;
        let task = Task::new(id, draft, &channels, &guard.keys, ack_sync_up)?;
        let note = Note {
            since: executor.clock().now(),
            plan: who.plan.clone(),
            job: who.job,
        };
        let (told, created) = oneshot::channel();
        scope.check()?;
        // A task of its own: a caller that leaves must not leave a record without its keys.
        // Resting on what was read under an epoch, it is not created under another one.
        let epoch = who.epoch;
        let own = inner.bound(&task, Some(scope));
        inner.spawn(inner.clone().create(own, task, note, guard, epoch, told));
        let unknown =
            |what: String, fix: &str| Err(Error::new(ErrorKind::OutcomeUnknown, what).fix(fix));
        match scope.wait(created).await {
            Ok(Ok(created)) => created,
            Ok(Err(_)) => unknown(
                format!("the broadcaster ended while broadcast {id} was being persisted"),
                "if it was, whoever owns the root next finishes it",
            ),
            Err(why) => unknown(
                format!("{} while broadcast {id} was being persisted", why.what()),
                "look for it in the list of broadcasts before anything else is decided",
            ),
        }
    }

    /// The broadcast of this type that a job has begun, unfinished or still remembered: a job that crashed between its begin and its
    /// journal must not begin a second one.
    pub async fn begun_by(&self, job: JobId, kind: MessageType) -> Result<Option<BroadcastId>> {
        self.inner.begun_by(job, kind).await
    }

    /// An unfinished broadcast; `None` when it is finished.
    #[must_use]
    pub fn ticket(&self, id: BroadcastId) -> Option<Ticket> {
        let cell = self.inner.state().tasks.get(&id).cloned()?;
        Some(Ticket {
            cell,
            inner: self.inner.clone(),
        })
    }

    /// Whether there is nothing unfinished.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.inner.state().tasks.is_empty()
    }

    /// A message came out of a channel's log. Nothing waits and nothing fails here: it is kept, and the task's driver looks at it.
    pub fn observe(&self, message: &Stored) {
        self.inner.observe(message);
    }

    /// Counts every visible change: of [`shown`](Self::shown), [`troubles`](Self::troubles) and [`tombstones`](Self::tombstones).
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// All of it at once.
    #[must_use]
    pub fn view(&self) -> BroadcastsView {
        BroadcastsView {
            open: !self.inner.stop.is_cancelled(),
            tasks: self.shown(),
            troubles: self.troubles(),
            tombstones: self.tombstones(),
        }
    }

    /// Every unfinished task, for the screen, oldest first.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        self.inner.shown()
    }

    /// Logs whose messages cannot be taken in now, and why: their checkpoints stand still. By physical channel.
    #[must_use]
    pub fn troubles(&self) -> BTreeMap<String, Error> {
        self.inner.state().troubles.clone()
    }

    /// Finished tasks that are still remembered.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.inner.state().tombstones.len()
    }

    /// Cuts the logs where nothing needs them: below every checkpoint, every unfinished task and every reader. Where each begins then.
    pub async fn truncate(&self) -> Result<BTreeMap<String, super::ids::MessageId>> {
        self.inner.truncate().await
    }

    /// Removes the tombstones that are beyond the limits now. Also done by itself.
    pub async fn collect(&self) -> Result<usize> {
        self.inner.collect().await
    }

    /// Why it ended by itself, e.g. because the root is another's.
    pub fn ended(&self) -> watch::Receiver<Option<Error>> {
        self.inner.ended.subscribe()
    }

    /// Ends it: nothing new is begun; what is under way is left as it is persisted, for the next one. The logs stay open.
    pub async fn close(&self) {
        self.inner.end(self.inner.closed());
        let running = std::mem::take(&mut *lock(&self.inner.running));
        for task in running {
            let _ = task.await;
        }
    }
}

impl Drop for Broadcaster {
    fn drop(&mut self) {
        if self.is_last {
            self.inner.end(self.inner.closed());
        }
    }
}

/// Who holds a place, in words.
fn in_the_way(state: &State, by: Turn, over: &Resource) -> Error {
    let holder = state.tasks.values().find(|cell| cell.turn == Some(by));
    let who = holder.map_or_else(
        || "an operation that is being prepared".to_owned(),
        |cell| {
            let task = cell.task();
            let kind = task.kind().map_or("", |k: MessageType| k.as_str_name());
            format!("broadcast {} {kind}", task.id())
        },
    );
    Error::new(ErrorKind::Busy, format!("{over} is held by {who}"))
        .fix("wait for it to end; the list of broadcasts says what it waits for")
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The writer on behalf of a task, which outlives whoever asked for it.
    fn bound(&self, task: &Task, by: Option<&Scope>) -> Arc<Executor> {
        let executor = &self.parts.executor;
        let kind = task.kind().map_or("", |k: MessageType| k.as_str_name());
        let life = executor.scope();
        let name = format!("broadcast {} {kind}", task.id());
        executor.within(&life.begun_by(by.unwrap_or(life), name))
    }

    fn closed(&self) -> Error {
        let why = Error::new(
            ErrorKind::Cancelled,
            "the broadcaster is closed: the task was not created",
        );
        self.ended.borrow().clone().unwrap_or(why)
    }

    fn alive(&self) -> Result<()> {
        if self.stop.is_cancelled() {
            return Err(self.closed());
        }
        Ok(())
    }

    /// Ends the service; the first reason stays.
    fn end(&self, why: Error) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(why);
            }
            first
        });
        self.stop.cancel();
        self.seen();
    }

    fn bump(&self) {
        count(&self.moved);
        self.seen();
    }

    /// What a screen shows has changed.
    fn seen(&self) {
        count(&self.changed);
    }

    fn leave(&self, turn: Turn) {
        self.state().keys.leave(turn);
        self.bump();
    }

    /// Runs until it ends or the service does.
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let task = tokio::spawn(async move {
            // Stopped or ended: either way there is nothing more to do.
            let _ = stop.run_until_cancelled_owned(work).await;
        });
        let mut running = lock(&self.running);
        running.retain(|task| !task.is_finished());
        running.push(task);
    }

    fn observe(&self, message: &Stored) {
        let Some(header) = message.broadcast() else {
            return;
        };
        let id = super::format::message::broadcast_id(&header);
        let cell = self.state().tasks.get(&id).cloned();
        // Unknown: finished long ago, and this is a copy that comes again.
        let Some(cell) = cell else { return };
        // A copy on a channel that the record does not name is none of ours to act on.
        if cell
            .task()
            .placed(&message.vchannel(), message.id, message.tick, true)
            .is_ok()
        {
            cell.told.notify_one();
        }
    }
}
