//! The write path: fence, chunks, pre-images, audit, markers, ids, objects; and every one of its operations failing once.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::clock::{Clock, Entropy, SeededEntropy};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::pb;
use falconer::engine::ids::{JobId, KeyPrefix, MetaKey, ObjectKey, UnixMs};
use falconer::engine::jobs::copy::{self, CopyFile, CopyHost, Done, Ran};
use falconer::engine::jobs::restore_plan::record_fits;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{Cond, Limits, MetaWrite, MetaWriter, Span, Txn, Write};
use falconer::engine::objects::Origin;
use falconer::engine::plan::execute::{Change, Executor, Parts, Who};
use falconer::engine::plan::journal::{Audit, Keys, PreImage};
use falconer::engine::plan::ledger::Swap;
use falconer::engine::profile::Roots;
use object_store::memory::InMemory;
use prost::Message;
use support::faults::{Faults, Stores, World, sweep};
use support::mem::MemStore;

const NOW: UnixMs = UnixMs(1_790_000_000_000);
const ETCD: Limits = Limits {
    ops: 128,
    bytes: 1_536 * 1024,
};

fn world_with(limits: Limits) -> World {
    World::new(
        Arc::new(MemStore::new(limits)),
        Arc::new(InMemory::new()),
        NOW,
    )
}

fn executor(stores: &Stores) -> Arc<Executor> {
    Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: Roots::default(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(stores.clock.now().0 as u64)),
        actor: "tester@here pid 1".into(),
        embedded: true,
    })
}

fn who() -> Who {
    Who {
        job: JobId(7),
        plan: "p".into(),
        epoch: None,
    }
}

fn key(i: usize) -> MetaKey {
    format!("by-dev/meta/datacoord-meta/s/1/2/{i:05}").into()
}

async fn put(meta: &dyn MetaWrite, key: &str, value: &[u8], lease: i64) {
    let write = Write::Put {
        key: key.into(),
        value: Bytes::copy_from_slice(value),
        lease,
    };
    meta.txn(Txn {
        conds: vec![],
        writes: vec![write],
    })
    .await
    .unwrap();
}

async fn all(world: &World, prefix: &str) -> Vec<(String, Bytes)> {
    let span = Span::prefix(&KeyPrefix::new(prefix));
    let page = world.meta.range_all(&span).await.unwrap();
    page.kvs
        .into_iter()
        .map(|kv| (kv.key.text(), kv.value))
        .collect()
}

/// 150 keys: some replaced, some deleted, some new: three chunks of at most 64 operations.
async fn big_world() -> World {
    let world = world_with(ETCD);
    for i in 0..100 {
        put(
            &*world.meta,
            &key(i).text(),
            format!("old {i}").as_bytes(),
            0,
        )
        .await;
    }
    world
}

fn big_change() -> Change {
    Change {
        name: "big".into(),
        conds: vec![
            Cond::ValueIs(key(0), "old 0".into()),
            Cond::Absent(key(149)),
        ],
        writes: (0..150)
            .map(|i| {
                if i % 10 == 3 && i < 100 {
                    Write::Delete(key(i))
                } else {
                    Write::put(key(i), format!("new {i}"))
                }
            })
            .collect(),
        atomic: false,
    }
}

async fn run_big(stores: &Stores) -> Result<()> {
    let executor = executor(stores);
    executor.fence().acquire().await?;
    executor.commit(&who(), &big_change()).await?;
    executor.fence().release().await;
    Ok(())
}

async fn check_big(world: &World, label: &str) {
    let keys = Keys::new(&Roots::default());
    let now = all(world, "by-dev/meta").await;
    let want: Vec<(String, Bytes)> = (0..150)
        .filter(|i| !(i % 10 == 3 && *i < 100))
        .map(|i| (key(i).text(), Bytes::from(format!("new {i}"))))
        .collect();
    assert_eq!(now, want, "{label}");
    // Each write has exactly one audit line, made once, and one pre-image with what stood there, if anything did.
    let audits = all(world, "falconer/by-dev/audit").await;
    let lines: Vec<String> = audits
        .iter()
        .flat_map(|(_, v)| serde_json::from_slice::<Audit>(v).unwrap().keys)
        .map(|k| k.key)
        .collect();
    assert_eq!(lines.len(), 150, "{label}");
    assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), 150, "{label}");
    let mut before = 0;
    for (_, value) in all(world, &format!("{}/pre", keys.job(JobId(7)))).await {
        for entry in PreImage::decode(&value).unwrap().entries {
            let i: usize = entry
                .key
                .text()
                .rsplit('/')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            let old = entry.old.map(|(_, v)| v);
            assert_eq!(old, Some(Bytes::from(format!("old {i}"))), "{label}");
            before += 1;
        }
    }
    assert_eq!(before, 100, "{label}");
    assert!(all(world, "falconer/by-dev/owner").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_change_survives_every_fault() {
    let runs = sweep("files", big_world, run_big, check_big).await;
    assert!(runs > 100, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn transactions_stay_within_milvus_limits() {
    let world = big_world().await;
    let faults = Faults::none();
    run_big(&world.open(&faults, "files")).await.unwrap();
    let txns: Vec<usize> = faults
        .ops()
        .iter()
        .filter(|op| op.what.contains("datacoord-meta"))
        .filter_map(|op| {
            op.what
                .split("(+")
                .nth(1)?
                .trim_end_matches(')')
                .parse::<usize>()
                .ok()
        })
        .map(|more| more + 1)
        .collect();
    assert_eq!(txns.len(), 3);
    assert!(txns.iter().all(|n| *n <= 64), "{txns:?}");
}

#[tokio::test(start_paused = true)]
async fn the_same_change_again_is_no_change() {
    let world = big_world().await;
    let stores = world.open(&Faults::none(), "files");
    let executor = executor(&stores);
    executor.fence().acquire().await.unwrap();
    let first = executor.commit(&who(), &big_change()).await.unwrap();
    assert!(!first.before);
    let again = executor.commit(&who(), &big_change()).await.unwrap();
    assert!(again.before);
    assert_eq!(again.rev, first.rev);
}

#[tokio::test(start_paused = true)]
async fn a_moved_key_is_named_and_nothing_happens() {
    let world = world_with(ETCD);
    put(&*world.meta, "by-dev/meta/a", b"1", 0).await;
    let rev = world
        .meta
        .get(&"by-dev/meta/a".into())
        .await
        .unwrap()
        .unwrap()
        .mod_rev;
    put(&*world.meta, "by-dev/meta/a", b"2", 0).await;
    let stores = world.open(&Faults::none(), "files");
    let executor = executor(&stores);
    executor.fence().acquire().await.unwrap();
    for conds in [
        vec![Cond::At("by-dev/meta/a".into(), rev)],
        vec![Cond::Absent("by-dev/meta/a".into())],
        vec![Cond::ValueIs("by-dev/meta/a".into(), "1".into())],
    ] {
        for target in ["by-dev/meta/a", "by-dev/meta/b"] {
            let change = Change {
                name: "c".into(),
                conds: conds.clone(),
                writes: vec![Write::put(target.into(), "3")],
                atomic: true,
            };
            let e = executor.commit(&who(), &change).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
            assert!(
                e.what().contains("by-dev/meta/a") && e.what().contains('2'),
                "{e}"
            );
        }
    }
    assert_eq!(
        all(&world, "by-dev").await,
        vec![("by-dev/meta/a".to_owned(), Bytes::from("2"))]
    );
    assert!(all(&world, "falconer/by-dev/audit").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn too_much_for_one_transaction_is_refused_when_it_must_be_one() {
    let world = big_world().await;
    let stores = world.open(&Faults::none(), "files");
    let executor = executor(&stores);
    executor.fence().acquire().await.unwrap();
    let change = Change {
        atomic: true,
        ..big_change()
    };
    let e = executor.commit(&who(), &change).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Limit, "{e}");
    assert_eq!(all(&world, "by-dev/meta").await.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_large_value_keeps_its_pre_image() {
    let world = world_with(ETCD);
    let old: Vec<u8> = (0..1_100_000_u32).map(|i| (i % 251) as u8).collect();
    put(&*world.meta, "by-dev/meta/big", &old, 0).await;
    let stores = world.open(&Faults::none(), "files");
    let executor = executor(&stores);
    executor.fence().acquire().await.unwrap();
    let change = Change {
        name: "big".into(),
        writes: vec![Write::put("by-dev/meta/big".into(), vec![9; 1_200_000])],
        ..Change::default()
    };
    executor.commit(&who(), &change).await.unwrap();
    let parts = all(&world, "falconer/by-dev/job/7/pre").await;
    let whole: Vec<u8> = parts.iter().flat_map(|(_, v)| v.to_vec()).collect();
    let pre = PreImage::decode(&whole).unwrap();
    assert_eq!(pre.entries[0].old.as_ref().unwrap().1, old);
}

async fn session(world: &World, role: &str, lease: i64) -> MetaKey {
    let name = format!("by-dev/meta/session/{role}");
    put(
        &*world.meta,
        &name,
        br#"{"ServerID":3,"Address":"10.0.0.7:53100"}"#,
        lease,
    )
    .await;
    name.as_str().into()
}

#[tokio::test(start_paused = true)]
async fn a_registered_coordinator_refuses_every_write() {
    for role in [
        "rootcoord",
        "datacoord",
        "indexcoord",
        "querycoord",
        "mixcoord",
        "mixcoord-42",
    ] {
        let world = world_with(ETCD);
        let lease = world
            .meta
            .grant(std::time::Duration::from_secs(15))
            .await
            .unwrap();
        let stores = world.open(&Faults::none(), "files");
        let executor = executor(&stores);
        executor.fence().acquire().await.unwrap();
        let object = ObjectKey::from("files/x");
        executor.put_object(&object, "1".into()).await.unwrap();
        session(&world, role, lease).await;
        let change = Change {
            name: "c".into(),
            writes: vec![Write::put("by-dev/meta/a".into(), "1")],
            ..Change::default()
        };
        let e = executor.commit(&who(), &change).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Fenced, "{role}: {e}");
        assert!(
            e.what().contains(role) && e.what().contains("10.0.0.7"),
            "{e}"
        );
        for e in [
            executor.take_ids(&who(), 1).await.map(|_| ()).unwrap_err(),
            executor.put_object(&object, "2".into()).await.unwrap_err(),
            executor
                .delete_object(&object)
                .await
                .map(|_| ())
                .unwrap_err(),
        ] {
            assert_eq!(e.kind(), ErrorKind::Fenced, "{role}: {e}");
        }
        assert_eq!(stores.read.get(&object).await.unwrap(), "1");
        // It leaves: the same executor may go on.
        world.meta.revoke(lease).await.unwrap();
        executor.commit(&who(), &change).await.unwrap();
    }
    // What stands beside them is not a coordinator.
    let world = world_with(ETCD);
    for other in ["id", "version", "proxy-1", "datanode-2", "querynode-3"] {
        session(&world, other, 0).await;
    }
    let executor = executor(&world.open(&Faults::none(), "files"));
    executor.fence().acquire().await.unwrap();
    executor.fence().check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_lease_says_how_to_clear_it() {
    let world = world_with(ETCD);
    session(&world, "datacoord", 0).await;
    let executor = executor(&world.open(&Faults::none(), "files"));
    executor.fence().acquire().await.unwrap();
    let e = executor.fence().check().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced);
    assert!(
        e.advice()
            .unwrap()
            .contains("etcdctl del by-dev/meta/session/datacoord"),
        "{e}"
    );
}

#[tokio::test(start_paused = true)]
async fn one_owner_at_a_time_and_a_lost_lease_stops_everything() {
    let world = world_with(ETCD);
    let stores = world.open(&Faults::none(), "files");
    let (one, two) = (executor(&stores), executor(&stores));
    one.fence().acquire().await.unwrap();
    let e = two.fence().acquire().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.what().contains("tester@here"), "{e}");
    // The lease runs out under the first, and the second takes over.
    world.bury().await;
    two.fence().acquire().await.unwrap();
    assert_eq!(two.fence().epoch(), Some(2));
    let change = Change {
        name: "c".into(),
        writes: vec![Write::put("by-dev/meta/a".into(), "1")],
        ..Change::default()
    };
    let e = one.commit(&who(), &change).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
    let e = one
        .note(&[Write::put("falconer/by-dev/job/7".into(), "x")])
        .await
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Fenced, "{e}");
    assert!(one.fence().conds().is_err());
    two.commit(&who(), &change).await.unwrap();
}

async fn lab_world() -> World {
    let world = world_with(ETCD);
    for k in support::lab::etcd_without_sessions() {
        put(
            &*world.meta,
            std::str::from_utf8(&k.key).unwrap(),
            &k.value,
            0,
        )
        .await;
    }
    world
}

async fn allocator(world: &World) -> u64 {
    let kv = world
        .meta
        .get(&"by-dev/kv/gid/idTimestamp".into())
        .await
        .unwrap()
        .unwrap();
    u64::from_be_bytes(kv.value[..].try_into().unwrap())
}

#[tokio::test(start_paused = true)]
async fn ids_stand_above_everything_in_the_captured_cluster() {
    let world = lab_world().await;
    let before = allocator(&world).await;
    let executor = executor(&world.open(&Faults::none(), "files"));
    executor.fence().acquire().await.unwrap();
    let range = executor.take_ids(&who(), 1000).await.unwrap();
    let after = allocator(&world).await;
    assert!((range.first as u64 >> 18) * 1_000_000 >= before);
    assert!(((range.first + 999) as u64 >> 18) * 1_000_000 < after);
    let next = executor.take_ids(&who(), 1).await.unwrap();
    assert!(next.first > range.first + 999);
}

#[tokio::test(start_paused = true)]
async fn an_id_above_the_allocator_stops_it() {
    let world = lab_world().await;
    put(
        &*world.meta,
        "by-dev/meta/datacoord-meta/s/1/2/900000000000000000",
        b"",
        0,
    )
    .await;
    let executor = executor(&world.open(&Faults::none(), "files"));
    executor.fence().acquire().await.unwrap();
    let e = executor.take_ids(&who(), 1).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert!(
        e.what().contains("datacoord-meta/s/1/2/900000000000000000"),
        "{e}"
    );
}

#[tokio::test(start_paused = true)]
async fn ids_are_never_equal_whatever_fails() {
    let taken = std::cell::RefCell::new(Vec::<(i64, u32)>::new());
    let drive = async |stores: &Stores| {
        let executor = executor(stores);
        executor.fence().acquire().await?;
        for n in [3, 1, 300_000, 7] {
            let range = executor.take_ids(&who(), n).await?;
            taken.borrow_mut().push((range.first, range.count));
        }
        executor.fence().release().await;
        Ok::<(), Error>(())
    };
    let make = async || {
        taken.borrow_mut().clear();
        let world = world_with(ETCD);
        put(
            &*world.meta,
            "by-dev/kv/gid/idTimestamp",
            &(NOW.0 as u64 * 1_000_000 + 5).to_be_bytes(),
            0,
        )
        .await;
        world
    };
    let check = async |world: &World, label: &str| {
        let mut ranges = taken.borrow().clone();
        ranges.sort_unstable();
        assert!(ranges[0].0 >> 18 > NOW.0, "{label}");
        for pair in ranges.windows(2) {
            assert!(
                pair[0].0 + i64::from(pair[0].1) <= pair[1].0,
                "{label}: {ranges:?}"
            );
        }
        let (first, count) = ranges[ranges.len() - 1];
        let last = (first + i64::from(count) - 1) as u64;
        assert!((last >> 18) * 1_000_000 < allocator(world).await, "{label}");
    };
    sweep("files", make, drive, check).await;
}

#[tokio::test(start_paused = true)]
async fn an_absent_allocator_is_made_only_in_an_embedded_root() {
    let world = world_with(ETCD);
    let stores = world.open(&Faults::none(), "files");
    let strict = Executor::new(Parts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: Roots::default(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(1)),
        actor: "t".into(),
        embedded: false,
    });
    strict.fence().acquire().await.unwrap();
    assert_eq!(
        strict.take_ids(&who(), 1).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    strict.fence().release().await;
    let executor = executor(&stores);
    executor.fence().acquire().await.unwrap();
    assert_eq!(
        executor.take_ids(&who(), 1).await.unwrap().first >> 18,
        NOW.0
    );
}

#[tokio::test(start_paused = true)]
async fn objects_survive_every_fault() {
    let (a, b) = (ObjectKey::from("files/a"), ObjectKey::from("files/b"));
    let drive = async |stores: &Stores| {
        let executor = executor(stores);
        executor.fence().acquire().await?;
        executor.put_object(&a, "one".into()).await?;
        let origin = Origin {
            key: &a,
            size: 3,
            etag: None,
        };
        // One try each, as the copy pool makes them: copying twice is the same as once.
        let source = executor.objects();
        if executor
            .copy_object(None, source, origin, &b)
            .await
            .is_err()
        {
            executor.copy_object(None, source, origin, &b).await?;
        }
        executor.delete_object(&a).await?;
        executor.fence().release().await;
        Ok::<(), Error>(())
    };
    let check = async |world: &World, label: &str| {
        let stores = world.open(&Faults::none(), "files");
        assert_eq!(
            stores.read.head(&a).await.unwrap_err().kind(),
            ErrorKind::NotFound,
            "{label}"
        );
        assert_eq!(stores.read.get(&b).await.unwrap(), "one", "{label}");
    };
    sweep("files", async || world_with(ETCD), drive, check).await;
}

// In real time: paused time runs away while the embedded store's thread works.
#[tokio::test]
async fn a_change_of_twenty_thousand_new_keys_asks_for_none_of_them() {
    const N: usize = 20_000;
    let clock = support::faults::VirtualClock::at(NOW);
    let store = falconer::engine::meta::embedded::EmbeddedStore::memory_with(clock).unwrap();
    let world = World::new(Arc::new(store), Arc::new(InMemory::new()), NOW);
    let key = |i: usize| MetaKey::from(format!("by-dev/meta/datacoord-meta/s/1/2/{i:05}x"));
    // Others lie between, more of them than a page.
    for from in (0..3_000).step_by(100) {
        let writes = (from..from + 100)
            .map(|i| {
                Write::put(
                    format!("by-dev/meta/datacoord-meta/s/1/2/{i:05}").into(),
                    "o",
                )
            })
            .collect();
        let conds = vec![];
        world.meta.txn(Txn { conds, writes }).await.unwrap();
    }
    let change = Change {
        name: "many".into(),
        conds: (0..N).map(|i| Cond::Absent(key(i))).collect(),
        writes: (0..N).map(|i| Write::put(key(i), "v")).collect(),
        atomic: false,
    };
    // One of the last stands there already: nothing begins.
    put(&*world.meta, &key(N - 5).text(), b"here", 0).await;
    let faults = Faults::none();
    let executor = executor(&world.open(&faults, "files"));
    executor.fence().acquire().await.unwrap();
    let e = executor.commit(&who(), &change).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    assert!(e.what().contains(&key(N - 5).text()), "{e}");
    let gone = Txn {
        conds: vec![],
        writes: vec![Write::Delete(key(N - 5))],
    };
    world.meta.txn(gone).await.unwrap();

    let begun = faults.ops().len();
    executor.commit(&who(), &change).await.unwrap();
    let ops = faults.ops().len() - begun;
    assert!(ops < 500, "{ops} requests");
    let now = all(&world, "by-dev/meta/datacoord-meta").await;
    assert_eq!(now.len(), N + 3_000);
    assert!(all(&world, "falconer/by-dev/job/7/pre").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_jobs_own_records_leave_an_audit_and_no_copies() {
    let world = world_with(ETCD);
    put(&*world.meta, "by-dev/meta/a", &vec![1; 1_000_000], 0).await;
    let executor = executor(&world.open(&Faults::none(), "files"));
    executor.fence().acquire().await.unwrap();
    for i in 0..5 {
        let change = Change {
            name: format!("progress-{i}"),
            writes: vec![Write::put("by-dev/meta/a".into(), vec![i; 1_000_000])],
            atomic: true,
            ..Change::default()
        };
        executor.commit_own(&who(), &change).await.unwrap();
    }
    assert!(all(&world, "falconer/by-dev/job/7/pre").await.is_empty());
    assert_eq!(all(&world, "falconer/by-dev/audit").await.len(), 5);
}

#[test]
fn what_is_done_stays_small_in_the_journal_behind_an_early_gap() {
    let mut done = Done::default();
    for i in (1..500_000).filter(|i| *i != 7 && *i != 70_000) {
        done.add(i);
    }
    assert_eq!((done.cursor, done.count()), (0, 499_997));
    let text = serde_json::to_string(&done).unwrap();
    assert!(text.len() < 100, "{text}");
    let back: Done = serde_json::from_str(&text).unwrap();
    assert_eq!(back, done);
    done.add(0);
    done.add(7);
    done.add(70_000);
    assert_eq!(
        serde_json::to_string(&done).unwrap(),
        r#"{"cursor":500000}"#
    );
}

#[tokio::test(start_paused = true)]
async fn the_largest_restore_that_a_plan_allows_has_a_record_that_can_be_written() {
    let most = (1..60_000)
        .take_while(|n| record_fits(*n).is_ok())
        .last()
        .unwrap();
    let e = record_fits(most + 1).unwrap_err();
    assert!(e.what().contains(&(most + 1).to_string()), "{e}");
    let id = 470_660_334_431_990_001;
    let mapping = pb::data::CopySegmentIdMapping {
        source_segment_id: id,
        target_segment_id: id,
        partition_id: id,
    };
    let record = pb::data::CopySegmentJob {
        job_id: id,
        collection_id: id,
        id_mappings: vec![mapping; most],
        snapshot_name: "n".repeat(255),
        ..Default::default()
    };
    let world = world_with(ETCD);
    let executor = executor(&world.open(&Faults::none(), "files"));
    executor.fence().acquire().await.unwrap();
    for (i, value) in [(0, record.encode_to_vec()), (1, record.encode_to_vec())] {
        let change = Change {
            name: format!("progress-{i}"),
            writes: vec![Write::put("by-dev/meta/job".into(), value)],
            atomic: true,
            ..Change::default()
        };
        executor.commit_own(&who(), &change).await.unwrap();
    }
}

/// A store that copies at once; only the rate takes time.
struct Slow(Arc<support::faults::VirtualClock>, SeededEntropy, u64);

#[async_trait::async_trait]
impl CopyHost for Slow {
    async fn copy(&self, _: &CopyFile) -> Result<()> {
        Ok(())
    }
    fn note(&self, _: String) {}
    fn parallel(&self) -> u32 {
        4
    }
    fn throttle(&self) -> Option<u64> {
        Some(self.2)
    }
    fn copied(&self, _: &CopyFile) {}
    fn cancelled(&self) -> bool {
        false
    }
    fn clock(&self) -> &dyn Clock {
        &*self.0
    }
    fn entropy(&self) -> &dyn Entropy {
        &self.1
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_holds_over_many_slices_whatever_the_files_measure() {
    for size in [100, 1_000, 7_500] {
        let files: Vec<CopyFile> = (0..150_000 / size)
            .map(|i| CopyFile {
                from: format!("files/a{i}").as_str().into(),
                to: format!("files/b{i}").as_str().into(),
                size,
                etag: None,
                group: 0,
            })
            .collect();
        let clock = support::faults::VirtualClock::at(NOW);
        let host = Slow(clock.clone(), SeededEntropy::new(1), 1_000);
        let (begun, mut done, mut slices) = (clock.mono(), Done::default(), 0);
        while copy::run(&host, &files, &mut done, copy::SLICE)
            .await
            .unwrap()
            != Ran::All
        {
            // As a job does between two slices.
            done = serde_json::from_str(&serde_json::to_string(&done).unwrap()).unwrap();
            slices += 1;
        }
        let took = clock.mono().saturating_sub(begun).as_secs();
        assert!(slices > 5, "{size}: {slices} slices");
        // The last file's own debt is not waited for.
        let least = (150_000 - size) / 1_000 - 1;
        assert!((least..=155).contains(&took), "{size}: {took} s");
    }
}

/// Neither a session nor a watch key of the old channel manager is written, by any of the two ways into the root; deleting is not
/// writing.
#[tokio::test]
async fn a_session_or_a_watch_key_is_never_written() {
    let world = world_with(ETCD);
    let executor = executor(&world.open(&Faults::none(), "files"));
    executor.fence().acquire().await.unwrap();
    let watch = "by-dev/meta/channelwatch/7/by-dev-rootcoord-dml_0_1v0";
    let sessions = [
        "by-dev/meta/session/mixcoord",
        "by-dev/meta/session/streamingnode-9",
    ];
    for path in [watch].into_iter().chain(sessions) {
        let change = |write: Write| Change {
            name: format!("write {path}"),
            conds: vec![],
            writes: vec![Write::put(key(3), "kept"), write],
            atomic: false,
        };
        let e = executor
            .commit(&who(), &change(Write::put(path.into(), "x")))
            .await
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Internal, "{e}");
        assert!(e.to_string().contains(path), "{e}");
        let mut swap = Swap::new(
            vec![Cond::Absent(path.into())],
            vec![Write::put(path.into(), "x")],
        );
        let e = executor.swap(&mut swap).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Internal, "{e}");
    }
    assert_eq!(
        all(&world, "by-dev/").await,
        [],
        "nothing was written beside it either"
    );
    put(&*world.meta, watch, b"left", 0).await;
    let away = Change {
        name: "away".into(),
        conds: vec![],
        writes: vec![Write::Delete(watch.into())],
        atomic: false,
    };
    executor.commit(&who(), &away).await.unwrap();
    assert_eq!(all(&world, "by-dev/").await, []);
}
