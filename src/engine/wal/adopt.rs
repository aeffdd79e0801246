//! Beginning a log on a channel that another log has had before: a demo's or a restored collection's positions are those of the Milvus
//! that they come from.
//!
//! Our first message lies above all of them, by id and by time tick. So a checkpoint moves forward to it and never back, nothing that a
//! record still points at looks as if it were cut off, and what was written before is before every tick of ours.

use prost::Message as _;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::codec::is_tombstone;
use crate::engine::format::keys::{Family, Key, ParsedKey};
use crate::engine::format::message::id_of;
use crate::engine::format::pb::common::WalName;
use crate::engine::format::pb::data::SegmentInfo;
use crate::engine::format::pb::msg::MsgPosition;
use crate::engine::format::position::is_dropped;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{MessageId, Tso, UnixMs};
use crate::engine::meta::Span;
use crate::engine::model::log::Head;
use crate::engine::plan::execute::Executor;
use crate::engine::plan::retry::calm;

/// How far ahead of our clock a record's time may be. Ticks go above it and could never be taken back, so a clock that is wrong by more is
/// put right first.
const AHEAD_MS: i64 = 86_400_000;

/// The head of a log that begins. `Conflict` when a position on the channel is of a time to come.
pub(super) async fn head(executor: &Executor, pchannel: &str) -> Result<Head> {
    let (reader, clock, roots) = (executor.reader(), executor.clock(), executor.roots());
    let here = |name: &str| ChannelName::parse(name).pchannel() == pchannel;
    let mut positions: Vec<MsgPosition> = Vec::new();
    for family in [Family::ChannelCheckpoint, Family::Segment] {
        let span = Span::prefix(&family.prefix(roots));
        for kv in calm(&**clock, || reader.range_all(&span)).await?.kvs {
            if is_tombstone(family, &kv.value) {
                continue;
            }
            // One that cannot be read counts for nothing: nothing replaces it, nothing is dropped beside it, and it keeps the log whole.
            match Key::parse(roots, &kv.key.0) {
                ParsedKey::Known(Key::ChannelCheckpoint(v)) if here(&v.0) => {
                    positions.extend(MsgPosition::decode(&*kv.value));
                }
                ParsedKey::Known(Key::Segment(..)) => {
                    let info = SegmentInfo::decode(&*kv.value).unwrap_or_default();
                    if here(&info.insert_channel) {
                        positions.extend(info.start_position);
                        positions.extend(info.dml_position);
                    }
                }
                _ => {}
            }
        }
    }
    above(&positions, clock.now())
}

fn above(positions: &[MsgPosition], now: UnixMs) -> Result<Head> {
    let latest = Tso::from_ms(UnixMs(now.0.saturating_add(AHEAD_MS)));
    let times = positions.iter().filter(|p| !is_dropped(p));
    let tick = times.map(|p| Tso(p.timestamp)).max().unwrap_or(Tso::UNSET);
    if tick > latest {
        let at = tick.time().map_or_else(|| tick.0.to_string(), UnixMs::utc);
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("a position on the channel is of {at}, more than a day ahead of this machine's clock"),
        )
        .fix("correct the clock, or repair the record that says so: what is written now would lie before it"));
    }
    // Those of another kind of log are compared by time alone, and keep a log of ours whole until they have moved.
    let ids = positions
        .iter()
        .filter(|p| matches!(p.wal_name(), WalName::RocksMq | WalName::Unknown));
    let id = ids.filter_map(id_of).max().unwrap_or(MessageId(0));
    Head::above(id, tick)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::message::position;
    use crate::engine::model::checkpoint::{accepts, dropped};
    use proptest::prelude::*;

    proptest! {
        /// A message of ours moves every checkpoint on, whatever stood there; marks do not count, and what is ahead of us is refused.
        #[test]
        fn our_first_message_is_later_than_all(
            found in proptest::collection::vec((1..1_i64 << 60, 0..2_000_000_000_000_i64), 0..9),
            now in 0..2_000_000_000_000_i64,
        ) {
            let channel = "p_7v0".into();
            let mut all: Vec<MsgPosition> = found.iter().map(|(id, ms)| position(&channel, MessageId(*id), Tso::from_ms(UnixMs(*ms)))).collect();
            all.push(dropped(&channel));
            let latest = Tso::from_ms(UnixMs(now + AHEAD_MS));
            let ahead = all.iter().any(|p| !is_dropped(p) && Tso(p.timestamp) > latest);
            let Ok(head) = above(&all, UnixMs(now)) else {
                prop_assert!(ahead);
                return Ok(());
            };
            prop_assert!(!ahead);
            let (_, tick) = head.appended(1, UnixMs(now)).unwrap();
            let ours = position(&channel, head.next, tick);
            for before in all.iter().filter(|p| !is_dropped(p)) {
                prop_assert!(accepts(Some(before), &ours).unwrap());
                prop_assert!(id_of(before).unwrap() < head.first);
            }
        }
    }
}
