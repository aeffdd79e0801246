//! The write-ahead log of the channels that we own (`spec/lifecycle.md` §2 rule 7, `spec/layout.md` §5, §6).
//!
//! A physical channel has one log; its virtual channels and the control channel are names on its messages. Messages lie in segment
//! objects, many in one; which objects are the log is said by an index in the metadata store. Object stores differ in what their
//! conditional writes do, so nothing rests on them: an object is written under a name that nobody else ever writes, and is part of the
//! log from the moment when one compare-and-swap puts it into the index **and** moves the head ([`Head`](crate::engine::model::log::Head)).
//!
//! ```text
//! append   object → swap {head at the revision we know} writes {segment, head} → answer
//! open     channel record ASSIGNING(term+1) → swap {head} writes {head with the term, record ASSIGNED} → read the index
//! truncate swap {head} writes {head, first moved} → delete objects → delete their index keys
//! ```
//!
//! Laws, checked by `tests/wal.rs` on memory, on files and on real servers:
//!
//! - An append is durable when it returns, all drafts of one call in one segment, or not at all. An error says that it did not happen,
//!   except `OutcomeUnknown`, which only a log answers that ends while the store is silent.
//! - Ids are consecutive from 1, time ticks strictly grow, over any number of owners, crashes and clocks that go back.
//! - One owner: whoever opens a log ends every other one of it by its term; appends of the older one are `Fenced` (I2.3).
//! - An object that is not in the index is garbage. It is removed by a later owner, which alone can know, or by its writer when the
//!   write has certainly failed.
//! - What somebody reads, or may still ask for, is not cut off.

mod adopt;
pub mod channels;
pub mod checkpoints;
pub mod log;
mod reader;
mod term;
mod writer;

use async_trait::async_trait;
use tokio::sync::watch;

use super::error::{Error, Result};
use super::format::message::{Draft, Stored};
use super::ids::{MessageId, Term, Tso};

/// Where an appended message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its id; also the last confirmed one, since all before it are written.
    pub id: MessageId,
    /// Its time tick.
    pub tick: Tso,
}

/// What is durable of a log.
#[derive(Clone, Debug)]
pub struct End {
    /// Lowest id that can be read.
    pub first: MessageId,
    /// Id of the next message.
    pub next: MessageId,
    /// Highest time tick given out: whatever is appended from now on is above it.
    pub tick: Tso,
    /// Why nothing can be appended any more: closed, or another owner.
    pub ended: Option<Error>,
    /// Why the append that is under way is: it is tried until its outcome is known.
    pub trouble: Option<Error>,
}

/// A log that we own. Cheap to share.
#[async_trait]
pub trait Wal: Send + Sync {
    /// The physical channel.
    fn pchannel(&self) -> &str;

    /// Ours.
    fn term(&self) -> Term;

    /// What is durable, as it changes.
    fn end(&self) -> watch::Receiver<End>;

    /// Appends messages, in order and together, and returns when they are durable. Appends that wait at the same time go into one
    /// segment. A caller that leaves before its turn has appended nothing; one that leaves later may have.
    async fn append(&self, drafts: Vec<Draft>) -> Result<Vec<Appended>>;

    /// A time tick not below any message that is in the log by then, and below every later one, durable: an idle channel's progress.
    async fn tick(&self) -> Result<Tso>;

    /// Reads from `from` on, which may be the end. `Compacted` when it is cut off. The log keeps what the reader has not asked past.
    fn read_from(&self, from: MessageId) -> Result<Box<dyn Reader>>;

    /// Cuts off whole segments below `below`, which the caller has proved to be below every checkpoint and every unfinished broadcast,
    /// as far as no reader needs them, and removes what earlier cuts and failed appends left. Where the log begins now.
    async fn truncate(&self, below: MessageId) -> Result<MessageId>;

    /// Ends it. What is under way is finished if its outcome can be known.
    async fn close(&self);
}

/// A cursor over a log.
#[async_trait]
pub trait Reader: Send {
    /// The next message, waiting for it. Asking says that the one before is done with. The log's own end, when it has ended.
    async fn next(&mut self) -> Result<Stored>;

    /// The next message, if it is there already.
    async fn try_next(&mut self) -> Result<Option<Stored>>;

    /// Id of the next message.
    fn at(&self) -> MessageId;
}
