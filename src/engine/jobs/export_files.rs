//! What an export copies: every object of every segment, from the cluster's root to the bundle's.

use std::collections::BTreeMap;

use super::copy::CopyFile;
use super::restore_files::{json_path, log_path, sources_of, text_path};
use super::restore_map::{Source, corrupt};
use crate::engine::error::Result;
use crate::engine::format::bundle::{Bundle, Relocation};
use crate::engine::format::keys::LogKind;
use crate::engine::format::pb::data::SegmentDescription;
use crate::engine::format::vchannel;
use crate::engine::ids::{CollectionId, ObjectKey, SegmentId, VChannel};

/// Segments that list their files in a manifest of their own.
const V3: i64 = 3;

/// Objects in key order, sizes still 0. One that several segments share (LOB files) is copied once.
pub(super) fn files(source: &Source, bundle: &Bundle, root: &str) -> Result<Vec<CopyFile>> {
    let moved = Relocation::new(root, &bundle.files());
    let mut files: BTreeMap<ObjectKey, CopyFile> = BTreeMap::new();
    for (group, segment) in (0..).zip(&source.segments) {
        let declared = source.declared.get(&SegmentId(segment.segment_id));
        for path in sources_of(segment, declared.map(Vec::as_slice), root)? {
            let from = path.to_key(root);
            let to = ObjectKey(moved.path(&from.0)?);
            let file = CopyFile {
                from: from.clone(),
                to,
                size: 0,
                etag: None,
                group,
            };
            files.entry(from).or_insert(file);
        }
    }
    Ok(files.into_values().collect())
}

/// The segments with every path whole: a manifest may hold a log's id alone, or the last part of an index file's path, which say
/// nothing where the bundle is read.
pub(super) fn whole(source: &Source, root: &str) -> Result<Vec<SegmentDescription>> {
    source.segments.iter().map(|s| one(s, root)).collect()
}

fn one(segment: &SegmentDescription, root: &str) -> Result<SegmentDescription> {
    let mut out = segment.clone();
    let collection = vchannel::collection(&VChannel(segment.channel_name.clone()));
    let is_v3 = segment.storage_version >= V3;
    let lists = [
        (LogKind::Insert, &mut out.binlogs),
        (LogKind::Stats, &mut out.statslogs),
        (LogKind::Delta, &mut out.deltalogs),
        (LogKind::Bm25, &mut out.bm25_statslogs),
    ];
    for (kind, list) in lists {
        for field in list {
            for log in &mut field.binlogs {
                if log.log_path.is_empty() && log.log_id != 0 && !is_v3 {
                    let collection = named(segment, collection)?;
                    let path = log_path(kind, segment, collection, field.field_id, log);
                    log.log_path = path.to_key(root).0;
                }
            }
        }
    }
    if is_v3 {
        return Ok(out);
    }
    for stats in out.text_index_files.values_mut() {
        for i in 0..stats.files.len() {
            let path = text_path(segment, stats, &stats.files[i], collection, root)?;
            stats.files[i] = path.to_key(root).0;
        }
    }
    for stats in out.json_key_index_files.values_mut() {
        for i in 0..stats.files.len() {
            let path = json_path(segment, stats, &stats.files[i], collection, root)?;
            stats.files[i] = path.to_key(root).0;
        }
    }
    Ok(out)
}

fn named(segment: &SegmentDescription, collection: Option<CollectionId>) -> Result<CollectionId> {
    collection.ok_or_else(|| {
        corrupt(format!(
            "channel {:?} names no collection",
            segment.channel_name
        ))
    })
}
