//! Which objects a segment has, and where each goes: typed paths in, typed paths out (defect D14).

use super::restore_map::corrupt;
use crate::engine::error::Result;
use crate::engine::format::keys::LogKind;
use crate::engine::format::paths::{FieldIndexFile, ObjPath, Target, rewrite};
use crate::engine::format::pb;
use crate::engine::format::vchannel;
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, ObjectKey, PartitionId, SegmentId, VChannel,
};

/// Where a log is when the manifest gives no path: rebuilt from its id (`spec/layout.md` §3.3).
pub(super) fn log_path(
    kind: LogKind,
    segment: &pb::data::SegmentDescription,
    source: CollectionId,
    field: i64,
    log: &pb::data::Binlog,
) -> ObjPath {
    let (p, s) = (
        PartitionId(segment.partition_id),
        SegmentId(segment.segment_id),
    );
    let (f, id) = (FieldId(field), log.log_id.into());
    match kind {
        LogKind::Insert => ObjPath::InsertLog(source, p, s, f, id),
        LogKind::Stats => ObjPath::StatsLog(source, p, s, f, id),
        LogKind::Delta => ObjPath::DeltaLog(source, p, s, id),
        LogKind::Bm25 => ObjPath::Bm25Log(source, p, s, f, id),
    }
}

pub(super) fn typed(root: &str, key: &str) -> Result<ObjPath> {
    ObjPath::parse(root, key).known().ok_or_else(|| {
        corrupt(format!(
            "object {key} is of no kind that a segment may have under root {root:?}"
        ))
    })
}

/// Every object of a segment, as (from, to).
pub(super) fn files_of(
    segment: &pb::data::SegmentDescription,
    declared: Option<&[ObjectKey]>,
    target: &Target,
    root: &str,
) -> Result<Vec<(ObjectKey, ObjectKey)>> {
    sources_of(segment, declared, root)?
        .into_iter()
        .map(|from| {
            let to = rewrite(&from, target)?;
            Ok((from.to_key(root), to.to_key(root)))
        })
        .collect()
}

/// Every object of a segment. `declared` is what its storage manifest names; then the lists of the record are not looked at.
pub(super) fn sources_of(
    segment: &pb::data::SegmentDescription,
    declared: Option<&[ObjectKey]>,
    root: &str,
) -> Result<Vec<ObjPath>> {
    let channel_collection = vchannel::collection(&VChannel(segment.channel_name.clone()));
    let mut sources: Vec<ObjPath> = Vec::new();
    if let Some(declared) = declared {
        for key in declared {
            sources.push(typed(root, &key.0)?);
        }
    } else {
        let lists = [
            (LogKind::Insert, &segment.binlogs),
            (LogKind::Stats, &segment.statslogs),
            (LogKind::Delta, &segment.deltalogs),
            (LogKind::Bm25, &segment.bm25_statslogs),
        ];
        for (kind, list) in lists {
            for field in list {
                for log in &field.binlogs {
                    sources.push(match (log.log_path.is_empty(), channel_collection) {
                        (false, _) => typed(root, &log.log_path)?,
                        (true, Some(source)) if log.log_id != 0 => {
                            log_path(kind, segment, source, field.field_id, log)
                        }
                        _ => {
                            return Err(corrupt(format!(
                                "a log of segment {} has neither path nor id",
                                segment.segment_id
                            )));
                        }
                    });
                }
            }
        }
        if !segment.manifest_path.is_empty() {
            sources.push(typed(root, &segment.manifest_path)?);
        }
        for stats in segment.text_index_files.values() {
            for file in &stats.files {
                sources.push(text_path(segment, stats, file, channel_collection, root)?);
            }
        }
        for stats in segment.json_key_index_files.values() {
            for file in &stats.files {
                sources.push(json_path(segment, stats, file, channel_collection, root)?);
            }
        }
    }
    for index in &segment.index_files {
        for path in &index.index_file_paths {
            sources.push(typed(root, path)?);
        }
    }
    Ok(sources)
}

fn field_file(
    segment: &pb::data::SegmentDescription,
    (build, version, field): (i64, i64, i64),
    collection: Option<CollectionId>,
    file: &str,
) -> Result<FieldIndexFile> {
    Ok(FieldIndexFile {
        build: BuildId(build),
        version,
        collection: collection.ok_or_else(|| {
            corrupt(format!(
                "channel {:?} names no collection",
                segment.channel_name
            ))
        })?,
        partition: PartitionId(segment.partition_id),
        segment: SegmentId(segment.segment_id),
        field: FieldId(field),
        file: file.to_owned(),
    })
}

/// Text files are full keys up to 2.6.7 and base names later, mixed in one cluster (`spec/layout.md` §7.3).
pub(super) fn text_path(
    segment: &pb::data::SegmentDescription,
    stats: &pb::data::TextIndexStats,
    file: &str,
    collection: Option<CollectionId>,
    root: &str,
) -> Result<ObjPath> {
    if file.contains("text_log/") {
        return typed(root, file);
    }
    let ids = (stats.build_id, stats.version, stats.field_id);
    Ok(ObjPath::TextLog(field_file(
        segment, ids, collection, file,
    )?))
}

pub(super) fn json_path(
    segment: &pb::data::SegmentDescription,
    stats: &pb::data::JsonKeyStats,
    file: &str,
    collection: Option<CollectionId>,
    root: &str,
) -> Result<ObjPath> {
    if file.contains("json_stats/") || file.contains("json_key_index_log/") {
        return typed(root, file);
    }
    let ids = (stats.build_id, stats.version, stats.field_id);
    let path = field_file(segment, ids, collection, file)?;
    Ok(match stats.json_key_stats_data_format {
        0 | 1 => ObjPath::JsonKeyIndex(path),
        format => ObjPath::JsonStats(format, path),
    })
}
