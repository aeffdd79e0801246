//! Who keeps this byte, and until when. Pure: the screen's "why", the GC simulator and the executor ask the same
//! functions (law 6). An empty answer is the only permission to delete; whatever could not be read holds (law 5).

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

pub use super::facts::*;
use super::lookup::Lookup;
use super::references::{Extent, mark};
use crate::engine::ids::{
    BuildId, CollectionId, IndexId, ObjectKey, SegmentId, SnapshotId, Tso, UnixMs, VChannel,
};

/// Why something must stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It is in use: a segment that is not dropped, an index row that is not deleted, a committed snapshot.
    Live,
    /// Dropped too recently (`dataCoord.gc.dropTolerance`).
    Tolerance,
    /// Dropped, but the record says not when: 0 is not a time (law 10).
    NoDropTime,
    /// Its channel's checkpoint has not passed its last position.
    Checkpoint,
    /// A compaction child is not indexed yet: queries may still read the parent.
    UnindexedChild,
    /// A query node may have it loaded.
    Loaded,
    /// A snapshot refers to it.
    Snapshot,
    /// A snapshot's files cannot be read, so it may refer to it.
    SnapshotUnreadable,
    /// A snapshot of the collection is being created.
    SnapshotPending,
    /// A pin that has not expired.
    Pin,
    /// A running job or task reads or fills it.
    Job,
    /// The object is too young to be called an orphan (`dataCoord.gc.missingTolerance`).
    Young,
    /// RootCoord still knows the collection.
    CollectionExists,
    /// Segment records of the collection are left.
    SegmentsLeft,
    /// Index rows of the definition are left.
    RowsLeft,
    /// A record of the same collection cannot be read.
    UnreadableRecord,
    /// A ticket pauses garbage collection.
    Paused,
    /// Its ids are above all that the metadata knows: the metadata may be older than the bucket.
    NewerThanMetadata,
    /// Nobody here knows what it is.
    Unknown,
}

impl Reason {
    /// As in the JSON output.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Tolerance => "tolerance",
            Self::NoDropTime => "no-drop-time",
            Self::Checkpoint => "checkpoint",
            Self::UnindexedChild => "unindexed-child",
            Self::Loaded => "loaded",
            Self::Snapshot => "snapshot",
            Self::SnapshotUnreadable => "snapshot-unreadable",
            Self::SnapshotPending => "snapshot-pending",
            Self::Pin => "pin",
            Self::Job => "job",
            Self::Young => "young",
            Self::CollectionExists => "collection-exists",
            Self::SegmentsLeft => "segments-left",
            Self::RowsLeft => "rows-left",
            Self::UnreadableRecord => "unreadable-record",
            Self::Paused => "paused",
            Self::NewerThanMetadata => "newer-than-metadata",
            Self::Unknown => "unknown",
        }
    }
}

/// One reason to keep something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Why.
    pub reason: Reason,
    /// Who or what, in words: `snapshot nightly (4611…)`.
    pub by: String,
    /// When it ends by itself, if it does.
    pub until: Option<UnixMs>,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.code(), self.by)?;
        match self.until {
            Some(until) => write!(f, " until {}", until.utc()),
            None => Ok(()),
        }
    }
}

pub(super) fn hold(reason: Reason, by: impl Into<String>) -> Hold {
    Hold {
        reason,
        by: by.into(),
        until: None,
    }
}

/// Facts that can be asked. They cannot change any more, so that what is looked up cannot fall behind them.
#[derive(Clone, Debug, Default)]
pub struct World {
    facts: Facts,
    lookup: Lookup,
}

impl Deref for World {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.facts
    }
}

pub use crate::engine::format::paths::Owner;

impl World {
    pub(super) fn new(facts: Facts) -> Self {
        let lookup = Lookup::of(&facts);
        Self { facts, lookup }
    }

    /// Builds of a segment.
    pub fn builds_of(&self, segment: SegmentId) -> impl Iterator<Item = BuildId> + '_ {
        self.lookup.rows.get(segment)
    }

    /// A snapshot record.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> Option<&SnapshotFacts> {
        self.facts.snapshots.get(*self.lookup.snapshots.get(&id)?)
    }

    /// What keeps a segment and all its files.
    #[must_use]
    pub fn holds_segment(&self, id: SegmentId) -> Vec<Hold> {
        let Some(segment) = self.segments.get(&id) else {
            return self.holds_by_reference(None, Some(id), None);
        };
        if !segment.dropped {
            return vec![hold(Reason::Live, format!("segment is {}", segment.state))];
        }
        let mut out = self.holds_by_reference(Some(segment.collection), Some(id), None);
        for build in self.builds_of(id) {
            for found in self.held_by_snapshots(Some(segment.collection), None, Some(build)) {
                if !out.contains(&found) {
                    out.push(found);
                }
            }
        }
        if let Some(by) = self.borrowed.get(&id) {
            out.push(hold(
                Reason::Live,
                format!("segment {by} names a file of it"),
            ));
        }
        self.after_drop(segment, &mut out);
        self.loaded(segment, &mut out);
        self.children(segment, &mut out);
        self.checkpoint(segment, &mut out);
        out
    }

    fn after_drop(&self, segment: &SegmentFacts, out: &mut Vec<Hold>) {
        match segment.dropped_at.filter(|at| at.0 > 0) {
            None => out.push(hold(
                Reason::NoDropTime,
                "the record does not say when it was dropped",
            )),
            Some(at) => {
                let until = UnixMs(at.to_ms().0.saturating_add(self.tolerances.drop_ms));
                if until >= self.now {
                    out.push(Hold {
                        reason: Reason::Tolerance,
                        by: format!("dropped {}", at.to_ms().utc()),
                        until: Some(until),
                    });
                }
            }
        }
    }

    fn loaded(&self, segment: &SegmentFacts, out: &mut Vec<Hold>) {
        if self.targeted.contains(&segment.id) {
            out.push(hold(Reason::Loaded, "a stored query target names it"));
        } else if self.served.contains(&segment.collection) {
            out.push(hold(
                Reason::Loaded,
                "the collection is loaded and a query node is alive",
            ));
        }
    }

    /// A parent stays until every child that still exists is indexed; a dropped child passes the question to its own.
    fn children(&self, segment: &SegmentFacts, out: &mut Vec<Hold>) {
        let mut seen = BTreeSet::from([segment.id]);
        let mut open = vec![segment.id];
        while let Some(parent) = open.pop() {
            for child in self.lookup.children.get(parent) {
                if !seen.insert(child) {
                    continue;
                }
                let Some(child) = self.segments.get(&child) else {
                    continue;
                };
                if self.is_indexed(child) {
                    continue;
                }
                if child.dropped {
                    open.push(child.id);
                } else {
                    out.push(hold(
                        Reason::UnindexedChild,
                        format!("compaction child {} is not indexed", child.id),
                    ));
                }
            }
        }
    }

    /// Every definition of the collection has a finished row. L0 and empty segments need none.
    fn is_indexed(&self, segment: &SegmentFacts) -> bool {
        if segment.l0 || segment.rows == 0 {
            return true;
        }
        let Some(wanted) = self.indexes.get(&segment.collection) else {
            return true;
        };
        let have: BTreeSet<IndexId> = self
            .builds_of(segment.id)
            .filter_map(|b| self.builds.get(&b))
            .filter(|row| row.finished && !row.deleted)
            .map(|row| row.index)
            .collect();
        wanted.is_subset(&have)
    }

    /// With the mark `non-removed` the checkpoint must have passed the segment. The sentinel of a dropped channel has;
    /// 0 and a missing key have not (law 10). Without a mark the channel is gone.
    fn checkpoint(&self, segment: &SegmentFacts, out: &mut Vec<Hold>) {
        let facts = self.channels.get(&segment.channel);
        let mark = facts.and_then(|c| c.mark.as_deref());
        match mark {
            None | Some("removed") => {}
            Some("non-removed") => {
                let at = facts.and_then(|c| c.checkpoint).unwrap_or(Tso::UNSET);
                let passed = at.is_dropped() || (at != Tso::UNSET && at >= segment.dml);
                if !passed {
                    out.push(hold(
                        Reason::Checkpoint,
                        format!(
                            "checkpoint of {} is behind its last position",
                            segment.channel
                        ),
                    ));
                }
            }
            Some(other) => out.push(hold(
                Reason::Unknown,
                format!("removal mark of {} reads {other:?}", segment.channel),
            )),
        }
    }

    /// What keeps an index build and its files.
    #[must_use]
    pub fn holds_build(&self, id: BuildId) -> Vec<Hold> {
        let Some(row) = self.builds.get(&id) else {
            return self.holds_by_reference(None, None, Some(id));
        };
        let defined = self
            .indexes
            .get(&row.collection)
            .is_some_and(|set| set.contains(&row.index));
        match self.segments.get(&row.segment) {
            Some(segment) if !row.deleted && defined => {
                if !segment.dropped {
                    return vec![hold(
                        Reason::Live,
                        format!("index of segment {}", segment.id),
                    )];
                }
                let mut out = self.holds_segment(segment.id);
                for found in self.held_by_snapshots(Some(row.collection), None, Some(id)) {
                    if !out.contains(&found) {
                        out.push(found);
                    }
                }
                out
            }
            _ => {
                let segment = self.segments.get(&row.segment).map(|s| s.id);
                self.holds_by_reference(Some(row.collection), segment, Some(id))
            }
        }
    }

    /// What keeps a snapshot's record and its own files.
    #[must_use]
    pub fn holds_snapshot(&self, id: SnapshotId) -> Vec<Hold> {
        let Some(snapshot) = self.snapshot(id) else {
            return self
                .work
                .iter()
                .filter(|w| w.snapshot == Some(id))
                .map(|w| hold(Reason::Job, w.by.clone()))
                .chain(
                    self.unreadable_any
                        .iter()
                        .map(|why| hold(Reason::UnreadableRecord, why)),
                )
                .collect();
        };
        let mut out = Vec::new();
        match snapshot.state {
            0 | snapshot_state::COMMITTED => out.push(hold(Reason::Live, snapshot.label())),
            snapshot_state::PENDING => match snapshot.pending_since {
                None => out.push(hold(
                    Reason::Unknown,
                    "the record does not say since when it is pending",
                )),
                Some(since) => {
                    let until = UnixMs(since.0.saturating_add(self.tolerances.pending_ms));
                    if until > self.now {
                        out.push(Hold {
                            reason: Reason::SnapshotPending,
                            by: format!("{} is being created", snapshot.label()),
                            until: Some(until),
                        });
                    }
                }
            },
            snapshot_state::DELETING => {}
            other => out.push(hold(Reason::Unknown, format!("snapshot state {other}"))),
        }
        self.pinned(snapshot, &mut out);
        out.extend(
            self.work
                .iter()
                .filter(|w| w.snapshot == Some(id))
                .map(|w| hold(Reason::Job, w.by.clone())),
        );
        out
    }

    /// What keeps a channel's checkpoint key (`spec/lifecycle.md` I3.3).
    #[must_use]
    pub fn holds_checkpoint(
        &self,
        channel: &VChannel,
        collection: Option<CollectionId>,
    ) -> Vec<Hold> {
        let Some(collection) = collection else {
            return vec![hold(
                Reason::Unknown,
                format!("{channel} does not name a collection"),
            )];
        };
        let mut out = Vec::new();
        if self.collections.contains(&collection) {
            out.push(hold(
                Reason::CollectionExists,
                format!("collection {collection}"),
            ));
        }
        if let Some(left) = self.lookup.segments_of.get(&collection) {
            out.push(hold(
                Reason::SegmentsLeft,
                format!("{left} segment records"),
            ));
        }
        self.unreadable_records(Some(collection), &mut out);
        self.worked_on(Some(collection), None, None, &mut out);
        out
    }

    /// What keeps an index definition: its rows go first, so that each is judged while it is known what it was for.
    #[must_use]
    pub fn holds_index(&self, collection: CollectionId, id: IndexId) -> Vec<Hold> {
        if !self.deleted_indexes.contains(&(collection, id)) {
            return vec![hold(Reason::Live, format!("index {id} is defined"))];
        }
        let mut out = Vec::new();
        if let Some(left) = self.lookup.rows_of_index.get(&(collection, id)) {
            out.push(hold(Reason::RowsLeft, format!("{left} segment index rows")));
        }
        self.unreadable_records(Some(collection), &mut out);
        self.worked_on(Some(collection), None, None, &mut out);
        out
    }

    /// What keeps an object. `modified` is the listing's time.
    #[must_use]
    pub fn holds_object(&self, owner: &Owner, key: &ObjectKey, modified: UnixMs) -> Vec<Hold> {
        if let Some(snapshot) = owner.snapshot {
            let mut out = self.holds_snapshot(snapshot);
            if self.snapshot(snapshot).is_none() {
                self.young(modified, &mut out);
            }
            return out;
        }
        let mut out = self.held_file(owner, key);
        match (owner.segment, owner.build) {
            (Some(segment), _) if self.segments.contains_key(&segment) => {
                out.extend(self.holds_segment(segment));
            }
            (_, Some(build)) if self.builds.contains_key(&build) => {
                out.extend(self.holds_build(build));
            }
            (None, None) if owner.collection.is_none() => {
                out.push(hold(Reason::Unknown, "no owner can be read from its path"));
            }
            (segment, build) => {
                out.extend(self.holds_by_reference(owner.collection, segment, build));
                if segment.is_none() && build.is_none() {
                    // Shared by a partition or a collection (LOBs, statistics): nobody asked its users.
                    out.push(hold(Reason::Unknown, "shared by several segments"));
                }
                self.young(modified, &mut out);
            }
        }
        out
    }

    /// What keeps a file that a later version has superseded. Of a live thing, so nothing about its owner's own life is asked; but whoever
    /// loaded it before may still read it.
    #[must_use]
    pub fn holds_superseded(&self, owner: &Owner, modified: UnixMs) -> Vec<Hold> {
        let mut out = self.holds_by_reference(owner.collection, owner.segment, owner.build);
        if let Some(segment) = owner.segment.and_then(|id| self.segments.get(&id)) {
            self.loaded(segment, &mut out);
        }
        self.young(modified, &mut out);
        out
    }

    /// Whether an object belongs to something in use: the short answer for most objects of a bucket.
    #[must_use]
    pub fn is_live(&self, owner: &Owner) -> bool {
        owner
            .segment
            .and_then(|id| self.segments.get(&id))
            .is_some_and(|segment| !segment.dropped)
    }

    fn young(&self, modified: UnixMs, out: &mut Vec<Hold>) {
        if modified.0 <= 0 {
            // 0 is not a time (law 10).
            out.push(hold(
                Reason::Unknown,
                "the store does not say when it was written",
            ));
            return;
        }
        let until = UnixMs(modified.0.saturating_add(self.tolerances.missing_ms));
        if until >= self.now {
            out.push(Hold {
                reason: Reason::Young,
                by: format!("written {}", modified.utc()),
                until: Some(until),
            });
        }
    }

    /// Snapshots that name this very file, or a file of its owner's.
    #[must_use]
    pub fn held_file(&self, owner: &Owner, key: &ObjectKey) -> Vec<Hold> {
        let at = &self.lookup;
        let mut found: Vec<usize> = owner
            .segment
            .into_iter()
            .flat_map(|id| at.by_segment.get(id))
            .chain(owner.build.into_iter().flat_map(|id| at.by_build.get(id)))
            .chain(at.by_mark.get(mark(key)))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
            .into_iter()
            .map(|i| hold(Reason::Snapshot, self.facts.snapshots[i].label()))
            .collect()
    }

    /// Snapshots, unreadable records and running work, for an owner that may be unknown.
    pub(super) fn holds_by_reference(
        &self,
        collection: Option<CollectionId>,
        segment: Option<SegmentId>,
        build: Option<BuildId>,
    ) -> Vec<Hold> {
        let mut out = self.held_by_snapshots(collection, segment, build);
        self.unreadable_records(collection, &mut out);
        self.worked_on(collection, segment, build, &mut out);
        out
    }

    /// Running work on any of these.
    pub(super) fn worked_on(
        &self,
        collection: Option<CollectionId>,
        segment: Option<SegmentId>,
        build: Option<BuildId>,
        out: &mut Vec<Hold>,
    ) {
        let on = &self.lookup;
        let mut found: Vec<usize> = collection
            .into_iter()
            .flat_map(|id| on.work_on.get(id))
            .chain(segment.into_iter().flat_map(|id| on.work_segment.get(id)))
            .chain(build.into_iter().flat_map(|id| on.work_build.get(id)))
            .collect();
        found.sort_unstable();
        found.dedup();
        out.extend(
            found
                .into_iter()
                .map(|i| hold(Reason::Job, self.facts.work[i].by.clone())),
        );
    }

    pub(super) fn unreadable_records(&self, collection: Option<CollectionId>, out: &mut Vec<Hold>) {
        let of = match collection {
            Some(c) => self.unreadable.get(&c),
            // Whose it is, nobody knows: any of them.
            None => self.unreadable.values().next(),
        };
        let why = of.into_iter().chain(&self.unreadable_any);
        out.extend(why.map(|why| hold(Reason::UnreadableRecord, why)));
    }

    fn held_by_snapshots(
        &self,
        collection: Option<CollectionId>,
        segment: Option<SegmentId>,
        build: Option<BuildId>,
    ) -> Vec<Hold> {
        let at = &self.lookup;
        let concerns = |s: &SnapshotFacts| collection.is_none_or(|c| c == s.collection);
        let mut named: Vec<usize> = segment
            .into_iter()
            .flat_map(|id| at.by_segment.get(id))
            .chain(build.into_iter().flat_map(|id| at.by_build.get(id)))
            .collect();
        named.sort_unstable();
        named.dedup();
        let mut out: Vec<Hold> = named
            .iter()
            .map(|i| hold(Reason::Snapshot, self.facts.snapshots[*i].label()))
            .collect();
        let unsure = at.blind.iter().filter(|i| named.binary_search(i).is_err());
        for snapshot in unsure.map(|i| &self.facts.snapshots[*i]) {
            if concerns(snapshot) {
                let why = match &snapshot.reference {
                    Reference::Failed(why) => why.as_str(),
                    Reference::Loaded(refs) if refs.extent == Extent::Ids => {
                        "its manifests are not read yet"
                    }
                    _ => "not read yet",
                };
                out.push(hold(
                    Reason::SnapshotUnreadable,
                    format!("{}: {why}", snapshot.label()),
                ));
            }
        }
        for snapshot in at.pending.iter().map(|i| &self.facts.snapshots[*i]) {
            let still = self.holds_snapshot(snapshot.id);
            if concerns(snapshot) && !still.is_empty() {
                out.push(Hold {
                    reason: Reason::SnapshotPending,
                    by: format!("{} is being created", snapshot.label()),
                    until: still.iter().find_map(|h| h.until),
                });
            }
        }
        out
    }
}
