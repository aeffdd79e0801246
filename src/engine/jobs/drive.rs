//! Drives one job from where its journal says it is to its end (law 7).

use std::sync::Arc;
use std::time::Duration;

use super::Next;
use super::announce::announce;
use super::board::{Board, Running};
use super::cx::{Children, JobCx, cut};
use super::registry::Kind;
use crate::engine::coordinator::Coordinator;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaKey;
use crate::engine::meta::scope::Scope;
use crate::engine::meta::{Cond, RangeOpts, Span, Write};
use crate::engine::model::jobs::{Copies, JobState};
use crate::engine::plan::execute::Executor;
use crate::engine::plan::journal::{JobRecord, Live, from_json, json};

/// Between looks at a fence that does not hold, and between journal entries of a long step.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two times that others are told how a long step goes.
const TELL: Duration = Duration::from_secs(1);
/// Longest wait before a step is taken again.
const LONGEST: Duration = Duration::from_secs(10);
/// Notes kept of a record that is too large.
const SHORT: usize = 10;
/// Keys looked up at once when many are deleted.
const PAGE: usize = 1_000;
/// Keys deleted at once.
const BATCH: usize = 50;

/// One job on its way.
pub(super) struct Driver {
    /// Bound to the job: journal, fence and undo end with the engine only.
    pub executor: Arc<Executor>,
    /// Of the job's steps: ends when it is asked to stop, too.
    pub steps: Scope,
    pub board: Arc<Board>,
    pub kind: Arc<dyn Kind>,
    pub running: Running,
    pub record: JobRecord,
    pub children: Arc<dyn Children>,
    pub coordinator: Arc<Coordinator>,
    /// The epoch under which `record` was read or written. Under another one somebody else may have moved the job: then the
    /// journal is read again before anything else, and nothing is written.
    pub epoch: u64,
    /// Why the job turned back, until that is journaled.
    pub back: Option<Error>,
    /// The last try of the step left a write that may have happened: nothing is decided before the step has been taken again and
    /// has settled it, not even to stop.
    pub doubt: bool,
}

/// What became of a journal entry.
enum Entry {
    /// It is written.
    Written,
    /// It is not: the epoch had changed, or it was too large. The record is what the journal says.
    Reread,
    /// Somebody else has ended the job.
    Gone,
}

/// Whether a look at the journal found that somebody else had ended the job.
enum Fenced {
    /// Ours again, and nobody else held the cluster.
    Again,
    /// Ours again, but a coordinator was there meanwhile.
    Foreign(Error),
    /// Somebody else has ended the job.
    Gone,
}

impl Driver {
    /// Runs to the end. Dropping the future is the same as a crash.
    pub async fn run(mut self) {
        self.running.dials.set_notes(self.record.notes.clone());
        self.running.dials.meter.resume(self.record.progress);
        self.running.dials.files.resume(&self.record.copies);
        let mut wait = Duration::from_millis(200);
        let mut announced = false;
        while !self.record.state.ended()
            && (self.record.state != JobState::Stuck || self.is_called_back())
        {
            if !self.holds() && !self.regain().await {
                return;
            }
            let undoing = self.record.state == JobState::Undoing;
            if !undoing
                && self.record.state != JobState::Completed
                && self.running.cancel.is_cancelled()
                && !self.doubt
            {
                let out_of_time = self.record.state == JobState::Stuck && !self.record.cancelled;
                self.turn_back(&if out_of_time {
                    Error::new(
                        ErrorKind::Conflict,
                        "nobody retried or cancelled it in time",
                    )
                } else {
                    on_request()
                });
                if matches!(self.journal().await, Entry::Gone) {
                    return;
                }
                continue;
            }
            let outcome = if undoing {
                let why = self.why();
                let state = self.record.machine.clone();
                let kind = self.kind.clone();
                let cx = self.cx("undo");
                self.watched(async { kind.undo(&cx, &state, &why).await })
                    .await
            } else {
                if self.record.state == JobState::Pending {
                    self.record.state = JobState::Running;
                    self.board.set(self.record.clone());
                }
                let state = self.record.machine.clone();
                let kind = self.kind.clone();
                let cx = self.cx("step");
                let intent = (self.record.state != JobState::Completed && !announced)
                    .then(|| self.record.intent.clone());
                let outcome = self
                    .watched(async {
                        if let Some(intent) = &intent {
                            announce(&cx, intent).await?;
                        }
                        kind.step(&cx, &state).await
                    })
                    .await;
                announced |= outcome.is_ok();
                outcome
            };
            if self.executor.scope().is_over() {
                // The engine ends: whatever this came to, it is left as it is journaled.
                return;
            }
            self.doubt = match &outcome {
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown => true,
                Err(e) if again(e) => self.doubt,
                _ => false,
            };
            match outcome {
                Ok(next) => {
                    wait = Duration::from_millis(200);
                    self.running.dials.relieved();
                    self.take(next);
                }
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    self.running.dials.note(format!("waiting: {e}"));
                    match self.wait_for_fence(e).await {
                        Fenced::Gone => return,
                        Fenced::Again => continue,
                        Fenced::Foreign(why)
                            if matches!(
                                self.record.state,
                                JobState::Undoing | JobState::Completed
                            ) =>
                        {
                            self.running.dials.note(format!("went on after: {why}"));
                            continue;
                        }
                        Fenced::Foreign(why) => self.turn_back(&why),
                    }
                }
                Err(e) if again(&e) || self.running.dials.bears(&e) => {
                    self.running.dials.note(format!("trying again: {e}"));
                    self.executor.clock().sleep(wait).await;
                    wait = (wait * 2).min(LONGEST);
                    continue;
                }
                Err(e) if undoing => self.fail(&e, "it could not all be taken back"),
                Err(e) if self.record.state == JobState::Completed => {
                    self.fail(&e, "it is published, and its verification failed");
                }
                Err(e) if e.kind() == ErrorKind::Cancelled => self.turn_back(&on_request()),
                Err(e) => self.turn_back(&e),
            }
            self.record.moved = self.executor.clock().now();
            if self.record.state.ended() {
                self.record.ended = Some(self.record.moved);
            }
            if matches!(self.journal().await, Entry::Gone) {
                return;
            }
        }
        if self.record.state.ended() {
            self.tidy().await;
        }
    }

    /// A job that waits for the operator is only driven to be taken back.
    fn is_called_back(&self) -> bool {
        self.running.cancel.is_cancelled()
    }

    /// What a step may touch, as long as the record in memory is the one that counts.
    fn cx(&self, what: &str) -> JobCx {
        // What must not stop half way: taking back, verifying what is published, settling.
        let calm = matches!(self.record.state, JobState::Undoing | JobState::Completed);
        let under = if calm || self.doubt {
            self.executor.scope()
        } else {
            &self.steps
        };
        let scope = under.child(format!("{}: {what} {}", under.origin(), self.record.step));
        JobCx::new(
            self.executor.within(&scope),
            self.record.id,
            self.record.plan.clone(),
            self.running.dials.clone(),
        )
        .bound_to(self.epoch)
        .with_children(self.children.clone())
        .with_coordinator(self.coordinator.clone())
    }

    fn holds(&self) -> bool {
        self.executor.fence().epoch() == Some(self.epoch)
    }

    fn take(&mut self, next: Next<serde_json::Value>) {
        match next {
            Next::Step(s) => self.record.machine = s,
            Next::Published(s) => {
                self.record.machine = s;
                self.record.state = JobState::Completed;
                // An undo that finds the work published leaves it: then the reason to turn back is no error of the job.
                self.record.cancelled = false;
                if let Some(why) = self.record.error.take() {
                    self.running
                        .dials
                        .note(format!("published all the same: {why}"));
                }
            }
            Next::Verified(s) => {
                self.record.machine = s;
                self.running.dials.meter.complete();
                self.record.state = JobState::Verified;
            }
            Next::Stuck(s, e, until) => {
                self.record.machine = s;
                self.record.state = JobState::Stuck;
                self.record.error = Some(cut(e.to_string()));
                self.record.until = Some(until);
            }
            Next::Undo(s, e) => {
                self.record.machine = s;
                self.turn_back(&e);
            }
            Next::Undone(s) => {
                self.record.machine = s;
                self.record.state = if self.record.cancelled {
                    JobState::Cancelled
                } else {
                    JobState::Failed
                };
            }
        }
    }

    /// From now on the job is taken back. The first error stays.
    fn turn_back(&mut self, why: &Error) {
        self.record.state = JobState::Undoing;
        self.record.until = None;
        self.record.cancelled |= why.kind() == ErrorKind::Cancelled;
        if self.record.error.is_none() {
            self.record.error = Some(cut(why.to_string()));
        }
        self.back = Some(why.clone());
        // Taken up again and then taken back: what it came to is what has to be said.
        if let Some(how) = &mut self.record.recovered
            && let Some(rest) = how.strip_prefix("resumed: ")
        {
            *how = format!("undone: {rest}; it could not go on from there");
        }
    }

    fn fail(&mut self, e: &Error, what: &str) {
        self.running.dials.note(format!("{what}: {e}"));
        self.record.state = JobState::Failed;
        if self.record.error.is_none() {
            self.record.error = Some(cut(e.to_string()));
        }
    }

    /// The reason as it was journaled: an undo that is taken up again has only this.
    fn why(&self) -> Error {
        let kind = if self.record.cancelled {
            ErrorKind::Cancelled
        } else {
            ErrorKind::Conflict
        };
        Error::new(kind, self.record.error.clone().unwrap_or_default())
    }

    /// Runs a step. While it moves, others are told how it goes, and now and then it is journaled.
    async fn watched(
        &mut self,
        step: impl Future<Output = Result<Next<serde_json::Value>>>,
    ) -> Result<Next<serde_json::Value>> {
        tokio::pin!(step);
        let mut journaled = self.executor.clock().mono();
        let mut told = (self.record.progress, Copies::default());
        loop {
            let tick = self.executor.clock().sleep(TELL);
            tokio::select! {
                biased;
                done = &mut step => return done,
                () = tick => {}
            }
            let now = (self.running.dials.meter.read(), self.running.dials.copies());
            let mono = self.executor.clock().mono();
            let obeyed = !self.running.heard().is_empty();
            // Only news, both: the state is the one journaled already, and the next entry carries it too.
            if obeyed
                || (now.0 != self.record.progress && mono.saturating_sub(journaled) >= PATIENCE)
            {
                journaled = mono;
                self.record.moved = self.executor.clock().now();
                self.fill();
                let heard = self.running.heard().clone();
                if let Ok(writes) = self.writes(&heard) {
                    if matches!(self.note(&writes).await, Ok(true)) {
                        self.unhear(&heard);
                    }
                    self.board.set(self.record.clone());
                }
            } else if now.0 != told.0 || now.1.running != told.1.running {
                let live = Live {
                    at: self.executor.clock().now(),
                    progress: now.0,
                    copies: now.1.clone(),
                };
                if let Ok(value) = json(&live) {
                    let key = self.executor.keys().live(self.record.id);
                    let _ = self.note(&[Write::put(key, value)]).await;
                }
            }
            told = now;
        }
    }

    fn fill(&mut self) {
        self.record.progress = self.running.dials.meter.read();
        self.record.notes = self.running.dials.notes();
        self.record.rate = self.running.dials.throttle();
        self.record.pace = self.running.dials.pace();
        self.record.parallel = self.running.dials.asked_parallel();
        self.record.copies = self.running.dials.copies();
        if let Some((step, done, all)) = self.kind.describe(&self.record.machine) {
            self.record.step = step;
            let verified = self.record.state == JobState::Verified;
            self.record.steps = (if verified { all } else { done }, all);
        }
        if let Some(collection) = self.kind.collection(&self.record.machine) {
            self.record.collection = Some(collection);
        }
    }

    /// The record; with it go the orders that it now holds.
    fn writes(&self, heard: &[MetaKey]) -> Result<Vec<Write>> {
        let key = self.executor.keys().job(self.record.id);
        let mut writes = vec![Write::put(key, json(&self.record)?)];
        writes.extend(heard.iter().cloned().map(Write::Delete));
        Ok(writes)
    }

    fn unhear(&self, keys: &[MetaKey]) {
        self.running.heard().retain(|k| !keys.contains(k));
    }

    /// Writes our own records, if the root is ours under the epoch of the record in memory; `false` when it is not.
    async fn note(&self, writes: &[Write]) -> Result<bool> {
        let epoch = self.epoch.to_string().into();
        let same = Cond::ValueIs(self.executor.keys().epoch(), epoch);
        Ok(self.executor.note_if(&[same], writes).await?.is_some())
    }

    /// Writes the record; the end of a job gives its locks back in the same transaction. Does not return before it is written
    /// or read again: a step that is not journaled must not be followed by another.
    async fn journal(&mut self) -> Entry {
        self.fill();
        let mut wait = Duration::from_millis(200);
        let mut large = 0;
        loop {
            let heard = self.running.heard().clone();
            let written = match self.writes(&heard) {
                Ok(mut writes) => {
                    if self.record.state.ended() {
                        let give_back = |name: &String| Write::Delete(name.as_str().into());
                        writes.extend(self.record.locks.iter().map(give_back));
                        writes.push(Write::Delete(self.executor.keys().live(self.record.id)));
                    }
                    self.note(&writes).await
                }
                Err(e) => Err(e),
            };
            let e = match written {
                Ok(true) => {
                    self.unhear(&heard);
                    break;
                }
                Ok(false) => self.executor.fence().lost(),
                Err(e) => e,
            };
            if e.kind() == ErrorKind::Fenced && !self.holds() {
                self.running.dials.note(format!("waiting: {e}"));
                return if self.regain().await {
                    Entry::Reread
                } else {
                    Entry::Gone
                };
            }
            if e.kind() == ErrorKind::Limit {
                large += 1;
                match self.shrink(large, &e).await {
                    Ok(Some(entry)) => return entry,
                    Ok(None) => continue,
                    Err(e) => {
                        large -= 1;
                        self.running.dials.note(format!("waiting: {e}"));
                    }
                }
            }
            self.running.dials.note(format!(
                "the journal cannot be written, nothing goes on: {e}"
            ));
            self.executor.clock().sleep(wait).await;
            wait = (wait * 2).min(LONGEST);
        }
        self.back = None;
        self.board.set(self.record.clone());
        Entry::Written
    }

    /// A record that is too large will be so for ever. First its notes go; then what it was last journaled as is taken back, or
    /// ends as it stands there.
    async fn shrink(&mut self, times: u32, e: &Error) -> Result<Option<Entry>> {
        if times == 1 {
            let notes = self.running.dials.notes();
            let last = notes.len().saturating_sub(SHORT);
            self.running.dials.set_notes(notes[last..].to_vec());
            self.fill();
            return Ok(None);
        }
        let back = self.record.state != JobState::Undoing;
        if !self.reload().await? {
            return Ok(Some(Entry::Gone));
        }
        let what = "its state is too large for the journal";
        if times == 2 && back && self.record.state != JobState::Completed {
            self.turn_back(&Error::new(e.kind(), format!("{what}: {e}")));
        } else {
            self.fail(e, what);
            self.record.ended = Some(self.executor.clock().now());
        }
        if times > 3 {
            // Not even that can be written: it ends here, and its locks stay.
            self.board.set(self.record.clone());
            return Ok(Some(Entry::Gone));
        }
        self.fill();
        Ok(None)
    }

    /// Waits until the root is ours again and no coordinator is there.
    async fn wait_for_fence(&mut self, first: Error) -> Fenced {
        // Whoever was registered had the catalog in memory, and may have changed it.
        let mut foreign = first.context("session").is_some().then_some(first);
        loop {
            match self.executor.fence().coordinator().await {
                Ok(Some(e)) => {
                    self.running.dials.note(format!("waiting: {e}"));
                    foreign.get_or_insert(e);
                }
                Ok(None) => match self.take_hold().await {
                    Ok(false) => return Fenced::Gone,
                    Ok(true) => match self.executor.fence().check().await {
                        Ok(()) => return foreign.map_or(Fenced::Again, Fenced::Foreign),
                        Err(e) => self.running.dials.note(format!("waiting: {e}")),
                    },
                    Err(e) => self.running.dials.note(format!("waiting: {e}")),
                },
                Err(e) => self.running.dials.note(format!("waiting: {e}")),
            }
            self.executor.clock().sleep(PATIENCE).await;
        }
    }

    /// Waits until the root is ours, and reads the record again if need be. `false`: somebody else has ended the job.
    async fn regain(&mut self) -> bool {
        loop {
            match self.take_hold().await {
                Ok(ours) => return ours,
                Err(e) => self.running.dials.note(format!("waiting: {e}")),
            }
            self.executor.clock().sleep(PATIENCE).await;
        }
    }

    /// As [`regain`](Self::regain), with an error when the store cannot be read.
    async fn take_hold(&mut self) -> Result<bool> {
        while let Err(e) = self.executor.fence().acquire().await {
            self.running.dials.note(format!("waiting: {e}"));
            self.executor.clock().sleep(PATIENCE).await;
        }
        let fence = self.executor.fence();
        let epoch = fence.epoch().ok_or_else(|| fence.lost())?;
        if epoch == self.epoch {
            return Ok(true);
        }
        // Read under the new epoch: what was written under an older one is in it, and nothing more of that can come.
        let ours = self.reload().await?;
        self.epoch = epoch;
        Ok(ours)
    }

    /// Reads the record again; what was not journaled has not happened. `false`: the job has ended, or is gone.
    async fn reload(&mut self) -> Result<bool> {
        let key = self.executor.keys().job(self.record.id);
        let Some(kv) = self.executor.reader().get(&key).await? else {
            self.board.forget(self.record.id);
            return Ok(false);
        };
        let mut now: JobRecord = from_json(&key, &kv.value)?;
        if now.state.ended() {
            self.board.set(now.clone());
            self.record = now;
            return Ok(false);
        }
        now.recovered = now.recovered.or_else(|| self.record.recovered.take());
        self.running.dials.set_notes(now.notes.clone());
        self.running.dials.meter.resume(now.progress);
        self.record = now;
        // A reason to turn back stays one, unless the job is past that.
        if let Some(why) = self.back.take()
            && matches!(self.record.state, JobState::Pending | JobState::Running)
        {
            self.turn_back(&why);
        }
        self.board.set(self.record.clone());
        Ok(true)
    }

    /// The markers of an ended job are of no use to anyone; its pre-images and audit stay.
    async fn tidy(&self) {
        let marks = self.executor.keys().marks(self.record.id);
        let _ = delete_under(&self.executor, &Span::prefix(&marks)).await;
    }
}

fn on_request() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped on request")
}

/// Whether the same step may be taken again: nothing happened, nobody knows, or history was compacted under a long read.
pub(super) fn again(e: &Error) -> bool {
    e.is_transient() || matches!(e.kind(), ErrorKind::OutcomeUnknown | ErrorKind::Compacted)
}

/// Deletes our own keys of a span, one by one by name.
pub(super) async fn delete_under(executor: &Executor, span: &Span) -> Result<()> {
    let opts = RangeOpts {
        limit: PAGE,
        keys_only: true,
        ..RangeOpts::default()
    };
    loop {
        let page = executor.reader().range(span, opts).await?;
        for batch in page.kvs.chunks(BATCH) {
            let gone = batch.iter().map(|kv| Write::Delete(kv.key.clone()));
            executor.note(&gone.collect::<Vec<_>>()).await?;
        }
        if !page.more {
            return Ok(());
        }
    }
}
