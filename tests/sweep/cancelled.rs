//! I7.2: whoever asks is cancelled at each store operation of a run, before it happens and while nobody knows whether it has. Then the
//! next process finds what is stored, nothing else, and the same order succeeds (`spec/lifecycle.md` §7).

use std::sync::{Arc, Mutex};

use falconer::engine::error::ErrorKind;
use falconer::engine::jobs::runner::RunnerHandle;
use falconer::engine::plan::journal::JobRecord;

use super::*;
use crate::support::faults::cancel_sweep;

const SAMPLE: usize = 60;

/// Waits until nothing runs any more.
async fn rested(runner: &RunnerHandle) -> Arc<falconer::engine::model::jobs::JobsView> {
    let mut view = runner.view.clone();
    loop {
        let now = view.borrow_and_update().clone();
        if now.known && now.jobs.iter().all(|j| j.state.rests()) {
            return now;
        }
        view.changed().await.unwrap();
    }
}

/// One process that is given an order, and is cancelled when its stores say so: the request while there is no job, then the job too.
async fn ordered(stores: &Stores, intent: &Intent) -> Result<()> {
    let runner = runner(stores);
    rested(&runner).await;
    let request = Scope::root(stores.clock.clone(), "request 1");
    let job: Arc<Mutex<Option<JobId>>> = Arc::default();
    let (asked, of, all) = (request.clone(), job.clone(), runner.clone());
    stores.faults.on_cancel(move || {
        asked.cancel();
        if let Some(job) = *of.lock().unwrap() {
            // Too late, or nobody's: then there is nothing to cancel.
            let _ = all.cancel(job);
        }
    });
    let begun = begun(&runner.within(&request), intent).await;
    match begun {
        Ok(begun) => {
            *job.lock().unwrap() = Some(begun);
            let info = runner.ended(begun).await?;
            let fine = matches!(info.state, JobState::Verified | JobState::Cancelled);
            if !fine {
                let said = format!("{:?}: {:?} {:?}", info.state, info.error, info.notes);
                return Err(Error::new(ErrorKind::Internal, said));
            }
        }
        // A record whose outcome nobody knows is a job that is taken up.
        Err(e) if matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::OutcomeUnknown) => {
            rested(&runner).await;
        }
        Err(e) => return Err(e),
    }
    runner.stop().await;
    Ok(())
}

async fn cancelled_everywhere(
    what: &str,
    make: impl AsyncFn() -> World,
    intent: Intent,
    done: impl AsyncFn(&World) -> bool,
) {
    let before = Before::of(&make().await).await;
    let again = async |stores: &Stores, label: &str| {
        let runner = runner(stores);
        let view = rested(&runner).await;
        // What it shows is what is stored.
        let stored = all(&*stores.meta, "falconer/by-dev/job/").await;
        for (key, value) in stored.iter().filter(|(k, _)| k.split('/').count() == 4) {
            let record: JobRecord = serde_json::from_slice(value).unwrap();
            let shown = view.jobs.iter().find(|j| j.id == record.id);
            let shown = shown.unwrap_or_else(|| panic!("{label}: {key} is not shown"));
            assert_eq!(shown.state, record.state, "{label}: {key}");
        }
        let finished = view.jobs.iter().any(|j| j.state == JobState::Verified);
        if !finished {
            let job = begun(&runner, &intent).await;
            let job = job.unwrap_or_else(|e| panic!("{label}: again: {e}"));
            let info = runner.ended(job).await.unwrap();
            assert_eq!(info.state, JobState::Verified, "{label}: {:?}", info.error);
        }
        runner.stop().await;
    };
    let check = async |world: &World, label: &str| {
        let label = format!("{what}: {label}");
        assert!(done(world).await, "{label}: not done");
        sound(world, &before, &BTreeSet::new(), &label).await;
    };
    let drive = async |stores: &Stores| ordered(stores, &intent).await;
    let points = cancel_sweep(SAMPLE, ROOT, make, drive, again, check).await;
    assert!(points > 60, "{what}: {points}");
}

async fn snapshots(world: &World) -> Vec<String> {
    let all = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await;
    all.into_iter().map(|(_, info)| info.name).collect()
}

#[tokio::test(start_paused = true)]
async fn a_create_is_cancelled_anywhere() {
    let intent = Intent::CreateSnapshot {
        collection: lab::SMALL,
        name: "second".into(),
        description: String::new(),
        protection_secs: 3600,
        operation: None,
    };
    let done = async |world: &World| {
        let names = snapshots(world).await;
        names.iter().filter(|n| *n == "second").count() == 1
    };
    cancelled_everywhere("create", world, intent, done).await;
}

#[tokio::test(start_paused = true)]
async fn a_drop_is_cancelled_anywhere() {
    let intent = Intent::DropSnapshot { snapshot: SNAPSHOT };
    let done = async |world: &World| snapshots(world).await.is_empty();
    cancelled_everywhere("drop", world, intent, done).await;
}

#[tokio::test(start_paused = true)]
async fn a_collection_is_cancelled_anywhere() {
    let done = async |world: &World| {
        let left = family::<SegmentInfo>(&*world.meta, Family::Segment).await;
        left.iter().all(|(_, s)| s.id != lab::COMPACTED[0])
    };
    cancelled_everywhere("gc", littered, collect(false), done).await;
}
