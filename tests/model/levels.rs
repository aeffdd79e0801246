//! Nothing is left after a drop: whatever is made and dropped, in any order, the catalog returns to where it was, and agrees with
//! itself on the way (`spec/lifecycle.md` I10.2, I10.3, I11.1, I11.3).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use falconer::engine::format::keys::{Key, LogKind, Roots};
use falconer::engine::format::pb;
use falconer::engine::ids::{
    BuildId, CollectionId, DbId, FieldId, FunctionId, IndexId, JobId, MetaKey, MetaRev, NodeId,
    PartitionId, PartitionScope, ReplicaId, SegmentId, SnapshotId, TaskId, VChannel,
};
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::catalog::Catalog;
use proptest::prelude::*;
use prost::Message;

use super::{from_scratch, keyspace};

/// RootCoord's mark of a deleted key.
const TOMBSTONE: &[u8] = &[0xe2, 0x9b, 0xbc];

/// Everything that a cluster writes for one collection, and what it writes over it when the collection is dropped.
fn life(n: i64) -> Vec<(Key, Vec<Vec<u8>>)> {
    let c = CollectionId(7_000_000 + n);
    let (p, default) = (PartitionId(100 + n), PartitionId(1_000 + n));
    let all = PartitionScope::ALL.stored();
    let channels: Vec<VChannel> = (0..2)
        .map(|i| VChannel(format!("base-dml_{i}_{c}v{i}")))
        .collect();
    let info = |state: i32| pb::etcd::CollectionInfo {
        id: c.0,
        db_id: 1,
        state,
        schema: Some(pb::schema::CollectionSchema {
            name: format!("c{n}"),
            ..Default::default()
        }),
        create_time: 1 << 60,
        virtual_channel_names: channels.iter().map(|c| c.0.clone()).collect(),
        physical_channel_names: vec!["base-dml_0".into(), "base-dml_1".into()],
        shards_num: 2,
        ..Default::default()
    };
    let partition = |name: &str| pb::etcd::PartitionInfo {
        partition_name: name.into(),
        collection_id: c.0,
        ..Default::default()
    };
    let segment = |id: i64, part: PartitionId, level: i32, state: i32| pb::data::SegmentInfo {
        id,
        collection_id: c.0,
        partition_id: part.0,
        insert_channel: channels[usize::try_from(id % 2).expect("0 or 1")].0.clone(),
        num_of_rows: 10,
        state,
        level,
        start_position: Some(pb::msg::MsgPosition {
            timestamp: 470_000_000_000_000_000 + id.cast_unsigned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let log = pb::data::FieldBinlog {
        field_id: 100,
        binlogs: vec![pb::data::Binlog {
            entries_num: 10,
            log_size: 1_000,
            ..Default::default()
        }],
        ..Default::default()
    };
    let build = |deleted: bool| pb::index::SegmentIndex {
        collection_id: c.0,
        partition_id: p.0,
        segment_id: 10 * n + 1,
        index_id: 5_000 + n,
        build_id: 6_000 + n,
        state: 3,
        num_rows: 10,
        deleted,
        ..Default::default()
    };
    let index = |deleted: bool| pb::index::FieldIndex {
        index_info: Some(pb::index::IndexInfo {
            collection_id: c.0,
            field_id: 101,
            index_name: "i".into(),
            index_id: 5_000 + n,
            ..Default::default()
        }),
        deleted,
        ..Default::default()
    };
    let field = |id: i64| pb::schema::FieldSchema {
        field_id: id,
        name: format!("f{id}"),
        is_primary_key: id == 100,
        ..Default::default()
    };
    let cp = |timestamp: u64| pb::msg::MsgPosition {
        timestamp,
        ..Default::default()
    };
    let (s1, s2, l0) = (
        SegmentId(10 * n + 1),
        SegmentId(10 * n + 2),
        SegmentId(10 * n + 3),
    );
    let mut out = vec![
        (
            Key::Collection(DbId(1), c),
            vec![info(0).encode_to_vec(), info(2).encode_to_vec()],
        ),
        (Key::Partition(c, p), vec![partition("p").encode_to_vec()]),
        (
            Key::Partition(c, default),
            vec![partition("_default").encode_to_vec()],
        ),
        (
            Key::Field(c, FieldId(100)),
            vec![field(100).encode_to_vec()],
        ),
        (
            Key::Field(c, FieldId(101)),
            vec![field(101).encode_to_vec()],
        ),
        (
            Key::Function(c, FunctionId(1)),
            vec![pb::schema::FunctionSchema::default().encode_to_vec()],
        ),
        (
            Key::Alias(DbId(1), format!("a{n}")),
            vec![
                pb::etcd::AliasInfo {
                    collection_id: c.0,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        (
            Key::CollectionLoad(c),
            vec![
                pb::query::CollectionLoadInfo {
                    collection_id: c.0,
                    status: 2,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        (
            Key::PartitionLoad(c, p),
            vec![
                pb::query::PartitionLoadInfo {
                    collection_id: c.0,
                    partition_id: p.0,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        (
            Key::Replica(c, ReplicaId(9_000 + n)),
            vec![
                pb::query::Replica {
                    id: 9_000 + n,
                    collection_id: c.0,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        (
            Key::Segment(c, p, s1),
            [
                segment(s1.0, p, 1, 2),
                segment(s1.0, p, 2, 4),
                segment(s1.0, p, 2, 6),
            ]
            .iter()
            .map(Message::encode_to_vec)
            .collect(),
        ),
        (
            Key::Segment(c, p, s2),
            [segment(s2.0, p, 2, 2), segment(s2.0, p, 2, 6)]
                .iter()
                .map(Message::encode_to_vec)
                .collect(),
        ),
        (
            Key::Segment(c, all, l0),
            [segment(l0.0, all, 1, 4), segment(l0.0, all, 1, 6)]
                .iter()
                .map(Message::encode_to_vec)
                .collect(),
        ),
        (
            Key::Log(LogKind::Insert, c, p, s1, FieldId(100)),
            vec![log.encode_to_vec()],
        ),
        (
            Key::Log(LogKind::Stats, c, p, s1, FieldId(100)),
            vec![log.encode_to_vec()],
        ),
        (
            Key::Log(LogKind::Delta, c, all, l0, FieldId(0)),
            vec![log.encode_to_vec()],
        ),
        (
            Key::SegmentIndex(c, p, s1, BuildId(6_000 + n)),
            vec![build(false).encode_to_vec(), build(true).encode_to_vec()],
        ),
        (
            Key::FieldIndex(c, IndexId(5_000 + n)),
            vec![index(false).encode_to_vec(), index(true).encode_to_vec()],
        ),
        (
            Key::Snapshot(c, SnapshotId(8_000 + n)),
            vec![
                pb::data::SnapshotInfo {
                    id: 8_000 + n,
                    collection_id: c.0,
                    name: "s".into(),
                    state: 2,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        (
            Key::StatsTask(TaskId(4_000 + n)),
            vec![
                pb::index::StatsTask {
                    collection_id: c.0,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        (
            Key::CopySegmentJob(JobId(3_000 + n)),
            vec![
                pb::data::CopySegmentJob {
                    collection_id: c.0,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
        (
            Key::BroadcastTask(n.cast_unsigned() + 1),
            vec![
                pb::streaming::BroadcastTask {
                    state: 1,
                    ..Default::default()
                }
                .encode_to_vec(),
                pb::streaming::BroadcastTask {
                    state: 5,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ),
    ];
    for channel in &channels {
        let pchannel = channel.0.rsplit_once('_').expect("a vchannel").0.to_owned();
        out.push((
            Key::ChannelCheckpoint(channel.clone()),
            vec![
                cp(470_000_000_000_000_000).encode_to_vec(),
                cp(u64::MAX).encode_to_vec(),
            ],
        ));
        out.push((
            Key::ChannelRemoval(channel.clone()),
            vec![b"non-removed".to_vec(), b"removed".to_vec()],
        ));
        out.push((
            Key::ChannelWatch(NodeId(3), channel.clone()),
            vec![pb::data::ChannelWatchInfo::default().encode_to_vec()],
        ));
        out.push((
            Key::WalVChannel(pchannel, channel.clone()),
            vec![
                pb::streaming::VChannelMeta {
                    vchannel: channel.0.clone(),
                    state: 1,
                    ..Default::default()
                }
                .encode_to_vec(),
            ],
        ));
    }
    out
}

/// A number that depends on nothing but the seed and what came before.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n.max(1) as u64).expect("below n")
    }
}

fn put(key: &MetaKey, value: Vec<u8>, rev: MetaRev) -> Event {
    Event::Put(KeyValue {
        key: key.clone(),
        value: Bytes::from(value),
        create_rev: rev,
        mod_rev: rev,
        version: 1,
        lease: 0,
    })
}

/// Collections that some key names and none records, by the keys alone.
fn unrecorded(now: &BTreeMap<MetaKey, (Key, Vec<u8>)>) -> BTreeSet<CollectionId> {
    let live = || {
        now.values()
            .filter(|(_, value)| value.as_slice() != TOMBSTONE)
    };
    let recorded: BTreeSet<CollectionId> = live()
        .filter_map(|(key, _)| match key {
            Key::Collection(_, c) => Some(*c),
            _ => None,
        })
        .collect();
    let named = live().filter_map(|(key, _)| match key {
        Key::Segment(c, ..)
        | Key::SegmentIndex(c, ..)
        | Key::FieldIndex(c, _)
        | Key::Partition(c, _)
        | Key::CollectionLoad(c) => Some(*c),
        Key::ChannelCheckpoint(v)
        | Key::ChannelRemoval(v)
        | Key::ChannelWatch(_, v)
        | Key::WalVChannel(_, v) => falconer::engine::format::vchannel::collection(v),
        _ => None,
    });
    named.filter(|c| !recorded.contains(c)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Collections are made, changed, dropped and collected, interleaved in any order of keys, some dropped by RootCoord's tombstone
    /// first; some values are damaged for a while. At every moment the catalog agrees with itself and with a catalog of the keys that
    /// are there; at the end it is what it was.
    #[test]
    fn nothing_is_left_of_what_was_dropped(seed in 1..u64::MAX, collections in 1..5_i64, batch in 1..40_usize) {
        let roots = Roots::default();
        let base = from_scratch(&keyspace());
        let mut catalog = base.clone();
        let mut dice = Dice(seed);
        let mut scripts: Vec<(Key, Vec<Option<Vec<u8>>>)> = Vec::new();
        for n in 0..collections {
            for (key, values) in life(n) {
                let mut script: Vec<Option<Vec<u8>>> = values.into_iter().map(Some).collect();
                if dice.below(4) == 0 {
                    script.insert(dice.below(script.len() + 1), Some(b"\x0a\xff".to_vec()));
                }
                if key.family().has_tombstones() && dice.below(2) == 0 {
                    script.push(Some(TOMBSTONE.to_vec()));
                }
                script.push(None);
                scripts.push((key, script));
            }
        }
        let mut order: Vec<usize> = scripts.iter().enumerate().flat_map(|(i, s)| vec![i; s.1.len()]).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, dice.below(i + 1));
        }
        let mut taken = vec![0; scripts.len()];
        let mut now: BTreeMap<MetaKey, (Key, Vec<u8>)> = BTreeMap::new();
        let mut rev = base.rev;
        for part in order.chunks(batch) {
            let mut events = Vec::new();
            for i in part {
                rev = MetaRev(rev.0 + 1);
                let (key, script) = &scripts[*i];
                let raw = key.to_key(&roots);
                if let Some(value) = &script[taken[*i]] {
                    events.push(put(&raw, value.clone(), rev));
                    now.insert(raw, (key.clone(), value.clone()));
                } else {
                    events.push(Event::Delete(raw.clone(), rev));
                    now.remove(&raw);
                }
                taken[*i] += 1;
            }
            catalog.apply(&roots, &events);
            prop_assert_eq!(catalog.integrity(), Vec::<String>::new());
            let damaged = now.values().any(|(_, value)| value.starts_with(b"\x0a\xff"));
            if !damaged {
                let mine: BTreeSet<_> = catalog.without_record().into_iter().filter(|c| c.0 >= 7_000_000).collect();
                prop_assert_eq!(mine, unrecorded(&now));
            }
        }
        prop_assert!(now.is_empty());
        catalog.rev = base.rev;
        prop_assert!(catalog == base, "{:?}", differences(&catalog, &base));
    }
}

/// What of two catalogs differs, by size: a whole catalog is too much to print.
fn differences(a: &Catalog, b: &Catalog) -> Vec<String> {
    let sizes = |c: &Catalog| {
        [
            ("keys", c.keys.len()),
            ("undecodable", c.undecodable.len()),
            ("collections", c.collections.len()),
            ("partitions", c.partitions.len()),
            ("aliases", c.aliases.len()),
            ("segments", c.segment_count()),
            ("headless", c.headless_segments()),
            ("channels", c.channels.len()),
            ("indexes", c.indexes.len()),
            ("builds", c.builds.len()),
            ("snapshots", c.snapshots.len()),
            ("tasks", c.tasks.len()),
            ("broadcasts", c.broadcasts.len()),
            ("loads", c.loads.len()),
            ("replicas", c.replicas.len()),
            (
                "sums",
                c.sums.collections.len()
                    + c.sums.partitions.len()
                    + c.sums.channels.len()
                    + c.sums.indexes.len(),
            ),
        ]
    };
    let pairs = sizes(a).into_iter().zip(sizes(b));
    pairs
        .filter(|(a, b)| a != b)
        .map(|(a, b)| format!("{a:?} against {b:?}"))
        .collect()
}

#[test]
fn the_captured_cluster_agrees_with_itself() {
    assert_eq!(from_scratch(&keyspace()).integrity(), Vec::<String>::new());
}
