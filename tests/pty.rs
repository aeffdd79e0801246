//! The real program in a real terminal: what a person sees, and that the terminal is left as it was found.
//!
//! Nothing here waits for time: the program shows how many events it has handled and whether it is idle.
#![cfg(unix)]

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

const DUMP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/etcd.jsonl.gz");
/// Never reached unless something is broken.
const LIMIT: Duration = Duration::from_mins(1);

fn cells(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).unwrap()
}

struct Shown {
    parser: vt100::Parser,
    bytes: Vec<u8>,
    ended: bool,
}

struct Pty {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    writer: Box<dyn Write + Send>,
    shown: Arc<(Mutex<Shown>, Condvar)>,
}

impl Pty {
    fn start(program: &str, args: &[&str], size: (u16, u16)) -> Self {
        let size = PtySize {
            cols: size.0,
            rows: size.1,
            pixel_width: 0,
            pixel_height: 0,
        };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(program);
        command.args(args);
        command.env("FALCONER_TEST_MARKER", "1");
        command.env("RUST_BACKTRACE", "0");
        command.env("TERM", "xterm-256color");
        command.env("LANG", "C.UTF-8");
        command.env("LC_ALL", "C.UTF-8");
        command.env_remove("NO_COLOR");
        command.env("PS1", "ready$ ");
        command.cwd(env!("CARGO_TARGET_TMPDIR"));
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let mut reader = pair.master.try_clone_reader().unwrap();
        let writer = pair.master.take_writer().unwrap();
        let shown = Arc::new((
            Mutex::new(Shown {
                parser: vt100::Parser::new(cells(size.rows), cells(size.cols), 1000),
                bytes: Vec::new(),
                ended: false,
            }),
            Condvar::new(),
        ));
        let there = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buf = [0; 8192];
            loop {
                let n = reader.read(&mut buf).unwrap_or(0);
                let (lock, bell) = &*there;
                let mut shown = lock.lock().unwrap();
                shown.parser.process(&buf[..n]);
                shown.bytes.extend_from_slice(&buf[..n]);
                shown.ended = n == 0;
                bell.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self {
            child,
            master: pair.master,
            writer,
            shown,
        }
    }

    fn console(args: &[&str], size: (u16, u16)) -> Self {
        Self::start(env!("CARGO_BIN_EXE_falconer"), args, size)
    }

    fn send(&mut self, keys: &str) {
        self.writer.write_all(keys.as_bytes()).unwrap();
        self.writer.flush().unwrap();
    }

    /// Waits until the screen is as wanted; fails with the screen when the program ends first or never gets there.
    fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let (lock, bell) = &*self.shown;
        let shown = lock.lock().unwrap();
        let (shown, late) = bell
            .wait_timeout_while(shown, LIMIT, |s| {
                !s.ended && !wanted(&s.parser.screen().contents())
            })
            .unwrap();
        let screen = shown.parser.screen().contents();
        assert!(wanted(&screen) && !late.timed_out(), "{what}:\n{screen}");
        screen
    }

    /// Waits until `events` have been handled and nothing is under way.
    fn idle(&self, events: usize) -> String {
        let marker = format!("[idle {events}]");
        self.wait(&marker, |s| s.contains(&marker))
    }

    fn with<T>(&self, read: impl FnOnce(&Shown) -> T) -> T {
        read(&self.shown.0.lock().unwrap())
    }

    fn code(&mut self) -> u32 {
        let code = self.child.wait().unwrap().exit_code();
        // The last bytes may still be on their way.
        let (lock, bell) = &*self.shown;
        let shown = lock.lock().unwrap();
        drop(bell.wait_timeout_while(shown, LIMIT, |s| !s.ended).unwrap());
        code
    }

    fn assert_clean(&self) {
        self.with(|s| {
            let screen = s.parser.screen();
            assert!(!screen.alternate_screen(), "still on the alternate screen");
            assert!(!screen.hide_cursor(), "the cursor is hidden");
            assert!(!screen.bracketed_paste(), "bracketed paste is still on");
            assert_eq!(
                screen.mouse_protocol_mode(),
                vt100::MouseProtocolMode::None,
                "the mouse is still taken"
            );
        });
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // A failed test must not leave its program behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn first_screen_navigation_resize_and_quit() {
    let mut pty = Pty::console(&["--dump", DUMP], (120, 40));
    let screen = pty.idle(0);
    assert!(screen.contains("Faults"), "{screen}");
    assert!(screen.contains("READ-ONLY"), "{screen}");
    assert!(screen.contains("dump at rev"), "{screen}");
    pty.with(|s| assert!(s.parser.screen().alternate_screen()));

    pty.send("3");
    let screen = pty.idle(1);
    assert!(
        screen.contains("COLLECTION") && screen.contains("1/120"),
        "{screen}"
    );
    pty.send("/flushed\r");
    let screen = pty.idle(10);
    assert!(screen.contains("of 120"), "{screen}");
    pty.send("\r");
    let screen = pty.idle(11);
    assert!(screen.contains("Segments ›"), "{screen}");

    pty.master
        .resize(PtySize {
            cols: 80,
            rows: 24,
            pixel_width: 0,
            pixel_height: 0,
        })
        .unwrap();
    pty.shown
        .0
        .lock()
        .unwrap()
        .parser
        .screen_mut()
        .set_size(cells(24), cells(80));
    let screen = pty.idle(12);
    assert_eq!(screen.lines().count(), 24, "{screen}");

    pty.send("q");
    assert_eq!(pty.code(), 0);
    pty.assert_clean();
}

#[test]
fn every_frame_is_a_synchronized_update() {
    let mut pty = Pty::console(&["--dump", DUMP], (100, 30));
    pty.idle(0);
    pty.send("2");
    pty.idle(1);
    pty.send("q");
    pty.code();
    pty.with(|s| {
        let count = |needle: &[u8]| {
            s.bytes
                .windows(needle.len())
                .filter(|w| *w == needle)
                .count()
        };
        let (begun, ended) = (count(b"\x1b[?2026h"), count(b"\x1b[?2026l"));
        assert!(begun >= 2, "{begun} frames");
        // Leaving the terminal closes an update that may be open.
        assert_eq!(ended, begun + 1);
    });
}

#[test]
fn copying_reaches_the_terminal_as_osc_52() {
    let mut pty = Pty::console(&["--dump", DUMP], (100, 30));
    pty.idle(0);
    // Rows come from another thread: before they are there, there is nothing to copy.
    pty.send("2");
    pty.idle(1);
    pty.send("y");
    pty.idle(2);
    pty.send("q");
    pty.code();
    pty.with(|s| {
        assert!(
            s.bytes.windows(7).any(|w| w == b"\x1b]52;c;"),
            "no clipboard sequence"
        );
    });
}

#[test]
fn a_panic_leaves_a_clean_terminal_and_its_words() {
    let mut pty = Pty::console(&["--dump", DUMP], (100, 30));
    pty.idle(0);
    pty.send("\x1b[24~");
    assert_ne!(pty.code(), 0);
    pty.assert_clean();
    let screen = pty.with(|s| s.parser.screen().contents());
    assert!(
        screen.contains("the console was asked to panic"),
        "{screen}"
    );
}

#[test]
fn a_termination_signal_leaves_a_clean_terminal() {
    let mut pty = Pty::console(&["--dump", DUMP], (100, 30));
    pty.idle(0);
    let pid = pty.child.process_id().unwrap();
    let killed = std::process::Command::new("sh")
        .args(["-c", &format!("kill -TERM {pid}")])
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(pty.code(), 0);
    pty.assert_clean();
}

#[test]
fn suspending_gives_the_shell_a_clean_terminal_and_fg_brings_the_console_back() {
    let mut pty = Pty::start("bash", &["--norc", "--noprofile", "-i"], (100, 30));
    pty.wait("a prompt", |s| s.contains("ready$"));
    // The shell's own line editor would turn bracketed paste on, which is what is being looked for.
    pty.send("bind 'set enable-bracketed-paste off'; echo pre''pared\n");
    pty.wait("a calm line editor", |s| s.contains("prepared"));
    let program = env!("CARGO_BIN_EXE_falconer");
    pty.send(&format!("{program} --dump {DUMP}\n"));
    pty.idle(0);
    pty.send("2");
    pty.idle(1);
    pty.send("\x1a");
    pty.wait("the shell's word", |s| s.contains("Stopped"));
    pty.assert_clean();
    pty.send("echo sum $((20+22))\n");
    pty.wait("an echo", |s| s.contains("sum 42"));
    pty.send("fg\n");
    // One event for Ctrl-Z and one for the size on return.
    let screen = pty.idle(3);
    assert!(
        screen.contains("WORST LAG") && screen.contains("books"),
        "{screen}"
    );
    pty.send("q");
    pty.wait("a prompt again", |s| {
        s.trim_end().ends_with("ready$") && !s.contains("[idle")
    });
    pty.assert_clean();
    pty.send("exit\n");
    assert_eq!(pty.code(), 0);
}
