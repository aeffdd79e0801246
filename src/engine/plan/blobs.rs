//! Object writes: under the fence, repeated until the outcome is known (laws 3 and 4).

use bytes::Bytes;

use super::execute::Executor;
use super::retry::{Backoff, TRIES, calm};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::ObjectKey;
use crate::engine::objects::PutMode;

/// Read back to settle a put only up to this size; above it, it is put again.
const COMPARE: u64 = 8 << 20;

fn doubtful(e: &Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown
}

impl Executor {
    /// Makes the object `key` consist of `bytes`. Putting the same bytes twice is the same as once, so a doubtful outcome is
    /// settled by looking, and by putting again.
    pub async fn put_object(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        let mut backoff = Backoff::new(TRIES);
        loop {
            self.fence.check().await?;
            match self
                .objects
                .put(key, bytes.clone(), PutMode::Overwrite)
                .await
            {
                Err(e) if doubtful(&e) => {
                    if self.holds(key, &bytes).await {
                        return Ok(());
                    }
                    if !backoff.again(&*self.clock).await {
                        return Err(e);
                    }
                }
                done => return done,
            }
        }
    }

    async fn holds(&self, key: &ObjectKey, bytes: &Bytes) -> bool {
        let same_size = self
            .objects()
            .head(key)
            .await
            .is_ok_and(|m| m.size == bytes.len() as u64 && m.size <= COMPARE);
        same_size && self.objects().get(key).await.is_ok_and(|got| got == bytes)
    }

    /// Makes `to` a copy of `from`, inside the store. Returns its bytes. `Corrupt` when the copy ends with another size.
    pub async fn copy_object(&self, from: &ObjectKey, to: &ObjectKey) -> Result<u64> {
        let source = calm(&*self.clock, || self.objects().head(from)).await?;
        let mut backoff = Backoff::new(TRIES);
        loop {
            self.fence.check().await?;
            match self.objects.copy(from, to).await {
                Ok(()) => break,
                Err(e) if doubtful(&e) => {
                    let target = self.objects().head(to).await;
                    let tag = source.etag.is_some();
                    if target.is_ok_and(|t| tag && t.etag == source.etag && t.size == source.size) {
                        return Ok(source.size);
                    }
                    if !backoff.again(&*self.clock).await {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        let target = calm(&*self.clock, || self.objects().head(to)).await?;
        if target.size == source.size {
            return Ok(source.size);
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "copy {to} has {} bytes, its source {from} has {}",
                target.size, source.size
            ),
        )
        .fix("the object store is not telling the truth: check its health before anything else"))
    }

    /// One try of a copy inside the store, for a caller that tries again itself, slows down when the store asks for it, and compares
    /// sizes by listing afterwards. `NotFound` when the source is missing. Copying twice is the same as once.
    pub async fn copy_once(&self, from: &ObjectKey, to: &ObjectKey) -> Result<()> {
        self.fence.check().await?;
        self.objects.copy(from, to).await
    }

    /// Removes exactly one object. `false` when it was not there before the first try.
    pub async fn delete_object(&self, key: &ObjectKey) -> Result<bool> {
        let mut backoff = Backoff::new(TRIES);
        let mut tried = false;
        loop {
            self.fence.check().await?;
            match self.objects.delete(key).await {
                Ok(there) => return Ok(there || tried),
                Err(e) if doubtful(&e) && backoff.again(&*self.clock).await => tried = true,
                Err(e) => return Err(e),
            }
        }
    }
}
