//! The first screen: what is wrong, worst first; what there is; what runs. An empty store is welcomed.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::engine::handle::Conn;
use crate::engine::ids::UnixMs;
use crate::engine::model::health::{Fault, Severity};
use crate::engine::model::overview::{Overview, StateCount};
use crate::engine::model::resource::{Kind, RowId, Scope, Tone};
use crate::ui::app::App;
use crate::ui::document::{self, Line, Link};
use crate::ui::{job_words, operate, text};

/// From this width on, faults stand at the left and numbers at the right.
const WIDE: u16 = 110;
/// Faults of one rule that are shown before the rest is counted.
const EACH: usize = 3;
/// Lines of faults at most.
const MOST: usize = 60;

/// The whole page in reading order.
#[must_use]
pub fn lines(app: &App, now: UnixMs) -> Vec<Line> {
    let (left, right) = columns(app, now);
    left.into_iter().chain(right).collect()
}

fn columns(app: &App, now: UnixMs) -> (Vec<Line>, Vec<Line>) {
    let waiting = matches!(app.conn, Conn::Connecting { .. } | Conn::Syncing { .. });
    if app.catalog.rev.0 == 0 && waiting {
        return (waiting_words(app, now), Vec::new());
    }
    if operate::is_empty_store(app) {
        return (welcome(app, now), Vec::new());
    }
    let Some(summary) = &app.summary else {
        return (Vec::new(), Vec::new());
    };
    let mut left = running(app, now);
    left.extend(faults(app, &summary.faults, now));
    if app.size.0 < WIDE {
        left.push(Line::blank());
    }
    (left, numbers(&summary.overview))
}

fn waiting_words(app: &App, now: UnixMs) -> Vec<Line> {
    let (words, tone) = crate::ui::chrome::conn_text(&app.conn, now);
    let mut out = vec![Line::heading(format!("Attaching to {}", app.place.meta))];
    for line in text::wrap(&words, app.size.0.saturating_sub(6)) {
        out.push(Line::text(line).tone(tone));
    }
    out
}

fn welcome(app: &App, now: UnixMs) -> Vec<Line> {
    let mut out = running(app, now);
    out.push(Line::heading("An empty store"));
    let words = if app.place.read_only.is_some() {
        "Nothing has been written here yet, and this attach is read-only."
    } else {
        "Nothing has been written here yet. Everything that Falconer does on a cluster it does here, too."
    };
    for line in text::wrap(words, app.size.0.saturating_sub(6).min(76)) {
        out.push(Line::text(line));
    }
    out.push(Line::blank());
    out.push(Line::field(
        "D",
        "build a small living demo cluster: collections, segments, snapshots, a restore",
    ));
    out.push(Line::field(
        ":",
        "go anywhere, do anything, find any name or id",
    ));
    out.push(Line::field("?", "keys and words of every page"));
    out.push(Line::blank());
    out.push(
        Line::text("falconer --etcd URL --root by-dev opens a real cluster; it stays read-only until you ask.")
            .tone(Tone::Dim),
    );
    out.push(Line::text("falconer --dump FILE opens a dump of its metadata.").tone(Tone::Dim));
    out
}

fn running(app: &App, now: UnixMs) -> Vec<Line> {
    let jobs: Vec<_> = app.jobs.jobs.iter().filter(|j| !j.state.ended()).collect();
    if jobs.is_empty() {
        return Vec::new();
    }
    let mut out = vec![Line::heading("Running")];
    for job in jobs.iter().take(5) {
        let id = RowId::Job(job.id);
        out.push(
            Line::text(job_words::one_line(job, now))
                .tone(job_words::tone(job.state))
                .to(Some(Link::Row(Kind::Jobs, id))),
        );
    }
    if jobs.len() > 5 {
        out.push(
            Line::text(format!("{} more jobs", jobs.len() - 5))
                .tone(Tone::Dim)
                .to(Some(Link::List(Kind::Jobs, Scope::default()))),
        );
    }
    out.push(Line::blank());
    out
}

const fn fault_tone(severity: Severity) -> Tone {
    match severity {
        Severity::Bad => Tone::Bad,
        Severity::Warn => Tone::Warn,
        Severity::Info => Tone::Plain,
    }
}

fn faults(app: &App, faults: &[Fault], now: UnixMs) -> Vec<Line> {
    let width = if app.size.0 >= WIDE {
        left_width(app.size.0)
    } else {
        app.size.0
    };
    let room = width.saturating_sub(6);
    let mut out = Vec::new();
    if faults.is_empty() {
        out.push(Line::heading("Faults"));
        out.push(Line::text("Nothing is wrong that can be seen from here.").tone(Tone::Good));
        return out;
    }
    let count = |s: Severity| faults.iter().filter(|f| f.severity == s).count();
    let mut words = Vec::new();
    for (n, what) in [
        (count(Severity::Bad), "bad"),
        (count(Severity::Warn), "to look at"),
        (count(Severity::Info), "to know"),
    ] {
        if n > 0 {
            words.push(format!("{} {what}", text::count(n)));
        }
    }
    out.push(Line::heading(format!("Faults · {}", words.join(" · "))));
    for group in faults.chunk_by(|a, b| a.rule == b.rule && a.severity == b.severity) {
        if out.len() > MOST {
            out.push(Line::text("… and more kinds of faults").tone(Tone::Dim));
            break;
        }
        let tone = fault_tone(group[0].severity);
        for fault in group.iter().take(EACH) {
            let link = fault.subject.clone().map(|id| Link::Row(id.kind(), id));
            let age = fault
                .since
                .map_or_else(String::new, |at| format!(" · {}", text::age(now.since(at))));
            for (i, words) in text::wrap(&format!("{}{age}", fault.reason), room)
                .into_iter()
                .enumerate()
            {
                let line = Line::text(words).tone(tone);
                out.push(if i == 0 {
                    line.to(link.clone())
                } else {
                    line.indented(1)
                });
            }
        }
        if group.len() > EACH {
            let kind = group[0].subject.as_ref().map(RowId::kind);
            out.push(
                Line::text(format!(
                    "and {} more like these",
                    text::count(group.len() - EACH)
                ))
                .tone(tone)
                .indented(1)
                .to(kind.map(|k| Link::List(k, Scope::default()))),
            );
        }
        for words in text::wrap(group[0].next, room.saturating_sub(2)) {
            out.push(Line::text(words).tone(Tone::Dim).indented(1));
        }
    }
    out
}

fn states(counts: &[StateCount]) -> String {
    counts
        .iter()
        .map(|s| format!("{} {}", text::count(s.count), s.state))
        .collect::<Vec<_>>()
        .join(" · ")
}

fn numbers(o: &Overview) -> Vec<Line> {
    let list = |kind| Some(Link::List(kind, Scope::default()));
    let number = |label: &str, n: u64, note: String, kind| {
        Line::field(label, text::count(n))
            .right()
            .note(note)
            .to(list(kind))
    };
    let sum = |counts: &[StateCount]| counts.iter().map(|s| s.count).sum::<u64>();
    let some = |n: u64, what: &str| {
        if n > 0 {
            format!("{} {what}", text::count(n))
        } else {
            String::new()
        }
    };
    let mut out = vec![
        Line::heading("Cluster"),
        number("databases", o.databases, String::new(), Kind::Databases),
        number(
            "collections",
            o.collections.0,
            some(o.collections.1, "loaded"),
            Kind::Collections,
        ),
        number("partitions", o.partitions, String::new(), Kind::Partitions),
        number(
            "segments",
            sum(&o.segments),
            states(&o.segments),
            Kind::Segments,
        ),
        number(
            "index builds",
            sum(&o.builds),
            states(&o.builds),
            Kind::SegmentIndexes,
        ),
        number(
            "channels",
            o.channels.0,
            some(o.channels.1, "dropped"),
            Kind::Channels,
        ),
        number(
            "snapshots",
            sum(&o.snapshots),
            states(&o.snapshots),
            Kind::Snapshots,
        ),
        number(
            "jobs",
            o.jobs.0 + o.jobs.1,
            some(o.jobs.0, "running"),
            Kind::Jobs,
        ),
        number("tasks", o.tasks, String::new(), Kind::Tasks),
        number(
            "sessions",
            o.sessions.0,
            some(o.sessions.1, "coordinators"),
            Kind::Sessions,
        ),
    ];
    if o.broadcasts != (0, 0) {
        let (open, over) = o.broadcasts;
        out.push(number(
            "broadcasts",
            open + over,
            some(open, "under way"),
            Kind::Broadcasts,
        ));
    }
    if o.undecodable > 0 {
        out.push(
            number(
                "unreadable",
                o.undecodable,
                String::new(),
                Kind::Undecodable,
            )
            .tone(Tone::Bad),
        );
    }
    out.push(Line::blank());
    out.push(Line::heading("Data"));
    let plain =
        |label: &str, value: String, note: String| Line::field(label, value).right().note(note);
    out.push(plain(
        "rows",
        text::grouped(o.rows),
        "deletes not taken off".into(),
    ));
    out.push(plain("deletes", text::count(o.deletes), String::new()));
    let names = ["insert", "delta", "statistics", "BM25"];
    let split: Vec<String> = names
        .iter()
        .zip(o.log_bytes)
        .filter(|(_, b)| *b > 0)
        .map(|(n, b)| format!("{} {n}", text::bytes(b)))
        .collect();
    out.push(plain(
        "logs",
        text::bytes(o.log_bytes.iter().sum()),
        split.join(" · "),
    ));
    out.push(plain("indexes", text::bytes(o.index_bytes), String::new()));
    let dropped = plain(
        "dropped",
        text::bytes(o.dropped_bytes),
        "waiting for collection".into(),
    );
    out.push(if o.dropped_bytes > 0 {
        dropped.tone(Tone::Warn)
    } else {
        dropped
    });
    out.push(plain("log files", text::count(o.files), String::new()));
    let (keys, key_bytes, value_bytes) = o.keys;
    out.push(
        plain(
            "keys",
            text::count(keys),
            format!("{} metadata", text::bytes(key_bytes + value_bytes)),
        )
        .to(list(Kind::Keys)),
    );
    out.push(Line::blank());
    out.push(Line::heading("Checkpoints"));
    let age = |ms: Option<u64>| ms.map_or_else(|| "–".to_owned(), text::age);
    out.push(Line::field(
        "newest (UTC)",
        o.newest_checkpoint.map_or_else(
            || "–".to_owned(),
            |at| at.utc().replace('T', " ").trim_end_matches('Z').to_owned(),
        ),
    ));
    out.push(
        Line::field("worst lag", age(o.worst_lag))
            .right()
            .note("behind now"),
    );
    out.push(
        Line::field("worst gap", age(o.worst_behind))
            .right()
            .note("behind the newest"),
    );
    out
}

fn left_width(width: u16) -> u16 {
    width * 11 / 20
}

/// Draws it in one column or two.
pub fn draw(app: &App, area: Rect, buf: &mut Buffer, now: UnixMs) {
    let (left, right) = columns(app, now);
    let page = app.history.page();
    if area.width < WIDE || right.is_empty() {
        let all: Vec<Line> = left.into_iter().chain(right).collect();
        document::draw(&all, page.top, Some(page.line), area, buf, app.theme);
        return;
    }
    let split = left.len();
    let (tops, areas) = halves(split, page.line, area);
    let cursor = |from: usize| page.line.checked_sub(from);
    let in_left = (page.line < split).then_some(page.line);
    document::draw(&left, tops.0, in_left, areas.0, buf, app.theme);
    document::draw(&right, tops.1, cursor(split), areas.1, buf, app.theme);
}

/// First lines and areas of the two columns; each scrolls only as far as the cursor in it asks.
fn halves(split: usize, line: usize, area: Rect) -> ((usize, usize), (Rect, Rect)) {
    let width = left_width(area.width);
    let height = area.height as usize;
    let top = |at: usize| (at + 1).saturating_sub(height);
    let tops = if line < split {
        (top(line), 0)
    } else {
        (0, top(line - split))
    };
    let left = Rect::new(area.x, area.y, width, area.height);
    let right = Rect::new(area.x + width, area.y, area.width - width, area.height);
    (tops, (left, right))
}

/// The line at a cell of the screen.
#[must_use]
pub fn line_at(app: &App, area: Rect, at: (u16, u16), now: UnixMs) -> Option<usize> {
    let (left, right) = columns(app, now);
    let page = app.history.page();
    let row = at.1.checked_sub(area.y)? as usize;
    if area.width < WIDE || right.is_empty() {
        let line = page.top + row;
        return (line < left.len() + right.len()).then_some(line);
    }
    let (tops, areas) = halves(left.len(), page.line, area);
    if at.0 < areas.1.x {
        let line = tops.0 + row;
        (line < left.len()).then_some(line)
    } else {
        let line = tops.1 + row;
        (line < right.len()).then_some(left.len() + line)
    }
}
