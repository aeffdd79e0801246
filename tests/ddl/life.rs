//! Each verb from plan to verified, on an empty store and on the captured cluster's own collections.

use std::collections::BTreeMap;
use std::sync::Arc;

use falconer::engine::error::ErrorKind;
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::message::id_of;
use falconer::engine::format::pb;
use falconer::engine::format::pb::common::SegmentState;
use falconer::engine::ids::{CollectionId, SnapshotId, Tso, UnixMs, VChannel};
use falconer::engine::model::jobs::JobState;
use falconer::engine::plan::{Danger, Ddl, Intent};
use prost::Message;

use super::run::{
    LATER, catalog, change, create, empty, gc, index, milvus_keys, operate, plan, runner_of,
};
use crate::support::faults::{Faults, World};
use crate::support::snapshots::{
    self as lab, NOW, ROOT, SMALL, all, collection, family, make, put, roots,
};

type Segments = Vec<(Key, pb::data::SegmentInfo)>;

async fn id_of_name(world: &World, name: &str) -> CollectionId {
    let catalog = catalog(world).await;
    let found = catalog.collections.values().find(|c| &*c.name == name);
    found.unwrap_or_else(|| panic!("no {name}")).id
}

/// Broadcasts' records: every one a tombstone, none holds a key.
async fn quiet(world: &World) {
    let tasks = family::<pb::streaming::BroadcastTask>(&*world.meta, Family::BroadcastTask).await;
    for (key, task) in tasks {
        assert_eq!(task.state, 5, "{key:?}");
    }
    let owner = all(&*world.meta, "falconer/by-dev/owner").await;
    assert!(owner.is_empty(), "the root is given back: {owner:?}");
}

#[tokio::test(start_paused = true)]
async fn a_collection_from_its_creation_to_the_last_key() {
    let world = empty();
    let before = milvus_keys(&world).await;
    let planned = plan(&world, create("books", 2)).await.unwrap();
    assert!(
        planned.applicable() && planned.danger == Danger::Low,
        "{planned:?}"
    );
    assert!(milvus_keys(&world).await == before, "a plan writes nothing");
    change(&world, create("books", 2)).await;
    quiet(&world).await;

    let seen = catalog(&world).await;
    let id = id_of_name(&world, "books").await;
    let books = &seen.collections[&id];
    assert_eq!(books.damage, Vec::<String>::new());
    assert_eq!((books.state.name, books.vchannels.len()), ("Created", 2));
    assert_eq!(
        books.properties,
        [("collection.ttl.seconds".to_owned(), "60".to_owned())]
    );
    assert_eq!(books.consistency.name, "Bounded");
    assert_eq!(seen.partitions_of(id).count(), 1);
    assert!(seen.undecodable.is_empty(), "{:?}", seen.undecodable);
    // The first checkpoint is the message that made the channel.
    for channel in seen.channels_of(id) {
        let at = channel.checkpoint;
        assert_eq!(
            at.map(|t| t >= books.created && t.time().is_some()),
            Some(true),
            "{channel:?}"
        );
    }
    let starts: Vec<_> = family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
        .await
        .remove(0)
        .1
        .start_positions;
    assert_eq!(starts.len(), 2, "{starts:?}");

    // The name is taken now, and says by what.
    let taken = plan(&world, create("books", 1)).await.unwrap();
    assert!(
        taken.failures().any(|c| c
            .failed
            .as_deref()
            .is_some_and(|w| w.contains("books exists"))),
        "{taken:?}"
    );

    let partition = |name: &str| Ddl::CreatePartition {
        collection: id,
        name: name.into(),
    };
    change(&world, partition("y2026")).await;
    let again = plan(&world, partition("y2026")).await.unwrap();
    assert!(!again.applicable());
    change(&world, index(id, "v")).await;
    assert_eq!(catalog(&world).await.partitions_of(id).count(), 2);
    let defined = family::<pb::index::FieldIndex>(&*world.meta, Family::FieldIndex).await;
    let info = defined[0].1.index_info.as_ref().unwrap();
    assert_eq!(
        (
            info.index_name.as_str(),
            info.type_params.len(),
            defined[0].1.create_time > 0
        ),
        ("v", 1, true)
    );

    change(&world, Ddl::TruncateCollection { collection: id }).await;
    let info = family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
        .await
        .remove(0)
        .1;
    assert_eq!(info.shard_infos.len(), 2);
    assert!(
        info.shard_infos
            .iter()
            .all(|s| s.last_truncate_time_tick > info.create_time)
    );
    assert!(
        info.properties
            .iter()
            .all(|p| p.key != "collection.on.truncating")
    );

    let dropped = |name: &str| Ddl::DropPartition {
        collection: id,
        name: name.into(),
    };
    let default = plan(&world, dropped("_default")).await.unwrap();
    assert!(
        default
            .failures()
            .any(|c| c.name.contains("default partition")),
        "{default:?}"
    );
    change(&world, dropped("y2026")).await;
    change(
        &world,
        Ddl::DropIndex {
            collection: id,
            name: "v".into(),
        },
    )
    .await;
    assert_eq!(catalog(&world).await.partitions_of(id).count(), 1);

    let planned = plan(&world, Ddl::DropCollection { collection: id })
        .await
        .unwrap();
    assert_eq!(
        (planned.danger, planned.type_to_confirm.as_deref()),
        (Danger::High, Some("books"))
    );
    change(&world, Ddl::DropCollection { collection: id }).await;
    quiet(&world).await;
    // Marks and checkpoints stay for the collector, as sentinels (I3.2).
    let cps = family::<pb::msg::MsgPosition>(&*world.meta, Family::ChannelCheckpoint).await;
    assert_eq!(cps.len(), 2);
    assert!(cps.iter().all(|(_, p)| p.timestamp == u64::MAX), "{cps:?}");
    // I11.1: after a pass nothing is left.
    let later = World::new(
        world.meta.clone(),
        world.objects.clone(),
        UnixMs(NOW.0 + 86_400_000),
    );
    let pass = operate(&later, gc()).await;
    assert_eq!(pass.state, JobState::Verified, "{:?}", pass.error);
    let left: Vec<String> = milvus_keys(&world)
        .await
        .difference(&before)
        .cloned()
        .collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(catalog(&world).await.collections.len(), 0);
}

/// Collections of a Milvus in a store that is ours: their checkpoints carry another log's ids.
async fn adopted() -> (World, i64) {
    let seed = lab::small_seed(&lab::FLUSHED).await;
    let (seed, id) = seed
        .prepare(async |world: &World| {
            let (db, of) = collection(&*world.meta, "metrics").await;
            make(world, db, of, 470_660_334_431_990_001, "nightly", 2).await;
            make(world, db, of, 470_660_334_431_990_002, "kept", 2).await;
            470_660_334_431_990_002
        })
        .await;
    let world = seed.world();
    (World::new(world.meta, world.objects, LATER), id)
}

async fn segments(world: &World) -> Segments {
    family::<pb::data::SegmentInfo>(&*world.meta, Family::Segment).await
}

#[tokio::test(start_paused = true)]
async fn a_truncate_on_an_adopted_channel_takes_what_was_before_and_nothing_after() {
    let (world, _) = adopted().await;
    let before: BTreeMap<VChannel, pb::msg::MsgPosition> =
        family::<pb::msg::MsgPosition>(&*world.meta, Family::ChannelCheckpoint)
            .await
            .into_iter()
            .filter_map(|(k, p)| match k {
                Key::ChannelCheckpoint(v) => Some((v, p)),
                _ => None,
            })
            .collect();
    let live = |all: &Segments| {
        let healthy = all
            .iter()
            .filter(|(_, s)| s.state != SegmentState::Dropped as i32);
        healthy.map(|(_, s)| s.id).collect::<Vec<_>>()
    };
    assert_eq!(live(&segments(&world).await).len(), 2);
    // A segment of after the truncate: it must stay.
    let (key, mut young) = segments(&world).await.remove(0);
    let Key::Segment(c, p, _) = key else { panic!() };
    young.id = 470_660_334_431_990_777;
    let late = Tso::from_ms(UnixMs(LATER.0 + 3_600_000)).0;
    young.dml_position.as_mut().unwrap().timestamp = late;
    // Beyond what a clock may be ahead it would count as damage; an hour is not.
    let young_key = Key::Segment(c, p, falconer::engine::ids::SegmentId(young.id));
    let objects_before = crate::support::snapshots::objects(&*world.objects)
        .await
        .len();
    change(&world, Ddl::TruncateCollection { collection: SMALL }).await;
    put(
        &*world.meta,
        &young_key.to_key(&roots()),
        young.encode_to_vec(),
    )
    .await;
    assert_eq!(
        live(&segments(&world).await),
        [young.id],
        "what was before is dropped"
    );
    let after = family::<pb::msg::MsgPosition>(&*world.meta, Family::ChannelCheckpoint).await;
    for (key, now) in after {
        let Key::ChannelCheckpoint(v) = key else {
            continue;
        };
        let was = &before[&v];
        assert!(now.timestamp > was.timestamp, "{v} moved on");
        assert!(
            id_of(&now) > id_of(was),
            "{v}: our ids lie above the former log's"
        );
    }
    // Again: the young one is after the second's tick too, unless its time has come.
    let later = World::new(
        world.meta.clone(),
        world.objects.clone(),
        UnixMs(LATER.0 + 60_000),
    );
    change(&later, Ddl::TruncateCollection { collection: SMALL }).await;
    assert_eq!(live(&segments(&world).await), [young.id], "I1.5");
    let now = crate::support::snapshots::objects(&*world.objects).await;
    assert!(
        now.len() >= objects_before,
        "no data object is deleted by a truncate"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drop_takes_its_snapshots_but_a_pinned_one() {
    let (world, kept) = adopted().await;
    let pin = Intent::PinSnapshot {
        snapshot: SnapshotId(kept),
        ttl_secs: 7 * 86_400,
        owner: "auditor".into(),
        reason: "until Friday".into(),
    };
    let pinned = operate(&world, pin).await;
    assert_eq!(pinned.state, JobState::Verified, "{:?}", pinned.error);
    let planned = plan(&world, Ddl::DropCollection { collection: SMALL })
        .await
        .unwrap();
    if let Some(alias) = planned.failures().find(|c| c.name.contains("alias")) {
        // The captured collection has one: it is named, and taken off by hand here.
        assert!(
            alias
                .failed
                .as_deref()
                .is_some_and(|w| w.contains("take them off"))
        );
        for (key, alias) in family::<pb::etcd::AliasInfo>(&*world.meta, Family::Alias).await {
            if alias.collection_id == SMALL.0 {
                crate::run::remove(&world, &key).await;
            }
        }
    }
    let planned = plan(&world, Ddl::DropCollection { collection: SMALL })
        .await
        .unwrap();
    assert!(planned.applicable(), "{:?}", planned.checks);
    assert!(
        planned.warnings.iter().any(|w| w.contains("nightly")),
        "{:?}",
        planned.warnings
    );
    assert!(
        planned.warnings.iter().any(|w| w.contains("stay: kept")),
        "{:?}",
        planned.warnings
    );
    let info = change(&world, Ddl::DropCollection { collection: SMALL }).await;
    assert!(
        info.notes.iter().any(|n| n.contains("kept is pinned")),
        "{:?}",
        info.notes
    );
    let snapshots = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await;
    let states: BTreeMap<&str, i32> = snapshots
        .iter()
        .map(|(_, s)| (s.name.as_str(), s.state))
        .collect();
    let deleting = pb::data::SnapshotState::Deleting as i32;
    assert_eq!(
        (states["nightly"], states["kept"] == deleting),
        (deleting, false),
        "{states:?}"
    );
    assert!(
        segments(&world)
            .await
            .iter()
            .all(|(_, s)| s.state == SegmentState::Dropped as i32)
    );
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_a_root_that_is_ours_are_said_on_the_control_channel() {
    let (world, _) = adopted().await;
    let create = |name: &str| Intent::CreateSnapshot {
        collection: SMALL,
        name: name.into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    };
    let said = async || {
        let tasks =
            family::<pb::streaming::BroadcastTask>(&*world.meta, Family::BroadcastTask).await;
        let kinds = tasks.iter().map(|(_, task)| {
            let message = task.message.as_ref().unwrap();
            (message.properties["_t"].clone(), task.state)
        });
        kinds.collect::<Vec<_>>()
    };
    // Nobody said that the root is ours yet.
    assert_eq!(
        operate(&world, create("first")).await.state,
        JobState::Verified
    );
    assert_eq!(said().await, []);
    change(&world, create_other()).await;
    assert_eq!(
        operate(&world, create("second")).await.state,
        JobState::Verified
    );
    let snapshots = family::<pb::data::SnapshotInfo>(&*world.meta, Family::Snapshot).await;
    let of = |name: &str| snapshots.iter().find(|(_, s)| s.name == name).unwrap().1.id;
    let restore = Intent::Restore {
        snapshot: SnapshotId(of("second")),
        database: "default".into(),
        collection: "copy".into(),
    };
    let restored = operate(&world, restore).await;
    assert_eq!(restored.state, JobState::Verified, "{:?}", restored.error);
    let drop = Intent::DropSnapshot {
        snapshot: SnapshotId(of("second")),
    };
    assert_eq!(operate(&world, drop).await.state, JobState::Verified);
    let mut all = said().await;
    all.sort();
    let done = |kind: &str| (kind.to_owned(), 5);
    assert_eq!(
        all,
        [done("39"), done("40"), done("41"), done("5")],
        "each once, finished"
    );
    quiet(&world).await;
}

fn create_other() -> Ddl {
    create("notes", 1)
}

#[tokio::test(start_paused = true)]
async fn a_root_that_is_not_ours_is_refused_in_one_line() {
    // Real etcd without a mark.
    let world = empty();
    put(
        &*world.meta,
        &"by-dev/kv/gid/idTimestamp".into(),
        1_790_000_000_000_000_000_u64.to_be_bytes().to_vec(),
    )
    .await;
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner_of(&stores, false);
    let planned = runner
        .plan(
            Intent::Ddl {
                change: create("books", 1),
            },
            Arc::default(),
        )
        .await
        .unwrap();
    let why = planned
        .failures()
        .next()
        .and_then(|c| c.failed.clone())
        .unwrap();
    assert!(
        why.contains("not Falconer's own") && why.contains("falconer init") && !why.contains('\n'),
        "{why}"
    );
    let refused = runner.apply(&planned.hash, "").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    // A root with a key in it does not become ours; the key is named.
    let init = runner
        .plan(Intent::Init { channels: 4 }, Arc::default())
        .await
        .unwrap();
    let why = init
        .failures()
        .next()
        .and_then(|c| c.failed.clone())
        .unwrap();
    assert!(why.contains("by-dev/kv/gid/idTimestamp"), "{why}");
    runner.stop().await;

    // An embedded copy of a cluster with a streaming service: its channels' logs are elsewhere.
    let world = empty();
    let record = pb::streaming::PChannelMeta::default().encode_to_vec();
    put(
        &*world.meta,
        &"by-dev/meta/streamingcoord-meta/pchannel/by-dev-rootcoord-dml_3".into(),
        record,
    )
    .await;
    let planned = plan(&world, create("books", 1)).await.unwrap();
    let why = planned
        .failures()
        .next()
        .and_then(|c| c.failed.clone())
        .unwrap();
    assert!(
        why.contains("by-dev-rootcoord-dml_3") && why.contains("Milvus"),
        "{why}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_empty_root_becomes_ours_once() {
    let world = empty();
    let stores = world.open(&Faults::none(), ROOT);
    let runner = runner_of(&stores, false);
    let init = runner
        .plan(Intent::Init { channels: 4 }, Arc::default())
        .await
        .unwrap();
    assert!(init.applicable(), "{:?}", init.checks);
    runner.carry_out(&init.hash, "").await.unwrap();
    let again = runner
        .plan(Intent::Init { channels: 8 }, Arc::default())
        .await
        .unwrap();
    assert!(
        again.failures().any(|c| c
            .failed
            .as_deref()
            .is_some_and(|w| w.contains("4 channels"))),
        "{again:?}"
    );
    let planned = runner
        .plan(
            Intent::Ddl {
                change: create("books", 5),
            },
            Arc::default(),
        )
        .await
        .unwrap();
    // More shards than channels: found under the keys.
    let job = runner.apply(&planned.hash, "").await.unwrap();
    let info = runner.ended(job).await.unwrap();
    assert_eq!(info.state, JobState::Failed);
    assert!(
        info.error
            .as_deref()
            .is_some_and(|e| e.contains("5 shards")),
        "{:?}",
        info.error
    );
    let planned = runner
        .plan(
            Intent::Ddl {
                change: create("books", 4),
            },
            Arc::default(),
        )
        .await
        .unwrap();
    let job = runner.apply(&planned.hash, "").await.unwrap();
    assert_eq!(runner.ended(job).await.unwrap().state, JobState::Verified);
    let used: std::collections::BTreeSet<String> =
        family::<pb::etcd::CollectionInfo>(&*world.meta, Family::Collection)
            .await
            .remove(0)
            .1
            .physical_channel_names
            .into_iter()
            .collect();
    assert_eq!(used.len(), 4, "each shard on a channel of its own");
    runner.stop().await;
}
