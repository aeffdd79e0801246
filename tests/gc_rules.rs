//! Every rule of garbage collection: a corpus of objects with the verdict of each, passes that collect by the rules of their own, and random
//! clusters in which nothing that has a hold may ever go.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::paths::ObjPath;
use falconer::engine::format::pb;
use falconer::engine::ids::{
    BuildId, CollectionId, FieldId, IndexId, JobId, MetaRev, ObjectKey, SegmentId, SnapshotId,
    TaskId, Tso, UnixMs, UnixNs, VChannel,
};
use falconer::engine::jobs::gc::Gc;
use falconer::engine::jobs::gc_scan::{Need, Scan, Wants, scan};
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore_source::Reads;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{
    MetaRead, MetaReader, MetaStatus, MetaWriter, Page, RangeOpts, Span, WatchStream,
};
use falconer::engine::model::gc::{self, LISTING_MS, Verdict, is_fresh};
use falconer::engine::model::holds::{
    BuildFacts, Facts, FieldIndexFacts, FieldIndexKind, Reason, Reference, SegmentFacts,
    SnapshotFacts, Tolerances, World as Known,
};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::model::references::{Collecting, Extent};
use falconer::engine::plan::Intent;
use falconer::engine::plan::execute::{Executor, Parts};
use object_store::memory::InMemory;
use proptest::prelude::*;
use prost::Message;
use support::faults::{Faults, Mode, Stores, World};
use support::snapshots::{
    self as lab, Made, NOW, ROOT, Seed, all, collection, family, lab_world, make, objects, roots,
};

// ---- the corpus ----

fn segment(id: i64, collection: i64, dropped_ago_ms: Option<i64>) -> SegmentFacts {
    SegmentFacts {
        id: SegmentId(id),
        collection: CollectionId(collection),
        channel: VChannel("c".into()),
        state: "x".into(),
        dropped: dropped_ago_ms.is_some(),
        dropped_at: dropped_ago_ms.map(|ago| UnixNs((NOW.0 - ago) * 1_000_000)),
        dml: Tso(5),
        from: Vec::new(),
        l0: false,
        rows: 1,
        field_indexes: Vec::new(),
    }
}

fn field_index(kind: FieldIndexKind, field: i64, build: i64, version: i64) -> FieldIndexFacts {
    FieldIndexFacts {
        kind,
        field: FieldId(field),
        build: BuildId(build),
        version,
    }
}

/// Collection 1 has a snapshot of segment 13, which has been read; that of collection 2 has not. Build 50 is a row that is deleted.
fn corpus_world() -> Known {
    let mut facts = Facts {
        now: NOW,
        ..Facts::default()
    };
    let indexes = vec![
        field_index(FieldIndexKind::Text, 101, 7, 3),
        field_index(FieldIndexKind::Json(2), 102, 8, 5),
    ];
    for (id, collection, ago, indexed) in [
        (10, 1, None, true),
        (11, 1, Some(4 * 3_600_000), false),
        (12, 1, Some(3_600_000), false),
        (13, 1, None, true),
        (14, 1, Some(4 * 3_600_000), false),
        (20, 2, None, true),
        (21, 2, Some(4 * 3_600_000), false),
        (30, 3, None, true),
    ] {
        let mut one = segment(id, collection, ago);
        if indexed {
            one.field_indexes.clone_from(&indexes);
        }
        facts.segments.insert(one.id, one);
    }
    facts.served.insert(CollectionId(3));
    facts.borrowed.insert(SegmentId(14), SegmentId(10));
    facts.analyze.insert(TaskId(5), 2);
    facts
        .indexes
        .insert(CollectionId(1), BTreeSet::from([IndexId(1)]));
    facts.deleted_indexes.insert((CollectionId(1), IndexId(2)));
    facts.deleted_indexes.insert((CollectionId(1), IndexId(3)));
    facts.builds.insert(
        BuildId(50),
        BuildFacts {
            build: BuildId(50),
            index: IndexId(2),
            collection: CollectionId(1),
            segment: SegmentId(10),
            finished: true,
            deleted: true,
        },
    );
    let mut refs = Collecting::default();
    refs.segment(SegmentId(13));
    let lob = ObjPath::parse("files", "files/insert_log/9/1/lobs/100/_data/held.vx");
    refs.file(&lob.known().unwrap(), "files");
    for (id, collection, reference) in [
        (1, 1, Reference::Loaded(Arc::new(refs.done(Extent::Files)))),
        (2, 2, Reference::Failed("no such object".into())),
    ] {
        facts.snapshots.push(SnapshotFacts {
            id: SnapshotId(id),
            collection: CollectionId(collection),
            name: "s".into(),
            state: 2,
            pending_since: None,
            pins: Vec::new(),
            reference,
        });
    }
    facts.indexed()
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Collect { rule } => rule.name(),
        Verdict::Keep(holds) => holds.first().map_or("nothing", |h| h.reason.code()),
    }
}

#[test]
fn the_corpus() {
    let world = corpus_world();
    let old = UnixMs(NOW.0 - 30 * 86_400_000);
    for (path, expected) in [
        // An earlier version of the same build goes; its own, a later one, and another build's stay.
        ("text_log/7/2/1/1/10/101/a", "text-index"),
        ("text_log/7/3/1/1/10/101/a", "live"),
        ("text_log/7/4/1/1/10/101/a", "live"),
        ("text_log/6/1/1/1/10/101/a", "live"),
        ("text_log/7/2/1/1/10/999/a", "live"),
        // The path lies about its collection.
        ("text_log/7/2/8/1/10/101/a", "live"),
        ("text_log/7/2/1/1/13/101/a", "snapshot"),
        ("text_log/7/2/2/1/20/101/a", "snapshot-unreadable"),
        ("text_log/7/2/3/1/30/101/a", "loaded"),
        // Defect D65: a tree of an older format goes file by file, or stays.
        ("json_key_index_log/1/1/1/1/10/102/a", "json-index"),
        ("json_key_index_log/1/1/1/1/13/102/a", "snapshot"),
        ("json_key_index_log/1/1/2/1/20/102/a", "snapshot-unreadable"),
        ("json_stats/1/8/9/1/1/10/102/meta.json", "json-stats"),
        ("json_stats/2/8/4/1/1/10/102/meta.json", "json-stats"),
        ("json_stats/2/8/5/1/1/10/102/meta.json", "live"),
        ("json_stats/2/9/4/1/1/10/102/meta.json", "live"),
        ("json_stats/3/8/1/1/1/10/102/meta.json", "live"),
        ("json_stats/1/8/9/1/1/13/102/meta.json", "snapshot"),
        (
            "json_stats/1/8/9/2/1/20/102/meta.json",
            "snapshot-unreadable",
        ),
        ("analyze_stats/5/1/1/1/101/centroids", "analyze-file"),
        ("analyze_stats/5/1/2/1/101/centroids", "snapshot-unreadable"),
        ("analyze_stats/5/2/1/1/101/centroids", "unknown"),
        ("analyze_stats/6/1/1/1/101/centroids", "unknown"),
        // Segments.
        ("insert_log/1/1/10/100/1", "live"),
        ("insert_log/1/1/11/100/1", "dropped-segment"),
        ("bm25_stats/1/1/11/100/1", "dropped-segment"),
        ("insert_log/1/1/11/_data/x.parquet", "dropped-segment"),
        (
            "insert_log/1/1/11/_stats/bloom_filter.100/1",
            "dropped-segment",
        ),
        ("insert_log/1/1/12/100/1", "tolerance"),
        ("insert_log/1/1/13/_data/x.parquet", "snapshot"),
        ("insert_log/1/1/14/100/1", "live"),
        (
            "insert_log/2/1/21/_metadata/manifest-3.avro",
            "snapshot-unreadable",
        ),
        // Nobody's.
        ("insert_log/1/1/99/100/1", "orphan"),
        ("insert_log/2/1/99/100/1", "snapshot-unreadable"),
        ("index_files/77/1/1/99/HNSW_0", "snapshot-unreadable"),
        ("index_v1/1/1/99/77/1/HNSW_0", "orphan"),
        ("insert_log/1/1/lobs/100/_data/a.vx", "unknown"),
        ("insert_log/9/1/lobs/100/_data/held.vx", "snapshot"),
        ("part_stats/1/1/c/7", "unknown"),
        ("wp/1/2", "unknown"),
        ("mine", "unknown"),
        ("insert_log/1/1/11/notes.txt", "unknown"),
    ] {
        let key = ObjectKey(format!("files/{path}"));
        let parsed = ObjPath::parse("files", &key.0);
        let verdict = gc::object(&world, &parsed, &key, old);
        assert_eq!(word(&verdict), expected, "{path}: {verdict:?}");
        // Young, or of no known age, everything without a record of its own stays.
        for modified in [UnixMs(NOW.0 - 3_600_000), UnixMs(0)] {
            let young = gc::object(&world, &parsed, &key, modified);
            let by_record = expected == "dropped-segment";
            assert!(!young.collects() || by_record, "{path}: {young:?}");
        }
    }
    // A segment's tolerance says when it ends.
    let Verdict::Keep(holds) = gc::segment(&world, SegmentId(12)) else {
        panic!("within tolerance");
    };
    let until = UnixMs(NOW.0 - 3_600_000 + 10_800_000);
    assert_eq!(holds[0].until, Some(until), "{holds:?}");
    // Records.
    let index = |id| word(&gc::index(&world, CollectionId(1), IndexId(id)));
    assert_eq!(
        (index(1), index(2), index(3)),
        ("live", "rows-left", "unused-index")
    );
    assert_eq!(word(&gc::build(&world, BuildId(50))), "segment-index");
    // A listing that is too old, or that seems to come from the future, is no ground to delete on.
    assert!(is_fresh(NOW, UnixMs(NOW.0 + LISTING_MS)));
    assert!(!is_fresh(NOW, UnixMs(NOW.0 + LISTING_MS + 1)));
    assert!(!is_fresh(NOW, UnixMs(NOW.0 - 1)));
}

// ---- passes ----

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

async fn run(world: &World, intent: Intent) -> Arc<JobInfo> {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let job = runner.apply(&plan.hash, &typed).await.unwrap();
    let info = runner.ended(job).await.unwrap();
    runner.stop().await;
    info
}

async fn small() -> (World, CollectionId, Made) {
    let all_four = [
        lab::FLUSHED[0],
        lab::FLUSHED[1],
        lab::COMPACTED[0],
        lab::COMPACTED[1],
    ];
    let world = lab::small_seed(&all_four).await.world();
    let (db, of) = collection(&*world.meta, "metrics").await;
    let made = make(&world, db, of, 470_660_334_431_990_001, "nightly", 1).await;
    assert_eq!(made.segments[0].segment_id, lab::FLUSHED[0]);
    (world, of, made)
}

/// Text and JSON indexes in a later version: of the segment that the snapshot holds, and of one that it does not.
#[tokio::test(start_paused = true)]
async fn earlier_versions_of_what_is_in_use_go_unless_a_snapshot_holds_the_segment() {
    let (world, of, _) = small().await;
    let mut partition = 0;
    for (key, mut info) in family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment).await {
        partition = info.partition_id;
        let build = info.id + 1;
        let text = pb::data::TextIndexStats {
            field_id: 101,
            version: 2,
            build_id: build,
            files: vec!["a".into()],
            ..Default::default()
        };
        info.text_stats_logs = BTreeMap::from([(101, text)]);
        let json = pb::data::JsonKeyStats {
            field_id: 102,
            version: 1,
            build_id: build,
            files: vec!["meta.json".into()],
            json_key_stats_data_format: 3,
            ..Default::default()
        };
        info.json_key_stats = BTreeMap::from([(102, json)]);
        lab::put(&*world.meta, &key.to_key(&roots()), info.encode_to_vec()).await;
    }
    let files = |s: i64| {
        let (b, at) = (s + 1, format!("{of}/{partition}/{s}"));
        [
            format!("{ROOT}/text_log/{b}/1/{at}/101/a"),
            format!("{ROOT}/json_key_index_log/{b}/1/{at}/102/a"),
            format!("{ROOT}/json_stats/2/{b}/1/{at}/102/meta.json"),
            format!("{ROOT}/text_log/{b}/2/{at}/101/a"),
            format!("{ROOT}/json_stats/3/{b}/1/{at}/102/meta.json"),
        ]
    };
    let (held, free) = (files(lab::FLUSHED[0]), files(lab::FLUSHED[1]));
    for key in held.iter().chain(&free) {
        lab::put_object(&world, &key.as_str().into(), b"x".to_vec()).await;
    }
    tokio::time::advance(Duration::from_hours(400 * 24)).await;
    let before = objects(&*world.objects).await;
    // Another rule leaves them alone.
    let done = run(&world, pass(&["text-index"])).await;
    assert_eq!(done.state, JobState::Verified, "{:?}", done.error);
    let now = objects(&*world.objects).await;
    assert!(!now.contains_key(&free[0]) && now.contains_key(&free[1]));
    let rules = ["text-index", "json-index", "json-stats"];
    let done = run(&world, pass(&rules)).await;
    assert_eq!(done.state, JobState::Verified, "{:?}", done.error);
    let now = objects(&*world.objects).await;
    let gone: BTreeSet<&String> = before.keys().filter(|k| !now.contains_key(*k)).collect();
    assert_eq!(gone, free[..3].iter().collect());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_definition_goes_after_its_rows_in_one_pass() {
    let (world, of, made) = small().await;
    let (mut definitions, mut rows) = (BTreeSet::new(), BTreeSet::new());
    for (key, mut index) in family::<pb::index::FieldIndex>(&*world.meta, Family::FieldIndex).await
    {
        index.deleted = true;
        let key = key.to_key(&roots());
        lab::put(&*world.meta, &key, index.encode_to_vec()).await;
        definitions.insert(key.text());
    }
    let held: BTreeSet<i64> = made.segments[0]
        .index_files
        .iter()
        .map(|f| f.build_id)
        .collect();
    for (key, row) in family::<pb::index::SegmentIndex>(&*world.meta, Family::SegmentIndex).await {
        if held.contains(&row.build_id) {
            rows.insert(key.to_key(&roots()).text());
        }
    }
    assert!(!definitions.is_empty() && !rows.is_empty());
    let left = async |of_family: Family| -> BTreeSet<String> {
        let prefix = of_family.under(&roots(), &[of.0]);
        let page = world.meta.range_all(&Span::prefix(&prefix)).await.unwrap();
        page.kvs.iter().map(|kv| kv.key.text()).collect()
    };
    let done = run(&world, pass(&["segment-index", "unused-index"])).await;
    assert_eq!(done.state, JobState::Verified, "{:?}", done.error);
    assert_eq!(
        left(Family::SegmentIndex).await,
        rows,
        "what the snapshot holds"
    );
    assert_eq!(left(Family::FieldIndex).await, definitions, "rows are left");
    // The snapshot goes; then the rows, and in the same pass the definitions.
    let kv = world.meta.get(&made.key).await.unwrap().unwrap();
    let mut record = pb::data::SnapshotInfo::decode(kv.value).unwrap();
    record.state = 3;
    lab::put(&*world.meta, &made.key, record.encode_to_vec()).await;
    let done = run(&world, pass(&["segment-index", "unused-index"])).await;
    assert_eq!(done.state, JobState::Verified, "{:?}", done.error);
    assert_eq!(left(Family::SegmentIndex).await, BTreeSet::new());
    assert_eq!(left(Family::FieldIndex).await, BTreeSet::new());
    assert!(
        done.notes.iter().any(|n| n.starts_with("unused-index:")),
        "{:?}",
        done.notes
    );
}

/// A job that another process takes up, with another bucket behind the same name.
#[tokio::test(start_paused = true)]
async fn a_pass_that_is_taken_up_again_makes_sure_of_the_bucket() {
    let mut swept = 0;
    for i in (20..140).step_by(6) {
        let (world, of, _) = small().await;
        for (key, mut info) in family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment).await
        {
            if info.id != lab::FLUSHED[0] {
                info.state = 6;
                info.dropped_at = ((NOW.0 - 4 * 3_600_000) * 1_000_000) as u64;
                info.insert_channel = "gone".into();
            }
            lab::put(&*world.meta, &key.to_key(&roots()), info.encode_to_vec()).await;
        }
        let faults = Faults::at(i, Mode::CrashBefore);
        let stores = world.open(&faults, ROOT);
        let first = async {
            let runner = runner(&stores);
            let plan = runner.plan(pass(&[]), Arc::default()).await?;
            let job = runner.apply(&plan.hash, "collect").await?;
            runner.ended(job).await
        };
        tokio::select! {
            biased;
            () = faults.crashed() => {}
            _ = first => continue,
        }
        drop(stores);
        world.bury().await;
        let jobs = all(&*world.meta, "falconer/by-dev/job").await;
        let begun = jobs.iter().find_map(|(key, value)| {
            let id: i64 = key.split('/').nth(3)?.parse().ok()?;
            let text = String::from_utf8_lossy(value);
            (text.contains("\"cutoff\":") && !text.contains("\"cutoff\":0")).then_some(JobId(id))
        });
        let Some(job) = begun else {
            continue;
        };
        let before = all(&*world.meta, "by-dev/meta").await;
        let left = before
            .keys()
            .filter(|k| k.contains(&format!("/s/{of}/")))
            .count();
        if left == 1 {
            continue;
        }
        let elsewhere = World::new(world.meta.clone(), Arc::new(InMemory::new()), NOW);
        let stores = elsewhere.open(&Faults::none(), ROOT);
        let runner = runner(&stores);
        let done = runner.ended(job).await.unwrap();
        runner.stop().await;
        if done.state == JobState::Verified {
            // Everything was done before the crash.
            continue;
        }
        assert_eq!(done.state, JobState::Failed, "at {i}: {:?}", done.notes);
        let why = done.error.clone().unwrap_or_default();
        assert!(why.contains("minio.bucketName"), "at {i}: {why}");
        assert_eq!(all(&*world.meta, "by-dev/meta").await, before, "at {i}");
        swept += 1;
    }
    assert!(
        swept > 0,
        "no crash fell between the first step and the last"
    );
}

/// A store that forgets its history under the first scans.
struct Forgetful {
    inner: Arc<dyn MetaRead>,
    times: std::sync::atomic::AtomicU32,
}

#[async_trait]
impl MetaRead for Forgetful {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        use std::sync::atomic::Ordering;
        let segments = Span::prefix(&Family::Segment.prefix(&roots()));
        if *span == segments
            && self
                .times
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
        {
            return Err(Error::new(ErrorKind::Compacted, "compacted away"));
        }
        self.inner.range(span, opts).await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        self.inner.watch(span, from).await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.inner.status().await
    }
}

async fn look(stores: &Stores, meta: Arc<dyn MetaRead>) -> Result<Scan> {
    let roots = roots();
    let meta = &MetaReader::new(meta, &Scope::root(stores.clock.clone(), "test"));
    let reads = Reads {
        meta,
        objects: &stores.read,
        roots: &roots,
    };
    let wants = Wants {
        cutoff: NOW,
        tolerances: Tolerances::default(),
        me: None,
        need: Need::All,
    };
    scan(&reads, &Keeper::default(), &*stores.clock, wants).await
}

#[tokio::test(start_paused = true)]
async fn a_scan_over_compacted_history_begins_anew_and_not_for_ever() {
    let world = lab_world().await;
    let stores = world.open(&Faults::none(), ROOT);
    let forgetful = |times: u32| Forgetful {
        inner: stores.meta.clone(),
        times: times.into(),
    };
    let found = look(&stores, Arc::new(forgetful(3))).await.unwrap();
    assert!(found.world.segments.len() > 50);
    let e = look(&stores, Arc::new(forgetful(100))).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Compacted);
}

// ---- random clusters ----

#[derive(Clone, Debug)]
struct Part {
    dropped_ago_ms: Option<i64>,
    row_deleted: bool,
    channel_gone: bool,
}

fn part() -> impl Strategy<Value = Part> {
    let ago = prop_oneof![
        Just(None),
        Just(Some(4 * 3_600_000)),
        (0..20_000_000_i64).prop_map(Some)
    ];
    (ago, any::<bool>(), any::<bool>()).prop_map(|(dropped_ago_ms, row_deleted, channel_gone)| {
        Part {
            dropped_ago_ms,
            row_deleted,
            channel_gone,
        }
    })
}

#[derive(Clone, Debug)]
struct Random {
    parts: Vec<Part>,
    snapshot_state: i32,
    cut_manifest: bool,
    definitions_deleted: bool,
    collection_gone: bool,
    job: bool,
}

fn random() -> impl Strategy<Value = Random> {
    let parts = proptest::collection::vec(part(), 4);
    (
        parts,
        1..4_i32,
        0..4_u8,
        any::<bool>(),
        any::<bool>(),
        0..4_u8,
    )
        .prop_map(
            |(parts, snapshot_state, cut, definitions_deleted, collection_gone, job)| Random {
                parts,
                snapshot_state,
                cut_manifest: cut == 0,
                definitions_deleted,
                collection_gone,
                job: job == 0,
            },
        )
}

async fn shape(world: &World, of: CollectionId, made: &Made, random: &Random) {
    let meta = &*world.meta;
    for (i, (key, mut info)) in family::<pb::data::SegmentInfo>(meta, Family::Segment)
        .await
        .into_iter()
        .enumerate()
    {
        let part = &random.parts[i % random.parts.len()];
        if let Some(ago) = part.dropped_ago_ms {
            info.state = 6;
            info.dropped_at = ((NOW.0 - ago) * 1_000_000) as u64;
        } else {
            info.state = 4;
        }
        if part.channel_gone {
            info.insert_channel = "gone".into();
        }
        lab::put(meta, &key.to_key(&roots()), info.encode_to_vec()).await;
    }
    let rows = family::<pb::index::SegmentIndex>(meta, Family::SegmentIndex).await;
    for (i, (key, mut row)) in rows.into_iter().enumerate() {
        row.deleted = random.parts[i % random.parts.len()].row_deleted;
        lab::put(meta, &key.to_key(&roots()), row.encode_to_vec()).await;
    }
    if random.definitions_deleted {
        for (key, mut index) in family::<pb::index::FieldIndex>(meta, Family::FieldIndex).await {
            index.deleted = true;
            lab::put(meta, &key.to_key(&roots()), index.encode_to_vec()).await;
        }
    }
    let kv = meta.get(&made.key).await.unwrap().unwrap();
    let mut record = pb::data::SnapshotInfo::decode(kv.value).unwrap();
    record.state = random.snapshot_state;
    record.pending_start_time = NOW.0 - 60_000;
    lab::put(meta, &made.key, record.encode_to_vec()).await;
    if random.cut_manifest {
        let key = &made.metadata.manifest_list[0];
        let bytes = objects(&*world.objects).await[key].clone();
        let half = bytes[..bytes.len() / 2].to_vec();
        lab::put_object(world, &key.as_str().into(), half).await;
    }
    if random.collection_gone {
        let keys: Vec<String> = all(meta, "by-dev/meta/root-coord")
            .await
            .into_keys()
            .filter(|k| k.contains(&of.to_string()))
            .collect();
        for key in keys {
            let write = falconer::engine::meta::Write::Delete(key.as_str().into());
            let txn = falconer::engine::meta::Txn {
                conds: vec![],
                writes: vec![write],
            };
            meta.txn(txn).await.unwrap();
        }
    }
    if random.job {
        let job = pb::data::ImportJob {
            job_id: 77,
            collection_id: of.0,
            state: 3,
            ..Default::default()
        };
        let key = Key::ImportJob(JobId(77)).to_key(&roots());
        lab::put(meta, &key, job.encode_to_vec()).await;
    }
}

/// Whether the holds, asked before the pass, allow that this object went.
fn may_go(world: &Known, key: &str) -> bool {
    let parsed = ObjPath::parse(ROOT, key);
    let key = ObjectKey(key.to_owned());
    if gc::object(world, &parsed, &key, UnixMs(1)).collects() {
        return true;
    }
    // The files of a row that nothing needs any more, of a segment that lives on.
    let Some(owner) = parsed.known().map(|path| path.owner()) else {
        return false;
    };
    owner.build.is_some_and(|id| {
        world.builds.contains_key(&id)
            && world.holds_build(id).is_empty()
            && world.held_file(&owner, &key).is_empty()
    })
}

async fn check(random: &Random) {
    static SEED: tokio::sync::OnceCell<(Seed, (CollectionId, Made))> =
        tokio::sync::OnceCell::const_new();
    let (seed, (of, made)) = SEED
        .get_or_init(|| async {
            let four = [
                lab::FLUSHED[0],
                lab::FLUSHED[1],
                lab::COMPACTED[0],
                lab::COMPACTED[1],
            ];
            lab::small_seed(&four)
                .await
                .prepare(async |world: &World| {
                    let (db, of) = collection(&*world.meta, "metrics").await;
                    let id = 470_660_334_431_990_001;
                    (of, make(world, db, of, id, "nightly", 1).await)
                })
                .await
        })
        .await;
    let world = seed.world();
    shape(&world, *of, made, random).await;
    let stores = world.open(&Faults::none(), ROOT);
    let then = look(&stores, stores.meta.clone()).await.unwrap();
    let before: (BTreeMap<String, Bytes>, BTreeMap<String, Bytes>) = (
        all(&*world.meta, "by-dev/").await,
        objects(&*world.objects).await,
    );
    let done = run(&world, pass(&[])).await;
    assert_eq!(
        done.state,
        JobState::Verified,
        "{:?} {:?}",
        done.error,
        done.notes
    );
    let after = (
        all(&*world.meta, "by-dev/").await,
        objects(&*world.objects).await,
    );
    for key in before.1.keys().filter(|k| !after.1.contains_key(*k)) {
        assert!(may_go(&then.world, key), "{key} had a hold");
    }
    for (key, value) in &after.1 {
        assert_eq!(before.1.get(key), Some(value), "{key} was written");
    }
    for key in before.0.keys().filter(|k| !after.0.contains_key(*k)) {
        let allowed = match Key::parse(&roots(), key.as_bytes()).known() {
            Some(Key::Segment(_, _, s) | Key::Log(_, _, _, s, _)) => {
                then.world.holds_segment(s).is_empty()
            }
            Some(Key::SegmentIndex(_, _, s, b)) => {
                then.world.holds_build(b).is_empty() || then.world.holds_segment(s).is_empty()
            }
            Some(Key::Snapshot(_, id)) => then.world.holds_snapshot(id).is_empty(),
            // These wait for others to go first, in the same pass.
            Some(Key::FieldIndex(c, id)) => only(&then.world.holds_index(c, id), Reason::RowsLeft),
            Some(Key::ChannelCheckpoint(v)) => {
                let of = falconer::engine::format::vchannel::collection(&v);
                only(&then.world.holds_checkpoint(&v, of), Reason::SegmentsLeft)
            }
            _ => false,
        };
        assert!(allowed, "{key} had a hold");
    }
    // Without the holds, from the books: what a committed snapshot names is there, whatever else was wrong.
    if random.snapshot_state == 2 {
        for segment in &made.segments {
            let logs = [&segment.binlogs, &segment.statslogs, &segment.deltalogs];
            let logs = logs.into_iter().flatten().flat_map(|f| &f.binlogs);
            let index = segment.index_files.iter().flat_map(|f| &f.index_file_paths);
            for key in logs.map(|b| &b.log_path).chain(index) {
                assert!(after.1.contains_key(key), "{key} is the snapshot's");
            }
        }
    }
}

fn only(holds: &[falconer::engine::model::holds::Hold], reason: Reason) -> bool {
    holds.iter().all(|h| h.reason == reason)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Of random clusters, a whole pass: nothing that `holds` returns is ever deleted.
    #[test]
    fn nothing_that_has_a_hold_is_ever_deleted(random in random()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(check(&random));
    }
}
