//! What an action leads to outside: plans, knobs, copies. And why it cannot be done now.

use crate::engine::handle::Request;
use crate::engine::ids::{CollectionId, JobId, SegmentId, SnapshotId, UnixMs};
use crate::engine::model::jobs::{BUNDLE, Copies, JobInfo, JobKind, JobState};
use crate::engine::model::resource::{Kind, RowId};
use crate::engine::plan::Intent;
use crate::engine::scan::Scan;

use super::app::{App, Asked, Effect, Knobs};
use super::keymap::{self, Action};
use super::nav::Place;
use super::overlay::Overlay;
use super::overlay::form::Form;
use super::text;

fn collection(app: &App) -> Option<CollectionId> {
    if let Some(RowId::Collection(id)) = app.target() {
        return Some(id);
    }
    // In a list that belongs to one collection, that collection is meant.
    match &app.history.page().place {
        Place::List(_, scope) => scope.collection,
        _ => None,
    }
}

fn snapshot(app: &App) -> Option<SnapshotId> {
    match app.target() {
        Some(RowId::Snapshot(id)) => Some(id),
        _ => None,
    }
}

fn aside(app: &App) -> Option<JobId> {
    match app.target() {
        Some(RowId::Quarantine(id)) => Some(id),
        _ => None,
    }
}

fn job(app: &App) -> Option<&JobInfo> {
    match app.target() {
        Some(RowId::Job(id)) => app.jobs.jobs.iter().find(|j| j.id == id).map(AsRef::as_ref),
        _ => None,
    }
}

/// Whether nothing has been made here yet: the console then offers the demo.
#[must_use]
pub fn is_empty_store(app: &App) -> bool {
    app.place.attach == "embedded" && app.catalog.keys.is_empty()
}

/// Why an action cannot be done now, in words that say how to make it possible.
#[must_use]
pub fn why_disabled(app: &App, action: Action) -> Option<String> {
    let entry = keymap::entry(action)?;
    // What begins with a plan may be looked at anywhere; the review then refuses to apply it.
    let at_once = matches!(
        action,
        Action::CancelJob
            | Action::Retry
            | Action::Faster
            | Action::Slower
            | Action::Tighten
            | Action::Loosen
    );
    if at_once && let Some(why) = &app.place.read_only {
        return Some(format!("read-only: {why}"));
    }
    let page = app.history.page();
    let list = matches!(page.place, Place::List(..));
    let needs = |there: bool, what: &str| (!there).then(|| what.to_owned());
    match action {
        Action::Rows => needs(
            matches!(app.target(), Some(RowId::Segment(_))),
            "select a segment first",
        ),
        Action::CreateSnapshot => needs(collection(app).is_some(), "select a collection first"),
        Action::Restore | Action::Export | Action::Drop | Action::Pin | Action::Verify => {
            needs(snapshot(app).is_some(), "select a snapshot first")
        }
        Action::Unpin => match snapshot(app).and_then(|id| app.catalog.snapshot(id)) {
            None => Some("select a snapshot first".to_owned()),
            Some(s) => needs(!s.pins.is_empty(), "nobody has pinned this snapshot"),
        },
        Action::CancelJob | Action::Faster | Action::Slower | Action::Tighten | Action::Loosen => {
            match job(app) {
                None => Some("select a job first".to_owned()),
                Some(j) if j.state.ended() => Some("this job has ended".to_owned()),
                Some(_) => None,
            }
        }
        Action::Retry => match job(app) {
            None => Some("select a job first".to_owned()),
            Some(j) if j.state != JobState::Stuck => {
                Some("only a job that is stuck can be retried".to_owned())
            }
            Some(_) => None,
        },
        Action::ResumeGc => needs(!app.jobs.tickets.is_empty(), "no ticket pauses anything"),
        Action::PutBack => needs(
            aside(app).is_some(),
            "select a line of the quarantine first",
        ),
        Action::Purge => needs(!app.jobs.quarantine.is_empty(), "nothing was moved aside"),
        Action::Demo => needs(
            is_empty_store(app),
            "only an empty embedded store can become the demo",
        ),
        Action::Describe | Action::Mark => needs(
            !list || page.table.selected.is_some(),
            "no line is selected",
        ),
        Action::Unmark => needs(!page.table.marks.is_empty(), "nothing is marked"),
        Action::Older => needs(app.history.has_older(), "this is the first page"),
        Action::Newer => needs(app.history.has_newer(), "this is the newest page"),
        _ => {
            let here = super::input::context(&page.place);
            needs(
                entry.contexts.contains(&here),
                "it has no meaning on this page",
            )
        }
    }
}

/// What a page about a segment's rows asks for.
#[must_use]
pub fn sample(segment: SegmentId) -> Scan {
    Scan {
        segment,
        limit: Some(20),
        deletes: true,
        ..Scan::default()
    }
}

/// Begins an action that changes the cluster: a form, a plan or a knob.
pub fn act(app: &mut App, action: Action, now: UnixMs, out: &mut Vec<Effect>) {
    match action {
        Action::CreateSnapshot => {
            let Some(id) = collection(app) else { return };
            let name = app.name_of(&RowId::Collection(id), now);
            let suggestion = suggested(&name, now);
            app.overlay = Some(Overlay::Form(Box::new(Form::snapshot(
                id, &name, suggestion,
            ))));
        }
        Action::Restore => {
            let Some(id) = snapshot(app) else { return };
            let name = app.name_of(&RowId::Snapshot(id), now);
            let (database, target) = origin(app, id, now);
            app.overlay = Some(Overlay::Form(Box::new(Form::restore(
                id, &name, database, target,
            ))));
        }
        Action::Export => {
            let Some(id) = snapshot(app) else { return };
            let name = app.name_of(&RowId::Snapshot(id), now);
            app.overlay = Some(Overlay::Form(Box::new(Form::export(id, &name))));
        }
        Action::RestoreBundle => {
            app.overlay = Some(Overlay::Form(Box::new(Form::bundle(exported(app)))));
        }
        Action::Drop => {
            let Some(id) = snapshot(app) else { return };
            plan(app, Intent::DropSnapshot { snapshot: id }, out);
        }
        Action::Pin => {
            let Some(id) = snapshot(app) else { return };
            let name = app.name_of(&RowId::Snapshot(id), now);
            app.overlay = Some(Overlay::Form(Box::new(Form::pin(id, &name))));
        }
        Action::Unpin => {
            let Some(id) = snapshot(app) else { return };
            let name = app.name_of(&RowId::Snapshot(id), now);
            let pins = app.catalog.snapshot(id).map(|s| s.pins.clone());
            let pins = pins.unwrap_or_default();
            app.overlay = Some(Overlay::Form(Box::new(Form::unpin(id, &name, &pins))));
        }
        Action::Verify => {
            let Some(id) = snapshot(app) else { return };
            let intent = Intent::VerifySnapshot {
                snapshot: id,
                deep: true,
            };
            plan(app, intent, out);
        }
        Action::Gc => {
            let scope = collection(app);
            let rules = std::collections::BTreeSet::new();
            plan(
                app,
                Intent::Gc {
                    collection: scope,
                    rules,
                    quarantine: false,
                },
                out,
            );
        }
        Action::Orphans => {
            let intent = Intent::Orphans {
                collection: collection(app),
                prefixes: std::collections::BTreeSet::new(),
                delete: false,
            };
            plan(app, intent, out);
        }
        Action::PauseGc => {
            let scope = collection(app).map(|id| (id, app.name_of(&RowId::Collection(id), now)));
            app.overlay = Some(Overlay::Form(Box::new(Form::pause(scope))));
        }
        Action::ResumeGc => {
            // The line under the cursor, or the only one there is.
            let ticket = match app.target() {
                Some(RowId::Ticket(id)) => Some(id),
                _ => None,
            };
            plan(app, Intent::ResumeGc { ticket }, out);
        }
        Action::PutBack => {
            if let Some(job) = aside(app) {
                app.overlay = Some(Overlay::Form(Box::new(Form::put_back(job))));
            }
        }
        Action::Purge => app.overlay = Some(Overlay::Form(Box::new(Form::purge()))),
        Action::Demo => plan(app, Intent::Demo, out),
        Action::CancelJob => {
            let Some(id) = job(app).map(|j| j.id) else {
                return;
            };
            plan(app, Intent::CancelJob { job: id }, out);
        }
        Action::Retry => {
            let Some(id) = job(app).map(|j| j.id) else {
                return;
            };
            let words = format!("job {id}: trying again what failed");
            app.ask(Asked::Knob(words), Request::Retry(id), out);
        }
        Action::Faster | Action::Slower | Action::Tighten | Action::Loosen => {
            let Some(job) = job(app) else {
                return;
            };
            let (id, kind, rate, copies) =
                (job.id, job.kind, job.progress.rate, job.copies.clone());
            turn(app, action, (id, kind), rate, &copies, out);
        }
        _ => {}
    }
}

/// The bundle that the selected job has made.
fn exported(app: &App) -> String {
    let made = |j: &JobInfo| j.kind == JobKind::Export && j.state == JobState::Verified;
    let notes = job(app).filter(|j| made(j)).map(|j| j.notes.as_slice());
    let mut uris = notes.into_iter().flatten();
    uris.find_map(|note| note.strip_prefix(BUNDLE))
        .unwrap_or_default()
        .to_owned()
}

fn plan(app: &mut App, intent: Intent, out: &mut Vec<Effect>) {
    // One plan at a time: a second press while the first is being made would show it twice.
    if !app.open.values().any(|a| *a == Asked::Plan) {
        app.ask(Asked::Plan, Request::Plan(intent), out);
    }
}

/// Turns a knob from where the job says that it stands; a second press before it has answered counts on from the first.
fn turn(
    app: &mut App,
    action: Action,
    (id, kind): (JobId, JobKind),
    rate: f64,
    copies: &Copies,
    out: &mut Vec<Effect>,
) {
    // What a delete costs a store is requests, not bytes.
    const FIRST: u64 = 128;
    let by_objects = matches!(
        kind,
        JobKind::Gc | JobKind::Orphans | JobKind::QuarantinePurge
    );
    let knobs = app.knobs.entry(id).or_insert(Knobs::of(copies));
    if knobs.seen != (copies.parallel, copies.limit, copies.pace) {
        *knobs = Knobs::of(copies);
    }
    let (request, words) = match action {
        Action::Faster | Action::Slower => {
            let now = knobs.parallel;
            let next = if action == Action::Faster {
                now.saturating_mul(2).min(256)
            } else {
                (now / 2).max(1)
            };
            knobs.parallel = next;
            (
                Request::Parallel(id, next),
                format!("job {id}: {next} copies at once"),
            )
        }
        _ if by_objects => {
            let next = match (action, knobs.pace) {
                (Action::Tighten, now) => Some((now.unwrap_or(FIRST * 2) / 2).max(1)),
                (_, None) => None,
                (_, Some(now)) => now.checked_mul(2).filter(|n| *n <= 1 << 16),
            };
            knobs.pace = next;
            let words = next.map_or_else(
                || format!("job {id}: no limit of objects"),
                |n| format!("job {id}: at most {n} objects a second"),
            );
            (Request::Pace(id, next), words)
        }
        _ => {
            let base = knobs.limit.unwrap_or(rate.max(0.0) as u64).max(1 << 20);
            let next = match (action, knobs.limit) {
                (Action::Tighten, _) => Some((base / 2).max(1 << 18)),
                (_, None) => None,
                // Doubling past any network is lifting the limit.
                (_, Some(limit)) => limit.checked_mul(2).filter(|l| *l <= 1 << 36),
            };
            knobs.limit = next;
            let words = next.map_or_else(
                || format!("job {id}: no byte limit"),
                |l| format!("job {id}: at most {}/s", text::bytes(l)),
            );
            (Request::Throttle(id, next), words)
        }
    };
    app.ask(Asked::Knob(words), request, out);
}

/// `books_20261123_155130`: unique enough, sorts by time, legal as a snapshot's name.
fn suggested(collection: &str, now: UnixMs) -> String {
    let stamp: String = now
        .utc()
        .chars()
        .filter_map(|c| match c {
            'T' => Some('_'),
            c if c.is_ascii_digit() => Some(c),
            _ => None,
        })
        .collect();
    let clean: String = collection
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    format!("{clean}_{stamp}")
}

/// Database and a free-looking name for a restore, from the snapshot's collection if it still exists.
fn origin(app: &App, id: SnapshotId, now: UnixMs) -> (String, String) {
    let source = app.catalog.snapshot(id).map(|s| s.collection);
    let collection = source.and_then(|c| app.catalog.collections.get(&c));
    let database = collection.map_or_else(
        || "default".to_owned(),
        |c| app.catalog.database_name(c.db).to_string(),
    );
    let target = collection.map_or_else(
        || format!("{}_restored", suggested("snapshot", now)),
        |c| format!("{}_restored", c.name),
    );
    (database, target)
}

/// Where Enter on a list's line leads: databases open their collections, everything else its own page.
#[must_use]
pub fn opens(kind: Kind, id: &RowId) -> super::document::Link {
    use super::document::Link;
    use crate::engine::model::resource::Scope;
    match (kind, id) {
        (Kind::Databases, RowId::Database(db)) => Link::List(
            Kind::Collections,
            Scope {
                database: Some(*db),
                ..Scope::default()
            },
        ),
        _ => Link::Row(kind, id.clone()),
    }
}
