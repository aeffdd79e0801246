//! New ids from the cluster's own allocator (law 4, `spec/layout.md` §1.5).
//!
//! The key holds the end of the time window that Milvus may hand out ids from, in Unix nanoseconds; an id is
//! `milliseconds << 18 | counter`. We take our ids above the window and move its end above them by compare-and-swap.
//! Milvus starts above the end it finds, so neither ever hands out what the other did.

use bytes::Bytes;

use super::execute::{Executor, IdRange, Who};
use super::journal::{Audit, AuditKey, json};
use super::retry::{Backoff, calm};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{KeyPrefix, MetaKey, MetaRev, UnixMs, UnixNs};
use crate::engine::meta::{Cond, Outcome, RangeOpts, Span, Txn, Write};

const LOGICAL_BITS: u32 = 18;
/// A clock this far ahead of the window is not believed: a window cannot be moved back.
const BELIEVED_AHEAD_MS: i64 = 366 * 24 * 3600 * 1000;

/// The largest id found in use, with its key, and the epoch in which it was looked for.
#[derive(Default)]
pub struct Floor {
    epoch: Option<u64>,
    top: Option<(i64, MetaKey)>,
}

/// Where the next ids start, and the end of the window that covers them.
fn window(stored: Option<UnixNs>, now: UnixMs, top: i64, n: u32) -> Result<(IdRange, UnixNs)> {
    let too_far = || {
        Error::new(
            ErrorKind::Limit,
            "the id allocator stands at the end of its range",
        )
    };
    // Rounded up: a part of a millisecond belongs to Milvus.
    let saved =
        stored.map(|ns| ns.0.div_euclid(1_000_000) + i64::from(ns.0.rem_euclid(1_000_000) > 0));
    let start = match saved {
        Some(saved) if now.0 - saved > BELIEVED_AHEAD_MS => saved,
        Some(saved) => saved.max(now.0),
        None => now.0.max((top >> LOGICAL_BITS) + 1),
    };
    let first = start
        .checked_mul(1 << LOGICAL_BITS)
        .filter(|v| *v > 0)
        .ok_or_else(too_far)?;
    let last = first.checked_add(i64::from(n)).ok_or_else(too_far)? - 1;
    let end = ((last >> LOGICAL_BITS) + 1)
        .checked_mul(1_000_000)
        .ok_or_else(too_far)?;
    Ok((IdRange { first, count: n }, UnixNs(end)))
}

impl Executor {
    /// The global id allocator.
    pub fn allocator_key(&self) -> MetaKey {
        let parts = [
            self.roots.root.as_str(),
            self.roots.kv.as_str(),
            "gid/idTimestamp",
        ];
        join(&parts).into()
    }

    /// `n` consecutive ids that nobody has and nobody will get. Ids of a try whose outcome stays unknown are lost, not reused.
    pub async fn take_ids(&self, who: &Who, n: u32) -> Result<IdRange> {
        if n == 0 {
            return Err(Error::new(ErrorKind::Internal, "no ids asked for"));
        }
        let mut floor = self.scope().wait(self.ids.lock()).await?;
        let epoch = self.fence.epoch();
        if floor.epoch != epoch || epoch.is_none() {
            // Others may have written since we last owned the root.
            *floor = Floor {
                epoch,
                top: self.ids_in_use().await?,
            };
        }
        let key = self.allocator_key();
        let mut backoff = Backoff::new(8);
        loop {
            self.fence.renew_if_due().await?;
            let kv = calm(&*self.clock, || self.meta.get(&key)).await?;
            let stored = match &kv {
                Some(kv) => Some(parse(&key, &kv.value)?),
                None if self.embedded => None,
                None => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!(
                            "id allocator {key} does not exist: new ids cannot be proved unused"
                        ),
                    )
                    .fix("check etcd.rootPath and etcd.kvSubPath"));
                }
            };
            let top = floor.top.as_ref().map_or(0, |(id, _)| *id);
            let (range, end) = window(stored, self.clock.now(), top, n)?;
            if let Some((id, holder)) = floor.top.as_ref().filter(|(id, _)| *id >= range.first) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("id {id} of key {holder} lies above the id allocator's window: new ids cannot be proved unused"),
                )
                .with("allocator", &key)
                .with("first id", range.first)
                .fix("the allocator was set back, or that key is damaged: repair it first"));
            }
            let txn = self.window_txn(who, &key, kv.map(|kv| kv.mod_rev), end, range)?;
            match self.meta.txn(txn).await {
                Ok(Outcome::Committed { .. }) => {
                    self.fence.prove();
                    if let Some((id, _)) = floor.top.as_mut() {
                        *id = (*id).max(range.first + i64::from(n) - 1);
                    }
                    return Ok(range);
                }
                Ok(Outcome::Refused { .. }) => {
                    if let Some(fenced) = self.fence.why().await? {
                        return Err(fenced);
                    }
                }
                // Whether it happened or not: start again above whatever the key says then. A late arrival of this transaction
                // and the next try cannot both win, they ask for the same revision.
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown || e.is_transient() => {}
                Err(e) => return Err(e),
            }
            if !backoff.again(&*self.clock).await {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("id allocator {key} could not be moved"),
                )
                .fix("try again"));
            }
        }
    }

    fn window_txn(
        &self,
        who: &Who,
        key: &MetaKey,
        old: Option<MetaRev>,
        end: UnixNs,
        range: IdRange,
    ) -> Result<Txn> {
        let mut conds = self.fence.conds_at(who.epoch)?;
        conds.push(old.map_or_else(
            || Cond::Absent(key.clone()),
            |rev| Cond::At(key.clone(), rev),
        ));
        let value = Bytes::copy_from_slice(&u64::try_from(end.0).unwrap_or(0).to_be_bytes());
        let audit = Audit {
            at: self.clock.now(),
            actor: self.actor.clone(),
            job: who.job,
            plan: who.plan.clone(),
            change: "ids".into(),
            keys: vec![AuditKey {
                key: key.text(),
                old,
                what: format!(
                    "{} ids from {}; the window never goes back",
                    range.count, range.first
                ),
            }],
        };
        let rev = old.unwrap_or_default();
        Ok(Txn {
            conds,
            writes: vec![
                Write::put(key.clone(), value),
                Write::put(self.keys.audit(rev, who.job, "ids", 0), json(&audit)?),
            ],
        })
    }

    /// The largest whole number in any key under the meta root: collections, partitions, segments, builds, indexes, snapshots,
    /// jobs, tasks and replicas all have their id as a part of their key.
    async fn ids_in_use(&self) -> Result<Option<(i64, MetaKey)>> {
        let base = join(&[&self.roots.root, &self.roots.meta]);
        let sessions = KeyPrefix::new(&format!("{base}/session"));
        let mut span = Span::prefix(&KeyPrefix::new(&base));
        let mut top: Option<(i64, MetaKey)> = None;
        loop {
            let opts = RangeOpts {
                keys_only: true,
                ..RangeOpts::default()
            };
            let page = calm(&*self.clock, || self.meta.range(&span, opts)).await?;
            for kv in page.kvs.iter().filter(|kv| !sessions.holds(&kv.key)) {
                let largest = largest_id(&kv.key.0);
                if largest.is_some_and(|id| top.as_ref().is_none_or(|(t, _)| id > *t)) {
                    top = largest.map(|id| (id, kv.key.clone()));
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => span = span.after(&last.key),
                _ => return Ok(top),
            }
        }
    }
}

/// Parts joined by one slash; empty parts leave no trace.
fn join(parts: &[&str]) -> String {
    parts
        .iter()
        .map(|p| p.trim_matches('/'))
        .filter(|p| !p.is_empty())
        .collect::<Vec<_>>()
        .join("/")
}

fn largest_id(key: &[u8]) -> Option<i64> {
    key.split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit))
        .filter_map(|part| std::str::from_utf8(part).ok()?.parse().ok())
        .max()
}

fn parse(key: &MetaKey, value: &[u8]) -> Result<UnixNs> {
    let bad = || {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "id allocator {key} holds {} bytes that are not a time",
                value.len()
            ),
        )
        .fix("8 bytes, big-endian Unix nanoseconds, are expected")
    };
    let bytes: [u8; 8] = value.try_into().map_err(|_| bad())?;
    i64::try_from(u64::from_be_bytes(bytes))
        .map(UnixNs)
        .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_window_covers_the_ids_and_never_goes_back(
            stored in 1_546_300_800_000_000_000_i64..4_000_000_000_000_000_000,
            now in 0_i64..9_000_000_000_000,
            n in 1_u32..2_000_000,
        ) {
            let (range, end) = window(Some(UnixNs(stored)), UnixMs(now), 0, n).unwrap();
            prop_assert!(end.0 > stored);
            // Above all that Milvus may have handed out: its ids have a physical part below the saved end.
            prop_assert!(i128::from(range.first >> LOGICAL_BITS) * 1_000_000 >= i128::from(stored));
            // Below all that Milvus will hand out: it starts at the saved end or later.
            let last = range.first + i64::from(n) - 1;
            prop_assert!((last >> LOGICAL_BITS) * 1_000_000 < end.0);
        }
    }

    #[test]
    fn ids_are_found_in_keys() {
        assert_eq!(
            largest_id(b"by-dev/meta/datacoord-meta/s/7/470660334431902643/12"),
            Some(470_660_334_431_902_643)
        );
        assert_eq!(
            largest_id(b"by-dev/meta/channel-cp/by-dev-rootcoord-dml_0_47v0"),
            None
        );
    }
}
