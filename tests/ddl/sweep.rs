//! Create, drop and truncate of a collection, create, restore and drop of a snapshot, in a root that is ours: with every store operation
//! failing before, after, and with the process dying.

use std::collections::BTreeSet;

use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb;
use falconer::engine::format::pb::common::SegmentState;
use falconer::engine::ids::{CollectionId, SnapshotId};
use falconer::engine::model::jobs::JobKind;
use falconer::engine::plan::{Ddl, Intent};

use super::run::{LATER, catalog, change, create, drive, drive_to, empty, remove};
use crate::support::faults::{World, sweep_some};
use crate::support::snapshots::{self as lab, ROOT, SMALL, Seed, all, collection, family, make};

/// Points of an ordinary run.
const SAMPLE: usize = 60;

/// Whatever happened: one broadcast of each type, finished; the root given back; nothing unreadable; the job's locks gone.
async fn settled(world: &World, kinds: &[i32], label: &str) {
    let tasks = family::<pb::streaming::BroadcastTask>(&*world.meta, Family::BroadcastTask).await;
    let mut seen: Vec<i32> = tasks
        .iter()
        .map(|(key, task)| {
            assert_eq!(task.state, 5, "{label}: {key:?}");
            let message = task.message.as_ref().unwrap();
            message.properties["_t"].parse().unwrap()
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, kinds, "{label}: one broadcast each");
    for left in ["falconer/by-dev/owner", "falconer/by-dev/lock/"] {
        let left = all(&*world.meta, left).await;
        assert!(left.is_empty(), "{label}: {:?}", left.keys());
    }
    let seen = catalog(world).await;
    assert!(
        seen.undecodable.is_empty(),
        "{label}: {:?}",
        seen.undecodable
    );
}

#[tokio::test(start_paused = true)]
async fn a_create_happens_once_through_every_fault() {
    let wanted = create("books", 2);
    let drive = async |stores: &_| drive(stores, &wanted).await;
    let check = async |world: &World, label: &str| {
        settled(world, &[5], label).await;
        let seen = catalog(world).await;
        assert_eq!(seen.collections.len(), 1, "{label}: I2.5");
        let books = seen.collections.values().next().unwrap();
        assert!(books.damage.is_empty(), "{label}: {:?}", books.damage);
        assert_eq!(
            (books.fields.len(), seen.partitions_of(books.id).count()),
            (6, 1),
            "{label}"
        );
        let cps = family::<pb::msg::MsgPosition>(&*world.meta, Family::ChannelCheckpoint).await;
        assert_eq!(cps.len(), 2, "{label}");
        for (key, at) in cps {
            assert!(
                at.timestamp != 0 && at.timestamp != u64::MAX,
                "{label}: {key:?} {at:?}"
            );
            let Key::ChannelCheckpoint(v) = key else {
                panic!()
            };
            assert!(
                books.vchannels.contains(&v),
                "{label}: {v} is the collection's"
            );
        }
    };
    let points = sweep_some(SAMPLE, ROOT, async || empty(), drive, check).await;
    println!("create collection: {points} points");
    assert!(points > 100, "{points}");
}

/// The small cluster with a snapshot and without an alias; with a collection made in it the root is ours.
async fn prepared(ours: bool) -> Seed {
    let seed = lab::small_seed(&lab::FLUSHED).await;
    let prepared = seed.prepare(async |world: &World| {
        let (db, of) = collection(&*world.meta, "metrics").await;
        make(world, db, of, 470_660_334_431_990_001, "nightly", 2).await;
        for (key, alias) in family::<pb::etcd::AliasInfo>(&*world.meta, Family::Alias).await {
            if alias.collection_id == SMALL.0 {
                remove(world, &key).await;
            }
        }
        if ours {
            let world = World::new(world.meta.clone(), world.objects.clone(), LATER);
            change(&world, create("notes", 1)).await;
        }
    });
    prepared.await.0
}

async fn seed() -> &'static Seed {
    static SEED: tokio::sync::OnceCell<Seed> = tokio::sync::OnceCell::const_new();
    SEED.get_or_init(|| prepared(false)).await
}

async fn world() -> World {
    let world = seed().await.world();
    World::new(world.meta, world.objects, LATER)
}

async fn live(world: &World, of: CollectionId) -> BTreeSet<i64> {
    let all = family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment).await;
    all.into_iter()
        .filter(|(_, s)| s.collection_id == of.0 && s.state != SegmentState::Dropped as i32)
        .map(|(_, s)| s.id)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_drop_happens_once_through_every_fault() {
    assert_eq!(live(&world().await, SMALL).await.len(), 2);
    let wanted = Ddl::DropCollection { collection: SMALL };
    let drive = async |stores: &_| drive(stores, &wanted).await;
    let check = async |world: &World, label: &str| {
        settled(world, &[6, 44], label).await;
        let seen = catalog(world).await;
        assert!(!seen.collections.contains_key(&SMALL), "{label}");
        assert!(live(world, SMALL).await.is_empty(), "{label}");
        let name = format!("/{SMALL}/");
        for (key, _) in all(&*world.meta, "by-dev/meta/root-coord/").await {
            assert!(!key.contains(&name), "{label}: {key} is left");
        }
        for (_, p) in family::<pb::msg::MsgPosition>(&*world.meta, Family::ChannelCheckpoint).await
        {
            assert_eq!(p.timestamp, u64::MAX, "{label}: {}", p.channel_name);
        }
        for (key, mark) in all(&*world.meta, "by-dev/meta/datacoord-meta/channel-removal/").await {
            assert_eq!(&mark[..], b"removed", "{label}: {key}");
        }
        for (_, s) in family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await {
            assert_eq!(
                s.state,
                pb::data::SnapshotState::Deleting as i32,
                "{label}: {}",
                s.name
            );
        }
    };
    let points = sweep_some(SAMPLE, ROOT, world, drive, check).await;
    println!("drop collection: {points} points");
    assert!(points > 100, "{points}");
}

#[tokio::test(start_paused = true)]
async fn a_truncate_ends_whole_through_every_fault() {
    let wanted = Ddl::TruncateCollection { collection: SMALL };
    let drive = async |stores: &_| drive(stores, &wanted).await;
    let check = async |world: &World, label: &str| {
        settled(world, &[38], label).await;
        assert!(live(world, SMALL).await.is_empty(), "{label}");
        let (_, info) = family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
            .await
            .into_iter()
            .find(|(_, info)| info.id == SMALL.0)
            .unwrap();
        let flags = info
            .properties
            .iter()
            .filter(|p| p.key == "collection.on.truncating");
        assert_eq!(flags.count(), 0, "{label}: I1.6");
        assert_eq!(
            info.shard_infos.len(),
            info.virtual_channel_names.len(),
            "{label}"
        );
        let cps = family::<pb::msg::MsgPosition>(&*world.meta, Family::ChannelCheckpoint).await;
        for (shard, channel) in info.shard_infos.iter().zip(&info.virtual_channel_names) {
            let tick = shard.last_truncate_time_tick;
            let cp = cps.iter().find_map(|(k, p)| {
                matches!(k, Key::ChannelCheckpoint(v) if v.0 == *channel).then_some(p.timestamp)
            });
            assert!(
                tick != 0 && cp.is_some_and(|cp| cp >= tick),
                "{label}: {channel} {tick} {cp:?}"
            );
        }
        assert!(
            catalog(world).await.snapshots.len() == 1,
            "{label}: snapshots stay"
        );
    };
    let points = sweep_some(SAMPLE, ROOT, world, drive, check).await;
    println!("truncate: {points} points");
    assert!(points > 100, "{points}");
}

async fn owned() -> World {
    static SEED: tokio::sync::OnceCell<Seed> = tokio::sync::OnceCell::const_new();
    let world = SEED.get_or_init(|| prepared(true)).await.world();
    World::new(world.meta, world.objects, LATER)
}

/// Names and states of the snapshots.
async fn snapshots(world: &World) -> Vec<(String, i32)> {
    let all = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await;
    let mut all: Vec<_> = all.into_iter().map(|(_, s)| (s.name, s.state)).collect();
    all.sort();
    all
}

const COMMITTED: i32 = pb::data::SnapshotState::Committed as i32;

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_ours_is_said_once_through_every_fault() {
    let wanted = Intent::CreateSnapshot {
        collection: SMALL,
        name: "second".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let drive = async |stores: &_| drive_to(stores, &wanted, JobKind::CreateSnapshot).await;
    let check = async |world: &World, label: &str| {
        settled(world, &[5, 40], label).await;
        let both = ["nightly", "second"].map(|name| (name.to_owned(), COMMITTED));
        assert_eq!(snapshots(world).await, both, "{label}");
    };
    let points = sweep_some(SAMPLE, ROOT, owned, drive, check).await;
    println!("snapshot in a root of ours: {points} points");
    assert!(points > 100, "{points}");
}

#[tokio::test(start_paused = true)]
async fn a_restore_of_ours_is_said_once_through_every_fault() {
    let wanted = Intent::Restore {
        snapshot: SnapshotId(470_660_334_431_990_001),
        database: "default".into(),
        collection: "copy".into(),
    };
    let drive = async |stores: &_| drive_to(stores, &wanted, JobKind::Restore).await;
    let check = async |world: &World, label: &str| {
        settled(world, &[5, 39], label).await;
        let seen = catalog(world).await;
        let copies = seen.collections.values().filter(|c| &*c.name == "copy");
        assert_eq!(copies.count(), 1, "{label}");
    };
    let points = sweep_some(SAMPLE, ROOT, owned, drive, check).await;
    println!("restore in a root of ours: {points} points");
    assert!(points > 100, "{points}");
}

#[tokio::test(start_paused = true)]
async fn a_drop_of_a_snapshot_of_ours_is_said_once_through_every_fault() {
    let wanted = Intent::DropSnapshot {
        snapshot: SnapshotId(470_660_334_431_990_001),
    };
    let drive = async |stores: &_| drive_to(stores, &wanted, JobKind::DropSnapshot).await;
    let check = async |world: &World, label: &str| {
        settled(world, &[5, 41], label).await;
        assert_eq!(snapshots(world).await, [], "{label}");
    };
    let points = sweep_some(SAMPLE, ROOT, owned, drive, check).await;
    println!("drop of a snapshot in a root of ours: {points} points");
    assert!(points > 100, "{points}");
}
