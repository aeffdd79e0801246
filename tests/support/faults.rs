//! Stores that fail on purpose, and the crash sweep: count the operations of a run, then for each of them fail before it,
//! fail after it (the caller cannot know) and crash before and after it, open again, finish, and look at what stands there.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use falconer::engine::clock::Clock;
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::ids::{MetaRev, UnixMs};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{
    Limits, MetaRead, MetaReader, MetaStatus, MetaWrite, Outcome, Page, RangeOpts, Span, Txn,
    WatchStream,
};
use falconer::engine::objects::{ObjectRead, ObjectWrite, from_store};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio::sync::Notify;

/// What goes wrong at one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does not happen, and says so.
    FailBefore,
    /// It happens, and the caller is told that nobody knows.
    FailAfter,
    /// It does not happen, and nothing after it does.
    CrashBefore,
    /// It happens, and nothing after it does.
    CrashAfter,
    /// Whoever asked is cancelled before it happens ([`Faults::on_cancel`]).
    CancelBefore,
    /// It happens, and whoever asked is cancelled before he hears of it.
    CancelAfter,
}

/// One operation of a run.
#[derive(Clone, Debug)]
pub struct Op {
    pub what: String,
    pub write: bool,
}

/// The script of one run.
pub struct Faults {
    ops: Mutex<Vec<Op>>,
    at: Option<(usize, Mode)>,
    dead: AtomicBool,
    crash: Notify,
    /// Object operations that say this are refused, every time.
    refused: Option<String>,
    cancel: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// Turns that others get while a call is under way whose caller has been cancelled.
const TURNS: usize = 8;

enum Act {
    Go,
    Before,
    After,
    /// It takes a while, and whoever waits for it may be gone before it happens, or after.
    Slow(bool),
    /// The process is dead: nothing is done and nobody is told.
    Never,
}

impl Faults {
    /// Nothing fails; operations are counted.
    pub fn none() -> Arc<Self> {
        Self::make(None)
    }

    /// Operation `i` goes wrong.
    pub fn at(i: usize, mode: Mode) -> Arc<Self> {
        Self::make(Some((i, mode)))
    }

    fn make(at: Option<(usize, Mode)>) -> Arc<Self> {
        Arc::new(Self {
            ops: Mutex::default(),
            at,
            dead: AtomicBool::new(false),
            crash: Notify::new(),
            refused: None,
            cancel: Mutex::default(),
        })
    }

    /// Every object operation that says this is denied, e.g. `delete files/snapshots`.
    pub fn refusing(what: &str) -> Arc<Self> {
        Arc::new(Self {
            ops: Mutex::default(),
            at: None,
            dead: AtomicBool::new(false),
            crash: Notify::new(),
            refused: Some(what.to_owned()),
            cancel: Mutex::default(),
        })
    }

    /// What cancels whoever asks.
    pub fn on_cancel(&self, cancel: impl Fn() + Send + 'static) {
        *self.cancel.lock().unwrap() = Some(Box::new(cancel));
    }

    fn cancel(&self) {
        if let Some(cancel) = &*self.cancel.lock().unwrap() {
            cancel();
        }
    }

    async fn slow<T>(&self, happens: bool, call: impl Future<Output = T>) -> T {
        if !happens {
            self.cancel();
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            return call.await;
        }
        let done = call.await;
        self.cancel();
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        done
    }

    pub fn ops(&self) -> Vec<Op> {
        self.ops.lock().unwrap().clone()
    }

    /// Crashes now: from here on no call is answered.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.crash.notify_one();
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    async fn end_if_dead(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the crash has come; never without one.
    pub async fn crashed(&self) {
        while !self.is_dead() {
            self.crash.notified().await;
        }
    }

    fn enter(&self, what: String, write: bool) -> Act {
        if self.is_dead() {
            return Act::Never;
        }
        let i = {
            let mut ops = self.ops.lock().unwrap();
            ops.push(Op { what, write });
            ops.len() - 1
        };
        match self.at {
            Some((at, mode)) if at == i => match mode {
                Mode::FailBefore => Act::Before,
                Mode::FailAfter => Act::After,
                Mode::CrashBefore => {
                    self.kill();
                    Act::Never
                }
                Mode::CrashAfter => {
                    self.kill();
                    Act::After
                }
                Mode::CancelBefore => Act::Slow(false),
                Mode::CancelAfter => Act::Slow(true),
            },
            _ => Act::Go,
        }
    }
}

fn unreachable(what: &str) -> Error {
    Error::new(ErrorKind::Unreachable, format!("{what}: made to fail"))
}

/// A metadata store that follows the script.
pub struct FaultMeta {
    inner: Arc<dyn MetaWrite>,
    faults: Arc<Faults>,
    leases: Arc<Mutex<BTreeSet<i64>>>,
}

impl FaultMeta {
    async fn read<T>(&self, what: String, call: impl Future<Output = Result<T>>) -> Result<T> {
        // A real store always makes its caller wait: others get their turn here.
        tokio::task::yield_now().await;
        match self.faults.enter(what.clone(), false) {
            Act::Go => call.await,
            Act::Slow(happens) => self.faults.slow(happens, call).await,
            Act::Before | Act::After => Err(unreachable(&what)),
            Act::Never => std::future::pending().await,
        }
    }

    async fn write<T>(&self, what: String, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::task::yield_now().await;
        match self.faults.enter(what.clone(), true) {
            Act::Go => call.await,
            Act::Slow(happens) => self.faults.slow(happens, call).await,
            Act::Before => Err(unreachable(&what)),
            Act::Never => std::future::pending().await,
            Act::After => {
                let _ = call.await;
                self.faults.end_if_dead().await;
                Err(Error::new(
                    ErrorKind::OutcomeUnknown,
                    format!("{what}: made to time out"),
                ))
            }
        }
    }
}

#[async_trait]
impl MetaRead for FaultMeta {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        let what = format!("range {}", String::from_utf8_lossy(&span.start));
        self.read(what, self.inner.range(span, opts)).await
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        self.read("watch".into(), self.inner.watch(span, from))
            .await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.read("status".into(), self.inner.status()).await
    }
}

#[async_trait]
impl MetaWrite for FaultMeta {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let what = match txn.writes.first() {
            Some(w) => format!("txn {} (+{})", w.key(), txn.writes.len() - 1),
            None => "txn without writes".into(),
        };
        if txn.writes.is_empty() {
            return self.read(what, self.inner.txn(txn)).await;
        }
        self.write(what, self.inner.txn(txn)).await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn compact(&self, rev: MetaRev) -> Result<()> {
        self.write("compact".into(), self.inner.compact(rev)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<i64> {
        let lease = self.read("grant".into(), self.inner.grant(ttl)).await?;
        self.leases.lock().unwrap().insert(lease);
        Ok(lease)
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        self.read("keep_alive".into(), self.inner.keep_alive(lease))
            .await
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        self.write("revoke".into(), self.inner.revoke(lease)).await
    }
}

/// An object store that follows the script.
pub struct FaultObjects {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl fmt::Debug for FaultObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultObjects")
    }
}

impl fmt::Display for FaultObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultObjects")
    }
}

impl FaultObjects {
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    async fn op<T>(
        &self,
        what: String,
        write: bool,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let fail = |what: String| object_store::Error::Generic {
            store: "faults",
            source: format!("{what}: made to fail").into(),
        };
        tokio::task::yield_now().await;
        if let Some(no) = &self.faults.refused
            && what.contains(no.as_str())
        {
            return Err(object_store::Error::PermissionDenied {
                path: what.clone(),
                source: "made to be denied".into(),
            });
        }
        match self.faults.enter(what.clone(), write) {
            Act::Go => call.await,
            Act::Slow(happens) => self.faults.slow(happens, call).await,
            Act::Before => Err(fail(what)),
            Act::Never => std::future::pending().await,
            Act::After => {
                let _ = call.await;
                self.faults.end_if_dead().await;
                Err(fail(what))
            }
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a store that stands in front of another passes every call on"
)]
#[async_trait]
impl ObjectStore for FaultObjects {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.op(
            format!("put {at}"),
            true,
            self.inner.put_opts(at, payload, opts),
        )
        .await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.op(
            format!("multipart {at}"),
            true,
            self.inner.put_multipart_opts(at, opts),
        )
        .await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.op(format!("get {at}"), false, self.inner.get_opts(at, options))
            .await
    }

    async fn get_ranges(
        &self,
        at: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.op(
            format!("get {at}"),
            false,
            self.inner.get_ranges(at, ranges),
        )
        .await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (inner, faults) = (self.inner.clone(), self.faults.clone());
        locations
            .then(move |at| {
                let me = Self {
                    inner: inner.clone(),
                    faults: faults.clone(),
                };
                async move {
                    let at = at?;
                    let copy = at.clone();
                    let one = futures::stream::once(async move { Ok(copy) }).boxed();
                    let call = async { me.inner.delete_stream(one).next().await.unwrap() };
                    me.op(format!("delete {at}"), true, call).await
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let what = format!("list {}", prefix.map_or("", |p| p.as_ref()));
        match self.faults.enter(what.clone(), false) {
            Act::Go => self.inner.list(prefix),
            Act::Slow(_) => {
                self.faults.cancel();
                self.inner.list(prefix)
            }
            Act::Never => futures::stream::pending().boxed(),
            Act::Before | Act::After => futures::stream::once(async move {
                Err(object_store::Error::Generic {
                    store: "faults",
                    source: what.into(),
                })
            })
            .boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.op("list".into(), false, self.inner.list_with_delimiter(prefix))
            .await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.op(
            format!("copy {from} {to}"),
            true,
            self.inner.copy_opts(from, to, options),
        )
        .await
    }
}

/// Tokio's own time on top of a fixed date. Under `start_paused = true` it stands still while anything can run, and jumps to the
/// next timer when nothing can: waiting costs nothing, and nothing spins.
pub struct VirtualClock {
    base: UnixMs,
    start: tokio::time::Instant,
}

#[allow(clippy::disallowed_methods, reason = "this is a clock")]
impl VirtualClock {
    pub fn at(now: UnixMs) -> Arc<Self> {
        Arc::new(Self {
            base: now,
            start: tokio::time::Instant::now(),
        })
    }
}

#[allow(clippy::disallowed_methods, reason = "this is a clock")]
impl Clock for VirtualClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.base.0 + self.start.elapsed().as_millis() as i64)
    }

    fn mono(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, how_long: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(how_long))
    }
}

/// What survives a crash: the two stores and the time.
pub struct World {
    pub meta: Arc<dyn MetaWrite>,
    pub objects: Arc<dyn ObjectStore>,
    pub clock: Arc<VirtualClock>,
    leases: Arc<Mutex<BTreeSet<i64>>>,
}

/// What a process is given: the stores behind a script.
#[derive(Clone)]
pub struct Stores {
    pub meta: Arc<dyn MetaWrite>,
    pub read: ObjectRead,
    pub write: ObjectWrite,
    pub clock: Arc<dyn Clock>,
    pub faults: Arc<Faults>,
}

impl Stores {
    /// The metadata behind the script.
    pub fn reader(&self) -> MetaReader {
        MetaReader::new(self.meta.clone(), &Scope::root(self.clock.clone(), "test"))
    }
}

impl World {
    pub fn new(meta: Arc<dyn MetaWrite>, objects: Arc<dyn ObjectStore>, now: UnixMs) -> Self {
        Self {
            meta,
            objects,
            clock: VirtualClock::at(now),
            leases: Arc::default(),
        }
    }

    /// Opens both stores as a new process does.
    pub fn open(&self, faults: &Arc<Faults>, object_root: &str) -> Stores {
        let store = FaultObjects::new(self.objects.clone(), faults.clone());
        let (read, write) = from_store(Arc::new(store), object_root);
        Stores {
            meta: Arc::new(FaultMeta {
                inner: self.meta.clone(),
                faults: faults.clone(),
                leases: self.leases.clone(),
            }),
            read,
            write,
            clock: self.clock.clone(),
            faults: faults.clone(),
        }
    }

    /// The metadata as a reader sees it that nothing goes wrong for.
    pub fn reader(&self) -> MetaReader {
        MetaReader::new(self.meta.clone(), &Scope::root(self.clock.clone(), "test"))
    }

    /// The time in it.
    pub fn clock_now(&self) -> UnixMs {
        self.clock.now()
    }

    /// The process is gone and its leases have run out.
    pub async fn bury(&self) {
        let leases = std::mem::take(&mut *self.leases.lock().unwrap());
        for lease in leases {
            let _ = self.meta.revoke(lease).await;
        }
    }
}

/// Points that an ordinary run takes of a sweep, spread over the whole of it. Where they begin is drawn from the process id, so that
/// runs differ, or from `FALCONER_SWEEP_SEED`. All points are run where `FALCONER_SWEEP` is `all` (`tools/sweep`).
const SAMPLE: usize = 80;

fn sampled<T>(points: Vec<T>, sample: usize) -> (Vec<T>, u64) {
    if std::env::var("FALCONER_SWEEP").is_ok_and(|v| v == "all") {
        return (points, 0);
    }
    let seed = std::env::var("FALCONER_SWEEP_SEED")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    let step = points.len().div_ceil(sample).max(1);
    let first = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as usize % step;
    (points.into_iter().skip(first).step_by(step).collect(), seed)
}

/// The sweep. `make` builds a fresh world, `drive` runs it to the end (also when it was left half way), `check` looks at what
/// stands there at last. Returns the number of points, the run without faults among them.
pub async fn sweep(
    object_root: &str,
    make: impl AsyncFn() -> World,
    drive: impl AsyncFn(&Stores) -> Result<()>,
    check: impl AsyncFn(&World, &str),
) -> usize {
    sweep_some(SAMPLE, object_root, make, drive, check).await
}

/// As [`sweep`], with at most so many points in an ordinary run: for worlds that are slow to go through.
pub async fn sweep_some(
    sample: usize,
    object_root: &str,
    make: impl AsyncFn() -> World,
    drive: impl AsyncFn(&Stores) -> Result<()>,
    check: impl AsyncFn(&World, &str),
) -> usize {
    let world = make().await;
    let faults = Faults::none();
    drive(&world.open(&faults, object_root))
        .await
        .expect("the run without faults");
    check(&world, "without faults").await;
    let ops = faults.ops();
    assert!(!ops.is_empty(), "a run without operations proves nothing");
    let modes = |op: &Op| -> &[Mode] {
        use Mode::{CrashAfter, CrashBefore, FailAfter, FailBefore};
        if op.write {
            &[FailBefore, FailAfter, CrashBefore, CrashAfter]
        } else {
            &[FailBefore, CrashBefore]
        }
    };
    let points: Vec<(usize, Mode)> = ops
        .iter()
        .enumerate()
        .flat_map(|(i, op)| modes(op).iter().map(move |mode| (i, *mode)))
        .collect();
    let all = points.len();
    let (points, seed) = sampled(points, sample);
    println!(
        "sweep: {} operations, {all} points, {} of them swept (seed {seed})",
        ops.len(),
        points.len()
    );
    for (i, mode) in points {
        let label = format!("{mode:?} at {i} of {}: {}", ops.len(), ops[i].what);
        let world = make().await;
        let faults = Faults::at(i, mode);
        let stores = world.open(&faults, object_root);
        let ended = tokio::select! {
            biased;
            () = faults.crashed() => None,
            ended = in_time(&label, drive(&stores)) => Some(ended),
        };
        match ended {
            Some(Err(e)) if !faults.is_dead() => {
                panic!("{label}: one fault must be survived: {e}")
            }
            Some(Ok(())) if !faults.is_dead() => {}
            _ => {
                drop(stores);
                world.bury().await;
                let again = world.open(&Faults::none(), object_root);
                in_time(&label, drive(&again))
                    .await
                    .unwrap_or_else(|e| panic!("{label}: taking it up again: {e}"));
            }
        }
        check(&world, &label).await;
    }
    1 + all
}

/// The sweep of cancellations: at each operation whoever asked is cancelled, once before it happens and once before he hears of it.
/// `drive` runs until that process is done with it, `again` is the next process, which is not cancelled. Returns the number of points.
pub async fn cancel_sweep(
    sample: usize,
    object_root: &str,
    make: impl AsyncFn() -> World,
    drive: impl AsyncFn(&Stores) -> Result<()>,
    again: impl AsyncFn(&Stores, &str),
    check: impl AsyncFn(&World, &str),
) -> usize {
    let world = make().await;
    let faults = Faults::none();
    drive(&world.open(&faults, object_root))
        .await
        .expect("the run that nobody cancels");
    let ops = faults.ops();
    let points: Vec<(usize, Mode)> = (0..ops.len())
        .flat_map(|i| [(i, Mode::CancelBefore), (i, Mode::CancelAfter)])
        .collect();
    let all = points.len();
    let (points, seed) = sampled(points, sample);
    println!(
        "cancelled at {} of {all} points (seed {seed})",
        points.len()
    );
    for (i, mode) in points {
        let label = format!("{mode:?} at {i} of {}: {}", ops.len(), ops[i].what);
        let world = make().await;
        let stores = world.open(&Faults::at(i, mode), object_root);
        in_time(&label, drive(&stores))
            .await
            .unwrap_or_else(|e| panic!("{label}: {e}"));
        drop(stores);
        world.bury().await;
        let next = world.open(&Faults::none(), object_root);
        in_time(&label, again(&next, &label)).await;
        check(&world, &label).await;
    }
    all
}

/// A run that never ends fails, and says at which fault. Virtual time: this costs nothing.
#[allow(
    clippy::disallowed_methods,
    reason = "the time here is the virtual one"
)]
async fn in_time<T>(label: &str, run: impl Future<Output = T>) -> T {
    let limit = Duration::from_mins(10);
    match tokio::time::timeout(limit, run).await {
        Ok(done) => done,
        Err(e) => panic!("{label}: not ended after {limit:?}: {e}"),
    }
}
