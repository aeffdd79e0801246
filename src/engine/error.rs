//! One error type. A line of it names the thing, the cause and the fix.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Characters kept of a context value: an object's key has at most 1,024 bytes.
const VALUE: usize = 1_024;
/// Characters kept of what happened.
const WHAT: usize = 4_000;
/// Characters kept of a cause: libraries quote what they could not read.
const CAUSE: usize = 500;

/// `text` as one line of at most `most` characters, with what it lost said. Bytes from a store may be of any length and hold
/// line breaks and escape sequences, which a terminal would obey.
#[must_use]
pub fn line(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == most {
            return Cow::Owned(format!("{out}… ({} bytes)", text.len()));
        }
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// What the operator can do about it; also decides the exit code (`docs/cli.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The input is wrong: a flag, a name, a file. Fix it and try again.
    Invalid,
    /// The configuration is wrong or incomplete; the message names the key.
    Config,
    /// The named thing does not exist.
    NotFound,
    /// A condition did not hold: the name is taken, the state has moved. Look again, plan again.
    Conflict,
    /// Writing is not allowed now: a coordinator is alive, or our lease or epoch is lost.
    Fenced,
    /// Somebody else holds the file or the lock; the message says who.
    Busy,
    /// The server did not answer, or not in time, and nothing was changed. Safe to retry.
    Unreachable,
    /// The server refused our identity or rights.
    Denied,
    /// Bytes that should be readable are not; the message names the file and the offset.
    Corrupt,
    /// A store's limit is in the way (operations, bytes, compacted history).
    Limit,
    /// The store has no room left, and nothing was changed. It goes on when somebody makes room.
    Full,
    /// The write may or may not have happened. Its step marker must be read before anything else.
    OutcomeUnknown,
    /// The revision asked for is compacted away: list again.
    Compacted,
    /// This build or this attach cannot do it, and says so.
    Unsupported,
    /// Stopped on request.
    Cancelled,
    /// The time that the caller itself gave is over, and nothing was changed. A store that is too slow is `Unreachable`.
    DeadlineExceeded,
    /// A defect of Falconer.
    Internal,
}

/// The engine's error. Cheap to clone, so that a watch channel can carry it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    what: String,
    context: Vec<(&'static str, String)>,
    fix: Option<String>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error about `what` (thing and cause in one clause, no full stop).
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            what: line(&what.into(), WHAT).into_owned(),
            context: Vec::new(),
            fix: None,
            source: None,
        }))
    }

    fn edit(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = match Arc::try_unwrap(self.0) {
            Ok(inner) => inner,
            Err(shared) => Inner {
                kind: shared.kind,
                what: shared.what.clone(),
                context: shared.context.clone(),
                fix: shared.fix.clone(),
                source: shared.source.clone(),
            },
        };
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// Adds `name=value`, e.g. the bucket, the key, the endpoint. Never a secret.
    #[must_use]
    pub fn with(self, name: &'static str, value: impl fmt::Display) -> Self {
        let value = line(&value.to_string(), VALUE).into_owned();
        self.edit(|inner| inner.context.push((name, value)))
    }

    /// Says what to do about it (imperative, no full stop).
    #[must_use]
    pub fn fix(self, text: impl Into<String>) -> Self {
        let text = text.into();
        self.edit(|inner| inner.fix = Some(text))
    }

    /// The same without advice, for a text that has its own.
    #[must_use]
    pub fn without_fix(self) -> Self {
        self.edit(|inner| inner.fix = None)
    }

    /// Keeps the cause.
    #[must_use]
    pub fn caused_by(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.edit(|inner| inner.source = Some(Arc::new(source)))
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, without context and fix.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// The advice, if there is one.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.fix.as_deref()
    }

    /// The value of a context entry.
    #[must_use]
    pub fn context(&self, name: &str) -> Option<&str> {
        self.0
            .context
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Whether the same call may be made again without harm and with hope.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unreachable | ErrorKind::Full)
    }
}

/// One line: what, context, cause, fix.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        if let Some(source) = &self.0.source {
            let cause = source.to_string();
            let cause = line(&cause, CAUSE);
            if !cause.is_empty() && !self.0.what.contains(&*cause) {
                write!(f, ": {cause}")?;
            }
        }
        if let Some(fix) = &self.0.fix {
            write!(f, "; {fix}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn std::error::Error + 'static))
    }
}
