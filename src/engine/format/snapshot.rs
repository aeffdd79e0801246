//! Snapshot metadata: the JSON object, and the checks that tie it to its segment manifests (`spec/snapshot.md` §2).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::manifest::{self, shapes};
use super::paths::{ObjPath, StorageManifest, check};
use super::pb::data::{
    FieldBinlog, SegmentDescription, SnapshotInfo, SnapshotLayout, SnapshotMetadata, SnapshotState,
};
use super::{json, keys};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{BuildId, CollectionId, ObjectKey, SegmentId, SnapshotId};

const MESSAGE: &str = "milvus.proto.data.SnapshotMetadata";

/// Storage version of segments whose files a manifest of their own lists.
const STORAGE_V3: i64 = 3;

/// Metadata and segments, checked against each other; `manifest_path` of each segment is filled.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The JSON's content, layout resolved.
    pub metadata: SnapshotMetadata,
    /// One per manifest, in `manifest_list` order.
    pub segments: Vec<SegmentDescription>,
}

/// `{root}/snapshots/{collection}/metadata/{snapshot}.json`
#[must_use]
pub fn metadata_key(root: &str, collection: CollectionId, snapshot: SnapshotId) -> ObjectKey {
    ObjPath::SnapshotMetadata(collection, snapshot).to_key(root)
}

/// `{root}/snapshots/{collection}/manifests/{snapshot}/{segment}.avro`
#[must_use]
pub fn manifest_key(
    root: &str,
    collection: CollectionId,
    snapshot: SnapshotId,
    segment: SegmentId,
) -> ObjectKey {
    ObjPath::SnapshotManifest(collection, snapshot, segment).to_key(root)
}

fn corrupt(file: &str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, why).with("file", file).fix(
        "the snapshot's files are damaged or mixed up: do not restore from it, take a new snapshot",
    )
}

/// The record as it is embedded in the JSON: the writer runs before the commit, so the state is pending and neither
/// location nor pins are there. A reader must take the state from etcd, never from the file.
#[must_use]
pub fn pending_form(info: &SnapshotInfo) -> SnapshotInfo {
    let mut info = info.clone();
    info.state = SnapshotState::Pending as i32;
    info.s3_location = String::new();
    info.pin_ids.clear();
    info.pin_expire_at_ms.clear();
    info
}

/// Reads the metadata object `file`. JSON members this version does not know are ignored, as Milvus does; a caller that
/// is about to restore asks [`unknown_members`]. An enum value without a number (a data type of a newer Milvus) is an
/// error: read as the default it would change the schema.
pub fn read_metadata(file: &str, bytes: &[u8]) -> Result<SnapshotMetadata> {
    let message = json::parse(MESSAGE, bytes).map_err(|e| e.with("file", file))?;
    let mut metadata: SnapshotMetadata = json::lower(&message).map_err(|e| e.with("file", file))?;
    shapes(metadata.format_version).map_err(|e| e.with("file", file))?;
    let unplaced = json::unplaced(MESSAGE, bytes).map_err(|e| e.with("file", file))?;
    if let Some((path, name)) = unplaced.enums.first() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the snapshot's {path} is {name}, which is not known"),
        )
        .with("file", file)
        .fix("use a newer Falconer"));
    }
    if metadata.snapshot_info.is_none() {
        return Err(corrupt(file, "the metadata has no snapshot_info"));
    }
    if metadata.collection.is_none() {
        return Err(corrupt(file, "the metadata has no collection"));
    }
    if metadata.layout() == SnapshotLayout::Unknown {
        metadata.set_layout(SnapshotLayout::Referenced);
    }
    for path in &metadata.manifest_list {
        check(path).map_err(|e| e.with("file", file))?;
    }
    Ok(metadata)
}

/// Members of the metadata that reading drops: attributes of a newer Milvus that a restore would lose. Our own is none of them.
pub fn unknown_members(file: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let found = json::unplaced(MESSAGE, bytes).map_err(|e| e.with("file", file))?;
    let foreign = found.members.into_iter().filter(|name| name != SIDE);
    Ok(foreign.collect())
}

/// The member of the JSON that is ours: Milvus ignores members it does not know (§2.2, §11 (9)).
const SIDE: &str = "falconer";

/// What the objects of one segment weighed when the snapshot was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// How many.
    pub objects: u64,
    /// Their bytes, as listed by the bucket.
    pub bytes: u64,
    /// Over each key and size.
    pub digest: String,
    /// How many of them the store gave a checksum of.
    #[serde(default)]
    pub summed: u64,
    /// Over key and checksum of those.
    #[serde(default)]
    pub checksums: String,
}

impl Weight {
    /// As many objects, each of the same name and size.
    #[must_use]
    pub fn same_sizes(&self, other: &Self) -> bool {
        let sizes = |w: &Self| (w.objects, w.bytes, w.digest.clone());
        sizes(self) == sizes(other)
    }

    /// Every object that had a checksum has the same. `None` where that cannot be told: one was put anew in another way.
    #[must_use]
    pub fn same_contents(&self, other: &Self) -> Option<bool> {
        let told = self.summed > 0 && self.summed == other.summed;
        told.then(|| self.checksums == other.checksums)
    }
}

/// What we add to the JSON: no format version has a place for objects' sizes (defects D46, D47).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// By segment.
    pub segments: BTreeMap<SegmentId, Weight>,
    /// Over key and checksum of its manifests, empty where the store gave none. In a bucket where they differ, checksums are made
    /// otherwise, and say nothing.
    #[serde(default)]
    pub manifests: String,
}

/// The metadata object's bytes with `side` in them.
pub fn with_side(json: &[u8], side: &Side) -> Result<Vec<u8>> {
    let failed =
        |e| Error::new(ErrorKind::Internal, "the metadata just written is not JSON").caused_by(e);
    let mut value: serde_json::Value = serde_json::from_slice(json).map_err(failed)?;
    value[SIDE] = serde_json::to_value(side).map_err(failed)?;
    let mut text = serde_json::to_string_pretty(&value).map_err(failed)?;
    text.push('\n');
    Ok(text.into_bytes())
}

/// Our own member of a metadata object; `None` when Milvus wrote it.
#[must_use]
pub fn read_side(json: &[u8]) -> Option<Side> {
    #[derive(Deserialize)]
    struct Whole {
        falconer: Option<Side>,
    }
    serde_json::from_slice::<Whole>(json).ok()?.falconer
}

/// The metadata object's bytes. The embedded record must be in its [`pending_form`], the version the current one, and
/// the lists complete: an old-style file without ids would protect nothing from garbage collection (§3.6).
pub fn write_metadata(metadata: &SnapshotMetadata) -> Result<Vec<u8>> {
    let refuse = |why: &str| {
        Err(Error::new(
            ErrorKind::Internal,
            format!("snapshot metadata not written: {why}"),
        ))
    };
    let Some(info) = &metadata.snapshot_info else {
        return refuse("no snapshot_info");
    };
    if metadata.collection.is_none() {
        return refuse("no collection");
    }
    if metadata.format_version != manifest::CURRENT {
        return refuse("not the current format version");
    }
    if info.state() != SnapshotState::Pending || !info.pin_ids.is_empty() {
        return refuse("the embedded record is not the pending one");
    }
    if metadata.layout() == SnapshotLayout::Unknown {
        return refuse("no layout");
    }
    if metadata.segment_ids.len() != metadata.manifest_list.len() {
        return refuse("segment_ids and manifest_list differ in length");
    }
    let mut text = json::print(&json::lift(MESSAGE, metadata)?)?;
    text.push('\n');
    Ok(text.into_bytes())
}

/// The segments a snapshot holds. A file older than `segment_ids` is read from its manifests' names.
pub fn segment_ids(file: &str, metadata: &SnapshotMetadata) -> Result<Vec<SegmentId>> {
    if !metadata.segment_ids.is_empty() {
        return Ok(metadata
            .segment_ids
            .iter()
            .map(|id| SegmentId(*id))
            .collect());
    }
    metadata
        .manifest_list
        .iter()
        .map(|path| {
            segment_of(path).ok_or_else(|| {
                corrupt(file, "a manifest's name is not a segment id").with("manifest", path)
            })
        })
        .collect()
}

fn segment_of(manifest: &str) -> Option<SegmentId> {
    let name = manifest.rsplit('/').next()?.strip_suffix(".avro")?;
    keys::number(name).map(SegmentId)
}

/// Every index build that segments reference, as Milvus lists them: vector and scalar builds in order, then text and
/// JSON-key builds that are not 0. Duplicates are kept.
#[must_use]
pub fn build_ids(segments: &[SegmentDescription]) -> Vec<BuildId> {
    let mut out = Vec::new();
    for s in segments {
        out.extend(s.index_files.iter().map(|f| BuildId(f.build_id)));
        let text = s.text_index_files.values().map(|t| t.build_id);
        let json = s.json_key_index_files.values().map(|j| j.build_id);
        out.extend(text.chain(json).filter(|id| *id != 0).map(BuildId));
    }
    out
}

/// Puts metadata and manifests together. `manifests` are `manifest_list`'s objects in its order, each with its key.
/// `file` is the metadata's key.
pub fn join(
    file: &str,
    metadata: SnapshotMetadata,
    manifests: Vec<(String, SegmentDescription)>,
) -> Result<Snapshot> {
    if manifests.len() != metadata.manifest_list.len()
        || manifests
            .iter()
            .zip(&metadata.manifest_list)
            .any(|((key, _), listed)| key != listed)
    {
        return Err(corrupt(
            file,
            "the manifests given are not those of manifest_list, in its order",
        ));
    }
    let mut loaded = BTreeSet::new();
    let mut segments = Vec::with_capacity(manifests.len());
    for (key, segment) in manifests {
        let id = segment.segment_id;
        if !loaded.insert(id) {
            return Err(
                corrupt(&key, format!("segment {id} is in two manifests")).with("metadata", file)
            );
        }
        if segment_of(&key) != Some(SegmentId(id)) {
            return Err(corrupt(
                &key,
                format!("the manifest holds segment {id}, its name says otherwise"),
            ));
        }
        check_files(&key, &segment)?;
        segments.push(segment);
    }
    check_ids(file, &metadata, &loaded)?;
    attach_manifests(file, &metadata, &mut segments)?;
    if metadata.layout() == SnapshotLayout::SelfContained {
        check_bundle(file, &metadata, &segments)?;
    }
    Ok(Snapshot { metadata, segments })
}

fn check_ids(file: &str, metadata: &SnapshotMetadata, loaded: &BTreeSet<i64>) -> Result<()> {
    if metadata.segment_ids.is_empty() {
        return Ok(());
    }
    let listed: BTreeSet<i64> = metadata.segment_ids.iter().copied().collect();
    if listed.len() != metadata.segment_ids.len() {
        return Err(corrupt(file, "segment_ids names a segment twice"));
    }
    if let Some(id) = listed.difference(loaded).next() {
        return Err(corrupt(
            file,
            format!("segment_ids names segment {id}, which has no manifest"),
        ));
    }
    if let Some(id) = loaded.difference(&listed).next() {
        return Err(corrupt(
            file,
            format!("segment {id} has a manifest but is not in segment_ids"),
        ));
    }
    Ok(())
}

fn attach_manifests(
    file: &str,
    metadata: &SnapshotMetadata,
    segments: &mut [SegmentDescription],
) -> Result<()> {
    let places: BTreeMap<i64, usize> = segments
        .iter()
        .enumerate()
        .map(|(i, s)| (s.segment_id, i))
        .collect();
    for entry in &metadata.storagev2_manifest_list {
        let id = entry.segment_id;
        if entry.manifest.is_empty() {
            return Err(corrupt(
                file,
                format!("segment {id} has an empty entry in storagev2_manifest_list"),
            ));
        }
        let Some(segment) = places.get(&id).and_then(|at| segments.get_mut(*at)) else {
            return Err(corrupt(
                file,
                format!("storagev2_manifest_list names segment {id}, which has no manifest"),
            ));
        };
        if !segment.manifest_path.is_empty() {
            return Err(corrupt(
                file,
                format!("storagev2_manifest_list names segment {id} twice"),
            ));
        }
        match StorageManifest::parse(&entry.manifest)
            .map_err(|e| e.with("file", file).with("segment", id))?
        {
            StorageManifest::Object(key) => check(&key).map_err(|e| e.with("file", file))?,
            StorageManifest::Packed(packed) => {
                check(&packed.base_path).map_err(|e| e.with("file", file))?
            }
        };
        segment.manifest_path.clone_from(&entry.manifest);
    }
    Ok(())
}

fn log_lists(segment: &SegmentDescription) -> [(&'static str, &[FieldBinlog]); 4] {
    [
        ("binlog_files", &segment.binlogs),
        ("deltalog_files", &segment.deltalogs),
        ("statslog_files", &segment.statslogs),
        ("bm25_statslog_files", &segment.bm25_statslogs),
    ]
}

/// Every path of the segment that may be opened must be well-formed. Text and JSON files of V3 segments are only names
/// in their manifest and may be empty.
fn check_files(key: &str, segment: &SegmentDescription) -> Result<()> {
    for (list, logs) in log_lists(segment) {
        for log in logs.iter().flat_map(|f| &f.binlogs) {
            // Insert logs of V3 segments are placeholders: their files are in the segment's own manifest.
            if log.log_path.is_empty() && segment.storage_version >= STORAGE_V3 {
                continue;
            }
            check(&log.log_path).map_err(|e| e.with("file", key).with("field", list))?;
        }
    }
    let index = segment.index_files.iter().flat_map(|f| &f.index_file_paths);
    let text = segment.text_index_files.values().flat_map(|t| &t.files);
    let json = segment.json_key_index_files.values().flat_map(|j| &j.files);
    for path in index.chain(text).chain(json) {
        check(path).map_err(|e| e.with("file", key))?;
    }
    Ok(())
}

/// A bundle keeps everything below its own root: manifests anywhere, data under `files/`. Text and JSON paths of V3
/// segments belong to the segment's manifest and are not looked at.
fn check_bundle(
    file: &str,
    metadata: &SnapshotMetadata,
    segments: &[SegmentDescription],
) -> Result<()> {
    let info = metadata
        .snapshot_info
        .as_ref()
        .ok_or_else(|| corrupt(file, "the metadata has no snapshot_info"))?;
    let tail = ObjPath::SnapshotMetadata(CollectionId(info.collection_id), SnapshotId(info.id))
        .to_string();
    let root = file.strip_suffix(&tail).ok_or_else(|| {
        corrupt(
            file,
            "a self-contained snapshot's metadata is not at its own place in the bundle",
        )
    })?;
    let outside = |path: &str, below: &str| {
        if path
            .strip_prefix(root)
            .is_some_and(|rest| rest.starts_with(below))
        {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "a self-contained snapshot names a path outside its bundle",
        )
        .with("file", file)
        .with("path", super::mask::text(path))
        .with("bundle", super::mask::text(root))
        .fix("move the bundle back to where it was exported, or export it again"))
    };
    for path in &metadata.manifest_list {
        outside(path, "snapshots/")?;
    }
    for segment in segments {
        for (_, logs) in log_lists(segment) {
            for log in logs
                .iter()
                .flat_map(|f| &f.binlogs)
                .filter(|l| !l.log_path.is_empty())
            {
                outside(&log.log_path, "files/")?;
            }
        }
        for path in segment.index_files.iter().flat_map(|f| &f.index_file_paths) {
            outside(path, "files/")?;
        }
        if segment.storage_version < STORAGE_V3 {
            let text = segment.text_index_files.values().flat_map(|t| &t.files);
            let json = segment.json_key_index_files.values().flat_map(|j| &j.files);
            for path in text.chain(json) {
                outside(path, "files/")?;
            }
        }
    }
    Ok(())
}
