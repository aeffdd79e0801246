//! What a restore makes sure of: its source is known whole and kept while it is read, every shape of file goes where it belongs in a real
//! run, nothing is shown before the end, what is shown is read back, and what is taken back is taken back by its id.

#![allow(
    clippy::disallowed_methods,
    reason = "what changes in the bucket and in time changes past the engine"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::format::keys::{Family, Key, LogKind};
use falconer::engine::format::{manifest, pb, snapshot};
use falconer::engine::ids::{
    CollectionId, DbId, JobId, MetaKey, ObjectKey, SegmentId, SnapshotId, UnixMs,
};
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore::Restore;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::jobs::snapshot_create::CreateSnapshot;
use falconer::engine::jobs::snapshot_verify::VerifySnapshot;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWriter, Txn, Write};
use falconer::engine::model::facts::Reference;
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::model::references::{Collecting, Extent, Record};
use falconer::engine::objects::{ObjectRead, PutMode, open};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::{ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile};
use futures::TryStreamExt;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use prost::Message;
use sha2::{Digest, Sha256};
use support::faults::{Faults, Mode, Stores, World};
use support::mem::MemStore;
use support::s3;
use support::same::{same, unpinned};
use support::snapshots::{
    self as lab, ETCD, Made, NOW, ROOT, SMALL, all, collection, family, make, objects, roots,
};
use support::storage;

const SNAPSHOT: i64 = 470_660_334_431_990_001;

fn runner(stores: &Stores, seed: u64, keeper: &Keeper) -> RunnerHandle {
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(seed)),
        actor: format!("tester{seed}@here pid {seed}"),
        embedded: true,
    });
    let registry = Registry::default()
        .with(Restore::new(keeper.clone()))
        .with(CreateSnapshot)
        .with(VerifySnapshot);
    Runner::start(executor, registry)
}

fn process(world: &World, seed: u64) -> RunnerHandle {
    let stores = world.open(&Faults::none(), ROOT);
    runner(&stores, seed, &Keeper::default())
}

fn intent(snapshot: i64, name: &str) -> Intent {
    Intent::Restore {
        snapshot: SnapshotId(snapshot),
        database: "default".into(),
        collection: name.into(),
    }
}

async fn begin(runner: &RunnerHandle, intent: Intent) -> JobId {
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    assert!(plan.applicable(), "{:?}", failures(&plan));
    runner.apply(&plan.hash, "").await.unwrap()
}

fn failures(plan: &Plan) -> Vec<String> {
    let why = |c: &falconer::engine::plan::Check| c.failed.clone().unwrap();
    plan.failures()
        .map(|c| format!("{}: {}", c.name, why(c)))
        .collect()
}

fn detail<'a>(plan: &'a Plan, check: &str) -> &'a str {
    let found = plan.checks.iter().find(|c| c.name == check);
    &found.unwrap_or_else(|| panic!("{check}: {plan:?}")).detail
}

async fn seen(
    runner: &RunnerHandle,
    job: JobId,
    what: &str,
    is: impl Fn(&JobInfo) -> bool,
) -> Arc<JobInfo> {
    let mut view = runner.view.clone();
    let waiting = async {
        loop {
            let found = view
                .borrow_and_update()
                .jobs
                .iter()
                .find(|j| j.id == job)
                .cloned();
            match found {
                Some(info) if is(&info) => return info,
                _ => view.changed().await.unwrap(),
            }
        }
    };
    match tokio::time::timeout(Duration::from_mins(10), waiting).await {
        Ok(info) => info,
        Err(late) => panic!("{what} not seen, {late}: {:?}", runner.view.borrow().jobs),
    }
}

/// Two segments with deletes and index files, and a snapshot of them that Milvus made.
async fn small_world() -> (World, Made) {
    let world = lab::small_seed(&lab::FLUSHED).await.world();
    let (db, of) = collection(&*world.meta, "metrics").await;
    let key = Key::Collection(db, of).to_key(&roots());
    let kv = world.meta.get(&key).await.unwrap().unwrap();
    let mut info = pb::etcd::CollectionInfo::decode(kv.value).unwrap();
    info.properties = vec![pb::common::KeyValuePair {
        key: "collection.ttl.seconds".into(),
        value: "3600".into(),
    }];
    lab::put(&*world.meta, &key, info.encode_to_vec()).await;
    let made = make(&world, db, of, SNAPSHOT, "nightly", 2).await;
    (world, made)
}

async fn record(world: &World, made: &Made) -> pb::data::SnapshotInfo {
    let kv = world.meta.get(&made.key).await.unwrap().unwrap();
    pb::data::SnapshotInfo::decode(kv.value).unwrap()
}

// ---- the reference index ----

const REFERENCES: &str = "references of the snapshot are loaded";

#[tokio::test(start_paused = true)]
async fn a_source_whose_references_are_not_known_is_refused_with_the_reason() {
    let (world, made) = small_world().await;
    let keeper = Keeper::default();
    let stores = world.open(&Faults::none(), ROOT);
    let one = runner(&stores, 1, &keeper);
    let of = Record::of(&record(&world, &made).await);
    assert_eq!(keeper.reference(&of), Reference::NotLoaded);
    let key = made.metadata.manifest_list[1].clone();
    let whole = objects(&*world.objects).await[&key].clone();
    lab::put_object(&world, &key.as_str().into(), whole[..9].to_vec()).await;
    let plan = one
        .plan(intent(SNAPSHOT, "copied"), Arc::default())
        .await
        .unwrap();
    let said = failures(&plan);
    assert!(
        said.len() == 1 && said[0].starts_with(REFERENCES) && said[0].contains(&key),
        "{said:?}"
    );
    assert!(!plan.applicable());
    // Whoever collects garbage in this process knows it too: nothing of the collection goes.
    let Reference::Failed(why) = keeper.reference(&of) else {
        panic!("{:?}", keeper.reference(&of));
    };
    assert!(why.contains(&key), "{why}");
    assert!(keeper.now().blocked().contains_key(&made.of));

    // Whole again: it is read anew, and the index holds all that the snapshot refers to.
    lab::put_object(&world, &key.as_str().into(), whole.to_vec()).await;
    let plan = one
        .plan(intent(SNAPSHOT, "copied"), Arc::default())
        .await
        .unwrap();
    let builds: BTreeSet<i64> = made.metadata.build_ids.iter().copied().collect();
    let files = lab::named(&made).len();
    assert_eq!(
        detail(&plan, REFERENCES),
        format!(
            "format version 4: 2 segments, {} builds, {files} files",
            builds.len()
        )
    );
    let Reference::Loaded(refs) = keeper.reference(&of) else {
        panic!("{:?}", keeper.reference(&of));
    };
    let own = falconer::engine::jobs::references::read(&stores.read, &of, Extent::Files)
        .await
        .unwrap();
    assert_eq!(*refs, own, "what a restore reads is what the index reads");
    assert!(keeper.now().blocked().is_empty());
    one.stop().await;
}

/// References of a snapshot of another collection to these segments.
fn refer(keeper: &Keeper, segments: &[i64]) {
    let other = Record {
        id: SnapshotId(77),
        collection: CollectionId(7),
        name: "elsewhere".into(),
        location: "files/snapshots/7/metadata/77.json".into(),
    };
    let mut all = Collecting::default();
    for id in segments {
        all.segment(SegmentId(*id));
    }
    keeper.took(&other, Ok(all.done(Extent::Files)), NOW);
}

#[tokio::test(start_paused = true)]
async fn ids_and_objects_that_a_snapshot_refers_to_are_left_alone() {
    // The ids that a run takes here are those that it takes in the same world again.
    let (world, _) = small_world().await;
    let one = process(&world, 1);
    let job = begin(&one, intent(SNAPSHOT, "copied")).await;
    let info = one.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    one.stop().await;
    let target = info.collection.unwrap();
    let pairs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    let copy = pairs[0].1.id_mappings[1].target_segment_id;

    // An allocator that was set back gives ids twice: nothing is written under them.
    let (world, made) = small_world().await;
    let before = objects(&*world.objects).await;
    let keeper = Keeper::default();
    refer(&keeper, &[3, copy]);
    let stores = world.open(&Faults::none(), ROOT);
    let one = runner(&stores, 1, &keeper);
    let job = begin(&one, intent(SNAPSHOT, "copied")).await;
    let info = one.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Failed, "{info:?}");
    let error = info.error.clone().unwrap();
    assert!(
        error.contains("elsewhere (77)") && error.contains("set back"),
        "{error}"
    );
    assert_eq!(objects(&*world.objects).await, before);
    unpinned(&world, &made, "refused").await;
    one.stop().await;

    // What turns out to be referred to while a restore runs stays when it is taken back, and only that.
    let (world, made) = small_world().await;
    let keeper = Keeper::default();
    let stores = world.open(&Faults::none(), ROOT);
    let one = runner(&stores, 1, &keeper);
    let job = begin(&one, intent(SNAPSHOT, "copied")).await;
    one.throttle(job, Some(40_000)).unwrap();
    let mine = |key: &str, segment: i64| key.contains(&segment.to_string());
    let ours = loop {
        let now = objects(&*world.objects).await;
        let new: BTreeSet<String> = now
            .into_keys()
            .filter(|k| !before.contains_key(k))
            .collect();
        if new.iter().any(|k| mine(k, copy)) && new.iter().any(|k| !mine(k, copy)) {
            break new;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    refer(&keeper, &[3, copy]);
    one.cancel(job).unwrap();
    let info = one.ended(job).await.unwrap();
    let said = info.notes.join("\n");
    assert!(
        said.contains("undo: left behind") && said.contains("elsewhere (77)"),
        "{said}"
    );
    let left: BTreeSet<String> = objects(&*world.objects)
        .await
        .into_keys()
        .filter(|k| !before.contains_key(k))
        .collect();
    assert!(
        !left.is_empty() && left.iter().all(|k| mine(k, copy)),
        "{left:?}"
    );
    let kept: BTreeSet<&String> = ours.iter().filter(|k| mine(k, copy)).collect();
    assert!(kept.iter().all(|k| left.contains(*k)), "{kept:?} {left:?}");
    // Everything else is taken back all the same.
    let records = all(&*world.meta, "by-dev/meta").await;
    let odd: Vec<&String> = records
        .keys()
        .filter(|k| k.contains(&target.to_string()))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    unpinned(&world, &made, "taken back").await;
    one.stop().await;
}

// ---- the source is what it was ----

/// A store whose entity tags are checksums, as those of a server are.
struct Summed(Arc<dyn ObjectStore>);

impl fmt::Debug for Summed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Summed")
    }
}

impl fmt::Display for Summed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Summed")
    }
}

async fn summed(inner: &dyn ObjectStore, meta: ObjectMeta) -> object_store::Result<ObjectMeta> {
    let bytes = inner.get(&meta.location).await?.bytes().await?;
    let digest = Sha256::digest(&bytes);
    let tag = digest[..16].iter().map(|b| format!("{b:02x}"));
    Ok(ObjectMeta {
        e_tag: Some(format!("\"{}\"", tag.collect::<String>())),
        ..meta
    })
}

#[async_trait]
impl ObjectStore for Summed {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.0.put_opts(at, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let mut got = self.0.get_opts(at, options).await?;
        got.meta = summed(&*self.0, got.meta).await?;
        Ok(got)
    }

    async fn get_ranges(
        &self,
        at: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.0.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let inner = self.0.clone();
        self.0
            .list(prefix)
            .and_then(move |meta| {
                let inner = inner.clone();
                async move { summed(&*inner, meta).await }
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

const WHOLE: &str = "the snapshot is whole";

/// Defects D46 and D47: an index file and a delete log that were damaged after the snapshot was made.
#[tokio::test(start_paused = true)]
async fn a_damaged_index_file_or_delete_log_is_never_restored() {
    let world = lab::small_seed(&lab::FLUSHED).await.world();
    let world = World::new(
        world.meta.clone(),
        Arc::new(Summed(world.objects.clone())),
        NOW,
    );
    let one = process(&world, 1);
    let create = Intent::CreateSnapshot {
        collection: SMALL,
        name: "whole".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let job = begin(&one, create).await;
    let info = one.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    let id = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await[0]
        .1
        .id;
    let planned = async |name: &str| one.plan(intent(id, name), Arc::default()).await.unwrap();
    let plan = planned("copied").await;
    assert!(plan.applicable(), "{:?}", failures(&plan));
    let said = detail(&plan, WHOLE);
    assert!(
        said.starts_with("each segment is as its maker noted; found whole at "),
        "{said}"
    );
    let before = objects(&*world.objects).await;
    let segment = lab::FLUSHED[0].to_string();
    let of_kind = |kind: &str| {
        let mine = |k: &&String| k.contains(kind) && k.contains(&segment);
        before.keys().find(mine).unwrap().clone()
    };
    for kind in ["index_files/", "delta_log/"] {
        let key = of_kind(kind);
        let bytes = before[&key].to_vec();
        let mut flipped = bytes.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        for (what, damaged) in [("cut", bytes[..last].to_vec()), ("one bit", flipped)] {
            lab::put_object(&world, &key.as_str().into(), damaged).await;
            let plan = planned("copied").await;
            let said = failures(&plan);
            assert!(
                said.len() == 1 && said[0].starts_with(WHOLE) && said[0].contains(&segment),
                "{what} of {key}: {said:?}"
            );
        }
        lab::put_object(&world, &key.as_str().into(), bytes).await;
        assert!(planned("copied").await.applicable(), "{key} is whole again");
    }
    // In a bucket that makes checksums otherwise they say nothing; sizes still do.
    let elsewhere = World::new(
        world.meta.clone(),
        Arc::new(object_store::memory::InMemory::new()),
        NOW,
    );
    for (key, bytes) in &before {
        lab::put_object(&elsewhere, &key.as_str().into(), bytes.to_vec()).await;
    }
    let two = process(&elsewhere, 2);
    let plan = two
        .plan(intent(id, "copied"), Arc::default())
        .await
        .unwrap();
    let said = failures(&plan);
    assert!(!said.iter().any(|f| f.starts_with(WHOLE)), "{said:?}");
    two.stop().await;

    // What a verification found stands in the way until another one finds it mended.
    let key = of_kind("insert_log/");
    let bytes = before[&key].to_vec();
    lab::put_object(&world, &key.as_str().into(), vec![7; bytes.len()]).await;
    let verify = Intent::VerifySnapshot {
        snapshot: SnapshotId(id),
        deep: true,
    };
    let job = begin(&one, verify.clone()).await;
    assert_eq!(one.ended(job).await.unwrap().state, JobState::Failed);
    lab::put_object(&world, &key.as_str().into(), bytes).await;
    let plan = planned("copied").await;
    let said = failures(&plan);
    assert!(
        said.len() == 1 && said[0].starts_with(WHOLE) && said[0].contains("verify it again"),
        "{said:?}"
    );
    let job = begin(&one, verify).await;
    assert_eq!(one.ended(job).await.unwrap().state, JobState::Verified);
    assert!(planned("copied").await.applicable());
    one.stop().await;
}

/// The same bucket of a real server under two names of that server (defect D52): which one a snapshot was made through does not matter.
/// The server's own checksums tell one flipped bit.
#[tokio::test]
async fn the_same_bucket_under_another_name_of_its_server_is_the_same_bucket() {
    let server = s3::shared();
    server.create_bucket("two-names");
    let seed = lab::small_seed(&lab::FLUSHED).await.world();
    let through = |host: &str| {
        let kind = ObjectKind::S3(S3Profile {
            endpoint: Some(server.url.replace("127.0.0.1", host)),
            bucket: "two-names".into(),
            region: String::new(),
            credentials: Some((s3::ACCESS_KEY.to_owned(), s3::SECRET_KEY.into())),
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        });
        let root = ROOT.to_owned();
        let (read, write) = open(&ObjectProfile { kind, root }).unwrap();
        Stores {
            read,
            write,
            ..seed.open(&Faults::none(), ROOT)
        }
    };
    let (one, other) = (through("127.0.0.1"), through("localhost"));
    assert_ne!(one.read.describe(), other.read.describe());
    for (key, bytes) in objects(&*seed.objects).await {
        let key = key.as_str().into();
        one.write
            .put(&key, bytes, PutMode::Overwrite)
            .await
            .unwrap();
    }
    let first = runner(&one, 1, &Keeper::default());
    let create = Intent::CreateSnapshot {
        collection: SMALL,
        name: "whole".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let job = begin(&first, create).await;
    let info = first.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    first.stop().await;
    let id = family::<pb::data::SnapshotInfo>(&*seed.meta, Family::Snapshot).await[0]
        .1
        .id;
    let second = runner(&other, 2, &Keeper::default());
    let job = begin(&second, intent(id, "copied")).await;
    let info = second.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    let key = listed(&other.read, ROOT)
        .await
        .into_iter()
        .find(|k| k.contains("delta_log/") && k.contains(&lab::FLUSHED[0].to_string()))
        .unwrap();
    let key: ObjectKey = key.as_str().into();
    let mut bytes = other.read.get(&key).await.unwrap().to_vec();
    bytes[0] ^= 1;
    let damaged = bytes.into();
    other
        .write
        .put(&key, damaged, PutMode::Overwrite)
        .await
        .unwrap();
    let plan = second
        .plan(intent(id, "again"), Arc::default())
        .await
        .unwrap();
    let said = failures(&plan);
    assert!(
        said.len() == 1 && said[0].starts_with(WHOLE) && said[0].contains("checksum"),
        "{said:?}"
    );
    second.stop().await;
}

// ---- the pin ----

#[tokio::test(start_paused = true)]
async fn the_pin_is_renewed_for_as_long_as_anything_is_copied() {
    let (world, made) = small_world().await;
    // One object that takes longer than a pin lasts.
    let slow = Arc::new(Slow {
        inner: world.objects.clone(),
        victim: made.segments[0].binlogs[0].binlogs[0].log_path.clone(),
        takes: Duration::from_mins(150),
    });
    let world = World::new(world.meta.clone(), slow, NOW);
    let one = process(&world, 1);
    let job = begin(&one, intent(SNAPSHOT, "copied")).await;
    seen(&one, job, "copies", |j| j.progress.files.0 > 3).await;
    let mut ends = BTreeSet::new();
    let mut ids = BTreeSet::new();
    loop {
        let info = one.view.borrow().jobs.iter().find(|j| j.id == job).cloned();
        if info.is_some_and(|j| j.state.ended()) {
            break;
        }
        let record = record(&world, &made).await;
        let [pin] = record.pin_ids[..] else {
            // Between its release and the end of the job.
            break;
        };
        let now = world.clock_now();
        let until = UnixMs(record.pin_expire_at_ms[&pin]);
        let left = until.0 - now.0;
        assert!(
            (20 * 60_000..=60 * 60_000).contains(&left),
            "{left} ms of the pin are left"
        );
        ends.insert(until);
        ids.insert(pin);
        // Nobody renews a record that other tools watch without need: it names the pin, and the pin stays the same.
        let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
        assert_eq!(jobs[0].1.pin_id, pin);
        assert_eq!(jobs[0].1.state, 2, "Executing");
        tokio::time::sleep(Duration::from_mins(5)).await;
    }
    assert!(ends.len() >= 5, "renewed: {ends:?}");
    assert_eq!(ids.len(), 1);
    let info = one.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    same(&world, &made, "copied", "after hours").await;
    unpinned(&world, &made, "after hours").await;
    one.stop().await;
}

/// A store that takes its time for one copy.
struct Slow {
    inner: Arc<dyn ObjectStore>,
    victim: String,
    takes: Duration,
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slow")
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slow")
    }
}

#[async_trait]
impl ObjectStore for Slow {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(at, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    async fn get_ranges(
        &self,
        at: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        if from.as_ref() == self.victim {
            tokio::time::sleep(self.takes).await;
        }
        self.inner.copy_opts(from, to, options).await
    }
}

// ---- publish, verify, take back ----

const PUBLISH: &str = "txn by-dev/meta/root-coord/database/collection-info/";

/// Runs a restore until the transaction that publishes, kills it before or after that, and answers the world as it was left.
async fn killed_at_publishing(mode: Mode) -> (World, Made, JobId) {
    let (world, _) = small_world().await;
    let whole = Faults::none();
    let one = runner(&world.open(&whole, ROOT), 1, &Keeper::default());
    let job = begin(&one, intent(SNAPSHOT, "copied")).await;
    one.ended(job).await.unwrap();
    one.stop().await;
    let ops = whole.ops();
    let number = ops.iter().position(|op| op.what.contains(PUBLISH)).unwrap();
    let (world, made) = small_world().await;
    let faults = Faults::at(number, mode);
    let one = runner(&world.open(&faults, ROOT), 1, &Keeper::default());
    let job = begin(&one, intent(SNAPSHOT, "copied")).await;
    faults.crashed().await;
    drop(one);
    world.bury().await;
    (world, made, job)
}

/// Names of all collections that have a record.
async fn names(world: &World) -> Vec<String> {
    let all = family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection).await;
    all.into_iter()
        .map(|(_, i)| i.schema.unwrap().name)
        .collect()
}

async fn target(world: &World) -> CollectionId {
    let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    CollectionId(jobs[0].1.collection_id)
}

/// Changes the first record of a family that is the target's.
async fn edit<M: Message + Default>(
    world: &World,
    of: Family,
    change: impl FnOnce(&mut M),
) -> MetaKey {
    let c = target(world).await;
    let mine = |key: &Key| match key {
        Key::Segment(of, ..)
        | Key::Log(_, of, ..)
        | Key::Collection(_, of)
        | Key::SegmentIndex(of, ..) => *of == c,
        _ => false,
    };
    let (key, mut message) = family::<M>(&*world.meta, of)
        .await
        .into_iter()
        .find(|(key, _)| mine(key))
        .unwrap();
    change(&mut message);
    let key = key.to_key(&roots());
    lab::put(&*world.meta, &key, message.encode_to_vec()).await;
    key
}

async fn forget(world: &World, key: MetaKey) {
    let writes = vec![Write::Delete(key)];
    let conds = vec![];
    world.meta.txn(Txn { conds, writes }).await.unwrap();
}

/// An object of the target whose key says this.
async fn copy_of(world: &World, kind: &str) -> String {
    let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
    let targets: Vec<String> = jobs[0]
        .1
        .id_mappings
        .iter()
        .map(|m| format!("/{}/", m.target_segment_id))
        .collect();
    let now = objects(&*world.objects).await;
    let mine = |k: &String| k.contains(kind) && targets.iter().any(|t| k.contains(t));
    now.into_keys().find(mine).unwrap()
}

type Damage = (&'static str, &'static str);

const DAMAGES: [Damage; 8] = [
    ("an object is gone", "is missing"),
    ("an object is cut", "bytes, not"),
    ("an object too many", "was not written by this restore"),
    ("rows of a segment", "rows, the snapshot has"),
    ("deletes of a segment", "Delta logs hold"),
    ("an index row less", "index rows, the snapshot has"),
    (
        "a property",
        "property collection.ttl.seconds is 1, the snapshot says",
    ),
    ("a record too many", "was not written by this restore"),
];

async fn damage(world: &World, what: &str) {
    match what {
        "an object is gone" => {
            let key = copy_of(world, "/stats_log/").await;
            world
                .objects
                .delete(&Path::parse(&key).unwrap())
                .await
                .unwrap();
        }
        "an object is cut" => {
            let key = copy_of(world, "/index_files/").await;
            let bytes = objects(&*world.objects).await[&key].clone();
            lab::put_object(world, &key.as_str().into(), bytes[1..].to_vec()).await;
        }
        "an object too many" => {
            let key = copy_of(world, "/delta_log/").await;
            lab::put_object(world, &format!("{key}9").as_str().into(), vec![1]).await;
        }
        "rows of a segment" => {
            edit::<pb::data::SegmentInfo>(world, Family::Segment, |s| s.num_of_rows -= 1).await;
        }
        "deletes of a segment" => {
            edit::<pb::data::FieldBinlog>(world, Family::Deltalog, |log| {
                log.binlogs.pop();
            })
            .await;
        }
        "an index row less" => {
            let key = edit::<pb::index::SegmentIndex>(world, Family::SegmentIndex, |_| {}).await;
            forget(world, key).await;
        }
        "a property" => {
            edit::<pb::etcd::CollectionInfo>(world, Family::Collection, |info| {
                info.properties[0].value = "1".into();
            })
            .await;
        }
        _ => {
            let c = target(world).await;
            let key = Key::Partition(c, falconer::engine::ids::PartitionId(5)).to_key(&roots());
            lab::put(&*world.meta, &key, vec![8, 5]).await;
        }
    }
}

/// *Completed* is not *Verified*: whatever differs from the snapshot after the publishing is found and named, one case at a time.
#[tokio::test(start_paused = true)]
async fn what_is_published_and_not_as_in_the_snapshot_is_not_verified() {
    for (what, said) in DAMAGES {
        let (world, made, job) = killed_at_publishing(Mode::CrashAfter).await;
        assert_eq!(
            names(&world)
                .await
                .iter()
                .filter(|n| *n == "copied")
                .count(),
            1
        );
        damage(&world, what).await;
        let two = process(&world, 2);
        let info = two.ended(job).await.unwrap();
        assert_eq!(info.state, JobState::Failed, "{what}: {info:?}");
        let error = info.error.clone().unwrap();
        assert!(error.contains("does not verify"), "{what}: {error}");
        let noted = info.notes.join("\n");
        assert!(
            noted.contains("NOT verified") && noted.contains(said),
            "{what}: {noted}"
        );
        // It stays, for the operator to judge; to other tools the copying is Completed; and nothing is pinned any more.
        assert!(names(&world).await.contains(&"copied".to_owned()), "{what}");
        let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
        assert_eq!(jobs[0].1.state, 3, "{what}");
        unpinned(&world, &made, what).await;
        two.stop().await;
    }
    // Undamaged it is verified, and the notes say what was compared.
    let (world, made, job) = killed_at_publishing(Mode::CrashAfter).await;
    let two = process(&world, 2);
    let info = two.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    let noted = info.notes.join("\n");
    for part in [
        "records as written",
        "name, shards, consistency level and properties",
        "rows, deletes and indexes of 2 segments",
        "objects of",
    ] {
        assert!(
            noted.contains(&format!("verified: {part}")) || noted.contains(part),
            "{noted}"
        );
    }
    same(&world, &made, "copied", "undamaged").await;
    two.stop().await;
}

/// Whoever takes the name first keeps it: the restore takes itself back by its own ids (defects D45, D58).
#[tokio::test(start_paused = true)]
async fn a_collection_that_took_the_name_is_not_touched_by_the_way_back() {
    let (untouched, _) = small_world().await;
    let before = objects(&*untouched.objects).await;
    let (world, made, job) = killed_at_publishing(Mode::CrashBefore).await;
    // All is written but the one record, and nobody sees any of it.
    let c = target(&world).await;
    let segments = family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment).await;
    let ours = segments
        .iter()
        .filter(|(k, _)| matches!(k, Key::Segment(of, ..) if *of == c));
    assert_eq!(ours.count(), made.segments.len());
    assert!(!names(&world).await.contains(&"copied".to_owned()));
    // Another collection of that name, with a segment and an object.
    let other = CollectionId(4_711);
    let info = pb::etcd::CollectionInfo {
        id: other.0,
        schema: Some(pb::schema::CollectionSchema {
            name: "copied".into(),
            ..Default::default()
        }),
        db_id: 1,
        ..Default::default()
    };
    let head = Key::Collection(DbId(1), other).to_key(&roots());
    lab::put(&*world.meta, &head, info.encode_to_vec()).await;
    let segment = Key::Segment(other, 5.into(), SegmentId(6)).to_key(&roots());
    lab::put(&*world.meta, &segment, vec![8, 6]).await;
    let log = format!("{ROOT}/insert_log/{other}/5/6/100/7");
    lab::put_object(&world, &log.as_str().into(), b"rows".to_vec()).await;
    let two = process(&world, 2);
    let info = two.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Failed, "{info:?}");
    let error = info.error.clone().unwrap();
    assert!(error.contains("collection copied exists"), "{error}");
    for key in [&head, &segment] {
        assert!(world.meta.get(key).await.unwrap().is_some(), "{key}");
    }
    let mut now = objects(&*world.objects).await;
    assert_eq!(now.remove(&log).as_deref(), Some(&b"rows"[..]));
    assert_eq!(now, before, "and of ours nothing is left");
    let records = all(&*world.meta, "by-dev/meta").await;
    assert!(!records.keys().any(|k| k.contains(&c.to_string())));
    unpinned(&world, &made, "taken back").await;
    two.stop().await;
}

// ---- shapes ----

/// One snapshot with everything that a segment may have, under `root`: its objects, where each goes, and the ids that a restore takes in
/// their order (collection, partitions, segments, index, builds by segment, task).
struct Shapes {
    segments: Vec<pb::data::SegmentDescription>,
    objects: BTreeMap<String, Vec<u8>>,
    /// Below the root, with `{}` for ids that are not known yet.
    goes: Vec<(String, String)>,
}

fn log(field: i64, id: i64, path: String) -> pb::data::FieldBinlog {
    pb::data::FieldBinlog {
        field_id: field,
        binlogs: vec![pb::data::Binlog {
            log_id: id,
            log_path: path,
            entries_num: 5,
            timestamp_from: 3,
            timestamp_to: 4,
            log_size: 9,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn index(segment: i64, build: i64, version: i32, path: String) -> pb::index::IndexFilePathInfo {
    pb::index::IndexFilePathInfo {
        segment_id: segment,
        field_id: 100,
        index_id: 77,
        index_name: "vec".into(),
        build_id: build,
        index_version: 1,
        index_file_paths: vec![path],
        index_store_path_version: version,
        serialized_size: 11,
        num_rows: 5,
        ..Default::default()
    }
}

fn json(build: i64, format: i64, file: &str) -> pb::data::JsonKeyStats {
    pb::data::JsonKeyStats {
        field_id: 102,
        version: 3,
        files: vec![file.into()],
        build_id: build,
        json_key_stats_data_format: format,
        ..Default::default()
    }
}

const CHANNELS: [&str; 2] = ["by-dev-rootcoord-dml_0_1v0", "by-dev-rootcoord-dml_1_1v1"];

#[allow(clippy::too_many_lines, reason = "one shape after the other")]
fn every_shape(root: &str, c: i64) -> Shapes {
    // Ids of the target, in the order they are taken.
    let (p2, p3) = (c + 1, c + 2);
    let [v1, v2, v3, l0] = [3, 4, 5, 6].map(|n| c + n);
    let [b501, b601, b602, b502, b603, b503] = [8, 9, 10, 11, 12, 13].map(|n| c + n);
    let at = |rest: &str| format!("{root}/{rest}");
    let position = |channel: &str| pb::msg::MsgPosition {
        channel_name: channel.into(),
        msg_id: vec![1, 2, 3],
        timestamp: 464_000_000_000_000_000,
        ..Default::default()
    };
    let segment =
        |id: i64, partition: i64, storage: i64, channel: usize| pb::data::SegmentDescription {
            segment_id: id,
            partition_id: partition,
            channel_name: CHANNELS[channel].into(),
            num_of_rows: 5,
            storage_version: storage,
            start_position: Some(position(CHANNELS[channel])),
            dml_position: Some(position(CHANNELS[channel])),
            ..Default::default()
        };
    let base = at("insert_log/1/3/33");
    let segments = vec![
        pb::data::SegmentDescription {
            binlogs: vec![
                log(100, 9, at("insert_log/1/2/31/100/9")),
                log(1, 10, at("insert_log/1/2/31/1/10")),
            ],
            statslogs: vec![log(100, 1, at("stats_log/1/2/31/100/1"))],
            deltalogs: vec![log(0, 12, at("delta_log/1/2/31/12"))],
            bm25_statslogs: vec![log(103, 13, at("bm25_stats/1/2/31/103/13"))],
            index_files: vec![index(31, 501, 0, at("index_files/501/1/2/31/HNSW_0"))],
            text_index_files: [(
                101,
                pb::data::TextIndexStats {
                    field_id: 101,
                    version: 2,
                    files: vec![at("text_log/601/2/1/2/31/101/full"), "base".into()],
                    build_id: 601,
                    ..Default::default()
                },
            )]
            .into(),
            json_key_index_files: [(102, json(602, 1, "legacy"))].into(),
            ..segment(31, 2, 0, 0)
        },
        pb::data::SegmentDescription {
            binlogs: vec![log(0, 14, at("insert_log/1/3/32/0/14"))],
            deltalogs: vec![log(0, 15, at("delta_log/1/3/32/15"))],
            index_files: vec![index(32, 502, 1, at("index_v1/1/3/32/502/1/HNSW_0"))],
            json_key_index_files: [(102, json(603, 2, "shared_key_index/f"))].into(),
            manifest_path: at("insert_log/1/3/32/_metadata/manifest-1.avro"),
            ..segment(32, 3, 2, 1)
        },
        pb::data::SegmentDescription {
            index_files: vec![index(33, 503, 1, at("index_v1/1/3/33/503/1/HNSW_0"))],
            manifest_path: format!(r#"{{"ver":4,"base_path":"{base}"}}"#),
            ..segment(33, 3, 3, 1)
        },
        pb::data::SegmentDescription {
            partition_id: -1,
            num_of_rows: 0,
            segment_level: pb::data::SegmentLevel::L0 as i32,
            deltalogs: vec![log(0, 16, at("delta_log/1/-1/34/16"))],
            ..segment(34, -1, 0, 0)
        },
    ];
    let goes: Vec<(String, String)> = [
        (
            "insert_log/1/2/31/100/9",
            format!("insert_log/{c}/{p2}/{v1}/100/9"),
        ),
        (
            "insert_log/1/2/31/1/10",
            format!("insert_log/{c}/{p2}/{v1}/1/10"),
        ),
        (
            "stats_log/1/2/31/100/1",
            format!("stats_log/{c}/{p2}/{v1}/100/1"),
        ),
        ("delta_log/1/2/31/12", format!("delta_log/{c}/{p2}/{v1}/12")),
        (
            "bm25_stats/1/2/31/103/13",
            format!("bm25_stats/{c}/{p2}/{v1}/103/13"),
        ),
        (
            "index_files/501/1/2/31/HNSW_0",
            format!("index_files/{b501}/1/{p2}/{v1}/HNSW_0"),
        ),
        (
            "text_log/601/2/1/2/31/101/full",
            format!("text_log/{b601}/2/{c}/{p2}/{v1}/101/full"),
        ),
        (
            "text_log/601/2/1/2/31/101/base",
            format!("text_log/{b601}/2/{c}/{p2}/{v1}/101/base"),
        ),
        (
            "json_key_index_log/602/3/1/2/31/102/legacy",
            format!("json_key_index_log/{b602}/3/{c}/{p2}/{v1}/102/legacy"),
        ),
        (
            "insert_log/1/3/32/0/14",
            format!("insert_log/{c}/{p3}/{v2}/0/14"),
        ),
        ("delta_log/1/3/32/15", format!("delta_log/{c}/{p3}/{v2}/15")),
        (
            "index_v1/1/3/32/502/1/HNSW_0",
            format!("index_v1/{c}/{p3}/{v2}/{b502}/1/HNSW_0"),
        ),
        (
            "json_stats/2/603/3/1/3/32/102/shared_key_index/f",
            format!("json_stats/2/{b603}/3/{c}/{p3}/{v2}/102/shared_key_index/f"),
        ),
        (
            "insert_log/1/3/32/_metadata/manifest-1.avro",
            format!("insert_log/{c}/{p3}/{v2}/_metadata/manifest-1.avro"),
        ),
        (
            "insert_log/1/3/33/_metadata/manifest-4.avro",
            format!("insert_log/{c}/{p3}/{v3}/_metadata/manifest-4.avro"),
        ),
        (
            "insert_log/1/3/33/_data/0_aa.parquet",
            format!("insert_log/{c}/{p3}/{v3}/_data/0_aa.parquet"),
        ),
        (
            "insert_log/1/3/33/_delta/461100000000000400",
            format!("insert_log/{c}/{p3}/{v3}/_delta/461100000000000400"),
        ),
        (
            "insert_log/1/3/33/_stats/bloom_filter.100/1",
            format!("insert_log/{c}/{p3}/{v3}/_stats/bloom_filter.100/1"),
        ),
        (
            "insert_log/1/3/33/_index/301/part",
            format!("insert_log/{c}/{p3}/{v3}/_index/301/part"),
        ),
        (
            "insert_log/1/3/lobs/102/_data/1.vx",
            format!("insert_log/{c}/{p3}/lobs/102/_data/1.vx"),
        ),
        (
            "index_v1/1/3/33/503/1/HNSW_0",
            format!("index_v1/{c}/{p3}/{v3}/{b503}/1/HNSW_0"),
        ),
        // Deletes of all partitions stay deletes of all partitions.
        ("delta_log/1/-1/34/16", format!("delta_log/{c}/-1/{l0}/16")),
    ]
    .map(|(from, to)| (from.to_owned(), to))
    .to_vec();
    let mut objects: BTreeMap<String, Vec<u8>> = goes
        .iter()
        .map(|(from, _)| (at(from), format!("bytes of {from}").into_bytes()))
        .collect();
    objects.insert(
        format!("{base}/_metadata/manifest-4.avro"),
        storage::manifest(),
    );
    // A newer version that nobody committed, and what lies beside it.
    objects.insert(
        format!("{base}/_metadata/manifest-5.avro"),
        storage::manifest(),
    );
    objects.insert(format!("{base}/_data/1_bb.parquet"), b"newer".to_vec());
    Shapes {
        segments,
        objects,
        goes,
    }
}

/// Writes the snapshot of [`every_shape`] the way Milvus does: files first, the committed record last.
async fn write_shapes(stores: &Stores, world: &World, root: &str, shapes: &Shapes) {
    let (of, id) = (CollectionId(1), SnapshotId(SNAPSHOT));
    let put = async |key: &str, bytes: Vec<u8>| {
        stores
            .write
            .put(&key.into(), bytes.into(), PutMode::Overwrite)
            .await
            .unwrap_or_else(|e| panic!("{key}: {e}"));
    };
    for (key, bytes) in &shapes.objects {
        put(key, bytes.clone()).await;
    }
    let field = |id: i64, name: &str| pb::schema::FieldSchema {
        field_id: id,
        name: name.into(),
        ..Default::default()
    };
    let pair = |key: &str, value: &str| pb::common::KeyValuePair {
        key: key.into(),
        value: value.into(),
    };
    let seeks = CHANNELS.map(|channel| pb::msg::MsgPosition {
        channel_name: channel.into(),
        msg_id: vec![9],
        timestamp: 464_000_000_000_000_000,
        ..Default::default()
    });
    let mut info = pb::data::SnapshotInfo {
        name: "shapes".into(),
        id: id.0,
        collection_id: of.0,
        partition_ids: vec![2, 3],
        create_ts: 464_000_000_000_000_000,
        state: 1,
        pending_start_time: NOW.0,
        channel_seek_positions: seeks.to_vec(),
        ..Default::default()
    };
    let metadata = pb::data::SnapshotMetadata {
        format_version: 4,
        snapshot_info: Some(info.clone()),
        collection: Some(pb::data::CollectionDescription {
            schema: Some(pb::schema::CollectionSchema {
                name: "books".into(),
                fields: vec![field(100, "vec"), field(1, "pk"), field(102, "doc")],
                ..Default::default()
            }),
            num_partitions: 2,
            num_shards: 2,
            // A collection that was restored before has it already, and a second time from its own restore (§5.1).
            properties: vec![
                pair("preserve_field_ids", "true"),
                pair("ttl", "7"),
                pair("preserve_field_ids", "true"),
            ],
            partitions: [("_default".to_owned(), 2), ("p".to_owned(), 3)].into(),
            virtual_channel_names: CHANNELS.map(Into::into).to_vec(),
            consistency_level: 2,
        }),
        indexes: vec![pb::index::IndexInfo {
            index_id: 77,
            index_name: "vec".into(),
            field_id: 100,
            ..Default::default()
        }],
        manifest_list: shapes
            .segments
            .iter()
            .map(|s| snapshot::manifest_key(root, of, id, SegmentId(s.segment_id)).0)
            .collect(),
        storagev2_manifest_list: shapes
            .segments
            .iter()
            .filter(|s| !s.manifest_path.is_empty())
            .map(|s| pb::data::StorageV2SegmentManifest {
                segment_id: s.segment_id,
                manifest: s.manifest_path.clone(),
            })
            .collect(),
        segment_ids: shapes.segments.iter().map(|s| s.segment_id).collect(),
        build_ids: snapshot::build_ids(&shapes.segments)
            .into_iter()
            .map(|b| b.0)
            .collect(),
        layout: pb::data::SnapshotLayout::Referenced as i32,
    };
    for (s, key) in shapes.segments.iter().zip(&metadata.manifest_list) {
        put(key, manifest::write_v4(s).unwrap()).await;
    }
    let json = snapshot::metadata_key(root, of, id);
    put(&json.0, snapshot::write_metadata(&metadata).unwrap()).await;
    info.state = 2;
    info.s3_location = json.0;
    let key = Key::Snapshot(of, id).to_key(&roots());
    lab::put(&*world.meta, &key, info.encode_to_vec()).await;
}

async fn listed(read: &ObjectRead, root: &str) -> BTreeSet<String> {
    let found: Vec<_> = read
        .list(&ObjectKey(root.to_owned()), None)
        .try_collect()
        .await
        .unwrap();
    found.into_iter().map(|m| m.key.0).collect()
}

#[tokio::test]
async fn every_shape_is_restored_and_verified_under_every_root() {
    let dir = tempfile::tempdir().unwrap();
    let absolute = dir.path().join("insert_log/data");
    std::fs::create_dir_all(&absolute).unwrap();
    let absolute = absolute.to_str().unwrap().to_owned();
    for root in ["files", "a/insert_log/b", absolute.as_str()] {
        let world = World::new(
            Arc::new(MemStore::new(ETCD)),
            Arc::new(object_store::memory::InMemory::new()),
            NOW,
        );
        let mut stores = world.open(&Faults::none(), root);
        if root.starts_with('/') {
            let kind = ObjectKind::Local {
                dir: root.into(),
                absolute: true,
            };
            let root = String::new();
            (stores.read, stores.write) = open(&ObjectProfile { kind, root }).unwrap();
        }
        // What the ids will be is known from the first of them only.
        write_shapes(&stores, &world, root, &every_shape(root, 0)).await;
        let before = listed(&stores.read, root).await;
        let one = runner(&stores, 1, &Keeper::default());
        let job = begin(&one, intent(SNAPSHOT, "copied")).await;
        let info = one.ended(job).await.unwrap();
        assert_eq!(info.state, JobState::Verified, "{root}: {info:?}");
        one.stop().await;
        let c = info.collection.unwrap();
        let shapes = every_shape(root, c.0);
        let mut want = BTreeSet::new();
        for (from, to) in &shapes.goes {
            let (from, to) = (format!("{root}/{from}"), format!("{root}/{to}"));
            let bytes = stores.read.get(&to.as_str().into()).await;
            let bytes = bytes.unwrap_or_else(|e| panic!("{root}: {from}: {e}"));
            assert_eq!(bytes[..], shapes.objects[&from][..], "{root}: {to}");
            want.insert(to);
        }
        let after = listed(&stores.read, root).await;
        let new: BTreeSet<String> = after.difference(&before).cloned().collect();
        assert_eq!(new, want, "{root}: these, and no more");
        shape_records(&world, root, c).await;
    }
}

/// The records of the copy: ids of its own, fields and names of the source.
async fn shape_records(world: &World, root: &str, c: CollectionId) {
    let meta = &*world.meta;
    let heads = family::<pb::etcd::CollectionInfo>(meta, Family::Collection).await;
    let (_, head) = &heads[0];
    let properties: Vec<(&str, &str)> = head
        .properties
        .iter()
        .map(|p| (p.key.as_str(), p.value.as_str()))
        .collect();
    assert_eq!(properties, [("preserve_field_ids", "true"), ("ttl", "7")]);
    assert_eq!(
        head.virtual_channel_names,
        [0, 1].map(|n| format!("by-dev-rootcoord-dml_{n}_{c}v{n}"))
    );
    let fields = family::<pb::schema::FieldSchema>(meta, Family::Field).await;
    let fields: BTreeMap<i64, String> = fields
        .into_iter()
        .map(|(_, f)| (f.field_id, f.name))
        .collect();
    assert_eq!(
        fields.into_iter().collect::<Vec<_>>(),
        [(1, "pk".into()), (100, "vec".into()), (102, "doc".into())]
    );
    let partitions = family::<pb::etcd::PartitionInfo>(meta, Family::Partition).await;
    let partitions: BTreeMap<i64, String> = partitions
        .into_iter()
        .map(|(_, p)| (p.partition_id - c.0, p.partition_name))
        .collect();
    assert_eq!(
        partitions.into_iter().collect::<Vec<_>>(),
        [(1, "_default".into()), (2, "p".into())]
    );
    let segments = family::<pb::data::SegmentInfo>(meta, Family::Segment).await;
    let by_id: BTreeMap<i64, &pb::data::SegmentInfo> =
        segments.iter().map(|(_, s)| (s.id - c.0, s)).collect();
    assert_eq!(by_id.keys().copied().collect::<Vec<_>>(), [3, 4, 5, 6]);
    let [v1, v2, v3, l0] = [3, 4, 5, 6].map(|n| by_id[&n]);
    assert_eq!([v1, v2, v3, l0].map(|s| s.storage_version), [0, 2, 3, 0]);
    assert_eq!(
        [v1, v2, v3, l0].map(|s| s.partition_id - c.0),
        [1, 2, 2, -1 - c.0]
    );
    assert_eq!(l0.level, pb::data::SegmentLevel::L0 as i32);
    for (s, n) in [(v1, 0), (v2, 1), (v3, 1), (l0, 0)] {
        let channel = format!("by-dev-rootcoord-dml_{n}_{c}v{n}");
        assert_eq!(s.insert_channel, channel, "{root}");
        let dml = s.dml_position.as_ref().unwrap();
        assert_eq!(
            (&dml.channel_name, &dml.msg_id[..]),
            (&channel, &[1, 2, 3][..])
        );
    }
    assert_eq!(
        v2.manifest_path,
        format!(
            "{root}/insert_log/{c}/{}/{}/_metadata/manifest-1.avro",
            v2.partition_id, v2.id
        )
    );
    assert_eq!(
        v3.manifest_path,
        format!(
            r#"{{"ver":4,"base_path":"{root}/insert_log/{c}/{}/{}"}}"#,
            v3.partition_id, v3.id
        )
    );
    let text = &v1.text_stats_logs[&101];
    let at = format!(
        "{root}/text_log/{}/2/{c}/{}/{}/101",
        text.build_id, v1.partition_id, v1.id
    );
    assert_eq!(
        text.files,
        [format!("{at}/full"), "base".into()],
        "in the form it had"
    );
    assert_eq!(v1.json_key_stats[&102].files, ["legacy"]);
    assert_eq!(v2.json_key_stats[&102].files, ["shared_key_index/f"]);
    // Logs by id, without a path; index rows by file name, with the path version they had.
    let deltas = family::<pb::data::FieldBinlog>(meta, Family::Deltalog).await;
    let ids: BTreeMap<i64, (i64, String)> = deltas
        .into_iter()
        .map(|(key, log)| match key {
            Key::Log(LogKind::Delta, _, _, s, _) => (
                s.0 - c.0,
                (log.binlogs[0].log_id, log.binlogs[0].log_path.clone()),
            ),
            other => panic!("{other:?}"),
        })
        .collect();
    let none = String::new;
    assert_eq!(
        ids.into_iter().collect::<Vec<_>>(),
        [(3, (12, none())), (4, (15, none())), (6, (16, none()))]
    );
    let rows = family::<pb::index::SegmentIndex>(meta, Family::SegmentIndex).await;
    let rows: BTreeSet<(i64, i32, Vec<String>, i64)> = rows
        .into_iter()
        .map(|(_, r)| {
            (
                r.segment_id - c.0,
                r.index_store_path_version,
                r.index_file_keys,
                r.index_id - c.0,
            )
        })
        .collect();
    let file = || vec!["HNSW_0".to_owned()];
    assert_eq!(
        rows.into_iter().collect::<Vec<_>>(),
        [(3, 0, file(), 7), (4, 1, file(), 7), (5, 1, file(), 7)]
    );
    // What other tools watch.
    let tasks = family::<pb::data::CopySegmentTask>(meta, Family::CopySegmentTask).await;
    assert_eq!(tasks.len(), 1);
    let pairs: Vec<(i64, i64, i64)> = tasks[0]
        .1
        .id_mappings
        .iter()
        .map(|m| {
            (
                m.source_segment_id,
                m.target_segment_id - c.0,
                m.partition_id,
            )
        })
        .collect();
    assert_eq!(
        pairs,
        [
            (31, 3, c.0 + 1),
            (32, 4, c.0 + 2),
            (33, 5, c.0 + 2),
            (34, 6, -1)
        ]
    );
}

/// A snapshot of a collection in which nothing is: the copy is a collection like every other (§5.3).
#[tokio::test(start_paused = true)]
async fn a_snapshot_without_segments_restores_into_an_empty_collection() {
    let world = lab::small_seed(&lab::FLUSHED).await.world();
    let (db, of) = collection(&*world.meta, "metrics").await;
    let made = make(&world, db, of, SNAPSHOT, "empty", 0).await;
    assert!(made.segments.is_empty());
    let one = process(&world, 1);
    let job = begin(&one, intent(SNAPSHOT, "copied")).await;
    let info = one.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    // Its channels begin somewhere, its job has ended for those who watch it.
    same(&world, &made, "copied", "without segments").await;
    one.stop().await;
}
