//! An export in an operator's hands: stuck and retried or taken back, in the way of a drop, kept and forgotten, what an undo says when
//! it may not delete; and where credentials go.

#![allow(clippy::disallowed_methods, reason = "time passes past the engine")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use falconer::engine::clock::SeededEntropy;
use falconer::engine::format::keys::Family;
use falconer::engine::format::pb;
use falconer::engine::ids::{JobId, SnapshotId};
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWriter, Span};
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::JobState;
use falconer::engine::plan::Intent;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::journal::Order;
use support::faults::{Faults, World};
use support::place::Place;
use support::proxy::Proxy;
use support::s3;
use support::snapshots::{self as lab, Made, ROOT, all, collection, family, make, objects, roots};
use support::stubborn::{Stubborn, paths, pins, seen, stubborn};

const SNAPSHOT: SnapshotId = SnapshotId(470_660_334_431_990_001);

fn process(world: &World, seed: u64) -> RunnerHandle {
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
        embedded: true,
    });
    let kinds = falconer::engine::registry(Tolerances::default(), &Keeper::default());
    Runner::start(executor, kinds)
}

/// Two segments with deletes and index files, and a snapshot of them.
async fn world() -> (World, Made, Arc<Stubborn>) {
    let world = lab::small_seed(&lab::FLUSHED).await.world();
    let (db, of) = collection(&*world.meta, "metrics").await;
    let made = make(&world, db, of, SNAPSHOT.0, "nightly", 2).await;
    let (world, store) = stubborn(&world);
    (world, made, store)
}

async fn begin(runner: &RunnerHandle) -> JobId {
    let intent = Intent::Export {
        snapshot: SNAPSHOT,
        target: "backups".into(),
    };
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    runner.apply(&plan.hash, "").await.unwrap()
}

async fn records(world: &World) -> Vec<pb::data::ExportSnapshotJob> {
    let found = family(&*world.meta, Family::ExportSnapshotJob).await;
    found.into_iter().map(|(_, job)| job).collect()
}

#[tokio::test(start_paused = true)]
async fn what_would_not_copy_is_retried_alone() {
    let (world, made, store) = world().await;
    let bad: Vec<String> = paths(&made).into_iter().step_by(5).take(2).collect();
    store.refused.lock().unwrap().extend(bad.iter().cloned());
    let first = process(&world, 1);
    let job = begin(&first).await;
    let info = first.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Stuck, "{info:?}");
    let error = info.error.clone().unwrap();
    assert!(bad.iter().any(|b| error.contains(b.as_str())), "{error}");
    assert!(info.copies.failing > 0, "{:?}", info.copies);
    // Everything is kept: the pin to the end that is shown, and the copies.
    let until = info.until.unwrap();
    assert_eq!(
        pins(&world, &made).await.into_values().collect::<Vec<_>>(),
        [u64::try_from(until.0).unwrap()]
    );
    let copied = store.copies.lock().unwrap().len();
    assert!(copied > 0);
    assert_eq!(records(&world).await[0].state, 2, "it is not over");
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
    assert!(pins(&world, &made).await.is_empty());
    assert_eq!(records(&world).await[0].state, 3);
    let copies = store.copies.lock().unwrap().clone();
    let twice = copies.len() - copies.iter().collect::<BTreeSet<_>>().len();
    assert_eq!(twice, 0, "only what failed is copied again");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_export_is_taken_back_when_told_or_when_its_day_is_over() {
    for told in [true, false] {
        let (world, made, store) = world().await;
        let before = objects(&*store.inner).await;
        let bad = paths(&made)[3].clone();
        store.refused.lock().unwrap().insert(bad);
        let one = process(&world, 1);
        let job = begin(&one).await;
        assert_eq!(one.ended(job).await.unwrap().state, JobState::Stuck);
        assert!(objects(&*store.inner).await.len() > before.len());
        if told {
            one.order(job, Order::Cancel).await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_hours(23)).await;
            assert_eq!(one.view.borrow().jobs[0].state, JobState::Stuck);
            tokio::time::sleep(Duration::from_hours(2)).await;
        }
        let info = seen(&one, job, "an end", |j| j.state.ended()).await;
        let wanted = [JobState::Failed, JobState::Cancelled][usize::from(told)];
        assert_eq!(info.state, wanted, "{info:?}");
        assert!(objects(&*store.inner).await == before, "{told}");
        assert!(pins(&world, &made).await.is_empty());
        assert_eq!(records(&world).await[0].state, 4);
        one.stop().await;
    }
}

/// What may not be deleted is named, and does not keep the rest from being taken back.
#[tokio::test(start_paused = true)]
async fn an_undo_that_may_not_delete_says_what_it_left() {
    for (kept, most) in [("100/", 4), ("exports/", usize::MAX)] {
        let (world, made, store) = world().await;
        let before = objects(&*store.inner).await;
        store
            .refused
            .lock()
            .unwrap()
            .insert(paths(&made)[3].clone());
        let one = process(&world, 1);
        let job = begin(&one).await;
        assert_eq!(one.ended(job).await.unwrap().state, JobState::Stuck);
        *store.undeletable.lock().unwrap() = Some(kept.into());
        one.order(job, Order::Cancel).await.unwrap();
        let info = seen(&one, job, "an end", |j| j.state.ended()).await;
        assert_eq!(info.state, JobState::Failed, "{info:?}");
        let said = info.notes.iter().find(|n| n.contains("left behind"));
        let said = said.unwrap_or_else(|| panic!("{:?}", info.notes));
        assert!(said.contains("the server refused us"), "{said}");
        let after = objects(&*store.inner).await;
        let left: Vec<&String> = after.keys().filter(|k| !before.contains_key(*k)).collect();
        assert!(!left.is_empty() && left.len() <= most, "{kept}: {left:?}");
        assert!(left.iter().all(|k| k.contains(kept)), "{kept}: {left:?}");
        assert!(pins(&world, &made).await.is_empty(), "{kept}");
        let record = &records(&world).await[0];
        assert_eq!(record.state, 4, "{kept}");
        one.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_exported_cannot_be_dropped_and_the_reader_is_named() {
    let (world, made, store) = world().await;
    store
        .refused
        .lock()
        .unwrap()
        .insert(paths(&made)[3].clone());
    let one = process(&world, 1);
    let job = begin(&one).await;
    assert_eq!(one.ended(job).await.unwrap().state, JobState::Stuck);
    let drop = || Intent::DropSnapshot { snapshot: SNAPSHOT };
    let plan = one.plan(drop(), Arc::default()).await.unwrap();
    let failed: Vec<String> = plan.failures().filter_map(|c| c.failed.clone()).collect();
    let words = format!("job {job}: export nightly → backups");
    assert!(
        failed.iter().any(|why| why.contains(&words)),
        "{words:?} in {failed:?}"
    );
    assert!(one.apply(&plan.hash, "nightly").await.is_err());
    // Taking the reader's pin off wants the snapshot's name typed.
    let pin = *pins(&world, &made).await.keys().next().unwrap();
    let unpin = Intent::UnpinSnapshot {
        snapshot: SNAPSHOT,
        pin: Some(falconer::engine::ids::PinId(pin)),
    };
    let plan = one.plan(unpin, Arc::default()).await.unwrap();
    assert_eq!(plan.type_to_confirm.as_deref(), Some("nightly"), "{plan:?}");
    one.order(job, Order::Cancel).await.unwrap();
    seen(&one, job, "an end", |j| j.state.ended()).await;
    let plan = one.plan(drop(), Arc::default()).await.unwrap();
    assert_eq!(plan.failures().count(), 0, "{:?}", plan.checks);
    one.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_ended_export_leaves_its_line_and_nothing_else() {
    let (world, _, _) = world().await;
    let one = process(&world, 1);
    let job = begin(&one).await;
    let info = one.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    assert_eq!(info.progress.files.0, info.progress.files.1);
    assert_eq!(records(&world).await.len(), 1);
    // Two hours on it is still there for whoever watches; four hours on, the end of another job finds it over its time.
    tokio::time::sleep(Duration::from_hours(2)).await;
    let second = begin(&one).await;
    one.ended(second).await.unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(records(&world).await.len(), 2);
    tokio::time::sleep(Duration::from_hours(2)).await;
    let third = begin(&one).await;
    one.ended(third).await.unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    let left: Vec<i64> = records(&world).await.iter().map(|j| j.job_id).collect();
    assert_eq!(left, [second.0, third.0]);
    // Three days on, nobody did anything: the records go by themselves, and a line of history stays.
    tokio::time::sleep(Duration::from_hours(73)).await;
    assert!(records(&world).await.is_empty());
    one.stop().await;
    let two = process(&world, 2);
    let line = seen(&two, job, "history", |_| true).await;
    assert_eq!(line.state, JobState::Verified);
    assert_eq!(line.progress.bytes, info.progress.bytes);
    assert_eq!((line.started, line.ended), (info.started, info.ended));
    let kept = all(&*world.meta, "falconer/by-dev/job").await;
    assert!(kept.is_empty(), "{:?}", kept.keys());
    two.stop().await;
}

/// The program, its own environment and everything that it says.
struct Program {
    place: Place,
    home: tempfile::TempDir,
    env: Vec<(&'static str, &'static str)>,
    said: String,
}

impl Program {
    fn new(place: Place, env: &[(&'static str, &'static str)]) -> Self {
        Self {
            place,
            home: tempfile::tempdir().unwrap(),
            env: env.to_vec(),
            said: String::new(),
        }
    }

    fn run(&mut self, args: &[&str]) -> (Option<i32>, String) {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_falconer"))
            .args(&self.place.args)
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .envs(self.env.iter().copied())
            .current_dir(self.home.path())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        self.said.push_str(&text);
        (out.status.code(), text)
    }

    fn good(&mut self, args: &[&str]) -> String {
        let (code, said) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {said}");
        said
    }
}

/// Every file below a folder.
fn files(below: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else {
            out.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    out
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
}

/// From a local folder to another server and back, that server's credentials in the environment: neither metadata, journal, objects
/// and files nor anything that is said holds them.
#[tokio::test]
async fn credentials_are_in_nothing_that_the_program_writes_or_says() {
    const WRONG: &str = "wrong-secret-98765";
    const IN_URI: &str = "secret-in-a-uri-4711";
    let server = s3::shared();
    server.create_bucket("export-outside");
    let env = [
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY),
        ("AWS_REGION", s3::REGION),
    ];
    let mut program = Program::new(Place::embedded().await, &env);
    program.good(&["snapshot", "create", "metrics", "nightly", "--yes"]);
    let target = format!("{}/export-outside/deep", server.url);
    // Refused: with words, and without the secret.
    let in_uri = format!("s3://someone:{IN_URI}@export-outside/deep");
    let (code, said) = program.run(&["export", "start", "nightly", &in_uri, "--yes"]);
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("user or password"), "{said}");
    let tail = "snapshots/1/metadata/2.json";
    let in_uri = format!("s3://someone:{IN_URI}@export-outside/{tail}");
    let (code, said) = program.run(&["restore", "start", "--from", &in_uri, "x", "--yes"]);
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("user or password"), "{said}");
    program.env[1].1 = WRONG;
    let (code, said) = program.run(&["export", "start", "nightly", &target, "--yes"]);
    assert_ne!(code, Some(0), "{said}");
    program.env[1].1 = s3::SECRET_KEY;
    // There and back.
    let said = program.good(&["export", "start", "nightly", &target, "--yes", "-o", "json"]);
    let bundle = objects(&server.bucket("export-outside")).await;
    let metadata = bundle.keys().find(|k| k.contains("/metadata/")).unwrap();
    let uri = format!("{}/export-outside/{metadata}", server.url);
    assert!(said.contains(&uri), "{uri} in {said}");
    program.good(&["restore", "start", "--from", &uri, "back", "--yes"]);
    let seen = program.good(&["get", "collections"]);
    assert!(seen.contains("back"), "{seen}");
    for args in [
        &["export", "list", "-o", "json"][..],
        &["restore", "list", "-o", "json"],
        &["get", "tasks", "-o", "json"],
        &["get", "keys", "-o", "wide"],
        &["config", "-o", "json"],
    ] {
        program.good(args);
    }
    // Everything that is left of it.
    let mut all: Vec<(String, Vec<u8>)> = vec![("said".into(), program.said.clone().into())];
    let world = program.place.world().await;
    let page = world.meta.range_all(&Span::all()).await.unwrap();
    assert!(page.kvs.len() > 1_000, "{}", page.kvs.len());
    all.extend(
        page.kvs
            .into_iter()
            .map(|kv| (kv.key.text(), kv.value.to_vec())),
    );
    drop(world);
    all.extend(bundle.into_iter().map(|(key, bytes)| (key, bytes.to_vec())));
    for folder in [program.place.dir.path(), program.home.path()] {
        let named = |(path, bytes): (PathBuf, Vec<u8>)| (path.display().to_string(), bytes);
        all.extend(files(folder).into_iter().map(named));
    }
    assert!(all.iter().any(|(name, _)| name.ends_with("meta.redb")));
    for (name, bytes) in &all {
        for secret in [s3::SECRET_KEY, WRONG, IN_URI] {
            let text = String::from_utf8_lossy(bytes);
            let line = text.lines().find(|line| line.contains(secret));
            assert!(!holds(bytes, secret), "{name} holds {secret}: {line:?}");
        }
    }
}

/// The own bucket's credentials go to the own server alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_credentials_are_sent_to_no_other_server() {
    let server = s3::shared();
    let proxy = Proxy::before(server.url.rsplit(':').next().unwrap().parse().unwrap()).await;
    let place = Place::servers(server, "export-own-key").await;
    let env = [
        ("AWS_ACCESS_KEY_ID", "stranger"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-a-stranger"),
    ];
    let mut program = Program::new(place, &env);
    program.good(&["snapshot", "create", "metrics", "nightly", "--yes"]);
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = heads.clone();
    proxy.script(move |s| {
        seen.lock().unwrap().push(s.head.to_owned());
        None
    });
    let target = format!("{}/export-own-key/deep", proxy.url);
    let (code, said) = program.run(&["export", "start", "nightly", &target, "--yes"]);
    assert_ne!(code, Some(0), "{said}");
    let heads = heads.lock().unwrap();
    assert!(!heads.is_empty());
    for head in heads.iter() {
        assert!(head.contains("Credential=stranger/"), "{head}");
        assert!(!head.contains(s3::ACCESS_KEY), "{head}");
    }
}
