//! The pauses between tries of what is tried without end (§II.3).

use std::time::Duration;

/// From 10 ms, doubling, to 10 s.
pub(super) struct Pace(Duration);

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(10);

impl Pace {
    pub fn new() -> Self {
        Self(FIRST)
    }

    pub fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(LONGEST);
        pause
    }

    pub fn reset(&mut self) {
        self.0 = FIRST;
    }
}
