//! Plans, applies, runs, cancels, and takes up what a dead process left (law 7).

mod children;
mod hold;
mod init;
mod journal;
mod keep;
mod orders;
mod pauses;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream;
use futures::{FutureExt, StreamExt};
use journal::Journal;
pub use journal::look_on;
pub(in crate::engine::jobs) use journal::records;
use tokio::sync::{Mutex, Notify, watch};

use super::board::{Board, Running};
use super::cx::Dials;
use super::drive::Driver;
use super::planner::Planner;
use super::registry::{Registry, kind_of};
use super::{Lock, locks};
use crate::engine::coordinator::Coordinator;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, MetaKey, MetaRev};
use crate::engine::meta::Write;
use crate::engine::meta::scope::Scope;
use crate::engine::model::broadcast::BroadcastsView;
use crate::engine::model::catalog::Catalog;
use crate::engine::model::jobs::{Copies, JobState, JobsView, Progress};
use crate::engine::plan::execute::{Executor, Who};
use crate::engine::plan::journal::{JobRecord, Order, json};
use crate::engine::plan::{Intent, Plan};

/// Plans that can still be applied; the oldest go first.
const PLANS: usize = 32;
/// Keys a plan rests on, read at once.
const READS: usize = 16;
/// Between looks at a root that somebody else owns.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks at what is over its time.
const ROUND: Duration = Duration::from_mins(10);

/// Starts runners.
pub struct Runner;

/// Cheap to clone: what is bound to a scope, and what all share.
#[derive(Clone)]
struct Inner {
    executor: Arc<Executor>,
    registry: Registry,
    planner: Planner,
    journal: Journal,
    board: Arc<Board>,
    plans: Arc<Mutex<VecDeque<Arc<Plan>>>>,
    /// Taking and giving back the root, and counting who needs it.
    gate: Arc<Mutex<()>>,
    /// Broadcasts that this process drives; the root is kept as long as one is unfinished.
    coordinator: Arc<Coordinator>,
    /// There may be a job to take up: the root was given back, or the journal read.
    freed: Arc<Notify>,
    /// Ends with the runner. Jobs run under it, whoever begins them.
    life: Scope,
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
    /// Broadcasts that this process drives.
    pub broadcasts: watch::Receiver<Arc<BroadcastsView>>,
}

impl Runner {
    /// Starts: reads the journal, takes up what is unfinished, follows what other processes do. Ends with the executor's scope. Needs a
    /// tokio runtime.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "given away: only the runner writes from now on"
    )]
    pub fn start(executor: Arc<Executor>, registry: Registry) -> RunnerHandle {
        // Beside the jobs, not below them: they are stopped first.
        let coordinator = Coordinator::new(executor.within(&executor.scope().child("broadcasts")));
        let life = executor.scope().child("jobs");
        let executor = executor.within(&life);
        let board = Arc::new(Board::new());
        let planner = Planner::new(
            executor.reader(),
            Some(executor.objects().clone()),
            executor.roots().clone(),
            executor.clock().clone(),
            registry.clone(),
        )
        .of_writer(executor.clone());
        let journal = Journal::new(executor.reader(), executor.keys().clone(), board.clone());
        let inner = Arc::new(Inner {
            executor,
            registry,
            planner,
            journal,
            board: board.clone(),
            plans: Arc::default(),
            gate: Arc::default(),
            coordinator,
            freed: Arc::new(Notify::new()),
            life,
        });
        let view = board.subscribe();
        let clock = inner.executor.clock().clone();
        let stop = inner.life.token().clone();
        let spawn = |task: BoxFuture<'static, ()>| {
            tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        };
        let a_loop = |name: &'static str| inner.within(&inner.life.child(name));
        spawn(async move { board.publish(clock).await }.boxed());
        let keeping = a_loop("loop: keeping the lease").executor.clone();
        spawn(async move { keeping.fence().keep().await }.boxed());
        spawn(a_loop("loop: following the jobs").follow().boxed());
        spawn(a_loop("loop: taking up jobs").take_ups().boxed());
        spawn(a_loop("loop: keeping the journal small").rounds().boxed());
        spawn(a_loop("loop: giving the root back").idles().boxed());
        let broadcasts = inner.coordinator.view();
        RunnerHandle {
            inner,
            view,
            broadcasts,
        }
    }
}

impl RunnerHandle {
    /// The same on behalf of another: a request. Jobs that it begins outlive it.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            inner: self.inner.within(scope),
            ..self.clone()
        }
    }

    /// Says what would happen. The plan can be applied by its hash until newer ones push it out.
    pub async fn plan(&self, intent: Intent, catalog: Arc<Catalog>) -> Result<Arc<Plan>> {
        let inner = &self.inner;
        let plan = match kind_of(&intent) {
            Some(_) => inner.planner.plan(&intent, catalog).await?,
            None if matches!(intent, Intent::CancelJob { .. }) => {
                inner.planner.fenced(inner.plan_cancel(&intent)?).await?
            }
            None if matches!(intent, Intent::Init { .. }) => {
                inner
                    .planner
                    .fenced(inner.plan_init(&intent).await?)
                    .await?
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
                self.order(*job, Order::Cancel).await?;
                Applied::Job(*job)
            }
            Intent::Init { .. } => Applied::Settled(inner.settle_init(&plan).await?),
            Intent::PauseGc { .. } | Intent::ResumeGc { .. } => {
                Applied::Settled(inner.settle_ticket(&plan).await?)
            }
            _ => Applied::Job(inner.clone().begin(&plan, None).await?),
        };
        inner.plans.lock().await.retain(|p| p.hash != hash);
        Ok(applied)
    }

    /// Ends the runner and gives the root back. Unfinished jobs stay in the journal; the next runner takes them up.
    pub async fn stop(&self) {
        self.inner.life.cancel();
        let _gate = self.inner.gate.lock().await;
        if !self.inner.board.any_running() {
            self.inner.coordinator.settle().await;
        }
        self.inner.coordinator.close().await;
        self.inner.executor.fence().release().await;
        self.inner.board.flush();
    }

    /// Waits until a job has ended or waits for the operator, and answers its last record.
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
                Some(info) if info.state.rests() => return Ok(info),
                _ => view
                    .changed()
                    .await
                    .map_err(|_| Error::new(ErrorKind::Internal, "the runner has stopped"))?,
            }
        }
    }
}

impl Inner {
    /// The same on behalf of another.
    fn within(&self, scope: &Scope) -> Arc<Self> {
        Arc::new(Self {
            executor: self.executor.within(scope),
            planner: self.planner.within(scope),
            journal: self.journal.within(scope),
            ..self.clone()
        })
    }

    /// Waits for its turn as long as the scope lasts.
    async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        self.executor.scope().wait(self.gate.lock()).await
    }

    /// Fences and revisions once more, then the record with its locks, then the job. Nothing is written before the record but
    /// the allocator: the record needs an id.
    async fn begin(self: Arc<Self>, plan: &Plan, rate: Option<u64>) -> Result<JobId> {
        let gate = self.turn().await?;
        let begun = self.record(plan, rate).await;
        let (record, epoch) = match begun {
            Ok(begun) => begun,
            Err(e) => {
                let now = self.executor.clock().now();
                if self.board.orphans(now).is_empty() {
                    self.give_back().await;
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
            parallel: None,
            copies: Copies::default(),
            until: None,
        };
        let key = executor.keys().job(id);
        let mut writes = vec![Write::put(key.clone(), json(&record)?)];
        writes.extend(locks::take(executor.keys(), &wanted, id));
        let conds = locks::conds(executor.keys(), &wanted);
        if executor.note_if(&conds, &writes).await?.is_none() {
            // Our own try may have gone through unseen: then the record is there. Looked up also for one that has left meanwhile: a
            // job that is begun must not be told as refused.
            let meta = executor.detached("look for the job's record").reader();
            if meta.get(&key).await?.is_none() {
                let busy = locks::in_the_way(&meta, executor.keys(), &wanted).await?;
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
        let name = format!("job {} {}", record.id, record.title);
        let home = self.within(&self.life.begun_by(self.executor.scope(), name.as_str()));
        let steps = home.executor.scope().child(name);
        let running = Running {
            dials: Arc::new(Dials::new(
                self.executor.clock().clone(),
                self.board.changed.clone(),
            )),
            cancel: steps.token().clone(),
            heard: Arc::default(),
        };
        // One that still waits for the operator is only launched to be taken back.
        if record.cancelled || record.state == JobState::Stuck {
            running.cancel.cancel();
        }
        // Before anybody can turn it: an order given right after `apply` must not be lost to the driver's start.
        running.dials.set_throttle(record.rate);
        running.dials.set_pace(record.pace);
        if let Some(copies) = record.parallel {
            running.dials.set_parallel(copies);
        }
        let driver = Driver {
            executor: home.executor.clone(),
            steps,
            board: self.board.clone(),
            kind: self.registry.get(record.kind)?,
            running: running.clone(),
            record: record.clone(),
            children: children::of(&home),
            coordinator: self.coordinator.clone(),
            epoch,
            back: None,
            doubt: false,
        };
        self.board.set(record.clone());
        self.board.start(record.id, running);
        let (stop, job) = (self.life.token().clone(), record.id);
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            driver.run().await;
            home.done(job).await;
        }));
        Ok(())
    }

    /// A job has ended: keep the journal small, and give the root back when nobody needs it.
    async fn done(&self, job: JobId) {
        let _gate = self.gate.lock().await;
        // What cannot be tidied now is tidied after the next job.
        let _ = keep::tidy(&self.executor, &self.board).await;
        self.board.stop(job);
        self.coordinator.rested();
        self.give_back().await;
    }

    /// Reads the journal, then follows it: what others do is shown, and what they leave unfinished is taken up once their
    /// lease is gone.
    async fn follow(self: Arc<Self>) {
        let clock = self.executor.clock().clone();
        loop {
            if let Ok(rev) = self.journal.read().await {
                self.board.known();
                self.board.flush();
                self.freed.notify_one();
                // An error ends the watch, not the task: the journal is read again.
                if let Err(e) = self.journal.watch(rev, || self.freed.notify_one()).await
                    && e.kind() == ErrorKind::Unsupported
                {
                    return;
                }
            }
            clock.sleep(PATIENCE).await;
        }
    }
}
