//! Real etcd. Each endpoint has a client of its own, so that a dead one costs one attempt and never a result: etcd-client's
//! balancer takes an endpoint that refuses connections for a ready one and gives it its share of the calls.
//!
//! All calls have a deadline. What a failed call means is decided in `fail`, in one place for every gRPC code.

mod calls;
mod connect;
mod fail;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, Either, select};

use self::connect::Node;
use self::fail::{Op, Verdict};
use super::{
    KeyValue, Limits, MetaRead, MetaStatus, MetaWrite, Outcome, Page, RangeOpts, Span, Txn,
    WatchStream, check,
};
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::profile::EtcdProfile;

/// A connection to etcd. Cheap to clone.
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

struct Shared {
    nodes: Vec<Node>,
    /// The endpoint that answered last: the next call starts there.
    current: AtomicUsize,
    request_timeout: Duration,
    /// Whether every server answers a progress request in order with its events (`watch`).
    ordered_progress: bool,
    clock: Arc<dyn Clock>,
}

/// One call on one endpoint's client.
type Call<'a, T> = &'a (
        dyn Fn(etcd_client::Client) -> BoxFuture<'static, Result<T, etcd_client::Error>>
            + Send
            + Sync
    );

impl EtcdStore {
    /// Connects and makes one read, so that a wrong address, password or certificate shows here and not later.
    ///
    /// [`ErrorKind::Unreachable`] names the endpoints, [`ErrorKind::Denied`] and [`ErrorKind::Config`] the key to change.
    pub async fn connect(profile: &EtcdProfile, clock: Arc<dyn Clock>) -> Result<Self> {
        let nodes = connect::nodes(profile).await?;
        let mut shared = Shared {
            nodes,
            current: AtomicUsize::new(0),
            request_timeout: profile.request_timeout,
            ordered_progress: false,
            clock,
        };
        shared.probe().await?;
        shared.ordered_progress = watch::all_ordered(&shared.versions().await);
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

impl Shared {
    fn endpoints(&self) -> String {
        let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
        names.join(",")
    }

    /// Races a future with the deadline.
    async fn deadline<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T> + Send,
    ) -> Option<T> {
        match select(std::pin::pin!(work), self.clock.sleep(limit)).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }

    /// One call on one endpoint. A read that finds its connection broken (the server was restarted) is made once more on a new one.
    async fn attempt<T>(&self, node: &Node, op: Op, call: Call<'_, T>) -> Result<T, Verdict> {
        match self.once(node, op, call).await {
            Err(verdict) if verdict.broken && verdict.try_next => self.once(node, op, call).await,
            other => other,
        }
    }

    async fn once<T>(&self, node: &Node, op: Op, call: Call<'_, T>) -> Result<T, Verdict> {
        let client = node.client(&*self.clock).await.map_err(Verdict::not_sent)?;
        match self.deadline(self.request_timeout, call(client)).await {
            Some(Ok(value)) => {
                node.answered();
                Ok(value)
            }
            Some(Err(e)) => Err(fail::verdict(e, op, node)),
            None => Err(fail::timed_out(op, node, self.request_timeout)),
        }
    }

    /// Calls the endpoint that answered last, then the others, for as long as trying again can do no harm.
    async fn call<T>(&self, op: Op, call: Call<'_, T>) -> Result<T> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last: Option<Verdict> = None;
        for i in 0..self.nodes.len() {
            let at = (first + i) % self.nodes.len();
            match self.attempt(&self.nodes[at], op, call).await {
                Ok(value) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(verdict) if verdict.try_next => {
                    // a refusal says more than a dead neighbour
                    let says_more = |old: &Verdict| old.error.kind() == ErrorKind::Unreachable;
                    if last.as_ref().is_none_or(says_more) {
                        last = Some(verdict);
                    }
                    self.current
                        .store((at + 1) % self.nodes.len(), Ordering::Relaxed);
                }
                Err(verdict) => return Err(verdict.error),
            }
        }
        Err(last.map_or_else(
            || {
                Error::new(ErrorKind::Config, "no etcd endpoint is configured")
                    .fix("set etcd.endpoints")
            },
            |v| v.over_all(&self.endpoints(), self.nodes.len()),
        ))
    }
}

#[async_trait]
impl MetaRead for EtcdStore {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        check::range(opts)?;
        self.shared.range(span, opts).await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        check::watch(&span, from)?;
        watch::open(&self.shared, span, from).await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.shared.status().await
    }
}

#[async_trait]
impl MetaWrite for EtcdStore {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        check::txn(&txn, check::ETCD_LIMITS)?;
        self.shared.txn(txn).await
    }

    fn limits(&self) -> Limits {
        check::ETCD_LIMITS
    }

    async fn compact(&self, rev: MetaRev) -> Result<()> {
        self.shared.compact(rev).await
    }

    async fn grant(&self, ttl: Duration) -> Result<i64> {
        self.shared.grant(ttl).await
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        self.shared.keep_alive(lease).await
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        self.shared.revoke(lease).await
    }
}

/// etcd's key-value in our words, without copying the value.
fn kv_of(kv: etcd_client::KeyValue) -> KeyValue {
    let (create_rev, mod_rev) = (MetaRev(kv.create_revision()), MetaRev(kv.mod_revision()));
    let (version, lease) = (kv.version(), kv.lease());
    let (key, value) = kv.into_key_value();
    KeyValue {
        key: MetaKey(key.into()),
        value: value.into(),
        create_rev,
        mod_rev,
        version,
        lease,
    }
}

/// First key and end of a span as etcd wants them: no key is empty, and an end of one zero byte means no end.
fn bounds(span: &Span) -> (Vec<u8>, Vec<u8>) {
    let start = if span.start.is_empty() {
        vec![0]
    } else {
        span.start.to_vec()
    };
    let end = span.end.as_ref().map_or_else(|| vec![0], |e| e.to_vec());
    (start, end)
}
