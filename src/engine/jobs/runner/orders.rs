//! What is asked of a job, wherever it is run.

use std::sync::Arc;

use super::{Inner, RunnerHandle};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, MetaRev};
use crate::engine::jobs::board::Running;
use crate::engine::meta::{Cond, Write};
use crate::engine::model::jobs::JobState;
use crate::engine::plan::journal::{JobRecord, Order, from_json, json};
use crate::engine::plan::{Check, Danger, Intent, ObjectChange, Plan};

impl RunnerHandle {
    /// Asks something of a job, wherever it is run: here, by another process, or by nobody because it waits for the operator.
    /// `Busy` while nobody runs a job that a dead process left: it is taken up in a moment.
    pub async fn order(&self, job: JobId, order: Order) -> Result<()> {
        let inner = &self.inner;
        let record = inner.board.get(job).ok_or_else(|| not_found(job))?;
        let here = inner.board.running(job);
        match (order, here) {
            (Order::Cancel, Some(_)) => return self.cancel(job),
            (Order::Retry, Some(_)) => return Err(not_stuck(&record)),
            (_, Some(running)) => {
                running.obey(order);
                return Ok(());
            }
            (_, None) => {}
        }
        if record.state == JobState::Stuck {
            let done = inner.clone().unstick(job, order).await;
            // Who waits for it now must not meet the state of before.
            inner.board.flush();
            return done;
        }
        if order == Order::Retry {
            return Err(not_stuck(&record));
        }
        if record.state.ended() || (order == Order::Cancel && record.state == JobState::Completed) {
            return Err(too_late(&record));
        }
        let owner = inner.executor.keys().owner();
        let owner = inner.executor.reader().get(&owner).await?;
        match owner {
            Some(kv) if !inner.executor.fence().is_ours(&kv.value) => {
                inner.executor.order(job, order).await
            }
            _ => Err(inner.nobody(job)),
        }
    }

    /// Asks a job of this process to stop and to take back what it did.
    pub fn cancel(&self, job: JobId) -> Result<()> {
        let record = self.inner.board.get(job).ok_or_else(|| not_found(job))?;
        if record.state.ended() || record.state == JobState::Completed {
            return Err(too_late(&record));
        }
        self.inner.running(job)?.cancel.cancel();
        self.inner.board.changed.notify_one();
        Ok(())
    }

    /// Bytes a second for a job's copies; `None` = no limit.
    pub fn throttle(&self, job: JobId, rate: Option<u64>) -> Result<()> {
        self.inner.running(job)?.dials.set_throttle(rate);
        Ok(())
    }
}

fn not_found(job: JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("job {job} is not known")).fix("list the jobs")
}

fn too_late(record: &JobRecord) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("job {} is {:?} already", record.id, record.state).to_lowercase(),
    )
    .fix("drop what it made instead")
}

fn not_stuck(record: &JobRecord) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "job {} is {:?}: only a stuck job can be retried",
            record.id, record.state
        )
        .to_lowercase(),
    )
    .fix("an ended restore is planned anew; a running one tries again by itself")
}

impl Inner {
    fn nobody(&self, job: JobId) -> Error {
        self.running(job).err().unwrap_or_else(|| not_found(job))
    }

    /// Takes a job up again that waits for the operator: to try again what failed, or to take it back. The root must be free: who
    /// holds it is named otherwise.
    async fn unstick(self: Arc<Self>, job: JobId, order: Order) -> Result<()> {
        let _gate = self.turn().await?;
        let done = self.clone().unstuck(job, order).await;
        if done.is_err() {
            self.give_back().await;
        }
        done
    }

    async fn unstuck(self: Arc<Self>, job: JobId, order: Order) -> Result<()> {
        let executor = &self.executor;
        executor.fence().acquire().await?;
        let epoch = executor.fence().epoch().unwrap_or_default();
        executor.fence().check().await?;
        // Under our epoch: whoever had it before cannot move it any more.
        let key = executor.keys().job(job);
        let kv = executor.reader().get(&key).await?;
        let kv = kv.ok_or_else(|| not_found(job))?;
        let mut record: JobRecord = from_json(&key, &kv.value)?;
        if record.state != JobState::Stuck {
            return Err(not_stuck(&record));
        }
        match order {
            Order::Cancel => record.cancelled = true,
            Order::Retry => {
                record.state = JobState::Running;
                record.error = None;
                record.until = None;
                record.copies.failed.clear();
                record.copies.failing = 0;
            }
            Order::Throttle { rate } => record.rate = rate,
            Order::Pace { objects } => record.pace = objects,
            Order::Parallel { copies } => record.parallel = Some(copies.clamp(1, 256)),
        }
        record.moved = executor.clock().now();
        let put = Write::put(key.clone(), json(&record)?);
        let same = Cond::At(key, kv.mod_rev);
        if executor.note_if(&[same], &[put]).await?.is_none() {
            return Err(Error::new(ErrorKind::Busy, format!("job {job} moved")).fix("try again"));
        }
        self.board.set(record.clone());
        if matches!(order, Order::Cancel | Order::Retry) {
            self.clone().launch(&record, epoch)?;
        } else {
            self.give_back().await;
        }
        Ok(())
    }

    fn running(&self, job: JobId) -> Result<Running> {
        self.board
            .running(job)
            .ok_or_else(|| match self.board.get(job) {
                Some(r) if r.state.ended() => {
                    Error::new(ErrorKind::Conflict, format!("job {job} has ended"))
                }
                Some(_) => Error::new(
                    ErrorKind::Busy,
                    format!("job {job} is not run by this process"),
                )
                .fix("ask the one that runs it"),
                None => not_found(job),
            })
    }

    pub(super) fn plan_cancel(&self, intent: &Intent) -> Result<Plan> {
        let Intent::CancelJob { job } = intent else {
            return Err(Error::new(
                ErrorKind::Internal,
                "no job answers this intent",
            ));
        };
        let record = self.board.get(*job).ok_or_else(|| not_found(*job))?;
        let late = record.state.ended() || record.state == JobState::Completed;
        Ok(Plan {
            intent: intent.clone(),
            title: format!("stop job {job}: {}", record.title),
            checks: vec![Check {
                name: "the job can still be stopped".into(),
                failed: late.then(|| format!("it is {:?}", record.state).to_lowercase()),
                detail: record.step.clone(),
            }],
            steps: vec![
                "stop at the next safe point".into(),
                "take back what it did".into(),
            ],
            changes: Vec::new(),
            objects: ObjectChange::default(),
            warnings: Vec::new(),
            undo: "start it again".into(),
            danger: Danger::Medium,
            type_to_confirm: None,
            based_on: MetaRev(0),
            rests_on: Vec::new(),
            hash: String::new(),
        })
    }
}
