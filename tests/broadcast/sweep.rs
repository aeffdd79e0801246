//! Broadcasts with a fault at each store operation: exactly one effect each, nothing locked, nothing left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb::messages::ResourceDomain;
use falconer::engine::format::pb::msg::MsgPosition;
use falconer::engine::format::pb::streaming::{BroadcastTask, BroadcastTaskState};
use falconer::engine::ids::{KeyPrefix, VChannel};
use falconer::engine::meta::{Limits, Span};
use falconer::engine::model::broadcast::{Resource, ResourceKeys};
use falconer::engine::profile::Roots;
use object_store::memory::InMemory;
use prost::Message as _;

use crate::process::{Process, SHARDS, Shared, again, exclusive, order, passes};
use crate::support::faults::{Faults, Stores, World, sweep};
use crate::support::mem::MemStore;
use crate::support::snapshots::{NOW, ROOT};

/// What the operator of one world knows: which of its orders are given.
#[derive(Default)]
struct Orders {
    given: BTreeMap<usize, i64>,
    unknown: usize,
}

#[derive(Clone, Default)]
struct Life {
    orders: Arc<Mutex<Orders>>,
    book: Shared,
}

async fn started(stores: &Stores, life: &Life) -> Result<Process> {
    let process = Process::start(
        stores.meta.clone(),
        stores.write.clone(),
        stores.clock.clone(),
        &life.book,
    )
    .await?;
    process.create_channels().await?;
    Ok(process)
}

/// Gives the `n`th order, unless it is known to be given, and waits for its end.
async fn give(process: &Process, life: &Life, n: usize, flag: bool) -> Result<()> {
    if life.orders.lock().unwrap().given.contains_key(&n) {
        process.quiet("taken up").await;
        return Ok(());
    }
    let channels = vec![process.control.clone(), SHARDS[0].into(), SHARDS[1].into()];
    loop {
        let guard = process.broadcaster.lock(exclusive("books")).await?;
        life.orders.lock().unwrap().unknown += 1;
        let done = process
            .broadcaster
            .broadcast(&Process::who(), guard, order(channels.clone(), flag))
            .await;
        match done {
            Ok(ticket) => {
                {
                    let mut orders = life.orders.lock().unwrap();
                    orders.unknown -= 1;
                    orders.given.insert(n, ticket.id().0);
                }
                ticket.done().await?;
                return Ok(());
            }
            Err(e) => {
                if e.kind() != ErrorKind::OutcomeUnknown {
                    life.orders.lock().unwrap().unknown -= 1;
                }
                if !passes(&e) {
                    return Err(e);
                }
            }
        }
    }
}

async fn drive(stores: &Stores, life: &Life) -> Result<()> {
    let process = started(stores, life).await?;
    give(&process, life, 0, false).await?;
    give(&process, life, 1, true).await?;
    let gone: VChannel = SHARDS[1].into();
    again(async || process.checkpoints.mark_dropped(&gone).await).await?;
    life.book.lock().unwrap().fail_once = 1;
    give(&process, life, 2, true).await?;
    again(async || process.broadcaster.truncate().await).await?;
    again(async || process.broadcaster.collect().await).await?;
    process.end().await;
    Ok(())
}

async fn check(world: &World, life: &Life, label: &str) {
    world.bury().await;
    let stores = world.open(&Faults::none(), ROOT);
    let process = started(&stores, life)
        .await
        .unwrap_or_else(|e: Error| panic!("{label}: {e}"));
    process.quiet(label).await;
    let roots = Roots::default();
    let records = world
        .meta
        .range_all(&Span::prefix(&Family::BroadcastTask.prefix(&roots)))
        .await
        .unwrap()
        .kvs;
    for kv in &records {
        let task = BroadcastTask::decode(&*kv.value).unwrap();
        assert_eq!(task.state(), BroadcastTaskState::Tombstone, "{label}");
        assert_eq!(task.acked_vchannel_bitmap, [1, 1, 1], "{label}");
    }
    let effects = world
        .meta
        .range_all(&Span::prefix(&KeyPrefix::new("by-dev/meta/test-effect")))
        .await
        .unwrap()
        .kvs;
    assert!(
        effects.iter().all(|kv| kv.version == 1),
        "{label}: an effect twice"
    );
    let ids: Vec<i64> = effects
        .iter()
        .map(|kv| kv.key.text().rsplit('/').next().unwrap().parse().unwrap())
        .collect();
    {
        let orders = life.orders.lock().unwrap();
        for (n, id) in &orders.given {
            assert!(ids.contains(id), "{label}: order {n} has no effect");
        }
        assert!(
            ids.len() <= orders.given.len() + orders.unknown,
            "{label}: {} effects made up",
            ids.len()
        );
        let book = life.book.lock().unwrap();
        assert!(book.too_early.is_empty(), "{label}");
        let mut open: Option<i64> = None;
        for (id, ended) in &book.calls {
            assert!(
                open.is_none_or(|o| o == *id),
                "{label}: callbacks of one key mixed: {:?}",
                book.calls
            );
            open = (!ended).then_some(*id);
        }
    }
    let everything = ResourceKeys::new([(Resource::new(ResourceDomain::Cluster, ""), false)]);
    drop(
        process
            .broadcaster
            .try_lock(everything)
            .unwrap_or_else(|e| panic!("{label}: {e}")),
    );
    for v in SHARDS {
        let kv = world
            .meta
            .get(&Key::ChannelCheckpoint(v.into()).to_key(&roots))
            .await
            .unwrap()
            .unwrap();
        let stored = MsgPosition::decode(&*kv.value).unwrap();
        assert_eq!(
            process.checkpoints.get(&v.into()).as_ref(),
            Some(&stored),
            "{label}: I3.5"
        );
        assert_eq!(stored.timestamp == u64::MAX, v == SHARDS[1], "{label}: {v}");
    }
    process.end().await;
}

#[tokio::test(start_paused = true)]
async fn broadcasts_stay_sound_through_every_fault() {
    let current: Mutex<Life> = Mutex::default();
    let make = async || {
        *current.lock().unwrap() = Life::default();
        let limits = Limits {
            ops: 128,
            bytes: 1 << 20,
        };
        World::new(
            Arc::new(MemStore::new(limits)),
            Arc::new(InMemory::new()),
            NOW,
        )
    };
    let run = async |stores: &Stores| {
        let life = current.lock().unwrap().clone();
        drive(stores, &life).await
    };
    let look = async |world: &World, label: &str| {
        let life = current.lock().unwrap().clone();
        check(world, &life, label).await;
    };
    let points = sweep(ROOT, make, run, look).await;
    assert!(points > 200, "{points}");
}
