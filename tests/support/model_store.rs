//! The metadata store in a hundred lines: what every implementation must agree with. All history in one map, no cleverness.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::ids::{MetaKey, MetaRev};
use falconer::engine::meta::{
    Cond, DEFAULT_PAGE, Event, KeyValue, Limits, MetaRead, MetaStatus, MetaWrite, Outcome, Page,
    RangeOpts, Span, Txn, WatchBatch, WatchStream, Write, check,
};
use futures::StreamExt;
use tokio::sync::watch::Sender;

#[derive(Default)]
struct State {
    /// Every change of every revision; `None` = deleted.
    log: BTreeMap<i64, Vec<(MetaKey, Option<KeyValue>)>>,
    /// State at `rev`, kept so that the model is not the slowest store in the suite.
    live: BTreeMap<MetaKey, KeyValue>,
    rev: i64,
    compacted: i64,
    leases: Vec<i64>,
}

fn apply(live: &mut BTreeMap<MetaKey, KeyValue>, changes: &[(MetaKey, Option<KeyValue>)]) {
    for (key, kv) in changes {
        match kv {
            Some(kv) => live.insert(key.clone(), kv.clone()),
            None => live.remove(key),
        };
    }
}

impl State {
    fn at(&self, rev: i64) -> Cow<'_, BTreeMap<MetaKey, KeyValue>> {
        if rev == self.rev {
            return Cow::Borrowed(&self.live);
        }
        let mut live = BTreeMap::new();
        for changes in self.log.range(..=rev).map(|(_, changes)| changes) {
            apply(&mut live, changes);
        }
        Cow::Owned(live)
    }

    fn write(&mut self, writes: &[Write]) -> i64 {
        let rev = self.rev + 1;
        let mut changes = Vec::new();
        for write in writes {
            let old = self.live.get(write.key());
            match write {
                Write::Put { key, value, lease } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_rev: old.map_or(MetaRev(rev), |o| o.create_rev),
                        mod_rev: MetaRev(rev),
                        version: old.map_or(1, |o| o.version + 1),
                        lease: *lease,
                    };
                    changes.push((key.clone(), Some(kv)));
                }
                Write::Delete(key) if old.is_some() => changes.push((key.clone(), None)),
                Write::Delete(_) => {}
            }
        }
        if !changes.is_empty() {
            apply(&mut self.live, &changes);
            self.log.insert(rev, changes);
            self.rev = rev;
        }
        self.rev
    }
}

#[derive(Clone)]
pub struct Model(Arc<(Mutex<State>, Sender<i64>)>);

impl Model {
    pub fn new() -> Self {
        let state = State {
            rev: 1,
            compacted: 1,
            ..State::default()
        };
        Self(Arc::new((Mutex::new(state), Sender::new(1))))
    }

    /// What a revision changed, compacted or not.
    pub fn changes(&self, rev: MetaRev) -> Vec<(MetaKey, Option<KeyValue>)> {
        self.state().log.get(&rev.0).cloned().unwrap_or_default()
    }

    /// Everything as it stood at a revision, compacted or not.
    pub fn truth(&self, rev: MetaRev) -> BTreeMap<MetaKey, KeyValue> {
        self.state().at(rev.0).into_owned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    fn commit(&self, state: &mut State, writes: &[Write]) -> MetaRev {
        let rev = state.write(writes);
        self.0.1.send_replace(rev);
        MetaRev(rev)
    }

    /// The next revision of a watch, empty when it did not touch the span.
    async fn next(&self, span: &Span, rev: i64) -> Result<WatchBatch> {
        let mut head = self.0.1.subscribe();
        head.wait_for(|head| *head >= rev).await.unwrap();
        let state = self.state();
        if rev <= state.compacted && rev > 1 {
            return Err(check::compacted("watch from", MetaRev(rev), None));
        }
        let changes = state.log.get(&rev).into_iter().flatten();
        let events = changes
            .filter(|(key, _)| span.contains(key))
            .map(|(key, kv)| match kv {
                Some(kv) => Event::Put(kv.clone()),
                None => Event::Delete(key.clone(), MetaRev(rev)),
            })
            .collect();
        Ok(WatchBatch {
            rev: MetaRev(rev),
            events,
        })
    }
}

#[async_trait]
impl MetaRead for Model {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        check::range(opts)?;
        let state = self.state();
        let at = opts.at.map_or(state.rev, |r| r.0);
        if at > state.rev {
            return Err(check::future(MetaRev(at), None));
        }
        if at < state.compacted {
            return Err(check::compacted("read at", MetaRev(at), None));
        }
        let limit = if opts.limit == 0 {
            DEFAULT_PAGE
        } else {
            opts.limit
        };
        let live = state.at(at);
        let hits = live.values().filter(|kv| span.contains(&kv.key));
        let mut kvs: Vec<_> = hits.take(limit + 1).cloned().collect();
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if opts.keys_only {
            for kv in &mut kvs {
                kv.value.clear();
            }
        }
        let rev = MetaRev(at);
        Ok(Page { kvs, more, rev })
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        check::watch(&span, from)?;
        if from.0 <= self.state().compacted && from.0 > 1 {
            return Err(check::compacted("watch from", from, None));
        }
        let start = (self.clone(), span, from.0);
        let step = |(model, span, rev): (Model, Span, i64)| async move {
            let batch = model.next(&span, rev).await;
            Some((batch, (model, span, rev + 1)))
        };
        Ok(futures::stream::unfold(start, step).boxed())
    }

    async fn status(&self) -> Result<MetaStatus> {
        Ok(MetaStatus {
            rev: MetaRev(self.state().rev),
            server: "model".into(),
            ..MetaStatus::default()
        })
    }
}

fn no_lease() -> Error {
    Error::new(ErrorKind::NotFound, "no such lease")
}

#[async_trait]
impl MetaWrite for Model {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        check::txn(&txn, self.limits())?;
        let mut state = self.state();
        let live = &state.live;
        let none_in = |span: &Span| !live.keys().any(|k| span.contains(k));
        let holds = |cond: &Cond| match cond {
            Cond::Absent(k) => !live.contains_key(k),
            Cond::At(k, rev) => live.get(k).is_some_and(|kv| kv.mod_rev == *rev),
            Cond::ValueIs(k, value) => live.get(k).is_some_and(|kv| kv.value == *value),
            Cond::NoneUnder(prefix) => none_in(&Span::prefix(prefix)),
            Cond::NoneIn(span) => none_in(span),
        };
        if !txn.conds.iter().all(holds) {
            let keys = check::named_keys(&txn.conds).into_iter();
            return Ok(Outcome::Refused {
                rev: MetaRev(state.rev),
                seen: keys.filter_map(|k| live.get(k).cloned()).collect(),
            });
        }
        for write in &txn.writes {
            if let Write::Put { lease, .. } = write
                && *lease != 0
                && !state.leases.contains(lease)
            {
                return Err(no_lease());
            }
        }
        let rev = self.commit(&mut state, &txn.writes);
        Ok(Outcome::Committed { rev })
    }

    fn limits(&self) -> Limits {
        check::ETCD_LIMITS
    }

    async fn compact(&self, rev: MetaRev) -> Result<()> {
        let mut state = self.state();
        if rev.0 > state.rev {
            return Err(check::future(rev, None));
        }
        state.compacted = state.compacted.max(rev.0);
        Ok(())
    }

    async fn grant(&self, _ttl: Duration) -> Result<i64> {
        let mut state = self.state();
        let lease = 1 + i64::try_from(state.leases.len()).unwrap();
        state.leases.push(lease);
        Ok(lease)
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        let known = self.state().leases.contains(&lease);
        known.then_some(()).ok_or_else(no_lease)
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        let mut state = self.state();
        let known = state.leases.iter_mut().find(|l| **l == lease);
        *known.ok_or_else(no_lease)? = -1; // its id is never given again
        let bound = state.live.values().filter(|kv| kv.lease == lease);
        let writes: Vec<_> = bound.map(|kv| Write::Delete(kv.key.clone())).collect();
        self.commit(&mut state, &writes);
        Ok(())
    }
}
