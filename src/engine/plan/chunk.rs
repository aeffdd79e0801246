//! A change cut into pieces that fit a transaction. Everything asked once for each chunk is worked out once for the change, so that
//! a change of many writes costs as much a write as one of few.

use std::collections::HashMap;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::execute::{Change, Executor, broken, cond_key, conflict};
use super::journal::{Before, PreImage};
use super::retry::calm;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaKey;
use crate::engine::meta::{Cond, RangeOpts, Span, Write};

/// Milvus itself never sends more operations into its root at once (`spec/layout.md` §0.6).
const MILVUS_OPS: usize = 64;
/// Room for framing in a transaction's bytes.
const SLACK: usize = 8 * 1024;
/// Values read at once.
const READS: usize = 16;
/// Keys a page when many must be absent.
const PAGE: usize = 1_000;

/// A change with its conditions sorted by what they are about.
pub(super) struct Shape<'a> {
    pub change: &'a Change,
    /// The keys are records that the job made itself: what they held is not kept.
    pub own: bool,
    /// Conditions on no key that is written.
    pub apart: Vec<&'a Cond>,
    /// For each write the conditions on its key.
    pub on: Vec<Vec<&'a Cond>>,
}

impl<'a> Shape<'a> {
    pub fn new(change: &'a Change, own: bool) -> Self {
        let numbers: HashMap<&MetaKey, usize> =
            change.writes.iter().map(Write::key).zip(0..).collect();
        let mut apart = Vec::new();
        let mut on = vec![Vec::new(); change.writes.len()];
        for cond in &change.conds {
            let number = cond_key(cond).and_then(|key| numbers.get(key));
            match number.and_then(|number| on.get_mut(*number)) {
                Some(conds) => conds.push(cond),
                None => apart.push(cond),
            }
        }
        Self {
            change,
            own,
            apart,
            on,
        }
    }
}

/// The writes `from..to` of a change with what they replace.
pub(super) struct Chunk {
    pub number: u32,
    pub from: usize,
    pub to: usize,
    pub before: Vec<Before>,
    /// The pre-image does not fit beside the writes: it goes ahead in parts.
    pub apart: bool,
}

impl Chunk {
    /// What is kept of it: the values that it replaces. A key that did not exist is in the audit, as one without a revision.
    pub fn pre_image(&self, own: bool) -> Option<PreImage> {
        let replaced = self.before.iter().filter(|b| !own && b.old.is_some());
        let entries: Vec<Before> = replaced.cloned().collect();
        (!entries.is_empty()).then_some(PreImage { entries })
    }
}

impl Executor {
    /// Takes as many writes as fit, and reads what they replace.
    pub(super) async fn cut(&self, shape: &Shape<'_>, from: usize, number: u32) -> Result<Chunk> {
        let change = shape.change;
        let limits = self.meta.limits();
        let ops = limits.ops.min(MILVUS_OPS);
        let first: &[&Cond] = if number == 0 { &shape.apart } else { &[] };
        // Fence (5 session spans, owner, epoch), marker, marker before; and marker, pre-image, audit entry.
        let room = ops
            .saturating_sub(9 + first.len())
            .min(ops.saturating_sub(3));
        if room == 0 {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "change {} has {} conditions; a transaction takes {ops}",
                    change.name,
                    shape.apart.len()
                ),
            ));
        }
        let upto = change.writes.len().min(from + room);
        let before = self.read_before(shape, from, upto).await?;
        let bytes = limits.bytes.saturating_sub(SLACK);
        let mut used: usize = first.iter().map(|cond| cond_bytes(cond)).sum();
        let mut to = from;
        for (write, old) in change.writes[from..upto].iter().zip(&before) {
            let kept = old.old.as_ref().filter(|_| !shape.own);
            used += write_bytes(write) + kept.map_or(0, |(_, v)| v.len());
            if used > bytes {
                break;
            }
            to += 1;
        }
        if to > from || from == change.writes.len() {
            let before = before.into_iter().take(to - from).collect();
            return Ok(Chunk {
                number,
                from,
                to,
                before,
                apart: false,
            });
        }
        let alone = &change.writes[from];
        if write_bytes(alone) > bytes {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "the value for {} has {} bytes; a transaction takes {bytes}",
                    alone.key(),
                    write_bytes(alone)
                ),
            ));
        }
        let before = before.into_iter().take(1).collect();
        Ok(Chunk {
            number,
            from,
            to: from + 1,
            before,
            apart: true,
        })
    }

    /// What stands under the keys now. A key that the change says is absent is not read: the condition proves it.
    async fn read_before(&self, shape: &Shape<'_>, from: usize, to: usize) -> Result<Vec<Before>> {
        let wanted: Vec<(MetaKey, bool)> = shape.change.writes[from..to]
            .iter()
            .zip(&shape.on[from..to])
            .map(|(write, conds)| {
                let absent = conds.iter().any(|c| matches!(c, Cond::Absent(_)));
                (write.key().clone(), absent)
            })
            .collect();
        let reads = wanted.into_iter().map(|(key, known)| async move {
            let old = if known {
                None
            } else {
                let now = calm(&*self.clock, || self.meta.get(&key)).await?;
                now.map(|kv| (kv.mod_rev, kv.value))
            };
            Ok::<_, Error>(Before { key, old })
        });
        stream::iter(reads).buffered(READS).try_collect().await
    }

    /// Before the first of several chunks: everything that later chunks will ask must hold already now.
    pub(super) async fn hold_all(&self, shape: &Shape<'_>, from: usize) -> Result<()> {
        let change = shape.change;
        let (mut absent, mut others) = (Vec::new(), Vec::new());
        for (write, conds) in change.writes.iter().zip(&shape.on).skip(from) {
            for cond in conds {
                if matches!(cond, Cond::Absent(_)) {
                    absent.push(write.key());
                } else {
                    others.push((write.key().clone(), (*cond).clone()));
                }
            }
        }
        let checks = others.into_iter().map(|(key, cond)| async move {
            let now = calm(&*self.clock, || self.meta.get(&key)).await?;
            Ok::<_, Error>(broken(&cond, now.as_ref()))
        });
        let mut checks = stream::iter(checks).buffer_unordered(READS);
        while let Some(why) = checks.next().await {
            if let Some(why) = why? {
                return Err(conflict(change, why));
            }
        }
        absent.sort_unstable();
        self.all_absent(change, &absent).await
    }

    /// None of the keys, which are sorted, exists. One range covers as many of them as lie together; of what else lies between
    /// them no more than a page is read.
    async fn all_absent(&self, change: &Change, keys: &[&MetaKey]) -> Result<()> {
        let opts = RangeOpts {
            limit: PAGE,
            keys_only: true,
            ..RangeOpts::default()
        };
        let mut at = 0;
        while let (Some(first), Some(last)) = (keys.get(at), keys.last()) {
            let span = Span {
                start: first.0.clone(),
                end: Span::key(last).end,
            };
            let page = calm(&*self.clock, || self.meta.range(&span, opts)).await?;
            for kv in &page.kvs {
                if keys.binary_search(&&kv.key).is_ok()
                    && let Some(why) = broken(&Cond::Absent(kv.key.clone()), Some(kv))
                {
                    return Err(conflict(change, why));
                }
            }
            let Some(end) = page.kvs.last().filter(|_| page.more) else {
                break;
            };
            at = keys.partition_point(|key| **key <= end.key);
        }
        Ok(())
    }
}

fn cond_bytes(cond: &Cond) -> usize {
    32 + match cond {
        Cond::Absent(key) | Cond::At(key, _) => key.0.len(),
        Cond::ValueIs(key, value) => key.0.len() + value.len(),
        Cond::NoneUnder(prefix) => 2 * prefix.bytes().len(),
        Cond::NoneIn(span) => span.start.len() + span.end.as_ref().map_or(0, bytes::Bytes::len),
    }
}

/// A write with its condition, its line in the pre-image and its line in the audit; a key is asked for once more when refused.
fn write_bytes(write: &Write) -> usize {
    let value = match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete(_) => 0,
    };
    value + 6 * write.key().0.len() + 256
}
