//! What is known of all jobs, and how it gets to the screen: at most ten times a second, and only when something moved.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::cx::Dials;
use crate::engine::clock::Clock;
use crate::engine::ids::JobId;
use crate::engine::model::jobs::{JobState, JobsView};
use crate::engine::model::quarantine::Quarantine;
use crate::engine::model::tickets::Ticket;
use crate::engine::plan::Intent;
use crate::engine::plan::journal::JobRecord;

const PERIOD: Duration = Duration::from_millis(100);

/// A job that this process drives.
#[derive(Clone)]
pub(super) struct Running {
    pub dials: Arc<Dials>,
    pub cancel: CancellationToken,
}

#[derive(Default)]
struct Entries {
    records: BTreeMap<JobId, JobRecord>,
    running: BTreeMap<JobId, Running>,
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
        self.lock().records.remove(&job);
        self.changed.notify_one();
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

    /// Jobs of the journal that have not ended and that nobody here drives.
    pub fn orphans(&self) -> Vec<JobId> {
        let entries = self.lock();
        let open = entries.records.values().filter(|r| !r.state.ended());
        open.map(|r| r.id)
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
        let jobs = entries.records.values().rev().map(|record| {
            let mut info = record.info();
            if let Some(running) = entries.running.get(&record.id) {
                info.progress = running.dials.meter.read();
                info.notes = running.dials.notes();
            }
            Arc::new(info)
        });
        JobsView {
            jobs: jobs.collect(),
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
