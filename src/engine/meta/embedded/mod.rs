//! The metadata store that needs no server: numbered history over redb, in a file or in memory.
//!
//! One process writes a file, any number read along (redb's `SingleWriter` mode): a second [`EmbeddedStore::open_file`] is
//! [`ErrorKind::Busy`] and names who writes; [`EmbeddedReader::open_file`] follows that writer's commits.
//!
//! Durability: a transaction is on disk when it is acknowledged (`Durability::Immediate`), and a file left by a killed
//! process opens at once (`set_quick_repair`).

mod core;
mod fault;
mod holder;
mod mvcc;
mod watch;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use redb::ConcurrencyMode;
use redb::backends::InMemoryBackend;
use tokio::sync::oneshot;

use self::core::{Core, Db};
use self::fault::{Fault, FaultResult};
pub use self::holder::Holder;
use self::writer::{Ask, NEVER, Writer};
use super::{
    KeyValue, Limits, MetaRead, MetaStatus, MetaWrite, Outcome, Page, RangeOpts, Span, Txn,
    WatchStream, check,
};
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaRev;

/// redb's page cache, bytes. A cap, not a reservation.
const CACHE: usize = 256 << 20;

/// The right to read an embedded store. Clones share it.
#[derive(Clone)]
pub struct EmbeddedReader {
    core: Arc<Core>,
}

/// An embedded store, reading and writing. Dropping it ends the writer's thread and releases the file.
pub struct EmbeddedStore {
    reader: Option<EmbeddedReader>,
    asks: Option<mpsc::Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
    next_end: Arc<AtomicU64>,
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder
        .set_cache_size(CACHE)
        .set_concurrency_mode(ConcurrencyMode::SingleWriter);
    builder
}

/// Makes the file with mode 0600: it may hold password hashes and object-store keys.
fn make_file(path: &Path) -> FaultResult<()> {
    if let Some(folder) = path.parent()
        && !folder.as_os_str().is_empty()
    {
        std::fs::create_dir_all(folder).map_err(redb::StorageError::from)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(redb::StorageError::from)?;
    Ok(())
}

/// The error when somebody else has the file.
fn busy(error: Error, path: &Path) -> Error {
    if error.kind() != ErrorKind::Busy {
        return error;
    }
    match holder::read(path) {
        Some(holder) => Error::new(
            ErrorKind::Busy,
            format!("metadata file is held by another process: {holder}"),
        )
        .with("file", path.display())
        .with("pid", holder.pid)
        .fix("end that process, or attach read-only"),
        None => error,
    }
}

/// Refuses a file of a newer layout.
fn check_format(marks: mvcc::Marks, path: &Path) -> Result<()> {
    if marks.format > mvcc::FORMAT {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "metadata file has format {}, this build reads up to {}",
                marks.format,
                mvcc::FORMAT
            ),
        )
        .with("file", path.display())
        .fix("use the newer Falconer that wrote it"));
    }
    Ok(())
}

impl EmbeddedReader {
    /// Opens a file that another process may be writing, and never writes to it. A file that was not closed cleanly is read into memory, and
    /// what a later writer commits is not seen. Blocks for a few milliseconds.
    ///
    /// [`ErrorKind::NotFound`] without a file, [`ErrorKind::Unsupported`] for a newer format.
    pub fn open_file(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let db = match builder().open_read_only(path) {
            // The last writer was killed and none has come since. Who only reads may not close the file in its stead: what it holds
            // is put in order in memory, and stands still.
            Err(redb::DatabaseError::RepairAborted) => Self::repaired(path)?,
            Ok(db) => Db::Follower(db),
            Err(e) => return Err(busy(Fault::from(e).named(Some(path)), path)),
        };
        let core = Core {
            db,
            path: Some(path.to_owned()),
            label: "redb file",
            head: tokio::sync::watch::Sender::new(0),
            clock,
        };
        let marks = core.read_blocking(mvcc::marks)?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "not a Falconer metadata file")
                .with("file", path.display())
                .fix("check the path")
        })?;
        check_format(marks, path)?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// The file as its killed writer left it, in memory. A writer that comes now changes the file under us: then the copy does not
    /// open, and the caller may look again.
    fn repaired(path: &Path) -> Result<Db> {
        let fail = |e: std::io::Error| Fault::from(redb::StorageError::from(e)).named(Some(path));
        let bytes = std::fs::read(path).map_err(fail)?;
        let copy = InMemoryBackend::new();
        let put = redb::StorageBackend::set_len(&copy, bytes.len() as u64)
            .and_then(|()| redb::StorageBackend::write(&copy, 0, &bytes));
        put.map_err(fail)?;
        let mut builder = redb::Builder::new();
        builder.set_cache_size(CACHE);
        let db = builder.create_with_backend(copy).map_err(|e| {
            Error::new(
                ErrorKind::Busy,
                "metadata file was left by a killed process and is being opened by another",
            )
            .with("file", path.display())
            .fix("look again in a moment")
            .caused_by(e)
        })?;
        Ok(Db::Copy(db))
    }

    /// A store in memory that holds `kvs` as they stood at `rev` (or at the highest `mod_rev` among them), and that nobody can write.
    pub fn dump(kvs: &[KeyValue], rev: Option<MetaRev>) -> Result<Self> {
        let core = memory_core("dump", Arc::new(SystemClock::new()))?;
        let write = core.begin_write().map_err(|e| e.named(None))?;
        let rev = mvcc::load(&write, kvs, rev).map_err(|e| e.named(None))?;
        let result = write.commit();
        result.map_err(|e| Fault::from(e).named(None))?;
        core.head.send_replace(rev);
        Ok(Self {
            core: Arc::new(core),
        })
    }

    /// Who writes the file, if a process does or did not end cleanly.
    pub fn holder(&self) -> Option<Holder> {
        self.core.path().and_then(holder::read)
    }
}

fn memory_core(label: &'static str, clock: Arc<dyn Clock>) -> Result<Core> {
    let mut builder = redb::Builder::new();
    let db = builder
        .set_cache_size(CACHE)
        .create_with_backend(InMemoryBackend::new())
        .map_err(|e| Fault::from(e).named(None))?;
    let core = Core {
        db: Db::Writer(db),
        path: None,
        label,
        head: tokio::sync::watch::Sender::new(mvcc::FIRST_REV),
        clock,
    };
    initialise(&core)?;
    Ok(core)
}

fn initialise(core: &Core) -> Result<()> {
    let path = core.path();
    let write = core.begin_write().map_err(|e| e.named(path))?;
    let is_new = mvcc::init(&write).map_err(|e| e.named(path))?;
    let result = if is_new {
        write.commit().map_err(Fault::from)
    } else {
        write.abort().map_err(Fault::from)
    };
    result.map_err(|e| e.named(path))
}

impl EmbeddedStore {
    /// Opens or makes a file for writing, ending all leases of earlier writers (M9). Blocks for a few milliseconds.
    ///
    /// [`ErrorKind::Busy`] when another process writes it (the message says which), [`ErrorKind::Unsupported`] when a newer
    /// Falconer wrote it, [`ErrorKind::Corrupt`] when it is something else.
    pub fn open_file(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        make_file(path).map_err(|e| e.named(Some(path)))?;
        let db = builder()
            .create(path)
            .map_err(|e| busy(Fault::from(e).named(Some(path)), path))?;
        let core = Core {
            db: Db::Writer(db),
            path: Some(path.to_owned()),
            label: "redb file",
            head: tokio::sync::watch::Sender::new(0),
            clock,
        };
        initialise(&core)?;
        let marks = core.read_blocking(mvcc::marks)?;
        let marks = marks.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "metadata file has no tables")
                .with("file", path.display())
        })?;
        check_format(marks, path)?;
        core.head.send_replace(marks.rev);
        holder::write(path, core.clock.as_ref());
        Self::start(core)
    }

    /// An empty store in memory, on the machine's clock.
    pub fn memory() -> Result<Self> {
        Self::memory_with(Arc::new(SystemClock::new()))
    }

    /// An empty store in memory, its leases on `clock`.
    pub fn memory_with(clock: Arc<dyn Clock>) -> Result<Self> {
        Self::start(memory_core("redb memory", clock)?)
    }

    fn start(core: Core) -> Result<Self> {
        let core = Arc::new(core);
        let next_end = Arc::new(AtomicU64::new(NEVER));
        let writer = Writer::new(Arc::clone(&core), Arc::clone(&next_end));
        writer.delete_all(core.read_blocking(mvcc::leased_keys)?)?;
        let (asks, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("meta-writer".into())
            .spawn(move || writer.run(&queue))
            .map_err(|e| {
                Error::new(ErrorKind::Internal, "cannot start the writer's thread").caused_by(e)
            })?;
        Ok(Self {
            reader: Some(EmbeddedReader { core }),
            asks: Some(asks),
            thread: Some(thread),
            next_end,
        })
    }

    /// Fills an empty store with keys as they stood elsewhere; their revisions, versions and lease numbers are kept. The head becomes `rev`, or the
    /// highest `mod_rev`. History before it is compacted. [`ErrorKind::Conflict`] when the store is not empty.
    pub async fn load(&self, kvs: Vec<KeyValue>, rev: Option<MetaRev>) -> Result<()> {
        self.ask(|reply| Ask::Load(kvs, rev, reply)).await
    }

    /// The right to read only. It stays valid until the store is dropped, and then keeps the file open until it is dropped too.
    pub fn reader(&self) -> Result<EmbeddedReader> {
        self.reader.clone().ok_or_else(closed)
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T>>) -> Ask) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.asks
            .as_ref()
            .ok_or_else(closed)?
            .send(ask(reply))
            .map_err(|_| closed())?;
        answer.await.map_err(|_| {
            Error::new(
                ErrorKind::OutcomeUnknown,
                "the metadata writer stopped before it answered",
            )
            .fix("open the store again and read the key")
        })?
    }

    /// Lets a lease that has run out end before its keys are read.
    async fn settle_leases(&self) -> Result<()> {
        let next = self.next_end.load(Ordering::SeqCst);
        let now = self.core()?.clock.mono().as_millis();
        if u128::from(next) <= now {
            self.ask(Ask::Expire).await?;
        }
        Ok(())
    }

    fn core(&self) -> Result<&Arc<Core>> {
        self.reader.as_ref().map(|r| &r.core).ok_or_else(closed)
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Cancelled, "metadata store was closed")
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // the queue closes first, the thread then finishes what was asked; only then may the file be opened again
        self.asks = None;
        self.reader = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metadata writer panicked");
        }
    }
}

#[async_trait]
impl MetaRead for EmbeddedReader {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        check::range(opts)?;
        let span = span.clone();
        self.core
            .read(move |txn| mvcc::range(txn, &span, opts))
            .await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        check::watch(&span, from)?;
        watch::open(&self.core, span, from).await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.core.status().await
    }
}

#[async_trait]
impl MetaRead for EmbeddedStore {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        self.settle_leases().await?;
        self.reader()?.range(span, opts).await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        check::watch(&span, from)?;
        watch::open(self.core()?, span, from).await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.core()?.status().await
    }
}

#[async_trait]
impl MetaWrite for EmbeddedStore {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        writer::check_txn(&txn)?;
        self.ask(|reply| Ask::Txn(txn, reply)).await
    }

    fn limits(&self) -> Limits {
        check::ETCD_LIMITS
    }

    async fn compact(&self, rev: MetaRev) -> Result<()> {
        self.ask(|reply| Ask::Compact(rev, reply)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<i64> {
        self.ask(|reply| Ask::Grant(ttl, reply)).await
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        self.ask(|reply| Ask::KeepAlive(lease, reply)).await
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        self.ask(|reply| Ask::Revoke(lease, reply)).await
    }
}
