//! What a DDL rests on, read anew whenever it counts: while planning, and again under the broadcast's keys.

use std::collections::{BTreeMap, BTreeSet};

use super::source::family_of;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::codec::is_tombstone;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb::data::{SegmentInfo, SnapshotInfo, SnapshotState};
use crate::engine::format::pb::etcd::{AliasInfo, CollectionInfo, DatabaseInfo, PartitionInfo};
use crate::engine::format::pb::index::{FieldIndex, IndexInfo};
use crate::engine::format::pb::schema::FieldSchema;
use crate::engine::ids::{CollectionId, DbId, IndexId, MetaKey, MetaRev, PartitionId, VChannel};
use crate::engine::meta::{KeyValue, MetaReader, Span};
use crate::engine::profile::Roots;

/// A collection as it stands, with what hangs on it.
pub(super) struct Target {
    /// Its own key.
    pub key: (MetaKey, MetaRev),
    /// Database.
    pub db: DbId,
    /// Its name.
    pub database: String,
    /// Id.
    pub id: CollectionId,
    /// Its name.
    pub name: String,
    /// Its own value.
    pub info: CollectionInfo,
    /// Virtual channels, by shard.
    pub channels: Vec<VChannel>,
    /// Aliases.
    pub aliases: Vec<String>,
    /// Partitions.
    pub partitions: BTreeMap<PartitionId, String>,
    /// Fields.
    pub fields: Vec<FieldSchema>,
    /// Index definitions, deleted ones not.
    pub indexes: BTreeMap<IndexId, IndexInfo>,
    /// It, or a partition of it, is loaded.
    pub loaded: bool,
    /// Partitions that are loaded.
    pub loaded_partitions: BTreeSet<PartitionId>,
    /// Snapshots, those being deleted not.
    pub snapshots: Vec<SnapshotInfo>,
}

/// `CollectionCreated`.
pub(super) const CREATED: i32 = 0;

/// Reads of one collection's records.
pub(super) struct Look<'a> {
    pub meta: &'a MetaReader,
    pub roots: &'a Roots,
}

impl Look<'_> {
    /// Whole values under the collection; one that cannot be read is an error: nothing is decided on top of it.
    pub async fn under<M: prost::Message + Default>(
        &self,
        family: Family,
        of: CollectionId,
    ) -> Result<Vec<(Key, M)>> {
        let span = Span::prefix(&family.under(self.roots, &[of.0]));
        let page = self.meta.range_all(&span).await?;
        let read = page.kvs.into_iter().filter_map(|kv| {
            let key = Key::parse(self.roots, &kv.key.0).known()?;
            (!is_tombstone(family, &kv.value)).then(|| Ok((key, decode::<M>(&kv)?)))
        });
        read.collect()
    }

    /// Segments of a collection, without their logs.
    pub async fn segments(&self, of: CollectionId) -> Result<Vec<SegmentInfo>> {
        let all = self.under::<SegmentInfo>(Family::Segment, of).await?;
        Ok(all.into_iter().map(|(_, info)| info).collect())
    }

    /// The record of a collection, wherever it stands.
    pub async fn own(&self, id: CollectionId) -> Result<Option<(Key, KeyValue, CollectionInfo)>> {
        for family in [Family::Collection, Family::LegacyCollection] {
            let span = Span::prefix(&family.prefix(self.roots));
            for kv in self.meta.range_all(&span).await?.kvs {
                let key = Key::parse(self.roots, &kv.key.0).known();
                let found = matches!(&key, Some(Key::Collection(_, c) | Key::LegacyCollection(c)) if *c == id);
                if let Some(key) = key.filter(|_| found && !is_tombstone(family, &kv.value)) {
                    let info = decode(&kv)?;
                    return Ok(Some((key, kv, info)));
                }
            }
        }
        Ok(None)
    }

    async fn database(&self, id: DbId) -> Result<String> {
        let all = family_of::<DatabaseInfo>(self.meta, self.roots, Family::Database).await?;
        let found = all.into_iter().find(|(_, info)| info.id == id.0);
        Ok(found.map_or_else(
            || {
                if id.0 <= 1 {
                    "default".into()
                } else {
                    id.to_string()
                }
            },
            |(_, info)| info.name,
        ))
    }

    /// Database and name of a collection.
    pub async fn named(&self, id: CollectionId) -> Result<Option<(String, String)>> {
        let Some((key, _, info)) = self.own(id).await? else {
            return Ok(None);
        };
        let db = match key {
            Key::Collection(db, _) => db,
            _ => DbId(info.db_id.max(1)),
        };
        let name = info.schema.map_or_else(String::new, |s| s.name);
        Ok(Some((self.database(db).await?, name)))
    }

    /// Everything of a collection; `NotFound` when there is none.
    pub async fn target(&self, id: CollectionId) -> Result<Target> {
        let Some((key, kv, info)) = self.own(id).await? else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("collection {id} does not exist"),
            )
            .fix("list the collections"));
        };
        let db = match key {
            Key::Collection(db, _) => db,
            _ => DbId(info.db_id.max(1)),
        };
        let aliases = family_of::<AliasInfo>(self.meta, self.roots, Family::Alias).await?;
        let aliases = aliases.into_iter().filter(|(_, a)| a.collection_id == id.0);
        let partitions = self.under::<PartitionInfo>(Family::Partition, id).await?;
        let fields = self.under::<FieldSchema>(Family::Field, id).await?;
        let indexes = self.under::<FieldIndex>(Family::FieldIndex, id).await?;
        let snapshots = self.under::<SnapshotInfo>(Family::Snapshot, id).await?;
        let load = Key::CollectionLoad(id).to_key(self.roots);
        let loads = Span::prefix(&Family::PartitionLoad.under(self.roots, &[id.0]));
        let loads = self.meta.range_all(&loads).await?.kvs;
        let loaded_partitions: BTreeSet<PartitionId> = loads
            .iter()
            .filter_map(|kv| match Key::parse(self.roots, &kv.key.0).known() {
                Some(Key::PartitionLoad(_, p)) => Some(p),
                _ => None,
            })
            .collect();
        Ok(Target {
            key: (kv.key, kv.mod_rev),
            db,
            database: self.database(db).await?,
            id,
            name: info
                .schema
                .as_ref()
                .map_or_else(String::new, |s| s.name.clone()),
            channels: info
                .virtual_channel_names
                .iter()
                .map(|v| VChannel(v.clone()))
                .collect(),
            aliases: aliases.map(|(_, a)| a.alias_name).collect(),
            partitions: partitions
                .into_iter()
                .map(|(_, p)| (PartitionId(p.partition_id), p.partition_name))
                .collect(),
            fields: fields.into_iter().map(|(_, f)| f).collect(),
            indexes: indexes
                .into_iter()
                .filter(|(_, i)| !i.deleted)
                .filter_map(|(_, i)| i.index_info)
                .map(|info| (IndexId(info.index_id), info))
                .collect(),
            loaded: self.meta.get(&load).await?.is_some() || !loaded_partitions.is_empty(),
            loaded_partitions,
            snapshots: snapshots
                .into_iter()
                .map(|(_, s)| s)
                .filter(|s| s.state() != SnapshotState::Deleting)
                .collect(),
            info,
        })
    }
}

impl Target {
    /// A partition by name.
    pub fn partition(&self, name: &str) -> Option<PartitionId> {
        let mut all = self.partitions.iter();
        all.find(|(_, n)| *n == name).map(|(id, _)| *id)
    }

    /// An index by name.
    pub fn index(&self, name: &str) -> Option<&IndexInfo> {
        self.indexes.values().find(|i| i.index_name == name)
    }

    /// A field by name.
    pub fn field(&self, name: &str) -> Option<&FieldSchema> {
        self.fields.iter().find(|f| f.name == name)
    }
}

fn decode<M: prost::Message + Default>(kv: &KeyValue) -> Result<M> {
    M::decode(kv.value.clone()).map_err(|e| {
        Error::new(ErrorKind::Corrupt, format!("key {} cannot be read", kv.key))
            .caused_by(e)
            .fix("repair or remove that record first")
    })
}
