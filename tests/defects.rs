//! The defects of `spec/snapshot.md` §9, each shown not to be ours. `docs/defects.md` lists all of them with the test of each; the
//! first test here reads that page. The others are those that no other file has.

#![allow(
    clippy::disallowed_methods,
    reason = "a cluster is damaged past the engine"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::paths::ManifestPath;
use falconer::engine::format::pb;
use falconer::engine::format::pb::data::{SegmentInfo, SnapshotInfo};
use falconer::engine::ids::{
    CollectionId, DbId, MetaKey, PartitionId, SegmentId, SnapshotId, Tso, UnixMs,
};
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::jobs::select::{Selection, select};
use falconer::engine::jobs::source::Source;
use falconer::engine::meta::MetaWriter;
use falconer::engine::meta::scope::Scope;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::{Intent, Plan};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use prost::Message;
use support::faults::{Faults, Stores, World};
use support::snapshots::{
    self as lab, Made, NOW, ROOT, SMALL, all, collection, family, lab_world, make, objects, roots,
};
use support::sound::{Before, id_of, sound};
use support::storage;

// ---- the page ----

/// The rows of `docs/defects.md`: number, and what stands in its second and third column.
fn rows() -> BTreeMap<u32, (String, String)> {
    let page = FsPath::new(env!("CARGO_MANIFEST_DIR")).join("docs/defects.md");
    let page = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|l| l.starts_with("| D")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, defect, shown] = cells[..] else {
            panic!("three cells: {line}");
        };
        let number = number[1..].parse().unwrap_or_else(|_| panic!("{line}"));
        let before = rows.insert(number, (defect.to_owned(), shown.to_owned()));
        assert!(before.is_none(), "D{number} stands there twice");
    }
    rows
}

/// Whether `place` (`tests/file.rs::function`) is a test function.
fn is_test(place: &str) -> bool {
    let Some((file, function)) = place.split_once("::") else {
        return false;
    };
    let file = FsPath::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let Ok(text) = fs::read_to_string(&file) else {
        return false;
    };
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| {
        let line = line.trim_start().trim_start_matches("async ");
        line.strip_prefix("fn ")
            .and_then(|rest| rest.strip_prefix(function))
            .is_some_and(|rest| rest.starts_with('('))
    });
    // An attribute above it, with comments between; inside `proptest!` too.
    at.is_some_and(|at| {
        lines[..at]
            .iter()
            .rev()
            .take_while(|line| {
                let line = line.trim_start();
                line.starts_with("#[") || line.starts_with("//") || line.ends_with(")]")
            })
            .any(|line| line.contains("#[test]") || line.contains("#[tokio::test"))
    })
}

#[test]
fn every_defect_has_its_test_or_its_reason() {
    let rows = rows();
    let wanted: Vec<u32> = (1..=65).collect();
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), wanted);
    let mut tests = 0;
    for (number, (defect, shown)) in &rows {
        assert!(defect.len() > 10, "D{number} says what it is");
        let places: Vec<&str> = shown
            .split('`')
            .filter(|word| word.contains(".rs::"))
            .collect();
        for place in &places {
            assert!(is_test(place), "D{number}: {place} is no test");
        }
        let reason = shown.strip_prefix("cannot apply: ");
        assert!(
            !places.is_empty() || reason.is_some_and(|r| r.len() > 30),
            "D{number} has neither a test nor a reason: {shown}"
        );
        tests += places.len();
    }
    assert!(tests > 60, "{tests} tests are named");
    // The check itself can fail.
    assert!(is_test(
        "tests/defects.rs::every_defect_has_its_test_or_its_reason"
    ));
    assert!(!is_test("tests/defects.rs::rows"));
    assert!(!is_test("tests/defects.rs::nowhere"));
}

// ---- a cluster to change ----

fn runner(stores: &Stores) -> RunnerHandle {
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(11)),
        actor: "tester pid 11".into(),
        embedded: true,
    });
    Runner::start(
        executor,
        falconer::engine::registry(Tolerances::default(), &Keeper::default()),
    )
}

fn open(world: &World) -> RunnerHandle {
    runner(&world.open(&Faults::none(), ROOT))
}

async fn plan(world: &World, intent: Intent) -> Arc<Plan> {
    let runner = open(world);
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    runner.stop().await;
    plan
}

async fn run_on(runner: &RunnerHandle, intent: Intent) -> Arc<JobInfo> {
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    assert!(plan.applicable(), "{:?}", plan.checks);
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let job = runner.apply(&plan.hash, &typed).await.unwrap();
    runner.ended(job).await.unwrap()
}

async fn run(world: &World, intent: Intent) -> Arc<JobInfo> {
    let runner = open(world);
    let info = run_on(&runner, intent).await;
    runner.stop().await;
    info
}

fn failures(plan: &Plan) -> Vec<String> {
    plan.failures()
        .map(|c| format!("{}: {}", c.name, c.failed.clone().unwrap()))
        .collect()
}

fn create(name: &str) -> Intent {
    Intent::CreateSnapshot {
        collection: SMALL,
        name: name.into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    }
}

fn restore(snapshot: SnapshotId, name: &str) -> Intent {
    Intent::Restore {
        snapshot,
        database: "default".into(),
        collection: name.into(),
    }
}

const PASS: Intent = Intent::Gc {
    collection: None,
    rules: BTreeSet::new(),
    quarantine: false,
};

/// Two flushed segments on two shards.
async fn small() -> World {
    lab::small_seed(&lab::FLUSHED).await.world()
}

/// The same with a snapshot that Milvus made.
async fn kept() -> (World, Made) {
    let world = small().await;
    let (db, of) = collection(&*world.meta, "metrics").await;
    let made = make(&world, db, of, 470_660_334_431_990_001, "nightly", 2).await;
    (world, made)
}

/// Changes one record.
async fn edit<M: Message + Default>(world: &World, key: &Key, change: impl FnOnce(&mut M)) {
    let key = key.to_key(&roots());
    let kv = world.meta.get(&key).await.unwrap().unwrap();
    let mut message = M::decode(kv.value).unwrap();
    change(&mut message);
    lab::put(&*world.meta, &key, message.encode_to_vec()).await;
}

async fn segments(world: &World, of: CollectionId) -> Vec<(Key, SegmentInfo)> {
    let all = family::<SegmentInfo>(&*world.meta, Family::Segment).await;
    all.into_iter()
        .filter(|(k, _)| matches!(k, Key::Segment(c, ..) if *c == of))
        .collect()
}

async fn selected(world: &World) -> Selection {
    let source = Source::read(&world.reader(), &roots(), SMALL)
        .await
        .unwrap();
    select(&source, ROOT).unwrap()
}

fn inside(selection: &Selection) -> BTreeSet<i64> {
    selection.segments.iter().map(|s| s.segment_id).collect()
}

async fn snapshots(world: &World) -> Vec<(Key, SnapshotInfo)> {
    family::<SnapshotInfo>(&*world.meta, Family::Snapshot).await
}

async fn snapshot_named(world: &World, name: &str) -> SnapshotId {
    let all = snapshots(world).await;
    SnapshotId(all.iter().find(|(_, s)| s.name == name).unwrap().1.id)
}

async fn remove(world: &World, key: &str) {
    world
        .objects
        .delete(&Path::parse(key).unwrap())
        .await
        .unwrap();
}

// ---- selection ----

#[tokio::test(start_paused = true)]
async fn a_restore_in_progress_is_in_no_snapshot() {
    let world = small().await;
    let (key, importing) = segments(&world, SMALL).await.remove(0);
    edit::<SegmentInfo>(&world, &key, |s| {
        s.is_importing = true;
        s.state = 7;
    })
    .await;
    let selection = selected(&world).await;
    assert!(!inside(&selection).contains(&importing.id));
    let (_, _, why) = selection
        .outside
        .iter()
        .find(|(id, ..)| *id == importing.id)
        .unwrap();
    assert!(why.contains("import"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn each_channel_has_a_boundary_of_its_own() {
    let world = small().await;
    let of: Vec<(Key, SegmentInfo)> = segments(&world, SMALL).await;
    let channels: BTreeSet<&str> = of.iter().map(|(_, s)| s.insert_channel.as_str()).collect();
    assert_eq!(channels.len(), 2);
    // The first channel is far behind: one global cut at its checkpoint would lose the second's segment.
    let (first, second) = (&of[0].1, &of[1].1);
    let start = |s: &SegmentInfo| s.start_position.as_ref().unwrap().timestamp;
    let behind = start(first).min(start(second)) - (60_000 << 18);
    let at = Key::ChannelCheckpoint(first.insert_channel.as_str().into());
    edit::<pb::msg::MsgPosition>(&world, &at, |p| p.timestamp = behind).await;
    let selection = selected(&world).await;
    assert_eq!(inside(&selection), BTreeSet::from([second.id]));
    let seeks: BTreeMap<&str, u64> = selection
        .boundary
        .iter()
        .map(|p| (p.channel_name.as_str(), p.timestamp))
        .collect();
    assert_eq!(seeks[first.insert_channel.as_str()], behind);
    assert!(seeks[second.insert_channel.as_str()] > start(second));
    // They are recorded with the snapshot.
    let info = run(&world, create("cut")).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    let (_, record) = snapshots(&world).await.remove(0);
    let recorded: BTreeMap<&str, u64> = record
        .channel_seek_positions
        .iter()
        .map(|p| (p.channel_name.as_str(), p.timestamp))
        .collect();
    assert_eq!(recorded, seeks);
}

#[tokio::test(start_paused = true)]
async fn what_lies_outside_is_said_before_anything_is_written() {
    let world = small().await;
    let of = segments(&world, SMALL).await;
    // One segment was written to after the boundary; another is growing with nothing on disk.
    let (_, late) = &of[0];
    let at = Key::ChannelCheckpoint(late.insert_channel.as_str().into());
    let start = late.start_position.as_ref().unwrap().timestamp;
    edit::<pb::msg::MsgPosition>(&world, &at, |p| p.timestamp = start + 1).await;
    let growing = SegmentInfo {
        id: 77,
        num_of_rows: 123,
        state: 2,
        collection_id: SMALL.0,
        ..late.clone()
    };
    let key = Key::Segment(SMALL, PartitionId(late.partition_id), SegmentId(77));
    lab::put(&*world.meta, &key.to_key(&roots()), growing.encode_to_vec()).await;
    let planned = plan(&world, create("late")).await;
    let said = planned.warnings.join("\n");
    for words in [
        "does not flush",
        "rows from after the boundary",
        &late.id.to_string(),
        "growing, nothing of it is on disk yet: 1 segments with 123 rows (77)",
    ] {
        assert!(said.contains(words), "{words:?} in {said}");
    }
    assert!(snapshots(&world).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_time_of_an_imported_segment_is_kept() {
    let world = small().await;
    let (key, s) = segments(&world, SMALL).await.remove(0);
    let committed = s.start_position.as_ref().unwrap().timestamp + 7;
    edit::<SegmentInfo>(&world, &key, |s| s.commit_timestamp = committed).await;
    assert_eq!(
        run(&world, create("imported")).await.state,
        JobState::Verified
    );
    let id = snapshot_named(&world, "imported").await;
    let info = run(&world, restore(id, "copy")).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    let copy = id_of(&world, "copy").await.unwrap();
    let times: BTreeSet<u64> = segments(&world, copy)
        .await
        .into_iter()
        .map(|(_, s)| s.commit_timestamp)
        .collect();
    assert_eq!(times, BTreeSet::from([0, committed]));
}

#[tokio::test(start_paused = true)]
async fn an_external_collection_is_refused_before_anything_is_written() {
    let world = small().await;
    let (db, _) = collection(&*world.meta, "metrics").await;
    edit::<pb::etcd::CollectionInfo>(&world, &Key::Collection(db, SMALL), |info| {
        let schema = info.schema.get_or_insert_default();
        schema.external_source = "s3://elsewhere/table".into();
    })
    .await;
    let planned = plan(&world, create("never")).await;
    let said = failures(&planned);
    assert!(
        said.len() == 1 && said[0].contains("outside the cluster"),
        "{said:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_external_collection_that_was_snapshotted_is_not_restored() {
    let (world, made) = kept().await;
    let key = falconer::engine::format::snapshot::metadata_key(ROOT, SMALL, made.id);
    let bytes = objects(&*world.objects).await[&key.0].clone();
    let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    json["collection"]["schema"]["external_source"] = "s3://elsewhere/table".into();
    lab::put_object(&world, &key, json.to_string().into_bytes()).await;
    let planned = plan(&world, restore(made.id, "copy")).await;
    let said = failures(&planned);
    assert!(
        said.len() == 1 && said[0].starts_with("not an external collection"),
        "{said:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_collection_without_indexes_is_snapshotted_and_restored() {
    let world = small().await;
    for family in ["field-index", "segment-index"] {
        for key in all(&*world.meta, &format!("by-dev/meta/{family}/{SMALL}"))
            .await
            .into_keys()
        {
            let writes = vec![falconer::engine::meta::Write::Delete(key.as_str().into())];
            let conds = vec![];
            world
                .meta
                .txn(falconer::engine::meta::Txn { conds, writes })
                .await
                .unwrap();
        }
    }
    assert_eq!(run(&world, create("bare")).await.state, JobState::Verified);
    let id = snapshot_named(&world, "bare").await;
    let info = run(&world, restore(id, "copy")).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    let copy = id_of(&world, "copy").await.unwrap();
    let there = segments(&world, copy).await;
    assert_eq!(there.len(), segments(&world, SMALL).await.len());
    let rows = family::<pb::index::SegmentIndex>(&*world.meta, Family::SegmentIndex).await;
    assert!(rows.is_empty(), "{rows:?}");
}

/// A client flushed, and the checkpoint has not come that far: what is left out for that reason is named, with its rows.
#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_has_not_passed_is_named_although_it_is_flushed() {
    let world = small().await;
    let of = segments(&world, SMALL).await;
    let (_, late) = &of[0];
    assert_eq!(late.state, pb::common::SegmentState::Flushed as i32);
    let at = Key::ChannelCheckpoint(late.insert_channel.as_str().into());
    let start = late.start_position.as_ref().unwrap().timestamp;
    edit::<pb::msg::MsgPosition>(&world, &at, |p| p.timestamp = start).await;
    assert!(!inside(&selected(&world).await).contains(&late.id));
    let said = plan(&world, create("late")).await.warnings.join("\n");
    let line = said.lines().find(|l| l.contains(&late.id.to_string()));
    let line = line.unwrap_or_else(|| panic!("{} in {said}", late.id));
    assert!(
        line.contains(&format!("{} rows", late.num_of_rows)),
        "{line}"
    );
}

// ---- storage V3 ----

/// The first segment becomes one of storage V3: its files are in its manifest alone, and newer ones lie beside them.
async fn with_v3() -> (World, String, i64) {
    let world = small().await;
    let (key, s) = segments(&world, SMALL).await.remove(0);
    let base = format!("{ROOT}/insert_log/{SMALL}/{}/{}", s.partition_id, s.id);
    let packed = ManifestPath::new(2, base.clone()).to_string();
    edit::<SegmentInfo>(&world, &key, |s| {
        s.storage_version = 3;
        s.manifest_path = packed;
        s.text_stats_logs = BTreeMap::from([(
            101,
            pb::data::TextIndexStats {
                field_id: 101,
                version: 1,
                files: vec!["text_index.101/f".into()],
                build_id: 0,
                ..Default::default()
            },
        )]);
    })
    .await;
    // No list of a V3 segment stands in etcd.
    for kind in ["binlog", "statslog", "deltalog", "bm25log"] {
        let prefix = format!(
            "by-dev/meta/datacoord-meta/{kind}/{SMALL}/{}/{}",
            s.partition_id, s.id
        );
        for key in all(&*world.meta, &prefix).await.into_keys() {
            let writes = vec![falconer::engine::meta::Write::Delete(key.as_str().into())];
            let conds = vec![];
            world
                .meta
                .txn(falconer::engine::meta::Txn { conds, writes })
                .await
                .unwrap();
        }
    }
    let partition = base.rsplit_once('/').unwrap().0;
    let mut put = vec![
        (
            format!("{base}/_metadata/manifest-2.avro"),
            storage::manifest(),
        ),
        // Written after the snapshot, or never committed.
        (
            format!("{base}/_metadata/manifest-3.avro"),
            storage::manifest(),
        ),
        (format!("{base}/_data/1_bb.parquet"), b"newer".to_vec()),
        (
            format!("{base}/_delta/461100000000000999"),
            b"newer".to_vec(),
        ),
    ];
    for name in storage::DECLARED {
        let key = match name.strip_prefix("../") {
            Some(lob) => format!("{partition}/{lob}"),
            None if name.starts_with("_index") => format!("{base}/{name}/part"),
            None => format!("{base}/{name}"),
        };
        put.push((key, name.as_bytes().to_vec()));
    }
    for (key, bytes) in put {
        lab::put_object(&world, &key.as_str().into(), bytes).await;
    }
    (world, base, s.id)
}

#[tokio::test(start_paused = true)]
async fn a_manifest_segment_is_data_and_restores_what_its_version_declares() {
    let (world, base, id) = with_v3().await;
    let before = Before::of(&world).await;
    assert!(inside(&selected(&world).await).contains(&id));
    assert_eq!(run(&world, create("v3")).await.state, JobState::Verified);
    let snapshot = snapshot_named(&world, "v3").await;
    let info = run(&world, restore(snapshot, "copy")).await;
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    let copy = id_of(&world, "copy").await.unwrap();
    let (_, target) = segments(&world, copy)
        .await
        .into_iter()
        .find(|(_, s)| s.storage_version == 3)
        .unwrap();
    let there = format!(
        "{ROOT}/insert_log/{copy}/{}/{}",
        target.partition_id, target.id
    );
    assert_eq!(
        ManifestPath::parse(&target.manifest_path).unwrap(),
        ManifestPath::new(2, there.clone())
    );
    // Build 0 stays 0: it is none.
    assert_eq!(target.text_stats_logs[&101].build_id, 0);
    let now = objects(&*world.objects).await;
    let below = |base: &str| -> BTreeSet<String> {
        now.keys()
            .filter_map(|k| k.strip_prefix(&format!("{base}/")).map(str::to_owned))
            .collect()
    };
    // Not the newer files that lie beside them, nor what the segment had before it was one of V3.
    let declared = ["_data/", "_delta/4611000000000004", "_stats/", "_index/"];
    let wanted: BTreeSet<String> = below(&base)
        .into_iter()
        .filter(|k| k == "_metadata/manifest-2.avro" || declared.iter().any(|d| k.starts_with(d)))
        .filter(|k| !k.contains("bb.parquet"))
        .collect();
    assert_eq!(wanted.len(), 5, "{wanted:?}");
    assert_eq!(
        below(&there),
        wanted,
        "what the version declares, and no more"
    );
    for name in &wanted {
        assert_eq!(
            now[&format!("{there}/{name}")],
            now[&format!("{base}/{name}")]
        );
    }
    let lob = format!(
        "{ROOT}/insert_log/{copy}/{}/lobs/102/_data/1.vx",
        target.partition_id
    );
    assert!(now.contains_key(&lob), "{lob}");
    drop(before);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_a_manifest_declares_and_the_bucket_lacks_is_named() {
    for gone in [
        "_data/0_aa.parquet",
        "_stats/bloom_filter.100/1",
        "_delta/461100000000000400",
    ] {
        let (world, base, _) = with_v3().await;
        assert_eq!(run(&world, create("v3")).await.state, JobState::Verified);
        let snapshot = snapshot_named(&world, "v3").await;
        let gone = format!("{base}/{gone}");
        remove(&world, &gone).await;
        let planned = plan(&world, restore(snapshot, "copy")).await;
        let said = failures(&planned);
        assert!(said.iter().any(|f| f.contains(&gone)), "{gone} in {said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_placeholder_manifest_is_no_data() {
    let (world, base, id) = with_v3().await;
    let (key, _) = segments(&world, SMALL)
        .await
        .into_iter()
        .find(|(_, s)| s.id == id)
        .unwrap();
    edit::<SegmentInfo>(&world, &key, |s| {
        s.manifest_path = ManifestPath::new(0, base).to_string();
        s.state = 2;
        s.num_of_rows = 0;
    })
    .await;
    let selection = selected(&world).await;
    assert!(!inside(&selection).contains(&id));
    assert!(selection.outside.iter().any(|(out, ..)| *out == id));
}

// ---- restore ----

#[tokio::test(start_paused = true)]
async fn a_restore_is_a_job_with_true_times_from_its_beginning() {
    let (world, made) = kept().await;
    let runner = open(&world);
    let planned = runner
        .plan(restore(made.id, "copy"), Arc::default())
        .await
        .unwrap();
    let job = runner.apply(&planned.hash, "").await.unwrap();
    // The answer is a job's id, and the job has not ended.
    let begun = runner
        .view
        .borrow()
        .jobs
        .iter()
        .find(|j| j.id == job)
        .cloned();
    assert!(begun.is_none_or(|j| !j.state.ended()));
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    assert!(info.started.0 >= NOW.0 && info.ended.unwrap() >= info.started);
    runner.stop().await;
    let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    let (_, record) = &jobs[0];
    // Start and end are Unix ns, the timeout is a TSO: the units that Milvus mixed up.
    let ms = |ns: u64| UnixMs(i64::try_from(ns / 1_000_000).unwrap());
    assert_eq!(ms(record.start_ts).0 / 60_000, info.started.0 / 60_000);
    assert!(record.complete_ts >= record.start_ts);
    // A TSO, or none: nothing of ours ends a job by the clock.
    let timeout = Tso(record.timeout_ts).time();
    assert!(
        record.timeout_ts == 0 || timeout.is_some_and(|t| t > info.started),
        "{timeout:?}"
    );
    assert!(record.external_spec.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failed_restore_says_when_it_ended_and_leaves_nothing() {
    let (world, made) = kept().await;
    let before = Before::of(&world).await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let planned = runner
        .plan(restore(made.id, "copy"), Arc::default())
        .await
        .unwrap();
    // A source disappears between the plan and the copy.
    let lost = made.segments[0].binlogs[0].binlogs[0].log_path.clone();
    let bytes = objects(&*world.objects).await[&lost].to_vec();
    remove(&world, &lost).await;
    let job = runner.apply(&planned.hash, "").await;
    if let Ok(job) = job {
        let info = runner.ended(job).await.unwrap();
        assert_eq!(info.state, JobState::Failed);
        assert!(
            info.error.as_ref().unwrap().contains(&lost),
            "{:?}",
            info.error
        );
        assert!(info.ended.unwrap() >= info.started);
    }
    runner.stop().await;
    lab::put_object(&world, &lost.as_str().into(), bytes).await;
    for (_, j) in family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await {
        assert_eq!(j.state, 4);
        assert!(j.complete_ts > 0 && !j.reason.is_empty(), "{j:?}");
    }
    sound(&world, &before, &BTreeSet::new(), "a failed restore").await;
}

#[tokio::test(start_paused = true)]
async fn what_a_restore_reads_cannot_be_dropped() {
    let (world, made) = kept().await;
    let runner = open(&world);
    let planned = runner
        .plan(restore(made.id, "copy"), Arc::default())
        .await
        .unwrap();
    let job = runner.apply(&planned.hash, "").await.unwrap();
    let drop_it = Intent::DropSnapshot { snapshot: made.id };
    let refused = runner.plan(drop_it.clone(), Arc::default()).await.unwrap();
    assert!(!refused.applicable(), "{:?}", refused.checks);
    let said = failures(&refused).join("; ");
    assert!(
        said.contains(&job.to_string()) || said.contains("pin"),
        "{said}"
    );
    assert_eq!(runner.ended(job).await.unwrap().state, JobState::Verified);
    // The pin is gone with the job, and so is the refusal.
    assert_eq!(run_on(&runner, drop_it).await.state, JobState::Verified);
    runner.stop().await;
    assert!(snapshots(&world).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn copies_of_one_snapshot_share_no_build() {
    let (world, made) = kept().await;
    for name in ["one", "two"] {
        let info = run(&world, restore(made.id, name)).await;
        assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    }
    let mut seen: BTreeMap<i64, CollectionId> = BTreeMap::new();
    for name in ["metrics", "one", "two"] {
        let of = id_of(&world, name).await.unwrap();
        for (key, row) in
            family::<pb::index::SegmentIndex>(&*world.meta, Family::SegmentIndex).await
        {
            if matches!(key, Key::SegmentIndex(c, ..) if c == of) {
                let other = seen.insert(row.build_id, of);
                assert_eq!(other, None, "build {} is of {name} too", row.build_id);
            }
        }
    }
    assert!(seen.len() >= 3);
}

#[tokio::test(start_paused = true)]
async fn every_attribute_of_a_collection_comes_back() {
    let world = small().await;
    let (db, _) = collection(&*world.meta, "metrics").await;
    for level in [0, 1, 2, 3] {
        let name = format!("level{level}");
        edit::<pb::etcd::CollectionInfo>(&world, &Key::Collection(db, SMALL), |info| {
            info.consistency_level = level;
            info.properties = [("collection.ttl.seconds", "3600"), ("mmap.enabled", "true")]
                .map(|(key, value)| pb::common::KeyValuePair {
                    key: key.into(),
                    value: value.into(),
                })
                .to_vec();
            let schema = info.schema.get_or_insert_default();
            schema.description = "of the test".into();
            schema.enable_dynamic_field = true;
        })
        .await;
        assert_eq!(run(&world, create(&name)).await.state, JobState::Verified);
        let id = snapshot_named(&world, &name).await;
        let info = run(&world, restore(id, &name)).await;
        assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
        let infos = family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection).await;
        let (_, source) = infos
            .iter()
            .find(|(k, _)| *k == Key::Collection(db, SMALL))
            .unwrap();
        let (_, copy) = infos
            .iter()
            .find(|(_, i)| i.schema.as_ref().unwrap().name == name)
            .unwrap();
        assert_eq!(copy.consistency_level, level);
        assert_eq!(copy.properties, source.properties);
        assert_eq!(copy.shards_num, source.shards_num);
        let (a, b) = (
            copy.schema.as_ref().unwrap(),
            source.schema.as_ref().unwrap(),
        );
        assert_eq!(a.description, b.description);
        assert_eq!(a.enable_dynamic_field, b.enable_dynamic_field);
    }
}

#[tokio::test(start_paused = true)]
async fn encryption_is_checked_before_any_side_effect() {
    let (world, made) = kept().await;
    // An encrypted database, and a plain snapshot.
    let db = Key::Database(DbId(1));
    edit::<pb::etcd::DatabaseInfo>(&world, &db, |info| {
        info.properties.push(pb::common::KeyValuePair {
            key: "cipher.enabled".into(),
            value: "true".into(),
        });
    })
    .await;
    let before = all(&*world.meta, "by-dev").await;
    let planned = plan(&world, restore(made.id, "copy")).await;
    let said = failures(&planned);
    assert!(
        said.iter()
            .any(|f| f.starts_with("encryption matches the database")),
        "{said:?}"
    );
    assert_eq!(all(&*world.meta, "by-dev").await, before);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_metadata_file_fails_at_once_and_is_named() {
    let (world, made) = kept().await;
    let key = falconer::engine::format::snapshot::metadata_key(ROOT, SMALL, made.id);
    let whole = objects(&*world.objects).await[&key.0].clone();
    for damage in [&whole[..whole.len() / 2], b"{}", b"[]", b"\xff\xfe", b""] {
        lab::put_object(&world, &key, damage.to_vec()).await;
        let planned = plan(&world, restore(made.id, "copy")).await;
        let said = failures(&planned);
        assert!(said.len() == 1 && said[0].contains(&key.0), "{said:?}");
    }
}

// ---- collection ----

/// Dropped four hours ago.
async fn drop_all(world: &World) {
    for (key, _) in segments(world, SMALL).await {
        edit::<SegmentInfo>(world, &key, |s| {
            s.state = 6;
            s.dropped_at = ((NOW.0 - 4 * 3_600_000) * 1_000_000) as u64;
        })
        .await;
    }
    for key in all(&*world.meta, "by-dev/meta/datacoord-meta/channel-removal")
        .await
        .into_keys()
    {
        lab::put(&*world.meta, &key.as_str().into(), b"removed".to_vec()).await;
    }
}

/// What a snapshot names, with the bytes.
async fn held(world: &World, made: &Made) -> BTreeMap<String, Bytes> {
    let now = objects(&*world.objects).await;
    lab::named(made)
        .into_iter()
        .map(|key| (key.clone(), now[&key].clone()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_from_before_ids_protects_what_its_manifests_name() {
    let (world, made) = kept().await;
    let key = falconer::engine::format::snapshot::metadata_key(ROOT, SMALL, made.id);
    let bytes = objects(&*world.objects).await[&key.0].clone();
    let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    for name in ["segment_ids", "build_ids", "layout"] {
        json.as_object_mut().unwrap().remove(name).unwrap();
    }
    lab::put_object(&world, &key, json.to_string().into_bytes()).await;
    drop_all(&world).await;
    let held = held(&world, &made).await;
    let info = run(&world, PASS).await;
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    let now = objects(&*world.objects).await;
    for (key, bytes) in &held {
        assert_eq!(now.get(key), Some(bytes), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn json_statistics_of_an_older_format_are_held_too() {
    let (world, mut made) = kept().await;
    // The snapshot names statistics of format 1; the living segment has those of format 2.
    let (p, s) = (made.segments[0].partition_id, made.segments[0].segment_id);
    let old = format!("{ROOT}/json_stats/1/900/1/{SMALL}/{p}/{s}/101/shared_key_index/f");
    let new = format!("{ROOT}/json_stats/2/901/1/{SMALL}/{p}/{s}/101/shared_key_index/f");
    for key in [&old, &new] {
        lab::put_object(&world, &key.as_str().into(), b"stats".to_vec()).await;
    }
    let stats = |format: i64, build: i64, file: &str| pb::data::JsonKeyStats {
        field_id: 101,
        version: 1,
        files: vec![file.to_owned()],
        build_id: build,
        json_key_stats_data_format: format,
        ..Default::default()
    };
    made.segments[0].json_key_index_files = BTreeMap::from([(101, stats(1, 900, &old))]);
    let manifest = falconer::engine::format::manifest::write_v4(&made.segments[0]).unwrap();
    lab::put_object(
        &world,
        &made.metadata.manifest_list[0].as_str().into(),
        manifest,
    )
    .await;
    let key = Key::Segment(SMALL, PartitionId(p), SegmentId(s));
    edit::<SegmentInfo>(&world, &key, |s| {
        s.json_key_stats = BTreeMap::from([(101, stats(2, 901, "shared_key_index/f"))]);
    })
    .await;
    for what in ["while the segment lives", "when it is dropped"] {
        let info = run(&world, PASS).await;
        assert_eq!(info.state, JobState::Verified, "{what}: {info:?}");
        assert!(objects(&*world.objects).await.contains_key(&old), "{what}");
        drop_all(&world).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_collection_that_is_gone_ends_a_create_at_once() {
    let world = lab_world().await;
    let runner = open(&world);
    let gone = Intent::CreateSnapshot {
        collection: CollectionId(5),
        name: "never".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let refused = runner.plan(gone, Arc::default()).await.unwrap_err();
    assert!(refused.to_string().contains('5'), "{refused}");
    // It goes between plan and create: the job ends with the reason, and leaves no record behind.
    let (db, of) = collection(&*world.meta, "users").await;
    let create = Intent::CreateSnapshot {
        collection: of,
        name: "late".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let planned = runner.plan(create, Arc::default()).await.unwrap();
    let key: MetaKey = Key::Collection(db, of).to_key(&roots());
    let writes = vec![falconer::engine::meta::Write::Delete(key)];
    let conds = vec![];
    world
        .meta
        .txn(falconer::engine::meta::Txn { conds, writes })
        .await
        .unwrap();
    let refused = runner.apply(&planned.hash, "").await.unwrap_err();
    assert!(refused.to_string().contains(&of.to_string()), "{refused}");
    runner.stop().await;
    assert!(snapshots(&world).await.is_empty());
}
