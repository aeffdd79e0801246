//! Creating a snapshot of many segments on a real S3 server, against bare PUTs of the same objects, as many at once. What a create
//! does besides (reading the collection, listing what the snapshot refers to, the journal) is in its time; reading everything back
//! afterwards is not, and is told beside it.
//!
//! ```text
//! tools/bench create
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and the hand that fills a bucket writes to it"
)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::support::lab::{self, LabKey};
use common::support::s3::{self, S3};
use common::{list, median, row, runtime, sized};
use falconer::engine::format::keys::{Key, LogKind, Roots};
use falconer::engine::format::wire::Patch;
use falconer::engine::ids::{CollectionId, MetaKey, MetaRev, ObjectKey, SegmentId};
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::jobs::snapshot_create::CreateSnapshot;
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{KeyValue, MetaWriter};
use falconer::engine::model::jobs::JobState;
use falconer::engine::objects::{self, ObjectRead};
use falconer::engine::plan::Intent;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::profile::{ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile};
use futures::TryStreamExt;

const BUCKET: &str = "a-bucket";
const REPEAT: usize = 3;
/// A captured collection, and one of its flushed segments.
const COLLECTION: CollectionId = CollectionId(470_660_334_431_903_094);
const SEGMENT: SegmentId = SegmentId(470_660_334_431_703_183);
/// First id of the segments that are made: above every id of the capture.
const FIRST_ID: i64 = 480_000_000_000_000_000;

fn main() {
    let server = S3::start();
    server.create_bucket(BUCKET);
    let runtime = runtime();
    let segments = sized(10_000, 200);
    let (kvs, keys) = collection(segments);
    let logs = keys
        .iter()
        .map(|key| (&key.0, Bytes::from_static(b"a log")));
    runtime.block_on(server.upload(BUCKET, logs));
    let (mut bare, mut create, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut looks = Vec::new();
    for i in 0..REPEAT {
        // Each cluster gives out ids of its own: the snapshots lie beside each other in the bucket.
        let mut kvs = kvs.clone();
        kvs.push(allocator(i));
        let (runner, read) = runtime.block_on(open(&server, kvs));
        let mut made = None;
        for side in [i % 2, 1 - i % 2] {
            if side == 0 {
                looks.push(runtime.block_on(look(&read, segments)));
                let objects = made.clone().unwrap_or_else(|| vec![1_000; segments + 1]);
                bare.push(runtime.block_on(put(&server, i, &objects)));
            } else {
                let (published, ended) = runtime.block_on(snapshot(&runner, i));
                create.push(published);
                whole.push(ended);
                let sizes = runtime.block_on(sizes(&read));
                assert_eq!(
                    sizes.len(),
                    (segments + 1) * (i + 1),
                    "all manifests and the JSON"
                );
                made = Some(sizes.into_iter().take(segments + 1).collect());
            }
        }
    }
    println!("bare puts {}", list(&bare));
    println!("bare list of what it refers to {}", list(&looks));
    println!("create, until it is committed {}", list(&create));
    println!("create, until it is read back {}", list(&whole));
    let ratio = median(&create).as_secs_f64() / median(&bare).as_secs_f64();
    row(
        &format!("create with {segments} segments on SeaweedFS ÷ bare PUTs, 16 at once"),
        &format!(
            "{ratio:.2} ({:.2} s ÷ {:.2} s; read back after {:.2} s)",
            median(&create).as_secs_f64(),
            median(&bare).as_secs_f64(),
            median(&whole).as_secs_f64(),
        ),
        Some(("≤ 1.2", ratio <= 1.2)),
    );
    let asked = (median(&bare) + median(&looks)).as_secs_f64();
    row(
        "the same ÷ bare PUTs and a bare LIST of what it refers to",
        &format!(
            "{:.2} ({:.2} s ÷ {asked:.2} s, of which LIST {:.2} s)",
            median(&create).as_secs_f64() / asked,
            median(&create).as_secs_f64(),
            median(&looks).as_secs_f64(),
        ),
        None,
    );
}

/// How long the server takes to tell that each object that the snapshot refers to is there.
async fn look(read: &ObjectRead, segments: usize) -> Duration {
    let start = Instant::now();
    let prefix = ObjectKey(format!("files/insert_log/{COLLECTION}"));
    let there: Vec<u64> = read
        .list(&prefix, None)
        .map_ok(|meta| meta.size)
        .try_collect()
        .await
        .expect("a listing");
    assert_eq!(there.len(), segments);
    start.elapsed()
}

/// The captured cluster, the one collection with so many segments instead of its own; and their objects.
fn collection(segments: usize) -> (Vec<KeyValue>, Vec<ObjectKey>) {
    let roots = Roots::default();
    let (mut kvs, mut keys) = (Vec::new(), Vec::new());
    let (mut segment, mut log) = (None, None);
    for k in lab::etcd_without_sessions() {
        match Key::parse(&roots, &k.key).known() {
            Some(Key::Segment(c, p, s)) if c == COLLECTION => {
                if s == SEGMENT {
                    segment = Some((p, k.value));
                }
            }
            Some(Key::Log(kind, c, _, s, field)) if c == COLLECTION => {
                if kind == LogKind::Insert && s == SEGMENT && log.is_none() {
                    log = Some((field, k.value));
                }
            }
            Some(Key::SegmentIndex(c, ..)) if c == COLLECTION => {}
            Some(Key::IdAllocator) => {}
            _ => kvs.push(stored(k)),
        }
    }
    let (partition, segment) = segment.expect("the captured segment");
    let (field, log) = log.expect("its insert log");
    for n in 0..i64::try_from(segments).expect("a small number") {
        let (id, log_id) = (FIRST_ID + 2 * n, FIRST_ID + 2 * n + 1);
        let mut patch = Patch::parse(&segment).expect("a captured segment");
        patch.set_integer(1, id.cast_unsigned());
        let key = Key::Segment(COLLECTION, partition, SegmentId(id));
        kvs.push(made(key.to_bytes(&roots), patch.finish()));
        let mut patch = Patch::parse(&log).expect("a captured log list");
        patch
            .each(2, |log| {
                log.set_integer(6, log_id.cast_unsigned());
                Ok(())
            })
            .expect("a captured log list");
        let key = Key::Log(LogKind::Insert, COLLECTION, partition, SegmentId(id), field);
        kvs.push(made(key.to_bytes(&roots), patch.finish()));
        keys.push(ObjectKey(format!(
            "files/insert_log/{COLLECTION}/{partition}/{id}/{field}/{log_id}"
        )));
    }
    (kvs, keys)
}

/// New ids must lie above those that are made here: an id holds Unix milliseconds above its low 18 bits.
fn allocator(i: usize) -> KeyValue {
    let days = i64::try_from(i).expect("few") + 1;
    let window = ((FIRST_ID >> 18) + days * 86_400_000) * 1_000_000;
    made(
        Key::IdAllocator.to_bytes(&Roots::default()),
        window.to_be_bytes().to_vec(),
    )
}

fn stored(k: LabKey) -> KeyValue {
    made(k.key, k.value)
}

fn made(key: Vec<u8>, value: Vec<u8>) -> KeyValue {
    KeyValue {
        key: MetaKey(Bytes::from(key)),
        value: Bytes::from(value),
        create_rev: MetaRev(1),
        mod_rev: MetaRev(1),
        version: 1,
        lease: 0,
    }
}

async fn open(server: &S3, kvs: Vec<KeyValue>) -> (RunnerHandle, ObjectRead) {
    let (clock, entropy) = (common::clock(), common::entropy());
    let (read, write) = objects::open(&ObjectProfile {
        kind: ObjectKind::S3(S3Profile {
            endpoint: Some(server.url.clone()),
            bucket: BUCKET.to_owned(),
            region: s3::REGION.to_owned(),
            credentials: Some((server.access_key.clone(), server.secret_key.clone().into())),
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        }),
        root: "files".to_owned(),
    })
    .expect("the store");
    let meta = EmbeddedStore::memory_with(clock.clone()).expect("a store in memory");
    meta.load(kvs, None).await.expect("the cluster");
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(Arc::new(meta), &Scope::root(clock.clone(), "test")),
        objects: write,
        roots: Roots::default(),
        clock,
        entropy,
        actor: "bench".to_owned(),
        embedded: true,
    });
    let runner = Runner::start(executor, Registry::default().with(CreateSnapshot));
    (runner, read)
}

/// From the confirmed plan to the committed record, and to the last comparison.
async fn snapshot(runner: &RunnerHandle, i: usize) -> (Duration, Duration) {
    let intent = Intent::CreateSnapshot {
        collection: COLLECTION,
        name: format!("bench_{i}"),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let plan = runner.plan(intent, Arc::default()).await.expect("a plan");
    let failed: Vec<_> = plan.failures().collect();
    assert!(failed.is_empty(), "{failed:?}");
    let start = Instant::now();
    let job = runner.apply(&plan.hash, "").await.expect("the job");
    let mut view = runner.view.clone();
    let published = loop {
        let state = view
            .borrow_and_update()
            .jobs
            .iter()
            .find(|j| j.id == job)
            .map(|j| j.state);
        match state {
            Some(JobState::Completed | JobState::Verified) => break start.elapsed(),
            Some(JobState::Failed | JobState::Cancelled) => panic!("the create failed"),
            _ => view.changed().await.expect("the view"),
        }
    };
    let ended = runner.ended(job).await.expect("the end");
    assert_eq!(ended.state, JobState::Verified, "{:?}", ended.error);
    (published, start.elapsed())
}

/// Sizes of what creates have written.
async fn sizes(read: &ObjectRead) -> Vec<u64> {
    read.list(&"files/snapshots".into(), None)
        .map_ok(|meta| meta.size)
        .try_collect()
        .await
        .expect("a listing")
}

/// The same objects as far as a server can tell: as many, as large, by the plain client.
async fn put(server: &S3, i: usize, sizes: &[u64]) -> Duration {
    let most = sizes.iter().copied().max().unwrap_or_default();
    let noise = Bytes::from(vec![7; usize::try_from(most).expect("a small object")]);
    let objects: Vec<(String, Bytes)> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| {
            let size = usize::try_from(*size).expect("a small object");
            (format!("bare/{i}/{n}.avro"), noise.slice(..size))
        })
        .collect();
    let start = Instant::now();
    server.upload(BUCKET, objects).await;
    start.elapsed()
}
