//! Everything a snapshot needs to know of one collection, read at one revision. Unlike the catalog this keeps the whole values,
//! and a value that cannot be read is an error: a snapshot must not silently lack what it cannot understand.

use std::collections::BTreeMap;

use prost::Message;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::codec::{self, Decoded};
use crate::engine::format::keys::LogKind;
use crate::engine::format::keys::{Family, Key, ParsedKey};
use crate::engine::format::pb::data::{FieldBinlog, SegmentInfo, SnapshotInfo};
use crate::engine::format::pb::etcd::{CollectionInfo, DatabaseInfo, PartitionInfo};
use crate::engine::format::pb::index::{FieldIndex, SegmentIndex};
use crate::engine::format::pb::msg::MsgPosition;
use crate::engine::format::pb::schema::{
    CollectionSchema, DataType, FieldSchema, FunctionSchema, StructArrayFieldSchema,
};
use crate::engine::ids::{
    CollectionId, DbId, KeyPrefix, MetaKey, MetaRev, PartitionId, SegmentId, SnapshotId,
};
use crate::engine::meta::{KeyValue, MetaReader, RangeOpts, Span};
use crate::engine::profile::Roots;

/// `CollectionState::CollectionCreated` and `PartitionState::PartitionCreated`.
const CREATED: i32 = 0;

/// A collection with its children, whole.
#[derive(Clone, Debug)]
pub struct Source {
    /// The revision all of it was read at.
    pub rev: MetaRev,
    /// The collection's own key and its revision.
    pub key: (MetaKey, MetaRev),
    /// Its database.
    pub database: String,
    /// Its own value.
    pub info: CollectionInfo,
    /// The schema with fields, functions and struct fields joined in.
    pub schema: CollectionSchema,
    /// Partitions in state Created.
    pub partitions: BTreeMap<i64, String>,
    /// Segments with their logs joined in, by id.
    pub segments: BTreeMap<i64, SegmentInfo>,
    /// Checkpoints by virtual channel.
    pub checkpoints: BTreeMap<String, MsgPosition>,
    /// Index definitions, deleted ones not.
    pub indexes: BTreeMap<i64, FieldIndex>,
    /// Builds by segment, deleted ones not.
    pub builds: BTreeMap<i64, Vec<SegmentIndex>>,
    /// Snapshot records of the collection.
    pub snapshots: Vec<SnapshotInfo>,
}

/// All keys of a span as they stood at `at`.
async fn span_at(
    meta: &MetaReader,
    prefix: &KeyPrefix,
    at: Option<MetaRev>,
) -> Result<(Vec<KeyValue>, MetaRev)> {
    let mut span = Span::prefix(prefix);
    let mut out = Vec::new();
    let mut at = at;
    loop {
        let page = meta
            .range(
                &span,
                RangeOpts {
                    at,
                    ..RangeOpts::default()
                },
            )
            .await?;
        let rev = *at.get_or_insert(page.rev);
        let more = page.more;
        out.extend(page.kvs);
        match out.last() {
            Some(last) if more => span = span.after(&last.key),
            _ => return Ok((out, rev)),
        }
    }
}

/// The value behind a key, whole; `None` for a tombstone.
fn value<M: Message + Default>(key: &Key, kv: &KeyValue) -> Result<Option<M>> {
    match codec::decode::<M>(key, &kv.value) {
        Decoded::Value(v) => Ok(Some(v)),
        Decoded::Tombstone => Ok(None),
        Decoded::Undecodable { reason } => Err(Error::new(
            ErrorKind::Corrupt,
            format!("key {} cannot be read: {reason}", kv.key),
        )
        .fix(
            "a snapshot cannot be proved whole while it cannot be: repair or remove that key first",
        )),
    }
}

struct Reader<'a> {
    meta: &'a MetaReader,
    roots: &'a Roots,
    collection: CollectionId,
    at: MetaRev,
}

impl Reader<'_> {
    async fn family<M: Message + Default>(&self, family: Family) -> Result<Vec<(Key, M, MetaRev)>> {
        self.below(family, &[self.collection.0]).await
    }

    async fn below<M: Message + Default>(
        &self,
        family: Family,
        ids: &[i64],
    ) -> Result<Vec<(Key, M, MetaRev)>> {
        let prefix = family.under(self.roots, ids);
        let (kvs, _) = span_at(self.meta, &prefix, Some(self.at)).await?;
        let mut out = Vec::with_capacity(kvs.len());
        for kv in kvs {
            let ParsedKey::Known(key) = Key::parse(self.roots, &kv.key.0) else {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("key {} is in the way: it is none of Milvus's", kv.key),
                )
                .fix("remove it, if nothing needs it"));
            };
            if let Some(v) = value(&key, &kv)? {
                out.push((key, v, kv.mod_rev));
            }
        }
        Ok(out)
    }
}

impl Source {
    /// Reads a collection. `NotFound` when there is none, `Conflict` when it is not in state Created.
    pub async fn read(meta: &MetaReader, roots: &Roots, collection: CollectionId) -> Result<Self> {
        let (kvs, at) = span_at(meta, &Family::Collection.prefix(roots), None).await?;
        let (legacy, _) = span_at(meta, &Family::LegacyCollection.prefix(roots), Some(at)).await?;
        let mut own = None;
        for kv in legacy.into_iter().chain(kvs) {
            let found = match Key::parse(roots, &kv.key.0) {
                ParsedKey::Known(key @ Key::Collection(db, id)) if id == collection => {
                    Some((key, Some(db)))
                }
                ParsedKey::Known(key @ Key::LegacyCollection(id)) if id == collection => {
                    Some((key, None))
                }
                _ => None,
            };
            if let Some((key, db)) = found
                && let Some(info) = value::<CollectionInfo>(&key, &kv)?
            {
                own = Some((kv, db, info));
            }
        }
        let Some((kv, db, info)) = own else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("collection {collection} does not exist"),
            )
            .fix("list the collections"));
        };
        if info.state != CREATED {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "collection {collection} is not in state Created but {}",
                    info.state().as_str_name()
                ),
            )
            .fix("only a created collection can be snapshotted"));
        }
        let reader = Reader {
            meta,
            roots,
            collection,
            at,
        };
        let database = reader.database(db.unwrap_or(DbId(info.db_id))).await?;
        let schema = reader.schema(&info, &database).await?;
        let partitions = reader.partitions(&info).await?;
        let checkpoints = reader.checkpoints(&info).await?;
        let indexes = reader.family::<FieldIndex>(Family::FieldIndex).await?;
        let mut builds: BTreeMap<i64, Vec<SegmentIndex>> = BTreeMap::new();
        for (key, build, _) in reader.family::<SegmentIndex>(Family::SegmentIndex).await? {
            if let Key::SegmentIndex(_, _, s, _) = key
                && !build.deleted
            {
                builds.entry(s.0).or_default().push(build);
            }
        }
        Ok(Self {
            rev: at,
            key: (kv.key, kv.mod_rev),
            database,
            schema,
            partitions,
            segments: reader.segments().await?,
            checkpoints,
            indexes: indexes
                .into_iter()
                .filter(|(_, i, _)| !i.deleted)
                .filter_map(|(_, i, _)| Some((i.index_info.as_ref()?.index_id, i)))
                .collect(),
            builds,
            snapshots: reader
                .family::<SnapshotInfo>(Family::Snapshot)
                .await?
                .into_iter()
                .map(|(_, s, _)| s)
                .collect(),
            info,
        })
    }
}

impl Reader<'_> {
    async fn database(&self, db: DbId) -> Result<String> {
        // Database 0 is the legacy "no database", and old clusters never recorded the default one.
        let id = if db.0 == 0 { DbId(1) } else { db };
        let key = Key::Database(id);
        let span = Span::key(&key.to_key(self.roots));
        let page = self
            .meta
            .range(
                &span,
                RangeOpts {
                    at: Some(self.at),
                    ..RangeOpts::default()
                },
            )
            .await?;
        let info = match page.kvs.first() {
            Some(kv) => value::<DatabaseInfo>(&key, kv)?,
            None => None,
        };
        Ok(info.map_or_else(
            || {
                if id.0 == 1 {
                    "default".to_owned()
                } else {
                    id.to_string()
                }
            },
            |i| i.name,
        ))
    }

    /// Joined as in `spec/layout.md` §2.4 rule 1.
    async fn schema(&self, info: &CollectionInfo, database: &str) -> Result<CollectionSchema> {
        let mut schema = info.schema.clone().unwrap_or_default();
        let no_fields = schema.fields.is_empty() && schema.struct_array_fields.is_empty();
        let no_partitions = info.partition_i_ds.is_empty()
            && info.partition_names.is_empty()
            && info.partition_created_timestamps.is_empty();
        if no_fields || no_partitions {
            schema.fields = self
                .family::<FieldSchema>(Family::Field)
                .await?
                .into_iter()
                .map(|(_, f, _)| f)
                .collect();
            let structs = self
                .family::<StructArrayFieldSchema>(Family::StructField)
                .await?;
            schema.struct_array_fields = structs.into_iter().map(|(_, f, _)| f).collect();
            let functions = self.family::<FunctionSchema>(Family::Function).await?;
            schema.functions = functions.into_iter().map(|(_, f, _)| f).collect();
        }
        if schema.fields.iter().all(|f| !f.is_primary_key) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("collection {} has no primary key field", self.collection),
            )
            .fix("it is damaged: its field keys are missing"));
        }
        for (id, name, description) in [(0, "RowID", "row id"), (1, "Timestamp", "time stamp")] {
            if schema.fields.iter().all(|f| f.field_id != id) {
                schema.fields.push(FieldSchema {
                    field_id: id,
                    name: name.into(),
                    description: description.into(),
                    data_type: DataType::Int64 as i32,
                    ..FieldSchema::default()
                });
            }
        }
        // As the internal describe call answers: user fields first, then the two system fields.
        schema
            .fields
            .sort_by_key(|f| (f.field_id < 100, f.field_id));
        schema.db_name = database.to_owned();
        schema.properties.clone_from(&info.properties);
        schema
            .properties
            .push(crate::engine::format::pb::common::KeyValuePair {
                key: "consistency_level".into(),
                value: info.consistency_level.to_string(),
            });
        Ok(schema)
    }

    async fn partitions(&self, info: &CollectionInfo) -> Result<BTreeMap<i64, String>> {
        let stored = self.family::<PartitionInfo>(Family::Partition).await?;
        let mut all: BTreeMap<i64, String> = stored
            .into_iter()
            .filter(|(_, p, _)| p.state == CREATED)
            .map(|(_, p, _)| (p.partition_id, p.partition_name))
            .collect();
        if all.is_empty() {
            all.extend(
                info.partition_i_ds
                    .iter()
                    .copied()
                    .zip(info.partition_names.iter().cloned()),
            );
        }
        Ok(all)
    }

    async fn checkpoints(&self, info: &CollectionInfo) -> Result<BTreeMap<String, MsgPosition>> {
        let mut out = BTreeMap::new();
        for name in &info.virtual_channel_names {
            let key = Key::ChannelCheckpoint(name.as_str().into());
            let span = Span::key(&key.to_key(self.roots));
            let page = self
                .meta
                .range(
                    &span,
                    RangeOpts {
                        at: Some(self.at),
                        ..RangeOpts::default()
                    },
                )
                .await?;
            if let Some(kv) = page.kvs.first()
                && let Some(position) = value::<MsgPosition>(&key, kv)?
            {
                out.insert(name.clone(), position);
            }
        }
        Ok(out)
    }

    /// Segments with the four log families.
    async fn segments(&self) -> Result<BTreeMap<i64, SegmentInfo>> {
        let mut logs = self.logs(&[self.collection.0]).await?;
        let mut out = BTreeMap::new();
        for (key, mut segment, _) in self.family::<SegmentInfo>(Family::Segment).await? {
            if let Key::Segment(_, _, id) = key {
                join(&mut segment, id.0, &mut logs);
                out.insert(id.0, segment);
            }
        }
        Ok(out)
    }

    /// The log records below these ids, by segment and kind.
    async fn logs(&self, ids: &[i64]) -> Result<Logs> {
        let mut logs = Logs::new();
        for family in [
            Family::Binlog,
            Family::Statslog,
            Family::Deltalog,
            Family::Bm25log,
        ] {
            for (key, log, _) in self.below::<FieldBinlog>(family, ids).await? {
                if let Key::Log(kind, _, _, s, _) = key
                    && !log.binlogs.is_empty()
                {
                    logs.entry((s.0, slot(kind))).or_default().push(log);
                }
            }
        }
        Ok(logs)
    }

    /// One segment with its logs.
    async fn segment(&self, (p, s): (PartitionId, SegmentId)) -> Result<Option<SegmentInfo>> {
        let key = Key::Segment(self.collection, p, s);
        let opts = RangeOpts {
            at: Some(self.at),
            ..RangeOpts::default()
        };
        let span = Span::key(&key.to_key(self.roots));
        let page = self.meta.range(&span, opts).await?;
        let Some(kv) = page.kvs.first() else {
            return Ok(None);
        };
        let Some(mut info) = value::<SegmentInfo>(&key, kv)? else {
            return Ok(None);
        };
        let mut logs = self.logs(&[self.collection.0, p.0, s.0]).await?;
        join(&mut info, s.0, &mut logs);
        Ok(Some(info))
    }
}

type Logs = BTreeMap<(i64, u8), Vec<FieldBinlog>>;

/// Lists inside the value win (`spec/layout.md` §3.3).
fn join(segment: &mut SegmentInfo, id: i64, logs: &mut Logs) {
    let mut fill = |kind, list: &mut Vec<FieldBinlog>| {
        if list.is_empty() {
            *list = logs.remove(&(id, slot(kind))).unwrap_or_default();
        }
    };
    fill(LogKind::Insert, &mut segment.binlogs);
    fill(LogKind::Stats, &mut segment.statslogs);
    fill(LogKind::Delta, &mut segment.deltalogs);
    fill(LogKind::Bm25, &mut segment.bm25statslogs);
}

const fn slot(kind: LogKind) -> u8 {
    match kind {
        LogKind::Insert => 0,
        LogKind::Stats => 1,
        LogKind::Delta => 2,
        LogKind::Bm25 => 3,
    }
}

/// The schema of a collection, whatever its state, and these segments of it with their logs, at one revision. A segment that has
/// no record is left out.
pub async fn segments_of(
    meta: &MetaReader,
    roots: &Roots,
    collection: CollectionId,
    wanted: &[(PartitionId, SegmentId)],
) -> Result<(CollectionSchema, BTreeMap<i64, SegmentInfo>)> {
    let (kvs, at) = span_at(meta, &Family::Collection.prefix(roots), None).await?;
    let (legacy, _) = span_at(meta, &Family::LegacyCollection.prefix(roots), Some(at)).await?;
    let mut own = None;
    for kv in legacy.into_iter().chain(kvs) {
        if let ParsedKey::Known(key @ (Key::Collection(_, id) | Key::LegacyCollection(id))) =
            Key::parse(roots, &kv.key.0)
            && id == collection
            && let Some(info) = value::<CollectionInfo>(&key, &kv)?
        {
            own = Some(info);
        }
    }
    let info = own.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("collection {collection} does not exist any more, and its fields with it"),
        )
        .fix("read the segment from a snapshot of the collection")
    })?;
    let reader = Reader {
        meta,
        roots,
        collection,
        at,
    };
    let schema = reader.schema(&info, "").await?;
    let mut segments = BTreeMap::new();
    for place in wanted {
        if let Some(info) = reader.segment(*place).await? {
            segments.insert(place.1.0, info);
        }
    }
    Ok((schema, segments))
}

/// A snapshot record, wherever it is: by id alone, because its collection may be gone.
pub async fn find_snapshot(
    meta: &MetaReader,
    roots: &Roots,
    id: SnapshotId,
) -> Result<Option<(KeyValue, SnapshotInfo)>> {
    let (kvs, _) = span_at(meta, &Family::Snapshot.prefix(roots), None).await?;
    for kv in kvs {
        if let ParsedKey::Known(key @ Key::Snapshot(_, found)) = Key::parse(roots, &kv.key.0)
            && found == id
        {
            return Ok(value::<SnapshotInfo>(&key, &kv)?.map(|info| (kv, info)));
        }
    }
    Ok(None)
}

/// As [`find_snapshot`], when its collection is known.
pub async fn snapshot_at(
    meta: &MetaReader,
    roots: &Roots,
    of: CollectionId,
    id: SnapshotId,
) -> Result<Option<(KeyValue, SnapshotInfo)>> {
    let key = Key::Snapshot(of, id);
    let Some(kv) = meta.get(&key.to_key(roots)).await? else {
        return Ok(None);
    };
    Ok(value::<SnapshotInfo>(&key, &kv)?.map(|info| (kv, info)))
}

/// All values of a family, with their keys; one that cannot be read is an error.
pub async fn family_of<M: Message + Default>(
    meta: &MetaReader,
    roots: &Roots,
    family: Family,
) -> Result<Vec<(Key, M)>> {
    let (kvs, _) = span_at(meta, &family.prefix(roots), None).await?;
    let mut out = Vec::new();
    for kv in kvs {
        if let ParsedKey::Known(key) = Key::parse(roots, &kv.key.0)
            && let Some(v) = value(&key, &kv)?
        {
            out.push((key, v));
        }
    }
    Ok(out)
}
