//! What queries see of a channel: the segments that serve its rows, each row once (`spec/lifecycle.md` §I.6, §5, §12, §13).
//!
//! Two rules decide when a compacted child without its index is served by its parents. [`Rollback::AsMilvus`] is Milvus's own: what a
//! query coordinator of this cluster is told. It can serve rows twice when a parent outlives its other descendants, because a snapshot
//! refers to it, and an index is built anew (the hazard of §I.6). [`Rollback::Certain`] rolls back only where nothing that was made of
//! the parents can have been collected yet, and everything that was can be replaced with it.

mod lineage;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::Catalog;
use super::data::{Channel, Segment};
use crate::engine::format::pb::common::{IndexState, SegmentState};
use crate::engine::format::pb::data::SegmentLevel;
use crate::engine::ids::{CollectionId, PartitionId, PartitionScope, SegmentId, Tso, UnixNs};
use lineage::Lineage;

/// Below so many rows a sorted segment needs no index (`MinSegmentNumRowsToEnableIndex`).
pub const MIN_ROWS_TO_INDEX: i64 = 1024;

/// A segment as a view sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Id.
    pub id: SegmentId,
    /// Partition, or all of them for deletes.
    pub scope: PartitionScope,
    /// State.
    pub state: SegmentState,
    /// Level.
    pub level: SegmentLevel,
    /// Start position's time, unset without one.
    pub start: Tso,
    /// Time of the last position consumed, unset without one.
    pub dml: Tso,
    /// Has insert or delta logs.
    pub logs: bool,
    /// An import or a restore is still filling it.
    pub importing: bool,
    /// Hidden from queries.
    pub invisible: bool,
    /// Made by a compaction.
    pub by_compaction: bool,
    /// Every index that it needs is finished.
    pub indexed: bool,
    /// When it was dropped.
    pub dropped_at: Option<UnixNs>,
    /// Its parents.
    pub from: Vec<SegmentId>,
}

/// When a child without its index is served by its parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// Whenever its direct parents are there and visible, or an ancestor is being served.
    AsMilvus,
    /// Only if each parent was dropped after this moment, and so nothing that was made of it can have been collected: the moment is
    /// now less the tolerance of the collector for dropped segments.
    Certain {
        /// Exclusive.
        dropped_after: UnixNs,
    },
}

/// Why a child without its index is served all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// This parent has been collected.
    ParentGone(SegmentId),
    /// This parent was never visible.
    ParentHidden(SegmentId),
    /// This parent was dropped so long ago that others of its children may have been collected.
    ParentOld(SegmentId),
    /// This segment has rows of the same parents and cannot be replaced by them.
    Relative(SegmentId),
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ParentGone(id) => write!(f, "its parent {id} has been collected"),
            Self::ParentHidden(id) => write!(f, "its parent {id} was never visible"),
            Self::ParentOld(id) => write!(
                f,
                "its parent {id} was dropped too long ago to know all that was made of it"
            ),
            Self::Relative(id) => write!(f, "segment {id} has rows of the same parents"),
        }
    }
}

/// Where reading of a channel begins (§I.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// At its checkpoint.
    Checkpoint(Tso),
    /// At the oldest position of its segments: it has no checkpoint.
    Segments(Tso),
    /// At the collection's start: it has neither. Not a time, because the ticks of different shards cannot be compared.
    Start,
    /// The channel is dropped: there is no view of it.
    Dropped,
    /// It has no position at all: the collection is still being made (`ErrChannelNotAvailable`).
    NotAvailable,
}

impl Seek {
    /// The position's time, if it is one.
    #[must_use]
    pub const fn time(self) -> Option<Tso> {
        match self {
            Self::Checkpoint(at) | Self::Segments(at) => Some(at),
            Self::Start | Self::Dropped | Self::NotAvailable => None,
        }
    }
}

/// What queries see of one channel. The four lists have no member in common (I13.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelView {
    /// Served from sealed files.
    pub flushed: BTreeSet<SegmentId>,
    /// Served as growing: from the stream, or flushed and not sorted yet.
    pub growing: BTreeSet<SegmentId>,
    /// Not served; the reader must not take their rows from the stream either.
    pub dropped: BTreeSet<SegmentId>,
    /// Deletes.
    pub level_zero: BTreeSet<SegmentId>,
    /// In no list: made by a compaction that has not shown its results.
    pub hidden: BTreeSet<SegmentId>,
    /// Members of `flushed` without their index, with why their parents do not serve instead.
    pub kept: BTreeMap<SegmentId, Kept>,
    /// Members of `flushed` that are dropped and serve for their children: with the segments whose delta logs belong to them too,
    /// because deletes that came after the compaction went to those (§I.7 rule 1b).
    pub retrieved: BTreeMap<SegmentId, BTreeSet<SegmentId>>,
    /// Members of `flushed` with those of their descendants that are members too: rows that are served twice. Empty under
    /// [`Rollback::Certain`] unless the records are damaged.
    pub twice: BTreeMap<SegmentId, BTreeSet<SegmentId>>,
    /// Damaged: each an ancestor of itself, or made of one that is.
    pub cyclic: BTreeSet<SegmentId>,
    /// Where reading begins.
    pub seek: Seek,
    /// Deletes older than this are in the delta logs of every segment that can be loaded (§5). Unset if the channel has no position.
    pub delete_checkpoint: Tso,
}

/// The view of a channel over `pieces`, which are all of its segments. `partitions` restricts it; none of them = all.
#[must_use]
pub fn channel_view(
    pieces: &[Piece],
    partitions: &BTreeSet<PartitionId>,
    checkpoint: Option<Tso>,
    has_start: bool,
    rollback: Rollback,
) -> ChannelView {
    let wanted = |piece: &Piece| partitions.is_empty() || piece.scope.meets(partitions);
    let mut valid = BTreeMap::new();
    let [
        mut flushed,
        mut growing,
        mut dropped,
        mut level_zero,
        mut hidden,
    ] = [const { BTreeSet::new() }; 5];
    for piece in pieces.iter().filter(|piece| wanted(piece)) {
        let placed = piece.start != Tso::UNSET || piece.dml != Tso::UNSET || piece.logs;
        if !placed || piece.importing {
            continue;
        }
        valid.insert(piece.id, piece);
        let to = match piece.state {
            _ if piece.invisible && piece.by_compaction => &mut hidden,
            SegmentState::Dropped => &mut dropped,
            SegmentState::Flushing | SegmentState::Flushed if !piece.invisible => {
                if piece.level == SegmentLevel::L0 {
                    &mut level_zero
                } else {
                    &mut flushed
                }
            }
            _ => &mut growing,
        };
        to.insert(piece.id);
    }
    let lineage = Lineage::new(&valid);
    let (flushed, kept) = lineage.retrieve(flushed, &mut dropped, rollback);
    let retrieved = flushed
        .iter()
        .filter(|id| {
            let piece = valid.get(id);
            piece.is_some_and(|piece| piece.state == SegmentState::Dropped)
        })
        .map(|id| (*id, lineage.descendants(&[*id])))
        .collect();
    let both = |id: &SegmentId| {
        let below = lineage.descendants(&[*id]);
        let both: BTreeSet<SegmentId> = below.intersection(&flushed).copied().collect();
        (!both.is_empty() && !both.contains(id)).then_some((*id, both))
    };
    let twice = flushed.iter().filter_map(both).collect();
    // A parent that serves for its child serves once, whatever list it stood in.
    for list in [&mut growing, &mut level_zero, &mut hidden] {
        list.retain(|id| !flushed.contains(id));
    }
    let seek = seek(pieces, partitions, checkpoint, has_start);
    let oldest = level_zero.iter().filter_map(|id| valid.get(id)).map(|l0| {
        if l0.start == Tso::UNSET {
            l0.dml
        } else {
            l0.start
        }
    });
    let oldest = oldest.filter(|at| *at != Tso::UNSET).min();
    let cyclic = lineage.cyclic().clone();
    ChannelView {
        delete_checkpoint: oldest.or(seek.time()).unwrap_or(Tso::UNSET),
        flushed,
        growing,
        dropped,
        level_zero,
        hidden,
        kept,
        retrieved,
        twice,
        cyclic,
        seek,
    }
}

/// §I.5: the first position that exists.
fn seek(
    pieces: &[Piece],
    partitions: &BTreeSet<PartitionId>,
    checkpoint: Option<Tso>,
    has_start: bool,
) -> Seek {
    match checkpoint {
        Some(Tso::DROPPED) => return Seek::Dropped,
        Some(at) if at != Tso::UNSET => return Seek::Checkpoint(at),
        _ => {}
    }
    let asked = |piece: &&Piece| {
        let mine =
            partitions.is_empty() || piece.scope.one().is_some_and(|p| partitions.contains(&p));
        mine && piece.state != SegmentState::Dropped && !piece.importing
    };
    let positions = pieces.iter().filter(asked).map(|piece| {
        if piece.dml == Tso::UNSET {
            piece.start
        } else {
            piece.dml
        }
    });
    match positions.filter(|at| *at != Tso::UNSET).min() {
        Some(at) => Seek::Segments(at),
        None if has_start => Seek::Start,
        None => Seek::NotAvailable,
    }
}

impl Catalog {
    /// The view of a channel as this catalog has it; nothing for a channel that no key mentions. A segment of which the partition is
    /// illegal (−1 and not L0) is left out: it is shown as damaged elsewhere (§12 rule 8).
    #[must_use]
    pub fn channel_view(
        &self,
        channel: &Channel,
        partitions: &BTreeSet<PartitionId>,
        rollback: Rollback,
    ) -> ChannelView {
        let needed = channel.collection.map(|id| self.needed_indexes(id));
        let pieces: Vec<Piece> = self
            .segments_on(&channel.name.0)
            .filter(|segment| !segment.fake)
            .filter_map(|segment| self.piece(segment, needed.as_deref().unwrap_or_default()))
            .collect();
        channel_view(
            &pieces,
            partitions,
            channel.checkpoint,
            channel.listed,
            rollback,
        )
    }

    /// Index definitions of vector fields that are not deleted.
    fn needed_indexes(&self, collection: CollectionId) -> Vec<crate::engine::ids::IndexId> {
        let row = self.collections.get(&collection);
        let vector = |id| {
            let field = row.and_then(|row| row.fields.iter().find(|field| field.id == id));
            // 100 and above are the vector types. A field that is not known may be one.
            field.is_none_or(|field| field.data_type.number >= 100)
        };
        self.indexes_of(collection)
            .filter(|index| !index.deleted && vector(index.field))
            .map(|index| index.id)
            .collect()
    }

    fn piece(&self, segment: &Segment, needed: &[crate::engine::ids::IndexId]) -> Option<Piece> {
        let level = SegmentLevel::try_from(segment.level.number).unwrap_or_default();
        let scope = PartitionScope::of(segment.partition, level == SegmentLevel::L0)?;
        let built: BTreeSet<_> = self
            .builds_of(segment.id)
            .filter(|build| !build.deleted && build.state.number == IndexState::Finished as i32)
            .map(|build| build.index)
            .collect();
        let small =
            (segment.sorted || segment.namespace_sorted) && segment.rows < MIN_ROWS_TO_INDEX;
        Some(Piece {
            id: segment.id,
            scope,
            state: SegmentState::try_from(segment.state.number).unwrap_or_default(),
            level,
            start: segment.start,
            dml: segment.dml,
            logs: segment.insert.files > 0 || segment.delta.files > 0,
            importing: segment.importing,
            invisible: segment.invisible,
            by_compaction: segment.by_compaction,
            indexed: small || (!needed.is_empty() && needed.iter().all(|id| built.contains(id))),
            dropped_at: segment.dropped_at,
            from: segment.compaction_from.clone(),
        })
    }
}
