//! Rows: which there are, which one an id means, and in what order.

use crate::engine::ids::{
    CollectionId, DbId, MetaKey, MetaRev, PartitionId, SegmentId, UnixMs, VChannel,
};

use super::broadcast::{Broadcast, BroadcastsView};
use super::catalog::Catalog;
use super::columns::cell_of;
use super::data::{
    Alias, Channel, Collection, ConfigItem, Database, IndexDef, Partition, Replica, Segment,
    SegmentIndex, Session, Snapshot, Task, Undecodable,
};
use super::jobs::{JobInfo, JobsView};
use super::keyindex::KeyMeta;
use super::quarantine::Quarantine;
use super::references::Index;
use super::resource::{Cell, Kind, RowId, Scope};
use super::tickets::Ticket;

/// What rows are read from: one catalog, our jobs, and the time.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The read model.
    pub catalog: &'a Catalog,
    /// Our jobs.
    pub jobs: &'a JobsView,
    /// Broadcasts that this process drives.
    pub broadcasts: &'a BroadcastsView,
    /// What snapshots refer to, as far as it is known.
    pub references: &'a Index,
    /// Now, for ages and lags.
    pub now: UnixMs,
}

impl<'a> View<'a> {
    /// Collections of a database.
    pub fn collections_in(&self, db: DbId) -> impl Iterator<Item = &'a Collection> + use<'a> {
        let catalog = self.catalog;
        catalog
            .collections_in
            .range((db, CollectionId(i64::MIN))..=(db, CollectionId(i64::MAX)))
            .filter_map(|(_, id)| catalog.collections.get(id).map(|c| &**c))
    }
}

/// A row, borrowed.
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "each variant is the row of its kind")]
pub enum RowRef<'a> {
    Database(&'a Database),
    Collection(&'a Collection),
    /// A collection that has no record any more.
    Leftover(CollectionId),
    Partition(&'a Partition),
    Segment(&'a Segment),
    Channel(&'a Channel),
    Index(&'a IndexDef),
    SegmentIndex(&'a SegmentIndex),
    Snapshot(&'a Snapshot),
    Job(&'a JobInfo),
    Ticket(&'a Ticket),
    Quarantine(&'a Quarantine),
    Broadcast(&'a Broadcast),
    Task(&'a Task),
    Session(&'a Session),
    Alias(&'a Alias),
    Replica(&'a Replica),
    Config(&'a ConfigItem),
    Undecodable(&'a Undecodable),
    Key(&'a MetaKey, &'a KeyMeta),
}

impl RowRef<'_> {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> RowId {
        match self {
            Self::Database(r) => RowId::Database(r.id),
            Self::Collection(r) => RowId::Collection(r.id),
            Self::Leftover(id) => RowId::Collection(*id),
            Self::Partition(r) => RowId::Partition(r.collection, r.id),
            Self::Segment(r) => RowId::Segment(r.id),
            Self::Channel(r) => RowId::Channel(r.name.0.clone()),
            Self::Index(r) => RowId::Index(r.collection, r.id),
            Self::SegmentIndex(r) => RowId::SegmentIndex(r.build),
            Self::Snapshot(r) => RowId::Snapshot(r.id),
            Self::Job(r) => RowId::Job(r.id),
            Self::Ticket(r) => RowId::Ticket(r.id.clone()),
            Self::Quarantine(r) => RowId::Quarantine(r.job),
            Self::Broadcast(r) => RowId::Broadcast(r.id),
            Self::Task(r) => RowId::Task(r.key.clone()),
            Self::Session(r) => RowId::Session(r.name.to_string()),
            Self::Alias(r) => RowId::Alias(r.db, r.name.to_string()),
            Self::Replica(r) => RowId::Replica(r.id),
            Self::Config(r) => RowId::Config(r.key.clone()),
            Self::Undecodable(r) => RowId::Undecodable(r.key.clone()),
            Self::Key(key, _) => RowId::Key((*key).clone()),
        }
    }

    /// The revision of its newest key; 0 for what is ours: the catalog has no keys of it.
    #[must_use]
    pub fn rev(&self) -> MetaRev {
        match self {
            Self::Database(r) => r.rev,
            Self::Collection(r) => r.rev,
            Self::Partition(r) => r.rev,
            Self::Segment(r) => r.rev,
            Self::Channel(r) => r.rev,
            Self::Index(r) => r.rev,
            Self::SegmentIndex(r) => r.rev,
            Self::Snapshot(r) => r.rev,
            Self::Job(_) | Self::Ticket(_) | Self::Quarantine(_) | Self::Leftover(_) => MetaRev(0),
            Self::Broadcast(r) => r.rev,
            Self::Task(r) => r.rev,
            Self::Session(r) => r.rev,
            Self::Alias(r) => r.rev,
            Self::Replica(r) => r.rev,
            Self::Config(r) => r.rev,
            Self::Undecodable(r) => r.rev,
            Self::Key(_, meta) => meta.mod_rev,
        }
    }
}

/// The row of an id; `None` when it has gone.
#[must_use]
pub fn row<'a>(view: &View<'a>, id: &RowId) -> Option<RowRef<'a>> {
    let c = view.catalog;
    Some(match id {
        RowId::Database(id) => RowRef::Database(c.databases.get(id)?),
        RowId::Collection(id) => match c.collections.get(id) {
            Some(row) => RowRef::Collection(row),
            None => RowRef::Leftover(view.leftover(*id).map(|_| *id)?),
        },
        RowId::Partition(coll, id) => RowRef::Partition(c.partitions.get(&(*coll, *id))?),
        RowId::Segment(id) => RowRef::Segment(c.segment(*id)?),
        RowId::Channel(name) => RowRef::Channel(c.channels.get(&VChannel(name.clone()))?),
        RowId::Index(coll, id) => RowRef::Index(c.indexes.get(&(*coll, *id))?),
        RowId::SegmentIndex(id) => RowRef::SegmentIndex(c.build(*id)?),
        RowId::Snapshot(id) => RowRef::Snapshot(c.snapshot(*id)?),
        RowId::Job(id) => RowRef::Job(view.jobs.jobs.iter().find(|j| j.id == *id)?),
        RowId::Ticket(id) => RowRef::Ticket(view.jobs.tickets.iter().find(|t| t.id == *id)?),
        RowId::Quarantine(id) => {
            RowRef::Quarantine(view.jobs.quarantine.iter().find(|q| q.job == *id)?)
        }
        RowId::Broadcast(id) => RowRef::Broadcast(c.broadcasts.get(id)?),
        RowId::Task(key) => RowRef::Task(c.tasks.get(key)?),
        RowId::Session(name) => RowRef::Session(c.sessions.get(name.as_str())?),
        RowId::Alias(db, name) => RowRef::Alias(c.aliases.get(&(*db, name.as_str().into()))?),
        RowId::Replica(id) => RowRef::Replica(c.replica(*id)?),
        RowId::Config(key) => RowRef::Config(c.config.get(key)?),
        RowId::Undecodable(key) => RowRef::Undecodable(c.undecodable.get(key)?),
        RowId::Key(key) => {
            let (key, meta) = c.keys.entry(key)?;
            RowRef::Key(key, meta)
        }
    })
}

/// The revision of a row's newest key: newer than what was on screen means "has just changed".
#[must_use]
pub fn rev(view: &View<'_>, id: &RowId) -> MetaRev {
    row(view, id).map_or(MetaRev(0), |row| row.rev())
}

/// Whether a row of this place is in scope.
fn within(
    view: &View<'_>,
    scope: &Scope,
    collection: Option<CollectionId>,
    partition: Option<PartitionId>,
    segment: Option<SegmentId>,
    channel: Option<&str>,
) -> bool {
    if let Some(want) = scope.database {
        let db = collection
            .and_then(|c| view.catalog.collections.get(&c))
            .map(|c| c.db);
        if db != Some(want) {
            return false;
        }
    }
    (scope.collection.is_none() || scope.collection == collection)
        && (scope.partition.is_none() || scope.partition == partition)
        && (scope.segment.is_none() || scope.segment == segment)
        && (scope.channel.is_none() || scope.channel.as_deref() == channel)
}

/// Calls `each` for every row of a kind in a scope, in the order of ids. Walks only the scope when there is an index for it.
pub fn each<'a>(view: &View<'a>, kind: Kind, scope: &Scope, mut each: impl FnMut(RowRef<'a>)) {
    let c = view.catalog;
    match kind {
        Kind::Databases => {
            let rows = c.databases.values();
            rows.filter(|d| scope.database.is_none_or(|id| id == d.id))
                .for_each(|d| each(RowRef::Database(d)));
        }
        Kind::Collections => {
            if let Some(db) = scope.database {
                view.collections_in(db)
                    .filter(|r| within(view, scope, Some(r.id), None, None, None))
                    .for_each(|r| each(RowRef::Collection(r)));
            } else {
                c.collections
                    .values()
                    .filter(|r| within(view, scope, Some(r.id), None, None, None))
                    .for_each(|r| each(RowRef::Collection(r)));
                // What is marked as dropped goes by itself, and what is being filled is not visible: neither is worth a row.
                let leaks = view.leftovers().filter(|(_, left)| left.leaks());
                leaks
                    .map(|(id, _)| id)
                    .filter(|id| within(view, scope, Some(*id), None, None, None))
                    .for_each(|id| each(RowRef::Leftover(id)));
            }
        }
        Kind::Partitions => {
            let keep =
                |r: &Partition| within(view, scope, Some(r.collection), Some(r.id), None, None);
            match scope.collection {
                Some(id) => c
                    .partitions_of(id)
                    .filter(|r| keep(r))
                    .for_each(|r| each(RowRef::Partition(r))),
                None => c
                    .partitions
                    .values()
                    .filter(|r| keep(r))
                    .for_each(|r| each(RowRef::Partition(r))),
            }
        }
        Kind::Segments => each_segment(view, scope, &mut |s| each(RowRef::Segment(s))),
        Kind::Channels => {
            let keep = |r: &Channel| within(view, scope, r.collection, None, None, Some(&r.name.0));
            match scope.collection {
                Some(id) => c
                    .channels_of(id)
                    .filter(|r| keep(r))
                    .for_each(|r| each(RowRef::Channel(r))),
                None => c
                    .channels
                    .values()
                    .filter(|r| keep(r))
                    .for_each(|r| each(RowRef::Channel(r))),
            }
        }
        Kind::Indexes => c
            .indexes
            .values()
            .filter(|r| within(view, scope, Some(r.collection), None, None, None))
            .for_each(|r| each(RowRef::Index(r))),
        Kind::SegmentIndexes => {
            let keep = |r: &SegmentIndex| {
                let (p, s) = (Some(r.partition), Some(r.segment));
                within(view, scope, Some(r.collection), p, s, None)
            };
            match scope.segment {
                Some(id) => c
                    .builds_of(id)
                    .filter(|r| keep(r))
                    .for_each(|r| each(RowRef::SegmentIndex(r))),
                None => c
                    .builds
                    .values()
                    .filter(|r| keep(r))
                    .for_each(|r| each(RowRef::SegmentIndex(r))),
            }
        }
        Kind::Snapshots => c
            .snapshots
            .values()
            .filter(|r| within(view, scope, Some(r.collection), None, None, None))
            .for_each(|r| each(RowRef::Snapshot(r))),
        Kind::Jobs => view
            .jobs
            .jobs
            .iter()
            .filter(|r| within(view, scope, r.collection, None, None, None))
            .for_each(|r| each(RowRef::Job(r))),
        Kind::Tickets => view
            .jobs
            .tickets
            .iter()
            .filter(|r| within(view, scope, r.collection, None, None, None))
            .for_each(|r| each(RowRef::Ticket(r))),
        Kind::Quarantine => view
            .jobs
            .quarantine
            .iter()
            .filter(|r| within(view, scope, r.collection, None, None, None))
            .for_each(|r| each(RowRef::Quarantine(r))),
        Kind::Broadcasts => each_broadcast(view, scope, &mut |r| each(RowRef::Broadcast(r))),
        Kind::Tasks => c
            .tasks
            .values()
            .filter(|r| within(view, scope, Some(r.collection), None, None, None))
            .for_each(|r| each(RowRef::Task(r))),
        Kind::Sessions => c.sessions.values().for_each(|r| each(RowRef::Session(r))),
        Kind::Aliases => c
            .aliases
            .values()
            .filter(|r| within(view, scope, Some(r.collection), None, None, None))
            .for_each(|r| each(RowRef::Alias(r))),
        Kind::Replicas => c
            .replicas
            .values()
            .filter(|r| within(view, scope, Some(r.collection), None, None, None))
            .for_each(|r| each(RowRef::Replica(r))),
        Kind::Config => c.config.values().for_each(|r| each(RowRef::Config(r))),
        Kind::Undecodable => c
            .undecodable
            .values()
            .for_each(|r| each(RowRef::Undecodable(r))),
        Kind::Keys => {
            let prefix = scope.prefix.as_deref().unwrap_or("");
            c.keys
                .under(prefix)
                .for_each(|(key, meta)| each(RowRef::Key(key, meta)));
        }
    }
}

/// A broadcast is on every channel that it goes to, and about one collection at most.
fn each_broadcast<'a>(view: &View<'a>, scope: &Scope, each: &mut dyn FnMut(&'a Broadcast)) {
    let here = Scope {
        channel: None,
        ..scope.clone()
    };
    let goes = |b: &Broadcast, name: &str| b.targets.iter().any(|t| t.channel.0 == name);
    let rows = view.catalog.broadcasts.values();
    rows.filter(|b| scope.channel.as_deref().is_none_or(|name| goes(b, name)))
        .filter(|b| within(view, &here, b.collection, None, None, None))
        .for_each(|b| each(b));
}

fn each_segment<'a>(view: &View<'a>, scope: &Scope, each: &mut dyn FnMut(&'a Segment)) {
    let c = view.catalog;
    // An id that stands in two places is one row.
    let mut last = None;
    let mut once = |s: &'a Segment| {
        if last != Some(s.id) {
            last = Some(s.id);
            each(s);
        }
    };
    if *scope == Scope::default() {
        c.segments().for_each(once);
        return;
    }
    // Deletes about every partition are about each of them (`spec/lifecycle.md` §12 rule 6).
    let covers = |s: &Segment, p| s.scope().is_some_and(|scope| scope.covers(p));
    let here = Scope {
        partition: None,
        ..scope.clone()
    };
    let keep = |s: &&Segment| {
        scope.partition.is_none_or(|p| covers(s, p))
            && within(
                view,
                &here,
                Some(s.collection),
                None,
                Some(s.id),
                Some(&s.channel),
            )
    };
    if let Some(id) = scope.segment {
        c.segment(id).into_iter().filter(keep).for_each(&mut once);
    } else if let Some(channel) = &scope.channel {
        c.segments_on(channel).filter(keep).for_each(&mut once);
    } else if let Some(id) = scope.collection {
        c.segments_of(id).filter(keep).for_each(&mut once);
    } else {
        c.segments().filter(keep).for_each(&mut once);
    }
}

/// Ids of every row of a kind in a scope, in the order of ids.
#[must_use]
pub fn ids(view: &View<'_>, kind: Kind, scope: &Scope) -> Vec<RowId> {
    let mut out = Vec::with_capacity(if *scope == Scope::default() {
        len(view, kind)
    } else {
        0
    });
    each(view, kind, scope, |row| out.push(row.id()));
    out
}

/// Rows of a kind without a scope.
#[must_use]
pub fn len(view: &View<'_>, kind: Kind) -> usize {
    let c = view.catalog;
    match kind {
        Kind::Databases => c.databases.len(),
        Kind::Collections => c.collections.len(),
        Kind::Partitions => c.partitions.len(),
        Kind::Segments => c.segment_count(),
        Kind::Channels => c.channels.len(),
        Kind::Indexes => c.indexes.len(),
        Kind::SegmentIndexes => c.builds.len(),
        Kind::Snapshots => c.snapshots.len(),
        Kind::Jobs => view.jobs.jobs.len(),
        Kind::Tickets => view.jobs.tickets.len(),
        Kind::Quarantine => view.jobs.quarantine.len(),
        Kind::Broadcasts => c.broadcasts.len(),
        Kind::Tasks => c.tasks.len(),
        Kind::Sessions => c.sessions.len(),
        Kind::Aliases => c.aliases.len(),
        Kind::Replicas => c.replicas.len(),
        Kind::Config => c.config.len(),
        Kind::Undecodable => c.undecodable.len(),
        Kind::Keys => c.keys.len(),
    }
}

/// Ids in the order of a column, rows with nothing in it last, equal rows in the order of ids. Reads each row once and
/// without looking it up again: a million rows by a number take tens of milliseconds.
#[must_use]
pub fn list(view: &View<'_>, kind: Kind, scope: &Scope, sort: Option<(usize, bool)>) -> Vec<RowId> {
    let Some((column, descending)) = sort else {
        return ids(view, kind, scope);
    };
    let mut rows: Vec<RowRef<'_>> = Vec::with_capacity(len(view, kind));
    let mut numbers: Vec<(i64, u32)> = Vec::with_capacity(len(view, kind));
    let mut others: Vec<(Cell, u32)> = Vec::new();
    each(view, kind, scope, |row| {
        let at = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        rows.push(row);
        let cell = cell_of(view, row, column);
        match number(&cell) {
            Some(n) => numbers.push((n, at)),
            None => others.push((cell, at)),
        }
    });
    if descending {
        numbers.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    } else {
        numbers.sort_unstable();
    }
    others.sort_by(|(a, _), (b, _)| super::text::order(a, b, descending));
    let order = numbers
        .into_iter()
        .map(|(_, at)| at)
        .chain(others.into_iter().map(|(_, at)| at));
    order
        .filter_map(|at| rows.get(at as usize).map(RowRef::id))
        .collect()
}

fn number(cell: &Cell) -> Option<i64> {
    match cell {
        Cell::Id(n) | Cell::Count(n) => Some(*n),
        Cell::Bytes(n) | Cell::Age(n) => Some(i64::try_from(*n).unwrap_or(i64::MAX)),
        Cell::Time(at) => Some(at.0),
        Cell::None | Cell::Text(_) | Cell::Shared(_) | Cell::State(..) => None,
    }
}
