//! The captured cluster with a snapshot in it, written the way Milvus writes one: files first, committed record last. The
//! maker shares no code with the engine's own create, so that a restore is not tested against its twin.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::format::keys::{Family, Key, LogKind, Roots};
use falconer::engine::format::{manifest, pb, snapshot};
use falconer::engine::ids::{
    CollectionId, DbId, KeyPrefix, MetaKey, ObjectKey, SegmentId, SnapshotId, UnixMs,
};
use falconer::engine::meta::{Limits, MetaWrite, Span, Txn, Write};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;

use super::faults::World;
use super::lab;
use super::mem::MemStore;

pub const NOW: UnixMs = UnixMs(1_790_000_000_000);
pub const ROOT: &str = "files";
/// The collection of [`small_seed`].
pub const SMALL: CollectionId = CollectionId(470_660_334_431_903_094);
pub const ETCD: Limits = Limits {
    ops: 128,
    bytes: 1_536 * 1024,
};

pub fn roots() -> Roots {
    Roots::default()
}

/// A state of both stores from which any number of worlds can begin, each of its own.
pub struct Seed {
    meta: MemStore,
    objects: InMemory,
}

impl Seed {
    /// A part of the captured cluster, its coordinators gone.
    pub async fn of(keys: impl Fn(&str) -> bool, names: impl Fn(&str) -> bool) -> Self {
        let seed = Self {
            meta: MemStore::new(ETCD),
            objects: InMemory::new(),
        };
        load_meta(&seed.meta, keys).await;
        load_objects(&seed.objects, names).await;
        seed
    }

    pub fn world(&self) -> World {
        let (meta, objects) = (self.meta.fork(), self.objects.fork());
        World::new(Arc::new(meta), Arc::new(objects), NOW)
    }

    /// Changes the state itself, before the first world begins.
    pub async fn prepare<T>(self, change: impl AsyncFnOnce(&World) -> T) -> (Self, T) {
        let (meta, objects) = (Arc::new(self.meta), Arc::new(self.objects));
        let world = World::new(meta.clone(), objects.clone(), NOW);
        let made = change(&world).await;
        let (meta, objects) = (meta.fork(), objects.fork());
        (Self { meta, objects }, made)
    }
}

/// The whole cluster in memory, its coordinators gone.
pub async fn lab_world() -> World {
    static WHOLE: tokio::sync::OnceCell<Seed> = tokio::sync::OnceCell::const_new();
    let seed = WHOLE.get_or_init(|| Seed::of(|_| true, |_| true)).await;
    seed.world()
}

/// Segments of [`SMALL`] that are flushed: one on each of its two shards, each with deletes and index files.
pub const FLUSHED: [i64; 2] = [470_660_334_431_703_183, 470_660_334_431_703_184];
/// Two of those that were compacted into them.
pub const COMPACTED: [i64; 2] = [470_660_334_431_903_102, 470_660_334_431_903_103];

/// A small part of it that still has everything: these segments of [`SMALL`], and what every collection shares.
pub async fn small_seed(segments: &[i64]) -> Seed {
    let whole = lab_world().await;
    let mine = |key: &Key| matches!(key, Key::Segment(c, ..) if *c == SMALL);
    let others: Vec<String> = family::<pb::data::SegmentInfo>(&*whole.meta, Family::Segment)
        .await
        .into_iter()
        .filter(|(key, info)| mine(key) && !segments.contains(&info.id))
        .map(|(_, info)| format!("/{}", info.id))
        .collect();
    let rows: BTreeMap<String, i64> =
        family::<pb::index::SegmentIndex>(&*whole.meta, Family::SegmentIndex)
            .await
            .into_iter()
            .filter(|(_, r)| r.collection_id == SMALL.0)
            .map(|(_, r)| (format!("/index_files/{}/", r.build_id), r.segment_id))
            .collect();
    let name = SMALL.to_string();
    let shared = ["/database/db-info/", "/aliases/", "by-dev/kv/"];
    let other = |key: &str| others.iter().any(|part| key.contains(part.as_str()));
    Seed::of(
        |key| (key.contains(&name) && !other(key)) || shared.iter().any(|part| key.contains(part)),
        |key| {
            let of_row = rows.iter().find(|(part, _)| key.contains(part.as_str()));
            match of_row {
                Some((_, segment)) => segments.contains(segment),
                None => key.contains(&format!("/{name}/")) && !other(key),
            }
        },
    )
    .await
}

async fn load_meta(meta: &dyn MetaWrite, keep: impl Fn(&str) -> bool) {
    let mut keys = lab::etcd_without_sessions();
    keys.retain(|k| keep(&String::from_utf8_lossy(&k.key)));
    for chunk in keys.chunks(100) {
        let writes = chunk
            .iter()
            .map(|k| Write::put(MetaKey(Bytes::from(k.key.clone())), k.value.clone()))
            .collect();
        meta.txn(Txn {
            conds: vec![],
            writes,
        })
        .await
        .unwrap();
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the hand that fills a bucket before the engine sees it"
)]
async fn load_objects(objects: &dyn ObjectStore, keep: impl Fn(&str) -> bool) {
    for (key, bytes) in lab::objects().iter().filter(|(key, _)| keep(key)) {
        objects
            .put(&Path::parse(key).unwrap(), bytes.clone().into())
            .await
            .unwrap();
    }
}

/// Every record of a family, decoded.
pub async fn family<M: Message + Default>(meta: &dyn MetaWrite, family: Family) -> Vec<(Key, M)> {
    let page = meta
        .range_all(&Span::prefix(&family.prefix(&roots())))
        .await
        .unwrap();
    page.kvs
        .into_iter()
        .filter(|kv| kv.value[..] != [0xE2, 0x9B, 0xBC])
        .filter_map(|kv| {
            let key = Key::parse(&roots(), &kv.key.0).known()?;
            Some((key, M::decode(kv.value).ok()?))
        })
        .collect()
}

/// All keys and values below a prefix.
pub async fn all(meta: &dyn MetaWrite, prefix: &str) -> BTreeMap<String, Bytes> {
    let page = meta
        .range_all(&Span::prefix(&KeyPrefix::new(prefix)))
        .await
        .unwrap();
    page.kvs
        .into_iter()
        .map(|kv| (kv.key.text(), kv.value))
        .collect()
}

/// Every object with its bytes.
pub async fn objects(store: &dyn ObjectStore) -> BTreeMap<String, Bytes> {
    use futures::TryStreamExt;
    let listed: Vec<object_store::ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let mut out = BTreeMap::new();
    for meta in listed {
        let bytes = store
            .get(&meta.location)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        out.insert(meta.location.to_string(), bytes);
    }
    out
}

/// A collection by name: database and id.
pub async fn collection(meta: &dyn MetaWrite, name: &str) -> (DbId, CollectionId) {
    family::<pb::etcd::CollectionInfo>(meta, Family::Collection)
        .await
        .into_iter()
        .find_map(|(key, info)| match key {
            Key::Collection(db, c)
                if info.schema.as_ref().unwrap().name == name && info.state == 0 =>
            {
                Some((db, c))
            }
            _ => None,
        })
        .unwrap_or_else(|| panic!("no collection {name}"))
}

/// What the maker selected.
pub struct Made {
    pub id: SnapshotId,
    pub of: CollectionId,
    pub segments: Vec<pb::data::SegmentDescription>,
    pub metadata: pb::data::SnapshotMetadata,
    pub key: MetaKey,
}

/// Makes a committed snapshot of a collection; at most `limit` segments, the L0 and the deleted-from first.
pub async fn make(
    world: &World,
    db: DbId,
    of: CollectionId,
    id: i64,
    name: &str,
    limit: usize,
) -> Made {
    let meta = &*world.meta;
    let (_, info) = family::<pb::etcd::CollectionInfo>(meta, Family::Collection)
        .await
        .into_iter()
        .find(|(k, _)| *k == Key::Collection(db, of))
        .unwrap();

    let seeks: Vec<pb::msg::MsgPosition> =
        family::<pb::msg::MsgPosition>(meta, Family::ChannelCheckpoint)
            .await
            .into_iter()
            .filter_map(|(k, mut p)| match k {
                Key::ChannelCheckpoint(v) if info.virtual_channel_names.contains(&v.0) => {
                    p.channel_name = v.0;
                    Some(p)
                }
                _ => None,
            })
            .collect();
    let boundary: HashMap<String, u64> = seeks
        .iter()
        .map(|p| (p.channel_name.clone(), p.timestamp))
        .collect();
    let mut logs: HashMap<(LogKind, SegmentId), Vec<pb::data::FieldBinlog>> = HashMap::new();
    for f in [
        Family::Binlog,
        Family::Statslog,
        Family::Deltalog,
        Family::Bm25log,
    ] {
        for (key, mut log) in family::<pb::data::FieldBinlog>(meta, f).await {
            let Key::Log(kind, c, p, s, field) = key else {
                continue;
            };
            if c != of || log.binlogs.is_empty() {
                continue;
            }
            for b in &mut log.binlogs {
                b.log_path = match kind {
                    LogKind::Insert => {
                        format!("{ROOT}/insert_log/{c}/{p}/{s}/{field}/{}", b.log_id)
                    }
                    LogKind::Stats => format!("{ROOT}/stats_log/{c}/{p}/{s}/{field}/{}", b.log_id),
                    LogKind::Delta => format!("{ROOT}/delta_log/{c}/{p}/{s}/{}", b.log_id),
                    LogKind::Bm25 => format!("{ROOT}/bm25_stats/{c}/{p}/{s}/{field}/{}", b.log_id),
                };
            }
            logs.entry((kind, s)).or_default().push(log);
        }
    }
    let definitions: Vec<pb::index::IndexInfo> =
        family::<pb::index::FieldIndex>(meta, Family::FieldIndex)
            .await
            .into_iter()
            .filter(|(k, i)| matches!(k, Key::FieldIndex(c, _) if *c == of) && !i.deleted)
            .map(|(_, i)| i.index_info.unwrap())
            .collect();
    let rows = family::<pb::index::SegmentIndex>(meta, Family::SegmentIndex).await;
    let mut segments = Vec::new();
    for (key, s) in family::<pb::data::SegmentInfo>(meta, Family::Segment).await {
        let Key::Segment(c, p, sid) = key else {
            continue;
        };
        let start = s.start_position.as_ref().map_or(0, |p| p.timestamp);
        let take = |kind| logs.get(&(kind, sid)).cloned().unwrap_or_default();
        let with_data = !take(LogKind::Insert).is_empty() || !take(LogKind::Delta).is_empty();
        if c != of || s.state == 6 || s.is_importing || !with_data {
            continue;
        }
        if start >= boundary.get(&s.insert_channel).copied().unwrap_or(0) {
            continue;
        }
        let index_files = rows
            .iter()
            .filter(|(_, r)| r.segment_id == sid.0 && r.state == 3 && !r.deleted)
            .filter_map(|(_, r)| {
                let d = definitions.iter().find(|d| d.index_id == r.index_id)?;
                Some(pb::index::IndexFilePathInfo {
                    segment_id: sid.0,
                    field_id: d.field_id,
                    index_id: r.index_id,
                    build_id: r.build_id,
                    index_name: d.index_name.clone(),
                    index_params: d
                        .index_params
                        .iter()
                        .chain(&d.type_params)
                        .cloned()
                        .collect(),
                    index_file_paths: r
                        .index_file_keys
                        .iter()
                        .map(|f| {
                            format!(
                                "{ROOT}/index_files/{}/{}/{p}/{sid}/{f}",
                                r.build_id, r.index_version
                            )
                        })
                        .collect(),
                    serialized_size: r.serialize_size,
                    index_version: r.index_version,
                    num_rows: r.num_rows,
                    current_index_version: r.current_index_version,
                    mem_size: r.mem_size,
                    ..Default::default()
                })
            })
            .collect();
        segments.push(pb::data::SegmentDescription {
            segment_id: sid.0,
            partition_id: p.0,
            segment_level: s.level,
            channel_name: s.insert_channel.clone(),
            binlogs: take(LogKind::Insert),
            statslogs: take(LogKind::Stats),
            deltalogs: take(LogKind::Delta),
            bm25_statslogs: take(LogKind::Bm25),
            index_files,
            num_of_rows: s.num_of_rows,
            start_position: s.start_position.clone(),
            dml_position: s.dml_position.clone(),
            storage_version: s.storage_version,
            is_sorted: s.is_sorted,
            ..Default::default()
        });
    }
    // Interesting ones first, so that a small snapshot still has deletes and index files.
    segments.sort_by_key(|s| {
        (
            s.deltalogs.is_empty(),
            s.index_files.iter().all(|f| f.index_file_paths.is_empty()),
            s.segment_id,
        )
    });
    segments.truncate(limit);
    write(world, of, &info, (id, name), seeks, definitions, segments).await
}

#[allow(clippy::too_many_arguments, reason = "the parts of one snapshot")]
async fn write(
    world: &World,
    of: CollectionId,
    info: &pb::etcd::CollectionInfo,
    (id, name): (i64, &str),
    seeks: Vec<pb::msg::MsgPosition>,
    indexes: Vec<pb::index::IndexInfo>,
    segments: Vec<pb::data::SegmentDescription>,
) -> Made {
    let meta = &*world.meta;
    let mut schema = info.schema.clone().unwrap();
    schema.fields = family::<pb::schema::FieldSchema>(meta, Family::Field)
        .await
        .into_iter()
        .filter(|(k, _)| matches!(k, Key::Field(c, _) if *c == of))
        .map(|(_, f)| f)
        .collect();
    schema.properties.clone_from(&info.properties);
    let partitions: BTreeMap<String, i64> =
        family::<pb::etcd::PartitionInfo>(meta, Family::Partition)
            .await
            .into_iter()
            .filter(|(k, p)| matches!(k, Key::Partition(c, _) if *c == of) && p.state == 0)
            .map(|(_, p)| (p.partition_name, p.partition_id))
            .collect();

    let mut record = pb::data::SnapshotInfo {
        name: name.into(),
        id,
        description: "made by the test".into(),
        collection_id: of.0,
        partition_ids: partitions.values().copied().collect(),
        create_ts: seeks
            .iter()
            .map(|p| p.timestamp.cast_signed())
            .min()
            .unwrap_or(0),
        state: 1,
        pending_start_time: NOW.0 - 60_000,
        channel_seek_positions: seeks,
        ..Default::default()
    };
    let metadata = pb::data::SnapshotMetadata {
        format_version: 4,
        snapshot_info: Some(record.clone()),
        collection: Some(pb::data::CollectionDescription {
            schema: Some(schema),
            num_partitions: i64::try_from(partitions.len()).unwrap(),
            num_shards: info.shards_num.into(),
            consistency_level: info.consistency_level,
            properties: info.properties.clone(),
            partitions,
            virtual_channel_names: info.virtual_channel_names.clone(),
        }),
        indexes,
        manifest_list: segments
            .iter()
            .map(|s| snapshot::manifest_key(ROOT, of, SnapshotId(id), SegmentId(s.segment_id)).0)
            .collect(),
        segment_ids: segments.iter().map(|s| s.segment_id).collect(),
        build_ids: snapshot::build_ids(&segments)
            .into_iter()
            .map(|b| b.0)
            .collect(),
        layout: pb::data::SnapshotLayout::Referenced as i32,
        ..Default::default()
    };
    for s in &segments {
        let key = snapshot::manifest_key(ROOT, of, SnapshotId(id), SegmentId(s.segment_id));
        put_object(world, &key, manifest::write_v4(s).unwrap()).await;
    }
    let json = snapshot::metadata_key(ROOT, of, SnapshotId(id));
    put_object(world, &json, snapshot::write_metadata(&metadata).unwrap()).await;
    record.state = 2;
    record.s3_location = json.0;
    let key = Key::Snapshot(of, SnapshotId(id)).to_key(&roots());
    put(meta, &key, record.encode_to_vec()).await;
    Made {
        id: SnapshotId(id),
        of,
        segments,
        metadata,
        key,
    }
}

/// Every object that a snapshot refers to.
pub fn named(made: &Made) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for s in &made.segments {
        let logs = [&s.binlogs, &s.statslogs, &s.deltalogs, &s.bm25_statslogs];
        let logs = logs.into_iter().flatten().flat_map(|f| &f.binlogs);
        out.extend(logs.map(|b| b.log_path.clone()));
        let index = s.index_files.iter().flat_map(|f| &f.index_file_paths);
        out.extend(index.cloned());
    }
    out
}

pub async fn put(meta: &dyn MetaWrite, key: &MetaKey, value: Vec<u8>) {
    meta.txn(Txn {
        conds: vec![],
        writes: vec![Write::put(key.clone(), value)],
    })
    .await
    .unwrap();
}

#[allow(
    clippy::disallowed_methods,
    reason = "the hand that changes a bucket behind the engine's back"
)]
pub async fn put_object(world: &World, key: &ObjectKey, bytes: Vec<u8>) {
    world
        .objects
        .put(&Path::parse(&key.0).unwrap(), bytes.into())
        .await
        .unwrap();
}
