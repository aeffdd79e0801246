//! Reflector → catalog → screen (law 8). One task owns the catalog; everybody else sees immutable snapshots of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};

use super::clock::Clock;
use super::error::Error;
use super::handle::{Conn, Notice};
use super::ids::MetaRev;
use super::meta::reflector::ReflectorEvent;
use super::meta::{Event, Page};
use super::model::catalog::Catalog;
use super::profile::Roots;

/// A changed catalog is shown after this long at the latest.
pub const WINDOW: Duration = Duration::from_millis(100);
/// It is shown earlier when nothing has changed for this long.
pub const QUIET: Duration = Duration::from_millis(20);
/// Events taken in before other tasks get their turn: a few milliseconds.
const SLICE: usize = 2_000;

/// The senders that make up what a [`Handle`](super::handle::Handle) watches.
#[derive(Clone)]
pub struct Shown {
    /// The read model.
    pub catalog: watch::Sender<Arc<Catalog>>,
    /// The connection.
    pub conn: watch::Sender<Conn>,
    /// Facts.
    pub notices: broadcast::Sender<Notice>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Shown {
    /// Says something that happened once. Nobody listening is no error.
    pub fn tell(&self, bad: bool, text: impl Into<String>) {
        let at = self.clock.now();
        let text = text.into();
        let _ = self.notices.send(Notice { at, bad, text });
    }
}

/// The catalog and how far it may be shown.
pub struct Live {
    shown: Shown,
    roots: Roots,
    catalog: Catalog,
    /// Holds one moment of the store; not so before the first listing ends and while history is listed again.
    is_whole: bool,
    /// It was whole once: from then on a lost connection is *stale*, not *connecting*.
    was_whole: bool,
    attempt: u32,
    why: Option<Error>,
    /// [`Clock::mono`] when the oldest and the newest change came that are not shown yet.
    unseen: Option<(Duration, Duration)>,
}

impl Live {
    /// Shows nothing yet.
    #[must_use]
    pub fn new(shown: Shown, roots: Roots) -> Self {
        Self {
            shown,
            roots,
            catalog: Catalog::default(),
            is_whole: false,
            was_whole: false,
            attempt: 0,
            why: None,
            unseen: None,
        }
    }

    /// Shows a store that will not change.
    pub async fn fixed(mut self, page: Page) {
        let rev = page.rev;
        let events: Vec<Event> = page.kvs.into_iter().map(Event::Put).collect();
        self.take(rev, &events).await;
        self.catalog.rev = self.catalog.rev.max(rev);
        self.is_whole = true;
        self.publish();
        self.shown.conn.send_replace(Conn::Static { rev });
    }

    /// Follows until the reflector ends or nobody looks any more.
    pub async fn follow(mut self, mut events: mpsc::Receiver<ReflectorEvent>) {
        loop {
            let due = self.due();
            let clock = self.shown.clock.clone();
            let wait = async {
                match due {
                    Some(how_long) => clock.sleep(how_long).await,
                    None => std::future::pending().await,
                }
            };
            // Events first: a burst is one picture, not many.
            let event = tokio::select! {
                biased;
                () = self.shown.catalog.closed() => return,
                event = events.recv() => event,
                () = wait => {
                    self.publish();
                    continue;
                }
            };
            match event {
                Some(event) => self.on(event).await,
                None => return,
            }
            if self.due() == Some(Duration::ZERO) {
                self.publish();
            }
        }
    }

    /// When what has changed must be shown; `None` when nothing has, or when it may not be shown.
    fn due(&self) -> Option<Duration> {
        let (oldest, newest) = self.unseen.filter(|_| self.is_whole)?;
        let at = (oldest + WINDOW).min(newest + QUIET);
        Some(at.saturating_sub(self.shown.clock.mono()))
    }

    async fn on(&mut self, event: ReflectorEvent) {
        match event {
            ReflectorEvent::Connecting { attempt, next_in } => {
                self.attempt = attempt;
                if self.was_whole {
                    self.shown.conn.send_if_modified(|conn| match conn {
                        Conn::Stale { next, .. } => {
                            *next = next_in;
                            true
                        }
                        _ => false,
                    });
                } else {
                    self.connecting();
                }
            }
            ReflectorEvent::Syncing { keys } => {
                // A listing after a loss is still a stale screen, and says so until it is whole again.
                if !self.was_whole {
                    let keys = keys as u64;
                    self.shown.conn.send_replace(Conn::Syncing { keys });
                }
            }
            ReflectorEvent::Batch(batch) => self.take(batch.rev, &batch.events).await,
            ReflectorEvent::Relist { why } => {
                self.is_whole = false;
                self.shown.tell(
                    false,
                    format!(
                        "history was compacted before it was seen ({}); listing again",
                        why.what()
                    ),
                );
            }
            ReflectorEvent::Live { rev, at } => {
                self.is_whole = true;
                self.catalog.rev = self.catalog.rev.max(rev);
                let came_back = self.was_whole && self.why.take().is_some();
                if !self.was_whole || came_back {
                    // Whoever sees Live must see what it stands for.
                    self.publish();
                }
                self.was_whole = true;
                self.why = None;
                let heard = at;
                self.shown.conn.send_replace(Conn::Live { rev, heard });
                if came_back {
                    self.shown
                        .tell(false, format!("connected again, at revision {rev}"));
                }
            }
            ReflectorEvent::Stale { since, why } => {
                let first = self.why.is_none();
                self.why = Some(why.clone());
                if !self.was_whole {
                    self.connecting();
                    return;
                }
                // What had come before the loss is still true, and is the last that will come for a while.
                if self.is_whole && self.unseen.is_some() {
                    self.publish();
                }
                if first {
                    self.shown.tell(true, format!("stale: {why}"));
                }
                let next = Duration::ZERO;
                self.shown
                    .conn
                    .send_replace(Conn::Stale { since, why, next });
            }
        }
    }

    fn connecting(&self) {
        let attempt = self.attempt.max(1);
        let why = self.why.clone();
        self.shown
            .conn
            .send_replace(Conn::Connecting { attempt, why });
    }

    async fn take(&mut self, rev: MetaRev, events: &[Event]) {
        for slice in events.chunks(SLICE) {
            self.catalog.apply(&self.roots, slice);
            if events.len() > SLICE {
                tokio::task::yield_now().await;
            }
        }
        if self.is_whole {
            self.catalog.rev = self.catalog.rev.max(rev);
        }
        if !events.is_empty() {
            let now = self.shown.clock.mono();
            let oldest = self.unseen.map_or(now, |(oldest, _)| oldest);
            self.unseen = Some((oldest, now));
        }
    }

    fn publish(&mut self) {
        self.unseen = None;
        self.shown
            .catalog
            .send_replace(Arc::new(self.catalog.clone()));
    }
}
