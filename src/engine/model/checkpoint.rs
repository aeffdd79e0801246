//! The rules of a channel checkpoint (`spec/lifecycle.md` §3): the position below which everything of a virtual channel is in objects.
//! Pure; `engine::wal::checkpoints` stores them.
//!
//! The delete checkpoint of a channel's view is another thing, computed from its L0 segments and never stored here.

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::message::id_of;
use crate::engine::format::pb::common::WalName;
use crate::engine::format::pb::msg::MsgPosition;
use crate::engine::format::position::is_dropped;
use crate::engine::ids::{MessageId, Tso, VChannel};

/// Whether `new` replaces `old` (rule 1): a later time, or the same time at another message. The mark of a dropped channel is later
/// than every time, so it stays. `Invalid` for a position that is none.
pub fn accepts(old: Option<&MsgPosition>, new: &MsgPosition) -> Result<bool> {
    let bad = |what: &str| {
        Error::new(ErrorKind::Invalid, format!("a checkpoint {what}"))
            .with("channel", &new.channel_name)
    };
    if new.channel_name.is_empty() {
        return Err(bad("without a channel"));
    }
    if new.timestamp == 0 {
        return Err(bad("without a time"));
    }
    if new.msg_id.is_empty() && !is_dropped(new) && new.wal_name() != WalName::WoodPecker {
        return Err(bad("without a message id"));
    }
    Ok(match old {
        None => true,
        Some(old) => {
            old.timestamp < new.timestamp
                || (old.timestamp == new.timestamp && !is_dropped(old) && old.msg_id != new.msg_id)
        }
    })
}

/// The mark of a dropped channel.
#[must_use]
pub fn dropped(channel: &VChannel) -> MsgPosition {
    MsgPosition {
        channel_name: channel.0.clone(),
        timestamp: Tso::DROPPED.0,
        ..MsgPosition::default()
    }
}

/// Whether everything up to `tick` is in objects: the checkpoint has reached it, or the channel is dropped (rule 9).
#[must_use]
pub fn reached(checkpoint: Option<&MsgPosition>, tick: Tso) -> bool {
    checkpoint.is_some_and(|cp| is_dropped(cp) || (cp.timestamp != 0 && cp.timestamp >= tick.0))
}

/// Not beyond what a growing segment still lacks (rule 3): the smaller of the two. Unset positions and marks hold nothing back.
#[must_use]
pub fn clamped(new: MsgPosition, unsynced: Option<MsgPosition>) -> MsgPosition {
    match unsynced.filter(|p| p.timestamp != 0 && !is_dropped(p)) {
        Some(earliest) if earliest.timestamp < new.timestamp => MsgPosition {
            channel_name: new.channel_name,
            ..earliest
        },
        _ => new,
    }
}

/// What the channels of a log say about cutting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing below this message.
    From(MessageId),
    /// Nothing at all: dropped.
    Nothing,
    /// Everything: no checkpoint, or one whose message is not of our log.
    Everything,
}

/// What a channel with this checkpoint needs of its log.
#[must_use]
pub fn need(checkpoint: Option<&MsgPosition>) -> Need {
    match checkpoint {
        Some(cp) if is_dropped(cp) => Need::Nothing,
        Some(cp) if cp.wal_name() == WalName::RocksMq => {
            id_of(cp).map_or(Need::Everything, |id| Need::From(MessageId(id.0 + 1)))
        }
        _ => Need::Everything,
    }
}

/// Below which message a log may be cut, `end` being its end; `None` when nothing may go (law 5).
#[must_use]
pub fn cut_below(needs: impl IntoIterator<Item = Need>, end: MessageId) -> Option<MessageId> {
    needs.into_iter().try_fold(end, |below, need| match need {
        // Beyond the end: a position on another log that had the channel before, e.g. a restored one's.
        Need::From(id) if id > end => None,
        Need::From(id) => Some(below.min(id)),
        Need::Nothing => Some(below),
        Need::Everything => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::message::position;
    use proptest::prelude::*;

    fn at(tick: u64, id: i64) -> MsgPosition {
        position(&"p_7v0".into(), MessageId(id), Tso(tick))
    }

    fn any_position() -> impl Strategy<Value = MsgPosition> {
        prop_oneof![
            (1..20_u64, 1..5_i64).prop_map(|(tick, id)| at(tick, id)),
            Just(dropped(&"p_7v0".into())),
        ]
    }

    proptest! {
        /// I3.1 and I3.2, for any order of updates and drops.
        #[test]
        fn stored_times_never_fall_and_dropped_stays(all in proptest::collection::vec(any_position(), 1..40)) {
            let mut held: Option<MsgPosition> = None;
            let mut was_dropped = false;
            for new in all {
                was_dropped |= is_dropped(&new);
                let before = held.as_ref().map_or(0, |h| h.timestamp);
                if accepts(held.as_ref(), &new).unwrap() {
                    held = Some(new);
                }
                prop_assert!(held.as_ref().unwrap().timestamp >= before);
                prop_assert_eq!(is_dropped(held.as_ref().unwrap()), was_dropped);
            }
        }
    }

    #[test]
    fn what_is_no_position_is_refused() {
        let mut p = at(5, 1);
        p.msg_id.clear();
        assert!(accepts(None, &p).is_err());
        p.wal_name = WalName::WoodPecker.into();
        assert!(accepts(None, &p).unwrap());
        p.channel_name.clear();
        assert!(accepts(None, &p).is_err());
        assert!(accepts(None, &at(0, 1)).is_err());
        assert!(!accepts(Some(&at(5, 1)), &at(5, 1)).unwrap());
        assert!(accepts(Some(&at(5, 1)), &at(5, 2)).unwrap());
    }

    #[test]
    fn marks_are_not_times() {
        let gone = dropped(&"p_7v0".into());
        assert!(reached(Some(&gone), Tso(9)) && !reached(None, Tso(0)));
        assert!(reached(Some(&at(9, 1)), Tso(9)) && !reached(Some(&at(8, 1)), Tso(9)));
        assert_eq!(clamped(at(9, 3), Some(gone.clone())), at(9, 3));
        assert_eq!(clamped(at(9, 3), Some(at(4, 1))), at(4, 1));
        let end = MessageId(50);
        assert_eq!(
            cut_below([need(Some(&gone)), need(Some(&at(9, 3)))], end),
            Some(MessageId(4))
        );
        assert_eq!(cut_below([need(Some(&gone))], end), Some(end));
        assert_eq!(cut_below([need(Some(&at(9, 49)))], end), Some(end));
        assert_eq!(cut_below([need(Some(&at(9, 50)))], end), None);
        assert_eq!(cut_below([need(None), need(Some(&at(9, 3)))], end), None);
        let mut other = at(9, 3);
        other.wal_name = WalName::Pulsar.into();
        assert_eq!(need(Some(&other)), Need::Everything);
    }
}
