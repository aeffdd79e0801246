//! What a channel's log holds, as a value: its head, its index, and what may be cut off. Pure; the log itself is `engine::wal`.
//!
//! Invariants, checked by the tests here and by `tests/wal.rs` over real stores:
//!
//! - **W1** ids of a channel's messages are consecutive; time ticks strictly grow along them, over owners and clocks that go back.
//! - **W2** the index covers `first..next` without a gap.
//! - **W3** terms strictly grow (I2.3); only the owner of the highest one can move the head.
//! - **W4** nothing is cut that somebody may still ask for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{MessageId, ObjectKey, Term, Tso, UnixMs};

/// Term and end of a log. Every change of the log is a compare-and-swap of this record, so whoever moved it last owns the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The owner's term.
    pub term: Term,
    /// Lowest id that can be read.
    pub first: MessageId,
    /// Id of the next message.
    pub next: MessageId,
    /// Highest time tick given out.
    pub tick: Tso,
    /// Grows with each write, so that no two values are equal.
    pub moves: u64,
}

impl Default for Head {
    /// An empty log that nobody owns.
    fn default() -> Self {
        Self {
            term: Term(0),
            first: MessageId(1),
            next: MessageId(1),
            tick: Tso::UNSET,
            moves: 0,
        }
    }
}

impl Head {
    /// A log that nobody owns, of a channel that another log has had before: every message of ours lies behind every position on that.
    /// `Limit` when it has used the range up.
    pub fn above(id: MessageId, tick: Tso) -> Result<Self> {
        let first = id.0.max(0).checked_add(1).filter(|id| *id < i64::MAX / 2);
        let first = first.ok_or_else(|| {
            Error::new(
                ErrorKind::Limit,
                format!("message id {id} of the channel's former log leaves no room for ours"),
            )
        })?;
        Ok(Self {
            first: MessageId(first),
            next: MessageId(first),
            tick,
            ..Self::default()
        })
    }

    /// The same log under a new owner. `seen` is the highest term found elsewhere, e.g. in Milvus's own record of the channel.
    #[must_use]
    pub fn taken(&self, seen: Term) -> Self {
        Self {
            term: Term(self.term.max(seen).0 + 1),
            moves: self.moves + 1,
            ..self.clone()
        }
    }

    /// After `n` messages, or after a bare time tick when `n` is 0; and the first of the ticks given out, one a message, consecutive.
    /// The clock may go back: the ticks do not. `Limit` at the end of either range.
    pub fn appended(&self, n: usize, now: UnixMs) -> Result<(Self, Tso)> {
        let full = || Error::new(ErrorKind::Limit, "the log's time ticks or ids are used up");
        let n = u64::try_from(n).map_err(|_| full())?;
        let first = Tso::from_ms(now)
            .0
            .max(self.tick.0.checked_add(1).ok_or_else(full)?);
        let last = first.checked_add(n.max(1) - 1).ok_or_else(full)?;
        let next = i64::try_from(n)
            .ok()
            .and_then(|n| self.next.0.checked_add(n));
        if Tso(last).is_dropped() {
            return Err(full());
        }
        let head = Self {
            next: MessageId(next.ok_or_else(full)?),
            tick: Tso(last),
            moves: self.moves + 1,
            ..self.clone()
        };
        Ok((head, Tso(first)))
    }

    /// Without what lies below `first`.
    #[must_use]
    pub fn cut(&self, first: MessageId) -> Self {
        Self {
            first: first.max(self.first),
            moves: self.moves + 1,
            ..self.clone()
        }
    }
}

/// An object that holds consecutive messages. What the index names is part of the log; any other object is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The object.
    pub object: ObjectKey,
    /// Id of its first message.
    pub first: MessageId,
    /// Id of its last message.
    pub last: MessageId,
    /// Time tick of its first message.
    pub from: Tso,
    /// Time tick of its last message.
    pub to: Tso,
    /// Who wrote it.
    pub term: Term,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

/// Head and segments of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    head: Head,
    segments: BTreeMap<MessageId, Segment>,
}

impl Index {
    /// From what is stored. Also the segments below the head's first id: cut off, but not yet removed. `Corrupt` when the rest
    /// has a gap.
    pub fn load(head: Head, stored: Vec<Segment>) -> Result<(Self, Vec<Segment>)> {
        let (left, live): (Vec<_>, Vec<_>) = stored.into_iter().partition(|s| s.last < head.first);
        let mut index = Self {
            segments: live.into_iter().map(|s| (s.first, s)).collect(),
            head,
        };
        let mut want = index
            .segments
            .keys()
            .next()
            .copied()
            .unwrap_or(index.head.next);
        let (mut tick, holes) = (Tso::UNSET, want > index.head.first);
        for s in index.segments.values() {
            if s.first != want || s.last < s.first || s.from <= tick || s.to < s.from {
                return Err(gap(&index.head, want, s.first));
            }
            (want, tick) = (MessageId(s.last.0 + 1), s.to);
        }
        if holes || want != index.head.next || tick > index.head.tick {
            return Err(gap(&index.head, index.head.first, want));
        }
        index.head.first = index.first();
        Ok((index, left))
    }

    /// Where it stands.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The segments, in order.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.segments.values()
    }

    /// The segment that holds `id`.
    #[must_use]
    pub fn at(&self, id: MessageId) -> Option<&Segment> {
        let (_, segment) = self.segments.range(..=id).next_back()?;
        (id <= segment.last).then_some(segment)
    }

    /// Lowest id that can be read.
    #[must_use]
    pub fn first(&self) -> MessageId {
        let held = self.segments.keys().next().copied();
        held.unwrap_or(self.head.next)
    }

    /// The head has moved, with a segment or without one.
    pub fn moved(&mut self, head: Head, segment: Option<Segment>) {
        self.head = head;
        self.segments.extend(segment.map(|s| (s.first, s)));
    }

    /// Where the log would begin if all below `below` could go: only whole segments go.
    #[must_use]
    pub fn cut_at(&self, below: MessageId) -> MessageId {
        let mut kept = self.segments.values().filter(|s| s.last >= below);
        kept.next().map_or(self.head.next, |s| s.first)
    }

    /// Cuts below the head's first id, and returns what is cut.
    pub fn cut(&mut self, head: Head) -> Vec<Segment> {
        let kept = self.segments.split_off(&head.first);
        self.head = head;
        std::mem::replace(&mut self.segments, kept)
            .into_values()
            .collect()
    }
}

fn gap(head: &Head, want: MessageId, found: MessageId) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the log's index has a gap: message {want} is missing, {found} follows"),
    )
    .with("first", head.first)
    .with("next", head.next)
    .fix("nothing is appended to it; restore the keys under falconer/…/wal from a backup of etcd")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(head: &Head, n: usize, from: Tso) -> Segment {
        let count = i64::try_from(n).unwrap();
        Segment {
            object: ObjectKey(format!("o{}", head.moves)),
            first: head.next,
            last: MessageId(head.next.0 + count - 1),
            from,
            to: Tso(from.0 + n as u64 - 1),
            term: head.term,
            bytes: 1,
            sha256: String::new(),
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Append(usize, i64),
        Take(i64),
        Cut(i64),
        Reload,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..6_usize, 0..2_000_000_000_000_i64).prop_map(|(n, now)| Op::Append(n, now)),
            (0..50_i64).prop_map(Op::Take),
            (0..80_i64).prop_map(Op::Cut),
            Just(Op::Reload),
        ]
    }

    proptest! {
        #[test]
        fn ids_ticks_and_terms_only_grow(ops in proptest::collection::vec(op(), 1..60)) {
            let mut index = Index::default();
            let mut ticks: Vec<(MessageId, Tso)> = Vec::new();
            for op in ops {
                let head = index.head().clone();
                match op {
                    Op::Append(n, now) => {
                        let (after, from) = head.appended(n, UnixMs(now)).unwrap();
                        prop_assert!(from > head.tick && after.tick >= from);
                        prop_assert!(after.moves > head.moves);
                        let made = (n > 0).then(|| segment(&head, n, from));
                        if let Some(s) = &made {
                            prop_assert!(ticks.last().is_none_or(|(id, t)| id.0 + 1 == s.first.0 && *t < s.from));
                            ticks.extend((0..i64::try_from(n).unwrap()).map(|i| (MessageId(s.first.0 + i), Tso(s.from.0 + i.unsigned_abs()))));
                        }
                        index.moved(after, made);
                    }
                    Op::Take(seen) => {
                        let after = head.taken(Term(seen));
                        prop_assert!(after.term > head.term && after.term.0 > seen);
                        index.moved(after, None);
                    }
                    Op::Cut(below) => {
                        let to = index.cut_at(MessageId(below));
                        let cut = index.cut(head.cut(to));
                        prop_assert!(cut.iter().all(|s| s.last.0 < below));
                        prop_assert_eq!(index.first(), to);
                    }
                    Op::Reload => {
                        let stored = index.segments().cloned().collect();
                        let (again, left) = Index::load(index.head().clone(), stored).unwrap();
                        prop_assert_eq!(&again, &index);
                        prop_assert!(left.is_empty());
                    }
                }
                for (id, tick) in ticks.iter().filter(|(id, _)| *id >= index.first()) {
                    let s = index.at(*id).unwrap();
                    prop_assert_eq!(s.from.0 + (id.0 - s.first.0) as u64, tick.0);
                }
            }
        }
    }

    #[test]
    fn a_gap_is_corrupt_and_a_remainder_is_not() {
        let mut index = Index::default();
        for _ in 0..3 {
            let head = index.head().clone();
            let (after, from) = head.appended(2, UnixMs(0)).unwrap();
            index.moved(after, Some(segment(&head, 2, from)));
        }
        let all: Vec<Segment> = index.segments().cloned().collect();
        let without = |i: usize| {
            all.iter()
                .enumerate()
                .filter(|(n, _)| *n != i)
                .map(|(_, s)| s.clone())
                .collect()
        };
        for i in 0..3 {
            let err = Index::load(index.head().clone(), without(i)).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Corrupt, "{i}");
        }
        let (cut, left) = Index::load(index.head().cut(MessageId(3)), all.clone()).unwrap();
        assert_eq!((cut.first(), left.len()), (MessageId(3), 1));
        let (cut, _) = Index::load(index.head().cut(MessageId(3)), without(0)).unwrap();
        assert_eq!(cut.first(), MessageId(3));
    }

    #[test]
    fn an_adopted_log_begins_above_the_former_one() {
        let head = Head::above(MessageId(470_660_334_431_902_643), Tso(9_000)).unwrap();
        let (index, left) = Index::load(head.taken(Term(4)), Vec::new()).unwrap();
        assert!(left.is_empty() && index.first().0 == 470_660_334_431_902_644);
        let (after, tick) = index.head().appended(1, UnixMs(0)).unwrap();
        assert_eq!((tick, after.next.0), (Tso(9_001), 470_660_334_431_902_645));
        assert_eq!(
            Head::above(MessageId(0), Tso::UNSET).unwrap(),
            Head::default()
        );
        let full = Head::above(MessageId(i64::MAX), Tso(0)).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Limit);
    }

    #[test]
    fn the_sentinel_is_never_given_out() {
        let head = Head {
            tick: Tso(u64::MAX - 2),
            ..Head::default()
        };
        assert!(head.appended(1, UnixMs(0)).is_ok());
        assert_eq!(
            head.appended(2, UnixMs(0)).unwrap_err().kind(),
            ErrorKind::Limit
        );
    }
}
