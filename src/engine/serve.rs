//! Answers requests. Each runs in a task of its own, so that a slow question never holds up a quick one.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::attach::{Objects, not_connected};
use super::clock::Clock;
use super::doctor::{self, Patient};
use super::error::{Error, ErrorKind, Result};
use super::format::codec::Codec;
use super::format::decode::{Explained, explain};
use super::format::keys::{Key, ParsedKey};
use super::handle::{Conn, Envelope, Place, RawValue, Reply, Request};
use super::ids::{JobId, MetaKey, MetaRev};
use super::jobs::planner::Planner;
use super::jobs::quarantine;
use super::jobs::runner::{Applied, RunnerHandle};
use super::meta::MetaReader;
use super::meta::scope::Scope;
use super::model::catalog::Catalog;
use super::plan::journal::Order;
use super::profile::Roots;

/// Requests that run at once; more wait in the queue.
const AT_ONCE: usize = 32;

/// What answers are made from.
#[derive(Clone)]
pub struct Server {
    /// Metadata, bound to the scope of whoever asks.
    pub meta: MetaReader,
    /// Objects.
    pub objects: Objects,
    /// Key roots.
    pub roots: Roots,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The read model.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// What it is attached to.
    pub place: Arc<Place>,
    /// Plans where nothing can be written.
    pub planner: Planner,
    /// Runs jobs; `None` when nothing can be written.
    pub runner: Option<RunnerHandle>,
}

impl Server {
    /// The same on behalf of another.
    fn within(&self, scope: &Scope) -> Self {
        Self {
            meta: self.meta.within(scope),
            planner: self.planner.within(scope),
            runner: self.runner.as_ref().map(|r| r.within(scope)),
            ..self.clone()
        }
    }

    /// Answers until every client is gone.
    pub async fn run(self, mut requests: mpsc::Receiver<Envelope>) {
        let free = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let mut number = 0_u64;
        while let Some(envelope) = requests.recv().await {
            let Envelope {
                request,
                within,
                mut reply,
            } = envelope;
            let Ok(permit) = free.clone().acquire_owned().await else {
                return;
            };
            number += 1;
            let name = format!("request {number}: {}", request.words());
            let mut scope = self.meta.scope().child(name);
            if let Some(limit) = within {
                scope = scope.at_most(limit);
            }
            let me = self.within(&scope);
            tokio::spawn(async move {
                // A client that has gone away wants no answer: what was only a question ends with it.
                let is_question = !matches!(
                    request,
                    Request::Apply { .. }
                        | Request::Cancel(_)
                        | Request::Retry(_)
                        | Request::Throttle(..)
                        | Request::Pace(..)
                        | Request::Parallel(..)
                );
                let answer = tokio::select! {
                    biased;
                    () = reply.closed(), if is_question => return scope.cancel(),
                    answer = me.answer(request) => answer,
                };
                // The client may be gone by now; there is nobody left to tell.
                drop(reply.send(answer));
                drop(permit);
            });
        }
    }

    async fn answer(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Raw(key) => Ok(Reply::Raw(Arc::new(self.raw(key).await?))),
            Request::SnapshotDetail(id) => {
                let tree = super::snapshot_detail::tree(self, id).await?;
                Ok(Reply::Tree(Arc::new(tree)))
            }
            Request::SnapshotPins(id) => {
                let tree = super::snapshot_detail::pins(self, id).await?;
                Ok(Reply::Tree(Arc::new(tree)))
            }
            Request::SnapshotVerify { snapshot, deep } => {
                let tree = super::snapshot_detail::verify(self, snapshot, deep).await?;
                Ok(Reply::Tree(Arc::new(tree)))
            }
            Request::Quarantine(job) => {
                let objects = self.objects.read().ok_or_else(no_bucket)?;
                let tree = quarantine::tree(&self.meta, objects, &self.roots, job).await?;
                Ok(Reply::Tree(Arc::new(tree)))
            }
            Request::Scan(scan, sink) => {
                let tree = super::scan::run(self, &scan, sink).await?;
                Ok(Reply::Tree(Arc::new(tree)))
            }
            Request::Doctor { deep } => self.doctor(deep).await,
            Request::Plan(intent) => {
                let catalog = self.catalog.borrow().clone();
                let plan = match &self.runner {
                    Some(runner) => runner.plan(intent, catalog).await?,
                    None => Arc::new(self.planner.plan(&intent, catalog).await?),
                };
                Ok(Reply::Planned(plan))
            }
            Request::Apply { hash, typed } => {
                Ok(match self.runner()?.carry_out(&hash, &typed).await? {
                    Applied::Job(job) => Reply::Accepted(job),
                    Applied::Settled(what) => Reply::Settled(what),
                })
            }
            Request::Cancel(job) => self.order(job, Order::Cancel).await,
            Request::Retry(job) => self.order(job, Order::Retry).await,
            Request::Throttle(job, rate) => self.order(job, Order::Throttle { rate }).await,
            Request::Pace(job, objects) => self.order(job, Order::Pace { objects }).await,
            Request::Parallel(job, copies) => self.order(job, Order::Parallel { copies }).await,
        }
    }

    async fn order(&self, job: JobId, order: Order) -> Result<Reply> {
        self.runner()?.order(job, order).await?;
        Ok(Reply::Done)
    }

    fn runner(&self) -> Result<&RunnerHandle> {
        self.runner.as_ref().ok_or_else(|| {
            let why = self.place.read_only.as_deref();
            let why = why.unwrap_or("the bucket cannot be written");
            Error::new(
                ErrorKind::Unsupported,
                format!("nothing can be written here: {why}"),
            )
            .fix(self.place.to_write)
        })
    }

    async fn doctor(&self, deep: bool) -> Result<Reply> {
        let patient = Patient {
            meta: &self.meta,
            objects: self.objects.read(),
            roots: &self.roots,
            clock: &*self.clock,
        };
        let report = if deep {
            doctor::run_deep(&patient, &[]).await
        } else {
            doctor::run(&patient).await
        };
        let tree = serde_json::to_value(&report).map_err(|e| {
            Error::new(ErrorKind::Internal, "the report cannot be shown").caused_by(e)
        })?;
        Ok(Reply::Tree(Arc::new(tree)))
    }

    async fn raw(&self, key: MetaKey) -> Result<RawValue> {
        let found = self.meta.get(&key).await?;
        let parsed = Key::parse(&self.roots, &key.0);
        let family = match &parsed {
            ParsedKey::Known(key) => match key.codec() {
                Codec::Proto(name) | Codec::ZstdProto(name) => name
                    .strip_prefix("milvus.proto.")
                    .unwrap_or(name)
                    .to_owned(),
                _ => key.family().title().to_owned(),
            },
            ParsedKey::Unknown => "unknown".to_owned(),
        };
        let decoded = match (&parsed, &found) {
            (_, None) => Err("the key does not exist".to_owned()),
            (ParsedKey::Unknown, Some(_)) => Err("no known family of keys".to_owned()),
            (ParsedKey::Known(key), Some(kv)) => decoded(&explain(key, &kv.value)),
        };
        let revs = found.as_ref().map_or((MetaRev(0), MetaRev(0), 0, 0), |kv| {
            (kv.create_rev, kv.mod_rev, kv.version, kv.lease)
        });
        Ok(RawValue {
            key,
            value: found.map(|kv| kv.value),
            revs,
            family,
            decoded,
        })
    }
}

fn no_bucket() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "no bucket is attached: what was moved aside lies in it",
    )
    .fix("name the bucket too, e.g. --bucket s3://NAME/ROOT or --bucket file:///FOLDER")
}

fn decoded(explained: &Explained) -> Result<Value, String> {
    match explained {
        Explained::Undecodable { reason } => Err(reason.clone()),
        other => serde_json::to_value(other).map_err(|e| e.to_string()),
    }
}

/// Answers every request while there is no store, with the reason why not.
pub async fn refuse(requests: &mut mpsc::Receiver<Envelope>, conn: &watch::Sender<Conn>) {
    while let Some(Envelope { reply, .. }) = requests.recv().await {
        let why = match &*conn.borrow() {
            Conn::Connecting { why, .. } => why.clone(),
            _ => None,
        };
        drop(reply.send(Err(not_connected(why.as_ref()))));
    }
}
