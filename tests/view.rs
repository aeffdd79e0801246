//! Channel views: the golden cases of `spec/lifecycle.md` §I.6, and random histories of a channel in which every row must be served once.

use std::collections::{BTreeMap, BTreeSet};

use falconer::engine::format::pb::common::SegmentState::{self, Dropped, Flushed, Growing};
use falconer::engine::format::pb::data::SegmentLevel;
use falconer::engine::ids::{PartitionId, PartitionScope, SegmentId, Tso, UnixNs};
use falconer::engine::model::view::{ChannelView, Kept, Piece, Rollback, Seek, channel_view};
use proptest::prelude::*;

fn one(partition: i64) -> PartitionScope {
    PartitionScope::of(PartitionId(partition), false).expect("a partition")
}

fn piece(id: i64, state: SegmentState, from: &[i64]) -> Piece {
    Piece {
        id: SegmentId(id),
        scope: one(1),
        state,
        level: SegmentLevel::L1,
        start: Tso(1),
        dml: Tso(1),
        logs: true,
        importing: false,
        invisible: false,
        by_compaction: !from.is_empty(),
        indexed: false,
        dropped_at: None,
        from: from.iter().copied().map(SegmentId).collect(),
    }
}

fn hidden(mut piece: Piece) -> Piece {
    piece.invisible = true;
    piece
}

fn l0(id: i64, scope: PartitionScope, start: u64) -> Piece {
    Piece {
        scope,
        level: SegmentLevel::L0,
        start: Tso(start),
        ..piece(id, Flushed, &[])
    }
}

fn ids(of: &BTreeSet<SegmentId>) -> Vec<i64> {
    of.iter().map(|id| id.0).collect()
}

fn viewed(pieces: &[Piece], rollback: Rollback) -> ChannelView {
    channel_view(pieces, &BTreeSet::new(), Some(Tso(100)), true, rollback)
}

/// Nothing was dropped before the beginning of time.
const ALWAYS: Rollback = Rollback::Certain {
    dropped_after: UnixNs(0),
};

/// The same pieces, those that are dropped dropped at some time.
fn dated(pieces: &[Piece]) -> Vec<Piece> {
    let mut pieces = pieces.to_vec();
    for piece in &mut pieces {
        piece.dropped_at = (piece.state == Dropped).then_some(UnixNs(1));
    }
    pieces
}

/// Both rules answer so.
fn golden(pieces: &[Piece], flushed: &[i64], growing: &[i64], dropped: &[i64]) {
    for rollback in [Rollback::AsMilvus, ALWAYS] {
        let view = viewed(&dated(pieces), rollback);
        assert_eq!(ids(&view.flushed), flushed, "{rollback:?}");
        assert_eq!(ids(&view.growing), growing, "{rollback:?}");
        assert_eq!(ids(&view.dropped), dropped, "{rollback:?}");
    }
}

#[test]
fn golden_a_complex_derivation() {
    let mut pieces: Vec<Piece> = [1, 2, 4, 5, 6, 7].map(|id| piece(id, Dropped, &[])).into();
    pieces.extend([8, 9, 10].map(|id| piece(id, Dropped, &[1, 2, 3])));
    pieces.extend([11, 12].map(|id| piece(id, Dropped, &[4, 5, 6])));
    pieces.push(piece(13, Dropped, &[7, 8, 9]));
    pieces.extend([14, 15].map(|id| piece(id, Dropped, &[10, 11])));
    pieces.push(piece(16, Flushed, &[13, 14]));
    pieces.push(piece(17, Flushed, &[12, 15]));
    pieces.push(hidden(piece(18, Flushed, &[])));
    pieces.push(hidden(piece(19, Dropped, &[])));
    pieces.push(piece(20, Flushed, &[19]));
    pieces.push(piece(21, Flushed, &[]));
    golden(&pieces, &[4, 5, 6, 7, 8, 9, 10, 20, 21], &[18], &[1, 2, 19]);
    let view = viewed(&dated(&pieces), ALWAYS);
    assert_eq!(view.kept[&SegmentId(20)], Kept::ParentHidden(SegmentId(19)));
    assert_eq!(view.kept[&SegmentId(8)], Kept::ParentGone(SegmentId(3)));
    // Deletes that came while 16 and 17 stood belong to 4 too.
    assert_eq!(
        ids(&view.retrieved[&SegmentId(4)]),
        [11, 12, 14, 15, 16, 17]
    );
}

#[test]
fn golden_b_compaction_iterates() {
    let mut pieces = vec![piece(1, Dropped, &[]), piece(2, Dropped, &[])];
    pieces.extend([3, 4].map(|id| hidden(piece(id, Dropped, &[1, 2]))));
    pieces.push(piece(5, Flushed, &[3]));
    pieces.push(piece(6, Flushed, &[4]));
    pieces.extend([7, 8].map(|id| hidden(piece(id, Dropped, &[5, 6]))));
    pieces.push(piece(9, Flushed, &[7]));
    pieces.push(piece(10, Flushed, &[8]));
    golden(&pieces, &[5, 6], &[], &[1, 2]);
}

#[test]
fn collected_ancestors_are_not_asked_for() {
    // a, b collected; c made of them, d and e of c: nothing is indexed.
    let mut pieces = vec![
        piece(3, Dropped, &[1, 2]),
        piece(4, Flushed, &[3]),
        piece(5, Flushed, &[3]),
    ];
    golden(&pieces, &[3], &[], &[]);
    // One of the two is indexed: it goes back with the other, which has rows of the same parent.
    pieces[1].indexed = true;
    golden(&pieces, &[3], &[], &[]);
    pieces[2].indexed = true;
    golden(&pieces, &[4, 5], &[], &[3]);
    // a alone collected: c stands though it has no index.
    let pieces = vec![
        piece(2, Dropped, &[]),
        piece(3, Flushed, &[1, 2]),
        piece(4, Flushed, &[]),
    ];
    golden(&pieces, &[3, 4], &[], &[2]);
}

/// 1 → {3, 4}, {2, 3} → 5; 2 is collected, 1 is kept by a snapshot, 4 lost its index. Milvus's rule serves the rows of 3 in 1 and in 5.
#[test]
fn a_parent_that_a_snapshot_keeps_does_not_serve_again() {
    let mut pieces = vec![
        piece(1, Dropped, &[]),
        piece(3, Dropped, &[1]),
        piece(4, Flushed, &[1]),
        piece(5, Flushed, &[2, 3]),
    ];
    pieces[3].indexed = true;
    let pieces = dated(&pieces);
    let milvus = viewed(&pieces, Rollback::AsMilvus);
    assert_eq!(ids(&milvus.flushed), [1, 5]);
    assert_eq!(ids(&milvus.twice[&SegmentId(1)]), [5]);
    let view = viewed(&pieces, ALWAYS);
    assert!(view.twice.is_empty());
    assert_eq!(ids(&view.flushed), [4, 5]);
    assert_eq!(view.kept[&SegmentId(4)], Kept::Relative(SegmentId(5)));
    // 3 is collected as well: now only the age of 1 tells.
    let without: Vec<Piece> = pieces.iter().filter(|p| p.id.0 != 3).cloned().collect();
    assert_eq!(ids(&viewed(&without, Rollback::AsMilvus).flushed), [1, 5]);
    let late = Rollback::Certain {
        dropped_after: UnixNs(1),
    };
    let view = viewed(&without, late);
    assert_eq!(ids(&view.flushed), [4, 5]);
    assert_eq!(view.kept[&SegmentId(4)], Kept::ParentOld(SegmentId(1)));
}

#[test]
fn partitions_and_deletes() {
    let other = |mut piece: Piece| {
        piece.scope = one(2);
        piece
    };
    let pieces = vec![
        piece(1, Flushed, &[]),
        other(piece(2, Flushed, &[])),
        l0(3, PartitionScope::ALL, 40),
        l0(4, one(2), 30),
        piece(5, Growing, &[]),
    ];
    let all = viewed(&pieces, Rollback::AsMilvus);
    assert_eq!(ids(&all.flushed), [1, 2]);
    assert_eq!(ids(&all.level_zero), [3, 4]);
    assert_eq!(all.delete_checkpoint, Tso(30));
    let first = BTreeSet::from([PartitionId(1)]);
    let view = channel_view(&pieces, &first, Some(Tso(100)), true, Rollback::AsMilvus);
    assert_eq!(ids(&view.flushed), [1]);
    assert_eq!(ids(&view.growing), [5]);
    assert_eq!(ids(&view.level_zero), [3]);
    assert_eq!(view.delete_checkpoint, Tso(40));
    let none: Vec<Piece> = pieces
        .into_iter()
        .filter(|p| p.level != SegmentLevel::L0)
        .collect();
    assert_eq!(
        viewed(&none, Rollback::AsMilvus).delete_checkpoint,
        Tso(100)
    );
}

#[test]
fn the_scope_of_deletes() {
    assert_eq!(
        PartitionScope::of(PartitionId(-1), true),
        Some(PartitionScope::ALL)
    );
    assert_eq!(PartitionScope::of(PartitionId(-1), false), None);
    assert_eq!(PartitionScope::of(PartitionId(-2), true), None);
    assert_eq!(one(7).stored(), PartitionId(7));
    assert_eq!(PartitionScope::ALL.stored(), PartitionId(-1));
    assert!(PartitionScope::ALL.covers(PartitionId(7)));
    assert!(!one(6).covers(PartitionId(7)));
}

#[test]
fn where_reading_begins() {
    let asked = |pieces: &[Piece], checkpoint, start| {
        channel_view(
            pieces,
            &BTreeSet::new(),
            checkpoint,
            start,
            Rollback::AsMilvus,
        )
        .seek
    };
    let mut pieces = vec![piece(1, Flushed, &[]), piece(2, Dropped, &[])];
    pieces[0].dml = Tso(7);
    assert_eq!(
        asked(&pieces, Some(Tso(50)), true),
        Seek::Checkpoint(Tso(50))
    );
    assert_eq!(asked(&pieces, Some(Tso::DROPPED), true), Seek::Dropped);
    assert_eq!(
        asked(&pieces, Some(Tso::UNSET), true),
        Seek::Segments(Tso(7))
    );
    assert_eq!(asked(&pieces, None, true), Seek::Segments(Tso(7)));
    assert_eq!(asked(&pieces[1..], None, true), Seek::Start);
    assert_eq!(asked(&[], None, false), Seek::NotAvailable);
}

#[test]
fn damaged_lineage_ends() {
    let pieces = dated(&[
        piece(1, Flushed, &[2]),
        piece(2, Dropped, &[1]),
        piece(3, Flushed, &[3]),
        piece(4, Flushed, &[1]),
    ]);
    for rollback in [Rollback::AsMilvus, ALWAYS] {
        let view = viewed(&pieces, rollback);
        assert_eq!(ids(&view.cyclic), [1, 2, 3, 4]);
        assert_eq!(ids(&view.flushed), [1, 3, 4]);
    }
    // A long chain needs no deep stack.
    let mut chain = vec![piece(0, Dropped, &[])];
    chain.extend(
        (1..20_000).map(|id| piece(id, if id == 19_999 { Flushed } else { Dropped }, &[id - 1])),
    );
    chain[19_998].indexed = true;
    assert_eq!(
        ids(&viewed(&dated(&chain), Rollback::AsMilvus).flushed),
        [19_998]
    );
}

// ---- histories ----

/// One thing that happens to a channel.
#[derive(Clone, Debug)]
enum Event {
    /// A segment of some rows, sorted and indexed or not.
    Flush,
    /// Some visible segments become some others.
    Compact { inputs: u8, outputs: u8, pick: u16 },
    /// A segment's index is finished, or dropped and begun again.
    Index { pick: u16, finished: bool },
    /// A snapshot begins or ceases to hold a segment.
    Hold { pick: u16, held: bool },
    /// Time passes, then dropped segments are collected that nothing needs.
    Collect { hours: u8 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Flush),
        4 => (1..4_u8, 1..4_u8, any::<u16>())
            .prop_map(|(inputs, outputs, pick)| Event::Compact { inputs, outputs, pick }),
        4 => (any::<u16>(), any::<bool>()).prop_map(|(pick, finished)| Event::Index { pick, finished }),
        2 => (any::<u16>(), any::<bool>()).prop_map(|(pick, held)| Event::Hold { pick, held }),
        2 => (0..5_u8).prop_map(|hours| Event::Collect { hours }),
    ]
}

const HOUR: i64 = 3_600_000_000_000;
const TOLERANCE: i64 = 3 * HOUR;

#[derive(Default)]
struct Channel {
    pieces: BTreeMap<i64, Piece>,
    rows: BTreeMap<i64, BTreeSet<u32>>,
    held: BTreeSet<i64>,
    now: i64,
    next_id: i64,
    next_row: u32,
}

impl Channel {
    fn add(&mut self, rows: BTreeSet<u32>, from: &[i64]) {
        self.next_id += 1;
        self.pieces
            .insert(self.next_id, piece(self.next_id, Flushed, from));
        self.rows.insert(self.next_id, rows);
    }

    fn picked(&self, pick: u16) -> Option<i64> {
        let ids: Vec<i64> = self.pieces.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[usize::from(pick) % ids.len()])
    }

    fn happen(&mut self, event: &Event) {
        self.now += HOUR / 10;
        match event {
            Event::Flush => {
                let rows = (self.next_row..self.next_row + 6).collect();
                self.next_row += 6;
                self.add(rows, &[]);
            }
            Event::Compact {
                inputs,
                outputs,
                pick,
            } => {
                let healthy: Vec<i64> = self
                    .pieces
                    .values()
                    .filter(|p| p.state == Flushed)
                    .map(|p| p.id.0)
                    .collect();
                let wanted = usize::from(*inputs).min(healthy.len());
                let chosen: BTreeSet<i64> = (0..wanted)
                    .map(|i| healthy[(usize::from(*pick) + i * 7) % healthy.len()])
                    .collect();
                if chosen.is_empty() {
                    return;
                }
                let from: Vec<i64> = chosen.iter().copied().collect();
                let mut parts = vec![BTreeSet::new(); usize::from(*outputs)];
                for (i, row) in from.iter().flat_map(|id| self.rows[id].clone()).enumerate() {
                    let at = i % parts.len();
                    parts[at].insert(row);
                }
                for rows in parts {
                    self.add(rows, &from);
                }
                for id in &from {
                    let piece = self.pieces.get_mut(id).expect("an input");
                    piece.state = Dropped;
                    piece.dropped_at = Some(UnixNs(self.now));
                }
            }
            Event::Index { pick, finished } => {
                if let Some(id) = self.picked(*pick) {
                    self.pieces.get_mut(&id).expect("picked").indexed = *finished;
                }
            }
            Event::Hold { pick, held } => {
                let Some(id) = self.picked(*pick) else { return };
                if *held {
                    self.held.insert(id);
                } else {
                    self.held.remove(&id);
                }
            }
            Event::Collect { hours } => {
                self.now += i64::from(*hours) * HOUR;
                self.collect();
            }
        }
    }

    /// §I.10: dropped longer ago than the tolerance, of no snapshot, and each child that is still there is indexed.
    fn collect(&mut self) {
        let children = |id: i64| {
            let of = move |p: &&Piece| p.from.contains(&SegmentId(id));
            self.pieces.values().filter(of)
        };
        let gone: Vec<i64> = self
            .pieces
            .values()
            .filter(|p| p.dropped_at.is_some_and(|at| at.0 + TOLERANCE < self.now))
            .map(|p| p.id.0)
            .filter(|id| !self.held.contains(id) && children(*id).all(|child| child.indexed))
            .collect();
        for id in gone {
            self.pieces.remove(&id);
        }
    }

    /// Rows that are served twice, and rows that are not served.
    fn wrong(&self, rollback: Rollback) -> (Vec<u32>, Vec<u32>) {
        let pieces: Vec<Piece> = self.pieces.values().cloned().collect();
        let view = viewed(&pieces, rollback);
        let (mut served, mut twice) = (BTreeSet::new(), Vec::new());
        for row in view.flushed.iter().flat_map(|id| &self.rows[&id.0]) {
            if !served.insert(*row) {
                twice.push(*row);
            }
        }
        let lost = (0..self.next_row)
            .filter(|row| !served.contains(row))
            .collect();
        for id in &view.flushed {
            assert!(!view.dropped.contains(id), "in two lists: {view:?}");
        }
        (twice, lost)
    }

    fn certain(&self) -> Rollback {
        Rollback::Certain {
            dropped_after: UnixNs(self.now - TOLERANCE),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever was compacted, indexed, held and collected: each row is served once.
    #[test]
    fn every_row_is_served_once(events in prop::collection::vec(event(), 1..40)) {
        let mut channel = Channel::default();
        for event in &events {
            channel.happen(event);
            let (twice, lost) = channel.wrong(channel.certain());
            prop_assert!(twice.is_empty() && lost.is_empty(), "twice {twice:?}, lost {lost:?} after {event:?}");
        }
    }
}
