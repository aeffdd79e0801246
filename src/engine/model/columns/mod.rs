//! The columns of every kind, each beside the expression that fills it, so that a header and its value cannot drift apart.

pub(super) mod aside;
pub(super) mod broadcasts;
pub(super) mod data;
pub(super) mod root;
pub(super) mod tasks;

use std::sync::Arc;

use crate::engine::ids::{CollectionId, Tso, UnixMs};

use super::resource::{Cell, RowId, Tone};
use super::rows::{RowRef, View, row};

/// A column's name: `type` has to be written `r#type` in Rust.
const fn name(id: &'static str) -> &'static str {
    match id.as_bytes() {
        [b'r', b'#', ..] => id.split_at(2).1,
        _ => id,
    }
}

/// Declares a kind's columns and their readers.
macro_rules! columns {
    ($table:ident, $get:ident, $ty:ty: $($id:ident $title:literal $unit:ident $width:tt $($wide:ident)? $help:literal => $read:expr;)*) => {
        pub(in crate::engine::model) const $table: &[Column] = &[$(Column {
            id: super::name(stringify!($id)),
            title: $title,
            unit: Unit::$unit,
            width: $width,
            wide: columns!(@wide $($wide)?),
            help: $help,
        }),*];

        pub(in crate::engine::model) fn $get(view: &View<'_>, row: &$ty, column: usize) -> Cell {
            const READ: &[fn(&View<'_>, &$ty) -> Cell] = &[$($read),*];
            READ.get(column).map_or(Cell::None, |read| read(view, row))
        }
    };
    (@wide wide) => { true };
    (@wide) => { false };
}
use columns;

/// The value of a row in a column of its kind; [`Cell::None`] when the row has gone.
#[must_use]
pub fn cell(view: &View<'_>, id: &RowId, column: usize) -> Cell {
    row(view, id).map_or(Cell::None, |row| cell_of(view, row, column))
}

/// As [`cell`], for a row at hand.
#[must_use]
pub fn cell_of(view: &View<'_>, row: RowRef<'_>, column: usize) -> Cell {
    match row {
        RowRef::Database(r) => root::database(view, r, column),
        RowRef::Collection(r) => root::collection(view, r, column),
        RowRef::Leftover(id) => root::leftover(view, id, column),
        RowRef::Partition(r) => root::partition(view, r, column),
        RowRef::Alias(r) => root::alias(view, r, column),
        RowRef::Segment(r) => data::segment(view, r, column),
        RowRef::Channel(r) => data::channel(view, r, column),
        RowRef::Index(r) => data::index(view, r, column),
        RowRef::SegmentIndex(r) => data::build(view, r, column),
        RowRef::Snapshot(r) => tasks::snapshot(view, r, column),
        RowRef::Job(r) => tasks::job(view, r, column),
        RowRef::Ticket(r) => aside::ticket(view, r, column),
        RowRef::Quarantine(r) => aside::quarantine(view, r, column),
        RowRef::Broadcast(r) => broadcasts::broadcast(view, r, column),
        RowRef::Task(r) => tasks::task(view, r, column),
        RowRef::Session(r) => tasks::session(view, r, column),
        RowRef::Replica(r) => tasks::replica(view, r, column),
        RowRef::Config(r) => tasks::config(view, r, column),
        RowRef::Undecodable(r) => tasks::undecodable(view, r, column),
        RowRef::Key(key, meta) => tasks::key(view, &(key, meta), column),
    }
}

fn id(n: i64) -> Cell {
    Cell::Id(n)
}

fn count(n: impl TryInto<i64>) -> Cell {
    Cell::Count(n.try_into().unwrap_or(i64::MAX))
}

fn text(t: impl Into<String>) -> Cell {
    let t: String = t.into();
    if t.is_empty() {
        Cell::None
    } else {
        Cell::Text(t.into())
    }
}

fn shared(t: &Arc<str>) -> Cell {
    Cell::Shared(t.clone())
}

fn state(text: impl Into<std::borrow::Cow<'static, str>>, tone: Tone) -> Cell {
    Cell::State(text.into(), tone)
}

/// A moment; sentinels and the future show nothing (law 10).
fn time(tso: Tso) -> Cell {
    tso.time().map_or(Cell::None, Cell::Time)
}

fn age(view: &View<'_>, since: Option<UnixMs>) -> Cell {
    since.map_or(Cell::None, |since| Cell::Age(view.now.since(since)))
}

/// Badges in a cell, as serious as the worst.
fn badge_cell(badges: impl IntoIterator<Item = &'static super::badges::Badge>) -> Cell {
    let (names, tones): (Vec<&str>, Vec<Tone>) =
        badges.into_iter().map(|b| (b.name, b.tone)).unzip();
    let worst = tones.into_iter().max();
    worst.map_or(Cell::None, |tone| state(names.join(" · "), tone))
}

fn collection_cell(view: &View<'_>, id: CollectionId) -> Cell {
    if id.0 == 0 {
        return Cell::None;
    }
    match view.catalog.collections.get(&id) {
        Some(c) => Cell::Shared(c.name.clone()),
        None => text(format!("{id} (gone)")),
    }
}

/// The tone of a state by Milvus's own word for it.
fn tone(name: &str) -> Tone {
    match name {
        "Created" | "Flushed" | "Finished" | "Committed" | "Loaded" | "Completed" | "completed"
        | "DONE" | "NORMAL" | "ASSIGNED" | "WatchSuccess" | "ImportCompleted" => Tone::Good,
        "Dropped" | "cleaned" | "None" | "TOMBSTONE" | "DROPPED" => Tone::Dim,
        "Failed" | "failed" | "timeout" | "WatchFailure" | "FailedAndCleaned" => Tone::Bad,
        "Dropping" | "Deleting" | "Retry" | "NotExist" | "" | "Unknown" | "UNKNOWN"
        | "Uncommitted" | "UNINITIALIZED" | "UNAVAILABLE" => Tone::Warn,
        _ => Tone::Busy,
    }
}

fn named(e: super::data::Enum) -> Cell {
    state(e.text(), tone(e.name))
}
