//! DDL effects over the captured cluster's own records: applied in part, computed anew and applied again, they end in the same records;
//! what they leave is what the rules say; and no member that this version does not know is lost.

#[path = "ddl/life.rs"]
mod life;
#[path = "ddl/run.rs"]
mod run;
#[path = "ddl/servers.rs"]
mod servers;
mod support;
#[path = "ddl/sweep.rs"]
mod sweep;

use std::collections::BTreeMap;

use bytes::Bytes;
use falconer::engine::format::keys::{Key, Roots};
use falconer::engine::format::pb;
use falconer::engine::format::wire::{read_varint, records as wire_records};
use falconer::engine::ids::{
    CollectionId, DbId, IndexId, MetaKey, MetaRev, PartitionId, PartitionScope, SegmentId, Tso,
    UnixNs, VChannel,
};
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::ddl::{self, NewCollection, Record, Unreadable, Write};
use prost::Message;
use support::lab;

type Store = BTreeMap<MetaKey, Vec<u8>>;
type Effect<'a> = &'a dyn Fn(&[Record]) -> Result<Vec<Write>, Unreadable>;

const NOW: UnixNs = UnixNs(1_795_500_000_000_000_000);
/// A field number that no version of these messages has.
const STRANGE: [u8; 5] = [0xfa, 0x3e, 2, b'h', b'i'];

fn captured() -> Store {
    lab::etcd()
        .into_iter()
        .map(|entry| (MetaKey(Bytes::from(entry.key)), entry.value))
        .collect()
}

fn records(store: &Store) -> Vec<Record> {
    store
        .iter()
        .filter_map(|(key, value)| {
            let key = Key::parse(&Roots::default(), &key.0).known()?;
            Some((key, value.clone()))
        })
        .collect()
}

fn put(store: &mut Store, write: &Write) {
    match write {
        Write::Put(key, value) => {
            store.insert(key.to_key(&Roots::default()), value.clone());
        }
        Write::Delete(key) => {
            store.remove(&key.to_key(&Roots::default()));
        }
    }
}

/// Applies an effect in one go; then from every cut: the first part, a crash, the effect computed anew. All end alike, and once more
/// writes nothing.
fn applied(store: &Store, effect: Effect<'_>) -> Store {
    let writes = effect(&records(store)).expect("readable records");
    let mut whole = store.clone();
    for write in &writes {
        put(&mut whole, write);
    }
    assert_eq!(effect(&records(&whole)), Ok(Vec::new()), "again");
    for cut in 0..writes.len() {
        let mut crashed = store.clone();
        for write in &writes[..cut] {
            put(&mut crashed, write);
        }
        let rest = effect(&records(&crashed)).expect("readable records");
        for write in &rest {
            put(&mut crashed, write);
        }
        assert_eq!(crashed, whole, "after a crash behind write {cut}");
    }
    whole
}

fn catalog(store: &Store) -> Catalog {
    let mut catalog = Catalog::default();
    let events: Vec<Event> = store
        .iter()
        .zip(1..)
        .map(|((key, value), rev)| {
            Event::Put(KeyValue {
                key: key.clone(),
                value: Bytes::from(value.clone()),
                create_rev: MetaRev(rev),
                mod_rev: MetaRev(rev),
                version: 1,
                lease: 0,
            })
        })
        .collect();
    catalog.apply(&Roots::default(), &events);
    catalog
}

/// Of the collection with most segments: it has several partitions, channels, indexes and a load.
fn busiest(catalog: &Catalog) -> CollectionId {
    let ids = catalog.collections.keys();
    let most = ids.max_by_key(|id| catalog.segments_of(**id).count());
    *most.expect("a collection")
}

fn alive(catalog: &Catalog, collection: CollectionId) -> Vec<SegmentId> {
    catalog
        .segments_of(collection)
        .filter(|s| s.state.name != "Dropped")
        .map(|s| s.id)
        .collect()
}

#[test]
fn a_collection_is_dropped_to_the_last_record() {
    let before = captured();
    let was = catalog(&before);
    let id = busiest(&was);
    let channels: Vec<VChannel> = was.channels_of(id).map(|c| c.name.clone()).collect();
    assert!(channels.len() > 1 && !alive(&was, id).is_empty());
    let times: BTreeMap<SegmentId, Option<UnixNs>> =
        was.segments_of(id).map(|s| (s.id, s.dropped_at)).collect();

    let store = applied(&before, &|r| ddl::begin_drop(r, id));
    assert_eq!(catalog(&store).collections[&id].state.name, "Dropping");
    let mut store = store;
    for channel in &channels {
        store = applied(&store, &|r| ddl::drop_channel(r, channel, NOW));
    }
    let store = applied(&store, &|r| ddl::drop_collection(r, id));

    let now = catalog(&store);
    assert!(now.undecodable.is_empty(), "{:?}", now.undecodable);
    assert!(!now.collections.contains_key(&id));
    assert_eq!(now.partitions_of(id).count(), 0);
    assert!(!now.loads.contains_key(&id), "released");
    assert!(now.indexes_of(id).all(|index| index.deleted));
    assert!(alive(&now, id).is_empty());
    for segment in now.segments_of(id) {
        // Dropped long ago stays dropped long ago.
        let at = times[&segment.id].unwrap_or(NOW);
        assert_eq!(segment.dropped_at, Some(at), "{}", segment.id);
    }
    for channel in &channels {
        let row = &now.channels[channel];
        assert_eq!(row.checkpoint, Some(Tso::DROPPED));
        assert_eq!(row.mark.as_deref(), Some("removed"));
    }
    // Nothing of any other collection has moved.
    let name = id.to_string();
    let others = |store: &Store| -> Store {
        let other = |key: &MetaKey| !key.text().contains(&name);
        store
            .iter()
            .filter(|(key, _)| other(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    assert_eq!(others(&before), others(&store));
}

#[test]
fn a_late_channel_cannot_come_back() {
    let before = captured();
    let id = busiest(&catalog(&before));
    let channel = catalog(&before)
        .channels_of(id)
        .next()
        .expect("one")
        .name
        .clone();
    let store = applied(&before, &|r| ddl::drop_channel(r, &channel, NOW));
    // The creation is replayed: the mark and the sentinel stay (§2 rule 5).
    let new = NewCollection {
        db: DbId(1),
        id: CollectionId(4711),
        channels: vec![(channel.clone(), "p".into())],
        starts: BTreeMap::from([("p".to_owned(), vec![1, 2])]),
        created: Tso::from_ms(NOW.to_ms()),
        ..NewCollection::default()
    };
    let store = applied(&store, &|r| Ok(ddl::create_collection(r, &new)));
    let row = &catalog(&store).channels[&channel];
    assert_eq!(row.checkpoint, Some(Tso::DROPPED));
    assert_eq!(row.mark.as_deref(), Some("removed"));
}

#[test]
fn a_collection_is_created_whole_and_seen_last() {
    let field = |id, name: &str, data_type, primary| pb::schema::FieldSchema {
        field_id: id,
        name: name.into(),
        data_type,
        is_primary_key: primary,
        ..Default::default()
    };
    let new = NewCollection {
        db: DbId(1),
        id: CollectionId(4711),
        schema: pb::schema::CollectionSchema {
            name: "fresh".into(),
            fields: vec![
                field(0, "RowID", 5, false),
                field(1, "Timestamp", 5, false),
                field(100, "pk", 5, true),
                field(101, "vector", 101, false),
            ],
            ..Default::default()
        },
        partitions: BTreeMap::from([(PartitionId(4712), ddl::DEFAULT_PARTITION.to_owned())]),
        channels: vec![
            (
                "by-dev-rootcoord-dml_0_4711v0".into(),
                "by-dev-rootcoord-dml_0".into(),
            ),
            (
                "by-dev-rootcoord-dml_1_4711v1".into(),
                "by-dev-rootcoord-dml_1".into(),
            ),
        ],
        starts: BTreeMap::from([("by-dev-rootcoord-dml_0".to_owned(), vec![9])]),
        created: Tso::from_ms(NOW.to_ms()),
        ..NewCollection::default()
    };
    let writes = ddl::create_collection(&[], &new);
    assert!(matches!(
        writes.last().map(Write::key),
        Some(Key::Collection(..))
    ));
    let store = applied(&captured(), &|r| Ok(ddl::create_collection(r, &new)));
    let now = catalog(&store);
    let row = &now.collections[&CollectionId(4711)];
    assert!(row.damage.is_empty(), "{:?}", row.damage);
    assert_eq!(
        (row.fields.len(), row.shards, row.state.name),
        (4, 2, "Created")
    );
    assert_eq!(now.partitions_of(CollectionId(4711)).count(), 1);
    assert_eq!(now.channels_of(CollectionId(4711)).count(), 2);

    // A partition and an index more, and away again.
    let id = CollectionId(4711);
    let store = applied(&store, &|r| {
        Ok(ddl::create_partition(
            r,
            id,
            PartitionId(4713),
            "p1",
            new.created,
        ))
    });
    let info = pb::index::IndexInfo {
        collection_id: 4711,
        field_id: 101,
        index_id: 4714,
        index_name: "v".into(),
        ..Default::default()
    };
    let store = applied(&store, &|r| {
        Ok(ddl::create_index(r, info.clone(), new.created))
    });
    assert_eq!(catalog(&store).partitions_of(id).count(), 2);
    assert!(catalog(&store).indexes_of(id).all(|index| !index.deleted));
    let store = applied(&store, &|r| {
        ddl::drop_partition(r, id, PartitionId(4713), NOW)
    });
    let store = applied(&store, &|r| {
        ddl::drop_indexes(r, id, Some(&[IndexId(4714)]))
    });
    assert_eq!(catalog(&store).partitions_of(id).count(), 1);
    assert!(catalog(&store).indexes_of(id).all(|index| index.deleted));
}

/// Adds deletes of two scopes to a partition: for it alone, and for all.
fn with_deletes(store: &mut Store, id: CollectionId, partition: PartitionId, channel: &VChannel) {
    for (segment, scope) in [(91, partition), (92, PartitionScope::ALL.stored())] {
        let info = pb::data::SegmentInfo {
            id: segment,
            collection_id: id.0,
            partition_id: scope.0,
            insert_channel: channel.0.clone(),
            state: pb::common::SegmentState::Flushed as i32,
            level: pb::data::SegmentLevel::L0 as i32,
            dml_position: Some(pb::msg::MsgPosition {
                timestamp: 7,
                ..Default::default()
            }),
            ..Default::default()
        };
        let key = Key::Segment(id, scope, SegmentId(segment));
        put(store, &Write::Put(key, info.encode_to_vec()));
    }
}

#[test]
fn a_partition_goes_with_its_own_deletes() {
    let mut before = captured();
    let was = catalog(&before);
    let id = busiest(&was);
    let channel = was.channels_of(id).next().expect("one").name.clone();
    let of = |p: &PartitionId| {
        let mine = was.segments_of(id).filter(|s| s.partition == *p);
        mine.filter(|s| s.state.name == "Flushed").count()
    };
    let partitions = was.partitions_of(id).map(|p| p.id);
    let partition = partitions.max_by_key(of).expect("a partition");
    assert!(of(&partition) > 0);
    with_deletes(&mut before, id, partition, &channel);
    let store = applied(&before, &|r| ddl::drop_partition(r, id, partition, NOW));
    let now = catalog(&store);
    assert!(now.partitions_of(id).all(|p| p.id != partition));
    for segment in now.segments_of(id) {
        let mine = segment.partition == partition;
        let old = was
            .segment(segment.id)
            .is_some_and(|s| s.state.name == "Dropped");
        assert_eq!(
            segment.state.name == "Dropped",
            mine || old,
            "{}",
            segment.id
        );
    }
    assert_eq!(
        now.segment(SegmentId(92)).expect("L0 of all").state.name,
        "Flushed"
    );
    // −1 is no partition that could be dropped.
    assert_eq!(
        ddl::drop_partition(&records(&store), id, PartitionScope::ALL.stored(), NOW),
        Ok(Vec::new())
    );
}

#[test]
fn a_truncate_takes_what_is_not_after_its_tick() {
    let before = captured();
    let was = catalog(&before);
    let id = busiest(&was);
    let begun = applied(&before, &|r| ddl::begin_truncate(r, id));
    let flag = |store: &Store| {
        let all = catalog(store).collections[&id].properties.clone();
        all.into_iter().find(|(name, _)| name == ddl::TRUNCATING)
    };
    assert_eq!(flag(&begun).map(|(_, value)| value).as_deref(), Some("1"));

    // One channel's tick is in the middle of its segments, the other's is unknown.
    let channels: Vec<VChannel> = was.collections[&id].vchannels.clone();
    let mut ends: Vec<Tso> = was
        .segments_on(&channels[0].0)
        .filter(|s| s.state.name != "Dropped")
        .map(|s| s.dml)
        .collect();
    ends.sort_unstable();
    let tick = ends[ends.len() / 2];
    let ticks = BTreeMap::from([
        (channels[0].clone(), tick),
        (channels[1].clone(), Tso::UNSET),
    ]);
    let store = applied(&begun, &|r| ddl::end_truncate(r, id, &ticks, NOW));
    assert_eq!(flag(&store), None);
    let now = catalog(&store);
    for segment in now.segments_of(id) {
        let old = was.segment(segment.id).expect("the same").state.name == "Dropped";
        let taken = *segment.channel == *channels[0].0 && segment.dml <= tick;
        assert_eq!(
            segment.state.name == "Dropped",
            old || taken,
            "{}",
            segment.id
        );
    }
    let kept = alive(&now, id).len();
    assert!(kept > 0 && kept < alive(&was, id).len());
    let key = records(&store)
        .into_iter()
        .find(|(key, _)| matches!(key, Key::Collection(_, c) if *c == id));
    let info = pb::etcd::CollectionInfo::decode(key.expect("it").1.as_slice()).expect("readable");
    let kept: Vec<u64> = info
        .shard_infos
        .iter()
        .map(|s| s.last_truncate_time_tick)
        .collect();
    assert_eq!(kept.len(), channels.len());
    assert_eq!(kept[..2], [tick.0, 0]);
    // A collection that is gone is truncated.
    assert_eq!(
        ddl::end_truncate(&records(&store), CollectionId(1), &ticks, NOW),
        Ok(Vec::new())
    );
}

/// Every value that is edited keeps a member that nobody knows.
#[test]
fn nothing_unknown_is_lost() {
    let mut before = captured();
    let was = catalog(&before);
    let id = busiest(&was);
    for (key, value) in &mut before {
        let key = Key::parse(&Roots::default(), &key.0).known();
        if let Some(Key::Segment(..) | Key::Collection(..) | Key::FieldIndex(..)) = key {
            value.extend(STRANGE);
        }
    }
    let strange = |value: &[u8]| {
        let (tag, _) = read_varint(&STRANGE).expect("a tag");
        wire_records(value).any(|record| record.is_ok_and(|r| u64::from(r.tag) == tag >> 3))
    };
    let channel = was.channels_of(id).next().expect("one").name.clone();
    let ticks = was.collections[&id].vchannels.iter();
    let ticks = ticks.map(|v| (v.clone(), Tso(u64::MAX - 1))).collect();
    let effects: [Effect<'_>; 5] = [
        &|r| ddl::begin_truncate(r, id),
        &|r| ddl::end_truncate(r, id, &ticks, NOW),
        &|r| ddl::begin_drop(r, id),
        &|r| ddl::drop_channel(r, &channel, NOW),
        &|r| ddl::drop_indexes(r, id, None),
    ];
    for (n, effect) in effects.iter().enumerate() {
        let mut edited = 0;
        for write in effect(&records(&before)).expect("readable records") {
            if let Write::Put(Key::Segment(..) | Key::Collection(..) | Key::FieldIndex(..), value) =
                &write
            {
                edited += 1;
                assert!(strange(value), "effect {n}: {write:?}");
            }
        }
        assert!(edited > 0, "effect {n} edits something");
    }
}

#[test]
fn a_record_that_cannot_be_read_is_not_written_over() {
    let mut store = captured();
    let id = busiest(&catalog(&store));
    let channel = catalog(&store)
        .channels_of(id)
        .next()
        .expect("one")
        .name
        .clone();
    let bad = store.iter_mut().find_map(|(key, value)| {
        let key = Key::parse(&Roots::default(), &key.0).known()?;
        matches!(&key, Key::Segment(c, ..) if *c == id).then(|| {
            *value = vec![0xff; 7];
            key
        })
    });
    let error = ddl::drop_channel(&records(&store), &channel, NOW).expect_err("unreadable");
    assert_eq!(Some(*error.key), bad);
}
