//! One frame: header, crumbs, page, footer, and what lies over them. Reads the state, changes nothing.
//!
//! ```text
//! falconer  prod · cluster · etcd http://… by-dev/meta · a-bucket/files            READ-ONLY   band
//! ● live rev 812,345 · 300ms   ▁▁▂▅▁▁ 3/s                      restore books → copy 42% 3m12s  band
//! Collections › books › Segments   /flushed                                  12/4,031 of 9,112  crumbs
//!   the page
//! Enter open   / filter   s sort   c snapshot   : go   ? help   q quit                          footer
//! ```

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::engine::ids::UnixMs;
use crate::engine::model::resource::Kind;

use super::app::{self, App};
use super::nav::Place;
use super::theme::{self, Role};
use super::{cells, chrome, document, overlay, screens, table, text};

/// The least that can be worked in.
pub const LEAST: (u16, u16) = (40, 8);

/// Where things are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// Two lines at the top.
    pub band: Rect,
    /// Crumbs, filter and position.
    pub crumbs: Rect,
    /// The page.
    pub body: Rect,
    /// Under a list of jobs: the selected one.
    pub panel: Rect,
    /// Keys.
    pub foot: Rect,
}

/// Lays a screen out. Too small a screen has empty areas.
#[must_use]
pub fn areas(size: (u16, u16), place: &Place) -> Areas {
    let (width, height) = size;
    if width < LEAST.0 || height < LEAST.1 {
        return Areas::default();
    }
    let tall = height - 4;
    let panel = match place {
        Place::List(Kind::Jobs, _) if tall >= 14 => 9,
        _ => 0,
    };
    Areas {
        band: Rect::new(0, 0, width, 2),
        crumbs: Rect::new(0, 2, width, 1),
        body: Rect::new(0, 3, width, tall - panel),
        panel: Rect::new(0, 3 + tall - panel, width, panel),
        foot: Rect::new(0, height - 1, width, 1),
    }
}

/// Draws the state.
pub fn view(app: &App, frame: &mut Frame, now: UnixMs) {
    let area = frame.area();
    let cursor = paint(app, area, frame.buffer_mut(), now);
    if let Some(cursor) = cursor.filter(|c| area.contains(*c)) {
        frame.set_cursor_position(cursor);
    }
}

fn paint(
    app: &App,
    area: Rect,
    buf: &mut Buffer,
    now: UnixMs,
) -> Option<ratatui::layout::Position> {
    // The size of the frame decides, not the last size that was reported: between the two a resize may have happened.
    let page = app.history.page();
    let areas = areas((area.width, area.height), &page.place);
    let cursor = if areas.foot.height == 0 {
        let line = format!("falconer needs {}×{} cells", LEAST.0, LEAST.1);
        buf.set_stringn(
            area.x,
            area.y,
            text::fit(&line, area.width),
            area.width as usize,
            app.theme.role(Role::Title),
        );
        None
    } else {
        chrome::band(app, areas.band, buf, now);
        let filter_cursor = chrome::crumbs(app, areas.crumbs, buf);
        body(app, areas, buf, now);
        chrome::foot(app, areas.foot, buf);
        chrome::toasts(app, area, buf);
        let over = overlay::draw(app, area, buf);
        over.or(filter_cursor)
    };
    if app.marker && area.width > 0 && area.height > 0 {
        chrome::marker(app, area, buf);
    }
    if app.theme.look.ascii {
        theme::to_ascii(buf);
    }
    cursor
}

fn body(app: &App, areas: Areas, buf: &mut Buffer, now: UnixMs) {
    let page = app.history.page();
    match &page.place {
        Place::List(kind, _) => {
            let world = app.world(now);
            let view = world.view();
            let paint = table::Paint {
                view: &view,
                spec: cells::spec(*kind),
                theme: app.theme,
                fresh_after: app::fresh_after(app),
            };
            table::draw(&page.table, &paint, areas.body, buf);
            if page.table.is_empty() {
                screens::resources::draw_empty(app, *kind, areas.body, buf);
            }
            if areas.panel.height > 0 {
                screens::jobs::draw_panel(app, areas.panel, buf, now);
            }
        }
        Place::Overview => screens::overview::draw(app, areas.body, buf, now),
        Place::Detail(..) | Place::Doctor | Place::Rows(_) => {
            let lines = screens::lines(app, now);
            document::draw(
                &lines,
                page.top,
                Some(page.line),
                areas.body,
                buf,
                app.theme,
            );
        }
    }
}
