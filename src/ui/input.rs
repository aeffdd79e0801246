//! Terminal events to changes of the state.

use crossterm::event::{Event, KeyEventKind, MouseButton, MouseEvent, MouseEventKind};

use crate::engine::ids::UnixMs;
use crate::engine::model::resource::{Kind, RowId};

use super::app::{App, Effect};
use super::document::{self, Line};
use super::keymap::{self, Action, Context, Group};
use super::nav::Place;
use super::overlay::help::Help;
use super::overlay::palette::Palette;
use super::overlay::{self, Overlay};
use super::{cells, frame, markdown, operate, screens, table};

/// Which keys a place understands.
#[must_use]
pub const fn context(place: &Place) -> Context {
    match place {
        Place::Overview => Context::Overview,
        Place::List(..) => Context::List,
        Place::Detail(..) | Place::Doctor | Place::Rows(_) => Context::Detail,
    }
}

/// Something happened at the terminal.
pub fn event(app: &mut App, event: Event, now: UnixMs, out: &mut Vec<Effect>) {
    match event {
        Event::Resize(width, height) => {
            app.size = (width, height);
            let lines = app.table_height();
            app.history.page_mut().table.settle(lines);
            settle_document(app, now);
        }
        Event::Key(key) if key.kind != KeyEventKind::Release => {
            let pressed = keymap::Key::from(key);
            // Ctrl-Z and Ctrl-L work everywhere, also under an overlay.
            let global = keymap::action(pressed, Context::Overview)
                .filter(|a| matches!(a, Action::Suspend | Action::Redraw));
            if let Some(action) = global {
                run(app, action, now, out);
            } else if !overlay::event(app, &Event::Key(key), now, out) {
                let here = context(&app.history.page().place);
                if let Some(action) = keymap::action(pressed, here) {
                    run(app, action, now, out);
                }
            }
        }
        Event::Mouse(mouse) => self::mouse(app, mouse, now, out),
        Event::Paste(text) => {
            overlay::event(app, &Event::Paste(text), now, out);
        }
        Event::Key(_) | Event::FocusGained | Event::FocusLost => {}
    }
}

/// Runs an action, or says why it cannot be done.
pub fn run(app: &mut App, action: Action, now: UnixMs, out: &mut Vec<Effect>) {
    if let Some(why) = operate::why_disabled(app, action) {
        let id = keymap::entry(action).map_or("", |e| e.id);
        app.toast(format!("{id}: {why}"), true, now);
        return;
    }
    match action {
        Action::Quit => out.push(Effect::Quit),
        Action::Suspend => out.push(Effect::Suspend),
        Action::Redraw => out.push(Effect::Redraw),
        Action::Help => app.overlay = Some(Overlay::Help(Help::default())),
        Action::Palette => {
            app.overlay = Some(Overlay::Palette(Box::new(Palette::open(app, now))));
        }
        Action::Back => back(app),
        Action::Older | Action::Newer => {
            app.travel(action == Action::Older);
        }
        Action::Overview => app.visit(Place::Overview, vec!["Overview".to_owned()]),
        Action::Go(kind) => app.visit_kind(kind),
        Action::Doctor => app.visit(Place::Doctor, vec!["Health check".to_owned()]),
        Action::Rows => {
            if let Some(RowId::Segment(id)) = app.target() {
                app.visit(Place::Rows(id), vec!["Rows".to_owned(), id.to_string()]);
            }
        }
        Action::Copy | Action::CopyView => copy(app, action, now, out),
        _ if keymap::entry(action).is_some_and(|e| e.group == Group::Act) => {
            operate::act(app, action, now, out);
        }
        _ => {
            if let Place::List(kind, _) = app.history.page().place {
                in_list(app, kind, action, now);
            } else {
                in_document(app, action, now);
            }
        }
    }
}

/// Up one level: the filter first, then the page.
fn back(app: &mut App) {
    let table = &mut app.history.page_mut().table;
    if !table.filter.is_empty() || table.faults {
        table.filter.clear();
        table.faults = false;
        app.rows_changed();
    } else {
        app.travel(true);
    }
}

fn copy(app: &mut App, action: Action, now: UnixMs, out: &mut Vec<Effect>) {
    let (text, what) = if action == Action::CopyView {
        markdown::page(app, now)
    } else {
        markdown::short(app, now)
    };
    if text.is_empty() {
        app.toast("there is nothing to copy", true, now);
        return;
    }
    app.toast(format!("copied {what}"), false, now);
    out.push(Effect::Copy(text));
}

fn in_list(app: &mut App, kind: Kind, action: Action, now: UnixMs) {
    let height = app.table_height();
    let page = height.max(1).cast_signed();
    let columns = cells::spec(kind).columns;
    let table = &mut app.history.page_mut().table;
    match action {
        Action::Up => table.go(-1, height),
        Action::Down => table.go(1, height),
        Action::PageUp => table.go(-page, height),
        Action::PageDown => table.go(page, height),
        Action::Top => table.go_to(0, height),
        Action::Bottom => table.go_to(usize::MAX, height),
        Action::Left => table.left = table.left.saturating_sub(1),
        Action::Right => table.left = (table.left + 1).min(columns.len().saturating_sub(2)),
        Action::Mark => {
            if let Some(id) = table.selected.clone() {
                if !table.marks.remove(&id) {
                    table.marks.insert(id);
                }
                table.go(1, height);
            }
        }
        Action::Unmark => table.marks.clear(),
        Action::Filter => {
            let before = table.filter.clone();
            let input = tui_input::Input::new(before.clone());
            app.overlay = Some(Overlay::Filter(input, before));
        }
        Action::Faults => {
            table.faults = !table.faults;
            app.rows_changed();
        }
        Action::Sort => {
            let next = (table.sort.0 + 1) % columns.len().max(1);
            table.sort = (next, false);
            app.rows_changed();
        }
        Action::Reverse => {
            table.sort.1 = !table.sort.1;
            app.rows_changed();
        }
        Action::Open | Action::Describe => {
            if let Some(id) = table.selected.clone() {
                let name = app.name_of(&id, now);
                let link = if action == Action::Open {
                    operate::opens(kind, &id)
                } else {
                    document::Link::Row(kind, id)
                };
                app.drill(link, name);
            }
        }
        _ => {}
    }
}

fn in_document(app: &mut App, action: Action, now: UnixMs) {
    let lines = screens::lines(app, now);
    let height = app.document_height().max(1);
    let page = app.history.page_mut();
    let last = lines.len().saturating_sub(1);
    match action {
        Action::Up => page.line = step(&lines, page.line, false),
        Action::Down => page.line = step(&lines, page.line, true),
        Action::PageUp => page.line = page.line.saturating_sub(height),
        Action::PageDown => page.line = (page.line + height).min(last),
        Action::Top => page.line = 0,
        Action::Bottom => page.line = last,
        Action::NextSection => page.line = document::next_heading(&lines, page.line),
        Action::PrevSection => page.line = document::previous_heading(&lines, page.line),
        Action::Open => {
            if let Some(line) = lines.get(page.line)
                && let Some(link) = line.link.clone()
            {
                let name = match &link {
                    document::Link::Row(_, id) => app.name_of(id, now),
                    document::Link::List(kind, _) => cells::spec(*kind).title.to_owned(),
                };
                app.drill(link, name);
                return;
            }
        }
        _ => {}
    }
    settle_document(app, now);
}

/// The next line that has something on it.
fn step(lines: &[Line], from: usize, down: bool) -> usize {
    let full = |i: &usize| {
        lines
            .get(*i)
            .is_some_and(|l| l.shape != document::Shape::Blank)
    };
    if down {
        (from + 1..lines.len()).find(full).unwrap_or(from)
    } else {
        (0..from).rev().find(full).unwrap_or(from)
    }
}

fn settle_document(app: &mut App, now: UnixMs) {
    if matches!(app.history.page().place, Place::List(..)) {
        return;
    }
    let len = screens::lines(app, now).len();
    let height = app.document_height().max(1);
    let page = app.history.page_mut();
    page.line = page.line.min(len.saturating_sub(1));
    page.top = page.top.min(len.saturating_sub(height));
    if page.line < page.top {
        page.top = page.line;
    }
    if page.line >= page.top + height {
        page.top = page.line + 1 - height;
    }
}

fn mouse(app: &mut App, mouse: MouseEvent, now: UnixMs, out: &mut Vec<Effect>) {
    if app.overlay.is_some() {
        // A click outside must not reach what lies under a question.
        return;
    }
    let areas = frame::areas(app.size, &app.history.page().place);
    let body = areas.body;
    let inside = mouse.column >= body.x
        && mouse.column < body.x + body.width
        && mouse.row >= body.y
        && mouse.row < body.y + body.height;
    let list = match app.history.page().place {
        Place::List(kind, _) => Some(kind),
        _ => None,
    };
    let height = app.table_height();
    match mouse.kind {
        MouseEventKind::ScrollDown | MouseEventKind::ScrollUp => {
            let by = if mouse.kind == MouseEventKind::ScrollDown {
                3
            } else {
                -3
            };
            if list.is_some() {
                app.history.page_mut().table.scroll(by, height);
            } else {
                let page = app.history.page_mut();
                page.line = page.line.saturating_add_signed(by);
                settle_document(app, now);
            }
        }
        MouseEventKind::Down(MouseButton::Left) if inside => {
            let row = (mouse.row - body.y) as usize;
            if let Some(kind) = list {
                click_list(app, kind, mouse.column - body.x, row, now);
            } else if let Some(line) = screens::line_at(app, (mouse.column, mouse.row), now) {
                let again = app.history.page().line == line;
                app.history.page_mut().line = line;
                settle_document(app, now);
                if again {
                    run(app, Action::Open, now, out);
                }
            }
        }
        MouseEventKind::Down(MouseButton::Right) => run(app, Action::Back, now, out),
        _ => {}
    }
}

/// The header sorts; a line is selected, and opened when it was selected already.
fn click_list(app: &mut App, kind: Kind, x: u16, row: usize, now: UnixMs) {
    let height = app.table_height();
    let width = frame::areas(app.size, &app.history.page().place).body.width;
    let mark = app.theme.mark_width();
    let list = &mut app.history.page_mut().table;
    if row == 0 {
        let laid = table::lay_out(cells::spec(kind), list, width, mark);
        let hit = laid.iter().find(|l| x >= l.x && x < l.x + l.width + 1);
        if let Some(column) = hit.map(|l| l.column) {
            list.sort = if list.sort.0 == column {
                (column, !list.sort.1)
            } else {
                (column, false)
            };
            app.rows_changed();
        }
        return;
    }
    let at = list.top + row - 1;
    if at >= list.len() {
        return;
    }
    let again = list.cursor == at;
    list.go_to(at, height);
    if again {
        in_list(app, kind, Action::Open, now);
    }
}
