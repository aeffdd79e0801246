//! What reports do to a segment's record, as pure functions (`spec/lifecycle.md` §4, §I.1, §I.3).
//!
//! - **Idempotent.** A dropped segment stays dropped and a flushed one flushed, whatever is reported again or late.
//! - **Lossless.** The record is edited on the wire; what this version does not know stays in it (law 1).
//!
//! Not done here: a flushed segment is not hidden until it is sorted (§I.3 rule 4), because nothing here sorts it: it would stay hidden.

use prost::Message as _;

use crate::engine::format::pb::common::SegmentState;
use crate::engine::format::pb::data::{FieldBinlog, SegmentInfo, SegmentLevel};
use crate::engine::format::wire::{Malformed, Patch};
use crate::engine::ids::UnixNs;

/// Fields of `SegmentInfo`.
const ROWS: u32 = 5;
const STATE: u32 = 6;
const DROPPED_AT: u32 = 16;

/// Whether the segment is a left-over of the old architecture (§4 rules 1 and 3): allocated by a data coordinator, not by a log, and
/// neither flushed nor dropped. One without a position is one too: empty, and allocated. Nobody but the next owner of its channel will
/// ever finish it; *Flushing* included (§I.3 rule 12, #43559).
#[must_use]
pub fn is_left_over(info: &SegmentInfo) -> bool {
    let open = matches!(
        info.state(),
        SegmentState::Growing | SegmentState::Sealed | SegmentState::Flushing
    );
    open && !info.is_created_by_streaming
        && !info.is_importing
        && !info.is_fake
        && info.level() != SegmentLevel::L0
}

/// Rows that the insert logs hold: those of the field whose list is complete. A record counts rows in memory too.
#[must_use]
pub fn rows(logs: &[FieldBinlog]) -> i64 {
    let entries = |field: &FieldBinlog| field.binlogs.iter().map(|log| log.entries_num).sum();
    logs.iter().map(entries).max().unwrap_or(0)
}

/// What is reported of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// All of it is in objects.
    Flushed,
    /// It is not needed any more.
    Dropped,
}

/// The record after a report; `None` when the report changes nothing. `logs` are the insert logs that stand beside the record, `at` is
/// the moment of a drop. Without rows a flushed segment is dropped at once (§I.3 rule 9): an empty flush leaves no object.
pub fn reported(
    stored: &[u8],
    logs: &[FieldBinlog],
    report: Report,
    at: UnixNs,
) -> Result<Option<Vec<u8>>, Malformed> {
    let bad = |_| Malformed {
        offset: 0,
        reason: "no segment record",
    };
    let info = SegmentInfo::decode(stored).map_err(bad)?;
    let changes = match info.state() {
        SegmentState::Growing | SegmentState::Sealed | SegmentState::Flushing => true,
        SegmentState::Flushed => report == Report::Dropped,
        // An import or a restore ends what it fills by itself; dropped is for good; what has no state is none of ours.
        _ => false,
    };
    if !changes || info.is_importing {
        return Ok(None);
    }
    // A list in the record itself is of the oldest layout; a manifest tells rows that no list does.
    let counted = rows(&info.binlogs).max(rows(logs));
    let counted = if info.manifest_path.is_empty() {
        counted
    } else {
        counted.max(info.num_of_rows)
    };
    let empty = info.level() != SegmentLevel::L0 && counted == 0;
    let mut patch = Patch::parse(stored)?;
    if report == Report::Dropped || empty {
        patch.set_integer(STATE, SegmentState::Dropped as u64);
        patch.set_integer(DROPPED_AT, at.0.max(1).cast_unsigned());
    } else {
        patch.set_integer(STATE, SegmentState::Flushed as u64);
        patch.set_integer(ROWS, counted.cast_unsigned());
    }
    Ok(Some(patch.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::pb::data::Binlog;
    use proptest::prelude::*;

    fn field(entries: &[i64]) -> FieldBinlog {
        let log = |n: &i64| Binlog {
            entries_num: *n,
            ..Binlog::default()
        };
        FieldBinlog {
            binlogs: entries.iter().map(log).collect(),
            ..FieldBinlog::default()
        }
    }

    proptest! {
        /// Any record, any reports in any order and number: dropped stays, flushed goes nowhere but to dropped, unknown fields stay,
        /// and the same report again is nothing.
        #[test]
        fn reports_are_idempotent_and_lossless(
            state in 0_i32..9, level in 0_i32..4, importing: bool, streaming: bool,
            entries in proptest::collection::vec(0_i64..50, 0..3),
            reports in proptest::collection::vec((any::<bool>(), 1_i64..1000), 1..5),
        ) {
            let info = SegmentInfo {
                id: 1, state, level, is_importing: importing, is_created_by_streaming: streaming, num_of_rows: 7,
                ..SegmentInfo::default()
            };
            let mut patch = Patch::parse(&[]).unwrap();
            patch.set_integer(9999, 42);
            let mut stored = [info.encode_to_vec(), patch.finish()].concat();
            let logs = [field(&entries)];
            for (drops, at) in reports {
                let report = if drops { Report::Dropped } else { Report::Flushed };
                let before = SegmentInfo::decode(&*stored).unwrap();
                let Some(next) = reported(&stored, &logs, report, UnixNs(at)).unwrap() else { continue };
                prop_assert!(before.state != SegmentState::Dropped as i32);
                prop_assert!(!importing);
                let after = SegmentInfo::decode(&*next).unwrap();
                prop_assert!(!is_left_over(&after));
                prop_assert_eq!(Patch::parse(&next).unwrap().integer(9999), Some(42));
                if after.state() == SegmentState::Flushed {
                    prop_assert_eq!(after.num_of_rows, entries.iter().sum::<i64>());
                    prop_assert!(before.state() != SegmentState::Flushed);
                } else {
                    prop_assert_eq!(after.dropped_at, at.cast_unsigned());
                }
                prop_assert_eq!(reported(&next, &logs, report, UnixNs(at + 1)).unwrap(), None);
                stored = next;
            }
        }
    }
}
