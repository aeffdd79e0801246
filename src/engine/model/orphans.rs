//! Whether an object in the bucket belongs to anything: the verdict of the orphan scan. Pure (law 6).
//!
//! What is known of the cluster is held as sorted numbers, never as object names: a million segments cost 8 MB however many files they
//! have. An object whose owner has a record stays: which of its files are stale is the business of the record's own rule.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::facts::{Tolerances, Work};
use super::holds::{Hold, Reason};
use super::references::mark;
use super::tickets::{self, Ticket};
use crate::engine::format::paths::{ObjPath, ParsedPath};
use crate::engine::ids::{
    BuildId, CollectionId, ObjectKey, PartitionId, SegmentId, SnapshotId, UnixMs,
};

/// Why an object is an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Its segment has no record (`spec/snapshot.md` §6.1, orphan loop; BM25 and text files too).
    NoSegment,
    /// Its index build has no row (index V0 and V1 files).
    NoBuild,
    /// Its snapshot has no record: JSON and manifests (§6.2: "leaks for ever").
    NoSnapshot,
    /// Its partition has neither segments nor a collection (LOBs, partition statistics).
    NoPartition,
    /// Its analyze task has no record.
    NoTask,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NoSegment,
        Self::NoBuild,
        Self::NoSnapshot,
        Self::NoPartition,
        Self::NoTask,
    ];

    /// As in reports and index files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSegment => "no-segment",
            Self::NoBuild => "no-build",
            Self::NoSnapshot => "no-snapshot",
            Self::NoPartition => "no-partition",
            Self::NoTask => "no-task",
        }
    }

    /// The rule of a name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == name)
    }
}

/// What is to become of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays: the first reason that was found, with its end.
    Keep(Hold),
    /// Nobody owns it.
    Orphan(Rule),
}

/// Numbers, each with what it belongs to.
#[derive(Clone, Debug)]
pub struct Ids<V>(Vec<(i64, V)>);

impl<V> Default for Ids<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Ids<V> {
    /// Adds one; look only after [`sorted`](Self::sorted).
    pub fn add(&mut self, id: i64, of: V) {
        self.0.push((id, of));
    }

    /// Ready to look up; of one id the first stays.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.0.sort_by_key(|(id, _)| *id);
        self.0.dedup_by_key(|(id, _)| *id);
        self.0.shrink_to_fit();
        self
    }

    /// What an id belongs to.
    #[must_use]
    pub fn get(&self, id: i64) -> Option<&V> {
        let at = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.0.get(at).map(|(_, of)| of)
    }

    /// Whether it is there.
    #[must_use]
    pub fn has(&self, id: i64) -> bool {
        self.get(id).is_some()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What snapshots refer to. Each is held by the snapshot of that index in [`Known::labels`].
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Segments, those included of which only a file is named.
    pub segments: Ids<u32>,
    /// Builds.
    pub builds: Ids<u32>,
    /// Files that belong to neither a segment nor a build, by [`mark`]. Two files with one mark keep each other: no harm.
    pub files: Ids<u32>,
    /// Collections with a snapshot record that is not being dropped.
    pub collections: BTreeMap<CollectionId, u32>,
}

/// What is known of the cluster, at one cut-off time.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The cut-off: fixed before anything is listed (law 5).
    pub now: UnixMs,
    /// Tolerances.
    pub tolerances: Tolerances,
    /// Collections that RootCoord knows, in any state.
    pub collections: BTreeSet<CollectionId>,
    /// Segments with a record, dropped ones included.
    pub segments: Ids<()>,
    /// Partitions with a segment record.
    pub partitions: Ids<()>,
    /// Index rows, deleted ones included.
    pub builds: Ids<()>,
    /// Snapshot records in any state.
    pub snapshots: Ids<()>,
    /// Analyze tasks.
    pub tasks: Ids<()>,
    /// What snapshots refer to.
    pub held: Held,
    /// Names of snapshots.
    pub labels: Vec<String>,
    /// Collections with something that cannot be read, or with a snapshot in the making.
    pub blocked: BTreeMap<CollectionId, Hold>,
    /// Something that may concern any collection cannot be read.
    pub blocked_any: Option<Hold>,
    /// Running work.
    pub work: Vec<Work>,
    /// Pauses.
    pub tickets: Vec<Ticket>,
    /// The highest id of a collection, partition, segment, build or snapshot that has a record. Ids rise: what is above it was made
    /// after all that is known, and metadata that was put back from a backup knows nothing of it.
    pub newest: Option<i64>,
}

/// The highest id that a path names, of those that have records.
#[must_use]
pub fn newest_of(path: &ObjPath) -> Option<i64> {
    let owner = path.owner();
    [
        owner.collection.map(|id| id.0),
        owner.partition.map(|id| id.0),
        owner.segment.map(|id| id.0),
        owner.build.map(|id| id.0),
        owner.snapshot.map(|id| id.0),
    ]
    .into_iter()
    .flatten()
    .max()
}

fn newer(known: &Known, path: &ObjPath) -> Option<Hold> {
    let (newest, id) = (known.newest?, newest_of(path)?);
    (id > newest).then(|| {
        hold(
            Reason::NewerThanMetadata,
            format!("id {id} is above {newest}, the newest that has a record"),
        )
    })
}

fn hold(reason: Reason, by: impl Into<String>) -> Hold {
    Hold {
        reason,
        by: by.into(),
        until: None,
    }
}

/// An object's fate. `modified` is the listing's time.
#[must_use]
pub fn judge(known: &Known, path: &ParsedPath, key: &ObjectKey, modified: UnixMs) -> Verdict {
    let ParsedPath::Known(path) = path else {
        return Verdict::Keep(hold(Reason::Unknown, "of no kind that is known here"));
    };
    let rule = match owned(known, path) {
        Ok(rule) => rule,
        Err(kept) => return Verdict::Keep(kept),
    };
    let owner = path.owner();
    let kept = referred(known, path, key)
        .or_else(|| blocked(known, owner.collection))
        .or_else(|| worked_on(known, path))
        .or_else(|| young(known, modified))
        .or_else(|| tickets::on(&known.tickets, owner.collection, known.now).map(Ticket::hold))
        .or_else(|| newer(known, path));
    kept.map_or(Verdict::Orphan(rule), Verdict::Keep)
}

/// The rule by which it would go, or the record that owns it.
fn owned(known: &Known, path: &ObjPath) -> Result<Rule, Hold> {
    let segment = |s: SegmentId| {
        if known.segments.has(s.0) {
            Err(hold(Reason::Live, format!("segment {s} has a record")))
        } else {
            Ok(Rule::NoSegment)
        }
    };
    let build = |b: BuildId| {
        if known.builds.has(b.0) {
            Err(hold(Reason::Live, format!("index build {b} has a record")))
        } else {
            Ok(Rule::NoBuild)
        }
    };
    let snapshot = |id: SnapshotId| {
        if known.snapshots.has(id.0) {
            Err(hold(Reason::Live, format!("snapshot {id} has a record")))
        } else {
            Ok(Rule::NoSnapshot)
        }
    };
    let partition = |c: CollectionId, p: PartitionId| {
        if known.collections.contains(&c) {
            Err(hold(Reason::CollectionExists, format!("collection {c}")))
        } else if known.partitions.has(p.0) {
            Err(hold(
                Reason::SegmentsLeft,
                format!("partition {p} has segment records"),
            ))
        } else {
            Ok(Rule::NoPartition)
        }
    };
    match path {
        ObjPath::InsertLog(_, _, s, ..)
        | ObjPath::StatsLog(_, _, s, ..)
        | ObjPath::DeltaLog(_, _, s, _)
        | ObjPath::Bm25Log(_, _, s, ..)
        | ObjPath::SegmentManifest(_, _, s, _)
        | ObjPath::SegmentData(_, _, s, _)
        | ObjPath::SegmentDelta(_, _, s, _)
        | ObjPath::SegmentStats(_, _, s, _)
        | ObjPath::SegmentIndex(_, _, s, _) => segment(*s),
        ObjPath::TextLog(f) | ObjPath::JsonKeyIndex(f) | ObjPath::JsonStats(_, f) => {
            segment(f.segment)
        }
        ObjPath::IndexFile(f) | ObjPath::IndexFileV1(_, f) => build(f.build),
        ObjPath::Lob(c, p, ..) | ObjPath::PartitionStats(c, p, ..) => partition(*c, *p),
        ObjPath::AnalyzeCentroids(task, ..) | ObjPath::AnalyzeOffsets(task, ..) => {
            if known.tasks.has(task.0) {
                Err(hold(
                    Reason::Live,
                    format!("analyze task {task} has a record"),
                ))
            } else {
                Ok(Rule::NoTask)
            }
        }
        ObjPath::SnapshotMetadata(_, id) | ObjPath::SnapshotManifest(_, id, _) => snapshot(*id),
        ObjPath::Opaque(..) => Err(hold(Reason::Unknown, "Milvus's own working area")),
    }
}

/// A snapshot that refers to it, to its segment or to its build. A snapshot's own files are referred to by its record alone.
fn referred(known: &Known, path: &ObjPath, key: &ObjectKey) -> Option<Hold> {
    let owner = path.owner();
    let held = &known.held;
    if owner.snapshot.is_some() {
        // Its own record has it, unless another's names it from elsewhere.
        let who = held.files.get(mark(key).cast_signed())?;
        let label = known.labels.get(*who as usize);
        return Some(hold(
            Reason::Snapshot,
            label.map_or("a snapshot", String::as_str),
        ));
    }
    let shared = matches!(path, ObjPath::Lob(..) | ObjPath::PartitionStats(..));
    owner
        .segment
        .and_then(|s| held.segments.get(s.0))
        .or_else(|| owner.build.and_then(|b| held.builds.get(b.0)))
        .or_else(|| held.files.get(mark(key).cast_signed()))
        // What a partition shares is not asked about file by file.
        .or_else(|| {
            let c = owner.collection.filter(|_| shared)?;
            held.collections.get(&c)
        })
        .map(|who| {
            let label = known.labels.get(*who as usize);
            hold(Reason::Snapshot, label.map_or("a snapshot", String::as_str))
        })
}

/// Something unread that may refer to it: of its collection, or of any when nobody knows which that is.
fn blocked(known: &Known, collection: Option<CollectionId>) -> Option<Hold> {
    let of = match collection {
        Some(c) => known.blocked.get(&c),
        None => known.blocked.values().next(),
    };
    of.or(known.blocked_any.as_ref()).cloned()
}

/// Running work that may have written it, or may read it.
fn worked_on(known: &Known, path: &ObjPath) -> Option<Hold> {
    let owner = path.owner();
    let on = |w: &&Work| {
        (match (owner.collection, w.collection) {
            (Some(of), Some(its)) => of == its,
            // A job that fills a collection makes builds of which no row is written yet.
            (None, Some(_)) => true,
            (_, None) => false,
        }) || owner.segment.is_some_and(|s| w.segments.contains(&s))
            || owner.build.is_some_and(|b| w.builds.contains(&b))
            || (owner.snapshot.is_some() && w.snapshot == owner.snapshot)
    };
    let found = known.work.iter().find(on)?;
    Some(hold(Reason::Job, found.by.clone()))
}

fn young(known: &Known, modified: UnixMs) -> Option<Hold> {
    if modified.0 <= 0 {
        // 0 is not a time (law 10).
        return Some(hold(
            Reason::Unknown,
            "the store does not say when it was written",
        ));
    }
    let until = UnixMs(modified.0.saturating_add(known.tolerances.missing_ms));
    (until >= known.now).then(|| Hold {
        reason: Reason::Young,
        by: format!("written {}", modified.utc()),
        until: Some(until),
    })
}

/// Objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    /// One more.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    fn plus(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// By prefix, as [`prefix`] names it.
pub type ByPrefix = BTreeMap<String, Tally>;

/// What a scan came to, by rule or reason and by prefix. Bounded: prefixes that Milvus does not have count as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Everything that was listed.
    pub listed: ByPrefix,
    /// Orphans by [`Rule`].
    pub orphans: BTreeMap<Rule, ByPrefix>,
    /// What stays although no record owns it, by reason, and the latest end of those reasons that have one.
    pub kept: BTreeMap<Reason, ByPrefix>,
    /// When the first of the kept ones becomes free by itself.
    #[serde(default)]
    pub next: Option<UnixMs>,
}

impl Report {
    /// Counts one object. What a record owns counts as listed only.
    pub fn count(&mut self, prefix: &str, bytes: u64, verdict: &Verdict) {
        let add = |by: &mut ByPrefix| match by.get_mut(prefix) {
            Some(tally) => tally.add(bytes),
            None => by.entry(prefix.to_owned()).or_default().add(bytes),
        };
        add(&mut self.listed);
        match verdict {
            Verdict::Orphan(rule) => add(self.orphans.entry(*rule).or_default()),
            Verdict::Keep(hold) if hold.reason == Reason::Live => {}
            Verdict::Keep(hold) => {
                add(self.kept.entry(hold.reason).or_default());
                if let Some(until) = hold.until {
                    self.next = Some(self.next.map_or(until, |next| next.min(until)));
                }
            }
        }
    }

    /// Adds another part of the same scan.
    pub fn merge(&mut self, other: Self) {
        fn all(into: &mut ByPrefix, from: ByPrefix) {
            for (prefix, tally) in from {
                into.entry(prefix).or_default().plus(tally);
            }
        }
        all(&mut self.listed, other.listed);
        for (rule, by) in other.orphans {
            all(self.orphans.entry(rule).or_default(), by);
        }
        for (reason, by) in other.kept {
            all(self.kept.entry(reason).or_default(), by);
        }
        self.next = [self.next, other.next].into_iter().flatten().min();
    }

    /// All orphans.
    #[must_use]
    pub fn found(&self) -> Tally {
        sum(self.orphans.values().flat_map(BTreeMap::values))
    }

    /// Everything listed.
    #[must_use]
    pub fn all(&self) -> Tally {
        sum(self.listed.values())
    }
}

/// Added up.
pub fn sum<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Tally {
    let mut out = Tally::default();
    for tally in tallies {
        out.plus(*tally);
    }
    out
}

/// The prefixes of `spec/layout.md` §7.2, in key order.
pub const PREFIXES: [&str; 16] = [
    "analyze_stats",
    "bm25_stats",
    "delta_log",
    "external_refresh_results",
    "index_files",
    "index_v1",
    "insert_log",
    "json_key_index_log",
    "json_stats",
    "ngram_log",
    "part_stats",
    "raw_datas",
    "snapshots",
    "stats_log",
    "text_log",
    "wp",
];
/// What is none of these.
pub const OTHER: &str = "other";

/// Under which prefix an object is counted.
#[must_use]
pub fn prefix<'a>(root: &str, key: &'a ObjectKey) -> &'a str {
    let root = root.trim_end_matches('/');
    let below = if root.is_empty() {
        Some(key.0.as_str())
    } else {
        key.0.strip_prefix(root).and_then(|k| k.strip_prefix('/'))
    };
    let first = below.and_then(|k| k.split('/').next()).unwrap_or_default();
    if PREFIXES.binary_search(&first).is_ok() {
        first
    } else {
        OTHER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_sorted_and_taken_below_the_root_only() {
        assert!(PREFIXES.is_sorted());
        let of = |root: &str, key: &str| prefix(root, &key.into()).to_owned();
        assert_eq!(of("files", "files/insert_log/1"), "insert_log");
        assert_eq!(of("", "wp/x"), "wp");
        assert_eq!(of("a/insert_log", "a/insert_log/stats_log/1"), "stats_log");
        assert_eq!(of("files", "filesystem/insert_log/1"), OTHER);
        assert_eq!(of("files", "files/mine"), OTHER);
        assert_eq!(of("/data", "/data/index_v1/1"), "index_v1");
    }

    #[test]
    fn reports_add_up_in_parts() {
        let orphan = Verdict::Orphan(Rule::NoSegment);
        let young = |until| {
            Verdict::Keep(Hold {
                reason: Reason::Young,
                by: String::new(),
                until: Some(UnixMs(until)),
            })
        };
        let mut whole = Report::default();
        let (mut a, mut b) = (Report::default(), Report::default());
        for (in_a, verdict) in [(true, orphan), (false, young(9)), (false, young(5))] {
            let part = if in_a { &mut a } else { &mut b };
            part.count("insert_log", 10, &verdict);
            whole.count("insert_log", 10, &verdict);
        }
        a.merge(b);
        assert_eq!(a, whole);
        assert_eq!(
            (a.found().objects, a.all().bytes, a.next),
            (1, 30, Some(UnixMs(5)))
        );
    }
}
