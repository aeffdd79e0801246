//! Names for numbers. Ids, revisions and every unit of time are types of their own, so that a TSO can never be
//! compared with Unix milliseconds (`spec/layout.md` §8; the bug class of Milvus #51527).

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map(Self)
            }
        }

        impl From<i64> for $name {
            fn from(v: i64) -> Self {
                Self(v)
            }
        }

        /// As a decimal string: ids exceed 2^53 and most JSON readers would round them.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map(Self).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

id! {
    /// A database. 1 is `default`, 0 the legacy "no database".
    DbId
    /// A collection.
    CollectionId
    /// A partition; in a record −1 may stand for all of them: see [`PartitionScope`].
    PartitionId
    /// A segment.
    SegmentId
    /// A field, or in storage V2 a column group.
    FieldId
    /// A function of a schema.
    FunctionId
    /// An index definition.
    IndexId
    /// One build of an index for one segment.
    BuildId
    /// One log file.
    LogId
    /// A snapshot record.
    SnapshotId
    /// A pin of a snapshot.
    PinId
    /// A copy, import or export job.
    JobId
    /// A task of a job, or a compaction plan.
    TaskId
    /// A replica of a loaded collection.
    ReplicaId
    /// A Milvus server id (`ServerID` of a session).
    NodeId
    /// A message's place in the log of one physical channel, from 1. Grows by one with each message.
    MessageId
    /// How often a physical channel has changed its owner: a fencing token, never lowered.
    Term
    /// A broadcast task.
    BroadcastId
}

/// As stored: every partition.
const ALL: i64 = -1;

/// The partitions that deletes apply to: all of a collection's, or one. Both are numbers on the wire, all is −1; nothing else may be
/// below zero, and −1 means "not given" in other fields, which are `Option<PartitionId>` (`spec/lifecycle.md` §12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionScope(Option<PartitionId>);

impl PartitionScope {
    /// Every partition.
    pub const ALL: Self = Self(None);

    /// The scope of a segment as stored; `None` if it is illegal: only deletes (L0) may apply to all partitions.
    #[must_use]
    pub fn of(stored: PartitionId, deletes: bool) -> Option<Self> {
        match stored {
            PartitionId(ALL) => deletes.then_some(Self::ALL),
            one => (one.0 >= 0).then_some(Self(Some(one))),
        }
    }

    /// The one partition, if it is not all.
    #[must_use]
    pub const fn one(self) -> Option<PartitionId> {
        self.0
    }

    /// As stored.
    #[must_use]
    pub fn stored(self) -> PartitionId {
        self.0.unwrap_or(PartitionId(ALL))
    }

    /// Whether it touches any of these.
    #[must_use]
    pub fn meets(self, partitions: &std::collections::BTreeSet<PartitionId>) -> bool {
        self.0.is_none_or(|one| partitions.contains(&one))
    }

    /// Whether deletes of this scope apply to rows of a partition.
    #[must_use]
    pub fn covers(self, partition: PartitionId) -> bool {
        self.0.is_none_or(|one| one == partition)
    }
}

/// A revision of the metadata store: grows by one with each committed transaction.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct MetaRev(pub i64);

impl MetaRev {
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for MetaRev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A whole key of the metadata store, root included. Bytes, because nothing forces a key to be text.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetaKey(pub Bytes);

impl MetaKey {
    /// The key as text, bad bytes escaped.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<&str> for MetaKey {
    fn from(s: &str) -> Self {
        Self(Bytes::copy_from_slice(s.as_bytes()))
    }
}

impl From<String> for MetaKey {
    fn from(s: String) -> Self {
        Self(Bytes::from(s.into_bytes()))
    }
}

impl fmt::Display for MetaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for MetaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A prefix that ends in `/`. Sibling families collide without it: `datacoord-meta/s` also matches
/// `datacoord-meta/snapshot` (`spec/layout.md` §0.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPrefix(Bytes);

impl KeyPrefix {
    /// Takes `text`, adding the trailing slash when it is missing.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut owned = text.to_owned();
        if !owned.ends_with('/') {
            owned.push('/');
        }
        Self(Bytes::from(owned.into_bytes()))
    }

    /// The bytes, trailing slash included.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether `key` lies under this prefix.
    #[must_use]
    pub fn holds(&self, key: &MetaKey) -> bool {
        key.0.starts_with(&self.0)
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// An object's key exactly as Milvus records it: bucket-relative without a leading slash on remote storage,
/// an absolute path when `common.storageType` is `local` (`spec/layout.md` §7.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectKey(pub String);

impl From<&str> for ObjectKey {
    fn from(s: &str) -> Self {
        Self(s.to_owned())
    }
}

impl From<String> for ObjectKey {
    fn from(s: String) -> Self {
        Self(s)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A virtual channel, `{pchannel}_{collectionID}v{shard}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VChannel(pub String);

impl fmt::Display for VChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for VChannel {
    fn from(s: &str) -> Self {
        Self(s.to_owned())
    }
}

impl From<String> for VChannel {
    fn from(s: String) -> Self {
        Self(s)
    }
}

/// Milvus' hybrid timestamp: Unix milliseconds shifted left by 18, plus a logical counter.
/// 0 means unset and `u64::MAX` dropped or never; neither is a time (law 10).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Tso(pub u64);

impl Tso {
    /// Absent.
    pub const UNSET: Self = Self(0);
    /// A dropped channel's checkpoint, or "never" elsewhere.
    pub const DROPPED: Self = Self(u64::MAX);

    /// 2019-01-01 in Unix ms, below which Milvus itself takes no physical part, up to the last one that 46 bits hold. That one is
    /// the physical part of `u64::MAX` and of the few below it, which are sentinels.
    const PHYSICAL: std::ops::Range<u64> = 1_546_300_800_000..u64::MAX >> 18;

    /// The TSO of a moment with logical part 0.
    #[must_use]
    pub fn from_ms(ms: UnixMs) -> Self {
        Self((ms.0.max(0) as u64) << 18)
    }

    /// The moment, or `None` for a sentinel or a value before 2019.
    #[must_use]
    pub fn time(self) -> Option<UnixMs> {
        let ms = self.0 >> 18;
        if Self::PHYSICAL.contains(&ms) {
            i64::try_from(ms).ok().map(UnixMs)
        } else {
            None
        }
    }

    /// Whether this is the "dropped" sentinel.
    #[must_use]
    pub const fn is_dropped(self) -> bool {
        self.0 == u64::MAX
    }
}

macro_rules! unit {
    ($($(#[$doc:meta])* $name:ident($repr:ty))*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $repr);
    )*};
}

unit! {
    /// Unix milliseconds.
    UnixMs(i64)
    /// Unix nanoseconds.
    UnixNs(i64)
    /// Unix seconds.
    UnixSecs(i64)
}

impl UnixMs {
    /// Milliseconds from `earlier` to `self`, 0 when the clocks disagree.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        let d = self.0 - earlier.0;
        if d > 0 { d as u64 } else { 0 }
    }

    /// In nanoseconds.
    #[must_use]
    pub const fn to_ns(self) -> UnixNs {
        UnixNs(self.0.saturating_mul(1_000_000))
    }

    /// In whole seconds.
    #[must_use]
    pub const fn to_secs(self) -> UnixSecs {
        UnixSecs(self.0 / 1000)
    }

    /// `YYYY-MM-DDTHH:MM:SSZ`, or the bare number when it is outside the calendar.
    #[must_use]
    pub fn utc(self) -> String {
        jiff::Timestamp::from_millisecond(self.0).map_or_else(
            |_| self.0.to_string(),
            |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        )
    }
}

impl UnixNs {
    /// In milliseconds.
    #[must_use]
    pub const fn to_ms(self) -> UnixMs {
        UnixMs(self.0 / 1_000_000)
    }
}

impl UnixSecs {
    /// In milliseconds.
    #[must_use]
    pub const fn to_ms(self) -> UnixMs {
        UnixMs(self.0.saturating_mul(1000))
    }
}
