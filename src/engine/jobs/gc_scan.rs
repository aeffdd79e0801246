//! Reading everything that garbage collection's verdicts rest on. Only reads; whatever cannot be read becomes a hold (law 5).
//!
//! Records are read page by page and kept as facts: of a segment some 250 bytes, of its files nothing. What an item owns is read when it
//! goes ([`owned`](super::belongings::owned)).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;

pub use super::belongings::{Belongings, Names, Owned, Seen};
use super::belongings::{field_files, folder, is_own};
use super::gc_work;
use super::references::Keeper;
use super::restore_source::Reads;
use crate::engine::clock::Clock;
use crate::engine::error::{ErrorKind, Result};
use crate::engine::format::codec::{Decoded, decode, is_tombstone};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb;
use crate::engine::format::vchannel;
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, IndexId, JobId, MetaKey, MetaRev, ObjectKey, PartitionId,
    PinId, SegmentId, SnapshotId, TaskId, Tso, UnixMs, UnixNs, VChannel,
};
use crate::engine::meta::{KeyValue, MetaReader, RangeOpts, Span};
use crate::engine::model::data::Pin;
use crate::engine::model::holds::{
    self, BuildFacts, ChannelFacts, Facts, FieldIndexFacts, FieldIndexKind, Reference,
    SegmentFacts, SnapshotFacts, Tolerances, World,
};
use crate::engine::model::references::{Extent, Record, refers};

/// Where a record is, and as of when it was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    collection: CollectionId,
    partition: PartitionId,
    rev: MetaRev,
}

/// Everything read.
#[derive(Debug, Default)]
pub struct Scan {
    /// For the verdicts.
    pub world: World,
    /// Snapshot records.
    pub snapshots: BTreeMap<SnapshotId, (CollectionId, Seen)>,
    /// Channel checkpoints.
    pub checkpoints: BTreeMap<VChannel, Seen>,
    /// Removal marks that say `removed`: each goes with its channel's checkpoint.
    pub removed: BTreeMap<VChannel, Seen>,
    /// Database ids that collection records were found under.
    pub databases: BTreeSet<i64>,
    /// Index definitions, tombstones included.
    pub definitions: BTreeMap<(CollectionId, IndexId), Seen>,
    /// The revision that all of it was read at.
    pub rev: MetaRev,
    /// When the reading ended: what is judged by it is looked at again after a while.
    pub read: UnixMs,
    /// What could not be read, in words.
    pub unreadable: Vec<String>,
    segments: BTreeMap<SegmentId, At>,
    rows: BTreeMap<BuildId, At>,
    analyze: BTreeMap<TaskId, MetaRev>,
}

impl Scan {
    /// An analyze task's record.
    #[must_use]
    pub fn analyze_task(&self, id: TaskId) -> Option<(Key, MetaRev)> {
        let rev = self.analyze.get(&id)?;
        Some((Key::AnalyzeTask(id), *rev))
    }

    /// Snapshot records of a collection, as they were when their references were read.
    #[must_use]
    pub fn snapshots_of(&self, collection: CollectionId) -> BTreeMap<MetaKey, MetaRev> {
        self.snapshots
            .values()
            .filter(|(of, _)| *of == collection)
            .map(|(_, seen)| (seen.key.clone(), seen.rev))
            .collect()
    }

    /// A segment's own record, also one that could not be read.
    #[must_use]
    pub fn segment(&self, id: SegmentId) -> Option<(Key, MetaRev)> {
        let at = self.segments.get(&id)?;
        Some((Key::Segment(at.collection, at.partition, id), at.rev))
    }

    /// A segment index row.
    #[must_use]
    pub fn row(&self, id: BuildId) -> Option<(Key, MetaRev)> {
        let (at, facts) = (self.rows.get(&id)?, self.world.builds.get(&id)?);
        let key = Key::SegmentIndex(at.collection, at.partition, facts.segment, id);
        Some((key, at.rev))
    }
}

/// How much of the snapshots' files a scan needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Of collections where something might go: enough for every rule that begins at a record.
    Candidates,
    /// Of all: enough to judge an object whose owner nobody knows.
    All,
}

/// What a scan is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// Fixed before the first question (law 5).
    pub cutoff: UnixMs,
    /// Tolerances.
    pub tolerances: Tolerances,
    /// A job that is left out of the running work.
    pub me: Option<JobId>,
    /// How far references are read.
    pub need: Need,
}

/// Times that a scan begins anew because the store forgot the revision it stood at.
const TRIES: u32 = 5;

/// A scan under way.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) facts: Facts,
    scan: Scan,
}

impl Reading {
    pub(super) fn bad(&mut self, collection: Option<CollectionId>, why: String) {
        match collection {
            Some(c) => {
                self.facts
                    .unreadable
                    .entry(c)
                    .or_insert_with(|| why.clone());
            }
            None => self.facts.unreadable_any = Some(why.clone()),
        }
        self.scan.unreadable.push(why);
    }

    /// Decodes a record, or notes that it cannot be read.
    pub(super) fn read<M: Message + Default>(
        &mut self,
        key: &Key,
        kv: &KeyValue,
        collection: Option<CollectionId>,
    ) -> Option<M> {
        match decode::<M>(key, &kv.value) {
            Decoded::Value(message) => Some(message),
            Decoded::Tombstone => None,
            Decoded::Undecodable { reason } => {
                self.bad(
                    collection,
                    format!("record {} cannot be read: {reason}", kv.key),
                );
                None
            }
        }
    }
}

/// Reads it all, as of now and at one revision: a verdict joins records of many families. References that `keeper` does not know yet
/// are read, and kept there.
///
/// Over history that is compacted away meanwhile the reading begins anew, some times.
pub async fn scan(
    reads: &Reads<'_>,
    keeper: &Keeper,
    clock: &dyn Clock,
    wants: Wants,
) -> Result<Scan> {
    let mut tries = 0;
    loop {
        match once(reads, keeper, clock.now(), &wants).await {
            Err(e) if e.kind() == ErrorKind::Compacted && tries < TRIES => tries += 1,
            Err(e) => return Err(e),
            Ok(mut scan) => {
                scan.read = clock.now();
                return Ok(scan);
            }
        }
    }
}

async fn once(reads: &Reads<'_>, keeper: &Keeper, now: UnixMs, wants: &Wants) -> Result<Scan> {
    let any = Span::prefix(&Family::Snapshot.prefix(reads.roots));
    let (standing, rev) = reads.meta.standing(&any).await?;
    let reads = &Reads {
        meta: &standing,
        ..*reads
    };
    let mut out = Reading::default();
    out.scan.rev = rev;
    out.facts.now = wants.cutoff;
    out.facts.tolerances = wants.tolerances;
    collections(reads, &mut out).await?;
    channels(reads, &mut out).await?;
    indexes(reads, &mut out).await?;
    analyze(reads, &mut out).await?;
    segments(reads, &mut out).await?;
    gc_work::loaded(reads, &mut out).await?;
    gc_work::foreign(reads, &mut out).await?;
    gc_work::ours(reads, &mut out, wants.me).await?;
    // One that comes into being later is found by the look right before a deletion.
    snapshots(reads, keeper, &mut out, now, wants.need).await?;
    let Reading { facts, mut scan } = out;
    scan.world = facts.indexed();
    Ok(scan)
}

/// Only the running work, as of now, and what of it cannot be read.
pub(super) async fn work(
    reads: &Reads<'_>,
    me: Option<JobId>,
) -> Result<(Vec<crate::engine::model::facts::Work>, Option<String>)> {
    let mut out = Reading::default();
    gc_work::foreign(reads, &mut out).await?;
    gc_work::ours(reads, &mut out, me).await?;
    Ok((out.facts.work, out.facts.unreadable_any))
}

pub(super) fn parse(reads: &Reads<'_>, kv: &KeyValue) -> Option<Key> {
    Key::parse(reads.roots, &kv.key.0).known()
}

/// Calls `each` for every record of a span, page by page, all at one revision. Holds one page.
pub(super) async fn pages(
    meta: &MetaReader,
    span: &Span,
    mut each: impl FnMut(KeyValue) + Send,
) -> Result<()> {
    let mut opts = RangeOpts::default();
    let mut rest = span.clone();
    loop {
        let page = meta.range(&rest, opts).await?;
        opts.at = Some(opts.at.unwrap_or(page.rev)).filter(|at| *at > MetaRev(0));
        match page.kvs.last() {
            Some(last) if page.more => rest = span.after(&last.key),
            _ => rest.end = Some(rest.start.clone()),
        }
        page.kvs.into_iter().for_each(&mut each);
        if rest.is_empty() {
            return Ok(());
        }
    }
}

async fn family(
    reads: &Reads<'_>,
    family: Family,
    each: impl FnMut(KeyValue) + Send,
) -> Result<()> {
    pages(reads.meta, &Span::prefix(&family.prefix(reads.roots)), each).await
}

async fn collections(reads: &Reads<'_>, out: &mut Reading) -> Result<()> {
    for of in [Family::Collection, Family::LegacyCollection] {
        family(reads, of, |kv| match parse(reads, &kv) {
            Some(Key::Collection(db, c)) => {
                out.scan.databases.insert(db.0);
                if !is_tombstone(of, &kv.value) {
                    out.facts.collections.insert(c);
                }
            }
            Some(Key::LegacyCollection(c)) if !is_tombstone(of, &kv.value) => {
                out.facts.collections.insert(c);
            }
            Some(_) => {}
            None => out.bad(None, format!("collection key {} cannot be read", kv.key)),
        })
        .await?;
    }
    Ok(())
}

async fn channels(reads: &Reads<'_>, out: &mut Reading) -> Result<()> {
    family(reads, Family::ChannelCheckpoint, |kv| {
        let Some(Key::ChannelCheckpoint(channel)) = parse(reads, &kv) else {
            return;
        };
        out.scan.checkpoints.insert(channel.clone(), Seen::of(&kv));
        let of = vchannel::collection(&channel);
        let key = Key::ChannelCheckpoint(channel.clone());
        if let Some(position) = out.read::<pb::msg::MsgPosition>(&key, &kv, of) {
            out.facts.channels.entry(channel).or_default().checkpoint =
                Some(Tso(position.timestamp));
        }
    })
    .await?;
    family(reads, Family::ChannelRemoval, |kv| {
        if let Some(Key::ChannelRemoval(channel)) = parse(reads, &kv) {
            if kv.value == b"removed"[..] {
                out.scan.removed.insert(channel.clone(), Seen::of(&kv));
            }
            let facts: &mut ChannelFacts = out.facts.channels.entry(channel).or_default();
            facts.mark = Some(String::from_utf8_lossy(&kv.value).into_owned());
        }
    })
    .await
}

async fn indexes(reads: &Reads<'_>, out: &mut Reading) -> Result<()> {
    family(reads, Family::FieldIndex, |kv| {
        let Some(Key::FieldIndex(c, id)) = parse(reads, &kv) else {
            out.bad(None, format!("index key {} cannot be read", kv.key));
            return;
        };
        out.scan.definitions.insert((c, id), Seen::of(&kv));
        let key = Key::FieldIndex(c, id);
        if let Some(index) = out.read::<pb::index::FieldIndex>(&key, &kv, Some(c)) {
            if index.deleted {
                out.facts.deleted_indexes.insert((c, id));
            } else {
                out.facts.indexes.entry(c).or_default().insert(id);
            }
        }
    })
    .await?;
    family(reads, Family::SegmentIndex, |kv| {
        let Some(Key::SegmentIndex(c, p, s, b)) = parse(reads, &kv) else {
            out.bad(None, format!("segment index key {} cannot be read", kv.key));
            return;
        };
        let key = Key::SegmentIndex(c, p, s, b);
        let Some(row) = out.read::<pb::index::SegmentIndex>(&key, &kv, Some(c)) else {
            return;
        };
        let at = At {
            collection: c,
            partition: p,
            rev: kv.mod_rev,
        };
        if let Some(other) = out.scan.rows.insert(b, at) {
            let why = format!("index build {b} has two rows");
            out.bad(Some(other.collection), why.clone());
            out.bad(Some(c), why);
        }
        let facts = BuildFacts {
            build: b,
            index: IndexId(row.index_id),
            collection: c,
            segment: s,
            finished: row.state == pb::common::IndexState::Finished as i32,
            deleted: row.deleted,
        };
        out.facts.builds.insert(b, facts);
    })
    .await
}

async fn analyze(reads: &Reads<'_>, out: &mut Reading) -> Result<()> {
    family(reads, Family::AnalyzeTask, |kv| {
        // One that cannot be read keeps its files by not being here.
        if let Some(key @ Key::AnalyzeTask(id)) = parse(reads, &kv)
            && let Decoded::Value(task) = decode::<pb::index::AnalyzeTask>(&key, &kv.value)
        {
            out.facts.analyze.insert(id, task.version);
            out.scan.analyze.insert(id, kv.mod_rev);
        }
    })
    .await
}

async fn segments(reads: &Reads<'_>, out: &mut Reading) -> Result<()> {
    let (root, bucket) = (reads.objects.root(), reads.objects.bucket());
    family(reads, Family::Segment, |kv| {
        let Some(Key::Segment(c, p, s)) = parse(reads, &kv) else {
            out.bad(None, format!("segment key {} cannot be read", kv.key));
            return;
        };
        let at = At {
            collection: c,
            partition: p,
            rev: kv.mod_rev,
        };
        if let Some(other) = out.scan.segments.insert(s, at) {
            let why = format!("segment {s} has two records");
            out.bad(Some(other.collection), why.clone());
            out.bad(Some(c), why);
        }
        let key = Key::Segment(c, p, s);
        let Some(info) = out.read::<pb::data::SegmentInfo>(&key, &kv, Some(c)) else {
            return;
        };
        let facts = facts(&info, c, s);
        if !facts.dropped {
            borrowed((root, bucket), out, (c, p, s), &info);
        }
        out.facts.segments.insert(s, facts);
    })
    .await
}

fn facts(info: &pb::data::SegmentInfo, c: CollectionId, s: SegmentId) -> SegmentFacts {
    let text = info.text_stats_logs.values().map(|stats| FieldIndexFacts {
        kind: FieldIndexKind::Text,
        field: FieldId(stats.field_id),
        build: BuildId(stats.build_id),
        version: stats.version,
    });
    let json = info.json_key_stats.values().map(|stats| FieldIndexFacts {
        kind: FieldIndexKind::Json(stats.json_key_stats_data_format.max(1)),
        field: FieldId(stats.field_id),
        build: BuildId(stats.build_id),
        version: stats.version,
    });
    SegmentFacts {
        id: s,
        collection: c,
        channel: VChannel(info.insert_channel.clone()),
        state: pb::common::SegmentState::try_from(info.state)
            .map_or_else(|_| info.state.to_string(), |state| format!("{state:?}")),
        dropped: info.state == holds::DROPPED,
        dropped_at: i64::try_from(info.dropped_at)
            .ok()
            .filter(|at| *at > 0)
            .map(UnixNs),
        dml: Tso(info.dml_position.as_ref().map_or(0, |p| p.timestamp)),
        from: info
            .compaction_from
            .iter()
            .map(|id| SegmentId(*id))
            .collect(),
        l0: info.level == holds::L0,
        rows: info.num_of_rows,
        // A V3 segment's own indexes lie in its folder.
        field_indexes: if info.manifest_path.trim_start().starts_with('{') {
            Vec::new()
        } else {
            text.chain(json).collect()
        },
    }
}

/// Files of other segments that the record of one in use names: they go with it, not with the others.
pub(super) fn borrowed(
    (root, bucket): (&str, &str),
    out: &mut Reading,
    of @ (c, _, s): (CollectionId, PartitionId, SegmentId),
    info: &pb::data::SegmentInfo,
) {
    let mut keys: Vec<String> = Vec::new();
    if info.manifest_path.trim_start().starts_with('{') {
        match folder(root, bucket, info) {
            Some(base) if base.2 == s => {}
            Some(base) => {
                out.facts.borrowed.insert(base.2, s);
            }
            None => out.bad(
                Some(c),
                format!(
                    "segment {s}: manifest path {:?} is not a segment's folder",
                    info.manifest_path
                ),
            ),
        }
    } else {
        keys.extend((!info.manifest_path.is_empty()).then(|| info.manifest_path.clone()));
        keys.extend(
            field_files(root, of, info)
                .into_iter()
                .filter_map(|(whole, _)| whole),
        );
    }
    for key in keys.into_iter().map(ObjectKey) {
        if is_own(root, of, &key) {
            continue;
        }
        let owner = ObjPath::parse(root, &key.0)
            .known()
            .map(|path| path.owner());
        if let Some(other) = owner.and_then(|owner| owner.segment) {
            out.facts.borrowed.insert(other, s);
        }
    }
}

async fn snapshots(
    reads: &Reads<'_>,
    keeper: &Keeper,
    out: &mut Reading,
    now: UnixMs,
    need: Need,
) -> Result<()> {
    let mut found = Vec::new();
    family(reads, Family::Snapshot, |kv| {
        let Some(Key::Snapshot(c, id)) = parse(reads, &kv) else {
            out.bad(None, format!("snapshot key {} cannot be read", kv.key));
            return;
        };
        out.scan.snapshots.insert(id, (c, Seen::of(&kv)));
        let key = Key::Snapshot(c, id);
        if let Some(info) = out.read::<pb::data::SnapshotInfo>(&key, &kv, Some(c)) {
            found.push((c, id, info));
        }
    })
    .await?;
    let concerned = candidates(&out.facts);
    let record = |c: CollectionId, id, info: &pb::data::SnapshotInfo| Record {
        id,
        collection: c,
        name: info.name.as_str().into(),
        location: info.s3_location.as_str().into(),
    };
    let to_read = found
        .iter()
        .filter(|(_, _, info)| refers(info.state))
        .map(|(c, id, info)| {
            let whole = need == Need::All || concerned.contains(c);
            let extent = if whole { Extent::Files } else { Extent::Ids };
            (record(*c, *id, info), extent)
        })
        .collect();
    keeper.read(reads.objects, to_read, now).await?;
    for (c, id, info) in found {
        let reference = if refers(info.state) {
            keeper.reference(&record(c, id, &info))
        } else {
            Reference::NotLoaded
        };
        if let Reference::Failed(why) = &reference {
            out.scan.unreadable.push(format!(
                "snapshot {} ({id}) of collection {c}: {why}",
                info.name
            ));
        }
        out.facts.snapshots.push(SnapshotFacts {
            id,
            collection: c,
            name: Arc::from(info.name.as_str()),
            state: info.state,
            pending_since: Some(UnixMs(info.pending_start_time)).filter(|at| at.0 > 0),
            pins: info
                .pin_ids
                .iter()
                .map(|pin| Pin {
                    id: PinId(*pin),
                    expires: info
                        .pin_expire_at_ms
                        .get(pin)
                        .copied()
                        .filter(|at| *at > 0)
                        .map(UnixMs),
                })
                .collect(),
            reference,
        });
    }
    Ok(())
}

/// Collections where a rule might take something: a dropped segment, a row without its index or segment, an earlier version.
fn candidates(facts: &Facts) -> BTreeSet<CollectionId> {
    let dropped = facts
        .segments
        .values()
        .filter(|s| s.dropped || !s.field_indexes.is_empty())
        .map(|s| s.collection);
    let rows = facts
        .builds
        .values()
        .filter(|row| {
            row.deleted
                || !facts.segments.contains_key(&row.segment)
                || !facts
                    .indexes
                    .get(&row.collection)
                    .is_some_and(|set| set.contains(&row.index))
        })
        .map(|row| row.collection);
    dropped.chain(rows).collect()
}
