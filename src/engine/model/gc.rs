//! Verdicts of garbage collection: what may go, by which rule, and what stays, because of what. Pure (law 6).

use serde::{Deserialize, Serialize};

use super::holds::{Hold, Owner, World, snapshot_state};
use crate::engine::ids::{BuildId, ObjectKey, SegmentId, SnapshotId, UnixMs, VChannel};

/// A rule by which something is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A dropped segment with its logs and indexes (`spec/lifecycle.md` I.10).
    DroppedSegment,
    /// An index row that is deleted, or whose segment or definition is gone (`spec/snapshot.md` §6.1).
    SegmentIndex,
    /// A snapshot that was never committed (`spec/snapshot.md` §6.3).
    PendingSnapshot,
    /// What is left of a dropped snapshot (§6.3; the record goes last, defect D4).
    DeletingSnapshot,
    /// The checkpoint of a channel whose collection is gone (`spec/lifecycle.md` I3.3).
    ChannelCheckpoint,
    /// An object without a record. Reported, never deleted in this version.
    Orphan,
}

impl Rule {
    /// All of them, in the order they run.
    pub const ALL: [Self; 6] = [
        Self::DroppedSegment,
        Self::SegmentIndex,
        Self::PendingSnapshot,
        Self::DeletingSnapshot,
        Self::ChannelCheckpoint,
        Self::Orphan,
    ];

    /// Its name in `gc plan --rule`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DroppedSegment => "dropped-segment",
            Self::SegmentIndex => "segment-index",
            Self::PendingSnapshot => "pending-snapshot",
            Self::DeletingSnapshot => "deleting-snapshot",
            Self::ChannelCheckpoint => "channel-checkpoint",
            Self::Orphan => "orphan",
        }
    }

    /// The rule of a name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == name)
    }

    /// Whether this version deletes by it, or only reports.
    #[must_use]
    pub const fn deletes(self) -> bool {
        !matches!(self, Self::Orphan)
    }
}

/// What is to happen with one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It stays, because of these. A doubt is a hold too.
    Keep(Vec<Hold>),
    /// It goes.
    Collect {
        /// By this rule.
        rule: Rule,
    },
}

impl Verdict {
    fn of(holds: Vec<Hold>, rule: Rule) -> Self {
        if holds.is_empty() {
            Self::Collect { rule }
        } else {
            Self::Keep(holds)
        }
    }

    /// Whether it goes.
    #[must_use]
    pub const fn collects(&self) -> bool {
        matches!(self, Self::Collect { .. })
    }
}

/// Of a segment record.
#[must_use]
pub fn segment(world: &World, id: SegmentId) -> Verdict {
    if world.segments.contains_key(&id) {
        Verdict::of(world.holds_segment(id), Rule::DroppedSegment)
    } else {
        // Without a record there is nothing to collect by this rule; its objects are the orphan rule's.
        Verdict::Keep(world.holds_segment(id))
    }
}

/// Of a segment index row. Rows of a dropped segment go with the segment.
#[must_use]
pub fn build(world: &World, id: BuildId) -> Verdict {
    let holds = world.holds_build(id);
    let with_segment = world.builds.get(&id).is_some_and(|row| {
        !row.deleted
            && world.segments.contains_key(&row.segment)
            && world
                .indexes
                .get(&row.collection)
                .is_some_and(|set| set.contains(&row.index))
    });
    let rule = if with_segment {
        Rule::DroppedSegment
    } else {
        Rule::SegmentIndex
    };
    Verdict::of(holds, rule)
}

/// Of a snapshot record.
#[must_use]
pub fn snapshot(world: &World, id: SnapshotId) -> Verdict {
    let deleting = world
        .snapshots
        .iter()
        .any(|s| s.id == id && s.state == snapshot_state::DELETING);
    let rule = if deleting {
        Rule::DeletingSnapshot
    } else {
        Rule::PendingSnapshot
    };
    if world.snapshots.iter().any(|s| s.id == id) {
        Verdict::of(world.holds_snapshot(id), rule)
    } else {
        Verdict::Keep(world.holds_snapshot(id))
    }
}

/// Of a channel checkpoint.
#[must_use]
pub fn checkpoint(world: &World, channel: &VChannel) -> Verdict {
    let collection = crate::engine::format::vchannel::collection(channel);
    Verdict::of(
        world.holds_checkpoint(channel, collection),
        Rule::ChannelCheckpoint,
    )
}

/// Of an object in the bucket.
#[must_use]
pub fn object(world: &World, owner: &Owner, key: &ObjectKey, modified: UnixMs) -> Verdict {
    let recorded = owner
        .segment
        .is_some_and(|s| world.segments.contains_key(&s))
        || owner.build.is_some_and(|b| world.builds.contains_key(&b))
        || owner
            .snapshot
            .is_some_and(|s| world.snapshots.iter().any(|known| known.id == s));
    let rule = match (recorded, owner) {
        (false, _) => Rule::Orphan,
        (
            true,
            Owner {
                snapshot: Some(id), ..
            },
        ) => {
            return snapshot(world, *id);
        }
        (
            true,
            Owner {
                segment: Some(_), ..
            },
        ) => Rule::DroppedSegment,
        (true, _) => Rule::SegmentIndex,
    };
    Verdict::of(world.holds_object(owner, key, modified), rule)
}
