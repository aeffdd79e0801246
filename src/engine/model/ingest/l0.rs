//! L0 segments of a channel: how many, how large, since when. Kept with every change, so that a list of channels walks no segments.

use std::sync::Arc;

use imbl::OrdSet;

use crate::engine::ids::{SegmentId, Tso};
use crate::engine::model::catalog::{Catalog, SegmentKey};
use crate::engine::model::data::Segment;

/// Of one channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::engine::model) struct L0s {
    /// Those with a position, oldest first.
    placed: OrdSet<(Tso, SegmentKey)>,
    segments: usize,
    bytes: u64,
}

/// Their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L0 {
    /// How many.
    pub segments: usize,
    /// Bytes of their logs, as recorded.
    pub bytes: u64,
    /// The oldest position, and whose it is.
    pub oldest: Option<(Tso, SegmentId)>,
}

impl L0s {
    pub(in crate::engine::model) fn sum(&self) -> L0 {
        L0 {
            segments: self.segments,
            bytes: self.bytes,
            oldest: self.placed.get_min().map(|(at, key)| (*at, key.0)),
        }
    }
}

impl Catalog {
    /// Adds a segment to its channel's L0s, or takes it off.
    pub(super) fn note_l0(&mut self, key: SegmentKey, s: &Segment, add: bool) {
        if !s.is_written_l0() {
            return;
        }
        let channel: Arc<str> = s.channel.clone();
        let slot = self.l0_on.entry(channel.clone()).or_default();
        let at = s.first_position();
        if add {
            slot.segments += 1;
            slot.bytes = slot.bytes.wrapping_add(s.bytes());
            if at != Tso::UNSET {
                slot.placed.insert((at, key));
            }
        } else {
            slot.segments -= 1;
            slot.bytes = slot.bytes.wrapping_sub(s.bytes());
            slot.placed.remove(&(at, key));
        }
        if slot.segments == 0 {
            self.l0_on.remove(&channel);
        }
    }
}
