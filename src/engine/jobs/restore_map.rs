//! What a restore will write, computed from the snapshot and the ids it was given. Pure and repeatable: a resumed job
//! draws the same picture from the same few journaled facts (law 7, defect D64).
//!
//! Decisions, where Milvus leaves room:
//! - **Plain keys only.** Up to 2.6.14 RootCoord also keeps `snapshots/…_ts{ts}` copies (`spec/layout.md` §2.6). The newest
//!   value is read from the plain key in every version, the copies only answer time travel to before the restore, where
//!   the collection did not exist; from 2.6.15 on they are erased. So none is written.
//! - **Field and function ids are kept** by writing the records directly. The property `preserve_field_ids` is how Milvus
//!   tells CreateCollection to do so; a source that carries it keeps it once, others do not get it.
//! - **Storage manifests are the only truth** for V3 segments: exactly the files that the pinned version declares are copied,
//!   not the folder (defects D16, D27, D43).

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::paths::Target;
use crate::engine::format::pb;
use crate::engine::format::snapshot::Side;
use crate::engine::format::vchannel::{self, ChannelName};
use crate::engine::ids::{
    BuildId, CollectionId, DbId, FieldId, FunctionId, IndexId, ObjectKey, PartitionId,
    PartitionScope, SegmentId, SnapshotId, TaskId, Tso, UnixMs, VChannel,
};

use super::copy::CopyFile;
use super::restore_files::files_of;
use super::restore_records::SegmentWriter;

/// A snapshot, read strictly and whole.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The record in the metadata store.
    pub record: pb::data::SnapshotInfo,
    /// The metadata JSON.
    pub metadata: pb::data::SnapshotMetadata,
    /// The segments, by id, manifest paths joined in.
    pub segments: Vec<pb::data::SegmentDescription>,
    /// Files that the storage manifest of a V3 segment declares, the manifest itself included.
    pub declared: BTreeMap<SegmentId, Vec<ObjectKey>>,
    /// What its maker noted of its objects; `None` when Milvus made it.
    pub side: Option<Side>,
    /// Members of the JSON that this version has no place for.
    pub unknown: Vec<String>,
    /// The bundle that its objects lie in, by URI; its paths are as if they lay under the cluster's own root.
    pub outside: Option<String>,
    /// SHA-256 over all bytes read: another reading must give the same.
    pub fingerprint: String,
}

impl Source {
    /// Id of the snapshot.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        SnapshotId(self.record.id)
    }
}

/// A WAL position to begin a channel at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalStart {
    /// Message id as stored, hexadecimal in the journal.
    #[serde(with = "hexadecimal")]
    pub id: Vec<u8>,
    /// WALName.
    pub wal: i32,
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::super::restore_source::hex(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        (0..text.len())
            .step_by(2)
            .map(|at| {
                text.get(at..at + 2)
                    .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                    .ok_or_else(|| serde::de::Error::custom("not hexadecimal"))
            })
            .collect()
    }
}

/// What the outcome depends on beside the snapshot. Journaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Target database.
    pub db: DbId,
    /// Its name.
    pub db_name: String,
    /// Target collection's name.
    pub name: String,
    /// First of the ids taken, [`ids_needed`] in number.
    pub first_id: i64,
    /// Creation time of everything made.
    pub now: UnixMs,
    /// Where each physical channel's new virtual channel begins.
    pub starts: BTreeMap<String, WalStart>,
}

/// Segments a CopySegmentTask carries (`dataCoord.maxSegmentsPerCopyTask`).
pub const SEGMENTS_PER_TASK: usize = 100;

/// One segment of the target.
#[derive(Clone, Debug)]
pub struct SegmentPlan {
    /// Source segment.
    pub source: SegmentId,
    /// Where it goes.
    pub target: Target,
    /// Rows.
    pub rows: i64,
    /// Deletes recorded in delta logs.
    pub deletes: i64,
}

/// Everything that will exist.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// Target collection.
    pub collection: CollectionId,
    /// Its virtual channels, source first.
    pub channels: Vec<(VChannel, VChannel)>,
    /// Its segments, in source order; [`CopyFile::group`] counts them.
    pub segments: Vec<SegmentPlan>,
    /// Objects; sizes are 0 until a listing fills them in.
    pub files: Vec<CopyFile>,
    /// Records that are invisible without the collection's own, in writing order.
    pub children: Vec<(Key, Vec<u8>)>,
    /// The record that makes it all visible: written last.
    pub head: (Key, Vec<u8>),
    /// CopySegmentTask ids.
    pub tasks: Vec<TaskId>,
}

/// How many ids a restore takes.
pub fn ids_needed(source: &Source) -> Result<u32> {
    let builds: usize = source.segments.iter().map(|s| builds_of(s).len()).sum();
    let description = description(source)?;
    let n = 1
        + description.partitions.len()
        + source.segments.len()
        + source.metadata.indexes.len()
        + builds
        + source.segments.len().div_ceil(SEGMENTS_PER_TASK);
    u32::try_from(n).map_err(|_| {
        Error::new(
            ErrorKind::Limit,
            format!("the snapshot needs {n} new ids, more than one range holds"),
        )
    })
}

/// Builds of a segment that get a new id: index, text and JSON builds; 0 is none (defect D17).
fn builds_of(segment: &pb::data::SegmentDescription) -> BTreeSet<BuildId> {
    let indexes = segment.index_files.iter().map(|f| f.build_id);
    let text = segment.text_index_files.values().map(|t| t.build_id);
    let json = segment.json_key_index_files.values().map(|j| j.build_id);
    indexes
        .chain(text)
        .chain(json)
        .filter(|id| *id != 0)
        .map(BuildId)
        .collect()
}

pub(super) fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
        .fix("the snapshot's files are damaged: take a new snapshot")
}

fn description(source: &Source) -> Result<&pb::data::CollectionDescription> {
    source
        .metadata
        .collection
        .as_ref()
        .ok_or_else(|| corrupt("the snapshot's metadata describes no collection"))
}

fn schema(source: &Source) -> Result<&pb::schema::CollectionSchema> {
    description(source)?
        .schema
        .as_ref()
        .ok_or_else(|| corrupt("the snapshot's metadata holds no schema"))
}

/// Source to target of partitions, by id.
fn partitions(source: &Source, first: i64) -> Result<BTreeMap<PartitionId, PartitionId>> {
    let mut ids: Vec<i64> = description(source)?.partitions.values().copied().collect();
    ids.sort_unstable();
    Ok(ids
        .into_iter()
        .zip(first..)
        .map(|(from, to)| (PartitionId(from), PartitionId(to)))
        .collect())
}

/// The vchannels of the target, on the physical channels of the source, shard by shard.
pub fn channels(
    source: &Source,
    collection: CollectionId,
) -> Result<Vec<(VChannel, VChannel, String)>> {
    description(source)?
        .virtual_channel_names
        .iter()
        .map(|name| match ChannelName::parse(name) {
            ChannelName::Shard {
                pchannel, shard, ..
            } => Ok((
                VChannel(name.clone()),
                vchannel::compose(pchannel, collection, shard),
                pchannel.to_owned(),
            )),
            _ => Err(corrupt(format!("channel {name} is not a virtual channel"))),
        })
        .collect()
}

/// Draws the picture. `root` is the object root, `bucket` the bucket's name (2.6 wrote it before base paths).
pub fn draw(source: &Source, given: &Given, root: &str, bucket: &str) -> Result<Blueprint> {
    let needed = i64::from(ids_needed(source)?);
    let collection = CollectionId(given.first_id);
    let partitions = partitions(source, given.first_id + 1)?;
    let mut next = given.first_id + 1 + i64::try_from(partitions.len()).unwrap_or(i64::MAX);
    let mut take = || {
        let id = next;
        next += 1;
        id
    };
    let segment_ids: Vec<SegmentId> = source.segments.iter().map(|_| SegmentId(take())).collect();
    let indexes: BTreeMap<i64, IndexId> = source
        .metadata
        .indexes
        .iter()
        .map(|info| (info.index_id, IndexId(take())))
        .collect();
    let mut segments = Vec::with_capacity(source.segments.len());
    for (segment, id) in source.segments.iter().zip(segment_ids) {
        let from = PartitionId(segment.partition_id);
        let deletes = segment.segment_level() == pb::data::SegmentLevel::L0;
        let unlisted = || {
            corrupt(format!(
                "segment {} lies in partition {from}, which the snapshot does not list",
                segment.segment_id
            ))
        };
        let partition = match PartitionScope::of(from, deletes)
            .ok_or_else(unlisted)?
            .one()
        {
            Some(one) => *partitions.get(&one).ok_or_else(unlisted)?,
            None => PartitionScope::ALL.stored(),
        };
        let mut builds: BTreeMap<BuildId, BuildId> = builds_of(segment)
            .into_iter()
            .map(|from| (from, BuildId(take())))
            .collect();
        builds.insert(BuildId(0), BuildId(0));
        segments.push(SegmentPlan {
            source: SegmentId(segment.segment_id),
            target: Target {
                collection,
                partition,
                segment: id,
                builds,
            },
            rows: segment.num_of_rows,
            deletes: entries(&segment.deltalogs),
        });
    }
    let tasks: Vec<TaskId> = (0..source.segments.len().div_ceil(SEGMENTS_PER_TASK))
        .map(|_| TaskId(take()))
        .collect();
    if next != given.first_id + needed {
        return Err(Error::new(
            ErrorKind::Internal,
            "the restore counted its ids in two ways",
        ));
    }
    let channels = channels(source, collection)?;
    let mut out = Blueprint {
        collection,
        channels: channels
            .iter()
            .map(|(from, to, _)| (from.clone(), to.clone()))
            .collect(),
        files: Vec::new(),
        children: Vec::new(),
        head: head(source, given, collection, &channels)?,
        tasks,
        segments: Vec::new(),
    };
    root_children(source, given, collection, &partitions, &mut out)?;
    for info in &source.metadata.indexes {
        let id = indexes.get(&info.index_id).copied().unwrap_or_default();
        out.children.push(definition(info, given, collection, id));
    }
    let mut taken: BTreeMap<ObjectKey, ObjectKey> = BTreeMap::new();
    for ((group, description), plan) in (0..).zip(&source.segments).zip(&segments) {
        let declared = source.declared.get(&plan.source).map(Vec::as_slice);
        for (from, to) in files_of(description, declared, &plan.target, root)? {
            match taken.insert(to.clone(), from.clone()) {
                None => out.files.push(CopyFile {
                    from,
                    to,
                    size: 0,
                    etag: None,
                    group,
                }),
                Some(other) if other == from => {}
                Some(other) => {
                    return Err(corrupt(format!(
                        "{other} and {from} would both become {to}"
                    )));
                }
            }
        }
        let writer = SegmentWriter {
            source: description,
            plan,
            channels: &out.channels,
            indexes: &indexes,
            infos: &source.metadata.indexes,
            given,
            root,
            bucket,
        };
        writer.write(&mut out.children)?;
    }
    for (_, to, pchannel) in &channels {
        if let Some(start) = given.starts.get(pchannel) {
            // Timestamp 0: nothing of this channel is before it, and any real checkpoint supersedes it (§5.3).
            let position = pb::msg::MsgPosition {
                channel_name: to.0.clone(),
                msg_id: start.id.clone(),
                wal_name: start.wal,
                ..Default::default()
            };
            out.children
                .push((Key::ChannelCheckpoint(to.clone()), position.encode_to_vec()));
        }
        out.children
            .push((Key::ChannelRemoval(to.clone()), b"non-removed".to_vec()));
    }
    out.segments = segments;
    Ok(out)
}

fn entries(logs: &[pb::data::FieldBinlog]) -> i64 {
    logs.iter()
        .flat_map(|f| &f.binlogs)
        .map(|b| b.entries_num)
        .sum()
}

/// Properties of the target, and its consistency level. Old snapshots keep both in the schema's properties only
/// (`spec/snapshot.md` §2.2, §5.1).
fn attributes(source: &Source) -> Result<(Vec<pb::common::KeyValuePair>, i32)> {
    let description = description(source)?;
    let schema = schema(source)?;
    let mut level = description.consistency_level;
    let from_schema = description.properties.is_empty();
    if level == 0
        && let Some(stored) = schema
            .properties
            .iter()
            .rev()
            .find(|p| p.key == "consistency_level")
            .and_then(|p| p.value.parse().ok())
    {
        level = stored;
    }
    let list = if from_schema {
        &schema.properties
    } else {
        &description.properties
    };
    // The last of equal keys counts, as in Milvus's maps; restored collections may carry doubles (§5.1 HAZARD).
    let mut properties: Vec<pb::common::KeyValuePair> = Vec::new();
    for p in list {
        if from_schema && p.key == "consistency_level" {
            continue;
        }
        match properties.iter_mut().find(|have| have.key == p.key) {
            Some(have) => have.value.clone_from(&p.value),
            None => properties.push(p.clone()),
        }
    }
    Ok((properties, level))
}

/// The collection's own record: no fields, no partitions inline (`spec/layout.md` §2.4 rule 1).
fn head(
    source: &Source,
    given: &Given,
    collection: CollectionId,
    channels: &[(VChannel, VChannel, String)],
) -> Result<(Key, Vec<u8>)> {
    let (properties, consistency_level) = attributes(source)?;
    let description = description(source)?;
    let created = Tso::from_ms(given.now).0;
    let schema = pb::schema::CollectionSchema {
        name: given.name.clone(),
        db_name: given.db_name.clone(),
        fields: Vec::new(),
        functions: Vec::new(),
        struct_array_fields: Vec::new(),
        properties: Vec::new(),
        ..schema(source)?.clone()
    };
    let shards = i32::try_from(description.num_shards)
        .ok()
        .filter(|n| *n as usize == channels.len())
        .ok_or_else(|| {
            corrupt(format!(
                "the snapshot says {} shards but lists {} channels",
                description.num_shards,
                channels.len()
            ))
        })?;
    let info = pb::etcd::CollectionInfo {
        id: collection.0,
        schema: Some(schema),
        create_time: created,
        virtual_channel_names: channels.iter().map(|(_, v, _)| v.0.clone()).collect(),
        physical_channel_names: channels.iter().map(|(_, _, p)| p.clone()).collect(),
        shards_num: shards,
        start_positions: channels
            .iter()
            .filter_map(|(_, _, p)| {
                given.starts.get(p).map(|s| pb::common::KeyDataPair {
                    key: p.clone(),
                    data: s.id.clone(),
                })
            })
            .collect(),
        consistency_level,
        properties,
        db_id: given.db.0,
        update_timestamp: created,
        shard_infos: Vec::new(),
        ..Default::default()
    };
    Ok((Key::Collection(given.db, collection), info.encode_to_vec()))
}

/// Partitions, fields, struct fields and functions.
fn root_children(
    source: &Source,
    given: &Given,
    collection: CollectionId,
    partitions: &BTreeMap<PartitionId, PartitionId>,
    out: &mut Blueprint,
) -> Result<()> {
    let mut named: Vec<(&String, &i64)> = description(source)?.partitions.iter().collect();
    named.sort_by_key(|(_, id)| **id);
    for (name, from) in named {
        let Some(id) = partitions.get(&PartitionId(*from)) else {
            continue;
        };
        let info = pb::etcd::PartitionInfo {
            partition_id: id.0,
            partition_name: name.clone(),
            partition_created_timestamp: Tso::from_ms(given.now).0,
            collection_id: collection.0,
            ..Default::default()
        };
        out.children
            .push((Key::Partition(collection, *id), info.encode_to_vec()));
    }
    let schema = schema(source)?;
    if schema.fields.is_empty() {
        return Err(corrupt("the snapshot's schema has no fields"));
    }
    for field in &schema.fields {
        out.children.push((
            Key::Field(collection, FieldId(field.field_id)),
            field.encode_to_vec(),
        ));
    }
    for field in &schema.struct_array_fields {
        out.children.push((
            Key::StructField(collection, FieldId(field.field_id)),
            field.encode_to_vec(),
        ));
    }
    for function in &schema.functions {
        out.children.push((
            Key::Function(collection, FunctionId(function.id)),
            function.encode_to_vec(),
        ));
    }
    Ok(())
}

fn definition(
    info: &pb::index::IndexInfo,
    given: &Given,
    collection: CollectionId,
    id: IndexId,
) -> (Key, Vec<u8>) {
    let index = pb::index::FieldIndex {
        index_info: Some(pb::index::IndexInfo {
            collection_id: collection.0,
            index_id: id.0,
            ..info.clone()
        }),
        create_time: Tso::from_ms(given.now).0,
        ..Default::default()
    };
    (Key::FieldIndex(collection, id), index.encode_to_vec())
}
