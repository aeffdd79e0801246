//! The one thread that writes. redb's calls block on fsync, so the runtime hands them over and waits for the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::core::Core;
use super::fault::Fault;
use super::{holder, mvcc};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::meta::{KeyValue, Outcome, Txn, Write, check};

/// History kept before the writer compacts by itself, revisions. Half of it is dropped at a time, so that compaction stays rare.
pub const HISTORY: i64 = 100_000;
/// How often the writer looks whether a lease has run out.
const LEASE_TICK: Duration = Duration::from_millis(100);
/// No lease will run out.
pub const NEVER: u64 = u64::MAX;

/// What the writer is asked.
pub enum Ask {
    /// Compare and swap.
    Txn(Txn, oneshot::Sender<Result<Outcome>>),
    /// Forget history below a revision.
    Compact(MetaRev, oneshot::Sender<Result<()>>),
    /// Fill an empty store.
    Load(Vec<KeyValue>, Option<MetaRev>, oneshot::Sender<Result<()>>),
    /// New lease.
    Grant(Duration, oneshot::Sender<Result<i64>>),
    /// Renew it.
    KeepAlive(i64, oneshot::Sender<Result<()>>),
    /// End it.
    Revoke(i64, oneshot::Sender<Result<()>>),
    /// End those that have run out.
    Expire(oneshot::Sender<Result<()>>),
}

struct Lease {
    ttl: Duration,
    /// On the monotonic clock.
    ends: Duration,
    keys: BTreeSet<MetaKey>,
}

/// State of the writer's thread.
pub struct Writer {
    core: Arc<Core>,
    leases: BTreeMap<i64, Lease>,
    last_lease: i64,
    /// When the next lease ends, ms on the monotonic clock: a reader that comes later asks for an expiry first.
    next_end: Arc<AtomicU64>,
}

impl Writer {
    /// A writer without leases.
    pub fn new(core: Arc<Core>, next_end: Arc<AtomicU64>) -> Self {
        // ids differ between runs, so that a key's old lease id never names a new lease
        let last_lease = core.clock.now().0.max(1);
        Self {
            core,
            leases: BTreeMap::new(),
            last_lease,
            next_end,
        }
    }

    /// Serves until the last handle is gone, then releases the file.
    pub fn run(mut self, asks: &Receiver<Ask>) {
        loop {
            let ask = if self.leases.is_empty() {
                asks.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                asks.recv_timeout(LEASE_TICK)
            };
            // a lease that has run out ends before anything else sees its keys
            if let Err(e) = self.expire() {
                tracing::error!(error = %e, "cannot end an expired lease");
            }
            match ask {
                Ok(ask) => self.serve(ask),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(path) = self.core.path() {
            holder::clear(path);
        }
    }

    fn serve(&mut self, ask: Ask) {
        // a receiver that is gone was cancelled; the work is done all the same
        match ask {
            Ask::Txn(txn, reply) => drop(reply.send(self.txn(&txn))),
            Ask::Compact(rev, reply) => drop(reply.send(self.compact(rev))),
            Ask::Load(kvs, rev, reply) => drop(reply.send(self.load(&kvs, rev))),
            Ask::Grant(ttl, reply) => drop(reply.send(Ok(self.grant(ttl)))),
            Ask::KeepAlive(id, reply) => drop(reply.send(self.keep_alive(id))),
            Ask::Revoke(id, reply) => drop(reply.send(self.revoke(id))),
            Ask::Expire(reply) => drop(reply.send(self.expire())),
        }
    }

    fn txn(&mut self, txn: &Txn) -> Result<Outcome> {
        for write in &txn.writes {
            if let Write::Put { key, lease, .. } = write
                && *lease != 0
                && !self.leases.contains_key(lease)
            {
                return Err(no_lease(*lease).with("key", key));
            }
        }
        let outcome = self.commit(txn)?;
        if let Outcome::Committed { .. } = outcome {
            self.index_leases(&txn.writes);
        }
        Ok(outcome)
    }

    fn commit(&self, txn: &Txn) -> Result<Outcome> {
        let path = self.core.path();
        let write = self.core.begin_write().map_err(|e| e.named(path))?;
        let before = mvcc::marks_in(&write).map_err(|e| e.named(path))?;
        let outcome = mvcc::apply(&write, txn).map_err(|e| e.named(path))?;
        match outcome {
            Outcome::Committed { rev } if rev.0 > before.rev => {
                let result = write.commit();
                result.map_err(|e| Fault::from(e).uncertain(path))?;
                self.publish(rev.0);
                self.bound_history(rev.0, before.compacted);
            }
            _ => write.abort().map_err(|e| Fault::from(e).named(path))?,
        }
        Ok(outcome)
    }

    fn publish(&self, rev: i64) {
        self.core.head.send_replace(rev);
    }

    fn bound_history(&self, rev: i64, compacted: i64) {
        if rev - compacted > HISTORY
            && let Err(e) = self.compact(MetaRev(rev - HISTORY / 2))
        {
            tracing::warn!(error = %e, "cannot drop old history");
        }
    }

    fn compact(&self, rev: MetaRev) -> Result<()> {
        let path = self.core.path();
        let write = self.core.begin_write().map_err(|e| e.named(path))?;
        mvcc::compact(&write, rev.0).map_err(|e| e.named(path))?;
        let result = write.commit();
        result.map_err(|e| Fault::from(e).uncertain(path))
    }

    fn load(&self, kvs: &[KeyValue], rev: Option<MetaRev>) -> Result<()> {
        let path = self.core.path();
        let write = self.core.begin_write().map_err(|e| e.named(path))?;
        let rev = mvcc::load(&write, kvs, rev).map_err(|e| e.named(path))?;
        let result = write.commit();
        result.map_err(|e| Fault::from(e).uncertain(path))?;
        self.publish(rev);
        Ok(())
    }

    fn index_leases(&mut self, writes: &[Write]) {
        for write in writes {
            for lease in self.leases.values_mut() {
                lease.keys.remove(write.key());
            }
            if let Write::Put { key, lease, .. } = write
                && let Some(lease) = self.leases.get_mut(lease)
            {
                lease.keys.insert(key.clone());
            }
        }
    }

    fn grant(&mut self, ttl: Duration) -> i64 {
        self.last_lease += 1;
        let ttl = ttl.max(Duration::from_secs(1));
        self.leases.insert(
            self.last_lease,
            Lease {
                ttl,
                ends: self.core.clock.mono() + ttl,
                keys: BTreeSet::new(),
            },
        );
        self.set_next_end();
        self.last_lease
    }

    fn keep_alive(&mut self, id: i64) -> Result<()> {
        let now = self.core.clock.mono();
        let lease = self.leases.get_mut(&id).ok_or_else(|| no_lease(id))?;
        lease.ends = now + lease.ttl;
        self.set_next_end();
        Ok(())
    }

    fn revoke(&mut self, id: i64) -> Result<()> {
        let Some(lease) = self.leases.get(&id) else {
            return Err(no_lease(id));
        };
        let keys: Vec<MetaKey> = lease.keys.iter().cloned().collect();
        self.delete_all(keys)?;
        self.leases.remove(&id);
        self.set_next_end();
        Ok(())
    }

    /// One revision for all keys, as etcd does: a lease's keys disappear together.
    pub fn delete_all(&self, keys: Vec<MetaKey>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        self.commit(&Txn {
            conds: Vec::new(),
            writes: keys.into_iter().map(Write::Delete).collect(),
        })?;
        Ok(())
    }

    fn expire(&mut self) -> Result<()> {
        let now = self.core.clock.mono();
        let ended: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, l)| l.ends <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.revoke(id)?;
        }
        Ok(())
    }

    fn set_next_end(&self) {
        let next = self.leases.values().map(|l| l.ends).min();
        let ms = next.map_or(NEVER, |d| u64::try_from(d.as_millis()).unwrap_or(NEVER));
        self.next_end.store(ms, Ordering::SeqCst);
    }
}

fn no_lease(id: i64) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("lease {id} does not exist, it has run out or was revoked"),
    )
}

/// Refuses before the writer is asked.
pub fn check_txn(txn: &Txn) -> Result<()> {
    check::txn(txn, check::ETCD_LIMITS)
}
