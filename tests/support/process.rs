//! A server as a child process that cannot outlive its test: a small shell holds it, and ends it when the shell's
//! standard input closes, which also happens when the test process is killed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to answer, and to end.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// `$1` is the server's folder, the rest the command. Says the child's pid, then waits for one word: a signal's name.
/// The end of input instead means that nobody needs the server and its folder any more. Reaps the child, so that its
/// ports and files are free when the shell has ended.
const HOLDER: &str = r#"
dir=$1; shift
"$@" </dev/null >>"$dir/log" 2>&1 &
child=$!
echo "$child"
exec >/dev/null
if read -r signal; then dir=; else signal=KILL; fi
kill -s "$signal" "$child" 2>/dev/null
wait "$child" 2>/dev/null
[ -z "$dir" ] || rm -rf -- "$dir"
"#;

/// A running child process and the shell that holds it.
#[derive(Debug)]
pub struct Process {
    holder: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `program args…` with output to `dir/log`. The folder is removed when the process is dropped or the
    /// test dies, and kept by [`Process::stop`] and [`Process::kill`].
    pub fn start(program: &Path, args: &[String], dir: &Path) -> Process {
        let mut holder = Command::new("sh")
            .arg("-c")
            .arg(HOLDER)
            .arg("sh")
            .arg(dir)
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            // Ctrl-C at the terminal ends the test, and the closed pipe ends the server; a shell that died of the
            // same Ctrl-C would leave the server behind.
            .process_group(0)
            .spawn()
            .expect("sh can be started");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("the shell says the pid");
        let pid = line.trim().parse().expect("a pid");
        Process {
            holder,
            pid,
            log: dir.join("log"),
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The last lines of its output, for a failure's message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// False once it has ended by itself: it then waits as a zombie for its holder.
    pub fn is_alive(&self) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            // The state follows the name in brackets, and the name may hold brackets itself.
            Ok(stat) => !stat
                .rsplit_once(')')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
            // Without /proc nothing can be said; a real death then shows as a server that never gets ready.
            Err(_) => !Path::new("/proc/self").exists(),
        }
    }

    /// Sends a signal by its name (`TERM`, `STOP`, `CONT`). Its pid cannot belong to another process: the holder has
    /// not reaped it yet.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", r#"kill -s "$1" "$2""#, "sh", name])
            .arg(self.pid.to_string())
            .status()
            .expect("sh can be started");
        assert!(status.success(), "cannot send {name} to pid {}", self.pid);
    }

    /// Asks it to end and waits until it has.
    pub fn stop(mut self) {
        self.say("TERM");
        if !wait_until(PATIENCE, || self.holder_has_ended()) {
            self.signal("KILL");
            panic!(
                "pid {} did not end within {PATIENCE:?} of TERM\n{}",
                self.pid,
                self.log_tail()
            );
        }
    }

    /// Ends it as a power cut would, and waits until it has ended.
    pub fn kill(mut self) {
        self.say("KILL");
    }

    fn say(&mut self, signal: &str) {
        if let Some(mut stdin) = self.holder.stdin.take() {
            writeln!(stdin, "{signal}").expect("its holder listens");
        }
    }

    fn holder_has_ended(&mut self) -> bool {
        self.holder
            .try_wait()
            .expect("the holder is our child")
            .is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Asks again every few milliseconds until `condition` holds; false if it did not in time.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place of the tests that waits for the real world, and it waits for a condition"
)]
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A TCP port of 127.0.0.1 that no other test takes while this lives: the UDP port of the same number is held as
/// the sign. The number is below the range from which outgoing connections get theirs, so a server that was stopped
/// gets its port back.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _sign: UdpSocket,
}

impl Port {
    pub fn take() -> Port {
        const FIRST: u16 = 18_000;
        const COUNT: u16 = 14_000;
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or(0);
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
            // A step of 7 ports a process keeps two test binaries, whose pids are near, from the same numbers.
            let number = FIRST + (start.wrapping_mul(7).wrapping_add(step)) % COUNT;
            let Ok(sign) = UdpSocket::bind(("127.0.0.1", number)) else {
                continue;
            };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port {
                    number,
                    _sign: sign,
                };
            }
        }
        panic!("no free port on 127.0.0.1 from {FIRST}: end the servers that hold them");
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

/// One plain HTTP/1.1 request; the status code and the body, or None if nobody answers (yet).
pub fn http(method: &str, port: u16, path: &str) -> Option<(u16, String)> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let code = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some((code, body.to_owned()))
}

/// A program that `tools/test` fetches: where `variable` points, else in `.lab/` of this checkout.
pub fn program(variable: &str, in_lab: &str, what: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(
        || {
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join(".lab")
                .join(in_lab)
        },
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "{what} not found at {}: run tools/test (it fetches it), or point {variable} at it",
        path.display()
    );
    path
}

/// Runs a future to its end on a thread of its own, so that it works inside and outside of a runtime.
pub fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime")
                    .block_on(future)
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
