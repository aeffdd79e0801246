//! Who may act, on real etcd: two Falconers on one root, one with a lease that has run out; two restores into one target; two creates of one
//! name; a coordinator that appears in mid-plan. Each time at most one acts, the other is told who and why, and nothing is half done.

#![allow(
    clippy::disallowed_methods,
    reason = "real servers are waited for in real time"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use falconer::engine::clock::{Clock, SeededEntropy};
use falconer::engine::error::{Error, ErrorKind};
use falconer::engine::format::keys::Family;
use falconer::engine::format::pb;
use falconer::engine::ids::{CollectionId, JobId, SnapshotId, UnixMs};
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore::Restore;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::jobs::snapshot_create::CreateSnapshot;
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaRead, MetaWrite, MetaWriter, Span, Txn, Write};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::fence::Fence;
use falconer::engine::plan::journal::Keys;
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::EtcdProfile;
use support::faults::{Faults, VirtualClock, World};
use support::same::{same, unpinned};
use support::servers::{Etcd, EtcdVersion};
use support::snapshots::{
    self as lab, Made, NOW, ROOT, all, collection, family, make, objects, roots,
};

const PATIENCE: Duration = Duration::from_mins(2);
const SNAPSHOT: i64 = 470_660_334_431_990_001;

/// A small cluster on a real etcd, with a snapshot; its objects in memory.
async fn cluster() -> (Etcd, World, Made) {
    let etcd = Etcd::start(EtcdVersion::V35);
    let seed = lab::small_seed(&lab::FLUSHED).await.world();
    let clock: Arc<dyn Clock> = VirtualClock::at(NOW);
    let profile = EtcdProfile::plain([etcd.endpoint()]);
    let store = EtcdStore::connect(&profile, clock).await.unwrap();
    let page = seed.meta.range_all(&Span::all()).await.unwrap();
    for chunk in page.kvs.chunks(100) {
        let writes = chunk
            .iter()
            .map(|kv| Write::put(kv.key.clone(), kv.value.clone()));
        let txn = Txn {
            conds: vec![],
            writes: writes.collect(),
        };
        store.txn(txn).await.unwrap();
    }
    let world = World::new(Arc::new(store), seed.objects.clone(), NOW);
    let (db, of) = collection(&*world.meta, "metrics").await;
    let made = make(&world, db, of, SNAPSHOT, "nightly", 2).await;
    (etcd, world, made)
}

fn falconer(world: &World, seed: u64) -> RunnerHandle {
    let stores = world.open(&Faults::none(), ROOT);
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(seed)),
        actor: format!("tester{seed}@here pid {seed}"),
        embedded: false,
    });
    let kinds = Registry::default()
        .with(Restore::default())
        .with(CreateSnapshot);
    Runner::start(executor, kinds)
}

fn restore(name: &str) -> Intent {
    Intent::Restore {
        snapshot: SnapshotId(SNAPSHOT),
        database: "default".into(),
        collection: name.into(),
    }
}

async fn catalog(world: &World) -> Arc<Catalog> {
    let page = world.meta.range_all(&Span::all()).await.unwrap();
    let events: Vec<_> = page
        .kvs
        .into_iter()
        .map(falconer::engine::meta::Event::Put)
        .collect();
    let mut catalog = Catalog::default();
    catalog.apply(&roots(), &events);
    catalog.rev = page.rev;
    Arc::new(catalog)
}

async fn plan(world: &World, runner: &RunnerHandle, intent: Intent) -> Arc<Plan> {
    runner.plan(intent, catalog(world).await).await.unwrap()
}

async fn seen(runner: &RunnerHandle, job: JobId, is: impl Fn(&JobInfo) -> bool) -> Arc<JobInfo> {
    let mut view = runner.view.clone();
    let waiting = async {
        loop {
            let found = view
                .borrow_and_update()
                .jobs
                .iter()
                .find(|j| j.id == job)
                .cloned();
            match found {
                Some(info) if is(&info) => return info,
                _ => view.changed().await.unwrap(),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(info) => info,
        Err(late) => panic!("never seen, {late}: {:?}", runner.view.borrow().jobs),
    }
}

async fn ended(runner: &RunnerHandle, job: JobId) -> Arc<JobInfo> {
    seen(runner, job, |j| j.state.ended()).await
}

/// Starts a restore that is met in the middle of its copies.
async fn half_way(world: &World, runner: &RunnerHandle, name: &str) -> JobId {
    let planned = plan(world, runner, restore(name)).await;
    let job = runner.apply(&planned.hash, "").await.unwrap();
    runner.throttle(job, Some(20_000)).unwrap();
    let info = seen(runner, job, |j| j.progress.files.0 > 0).await;
    assert!(info.progress.files.0 < info.progress.files.1, "{info:?}");
    job
}

type Picture = (BTreeMap<String, Bytes>, BTreeMap<String, Bytes>);

/// The cluster without our own journal and without the allocator, which only moves forward.
async fn picture(world: &World) -> Picture {
    let mut meta = all(&*world.meta, "by-dev").await;
    meta.remove("by-dev/kv/gid/idTimestamp");
    (meta, objects(&*world.objects).await)
}

async fn named(world: &World, name: &str) -> usize {
    family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
        .await
        .into_iter()
        .filter(|(_, info)| info.schema.as_ref().is_some_and(|s| s.name == name))
        .count()
}

fn names(e: &Error, who: &str) {
    assert!(e.to_string().contains(who), "{e}");
    assert!(
        matches!(
            e.kind(),
            ErrorKind::Busy | ErrorKind::Invalid | ErrorKind::Conflict
        ),
        "{e:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_falconers_on_one_root_and_two_restores_into_one_target() {
    let (_etcd, world, made) = cluster().await;
    let (one, two) = (falconer(&world, 1), falconer(&world, 2));
    // Both planned while the target was free and nobody wrote.
    let planned = plan(&world, &two, restore("copied")).await;
    assert!(planned.applicable(), "{:?}", planned.checks);
    let job = half_way(&world, &one, "copied").await;
    let before = picture(&world).await.0;
    let e = two.apply(&planned.hash, "").await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    names(&e, "tester1@here pid 1");
    let now = plan(&world, &two, restore("copied")).await;
    let failed: Vec<String> = now
        .failures()
        .map(|c| format!("{}: {}", c.name, c.failed.clone().unwrap()))
        .collect();
    assert!(
        failed
            .iter()
            .any(|f| f.contains(&format!("job {job} works on target"))),
        "{failed:?}"
    );
    assert!(
        failed.iter().any(|f| f.contains("tester1@here pid 1")),
        "{failed:?}"
    );
    // Another target: the root is still the first one's.
    let other = plan(&world, &two, restore("beside")).await;
    let e = two.apply(&other.hash, "").await.unwrap_err();
    names(&e, "tester1@here pid 1");
    let after = picture(&world).await.0;
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    one.throttle(job, None).unwrap();
    let info = ended(&one, job).await;
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    // The plan of before is worth nothing now, whoever holds the root; a new one says why.
    let e = loop {
        match two.apply(&planned.hash, "").await {
            // The first one is about to give the root back.
            Err(e) if e.kind() == ErrorKind::Busy => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done => break done.unwrap_err(),
        }
    };
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    assert!(e.to_string().contains("since the plan was made"), "{e}");
    let now = plan(&world, &two, restore("copied")).await;
    let failed: Vec<&str> = now.failures().map(|c| c.name.as_str()).collect();
    assert_eq!(failed, ["target name is free"]);
    assert_eq!(named(&world, "copied").await, 1);
    same(&world, &made, "copied", "one of two").await;
    unpinned(&world, &made, "both gone").await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_falconer_whose_lease_ran_out_does_nothing_more() {
    let (_etcd, world, made) = cluster().await;
    let one = falconer(&world, 1);
    let job = half_way(&world, &one, "copied").await;
    // It hangs until its lease has run out; another one takes the root and the job, and ends it.
    world.bury().await;
    let two = falconer(&world, 2);
    let mine = seen(&two, job, |j| j.recovered.is_some()).await;
    assert!(
        mine.recovered.as_ref().unwrap().starts_with("resumed"),
        "{mine:?}"
    );
    two.throttle(job, None).unwrap();
    let info = ended(&two, job).await;
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    // The first one comes to itself: what it would have done is done, and it says how it learned that.
    let info = ended(&one, job).await;
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    assert_eq!(named(&world, "copied").await, 1);
    same(&world, &made, "copied", "once").await;
    unpinned(&world, &made, "once").await;
    let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    assert_eq!(jobs.len(), 1);
    one.stop().await;
    two.stop().await;
    let keys = all(&*world.meta, "falconer/by-dev").await;
    assert!(
        !keys
            .keys()
            .any(|k| k.contains("/lock/") || k.ends_with("/owner")),
        "{:?}",
        keys.keys()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_creates_of_one_name() {
    let (_etcd, world, made) = cluster().await;
    let (one, two) = (falconer(&world, 1), falconer(&world, 2));
    let create = |of: CollectionId| Intent::CreateSnapshot {
        collection: of,
        name: "twice".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let first = plan(&world, &one, create(made.of)).await;
    let second = plan(&world, &two, create(made.of)).await;
    assert!(
        first.applicable() && second.applicable(),
        "{:?}",
        first.checks
    );
    let (a, b) = tokio::join!(one.apply(&first.hash, ""), two.apply(&second.hash, ""));
    let (winner, job, loser) = match (a, b) {
        (Ok(job), Err(e)) => (&one, job, Some(e)),
        (Err(e), Ok(job)) => (&two, job, Some(e)),
        // One after the other: then the second sees the first one's snapshot.
        (Ok(a), Ok(b)) => {
            let (a, b) = (ended(&one, a).await, ended(&two, b).await);
            let good = [&a, &b]
                .into_iter()
                .filter(|j| j.state == JobState::Verified)
                .count();
            assert_eq!(good, 1, "{a:?} {b:?}");
            if a.state == JobState::Verified {
                (&one, a.id, None)
            } else {
                (&two, b.id, None)
            }
        }
        (Err(a), Err(b)) => panic!("nobody: {a} {b}"),
    };
    let info = ended(winner, job).await;
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    if let Some(e) = loser {
        names(&e, "tester");
    }
    let again = plan(&world, &two, create(made.of)).await;
    let failed: Vec<String> = again.failures().filter_map(|c| c.failed.clone()).collect();
    assert!(
        failed
            .iter()
            .any(|f| f.contains("of this collection has it")),
        "{failed:?}"
    );
    let there = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await;
    let twice: Vec<_> = there.iter().filter(|(_, s)| s.name == "twice").collect();
    assert_eq!(twice.len(), 1, "{twice:?}");
    assert_eq!(twice[0].1.state, 2, "committed, not half");
    one.stop().await;
    two.stop().await;
}

async fn register(world: &World, role: &str) -> i64 {
    let lease = world.meta.grant(Duration::from_mins(1)).await.unwrap();
    let session = Write::Put {
        key: format!("by-dev/meta/session/{role}").as_str().into(),
        value:
            r#"{"ServerID":9,"ServerName":"mixcoord","Address":"10.1.2.3:53100","Version":"2.5.4"}"#
                .into(),
        lease,
    };
    let txn = Txn {
        conds: vec![],
        writes: vec![session],
    };
    world.meta.txn(txn).await.unwrap();
    lease
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_appears_in_mid_plan() {
    let (_etcd, world, made) = cluster().await;
    let one = falconer(&world, 1);
    let before = picture(&world).await;
    // Between plan and apply: nothing begins. A standby counts, it may wake up.
    let planned = plan(&world, &one, restore("never")).await;
    for role in ["mixcoord", "datacoord-12"] {
        let lease = register(&world, role).await;
        let e = one.apply(&planned.hash, "").await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
        assert!(
            e.to_string().contains(role) && e.to_string().contains("10.1.2.3:53100"),
            "{e}"
        );
        let shown = plan(&world, &one, restore("never")).await;
        let failed: Vec<String> = shown.failures().filter_map(|c| c.failed.clone()).collect();
        assert!(failed.len() == 1 && failed[0].contains(role), "{failed:?}");
        world.meta.revoke(lease).await.unwrap();
        assert!(picture(&world).await == before, "not a key, not an object");
        let ours = all(&*world.meta, "falconer/by-dev").await;
        let odd: Vec<&String> = ours.keys().filter(|k| !k.ends_with("/epoch")).collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
    // In the middle of the copies: it stops at once, says for whom it waits, and takes everything back once that one is gone.
    let job = half_way(&world, &one, "half").await;
    let lease = register(&world, "mixcoord").await;
    let waiting = seen(&one, job, |j| {
        j.notes
            .iter()
            .any(|n| n.contains("waiting") && n.contains("mixcoord"))
    })
    .await;
    assert!(!waiting.state.ended(), "{waiting:?}");
    let held = picture(&world).await;
    assert_eq!(named(&world, "half").await, 0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        picture(&world).await == held,
        "nothing is written while a coordinator lives"
    );
    world.meta.revoke(lease).await.unwrap();
    let info = ended(&one, job).await;
    assert_eq!(info.state, JobState::Failed, "{info:?}");
    assert!(
        info.error.as_ref().is_some_and(|e| e.contains("mixcoord")),
        "{info:?}"
    );
    let mut after = picture(&world).await;
    after.0.retain(|k, _| !k.contains("/copy-segment-"));
    assert_eq!(
        after.0.keys().collect::<Vec<_>>(),
        before.0.keys().collect::<Vec<_>>()
    );
    assert!(after == before, "taken back whole");
    unpinned(&world, &made, "taken back").await;
    one.stop().await;
}

/// A machine that was suspended: monotonic time stood still, wall time did not.
struct Suspended(AtomicI64);

impl Clock for Suspended {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }

    fn mono(&self) -> Duration {
        Duration::from_secs(100)
    }

    fn sleep(&self, _: Duration) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(tokio::task::yield_now())
    }
}

#[tokio::test]
async fn after_a_suspend_no_object_is_written_on_an_old_proof() {
    // Forward: the machine slept. Back: somebody set the clock, and nobody knows how long it was.
    for jump in [6_000, 3_600_000, -3_600_000] {
        let world = lab::small_seed(&lab::FLUSHED).await.world();
        let stores = world.open(&Faults::none(), ROOT);
        let clock = Arc::new(Suspended(AtomicI64::new(NOW.0)));
        let executor = Executor::new(Parts {
            meta: MetaWriter::new(stores.meta.clone(), &Scope::root(clock.clone(), "test")),
            objects: stores.write.clone(),
            roots: roots(),
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(1)),
            actor: "tester".into(),
            embedded: true,
        });
        let put = async |name: &str| {
            let key = format!("{ROOT}/{name}").as_str().into();
            executor.put_object(&key, "x".into()).await
        };
        executor.fence().acquire().await.unwrap();
        put("first").await.unwrap();
        // Its lease runs out while it sleeps, and another one takes the root.
        world.bury().await;
        clock.0.fetch_add(jump, Ordering::SeqCst);
        let e = put("second").await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Fenced, "{jump}: {e}");
        let there = objects(&*world.objects).await;
        assert!(there.contains_key(&format!("{ROOT}/first")));
        assert!(!there.contains_key(&format!("{ROOT}/second")), "{jump}");
    }
}

/// Whoever takes the root or gives it back may be cut off at any await: the last release leaves nobody's name there.
#[tokio::test]
async fn a_root_is_given_back_however_its_owner_was_cut_off() {
    let clock: Arc<dyn Clock> = VirtualClock::at(NOW);
    let store = Arc::new(EmbeddedStore::memory_with(clock.clone()).unwrap());
    let scope = Scope::root(clock.clone(), "test");
    let fence = Fence::new(
        MetaWriter::new(store.clone(), &scope),
        clock,
        Arc::new(SeededEntropy::new(1)),
        &roots(),
        "tester".into(),
    );
    let cut = |polls: usize| {
        let fence = &fence;
        async move {
            let acquiring = async {
                fence.acquire().await.unwrap();
                fence.release().await;
                fence.acquire().await.unwrap();
                fence.release().await;
            };
            tokio::pin!(acquiring);
            for _ in 0..polls {
                if futures::poll!(&mut acquiring).is_ready() {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            false
        }
    };
    let mut points = 0;
    while !cut(points).await {
        fence.release().await;
        let owner = store.get(&Keys::new(&roots()).owner()).await.unwrap();
        assert!(owner.is_none(), "cut off after {points} polls");
        points += 1;
    }
    assert!(points > 5, "{points}");
}
