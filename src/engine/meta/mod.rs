//! The metadata store: an ordered, revisioned key space that knows bytes only.
//!
//! Laws, checked by `tests/meta.rs` against every implementation:
//!
//! - **M1 linearizable.** A range without `at` sees every transaction that was committed before it began.
//! - **M2 one revision a transaction.** A committed transaction with at least one write has a revision of its own, one above
//!   the last; all its writes carry it. A transaction that writes nothing, or that is refused, makes no revision.
//! - **M3 history.** `range` with `at` answers as the store stood then, or [`ErrorKind::Compacted`](super::error::ErrorKind).
//!   `at` in the future is [`ErrorKind::Invalid`](super::error::ErrorKind).
//! - **M4 watch.** From revision `r` inclusive every change in the span is delivered, in revision order, one
//!   [`WatchBatch`] a revision, nothing twice, nothing skipped. If that cannot be kept, the stream ends with an error: `Compacted`
//!   when `r` is gone, `Unreachable` when the connection is.
//! - **M5 compare-and-swap.** All conditions hold at one revision and all writes happen, or nothing happens.
//! - **M6 three outcomes.** `Ok(Committed)`, `Ok(Refused)`, or an error; an error of kind
//!   [`OutcomeUnknown`](super::error::ErrorKind::OutcomeUnknown) may have happened, any other error did not.
//! - **M7 limits.** A transaction over [`MetaWrite::limits`] is [`ErrorKind::Limit`](super::error::ErrorKind) before anything is sent; one within them is
//!   accepted by the real server.
//! - **M8 no prefix delete** exists.
//! - **M9 lease.** A key written with a lease disappears when the lease is revoked or not renewed in time. The embedded store,
//!   which has one writer, ends all leases when a new writer opens it.

pub mod book;
pub mod check;
pub mod embedded;
pub mod etcd;
pub mod reflector;
pub mod scope;
pub mod scoped;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::error::Result;
use super::ids::{KeyPrefix, MetaKey, MetaRev};

pub use self::scoped::{MetaReader, MetaWriter};

/// One key at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key.
    pub key: MetaKey,
    /// Its value.
    pub value: Bytes,
    /// Revision of the write that made the key after it last did not exist.
    pub create_rev: MetaRev,
    /// Revision of the last write.
    pub mod_rev: MetaRev,
    /// Writes since creation, from 1.
    pub version: i64,
    /// The lease, 0 for none.
    pub lease: i64,
}

/// A half-open interval of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First key, inclusive.
    pub start: Bytes,
    /// Last key, exclusive; `None` runs to the end of the key space.
    pub end: Option<Bytes>,
}

impl Span {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: None,
        }
    }

    /// One key.
    #[must_use]
    pub fn key(key: &MetaKey) -> Self {
        let mut end = key.0.to_vec();
        end.push(0);
        Self {
            start: key.0.clone(),
            end: Some(end.into()),
        }
    }

    /// Every key under a prefix.
    #[must_use]
    pub fn prefix(prefix: &KeyPrefix) -> Self {
        Self {
            start: prefix.bytes().clone(),
            end: next_sibling(prefix.bytes()),
        }
    }

    /// What is left of the span after `last`: where the next page begins.
    #[must_use]
    pub fn after(&self, last: &MetaKey) -> Self {
        let mut start = last.0.to_vec();
        start.push(0);
        Self {
            start: start.into(),
            end: self.end.clone(),
        }
    }

    /// Whether no key can lie in the span.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether `key` lies in the span.
    #[must_use]
    pub fn contains(&self, key: &MetaKey) -> bool {
        key.0 >= self.start && self.end.as_ref().is_none_or(|end| key.0 < *end)
    }
}

/// The first key after every key that starts with `prefix`; `None` if there is none.
fn next_sibling(prefix: &[u8]) -> Option<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end.into());
        }
    }
    None
}

/// How to read a span.
#[derive(Clone, Copy, Debug, Default)]
pub struct RangeOpts {
    /// Read as of this revision; `None` reads at head.
    pub at: Option<MetaRev>,
    /// Most keys a page; 0 = the store's default page (10,000).
    pub limit: usize,
    /// Leave the values empty.
    pub keys_only: bool,
}

/// Default keys a page. The reflector, which lists most, asks for more once it knows how large they are.
pub const DEFAULT_PAGE: usize = 10_000;

/// One page of a span, in key order.
#[derive(Clone, Debug)]
pub struct Page {
    /// The keys.
    pub kvs: Vec<KeyValue>,
    /// Whether keys of the span follow the last one.
    pub more: bool,
    /// The revision the page was read at.
    pub rev: MetaRev,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Written.
    Put(KeyValue),
    /// Removed at this revision.
    Delete(MetaKey, MetaRev),
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &MetaKey {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete(key, _) => key,
        }
    }
}

/// All changes of one revision in the span. Empty = a progress mark: everything up to `rev` has been delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision.
    pub rev: MetaRev,
    /// Its changes.
    pub events: Vec<Event>,
}

/// A stream of whole revisions.
pub type WatchStream = BoxStream<'static, Result<WatchBatch>>;

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cond {
    /// The key does not exist.
    Absent(MetaKey),
    /// The key exists and was last written at this revision.
    At(MetaKey, MetaRev),
    /// The key exists with exactly this value.
    ValueIs(MetaKey, Bytes),
    /// No key at all under the prefix (one compare over the empty range, `spec/layout.md` §1.4, `spec/anchors.md` §2.7).
    NoneUnder(KeyPrefix),
    /// No key at all in the span.
    NoneIn(Span),
}

/// A write of a transaction. There is no range delete, on purpose (M8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a value, optionally bound to a lease (0 = none).
    Put {
        /// The key.
        key: MetaKey,
        /// The value.
        value: Bytes,
        /// The lease, 0 for none.
        lease: i64,
    },
    /// Deletes one key.
    Delete(MetaKey),
}

impl Write {
    /// A put without a lease.
    pub fn put(key: MetaKey, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key,
            value: value.into(),
            lease: 0,
        }
    }

    /// The key written.
    #[must_use]
    pub fn key(&self) -> &MetaKey {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

/// Conditions and writes that happen together or not at all. One key may be written once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub conds: Vec<Cond>,
    /// What is written.
    pub writes: Vec<Write>,
}

/// What a transaction came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All writes happened at this revision.
    Committed {
        /// The revision.
        rev: MetaRev,
    },
    /// A condition did not hold; nothing happened.
    Refused {
        /// The store's revision then.
        rev: MetaRev,
        /// The condition keys that exist, as they stood then (single-key conditions only): tells which one failed.
        seen: Vec<KeyValue>,
    },
}

/// What a store accepts in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Conditions, or writes (each list by itself).
    pub ops: usize,
    /// Encoded request bytes.
    pub bytes: usize,
}

/// Health of the store.
#[derive(Clone, Debug, Default)]
pub struct MetaStatus {
    /// Head revision.
    pub rev: MetaRev,
    /// What answers: `etcd 3.4.23`, `redb file`, `redb memory`, `dump`.
    pub server: String,
    /// Database bytes on disk, if known.
    pub db_bytes: Option<u64>,
    /// Members or endpoints: name or URL, and whether it answered.
    pub members: Vec<Member>,
    /// Raised alarms, e.g. `NOSPACE`.
    pub alarms: Vec<String>,
    /// What the operator should know about the connection, e.g. that the server does not ask for the configured password.
    pub notes: Vec<String>,
}

/// One endpoint of the store.
#[derive(Clone, Debug)]
pub struct Member {
    /// URL without credentials.
    pub endpoint: String,
    /// `Ok` with the answer time, or the reason.
    pub answer: std::result::Result<Duration, String>,
    /// Whether it is the leader.
    pub leader: bool,
}

/// The right to read a store. Outside this room it is held as a [`MetaReader`].
#[async_trait]
pub trait MetaRead: Send + Sync {
    /// One page.
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page>;
    /// Whole revisions in order from `from` inclusive (M4).
    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream>;
    /// Health.
    async fn status(&self) -> Result<MetaStatus>;

    /// One key at head.
    async fn get(&self, key: &MetaKey) -> Result<Option<KeyValue>> {
        let page = self
            .range(
                &Span::key(key),
                RangeOpts {
                    limit: 1,
                    ..RangeOpts::default()
                },
            )
            .await?;
        Ok(page.kvs.into_iter().next())
    }

    /// The whole span, page by page at the revision of the first page, so that it is one consistent picture.
    async fn range_all(&self, span: &Span) -> Result<Page> {
        let mut page = self.range(span, RangeOpts::default()).await?;
        let at = page.rev;
        while page.more {
            let Some(last) = page.kvs.last() else { break };
            let rest = span.after(&last.key);
            let next = self
                .range(
                    &rest,
                    RangeOpts {
                        at: Some(at),
                        ..RangeOpts::default()
                    },
                )
                .await?;
            page.more = next.more;
            page.kvs.extend(next.kvs);
        }
        Ok(page)
    }
}

/// The right to write. Outside this room it is held as a [`MetaWriter`], by `plan` only (law 2).
#[async_trait]
pub trait MetaWrite: MetaRead {
    /// Compare and swap (M5, M6).
    async fn txn(&self, txn: Txn) -> Result<Outcome>;
    /// Limits of one transaction.
    fn limits(&self) -> Limits;
    /// Forgets history below `rev`: reads at and watches from older revisions answer `Compacted`.
    async fn compact(&self, rev: MetaRev) -> Result<()>;
    /// A new lease.
    async fn grant(&self, ttl: Duration) -> Result<i64>;
    /// Renews a lease; `NotFound` when it has expired.
    async fn keep_alive(&self, lease: i64) -> Result<()>;
    /// Ends a lease and removes its keys.
    async fn revoke(&self, lease: i64) -> Result<()>;
}
