//! Virtual channels: one row from checkpoint, removal mark, legacy watch, WAL state, owner and the collections that list it.

use std::sync::Arc;

use crate::engine::format::codec::{self, Decoded};
use crate::engine::format::keys::Key;
use crate::engine::format::pb;
use crate::engine::format::vchannel::{self, ChannelName};
use crate::engine::ids::{CollectionId, MetaRev, NodeId, Tso, VChannel};
use crate::engine::meta::KeyValue;
use crate::engine::model::catalog::{Catalog, Dirty};
use crate::engine::model::data::{Channel, Enum, PChannel};
use crate::engine::model::names;

/// What the keys say of one channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine::model) struct ChannelPieces {
    checkpoint: Option<(Tso, MetaRev)>,
    mark: Option<(String, MetaRev)>,
    /// By node; the lowest node wins when several watch.
    watches: Vec<(NodeId, Enum, MetaRev)>,
    /// By physical channel as written in the key.
    wal: Vec<(String, Enum, MetaRev)>,
    /// Collections that list it.
    listed_by: Vec<CollectionId>,
}

impl ChannelPieces {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn upsert<K: PartialEq + Ord + Clone>(
    list: &mut Vec<(K, Enum, MetaRev)>,
    item: (K, Enum, MetaRev),
) {
    match list.binary_search_by(|old| old.0.cmp(&item.0)) {
        Ok(at) => list[at] = item,
        Err(at) => list.insert(at, item),
    }
}

impl Catalog {
    /// Learns a channel's key. `Ok(false)` when it is none.
    pub(super) fn learn_channel(
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
            Key::ChannelCheckpoint(name) => {
                let position = value!(pb::msg::MsgPosition);
                self.edit_channel(name, dirty, |c| {
                    c.checkpoint = Some((Tso(position.timestamp), rev));
                });
            }
            Key::ChannelRemoval(name) => {
                let mark = String::from_utf8(kv.value.to_vec()).map_err(|_| "not UTF-8 text")?;
                self.edit_channel(name, dirty, |c| c.mark = Some((mark, rev)));
            }
            Key::ChannelWatch(node, name) => {
                let watch = value!(pb::data::ChannelWatchInfo);
                let item = (*node, names::watch_state(watch.state), rev);
                self.edit_channel(name, dirty, |c| upsert(&mut c.watches, item));
            }
            Key::WalVChannel(pchannel, name) => {
                let meta = value!(pb::streaming::VChannelMeta);
                let item = (pchannel.clone(), names::vchannel_state(meta.state), rev);
                self.edit_channel(name, dirty, |c| upsert(&mut c.wal, item));
            }
            Key::PChannel(name) => {
                let meta = value!(pb::streaming::PChannelMeta);
                let node = meta.node;
                let row = PChannel {
                    node: node.as_ref().map(|node| NodeId(node.server_id)),
                    address: node.map_or_else(String::new, |node| node.address),
                    term: meta.channel.map_or(0, |c| c.term),
                    state: names::pchannel_state(meta.state),
                    rev,
                };
                self.owners.insert(name.as_str().into(), Arc::new(row));
                dirty.pchannels.insert(name.clone());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Forgets a channel's key.
    pub(super) fn forget_channel(&mut self, key: &Key, dirty: &mut Dirty) {
        match key {
            Key::ChannelCheckpoint(name) => {
                self.edit_channel(name, dirty, |c| c.checkpoint = None);
            }
            Key::ChannelRemoval(name) => self.edit_channel(name, dirty, |c| c.mark = None),
            Key::ChannelWatch(node, name) => {
                self.edit_channel(name, dirty, |c| c.watches.retain(|w| w.0 != *node));
            }
            Key::WalVChannel(pchannel, name) => {
                self.edit_channel(name, dirty, |c| c.wal.retain(|w| w.0 != *pchannel));
            }
            Key::PChannel(name) => {
                self.owners.remove(name.as_str());
                dirty.pchannels.insert(name.clone());
            }
            _ => {}
        }
    }

    /// A collection lists the channel.
    pub(super) fn list_channel(&mut self, name: &VChannel, by: CollectionId) {
        let mut ignored = Dirty::default();
        self.edit_channel(name, &mut ignored, |c| {
            if let Err(at) = c.listed_by.binary_search(&by) {
                c.listed_by.insert(at, by);
            }
        });
    }

    /// A collection no longer lists the channel.
    pub(super) fn unlist_channel(&mut self, name: &VChannel, by: CollectionId) {
        let mut ignored = Dirty::default();
        self.edit_channel(name, &mut ignored, |c| c.listed_by.retain(|c| *c != by));
    }

    fn edit_channel(
        &mut self,
        name: &VChannel,
        dirty: &mut Dirty,
        edit: impl FnOnce(&mut ChannelPieces),
    ) {
        let slot = self.channel_pieces.entry(name.clone()).or_default();
        edit(slot);
        if slot.is_empty() {
            self.channel_pieces.remove(name);
        }
        dirty.channels.insert(name.clone());
    }

    /// Marks every channel of the physical channels as to be joined again.
    pub(super) fn spread_pchannels(&self, dirty: &mut Dirty) {
        if dirty.pchannels.is_empty() {
            return;
        }
        for name in self.channel_pieces.keys() {
            if dirty
                .pchannels
                .contains(ChannelName::parse(&name.0).pchannel())
            {
                dirty.channels.insert(name.clone());
            }
        }
    }

    /// Joins one channel again.
    pub(super) fn settle_channel(&mut self, name: &VChannel) {
        let Some(pieces) = self.channel_pieces.get(name) else {
            if let Some(old) = self.channels.remove(name) {
                if let Some(collection) = old.collection {
                    self.channels_of.remove(&(collection, name.clone()));
                }
                self.note_checkpoint(name, old.checkpoint, None);
            }
            return;
        };
        let parsed = ChannelName::parse(&name.0);
        let owner = self.owners.get(parsed.pchannel());
        let collection = vchannel::collection(name).or(pieces.listed_by.first().copied());
        let own = [
            pieces.checkpoint.as_ref().map(|p| p.1),
            pieces.mark.as_ref().map(|p| p.1),
            pieces.watches.iter().map(|w| w.2).max(),
            pieces.wal.iter().map(|w| w.2).max(),
            owner.map(|o| o.rev),
        ];
        let row = Channel {
            name: name.clone(),
            collection,
            checkpoint: pieces.checkpoint.as_ref().map(|p| p.0),
            mark: pieces.mark.as_ref().map(|p| p.0.clone()),
            watch: pieces.watches.first().map(|w| (w.0, w.1)),
            owner: owner.cloned(),
            recovery: pieces.wal.first().map(|w| w.1),
            listed: !pieces.listed_by.is_empty(),
            rev: own.into_iter().flatten().max().unwrap_or_default(),
        };
        let checkpoint = row.checkpoint;
        let before = self.channels.insert(name.clone(), Arc::new(row));
        if let Some(old) = before.as_ref().and_then(|b| b.collection)
            && Some(old) != collection
        {
            self.channels_of.remove(&(old, name.clone()));
        }
        self.note_checkpoint(name, before.and_then(|b| b.checkpoint), checkpoint);
        if let Some(collection) = collection {
            self.channels_of.insert((collection, name.clone()));
        }
    }

    fn note_checkpoint(&mut self, name: &VChannel, before: Option<Tso>, after: Option<Tso>) {
        if before == after {
            return;
        }
        if let Some(tso) = before {
            self.checkpoints.remove(&(tso, name.clone()));
        }
        if let Some(tso) = after.filter(|tso| tso.time().is_some()) {
            self.checkpoints.insert((tso, name.clone()));
        }
    }
}
