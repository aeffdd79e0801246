//! Lists: what stands there when there are no rows, in words that say why.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::engine::handle::Conn;
use crate::engine::model::resource::Kind;
use crate::ui::app::App;
use crate::ui::theme::Role;
use crate::ui::{cells, text};

/// Why the list is empty and what can be done about it.
#[must_use]
pub fn empty_words(app: &App, kind: Kind) -> (String, String) {
    let table = &app.history.page().table;
    let name = cells::spec(kind).name;
    let Some(rows) = &table.rows else {
        return (format!("Looking through {name} …"), String::new());
    };
    if rows.of > 0 {
        let what = if table.filter.is_empty() {
            format!("All {} {name} are well.", text::count(rows.of))
        } else {
            format!(
                "None of {} {name} has “{}”.",
                text::count(rows.of),
                table.filter
            )
        };
        return (what, "Esc shows all of them again.".to_owned());
    }
    if let Conn::Connecting { .. } | Conn::Syncing { .. } = app.conn {
        return (
            format!("No {name} yet."),
            "The first listing is still under way.".to_owned(),
        );
    }
    let more = match kind {
        Kind::Snapshots => "On a collection, c plans one.",
        Kind::Jobs => "Snapshots, restores and garbage collection show up here while they run.",
        Kind::Tickets => "Garbage collection is not paused by us; z pauses it.",
        Kind::Quarantine => "Nothing was moved aside; o plans a scan for orphans.",
        Kind::Broadcasts => "No DDL is under way, and none that is over is remembered.",
        Kind::Sessions => "No coordinator and no node is registered: writing is possible.",
        Kind::Undecodable => "Every value could be read.",
        Kind::Collections | Kind::Databases => "1 leads to the overview, : anywhere.",
        _ => "",
    };
    (format!("No {name} here."), more.to_owned())
}

/// Draws those words in the calm middle.
pub fn draw_empty(app: &App, kind: Kind, area: Rect, buf: &mut Buffer) {
    let (first, second) = empty_words(app, kind);
    let y = area.y + (area.height / 3).max(1);
    for (i, (line, role)) in [(first, Role::Text), (second, Role::Dim)]
        .into_iter()
        .enumerate()
    {
        let y = y + i as u16;
        if y >= area.y + area.height {
            break;
        }
        let line = text::fit(&line, area.width.saturating_sub(4));
        let x = area.x + (area.width - text::width(&line)) / 2;
        buf.set_stringn(x, y, &line, area.width as usize, app.theme.role(role));
    }
}
