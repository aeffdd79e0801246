//! Keeps the reference index while the engine is attached: follows the snapshot records of the catalog, reads what is not known yet, tries
//! again what could not be read. Only reads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::clock::Clock;
use super::handle::Conn;
use super::ids::{MetaRev, UnixMs};
use super::jobs::references::Keeper;
use super::model::catalog::Catalog;
use super::model::references::{Extent, Record, refers};
use super::objects::ObjectRead;

/// A command that only lists something has ended by then: it needs nothing of this.
const IDS_AFTER: Duration = Duration::from_millis(300);
/// Manifests are many; whoever stays this long wants to know.
const FILES_AFTER: Duration = Duration::from_secs(2);
/// Longest wait for the catalog of the moment that the connection speaks of.
const WHOLE: Duration = Duration::from_secs(1);
/// The shortest pause after a store that did not answer.
const SILENT: Duration = Duration::from_secs(5);

/// What the task looks at.
pub struct Follower {
    /// Where it is kept.
    pub keeper: Keeper,
    /// The bucket.
    pub objects: ObjectRead,
    /// The records.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// Whether the catalog is whole.
    pub conn: watch::Receiver<Conn>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Follower {
    /// Runs until the catalog's owner is gone.
    pub async fn run(mut self) {
        let whole = |conn: &Conn| matches!(conn, Conn::Live { .. } | Conn::Static { .. });
        let at = match self.conn.wait_for(whole).await.as_deref() {
            Ok(Conn::Live { rev, .. } | Conn::Static { rev }) => *rev,
            Ok(_) => MetaRev(0),
            Err(_) => return,
        };
        // An index of no snapshots would be taken for one in which every snapshot is known: a catalog must have come, however late. It may
        // be a moment behind the connection.
        let listed = |catalog: &Arc<Catalog>| at == MetaRev(0) || catalog.rev > MetaRev(0);
        if self.catalog.wait_for(listed).await.is_err() {
            return;
        }
        let clock = self.clock.clone();
        tokio::select! {
            _ = self.catalog.wait_for(|catalog| catalog.rev >= at) => {}
            () = clock.sleep(WHOLE) => {}
        }
        self.records();
        self.clock.sleep(IDS_AFTER).await;
        let patient = self.clock.mono() + FILES_AFTER;
        loop {
            self.records();
            let now = self.clock.now();
            let index = self.keeper.now();
            let mut due = index.due(now);
            // Ids of all at once; manifests of one after the other, so that a new snapshot need not wait for those of all others.
            if due
                .first()
                .is_some_and(|(_, extent)| *extent == Extent::Ids)
            {
                due.retain(|(_, extent)| *extent == Extent::Ids);
            } else {
                due.truncate(1);
            }
            let early = patient.saturating_sub(self.clock.mono());
            let wait = match due.first() {
                Some((_, Extent::Files)) if early > Duration::ZERO => Some(early),
                Some(_) => {
                    let read = self.keeper.read(&self.objects, due, now).await;
                    if read.is_ok() {
                        continue;
                    }
                    Some(SILENT)
                }
                None => index.next_retry().map(|again| until(now, again)),
            };
            let clock = self.clock.clone();
            let pause = async {
                match wait {
                    Some(wait) => clock.sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.catalog.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    }

    fn records(&mut self) {
        let catalog = self.catalog.borrow_and_update().clone();
        let records = catalog
            .snapshots
            .values()
            .filter(|s| refers(s.state.number))
            .map(|s| Record {
                id: s.id,
                collection: s.collection,
                name: s.name.clone(),
                location: s.location.as_str().into(),
            });
        self.keeper.follow(records, self.clock.now());
    }
}

fn until(now: UnixMs, then: UnixMs) -> Duration {
    let ms = u64::try_from(then.0.saturating_sub(now.0)).unwrap_or(0);
    Duration::from_millis(ms).max(Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::engine::clock::SystemClock;
    use crate::engine::objects::from_store;

    /// A first listing that takes long: `gc references` must wait for it, not answer that there is nothing.
    #[tokio::test]
    async fn nothing_is_known_before_the_catalog_has_come() {
        let (rev, heard) = (MetaRev(5), UnixMs(1));
        let (catalog, seen) = watch::channel(Arc::new(Catalog::default()));
        let (_live, conn) = watch::channel(Conn::Live { rev, heard });
        let clock = Arc::new(SystemClock::new());
        let keeper = Keeper::default();
        let follower = Follower {
            keeper: keeper.clone(),
            objects: from_store(Arc::new(InMemory::new()), "files").0,
            catalog: seen,
            conn,
            clock: clock.clone(),
        };
        let following = tokio::spawn(follower.run());
        clock.sleep(WHOLE + Duration::from_millis(300)).await;
        assert!(!keeper.now().known && !keeper.now().is_settled());
        let mut whole = Catalog::default();
        whole.rev = rev;
        catalog.send_replace(Arc::new(whole));
        assert!(keeper.watch().wait_for(|index| index.known).await.is_ok());
        following.abort();
    }
}
