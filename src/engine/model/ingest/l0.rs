//! L0 segments of a channel: how many, how large, since when. Kept with every change, so that a list of channels walks no segments.

use std::sync::Arc;

use imbl::OrdSet;

use crate::engine::ids::{SegmentId, Tso};
use crate::engine::model::catalog::{Catalog, SegmentKey};
use crate::engine::model::data::Segment;
use crate::engine::model::totals::state;

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

/// Written and visible, so that a view names it: what `view::channel_view` calls level zero.
fn counts(s: &Segment) -> bool {
    let written = matches!(s.state.number, state::FLUSHED | state::FLUSHING);
    let placed = s.start != Tso::UNSET || s.dml != Tso::UNSET || s.insert.files + s.delta.files > 0;
    s.is_l0() && s.scope().is_some() && written && placed && !s.invisible && !s.importing && !s.fake
}

impl Catalog {
    /// Adds a segment to its channel's L0s, or takes it off.
    pub(super) fn note_l0(&mut self, key: SegmentKey, s: &Segment, add: bool) {
        if !counts(s) {
            return;
        }
        let channel: Arc<str> = s.channel.clone();
        let slot = self.l0_on.entry(channel.clone()).or_default();
        let at = if s.start == Tso::UNSET {
            s.dml
        } else {
            s.start
        };
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
