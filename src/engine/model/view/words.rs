//! A channel's view in words and in JSON.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{ChannelView, Seek};
use crate::engine::ids::{SegmentId, Tso, UnixMs};
use crate::engine::model::resource::{Cell, Tone};

/// Ids that fit on a line; the rest is counted.
const SHOWN: usize = 6;

fn some(ids: &BTreeSet<SegmentId>) -> String {
    let mut text: Vec<String> = ids.iter().take(SHOWN).map(ToString::to_string).collect();
    if ids.len() > SHOWN {
        text.push(format!("and {} more", ids.len() - SHOWN));
    }
    text.join(", ")
}

fn counted(ids: &BTreeSet<SegmentId>) -> Cell {
    Cell::Text(match ids.len() {
        0 => "none".into(),
        n => format!("{n}: {}", some(ids)).into(),
    })
}

impl Seek {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Checkpoint(_) => "its checkpoint",
            Self::Segments(_) => "the oldest position of its segments, it has no checkpoint",
            Self::Start => "the collection's start, it has no position of its own",
            Self::Dropped => "nowhere: the channel is dropped",
            Self::NotAvailable => "nowhere: it has no position yet (ErrChannelNotAvailable)",
        }
    }
}

impl ChannelView {
    /// Lines for a detail view. What is wrong comes first.
    #[must_use]
    pub fn lines(&self) -> Vec<(String, Cell)> {
        let mut out = Vec::new();
        for (id, with) in &self.twice {
            let text = format!("rows of {id} also in {}", some(with));
            out.push(("SERVED TWICE".into(), Cell::State(text.into(), Tone::Bad)));
        }
        if !self.cyclic.is_empty() {
            let text = format!("own ancestors: {}", some(&self.cyclic));
            out.push(("damaged".into(), Cell::State(text.into(), Tone::Bad)));
        }
        out.push(("sealed".into(), counted(&self.flushed)));
        out.push(("as growing".into(), counted(&self.growing)));
        out.push(("deletes (L0)".into(), counted(&self.level_zero)));
        if !self.hidden.is_empty() {
            out.push(("hidden".into(), counted(&self.hidden)));
        }
        if !self.retrieved.is_empty() {
            let ids: BTreeSet<SegmentId> = self.retrieved.keys().copied().collect();
            out.push(("for children".into(), counted(&ids)));
        }
        for (id, why) in self.kept.iter().take(SHOWN) {
            let text = format!("{id}: {why}");
            out.push(("no index".into(), Cell::Text(text.into())));
        }
        if self.kept.len() > SHOWN {
            let text = format!("and {} more", self.kept.len() - SHOWN);
            out.push(("no index".into(), Cell::Text(text.into())));
        }
        out.push(("read from".into(), Cell::Text(self.seek.words().into())));
        if let Some(at) = self.delete_checkpoint.time() {
            out.push(("delete checkpoint".into(), Cell::Time(at)));
        }
        if let Some(gap) = self.gap() {
            out.push(("delete gap".into(), Cell::Age(gap)));
        }
        out
    }

    /// How far the delete checkpoint is behind the position that reading begins at, ms. Nothing where either is no time, or it is ahead.
    #[must_use]
    pub fn gap(&self) -> Option<u64> {
        let from = self.seek.time()?.time()?;
        let gap = from.since(self.delete_checkpoint.time()?);
        (gap > 0).then_some(gap)
    }

    /// As `falconer get channel -o json` has it.
    #[must_use]
    pub fn json(&self) -> Value {
        let ids = |set: &BTreeSet<SegmentId>| -> Vec<String> {
            set.iter().map(ToString::to_string).collect()
        };
        let at = |tso: Tso| tso.time().map(UnixMs::utc);
        let kept: serde_json::Map<String, Value> = self
            .kept
            .iter()
            .map(|(id, why)| (id.to_string(), why.to_string().into()))
            .collect();
        let twice: serde_json::Map<String, Value> = self
            .twice
            .iter()
            .map(|(id, with)| (id.to_string(), ids(with).into()))
            .collect();
        json!({
            "flushed": ids(&self.flushed),
            "growing": ids(&self.growing),
            "dropped": ids(&self.dropped),
            "level_zero": ids(&self.level_zero),
            "hidden": ids(&self.hidden),
            "served_for_children": self.retrieved.keys().map(ToString::to_string).collect::<Vec<_>>(),
            "without_index": kept,
            "served_twice": twice,
            "cyclic": ids(&self.cyclic),
            "seek_from": self.seek.words(),
            "seek": self.seek.time().and_then(at),
            "delete_checkpoint": at(self.delete_checkpoint),
        })
    }
}
