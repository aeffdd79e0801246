//! Metadata as it stood at one revision, whatever is written meanwhile.

use async_trait::async_trait;

use crate::engine::error::Result;
use crate::engine::ids::MetaRev;
use crate::engine::meta::{MetaRead, MetaStatus, Page, RangeOpts, Span, WatchStream};

/// Every range is read at one revision; `Compacted` when the store has forgotten it.
pub struct Standing<'a> {
    meta: &'a dyn MetaRead,
    at: MetaRev,
}

impl<'a> Standing<'a> {
    /// As of now.
    pub async fn now(meta: &'a dyn MetaRead, any: &Span) -> Result<Self> {
        let one = RangeOpts {
            limit: 1,
            keys_only: true,
            ..RangeOpts::default()
        };
        let at = meta.range(any, one).await?.rev;
        Ok(Self { meta, at })
    }

    /// The revision.
    #[must_use]
    pub fn at(&self) -> MetaRev {
        self.at
    }
}

#[async_trait]
impl MetaRead for Standing<'_> {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        // Revision 0 is a store that was never written to.
        let at = opts.at.or((self.at > MetaRev(0)).then_some(self.at));
        self.meta.range(span, RangeOpts { at, ..opts }).await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        self.meta.watch(span, from).await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.meta.status().await
    }
}
