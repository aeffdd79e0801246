//! Broadcast records (`spec/layout.md` §6, `spec/lifecycle.md` §II.1).

use std::sync::Arc;

use crate::engine::format::codec::{self, Decoded};
use crate::engine::format::keys::Key;
use crate::engine::format::pb;
use crate::engine::ids::BroadcastId;
use crate::engine::meta::KeyValue;
use crate::engine::model::broadcast::Broadcast;
use crate::engine::model::catalog::Catalog;

impl Catalog {
    /// Learns a broadcast's record. `Ok(false)` when the key is none.
    pub(super) fn learn_broadcast(&mut self, key: &Key, kv: &KeyValue) -> Result<bool, String> {
        let Key::BroadcastTask(id) = key else {
            return Ok(false);
        };
        match codec::decode::<pb::streaming::BroadcastTask>(key, &kv.value) {
            Decoded::Value(task) => {
                let row = Broadcast::read(*id, &task, kv.key.clone(), kv.mod_rev);
                self.broadcasts.insert(row.id, Arc::new(row));
            }
            Decoded::Tombstone => {}
            Decoded::Undecodable { reason } => return Err(reason),
        }
        Ok(true)
    }

    /// Forgets a broadcast's record.
    pub(super) fn forget_broadcast(&mut self, key: &Key) {
        if let Key::BroadcastTask(id) = key {
            self.broadcasts.remove(&BroadcastId(id.cast_signed()));
        }
    }
}
