//! What must hold of a cluster whenever the program has ended its work, whatever that was and whatever went wrong meanwhile: no byte
//! lost that anything refers to, no object that nothing refers to, no record of something under way, no half of anything visible.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use falconer::engine::format::binlog;
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::paths::ObjPath;
use falconer::engine::format::{manifest, pb, snapshot};
use falconer::engine::ids::CollectionId;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::faults::World;
use super::snapshots::{ROOT, all, family, objects};

/// A cluster before the work.
pub struct Before {
    objects: BTreeMap<String, Bytes>,
    referenced: BTreeSet<String>,
    /// Collections with a record of their own.
    heads: BTreeSet<i64>,
    /// Collections with any record at all: captured clusters have leftovers.
    parts: BTreeSet<i64>,
}

impl Before {
    pub async fn of(world: &World) -> Self {
        Self {
            objects: objects(&*world.objects).await,
            referenced: referenced(world).await,
            heads: heads(world).await,
            parts: parts(world).await,
        }
    }
}

async fn heads(world: &World) -> BTreeSet<i64> {
    family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
        .await
        .into_iter()
        .filter_map(|(key, _)| match key {
            Key::Collection(_, c) => Some(c.0),
            _ => None,
        })
        .collect()
}

/// Every collection that some record is of.
async fn parts(world: &World) -> BTreeSet<i64> {
    let mut out = BTreeSet::new();
    for key in all(&*world.meta, "by-dev/meta").await.keys() {
        let known = Key::parse(&super::snapshots::roots(), key.as_bytes()).known();
        out.extend(match known {
            Some(
                Key::Segment(c, ..)
                | Key::Log(_, c, ..)
                | Key::Partition(c, _)
                | Key::Field(c, _)
                | Key::FieldIndex(c, _)
                | Key::SegmentIndex(c, ..),
            ) => Some(c.0),
            _ => None,
        });
    }
    out
}

/// Every object that a segment's records or a snapshot's files name.
async fn referenced(world: &World) -> BTreeSet<String> {
    let meta = &*world.meta;
    let mut out = BTreeSet::new();
    let segments: BTreeSet<i64> = family::<pb::data::SegmentInfo>(meta, Family::Segment)
        .await
        .into_iter()
        .filter(|(_, s)| s.state != 6)
        .map(|(_, s)| s.id)
        .collect();
    for of in [
        Family::Binlog,
        Family::Statslog,
        Family::Deltalog,
        Family::Bm25log,
    ] {
        for (key, logs) in family::<pb::data::FieldBinlog>(meta, of).await {
            let Key::Log(kind, c, p, s, _) = key else {
                continue;
            };
            if segments.contains(&s.0) {
                let found = binlog::objects(kind, (c, p, s), &logs).unwrap();
                out.extend(found.into_iter().map(|(path, _)| path.to_key(ROOT).0));
            }
        }
    }
    for (key, row) in family::<pb::index::SegmentIndex>(meta, Family::SegmentIndex).await {
        let Key::SegmentIndex(_, p, s, b) = key else {
            continue;
        };
        if segments.contains(&s.0) && !row.deleted {
            let folder = format!("{ROOT}/index_files/{b}/{}/{p}/{s}", row.index_version);
            out.extend(row.index_file_keys.iter().map(|f| format!("{folder}/{f}")));
        }
    }
    for (_, record) in family::<pb::data::SnapshotInfo>(meta, Family::Snapshot).await {
        if record.state() == pb::data::SnapshotState::Committed {
            out.extend(named(world, &record.s3_location).await);
        }
    }
    out
}

/// The objects of a committed snapshot, its own files among them. Each of those must be readable.
async fn named(world: &World, file: &str) -> BTreeSet<String> {
    let read = async |key: &str| {
        let got = world.objects.get(&Path::parse(key).unwrap()).await;
        let got = got.unwrap_or_else(|e| panic!("{key}, of a committed snapshot: {e}"));
        got.bytes().await.unwrap()
    };
    let metadata = snapshot::read_metadata(file, &read(file).await).unwrap();
    let mut out = BTreeSet::from([file.to_owned()]);
    for key in &metadata.manifest_list {
        let segment = manifest::read(key, &read(key).await, metadata.format_version).unwrap();
        out.insert(key.clone());
        let logs = [
            &segment.binlogs,
            &segment.statslogs,
            &segment.deltalogs,
            &segment.bm25_statslogs,
        ];
        let logs = logs.into_iter().flatten().flat_map(|f| &f.binlogs);
        out.extend(logs.map(|b| b.log_path.clone()));
        let index = segment.index_files.iter().flat_map(|f| &f.index_file_paths);
        out.extend(index.cloned());
    }
    out
}

/// Holds against `before`; `made` are collections that the work published.
pub async fn sound(world: &World, before: &Before, made: &BTreeSet<i64>, label: &str) {
    let now = objects(&*world.objects).await;
    let referenced = referenced(world).await;
    // No lost byte: what is referenced now is there, and what was there before is what it was.
    for key in &referenced {
        let there = now.get(key);
        match before.objects.get(key) {
            Some(bytes) => assert_eq!(there, Some(bytes), "{label}: {key} is referenced"),
            // The captured bucket may lack what its own records name.
            None if before.referenced.contains(key) => {}
            None => assert!(there.is_some(), "{label}: {key} is referenced"),
        }
    }
    // No leaked object: what is new is referenced.
    let leaked: Vec<&String> = now
        .keys()
        .filter(|key| !before.objects.contains_key(*key) && !referenced.contains(*key))
        .filter(|key| ObjPath::parse(ROOT, key).known().is_some())
        .collect();
    assert!(leaked.is_empty(), "{label}: nobody refers to {leaked:?}");
    // What lies aside can be found: its job has a record of it.
    for key in now
        .keys()
        .filter_map(|key| key.strip_prefix("falconer-quarantine/"))
    {
        let part = key.strip_prefix(&format!("{ROOT}/")).unwrap();
        let job = part.split(['/', '.']).next().unwrap();
        let record = format!("falconer/by-dev/quarantine/{job}");
        let found = world.meta.get(&record.as_str().into()).await.unwrap();
        assert!(found.is_some(), "{label}: {key} without {record}");
    }
    // No visible half: records of a collection without the record that makes it visible.
    let heads = heads(world).await;
    let appeared: BTreeSet<i64> = heads.difference(&before.heads).copied().collect();
    assert_eq!(&appeared, made, "{label}: collections that appeared");
    let headless: Vec<i64> = parts(world)
        .await
        .into_iter()
        .filter(|c| !heads.contains(c) && !before.parts.contains(c))
        .collect();
    assert!(headless.is_empty(), "{label}: parts of {headless:?}");
    at_rest(world, label).await;
}

/// No record says that something is under way.
pub async fn at_rest(world: &World, label: &str) {
    let meta = &*world.meta;
    for (key, value) in all(meta, "falconer/by-dev").await {
        assert!(!key.contains("/lock/"), "{label}: {key}");
        let is_job = key.strip_prefix("falconer/by-dev/job/");
        if is_job.is_some_and(|id| !id.contains('/')) {
            let job: serde_json::Value = serde_json::from_slice(&value).unwrap();
            let state = job["state"].as_str().unwrap();
            assert!(
                ["verified", "failed", "cancelled"].contains(&state),
                "{label}: {key} is {state}"
            );
        }
    }
    for (_, s) in family::<pb::data::SnapshotInfo>(meta, Family::Snapshot).await {
        let state = s.state();
        assert_eq!(
            state,
            pb::data::SnapshotState::Committed,
            "{label}: snapshot {}",
            s.name
        );
    }
    for (_, s) in family::<pb::data::SegmentInfo>(meta, Family::Segment).await {
        assert!(!s.is_importing, "{label}: segment {} is importing", s.id);
    }
    for (_, j) in family::<pb::data::CopySegmentJob>(meta, Family::CopySegmentJob).await {
        let ended = [3, 4].contains(&j.state);
        assert!(ended, "{label}: copy job {} is {}", j.job_id, j.state);
    }
    for (_, t) in family::<pb::data::CopySegmentTask>(meta, Family::CopySegmentTask).await {
        let ended = [3, 4].contains(&t.state);
        assert!(ended, "{label}: copy task {} is {}", t.task_id, t.state);
    }
    released(world, label).await;
}

/// No pin stays of a restore or an export that has ended.
async fn released(world: &World, label: &str) {
    let meta = &*world.meta;
    let copies = family::<pb::data::CopySegmentJob>(meta, Family::CopySegmentJob).await;
    let exports = family::<pb::data::ExportSnapshotJob>(meta, Family::ExportSnapshotJob).await;
    let ended: BTreeSet<i64> = copies
        .into_iter()
        .filter(|(_, job)| [3, 4].contains(&job.state))
        .map(|(_, job)| job.pin_id)
        .chain(exports.into_iter().map(|(_, job)| {
            // PENDING 1, EXECUTING 2, COMPLETED 3, FAILED 4, PUBLISHING 5.
            let over = [3, 4].contains(&job.state);
            assert!(over, "{label}: export job {} is {}", job.job_id, job.state);
            job.pin_id
        }))
        .collect();
    for (_, s) in family::<pb::data::SnapshotInfo>(meta, Family::Snapshot).await {
        let left: Vec<_> = s.pin_ids.iter().filter(|p| ended.contains(p)).collect();
        assert!(left.is_empty(), "{label}: pins {left:?} on {}", s.name);
    }
}

/// The id of the collection of this name, if it is there.
pub async fn id_of(world: &World, name: &str) -> Option<CollectionId> {
    family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
        .await
        .into_iter()
        .find_map(|(key, info)| match key {
            Key::Collection(_, c) if info.schema.as_ref()?.name == name => Some(c),
            _ => None,
        })
}
