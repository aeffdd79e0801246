//! Real faults: etcd killed, stopped, full, compacted under a listing, its tokens run out; the bucket refusing, resetting, slow and
//! cut short. During create, restore and collection nothing is lost, the job says what it waits for, and ends once the fault does.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use falconer::engine::clock::Clock;
use falconer::engine::format::keys::Family;
use falconer::engine::format::pb;
use falconer::engine::handle::{Conn, Handle, Request};
use falconer::engine::ids::{JobId, SnapshotId};
use falconer::engine::model::jobs::{JobInfo, JobState};
use falconer::engine::plan::Intent;
use support::faults::VirtualClock;
use support::place::{
    NOW, Objects, Place, apply, create, job, pass, patiently, plan, read, restore, verified,
};
use support::proxy::{Proxy, Wrong};
use support::s3;
use support::same::copied;
use support::servers::{Etcd, EtcdVersion};
use support::snapshots::{SMALL, family};

#[allow(clippy::disallowed_methods, reason = "a fault lasts in real time")]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

fn clock() -> Arc<dyn Clock> {
    VirtualClock::at(NOW)
}

/// Plans and applies, and asks again while the fault keeps it from being accepted: a plan writes nothing.
async fn begin(handle: &Handle, intent: Intent) -> JobId {
    let asking = async {
        loop {
            let planned = match handle.request(Request::Plan(intent.clone())).await {
                Ok(falconer::engine::handle::Reply::Planned(plan)) => plan,
                Ok(other) => panic!("{other:?}"),
                Err(e) => {
                    explained(&e.to_string());
                    pause(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !planned.applicable() {
                // What could not be read is a failed check, with its reason.
                for check in planned.failures() {
                    explained(check.failed.as_deref().unwrap_or_default());
                }
                pause(Duration::from_millis(100)).await;
                continue;
            }
            match apply(handle, &planned).await {
                Ok(id) => return id,
                Err(e) => explained(&e.to_string()),
            }
            // It may have been accepted although nobody was told.
            let jobs = handle.jobs.borrow().clone();
            if let Some(begun) = jobs
                .jobs
                .iter()
                .find(|j| j.title == planned.title && !j.state.ended())
            {
                return begun.id;
            }
            pause(Duration::from_millis(100)).await;
        }
    };
    patiently("accepted", asking).await
}

/// One line that names a thing and a cause.
fn explained(said: &str) {
    assert!(said.len() > 20 && !said.contains('\n'), "{said:?}");
}

/// How long a job may take once its fault has ended.
const LIMIT: Duration = Duration::from_secs(90);

async fn ended(handle: &mut Handle, id: JobId) -> Arc<JobInfo> {
    let jobs = handle.jobs.clone();
    tokio::select! {
        info = job(handle, "ended", |j| j.id == id && j.state.ended()) => info,
        () = pause(LIMIT) => {
            let view = jobs.borrow().clone();
            let info = view.jobs.iter().find(|j| j.id == id);
            panic!("not ended within {LIMIT:?}: {info:?} {:?}", handle.conn.borrow());
        }
    }
}

/// Gives an order under a fault that ends after a while, and waits for the job. Answers how many requests went wrong, too.
async fn ordered(handle: &mut Handle, proxy: &Proxy, intent: Intent) -> (Arc<JobInfo>, usize) {
    let work = async {
        let id = begin(handle, intent).await;
        ended(handle, id).await
    };
    tokio::join!(work, proxy_heals(proxy, Duration::from_secs(3)))
}

fn says(info: &JobInfo, words: &[&str]) {
    let said = info.notes.join("\n");
    for word in words {
        assert!(
            said.contains(word),
            "{word:?} in the notes of {}: {said}",
            info.title
        );
    }
}

/// The snapshot of this name, committed.
async fn made(place: &Place, name: &str) -> SnapshotId {
    let world = place.world().await;
    let of: Vec<_> = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot)
        .await
        .into_iter()
        .filter(|(_, s)| s.name == name)
        .collect();
    assert_eq!(of.len(), 1, "one snapshot {name}");
    assert_eq!(of[0].1.state(), pb::data::SnapshotState::Committed);
    SnapshotId(of[0].1.id)
}

/// Nothing that was there before is gone or changed, but what a pass may take.
fn kept(before: &Objects, now: &Objects, taken: &BTreeSet<String>, what: &str) {
    for (key, bytes) in before {
        if !taken.contains(key) {
            assert_eq!(now.get(key), Some(bytes), "{what}: {key}");
        }
    }
}

/// No job that has not ended, no lock, no record that says "under way".
async fn at_rest(place: &Place, what: &str) {
    let world = place.world().await;
    let ours = support::snapshots::all(&*world.meta, "falconer/by-dev").await;
    let locks: Vec<&String> = ours.keys().filter(|k| k.contains("/lock/")).collect();
    assert!(locks.is_empty(), "{what}: {locks:?}");
    for (_, s) in family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await {
        assert_eq!(
            s.state(),
            pb::data::SnapshotState::Committed,
            "{what}: {}",
            s.name
        );
        assert!(s.pin_ids.is_empty(), "{what}: {} is pinned", s.name);
    }
    for (_, s) in family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment).await {
        assert!(!s.is_importing, "{what}: segment {} is importing", s.id);
    }
}

/// The ways in which a bucket fails: two of three requests go wrong, each in the next way of its group.
const WAYS: [&[Wrong]; 3] = [
    &[Wrong::SlowDown, Wrong::Denied, Wrong::Reset],
    &[Wrong::ResetAfter, Wrong::Slow],
    &[Wrong::Truncated, Wrong::Short, Wrong::Long],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_fails_in_every_way_loses_nothing() {
    let s3 = s3::shared();
    let proxy = Proxy::before(s3.port()).await;
    let etcd = Etcd::start(EtcdVersion::V35);
    let place = Place::on(etcd, s3, &proxy.url, "faults").await;
    let before = place.objects().await;
    let clock = clock();
    let mut handle = place.open(&clock).await;
    for (round, ways) in WAYS.into_iter().enumerate() {
        let label = format!("{ways:?}");
        let name = format!("made_{round}");
        // Two of three requests fail: nothing goes through by luck alone, and retries meet the fault again.
        proxy.script(move |seen| (seen.n % 3 != 2).then(|| ways[(seen.n / 3) % ways.len()]));
        let (info, hurt) = ordered(&mut handle, &proxy, create(SMALL, &name)).await;
        assert!(hurt > 0, "{label}: nothing went wrong");
        assert_eq!(info.state, JobState::Verified, "{label}: {info:?}");
        let id = made(&place, &name).await;

        proxy.script(move |seen| (seen.n % 3 != 2).then(|| ways[(seen.n / 3) % ways.len()]));
        let copy = format!("copy_{round}");
        let (info, hurt) = ordered(&mut handle, &proxy, restore(id, &copy)).await;
        assert!(hurt > 0, "{label}: nothing went wrong");
        assert_eq!(info.state, JobState::Verified, "{label}: {info:?}");
        assert_eq!(info.progress.files.0, info.progress.files.1, "{label}");
        let world = place.world().await;
        let snapshot = read(&world, id).await;
        copied(&world, &snapshot, &copy, &label).await;
        kept(&before, &place.objects().await, &BTreeSet::new(), &label);
        at_rest(&place, &label).await;
    }
    // A pass under all of them in turn.
    let now = place.objects().await;
    let planned = plan(&handle, pass()).await;
    assert!(planned.objects.deletes > 0, "there is something to take");
    proxy.script(|seen| (seen.n % 3 != 2).then(|| WAYS[0][(seen.n / 3) % 3]));
    let collecting = apply(&handle, &planned).await.unwrap();
    let healed = proxy_heals(&proxy, Duration::from_secs(4));
    let (info, hurt) = tokio::join!(ended(&mut handle, collecting), healed);
    assert!(hurt > 0);
    assert_eq!(info.state, JobState::Verified, "{info:?}");
    // What was refused while it ran is kept, and said; the next pass takes it.
    let left = place.objects().await;
    let short = now.len() - left.len() < usize::try_from(planned.objects.deletes).unwrap();
    assert!(
        !short || info.notes.iter().any(|n| n.contains("kept")),
        "{info:?}"
    );
    let collecting = begin(&handle, pass()).await;
    verified(&mut handle, collecting).await;
    let left = place.objects().await;
    let gone: BTreeSet<String> = now
        .keys()
        .filter(|k| !left.contains_key(*k))
        .cloned()
        .collect();
    assert_eq!(
        gone.len() as u64,
        planned.objects.deletes,
        "all of the plan, and no more"
    );
    kept(&now, &left, &gone, "after the pass");
    at_rest(&place, "after the pass").await;
}

/// The fault ends after a while. Answers how many requests it hurt.
async fn proxy_heals(proxy: &Proxy, after: Duration) -> usize {
    pause(after).await;
    proxy.heal()
}

/// A bucket that refuses everything for some seconds: the job stands, says why, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_says_what_it_waits_for() {
    let s3 = s3::shared();
    let proxy = Proxy::before(s3.port()).await;
    let place = Place::on(Etcd::start(EtcdVersion::V34), s3, &proxy.url, "waiting").await;
    let clock = clock();
    let mut handle = place.open(&clock).await;
    let making = begin(&handle, create(SMALL, "nightly")).await;
    verified(&mut handle, making).await;
    let id = made(&place, "nightly").await;
    for (way, name, words) in [
        (
            Wrong::Denied,
            "denied",
            ["AccessDenied", "minio.accessKeyID"],
        ),
        (
            Wrong::SlowDown,
            "slow_down",
            ["SlowDown", "lower the concurrency"],
        ),
        (Wrong::Reset, "reset", ["object", "minio.address"]),
    ] {
        let planned = plan(&handle, restore(id, name)).await;
        let restoring = apply(&handle, &planned).await.unwrap();
        proxy.script(move |seen| (seen.method == "PUT").then_some(way));
        let waiting = job(&mut handle, "explained", |j| {
            j.id == restoring
                && (j.state.ended() || words.iter().all(|w| j.notes.join(" ").contains(w)))
        })
        .await;
        assert!(!waiting.state.ended(), "{name}: it waits: {waiting:?}");
        assert!(proxy.heal() > 0);
        let info = verified(&mut handle, restoring).await;
        says(&info, &words);
        let world = place.world().await;
        let snapshot = read(&world, id).await;
        copied(&world, &snapshot, name, name).await;
    }
    at_rest(&place, "after all of them").await;
}

/// Restores under `fault`, which is begun when the first files are there; then the job must end, and be whole.
async fn restored_under(
    place: &mut Place,
    handle: &mut Handle,
    id: SnapshotId,
    name: &str,
    fault: impl AsyncFnOnce(&mut Place, &mut Handle, JobId),
) -> Arc<JobInfo> {
    let planned = plan(handle, restore(id, name)).await;
    let restoring = apply(handle, &planned).await.unwrap();
    handle
        .request(Request::Throttle(restoring, Some(60_000)))
        .await
        .unwrap();
    job(handle, "copying", |j| {
        j.id == restoring && (j.progress.files.0 > 0 || j.state.ended())
    })
    .await;
    fault(place, handle, restoring).await;
    // It may not be reached yet.
    let letting = async {
        while handle
            .request(Request::Throttle(restoring, None))
            .await
            .is_err()
        {
            pause(Duration::from_millis(100)).await;
        }
    };
    patiently("let go", letting).await;
    let info = ended(handle, restoring).await;
    assert_eq!(info.state, JobState::Verified, "{name}: {info:?}");
    let world = place.world().await;
    let snapshot = read(&world, id).await;
    copied(&world, &snapshot, name, name).await;
    at_rest(place, name).await;
    info
}

async fn prepared(etcd: Etcd, bucket: &str) -> (Place, Handle, SnapshotId) {
    let s3 = s3::shared();
    let place = Place::on(etcd, s3, &s3.url, bucket).await;
    let mut handle = place.open(&clock()).await;
    let making = begin(&handle, create(SMALL, "nightly")).await;
    verified(&mut handle, making).await;
    let id = made(&place, "nightly").await;
    (place, handle, id)
}

async fn stale(handle: &mut Handle, words: &[&str]) {
    let seen = handle.conn.wait_for(|c| matches!(c, Conn::Stale { .. }));
    let conn = patiently("stale", seen).await.unwrap().clone();
    let Conn::Stale { why, .. } = conn else {
        panic!("{conn:?}")
    };
    for word in words {
        assert!(why.to_string().contains(word), "{word:?} in {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_killed_and_stopped_under_a_restore() {
    let (mut place, mut handle, id) = prepared(Etcd::start(EtcdVersion::V34), "killed-etcd").await;
    let before = place.objects().await;
    let info = restored_under(
        &mut place,
        &mut handle,
        id,
        "killed",
        async |place, handle, _| {
            place.etcd.as_mut().unwrap().kill();
            stale(handle, &["etcd"]).await;
            pause(Duration::from_secs(2)).await;
            place.etcd.as_mut().unwrap().restart();
        },
    )
    .await;
    assert_eq!(info.error, None, "{info:?}");
    // Longer than the lease of fifteen seconds: the right to write is lost, and taken again.
    let info = restored_under(
        &mut place,
        &mut handle,
        id,
        "stopped",
        async |place, handle, _| {
            place.etcd.as_ref().unwrap().freeze();
            pause(Duration::from_secs(30)).await;
            stale(handle, &["etcd"]).await;
            place.etcd.as_ref().unwrap().thaw();
        },
    )
    .await;
    assert_eq!(info.error, None, "{info:?}");
    kept(
        &before,
        &place.objects().await,
        &BTreeSet::new(),
        "etcd's faults",
    );
}

/// What fills the database up, and what makes room again.
#[allow(
    clippy::disallowed_methods,
    reason = "the hand of an operator, past the engine"
)]
async fn fill(etcd: &Etcd) -> usize {
    let mut kv = etcd.client().await.kv_client();
    for n in 0..200 {
        let junk = vec![b'x'; 400_000];
        if kv.put(format!("junk/{n:04}"), junk, None).await.is_err() {
            return n;
        }
    }
    panic!("the database has no quota");
}

#[allow(
    clippy::disallowed_methods,
    reason = "the hand of an operator, past the engine"
)]
async fn make_room(etcd: &Etcd) {
    use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions, DeleteOptions};
    let mut client = etcd.client().await;
    let gone = client
        .delete("junk/", Some(DeleteOptions::new().with_prefix()))
        .await
        .unwrap();
    let rev = gone.header().unwrap().revision();
    let whole = CompactionOptions::new().with_physical();
    client.compact(rev, Some(whole)).await.unwrap();
    client.defragment().await.unwrap();
    // A member's alarm is cleared by the member's name.
    let raised = client
        .alarm(AlarmAction::Get, AlarmType::None, None)
        .await
        .unwrap();
    for alarm in raised.alarms() {
        let mut member = AlarmOptions::new();
        member.with_member(alarm.member_id());
        client
            .alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(member))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_stops_a_job_and_room_lets_it_go_on() {
    let etcd = Etcd::options(EtcdVersion::V35)
        .arg("--quota-backend-bytes=16777216")
        .start();
    let (mut place, mut handle, id) = prepared(etcd, "full-etcd").await;
    let info = restored_under(
        &mut place,
        &mut handle,
        id,
        "filled",
        async |place, handle, job_id| {
            let etcd = place.etcd.as_ref().unwrap();
            assert!(fill(etcd).await > 5);
            // Let go of, it runs into the wall.
            handle
                .request(Request::Throttle(job_id, None))
                .await
                .unwrap();
            let waiting = job(handle, "explained", |j| {
                j.id == job_id && (j.state.ended() || j.notes.iter().any(|n| n.contains("NOSPACE")))
            })
            .await;
            assert!(!waiting.state.ended(), "it waits: {waiting:?}");
            make_room(etcd).await;
        },
    )
    .await;
    says(&info, &["NOSPACE", "defragment"]);
    assert_eq!(info.error, None, "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_is_compacted_all_the_time_stops_nobody() {
    let (place, mut handle, id) = prepared(Etcd::start(EtcdVersion::V34), "compacted").await;
    let before = place.objects().await;
    let over = Arc::new(AtomicBool::new(false));
    let mut client = place.etcd.as_ref().unwrap().client().await;
    let until = over.clone();
    #[allow(
        clippy::disallowed_methods,
        reason = "the hand of an operator, past the engine"
    )]
    let compacting = tokio::spawn(async move {
        let mut times = 0;
        while !until.load(Ordering::SeqCst) {
            // Every revision moves the head, so that the one before is gone.
            let put = client.put("elsewhere/tick", "x", None).await.unwrap();
            let head = put.header().unwrap().revision();
            if client.compact(head, None).await.is_ok() {
                times += 1;
            }
            pause(Duration::from_millis(5)).await;
        }
        times
    });
    let work = async {
        let mut last = None;
        for intent in [
            create(SMALL, "second"),
            restore(id, "compacted_copy"),
            pass(),
        ] {
            let id = begin(&handle, intent).await;
            let info = ended(&mut handle, id).await;
            assert_eq!(info.state, JobState::Verified, "{info:?}");
            last = Some(info);
        }
        last.unwrap()
    };
    // A listing of several pages cannot end while each of them finds its revision gone; it must once that stops.
    let calm = async {
        pause(Duration::from_secs(5)).await;
        over.store(true, Ordering::SeqCst);
        compacting.await.unwrap()
    };
    let (info, times) = tokio::join!(work, calm);
    assert!(times > 20, "compacted {times} times");
    let left = place.objects().await;
    let world = place.world().await;
    let snapshot = read(&world, id).await;
    copied(&world, &snapshot, "compacted_copy", "compacted").await;
    let held: BTreeSet<String> = support::snapshots::named(&snapshot);
    assert!(
        held.iter().all(|key| before.get(key) == left.get(key)),
        "{info:?}"
    );
    at_rest(&place, "compacted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_runs_out_is_renewed() {
    // Tokens of a server live in its memory: after a restart every one of them is unknown.
    let etcd = Etcd::options(EtcdVersion::V35)
        .root_password("secret of the test")
        .arg("--auth-token=simple")
        .start();
    let (mut place, mut handle, id) = prepared(etcd, "tokens").await;
    let info = restored_under(
        &mut place,
        &mut handle,
        id,
        "renewed",
        async |place, _, _| {
            for _ in 0..3 {
                place.etcd.as_mut().unwrap().restart();
                pause(Duration::from_millis(700)).await;
            }
        },
    )
    .await;
    assert_eq!(info.error, None, "{info:?}");
}
