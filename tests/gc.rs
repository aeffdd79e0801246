//! Garbage collection, on the captured cluster: what a snapshot holds stays, what nothing holds goes, every operation of a pass failing
//! once; and the property that nothing with a hold is ever deleted.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::paths::ObjPath;
use falconer::engine::format::{pb, snapshot};
use falconer::engine::ids::{
    BuildId, CollectionId, DbId, IndexId, JobId, KeyPrefix, ObjectKey, SegmentId, SnapshotId, Tso,
    UnixMs, UnixNs, VChannel,
};
use falconer::engine::jobs::gc::Gc;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore::Restore;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWriter, Span, Txn, Write};
use falconer::engine::model::data::Pin;
use falconer::engine::model::gc::{self, Rule, Verdict};
use falconer::engine::model::holds::{
    BuildFacts, ChannelFacts, Facts, Owner, Reason, Reference, SegmentFacts, SnapshotFacts, Work,
    World as Known,
};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::model::references::{Collecting, Extent};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::{Intent, Plan};
use object_store::path::Path;
use proptest::prelude::*;
use prost::Message;
use support::faults::{Faults, Stores, World, sweep};
use support::snapshots::{
    self as lab, Made, NOW, ROOT, Seed, all, collection, family, lab_world, make, objects, roots,
};

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
        actor: format!("tester pid {seed}"),
        embedded: true,
    });
    Runner::start(
        executor,
        Registry::default()
            .with(Restore::default())
            .with(Gc::default()),
    )
}

fn pass() -> Intent {
    Intent::Gc {
        collection: None,
        rules: BTreeSet::new(),
        quarantine: false,
    }
}

async fn jobs(stores: &Stores) -> Result<Vec<JobId>> {
    let span = Span::prefix(&KeyPrefix::new("falconer/by-dev/job"));
    let page = stores.meta.range_all(&span).await?;
    let ids: BTreeSet<i64> = page
        .kvs
        .iter()
        .map(|kv| kv.key.text().split('/').nth(3).unwrap().parse().unwrap())
        .collect();
    Ok(ids.into_iter().map(JobId).collect())
}

/// Starts the program; waits for the job that is there, or gives the order and waits.
async fn operate(stores: &Stores, intent: Intent) -> Result<Arc<JobInfo>> {
    let runner = runner(stores, 1);
    let job = loop {
        let begun = match jobs(stores).await {
            Ok(ids) if !ids.is_empty() => Ok(ids[0]),
            Ok(_) => begin(&runner, intent.clone()).await,
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

async fn begin(runner: &RunnerHandle, intent: Intent) -> Result<JobId> {
    let plan = runner.plan(intent, Arc::default()).await?;
    runner
        .apply(&plan.hash, plan.type_to_confirm.as_deref().unwrap_or(""))
        .await
}

/// A job of its own, whatever ran before.
async fn run(world: &World, intent: Intent) -> (Arc<Plan>, Arc<JobInfo>) {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores, 3);
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let job = runner.apply(&plan.hash, &typed).await.unwrap();
    let info = runner.ended(job).await.unwrap();
    runner.stop().await;
    (plan, info)
}

async fn plan_only(world: &World, intent: Intent) -> Arc<Plan> {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores, 3);
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    runner.stop().await;
    plan
}

/// Drops a collection's segments the way a compaction or a drop would have, `ago` before now.
async fn drop_segments(world: &World, of: CollectionId, ago_ms: i64) -> BTreeSet<i64> {
    let meta = &*world.meta;
    let mut dropped = BTreeSet::new();
    let prefix = format!("by-dev/meta/datacoord-meta/s/{of}");
    for (key, value) in all(meta, &prefix).await {
        let mut info = pb::data::SegmentInfo::decode(value).unwrap();
        info.state = 6;
        info.dropped_at = ((NOW.0 - ago_ms) * 1_000_000) as u64;
        dropped.insert(info.id);
        lab::put(meta, &key.as_str().into(), info.encode_to_vec()).await;
    }
    // Their channels are gone with them.
    for (key, value) in all(meta, "by-dev/meta/datacoord-meta/channel-cp").await {
        if key.contains(&format!("_{of}v")) {
            let mut cp = pb::msg::MsgPosition::decode(value).unwrap();
            cp.timestamp = u64::MAX;
            cp.msg_id.clear();
            lab::put(meta, &key.as_str().into(), cp.encode_to_vec()).await;
        }
    }
    dropped
}

async fn remove_under(world: &World, prefixes: &[String]) {
    for prefix in prefixes {
        let writes: Vec<Write> = all(&*world.meta, prefix)
            .await
            .into_keys()
            .map(|k| Write::Delete(k.as_str().into()))
            .collect();
        for chunk in writes.chunks(100) {
            world
                .meta
                .txn(Txn {
                    conds: vec![],
                    writes: chunk.to_vec(),
                })
                .await
                .unwrap();
        }
    }
}

/// Milvus's own record of a dropped collection is gone; segments and indexes wait for collection.
async fn drop_collection(world: &World, db: DbId, of: CollectionId) {
    drop_segments(world, of, 4 * 3_600_000).await;
    remove_under(
        world,
        &[
            format!("by-dev/meta/root-coord/database/collection-info/{db}/{of}"),
            format!("by-dev/meta/root-coord/fields/{of}"),
            format!("by-dev/meta/root-coord/partitions/{of}"),
            format!("by-dev/meta/field-index/{of}"),
        ],
    )
    .await;
    let key = Key::Collection(db, of).to_key(&roots());
    world
        .meta
        .txn(Txn {
            conds: vec![],
            writes: vec![Write::Delete(key)],
        })
        .await
        .unwrap();
}

async fn segments_of(world: &World, of: CollectionId) -> BTreeSet<i64> {
    family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment)
        .await
        .into_iter()
        .filter(|(k, _)| matches!(k, Key::Segment(c, ..) if *c == of))
        .map(|(_, s)| s.id)
        .collect()
}

/// All files that a snapshot names, with their bytes.
fn named(made: &Made, bytes: &BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    let mut out = BTreeMap::new();
    for s in &made.segments {
        let logs = [&s.binlogs, &s.statslogs, &s.deltalogs, &s.bm25_statslogs];
        let logs = logs
            .into_iter()
            .flatten()
            .flat_map(|f| &f.binlogs)
            .map(|b| &b.log_path);
        let index = s.index_files.iter().flat_map(|f| &f.index_file_paths);
        for path in logs.chain(index) {
            out.insert(path.clone(), bytes[path].clone());
        }
    }
    out
}

/// The story of demand 12: snapshot, restore, drop the source, collect; the snapshot's objects are byte for byte what they were. Then
/// the snapshot goes, and with it what only it held.
#[tokio::test(start_paused = true)]
async fn a_snapshot_holds_its_objects_through_collection() {
    let world = lab_world().await;
    let (db, of) = collection(&*world.meta, "books").await;
    let made = make(
        &world,
        db,
        of,
        470_660_334_431_990_001,
        "nightly",
        usize::MAX,
    )
    .await;
    let original = objects(&*world.objects).await;
    let held = named(&made, &original);
    assert!(held.len() > 50, "{}", held.len());
    let restore = Intent::Restore {
        snapshot: made.id,
        database: "default".into(),
        collection: "books_again".into(),
    };
    let (_, info) = run(&world, restore.clone()).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    let (_, restored) = collection(&*world.meta, "books_again").await;
    drop_collection(&world, db, of).await;

    let before = objects(&*world.objects).await;
    let (plan, info) = run(&world, pass()).await;
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    let after = objects(&*world.objects).await;
    for (key, bytes) in &held {
        assert_eq!(after.get(key), Some(bytes), "{key} is held by the snapshot");
    }
    // Every other source object is gone or as it was; nothing of the restored collection was touched.
    for (key, bytes) in &after {
        assert_eq!(before.get(key), Some(bytes), "{key}");
    }
    assert!(
        before
            .keys()
            .filter(|k| k.contains(&restored.0.to_string()))
            .all(|k| after.contains_key(k))
    );
    let kept: BTreeSet<i64> = made.segments.iter().map(|s| s.segment_id).collect();
    assert_eq!(
        segments_of(&world, of).await,
        kept,
        "exactly what the snapshot names"
    );
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.contains("kept because snapshot")),
        "{:?}",
        plan.warnings
    );

    // The snapshot still restores, its source being gone.
    let mut again = restore.clone();
    if let Intent::Restore { collection, .. } = &mut again {
        *collection = "books_third".into();
    }
    let (_, info) = run(&world, again).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);

    // Dropped: its own files go first, the record last; then nothing holds the segments.
    let kv = world.meta.get(&made.key).await.unwrap().unwrap();
    let mut record = pb::data::SnapshotInfo::decode(kv.value).unwrap();
    record.state = 3;
    lab::put(&*world.meta, &made.key, record.encode_to_vec()).await;
    let expected = objects(&*world.objects).await;
    let (plan, info) = run(&world, pass()).await;
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    assert!(segments_of(&world, of).await.is_empty());
    assert!(world.meta.get(&made.key).await.unwrap().is_none());
    let after = objects(&*world.objects).await;
    assert!(
        !after.keys().any(|k| k.contains("/snapshots/")),
        "its files are gone"
    );
    assert!(
        held.keys().all(|k| !after.contains_key(k)),
        "nothing holds them any more"
    );
    assert_eq!(
        plan.objects.deletes as usize,
        expected.len() - after.len(),
        "the plan said exactly what would go"
    );
    let bytes = |map: &BTreeMap<String, Bytes>| map.values().map(|b| b.len() as u64).sum::<u64>();
    assert_eq!(plan.objects.delete_bytes, bytes(&expected) - bytes(&after));
    // Checkpoints of the dropped collection went with the last segment, in the same pass.
    let left = all(&*world.meta, "by-dev/meta/datacoord-meta/channel-cp").await;
    assert!(
        left.keys().all(|k| !k.contains(&format!("_{of}v"))),
        "{left:?}"
    );
    assert!(
        left.keys().any(|k| k.contains(&format!("_{restored}v"))),
        "others stay"
    );
}

/// An unreadable snapshot blocks its collection and every owner that nobody knows; others go on.
#[tokio::test(start_paused = true)]
async fn an_unreadable_snapshot_blocks_its_collection_only() {
    let world = lab_world().await;
    let (db, books) = collection(&*world.meta, "books").await;
    let (_, users) = collection(&*world.meta, "users").await;
    let made = make(&world, db, books, 470_660_334_431_990_001, "nightly", 1).await;
    let manifest = made.metadata.manifest_list[0].clone();
    let bytes = objects(&*world.objects).await[&manifest].clone();
    // Cut in the middle: the very file that Milvus would read as "nothing referenced".
    lab::put_object(
        &world,
        &manifest.as_str().into(),
        bytes[..bytes.len() / 2].to_vec(),
    )
    .await;
    drop_segments(&world, books, 4 * 3_600_000).await;
    drop_segments(&world, users, 4 * 3_600_000).await;
    let before = segments_of(&world, books).await;
    let (plan, info) = run(&world, pass()).await;
    assert!(
        plan.warnings.iter().any(|w| w.contains(&manifest)),
        "{:?}",
        plan.warnings
    );
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    assert_eq!(segments_of(&world, books).await, before, "kept, every one");
    assert!(
        segments_of(&world, users).await.is_empty(),
        "another collection"
    );
}

#[tokio::test(start_paused = true)]
async fn tolerance_checkpoint_and_running_jobs_hold() {
    let world = lab_world().await;
    let (_, users) = collection(&*world.meta, "users").await;
    let all_of = segments_of(&world, users).await;
    // Dropped one hour ago: tolerance is three.
    drop_segments(&world, users, 3_600_000).await;
    let (plan, _) = run(&world, pass()).await;
    assert_eq!(segments_of(&world, users).await, all_of);
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.contains("tolerance") && w.contains(", e.g. segment 4706")),
        "{:?}",
        plan.warnings
    );
    // Long enough, but an import job works on the collection.
    drop_segments(&world, users, 4 * 3_600_000).await;
    let job = pb::data::ImportJob {
        job_id: 77,
        collection_id: users.0,
        state: 3,
        ..Default::default()
    };
    let key = Key::ImportJob(JobId(77)).to_key(&roots());
    lab::put(&*world.meta, &key, job.encode_to_vec()).await;
    run(&world, pass()).await;
    assert_eq!(segments_of(&world, users).await, all_of);
    // Over, but the checkpoint stands behind.
    let done = pb::data::ImportJob { state: 5, ..job };
    lab::put(&*world.meta, &key, done.encode_to_vec()).await;
    let cps = all(&*world.meta, "by-dev/meta/datacoord-meta/channel-cp").await;
    for (key, value) in cps
        .iter()
        .filter(|(k, _)| k.contains(&format!("_{users}v")))
    {
        let mut cp = pb::msg::MsgPosition::decode(value.clone()).unwrap();
        cp.timestamp = 5;
        lab::put(&*world.meta, &key.as_str().into(), cp.encode_to_vec()).await;
    }
    run(&world, pass()).await;
    assert_eq!(segments_of(&world, users).await, all_of);
    // A timestamp of 0 is not a checkpoint either; the sentinel is.
    drop_segments(&world, users, 4 * 3_600_000).await;
    let (_, info) = run(&world, pass()).await;
    assert_eq!(info.state, JobState::Verified);
    assert!(segments_of(&world, users).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn snapshots_that_were_never_finished_go_after_their_time() {
    let world = lab_world().await;
    let (db, of) = collection(&*world.meta, "users").await;
    for (id, state, age) in [
        (470_660_334_431_990_001, 1, 3 * 3_600_000),
        (470_660_334_431_990_002, 1, 60_000),
        (470_660_334_431_990_003, 3, 60_000),
        (470_660_334_431_990_004, 2, 60_000),
    ] {
        let made = make(&world, db, of, id, &format!("s{id}"), 2).await;
        let kv = world.meta.get(&made.key).await.unwrap().unwrap();
        let mut record = pb::data::SnapshotInfo::decode(kv.value).unwrap();
        record.state = state;
        record.pending_start_time = NOW.0 - age;
        lab::put(&*world.meta, &made.key, record.encode_to_vec()).await;
    }
    // A file under another id that this one's begins with must not be touched.
    let beside = format!("{ROOT}/snapshots/{of}/manifests/4706603344319900010/7.avro");
    lab::put_object(&world, &beside.as_str().into(), b"x".to_vec()).await;
    let (_, info) = run(&world, pass()).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    let left: BTreeSet<i64> = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot)
        .await
        .into_iter()
        .map(|(_, s)| s.id)
        .collect();
    assert_eq!(
        left,
        BTreeSet::from([470_660_334_431_990_002, 470_660_334_431_990_004])
    );
    let files = objects(&*world.objects).await;
    let of_snapshot = |id: i64| {
        files
            .keys()
            .filter(|k| k.contains(&format!("/{id}/")) || k.contains(&format!("/{id}.json")))
            .count()
    };
    assert_eq!(
        (
            of_snapshot(470_660_334_431_990_001),
            of_snapshot(470_660_334_431_990_003)
        ),
        (0, 0)
    );
    assert_eq!(
        (
            of_snapshot(470_660_334_431_990_002),
            of_snapshot(470_660_334_431_990_004)
        ),
        (3, 3)
    );
    assert!(files.contains_key(&beside));
    let _ = snapshot::metadata_key(ROOT, of, SnapshotId(1));
}

/// Orphans are reported with their bytes, and stay.
#[tokio::test(start_paused = true)]
async fn orphans_are_reported_and_not_deleted() {
    let world = lab_world().await;
    let before = objects(&*world.objects).await;
    let orphan = format!("{ROOT}/insert_log/470660334431902643/470660334431902644/5/100/6");
    lab::put_object(&world, &orphan.as_str().into(), vec![0; 1234]).await;
    let strange = format!("{ROOT}/something/else");
    lab::put_object(&world, &strange.as_str().into(), vec![0; 10]).await;
    tokio::time::advance(std::time::Duration::from_hours(400 * 24)).await;
    let plan = plan_only(&world, pass()).await;
    assert!(
        plan.steps
            .iter()
            .any(|s| s.starts_with("orphan: report, not delete,")),
        "{:?}",
        plan.steps
    );
    let (_, info) = run(&world, pass()).await;
    assert_eq!(info.state, JobState::Verified);
    let after = objects(&*world.objects).await;
    assert!(after.contains_key(&orphan) && after.contains_key(&strange));
    // The lab's own dropped segments may have gone, with the year that has passed; nothing appeared.
    assert!(after.len() <= before.len() + 2);
}

/// Four segments: one dropped and in a snapshot, two dropped and held by nobody, one live. Made once, a world of its own for each of
/// hundreds of runs.
async fn small_world() -> (World, &'static Made) {
    static SEED: tokio::sync::OnceCell<(Seed, Made)> = tokio::sync::OnceCell::const_new();
    let (seed, made) = SEED
        .get_or_init(|| async {
            let (flushed, compacted) = (lab::FLUSHED, lab::COMPACTED);
            let all_four = [flushed[0], flushed[1], compacted[0], compacted[1]];
            let seed = lab::small_seed(&all_four).await;
            seed.prepare(async |world: &World| shape(world, flushed[0], compacted[1]).await)
                .await
        })
        .await;
    (seed.world(), made)
}

async fn shape(world: &World, held: i64, live: i64) -> Made {
    let (db, of) = collection(&*world.meta, "metrics").await;
    assert_eq!(of, lab::SMALL);
    let made = make(world, db, of, 470_660_334_431_990_001, "nightly", 1).await;
    assert_eq!(made.segments[0].segment_id, held);
    let mut states = BTreeMap::new();
    for (key, value) in all(&*world.meta, &format!("by-dev/meta/datacoord-meta/s/{of}")).await {
        let mut info = pb::data::SegmentInfo::decode(value).unwrap();
        if info.id == live {
            info.state = 4;
            info.dropped_at = 0;
        } else {
            info.state = 6;
            info.dropped_at = ((NOW.0 - 4 * 3_600_000) * 1_000_000) as u64;
        }
        states.insert(info.id, info.state);
        lab::put(&*world.meta, &key.as_str().into(), info.encode_to_vec()).await;
    }
    assert_eq!(states.len(), 4, "{states:?}");
    for (key, _) in all(&*world.meta, "by-dev/meta/datacoord-meta/channel-removal").await {
        lab::put(&*world.meta, &key.as_str().into(), b"removed".to_vec()).await;
    }
    made
}

#[tokio::test(start_paused = true)]
async fn a_pass_survives_every_fault() {
    let (world, made) = small_world().await;
    let start = objects(&*world.objects).await;
    let held = named(made, &start);
    run(&world, pass()).await;
    let end = (
        all(&*world.meta, "by-dev/meta").await,
        objects(&*world.objects).await,
    );
    let gone = start.len() - end.1.len();
    assert!(gone > 10, "{gone} objects go in a pass");
    let left = segments_of(&world, lab::SMALL).await;
    assert_eq!(
        left,
        BTreeSet::from([lab::FLUSHED[0], lab::COMPACTED[1]]),
        "the held one and the live one stay"
    );
    let drive = async |stores: &Stores| {
        let info = operate(stores, pass()).await?;
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
        let now = objects(&*world.objects).await;
        for (key, bytes) in &held {
            assert_eq!(now.get(key), Some(bytes), "{label}: {key}");
        }
        let meta = all(&*world.meta, "by-dev/meta").await;
        // Never a record without its objects gone first, never an object left whose record is gone.
        assert!(meta.keys().eq(end.0.keys()), "{label}: records");
        assert!(now.keys().eq(end.1.keys()), "{label}: objects");
    };
    let runs = sweep(ROOT, async || small_world().await.0, drive, check).await;
    assert!(runs > 100, "{runs}");
}

// ---- the verdicts, on random worlds ----

#[derive(Clone, Debug)]
struct Roll {
    dropped: bool,
    ago_ms: i64,
    parent: Option<usize>,
    channel: usize,
    dml: u64,
    finished: bool,
    row_deleted: bool,
    in_snapshot: u8,
    build_in_snapshot: u8,
    rows: i64,
}

fn roll() -> impl Strategy<Value = Roll> {
    (
        any::<bool>(),
        prop_oneof![Just(0_i64), 1..20_000_000_i64],
        proptest::option::of(0..8_usize),
        0..3_usize,
        0..100_u64,
        any::<bool>(),
        any::<bool>(),
        0..4_u8,
        0..4_u8,
        0..3_i64,
    )
        .prop_map(
            |(
                dropped,
                ago_ms,
                parent,
                channel,
                dml,
                finished,
                row_deleted,
                in_snapshot,
                build_in_snapshot,
                rows,
            )| Roll {
                dropped,
                ago_ms,
                parent,
                channel,
                dml,
                finished,
                row_deleted,
                in_snapshot,
                build_in_snapshot,
                rows,
            },
        )
}

#[derive(Clone, Debug)]
struct Shot {
    state: i32,
    loaded: u8,
    pinned: bool,
    age_ms: i64,
}

fn shot() -> impl Strategy<Value = Shot> {
    (0..5_i32, 0..4_u8, any::<bool>(), 0..8_000_000_i64).prop_map(
        |(state, loaded, pinned, age_ms)| Shot {
            state,
            loaded,
            pinned,
            age_ms,
        },
    )
}

/// As part of an id.
fn number(i: usize) -> i64 {
    i64::try_from(i).unwrap()
}

fn facts(
    rolls: &[Roll],
    shots: &[Shot],
    marks: [u8; 3],
    cps: &[u64; 3],
    work: Option<usize>,
) -> Known {
    let mut world = Facts {
        now: NOW,
        ..Facts::default()
    };
    world
        .indexes
        .insert(CollectionId(1), BTreeSet::from([IndexId(1)]));
    for i in 0..3 {
        world.channels.insert(
            VChannel(format!("c{i}")),
            ChannelFacts {
                checkpoint: Some(Tso(cps[i])),
                mark: [Some("non-removed"), Some("removed"), None, Some("odd")][marks[i] as usize]
                    .map(str::to_owned),
            },
        );
    }
    for (i, r) in rolls.iter().enumerate() {
        let id = SegmentId(100 + number(i));
        world.segments.insert(
            id,
            SegmentFacts {
                id,
                collection: CollectionId(1),
                channel: VChannel(format!("c{}", r.channel)),
                state: "x".into(),
                dropped: r.dropped,
                dropped_at: (r.ago_ms > 0).then(|| UnixNs((NOW.0 - r.ago_ms) * 1_000_000)),
                dml: Tso(r.dml),
                from: r
                    .parent
                    .map(|p| SegmentId(100 + number(p)))
                    .into_iter()
                    .collect(),
                l0: false,
                rows: r.rows,
                field_indexes: Vec::new(),
            },
        );
        let build = BuildId(200 + number(i));
        world.builds.insert(
            build,
            BuildFacts {
                build,
                index: IndexId(1),
                collection: CollectionId(1),
                segment: id,
                finished: r.finished,
                deleted: r.row_deleted,
            },
        );
    }
    for (n, s) in shots.iter().enumerate() {
        let mut refs = Collecting::default();
        for (i, r) in rolls.iter().enumerate() {
            if usize::from(r.in_snapshot) == n {
                refs.segment(SegmentId(100 + number(i)));
            }
            if usize::from(r.build_in_snapshot) == n {
                refs.build(BuildId(200 + number(i)));
            }
        }
        world.snapshots.push(SnapshotFacts {
            id: SnapshotId(number(n)),
            collection: CollectionId(1),
            name: "s".into(),
            state: s.state,
            pending_since: Some(UnixMs(NOW.0 - s.age_ms)),
            pins: s
                .pinned
                .then(|| Pin {
                    id: 1.into(),
                    expires: None,
                })
                .into_iter()
                .collect(),
            reference: match s.loaded {
                0 => Reference::NotLoaded,
                1 => Reference::Failed("no".into()),
                // Ids alone hold, and allow nothing.
                2 => Reference::Loaded(Arc::new(refs.done(Extent::Ids))),
                _ => Reference::Loaded(Arc::new(refs.done(Extent::Files))),
            },
        });
    }
    if let Some(i) = work {
        world.work.push(Work {
            by: "job".into(),
            segments: BTreeSet::from([SegmentId(100 + number(i))]),
            ..Work::default()
        });
    }
    world.indexed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Written a second time, from the rules as they stand in the books, without the holds: what may never be collected.
    #[test]
    fn nothing_that_must_stay_is_collected(
        rolls in proptest::collection::vec(roll(), 1..8),
        shots in proptest::collection::vec(shot(), 0..3),
        marks in proptest::array::uniform3(0..4_u8),
        cps in proptest::array::uniform3(prop_oneof![Just(0_u64), Just(u64::MAX), 1..100_u64]),
        work in proptest::option::of(0..8_usize),
    ) {
        let world = facts(&rolls, &shots, marks, &cps, work);
        for (i, r) in rolls.iter().enumerate() {
            let id = SegmentId(100 + number(i));
            let verdict = gc::segment(&world, id);
            prop_assert_eq!(verdict.collects(), world.holds_segment(id).is_empty());
            if verdict.collects() {
                prop_assert!(r.dropped, "a live segment");
                prop_assert!(r.ago_ms > 10_800_000, "within tolerance, or no time at all");
                prop_assert!(work != Some(i), "a job reads it");
                prop_assert!(marks[r.channel] != 3, "a mark that nobody knows");
                if marks[r.channel] == 0 {
                    prop_assert!(cps[r.channel] != 0 && cps[r.channel] >= r.dml, "checkpoint");
                }
                for (n, s) in shots.iter().enumerate() {
                    let mine = usize::from(r.in_snapshot) == n || usize::from(r.build_in_snapshot) == n;
                    let committed = !matches!(s.state, 1 | 3);
                    prop_assert!(!(committed && s.loaded != 3), "an unreadable snapshot");
                    prop_assert!(!(committed && mine), "a snapshot's segment");
                    prop_assert!(!(s.state == 1 && s.age_ms < 3_600_000), "a snapshot in the making");
                }
                for child in &rolls {
                    let lives = child.parent == Some(i) && !child.dropped && child.rows > 0;
                    let indexed = child.finished && !child.row_deleted;
                    prop_assert!(!lives || indexed || std::ptr::eq(child, r), "an unindexed child");
                }
            }
            let build = BuildId(200 + number(i));
            let verdict = gc::build(&world, build);
            prop_assert_eq!(verdict.collects(), world.holds_build(build).is_empty());
            if verdict.collects() {
                prop_assert!(r.dropped || r.row_deleted, "a live index");
                for (n, s) in shots.iter().enumerate() {
                    let committed = !matches!(s.state, 1 | 3);
                    prop_assert!(!(committed && s.loaded != 3), "an unreadable snapshot");
                    prop_assert!(!(committed && usize::from(r.build_in_snapshot) == n), "a snapshot's build");
                }
            }
            // An object is never freer than its segment.
            let owner = Owner { collection: Some(CollectionId(1)), segment: Some(id), ..Owner::default() };
            let key = ObjectKey(format!("files/insert_log/1/1/{id}/100/1"));
            let object = gc::object(&world, &ObjPath::parse("files", &key.0), &key, UnixMs(1));
            prop_assert_eq!(object.collects(), world.holds_object(&owner, &key, UnixMs(1)).is_empty());
            prop_assert!(!object.collects() || gc::segment(&world, id).collects());
            // Unknown owners: any snapshot that cannot be read blocks.
            let key = ObjectKey("files/index_files/9/1/1/8/HNSW_0".into());
            let blind = gc::object(&world, &ObjPath::parse("files", &key.0), &key, UnixMs(1));
            if blind.collects() {
                prop_assert!(shots.iter().all(|s| matches!(s.state, 1 | 3) || s.loaded == 3));
            }
            let key = ObjectKey("files/mine".into());
            let nobody = gc::object(&world, &ObjPath::parse("files", &key.0), &key, UnixMs(1));
            prop_assert!(!nobody.collects(), "an object of no known kind");
        }
        for (n, s) in shots.iter().enumerate() {
            let verdict = gc::snapshot(&world, SnapshotId(number(n)));
            if let Verdict::Collect { rule } = verdict {
                prop_assert!(!s.pinned && matches!(s.state, 1 | 3));
                prop_assert!(s.state == 3 || s.age_ms >= 3_600_000);
                prop_assert_eq!(rule, if s.state == 3 { Rule::DeletingSnapshot } else { Rule::PendingSnapshot });
            }
        }
    }
}

#[test]
fn holds_say_who_and_until_when() {
    let r = Roll {
        dropped: true,
        ago_ms: 1000,
        parent: None,
        channel: 0,
        dml: 50,
        finished: true,
        row_deleted: false,
        in_snapshot: 0,
        build_in_snapshot: 3,
        rows: 1,
    };
    let s = Shot {
        state: 2,
        loaded: 3,
        pinned: true,
        age_ms: 0,
    };
    let world = facts(&[r], &[s], [0; 3], &[10; 3], Some(0));
    let holds = world.holds_segment(SegmentId(100));
    let reasons: BTreeSet<Reason> = holds.iter().map(|h| h.reason).collect();
    assert_eq!(
        reasons,
        BTreeSet::from([
            Reason::Snapshot,
            Reason::Tolerance,
            Reason::Checkpoint,
            Reason::Job
        ])
    );
    let until = holds
        .iter()
        .find(|h| h.reason == Reason::Tolerance)
        .unwrap()
        .until;
    assert_eq!(until, Some(UnixMs(NOW.0 - 1000 + 10_800_000)));
    assert!(
        holds.iter().any(|h| h.by.contains("snapshot s (0)")),
        "{holds:?}"
    );
    let _ = Path::parse("x").map(|p| p.to_string());
}
