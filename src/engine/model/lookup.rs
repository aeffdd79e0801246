//! What the questions of [`World`](super::holds::World) look up, sorted once: a verdict on one of a million objects must not walk every
//! snapshot, every job or every segment.

use std::collections::BTreeMap;

use super::facts::{Facts, Reference, snapshot_state};
use super::references::{Extent, refers};
use crate::engine::ids::{BuildId, CollectionId, IndexId, SegmentId, SnapshotId};

/// Pairs in the order of their first half: 16 bytes each.
#[derive(Clone, Debug)]
pub(super) struct Pairs<K, V>(Box<[(K, V)]>);

impl<K, V> Default for Pairs<K, V> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<K: Ord + Copy, V: Ord + Copy> Pairs<K, V> {
    fn of(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut all: Vec<(K, V)> = pairs.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into_boxed_slice())
    }

    /// Everything that belongs to `key`, in order.
    pub(super) fn get(&self, key: K) -> impl Iterator<Item = V> + '_ {
        let from = self.0.partition_point(|(k, _)| *k < key);
        self.0[from..]
            .iter()
            .take_while(move |(k, _)| *k == key)
            .map(|(_, v)| *v)
    }
}

/// The sorted tables. Numbers of snapshots and of work are places in [`Facts::snapshots`] and [`Facts::work`].
#[derive(Clone, Debug, Default)]
pub(super) struct Lookup {
    /// Compaction parent to child.
    pub(super) children: Pairs<SegmentId, SegmentId>,
    /// Segment to its index rows.
    pub(super) rows: Pairs<SegmentId, BuildId>,
    /// Index rows left of a definition.
    pub(super) rows_of_index: BTreeMap<(CollectionId, IndexId), u64>,
    /// Segment records left of a collection.
    pub(super) segments_of: BTreeMap<CollectionId, u64>,
    /// Where a snapshot is.
    pub(super) snapshots: BTreeMap<SnapshotId, usize>,
    /// Snapshots that refer to a segment.
    pub(super) by_segment: Pairs<SegmentId, usize>,
    /// Snapshots that refer to a build.
    pub(super) by_build: Pairs<BuildId, usize>,
    /// Snapshots that refer to a file of nobody, by its mark.
    pub(super) by_mark: Pairs<u64, usize>,
    /// Committed snapshots that may refer to more than is known.
    pub(super) blind: Vec<usize>,
    /// Snapshots in the making.
    pub(super) pending: Vec<usize>,
    /// Work on a collection, on a segment, on a build.
    pub(super) work_on: Pairs<CollectionId, usize>,
    pub(super) work_segment: Pairs<SegmentId, usize>,
    pub(super) work_build: Pairs<BuildId, usize>,
}

impl Lookup {
    pub(super) fn of(facts: &Facts) -> Self {
        let committed = || {
            let all = facts.snapshots.iter().enumerate();
            all.filter(|(_, s)| refers(s.state) || !known_state(s.state))
        };
        let refs = || {
            committed().filter_map(|(i, s)| match &s.reference {
                Reference::Loaded(refs) => Some((i, refs)),
                _ => None,
            })
        };
        let is_blind = |reference: &Reference| match reference {
            Reference::Loaded(refs) => refs.extent == Extent::Ids,
            Reference::NotLoaded | Reference::Failed(_) => true,
        };
        let work = || facts.work.iter().enumerate();
        let mut rows_of_index = BTreeMap::new();
        for row in facts.builds.values() {
            *rows_of_index
                .entry((row.collection, row.index))
                .or_default() += 1;
        }
        let mut segments_of = BTreeMap::new();
        for segment in facts.segments.values() {
            *segments_of.entry(segment.collection).or_default() += 1;
        }
        Self {
            children: Pairs::of(
                facts
                    .segments
                    .values()
                    .flat_map(|s| s.from.iter().map(|parent| (*parent, s.id))),
            ),
            rows: Pairs::of(facts.builds.values().map(|row| (row.segment, row.build))),
            rows_of_index,
            segments_of,
            snapshots: facts
                .snapshots
                .iter()
                .enumerate()
                .map(|(i, s)| (s.id, i))
                .collect(),
            by_segment: Pairs::of(
                refs().flat_map(|(i, refs)| refs.segments().iter().map(move |id| (*id, i))),
            ),
            by_build: Pairs::of(
                refs().flat_map(|(i, refs)| refs.builds().iter().map(move |id| (*id, i))),
            ),
            by_mark: Pairs::of(
                refs().flat_map(|(i, refs)| refs.loose().iter().map(move |mark| (*mark, i))),
            ),
            blind: committed()
                .filter(|(_, s)| is_blind(&s.reference))
                .map(|(i, _)| i)
                .collect(),
            pending: facts
                .snapshots
                .iter()
                .enumerate()
                .filter(|(_, s)| s.state == snapshot_state::PENDING)
                .map(|(i, _)| i)
                .collect(),
            work_on: Pairs::of(work().filter_map(|(i, w)| Some((w.collection?, i)))),
            work_segment: Pairs::of(
                work().flat_map(|(i, w)| w.segments.iter().map(move |id| (*id, i))),
            ),
            work_build: Pairs::of(
                work().flat_map(|(i, w)| w.builds.iter().map(move |id| (*id, i))),
            ),
        }
    }
}

/// A state with a meaning of its own; one that nobody here knows is taken for committed (law 5).
const fn known_state(state: i32) -> bool {
    refers(state) || matches!(state, snapshot_state::PENDING | snapshot_state::DELETING)
}
