//! Garbage collection of what belongs to snapshots: pins whose time is over go, and nothing else of the record; a snapshot whose collection
//! is gone stays until somebody asks for its end by the rule's name.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb::data::{SegmentInfo, SnapshotInfo};
use falconer::engine::format::pb::etcd::CollectionInfo;
use falconer::engine::format::wire::Patch;
use falconer::engine::ids::{
    CollectionId, JobId, KeyPrefix, MetaKey, PinId, SegmentId, SnapshotId, Tso, UnixMs, VChannel,
};
use falconer::engine::jobs::gc::Gc;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWriter, Span, Txn, Write};
use falconer::engine::model::data::Pin;
use falconer::engine::model::gc::{Rule, Verdict};
use falconer::engine::model::holds::{Facts, Reason, Reference, SegmentFacts, SnapshotFacts, Work};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::model::kept;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::journal::Keys;
use falconer::engine::plan::{Intent, Plan};
use prost::Message;
use support::faults::{Faults, Stores, World, sweep};
use support::snapshots::{
    FLUSHED, Made, NOW, ROOT, SMALL, Seed, all, family, make, objects, put, roots, small_seed,
};

/// A field of the record that nobody here knows.
const UNKNOWN: u32 = 99;
/// Pins that are over: more than one transaction holds.
const OVER: std::ops::Range<i64> = 100..160;

fn runner(stores: &Stores) -> RunnerHandle {
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(9)),
        actor: "tester pid 9".into(),
        embedded: true,
    });
    Runner::start(executor, Registry::default().with(Gc::default()))
}

fn pass(rules: &[&str]) -> Intent {
    Intent::Gc {
        collection: None,
        rules: rules.iter().map(|r| (*r).to_owned()).collect(),
        quarantine: false,
    }
}

async fn begin(runner: &RunnerHandle, intent: Intent) -> Result<JobId> {
    let plan = runner.plan(intent, Arc::default()).await?;
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    runner.apply(&plan.hash, &typed).await
}

async fn planned(world: &World, intent: Intent) -> Arc<Plan> {
    let runner = runner(&world.open(&Faults::none(), ROOT));
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    runner.stop().await;
    plan
}

async fn run(world: &World, intent: Intent) -> Arc<JobInfo> {
    let runner = runner(&world.open(&Faults::none(), ROOT));
    let job = begin(&runner, intent).await.unwrap();
    let info = runner.ended(job).await.unwrap();
    runner.stop().await;
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    info
}

/// Starts the program: waits for the job that is there, or gives the order and waits.
async fn operate(stores: &Stores, intent: Intent) -> Result<()> {
    let runner = runner(stores);
    let job = loop {
        let span = Span::prefix(&KeyPrefix::new("falconer/by-dev/job"));
        let begun = match stores.meta.range_all(&span).await {
            Ok(page) => match page.kvs.first() {
                Some(kv) => Ok(JobId(
                    kv.key.text().split('/').nth(3).unwrap().parse().unwrap(),
                )),
                None => begin(&runner, intent.clone()).await,
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
    if info.state == JobState::Verified {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Internal,
        format!("{:?}: {:?} {:?}", info.state, info.error, info.notes),
    ))
}

async fn record(world: &World, made: &Made) -> Option<SnapshotInfo> {
    let kv = world.meta.get(&made.key).await.unwrap()?;
    let kept = Patch::parse(&kv.value).unwrap();
    assert_eq!(kept.bytes(UNKNOWN), Some(&b"newer"[..]), "law 1");
    Some(SnapshotInfo::decode(kv.value).unwrap())
}

/// Two flushed segments, and a snapshot of them with these pins as Milvus writes them.
async fn seed(pins: &[(i64, Option<i64>)]) -> (Seed, Made) {
    small_seed(&FLUSHED)
        .await
        .prepare(async |world: &World| {
            let heads: Vec<(Key, CollectionInfo)> = family(&*world.meta, Family::Collection).await;
            let db = heads.iter().find_map(|(key, _)| match key {
                Key::Collection(db, c) if *c == SMALL => Some(*db),
                _ => None,
            });
            let made = make(world, db.unwrap(), SMALL, 7_700, "kept", 8).await;
            let kv = world.meta.get(&made.key).await.unwrap().unwrap();
            let mut patch = Patch::parse(&kv.value).unwrap();
            patch.set_bytes(UNKNOWN, b"newer");
            let ids: Vec<u64> = pins.iter().map(|(id, _)| id.cast_unsigned()).collect();
            patch.set_packed(11, &ids);
            for (id, until) in pins {
                if let Some(until) = until {
                    patch.set_map_integer(12, id.cast_unsigned(), until.cast_unsigned());
                }
            }
            put(&*world.meta, &made.key, patch.finish()).await;
            made
        })
        .await
}

/// Those that are over, one for ever, one whose end is no time, one that ends in an hour.
fn pins() -> Vec<(i64, Option<i64>)> {
    let over = OVER.map(|id| (id, Some(NOW.0 - 1_000 - id)));
    let stay = [(6, None), (7, Some(NOW.0 + 3_600_000)), (8, Some(0))];
    stay[..1]
        .iter()
        .copied()
        .chain(over)
        .chain(stay[1..].iter().copied())
        .collect()
}

fn only_live(info: &SnapshotInfo, label: &str) {
    assert_eq!(info.pin_ids, [6, 7, 8], "{label}");
    let ends: BTreeSet<i64> = info.pin_expire_at_ms.keys().copied().collect();
    assert_eq!(ends, BTreeSet::from([7, 8]), "{label}");
}

#[tokio::test(start_paused = true)]
async fn pins_that_are_over_go_and_nothing_else_of_the_record() {
    let (seed, made) = seed(&pins()).await;
    let world = seed.world();
    let note = |pin: i64| Keys::new(&roots()).pin_note(made.id, PinId(pin));
    for pin in [100, 7] {
        put(&*world.meta, &note(pin), b"{}".to_vec()).await;
    }
    let before = record(&world, &made).await.unwrap();
    let bucket = objects(&*world.objects).await;

    // Another rule leaves them.
    run(&world, pass(&["dropped-segment"])).await;
    assert_eq!(record(&world, &made).await.unwrap(), before);

    let plan = planned(&world, pass(&[])).await;
    assert!(
        plan.steps
            .contains(&"expired-pin: take them off 1 snapshots".to_owned()),
        "{:?}",
        plan.steps
    );
    let change = plan
        .changes
        .iter()
        .find(|c| c.key == made.key.text())
        .unwrap();
    let after = change.after.as_deref().unwrap();
    assert!(
        change
            .before
            .as_deref()
            .unwrap()
            .contains("pin 100, expired")
    );
    assert!(
        after.contains("pin 6, never expires") && !after.contains("pin 100"),
        "{after}"
    );
    assert_eq!(plan.objects.deletes, 0);

    let info = run(&world, pass(&[])).await;
    assert!(
        info.notes
            .contains(&"expired-pin: taken off 1 snapshots".to_owned()),
        "{:?}",
        info.notes
    );
    let now = record(&world, &made).await.unwrap();
    only_live(&now, "after the pass");
    let mut wanted = before;
    wanted.pin_ids.retain(|id| !OVER.contains(id));
    wanted.pin_expire_at_ms.retain(|id, _| !OVER.contains(id));
    assert_eq!(now, wanted, "nothing else of the record moved");
    assert!(world.meta.get(&note(100)).await.unwrap().is_none());
    assert!(world.meta.get(&note(7)).await.unwrap().is_some());
    assert_eq!(objects(&*world.objects).await, bucket);
    let again = planned(&world, pass(&[])).await;
    assert!(!again.steps.iter().any(|s| s.starts_with("expired-pin")));
}

#[tokio::test(start_paused = true)]
async fn taking_off_pins_survives_every_fault() {
    let (seed, made) = seed(&pins()).await;
    let runs = sweep(
        ROOT,
        async || seed.world(),
        async |stores: &Stores| operate(stores, pass(&["expired-pin"])).await,
        async |world: &World, label: &str| {
            only_live(&record(world, &made).await.unwrap(), label);
        },
    )
    .await;
    println!("expired pins: {runs} points");
    assert!(runs > 40, "{runs}");
}

fn facts(pins: &[(i64, Option<i64>)], state: i32) -> Facts {
    Facts {
        now: UnixMs(1_000),
        snapshots: vec![SnapshotFacts {
            id: SnapshotId(1),
            collection: CollectionId(2),
            name: "s".into(),
            state,
            pending_since: None,
            pins: pins
                .iter()
                .map(|(id, until)| Pin {
                    id: PinId(*id),
                    expires: until.map(UnixMs),
                })
                .collect(),
            reference: Reference::NotLoaded,
        }],
        ..Facts::default()
    }
}

fn why(verdict: &Verdict) -> Vec<Reason> {
    match verdict {
        Verdict::Collect { .. } => Vec::new(),
        Verdict::Keep(holds) => holds.iter().map(|h| h.reason).collect(),
    }
}

#[test]
fn doubts_keep_pins_and_snapshots() {
    let id = SnapshotId(1);
    let over = [(5, Some(999))];
    let pins = |facts: Facts| why(&kept::pins(&facts.indexed(), id));
    let gone = |facts: Facts| why(&kept::collection_gone(&facts.indexed(), id));
    assert_eq!(pins(facts(&over, 2)), []);
    assert_eq!(
        gone(facts(&over, 2)),
        [],
        "a pin that is over keeps nothing"
    );
    // The very moment is not over; 0 is no time; a record that is not committed goes as a whole.
    for still in [Some(1_000), Some(0), Some(-5), None] {
        assert_eq!(pins(facts(&[(5, still)], 2)), [Reason::Live], "{still:?}");
        assert_eq!(gone(facts(&[(5, still)], 2)), [Reason::Pin], "{still:?}");
    }
    for state in [1, 3, 9] {
        assert_eq!(pins(facts(&over, state)), [Reason::Live], "state {state}");
        assert_eq!(gone(facts(&over, state)), [Reason::Live], "state {state}");
    }
    let on = |change: &dyn Fn(&mut Facts)| {
        let mut facts = facts(&over, 2);
        change(&mut facts);
        (pins(facts.clone()), gone(facts))
    };
    let reads = on(&|f| {
        f.work.push(Work {
            by: "restore job 3".into(),
            snapshot: Some(id),
            ..Work::default()
        });
    });
    assert_eq!(reads, (vec![Reason::Job], vec![Reason::Job]));
    let exports = on(&|f| {
        f.work.push(Work {
            by: "export job 3".into(),
            collection: Some(CollectionId(2)),
            ..Work::default()
        });
    });
    assert_eq!(exports, (vec![Reason::Job], vec![Reason::Job]));
    let unread = on(&|f| f.unreadable_any = Some("a collection key".into()));
    let doubt = Reason::UnreadableRecord;
    assert_eq!(unread, (vec![doubt], vec![doubt]));
    let known = on(&|f| {
        f.collections.insert(CollectionId(2));
    });
    assert_eq!(known, (vec![], vec![Reason::CollectionExists]));
    let live = on(&|f| {
        let segment = SegmentFacts {
            id: SegmentId(7),
            collection: CollectionId(2),
            channel: VChannel("c".into()),
            state: "Flushed".into(),
            dropped: false,
            dropped_at: None,
            dml: Tso(0),
            from: Vec::new(),
            l0: false,
            rows: 1,
            field_indexes: Vec::new(),
        };
        f.segments.insert(segment.id, segment);
    });
    assert_eq!(live, (vec![], vec![Reason::SegmentsLeft]));
}

/// The collection's record.
async fn head(world: &World) -> MetaKey {
    let heads: Vec<(Key, CollectionInfo)> = family(&*world.meta, Family::Collection).await;
    let of = |key: &Key| matches!(key, Key::Collection(_, c) if *c == SMALL);
    let found = heads.into_iter().find(|(key, _)| of(key)).unwrap();
    found.0.to_key(&roots())
}

/// The collection was dropped days ago; its segments wait for the snapshot.
async fn drop_collection(world: &World) {
    let meta = &*world.meta;
    let writes = vec![Write::Delete(head(world).await)];
    let txn = Txn {
        conds: Vec::new(),
        writes,
    };
    meta.txn(txn).await.unwrap();
    for (key, mut info) in family::<SegmentInfo>(meta, Family::Segment).await {
        info.state = 6;
        info.dropped_at = ((NOW.0 - 4 * 3_600_000) * 1_000_000) as u64;
        put(meta, &key.to_key(&roots()), info.encode_to_vec()).await;
    }
    for key in all(meta, "by-dev/meta/datacoord-meta/channel-removal")
        .await
        .into_keys()
    {
        put(meta, &key.as_str().into(), b"removed".to_vec()).await;
    }
}

type Objects = BTreeMap<String, Bytes>;

/// The snapshot's own files, and everything else.
fn parts(all: Objects) -> (Objects, Objects) {
    all.into_iter()
        .partition(|(key, _)| key.contains("/snapshots/"))
}

const BY_NAME: &str = "collection-gone";

#[tokio::test(start_paused = true)]
async fn a_snapshot_without_its_collection_stays_until_it_is_asked_for() {
    let (seed, made) = seed(&[]).await;
    let world = seed.world();
    drop_collection(&world).await;
    let (own, data) = parts(objects(&*world.objects).await);
    let before = record(&world, &made).await;
    let plan = planned(&world, pass(&[])).await;
    let said = format!(
        "{BY_NAME}: report, not delete, 1 with {} objects",
        own.len()
    );
    assert!(
        plan.steps.iter().any(|s| s.starts_with(&said)),
        "{said} in {:?}",
        plan.steps
    );
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.contains("a Milvus that runs its collector drops them")),
        "{:?}",
        plan.warnings
    );
    run(&world, pass(&[])).await;
    assert_eq!(record(&world, &made).await, before, "it stays");
    let now = parts(objects(&*world.objects).await);
    assert_eq!(now, (own.clone(), data.clone()), "with all that it keeps");

    let plan = planned(&world, pass(&[BY_NAME])).await;
    assert_eq!(plan.objects.deletes as usize, own.len(), "{:?}", plan.steps);
    run(&world, pass(&[BY_NAME])).await;
    assert_eq!(record(&world, &made).await, None);
    let now = parts(objects(&*world.objects).await);
    assert_eq!(now, (Objects::new(), data), "its own files, nothing else");
    assert!(
        all(&*world.meta, "falconer/by-dev/snapshot")
            .await
            .is_empty(),
        "no note is left"
    );
    // What it kept is free now.
    run(&world, pass(&[])).await;
    let left = objects(&*world.objects).await;
    let kept = FLUSHED.map(|s| format!("/{s}/"));
    assert!(
        !left
            .keys()
            .any(|key| kept.iter().any(|part| key.contains(part))),
        "{:?}",
        left.keys()
    );
}

#[tokio::test(start_paused = true)]
async fn a_pin_or_a_live_segment_keeps_it_even_when_asked_for() {
    for pinned in [true, false] {
        let pins = [(5, Some(NOW.0 + 3_600_000))];
        let (seed, made) = seed(if pinned { &pins } else { &[] }).await;
        let world = seed.world();
        let segments: Vec<(Key, SegmentInfo)> = family(&*world.meta, Family::Segment).await;
        drop_collection(&world).await;
        if !pinned {
            let (key, info) = &segments[0];
            put(&*world.meta, &key.to_key(&roots()), info.encode_to_vec()).await;
        }
        let before = (record(&world, &made).await, objects(&*world.objects).await);
        let plan = planned(&world, pass(&[BY_NAME])).await;
        let reason = if pinned { "pin" } else { "segments-left" };
        let said = format!("kept because {reason}: ");
        assert!(
            plan.warnings.iter().any(|w| w.starts_with(&said)),
            "{said} in {:?}",
            plan.warnings
        );
        run(&world, pass(&[BY_NAME])).await;
        let now = (record(&world, &made).await, objects(&*world.objects).await);
        assert_eq!(now, before, "{reason}");
    }
}

/// Planned while it was gone, run when it is back: the record is read again right before.
#[tokio::test(start_paused = true)]
async fn a_collection_that_comes_back_keeps_its_snapshot() {
    let (seed, made) = seed(&[]).await;
    let world = seed.world();
    let head = head(&world).await;
    let value = world.meta.get(&head).await.unwrap().unwrap().value;
    drop_collection(&world).await;
    let runner = runner(&world.open(&Faults::none(), ROOT));
    let plan = runner.plan(pass(&[BY_NAME]), Arc::default()).await.unwrap();
    assert!(plan.objects.deletes > 0);
    put(&*world.meta, &head, value.to_vec()).await;
    let before = (record(&world, &made).await, objects(&*world.objects).await);
    let job = runner.apply(&plan.hash, "collect").await.unwrap();
    let info = runner.ended(job).await.unwrap();
    runner.stop().await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    let now = (record(&world, &made).await, objects(&*world.objects).await);
    assert_eq!(now, before);
}

#[tokio::test(start_paused = true)]
async fn dropping_what_lost_its_collection_survives_every_fault() {
    let (seed, made) = seed(&[]).await;
    let (seed, ()) = seed.prepare(drop_collection).await;
    let (own, data) = parts(objects(&*seed.world().objects).await);
    assert!(own.len() > 2);
    let runs = sweep(
        ROOT,
        async || seed.world(),
        async |stores: &Stores| operate(stores, pass(&[BY_NAME])).await,
        async |world: &World, label: &str| {
            assert_eq!(record(world, &made).await, None, "{label}");
            let now = parts(objects(&*world.objects).await);
            assert_eq!(now.0, Objects::new(), "{label}: no file of it is left");
            assert!(now.1 == data, "{label}: nothing else went");
            let notes = all(&*world.meta, "falconer/by-dev/snapshot").await;
            assert!(notes.is_empty(), "{label}: {notes:?}");
        },
    )
    .await;
    println!("{BY_NAME}: {runs} points");
    assert!(runs > 40, "{runs}");
    assert!(Rule::of(BY_NAME).is_some_and(Rule::by_name));
}
