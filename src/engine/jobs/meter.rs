//! Counters of a running job: written by its steps from many tasks, read by the screen.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::engine::clock::Clock;
use crate::engine::model::jobs::Progress;

/// The rate is taken over this long.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples of the window: one each time this much has passed.
const SAMPLE: Duration = Duration::from_millis(200);

/// Done and all of one thing.
#[derive(Debug, Default)]
pub struct Count {
    done: AtomicU64,
    total: AtomicU64,
}

impl Count {
    fn read(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }

    fn write(&self, (done, total): (u64, u64)) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }
}

/// Segments, files and bytes; rate and time left.
pub struct ProgressMeter {
    clock: Arc<dyn Clock>,
    segments: Count,
    files: Count,
    bytes: Count,
    rows: AtomicU64,
    samples: Mutex<VecDeque<(Duration, u64)>>,
    changed: Arc<Notify>,
}

impl ProgressMeter {
    /// All zero. `changed` is told of every movement.
    pub fn new(clock: Arc<dyn Clock>, changed: Arc<Notify>) -> Self {
        Self {
            clock,
            segments: Count::default(),
            files: Count::default(),
            bytes: Count::default(),
            rows: AtomicU64::new(0),
            samples: Mutex::default(),
            changed,
        }
    }

    /// Sets what there is to do.
    pub fn totals(&self, segments: u64, files: u64, bytes: u64) {
        self.segments.total.store(segments, Ordering::Relaxed);
        self.files.total.store(files, Ordering::Relaxed);
        self.bytes.total.store(bytes, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Sets how many rows are in what the job makes.
    pub fn set_rows(&self, rows: u64) {
        self.rows.store(rows, Ordering::Relaxed);
    }

    /// Sets what is done: after a resume.
    pub fn set_done(&self, segments: u64, files: u64, bytes: u64) {
        self.segments.done.store(segments, Ordering::Relaxed);
        self.files.done.store(files, Ordering::Relaxed);
        self.bytes.done.store(bytes, Ordering::Relaxed);
        self.samples().clear();
        self.changed.notify_one();
    }

    /// All that was to do is done: steps taken twice may have counted something twice, or not at all.
    pub fn complete(&self) {
        for count in [&self.segments, &self.files, &self.bytes] {
            match count.read() {
                (_, 0) => {}
                (_, all) => count.write((all, all)),
            }
        }
        self.changed.notify_one();
    }

    /// One more segment is done.
    pub fn segment(&self) {
        self.segments.done.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// One more file of this many bytes is done.
    pub fn file(&self, bytes: u64) {
        self.files.done.fetch_add(1, Ordering::Relaxed);
        let done = self.bytes.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.sample(done);
        self.changed.notify_one();
    }

    fn sample(&self, done: u64) {
        let now = self.clock.mono();
        let mut samples = self.samples();
        if samples
            .back()
            .is_none_or(|(at, _)| now.saturating_sub(*at) >= SAMPLE)
        {
            samples.push_back((now, done));
        }
        while samples.len() > 2
            && samples
                .front()
                .is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW)
        {
            samples.pop_front();
        }
    }

    /// As it stands now.
    pub fn read(&self) -> Progress {
        let bytes = self.bytes.read();
        let rate = self.rate(bytes.0);
        let left = bytes.1.saturating_sub(bytes.0);
        Progress {
            segments: self.segments.read(),
            files: self.files.read(),
            bytes,
            rate,
            rows: self.rows.load(Ordering::Relaxed),
            eta_ms: (rate > 0.0 && bytes.1 > 0).then(|| (left as f64 / rate * 1000.0) as u64),
        }
    }

    /// Continues from what was journaled.
    pub fn resume(&self, from: Progress) {
        self.segments.write(from.segments);
        self.files.write(from.files);
        self.bytes.write(from.bytes);
        self.rows.store(from.rows, Ordering::Relaxed);
    }

    fn rate(&self, done: u64) -> f64 {
        let now = self.clock.mono();
        let samples = self.samples();
        let Some((at, then)) = samples.front() else {
            return 0.0;
        };
        let secs = now.saturating_sub(*at).as_secs_f64();
        if secs > 0.0 {
            done.saturating_sub(*then) as f64 / secs
        } else {
            0.0
        }
    }

    fn samples(&self) -> std::sync::MutexGuard<'_, VecDeque<(Duration, u64)>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
