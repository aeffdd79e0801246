//! Our jobs in words: shared by the band, the overview, the panel under the list and the detail page.

use super::app::App;
use super::document::Line;
use super::text;
use crate::engine::ids::UnixMs;
use crate::engine::model::health::STUCK_MS;
use crate::engine::model::jobs::{Copying, JobInfo, JobState};
use crate::engine::model::resource::Tone;

/// Tone of a state. *Completed* is not *Verified* (law 7), so it is still in movement.
#[must_use]
pub const fn tone(state: JobState) -> Tone {
    match state {
        JobState::Pending => Tone::Dim,
        JobState::Running | JobState::Completed => Tone::Busy,
        JobState::Undoing => Tone::Warn,
        JobState::Verified => Tone::Good,
        JobState::Stuck | JobState::Failed => Tone::Bad,
        JobState::Cancelled => Tone::Plain,
    }
}

fn share(job: &JobInfo) -> (u64, u64) {
    let p = &job.progress;
    if p.bytes.1 > 0 {
        p.bytes
    } else if p.files.1 > 0 {
        p.files
    } else if p.segments.1 > 0 {
        p.segments
    } else {
        (u64::from(job.steps.0), u64::from(job.steps.1))
    }
}

/// The running jobs in a few words for the band, at most `room` cells: the title goes first when there is little.
#[must_use]
pub fn brief(app: &App, room: u16) -> String {
    let mut running = app.jobs.jobs.iter().filter(|j| !j.state.rests());
    let Some(job) = running.next() else {
        return String::new();
    };
    let more = running.count();
    let (done, all) = share(job);
    let mut facts = text::percent(done, all);
    if let Some(eta) = job.progress.eta_ms {
        facts = format!("{facts} · {} left", text::age(eta));
    }
    if more > 0 {
        facts = format!("{facts} · +{more}");
    }
    let left = room.saturating_sub(text::width(&facts) + 1);
    if left < 8 {
        return text::fit(&facts, room);
    }
    format!("{} {facts}", text::fit(&job.title, left.min(44)))
}

/// A running job in one line of the overview.
#[must_use]
pub fn one_line(job: &JobInfo, now: UnixMs) -> String {
    let (done, all) = share(job);
    let eta = job
        .progress
        .eta_ms
        .map_or_else(String::new, |ms| format!(" · {} left", text::age(ms)));
    let still = now.since(job.moved);
    let stuck = if still > STUCK_MS {
        format!(" · no movement for {}", text::age(still))
    } else {
        String::new()
    };
    format!(
        "{} {} {}{eta}{stuck} · {}",
        text::bar(done, all, 10),
        text::percent(done, all),
        job.title,
        job.step
    )
}

/// What is known of a job, a line a fact.
#[must_use]
pub fn lines(app: &App, job: &JobInfo, now: UnixMs) -> Vec<Line> {
    let state = format!("{:?}", job.state);
    let mut out = vec![
        Line::field("job", format!("{} · {}", job.id, job.title)),
        Line::field("state", state).tone(tone(job.state)),
    ];
    if !job.step.is_empty() {
        out.push(Line::field(
            "step",
            format!("{} of {} · {}", job.steps.0, job.steps.1, job.step),
        ));
    }
    let (done, all) = share(job);
    if !job.state.ended() || job.progress.bytes.1 > 0 {
        out.push(Line::field(
            "progress",
            format!("{} {}", text::bar(done, all, 24), text::percent(done, all)),
        ));
    }
    out.extend(counters(job));
    if let Some(until) = job.until {
        let left = text::age(until.since(now));
        let words = format!(
            "press r to retry what failed, x to take it back; taken back by itself in {left}"
        );
        out.push(Line::field("waits for you", words).tone(Tone::Bad));
    }
    if !job.state.rests() {
        let eta = job
            .progress
            .eta_ms
            .map_or_else(|| "–".to_owned(), text::age);
        out.push(Line::field(
            "rate",
            format!(
                "{} {}/s · {eta} left{}",
                text::spark(&app.pulse.job(job.id), 24),
                text::bytes(job.progress.rate.max(0.0) as u64),
                dials(job)
            ),
        ));
        let still = now.since(job.moved);
        let line = Line::field("last movement", format!("{} ago", text::age(still)));
        out.push(if still > STUCK_MS {
            line.tone(Tone::Warn)
        } else {
            line
        });
    }
    out.extend(failing(job));
    let end = job.ended.unwrap_or(now);
    out.push(Line::field(
        "started",
        format!(
            "{} · took {}",
            job.started.utc(),
            text::age(end.since(job.started))
        ),
    ));
    if let Some(recovered) = &job.recovered {
        out.push(Line::field("after a crash", recovered.clone()).tone(Tone::Warn));
    }
    if let Some(error) = &job.error {
        out.push(Line::field("error", error.clone()).tone(Tone::Bad));
    }
    out
}

/// Files named beside the list; the page about a job names more.
pub const FEW: usize = 3;
/// Cells of an object's key.
const KEY: u16 = 56;

/// ` · 16 at once · at most 20.0 MiB/s`, of a job that copies.
fn dials(job: &JobInfo) -> String {
    let c = &job.copies;
    if c.parallel == 0 || job.progress.files.1 == 0 {
        return String::new();
    }
    let limit = c
        .limit
        .map_or_else(String::new, |l| format!(" · at most {}/s", text::bytes(l)));
    format!(" · {} at once{limit}", c.parallel)
}

/// What would not copy, in one line.
fn failing(job: &JobInfo) -> Option<Line> {
    let c = &job.copies;
    let first = c.failed.first()?;
    let words = format!(
        "{} not copied; first: {}",
        text::count(c.failing),
        first.error
    );
    Some(Line::field("failing", words).tone(Tone::Bad))
}

/// How the copies go, file by file: the longest under way, the slowest so far, and what would not copy with its first error.
#[must_use]
pub fn files(job: &JobInfo, most: usize) -> Vec<Line> {
    let c = &job.copies;
    let mut out = Vec::new();
    let file = |f: &Copying| {
        format!(
            "{} · {} · {}",
            text::fit_middle(&f.object, KEY),
            text::bytes(f.bytes),
            text::age(f.took_ms)
        )
    };
    if !job.state.rests() {
        for (i, one) in c.running.iter().take(most).enumerate() {
            let label = if i == 0 { "under way" } else { "" };
            out.push(Line::field(label, file(one)));
        }
    }
    if let Some(slowest) = &c.slowest {
        out.push(Line::field("slowest file", file(slowest)));
    }
    for (i, one) in c.failed.iter().take(most).enumerate() {
        let label = if i == 0 { "failing" } else { "" };
        let end = if one.given_up {
            "given up"
        } else {
            "trying again"
        };
        let words = format!(
            "{} · {} tries, {end}",
            text::fit_middle(&one.object, KEY),
            one.tries
        );
        let tone = if one.given_up { Tone::Bad } else { Tone::Warn };
        out.push(Line::field(label, words).tone(tone));
        // The reason is what has to be read: it has a line of its own.
        out.push(Line::field("", one.error.clone()).tone(tone));
    }
    out
}

fn counters(job: &JobInfo) -> Vec<Line> {
    let p = &job.progress;
    let n = |v: u64| text::count(v);
    let mut out = Vec::new();
    if p.segments.1 > 0 {
        let rows = match p.rows {
            0 => String::new(),
            rows => format!(" · {} rows in all", n(rows)),
        };
        out.push(Line::field(
            "segments",
            format!("{} of {}{rows}", n(p.segments.0), n(p.segments.1)),
        ));
    }
    if p.files.1 > 0 {
        out.push(Line::field(
            "files",
            format!("{} of {}", n(p.files.0), n(p.files.1)),
        ));
    }
    if p.bytes.1 > 0 {
        out.push(Line::field(
            "bytes",
            format!("{} of {}", text::bytes(p.bytes.0), text::bytes(p.bytes.1)),
        ));
    }
    out
}
