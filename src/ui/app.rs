//! The state of the console and its one transition function: `update(state, message, now) → effects`, synchronous and
//! total. Nothing here waits, reads or writes; what must be done outside is an [`Effect`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::event::Event;

use crate::engine::error::{Error, Result};
use crate::engine::handle::{Conn, Notice, Place as Where, Reply, Request};
use crate::engine::ids::{JobId, MetaRev, UnixMs};
use crate::engine::model;
use crate::engine::model::broadcast::BroadcastsView;
use crate::engine::model::catalog::Catalog;
use crate::engine::model::health::{self, Fault};
use crate::engine::model::jobs::JobsView;
use crate::engine::model::overview::{self, Overview};
use crate::engine::model::references::Index;
use crate::engine::model::resource::{self, Kind, RowId, Scope, Unit};

use super::document;
use super::frame;
use super::nav::{History, Page, Place, RawPage};
use super::overlay::Overlay;
use super::overlay::review::Review;
use super::rows::{self, Order, Rows, World};
use super::theme::{Look, Theme};
use super::{cells, input, pulse};

/// What has happened.
pub enum Msg {
    /// At the terminal.
    Term(Event),
    /// The read model moved.
    Catalog(Arc<Catalog>),
    /// Our jobs moved.
    Jobs(Arc<JobsView>),
    /// More, or less, is known of what snapshots refer to.
    References(Arc<Index>),
    /// The broadcasts of this process moved.
    Broadcasts(Arc<BroadcastsView>),
    /// The connection changed.
    Conn(Conn),
    /// A fact.
    Notice(Notice),
    /// Facts were lost because the console was too slow.
    Missed(u64),
    /// An answer.
    Reply(u64, Result<Reply>),
    /// Rows, or `None` when their computation was cancelled.
    Rows(u64, Option<Rows>),
    /// A second has passed and something on screen shows time.
    Tick,
    /// The shell continued us.
    Resumed,
}

/// What must be done outside.
pub enum Effect {
    /// Ask the engine.
    Ask(u64, Request),
    /// Compute rows on another thread.
    Compute(Order),
    /// Put text on the clipboard.
    Copy(String),
    /// Stop until continued.
    Suspend,
    /// Paint everything again.
    Redraw,
    /// Leave.
    Quit,
}

/// What a question to the engine was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A plan.
    Plan,
    /// An application of a plan.
    Apply,
    /// A page's raw value or tree; the page knows the number.
    Page,
    /// A job's knob, in words.
    Knob(String),
}

/// What the overview shows, made when the catalog moves and not when it is drawn.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Counts.
    pub overview: Overview,
    /// Findings, worst first.
    pub faults: Vec<Fault>,
}

/// A short message over the page.
#[derive(Clone, Debug)]
pub struct Toast {
    /// One line or two.
    pub text: String,
    /// Not good.
    pub bad: bool,
    /// When it goes.
    pub until: UnixMs,
}

/// Copies at once and bytes a second, as last asked here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Knobs {
    /// Copies at once.
    pub parallel: u32,
    /// Byte limit.
    pub limit: Option<u64>,
    /// Limit of objects a second.
    pub pace: Option<u64>,
    /// All three as the job showed them when one was turned first: once it shows others, those count.
    pub seen: (u32, Option<u64>, Option<u64>),
}

impl Knobs {
    /// As the job shows them.
    #[must_use]
    pub fn of(copies: &crate::engine::model::jobs::Copies) -> Self {
        Self {
            parallel: copies.parallel.max(1),
            limit: copies.limit,
            pace: copies.pace,
            seen: (copies.parallel, copies.limit, copies.pace),
        }
    }
}

/// The state.
pub struct App {
    /// Styles.
    pub theme: Theme,
    /// Cells.
    pub size: (u16, u16),
    /// Where we are attached.
    pub place: Arc<Where>,
    /// The read model.
    pub catalog: Arc<Catalog>,
    /// Our jobs.
    pub jobs: Arc<JobsView>,
    /// What snapshots refer to, as far as it is known.
    pub references: Arc<Index>,
    /// Broadcasts that the engine of this process drives.
    pub broadcasts: Arc<BroadcastsView>,
    /// Counts and faults of the overview, while it is on screen.
    pub summary: Option<Summary>,
    /// The connection.
    pub conn: Conn,
    /// Pages.
    pub history: History,
    /// What lies over the page.
    pub overlay: Option<Overlay>,
    /// Messages, oldest first.
    pub toasts: VecDeque<Toast>,
    /// Event rate, fresh revisions, job rates.
    pub pulse: pulse::Pulse,
    /// Knobs of jobs.
    pub knobs: HashMap<JobId, Knobs>,
    /// Names lately chosen in the palette, newest first.
    pub recent: VecDeque<String>,
    /// Show the idle marker that test drivers wait for.
    pub marker: bool,
    /// Terminal events so far.
    pub events: u64,
    /// Something on screen has changed.
    pub dirty: bool,
    /// Questions without an answer.
    pub(super) open: HashMap<u64, Asked>,
    next: u64,
    /// The computation on another thread.
    pub(super) computing: Option<(u64, rows::Query, Arc<AtomicBool>)>,
    rows_old: bool,
}

impl App {
    /// A console on `place`.
    #[must_use]
    pub fn new(place: Arc<Where>, look: Look, size: (u16, u16)) -> Self {
        Self {
            theme: Theme::new(look),
            size,
            place,
            catalog: Arc::default(),
            jobs: Arc::default(),
            references: Arc::default(),
            broadcasts: Arc::default(),
            summary: None,
            conn: Conn::Connecting {
                attempt: 1,
                why: None,
            },
            history: History::default(),
            overlay: None,
            toasts: VecDeque::new(),
            pulse: pulse::Pulse::default(),
            knobs: HashMap::new(),
            recent: VecDeque::new(),
            marker: false,
            events: 0,
            dirty: true,
            open: HashMap::new(),
            next: 1,
            computing: None,
            rows_old: true,
        }
    }

    /// What rows and details are read from.
    #[must_use]
    pub fn world(&self, now: UnixMs) -> World {
        World {
            catalog: Arc::clone(&self.catalog),
            jobs: Arc::clone(&self.jobs),
            broadcasts: Arc::clone(&self.broadcasts),
            references: Arc::clone(&self.references),
            now,
        }
    }

    /// The first listing is there, no question is open and nothing is being computed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let attaching = matches!(self.conn, Conn::Connecting { .. } | Conn::Syncing { .. });
        !attaching && self.open.is_empty() && self.computing.is_none()
    }

    /// How often time must pass on screen; `None` = never, so that an idle console costs nothing.
    #[must_use]
    pub fn tick(&self) -> Option<Duration> {
        let ages = match &self.history.page().place {
            Place::Overview | Place::Detail(..) => true,
            Place::List(kind, _) => cells::spec(*kind)
                .columns
                .iter()
                .any(|c| c.unit == Unit::Age),
            Place::Doctor | Place::Rows(_) => false,
        };
        let moving = !matches!(self.conn, Conn::Static { .. })
            || !self.toasts.is_empty()
            || self.pulse.fading()
            || self.jobs.jobs.iter().any(|j| !j.state.ended());
        (ages || moving).then_some(Duration::from_secs(1))
    }

    /// Shows a message.
    pub fn toast(&mut self, text: impl Into<String>, bad: bool, now: UnixMs) {
        // Bad news stays long enough to be read twice.
        let stay = if bad { 12_000 } else { 4_000 };
        self.toasts.push_back(Toast {
            text: text.into(),
            bad,
            until: UnixMs(now.0.saturating_add(stay)),
        });
        while self.toasts.len() > 4 {
            self.toasts.pop_front();
        }
    }

    /// Asks the engine.
    pub fn ask(&mut self, about: Asked, request: Request, out: &mut Vec<Effect>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.open.insert(id, about);
        out.push(Effect::Ask(id, request));
        id
    }

    /// Goes to a page.
    pub fn visit(&mut self, place: Place, crumbs: Vec<String>) {
        if self.history.page().place == place {
            return;
        }
        self.cancel_computing();
        self.history.push(Page::new(place, crumbs));
        self.rows_old = true;
    }

    /// Goes to the list of a kind, as the number keys do.
    pub fn visit_kind(&mut self, kind: Kind) {
        let title = cells::spec(kind).title.to_owned();
        self.visit(Place::List(kind, Scope::default()), vec![title]);
    }

    /// Goes deeper, keeping the way in the crumbs.
    pub fn drill(&mut self, link: document::Link, name: String) {
        let mut crumbs = self.history.page().crumbs.clone();
        if matches!(self.history.page().place, Place::Overview) {
            crumbs.clear();
        }
        match link {
            document::Link::Row(kind, id) => {
                if crumbs.is_empty() {
                    crumbs.push(cells::spec(kind).title.to_owned());
                }
                crumbs.push(name);
                self.visit(Place::Detail(kind, id), crumbs);
            }
            document::Link::List(kind, scope) => {
                crumbs.push(cells::spec(kind).title.to_owned());
                self.visit(Place::List(kind, scope), crumbs);
            }
        }
    }

    /// Older or newer page.
    pub fn travel(&mut self, older: bool) -> bool {
        self.cancel_computing();
        self.rows_old = true;
        if older {
            self.history.older()
        } else {
            self.history.newer()
        }
    }

    /// The rows must be asked for again: filter, order or page changed.
    pub fn rows_changed(&mut self) {
        self.cancel_computing();
        self.rows_old = true;
    }

    fn cancel_computing(&mut self) {
        if let Some((_, _, cancel)) = self.computing.take() {
            cancel.store(true, Ordering::Relaxed);
        }
    }

    /// Lines of the table body.
    #[must_use]
    pub fn table_height(&self) -> usize {
        let areas = frame::areas(self.size, &self.history.page().place);
        (areas.body.height as usize).saturating_sub(1)
    }

    /// Lines of a document page.
    #[must_use]
    pub fn document_height(&self) -> usize {
        frame::areas(self.size, &self.history.page().place)
            .body
            .height as usize
    }

    /// The row that an action would act on.
    #[must_use]
    pub fn target(&self) -> Option<RowId> {
        let page = self.history.page();
        match &page.place {
            Place::List(..) => page.table.selected.clone(),
            Place::Detail(_, id) => Some(id.clone()),
            Place::Rows(id) => Some(RowId::Segment(*id)),
            Place::Overview | Place::Doctor => None,
        }
    }

    /// What a human calls a row.
    #[must_use]
    pub fn name_of(&self, id: &RowId, now: UnixMs) -> String {
        let world = self.world(now);
        let name = cells::plain(&cells::cell(&world.view(), id, 0));
        if name.is_empty() { id.text() } else { name }
    }

    /// Keeps rows, raw values and trees of the page on screen up to date.
    fn refresh(&mut self, now: UnixMs, out: &mut Vec<Effect>) {
        match self.history.page().place.clone() {
            Place::List(kind, scope) => self.refresh_rows(kind, &scope, now, out),
            Place::Detail(_, RowId::Key(key)) => {
                let rev = resource::rev(&self.world(now).view(), &RowId::Key(key.clone()));
                let page = self.history.page();
                let moved = rev > page.asked_at;
                let asked = matches!(page.raw, super::nav::Remote::Asked(..));
                let never = matches!(page.raw, super::nav::Remote::Idle);
                if never || (moved && !asked) {
                    let id = self.ask(Asked::Page, Request::Raw(key), out);
                    let page = self.history.page_mut();
                    page.raw.ask(id);
                    page.asked_at = rev;
                }
            }
            Place::Detail(_, RowId::Snapshot(snapshot)) => {
                let row = RowId::Snapshot(snapshot);
                let rev = resource::rev(&self.world(now).view(), &row);
                let page = self.history.page();
                let asked = matches!(page.tree, super::nav::Remote::Asked(..));
                let never = matches!(page.tree, super::nav::Remote::Idle);
                // Its pins and its state are in the answer.
                if never || (rev > page.asked_at && !asked) {
                    let id = self.ask(Asked::Page, Request::SnapshotDetail(snapshot), out);
                    let page = self.history.page_mut();
                    page.tree.ask(id);
                    page.asked_at = rev;
                }
            }
            Place::Detail(_, RowId::Quarantine(job)) => {
                self.ask_tree_once(Request::Quarantine(job), out);
            }
            Place::Doctor => self.ask_tree_once(Request::Doctor { deep: false }, out),
            Place::Rows(segment) => {
                self.ask_tree_once(Request::Scan(super::operate::sample(segment), None), out);
            }
            Place::Overview => {
                if self.summary.is_none() || self.rows_old {
                    self.rows_old = false;
                    let world = self.world(now);
                    let view = world.view();
                    self.summary = Some(Summary {
                        overview: overview::overview(&view),
                        faults: health::faults(&view),
                    });
                }
            }
            Place::Detail(..) => {}
        }
        self.place_cursor(now);
    }

    /// A new page begins at its first link: that is what one came for.
    fn place_cursor(&mut self, now: UnixMs) {
        if self.history.page().entered {
            return;
        }
        let first = super::screens::lines(self, now)
            .iter()
            .position(|l| l.link.is_some());
        let page = self.history.page_mut();
        page.entered = true;
        page.line = first.unwrap_or(0);
        if page.line >= self.document_height() {
            self.history.page_mut().line = 0;
        }
    }

    fn ask_tree_once(&mut self, request: Request, out: &mut Vec<Effect>) {
        if matches!(self.history.page().tree, super::nav::Remote::Idle) {
            let id = self.ask(Asked::Page, request, out);
            self.history.page_mut().tree.ask(id);
        }
    }

    fn refresh_rows(&mut self, kind: Kind, scope: &Scope, now: UnixMs, out: &mut Vec<Effect>) {
        let query = self.history.page().table.query(kind, scope);
        let answered = self
            .history
            .page()
            .table
            .rows
            .as_ref()
            .is_some_and(|r| r.query == query);
        if answered && !self.rows_old {
            return;
        }
        // A newer catalog does not cancel what is under way, or a busy cluster would never see its rows.
        if let Some((_, asked, cancel)) = &self.computing {
            if *asked == query {
                return;
            }
            cancel.store(true, Ordering::Relaxed);
            self.computing = None;
        }
        self.rows_old = false;
        let world = self.world(now);
        if model::rows::len(&world.view(), kind) < rows::INLINE {
            if let Some(rows) = rows::compute(&world, &query, &AtomicBool::new(false)) {
                let height = self.table_height();
                self.history.page_mut().table.take(rows, height);
                self.dirty = true;
            }
            return;
        }
        let id = self.next;
        self.next += 1;
        let cancel = Arc::new(AtomicBool::new(false));
        self.computing = Some((id, query.clone(), Arc::clone(&cancel)));
        out.push(Effect::Compute(Order {
            id,
            world,
            query,
            cancel,
        }));
    }
}

/// The transition function.
pub fn update(app: &mut App, msg: Msg, now: UnixMs) -> Vec<Effect> {
    let mut out = Vec::new();
    match msg {
        Msg::Term(event) => {
            app.events += 1;
            app.dirty = true;
            input::event(app, event, now, &mut out);
        }
        Msg::Catalog(catalog) => {
            app.pulse.moved(app.catalog.rev, catalog.rev, now);
            app.catalog = catalog;
            app.rows_old = true;
            app.dirty = true;
        }
        Msg::Jobs(jobs) => {
            app.pulse.jobs(&jobs, now);
            app.jobs = jobs;
            app.rows_old |= matches!(
                app.history.page().place,
                Place::List(Kind::Jobs | Kind::Tickets | Kind::Quarantine, _) | Place::Overview
            );
            app.dirty = true;
        }
        Msg::References(references) => {
            app.references = references;
            app.rows_old |= matches!(
                app.history.page().place,
                Place::List(Kind::Snapshots, _) | Place::Overview
            );
            app.dirty = true;
        }
        Msg::Broadcasts(broadcasts) => {
            app.broadcasts = broadcasts;
            app.rows_old |= matches!(
                app.history.page().place,
                Place::List(Kind::Broadcasts, _) | Place::Overview
            );
            app.dirty = true;
        }
        Msg::Conn(conn) => {
            app.conn = conn;
            app.dirty = true;
        }
        Msg::Notice(notice) => {
            app.toast(notice.text, notice.bad, now);
            app.dirty = true;
        }
        Msg::Missed(n) => {
            app.toast(format!("{n} notices were missed"), true, now);
            app.dirty = true;
        }
        Msg::Reply(id, reply) => {
            answered(app, id, reply, now);
            app.dirty = true;
        }
        Msg::Rows(id, rows) => {
            if app.computing.as_ref().is_some_and(|(open, ..)| *open == id) {
                app.computing = None;
                let height = app.table_height();
                match rows {
                    Some(rows) => app.history.page_mut().table.take(rows, height),
                    None => app.rows_old = true,
                }
                app.dirty = true;
            }
        }
        Msg::Tick => {
            // Lags and ages of the overview grow by themselves.
            app.rows_old |= app.history.page().place == Place::Overview;
            let before = app.toasts.len();
            app.toasts.retain(|t| t.until > now);
            app.pulse.passed(now);
            app.dirty |= before != app.toasts.len() || app.tick().is_some();
        }
        Msg::Resumed => app.dirty = true,
    }
    app.refresh(now, &mut out);
    out
}

fn answered(app: &mut App, id: u64, reply: Result<Reply>, now: UnixMs) {
    let Some(about) = app.open.remove(&id) else {
        return;
    };
    match (about, reply) {
        (Asked::Plan, Ok(Reply::Planned(plan))) => {
            let review = Review::new(plan, app.place.read_only.as_deref());
            app.overlay = Some(Overlay::Review(Box::new(review)));
        }
        (Asked::Apply, Ok(Reply::Accepted(job))) => {
            app.overlay = None;
            app.toast(format!("job {job} has begun"), false, now);
            app.visit(
                Place::Detail(Kind::Jobs, RowId::Job(job)),
                vec![cells::spec(Kind::Jobs).title.to_owned(), job.to_string()],
            );
        }
        (Asked::Apply, Ok(Reply::Settled(what))) => {
            app.overlay = None;
            app.toast(what, false, now);
        }
        (Asked::Apply, Err(error)) => {
            // The plan stays on screen with the reason: the person may want to compare.
            if let Some(Overlay::Review(review)) = &mut app.overlay {
                review.refused(&error);
            } else {
                app.toast(error.to_string(), true, now);
            }
        }
        (Asked::Knob(what), Ok(_)) => app.toast(what, false, now),
        (Asked::Plan | Asked::Knob(_), Err(error)) => app.toast(error.to_string(), true, now),
        (Asked::Page, reply) => page_answered(app, id, &reply),
        (_, Ok(_)) => app.toast(
            "the engine answered something else than was asked",
            true,
            now,
        ),
    }
}

fn page_answered(app: &mut App, id: u64, reply: &Result<Reply>) {
    use super::nav::Remote;
    let wrong = || {
        Error::new(
            crate::engine::error::ErrorKind::Internal,
            "the engine answered something else than was asked",
        )
    };
    for page in app.history.pages_mut() {
        if page.raw.awaits(id) {
            page.raw = match reply {
                Ok(Reply::Raw(value)) => {
                    let lines = match &value.decoded {
                        Ok(tree) => document::tree(tree),
                        Err(_) => Vec::new(),
                    };
                    Remote::Got(RawPage {
                        value: Arc::clone(value),
                        lines: lines.into(),
                    })
                }
                Ok(_) => Remote::Failed(wrong()),
                Err(error) => Remote::Failed(error.clone()),
            };
        } else if page.tree.awaits(id) {
            page.tree = match reply {
                Ok(Reply::Tree(tree)) => Remote::Got(
                    match page.place {
                        Place::Detail(_, RowId::Snapshot(_)) => super::snapshot_words::lines(tree),
                        _ => document::tree(tree),
                    }
                    .into(),
                ),
                Ok(_) => Remote::Failed(wrong()),
                Err(error) => Remote::Failed(error.clone()),
            };
        }
    }
}

/// The revision after which a row counts as just changed.
#[must_use]
pub fn fresh_after(app: &App) -> MetaRev {
    app.pulse.fresh_after(app.catalog.rev)
}
