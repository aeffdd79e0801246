//! Garbage collection where it is most dangerous: a bucket of another cluster, records that move under its hands, paths that lead
//! into another segment.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::Result;
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb;
use falconer::engine::ids::{CollectionId, MetaKey, MetaRev, PartitionId, SegmentId};
use falconer::engine::jobs::gc::Gc;
use falconer::engine::jobs::gc_scan::{Need, Wants, scan};
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore_source::Reads;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{
    Limits, MetaRead, MetaReader, MetaStatus, MetaWrite, MetaWriter, Outcome, Page, RangeOpts,
    Span, Txn, WatchStream, Write,
};
use falconer::engine::model::holds::Tolerances;
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::{Intent, Plan};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use support::faults::{Faults, World};
use support::snapshots::{
    self as lab, NOW, ROOT, all, collection, family, lab_world, objects, roots,
};

fn runner(world: &World) -> RunnerHandle {
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
        actor: "tester pid 5".into(),
        embedded: true,
    });
    Runner::start(executor, Registry::default().with(Gc::default()))
}

fn pass(of: CollectionId) -> Intent {
    Intent::Gc {
        collection: Some(of),
        rules: BTreeSet::new(),
        quarantine: false,
    }
}

async fn apply(runner: &RunnerHandle, plan: &Plan) -> Arc<JobInfo> {
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let job = runner.apply(&plan.hash, &typed).await.unwrap();
    runner.ended(job).await.unwrap()
}

async fn run(world: &World, of: CollectionId) -> Arc<JobInfo> {
    let runner = runner(world);
    let plan = runner.plan(pass(of), Arc::default()).await.unwrap();
    let info = apply(&runner, &plan).await;
    runner.stop().await;
    info
}

/// Dropped four hours ago, its channels with it.
async fn drop_segments(meta: &dyn MetaWrite, of: CollectionId) {
    for (key, value) in all(meta, &format!("by-dev/meta/datacoord-meta/s/{of}")).await {
        let mut info = pb::data::SegmentInfo::decode(value).unwrap();
        info.state = 6;
        info.dropped_at = ((NOW.0 - 4 * 3_600_000) * 1_000_000) as u64;
        lab::put(meta, &key.as_str().into(), info.encode_to_vec()).await;
    }
    for (key, value) in all(meta, "by-dev/meta/datacoord-meta/channel-cp").await {
        if key.contains(&format!("_{of}v")) {
            let mut cp = pb::msg::MsgPosition::decode(value).unwrap();
            cp.timestamp = u64::MAX;
            lab::put(meta, &key.as_str().into(), cp.encode_to_vec()).await;
        }
    }
}

async fn records(world: &World, family: Family, of: CollectionId) -> BTreeSet<String> {
    let prefix = family.under(&roots(), &[of.0]);
    let page = world.meta.range_all(&Span::prefix(&prefix)).await.unwrap();
    page.kvs.iter().map(|kv| kv.key.text()).collect()
}

#[allow(
    clippy::disallowed_methods,
    reason = "the hand that destroys what the engine must miss"
)]
async fn empty(store: &dyn ObjectStore) {
    for key in objects(store).await.keys() {
        store.delete(&Path::parse(key).unwrap()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_of_another_cluster_is_refused_before_anything_is_forgotten() {
    let world = lab_world().await;
    let (_, of) = collection(&*world.meta, "users").await;
    drop_segments(&*world.meta, of).await;
    let before = all(&*world.meta, "by-dev/meta").await;

    let elsewhere = World::new(world.meta.clone(), Arc::new(InMemory::new()), NOW);
    let wrong = runner(&elsewhere);
    let plan = wrong.plan(pass(of), Arc::default()).await.unwrap();
    let failed: Vec<String> = plan.failures().filter_map(|c| c.failed.clone()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    for name in ["minio.bucketName", "minio.rootPath"] {
        assert!(failed[0].contains(name), "{failed:?}");
    }
    wrong.stop().await;

    // The plan was good; by the first step the bucket is another.
    let runner = runner(&world);
    let plan = runner.plan(pass(of), Arc::default()).await.unwrap();
    assert_eq!(plan.failures().count(), 0);
    empty(&*world.objects).await;
    let info = apply(&runner, &plan).await;
    assert_eq!(info.state, JobState::Failed, "{:?}", info.notes);
    assert!(
        info.error.as_ref().unwrap().contains("minio.bucketName"),
        "{:?}",
        info.error
    );
    assert_eq!(all(&*world.meta, "by-dev/meta").await, before);
    runner.stop().await;
}

type Hook<T> = Box<dyn Fn(&T) -> Option<(MetaKey, Vec<u8>)> + Send + Sync>;

/// A store that somebody else writes to once: right before a transaction, or right after a range, that the hook answers.
struct Meddler {
    inner: Arc<dyn MetaWrite>,
    before: Hook<Txn>,
    after: Hook<Span>,
    done: AtomicBool,
}

impl Meddler {
    fn on(inner: Arc<dyn MetaWrite>, before: Hook<Txn>, after: Hook<Span>) -> Arc<Self> {
        let done = AtomicBool::new(false);
        Arc::new(Self {
            inner,
            before,
            after,
            done,
        })
    }

    async fn meddle(&self, with: Option<(MetaKey, Vec<u8>)>) {
        if let Some((key, value)) = with
            && !self.done.swap(true, Ordering::SeqCst)
        {
            lab::put(&*self.inner, &key, value).await;
        }
    }
}

#[async_trait]
impl MetaRead for Meddler {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        let page = self.inner.range(span, opts).await;
        self.meddle((self.after)(span)).await;
        page
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        self.inner.watch(span, from).await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.inner.status().await
    }
}

#[async_trait]
impl MetaWrite for Meddler {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        self.meddle((self.before)(&txn)).await;
        self.inner.txn(txn).await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn compact(&self, rev: MetaRev) -> Result<()> {
        self.inner.compact(rev).await
    }

    async fn grant(&self, ttl: Duration) -> Result<i64> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        self.inner.revoke(lease).await
    }
}

fn deletes(txn: &Txn, family: Family) -> bool {
    let span = Span::prefix(&family.prefix(&roots()));
    txn.writes
        .iter()
        .any(|w| matches!(w, Write::Delete(key) if span.contains(key)))
}

#[tokio::test(start_paused = true)]
async fn a_record_that_moves_is_looked_at_again_and_the_pass_goes_on() {
    let world = lab_world().await;
    let (_, of) = collection(&*world.meta, "users").await;
    drop_segments(&*world.meta, of).await;
    let segments = all(&*world.meta, &format!("by-dev/meta/datacoord-meta/s/{of}")).await;
    assert!(!segments.is_empty());
    let touched = Box::new(move |txn: &Txn| {
        txn.writes.iter().find_map(|w| match w {
            Write::Delete(key) => segments
                .get(&key.text())
                .map(|value| (key.clone(), value.to_vec())),
            Write::Put { .. } => None,
        })
    });
    let meta = Meddler::on(world.meta.clone(), touched, Box::new(|_| None));
    let moved = World::new(meta.clone(), world.objects.clone(), NOW);
    let info = run(&moved, of).await;
    assert!(meta.done.load(Ordering::SeqCst));
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    assert!(
        info.notes.iter().any(|n| n.starts_with("kept for now")),
        "{:?}",
        info.notes
    );
    assert!(records(&world, Family::Segment, of).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_index_that_comes_back_keeps_its_rows() {
    let world = lab_world().await;
    let (_, of) = collection(&*world.meta, "users").await;
    let definitions = family::<pb::index::FieldIndex>(&*world.meta, Family::FieldIndex).await;
    let mut revived = None;
    for (key, mut index) in definitions {
        if matches!(key, Key::FieldIndex(c, _) if c == of) {
            let key = key.to_key(&roots());
            revived = Some((key.clone(), index.encode_to_vec()));
            index.deleted = true;
            lab::put(&*world.meta, &key, index.encode_to_vec()).await;
        }
    }
    let revived = revived.unwrap();
    let rows = records(&world, Family::SegmentIndex, of).await;
    let back =
        Box::new(move |txn: &Txn| deletes(txn, Family::SegmentIndex).then(|| revived.clone()));
    let meta = Meddler::on(world.meta.clone(), back, Box::new(|_| None));
    let moved = World::new(meta.clone(), world.objects.clone(), NOW);
    let runner = runner(&moved);
    let intent = Intent::Gc {
        collection: Some(of),
        rules: ["segment-index".to_owned()].into(),
        quarantine: false,
    };
    let plan = runner.plan(intent, Arc::default()).await.unwrap();
    let info = apply(&runner, &plan).await;
    runner.stop().await;
    assert!(meta.done.load(Ordering::SeqCst), "a row was to be deleted");
    assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
    assert_eq!(records(&world, Family::SegmentIndex, of).await, rows);
}

#[tokio::test(start_paused = true)]
async fn a_scan_is_of_one_revision() {
    let whole = lab_world().await;
    let (_, of) = collection(&*whole.meta, "users").await;
    let store = EmbeddedStore::memory().unwrap();
    for (key, value) in all(&*whole.meta, "by-dev/meta").await {
        if key.contains(&of.to_string()) {
            lab::put(&store, &key.as_str().into(), value.to_vec()).await;
        }
    }
    let late = Key::Segment(of, PartitionId(1), SegmentId(5)).to_key(&roots());
    let first = Span::prefix(&Family::Collection.prefix(&roots()));
    let hook = Box::new(move |span: &Span| {
        (*span == first).then(|| (late.clone(), b"\xff\xff\xff".to_vec()))
    });
    let meta = Meddler::on(Arc::new(store), Box::new(|_| None), hook);
    let stores = whole.open(&Faults::none(), ROOT);
    let roots = roots();
    let read = MetaReader::new(meta.clone(), &Scope::root(stores.clock.clone(), "test"));
    let reads = Reads {
        meta: &read,
        objects: &stores.read,
        roots: &roots,
    };
    let wants = Wants {
        cutoff: NOW,
        tolerances: Tolerances::default(),
        me: None,
        need: Need::All,
    };
    let keeper = Keeper::default();
    let then = scan(&reads, &keeper, &*stores.clock, wants).await.unwrap();
    assert!(meta.done.load(Ordering::SeqCst));
    assert!(!then.world.segments.is_empty());
    assert_eq!(then.unreadable, Vec::<String>::new());
    let now = scan(&reads, &keeper, &*stores.clock, wants).await.unwrap();
    assert_eq!(now.unreadable.len(), 1, "written after the first look");
}

#[tokio::test(start_paused = true)]
async fn a_path_into_another_segment_is_not_followed() {
    let world = lab_world().await;
    let (_, of) = collection(&*world.meta, "users").await;
    let (_, books) = collection(&*world.meta, "books").await;
    drop_segments(&*world.meta, of).await;
    let foreign = format!("{ROOT}/insert_log/{books}/");
    let stored = objects(&*world.objects).await;
    let foreign = stored.keys().find(|k| k.starts_with(&foreign)).unwrap();
    let segments = all(&*world.meta, &format!("by-dev/meta/datacoord-meta/s/{of}")).await;
    let (key, value) = segments.into_iter().next().unwrap();
    let mut info = pb::data::SegmentInfo::decode(value).unwrap();
    info.manifest_path.clone_from(foreign);
    lab::put(&*world.meta, &key.as_str().into(), info.encode_to_vec()).await;
    let done = run(&world, of).await;
    assert_eq!(done.state, JobState::Verified, "{:?}", done.error);
    assert!(
        records(&world, Family::Segment, of).await.is_empty(),
        "its own record goes"
    );
    assert!(objects(&*world.objects).await.contains_key(foreign));
    assert!(
        done.notes.iter().any(|n| n.contains(foreign)),
        "{:?}",
        done.notes
    );
}
