//! What the copies of a running job do, file by file: which are under way, which took longest, which would not copy and why.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::engine::clock::Clock;
use crate::engine::error::Error;
use crate::engine::model::jobs::{Copies, Copying, FileError};

/// Files named to the outside: under way, and failed.
const NAMED: usize = 16;
/// Failed files kept with their reason; more are counted.
const KEPT: usize = 1_000;
/// Bytes of one reason.
const REASON: usize = 400;

#[derive(Default)]
struct Files {
    /// Target key to size and begin.
    running: BTreeMap<String, (u64, Duration)>,
    slowest: Option<Copying>,
    /// In the order of their first failure.
    failed: Vec<FileError>,
    /// Failed ones beyond [`KEPT`].
    more: u64,
}

/// The book of one job. Written from many tasks.
pub struct FileBook {
    clock: Arc<dyn Clock>,
    files: Mutex<Files>,
}

impl FileBook {
    /// Empty.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            files: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy to `to` begins.
    pub fn began(&self, to: &str, bytes: u64) {
        let now = self.clock.mono();
        self.lock().running.insert(to.to_owned(), (bytes, now));
    }

    /// It is there: whatever went wrong with it before is over.
    pub fn done(&self, from: &str, to: &str) {
        let now = self.clock.mono();
        let mut files = self.lock();
        files.failed.retain(|f| f.object != from);
        let Some((bytes, began)) = files.running.remove(to) else {
            return;
        };
        let took_ms = millis(now.saturating_sub(began));
        if files.slowest.as_ref().is_none_or(|s| s.took_ms < took_ms) {
            files.slowest = Some(Copying {
                object: to.to_owned(),
                bytes,
                took_ms,
            });
        }
    }

    /// A try failed. The first reason is the one that is kept.
    pub fn failed(&self, from: &str, why: &Error) {
        let mut files = self.lock();
        if let Some(known) = files.failed.iter_mut().find(|f| f.object == from) {
            known.tries = known.tries.saturating_add(1);
            return;
        }
        if files.failed.len() >= KEPT {
            files.more += 1;
            return;
        }
        let mut error = why.to_string();
        if error.len() > REASON {
            let mut at = REASON;
            while !error.is_char_boundary(at) {
                at -= 1;
            }
            error.truncate(at);
            error.push('…');
        }
        files.failed.push(FileError {
            object: from.to_owned(),
            error,
            tries: 1,
            given_up: false,
        });
    }

    /// It is not under way any more, and not there: with a reason if it was tried in vain, without one if it was only stopped.
    pub fn left(&self, from: &str, to: &str, given_up: bool) {
        let mut files = self.lock();
        files.running.remove(to);
        if let Some(known) = files.failed.iter_mut().find(|f| f.object == from) {
            known.given_up |= given_up;
        }
    }

    /// Nothing is under way: a run ended, or was dropped in the middle.
    pub fn idle(&self) {
        self.lock().running.clear();
    }

    /// What the outside sees; [`Copies::parallel`] and [`Copies::limit`] are not known here.
    pub fn read(&self) -> Copies {
        let now = self.clock.mono();
        let files = self.lock();
        let mut running: Vec<Copying> = files
            .running
            .iter()
            .map(|(object, (bytes, began))| Copying {
                object: object.clone(),
                bytes: *bytes,
                took_ms: millis(now.saturating_sub(*began)),
            })
            .collect();
        running.sort_by_key(|c| std::cmp::Reverse(c.took_ms));
        running.truncate(NAMED);
        Copies {
            parallel: 0,
            limit: None,
            pace: None,
            running,
            slowest: files.slowest.clone(),
            failed: files.failed.iter().take(NAMED).cloned().collect(),
            failing: files.failed.len() as u64 + files.more,
        }
    }

    /// Continues from what was journaled.
    pub fn resume(&self, from: &Copies) {
        let mut files = self.lock();
        files.slowest.clone_from(&from.slowest);
        files.failed.clone_from(&from.failed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
