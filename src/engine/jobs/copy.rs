//! The copy pool: many objects from here to there, inside one store or between two, as fast as the stores bear and as slowly as
//! asked.
//!
//! Files are handed out in the order given. Parallelism and byte rate may change while it runs; a store that asks for
//! less (`503 SlowDown`, 429) halves the parallelism, success lets it grow again. A missing source does not end the run at
//! once: no new file is begun, and the caller gets the whole list of what is missing from [`missing`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};

use crate::engine::clock::{Clock, Entropy};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::ObjectKey;
use crate::engine::objects::Origin;

/// One object to copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CopyFile {
    /// From.
    pub from: ObjectKey,
    /// To.
    pub to: ObjectKey,
    /// Bytes, from a listing of the source.
    pub size: u64,
    /// Its entity tag, from the same listing: a copy with the same checksum needs no other proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Which of the caller's groups (segments) it belongs to.
    pub group: u32,
}

impl CopyFile {
    /// What the store is told of the source.
    #[must_use]
    pub fn origin(&self) -> Origin<'_> {
        Origin {
            key: &self.from,
            size: self.size,
            etag: self.etag.as_deref(),
        }
    }
}

/// What the pool needs of the world.
#[async_trait]
pub trait CopyHost: Send + Sync {
    /// One try. The copy is compared when this returns. `NotFound` when the source is missing.
    async fn copy(&self, file: &CopyFile) -> Result<()>;
    /// Something that the operator should know.
    fn note(&self, text: String);
    /// Copies at once, as asked for now; at least 1.
    fn parallel(&self) -> u32;
    /// Bytes a second, as asked for now; `None` = no limit.
    fn throttle(&self) -> Option<u64>;
    /// A file is begun.
    fn began(&self, _file: &CopyFile) {}
    /// A try of it failed; it may be tried again.
    fn failed(&self, _file: &CopyFile, _why: &Error) {}
    /// It is not tried again, and is not there.
    fn gave_up(&self, _file: &CopyFile) {}
    /// A file of so many bytes is there.
    fn copied(&self, file: &CopyFile);
    /// Whether to stop soon.
    fn cancelled(&self) -> bool;
    /// Time.
    fn clock(&self) -> &dyn Clock;
    /// Randomness, for back-off.
    fn entropy(&self) -> &dyn Entropy;
}

/// Where a run stands: what the job journals. Files before `cursor` are done; `beyond` are done past it (at most as many
/// as ran at once).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// All files before this index are done.
    pub cursor: u32,
    /// Done out of order. Journaled as runs: one early gap must not write out everything behind it.
    #[serde(default, rename = "runs", with = "runs")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beyond: Vec<u32>,
    /// Bytes that the rate still allows, or below 0 that were copied ahead of it: without it each slice would begin anew.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub credit: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_nothing(credit: &i64) -> bool {
    *credit == 0
}

/// Ascending numbers as pairs of a first one and how many follow each other.
mod runs {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Files that a run may have: a damaged record must not ask for gigabytes.
    const MOST: u64 = 1 << 24;

    #[expect(clippy::ptr_arg, reason = "serde passes the field as it is")]
    pub fn serialize<S: Serializer>(all: &Vec<u32>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(
            all.chunk_by(|a, b| a.checked_add(1) == Some(*b))
                .map(|run| (run[0], run.len() as u32)),
        )
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
        let runs = Vec::<(u32, u32)>::deserialize(from)?;
        if runs.iter().map(|(_, many)| u64::from(*many)).sum::<u64>() > MOST {
            return Err(D::Error::custom("more files than a run can have"));
        }
        let run = |(first, many): (u32, u32)| first..first.saturating_add(many);
        Ok(runs.into_iter().flat_map(run).collect())
    }
}

impl Done {
    /// Marks one file.
    pub fn add(&mut self, index: u32) {
        if index < self.cursor {
            return;
        }
        if let Err(at) = self.beyond.binary_search(&index) {
            self.beyond.insert(at, index);
        }
        let run = self
            .beyond
            .iter()
            .zip(self.cursor..)
            .take_while(|(have, want)| *have == want)
            .count();
        self.beyond.drain(..run);
        self.cursor += run as u32;
    }

    /// Whether a file is done.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        index < self.cursor || self.beyond.binary_search(&index).is_ok()
    }

    /// How many are done.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.cursor + self.beyond.len() as u32
    }

    /// Rebuilds the mark from what a listing of the target shows: the listing is the truth, the journal a hint.
    #[must_use]
    pub fn from_listing(files: &[CopyFile], there: &BTreeMap<ObjectKey, u64>) -> Self {
        let mut done = Self::default();
        for (index, file) in (0..).zip(files) {
            if there.get(&file.to) == Some(&file.size) {
                done.add(index);
            }
        }
        done
    }
}

/// When a slice of a run ends, so that its state can be journaled.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// After so many files.
    pub files: u32,
    /// After so long.
    pub time: Duration,
}

/// 2,000 files or 5 s: at 400 files a second what a crash loses is what ran at that moment, since a resume lists the target.
pub const SLICE: Slice = Slice {
    files: 2_000,
    time: Duration::from_secs(5),
};

/// Tries of one file before the run fails.
const TRIES: u32 = 8;
/// First wait between tries; doubles, with jitter.
const BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(20);

/// Longest wait for the rate without a look at what is asked now.
const LOOK: Duration = Duration::from_secs(1);

/// What a slice came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// Every file is there.
    All,
    /// The slice ended; call again.
    More,
    /// A source is missing: find them all.
    SourceMissing,
}

/// Copies what `done` lacks until all is there, the slice ends, or something fails for good. `done` is true to the last
/// finished file in every case, errors included.
pub async fn run(
    host: &dyn CopyHost,
    files: &[CopyFile],
    done: &mut Done,
    slice: Slice,
) -> Result<Ran> {
    let begun = host.clock().mono();
    let mut todo: VecDeque<u32> = (done.cursor..files.len() as u32)
        .filter(|i| !done.has(*i))
        .collect();
    let mut pace = Pace::new(host, done.credit);
    let gate = &Gate::new(host.parallel());
    let mut again = Again::default();
    let mut running: FuturesUnordered<BoxFuture<'_, (u32, Copied)>> = FuturesUnordered::new();
    let (mut started, mut stop) = (0u32, None);
    loop {
        let room = gate.room(host.parallel());
        while stop.is_none() && running.len() < room {
            if host.cancelled() || started >= slice.files {
                break;
            }
            if host.clock().mono().saturating_sub(begun) >= slice.time && started > 0 {
                break;
            }
            let Some(&index) = todo.front() else { break };
            let Some(file) = files.get(index as usize) else {
                break;
            };
            let wait = pace.wait_for(host, file.size);
            if !wait.is_zero() {
                if running.is_empty() {
                    // Not all of it at once: the rate may change, and the job be stopped.
                    host.clock().sleep(wait.min(LOOK)).await;
                    continue;
                }
                break;
            }
            pace.spend(file.size);
            todo.pop_front();
            started += 1;
            running.push(Box::pin(
                async move { (index, one(host, file, gate).await) },
            ));
        }
        let Some((index, copied)) = running.next().await else {
            break;
        };
        match copied {
            Copied::There { after } => {
                done.add(index);
                if let Some(file) = files.get(index as usize) {
                    host.copied(file);
                    again.count(host, file, after);
                }
                gate.good();
            }
            other => {
                if let Some(file) = files.get(index as usize) {
                    host.gave_up(file);
                }
                let why = match other {
                    Copied::Failed(error) => Err(error),
                    _ => Ok(Ran::SourceMissing),
                };
                stop = stop.or(Some(why));
            }
        }
    }
    again.tell(host);
    // Up to now: the last look may be as old as the last copy.
    pace.wait_for(host, 0);
    done.credit = match host.throttle() {
        Some(_) => pace.tokens as i64,
        None => 0,
    };
    match stop {
        Some(why) => why,
        None if host.cancelled() => Err(Error::new(ErrorKind::Cancelled, "copying was stopped")),
        None if todo.is_empty() => Ok(Ran::All),
        None => Ok(Ran::More),
    }
}

enum Copied {
    /// With the failed tries before it and the reason of the last one.
    There {
        after: Option<(u32, Error)>,
    },
    Missing,
    Failed(Error),
}

/// One file, with its retries. What may or may not have happened is done again: it is the same as once.
async fn one(host: &dyn CopyHost, file: &CopyFile, gate: &Gate) -> Copied {
    let mut last = None;
    host.began(file);
    for attempt in 0..TRIES {
        if attempt > 0 {
            host.clock().sleep(backoff(host.entropy(), attempt)).await;
        }
        let turn = gate.turn();
        let failed = match host.copy(file).await {
            Ok(()) => {
                return Copied::There {
                    after: last.map(|e| (attempt, e)),
                };
            }
            Err(e) => e,
        };
        host.failed(file, &failed);
        match failed.kind() {
            ErrorKind::NotFound => return Copied::Missing,
            ErrorKind::Unreachable | ErrorKind::OutcomeUnknown => {}
            _ => return Copied::Failed(failed),
        }
        if asks_for_less(&failed) {
            gate.slower(turn);
        }
        last = Some(failed);
        if host.cancelled() {
            break;
        }
    }
    Copied::Failed(match last {
        Some(e) => e.with("tries", TRIES),
        None => Error::new(ErrorKind::Cancelled, "copying was stopped").with("object", &file.from),
    })
}

/// Files named one by one that needed more than one try.
const NAMED: u32 = 10;

/// What had to be tried again in this run, and why.
#[derive(Default)]
struct Again {
    files: u32,
    last: Option<Error>,
}

impl Again {
    fn count(&mut self, host: &dyn CopyHost, file: &CopyFile, after: Option<(u32, Error)>) {
        let Some((tries, why)) = after else { return };
        self.files += 1;
        if self.files <= NAMED {
            host.note(format!(
                "{} was copied after {tries} failed tries: {why}",
                file.from
            ));
        }
        self.last = Some(why);
    }

    fn tell(&self, host: &dyn CopyHost) {
        if let Some(why) = self.last.as_ref().filter(|_| self.files > NAMED) {
            let more = self.files - NAMED;
            host.note(format!(
                "{more} more files were copied after failed tries, the last one: {why}"
            ));
        }
    }
}

/// Whether the store said that it is asked for too much. Its own words, not a number alone: a key is full of numbers.
fn asks_for_less(e: &Error) -> bool {
    const SIGNS: [&str; 5] = [
        "SlowDown",
        "ServerBusy",
        "TooManyRequests",
        "the server answered 503",
        "the server answered 429",
    ];
    SIGNS.iter().any(|sign| e.what().contains(sign))
}

/// Doubling with half of it random, so that many copies do not come back together.
fn backoff(entropy: &dyn Entropy, attempt: u32) -> Duration {
    let full = BACKOFF
        .saturating_mul(1 << attempt.min(16).saturating_sub(1))
        .min(BACKOFF_MAX);
    let half = full / 2;
    let spread = u64::try_from(half.as_millis()).unwrap_or(0).max(1);
    half + Duration::from_millis(entropy.next_u64() % spread)
}

/// Rounds of good copies before one more is tried: the refusals that find the limit again are few beside what was copied.
const ROUNDS: u32 = 4;

/// How many may run: halves when the store asks for less, grows by one after [`ROUNDS`] times as many good copies as run at once. A storm that
/// meets all that run at once is one reason to halve, not as many: what was sent before the last halving says nothing new.
struct Gate {
    limit: AtomicU32,
    good: AtomicU32,
    turn: AtomicU32,
}

impl Gate {
    fn new(limit: u32) -> Self {
        Self {
            limit: AtomicU32::new(limit.max(1)),
            good: AtomicU32::new(0),
            turn: AtomicU32::new(0),
        }
    }

    /// The whole run is polled by one task: nothing moves between these reads and writes.
    fn room(&self, asked: u32) -> usize {
        let mut limit = self.limit.load(Ordering::Relaxed).min(asked.max(1));
        if self.good.load(Ordering::Relaxed) >= limit.saturating_mul(ROUNDS) && limit < asked {
            limit += 1;
            self.good.store(0, Ordering::Relaxed);
        }
        self.limit.store(limit, Ordering::Relaxed);
        limit as usize
    }

    fn turn(&self) -> u32 {
        self.turn.load(Ordering::Relaxed)
    }

    fn slower(&self, turn: u32) {
        if self.turn() == turn {
            self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
            let limit = self.limit.load(Ordering::Relaxed);
            self.limit.store((limit / 2).max(1), Ordering::Relaxed);
            self.good.store(0, Ordering::Relaxed);
        }
    }

    fn good(&self) {
        self.good.fetch_add(1, Ordering::Relaxed);
    }
}

/// A token bucket of bytes, one second deep. A file larger than the bucket runs when the bucket is full and leaves a
/// debt, so that the average holds.
struct Pace {
    tokens: f64,
    at: Duration,
}

impl Pace {
    fn new(host: &dyn CopyHost, credit: i64) -> Self {
        Self {
            tokens: credit as f64,
            at: host.clock().mono(),
        }
    }

    fn wait_for(&mut self, host: &dyn CopyHost, bytes: u64) -> Duration {
        let now = host.clock().mono();
        let passed = now.saturating_sub(self.at);
        self.at = now;
        let Some(rate) = host.throttle().map(|r| r.max(1) as f64) else {
            self.tokens = 0.0;
            return Duration::ZERO;
        };
        self.tokens = (self.tokens + rate * passed.as_secs_f64()).min(rate);
        let need = (bytes as f64).min(rate);
        if self.tokens + 0.5 >= need {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((need - self.tokens) / rate).max(Duration::from_millis(1))
    }

    fn spend(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }
}

/// The files whose source is not among `there`, or has another size there: all of them, in order.
#[must_use]
pub fn missing<'a>(
    files: &'a [CopyFile],
    there: &BTreeMap<ObjectKey, u64>,
) -> Vec<(&'a CopyFile, Option<u64>)> {
    files
        .iter()
        .filter_map(|file| match there.get(&file.from) {
            Some(size) if *size == file.size => None,
            other => Some((file, other.copied())),
        })
        .collect()
}
