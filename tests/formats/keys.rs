//! Keys in both directions.

use std::collections::BTreeMap;

use falconer::engine::format::keys::{
    Family, Key, Leftover, LogKind, ParsedKey, Role, Roots, Shape, WoodpeckerRoot, normalise_config,
};
use falconer::engine::format::vchannel::{self, ChannelName};
use falconer::engine::ids::{CollectionId, MetaKey, NodeId, Tso, VChannel};
use proptest::prelude::*;

use super::lab;

#[test]
fn every_lab_key_is_known_and_goes_back_to_its_bytes() {
    let roots = Roots::default();
    let mut seen: BTreeMap<Family, usize> = BTreeMap::new();
    for (key, entry) in lab::known() {
        assert_eq!(key.to_bytes(&roots), entry.key);
        let family = key.family();
        *seen.entry(family).or_default() += 1;
        let raw = MetaKey(entry.key.clone().into());
        match family.shape() {
            Shape::Single => assert_eq!(family.single(&roots), Some(raw)),
            Shape::Tree => assert!(
                family.prefix(&roots).holds(&raw),
                "{family:?} does not hold {raw}"
            ),
        }
    }
    assert_eq!(seen[&Family::Binlog], 917);
    assert_eq!(seen[&Family::Segment], 120);
    assert_eq!(seen[&Family::SegmentIndex], 145);
    assert_eq!(seen[&Family::Collection], 9);
    assert_eq!(seen[&Family::TimestampedCopy], 100);
    assert_eq!(seen[&Family::Session], 8);
    assert_eq!(seen[&Family::SessionNextId], 1);
    assert_eq!(seen[&Family::Grantee], 4);
    assert_eq!(seen.values().sum::<usize>(), 1710);
}

/// One literal key per shape, from `spec/layout.md`; a slip in a path constant cannot hide behind a round trip.
#[test]
fn literal_keys_parse_to_what_the_layout_says() {
    let roots = Roots::default();
    let c = CollectionId(7);
    let expect: Vec<(&str, Key)> = vec![
        ("by-dev/kv/gid/idTimestamp", Key::IdAllocator),
        ("by-dev/kv/gid/timestamp", Key::TsoAllocator),
        (
            "by-dev/kv/querycoord-id-allocator/idTimestamp",
            Key::QueryIdAllocator,
        ),
        ("by-dev/config/mqtype", Key::Config("mqtype".into())),
        (
            "by-dev/config/minio/bucketName",
            Key::Config("minio/bucketName".into()),
        ),
        (
            "by-dev/woodpecker/a/b",
            Key::Woodpecker(WoodpeckerRoot::UnderRoot, "a/b".into()),
        ),
        (
            "by-dev/wp/a",
            Key::Woodpecker(WoodpeckerRoot::Wp, "a".into()),
        ),
        (
            "woodpecker/a",
            Key::Woodpecker(WoodpeckerRoot::TopLevel, "a".into()),
        ),
        ("by-dev/meta/session/id", Key::SessionNextId),
        ("by-dev/meta/session/version", Key::SessionVersion),
        (
            "by-dev/meta/session/mixcoord",
            Key::Session(Role::MixCoord, None),
        ),
        (
            "by-dev/meta/session/mixcoord-12",
            Key::Session(Role::MixCoord, Some(NodeId(12))),
        ),
        (
            "by-dev/meta/session/querynode-3",
            Key::Session(Role::QueryNode, Some(NodeId(3))),
        ),
        (
            "by-dev/meta/session/new-role",
            Key::Session(Role::Other("new-role".into()), None),
        ),
        (
            "by-dev/meta/root-coord/database/db-info/1",
            Key::Database(1.into()),
        ),
        (
            "by-dev/meta/root-coord/database/collection-info/1/7",
            Key::Collection(1.into(), c),
        ),
        (
            "by-dev/meta/root-coord/collection/7",
            Key::LegacyCollection(c),
        ),
        (
            "by-dev/meta/root-coord/partitions/7/8",
            Key::Partition(c, 8.into()),
        ),
        ("by-dev/meta/root-coord/fields/7/0", Key::Field(c, 0.into())),
        (
            "by-dev/meta/root-coord/struct-array-fields/7/102",
            Key::StructField(c, 102.into()),
        ),
        (
            "by-dev/meta/root-coord/functions/7/103",
            Key::Function(c, 103.into()),
        ),
        (
            "by-dev/meta/root-coord/database/aliases/1/live",
            Key::Alias(1.into(), "live".into()),
        ),
        (
            "by-dev/meta/root-coord/aliases/live",
            Key::LegacyAlias("live".into()),
        ),
        (
            "by-dev/meta/root-coord/collection-alias/live",
            Key::OldestAlias("live".into()),
        ),
        (
            "by-dev/meta/root-coord/credential/users/root",
            Key::User("root".into()),
        ),
        (
            "by-dev/meta/root-coord/credential/roles/ro",
            Key::UserRole("ro".into()),
        ),
        (
            "by-dev/meta/root-coord/credential/user-role-mapping/a/ro",
            Key::RoleOfUser("a".into(), "ro".into()),
        ),
        (
            "by-dev/meta/root-coord/credential/grantee-privileges/ro/Collection/default.*",
            Key::Grantee {
                role: "ro".into(),
                object_type: "Collection".into(),
                object: "default.*".into(),
            },
        ),
        (
            "by-dev/meta/root-coord/credential/grantee-id/15fa/PrivilegeSearch",
            Key::GranteePrivilege("15fa".into(), "PrivilegeSearch".into()),
        ),
        (
            "by-dev/meta/root-coord/privilege-group/g",
            Key::PrivilegeGroup("g".into()),
        ),
        (
            "by-dev/meta/root-coord/file_resource_info/5",
            Key::RootFileResource(5),
        ),
        (
            "by-dev/meta/root-coord/file_resource_version",
            Key::RootFileResourceVersion,
        ),
        (
            "by-dev/meta/snapshots/root-coord/database/aliases/1/a_ts1_ts45",
            Key::TimestampedCopy(Box::new(Key::Alias(1.into(), "a_ts1".into())), Tso(45)),
        ),
        (
            "by-dev/meta/datacoord-meta/s/7/8/9",
            Key::Segment(c, 8.into(), 9.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/s/7/-1/9",
            Key::Segment(c, (-1).into(), 9.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/binlog/7/8/9/0",
            Key::Log(LogKind::Insert, c, 8.into(), 9.into(), 0.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/statslog/7/8/9/100",
            Key::Log(LogKind::Stats, c, 8.into(), 9.into(), 100.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/deltalog/7/8/9/0",
            Key::Log(LogKind::Delta, c, 8.into(), 9.into(), 0.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/bm25log/7/8/9/102",
            Key::Log(LogKind::Bm25, c, 8.into(), 9.into(), 102.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/channel-cp/p_0_7v0",
            Key::ChannelCheckpoint("p_0_7v0".into()),
        ),
        (
            "by-dev/meta/datacoord-meta/channel-removal/p_0_7v0",
            Key::ChannelRemoval("p_0_7v0".into()),
        ),
        (
            "by-dev/meta/channelwatch/-9223372036854775808/p_0_7v0",
            Key::ChannelWatch(NodeId(i64::MIN), "p_0_7v0".into()),
        ),
        (
            "by-dev/meta/datacoord-meta/import-job/5",
            Key::ImportJob(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/preimport-task/5",
            Key::PreImportTask(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/import-task/5",
            Key::ImportTask(5.into()),
        ),
        ("by-dev/meta/importtask/5", Key::LegacyImportTask(5.into())),
        (
            "by-dev/meta/datacoord-meta/compaction-task/MixCompaction/3/4",
            Key::CompactionTask {
                type_name: "MixCompaction".into(),
                trigger: 3,
                plan: 4.into(),
            },
        ),
        (
            "by-dev/meta/datacoord-meta/compaction-target/5",
            Key::CompactionTarget(5),
        ),
        (
            "by-dev/meta/datacoord-meta/analyze-task/5",
            Key::AnalyzeTask(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/stats-task/5",
            Key::StatsTask(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/partition-stats/7/8/p_0_7v0/33",
            Key::PartitionStats(c, 8.into(), "p_0_7v0".into(), 33),
        ),
        (
            "by-dev/meta/datacoord-meta/current-partition-stats-version/7/8/p_0_7v0",
            Key::PartitionStatsVersion(c, 8.into(), "p_0_7v0".into()),
        ),
        (
            "by-dev/meta/datacoord-meta/file_resource/5",
            Key::FileResource(5),
        ),
        (
            "by-dev/meta/datacoord-meta/file_resource_info/5",
            Key::FileResourceInfo(5),
        ),
        (
            "by-dev/meta/datacoord-meta/file_resource_version",
            Key::FileResourceVersion,
        ),
        (
            "by-dev/meta/datacoord-meta/snapshot/7/5",
            Key::Snapshot(c, 5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/copy-segment-job/5",
            Key::CopySegmentJob(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/copy-segment-task/5",
            Key::CopySegmentTask(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/external-collection-refresh-job/5",
            Key::RefreshJob(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/external-collection-refresh-task/5",
            Key::RefreshTask(5.into()),
        ),
        (
            "by-dev/meta/datacoord-meta/export-snapshot-job/5",
            Key::ExportSnapshotJob(5.into()),
        ),
        ("by-dev/meta/field-index/7/5", Key::FieldIndex(c, 5.into())),
        (
            "by-dev/meta/segment-index/7/8/9/5",
            Key::SegmentIndex(c, 8.into(), 9.into(), 5.into()),
        ),
        (
            "by-dev/meta/querycoord-collection-loadinfo/7",
            Key::CollectionLoad(c),
        ),
        (
            "by-dev/meta/querycoord-partition-loadinfo/7/8",
            Key::PartitionLoad(c, 8.into()),
        ),
        (
            "by-dev/meta/querycoord-replica/7/5",
            Key::Replica(c, 5.into()),
        ),
        (
            "by-dev/meta/queryCoord-ResourceGroup/rg",
            Key::ResourceGroup("rg".into()),
        ),
        (
            "by-dev/meta/queryCoord-Collection-Target/7",
            Key::CollectionTarget(c),
        ),
        (
            "by-dev/meta/queryCoord-ReplicaMeta/5",
            Key::LegacyReplica("5".into()),
        ),
        (
            "by-dev/meta/streamingcoord-meta/version",
            Key::StreamingVersion(false),
        ),
        (
            "by-dev/meta/streamingcoord-meta/version/",
            Key::StreamingVersion(true),
        ),
        (
            "by-dev/meta/streamingcoord-meta/cchannel",
            Key::ControlChannel(false),
        ),
        (
            "by-dev/meta/streamingcoord-meta/cchannel/",
            Key::ControlChannel(true),
        ),
        (
            "by-dev/meta/streamingcoord-meta/pchannel/p_0",
            Key::PChannel("p_0".into()),
        ),
        (
            "by-dev/meta/streamingcoord-meta/broadcast-task/18446744073709551615",
            Key::BroadcastTask(u64::MAX),
        ),
        (
            "by-dev/meta/streamingcoord-meta/replicate-configuration",
            Key::ReplicateConfiguration,
        ),
        (
            "by-dev/meta/streamingcoord-meta/replicating-pchannel/a-b-p_0",
            Key::ReplicatingPChannel("a-b-p_0".into()),
        ),
        (
            "by-dev/meta/streamingnode-meta/wal/p_0/consume-checkpoint",
            Key::WalCheckpoint("p_0".into()),
        ),
        (
            "by-dev/meta/streamingnode-meta/wal/p_0/vchannel/p_0_7v0",
            Key::WalVChannel("p_0".into(), "p_0_7v0".into()),
        ),
        (
            "by-dev/meta/streamingnode-meta/wal/p_0/vchannel/p_0_7v0/schema/99",
            Key::WalSchema("p_0".into(), "p_0_7v0".into(), Tso(99)),
        ),
        (
            "by-dev/meta/streamingnode-meta/wal/p_0/segment-assign/9",
            Key::WalSegment("p_0".into(), 9.into()),
        ),
        (
            "by-dev/meta/streamingnode-meta/wal/p_0/salvage-checkpoint/src",
            Key::SalvageCheckpoint("p_0".into(), "src".into()),
        ),
        (
            "by-dev/meta/flushed-segment/1/2",
            Key::Leftover(Leftover::FlushedSegment, "1/2".into()),
        ),
        (
            "by-dev/meta/datacoord-meta/global-segment-expire/x",
            Key::Leftover(Leftover::GlobalSegmentExpire, "x".into()),
        ),
    ];
    let mut families = std::collections::BTreeSet::new();
    for (text, key) in expect {
        assert_eq!(
            Key::parse(&roots, text.as_bytes()),
            ParsedKey::Known(key.clone()),
            "{text}"
        );
        assert_eq!(key.to_bytes(&roots), text.as_bytes());
        families.insert(key.family());
    }
    let missing: Vec<_> = Family::ALL
        .iter()
        .filter(|f| !families.contains(f))
        .collect();
    assert!(
        missing.is_empty(),
        "families without a literal key: {missing:?}"
    );
}

#[test]
fn what_milvus_never_writes_is_unknown() {
    let roots = Roots::default();
    for text in [
        "",
        "by-dev",
        "by-dev/",
        "by-dev/meta",
        "by-dev/meta/",
        "other/meta/datacoord-meta/s/1/2/3",
        "by-devX/meta/datacoord-meta/s/1/2/3",
        "by-dev/meta/datacoord-meta/s/1/2",
        "by-dev/meta/datacoord-meta/s/1/2/3/",
        "by-dev/meta/datacoord-meta/s/1/2/3/4",
        "by-dev/meta/datacoord-meta/s/01/2/3",
        "by-dev/meta/datacoord-meta/s/+1/2/3",
        "by-dev/meta/datacoord-meta/s/-0/2/3",
        "by-dev/meta/datacoord-meta/s//2/3",
        "by-dev/meta/datacoord-meta/s/1/2/99999999999999999999",
        "by-dev/meta/datacoord-meta/snapshots/1/2",
        "by-dev/meta/root-coord/database/alias/1/a",
        "by-dev/meta/snapshots/root-coord/fields/1/2",
        "by-dev/meta/snapshots/datacoord-meta/s/1/2/3_ts4",
        "by-dev/meta/session/",
        "by-dev/meta/streamingnode-meta/wal/p/vchannel/v/",
        "by-dev/meta/streamingnode-meta/wal/p/vchannel/v/schema",
        "by-dev/meta/streamingcoord-meta/version//",
        "by-dev/kv/gid/other",
        "falconer/by-dev/journal/1",
    ] {
        assert_eq!(
            Key::parse(&roots, text.as_bytes()),
            ParsedKey::Unknown,
            "{text}"
        );
    }
    assert_eq!(
        Key::parse(&roots, b"by-dev/meta/session/\xff"),
        ParsedKey::Unknown
    );
}

#[test]
fn prefixes_end_in_a_slash_and_siblings_do_not_collide() {
    let roots = Roots::default();
    for family in Family::ALL {
        assert!(family.prefix(&roots).bytes().ends_with(b"/"), "{family:?}");
        assert!(!family.path().ends_with('/') && !family.title().is_empty());
    }
    let segments = Family::Segment.prefix(&roots);
    assert_eq!(segments.to_string(), "by-dev/meta/datacoord-meta/s/");
    let snapshot = Key::Snapshot(1.into(), 2.into()).to_key(&roots);
    assert!(!segments.holds(&snapshot));
    let fields = Family::Field.under(&roots, &[12]);
    assert!(!fields.holds(&Key::Field(123.into(), 1.into()).to_key(&roots)));
    assert!(fields.holds(&Key::Field(12.into(), 1.into()).to_key(&roots)));
}

#[test]
fn only_the_five_coordinators_count_for_the_fence() {
    let names = [
        "rootcoord",
        "datacoord",
        "indexcoord",
        "querycoord",
        "mixcoord",
    ];
    for name in names {
        assert!(Role::of(name).is_coordinator());
        assert_eq!(Role::of(name).name(), name);
    }
    for name in [
        "proxy",
        "querynode",
        "datanode",
        "indexnode",
        "streamingnode",
        "cdc",
        "streamingcoord",
    ] {
        assert!(!Role::of(name).is_coordinator());
    }
}

#[test]
fn channel_names_split_at_the_last_possible_place() {
    let shard = |p, c, s| ChannelName::Shard {
        pchannel: p,
        collection: CollectionId(c),
        shard: s,
    };
    assert_eq!(
        ChannelName::parse("by-dev-rootcoord-dml_0_7v1"),
        shard("by-dev-rootcoord-dml_0", 7, 1)
    );
    assert_eq!(ChannelName::parse("a_1v2_3v4"), shard("a_1v2", 3, 4));
    assert_eq!(
        ChannelName::parse("by-dev-_0_470660334431502351v0"),
        shard("by-dev-_0", 470_660_334_431_502_351, 0)
    );
    assert_eq!(
        ChannelName::parse("p_0_vcchan"),
        ChannelName::Control { pchannel: "p_0" }
    );
    for plain in [
        "by-dev-rootcoord-dml_0",
        "x",
        "",
        "a_v1",
        "a_1v",
        "a_1vx",
        "a_-1v0",
    ] {
        assert_eq!(ChannelName::parse(plain), ChannelName::Plain(plain));
    }
    for (key, _) in lab::known() {
        if let Key::ChannelCheckpoint(v) = key {
            let ChannelName::Shard {
                pchannel,
                collection,
                shard,
            } = ChannelName::parse(&v.0)
            else {
                panic!("{v}")
            };
            assert_eq!(vchannel::compose(pchannel, collection, shard), v);
            assert_eq!(vchannel::collection(&v), Some(collection));
        }
    }
    assert_eq!(vchannel::control("p_0"), VChannel::from("p_0_vcchan"));
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_.*$-]{1,20}"
}

fn key() -> impl Strategy<Value = Key> {
    let id = any::<i64>;
    let root_coord = prop_oneof![
        id().prop_map(|a| Key::Database(a.into())),
        (id(), id()).prop_map(|(a, b)| Key::Collection(a.into(), b.into())),
        (id(), id()).prop_map(|(a, b)| Key::Field(a.into(), b.into())),
        (id(), name()).prop_map(|(a, n)| Key::Alias(a.into(), n)),
        (name(), name(), name()).prop_map(|(role, object_type, object)| Key::Grantee {
            role,
            object_type,
            object
        }),
    ];
    let copies = (root_coord.clone(), any::<u64>())
        .prop_map(|(k, ts)| Key::TimestampedCopy(Box::new(k), Tso(ts)));
    let kind = prop_oneof![
        Just(LogKind::Insert),
        Just(LogKind::Stats),
        Just(LogKind::Delta),
        Just(LogKind::Bm25)
    ];
    let channel = || name().prop_map(VChannel);
    prop_oneof![
        root_coord,
        copies,
        (kind, id(), id(), id(), id()).prop_map(|(k, a, b, c, d)| Key::Log(
            k,
            a.into(),
            b.into(),
            c.into(),
            d.into()
        )),
        (id(), id(), id()).prop_map(|(a, b, c)| Key::Segment(a.into(), b.into(), c.into())),
        (id(), id(), id(), id()).prop_map(|(a, b, c, d)| Key::SegmentIndex(
            a.into(),
            b.into(),
            c.into(),
            d.into()
        )),
        (name(), id(), id()).prop_map(|(type_name, trigger, plan)| Key::CompactionTask {
            type_name,
            trigger,
            plan: plan.into()
        }),
        (id(), id(), channel(), id()).prop_map(|(a, b, v, n)| Key::PartitionStats(
            a.into(),
            b.into(),
            v,
            n
        )),
        (id(), channel()).prop_map(|(n, v)| Key::ChannelWatch(n.into(), v)),
        (name(), channel(), any::<u64>()).prop_map(|(p, v, t)| Key::WalSchema(p, v, Tso(t))),
        ("[a-z]{1,9}", proptest::option::of(0..i64::MAX))
            .prop_filter("taken by other keys", |(r, id)| id.is_some()
                || (r != "id" && r != "version"))
            .prop_map(|(r, id)| Key::Session(Role::of(&r), id.map(NodeId))),
        any::<u64>().prop_map(Key::BroadcastTask),
        "[a-zA-Z0-9/._-]{1,30}".prop_map(Key::Config),
    ]
}

proptest! {
    #[test]
    fn any_key_survives_the_round_trip(
        key in key(), root in "[a-z-]{1,8}(/[a-z]{1,4})?", meta in "[a-z]{1,6}", kv in "[a-z]{1,6}x"
    ) {
        let roots = Roots { root, meta, kv };
        let bytes = key.to_bytes(&roots);
        prop_assert_eq!(Key::parse(&roots, &bytes), ParsedKey::Known(key));
    }

    #[test]
    fn a_parsed_key_is_written_back_as_it_was(tail in "[a-z0-9/_-]{0,40}") {
        let roots = Roots::default();
        for head in ["by-dev/meta/datacoord-meta/", "by-dev/meta/root-coord/", "by-dev/meta/session/", "by-dev/"] {
            let text = format!("{head}{tail}");
            if let ParsedKey::Known(key) = Key::parse(&roots, text.as_bytes()) {
                prop_assert_eq!(key.to_bytes(&roots), text.into_bytes());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = Key::parse(&Roots::default(), &bytes);
    }
}

#[test]
fn configuration_spellings_meet() {
    for spelling in [
        "minio.bucketName",
        "minio/bucketName",
        "MINIO_BUCKET_NAME",
        "milvus.minio.bucketname",
    ] {
        assert_eq!(normalise_config(spelling), "miniobucketname");
    }
}

/// The table in `docs/formats.md` is the table in the code.
#[test]
fn the_documented_families_are_the_real_ones() {
    let docs =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md")).unwrap();
    let rows: Vec<&str> = docs
        .lines()
        .filter(|l| l.starts_with("| `") && l.matches(" | ").count() == 2)
        .collect();
    let expected: Vec<String> = Family::ALL.iter().map(|f| row(*f)).collect();
    assert_eq!(rows, expected, "\n{}\n", expected.join("\n"));
}

fn row(family: Family) -> String {
    use falconer::engine::format::codec::Codec;
    use falconer::engine::format::keys::Area;
    let root = match family.area() {
        Area::Meta => "M/",
        Area::Kv => "K/",
        Area::Root => "R/",
    };
    let slash = if family.shape() == Shape::Tree {
        "/"
    } else {
        ""
    };
    let codec = match family.codec() {
        Codec::Proto(name) => name.trim_start_matches("milvus.proto.").to_owned(),
        Codec::ZstdProto(name) => format!("zstd of {}", name.trim_start_matches("milvus.proto.")),
        Codec::Json => "JSON".to_owned(),
        Codec::Text => "text".to_owned(),
        Codec::Decimal => "decimal text".to_owned(),
        Codec::BigEndianNanos => "8 bytes big-endian, Unix ns".to_owned(),
        Codec::Empty => "empty".to_owned(),
        Codec::Opaque if family == Family::TimestampedCopy => {
            "as the copied key, or a tombstone".to_owned()
        }
        Codec::Opaque => "not described".to_owned(),
    };
    format!(
        "| `{root}{}{slash}` | {} | {codec} |",
        family.path(),
        family.title()
    )
}

/// A catalog of 100,000s of segments holds a key for each of their logs.
#[test]
fn a_key_stays_small() {
    assert!(size_of::<Key>() <= 72, "{} bytes", size_of::<Key>());
}
