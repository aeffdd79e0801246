//! Which rows a list shows, in which order: computed off the draw path, cancelled when something newer is asked.
//! With `cells`, the only reader of the resource registry's rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::ids::UnixMs;
use crate::engine::model::broadcast::BroadcastsView;
use crate::engine::model::catalog::Catalog;
use crate::engine::model::columns::cell_of;
use crate::engine::model::jobs::JobsView;
use crate::engine::model::references::Index;
use crate::engine::model::resource::{self, Cell, Kind, RowId, Scope, Tone};

use super::cells;

/// Below this many rows a list is computed at once; above, on another thread.
pub const INLINE: usize = 20_000;

/// Everything that decides which rows there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Kind.
    pub kind: Kind,
    /// Limits.
    pub scope: Scope,
    /// Text that a row must hold; with `!` in front, must not hold.
    pub filter: String,
    /// Only rows with a state that is not well.
    pub faults: bool,
    /// Sort column and whether descending.
    pub sort: (usize, bool),
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The question.
    pub query: Query,
    /// Ids in order.
    pub ids: Arc<[RowId]>,
    /// Before the filter.
    pub of: usize,
    /// Cells that each column's widest sampled value takes.
    pub widths: Vec<u16>,
}

/// What is read.
#[derive(Clone)]
pub struct World {
    /// The read model.
    pub catalog: Arc<Catalog>,
    /// Our jobs.
    pub jobs: Arc<JobsView>,
    /// Broadcasts that this process drives.
    pub broadcasts: Arc<BroadcastsView>,
    /// What snapshots refer to.
    pub references: Arc<Index>,
    /// Time for ages.
    pub now: UnixMs,
}

impl World {
    /// As the registry wants it.
    #[must_use]
    pub fn view(&self) -> resource::View<'_> {
        resource::View {
            catalog: &self.catalog,
            jobs: &self.jobs,
            broadcasts: &self.broadcasts,
            references: &self.references,
            now: self.now,
        }
    }
}

/// A question on its way to a worker.
#[derive(Clone)]
pub struct Order {
    /// Which one: an answer to an older one is dropped.
    pub id: u64,
    /// What is read.
    pub world: World,
    /// What is asked.
    pub query: Query,
    /// Set when nobody wants the answer any more.
    pub cancel: Arc<AtomicBool>,
}

/// A filter as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    needle: String,
    inverse: bool,
    /// It holds a character that no number, size, age or moment is written with, so those need not be formatted.
    wordy: bool,
}

impl Filter {
    /// Reads `text` or `!text`; case does not matter.
    #[must_use]
    pub fn parse(typed: &str) -> Option<Self> {
        let (inverse, rest) = match typed.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, typed),
        };
        let needle = rest.trim().to_lowercase();
        let wordy = needle
            .chars()
            .any(|c| !c.is_ascii_digit() && !"+-.,: bdeghikmpst".contains(c));
        (!needle.is_empty()).then_some(Self {
            needle,
            inverse,
            wordy,
        })
    }

    /// Whether a row with these cells stays.
    pub fn keeps(&self, mut row: impl Iterator<Item = Cell>) -> bool {
        row.any(|cell| self.is_in(&cell)) != self.inverse
    }

    fn is_in(&self, cell: &Cell) -> bool {
        match cell {
            Cell::None => false,
            Cell::Text(t) | Cell::State(t, _) => self.is_part_of(t),
            Cell::Shared(t) => self.is_part_of(t),
            Cell::Id(_) | Cell::Count(_) | Cell::Bytes(_) | Cell::Time(_) | Cell::Age(_) => {
                !self.wordy && self.is_part_of(&cells::plain(cell))
            }
        }
    }

    fn is_part_of(&self, text: &str) -> bool {
        if !text.is_ascii() {
            return text.to_lowercase().contains(&self.needle);
        }
        text.as_bytes()
            .windows(self.needle.len())
            .any(|part| part.eq_ignore_ascii_case(self.needle.as_bytes()))
    }
}

/// Computes the rows; `None` when cancelled.
#[must_use]
pub fn compute(world: &World, query: &Query, cancel: &AtomicBool) -> Option<Rows> {
    let view = world.view();
    let columns = cells::spec(query.kind).columns.len();
    let sort = (query.sort.0 < columns).then_some(query.sort);
    let mut ids = resource::list(&view, query.kind, &query.scope, sort);
    let of = ids.len();
    let filter = Filter::parse(&query.filter);
    if query.faults || filter.is_some() {
        let mut at = 0;
        ids.retain(|id| {
            at += 1;
            if at % 4096 == 0 && cancel.load(Ordering::Relaxed) {
                return false;
            }
            let Some(row) = resource::row(&view, id) else {
                return false;
            };
            let cell = |c| cell_of(&view, row, c);
            (!query.faults || (0..columns).any(|c| unwell(&cell(c))))
                && filter
                    .as_ref()
                    .is_none_or(|f| f.keeps((0..columns).map(cell)))
        });
    }
    if cancel.load(Ordering::Relaxed) {
        return None;
    }
    let widths = sample_widths(&view, &ids, columns);
    Some(Rows {
        query: query.clone(),
        ids: ids.into(),
        of,
        widths,
    })
}

fn unwell(cell: &Cell) -> bool {
    matches!(cell, Cell::State(_, Tone::Warn | Tone::Bad))
}

/// Widest values among the first rows and a thin sample of the others: enough for columns that fit what is seen.
fn sample_widths(view: &resource::View<'_>, ids: &[RowId], columns: usize) -> Vec<u16> {
    let step = (ids.len() / 200).max(1);
    let sample = ids
        .iter()
        .take(100)
        .chain(ids.iter().skip(100).step_by(step));
    let mut widths = vec![0; columns];
    for id in sample {
        for (c, width) in widths.iter_mut().enumerate() {
            *width = (*width).max(cells::width(&cells::cell(view, id, c)));
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_substring_without_case_or_its_opposite() {
        let row = || {
            [
                Cell::Text("Books".into()),
                Cell::State("Flüssig".into(), Tone::Good),
                Cell::Count(1_234_567),
            ]
            .into_iter()
        };
        assert!(Filter::parse("OOK").is_some_and(|f| f.keeps(row())));
        assert!(Filter::parse("flüss").is_some_and(|f| f.keeps(row())));
        assert!(Filter::parse("!books").is_some_and(|f| !f.keeps(row())));
        assert!(Filter::parse("!growing").is_some_and(|f| f.keeps(row())));
        assert!(Filter::parse("zzz").is_some_and(|f| !f.keeps(row())));
        assert!(Filter::parse("34,5").is_some_and(|f| f.keeps(row())));
        assert_eq!(Filter::parse(""), None);
        assert_eq!(Filter::parse("! "), None);
    }

    /// A word filter skips numbers unread; that must never lose a match.
    #[test]
    fn no_number_is_written_with_a_letter_that_a_filter_takes_for_a_word() {
        let mut values = vec![0_u64, 1, 59, 60, 999, 3_600, 86_400, u64::MAX];
        values.extend((0..63).map(|shift| 3_u64 << shift));
        for n in values {
            let signed = n.cast_signed();
            for cell in [
                Cell::Id(signed),
                Cell::Count(signed),
                Cell::Bytes(n),
                Cell::Time(UnixMs(signed)),
                Cell::Age(n),
            ] {
                let text = cells::plain(&cell);
                let whole = Filter::parse(&text).expect("a number is never empty");
                assert!(!whole.wordy && whole.is_in(&cell), "{cell:?} {text}");
            }
        }
    }
}
