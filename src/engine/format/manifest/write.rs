//! A segment description to V4 bytes, through `apache-avro`.

use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;

use super::{Shape, schema};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::pb::data::{Binlog, FieldBinlog, SegmentDescription};
use crate::engine::format::pb::index::IndexFilePathInfo;
use crate::engine::format::pb::msg::MsgPosition;

static SCHEMA: LazyLock<Result<Schema>> = LazyLock::new(|| {
    Schema::parse(&schema(Shape::V4)).map_err(|cause| {
        Error::new(
            ErrorKind::Internal,
            "the built-in manifest schema does not parse",
        )
        .caused_by(cause)
    })
});

/// The manifest file of `segment`: one bare datum, no container. [`super::as_stored`] tells what it cannot hold.
///
/// The library writes each list as one block with a positive count; Milvus writes blocks of up to 100 with a size.
/// Both are Avro, and Milvus's reader takes both (`spec/snapshot.md` §2.3).
pub fn write_v4(segment: &SegmentDescription) -> Result<Vec<u8>> {
    let schema = SCHEMA.as_ref().map_err(Clone::clone)?;
    GenericDatumWriter::builder(schema)
        .build()
        .and_then(|writer| writer.write_value_to_vec(manifest(segment)))
        .map_err(|cause| {
            Error::new(
                ErrorKind::Internal,
                "a segment manifest could not be written",
            )
            .with("segment", segment.segment_id)
            .caused_by(cause)
        })
}

fn record<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Record(
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn texts(values: &[String]) -> Value {
    Value::Array(values.iter().map(|v| text(v)).collect())
}

/// Timestamps and sizes keep their bits: `u64::MAX` becomes -1, as Milvus writes it.
fn unsigned(value: u64) -> Value {
    Value::Long(value.cast_signed())
}

fn manifest(s: &SegmentDescription) -> Value {
    record([
        ("segment_id", Value::Long(s.segment_id)),
        ("partition_id", Value::Long(s.partition_id)),
        ("segment_level", Value::Long(i64::from(s.segment_level))),
        ("channel_name", text(&s.channel_name)),
        ("num_of_rows", Value::Long(s.num_of_rows)),
        ("start_position", position(s.start_position.as_ref())),
        ("dml_position", position(s.dml_position.as_ref())),
        ("storage_version", Value::Long(s.storage_version)),
        ("is_sorted", Value::Boolean(s.is_sorted)),
        ("commit_timestamp", unsigned(s.commit_timestamp)),
        ("binlog_files", logs(&s.binlogs)),
        ("deltalog_files", logs(&s.deltalogs)),
        ("statslog_files", logs(&s.statslogs)),
        ("bm25_statslog_files", logs(&s.bm25_statslogs)),
        (
            "index_files",
            Value::Array(s.index_files.iter().map(index_file).collect()),
        ),
        (
            "text_index_files",
            Value::Array(
                s.text_index_files
                    .iter()
                    .map(|(field, t)| {
                        let stats = record([
                            ("field_id", Value::Long(t.field_id)),
                            ("version", Value::Long(t.version)),
                            ("files", texts(&t.files)),
                            ("log_size", Value::Long(t.log_size)),
                            ("memory_size", Value::Long(t.memory_size)),
                            ("build_id", Value::Long(t.build_id)),
                        ]);
                        record([("field_id", Value::Long(*field)), ("stats", stats)])
                    })
                    .collect(),
            ),
        ),
        (
            "json_key_index_files",
            Value::Array(
                s.json_key_index_files
                    .iter()
                    .map(|(field, j)| {
                        let stats = record([
                            ("field_id", Value::Long(j.field_id)),
                            ("version", Value::Long(j.version)),
                            ("files", texts(&j.files)),
                            ("log_size", Value::Long(j.log_size)),
                            ("memory_size", Value::Long(j.memory_size)),
                            ("build_id", Value::Long(j.build_id)),
                            (
                                "json_key_stats_data_format",
                                Value::Long(j.json_key_stats_data_format),
                            ),
                        ]);
                        record([("field_id", Value::Long(*field)), ("stats", stats)])
                    })
                    .collect(),
            ),
        ),
    ])
}

/// A missing position is written as an empty one.
fn position(p: Option<&MsgPosition>) -> Value {
    let none = MsgPosition::default();
    let p = p.unwrap_or(&none);
    record([
        ("channel_name", text(&p.channel_name)),
        ("msg_id", Value::Bytes(p.msg_id.clone())),
        ("msg_group", text(&p.msg_group)),
        ("timestamp", unsigned(p.timestamp)),
    ])
}

fn logs(logs: &[FieldBinlog]) -> Value {
    Value::Array(
        logs.iter()
            .map(|f| {
                record([
                    ("field_id", Value::Long(f.field_id)),
                    (
                        "child_fields",
                        Value::Array(f.child_fields.iter().map(|id| Value::Long(*id)).collect()),
                    ),
                    ("format", text(&f.format)),
                    (
                        "binlogs",
                        Value::Array(f.binlogs.iter().map(binlog).collect()),
                    ),
                ])
            })
            .collect(),
    )
}

fn binlog(b: &Binlog) -> Value {
    record([
        ("entries_num", Value::Long(b.entries_num)),
        ("timestamp_from", unsigned(b.timestamp_from)),
        ("timestamp_to", unsigned(b.timestamp_to)),
        ("log_path", text(&b.log_path)),
        ("log_size", Value::Long(b.log_size)),
        ("log_id", Value::Long(b.log_id)),
        ("memory_size", Value::Long(b.memory_size)),
    ])
}

fn index_file(i: &IndexFilePathInfo) -> Value {
    let params = i
        .index_params
        .iter()
        .map(|p| record([("key", text(&p.key)), ("value", text(&p.value))]));
    record([
        ("segment_id", Value::Long(i.segment_id)),
        ("field_id", Value::Long(i.field_id)),
        ("index_id", Value::Long(i.index_id)),
        ("build_id", Value::Long(i.build_id)),
        ("index_name", text(&i.index_name)),
        ("index_params", Value::Array(params.collect())),
        ("index_file_paths", texts(&i.index_file_paths)),
        ("serialized_size", unsigned(i.serialized_size)),
        ("index_version", Value::Long(i.index_version)),
        ("num_rows", Value::Long(i.num_rows)),
        ("current_index_version", Value::Int(i.current_index_version)),
        ("mem_size", unsigned(i.mem_size)),
        (
            "current_scalar_index_version",
            Value::Int(i.current_scalar_index_version),
        ),
        (
            "index_store_path_version",
            Value::Int(i.index_store_path_version),
        ),
    ])
}
