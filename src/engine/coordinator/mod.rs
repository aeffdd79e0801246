//! The data coordinator of a root that is ours: it opens the channels' logs, the checkpoints and the broadcaster, and says what a
//! broadcast does (`spec/lifecycle.md` §1 to §3, §I.8, chapter II).
//!
//! ```text
//! own the root → mark → Channels, control channel → Checkpoints → Broadcaster (takes unfinished tasks up)
//! ```
//!
//! - Opened when a job first needs it, or when unfinished broadcasts of ours stand; nobody else appends to a log. One assignment, one
//!   owner: whoever holds a channel's log (§2).
//! - Bound to the epoch under which it was opened. Under another one it is closed and opened again: somebody else may have had the root.
//! - Closed before the root is given back, which waits for every unfinished broadcast.
//!
//! Lawful users: jobs, through [`Coordinator::service`], and the runner, which owns the root.

mod callbacks;
mod effects;
pub mod mark;
pub mod orders;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::broadcast::{Broadcaster, Parts};
use super::data::DataPath;
use super::error::{Error, ErrorKind, Result};
use super::format::keys::Family;
use super::ids::VChannel;
use super::meta::Span;
use super::model::broadcast::{BroadcastsView, Task, TaskState, TombstoneLimits};
use super::plan::execute::Executor;
use super::plan::retry::calm;
use super::wal::channels::Channels;
use super::wal::checkpoints::Checkpoints;
use callbacks::Ddl;
use mark::Mark;

/// Between two pictures for the screen.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a process that ends waits for broadcasts that end by themselves.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two cuts of the logs.
const CUT: Duration = Duration::from_mins(1);

/// What is open of a root.
pub struct Service {
    /// The broadcaster.
    pub broadcaster: Broadcaster,
    /// The logs.
    pub channels: Arc<Channels>,
    /// The checkpoints.
    pub checkpoints: Arc<Checkpoints>,
    /// The control channel.
    pub control: VChannel,
    /// The root's mark.
    pub mark: Mark,
    /// Under which it was opened.
    epoch: u64,
    stop: CancellationToken,
}

/// Opens and closes it. Cheap to share.
pub struct Coordinator {
    executor: Arc<Executor>,
    /// One opening or closing at a time.
    gate: tokio::sync::Mutex<()>,
    open: Mutex<Option<Arc<Service>>>,
    seen: watch::Sender<Arc<BroadcastsView>>,
    /// The last unfinished broadcast has ended.
    idle: Arc<Notify>,
    /// Counts jobs that have come to rest: broadcasts that say what a job does end with it.
    rested: watch::Sender<u64>,
}

impl Coordinator {
    /// Nothing is open yet, and no request is made.
    #[must_use]
    pub fn new(executor: Arc<Executor>) -> Arc<Self> {
        Arc::new(Self {
            executor,
            gate: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            seen: watch::Sender::default(),
            idle: Arc::default(),
            rested: watch::Sender::new(0),
        })
    }

    /// What is shown of it, as it changes.
    pub fn view(&self) -> watch::Receiver<Arc<BroadcastsView>> {
        self.seen.subscribe()
    }

    fn held(&self) -> MutexGuard<'_, Option<Arc<Service>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is open under the epoch that we hold now, opened if need be. `Fenced` when we own no root; `Unsupported` when the root is
    /// not ours; `Corrupt` when a record stops it.
    pub async fn service(&self) -> Result<Arc<Service>> {
        let _gate = self.gate.lock().await;
        let fence = self.executor.fence();
        let epoch = fence.epoch().ok_or_else(|| fence.lost())?;
        let held = self.held().clone();
        if let Some(open) = held {
            if open.epoch == epoch && open.broadcaster.ended().borrow().is_none() {
                return Ok(open);
            }
            self.shut().await;
        }
        let open = Arc::new(Service::open(&self.executor, epoch, self.rested.clone()).await?);
        *self.held() = Some(open.clone());
        self.keep(&open);
        Ok(open)
    }

    /// Whether the root must not be given back because of it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let held = self.held();
        held.as_ref().is_some_and(|open| {
            !open.broadcaster.is_idle() && open.broadcaster.ended().borrow().is_none()
        })
    }

    /// A job has come to rest.
    pub fn rested(&self) {
        self.rested.send_modify(|n| *n += 1);
    }

    /// Waits a moment for the broadcasts that end by themselves, so that the next process finds none to take up.
    pub async fn settle(&self) {
        let mut seen = self.seen.subscribe();
        let idle = async { while self.is_busy() && seen.changed().await.is_ok() {} };
        tokio::select! {
            () = idle => {}
            () = self.executor.clock().sleep(SETTLE) => {}
        }
    }

    /// Waits until the last unfinished broadcast has ended; may also wake for nothing.
    pub async fn idle(&self) {
        self.idle.notified().await;
    }

    /// Whether records of unfinished broadcasts stand in a root of ours. Reads only.
    pub async fn left_unfinished(&self) -> Result<bool> {
        let (reader, clock) = (self.executor.reader(), self.executor.clock());
        if mark::read(&reader, &**clock, self.executor.keys())
            .await?
            .is_none()
        {
            return Ok(false);
        }
        let span = Span::prefix(&Family::BroadcastTask.prefix(self.executor.roots()));
        let page = calm(&**clock, || reader.range_all(&span)).await?;
        // One that cannot be read is not finished: opening says why it cannot be.
        let open = |value: &[u8]| {
            Task::read(value).map_or(true, |task| task.state() != TaskState::Tombstone)
        };
        Ok(page.kvs.iter().any(|kv| open(&kv.value)))
    }

    /// Closes everything: what is unfinished stays as it is persisted, for the next one.
    pub async fn close(&self) {
        let _gate = self.gate.lock().await;
        self.shut().await;
    }

    async fn shut(&self) {
        let held = self.held().take();
        if let Some(open) = held {
            open.stop.cancel();
            open.broadcaster.close().await;
            open.channels.close().await;
            self.seen.send_replace(Arc::default());
        }
    }

    /// The tasks beside it: the picture, and the cuts.
    fn keep(&self, open: &Arc<Service>) {
        let (service, seen, idle) = (open.clone(), self.seen.clone(), self.idle.clone());
        let clock = self.executor.clock().clone();
        let showing = async move {
            let mut changed = service.broadcaster.changed();
            loop {
                changed.borrow_and_update();
                let view = service.broadcaster.view();
                if view.tasks.is_empty() {
                    idle.notify_one();
                }
                seen.send_replace(Arc::new(view));
                if changed.changed().await.is_err() {
                    return;
                }
                clock.sleep(PERIOD).await;
            }
        };
        tokio::spawn(open.stop.clone().run_until_cancelled_owned(showing));
        let (service, clock) = (open.clone(), self.executor.clock().clone());
        let cutting = async move {
            loop {
                clock.sleep(CUT).await;
                // What cannot be cut now is cut in the next round: a log that is longer does no harm.
                let _ = service.broadcaster.truncate().await;
            }
        };
        tokio::spawn(open.stop.clone().run_until_cancelled_owned(cutting));
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(open) = self.held().take() {
            open.stop.cancel();
        }
    }
}

impl Service {
    async fn open(
        executor: &Arc<Executor>,
        epoch: u64,
        rested: watch::Sender<u64>,
    ) -> Result<Self> {
        let mark = mark::stand(executor).await?;
        let channels = Channels::new(executor.clone());
        let control = channels.control(&mark.pchannel(0)).await?;
        let checkpoints = Checkpoints::load(executor.clone()).await?;
        let callbacks = Ddl::new(executor.clone(), checkpoints.clone(), rested);
        let opened = Broadcaster::open(Parts {
            executor: executor.clone(),
            channels: channels.clone(),
            checkpoints: checkpoints.clone(),
            callbacks: Arc::new(callbacks),
            consumer: DataPath::new(executor),
            tombstones: TombstoneLimits::default(),
        });
        let broadcaster = match opened.await {
            Ok(broadcaster) => broadcaster,
            Err(e) => {
                // Logs that are open would be fenced by the next try only.
                channels.close().await;
                return Err(e);
            }
        };
        let open = Self {
            broadcaster,
            channels,
            checkpoints,
            control,
            mark,
            epoch,
            stop: CancellationToken::new(),
        };
        if executor.fence().epoch() == Some(epoch) {
            return Ok(open);
        }
        open.broadcaster.close().await;
        open.channels.close().await;
        Err(executor.fence().lost())
    }

    /// Physical channels for a collection with so many shards: those with the fewest virtual channels, each at most once (Milvus's own
    /// rule). `Limit` when there are fewer.
    pub fn place(&self, shards: u32) -> Result<Vec<String>> {
        let shards = usize::try_from(shards).unwrap_or(usize::MAX);
        let mut used: Vec<(usize, u32)> = (0..self.mark.channels)
            .map(|n| (self.checkpoints.alive_on(&self.mark.pchannel(n)), n))
            .collect();
        used.sort_unstable();
        if shards > used.len() {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "{shards} shards are more than the root's {} physical channels",
                    self.mark.channels
                ),
            )
            .fix("use fewer shards"));
        }
        let chosen = used.into_iter().take(shards);
        Ok(chosen.map(|(_, n)| self.mark.pchannel(n)).collect())
    }
}
