//! The engine: everything that knows a cluster, and nothing that knows a terminal. [`Engine::open`] is its only door.

pub mod attach;
pub mod broadcast;
pub mod clock;
pub mod coordinator;
pub mod data;
pub mod doctor;
pub mod dump;
mod dynamic;
pub mod error;
pub mod format;
pub mod handle;
pub mod ids;
pub mod jobs;
pub mod live;
pub mod meta;
pub mod model;
pub mod objects;
pub mod plan;
pub mod profile;
mod references;
pub mod scan;
mod serve;
mod snapshot_detail;
pub mod wal;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use attach::{Attached, Meta, Objects, Source};
use clock::{Clock, Entropy};
use error::Result;
use handle::{Conn, Envelope, Handle, Place};
use ids::{JobId, KeyPrefix};
use jobs::planner::Planner;
use jobs::references::Keeper;
use jobs::registry::Registry;
use jobs::runner::{Runner, RunnerHandle, look_on};
use live::{Live, Shown};
use meta::Span;
use meta::reflector::Reflector;
use meta::scope::{DETACHED, Scope};
use model::broadcast::BroadcastsView;
use model::catalog::Catalog;
use model::facts::Tolerances;
use model::jobs::{JobState, JobsView};
use plan::execute::{Executor, Parts};
use profile::{Access, Profile, Roots};
use references::Follower;
use serve::Server;

/// Requests that may wait.
const REQUESTS: usize = 64;
/// Notices that a slow client may miss the older ones of.
const NOTICES: usize = 256;
/// First and longest pause between two attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long a metadata file may be busy, and the pause between two tries.
const HANDOVER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(50));

/// Opens engines.
pub struct Engine;

/// What the engine's tasks share.
struct World {
    shown: Shown,
    jobs: watch::Sender<Arc<JobsView>>,
    broadcasts: watch::Sender<Arc<BroadcastsView>>,
    objects: Objects,
    roots: Roots,
    entropy: Arc<dyn Entropy>,
    place: Arc<Place>,
    is_embedded: bool,
    keeper: Keeper,
    tolerances: Tolerances,
    scope: Scope,
}

impl Engine {
    /// Attaches to what the profile names. Files are opened before this returns, so that a wrong path is an error here; a
    /// server is connected to in the background, and [`Handle::conn`] tells how it goes. The engine ends when the last
    /// clone of the handle is dropped. Needs a tokio runtime.
    ///
    /// `Config`, `NotFound`, `Corrupt` or `Unsupported`, as the store or the dump says.
    pub async fn open(
        profile: Profile,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Handle> {
        let scope = Scope::root(clock.clone(), "engine");
        let attached = Self::attach(&profile, &clock, &scope).await?;
        let Attached {
            source,
            objects,
            place,
            is_embedded,
        } = attached;
        let place = Arc::new(place);
        let (requests, asked) = mpsc::channel(REQUESTS);
        let (catalog, seen) = watch::channel(Arc::new(Catalog::default()));
        let (jobs, jobs_seen) = watch::channel(Arc::new(JobsView::default()));
        let (broadcasts, broadcasts_seen) = watch::channel(Arc::default());
        let why = None;
        let (conn, conn_seen) = watch::channel(Conn::Connecting { attempt: 1, why });
        let (notices, _) = tokio::sync::broadcast::channel(NOTICES);
        let keeper = Keeper::default();
        let references = keeper.watch();
        let world = World {
            shown: Shown {
                catalog,
                conn,
                notices: notices.clone(),
                clock: clock.clone(),
            },
            jobs,
            broadcasts,
            objects,
            roots: profile.roots,
            entropy,
            place: place.clone(),
            is_embedded,
            keeper,
            tolerances: profile.gc,
            scope,
        };
        tokio::spawn(world.run(source, asked));
        Ok(Handle {
            requests,
            catalog: seen,
            jobs: jobs_seen,
            broadcasts: broadcasts_seen,
            references,
            conn: conn_seen,
            notices,
            place,
            clock,
        })
    }
}

impl Engine {
    /// A process that ends gives its file back a moment later than its answer: a busy file is asked for again, for a second.
    async fn attach(profile: &Profile, clock: &Arc<dyn Clock>, scope: &Scope) -> Result<Attached> {
        let begun = clock.mono();
        loop {
            let along = clock.mono().saturating_sub(begun) >= HANDOVER.0;
            let attached = {
                let (profile, clock, scope) = (profile.clone(), clock.clone(), scope.clone());
                // Files and dumps block; the runtime must not.
                tokio::task::spawn_blocking(move || attach::attach(&profile, &clock, &scope, along))
            };
            match attached.await {
                Ok(Err(e)) if e.kind() == error::ErrorKind::Busy && !along => {}
                Ok(attached) => return attached,
                Err(e) => {
                    return Err(error::Error::new(
                        error::ErrorKind::Internal,
                        "opening the stores ended early",
                    )
                    .caused_by(e));
                }
            }
            clock.sleep(HANDOVER.1).await;
        }
    }
}

impl World {
    async fn run(self, source: Source, mut asked: mpsc::Receiver<Envelope>) {
        let meta = match source {
            Source::Open(meta) => meta,
            Source::Fixed(store) => {
                let span = span(&self.roots);
                let live = Live::new(self.shown.clone(), self.roots.clone());
                match store.range_all(&span).await {
                    Ok(page) => live.fixed(page).await,
                    Err(why) => {
                        let (attempt, why) = (1, Some(why));
                        self.shown
                            .conn
                            .send_replace(Conn::Connecting { attempt, why });
                    }
                }
                let references = self.follow_references();
                self.serve(Meta::Read(store), asked).await;
                references.abort();
                return;
            }
            Source::Etcd(etcd, access) => {
                let connected = tokio::select! {
                    meta = self.connect(&etcd, access) => Some(meta),
                    () = serve::refuse(&mut asked, &self.shown.conn) => None,
                };
                match connected {
                    Some(meta) => meta,
                    // Every client left before there was a connection.
                    None => return,
                }
            }
        };
        let clock = self.shown.clock.clone();
        let entropy = self.entropy.clone();
        let followed = self.scope.child("loop: following the metadata");
        let reflector = Reflector::new(meta.read(&followed), span(&self.roots), clock, entropy);
        let live = Live::new(self.shown.clone(), self.roots.clone());
        let following = tokio::spawn(live.follow(reflector.start()));
        let references = self.follow_references();
        self.serve(meta, asked).await;
        references.abort();
        following.abort();
    }

    /// Keeps what snapshots refer to; without a bucket nothing of it is known.
    fn follow_references(&self) -> tokio::task::JoinHandle<()> {
        let objects = self.objects.read().cloned();
        let (keeper, shown) = (self.keeper.clone(), &self.shown);
        let (catalog, conn) = (shown.catalog.subscribe(), shown.conn.subscribe());
        let clock = shown.clock.clone();
        tokio::spawn(async move {
            if let Some(objects) = objects {
                let follower = Follower {
                    keeper,
                    objects,
                    catalog,
                    conn,
                    clock,
                };
                follower.run().await;
            }
        })
    }

    /// Connects, trying again for as long as somebody waits.
    async fn connect(&self, etcd: &profile::EtcdProfile, access: Access) -> Meta {
        let clock = &self.shown.clock;
        let scope = self.scope.child("loop: connecting");
        let mut attempt = 1u32;
        let mut pause = PAUSE.0;
        loop {
            match attach::connect(etcd, access, clock, &scope).await {
                Ok(meta) => return meta,
                Err(why) => {
                    attempt = attempt.saturating_add(1);
                    let why = Some(why);
                    self.shown
                        .conn
                        .send_replace(Conn::Connecting { attempt, why });
                }
            }
            // Consoles that lost the same server must not come back in step.
            let jitter = self.entropy.next_u64() % 1000;
            clock
                .sleep(pause.mul_f64(0.5 + jitter as f64 / 2000.0))
                .await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn serve(self, meta: Meta, asked: mpsc::Receiver<Envelope>) {
        let runner = self.runner(&meta);
        let scope = self.scope.clone();
        let reader = meta.read(&scope);
        let server = Server {
            planner: Planner::new(
                reader.clone(),
                self.objects.read().cloned(),
                self.roots.clone(),
                self.shown.clock.clone(),
                self.registry(),
            )
            .embedded(self.is_embedded),
            meta: reader.clone(),
            objects: self.objects.clone(),
            roots: self.roots.clone(),
            clock: self.shown.clock.clone(),
            catalog: self.shown.catalog.subscribe(),
            place: self.place.clone(),
            runner: runner.clone(),
        };
        // Without a runner the jobs of other processes are shown, as they journal them.
        let view = runner.as_ref().map_or_else(
            || look_on(&reader, &self.roots, self.shown.clock.clone()),
            |runner| runner.view.clone(),
        );
        // Jobs are shown, and their ends told, until the last client is gone; then the root is given back.
        tokio::select! {
            () = server.run(asked) => {}
            () = self.show_jobs(view) => {}
            () = self.show_broadcasts(runner.as_ref()) => {}
        }
        if let Some(runner) = runner {
            runner.stop().await;
        }
        scope.stop(DETACHED).await;
    }

    /// What can be planned, and run where writing is allowed.
    fn registry(&self) -> Registry {
        registry(self.tolerances, &self.keeper)
    }

    /// The one holder of the writers (law 2). `None` when this attach may not write.
    fn runner(&self, meta: &Meta) -> Option<RunnerHandle> {
        let (Meta::Write(_, meta), Objects::Write(_, objects)) = (meta, &self.objects) else {
            return None;
        };
        let executor = Executor::new(Parts {
            meta: meta.within(&self.scope),
            objects: objects.clone(),
            roots: self.roots.clone(),
            clock: self.shown.clock.clone(),
            entropy: self.entropy.clone(),
            actor: actor(),
            embedded: self.is_embedded,
        });
        Some(Runner::start(executor, self.registry()))
    }

    /// Passes on what is shown of the broadcasts that this process drives.
    async fn show_broadcasts(&self, runner: Option<&RunnerHandle>) {
        if let Some(runner) = runner {
            let mut view = runner.broadcasts.clone();
            while view.changed().await.is_ok() {
                let now = view.borrow_and_update().clone();
                self.broadcasts.send_replace(now);
            }
        }
        // The server decides when the engine ends.
        std::future::pending::<()>().await;
    }

    /// Passes the jobs on, and tells each end once.
    async fn show_jobs(&self, mut view: watch::Receiver<Arc<JobsView>>) {
        let mut running: BTreeSet<JobId> = BTreeSet::new();
        loop {
            let now = view.borrow_and_update().clone();
            for job in &now.jobs {
                if !job.state.rests() {
                    running.insert(job.id);
                } else if running.remove(&job.id) {
                    let is_bad = matches!(job.state, JobState::Failed | JobState::Stuck);
                    let state = format!("{:?}", job.state).to_lowercase();
                    let why = job
                        .error
                        .as_deref()
                        .map_or(String::new(), |e| format!(": {e}"));
                    self.shown
                        .tell(is_bad, format!("{} {state}{why}", job.title));
                }
            }
            self.jobs.send_replace(now);
            if view.changed().await.is_err() {
                // The server decides when the engine ends.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Every kind of job: what can be planned, and run where writing is allowed. With the cluster's own tolerances; all that delete ask the
/// same `keeper` what snapshots refer to.
#[must_use]
pub fn registry(tolerances: Tolerances, keeper: &Keeper) -> Registry {
    let orphans = jobs::orphans::Orphans::new(tolerances, keeper.clone());
    let purge = jobs::quarantine_purge::QuarantinePurge::new(tolerances, keeper.clone());
    Registry::default()
        .with(jobs::restore::Restore::new(keeper.clone()))
        .with(jobs::export::Export::default())
        .with(jobs::gc::Gc::new(tolerances, keeper.clone()))
        .with(orphans)
        .with(jobs::quarantine_restore::QuarantineRestore)
        .with(purge)
        .with(jobs::snapshot_create::CreateSnapshot)
        .with(jobs::snapshot_drop::DropSnapshot)
        .with(jobs::snapshot_pin::PinSnapshot)
        .with(jobs::snapshot_unpin::UnpinSnapshot)
        .with(jobs::snapshot_verify::VerifySnapshot)
        .with(jobs::demo::Demo)
        .with(jobs::ddl::Ddl)
}

/// Everything under the root: what the catalog is made of.
fn span(roots: &Roots) -> Span {
    if roots.root.is_empty() {
        Span::all()
    } else {
        Span::prefix(&KeyPrefix::new(&roots.root))
    }
}

/// Who writes, for owner, journal and audit: `user@host pid 123`.
fn actor() -> String {
    let named = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok());
    let user = named(["USER", "LOGNAME"]).unwrap_or_else(|| "unknown".into());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .or_else(|| named(["HOSTNAME", "COMPUTERNAME"]))
        .unwrap_or_else(|| "unknown".into());
    format!("{user}@{host} pid {}", std::process::id())
}
