//! Pins of snapshots, verification and what a drop frees: over every store operation, by Milvus's own rules, on a captured cluster.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use falconer::engine::clock::{Clock, SeededEntropy};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb::data::{
    CopySegmentJob, CopySegmentJobState, SegmentInfo, SnapshotInfo, SnapshotState,
};
use falconer::engine::format::wire::Patch;
use falconer::engine::ids::{CollectionId, JobId, KeyPrefix, MetaKey, PinId, SnapshotId};
use falconer::engine::jobs::gc::Gc;
use falconer::engine::jobs::pins::{self, By};
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore::Restore;
use falconer::engine::jobs::restore_source::Reads;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::jobs::snapshot_contents::{Contents, Tally, share};
use falconer::engine::jobs::snapshot_create::CreateSnapshot;
use falconer::engine::jobs::snapshot_drop::DropSnapshot;
use falconer::engine::jobs::snapshot_notes;
use falconer::engine::jobs::snapshot_pin::PinSnapshot;
use falconer::engine::jobs::snapshot_unpin::UnpinSnapshot;
use falconer::engine::jobs::snapshot_verify::VerifySnapshot;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaReader, MetaWrite, MetaWriter, Span, Txn, Write};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::journal::Keys;
use falconer::engine::plan::{Danger, Intent, Plan};
use falconer::engine::profile::Roots;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use prost::Message;
use support::faults::{Faults, Mode, Stores, World, sweep};
use support::snapshots::{
    FLUSHED, Made, ROOT, SMALL, Seed, collection, family, make, objects, put, put_object, roots,
    small_seed,
};

/// A tag that no Milvus has: a newer one may.
const UNKNOWN: u32 = 99;

/// Two segments, and a committed snapshot of both, made by Milvus.
async fn seed() -> (Seed, Made) {
    small_seed(&FLUSHED)
        .await
        .prepare(async |world: &World| {
            let (db, of) = collection_of_seed(world).await;
            let made = make(world, db, of, 7_700, "kept", 8).await;
            let kv = world.meta.get(&made.key).await.unwrap().unwrap();
            let mut patch = Patch::parse(&kv.value).unwrap();
            patch.set_bytes(UNKNOWN, b"newer");
            put(&*world.meta, &made.key, patch.finish()).await;
            made
        })
        .await
}

async fn collection_of_seed(world: &World) -> (falconer::engine::ids::DbId, CollectionId) {
    use falconer::engine::format::pb::etcd::CollectionInfo;
    let all: Vec<(Key, CollectionInfo)> = family(&*world.meta, Family::Collection).await;
    let found = all.iter().find_map(|(key, _)| match key {
        Key::Collection(db, c) if *c == SMALL => Some((*db, *c)),
        _ => None,
    });
    found.expect("the small collection")
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
    let kinds = Registry::default()
        .with(CreateSnapshot)
        .with(DropSnapshot)
        .with(PinSnapshot)
        .with(UnpinSnapshot)
        .with(VerifySnapshot)
        .with(Restore::default())
        .with(Gc::default());
    Runner::start(executor, kinds)
}

async fn planned(runner: &RunnerHandle, intent: &Intent) -> Arc<Plan> {
    runner.plan(intent.clone(), Arc::default()).await.unwrap()
}

async fn run(runner: &RunnerHandle, intent: Intent) -> Result<Arc<JobInfo>> {
    let plan = runner.plan(intent, Arc::default()).await?;
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let job = runner.apply(&plan.hash, &typed).await?;
    runner.ended(job).await
}

async fn done(runner: &RunnerHandle, intent: Intent) -> Arc<JobInfo> {
    let info = run(runner, intent).await.unwrap();
    assert_eq!(
        info.state,
        JobState::Verified,
        "{}: {:?} {:?}",
        info.title,
        info.error,
        info.notes
    );
    info
}

/// Starts the program; follows the job that is there, else gives the order.
async fn operate(stores: &Stores, intent: &Intent) -> Result<()> {
    let runner = runner(stores);
    let info = match last_job(stores).await? {
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
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Internal,
        format!("{:?}: {:?} {:?}", info.state, info.error, info.notes),
    ))
}

async fn last_job(stores: &Stores) -> Result<Option<JobId>> {
    loop {
        let span = Span::prefix(&KeyPrefix::new("falconer/by-dev/job"));
        match stores.meta.range_all(&span).await {
            Ok(page) => {
                let id = |key: String| key.split('/').nth(3).unwrap().parse().unwrap();
                return Ok(page.kvs.last().map(|kv| id(kv.key.text())));
            }
            Err(e) if e.is_transient() && !stores.faults.is_dead() => {}
            Err(e) => return Err(e),
        }
        tokio::task::yield_now().await;
    }
}

async fn record(meta: &dyn MetaWrite, made: &Made) -> SnapshotInfo {
    let kv = meta.get(&made.key).await.unwrap().unwrap();
    let kept = Patch::parse(&kv.value).unwrap();
    assert_eq!(kept.bytes(UNKNOWN), Some(&b"newer"[..]), "law 1");
    SnapshotInfo::decode(kv.value).unwrap()
}

/// Our own keys beside snapshots.
async fn notes(meta: &dyn MetaWrite) -> Vec<String> {
    let page = meta
        .range_all(&Span::prefix(&Keys::new(&roots()).snapshots()))
        .await
        .unwrap();
    page.kvs.iter().map(|kv| kv.key.text()).collect()
}

fn pin(made: &Made, ttl_secs: u64, owner: &str) -> Intent {
    Intent::PinSnapshot {
        snapshot: made.id,
        ttl_secs,
        owner: owner.into(),
        reason: "a backup reads it".into(),
    }
}

fn unpin(made: &Made, pin: Option<i64>) -> Intent {
    Intent::UnpinSnapshot {
        snapshot: made.id,
        pin: pin.map(PinId),
    }
}

/// Puts pins into the record as Milvus does.
async fn foreign_pins(world: &World, made: &Made, pins: &[(i64, Option<i64>)]) {
    let kv = world.meta.get(&made.key).await.unwrap().unwrap();
    let mut patch = Patch::parse(&kv.value).unwrap();
    let mut ids = patch.packed(11).unwrap();
    ids.extend(pins.iter().map(|(id, _)| id.cast_unsigned()));
    patch.set_packed(11, &ids);
    for (id, until) in pins {
        if let Some(until) = until {
            patch.set_map_integer(12, id.cast_unsigned(), until.cast_unsigned());
        }
    }
    put(&*world.meta, &made.key, patch.finish()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pin_survives_every_fault() {
    let (seed, made) = seed().await;
    let order = pin(&made, 7_200, "anna");
    let drive = async |stores: &Stores| operate(stores, &order).await;
    let check = async |world: &World, label: &str| {
        let info = record(&*world.meta, &made).await;
        assert_eq!(info.pin_ids.len(), 1, "{label}: exactly one");
        let id = info.pin_ids[0];
        assert!(id > 0, "{label}: {id}");
        let left = info.pin_expire_at_ms[&id] - world.clock.now().0;
        assert!((0..=7_200_000).contains(&left), "{label}: {left}");
        let held = pins::held(&world.reader(), &roots(), &info).await.unwrap();
        let By::Owner(note) = &held[0].by else {
            panic!("{label}: {held:?}");
        };
        assert_eq!(note.owner, "anna", "{label}");
        assert_eq!(notes(&*world.meta).await.len(), 1, "{label}");
        assert_eq!(info.state(), SnapshotState::Committed, "{label}");
    };
    let runs = sweep(ROOT, async || seed.world(), drive, check).await;
    assert!(runs > 40, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn an_unpin_survives_every_fault() {
    let (seed, made) = seed().await;
    let (seed, ours) = seed
        .prepare(async |world: &World| {
            foreign_pins(world, &made, &[(5, None)]).await;
            let stores = world.open(&Faults::none(), ROOT);
            let runner = runner(&stores);
            done(&runner, pin(&made, 60, "anna")).await;
            runner.stop().await;
            // As if another root's journal had it: the sweep looks for a job of its own.
            let span = Span::prefix(&KeyPrefix::new("falconer/by-dev/job"));
            for kv in world.meta.range_all(&span).await.unwrap().kvs {
                let writes = vec![Write::Delete(kv.key)];
                let conds = vec![];
                world.meta.txn(Txn { conds, writes }).await.unwrap();
            }
            let info = record(&*world.meta, &made).await;
            info.pin_ids.into_iter().find(|id| *id != 5).unwrap()
        })
        .await;
    let order = unpin(&made, Some(ours));
    let drive = async |stores: &Stores| operate(stores, &order).await;
    let check = async |world: &World, label: &str| {
        let info = record(&*world.meta, &made).await;
        assert_eq!(info.pin_ids, [5], "{label}: another's stays");
        assert!(info.pin_expire_at_ms.is_empty(), "{label}");
        assert!(notes(&*world.meta).await.is_empty(), "{label}");
    };
    let runs = sweep(ROOT, async || seed.world(), drive, check).await;
    assert!(runs > 40, "{runs}");
}

/// A pin whose process died at its one transaction, and that is taken back.
async fn taken_back(mode: Mode) -> (World, Made) {
    let (seed, made) = seed().await;
    let order = pin(&made, 7_200, "anna");
    let counted = Faults::none();
    let stores = seed.world();
    operate(&stores.open(&counted, ROOT), &order).await.unwrap();
    let of_record = |what: &str| what.starts_with("txn by-dev/meta/datacoord-meta/snapshot/");
    let at = counted.ops().iter().rposition(|op| of_record(&op.what));
    let world = seed.world();
    let faults = Faults::at(at.unwrap(), mode);
    let stores = world.open(&faults, ROOT);
    tokio::select! {
        biased;
        () = faults.crashed() => {}
        done = operate(&stores, &order) => panic!("not killed: {done:?}"),
    }
    drop(stores);
    world.bury().await;
    let stores = world.open(&Faults::none(), ROOT);
    let job = last_job(&stores).await.unwrap().unwrap();
    let key: MetaKey = format!("falconer/by-dev/job/{job}").into();
    let kv = world.meta.get(&key).await.unwrap().unwrap();
    let mut state: serde_json::Value = serde_json::from_slice(&kv.value).unwrap();
    state["state"] = "undoing".into();
    state["error"] = "stopped".into();
    put(&*world.meta, &key, serde_json::to_vec(&state).unwrap()).await;
    let runner = runner(&stores);
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Failed, "{:?}", info.notes);
    runner.stop().await;
    (world, made)
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_is_taken_back_leaves_nothing() {
    for mode in [Mode::CrashBefore, Mode::CrashAfter] {
        let (world, made) = taken_back(mode).await;
        let info = record(&*world.meta, &made).await;
        assert!(info.pin_ids.is_empty(), "{mode:?}");
        assert!(info.pin_expire_at_ms.is_empty(), "{mode:?}");
        assert!(notes(&*world.meta).await.is_empty(), "{mode:?}");
    }
}

fn failed(plan: &Plan) -> String {
    let failures: Vec<String> = plan
        .failures()
        .map(|c| format!("{}: {}", c.name, c.failed.as_deref().unwrap_or_default()))
        .collect();
    failures.join("; ")
}

#[tokio::test(start_paused = true)]
async fn the_rules_of_milvus_hold() {
    let (seed, made) = seed().await;
    let world = seed.world();
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let day = 86_400;
    for (intent, said) in [
        (pin(&made, 30 * day + 1, "anna"), "2592000"),
        (pin(&made, 60, " "), "nobody is named"),
        (pin(&made, 60, "an\nna"), "control character"),
    ] {
        let plan = planned(&runner, &intent).await;
        assert!(failed(&plan).contains(said), "{said}: {}", failed(&plan));
        assert!(runner.apply(&plan.hash, "").await.is_err());
    }
    done(&runner, pin(&made, 30 * day, "anna")).await;
    done(&runner, pin(&made, 0, "for ever")).await;
    let info = record(&*world.meta, &made).await;
    assert_eq!(info.pin_ids.len(), 2);
    assert_eq!(info.pin_expire_at_ms.len(), 1, "0 has no entry");
    // Milvus reads one without an entry, or one that is not positive, as never expiring.
    foreign_pins(&world, &made, &[(8, Some(0))]).await;
    let info = record(&*world.meta, &made).await;
    let now = world.clock.now();
    assert!(pins::of(&info).iter().all(|p| p.is_active(now)));
    for state in [SnapshotState::Pending, SnapshotState::Deleting] {
        let mut patched = record(&*world.meta, &made).await;
        patched.set_state(state);
        let before = world.meta.get(&made.key).await.unwrap().unwrap().value;
        put(&*world.meta, &made.key, patched.encode_to_vec()).await;
        let plan = planned(&runner, &pin(&made, 60, "anna")).await;
        assert!(failed(&plan).contains(state.as_str_name()), "{plan:?}");
        put(&*world.meta, &made.key, before.to_vec()).await;
    }
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_strangers_pin_wants_the_name_typed() {
    let (seed, made) = seed().await;
    let world = seed.world();
    let now = world.clock.now().0;
    let over = now - 60_000;
    foreign_pins(&world, &made, &[(11, None), (12, Some(over)), (13, None)]).await;
    let restoring = CopySegmentJob {
        job_id: 31,
        state: CopySegmentJobState::CopySegmentJobExecuting as i32,
        snapshot_name: "kept".into(),
        pin_id: 13,
        ..CopySegmentJob::default()
    };
    let key = Key::CopySegmentJob(JobId(31)).to_key(&roots());
    put(&*world.meta, &key, restoring.encode_to_vec()).await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    done(&runner, pin(&made, 600, "anna")).await;
    let info = record(&*world.meta, &made).await;
    let ours = *info.pin_ids.last().unwrap();
    for (id, danger, said) in [
        (Some(11), Danger::High, "nobody knows whose it is"),
        (
            Some(13),
            Danger::High,
            "restore job 31 of Milvus is running",
        ),
        (Some(ours), Danger::Medium, "anna pinned it"),
        (None, Danger::Low, "3 pins are left then"),
        (Some(99), Danger::Low, "there is no pin 99"),
    ] {
        let plan = planned(&runner, &unpin(&made, id)).await;
        assert_eq!(plan.danger, danger, "{id:?}: {:?}", plan.warnings);
        let typed = plan.type_to_confirm.as_deref();
        assert_eq!(typed, (danger == Danger::High).then_some("kept"));
        let warned = plan.warnings.join("; ");
        assert!(warned.contains(said), "{said}: {warned}");
    }
    let plan = planned(&runner, &unpin(&made, Some(11))).await;
    assert!(runner.apply(&plan.hash, "").await.is_err(), "not typed");
    // The name does not say whose they are: it lists them.
    let plan = planned(&runner, &Intent::DropSnapshot { snapshot: made.id }).await;
    let why = failed(&plan);
    for part in ["of anna, ", "pin 11 of unknown, never", "restore job 31"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    // Only what is over goes; then one after the other, and one that is gone is a success.
    done(&runner, unpin(&made, None)).await;
    assert_eq!(record(&*world.meta, &made).await.pin_ids, [11, 13, ours]);
    for id in [11, 13, ours, ours] {
        done(&runner, unpin(&made, Some(id))).await;
    }
    assert!(record(&*world.meta, &made).await.pin_ids.is_empty());
    // The restore job still reads it.
    let plan = planned(&runner, &Intent::DropSnapshot { snapshot: made.id }).await;
    assert!(
        failed(&plan).contains("restore job 31 reads it"),
        "{plan:?}"
    );
    let restored = CopySegmentJob {
        state: CopySegmentJobState::CopySegmentJobCompleted as i32,
        ..restoring
    };
    put(&*world.meta, &key, restored.encode_to_vec()).await;
    done(&runner, pin(&made, 0, "bob")).await;
    let held = pins::held(
        &world.reader(),
        &roots(),
        &record(&*world.meta, &made).await,
    )
    .await
    .unwrap();
    done(&runner, unpin(&made, Some(held[0].pin.id.0))).await;
    done(&runner, Intent::DropSnapshot { snapshot: made.id }).await;
    assert!(notes(&*world.meta).await.is_empty(), "they go with it");
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_record_stays_while_an_object_cannot_be_deleted() {
    let (seed, made) = seed().await;
    let world = seed.world();
    let before = objects(&*world.objects).await;
    let own = |key: &String| key.contains("/snapshots/");
    let stuck = made.segments[0].segment_id;
    // Tried twice: the second drop finds the record as the first one left it.
    for _ in 0..2 {
        let stores = world.open(&Faults::refusing(&format!("{stuck}.avro")), ROOT);
        let runner = runner(&stores);
        let info = run(&runner, Intent::DropSnapshot { snapshot: made.id })
            .await
            .unwrap();
        assert_eq!(info.state, JobState::Failed, "{:?}", info.notes);
        let left = record(&*world.meta, &made).await;
        assert_eq!(left.state(), SnapshotState::Deleting, "it can be found by");
        let now = objects(&*world.objects).await;
        assert!(now.keys().any(|k| k.ends_with(&format!("{stuck}.avro"))));
        runner.stop().await;
    }
    // It is allowed again.
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    done(&runner, Intent::DropSnapshot { snapshot: made.id }).await;
    assert!(world.meta.get(&made.key).await.unwrap().is_none());
    let after = objects(&*world.objects).await;
    assert!(!after.keys().any(own));
    let data = |all: &BTreeMap<String, _>| all.keys().filter(|k| !own(k)).count();
    assert_eq!(data(&after), data(&before), "source data is not touched");
    runner.stop().await;
}

/// What a drop left half done is collected, with all that is kept beside it.
#[tokio::test(start_paused = true)]
async fn garbage_collection_leaves_no_note() {
    let (seed, made) = seed().await;
    let world = seed.world();
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    done(&runner, pin(&made, 1, "anna")).await;
    stores.clock.sleep(Duration::from_mins(1)).await;
    let kv = world.meta.get(&made.key).await.unwrap().unwrap();
    let mut patch = Patch::parse(&kv.value).unwrap();
    patch.set_integer(8, SnapshotState::Deleting as u64);
    put(&*world.meta, &made.key, patch.finish()).await;
    assert_eq!(notes(&*world.meta).await.len(), 1);
    let gc = Intent::Gc {
        collection: Some(SMALL),
        rules: BTreeSet::from(["deleting-snapshot".to_owned()]),
        quarantine: false,
    };
    done(&runner, gc).await;
    assert!(world.meta.get(&made.key).await.unwrap().is_none());
    assert!(notes(&*world.meta).await.is_empty());
    runner.stop().await;
}

fn reads<'a>(stores: &'a Stores, meta: &'a MetaReader, roots: &'a Roots) -> Reads<'a> {
    Reads {
        meta,
        objects: &stores.read,
        roots,
    }
}

/// Marks a segment as compacted away.
async fn drop_segment(world: &World, id: i64) {
    let all: Vec<(Key, SegmentInfo)> = family(&*world.meta, Family::Segment).await;
    let (key, mut info) = all.into_iter().find(|(_, s)| s.id == id).unwrap();
    info.state = 6;
    put(&*world.meta, &key.to_key(&roots()), info.encode_to_vec()).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_drop_frees_is_what_nobody_else_needs() {
    let (seed, made) = seed().await;
    let world = seed.world();
    let stores = world.open(&Faults::none(), ROOT);
    let roots = roots();
    let meta = stores.reader();
    let reads = reads(&stores, &meta, &roots);
    // Said once more in the test's own words: the files of a segment are those that its manifest names.
    let sizes: BTreeMap<String, u64> = objects(&*world.objects)
        .await
        .into_iter()
        .map(|(key, bytes)| (key, bytes.len() as u64))
        .collect();
    let weigh = |id: i64| {
        let s = made.segments.iter().find(|s| s.segment_id == id).unwrap();
        let logs = [&s.binlogs, &s.deltalogs, &s.statslogs, &s.bm25_statslogs];
        let logs = logs.into_iter().flatten().flat_map(|f| &f.binlogs);
        let mut keys: BTreeSet<&String> = logs.map(|b| &b.log_path).collect();
        keys.extend(s.index_files.iter().flat_map(|i| &i.index_file_paths));
        Tally {
            files: keys.len() as u64,
            bytes: keys.iter().map(|key| sizes[*key]).sum(),
        }
    };
    let sum = |a: Tally, b: Tally| Tally {
        files: a.files + b.files,
        bytes: a.bytes + b.bytes,
    };
    let [first, second] = FLUSHED;
    let look = async || {
        let info = record(&*world.meta, &made).await;
        let contents = Contents::read(&reads, info).await.unwrap();
        assert!(contents.found.missing.is_empty());
        share(&reads, &contents).await.unwrap()
    };
    let now = look().await;
    assert_eq!(now.live, sum(weigh(first), weigh(second)));
    assert_eq!((now.exclusive, now.snapshots), Default::default());

    drop_segment(&world, first).await;
    let now = look().await;
    assert_eq!(now.exclusive, weigh(first), "{now:?}");
    assert_eq!(now.live, weigh(second));
    assert!(now.exclusive.bytes > 0);

    drop_segment(&world, second).await;
    assert_eq!(look().await.exclusive, sum(weigh(first), weigh(second)));

    // Another snapshot with the first segment only.
    let other = SnapshotId(7_800);
    let mut metadata = made.metadata.clone();
    let at = metadata.segment_ids.iter().position(|s| *s == first);
    let manifest = metadata.manifest_list[at.unwrap()].clone();
    metadata.segment_ids = vec![first];
    metadata.manifest_list = vec![manifest];
    let s = made
        .segments
        .iter()
        .find(|s| s.segment_id == first)
        .unwrap();
    metadata.build_ids = s.index_files.iter().map(|i| i.build_id).collect();
    let json = falconer::engine::format::snapshot::metadata_key(ROOT, SMALL, other);
    let bytes = falconer::engine::format::snapshot::write_metadata(&metadata).unwrap();
    put_object(&world, &json, bytes).await;
    let mut info = record(&*world.meta, &made).await;
    info.id = other.0;
    info.name = "other".into();
    info.s3_location = json.0.clone();
    let key = Key::Snapshot(SMALL, other).to_key(&roots);
    put(&*world.meta, &key, info.encode_to_vec()).await;
    let now = look().await;
    assert_eq!(now.exclusive, weigh(second), "{now:?}");
    assert_eq!(now.snapshots, weigh(first));
    assert_eq!(now.names, BTreeSet::from(["other".to_owned()]));

    // From before the JSON listed ids: told by its manifests.
    metadata.segment_ids.clear();
    metadata.build_ids.clear();
    let old = serde_json::from_slice::<serde_json::Value>(
        &world
            .objects
            .get(&Path::from(json.0.as_str()))
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
    );
    let mut old = old.unwrap();
    for list in ["segment_ids", "build_ids"] {
        old.as_object_mut().unwrap().remove(list);
    }
    put_object(&world, &json, serde_json::to_vec(&old).unwrap()).await;
    assert_eq!(look().await.exclusive, weigh(second));

    // What cannot be read may hold everything.
    put_object(&world, &json, b"{".to_vec()).await;
    let now = look().await;
    assert_eq!(now.exclusive, Tally::default(), "{now:?}");
    assert!(now.doubt.unwrap().contains("snapshot other"));
}

#[tokio::test(start_paused = true)]
async fn a_verification_finds_what_is_wrong_and_keeps_it() {
    let seed = small_seed(&FLUSHED).await;
    let world = seed.world();
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let create = Intent::CreateSnapshot {
        collection: SMALL,
        name: "whole".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    done(&runner, create).await;
    let all: Vec<(Key, SnapshotInfo)> = family(&*world.meta, Family::Snapshot).await;
    let id = SnapshotId(all[0].1.id);
    let kept = async || {
        let notes = snapshot_notes::read(&world.reader(), &Keys::new(&roots()), id).await;
        notes.unwrap()
    };
    let first = kept().await;
    let by_create = first.verified.expect("the create verified it");
    assert!(by_create.wrong == 0 && by_create.sized && !by_create.deep);
    assert!(
        by_create.objects > 10 && by_create.rows > 0,
        "{by_create:?}"
    );
    assert_eq!(first.since.unwrap().state, SnapshotState::Committed as i32);
    let verify = |deep| Intent::VerifySnapshot { snapshot: id, deep };
    done(&runner, verify(true)).await;
    let deep = kept().await.verified.unwrap();
    assert!(deep.deep && deep.wrong == 0, "{deep:?}");
    assert!(deep.job > by_create.job);

    let wrong = async |deep: bool, said: &[&str]| {
        let info = run(&runner, verify(deep)).await.unwrap();
        assert_eq!(info.state, JobState::Failed, "{:?}", info.notes);
        let found = kept().await.verified.unwrap();
        assert_eq!(found.wrong, said.len() as u64, "{found:?}");
        for part in said {
            assert!(
                found.problems.iter().any(|p| p.contains(part)),
                "{part}: {found:?}"
            );
        }
    };
    let before = objects(&*world.objects).await;
    let segment = FLUSHED[0].to_string();
    let log = before
        .iter()
        .find(|(k, b)| k.contains("insert_log") && k.contains(&segment) && b.len() > 200)
        .map(|(key, bytes)| (key.clone(), bytes.clone()))
        .unwrap();
    let replace = async |bytes: Vec<u8>| put_object(&world, &log.0.as_str().into(), bytes).await;
    // Shorter: every look finds it, and names the segment.
    replace(log.1[..log.1.len() - 1].to_vec()).await;
    wrong(false, &[&segment]).await;
    // As long as before, and full of something else: only an open eye finds it.
    replace(vec![7; log.1.len()]).await;
    done(&runner, verify(false)).await;
    wrong(true, &[&log.0]).await;
    replace(log.1.to_vec()).await;
    // Gone.
    let path = Path::from(log.0.as_str());
    delete(&world, &path).await;
    wrong(false, &[&log.0]).await;
    replace(log.1.to_vec()).await;
    done(&runner, verify(true)).await;
    runner.stop().await;
}

#[allow(
    clippy::disallowed_methods,
    reason = "the hand that robs a bucket behind the engine's back"
)]
async fn delete(world: &World, path: &Path) {
    world.objects.delete(path).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_outlives_its_collection() {
    let (seed, made) = seed().await;
    let world = seed.world();
    let of = SMALL.to_string();
    let page = world.meta.range_all(&Span::all()).await.unwrap();
    for kv in page.kvs {
        let key = kv.key.text();
        if key.contains(&of) && !key.contains("/snapshot/") {
            let writes = vec![Write::Delete(kv.key)];
            let conds = vec![];
            world.meta.txn(Txn { conds, writes }).await.unwrap();
        }
    }
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    done(&runner, pin(&made, 60, "anna")).await;
    done(
        &runner,
        Intent::VerifySnapshot {
            snapshot: made.id,
            deep: true,
        },
    )
    .await;
    let roots = roots();
    let info = record(&*world.meta, &made).await;
    let ours = info.pin_ids[0];
    let contents = Contents::read(&reads(&stores, &stores.reader(), &roots), info)
        .await
        .unwrap();
    let found = share(&reads(&stores, &stores.reader(), &roots), &contents)
        .await
        .unwrap();
    assert_eq!(found.exclusive.bytes, contents.found.bytes());
    done(
        &runner,
        Intent::Restore {
            snapshot: made.id,
            database: "default".into(),
            collection: "back_again".into(),
        },
    )
    .await;
    let (_, back) = collection(&*world.meta, "back_again").await;
    assert_ne!(back, SMALL);
    done(&runner, unpin(&made, Some(ours))).await;
    done(&runner, Intent::DropSnapshot { snapshot: made.id }).await;
    assert!(world.meta.get(&made.key).await.unwrap().is_none());
    runner.stop().await;
}

fn create(name: &str, operation: Option<&str>) -> Intent {
    Intent::CreateSnapshot {
        collection: SMALL,
        name: name.into(),
        description: "nightly".into(),
        protection_secs: 604_800,
        operation: operation.map(str::to_owned),
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_given_twice_makes_one_snapshot() {
    let world = small_seed(&FLUSHED).await.world();
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let first = done(&runner, create("once", Some("backup-17"))).await;
    let before = objects(&*world.objects).await;
    let all = async || -> Vec<SnapshotInfo> {
        let all = family(&*world.meta, Family::Snapshot).await;
        all.into_iter().map(|(_, info)| info).collect()
    };
    let plan = planned(&runner, &create("once", Some("backup-17"))).await;
    assert!(plan.applicable() && plan.changes.is_empty(), "{plan:?}");
    assert!(plan.checks[0].detail.contains(&first.id.to_string()));
    let again = done(&runner, create("once", Some("backup-17"))).await;
    assert_ne!(again.id, first.id);
    assert_eq!(all().await.len(), 1);
    assert_eq!(objects(&*world.objects).await, before);
    for (intent, said) in [
        (create("once", Some("backup-18")), "has it"),
        (create("once", None), "has it"),
        (create("twice", Some("backup-17")), "made snapshot once"),
        (create("twice", Some("")), "1 to 255 bytes"),
    ] {
        let plan = planned(&runner, &intent).await;
        assert!(failed(&plan).contains(said), "{said}: {}", failed(&plan));
    }
    // Two plans of one order, made before either is applied: the second finds what the first has made.
    let one = planned(&runner, &create("race", Some("backup-19"))).await;
    let same = runner.clone();
    let job = runner.apply(&one.hash, "").await.unwrap();
    assert_eq!(runner.ended(job).await.unwrap().state, JobState::Verified);
    done(&same, create("race", Some("backup-19"))).await;
    assert_eq!(all().await.len(), 2);
    // A replay that is stopped takes nothing back; and what is dropped may be made again.
    let id = SnapshotId(all().await.iter().find(|s| s.name == "once").unwrap().id);
    done(&runner, Intent::DropSnapshot { snapshot: id }).await;
    done(&runner, create("once", Some("backup-17"))).await;
    assert_eq!(all().await.len(), 2);
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn protection_has_a_limit() {
    let world = small_seed(&FLUSHED).await.world();
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let mut intent = create("long", None);
    if let Intent::CreateSnapshot {
        protection_secs, ..
    } = &mut intent
    {
        *protection_secs = 604_801;
    }
    let plan = planned(&runner, &intent).await;
    assert!(failed(&plan).contains("604800"), "{}", failed(&plan));
    done(&runner, create("week", None)).await;
    let all: Vec<(Key, SnapshotInfo)> = family(&*world.meta, Family::Snapshot).await;
    let until = i64::try_from(all[0].1.compaction_expire_time).unwrap();
    let left = until - world.clock.now().0 / 1000;
    assert!((604_700..=604_800).contains(&left), "{left}");
    runner.stop().await;
}

/// Longer than Milvus's pendingTimeout (defect D62): neither Milvus's collector, which looks at the record, nor ours, which also
/// looks at the journal, may take it for dead.
#[tokio::test(start_paused = true)]
async fn a_slow_creator_says_that_it_lives() {
    let world = small_seed(&FLUSHED).await.world();
    let slow = ThrottleConfig {
        wait_put_per_call: Duration::from_mins(50),
        ..ThrottleConfig::default()
    };
    let store = ThrottledStore::new(world.objects.clone(), slow);
    let slow = World::new(world.meta.clone(), Arc::new(store), world.clock.now());
    let stores = slow.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let begun = stores.clock.now();
    let plan = planned(&runner, &create("slow", None)).await;
    let job = runner.apply(&plan.hash, "").await.unwrap();
    let mut looks = 0;
    loop {
        stores.clock.sleep(Duration::from_mins(11)).await;
        let all: Vec<(Key, SnapshotInfo)> = family(&*world.meta, Family::Snapshot).await;
        let info = &all[0].1;
        if info.state() == SnapshotState::Committed {
            break;
        }
        looks += 1;
        let silent = stores
            .clock
            .now()
            .since(falconer::engine::ids::UnixMs(info.pending_start_time));
        assert!(silent <= 150_000, "silent for {silent} ms");
        let rules = BTreeSet::new();
        let gc = planned(
            &runner,
            &Intent::Gc {
                collection: None,
                rules,
                quarantine: false,
            },
        )
        .await;
        let id = info.id.to_string();
        assert!(gc.changes.iter().all(|c| !c.key.contains(&id)), "{gc:?}");
    }
    assert!(looks > 6, "{looks}");
    let took = stores.clock.now().since(begun);
    assert!(took > 3_600_000, "longer than the time-out: {took}");
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{:?}", info.notes);
    runner.stop().await;
}

/// The creator is gone for days: its job is in the journal and will be taken up, so its record and what it selected stay.
#[tokio::test(start_paused = true)]
async fn a_create_that_was_cut_off_is_not_collected() {
    let seed = small_seed(&FLUSHED).await;
    let order = create("cut", None);
    let counted = Faults::none();
    operate(&seed.world().open(&counted, ROOT), &order)
        .await
        .unwrap();
    let json = |what: &str| what.starts_with("put ") && what.contains("/metadata/");
    let at = counted.ops().iter().position(|op| json(&op.what)).unwrap();
    let world = seed.world();
    let faults = Faults::at(at, Mode::CrashBefore);
    let stores = world.open(&faults, ROOT);
    tokio::select! {
        biased;
        () = faults.crashed() => {}
        done = operate(&stores, &order) => panic!("not killed: {done:?}"),
    }
    drop(stores);
    world.bury().await;
    stores_after_days(&world).await;
    let stores = world.open(&Faults::none(), ROOT);
    // One that cannot take it up.
    let executor = Executor::new(Parts {
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
    });
    let other = Runner::start(executor, Registry::default().with(Gc::default()));
    let gc = Intent::Gc {
        collection: None,
        rules: BTreeSet::new(),
        quarantine: false,
    };
    let plan = planned(&other, &gc).await;
    assert!(
        plan.changes.iter().all(|c| !c.key.contains("/snapshot/")),
        "{plan:?}"
    );
    other.stop().await;
    operate(&stores, &order).await.unwrap();
    let all: Vec<(Key, SnapshotInfo)> = family(&*world.meta, Family::Snapshot).await;
    assert_eq!(all[0].1.state(), SnapshotState::Committed);
}

async fn stores_after_days(world: &World) {
    world.clock.sleep(Duration::from_hours(72)).await;
}

/// A segment that is still being filled: what is on disk is inside, what is only in memory is not, and the plan says so.
#[tokio::test(start_paused = true)]
async fn rows_in_memory_stay_outside_and_are_counted() {
    let world = small_seed(&FLUSHED).await.world();
    let all: Vec<(Key, SegmentInfo)> = family(&*world.meta, Family::Segment).await;
    let (key, info) = all.iter().find(|(_, s)| s.id == FLUSHED[0]).unwrap();
    let growing = SegmentInfo {
        state: 2,
        num_of_rows: info.num_of_rows + 1_234,
        commit_timestamp: 3,
        ..info.clone()
    };
    put(&*world.meta, &key.to_key(&roots()), growing.encode_to_vec()).await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let plan = planned(&runner, &create("grows", None)).await;
    let said = plan.warnings.join("\n");
    assert!(
        said.contains(&format!(
            "not on disk yet: 1234 rows of 1 segments that are inside ({})",
            FLUSHED[0]
        )),
        "{said}"
    );
    done(&runner, create("grows", None)).await;
    let all: Vec<(Key, SnapshotInfo)> = family(&*world.meta, Family::Snapshot).await;
    let roots = roots();
    let contents = Contents::read(&reads(&stores, &stores.reader(), &roots), all[0].1.clone())
        .await
        .unwrap();
    let segments = &contents.source.segments;
    let inside = segments
        .iter()
        .find(|s| s.segment_id == FLUSHED[0])
        .unwrap();
    assert_eq!(inside.num_of_rows, info.num_of_rows);
    assert_eq!(inside.commit_timestamp, 3, "defect D61");
    // So a restore of it verifies.
    done(
        &runner,
        Intent::Restore {
            snapshot: SnapshotId(all[0].1.id),
            database: "default".into(),
            collection: "grown".into(),
        },
    )
    .await;
    runner.stop().await;
}

/// A storage manifest as the newest Milvus writes it: an Avro container (`spec/layout.md` §7.5).
fn storage_manifest(data: &str, stats: &str, lob: &str) -> Vec<u8> {
    use serde::Serialize;
    #[derive(Serialize)]
    struct At<'a> {
        path: &'a str,
    }
    #[derive(Serialize)]
    struct Group<'a> {
        files: Vec<At<'a>>,
    }
    #[derive(Serialize)]
    struct Stats<'a> {
        paths: Vec<&'a str>,
    }
    #[derive(Serialize)]
    struct Whole<'a> {
        column_groups: Vec<Group<'a>>,
        stats: BTreeMap<&'a str, Stats<'a>>,
        lob_files: Vec<At<'a>>,
    }
    let at = |name: &str| {
        format!(
            r#"{{"type":"record","name":"{name}","fields":[{{"name":"path","type":"string"}}]}}"#
        )
    };
    let schema = format!(
        r#"{{"type":"record","name":"Manifest","fields":[
        {{"name":"column_groups","type":{{"type":"array","items":{{"type":"record","name":"Group","fields":[
            {{"name":"files","type":{{"type":"array","items":{}}}}}]}}}}}},
        {{"name":"stats","type":{{"type":"map","values":{{"type":"record","name":"Stats","fields":[
            {{"name":"paths","type":{{"type":"array","items":"string"}}}}]}}}}}},
        {{"name":"lob_files","type":{{"type":"array","items":{}}}}}]}}"#,
        at("File"),
        at("Lob"),
    );
    let schema = apache_avro::Schema::parse_str(&schema).unwrap();
    let mut writer = apache_avro::Writer::new(&schema, Vec::new()).unwrap();
    let whole = Whole {
        column_groups: vec![Group {
            files: vec![At { path: data }],
        }],
        stats: BTreeMap::from([("bloom", Stats { paths: vec![stats] })]),
        lob_files: vec![At { path: lob }],
    };
    writer.append_ser(whole).unwrap();
    writer.into_inner().unwrap()
}

/// Everything that a manifest of storage V3 declares is looked for, its LOBs too: the manifest alone is not the segment.
#[tokio::test(start_paused = true)]
async fn a_manifest_segment_is_inside_with_all_that_it_declares() {
    let world = small_seed(&FLUSHED).await.world();
    let all: Vec<(Key, SegmentInfo)> = family(&*world.meta, Family::Segment).await;
    let (key, info) = all.iter().find(|(_, s)| s.id == FLUSHED[0]).unwrap();
    let partition = format!("{ROOT}/insert_log/{SMALL}/{}", info.partition_id);
    let base = format!("{partition}/{}", info.id);
    let (data, stats) = (
        format!("{base}/_data/7.parquet"),
        format!("{base}/_stats/9"),
    );
    let lob = format!("{partition}/lobs/101/_data/3.vx");
    let written = storage_manifest("7.parquet", "9", "101/_data/3.vx");
    let file = format!("{base}/_metadata/manifest-2.avro");
    put_object(&world, &file.as_str().into(), written).await;
    put_object(&world, &data.as_str().into(), b"PAR1 rows PAR1".to_vec()).await;
    put_object(&world, &stats.as_str().into(), vec![1; 30]).await;
    let with = |ver: i64| SegmentInfo {
        storage_version: 3,
        manifest_path: format!(r#"{{"ver":{ver},"base_path":"{base}"}}"#),
        ..info.clone()
    };
    put(&*world.meta, &key.to_key(&roots()), with(2).encode_to_vec()).await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let plan = planned(&runner, &create("tree", None)).await;
    assert!(failed(&plan).contains(&lob), "{}", failed(&plan));
    put_object(&world, &lob.as_str().into(), vec![2; 40]).await;
    done(&runner, create("tree", None)).await;
    let all: Vec<(Key, SnapshotInfo)> = family(&*world.meta, Family::Snapshot).await;
    let (id, roots) = (SnapshotId(all[0].1.id), roots());
    let contents = Contents::read(&reads(&stores, &stores.reader(), &roots), all[0].1.clone())
        .await
        .unwrap();
    for key in [&file, &data, &stats, &lob] {
        assert!(contents.wanted.contains_key(&key.as_str().into()), "{key}");
    }
    let kinds = contents.by_kind(ROOT);
    assert_eq!(
        kinds["lob"],
        Tally {
            files: 1,
            bytes: 40
        }
    );
    assert_eq!(kinds["storage_manifest"].files, 1);
    // Shared by a partition: live segments have it, as far as anybody can tell.
    let found = share(&reads(&stores, &stores.reader(), &roots), &contents)
        .await
        .unwrap();
    assert_eq!(found.exclusive, Tally::default());
    delete(&world, &Path::from(lob.as_str())).await;
    let verify = Intent::VerifySnapshot {
        snapshot: id,
        deep: false,
    };
    let info = run(&runner, verify).await.unwrap();
    assert_eq!(info.state, JobState::Failed);
    assert!(info.error.as_ref().unwrap().contains(&lob), "{info:?}");
    // Version 0 is the placeholder of a segment without data: a growing one stays outside.
    let placeholder = SegmentInfo {
        state: 2,
        ..with(0)
    };
    put(
        &*world.meta,
        &key.to_key(&roots),
        placeholder.encode_to_vec(),
    )
    .await;
    let logs = ["binlog", "statslog", "deltalog"].map(|l| format!("/{l}/"));
    for kv in world.meta.range_all(&Span::all()).await.unwrap().kvs {
        let text = kv.key.text();
        if text.contains(&FLUSHED[0].to_string()) && logs.iter().any(|l| text.contains(l)) {
            let writes = vec![Write::Delete(kv.key)];
            let conds = vec![];
            world.meta.txn(Txn { conds, writes }).await.unwrap();
        }
    }
    let plan = planned(&runner, &create("empty", None)).await;
    let said = plan.warnings.join("\n");
    assert!(said.contains("nothing of it is on disk yet"), "{said}");
    runner.stop().await;
}
