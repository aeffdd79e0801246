//! A restore in an operator's hands: stuck and retried, watched and steered from another process, killed among a thousand objects,
//! Milvus there while nobody of us was, kept and forgotten; and under roots that look like what they are not.

#![allow(
    clippy::disallowed_methods,
    reason = "what changes in the bucket and in time changes past the engine"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::ErrorKind;
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::{manifest, pb, snapshot};
use falconer::engine::ids::{
    CollectionId, DbId, JobId, MetaKey, ObjectKey, SegmentId, SnapshotId, UnixMs,
};
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore::Restore;
use falconer::engine::jobs::restore_map::{Given, Source, draw};
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWriter, Span};
use falconer::engine::model::jobs::JobState;
use falconer::engine::plan::Intent;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::journal::Order;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use prost::Message;
use support::faults::{Faults, Mode, Stores, World};
use support::same::{same, unpinned};
use support::snapshots::{
    self as lab, Made, NOW, ROOT, all, collection, family, make, objects, roots,
};
use support::stubborn::{Stubborn, paths, pins, seen, stubborn};

const SNAPSHOT: i64 = 470_660_334_431_990_001;

fn runner(stores: &Stores, seed: u64) -> RunnerHandle {
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
        embedded: true,
    });
    Runner::start(executor, Registry::default().with(Restore::default()))
}

fn process(world: &World, seed: u64) -> RunnerHandle {
    runner(&world.open(&Faults::none(), ROOT), seed)
}

fn intent(name: &str) -> Intent {
    Intent::Restore {
        snapshot: SnapshotId(SNAPSHOT),
        database: "default".into(),
        collection: name.into(),
    }
}

async fn begin(runner: &RunnerHandle, name: &str) -> JobId {
    let plan = runner.plan(intent(name), Arc::default()).await.unwrap();
    runner.apply(&plan.hash, "").await.unwrap()
}

/// Two segments with deletes and index files, and a snapshot of them.
async fn small_world() -> (World, Made) {
    let world = lab::small_seed(&lab::FLUSHED).await.world();
    let (db, of) = collection(&*world.meta, "metrics").await;
    let made = make(&world, db, of, SNAPSHOT, "nightly", 2).await;
    (world, made)
}

/// The same in a store that several processes can follow; it lives in real time.
async fn watched_world() -> (World, Made) {
    let (small, made) = small_world().await;
    let page = small.meta.range_all(&Span::all()).await.unwrap();
    let store = EmbeddedStore::memory().unwrap();
    store.load(page.kvs, None).await.unwrap();
    (
        World::new(Arc::new(store), small.objects.clone(), NOW),
        made,
    )
}

async fn stubborn_world() -> (World, Made, Arc<Stubborn>) {
    let (world, made) = small_world().await;
    let (world, store) = stubborn(&world);
    (world, made, store)
}

#[tokio::test(start_paused = true)]
async fn what_would_not_copy_is_retried_alone() {
    let (world, made, store) = stubborn_world().await;
    let bad: Vec<String> = paths(&made).into_iter().step_by(5).take(2).collect();
    store.refused.lock().unwrap().extend(bad.iter().cloned());
    let first = process(&world, 1);
    let job = begin(&first, "copied").await;
    let info = first.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Stuck, "{info:?}");
    let error = info.error.clone().unwrap();
    assert!(bad.iter().any(|b| error.contains(b.as_str())), "{error}");
    assert!(info.copies.failing > 0, "{:?}", info.copies);
    let named = &info.copies.failed[0];
    assert!(bad.contains(&named.object) && named.given_up, "{named:?}");
    assert!(named.error.contains(&named.object), "{named:?}");
    // Everything is kept: the pin to the end that is shown, the locks, the copies; and the root is free for others.
    let until = info.until.unwrap();
    let left = until.since(world.clock_now());
    assert!(
        (86_399_000..=86_400_000).contains(&left),
        "a day: {left} ms"
    );
    assert_eq!(
        pins(&world, &made).await.into_values().collect::<Vec<_>>(),
        [u64::try_from(until.0).unwrap()]
    );
    let copied = store.copies.lock().unwrap().len();
    assert!(copied > 0);
    let keys = all(&*world.meta, "falconer/by-dev").await;
    assert!(
        !keys.contains_key("falconer/by-dev/owner"),
        "the root is given back"
    );
    assert!(
        keys.keys()
            .any(|k| k.contains("/lock/target:default:copied"))
    );
    let busy = first.plan(intent("copied"), Arc::default()).await.unwrap();
    assert!(
        busy.failures()
            .any(|c| c.name == "no other job is in the way")
    );
    // A retry while the cause stands comes to the same.
    first.order(job, Order::Retry).await.unwrap();
    seen(&first, job, "stuck again", |j| j.state == JobState::Stuck).await;
    first.stop().await;

    // Another process, later: the cause is gone.
    let second = process(&world, 2);
    seen(&second, job, "left for the operator", |j| {
        j.state == JobState::Stuck
    })
    .await;
    tokio::time::sleep(Duration::from_mins(30)).await;
    store.refused.lock().unwrap().clear();
    second.order(job, Order::Retry).await.unwrap();
    let info = second.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    assert!(info.error.is_none() && info.copies.failing == 0, "{info:?}");
    same(&world, &made, "copied", "after the retry").await;
    unpinned(&world, &made, "after the retry").await;
    let copies = store.copies.lock().unwrap().clone();
    let twice = copies.len() - copies.iter().collect::<BTreeSet<_>>().len();
    assert_eq!(twice, 0, "only what failed is copied again");
    let e = second.order(job, Order::Retry).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_restore_is_taken_back_when_told_or_when_its_day_is_over() {
    for told in [true, false] {
        let (world, made, store) = stubborn_world().await;
        let before = objects(&*store.inner).await;
        store
            .refused
            .lock()
            .unwrap()
            .insert(paths(&made)[3].clone());
        let first = process(&world, 1);
        let job = begin(&first, "gone").await;
        assert_eq!(first.ended(job).await.unwrap().state, JobState::Stuck);
        assert!(objects(&*store.inner).await.len() > before.len());
        if told {
            first.order(job, Order::Cancel).await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_hours(23)).await;
            let still = first.view.borrow().jobs[0].state;
            assert_eq!(still, JobState::Stuck, "not before its time");
            tokio::time::sleep(Duration::from_hours(2)).await;
        }
        let info = seen(&first, job, "an end", |j| j.state.ended()).await;
        let want = if told {
            JobState::Cancelled
        } else {
            JobState::Failed
        };
        assert_eq!(info.state, want, "{info:?}");
        assert_eq!(objects(&*store.inner).await, before, "nothing stays");
        unpinned(&world, &made, "taken back").await;
        let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
        let failed = &jobs[0].1;
        assert_eq!(failed.state, 4);
        assert!(
            failed.complete_ts > failed.start_ts && failed.cleanup_ts > 0,
            "{failed:?}"
        );
        first.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_sees_every_second_how_it_goes_and_steers_it() {
    let (world, made) = watched_world().await;
    let (one, other) = (process(&world, 1), process(&world, 2));
    let job = begin(&one, "copied").await;
    one.throttle(job, Some(20_000)).unwrap();
    let half = seen(&other, job, "progress", |j| j.progress.files.0 > 0).await;
    assert_eq!(half.state, JobState::Running);
    assert!(half.progress.files.0 < half.progress.files.1, "{half:?}");
    assert!(
        half.progress.rows > 0 && half.collection.is_some(),
        "{half:?}"
    );
    assert_eq!(
        (half.copies.parallel, half.copies.limit),
        (16, Some(20_000))
    );
    // How fast, and how long still: by bytes, so that the two agree.
    let timed = seen(&other, job, "rate and time left", |j| {
        j.progress.rate > 0.0 && j.progress.eta_ms.is_some()
    })
    .await;
    let left = timed.progress.bytes.1 - timed.progress.bytes.0;
    let eta = left as f64 / timed.progress.rate * 1_000.0;
    let told = timed.progress.eta_ms.unwrap() as f64;
    assert!((eta - told).abs() <= 1.0 + eta / 100.0, "{timed:?}");
    // It moves while it is looked at, not only from slice to slice.
    let before = half.moved;
    let next = seen(&other, job, "movement", |j| j.moved > before).await;
    assert!(
        next.moved.since(before) <= 4_000,
        "{}",
        next.moved.since(before)
    );
    other
        .order(job, Order::Parallel { copies: 3 })
        .await
        .unwrap();
    seen(&other, job, "3 copies at once", |j| j.copies.parallel == 3).await;
    assert_eq!(one.view.borrow().jobs[0].copies.parallel, 3);
    other
        .order(job, Order::Throttle { rate: None })
        .await
        .unwrap();
    let info = other.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    same(&world, &made, "copied", "steered").await;
    // And stopped from there.
    let job = begin(&one, "stopped").await;
    one.throttle(job, Some(4_000)).unwrap();
    seen(&other, job, "progress", |j| j.progress.files.0 > 0).await;
    other.order(job, Order::Cancel).await.unwrap();
    let info = other.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Cancelled, "{info:?}");
    let late = other.order(job, Order::Cancel).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict, "{late}");
    one.stop().await;
    other.stop().await;
    let left = all(&*world.meta, "falconer/by-dev/job").await;
    let odd: Vec<&String> = left
        .keys()
        .filter(|k| k.contains("/order/") || k.ends_with("/live"))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
}

/// An order that nobody heard, because the process that ran the job died, is obeyed by the one that takes it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_a_dead_process_is_obeyed_by_the_next() {
    let (world, _) = watched_world().await;
    let faults = Faults::none();
    let one = runner(&world.open(&faults, ROOT), 1);
    let job = begin(&one, "copied").await;
    one.throttle(job, Some(4_000)).unwrap();
    seen(&one, job, "copies", |j| j.progress.files.0 > 0).await;
    let other = process(&world, 2);
    seen(&other, job, "the job", |j| j.progress.files.1 > 0).await;
    faults.kill();
    // Its lease still stands: nobody can know yet that it is dead.
    other.order(job, Order::Cancel).await.unwrap();
    world.bury().await;
    let info = other.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Cancelled, "{info:?}");
    other.stop().await;
}

/// The snapshot's first segment with `more` stats logs that hold no rows: many objects to copy.
async fn grown(world: &World, made: &mut Made, more: i64) {
    let segment = &mut made.segments[0];
    let (field, model) = {
        let list = segment
            .statslogs
            .first()
            .expect("a segment with statistics");
        (list.field_id, list.binlogs[0].clone())
    };
    let bytes = objects(&*world.objects).await[&model.log_path].clone();
    let mut logs = Vec::new();
    for i in 0..more {
        let log_id = model.log_id + 1_000_000 + i;
        let log_path = model
            .log_path
            .replace(&model.log_id.to_string(), &log_id.to_string());
        lab::put_object(world, &ObjectKey(log_path.clone()), bytes.to_vec()).await;
        logs.push(pb::data::Binlog {
            log_id,
            log_path,
            entries_num: 0,
            ..model.clone()
        });
    }
    let lists = &mut segment.statslogs;
    let list = lists.iter_mut().find(|l| l.field_id == field).unwrap();
    list.binlogs.extend(logs);
    let at = snapshot::manifest_key(ROOT, made.of, made.id, SegmentId(segment.segment_id));
    lab::put_object(world, &at, manifest::write_v4(segment).unwrap()).await;
}

fn copies(faults: &Faults) -> Vec<usize> {
    let ops = faults.ops();
    (0..ops.len())
        .filter(|i| ops[*i].what.starts_with("copy"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn killed_among_a_thousand_objects_it_copies_less_than_one_percent_twice() {
    let fresh = async || {
        let (world, mut made) = small_world().await;
        grown(&world, &mut made, 1_000).await;
        world
    };
    let world = fresh().await;
    let whole = Faults::none();
    let one = runner(&world.open(&whole, ROOT), 1);
    let job = begin(&one, "copied").await;
    assert_eq!(one.ended(job).await.unwrap().state, JobState::Verified);
    one.stop().await;
    let plain = copies(&whole);
    assert!(plain.len() >= 1_000, "{}", plain.len());
    for part in [1, 2, 3] {
        let world = fresh().await;
        let faults = Faults::at(plain[plain.len() * part / 4], Mode::CrashAfter);
        let one = runner(&world.open(&faults, ROOT), 1);
        let job = begin(&one, "copied").await;
        faults.crashed().await;
        drop(one);
        world.bury().await;
        let again = Faults::none();
        let two = runner(&world.open(&again, ROOT), 2);
        let info = two.ended(job).await.unwrap();
        assert_eq!(info.state, JobState::Verified, "{info:?}");
        assert!(
            info.recovered
                .as_ref()
                .is_some_and(|r| r.starts_with("resumed")),
            "{info:?}"
        );
        two.stop().await;
        let twice = copies(&faults).len() + copies(&again).len() - plain.len();
        println!(
            "killed after {part}/4: {twice} of {} objects copied twice",
            plain.len()
        );
        assert!(twice * 100 < plain.len(), "{twice} of {}", plain.len());
    }
}

/// What a Milvus that came and went does to `session/id`.
async fn milvus_was_here(world: &World) {
    let key: MetaKey = Key::SessionNextId.to_key(&roots());
    let next = match world.meta.get(&key).await.unwrap() {
        Some(kv) => String::from_utf8_lossy(&kv.value).parse::<i64>().unwrap() + 1,
        None => 2,
    };
    lab::put(&*world.meta, &key, next.to_string().into_bytes()).await;
}

/// Runs a restore until the operation that `at` names, kills it there, and answers the world as it was left.
async fn killed_at(at: &str) -> (World, Made, JobId) {
    let (world, _) = small_world().await;
    let whole = Faults::none();
    let one = runner(&world.open(&whole, ROOT), 1);
    let job = begin(&one, "copied").await;
    one.ended(job).await.unwrap();
    one.stop().await;
    let ops = whole.ops();
    let number = ops
        .iter()
        .position(|op| op.what.contains(at))
        .unwrap_or_else(|| {
            panic!(
                "no operation {at} in {:?}",
                ops.iter().map(|o| &o.what).collect::<Vec<_>>()
            )
        });
    let (world, made) = small_world().await;
    let faults = Faults::at(number, Mode::CrashBefore);
    let one = runner(&world.open(&faults, ROOT), 1);
    let job = begin(&one, "copied").await;
    faults.crashed().await;
    drop(one);
    world.bury().await;
    (world, made, job)
}

const PUBLISH: &str = "txn by-dev/meta/root-coord/database/collection-info/";

#[tokio::test(start_paused = true)]
async fn a_milvus_that_was_there_meanwhile_is_noticed_before_publishing() {
    // It took a copied object for an orphan: that one is copied again.
    let (world, made, job) = killed_at(PUBLISH).await;
    milvus_was_here(&world).await;
    let record = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    let target = record[0].1.collection_id.to_string();
    let there = objects(&*world.objects).await;
    let victim = there.keys().find(|k| k.contains(&target)).unwrap().clone();
    world
        .objects
        .delete(&Path::parse(&victim).unwrap())
        .await
        .unwrap();
    let two = process(&world, 2);
    let info = two.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    let said = info.notes.join("\n");
    assert!(
        said.contains("changed since by Milvus") && said.contains("1 copied files"),
        "{said}"
    );
    same(&world, &made, "copied", "after Milvus").await;
    two.stop().await;

    // It removed a record of ours: nothing is published on top of that.
    let (world, made, job) = killed_at(PUBLISH).await;
    let before = objects(&*small_world().await.0.objects).await;
    milvus_was_here(&world).await;
    let segments = family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment).await;
    let record = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    let target = CollectionId(record[0].1.collection_id);
    let ours = segments
        .iter()
        .find(|(k, _)| matches!(k, Key::Segment(c, ..) if *c == target));
    let mut dropped = ours.unwrap().1.clone();
    dropped.state = pb::common::SegmentState::Dropped as i32;
    let key = ours.unwrap().0.to_key(&roots());
    lab::put(&*world.meta, &key, dropped.encode_to_vec()).await;
    let two = process(&world, 2);
    let info = two.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Failed, "{info:?}");
    let error = info.error.clone().unwrap();
    assert!(
        error.contains("changed since by Milvus") && error.contains(&key.text()),
        "{error}"
    );
    assert_eq!(objects(&*world.objects).await, before, "taken back");
    unpinned(&world, &made, "taken back").await;
    two.stop().await;

    // Without a Milvus nothing is said of one.
    let (world, _, job) = killed_at(PUBLISH).await;
    let two = process(&world, 2);
    let info = two.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    assert!(
        !info.notes.join("\n").contains("Milvus"),
        "{:?}",
        info.notes
    );
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_plan_lists_every_check_with_what_was_seen() {
    let (world, made) = small_world().await;
    let one = process(&world, 1);
    let plan = one.plan(intent("fresh"), Arc::default()).await.unwrap();
    let names: Vec<&str> = plan.checks.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "target name is well formed",
            "target database exists",
            "target name is free",
            "no streaming service",
            "snapshot is committed",
            "references of the snapshot are loaded",
            "storage versions are known",
            "index versions can be loaded",
            "encryption matches the database",
            "not an external collection",
            "nothing of it is new to this version",
            "partitions, channels and paths map",
            "the job's record fits one value",
            "all objects are there",
            "the store has room",
            "the snapshot is whole",
            "no other job is in the way",
            "no other Falconer writes this root",
            "no coordinator is registered",
        ]
    );
    for check in &plan.checks {
        assert!(
            check.failed.is_none() && !check.detail.is_empty(),
            "{check:?}"
        );
    }
    let built = made.segments.iter().flat_map(|s| &s.index_files);
    let newest = built.map(|f| f.current_index_version).max().unwrap();
    assert!(
        newest > 0,
        "index files say by which engine they were built"
    );
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.contains("no query node is registered")),
        "{:?}",
        plan.warnings
    );
    // A query node that is too old for them.
    let failing = async |current: i32| {
        let session = format!(
            r#"{{"ServerID":7,"ServerName":"querynode","IndexEngineVersion":{{"CurrentIndexVersion":{current}}},"Version":"2.4.0"}}"#
        );
        let key: MetaKey = "by-dev/meta/session/querynode-7".into();
        lab::put(&*world.meta, &key, session.into_bytes()).await;
        let plan = one.plan(intent("fresh"), Arc::default()).await.unwrap();
        let failed: Vec<String> = plan.failures().map(|c| c.name.clone()).collect();
        failed
    };
    assert_eq!(failing(newest - 1).await, ["index versions can be loaded"]);
    assert_eq!(failing(newest).await, Vec::<String>::new());
    one.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_ended_restore_leaves_its_line_and_nothing_else() {
    let (world, made) = small_world().await;
    let one = process(&world, 1);
    let job = begin(&one, "copied").await;
    let info = one.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    let rows: i64 = made.segments.iter().map(|s| s.num_of_rows).sum();
    assert_eq!(info.progress.rows, u64::try_from(rows).unwrap());
    let watched = async || {
        let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
        let tasks =
            family::<pb::data::CopySegmentTask>(&*world.meta, Family::CopySegmentTask).await;
        (jobs.len(), tasks.len())
    };
    let record = async || {
        let keys = all(&*world.meta, "falconer/by-dev/job").await;
        keys.keys().any(|k| k.ends_with(&format!("/{job}")))
    };
    assert_eq!(watched().await, (1, 1));
    // Four hours on, the end of another job finds the CopySegmentJob over its time.
    tokio::time::sleep(Duration::from_hours(4)).await;
    let second = begin(&one, "second").await;
    one.ended(second).await.unwrap();
    seen(&one, second, "the end", |j| j.state.ended()).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(watched().await, (1, 1), "only that of the second");
    assert!(record().await);
    // Three days on, nobody did anything: the records go by themselves.
    tokio::time::sleep(Duration::from_hours(73)).await;
    assert_eq!(watched().await, (0, 0));
    assert!(!record().await, "the record is gone");
    let line = one
        .view
        .borrow()
        .jobs
        .iter()
        .find(|j| j.id == job)
        .cloned()
        .unwrap();
    assert_eq!(
        (line.state, line.progress.rows),
        (JobState::Verified, info.progress.rows)
    );
    assert_eq!(line.progress.bytes, info.progress.bytes);
    assert_eq!((line.started, line.ended), (info.started, info.ended));
    assert_eq!(line.title, info.title);
    one.stop().await;
    // Who comes later sees the same line.
    let two = process(&world, 2);
    let same = seen(&two, job, "history", |_| true).await;
    assert_eq!(*same, *line);
    let left = all(&*world.meta, "falconer/by-dev/job").await;
    assert!(left.is_empty(), "{:?}", left.keys());
    two.stop().await;
}

/// One segment of each storage version and an L0 segment of all partitions, with both path versions of index files, under `root`.
fn every_shape(root: &str) -> Source {
    let at = |rest: &str| format!("{root}/{rest}");
    let log = |path: String| pb::data::FieldBinlog {
        field_id: 100,
        binlogs: vec![pb::data::Binlog {
            log_id: 9,
            log_path: path,
            entries_num: 5,
            ..Default::default()
        }],
        ..Default::default()
    };
    let index =
        |segment: i64, build: i64, version: i32, path: String| pb::index::IndexFilePathInfo {
            segment_id: segment,
            field_id: 100,
            index_id: 77,
            index_name: "vec".into(),
            build_id: build,
            index_version: 1,
            index_file_paths: vec![path],
            index_store_path_version: version,
            ..Default::default()
        };
    let segment = |id: i64, storage: i64| pb::data::SegmentDescription {
        segment_id: id,
        partition_id: 2,
        channel_name: "by-dev-rootcoord-dml_0_1v0".into(),
        num_of_rows: 5,
        storage_version: storage,
        ..Default::default()
    };
    let base = at("insert_log/1/2/33");
    let segments = vec![
        pb::data::SegmentDescription {
            binlogs: vec![log(at("insert_log/1/2/31/100/9"))],
            deltalogs: vec![log(at("delta_log/1/2/31/9"))],
            index_files: vec![index(31, 501, 0, at("index_files/501/1/2/31/file_0"))],
            ..segment(31, 0)
        },
        pb::data::SegmentDescription {
            binlogs: vec![log(at("insert_log/1/2/32/100/9"))],
            index_files: vec![index(32, 502, 1, at("index_v1/1/2/32/502/1/file_0"))],
            ..segment(32, 2)
        },
        pb::data::SegmentDescription {
            manifest_path: format!(r#"{{"ver":4,"base_path":"{base}"}}"#),
            ..segment(33, 3)
        },
        pb::data::SegmentDescription {
            partition_id: -1,
            segment_level: pb::data::SegmentLevel::L0 as i32,
            deltalogs: vec![log(at("delta_log/1/-1/34/9"))],
            ..segment(34, 0)
        },
    ];
    let field = pb::schema::FieldSchema {
        field_id: 100,
        name: "vec".into(),
        ..Default::default()
    };
    let declared = ["_data/cg0.parquet", "_delta/1", "_metadata/manifest-4.avro"];
    Source {
        metadata: pb::data::SnapshotMetadata {
            collection: Some(pb::data::CollectionDescription {
                schema: Some(pb::schema::CollectionSchema {
                    name: "books".into(),
                    fields: vec![field],
                    ..Default::default()
                }),
                num_partitions: 1,
                num_shards: 1,
                partitions: [("_default".to_owned(), 2)].into(),
                virtual_channel_names: vec!["by-dev-rootcoord-dml_0_1v0".into()],
                ..Default::default()
            }),
            indexes: vec![pb::index::IndexInfo {
                index_id: 77,
                index_name: "vec".into(),
                field_id: 100,
                ..Default::default()
            }],
            ..Default::default()
        },
        segments,
        declared: [(
            SegmentId(33),
            declared.map(|f| ObjectKey(format!("{base}/{f}"))).to_vec(),
        )]
        .into(),
        ..Source::default()
    }
}

#[test]
fn every_shape_goes_where_it_belongs_under_every_root() {
    let roots = [
        "files",
        "a/insert_log/b",
        "insert_log",
        "/var/lib/milvus/insert_log/data",
    ];
    let mut shapes = BTreeSet::new();
    for root in roots {
        let given = Given {
            db: DbId(1),
            db_name: "default".into(),
            name: "copy".into(),
            first_id: 9_000,
            now: UnixMs(NOW.0),
            starts: BTreeMap::new(),
        };
        let drawn = draw(&every_shape(root), &given, root, "bucket").unwrap();
        let again = draw(&every_shape(root), &given, root, "bucket").unwrap();
        assert_eq!(
            drawn.files, again.files,
            "the same ids draw the same picture"
        );
        let below = |key: &ObjectKey| {
            let rest = key.0.strip_prefix(root).and_then(|k| k.strip_prefix('/'));
            rest.unwrap_or_else(|| panic!("{key} is not below {root}"))
                .to_owned()
        };
        let files: BTreeMap<String, String> = drawn
            .files
            .iter()
            .map(|f| (below(&f.from), below(&f.to)))
            .collect();
        assert_eq!(files.len(), 9, "{files:?}");
        // The ids are taken in order: collection, partition, segments, index, builds, task.
        let (c, p) = (9_000, 9_001);
        let want = [
            (
                "insert_log/1/2/31/100/9",
                format!("insert_log/{c}/{p}/9002/100/9"),
            ),
            ("delta_log/1/2/31/9", format!("delta_log/{c}/{p}/9002/9")),
            (
                "index_files/501/1/2/31/file_0",
                format!("index_files/9007/1/{p}/9002/file_0"),
            ),
            (
                "insert_log/1/2/32/100/9",
                format!("insert_log/{c}/{p}/9003/100/9"),
            ),
            (
                "index_v1/1/2/32/502/1/file_0",
                format!("index_v1/{c}/{p}/9003/9008/1/file_0"),
            ),
            (
                "insert_log/1/2/33/_data/cg0.parquet",
                format!("insert_log/{c}/{p}/9004/_data/cg0.parquet"),
            ),
            (
                "insert_log/1/2/33/_delta/1",
                format!("insert_log/{c}/{p}/9004/_delta/1"),
            ),
            (
                "insert_log/1/2/33/_metadata/manifest-4.avro",
                format!("insert_log/{c}/{p}/9004/_metadata/manifest-4.avro"),
            ),
            // Deletes of all partitions stay deletes of all partitions.
            ("delta_log/1/-1/34/9", format!("delta_log/{c}/-1/9005/9")),
        ];
        for (from, to) in want {
            assert_eq!(files.get(from), Some(&to), "{root}: {from}");
        }
        let v3 = drawn.children.iter().find_map(|(key, value)| match key {
            Key::Segment(_, _, SegmentId(9_004)) => {
                Some(pb::data::SegmentInfo::decode(value.as_slice()).unwrap())
            }
            _ => None,
        });
        let manifest: serde_json::Value = serde_json::from_str(&v3.unwrap().manifest_path).unwrap();
        assert_eq!(manifest["ver"], 4);
        assert_eq!(
            manifest["base_path"],
            format!("{root}/insert_log/{c}/{p}/9004"),
            "{root}"
        );
        shapes.insert(files.into_iter().collect::<Vec<_>>());
    }
    assert_eq!(shapes.len(), 1, "below the root all are the same");
}
