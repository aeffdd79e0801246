//! Verdicts on what a snapshot keeps beyond its time: pins that are over, and snapshots whose collection is gone
//! (`spec/snapshot.md` §6.3 step 3). Pure (law 6).

use super::data::Pin;
use super::facts::SnapshotFacts;
use super::gc::{Rule, Verdict};
use super::holds::{Hold, Reason, World, hold};
use super::references::refers;
use crate::engine::ids::{PinId, SnapshotId};

impl World {
    fn is_over(&self, pin: &Pin) -> bool {
        // 0 is not a time (law 10).
        pin.expires.is_some_and(|at| at.0 > 0 && at < self.now)
    }

    /// Pins that still hold it.
    pub(super) fn pinned(&self, snapshot: &SnapshotFacts, out: &mut Vec<Hold>) {
        let live = snapshot.pins.iter().filter(|pin| !self.is_over(pin));
        out.extend(live.map(|pin| Hold {
            reason: Reason::Pin,
            by: format!("pin {}", pin.id),
            until: pin.expires.filter(|at| at.0 > 0),
        }));
    }

    /// Pins of a committed snapshot whose time was over at the cut-off. Those of any other go with its record.
    pub fn expired_pins(&self, id: SnapshotId) -> impl Iterator<Item = PinId> + '_ {
        let snapshot = self.snapshot(id).filter(|s| refers(s.state));
        let pins = snapshot.into_iter().flat_map(|s| &s.pins);
        pins.filter(|pin| self.is_over(pin)).map(|pin| pin.id)
    }

    /// Whether nobody knows the collection of a committed snapshot any more.
    #[must_use]
    pub fn is_collection_gone(&self, id: SnapshotId) -> bool {
        self.snapshot(id)
            .is_some_and(|s| refers(s.state) && !self.collections.contains(&s.collection))
    }

    /// Work that may read it, and records of its collection that cannot be read.
    fn in_doubt(&self, snapshot: &SnapshotFacts, out: &mut Vec<Hold>) {
        let reads = self.work.iter().filter(|w| w.snapshot == Some(snapshot.id));
        out.extend(reads.map(|w| hold(Reason::Job, w.by.clone())));
        self.worked_on(Some(snapshot.collection), None, None, out);
        self.unreadable_records(Some(snapshot.collection), out);
    }
}

/// Of the pins of a snapshot whose time is over. A job that reads the snapshot may be about to renew its own: then all stay.
#[must_use]
pub fn pins(world: &World, id: SnapshotId) -> Verdict {
    let Some(snapshot) = world.snapshot(id) else {
        return Verdict::Keep(vec![hold(Reason::Unknown, "there is no such snapshot")]);
    };
    let mut out = Vec::new();
    if world.expired_pins(id).next().is_none() {
        out.push(hold(Reason::Live, "no pin's time is over"));
    }
    world.in_doubt(snapshot, &mut out);
    Verdict::of(out, Rule::ExpiredPin)
}

/// Of a committed snapshot whose collection is gone. Segments that are not dropped are a doubt: then it is the collection's record that
/// is missing, not the collection.
#[must_use]
pub fn collection_gone(world: &World, id: SnapshotId) -> Verdict {
    let Some(snapshot) = world.snapshot(id) else {
        return Verdict::Keep(vec![hold(Reason::Unknown, "there is no such snapshot")]);
    };
    let c = snapshot.collection;
    let mut out = Vec::new();
    if !refers(snapshot.state) {
        out.push(hold(Reason::Live, snapshot.label()));
    }
    if world.collections.contains(&c) {
        out.push(hold(Reason::CollectionExists, format!("collection {c}")));
    }
    let live = world.segments.values();
    let live = live.filter(|s| s.collection == c && !s.dropped).count();
    if live > 0 {
        out.push(hold(
            Reason::SegmentsLeft,
            format!("{live} segments of the collection are not dropped"),
        ));
    }
    world.pinned(snapshot, &mut out);
    world.in_doubt(snapshot, &mut out);
    Verdict::of(out, Rule::CollectionGone)
}
