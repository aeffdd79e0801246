//! Databases, collections and their children, aliases: pieces by key, and the join of `spec/layout.md` §2.4.

use std::sync::Arc;

use crate::engine::format::codec::{self, Decoded};
use crate::engine::format::keys::Key;
use crate::engine::format::{mask, pb};
use crate::engine::ids::{
    CollectionId, DbId, FieldId, FunctionId, MetaRev, PartitionId, Tso, UnixNs, VChannel,
};
use crate::engine::meta::KeyValue;
use crate::engine::model::catalog::{Catalog, Dirty};
use crate::engine::model::data::{Alias, Collection, Database, Enum, Field, Partition};
use crate::engine::model::names;

/// A collection's own key.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine::model) struct InfoPiece {
    info: pb::etcd::CollectionInfo,
    rev: MetaRev,
}

/// Which of the three alias layouts a key has; a newer one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::engine::model) enum AliasLayout {
    /// `collection-alias/{alias}`.
    Oldest,
    /// `aliases/{alias}`.
    Legacy,
    /// `database/aliases/{db}/{alias}`.
    Current,
}

/// Database 0 is the legacy "no database": Milvus moves it to `default` (1).
const fn shown_db(db: DbId) -> DbId {
    if db.0 == 0 { DbId(1) } else { db }
}

fn pairs(list: Vec<pb::common::KeyValuePair>) -> Vec<(String, String)> {
    list.into_iter()
        .map(|pair| {
            let value = if mask::is_secret(&pair.key) {
                mask::MASK.to_owned()
            } else {
                mask::text(&pair.value).into_owned()
            };
            (pair.key, value)
        })
        .collect()
}

fn field(schema: pb::schema::FieldSchema, parent: Option<FieldId>) -> Field {
    Field {
        id: FieldId(schema.field_id),
        name: schema.name,
        data_type: names::data_type(schema.data_type),
        element_type: names::data_type(schema.element_type),
        primary_key: schema.is_primary_key,
        auto_id: schema.auto_id,
        partition_key: schema.is_partition_key,
        clustering_key: schema.is_clustering_key,
        dynamic: schema.is_dynamic,
        nullable: schema.nullable,
        type_params: pairs(schema.type_params),
        parent,
        description: schema.description,
    }
}

fn struct_field(schema: pb::schema::StructArrayFieldSchema) -> Vec<Field> {
    let id = FieldId(schema.field_id);
    let own = Field {
        id,
        name: schema.name,
        data_type: names::data_type(pb::schema::DataType::ArrayOfStruct as i32),
        element_type: names::data_type(pb::schema::DataType::Struct as i32),
        primary_key: false,
        auto_id: false,
        partition_key: false,
        clustering_key: false,
        dynamic: false,
        nullable: schema.nullable,
        type_params: pairs(schema.type_params),
        parent: None,
        description: schema.description,
    };
    std::iter::once(own)
        .chain(schema.fields.into_iter().map(|f| field(f, Some(id))))
        .collect()
}

fn function(schema: &pb::schema::FunctionSchema) -> (String, Enum) {
    (schema.name.clone(), names::function_type(schema.r#type))
}

impl Catalog {
    /// Learns a key under `root-coord/`. `Ok(false)` when it is none that the model joins.
    pub(super) fn learn_root(
        &mut self,
        key: &Key,
        kv: &KeyValue,
        dirty: &mut Dirty,
    ) -> Result<bool, String> {
        macro_rules! value {
            ($ty:ty) => {
                match codec::decode::<$ty>(key, &kv.value) {
                    Decoded::Value(value) => value,
                    Decoded::Tombstone => return Ok(true),
                    Decoded::Undecodable { reason } => return Err(reason),
                }
            };
        }
        let rev = kv.mod_rev;
        match key {
            Key::Database(id) => {
                let info = value!(pb::etcd::DatabaseInfo);
                self.databases.insert(
                    *id,
                    Arc::new(Database {
                        id: *id,
                        name: info.name.into(),
                        state: names::database_state(info.state),
                        created: database_time(info.created_time),
                        properties: pairs(info.properties),
                        rev,
                    }),
                );
            }
            Key::Collection(..) | Key::LegacyCollection(_) => {
                let info = value!(pb::etcd::CollectionInfo);
                let (db, id) = match key {
                    Key::Collection(db, id) => (Some(*db), *id),
                    Key::LegacyCollection(id) => (None, *id),
                    _ => return Ok(false),
                };
                self.infos
                    .insert((id, db), Arc::new(InfoPiece { info, rev }));
                dirty.collections.insert(id);
            }
            Key::Partition(c, p) => {
                let info = value!(pb::etcd::PartitionInfo);
                let row = Partition {
                    id: *p,
                    collection: *c,
                    name: info.partition_name.into(),
                    state: names::partition_state(info.state),
                    created: Tso(info.partition_created_timestamp),
                    rev,
                };
                self.partition_pieces.insert((*c, *p), Arc::new(row));
                dirty.collections.insert(*c);
            }
            Key::Field(c, f) => {
                let schema = value!(pb::schema::FieldSchema);
                self.fields
                    .insert((*c, *f), (Arc::new(vec![field(schema, None)]), rev));
                dirty.collections.insert(*c);
            }
            Key::StructField(c, f) => {
                let schema = value!(pb::schema::StructArrayFieldSchema);
                self.struct_fields
                    .insert((*c, *f), (Arc::new(struct_field(schema)), rev));
                dirty.collections.insert(*c);
            }
            Key::Function(c, f) => {
                let schema = value!(pb::schema::FunctionSchema);
                self.functions
                    .insert((*c, *f), (Arc::new(function(&schema)), rev));
                dirty.collections.insert(*c);
            }
            Key::Alias(..) | Key::LegacyAlias(_) => {
                let info = value!(pb::etcd::AliasInfo);
                let Some((db, name, layout)) = alias_place(key) else {
                    return Ok(false);
                };
                let row = Alias {
                    db: shown_db(db),
                    name: name.clone(),
                    collection: CollectionId(info.collection_id),
                    state: names::alias_state(info.state),
                    created: Tso(info.created_time),
                    rev,
                };
                self.set_alias((db, name, layout), Some(row), dirty);
            }
            Key::OldestAlias(_) => {
                let info = value!(pb::etcd::CollectionInfo);
                let Some((db, name, layout)) = alias_place(key) else {
                    return Ok(false);
                };
                let row = Alias {
                    db: shown_db(db),
                    name: name.clone(),
                    collection: CollectionId(info.id),
                    state: names::alias_state(0),
                    created: Tso(info.create_time),
                    rev,
                };
                self.set_alias((db, name, layout), Some(row), dirty);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Forgets a key under `root-coord/`.
    pub(super) fn forget_root(&mut self, key: &Key, dirty: &mut Dirty) {
        match key {
            Key::Database(id) => {
                self.databases.remove(id);
            }
            Key::Collection(db, id) => {
                self.infos.remove(&(*id, Some(*db)));
                dirty.collections.insert(*id);
            }
            Key::LegacyCollection(id) => {
                self.infos.remove(&(*id, None));
                dirty.collections.insert(*id);
            }
            Key::Partition(c, p) => {
                self.partition_pieces.remove(&(*c, *p));
                dirty.collections.insert(*c);
            }
            Key::Field(c, f) => {
                self.fields.remove(&(*c, *f));
                dirty.collections.insert(*c);
            }
            Key::StructField(c, f) => {
                self.struct_fields.remove(&(*c, *f));
                dirty.collections.insert(*c);
            }
            Key::Function(c, f) => {
                self.functions.remove(&(*c, *f));
                dirty.collections.insert(*c);
            }
            Key::Alias(..) | Key::LegacyAlias(_) | Key::OldestAlias(_) => {
                if let Some(place) = alias_place(key) {
                    self.set_alias(place, None, dirty);
                }
            }
            _ => {}
        }
    }

    fn set_alias(
        &mut self,
        place: (DbId, Arc<str>, AliasLayout),
        row: Option<Alias>,
        dirty: &mut Dirty,
    ) {
        let shown = (shown_db(place.0), place.1.clone());
        match row {
            Some(row) => {
                self.alias_pieces.insert(place, Arc::new(row));
            }
            None => {
                self.alias_pieces.remove(&place);
            }
        }
        let newest = [shown.0, DbId(0)]
            .into_iter()
            .filter(|db| shown_db(*db) == shown.0)
            .flat_map(|db| {
                [
                    AliasLayout::Current,
                    AliasLayout::Legacy,
                    AliasLayout::Oldest,
                ]
                .map(|layout| (db, shown.1.clone(), layout))
            })
            .filter_map(|place| self.alias_pieces.get(&place).map(|row| (place.2, row)))
            .max_by_key(|(layout, row)| (*layout, row.rev))
            .map(|(_, row)| row.clone());
        let old = match newest {
            Some(row) => {
                dirty.collections.insert(row.collection);
                self.aliases_of
                    .insert((row.collection, shown.0, shown.1.clone()));
                self.aliases
                    .insert(shown.clone(), row.clone())
                    .filter(|old| old.collection != row.collection)
            }
            None => self.aliases.remove(&shown),
        };
        if let Some(old) = old {
            dirty.collections.insert(old.collection);
            self.aliases_of.remove(&(old.collection, shown.0, shown.1));
        }
    }

    /// Joins one collection again from its pieces.
    pub(super) fn settle_collection(&mut self, id: CollectionId, dirty: &mut Dirty) {
        let joined = self.join_collection(id);
        let (collection, partitions) = match joined {
            Some((collection, partitions)) => (Some(collection), partitions),
            // Partitions whose collection is gone stay visible: they are what a clean-up left behind.
            None => (None, self.stored_partitions(id)),
        };
        let old: Vec<PartitionId> = self.partitions_of(id).map(|p| p.id).collect();
        for p in old {
            if !partitions.iter().any(|row| row.id == p) {
                self.partitions.remove(&(id, p));
            }
        }
        for row in partitions {
            self.partitions.insert((id, row.id), row);
        }
        let before = self.collections.get(&id).cloned();
        for channel in before.iter().flat_map(|c| c.vchannels.iter()) {
            self.unlist_channel(channel, id);
            dirty.channels.insert(channel.clone());
        }
        if let Some(before) = &before {
            self.collections_in.remove(&(before.db, id));
        }
        match collection {
            Some(collection) => {
                for channel in &collection.vchannels {
                    self.list_channel(channel, id);
                    dirty.channels.insert(channel.clone());
                }
                self.collections_in.insert((collection.db, id));
                self.collections.insert(id, Arc::new(collection));
            }
            None => {
                self.collections.remove(&id);
            }
        }
    }

    fn stored_partitions(&self, id: CollectionId) -> Vec<Arc<Partition>> {
        self.partition_pieces
            .range((id, PartitionId(i64::MIN))..=(id, PartitionId(i64::MAX)))
            .map(|(_, row)| row.clone())
            .collect()
    }

    fn join_collection(&self, id: CollectionId) -> Option<(Collection, Vec<Arc<Partition>>)> {
        let places: Vec<(Option<DbId>, &Arc<InfoPiece>)> = self
            .infos
            .range((id, None)..=(id, Some(DbId(i64::MAX))))
            .map(|((_, db), piece)| (*db, piece))
            .collect();
        let (db, piece) = places
            .iter()
            .max_by_key(|(db, piece)| (db.is_some(), piece.rev, *db))?;
        let info = &piece.info;
        let schema = info.schema.clone().unwrap_or_default();
        let mut rev = piece.rev;
        let mut damage = Vec::new();
        if places.len() > 1 {
            damage.push(format!("recorded under {} keys", places.len()));
        }

        // `spec/layout.md` §2.4 rule 1: only when both sides are inline is the value all there is.
        let schema_is_new = schema.fields.is_empty() && schema.struct_array_fields.is_empty();
        let partitions_are_new = info.partition_i_ds.is_empty()
            && info.partition_names.is_empty()
            && info.partition_created_timestamps.is_empty();
        let joined = schema_is_new || partitions_are_new;
        let mut fields: Vec<Field> = Vec::new();
        let mut functions: Vec<(String, Enum)> = Vec::new();
        let partitions;
        if joined {
            let (lo, hi) = ((id, FieldId(i64::MIN)), (id, FieldId(i64::MAX)));
            for (_, (list, at)) in self.fields.range(lo..=hi) {
                fields.extend(list.iter().cloned());
                rev = rev.max(*at);
            }
            fields.sort_by_key(|f| f.id);
            for (_, (list, at)) in self.struct_fields.range(lo..=hi) {
                fields.extend(list.iter().cloned());
                rev = rev.max(*at);
            }
            let (lo, hi) = ((id, FunctionId(i64::MIN)), (id, FunctionId(i64::MAX)));
            for (_, (function, at)) in self.functions.range(lo..=hi) {
                functions.push((**function).clone());
                rev = rev.max(*at);
            }
            partitions = self.stored_partitions(id);
            rev = partitions.iter().fold(rev, |rev, p| rev.max(p.rev));
        } else {
            fields.extend(schema.fields.into_iter().map(|f| field(f, None)));
            fields.sort_by_key(|f| f.id);
            fields.extend(
                schema
                    .struct_array_fields
                    .into_iter()
                    .flat_map(struct_field),
            );
            functions.extend(schema.functions.iter().map(function));
            partitions = inline_partitions(id, info, piece.rev);
        }
        let aliases: Vec<String> = self
            .aliases_of(id)
            .filter(|alias| alias.state.number <= 1)
            .map(|alias| {
                rev = rev.max(alias.rev);
                alias.name.to_string()
            })
            .collect();

        if info.state == 0 {
            if fields.is_empty() {
                damage.push("no fields".to_owned());
            } else if !fields.iter().any(|f| f.primary_key) {
                damage.push("no primary key field".to_owned());
            }
            if partitions.is_empty() {
                damage.push("no partitions".to_owned());
            }
            if info.virtual_channel_names.len() != info.physical_channel_names.len() {
                damage.push("virtual and physical channels do not pair".to_owned());
            }
        }
        if info.id != id.0 {
            damage.push(format!("the value says id {}", info.id));
        }
        let collection = Collection {
            id,
            db: shown_db(db.unwrap_or(DbId(info.db_id))),
            name: schema.name.into(),
            description: schema.description,
            state: names::collection_state(info.state),
            created: Tso(info.create_time),
            updated: Tso(info.update_timestamp),
            shards: if info.shards_num > 0 {
                info.shards_num
            } else {
                i32::try_from(info.virtual_channel_names.len()).unwrap_or(i32::MAX)
            },
            consistency: names::consistency(info.consistency_level),
            properties: pairs(info.properties.clone()),
            fields,
            functions,
            dynamic: schema.enable_dynamic_field,
            vchannels: info
                .virtual_channel_names
                .iter()
                .cloned()
                .map(VChannel)
                .collect(),
            pchannels: info.physical_channel_names.clone(),
            schema_version: schema.version,
            aliases,
            damage,
            rev,
        };
        Some((collection, partitions))
    }
}

/// The partitions of a value of before 2.1.1.
fn inline_partitions(
    id: CollectionId,
    info: &pb::etcd::CollectionInfo,
    rev: MetaRev,
) -> Vec<Arc<Partition>> {
    info.partition_i_ds
        .iter()
        .enumerate()
        .map(|(i, p)| {
            Arc::new(Partition {
                id: PartitionId(*p),
                collection: id,
                name: info
                    .partition_names
                    .get(i)
                    .map_or("", String::as_str)
                    .into(),
                state: names::partition_state(0),
                created: Tso(info
                    .partition_created_timestamps
                    .get(i)
                    .copied()
                    .unwrap_or(0)),
                rev,
            })
        })
        .collect()
}

fn alias_place(key: &Key) -> Option<(DbId, Arc<str>, AliasLayout)> {
    Some(match key {
        Key::Alias(db, name) => (*db, name.as_str().into(), AliasLayout::Current),
        Key::LegacyAlias(name) => (DbId(0), name.as_str().into(), AliasLayout::Legacy),
        Key::OldestAlias(name) => (DbId(0), name.as_str().into(), AliasLayout::Oldest),
        _ => return None,
    })
}

/// A database's creation: Unix nanoseconds, as the captured 2.3.5 writes it; other kinds of record have a TSO there. No TSO
/// before the year 2100 reaches the smallest such number.
fn database_time(raw: u64) -> Tso {
    const SMALLEST_NS: u64 = 1_100_000_000_000_000_000;
    match i64::try_from(raw) {
        Ok(ns) if raw >= SMALLEST_NS => Tso::from_ms(UnixNs(ns).to_ms()),
        _ => Tso(raw),
    }
}
