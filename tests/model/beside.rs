//! What stands beside rows: badges, columns of §D.3, left-overs, and the one meaning of partition −1 (`spec/lifecycle.md` §2 to §6, §11,
//! §12).

use std::collections::BTreeSet;

use falconer::engine::format::pb;
use falconer::engine::format::pb::streaming::{PChannelInfo, PChannelMeta, StreamingNodeInfo};
use falconer::engine::ids::{CollectionId, PartitionId, SegmentId, Tso};
use falconer::engine::model::badges;
use falconer::engine::model::health::{self, Rule, channels};
use falconer::engine::model::leftover::Leftover;
use falconer::engine::model::resource::{self, Cell, Kind, RowId, RowRef, Scope, Tone};
use falconer::engine::model::view::Rollback;
use prost::Message as _;

use super::broadcasts::{MINUTE, Scene, tick};
use super::every_row_answers;

fn names(scene: &Scene, id: &RowId) -> Vec<&'static str> {
    let view = scene.view();
    let row = resource::row(&view, id).expect("a row");
    badges::of(&view, row).iter().map(|b| b.name).collect()
}

fn cell(scene: &Scene, id: &RowId, column: &str) -> Cell {
    let at = id.kind().column(column).expect("a column");
    resource::cell(&scene.view(), id, at)
}

fn text(scene: &Scene, id: &RowId, column: &str) -> String {
    resource::text(&cell(scene, id, column)).into_owned()
}

fn rules(scene: &Scene, rule: Rule) -> Vec<String> {
    let all = health::faults(&scene.view()).into_iter();
    all.filter(|f| f.rule == rule).map(|f| f.reason).collect()
}

fn pchannel(scene: &mut Scene, channel: usize, state: i32, node: i64) {
    let name = scene.books.2[channel].0.clone();
    let name = name.rsplit_once('_').expect("a vchannel").0.to_owned();
    let meta = PChannelMeta {
        channel: Some(PChannelInfo {
            name: name.clone(),
            term: 4,
            ..PChannelInfo::default()
        }),
        node: Some(StreamingNodeInfo {
            server_id: node,
            address: String::new(),
        }),
        state,
        ..PChannelMeta::default()
    };
    scene.put(
        &format!("streamingcoord-meta/pchannel/{name}"),
        meta.encode_to_vec(),
    );
}

/// A segment of the collection on one of its channels.
fn segment(
    scene: &mut Scene,
    id: i64,
    partition: i64,
    change: impl FnOnce(&mut pb::data::SegmentInfo),
) -> RowId {
    let collection = scene.books.0;
    let mut info = pb::data::SegmentInfo {
        id,
        collection_id: collection.0,
        partition_id: partition,
        insert_channel: scene.books.2[0].0.clone(),
        num_of_rows: 7,
        state: 4,
        level: 2,
        ..Default::default()
    };
    change(&mut info);
    let key = format!("datacoord-meta/s/{collection}/{partition}/{id}");
    scene.put(&key, info.encode_to_vec());
    RowId::Segment(SegmentId(id))
}

fn l0(scene: &mut Scene, id: i64, partition: i64, before: i64) -> RowId {
    segment(scene, id, partition, |info| {
        info.level = 1;
        info.num_of_rows = 0;
        info.start_position = Some(pb::msg::MsgPosition {
            timestamp: tick(before),
            ..Default::default()
        });
    })
}

#[test]
fn who_has_a_channel_s_log_is_told_and_an_old_watch_key_is_no_owner() {
    let mut scene = Scene::new();
    let id = RowId::Channel(scene.books.2[0].0.clone());
    // In the captured 2.3 the watch key is how channels are owned.
    assert_eq!(names(&scene, &id), Vec::<&str>::new());
    assert!(text(&scene, &id, "owner").contains("WatchSuccess"));
    let node = scene
        .catalog
        .sessions
        .values()
        .find(|s| s.server.0 > 0)
        .expect("a session");
    let node = node.server.0;
    pchannel(&mut scene, 0, 3, node);
    assert_eq!(names(&scene, &id), ["LEGACY-WATCH-KEY"]);
    assert_eq!(text(&scene, &id, "owner"), format!("{node} term 4"));
    pchannel(&mut scene, 0, 2, node);
    assert_eq!(names(&scene, &id), ["LEGACY-WATCH-KEY", "REASSIGNING"]);
    pchannel(&mut scene, 0, 3, 991);
    assert_eq!(names(&scene, &id), ["NO-OWNER", "LEGACY-WATCH-KEY"]);
    assert!(
        matches!(cell(&scene, &id, "state"), Cell::State(t, Tone::Bad) if t.starts_with("NO-OWNER"))
    );
    assert!(rules(&scene, Rule::ChannelOwner)[0].contains("node 991, is not registered"));
    // A channel of which no record of ownership exists, in a cluster that has such records.
    let other = RowId::Channel(scene.books.2[1].0.clone());
    assert!(names(&scene, &other).contains(&"NO-OWNER"));
    // A dropped channel needs no owner, and its mark is no date.
    scene.checkpoint(0, u64::MAX);
    assert_eq!(names(&scene, &id), ["LEGACY-WATCH-KEY", "DROPPED"]);
    assert_eq!(text(&scene, &id, "checkpoint"), "DROPPED");
    for column in ["lag", "behind", "gap", "delete_cp"] {
        assert_eq!(cell(&scene, &id, column), Cell::None, "{column}");
    }
    every_row_answers(&scene.view());
}

#[test]
fn every_word_of_a_row_is_explained_and_known_to_the_help() {
    for kind in Kind::ALL {
        let mut seen = BTreeSet::new();
        for badge in badges::all(*kind) {
            assert!(seen.insert(badge.name), "{} twice", badge.name);
            assert!(badge.help.len() > 20 && !badge.help.contains('\n'));
        }
        assert!(
            badges::all(*kind).is_sorted_by(|a, b| a.tone >= b.tone),
            "worst first"
        );
    }
    let mut scene = Scene::new();
    scene.checkpoint(0, 0);
    scene.checkpoint(1, tick(-3 * 60 * MINUTE));
    for (i, word) in ["UNSET", "FUTURE"].into_iter().enumerate() {
        let id = RowId::Channel(scene.books.2[i].0.clone());
        assert_eq!(names(&scene, &id), [word]);
        let detail = format!("{:?}", resource::detail(&scene.view(), &id));
        let help = badges::all(Kind::Channels)
            .iter()
            .find(|b| b.name == word)
            .expect("in the table")
            .help;
        assert!(detail.contains(help), "{detail}");
    }
    for row in scene.catalog.channels.values() {
        let (state, _) = health::channel_state(&scene.view(), row);
        let known = badges::all(Kind::Channels).iter().any(|b| b.name == state);
        assert!(state == "ok" || known, "{state}");
    }
}

#[test]
fn deletes_that_wait_are_counted_and_the_delete_checkpoint_is_the_view_s() {
    let mut scene = Scene::new();
    let p = scene.partition();
    let id = RowId::Channel(scene.books.2[0].0.clone());
    scene.checkpoint(0, tick(MINUTE));
    let agree = |scene: &Scene| {
        let view = scene.view();
        let Some(RowRef::Channel(row)) = resource::row(&view, &id) else {
            panic!("a channel");
        };
        let whole = scene
            .catalog
            .channel_view(row, &BTreeSet::new(), Rollback::AsMilvus);
        let own = channels::delete_checkpoint(&view, row).unwrap_or(Tso::UNSET);
        assert_eq!(own, whole.delete_checkpoint);
        assert_eq!(channels::gap(&view, row), whole.gap());
        assert_eq!(
            scene.catalog.l0_on(&row.name.0).segments,
            whole.level_zero.len()
        );
    };
    agree(&scene);
    l0(&mut scene, 90_001, p.0, 20 * MINUTE);
    l0(&mut scene, 90_002, -1, 50 * MINUTE);
    agree(&scene);
    assert_eq!(cell(&scene, &id, "gap"), Cell::Age(49 * MINUTE as u64));
    assert_eq!(names(&scene, &id), ["DELETE-CP LAG"]);
    assert!(rules(&scene, Rule::DeletesPileUp)[0].ends_with("the oldest is 90002"));
    // Dropped, hidden and empty ones are not in the view.
    segment(&mut scene, 90_002, -1, |info| {
        info.level = 1;
        info.state = 6;
    });
    agree(&scene);
    assert_eq!(names(&scene, &id), Vec::<&str>::new());
    for i in 0..100 {
        l0(&mut scene, 91_000 + i, p.0, 5 * MINUTE);
    }
    agree(&scene);
    assert_eq!(names(&scene, &id), ["L0 PILE-UP"]);
    assert_eq!(cell(&scene, &id, "l0"), Cell::Count(101));
    assert_eq!(scene.catalog.integrity(), Vec::<String>::new());
}

#[test]
fn all_partitions_is_only_for_deletes_and_shown_with_every_partition() {
    let mut scene = Scene::new();
    let p = scene.partition();
    let all = l0(&mut scene, 90_001, -1, MINUTE);
    let own = l0(&mut scene, 90_002, p.0, MINUTE);
    let other = l0(&mut scene, 90_003, p.0 + 1, MINUTE);
    let bad = segment(&mut scene, 90_004, -1, |_| {});
    assert_eq!(text(&scene, &all, "partition"), "ALL");
    assert_eq!(
        cell(&scene, &bad, "partition"),
        Cell::State("-1?".into(), Tone::Bad)
    );
    assert_eq!(names(&scene, &bad), ["-1?"]);
    assert_eq!(rules(&scene, Rule::SegmentPartition).len(), 1);
    assert!(rules(&scene, Rule::SegmentPartition)[0].contains("90004"));
    let scope = |partition| Scope {
        collection: Some(scene.books.0),
        partition: Some(partition),
        ..Scope::default()
    };
    let listed = |p: PartitionId| -> BTreeSet<RowId> {
        resource::ids(&scene.view(), Kind::Segments, &scope(p))
            .into_iter()
            .collect()
    };
    // I12.4 by brute force over every partition of the collection.
    for partition in [p, PartitionId(p.0 + 1), PartitionId(-1), PartitionId(0)] {
        let expected: BTreeSet<RowId> = scene
            .catalog
            .segments_of(scene.books.0)
            .filter(|s| s.scope().is_some_and(|scope| scope.covers(partition)))
            .map(|s| RowId::Segment(s.id))
            .collect();
        assert_eq!(listed(partition), expected);
        assert!(expected.contains(&all) && !expected.contains(&bad));
    }
    assert!(listed(p).contains(&own) && !listed(p).contains(&other));
    // I12.3: mended, the finding goes.
    scene.delete(&format!("datacoord-meta/s/{}/-1/90004", scene.books.0));
    assert!(rules(&scene, Rule::SegmentPartition).is_empty());
    assert_eq!(scene.catalog.integrity(), Vec::<String>::new());
}

#[test]
fn segments_of_the_old_architecture_are_counted_where_channels_stream() {
    let mut scene = Scene::new();
    let p = scene.partition();
    let old = segment(&mut scene, 90_001, p.0, |info| info.state = 2);
    segment(&mut scene, 90_002, p.0, |info| {
        info.state = 2;
        info.is_created_by_streaming = true;
    });
    let before = badges::header(&scene.catalog, Kind::Segments, &Scope::default());
    assert_eq!(
        (before, names(&scene, &old)),
        (None, vec![]),
        "2.3 has no streaming nodes"
    );
    pchannel(&mut scene, 0, 3, 0);
    let growing = scene
        .catalog
        .segments()
        .filter(|s| matches!(s.state.number, 2 | 3) && !s.by_streaming);
    let n = growing.count();
    let header = badges::header(&scene.catalog, Kind::Segments, &Scope::default());
    assert_eq!(
        header,
        Some(format!("{n} legacy growing or sealed segments remain"))
    );
    assert_eq!(names(&scene, &old), ["OLD-ARCH"]);
    assert!(text(&scene, &old, "marks").starts_with("OLD-ARCH"));
    assert_eq!(rules(&scene, Rule::SegmentsOldArch).len(), 1);
    segment(&mut scene, 90_001, p.0, |info| info.state = 4);
    assert_eq!(names(&scene, &old), Vec::<&str>::new());
}

#[test]
fn a_truncate_is_shown_and_its_mark_alone_is_a_finding() {
    let mut scene = Scene::new();
    let id = RowId::Collection(scene.books.0);
    let row = scene
        .catalog
        .collections
        .get(&scene.books.0)
        .expect("a collection")
        .clone();
    let mut info = scene.collection_info();
    info.properties.push(pb::common::KeyValuePair {
        key: "collection.on.truncating".into(),
        value: "1".into(),
    });
    scene.put(
        &format!("root-coord/database/collection-info/{}/{}", row.db, row.id),
        info.encode_to_vec(),
    );
    assert_eq!(
        cell(&scene, &id, "state"),
        Cell::State("TRUNCATING".into(), Tone::Busy)
    );
    assert_eq!(rules(&scene, Rule::TruncateLeftover).len(), 1);
    let mut record = scene.drop_of(77, 1, true, &[0, 0, 0]);
    record.kind = 38;
    scene.broadcast(&record);
    assert!(rules(&scene, Rule::TruncateLeftover).is_empty());
}

#[test]
fn what_is_left_of_a_collection_without_a_record_is_a_row_that_says_so() {
    let mut scene = Scene::new();
    let before = resource::ids(&scene.view(), Kind::Collections, &Scope::default());
    assert_eq!(
        before.len(),
        scene.catalog.collections.len(),
        "{:?}",
        scene.catalog.without_record()
    );
    let gone = CollectionId(4_242);
    let id = RowId::Collection(gone);
    let channel = format!("by-dev-rootcoord-dml_0_{gone}v0");
    let cp = |timestamp| pb::msg::MsgPosition {
        timestamp,
        ..Default::default()
    };
    scene.put(
        &format!("datacoord-meta/channel-cp/{channel}"),
        cp(u64::MAX).encode_to_vec(),
    );
    let listed = |scene: &Scene| resource::ids(&scene.view(), Kind::Collections, &Scope::default());
    assert_eq!(text(&scene, &id, "state"), "GC-PENDING");
    assert_eq!(listed(&scene), before, "that goes by itself");
    assert_eq!(text(&scene, &id, "meta"), "no-record");
    assert_eq!(text(&scene, &id, "damage"), "1 checkpoint (dropped)");
    assert!(rules(&scene, Rule::CollectionLeftover).is_empty());
    let dropped = pb::data::SegmentInfo {
        id: 5,
        collection_id: gone.0,
        partition_id: 6,
        insert_channel: channel.clone(),
        state: 6,
        ..Default::default()
    };
    scene.put(
        &format!("datacoord-meta/s/{gone}/6/5"),
        dropped.encode_to_vec(),
    );
    assert_eq!(text(&scene, &id, "state"), "GC-PENDING");
    let live = pb::data::SegmentInfo {
        id: 7,
        state: 4,
        ..dropped
    };
    scene.put(
        &format!("datacoord-meta/s/{gone}/6/7"),
        live.encode_to_vec(),
    );
    scene.put(
        &format!("datacoord-meta/channel-cp/{channel}"),
        cp(tick(MINUTE)).encode_to_vec(),
    );
    assert_eq!(
        cell(&scene, &id, "state"),
        Cell::State("LEAK?".into(), Tone::Warn)
    );
    assert_eq!(
        text(&scene, &id, "damage"),
        "2 segments (1 not dropped), 1 checkpoint"
    );
    assert_eq!(
        rules(&scene, Rule::CollectionLeftover),
        [format!(
            "collection {gone} has no record, but 2 segments (1 not dropped), 1 checkpoint"
        )]
    );
    assert_eq!(listed(&scene).len(), before.len() + 1);
    every_row_answers(&scene.view());
    for key in [
        format!("datacoord-meta/s/{gone}/6/5"),
        format!("datacoord-meta/s/{gone}/6/7"),
        format!("datacoord-meta/channel-cp/{channel}"),
    ] {
        scene.delete(&key);
    }
    assert_eq!(scene.catalog.leftover(gone), None::<Leftover>);
    assert_eq!(
        resource::ids(&scene.view(), Kind::Collections, &Scope::default()),
        before
    );
}
