//! A metadata store in one map: enough for the write path. Watches are the embedded store's business.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::ids::{MetaKey, MetaRev};
use falconer::engine::meta::{
    Cond, KeyValue, Limits, MetaRead, MetaStatus, MetaWrite, Outcome, Page, RangeOpts, Span, Txn,
    WatchStream, Write,
};

#[derive(Clone, Default)]
struct State {
    kvs: BTreeMap<MetaKey, KeyValue>,
    rev: i64,
    leases: Vec<i64>,
}

impl State {
    fn any_in(&self, span: &Span) -> bool {
        self.kvs
            .range(MetaKey(span.start.clone())..)
            .next()
            .is_some_and(|(key, _)| span.contains(key))
    }
}

pub struct MemStore {
    state: Mutex<State>,
    limits: Limits,
}

impl MemStore {
    pub fn new(limits: Limits) -> Self {
        Self {
            state: Mutex::default(),
            limits,
        }
    }

    /// A store of its own with the same keys: values are shared, so hundreds of runs can begin at one state.
    pub fn fork(&self) -> Self {
        Self {
            state: Mutex::new(self.state.lock().unwrap().clone()),
            limits: self.limits,
        }
    }
}

fn single(cond: &Cond) -> Option<&MetaKey> {
    match cond {
        Cond::Absent(k) | Cond::At(k, _) | Cond::ValueIs(k, _) => Some(k),
        _ => None,
    }
}

#[async_trait]
impl MetaRead for MemStore {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        let s = self.state.lock().unwrap();
        let limit = if opts.limit == 0 { 10_000 } else { opts.limit };
        let mut all = s
            .kvs
            .range(MetaKey(span.start.clone())..)
            .map(|(_, kv)| kv)
            .take_while(|kv| span.contains(&kv.key));
        let kvs: Vec<KeyValue> = all.by_ref().take(limit).cloned().collect();
        Ok(Page {
            kvs,
            more: all.next().is_some(),
            rev: MetaRev(s.rev),
        })
    }

    async fn watch(&self, _: Span, _: MetaRev) -> Result<WatchStream> {
        Err(Error::new(ErrorKind::Unsupported, "no watch here"))
    }

    async fn status(&self) -> Result<MetaStatus> {
        // It stands in for a cluster's etcd.
        let server = "etcd in memory".to_owned();
        Ok(MetaStatus {
            server,
            ..MetaStatus::default()
        })
    }
}

#[async_trait]
impl MetaWrite for MemStore {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let mut s = self.state.lock().unwrap();
        let bytes: usize = txn
            .writes
            .iter()
            .map(|w| match w {
                Write::Put { key, value, .. } => key.0.len() + value.len(),
                Write::Delete(key) => key.0.len(),
            })
            .sum();
        if txn.writes.len() > self.limits.ops
            || txn.conds.len() > self.limits.ops
            || bytes > self.limits.bytes
        {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "{} conditions, {} writes, {bytes} bytes",
                    txn.conds.len(),
                    txn.writes.len()
                ),
            ));
        }
        let holds = txn.conds.iter().all(|c| match c {
            Cond::Absent(k) => !s.kvs.contains_key(k),
            Cond::At(k, rev) => s.kvs.get(k).is_some_and(|kv| kv.mod_rev == *rev),
            Cond::ValueIs(k, v) => s.kvs.get(k).is_some_and(|kv| kv.value == *v),
            Cond::NoneUnder(p) => !s.any_in(&Span::prefix(p)),
            Cond::NoneIn(span) => !s.any_in(span),
        });
        let rev = MetaRev(s.rev);
        if !holds {
            let seen = txn
                .conds
                .iter()
                .filter_map(single)
                .filter_map(|k| s.kvs.get(k).cloned())
                .collect();
            return Ok(Outcome::Refused { rev, seen });
        }
        if txn.writes.is_empty() {
            return Ok(Outcome::Committed { rev });
        }
        s.rev += 1;
        let rev = MetaRev(s.rev);
        for w in txn.writes {
            match w {
                Write::Put { key, value, lease } => {
                    if lease != 0 && !s.leases.contains(&lease) {
                        return Err(Error::new(ErrorKind::NotFound, "lease"));
                    }
                    let old = s.kvs.get(&key);
                    let kv = KeyValue {
                        create_rev: old.map_or(rev, |o| o.create_rev),
                        version: old.map_or(1, |o| o.version + 1),
                        mod_rev: rev,
                        key: key.clone(),
                        value,
                        lease,
                    };
                    s.kvs.insert(key, kv);
                }
                Write::Delete(key) => {
                    s.kvs.remove(&key);
                }
            }
        }
        Ok(Outcome::Committed { rev })
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn compact(&self, _: MetaRev) -> Result<()> {
        Ok(())
    }

    async fn grant(&self, _: Duration) -> Result<i64> {
        let mut s = self.state.lock().unwrap();
        let lease = i64::try_from(s.leases.len()).unwrap() + 1;
        s.leases.push(lease);
        Ok(lease)
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        let s = self.state.lock().unwrap();
        if s.leases.contains(&lease) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::NotFound, "lease"))
        }
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        let mut s = self.state.lock().unwrap();
        if s.leases.contains(&lease) {
            s.kvs.retain(|_, kv| kv.lease != lease);
            if let Some(at) = s.leases.iter().position(|l| *l == lease) {
                s.leases[at] = -1;
            }
        }
        Ok(())
    }
}
