//! Which data a snapshot holds (`spec/snapshot.md` §4): the boundary of each channel, the segments before it, the files of each.
//! Pure: everything comes from one [`Source`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::source::Source;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::{FieldIndexFile, IndexFile, ManifestPath, ObjPath};
use crate::engine::format::pb::common::IndexState;
use crate::engine::format::pb::common::SegmentState;
use crate::engine::format::pb::data::{
    CollectionDescription, FieldBinlog, JsonKeyStats, SegmentDescription, SegmentInfo,
    SegmentLevel, SnapshotInfo, SnapshotLayout, SnapshotMetadata, StorageV2SegmentManifest,
    TextIndexStats,
};
use crate::engine::format::pb::index::{
    IndexFilePathInfo, IndexInfo, IndexStorePathVersion, SegmentIndex,
};
use crate::engine::format::pb::msg::MsgPosition;
use crate::engine::format::snapshot::{build_ids, manifest_key, pending_form};
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, LogId, PartitionId, PartitionScope, SegmentId, SnapshotId, Tso,
};
use crate::engine::model::segments;

/// Storage version of segments whose files their own manifest lists.
const V3: i64 = 3;

/// What is in and what is out.
#[derive(Clone, Debug)]
pub struct Selection {
    /// One position a channel, sorted by channel.
    pub boundary: Vec<MsgPosition>,
    /// The segments, by id, with whole paths.
    pub segments: Vec<SegmentDescription>,
    /// Segments outside: id, rows, why.
    pub outside: Vec<(i64, i64, String)>,
    /// Segments inside that also hold rows from after the boundary.
    pub beyond: Vec<i64>,
    /// Segments inside of which so many rows are not on disk yet.
    pub partial: Vec<(i64, i64)>,
}

/// §4.1. Refuses a channel without any position, and one that is marked dropped while its collection lives.
pub fn boundary(source: &Source) -> Result<Vec<MsgPosition>> {
    let mut names = source.info.virtual_channel_names.clone();
    names.sort();
    if names.is_empty() {
        return Err(
            Error::new(ErrorKind::Corrupt, "the collection has no virtual channel")
                .fix("it is damaged: its own key lists none"),
        );
    }
    names.iter().map(|name| seek(source, name)).collect()
}

fn seek(source: &Source, channel: &str) -> Result<MsgPosition> {
    let named = |mut p: MsgPosition| {
        channel.clone_into(&mut p.channel_name);
        p
    };
    if let Some(cp) = source.checkpoints.get(channel) {
        if Tso(cp.timestamp).is_dropped() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("channel {channel} is marked dropped, its collection is not"),
            )
            .fix("finish dropping the collection, or repair the channel's checkpoint"));
        }
        if cp.timestamp != 0 {
            return Ok(named(cp.clone()));
        }
    }
    let dml = source
        .segments
        .values()
        .filter(|s| s.insert_channel == channel && s.state() != SegmentState::Dropped)
        .filter_map(|s| s.dml_position.clone())
        .filter(|p| p.timestamp != 0)
        .min_by_key(|p| p.timestamp);
    if let Some(p) = dml {
        return Ok(named(p));
    }
    let at = source
        .info
        .virtual_channel_names
        .iter()
        .position(|n| n == channel);
    let physical = at.and_then(|i| source.info.physical_channel_names.get(i));
    let start = source
        .info
        .start_positions
        .iter()
        .find(|p| Some(&p.key) == physical);
    start.map_or_else(
        || {
            Err(Error::new(ErrorKind::Corrupt, format!("channel {channel} has no checkpoint, no data and no start position: it has no boundary"))
                .fix("start Milvus once, so that the channel gets a checkpoint"))
        },
        |start| {
            Ok(MsgPosition {
                channel_name: channel.to_owned(),
                msg_id: start.data.clone(),
                ..MsgPosition::default()
            })
        },
    )
}

/// §4.2 and §4.3. `root` is the object root.
pub fn select(source: &Source, root: &str) -> Result<Selection> {
    let boundary = boundary(source)?;
    let seeks: HashMap<&str, u64> = boundary
        .iter()
        .map(|p| (p.channel_name.as_str(), p.timestamp))
        .collect();
    let mut out = Selection {
        boundary: boundary.clone(),
        segments: Vec::new(),
        outside: Vec::new(),
        beyond: Vec::new(),
        partial: Vec::new(),
    };
    let mut inside = BTreeSet::new();
    for (id, segment) in &source.segments {
        match verdict(source, segment, &seeks)? {
            Some(why) => out.outside.push((*id, segment.num_of_rows, why.to_owned())),
            None => {
                inside.insert(*id);
            }
        }
    }
    for (id, why) in twice(source, &inside) {
        inside.remove(&id);
        let rows = source.segments.get(&id).map_or(0, |s| s.num_of_rows);
        out.outside.push((id, rows, why.to_owned()));
    }
    out.outside.sort_by_key(|(id, ..)| *id);
    for (id, segment) in source.segments.iter().filter(|(id, _)| inside.contains(id)) {
        let channel = segment.insert_channel.as_str();
        let seek = seeks.get(channel).copied().unwrap_or(0);
        let last = segment.dml_position.as_ref().map_or(0, |p| p.timestamp);
        let logs = segment.binlogs.iter().flat_map(|f| &f.binlogs);
        let logged = logs.map(|b| b.timestamp_to).max().unwrap_or(0);
        if last.max(logged) > seek {
            out.beyond.push(*id);
        }
        let mut description = describe(source, segment, root)?;
        if let Some(rows) = on_disk(segment).filter(|rows| *rows < segment.num_of_rows) {
            out.partial.push((*id, segment.num_of_rows - rows));
            description.num_of_rows = rows;
        }
        out.segments.push(description);
    }
    Ok(out)
}

/// Those of `inside` whose rows another of them holds too: while a compaction is not finished, its inputs and its outputs both
/// stand (`spec/lifecycle.md` §9, §I.6). Hidden outputs stay outside as long as their inputs are there; outputs that are
/// published, or that are all there is, put their ancestors outside. What is left is an antichain.
fn twice(source: &Source, inside: &BTreeSet<i64>) -> BTreeMap<i64, &'static str> {
    let hidden = |s: &SegmentInfo| s.is_invisible && s.created_by_compaction;
    let above = |s: &SegmentInfo| -> BTreeSet<i64> {
        let all = ancestors(source, s);
        all.intersection(inside).copied().collect()
    };
    let segments = inside.iter().filter_map(|id| source.segments.get(id));
    let (mut waiting, shown): (Vec<_>, Vec<_>) = segments.partition(|s| hidden(s));
    let mut replaced: BTreeSet<i64> = shown.into_iter().flat_map(above).collect();
    // Outputs of one compaction stay or go together: each has rows that its siblings have not.
    while let Some(at) = waiting
        .iter()
        .position(|s| !covered(source, s, &mut BTreeSet::new()) || !above(s).is_disjoint(&replaced))
    {
        replaced.extend(above(waiting.swap_remove(at)));
    }
    let unpublished = waiting.iter().map(|s| {
        (
            s.id,
            "a compaction made it and has not published it, its inputs are still there",
        )
    });
    let inputs = replaced.into_iter().map(|id| {
        (
            id,
            "it is an input of a compaction whose outputs are inside",
        )
    });
    inputs.chain(unpublished).collect()
}

/// Every segment that it was compacted from, at any remove.
fn ancestors(source: &Source, s: &SegmentInfo) -> BTreeSet<i64> {
    let mut found = BTreeSet::new();
    let mut todo = s.compaction_from.clone();
    while let Some(id) = todo.pop() {
        if id != s.id && found.insert(id) {
            todo.extend(
                source
                    .segments
                    .get(&id)
                    .iter()
                    .flat_map(|p| &p.compaction_from),
            );
        }
    }
    found
}

/// Whether all rows of `s` are in healthy ancestors: each parent is healthy, or dropped and covered itself (a hidden output is
/// sorted into another hidden one before it is published). A parent that is gone covers nothing.
fn covered(source: &Source, s: &SegmentInfo, seen: &mut BTreeSet<i64>) -> bool {
    !s.compaction_from.is_empty()
        && seen.insert(s.id)
        && s.compaction_from.iter().all(|id| {
            source.segments.get(id).is_some_and(|parent| {
                parent.state() != SegmentState::Dropped || covered(source, parent, seen)
            })
        })
}

/// Rows of a segment that is still being filled, as its logs on disk have them: its record counts those in memory too, and a
/// restore would look for them. `None` when the logs do not tell, or the segment is complete.
fn on_disk(s: &SegmentInfo) -> Option<i64> {
    if !matches!(
        s.state(),
        SegmentState::Growing | SegmentState::Sealed | SegmentState::Flushing
    ) {
        return None;
    }
    Some(segments::rows(&s.binlogs)).filter(|rows| *rows > 0)
}

/// Why a segment stays outside.
fn verdict(
    source: &Source,
    s: &SegmentInfo,
    seeks: &HashMap<&str, u64>,
) -> Result<Option<&'static str>> {
    if s.state() == SegmentState::Dropped {
        return Ok(Some("dropped"));
    }
    if s.is_importing {
        return Ok(Some("an import or a restore is still filling it"));
    }
    let has = |logs: &[FieldBinlog]| logs.iter().any(|f| !f.binlogs.is_empty());
    let manifest = if s.storage_version >= V3 && !s.manifest_path.is_empty() {
        ManifestPath::parse(&s.manifest_path)
            .map_err(|e| e.with("segment", s.id))?
            .ver
            > 0
    } else {
        false
    };
    if !has(&s.binlogs) && !has(&s.deltalogs) && !manifest {
        return Ok(Some(if s.state() == SegmentState::Growing {
            "growing, nothing of it is on disk yet"
        } else {
            "no data on disk"
        }));
    }
    let deletes = s.level() == SegmentLevel::L0;
    let Some(scope) = PartitionScope::of(PartitionId(s.partition_id), deletes) else {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "segment {} has rows and partition {}: only deletes may be about every partition",
                s.id, s.partition_id
            ),
        )
        .fix("the segment is damaged: repair or drop it first"));
    };
    if scope
        .one()
        .is_some_and(|p| !source.partitions.contains_key(&p.0))
    {
        return Ok(Some("its partition is dropped"));
    }
    let Some(seek) = seeks.get(s.insert_channel.as_str()) else {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "segment {} is on channel {:?}, which the collection does not have",
                s.id, s.insert_channel
            ),
        )
        .fix("the segment is damaged: repair or drop it first"));
    };
    let start = s.start_position.as_ref().map_or(0, |p| p.timestamp);
    let effective = if s.commit_timestamp == 0 {
        start
    } else {
        s.commit_timestamp
    };
    Ok((effective >= *seek).then_some("it begins after the boundary of its channel"))
}

fn describe(source: &Source, s: &SegmentInfo, root: &str) -> Result<SegmentDescription> {
    let (c, p, id) = (
        CollectionId(s.collection_id),
        PartitionId(s.partition_id),
        SegmentId(s.id),
    );
    // A manifest of its own lists the files; recorded ids are placeholders there (`spec/layout.md` §3.3).
    let owned = s.storage_version >= V3 && !s.manifest_path.is_empty();
    if !owned && s.manifest_path.trim_start().starts_with('{') {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "segment {id} is storage version {} with a packed manifest, an experiment of 2.6",
                s.storage_version
            ),
        )
        .fix("compact it with a released version first"));
    }
    let whole =
        |logs: &[FieldBinlog], path: &dyn Fn(FieldId, LogId) -> ObjPath| -> Vec<FieldBinlog> {
            let mut logs: Vec<FieldBinlog> = logs
                .iter()
                .filter(|f| !f.binlogs.is_empty())
                .cloned()
                .collect();
            if !owned {
                for field in &mut logs {
                    let of = FieldId(field.field_id);
                    for log in field.binlogs.iter_mut().filter(|l| l.log_path.is_empty()) {
                        log.log_path = path(of, LogId(log.log_id)).to_key(root).0;
                    }
                }
            }
            logs
        };
    let place = |field: i64, build: i64, version: i64, file: &str| FieldIndexFile {
        build: BuildId(build),
        version,
        collection: c,
        partition: p,
        segment: id,
        field: FieldId(field),
        file: file.to_owned(),
    };
    let text = s.text_stats_logs.iter().map(|(field, t)| {
        let mut t: TextIndexStats = t.clone();
        for file in t
            .files
            .iter_mut()
            .filter(|f| !owned && !f.contains("text_log/"))
        {
            *file = ObjPath::TextLog(place(*field, t.build_id, t.version, file))
                .to_key(root)
                .0;
        }
        (*field, t)
    });
    let json =
        s.json_key_stats.iter().map(|(field, j)| {
            let mut j: JsonKeyStats = j.clone();
            for file in j.files.iter_mut().filter(|f| {
                !owned && !f.contains("json_stats/") && !f.contains("json_key_index_log/")
            }) {
                let at = place(*field, j.build_id, j.version, file);
                let path = if j.json_key_stats_data_format >= 2 {
                    ObjPath::JsonStats(j.json_key_stats_data_format, at)
                } else {
                    ObjPath::JsonKeyIndex(at)
                };
                *file = path.to_key(root).0;
            }
            (*field, j)
        });
    Ok(SegmentDescription {
        segment_id: s.id,
        partition_id: s.partition_id,
        segment_level: s.level,
        channel_name: s.insert_channel.clone(),
        num_of_rows: s.num_of_rows,
        start_position: s.start_position.clone(),
        dml_position: s.dml_position.clone(),
        storage_version: s.storage_version,
        is_sorted: s.is_sorted,
        // Milvus leaves it out, and so moves imported rows back in time on restore (§4.3).
        commit_timestamp: s.commit_timestamp,
        binlogs: whole(&s.binlogs, &|f, l| ObjPath::InsertLog(c, p, id, f, l)),
        deltalogs: whole(&s.deltalogs, &|_, l| ObjPath::DeltaLog(c, p, id, l)),
        statslogs: whole(&s.statslogs, &|f, l| ObjPath::StatsLog(c, p, id, f, l)),
        bm25_statslogs: whole(&s.bm25statslogs, &|f, l| ObjPath::Bm25Log(c, p, id, f, l)),
        index_files: source
            .builds
            .get(&s.id)
            .into_iter()
            .flatten()
            .filter_map(|b| index_files(source, b, c, root))
            .collect(),
        text_index_files: text.collect(),
        json_key_index_files: json.collect(),
        manifest_path: s.manifest_path.clone(),
    })
}

/// The files of a finished build whose index still exists.
fn index_files(
    source: &Source,
    b: &SegmentIndex,
    c: CollectionId,
    root: &str,
) -> Option<IndexFilePathInfo> {
    let index = source.indexes.get(&b.index_id)?.index_info.as_ref()?;
    if b.state() != IndexState::Finished {
        return None;
    }
    let rooted = b.index_store_path_version() == IndexStorePathVersion::CollectionRooted;
    let path = |file: &String| {
        let at = IndexFile {
            build: BuildId(b.build_id),
            version: b.index_version,
            partition: PartitionId(b.partition_id),
            segment: SegmentId(b.segment_id),
            file: file.clone(),
        };
        let path = if rooted {
            ObjPath::IndexFileV1(c, at)
        } else {
            ObjPath::IndexFile(at)
        };
        path.to_key(root).0
    };
    Some(IndexFilePathInfo {
        segment_id: b.segment_id,
        field_id: index.field_id,
        index_id: b.index_id,
        build_id: b.build_id,
        index_name: index.index_name.clone(),
        index_params: index
            .index_params
            .iter()
            .chain(&index.type_params)
            .cloned()
            .collect(),
        index_file_paths: b.index_file_keys.iter().map(path).collect(),
        serialized_size: b.serialize_size,
        index_version: b.index_version,
        num_rows: b.num_rows,
        current_index_version: b.current_index_version,
        mem_size: b.mem_size,
        current_scalar_index_version: b.current_scalar_index_version,
        index_store_path_version: b.index_store_path_version,
    })
}

/// The metadata JSON's content for `record`, which must carry id, name, description and protection.
pub fn metadata(
    source: &Source,
    selection: &Selection,
    record: &SnapshotInfo,
    root: &str,
) -> SnapshotMetadata {
    let mut info = record.clone();
    info.partition_ids = source.partitions.keys().copied().collect();
    info.create_ts = selection
        .boundary
        .iter()
        .map(|p| p.timestamp)
        .min()
        .unwrap_or(0)
        .cast_signed();
    info.channel_seek_positions.clone_from(&selection.boundary);
    let (c, id) = (CollectionId(record.collection_id), SnapshotId(record.id));
    let ids: Vec<i64> = selection.segments.iter().map(|s| s.segment_id).collect();
    SnapshotMetadata {
        format_version: crate::engine::format::manifest::CURRENT,
        snapshot_info: Some(pending_form(&info)),
        collection: Some(CollectionDescription {
            schema: Some(source.schema.clone()),
            num_partitions: i64::try_from(source.partitions.len()).unwrap_or(i64::MAX),
            num_shards: i64::from(source.info.shards_num).max(1),
            consistency_level: source.info.consistency_level,
            properties: source.info.properties.clone(),
            partitions: source
                .partitions
                .iter()
                .map(|(id, name)| (name.clone(), *id))
                .collect(),
            virtual_channel_names: source.info.virtual_channel_names.clone(),
        }),
        indexes: source
            .indexes
            .values()
            .filter_map(|i| i.index_info.as_ref())
            .map(definition)
            .collect(),
        manifest_list: ids
            .iter()
            .map(|s| manifest_key(root, c, id, SegmentId(*s)).0)
            .collect(),
        storagev2_manifest_list: selection
            .segments
            .iter()
            .filter(|s| !s.manifest_path.is_empty())
            .map(|s| StorageV2SegmentManifest {
                segment_id: s.segment_id,
                manifest: s.manifest_path.clone(),
            })
            .collect(),
        build_ids: build_ids(&selection.segments)
            .into_iter()
            .map(|b| b.0)
            .collect(),
        segment_ids: ids,
        layout: SnapshotLayout::Referenced as i32,
    }
}

/// Only the subset that snapshots carry (§1.2).
fn definition(i: &IndexInfo) -> IndexInfo {
    IndexInfo {
        collection_id: i.collection_id,
        field_id: i.field_id,
        index_name: i.index_name.clone(),
        index_id: i.index_id,
        type_params: i.type_params.clone(),
        index_params: i.index_params.clone(),
        is_auto_index: i.is_auto_index,
        user_index_params: i.user_index_params.clone(),
        ..IndexInfo::default()
    }
}
