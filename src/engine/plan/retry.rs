//! Waiting between tries, on the injected clock.

use std::future::Future;
use std::time::Duration;

use crate::engine::clock::Clock;
use crate::engine::error::Result;

/// Grows from 50 ms by two to 2 s.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    tries: u32,
    max: u32,
}

impl Backoff {
    /// At most `max` tries in all.
    #[must_use]
    pub const fn new(max: u32) -> Self {
        Self {
            next: Duration::from_millis(50),
            tries: 1,
            max,
        }
    }

    /// Waits before another try; `false` when there is none left.
    pub async fn again(&mut self, clock: &dyn Clock) -> bool {
        if self.tries >= self.max {
            return false;
        }
        self.tries += 1;
        clock.sleep(self.next).await;
        self.next = (self.next * 2).min(Duration::from_secs(2));
        true
    }
}

/// Tries of one call to a store before the error goes up to the step.
pub const TRIES: u32 = 4;

/// Repeats a call that changes nothing, or that may be repeated, while its error is transient.
pub async fn calm<T, F>(clock: &dyn Clock, mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::new(TRIES);
    loop {
        match call().await {
            Err(e) if e.is_transient() && backoff.again(clock).await => {}
            done => return done,
        }
    }
}
