//! A plan before it happens: checks, steps, the difference, what it costs and how to undo it, and a confirmation as heavy
//! as the danger.

use crossterm::event::{Event, KeyCode, KeyModifiers};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use tui_input::Input;

use std::sync::Arc;

use crate::engine::error::Error;
use crate::engine::handle::Request;
use crate::engine::model::resource::Tone;
use crate::engine::plan::{Danger, KeyChange, Plan};
use crate::ui::app::{App, Asked, Effect};
use crate::ui::document::{self, Line};
use crate::ui::text;
use crate::ui::theme::Role;

use super::{draw_input, edit, hints, popup};

/// A plan under review.
#[derive(Clone, Debug)]
pub struct Review {
    /// The plan.
    pub plan: Arc<Plan>,
    /// First line shown.
    pub top: usize,
    /// What has been typed so far.
    pub typed: Input,
    /// It has been sent.
    pub sent: bool,
    /// Why it was refused, or cannot be applied.
    pub why: Option<String>,
    /// It is only looked at: nothing can be written here.
    pub only_shown: bool,
}

impl Review {
    /// A plan that has just arrived, and why nothing can be written here, if nothing can.
    #[must_use]
    pub fn new(plan: Arc<Plan>, read_only: Option<&str>) -> Self {
        let failed = plan.failures().count();
        let read_only = read_only.map(|why| format!("only shown, read-only: {why}"));
        let only_shown = read_only.is_some();
        let failing = (failed > 0).then(|| {
            format!(
                "cannot be applied: {failed} {} not hold",
                if failed == 1 {
                    "check does"
                } else {
                    "checks do"
                }
            )
        });
        Self {
            plan,
            top: 0,
            typed: Input::default(),
            sent: false,
            why: read_only.or(failing),
            only_shown,
        }
    }

    /// The engine said no.
    pub fn refused(&mut self, error: &Error) {
        self.sent = false;
        self.typed.reset();
        self.why = Some(error.to_string());
    }

    /// What must be typed, when danger is high. A plan without a word of its own asks for `yes`: an empty word would
    /// make the greatest danger the easiest to confirm.
    fn word(&self) -> &str {
        self.plan
            .type_to_confirm
            .as_deref()
            .filter(|w| !w.is_empty())
            .unwrap_or("yes")
    }

    fn can_apply(&self) -> bool {
        !self.only_shown && self.plan.applicable()
    }

    fn confirmed(&self, key: KeyCode) -> Option<String> {
        if self.sent || !self.can_apply() {
            return None;
        }
        match (self.plan.danger, key) {
            (Danger::Low, KeyCode::Enter) => Some(String::new()),
            (Danger::Medium, KeyCode::Char('y')) => Some("y".to_owned()),
            (Danger::High, KeyCode::Enter) if self.typed.value() == self.word() => {
                Some(self.typed.value().to_owned())
            }
            _ => None,
        }
    }
}

/// Keys of the review.
pub fn event(
    app: &mut App,
    mut review: Box<Review>,
    event: &Event,
    out: &mut Vec<Effect>,
) -> Option<Box<Review>> {
    let page = (app.size.1 / 2).max(1) as usize;
    let key = event
        .as_key_event()
        .filter(|k| k.is_press() || k.is_repeat());
    let ctrl = key.is_some_and(|k| k.modifiers.contains(KeyModifiers::CONTROL));
    // Arrows scroll; letters belong to the confirmation.
    match key.map(|k| k.code) {
        Some(KeyCode::Esc) => return None,
        Some(KeyCode::Char('c')) if ctrl => return None,
        Some(KeyCode::Up) => review.top = review.top.saturating_sub(1),
        Some(KeyCode::Down) => review.top += 1,
        Some(KeyCode::PageUp) => review.top = review.top.saturating_sub(page),
        Some(KeyCode::PageDown) => review.top += page,
        Some(code) => {
            if let Some(typed) = review.confirmed(code).filter(|_| !ctrl) {
                review.sent = true;
                review.why = None;
                let hash = review.plan.hash.clone();
                app.ask(Asked::Apply, Request::Apply { hash, typed }, out);
            } else if review.plan.danger == Danger::High && !review.sent && review.can_apply() {
                edit(&mut review.typed, event);
            }
        }
        None => {
            if matches!(event, Event::Paste(_)) && review.plan.danger == Danger::High {
                edit(&mut review.typed, event);
            }
        }
    }
    let last = lines(&review.plan, 100).len().saturating_sub(1);
    review.top = review.top.min(last);
    Some(review)
}

/// The plan as a document.
#[must_use]
pub fn lines(plan: &Plan, width: u16) -> Vec<Line> {
    let width = width.saturating_sub(6).max(20);
    let wrapped = |text: &str, tone: Tone| -> Vec<Line> {
        text::wrap(text, width)
            .into_iter()
            .map(|l| Line::text(l).tone(tone))
            .collect()
    };
    let mut out = Vec::new();
    out.push(Line::heading("Checks"));
    for check in &plan.checks {
        match &check.failed {
            Some(why) => {
                out.push(Line::text(format!("✗ {}", check.name)).tone(Tone::Bad));
                out.extend(
                    text::wrap(why, width - 2)
                        .into_iter()
                        .map(|l| Line::text(l).tone(Tone::Bad).indented(1)),
                );
            }
            None => {
                out.push(
                    Line::text(format!("✓ {}  {}", check.name, check.detail)).tone(Tone::Good),
                );
            }
        }
    }
    for warning in &plan.warnings {
        out.extend(wrapped(&format!("! {warning}"), Tone::Warn));
    }
    out.push(Line::blank());
    out.push(Line::heading("Steps"));
    for (i, step) in plan.steps.iter().enumerate() {
        out.extend(wrapped(&format!("{}. {step}", i + 1), Tone::Plain));
    }
    let objects = &plan.objects;
    if objects.puts + objects.copies + objects.deletes > 0 {
        out.push(Line::blank());
        out.push(Line::heading("Objects"));
        let count = |n: u64| text::count(n);
        if objects.puts > 0 {
            out.push(Line::field("written", count(objects.puts)));
        }
        if objects.copies > 0 {
            out.push(Line::field(
                "copied",
                format!(
                    "{} · {}",
                    count(objects.copies),
                    text::bytes(objects.copy_bytes)
                ),
            ));
        }
        if objects.deletes > 0 {
            out.push(
                Line::field(
                    "deleted",
                    format!(
                        "{} · {}",
                        count(objects.deletes),
                        text::bytes(objects.delete_bytes)
                    ),
                )
                .tone(Tone::Warn),
            );
        }
        for sample in &objects.samples {
            out.push(
                Line::text(text::fit_middle(sample, width - 2))
                    .tone(Tone::Dim)
                    .indented(1),
            );
        }
    }
    if !plan.changes.is_empty() {
        out.push(Line::blank());
        out.push(Line::heading("Keys"));
        for change in &plan.changes {
            out.extend(diff(change, width));
        }
    }
    out.push(Line::blank());
    out.push(Line::heading("Undo"));
    out.extend(wrapped(&plan.undo, Tone::Plain));
    out
}

fn diff(change: &KeyChange, width: u16) -> Vec<Line> {
    let (sign, tone) = match (&change.before, &change.after) {
        (None, _) => ("+", Tone::Good),
        (_, None) => ("-", Tone::Bad),
        _ => ("~", Tone::Warn),
    };
    let key = text::fit_middle(&change.key, width.saturating_sub(4));
    let mut out = vec![Line::text(format!("{sign} {key}")).tone(tone)];
    let of = |side: &Option<String>| -> Vec<String> {
        side.iter()
            .flat_map(|s| s.lines().map(str::to_owned))
            .collect()
    };
    let (before, after) = (of(&change.before), of(&change.after));
    let line = |sign: &str, text: &str, tone: Tone| {
        Line::text(format!("{sign} {text}")).tone(tone).indented(1)
    };
    // Values are one field a line, so what stands on both sides has not changed.
    out.extend(
        before
            .iter()
            .filter(|l| !after.contains(l))
            .map(|l| line("-", l, Tone::Bad)),
    );
    out.extend(
        after
            .iter()
            .filter(|l| !before.contains(l))
            .map(|l| line("+", l, Tone::Good)),
    );
    out
}

/// Draws it.
pub fn draw(app: &App, review: &Review, area: Rect, buf: &mut Buffer) -> Option<Position> {
    let theme = app.theme;
    let plan = &review.plan;
    let wide = area.width.saturating_sub(4).min(120);
    let all = lines(plan, wide);
    let height = (all.len() as u16).saturating_add(6).min(area.height);
    let inner = popup((wide, height), &plan.title, area, buf, theme);
    if inner.height < 4 {
        return None;
    }
    let body = Rect::new(inner.x, inner.y, inner.width, inner.height - 3);
    document::draw(&all, review.top, None, body, buf, theme);
    let at = |up: u16| Rect::new(inner.x, inner.y + inner.height - up, inner.width, 1);
    if let Some(why) = &review.why {
        let row = at(3);
        buf.set_stringn(
            row.x,
            row.y,
            text::fit(why, row.width),
            row.width as usize,
            theme.tone(Tone::Bad),
        );
    } else if all.len() > review.top + body.height as usize {
        let row = at(3);
        buf.set_stringn(
            row.x,
            row.y,
            format!(
                "… {} more lines, ↓ scrolls",
                all.len() - review.top - body.height as usize
            ),
            row.width as usize,
            theme.role(Role::Dim),
        );
    }
    confirm_line(app, review, at(2), at(1), buf)
}

fn confirm_line(
    app: &App,
    review: &Review,
    ask: Rect,
    foot: Rect,
    buf: &mut Buffer,
) -> Option<Position> {
    let theme = app.theme;
    if review.sent {
        buf.set_stringn(
            ask.x,
            ask.y,
            "sent to the engine …",
            ask.width as usize,
            theme.tone(Tone::Busy),
        );
        return None;
    }
    if !review.can_apply() {
        hints(&[("↑↓", "scroll"), ("Esc", "close")], foot, buf, theme);
        return None;
    }
    match review.plan.danger {
        Danger::Low => {
            hints(
                &[("Enter", "apply"), ("↑↓", "scroll"), ("Esc", "leave it")],
                foot,
                buf,
                theme,
            );
            None
        }
        Danger::Medium => {
            hints(
                &[("y", "apply"), ("↑↓", "scroll"), ("Esc", "leave it")],
                foot,
                buf,
                theme,
            );
            None
        }
        Danger::High => {
            let prompt = format!("Type {} to confirm: ", review.word());
            let prompt = text::fit(&prompt, ask.width.saturating_sub(8));
            let used = text::width(&prompt);
            buf.set_stringn(
                ask.x,
                ask.y,
                &prompt,
                ask.width as usize,
                theme.tone(Tone::Bad),
            );
            hints(
                &[("Enter", "apply"), ("↑↓", "scroll"), ("Esc", "leave it")],
                foot,
                buf,
                theme,
            );
            let field = Rect::new(ask.x + used, ask.y, ask.width - used, 1);
            draw_input(&review.typed, field, theme.role(Role::Title), buf)
        }
    }
}
