//! Watch and list into one stream of changes (law 8).
//!
//! A consumer that applies every [`ReflectorEvent::Batch`] to a map, in order, holds what the store held: no row that
//! never was, none missed. The order of work makes it so:
//!
//! 1. Read the head `h` and open the watch from `h + 1`, before anything is listed: no change can fall between.
//! 2. List page by page, each at the head of its moment, so that nothing depends on an old revision staying uncompacted.
//!    Per key the higher revision wins, deletions included.
//! 3. When the watch has passed the newest page, the picture is that of one moment: [`ReflectorEvent::Live`].
//! 4. When the connection is lost, go on at the last revision + 1. When that is compacted, list again and compare, so that
//!    deletions in the gap are seen.
//!
//! Whether the watch *has* passed a revision is not always told: the span may be quiet while others write, and old etcd
//! servers send no progress that can be trusted. Then the keys alone are listed at that revision and compared
//! (`Picture::missing`); what is missing must still come.

mod picture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::OptionFuture;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::picture::Picture;
use super::{DEFAULT_PAGE, MetaReader, Page, RangeOpts, Span, WatchBatch};
use crate::engine::clock::{Clock, Entropy};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{MetaKey, MetaRev, UnixMs};

/// Events that may wait for a slow consumer; then the reflector waits, and with it the watch.
const QUEUE: usize = 16;
/// First and longest pause between two attempts, before jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long the watch may take to pass a revision before the keys are compared.
const GRACE: Duration = Duration::from_millis(500);
/// How long what is missing after the comparison may take to come.
const OVERDUE: Duration = Duration::from_secs(5);
/// A watch that says nothing at all for this long is asked whether it is behind.
const IDLE: Duration = Duration::from_secs(15);
/// A live connection that held this long was a good one: after it, the pauses start anew.
const HELD: Duration = Duration::from_secs(10);

/// Bytes of keys and values that a page of a long listing should have, and the most keys. etcd walks the index of everything
/// that is still to come for each page, so a million keys in pages of 10,000 cost it five times what they cost in pages of this size.
const PAGE: (usize, usize) = (8 << 20, 50_000);

/// What happened, in order.
#[derive(Clone, Debug)]
pub enum ReflectorEvent {
    /// A connection is being made, after a pause of `next_in`. `attempt` counts from 1 since a connection last held.
    Connecting {
        /// Which attempt.
        attempt: u32,
        /// Pause before it.
        next_in: Duration,
    },
    /// A listing is under way.
    Syncing {
        /// Keys known so far.
        keys: usize,
    },
    /// Changes to apply. After [`ReflectorEvent::Live`] one batch is one revision, and revisions grow; before it pages and changes mix.
    Batch(WatchBatch),
    /// History was compacted away before it was seen: everything is listed again. The map stays, batches correct it.
    Relist {
        /// The error that said so.
        why: Error,
    },
    /// The map is what the store held at `rev`, and the store answered at `at`. Comes when that becomes so and with each sign of life.
    Live {
        /// Revision of the map.
        rev: MetaRev,
        /// Wall time.
        at: UnixMs,
    },
    /// What the map shows may be old since `since`.
    Stale {
        /// When the first failure was met.
        since: UnixMs,
        /// The latest failure.
        why: Error,
    },
}

/// Follows one span of one store.
pub struct Reflector {
    source: MetaReader,
    span: Span,
    /// Keys of the next page; 0 = the store's default.
    page: usize,
    /// Whether the size of a page follows the size of its values.
    grows: bool,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    picture: Picture,
    /// The watch has delivered everything up to here.
    passed: Option<MetaRev>,
    attempt: u32,
    /// When it last became live, on the monotonic clock; `None` while it is not.
    live_since: Option<Duration>,
    stale_since: Option<UnixMs>,
}

/// Why a session ended.
enum End {
    /// The consumer is gone.
    Closed,
    /// It failed.
    Failed(Error),
}

impl From<Error> for End {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

/// How far a session is from live.
enum Phase {
    /// Pages are still to come.
    Listing,
    /// The watch must pass this revision.
    CatchUp(MetaRev),
    /// These changes, up to a revision, must still come.
    Overdue(MetaRev, BTreeMap<MetaKey, Option<MetaRev>>),
    /// Live.
    Live,
}

impl Phase {
    /// How long it may last, or in [`Phase::Live`] how long nothing may come.
    fn patience(&self) -> Duration {
        match self {
            Self::Listing | Self::Live => IDLE,
            Self::CatchUp(_) => GRACE,
            Self::Overdue(..) => OVERDUE,
        }
    }
}

/// A page on its way, also while nobody waits for it. Dropping it gives it up.
struct Fetch(JoinSet<Result<Page>>);

impl Fetch {
    /// May be dropped and called again, until it has answered.
    async fn answer(&mut self) -> Result<Page> {
        match self.0.join_next().await {
            Some(Ok(answer)) => answer,
            Some(Err(e)) => {
                Err(Error::new(ErrorKind::Internal, "reading a page ended early").caused_by(e))
            }
            None => Err(Error::new(
                ErrorKind::Internal,
                "a page was asked for twice",
            )),
        }
    }
}

type Out = mpsc::Sender<ReflectorEvent>;

/// Keys of the page after this one. At most twice as many, for the next values may be larger than these.
fn next_page(page: &Page) -> usize {
    let keys = page.kvs.len();
    let bytes: usize = page
        .kvs
        .iter()
        .map(|kv| kv.key.0.len() + kv.value.len())
        .sum();
    let wanted = PAGE.0.saturating_mul(keys) / bytes.max(1);
    wanted.min(keys * 2).clamp(DEFAULT_PAGE, PAGE.1)
}

async fn say(out: &Out, event: ReflectorEvent) -> Result<(), End> {
    out.send(event).await.map_err(|_| End::Closed)
}

impl Reflector {
    /// Follows `span` of `source`.
    pub fn new(
        source: MetaReader,
        span: Span,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            source,
            span,
            page: 0,
            grows: true,
            clock,
            entropy,
            picture: Picture::default(),
            passed: None,
            attempt: 0,
            live_since: None,
            stale_since: None,
        }
    }

    /// Lists in pages of this many keys.
    #[must_use]
    pub fn page(mut self, keys: usize) -> Self {
        self.page = keys;
        self.grows = false;
        self
    }

    /// Runs as a task of the current runtime until the receiver is dropped, or the scope ends.
    pub fn start(self) -> mpsc::Receiver<ReflectorEvent> {
        let (out, events) = mpsc::channel(QUEUE);
        tokio::spawn(self.run(out));
        events
    }

    /// Runs until the receiver of `out` is dropped, or the scope that the source is bound to ends.
    pub async fn run(mut self, out: Out) {
        let ended = self.source.scope().token().clone();
        loop {
            let why = tokio::select! {
                () = out.closed() => return,
                () = ended.cancelled() => return,
                end = self.session(&out) => match end {
                    Ok(never) => match never {},
                    Err(End::Closed) => return,
                    Err(End::Failed(why)) => why,
                },
            };
            if self.failed(&out, why).await.is_err() {
                return;
            }
        }
    }

    /// Says what failed and prepares the next session.
    async fn failed(&mut self, out: &Out, why: Error) -> Result<(), End> {
        let live = self.live_since.take();
        if live.is_some_and(|since| self.clock.mono().saturating_sub(since) >= HELD) {
            self.attempt = 0;
        }
        let since = *self.stale_since.get_or_insert_with(|| self.clock.now());
        say(
            out,
            ReflectorEvent::Stale {
                since,
                why: why.clone(),
            },
        )
        .await?;
        if why.kind() == ErrorKind::Compacted {
            self.passed = None;
            self.picture.settle();
            say(out, ReflectorEvent::Relist { why }).await?;
        }
        Ok(())
    }

    /// Pause before the next attempt: doubled each time, half of it by chance, so that consoles do not come back in step.
    fn pause(&self) -> Duration {
        if self.attempt <= 1 {
            return Duration::ZERO;
        }
        let doubled = BACKOFF.0 * 2_u32.saturating_pow((self.attempt - 2).min(10));
        let half = doubled.min(BACKOFF.1) / 2;
        let part = self.entropy.next_u64() % 1000;
        half + half * u32::try_from(part).unwrap_or(0) / 1000
    }

    fn opts(&self, at: Option<MetaRev>, keys_only: bool) -> RangeOpts {
        RangeOpts {
            at,
            limit: self.page,
            keys_only,
        }
    }

    async fn head(&self) -> Result<MetaRev> {
        let opts = RangeOpts {
            limit: 1,
            keys_only: true,
            at: None,
        };
        Ok(self.source.range(&self.span, opts).await?.rev)
    }

    /// One connection, from opening the watch to its loss.
    async fn session(&mut self, out: &Out) -> Result<std::convert::Infallible, End> {
        self.attempt = self.attempt.saturating_add(1);
        let (attempt, next_in) = (self.attempt, self.pause());
        say(out, ReflectorEvent::Connecting { attempt, next_in }).await?;
        if !next_in.is_zero() {
            self.clock.sleep(next_in).await;
        }
        let passed = if let Some(passed) = self.passed {
            passed
        } else {
            let head = self.head().await?;
            self.picture.begin(self.span.clone(), head);
            self.passed = Some(head);
            head
        };
        let mut watch = self.source.watch(self.span.clone(), passed.next()).await?;
        let mut phase = if self.picture.rest().is_some() {
            Phase::Listing
        } else {
            // the watch first, then the head: what it must pass cannot lie before it
            Phase::CatchUp(
                self.picture
                    .target()
                    .max(Some(self.head().await?))
                    .unwrap_or(passed),
            )
        };
        let mut page: Option<Fetch> = None;
        let mut since = self.clock.mono();
        loop {
            let before = std::mem::discriminant(&phase);
            phase = self.advance(phase, out).await?;
            if std::mem::discriminant(&phase) != before {
                since = self.clock.mono();
            }
            if let Phase::Listing = phase
                && page.is_none()
            {
                page = self.picture.rest().map(|rest| self.fetch(rest.clone()));
            }
            let waited = self.clock.mono().saturating_sub(since);
            let timer = self.clock.sleep(phase.patience().saturating_sub(waited));
            tokio::select! {
                biased;
                Some(answer) = OptionFuture::from(page.as_mut().map(Fetch::answer)) => {
                    let answer = answer?;
                    // the server reads the next page while this one is taken in
                    page = self.picture.after(&answer).map(|rest| self.fetch(rest));
                    self.list(answer, out).await?;
                }
                item = watch.next() => {
                    self.take(item, &phase, out).await?;
                    if let Phase::Live = phase {
                        since = self.clock.mono();
                    }
                }
                () = timer, if page.is_none() => {
                    phase = self.wonder(phase, out).await?;
                    since = self.clock.mono();
                }
            }
        }
    }

    fn fetch(&self, rest: Span) -> Fetch {
        let source = self.source.clone();
        let opts = self.opts(None, false);
        let mut task = JoinSet::new();
        task.spawn(async move { source.range(&rest, opts).await });
        Fetch(task)
    }

    /// Moves to the next phase when its condition is met.
    async fn advance(&mut self, phase: Phase, out: &Out) -> Result<Phase, End> {
        let passed = self.passed.unwrap_or_default();
        let phase = match phase {
            Phase::Listing => match self.picture.target() {
                Some(target) => Phase::CatchUp(target),
                None => Phase::Listing,
            },
            Phase::Overdue(target, mut missing) => {
                self.picture.arrived(&mut missing);
                if missing.is_empty() {
                    // complete up to there, though the watch has not said so
                    self.passed = Some(passed.max(target));
                    Phase::CatchUp(target)
                } else {
                    Phase::Overdue(target, missing)
                }
            }
            other => other,
        };
        let passed = self.passed.unwrap_or_default();
        match phase {
            Phase::CatchUp(target) | Phase::Overdue(target, _) if passed >= target => {
                self.picture.settle();
                let now = self.clock.mono();
                self.live_since.get_or_insert(now);
                self.stale_since = None;
                self.live(out).await?;
                Ok(Phase::Live)
            }
            other => Ok(other),
        }
    }

    async fn live(&self, out: &Out) -> Result<(), End> {
        let rev = self.passed.unwrap_or_default();
        let at = self.clock.now();
        say(out, ReflectorEvent::Live { rev, at }).await
    }

    /// Something from the watch.
    async fn take(
        &mut self,
        item: Option<Result<WatchBatch>>,
        phase: &Phase,
        out: &Out,
    ) -> Result<(), End> {
        let Some(batch) = item else {
            return Err(
                Error::new(ErrorKind::Unreachable, "the watch ended without a reason").into(),
            );
        };
        let batch = batch?;
        let passed = self.passed.unwrap_or_default();
        if batch.events.is_empty() {
            self.passed = Some(passed.max(batch.rev));
            if let Phase::Live = phase {
                self.live(out).await?;
            }
            return Ok(());
        }
        // delivered twice
        if batch.rev <= passed {
            return Ok(());
        }
        let events = self.picture.changes(batch.rev, batch.events);
        self.passed = Some(batch.rev);
        if !events.is_empty() {
            let rev = batch.rev;
            say(out, ReflectorEvent::Batch(WatchBatch { rev, events })).await?;
        }
        Ok(())
    }

    /// A page of the listing.
    async fn list(&mut self, page: Page, out: &Out) -> Result<(), End> {
        let rev = page.rev;
        if page.more && page.kvs.is_empty() {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the store sent an empty page and says that more follows",
            )
            .into());
        }
        if self.grows && page.more {
            self.page = next_page(&page);
        }
        let Some(events) = self.picture.page(page) else {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!("the store answered with revision {rev}, older than one it had answered with before"),
            )
            .fix("check that all endpoints belong to one cluster")
            .into());
        };
        if !events.is_empty() {
            say(out, ReflectorEvent::Batch(WatchBatch { rev, events })).await?;
        }
        let keys = self.picture.len();
        say(out, ReflectorEvent::Syncing { keys }).await
    }

    /// Nothing came for as long as the phase allows.
    async fn wonder(&mut self, phase: Phase, out: &Out) -> Result<Phase, End> {
        match phase {
            Phase::Listing => Ok(Phase::Listing),
            Phase::Live => {
                let head = self.head().await?;
                if self.passed.is_some_and(|passed| head <= passed) {
                    self.live(out).await?;
                    return Ok(Phase::Live);
                }
                Ok(Phase::CatchUp(head))
            }
            Phase::CatchUp(target) => self.compare(target).await,
            Phase::Overdue(target, missing) => Err(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "the watch is silent, but the store moved on to revision {target}: {} changes did not come",
                    missing.len()
                ),
            )
            .into()),
        }
    }

    /// Lists the keys alone at `target` and compares.
    async fn compare(&mut self, target: MetaRev) -> Result<Phase, End> {
        let mut keys = Vec::new();
        let mut rest = Some(self.span.clone());
        while let Some(span) = rest {
            let page = match self
                .source
                .range(&span, self.opts(Some(target), true))
                .await
            {
                // gone already: the newest revision will do as well
                Err(e) if e.kind() == ErrorKind::Compacted => {
                    return Ok(Phase::CatchUp(target.max(self.head().await?)));
                }
                other => other?,
            };
            rest = match page.kvs.last() {
                Some(last) if page.more => Some(span.after(&last.key)),
                _ => None,
            };
            keys.extend(page.kvs.into_iter().map(|kv| (kv.key, kv.mod_rev)));
        }
        let missing = self.picture.missing(&keys, target);
        Ok(Phase::Overdue(target, missing))
    }
}
