//! What moves: changes a second, which revisions are fresh enough to be tinted, and the copy rates of jobs.

use std::collections::{HashMap, VecDeque};

use crate::engine::ids::{JobId, MetaRev, UnixMs};
use crate::engine::model::jobs::JobsView;

/// How long a changed row stays tinted.
pub const TINT_MS: u64 = 4_000;
/// Seconds that a sparkline remembers.
const SECONDS: usize = 60;

/// Movement of the last minute.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    /// Changes in each second, oldest first, and the second of the newest.
    per_second: VecDeque<u64>,
    second: i64,
    /// Revision shown before each of the last changes, and when it came.
    arrivals: VecDeque<(UnixMs, MetaRev)>,
    /// Bytes a second of each running job, a value a second.
    rates: HashMap<JobId, (i64, VecDeque<u64>)>,
}

impl Pulse {
    /// The catalog went from one revision to another.
    pub fn moved(&mut self, from: MetaRev, to: MetaRev, now: UnixMs) {
        self.roll(now);
        // The first listing is not a change.
        if from.0 == 0 || to <= from {
            return;
        }
        let delta = u64::try_from(to.0 - from.0).unwrap_or(0);
        if let Some(last) = self.per_second.back_mut() {
            *last = last.saturating_add(delta);
        }
        self.arrivals.push_back((now, from));
        // At most ten catalogs a second are published; more would mean that time stands still.
        if self.arrivals.len() > 256 {
            self.arrivals.pop_front();
        }
    }

    /// The jobs moved.
    pub fn jobs(&mut self, jobs: &JobsView, now: UnixMs) {
        let second = now.0.div_euclid(1000);
        self.rates
            .retain(|id, _| jobs.jobs.iter().any(|j| j.id == *id && !j.state.ended()));
        for job in jobs.jobs.iter().filter(|j| !j.state.ended()) {
            let (last, values) = self.rates.entry(job.id).or_default();
            let rate = job.progress.rate.max(0.0) as u64;
            if *last == second {
                if let Some(value) = values.back_mut() {
                    *value = rate;
                }
            } else {
                *last = second;
                values.push_back(rate);
                if values.len() > SECONDS {
                    values.pop_front();
                }
            }
        }
    }

    /// Time has passed.
    pub fn passed(&mut self, now: UnixMs) {
        self.roll(now);
        while self
            .arrivals
            .front()
            .is_some_and(|(at, _)| now.since(*at) > TINT_MS)
        {
            self.arrivals.pop_front();
        }
    }

    fn roll(&mut self, now: UnixMs) {
        let second = now.0.div_euclid(1000);
        let passed = usize::try_from(second.saturating_sub(self.second)).unwrap_or(0);
        if self.per_second.is_empty() || passed > SECONDS {
            self.per_second = std::iter::repeat_n(0, SECONDS).collect();
        } else {
            for _ in 0..passed {
                self.per_second.pop_front();
                self.per_second.push_back(0);
            }
        }
        self.second = self.second.max(second);
    }

    /// Whether a tint must still be taken away.
    #[must_use]
    pub fn fading(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// Rows with a revision above this one have changed in the last seconds.
    #[must_use]
    pub fn fresh_after(&self, current: MetaRev) -> MetaRev {
        self.arrivals.front().map_or(current, |(_, rev)| *rev)
    }

    /// Changes of each second.
    #[must_use]
    pub fn changes(&self) -> Vec<u64> {
        self.per_second.iter().copied().collect()
    }

    /// Changes a second over the last five.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let last: u64 = self.per_second.iter().rev().take(5).sum();
        last as f64 / 5.0
    }

    /// Bytes of each second of a job.
    #[must_use]
    pub fn job(&self, id: JobId) -> Vec<u64> {
        self.rates
            .get(&id)
            .map(|(_, v)| v.iter().copied().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_listing_is_no_change_and_a_tint_fades() {
        let mut pulse = Pulse::default();
        pulse.moved(MetaRev(0), MetaRev(812_345), UnixMs(1_000));
        assert!(!pulse.fading());
        assert_eq!(pulse.fresh_after(MetaRev(812_345)), MetaRev(812_345));
        pulse.moved(MetaRev(812_345), MetaRev(812_350), UnixMs(2_000));
        assert_eq!(pulse.fresh_after(MetaRev(812_350)), MetaRev(812_345));
        assert!((pulse.rate() - 1.0).abs() < 1e-9);
        pulse.passed(UnixMs(7_000));
        assert!(!pulse.fading());
        assert_eq!(pulse.fresh_after(MetaRev(812_350)), MetaRev(812_350));
        pulse.passed(UnixMs(8_000));
        assert!(pulse.rate() < 1e-9);
        assert_eq!(pulse.changes().iter().sum::<u64>(), 5);
        pulse.passed(UnixMs(100_000));
        assert_eq!(pulse.changes().iter().sum::<u64>(), 0);
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut pulse = Pulse::default();
        pulse.moved(MetaRev(1), MetaRev(2), UnixMs(100_000));
        pulse.moved(MetaRev(2), MetaRev(3), UnixMs(1_000));
        assert_eq!(pulse.changes().iter().sum::<u64>(), 2);
    }
}
