//! Everything known of one snapshot: its record, its files read strictly, the objects it refers to against a listing, whose else
//! they are, its pins and when it was last verified. Only reads. What cannot be read is part of the answer, not the end of it.

use serde_json::{Map, Value, json};

use super::error::{Error, ErrorKind, Result};
use super::format::keys::Family;
use super::format::pb::data::{SnapshotInfo, SnapshotLayout, SnapshotState};
use super::ids::{CollectionId, ObjectKey, SnapshotId, Tso, UnixMs};
use super::jobs::pins::{self, Held, Pinners};
use super::jobs::restore_source::Reads;
use super::jobs::snapshot_contents::{Contents, Share, location, share};
use super::jobs::snapshot_notes::{self, Notes, Verified};
use super::jobs::snapshot_verify;
use super::jobs::source::{family_of, find_snapshot};
use super::model::text;
use super::objects::ObjectRead;
use super::plan::journal::Keys;
use super::serve::Server;

/// Missing objects named; the number is always exact.
const NAMED: usize = 100;

fn missing(id: SnapshotId) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {id} does not exist"))
        .fix("list them with `falconer get snapshots`")
}

/// The answer to [`Request::SnapshotDetail`](super::handle::Request::SnapshotDetail).
pub async fn tree(server: &Server, id: SnapshotId) -> Result<Value> {
    let meta = server.meta.clone();
    let (_, record) = find_snapshot(&meta, &server.roots, id)
        .await?
        .ok_or_else(|| missing(id))?;
    let notes = snapshot_notes::read(&meta, &Keys::new(&server.roots), id).await?;
    let held = pins::held(&meta, &server.roots, &record).await?;
    let now = server.clock.now();
    let objects = server.objects.read();
    let since = since(objects, &record, &notes).await;
    let of = CollectionId(record.collection_id);
    let catalog = server.catalog.borrow().clone();
    let mut out = json!({
        "id": id.to_string(),
        "name": record.name,
        "collection": catalog.collection_name(of).to_string(),
        "collection_id": of.to_string(),
        "collection_exists": catalog.collections.contains_key(&of),
        "state": state_name(&record),
        "state_since": since.map(UnixMs::utc),
        "state_for": since.map(|at| text::age(now.since(at))),
        "description": record.description,
        "location": record.s3_location,
        "create_ts": moment(u64::try_from(record.create_ts).unwrap_or(0)),
        "protected_until": i64::try_from(record.compaction_expire_time).ok().filter(|s| *s > 0)
            .map(|s| super::ids::UnixSecs(s).to_ms().utc()),
        "made": notes.made.as_ref().map(|made| json!({
            "at": made.at.utc(), "by": made.actor, "job": made.job.to_string(), "operation": made.operation,
        })),
        "verified": notes.verified.as_ref().map_or(Value::from("never"), verified),
        "pins": held.iter().map(|h| pin(h, now)).collect::<Vec<_>>(),
        "seek_positions": record.channel_seek_positions.iter().map(|p| json!({
            "channel": p.channel_name, "tso": p.timestamp.to_string(), "utc": Tso(p.timestamp).time().map(UnixMs::utc),
        })).collect::<Vec<_>>(),
    });
    let files = match objects {
        None => json!({ "problem": "no bucket is configured, so its files cannot be read" }),
        Some(objects) => {
            let reads = Reads {
                meta: &meta,
                objects,
                roots: &server.roots,
            };
            match files(&reads, record).await {
                Ok(files) => files,
                Err(e) => json!({ "problem": e.to_string() }),
            }
        }
    };
    if let Some(map) = out.as_object_mut() {
        map.insert("files".into(), files);
    }
    Ok(out)
}

/// As the list of snapshots shows it.
fn state_name(record: &SnapshotInfo) -> String {
    super::model::names::snapshot_state(record.state)
        .text()
        .into_owned()
}

/// Since when the record is in its state: by our own note; else by what the state leaves behind.
async fn since(
    objects: Option<&ObjectRead>,
    record: &SnapshotInfo,
    notes: &Notes,
) -> Option<UnixMs> {
    if let Some(since) = notes.since.filter(|since| since.state == record.state) {
        return Some(since.at);
    }
    match record.state() {
        SnapshotState::Pending => Some(UnixMs(record.pending_start_time)).filter(|at| at.0 > 0),
        // The JSON is the last object that a create writes, right before it commits.
        SnapshotState::Committed | SnapshotState::Unknown => {
            let objects = objects?;
            let found = objects.head(&location(objects.root(), record)).await;
            found.ok().map(|meta| meta.modified)
        }
        SnapshotState::Deleting => None,
    }
}

fn moment(tso: u64) -> Value {
    let time = Tso(tso).time().map(UnixMs::utc);
    json!({ "tso": tso.to_string(), "utc": time })
}

fn pin(held: &Held, now: UnixMs) -> Value {
    let note = match &held.by {
        pins::By::Owner(note) => Some(note),
        _ => None,
    };
    json!({
        "id": held.pin.id.to_string(),
        "owner": held.by.text(),
        "reason": held.by.reason(),
        "active": held.pin.is_active(now),
        "left": held.pin.left(now),
        "left_ms": held.pin.expires.filter(|at| *at >= now).map(|at| at.since(now)),
        "expires": held.pin.expires.map(UnixMs::utc),
        "made": note.map(|n| n.at.utc()),
        "by": note.map(|n| n.actor.clone()),
    })
}

/// What a verification found, as a tree.
fn verified(found: &Verified) -> Value {
    json!({
        "result": found.text(),
        "whole": found.wrong == 0,
        "at": found.at.utc(),
        "deep": found.deep,
        "job": found.job.map(|job| job.to_string()),
        "segments": found.segments,
        "rows": found.rows,
        "objects": found.objects,
        "bytes": found.bytes,
        "sizes_compared": found.sized,
        "wrong": found.wrong,
        "problems": found.problems,
    })
}

async fn files(reads: &Reads<'_>, record: SnapshotInfo) -> Result<Value> {
    let root = reads.objects.root();
    let contents = Contents::read(reads, record).await?;
    let share = share(reads, &contents).await?;
    let source = &contents.source;
    let deletes: i64 = source
        .segments
        .iter()
        .flat_map(|s| &s.deltalogs)
        .flat_map(|f| &f.binlogs)
        .map(|b| b.entries_num)
        .sum();
    let with_manifest = source
        .segments
        .iter()
        .filter(|s| !s.manifest_path.is_empty());
    let absent = &contents.found.missing;
    let named: Vec<&ObjectKey> = absent.iter().take(NAMED).map(|(key, _)| key).collect();
    let layout = match source.metadata.layout() {
        SnapshotLayout::SelfContained => "self-contained",
        SnapshotLayout::Referenced | SnapshotLayout::Unknown => "referenced",
    };
    Ok(json!({
        "format_version": source.metadata.format_version,
        "layout": layout,
        "segments": source.segments.len(),
        "rows": source.segments.iter().map(|s| s.num_of_rows).sum::<i64>(),
        "delete_entries": deletes,
        "indexes": source.metadata.indexes.len(),
        "segments_with_storage_manifest": with_manifest.count(),
        "bytes": contents.found.bytes(),
        "objects": contents.by_kind(root),
        "own_objects": { "files": contents.own.len(), "bytes": contents.own_bytes() },
        "dropping_frees": frees(&contents, &share),
        "missing": absent.len(),
        "missing_objects": named,
    }))
}

/// What a drop gives back, now and once collected, and what it does not.
fn frees(contents: &Contents, share: &Share) -> Value {
    let own = contents.own_bytes();
    let mut out = Map::new();
    out.insert(
        "at_once".into(),
        json!({ "files": contents.own.len(), "bytes": own }),
    );
    match &share.doubt {
        Some(why) => out.insert("once_collected".into(), format!("not known: {why}").into()),
        None => out.insert("once_collected".into(), json!(share.exclusive)),
    };
    out.insert("kept_by_live_segments".into(), json!(share.live));
    out.insert("kept_by_other_snapshots".into(), json!(share.snapshots));
    if !share.names.is_empty() {
        out.insert("other_snapshots".into(), json!(share.names));
    }
    Value::Object(out)
}

/// The answer to [`Request::SnapshotPins`](super::handle::Request::SnapshotPins): every pin of one snapshot, or of all.
pub async fn pins(server: &Server, id: Option<SnapshotId>) -> Result<Value> {
    let meta = server.meta.clone();
    let infos: Vec<SnapshotInfo> = if let Some(id) = id {
        let found = find_snapshot(&meta, &server.roots, id).await?;
        vec![found.ok_or_else(|| missing(id))?.1]
    } else {
        let all = family_of::<SnapshotInfo>(&meta, &server.roots, Family::Snapshot).await?;
        all.into_iter().map(|(_, info)| info).collect()
    };
    let now = server.clock.now();
    let catalog = server.catalog.borrow().clone();
    let pinners = Pinners::read(&meta, &server.roots).await?;
    let mut out = Vec::new();
    for info in infos.iter().filter(|info| !info.pin_ids.is_empty()) {
        for held in pinners.held(&meta, &server.roots, info).await? {
            let mut row = Map::new();
            row.insert("snapshot".into(), info.name.clone().into());
            row.insert("snapshot_id".into(), info.id.to_string().into());
            let of = catalog.collection_name(CollectionId(info.collection_id));
            row.insert("collection".into(), of.to_string().into());
            if let Value::Object(rest) = pin(&held, now) {
                row.extend(rest);
            }
            out.push(Value::Object(row));
        }
    }
    Ok(out.into())
}

/// The answer to [`Request::SnapshotVerify`](super::handle::Request::SnapshotVerify): the same look that the job takes, its result
/// kept nowhere.
pub async fn verify(server: &Server, id: SnapshotId, deep: bool) -> Result<Value> {
    let meta = server.meta.clone();
    let (_, info) = find_snapshot(&meta, &server.roots, id)
        .await?
        .ok_or_else(|| missing(id))?;
    if let Some(why) = snapshot_verify::unfinished(&info) {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("snapshot {} cannot be verified: {why}", info.name),
        )
        .fix("verify one that is committed"));
    }
    let objects = server.objects.read().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "a snapshot cannot be verified without a bucket",
        )
        .fix("name the bucket too, e.g. --bucket s3://NAME/ROOT or --bucket file:///FOLDER")
    })?;
    let reads = Reads {
        meta: &meta,
        objects,
        roots: &server.roots,
    };
    let found = snapshot_verify::examine(&reads, info, deep, server.clock.now()).await?;
    Ok(verified(&found))
}
