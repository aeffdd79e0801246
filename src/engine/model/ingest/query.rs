//! Load state, replicas, sessions and dynamic configuration (`spec/layout.md` §1.2, §4, §10.3).

use std::sync::Arc;

use serde::Deserialize;

use crate::engine::format::codec::{self, Decoded};
use crate::engine::format::keys::Key;
use crate::engine::format::{mask, pb};
use crate::engine::ids::{CollectionId, NodeId, PartitionId, ReplicaId};
use crate::engine::meta::KeyValue;
use crate::engine::model::catalog::{Catalog, Dirty};
use crate::engine::model::data::{ConfigItem, LoadInfo, Replica, Session};
use crate::engine::model::names;

/// The members of a session's JSON that the model shows.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct SessionJson {
    #[serde(rename = "ServerID")]
    server_id: i64,
    address: String,
    host_name: String,
    version: String,
    stopping: bool,
}

impl Catalog {
    /// Learns a key of QueryCoord, a session or an override. `Ok(false)` when it is none.
    pub(super) fn learn_query(
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
            Key::CollectionLoad(c) => {
                let info = value!(pb::query::CollectionLoadInfo);
                let row = LoadInfo {
                    collection: *c,
                    status: names::load_status(info.status),
                    load_type: names::load_type(info.load_type),
                    replicas: info.replica_number,
                    partitions: Vec::new(),
                    rev,
                };
                self.load_pieces.insert(*c, Arc::new(row));
                dirty.loads.insert(*c);
            }
            Key::PartitionLoad(c, p) => {
                let info = value!(pb::query::PartitionLoadInfo);
                let status = names::load_status(info.status);
                self.partition_loads.insert((*c, *p), (status, rev));
                dirty.loads.insert(*c);
            }
            Key::Replica(c, id) => {
                let info = value!(pb::query::Replica);
                let nodes = info
                    .nodes
                    .into_iter()
                    .chain(info.ro_nodes)
                    .chain(info.rw_sq_nodes)
                    .chain(info.ro_sq_nodes)
                    .map(NodeId)
                    .collect();
                let row = Replica {
                    id: *id,
                    collection: *c,
                    nodes,
                    resource_group: info.resource_group,
                    rev,
                };
                self.replicas.insert((*id, *c), Arc::new(row));
            }
            Key::Session(role, id) => {
                let json: SessionJson = serde_json::from_slice(&kv.value)
                    .map_err(|cause| format!("not a session's JSON: {cause}"))?;
                let name = session_name(role, *id);
                let row = Session {
                    name: name.clone(),
                    role: role.name().to_owned(),
                    server: NodeId(json.server_id),
                    address: json.address,
                    host: json.host_name,
                    version: json.version,
                    stopping: json.stopping,
                    lease: kv.lease,
                    coordinator: role.is_coordinator(),
                    rev,
                };
                self.sessions.insert(name, Arc::new(row));
            }
            Key::Config(name) => {
                let value = std::str::from_utf8(&kv.value).map_err(|_| "not UTF-8 text")?;
                let value = if mask::is_secret(name) {
                    mask::MASK.to_owned()
                } else {
                    mask::text(value).into_owned()
                };
                let row = ConfigItem {
                    key: kv.key.clone(),
                    name: name.as_str().into(),
                    value,
                    rev,
                };
                self.config.insert(kv.key.clone(), Arc::new(row));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Forgets a key of QueryCoord, a session or an override.
    pub(super) fn forget_query(
        &mut self,
        key: &Key,
        raw: &crate::engine::ids::MetaKey,
        dirty: &mut Dirty,
    ) {
        match key {
            Key::CollectionLoad(c) => {
                self.load_pieces.remove(c);
                dirty.loads.insert(*c);
            }
            Key::PartitionLoad(c, p) => {
                self.partition_loads.remove(&(*c, *p));
                dirty.loads.insert(*c);
            }
            Key::Replica(c, id) => {
                self.replicas.remove(&(*id, *c));
            }
            Key::Session(role, id) => {
                self.sessions.remove(&session_name(role, *id));
            }
            Key::Config(_) => {
                self.config.remove(raw);
            }
            _ => {}
        }
    }

    /// Joins the load state of one collection again.
    pub(super) fn settle_load(&mut self, id: CollectionId) {
        let Some(own) = self.load_pieces.get(&id) else {
            self.loads.remove(&id);
            return;
        };
        let mut row = (**own).clone();
        let all = (id, PartitionId(i64::MIN))..=(id, PartitionId(i64::MAX));
        for ((_, p), (status, rev)) in self.partition_loads.range(all) {
            row.partitions.push((*p, *status));
            row.rev = row.rev.max(*rev);
        }
        self.loads.insert(id, Arc::new(row));
    }

    /// Replicas of a collection.
    pub fn replicas_of(&self, id: CollectionId) -> impl Iterator<Item = &Arc<Replica>> {
        self.replicas.values().filter(move |r| r.collection == id)
    }

    /// One replica.
    #[must_use]
    pub fn replica(&self, id: ReplicaId) -> Option<&Arc<Replica>> {
        self.replicas
            .range((id, CollectionId(i64::MIN))..=(id, CollectionId(i64::MAX)))
            .map(|(_, row)| row)
            .next()
    }
}

fn session_name(role: &crate::engine::format::keys::Role, id: Option<NodeId>) -> Arc<str> {
    match id {
        Some(id) => format!("{}-{id}", role.name()).into(),
        None => role.name().into(),
    }
}
