//! Every key of the cluster without its value: what the raw-key screen lists and what tells a stale event from a new one.

use bytes::Bytes;
use imbl::OrdMap;

use crate::engine::format::keys::Family;
use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::meta::KeyValue;

/// What is kept of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyMeta {
    /// Revision of the last write.
    pub mod_rev: MetaRev,
    /// Revision of the creation.
    pub create_rev: MetaRev,
    /// Writes since creation.
    pub version: u32,
    /// Bytes of the value.
    pub len: u32,
    /// Bound to a lease ([`KeyIndex::lease`]).
    pub leased: bool,
    /// The value is RootCoord's tombstone: the thing is deleted (`spec/layout.md` §2.6).
    pub tombstone: bool,
    /// Family; `None` when the key is outside the roots or of no known family.
    pub family: Option<Family>,
}

/// Ordered index of keys. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyIndex {
    map: OrdMap<MetaKey, KeyMeta>,
    leases: OrdMap<MetaKey, i64>,
    value_bytes: u64,
    key_bytes: u64,
}

impl KeyIndex {
    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Bytes of all keys and of all values.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.key_bytes, self.value_bytes)
    }

    /// One key.
    #[must_use]
    pub fn get(&self, key: &MetaKey) -> Option<&KeyMeta> {
        self.map.get(key)
    }

    /// One key with the index's own copy of it.
    #[must_use]
    pub fn entry(&self, key: &MetaKey) -> Option<(&MetaKey, &KeyMeta)> {
        self.map.get_key_value(key)
    }

    /// The lease of a key; 0 for none.
    #[must_use]
    pub fn lease(&self, key: &MetaKey) -> i64 {
        self.leases.get(key).copied().unwrap_or(0)
    }

    /// All keys that start with `prefix`, in order; all when it is empty.
    pub fn under(&self, prefix: &str) -> impl Iterator<Item = (&MetaKey, &KeyMeta)> + use<'_> {
        let start = MetaKey(Bytes::copy_from_slice(prefix.as_bytes()));
        let prefix = start.0.clone();
        self.map
            .range(start..)
            .take_while(move |(key, _)| key.0.starts_with(&prefix))
    }

    /// Notes a write; `false` when a newer one is already known.
    pub(super) fn put(&mut self, kv: &KeyValue, family: Option<Family>, tombstone: bool) -> bool {
        let len = u32::try_from(kv.value.len()).unwrap_or(u32::MAX);
        let meta = KeyMeta {
            mod_rev: kv.mod_rev,
            create_rev: kv.create_rev,
            version: u32::try_from(kv.version).unwrap_or(u32::MAX),
            len,
            leased: kv.lease != 0,
            tombstone,
            family,
        };
        if let Some(old) = self.map.get_mut(&kv.key) {
            if old.mod_rev > kv.mod_rev {
                return false;
            }
            self.value_bytes = self.value_bytes - u64::from(old.len) + u64::from(len);
            let was_leased = old.leased;
            *old = meta;
            if was_leased && !meta.leased {
                self.leases.remove(&kv.key);
            }
        } else {
            // A copy of its own: the event's key may be a slice of a whole page, which would then stay in memory.
            let key = MetaKey(Bytes::copy_from_slice(&kv.key.0));
            self.key_bytes += key.0.len() as u64;
            self.value_bytes += u64::from(len);
            self.map.insert(key, meta);
        }
        if meta.leased {
            self.leases.insert(kv.key.clone(), kv.lease);
        }
        true
    }

    /// Notes a deletion at `rev`; `false` when the key is not known or was written later.
    pub(super) fn delete(&mut self, key: &MetaKey, rev: MetaRev) -> bool {
        match self.map.get(key) {
            Some(meta) if meta.mod_rev <= rev => {}
            _ => return false,
        }
        if let Some(meta) = self.map.remove(key) {
            self.key_bytes -= key.0.len() as u64;
            self.value_bytes -= u64::from(meta.len);
            if meta.leased {
                self.leases.remove(key);
            }
        }
        true
    }
}
