//! What is left in the metadata of collections that have no record any more (`spec/lifecycle.md` §11 (e)).
//!
//! Milvus tells `cached-only` collections from its coordinator's memory; without one only this can be known: which keys still name a
//! collection that the root does not. What was marked as dropped waits for garbage collection; what nobody has marked will not be
//! taken by itself.

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

use super::catalog::Catalog;
use super::data::{Channel, Collection};
use super::resource::Tone;
use super::rows::View;
use super::totals::{Totals, state};
use crate::engine::ids::{CollectionId, IndexId, PartitionId, Tso};

/// Where the root coordinator's record of a collection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has a record.
    Live,
    /// Its record says that it is dropped, or being dropped.
    DroppedInRoot,
    /// It has none; other keys name it.
    NoRecord,
}

impl Standing {
    /// Of a record.
    #[must_use]
    pub const fn of(row: &Collection) -> Self {
        // CollectionDropping, CollectionDropped.
        if matches!(row.state.number, 2 | 3) {
            Self::DroppedInRoot
        } else {
            Self::Live
        }
    }

    /// As shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::DroppedInRoot => "dropped-in-root",
            Self::NoRecord => "no-record",
        }
    }
}

/// Keys that name a collection without a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    /// Segments, dropped ones included.
    pub segments: u32,
    /// Of them dropped.
    pub dropped: u32,
    /// Of them being filled.
    pub importing: u32,
    /// Channels with any key.
    pub channels: u32,
    /// Of them with a checkpoint.
    pub checkpoints: u32,
    /// Of those, not marked as dropped.
    pub open_checkpoints: u32,
    /// Removal marks.
    pub marks: u32,
    /// Index definitions.
    pub indexes: u32,
    /// Of them not deleted.
    pub open_indexes: u32,
    /// Index builds.
    pub builds: u32,
    /// Partitions.
    pub partitions: u32,
    /// A load record.
    pub loaded: bool,
    /// Snapshots, which may outlive their collection.
    pub snapshots: u32,
}

impl Leftover {
    fn is_empty(&self) -> bool {
        let nothing = Self {
            snapshots: self.snapshots,
            ..Self::default()
        };
        *self == nothing
    }

    /// Nobody has marked all of it as dropped.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.segments > self.dropped
            || self.open_checkpoints > 0
            || self.open_indexes > 0
            || self.partitions > 0
            || self.loaded
    }

    /// It will not go by itself.
    #[must_use]
    pub const fn leaks(&self) -> bool {
        self.is_open() && self.importing == 0
    }

    /// In a word.
    #[must_use]
    pub const fn verdict(&self) -> (&'static str, Tone) {
        if self.importing > 0 {
            ("IMPORTING", Tone::Busy)
        } else if self.is_open() {
            ("LEAK?", Tone::Warn)
        } else if self.snapshots > 0 {
            ("HELD", Tone::Dim)
        } else {
            ("GC-PENDING", Tone::Dim)
        }
    }

    /// What remains, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let some = |n: u32, one: &str, many: &str| match n {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {many}")),
        };
        let of = |n: u32, open: u32, one: &str, many: &str, marked: &str| {
            let words = some(n, one, many)?;
            Some(if open == 0 {
                format!("{words} ({marked})")
            } else if open == n {
                words
            } else {
                format!("{words} ({open} not {marked})")
            })
        };
        let live = self.segments - self.dropped;
        let parts = [
            of(self.segments, live, "segment", "segments", "dropped"),
            of(
                self.checkpoints,
                self.open_checkpoints,
                "checkpoint",
                "checkpoints",
                "dropped",
            ),
            some(self.marks, "removal mark", "removal marks"),
            of(
                self.indexes,
                self.open_indexes,
                "index",
                "indexes",
                "deleted",
            ),
            some(self.builds, "index build", "index builds"),
            some(self.partitions, "partition", "partitions"),
            self.loaded.then(|| "a load record".to_owned()),
            some(self.snapshots, "snapshot", "snapshots"),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        parts.join(", ")
    }
}

fn add(slot: &mut u32, on: bool) {
    *slot = slot.saturating_add(u32::from(on));
}

impl Catalog {
    /// What is left of a collection that has no record; `None` of one that has, and of one that nothing names.
    #[must_use]
    pub fn leftover(&self, id: CollectionId) -> Option<Leftover> {
        if self.collections.contains_key(&id) {
            return None;
        }
        let mut left = Leftover::default();
        if let Some(sums) = self.sums.collections.get(&id) {
            left.segments = sums.segments();
            left.dropped = of_state(sums, state::DROPPED);
            left.importing = of_state(sums, state::IMPORTING);
        }
        for channel in self.channels_of(id) {
            let Channel {
                checkpoint, mark, ..
            } = &**channel;
            add(&mut left.channels, true);
            add(&mut left.checkpoints, checkpoint.is_some());
            add(
                &mut left.open_checkpoints,
                checkpoint.is_some_and(|cp| cp != Tso::DROPPED),
            );
            add(&mut left.marks, mark.is_some());
        }
        for index in self.indexes_of(id) {
            add(&mut left.indexes, true);
            add(&mut left.open_indexes, !index.deleted);
        }
        let builds = (id, IndexId(i64::MIN))..=(id, IndexId(i64::MAX));
        for (_, sums) in self.sums.indexes.range(builds) {
            left.builds = left
                .builds
                .saturating_add(sums.builds())
                .saturating_add(sums.deleted);
        }
        let partitions = (id, PartitionId(i64::MIN))..=(id, PartitionId(i64::MAX));
        left.partitions = count(self.partitions.range(partitions));
        left.loaded = self.loads.contains_key(&id);
        left.snapshots = count(self.snapshots_of(id));
        (!left.is_empty()).then_some(left)
    }

    /// Collections that only their left-overs name, by id.
    #[must_use]
    pub fn without_record(&self) -> Vec<CollectionId> {
        let segments = self.sums.collections.keys().copied();
        let channels = self.channels_of.iter().map(|(id, _)| *id);
        let indexes = self.indexes.keys().map(|(id, _)| *id);
        let builds = self.sums.indexes.keys().map(|(id, _)| *id);
        let partitions = self.collections_with_partitions();
        let loads = self.loads.keys().copied();
        let named = segments.chain(channels).chain(indexes).chain(builds);
        let gone = |id: &CollectionId| !self.collections.contains_key(id);
        let all: BTreeSet<CollectionId> =
            named.chain(partitions).chain(loads).filter(gone).collect();
        all.into_iter().collect()
    }

    /// Each once, without walking their partitions.
    fn collections_with_partitions(&self) -> impl Iterator<Item = CollectionId> {
        let after = |id: CollectionId| (id, PartitionId(i64::MAX));
        let from = |at: (CollectionId, PartitionId)| {
            let mut rest = self.partitions.range((Excluded(at), Unbounded));
            rest.next().map(|((id, _), _)| *id)
        };
        std::iter::successors(from(after(CollectionId(i64::MIN))), move |id| {
            from(after(*id))
        })
    }
}

fn count<T>(rows: impl Iterator<Item = T>) -> u32 {
    u32::try_from(rows.count()).unwrap_or(u32::MAX)
}

fn of_state(sums: &Totals, number: i32) -> u32 {
    let place = usize::try_from(number).ok();
    place
        .and_then(|at| sums.by_state.get(at))
        .copied()
        .unwrap_or(0)
}

impl View<'_> {
    /// As [`Catalog::leftover`]; nothing while one of our jobs works on it, because half a restore is not visible.
    #[must_use]
    pub fn leftover(&self, id: CollectionId) -> Option<Leftover> {
        let mut jobs = self.jobs.jobs.iter();
        let is_ours = jobs.any(|job| job.collection == Some(id) && !job.state.ended());
        if is_ours {
            None
        } else {
            self.catalog.leftover(id)
        }
    }

    /// All of them, by id.
    pub fn leftovers(&self) -> impl Iterator<Item = (CollectionId, Leftover)> {
        let ids = self.catalog.without_record().into_iter();
        ids.filter_map(|id| Some((id, self.leftover(id)?)))
    }
}
