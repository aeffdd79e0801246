//! Every object that live segments, their indexes and snapshots refer to, and which of them are missing.

use std::collections::{BTreeMap, HashMap};

use futures::{StreamExt, TryStreamExt};

use super::meta::parsed;
use super::{Check, Patient, snapshots};
use crate::engine::error::{ErrorKind, Result};
use crate::engine::format::keys::{Family, Key, LogKind};
use crate::engine::format::paths::{FieldIndexFile, IndexFile, ManifestPath, ObjPath};
use crate::engine::format::{binlog, codec, pb};
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, ObjectKey, PartitionId, SegmentId, SnapshotId,
};
use crate::engine::meta::{KeyValue, RangeOpts, Span};
use crate::engine::objects::ObjectRead;

use pb::common::SegmentState;

/// Most missing objects that are asked for once more.
const ASK_AGAIN: usize = 1_000;
/// Questions at once.
const AT_ONCE: usize = 16;

/// An object that something needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The object.
    pub key: ObjectKey,
    /// What needs it, e.g. `segment 4711`.
    pub by: String,
}

/// Gathers references, and the records that cannot be read.
struct Gatherer<'a> {
    root: &'a str,
    found: Vec<Reference>,
    problems: Vec<String>,
}

/// Where a segment lies.
type Place = (CollectionId, PartitionId, SegmentId);

/// Every object that live segments, their finished indexes and committed snapshots' records refer to, and the records that
/// cannot be read: the objects of those are not known, so nothing may be called complete.
pub async fn references(p: &Patient<'_>, root: &str) -> Result<(Vec<Reference>, Vec<String>)> {
    let mut all = Gatherer {
        root,
        found: Vec::new(),
        problems: Vec::new(),
    };
    // Whether a live segment's logs are recorded in the store; with a manifest they are placeholders.
    let mut live: HashMap<SegmentId, bool> = HashMap::new();
    each(p, Family::Segment, |kv, key| {
        let info = all.read::<pb::data::SegmentInfo>(kv, &key);
        if let (Key::Segment(c, part, s), Some(info)) = (key, info)
            && is_live(&info)
        {
            live.insert(s, info.manifest_path.is_empty());
            all.segment((c, part, s), &info);
        }
    })
    .await?;
    for (family, kind) in [
        (Family::Binlog, LogKind::Insert),
        (Family::Statslog, LogKind::Stats),
        (Family::Deltalog, LogKind::Delta),
        (Family::Bm25log, LogKind::Bm25),
    ] {
        each(p, family, |kv, key| {
            if let Key::Log(_, c, part, s, _) = key
                && live.get(&s) == Some(&true)
                && let Some(logs) = all.read::<pb::data::FieldBinlog>(kv, &key)
            {
                all.logs(kind, (c, part, s), &logs);
            }
        })
        .await?;
    }
    each(p, Family::SegmentIndex, |kv, key| {
        let index = all.read::<pb::index::SegmentIndex>(kv, &key);
        if let (Key::SegmentIndex(c, part, s, build), Some(index)) = (key, index)
            && live.contains_key(&s)
            && !index.deleted
        {
            all.index_files((c, part, s), build, &index);
        }
    })
    .await?;
    each(p, Family::Snapshot, |kv, key| {
        let info = all.read::<pb::data::SnapshotInfo>(kv, &key);
        if let (Key::Snapshot(c, id), Some(info)) = (key, info)
            && is_committed(&info)
        {
            let key = metadata_key(root, c, id, &info);
            all.add(key, format!("snapshot {}", info.name));
        }
    })
    .await?;
    Ok((all.found, all.problems))
}

impl Gatherer<'_> {
    fn add(&mut self, key: ObjectKey, by: String) {
        self.found.push(Reference { key, by });
    }

    fn read<M: prost::Message + Default>(&mut self, kv: &KeyValue, key: &Key) -> Option<M> {
        match codec::decode(key, &kv.value) {
            codec::Decoded::Value(value) => Some(value),
            codec::Decoded::Tombstone => None,
            codec::Decoded::Undecodable { reason } => {
                self.problems.push(format!("{}: {reason}", kv.key));
                None
            }
        }
    }

    fn logs(&mut self, kind: LogKind, of: Place, logs: &pb::data::FieldBinlog) {
        match binlog::objects(kind, of, logs) {
            Ok(objects) => {
                for (path, _) in objects {
                    self.add(path.to_key(self.root), format!("segment {}", of.2));
                }
            }
            Err(e) => self.problems.push(format!("segment {}: {e}", of.2)),
        }
    }

    /// Files that the segment's own record names.
    fn segment(&mut self, of: Place, info: &pb::data::SegmentInfo) {
        let by = format!("segment {}", of.2);
        if !info.manifest_path.is_empty() {
            match ManifestPath::parse(&info.manifest_path) {
                // Version 0 is a manifest that is still to be written. What else the segment has, the manifest names.
                Ok(manifest) if manifest.ver > 0 => self.add(ObjectKey(manifest.file()), by),
                Ok(_) => {}
                Err(e) => self.problems.push(format!("{by}: {e}")),
            }
            return;
        }
        // Before 2.2 the logs stood in the record itself.
        for (kind, lists) in [
            (LogKind::Insert, &info.binlogs),
            (LogKind::Stats, &info.statslogs),
            (LogKind::Delta, &info.deltalogs),
            (LogKind::Bm25, &info.bm25statslogs),
        ] {
            for logs in lists {
                self.logs(kind, of, logs);
            }
        }
        for (field, stats) in &info.text_stats_logs {
            for file in &stats.files {
                let place = field_index(of, *field, stats.build_id, stats.version, file);
                let key = whole_or(self.root, file, &["text_log/"], &ObjPath::TextLog(place));
                self.add(key, by.clone());
            }
        }
        for (field, stats) in &info.json_key_stats {
            for file in &stats.files {
                let place = field_index(of, *field, stats.build_id, stats.version, file);
                let path = match stats.json_key_stats_data_format {
                    0 | 1 => ObjPath::JsonKeyIndex(place),
                    format => ObjPath::JsonStats(format, place),
                };
                let whole = ["json_key_index_log/", "json_stats/"];
                self.add(whole_or(self.root, file, &whole, &path), by.clone());
            }
        }
    }

    fn index_files(
        &mut self,
        (c, partition, segment): Place,
        build: BuildId,
        index: &pb::index::SegmentIndex,
    ) {
        for file in &index.index_file_keys {
            let place = IndexFile {
                build,
                version: index.index_version,
                partition,
                segment,
                file: file.clone(),
            };
            let path = if index.index_store_path_version == 0 {
                ObjPath::IndexFile(place)
            } else {
                ObjPath::IndexFileV1(c, place)
            };
            let by = format!("index build {build} of segment {segment}");
            self.add(path.to_key(self.root), by);
        }
    }
}

fn field_index(of: Place, field: i64, build: i64, version: i64, file: &str) -> FieldIndexFile {
    FieldIndexFile {
        build: BuildId(build),
        version,
        collection: of.0,
        partition: of.1,
        segment: of.2,
        field: FieldId(field),
        file: file.to_owned(),
    }
}

/// Lists of files hold whole paths up to 2.6.7 and names since; both occur in one cluster (`spec/layout.md` §7.3).
fn whole_or(root: &str, file: &str, marks: &[&str], path: &ObjPath) -> ObjectKey {
    if marks.iter().any(|mark| file.contains(mark)) {
        ObjectKey(file.to_owned())
    } else {
        path.to_key(root)
    }
}

/// Calls `found` for every key of a family, page by page.
async fn each(
    p: &Patient<'_>,
    family: Family,
    mut found: impl FnMut(&KeyValue, Key),
) -> Result<()> {
    let mut span = Span::prefix(&family.prefix(p.roots));
    loop {
        let page = p.meta.range(&span, RangeOpts::default()).await?;
        for kv in &page.kvs {
            if let Some(key) = parsed(p, kv) {
                found(kv, key);
            }
        }
        match page.kvs.last() {
            Some(last) if page.more => span = span.after(&last.key),
            _ => return Ok(()),
        }
    }
}

/// Whether a segment's files must be there. A dropped one's are taken by garbage collection before its record goes.
pub(super) fn is_live(info: &pb::data::SegmentInfo) -> bool {
    !matches!(
        SegmentState::try_from(info.state),
        Ok(SegmentState::Dropped | SegmentState::NotExist)
    )
}

pub(super) fn is_committed(info: &pb::data::SnapshotInfo) -> bool {
    info.state == pb::data::SnapshotState::Committed as i32
}

/// Where a snapshot's metadata JSON is: its record says, else the template (`spec/layout.md` §7.6).
pub(super) fn metadata_key(
    root: &str,
    c: CollectionId,
    id: SnapshotId,
    info: &pb::data::SnapshotInfo,
) -> ObjectKey {
    if info.s3_location.is_empty() || info.s3_location.contains("://") {
        ObjPath::SnapshotMetadata(c, id).to_key(root)
    } else {
        ObjectKey(info.s3_location.clone())
    }
}

/// The deep check: references against one listing, then each missing one once more, because segments move on while a big bucket is listed.
pub(super) async fn check(p: &Patient<'_>, more: &[Reference]) -> Vec<Check> {
    const NAME: &str = "references";
    let Some(objects) = p.objects else {
        return vec![Check::skipped(NAME, "no bucket is attached")];
    };
    match missing(p, objects, more).await {
        Err(e) => vec![Check::from_error(
            NAME,
            &e,
            "make the quick checks pass first",
        )],
        Ok(found) => vec![found],
    }
}

async fn missing(p: &Patient<'_>, objects: &ObjectRead, more: &[Reference]) -> Result<Check> {
    const NAME: &str = "references";
    let root = objects.root().to_owned();
    let (of_segments, mut problems) = references(p, &root).await?;
    let (mut wanted, unread) = snapshots::references(p, objects).await?;
    problems.extend(unread);
    wanted.extend(more.iter().cloned());
    wanted.extend(of_segments);
    let total = wanted.len();
    let mut open = BTreeMap::new();
    for r in wanted {
        // The first need is named: a snapshot's stays when a segment moves on.
        open.entry(r.key).or_insert(r.by);
    }
    let files = open.len();
    let mut listing = objects.list(&ObjectKey(root.clone()), None);
    while let Some(object) = listing.try_next().await? {
        open.remove(&object.key);
    }
    let absent = confirm(p, objects, &root, open).await?;
    if !problems.is_empty() && absent.is_empty() {
        return Ok(Check::warn(
            NAME,
            format!(
                "{files} objects are there, but {} records cannot be read",
                problems.len()
            ),
        )
        .items(problems));
    }
    if absent.is_empty() {
        return Ok(Check::ok(
            NAME,
            format!("{total} references, {files} objects, all there"),
        ));
    }
    let mut items: Vec<String> = absent
        .iter()
        .map(|(key, by)| format!("{key} (needed by {by})"))
        .collect();
    let detail = format!("{} of {files} objects are missing", items.len());
    items.extend(problems);
    Ok(Check::fail(NAME, detail)
        .fix("put these objects back from a backup of the bucket; if all are missing, check minio.bucketName and minio.rootPath")
        .items(items))
}

/// Keeps what is still referred to and still not there.
async fn confirm(
    p: &Patient<'_>,
    objects: &ObjectRead,
    root: &str,
    open: BTreeMap<ObjectKey, String>,
) -> Result<BTreeMap<ObjectKey, String>> {
    if open.is_empty() {
        return Ok(open);
    }
    let still: BTreeMap<ObjectKey, String> = references(p, root)
        .await?
        .0
        .into_iter()
        .map(|r| (r.key, r.by))
        .collect();
    // What snapshots' files or the caller name is not in the store's records: it stays in question.
    let mut absent: BTreeMap<ObjectKey, String> = open
        .into_iter()
        .filter(|(key, by)| still.contains_key(key) || !is_ours(by))
        .collect();
    let ask: Vec<ObjectKey> = absent.keys().take(ASK_AGAIN).cloned().collect();
    let answers: Vec<(ObjectKey, bool)> = futures::stream::iter(ask)
        .map(|key| async move {
            match objects.head(&key).await {
                Ok(_) => Ok((key, true)),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok((key, false)),
                Err(e) => Err(e),
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    for (key, there) in answers {
        if there {
            absent.remove(&key);
        }
    }
    Ok(absent)
}

/// Whether a reference came from the metadata store's own segments.
fn is_ours(by: &str) -> bool {
    !by.contains("snapshot ") && (by.starts_with("segment ") || by.starts_with("index build "))
}
