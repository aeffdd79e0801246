//! Our jobs as the journal has them: read once, then followed. Reads only, so an attach that may not write shows them too.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;

use crate::engine::clock::Clock;
use crate::engine::error::{ErrorKind, Result};
use crate::engine::ids::{JobId, KeyPrefix, MetaKey, MetaRev};
use crate::engine::jobs::board::Board;
use crate::engine::meta::scope::Scope;
use crate::engine::meta::{Event, KeyValue, MetaReader, RangeOpts, Span};
use crate::engine::model::jobs::JobsView;
use crate::engine::model::quarantine::Quarantine;
use crate::engine::model::tickets::Ticket;
use crate::engine::plan::journal::{JobRecord, Keys, Live, Ordered, Past, from_json};
use crate::engine::profile::Roots;

/// Between two tries to read it.
const PAUSE: Duration = Duration::from_secs(5);

/// All job records as they stand: one short range each, because markers and pre-images lie between them. With the revision of
/// the first range.
pub(in crate::engine::jobs) async fn records(
    meta: &MetaReader,
    keys: &Keys,
) -> Result<(Vec<KeyValue>, MetaRev)> {
    let mut span = Span::prefix(&keys.jobs());
    let (mut found, mut first) = (Vec::new(), None);
    let opts = RangeOpts {
        limit: 1,
        ..RangeOpts::default()
    };
    loop {
        let page = meta.range(&span, opts).await?;
        let first = *first.get_or_insert(page.rev);
        let Some(kv) = page.kvs.into_iter().next() else {
            return Ok((found, first));
        };
        // `/` is the last byte before `0`: the next start lies behind everything under this job.
        let mut start = kv.key.0.to_vec();
        start.push(b'0');
        span.start = start.into();
        found.push(kv);
    }
}

/// The journal of one root.
#[derive(Clone)]
pub(in crate::engine::jobs) struct Journal {
    meta: MetaReader,
    keys: Keys,
    board: Arc<Board>,
}

impl Journal {
    /// The same on behalf of another.
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            meta: self.meta.within(scope),
            ..self.clone()
        }
    }

    pub fn new(meta: MetaReader, keys: Keys, board: Arc<Board>) -> Self {
        Self { meta, keys, board }
    }

    /// Learns all job records. Answers the revision of the first range, from which a watch misses nothing.
    pub async fn read(&self) -> Result<MetaRev> {
        let (kvs, rev) = records(&self.meta, &self.keys).await?;
        for kv in kvs {
            if let Some(record) = self.record(&kv.key, &kv.value) {
                self.board.learn(record);
            }
        }
        let mut others = Vec::new();
        for prefix in [
            self.keys.history(),
            self.keys.tickets(),
            self.keys.quarantines(),
        ] {
            others.extend(self.meta.range_all(&Span::prefix(&prefix)).await?.kvs);
        }
        // What went away while nobody watched.
        self.board.forget_others();
        for kv in &others {
            self.put(kv);
        }
        // Orders that came while nobody listened.
        for job in self.board.driven() {
            self.orders(job).await?;
        }
        Ok(rev)
    }

    /// Obeys what stands there for a job that is run here.
    pub async fn orders(&self, job: JobId) -> Result<()> {
        let span = Span::prefix(&self.keys.orders(job));
        for kv in self.meta.range_all(&span).await?.kvs {
            self.put(&kv);
        }
        Ok(())
    }

    /// One key of ours has this value now. What cannot be read is left to the version that wrote it.
    fn put(&self, kv: &KeyValue) {
        if let Some(record) = self.record(&kv.key, &kv.value) {
            self.board.learn(record);
            return;
        }
        if kv.key.0.starts_with(self.keys.history().bytes()) {
            if let Ok(past) = from_json::<Past>(&kv.key, &kv.value) {
                self.board.learn_past(past);
            }
            return;
        }
        let Some((job, rest)) = self.below_job(&kv.key) else {
            self.other(&kv.key, Some(&kv.value));
            return;
        };
        if rest == "live" {
            if let Ok(live) = from_json::<Live>(&kv.key, &kv.value) {
                self.board.learn_live(job, live);
            }
        } else if rest.starts_with("order/")
            && let Ok(ordered) = from_json::<Ordered>(&kv.key, &kv.value)
        {
            self.board.order(job, kv.key.clone(), ordered.order);
        }
    }

    /// The job and what follows it, of a key below a job's record.
    fn below_job<'a>(&self, key: &'a MetaKey) -> Option<(JobId, &'a str)> {
        let prefix = self.keys.jobs();
        let rest = key.0.strip_prefix(&prefix.bytes()[..])?;
        let (job, rest) = std::str::from_utf8(rest).ok()?.split_once('/')?;
        Some((job.parse().ok()?, rest))
    }

    /// Learns a pause, or the record of what was moved aside; `None` = it is gone.
    fn other(&self, key: &MetaKey, value: Option<&[u8]>) {
        let below = |prefix: &KeyPrefix| {
            let rest = key.0.strip_prefix(&prefix.bytes()[..])?;
            Some(String::from_utf8_lossy(rest).into_owned())
        };
        if let Some(id) = below(&self.keys.tickets()) {
            let read =
                |value| from_json(key, value).unwrap_or_else(|e| Ticket::unreadable(&id, e.what()));
            self.board.ticket(id.clone(), value.map(read));
        } else if let Some(job) = below(&self.keys.quarantines()).and_then(|id| id.parse().ok()) {
            // One that cannot be read is left to the version that wrote it.
            let record = value.map(|value| from_json::<Quarantine>(key, value).ok());
            self.board.quarantine(job, record.flatten());
        }
    }

    /// The job, if the key is that of a record.
    fn job(&self, key: &MetaKey) -> Option<JobId> {
        let prefix = self.keys.jobs();
        let id = key.0.strip_prefix(&prefix.bytes()[..])?;
        std::str::from_utf8(id).ok()?.parse().ok()
    }

    /// The job, if the key is that of what stays of one.
    fn gone(&self, key: &MetaKey) -> Option<JobId> {
        let prefix = self.keys.history();
        let id = key.0.strip_prefix(&prefix.bytes()[..])?;
        std::str::from_utf8(id).ok()?.parse().ok()
    }

    /// The record, if the key is one. A record that cannot be read is left to the version that wrote it.
    fn record(&self, key: &MetaKey, value: &[u8]) -> Option<JobRecord> {
        self.job(key)?;
        from_json(key, value).ok()
    }

    /// Follows it until the watch ends; `freed` runs whenever an owner has given the root back.
    pub async fn watch(&self, from: MetaRev, freed: impl Fn() + Send + Sync) -> Result<()> {
        let owner = self.keys.owner();
        let base = owner.text();
        let base = base.trim_end_matches("owner");
        let span = Span::prefix(&KeyPrefix::new(base));
        let mut changes = self.meta.watch(span, from.next()).await?;
        while let Some(batch) = changes.next().await {
            let mut is_free = false;
            for event in batch?.events {
                match event {
                    Event::Put(kv) => self.put(&kv),
                    Event::Delete(key, _) => {
                        is_free |= key == owner;
                        if let Some(id) = self.job(&key) {
                            self.board.forget(id);
                        } else if let Some(id) = self.gone(&key) {
                            self.board.forget_past(id);
                        } else {
                            self.other(&key, None);
                        }
                    }
                }
            }
            if is_free {
                freed();
            }
        }
        Ok(())
    }
}

/// Shows the jobs that other processes run, where none can be run. The task ends when every receiver is gone.
pub fn look_on(
    meta: &MetaReader,
    roots: &Roots,
    clock: Arc<dyn Clock>,
) -> watch::Receiver<Arc<JobsView>> {
    let board = Arc::new(Board::new());
    let view = board.subscribe();
    let meta = meta.within(&meta.scope().child("loop: following the jobs of others"));
    let ended = meta.scope().token().clone();
    let journal = Journal::new(meta, Keys::new(roots), board.clone());
    tokio::spawn(async move {
        let following = async {
            loop {
                if let Ok(rev) = journal.read().await {
                    board.known();
                    board.flush();
                    // An error ends the watch, not the task: the journal is read again. What never changes needs no watch.
                    if let Err(e) = journal.watch(rev, || {}).await
                        && e.kind() == ErrorKind::Unsupported
                    {
                        std::future::pending::<()>().await;
                    }
                }
                clock.sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = following => {}
            () = board.publish(clock.clone()) => {}
            () = board.unseen() => {}
            () = ended.cancelled() => {}
        }
    });
    view
}
