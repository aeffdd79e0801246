//! The demo cluster: what stands there after `falconer demo`, read back through the catalog and byte by byte; refused on anything
//! but an empty store; taken up again after the process died in the middle of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use falconer::engine::Engine;
use falconer::engine::clock::{Clock, SystemClock, SystemEntropy};
use falconer::engine::format::binlog::{V1_MAGIC, V1Header, objects, v1_events};
use falconer::engine::format::keys::{Key, LogKind};
use falconer::engine::format::paths::{IndexFile, ObjPath};
use falconer::engine::format::pb;
use falconer::engine::handle::{Conn, Handle, Reply, Request};
use falconer::engine::ids::{BuildId, IndexId, JobId, MetaKey, PartitionId, SegmentId, Tso};
use falconer::engine::meta::embedded::EmbeddedReader;
use falconer::engine::meta::{KeyValue, MetaRead, Span};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::{JobInfo, JobKind, JobState, JobsView};
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::{Access, MetaProfile, ObjectKind, ObjectProfile, Profile, Roots};
use prost::Message;

const PATIENCE: Duration = Duration::from_mins(2);
const HOUR: u64 = 3_600_000;

/// A root, a sub path and an object root that are not those of the seed: nothing of it may shine through.
fn profile(dir: &Path) -> Profile {
    Profile {
        name: "demo".into(),
        meta: MetaProfile::Embedded {
            file: dir.join("meta.redb"),
        },
        objects: Some(ObjectProfile {
            kind: ObjectKind::Local {
                dir: dir.join("objects"),
                absolute: false,
            },
            root: "some/place".into(),
        }),
        roots: Roots {
            root: "another-root".into(),
            ..Roots::default()
        },
        access: Access::ReadWrite,
        gc: Tolerances::default(),
    }
}

async fn open(dir: &Path) -> Handle {
    std::fs::create_dir_all(dir.join("objects")).unwrap();
    let clock = Arc::new(SystemClock::new());
    let mut handle = Engine::open(profile(dir), clock, Arc::new(SystemEntropy))
        .await
        .expect("the engine opens");
    let live = handle.conn.wait_for(|c| matches!(c, Conn::Live { .. }));
    patiently("live", live).await.expect("the engine runs");
    handle
}

#[allow(
    clippy::disallowed_methods,
    reason = "a test that hangs must end, in real time"
)]
async fn patiently<T>(what: &str, doing: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, doing).await {
        Ok(done) => done,
        Err(e) => panic!("not {what} within {PATIENCE:?}: {e}"),
    }
}

async fn plan(handle: &Handle, intent: Intent) -> Arc<Plan> {
    match handle.request(Request::Plan(intent)).await.expect("a plan") {
        Reply::Planned(plan) => plan,
        other => panic!("{other:?}"),
    }
}

async fn begin(handle: &Handle, intent: Intent) -> JobId {
    let plan = plan(handle, intent).await;
    assert!(plan.applicable(), "{:?}", plan.checks);
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let hash = plan.hash.clone();
    match handle.request(Request::Apply { hash, typed }).await {
        Ok(Reply::Accepted(job)) => job,
        other => panic!("{other:?}"),
    }
}

async fn job(
    handle: &mut Handle,
    what: &str,
    is: impl Fn(&JobsView, &JobInfo) -> bool,
) -> Arc<JobInfo> {
    let seen = handle
        .jobs
        .wait_for(|view| view.jobs.iter().any(|j| is(view, j)));
    let view = patiently(what, seen)
        .await
        .expect("the engine runs")
        .clone();
    view.jobs.iter().find(|j| is(&view, j)).unwrap().clone()
}

async fn verified(handle: &mut Handle, id: JobId) -> Arc<JobInfo> {
    let ended = job(handle, "ended", |_, j| j.id == id && j.state.ended()).await;
    assert_eq!(ended.state, JobState::Verified, "{ended:?}");
    ended
}

async fn catalog(handle: &mut Handle, what: &str, is: impl Fn(&Catalog) -> bool) -> Arc<Catalog> {
    let seen = handle.catalog.wait_for(|c| is(c));
    patiently(what, seen)
        .await
        .expect("the engine runs")
        .clone()
}

/// Builds it, and waits until the picture shows the restore.
async fn build(handle: &mut Handle) -> (Arc<JobInfo>, Arc<Catalog>) {
    let id = begin(handle, Intent::Demo).await;
    let ended = verified(handle, id).await;
    let seen = catalog(handle, "restoring", |c| {
        c.tasks.values().any(|t| t.kind == "copy-segment-job")
    })
    .await;
    (ended, seen)
}

/// The restore is slow so that it can be looked at. Nobody looks here.
async fn let_go(handle: &mut Handle) -> Arc<JobInfo> {
    let running = job(handle, "restoring", |_, j| j.kind == JobKind::Restore).await;
    handle
        .request(Request::Throttle(running.id, None))
        .await
        .expect("runs here");
    verified(handle, running.id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_screen_has_something_to_show() {
    let dir = tempfile::tempdir().unwrap();
    let mut handle = open(dir.path()).await;
    let (ended, seen) = build(&mut handle).await;
    assert!(
        ended.notes.iter().any(|n| n.contains("files in")),
        "{ended:?}"
    );
    let now = handle.clock.now();

    let names: BTreeSet<String> = seen
        .collections
        .values()
        .map(|c| format!("{}/{}", seen.database_name(c.db), c.name))
        .collect();
    let wanted = [
        "analytics/books",
        "analytics/metrics",
        "default/empty",
        "default/images",
    ];
    assert_eq!(names, wanted.map(str::to_owned).into());
    assert!(seen.collections.values().all(|c| c.damage.is_empty()));
    assert!(seen.undecodable.is_empty(), "{:?}", seen.undecodable);
    assert_eq!(seen.aliases.len(), 1);

    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for segment in seen.segments() {
        *states.entry(segment.state.name).or_default() += 1;
        let growing = segment.state.name == "Growing";
        assert_eq!(segment.files() == 0, growing, "{segment:?}");
        assert!(segment.start.time().unwrap() <= now, "{segment:?}");
        assert!(segment.dml.time().unwrap() <= now, "{segment:?}");
    }
    let all = [
        "Dropped",
        "Flushed",
        "Flushing",
        "Growing",
        "Importing",
        "Sealed",
    ];
    assert_eq!(states.keys().copied().collect::<Vec<_>>(), all);
    let dropped = seen.segments().filter_map(|s| s.dropped_at);
    let (old, young): (Vec<_>, Vec<_>) = dropped.partition(|at| now.since(at.to_ms()) > 3 * HOUR);
    assert!(old.len() >= 4 && young.len() >= 4, "{old:?} {young:?}");
    let zero: Vec<_> = seen.segments().filter(|s| s.is_l0()).collect();
    assert_eq!(zero.len(), 1);
    assert!(
        zero[0].delta.files == 1 && zero[0].delta.entries > 0,
        "{:?}",
        zero[0]
    );

    let (mut lagging, mut dropped, mut healthy) = (0, 0, 0);
    for channel in seen.channels.values() {
        let at = channel.checkpoint.expect("every channel has a checkpoint");
        if at.is_dropped() {
            dropped += 1;
            assert_eq!(channel.mark.as_deref(), Some("removed"));
            let left: Vec<_> = seen
                .segments()
                .filter(|s| *s.channel == *channel.name.0)
                .collect();
            assert!(!left.is_empty(), "segments are left behind");
            assert!(left.iter().all(|s| s.state.name == "Dropped"));
            continue;
        }
        let lag = now.since(at.time().expect("a time"));
        if lag > 3 * HOUR {
            lagging += 1;
        } else {
            healthy += 1;
            assert!(lag < PATIENCE.as_millis() as u64 * 2, "{channel:?}");
        }
    }
    assert_eq!((lagging, dropped, healthy), (1, 1, 6));

    let state = |name: &str| {
        let found = seen.snapshots.values().find(|s| *s.name == *name);
        found.unwrap_or_else(|| panic!("no snapshot {name}"))
    };
    assert_eq!(seen.snapshots.len(), 4);
    let nightly = state("nightly");
    assert_eq!(nightly.state.name, "Committed");
    assert!(nightly.protected_until.unwrap().to_ms() > now);
    assert!(
        nightly
            .pins
            .iter()
            .any(|p| p.expires.unwrap().since(now) > 5 * HOUR)
    );
    assert_eq!(state("release_1").state.name, "Committed");
    let pending = state("before_upgrade");
    assert_eq!(pending.state.name, "Pending");
    let age = now.since(pending.pending_since.unwrap());
    assert!((HOUR / 3..HOUR).contains(&age), "{age}");
    assert_eq!(state("last_week").state.name, "Deleting");
    let objects = dir.path().join("objects/some/place/snapshots");
    for name in ["before_upgrade", "last_week"] {
        let of = state(name);
        let manifests = objects.join(format!("{}/manifests/{}", of.collection, of.id));
        assert_eq!(std::fs::read_dir(manifests).unwrap().count(), 1, "{name}");
        let json = objects.join(format!("{}/metadata/{}.json", of.collection, of.id));
        assert_eq!(json.exists(), name == "last_week");
    }

    let restoring = job(&mut handle, "restoring", |_, j| j.kind == JobKind::Restore).await;
    assert!(!restoring.state.ended(), "{restoring:?}");
    assert!(
        handle.catalog.borrow().collections.len() == 4,
        "nothing half restored is visible"
    );
    let_go(&mut handle).await;
    let restored = catalog(&mut handle, "restored", |c| c.collections.len() == 5).await;
    let rows = |name: &str| {
        let of = restored
            .collections
            .values()
            .find(|c| *c.name == *name)
            .unwrap();
        let live = restored.segments().filter(|s| s.collection == of.id);
        live.filter(|s| s.state.name == "Flushed" && !s.is_l0())
            .map(|s| s.rows)
            .sum::<i64>()
    };
    assert!(rows("metrics_restored") >= rows("metrics"));

    // A second one is refused, and nothing moves.
    let rev = restored.rev;
    let again = plan(&handle, Intent::Demo).await;
    let failed: Vec<_> = again.failures().collect();
    assert_eq!(failed.len(), 1, "{:?}", again.checks);
    let why = failed[0].failed.as_deref().unwrap();
    assert!(
        why.contains("exists") && why.contains("--data-dir"),
        "{why}"
    );
    assert!(handle.catalog.borrow().rev >= rev);
    assert_eq!(handle.catalog.borrow().collections.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_names_a_real_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut handle = open(dir.path()).await;
    build(&mut handle).await;
    let_go(&mut handle).await;
    // A committed snapshot that the demo did not restore is restorable too.
    let id = handle
        .catalog
        .borrow()
        .snapshots
        .values()
        .find(|s| *s.name == *"release_1")
        .unwrap()
        .id;
    let intent = Intent::Restore {
        snapshot: id,
        database: "default".into(),
        collection: "books_again".into(),
    };
    let id = begin(&handle, intent).await;
    verified(&mut handle, id).await;
    drop(handle);

    let clock = Arc::new(SystemClock::new());
    let reader = EmbeddedReader::open_file(&dir.path().join("meta.redb"), clock).unwrap();
    let all = reader.range_all(&Span::all()).await.unwrap().kvs;
    let files = Files(dir.path().join("objects"));
    let roots = profile(dir.path()).roots;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for kv in &all {
        let text = kv.key.text();
        assert!(!text.contains("by-dev/"), "{text} is under the seed's root");
        match Key::parse(&roots, &kv.key.0).known() {
            Some(Key::Log(kind, c, p, s, _)) => {
                let logs = pb::data::FieldBinlog::decode(kv.value.clone()).unwrap();
                for (path, _) in objects(kind, (c, p, s), &logs).unwrap() {
                    *seen.entry(files.log(kind, &path)).or_default() += 1;
                }
            }
            Some(Key::SegmentIndex(_, p, s, b)) => {
                for path in index_files(kv, p, s, b) {
                    assert!(!files.read(&path).is_empty());
                    *seen.entry("index").or_default() += 1;
                }
            }
            _ => {}
        }
    }
    // 30 segments with 5 fields and more each: far from an empty loop.
    assert!(seen["insert"] > 150 && seen["stats"] > 40, "{seen:?}");
    assert!(seen["delta"] >= 5 && seen["index"] >= 6, "{seen:?}");
}

struct Files(PathBuf);

impl Files {
    fn read(&self, path: &ObjPath) -> Vec<u8> {
        let key = path.to_key("some/place");
        std::fs::read(self.0.join(&key.0)).unwrap_or_else(|e| panic!("{key}: {e}"))
    }

    /// Insert and delta logs are V1 files with events; statistics are JSON.
    fn log(&self, kind: LogKind, path: &ObjPath) -> &'static str {
        let bytes = self.read(path);
        let name = path.to_string();
        if kind == LogKind::Stats {
            serde_json::from_slice::<serde_json::Value>(&bytes).expect(&name);
            return "stats";
        }
        assert!(bytes.starts_with(&V1_MAGIC), "{name}");
        let header = V1Header::parse(&name, &bytes).unwrap();
        let events = v1_events(&name, &bytes, &header).unwrap();
        assert!(!events.is_empty(), "{name}");
        if kind == LogKind::Delta {
            "delta"
        } else {
            "insert"
        }
    }
}

fn index_files(
    kv: &KeyValue,
    partition: PartitionId,
    segment: SegmentId,
    build: BuildId,
) -> Vec<ObjPath> {
    let index = pb::index::SegmentIndex::decode(kv.value.clone()).unwrap();
    assert_ne!(IndexId(index.index_id), IndexId(0));
    let path = |file: &String| {
        ObjPath::IndexFile(IndexFile {
            build,
            version: index.index_version,
            partition,
            segment,
            file: file.clone(),
        })
    };
    index.index_file_keys.iter().map(path).collect()
}

/// Builds until `when`, dies there, and is taken up by the next process. Nothing is left of the runtime but the files.
fn dies(when: impl Fn(&JobsView) -> bool + Send + Sync + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let id = first.block_on(async {
        let mut handle = open(dir.path()).await;
        let id = begin(&handle, Intent::Demo).await;
        let reached = handle.jobs.wait_for(|view| when(view));
        patiently("there", reached).await.expect("the engine runs");
        // The handle is not dropped: nobody gives anything back.
        std::mem::forget(handle);
        id
    });
    first.shutdown_timeout(Duration::from_secs(10));
    runtime().block_on(async {
        let mut handle = open(dir.path()).await;
        let ended = verified(&mut handle, id).await;
        let how = ended.recovered.as_deref().unwrap_or_default();
        assert!(how.starts_with("resumed"), "{ended:?}");
        let seen = catalog(&mut handle, "whole", |c| {
            c.collections.len() == 4 && c.snapshots.len() == 4
        })
        .await;
        assert!(seen.undecodable.is_empty());
        let restore = let_go(&mut handle).await;
        assert_eq!(restore.kind, JobKind::Restore);
        let restored = |c: &Catalog| c.collections.len() == 5;
        let seen = catalog(&mut handle, "restored", restored).await;
        assert_eq!(
            seen.snapshots
                .values()
                .filter(|s| s.state.name == "Committed")
                .count(),
            2
        );
        let sentinels = seen
            .channels
            .values()
            .filter(|c| c.checkpoint == Some(Tso::DROPPED));
        assert_eq!(sentinels.count(), 1);
        // One of each: what was begun before the end was not begun again.
        let kinds: Vec<JobKind> = handle.jobs.borrow().jobs.iter().map(|j| j.kind).collect();
        let count = |kind| kinds.iter().filter(|k| **k == kind).count();
        assert_eq!(
            (
                count(JobKind::Demo),
                count(JobKind::CreateSnapshot),
                count(JobKind::Restore)
            ),
            (1, 3, 1)
        );
    });
}

#[test]
fn a_process_that_dies_at_once_is_followed_by_another() {
    dies(|view| !view.jobs.is_empty());
}

#[test]
fn a_process_that_dies_while_a_snapshot_is_made_is_followed_by_another() {
    dies(|view| {
        let demo = view.jobs.iter().find(|j| j.kind == JobKind::Demo);
        let making = view.jobs.iter().any(|j| j.kind == JobKind::CreateSnapshot);
        making && demo.is_some_and(|d| !d.state.ended())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_stopped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut handle = open(dir.path()).await;
    let id = begin(&handle, Intent::Demo).await;
    handle.request(Request::Cancel(id)).await.expect("it runs");
    let ended = job(&mut handle, "ended", |_, j| j.id == id && j.state.ended()).await;
    assert_eq!(ended.state, JobState::Cancelled, "{ended:?}");
    let rev = match handle.conn.borrow().clone() {
        Conn::Live { rev, .. } => rev,
        other => panic!("{other:?}"),
    };
    let key = MetaKey::from("another-root/meta/x");
    handle.request(Request::Raw(key)).await.expect("an answer");
    drop(handle);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let reader = EmbeddedReader::open_file(&dir.path().join("meta.redb"), clock).unwrap();
    let all = reader.range_all(&Span::all()).await.unwrap();
    assert!(all.rev >= rev);
    let left: Vec<String> = all.kvs.iter().map(|kv| kv.key.text()).collect();
    let under = |k: &&String| k.starts_with("another-root/meta/");
    assert_eq!(left.iter().filter(under).count(), 0, "{left:?}");
    let files = walk(&dir.path().join("objects"));
    assert_eq!(files, Vec::<PathBuf>::new());
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(walk(&path));
        } else {
            out.push(path);
        }
    }
    out
}
