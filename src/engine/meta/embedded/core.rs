//! The open database and its readers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redb::{Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, WriteTransaction};
use tokio::sync::watch;

use super::fault::{Fault, FaultResult};
use super::mvcc;
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaRev;
use crate::engine::meta::{Member, MetaStatus};

/// How often a process that only reads looks for commits of the one that writes.
pub const POLL: Duration = Duration::from_millis(50);

/// The ways a file is open.
pub enum Db {
    /// This process writes.
    Writer(Database),
    /// Another process may write; this one follows its commits.
    Follower(ReadOnlyDatabase),
    /// Nobody wrote when this process read the file, which its last writer had left open: a copy in memory.
    Copy(Database),
}

/// What a store and its watches share.
pub struct Core {
    /// The database.
    pub db: Db,
    /// `None` in memory.
    pub path: Option<PathBuf>,
    /// What [`MetaStatus::server`] says.
    pub label: &'static str,
    /// Head revision of this process's last commit; wakes its watches.
    pub head: watch::Sender<i64>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Core {
    fn begin_read(&self) -> FaultResult<ReadTransaction> {
        Ok(match &self.db {
            Db::Writer(db) | Db::Copy(db) => db.begin_read()?,
            Db::Follower(db) => db.begin_read()?,
        })
    }

    /// Begins a transaction that is on disk when its commit returns, and after which a crash needs no repair.
    pub fn begin_write(&self) -> FaultResult<WriteTransaction> {
        match &self.db {
            Db::Writer(db) => {
                let mut txn = db.begin_write()?;
                txn.set_durability(redb::Durability::Immediate)?;
                txn.set_quick_repair(self.path.is_some());
                Ok(txn)
            }
            Db::Follower(_) | Db::Copy(_) => Err(Error::new(
                ErrorKind::Unsupported,
                "this process only reads the metadata file",
            )
            .into()),
        }
    }

    /// The file, for messages.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Runs a read on the calling thread.
    pub fn read_blocking<T>(
        &self,
        f: impl FnOnce(&ReadTransaction) -> FaultResult<T>,
    ) -> Result<T> {
        self.begin_read()
            .and_then(|txn| f(&txn))
            .map_err(|e| e.named(self.path()))
    }

    /// Runs a read on tokio's blocking pool, so that a cold page never stalls the runtime.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&ReadTransaction) -> FaultResult<T> + Send + 'static,
    ) -> Result<T> {
        let core = Arc::clone(self);
        tokio::task::spawn_blocking(move || core.read_blocking(f))
            .await
            .map_err(|e| {
                // A process on its way out cancels reads. A job must not take that for a reason to undo what it did.
                let kind = if e.is_cancelled() {
                    ErrorKind::Unreachable
                } else {
                    ErrorKind::Internal
                };
                Error::new(kind, "metadata read did not finish").caused_by(e)
            })?
    }

    /// Health.
    pub async fn status(self: &Arc<Self>) -> Result<MetaStatus> {
        let before = self.clock.mono();
        let marks = self
            .read(|txn| {
                mvcc::marks(txn)?.ok_or_else(|| Fault::Corrupt("the tables are missing".into()))
            })
            .await?;
        let took = self.clock.mono().saturating_sub(before);
        let db_bytes = match &self.path {
            Some(path) => tokio::fs::metadata(path).await.ok().map(|m| m.len()),
            None => None,
        };
        Ok(MetaStatus {
            rev: MetaRev(marks.rev),
            server: self.label.to_owned(),
            db_bytes,
            members: vec![Member {
                endpoint: self
                    .path
                    .as_ref()
                    .map_or_else(|| self.label.to_owned(), |p| p.display().to_string()),
                answer: Ok(took),
                leader: matches!(self.db, Db::Writer(_)),
            }],
            ..MetaStatus::default()
        })
    }
}

/// The core as a watch holds it: a watch must not keep a closed file locked.
pub fn upgrade(core: &Weak<Core>) -> Result<Arc<Core>> {
    core.upgrade()
        .ok_or_else(|| Error::new(ErrorKind::Cancelled, "metadata store was closed"))
}
