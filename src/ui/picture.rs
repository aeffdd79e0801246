//! The real screen as text, as ANSI or as a picture: for tests, for bug reports and for the README, which therefore cannot
//! show what the console does not.

use std::fmt::Write as _;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

use crate::engine::ids::UnixMs;

use super::app::App;
use super::{frame, text};

/// Draws the state as it would stand on a terminal of its size.
#[must_use]
pub fn render(app: &App, now: UnixMs) -> Buffer {
    let (width, height) = app.size;
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(drawn) = terminal.draw(|f| frame::view(app, f, now));
    drawn.buffer.clone()
}

fn lines(buffer: &Buffer) -> impl Iterator<Item = &[Cell]> {
    buffer.content().chunks(buffer.area().width.max(1) as usize)
}

/// Cells that hold a letter: the second half of a wide letter is skipped.
fn letters(line: &[Cell]) -> impl Iterator<Item = (usize, &Cell)> {
    let mut skip = 0;
    line.iter().enumerate().filter(move |(_, cell)| {
        if skip > 0 {
            skip -= 1;
            return false;
        }
        skip = text::width(cell.symbol()).saturating_sub(1);
        true
    })
}

/// Letters only, trailing blanks cut.
#[must_use]
pub fn plain(buffer: &Buffer) -> String {
    let mut out = String::new();
    for line in lines(buffer) {
        let row: String = letters(line).map(|(_, c)| c.symbol()).collect();
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

/// Letters with ANSI colours.
#[must_use]
pub fn ansi(buffer: &Buffer) -> String {
    let mut out = String::new();
    for line in lines(buffer) {
        let mut last = String::new();
        for (_, cell) in letters(line) {
            let style = sgr(cell);
            if style != last {
                let _ = write!(out, "\u{1b}[0{style}m");
                last = style;
            }
            out.push_str(cell.symbol());
        }
        out.push_str("\u{1b}[0m\n");
    }
    out
}

fn sgr(cell: &Cell) -> String {
    let mut out = String::new();
    for (bit, code) in [
        (Modifier::BOLD, 1),
        (Modifier::DIM, 2),
        (Modifier::UNDERLINED, 4),
        (Modifier::REVERSED, 7),
    ] {
        if cell.modifier.contains(bit) {
            let _ = write!(out, ";{code}");
        }
    }
    for (color, base) in [(cell.fg, 30), (cell.bg, 40)] {
        match color {
            Color::Rgb(r, g, b) => {
                let _ = write!(out, ";{};2;{r};{g};{b}", base + 8);
            }
            Color::Indexed(i) => {
                let _ = write!(out, ";{};5;{i}", base + 8);
            }
            other => {
                if let Some(n) = named(other) {
                    let code = if n < 8 { base + n } else { base + 60 + n - 8 };
                    let _ = write!(out, ";{code}");
                }
            }
        }
    }
    out
}

fn named(color: Color) -> Option<u8> {
    const NAMES: [Color; 16] = [
        Color::Black,
        Color::Red,
        Color::Green,
        Color::Yellow,
        Color::Blue,
        Color::Magenta,
        Color::Cyan,
        Color::Gray,
        Color::DarkGray,
        Color::LightRed,
        Color::LightGreen,
        Color::LightYellow,
        Color::LightBlue,
        Color::LightMagenta,
        Color::LightCyan,
        Color::White,
    ];
    NAMES.iter().position(|c| *c == color).map(|i| i as u8)
}

/// The whole screen with the runs of letters that share a style.
#[must_use]
pub fn styled(buffer: &Buffer) -> String {
    let mut out = plain(buffer);
    out.push_str("--- styles: row: columns style\n");
    for (y, line) in lines(buffer).enumerate() {
        let mut runs: Vec<(usize, usize, String)> = Vec::new();
        for (x, cell) in line.iter().enumerate() {
            let style = sgr(cell);
            match runs.last_mut() {
                Some((_, end, last)) if *last == style => *end = x,
                _ => runs.push((x, x, style)),
            }
        }
        runs.retain(|(_, _, style)| !style.is_empty());
        if !runs.is_empty() {
            let _ = write!(out, "{y}:");
            for (from, to, style) in runs {
                let _ = write!(out, " {from}-{to}{}", style.replace(';', ","));
            }
            out.push('\n');
        }
    }
    out
}

const CELL: (f64, f64) = (8.4, 18.0);
const GROUND: &str = "#12151c";
const LETTERS: &str = "#d6dbe5";

/// The screen as an SVG with real letters, so that it stays sharp and can be searched.
#[must_use]
pub fn svg(buffer: &Buffer, title: &str) -> String {
    let (w, h) = (buffer.area().width, buffer.area().height);
    let (width, height) = (f64::from(w) * CELL.0 + 24.0, f64::from(h) * CELL.1 + 52.0);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"9\" fill=\"{GROUND}\"/>\n\
         <circle cx=\"20\" cy=\"18\" r=\"5.5\" fill=\"#f07178\"/><circle cx=\"38\" cy=\"18\" r=\"5.5\" fill=\"#e6b455\"/>\
         <circle cx=\"56\" cy=\"18\" r=\"5.5\" fill=\"#8cc98c\"/>\n\
         <g font-family=\"DejaVu Sans Mono,Menlo,Consolas,monospace\" font-size=\"14\" \
         xml:space=\"preserve\">\n",
        escape(title)
    );
    for (y, line) in lines(buffer).enumerate() {
        let top = 36.0 + y as f64 * CELL.1;
        for run in runs(line) {
            draw_run(&run, top, &mut out);
        }
    }
    out.push_str("</g>\n</svg>\n");
    out
}

struct Run {
    from: usize,
    cells: usize,
    text: String,
    fg: String,
    bg: Option<String>,
    bold: bool,
    underlined: bool,
}

fn runs(line: &[Cell]) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for (x, cell) in letters(line) {
        let (mut fg, mut bg) = (hex(cell.fg), hex(cell.bg));
        if cell.modifier.contains(Modifier::REVERSED) {
            (fg, bg) = (
                Some(bg.unwrap_or_else(|| GROUND.to_owned())),
                Some(fg.unwrap_or_else(|| LETTERS.to_owned())),
            );
        }
        let fg = fg.unwrap_or_else(|| LETTERS.to_owned());
        let bold = cell.modifier.contains(Modifier::BOLD);
        let underlined = cell.modifier.contains(Modifier::UNDERLINED);
        let cells = text::width(cell.symbol()).max(1) as usize;
        match out.last_mut() {
            Some(run)
                if run.fg == fg
                    && run.bg == bg
                    && run.bold == bold
                    && run.underlined == underlined =>
            {
                run.cells += cells;
                run.text.push_str(cell.symbol());
            }
            _ => out.push(Run {
                from: x,
                cells,
                text: cell.symbol().to_owned(),
                fg,
                bg,
                bold,
                underlined,
            }),
        }
    }
    out
}

fn draw_run(run: &Run, top: f64, out: &mut String) {
    let x = 12.0 + run.from as f64 * CELL.0;
    let width = run.cells as f64 * CELL.0;
    if let Some(bg) = &run.bg {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{bg}\"/>",
            CELL.1
        );
    }
    // Each group of words is placed by itself: no renderer then needs the same font to keep the columns.
    let mut at = 0;
    for part in run.text.split("  ") {
        let lead = part.chars().take_while(|c| *c == ' ').count();
        let shown = part.trim();
        if !shown.is_empty() {
            let used = f64::from(text::width(shown)) * CELL.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" textLength=\"{used:.1}\" lengthAdjust=\"spacingAndGlyphs\" fill=\"{}\"{}{}>{}</text>",
                x + (at + lead) as f64 * CELL.0,
                top + 13.5,
                run.fg,
                if run.bold { " font-weight=\"700\"" } else { "" },
                if run.underlined {
                    " text-decoration=\"underline\""
                } else {
                    ""
                },
                escape(shown)
            );
        }
        at += text::width(part) as usize + 2;
    }
}

fn hex(color: Color) -> Option<String> {
    match color {
        Color::Rgb(r, g, b) => Some(format!("#{r:02x}{g:02x}{b:02x}")),
        _ => None,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
