//! One task from its creation to its tombstone.

use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::oneshot;

use super::pace::Pace;
use super::{Acked, AllAcked, Cell, Guard, Inner, Note, Ticket};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::ids::{BroadcastId, MetaKey, MetaRev, Tso};
use crate::engine::meta::{Cond, Write};
use crate::engine::model::broadcast::{AckedAt, Task};
use crate::engine::plan::execute::Executor;
use crate::engine::plan::journal::json;
use crate::engine::plan::ledger::{Swap, Swapped};

impl Inner {
    pub(super) fn record_key(&self, id: BroadcastId) -> MetaKey {
        let id = u64::try_from(id.0).unwrap_or(u64::MAX);
        Key::BroadcastTask(id).to_key(self.parts.executor.roots())
    }

    /// Persists a new task, answers, and drives it.
    pub(super) async fn create(
        self: Arc<Self>,
        executor: Arc<Executor>,
        task: Task,
        note: Note,
        mut guard: Guard,
        epoch: Option<u64>,
        told: oneshot::Sender<Result<Ticket>>,
    ) {
        let id = task.id();
        let key = self.record_key(id);
        let note_key = executor.keys().broadcast(id);
        let writes = match json(&note) {
            Ok(note) => vec![
                Write::put(key.clone(), task.stored().to_vec()),
                Write::put(note_key, note),
            ],
            Err(e) => return drop(told.send(Err(e))),
        };
        let mut conds = vec![Cond::Absent(key)];
        let held = self.parts.executor.keys().epoch();
        conds.extend(epoch.map(|epoch| Cond::ValueIs(held, epoch.to_string().into())));
        let mut swap = Swap::new(conds, writes);
        let mut pace = Pace::new();
        let rev = loop {
            match executor.swap(&mut swap).await {
                Ok(Swapped::Done(rev)) => break rev,
                Ok(Swapped::Refused(_))
                    if epoch.is_some() && self.parts.executor.fence().epoch() != epoch =>
                {
                    return drop(told.send(Err(self.parts.executor.fence().lost())));
                }
                Ok(Swapped::Refused(_)) => {
                    let e = Error::new(
                        ErrorKind::Conflict,
                        format!("broadcast id {id} is taken: the allocator was set back"),
                    )
                    .fix("repair the id allocator first");
                    return drop(told.send(Err(e)));
                }
                // The keys stay held as long as nobody knows whether the task exists.
                Err(_) if swap.in_doubt() => executor.clock().sleep(pace.next()).await,
                Err(e) => return drop(told.send(Err(e))),
            }
        };
        let cell = Cell::new(
            executor,
            task,
            note,
            guard.turn.take(),
            self.changed.clone(),
        );
        self.state().tasks.insert(id, cell.clone());
        self.seen();
        let ticket = Ticket {
            cell: cell.clone(),
            inner: self.clone(),
        };
        // Who has left does not hear of it; it happens all the same.
        let _ = told.send(Ok(ticket));
        self.drive(cell, rev).await;
    }

    /// To the tombstone; ends early only with the service.
    pub(super) async fn drive(self: Arc<Self>, cell: Arc<Cell>, rev: MetaRev) {
        if let Err(why) = self.steps(&cell, rev).await {
            let fence = self.parts.executor.fence();
            if fence.epoch().is_none() {
                self.end(why);
            } else {
                // It keeps its keys and shows why: nothing may be built on what is not known.
                cell.fails("stopped", None, why);
            }
        }
    }

    async fn steps(self: &Arc<Self>, cell: &Arc<Cell>, mut rev: MetaRev) -> Result<()> {
        self.acknowledge(cell, &mut rev).await?;
        self.call(cell).await;
        let record = cell.task().burying()?;
        // Before the keys: a conflicting operation must not begin while this callback might be called again.
        self.write(cell, &mut rev, record).await?;
        let id = cell.task().id();
        {
            let mut state = self.state();
            state.tasks.remove(&id);
            if let Some(turn) = cell.turn {
                state.keys.leave(turn);
            }
            let order = super::lock(&cell.doing).order.take();
            if let Some(order) = order {
                state.order.leave(order);
            }
            state.tombstones.add(id, self.parts.executor.clock().now());
            state.buried.insert(id, rev);
        }
        self.bump();
        cell.done.send_replace(true);
        Ok(())
    }

    /// Appends what is not appended and acks what is due, round by round, until everything is acked.
    async fn acknowledge(self: &Arc<Self>, cell: &Arc<Cell>, rev: &mut MetaRev) -> Result<()> {
        let mut moved = self.parts.checkpoints.changed();
        let mut pace = Pace::new();
        loop {
            // Marked before the look: what changes during the round makes another one.
            moved.borrow_and_update();
            let mut failed = self.append(cell).await;
            let due = cell
                .task()
                .due(|channel, tick| self.parts.checkpoints.reached(channel, tick));
            if !due.is_empty() {
                let (done, error) = self.call_once(cell, &due).await;
                if !done.is_empty() {
                    let record = cell.task().acking(&done)?;
                    self.write(cell, rev, record).await?;
                }
                failed |= error;
            }
            let (joins, done) = {
                let task = cell.task();
                (task.joins().then(|| task.keys()), task.all_acked())
            };
            let placed = super::lock(&cell.doing).order.is_some();
            if let Some(keys) = joins.filter(|_| !placed) {
                let turn = self.state().order.enter(keys);
                super::lock(&cell.doing).order = Some(turn);
            }
            self.seen();
            if done {
                return Ok(());
            }
            if failed {
                self.parts.executor.clock().sleep(pace.next()).await;
                continue;
            }
            cell.succeeds();
            pace.reset();
            // A sender that is gone has nothing to tell any more; the service is ending.
            tokio::select! {
                () = cell.told.notified() => {}
                _ = moved.changed() => {}
            }
        }
    }

    /// Appends to every channel that has no copy; whether one failed.
    async fn append(self: &Arc<Self>, cell: &Arc<Cell>) -> bool {
        let open = cell.task().to_append();
        let appends = open.into_iter().map(|i| async move {
            let (draft, channel) = {
                let task = cell.task();
                (task.draft(i), task.copies()[i].channel.clone())
            };
            let done = async {
                let log = self.parts.channels.of(&channel).await?;
                log.append(vec![draft]).await
            };
            match done.await.map(|at| at.first().copied()) {
                Ok(Some(at)) => {
                    // The channel is the task's own.
                    let _ = cell.task().placed(&channel, at.id, at.tick, false);
                    false
                }
                Ok(None) => true,
                Err(e) => {
                    cell.fails("append", Some(channel), e);
                    true
                }
            }
        });
        join_all(appends).await.into_iter().any(|failed| failed)
    }

    /// Calls the callbacks of these channels, all at once; those that succeeded, and whether one failed.
    async fn call_once(self: &Arc<Self>, cell: &Arc<Cell>, due: &[usize]) -> (Vec<usize>, bool) {
        let calls = due.iter().map(|&i| async move {
            let acked = {
                let task = cell.task();
                let copy = &task.copies()[i];
                Acked {
                    id: task.id(),
                    message: task.message().clone(),
                    channel: copy.channel.clone(),
                    control: copy.control,
                    at: AckedAt {
                        id: copy.appended.map(|(id, _)| id),
                        tick: copy.appended.map_or(Tso::UNSET, |(_, tick)| tick),
                    },
                    scope: cell.executor.scope().clone(),
                    who: cell.who(task.id()),
                }
            };
            let done = self.parts.callbacks.ack_once(&acked).await;
            done.map_err(|e| cell.fails("ack", Some(acked.channel.clone()), e))
                .map(|()| i)
        });
        let done: Vec<usize> = join_all(calls)
            .await
            .into_iter()
            .filter_map(std::result::Result::ok)
            .collect();
        let failed = done.len() < due.len();
        (done, failed)
    }

    /// Waits for its turn among the callbacks, and calls until it succeeds.
    async fn call(self: &Arc<Self>, cell: &Arc<Cell>) {
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            let order = super::lock(&cell.doing).order;
            if order.is_none_or(|turn| self.state().order.is_granted(turn)) {
                break;
            }
            let _ = moved.changed().await;
        }
        super::lock(&cell.doing).calling = true;
        self.seen();
        let all = {
            let task = cell.task();
            AllAcked {
                id: task.id(),
                message: task.message().clone(),
                copies: task
                    .copies()
                    .iter()
                    .filter_map(|c| Some((c.channel.clone(), c.acked?)))
                    .collect(),
                asked_by: cell.note.job,
                who: cell.who(task.id()),
                scope: cell.executor.scope().clone(),
            }
        };
        let mut pace = Pace::new();
        while let Err(e) = self.parts.callbacks.ack_all(&all).await {
            cell.fails("callback", None, e);
            self.parts.executor.clock().sleep(pace.next()).await;
        }
        cell.succeeds();
    }

    /// Writes the record, as long as it takes; then it counts in memory. An error ends the task's driver.
    async fn write(&self, cell: &Cell, rev: &mut MetaRev, record: Vec<u8>) -> Result<()> {
        let key = self.record_key(cell.task().id());
        let mut swap = Swap::new(
            vec![Cond::At(key.clone(), *rev)],
            vec![Write::put(key.clone(), record.clone())],
        );
        let mut pace = Pace::new();
        loop {
            match cell.executor.swap(&mut swap).await {
                Ok(Swapped::Done(at)) => {
                    *rev = at;
                    return cell.task().now(record);
                }
                Ok(Swapped::Refused(_)) => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("broadcast record {key} was changed by somebody else"),
                    )
                    .fix("look at the record; restart to take it up as it stands"));
                }
                Err(e)
                    if e.kind() == ErrorKind::Fenced
                        && self.parts.executor.fence().epoch().is_none() =>
                {
                    return Err(e);
                }
                Err(e) => {
                    cell.fails("record", None, e);
                    self.parts.executor.clock().sleep(pace.next()).await;
                }
            }
        }
    }
}
