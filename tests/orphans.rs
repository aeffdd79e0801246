//! Objects that nobody owns: the verdict on every class, a scan of the captured cluster, and every operation of scan, put-back and purge
//! failing once. Nothing is lost at any crash, nothing is overwritten, and a pause stops a pass that runs.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use falconer::engine::clock::{Clock, SeededEntropy};
use falconer::engine::doctor::{Check, Patient, Status};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::Key;
use falconer::engine::format::paths::ObjPath;
use falconer::engine::format::pb;
use falconer::engine::format::snapshot::metadata_key;
use falconer::engine::ids::{
    CollectionId, JobId, KeyPrefix, ObjectKey, PartitionId, SegmentId, SnapshotId, TaskId, UnixMs,
};
use falconer::engine::jobs::gc::Gc;
use falconer::engine::jobs::orphans::Orphans;
use falconer::engine::jobs::orphans_scan;
use falconer::engine::jobs::quarantine_purge::QuarantinePurge;
use falconer::engine::jobs::quarantine_restore::QuarantineRestore;
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore_source::Reads;
use falconer::engine::jobs::runner::{Applied, Runner, RunnerHandle};
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWrite, MetaWriter, Span};
use falconer::engine::model::facts::{Tolerances, Work};
use falconer::engine::model::holds::{Hold, Reason};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::model::orphans::{Held, Ids, Known, Rule, Verdict, judge};
use falconer::engine::model::quarantine::{DAY_MS, Entry, Quarantine, Yard};
use falconer::engine::model::tickets::Ticket;
use falconer::engine::objects;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::journal::Order;
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::{
    EtcdProfile, ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use prost::Message;
use support::faults::{Faults, Mode, Stores, VirtualClock, World, sweep};
use support::mem::MemStore;
use support::s3;
use support::servers::{Etcd, EtcdVersion};
use support::snapshots::{
    self as lab, ROOT, all, collection, lab_world, make, objects as every, roots,
};

/// Long after the capture and after whatever a store in memory says of its objects: everything is old.
const LATER: UnixMs = UnixMs(1_890_000_000_000);
/// Ids that the captured cluster does not have.
const C: i64 = 999;
const P: i64 = 998;
const S: i64 = 997;
const B: i64 = 996;
const TASK: i64 = 995;
const SNAP: i64 = 994;

/// One object of every class, and the rule that takes it.
fn corpus() -> Vec<(String, Rule)> {
    use Rule::{NoBuild, NoPartition, NoSegment, NoSnapshot, NoTask};
    [
        (format!("insert_log/{C}/{P}/{S}/100/1"), NoSegment),
        (
            format!("insert_log/{C}/{P}/{S}/_metadata/manifest-1.avro"),
            NoSegment,
        ),
        (
            format!("insert_log/{C}/{P}/{S}/_data/0_a.parquet"),
            NoSegment,
        ),
        (format!("insert_log/{C}/{P}/{S}/_delta/5"), NoSegment),
        (
            format!("insert_log/{C}/{P}/{S}/_stats/bloom_filter.100/5"),
            NoSegment,
        ),
        (format!("insert_log/{C}/{P}/{S}/_index/a"), NoSegment),
        (
            format!("insert_log/{C}/{P}/lobs/101/_data/1.vx"),
            NoPartition,
        ),
        (format!("stats_log/{C}/{P}/{S}/100/1"), NoSegment),
        (format!("delta_log/{C}/{P}/{S}/1"), NoSegment),
        (format!("bm25_stats/{C}/{P}/{S}/102/1"), NoSegment),
        (format!("index_files/{B}/1/{P}/{S}/IVF_0"), NoBuild),
        (format!("index_v1/{C}/{P}/{S}/{B}/1/IVF_0"), NoBuild),
        (format!("text_log/{B}/1/{C}/{P}/{S}/102/a"), NoSegment),
        (
            format!("json_key_index_log/{B}/1/{C}/{P}/{S}/103/a"),
            NoSegment,
        ),
        (
            format!("json_stats/2/{B}/1/{C}/{P}/{S}/103/shared_key_index/a"),
            NoSegment,
        ),
        (
            format!("json_stats/3/{B}/1/{C}/{P}/{S}/103/meta.json"),
            NoSegment,
        ),
        (
            format!("part_stats/{C}/{P}/by-dev-rootcoord-dml_0_{C}v0/7"),
            NoPartition,
        ),
        (
            format!("analyze_stats/{TASK}/1/{C}/{P}/101/centroids"),
            NoTask,
        ),
        (
            format!("analyze_stats/{TASK}/1/{C}/{P}/101/{S}/offset_mapping"),
            NoTask,
        ),
        (format!("snapshots/{C}/metadata/{SNAP}.json"), NoSnapshot),
        (
            format!("snapshots/{C}/manifests/{SNAP}/{S}.avro"),
            NoSnapshot,
        ),
    ]
    .map(|(below, rule)| (format!("{ROOT}/{below}"), rule))
    .into()
}

/// Milvus's, or nobody's: never touched.
fn unknown() -> Vec<String> {
    [
        "wp/woodpecker/1.log",
        "ngram_log/1",
        "raw_datas/1",
        "external_refresh_results/1",
        "something/else",
        "insert_log/not-a-number/1",
        "stats_log/1/2/3/100/05",
    ]
    .map(|below| format!("{ROOT}/{below}"))
    .into()
}

fn verdict(known: &Known, key: &str, modified: UnixMs) -> Verdict {
    judge(known, &ObjPath::parse(ROOT, key), &key.into(), modified)
}

fn reason(verdict: &Verdict) -> Option<Reason> {
    match verdict {
        Verdict::Keep(hold) => Some(hold.reason),
        Verdict::Orphan(_) => None,
    }
}

fn ids<V>(all: impl IntoIterator<Item = (i64, V)>) -> Ids<V> {
    let mut out = Ids::default();
    for (id, of) in all {
        out.add(id, of);
    }
    out.sorted()
}

fn known() -> Known {
    Known {
        now: LATER,
        tolerances: Tolerances::default(),
        labels: vec!["snapshot nightly (7)".into()],
        ..Known::default()
    }
}

const OLD: UnixMs = UnixMs(LATER.0 - 10 * DAY_MS);

#[test]
fn every_class_goes_by_its_rule_and_stays_for_every_reason() {
    let hold = |reason| Hold {
        reason,
        by: "x".into(),
        until: None,
    };
    let worked = |work| Known {
        work: vec![work],
        ..known()
    };
    for (key, rule) in corpus() {
        let is = |known: &Known, at| verdict(known, &key, at);
        assert_eq!(is(&known(), OLD), Verdict::Orphan(rule), "{key}");
        // Its owner, and only its owner, keeps it.
        for (owner, keeps) in [
            (
                Known {
                    segments: ids([(S, ())]),
                    ..known()
                },
                rule == Rule::NoSegment,
            ),
            (
                Known {
                    builds: ids([(B, ())]),
                    ..known()
                },
                rule == Rule::NoBuild,
            ),
            (
                Known {
                    snapshots: ids([(SNAP, ())]),
                    ..known()
                },
                rule == Rule::NoSnapshot,
            ),
            (
                Known {
                    partitions: ids([(P, ())]),
                    ..known()
                },
                rule == Rule::NoPartition,
            ),
            (
                Known {
                    tasks: ids([(TASK, ())]),
                    ..known()
                },
                rule == Rule::NoTask,
            ),
            (
                Known {
                    collections: BTreeSet::from([CollectionId(C)]),
                    ..known()
                },
                rule == Rule::NoPartition,
            ),
        ] {
            let found = is(&owner, OLD);
            assert_eq!(matches!(found, Verdict::Keep(_)), keeps, "{key}: {found:?}");
        }
        // A snapshot that refers to its segment, its build, or to nothing but this file.
        let own = rule == Rule::NoSnapshot;
        let path = ObjPath::parse(ROOT, &key).known().unwrap();
        let owner = path.owner();
        let refers = |held| Known { held, ..known() };
        let by_segment = is(
            &refers(Held {
                segments: ids([(S, 0)]),
                ..Held::default()
            }),
            OLD,
        );
        assert_eq!(
            reason(&by_segment) == Some(Reason::Snapshot),
            owner.segment.is_some() && !own,
            "{key}: {by_segment:?}"
        );
        let by_build = is(
            &refers(Held {
                builds: ids([(B, 0)]),
                ..Held::default()
            }),
            OLD,
        );
        assert_eq!(
            reason(&by_build) == Some(Reason::Snapshot),
            owner.build.is_some(),
            "{key}"
        );
        let mark = falconer::engine::model::references::mark(&key.as_str().into()).cast_signed();
        let by_file = is(
            &refers(Held {
                files: ids([(mark, 0)]),
                ..Held::default()
            }),
            OLD,
        );
        assert_eq!(reason(&by_file), Some(Reason::Snapshot), "{key}");
        let shared = BTreeMap::from([(CollectionId(C), 0)]);
        let by_any = is(
            &refers(Held {
                collections: shared,
                ..Held::default()
            }),
            OLD,
        );
        let is_shared = rule == Rule::NoPartition;
        assert_eq!(
            reason(&by_any) == Some(Reason::Snapshot),
            is_shared,
            "{key}"
        );
        // What cannot be read blocks its collection, and whatever has none in its path.
        let blocked = |c| Known {
            blocked: BTreeMap::from([(CollectionId(c), hold(Reason::SnapshotUnreadable))]),
            ..known()
        };
        assert_eq!(
            reason(&is(&blocked(C), OLD)),
            Some(Reason::SnapshotUnreadable),
            "{key}"
        );
        let other = reason(&is(&blocked(5), OLD));
        assert_eq!(other.is_some(), owner.collection.is_none(), "{key}");
        let any = Known {
            blocked_any: Some(hold(Reason::UnreadableRecord)),
            ..known()
        };
        assert_eq!(
            reason(&is(&any, OLD)),
            Some(Reason::UnreadableRecord),
            "{key}"
        );
        // Running work.
        let on = Work {
            by: "job 1".into(),
            collection: Some(CollectionId(C)),
            ..Work::default()
        };
        assert_eq!(reason(&is(&worked(on), OLD)), Some(Reason::Job), "{key}");
        // Young; from the future; without a time.
        let fresh = UnixMs(LATER.0 - DAY_MS + 1);
        let Verdict::Keep(young) = is(&known(), fresh) else {
            panic!("{key} is young")
        };
        assert_eq!(
            (young.reason, young.until),
            (Reason::Young, Some(UnixMs(fresh.0 + DAY_MS)))
        );
        assert_eq!(
            reason(&is(&known(), UnixMs(LATER.0 + DAY_MS))),
            Some(Reason::Young),
            "{key}"
        );
        assert_eq!(
            reason(&is(&known(), UnixMs(0))),
            Some(Reason::Unknown),
            "{key}"
        );
        // Paused: of its collection, of everything, or of a collection that may be its own.
        let paused = |c: Option<i64>, until| Known {
            tickets: vec![Ticket {
                id: "t".into(),
                owner: "ann".into(),
                reason: "rescue".into(),
                collection: c.map(CollectionId),
                since: OLD,
                until: UnixMs(until),
            }],
            ..known()
        };
        let end = LATER.0 + 1;
        let Verdict::Keep(held) = is(&paused(Some(C), end), OLD) else {
            panic!("{key} is paused")
        };
        assert_eq!(
            (held.reason, held.until),
            (Reason::Paused, Some(UnixMs(end))),
            "{key}"
        );
        assert_eq!(
            reason(&is(&paused(None, end), OLD)),
            Some(Reason::Paused),
            "{key}"
        );
        assert_eq!(
            is(&paused(None, LATER.0), OLD),
            Verdict::Orphan(rule),
            "{key}: over"
        );
        let other = is(&paused(Some(5), end), OLD);
        assert_eq!(
            matches!(other, Verdict::Keep(_)),
            owner.collection.is_none(),
            "{key}"
        );
    }
    for key in unknown() {
        assert_eq!(
            reason(&verdict(&known(), &key, OLD)),
            Some(Reason::Unknown),
            "{key}"
        );
    }
    let elsewhere = verdict(&known(), "other/insert_log/1/2/3/100/4", OLD);
    assert_eq!(reason(&elsewhere), Some(Reason::Unknown));
}

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
        actor: format!("tester@host pid {seed}"),
        embedded: true,
    });
    Runner::start(
        executor,
        Registry::default()
            .with(Gc::default())
            .with(Orphans::default())
            .with(QuarantineRestore)
            .with(QuarantinePurge::default()),
    )
}

fn scan() -> Intent {
    Intent::Orphans {
        collection: None,
        prefixes: BTreeSet::new(),
        delete: false,
    }
}

async fn begin(runner: &RunnerHandle, intent: Intent) -> Result<JobId> {
    let plan = runner.plan(intent, Arc::default()).await?;
    let typed = plan.type_to_confirm.clone();
    let typed = typed.unwrap_or_else(|| "y".into());
    runner.apply(&plan.hash, &typed).await
}

/// A job of its own, to its end.
async fn run(world: &World, intent: Intent) -> (Arc<Plan>, Arc<JobInfo>) {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores, 3);
    let plan = runner.plan(intent.clone(), Arc::default()).await.unwrap();
    let job = begin(&runner, intent).await.unwrap();
    let info = runner.ended(job).await.unwrap();
    runner.stop().await;
    (plan, info)
}

async fn verified(world: &World, intent: Intent) -> Arc<JobInfo> {
    let (_, info) = run(world, intent).await;
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    info
}

async fn plan_only(world: &World, intent: Intent) -> Arc<Plan> {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores, 3);
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    runner.stop().await;
    plan
}

/// One object of every class, and what is never touched.
async fn plant(world: &World) {
    for (n, (key, _)) in corpus().into_iter().enumerate() {
        lab::put_object(world, &key.as_str().into(), vec![7; 100 + n]).await;
    }
    for key in unknown() {
        lab::put_object(world, &key.as_str().into(), b"mine".to_vec()).await;
    }
}

fn old(mut world: World) -> World {
    world.clock = VirtualClock::at(LATER);
    world
}

type Objects = BTreeMap<String, Bytes>;

/// What lies aside of a job, by original key.
fn aside(all: &Objects, job: JobId) -> Objects {
    let yard = Yard::of(ROOT);
    all.iter()
        .filter_map(|(key, bytes)| {
            let original = yard.original(job, &key.as_str().into())?;
            Some((original.0, bytes.clone()))
        })
        .collect()
}

fn in_root(all: &Objects) -> Objects {
    let mine = |key: &String| key.starts_with("files/");
    all.iter()
        .filter(|(key, _)| mine(key))
        .map(|(k, b)| (k.clone(), b.clone()))
        .collect()
}

fn wanted() -> BTreeSet<String> {
    corpus().into_iter().map(|(key, _)| key).collect()
}

async fn record(world: &World, job: JobId) -> Option<Quarantine> {
    let key = format!("falconer/by-dev/quarantine/{job}");
    let kv = world.meta.get(&key.as_str().into()).await.unwrap()?;
    Some(serde_json::from_slice(&kv.value).unwrap())
}

/// The whole story on the captured cluster: exactly the planted orphans go aside, everything else stays byte for byte; the report names
/// rules and prefixes; then they come back, except where something stands by now.
#[tokio::test(start_paused = true)]
async fn orphans_of_every_class_go_aside_and_come_back() {
    let world = old(lab_world().await);
    let pristine = plan_only(&world, scan()).await;
    assert_eq!(
        pristine.objects.deletes, 0,
        "the capture has none: {:?}",
        pristine.steps
    );
    plant(&world).await;
    let start = every(&*world.objects).await;
    let (plan, info) = run(&world, scan()).await;
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    assert_eq!(
        plan.objects.deletes as usize,
        corpus().len(),
        "{:?}",
        plan.steps
    );
    for (rule, n) in [
        ("no-segment", 13),
        ("no-build", 2),
        ("no-snapshot", 2),
        ("no-task", 2),
        ("no-partition", 2),
    ] {
        let said = format!("{rule}: move aside {n} objects");
        assert!(
            plan.steps.iter().any(|s| s.starts_with(&said)),
            "{said} in {:?}",
            plan.steps
        );
        let said = format!("{rule}: moved aside {n} objects");
        assert!(
            info.notes.iter().any(|s| s.starts_with(&said)),
            "{said} in {:?}",
            info.notes
        );
    }
    let by_prefix = info
        .notes
        .iter()
        .find(|n| n.starts_with("no-segment: found"))
        .unwrap();
    for prefix in [
        "bm25_stats 1 (",
        "delta_log 1 (",
        "insert_log 6 (",
        "json_stats 2 (",
        "text_log 1 (",
    ] {
        assert!(by_prefix.contains(prefix), "{prefix} in {by_prefix}");
    }
    assert!(
        info.notes
            .iter()
            .any(|n| n.starts_with("kept because unknown: 7 objects")),
        "{:?}",
        info.notes
    );
    let after = every(&*world.objects).await;
    let gone = aside(&after, info.id);
    assert_eq!(gone.keys().cloned().collect::<BTreeSet<_>>(), wanted());
    for (key, bytes) in &start {
        let now = if wanted().contains(key) {
            &gone
        } else {
            &after
        };
        assert_eq!(now.get(key), Some(bytes), "{key}");
        assert_eq!(after.contains_key(key), !wanted().contains(key), "{key}");
    }
    let kept = record(&world, info.id).await.unwrap();
    assert_eq!(kept.objects as usize, gone.len());
    assert!(kept.closed.is_some());
    // The index says by which rule each went.
    let index = format!(
        "falconer-quarantine/{ROOT}/{}.index/batch-00000001.jsonl",
        info.id
    );
    let lines: Vec<Entry> = after[&index]
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    let rules: BTreeMap<String, String> = lines.into_iter().map(|e| (e.key.0, e.rule)).collect();
    for (key, rule) in corpus() {
        assert_eq!(rules[&key], rule.name(), "{key}");
    }
    // A second scan finds nothing more, and leaves what lies aside alone.
    let again = plan_only(&world, scan()).await;
    assert_eq!(again.objects.deletes, 0, "{:?}", again.steps);

    // One prefix first; then the rest, with something new in one of the places.
    let put_back = |prefix: &str| Intent::QuarantineRestore {
        job: info.id,
        prefix: prefix.into(),
    };
    verified(&world, put_back("files/snapshots/")).await;
    let now = every(&*world.objects).await;
    assert_eq!(aside(&now, info.id).len(), gone.len() - 2);
    let taken = &corpus()[0].0;
    lab::put_object(&world, &taken.as_str().into(), b"new".to_vec()).await;
    let (plan, back) = run(&world, put_back("")).await;
    assert_eq!(
        back.state,
        JobState::Verified,
        "{:?} {:?}",
        back.error,
        back.notes
    );
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.contains("are not overwritten")),
        "{:?}",
        plan.warnings
    );
    assert!(
        back.notes.iter().any(|n| n.contains(taken.as_str())),
        "{:?}",
        back.notes
    );
    let now = every(&*world.objects).await;
    for (key, bytes) in &start {
        if key == taken {
            assert_eq!(
                now[key],
                Bytes::from_static(b"new"),
                "{key} is not overwritten"
            );
            assert_eq!(
                aside(&now, info.id).get(key),
                Some(bytes),
                "{key} still lies aside"
            );
        } else {
            assert_eq!(now.get(key), Some(bytes), "{key}");
        }
    }
    assert_eq!(record(&world, info.id).await.unwrap().objects, 1);
}

/// A scope keeps the rest out; deletion is for good and asks for more.
#[tokio::test(start_paused = true)]
async fn a_scan_may_be_limited_and_may_delete() {
    let world = old(lab_world().await);
    plant(&world).await;
    let of = |collection: Option<i64>, prefix: &str, delete| Intent::Orphans {
        collection: collection.map(CollectionId),
        prefixes: Some(prefix.to_owned())
            .filter(|p| !p.is_empty())
            .into_iter()
            .collect(),
        delete,
    };
    let elsewhere = plan_only(&world, of(Some(5), "", false)).await;
    assert_eq!(elsewhere.objects.deletes, 0);
    // Every class but the build-rooted index names its collection.
    let mine = plan_only(&world, of(Some(C), "", false)).await;
    assert_eq!(mine.objects.deletes as usize, corpus().len() - 1);
    let (plan, info) = run(&world, of(None, "bm25_stats", true)).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    assert_eq!((plan.objects.deletes, plan.objects.copies), (1, 0));
    assert_eq!(plan.type_to_confirm.as_deref(), Some("delete orphans"));
    let now = every(&*world.objects).await;
    assert!(aside(&now, info.id).is_empty());
    let left: BTreeSet<String> = wanted()
        .into_iter()
        .filter(|k| now.contains_key(k))
        .collect();
    assert_eq!(left.len(), corpus().len() - 1);
    let stores = world.open(&Faults::none(), ROOT);
    let e = runner(&stores, 1)
        .plan(of(None, "binlog", false), Arc::default())
        .await;
    assert!(e.unwrap_err().to_string().contains("insert_log"));
}

/// What a snapshot refers to stays although the segment's record is gone; when the snapshot cannot be read, so does everything of its
/// collection and everything of which nobody knows whose it is.
#[tokio::test(start_paused = true)]
async fn snapshots_hold_by_name_and_unread_ones_hold_all() {
    let world = old(lab_world().await);
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
    // The records go, the files stay: what a lost etcd key looks like.
    for prefix in [
        format!("by-dev/meta/datacoord-meta/s/{of}"),
        format!("by-dev/meta/segment-index/{of}"),
    ] {
        let writes: Vec<_> = all(&*world.meta, &prefix).await.into_keys().collect();
        for key in writes {
            let gone = falconer::engine::meta::Write::Delete(key.as_str().into());
            let txn = falconer::engine::meta::Txn {
                conds: vec![],
                writes: vec![gone],
            };
            world.meta.txn(txn).await.unwrap();
        }
    }
    plant(&world).await;
    let stores = world.open(&Faults::none(), ROOT);
    let plan = runner(&stores, 3)
        .plan(scan(), Arc::default())
        .await
        .unwrap();
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.starts_with("kept because snapshot:")),
        "{:?}",
        plan.warnings
    );
    let samples = plan.objects.samples.join("\n");
    for segment in &made.segments {
        assert!(
            !samples.contains(&format!("/{}/", segment.segment_id)),
            "{samples}"
        );
    }
    let free = plan.objects.deletes;
    assert!(free >= corpus().len() as u64);
    let info = verified(&world, scan()).await;
    let now = every(&*world.objects).await;
    let moved = aside(&now, info.id);
    for segment in &made.segments {
        let files = [&segment.binlogs, &segment.statslogs, &segment.deltalogs];
        for log in files.into_iter().flatten().flat_map(|f| &f.binlogs) {
            assert!(now.contains_key(&log.log_path), "{}", log.log_path);
            assert!(!moved.contains_key(&log.log_path));
        }
        for path in segment.index_files.iter().flat_map(|f| &f.index_file_paths) {
            assert!(now.contains_key(path), "{path}");
        }
    }
    verified(
        &world,
        Intent::QuarantineRestore {
            job: info.id,
            prefix: String::new(),
        },
    )
    .await;

    // A manifest under the id of a snapshot that nobody knows is an orphan, unless a JSON names it there.
    let manifest = made.metadata.manifest_list[0].clone();
    let now = every(&*world.objects).await;
    let bytes = now[&manifest].clone();
    let elsewhere = manifest.replace(&format!("/{}/", made.id), "/470660334431980077/");
    assert_ne!(elsewhere, manifest);
    let before = plan_only(&world, scan()).await.objects.deletes;
    lab::put_object(&world, &elsewhere.as_str().into(), bytes.to_vec()).await;
    let plan = plan_only(&world, scan()).await;
    assert_eq!(plan.objects.deletes, before + 1);
    let key = metadata_key(ROOT, of, made.id);
    let json = String::from_utf8(now[&key.0].to_vec()).unwrap();
    let renamed = json.replace(&manifest, &elsewhere);
    assert_ne!(renamed, json);
    lab::put_object(&world, &key, renamed.into_bytes()).await;
    let plan = plan_only(&world, scan()).await;
    assert_eq!(plan.objects.deletes, before);
    lab::put_object(&world, &key, json.into_bytes()).await;
    #[allow(
        clippy::disallowed_methods,
        reason = "the hand that lays out the bucket"
    )]
    object_store::ObjectStoreExt::delete(&*world.objects, &elsewhere.as_str().into())
        .await
        .unwrap();

    // Cut in the middle.
    lab::put_object(
        &world,
        &manifest.as_str().into(),
        bytes[..bytes.len() / 2].to_vec(),
    )
    .await;
    let plan = plan_only(&world, scan()).await;
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.starts_with("kept because snapshot-unreadable:")),
        "{:?}",
        plan.warnings
    );
    // Of the corpus all but what has no collection in its path.
    assert_eq!(
        plan.objects.deletes as usize,
        corpus().len() - 1,
        "{:?}",
        plan.objects.samples
    );
}

#[tokio::test(start_paused = true)]
async fn wrong_metadata_or_a_wrong_bucket_is_refused() {
    let world = old(lab_world().await);
    plant(&world).await;
    let empty = World::new(
        Arc::new(MemStore::new(lab::ETCD)),
        world.objects.clone(),
        LATER,
    );
    let plan = plan_only(&empty, scan()).await;
    let failed: Vec<&str> = plan.failures().map(|c| c.name.as_str()).collect();
    assert_eq!(failed, ["the metadata is this cluster's"]);
    let stores = empty.open(&Faults::none(), ROOT);
    let refused = begin(&runner(&stores, 1), scan()).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("every object would be an orphan"),
        "{refused}"
    );

    let stranger = World::new(world.meta.clone(), Arc::new(InMemory::new()), LATER);
    for (key, _) in corpus() {
        lab::put_object(&stranger, &key.as_str().into(), b"x".to_vec()).await;
    }
    let plan = plan_only(&stranger, scan()).await;
    let failed: Vec<&str> = plan.failures().map(|c| c.name.as_str()).collect();
    assert_eq!(failed, ["the bucket is this cluster's"]);
}

/// Everything that is young stays, and the plan says from when on it does not.
#[tokio::test(start_paused = true)]
async fn young_objects_stay() {
    // In memory everything was written just now, long after the capture's own time.
    let world = lab_world().await;
    plant(&world).await;
    let plan = plan_only(&world, scan()).await;
    assert_eq!(plan.objects.deletes, 0);
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.starts_with("kept because young: 21 objects")),
        "{:?}",
        plan.warnings
    );
    assert!(
        plan.warnings.iter().any(|w| w.contains("becomes free at")),
        "{:?}",
        plan.warnings
    );
}

/// What is read again right before a batch: an owner that has come keeps its file, a snapshot that has come makes everything be read
/// anew, work that has begun holds.
#[tokio::test(start_paused = true)]
async fn owners_and_holds_are_read_again_before_a_batch() {
    let world = old(lab_world().await);
    let stores = world.open(&Faults::none(), ROOT);
    let roots = roots();
    let meta = stores.reader();
    let reads = Reads {
        meta: &meta,
        objects: &stores.read,
        roots: &roots,
    };
    let entries: Vec<Entry> = corpus()
        .into_iter()
        .map(|(key, rule)| Entry {
            key: key.into(),
            size: 1,
            etag: None,
            modified: OLD,
            rule: rule.name().into(),
        })
        .collect();
    let wants = orphans_scan::Wants {
        cutoff: LATER,
        tolerances: Tolerances::default(),
        me: None,
    };
    let mut seen = orphans_scan::look(&reads, &Keeper::default(), LATER, wants)
        .await
        .unwrap();
    let owned = async |seen: &mut orphans_scan::Seen| {
        let owned = orphans_scan::again(&reads, seen, JobId(1), &entries)
            .await
            .unwrap();
        owned.map(|owned| {
            let pairs = entries.iter().zip(owned);
            pairs
                .filter(|(_, o)| *o)
                .map(|(e, _)| e.rule.clone())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(owned(&mut seen).await, Some(vec![]), "nothing has come");
    let (c, p, s) = (CollectionId(C), PartitionId(P), SegmentId(S));
    let put = async |key: Key| lab::put(&*world.meta, &key.to_key(&roots), vec![1]).await;
    put(Key::AnalyzeTask(TaskId(TASK))).await;
    assert_eq!(owned(&mut seen).await, Some(vec!["no-task".into(); 2]));
    put(Key::SegmentIndex(c, p, s, B.into())).await;
    let builds = owned(&mut seen).await.unwrap();
    assert_eq!(
        builds.iter().filter(|r| *r == "no-build").count(),
        2,
        "both path versions"
    );
    put(Key::Segment(c, p, s)).await;
    let segments = owned(&mut seen).await.unwrap();
    let of = |rule: &str| segments.iter().filter(|r| *r == rule).count();
    assert_eq!(
        (of("no-segment"), of("no-partition"), of("no-snapshot")),
        (13, 2, 0)
    );
    // Work that has begun since.
    let job = pb::data::ImportJob {
        job_id: 77,
        collection_id: C,
        state: 3,
        ..Default::default()
    };
    let key = Key::ImportJob(JobId(77)).to_key(&roots);
    lab::put(&*world.meta, &key, job.encode_to_vec()).await;
    owned(&mut seen).await.unwrap();
    let held = verdict(&seen.known, &corpus()[0].0, OLD);
    assert_eq!(reason(&held), Some(Reason::Job));
    // A snapshot record, of whatever collection.
    put(Key::Snapshot(CollectionId(1), SnapshotId(2))).await;
    assert_eq!(owned(&mut seen).await, None);
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

/// Starts the program; waits for the jobs that are there beyond the first `before`, or gives the order and waits.
async fn operate(stores: &Stores, before: usize, intent: Intent) -> Result<()> {
    let runner = runner(stores, 1);
    let job = loop {
        let begun = match jobs(stores).await {
            Ok(ids) if ids.len() > before => Ok(ids[before]),
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
    if info.state == JobState::Verified {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Internal,
        format!("{:?}: {:?} {:?}", info.state, info.error, info.notes),
    ))
}

/// A small part of the cluster with orphans of five rules, cheap enough for thousands of worlds.
async fn small_world() -> World {
    static SEED: tokio::sync::OnceCell<lab::Seed> = tokio::sync::OnceCell::const_new();
    let seed = SEED
        .get_or_init(|| async {
            let seed = lab::small_seed(&lab::FLUSHED[..1]).await;
            let planted = seed.prepare(async |world: &World| {
                for (key, _) in picked() {
                    lab::put_object(world, &key.as_str().into(), key.into_bytes()).await;
                }
            });
            planted.await.0
        })
        .await;
    old(seed.world())
}

fn picked() -> Vec<(String, Rule)> {
    let mut seen = BTreeSet::new();
    corpus()
        .into_iter()
        .filter(|(_, rule)| seen.insert(*rule))
        .collect()
}

/// Every object of the start is in its place or aside, with its bytes; none is in both, and nothing else is anywhere.
fn nothing_is_lost(start: &Objects, now: &Objects, jobs: &[JobId], label: &str) {
    let mut found = in_root(now);
    for job in jobs {
        for (key, bytes) in aside(now, *job) {
            assert!(
                found.insert(key.clone(), bytes).is_none(),
                "{label}: {key} is in two places"
            );
        }
    }
    assert!(found.keys().eq(start.keys()), "{label}: {:?}", found.keys());
    assert_eq!(&found, start, "{label}");
}

async fn first_job(world: &World) -> JobId {
    let records = all(&*world.meta, "falconer/by-dev/quarantine").await;
    let key = records.into_keys().next().expect("a record");
    JobId(key.rsplit('/').next().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_scan_survives_every_fault() {
    let world = small_world().await;
    let start = in_root(&every(&*world.objects).await);
    let runs = sweep(
        ROOT,
        async || small_world().await,
        async |stores: &Stores| operate(stores, 0, scan()).await,
        async |world: &World, label: &str| {
            let now = every(&*world.objects).await;
            let job = first_job(world).await;
            nothing_is_lost(&start, &now, &[job], label);
            let gone: BTreeSet<String> = aside(&now, job).into_keys().collect();
            let wanted: BTreeSet<String> = picked().into_iter().map(|(key, _)| key).collect();
            assert_eq!(gone, wanted, "{label}");
            let kept = record(world, job).await.unwrap();
            assert!(kept.closed.is_some(), "{label}");
            assert_eq!(
                kept.objects as usize,
                wanted.len(),
                "{label}: counted once each"
            );
        },
    )
    .await;
    println!("orphan scan: {runs} runs");
    assert!(runs > 100, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn a_put_back_survives_every_fault() {
    let world = small_world().await;
    let start = in_root(&every(&*world.objects).await);
    let aside_already = async || {
        let world = small_world().await;
        verified(&world, scan()).await;
        world
    };
    let taken = picked()[0].0.clone();
    let runs = sweep(
        ROOT,
        async || {
            let world = aside_already().await;
            // Something stands in one of the places by now: of the same size, which says nothing.
            let mut other = taken.clone().into_bytes();
            other[0] = b'!';
            lab::put_object(&world, &taken.as_str().into(), other).await;
            world
        },
        async |stores: &Stores| {
            let of = jobs(stores).await.map(|ids| ids[0]);
            let Ok(of) = of else {
                return Box::pin(operate_back(stores)).await;
            };
            let intent = Intent::QuarantineRestore {
                job: of,
                prefix: String::new(),
            };
            operate(stores, 1, intent).await
        },
        async |world: &World, label: &str| {
            let now = every(&*world.objects).await;
            let job = first_job(world).await;
            let left = aside(&now, job);
            assert_eq!(left.keys().collect::<Vec<_>>(), [&taken], "{label}");
            assert_eq!(left[&taken], taken.as_bytes(), "{label}");
            assert_eq!(now[&taken][0], b'!', "{label}: not overwritten");
            for (key, bytes) in start.iter().filter(|(key, _)| **key != taken) {
                assert_eq!(now.get(key), Some(bytes), "{label}: {key}");
            }
        },
    )
    .await;
    println!("put back: {runs} runs");
    assert!(runs > 100, "{runs}");
}

/// The first question failed: ask again.
async fn operate_back(stores: &Stores) -> Result<()> {
    let of = jobs(stores).await?[0];
    let intent = Intent::QuarantineRestore {
        job: of,
        prefix: String::new(),
    };
    operate(stores, 1, intent).await
}

/// Purging: not before its time, not what something refers to by now, and whole at every fault.
#[tokio::test(start_paused = true)]
async fn a_purge_waits_judges_again_and_survives_every_fault() {
    let purge = |days| Intent::QuarantinePurge { days };
    let early = small_world().await;
    verified(&early, scan()).await;
    let plan = plan_only(&early, purge(7)).await;
    let failed: Vec<&str> = plan.failures().map(|c| c.name.as_str()).collect();
    assert_eq!(failed, ["something is old enough"]);
    assert!(
        plan.warnings.iter().any(|w| w.starts_with("not yet: job")),
        "{:?}",
        plan.warnings
    );

    // The segment of one of them has a record by now: it is kept, and named.
    let needed = picked()
        .iter()
        .find(|(_, r)| *r == Rule::NoSegment)
        .unwrap()
        .0
        .clone();
    let key = Key::Segment(C.into(), P.into(), S.into()).to_key(&roots());
    let ready = async || {
        let world = small_world().await;
        verified(&world, scan()).await;
        let segment = pb::data::SegmentInfo {
            id: S,
            collection_id: C,
            partition_id: P,
            ..Default::default()
        };
        lab::put(&*world.meta, &key, segment.encode_to_vec()).await;
        let mut world = world;
        world.clock = VirtualClock::at(UnixMs(LATER.0 + 8 * DAY_MS));
        world
    };
    let world = ready().await;
    let start = in_root(&every(&*world.objects).await);
    let runs = sweep(
        ROOT,
        async || ready().await,
        async |stores: &Stores| operate(stores, 1, purge(7)).await,
        async |world: &World, label: &str| {
            let now = every(&*world.objects).await;
            assert_eq!(
                in_root(&now),
                start,
                "{label}: nothing in the root is touched"
            );
            let left: Vec<&String> = now.keys().filter(|k| !k.starts_with("files/")).collect();
            let job = first_job(world).await;
            assert!(
                left.iter().all(|k| k.contains(&job.to_string())),
                "{label}: {left:?}"
            );
            // Partition and segment files of the one that came back to life.
            assert!(aside(&now, job).contains_key(&needed), "{label}");
            assert!(aside(&now, job).len() < picked().len(), "{label}");
            let kept = record(world, job).await.unwrap();
            assert_eq!(kept.objects as usize, aside(&now, job).len(), "{label}");
        },
    )
    .await;
    println!("purge: {runs} runs");
    assert!(runs > 100, "{runs}");
}

/// A garbage collection pass that moves aside: what it would have deleted comes back byte for byte.
#[tokio::test(start_paused = true)]
async fn a_pass_may_move_aside() {
    let world = old(lab_world().await);
    let (_, users) = collection(&*world.meta, "users").await;
    let prefix = format!("by-dev/meta/datacoord-meta/s/{users}");
    for (key, value) in all(&*world.meta, &prefix).await {
        let mut info = pb::data::SegmentInfo::decode(value).unwrap();
        info.state = 6;
        info.dropped_at = ((LATER.0 - 4 * 3_600_000) * 1_000_000) as u64;
        lab::put(&*world.meta, &key.as_str().into(), info.encode_to_vec()).await;
    }
    for (key, _) in all(&*world.meta, "by-dev/meta/datacoord-meta/channel-removal").await {
        lab::put(&*world.meta, &key.as_str().into(), b"removed".to_vec()).await;
    }
    let start = in_root(&every(&*world.objects).await);
    let pass = Intent::Gc {
        collection: Some(users),
        rules: BTreeSet::new(),
        quarantine: true,
    };
    let (plan, info) = run(&world, pass).await;
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    assert!(
        plan.steps.iter().any(|s| s.contains("move aside")),
        "{:?}",
        plan.steps
    );
    assert!(plan.undo.contains("quarantine restore"), "{}", plan.undo);
    let now = every(&*world.objects).await;
    nothing_is_lost(&start, &now, &[info.id], "after the pass");
    let gone = aside(&now, info.id);
    assert_eq!(plan.objects.deletes as usize, gone.len());
    assert!(gone.len() > 10, "{}", gone.len());
    assert!(
        all(&*world.meta, &prefix).await.is_empty(),
        "records go with their objects"
    );
    verified(
        &world,
        Intent::QuarantineRestore {
            job: info.id,
            prefix: String::new(),
        },
    )
    .await;
    let back = every(&*world.objects).await;
    assert_eq!(in_root(&back), start);
    assert!(counted(&back) == 0, "nothing is left aside");
    assert_eq!(record(&world, info.id).await, None);
}

/// The same pass with every operation failing once: an object is in its place or aside, a record goes only after its objects.
#[tokio::test(start_paused = true)]
async fn a_pass_that_moves_aside_survives_every_fault() {
    static SEED: tokio::sync::OnceCell<lab::Seed> = tokio::sync::OnceCell::const_new();
    let make = async || {
        let seed = SEED.get_or_init(|| async {
            let seed = lab::small_seed(&lab::COMPACTED[..1]).await;
            let dropped = seed.prepare(async |world: &World| {
                let prefix = format!("by-dev/meta/datacoord-meta/s/{}", lab::SMALL);
                for (key, value) in all(&*world.meta, &prefix).await {
                    let mut info = pb::data::SegmentInfo::decode(value).unwrap();
                    info.state = 6;
                    info.dropped_at = ((LATER.0 - 4 * 3_600_000) * 1_000_000) as u64;
                    lab::put(&*world.meta, &key.as_str().into(), info.encode_to_vec()).await;
                }
                for key in all(&*world.meta, "by-dev/meta/datacoord-meta/channel-removal")
                    .await
                    .into_keys()
                {
                    lab::put(&*world.meta, &key.as_str().into(), b"removed".to_vec()).await;
                }
            });
            dropped.await.0
        });
        old(seed.await.world())
    };
    let pass = Intent::Gc {
        collection: None,
        rules: BTreeSet::from(["dropped-segment".to_owned()]),
        quarantine: true,
    };
    let start = in_root(&every(&*make().await.objects).await);
    let runs = sweep(
        ROOT,
        make,
        async |stores: &Stores| operate(stores, 0, pass.clone()).await,
        async |world: &World, label: &str| {
            let now = every(&*world.objects).await;
            let job = first_job(world).await;
            nothing_is_lost(&start, &now, &[job], label);
            let gone = aside(&now, job).len();
            assert!(gone > 5, "{label}: {gone}");
            let kept = record(world, job).await.unwrap();
            assert_eq!(
                (kept.objects as usize, kept.closed.is_some()),
                (gone, true),
                "{label}"
            );
            let prefix = format!("by-dev/meta/datacoord-meta/s/{}", lab::SMALL);
            assert!(all(&*world.meta, &prefix).await.is_empty(), "{label}");
        },
    )
    .await;
    println!("pass that moves aside: {runs} runs");
    assert!(runs > 100, "{runs}");
}

async fn settled(runner: &RunnerHandle, intent: Intent) -> Result<String> {
    let plan = runner.plan(intent, Arc::default()).await?;
    match runner.carry_out(&plan.hash, "").await? {
        Applied::Settled(what) => Ok(what),
        Applied::Job(job) => panic!("job {job}"),
    }
}

fn pause(collection: Option<i64>, secs: u64) -> Intent {
    Intent::PauseGc {
        collection: collection.map(CollectionId),
        secs,
        reason: "rescue of books".into(),
    }
}

/// A resume without a name ends the pause that its plan shows, or nothing: not one that has come in its place.
#[tokio::test(start_paused = true)]
async fn what_a_resume_shows_is_what_ends() {
    let world = small_world().await;
    let stores = world.open(&Faults::none(), ROOT);
    let (one, other) = (runner(&stores, 1), runner(&stores, 2));
    settled(&one, pause(None, 600)).await.unwrap();
    let nameless = || Intent::ResumeGc { ticket: None };
    let shown = one.plan(nameless(), Arc::default()).await.unwrap();
    settled(&other, nameless()).await.unwrap();
    let second = settled(&other, pause(Some(C), 600)).await.unwrap();
    let refused = one.carry_out(&shown.hash, "").await;
    assert!(refused.is_err(), "the other's pause would end: {second}");
    let left = settled(&other, nameless()).await.unwrap();
    assert!(left.contains("is gone"), "{left}");
    one.stop().await;
    other.stop().await;
}

fn counted(all: &Objects) -> usize {
    let yard = Yard::of(ROOT);
    all.keys()
        .filter(|k| yard.holds(&ObjectKey((*k).clone())) && !k.contains(".index/"))
        .count()
}

/// A restore that was cut off has copied files of segments that no record names yet: its job keeps them, however old they are.
#[tokio::test(start_paused = true)]
async fn a_restore_under_way_keeps_what_it_has_copied() {
    let seed = lab::small_seed(&lab::FLUSHED).await;
    let (seed, made) = seed
        .prepare(async |world: &World| {
            let (db, of) = collection(&*world.meta, "metrics").await;
            make(world, db, of, 470_660_334_431_990_001, "kept", 8).await
        })
        .await;
    let world = seed.world();
    let before = every(&*world.objects).await;
    let stores = world.open(&Faults::none(), ROOT);
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(5)),
        actor: "tester@host pid 5".into(),
        embedded: true,
    });
    let all = falconer::engine::registry(Tolerances::default(), &Keeper::default());
    let runner = Runner::start(executor, all);
    let restore = Intent::Restore {
        snapshot: made.id,
        database: "default".into(),
        collection: "copy".into(),
    };
    let job = begin(&runner, restore).await.unwrap();
    runner.throttle(job, Some(4_000)).unwrap();
    let mut view = runner.view.clone();
    let copied = |j: &Arc<JobInfo>| j.id == job && j.progress.files.0 > 2;
    while !view.borrow_and_update().jobs.iter().any(copied) {
        view.changed().await.unwrap();
    }
    // As a process that dies leaves it: not ended.
    runner.stop().await;
    let now = every(&*world.objects).await;
    let copies: Vec<ObjectKey> = now
        .keys()
        .filter(|key| !before.contains_key(*key))
        .map(|key| key.as_str().into())
        .collect();
    assert!(copies.len() > 2, "{copies:?}");

    let roots = roots();
    let meta = stores.reader();
    let reads = Reads {
        meta: &meta,
        objects: &stores.read,
        roots: &roots,
    };
    let wants = orphans_scan::Wants {
        cutoff: LATER,
        tolerances: Tolerances::default(),
        me: None,
    };
    let mut seen = orphans_scan::look(&reads, &Keeper::default(), LATER, wants)
        .await
        .unwrap();
    for key in &copies {
        assert_eq!(
            reason(&verdict(&seen.known, &key.0, OLD)),
            Some(Reason::Job),
            "{key}"
        );
    }
    // Nothing else keeps them but that nobody knows ids as high.
    seen.known.work.clear();
    for key in &copies {
        assert_eq!(
            reason(&verdict(&seen.known, &key.0, OLD)),
            Some(Reason::NewerThanMetadata),
            "{key}"
        );
    }
    seen.known.newest = None;
    for key in &copies {
        let found = verdict(&seen.known, &key.0, OLD);
        assert!(matches!(found, Verdict::Orphan(_)), "{key}: {found:?}");
    }
}

/// Metadata that was put back from a backup knows nothing of what was made since: no scan goes by it.
#[tokio::test(start_paused = true)]
async fn nothing_newer_than_the_metadata_is_an_orphan() {
    let seed = lab::small_seed(&lab::FLUSHED).await;
    let (seed, made) = seed
        .prepare(async |world: &World| {
            let (db, of) = collection(&*world.meta, "metrics").await;
            make(world, db, of, 470_660_334_431_990_001, "kept", 8).await
        })
        .await;
    let backup = seed.world();
    let world = seed.world();
    let stores = world.open(&Faults::none(), ROOT);
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(5)),
        actor: "tester@host pid 5".into(),
        embedded: true,
    });
    let all = falconer::engine::registry(Tolerances::default(), &Keeper::default());
    let restoring = Runner::start(executor, all);
    let restore = Intent::Restore {
        snapshot: made.id,
        database: "default".into(),
        collection: "copy".into(),
    };
    let job = begin(&restoring, restore).await.unwrap();
    let info = restoring.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    restoring.stop().await;
    let whole = every(&*world.objects).await;
    let current = old(World::new(world.meta.clone(), world.objects.clone(), LATER));
    assert_eq!(plan_only(&current, scan()).await.objects.deletes, 0);

    // The old metadata beside the bucket of today, and everything in it old.
    let older = old(World::new(
        backup.meta.clone(),
        world.objects.clone(),
        LATER,
    ));
    for delete in [false, true] {
        let intent = Intent::Orphans {
            collection: None,
            prefixes: BTreeSet::new(),
            delete,
        };
        let plan = plan_only(&older, intent).await;
        assert_eq!(plan.objects.deletes, 0, "{:?}", plan.steps);
        // What is moved aside can be put back: then it is a warning, and whatever is newer than the metadata stays all the same.
        let failed: Vec<&str> = plan.failures().map(|c| c.name.as_str()).collect();
        let why = if delete {
            assert_eq!(failed, ["the metadata is as new as the bucket"]);
            plan.failures().next().unwrap().failed.clone().unwrap()
        } else {
            assert_eq!(failed, [""; 0]);
            plan.warnings[0].clone()
        };
        assert!(why.contains("etcd put back from a backup"), "{why}");
    }
    assert_eq!(every(&*world.objects).await, whole);
}

/// Metadata from a backup has no record of what was moved aside: the bucket has, and it comes back.
/// What the doctor says of what lies aside.
async fn aside_check(world: &World) -> Check {
    let stores = world.open(&Faults::none(), ROOT);
    let meta = world.reader();
    let patient = Patient {
        meta: &meta,
        objects: Some(&stores.read),
        roots: &falconer::engine::profile::Roots::default(),
        clock: &*stores.clock,
    };
    let report = falconer::engine::doctor::run(&patient).await;
    let check = report.checks.into_iter().find(|c| c.name == "quarantine");
    check.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_lies_aside_without_a_record_comes_back() {
    let world = small_world().await;
    let start = in_root(&every(&*world.objects).await);
    let moved = verified(&world, scan()).await;
    let known = aside_check(&world).await;
    assert_eq!(known.status, Status::Ok, "{known:?}");
    assert_eq!(
        known.detail,
        "things of one job lie aside, each with its record"
    );
    let key = format!("falconer/by-dev/quarantine/{}", moved.id);
    let writes = vec![falconer::engine::meta::Write::Delete(key.as_str().into())];
    let gone = falconer::engine::meta::Txn {
        conds: Vec::new(),
        writes,
    };
    world.meta.txn(gone).await.unwrap();
    assert_eq!(record(&world, moved.id).await, None);
    let lost = aside_check(&world).await;
    assert_eq!(lost.status, Status::Warn, "{lost:?}");
    assert!(lost.items[0].starts_with(&format!("job {}: ", moved.id)));
    let back = Intent::QuarantineRestore {
        job: moved.id,
        prefix: String::new(),
    };
    verified(&world, back).await;
    let now = every(&*world.objects).await;
    assert_eq!(in_root(&now), start);
    assert!(
        !now.keys()
            .any(|key| key.starts_with("falconer-quarantine/"))
    );
}

/// A pass runs, held to one object a second; another process pauses it without owning the root: it stops before the next items, says for
/// whom it waits, goes on when the ticket is taken away, and by itself when it ends.
#[tokio::test(start_paused = true)]
async fn a_running_pass_honours_a_ticket_and_its_end() {
    let world = old(lab_world().await);
    for n in 0..60 {
        let key = format!("{ROOT}/insert_log/{C}/{P}/{S}/100/{n}");
        lab::put_object(&world, &key.as_str().into(), vec![1; 10]).await;
    }
    let stores = world.open(&Faults::none(), ROOT);
    let running = runner(&stores, 3);
    let job = begin(&running, scan()).await.unwrap();
    for order in [
        Order::Pace { objects: Some(1) },
        Order::Parallel { copies: 1 },
    ] {
        running.order(job, order).await.unwrap();
    }
    let clock = stores.clock.clone();
    clock.sleep(Duration::from_secs(20)).await;
    let before = counted(&every(&*world.objects).await);
    assert!((10..=25).contains(&before), "one a second: {before}");

    // Another process: it cannot own the root, and need not.
    let others = world.open(&Faults::none(), ROOT);
    let other = runner(&others, 4);
    let said = settled(&other, pause(None, 3_600)).await.unwrap();
    assert!(
        said.contains("by tester@host until") && said.contains("rescue of books"),
        "{said}"
    );
    clock.sleep(Duration::from_secs(10)).await;
    let paused = counted(&every(&*world.objects).await);
    assert!(paused <= before + 2, "{before} → {paused}");
    clock.sleep(Duration::from_mins(10)).await;
    assert_eq!(
        counted(&every(&*world.objects).await),
        paused,
        "nothing moves for ten minutes"
    );
    let view = running.view.borrow().clone();
    let info = view.jobs.iter().find(|j| j.id == job).unwrap();
    assert!(
        info.notes
            .last()
            .unwrap()
            .starts_with("waiting: garbage collection is paused by tester@host"),
        "{:?}",
        info.notes
    );
    // Planning says who and until when, and is refused.
    let plan = other.plan(scan(), Arc::default()).await.unwrap();
    let check = plan
        .failures()
        .find(|c| c.name == "garbage collection is not paused")
        .unwrap();
    assert!(
        check.failed.as_deref().unwrap().contains("gc resume gc-"),
        "{check:?}"
    );
    let gc = Intent::Gc {
        collection: None,
        rules: BTreeSet::new(),
        quarantine: false,
    };
    let plan = other.plan(gc, Arc::default()).await.unwrap();
    assert!(
        plan.failures()
            .any(|c| c.name == "garbage collection is not paused")
    );

    // Taken away: it goes on within seconds.
    let id = said
        .split("(ticket ")
        .nth(1)
        .unwrap()
        .trim_end_matches(')')
        .to_owned();
    let plan = other
        .plan(
            Intent::ResumeGc {
                ticket: Some(id.clone()),
            },
            Arc::default(),
        )
        .await
        .unwrap();
    assert_eq!(plan.danger, falconer::engine::plan::Danger::Medium);
    let gone = settled(&other, Intent::ResumeGc { ticket: Some(id) })
        .await
        .unwrap();
    assert!(gone.contains("not paused by us any more"), "{gone}");
    clock.sleep(Duration::from_secs(15)).await;
    let on = counted(&every(&*world.objects).await);
    assert!(on > paused, "{paused} → {on}");
    // Paused again, and left alone: it ends by itself.
    settled(&other, pause(None, 120)).await.unwrap();
    // Lifted from elsewhere, through the journal.
    other
        .order(job, Order::Pace { objects: None })
        .await
        .unwrap();
    clock.sleep(Duration::from_mins(1)).await;
    assert!(counted(&every(&*world.objects).await) < 60);
    let info = running.ended(job).await.unwrap();
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    assert_eq!(counted(&every(&*world.objects).await), 60);
    running.stop().await;
    other.stop().await;
}

/// The ticket of one collection keeps that collection and what may be of it; everything else goes.
#[tokio::test(start_paused = true)]
async fn the_ticket_of_a_collection_keeps_that_collection() {
    let world = old(lab_world().await);
    plant(&world).await;
    let elsewhere = format!("{ROOT}/insert_log/555/{P}/553/100/1");
    lab::put_object(&world, &elsewhere.as_str().into(), vec![1; 10]).await;
    let stores = world.open(&Faults::none(), ROOT);
    let other = runner(&stores, 4);
    settled(&other, pause(Some(C), 7 * 86_400)).await.unwrap();
    let e = other
        .plan(pause(None, 10), Arc::default())
        .await
        .unwrap_err();
    assert!(e.to_string().contains("2h"), "{e}");
    let none = Intent::ResumeGc {
        ticket: Some("gc-no".into()),
    };
    let e = other.plan(none, Arc::default()).await.unwrap_err();
    assert!(e.to_string().contains("there is no ticket gc-no"), "{e}");
    other.stop().await;
    let (plan, info) = run(&world, scan()).await;
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    let said = format!("kept because paused: {} objects", corpus().len());
    assert!(
        plan.warnings.iter().any(|w| w.starts_with(&said)),
        "{:?}",
        plan.warnings
    );
    let now = every(&*world.objects).await;
    assert_eq!(
        aside(&now, info.id).into_keys().collect::<Vec<_>>(),
        [elsewhere]
    );
    // A pass limited to that very collection is refused as a whole.
    let mine = Intent::Orphans {
        collection: Some(CollectionId(C)),
        prefixes: BTreeSet::new(),
        delete: false,
    };
    let plan = plan_only(&world, mine).await;
    assert!(
        plan.failures()
            .any(|c| c.name == "garbage collection is not paused")
    );
    // A record that nobody can read pauses everything.
    lab::put(
        &*world.meta,
        &"falconer/by-dev/pause/gc-odd".into(),
        b"{".to_vec(),
    )
    .await;
    let plan = plan_only(&world, scan()).await;
    let check = plan.failures().next().unwrap();
    assert!(
        check.failed.as_deref().unwrap().contains("cannot be read"),
        "{check:?}"
    );
}

/// A batch was written down and its process died; half an hour later the listing counts for nothing, and is made again.
#[tokio::test(start_paused = true)]
async fn an_old_listing_is_thrown_away() {
    let count = Faults::none();
    let world = small_world().await;
    operate(&world.open(&count, ROOT), 0, scan()).await.unwrap();
    let ops = count.ops();
    let index = ops
        .iter()
        .position(|op| op.what.starts_with("put ") && op.what.contains(".index/"))
        .unwrap();
    // The journal entry right behind the index file.
    let entry = index
        + ops[index..]
            .iter()
            .position(|op| op.what.contains("/job/"))
            .unwrap();
    let lists = |ops: &[support::faults::Op]| {
        ops.iter()
            .filter(|op| op.what == format!("list {ROOT}"))
            .count()
    };
    for (minutes, relisted) in [(1, 0), (31, 1)] {
        let world = small_world().await;
        let start = in_root(&every(&*world.objects).await);
        let faults = Faults::at(entry, Mode::CrashAfter);
        let stores = world.open(&faults, ROOT);
        tokio::select! {
            () = faults.crashed() => {}
            _ = operate(&stores, 0, scan()) => panic!("it should have crashed"),
        }
        drop(stores);
        world.bury().await;
        tokio::time::advance(Duration::from_mins(minutes)).await;
        let again = Faults::none();
        operate(&world.open(&again, ROOT), 0, scan()).await.unwrap();
        assert_eq!(lists(&again.ops()), relisted, "after {minutes} minutes");
        let now = every(&*world.objects).await;
        nothing_is_lost(&start, &now, &[first_job(&world).await], "after the crash");
        assert_eq!(counted(&now), picked().len());
    }
}

/// An object that is written again between listing and move stays.
#[tokio::test(start_paused = true)]
async fn what_is_written_again_stays() {
    let world = small_world().await;
    let faults = Faults::none();
    operate(&world.open(&faults, ROOT), 0, scan())
        .await
        .unwrap();
    let ops = faults.ops();
    let index = ops
        .iter()
        .position(|op| op.what.contains(".index/") && op.write)
        .unwrap();
    let world = small_world().await;
    let faults = Faults::at(index, Mode::CrashAfter);
    let stores = world.open(&faults, ROOT);
    tokio::select! {
        () = faults.crashed() => {}
        _ = operate(&stores, 0, scan()) => panic!("it should have crashed"),
    }
    drop(stores);
    world.bury().await;
    let fresh = picked()[0].0.clone();
    lab::put_object(
        &world,
        &fresh.as_str().into(),
        b"fresh and longer than it was, by far: written by somebody who needs it".to_vec(),
    )
    .await;
    // The index of the dead process has the old size; the listing is made again and finds the new one, as old as all others here.
    operate(&world.open(&Faults::none(), ROOT), 0, scan())
        .await
        .unwrap();
    let now = every(&*world.objects).await;
    let job = first_job(&world).await;
    assert!(
        aside(&now, job)[&fresh].starts_with(b"fresh"),
        "never half of one and half of the other"
    );
}

/// On a folder with absolute paths (`localStorage.path`) the place lies below it, and everything comes back.
#[tokio::test]
async fn a_local_storage_path_has_its_own_place() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().display().to_string();
    let profile = ObjectProfile {
        kind: ObjectKind::Local {
            dir: dir.path().to_owned(),
            absolute: true,
        },
        root: String::new(),
    };
    let (read, write) = objects::open(&profile).unwrap();
    let meta = Arc::new(MemStore::new(lab::ETCD));
    let segment = pb::data::SegmentInfo {
        id: 3,
        collection_id: 1,
        partition_id: 2,
        state: 4,
        ..Default::default()
    };
    let key = Key::Segment(1.into(), 2.into(), 3.into()).to_key(&roots());
    lab::put(&*meta, &key, segment.encode_to_vec()).await;
    let file = |below: &str| dir.path().join(below);
    for below in [
        "insert_log/1/2/3/100/4",
        "insert_log/1/2/1/100/4",
        "stats_log/1/2/1/100/1",
    ] {
        std::fs::create_dir_all(file(below).parent().unwrap()).unwrap();
        std::fs::write(file(below), below).unwrap();
    }
    let stores = Stores {
        meta,
        read,
        write,
        clock: VirtualClock::at(LATER),
        faults: Faults::none(),
    };
    let running = runner(&stores, 1);
    let job = begin(&running, scan()).await.unwrap();
    let info = running.ended(job).await.unwrap();
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    assert!(file("insert_log/1/2/3/100/4").exists());
    assert!(!file("insert_log/1/2/1/100/4").exists());
    let place = file(&format!(
        "falconer-quarantine/-/{job}{base}/insert_log/1/2/1/100/4"
    ));
    assert_eq!(
        std::fs::read_to_string(place).unwrap(),
        "insert_log/1/2/1/100/4"
    );
    let back = begin(
        &running,
        Intent::QuarantineRestore {
            job,
            prefix: String::new(),
        },
    )
    .await
    .unwrap();
    let info = running.ended(back).await.unwrap();
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    assert_eq!(
        std::fs::read_to_string(file("stats_log/1/2/1/100/1")).unwrap(),
        "stats_log/1/2/1/100/1"
    );
    running.stop().await;
}

/// The same on a real etcd and a real S3 server, two days after everything was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_servers_move_aside_and_back() {
    let s3 = s3::shared();
    let bucket = "orphans";
    s3.create_bucket(bucket);
    s3.upload(bucket, support::lab::objects().iter().cloned())
        .await;
    let etcd = Etcd::start(EtcdVersion::V35);
    etcd.load(&support::lab::etcd_without_sessions()).await;
    let profile = ObjectProfile {
        kind: ObjectKind::S3(S3Profile {
            endpoint: Some(s3.url.clone()),
            bucket: bucket.into(),
            region: String::new(),
            credentials: Some((s3::ACCESS_KEY.into(), s3::SECRET_KEY.into())),
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        }),
        root: ROOT.into(),
    };
    let clock: Arc<dyn Clock> = VirtualClock::at(UnixMs(
        falconer::engine::clock::SystemClock::new().now().0 + 2 * DAY_MS,
    ));
    let meta = EtcdStore::connect(&EtcdProfile::plain([etcd.endpoint()]), clock.clone())
        .await
        .unwrap();
    let meta: Arc<dyn MetaWrite> = Arc::new(meta);
    let store: Arc<dyn ObjectStore> = Arc::new(s3.bucket(bucket));
    let world = World::new(meta.clone(), store, LATER);
    plant(&world).await;
    for n in 0..520 {
        let key = format!("{ROOT}/delta_log/{C}/{P}/{S}/{}", 1_000 + n);
        lab::put_object(&world, &key.as_str().into(), vec![1; 64]).await;
    }
    let start = in_root(&every(&*world.objects).await);
    let (read, write) = objects::open(&profile).unwrap();
    let stores = Stores {
        meta,
        read,
        write,
        clock,
        faults: Faults::none(),
    };
    let running = runner(&stores, 1);
    let plan = running.plan(scan(), Arc::default()).await.unwrap();
    assert_eq!(
        plan.objects.deletes as usize,
        corpus().len() + 520,
        "{:?}",
        plan.steps
    );
    let job = begin(&running, scan()).await.unwrap();
    let info = running.ended(job).await.unwrap();
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    println!("{:#?}", info.notes);
    let now = every(&*world.objects).await;
    nothing_is_lost(&start, &now, &[job], "on the servers");
    assert_eq!(counted(&now), corpus().len() + 520);
    let back = begin(
        &running,
        Intent::QuarantineRestore {
            job,
            prefix: String::new(),
        },
    )
    .await
    .unwrap();
    let info = running.ended(back).await.unwrap();
    assert_eq!(
        info.state,
        JobState::Verified,
        "{:?} {:?}",
        info.error,
        info.notes
    );
    let now = every(&*world.objects).await;
    assert_eq!(in_root(&now), start);
    assert_eq!(counted(&now), 0, "nothing is left aside");
    running.stop().await;
}
