//! What is known of all jobs, and how it gets to the screen: at most ten times a second, and only when something moved.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::cx::Dials;
use crate::engine::clock::Clock;
use crate::engine::ids::{JobId, MetaKey, UnixMs};
use crate::engine::model::jobs::{JobState, JobsView};
use crate::engine::model::quarantine::Quarantine;
use crate::engine::model::tickets::Ticket;
use crate::engine::plan::Intent;
use crate::engine::plan::journal::{JobRecord, Live, Order, Past};

const PERIOD: Duration = Duration::from_millis(100);

/// A job that this process drives.
#[derive(Clone)]
pub(super) struct Running {
    pub dials: Arc<Dials>,
    pub cancel: CancellationToken,
    /// Orders of other processes that are obeyed: their keys go with the next entry of the journal.
    pub heard: Arc<Mutex<Vec<MetaKey>>>,
}

impl Running {
    /// Obeys. A retry is for jobs that nobody runs.
    pub fn obey(&self, order: Order) {
        match order {
            Order::Cancel => self.cancel.cancel(),
            Order::Throttle { rate } => self.dials.set_throttle(rate),
            Order::Pace { objects } => self.dials.set_pace(objects),
            Order::Parallel { copies } => self.dials.set_parallel(copies),
            Order::Retry => {}
        }
    }

    pub fn heard(&self) -> std::sync::MutexGuard<'_, Vec<MetaKey>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Entries {
    records: BTreeMap<JobId, JobRecord>,
    running: BTreeMap<JobId, Running>,
    /// Counters of jobs that other processes run.
    live: BTreeMap<JobId, Live>,
    /// Jobs whose record is gone.
    past: BTreeMap<JobId, Past>,
    tickets: BTreeMap<String, Arc<Ticket>>,
    quarantine: BTreeMap<JobId, Arc<Quarantine>>,
    known: bool,
}

/// All jobs.
pub(super) struct Board {
    entries: Mutex<Entries>,
    view: watch::Sender<Arc<JobsView>>,
    pub changed: Arc<Notify>,
}

impl Board {
    pub fn new() -> Self {
        Self {
            entries: Mutex::default(),
            view: watch::Sender::new(Arc::default()),
            changed: Arc::new(Notify::new()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<JobsView>> {
        self.view.subscribe()
    }

    /// The journal has been read once.
    pub fn known(&self) {
        self.lock().known = true;
        self.changed.notify_one();
    }

    pub fn set(&self, record: JobRecord) {
        self.lock().records.insert(record.id, record);
        self.changed.notify_one();
    }

    /// What the journal says; not believed of a job that we drive ourselves, we know better. What has ended stays ended: our
    /// own earlier entries may come back late.
    pub fn learn(&self, record: JobRecord) {
        let mut entries = self.lock();
        let known = entries.records.get(&record.id);
        let ended = known.is_some_and(|r| r.state.ended() && !record.state.ended());
        if !ended && !entries.running.contains_key(&record.id) {
            entries.records.insert(record.id, record);
            drop(entries);
            self.changed.notify_one();
        }
    }

    /// Forgets pauses and quarantines: they are read anew.
    pub fn forget_others(&self) {
        let mut entries = self.lock();
        entries.tickets.clear();
        entries.quarantine.clear();
    }

    /// A pause as it stands; `None` = it is gone.
    pub fn ticket(&self, id: String, ticket: Option<Ticket>) {
        let mut entries = self.lock();
        match ticket {
            Some(ticket) => entries.tickets.insert(id, Arc::new(ticket)),
            None => entries.tickets.remove(&id),
        };
        drop(entries);
        self.changed.notify_one();
    }

    /// What a job moved aside, as its record stands; `None` = it is gone.
    pub fn quarantine(&self, job: JobId, record: Option<Quarantine>) {
        let mut entries = self.lock();
        match record {
            Some(record) => entries.quarantine.insert(job, Arc::new(record)),
            None => entries.quarantine.remove(&job),
        };
        drop(entries);
        self.changed.notify_one();
    }

    pub fn forget(&self, job: JobId) {
        let mut entries = self.lock();
        entries.records.remove(&job);
        entries.live.remove(&job);
        drop(entries);
        self.changed.notify_one();
    }

    /// Counters that another process wrote.
    pub fn learn_live(&self, job: JobId, live: Live) {
        self.lock().live.insert(job, live);
        self.changed.notify_one();
    }

    /// What stays of a job.
    pub fn learn_past(&self, past: Past) {
        self.lock().past.insert(past.id, past);
        self.changed.notify_one();
    }

    pub fn forget_past(&self, job: JobId) {
        self.lock().past.remove(&job);
        self.changed.notify_one();
    }

    /// Ids of the jobs of which only that is left, oldest first.
    pub fn past(&self) -> Vec<JobId> {
        self.lock().past.keys().copied().collect()
    }

    /// Obeys an order of another process, if the job is run here.
    pub fn order(&self, job: JobId, key: MetaKey, order: Order) {
        let Some(running) = self.running(job) else {
            return;
        };
        let mut heard = running.heard();
        if !heard.contains(&key) {
            heard.push(key);
            drop(heard);
            running.obey(order);
            self.changed.notify_one();
        }
    }

    /// Jobs that this process drives.
    pub fn driven(&self) -> Vec<JobId> {
        self.lock().running.keys().copied().collect()
    }

    pub fn get(&self, job: JobId) -> Option<JobRecord> {
        self.lock().records.get(&job).cloned()
    }

    /// The newest job begun after `parent` for this intent that has not failed.
    pub fn child(&self, parent: JobId, intent: &Intent) -> Option<JobId> {
        let entries = self.lock();
        let later = entries.records.values().rev().take_while(|r| r.id > parent);
        later
            .filter(|r| r.intent == *intent)
            .find(|r| {
                !matches!(
                    r.state,
                    JobState::Failed | JobState::Cancelled | JobState::Undoing
                )
            })
            .map(|r| r.id)
    }

    /// Jobs of the journal that have not ended and that nobody here drives. One that waits for the operator is left to him until its
    /// time is over.
    pub fn orphans(&self, now: UnixMs) -> Vec<JobId> {
        let entries = self.lock();
        let waits = |r: &JobRecord| {
            r.state == JobState::Stuck && !r.cancelled && r.until.is_some_and(|end| now < end)
        };
        let open = entries.records.values().filter(|r| !r.state.ended());
        open.filter(|r| !waits(r))
            .map(|r| r.id)
            .filter(|id| !entries.running.contains_key(id))
            .collect()
    }

    /// Ended jobs, oldest first.
    pub fn ended(&self) -> Vec<JobId> {
        let entries = self.lock();
        entries
            .records
            .values()
            .filter(|r| r.state.ended())
            .map(|r| r.id)
            .collect()
    }

    pub fn start(&self, job: JobId, running: Running) {
        self.lock().running.insert(job, running);
        self.changed.notify_one();
    }

    /// `true` when it was the last one.
    pub fn stop(&self, job: JobId) -> bool {
        let mut entries = self.lock();
        entries.running.remove(&job);
        let last = entries.running.is_empty();
        drop(entries);
        self.changed.notify_one();
        last
    }

    pub fn any_running(&self) -> bool {
        !self.lock().running.is_empty()
    }

    pub fn running(&self, job: JobId) -> Option<Running> {
        self.lock().running.get(&job).cloned()
    }

    fn build(&self) -> JobsView {
        let entries = self.lock();
        let jobs = entries.records.values().map(|record| {
            let mut info = record.info();
            if let Some(running) = entries.running.get(&record.id) {
                info.progress = running.dials.meter.read();
                info.notes = running.dials.notes();
                info.copies = running.dials.copies();
            } else if let Some(live) = entries.live.get(&record.id)
                && live.at >= record.moved
                && !record.state.rests()
            {
                info.progress = live.progress;
                info.copies = live.copies.clone();
                info.moved = live.at;
            }
            info
        });
        let gone = entries.past.values();
        let gone = gone.filter(|p| !entries.records.contains_key(&p.id));
        let mut jobs: Vec<_> = jobs.chain(gone.map(Past::info)).map(Arc::new).collect();
        jobs.sort_unstable_by_key(|j| std::cmp::Reverse(j.id));
        JobsView {
            jobs,
            tickets: entries.tickets.values().cloned().collect(),
            quarantine: entries.quarantine.values().rev().cloned().collect(),
            known: entries.known,
        }
    }

    /// Publishes after each change until it is dropped.
    pub async fn publish(&self, clock: Arc<dyn Clock>) {
        loop {
            self.changed.notified().await;
            self.view.send_replace(Arc::new(self.build()));
            clock.sleep(PERIOD).await;
        }
    }

    /// Waits until nobody looks.
    pub async fn unseen(&self) {
        self.view.closed().await;
    }

    /// Publishes now.
    pub fn flush(&self) {
        self.view.send_replace(Arc::new(self.build()));
    }
}
