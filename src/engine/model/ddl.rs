//! What a DDL does to the records of metadata, as pure functions over the records that stand (`spec/lifecycle.md` §1, §2, §3, §11, §12,
//! §I.8; `spec/layout.md` §2.4).
//!
//! A broadcast's callbacks may run again after a crash, and a store takes only so many writes at once, so each of these holds:
//!
//! - **Idempotent.** What is done already is left out. Applied again to its own result, an effect writes nothing.
//! - **Resumable.** The order of the writes matters. After any first part of them, the effect computed anew leads to the same records: what
//!   tells that there is work left goes last (the collection's own key, a channel's removal mark).
//! - **Lossless.** A record that stays is edited on the wire; members that this version does not know stay in it (law 1).

use std::collections::BTreeMap;

use prost::Message;

use crate::engine::format::codec::is_tombstone;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb;
use crate::engine::format::pb::common::SegmentState;
use crate::engine::format::wire::{Malformed, Patch};
use crate::engine::ids::{
    CollectionId, DbId, FieldId, FunctionId, IndexId, PartitionId, PartitionScope, Tso, UnixMs,
    UnixNs, VChannel,
};

/// A record: its key and its value.
pub type Record = (Key, Vec<u8>);

/// The collection property that says that a truncate is under way.
pub const TRUNCATING: &str = "collection.on.truncating";

/// The default partition, which cannot be dropped.
pub const DEFAULT_PARTITION: &str = "_default";

/// One write of an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a value.
    Put(Key, Vec<u8>),
    /// Removes a key.
    Delete(Key),
}

impl Write {
    /// The key.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// A record that cannot be read: nothing is written on top of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its key.
    pub key: Box<Key>,
    /// What is wrong.
    pub why: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record {:?} cannot be read: {}", self.key, self.why)
    }
}

type Effect = Result<Vec<Write>, Unreadable>;

/// The value edited; nothing if that changes nothing.
fn edited(
    (key, value): &Record,
    edit: impl FnOnce(&mut Patch<'_>) -> Result<(), Malformed>,
) -> Result<Option<Write>, Unreadable> {
    let bad = |bad: Malformed| Unreadable {
        key: Box::new(key.clone()),
        why: bad.to_string(),
    };
    let mut patch = Patch::parse(value).map_err(bad)?;
    edit(&mut patch).map_err(bad)?;
    Ok(patch
        .is_dirty()
        .then(|| Write::Put(key.clone(), patch.finish())))
}

fn standing<'a>(records: &'a [Record], key: &Key) -> Option<&'a Record> {
    let live = |(k, v): &&Record| k == key && !is_tombstone(k.family(), v);
    records.iter().find(live)
}

// ---- collections ---------------------------------------------------------------------------------------------------

/// A collection that is to be. Names and ids have been checked and given out before, under the locks of its names.
#[derive(Clone, Debug, Default)]
pub struct NewCollection {
    /// Database.
    pub db: DbId,
    /// Id.
    pub id: CollectionId,
    /// Whole: with fields, struct fields and functions.
    pub schema: pb::schema::CollectionSchema,
    /// Partitions by id, the default one included.
    pub partitions: BTreeMap<PartitionId, String>,
    /// Virtual channels with their physical ones, by shard.
    pub channels: Vec<(VChannel, String)>,
    /// Where each physical channel stands, as stored.
    pub starts: BTreeMap<String, Vec<u8>>,
    /// `ConsistencyLevel`.
    pub consistency: i32,
    /// Properties.
    pub properties: Vec<pb::common::KeyValuePair>,
    /// The control channel's time tick.
    pub created: Tso,
}

impl NewCollection {
    fn key(&self) -> Key {
        Key::Collection(self.db, self.id)
    }

    fn children(&self) -> Vec<Record> {
        let partitions = self.partitions.iter().map(|(id, name)| {
            let info = pb::etcd::PartitionInfo {
                partition_id: id.0,
                partition_name: name.clone(),
                partition_created_timestamp: self.created.0,
                collection_id: self.id.0,
                ..Default::default()
            };
            (Key::Partition(self.id, *id), info.encode_to_vec())
        });
        let fields = self.schema.fields.iter().map(|field| {
            let key = Key::Field(self.id, FieldId(field.field_id));
            (key, field.encode_to_vec())
        });
        let structs = self.schema.struct_array_fields.iter().map(|field| {
            let key = Key::StructField(self.id, FieldId(field.field_id));
            (key, field.encode_to_vec())
        });
        let functions = self.schema.functions.iter().map(|function| {
            let key = Key::Function(self.id, FunctionId(function.id));
            (key, function.encode_to_vec())
        });
        partitions
            .chain(fields)
            .chain(structs)
            .chain(functions)
            .collect()
    }

    fn record(&self) -> Record {
        let info = pb::etcd::CollectionInfo {
            id: self.id.0,
            // Children have keys of their own; inline ones would turn the record into its oldest layout (`spec/layout.md` §2.4 rule 1).
            schema: Some(pb::schema::CollectionSchema {
                fields: Vec::new(),
                functions: Vec::new(),
                struct_array_fields: Vec::new(),
                properties: Vec::new(),
                ..self.schema.clone()
            }),
            create_time: self.created.0,
            virtual_channel_names: self.channels.iter().map(|(v, _)| v.0.clone()).collect(),
            physical_channel_names: self.channels.iter().map(|(_, p)| p.clone()).collect(),
            shards_num: i32::try_from(self.channels.len()).unwrap_or(i32::MAX),
            start_positions: self
                .starts
                .iter()
                .map(|(key, data)| pb::common::KeyDataPair {
                    key: key.clone(),
                    data: data.clone(),
                })
                .collect(),
            consistency_level: self.consistency,
            properties: self.properties.clone(),
            db_id: self.db.0,
            update_timestamp: self.created.0,
            ..Default::default()
        };
        (self.key(), info.encode_to_vec())
    }
}

/// Creates a collection: children, channels, then its own key, which makes it visible.
#[must_use]
pub fn create_collection(records: &[Record], new: &NewCollection) -> Vec<Write> {
    if standing(records, &new.key()).is_some() {
        return Vec::new();
    }
    let missing = |record: &Record| standing(records, &record.0) != Some(record);
    let mut out: Vec<Write> = new
        .children()
        .into_iter()
        .filter(missing)
        .map(|(key, value)| Write::Put(key, value))
        .collect();
    for (channel, physical) in &new.channels {
        out.extend(create_channel(
            records,
            channel,
            new.starts.get(physical),
            new.created,
        ));
    }
    let (key, value) = new.record();
    out.push(Write::Put(key, value));
    out
}

/// A channel's mark and first checkpoint. Never moves a checkpoint back and never brings a removed channel back (§2 rule 5).
fn create_channel(
    records: &[Record],
    channel: &VChannel,
    start: Option<&Vec<u8>>,
    created: Tso,
) -> Vec<Write> {
    let mark = Key::ChannelRemoval(channel.clone());
    let checkpoint = Key::ChannelCheckpoint(channel.clone());
    let mut out = Vec::new();
    if standing(records, &mark).is_none() {
        out.push(Write::Put(mark, b"non-removed".to_vec()));
    }
    if let Some(start) = start.filter(|_| standing(records, &checkpoint).is_none()) {
        let position = pb::msg::MsgPosition {
            channel_name: channel.0.clone(),
            msg_id: start.clone(),
            timestamp: created.0,
            ..Default::default()
        };
        out.push(Write::Put(checkpoint, position.encode_to_vec()));
    }
    out
}

/// Marks a collection as being dropped, before anything of it goes.
pub fn begin_drop(records: &[Record], collection: CollectionId) -> Effect {
    let dropping = pb::etcd::CollectionState::CollectionDropping as u64;
    let write = match own(records, collection) {
        Some(record) => edited(record, |info| {
            info.set_integer(13, dropping);
            Ok(())
        })?,
        None => None,
    };
    Ok(write.into_iter().collect())
}

/// Drops what is left of a collection once its channels are dropped: load state, indexes, children, and its own key last.
pub fn drop_collection(records: &[Record], collection: CollectionId) -> Effect {
    let mut out = unload(records, collection);
    out.extend(drop_indexes(records, collection, None)?);
    let children = records.iter().map(|(key, _)| key).filter(|key| match key {
        Key::Partition(c, _) | Key::Field(c, _) | Key::StructField(c, _) | Key::Function(c, _) => {
            *c == collection
        }
        _ => false,
    });
    out.extend(children.cloned().map(Write::Delete));
    out.extend(own(records, collection).map(|(key, _)| Write::Delete(key.clone())));
    Ok(out)
}

fn own(records: &[Record], collection: CollectionId) -> Option<&Record> {
    records.iter().find(|(key, value)| match key {
        Key::Collection(_, c) | Key::LegacyCollection(c) => {
            *c == collection && !is_tombstone(key.family(), value)
        }
        _ => false,
    })
}

/// Releases a collection.
fn unload(records: &[Record], collection: CollectionId) -> Vec<Write> {
    let loads = records.iter().map(|(key, _)| key).filter(|key| match key {
        Key::CollectionLoad(c)
        | Key::PartitionLoad(c, _)
        | Key::Replica(c, _)
        | Key::CollectionTarget(c) => *c == collection,
        _ => false,
    });
    loads.cloned().map(Write::Delete).collect()
}

// ---- snapshots -----------------------------------------------------------------------------------------------------

/// A snapshot record in state DELETING. Pins whose time is over may be left on it: they go.
pub fn snapshot_deleting(value: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut patch = Patch::parse(value)?;
    patch.set_integer(8, pb::data::SnapshotState::Deleting as u64);
    patch.clear(11);
    patch.clear(12);
    Ok(patch.finish())
}

/// Whether a pin keeps it: one without an end, or whose end is to come.
#[must_use]
pub fn is_pinned(info: &pb::data::SnapshotInfo, now: UnixMs) -> bool {
    let end = |pin: &i64| info.pin_expire_at_ms.get(pin).copied().filter(|at| *at > 0);
    info.pin_ids
        .iter()
        .any(|pin| end(pin).is_none_or(|at| at > now.0))
}

/// Drops the snapshots of a collection that no pin keeps: their records say so, the collector removes files and records.
pub fn drop_snapshots(records: &[Record], collection: CollectionId, now: UnixMs) -> Effect {
    let mut out = Vec::new();
    for (key, value) in records {
        if !matches!(key, Key::Snapshot(c, _) if *c == collection) {
            continue;
        }
        let bad = |why: String| Unreadable {
            key: Box::new(key.clone()),
            why,
        };
        let info =
            pb::data::SnapshotInfo::decode(value.as_slice()).map_err(|e| bad(e.to_string()))?;
        if info.state() == pb::data::SnapshotState::Deleting || is_pinned(&info, now) {
            continue;
        }
        let gone = snapshot_deleting(value).map_err(|e| bad(e.to_string()))?;
        out.push(Write::Put(key.clone(), gone));
    }
    Ok(out)
}

// ---- channels ------------------------------------------------------------------------------------------------------

/// Drops a virtual channel (§3 rule 5): its segments, its removal mark after them, then the sentinel that no late checkpoint can replace.
/// The checkpoint's key stays, for the collector.
pub fn drop_channel(records: &[Record], channel: &VChannel, now: UnixNs) -> Effect {
    let mut out = drop_segments(records, now, |info| info.insert_channel == channel.0)?;
    let mark = Key::ChannelRemoval(channel.clone());
    if standing(records, &mark).is_none_or(|(_, value)| value != b"removed") {
        out.push(Write::Put(mark, b"removed".to_vec()));
    }
    let sentinel = pb::msg::MsgPosition {
        channel_name: channel.0.clone(),
        timestamp: Tso::DROPPED.0,
        ..Default::default()
    };
    let record = (
        Key::ChannelCheckpoint(channel.clone()),
        sentinel.encode_to_vec(),
    );
    if standing(records, &record.0) != Some(&record) {
        out.push(Write::Put(record.0, record.1));
    }
    Ok(out)
}

/// Drops the segments that `which` names. One that is dropped keeps the time when it was (I.8).
fn drop_segments(
    records: &[Record],
    now: UnixNs,
    which: impl Fn(&pb::data::SegmentInfo) -> bool,
) -> Effect {
    let mut out = Vec::new();
    for record @ (key, value) in records {
        if !matches!(key, Key::Segment(..)) || is_tombstone(Family::Segment, value) {
            continue;
        }
        let info = pb::data::SegmentInfo::decode(value.as_slice()).map_err(|e| Unreadable {
            key: Box::new(key.clone()),
            why: e.to_string(),
        })?;
        if info.state == SegmentState::Dropped as i32 || !which(&info) {
            continue;
        }
        out.extend(edited(record, |info| {
            info.set_integer(6, SegmentState::Dropped as u64);
            info.set_integer(16, now.0.max(1).cast_unsigned());
            Ok(())
        })?);
    }
    Ok(out)
}

// ---- partitions ----------------------------------------------------------------------------------------------------

/// Creates a partition.
#[must_use]
pub fn create_partition(
    records: &[Record],
    collection: CollectionId,
    id: PartitionId,
    name: &str,
    created: Tso,
) -> Vec<Write> {
    let key = Key::Partition(collection, id);
    if standing(records, &key).is_some() || own(records, collection).is_none() {
        return Vec::new();
    }
    let info = pb::etcd::PartitionInfo {
        partition_id: id.0,
        partition_name: name.to_owned(),
        partition_created_timestamp: created.0,
        collection_id: collection.0,
        ..Default::default()
    };
    vec![Write::Put(key, info.encode_to_vec())]
}

/// Drops a partition: its segments and the deletes that are for it alone; deletes for all partitions stay (§12 rule 7). Its key goes last.
pub fn drop_partition(
    records: &[Record],
    collection: CollectionId,
    partition: PartitionId,
    now: UnixNs,
) -> Effect {
    // −1 is every partition: dropping it would drop what belongs to others (§12 rule 8).
    if PartitionScope::of(partition, false).is_none() {
        return Ok(Vec::new());
    }
    let mut out = drop_segments(records, now, |info| {
        info.collection_id == collection.0 && info.partition_id == partition.0
    })?;
    for key in [
        Key::PartitionLoad(collection, partition),
        Key::Partition(collection, partition),
    ] {
        out.extend(standing(records, &key).map(|(key, _)| Write::Delete(key.clone())));
    }
    Ok(out)
}

// ---- indexes -------------------------------------------------------------------------------------------------------

/// Creates an index definition.
#[must_use]
pub fn create_index(records: &[Record], info: pb::index::IndexInfo, created: Tso) -> Vec<Write> {
    let key = Key::FieldIndex(CollectionId(info.collection_id), IndexId(info.index_id));
    if standing(records, &key).is_some() {
        return Vec::new();
    }
    let index = pb::index::FieldIndex {
        index_info: Some(info),
        create_time: created.0,
        ..Default::default()
    };
    vec![Write::Put(key, index.encode_to_vec())]
}

/// Marks index definitions of a collection as deleted, all of them or those given. The collector removes rows, files and definitions.
pub fn drop_indexes(
    records: &[Record],
    collection: CollectionId,
    ids: Option<&[IndexId]>,
) -> Effect {
    let mut out = Vec::new();
    for record in records {
        let Key::FieldIndex(of, id) = &record.0 else {
            continue;
        };
        if *of != collection || ids.is_some_and(|ids| !ids.contains(id)) {
            continue;
        }
        out.extend(edited(record, |index| {
            index.set_integer(2, 1);
            Ok(())
        })?);
    }
    Ok(out)
}

// ---- truncate ------------------------------------------------------------------------------------------------------

/// Says that a truncate is under way: compactions of the collection stop (§1 rule 7).
pub fn begin_truncate(records: &[Record], collection: CollectionId) -> Effect {
    let Some(record) = own(records, collection) else {
        return Ok(Vec::new());
    };
    let flag = pb::common::KeyValuePair {
        key: TRUNCATING.into(),
        value: "1".into(),
    }
    .encode_to_vec();
    let write = edited(record, |info| {
        if !info.all(14).any(|property| property == flag) {
            info.retain(14, |property| !is_flag(property));
            info.append(14, &flag);
        }
        Ok(())
    })?;
    Ok(write.into_iter().collect())
}

fn is_flag(property: &[u8]) -> bool {
    pb::common::KeyValuePair::decode(property).is_ok_and(|pair| pair.key == TRUNCATING)
}

/// Ends a truncate: per channel, drops every healthy segment whose last position is not after the channel's own tick; then takes the
/// flag away and keeps the ticks. A tick of 0 is not a time and drops nothing (§II.4 rule 2c). A collection that is gone is truncated.
pub fn end_truncate(
    records: &[Record],
    collection: CollectionId,
    ticks: &BTreeMap<VChannel, Tso>,
    now: UnixNs,
) -> Effect {
    let Some(record @ (key, value)) = own(records, collection) else {
        return Ok(Vec::new());
    };
    let mut out = drop_segments(records, now, |info| {
        let tick = ticks.get(&VChannel(info.insert_channel.clone()));
        let tick = tick.copied().filter(|tick| *tick != Tso::UNSET);
        let last = info.dml_position.as_ref().map(|at| at.timestamp);
        info.collection_id == collection.0
            && tick
                .zip(last)
                .is_some_and(|(tick, last)| last != 0 && last <= tick.0)
    })?;
    let info = pb::etcd::CollectionInfo::decode(value.as_slice()).map_err(|e| Unreadable {
        key: Box::new(key.clone()),
        why: e.to_string(),
    })?;
    let write = edited(record, |patch| {
        patch.retain(14, |property| !is_flag(property));
        let shards: Vec<Vec<u8>> = patch.all(17).map(<[u8]>::to_vec).collect();
        patch.clear(17);
        for (i, channel) in info.virtual_channel_names.iter().enumerate() {
            let tick = ticks.get(&VChannel(channel.clone()));
            let mut shard = Patch::parse(shards.get(i).map_or(&[], Vec::as_slice))?;
            let before = shard.integer(1).unwrap_or(0);
            shard.set_integer(1, before.max(tick.map_or(0, |tick| tick.0)));
            patch.append(17, &shard.finish());
        }
        Ok(())
    })?;
    // The flag is last: as long as it stands, the truncate is not over.
    let changed = write.filter(|write| matches!(write, Write::Put(_, new) if new != value));
    out.extend(changed);
    Ok(out)
}
