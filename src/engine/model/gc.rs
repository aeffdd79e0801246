//! Verdicts of garbage collection: what may go, by which rule, and what stays, because of what. Pure (law 6).

use serde::{Deserialize, Serialize};

use super::holds::{FieldIndexFacts, FieldIndexKind, Hold, Reason, World, snapshot_state};
use crate::engine::format::paths::{FieldIndexFile, ObjPath, ParsedPath};
use crate::engine::ids::{
    BuildId, CollectionId, IndexId, ObjectKey, SegmentId, SnapshotId, UnixMs, VChannel,
};

/// A rule by which something is collected: a step of Milvus's own collector (`spec/snapshot.md` §6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A dropped segment with its logs and indexes (`spec/lifecycle.md` I.10).
    DroppedSegment,
    /// An index row that is deleted, or whose segment or definition is gone.
    SegmentIndex,
    /// An index definition that is deleted and has no rows left.
    UnusedIndex,
    /// A snapshot that was never committed (§6.3).
    PendingSnapshot,
    /// What is left of a dropped snapshot (§6.3; the record goes last, defect D4).
    DeletingSnapshot,
    /// A snapshot whose collection is gone. Milvus's collector drops it unless it is pinned (§6.3 step 3); ours reports it, and drops it
    /// when this rule is asked for by name.
    CollectionGone,
    /// Pins of a snapshot whose time is over (§6.3 step 3).
    ExpiredPin,
    /// The checkpoint of a channel whose collection is gone (`spec/lifecycle.md` I3.3).
    ChannelCheckpoint,
    /// An earlier version of a text index of a live segment.
    TextIndex,
    /// An earlier version of a JSON key index of a live segment.
    JsonIndex,
    /// An earlier version of JSON stats of a live segment, or its files in an earlier data format (defect D65: only its own).
    JsonStats,
    /// Files of an earlier version of an analyze task.
    AnalyzeFile,
    /// An object without a record. Reported, never deleted by a pass.
    Orphan,
}

impl Rule {
    /// All of them, in the order they run.
    pub const ALL: [Self; 13] = [
        Self::DroppedSegment,
        Self::SegmentIndex,
        Self::UnusedIndex,
        Self::PendingSnapshot,
        Self::DeletingSnapshot,
        Self::CollectionGone,
        Self::ChannelCheckpoint,
        Self::ExpiredPin,
        Self::TextIndex,
        Self::JsonIndex,
        Self::JsonStats,
        Self::AnalyzeFile,
        Self::Orphan,
    ];

    /// Its name in `gc plan --rule`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DroppedSegment => "dropped-segment",
            Self::SegmentIndex => "segment-index",
            Self::UnusedIndex => "unused-index",
            Self::PendingSnapshot => "pending-snapshot",
            Self::DeletingSnapshot => "deleting-snapshot",
            Self::CollectionGone => "collection-gone",
            Self::ExpiredPin => "expired-pin",
            Self::ChannelCheckpoint => "channel-checkpoint",
            Self::TextIndex => "text-index",
            Self::JsonIndex => "json-index",
            Self::JsonStats => "json-stats",
            Self::AnalyzeFile => "analyze-file",
            Self::Orphan => "orphan",
        }
    }

    /// The rule of a name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == name)
    }

    /// Whether a pass deletes by it, or only reports.
    #[must_use]
    pub const fn deletes(self) -> bool {
        !matches!(self, Self::Orphan)
    }

    /// Whether a pass takes by it only when it is asked for by name, and reports otherwise.
    #[must_use]
    pub const fn by_name(self) -> bool {
        matches!(self, Self::CollectionGone)
    }

    /// Where the objects lie that have no record of their own and are judged one by one; `None` for rules that begin at a record.
    #[must_use]
    pub const fn prefix(self) -> Option<&'static str> {
        match self {
            Self::TextIndex => Some("text_log"),
            Self::JsonIndex => Some("json_key_index_log"),
            Self::JsonStats => Some("json_stats"),
            Self::AnalyzeFile => Some("analyze_stats"),
            _ => None,
        }
    }
}

/// A listing older than this says nothing any more: what it saw is looked at again, ms.
pub const LISTING_MS: i64 = 60 * 60_000;

/// Whether a listing that began at `began` may still be acted on. A clock that went back is a doubt.
#[must_use]
pub const fn is_fresh(began: UnixMs, now: UnixMs) -> bool {
    now.0 >= began.0 && now.0 - began.0 <= LISTING_MS
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
    pub(super) fn of(holds: Vec<Hold>, rule: Rule) -> Self {
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

/// Of an index definition.
#[must_use]
pub fn index(world: &World, collection: CollectionId, id: IndexId) -> Verdict {
    Verdict::of(world.holds_index(collection, id), Rule::UnusedIndex)
}

/// Of a snapshot record.
#[must_use]
pub fn snapshot(world: &World, id: SnapshotId) -> Verdict {
    let holds = world.holds_snapshot(id);
    match world.snapshot(id) {
        None => Verdict::Keep(holds),
        Some(s) if s.state == snapshot_state::DELETING => {
            Verdict::of(holds, Rule::DeletingSnapshot)
        }
        Some(_) => Verdict::of(holds, Rule::PendingSnapshot),
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

/// Of an object in the bucket. `modified` is the listing's time.
#[must_use]
pub fn object(world: &World, path: &ParsedPath, key: &ObjectKey, modified: UnixMs) -> Verdict {
    let path = match path {
        ParsedPath::Known(ObjPath::Opaque(..)) | ParsedPath::Unknown => {
            return Verdict::Keep(vec![Hold {
                reason: Reason::Unknown,
                by: "of a kind that is never touched".into(),
                until: None,
            }]);
        }
        ParsedPath::Known(path) => path,
    };
    let owner = path.owner();
    if let Some(id) = owner.snapshot.filter(|id| world.snapshot(*id).is_some()) {
        return snapshot(world, id);
    }
    if let Some(rule) = superseded(world, path) {
        return Verdict::of(world.holds_superseded(&owner, modified), rule);
    }
    let rule = if owner
        .segment
        .is_some_and(|s| world.segments.contains_key(&s))
    {
        Rule::DroppedSegment
    } else if owner.build.is_some_and(|b| world.builds.contains_key(&b)) {
        Rule::SegmentIndex
    } else {
        Rule::Orphan
    };
    Verdict::of(world.holds_object(&owner, key, modified), rule)
}

/// The rule by which a file of something live is out of use: its record names a later version of the same. A file of another build, or
/// of a later version than the record's, may be in the making: no rule takes it.
#[must_use]
pub fn superseded(world: &World, path: &ObjPath) -> Option<Rule> {
    match path {
        ObjPath::TextLog(file) => {
            let used = in_use(world, file, |kind| kind == FieldIndexKind::Text)?;
            earlier(&used, file).then_some(Rule::TextIndex)
        }
        ObjPath::JsonKeyIndex(file) => json(world, 1, file).then_some(Rule::JsonIndex),
        ObjPath::JsonStats(format, file) => json(world, *format, file).then_some(Rule::JsonStats),
        ObjPath::AnalyzeCentroids(task, version, ..)
        | ObjPath::AnalyzeOffsets(task, version, ..) => world
            .analyze
            .get(task)
            .is_some_and(|used| version < used)
            .then_some(Rule::AnalyzeFile),
        _ => None,
    }
}

fn json(world: &World, format: i64, file: &FieldIndexFile) -> bool {
    in_use(world, file, |kind| matches!(kind, FieldIndexKind::Json(_))).is_some_and(|used| {
        match used.kind {
            FieldIndexKind::Json(now) => now > format || (now == format && earlier(&used, file)),
            FieldIndexKind::Text => false,
        }
    })
}

fn earlier(used: &FieldIndexFacts, file: &FieldIndexFile) -> bool {
    used.build == file.build && used.version > file.version
}

/// What the record of a live segment says of a file's field. Nothing when it says two things.
fn in_use(
    world: &World,
    file: &FieldIndexFile,
    of: impl Fn(FieldIndexKind) -> bool,
) -> Option<FieldIndexFacts> {
    let segment = world.segments.get(&file.segment)?;
    if segment.dropped || segment.collection != file.collection {
        return None;
    }
    let mut found = segment
        .field_indexes
        .iter()
        .filter(|used| used.field == file.field && of(used.kind));
    let one = found.next()?;
    found.next().is_none().then_some(*one)
}
