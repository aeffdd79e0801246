//! The right to write, and its loss (law 4).
//!
//! One writer a root: the owner key, bound to a lease, names us; the epoch counts owners. Every transaction carries both as
//! conditions, and that no coordinator session exists (`spec/layout.md` §1.4), so that losing either refuses the write itself, not
//! a check before it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::journal::{Keys, Owner, from_json, json};
use super::retry::{Backoff, calm};
use crate::engine::clock::{Clock, Entropy};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::UnixMs;
use crate::engine::meta::scope::Scope;
use crate::engine::meta::{Cond, MetaReader, MetaWriter, Outcome, RangeOpts, Span, Txn, Write};
use crate::engine::profile::Roots;

/// The roles whose session means that somebody holds the catalog in memory. A standby (`-{id}`) counts: it may wake up.
pub const COORDINATORS: [&str; 5] = [
    "rootcoord",
    "datacoord",
    "indexcoord",
    "querycoord",
    "mixcoord",
];

/// How long a silent writer keeps the root.
pub const TTL: Duration = Duration::from_secs(15);

/// The empty ranges that prove no coordinator is registered: `session/{role}` and everything that begins with it,
/// because a coordinator waits for each such key (§1.4). `session/id` and `session/version` lie outside.
#[must_use]
pub fn session_spans(roots: &Roots) -> Vec<Span> {
    let base = [roots.root.as_str(), roots.meta.as_str()]
        .iter()
        .map(|p| p.trim_matches('/'))
        .filter(|p| !p.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    COORDINATORS
        .iter()
        .map(|role| {
            let start = format!("{base}/session/{role}");
            // The last byte is a letter: one more is the first string behind every `session/{role}…`.
            let mut end = start.clone().into_bytes();
            if let Some(last) = end.last_mut() {
                *last += 1;
            }
            Span {
                start: start.into_bytes().into(),
                end: Some(end.into()),
            }
        })
        .collect()
}

#[derive(Clone)]
struct Held {
    lease: i64,
    owner: Bytes,
    epoch: Bytes,
}

/// When something last held, by both clocks: monotonic time stands still while the machine sleeps, wall time may be set.
#[derive(Clone, Copy)]
struct Stamp {
    mono: Duration,
    wall: UnixMs,
}

/// Our ownership of one root, as it is asked and kept on somebody's behalf.
pub struct Fence {
    meta: MetaWriter,
    ours: Arc<Ours>,
}

/// The ownership itself, one a process and root.
struct Ours {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keys: Keys,
    spans: Vec<Span>,
    actor: String,
    held: Mutex<Option<Held>>,
    /// Leases that were granted and not revoked, with the owner that goes with each: a caller that is cut off in between leaves its own
    /// to [`Fence::release`], and what stands under the owner key is known as ours from the first moment to the last.
    granted: Mutex<BTreeMap<i64, Bytes>>,
    /// The last renewal, and the last proof that the fence stands.
    renewed: Mutex<Option<Stamp>>,
    proved: Mutex<Option<Stamp>>,
    /// One acquisition at a time.
    gate: tokio::sync::Mutex<()>,
}

impl Fence {
    /// Not held yet.
    pub fn new(
        meta: MetaWriter,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        roots: &Roots,
        actor: String,
    ) -> Self {
        let ours = Arc::new(Ours {
            clock,
            entropy,
            keys: Keys::new(roots),
            spans: session_spans(roots),
            actor,
            held: Mutex::new(None),
            granted: Mutex::default(),
            renewed: Mutex::new(None),
            proved: Mutex::new(None),
            gate: tokio::sync::Mutex::new(()),
        });
        Self { meta, ours }
    }

    /// The same on behalf of another.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            meta: self.meta.within(scope),
            ours: self.ours.clone(),
        }
    }

    /// The epoch we hold, if we do.
    pub fn epoch(&self) -> Option<u64> {
        let held = self.lock();
        let text = std::str::from_utf8(&held.as_ref()?.epoch).ok()?;
        text.parse().ok()
    }

    /// Becomes the owner, or says who is. Nothing happens when we are already.
    pub async fn acquire(&self) -> Result<()> {
        let _gate = self.meta.scope().wait(self.ours.gate.lock()).await?;
        if self.lock().is_some() {
            return Ok(());
        }
        let mut backoff = Backoff::new(5);
        loop {
            let owner = calm(&*self.ours.clock, || async {
                self.meta.get(&self.ours.keys.owner()).await
            })
            .await?;
            if let Some(kv) = owner {
                return Err(busy(&self.ours.keys, &kv.value));
            }
            let epoch = calm(&*self.ours.clock, || async {
                self.meta.get(&self.ours.keys.epoch()).await
            })
            .await?;
            let number = match &epoch {
                None => 1,
                Some(kv) => from_json::<u64>(&kv.key, &kv.value)? + 1,
            };
            let lease = calm(&*self.ours.clock, || self.meta.grant(TTL)).await?;
            let held = Held {
                lease,
                owner: json(&Owner {
                    token: format!("{:016x}", self.ours.entropy.next_u64()),
                    epoch: number,
                    actor: self.ours.actor.clone(),
                    since: self.ours.clock.now(),
                })?,
                epoch: number.to_string().into(),
            };
            self.granted().insert(lease, held.owner.clone());
            let txn = Txn {
                conds: vec![
                    Cond::Absent(self.ours.keys.owner()),
                    epoch.map_or_else(
                        || Cond::Absent(self.ours.keys.epoch()),
                        |kv| Cond::At(kv.key, kv.mod_rev),
                    ),
                ],
                writes: vec![
                    Write::Put {
                        key: self.ours.keys.owner(),
                        value: held.owner.clone(),
                        lease,
                    },
                    Write::put(self.ours.keys.epoch(), held.epoch.clone()),
                ],
            };
            let outcome = self.meta.txn(txn).await;
            // From here on something of ours may stand there, whoever still waits for it.
            let after = self.within(&self.meta.scope().detached("take the root"));
            let ours = match outcome {
                Ok(Outcome::Committed { .. }) => Ok(true),
                Ok(Outcome::Refused { .. }) => Ok(false),
                // The token is random: if it stands there, the transaction happened.
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown => {
                    let now = calm(&*self.ours.clock, || async {
                        after.meta.get(&self.ours.keys.owner()).await
                    })
                    .await;
                    now.map(|kv| kv.is_some_and(|kv| kv.value == held.owner))
                }
                Err(e) if e.is_transient() => Ok(false),
                Err(e) => Err(e),
            };
            if let Ok(true) = ours {
                self.stamp(&self.ours.renewed);
                forget(&self.ours.proved);
                *self.lock() = Some(held);
                return Ok(());
            }
            // A lease that guards nothing.
            after.give_up(lease).await;
            ours?;
            if !backoff.again(&*self.ours.clock).await {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("key {} could not be taken", self.ours.keys.owner()),
                )
                .fix("try again"));
            }
        }
    }

    /// Gives the root back, also when whoever had it was stopped. Called again after it was cut off, it does what is left.
    pub async fn release(&self) {
        let scope = self.meta.scope().detached("give the root back");
        let Ok(_gate) = scope.wait(self.ours.gate.lock()).await else {
            return;
        };
        let me = self.within(&scope);
        *self.lock() = None;
        let granted: Vec<i64> = self.granted().keys().copied().collect();
        for lease in granted {
            me.give_up(lease).await;
        }
    }

    /// Errors are of no use: the lease ends by itself.
    async fn give_up(&self, lease: i64) {
        let _ = self.meta.revoke(lease).await;
        self.granted().remove(&lease);
    }

    fn granted(&self) -> MutexGuard<'_, BTreeMap<i64, Bytes>> {
        self.ours
            .granted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Conditions of every transaction into the Milvus root.
    pub fn conds(&self) -> Result<Vec<Cond>> {
        self.conds_at(None)
    }

    /// As [`conds`](Self::conds), for one who rests on what was read under this epoch; `Fenced` when we hold another one by now.
    pub fn conds_at(&self, epoch: Option<u64>) -> Result<Vec<Cond>> {
        let mut conds: Vec<Cond> = self.ours.spans.iter().cloned().map(Cond::NoneIn).collect();
        let own = self.own_conds()?;
        if let Some(epoch) = epoch {
            let mine = Cond::ValueIs(self.ours.keys.epoch(), epoch.to_string().into());
            if !own.contains(&mine) {
                return Err(self.lost());
            }
        }
        conds.extend(own);
        Ok(conds)
    }

    /// Conditions of a transaction that touches our own keys only: ownership, but a live coordinator does not matter.
    pub fn own_conds(&self) -> Result<Vec<Cond>> {
        let held = self.lock();
        let held = held.as_ref().ok_or_else(|| self.lost())?;
        Ok(vec![
            Cond::ValueIs(self.ours.keys.owner(), held.owner.clone()),
            Cond::ValueIs(self.ours.keys.epoch(), held.epoch.clone()),
        ])
    }

    /// Whether the owner key is still ours, as the store says now.
    pub async fn owned(&self) -> Result<bool> {
        let owner = calm(&*self.ours.clock, || async {
            self.meta.get(&self.ours.keys.owner()).await
        })
        .await?;
        let ours = self.lock().as_ref().map(|h| h.owner.clone());
        let same = owner.map(|kv| kv.value) == ours && ours.is_some();
        if !same {
            *self.lock() = None;
        }
        Ok(same)
    }

    /// Whether this value of the owner key is ours.
    pub fn is_ours(&self, value: &[u8]) -> bool {
        self.granted().values().any(|owner| owner == value)
    }

    /// What is said when it is not.
    pub fn lost(&self) -> Error {
        Error::new(
            ErrorKind::Fenced,
            format!(
                "our lease on {} is lost: nothing more is written",
                self.ours.keys.owner()
            ),
        )
        .fix("the job is taken up again by whoever owns the root next")
    }

    /// Renews the lease when a third of it has passed.
    pub async fn renew_if_due(&self) -> Result<()> {
        let Some(lease) = self.lock().as_ref().map(|h| h.lease) else {
            return Err(self.lost());
        };
        if self.fresh(&self.ours.renewed) {
            return Ok(());
        }
        match self.meta.keep_alive(lease).await {
            Ok(()) => {
                self.stamp(&self.ours.renewed);
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                *self.lock() = None;
                Err(self.lost())
            }
            // Not renewed, not lost either: the conditions of the next transaction decide.
            Err(_) => Ok(()),
        }
    }

    /// Keeps the lease while nothing is written. Runs until it is dropped, or its scope is over.
    pub async fn keep(&self) {
        let scope = self.meta.scope();
        while scope.wait(self.ours.clock.sleep(TTL / 3)).await.is_ok() {
            let _ = self.renew_if_due().await;
        }
    }

    /// Proves that the fence stands, with one empty transaction; a proof younger than a third of the lease is enough.
    pub async fn check(&self) -> Result<()> {
        self.renew_if_due().await?;
        if self.fresh(&self.ours.proved) {
            return Ok(());
        }
        let conds = self.conds()?;
        let outcome = calm(&*self.ours.clock, || {
            self.meta.txn(Txn {
                conds: conds.clone(),
                writes: Vec::new(),
            })
        })
        .await?;
        match outcome {
            Outcome::Committed { .. } => {
                self.prove();
                Ok(())
            }
            Outcome::Refused { .. } => Err(self.why().await?.unwrap_or_else(|| {
                Error::new(ErrorKind::Fenced, "the fence did not hold a moment ago")
                    .fix("try again")
            })),
        }
    }

    /// A transaction with [`conds`](Self::conds) went through just now.
    pub fn prove(&self) {
        self.stamp(&self.ours.proved);
    }

    /// Why a transaction was refused, if it was the fence.
    pub async fn why(&self) -> Result<Option<Error>> {
        forget(&self.ours.proved);
        if let Some(e) = self.coordinator().await? {
            return Ok(Some(e));
        }
        let owner = calm(&*self.ours.clock, || async {
            self.meta.get(&self.ours.keys.owner()).await
        })
        .await?;
        let ours = self.lock().as_ref().map(|h| h.owner.clone());
        match (owner, ours) {
            (Some(kv), Some(ours)) if kv.value == ours => Ok(None),
            (Some(kv), _) => {
                *self.lock() = None;
                Ok(Some(
                    self.lost()
                        .with("owner now", String::from_utf8_lossy(&kv.value)),
                ))
            }
            (None, _) => {
                *self.lock() = None;
                Ok(Some(self.lost()))
            }
        }
    }

    /// As [`coordinator`], on our own store.
    pub async fn coordinator(&self) -> Result<Option<Error>> {
        coordinator(&self.meta.reader(), &*self.ours.clock, &self.ours.spans).await
    }

    /// Younger than a third of the lease by both clocks. A wall clock that was set back proves nothing.
    fn fresh(&self, stamp: &Mutex<Option<Stamp>>) -> bool {
        let Some(at) = *stamp.lock().unwrap_or_else(PoisonError::into_inner) else {
            return false;
        };
        let third = TTL / 3;
        let wall = self.ours.clock.now().0.saturating_sub(at.wall.0);
        self.ours.clock.mono().saturating_sub(at.mono) < third
            && u64::try_from(wall).is_ok_and(|ms| Duration::from_millis(ms) < third)
    }

    fn stamp(&self, stamp: &Mutex<Option<Stamp>>) {
        let now = Stamp {
            mono: self.ours.clock.mono(),
            wall: self.ours.clock.now(),
        };
        *stamp.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Held>> {
        self.ours
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget(stamp: &Mutex<Option<Stamp>>) {
    *stamp.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// The refusal that another owner of the root means; `value` is that of the owner key.
pub fn busy(keys: &Keys, value: &[u8]) -> Error {
    let who = serde_json::from_slice::<Owner>(value).map_or_else(
        |_| "an unknown writer".to_owned(),
        |o| format!("{} since {}", o.actor, o.since.utc()),
    );
    Error::new(
        ErrorKind::Busy,
        format!("this root is being written by {who}"),
    )
    .with("key", keys.owner())
    .fix(format!(
        "wait for its job to end; if that process is dead its lease runs out within {} s",
        TTL.as_secs()
    ))
}

/// The refusal that a registered coordinator means; `None` when there is none. `spans` are those of [`session_spans`]. Reads
/// only: a plan names the coordinator in the way also where nothing can be written.
pub async fn coordinator(
    meta: &MetaReader,
    clock: &dyn Clock,
    spans: &[Span],
) -> Result<Option<Error>> {
    for span in spans {
        let opts = RangeOpts {
            limit: 1,
            ..RangeOpts::default()
        };
        let page = calm(clock, || meta.range(span, opts)).await?;
        if let Some(kv) = page.kvs.first() {
            let e = if kv.lease == 0 {
                Error::new(
                    ErrorKind::Fenced,
                    format!(
                        "session key {} exists without a lease: it never runs out, so nobody can tell whether that coordinator lives",
                        kv.key
                    ),
                )
                .fix(format!(
                    "make sure that no Milvus coordinator runs on this root, then remove it: etcdctl del {}",
                    kv.key
                ))
            } else {
                Error::new(
                    ErrorKind::Fenced,
                    format!("coordinator {} is alive{}: it would overwrite our changes from memory", kv.key, address(&kv.value)),
                )
                .fix("stop every coordinator, standby ones too, and wait for their leases to run out")
            };
            return Ok(Some(e.with("session", &kv.key)));
        }
    }
    Ok(None)
}

/// ` at host:port` from a session's JSON.
fn address(value: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(value)
        .ok()
        .and_then(|v| v.get("Address")?.as_str().map(|a| format!(" at {a}")))
        .unwrap_or_default()
}
