//! Garbage collection at scale, on real etcd and a real S3 server: planning a pass over a large bucket against the bare LIST of the same
//! bucket with the same client, and the memory that takes for each object; then reading what a thousand snapshots of a thousand segments
//! refer to, against bare GETs of the same objects.
//!
//! ```text
//! tools/bench gc
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and the hand that fills stores writes to them"
)]

mod common;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::cluster::Cluster;
use common::support::lab::LabKey;
use common::support::s3::{self, S3};
use common::support::servers::{Etcd, EtcdVersion};
use common::{list, median, resident, row, runtime, sized};
use falconer::engine::format::keys::{Key, Roots};
use falconer::engine::format::paths::{IndexFile, ObjPath};
use falconer::engine::format::{binlog, manifest, pb, snapshot};
use falconer::engine::ids::{CollectionId, ObjectKey, SegmentId, SnapshotId, UnixMs};
use falconer::engine::jobs::gc::Gc;
use falconer::engine::jobs::planner::Planner;
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::meta::MetaReader;
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::model::references::{Extent, Record};
use falconer::engine::objects::{self, ObjectRead};
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::{
    EtcdProfile, ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile,
};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;

const BUCKET: &str = "a-bucket";
const ROOT: &str = "files";
const REPEAT: usize = 3;
/// Every so many segments one is dropped, long ago.
const DROPPED: usize = 10;
/// GETs at once on both sides.
const GETS: usize = 16;
/// Endpoints for the child process that measures memory: etcd's and the bucket's.
const CHILD: &str = "FALCONER_BENCH_GC_CHILD";

fn main() {
    if let Ok(endpoints) = std::env::var(CHILD) {
        let (etcd, bucket) = endpoints.split_once(' ').expect("two endpoints");
        return memory_of_a_plan(etcd, bucket);
    }
    let (etcd, server) = (Etcd::start(EtcdVersion::V35), S3::start());
    server.create_bucket(BUCKET);
    let runtime = runtime();
    let filling = Instant::now();
    let (segments, count, dropped) = runtime.block_on(fill(&etcd, &server));
    println!(
        "{segments} segments, {count} objects, {dropped} of them of dropped segments, stored in {:.0} s",
        filling.elapsed().as_secs_f64()
    );
    plan(&runtime, &etcd, &server, count, dropped);
    references(&runtime, &server);
}

fn store(endpoint: &str) -> ObjectRead {
    let (read, _) = objects::open(&ObjectProfile {
        kind: ObjectKind::S3(S3Profile {
            endpoint: Some(endpoint.to_owned()),
            bucket: BUCKET.to_owned(),
            region: s3::REGION.to_owned(),
            credentials: Some((s3::ACCESS_KEY.to_owned(), s3::SECRET_KEY.to_owned().into())),
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        }),
        root: ROOT.to_owned(),
    })
    .expect("the store");
    read
}

/// The objects that a segment's keys name.
fn named(keys: &[LabKey]) -> Vec<ObjectKey> {
    let mut out = Vec::new();
    for LabKey { key, value, .. } in keys {
        match Key::parse(&Roots::default(), key).known() {
            Some(Key::Log(kind, c, p, s, _)) => {
                let log = pb::data::FieldBinlog::decode(value.as_slice()).expect("a log record");
                let paths = binlog::objects(kind, (c, p, s), &log).expect("log ids");
                out.extend(paths.iter().map(|(path, _)| path.to_key(ROOT)));
            }
            Some(Key::SegmentIndex(_, p, s, build)) => {
                let row = pb::index::SegmentIndex::decode(value.as_slice()).expect("an index row");
                out.extend(row.index_file_keys.into_iter().map(|file| {
                    ObjPath::IndexFile(IndexFile {
                        build,
                        version: row.index_version,
                        partition: p,
                        segment: s,
                        file,
                    })
                    .to_key(ROOT)
                }));
            }
            _ => {}
        }
    }
    out
}

/// Fills both stores. Answers the numbers of segments, of objects, and of objects of dropped segments.
async fn fill(etcd: &Etcd, server: &S3) -> (usize, usize, usize) {
    let cluster = Cluster::read();
    etcd.load(&Cluster::base()).await;
    let wanted = sized(1_000_000, 12_000);
    let (mut segments, mut count, mut dropped) = (0, 0, 0);
    let body = Bytes::from_static(b"x");
    while count < wanted {
        let (mut keys, mut files) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let mut mine = cluster.segment(segments, true);
            let names = named(&mine);
            let is_dropped = segments.is_multiple_of(DROPPED);
            set_state(&mut mine, is_dropped);
            if is_dropped {
                dropped += names.len();
            }
            files.extend(names);
            keys.extend(mine);
            segments += 1;
        }
        for some in keys.chunks(1_000) {
            etcd.load(some).await;
        }
        count += files.len();
        let files: Vec<String> = files.into_iter().map(|key| key.0).collect();
        server
            .upload(BUCKET, files.iter().map(|key| (key, body.clone())))
            .await;
    }
    (segments, count, dropped)
}

/// Flushed, or dropped long ago. Some of the captured ones are dropped themselves.
fn set_state(keys: &mut [LabKey], is_dropped: bool) {
    for LabKey { key, value, .. } in keys {
        if let Some(Key::Segment(..)) = Key::parse(&Roots::default(), key).known() {
            let mut info = pb::data::SegmentInfo::decode(value.as_slice()).expect("a segment");
            info.state = if is_dropped { 6 } else { 4 };
            info.dropped_at = if is_dropped {
                1_600_000_000_000_000_000
            } else {
                0
            };
            // Of a channel that is gone: its checkpoint is not in the way. Of no parents: nor is a child without an index.
            "gone".clone_into(&mut info.insert_channel);
            info.compaction_from.clear();
            *value = info.encode_to_vec();
        }
    }
}

async fn planner(etcd: &str, objects: ObjectRead) -> Planner {
    let profile = EtcdProfile::plain([etcd]);
    let meta = EtcdStore::connect(&profile, common::clock())
        .await
        .expect("etcd");
    Planner::new(
        MetaReader::new(Arc::new(meta), &Scope::root(common::clock(), "bench")),
        Some(objects),
        Roots::default(),
        common::clock(),
        Registry::default().with(Gc::default()),
    )
}

async fn planned(planner: &Planner) -> (Plan, Duration) {
    let start = Instant::now();
    let intent = Intent::Gc {
        collection: None,
        rules: BTreeSet::new(),
        quarantine: false,
    };
    let plan = planner.plan(&intent, Arc::default()).await.expect("a plan");
    (plan, start.elapsed())
}

async fn bare_list(store: &ObjectRead) -> (usize, Duration) {
    let start = Instant::now();
    let mut listed = store.list(&ROOT.into(), None);
    let mut count = 0;
    while listed.try_next().await.expect("a listing").is_some() {
        count += 1;
    }
    (count, start.elapsed())
}

fn plan(runtime: &tokio::runtime::Runtime, etcd: &Etcd, server: &S3, count: usize, dropped: usize) {
    let store = store(&server.url);
    let planner = runtime.block_on(planner(&etcd.endpoint(), store.clone()));
    let (mut bare, mut plans, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REPEAT {
        let (there, took) = runtime.block_on(bare_list(&store));
        assert_eq!(there, count, "the bare listing sees every object");
        bare.push(took);
        let (plan, took) = runtime.block_on(planned(&planner));
        assert_eq!(
            plan.objects.deletes as usize, dropped,
            "{:?}",
            plan.warnings
        );
        plans.push(took);
        ratios.push(took.as_secs_f64() / bare[bare.len() - 1].as_secs_f64());
    }
    println!("bare LIST {}", list(&bare));
    println!("gc plan   {}", list(&plans));
    let ratio = median(&plans).as_secs_f64() / median(&bare).as_secs_f64();
    ratios.sort_by(f64::total_cmp);
    row(
        &format!("gc plan over {count} objects on SeaweedFS, records in etcd 3.5 ÷ bare LIST"),
        &format!(
            "{ratio:.2} ({:.2} s ÷ {:.2} s; pairs {:.2} to {:.2})",
            median(&plans).as_secs_f64(),
            median(&bare).as_secs_f64(),
            ratios[0],
            ratios[ratios.len() - 1],
        ),
        Some(("≤ 1.3", ratio <= 1.3)),
    );
    let exe = std::env::current_exe().expect("this program");
    let out = Command::new(exe)
        .env(CHILD, format!("{} {}", etcd.endpoint(), server.url))
        .output()
        .expect("a child process");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "the child failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let grown: u64 = text.trim().parse().expect("a number");
    let each = grown as f64 / count as f64;
    row(
        "memory of a gc plan at its peak, an object",
        &format!("{each:.0} bytes ({} MiB for {count})", grown >> 20),
        Some(("≤ 200 bytes", each <= 200.0)),
    );
}

/// Prints how much more is resident at the peak of a plan than before it.
fn memory_of_a_plan(etcd: &str, bucket: &str) {
    let runtime = runtime();
    let planner = runtime.block_on(planner(etcd, store(bucket)));
    let before = resident();
    let stop = Arc::new(AtomicBool::new(false));
    let watch = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut peak = 0;
            while !stop.load(Ordering::Relaxed) {
                peak = peak.max(resident());
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        })
    };
    runtime.block_on(planned(&planner));
    stop.store(true, Ordering::Relaxed);
    let peak = watch.join().expect("the watching thread");
    println!("{}", peak.saturating_sub(before));
}

// ---- what snapshots refer to --------------------------------------------------------------------------------------

/// Snapshots share their manifests here: a thousand times the same thousand objects are asked for.
fn references(runtime: &tokio::runtime::Runtime, server: &S3) {
    let (snapshots, segments) = (sized(1_000, 20), sized(1_000, 50));
    let records = runtime.block_on(store_snapshots(server, snapshots, segments));
    let store = store(&server.url);
    let jsons: Vec<ObjectKey> = records
        .iter()
        .map(|r| ObjectKey(r.location.to_string()))
        .collect();
    let (keeper, before) = (Keeper::default(), resident());
    let bare = runtime.block_on(bare_get(&store, &jsons));
    let ids = runtime.block_on(load(&keeper, &store, &records, Extent::Ids));
    row(
        &format!("ids of {snapshots} snapshots of {segments} segments ÷ bare GET of their JSON"),
        &format!(
            "{:.2} ({:.2} s ÷ {:.2} s)",
            ids.as_secs_f64() / bare.as_secs_f64(),
            ids.as_secs_f64(),
            bare.as_secs_f64()
        ),
        None,
    );
    let index = keeper.now();
    row(
        &format!("memory of {snapshots} × {segments} references"),
        &format!(
            "{:.1} bytes a segment ({} KiB; resident {} KiB more)",
            index.heap_bytes() as f64 / (snapshots * segments) as f64,
            index.heap_bytes() >> 10,
            resident().saturating_sub(before) >> 10
        ),
        None,
    );
    let some = &records[..sized(50, 5)];
    let manifests: Vec<ObjectKey> = (0..segments)
        .map(|i| manifest_key(segment(i)))
        .cycle()
        .take(segments * some.len())
        .collect();
    let bare = runtime.block_on(bare_get(&store, &manifests));
    let files = runtime.block_on(load(&keeper, &store, some, Extent::Files));
    row(
        &format!(
            "manifests of {} snapshots of {segments} segments ÷ bare GET of them, {GETS} at once",
            some.len()
        ),
        &format!(
            "{:.2} ({:.2} s ÷ {:.2} s, {:.0} manifests a second)",
            files.as_secs_f64() / bare.as_secs_f64(),
            files.as_secs_f64(),
            bare.as_secs_f64(),
            manifests.len() as f64 / files.as_secs_f64()
        ),
        None,
    );
}

const OF: CollectionId = CollectionId(461_100_000_000_000_001);

fn segment(i: usize) -> SegmentId {
    SegmentId(461_100_000_000_000_100 + i64::try_from(i).expect("a small number"))
}

fn manifest_key(id: SegmentId) -> ObjectKey {
    snapshot::manifest_key(ROOT, OF, SnapshotId(1), id)
}

async fn store_snapshots(server: &S3, snapshots: usize, segments: usize) -> Vec<Record> {
    let described: Vec<pb::data::SegmentDescription> = (0..segments).map(described).collect();
    let manifests: Vec<(String, Bytes)> = described
        .iter()
        .map(|s| {
            let bytes = manifest::write_v4(s).expect("a manifest");
            (manifest_key(SegmentId(s.segment_id)).0, bytes.into())
        })
        .collect();
    server
        .upload(BUCKET, manifests.iter().map(|(k, b)| (k, b.clone())))
        .await;
    let builds = snapshot::build_ids(&described);
    let mut records = Vec::new();
    for n in 0..snapshots {
        let id = SnapshotId(461_100_000_000_900_000 + i64::try_from(n).expect("a small number"));
        let metadata = pb::data::SnapshotMetadata {
            format_version: 4,
            snapshot_info: Some(pb::data::SnapshotInfo {
                id: id.0,
                name: format!("s{n}"),
                collection_id: OF.0,
                state: pb::data::SnapshotState::Pending as i32,
                pending_start_time: 1,
                ..Default::default()
            }),
            collection: Some(pb::data::CollectionDescription::default()),
            manifest_list: manifests.iter().map(|(key, _)| key.clone()).collect(),
            segment_ids: described.iter().map(|s| s.segment_id).collect(),
            build_ids: builds.iter().map(|b| b.0).collect(),
            layout: pb::data::SnapshotLayout::Referenced as i32,
            ..Default::default()
        };
        let key = snapshot::metadata_key(ROOT, OF, id);
        let bytes: Bytes = snapshot::write_metadata(&metadata)
            .expect("metadata")
            .into();
        server.upload(BUCKET, [(&key.0, bytes)]).await;
        records.push(Record {
            id,
            collection: OF,
            name: format!("s{n}").into(),
            location: key.0.into(),
        });
    }
    records
}

/// Ten insert logs, one of statistics, one index of three files.
fn described(i: usize) -> pb::data::SegmentDescription {
    let (p, s) = (461_100_000_000_000_002, segment(i).0);
    let log = |kind: &str, field: i64, id: i64| pb::data::FieldBinlog {
        field_id: field,
        binlogs: vec![pb::data::Binlog {
            log_path: format!("{ROOT}/{kind}/{OF}/{p}/{s}/{field}/{id}"),
            log_id: id,
            entries_num: 1_000,
            ..Default::default()
        }],
        ..Default::default()
    };
    let build = s + 1_000_000;
    pb::data::SegmentDescription {
        segment_id: s,
        partition_id: p,
        channel_name: format!("by-dev-rootcoord-dml_0_{OF}v0"),
        num_of_rows: 1_000,
        binlogs: (100..110).map(|f| log("insert_log", f, s + f)).collect(),
        statslogs: vec![log("stats_log", 100, 1)],
        index_files: vec![pb::index::IndexFilePathInfo {
            segment_id: s,
            field_id: 101,
            build_id: build,
            index_file_paths: (0..3)
                .map(|n| format!("{ROOT}/index_files/{build}/1/{p}/{s}/HNSW_{n}"))
                .collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

async fn load(keeper: &Keeper, store: &ObjectRead, records: &[Record], extent: Extent) -> Duration {
    let start = Instant::now();
    let wanted = records.iter().map(|r| (r.clone(), extent)).collect();
    keeper
        .read(store, wanted, UnixMs(1))
        .await
        .expect("every snapshot");
    let took = start.elapsed();
    let index = keeper.now();
    for record in records {
        let entry = index.get(record.id).expect("it was read");
        assert!(entry.blocks_since().is_none(), "{:?}", entry.status);
    }
    took
}

async fn bare_get(store: &ObjectRead, keys: &[ObjectKey]) -> Duration {
    let start = Instant::now();
    let bytes: usize = stream::iter(keys)
        .map(|key| async move { store.get(key).await.map(|b| b.len()) })
        .buffer_unordered(GETS)
        .try_fold(0, |sum, n| async move { Ok(sum + n) })
        .await
        .expect("every object");
    assert!(bytes > 0);
    start.elapsed()
}
