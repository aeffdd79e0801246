//! Waiting between tries, on the injected clock.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::execute::Executor;
use crate::engine::clock::Clock;
use crate::engine::error::{Error, Result};

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

/// A write that may have happened. What is sent after it settles it, so it does not end with whoever asked for the write
/// (`spec/lifecycle.md` §7 rules 4 and 5).
#[derive(Default)]
pub(super) struct Doubt {
    first: Option<Error>,
    settling: Option<Arc<Executor>>,
}

impl Doubt {
    /// With whom to go on.
    pub fn go_on<'a>(&'a self, first: &'a Executor) -> &'a Executor {
        self.settling.as_deref().unwrap_or(first)
    }

    /// A try of `asked` came to `e`, an unknown outcome.
    pub fn arises(&mut self, asked: &Executor, e: &Error) {
        self.first.get_or_insert_with(|| e.clone());
        if self.settling.is_none() && asked.scope().is_over() {
            self.settling = Some(asked.detached("settle a write"));
        }
    }

    /// Whether there is any.
    pub fn is_there(&self) -> bool {
        self.first.is_some()
    }

    /// What is told in the end: a try that certainly failed does not settle one before it.
    pub fn instead_of(&self, e: Error) -> Error {
        self.first.clone().unwrap_or(e)
    }
}
