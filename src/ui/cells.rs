//! A typed cell as text, and where it stands in its column.

use crate::engine::ids::MetaKey;
use crate::engine::model::resource::{self, Cell, Kind, KindSpec, RowId, Tone, Unit};

use super::text;

/// The registry's entry of a kind.
#[must_use]
pub fn spec(kind: Kind) -> &'static KindSpec {
    kind.spec()
}

/// The cell of a row.
#[must_use]
pub fn cell(view: &resource::View<'_>, id: &RowId, column: usize) -> Cell {
    resource::cell(view, id, column)
}

/// As it reads on screen.
#[must_use]
pub fn plain(cell: &Cell) -> String {
    match cell {
        // The `T` and the `Z` are noise in a column whose header says UTC.
        Cell::Time(at) => at.utc().replace('T', " ").trim_end_matches('Z').to_owned(),
        other => resource::text(other).into_owned(),
    }
}

/// Cells it takes.
#[must_use]
pub fn width(cell: &Cell) -> u16 {
    match cell {
        Cell::None => 0,
        Cell::Text(t) | Cell::State(t, _) => text::width(t),
        Cell::Shared(t) => text::width(t),
        other => text::width(&plain(other)),
    }
}

/// How serious.
#[must_use]
pub const fn tone(cell: &Cell) -> Tone {
    match cell {
        Cell::State(_, tone) => *tone,
        _ => Tone::Plain,
    }
}

/// Whether a column's values stand at the right.
#[must_use]
pub const fn right(unit: Unit) -> bool {
    matches!(unit, Unit::Id | Unit::Count | Unit::Bytes | Unit::Age)
}

/// Every row that has this id, or that is this key: one number may be a segment and a collection.
#[must_use]
pub fn find(view: &resource::View<'_>, typed: &str) -> Vec<RowId> {
    let mut out = Vec::new();
    let mut offer = |id: RowId| {
        if resource::row(view, &id).is_some() {
            out.push(id);
        }
    };
    if let Ok(n) = typed.parse::<i64>() {
        offer(RowId::Collection(n.into()));
        offer(RowId::Segment(n.into()));
        offer(RowId::Snapshot(n.into()));
        offer(RowId::Job(n.into()));
        offer(RowId::Broadcast(n.into()));
        offer(RowId::SegmentIndex(n.into()));
        offer(RowId::Replica(n.into()));
        offer(RowId::Database(n.into()));
        // Partitions and indexes are known by their collection, too.
        let c = view.catalog;
        for (collection, id) in c.partitions.keys().filter(|(_, p)| p.0 == n) {
            offer(RowId::Partition(*collection, *id));
        }
        for (collection, id) in c.indexes.keys().filter(|(_, i)| i.0 == n) {
            offer(RowId::Index(*collection, *id));
        }
    }
    offer(RowId::Channel(typed.to_owned()));
    offer(RowId::Key(MetaKey::from(typed)));
    out
}
