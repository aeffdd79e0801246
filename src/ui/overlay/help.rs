//! `?`: the keys that work here, with the reason when one does not, and what the columns mean. Made from the action table
//! and the resource registry, so it cannot fall behind.

use crossterm::event::{Event, KeyCode};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use crate::engine::model::badges;
use crate::engine::model::resource::Tone;
use crate::ui::app::App;
use crate::ui::document::{self, Line};
use crate::ui::keymap::{ACTIONS, Group};
use crate::ui::nav::Place;
use crate::ui::{cells, input, operate, text};

use super::{hints, popup, press};

/// Where the reader is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Help {
    top: usize,
}

/// Keys of the help page itself.
pub fn event(app: &App, mut help: Help, event: &Event) -> Option<Help> {
    let page = app.size.1.saturating_sub(4).max(1) as usize;
    match press(event) {
        Some(KeyCode::Up | KeyCode::Char('k')) => help.top = help.top.saturating_sub(1),
        Some(KeyCode::Down | KeyCode::Char('j')) => help.top += 1,
        Some(KeyCode::PageUp) => help.top = help.top.saturating_sub(page),
        Some(KeyCode::PageDown | KeyCode::Char(' ')) => help.top += page,
        Some(KeyCode::Home) => help.top = 0,
        Some(_) => return None,
        None => {}
    }
    help.top = help.top.min(lines(app, app.size.0).len().saturating_sub(1));
    Some(help)
}

/// The whole text.
#[must_use]
pub fn lines(app: &App, width: u16) -> Vec<Line> {
    let page = app.history.page();
    let context = input::context(&page.place);
    let mut out = Vec::new();
    for group in Group::ALL {
        out.push(Line::heading(group.title()));
        for entry in ACTIONS
            .iter()
            .filter(|e| e.group == group && e.contexts.contains(&context))
        {
            let keys = if entry.keys.is_empty() {
                format!(":{}", entry.id)
            } else {
                entry.key_text()
            };
            let line = match operate::why_disabled(app, entry.action) {
                Some(why) => {
                    Line::field(keys, format!("{}: not now, {why}", entry.title)).tone(Tone::Dim)
                }
                None => Line::field(keys, entry.title),
            };
            out.push(line);
        }
        out.push(Line::blank());
    }
    if let Place::List(kind, _) = &page.place {
        let spec = cells::spec(*kind);
        out.push(Line::heading(spec.title));
        out.extend(
            text::wrap(spec.help, width.saturating_sub(12))
                .into_iter()
                .map(Line::text),
        );
        for column in spec.columns {
            out.push(Line::field(column.title, column.help));
        }
        let badges = badges::all(*kind);
        if !badges.is_empty() {
            out.push(Line::blank());
            out.push(Line::heading("Words beside a row"));
            out.extend(
                badges
                    .iter()
                    .map(|b| Line::field(b.name, b.help).tone(b.tone)),
            );
        }
    }
    out
}

/// Draws it.
pub fn draw(app: &App, help: &Help, area: Rect, buf: &mut Buffer) -> Option<Position> {
    let inner = popup((100, area.height), "Help", area, buf, app.theme);
    let lines = lines(app, inner.width);
    let body = Rect::new(
        inner.x,
        inner.y,
        inner.width,
        inner.height.saturating_sub(1),
    );
    document::draw(&lines, help.top, None, body, buf, app.theme);
    if inner.height > 1 {
        let foot = Rect::new(inner.x, inner.y + inner.height - 1, inner.width, 1);
        hints(
            &[("↑↓", "scroll"), ("any other key", "close")],
            foot,
            buf,
            app.theme,
        );
    }
    None
}
