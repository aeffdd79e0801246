//! Verbs through the runner, as a process gives them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::Family;
use falconer::engine::format::pb::streaming::BroadcastTask;
use falconer::engine::ids::{CollectionId, JobId, UnixMs};
use falconer::engine::jobs::references::Keeper;
use falconer::engine::jobs::runner::{Runner, RunnerHandle};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{Event, MetaWriter, Span};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::{JobInfo, JobKind, JobState};
use falconer::engine::model::schema::{CollectionSpec, FieldSpec};
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::plan::{Ddl, Intent, Plan};

use prost::Message as _;

use crate::support::faults::{Faults, Stores, World};
use crate::support::mem::MemStore;
use crate::support::snapshots::{ETCD, NOW, ROOT, all, roots};

/// After everything in the capture: a clock behind the data is refused.
pub const LATER: UnixMs = UnixMs(1_796_000_000_000);

pub fn runner(stores: &Stores) -> RunnerHandle {
    runner_of(stores, true)
}

pub fn runner_of(stores: &Stores, embedded: bool) -> RunnerHandle {
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
        embedded,
    });
    Runner::start(
        executor,
        falconer::engine::registry(Tolerances::default(), &Keeper::default()),
    )
}

pub fn empty() -> World {
    let objects = Arc::new(object_store::memory::InMemory::new());
    World::new(Arc::new(MemStore::new(ETCD)), objects, NOW)
}

pub async fn catalog(world: &World) -> Catalog {
    let page = world.meta.range_all(&Span::all()).await.unwrap();
    let mut catalog = Catalog::default();
    let events: Vec<Event> = page.kvs.into_iter().map(Event::Put).collect();
    catalog.apply(&roots(), &events);
    catalog.rev = page.rev;
    catalog
}

pub async fn plan(world: &World, change: Ddl) -> Result<Arc<Plan>> {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let intent = Intent::Ddl { change };
    let plan = runner.plan(intent, Arc::new(catalog(world).await)).await;
    runner.stop().await;
    plan
}

/// One process: plans, confirms, waits for the end.
pub async fn operate(world: &World, intent: Intent) -> Arc<JobInfo> {
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner(&stores);
    let plan = runner
        .plan(intent, Arc::new(catalog(world).await))
        .await
        .unwrap();
    let typed = plan.type_to_confirm.clone().unwrap_or_default();
    let job = runner.apply(&plan.hash, &typed).await.unwrap();
    let info = runner.ended(job).await.unwrap();
    runner.stop().await;
    info
}

pub async fn change(world: &World, change: Ddl) -> Arc<JobInfo> {
    let info = operate(world, Intent::Ddl { change }).await;
    assert_eq!(
        info.state,
        JobState::Verified,
        "{}: {:?} {:?}",
        info.title,
        info.error,
        info.notes
    );
    info
}

pub fn spec(shards: u32) -> CollectionSpec {
    let fields = ["id:int64:pk", "title:varchar:64", "v:float_vector:8"];
    CollectionSpec {
        fields: fields
            .iter()
            .map(|f| FieldSpec::parse(f).unwrap())
            .collect(),
        shards: Some(shards),
        properties: BTreeMap::from([("collection.ttl.seconds".into(), "60".into())]),
        dynamic: true,
        ..CollectionSpec::default()
    }
}

pub fn create(name: &str, shards: u32) -> Ddl {
    Ddl::CreateCollection {
        database: "default".into(),
        name: name.into(),
        spec: spec(shards),
    }
}

pub fn index(collection: CollectionId, field: &str) -> Ddl {
    Ddl::CreateIndex {
        collection,
        field: field.into(),
        name: String::new(),
        params: [("index_type", "HNSW"), ("metric_type", "L2"), ("M", "16")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
    }
}

pub fn gc() -> Intent {
    Intent::Gc {
        collection: None,
        rules: BTreeSet::new(),
        quarantine: false,
    }
}

/// Keys of the Milvus root, without the allocators, the channels' own records and what broadcasts leave for their time.
pub async fn milvus_keys(world: &World) -> BTreeSet<String> {
    let keys = all(&*world.meta, "by-dev/").await.into_keys();
    keys.filter(|k| !k.contains("/streamingcoord-meta/") && !k.contains("/kv/"))
        .collect()
}

fn passes(e: &Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown
}

async fn job_of(runner: &RunnerHandle, kind: JobKind) -> Option<JobId> {
    let mut view = runner.view.clone();
    loop {
        let now = view.borrow_and_update().clone();
        if now.known {
            let mut jobs = now.jobs.iter();
            return jobs.find(|j| j.kind == kind).map(|j| j.id);
        }
        view.changed().await.ok()?;
    }
}

async fn unfinished(stores: &Stores) -> Result<bool> {
    let prefix = Family::BroadcastTask.prefix(&roots());
    let page = stores.meta.range_all(&Span::prefix(&prefix)).await?;
    let mut tasks = page.kvs.iter();
    Ok(tasks.any(|kv| BroadcastTask::decode(&*kv.value).unwrap().state != 5))
}

/// [`drive_to`] of a DDL.
pub async fn drive(stores: &Stores, change: &Ddl) -> Result<()> {
    let change = change.clone();
    drive_to(stores, &Intent::Ddl { change }, JobKind::Ddl).await
}

/// Starts the program: waits for the job of this kind that is there, or gives the order and waits; then until the root is given back.
pub async fn drive_to(stores: &Stores, intent: &Intent, kind: JobKind) -> Result<()> {
    let runner = runner(stores);
    let job = loop {
        if let Some(job) = job_of(&runner, kind).await {
            break job;
        }
        let begun = async {
            let plan = runner.plan(intent.clone(), Arc::default()).await?;
            let typed = plan.type_to_confirm.clone().unwrap_or_default();
            runner.apply(&plan.hash, &typed).await
        };
        match begun.await {
            Ok(job) => break job,
            Err(e) if passes(&e) => tokio::task::yield_now().await,
            Err(e) => return Err(e),
        }
    };
    let info = runner.ended(job).await?;
    // What a dead process left is taken up beside whatever else is done.
    let mut shown = runner.broadcasts.clone();
    while matches!(unfinished(stores).await, Ok(true)) && shown.changed().await.is_ok() {}
    runner.stop().await;
    if info.state == JobState::Verified {
        return Ok(());
    }
    let said = format!("{:?}: {:?} {:?}", info.state, info.error, info.notes);
    Err(Error::new(ErrorKind::Internal, said))
}

pub async fn remove(world: &World, key: &falconer::engine::format::keys::Key) {
    let gone = falconer::engine::meta::Write::Delete(key.to_key(&roots()));
    let txn = falconer::engine::meta::Txn {
        conds: Vec::new(),
        writes: vec![gone],
    };
    world.meta.txn(txn).await.unwrap();
}
