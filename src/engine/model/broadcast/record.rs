//! A broadcast as its record tells of it (`streamingcoord-meta/broadcast-task/{id}`), whoever wrote it. More lenient than
//! [`Task`](super::Task), which acts: what cannot be read is named, the rest is shown.

use std::borrow::Cow;

use super::keys::ResourceKeys;
use crate::engine::format::broadcast::{about, broadcast_header, message_type};
use crate::engine::format::pb::messages::Message;
use crate::engine::format::pb::streaming::BroadcastTask;
use crate::engine::format::time::of_id;
use crate::engine::format::vchannel::{self, ChannelName};
use crate::engine::ids::{BroadcastId, CollectionId, MetaKey, MetaRev, Tso, UnixMs, VChannel};
use crate::engine::model::data::Enum;
use crate::engine::model::names;

/// `BroadcastTaskState` numbers (§II.1).
mod state {
    pub(super) const DONE: i32 = 2;
    pub(super) const REPLICATED: i32 = 4;
    pub(super) const TOMBSTONE: i32 = 5;
}

/// One channel of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The channel.
    pub channel: VChannel,
    /// The control channel, which has no data behind it.
    pub control: bool,
    /// Acknowledged at this tick; 0 in a record of an old version, which does not know it.
    pub acked: Option<Tso>,
}

/// A record.
#[derive(Clone, Debug, PartialEq)]
pub struct Broadcast {
    /// Its id.
    pub id: BroadcastId,
    /// Its type, as Milvus names it, or `type 77`.
    pub kind: Cow<'static, str>,
    /// `BroadcastTaskState`.
    pub state: Enum,
    /// Data channels are acked by their checkpoints.
    pub ack_sync_up: bool,
    /// What it excludes others from.
    pub keys: ResourceKeys,
    /// Where it goes, in the order of its header.
    pub targets: Vec<Target>,
    /// The collection that it is about.
    pub collection: Option<CollectionId>,
    /// Name of the snapshot, the index or the alias that it is about.
    pub about: Option<String>,
    /// When its id was allocated: before its first append. `None` for an id that no allocator gave.
    pub begun: Option<UnixMs>,
    /// What of it cannot be read.
    pub damage: Vec<&'static str>,
    /// The key.
    pub key: MetaKey,
    /// Newest revision.
    pub rev: MetaRev,
}

impl Broadcast {
    /// From a decoded record and its key.
    #[must_use]
    pub fn read(id: u64, task: &BroadcastTask, key: MetaKey, rev: MetaRev) -> Self {
        let mut damage = Vec::new();
        let none = Message::default();
        let message = task.message.as_ref().unwrap_or_else(|| {
            damage.push("it has no message");
            &none
        });
        let kind = match message_type(message) {
            Some(Ok(kind)) => Cow::Borrowed(kind.as_str_name()),
            Some(Err(number)) => Cow::Owned(format!("type {number}")),
            None => Cow::Borrowed(""),
        };
        let header = broadcast_header(message);
        if header.is_none() && task.message.is_some() {
            damage.push("its message has no broadcast header");
        }
        let header = header.unwrap_or_default();
        if header.broadcast_id != id && damage.is_empty() {
            damage.push("its message has another id");
        }
        let targets: Vec<Target> = header
            .vchannels
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let tick = task.acked_checkpoints.get(i).map_or(0, |c| c.time_tick);
                let bit = task.acked_vchannel_bitmap.get(i).is_some_and(|b| *b != 0);
                Target {
                    channel: VChannel(name.clone()),
                    control: matches!(ChannelName::parse(name), ChannelName::Control { .. }),
                    acked: (bit || tick != 0).then_some(Tso(tick)),
                }
            })
            .collect();
        if targets.is_empty() && damage.is_empty() {
            damage.push("it names no channel");
        }
        let about = about(message);
        let collection = about.collection.map(CollectionId).or_else(|| {
            let mut channels = targets.iter();
            channels.find_map(|t| vchannel::collection(&t.channel))
        });
        Self {
            id: BroadcastId(id.cast_signed()),
            kind,
            state: names::broadcast_state(task.state),
            ack_sync_up: header.ack_sync_up,
            keys: ResourceKeys::from_pb(&header.resource_keys),
            targets,
            collection,
            about: about.name,
            begun: of_id(id.cast_signed()),
            damage,
            key,
            rev,
        }
    }

    /// Nothing of it is left to be done.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.state.number, state::TOMBSTONE | state::DONE)
    }

    /// It holds its keys. One that came from another cluster holds none (§II.6).
    #[must_use]
    pub const fn holds_keys(&self) -> bool {
        !self.is_over() && self.state.number != state::REPLICATED
    }

    /// How many channels have acknowledged it.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.targets.iter().filter(|t| t.acked.is_some()).count()
    }

    /// A tick of its message that is known: the copies of one broadcast are appended together.
    #[must_use]
    pub fn tick(&self) -> Option<Tso> {
        let ticks = self.targets.iter().filter_map(|t| t.acked);
        ticks.filter(|tick| tick.time().is_some()).max()
    }
}
