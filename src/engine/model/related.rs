//! Where one can go from a row.

use crate::engine::ids::{CollectionId, IndexId, VChannel};

use super::resource::{Kind, RowId, Scope};
use super::rows::{RowRef, View, row};

/// A cross link: a list in a scope, or one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// A listing.
    List(Kind, Scope),
    /// One row.
    Row(RowId),
}

fn of_collection(id: CollectionId) -> Scope {
    Scope {
        collection: Some(id),
        ..Scope::default()
    }
}

/// Links of a row with what they hold, in words; only those that lead somewhere.
#[must_use]
pub fn related(view: &View<'_>, id: &RowId) -> Vec<(String, Link)> {
    let Some(row) = row(view, id) else {
        return Vec::new();
    };
    let c = view.catalog;
    let mut out: Vec<(String, Link)> = Vec::new();
    let mut list = |kind: Kind, scope: Scope| {
        let mut n = 0;
        super::rows::each(view, kind, &scope, |_| n += 1);
        if n > 0 {
            out.push((
                format!("{} ({n})", kind.spec().name),
                Link::List(kind, scope),
            ));
        }
    };
    let collection = match row {
        RowRef::Database(d) => {
            let scope = Scope {
                database: Some(d.id),
                ..Scope::default()
            };
            for kind in [Kind::Collections, Kind::Snapshots, Kind::Aliases] {
                list(kind, scope.clone());
            }
            None
        }
        RowRef::Collection(r) => {
            for kind in [
                Kind::Partitions,
                Kind::Segments,
                Kind::Channels,
                Kind::Indexes,
                Kind::SegmentIndexes,
                Kind::Snapshots,
                Kind::Replicas,
                Kind::Aliases,
                Kind::Broadcasts,
                Kind::Tasks,
                Kind::Jobs,
            ] {
                list(kind, of_collection(r.id));
            }
            if c.databases.contains_key(&r.db) {
                let name = c.database_name(r.db);
                out.push((format!("database {name}"), Link::Row(RowId::Database(r.db))));
            }
            None
        }
        RowRef::Leftover(id) => {
            for kind in [
                Kind::Partitions,
                Kind::Segments,
                Kind::Channels,
                Kind::Indexes,
                Kind::SegmentIndexes,
                Kind::Snapshots,
                Kind::Broadcasts,
                Kind::Tasks,
                Kind::Jobs,
            ] {
                list(kind, of_collection(id));
            }
            None
        }
        RowRef::Partition(r) => {
            let scope = Scope {
                partition: Some(r.id),
                ..of_collection(r.collection)
            };
            list(Kind::Segments, scope.clone());
            list(Kind::SegmentIndexes, scope);
            Some(r.collection)
        }
        RowRef::Segment(r) => {
            let scope = Scope {
                segment: Some(r.id),
                ..of_collection(r.collection)
            };
            list(Kind::SegmentIndexes, scope);
            if c.partitions.contains_key(&(r.collection, r.partition)) {
                let to = RowId::Partition(r.collection, r.partition);
                out.push(("partition".into(), Link::Row(to)));
            }
            if c.channels.contains_key(&VChannel(r.channel.to_string())) {
                let to = RowId::Channel(r.channel.to_string());
                out.push((format!("channel {}", r.channel), Link::Row(to)));
            }
            for parent in &r.compaction_from {
                if c.segment(*parent).is_some() {
                    out.push((format!("from {parent}"), Link::Row(RowId::Segment(*parent))));
                }
            }
            for child in children(view, r) {
                out.push((format!("into {child}"), Link::Row(RowId::Segment(child))));
            }
            Some(r.collection)
        }
        RowRef::Channel(r) => {
            let scope = Scope {
                channel: Some(r.name.0.clone()),
                ..Scope::default()
            };
            list(Kind::Segments, scope.clone());
            list(Kind::Broadcasts, scope);
            r.collection
        }
        RowRef::Index(r) => {
            list(Kind::SegmentIndexes, of_collection(r.collection));
            Some(r.collection)
        }
        RowRef::SegmentIndex(r) => {
            if c.segment(r.segment).is_some() {
                let to = Link::Row(RowId::Segment(r.segment));
                out.push((format!("segment {}", r.segment), to));
            }
            index_link(view, r.collection, r.index, &mut out);
            Some(r.collection)
        }
        RowRef::Snapshot(r) => Some(r.collection),
        RowRef::Job(r) => r.collection,
        RowRef::Ticket(r) => r.collection,
        RowRef::Quarantine(r) => {
            if view.jobs.jobs.iter().any(|j| j.id == r.job) {
                out.push((format!("job {}", r.job), Link::Row(RowId::Job(r.job))));
            }
            r.collection
        }
        RowRef::Broadcast(r) => {
            for target in &r.targets {
                if c.channels.contains_key(&target.channel) {
                    let to = RowId::Channel(target.channel.0.clone());
                    out.push((format!("channel {}", target.channel), Link::Row(to)));
                }
            }
            for (id, _) in r.conflicts(view) {
                out.push((format!("broadcast {id}"), Link::Row(RowId::Broadcast(id))));
            }
            if let Some(job) = r.own(view).map(|own| own.job)
                && view.jobs.jobs.iter().any(|j| j.id == job)
            {
                out.push((format!("job {job}"), Link::Row(RowId::Job(job))));
            }
            r.collection
        }
        RowRef::Task(r) => Some(r.collection),
        RowRef::Alias(r) => Some(r.collection),
        RowRef::Replica(r) => Some(r.collection),
        RowRef::Undecodable(r) => {
            out.push(("raw key".into(), Link::Row(RowId::Key(r.key.clone()))));
            None
        }
        RowRef::Config(r) => {
            out.push(("raw key".into(), Link::Row(RowId::Key(r.key.clone()))));
            None
        }
        RowRef::Session(_) | RowRef::Key(..) => None,
    };
    if let Some(row) = collection.and_then(|id| c.collections.get(&id)) {
        out.push((
            format!("collection {}", row.name),
            Link::Row(RowId::Collection(row.id)),
        ));
    }
    out
}

fn index_link(
    view: &View<'_>,
    collection: CollectionId,
    index: IndexId,
    out: &mut Vec<(String, Link)>,
) {
    if let Some(def) = view.catalog.indexes.get(&(collection, index)) {
        let to = Link::Row(RowId::Index(collection, index));
        out.push((format!("index {}", def.name), to));
    }
}

/// Segments compacted from this one: only looked for when it says that it was compacted.
fn children(view: &View<'_>, parent: &super::data::Segment) -> Vec<crate::engine::ids::SegmentId> {
    if !parent.compacted {
        return Vec::new();
    }
    view.catalog
        .segments_on(&parent.channel)
        .filter(|s| s.compaction_from.contains(&parent.id))
        .map(|s| s.id)
        .collect()
}
