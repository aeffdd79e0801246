//! Restore, on the captured cluster: rows, logs, bytes and index files one to one; every operation of it failing once; killed and
//! taken up again; refused with every missing object named; taken back whole.

#![allow(
    clippy::disallowed_methods,
    reason = "what is lost from the bucket is lost past the engine"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb;
use falconer::engine::ids::{CollectionId, DbId, JobId, MetaRev, SnapshotId};
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore::Restore;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{
    Limits, MetaRead, MetaStatus, MetaWrite, MetaWriter, Outcome, Page, RangeOpts, Span, Txn,
    WatchStream,
};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::{Intent, Plan};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use prost::Message;
use support::faults::{Faults, Mode, Stores, World, sweep};
use support::same::{same, unpinned, untouched};
use support::snapshots::{
    self as lab, Made, NOW, ROOT, Seed, all, collection, family, lab_world, make, objects, roots,
};

fn executor(stores: &Stores, seed: u64) -> Arc<Executor> {
    Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(seed)),
        actor: format!("tester pid {seed}"),
        embedded: true,
    })
}

fn runner(stores: &Stores, seed: u64) -> RunnerHandle {
    Runner::start(
        executor(stores, seed),
        Registry::default().with(Restore::default()),
    )
}

fn intent(snapshot: SnapshotId, name: &str) -> Intent {
    Intent::Restore {
        snapshot,
        database: "default".into(),
        collection: name.into(),
    }
}

async fn plan(world: &World, intent: Intent) -> Arc<Plan> {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores, 7);
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    runner.stop().await;
    plan
}

/// Starts the program; waits for the job that is there, or gives the order and waits.
async fn operate(stores: &Stores, seed: u64, intent: Intent) -> Result<Arc<JobInfo>> {
    let runner = runner(stores, seed);
    let job = loop {
        let found = jobs(stores).await;
        let begun = match found {
            Ok(Some(job)) => Ok(job),
            Ok(None) => match runner.plan(intent.clone(), Arc::default()).await {
                Ok(plan) => runner.apply(&plan.hash, "").await,
                Err(e) => Err(e),
            },
            Err(e) => Err(e),
        };
        match begun {
            Ok(job) => break job,
            Err(e) if e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown => {
                tokio::task::yield_now().await;
            }
            Err(e) => return Err(e),
        }
    };
    let info = runner.ended(job).await?;
    runner.stop().await;
    Ok(info)
}

async fn jobs(stores: &Stores) -> Result<Option<JobId>> {
    let span = falconer::engine::meta::Span::prefix(&falconer::engine::ids::KeyPrefix::new(
        "falconer/by-dev/job",
    ));
    let page = stores.meta.range_all(&span).await?;
    Ok(page
        .kvs
        .first()
        .map(|kv| kv.key.text().split('/').nth(3).unwrap().parse().unwrap()))
}

/// A collection of the lab with deletes and index files.
const SOURCE: &str = "books";

/// Two segments, one on each of two shards, both with deletes and index files; made once, a world of its own for each of
/// hundreds of runs.
async fn small_world() -> (World, &'static Made) {
    static SEED: tokio::sync::OnceCell<(Seed, Made)> = tokio::sync::OnceCell::const_new();
    let (seed, made) = SEED
        .get_or_init(|| async {
            let seed = lab::small_seed(&lab::FLUSHED).await;
            seed.prepare(async |world: &World| {
                let (db, of) = collection(&*world.meta, "metrics").await;
                assert_eq!(of, lab::SMALL);
                make(world, db, of, 470_660_334_431_990_001, "nightly", 2).await
            })
            .await
        })
        .await;
    assert_eq!(made.segments.len(), 2);
    for s in &made.segments {
        assert!(!s.deltalogs.is_empty() && !s.index_files.is_empty());
    }
    (seed.world(), made)
}

#[tokio::test(start_paused = true)]
async fn every_collection_of_the_lab_restores_one_to_one() {
    let first = lab_world().await;
    let collections: Vec<(DbId, CollectionId)> =
        family::<pb::etcd::CollectionInfo>(&*first.meta, Family::Collection)
            .await
            .into_iter()
            .filter_map(|(k, i)| match k {
                Key::Collection(db, c) if i.state == 0 => Some((db, c)),
                _ => None,
            })
            .collect();
    assert!(collections.len() >= 7, "{}", collections.len());
    let (mut deletes, mut index_files, mut rows) = (0, 0, 0);
    for (db, of) in collections {
        let world = lab_world().await;
        let made = make(
            &world,
            db,
            of,
            470_660_334_431_990_001,
            "nightly",
            usize::MAX,
        )
        .await;
        let before = objects(&*world.objects).await;
        let stores = world.open(&Faults::none(), ROOT);
        let info = operate(&stores, 1, intent(made.id, "copy_of_it"))
            .await
            .unwrap();
        assert_eq!(
            info.state,
            JobState::Verified,
            "{of}: {:?} {:?}",
            info.error,
            info.notes
        );
        assert_eq!(info.progress.files.0, info.progress.files.1, "{of}");
        assert_eq!(info.progress.bytes.0, info.progress.bytes.1, "{of}");
        same(&world, &made, "copy_of_it", &of.to_string()).await;
        untouched(&world, &before, &of.to_string()).await;
        deletes += made
            .segments
            .iter()
            .filter(|s| !s.deltalogs.is_empty())
            .count();
        index_files += made
            .segments
            .iter()
            .flat_map(|s| &s.index_files)
            .map(|f| f.index_file_paths.len())
            .sum::<usize>();
        rows += made.segments.iter().map(|s| s.num_of_rows).sum::<i64>();
    }
    assert!(
        deletes > 0 && index_files > 0 && rows > 10_000,
        "{deletes} {index_files} {rows}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_restore_survives_every_fault() {
    let (world, made) = small_world().await;
    let before = objects(&*world.objects).await;
    let drive = async |stores: &Stores| {
        let info = operate(stores, 1, intent(made.id, "copied")).await?;
        if info.state == JobState::Verified {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Internal,
                format!("{:?}: {:?} {:?}", info.state, info.error, info.notes),
            ))
        }
    };
    let check = async |world: &World, label: &str| {
        same(world, made, "copied", label).await;
        untouched(world, &before, label).await;
    };
    let runs = sweep(ROOT, async || small_world().await.0, drive, check).await;
    assert!(runs > 100, "{runs}");
}

/// Keys and objects, with their bytes.
type Picture = (BTreeMap<String, Bytes>, BTreeMap<String, Bytes>);

/// The whole state of both stores without our own journal and audit, and without the allocator.
async fn picture(world: &World) -> Picture {
    let mut meta = all(&*world.meta, "by-dev").await;
    meta.remove("by-dev/kv/gid/idTimestamp");
    meta.retain(|k, _| !k.contains("/copy-segment-"));
    (meta, objects(&*world.objects).await)
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_restore_leaves_nothing_behind() {
    let (world, made) = small_world().await;
    let before = picture(&world).await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores, 1);
    let plan = runner
        .plan(intent(made.id, "gone"), Arc::default())
        .await
        .unwrap();
    let job = runner.apply(&plan.hash, "").await.unwrap();
    // Slow enough to be met in the middle of it.
    runner.throttle(job, Some(4_000)).unwrap();
    let mut view = runner.view.clone();
    loop {
        let copied = view
            .borrow_and_update()
            .jobs
            .iter()
            .any(|j| j.id == job && (j.progress.files.0 > 0 || j.state.ended()));
        if copied {
            break;
        }
        view.changed().await.unwrap();
    }
    let begun = objects(&*world.objects).await.len() - before.1.len();
    assert!(begun > 0, "something was copied already");
    runner.cancel(job).unwrap();
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Cancelled, "{:?}", info.notes);
    runner.stop().await;
    let after = picture(&world).await;
    assert_eq!(
        after.0.keys().collect::<Vec<_>>(),
        before.0.keys().collect::<Vec<_>>()
    );
    assert!(after == before, "keys and objects as they were");
    let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    assert_eq!(jobs.len(), 1);
    assert!(
        jobs.iter()
            .all(|(_, j)| j.state == 4 && !j.reason.is_empty())
    );
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_is_taken_back_through_every_fault() {
    let victim: std::sync::Mutex<Option<Arc<dyn MetaWrite>>> = std::sync::Mutex::default();
    let make_world = async || {
        let (world, _) = small_world().await;
        *victim.lock().unwrap() = Some(world.meta.clone());
        world
    };
    let before = picture(&make_world().await).await;
    let drive = async |stores: &Stores| {
        let mut stores = stores.clone();
        stores.meta = Arc::new(Thief {
            inner: stores.meta.clone(),
            unharmed: victim.lock().unwrap().clone().unwrap(),
            denied: None,
        });
        let info = operate(
            &stores,
            1,
            intent(SnapshotId(470_660_334_431_990_001), "stolen"),
        )
        .await?;
        if info.state == JobState::Failed {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Internal,
                format!("{:?}: {:?}", info.state, info.notes),
            ))
        }
    };
    let check = async |world: &World, label: &str| {
        let mut after = picture(world).await;
        after.0.remove(THIEF);
        differ(&after, &before, label);
    };
    let runs = sweep(ROOT, make_world, drive, check).await;
    assert!(runs > 100, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_cannot_take_one_thing_back_takes_the_others() {
    let (world, made) = small_world().await;
    let before = picture(&world).await;
    let mut stores = world.open(&Faults::none(), ROOT);
    stores.meta = Arc::new(Thief {
        inner: stores.meta.clone(),
        unharmed: world.meta.clone(),
        denied: Some("/mark/unpin-"),
    });
    let info = operate(&stores, 1, intent(made.id, "stolen"))
        .await
        .unwrap();
    assert_eq!(info.state, JobState::Failed);
    assert!(info.error.as_ref().unwrap().contains("stolen"), "{info:?}");
    let said = info.notes.join("\n");
    assert!(
        said.contains("left behind: pin ") && said.contains("no right to write this"),
        "{said}"
    );
    assert_eq!(objects(&*world.objects).await, before.1);
    let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].1.state, 4, "nobody waits for it: Failed");
}

fn differ(after: &Picture, before: &Picture, label: &str) {
    for (now, then) in [(&after.0, &before.0), (&after.1, &before.1)] {
        let odd: BTreeSet<&String> = now
            .keys()
            .chain(then.keys())
            .filter(|k| now.get(*k) != then.get(*k))
            .collect();
        assert!(odd.is_empty(), "{label}: not as they were: {odd:?}");
    }
}

const THIEF: &str = "by-dev/meta/root-coord/database/aliases/1/stolen";

/// A store in which an alias of the target's name appears just before the restore writes its records: the latest moment at
/// which a restore can fail.
struct Thief {
    inner: Arc<dyn MetaWrite>,
    /// Behind the faults: the thief is not part of the run.
    unharmed: Arc<dyn MetaWrite>,
    /// Changes whose marker says this are refused for good.
    denied: Option<&'static str>,
}

#[async_trait]
impl MetaRead for Thief {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        self.inner.range(span, opts).await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        self.inner.watch(span, from).await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.inner.status().await
    }
}

#[async_trait]
impl MetaWrite for Thief {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let says = |part: &str| txn.writes.iter().any(|w| w.key().text().contains(part));
        if self.denied.is_some_and(says) {
            return Err(Error::new(ErrorKind::Denied, "no right to write this"));
        }
        let now = says("/mark/children/");
        let key = THIEF.into();
        if now && self.unharmed.get(&key).await?.is_none() {
            let alias = pb::etcd::AliasInfo {
                alias_name: "stolen".into(),
                collection_id: 1,
                db_id: 1,
                ..Default::default()
            };
            lab::put(&*self.unharmed, &key, alias.encode_to_vec()).await;
        }
        self.inner.txn(txn).await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn compact(&self, rev: MetaRev) -> Result<()> {
        self.inner.compact(rev).await
    }

    async fn grant(&self, ttl: Duration) -> Result<i64> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        self.inner.revoke(lease).await
    }
}

/// A big one, killed after half of its copies.
#[tokio::test(start_paused = true)]
async fn a_killed_restore_copies_almost_nothing_twice() {
    let fresh = async || {
        let world = lab_world().await;
        let (db, of) = collection(&*world.meta, SOURCE).await;
        let made = make(
            &world,
            db,
            of,
            470_660_334_431_990_001,
            "nightly",
            usize::MAX,
        )
        .await;
        (world, made)
    };
    let copies = |faults: &Faults| -> Vec<usize> {
        let ops = faults.ops();
        (0..ops.len())
            .filter(|i| ops[*i].what.starts_with("copy"))
            .collect()
    };
    let (world, made) = fresh().await;
    let whole = Faults::none();
    operate(&world.open(&whole, ROOT), 1, intent(made.id, "copied"))
        .await
        .unwrap();
    let plain = copies(&whole);
    assert!(plain.len() > 50, "{} copies", plain.len());

    let (world, made) = fresh().await;
    let faults = Faults::at(plain[plain.len() / 2], Mode::CrashAfter);
    let stores = world.open(&faults, ROOT);
    tokio::select! {
        biased;
        () = faults.crashed() => {}
        ended = operate(&stores, 1, intent(made.id, "copied")) => panic!("not killed: {ended:?}"),
    }
    drop(stores);
    world.bury().await;
    let again = Faults::none();
    let info = operate(&world.open(&again, ROOT), 2, intent(made.id, "copied"))
        .await
        .unwrap();
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    let recovered = info.recovered.clone().unwrap_or_default();
    assert!(recovered.starts_with("resumed"), "{recovered}");
    same(&world, &made, "copied", "after the kill").await;
    let twice = copies(&faults).len() + copies(&again).len() - plain.len();
    println!(
        "{twice} of {} files copied twice after kill -9",
        plain.len()
    );
    assert!(
        twice * 100 < plain.len(),
        "{twice} of {} files copied twice",
        plain.len()
    );
}

#[tokio::test(start_paused = true)]
async fn every_missing_object_is_named_and_nothing_begins() {
    let (world, made) = small_world().await;
    let all_paths: Vec<String> = made.segments[0]
        .binlogs
        .iter()
        .chain(&made.segments[0].deltalogs)
        .flat_map(|f| &f.binlogs)
        .map(|b| b.log_path.clone())
        .chain(
            made.segments[0]
                .index_files
                .iter()
                .flat_map(|f| f.index_file_paths.clone()),
        )
        .collect();
    let gone: Vec<&String> = vec![
        &all_paths[0],
        &all_paths[all_paths.len() / 2],
        &all_paths[all_paths.len() - 1],
    ];
    for key in &gone {
        world
            .objects
            .delete(&Path::parse(key.as_str()).unwrap())
            .await
            .unwrap();
    }
    let before = picture(&world).await;
    let plan = plan(&world, intent(made.id, "never")).await;
    assert!(!plan.applicable());
    let failures: Vec<String> = plan.failures().filter_map(|c| c.failed.clone()).collect();
    for key in &gone {
        assert!(
            failures.iter().any(|f| f.contains(key.as_str())),
            "{key} in {failures:?}"
        );
    }
    assert_eq!(failures.len(), gone.len() + 1, "{failures:?}");
    let stores = world.open(&Faults::none(), ROOT);
    let refused = operate(&stores, 1, intent(made.id, "never"))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    assert_eq!(picture(&world).await, before);
}

#[tokio::test(start_paused = true)]
async fn a_plan_refuses_what_cannot_be_restored() {
    let failing =
        async |world: &World, database: &str, name: &str, snapshot: SnapshotId| -> Vec<String> {
            let intent = Intent::Restore {
                snapshot,
                database: database.into(),
                collection: name.into(),
            };
            let plan = plan(world, intent).await;
            plan.failures()
                .map(|c| format!("{}: {}", c.name, c.failed.clone().unwrap()))
                .collect()
        };
    let (world, made) = small_world().await;
    let id = made.id;
    assert_eq!(
        failing(&world, "default", "fresh", id).await,
        Vec::<String>::new()
    );
    let found = failing(&world, "analytics", "metrics", id).await;
    assert!(
        found.len() == 1 && found[0].starts_with("target name is free"),
        "{found:?}"
    );
    let found = failing(&world, "nowhere", "fresh", id).await;
    assert!(
        found
            .iter()
            .any(|f| f.starts_with("target database exists")),
        "{found:?}"
    );
    let found = failing(&world, "default", "1bad name", id).await;
    assert!(
        found
            .iter()
            .any(|f| f.starts_with("target name is well formed")),
        "{found:?}"
    );
    let found = failing(&world, "default", "fresh", SnapshotId(5)).await;
    assert!(
        found.iter().any(|f| f.starts_with("snapshot exists")),
        "{found:?}"
    );
    // An alias is a name too.
    let aliases = family::<pb::etcd::AliasInfo>(&*world.meta, Family::Alias).await;
    let (Key::Alias(_, alias), _) = aliases
        .iter()
        .find(|(k, _)| matches!(k, Key::Alias(DbId(1), _)))
        .unwrap()
    else {
        panic!("an alias in the default database")
    };
    let found = failing(&world, "default", alias, id).await;
    assert!(
        found.iter().any(|f| f.starts_with("target name is free")),
        "{found:?}"
    );
    // A streaming service owns the channels of this cluster.
    lab::put(
        &*world.meta,
        &"by-dev/meta/streamingcoord-meta/version".into(),
        vec![8, 1],
    )
    .await;
    let found = failing(&world, "default", "fresh", id).await;
    assert!(
        found.len() == 1 && found[0].starts_with("no streaming service"),
        "{found:?}"
    );
    // Pending and deleting snapshots are not sources.
    for (state, word) in [(1, "being created"), (3, "being dropped")] {
        let (world, made) = small_world().await;
        let kv = world.meta.get(&made.key).await.unwrap().unwrap();
        let mut record = pb::data::SnapshotInfo::decode(kv.value).unwrap();
        record.state = state;
        lab::put(&*world.meta, &made.key, record.encode_to_vec()).await;
        let found = failing(&world, "default", "fresh", made.id).await;
        assert!(found.len() == 1 && found[0].contains(word), "{found:?}");
    }
    // A cut manifest is an error that names the file.
    let (world, made) = small_world().await;
    let key = made.metadata.manifest_list[0].clone();
    let bytes = objects(&*world.objects).await[&key].clone();
    lab::put_object(
        &world,
        &key.as_str().into(),
        bytes[..bytes.len() - 1].to_vec(),
    )
    .await;
    let found = failing(&world, "default", "fresh", made.id).await;
    assert!(found.len() == 1 && found[0].contains(&key), "{found:?}");
}

/// A newer Milvus wrote members that reading drops: in the schema they would be lost, elsewhere they are only named.
#[tokio::test(start_paused = true)]
async fn members_of_a_newer_milvus_are_not_lost_in_silence() {
    let (world, made) = small_world().await;
    let key = falconer::engine::format::snapshot::metadata_key(ROOT, made.of, made.id);
    let bytes = objects(&*world.objects).await[&key.0].clone();
    let whole: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let planned = async |json: &serde_json::Value| {
        lab::put_object(&world, &key, json.to_string().into_bytes()).await;
        plan(&world, intent(made.id, "fresh")).await
    };
    let mut newer = whole.clone();
    newer["later"] = true.into();
    let found = planned(&newer).await;
    assert_eq!(found.failures().count(), 0);
    assert!(
        found.warnings.iter().any(|w| w.ends_with(": later")),
        "{:?}",
        found.warnings
    );
    let mut newer = whole;
    newer["collection"]["schema"]["fields"][0]["quantized"] = true.into();
    newer["indexes"][0]["tier"] = 2.into();
    let found = planned(&newer).await;
    let failed: Vec<_> = found.failures().filter_map(|c| c.failed.clone()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    for name in ["collection.schema.fields[0].quantized", "indexes[0].tier"] {
        assert!(failed[0].contains(name), "{failed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_restores_into_one_name_do_not_meet() {
    let (world, made) = small_world().await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores, 1);
    let first = runner
        .plan(intent(made.id, "one"), Arc::default())
        .await
        .unwrap();
    let job = runner.apply(&first.hash, "").await.unwrap();
    let second = runner
        .plan(intent(made.id, "one"), Arc::default())
        .await
        .unwrap();
    assert!(
        second
            .failures()
            .any(|c| c.name == "no other job is in the way"),
        "{:?}",
        second.checks
    );
    // Side by side into two names is fine.
    let other = runner
        .plan(intent(made.id, "two"), Arc::default())
        .await
        .unwrap();
    let beside = runner.apply(&other.hash, "").await.unwrap();
    assert_eq!(runner.ended(job).await.unwrap().state, JobState::Verified);
    assert_eq!(
        runner.ended(beside).await.unwrap().state,
        JobState::Verified
    );
    let third = runner
        .plan(intent(made.id, "one"), Arc::default())
        .await
        .unwrap();
    assert!(third.failures().any(|c| c.name == "target name is free"));
    runner.stop().await;
    unpinned(&world, made, "both released").await;
    let _ = NOW;
}
