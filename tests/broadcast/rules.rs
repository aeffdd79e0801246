//! One rule each, in memory; and one whole life on real servers.

use std::sync::Arc;

use falconer::engine::clock::{Clock, SystemClock};
use falconer::engine::error::ErrorKind;
use falconer::engine::format::keys::Key;
use falconer::engine::format::message::{Draft, position};
use falconer::engine::format::pb::messages::{FlushMessageHeader, MessageType};
use falconer::engine::format::pb::msg::MsgPosition;
use falconer::engine::format::pb::streaming::{BroadcastTask, BroadcastTaskState};
use falconer::engine::ids::{MessageId, MetaKey, Term, Tso, VChannel};
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::{MetaWrite, Txn, Write};
use falconer::engine::model::broadcast::{Shown, Waiting};
use falconer::engine::objects::{ObjectWrite, from_store};
use falconer::engine::profile::Roots;
use falconer::engine::wal::checkpoints::Report;
use object_store::memory::InMemory;
use prost::Message as _;

use crate::process::{Process, SHARDS, Shared, effect_key, exclusive, order};
use crate::support::faults::VirtualClock;
use crate::support::mem::MemStore;
use crate::support::s3;
use crate::support::servers::{Etcd, EtcdVersion};
use crate::support::snapshots::{self, NOW};

struct Stores {
    meta: Arc<dyn MetaWrite>,
    objects: ObjectWrite,
    clock: Arc<dyn Clock>,
    book: Shared,
}

impl Stores {
    fn memory() -> Self {
        Self {
            // No thread behind it: under paused time a wait for another thread would let the clock run away.
            meta: Arc::new(MemStore::new(snapshots::ETCD)),
            objects: from_store(Arc::new(InMemory::new()), "files").1,
            clock: VirtualClock::at(NOW),
            book: Shared::default(),
        }
    }

    async fn start(&self) -> Process {
        let process = Process::start(
            self.meta.clone(),
            self.objects.clone(),
            self.clock.clone(),
            &self.book,
        )
        .await
        .unwrap();
        process.create_channels().await.unwrap();
        process
    }

    async fn record(&self, key: &MetaKey) -> Option<Vec<u8>> {
        self.meta
            .get(key)
            .await
            .unwrap()
            .map(|kv| kv.value.to_vec())
    }

    async fn task(&self, id: i64) -> Option<BroadcastTask> {
        let key = Key::BroadcastTask(u64::try_from(id).unwrap()).to_key(&Roots::default());
        let bytes = self.record(&key).await?;
        Some(BroadcastTask::decode(&*bytes).unwrap())
    }

    async fn stored(&self, channel: &str) -> Option<MsgPosition> {
        let bytes = self
            .record(&Key::ChannelCheckpoint(channel.into()).to_key(&Roots::default()))
            .await?;
        Some(MsgPosition::decode(&*bytes).unwrap())
    }
}

fn everywhere(process: &Process) -> Vec<VChannel> {
    [process.control.clone(), SHARDS[0].into(), SHARDS[1].into()].to_vec()
}

async fn one_life(stores: &Stores) {
    let process = stores.start().await;
    let b = &process.broadcaster;
    let channels = everywhere(&process);
    // Fast acknowledgement.
    let guard = b.lock(exclusive("books")).await.unwrap();
    let fast = b
        .broadcast(&Process::who(), guard, order(channels.clone(), false))
        .await
        .unwrap();
    let copies = fast.done().await.unwrap();
    assert_eq!(copies.len(), 3);
    assert!(
        copies
            .iter()
            .all(|(_, at)| at.id.is_some() && at.tick.0 > 0)
    );
    let record = stores.task(fast.id().0).await.unwrap();
    assert_eq!(record.state(), BroadcastTaskState::Tombstone);
    assert_eq!(record.acked_vchannel_bitmap, [1, 1, 1]);
    assert!(stores.record(&effect_key(fast.id().0)).await.is_some());

    // By checkpoints: nothing is acked while one channel's data is not in objects, and it says so at once.
    let held: VChannel = SHARDS[1].into();
    let now = process.checkpoints.get(&held).unwrap();
    stores
        .book
        .lock()
        .unwrap()
        .unsynced
        .insert(held.clone(), now.clone());
    let guard = b.lock(exclusive("books")).await.unwrap();
    let synced = b
        .broadcast(&Process::who(), guard, order(channels.clone(), true))
        .await
        .unwrap();
    let waits = |shown: &[Shown]| matches!(shown, [s] if matches!(&s.waiting, Waiting::Checkpoint { channel, .. } if *channel == held));
    let mut changed = b.changed();
    loop {
        let shown = b.shown();
        if waits(&shown)
            && shown[0]
                .channels
                .iter()
                .filter(|(.., acked)| *acked)
                .count()
                == 2
        {
            assert!(
                shown[0].waiting.to_string().ends_with(" behind"),
                "{}",
                shown[0].waiting
            );
            break;
        }
        changed.changed().await.unwrap();
    }
    let acked: Vec<bool> = stores
        .task(synced.id().0)
        .await
        .unwrap()
        .acked_checkpoints
        .iter()
        .map(|c| c.time_tick != 0)
        .collect();
    assert_eq!(acked, [true, true, false], "I1.3");
    // Who wants the same waits; who tries is told whose it is.
    let busy = b.try_lock(exclusive("books")).err().unwrap();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    assert!(
        busy.to_string()
            .contains(&format!("broadcast {}", synced.id())),
        "{busy}"
    );
    drop(b.try_lock(exclusive("films")).unwrap());
    // Nothing that it needs is cut off.
    let cut = b.truncate().await.unwrap();
    assert!(cut.values().all(|first| first.0 <= 2), "{cut:?}");
    // The data is written and reported.
    let taken = {
        let mut book = stores.book.lock().unwrap();
        book.unsynced.clear();
        book.taken[&held].clone()
    };
    assert_eq!(process.report(&held, taken).await.unwrap(), 0);
    synced.done().await.unwrap();

    // A dropped channel satisfies the wait, and stays dropped.
    let guard = b.lock(exclusive("books")).await.unwrap();
    stores
        .book
        .lock()
        .unwrap()
        .unsynced
        .insert(held.clone(), now.clone());
    let dropping = b
        .broadcast(&Process::who(), guard, order(channels, true))
        .await
        .unwrap();
    process.checkpoints.mark_dropped(&held).await.unwrap();
    dropping.done().await.unwrap();
    let late = position(&held, MessageId(900), Tso(u64::MAX - 1));
    assert_eq!(process.report(&held, late).await.unwrap(), 0);
    assert_eq!(stores.stored(SHARDS[1]).await.unwrap().timestamp, u64::MAX);
    process.checkpoints.mark_dropped(&held).await.unwrap();

    // Everything is consumed: the logs are empty but for what checkpoints keep.
    process.quiet("one life").await;
    let ids = [fast.id(), synced.id(), dropping.id()];
    assert!(ids[0] < ids[1] && ids[1] < ids[2]);
    process.end().await;

    // Again: nothing is applied twice.
    let process = stores.start().await;
    process.quiet("second life").await;
    for id in ids {
        let kv = stores.meta.get(&effect_key(id.0)).await.unwrap().unwrap();
        assert_eq!(kv.version, 1, "{id}");
    }
    assert_eq!(process.checkpoints.get(&held).unwrap().timestamp, u64::MAX);
    let ended: Vec<i64> = stores
        .book
        .lock()
        .unwrap()
        .calls
        .iter()
        .filter(|c| c.1)
        .map(|c| c.0)
        .collect();
    assert_eq!(ended, ids.map(|id| id.0));
    process.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_life_in_memory() {
    one_life(&Stores::memory()).await;
}

#[tokio::test]
async fn one_life_on_real_etcd_and_s3() {
    let etcd = Etcd::start(EtcdVersion::V34);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let meta = EtcdStore::connect(&etcd.profile(), clock.clone())
        .await
        .unwrap();
    let server = s3::shared();
    server.create_bucket("broadcast");
    let stores = Stores {
        meta: Arc::new(meta),
        objects: from_store(Arc::new(server.bucket("broadcast")), "files").1,
        clock,
        book: Shared::default(),
    };
    one_life(&stores).await;
}

/// §II.4 rule 2b: one channel's callback fails while the others' succeed.
#[tokio::test(start_paused = true)]
async fn an_ack_counts_only_after_its_own_callback() {
    let stores = Stores::memory();
    let process = stores.start().await;
    stores.book.lock().unwrap().fail_once = 7;
    stores.book.lock().unwrap().fail_all = 4;
    let b = &process.broadcaster;
    let guard = b.lock(exclusive("books")).await.unwrap();
    let ticket = b
        .broadcast(&Process::who(), guard, order(everywhere(&process), false))
        .await
        .unwrap();
    ticket.done().await.unwrap();
    let book = stores.book.lock().unwrap();
    assert_eq!((book.fail_once, book.fail_all), (0, 0));
    assert!(book.too_early.is_empty());
    assert_eq!(book.calls.iter().filter(|c| c.1).count(), 1);
    assert_eq!(book.once.values().filter(|n| **n == 1).count(), 3);
}

/// Whoever stops waiting takes nothing back, and who leaves a queue leaves no lock.
#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_changes_nothing() {
    let stores = Stores::memory();
    let process = stores.start().await;
    let b = &process.broadcaster;
    stores.book.lock().unwrap().fail_all = 3;
    let guard = b.lock(exclusive("books")).await.unwrap();
    let id = {
        let ticket = b
            .broadcast(&Process::who(), guard, order(everywhere(&process), false))
            .await
            .unwrap();
        ticket.id()
    };
    let mut waiting = Box::pin(b.lock(exclusive("books")));
    assert!(futures::poll!(&mut waiting).is_pending());
    assert_eq!(b.shown()[0].blocks, 1);
    drop(waiting);
    assert_eq!(b.shown()[0].blocks, 0);
    process.quiet("left").await;
    assert!(stores.record(&effect_key(id.0)).await.is_some());
    drop(b.try_lock(exclusive("books")).unwrap());
    b.close().await;
    let refused = b.lock(exclusive("books")).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Cancelled);
    assert!(refused.to_string().contains("not created"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn finished_tasks_are_forgotten_by_count() {
    let stores = Stores::memory();
    let process = stores.start().await;
    let b = &process.broadcaster;
    let mut ids = Vec::new();
    for _ in 0..6 {
        let guard = b.lock(exclusive("books")).await.unwrap();
        let ticket = b
            .broadcast(&Process::who(), guard, order(everywhere(&process), false))
            .await
            .unwrap();
        ticket.done().await.unwrap();
        ids.push(ticket.id().0);
    }
    b.collect().await.unwrap();
    assert_eq!(b.tombstones(), 3);
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(stores.task(*id).await.is_some(), i >= 3, "{i}");
        let marks = format!("falconer/by-dev/job/{id}/mark/effect/000000");
        assert_eq!(
            stores.record(&marks.as_str().into()).await.is_some(),
            i >= 3,
            "{i}"
        );
        assert_eq!(
            stores
                .record(&format!("falconer/by-dev/broadcast/{id}").as_str().into())
                .await
                .is_some(),
            i >= 3
        );
    }
}

/// I2.1 to I2.5, and the checkpoint of a collected channel.
#[tokio::test(start_paused = true)]
async fn reports_of_a_former_owner_and_of_the_dead_change_nothing() {
    let stores = Stores::memory();
    let process = stores.start().await;
    let v: VChannel = SHARDS[0].into();
    let log = process.channels.of(&v).await.unwrap();
    let before = stores.stored(SHARDS[0]).await.unwrap();
    let at = log
        .append(vec![
            Draft::new(MessageType::Flush, &FlushMessageHeader::default(), vec![]).on(&v),
        ])
        .await
        .unwrap()[0];
    let report = |term: Term, tick: Tso| Report {
        channel: v.clone(),
        position: position(&v, at.id, tick),
        term,
    };
    let stale = Term(log.term().0 - 1);
    let refused = process
        .checkpoints
        .update(vec![report(stale, at.tick)], |p| process.channels.term(p))
        .await
        .unwrap();
    assert!(
        refused[0].why.contains("refused, the owner is term"),
        "{refused:?}"
    );
    process.checkpoints.wait(&v, at.tick).await;
    assert!(
        stores.stored(SHARDS[0]).await.unwrap().timestamp > before.timestamp,
        "the follower's own report"
    );
    // Creating again moves nothing back.
    process.create_channels().await.unwrap();
    assert_eq!(stores.stored(SHARDS[0]).await.unwrap().timestamp, at.tick.0);
    // Collected below our feet: a report in flight makes no new one (#42688).
    let key = Key::ChannelCheckpoint(v.clone()).to_key(&Roots::default());
    let writes = vec![Write::Delete(key)];
    stores
        .meta
        .txn(Txn {
            conds: vec![],
            writes,
        })
        .await
        .unwrap();
    let later = Tso(at.tick.0 + 1_000);
    process
        .checkpoints
        .update(vec![report(log.term(), later)], |p| {
            process.channels.term(p)
        })
        .await
        .unwrap();
    assert_eq!(stores.stored(SHARDS[0]).await, None);
    assert!(
        process.checkpoints.reached(&v, Tso(u64::MAX - 1)),
        "dropped"
    );
}

/// A value that cannot be read is neither replaced nor counted.
#[tokio::test(start_paused = true)]
async fn an_unreadable_checkpoint_stays() {
    let stores = Stores::memory();
    let key = Key::ChannelCheckpoint(SHARDS[0].into()).to_key(&Roots::default());
    let writes = vec![Write::put(key.clone(), &b"\xff\xff"[..])];
    stores
        .meta
        .txn(Txn {
            conds: vec![],
            writes,
        })
        .await
        .unwrap();
    let process = Process::start(
        stores.meta.clone(),
        stores.objects.clone(),
        stores.clock.clone(),
        &stores.book,
    )
    .await
    .unwrap();
    let refused = process
        .report(
            &SHARDS[0].into(),
            position(&SHARDS[0].into(), MessageId(4), Tso(9)),
        )
        .await
        .unwrap();
    assert_eq!(refused, 1);
    assert_eq!(stores.record(&key).await.unwrap(), b"\xff\xff");
    assert_eq!(
        process
            .checkpoints
            .cut_below("by-dev-rootcoord-dml_0", MessageId(9)),
        None
    );
    // A broadcast record that cannot be read: nothing is begun.
    process.end().await;
    let key = Key::BroadcastTask(4).to_key(&Roots::default());
    let writes = vec![Write::put(key.clone(), &b"\xff\xff"[..])];
    stores
        .meta
        .txn(Txn {
            conds: vec![],
            writes,
        })
        .await
        .unwrap();
    let refused = Process::start(
        stores.meta.clone(),
        stores.objects.clone(),
        stores.clock.clone(),
        &stores.book,
    )
    .await
    .err()
    .unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(
        refused.to_string().contains("broadcast-task/4"),
        "{refused}"
    );
}
