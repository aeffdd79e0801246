//! The Avro schemas, as facts: field order is what the bytes depend on (`spec/snapshot.md` §2.4).

use serde_json::{Value, json};

/// A shape that segment manifests have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Format version 0 or 1 until 2026-04: 12 index fields.
    V1Early,
    /// Format version 1 from 2026-04: adds `current_scalar_index_version` without a new number.
    V1Late,
    /// Adds `index_store_path_version`.
    V2,
    /// Adds `commit_timestamp`.
    V3,
    /// Adds `child_fields` and `format`.
    V4,
}

impl Shape {
    pub(super) fn has_scalar_version(self) -> bool {
        self >= Self::V1Late
    }

    pub(super) fn has_store_path_version(self) -> bool {
        self >= Self::V2
    }

    pub(super) fn has_commit_timestamp(self) -> bool {
        self >= Self::V3
    }

    pub(super) fn has_column_groups(self) -> bool {
        self >= Self::V4
    }
}

fn record(name: &str, fields: Vec<(&str, Value)>) -> Value {
    let fields: Vec<Value> = fields
        .into_iter()
        .map(|(name, kind)| json!({"name": name, "type": kind}))
        .collect();
    json!({"type": "record", "name": name, "fields": fields})
}

fn array(items: impl Into<Value>) -> Value {
    json!({"type": "array", "items": items.into()})
}

fn longs<'a>(names: &[&'a str]) -> Vec<(&'a str, Value)> {
    names.iter().map(|name| (*name, json!("long"))).collect()
}

/// The schema of a shape, as Avro schema JSON.
#[must_use]
pub fn schema(shape: Shape) -> Value {
    let position = record(
        "AvroMsgPosition",
        vec![
            ("channel_name", json!("string")),
            ("msg_id", json!("bytes")),
            ("msg_group", json!("string")),
            ("timestamp", json!("long")),
        ],
    );
    let mut fields = longs(&["segment_id", "partition_id", "segment_level"]);
    fields.push(("channel_name", json!("string")));
    fields.push(("num_of_rows", json!("long")));
    fields.push(("start_position", position));
    fields.push(("dml_position", json!("AvroMsgPosition")));
    fields.push(("storage_version", json!("long")));
    fields.push(("is_sorted", json!("boolean")));
    if shape.has_commit_timestamp() {
        fields.push(("commit_timestamp", json!("long")));
    }
    fields.push(("binlog_files", array(field_binlog(shape))));
    for name in ["deltalog_files", "statslog_files", "bm25_statslog_files"] {
        fields.push((name, array("AvroFieldBinlog")));
    }
    fields.push(("index_files", array(index_file(shape))));
    fields.push((
        "text_index_files",
        array(stats_entry("AvroTextIndexEntry", "AvroTextIndexStats", &[])),
    ));
    let json_entry = stats_entry(
        "AvroJSONKeyIndexEntry",
        "AvroJSONKeyStats",
        &["json_key_stats_data_format"],
    );
    fields.push(("json_key_index_files", array(json_entry)));
    record("ManifestEntry", fields)
}

fn field_binlog(shape: Shape) -> Value {
    let mut log = longs(&["entries_num", "timestamp_from", "timestamp_to"]);
    log.push(("log_path", json!("string")));
    log.extend(longs(&["log_size", "log_id", "memory_size"]));
    let mut fields = longs(&["field_id"]);
    if shape.has_column_groups() {
        fields.push(("child_fields", array("long")));
        fields.push(("format", json!("string")));
    }
    fields.push(("binlogs", array(record("AvroBinlog", log))));
    record("AvroFieldBinlog", fields)
}

fn index_file(shape: Shape) -> Value {
    let pair = record(
        "AvroKeyValuePair",
        vec![("key", json!("string")), ("value", json!("string"))],
    );
    let mut fields = longs(&["segment_id", "field_id", "index_id", "build_id"]);
    fields.push(("index_name", json!("string")));
    fields.push(("index_params", array(pair)));
    fields.push(("index_file_paths", array("string")));
    fields.extend(longs(&["serialized_size", "index_version", "num_rows"]));
    fields.push(("current_index_version", json!("int")));
    fields.push(("mem_size", json!("long")));
    if shape.has_scalar_version() {
        fields.push(("current_scalar_index_version", json!("int")));
    }
    if shape.has_store_path_version() {
        fields.push(("index_store_path_version", json!("int")));
    }
    record("AvroIndexFilePathInfo", fields)
}

fn stats_entry(entry: &str, stats: &str, more: &[&str]) -> Value {
    let mut fields = longs(&["field_id", "version"]);
    fields.push(("files", array("string")));
    fields.extend(longs(&["log_size", "memory_size", "build_id"]));
    fields.extend(longs(more));
    record(
        entry,
        vec![
            ("field_id", json!("long")),
            ("stats", record(stats, fields)),
        ],
    )
}
