//! Checks of the bucket: reachable, the right one, snapshots' files present.

use std::collections::BTreeMap;

use futures::StreamExt;

use super::meta::parsed;
use super::references::{is_committed, is_live, metadata_key};
use super::{Check, Patient};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key, LogKind};
use crate::engine::format::paths::ManifestPath;
use crate::engine::format::{binlog, codec, pb};
use crate::engine::ids::{FieldId, ObjectKey, SegmentId};
use crate::engine::meta::{RangeOpts, Span};
use crate::engine::objects::ObjectRead;

/// Segments looked at to find some with files.
const SEGMENTS: usize = 200;
/// Objects asked for to tell one bucket from another.
const SAMPLES: usize = 5;
/// Snapshots and manifests that the quick form asks for.
const SNAPSHOTS: usize = 32;
const MANIFESTS: usize = 64;
const AT_ONCE: usize = 8;

const WRONG_PLACE: &str =
    "check minio.bucketName, minio.rootPath and minio.address: these are another cluster's objects";

/// The bucket answers, takes our identity, and has something under the root.
pub(super) async fn reach(p: &Patient<'_>) -> Vec<Check> {
    let Some(objects) = p.objects else {
        return vec![Check::skipped("bucket", "no bucket is attached")];
    };
    let root = ObjectKey(objects.root().to_owned());
    let first = match objects.probe(&root).await {
        Ok(first) => first,
        Err(e) => {
            return vec![Check::from_error(
                "bucket",
                &e,
                "check minio.address and minio.bucketName",
            )];
        }
    };
    let reached = Check::ok("bucket", format!("{} answers", objects.describe()));
    if first.is_some() {
        return vec![
            reached,
            Check::ok("object root", format!("{root} holds objects")),
        ];
    }
    let elsewhere = match objects.probe(&ObjectKey(String::new())).await {
        Ok(Some(other)) => format!("; the bucket's first object is {}", other.key),
        Ok(None) => "; the bucket is empty".to_owned(),
        Err(_) => String::new(),
    };
    let needed = sample(p, objects.root()).await.is_ok_and(|s| !s.is_empty());
    let detail = format!("nothing under {:?}{elsewhere}", root.0);
    let root = if needed {
        Check::fail("object root", detail).fix(WRONG_PLACE)
    } else {
        Check::ok("object root", format!("{detail}; no segment needs any"))
    };
    vec![reached, root]
}

/// A few live segments' files must be in this bucket; else it is another cluster's (`spec/oncall.md` rule 16).
pub(super) async fn identity(p: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "right bucket";
    let Some(objects) = p.objects else {
        return vec![Check::skipped(NAME, "no bucket is attached")];
    };
    let found = match sample(p, objects.root()).await {
        Ok(found) if found.is_empty() => {
            return vec![Check::skipped(
                NAME,
                "no live segment has files to look for",
            )];
        }
        Ok(found) => found,
        Err(e) => return vec![Check::from_error(NAME, &e, "check etcd.endpoints")],
    };
    let asked = found.len();
    let absent = match absent(
        objects,
        found
            .into_iter()
            .map(|(s, key)| (key, format!("segment {s}"))),
    )
    .await
    {
        Ok(absent) => absent,
        Err(e) => return vec![Check::from_error(NAME, &e, "check minio.address")],
    };
    let items: Vec<String> = absent
        .iter()
        .map(|(key, by)| format!("{key} (needed by {by})"))
        .collect();
    vec![if items.is_empty() {
        Check::ok(
            NAME,
            format!("files of {asked} segments are where etcd says"),
        )
    } else if items.len() == asked {
        Check::fail(
            NAME,
            format!(
                "none of {asked} files that etcd names is in {}: {}",
                objects.describe(),
                items.first().map_or("", String::as_str)
            ),
        )
        .fix(WRONG_PLACE)
        .items(items)
    } else {
        Check::fail(
            NAME,
            format!(
                "{} of {asked} files that etcd names are missing",
                items.len()
            ),
        )
        .fix("the bucket is right, but objects are gone: doctor --deep names them all")
        .items(items)
    }]
}

/// One file of each of a few live segments, cheaply.
async fn sample(p: &Patient<'_>, root: &str) -> Result<BTreeMap<SegmentId, ObjectKey>> {
    let opts = RangeOpts {
        limit: SEGMENTS,
        ..RangeOpts::default()
    };
    let page = p
        .meta
        .range(&Span::prefix(&Family::Segment.prefix(p.roots)), opts)
        .await?;
    let mut found = BTreeMap::new();
    for kv in &page.kvs {
        if found.len() == SAMPLES {
            break;
        }
        let Some(key) = parsed(p, kv) else { continue };
        let Key::Segment(c, part, s) = key else {
            continue;
        };
        let Some(info) = codec::decode::<pb::data::SegmentInfo>(&key, &kv.value).value() else {
            continue;
        };
        if !is_live(&info) {
            continue;
        }
        if let Ok(manifest) = ManifestPath::parse(&info.manifest_path) {
            if manifest.ver > 0 {
                found.insert(s, ObjectKey(manifest.file()));
            }
            continue;
        }
        for (family, kind) in [
            (Family::Binlog, LogKind::Insert),
            (Family::Deltalog, LogKind::Delta),
        ] {
            let span = Span::prefix(&family.under(p.roots, &[c.0, part.0, s.0]));
            let one = RangeOpts {
                limit: 1,
                ..RangeOpts::default()
            };
            let logs = p.meta.range(&span, one).await?;
            let Some(kv) = logs.kvs.first() else { continue };
            let Some(key) = parsed(p, kv) else { continue };
            let Some(record) = codec::decode::<pb::data::FieldBinlog>(&key, &kv.value).value()
            else {
                continue;
            };
            if let Some(log) = record.binlogs.first()
                && let Ok(id) = binlog::log_id(log)
            {
                let path = binlog::object(kind, (c, part, s), FieldId(record.field_id), id);
                found.insert(s, path.to_key(root));
                break;
            }
        }
    }
    Ok(found)
}

/// Which of these objects do not exist.
async fn absent(
    objects: &ObjectRead,
    wanted: impl IntoIterator<Item = (ObjectKey, String)>,
) -> Result<Vec<(ObjectKey, String)>> {
    let answers: Vec<Result<Option<(ObjectKey, String)>>> = futures::stream::iter(wanted)
        .map(|(key, by)| async move {
            match objects.head(&key).await {
                Ok(_) => Ok(None),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(Some((key, by))),
                Err(e) => Err(e),
            }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut out = Vec::new();
    for answer in answers {
        out.extend(answer?);
    }
    Ok(out)
}

/// Metadata JSON and manifests of committed snapshots exist.
pub(super) async fn snapshots(p: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "snapshots";
    let Some(objects) = p.objects else {
        return vec![Check::skipped(NAME, "no bucket is attached")];
    };
    match snapshot_files(p, objects).await {
        Ok(check) => vec![check],
        Err(e) => vec![Check::from_error(
            NAME,
            &e,
            "check etcd.endpoints and minio.address",
        )],
    }
}

async fn snapshot_files(p: &Patient<'_>, objects: &ObjectRead) -> Result<Check> {
    const NAME: &str = "snapshots";
    let page = p
        .meta
        .range(
            &Span::prefix(&Family::Snapshot.prefix(p.roots)),
            RangeOpts::default(),
        )
        .await?;
    let mut committed = Vec::new();
    let mut other = 0;
    for kv in &page.kvs {
        let Some(key) = parsed(p, kv) else { continue };
        let Key::Snapshot(c, id) = key else { continue };
        match codec::decode::<pb::data::SnapshotInfo>(&key, &kv.value).value() {
            Some(info) if is_committed(&info) => {
                committed.push((metadata_key(objects.root(), c, id, &info), info.name));
            }
            _ => other += 1,
        }
    }
    if committed.is_empty() {
        let line = match other {
            0 => "there are none".to_owned(),
            n => format!("none is committed, {n} are pending, deleting or unreadable"),
        };
        return Ok(Check::skipped(NAME, line));
    }
    let total = committed.len();
    committed.truncate(SNAPSHOTS);
    let looked = committed.len();
    let read: Vec<(ObjectKey, String, Result<Vec<ObjectKey>>)> = futures::stream::iter(committed)
        .map(|(key, name)| async move {
            let list = manifests(objects, &key).await;
            (key, name, list)
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut items = Vec::new();
    let mut files = Vec::new();
    for (key, name, list) in read {
        match list {
            Ok(list) => files.extend(list.into_iter().map(|f| (f, format!("snapshot {name}")))),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                items.push(format!("{key} (needed by snapshot {name})"));
            }
            Err(e) => items.push(format!("{key} of snapshot {name}: {e}")),
        }
    }
    let named = files.len();
    files.truncate(MANIFESTS);
    let asked = files.len();
    let gone = absent(objects, files).await?;
    items.extend(
        gone.into_iter()
            .map(|(key, by)| format!("{key} (needed by {by})")),
    );
    let seen =
        format!("{looked} of {total} committed snapshots, {asked} of {named} manifests looked at");
    Ok(if items.is_empty() {
        Check::ok(NAME, format!("{seen}, all there"))
    } else {
        Check::fail(NAME, format!("{seen}, {} missing or unreadable", items.len()))
            .fix("these snapshots cannot be restored: put the objects back from a backup of the bucket, or drop the snapshots")
            .items(items)
    })
}

/// The manifests that a snapshot's metadata names (`spec/layout.md` §7.6).
async fn manifests(objects: &ObjectRead, key: &ObjectKey) -> Result<Vec<ObjectKey>> {
    let bytes = objects.get(key).await?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| {
        Error::new(ErrorKind::Corrupt, format!("object {key} is not JSON")).caused_by(e)
    })?;
    let list = json
        .get("manifest_list")
        .and_then(serde_json::Value::as_array);
    Ok(list
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str)
        .map(|path| ObjectKey(path.to_owned()))
        .collect())
}
