//! Reading what the verdicts on orphans rest on, as numbers: memory grows with segments, builds and snapshots, not with objects. And
//! the look at what has changed right before a batch goes. Only reads; whatever cannot be read becomes a hold (law 5).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use prost::Message;

use super::gc_scan::{Reading, borrowed, work};
use super::references::Keeper;
use super::restore_source::Reads;
use crate::engine::error::{Error, Result};
use crate::engine::format::codec::is_tombstone;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::{ObjPath, SegmentBase};
use crate::engine::format::pb;
use crate::engine::ids::{CollectionId, JobId, MetaKey, MetaRev, ObjectKey, UnixMs};
use crate::engine::meta::{KeyValue, MetaReader, RangeOpts, Span};
use crate::engine::model::facts::Reference;
use crate::engine::model::holds::{Hold, Reason, Tolerances, snapshot_state};
use crate::engine::model::orphans::{Ids, Known};
use crate::engine::model::quarantine::Entry;
use crate::engine::model::references::{Extent, Record, References, mark, refers};
use crate::engine::profile::Roots;

/// Segments of which something is looked for, from each end of the list.
const SAMPLES: usize = 128;
/// Records looked up at once.
const READS: usize = 16;

/// What was read.
#[derive(Debug, Default)]
pub struct Seen {
    /// For the verdicts.
    pub known: Known,
    /// The revision of it.
    pub rev: MetaRev,
    /// Snapshot records as they were when their references were read.
    snapshots: Print,
    /// Some segments, for the question whose bucket this is.
    pub sample: Vec<SegmentBase>,
    /// No record of any collection, segment or snapshot.
    pub empty: bool,
    /// What could not be read, in words.
    pub unreadable: Vec<String>,
}

/// Keys and revisions, in order, as one number and a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Print(u64, u64);

impl Print {
    fn add(&mut self, kv: &KeyValue) {
        let text = format!("{} {} {}", self.0, kv.key, kv.mod_rev);
        self.0 = mark(&ObjectKey(text));
        self.1 += 1;
    }
}

/// Every key of a span, page by page.
async fn each(
    meta: &MetaReader,
    mut span: Span,
    keys_only: bool,
    mut found: impl FnMut(&KeyValue),
) -> Result<()> {
    let opts = RangeOpts {
        keys_only,
        ..RangeOpts::default()
    };
    loop {
        let page = meta.range(&span, opts).await?;
        page.kvs.iter().for_each(&mut found);
        match page.kvs.last() {
            Some(last) if page.more => span = span.after(&last.key),
            _ => return Ok(()),
        }
    }
}

fn family(reads: &Reads<'_>, family: Family) -> Span {
    Span::prefix(&family.prefix(reads.roots))
}

fn hold(reason: Reason, by: String) -> Hold {
    Hold {
        reason,
        by,
        until: None,
    }
}

/// What a look is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// Fixed before the first question (law 5).
    pub cutoff: UnixMs,
    /// The cluster's own.
    pub tolerances: Tolerances,
    /// A job that is left out of the running work.
    pub me: Option<JobId>,
}

/// Reads it all at one revision. References that `keeper` does not know yet are read, and kept there; `now` says when.
pub async fn look(reads: &Reads<'_>, keeper: &Keeper, now: UnixMs, wants: Wants) -> Result<Seen> {
    let (standing, rev) = reads
        .meta
        .standing(&family(reads, Family::Snapshot))
        .await?;
    let reads = &Reads {
        meta: &standing,
        ..*reads
    };
    let mut out = Seen {
        rev,
        ..Seen::default()
    };
    out.known.now = wants.cutoff;
    out.known.newest = Some(0);
    out.known.tolerances = wants.tolerances;
    collections(reads, &mut out).await?;
    numbers(reads, &mut out).await?;
    let (jobs, unread) = work(reads, wants.me).await?;
    out.known.work = jobs;
    if let Some(why) = unread {
        out.bad(why);
    }
    snapshots(reads, keeper, now, &mut out).await?;
    let known = &out.known;
    out.empty =
        known.collections.is_empty() && known.segments.is_empty() && known.snapshots.is_empty();
    Ok(out)
}

impl Seen {
    fn bad(&mut self, why: String) {
        self.known.blocked_any = Some(hold(Reason::UnreadableRecord, why.clone()));
        if !self.unreadable.contains(&why) {
            self.unreadable.push(why);
        }
    }

    /// A record has this id.
    fn id(&mut self, id: i64) {
        self.known.newest = self.known.newest.max(Some(id));
    }

    fn block(&mut self, c: CollectionId, why: Hold) {
        if why.reason != Reason::SnapshotPending {
            self.unreadable.push(why.to_string());
        }
        self.known.blocked.entry(c).or_insert(why);
    }
}

async fn collections(reads: &Reads<'_>, out: &mut Seen) -> Result<()> {
    for of in [Family::Collection, Family::LegacyCollection] {
        for kv in reads.family(of).await?.kvs {
            match Key::parse(reads.roots, &kv.key.0).known() {
                Some(Key::Collection(_, c) | Key::LegacyCollection(c)) => {
                    out.id(c.0);
                    if !is_tombstone(of, &kv.value) {
                        out.known.collections.insert(c);
                    }
                }
                _ => out.bad(format!("collection key {} cannot be read", kv.key)),
            }
        }
    }
    Ok(())
}

/// Segments, index rows and analyze tasks: their keys say all that is needed, so a value that cannot be read keeps its files.
async fn numbers(reads: &Reads<'_>, out: &mut Seen) -> Result<()> {
    let roots = reads.roots;
    let (mut segments, mut partitions) = (Ids::default(), Ids::default());
    let (mut builds, mut tasks) = (Ids::default(), Ids::default());
    let mut odd = Vec::new();
    let (mut first, mut last) = (Vec::new(), VecDeque::new());
    let mut partition = None;
    let mut newest = 0;
    let (root, bucket) = (reads.objects.root(), reads.objects.bucket());
    let mut lent = Reading::default();
    each(reads.meta, family(reads, Family::Segment), false, |kv| {
        match Key::parse(roots, &kv.key.0).known() {
            Some(key @ Key::Segment(c, p, s)) => {
                segments.add(s.0, ());
                newest = newest.max(c.0).max(p.0).max(s.0);
                // Another segment's files may be named in its record (a compaction that took them over).
                if let Some(info) = lent.read::<pb::data::SegmentInfo>(&key, kv, Some(c)) {
                    borrowed((root, bucket), &mut lent, (c, p, s), &info);
                }
                // In key order the same partition comes many times.
                if partition.replace(p) != Some(p) {
                    partitions.add(p.0, ());
                }
                if first.len() < SAMPLES {
                    first.push(SegmentBase(c, p, s));
                } else {
                    if last.len() == SAMPLES {
                        last.pop_front();
                    }
                    last.push_back(SegmentBase(c, p, s));
                }
            }
            _ => odd.push(format!("segment key {} cannot be read", kv.key)),
        }
    })
    .await?;
    each(
        reads.meta,
        family(reads, Family::SegmentIndex),
        true,
        |kv| match Key::parse(roots, &kv.key.0).known() {
            Some(Key::SegmentIndex(.., b)) => {
                newest = newest.max(b.0);
                builds.add(b.0, ());
            }
            _ => odd.push(format!("segment index key {} cannot be read", kv.key)),
        },
    )
    .await?;
    each(
        reads.meta,
        family(reads, Family::AnalyzeTask),
        true,
        |kv| match Key::parse(roots, &kv.key.0).known() {
            Some(Key::AnalyzeTask(task)) => tasks.add(task.0, ()),
            _ => odd.push(format!("analyze task key {} cannot be read", kv.key)),
        },
    )
    .await?;
    out.id(newest);
    // What a record names of a segment without one is owned as if it had one.
    for other in lent.facts.borrowed.keys() {
        segments.add(other.0, ());
    }
    for (c, why) in lent.facts.unreadable {
        out.block(c, hold(Reason::UnreadableRecord, why));
    }
    out.known.segments = segments.sorted();
    out.known.partitions = partitions.sorted();
    out.known.builds = builds.sorted();
    out.known.tasks = tasks.sorted();
    for why in odd {
        out.bad(why);
    }
    out.sample = first.into_iter().chain(last).collect();
    Ok(())
}

/// What snapshots name stays as numbers.
async fn snapshots(reads: &Reads<'_>, keeper: &Keeper, now: UnixMs, out: &mut Seen) -> Result<()> {
    let mut ids = Ids::default();
    let mut found = Vec::new();
    for kv in reads.family(Family::Snapshot).await?.kvs {
        out.snapshots.add(&kv);
        let Some(Key::Snapshot(c, id)) = Key::parse(reads.roots, &kv.key.0).known() else {
            out.bad(format!("snapshot key {} cannot be read", kv.key));
            continue;
        };
        ids.add(id.0, ());
        out.id(id.0);
        let info = match pb::data::SnapshotInfo::decode(kv.value.clone()) {
            Ok(info) => info,
            Err(e) => {
                let why = format!("record {} cannot be read: {e}", kv.key);
                out.block(c, hold(Reason::UnreadableRecord, why));
                continue;
            }
        };
        let label = format!("snapshot {} ({id})", info.name);
        match info.state {
            state if refers(state) => {
                let record = Record {
                    id,
                    collection: c,
                    name: info.name.as_str().into(),
                    location: info.s3_location.as_str().into(),
                };
                found.push((record, label));
            }
            snapshot_state::PENDING => {
                let until = info
                    .pending_start_time
                    .saturating_add(out.known.tolerances.pending_ms);
                let why = Hold {
                    reason: Reason::SnapshotPending,
                    by: format!("{label} is being created"),
                    until: (info.pending_start_time > 0).then_some(UnixMs(until)),
                };
                out.block(c, why);
            }
            // Its own files wait for its record; what it referred to is free.
            snapshot_state::DELETING => {}
            other => out.block(
                c,
                hold(Reason::Unknown, format!("{label} is in state {other}")),
            ),
        }
    }
    // A store that does not answer is no verdict on a snapshot: that error ends the look.
    let whole = found.iter().map(|(r, _)| (r.clone(), Extent::Files));
    keeper.read(reads.objects, whole.collect(), now).await?;
    let mut held = Fold::default();
    for (record, label) in found {
        let who = u32::try_from(out.known.labels.len()).unwrap_or(u32::MAX);
        held.collections.insert(record.collection, who);
        // Usually its own place, which its record owns; a record may name another.
        held.files.add(
            mark(&ObjectKey(record.location.to_string())).cast_signed(),
            who,
        );
        let why = match keeper.reference(&record) {
            Reference::Loaded(refs) if refs.extent == Extent::Files => {
                held.take(&refs, who);
                None
            }
            Reference::Loaded(_) => Some("its manifests are not read yet".to_owned()),
            Reference::NotLoaded => Some("it is not read yet".to_owned()),
            Reference::Failed(why) => Some(why),
        };
        if let Some(why) = why {
            let why = format!("{label}: {why}");
            out.block(record.collection, hold(Reason::SnapshotUnreadable, why));
        }
        out.known.labels.push(label);
    }
    out.known.snapshots = ids.sorted();
    let known = &mut out.known;
    known.held.segments = held.segments.sorted();
    known.held.builds = held.builds.sorted();
    known.held.files = held.files.sorted();
    known.held.collections = held.collections;
    Ok(())
}

#[derive(Default)]
struct Fold {
    segments: Ids<u32>,
    builds: Ids<u32>,
    files: Ids<u32>,
    collections: BTreeMap<CollectionId, u32>,
}

impl Fold {
    fn take(&mut self, refs: &References, who: u32) {
        for segment in refs.segments() {
            self.segments.add(segment.0, who);
        }
        for build in refs.builds() {
            self.builds.add(build.0, who);
        }
        for file in refs.loose() {
            self.files.add(file.cast_signed(), who);
        }
    }
}

/// Reads owners of a batch and everything that may hold it again, as of now; answers for each entry whether it has an owner. `None` when a snapshot record has come, gone or moved:
/// then everything is to be looked at anew. The running work in `seen` is replaced by what runs now.
pub async fn again(
    reads: &Reads<'_>,
    seen: &mut Seen,
    me: JobId,
    entries: &[Entry],
) -> Result<Option<Vec<bool>>> {
    let mut print = Print::default();
    each(reads.meta, family(reads, Family::Snapshot), true, |kv| {
        print.add(kv);
    })
    .await?;
    if print != seen.snapshots {
        return Ok(None);
    }
    let (jobs, unread) = work(reads, Some(me)).await?;
    seen.known.work = jobs;
    if let Some(why) = unread {
        seen.bad(why);
    }
    let root = reads.objects.root();
    let paths: Vec<Option<ObjPath>> = entries
        .iter()
        .map(|e| ObjPath::parse(root, &e.key.0).known())
        .collect();
    // Distinct questions: hundreds of files have one owner.
    let asked: BTreeSet<Question> = paths
        .iter()
        .flatten()
        .filter_map(|path| question(reads.roots, path))
        .collect();
    let rows: BTreeSet<i64> = asked
        .iter()
        .filter_map(|q| match q {
            Question::Row(build) => Some(*build),
            _ => None,
        })
        .collect();
    let mut there: BTreeSet<Question> = BTreeSet::new();
    if !rows.is_empty() {
        // Where the path does not name the collection only the whole family can tell.
        let roots = reads.roots;
        each(
            reads.meta,
            family(reads, Family::SegmentIndex),
            true,
            |kv| {
                if let Some(Key::SegmentIndex(.., b)) = Key::parse(roots, &kv.key.0).known()
                    && rows.contains(&b.0)
                {
                    there.insert(Question::Row(b.0));
                }
            },
        )
        .await?;
    }
    let answers: Vec<Option<Question>> = stream::iter(asked)
        .map(|q| async move { Ok::<_, Error>(exists(reads, &q).await?.then_some(q)) }.boxed())
        .buffer_unordered(READS)
        .try_collect()
        .await?;
    there.extend(answers.into_iter().flatten());
    let owned = paths
        .iter()
        .map(|path| {
            path.as_ref()
                .and_then(|path| question(reads.roots, path))
                // Nothing to ask is no answer: it stays.
                .is_none_or(|q| there.contains(&q))
        })
        .collect();
    Ok(Some(owned))
}

/// Which record would own an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    /// This very key.
    Record(MetaKey),
    /// An index row of this build, of whatever collection.
    Row(i64),
    /// Any segment of this partition.
    Partition(i64, i64),
    /// This snapshot: the whole family was compared.
    Snapshot,
}

fn question(roots: &Roots, path: &ObjPath) -> Option<Question> {
    let key = |key: Key| Some(Question::Record(key.to_key(roots)));
    match path {
        ObjPath::IndexFile(f) => Some(Question::Row(f.build.0)),
        ObjPath::IndexFileV1(c, f) => key(Key::SegmentIndex(*c, f.partition, f.segment, f.build)),
        ObjPath::Lob(c, p, ..) | ObjPath::PartitionStats(c, p, ..) => {
            Some(Question::Partition(c.0, p.0))
        }
        ObjPath::AnalyzeCentroids(task, ..) | ObjPath::AnalyzeOffsets(task, ..) => {
            key(Key::AnalyzeTask(*task))
        }
        ObjPath::SnapshotMetadata(..) | ObjPath::SnapshotManifest(..) => Some(Question::Snapshot),
        ObjPath::Opaque(..) => None,
        path => {
            let owner = path.owner();
            key(Key::Segment(
                owner.collection?,
                owner.partition?,
                owner.segment?,
            ))
        }
    }
}

async fn exists(reads: &Reads<'_>, question: &Question) -> Result<bool> {
    let span = match question {
        Question::Record(key) => Span::key(key),
        Question::Partition(c, p) => Span::prefix(&Family::Segment.under(reads.roots, &[*c, *p])),
        Question::Row(_) | Question::Snapshot => return Ok(false),
    };
    let opts = RangeOpts {
        limit: 1,
        keys_only: true,
        ..RangeOpts::default()
    };
    Ok(!reads.meta.range(&span, opts).await?.kvs.is_empty())
}
