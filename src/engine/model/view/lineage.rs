//! Compaction lineage: which segments stand for which, and when an un-indexed child is served by its parents instead
//! (`spec/lifecycle.md` §I.6 step 3).

use std::collections::{BTreeMap, BTreeSet};

use super::{Kept, Piece, Rollback};
use crate::engine::ids::SegmentId;

/// The segments of one channel as a graph, parents to children. Answers nothing about segments that it was not given.
pub(super) struct Lineage<'a> {
    valid: &'a BTreeMap<SegmentId, &'a Piece>,
    children: BTreeMap<SegmentId, Vec<SegmentId>>,
    /// On a cycle or below one: damaged records, whose parents say nothing.
    cyclic: BTreeSet<SegmentId>,
}

impl<'a> Lineage<'a> {
    pub(super) fn new(valid: &'a BTreeMap<SegmentId, &'a Piece>) -> Self {
        let mut children: BTreeMap<SegmentId, Vec<SegmentId>> = BTreeMap::new();
        let mut missing: BTreeMap<SegmentId, usize> = BTreeMap::new();
        for (id, piece) in valid {
            let parents = piece.from.iter().filter(|p| valid.contains_key(p));
            for parent in parents {
                children.entry(*parent).or_default().push(*id);
                *missing.entry(*id).or_default() += 1;
            }
        }
        let with_parents = missing.keys().copied().collect::<BTreeSet<_>>();
        let mut free: Vec<SegmentId> = children
            .keys()
            .filter(|id| !missing.contains_key(id))
            .copied()
            .collect();
        let mut placed = BTreeSet::new();
        while let Some(id) = free.pop() {
            for child in children.get(&id).into_iter().flatten() {
                let left = missing.entry(*child).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    placed.insert(*child);
                    free.push(*child);
                }
            }
        }
        let cyclic = with_parents.difference(&placed).copied().collect();
        Self {
            valid,
            children,
            cyclic,
        }
    }

    pub(super) fn cyclic(&self) -> &BTreeSet<SegmentId> {
        &self.cyclic
    }

    fn parents(&self, id: SegmentId) -> &'a [SegmentId] {
        if self.cyclic.contains(&id) {
            return &[];
        }
        self.valid.get(&id).map_or(&[], |piece| &piece.from)
    }

    /// All that was made from these, at any remove, each once.
    pub(super) fn descendants(&self, of: &[SegmentId]) -> BTreeSet<SegmentId> {
        let mut found = BTreeSet::new();
        let mut todo = of.to_vec();
        while let Some(id) = todo.pop() {
            for child in self.children.get(&id).into_iter().flatten() {
                if found.insert(*child) {
                    todo.push(*child);
                }
            }
        }
        found
    }

    /// `ancestorPresent`: an ancestor stands in one of the sets, and no parent is missing on the way up to it.
    fn ancestor_present(
        &self,
        id: SegmentId,
        sets: [&BTreeSet<SegmentId>; 2],
        memo: &mut BTreeMap<SegmentId, bool>,
    ) -> bool {
        if let Some(known) = memo.get(&id) {
            return *known;
        }
        let mut stack = vec![(id, 0)];
        while let Some((top, at)) = stack.last_mut() {
            let parents = self.parents(*top);
            if *at == 0 {
                memo.insert(*top, false);
                if parents.iter().any(|p| !self.valid.contains_key(p)) {
                    stack.pop();
                    continue;
                }
            }
            let Some(parent) = parents.get(*at) else {
                stack.pop();
                continue;
            };
            *at += 1;
            let there = sets.iter().any(|set| set.contains(parent));
            if there || memo.get(parent) == Some(&true) {
                memo.extend(stack.iter().map(|(id, _)| (*id, true)));
                return true;
            }
            if !memo.contains_key(parent) {
                stack.push((*parent, 0));
            }
        }
        false
    }

    /// The set with un-indexed children replaced by their parents, until nothing changes. Parents that come in leave `dropped`.
    pub(super) fn retrieve(
        &self,
        flushed: BTreeSet<SegmentId>,
        dropped: &mut BTreeSet<SegmentId>,
        rollback: Rollback,
    ) -> (BTreeSet<SegmentId>, BTreeMap<SegmentId, Kept>) {
        let mut flushed = flushed;
        loop {
            let (mut next, mut kept) = (BTreeSet::new(), BTreeMap::new());
            let mut memo = BTreeMap::new();
            let mut changed = false;
            for id in &flushed {
                let parents = self.parents(*id);
                if parents.is_empty() {
                    next.insert(*id);
                    continue;
                }
                let stays = if self.ancestor_present(*id, [&flushed, &next], &mut memo) {
                    None
                } else if self.valid.get(id).is_none_or(|piece| piece.indexed) {
                    Some(None)
                } else {
                    self.why_kept(*id, [&flushed, &next], rollback).map(Some)
                };
                if let Some(why) = stays {
                    next.insert(*id);
                    kept.extend(why.map(|why| (*id, why)));
                    continue;
                }
                changed = true;
                for parent in parents {
                    next.insert(*parent);
                    dropped.remove(parent);
                }
            }
            flushed = next;
            if !changed {
                return (flushed, kept);
            }
        }
    }

    /// Why an un-indexed child is not replaced by its parents; `None` when it is.
    fn why_kept(
        &self,
        id: SegmentId,
        sets: [&BTreeSet<SegmentId>; 2],
        rollback: Rollback,
    ) -> Option<Kept> {
        let parents = self.parents(id);
        for parent in parents {
            match self.valid.get(parent) {
                None => return Some(Kept::ParentGone(*parent)),
                Some(piece) if piece.invisible => return Some(Kept::ParentHidden(*parent)),
                Some(_) => {}
            }
        }
        let Rollback::Certain { dropped_after } = rollback else {
            return None;
        };
        let old = parents.iter().find(|parent| {
            let dropped_at = self.valid.get(parent).and_then(|p| p.dropped_at);
            dropped_at.is_none_or(|at| at <= dropped_after)
        });
        if let Some(old) = old {
            return Some(Kept::ParentOld(*old));
        }
        let below = self.descendants(parents);
        let others = sets
            .iter()
            .flat_map(|set| set.intersection(&below))
            .filter(|other| **other != id);
        for other in others {
            if !self.expands(*other, parents, &below) {
                return Some(Kept::Relative(*other));
            }
        }
        None
    }

    /// Whether a segment can be replaced by its parents, and they by theirs, up to all of `parents` that it descends from.
    fn expands(&self, id: SegmentId, to: &[SegmentId], below: &BTreeSet<SegmentId>) -> bool {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![id]);
        while let Some(id) = todo.pop() {
            let parents = self.parents(id);
            let whole = |p: &SegmentId| self.valid.get(p).is_some_and(|piece| !piece.invisible);
            if parents.is_empty() || !parents.iter().all(whole) {
                return false;
            }
            for parent in parents {
                if !to.contains(parent) && below.contains(parent) && seen.insert(*parent) {
                    todo.push(*parent);
                }
            }
        }
        true
    }
}
