//! The console: one task owns the state, draws it and hands questions to the engine. Nothing in it waits for an answer:
//! answers come back as messages.

pub mod app;
pub mod cells;
pub mod chrome;
pub mod document;
pub mod frame;
pub mod input;
pub mod job_words;
pub mod keymap;
pub mod markdown;
pub mod nav;
pub mod operate;
pub mod overlay;
pub mod picture;
pub mod pulse;
pub mod rows;
pub mod screens;
pub mod snapshot_words;
pub mod table;
pub mod term;
pub mod text;
pub mod theme;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::Handle;
use crate::engine::ids::UnixMs;

use app::{App, Effect, Msg, update};
use term::{EventSource, Keyboard, Screen, Tty};
use theme::{Look, LookFlags};

/// At most this many frames a second.
const FRAME: Duration = Duration::from_millis(33);

/// How the console is to look and behave.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Colours and letters, from flags.
    pub look: LookFlags,
    /// Take the mouse; without it the terminal's own selection works.
    pub mouse: bool,
    /// Show the marker that test drivers wait for.
    pub marker: bool,
    /// Panic on F12: lets a test see that the terminal is left clean.
    pub panic_key: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            look: LookFlags::default(),
            mouse: true,
            marker: false,
            panic_key: false,
        }
    }
}

/// Runs the console on this terminal until the person quits.
///
/// `FALCONER_TEST_MARKER`, set to anything, turns on [`Options::marker`] and [`Options::panic_key`]: drivers of a real
/// terminal wait for the marker instead of for time.
pub async fn run(handle: Handle, mut options: Options) -> Result<()> {
    let test = std::env::var_os("FALCONER_TEST_MARKER").is_some_and(|v| !v.is_empty());
    options.marker |= test;
    options.panic_key |= test;
    let look = Look::detect(options.look, &|name| std::env::var(name).ok());
    let mut tty = Tty::enter(options.mouse).map_err(no_terminal)?;
    let mut keys = Keyboard::default();
    let ended = drive(&handle, &mut tty, &mut keys, look, options).await;
    drop(tty);
    ended
}

fn no_terminal(error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this is not a terminal that can show the console",
    )
    .fix("run it in a terminal, or use the subcommands (falconer get …)")
    .caused_by(error)
}

/// The engine's news, latest wins.
struct News {
    catalog: watch::Receiver<Arc<crate::engine::model::catalog::Catalog>>,
    jobs: watch::Receiver<Arc<crate::engine::model::jobs::JobsView>>,
    references: watch::Receiver<Arc<crate::engine::model::references::Index>>,
    broadcasts: watch::Receiver<Arc<crate::engine::model::broadcast::BroadcastsView>>,
    conn: watch::Receiver<crate::engine::handle::Conn>,
    notices: broadcast::Receiver<crate::engine::handle::Notice>,
}

impl News {
    fn new(handle: &Handle) -> Self {
        Self {
            catalog: handle.catalog.clone(),
            jobs: handle.jobs.clone(),
            references: handle.references.clone(),
            broadcasts: handle.broadcasts.clone(),
            conn: handle.conn.clone(),
            notices: handle.notices.subscribe(),
        }
    }

    /// What was published before we came: the first frame must already show it.
    fn so_far(&mut self) -> [Msg; 5] {
        [
            Msg::Conn(self.conn.borrow_and_update().clone()),
            Msg::Catalog(Arc::clone(&self.catalog.borrow_and_update())),
            Msg::Jobs(Arc::clone(&self.jobs.borrow_and_update())),
            Msg::References(Arc::clone(&self.references.borrow_and_update())),
            Msg::Broadcasts(Arc::clone(&self.broadcasts.borrow_and_update())),
        ]
    }

    /// The next piece; a channel whose engine has gone is silent.
    async fn next(&mut self) -> Msg {
        tokio::select! {
            biased;
            Ok(()) = self.conn.changed() => Msg::Conn(self.conn.borrow_and_update().clone()),
            Ok(()) = self.catalog.changed() => Msg::Catalog(Arc::clone(&self.catalog.borrow_and_update())),
            Ok(()) = self.jobs.changed() => Msg::Jobs(Arc::clone(&self.jobs.borrow_and_update())),
            Ok(()) = self.references.changed() => Msg::References(Arc::clone(&self.references.borrow_and_update())),
            Ok(()) = self.broadcasts.changed() => Msg::Broadcasts(Arc::clone(&self.broadcasts.borrow_and_update())),
            fact = self.notices.recv() => match fact {
                Ok(notice) => Msg::Notice(notice),
                Err(broadcast::error::RecvError::Lagged(n)) => Msg::Missed(n),
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            },
            else => std::future::pending().await,
        }
    }
}

/// The loop: take what has happened, drain what is ready, draw if something changed and the last frame is old enough.
pub async fn drive(
    handle: &Handle,
    screen: &mut dyn Screen,
    keys: &mut dyn EventSource,
    look: Look,
    options: Options,
) -> Result<()> {
    let size = screen.size().map_err(no_terminal)?;
    let mut app = App::new(Arc::clone(&handle.place), look, size);
    app.marker = options.marker;
    let mut news = News::new(handle);
    let (answers, mut inbox) = mpsc::unbounded_channel::<Msg>();
    let mut stop = Stop::new()?;
    for msg in news.so_far() {
        let now = handle.clock.now();
        for effect in update(&mut app, msg, now) {
            perform(effect, handle, screen, keys, &answers, now, &mut app)?;
        }
    }
    let mut drawn = handle.clock.mono();
    let mut first = true;
    loop {
        if app.dirty && (first || handle.clock.mono().saturating_sub(drawn) >= FRAME) {
            let now = handle.clock.now();
            app.dirty = false;
            first = false;
            drawn = handle.clock.mono();
            screen
                .draw(&mut |f| frame::view(&app, f, now))
                .map_err(no_terminal)?;
        }
        let wait = if app.dirty {
            Some(FRAME.saturating_sub(handle.clock.mono().saturating_sub(drawn)))
        } else {
            app.tick()
        };
        let timer = wait.map(|d| handle.clock.sleep(d));
        let tick_due = !app.dirty;
        let msg = tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            event = keys.next() => match event {
                Some(Ok(event)) => Some(Msg::Term(event)),
                Some(Err(error)) => return Err(no_terminal(error)),
                None => return Ok(()),
            },
            Some(msg) = inbox.recv() => Some(msg),
            msg = news.next() => Some(msg),
            () = async { match timer { Some(timer) => timer.await, None => std::future::pending().await } } => {
                tick_due.then_some(Msg::Tick)
            }
        };
        // One frame for all that has come together, but a flood must not keep the screen from being drawn.
        let mut next = msg;
        for _ in 0..1024 {
            let Some(msg) = next.take() else { break };
            if options.panic_key {
                panic_on_request(&msg);
            }
            let now = handle.clock.now();
            for effect in update(&mut app, msg, now) {
                if perform(effect, handle, screen, keys, &answers, now, &mut app)? {
                    return Ok(());
                }
            }
            next = match keys.ready() {
                Some(Ok(event)) => Some(Msg::Term(event)),
                Some(Err(error)) => return Err(no_terminal(error)),
                None => inbox.try_recv().ok(),
            };
        }
    }
}

/// F12, only when a test asked for it.
fn panic_on_request(msg: &Msg) {
    if let Msg::Term(crossterm::event::Event::Key(key)) = msg {
        assert!(
            key.code != crossterm::event::KeyCode::F(12),
            "the console was asked to panic"
        );
    }
}

/// Does what the state asked for; `true` ends the console.
fn perform(
    effect: Effect,
    handle: &Handle,
    screen: &mut dyn Screen,
    keys: &mut dyn EventSource,
    answers: &mpsc::UnboundedSender<Msg>,
    now: UnixMs,
    app: &mut App,
) -> Result<bool> {
    match effect {
        Effect::Quit => return Ok(true),
        Effect::Ask(id, request) => {
            let (handle, answers) = (handle.clone(), answers.clone());
            tokio::spawn(async move {
                let reply = handle.request(request).await;
                // The console has gone: nobody wants the answer.
                let _ = answers.send(Msg::Reply(id, reply));
            });
        }
        Effect::Compute(order) => {
            let answers = answers.clone();
            tokio::task::spawn_blocking(move || {
                let rows = rows::compute(&order.world, &order.query, &order.cancel);
                let _ = answers.send(Msg::Rows(order.id, rows));
            });
        }
        Effect::Copy(text) => {
            if let Err(error) = screen.copy(&text) {
                app.toast(format!("could not copy: {error}"), true, now);
            }
        }
        Effect::Redraw => screen.clear().map_err(no_terminal)?,
        Effect::Suspend => {
            keys.pause();
            let back = screen.suspend();
            keys.resume();
            back.map_err(no_terminal)?;
            let size = screen.size().map_err(no_terminal)?;
            let resized = crossterm::event::Event::Resize(size.0, size.1);
            let effects = update(app, Msg::Term(resized), handle.clock.now());
            let more = update(app, Msg::Resumed, handle.clock.now());
            for effect in effects.into_iter().chain(more) {
                if perform(effect, handle, screen, keys, answers, now, app)? {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// The signals that end a program politely: the terminal must be left clean then, too.
#[cfg(unix)]
struct Stop {
    term: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Stop {
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            signal(kind).map_err(|e| {
                Error::new(ErrorKind::Internal, "cannot listen for signals").caused_by(e)
            })
        };
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            hup: listen(SignalKind::hangup())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.hup.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Stop;

#[cfg(not(unix))]
impl Stop {
    fn new() -> Result<Self> {
        Ok(Self)
    }

    async fn asked(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
