//! `falconer scan`, as an operator runs it: on the captured cluster, and on one whose files we wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use falconer::engine::format::binlog::DeltaForm;
use falconer::engine::format::keys::{Key, LogKind, Roots};
use falconer::engine::format::paths::ObjPath;
use falconer::engine::format::pb::common::SegmentState;
use falconer::engine::format::pb::data::{Binlog, FieldBinlog, SegmentInfo, SegmentLevel};
use falconer::engine::format::pb::etcd::CollectionInfo;
use falconer::engine::format::pb::schema::CollectionSchema;
use falconer::engine::format::rows::input::{JsonLines, complete};
use falconer::engine::format::rows::write::{LogWriter, groups};
use falconer::engine::format::rows::{PrimaryKey, Schema, delta};
use falconer::engine::ids::{CollectionId, DbId, FieldId, LogId, PartitionId, SegmentId, Tso};
use prost::Message;
use serde_json::{Value, json};

use crate::{lab, make};

fn falconer(dump: &Path, bucket: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let home = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_falconer"))
        .env_clear()
        .env("HOME", home.path())
        .arg("--dump")
        .arg(dump)
        .arg("--bucket")
        .arg(format!("file://{}", bucket.display()))
        .args(args)
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn put(root: &Path, key: &str, bytes: &[u8]) {
    let path = root.join(key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The two segments of `metrics`: as many rows as recorded, and with the deletes applied as many as the server counted.
#[test]
fn the_captured_cluster() {
    let dir = tempfile::tempdir().unwrap();
    for (key, bytes) in lab::objects() {
        if key.contains("/470660334431903094/") {
            put(dir.path(), key, bytes);
        }
    }
    let bucket = dir.path().to_path_buf();
    let dump = lab::path("etcd.jsonl.gz");
    let mut alive = 0;
    for (segment, rows) in [("470660334431703183", 2_594), ("470660334431703184", 2_656)] {
        let args = [
            "scan",
            segment,
            "--limit",
            "0",
            "--with-deletes",
            "-o",
            "json",
        ];
        let (code, out, err) = falconer(&dump, &bucket, &args);
        assert_eq!(code, Some(0), "{err}");
        let answer: Value = serde_json::from_str(&out).unwrap();
        let counts = &answer["scan"];
        assert_eq!(counts["rows_recorded"], rows);
        assert_eq!(counts["rows_read"], rows);
        assert_eq!(counts["whole"], true);
        let shown = answer["rows"].as_array().unwrap();
        assert_eq!(counts["rows_shown"], shown.len());
        assert_eq!(
            counts["rows_deleted"].as_u64().unwrap(),
            rows - shown.len() as u64
        );
        assert_eq!(shown[0]["sig"].as_array().unwrap().len(), 8);
        assert!(shown[0]["mid"].is_string(), "64-bit integers are text");
        alive += shown.len();
    }
    assert_eq!(alive, 5_150, "count(*) of the server");
    let (code, out, err) = falconer(
        &dump,
        &bucket,
        &[
            "scan",
            "470660334431703183",
            "--fields",
            "mid,val",
            "--limit",
            "3",
            "-o",
            "jsonl",
        ],
    );
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.lines().count(), 3);
    let row: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(
        row.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["mid", "val"]
    );
    assert!(err.contains("\"rows_recorded\":2594"), "{err}");
    let (code, out, err) = falconer(
        &dump,
        &bucket,
        &["scan", "470660334431703183", "--limit", "2"],
    );
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("mid "), "{out}");
    assert!(out.contains("rows_recorded"), "{out}");
    for (args, code, words) in [
        (vec!["scan", "7"], 3, "segment 7 does not exist"),
        (
            vec!["scan", "470660334431703183", "--fields", "nope"],
            2,
            "no field nope",
        ),
        (vec!["scan", "470660334431703199"], 3, "does not exist"),
    ] {
        let (found, _, err) = falconer(&dump, &bucket, &args);
        assert_eq!(found, Some(code), "{args:?}: {err}");
        assert!(err.contains(words), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

const C: CollectionId = CollectionId(500);
const P: PartitionId = PartitionId(501);
const S: SegmentId = SegmentId(502);
const L0: SegmentId = SegmentId(503);
const CHANNEL: &str = "by-dev-rootcoord-dml_0_500v0";

/// A dump of one storage V2 segment and one L0 segment of all partitions, and the bucket of their files.
fn ours(dir: &Path) -> PathBuf {
    let roots = Roots::default();
    let mut lines = Vec::new();
    let mut record = |key: &Key, value: Vec<u8>| {
        let key = key.to_key(&roots).0;
        lines.push(json!({
            "key": String::from_utf8_lossy(&key), "key_b64": BASE64_STANDARD.encode(&key),
            "value_b64": BASE64_STANDARD.encode(value),
            "create_revision": 5, "mod_revision": 5, "version": 1, "lease": 0,
        }));
    };
    let whole = make::collection(true);
    let info = CollectionInfo {
        id: C.0,
        schema: Some(CollectionSchema {
            fields: vec![],
            ..whole.clone()
        }),
        virtual_channel_names: vec![CHANNEL.into()],
        physical_channel_names: vec!["by-dev-rootcoord-dml_0".into()],
        db_id: 1,
        shards_num: 1,
        ..CollectionInfo::default()
    };
    record(&Key::Collection(DbId(1), C), info.encode_to_vec());
    for field in &whole.fields {
        record(
            &Key::Field(C, FieldId(field.field_id)),
            field.encode_to_vec(),
        );
    }
    let segment = |id: SegmentId, partition: PartitionId, level: SegmentLevel| SegmentInfo {
        id: id.0,
        collection_id: C.0,
        partition_id: partition.0,
        insert_channel: CHANNEL.into(),
        num_of_rows: if id == S { 6 } else { 0 },
        state: SegmentState::Flushed as i32,
        level: level as i32,
        storage_version: 2,
        ..SegmentInfo::default()
    };
    record(
        &Key::Segment(C, P, S),
        segment(S, P, SegmentLevel::L1).encode_to_vec(),
    );
    record(
        &Key::Segment(C, PartitionId(-1), L0),
        segment(L0, PartitionId(-1), SegmentLevel::L0).encode_to_vec(),
    );

    let schema = Schema::of(&whole).unwrap();
    // Two logs of three rows, inserted at 100 and at 200.
    let mut logs: Vec<FieldBinlog> = Vec::new();
    for (log, at) in [(LogId(900), Tso(100)), (LogId(950), Tso(200))] {
        let text: String = (0..3).map(|i| line(&schema, i)).collect();
        let given = JsonLines::new("rows", &schema, text.as_bytes())
            .batch(10)
            .unwrap()
            .unwrap();
        let rows = complete(&given, &schema, log.0 * 10, at).unwrap();
        let mut writer = LogWriter::new(schema.clone(), &groups(&rows)).unwrap();
        writer.write(&rows).unwrap();
        for file in writer.finish().unwrap() {
            let path = ObjPath::InsertLog(C, P, S, file.group.id, log).to_key("files");
            put(dir, &path.0, &file.bytes);
            let binlog = Binlog {
                entries_num: file.rows as i64,
                timestamp_from: file.range.0.0,
                timestamp_to: file.range.1.0,
                log_id: log.0,
                log_size: file.bytes.len() as i64,
                memory_size: file.memory as i64,
                ..Binlog::default()
            };
            match logs.iter_mut().find(|l| l.field_id == file.group.id.0) {
                Some(known) => known.binlogs.push(binlog),
                None => logs.push(FieldBinlog {
                    field_id: file.group.id.0,
                    child_fields: file.group.fields.iter().map(|f| f.0).collect(),
                    binlogs: vec![binlog],
                    ..FieldBinlog::default()
                }),
            }
        }
    }
    for log in &logs {
        record(
            &Key::Log(LogKind::Insert, C, P, S, FieldId(log.field_id)),
            log.encode_to_vec(),
        );
    }
    // The key of row 0 is deleted between the logs, in L0; that of row 1 after both, in the segment's own log.
    for (segment, partition, log, key, at, form) in [
        (
            L0,
            PartitionId(-1),
            LogId(970),
            "k0",
            150,
            DeltaForm::Parquet,
        ),
        (S, P, LogId(971), "k1", 300, DeltaForm::V1Json),
    ] {
        let deletes = [(PrimaryKey::Text(key.into()), Tso(at))];
        let bytes = delta::write(form, (C, partition, segment), &deletes, Tso(1)).unwrap();
        put(
            dir,
            &ObjPath::DeltaLog(C, partition, segment, log)
                .to_key("files")
                .0,
            &bytes,
        );
        let record_of = FieldBinlog {
            binlogs: vec![Binlog {
                entries_num: 1,
                log_id: log.0,
                log_size: bytes.len() as i64,
                ..Binlog::default()
            }],
            ..FieldBinlog::default()
        };
        record(
            &Key::Log(LogKind::Delta, C, partition, segment, FieldId(0)),
            record_of.encode_to_vec(),
        );
    }
    let dump = dir.join("dump.jsonl");
    fs::write(
        &dump,
        lines
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
            + "\n",
    )
    .unwrap();
    dump
}

/// A row with a value for each field that must have one.
fn line(schema: &Schema, i: usize) -> String {
    use falconer::engine::format::pb::schema::DataType as T;
    let mut row = serde_json::Map::new();
    for field in schema
        .fields
        .iter()
        .filter(|f| f.id.0 >= 100 && !f.nullable && f.default.is_none() && !f.dynamic)
    {
        let value = match field.data_type {
            _ if field.primary => json!(format!("k{i}")),
            T::Bool => json!(i == 1),
            T::VarChar => json!(format!("text {i}")),
            T::Json => json!({ "i": i }),
            T::BinaryVector => json!([i]),
            T::SparseFloatVector => json!({ "7": i }),
            T::ArrayOfVector => json!([[0, 1, 2, 3, 4, 5, 6, i]]),
            T::Array => json!([]),
            _ if field.is_vector() => json!([0, 1, 2, 3, 4, 5, 6, i]),
            _ => json!(i),
        };
        row.insert(field.name.clone(), value);
    }
    row.insert("colour".into(), json!("red"));
    format!("{}\n", Value::from(row))
}

#[test]
fn storage_v2_with_deletes_of_level_zero() {
    let dir = tempfile::tempdir().unwrap();
    let dump = ours(dir.path());
    let bucket = dir.path().to_path_buf();
    let (code, out, err) = falconer(&dump, &bucket, &["scan", "502", "-o", "json"]);
    assert_eq!(code, Some(0), "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["rows"].as_array().unwrap().len(), 6);
    let first = &answer["rows"][0];
    assert_eq!(
        (&first["pk"], &first["$meta"], &first["defaulted"]),
        (&json!("k0"), &json!({ "colour": "red" }), &json!(-7))
    );
    assert_eq!(
        first["ArrayOfVector_131"],
        json!([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]])
    );
    let (code, out, err) = falconer(
        &dump,
        &bucket,
        &[
            "scan",
            "502",
            "--with-deletes",
            "--fields",
            "pk,Timestamp",
            "-o",
            "json",
        ],
    );
    assert_eq!(code, Some(0), "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    let rows: Vec<(&str, &str)> = answer["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["pk"].as_str().unwrap(), r["Timestamp"].as_str().unwrap()))
        .collect();
    assert_eq!(rows, [("k2", "100"), ("k0", "200"), ("k2", "200")]);
    let counts = &answer["scan"];
    assert_eq!(
        (
            &counts["rows_deleted"],
            &counts["delete_entries"],
            &counts["delete_segments"]
        ),
        (&json!(3), &json!(2), &json!(1))
    );
    assert_eq!(
        (&counts["first"]["tso"], &counts["last"]["tso"]),
        (&json!("100"), &json!("200"))
    );
    // A file that is damaged is one clear line.
    let file = bucket.join("files/insert_log/500/501/502/0/900");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len() - 20;
    bytes.truncate(end);
    fs::write(&file, bytes).unwrap();
    let (code, _, err) = falconer(&dump, &bucket, &["scan", "502"]);
    assert_eq!(code, Some(7));
    assert!(
        err.contains("insert_log/500/501/502/0/900") && err.lines().count() == 1,
        "{err}"
    );
}
