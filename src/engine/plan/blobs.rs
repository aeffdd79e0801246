//! Object writes: under the fence, repeated until the outcome is known (laws 3 and 4).

use bytes::Bytes;

use super::execute::Executor;
use super::retry::{Backoff, TRIES};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::ObjectKey;
use crate::engine::objects::{Copied, ObjectRead, ObjectWrite, Origin, PutMode};
use crate::engine::profile::Elsewhere;

/// Read back to settle a put only up to this size; above it, it is put again.
const COMPARE: u64 = 8 << 20;

fn doubtful(e: &Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown
}

/// Another store that objects may be written to, under the same fence.
#[derive(Clone)]
pub struct Beside(ObjectWrite);

impl Beside {
    /// The right to read it.
    pub fn read(&self) -> &ObjectRead {
        self.0.read()
    }
}

impl Executor {
    /// The store that `there` names.
    pub fn beside(&self, there: &Elsewhere) -> Result<Beside> {
        self.objects.elsewhere(there).map(Beside)
    }

    /// The cluster's own store, or the other one.
    fn store<'a>(&'a self, beside: Option<&'a Beside>) -> &'a ObjectWrite {
        beside.map_or(&self.objects, |b| &b.0)
    }

    /// As [`put_at`](Self::put_at) in the cluster's own store.
    pub async fn put_object(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        self.put_at(None, key, bytes).await
    }

    /// Makes the object `key` consist of `bytes`. Putting the same bytes twice is the same as once, so a doubtful outcome is
    /// settled by looking, and by putting again.
    pub async fn put_at(
        &self,
        beside: Option<&Beside>,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<()> {
        let store = self.store(beside);
        let mut backoff = Backoff::new(TRIES);
        loop {
            self.scope().check()?;
            self.fence.check().await?;
            match store.put(key, bytes.clone(), PutMode::Overwrite).await {
                Err(e) if doubtful(&e) => {
                    if holds(store.read(), key, &bytes).await {
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

    /// One try to make `to` a copy of an object of `source`, which may be another store; compared when this returns. For the copy pool,
    /// which tries again itself and slows down when the store asks for it. Copying twice is the same as once.
    pub async fn copy_object(
        &self,
        beside: Option<&Beside>,
        source: &ObjectRead,
        from: Origin<'_>,
        to: &ObjectKey,
    ) -> Result<Copied> {
        self.scope().check()?;
        self.fence.check().await?;
        let store = self.store(beside);
        store.copy_from(&*self.clock, source, from, to).await
    }

    /// Gives up those of the uploads and copies below `prefix` that a crash left unfinished and that are `mine`. How many; `None` when the
    /// store cannot tell. Only for keys that nobody copies to now.
    pub async fn give_up_unfinished(
        &self,
        beside: Option<&Beside>,
        prefix: &ObjectKey,
        mine: &(dyn Fn(&ObjectKey) -> bool + Sync),
    ) -> Result<Option<usize>> {
        let store = self.store(beside);
        let Some(mut found) = store.unfinished(prefix).await? else {
            return Ok(None);
        };
        found.retain(|upload| mine(&upload.key));
        for upload in &found {
            self.scope().check()?;
            self.fence.check().await?;
            store.give_up(upload).await?;
        }
        Ok(Some(found.len()))
    }

    /// As [`delete_at`](Self::delete_at) in the cluster's own store.
    pub async fn delete_object(&self, key: &ObjectKey) -> Result<bool> {
        self.delete_at(None, key).await
    }

    /// Removes exactly one object. `false` when it was not there before the first try.
    pub async fn delete_at(&self, beside: Option<&Beside>, key: &ObjectKey) -> Result<bool> {
        let mut backoff = Backoff::new(TRIES);
        let mut tried = false;
        loop {
            self.scope().check()?;
            self.fence.check().await?;
            match self.store(beside).delete(key).await {
                Ok(there) => return Ok(there || tried),
                Err(e) if doubtful(&e) && backoff.again(&*self.clock).await => tried = true,
                Err(e) => return Err(e),
            }
        }
    }
}

async fn holds(objects: &ObjectRead, key: &ObjectKey, bytes: &Bytes) -> bool {
    let same_size = objects
        .head(key)
        .await
        .is_ok_and(|m| m.size == bytes.len() as u64 && m.size <= COMPARE);
    same_size && objects.get(key).await.is_ok_and(|got| got == bytes)
}
