//! On whose behalf a store is asked, and until when (`spec/lifecycle.md` §7).
//!
//! Nothing outside this room can ask a store without a scope: a store that is open is held as [`MetaReader`](super::scoped::MetaReader)
//! or [`MetaWriter`](super::scoped::MetaWriter), which are bound to one, and there is no way back to the bare store.
//!
//! - A **request**, a **job's step** and a **loop** have scopes of their own, each a child of the scope it runs under: what ends a
//!   scope ends those below it.
//! - Cancelled or out of time before a call: nothing is sent. During a read: it is given up. During a write:
//!   [`OutcomeUnknown`](ErrorKind::OutcomeUnknown), and whoever sent it settles it by what it can read before it decides anything.
//! - What must end once it has begun (settling, giving a lease or a lock back) runs in a [`detached`](Scope::detached) scope, which has
//!   a deadline of its own and nothing to do with who asked.
//! - Over the caller's own deadline is [`DeadlineExceeded`](ErrorKind::DeadlineExceeded); a store that does not answer in *its* time is
//!   [`Unreachable`](ErrorKind::Unreachable) or [`OutcomeUnknown`](ErrorKind::OutcomeUnknown).

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::book::Book;
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};

/// Time for what must end once it has begun: longer than an election of etcd's, and as long as a silent writer keeps the root.
pub const DETACHED: Duration = Duration::from_secs(15);

/// Cheap to clone; a clone is the same scope.
#[derive(Clone)]
pub struct Scope(Arc<Inner>);

struct Inner {
    world: Arc<World>,
    origin: Arc<str>,
    cancel: CancellationToken,
    /// [`Clock::mono`].
    deadline: Option<Duration>,
    span: tracing::Span,
}

/// What all scopes of one engine share.
struct World {
    clock: Arc<dyn Clock>,
    book: Arc<Book>,
    /// Ends what is detached, too.
    end: CancellationToken,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("origin", &self.0.origin)
            .field("over", &self.is_over())
            .finish_non_exhaustive()
    }
}

impl Scope {
    /// The scope of a whole engine, with a book of its own. All others come from it.
    #[must_use]
    pub fn root(clock: Arc<dyn Clock>, origin: impl Into<Arc<str>>) -> Self {
        let world = Arc::new(World {
            clock,
            book: Arc::default(),
            end: CancellationToken::new(),
        });
        let origin = origin.into();
        Self(Arc::new(Inner {
            world,
            span: tracing::info_span!(parent: None, "scope", %origin),
            origin,
            cancel: CancellationToken::new(),
            deadline: None,
        }))
    }

    fn below(
        &self,
        origin: Arc<str>,
        cancel: CancellationToken,
        deadline: Option<Duration>,
        span: &tracing::Span,
    ) -> Self {
        Self(Arc::new(Inner {
            world: self.0.world.clone(),
            span: tracing::info_span!(parent: span, "scope", %origin),
            origin,
            cancel,
            deadline,
        }))
    }

    /// A part of this one with an origin of its own, in words: `job 47 drop snapshot: delete files`.
    #[must_use]
    pub fn child(&self, origin: impl Into<Arc<str>>) -> Self {
        let (cancel, deadline) = (self.0.cancel.child_token(), self.0.deadline);
        self.below(origin.into(), cancel, deadline, &self.0.span)
    }

    /// A part of this one that may take so long, and no longer than this one.
    #[must_use]
    pub fn at_most(&self, how_long: Duration) -> Self {
        let end = self.0.world.clock.mono().saturating_add(how_long);
        let deadline = Some(self.0.deadline.map_or(end, |d| d.min(end)));
        let (origin, cancel) = (self.0.origin.clone(), self.0.cancel.child_token());
        self.below(origin, cancel, deadline, &self.0.span)
    }

    /// What `by` has begun and this one outlives: it ends with this one, not with `by`, and traces lead to `by`.
    #[must_use]
    pub fn begun_by(&self, by: &Self, origin: impl Into<Arc<str>>) -> Self {
        let (cancel, deadline) = (self.0.cancel.child_token(), self.0.deadline);
        self.below(origin.into(), cancel, deadline, &by.0.span)
    }

    /// For what must end once it has begun: goes on when this one is cancelled, for [`DETACHED`] at most.
    #[must_use]
    pub fn detached(&self, what: &str) -> Self {
        let end = self.0.world.clock.mono().saturating_add(DETACHED);
        let origin = format!("{}: {what}", self.0.origin);
        let cancel = self.0.world.end.child_token();
        self.below(origin.into(), cancel, Some(end), &self.0.span)
    }

    /// On whose behalf, in words.
    #[must_use]
    pub fn origin(&self) -> &Arc<str> {
        &self.0.origin
    }

    /// For the trace of what is done.
    #[must_use]
    pub fn span(&self) -> &tracing::Span {
        &self.0.span
    }

    /// Calls under way, and what came of those before.
    #[must_use]
    pub fn book(&self) -> &Arc<Book> {
        &self.0.world.book
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.0.world.clock
    }

    /// Ends it, and everything below it.
    pub fn cancel(&self) {
        self.0.cancel.cancel();
    }

    /// Ends it when it is cancelled; cancelling it ends the scope.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.0.cancel
    }

    /// Ends every scope of the engine: the detached ones when they are done, or after `grace`. Only then it returns; nothing is asked
    /// of a store any more then.
    pub async fn stop(&self, grace: Duration) {
        self.cancel();
        tokio::select! {
            () = self.book().quiet() => {}
            () = self.clock().sleep(grace) => {}
        }
        self.0.world.end.cancel();
        self.book().quiet().await;
    }

    /// Whether nothing may be asked any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.check().is_err()
    }

    /// `Cancelled` or `DeadlineExceeded` once it is over.
    pub fn check(&self) -> Result<()> {
        if self.0.cancel.is_cancelled() {
            return Err(self.cancelled());
        }
        match self.0.deadline {
            Some(end) if self.0.world.clock.mono() >= end => Err(self.late()),
            _ => Ok(()),
        }
    }

    pub(super) fn cancelled(&self) -> Error {
        let what = format!("{} was stopped", self.0.origin);
        Error::new(ErrorKind::Cancelled, what)
    }

    fn late(&self) -> Error {
        let what = format!("the time that {} was given is over", self.0.origin);
        Error::new(ErrorKind::DeadlineExceeded, what).fix("allow more time, or ask for less")
    }

    /// Waits until it is over; why.
    pub async fn over(&self) -> Error {
        let late = async {
            match self.0.deadline {
                Some(end) => {
                    let clock = &self.0.world.clock;
                    clock.sleep(end.saturating_sub(clock.mono())).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.0.cancel.cancelled() => self.cancelled(),
            () = late => self.late(),
        }
    }

    /// Waits for something that may be given up, e.g. for a lock, as long as the scope lasts.
    pub async fn wait<T>(&self, what: impl Future<Output = T>) -> Result<T> {
        self.check()?;
        tokio::select! {
            biased;
            done = what => Ok(done),
            why = self.over() => Err(why),
        }
    }
}
