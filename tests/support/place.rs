//! A whole cluster to work on through the engine's own door, and the verbs of an operator.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use falconer::engine::Engine;
use falconer::engine::clock::{Clock, SystemClock, SystemEntropy};
use falconer::engine::error::Error;
use falconer::engine::format::keys::Family;
use falconer::engine::format::manifest;
use falconer::engine::format::pb;
use falconer::engine::format::snapshot::{join, read_metadata};
use falconer::engine::handle::{Conn, Handle, Reply, Request};
use falconer::engine::ids::{CollectionId, JobId, MetaKey, MetaRev, SnapshotId, UnixMs};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::{KeyValue, MetaWrite};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::{
    Access, MetaProfile, ObjectKind, ObjectProfile, Profile, REQUEST_TIMEOUT, Roots, S3Profile,
};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::faults::World;
use super::lab;
use super::s3::{self, S3};
use super::servers::{Etcd, EtcdVersion};
use super::snapshots::{Made, ROOT, family, objects};

const PATIENCE: Duration = Duration::from_mins(3);
/// A week after the capture: whatever the cluster dropped is long out of its tolerance, so a pass has something to take.
pub const NOW: UnixMs = UnixMs(1_796_000_000_000);

pub type Objects = BTreeMap<String, Bytes>;

/// A cluster with every object of the lab, without coordinators.
pub struct Place {
    pub label: &'static str,
    pub profile: Profile,
    pub bucket: Arc<dyn ObjectStore>,
    /// How the program is pointed at it.
    pub args: Vec<String>,
    pub dir: tempfile::TempDir,
    pub etcd: Option<Etcd>,
}

impl Place {
    pub async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("default");
        let folder = home.join("bucket");
        std::fs::create_dir_all(&folder).unwrap();
        let bucket = Arc::new(LocalFileSystem::new_with_prefix(&folder).unwrap());
        for (key, bytes) in lab::objects() {
            put(&*bucket, key, bytes.clone()).await;
        }
        let place = Self {
            label: "embedded file and local folder",
            profile: Profile {
                name: "default".into(),
                meta: MetaProfile::Embedded {
                    file: home.join("meta.redb"),
                },
                objects: Some(ObjectProfile {
                    kind: ObjectKind::Local {
                        dir: folder,
                        absolute: false,
                    },
                    root: ROOT.into(),
                }),
                roots: Roots::default(),
                access: Access::ReadWrite,
                gc: Tolerances::default(),
            },
            bucket,
            args: vec!["--data-dir".into(), dir.path().display().to_string()],
            dir,
            etcd: None,
        };
        let store = EmbeddedStore::open_file(&place.file(), Arc::new(SystemClock::new())).unwrap();
        let kvs = lab::etcd_without_sessions().into_iter().map(|k| KeyValue {
            key: MetaKey(Bytes::from(k.key)),
            value: Bytes::from(k.value),
            create_rev: MetaRev(k.create_revision),
            mod_rev: MetaRev(k.mod_revision),
            version: k.version,
            lease: 0,
        });
        store.load(kvs.collect(), None).await.unwrap();
        place
    }

    pub async fn servers(s3: &S3, bucket: &str) -> Self {
        Self::on(Etcd::start(EtcdVersion::V34), s3, &s3.url, bucket).await
    }

    /// On this etcd and this S3 server, which the engine reaches at `url`: its own, or that of a proxy before it.
    pub async fn on(etcd: Etcd, s3: &S3, url: &str, bucket: &str) -> Self {
        etcd.load(&lab::etcd_without_sessions()).await;
        s3.create_bucket(bucket);
        s3.upload(bucket, lab::objects().iter().cloned()).await;
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, s3::SECRET_KEY).unwrap();
        let args = [
            "--write",
            "--etcd",
            &etcd.endpoint(),
            "--root",
            "by-dev",
            "--bucket",
            &format!("s3://{bucket}/{ROOT}"),
            "--s3-endpoint",
            url,
            "--access-key",
            s3::ACCESS_KEY,
            "--secret-key-file",
            &secret.display().to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        Self {
            label: "etcd 3.4 and SeaweedFS",
            profile: Profile {
                name: "servers".into(),
                meta: MetaProfile::Etcd(etcd.profile()),
                objects: Some(ObjectProfile {
                    kind: ObjectKind::S3(S3Profile {
                        endpoint: Some(url.to_owned()),
                        bucket: bucket.into(),
                        region: String::new(),
                        credentials: Some((s3::ACCESS_KEY.into(), s3::SECRET_KEY.into())),
                        virtual_host: false,
                        ca: None,
                        request_timeout: REQUEST_TIMEOUT,
                    }),
                    root: ROOT.into(),
                }),
                roots: Roots::default(),
                access: Access::ReadWrite,
                gc: Tolerances::default(),
            },
            bucket: Arc::new(s3.bucket(bucket)),
            args,
            dir,
            etcd: Some(etcd),
        }
    }

    pub fn file(&self) -> PathBuf {
        match &self.profile.meta {
            MetaProfile::Embedded { file } => file.clone(),
            _ => panic!("no file here"),
        }
    }

    /// Opens it; a file is given back a moment after its last engine has ended.
    pub async fn open(&self, clock: &Arc<dyn Clock>) -> Handle {
        let opening = async {
            loop {
                let entropy = Arc::new(SystemEntropy);
                let handle = Engine::open(self.profile.clone(), clock.clone(), entropy)
                    .await
                    .expect("the engine opens");
                if handle.place.read_only.is_none() {
                    return handle;
                }
                drop(handle);
                tokio::task::yield_now().await;
            }
        };
        let mut handle = patiently("free", opening).await;
        let live = handle.conn.wait_for(|c| matches!(c, Conn::Live { .. }));
        drop(patiently("live", live).await.expect("the engine runs"));
        let known = handle.jobs.wait_for(|view| view.known);
        drop(patiently("known", known).await.expect("the engine runs"));
        handle
    }

    /// Both stores behind the engine's back; no engine may have the file open.
    pub async fn world(&self) -> World {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let meta: Arc<dyn MetaWrite> = if let Some(etcd) = &self.etcd {
            Arc::new(EtcdStore::connect(&etcd.profile(), clock).await.unwrap())
        } else {
            let opening = async {
                loop {
                    match EmbeddedStore::open_file(&self.file(), clock.clone()) {
                        Ok(store) => return store,
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            };
            Arc::new(patiently("closed", opening).await)
        };
        World::new(meta, self.bucket.clone(), NOW)
    }

    pub async fn objects(&self) -> Objects {
        objects(&*self.bucket).await
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the hand that fills a bucket before the engine sees it"
)]
pub async fn put(store: &dyn ObjectStore, key: &str, bytes: Bytes) {
    store
        .put(&Path::parse(key).unwrap(), bytes.into())
        .await
        .unwrap();
}

#[allow(
    clippy::disallowed_methods,
    reason = "the hand that destroys what the engine must miss"
)]
pub async fn destroy(store: &dyn ObjectStore, key: &str) {
    store.delete(&Path::parse(key).unwrap()).await.unwrap();
}

#[allow(
    clippy::disallowed_methods,
    reason = "a test that hangs must fail, whatever the engine's clock says"
)]
pub async fn patiently<T>(what: &str, doing: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, doing).await;
    done.unwrap_or_else(|_| panic!("not {what} within {PATIENCE:?}"))
}

pub async fn plan(handle: &Handle, intent: Intent) -> Arc<Plan> {
    match handle.request(Request::Plan(intent)).await.expect("a plan") {
        Reply::Planned(plan) => plan,
        other => panic!("{other:?}"),
    }
}

pub async fn apply(handle: &Handle, plan: &Plan) -> Result<JobId, Error> {
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let hash = plan.hash.clone();
    match handle.request(Request::Apply { hash, typed }).await? {
        Reply::Accepted(job) => Ok(job),
        other => panic!("{other:?}"),
    }
}

pub async fn job(handle: &mut Handle, what: &str, is: impl Fn(&JobInfo) -> bool) -> Arc<JobInfo> {
    let seen = handle.jobs.wait_for(|view| view.jobs.iter().any(|j| is(j)));
    let view = patiently(what, seen)
        .await
        .expect("the engine runs")
        .clone();
    view.jobs.iter().find(|j| is(j)).unwrap().clone()
}

pub async fn verified(handle: &mut Handle, id: JobId) -> Arc<JobInfo> {
    let ended = job(handle, "ended", |j| j.id == id && j.state.ended()).await;
    assert_eq!(ended.state, JobState::Verified, "{ended:?}");
    ended
}

pub async fn run(handle: &mut Handle, intent: Intent) -> Arc<JobInfo> {
    let plan = plan(handle, intent).await;
    assert!(plan.applicable(), "{:?}", plan.checks);
    let id = apply(handle, &plan).await.expect("accepted");
    verified(handle, id).await
}

pub async fn catalog(
    handle: &mut Handle,
    what: &str,
    is: impl Fn(&Catalog) -> bool,
) -> Arc<Catalog> {
    let seen = handle.catalog.wait_for(|c| is(c));
    patiently(what, seen)
        .await
        .expect("the engine runs")
        .clone()
}

pub fn create(of: CollectionId, name: &str) -> Intent {
    Intent::CreateSnapshot {
        collection: of,
        name: name.into(),
        description: "by the test".into(),
        protection_secs: 0,
        operation: None,
    }
}

pub fn restore(snapshot: SnapshotId, name: &str) -> Intent {
    Intent::Restore {
        snapshot,
        database: "default".into(),
        collection: name.into(),
    }
}

pub fn pass() -> Intent {
    Intent::Gc {
        collection: None,
        rules: BTreeSet::new(),
        quarantine: false,
    }
}

/// Makes a snapshot and finds it in the list.
pub async fn snapshot(handle: &mut Handle, of: CollectionId, name: &str) -> SnapshotId {
    run(handle, create(of, name)).await;
    let listed = |c: &Catalog| {
        let found = c.snapshots_of(of).find(|s| &*s.name == name)?;
        (found.state.name == "Committed").then_some(found.id)
    };
    let seen = catalog(handle, "listed", |c| listed(c).is_some()).await;
    listed(&seen).unwrap()
}

/// A snapshot as its own files tell it.
pub async fn read(world: &World, id: SnapshotId) -> Made {
    let (key, record) = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot)
        .await
        .into_iter()
        .find(|(_, s)| s.id == id.0)
        .expect("its record");
    let bytes = async |key: &str| {
        let found = world.objects.get(&Path::parse(key).unwrap()).await.unwrap();
        found.bytes().await.unwrap()
    };
    let file = &record.s3_location;
    let metadata = read_metadata(file, &bytes(file).await).unwrap();
    let mut manifests = Vec::new();
    for key in &metadata.manifest_list {
        let read = manifest::read(key, &bytes(key).await, metadata.format_version).unwrap();
        manifests.push((key.clone(), read));
    }
    let whole = join(file, metadata, manifests).unwrap();
    Made {
        id,
        of: CollectionId(record.collection_id),
        segments: whole.segments,
        metadata: whole.metadata,
        key: key.to_key(&Roots::default()),
    }
}
