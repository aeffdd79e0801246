//! Records of what runs: the index of a log, a broadcast task, a channel checkpoint.
//!
//! A job's [`Change`](super::execute::Change) is a step of a plan that somebody confirmed; marker, pre-image and audit go with it. The
//! records here follow from such a change and move with every message, so they carry none of the three. They keep the rest of the
//! law: the fence in the same transaction, a condition on the revision that was read, and three outcomes. The record is its own
//! marker: what is written differs from what stood there, so reading it back tells whether the write happened.

use super::execute::Executor;
use super::retry::{Backoff, Doubt, TRIES, calm};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaRev;
use crate::engine::meta::{Cond, KeyValue, Outcome, RangeOpts, Span, Txn, Write};

/// One compare-and-swap. Kept by the caller until its outcome is known: given to [`Executor::swap`] again after an unknown one, it
/// is the same write, not a second one.
#[derive(Clone, Debug)]
pub struct Swap {
    conds: Vec<Cond>,
    writes: Vec<Write>,
    /// A try may have happened without our hearing of it.
    doubt: bool,
}

/// What a compare-and-swap came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It happened, at this revision or before it.
    Done(MetaRev),
    /// A condition of the caller did not hold. Nothing happened. The keys of the conditions as they stood.
    Refused(Vec<KeyValue>),
}

impl Swap {
    /// Writes under conditions, which must turn false by the writes themselves, or the same swap could happen twice. The first
    /// write is read back to settle a doubt: its value must differ from what stood there, and nobody but its writer may write it.
    #[must_use]
    pub fn new(conds: Vec<Cond>, writes: Vec<Write>) -> Self {
        Self {
            conds,
            writes,
            doubt: false,
        }
    }

    /// Whether it may have happened.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        self.doubt
    }
}

impl Executor {
    /// Makes one compare-and-swap happen. A key inside the Milvus root asks for the whole fence, our own ones for ownership.
    ///
    /// `Fenced`: we do not own the root any more, or a coordinator lives; it did not happen. `OutcomeUnknown`: the store did not
    /// answer, not even to reading; give the same swap again. Any other error: it did not happen.
    pub async fn swap(&self, swap: &mut Swap) -> Result<Swapped> {
        super::forbidden::check(self.roots(), &swap.writes)?;
        let mut backoff = Backoff::new(TRIES);
        let mut doubt = Doubt::default();
        loop {
            let me = doubt.go_on(self);
            let outcome = match me.ledger_txn(swap).await {
                Ok(txn) => me.meta.txn(txn).await,
                Err(e) => Err(e),
            };
            let e = match outcome {
                Ok(Outcome::Committed { rev }) => {
                    swap.doubt = false;
                    return Ok(Swapped::Done(rev));
                }
                Ok(Outcome::Refused { seen, .. }) => {
                    if let Some(rev) = me.happened(swap).await? {
                        return Ok(Swapped::Done(rev));
                    }
                    let fenced = match self.inside(swap) {
                        true => me.fence.why().await?,
                        false if me.fence.owned().await? => None,
                        false => Some(self.fence.lost()),
                    };
                    return match fenced {
                        Some(fenced) => Err(fenced),
                        None => Ok(Swapped::Refused(seen)),
                    };
                }
                Err(e) => e,
            };
            if e.kind() == ErrorKind::OutcomeUnknown {
                swap.doubt = true;
                doubt.arises(self, &e);
            }
            let passes = e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown;
            if passes && backoff.again(&*self.clock).await {
                continue;
            }
            // Over before it was sent: what an earlier call left in doubt stays so, and is asked for by the next one.
            let gone = matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::DeadlineExceeded);
            if gone {
                return Err(if swap.doubt { unknown(&e) } else { e });
            }
            return match doubt.go_on(self).happened(swap).await? {
                Some(rev) => Ok(Swapped::Done(rev)),
                // It can still arrive: only a condition that has become false ends the doubt.
                None if swap.doubt && passes => Err(unknown(&e)),
                None => Err(e),
            };
        }
    }

    fn inside(&self, swap: &Swap) -> bool {
        swap.writes.iter().any(|w| !self.keys.is_ours(w.key()))
    }

    async fn ledger_txn(&self, swap: &Swap) -> Result<Txn> {
        self.fence.renew_if_due().await?;
        let mut conds = if self.inside(swap) {
            self.fence.conds()?
        } else {
            self.fence.own_conds()?
        };
        conds.extend_from_slice(&swap.conds);
        Ok(Txn {
            conds,
            writes: swap.writes.clone(),
        })
    }

    /// Whether a swap in doubt has happened, by its first write.
    async fn happened(&self, swap: &mut Swap) -> Result<Option<MetaRev>> {
        if !swap.doubt {
            return Ok(None);
        }
        let Some(witness) = swap.writes.first() else {
            return Ok(None);
        };
        let span = Span::key(witness.key());
        let page = calm(&*self.clock, || {
            self.meta.range(&span, RangeOpts::default())
        })
        .await
        .map_err(|e| unknown(&e))?;
        let done = match (witness, page.kvs.first()) {
            (Write::Put { value, .. }, Some(kv)) => (kv.value == *value).then_some(kv.mod_rev),
            (Write::Put { .. }, None) | (Write::Delete(_), Some(_)) => None,
            (Write::Delete(_), None) => Some(page.rev),
        };
        swap.doubt &= done.is_none();
        Ok(done)
    }
}

fn unknown(e: &Error) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, e.what())
        .caused_by(e.clone())
        .fix("it is looked up again before anything else is written")
}
