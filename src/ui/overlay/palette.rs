//! `:`: one line that leads anywhere. Fuzzy over actions, kinds and the names of live objects; a number or a key finds the
//! thing with that id. What was chosen last comes first.

use crossterm::event::{Event, KeyCode, KeyModifiers};
use nucleo_matcher::pattern::{CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use tui_input::Input;

use crate::engine::ids::UnixMs;
use crate::engine::model::resource::{self, Kind, RowId, Scope};
use crate::engine::model::rows;
use crate::ui::app::{App, Effect};
use crate::ui::keymap::{ACTIONS, Action, Group};
use crate::ui::nav::Place;
use crate::ui::rows::INLINE;
use crate::ui::theme::Role;
use crate::ui::{cells, input, operate, text};

use super::{draw_input, edit, hints, popup};

/// Entries offered at once.
const SHOWN: usize = 100;

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Runs an action.
    Action(Action),
    /// Opens a thing.
    Row(Kind, RowId),
}

/// An entry that can be chosen.
#[derive(Clone, Debug)]
pub struct Item {
    /// What is matched and shown.
    pub name: String,
    /// Stands behind it: the title of an action, the kind of an object.
    pub about: String,
    /// Keys, of actions.
    pub keys: String,
    /// Why it cannot be chosen.
    pub disabled: Option<String>,
    /// What it does.
    pub target: Target,
}

/// The palette.
#[derive(Clone, Debug)]
pub struct Palette {
    /// What has been typed.
    pub input: Input,
    items: Vec<Item>,
    /// Found by id.
    found: Vec<Item>,
    /// Indices into items and found, best first, with the matched letters.
    hits: Vec<(usize, Vec<u32>)>,
    /// The entry under the cursor.
    pub cursor: usize,
}

/// Kinds whose names are worth matching; segments and keys are found by id.
const NAMED: [Kind; 8] = [
    Kind::Databases,
    Kind::Collections,
    Kind::Snapshots,
    Kind::Jobs,
    Kind::Sessions,
    Kind::Indexes,
    Kind::Channels,
    Kind::Broadcasts,
];

impl Palette {
    /// Everything that can be reached now.
    #[must_use]
    pub fn open(app: &App, now: UnixMs) -> Self {
        let here = input::context(&app.history.page().place);
        let mut items: Vec<Item> = ACTIONS
            .iter()
            .filter(|e| !matches!(e.action, Action::Palette))
            // What changes the cluster is always listed, with the reason why it cannot be done here.
            .filter(|e| e.group == Group::Act || e.contexts.contains(&here))
            .map(|e| Item {
                name: e.id.to_owned(),
                about: e.title.to_owned(),
                keys: e.key_text(),
                disabled: operate::why_disabled(app, e.action),
                target: Target::Action(e.action),
            })
            .collect();
        let world = app.world(now);
        let view = world.view();
        for kind in NAMED {
            if rows::len(&view, kind) > INLINE {
                continue;
            }
            for id in resource::ids(&view, kind, &Scope::default()) {
                items.push(row_item(&view, kind, id));
            }
        }
        // Last used first.
        for name in app.recent.iter().rev() {
            if let Some(at) = items.iter().position(|i| i.name == *name) {
                let item = items.remove(at);
                items.insert(0, item);
            }
        }
        let mut palette = Self {
            input: Input::default(),
            items,
            found: Vec::new(),
            hits: Vec::new(),
            cursor: 0,
        };
        palette.search(app, now);
        palette
    }

    fn item(&self, index: usize) -> Option<&Item> {
        self.items
            .get(index)
            .or_else(|| self.found.get(index - self.items.len()))
    }

    /// The entry under the cursor.
    #[must_use]
    pub fn chosen(&self) -> Option<&Item> {
        self.hits.get(self.cursor).and_then(|(i, _)| self.item(*i))
    }

    fn search(&mut self, app: &App, now: UnixMs) {
        self.cursor = 0;
        self.found.clear();
        let typed = self.input.value().trim().to_owned();
        if typed.is_empty() {
            self.hits = (0..self.items.len().min(SHOWN))
                .map(|i| (i, vec![]))
                .collect();
            return;
        }
        let world = app.world(now);
        let view = world.view();
        for id in cells::find(&view, &typed).into_iter().take(20) {
            self.found.push(row_item(&view, id.kind(), id));
        }
        let pattern = Pattern::parse(&typed, CaseMatching::Ignore, Normalization::Smart);
        let mut matcher = Matcher::new(Config::DEFAULT);
        let mut letters = Vec::new();
        let mut scored: Vec<(u32, usize, Vec<u32>)> = Vec::new();
        for (i, item) in self.items.iter().enumerate() {
            let mut hit = Vec::new();
            let name = Utf32Str::new(&item.name, &mut letters);
            if let Some(score) = pattern.indices(name, &mut matcher, &mut hit) {
                // A name that is typed whole beats every longer one.
                let whole = u32::from(item.name.eq_ignore_ascii_case(&typed)) * 1000;
                hit.sort_unstable();
                hit.dedup();
                scored.push((score + whole, i, hit));
                continue;
            }
            let about = Utf32Str::new(&item.about, &mut letters);
            if let Some(score) = pattern.score(about, &mut matcher) {
                scored.push((score / 2, i, Vec::new()));
            }
        }
        scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        self.hits = (0..self.found.len())
            .map(|i| (self.items.len() + i, Vec::new()))
            .chain(
                scored
                    .into_iter()
                    .filter(|(_, i, _)| {
                        !self.found.iter().any(|f| f.target == self.items[*i].target)
                    })
                    .map(|(_, i, hit)| (i, hit)),
            )
            .take(SHOWN)
            .collect();
    }
}

fn row_item(view: &resource::View<'_>, kind: Kind, id: RowId) -> Item {
    let name = cells::plain(&cells::cell(view, &id, 0));
    let id_text = id.text();
    let singular = cells::spec(kind).name;
    Item {
        about: if name == id_text {
            singular.to_owned()
        } else {
            format!("{singular} {id_text}")
        },
        name: if name.is_empty() { id_text } else { name },
        keys: String::new(),
        disabled: None,
        target: Target::Row(kind, id),
    }
}

/// Keys of the palette.
pub fn event(
    app: &mut App,
    mut palette: Box<Palette>,
    event: &Event,
    now: UnixMs,
    out: &mut Vec<Effect>,
) -> Option<Box<Palette>> {
    let key = event
        .as_key_event()
        .filter(|k| k.is_press() || k.is_repeat());
    let ctrl = key.is_some_and(|k| k.modifiers.contains(KeyModifiers::CONTROL));
    let last = palette.hits.len().saturating_sub(1);
    match key.map(|k| k.code) {
        Some(KeyCode::Esc) => return None,
        Some(KeyCode::Char('c')) if ctrl => return None,
        Some(KeyCode::Up) => palette.cursor = palette.cursor.saturating_sub(1),
        Some(KeyCode::Char('p')) if ctrl => palette.cursor = palette.cursor.saturating_sub(1),
        Some(KeyCode::Down | KeyCode::Tab) => palette.cursor = (palette.cursor + 1).min(last),
        Some(KeyCode::Char('n')) if ctrl => palette.cursor = (palette.cursor + 1).min(last),
        Some(KeyCode::PageDown) => palette.cursor = (palette.cursor + 10).min(last),
        Some(KeyCode::PageUp) => palette.cursor = palette.cursor.saturating_sub(10),
        Some(KeyCode::Backspace) if palette.input.value().is_empty() => return None,
        Some(KeyCode::Enter) => {
            let Some(item) = palette.chosen().cloned() else {
                return Some(palette);
            };
            if let Some(why) = item.disabled {
                app.toast(format!("{}: {why}", item.name), true, now);
                return None;
            }
            app.recent.retain(|n| *n != item.name);
            app.recent.push_front(item.name.clone());
            app.recent.truncate(8);
            match item.target {
                Target::Action(action) => input::run(app, action, now, out),
                Target::Row(kind, id) => {
                    let crumbs = vec![cells::spec(kind).title.to_owned(), item.name];
                    app.visit(Place::Detail(kind, id), crumbs);
                }
            }
            return None;
        }
        _ => {
            let before = palette.input.value().to_owned();
            edit(&mut palette.input, event);
            if palette.input.value() != before {
                palette.search(app, now);
            }
        }
    }
    Some(palette)
}

/// Draws it.
pub fn draw(app: &App, palette: &Palette, area: Rect, buf: &mut Buffer) -> Option<Position> {
    let theme = app.theme;
    let height = (area.height * 2 / 3).max(8);
    let inner = popup((90, height), "Go to, do, find", area, buf, theme);
    if inner.height < 3 {
        return None;
    }
    buf.set_stringn(inner.x, inner.y, ":", 1, theme.role(Role::Accent));
    let field = Rect::new(inner.x + 2, inner.y, inner.width.saturating_sub(2), 1);
    let cursor = draw_input(&palette.input, field, theme.role(Role::Title), buf);
    let list = Rect::new(inner.x, inner.y + 1, inner.width, inner.height - 2);
    let top = (palette.cursor + 1).saturating_sub(list.height as usize);
    let name_width = (inner.width * 2 / 5).max(12).min(inner.width);
    for (row, (index, hit)) in palette
        .hits
        .iter()
        .skip(top)
        .take(list.height as usize)
        .enumerate()
    {
        let Some(item) = palette.item(*index) else {
            continue;
        };
        let y = list.y + row as u16;
        let off = item.disabled.is_some();
        let name_style = theme.role(if off { Role::Disabled } else { Role::Text });
        let name = text::fit(&item.name, name_width.saturating_sub(2));
        buf.set_stringn(list.x + 1, y, &name, name_width as usize, name_style);
        highlight(&name, hit, (list.x + 1, y), theme.role(Role::Match), buf);
        let about = match &item.disabled {
            Some(why) => format!("not now: {why}"),
            None => item.about.clone(),
        };
        let keys = text::width(&item.keys);
        let room = list.width.saturating_sub(name_width + keys + 2);
        buf.set_stringn(
            list.x + name_width,
            y,
            text::fit(&about, room),
            room as usize,
            theme.role(Role::Dim),
        );
        if room > 0 {
            buf.set_stringn(
                list.x + list.width - keys.min(list.width),
                y,
                &item.keys,
                keys as usize,
                theme.role(Role::Accent),
            );
        }
        if top + row == palette.cursor {
            buf.set_style(
                Rect::new(list.x, y, list.width, 1),
                theme.role(Role::Selected),
            );
        }
    }
    if palette.hits.is_empty() {
        buf.set_stringn(
            list.x + 1,
            list.y,
            "nothing has this name, id or meaning",
            list.width.saturating_sub(1) as usize,
            theme.role(Role::Dim),
        );
    }
    let foot = Rect::new(inner.x, inner.y + inner.height - 1, inner.width, 1);
    hints(
        &[("Enter", "go"), ("↑↓", "choose"), ("Esc", "close")],
        foot,
        buf,
        theme,
    );
    cursor
}

fn highlight(
    name: &str,
    hit: &[u32],
    at: (u16, u16),
    style: ratatui::style::Style,
    buf: &mut Buffer,
) {
    let mut x = at.0;
    for (i, c) in name.chars().enumerate() {
        let w = text::width(&c.to_string());
        if hit.binary_search(&(i as u32)).is_ok() && c != '…' {
            buf.set_style(Rect::new(x, at.1, w, 1), style);
        }
        x += w;
    }
}
