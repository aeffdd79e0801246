//! Sums kept up to date with every change, so that a row that shows "rows" or "segments" never walks a hundred thousand of them.

use imbl::OrdMap;

use crate::engine::ids::{CollectionId, IndexId, PartitionId};

use super::data::{Segment, SegmentIndex};

/// SegmentState numbers.
pub mod state {
    /// Growing.
    pub const GROWING: i32 = 2;
    /// Sealed.
    pub const SEALED: i32 = 3;
    /// Flushed.
    pub const FLUSHED: i32 = 4;
    /// Flushing.
    pub const FLUSHING: i32 = 5;
    /// Dropped.
    pub const DROPPED: i32 = 6;
    /// Importing.
    pub const IMPORTING: i32 = 7;
}

/// Sums over segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// By SegmentState 0 to 7, the last for any other number.
    pub by_state: [u32; 9],
    /// L0 segments that are not dropped.
    pub l0: u32,
    /// Hidden from queries, not dropped.
    pub hidden: u32,
    /// Rows of those.
    pub hidden_rows: i64,
    /// Growing or sealed, and not allocated by a streaming node: where channels stream nobody flushes them by himself.
    pub old_arch: u32,
    /// Not dropped, not hidden, not L0, and not sorted by primary key.
    pub unsorted: u32,
    /// Rows of segments that are Sealed, Flushing or Flushed: what Milvus calls the number of entities.
    pub rows: i64,
    /// Rows of growing and importing segments, as far as they are recorded.
    pub growing_rows: i64,
    /// Entries of delta logs of segments that are not dropped. A delete may be recorded on several segments.
    pub deletes: u64,
    /// Bytes of segments that are not dropped: insert, delta, statistics, BM25.
    pub bytes: [u64; 4],
    /// Log files of segments that are not dropped.
    pub files: u64,
    /// Bytes of dropped segments, all kinds.
    pub dropped_bytes: u64,
}

impl Totals {
    /// All segments.
    #[must_use]
    pub fn segments(&self) -> u32 {
        self.by_state.iter().sum()
    }

    /// Segments that are not None, `NotExist` or Dropped.
    #[must_use]
    pub fn healthy(&self) -> u32 {
        self.by_state[2..6].iter().sum::<u32>() + self.by_state[7]
    }

    /// Bytes that are not dropped.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.bytes.iter().fold(0, |n, b| n.plus(*b))
    }

    fn empty(&self) -> bool {
        self.segments() == 0
    }

    fn apply(&mut self, s: &Segment, add: bool) {
        let place = usize::try_from(s.state.number).map_or(8, |n| n.min(8));
        step(&mut self.by_state[place], 1, add);
        let logs = [s.insert, s.delta, s.stats, s.bm25];
        if s.state.number == state::DROPPED {
            step(
                &mut self.dropped_bytes,
                logs.iter().fold(0, |n, l| n.plus(l.bytes)),
                add,
            );
            return;
        }
        match s.state.number {
            state::SEALED | state::FLUSHED | state::FLUSHING if !s.importing => {
                step(&mut self.rows, s.rows, add);
            }
            _ => step(&mut self.growing_rows, s.rows, add),
        }
        if s.is_l0() {
            step(&mut self.l0, 1, add);
        } else if !s.invisible && !s.sorted {
            step(&mut self.unsorted, 1, add);
        }
        if !s.by_streaming && matches!(s.state.number, state::GROWING | state::SEALED) {
            step(&mut self.old_arch, 1, add);
        }
        if s.invisible {
            step(&mut self.hidden, 1, add);
            step(&mut self.hidden_rows, s.rows, add);
        }
        step(&mut self.deletes, s.delta.entries, add);
        for (slot, log) in self.bytes.iter_mut().zip(logs) {
            step(slot, log.bytes, add);
            step(&mut self.files, u64::from(log.files), add);
        }
    }
}

/// Sums over the builds of an index that are not marked deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildTotals {
    /// By IndexState 0 to 5, the last for any other number.
    pub by_state: [u32; 7],
    /// Rows of Finished builds.
    pub rows: i64,
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
    /// Builds marked deleted, waiting for collection.
    pub deleted: u32,
}

impl BuildTotals {
    /// Builds not marked deleted.
    #[must_use]
    pub fn builds(&self) -> u32 {
        self.by_state.iter().sum()
    }

    fn apply(&mut self, b: &SegmentIndex, add: bool) {
        if b.deleted {
            step(&mut self.deleted, 1, add);
            return;
        }
        let place = usize::try_from(b.state.number).map_or(6, |n| n.min(6));
        step(&mut self.by_state[place], 1, add);
        step(&mut self.files, u64::from(b.files), add);
        step(&mut self.bytes, b.bytes, add);
        if place == 3 {
            step(&mut self.rows, b.rows, add);
        }
    }
}

/// Arithmetic that can always be taken back, whatever numbers a damaged value holds.
trait Wrap: Copy {
    fn plus(self, by: Self) -> Self;
    fn minus(self, by: Self) -> Self;
}

macro_rules! wrap {
    ($($t:ty),*) => {$(
        impl Wrap for $t {
            fn plus(self, by: Self) -> Self {
                self.wrapping_add(by)
            }
            fn minus(self, by: Self) -> Self {
                self.wrapping_sub(by)
            }
        }
    )*};
}
wrap!(u32, u64, i64);

fn step<T: Wrap>(slot: &mut T, by: T, add: bool) {
    *slot = if add { slot.plus(by) } else { slot.minus(by) };
}

/// Every sum.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Of the cluster.
    pub all: Totals,
    /// By collection.
    pub collections: OrdMap<CollectionId, Totals>,
    /// By partition.
    pub partitions: OrdMap<(CollectionId, PartitionId), Totals>,
    /// By channel.
    pub channels: OrdMap<std::sync::Arc<str>, Totals>,
    /// Builds of the cluster.
    pub builds: BuildTotals,
    /// Builds by index.
    pub indexes: OrdMap<(CollectionId, IndexId), BuildTotals>,
}

impl Sums {
    pub(super) fn segment(&mut self, s: &Segment, add: bool) {
        self.all.apply(s, add);
        bump(&mut self.collections, &s.collection, s, add);
        bump(&mut self.partitions, &(s.collection, s.partition), s, add);
        bump(&mut self.channels, &s.channel, s, add);
    }

    pub(super) fn build(&mut self, b: &SegmentIndex, add: bool) {
        self.builds.apply(b, add);
        let key = (b.collection, b.index);
        let slot = self.indexes.entry(key).or_default();
        slot.apply(b, add);
        if slot.builds() == 0 && slot.deleted == 0 {
            self.indexes.remove(&key);
        }
    }
}

fn bump<K: Ord + Clone>(map: &mut OrdMap<K, Totals>, key: &K, s: &Segment, add: bool) {
    if let Some(slot) = map.get_mut(key) {
        slot.apply(s, add);
        if slot.empty() {
            map.remove(key);
        }
    } else {
        let mut fresh = Totals::default();
        fresh.apply(s, add);
        map.insert(key.clone(), fresh);
    }
}
