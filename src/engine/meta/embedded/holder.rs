//! Who writes the file: a small text beside it. redb's lock decides; the text only tells a second process whom to ask.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::engine::clock::Clock;

/// The process that writes a metadata file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// How it was started (first argument only: the others may hold secrets).
    pub command: String,
    /// When it opened the file, UTC.
    pub since: String,
    /// Whether the process exists; `None` where that cannot be told.
    pub alive: Option<bool>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pid {}, {}, since {}",
            self.pid, self.command, self.since
        )?;
        match self.alive {
            Some(false) => f.write_str(", process is gone"),
            _ => Ok(()),
        }
    }
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".holder");
    name.into()
}

/// Writes the text for this process. Best effort: without it a second process is told less, nothing else.
pub fn write(file: &Path, clock: &dyn Clock) {
    let command = std::env::args_os()
        .next()
        .map_or_else(|| "unknown".into(), |a| a.to_string_lossy().into_owned());
    let text = format!(
        "pid={}\ncommand={}\nsince={}\n",
        std::process::id(),
        command.replace('\n', " "),
        clock.now().utc()
    );
    if let Err(e) = std::fs::write(beside(file), text) {
        tracing::warn!(file = %file.display(), error = %e, "cannot write the holder file");
    }
}

/// Removes the text when it is ours.
pub fn clear(file: &Path) {
    if read(file).is_some_and(|h| h.pid == std::process::id()) {
        let _ = std::fs::remove_file(beside(file));
    }
}

/// Who wrote the text, if there is one.
pub fn read(file: &Path) -> Option<Holder> {
    let text = std::fs::read_to_string(beside(file)).ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
    };
    let pid = field("pid")?.parse().ok()?;
    Some(Holder {
        pid,
        command: field("command")?,
        since: field("since")?,
        alive: is_alive(pid),
    })
}

fn is_alive(pid: u32) -> Option<bool> {
    let processes = Path::new("/proc");
    let can_tell = processes.join("self").exists();
    can_tell.then(|| processes.join(pid.to_string()).exists())
}
