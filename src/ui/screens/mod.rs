//! What the pages show. Screens read the state and the read model; they know nothing of each other.

pub mod detail;
pub mod jobs;
pub mod overview;
pub mod resources;

use crate::engine::ids::UnixMs;

use super::app::App;
use super::document::Line;
use super::frame;
use super::nav::Place;

/// The lines of a page that is read from top to bottom; none for a list.
#[must_use]
pub fn lines(app: &App, now: UnixMs) -> Vec<Line> {
    match &app.history.page().place {
        Place::Overview => overview::lines(app, now),
        Place::Detail(kind, id) => detail::lines(app, *kind, id, now),
        Place::Doctor => detail::doctor(app),
        Place::Rows(_) => detail::rows(app),
        Place::List(..) => Vec::new(),
    }
}

/// The line at a cell of the screen.
#[must_use]
pub fn line_at(app: &App, at: (u16, u16), now: UnixMs) -> Option<usize> {
    let page = app.history.page();
    let body = frame::areas(app.size, &page.place).body;
    if page.place == Place::Overview {
        return overview::line_at(app, body, at, now);
    }
    let line = page.top + at.1.checked_sub(body.y)? as usize;
    (line < lines(app, now).len()).then_some(line)
}
