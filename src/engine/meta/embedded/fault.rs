//! What can go wrong inside redb, before the file's name is known.

use std::path::Path;

use crate::engine::error::{Error, ErrorKind};

/// A failure of the tables, turned into an [`Error`] by [`Fault::named`].
#[derive(Debug)]
pub enum Fault {
    /// Already a finished error.
    Clear(Error),
    /// redb's.
    Redb(redb::Error),
    /// The tables contradict each other.
    Corrupt(String),
    /// `load` into a store that was used.
    NotEmpty(i64),
}

/// Result of the table functions.
pub type FaultResult<T> = Result<T, Fault>;

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Clear(e)
    }
}

macro_rules! from_redb {
    ($($t:ident)*) => {$(
        impl From<redb::$t> for Fault {
            fn from(e: redb::$t) -> Self {
                Self::Redb(e.into())
            }
        }
    )*};
}
from_redb! { StorageError TableError TransactionError CommitError DatabaseError SetDurabilityError }

impl Fault {
    /// The error of the store at `path` (`None` = in memory).
    pub fn named(self, path: Option<&Path>) -> Error {
        let file = path.map_or_else(|| "memory".to_owned(), |p| p.display().to_string());
        match self {
            Self::Clear(e) => e,
            Self::Corrupt(why) => Error::new(
                ErrorKind::Corrupt,
                format!("metadata file is damaged: {why}"),
            )
            .with("file", file)
            .fix("restore the file from a copy"),
            Self::NotEmpty(rev) => Error::new(
                ErrorKind::Conflict,
                format!("cannot load a dump, the store is not empty (revision {rev})"),
            )
            .with("file", file)
            .fix("load into a new file"),
            Self::Redb(e) => redb_error(e, &file),
        }
    }

    /// As [`Fault::named`], for a failed commit: the change may be on disk.
    pub fn uncertain(self, path: Option<&Path>) -> Error {
        let cause = self.named(path);
        Error::new(
            ErrorKind::OutcomeUnknown,
            "commit to the metadata file failed, it may or may not be stored",
        )
        .fix("free space on the disk or check it, then open the file again and read the key")
        .caused_by(cause)
    }
}

fn redb_error(e: redb::Error, file: &str) -> Error {
    use redb::Error as E;
    let (kind, what, fix) = match &e {
        E::DatabaseAlreadyOpen => (
            ErrorKind::Busy,
            "metadata file is open for writing elsewhere".to_owned(),
            "close the other Falconer",
        ),
        E::LockProtocolMismatch => (
            ErrorKind::Busy,
            "metadata file is open in a program with another locking protocol".to_owned(),
            "close the other program, it is older or newer than this build",
        ),
        E::UpgradeRequired(v) => (
            ErrorKind::Unsupported,
            format!("metadata file has redb format {v}, which this build does not read"),
            "open it with the Falconer that wrote it",
        ),
        E::RepairAborted => (
            ErrorKind::Busy,
            "metadata file was not closed cleanly and cannot be repaired while it is only read"
                .to_owned(),
            "open it once for writing",
        ),
        E::Corrupted(_) => (
            ErrorKind::Corrupt,
            "metadata file is damaged".to_owned(),
            "restore the file from a copy",
        ),
        E::Io(io) if io.kind() == std::io::ErrorKind::PermissionDenied => (
            ErrorKind::Denied,
            "no right to open the metadata file".to_owned(),
            "check owner and mode of the file and its folder",
        ),
        E::Io(io) if io.kind() == std::io::ErrorKind::NotFound => (
            ErrorKind::NotFound,
            "metadata file does not exist".to_owned(),
            "check the path",
        ),
        E::Io(io)
            if matches!(
                io.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            (
                ErrorKind::Corrupt,
                "not a Falconer metadata file".to_owned(),
                "check the path",
            )
        }
        E::Io(_) | E::PreviousIo => (
            ErrorKind::Unreachable,
            "metadata file cannot be read or written".to_owned(),
            "check the disk, its free space and the mount",
        ),
        _ => (
            ErrorKind::Internal,
            "metadata file failed".to_owned(),
            "report this as a defect",
        ),
    };
    Error::new(kind, what)
        .with("file", file)
        .fix(fix)
        .caused_by(e)
}
