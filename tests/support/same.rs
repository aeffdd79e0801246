//! A restored collection against its snapshot: rows, logs, bytes and index files one to one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::Bytes;
use falconer::engine::format::keys::{Family, Key, LogKind};
use falconer::engine::format::pb;
use falconer::engine::ids::{CollectionId, DbId};
use prost::Message;

use super::faults::World;
use super::snapshots::{Made, ROOT, all, collection, family, objects};

/// The target, found the way a stranger finds it: by name.
pub async fn target(world: &World, name: &str) -> (DbId, CollectionId, pb::etcd::CollectionInfo) {
    let (db, c) = collection(&*world.meta, name).await;
    let info = family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
        .await
        .into_iter()
        .find(|(k, _)| *k == Key::Collection(db, c))
        .unwrap()
        .1;
    (db, c, info)
}

/// Logs of a collection's segments, by segment: kind, field and log id to entries, timestamps and sizes.
type Logs = BTreeMap<(LogKind, i64, i64), (i64, u64, u64, i64)>;

async fn logs(world: &World, of: CollectionId) -> BTreeMap<i64, Logs> {
    let mut out: BTreeMap<i64, Logs> = BTreeMap::new();
    for f in [
        Family::Binlog,
        Family::Statslog,
        Family::Deltalog,
        Family::Bm25log,
    ] {
        for (key, log) in family::<pb::data::FieldBinlog>(&*world.meta, f).await {
            let Key::Log(kind, c, _, s, field) = key else {
                continue;
            };
            if c != of {
                continue;
            }
            for b in log.binlogs {
                assert!(b.log_path.is_empty(), "no path is stored beside an id");
                out.entry(s.0).or_default().insert(
                    (kind, field.0, b.log_id),
                    (b.entries_num, b.timestamp_from, b.timestamp_to, b.log_size),
                );
            }
        }
    }
    out
}

/// Everything one to one, and nothing else in the bucket: the check of the whole feature.
pub async fn same(world: &World, made: &Made, name: &str, label: &str) {
    let seen = copied(world, made, name, label).await;
    let bytes = objects(&*world.objects).await;
    let ours: BTreeSet<String> = bytes
        .keys()
        .filter(|k| !lab_keys().contains(k.as_str()) && !k.contains("/snapshots/"))
        .cloned()
        .collect();
    assert_eq!(
        ours, seen,
        "{label}: nothing else was written to the bucket"
    );
}

/// Everything one to one. Answers the objects of the copy.
#[allow(clippy::too_many_lines, reason = "one comparison after the other")]
pub async fn copied(world: &World, made: &Made, name: &str, label: &str) -> BTreeSet<String> {
    let meta = &*world.meta;
    let (db, c, info) = target(world, name).await;
    let description = made.metadata.collection.as_ref().unwrap();
    let schema = description.schema.as_ref().unwrap();
    assert_eq!(db, DbId(1), "{label}");
    assert_eq!(
        info.consistency_level, description.consistency_level,
        "{label}"
    );
    assert_eq!(
        i64::from(info.shards_num),
        description.num_shards,
        "{label}"
    );
    assert_eq!(info.properties, description.properties, "{label}");
    let stored = info.schema.as_ref().unwrap();
    assert!(
        stored.fields.is_empty() && info.partition_i_ds.is_empty(),
        "{label}: never inline"
    );
    assert_eq!(
        stored.enable_dynamic_field, schema.enable_dynamic_field,
        "{label}"
    );
    assert_eq!(stored.description, schema.description, "{label}");
    for (i, v) in info.virtual_channel_names.iter().enumerate() {
        assert_eq!(
            v,
            &format!("{}_{}v{i}", info.physical_channel_names[i], c),
            "{label}"
        );
        let old = &description.virtual_channel_names[i];
        assert!(old.starts_with(&info.physical_channel_names[i]), "{label}");
    }
    let fields: BTreeMap<i64, pb::schema::FieldSchema> =
        family::<pb::schema::FieldSchema>(meta, Family::Field)
            .await
            .into_iter()
            .filter(|(k, _)| matches!(k, Key::Field(of, _) if *of == c))
            .map(|(_, f)| (f.field_id, f))
            .collect();
    let want: BTreeMap<i64, pb::schema::FieldSchema> = schema
        .fields
        .iter()
        .map(|f| (f.field_id, f.clone()))
        .collect();
    assert_eq!(fields, want, "{label}: fields keep their ids");
    let partitions: BTreeMap<String, i64> =
        family::<pb::etcd::PartitionInfo>(meta, Family::Partition)
            .await
            .into_iter()
            .filter(|(k, _)| matches!(k, Key::Partition(of, _) if *of == c))
            .map(|(_, p)| (p.partition_name, p.partition_id))
            .collect();
    assert_eq!(
        partitions.keys().collect::<BTreeSet<_>>(),
        description.partitions.keys().collect::<BTreeSet<_>>(),
        "{label}"
    );
    // Segments: paired through the records that Milvus's own tools read.
    let job = family::<pb::data::CopySegmentJob>(meta, Family::CopySegmentJob)
        .await
        .into_iter()
        .map(|(_, j)| j)
        .find(|j| j.collection_id == c.0)
        .unwrap();
    assert_eq!(job.state, 3, "{label}: Completed");
    assert_eq!(job.copied_segments, job.total_segments, "{label}");
    assert_eq!(job.total_segments as usize, made.segments.len(), "{label}");
    assert!(
        job.complete_ts >= job.start_ts && job.start_ts > 0,
        "{label}"
    );
    for (_, task) in family::<pb::data::CopySegmentTask>(meta, Family::CopySegmentTask).await {
        assert_eq!((task.state, task.node_id), (3, -1), "{label}");
    }
    let pairs: BTreeMap<i64, i64> = job
        .id_mappings
        .iter()
        .map(|m| (m.source_segment_id, m.target_segment_id))
        .collect();
    assert_eq!(pairs.len(), made.segments.len(), "{label}");
    let segments: BTreeMap<i64, pb::data::SegmentInfo> =
        family::<pb::data::SegmentInfo>(meta, Family::Segment)
            .await
            .into_iter()
            .filter(|(k, _)| matches!(k, Key::Segment(of, ..) if *of == c))
            .map(|(_, s)| (s.id, s))
            .collect();
    assert_eq!(segments.len(), made.segments.len(), "{label}");
    let old_logs = logs(world, made.of).await;
    let new_logs = logs(world, c).await;
    let rows = family::<pb::index::SegmentIndex>(meta, Family::SegmentIndex).await;
    let bytes = objects(&*world.objects).await;
    let mut seen = BTreeSet::new();
    for source in &made.segments {
        let new = &segments[&pairs[&source.segment_id]];
        assert_eq!(new.num_of_rows, source.num_of_rows, "{label}");
        assert_eq!(new.state, 4, "{label}: Flushed");
        assert_eq!(
            (new.level, new.is_importing),
            (source.segment_level, false),
            "{label}"
        );
        assert_eq!(new.last_expire_time, u64::MAX, "{label}");
        let (a, b) = (new.dml_position.as_ref(), source.dml_position.as_ref());
        assert_eq!(
            a.map(|p| (p.timestamp, &p.msg_id)),
            b.map(|p| (p.timestamp, &p.msg_id)),
            "{label}"
        );
        assert!(new.insert_channel.contains(&c.0.to_string()), "{label}");
        let old = old_logs.get(&source.segment_id);
        assert_eq!(
            new_logs.get(&new.id),
            old,
            "{label}: logs of {}",
            source.segment_id
        );
        for list in [&source.binlogs, &source.statslogs, &source.deltalogs] {
            for path in list.iter().flat_map(|f| &f.binlogs).map(|b| &b.log_path) {
                let to = path
                    .replace(&made.of.0.to_string(), &c.0.to_string())
                    .replace(
                        &format!("/{}/", source.partition_id),
                        &format!("/{}/", new.partition_id),
                    )
                    .replace(&source.segment_id.to_string(), &new.id.to_string());
                assert_eq!(bytes.get(&to), bytes.get(path), "{label}: {path} → {to}");
                assert!(bytes.contains_key(&to), "{label}: {to}");
                seen.insert(to);
            }
        }
        let have: Vec<&pb::index::SegmentIndex> = rows
            .iter()
            .map(|(_, r)| r)
            .filter(|r| r.segment_id == new.id)
            .collect();
        assert_eq!(have.len(), source.index_files.len(), "{label}");
        for file in &source.index_files {
            let old = &rows
                .iter()
                .find(|(_, r)| r.build_id == file.build_id)
                .unwrap()
                .1;
            let row = have
                .iter()
                .find(|r| r.index_file_keys == old.index_file_keys && r.num_rows == old.num_rows)
                .unwrap_or_else(|| panic!("{label}: index row of build {}", file.build_id));
            assert_ne!(row.build_id, old.build_id, "{label}: fresh builds (D13)");
            assert_eq!(
                (row.state, row.serialize_size, row.index_version),
                (3, old.serialize_size, old.index_version),
                "{label}"
            );
            for (path, name) in file.index_file_paths.iter().zip(&row.index_file_keys) {
                let to = format!(
                    "{ROOT}/index_files/{}/{}/{}/{}/{name}",
                    row.build_id, row.index_version, new.partition_id, new.id
                );
                assert_eq!(bytes.get(&to), bytes.get(path), "{label}: {path} → {to}");
                assert!(bytes.contains_key(&to), "{label}: {to}");
                seen.insert(to);
            }
        }
    }
    let names =
        |of: CollectionId, list: Vec<(Key, pb::index::FieldIndex)>| -> BTreeMap<String, Vec<_>> {
            list.into_iter()
                .filter(|(k, i)| matches!(k, Key::FieldIndex(c, _) if *c == of) && !i.deleted)
                .map(|(_, i)| i.index_info.unwrap())
                .map(|i| {
                    (
                        i.index_name.clone(),
                        vec![(
                            i.field_id,
                            i.index_params,
                            i.user_index_params,
                            i.type_params,
                        )],
                    )
                })
                .collect()
        };
    let defs = family::<pb::index::FieldIndex>(meta, Family::FieldIndex).await;
    assert_eq!(names(c, defs.clone()), names(made.of, defs), "{label}");
    for v in &info.virtual_channel_names {
        let cp = all(meta, "by-dev/meta/datacoord-meta/channel-cp").await;
        let value = cp
            .get(&format!("by-dev/meta/datacoord-meta/channel-cp/{v}"))
            .unwrap();
        let cp = pb::msg::MsgPosition::decode(value.clone()).unwrap();
        assert_eq!((cp.timestamp, &cp.channel_name), (0, v), "{label}");
        assert!(!cp.msg_id.is_empty(), "{label}: a channel begins somewhere");
        let mark = all(meta, "by-dev/meta/datacoord-meta/channel-removal").await;
        let value = mark.get(&format!("by-dev/meta/datacoord-meta/channel-removal/{v}"));
        assert_eq!(value.map(|m| &m[..]), Some(&b"non-removed"[..]), "{label}");
    }
    unpinned(world, made, label).await;
    seen
}

pub fn lab_keys() -> &'static BTreeSet<&'static str> {
    static KEYS: OnceLock<BTreeSet<&'static str>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let all = super::lab::objects().iter();
        all.map(|(k, _)| k.as_str()).collect()
    })
}

pub async fn unpinned(world: &World, made: &Made, label: &str) {
    let kv = world.meta.get(&made.key).await.unwrap().unwrap();
    let record = pb::data::SnapshotInfo::decode(kv.value).unwrap();
    assert!(
        record.pin_ids.is_empty() && record.pin_expire_at_ms.is_empty(),
        "{label}: released"
    );
}

/// Every object that was there before is there, to the byte.
pub async fn untouched(world: &World, before: &BTreeMap<String, Bytes>, label: &str) {
    let now = objects(&*world.objects).await;
    assert!(before.len() > 10, "{label}: {} objects", before.len());
    for (key, bytes) in before {
        assert_eq!(now.get(key), Some(bytes), "{label}: {key}");
    }
}
