//! A store bound to a scope: the only way to ask it anything from outside this room.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tracing::Instrument;

use super::scope::Scope;
use super::{
    KeyValue, Limits, MetaRead, MetaStatus, MetaWrite, Outcome, Page, RangeOpts, Span, Txn,
    WatchStream,
};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{MetaKey, MetaRev};

/// A store and on whose behalf it is asked. Cheap to clone.
pub struct Scoped<S: ?Sized> {
    store: Arc<S>,
    scope: Scope,
    /// Every range is read at this revision, unless it names one itself.
    at: Option<MetaRev>,
}

/// The right to read, under a scope.
pub type MetaReader = Scoped<dyn MetaRead>;
/// The right to write, under a scope. Handed to `plan` only (law 2).
pub type MetaWriter = Scoped<dyn MetaWrite>;

impl<S: ?Sized> Clone for Scoped<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            scope: self.scope.clone(),
            at: self.at,
        }
    }
}

impl<S: ?Sized> Scoped<S> {
    /// Binds a store.
    pub fn new(store: Arc<S>, scope: &Scope) -> Self {
        Self {
            store,
            scope: scope.clone(),
            at: None,
        }
    }

    /// The same on behalf of another.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
            ..self.clone()
        }
    }

    /// On whose behalf.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// One call. The future is not polled, so nothing is sent, once the scope is over.
    async fn call<T>(
        &self,
        (op, key, write): (&'static str, &[u8], bool),
        sent: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let scope = &self.scope;
        let about = |e: Error| match key {
            [] => e.with("call", op),
            key => e.with("call", op).with("key", String::from_utf8_lossy(key)),
        };
        if let Err(why) = scope.check() {
            scope.book().unsent(why.kind());
            return Err(about(why));
        }
        let since = scope.clock().mono();
        let entry = scope.book().open(op, key, scope.origin(), since, write);
        let span = tracing::debug_span!(parent: scope.span(), "meta", op, key = %String::from_utf8_lossy(key));
        let done = tokio::select! {
            biased;
            done = sent.instrument(span) => done,
            why = scope.over() => Err(about(if write { in_doubt(&why) } else { why })),
        };
        entry.close(done.as_ref().err().map(Error::kind));
        done
    }
}

/// A write that was given up while it was under way.
fn in_doubt(why: &Error) -> Error {
    let what = format!(
        "{} while this was being written: it may have happened",
        why.what()
    );
    Error::new(ErrorKind::OutcomeUnknown, what)
        .caused_by(why.clone().without_fix())
        .fix("it is looked up before anything else is decided")
}

#[async_trait]
impl<S: MetaRead + ?Sized> MetaRead for Scoped<S> {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        let at = opts.at.or(self.at);
        let sent = self.store.range(span, RangeOpts { at, ..opts });
        self.call(("range", &span.start, false), sent).await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        let start = span.start.clone();
        let sent = self.store.watch(span, from);
        let stream = self.call(("watch", &start, false), sent).await?;
        let (scope, ended) = (self.scope.clone(), self.scope.token().clone());
        // What ended by itself is over; only what the scope has cut off says so.
        let why = futures::stream::once(async move {
            let is_cut = scope.token().is_cancelled();
            is_cut.then(|| Err(scope.cancelled()))
        });
        Ok(stream
            .take_until(ended.cancelled_owned())
            .chain(why.filter_map(std::future::ready))
            .boxed())
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.call(("status", &[], false), self.store.status()).await
    }
}

/// The same without the trait at hand.
impl<S: MetaRead + ?Sized> Scoped<S> {
    /// As [`MetaRead::range`].
    pub async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        MetaRead::range(self, span, opts).await
    }

    /// As [`MetaRead::watch`]; it ends with the scope, with the reason.
    pub async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        MetaRead::watch(self, span, from).await
    }

    /// As [`MetaRead::status`].
    pub async fn status(&self) -> Result<MetaStatus> {
        MetaRead::status(self).await
    }

    /// As [`MetaRead::get`].
    pub async fn get(&self, key: &MetaKey) -> Result<Option<KeyValue>> {
        MetaRead::get(self, key).await
    }

    /// As [`MetaRead::range_all`].
    pub async fn range_all(&self, span: &Span) -> Result<Page> {
        MetaRead::range_all(self, span).await
    }
}

impl MetaReader {
    /// The store as it stands now, whatever is written meanwhile, and its revision. Ranges answer `Compacted` when it has forgotten
    /// that. `any` is a span that may be read.
    pub async fn standing(&self, any: &Span) -> Result<(Self, MetaRev)> {
        let one = RangeOpts {
            limit: 1,
            keys_only: true,
            ..RangeOpts::default()
        };
        let rev = self.range(any, one).await?.rev;
        // Revision 0 is a store that was never written to.
        let at = Some(rev).filter(|rev| *rev > MetaRev(0));
        Ok((Self { at, ..self.clone() }, rev))
    }
}

impl MetaWriter {
    /// The right to read, under the same scope.
    #[must_use]
    pub fn reader(&self) -> MetaReader {
        let store: Arc<dyn MetaRead> = self.store.clone();
        Scoped {
            store,
            scope: self.scope.clone(),
            at: self.at,
        }
    }

    /// As [`MetaWrite::txn`]. One that writes nothing is a question: giving it up leaves no doubt.
    pub async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let write = !txn.writes.is_empty();
        let key = txn
            .writes
            .first()
            .map_or_else(Default::default, |w| w.key().0.clone());
        self.call(("txn", &key, write), self.store.txn(txn)).await
    }

    /// As [`MetaWrite::limits`].
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.store.limits()
    }

    /// As [`MetaWrite::grant`]. Given up, the lease runs out by itself: nothing hangs on it yet.
    pub async fn grant(&self, ttl: Duration) -> Result<i64> {
        self.call(("grant", &[], false), self.store.grant(ttl))
            .await
    }

    /// As [`MetaWrite::keep_alive`].
    pub async fn keep_alive(&self, lease: i64) -> Result<()> {
        self.call(("keep alive", &[], false), self.store.keep_alive(lease))
            .await
    }

    /// As [`MetaWrite::revoke`].
    pub async fn revoke(&self, lease: i64) -> Result<()> {
        self.call(("revoke", &[], true), self.store.revoke(lease))
            .await
    }
}
