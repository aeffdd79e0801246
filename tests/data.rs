//! The data path: left-overs of the old architecture (`spec/lifecycle.md` §4, I4.1 to I4.4) and one owner a channel (§2, I2.1 to I2.5).

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use falconer::engine::broadcast::{Acked, AllAcked, Broadcaster, Callbacks, Parts};
use falconer::engine::clock::SeededEntropy;
use falconer::engine::data::DataPath;
use falconer::engine::data::reports::{Reports, Saved};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key, LogKind};
use falconer::engine::format::message::{Draft, position};
use falconer::engine::format::pb::common::SegmentState;
use falconer::engine::format::pb::data::{Binlog, FieldBinlog, SegmentInfo, SegmentLevel};
use falconer::engine::format::pb::messages::{FlushMessageHeader, MessageType};
use falconer::engine::ids::{
    CollectionId, FieldId, JobId, MessageId, MetaKey, NodeId, PartitionId, SegmentId, Term, Tso,
    UnixMs, VChannel,
};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWrite, MetaWriter, Span, Txn, Write};
use falconer::engine::model::broadcast::TombstoneLimits;
use falconer::engine::model::segments::{Report, is_left_over};
use falconer::engine::plan::execute::{Change, Executor, Parts as ExecutorParts, Who};
use falconer::engine::plan::ledger::Swap;
use falconer::engine::wal::channels::Channels;
use falconer::engine::wal::checkpoints::{Checkpoints, Report as Progress};
use falconer::engine::wal::log::Log;
use object_store::memory::InMemory;
use prost::Message;
use support::faults::{Faults, Stores, World, sweep};
use support::mem::MemStore;
use support::snapshots::{ETCD, ROOT, all, family, put, roots};

const NOW: UnixMs = UnixMs(1_790_000_000_000);
const P0: &str = "by-dev-rootcoord-dml_0";
const SHARD: &str = "by-dev-rootcoord-dml_0_7v0";
const C: CollectionId = CollectionId(7);
const P: PartitionId = PartitionId(8);

struct Nothing;

#[async_trait]
impl Callbacks for Nothing {
    async fn ack_once(&self, _: &Acked) -> Result<()> {
        Ok(())
    }

    async fn ack_all(&self, _: &AllAcked) -> Result<()> {
        Ok(())
    }
}

fn passes(e: &Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown
}

async fn again<T>(mut call: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    loop {
        match call().await {
            Err(e) if passes(&e) => {}
            done => return done,
        }
    }
}

async fn owner(stores: &Stores) -> Result<Arc<Executor>> {
    let executor = Executor::new(ExecutorParts {
        meta: MetaWriter::new(
            stores.meta.clone(),
            &Scope::root(stores.clock.clone(), "test"),
        ),
        objects: stores.write.clone(),
        roots: roots(),
        clock: stores.clock.clone(),
        entropy: Arc::new(SeededEntropy::new(7)),
        actor: "tester pid 7".into(),
        embedded: true,
    });
    again(async || executor.fence().acquire().await).await?;
    Ok(executor)
}

/// What stands of a segment at first, and what becomes of it.
struct Case {
    state: SegmentState,
    streaming: bool,
    importing: bool,
    level: SegmentLevel,
    /// Rows of its insert logs, list by list; none: an allocated segment without anything.
    rows: &'static [i64],
    then: SegmentState,
}

fn cases() -> Vec<Case> {
    use SegmentState::{Dropped, Flushed, Flushing, Growing, Importing, Sealed};
    let mut out = Vec::new();
    for state in [Growing, Sealed, Flushing] {
        for (rows, then) in [(&[300, 44][..], Flushed), (&[][..], Dropped)] {
            out.push(Case {
                state,
                streaming: false,
                importing: false,
                level: SegmentLevel::L1,
                rows,
                then,
            });
        }
    }
    // Not to be touched.
    for (state, streaming, importing, level) in [
        (Flushed, false, false, SegmentLevel::L1),
        (Dropped, false, false, SegmentLevel::L1),
        (Importing, false, true, SegmentLevel::L1),
        (Growing, true, false, SegmentLevel::L1),
        (Growing, false, true, SegmentLevel::L1),
        (Flushed, false, false, SegmentLevel::L0),
    ] {
        out.push(Case {
            state,
            streaming,
            importing,
            level,
            rows: &[10],
            then: state,
        });
    }
    out
}

fn id(case: usize) -> SegmentId {
    SegmentId(1000 + i64::try_from(case).unwrap())
}

async fn upgraded() -> World {
    let world = World::new(
        Arc::new(MemStore::new(ETCD)),
        Arc::new(InMemory::new()),
        NOW,
    );
    let shard: VChannel = SHARD.into();
    let checkpoint = position(&shard, MessageId(1), Tso(5));
    let meta = &*world.meta;
    put(
        meta,
        &Key::ChannelCheckpoint(shard.clone()).to_key(&roots()),
        checkpoint.encode_to_vec(),
    )
    .await;
    put(
        meta,
        &Key::ChannelRemoval(shard).to_key(&roots()),
        b"non-removed".to_vec(),
    )
    .await;
    for (n, case) in cases().iter().enumerate() {
        let s = id(n);
        let info = SegmentInfo {
            id: s.0,
            collection_id: C.0,
            partition_id: P.0,
            insert_channel: SHARD.into(),
            // What the dead node had in memory is counted too.
            num_of_rows: 999,
            state: case.state as i32,
            is_created_by_streaming: case.streaming,
            is_importing: case.importing,
            level: case.level as i32,
            ..SegmentInfo::default()
        };
        put(
            meta,
            &Key::Segment(C, P, s).to_key(&roots()),
            info.encode_to_vec(),
        )
        .await;
        let fields = if case.rows.is_empty() { 0 } else { 2 };
        for field in 0..fields {
            let logs = FieldBinlog {
                field_id: 100 + field,
                binlogs: case
                    .rows
                    .iter()
                    .map(|rows| Binlog {
                        entries_num: *rows,
                        ..Binlog::default()
                    })
                    .collect(),
                ..FieldBinlog::default()
            };
            let key = Key::Log(LogKind::Insert, C, P, s, FieldId(100 + field));
            put(meta, &key.to_key(&roots()), logs.encode_to_vec()).await;
        }
    }
    world
}

async fn segments(meta: &dyn MetaWrite) -> BTreeMap<i64, SegmentInfo> {
    let all = family::<SegmentInfo>(meta, Family::Segment).await;
    all.into_iter().map(|(_, info)| (info.id, info)).collect()
}

/// One process: opens everything, and waits until no left-over remains.
async fn opened(stores: &Stores) -> Result<()> {
    let executor = owner(stores).await?;
    let channels = Channels::new(executor.clone());
    let checkpoints = again(async || Checkpoints::load(executor.clone()).await).await?;
    let broadcaster = again(async || {
        Broadcaster::open(Parts {
            executor: executor.clone(),
            channels: channels.clone(),
            checkpoints: checkpoints.clone(),
            callbacks: Arc::new(Nothing),
            consumer: DataPath::new(&executor),
            tombstones: TombstoneLimits {
                count: 3,
                age: std::time::Duration::from_hours(1),
            },
        })
        .await
    })
    .await?;
    let reader = executor.reader();
    let span = Span::prefix(&Family::Segment.prefix(&roots()));
    loop {
        let page = again(async || reader.range_all(&span).await).await?;
        let open = page
            .kvs
            .iter()
            .filter(|kv| is_left_over(&SegmentInfo::decode(&*kv.value).unwrap()));
        if open.count() == 0 {
            break;
        }
        stores
            .clock
            .sleep(std::time::Duration::from_millis(20))
            .await;
    }
    broadcaster.close().await;
    channels.close().await;
    executor.fence().release().await;
    Ok(())
}

async fn all_as_wanted(world: &World, label: &str) {
    let now = segments(&*world.meta).await;
    for (n, case) in cases().iter().enumerate() {
        let info = &now[&id(n).0];
        let what = format!("{label}: {:?} with {:?}", case.state, case.rows);
        assert_eq!(info.state(), case.then, "{what}");
        if case.then != case.state && case.then == SegmentState::Flushed {
            assert_eq!(info.num_of_rows, case.rows.iter().sum::<i64>(), "{what}");
        } else {
            assert_eq!(info.num_of_rows, 999, "{what}");
        }
        let dropped_now = case.then != case.state && case.then == SegmentState::Dropped;
        assert_eq!(info.dropped_at > 0, dropped_now, "{what}");
    }
    // The lists are as they were: the rows are.
    let lists = family::<FieldBinlog>(&*world.meta, Family::Binlog).await;
    let wanted = cases().iter().filter(|c| !c.rows.is_empty()).count() * 2;
    assert_eq!(lists.len(), wanted, "{label}");
}

/// I4.1, I4.2 and I4.3: any mix of states, a fault or a crash at every store operation, the same end; and opening once more changes
/// nothing.
#[tokio::test(start_paused = true)]
async fn left_overs_are_flushed_through_every_fault() {
    let check = async |world: &World, label: &str| {
        all_as_wanted(world, label).await;
        let before = all(&*world.meta, "by-dev/meta/datacoord-meta/s/").await;
        world.bury().await;
        opened(&world.open(&Faults::none(), ROOT)).await.unwrap();
        let after = all(&*world.meta, "by-dev/meta/datacoord-meta/s/").await;
        assert_eq!(before, after, "{label}: opened once more");
    };
    let points = sweep(ROOT, upgraded, opened, check).await;
    assert!(points > 60, "{points}");
}

/// I4.3: killed between the append and its consumption, any number of times.
#[tokio::test(start_paused = true)]
async fn any_number_of_crashes_before_the_flush_is_consumed() {
    let world = upgraded().await;
    let mut appended = 0;
    for _ in 0..4 {
        let stores = world.open(&Faults::none(), ROOT);
        let executor = owner(&stores).await.unwrap();
        let log = Channels::new(executor.clone()).log(P0).await.unwrap();
        let path = DataPath::new(&executor);
        falconer::engine::broadcast::Consumer::begin(&*path, &*log)
            .await
            .unwrap();
        let first = log.end().borrow().first;
        let mut reader = log.read_from(first).unwrap();
        appended = 0;
        while let Some(message) = reader.try_next().await.unwrap() {
            appended += usize::from(message.kind() == Some(MessageType::Flush));
        }
        world.bury().await;
    }
    // Six left-overs, told again each time: nobody has flushed them.
    assert_eq!(appended, 24);
    opened(&world.open(&Faults::none(), ROOT)).await.unwrap();
    all_as_wanted(&world, "in the end").await;
}

/// I4.4: whoever asks for a channel's latest time gets an answer or an error, wherever the channel is.
#[tokio::test(start_paused = true)]
async fn the_latest_time_is_an_answer_or_an_error() {
    let world = upgraded().await;
    let stores = world.open(&Faults::none(), ROOT);
    let channels = Channels::new(owner(&stores).await.unwrap());
    let shard: VChannel = SHARD.into();
    let elsewhere: Vec<VChannel> = ["x", "", P0, "by-dev-rootcoord-dml_9_7v0", SHARD]
        .map(Into::into)
        .into();
    for name in &elsewhere {
        let e = channels.latest(name).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound, "{name}: {e}");
    }
    let log = channels.log(P0).await.unwrap();
    let tick = log.tick().await.unwrap();
    assert!(channels.latest(&shard).unwrap() >= tick);
    log.close().await;
    let e = channels.latest(&shard).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
}

fn flush(term: Term, segment: SegmentId, what: Report) -> Saved {
    Saved {
        channel: SHARD.into(),
        term,
        segment: (C, P, segment),
        what,
        at: Tso(1_790_000_000_000 << 18),
    }
}

/// I2.1, I2.3: a report of one who does not own the channel is refused whatever it says, and terms grow.
#[tokio::test(start_paused = true)]
async fn a_report_of_another_term_is_refused() {
    let world = upgraded().await;
    let stores = world.open(&Faults::none(), ROOT);
    let executor = owner(&stores).await.unwrap();
    let reports = Reports::new(executor.clone());
    let shard: VChannel = SHARD.into();
    let nobody = reports.save(&flush(Term(1), id(0), Report::Flushed)).await;
    assert_eq!(nobody.unwrap_err().kind(), ErrorKind::NotFound);
    let first = Log::open(executor.clone(), P0).await.unwrap();
    let second = Log::open(executor.clone(), P0).await.unwrap();
    let (old, new) = (
        falconer::engine::wal::Wal::term(&*first),
        falconer::engine::wal::Wal::term(&*second),
    );
    assert!(old < new, "{old} {new}");
    let before = all(&*world.meta, "by-dev/meta/datacoord-meta/").await;
    let checkpoints = Checkpoints::load(executor.clone()).await.unwrap();
    for term in [Term(0), old, Term(new.0 + 1)] {
        let e = reports
            .save(&flush(term, id(0), Report::Flushed))
            .await
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
        assert!(
            e.to_string().contains(&format!("the owner is term {new}")),
            "{e}"
        );
        let e = reports
            .drop_channel(&shard, term, Tso(1 << 40))
            .await
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
        let late = Progress {
            channel: shard.clone(),
            position: position(&shard, MessageId(9), Tso(99)),
            term,
        };
        let refused = checkpoints.update(vec![late], |_| Some(new)).await.unwrap();
        assert_eq!(refused.len(), 1);
    }
    assert_eq!(
        before,
        all(&*world.meta, "by-dev/meta/datacoord-meta/").await
    );
    assert!(
        reports
            .save(&flush(new, id(0), Report::Flushed))
            .await
            .unwrap()
    );
    assert!(
        !reports
            .save(&flush(new, id(0), Report::Flushed))
            .await
            .unwrap(),
        "twice is once"
    );
}

/// I2.2: the channel changes hands between the look and the write. Whatever the old owner reported, the records are those of a run with
/// the last owner only.
#[tokio::test(start_paused = true)]
async fn a_channel_that_changes_hands_in_between_refuses_the_old_one() {
    // The store operation of the old owner's report before which the new one takes the log.
    let (mut applied, mut refused) = (0, 0);
    for at in 0..6 {
        let world = upgraded().await;
        let stores = world.open(&Faults::none(), ROOT);
        let executor = owner(&stores).await.unwrap();
        let old = Channels::new(executor.clone()).log(P0).await.unwrap();
        let report = flush(old.term(), id(1), Report::Dropped);
        let slow = Reports::new(executor.clone());
        let mut reporting = Box::pin(slow.save(&report));
        let mut early = None;
        for _ in 0..at {
            if let std::task::Poll::Ready(done) = futures::poll!(&mut reporting) {
                early = Some(done);
                break;
            }
        }
        let before = all(&*world.meta, "by-dev/meta/datacoord-meta/s/").await;
        let new = Log::open(executor.clone(), P0).await.unwrap();
        let came_to = match early {
            Some(done) => done,
            None => reporting.await,
        };
        let after = all(&*world.meta, "by-dev/meta/datacoord-meta/s/").await;
        match came_to {
            // It was applied while it was the owner's.
            Ok(true) => {
                applied += 1;
                assert_eq!(before, after, "{at}: applied after the change");
            }
            Ok(false) => panic!("{at}: nothing to do"),
            Err(e) => {
                refused += 1;
                assert_eq!(e.kind(), ErrorKind::NotFound, "{at}: {e}");
                assert_eq!(before, after, "{at}: refused, and applied");
            }
        }
        let term = falconer::engine::wal::Wal::term(&*new);
        slow.save(&flush(term, id(1), Report::Dropped))
            .await
            .unwrap();
        assert_eq!(
            segments(&*world.meta).await[&id(1).0].state(),
            SegmentState::Dropped
        );
    }
    assert!(applied > 0 && refused > 0, "{applied} {refused}");
}

/// Drop channel: once, again, and by the owner only; a late checkpoint moves nothing (I3.2), a late flush neither.
#[tokio::test(start_paused = true)]
async fn a_dropped_channel_stays_dropped() {
    let world = upgraded().await;
    let stores = world.open(&Faults::none(), ROOT);
    let executor = owner(&stores).await.unwrap();
    let log = Channels::new(executor.clone()).log(P0).await.unwrap();
    let reports = Reports::new(executor.clone());
    let shard: VChannel = SHARD.into();
    let at = Tso(1_790_000_000_000 << 18);
    reports.drop_channel(&shard, log.term(), at).await.unwrap();
    let once = all(&*world.meta, "by-dev/meta/datacoord-meta/").await;
    reports.drop_channel(&shard, log.term(), at).await.unwrap();
    for n in 0..cases().len() {
        reports
            .save(&flush(log.term(), id(n), Report::Flushed))
            .await
            .unwrap();
    }
    let checkpoints = Checkpoints::load(executor.clone()).await.unwrap();
    let late = Progress {
        channel: shard.clone(),
        position: position(&shard, MessageId(9), Tso(u64::MAX - 1)),
        term: log.term(),
    };
    checkpoints
        .update(vec![late], |_| Some(log.term()))
        .await
        .unwrap();
    assert_eq!(once, all(&*world.meta, "by-dev/meta/datacoord-meta/").await);
    let states = segments(&*world.meta).await;
    assert!(states.values().all(|s| s.state() == SegmentState::Dropped));
    // I2.5 and §2 rule 5: creating it again any number of times brings nothing back.
    let start = position(&shard, MessageId(1), Tso(1));
    for _ in 0..3 {
        checkpoints
            .create(vec![(shard.clone(), start.clone())])
            .await
            .unwrap();
    }
    assert_eq!(once, all(&*world.meta, "by-dev/meta/datacoord-meta/").await);
}

/// I2.4: no write path lets a key of the old channel manager through.
#[tokio::test(start_paused = true)]
async fn watch_keys_of_the_old_manager_are_never_written() {
    let world = upgraded().await;
    let stores = world.open(&Faults::none(), ROOT);
    let e = owner(&stores).await.unwrap();
    let key: MetaKey = Key::ChannelWatch(NodeId(3), SHARD.into()).to_key(&roots());
    // One that a Milvus left is there, and stays.
    let old: MetaKey = Key::ChannelWatch(NodeId(4), SHARD.into()).to_key(&roots());
    put(&*world.meta, &old, b"left".to_vec()).await;
    let who = Who {
        job: JobId(7),
        plan: "p".into(),
        epoch: None,
    };
    for write in [Write::put(key.clone(), "x"), Write::put(old.clone(), "y")] {
        let change = Change {
            name: "watch".into(),
            writes: vec![write.clone()],
            ..Change::default()
        };
        let mut refused = vec![
            e.commit(&who, &change).await.map(|_| ()),
            e.commit_own(&who, &change).await.map(|_| ()),
            e.note(std::slice::from_ref(&write)).await.map(|_| ()),
            e.note_if(&[], std::slice::from_ref(&write))
                .await
                .map(|_| ()),
        ];
        let mut swap = Swap::new(vec![], vec![write]);
        refused.push(e.swap(&mut swap).await.map(|_| ()));
        for one in refused {
            let e = one.unwrap_err();
            assert!(
                e.to_string().contains("a watch key is never written"),
                "{e}"
            );
        }
    }
    assert!(world.meta.get(&key).await.unwrap().is_none());
    assert!(world.meta.get(&old).await.unwrap().is_some());
}

/// A flush of a segment whose lists cannot be read decides nothing: it is neither flushed with fewer rows nor dropped (law 5).
#[tokio::test(start_paused = true)]
async fn an_unreadable_list_holds_the_segment() {
    let world = upgraded().await;
    let key = Key::Log(LogKind::Insert, C, P, id(0), FieldId(101)).to_key(&roots());
    put(&*world.meta, &key, vec![0xff; 5]).await;
    let stores = world.open(&Faults::none(), ROOT);
    let executor = owner(&stores).await.unwrap();
    let log = Channels::new(executor.clone()).log(P0).await.unwrap();
    let header = FlushMessageHeader {
        collection_id: C.0,
        partition_id: P.0,
        segment_id: id(0).0,
    };
    let draft = Draft::new(MessageType::Flush, &header, Vec::new()).on(&SHARD.into());
    log.append(vec![draft]).await.unwrap();
    let first = log.end().borrow().first;
    let mut reader = log.read_from(first).unwrap();
    // Other messages of the log's own may stand before it.
    let message = loop {
        let message = reader.next().await.unwrap();
        if message.kind() == Some(MessageType::Flush) {
            break message;
        }
    };
    let path = DataPath::new(&executor);
    let take = falconer::engine::broadcast::Consumer::take(&*path, log.term(), &message).await;
    let e = take.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert!(e.to_string().contains(&key.text()), "{e}");
    assert_eq!(
        segments(&*world.meta).await[&id(0).0].state(),
        SegmentState::Growing
    );
    let txn = Txn {
        conds: vec![],
        writes: vec![Write::Delete(key)],
    };
    world.meta.txn(txn).await.unwrap();
    falconer::engine::broadcast::Consumer::take(&*path, log.term(), &message)
        .await
        .unwrap();
    assert_eq!(
        segments(&*world.meta).await[&id(0).0].state(),
        SegmentState::Flushed
    );
}
