//! Export of a snapshot as a bundle of its own: whole, on every kind of store, through every fault; and what it leaves when it fails.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::clock::{SeededEntropy, SystemClock};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::bundle::{parse_metadata_uri, parse_place};
use falconer::engine::format::keys::Family;
use falconer::engine::format::pb;
use falconer::engine::ids::{JobId, KeyPrefix, ObjectKey, SnapshotId};
use falconer::engine::jobs::export::Export;
use falconer::engine::jobs::registry::Registry;
use falconer::engine::jobs::restore::Restore;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWrite, MetaWriter, Span};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::objects::{ObjectRead, ObjectWrite, PutMode, open};
use falconer::engine::plan::Intent;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::profile::{Elsewhere, ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile};
use futures::TryStreamExt as _;
use support::bundles::{Files, bundle, from_bundle, put_moved, whole};
use support::faults::{Faults, Stores, World, sweep_some};
use support::s3;
use support::snapshots::{
    self as lab, FLUSHED, Made, ROOT, SMALL, Seed, all, collection, family, make, objects, roots,
};
use support::stubborn::stubborn;

/// Points of each sweep in an ordinary run; `tools/sweep export` takes all of them.
const POINTS: usize = 50;

fn runner(
    meta: Arc<dyn MetaWrite>,
    write: ObjectWrite,
    stores: &Stores,
    seed: u64,
) -> RunnerHandle {
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(meta, &Scope::root(stores.clock.clone(), "test")),
        objects: write,
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(seed)),
        actor: format!("tester pid {seed}"),
        embedded: true,
    });
    let kinds = Registry::default().with(Export::default());
    Runner::start(executor, kinds.with(Restore::default()))
}

fn intent(snapshot: SnapshotId, target: &str) -> Intent {
    Intent::Export {
        snapshot,
        target: target.to_owned(),
    }
}

/// Two segments with deletes and index files, and a committed snapshot of them.
async fn small_world() -> (World, &'static Made) {
    static SEED: tokio::sync::OnceCell<(Seed, Made)> = tokio::sync::OnceCell::const_new();
    let (seed, made) = SEED
        .get_or_init(|| async {
            let seed = lab::small_seed(&FLUSHED).await;
            seed.prepare(async |world: &World| {
                let (db, of) = collection(&*world.meta, "metrics").await;
                assert_eq!(of, SMALL);
                make(world, db, of, 470_660_334_431_990_001, "nightly", 2).await
            })
            .await
        })
        .await;
    (seed.world(), made)
}

async fn job(meta: &dyn MetaWrite) -> Result<Option<JobId>> {
    let span = Span::prefix(&KeyPrefix::new("falconer/by-dev/job"));
    let page = meta.range_all(&span).await?;
    let id = |key: &str| key.split('/').nth(3).unwrap().parse().unwrap();
    Ok(page.kvs.first().map(|kv| id(&kv.key.text())))
}

/// Starts the program; waits for the job that is there, or gives the order and waits.
async fn operate(stores: &Stores, intent: Intent) -> Result<Arc<JobInfo>> {
    let runner = runner(stores.meta.clone(), stores.write.clone(), stores, 1);
    let job = loop {
        let begun = match job(&*stores.meta).await {
            Ok(Some(job)) => Ok(job),
            Ok(None) => match runner.plan(intent.clone(), Arc::default()).await {
                Ok(plan) => runner.apply(&plan.hash, "").await,
                Err(e) => Err(e),
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
    Ok(info)
}

/// The cluster itself is as it was: no pin, no other record but the job's own, nothing lost.
async fn unchanged(world: &World, made: &Made, state: i32, label: &str) {
    let jobs = family::<pb::data::ExportSnapshotJob>(&*world.meta, Family::ExportSnapshotJob).await;
    assert_eq!(jobs.len(), 1, "{label}");
    let record = &jobs[0].1;
    assert_eq!(
        (record.state, record.external_spec.as_str()),
        (state, ""),
        "{label}"
    );
    let snapshots = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await;
    let info = &snapshots.iter().find(|(_, i)| i.id == made.id.0).unwrap().1;
    assert!(
        info.pin_ids.is_empty() && info.pin_expire_at_ms.is_empty(),
        "{label}"
    );
}

/// Everything is copied and every manifest written when it fails for good, and every fault strikes on the way there and back.
#[tokio::test(start_paused = true)]
async fn a_failed_export_leaves_nothing_behind_through_every_fault() {
    let make_world = async || {
        let (world, store) = stubborn(&small_world().await.0);
        // The last thing before a bundle is published.
        *store.unwritable.lock().unwrap() = Some("_staging".into());
        world
    };
    let (world, made) = small_world().await;
    let before = objects(&*world.objects).await;
    let drive = async |stores: &Stores| {
        let info = operate(stores, intent(made.id, "b")).await?;
        let why = info.error.clone().unwrap_or_default();
        if info.state == JobState::Failed && why.contains("_staging/metadata.json") {
            return Ok(());
        }
        let what = format!("{:?}: {:?} {:?}", info.state, info.error, info.notes);
        Err(Error::new(ErrorKind::Internal, what))
    };
    let check = async |world: &World, label: &str| {
        let after = objects(&*world.objects).await;
        let left: Vec<&String> = after.keys().filter(|k| !before.contains_key(*k)).collect();
        assert!(after == before, "{label}: {left:?}");
        unchanged(world, made, 4, label).await;
    };
    let runs = sweep_some(POINTS, ROOT, make_world, drive, check).await;
    assert!(runs > 100, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_export_leaves_nothing_behind() {
    let (world, made) = small_world().await;
    let before = objects(&*world.objects).await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(stores.meta.clone(), stores.write.clone(), &stores, 1);
    let plan = runner
        .plan(intent(made.id, "b"), Arc::default())
        .await
        .unwrap();
    let job = runner.apply(&plan.hash, "").await.unwrap();
    // Slow enough to be met in the middle of it.
    runner.throttle(job, Some(4_000)).unwrap();
    let mut view = runner.view.clone();
    loop {
        let now = view.borrow_and_update().clone();
        let it = now.jobs.iter().find(|j| j.id == job);
        if it.is_some_and(|j| j.progress.files.0 > 0 || j.state.ended()) {
            break;
        }
        view.changed().await.unwrap();
    }
    assert!(
        objects(&*world.objects).await.len() > before.len(),
        "it had begun"
    );
    runner.cancel(job).unwrap();
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Cancelled, "{:?}", info.notes);
    runner.stop().await;
    assert!(objects(&*world.objects).await == before);
    unchanged(&world, made, 4, "cancelled").await;
}

async fn moved_world() -> (World, &'static Made) {
    static BUNDLE: tokio::sync::OnceCell<Files> = tokio::sync::OnceCell::const_new();
    let (world, made) = small_world().await;
    let inside = BUNDLE
        .get_or_init(|| async {
            let (world, made) = small_world().await;
            let stores = world.open(&Faults::none(), ROOT);
            let info = operate(&stores, intent(made.id, "backups")).await.unwrap();
            assert_eq!(info.state, JobState::Verified, "{:?}", info.error);
            bundle(&objects(&*world.objects).await).1
        })
        .await;
    put_moved(&world, inside).await;
    (world, made)
}

/// Why there is no plan, or why it cannot be applied.
async fn why_not(runner: &RunnerHandle, intent: Intent) -> String {
    match runner.plan(intent, Arc::default()).await {
        Err(e) => e.to_string(),
        Ok(plan) => {
            let failed = plan.failures().filter_map(|c| c.failed.clone());
            failed.collect::<Vec<_>>().join("; ")
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_is_damaged_is_refused_by_name() {
    let (world, made) = moved_world().await;
    let (root, inside) = ("moved/here", objects(&*world.objects).await);
    let refused = async |intent: Intent| {
        let stores = world.open(&Faults::none(), ROOT);
        let runner = runner(stores.meta.clone(), stores.write.clone(), &stores, 1);
        let why = why_not(&runner, intent).await;
        runner.stop().await;
        why
    };
    assert_eq!(refused(from_bundle(made, "x")).await, "");
    let at = |uri: &str| Intent::RestoreBundle {
        uri: uri.to_owned(),
        database: "default".into(),
        collection: "x".into(),
    };
    assert!(
        refused(at("moved/here"))
            .await
            .contains("must end in snapshots/")
    );
    // The cluster's own snapshot is no bundle.
    let own = format!("files/snapshots/{}/metadata/{}.json", made.of, made.id);
    assert!(refused(at(&own)).await.contains("is no bundle"));
    // Each file of it, once: cut where it ends, or gone.
    let mut tried = 0;
    for (key, bytes) in inside.iter().filter(|(key, _)| key.starts_with(root)) {
        let key: ObjectKey = key.as_str().into();
        if key.0.contains("/snapshots/") {
            lab::put_object(&world, &key, bytes[..bytes.len() - 3].to_vec()).await;
            let why = refused(from_bundle(made, "x")).await;
            assert!(
                why.contains(key.0.rsplit('/').next().unwrap()),
                "{key}: {why}"
            );
        }
        #[allow(
            clippy::disallowed_methods,
            reason = "what is lost is lost past the engine"
        )]
        object_store::ObjectStoreExt::delete(&*world.objects, &key.0.as_str().into())
            .await
            .unwrap();
        let why = refused(from_bundle(made, "x")).await;
        let tail = key.0.strip_prefix("moved/here/files/").unwrap_or(&key.0);
        assert!(why.contains(tail), "{key}: {why}");
        lab::put_object(&world, &key, bytes.to_vec()).await;
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
    assert_eq!(refused(from_bundle(made, "x")).await, "");
}

#[tokio::test]
async fn a_target_is_a_place_without_secrets() {
    let s3 = |endpoint: Option<&str>, bucket: &str| Elsewhere::S3 {
        endpoint: endpoint.map(str::to_owned),
        bucket: bucket.to_owned(),
    };
    let good = [
        ("backups/x/", Elsewhere::Here, "backups/x"),
        ("s3://b/p/q", s3(None, "b"), "p/q"),
        ("s3://b", s3(None, "b"), ""),
        ("http://h:9000/b/p", s3(Some("http://h:9000"), "b"), "p"),
        ("minio://h:9000/b", s3(Some("https://h:9000"), "b"), ""),
        ("gs://b/p", Elsewhere::Gcs { bucket: "b".into() }, "p"),
        (
            "azure://acc.blob.core.windows.net/c/p",
            Elsewhere::Azure {
                account: Some("acc".into()),
                container: "c".into(),
            },
            "p",
        ),
        ("file:///var/b", Elsewhere::Folder("/var/b".into()), ""),
    ];
    for (text, there, prefix) in good {
        assert_eq!(
            parse_place(text).unwrap(),
            (there, prefix.to_owned()),
            "{text}"
        );
    }
    for bad in [
        "s3://user:secret-pw-1@b/p",
        "s3://b/p?X-Amz-Signature=secret-pw-1",
        "s3://b/p#f",
        "s3://b/../p",
        "a/../b",
        "ftp://b/p",
        "http://h:9000",
        "file://relative",
        "",
    ] {
        let e = parse_place(bad).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{bad}: {e}");
        assert!(!e.to_string().contains("secret-pw-1"), "{e}");
    }
    let (place, c, s) =
        parse_metadata_uri("s3://b/p/exports/u/snapshots/7/metadata/9.json").unwrap();
    assert_eq!((place.as_str(), c.0, s.0), ("s3://b/p/exports/u", 7, 9));
    for bad in [
        "s3://b/p",
        "s3://b/snapshots/7/metadata/x.json",
        "s3://b/mysnapshots/7/metadata/9.json",
    ] {
        assert!(parse_metadata_uri(bad).is_err(), "{bad}");
    }
}

fn s3_profile(bucket: &str) -> ObjectProfile {
    ObjectProfile {
        kind: ObjectKind::S3(S3Profile {
            endpoint: Some(s3::shared().url.clone()),
            bucket: bucket.to_owned(),
            region: String::new(),
            credentials: Some((s3::ACCESS_KEY.to_owned(), s3::SECRET_KEY.into())),
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        }),
        root: ROOT.to_owned(),
    }
}

async fn everything(read: &ObjectRead) -> BTreeMap<String, Bytes> {
    let keys: Vec<ObjectKey> = read
        .list(&ObjectKey::default(), None)
        .map_ok(|m| m.key)
        .try_collect()
        .await
        .unwrap();
    let mut out = BTreeMap::new();
    for key in keys {
        let bytes = read.get(&key).await.unwrap();
        out.insert(key.0, bytes);
    }
    out
}

/// Real server: into its own bucket, into another one, into a folder. No record, journal entry or object holds the secret.
#[tokio::test]
async fn bundles_go_to_the_own_bucket_another_one_and_a_folder() {
    let server = s3::shared();
    for name in ["export-own", "export-other"] {
        server.create_bucket(name);
    }
    let (seed, made) = small_world().await;
    let source = objects(&*seed.objects).await;
    let (read, write) = open(&s3_profile("export-own")).unwrap();
    for (key, bytes) in &source {
        let key = key.as_str().into();
        write
            .put(&key, bytes.clone(), PutMode::Overwrite)
            .await
            .unwrap();
    }
    let other = open(&s3_profile("export-other")).unwrap().0;
    let dir = tempfile::tempdir().unwrap();
    let folder = format!("file://{}/bundles", dir.path().display());
    let local = || {
        let kind = ObjectKind::Local {
            dir: dir.path().join("bundles"),
            absolute: false,
        };
        open(&ObjectProfile {
            kind,
            root: String::new(),
        })
        .unwrap()
        .0
    };
    // By whatever name: not among the cluster's own data.
    let by_url = format!("{}/export-own/{ROOT}/x", server.url);
    for target in [
        "s3://export-own/files",
        "s3://export-own/files/insert_log",
        &by_url,
    ] {
        let (world, _) = small_world().await;
        let stores = world.open(&Faults::none(), ROOT);
        let runner = runner(world.meta.clone(), write.clone(), &stores, 3);
        let plan = runner.plan(intent(made.id, target), Arc::default()).await;
        let plan = plan.unwrap();
        let failed: Vec<_> = plan.failures().filter_map(|c| c.failed.clone()).collect();
        let is_named = |why: &String| why.contains("among the cluster's own data");
        assert!(failed.iter().any(is_named), "{target}: {failed:?}");
        runner.stop().await;
    }
    let by_url = format!("{}/export-other/by/url", server.url);
    for target in ["backups", "s3://export-other/deep/down", &by_url, &folder] {
        let (world, _) = small_world().await;
        let mut stores = world.open(&Faults::none(), ROOT);
        stores.clock = Arc::new(SystemClock::new());
        let runner = runner(world.meta.clone(), write.clone(), &stores, 3);
        let plan = runner
            .plan(intent(made.id, target), Arc::default())
            .await
            .unwrap();
        let failed: Vec<_> = plan.failures().collect();
        assert!(failed.is_empty(), "{target}: {failed:?}");
        let job = runner.apply(&plan.hash, "").await.unwrap();
        let info = runner.ended(job).await.unwrap();
        assert_eq!(
            info.state,
            JobState::Verified,
            "{target}: {:?} {:?}",
            info.error,
            info.notes
        );
        let there = match target {
            "backups" => everything(&read).await,
            t if t.starts_with("file") => everything(&local()).await,
            t if t.starts_with("http") => everything(&other.rooted(""))
                .await
                .into_iter()
                .filter(|(k, _)| k.starts_with("by/"))
                .collect(),
            _ => everything(&other).await,
        };
        let (root, _) = bundle(&there);
        let uuid = root.rsplit('/').next().unwrap();
        let uri = format!(
            "{target}/exports/{uuid}/snapshots/{}/metadata/{}.json",
            made.of, made.id
        );
        whole(made, &source, &there, &uri);
        assert!(
            info.notes.iter().any(|n| n.contains(&uri)),
            "{:?}",
            info.notes
        );
        unchanged(&world, made, 3, target).await;
        // And back: by the server, or through here from the folder.
        let back = Intent::RestoreBundle {
            uri: uri.clone(),
            database: "default".into(),
            collection: "back".into(),
        };
        let plan = runner.plan(back, Arc::default()).await.unwrap();
        let failed: Vec<_> = plan.failures().collect();
        assert!(failed.is_empty(), "{target}: {failed:?}");
        let job = runner.apply(&plan.hash, "").await.unwrap();
        let info = runner.ended(job).await.unwrap();
        let why = (&info.error, &info.notes);
        assert_eq!(info.state, JobState::Verified, "{target}: {why:?}");
        // Metadata, journal and objects.
        let mut bytes: Vec<(String, Bytes)> =
            all(&*world.meta, "by-dev").await.into_iter().collect();
        bytes.extend(all(&*world.meta, "falconer").await);
        bytes.extend(there);
        let secret = s3::SECRET_KEY.as_bytes();
        for (key, value) in bytes {
            assert!(!value.windows(secret.len()).any(|w| w == secret), "{key}");
        }
        assert!(!format!("{info:?}{plan:?}").contains(s3::SECRET_KEY));
        runner.stop().await;
        // The own bucket's bundle would be found again by the next look.
        if target == "backups" {
            for key in everything(&read)
                .await
                .keys()
                .filter(|k| k.starts_with("backups/"))
            {
                write.delete(&key.as_str().into()).await.unwrap();
            }
        } else if !target.starts_with("file") {
            let write = open(&s3_profile("export-other")).unwrap().1;
            for key in everything(&other).await.keys() {
                write.delete(&key.as_str().into()).await.unwrap();
            }
        }
    }
}

/// What cannot be exported is refused by the plan, in words.
#[tokio::test(start_paused = true)]
async fn a_plan_refuses_what_cannot_be_exported() {
    let (world, made) = small_world().await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(stores.meta.clone(), stores.write.clone(), &stores, 1);
    let refused = async |id: SnapshotId, target: &str| {
        let why = why_not(&runner, intent(id, target)).await;
        assert!(!why.is_empty(), "{target}");
        why
    };
    assert!(
        refused(made.id, "files/insert_log/x")
            .await
            .contains("among the cluster's own data")
    );
    assert!(
        refused(made.id, "s3://u:p@b")
            .await
            .contains("user or password")
    );
    assert!(
        refused(SnapshotId(1), "x")
            .await
            .contains("snapshot 1 does not exist")
    );
    let victim = made.segments[0].binlogs[0].binlogs[0].log_path.clone();
    #[allow(
        clippy::disallowed_methods,
        reason = "what is lost from the bucket is lost past the engine"
    )]
    object_store::ObjectStoreExt::delete(&*world.objects, &victim.as_str().into())
        .await
        .unwrap();
    assert!(refused(made.id, "x").await.contains(&victim));
    runner.stop().await;
}
