//! The terminal itself: entered and left in one place, so that a panic, Ctrl-Z or an error always leaves it clean.

use std::io::{self, BufWriter, Stdout, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::clipboard::CopyToClipboard;
use crossterm::event::{
    DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture, Event,
    EventStream,
};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute, queue};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::StreamExt;
use ratatui::backend::CrosstermBackend;
use ratatui::{Frame, Terminal};

/// Where keys come from. Tests put their own here.
pub trait EventSource: Send {
    /// The next event; `None` when the source has ended, which ends the console.
    fn next(&mut self) -> BoxFuture<'_, Option<io::Result<Event>>>;
    /// An event that is there already, without waiting.
    fn ready(&mut self) -> Option<io::Result<Event>> {
        self.next().now_or_never().flatten()
    }
    /// Lets go of the terminal: nothing may read it while the console is suspended.
    fn pause(&mut self);
    /// Takes it again.
    fn resume(&mut self);
}

/// The real keyboard. The stream is dropped, not merely left unpolled, while paused: its thread would go on reading.
#[derive(Default)]
pub struct Keyboard(Option<EventStream>);

impl EventSource for Keyboard {
    fn next(&mut self) -> BoxFuture<'_, Option<io::Result<Event>>> {
        self.0.get_or_insert_with(EventStream::new).next().boxed()
    }

    fn pause(&mut self) {
        self.0 = None;
    }

    fn resume(&mut self) {
        self.0.get_or_insert_with(EventStream::new);
    }
}

impl EventSource for tokio::sync::mpsc::UnboundedReceiver<Event> {
    fn next(&mut self) -> BoxFuture<'_, Option<io::Result<Event>>> {
        self.recv().map(|event| event.map(Ok)).boxed()
    }
    fn pause(&mut self) {}
    fn resume(&mut self) {}
}

/// What the loop draws on.
pub trait Screen {
    /// Draws one frame.
    fn draw(&mut self, render: &mut dyn FnMut(&mut Frame)) -> io::Result<()>;
    /// Cells.
    fn size(&self) -> io::Result<(u16, u16)>;
    /// Puts text on the clipboard of the person's own machine.
    fn copy(&mut self, text: &str) -> io::Result<()>;
    /// Stops the process until the shell continues it, leaving the terminal as it was before.
    fn suspend(&mut self) -> io::Result<()>;
    /// Forgets what is on the terminal, so that the next frame paints everything.
    fn clear(&mut self) -> io::Result<()>;
}

static ENTERED: AtomicBool = AtomicBool::new(false);

fn enter(mouse: bool) -> io::Result<()> {
    enable_raw_mode()?;
    ENTERED.store(true, Ordering::SeqCst);
    let mut out = io::stdout();
    execute!(
        out,
        EnterAlternateScreen,
        EnableBracketedPaste,
        cursor::Hide
    )?;
    if mouse {
        execute!(out, EnableMouseCapture)?;
    }
    Ok(())
}

/// Leaves raw mode, the alternate screen and mouse capture. Safe to call at any time and twice.
pub fn leave() {
    if !ENTERED.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut out = io::stdout();
    // Every step is tried even if one fails: half a clean terminal is better than none.
    let _ = execute!(out, EndSynchronizedUpdate);
    let _ = execute!(out, DisableMouseCapture, DisableBracketedPaste);
    let _ = execute!(out, LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
    let _ = out.flush();
}

/// Leaves the terminal before the panic's own words are printed, so that they can be read.
fn leave_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            leave();
            previous(info);
        }));
    });
}

/// The real terminal; leaving is its `Drop`.
pub struct Tty {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    mouse: bool,
}

impl Tty {
    /// Enters the alternate screen in raw mode.
    pub fn enter(mouse: bool) -> io::Result<Self> {
        leave_on_panic();
        enter(mouse).inspect_err(|_| leave())?;
        let terminal = fresh().inspect_err(|_| leave())?;
        Ok(Self { terminal, mouse })
    }
}

/// A terminal that believes in an empty screen. Made anew instead of cleared: clearing asks the terminal where its cursor
/// is and waits for the answer, which a slow line or a simple terminal never gives.
fn fresh() -> io::Result<Terminal<CrosstermBackend<BufWriter<Stdout>>>> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout());
    queue!(out, Clear(ClearType::All))?;
    Terminal::new(CrosstermBackend::new(out))
}

impl Drop for Tty {
    fn drop(&mut self) {
        leave();
    }
}

impl Screen for Tty {
    fn draw(&mut self, render: &mut dyn FnMut(&mut Frame)) -> io::Result<()> {
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        let drawn = self.terminal.draw(|frame| render(frame)).map(|_| ());
        // Also after an error: a terminal left inside an update shows nothing more.
        let ended = execute!(self.terminal.backend_mut(), EndSynchronizedUpdate);
        drawn.and(ended)
    }

    fn size(&self) -> io::Result<(u16, u16)> {
        crossterm::terminal::size()
    }

    fn copy(&mut self, text: &str) -> io::Result<()> {
        execute!(
            self.terminal.backend_mut(),
            CopyToClipboard::to_clipboard_from(text)
        )
    }

    fn suspend(&mut self) -> io::Result<()> {
        leave();
        stop_group();
        enter(self.mouse)?;
        self.clear()
    }

    fn clear(&mut self) -> io::Result<()> {
        self.terminal = fresh()?;
        Ok(())
    }
}

/// What Ctrl-Z does when a terminal is not raw: stops the whole foreground group, so that a wrapper such as `cargo run`
/// stops too. Through the shell's own `kill`, because raising a signal directly is unsafe code. In an orphaned group the
/// kernel ignores the signal and the console simply goes on.
#[cfg(unix)]
fn stop_group() {
    let _ = std::process::Command::new("sh")
        .args(["-c", "kill -TSTP 0"])
        .status();
}

#[cfg(not(unix))]
fn stop_group() {}
