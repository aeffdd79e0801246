//! One thing in full: where one can go from it, its fields, its files, its keys; and a key's value decoded and raw.

use crate::engine::ids::UnixMs;
use crate::engine::model::related;
use crate::engine::model::resource::{self, Kind, RowId, Tone};
use crate::ui::app::App;
use crate::ui::document::{self, Line, Link};
use crate::ui::nav::Remote;
use crate::ui::{cells, job_words, text};

/// Bytes of a value that are shown raw.
const HEX: usize = 16 * 1024;
/// Keys that are listed.
const KEYS: usize = 200;

/// The page about a row.
#[must_use]
pub fn lines(app: &App, kind: Kind, id: &RowId, now: UnixMs) -> Vec<Line> {
    let world = app.world(now);
    let view = world.view();
    let mut out = Vec::new();
    let links = resource::related(&view, id);
    if !links.is_empty() {
        out.push(Line::heading("Related"));
        for (label, link) in links {
            let link = match link {
                related::Link::List(kind, scope) => Link::List(kind, scope),
                related::Link::Row(id) => Link::Row(id.kind(), id),
            };
            out.push(Line::text(label).to(Some(link)));
        }
        out.push(Line::blank());
    }
    if let RowId::Key(_) = id {
        out.extend(raw(app));
        return out;
    }
    let sections = resource::detail(&view, id);
    if sections.is_empty() {
        out.push(Line::heading(cells::spec(kind).title));
        out.push(Line::text(format!("{} is not there any more.", id.text())).tone(Tone::Warn));
        return out;
    }
    if let RowId::Job(job) = id
        && let Some(job) = app.jobs.jobs.iter().find(|j| j.id == *job)
    {
        out.push(Line::heading("Progress"));
        out.extend(job_words::lines(app, job, now));
        out.push(Line::blank());
        let files = job_words::files(job, usize::MAX);
        if !files.is_empty() {
            out.push(Line::heading("Copies"));
            out.extend(files);
            out.push(Line::blank());
        }
    }
    // The answer says them better, once it is there.
    let answered = matches!(id, RowId::Snapshot(_)) && app.history.page().tree.shown().is_some();
    let said = |title: &str| answered && ["Pins", "Boundary"].contains(&title);
    for (title, fields) in sections.into_iter().filter(|(title, _)| !said(title)) {
        out.push(Line::heading(if title == "Row" {
            cells::spec(kind).title
        } else {
            title
        }));
        for (name, cell) in fields {
            let value = cells::plain(&cell);
            let room = app.size.0.saturating_mul(3) / 5;
            for (i, words) in text::wrap(&value, room.saturating_sub(8))
                .into_iter()
                .enumerate()
            {
                let label = if i == 0 { name.clone() } else { String::new() };
                out.push(Line::field(label, words).tone(cells::tone(&cell)));
            }
        }
        out.push(Line::blank());
    }
    if let RowId::Snapshot(_) = id {
        out.extend(tree(app, "reading metadata and manifests …"));
        out.push(Line::blank());
    }
    if let RowId::Quarantine(_) = id {
        out.push(Line::heading("What lies there"));
        out.extend(tree(app, "listing …"));
        out.push(Line::blank());
    }
    let keys = resource::keys(&view, id);
    if !keys.is_empty() {
        out.push(Line::heading(format!("Keys · {}", text::count(keys.len()))));
        for key in keys.iter().take(KEYS) {
            let row = RowId::Key(key.clone());
            out.push(
                Line::text(text::fit_middle(&key.text(), app.size.0.saturating_sub(8)))
                    .to(Some(Link::Row(Kind::Keys, row))),
            );
        }
        if keys.len() > KEYS {
            out.push(Line::text(format!("… {} more", keys.len() - KEYS)).tone(Tone::Dim));
        }
    }
    out
}

fn raw(app: &App) -> Vec<Line> {
    let page = app.history.page();
    let mut out = Vec::new();
    if let Remote::Failed(error) = &page.raw {
        out.push(Line::heading("Value"));
        out.extend(wrapped(app, &error.to_string(), Tone::Bad));
        return out;
    }
    let Some(shown) = page.raw.shown() else {
        out.push(Line::heading("Value"));
        out.push(Line::text("reading …").tone(Tone::Busy));
        return out;
    };
    let value = &shown.value;
    let (created, modified, version, lease) = value.revs;
    out.push(Line::heading("Key"));
    out.push(Line::field("key", value.key.text()));
    out.push(Line::field("family", value.family.clone()));
    let Some(bytes) = &value.value else {
        out.push(Line::text("The key does not exist any more.").tone(Tone::Warn));
        return out;
    };
    out.push(Line::field(
        "revision",
        format!(
            "{} · created {} · version {version}",
            text::grouped(modified.0),
            text::grouped(created.0)
        ),
    ));
    if lease != 0 {
        out.push(Line::field("lease", format!("{lease:x}")));
    }
    out.push(Line::field("size", text::bytes(bytes.len() as u64)));
    out.push(Line::blank());
    out.push(Line::heading("Value"));
    match &value.decoded {
        Ok(_) => out.extend(shown.lines.iter().cloned()),
        Err(why) => out.extend(wrapped(app, why, Tone::Bad)),
    }
    out.push(Line::blank());
    out.push(Line::heading("Bytes"));
    if bytes.is_empty() {
        out.push(Line::text("none").tone(Tone::Dim));
    }
    out.extend(document::hex(bytes, HEX));
    out
}

fn tree(app: &App, waiting: &str) -> Vec<Line> {
    match &app.history.page().tree {
        Remote::Failed(error) => wrapped(app, &error.to_string(), Tone::Bad),
        other => match other.shown() {
            Some(lines) => lines.to_vec(),
            None => vec![Line::text(waiting).tone(Tone::Busy)],
        },
    }
}

fn wrapped(app: &App, words: &str, tone: Tone) -> Vec<Line> {
    text::wrap(words, app.size.0.saturating_sub(6))
        .into_iter()
        .map(|l| Line::text(l).tone(tone))
        .collect()
}

/// The first rows of a segment.
#[must_use]
pub fn rows(app: &App) -> Vec<Line> {
    let mut out = vec![Line::heading("First rows, deleted ones left out")];
    out.extend(tree(app, "reading the segment's files …"));
    out
}

/// The answer of the health check.
#[must_use]
pub fn doctor(app: &App) -> Vec<Line> {
    let mut out = vec![Line::heading("Health check")];
    out.extend(tree(app, "checking …"));
    out
}
