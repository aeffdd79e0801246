//! How many objects and bytes a second a job's deletes and moves may take. The rates may change while it waits.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Longest wait without a look at what is asked now.
const LOOK: Duration = Duration::from_secs(1);

/// A bucket of one second for each of the two. What is larger than the bucket goes when it is full and leaves a debt, so that the
/// average holds.
#[derive(Debug, Default)]
struct Bucket {
    tokens: f64,
    at: Option<Duration>,
}

impl Bucket {
    /// How long until `n` may go.
    fn wait(&mut self, now: Duration, rate: Option<u64>, n: f64) -> Duration {
        let passed = now.saturating_sub(self.at.unwrap_or(now));
        self.at = Some(now);
        let Some(rate) = rate.map(|r| r.max(1) as f64) else {
            self.tokens = 0.0;
            return Duration::ZERO;
        };
        self.tokens = (self.tokens + rate * passed.as_secs_f64()).min(rate);
        let need = n.min(rate);
        // Half a token is the rounding of the clock.
        if self.tokens + 0.001 * rate >= need {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((need - self.tokens) / rate).max(Duration::from_millis(1))
    }
}

/// Shared by all tasks of a job.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<(Bucket, Bucket)>);

impl Pace {
    /// Takes one object of so many bytes, or says how long to wait before asking again.
    pub fn take(
        &self,
        now: Duration,
        objects: Option<u64>,
        rate: Option<u64>,
        bytes: u64,
    ) -> Option<Duration> {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = both
            .0
            .wait(now, objects, 1.0)
            .max(both.1.wait(now, rate, bytes as f64));
        if !wait.is_zero() {
            return Some(wait.min(LOOK));
        }
        both.0.tokens -= 1.0;
        both.1.tokens -= bytes as f64;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects that go in so many virtual seconds.
    fn run(secs: u64, objects: Option<u64>, rate: Option<u64>, bytes: u64) -> u64 {
        let (pace, mut now, mut done) = (Pace::default(), Duration::ZERO, 0);
        while now < Duration::from_secs(secs) {
            match pace.take(now, objects, rate, bytes) {
                None => done += 1,
                Some(wait) => now += wait,
            }
            if objects.is_none() && rate.is_none() && done > 1_000 {
                break;
            }
        }
        done
    }

    #[test]
    fn the_average_holds_for_objects_and_for_bytes() {
        let close = |n: u64, want: u64| assert!(n.abs_diff(want) <= want / 20 + 1, "{n} of {want}");
        close(run(100, Some(10), None, 1 << 30), 1_000);
        close(run(100, None, Some(1_000), 100), 1_000);
        // Larger than a second's worth: a debt, not a block.
        close(run(100, None, Some(1_000), 5_000), 20);
        close(run(100, Some(5), Some(1_000), 100), 500);
        assert_eq!(run(1, None, None, 1 << 30), 1_001, "no limit never waits");
    }

    #[test]
    fn a_rate_that_is_lifted_frees_whoever_waits() {
        let pace = Pace::default();
        let now = Duration::from_secs(1);
        assert!(pace.take(now, Some(1), None, 0).is_some_and(|w| w <= LOOK));
        assert_eq!(pace.take(now, None, None, 0), None);
    }
}
