//! What goes to the clipboard: an id, or the page as Markdown for a ticket.

use std::fmt::Write as _;

use crate::engine::ids::UnixMs;
use crate::engine::model::resource::{Kind, RowId};

use super::app::App;
use super::document::{Line, Shape};
use super::nav::Place;
use super::{cells, chrome, screens, text};

/// Rows that a ticket can bear.
const ROWS: usize = 500;

/// The marked ids, or the id or value under the cursor, and what that is in words.
#[must_use]
pub fn short(app: &App, now: UnixMs) -> (String, String) {
    let page = app.history.page();
    if let Place::List(..) = page.place {
        let mut ids: Vec<&RowId> = page.table.marks.iter().collect();
        ids.sort();
        if ids.is_empty() {
            ids.extend(&page.table.selected);
        }
        let all: Vec<String> = ids.iter().map(|id| id.text()).collect();
        let what = match all.as_slice() {
            [one] => text::fit_middle(one, 40),
            many => format!("{} ids", many.len()),
        };
        return (all.join("\n"), what);
    }
    let lines = screens::lines(app, now);
    let line = lines.get(page.line);
    let value = line.map_or_else(String::new, |l| match l.shape {
        Shape::Field if !l.value.is_empty() => l.value.clone(),
        _ => l.label.clone(),
    });
    let what = text::fit(&value, 40);
    (value, what)
}

/// The page as Markdown: where and when it was seen, then a table or a list.
#[must_use]
pub fn page(app: &App, now: UnixMs) -> (String, String) {
    let page = app.history.page();
    let mut out = String::new();
    let _ = writeln!(out, "**{}**\n", escape(&page.crumbs.join(" › ")));
    let (conn, _) = chrome::conn_text(&app.conn, now);
    let _ = writeln!(
        out,
        "{} · {} · {} · {} · seen {}\n",
        escape(&app.place.profile),
        app.place.attach,
        escape(&app.place.meta),
        escape(&conn),
        now.utc()
    );
    let what = match page.place {
        Place::List(kind, _) => table(app, kind, now, &mut out),
        _ => document(&screens::lines(app, now), &mut out),
    };
    (out, what)
}

fn table(app: &App, kind: Kind, now: UnixMs, out: &mut String) -> String {
    let list = &app.history.page().table;
    let world = app.world(now);
    let view = world.view();
    let columns = cells::spec(kind).columns;
    for column in columns {
        let _ = write!(out, "| {} ", escape(column.title));
    }
    out.push_str("|\n");
    for column in columns {
        out.push_str(if cells::right(column.unit) {
            "|---:"
        } else {
            "|---"
        });
    }
    out.push_str("|\n");
    let ids: &[RowId] = list.rows.as_ref().map_or(&[], |r| &r.ids);
    let chosen: Vec<&RowId> = ids
        .iter()
        .filter(|id| list.marks.is_empty() || list.marks.contains(id))
        .collect();
    for id in chosen.iter().take(ROWS) {
        for column in 0..columns.len() {
            let _ = write!(
                out,
                "| {} ",
                escape(&cells::plain(&cells::cell(&view, id, column)))
            );
        }
        out.push_str("|\n");
    }
    if chosen.len() > ROWS {
        let _ = writeln!(out, "\n… {} more rows", chosen.len() - ROWS);
    }
    format!("{} rows as Markdown", chosen.len().min(ROWS))
}

fn document(lines: &[Line], out: &mut String) -> String {
    for line in lines {
        match line.shape {
            Shape::Blank => out.push('\n'),
            Shape::Heading => {
                let _ = writeln!(out, "\n### {}\n", escape(&line.label));
            }
            Shape::Text => {
                let _ = writeln!(out, "{}", escape(&line.label));
            }
            Shape::Field => {
                let indent = "  ".repeat(line.indent as usize);
                let _ = writeln!(
                    out,
                    "{indent}- {}: {}",
                    escape(&line.label),
                    escape(&line.value)
                );
            }
        }
    }
    "the page as Markdown".to_owned()
}

/// Names come from a cluster: they must not become markup or break a row.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '\\' | '`' | '*' | '_' | '<' | '[' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_a_table() {
        assert_eq!(escape("a|b\nc"), "a\\|b c");
        assert_eq!(escape("by_dev"), "by\\_dev");
    }
}
