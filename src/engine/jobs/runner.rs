//! Plans, applies, runs, cancels, and takes up what a dead process left (law 7).

mod children;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Running};
use super::cx::Dials;
use super::drive::{Driver, delete_under};
use super::registry::{Registry, kind_of};
use super::{Lock, PlanCx, locks};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, MetaKey, MetaRev};
use crate::engine::meta::{Event, RangeOpts, Span, Write};
use crate::engine::model::catalog::Catalog;
use crate::engine::model::jobs::{JobState, JobsView, Progress};
use crate::engine::plan::execute::{Executor, Who};
use crate::engine::plan::journal::{JobRecord, from_json, json};
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
    board: Arc<Board>,
    plans: Mutex<VecDeque<Arc<Plan>>>,
    /// Taking and giving back the root, and counting who needs it.
    gate: Mutex<()>,
    stop: CancellationToken,
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
        let inner = Arc::new(Inner {
            executor,
            registry,
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
        let executor = &inner.executor;
        let mut plan = match kind_of(&intent) {
            None => inner.plan_cancel(&intent)?,
            Some(kind) => {
                let cx = PlanCx {
                    meta: executor.reader(),
                    objects: executor.objects().clone(),
                    roots: executor.roots().clone(),
                    clock: executor.clock().clone(),
                    catalog,
                };
                let kind = inner.registry.get(kind)?;
                let mut plan = kind.plan(&cx, &intent).await?;
                let locks = kind.locks(&plan);
                let busy = locks::in_the_way(&*cx.meta, executor.keys(), &locks).await?;
                plan.checks.push(Check {
                    name: "no other job is in the way".into(),
                    failed: busy.map(|e| e.to_string()),
                    detail: locks
                        .iter()
                        .map(|l| l.name.clone())
                        .collect::<Vec<_>>()
                        .join(", "),
                });
                plan
            }
        };
        let coordinator = executor.fence().coordinator().await?;
        plan.checks.push(Check {
            name: "no coordinator is registered".into(),
            detail: if coordinator.is_none() {
                "no session of any coordinator".into()
            } else {
                String::new()
            },
            failed: coordinator.map(|e| e.to_string()),
        });
        let plan = Arc::new(plan.sealed()?);
        let mut plans = inner.plans.lock().await;
        plans.retain(|p| p.hash != plan.hash);
        if plans.len() >= PLANS {
            plans.pop_front();
        }
        plans.push_back(plan.clone());
        Ok(plan)
    }

    /// Applies the plan with this hash, once. `typed` is what the operator typed to confirm.
    pub async fn apply(&self, hash: &str, typed: &str) -> Result<JobId> {
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
        let job = if let Intent::CancelJob { job } = plan.intent {
            self.cancel(job)?;
            job
        } else {
            inner.clone().begin(&plan, None).await?
        };
        inner.plans.lock().await.retain(|p| p.hash != hash);
        Ok(job)
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
        let record = match begun {
            Ok(record) => record,
            Err(e) => {
                if self.board.orphans().is_empty() && !self.board.any_running() {
                    self.executor.fence().release().await;
                }
                return Err(e);
            }
        };
        let job = record.id;
        self.clone().launch(&record)?;
        drop(gate);
        Ok(job)
    }

    async fn record(&self, plan: &Plan, rate: Option<u64>) -> Result<JobRecord> {
        let kind = kind_of(&plan.intent)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no job answers this intent"))?;
        let executor = &self.executor;
        executor.fence().acquire().await?;
        executor.fence().check().await?;
        self.rests(plan).await?;
        let machine = self.registry.get(kind)?;
        let who = Who {
            job: JobId(0),
            plan: plan.hash.clone(),
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
        Ok(record)
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

    /// Spawns the driver. The gate is held by the caller.
    fn launch(self: Arc<Self>, record: &JobRecord) -> Result<()> {
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
        let driver = Driver {
            executor: self.executor.clone(),
            board: self.board.clone(),
            kind: self.registry.get(record.kind)?,
            running: running.clone(),
            record: record.clone(),
            children: children::of(&self),
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

    /// All job records: one short range each, because markers and pre-images lie between them.
    async fn read_journal(&self) -> Result<MetaRev> {
        let meta = self.executor.reader();
        let mut span = Span::prefix(&self.executor.keys().jobs());
        let mut first = None;
        loop {
            let opts = RangeOpts {
                limit: 1,
                ..RangeOpts::default()
            };
            let page = meta.range(&span, opts).await?;
            first.get_or_insert(page.rev);
            let Some(kv) = page.kvs.first() else {
                return Ok(first.unwrap_or(page.rev));
            };
            if let Some(record) = self.as_record(&kv.key, &kv.value) {
                self.board.learn(record);
            }
            // `/` is the last byte before `0`: the next start lies behind everything under this job.
            let mut start = kv.key.0.to_vec();
            start.push(b'0');
            span.start = start.into();
        }
    }

    /// The job, if the key is that of a record.
    fn job_of(&self, key: &MetaKey) -> Option<JobId> {
        let prefix = self.executor.keys().jobs();
        let id = key.0.strip_prefix(&prefix.bytes()[..])?;
        std::str::from_utf8(id).ok()?.parse().ok()
    }

    /// The record, if the key is one. A record that cannot be read is left to the version that wrote it.
    fn as_record(&self, key: &MetaKey, value: &[u8]) -> Option<JobRecord> {
        self.job_of(key)?;
        from_json(key, value).ok()
    }

    /// Reads the journal, then follows it: what others do is shown, and what they leave unfinished is taken up once their
    /// lease is gone.
    async fn follow(self: Arc<Self>) {
        let clock = self.executor.clock().clone();
        loop {
            if let Ok(rev) = self.read_journal().await {
                self.board.known();
                self.board.flush();
                self.clone().take_up().await;
                // An error ends the watch, not the task: the journal is read again.
                if let Err(e) = self.clone().watch(rev).await
                    && e.kind() == ErrorKind::Unsupported
                {
                    return;
                }
            }
            clock.sleep(PATIENCE).await;
        }
    }

    async fn watch(self: Arc<Self>, from: MetaRev) -> Result<()> {
        let meta = self.executor.reader();
        let keys = self.executor.keys();
        let owner = keys.owner();
        let base = owner.text();
        let base = base.trim_end_matches("owner");
        let span = Span::prefix(&crate::engine::ids::KeyPrefix::new(base));
        let mut changes = meta.watch(span, from.next()).await?;
        while let Some(batch) = changes.next().await {
            let mut free = false;
            for event in batch?.events {
                match event {
                    Event::Put(kv) => {
                        if let Some(record) = self.as_record(&kv.key, &kv.value) {
                            self.board.learn(record);
                        }
                    }
                    Event::Delete(key, _) => {
                        free |= key == owner;
                        if let Some(id) = self.job_of(&key) {
                            self.board.forget(id);
                        }
                    }
                }
            }
            if free {
                self.clone().take_up().await;
            }
        }
        Ok(())
    }

    /// Takes up unfinished jobs that nobody drives. Waits while somebody else owns the root: they may be theirs.
    async fn take_up(self: Arc<Self>) {
        let clock = self.executor.clock().clone();
        while !self.board.orphans().is_empty() {
            let gate = self.gate.lock().await;
            if self.executor.fence().acquire().await.is_err() {
                drop(gate);
                clock.sleep(PATIENCE).await;
                let _ = self.read_journal().await;
                continue;
            }
            // What they did last may have come after our last look.
            if self.read_journal().await.is_err() {
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
                if let Err(e) = self.clone().launch(&record) {
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
