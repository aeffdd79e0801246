//! Reading everything that garbage collection's verdicts rest on. Only reads; whatever cannot be read becomes a hold (law 5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

pub use super::belongings::{Belongings, Seen};
use super::restore_source::Reads;
use super::runner::records;
use super::snapshot_create::works_on;
use super::standing::Standing;
use crate::engine::error::Result;
use crate::engine::format::binlog;
use crate::engine::format::codec::{Decoded, decode, is_tombstone};
use crate::engine::format::keys::{Family, Key, Role};
use crate::engine::format::paths::{FieldIndexFile, IndexFile, ManifestPath, ObjPath, SegmentBase};
use crate::engine::format::pb;
use crate::engine::format::vchannel;
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, IndexId, JobId, MetaKey, MetaRev, ObjectKey, PartitionId,
    PinId, SegmentId, SnapshotId, Tso, UnixMs, UnixNs, VChannel,
};
use crate::engine::meta::{KeyValue, Span};
use crate::engine::model::data::Pin;
use crate::engine::model::holds::{
    self, BuildFacts, ChannelFacts, Reference, SegmentFacts, SnapshotFacts, Tolerances, Work, World,
};
use crate::engine::plan::Intent;
use crate::engine::plan::journal::{JobRecord, Keys};

/// Everything read.
#[derive(Debug, Default)]
pub struct Scan {
    /// For the verdicts.
    pub world: World,
    /// Segments.
    pub segments: BTreeMap<SegmentId, Belongings>,
    /// Index rows.
    pub builds: BTreeMap<BuildId, Belongings>,
    /// Snapshot records.
    pub snapshots: BTreeMap<SnapshotId, (CollectionId, Seen)>,
    /// Channel checkpoints.
    pub checkpoints: BTreeMap<VChannel, Seen>,
    /// Database ids that collection records were found under.
    pub databases: BTreeSet<i64>,
    /// Index definitions and segments as index rows were judged by them, tombstones included.
    pub judged_by: BTreeMap<MetaKey, MetaRev>,
    /// The revision that all of it was read at.
    pub rev: MetaRev,
    /// What could not be read, in words.
    pub unreadable: Vec<String>,
}

impl Scan {
    /// Snapshot records of a collection, as they were when their references were read.
    #[must_use]
    pub fn snapshots_of(&self, collection: CollectionId) -> BTreeMap<MetaKey, MetaRev> {
        self.snapshots
            .values()
            .filter(|(of, _)| *of == collection)
            .map(|(_, seen)| (seen.key.clone(), seen.rev))
            .collect()
    }

    fn bad(&mut self, collection: Option<CollectionId>, why: String) {
        match collection {
            Some(c) => {
                self.world
                    .unreadable
                    .entry(c)
                    .or_insert_with(|| why.clone());
            }
            None => self.world.unreadable_any = Some(why.clone()),
        }
        self.unreadable.push(why);
    }
}

/// Reads it all, as of now and at one revision: a verdict joins records of many families. `cutoff` is fixed before the first
/// question. `me` is left out of the running work.
pub async fn scan(
    reads: &Reads<'_>,
    cutoff: UnixMs,
    tolerances: Tolerances,
    me: Option<JobId>,
) -> Result<Scan> {
    let any = Span::prefix(&Family::Snapshot.prefix(reads.roots));
    let standing = Standing::now(reads.meta, &any).await?;
    let reads = &Reads {
        meta: &standing,
        ..*reads
    };
    let mut out = Scan {
        rev: standing.at(),
        ..Scan::default()
    };
    out.world.now = cutoff;
    out.world.tolerances = tolerances;
    collections(reads, &mut out).await?;
    channels(reads, &mut out).await?;
    indexes(reads, &mut out).await?;
    segments(reads, &mut out).await?;
    loaded(reads, &mut out).await?;
    foreign_work(reads, &mut out).await?;
    our_work(reads, &mut out, me).await?;
    // One that comes into being later is found by the look right before a deletion.
    snapshots(reads, &mut out).await?;
    out.world = std::mem::take(&mut out.world).indexed();
    Ok(out)
}

fn parse(reads: &Reads<'_>, kv: &KeyValue) -> Option<Key> {
    Key::parse(reads.roots, &kv.key.0).known()
}

/// Decodes a record, or notes that it cannot be read.
fn read<M: Message + Default>(
    out: &mut Scan,
    key: &Key,
    kv: &KeyValue,
    collection: Option<CollectionId>,
) -> Option<M> {
    match decode::<M>(key, &kv.value) {
        Decoded::Value(message) => Some(message),
        Decoded::Tombstone => None,
        Decoded::Undecodable { reason } => {
            out.bad(
                collection,
                format!("record {} cannot be read: {reason}", kv.key),
            );
            None
        }
    }
}

async fn collections(reads: &Reads<'_>, out: &mut Scan) -> Result<()> {
    for family in [Family::Collection, Family::LegacyCollection] {
        for kv in reads.family(family).await?.kvs {
            match parse(reads, &kv) {
                Some(Key::Collection(db, c)) => {
                    out.databases.insert(db.0);
                    if !is_tombstone(family, &kv.value) {
                        out.world.collections.insert(c);
                    }
                }
                Some(Key::LegacyCollection(c)) if !is_tombstone(family, &kv.value) => {
                    out.world.collections.insert(c);
                }
                Some(_) => {}
                None => out.bad(None, format!("collection key {} cannot be read", kv.key)),
            }
        }
    }
    Ok(())
}

async fn channels(reads: &Reads<'_>, out: &mut Scan) -> Result<()> {
    for kv in reads.family(Family::ChannelCheckpoint).await?.kvs {
        let Some(Key::ChannelCheckpoint(channel)) = parse(reads, &kv) else {
            continue;
        };
        out.checkpoints.insert(channel.clone(), Seen::of(&kv));
        let of = vchannel::collection(&channel);
        let key = Key::ChannelCheckpoint(channel.clone());
        if let Some(position) = read::<pb::msg::MsgPosition>(out, &key, &kv, of) {
            out.world.channels.entry(channel).or_default().checkpoint =
                Some(Tso(position.timestamp));
        }
    }
    for kv in reads.family(Family::ChannelRemoval).await?.kvs {
        if let Some(Key::ChannelRemoval(channel)) = parse(reads, &kv) {
            let facts: &mut ChannelFacts = out.world.channels.entry(channel).or_default();
            facts.mark = Some(String::from_utf8_lossy(&kv.value).into_owned());
        }
    }
    Ok(())
}

async fn indexes(reads: &Reads<'_>, out: &mut Scan) -> Result<()> {
    for kv in reads.family(Family::FieldIndex).await?.kvs {
        let Some(Key::FieldIndex(c, id)) = parse(reads, &kv) else {
            out.bad(None, format!("index key {} cannot be read", kv.key));
            continue;
        };
        out.judged_by.insert(kv.key.clone(), kv.mod_rev);
        let key = Key::FieldIndex(c, id);
        if let Some(index) = read::<pb::index::FieldIndex>(out, &key, &kv, Some(c))
            && !index.deleted
        {
            out.world.indexes.entry(c).or_default().insert(id);
        }
    }
    for kv in reads.family(Family::SegmentIndex).await?.kvs {
        let Some(Key::SegmentIndex(c, p, s, b)) = parse(reads, &kv) else {
            out.bad(None, format!("segment index key {} cannot be read", kv.key));
            continue;
        };
        let key = Key::SegmentIndex(c, p, s, b);
        let Some(row) = read::<pb::index::SegmentIndex>(out, &key, &kv, Some(c)) else {
            continue;
        };
        let root = reads.objects.root();
        let objects = row
            .index_file_keys
            .iter()
            .map(|name| {
                let file = IndexFile {
                    build: b,
                    version: row.index_version,
                    partition: p,
                    segment: s,
                    file: name.clone(),
                };
                match row.index_store_path_version {
                    0 => ObjPath::IndexFile(file).to_key(root),
                    _ => ObjPath::IndexFileV1(c, file).to_key(root),
                }
            })
            .collect();
        out.builds.insert(
            b,
            Belongings {
                records: vec![Seen::of(&kv)],
                objects,
                ..Belongings::default()
            },
        );
        out.world.builds.insert(
            b,
            BuildFacts {
                build: b,
                index: IndexId(row.index_id),
                collection: c,
                segment: s,
                finished: row.state == pb::common::IndexState::Finished as i32,
                deleted: row.deleted,
            },
        );
    }
    Ok(())
}

async fn segments(reads: &Reads<'_>, out: &mut Scan) -> Result<()> {
    let root = reads.objects.root();
    let mut manifests = BTreeSet::new();
    let mut mains = BTreeMap::new();
    for kv in reads.family(Family::Segment).await?.kvs {
        let Some(Key::Segment(c, p, s)) = parse(reads, &kv) else {
            out.bad(None, format!("segment key {} cannot be read", kv.key));
            continue;
        };
        out.judged_by.insert(kv.key.clone(), kv.mod_rev);
        let key = Key::Segment(c, p, s);
        let Some(info) = read::<pb::data::SegmentInfo>(out, &key, &kv, Some(c)) else {
            continue;
        };
        mains.insert(s, Seen::of(&kv));
        let mut mine = Belongings::default();
        if info.manifest_path.trim_start().starts_with('{') {
            let base = ManifestPath::parse(&info.manifest_path)
                .ok()
                .and_then(|m| SegmentBase::parse(root, reads.objects.bucket(), &m.base_path));
            match base {
                // Only a folder that names this very segment is its own.
                Some(base) if base.2 == s && base.0 == c => {
                    mine.folders.insert(ObjectKey(base.to_path(root)));
                    manifests.insert(s);
                }
                _ => out.bad(
                    Some(c),
                    format!(
                        "segment {s}: manifest path {:?} is not its folder",
                        info.manifest_path
                    ),
                ),
            }
        } else if !info.manifest_path.is_empty() {
            mine.take(root, (c, s), &info.manifest_path);
        }
        inline_logs(reads, out, (c, p, s), &info, &mut mine);
        field_files(root, (c, p, s), &info, &mut mine);
        out.segments.insert(s, mine);
        out.world.segments.insert(s, facts(&info, c, s));
    }
    for family in [
        Family::Binlog,
        Family::Statslog,
        Family::Deltalog,
        Family::Bm25log,
    ] {
        for kv in reads.family(family).await?.kvs {
            let Some(key) = parse(reads, &kv) else {
                continue;
            };
            let Key::Log(kind, c, p, s, _) = key else {
                continue;
            };
            // An empty value is a record without logs.
            let Some(log) = read::<pb::data::FieldBinlog>(out, &key, &kv, Some(c)) else {
                continue;
            };
            let Some(mine) = out.segments.get_mut(&s) else {
                continue;
            };
            mine.records.push(Seen::of(&kv));
            if manifests.contains(&s) {
                continue;
            }
            match binlog::objects(kind, (c, p, s), &log) {
                Ok(paths) => mine
                    .objects
                    .extend(paths.iter().map(|(path, _)| path.to_key(root))),
                Err(e) => out.bad(Some(c), format!("record {}: {e}", kv.key)),
            }
        }
    }
    // Rows and files of its indexes go with a segment; its own record goes last.
    let rows: Vec<(SegmentId, BuildId)> = out
        .world
        .builds
        .values()
        .map(|b| (b.segment, b.build))
        .collect();
    for (segment, build) in rows {
        if let (Some(mine), Some(row)) = (out.segments.get_mut(&segment), out.builds.get(&build)) {
            mine.records.splice(0..0, row.records.iter().cloned());
            mine.objects.extend(row.objects.iter().cloned());
        }
    }
    for (segment, seen) in mains {
        if let Some(mine) = out.segments.get_mut(&segment) {
            mine.records.push(seen);
        }
    }
    Ok(())
}

fn facts(info: &pb::data::SegmentInfo, c: CollectionId, s: SegmentId) -> SegmentFacts {
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
        compacted: info.compacted,
        from: info
            .compaction_from
            .iter()
            .map(|id| SegmentId(*id))
            .collect(),
        l0: info.level == holds::L0,
        rows: info.num_of_rows,
    }
}

type Place = (CollectionId, PartitionId, SegmentId);

/// Lists inside the record itself (before 2.2) win over the log records; both are taken.
fn inline_logs(
    reads: &Reads<'_>,
    out: &mut Scan,
    (c, p, s): Place,
    info: &pb::data::SegmentInfo,
    mine: &mut Belongings,
) {
    use crate::engine::format::keys::LogKind;
    for (kind, list) in [
        (LogKind::Insert, &info.binlogs),
        (LogKind::Stats, &info.statslogs),
        (LogKind::Delta, &info.deltalogs),
        (LogKind::Bm25, &info.bm25statslogs),
    ] {
        for log in list {
            match binlog::objects(kind, (c, p, s), log) {
                Ok(paths) => mine.objects.extend(
                    paths
                        .iter()
                        .map(|(path, _)| path.to_key(reads.objects.root())),
                ),
                Err(e) => out.bad(Some(c), format!("segment {s}: {e}")),
            }
        }
    }
}

/// Text and JSON index files (`spec/layout.md` §7.3): full keys or names.
fn field_files(root: &str, (c, p, s): Place, info: &pb::data::SegmentInfo, mine: &mut Belongings) {
    let at = |build: i64, version: i64, field: i64, file: &str| FieldIndexFile {
        build: BuildId(build),
        version,
        collection: c,
        partition: p,
        segment: s,
        field: FieldId(field),
        file: file.to_owned(),
    };
    if info.manifest_path.trim_start().starts_with('{') {
        return;
    }
    let mut add = |full: &str, key: ObjectKey| {
        if full.contains('/') && ObjPath::parse(root, full).known().is_some() {
            mine.take(root, (c, s), full);
        } else {
            mine.objects.insert(key);
        }
    };
    for stats in info.text_stats_logs.values() {
        for file in &stats.files {
            let path = ObjPath::TextLog(at(stats.build_id, stats.version, stats.field_id, file));
            add(file, path.to_key(root));
        }
    }
    for stats in info.json_key_stats.values() {
        for file in &stats.files {
            let path = at(stats.build_id, stats.version, stats.field_id, file);
            let path = match stats.json_key_stats_data_format {
                0 | 1 => ObjPath::JsonKeyIndex(path),
                format => ObjPath::JsonStats(format, path),
            };
            add(file, path.to_key(root));
        }
    }
}

/// Whether a query node may have something loaded: stored targets, and load records while a query node is registered.
async fn loaded(reads: &Reads<'_>, out: &mut Scan) -> Result<()> {
    let nodes = reads.family(Family::Session).await?.kvs.iter().any(|kv| {
        matches!(
            parse(reads, kv),
            Some(Key::Session(Role::QueryNode | Role::StreamingNode, _))
        )
    });
    if nodes {
        for kv in reads.family(Family::CollectionLoad).await?.kvs {
            match parse(reads, &kv) {
                Some(Key::CollectionLoad(c)) => {
                    out.world.served.insert(c);
                }
                _ => out.bad(None, format!("load record {} cannot be read", kv.key)),
            }
        }
    }
    for kv in reads.family(Family::CollectionTarget).await?.kvs {
        let Some(Key::CollectionTarget(c)) = parse(reads, &kv) else {
            continue;
        };
        let key = Key::CollectionTarget(c);
        if let Some(target) = read::<pb::query::CollectionTarget>(out, &key, &kv, Some(c)) {
            for channel in target.channel_targets {
                let segments = channel.partition_targets.iter().flat_map(|p| &p.segments);
                out.world.targeted.extend(segments.map(|s| SegmentId(s.id)));
            }
        }
    }
    Ok(())
}

/// Work of coordinators that was not finished when they stopped: they will take it up again.
async fn foreign_work(reads: &Reads<'_>, out: &mut Scan) -> Result<()> {
    for kv in reads.family(Family::CopySegmentJob).await?.kvs {
        let Some(Key::CopySegmentJob(id)) = parse(reads, &kv) else {
            continue;
        };
        let key = Key::CopySegmentJob(id);
        if let Some(job) = read::<pb::data::CopySegmentJob>(out, &key, &kv, None)
            && matches!(job.state, 1 | 2)
        {
            out.world.work.push(Work {
                by: format!("restore job {id}"),
                collection: Some(CollectionId(job.collection_id)),
                segments: job
                    .id_mappings
                    .iter()
                    .flat_map(|m| [m.source_segment_id, m.target_segment_id])
                    .map(SegmentId)
                    .collect(),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::ImportJob).await?.kvs {
        let Some(Key::ImportJob(id)) = parse(reads, &kv) else {
            continue;
        };
        let key = Key::ImportJob(id);
        if let Some(job) = read::<pb::data::ImportJob>(out, &key, &kv, None)
            && !matches!(job.state, 4 | 5)
        {
            out.world.work.push(Work {
                by: format!("import job {id}"),
                collection: Some(CollectionId(job.collection_id)),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::ExportSnapshotJob).await?.kvs {
        let Some(Key::ExportSnapshotJob(id)) = parse(reads, &kv) else {
            continue;
        };
        let key = Key::ExportSnapshotJob(id);
        if let Some(job) = read::<pb::data::ExportSnapshotJob>(out, &key, &kv, None)
            && !matches!(job.state, 3 | 4)
        {
            out.world.work.push(Work {
                by: format!("export job {id}"),
                collection: Some(CollectionId(job.collection_id)),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::CompactionTask).await?.kvs {
        let Some(key) = parse(reads, &kv) else {
            out.bad(None, format!("compaction key {} cannot be read", kv.key));
            continue;
        };
        if let Some(task) = read::<pb::data::CompactionTask>(out, &key, &kv, None)
            && matches!(task.state, 1 | 2 | 6 | 7 | 9 | 10)
        {
            let ids = task.input_segments.iter().chain(&task.result_segments);
            out.world.work.push(Work {
                by: format!("compaction {}", task.plan_id),
                segments: ids
                    .chain(&task.tmp_segments)
                    .map(|id| SegmentId(*id))
                    .collect(),
                ..Work::default()
            });
        }
    }
    for kv in reads.family(Family::StatsTask).await?.kvs {
        let Some(key) = parse(reads, &kv) else {
            continue;
        };
        if let Some(task) = read::<pb::index::StatsTask>(out, &key, &kv, None)
            && matches!(task.state, 1 | 2 | 5)
        {
            out.world.work.push(Work {
                by: format!("stats task {}", task.task_id),
                segments: [task.segment_id, task.target_segment_id]
                    .into_iter()
                    .filter(|id| *id != 0)
                    .map(SegmentId)
                    .collect(),
                ..Work::default()
            });
        }
    }
    Ok(())
}

/// Our own jobs that have not ended, in this process or another.
async fn our_work(reads: &Reads<'_>, out: &mut Scan, me: Option<JobId>) -> Result<()> {
    let keys = Keys::new(reads.roots);
    let prefix = keys.jobs();
    let (kvs, _) = records(reads.meta, &keys).await?;
    for kv in kvs {
        let rest = &kv.key.0[prefix.bytes().len()..];
        // What lies below a record that is gone.
        if rest.contains(&b'/') {
            continue;
        }
        match serde_json::from_slice::<JobRecord>(&kv.value) {
            Ok(job) => {
                if job.state.ended()
                    || Some(job.id) == me
                    || matches!(job.intent, Intent::Gc { .. })
                {
                    continue;
                }
                out.world.work.push(Work {
                    by: format!("job {} ({})", job.id, job.title),
                    collection: job.collection,
                    snapshot: match job.intent {
                        Intent::Restore { snapshot, .. } | Intent::DropSnapshot { snapshot } => {
                            Some(snapshot)
                        }
                        Intent::CreateSnapshot { .. } => works_on(&job.machine),
                        _ => None,
                    },
                    ..Work::default()
                });
            }
            Err(e) => out.bad(None, format!("job record {} cannot be read: {e}", kv.key)),
        }
    }
    Ok(())
}

async fn snapshots(reads: &Reads<'_>, out: &mut Scan) -> Result<()> {
    for kv in reads.family(Family::Snapshot).await?.kvs {
        let Some(Key::Snapshot(c, id)) = parse(reads, &kv) else {
            out.bad(None, format!("snapshot key {} cannot be read", kv.key));
            continue;
        };
        out.snapshots.insert(id, (c, Seen::of(&kv)));
        let key = Key::Snapshot(c, id);
        let Some(info) = read::<pb::data::SnapshotInfo>(out, &key, &kv, Some(c)) else {
            continue;
        };
        let reference = match info.state {
            0 | 2 => reference(reads, &kv.value).await?,
            _ => Reference::NotLoaded,
        };
        if let Reference::Failed(why) = &reference {
            out.unreadable.push(format!(
                "snapshot {} ({id}) of collection {c}: {why}",
                info.name
            ));
        }
        out.world.snapshots.push(SnapshotFacts {
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

/// Reads JSON and all manifests: ids alone would not protect the files of compaction descendants.
///
/// A store that does not answer is no verdict on a snapshot: that error ends the scan, which is taken again.
async fn reference(reads: &Reads<'_>, record: &Bytes) -> Result<Reference> {
    let info = match pb::data::SnapshotInfo::decode(record.clone()) {
        Ok(info) => info,
        Err(e) => return Ok(Reference::Failed(e.to_string())),
    };
    Ok(match reads.read_source(info).await {
        Ok(source) => match super::restore_files::references(
            &source,
            reads.objects.root(),
            reads.objects.bucket(),
        ) {
            Ok(refs) => Reference::Loaded(Arc::new(refs)),
            Err(e) => Reference::Failed(e.to_string()),
        },
        Err(e) if e.is_transient() => return Err(e),
        Err(e) => Reference::Failed(e.to_string()),
    })
}
