//! Starting: what a former owner left is taken up before anything new is accepted (§II.6).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Broadcaster, Cell, Doing, Inner, Note, Parts, State};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Family;
use crate::engine::format::message::{Stored, broadcast_id};
use crate::engine::format::pb::messages::MessageType;
use crate::engine::ids::{BroadcastId, JobId, MetaRev, Tso};
use crate::engine::meta::{Cond, Span, Write};
use crate::engine::model::broadcast::{Task, TaskState};
use crate::engine::plan::journal::from_json;
use crate::engine::plan::ledger::Swap;
use crate::engine::plan::retry::{Backoff, TRIES, calm};
use crate::engine::wal::Reader;

/// Between looks at the tombstones.
const ROUND: Duration = Duration::from_mins(1);
/// Keys removed at once.
const CHUNK: usize = 64;

impl Broadcaster {
    /// Reads every record, opens every known log, finds the copies that are appended already, and takes everything up where it stood.
    ///
    /// `Corrupt` when a record cannot be read or two unfinished tasks hold the same key: nothing is begun then, because what they exclude
    /// is not known.
    pub async fn open(parts: Parts) -> Result<Self> {
        let inner = Arc::new(Inner {
            parts,
            state: Mutex::default(),
            moved: watch::Sender::new(0),
            changed: watch::Sender::new(0),
            stop: CancellationToken::new(),
            ended: watch::Sender::new(None),
            running: Mutex::default(),
        });
        for pchannel in inner.parts.channels.known().await? {
            inner.parts.channels.log(&pchannel).await?;
        }
        let cells = inner.clone().load().await?;
        let me = Self {
            scope: inner.parts.executor.scope().clone(),
            inner,
            is_last: true,
        };
        let inner = &me.inner;
        inner.find_copies(&cells).await?;
        inner.take_places(&cells);
        for (cell, rev) in cells {
            inner.spawn(inner.clone().drive(cell, rev));
        }
        inner.spawn(inner.clone().follow_all());
        inner.spawn(inner.clone().rounds());
        Ok(me)
    }
}

impl Inner {
    /// The records: unfinished ones become cells that hold their keys, in the order of their ids; tombstones are remembered.
    async fn load(self: Arc<Self>) -> Result<Vec<(Arc<Cell>, MetaRev)>> {
        let executor = &self.parts.executor;
        let (reader, clock) = (executor.reader(), executor.clock());
        let span = Span::prefix(&Family::BroadcastTask.prefix(executor.roots()));
        let page = calm(&**clock, || reader.range_all(&span)).await?;
        let noted = Span::prefix(&executor.keys().broadcasts());
        let mut notes = BTreeMap::new();
        for kv in calm(&**clock, || reader.range_all(&noted)).await?.kvs {
            let note: Note = from_json(&kv.key, &kv.value)?;
            notes.insert(kv.key, note);
        }
        let mut tasks = Vec::new();
        for kv in page.kvs {
            let task = Task::read(&kv.value).map_err(|e| {
                e.with("key", &kv.key).fix("nothing is broadcast until it is repaired: what it excludes others from is not known")
            })?;
            tasks.push((task, kv.mod_rev));
        }
        tasks.sort_by_key(|(task, _)| task.id());
        let mut cells = Vec::new();
        for (task, rev) in tasks {
            let id = task.id();
            let note = notes
                .remove(&executor.keys().broadcast(id))
                .unwrap_or_else(|| Note {
                    since: clock.now(),
                    plan: String::new(),
                    job: JobId(0),
                });
            let mut state = self.state();
            if task.state() == TaskState::Tombstone {
                // How long it is remembered counts from here: when it was finished is not recorded.
                state.tombstones.add(id, clock.now());
                state.buried.insert(id, rev);
                continue;
            }
            let mut turn = None;
            if task.state() == TaskState::Pending {
                turn = Some(state.keys.try_enter(task.keys()).map_err(|(by, over)| {
                    let held = super::in_the_way(&state, by, &over);
                    Error::new(
                        ErrorKind::Corrupt,
                        "two unfinished broadcasts hold the same key",
                    )
                    .with("broadcast", id)
                    .caused_by(held)
                    .fix("look at both records; nothing is broadcast until one is repaired")
                })?);
            }
            let own = self.bound(&task, None);
            let cell = Cell::new(own, task, note, turn, self.changed.clone());
            state.tasks.insert(id, cell.clone());
            cells.push((cell, rev));
        }
        Ok(cells)
    }

    pub(super) async fn begun_by(
        &self,
        job: JobId,
        kind: MessageType,
    ) -> Result<Option<BroadcastId>> {
        let executor = &self.parts.executor;
        let (reader, clock) = (executor.reader(), executor.clock());
        let prefix = executor.keys().broadcasts();
        let span = Span::prefix(&prefix);
        let page = calm(&**clock, || reader.range_all(&span)).await?;
        for kv in page.kvs {
            let note: Note = from_json(&kv.key, &kv.value)?;
            let id = kv.key.0.strip_prefix(&prefix.bytes()[..]);
            let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
            let Some(id) = id.map(BroadcastId).filter(|_| note.job == job) else {
                continue;
            };
            let record = self.record_key(id);
            let record = calm(&**clock, || reader.get(&record)).await?;
            if let Some(record) = record
                && Task::read(&record.value)?.kind() == Some(kind)
            {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Copies that a former owner appended without recording it are in a log: nothing below an unfinished task is cut off.
    async fn find_copies(&self, cells: &[(Arc<Cell>, MetaRev)]) -> Result<()> {
        let mut open: BTreeMap<BroadcastId, &Arc<Cell>> = BTreeMap::new();
        for (cell, _) in cells {
            let task = cell.task();
            if task.to_append().is_empty() && !task.ack_sync_up() {
                continue;
            }
            open.insert(task.id(), cell);
        }
        if open.is_empty() {
            return Ok(());
        }
        let logs = self.parts.channels.open().borrow().clone();
        for log in logs.values() {
            let first = log.end().borrow().first;
            let mut reader = log.read_from(first)?;
            while let Some(message) = calm_next(&mut *reader, self).await? {
                let found = message
                    .broadcast()
                    .and_then(|header| open.get(&broadcast_id(&header)));
                if let Some(cell) = found {
                    // A channel that the record does not name is told by the follower.
                    let _ =
                        cell.task()
                            .placed(&message.vchannel(), message.id, message.tick, false);
                }
            }
        }
        Ok(())
    }

    /// Callbacks go in the order of the control channel, also those of before.
    fn take_places(&self, cells: &[(Arc<Cell>, MetaRev)]) {
        let mut joined: Vec<(Tso, BroadcastId, &Arc<Cell>)> = Vec::new();
        for (cell, _) in cells {
            let task = cell.task();
            if task.joins() {
                joined.push((task.order(), task.id(), cell));
            }
        }
        joined.sort_by_key(|(tick, id, _)| (*tick, *id));
        for (_, _, cell) in joined {
            let keys = cell.task().keys();
            let turn = self.state().order.enter(keys);
            *super::lock(&cell.doing) = Doing {
                order: Some(turn),
                ..Doing::default()
            };
        }
    }

    async fn rounds(self: Arc<Self>) {
        loop {
            // What fails is tried again in the next round: a tombstone too many does no harm.
            let _ = self.collect().await;
            self.parts.executor.clock().sleep(ROUND).await;
        }
    }

    /// Removes tombstones beyond the limits, the oldest first: record and note, and what the callbacks left beside the journal.
    pub(super) async fn collect(&self) -> Result<usize> {
        let executor = &self.parts.executor;
        let mut removed = 0;
        loop {
            let next = {
                let state: std::sync::MutexGuard<'_, State> = self.state();
                let id = state
                    .tombstones
                    .next_over(self.parts.tombstones, executor.clock().now());
                id.map(|id| (id, state.buried.get(&id).copied()))
            };
            let Some((id, rev)) = next else {
                return Ok(removed);
            };
            self.forget_marks(id).await?;
            if let Some(rev) = rev {
                let key = self.record_key(id);
                let writes = vec![
                    Write::Delete(key.clone()),
                    Write::Delete(executor.keys().broadcast(id)),
                ];
                // Refused: somebody else has moved or removed it; then it is not ours to remove.
                executor
                    .swap(&mut Swap::new(vec![Cond::At(key, rev)], writes))
                    .await?;
            }
            let mut state = self.state();
            state.tombstones.removed(id);
            state.buried.remove(&id);
            drop(state);
            self.seen();
            removed += 1;
        }
    }

    /// Step markers and pre-images of what the callbacks committed under this id: no callback is called again now.
    async fn forget_marks(&self, id: BroadcastId) -> Result<()> {
        let executor = &self.parts.executor;
        let span = Span::prefix(&executor.keys().under_job(JobId(id.0)));
        let reader = executor.reader();
        let found = calm(&**executor.clock(), || reader.range_all(&span))
            .await?
            .kvs;
        for chunk in found.chunks(CHUNK) {
            let writes = chunk.iter().map(|kv| Write::Delete(kv.key.clone()));
            executor
                .swap(&mut Swap::new(Vec::new(), writes.collect()))
                .await?;
        }
        Ok(())
    }
}

/// The next message that is there, tried again while the store does not answer.
async fn calm_next(reader: &mut dyn Reader, inner: &Inner) -> Result<Option<Stored>> {
    let mut backoff = Backoff::new(TRIES);
    loop {
        match reader.try_next().await {
            Err(e) if e.is_transient() && backoff.again(&**inner.parts.executor.clock()).await => {}
            done => return done,
        }
    }
}
