//! Plans, applies, runs, cancels, and takes up what a dead process left (law 7).

mod children;
mod journal;
mod pauses;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use journal::Journal;
pub use journal::look_on;
pub(in crate::engine::jobs) use journal::records;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Running};
use super::cx::Dials;
use super::drive::{Driver, delete_under};
use super::planner::Planner;
use super::registry::{Registry, kind_of};
use super::{Lock, locks};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, MetaKey, MetaRev};
use crate::engine::meta::{RangeOpts, Span, Write};
use crate::engine::model::catalog::Catalog;
use crate::engine::model::jobs::{JobState, JobsView, Progress};
use crate::engine::plan::execute::{Executor, Who};
use crate::engine::plan::journal::{JobRecord, json};
use crate::engine::plan::{Check, Danger, Intent, ObjectChange, Plan};

/// Plans that can still be applied; the oldest go first.
const PLANS: usize = 32;
/// Ended jobs that are kept with their pre-images.
const KEPT: usize = 100;
/// Audit entries that are kept.
const AUDITS: usize = 10_000;
/// Keys a plan rests on, read at once.
const READS: usize = 16;
/// Between looks at a root that somebody else owns.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts runners.
pub struct Runner;

struct Inner {
    executor: Arc<Executor>,
    registry: Registry,
    planner: Planner,
    journal: Journal,
    board: Arc<Board>,
    plans: Mutex<VecDeque<Arc<Plan>>>,
    /// Taking and giving back the root, and counting who needs it.
    gate: Mutex<()>,
    stop: CancellationToken,
}

/// What became of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A job that runs.
    Job(JobId),
    /// It is done already, and came to this.
    Settled(String),
}

/// A running runner. Cheap to clone; [`stop`](Self::stop) ends it.
#[derive(Clone)]
pub struct RunnerHandle {
    inner: Arc<Inner>,
    /// All jobs, at most ten times a second.
    pub view: watch::Receiver<Arc<JobsView>>,
}

impl Runner {
    /// Starts: reads the journal, takes up what is unfinished, follows what other processes do. Needs a tokio runtime.
    pub fn start(executor: Arc<Executor>, registry: Registry) -> RunnerHandle {
        let board = Arc::new(Board::new());
        let planner = Planner::new(
            executor.reader(),
            Some(executor.objects().clone()),
            executor.roots().clone(),
            executor.clock().clone(),
            registry.clone(),
        );
        let journal = Journal::new(executor.reader(), executor.keys().clone(), board.clone());
        let inner = Arc::new(Inner {
            executor,
            registry,
            planner,
            journal,
            board: board.clone(),
            plans: Mutex::default(),
            gate: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let view = board.subscribe();
        let clock = inner.executor.clock().clone();
        let publishing = inner.clone();
        tokio::spawn(inner.stop.clone().run_until_cancelled_owned(async move {
            publishing.board.publish(clock).await;
        }));
        let keeping = inner.executor.clone();
        tokio::spawn(inner.stop.clone().run_until_cancelled_owned(async move {
            keeping.fence().keep().await;
        }));
        tokio::spawn(
            inner
                .stop
                .clone()
                .run_until_cancelled_owned(inner.clone().follow()),
        );
        RunnerHandle { inner, view }
    }
}

impl RunnerHandle {
    /// Says what would happen. The plan can be applied by its hash until newer ones push it out.
    pub async fn plan(&self, intent: Intent, catalog: Arc<Catalog>) -> Result<Arc<Plan>> {
        let inner = &self.inner;
        let plan = match kind_of(&intent) {
            Some(_) => inner.planner.plan(&intent, catalog).await?,
            None if matches!(intent, Intent::CancelJob { .. }) => {
                inner.planner.fenced(inner.plan_cancel(&intent)?).await?
            }
            None => inner.plan_ticket(&intent).await?,
        };
        let plan = Arc::new(plan.sealed()?);
        let mut plans = inner.plans.lock().await;
        plans.retain(|p| p.hash != plan.hash);
        if plans.len() >= PLANS {
            plans.pop_front();
        }
        plans.push_back(plan.clone());
        Ok(plan)
    }

    /// As [`carry_out`](Self::carry_out), for what becomes a job.
    pub async fn apply(&self, hash: &str, typed: &str) -> Result<JobId> {
        match self.carry_out(hash, typed).await? {
            Applied::Job(job) => Ok(job),
            Applied::Settled(what) => Err(Error::new(
                ErrorKind::Internal,
                format!("no job was begun: {what}"),
            )),
        }
    }

    /// Applies the plan with this hash, once. `typed` is what the operator typed to confirm.
    pub async fn carry_out(&self, hash: &str, typed: &str) -> Result<Applied> {
        let inner = &self.inner;
        let plan = {
            let plans = inner.plans.lock().await;
            plans.iter().find(|p| p.hash == hash).cloned()
        };
        let plan = plan.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("plan {hash} is not known here, or was applied"),
            )
            .fix("make the plan again")
        })?;
        if let Some(check) = plan.failures().next() {
            let why = check.failed.clone().unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("check failed: {}: {why}", check.name),
            )
            .fix("clear the cause and plan again"));
        }
        if plan
            .type_to_confirm
            .as_deref()
            .is_some_and(|want| want != typed)
        {
            let want = plan.type_to_confirm.clone().unwrap_or_default();
            return Err(Error::new(ErrorKind::Invalid, "not confirmed")
                .fix(format!("type {want:?} exactly")));
        }
        let applied = match &plan.intent {
            Intent::CancelJob { job } => {
                self.cancel(*job)?;
                Applied::Job(*job)
            }
            Intent::PauseGc { .. } | Intent::ResumeGc { .. } => {
                Applied::Settled(inner.settle_ticket(&plan).await?)
            }
            _ => Applied::Job(inner.clone().begin(&plan, None).await?),
        };
        inner.plans.lock().await.retain(|p| p.hash != hash);
        Ok(applied)
    }

    /// Asks a job to stop and to take back what it did.
    pub fn cancel(&self, job: JobId) -> Result<()> {
        let record = self.inner.board.get(job).ok_or_else(|| not_found(job))?;
        if record.state.ended() || record.state == JobState::Completed {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("job {job} is {:?} already", record.state).to_lowercase(),
            )
            .fix("drop what it made instead"));
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

    /// Deletes and moves a second; `None` = no limit.
    pub fn pace(&self, job: JobId, rate: Option<u64>) -> Result<()> {
        self.inner.running(job)?.dials.set_pace(rate);
        Ok(())
    }

    /// Copies at once.
    pub fn parallel(&self, job: JobId, n: u32) -> Result<()> {
        self.inner.running(job)?.dials.set_parallel(n);
        Ok(())
    }

    /// Ends the runner and gives the root back. Unfinished jobs stay in the journal; the next runner takes them up.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let _gate = self.inner.gate.lock().await;
        self.inner.executor.fence().release().await;
        self.inner.board.flush();
    }

    /// Waits until a job has ended, and answers its last record.
    pub async fn ended(&self, job: JobId) -> Result<Arc<crate::engine::model::jobs::JobInfo>> {
        let mut view = self.view.clone();
        loop {
            let found = view
                .borrow_and_update()
                .jobs
                .iter()
                .find(|j| j.id == job)
                .cloned();
            match found {
                Some(info) if info.state.ended() => return Ok(info),
                _ => view
                    .changed()
                    .await
                    .map_err(|_| Error::new(ErrorKind::Internal, "the runner has stopped"))?,
            }
        }
    }
}

fn not_found(job: JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("job {job} is not known")).fix("list the jobs")
}

impl Inner {
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

    fn plan_cancel(&self, intent: &Intent) -> Result<Plan> {
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

    /// Fences and revisions once more, then the record with its locks, then the job. Nothing is written before the record but
    /// the allocator: the record needs an id.
    async fn begin(self: Arc<Self>, plan: &Plan, rate: Option<u64>) -> Result<JobId> {
        let gate = self.gate.lock().await;
        let begun = self.record(plan, rate).await;
        let (record, epoch) = match begun {
            Ok(begun) => begun,
            Err(e) => {
                if self.board.orphans().is_empty() && !self.board.any_running() {
                    self.executor.fence().release().await;
                }
                return Err(e);
            }
        };
        let job = record.id;
        self.clone().launch(&record, epoch)?;
        drop(gate);
        Ok(job)
    }

    async fn record(&self, plan: &Plan, rate: Option<u64>) -> Result<(JobRecord, u64)> {
        let kind = kind_of(&plan.intent)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no job answers this intent"))?;
        let executor = &self.executor;
        executor.fence().acquire().await?;
        let epoch = executor.fence().epoch().unwrap_or_default();
        executor.fence().check().await?;
        self.rests(plan).await?;
        let machine = self.registry.get(kind)?;
        let who = Who {
            job: JobId(0),
            plan: plan.hash.clone(),
            epoch: None,
        };
        let id = JobId(executor.take_ids(&who, 1).await?.first);
        let now = executor.clock().now();
        let state = machine.begin(plan)?;
        let wanted: Vec<Lock> = machine.locks(plan);
        locks::validate(&wanted)?;
        let (step, done, all) = machine.describe(&state).unwrap_or_default();
        let record = JobRecord {
            id,
            kind,
            intent: plan.intent.clone(),
            plan: plan.hash.clone(),
            actor: executor.actor().to_owned(),
            title: plan.title.clone(),
            state: JobState::Pending,
            step,
            steps: (done, all),
            progress: Progress::default(),
            collection: machine.collection(&state),
            machine: state,
            locks: locks::names(executor.keys(), &wanted, id),
            started: now,
            moved: now,
            ended: None,
            error: None,
            cancelled: false,
            notes: Vec::new(),
            recovered: None,
            rate,
            pace: None,
        };
        let key = executor.keys().job(id);
        let mut writes = vec![Write::put(key.clone(), json(&record)?)];
        writes.extend(locks::take(executor.keys(), &wanted, id));
        let conds = locks::conds(executor.keys(), &wanted);
        if executor.note_if(&conds, &writes).await?.is_none() {
            // Our own try may have gone through unseen: then the record is there.
            let meta = executor.reader();
            if meta.get(&key).await?.is_none() {
                let busy = locks::in_the_way(&*meta, executor.keys(), &wanted).await?;
                return Err(busy.unwrap_or_else(|| {
                    Error::new(ErrorKind::Busy, "another job was in the way a moment ago")
                        .fix("try again")
                }));
            }
        }
        Ok((record, epoch))
    }

    /// Refuses when a key that the plan rests on has moved.
    async fn rests(&self, plan: &Plan) -> Result<()> {
        let meta = self.executor.reader();
        let reads = plan.rests_on.clone().into_iter().map(|(key, rev)| {
            let meta = meta.clone();
            async move {
                let now = meta
                    .get(&MetaKey::from(key.as_str()))
                    .await?
                    .map_or(MetaRev(0), |kv| kv.mod_rev);
                if now == rev {
                    return Ok(());
                }
                Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "key {key} has moved from revision {rev} to {now} since the plan was made"
                    ),
                )
                .fix("look again, and make a new plan"))
            }
        });
        let mut reads = stream::iter(reads).buffer_unordered(READS);
        while let Some(one) = reads.next().await {
            one?;
        }
        Ok(())
    }

    /// Spawns the driver of a record read or written under `epoch`. The gate is held by the caller.
    fn launch(self: Arc<Self>, record: &JobRecord, epoch: u64) -> Result<()> {
        let running = Running {
            dials: Arc::new(Dials::new(
                self.executor.clock().clone(),
                self.board.changed.clone(),
            )),
            cancel: CancellationToken::new(),
        };
        if record.cancelled {
            running.cancel.cancel();
        }
        // Before anybody can turn it: an order given right after `apply` must not be lost to the driver's start.
        running.dials.set_throttle(record.rate);
        running.dials.set_pace(record.pace);
        let driver = Driver {
            executor: self.executor.clone(),
            board: self.board.clone(),
            kind: self.registry.get(record.kind)?,
            running: running.clone(),
            record: record.clone(),
            children: children::of(&self),
            epoch,
            back: None,
        };
        self.board.set(record.clone());
        self.board.start(record.id, running);
        let (stop, job) = (self.stop.clone(), record.id);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            driver.run().await;
            self.done(job).await;
        }));
        Ok(())
    }

    /// A job has ended: keep the journal small, and give the root back when nobody needs it.
    async fn done(&self, job: JobId) {
        let _gate = self.gate.lock().await;
        let _ = self.prune().await;
        if self.board.stop(job) {
            self.executor.fence().release().await;
        }
    }

    async fn prune(&self) -> Result<()> {
        let keys = self.executor.keys();
        let ended = self.board.ended();
        for job in ended.iter().take(ended.len().saturating_sub(KEPT)) {
            delete_under(&self.executor, &Span::prefix(&keys.under_job(*job))).await?;
            self.executor.note(&[Write::Delete(keys.job(*job))]).await?;
            self.board.forget(*job);
        }
        let audits = Span::prefix(&keys.audits());
        let opts = RangeOpts {
            keys_only: true,
            limit: AUDITS + 1_000,
            ..RangeOpts::default()
        };
        let page = self.executor.reader().range(&audits, opts).await?;
        if let Some(first_kept) = page
            .kvs
            .len()
            .checked_sub(AUDITS)
            .filter(|n| *n > 0)
            .map(|n| &page.kvs[n])
        {
            let old = Span {
                start: audits.start,
                end: Some(first_kept.key.0.clone()),
            };
            delete_under(&self.executor, &old).await?;
        }
        Ok(())
    }

    /// Reads the journal, then follows it: what others do is shown, and what they leave unfinished is taken up once their
    /// lease is gone.
    async fn follow(self: Arc<Self>) {
        let clock = self.executor.clock().clone();
        loop {
            if let Ok(rev) = self.journal.read().await {
                self.board.known();
                self.board.flush();
                self.clone().take_up().await;
                // An error ends the watch, not the task: the journal is read again.
                let freed = || self.clone().take_up();
                if let Err(e) = self.journal.watch(rev, freed).await
                    && e.kind() == ErrorKind::Unsupported
                {
                    return;
                }
            }
            clock.sleep(PATIENCE).await;
        }
    }

    /// Takes up unfinished jobs that nobody drives. Waits while somebody else owns the root: they may be theirs.
    async fn take_up(self: Arc<Self>) {
        let clock = self.executor.clock().clone();
        while !self.board.orphans().is_empty() {
            let gate = self.gate.lock().await;
            if self.executor.fence().acquire().await.is_err() {
                drop(gate);
                clock.sleep(PATIENCE).await;
                let _ = self.journal.read().await;
                continue;
            }
            let epoch = self.executor.fence().epoch().unwrap_or_default();
            // What they did last may have come after our last look.
            if self.journal.read().await.is_err() {
                drop(gate);
                clock.sleep(PATIENCE).await;
                continue;
            }
            for job in self.board.orphans() {
                let Some(mut record) = self.board.get(job) else {
                    continue;
                };
                let back = record.state == JobState::Undoing || record.cancelled;
                let word = if back { "undone" } else { "resumed" };
                record.recovered = Some(format!(
                    "{word}: the process that ran it ({}) ended at: {}",
                    record.actor, record.step
                ));
                if let Err(e) = self.clone().launch(&record, epoch) {
                    record.error = Some(e.to_string());
                    record.state = JobState::Failed;
                    record.ended = Some(clock.now());
                    self.board.set(record);
                }
            }
            if !self.board.any_running() {
                self.executor.fence().release().await;
            }
            return;
        }
    }
}
