//! One sweep for every verb that writes: each store operation of a run fails, or the process dies at it; then it is taken up again,
//! and `support::sound` must hold. An ordinary run takes a sample of the points, `tools/sweep` all of them.

#[path = "sweep/cancelled.rs"]
mod cancelled;
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::Family;
use falconer::engine::format::pb;
use falconer::engine::format::pb::data::SegmentInfo;
use falconer::engine::ids::{JobId, SnapshotId, UnixMs};
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::MetaWriter;
use falconer::engine::meta::scope::Scope;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::model::quarantine::DAY_MS;
use falconer::engine::plan::Intent;
use falconer::engine::plan::execute::{Executor, Parts};
use prost::Message;
use support::bundles::{Files, MOVED, bundle, from_bundle, put_moved, whole};
use support::faults::{Faults, Stores, World, sweep};
use support::place::destroy;
use support::same::{same, unpinned};
use support::snapshots::{
    self as lab, Made, ROOT, Seed, all, collection, family, make, objects, roots,
};
use support::sound::{Before, id_of, sound};

const SNAPSHOT: SnapshotId = SnapshotId(470_660_334_431_990_001);

fn runner(stores: &Stores) -> RunnerHandle {
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(3)),
        actor: "tester pid 3".into(),
        embedded: true,
    });
    Runner::start(
        executor,
        falconer::engine::registry(Tolerances::default(), &Keeper::default()),
    )
}

/// Two flushed segments with deletes and index files, and a snapshot of them; one world a point.
async fn world() -> World {
    seed().await.0.world()
}

async fn seed() -> &'static (Seed, Made) {
    static SEED: tokio::sync::OnceCell<(Seed, Made)> = tokio::sync::OnceCell::const_new();
    SEED.get_or_init(|| async {
        let seed = lab::small_seed(&lab::FLUSHED).await;
        seed.prepare(async |world: &World| {
            let (db, of) = collection(&*world.meta, "metrics").await;
            make(world, db, of, SNAPSHOT.0, "nightly", 2).await
        })
        .await
    })
    .await
}

/// The same, and beside it a bundle of the snapshot that was moved as a whole.
async fn moved_world() -> World {
    static BUNDLE: tokio::sync::OnceCell<Files> = tokio::sync::OnceCell::const_new();
    let inside = BUNDLE
        .get_or_init(|| async {
            let world = world().await;
            let stores = world.open(&Faults::none(), ROOT);
            let info = operate(&stores, 0, &export(), nothing).await.unwrap();
            assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
            bundle(&objects(&*world.objects).await).1
        })
        .await;
    let world = world().await;
    put_moved(&world, inside).await;
    world
}

/// What became of the job, if one was begun; `before` were there already.
async fn job_of(runner: &RunnerHandle, before: usize) -> Option<JobId> {
    let mut view = runner.view.clone();
    loop {
        let now = view.borrow_and_update().clone();
        if now.known {
            let newest = now.jobs.first().filter(|_| now.jobs.len() > before);
            return newest.map(|j| j.id);
        }
        view.changed().await.ok()?;
    }
}

fn passes(e: &Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown
}

async fn begun(runner: &RunnerHandle, intent: &Intent) -> Result<JobId> {
    let plan = runner.plan(intent.clone(), Arc::default()).await?;
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    runner.apply(&plan.hash, &typed).await
}

/// Starts the program: waits for the job that is there, or gives the order and waits. `meanwhile` is done while it runs.
async fn operate(
    stores: &Stores,
    before: usize,
    intent: &Intent,
    meanwhile: impl AsyncFn(&RunnerHandle, JobId),
) -> Result<Arc<JobInfo>> {
    let runner = runner(stores);
    let job = loop {
        if let Some(job) = job_of(&runner, before).await {
            break job;
        }
        match begun(&runner, intent).await {
            Ok(job) => break job,
            Err(e) if passes(&e) => tokio::task::yield_now().await,
            Err(e) => return Err(e),
        }
    };
    meanwhile(&runner, job).await;
    let info = runner.ended(job).await?;
    runner.stop().await;
    Ok(info)
}

/// One verb through all points. `wanted` are the states in which its job may end; `name` what it publishes.
async fn swept(
    what: &str,
    intent: Intent,
    wanted: &[JobState],
    name: Option<&str>,
    meanwhile: impl AsyncFn(&RunnerHandle, JobId),
) {
    let more = async |_: &World, _: &str| {};
    swept_in(world, what, intent, (wanted, name), meanwhile, more).await;
}

/// The same in worlds of another make, with more to look at in the end.
async fn swept_in(
    make: impl AsyncFn() -> World,
    what: &str,
    intent: Intent,
    (wanted, name): (&[JobState], Option<&str>),
    meanwhile: impl AsyncFn(&RunnerHandle, JobId),
    more: impl AsyncFn(&World, &str),
) {
    let before = Before::of(&make().await).await;
    let jobs = all(&*make().await.meta, "falconer/by-dev/job/").await;
    let jobs = jobs
        .keys()
        .filter(|key| key.split('/').count() == 4)
        .count();
    let drive = async |stores: &Stores| {
        let info = operate(stores, jobs, &intent, &meanwhile).await?;
        if wanted.contains(&info.state) {
            Ok(())
        } else {
            let said = format!("{:?}: {:?} {:?}", info.state, info.error, info.notes);
            Err(Error::new(ErrorKind::Internal, said))
        }
    };
    let check = async |world: &World, label: &str| {
        let mut made = BTreeSet::new();
        if let Some(name) = name {
            made.extend(id_of(world, name).await.map(|c| c.0));
            let must = wanted == [JobState::Verified];
            assert!(!must || !made.is_empty(), "{label}: no {name}");
        }
        let label = format!("{what}: {label}");
        sound(world, &before, &made, &label).await;
        more(world, &label).await;
    };
    let points = sweep(ROOT, make, drive, check).await;
    println!("{what}: {points} points");
    assert!(points > 30, "{what}: {points}");
}

async fn nothing(_: &RunnerHandle, _: JobId) {}

#[tokio::test(start_paused = true)]
async fn create_stays_sound_through_every_fault() {
    let intent = Intent::CreateSnapshot {
        collection: lab::SMALL,
        name: "second".into(),
        description: String::new(),
        protection_secs: 3600,
        operation: None,
    };
    swept("create", intent, &[JobState::Verified], None, nothing).await;
}

#[tokio::test(start_paused = true)]
async fn drop_stays_sound_through_every_fault() {
    let intent = Intent::DropSnapshot { snapshot: SNAPSHOT };
    swept("drop", intent, &[JobState::Verified], None, nothing).await;
}

fn restore() -> Intent {
    Intent::Restore {
        snapshot: SNAPSHOT,
        database: "default".into(),
        collection: "copy".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn restore_stays_sound_through_every_fault() {
    swept(
        "restore",
        restore(),
        &[JobState::Verified],
        Some("copy"),
        nothing,
    )
    .await;
}

/// Asks a job to stop once it has copied something, and again after a crash: whoever gave the order still wants it.
async fn cancel(runner: &RunnerHandle, job: JobId) {
    let _ = runner.throttle(job, Some(20_000));
    let mut view = runner.view.clone();
    loop {
        let copied = view.borrow_and_update().jobs.iter().any(|j| {
            j.id == job
                && (j.progress.files.0 > 0 || j.state.ended() || j.state == JobState::Undoing)
        });
        if copied || view.changed().await.is_err() {
            break;
        }
    }
    let _ = runner.cancel(job);
}

#[tokio::test(start_paused = true)]
async fn cancel_stays_sound_through_every_fault() {
    // A point may lie behind the end of the copying: then there is nothing to stop any more.
    let wanted = [JobState::Cancelled, JobState::Verified];
    swept("cancel", restore(), &wanted, Some("copy"), cancel).await;
}

/// Long after the capture, and after whatever a store in memory says of its objects.
const LATER: UnixMs = UnixMs(1_890_000_000_000);

fn at(world: World, now: UnixMs) -> World {
    World::new(world.meta, world.objects, now)
}

/// One segment was compacted away long ago; another is live, and in a snapshot. And objects of which no record tells.
async fn litter() -> Seed {
    let seed = lab::small_seed(&[lab::FLUSHED[0], lab::COMPACTED[0]]).await;
    let seed = seed.prepare(async |world: &World| {
        let meta = &*world.meta;
        let (db, of) = collection(meta, "metrics").await;
        make(world, db, of, SNAPSHOT.0, "nightly", 1).await;
        for (key, mut info) in family::<SegmentInfo>(meta, Family::Segment).await {
            if info.id == lab::COMPACTED[0] {
                info.state = 6;
                info.dropped_at = ((LATER.0 - 4 * 3_600_000) * 1_000_000) as u64;
                lab::put(meta, &key.to_key(&roots()), info.encode_to_vec()).await;
            }
        }
        let removal = "by-dev/meta/datacoord-meta/channel-removal";
        for key in all(meta, removal).await.into_keys() {
            lab::put(meta, &key.as_str().into(), b"removed".to_vec()).await;
        }
        for key in [
            "insert_log/999/998/997/100/1",
            "bm25_stats/999/998/997/102/1",
            "index_files/996/1/998/997/IVF_0",
            "snapshots/999/metadata/995.json",
        ] {
            let key = format!("{ROOT}/{key}");
            lab::put_object(world, &key.as_str().into(), key.clone().into_bytes()).await;
        }
    });
    seed.await.0
}

async fn littered() -> World {
    static SEED: tokio::sync::OnceCell<Seed> = tokio::sync::OnceCell::const_new();
    at(SEED.get_or_init(litter).await.world(), LATER)
}

async fn litter_through_every_fault(what: &str, intent: Intent) {
    let wanted = (&[JobState::Verified][..], None);
    let more = async |_: &World, _: &str| {};
    swept_in(littered, what, intent, wanted, nothing, more).await;
}

fn collect(quarantine: bool) -> Intent {
    Intent::Gc {
        collection: None,
        rules: BTreeSet::new(),
        quarantine,
    }
}

#[tokio::test(start_paused = true)]
async fn collection_stays_sound_through_every_fault() {
    litter_through_every_fault("gc", collect(false)).await;
}

#[tokio::test(start_paused = true)]
async fn collection_into_quarantine_stays_sound_through_every_fault() {
    litter_through_every_fault("gc into quarantine", collect(true)).await;
}

fn orphans() -> Intent {
    Intent::Orphans {
        collection: None,
        prefixes: BTreeSet::new(),
        delete: false,
    }
}

#[tokio::test(start_paused = true)]
async fn an_orphan_scan_stays_sound_through_every_fault() {
    litter_through_every_fault("orphans", orphans()).await;
}

/// The litter lies aside since more than a week.
async fn set_aside() -> World {
    static SEED: tokio::sync::OnceCell<Seed> = tokio::sync::OnceCell::const_new();
    let seed = SEED.get_or_init(|| async {
        let moved = litter().await.prepare(async |world: &World| {
            let world = World::new(world.meta.clone(), world.objects.clone(), LATER);
            let stores = world.open(&Faults::none(), ROOT);
            let info = operate(&stores, 0, &orphans(), &nothing).await.unwrap();
            assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
        });
        moved.await.0
    });
    at(seed.await.world(), UnixMs(LATER.0 + 8 * DAY_MS))
}

#[tokio::test(start_paused = true)]
async fn a_purge_stays_sound_through_every_fault() {
    let purge = Intent::QuarantinePurge { days: 7 };
    let wanted = (&[JobState::Verified][..], None);
    let more = async |_: &World, _: &str| {};
    swept_in(set_aside, "purge", purge, wanted, nothing, more).await;
}

fn export() -> Intent {
    Intent::Export {
        snapshot: SNAPSHOT,
        target: "backups".into(),
    }
}

/// A bundle that is whole and nothing else is new; or nothing is, where none is `wanted`.
async fn exported(world: &World, wanted: bool, label: &str) {
    let (seed, made) = seed().await;
    let before = objects(&*seed.world().objects).await;
    let after = objects(&*world.objects).await;
    let new: Files = after
        .iter()
        .filter(|(key, _)| !before.contains_key(*key))
        .map(|(key, bytes)| (key.clone(), bytes.clone()))
        .collect();
    for (key, bytes) in &before {
        assert!(after.get(key) == Some(bytes), "{label}: {key}");
    }
    if new.is_empty() && !wanted {
        return;
    }
    let (root, inside) = bundle(&new);
    assert!(root.starts_with("backups/exports/"), "{label}: {root}");
    assert_eq!(inside.len(), new.len(), "{label}: {:?}", new.keys());
    let uri = format!("{root}/snapshots/{}/metadata/{}.json", made.of, made.id);
    whole(made, &before, &after, &uri);
    unpinned(world, made, label).await;
}

#[tokio::test(start_paused = true)]
async fn export_stays_sound_through_every_fault() {
    let wanted = (&[JobState::Verified][..], None);
    let more = async |world: &World, label: &str| exported(world, true, label).await;
    swept_in(world, "export", export(), wanted, nothing, more).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_export_stays_sound_through_every_fault() {
    let wanted = (&[JobState::Cancelled, JobState::Verified][..], None);
    let more = async |world: &World, label: &str| exported(world, false, label).await;
    swept_in(world, "cancelled export", export(), wanted, cancel, more).await;
}

#[tokio::test(start_paused = true)]
async fn restore_from_a_bundle_stays_sound_through_every_fault() {
    let (_, made) = seed().await;
    let wanted = (&[JobState::Verified][..], Some("copy"));
    let more = async |world: &World, label: &str| {
        let jobs = family::<pb::data::CopySegmentJob>(&*world.meta, Family::CopySegmentJob).await;
        let job = &jobs[0].1;
        assert!(job.external && job.external_spec.is_empty(), "{label}");
        assert_eq!(job.snapshot_fingerprint.len(), 64, "{label}");
        // What follows looks at the cluster's own files alone: the bundle is taken away again.
        for key in objects(&*world.objects).await.into_keys() {
            if key.starts_with(MOVED) {
                destroy(&*world.objects, &key).await;
            }
        }
        same(world, made, "copy", label).await;
    };
    let intent = from_bundle(made, "copy");
    swept_in(
        moved_world,
        "restore from a bundle",
        intent,
        wanted,
        nothing,
        more,
    )
    .await;
}
