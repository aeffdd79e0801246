//! Who needs the root, and what a dead process left in it.

use std::sync::Arc;

use super::{Inner, PATIENCE, ROUND, keep};
use crate::engine::model::jobs::JobState;

impl Inner {
    /// Gives the root back when nobody needs it: no job and no unfinished broadcast. The gate is held by the caller.
    pub(super) async fn give_back(&self) {
        if self.board.any_running() || self.coordinator.is_busy() {
            return;
        }
        self.coordinator.close().await;
        self.executor.fence().release().await;
    }

    /// A broadcast that nobody waits for any more has ended.
    pub(super) async fn idles(self: Arc<Self>) {
        loop {
            self.coordinator.idle().await;
            let _gate = self.gate.lock().await;
            if self.executor.fence().epoch().is_some() {
                self.give_back().await;
            }
        }
    }

    pub(super) async fn take_ups(self: Arc<Self>) {
        loop {
            self.freed.notified().await;
            self.clone().take_up().await;
        }
    }

    /// Now and then: a job that waited too long for its operator, and records that have been kept long enough.
    pub(super) async fn rounds(self: Arc<Self>) {
        let clock = self.executor.clock().clone();
        loop {
            clock.sleep(ROUND).await;
            self.freed.notify_one();
            if !keep::is_due(&self.board, clock.now()) {
                continue;
            }
            let _gate = self.gate.lock().await;
            // Somebody else has the root: he tidies, or the next round does.
            if self.executor.fence().acquire().await.is_ok() {
                let _ = keep::tidy(&self.executor, &self.board).await;
                self.give_back().await;
            }
        }
    }

    /// Whether there is anything to take up that we do not drive already.
    async fn is_left_over(&self) -> bool {
        let clock = self.executor.clock();
        !self.board.orphans(clock.now()).is_empty()
            || (!self.coordinator.is_busy()
                && matches!(self.coordinator.left_unfinished().await, Ok(true)))
    }

    /// Takes up unfinished broadcasts and jobs that nobody drives. Waits while somebody else owns the root: they may be theirs.
    async fn take_up(self: Arc<Self>) {
        let clock = self.executor.clock().clone();
        while self.is_left_over().await {
            let gate = self.gate.lock().await;
            if self.executor.fence().acquire().await.is_err() {
                drop(gate);
                clock.sleep(PATIENCE).await;
                continue;
            }
            let epoch = self.executor.fence().epoch().unwrap_or_default();
            // What they did last may have come after our last look.
            if self.journal.read().await.is_err() {
                drop(gate);
                clock.sleep(PATIENCE).await;
                continue;
            }
            // Before the jobs: one that waits for its broadcast finds it there.
            if matches!(self.coordinator.left_unfinished().await, Ok(true))
                && self.coordinator.service().await.is_err()
                && self.board.orphans(clock.now()).is_empty()
            {
                self.give_back().await;
                drop(gate);
                clock.sleep(PATIENCE).await;
                continue;
            }
            for job in self.board.orphans(clock.now()) {
                let Some(mut record) = self.board.get(job) else {
                    continue;
                };
                let back = record.state == JobState::Undoing || record.cancelled;
                let word = if back { "undone" } else { "resumed" };
                record.recovered = Some(if record.state == JobState::Stuck {
                    "undone: it was stuck, and nobody retried it in time".into()
                } else {
                    format!(
                        "{word}: the process that ran it ({}) ended at: {}",
                        record.actor, record.step
                    )
                });
                if let Err(e) = self.clone().launch(&record, epoch) {
                    record.error = Some(e.to_string());
                    record.state = JobState::Failed;
                    record.ended = Some(clock.now());
                    self.board.set(record);
                    continue;
                }
                // What was asked of it while nobody ran it; a look that fails is made again with the journal.
                let _ = self.journal.orders(job).await;
            }
            self.give_back().await;
            return;
        }
    }
}
