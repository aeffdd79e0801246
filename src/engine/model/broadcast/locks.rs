//! Who may go, and who waits for whom: one queue, in which an entry goes when nobody before it is in its way. So conflicting entries
//! go strictly in order, a waiting one is never overtaken, and no two wait for each other.

use std::collections::BTreeMap;

use super::keys::{Resource, ResourceKeys};

/// A place in the queue. Earlier is smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn(u64);

/// The queue. Holders stay in it until they leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locks {
    queue: BTreeMap<Turn, ResourceKeys>,
    next: u64,
}

impl Locks {
    /// Takes the last place.
    pub fn enter(&mut self, keys: ResourceKeys) -> Turn {
        let turn = Turn(self.next);
        self.next += 1;
        self.queue.insert(turn, keys);
        turn
    }

    /// Takes a place that can go at once, or none: then nothing has changed (II-6). The answer names who is in the way, and over what.
    pub fn try_enter(&mut self, keys: ResourceKeys) -> Result<Turn, (Turn, Resource)> {
        let in_the_way = self
            .queue
            .iter()
            .find_map(|(turn, theirs)| keys.conflict(theirs).map(|over| (*turn, over.clone())));
        match in_the_way {
            Some(found) => Err(found),
            None => Ok(self.enter(keys)),
        }
    }

    /// Whether it may go. Once true, it stays so until it leaves.
    #[must_use]
    pub fn is_granted(&self, turn: Turn) -> bool {
        self.queue.contains_key(&turn) && self.before(turn).next().is_none()
    }

    /// Those before it that are in its way, and over what.
    pub fn before(&self, turn: Turn) -> impl Iterator<Item = (Turn, &Resource)> {
        let keys = self.queue.get(&turn);
        self.queue
            .range(..turn)
            .filter_map(move |(other, theirs)| keys?.conflict(theirs).map(|over| (*other, over)))
    }

    /// How many wait for it, among others.
    #[must_use]
    pub fn waiting_for(&self, turn: Turn) -> usize {
        let behind = self.queue.keys().filter(|later| **later > turn);
        behind
            .filter(|later| self.before(**later).any(|(earlier, _)| earlier == turn))
            .count()
    }

    /// Gives the place up, held or not.
    pub fn leave(&mut self, turn: Turn) {
        self.queue.remove(&turn);
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Places that may go, with what they hold.
    pub fn held(&self) -> impl Iterator<Item = (Turn, &ResourceKeys)> {
        self.queue
            .iter()
            .filter(|(turn, _)| self.is_granted(**turn))
            .map(|(turn, keys)| (*turn, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::pb::messages::ResourceDomain;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = ResourceKeys> {
        let one = (
            prop_oneof![
                Just(ResourceDomain::CollectionName),
                Just(ResourceDomain::DbName),
                Just(ResourceDomain::Cluster)
            ],
            0..3_u8,
            any::<bool>(),
        );
        proptest::collection::vec(one, 0..4).prop_map(|all| {
            ResourceKeys::new(
                all.into_iter().map(|(domain, name, shared)| {
                    (Resource::new(domain, name.to_string()), shared)
                }),
            )
        })
    }

    #[derive(Clone, Debug)]
    enum Op {
        Enter(ResourceKeys),
        Try(ResourceKeys),
        Leave(usize),
    }

    proptest! {
        /// II-1, II-2, II-6, and that nobody waits for ever.
        #[test]
        fn exclusive_in_order_and_without_deadlock(ops in proptest::collection::vec(prop_oneof![
            keys().prop_map(Op::Enter), keys().prop_map(Op::Try), (0..20_usize).prop_map(Op::Leave),
        ], 1..40)) {
            let mut locks = Locks::default();
            let mut all: Vec<(Turn, ResourceKeys)> = Vec::new();
            for op in ops {
                match op {
                    Op::Enter(keys) => all.push((locks.enter(keys.clone()), keys)),
                    Op::Try(keys) => {
                        let before = locks.clone();
                        match locks.try_enter(keys.clone()) {
                            Ok(turn) => {
                                prop_assert!(locks.is_granted(turn));
                                all.push((turn, keys));
                            }
                            Err((by, _)) => {
                                prop_assert_eq!(&locks, &before);
                                prop_assert!(all.iter().any(|(turn, _)| *turn == by));
                            }
                        }
                    }
                    Op::Leave(at) => if !all.is_empty() {
                        let (turn, _) = all.remove(at % all.len());
                        let granted: Vec<Turn> = locks.held().map(|(t, _)| t).filter(|t| *t != turn).collect();
                        locks.leave(turn);
                        prop_assert!(granted.iter().all(|t| locks.is_granted(*t)));
                    }
                }
                let held: Vec<_> = locks.held().collect();
                for (i, (_, a)) in held.iter().enumerate() {
                    prop_assert!(held[..i].iter().all(|(_, b)| a.conflict(b).is_none()));
                }
                for (turn, mine) in all.iter().filter(|(turn, _)| !locks.is_granted(*turn)) {
                    let earlier = all.iter().filter(|(t, k)| t < turn && k.conflict(mine).is_some());
                    prop_assert!(earlier.count() > 0);
                }
                prop_assert!(all.first().is_none_or(|(turn, _)| all.iter().any(|(t, _)| t < turn) || locks.is_granted(*turn)));
            }
        }
    }

    #[test]
    fn both_ways_on_one_thing_is_exclusive_and_the_cluster_is_always_there() {
        let books = || Resource::new(ResourceDomain::CollectionName, "default:books");
        let both = ResourceKeys::new([(books(), true), (books(), false)]);
        assert!(
            both.conflict(&ResourceKeys::new([(books(), true)]))
                .is_some()
        );
        let all = ResourceKeys::new([(Resource::new(ResourceDomain::Cluster, ""), false)]);
        assert!(both.conflict(&all).is_some());
        assert_eq!(both.to_pb().len(), 2);
        assert_eq!(ResourceKeys::from_pb(&both.to_pb()), both);
        assert_eq!(books().to_string(), "CollectionName default:books");
    }
}
