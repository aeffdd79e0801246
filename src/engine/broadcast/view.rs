//! What a screen shows of the unfinished tasks (§II.8).

use std::fmt;

use super::{Cell, Inner, State};
use crate::engine::ids::{BroadcastId, JobId, Tso, UnixMs, VChannel};
use crate::engine::model::broadcast::ResourceKeys;

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
                        write!(f, ", {} ms behind the message", tick.since(at))
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
    /// Begin.
    pub since: UnixMs,
    /// Job that asked for it; 0 when a Milvus did.
    pub job: JobId,
    /// Operations that wait for its keys.
    pub blocks: usize,
}

impl Inner {
    pub(super) fn shown(&self) -> Vec<Shown> {
        let state = self.state();
        state
            .tasks
            .values()
            .map(|cell| self.show(&state, cell))
            .collect()
    }

    fn show(&self, state: &State, cell: &Cell) -> Shown {
        let doing = super::lock(&cell.doing).clone();
        let task = cell.task();
        let error = |at: &str, channel: Option<&VChannel>| {
            let (place, of, e) = doing.error.as_ref()?;
            (*place == at && of.as_ref() == channel).then(|| e.to_string())
        };
        let missing = task.to_append().first().map(|i| &task.copies()[*i].channel);
        let behind = || {
            let waits = task
                .copies()
                .iter()
                .filter(|c| task.ack_sync_up() && !c.control && c.acked.is_none());
            let waits = waits.filter_map(|c| {
                let (_, tick) = c.appended?;
                (!self.parts.checkpoints.reached(&c.channel, tick)).then(|| {
                    let at = self
                        .parts
                        .checkpoints
                        .get(&c.channel)
                        .map(|p| Tso(p.timestamp));
                    (at, &c.channel, tick)
                })
            });
            waits.min()
        };
        let unacked = task.copies().iter().find(|c| c.acked.is_none());
        let waiting = if let Some(why) = error("stopped", None) {
            Waiting::Stopped(why)
        } else if let Some(why) = error("record", None) {
            Waiting::Record(why)
        } else if let Some(channel) = missing {
            Waiting::Append(channel.clone(), error("append", Some(channel)))
        } else if let Some((at, channel, tick)) = behind() {
            Waiting::Checkpoint {
                channel: channel.clone(),
                tick,
                at,
            }
        } else if let Some(copy) = unacked {
            Waiting::Ack(copy.channel.clone(), error("ack", Some(&copy.channel)))
        } else if doing.calling {
            Waiting::Callback(doing.retries, error("callback", None))
        } else {
            let before = doing
                .order
                .into_iter()
                .flat_map(|turn| state.order.before(turn));
            let before: Vec<_> = before.map(|(turn, _)| turn).collect();
            let held = state.tasks.iter().filter(|(_, other)| {
                // Our own is locked here.
                !std::ptr::eq(&***other, cell)
                    && super::lock(&other.doing)
                        .order
                        .is_some_and(|o| before.contains(&o))
            });
            match held.map(|(id, _)| *id).collect::<Vec<_>>() {
                ids if ids.is_empty() => Waiting::Callback(doing.retries, None),
                ids => Waiting::Order(ids),
            }
        };
        Shown {
            id: task.id(),
            kind: task
                .kind()
                .map_or_else(String::new, |k| k.as_str_name().to_owned()),
            keys: task.keys(),
            ack_sync_up: task.ack_sync_up(),
            channels: task
                .copies()
                .iter()
                .map(|c| (c.channel.clone(), c.appended.is_some(), c.acked.is_some()))
                .collect(),
            waiting,
            retries: doing.retries,
            since: cell.note.since,
            job: cell.note.job,
            blocks: cell.turn.map_or(0, |turn| state.keys.waiting_for(turn)),
        }
    }
}
