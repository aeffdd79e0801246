//! Snapshot metadata and its ties to the manifests.

use falconer::engine::error::ErrorKind;
use falconer::engine::format::pb::common::{ConsistencyLevel, KeyValuePair, WalName};
use falconer::engine::format::pb::data::{
    Binlog, CollectionDescription, FieldBinlog, SegmentDescription, SnapshotInfo, SnapshotLayout,
    SnapshotMetadata, SnapshotState, StorageV2SegmentManifest, TextIndexStats,
};
use falconer::engine::format::pb::index::IndexFilePathInfo;
use falconer::engine::format::pb::msg::MsgPosition;
use falconer::engine::format::pb::schema::{CollectionSchema, DataType, FieldSchema};
use falconer::engine::format::snapshot::{
    build_ids, join, manifest_key, metadata_key, pending_form, read_metadata, segment_ids,
    unknown_members, write_metadata,
};
use falconer::engine::ids::{BuildId, SegmentId};

/// The worked example of `spec/snapshot.md` §2.2.
const EXAMPLE: &str = r#"{
  "format_version": 4,
  "snapshot_info": {
    "name": "snap_a", "id": "461100000000000900", "description": "nightly",
    "collection_id": "461100000000000001", "partition_ids": ["461100000000000002"],
    "create_ts": "461099999990000000", "state": "SnapshotStatePending",
    "pending_start_time": "1787300000000", "compaction_expire_time": "1787303600",
    "channel_seek_positions": [{
      "channel_name": "by-dev-rootcoord-dml_0_461100000000000001v0", "msgID": "AQID",
      "timestamp": "461099999990000000", "WAL_name": "WoodPecker"
    }]
  },
  "collection": {
    "schema": {
      "name": "books",
      "fields": [
        {"fieldID": "100", "name": "id", "is_primary_key": true, "data_type": "Int64"},
        {"fieldID": "101", "name": "vec", "data_type": "FloatVector", "type_params": [{"key": "dim", "value": "4"}]},
        {"name": "RowID", "description": "row id", "data_type": "Int64"},
        {"fieldID": "1", "name": "Timestamp", "description": "time stamp", "data_type": "Int64"}
      ],
      "properties": [{"key": "collection.ttl.seconds", "value": "3600"}, {"key": "consistency_level", "value": "2"}],
      "dbName": "default"
    },
    "num_partitions": "1", "num_shards": "1", "consistency_level": "Bounded",
    "properties": [{"key": "collection.ttl.seconds", "value": "3600"}],
    "partitions": {"_default": "461100000000000002"},
    "virtual_channel_names": ["by-dev-rootcoord-dml_0_461100000000000001v0"]
  },
  "indexes": [{
    "collectionID": "461100000000000001", "fieldID": "101", "index_name": "vec_idx", "indexID": "461100000000000300",
    "type_params": [{"key": "dim", "value": "4"}],
    "index_params": [{"key": "index_type", "value": "HNSW"}, {"key": "metric_type", "value": "L2"}],
    "user_index_params": [{"key": "index_type", "value": "HNSW"}, {"key": "metric_type", "value": "L2"}]
  }],
  "manifest_list": ["files/snapshots/461100000000000001/manifests/461100000000000900/461100000000000100.avro"],
  "storagev2_manifest_list": [{
    "segment_id": "461100000000000100",
    "manifest": "{\"ver\":3,\"base_path\":\"files/insert_log/461100000000000001/461100000000000002/461100000000000100\"}"
  }],
  "segment_ids": ["461100000000000100"],
  "build_ids": ["461100000000000301"],
  "layout": "SnapshotLayoutReferenced"
}"#;

const KEY: &str = "files/snapshots/1/metadata/9.json";

#[test]
fn the_worked_example_reads() {
    let m = read_metadata(KEY, EXAMPLE.as_bytes()).unwrap();
    let info = m.snapshot_info.as_ref().unwrap();
    assert_eq!(
        (info.name.as_str(), info.id, info.create_ts),
        ("snap_a", 461_100_000_000_000_900, 461_099_999_990_000_000)
    );
    assert_eq!(info.state(), SnapshotState::Pending);
    let seek = &info.channel_seek_positions[0];
    assert_eq!(
        (seek.msg_id.as_slice(), seek.wal_name()),
        (&[1, 2, 3][..], WalName::WoodPecker)
    );
    let collection = m.collection.as_ref().unwrap();
    assert_eq!(collection.consistency_level(), ConsistencyLevel::Bounded);
    let schema = collection.schema.as_ref().unwrap();
    assert_eq!(schema.fields[1].data_type(), DataType::FloatVector);
    assert_eq!(
        (schema.fields[2].name.as_str(), schema.fields[2].field_id),
        ("RowID", 0)
    );
    assert_eq!(collection.partitions["_default"], 461_100_000_000_000_002);
    assert_eq!(m.layout(), SnapshotLayout::Referenced);
}

/// Compatibility is parse-level: what we write equals the example as JSON, member for member.
#[test]
fn writing_gives_the_same_json_back() {
    let m = read_metadata(KEY, EXAMPLE.as_bytes()).unwrap();
    let written = write_metadata(&m).unwrap();
    let ours: serde_json::Value = serde_json::from_slice(&written).unwrap();
    let theirs: serde_json::Value = serde_json::from_str(EXAMPLE).unwrap();
    assert_eq!(ours, theirs);
    assert_eq!(read_metadata(KEY, &written).unwrap(), m);
    assert!(
        written.starts_with(b"{\n  \"format_version\": 4,"),
        "indented by two, proto names"
    );
}

fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_str(EXAMPLE).unwrap();
    edit(&mut json);
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn readers_take_what_protojson_allows() {
    let lenient = edited(|j| {
        j["snapshot_info"]["id"] = 461_100_000_000_000_900_i64.into();
        j["collection"]["numShards"] = "2".into();
        j["collection"]
            .as_object_mut()
            .unwrap()
            .remove("num_shards");
        j["member_of_next_year"] = serde_json::json!({"a": [1, {"b": null}]});
        j["snapshot_info"]["state"] = 1.into();
    });
    let m = read_metadata(KEY, &lenient).unwrap();
    assert_eq!(m.snapshot_info.unwrap().id, 461_100_000_000_000_900);
    assert_eq!(m.collection.unwrap().num_shards, 2);
}

#[test]
fn the_first_files_read_and_their_ids_are_recovered() {
    let first = edited(|j| {
        let o = j.as_object_mut().unwrap();
        o["format_version"] = 1.into();
        for gone in ["segment_ids", "build_ids", "layout"] {
            o.remove(gone);
        }
        o.insert("index_ids".into(), serde_json::json!(["5"]));
    });
    let m = read_metadata(KEY, &first).unwrap();
    assert_eq!(
        m.layout(),
        SnapshotLayout::Referenced,
        "no layout means referenced"
    );
    assert!(
        m.segment_ids.is_empty() && m.build_ids.is_empty(),
        "index_ids is not build_ids"
    );
    assert_eq!(
        segment_ids(KEY, &m).unwrap(),
        [SegmentId(461_100_000_000_000_100)]
    );
    let mut odd = m;
    odd.manifest_list = vec!["files/x/part-1.avro".into()];
    assert!(
        segment_ids(KEY, &odd)
            .unwrap_err()
            .to_string()
            .contains("part-1.avro")
    );

    let index = |build_id| IndexFilePathInfo {
        build_id,
        ..Default::default()
    };
    let text = |build_id| TextIndexStats {
        build_id,
        ..Default::default()
    };
    let segment = SegmentDescription {
        index_files: vec![index(7), index(0), index(7)],
        text_index_files: [(1, text(9)), (2, text(0))].into(),
        ..Default::default()
    };
    assert_eq!(
        build_ids(&[segment]),
        [BuildId(7), BuildId(0), BuildId(7), BuildId(9)]
    );
}

#[test]
fn unusable_metadata_is_refused_with_its_name() {
    let cases: [(Vec<u8>, ErrorKind, &str); 9] = [
        (
            EXAMPLE.as_bytes()[..700].to_vec(),
            ErrorKind::Corrupt,
            "offset=6",
        ),
        (
            [EXAMPLE.as_bytes(), b"x"].concat(),
            ErrorKind::Corrupt,
            "trailing",
        ),
        (b"[]".to_vec(), ErrorKind::Corrupt, "JSON"),
        (
            edited(|j| j["format_version"] = 5.into()),
            ErrorKind::Unsupported,
            "newer",
        ),
        (
            edited(|j| j["format_version"] = (-1).into()),
            ErrorKind::Corrupt,
            "-1",
        ),
        (
            edited(|j| drop(j.as_object_mut().unwrap().remove("snapshot_info"))),
            ErrorKind::Corrupt,
            "snapshot_info",
        ),
        (
            edited(|j| drop(j.as_object_mut().unwrap().remove("collection"))),
            ErrorKind::Corrupt,
            "collection",
        ),
        (
            edited(|j| j["manifest_list"][0] = "files/../x.avro".into()),
            ErrorKind::Corrupt,
            "component",
        ),
        (
            edited(|j| j["segment_ids"][0] = "12x".into()),
            ErrorKind::Corrupt,
            "JSON",
        ),
    ];
    for (bytes, kind, part) in cases {
        let error = read_metadata(KEY, &bytes).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            error.to_string().contains(part) && error.context("file") == Some(KEY),
            "{part}: {error}"
        );
    }
}

fn metadata(ids: &[i64]) -> SnapshotMetadata {
    SnapshotMetadata {
        format_version: 4,
        snapshot_info: Some(SnapshotInfo {
            id: 9,
            collection_id: 1,
            state: 1,
            ..Default::default()
        }),
        collection: Some(CollectionDescription {
            schema: Some(CollectionSchema {
                fields: vec![FieldSchema::default()],
                ..Default::default()
            }),
            ..Default::default()
        }),
        manifest_list: ids
            .iter()
            .map(|id| manifest_key("files", 1.into(), 9.into(), (*id).into()).0)
            .collect(),
        segment_ids: ids.to_vec(),
        layout: SnapshotLayout::Referenced as i32,
        ..Default::default()
    }
}

fn segment(id: i64) -> SegmentDescription {
    let log = |path: String| Binlog {
        log_path: path,
        ..Default::default()
    };
    SegmentDescription {
        segment_id: id,
        binlogs: vec![FieldBinlog {
            binlogs: vec![log(format!("files/insert_log/1/2/{id}/0/5"))],
            ..Default::default()
        }],
        index_files: vec![IndexFilePathInfo {
            index_file_paths: vec![format!("files/index_files/8/1/2/{id}/HNSW")],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn manifests(m: &SnapshotMetadata, ids: &[i64]) -> Vec<(String, SegmentDescription)> {
    m.manifest_list
        .iter()
        .cloned()
        .zip(ids.iter().map(|id| segment(*id)))
        .collect()
}

fn manifest(id: i64, text: &str) -> StorageV2SegmentManifest {
    StorageV2SegmentManifest {
        segment_id: id,
        manifest: text.into(),
    }
}

#[test]
fn a_sound_snapshot_joins_and_manifest_paths_arrive() {
    let mut m = metadata(&[3, 4]);
    let packed = r#"{"ver":3,"base_path":"files/insert_log/1/2/4"}"#;
    m.storagev2_manifest_list = vec![manifest(4, packed), manifest(3, "files/insert_log/1/2/3/m")];
    let joined = join(KEY, m.clone(), manifests(&m, &[3, 4])).unwrap();
    assert_eq!(joined.segments[1].manifest_path, packed);
    assert_eq!(joined.segments[0].manifest_path, "files/insert_log/1/2/3/m");
    let mut old = metadata(&[3, 4]);
    old.segment_ids.clear();
    assert_eq!(
        join(KEY, old.clone(), manifests(&old, &[3, 4]))
            .unwrap()
            .segments
            .len(),
        2
    );
}

#[test]
fn what_does_not_fit_together_is_refused() {
    type Break = fn(&mut SnapshotMetadata, &mut Vec<(String, SegmentDescription)>);
    let cases: [(&str, Break); 18] = [
        ("not those of manifest_list", |_, l| drop(l.pop())),
        ("not those of manifest_list", |_, l| l.swap(0, 1)),
        ("in two manifests", |_, l| l[1].1.segment_id = 3),
        ("its name says otherwise", |_, l| l[1].1.segment_id = 5),
        ("names a segment twice", |m, _| {
            m.segment_ids = vec![3, 4, 4];
        }),
        ("segment 5, which has no manifest", |m, _| {
            m.segment_ids = vec![3, 4, 5];
        }),
        ("not in segment_ids", |m, _| m.segment_ids = vec![3]),
        ("empty entry", |m, _| {
            m.storagev2_manifest_list = vec![manifest(3, "")];
        }),
        ("names segment 8", |m, _| {
            m.storagev2_manifest_list = vec![manifest(8, "files/x")];
        }),
        ("names segment 3 twice", |m, _| {
            m.storagev2_manifest_list = vec![manifest(3, "a"), manifest(3, "b")];
        }),
        ("manifest_path is not", |m, _| {
            m.storagev2_manifest_list = vec![manifest(3, "{\"ver\":1}")];
        }),
        ("component", |m, _| {
            m.storagev2_manifest_list = vec![manifest(3, "files/../x")];
        }),
        ("component", |m, _| {
            m.storagev2_manifest_list = vec![manifest(3, "{\"ver\":1,\"base_path\":\"a/../b\"}")];
        }),
        ("component", |_, l| {
            l[0].1.binlogs[0].binlogs[0].log_path = "files/./x".into();
        }),
        ("empty", |_, l| {
            l[0].1.binlogs[0].binlogs[0].log_path.clear();
        }),
        ("component", |_, l| {
            l[0].1.index_files[0].index_file_paths[0] = "../x".into();
        }),
        ("user or password", |_, l| {
            l[0].1.index_files[0].index_file_paths[0] = "s3://k:s@h/x".into();
        }),
        ("scheme", |_, l| {
            l[0].1.deltalogs = vec![FieldBinlog {
                binlogs: vec![Binlog {
                    log_path: "ftp://h/x".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }];
        }),
    ];
    for (why, damage) in cases {
        let mut m = metadata(&[3, 4]);
        let mut list = manifests(&m, &[3, 4]);
        damage(&mut m, &mut list);
        let error = join(KEY, m, list).expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert!(error.context("file").is_some(), "{error}");
    }
    // Placeholders of a manifest segment have no paths.
    let m = metadata(&[3]);
    let mut list = manifests(&m, &[3]);
    list[0].1.storage_version = 3;
    list[0].1.binlogs[0].binlogs[0].log_path.clear();
    join(KEY, m, list).unwrap();
}

#[test]
fn a_bundle_keeps_to_itself() {
    let root = "s3://host/export/u-u-i-d/";
    let file = format!("{root}snapshots/1/metadata/9.json");
    let mut m = metadata(&[3]);
    m.set_layout(SnapshotLayout::SelfContained);
    m.manifest_list = vec![format!("{root}snapshots/1/manifests/9/3.avro")];
    let mut s = segment(3);
    s.binlogs[0].binlogs[0].log_path = format!("{root}files/insert_log/1/2/3/0/5");
    s.index_files[0].index_file_paths[0] = format!("{root}files/index_files/8/1/2/3/HNSW");
    let list = |s: &SegmentDescription| vec![(m.manifest_list[0].clone(), s.clone())];
    join(&file, m.clone(), list(&s)).unwrap();

    let mut out = s.clone();
    out.binlogs[0].binlogs[0].log_path = "files/insert_log/1/2/3/0/5".into();
    assert_eq!(
        join(&file, m.clone(), list(&out)).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    let moved = "s3://host/elsewhere/snapshots/1/metadata/9.json";
    assert_eq!(
        join(moved, m.clone(), list(&s)).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(
        join("s3://host/9.json", m.clone(), list(&s))
            .unwrap_err()
            .kind(),
        ErrorKind::Corrupt
    );
    let mut text = s.clone();
    text.text_index_files.insert(
        5,
        TextIndexStats {
            files: vec!["plain".into()],
            ..Default::default()
        },
    );
    assert_eq!(
        join(&file, m.clone(), list(&text)).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    text.storage_version = 3;
    join(&file, m.clone(), list(&text)).unwrap();
}

#[test]
fn only_a_complete_pending_record_is_written() {
    let record = SnapshotInfo {
        name: "n".into(),
        id: 9,
        state: SnapshotState::Committed as i32,
        s3_location: "files/x".into(),
        pin_ids: vec![1],
        pin_expire_at_ms: [(1, 2)].into(),
        pending_start_time: 77,
        channel_seek_positions: vec![MsgPosition::default()],
        ..Default::default()
    };
    let pending = pending_form(&record);
    assert_eq!(pending.state(), SnapshotState::Pending);
    assert!(
        pending.s3_location.is_empty()
            && pending.pin_ids.is_empty()
            && pending.pin_expire_at_ms.is_empty()
    );
    assert_eq!((pending.id, pending.pending_start_time), (9, 77));

    let good = metadata(&[3]);
    write_metadata(&good).unwrap();
    let broken: [fn(&mut SnapshotMetadata); 6] = [
        |m| m.snapshot_info = None,
        |m| m.collection = None,
        |m| m.format_version = 3,
        |m| m.snapshot_info.as_mut().unwrap().state = 2,
        |m| m.layout = 0,
        |m| m.segment_ids.clear(),
    ];
    for damage in broken {
        let mut m = good.clone();
        damage(&mut m);
        assert!(write_metadata(&m).is_err());
    }
}

#[test]
fn keys_are_where_milvus_puts_them() {
    assert_eq!(metadata_key("files", 1.into(), 9.into()).0, KEY);
    assert_eq!(
        metadata_key("", 1.into(), 9.into()).0,
        "snapshots/1/metadata/9.json"
    );
    assert_eq!(
        manifest_key("/data", 1.into(), 9.into(), 3.into()).0,
        "/data/snapshots/1/manifests/9/3.avro"
    );
}

#[test]
fn properties_print_in_order_and_text_is_escaped() {
    let mut m = metadata(&[3]);
    m.collection.as_mut().unwrap().properties = vec![
        KeyValuePair {
            key: "b".into(),
            value: "q\"\n".into(),
        },
        KeyValuePair {
            key: "a".into(),
            ..Default::default()
        },
    ];
    let text = String::from_utf8(write_metadata(&m).unwrap()).unwrap();
    assert!(text.find("\"b\"").unwrap() < text.find("\"a\"").unwrap());
    assert_eq!(
        read_metadata(KEY, text.as_bytes()).unwrap().collection,
        m.collection
    );
}

#[test]
fn map_keys_are_sorted_so_that_the_same_input_gives_the_same_bytes() {
    let mut m = metadata(&[3]);
    let names: Vec<String> = (0..40).map(|i| format!("part_{i:02}")).collect();
    let collection = m.collection.as_mut().unwrap();
    collection.partitions = names.iter().rev().map(|n| (n.clone(), 7)).collect();
    let text = write_metadata(&m).unwrap();
    for _ in 0..4 {
        let again = read_metadata(KEY, &text).unwrap();
        assert_eq!(write_metadata(&again).unwrap(), text);
    }
    let text = String::from_utf8(text).unwrap();
    let places: Vec<usize> = names
        .iter()
        .map(|n| text.find(&format!("\"{n}\"")).unwrap())
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    // The members themselves stay in the order of their fields.
    assert!(text.find("\"format_version\"") < text.find("\"collection\""));
}

#[test]
fn what_reading_would_drop_is_named() {
    assert!(unknown_members(KEY, EXAMPLE.as_bytes()).unwrap().is_empty());
    let newer = edited(|j| {
        j["later"] = 1.into();
        j["collection"]["schema"]["fields"][1]["quantized"] = true.into();
        j["collection"]["virtualChannelNames"] = serde_json::json!([]);
    });
    assert_eq!(
        unknown_members(KEY, &newer).unwrap(),
        ["collection.schema.fields[1].quantized", "later"]
    );
    read_metadata(KEY, &newer).unwrap();

    let newer =
        edited(|j| j["collection"]["schema"]["fields"][1]["data_type"] = "HugeVector".into());
    let error = read_metadata(KEY, &newer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error
            .to_string()
            .contains("collection.schema.fields[1].data_type is HugeVector"),
        "{error}"
    );
    let number = edited(|j| j["collection"]["schema"]["fields"][1]["data_type"] = 777.into());
    let kept = read_metadata(KEY, &number)
        .unwrap()
        .collection
        .unwrap()
        .schema
        .unwrap()
        .fields[1]
        .data_type;
    assert_eq!(kept, 777, "a number is kept");
}
