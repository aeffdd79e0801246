//! What lies over a page: one thing at a time. Each overlay has its state, its keys and its drawing in one file.

pub mod form;
pub mod help;
pub mod palette;
pub mod review;

use crossterm::event::Event;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::widgets::{Block, BorderType, Clear, Widget};
use tui_input::Input;

use crate::engine::ids::UnixMs;

use super::app::{App, Effect};
use super::text;
use super::theme::{Role, Theme};

/// What lies over the page.
pub enum Overlay {
    /// Keys and words.
    Help(help::Help),
    /// The filter line; holds what was there before, for Esc.
    Filter(Input, String),
    /// Where to go, what to do.
    Palette(Box<palette::Palette>),
    /// Questions before a plan.
    Form(Box<form::Form>),
    /// A plan.
    Review(Box<review::Review>),
}

/// Gives an event to the overlay; `false` when there is none.
pub fn event(app: &mut App, event: &Event, now: UnixMs, out: &mut Vec<Effect>) -> bool {
    // Taken out while it works, so that it may change the state; it comes back unless it closed itself.
    let Some(overlay) = app.overlay.take() else {
        return false;
    };
    let stays = match overlay {
        Overlay::Help(help) => help::event(app, help, event).map(Overlay::Help),
        Overlay::Filter(input, before) => filter_event(app, input, before, event),
        Overlay::Palette(palette) => {
            palette::event(app, palette, event, now, out).map(Overlay::Palette)
        }
        Overlay::Form(form) => form::event(app, form, event, out).map(Overlay::Form),
        Overlay::Review(review) => review::event(app, review, event, out).map(Overlay::Review),
    };
    // An overlay may have opened another one (the palette opens help).
    if app.overlay.is_none() {
        app.overlay = stays;
    }
    true
}

fn filter_event(app: &mut App, mut input: Input, before: String, event: &Event) -> Option<Overlay> {
    use crossterm::event::KeyCode;
    let apply = |app: &mut App, text: &str| {
        let table = &mut app.history.page_mut().table;
        if table.filter != text {
            text.clone_into(&mut table.filter);
            app.rows_changed();
        }
    };
    match press(event) {
        Some(KeyCode::Enter | KeyCode::Up | KeyCode::Down) => None,
        Some(KeyCode::Esc) => {
            apply(app, &before);
            None
        }
        _ => {
            edit(&mut input, event);
            apply(app, input.value());
            Some(Overlay::Filter(input, before))
        }
    }
}

/// The key of a press without Ctrl or Alt.
#[must_use]
pub fn press(event: &Event) -> Option<crossterm::event::KeyCode> {
    use crossterm::event::KeyModifiers;
    event
        .as_key_event()
        .filter(|k| k.is_press() || k.is_repeat())
        .filter(|k| {
            !k.modifiers
                .intersects(KeyModifiers::CONTROL | KeyModifiers::ALT)
        })
        .map(|k| k.code)
}

/// Gives an event to a line of input; pasted text loses its line ends.
pub fn edit(input: &mut Input, event: &Event) {
    use tui_input::InputRequest;
    use tui_input::backend::crossterm::EventHandler;
    if let Event::Paste(pasted) = event {
        for c in pasted.chars().filter(|c| !c.is_control()).take(1024) {
            input.handle(InputRequest::InsertChar(c));
        }
    } else {
        input.handle_event(event);
    }
}

/// Draws the overlay; answers where the text cursor stands.
pub fn draw(app: &App, area: Rect, buf: &mut Buffer) -> Option<Position> {
    match app.overlay.as_ref()? {
        Overlay::Help(help) => help::draw(app, help, area, buf),
        // The filter is drawn in the line of the crumbs.
        Overlay::Filter(..) => None,
        Overlay::Palette(palette) => palette::draw(app, palette, area, buf),
        Overlay::Form(form) => form::draw(app, form, area, buf),
        Overlay::Review(review) => review::draw(app, review, area, buf),
    }
}

/// Clears a centred area of at most `size` and frames it; answers the inside.
pub fn popup(size: (u16, u16), title: &str, area: Rect, buf: &mut Buffer, theme: Theme) -> Rect {
    let width = size
        .0
        .min(area.width.saturating_sub(2))
        .max(1)
        .min(area.width);
    let height = size.1.min(area.height).max(1).min(area.height);
    let outer = Rect::new(
        area.x + (area.width - width) / 2,
        area.y + (area.height - height) / 3,
        width,
        height,
    );
    Clear.render(outer, buf);
    if outer.width < 6 || outer.height < 3 {
        return outer;
    }
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(theme.role(Role::Dim))
        .title(format!(
            " {} ",
            text::fit(title, outer.width.saturating_sub(6))
        ))
        .title_style(theme.role(Role::Title));
    let inner = block.inner(outer);
    block.render(outer, buf);
    Rect::new(
        inner.x + 1,
        inner.y,
        inner.width.saturating_sub(2),
        inner.height,
    )
}

/// Draws an input in one line with its cursor.
pub fn draw_input(
    input: &Input,
    at: Rect,
    style: ratatui::style::Style,
    buf: &mut Buffer,
) -> Option<Position> {
    if at.width < 2 || at.height == 0 {
        return None;
    }
    let scroll = input.visual_scroll(at.width as usize - 1);
    let mut skipped = 0;
    let shown: String = input
        .value()
        .chars()
        .skip_while(|c| {
            let skip = skipped < scroll;
            if skip {
                skipped += text::width(&c.to_string()) as usize;
            }
            skip
        })
        .collect();
    buf.set_stringn(at.x, at.y, shown, at.width as usize, style);
    let x = (input.visual_cursor().max(scroll) - scroll) as u16;
    Some(Position::new(at.x + x.min(at.width - 1), at.y))
}

/// Words at the foot of an overlay: `Enter apply · Esc leave`.
pub fn hints(pairs: &[(&str, &str)], at: Rect, buf: &mut Buffer, theme: Theme) {
    let mut x = at.x;
    let end = at.x + at.width;
    for (key, what) in pairs {
        let need = text::width(key) + 1 + text::width(what);
        if x + need > end {
            break;
        }
        buf.set_stringn(x, at.y, key, (end - x) as usize, theme.role(Role::Accent));
        x += text::width(key) + 1;
        buf.set_stringn(x, at.y, what, (end - x) as usize, theme.role(Role::Dim));
        x += text::width(what) + 3;
    }
}
