//! Everything known of one snapshot: its record, its files read strictly, and the objects it refers to against a listing.
//! Only reads. A file that cannot be read is part of the answer, not the end of it.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use prost::Message;
use serde_json::{Value, json};

use super::error::{Error, ErrorKind, Result};
use super::format::keys::Key;
use super::format::paths::ObjPath;
use super::format::{manifest, pb, snapshot};
use super::ids::{
    CollectionId, FieldId, LogId, ObjectKey, PartitionId, SegmentId, SnapshotId, Tso, UnixMs,
};
use super::objects::ObjectRead;
use super::serve::Server;

/// Manifests read, and folders listed, at once.
const AT_ONCE: usize = 16;
/// Missing objects named; the number is always exact.
const NAMED: usize = 100;

/// The answer to [`Request::SnapshotDetail`](super::handle::Request::SnapshotDetail).
pub async fn tree(server: &Server, id: SnapshotId) -> Result<Value> {
    let catalog = server.catalog.borrow().clone();
    let row = catalog.snapshot(id).ok_or_else(|| missing(id))?;
    let key = Key::Snapshot(row.collection, id).to_key(&server.roots);
    let kv = server
        .meta
        .read()
        .get(&key)
        .await?
        .ok_or_else(|| missing(id))?;
    let record = pb::data::SnapshotInfo::decode(kv.value).map_err(|e| {
        Error::new(
            ErrorKind::Corrupt,
            format!("snapshot record {key} cannot be read"),
        )
        .caused_by(e)
    })?;
    let mut out = json!({
        "id": id.to_string(),
        "name": record.name,
        "collection": catalog.collection_name(row.collection).to_string(),
        "collection_id": row.collection.to_string(),
        "state": row.state.text(),
        "description": record.description,
        "create_ts": moment(u64::try_from(record.create_ts).unwrap_or(0)),
        "location": record.s3_location,
        "boundary": boundary(&record),
        "pins": record.pin_ids.iter().map(|pin| json!({
            "id": pin.to_string(),
            "expires": record.pin_expire_at_ms.get(pin).filter(|ms| **ms > 0).map(|ms| UnixMs(*ms).utc()),
        })).collect::<Vec<_>>(),
    });
    let files = match server.objects.read() {
        None => json!({ "problem": "no bucket is configured, so its files cannot be read" }),
        Some(objects) => match files(objects, &record).await {
            Ok(files) => files,
            Err(e) => json!({ "problem": e.to_string() }),
        },
    };
    if let Some(map) = out.as_object_mut() {
        map.insert("files".into(), files);
    }
    Ok(out)
}

fn missing(id: SnapshotId) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {id} does not exist"))
        .fix("list them with `falconer get snapshots`")
}

fn moment(tso: u64) -> Value {
    let time = Tso(tso).time().map(UnixMs::utc);
    json!({ "tso": tso.to_string(), "utc": time })
}

fn boundary(record: &pb::data::SnapshotInfo) -> Value {
    let positions = record.channel_seek_positions.iter();
    Value::Object(
        positions
            .map(|p| (p.channel_name.clone(), moment(p.timestamp)))
            .collect(),
    )
}

async fn files(objects: &ObjectRead, record: &pb::data::SnapshotInfo) -> Result<Value> {
    let root = objects.root();
    let location = if record.s3_location.is_empty() {
        let (c, id) = (CollectionId(record.collection_id), SnapshotId(record.id));
        snapshot::metadata_key(root, c, id)
    } else {
        ObjectKey(record.s3_location.clone())
    };
    let bytes = objects.get(&location).await?;
    let metadata = snapshot::read_metadata(&location.0, &bytes)?;
    let version = metadata.format_version;
    let manifests: Vec<(String, pb::data::SegmentDescription)> =
        stream::iter(metadata.manifest_list.clone())
            .map(|key| {
                let read = async move {
                    let bytes = objects.get(&ObjectKey(key.clone())).await?;
                    let segment = manifest::read(&key, &bytes, version)?;
                    Ok::<_, Error>((key, segment))
                };
                read.boxed()
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
    let whole = snapshot::join(&location.0, metadata, manifests)?;

    let collection = whole
        .metadata
        .snapshot_info
        .as_ref()
        .map_or(0, |info| info.collection_id);
    let mut wanted: BTreeMap<ObjectKey, &'static str> = BTreeMap::new();
    let mut folders: BTreeSet<ObjectKey> = BTreeSet::new();
    let (mut rows, mut deletes, mut with_manifest) = (0i64, 0i64, 0u64);
    for segment in &whole.segments {
        rows += segment.num_of_rows;
        deletes += segment
            .deltalogs
            .iter()
            .flat_map(|f| &f.binlogs)
            .map(|b| b.entries_num)
            .sum::<i64>();
        with_manifest += u64::from(!segment.manifest_path.is_empty());
        for (kind, key) in references(root, CollectionId(collection), segment) {
            folders.insert(folder(&key, kind));
            wanted.insert(key, kind);
        }
    }
    let found: Vec<BTreeMap<ObjectKey, u64>> = stream::iter(folders)
        .map(|folder| {
            objects
                .list(&folder, None)
                .map_ok(|meta| (meta.key, meta.size))
                .try_collect::<BTreeMap<_, _>>()
                .boxed()
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let found: BTreeMap<ObjectKey, u64> = found.into_iter().flatten().collect();
    let mut by_kind: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut absent = Vec::new();
    for (key, kind) in &wanted {
        match found.get(key) {
            Some(size) => {
                let slot = by_kind.entry(kind).or_default();
                slot.0 += 1;
                slot.1 += size;
            }
            None => absent.push(key.0.clone()),
        }
    }
    let missing = absent.len();
    absent.truncate(NAMED);
    let kinds: serde_json::Map<String, Value> = by_kind
        .into_iter()
        .map(|(kind, (n, bytes))| (kind.to_owned(), json!({ "files": n, "bytes": bytes })))
        .collect();
    Ok(json!({
        "format_version": version,
        "segments": whole.segments.len(),
        "rows": rows,
        "delete_entries": deletes,
        "indexes": whole.metadata.indexes.len(),
        "segments_with_storage_manifest": with_manifest,
        "objects": kinds,
        "missing": missing,
        "missing_objects": absent,
    }))
}

type Make = fn(CollectionId, PartitionId, SegmentId, FieldId, LogId) -> ObjPath;

/// Objects that a segment's description names, by kind. What a storage manifest names in turn is not among them.
fn references(
    root: &str,
    c: CollectionId,
    segment: &pb::data::SegmentDescription,
) -> Vec<(&'static str, ObjectKey)> {
    let mut out = Vec::new();
    let (p, s) = (
        PartitionId(segment.partition_id),
        SegmentId(segment.segment_id),
    );
    let logs: [(&'static str, &[pb::data::FieldBinlog], Make); 4] = [
        ("insert", &segment.binlogs, ObjPath::InsertLog),
        ("stats", &segment.statslogs, ObjPath::StatsLog),
        ("bm25", &segment.bm25_statslogs, ObjPath::Bm25Log),
        ("delta", &segment.deltalogs, |c, p, s, _, log| {
            ObjPath::DeltaLog(c, p, s, log)
        }),
    ];
    for (kind, fields, make) in logs {
        // With a storage manifest insert logs are placeholders (`spec/layout.md` §3.3).
        if !segment.manifest_path.is_empty() {
            continue;
        }
        for field in fields {
            for log in &field.binlogs {
                let key = if log.log_path.is_empty() {
                    make(c, p, s, FieldId(field.field_id), LogId(log.log_id)).to_key(root)
                } else {
                    ObjectKey(log.log_path.clone())
                };
                out.push((kind, key));
            }
        }
    }
    for index in &segment.index_files {
        let paths = index.index_file_paths.iter();
        out.extend(paths.map(|path| ("index", ObjectKey(path.clone()))));
    }
    out
}

/// What to list to see an object: the segment's folder for logs, the build's for index files.
fn folder(key: &ObjectKey, kind: &str) -> ObjectKey {
    let up = |text: &str| {
        text.rsplit_once('/')
            .map_or("", |(head, _)| head)
            .to_owned()
    };
    let parent = up(&key.0);
    ObjectKey(match kind {
        "insert" | "stats" | "bm25" => up(&parent),
        _ => parent,
    })
}
