//! An unfinished task as a screen shows it (§II.8).

use std::collections::BTreeMap;
use std::fmt;

use super::keys::ResourceKeys;
use crate::engine::error::Error;
use crate::engine::ids::{BroadcastId, JobId, Tso, UnixMs, VChannel};
use crate::engine::model::text::age;

/// What a task waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Its message is not on this channel yet.
    Append(VChannel, Option<String>),
    /// The channel's checkpoint has not reached the message.
    Checkpoint {
        /// The channel that is farthest behind.
        channel: VChannel,
        /// The message's tick.
        tick: Tso,
        /// The channel's checkpoint; `None` = it has none.
        at: Option<Tso>,
    },
    /// The message has not come out of this channel's log, or its callback has not succeeded.
    Ack(VChannel, Option<String>),
    /// An earlier callback that shares a key.
    Order(Vec<BroadcastId>),
    /// Its callback, which has failed this often.
    Callback(u32, Option<String>),
    /// Its record, which the store does not take.
    Record(String),
    /// Somebody who looks at it: it does not go on by itself.
    Stopped(String),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = |f: &mut fmt::Formatter<'_>, why: &Option<String>| match why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        };
        match self {
            Self::Append(channel, why) => {
                write!(f, "append to {channel}")?;
                because(f, why)
            }
            Self::Checkpoint { channel, tick, at } => {
                write!(f, "checkpoint of {channel}")?;
                match (at.and_then(Tso::time), tick.time()) {
                    (Some(at), Some(tick)) => {
                        write!(f, ", {} behind", age(tick.since(at)))
                    }
                    _ => f.write_str(", which has none"),
                }
            }
            Self::Ack(channel, why) => {
                write!(f, "acknowledgement of {channel}")?;
                because(f, why)
            }
            Self::Order(before) => {
                f.write_str("callback of broadcast ")?;
                let ids: Vec<String> = before.iter().map(ToString::to_string).collect();
                f.write_str(&ids.join(", "))
            }
            Self::Callback(failed, why) => {
                write!(f, "callback, attempt {}", failed.saturating_add(1))?;
                because(f, why)
            }
            Self::Record(why) => write!(f, "its record: {why}"),
            Self::Stopped(why) => write!(f, "repair: {why}"),
        }
    }
}

/// An unfinished task, for the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub id: BroadcastId,
    /// Its type, as Milvus names it; empty for one without a name here.
    pub kind: String,
    /// What it holds.
    pub keys: ResourceKeys,
    /// Data channels are acked by their checkpoints.
    pub ack_sync_up: bool,
    /// Each channel: whether it is appended, whether it is acked.
    pub channels: Vec<(VChannel, bool, bool)>,
    /// What it waits for, from the first moment.
    pub waiting: Waiting,
    /// Tries of the current step that failed.
    pub retries: u32,
    /// An append fails for a reason that trying again does not cure.
    pub unrecoverable: bool,
    /// Begin.
    pub since: UnixMs,
    /// Job that asked for it; 0 when a Milvus did.
    pub job: JobId,
    /// Operations that wait for its keys.
    pub blocks: usize,
}

/// The broadcaster of a root as a screen shows it.
#[derive(Clone, Debug, Default)]
pub struct BroadcastsView {
    /// This process runs it. Otherwise the records of the catalog are all there is to see.
    pub open: bool,
    /// Unfinished tasks, oldest first.
    pub tasks: Vec<Shown>,
    /// Logs whose messages cannot be taken in now, and why: their checkpoints stand still. By physical channel.
    pub troubles: BTreeMap<String, Error>,
    /// Finished tasks that are still remembered.
    pub tombstones: usize,
}
