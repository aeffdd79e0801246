//! Calls to a store that are under way, and what came of those before: for the eye.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::engine::error::ErrorKind;

/// Characters kept of a key.
const KEY: usize = 120;

/// A call under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `range`, `txn`, `keep alive`, …
    pub op: &'static str,
    /// The key, or what the keys begin with; empty for a call about none.
    pub key: String,
    /// On whose behalf, in words.
    pub origin: Arc<str>,
    /// For how long.
    pub age: Duration,
    /// It may change something.
    pub write: bool,
}

/// The calls of an engine to its metadata store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Under way, the oldest first.
    pub open: Vec<Call>,
    /// Begun since the start.
    pub begun: u64,
    /// Given up because their caller was, before they were sent or while they read.
    pub cancelled: u64,
    /// Given up because their caller's own time was over.
    pub deadline_exceeded: u64,
    /// Writes that may or may not have happened.
    pub unknown: u64,
}

#[derive(Default)]
struct State {
    next: u64,
    open: BTreeMap<u64, Open>,
    cancelled: u64,
    deadline_exceeded: u64,
    unknown: u64,
}

struct Open {
    op: &'static str,
    key: String,
    origin: Arc<str>,
    since: Duration,
    write: bool,
}

/// The book of one engine.
pub struct Book {
    state: Mutex<State>,
    /// How many are open.
    count: watch::Sender<usize>,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Book {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it stands at `now` ([`Clock::mono`](crate::engine::clock::Clock::mono)).
    #[must_use]
    pub fn read(&self, now: Duration) -> Calls {
        let state = self.state();
        let open = state.open.values().map(|call| Call {
            op: call.op,
            key: call.key.clone(),
            origin: call.origin.clone(),
            age: now.saturating_sub(call.since),
            write: call.write,
        });
        Calls {
            open: open.collect(),
            begun: state.next,
            cancelled: state.cancelled,
            deadline_exceeded: state.deadline_exceeded,
            unknown: state.unknown,
        }
    }

    /// Changes with every call that begins or ends.
    pub fn changed(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Waits until no call is under way.
    pub async fn quiet(&self) {
        let mut count = self.count.subscribe();
        // The sender lives as long as `self`.
        let _ = count.wait_for(|open| *open == 0).await;
    }

    /// Something came to this without being sent.
    pub(super) fn unsent(&self, why: ErrorKind) {
        self.count(why);
        self.count.send_modify(|_| {});
    }

    fn count(&self, why: ErrorKind) {
        let mut state = self.state();
        match why {
            ErrorKind::Cancelled => state.cancelled += 1,
            ErrorKind::DeadlineExceeded => state.deadline_exceeded += 1,
            ErrorKind::OutcomeUnknown => state.unknown += 1,
            _ => {}
        }
    }

    /// A call begins. It ends when what is returned is dropped.
    pub(super) fn open(
        self: &Arc<Self>,
        op: &'static str,
        key: &[u8],
        origin: &Arc<str>,
        since: Duration,
        write: bool,
    ) -> Entry {
        let text: String = String::from_utf8_lossy(key).chars().take(KEY).collect();
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.open.insert(
            id,
            Open {
                op,
                key: text,
                origin: origin.clone(),
                since,
                write,
            },
        );
        drop(state);
        self.count.send_modify(|open| *open += 1);
        Entry {
            book: self.clone(),
            id,
            // Dropped in the middle: whoever waited was ended with the call.
            came_to: Some(if write {
                ErrorKind::OutcomeUnknown
            } else {
                ErrorKind::Cancelled
            }),
        }
    }
}

/// One call in the book.
pub(super) struct Entry {
    book: Arc<Book>,
    id: u64,
    came_to: Option<ErrorKind>,
}

impl Entry {
    /// What it came to.
    pub fn close(mut self, came_to: Option<ErrorKind>) {
        self.came_to = came_to;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.book.state().open.remove(&self.id);
        if let Some(why) = self.came_to {
            self.book.count(why);
        }
        self.book
            .count
            .send_modify(|open| *open = open.saturating_sub(1));
    }
}
