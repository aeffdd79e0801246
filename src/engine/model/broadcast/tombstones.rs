//! Finished tasks that are kept so that late acknowledgements and duplicates are recognised (§II.5).

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::ids::{BroadcastId, UnixMs};

/// How many tombstones are kept, and how long (`streaming.walBroadcaster.tombstone.*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TombstoneLimits {
    /// At most.
    pub count: usize,
    /// No longer than.
    pub age: Duration,
}

impl Default for TombstoneLimits {
    fn default() -> Self {
        Self {
            count: 8_192,
            age: Duration::from_hours(24),
        }
    }
}

/// Tombstones, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Tombstones(VecDeque<(BroadcastId, UnixMs)>);

impl Tombstones {
    /// One more.
    pub fn add(&mut self, id: BroadcastId, at: UnixMs) {
        self.0.push_back((id, at));
    }

    /// The oldest, if it is beyond the limits.
    #[must_use]
    pub fn next_over(&self, limits: TombstoneLimits, now: UnixMs) -> Option<BroadcastId> {
        let (id, at) = self.0.front()?;
        let old = u128::from(now.since(*at)) > limits.age.as_millis();
        (self.0.len() > limits.count || old).then_some(*id)
    }

    /// It is removed.
    pub fn removed(&mut self, id: BroadcastId) {
        self.0.retain(|(held, _)| *held != id);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_by_count_and_by_age() {
        let limits = TombstoneLimits {
            count: 2,
            age: Duration::from_secs(10),
        };
        let mut all = Tombstones::default();
        for i in 0..4 {
            all.add(BroadcastId(i), UnixMs(i * 1_000));
        }
        let mut gone = Vec::new();
        while let Some(id) = all.next_over(limits, UnixMs(5_000)) {
            all.removed(id);
            gone.push(id.0);
        }
        assert_eq!((gone, all.len()), (vec![0, 1], 2));
        assert_eq!(all.next_over(limits, UnixMs(12_000)), None);
        assert_eq!(all.next_over(limits, UnixMs(12_001)), Some(BroadcastId(2)));
    }
}
