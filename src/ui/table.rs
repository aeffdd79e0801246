//! The virtual table: a million rows cost what the visible ones cost.

use std::collections::HashSet;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::engine::ids::MetaRev;
use crate::engine::model::resource::{self, Column, Kind, KindSpec, RowId, Scope, Unit};

use super::cells;
use super::rows::{Query, Rows};
use super::text;
use super::theme::{Role, Theme};

/// Cells at the left for the cursor and the mark.
const GUTTER: u16 = 2;
/// Cells between columns.
const GAP: u16 = 2;

/// What a list remembers.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Sort column and whether descending.
    pub sort: (usize, bool),
    /// As typed.
    pub filter: String,
    /// Only what is not well.
    pub faults: bool,
    /// Marked rows.
    pub marks: HashSet<RowId>,
    /// The row under the cursor; its place may change under it.
    pub selected: Option<RowId>,
    /// Where that row stands.
    pub cursor: usize,
    /// First row shown.
    pub top: usize,
    /// Columns scrolled away after the first.
    pub left: usize,
    /// The rows, once computed.
    pub rows: Option<Rows>,
}

impl Table {
    /// A list of a kind, sorted as its registry entry says.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            sort: cells::spec(kind).sort,
            ..Self::default()
        }
    }

    /// The question that this list asks.
    #[must_use]
    pub fn query(&self, kind: Kind, scope: &Scope) -> Query {
        Query {
            kind,
            scope: scope.clone(),
            filter: self.filter.clone(),
            faults: self.faults,
            sort: self.sort,
        }
    }

    /// Rows shown, 0 before the first answer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or(0, |r| r.ids.len())
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the rows; the cursor is remembered by id.
    pub fn forget_rows(&mut self) {
        self.rows = None;
    }

    /// Takes new rows. The cursor follows its row; when the row is gone it stays at its height.
    pub fn take(&mut self, rows: Rows, height: usize) {
        let offset = self.cursor.saturating_sub(self.top);
        let found = self.selected.as_ref().and_then(|id| {
            if rows.ids.get(self.cursor) == Some(id) {
                Some(self.cursor)
            } else {
                rows.ids.iter().position(|r| r == id)
            }
        });
        self.rows = Some(rows);
        self.cursor = found.unwrap_or(self.cursor);
        // Rows that move under the cursor move the page, not the cursor on the screen.
        self.top = self.cursor.saturating_sub(offset);
        self.settle(height);
    }

    /// Moves the cursor by `by` lines.
    pub fn go(&mut self, by: isize, height: usize) {
        self.cursor = self.cursor.saturating_add_signed(by);
        self.settle(height);
    }

    /// Moves the cursor to a line.
    pub fn go_to(&mut self, line: usize, height: usize) {
        self.cursor = line;
        self.settle(height);
    }

    /// Moves the page by `by` lines, the cursor only as far as it must.
    pub fn scroll(&mut self, by: isize, height: usize) {
        let last = self.len().saturating_sub(height.max(1));
        self.top = self.top.saturating_add_signed(by).min(last);
        self.cursor = self
            .cursor
            .clamp(self.top, self.top + height.saturating_sub(1));
        self.settle(height);
    }

    /// Brings cursor and page back into the rows, and remembers the row under the cursor.
    pub fn settle(&mut self, height: usize) {
        let len = self.len();
        let height = height.max(1);
        self.cursor = self.cursor.min(len.saturating_sub(1));
        self.top = self.top.min(len.saturating_sub(height));
        if self.cursor < self.top {
            self.top = self.cursor;
        }
        if self.cursor >= self.top + height {
            self.top = self.cursor + 1 - height;
        }
        if let Some(rows) = &self.rows {
            self.selected = rows.ids.get(self.cursor).cloned();
        }
    }

    /// `12/4,031`, with what the filter hid.
    #[must_use]
    pub fn position(&self) -> String {
        let Some(rows) = &self.rows else {
            return "…".to_owned();
        };
        let at = if rows.ids.is_empty() {
            0
        } else {
            self.cursor + 1
        };
        let mut out = format!("{}/{}", text::count(at), text::count(rows.ids.len()));
        if rows.of != rows.ids.len() {
            out = format!("{out} of {}", text::count(rows.of));
        }
        if !self.marks.is_empty() {
            out = format!("{} marked · {out}", text::count(self.marks.len()));
        }
        out
    }
}

/// A column on screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Laid {
    /// Index in the registry's columns.
    pub column: usize,
    /// From the table's left edge.
    pub x: u16,
    /// Cells.
    pub width: u16,
}

/// Lays the columns out in `width` cells. The first stays; columns of minor interest appear where there is room; what does
/// not fit is dropped from the right and can be scrolled to.
#[must_use]
pub fn lay_out(spec: &KindSpec, table: &Table, width: u16, mark: u16) -> Vec<Laid> {
    let content = table.rows.as_ref().map_or(&[][..], |r| &r.widths[..]);
    let room = width.saturating_sub(GUTTER);
    let wanted = |i: usize, c: &Column| -> (u16, u16) {
        let sign = if table.sort.0 == i { 2 } else { 0 };
        let mark = if c.unit == Unit::State { mark } else { 0 };
        let title = text::width(c.title) + sign;
        let full = content
            .get(i)
            .map_or(c.width.0, |w| w + mark)
            .max(title)
            .min(c.width.0.saturating_mul(2).max(title));
        // Numbers and times cut in half are lies: only text may shrink.
        let least = match c.unit {
            Unit::Text | Unit::State => c.width.1.max(4).min(full),
            _ => full,
        };
        (full, least)
    };
    let order = || {
        spec.columns
            .iter()
            .enumerate()
            .filter(|(i, _)| *i == 0 || *i > table.left)
    };
    let mut chosen: Vec<(usize, u16, u16)> = Vec::new();
    let mut least_sum = 0;
    for (i, c) in order().filter(|(_, c)| !c.wide) {
        let (full, least) = wanted(i, c);
        let gap = if chosen.is_empty() { 0 } else { GAP };
        if !chosen.is_empty() && least_sum + gap + least > room {
            break;
        }
        least_sum += gap + least;
        chosen.push((i, full, least));
    }
    let full_sum = |chosen: &[(usize, u16, u16)]| -> u16 {
        chosen.iter().map(|c| c.1).sum::<u16>() + GAP * (chosen.len() as u16).saturating_sub(1)
    };
    let everything = chosen.len() == order().filter(|(_, c)| !c.wide).count();
    if everything {
        for (i, c) in order().filter(|(_, c)| c.wide) {
            let (full, least) = wanted(i, c);
            if full_sum(&chosen) + GAP + full <= room {
                chosen.push((i, full, least));
            }
        }
        chosen.sort_by_key(|c| c.0);
    }
    // The widest text gives first, cell by cell.
    let mut over = full_sum(&chosen).saturating_sub(room);
    while over > 0 {
        let Some(widest) = chosen
            .iter_mut()
            .filter(|c| c.1 > c.2)
            .max_by_key(|c| c.1 - c.2)
        else {
            break;
        };
        widest.1 -= 1;
        over -= 1;
    }
    let mut x = GUTTER;
    chosen
        .into_iter()
        .map(|(column, w, _)| {
            let laid = Laid {
                column,
                x,
                width: w.min(width.saturating_sub(x)),
            };
            x = x.saturating_add(w + GAP);
            laid
        })
        .filter(|l| l.width > 0)
        .collect()
}

/// What a draw needs besides the table.
pub struct Paint<'a> {
    /// The registry's view.
    pub view: &'a resource::View<'a>,
    /// The kind's entry.
    pub spec: &'static KindSpec,
    /// Styles.
    pub theme: Theme,
    /// Rows with a newer revision than this have just changed.
    pub fresh_after: MetaRev,
}

/// Draws header and visible rows; the header is the first line of `area`.
pub fn draw(table: &Table, paint: &Paint<'_>, area: Rect, buf: &mut Buffer) {
    if area.height == 0 || area.width <= GUTTER {
        return;
    }
    let theme = paint.theme;
    let laid = lay_out(paint.spec, table, area.width, theme.mark_width());
    draw_header(table, paint, &laid, area, buf);
    let Some(rows) = &table.rows else { return };
    let height = area.height as usize - 1;
    for (i, id) in rows.ids.iter().skip(table.top).take(height).enumerate() {
        let y = area.y + 1 + i as u16;
        let line = Rect::new(area.x, y, area.width, 1);
        let marked = table.marks.contains(id);
        let under = table.top + i == table.cursor;
        let fresh = resource::rev(paint.view, id) > paint.fresh_after;
        if fresh {
            buf.set_style(line, theme.role(Role::Changed));
        }
        if marked {
            buf.set_style(line, theme.role(Role::Marked));
        }
        for column in &laid {
            draw_cell(paint, id, *column, marked, (area.x, y), buf);
        }
        let sign = match (under, marked) {
            (true, true) => "◆",
            (true, false) => "▶",
            (false, true) => "●",
            (false, false) => " ",
        };
        buf.set_stringn(area.x, y, sign, 1, theme.role(Role::Accent));
        if under {
            buf.set_style(line, theme.role(Role::Selected));
        }
    }
}

fn draw_header(table: &Table, paint: &Paint<'_>, laid: &[Laid], area: Rect, buf: &mut Buffer) {
    let theme = paint.theme;
    for column in laid {
        let Some(spec) = paint.spec.columns.get(column.column) else {
            continue;
        };
        let sorted = table.sort.0 == column.column;
        let mut title = spec.title.to_owned();
        if sorted {
            title.push_str(if table.sort.1 { " ▼" } else { " ▲" });
        }
        let title = text::fit(&title, column.width);
        let shift = if cells::right(spec.unit) {
            column.width.saturating_sub(text::width(&title))
        } else {
            0
        };
        let role = if sorted { Role::Sorted } else { Role::Dim };
        buf.set_stringn(
            area.x + column.x + shift,
            area.y,
            title,
            (column.width - shift) as usize,
            theme.role(role),
        );
    }
}

fn draw_cell(
    paint: &Paint<'_>,
    id: &RowId,
    column: Laid,
    marked: bool,
    at: (u16, u16),
    buf: &mut Buffer,
) {
    let Some(spec) = paint.spec.columns.get(column.column) else {
        return;
    };
    let cell = cells::cell(paint.view, id, column.column);
    let tone = cells::tone(&cell);
    let theme = paint.theme;
    let mut shown = cells::plain(&cell);
    if spec.unit == Unit::State && !shown.is_empty() {
        shown.insert_str(0, theme.mark(tone));
    }
    let long = text::width(&shown) > column.width;
    let shown = match (long, spec.unit) {
        (true, Unit::Text) if column.column > 0 => text::fit_middle(&shown, column.width),
        (true, _) => text::fit(&shown, column.width),
        (false, _) => shown,
    };
    let shift = if cells::right(spec.unit) {
        column.width.saturating_sub(text::width(&shown))
    } else {
        0
    };
    // A marked row keeps its own colour except where a state speaks.
    let style = if marked && tone <= resource::Tone::Dim {
        theme.role(Role::Marked)
    } else {
        theme.tone(tone)
    };
    buf.set_stringn(
        at.0 + column.x + shift,
        at.1,
        shown,
        (column.width - shift) as usize,
        style,
    );
}
