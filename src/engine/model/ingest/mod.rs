//! From events to pieces to rows. A piece is what one key says; a row is a pure function of the pieces that are there now, so
//! the order in which keys arrive cannot matter.

mod broadcasts;
pub(in crate::engine::model) mod channels;
mod index;
pub mod l0;
mod query;
pub(in crate::engine::model) mod root;
pub(in crate::engine::model) mod segments;
mod tasks;

use std::sync::Arc;

use crate::engine::format::codec;
use crate::engine::format::keys::{Key, ParsedKey, Roots};
use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::meta::{Event, KeyValue};

use super::catalog::{Catalog, Dirty};
use super::data::Undecodable;

use segments::segment_key;

impl Catalog {
    /// Takes in changes. Pure: the result depends only on the last event of each key, not on order or batching; an
    /// event older than what is known of its key changes nothing.
    pub fn apply(&mut self, roots: &Roots, events: &[Event]) {
        if self.roots != *roots {
            self.roots = roots.clone();
        }
        let mut dirty = Dirty::default();
        for event in events {
            match event {
                Event::Put(kv) => self.put(roots, kv, &mut dirty),
                Event::Delete(key, rev) => self.delete(roots, key, *rev, &mut dirty),
            }
        }
        let collections = std::mem::take(&mut dirty.collections);
        for id in collections {
            self.settle_collection(id, &mut dirty);
        }
        self.spread_pchannels(&mut dirty);
        for name in &dirty.channels {
            self.settle_channel(name);
        }
        for id in &dirty.loads {
            self.settle_load(*id);
        }
    }

    fn put(&mut self, roots: &Roots, kv: &KeyValue, dirty: &mut Dirty) {
        self.rev = self.rev.max(kv.mod_rev);
        let parsed = Key::parse(roots, &kv.key.0);
        let family = match &parsed {
            ParsedKey::Known(key) => Some(key.family()),
            ParsedKey::Unknown => None,
        };
        let tombstone = family.is_some_and(|f| codec::is_tombstone(f, &kv.value));
        if !self.keys.put(kv, family, tombstone) {
            return;
        }
        if !self.undecodable.is_empty() {
            self.undecodable.remove(&kv.key);
        }
        let ParsedKey::Known(key) = parsed else {
            return;
        };
        if tombstone {
            self.forget(&key, &kv.key, dirty);
        } else if let Err(reason) = self.learn(&key, kv, dirty) {
            // What the key said before is no longer true.
            self.forget(&key, &kv.key, dirty);
            let row = Undecodable {
                key: kv.key.clone(),
                reason,
                len: u32::try_from(kv.value.len()).unwrap_or(u32::MAX),
                rev: kv.mod_rev,
            };
            self.undecodable.insert(kv.key.clone(), Arc::new(row));
        }
    }

    fn delete(&mut self, roots: &Roots, raw: &MetaKey, rev: MetaRev, dirty: &mut Dirty) {
        self.rev = self.rev.max(rev);
        if !self.keys.delete(raw, rev) {
            return;
        }
        if !self.undecodable.is_empty() {
            self.undecodable.remove(raw);
        }
        if let ParsedKey::Known(key) = Key::parse(roots, &raw.0) {
            self.forget(&key, raw, dirty);
        }
    }

    fn learn(&mut self, key: &Key, kv: &KeyValue, dirty: &mut Dirty) -> Result<(), String> {
        match key {
            Key::Log(kind, c, p, s, f) => {
                return self.learn_log(*kind, segment_key(*c, *p, *s), *f, kv);
            }
            Key::Segment(c, p, s) => return self.learn_segment(key, segment_key(*c, *p, *s), kv),
            _ => {}
        }
        if self.learn_index(key, kv)?
            || self.learn_root(key, kv, dirty)?
            || self.learn_channel(key, kv, dirty)?
            || self.learn_query(key, kv, dirty)?
            || self.learn_broadcast(key, kv)?
        {
            return Ok(());
        }
        if let Some(task) = tasks::task(key, kv)? {
            self.tasks.insert(kv.key.clone(), Arc::new(task));
        }
        Ok(())
    }

    fn forget(&mut self, key: &Key, raw: &MetaKey, dirty: &mut Dirty) {
        match key {
            Key::Log(kind, c, p, s, f) => self.forget_log(*kind, segment_key(*c, *p, *s), *f),
            Key::Segment(c, p, s) => self.forget_segment(segment_key(*c, *p, *s)),
            Key::FieldIndex(..) | Key::SegmentIndex(..) | Key::Snapshot(..) => {
                self.forget_index(key);
            }
            _ => {
                self.forget_root(key, dirty);
                self.forget_channel(key, dirty);
                self.forget_query(key, raw, dirty);
                self.forget_broadcast(key);
                self.tasks.remove(raw);
            }
        }
    }
}
