//! The runner: journal before anything else, steps resumed or undone after a crash anywhere, locks, cancellation, confirmation.
//! The job here writes two keys and an object in separate steps, for real; the real jobs have tests of their own.

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::ids::{CollectionId, JobId, KeyPrefix, MetaRev, ObjectKey, UnixMs};
use falconer::engine::jobs::cx::JobCx;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::jobs::{Job, Lock, Next, PlanCx};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{Cond, Limits, MetaWriter, Span, Txn, Write};
use falconer::engine::model::jobs::{JobInfo, JobKind, JobState};
use falconer::engine::plan::execute::{Change, Executor, Parts};
use falconer::engine::plan::{Danger, Intent, ObjectChange, Plan};
use falconer::engine::profile::Roots;
use object_store::memory::InMemory;
use serde::{Deserialize, Serialize};
use support::faults::{Faults, Stores, World, sweep};
use support::mem::MemStore;

const NOW: UnixMs = UnixMs(1_790_000_000_000);

#[derive(Clone, Serialize, Deserialize)]
enum State {
    First,
    Object,
    Last,
    Check,
    Back(u8),
    /// More than a transaction takes.
    Big(String),
}

/// What the job does at its third step.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    Finish,
    Fail,
    Wait,
    /// Publishes, and never comes to verify it.
    Stay,
    /// Fails with more to say than a transaction takes.
    Talk,
    /// Comes to a state that is larger than a transaction.
    Grow,
}

struct Toy(Turn);

fn put(name: &str, key: &str) -> Change {
    Change {
        name: name.into(),
        conds: vec![Cond::Absent(key.into())],
        writes: vec![Write::put(key.into(), "x")],
        atomic: true,
    }
}

fn object() -> ObjectKey {
    "files/toy".into()
}

#[async_trait]
impl Job for Toy {
    const KIND: JobKind = JobKind::Demo;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let base = cx.meta.get(&"by-dev/meta/base".into()).await?;
        Ok(Plan {
            intent: intent.clone(),
            title: "toy".into(),
            checks: vec![],
            steps: vec!["one".into()],
            changes: vec![],
            objects: ObjectChange::default(),
            warnings: vec![],
            undo: "take back".into(),
            danger: Danger::High,
            type_to_confirm: Some("toy".into()),
            based_on: MetaRev(0),
            rests_on: vec![(
                "by-dev/meta/base".into(),
                base.map_or(MetaRev(0), |kv| kv.mod_rev),
            )],
            hash: String::new(),
        })
    }

    fn locks(&self, _: &Plan) -> Vec<Lock> {
        vec![Lock::alone("toy"), Lock::shared("all")]
    }

    fn begin(&self, _: &Plan) -> Result<State> {
        Ok(State::First)
    }

    fn collection(&self, _: &State) -> Option<CollectionId> {
        Some(CollectionId(5))
    }

    async fn step(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        Ok(match state {
            State::First => {
                cx.commit(put("first", "by-dev/meta/toy/first")).await?;
                cx.note("first is there");
                Next::Step(State::Object)
            }
            State::Object => {
                cx.put_object(&object(), Bytes::from("toy")).await?;
                cx.progress().file(3);
                Next::Step(State::Last)
            }
            State::Last => match self.0 {
                Turn::Finish | Turn::Stay => {
                    cx.commit(put("last", "by-dev/meta/toy/last")).await?;
                    Next::Published(State::Check)
                }
                Turn::Fail => return Err(Error::new(ErrorKind::Corrupt, "bad luck")),
                Turn::Talk => {
                    for i in 0..300 {
                        cx.note(format!("{i} {}", "ä".repeat(10_000)));
                    }
                    let what = format!("bad luck {}", "ä".repeat(2_000_000));
                    return Err(Error::new(ErrorKind::Corrupt, what));
                }
                Turn::Grow => Next::Step(State::Big("x".repeat(2_000_000))),
                Turn::Wait => {
                    cx.cancel.cancelled().await;
                    cx.check_cancel()?;
                    Next::Step(State::Last)
                }
            },
            State::Check if self.0 == Turn::Stay => std::future::pending().await,
            State::Check => {
                let key = "by-dev/meta/toy/last".into();
                match cx.meta.get(&key).await? {
                    Some(_) => Next::Verified(State::Check),
                    None => return Err(Error::new(ErrorKind::NotFound, "last is not there")),
                }
            }
            State::Back(_) | State::Big(_) => {
                return Err(Error::new(ErrorKind::Internal, "a step of an undone job"));
            }
        })
    }

    async fn undo(&self, cx: &JobCx, state: State, _: &Error) -> Result<Next<State>> {
        Ok(match state {
            State::Back(0) => {
                let change = Change {
                    name: "back".into(),
                    writes: vec![Write::Delete("by-dev/meta/toy/first".into())],
                    ..Change::default()
                };
                cx.commit(change).await?;
                Next::Undone(State::Back(1))
            }
            State::Back(_) => Next::Undone(state),
            _ => {
                cx.delete_object(&object()).await?;
                Next::Step(State::Back(0))
            }
        })
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        match state {
            State::First => ("write the first key".into(), 0, 3),
            State::Object => ("write the object".into(), 1, 3),
            State::Last => ("write the last key".into(), 2, 3),
            State::Check => ("check".into(), 2, 3),
            State::Big(_) => ("grow".into(), 2, 3),
            State::Back(n) => ("take back".into(), u32::from(*n), 3),
        }
    }
}

fn world() -> World {
    let limits = Limits {
        ops: 128,
        bytes: 1_536 * 1024,
    };
    World::new(
        Arc::new(MemStore::new(limits)),
        Arc::new(InMemory::new()),
        NOW,
    )
}

fn executor(stores: &Stores, seed: u64) -> Arc<Executor> {
    Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: Roots::default(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(seed)),
        actor: format!("tester pid {seed}"),
        embedded: true,
    })
}

fn runner(stores: &Stores, turn: Turn) -> RunnerHandle {
    Runner::start(executor(stores, 1), Registry::default().with(Toy(turn)))
}

async fn begin(runner: &RunnerHandle) -> Result<JobId> {
    let plan = runner.plan(Intent::Demo, Arc::default()).await?;
    runner.apply(&plan.hash, "toy").await
}

/// What an operator does: start the program; if a job is there, wait for it, else give the order.
async fn operate(stores: &Stores, turn: Turn) -> Result<Arc<JobInfo>> {
    let runner = runner(stores, turn);
    let mut known = stores
        .meta
        .range_all(&Span::prefix(&KeyPrefix::new("falconer/by-dev/job")))
        .await;
    for _ in 0..3 {
        if known.as_ref().is_err_and(Error::is_transient) {
            known = stores
                .meta
                .range_all(&Span::prefix(&KeyPrefix::new("falconer/by-dev/job")))
                .await;
        }
    }
    let jobs = known?;
    let job = match jobs.kvs.first() {
        Some(kv) => kv.key.text().split('/').nth(3).unwrap().parse().unwrap(),
        None => loop {
            match begin(&runner).await {
                Err(e) if e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown => {
                    tokio::task::yield_now().await;
                }
                done => break done?,
            }
        },
    };
    let info = runner.ended(job).await?;
    runner.stop().await;
    Ok(info)
}

async fn keys(world: &World, prefix: &str) -> Vec<String> {
    let page = world
        .meta
        .range_all(&Span::prefix(&KeyPrefix::new(prefix)))
        .await
        .unwrap();
    page.kvs.into_iter().map(|kv| kv.key.text()).collect()
}

async fn nothing_left(world: &World, label: &str) {
    assert!(
        keys(world, "falconer/by-dev/lock").await.is_empty(),
        "{label}"
    );
    assert!(
        keys(world, "falconer/by-dev/owner").await.is_empty(),
        "{label}"
    );
    let marks: Vec<String> = keys(world, "falconer/by-dev/job")
        .await
        .into_iter()
        .filter(|k| k.contains("/mark/"))
        .collect();
    // The last sweep of markers may have been cut off; the record says that the job has ended.
    assert!(marks.len() <= 3, "{label}: {marks:?}");
}

async fn records(world: &World) -> Vec<serde_json::Value> {
    let span = Span::prefix(&KeyPrefix::new("falconer/by-dev/job"));
    let page = world.meta.range_all(&span).await.unwrap();
    page.kvs
        .iter()
        .filter(|kv| kv.key.text().split('/').count() == 4)
        .map(|kv| serde_json::from_slice(&kv.value).unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_job_survives_every_fault() {
    let drive = async |stores: &Stores| operate(stores, Turn::Finish).await.map(|_| ());
    let check = async |world: &World, label: &str| {
        assert_eq!(keys(world, "by-dev/meta/toy").await.len(), 2, "{label}");
        let stores = world.open(&Faults::none(), "files");
        assert_eq!(stores.read.get(&object()).await.unwrap(), "toy", "{label}");
        let records = records(world).await;
        assert_eq!(records.len(), 1, "{label}");
        assert_eq!(records[0]["state"], "verified", "{label}: {}", records[0]);
        nothing_left(world, label).await;
    };
    let runs = sweep("files", async || world(), drive, check).await;
    assert!(runs > 50, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_job_is_undone_through_every_fault() {
    let drive = async |stores: &Stores| operate(stores, Turn::Fail).await.map(|_| ());
    let check = async |world: &World, label: &str| {
        assert!(keys(world, "by-dev/meta/toy").await.is_empty(), "{label}");
        let stores = world.open(&Faults::none(), "files");
        assert!(stores.read.head(&object()).await.is_err(), "{label}");
        let records = records(world).await;
        assert_eq!(records[0]["state"], "failed", "{label}");
        assert!(
            records[0]["error"].as_str().unwrap().contains("bad luck"),
            "{label}"
        );
        nothing_left(world, label).await;
    };
    sweep("files", async || world(), drive, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_resumed_job_says_so() {
    let world = world();
    let faults = Faults::none();
    let stores = world.open(&faults, "files");
    let first = runner(&stores, Turn::Wait);
    let job = begin(&first).await.unwrap();
    wait_for(&first, job, |j| j.step.contains("last key")).await;
    // kill -9: nothing more reaches the stores, the lease runs out.
    faults.kill();
    world.bury().await;
    let stores = world.open(&Faults::none(), "files");
    let second = runner(&stores, Turn::Finish);
    let info = second.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified);
    let said = info.recovered.clone().unwrap();
    assert!(
        said.starts_with("resumed: ") && said.contains("write the last key"),
        "{said}"
    );
    assert_eq!(info.notes, ["first is there"]);
    assert_eq!(info.steps, (3, 3), "what is verified is done");
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_lease_the_journal_decides() {
    let world = world();
    let first = runner(&world.open(&Faults::none(), "files"), Turn::Wait);
    let job = begin(&first).await.unwrap();
    wait_for(&first, job, |j| j.step.contains("last key")).await;
    // Its lease runs out in the middle of a step; another process takes the job up, publishes it, and dies.
    world.bury().await;
    let faults = Faults::none();
    let stores = world.open(&faults, "files");
    let second = Runner::start(
        executor(&stores, 2),
        Registry::default().with(Toy(Turn::Stay)),
    );
    wait_for(&second, job, |j| j.state == JobState::Completed).await;
    faults.kill();
    world.bury().await;
    // What the first one has in memory would now be taken back.
    first.cancel(job).unwrap();
    let info = first.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{:?}", info.notes);
    assert_eq!(keys(&world, "by-dev/meta/toy").await.len(), 2);
    let stores = world.open(&Faults::none(), "files");
    assert_eq!(stores.read.get(&object()).await.unwrap(), "toy");
    first.stop().await;
}

#[tokio::test(start_paused = true)]
#[allow(
    clippy::disallowed_methods,
    reason = "the time here is the virtual one"
)]
async fn a_job_that_says_or_keeps_too_much_still_ends() {
    for (turn, said) in [(Turn::Talk, "bad luck"), (Turn::Grow, "too large")] {
        let world = world();
        let runner = runner(&world.open(&Faults::none(), "files"), turn);
        let job = begin(&runner).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_mins(10), runner.ended(job));
        let info = ended.await.expect("it loops for ever").unwrap();
        assert_eq!(info.state, JobState::Failed);
        let error = info.error.clone().unwrap();
        assert!(error.contains(said) && error.len() <= 4096, "{said}");
        assert!(keys(&world, "by-dev/meta/toy").await.is_empty(), "{said}");
        runner.stop().await;
        nothing_left(&world, said).await;
        assert_eq!(records(&world).await[0]["state"], "failed", "{said}");
    }
}

async fn wait_for(
    runner: &RunnerHandle,
    job: JobId,
    what: impl Fn(&JobInfo) -> bool,
) -> Arc<JobInfo> {
    let mut view = runner.view.clone();
    loop {
        let found = view
            .borrow_and_update()
            .jobs
            .iter()
            .find(|j| j.id == job)
            .cloned();
        match found {
            Some(info) if what(&info) => return info,
            _ => view.changed().await.unwrap(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cancelling_takes_everything_back() {
    let world = world();
    let runner = runner(&world.open(&Faults::none(), "files"), Turn::Wait);
    let job = begin(&runner).await.unwrap();
    wait_for(&runner, job, |j| j.step.contains("last key")).await;
    assert_eq!(keys(&world, "by-dev/meta/toy").await.len(), 1);
    let plan = runner
        .plan(Intent::CancelJob { job }, Arc::default())
        .await
        .unwrap();
    assert_eq!(runner.apply(&plan.hash, "").await.unwrap(), job);
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Cancelled);
    assert!(keys(&world, "by-dev/meta/toy").await.is_empty());
    assert_eq!(runner.cancel(job).unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn two_jobs_on_one_thing_exclude_each_other() {
    let world = world();
    let stores = world.open(&Faults::none(), "files");
    let one = runner(&stores, Turn::Wait);
    let plan = one.plan(Intent::Demo, Arc::default()).await.unwrap();
    let other = one.plan(Intent::Demo, Arc::default()).await.unwrap();
    assert_eq!(plan.hash, other.hash, "the same plan twice is one plan");
    let job = one.apply(&plan.hash, "toy").await.unwrap();
    // The plan is used up, and a new one sees the lock.
    assert_eq!(
        one.apply(&plan.hash, "toy").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let late = one.plan(Intent::Demo, Arc::default()).await.unwrap();
    assert!(!late.applicable());
    let e = one.apply(&late.hash, "toy").await.unwrap_err();
    assert!(e.what().contains(&job.to_string()), "{e}");
    // Another process is told who owns the root.
    let second = Runner::start(
        executor(&stores, 2),
        Registry::default().with(Toy(Turn::Finish)),
    );
    let e = begin(&second).await.unwrap_err();
    assert!(
        matches!(e.kind(), ErrorKind::Busy | ErrorKind::Invalid),
        "{e}"
    );
    one.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_plan_is_applied_only_as_confirmed_and_while_it_holds() {
    let world = world();
    let runner = runner(&world.open(&Faults::none(), "files"), Turn::Finish);
    let plan = runner.plan(Intent::Demo, Arc::default()).await.unwrap();
    assert_eq!(
        runner.apply(&plan.hash, "to").await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(
        runner.apply("0", "toy").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let write = Write::put("by-dev/meta/base".into(), "1");
    world
        .meta
        .txn(Txn {
            conds: vec![],
            writes: vec![write],
        })
        .await
        .unwrap();
    let e = runner.apply(&plan.hash, "toy").await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert!(e.what().contains("by-dev/meta/base"), "{e}");
    assert!(keys(&world, "falconer/by-dev/job").await.is_empty());
    assert!(
        keys(&world, "falconer/by-dev/owner").await.is_empty(),
        "nobody needs the root"
    );
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_appears_stops_the_job_and_it_is_undone_later() {
    let world = world();
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores, Turn::Wait);
    let job = begin(&runner).await.unwrap();
    wait_for(&runner, job, |j| j.step.contains("last key")).await;
    let lease = world.meta.grant(Duration::from_secs(15)).await.unwrap();
    let session = Write::Put {
        key: "by-dev/meta/session/mixcoord".into(),
        value: "{}".into(),
        lease,
    };
    world
        .meta
        .txn(Txn {
            conds: vec![],
            writes: vec![session],
        })
        .await
        .unwrap();
    let e = begin(&runner).await.unwrap_err();
    assert!(e.what().contains("check failed"), "{e}");
    runner.cancel(job).unwrap();
    // Taking back is a write too: it waits, and says for whom.
    let info = wait_for(&runner, job, |j| {
        j.notes
            .iter()
            .any(|n| n.contains("waiting") && n.contains("mixcoord"))
    })
    .await;
    assert_eq!(info.state, JobState::Undoing);
    assert_eq!(keys(&world, "by-dev/meta/toy").await.len(), 1);
    world.meta.revoke(lease).await.unwrap();
    assert_eq!(runner.ended(job).await.unwrap().state, JobState::Cancelled);
    assert!(keys(&world, "by-dev/meta/toy").await.is_empty());
}
