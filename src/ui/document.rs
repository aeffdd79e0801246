//! A page that is read from top to bottom: headings, fields and links, with a cursor on the lines. Detail views, the
//! overview's columns and decoded values are documents.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use serde_json::Value;

use crate::engine::ids::{Tso, UnixMs, UnixNs, UnixSecs};
use crate::engine::model::resource::{Kind, RowId, Scope, Tone};

use super::text;
use super::theme::{Role, Theme};

/// Where Enter on a line leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// One thing.
    Row(Kind, RowId),
    /// A list.
    List(Kind, Scope),
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing.
    Blank,
    /// A heading.
    Heading,
    /// A name and a value.
    Field,
    /// Text across.
    Text,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it is.
    pub shape: Shape,
    /// Steps to the right.
    pub indent: u16,
    /// Name, or the text.
    pub label: String,
    /// Value.
    pub value: String,
    /// The value stands at the right, as numbers do.
    pub right: bool,
    /// How serious.
    pub tone: Tone,
    /// Stands behind the value, less important.
    pub note: String,
    /// Where it leads.
    pub link: Option<Link>,
}

impl Line {
    /// A heading.
    #[must_use]
    pub fn heading(label: impl Into<String>) -> Self {
        Self::of(Shape::Heading, label.into(), String::new())
    }

    /// A field.
    #[must_use]
    pub fn field(label: impl Into<String>, value: impl Into<String>) -> Self {
        Self::of(Shape::Field, label.into(), value.into())
    }

    /// A text.
    #[must_use]
    pub fn text(label: impl Into<String>) -> Self {
        Self::of(Shape::Text, label.into(), String::new())
    }

    /// A gap.
    #[must_use]
    pub fn blank() -> Self {
        Self::of(Shape::Blank, String::new(), String::new())
    }

    const fn of(shape: Shape, label: String, value: String) -> Self {
        Self {
            shape,
            indent: 0,
            label,
            value,
            right: false,
            tone: Tone::Plain,
            note: String::new(),
            link: None,
        }
    }

    /// With a tone.
    #[must_use]
    pub const fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    /// Leading somewhere.
    #[must_use]
    pub fn to(mut self, link: Option<Link>) -> Self {
        self.link = link;
        self
    }

    /// Moved to the right.
    #[must_use]
    pub const fn indented(mut self, steps: u16) -> Self {
        self.indent = steps;
        self
    }

    /// With a note behind the value.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// With its value at the right.
    #[must_use]
    pub const fn right(mut self) -> Self {
        self.right = true;
        self
    }
}

/// A JSON tree, a line a leaf. Objects in arrays are numbered; empty containers stay visible.
#[must_use]
pub fn tree(value: &Value) -> Vec<Line> {
    let mut out = Vec::new();
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                grow(name.clone(), child, 0, &mut out);
            }
        }
        Value::Array(items) => {
            for (i, child) in items.iter().enumerate() {
                grow(format!("[{i}]"), child, 0, &mut out);
            }
        }
        leaf => out.push(Line::text(scalar(leaf))),
    }
    if out.is_empty() {
        out.push(Line::text("empty").tone(Tone::Dim));
    }
    out
}

/// Deeper than any real value; a hostile one must not exhaust the stack.
const DEEP: u16 = 64;

fn grow(name: String, value: &Value, depth: u16, out: &mut Vec<Line>) {
    match value {
        Value::Object(map) if !map.is_empty() && depth < DEEP => {
            out.push(Line::field(name, "").indented(depth));
            for (key, child) in map {
                grow(key.clone(), child, depth + 1, out);
            }
        }
        Value::Array(items) if !items.is_empty() && depth < DEEP => {
            let flat = items.iter().all(|i| !i.is_object() && !i.is_array());
            if flat {
                let all: Vec<String> = items.iter().map(scalar).collect();
                out.push(Line::field(name, all.join(", ")).indented(depth));
            } else {
                out.push(
                    Line::field(
                        name,
                        match items.len() {
                            1 => "1 item".to_owned(),
                            n => format!("{} items", text::count(n)),
                        },
                    )
                    .indented(depth)
                    .tone(Tone::Dim),
                );
                for (i, child) in items.iter().enumerate() {
                    grow(format!("[{i}]"), child, depth + 1, out);
                }
            }
        }
        leaf => {
            let note = moment(&name, leaf)
                .or_else(|| size(&name, leaf))
                .unwrap_or_default();
            out.push(Line::field(name, scalar(leaf)).indented(depth).note(note));
        }
    }
}

/// A number that is a time by its name, as a time. Ids look like timestamps, so the name decides; sentinels are not
/// times (law 10).
fn moment(name: &str, leaf: &Value) -> Option<String> {
    let number: u64 = match leaf {
        Value::Number(n) => n.as_u64()?,
        Value::String(s) => s.parse().ok()?,
        _ => return None,
    };
    let name = name.to_ascii_lowercase();
    let called = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
    if !called(&["time", "_ts", "_at", "expire"]) && name != "ts" {
        return None;
    }
    // Nanoseconds, hybrid timestamps, milliseconds and seconds of this century do not overlap.
    let at = match number {
        1_500_000_000_000_000_000..4_000_000_000_000_000_000 => {
            UnixNs(number.cast_signed()).to_ms()
        }
        400_000_000_000_000_000..1_000_000_000_000_000_000 => Tso(number).time()?,
        1_500_000_000_000..4_000_000_000_000 => UnixMs(number.cast_signed()),
        1_500_000_000..4_000_000_000 => UnixSecs(number.cast_signed()).to_ms(),
        _ => return None,
    };
    Some(at.utc())
}

/// A number of bytes by its name, as a size.
fn size(name: &str, leaf: &Value) -> Option<String> {
    let bytes = leaf.as_u64().filter(|n| name == "bytes" && *n >= 1024)?;
    Some(text::bytes(bytes))
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Object(map) if !map.is_empty() => "{…}".to_owned(),
        Value::Array(items) if !items.is_empty() => "[…]".to_owned(),
        other => other.to_string(),
    }
}

/// Bytes as sixteen a line with their letters, at most `max` bytes.
#[must_use]
pub fn hex(bytes: &[u8], max: usize) -> Vec<Line> {
    use std::fmt::Write as _;
    let mut out: Vec<Line> = bytes[..bytes.len().min(max)]
        .chunks(16)
        .enumerate()
        .map(|(i, chunk)| {
            let mut line = format!("{:06x}  ", i * 16);
            for j in 0..16 {
                match chunk.get(j) {
                    Some(b) => {
                        let _ = write!(line, "{b:02x} ");
                    }
                    None => line.push_str("   "),
                }
                if j == 7 {
                    line.push(' ');
                }
            }
            line.push(' ');
            line.extend(chunk.iter().map(|b| {
                if (0x20..0x7f).contains(b) {
                    *b as char
                } else {
                    '.'
                }
            }));
            Line::text(line).tone(Tone::Dim)
        })
        .collect();
    if bytes.len() > max {
        out.push(
            Line::text(format!(
                "… {} more",
                text::bytes((bytes.len() - max) as u64)
            ))
            .tone(Tone::Dim),
        );
    }
    out
}

/// The next heading after `from`, or the last line.
#[must_use]
pub fn next_heading(lines: &[Line], from: usize) -> usize {
    lines
        .iter()
        .enumerate()
        .skip(from + 1)
        .find(|(_, l)| l.shape == Shape::Heading)
        .map_or(lines.len().saturating_sub(1), |(i, _)| i)
}

/// The heading before `from`, or the first line.
#[must_use]
pub fn previous_heading(lines: &[Line], from: usize) -> usize {
    lines
        .iter()
        .enumerate()
        .take(from)
        .rev()
        .find(|(_, l)| l.shape == Shape::Heading)
        .map_or(0, |(i, _)| i)
}

/// Draws `lines` from `top`; `cursor` is the line under the cursor, if the page has one.
pub fn draw(
    lines: &[Line],
    top: usize,
    cursor: Option<usize>,
    area: Rect,
    buf: &mut Buffer,
    theme: Theme,
) {
    if area.width < 4 || area.height == 0 {
        return;
    }
    // Names stand in one column, as wide as the widest name in sight but never more than two fifths of the page.
    let seen = lines.iter().skip(top).take(area.height as usize);
    let label = seen
        .clone()
        .filter(|l| l.shape == Shape::Field)
        .map(|l| text::width(&l.label) + 2 * l.indent)
        .max()
        .unwrap_or(0)
        .min(area.width * 2 / 5)
        .max(8);
    for (i, line) in seen.enumerate() {
        let y = area.y + i as u16;
        let row = Rect::new(area.x, y, area.width, 1);
        let under = cursor == Some(top + i);
        draw_line(line, label, under, row, buf, theme);
        if under {
            buf.set_style(row, theme.role(Role::Selected));
        }
    }
}

fn draw_line(line: &Line, label: u16, under: bool, area: Rect, buf: &mut Buffer, theme: Theme) {
    let gutter = if under { "▶" } else { " " };
    buf.set_stringn(area.x, area.y, gutter, 1, theme.role(Role::Accent));
    let x = area.x + 2 + 2 * line.indent.min(area.width / 4);
    let end = area.x + area.width;
    let room = |from: u16| end.saturating_sub(from);
    let mark = match line.shape {
        Shape::Blank => return,
        _ => theme.mark(line.tone).trim_end(),
    };
    match line.shape {
        Shape::Blank => {}
        Shape::Heading => {
            let style = theme.role(Role::Sorted);
            buf.set_stringn(
                area.x + 1,
                area.y,
                text::fit(&line.label, room(area.x + 1)),
                room(area.x + 1) as usize,
                style,
            );
        }
        Shape::Text => {
            let mut shown = line.label.clone();
            if !mark.is_empty() {
                shown = format!("{mark} {shown}");
            }
            let arrow = if line.link.is_some() { " ›" } else { "" };
            let shown = text::fit(&shown, room(x).saturating_sub(text::width(arrow)));
            let (after, _) =
                buf.set_stringn(x, area.y, shown, room(x) as usize, theme.tone(line.tone));
            buf.set_stringn(
                after,
                area.y,
                arrow,
                room(after) as usize,
                theme.role(Role::Accent),
            );
        }
        Shape::Field => {
            let name_style = theme.role(Role::Dim);
            let name_room = (area.x + 2 + label).saturating_sub(x).min(room(x));
            buf.set_stringn(
                x,
                area.y,
                text::fit(&line.label, name_room),
                name_room as usize,
                name_style,
            );
            let vx = area.x + 2 + label + 2;
            draw_value(line, mark, (vx, area.y, room(vx)), buf, theme);
        }
    }
}

fn value_style(line: &Line, theme: Theme) -> Style {
    if line.link.is_some() && line.tone == Tone::Plain {
        theme.role(Role::Accent)
    } else {
        theme.tone(line.tone)
    }
}

/// Cells in which a value at the right ends.
const RIGHT: u16 = 12;

fn draw_value(line: &Line, mark: &str, at: (u16, u16, u16), buf: &mut Buffer, theme: Theme) {
    let (x, y, room) = at;
    if room == 0 {
        return;
    }
    let style = value_style(line, theme);
    let mut shown = line.value.clone();
    if !mark.is_empty() {
        shown = format!("{mark} {shown}");
    }
    let arrow = if line.link.is_some() { " ›" } else { "" };
    let shown = text::fit(&shown, room.saturating_sub(text::width(arrow)));
    let shift = if line.right {
        room.min(RIGHT).saturating_sub(text::width(&shown))
    } else {
        0
    };
    let (end, _) = buf.set_stringn(x + shift, y, shown, (room - shift) as usize, style);
    let left = (x + room).saturating_sub(end);
    let (end, _) = buf.set_stringn(end, y, arrow, left as usize, style);
    if !line.note.is_empty() {
        // Notes stand in a column of their own, with or without an arrow before them.
        let from = if line.right {
            (x + RIGHT + 3).max(end + 1)
        } else {
            end + 2
        };
        let left = (x + room).saturating_sub(from);
        let note = text::fit(&line.note, left);
        buf.set_stringn(
            from.min(x + room),
            y,
            note,
            left as usize,
            theme.role(Role::Dim),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tree_loses_no_leaf_and_shows_empty_containers() {
        let lines =
            tree(&json!({"a": 1, "b": {"c": "x", "d": []}, "e": [1, 2], "f": [{"g": null}]}));
        let shown: Vec<(u16, &str, &str)> = lines
            .iter()
            .map(|l| (l.indent, l.label.as_str(), l.value.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (0, "a", "1"),
                (0, "b", ""),
                (1, "c", "x"),
                (1, "d", "[]"),
                (0, "e", "1, 2"),
                (0, "f", "1 item"),
                (1, "[0]", ""),
                (2, "g", "null"),
            ]
        );
    }

    #[test]
    fn times_are_told_apart_by_name_and_size_and_sentinels_are_none() {
        let told = |name: &str, n: u64| moment(name, &json!(n));
        assert_eq!(
            told("timestamp", 470_660_334_983_839_746).as_deref(),
            Some("2026-11-23T09:38:12Z")
        );
        assert_eq!(
            told("dropped_at", 1_795_427_010_860_157_830).as_deref(),
            Some("2026-11-23T09:43:30Z")
        );
        assert_eq!(
            told("create_time", 1_795_427_010).as_deref(),
            Some("2026-11-23T09:43:30Z")
        );
        assert_eq!(told("collectionID", 470_660_334_983_839_746), None);
        for sentinel in [0, u64::MAX] {
            assert_eq!(told("timestamp", sentinel), None);
        }
    }

    #[test]
    fn a_hostile_depth_is_survived() {
        let mut value = json!(1);
        for _ in 0..2000 {
            value = Value::Array(vec![value, json!({})]);
        }
        assert!(!tree(&value).is_empty());
        // Dropping a deep value recurses in serde_json itself; that is not what is tested here.
        std::mem::forget(value);
    }

    #[test]
    fn hex_shows_offset_bytes_and_letters() {
        let lines = hex(b"falconer\x00\xff sees it", 16);
        assert_eq!(
            lines[0].label,
            "000000  66 61 6c 63 6f 6e 65 72  00 ff 20 73 65 65 73 20  falconer.. sees "
        );
        assert_eq!(lines[1].label, "… 2 B more");
        assert!(hex(b"", 16).is_empty());
    }

    #[test]
    fn tab_walks_the_headings() {
        let lines = [
            Line::text("a"),
            Line::heading("one"),
            Line::field("x", "y"),
            Line::heading("two"),
            Line::text("z"),
        ];
        assert_eq!(next_heading(&lines, 0), 1);
        assert_eq!(next_heading(&lines, 1), 3);
        assert_eq!(next_heading(&lines, 3), 4);
        assert_eq!(previous_heading(&lines, 4), 3);
        assert_eq!(previous_heading(&lines, 1), 0);
    }
}
