//! What garbage collection may not touch because a snapshot's references are not known, since when, and what that costs. Pure.

use serde::Serialize;

use super::references::{Entry, Status};
use super::rows::View;
use super::totals::state::DROPPED;
use crate::engine::ids::{CollectionId, SnapshotId, UnixMs};

/// A collection of which nothing can be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// The collection.
    pub collection: CollectionId,
    /// Since when.
    pub since: UnixMs,
    /// By these snapshots; those that cannot be read first.
    pub snapshots: Vec<SnapshotId>,
    /// Whether one of them cannot be read; else they have not been read yet.
    pub failed: bool,
    /// Why, of the first.
    pub reason: String,
    /// Dropped segments that wait: so many are held back at most.
    pub segments: u64,
    /// Bytes of their logs.
    pub bytes: u64,
}

/// Every blocked collection.
#[must_use]
pub fn blocked(view: &View<'_>) -> Vec<Blocked> {
    let name = |id: SnapshotId| {
        view.catalog
            .snapshot(id)
            .map_or_else(|| id.to_string(), |s| s.name.to_string())
    };
    view.references
        .blocked()
        .into_iter()
        .map(|(collection, (since, entries))| {
            let failed = |e: &Entry| matches!(e.status, Status::Failed { .. });
            let (mut bad, unread): (Vec<&Entry>, Vec<&Entry>) =
                entries.into_iter().partition(|e| failed(e));
            let is_failed = !bad.is_empty();
            bad.extend(unread);
            let reason = bad.first().map_or_else(String::new, |entry| {
                let why = match &entry.status {
                    Status::Failed { reason, .. } => reason,
                    _ => "not read yet",
                };
                format!("snapshot {}: {why}", name(entry.record.id))
            });
            let sums = view.catalog.sums.collections.get(&collection);
            let dropped = usize::try_from(DROPPED).unwrap_or_default();
            Blocked {
                collection,
                since,
                snapshots: bad.iter().map(|e| e.record.id).collect(),
                failed: is_failed,
                reason,
                segments: sums.map_or(0, |s| u64::from(s.by_state[dropped])),
                bytes: sums.map_or(0, |s| s.dropped_bytes),
            }
        })
        .collect()
}
