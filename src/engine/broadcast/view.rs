//! What a screen shows of the unfinished tasks.

use super::{Cell, Inner, State};
use crate::engine::error::ErrorKind;
use crate::engine::ids::{Tso, VChannel};
use crate::engine::model::broadcast::{Shown, Waiting};

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
            let own = task.id();
            let held = state.tasks.iter().filter(|(id, other)| {
                // Our own is locked here.
                **id != own
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
            unrecoverable: doing
                .error
                .as_ref()
                .is_some_and(|(place, _, e)| *place == "append" && incurable(e.kind())),
            since: cell.note.since,
            job: cell.note.job,
            blocks: cell.turn.map_or(0, |turn| state.keys.waiting_for(turn)),
        }
    }
}

/// What stays as it is however often one tries.
const fn incurable(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Internal
    )
}
