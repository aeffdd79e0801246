//! Snapshot create and drop on the captured cluster: every collection, read back through the format readers and compared with
//! the metadata; every operation failing once; everything that must be refused.
#![allow(
    clippy::disallowed_methods,
    reason = "the bucket is filled, and robbed, past the engine"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key, ParsedKey};
use falconer::engine::format::manifest;
use falconer::engine::format::pb::data::{
    FieldBinlog, SegmentDescription, SegmentInfo, SnapshotInfo, SnapshotState,
};
use falconer::engine::format::snapshot::{Snapshot, join, read_metadata};
use falconer::engine::ids::{
    CollectionId, JobId, KeyPrefix, MetaKey, MetaRev, ObjectKey, SnapshotId, UnixMs,
};
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::jobs::snapshot_create::{CreateSnapshot, check_name};
use falconer::engine::jobs::snapshot_drop::DropSnapshot;
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{KeyValue, Limits, MetaWrite, MetaWriter, Span, Txn, Write};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::Roots;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use support::faults::{Faults, Mode, Stores, World, sweep};
use support::mem::MemStore;

/// A day after the capture, so that its own clock readings lie in the past.
const NOW: UnixMs = UnixMs(1_796_000_000_000);

/// The captured cluster without its sessions; only the keys and objects of `only`, when given.
async fn lab(only: Option<i64>) -> World {
    let wanted = |key: &str| {
        only.is_none_or(|c| {
            let c = c.to_string();
            !key.contains("datacoord-meta/") && !key.contains("-index/") || key.contains(&c)
        })
    };
    let kvs: Vec<KeyValue> = support::lab::etcd_without_sessions()
        .into_iter()
        .filter(|k| wanted(&String::from_utf8_lossy(&k.key)))
        .map(|k| KeyValue {
            key: MetaKey(Bytes::from(k.key)),
            value: Bytes::from(k.value),
            create_rev: MetaRev(k.create_revision),
            mod_rev: MetaRev(k.mod_revision),
            version: k.version,
            lease: 0,
        })
        .collect();
    // A sweep runs hundreds of times under standing time: its store answers at once, without a thread of its own.
    let store: Arc<dyn MetaWrite> = if only.is_some() {
        let store = MemStore::new(Limits {
            ops: 128,
            bytes: 1_536 * 1024,
        });
        for kv in kvs {
            let writes = vec![Write::put(kv.key, kv.value)];
            store
                .txn(Txn {
                    conds: vec![],
                    writes,
                })
                .await
                .unwrap();
        }
        Arc::new(store)
    } else {
        let store = EmbeddedStore::memory().unwrap();
        store.load(kvs, None).await.unwrap();
        Arc::new(store)
    };
    let objects = InMemory::new();
    for (key, bytes) in support::lab::objects() {
        if only.is_none_or(|c| key.contains(&c.to_string()) || key.contains("index_files")) {
            objects
                .put(&Path::parse(key).unwrap(), bytes.clone().into())
                .await
                .unwrap();
        }
    }
    World::new(store, Arc::new(objects), NOW)
}

fn runner(stores: &Stores) -> RunnerHandle {
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: Roots::default(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(7)),
        actor: "tester pid 1".into(),
        embedded: true,
    });
    Runner::start(
        executor,
        Registry::default().with(CreateSnapshot).with(DropSnapshot),
    )
}

fn create(collection: i64, name: &str) -> Intent {
    Intent::CreateSnapshot {
        collection: CollectionId(collection),
        name: name.into(),
        description: "nightly".into(),
        protection_secs: 3600,
        operation: None,
    }
}

async fn run(runner: &RunnerHandle, intent: Intent) -> Result<Arc<JobInfo>> {
    let plan = runner.plan(intent, Arc::default()).await?;
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let job = runner.apply(&plan.hash, &typed).await?;
    runner.ended(job).await
}

async fn values<M: Message + Default>(meta: &dyn MetaWrite, family: Family) -> Vec<(Key, M)> {
    let roots = Roots::default();
    let page = meta
        .range_all(&Span::prefix(&family.prefix(&roots)))
        .await
        .unwrap();
    page.kvs
        .iter()
        .filter_map(|kv| match Key::parse(&roots, &kv.key.0) {
            ParsedKey::Known(key) => Some((key, M::decode(&kv.value[..]).unwrap())),
            ParsedKey::Unknown => None,
        })
        .collect()
}

/// The collections that the server itself said to have, by id.
fn collections() -> Vec<i64> {
    let mut found: Vec<i64> = support::lab::etcd()
        .iter()
        .filter_map(|k| match Key::parse(&Roots::default(), &k.key) {
            ParsedKey::Known(Key::Collection(_, c)) => {
                let info = falconer::engine::format::pb::etcd::CollectionInfo::decode(&k.value[..])
                    .ok()?;
                (info.state == 0).then_some(c.0)
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found
}

async fn read_back(stores: &Stores, info: &SnapshotInfo) -> Snapshot {
    let file = ObjectKey(info.s3_location.clone());
    let metadata = read_metadata(&file.0, &stores.read.get(&file).await.unwrap()).unwrap();
    let mut manifests = Vec::new();
    for key in &metadata.manifest_list {
        let bytes = stores.read.get(&ObjectKey(key.clone())).await.unwrap();
        manifests.push((
            key.clone(),
            manifest::read(key, &bytes, metadata.format_version).unwrap(),
        ));
    }
    join(&file.0, metadata, manifests).unwrap()
}

fn paths(s: &SegmentDescription) -> Vec<String> {
    let logs = s
        .binlogs
        .iter()
        .chain(&s.deltalogs)
        .chain(&s.statslogs)
        .chain(&s.bm25_statslogs);
    let mut out: Vec<String> = logs
        .flat_map(|f| &f.binlogs)
        .map(|b| b.log_path.clone())
        .collect();
    out.extend(
        s.index_files
            .iter()
            .flat_map(|i| i.index_file_paths.clone()),
    );
    out
}

async fn everything(objects: &Arc<dyn ObjectStore>) -> BTreeMap<String, Bytes> {
    use futures::StreamExt;
    let mut out = BTreeMap::new();
    let mut listed = objects.list(None);
    while let Some(meta) = listed.next().await {
        let at = meta.unwrap().location;
        let bytes = objects.get(&at).await.unwrap().bytes().await.unwrap();
        out.insert(at.to_string(), bytes);
    }
    out
}

/// What is verified shows all of its steps and files as done.
fn whole(info: &JobInfo) {
    assert_eq!(info.steps.0, info.steps.1, "{}", info.title);
    let files = info.progress.files;
    assert!(
        files.1 > 0 && files.0 == files.1,
        "{}: {files:?}",
        info.title
    );
}

#[tokio::test]
async fn every_collection_of_the_captured_cluster() {
    let world = lab(None).await;
    let stores = world.open(&Faults::none(), "files");
    let before = everything(&world.objects).await;
    let runner = runner(&stores);
    let all = collections();
    assert_eq!(all.len(), 8, "the lab has eight collections");
    for c in &all {
        let info = run(&runner, create(*c, "nightly"))
            .await
            .unwrap_or_else(|e| panic!("{c}: {e}"));
        assert_eq!(
            info.state,
            JobState::Verified,
            "{c}: {:?} {:?}",
            info.error,
            info.notes
        );
        assert_eq!(info.collection, Some(CollectionId(*c)));
        whole(&info);
    }
    let records: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
    assert_eq!(records.len(), 8);
    let segments: Vec<(Key, SegmentInfo)> = values(&*stores.meta, Family::Segment).await;
    let (mut shards, mut deletes, mut indexed, mut inside) = (0, 0, 0, 0);
    for (_, record) in &records {
        assert_eq!(record.state(), SnapshotState::Committed);
        let snapshot = read_back(&stores, record).await;
        let info = snapshot.metadata.snapshot_info.as_ref().unwrap();
        assert_eq!(info.state(), SnapshotState::Pending);
        assert_eq!(info.channel_seek_positions, record.channel_seek_positions);
        let names: Vec<&str> = record
            .channel_seek_positions
            .iter()
            .map(|p| p.channel_name.as_str())
            .collect();
        assert!(names.is_sorted());
        shards = shards.max(names.len());
        let seeks: BTreeMap<&str, u64> = record
            .channel_seek_positions
            .iter()
            .map(|p| (p.channel_name.as_str(), p.timestamp))
            .collect();
        // The rule of §4.2, said once more in the test's own words.
        let want: BTreeSet<i64> = segments
            .iter()
            .filter(|(_, s)| {
                s.collection_id == record.collection_id && s.state != 6 && !s.is_importing
            })
            .filter(|(_, s)| {
                s.start_position.as_ref().map_or(0, |p| p.timestamp)
                    < seeks[s.insert_channel.as_str()]
            })
            .map(|(_, s)| s.id)
            .collect();
        let got: BTreeSet<i64> = snapshot.segments.iter().map(|s| s.segment_id).collect();
        let lean: Vec<&i64> = want.difference(&got).collect();
        assert!(
            got.is_subset(&want),
            "{}: {got:?} {want:?}",
            record.collection_id
        );
        for id in lean {
            let logs: Vec<(Key, FieldBinlog)> = values(&*stores.meta, Family::Binlog).await;
            assert!(
                !logs
                    .iter()
                    .any(|(k, l)| matches!(k, Key::Log(_, _, _, s, _) if s.0 == *id)
                        && !l.binlogs.is_empty()),
                "segment {id} has data and is outside"
            );
        }
        inside += got.len();
        let collection = snapshot.metadata.collection.as_ref().unwrap();
        let schema = collection.schema.as_ref().unwrap();
        let ids: Vec<i64> = schema.fields.iter().map(|f| f.field_id).collect();
        assert_eq!(
            &ids[ids.len() - 2..],
            &[0, 1],
            "system fields stand last: {ids:?}"
        );
        assert_eq!(
            i64::try_from(collection.partitions.len()),
            Ok(collection.num_partitions)
        );
        assert!(
            collection
                .partitions
                .keys()
                .any(|n| n.starts_with("_default"))
        );
        for segment in &snapshot.segments {
            for path in paths(segment) {
                assert!(
                    before.contains_key(&path),
                    "{path} is not an object of the capture"
                );
            }
            assert!(!segment.binlogs.is_empty());
            deletes += segment.deltalogs.len();
            indexed += segment
                .index_files
                .iter()
                .filter(|i| !i.index_file_paths.is_empty())
                .count();
        }
    }
    assert_eq!(shards, 4, "one collection has four shards");
    assert!(
        deletes > 0 && indexed > 0 && inside > 10,
        "{deletes} {indexed} {inside}"
    );
    // Dropping all of them leaves the bucket as it was.
    for (_, record) in &records {
        let info = run(
            &runner,
            Intent::DropSnapshot {
                snapshot: SnapshotId(record.id),
            },
        )
        .await
        .unwrap();
        assert_eq!(
            info.state,
            JobState::Verified,
            "{:?} {:?}",
            info.error,
            info.notes
        );
        whole(&info);
    }
    assert_eq!(everything(&world.objects).await, before);
    assert!(
        values::<SnapshotInfo>(&*stores.meta, Family::Snapshot)
            .await
            .is_empty()
    );
    runner.stop().await;
}

/// The collection with fewest segments that has some: sweeps are over it.
async fn small() -> i64 {
    let world = lab(None).await;
    let segments: Vec<(Key, SegmentInfo)> = values(&*world.meta, Family::Segment).await;
    let live = |c: i64| {
        segments
            .iter()
            .filter(|(_, s)| s.collection_id == c && s.state == 4)
            .count()
    };
    collections()
        .into_iter()
        .filter(|c| live(*c) > 0)
        .min_by_key(|c| live(*c))
        .unwrap()
}

async fn first_job(stores: &Stores) -> Result<Option<JobId>> {
    let mut tries = 0;
    loop {
        let span = Span::prefix(&KeyPrefix::new("falconer/by-dev/job"));
        match stores.meta.range_all(&span).await {
            Ok(page) => {
                return Ok(page
                    .kvs
                    .last()
                    .map(|kv| kv.key.text().split('/').nth(3).unwrap().parse().unwrap()));
            }
            Err(e) if e.is_transient() && tries < 3 => tries += 1,
            Err(e) => return Err(e),
        }
        tokio::task::yield_now().await;
    }
}

/// Starts the program, waits for a job that is there, else gives the order.
async fn operate(stores: &Stores, intent: &Intent, old: Option<JobId>) -> Result<()> {
    let runner = runner(stores);
    let info = match first_job(stores).await?.filter(|j| Some(*j) != old) {
        Some(job) => runner.ended(job).await?,
        None => loop {
            match run(&runner, intent.clone()).await {
                Err(e) if e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown => {
                    tokio::task::yield_now().await;
                }
                done => break done?,
            }
        },
    };
    runner.stop().await;
    if info.state == JobState::Verified {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Internal,
            format!("{:?}: {:?} {:?}", info.state, info.error, info.notes),
        ))
    }
}

#[tokio::test(start_paused = true)]
async fn create_survives_every_fault() {
    let c = small().await;
    let drive = async |stores: &Stores| operate(stores, &create(c, "swept"), None).await;
    let check = async |world: &World, label: &str| {
        let stores = world.open(&Faults::none(), "files");
        let records: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
        assert_eq!(records.len(), 1, "{label}");
        assert_eq!(records[0].1.state(), SnapshotState::Committed, "{label}");
        let snapshot = read_back(&stores, &records[0].1).await;
        assert!(!snapshot.segments.is_empty(), "{label}");
        let ours = everything(&world.objects)
            .await
            .into_keys()
            .filter(|k| k.contains("snapshots/"))
            .count();
        assert_eq!(ours, snapshot.segments.len() + 1, "{label}");
    };
    let runs = sweep("files", async || lab(Some(c)).await, drive, check).await;
    assert!(runs > 60, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn drop_survives_every_fault() {
    let c = small().await;
    let before = everything(&lab(Some(c)).await.objects).await;
    let make = async || {
        let world = lab(Some(c)).await;
        let stores = world.open(&Faults::none(), "files");
        operate(&stores, &create(c, "swept"), None).await.unwrap();
        world
    };
    let drive = async |stores: &Stores| {
        let prefix = Span::prefix(&Family::Snapshot.prefix(&Roots::default()));
        let page = loop {
            match stores.meta.range_all(&prefix).await {
                Err(e) if e.is_transient() && !stores.faults.is_dead() => {}
                done => break done?,
            }
        };
        let records: Vec<SnapshotInfo> = page
            .kvs
            .iter()
            .map(|kv| SnapshotInfo::decode(&kv.value[..]).unwrap())
            .collect();
        let runner = runner(stores);
        let unfinished = loop {
            let mut view = runner.view.clone();
            let jobs = view.borrow_and_update().clone();
            if jobs.jobs.is_empty() {
                view.changed().await.unwrap();
                continue;
            }
            break jobs.jobs.iter().find(|j| !j.state.ended()).map(|j| j.id);
        };
        let info = match (unfinished, records.first()) {
            (Some(job), _) => runner.ended(job).await?,
            (None, Some(record)) => loop {
                match run(
                    &runner,
                    Intent::DropSnapshot {
                        snapshot: SnapshotId(record.id),
                    },
                )
                .await
                {
                    Err(e) if e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown => {
                        tokio::task::yield_now().await;
                    }
                    done => break done?,
                }
            },
            (None, None) => return Ok(()),
        };
        runner.stop().await;
        assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
        Ok(())
    };
    let check = async |world: &World, label: &str| {
        assert!(
            values::<SnapshotInfo>(&*world.meta, Family::Snapshot)
                .await
                .is_empty(),
            "{label}"
        );
        assert_eq!(
            everything(&world.objects).await.len(),
            before.len(),
            "{label}"
        );
    };
    sweep("files", make, drive, check).await;
}

/// A create of the small collection whose process died at the transaction that commits the snapshot.
async fn died_at_the_commit(mode: Mode) -> (World, JobId) {
    let c = small().await;
    let of_record = |what: &str| what.starts_with("txn by-dev/meta/datacoord-meta/snapshot/");
    let counted = Faults::none();
    let world = lab(Some(c)).await;
    operate(&world.open(&counted, "files"), &create(c, "cut"), None)
        .await
        .unwrap();
    let ops = counted.ops();
    let commit = ops.iter().rposition(|op| of_record(&op.what)).unwrap();
    let world = lab(Some(c)).await;
    let faults = Faults::at(commit, mode);
    let stores = world.open(&faults, "files");
    let intent = create(c, "cut");
    tokio::select! {
        biased;
        () = faults.crashed() => {}
        done = operate(&stores, &intent, None) => panic!("not killed: {done:?}"),
    }
    world.bury().await;
    let job = first_job(&world.open(&Faults::none(), "files")).await;
    (world, job.unwrap().unwrap())
}

async fn overwrite(world: &World, key: MetaKey, value: Vec<u8>) {
    let writes = vec![Write::put(key, value)];
    let conds = vec![];
    world.meta.txn(Txn { conds, writes }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_undo_leaves_a_snapshot_that_was_committed() {
    let (world, job) = died_at_the_commit(Mode::CrashAfter).await;
    let key: MetaKey = format!("falconer/by-dev/job/{job}").into();
    let record = world.meta.get(&key).await.unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
    // As when the commit's outcome stayed unknown and the job turned back.
    record["state"] = "undoing".into();
    record["error"] = "nobody knows".into();
    overwrite(&world, key, serde_json::to_vec(&record).unwrap()).await;
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores);
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{:?}", info.notes);
    assert_eq!(info.error, None);
    let records: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
    assert_eq!(records[0].1.state(), SnapshotState::Committed);
    assert!(!read_back(&stores, &records[0].1).await.segments.is_empty());
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_dropped_while_it_is_made_is_not_committed() {
    let (world, job) = died_at_the_commit(Mode::CrashBefore).await;
    let stores = world.open(&Faults::none(), "files");
    let mut records: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
    let (key, mut info) = records.remove(0);
    assert_eq!(info.state(), SnapshotState::Pending);
    info.state = SnapshotState::Deleting as i32;
    overwrite(&world, key.to_key(&Roots::default()), info.encode_to_vec()).await;
    let runner = runner(&stores);
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Failed);
    let error = info.error.clone().unwrap();
    assert!(error.contains("SnapshotStateDeleting"), "{error}");
    let left: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
    assert!(left.is_empty());
    let objects = everything(&world.objects).await;
    assert!(!objects.keys().any(|k| k.contains("snapshots/")));
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_open_create_makes_is_not_dropped() {
    let (world, job) = died_at_the_commit(Mode::CrashBefore).await;
    let stores = world.open(&Faults::none(), "files");
    let records: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
    let snapshot = SnapshotId(records[0].1.id);
    // One that cannot take the create up.
    let parts = Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: Roots::default(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(8)),
        actor: "tester pid 2".into(),
        embedded: true,
    };
    let runner = Runner::start(Executor::new(parts), Registry::default().with(DropSnapshot));
    let plan = runner
        .plan(Intent::DropSnapshot { snapshot }, Arc::default())
        .await
        .unwrap();
    let said: Vec<&str> = plan
        .failures()
        .filter_map(|check| check.failed.as_deref())
        .collect();
    let said = said.join("; ");
    assert!(
        said.contains("collection:") && said.contains(&job.to_string()),
        "{said}"
    );
    assert!(runner.apply(&plan.hash, "cut").await.is_err());
    runner.stop().await;
}

fn failed(plan: &Plan, check: &str) -> String {
    let found = plan
        .checks
        .iter()
        .find(|c| c.name.contains(check))
        .unwrap_or_else(|| panic!("no check {check}"));
    found.failed.clone().unwrap_or_default()
}

#[tokio::test]
async fn a_missing_object_is_named_and_stops_the_plan() {
    let world = lab(None).await;
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores);
    let c = small().await;
    run(&runner, create(c, "whole")).await.unwrap();
    let records: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
    let snapshot = read_back(&stores, &records[0].1).await;
    let lost: Vec<String> = paths(&snapshot.segments[0])
        .into_iter()
        .step_by(3)
        .take(3)
        .collect();
    for key in &lost {
        world
            .objects
            .delete(&Path::parse(key).unwrap())
            .await
            .unwrap();
    }
    let plan = runner
        .plan(create(c, "holes"), Arc::default())
        .await
        .unwrap();
    let said = failed(&plan, "every referenced object");
    for key in &lost {
        assert!(said.contains(key.as_str()), "{key} is not named in: {said}");
    }
    let e = runner.apply(&plan.hash, "").await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert_eq!(
        values::<SnapshotInfo>(&*stores.meta, Family::Snapshot)
            .await
            .len(),
        1
    );
    runner.stop().await;
}

#[tokio::test]
async fn an_object_that_goes_missing_after_the_plan_is_found_too_and_all_is_taken_back() {
    let c = small().await;
    let world = lab(Some(c)).await;
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores);
    let plan = runner
        .plan(create(c, "late"), Arc::default())
        .await
        .unwrap();
    let logs = format!("files/insert_log/{c}/");
    let lost = everything(&world.objects)
        .await
        .into_keys()
        .filter(|k| k.starts_with(&logs))
        .collect::<Vec<_>>();
    for key in &lost {
        world
            .objects
            .delete(&Path::parse(key).unwrap())
            .await
            .unwrap();
    }
    let left = everything(&world.objects).await;
    let job = runner.apply(&plan.hash, "").await.unwrap();
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Failed);
    assert!(
        info.error.as_ref().unwrap().contains(&logs),
        "{:?}",
        info.error
    );
    assert!(
        values::<SnapshotInfo>(&*stores.meta, Family::Snapshot)
            .await
            .is_empty()
    );
    assert_eq!(everything(&world.objects).await, left);
    runner.stop().await;
}

#[tokio::test]
async fn a_milvus_that_does_not_know_snapshots_is_named() {
    let c = small().await;
    let world = lab(Some(c)).await;
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores);
    for (version, said) in [
        (None, Some("not recorded")),
        (Some("2.6.9"), Some("Milvus 2.6.9 does not know")),
        (Some("v3.0.1-dev"), None),
    ] {
        if let Some(version) = version {
            let writes = vec![Write::put("by-dev/meta/session/version".into(), version)];
            let conds = vec![];
            world.meta.txn(Txn { conds, writes }).await.unwrap();
        }
        let plan = runner.plan(create(c, "w"), Arc::default()).await.unwrap();
        assert_eq!(plan.failures().count(), 0);
        let found = plan.warnings.iter().find(|w| w.contains("dropTolerance"));
        match said {
            Some(said) => assert!(found.unwrap().contains(said), "{found:?}"),
            None => assert_eq!(found, None),
        }
    }
    runner.stop().await;
}

/// Stopped in the middle of a clustering compaction: its inputs and its outputs both stand, and each row is wanted once.
#[tokio::test]
async fn a_compaction_in_the_middle_is_taken_once() {
    use falconer::engine::jobs::select::select;
    use falconer::engine::jobs::source::Source;
    let c = small().await;
    let world = lab(Some(c)).await;
    let mut source = Source::read(&world.reader(), &Roots::default(), CollectionId(c))
        .await
        .unwrap();
    let before = select(&source, "files").unwrap();
    let template = source.segments[&before.segments[0].segment_id].clone();
    source.segments.clear();
    // 1, 2: inputs. 11, 12: outputs. 21: dropped, the unsorted form of 12.
    let mut put = |id: i64, state: i32, from: &[i64], hidden: bool| {
        let segment = SegmentInfo {
            id,
            state,
            is_invisible: hidden,
            created_by_compaction: !from.is_empty(),
            compaction_from: from.to_vec(),
            ..template.clone()
        };
        source.segments.insert(id, segment);
        let found = select(&source, "files").unwrap();
        let ids: Vec<i64> = found.segments.iter().map(|s| s.segment_id).collect();
        let out: Vec<i64> = found.outside.iter().map(|(id, ..)| *id).collect();
        (ids, out, found.outside)
    };
    // Both inputs were compacted from something themselves, long ago.
    put(1, 4, &[91], false);
    put(2, 4, &[91, 92], false);
    put(21, 6, &[1, 2], true);
    put(11, 4, &[1, 2], true);
    let (ids, out, why) = put(12, 4, &[21], true);
    assert_eq!((ids, out), (vec![1, 2], vec![11, 12, 21]));
    assert!(why[0].2.contains("not published"), "{why:?}");
    // One output is published: the other's rows are in no input that stays.
    let (ids, out, why) = put(11, 4, &[1, 2], false);
    assert_eq!((ids, out), (vec![11, 12], vec![1, 2, 21]));
    assert!(why[0].2.contains("input of a compaction"), "{why:?}");
    // The inputs are gone, nothing was published: what is left is all there is.
    put(11, 4, &[1, 2], true);
    put(1, 6, &[], false);
    let (ids, out, _) = put(2, 6, &[], false);
    assert_eq!((ids, out), (vec![11, 12], vec![1, 2, 21]));
    // One input is gone: its rows are in the outputs only.
    let (ids, out, _) = put(2, 4, &[91, 92], false);
    assert_eq!((ids, out), (vec![11, 12], vec![1, 2, 21]));
}

#[test]
fn names_are_refused_never_trimmed() {
    for good in ["a", "_", "A9_$", &"x".repeat(255)] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        " a",
        "a ",
        "9a",
        "$a",
        "a-b",
        "a.b",
        "ä",
        "aä",
        "a\n",
        &"x".repeat(256),
    ] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn a_taken_name_and_a_wrong_collection_are_refused() {
    let world = lab(None).await;
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores);
    let all = collections();
    run(&runner, create(all[0], "one")).await.unwrap();
    let plan = runner
        .plan(create(all[0], "one"), Arc::default())
        .await
        .unwrap();
    assert!(
        failed(&plan, "name is free").contains("SnapshotStateCommitted"),
        "{plan:?}"
    );
    assert!(
        runner
            .plan(create(all[1], "one"), Arc::default())
            .await
            .unwrap()
            .applicable(),
        "names are per collection"
    );
    assert_eq!(
        runner
            .plan(create(5, "one"), Arc::default())
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NotFound
    );
    let plan = runner
        .plan(create(all[0], " two"), Arc::default())
        .await
        .unwrap();
    assert!(failed(&plan, "name is allowed").contains("begin"));
    runner.stop().await;
}

#[tokio::test]
async fn a_pinned_snapshot_is_not_dropped() {
    let c = small().await;
    let world = lab(Some(c)).await;
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores);
    run(&runner, create(c, "pinned")).await.unwrap();
    let (key, mut info) = values::<SnapshotInfo>(&*stores.meta, Family::Snapshot)
        .await
        .remove(0);
    let meta_key = key.to_key(&Roots::default());
    let now = stores.clock.now().0;
    for (pins, said) in [
        (
            vec![(11, Some(now + 90_500)), (12, None)],
            Some(vec![
                "pin 11 of unknown, 1m30s left",
                "pin 12 of unknown, never expires",
            ]),
        ),
        (vec![(11, Some(now - 1000))], None),
    ] {
        info.pin_ids = pins.iter().map(|(id, _)| *id).collect();
        info.pin_expire_at_ms = pins
            .iter()
            .filter_map(|(id, at)| Some((*id, (*at)?)))
            .collect();
        let write = Write::put(meta_key.clone(), info.encode_to_vec());
        world
            .meta
            .txn(Txn {
                conds: vec![],
                writes: vec![write],
            })
            .await
            .unwrap();
        let intent = Intent::DropSnapshot {
            snapshot: SnapshotId(info.id),
        };
        let plan = runner.plan(intent.clone(), Arc::default()).await.unwrap();
        if let Some(parts) = said {
            let text = failed(&plan, "not pinned");
            assert!(parts.iter().all(|p| text.contains(p)), "{text}");
            assert!(runner.apply(&plan.hash, "pinned").await.is_err());
        } else {
            assert!(plan.applicable(), "{plan:?}");
            let info = run(&runner, intent).await.unwrap();
            assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
        }
    }
    runner.stop().await;
}

#[tokio::test]
async fn a_live_coordinator_refuses_the_plan() {
    let c = small().await;
    let world = lab(Some(c)).await;
    let write = Write::put("by-dev/meta/session/datacoord".into(), "{}");
    world
        .meta
        .txn(Txn {
            conds: vec![],
            writes: vec![write],
        })
        .await
        .unwrap();
    let stores = world.open(&Faults::none(), "files");
    let runner = runner(&stores);
    let plan = runner.plan(create(c, "no"), Arc::default()).await.unwrap();
    assert!(failed(&plan, "no coordinator").contains("session/datacoord"));
    assert!(runner.apply(&plan.hash, "").await.is_err());
    assert!(
        values::<SnapshotInfo>(&*stores.meta, Family::Snapshot)
            .await
            .is_empty()
    );
    runner.stop().await;
}

/// The same on what people run: real etcd, both versions, and a real S3 server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_real_etcd_and_a_real_s3_server() {
    use falconer::engine::clock::SystemClock;
    use falconer::engine::meta::etcd::EtcdStore;
    use falconer::engine::profile::EtcdProfile;
    use support::servers::{Etcd, EtcdVersion};

    let s3 = support::s3::shared();
    for version in EtcdVersion::ALL {
        let etcd = Etcd::start(version);
        etcd.load(&support::lab::etcd_without_sessions()).await;
        let profile = EtcdProfile::plain([etcd.endpoint()]);
        let meta = EtcdStore::connect(&profile, Arc::new(SystemClock::new()))
            .await
            .unwrap();
        let bucket = format!("snapshots-{version:?}").to_lowercase();
        s3.create_bucket(&bucket);
        let objects = support::lab::objects().iter().cloned();
        s3.upload(&bucket, objects).await;
        let world = World::new(Arc::new(meta), Arc::new(s3.bucket(&bucket)), NOW);
        let stores = world.open(&Faults::none(), "files");
        let before = everything(&world.objects).await;
        let runner = runner(&stores);
        for c in collections() {
            let info = run(&runner, create(c, "nightly")).await.unwrap();
            let said = format!("{c}: {:?} {:?}", info.error, info.notes);
            assert_eq!(info.state, JobState::Verified, "{said}");
        }
        let records: Vec<(Key, SnapshotInfo)> = values(&*stores.meta, Family::Snapshot).await;
        assert_eq!(records.len(), 8);
        let mut inside = 0;
        for (_, record) in records {
            inside += read_back(&stores, &record).await.segments.len();
            let snapshot = SnapshotId(record.id);
            let info = run(&runner, Intent::DropSnapshot { snapshot })
                .await
                .unwrap();
            assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
        }
        assert!(inside > 10, "{inside}");
        assert_eq!(everything(&world.objects).await, before);
        runner.stop().await;
    }
}
