//! What stands around every page: the band with place and connection, the crumbs, the keys, short messages.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::widgets::{Clear, Widget};

use crate::engine::handle::Conn;
use crate::engine::ids::UnixMs;
use crate::engine::model::badges;
use crate::engine::model::resource::Tone;

use super::app::App;
use super::keymap::{ACTIONS, Action, Group};
use super::nav::Place;
use super::overlay::{self, Overlay};
use super::theme::Role;
use super::{input, job_words, operate, text};

/// Writes parts from the left while they fit; answers where it stopped.
fn write(buf: &mut Buffer, area: Rect, from: u16, parts: &[(&str, Style)]) -> u16 {
    let end = area.x + area.width;
    let mut x = from;
    for (part, style) in parts {
        let room = end.saturating_sub(x);
        if room == 0 {
            break;
        }
        let shown = text::fit(part, room);
        buf.set_stringn(x, area.y, &shown, room as usize, *style);
        x += text::width(&shown);
    }
    x
}

/// Profiles whose name says that a mistake here is expensive.
fn production(name: &str) -> bool {
    name.to_ascii_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| matches!(word, "prod" | "production" | "live"))
}

/// The two lines at the top.
pub fn band(app: &App, area: Rect, buf: &mut Buffer, now: UnixMs) {
    let theme = app.theme;
    buf.set_style(area, theme.role(Role::Band));
    let first = Rect::new(area.x, area.y, area.width, 1);
    let second = Rect::new(area.x, area.y + 1, area.width, 1);
    place(app, first, buf);
    connection(app, second, buf, now);
}

fn place(app: &App, area: Rect, buf: &mut Buffer) {
    let theme = app.theme;
    let dim = theme.role(Role::Dim);
    let badge = if app.place.read_only.is_some() {
        " READ-ONLY "
    } else {
        ""
    };
    let badge_width = text::width(badge);
    let left = Rect::new(
        area.x,
        area.y,
        area.width.saturating_sub(badge_width + 1),
        1,
    );
    let profile = format!(" {} ", app.place.profile);
    let profile_style = if production(&app.place.profile) {
        theme.role(Role::Production)
    } else {
        theme.role(Role::Sorted)
    };
    let bucket = match app.place.bucket.as_str() {
        "none" | "" => String::new(),
        b => format!(" · {b}"),
    };
    write(
        buf,
        left,
        left.x + 1,
        &[
            ("falconer ", theme.role(Role::Title)),
            (&profile, profile_style),
            (" ", dim),
            (app.place.attach, Style::new()),
            (&format!(" · {}", app.place.meta), dim),
            (&bucket, dim),
        ],
    );
    if badge_width > 0 {
        let at = Rect::new(
            area.x + area.width.saturating_sub(badge_width),
            area.y,
            badge_width.min(area.width),
            1,
        );
        write(buf, at, at.x, &[(badge, theme.role(Role::Badge))]);
    }
}

/// The connection in one line, its tone, and whether it stands still.
#[must_use]
pub fn conn_text(conn: &Conn, now: UnixMs) -> (String, Tone) {
    match conn {
        Conn::Connecting { attempt, why } => match why {
            Some(error) => (
                format!("connecting, attempt {attempt}: {error}"),
                Tone::Warn,
            ),
            None => ("connecting …".to_owned(), Tone::Busy),
        },
        Conn::Syncing { keys } => (format!("reading … {} keys", text::count(*keys)), Tone::Busy),
        Conn::Live { rev, heard } => (
            format!(
                "live rev {} · {}",
                text::grouped(rev.0),
                text::age(now.since(*heard))
            ),
            Tone::Good,
        ),
        Conn::Stale { since, why, next } => (
            format!(
                "STALE since {} because {why} · next try in {}",
                text::clock(*since),
                text::age(u64::try_from(next.as_millis()).unwrap_or(u64::MAX))
            ),
            Tone::Bad,
        ),
        Conn::Static { rev } => (
            format!("dump at rev {} · nothing will change", text::grouped(rev.0)),
            Tone::Dim,
        ),
    }
}

fn connection(app: &App, area: Rect, buf: &mut Buffer, now: UnixMs) {
    let theme = app.theme;
    let (words, tone) = conn_text(&app.conn, now);
    // Bad news takes the whole line; a running job waits. Else the words, a short sparkline, and the job in what is left.
    let rest = area.width.saturating_sub(text::width(&words) + 5 + 22);
    let job = job_words::brief(app, rest);
    let job_width = text::width(&job);
    let show_job = job_width > 0 && tone != Tone::Bad;
    let left = Rect::new(
        area.x,
        area.y,
        if show_job {
            area.width - job_width - 2
        } else {
            area.width
        },
        1,
    );
    let dot = match tone {
        Tone::Bad => "✗ ",
        Tone::Warn => "! ",
        Tone::Busy => "○ ",
        _ => "● ",
    };
    let style = theme.tone(tone);
    let x = write(buf, left, left.x + 1, &[(dot, style), (&words, style)]);
    let changes = app.pulse.changes();
    let moving = matches!(app.conn, Conn::Live { .. });
    if moving && x + 16 < left.x + left.width {
        let cells = (left.x + left.width - x - 12).min(30) as usize;
        let line = text::spark(&changes, cells);
        let rate = app.pulse.rate();
        let rate = if rate < 10.0 {
            format!(" {rate:.1}/s")
        } else {
            format!(" {}/s", text::grouped(rate as i64))
        };
        write(
            buf,
            left,
            x + 2,
            &[
                (&line, theme.role(Role::Accent)),
                (&rate, theme.role(Role::Dim)),
            ],
        );
    }
    if show_job {
        let at = Rect::new(area.x + area.width - job_width - 1, area.y, job_width, 1);
        write(buf, at, at.x, &[(&job, theme.tone(Tone::Busy))]);
    }
}

/// Crumbs at the left, position at the right, the filter between. Answers where the text cursor stands while filtering.
pub fn crumbs(app: &App, area: Rect, buf: &mut Buffer) -> Option<Position> {
    let theme = app.theme;
    let page = app.history.page();
    let list = matches!(page.place, Place::List(..));
    let position = if list {
        page.table.position()
    } else {
        String::new()
    };
    let position_width = text::width(&position);
    let end = area.x + area.width;
    let left = Rect::new(
        area.x,
        area.y,
        area.width.saturating_sub(position_width + 3),
        1,
    );
    let mut parts: Vec<(&str, Style)> = Vec::new();
    let last = page.crumbs.len().saturating_sub(1);
    for (i, crumb) in page.crumbs.iter().enumerate() {
        if i > 0 {
            parts.push((" › ", theme.role(Role::Dim)));
        }
        let role = if i == last { Role::Title } else { Role::Dim };
        parts.push((crumb, theme.role(role)));
    }
    let mut x = write(buf, left, left.x + 1, &parts);
    let mut cursor = None;
    if let Some(Overlay::Filter(input, _)) = &app.overlay {
        x = write(buf, left, x + 2, &[("/", theme.role(Role::Accent))]);
        let field = Rect::new(x, area.y, (left.x + left.width).saturating_sub(x), 1);
        cursor = overlay::draw_input(input, field, theme.role(Role::Title), buf);
    } else if list {
        if !page.table.filter.is_empty() {
            let shown = format!("/{}", page.table.filter);
            x = write(buf, left, x + 2, &[(&shown, theme.tone(Tone::Warn))]);
        }
        if page.table.faults {
            x = write(buf, left, x + 2, &[("only faults", theme.tone(Tone::Warn))]);
        }
        if let Place::List(kind, scope) = &page.place
            && let Some(note) = badges::header(&app.catalog, *kind, scope)
        {
            write(buf, left, x + 2, &[(&note, theme.tone(Tone::Warn))]);
        }
    }
    if position_width > 0 && position_width + 2 < area.width {
        let at = Rect::new(end - position_width - 1, area.y, position_width, 1);
        let style = if app.computing.is_some() {
            theme.tone(Tone::Busy)
        } else {
            theme.role(Role::Dim)
        };
        write(buf, at, at.x, &[(&position, style)]);
    }
    cursor
}

/// Keys of this place. What is impossible is dim; `?` says why.
pub fn foot(app: &App, area: Rect, buf: &mut Buffer) {
    let theme = app.theme;
    let here = input::context(&app.history.page().place);
    let end = area.x + area.width;
    // The ways out always stand at the right end.
    let always = [Action::Palette, Action::Help, Action::Quit];
    let width_of = |key: &str, hint: &str| text::width(key) + 1 + text::width(hint) + 3;
    let first_key = |e: &super::keymap::Entry| e.keys.first().map(ToString::to_string);
    let mut reserved = 0;
    for entry in ACTIONS.iter().filter(|e| always.contains(&e.action)) {
        reserved += width_of(&first_key(entry).unwrap_or_default(), entry.hint);
    }
    let mut x = area.x + 1;
    let mut put = |x: &mut u16, limit: u16, entry: &super::keymap::Entry, off: bool| {
        let Some(key) = first_key(entry) else { return };
        let need = width_of(&key, entry.hint);
        if *x + need > limit + 3 {
            return;
        }
        let key_style = theme.role(if off { Role::Disabled } else { Role::Accent });
        let area = Rect::new(area.x, area.y, area.width, 1);
        let after = write(
            buf,
            area,
            *x,
            &[
                (&key, key_style),
                (" ", Style::new()),
                (
                    entry.hint,
                    theme.role(if off { Role::Disabled } else { Role::Text }),
                ),
            ],
        );
        *x = after + 3;
    };
    let limit = end.saturating_sub(reserved);
    for entry in ACTIONS
        .iter()
        .filter(|e| !e.hint.is_empty() && e.contexts.contains(&here))
        .filter(|e| !always.contains(&e.action))
    {
        let off = operate::why_disabled(app, entry.action).is_some();
        // An action on something that is not here is noise; one that is merely not possible is shown dim.
        if off && entry.group == Group::Act {
            continue;
        }
        put(&mut x, limit, entry, off);
    }
    let mut x = x.max(end.saturating_sub(reserved));
    for entry in ACTIONS.iter().filter(|e| always.contains(&e.action)) {
        put(&mut x, end, entry, false);
    }
}

/// Short messages, newest lowest, above the footer at the right.
pub fn toasts(app: &App, area: Rect, buf: &mut Buffer) {
    let theme = app.theme;
    let mut bottom = area.y + area.height.saturating_sub(2);
    for toast in app.toasts.iter().rev() {
        let room = (area.width.saturating_sub(6)).min(76);
        let lines = text::wrap(&toast.text, room.saturating_sub(4));
        let lines = &lines[..lines.len().min(4)];
        let width = lines.iter().map(|l| text::width(l)).max().unwrap_or(0) + 4;
        let height = lines.len() as u16;
        if bottom < area.y + 3 + height || width > area.width {
            break;
        }
        let at = Rect::new(
            area.x + area.width - width - 1,
            bottom + 1 - height,
            width,
            height,
        );
        Clear.render(at, buf);
        buf.set_style(at, theme.role(Role::Band));
        let tone = if toast.bad { Tone::Bad } else { Tone::Good };
        for (i, line) in lines.iter().enumerate() {
            let row = Rect::new(at.x, at.y + i as u16, at.width, 1);
            let sign = match (i, toast.bad) {
                (0, true) => "✗ ",
                (0, false) => "✓ ",
                _ => "  ",
            };
            write(
                buf,
                row,
                row.x + 1,
                &[(sign, theme.tone(tone)), (line, theme.role(Role::Text))],
            );
        }
        bottom = at.y.saturating_sub(2);
    }
}

/// What test drivers wait for: how many events have been handled, and that nothing is under way.
pub fn marker(app: &App, area: Rect, buf: &mut Buffer) {
    let state = if app.is_idle() { "idle" } else { "busy" };
    let shown = format!("[{state} {}]", app.events);
    let width = text::width(&shown).min(area.width);
    let at = Rect::new(
        area.x + area.width - width,
        area.y + area.height - 1,
        width,
        1,
    );
    Clear.render(at, buf);
    buf.set_stringn(at.x, at.y, shown, width as usize, app.theme.role(Role::Dim));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn production_is_recognised_by_word() {
        assert!(production("prod") && production("eu-production-2") && production("PROD_eu"));
        assert!(!production("product-tests") && !production("embedded"));
    }
}
