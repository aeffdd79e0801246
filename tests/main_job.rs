//! The main job through the engine's own door, on an embedded file with a local folder and on real etcd with a real S3 server:
//! create → list → describe → restore → compare → drop → collect, every source object byte for byte what it was; then the same with
//! objects missing; and with the program killed in the middle of a restore.

mod support;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use falconer::engine::clock::{Clock, SystemClock};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb;
use falconer::engine::format::vchannel;
use falconer::engine::handle::{Handle, Reply, Request};
use falconer::engine::ids::{CollectionId, DbId, SnapshotId};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::Intent;
use falconer::engine::profile::Roots;
use serde_json::Value;
use support::faults::{VirtualClock, World};
use support::lab;
use support::place::{
    NOW, Objects, Place, apply, catalog, create, destroy, job, pass, patiently, plan, read,
    restore, run, snapshot, verified,
};
use support::s3;
use support::same::{same, target};
use support::snapshots::{Made, collection, family, named};

impl Place {
    /// The program itself, as a process of its own.
    fn start(&self, args: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_falconer"))
            .args(&self.args)
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts")
    }
}

async fn ask(handle: &Handle, request: Request) -> Value {
    match handle.request(request).await.expect("an answer") {
        Reply::Tree(tree) => (*tree).clone(),
        other => panic!("{other:?}"),
    }
}

/// Deletes, indexes, two shards, three partitions: what the story needs.
fn interesting(made: &Made) {
    let deletes = made.segments.iter().filter(|s| !s.deltalogs.is_empty());
    let indexed = made.segments.iter().flat_map(|s| &s.index_files);
    assert!(deletes.count() > 0 && indexed.count() > 0);
    let description = made.metadata.collection.as_ref().unwrap();
    assert_eq!(description.num_shards, 2);
    assert_eq!(description.partitions.len(), 3);
    let shards: BTreeSet<&str> = made
        .segments
        .iter()
        .map(|s| s.channel_name.as_str())
        .collect();
    assert_eq!(shards.len(), 2, "{shards:?}");
}

/// Looks at every catalog that is published: a name appears with all of its segments, or not at all.
struct Witness {
    seen: Arc<Mutex<Vec<Option<usize>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Witness {
    fn of(handle: &Handle, name: &'static str) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut catalog, out) = (handle.catalog.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while catalog.changed().await.is_ok() {
                let now = catalog.borrow_and_update().clone();
                let found = now.collections.values().find(|c| &*c.name == name);
                let segments = found.map(|c| now.segments_of(c.id).count());
                out.lock().unwrap().push(segments);
            }
        });
        Self { seen, task }
    }

    fn end(self, whole: usize) {
        self.task.abort();
        let seen = self.seen.lock().unwrap();
        let absent = seen.iter().filter(|s| s.is_none()).count();
        assert!(absent > 0, "never seen before it was published");
        assert!(
            seen.iter().flatten().all(|n| *n == whole),
            "half visible: {seen:?}"
        );
        assert!(seen.last().unwrap().is_some(), "seen at the end");
    }
}

fn unharmed(before: &Objects, now: &Objects, what: &str) {
    for (key, bytes) in before {
        assert_eq!(now.get(key), Some(bytes), "{what}: {key}");
    }
}

async fn main_job(place: &Place) {
    let clock: Arc<dyn Clock> = VirtualClock::at(NOW);
    let label = place.label;
    let before = place.objects().await;
    assert_eq!(before.len(), lab::objects().len());
    let (db, of) = collection(&*place.world().await.meta, "books").await;
    assert_eq!(db, DbId(1));

    // create, list, describe
    let mut handle = place.open(&clock).await;
    let id = snapshot(&mut handle, of, "nightly").await;
    let told = ask(&handle, Request::SnapshotDetail(id)).await;
    assert_eq!(told["state"], "Committed", "{told}");
    assert_eq!(told["files"]["missing"], 0, "{told}");

    // restore, looked at in the middle
    let witness = Witness::of(&handle, "books_copy");
    let planned = plan(&handle, restore(id, "books_copy")).await;
    let restoring = apply(&handle, &planned).await.unwrap();
    handle
        .request(Request::Throttle(restoring, Some(400_000)))
        .await
        .unwrap();
    let half = job(&mut handle, "half way", |j| {
        j.id == restoring && (j.progress.files.0 > 0 || j.state.ended())
    })
    .await;
    assert_eq!(half.state, JobState::Running, "{half:?}");
    assert!(half.progress.files.0 < half.progress.files.1, "{half:?}");
    let new = half.collection.expect("a job that copies has its ids");
    let head = Key::Collection(DbId(1), new).to_key(&Roots::default());
    match handle.request(Request::Raw(head.clone())).await.unwrap() {
        Reply::Raw(raw) => assert!(raw.value.is_none(), "{label}: {head} is there already"),
        other => panic!("{other:?}"),
    }
    assert!(handle.catalog.borrow().segments_of(new).next().is_none());
    handle
        .request(Request::Throttle(restoring, None))
        .await
        .unwrap();
    let ended = verified(&mut handle, restoring).await;
    assert_eq!(ended.progress.files.0, ended.progress.files.1, "{ended:?}");
    assert_eq!(ended.progress.bytes.0, ended.progress.bytes.1, "{ended:?}");
    let seen = catalog(&mut handle, "restored", |c| {
        c.collections.contains_key(&new)
    })
    .await;
    drop(seen);
    tokio::task::yield_now().await;
    let whole = handle.catalog.borrow().segments_of(new).count();
    witness.end(whole);
    drop(handle);
    let world = place.world().await;
    let made = read(&world, id).await;
    interesting(&made);
    assert_eq!(whole, made.segments.len());
    same(&world, &made, "books_copy", label).await;
    let held = named(&made);
    drop(world);
    let after = place.objects().await;
    unharmed(&before, &after, "after the restore");
    let restored: Objects = after
        .iter()
        .filter(|(k, _)| !before.contains_key(*k) && !k.contains("/snapshots/"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    assert_eq!(restored.len(), held.len(), "{label}: object by object");

    // a second snapshot, the first dropped, one pass
    let mut handle = place.open(&clock).await;
    let second = snapshot(&mut handle, of, "second").await;
    run(&mut handle, Intent::DropSnapshot { snapshot: id }).await;
    let now = place.objects().await;
    unharmed(&after_drop(&after, id), &now, "after the drop");
    assert!(
        !now.keys().any(|k| k.contains(&id.to_string())),
        "{label}: files of the dropped snapshot"
    );
    let planned = plan(&handle, pass()).await;
    let collecting = apply(&handle, &planned).await.unwrap();
    verified(&mut handle, collecting).await;
    let collected = place.objects().await;
    let gone: Vec<&String> = now.keys().filter(|k| !collected.contains_key(*k)).collect();
    assert!(!gone.is_empty(), "{label}: the pass took nothing");
    assert_eq!(gone.len() as u64, planned.objects.deletes, "{label}");
    let dropped: BTreeSet<String> = support::lab::etcd()
        .iter()
        .filter_map(|k| {
            let Key::Segment(..) = Key::parse(&Roots::default(), &k.key).known()? else {
                return None;
            };
            let info: pb::data::SegmentInfo = prost::Message::decode(&k.value[..]).ok()?;
            (info.state == 6).then(|| info.id.to_string())
        })
        .collect();
    for key in gone {
        assert!(
            key.split('/').any(|part| dropped.contains(part)),
            "{label}: {key} was not of a dropped segment"
        );
        assert!(!held.contains(key), "{label}: {key} is held");
    }
    for (key, bytes) in &collected {
        assert_eq!(now.get(key), Some(bytes), "{label}: {key} after the pass");
    }
    unharmed(&restored, &collected, "the restored collection");
    for key in &held {
        assert_eq!(collected.get(key), before.get(key), "{label}: {key}");
    }

    // objects deleted by hand: everything that would need them names each and refuses
    let pick = |part: &str| held.iter().find(|k| k.contains(part)).unwrap().clone();
    let missing = ["/insert_log/", "/delta_log/", "/index_files/"].map(pick);
    for key in &missing {
        destroy(&*place.bucket, key).await;
    }
    for intent in [create(of, "third"), restore(second, "never")] {
        let refused = plan(&handle, intent).await;
        assert!(!refused.applicable(), "{label}: {refused:?}");
        let why: Vec<String> = refused
            .failures()
            .filter_map(|c| c.failed.clone())
            .collect();
        for key in &missing {
            assert!(
                why.iter().any(|w| w.contains(key.as_str())),
                "{label}: {key} in {why:?}"
            );
        }
        apply(&handle, &refused).await.unwrap_err();
    }
    let report = ask(&handle, Request::Doctor { deep: true }).await;
    let failed: String = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| {
            c["status"]
                .as_str()
                .is_some_and(|s| s.eq_ignore_ascii_case("fail"))
        })
        .map(Value::to_string)
        .collect();
    for key in &missing {
        assert!(failed.contains(key.as_str()), "{label}: {key} in {report}");
    }
    let names: Vec<String> = handle
        .catalog
        .borrow()
        .collections
        .values()
        .map(|c| c.name.to_string())
        .collect();
    assert!(!names.contains(&"never".to_owned()), "{names:?}");
    assert_eq!(vchannel_count(&handle, new), 2);
}

fn vchannel_count(handle: &Handle, of: CollectionId) -> usize {
    let catalog = handle.catalog.borrow();
    let channels = catalog.channels.keys();
    channels
        .filter(|c| vchannel::collection(c) == Some(of))
        .count()
}

/// What a drop of this snapshot leaves.
fn after_drop(before: &Objects, id: SnapshotId) -> Objects {
    before
        .iter()
        .filter(|(k, _)| !k.contains(&id.to_string()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_an_embedded_file_and_a_local_folder() {
    main_job(&Place::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_real_etcd_and_a_real_s3_server() {
    main_job(&Place::servers(s3::shared(), "main-job").await).await;
}

/// Starts a slow restore as a process of its own and kills it with `SIGKILL` when some files are there.
async fn kill_in_the_middle(place: &Place, snapshot: SnapshotId, name: &str) {
    let before = place.bucket_keys().await;
    let id = snapshot.to_string();
    let args = ["restore", "start", &id, name, "--rate", "200KiB", "--yes"];
    let mut child = place.start(&args);
    let copying = async {
        loop {
            let new = place.bucket_keys().await.difference(&before).count();
            if new >= 5 {
                break;
            }
            assert!(
                child.try_wait().unwrap().is_none(),
                "{}: the restore ended before it could be killed",
                place.label
            );
        }
    };
    patiently("copying", copying).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

impl Place {
    async fn bucket_keys(&self) -> BTreeSet<String> {
        use futures::TryStreamExt;
        let listed = self.bucket.list(None);
        listed
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .unwrap()
    }
}

/// The job that an earlier process left behind, let go and ended.
async fn taken_up(handle: &mut Handle, name: &str) -> Arc<JobInfo> {
    let left = job(handle, "taken up", |j| {
        j.title.ends_with(name) && j.recovered.is_some()
    })
    .await;
    // It may have ended meanwhile: then there is nothing to let go.
    drop(handle.request(Request::Throttle(left.id, None)).await);
    job(handle, "ended", |j| j.id == left.id && j.state.ended()).await
}

async fn killed(place: &Place) {
    let label = place.label;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let before = place.objects().await;
    let (_, of) = collection(&*place.world().await.meta, "books").await;
    let mut handle = place.open(&clock).await;
    let id = snapshot(&mut handle, of, "nightly").await;
    drop(handle);
    drop(place.world().await);

    kill_in_the_middle(place, id, "books_copy").await;
    let world = place.world().await;
    let names = names_of(&world).await;
    assert!(!names.contains("books_copy"), "{label}: half visible");
    let made = read(&world, id).await;
    drop(world);
    let mut handle = place.open(&clock).await;
    let info = taken_up(&mut handle, "books_copy").await;
    assert_eq!(info.state, JobState::Verified, "{label}: {info:?}");
    let said = info.recovered.clone().unwrap();
    assert!(said.starts_with("resumed"), "{label}: {said}");
    assert!(
        info.notes.iter().any(|n| n.contains("files were there")),
        "{label}: {:?}",
        info.notes
    );
    drop(handle);
    let world = place.world().await;
    same(&world, &made, "books_copy", label).await;
    drop(world);
    let whole = place.objects().await;
    unharmed(&before, &whole, label);

    // Killed again; while nobody looks a source object disappears: it cannot go on, so it is taken back, and says so.
    kill_in_the_middle(place, id, "books_gone").await;
    let lost = named(&made).into_iter().next_back().unwrap();
    destroy(&*place.bucket, &lost).await;
    let mut handle = place.open(&clock).await;
    let info = taken_up(&mut handle, "books_gone").await;
    assert_eq!(info.state, JobState::Failed, "{label}: {info:?}");
    assert!(
        info.error.as_deref().is_some_and(|e| e.contains(&lost)),
        "{label}: {info:?}"
    );
    let said = info.recovered.clone().unwrap();
    assert!(said.starts_with("undone"), "{label}: {said}");
    drop(handle);
    let world = place.world().await;
    assert!(!names_of(&world).await.contains("books_gone"));
    target(&world, "books_copy").await;
    drop(world);
    let mut wanted = whole;
    wanted.remove(&lost);
    let left = place.objects().await;
    assert!(
        left.keys().eq(wanted.keys()),
        "{label}: copies of a restore that was taken back"
    );
    unharmed(&wanted, &left, label);
}

async fn names_of(world: &World) -> BTreeSet<String> {
    family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
        .await
        .into_iter()
        .map(|(_, info)| info.schema.unwrap_or_default().name)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_on_an_embedded_file_and_a_local_folder() {
    killed(&Place::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_on_real_etcd_and_a_real_s3_server() {
    killed(&Place::servers(s3::shared(), "killed").await).await;
}
