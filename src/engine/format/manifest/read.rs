//! Bytes to a segment description.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::{Shape, shapes};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::check;
use crate::engine::format::pb::common::KeyValuePair;
use crate::engine::format::pb::data::{
    Binlog, FieldBinlog, JsonKeyStats, SegmentDescription, TextIndexStats,
};
use crate::engine::format::pb::index::IndexFilePathInfo;
use crate::engine::format::pb::msg::MsgPosition;

/// Reads the manifest `file`, whose shape `format_version` of the metadata JSON decides. `manifest_path` of the result
/// is empty: [`snapshot::join`](crate::engine::format::snapshot::join) fills it.
pub fn read(file: &str, bytes: &[u8], format_version: i32) -> Result<SegmentDescription> {
    let found = shapes(format_version).map_err(|e| e.with("file", file))?;
    let mut tries: Vec<Attempt> = found
        .iter()
        .map(|shape| attempt(file, bytes, *shape))
        .collect();
    if tries.len() > 1 {
        // Version 1 has two shapes: the right one reads to the exact end and yields usable paths.
        tries.sort_by_key(|t| (t.read.is_err(), !t.sane(), std::cmp::Reverse(t.reached)));
        if let [Attempt { read: Ok(a), .. }, Attempt { read: Ok(b), .. }] = tries.as_slice()
            && a != b
            && tries[0].sane() == tries[1].sane()
        {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the manifest reads as both shapes of format version 1, with different content",
            )
            .with("file", file)
            .with("offset", 0)
            .fix("restore with the Milvus that wrote the snapshot, or take a new one"));
        }
    }
    match tries.into_iter().next() {
        Some(best) => best.read,
        None => Err(
            Error::new(ErrorKind::Internal, "a format version without a shape").with("file", file),
        ),
    }
}

struct Attempt {
    read: Result<SegmentDescription>,
    reached: usize,
}

impl Attempt {
    fn sane(&self) -> bool {
        self.read.as_ref().is_ok_and(|segment| {
            segment.index_files.iter().all(|f| {
                f.segment_id == segment.segment_id
                    && f.index_file_paths.iter().all(|p| check(p).is_ok())
            })
        })
    }
}

fn attempt(file: &str, bytes: &[u8], shape: Shape) -> Attempt {
    let mut c = Cursor::new(file, bytes);
    let read = segment(&mut c, shape).and_then(|segment| c.end().map(|()| segment));
    Attempt {
        read,
        reached: c.at(),
    }
}

fn segment(c: &mut Cursor<'_>, shape: Shape) -> Result<SegmentDescription> {
    // The order of these reads is the order of the fields in the file.
    let segment_id = c.long("segment_id")?;
    let partition_id = c.long("partition_id")?;
    let level_at = c.at();
    let segment_level = i32::try_from(c.long("segment_level")?).map_err(|_| {
        c.fail(
            level_at,
            "segment_level",
            "a segment level of more than 32 bits",
        )
    })?;
    let channel_name = c.string("channel_name")?;
    let num_of_rows = c.long("num_of_rows")?;
    let start_position = position(c, "start_position")?;
    let dml_position = position(c, "dml_position")?;
    let storage_version = c.long("storage_version")?;
    let is_sorted = c.boolean("is_sorted")?;
    let commit_timestamp = if shape.has_commit_timestamp() {
        c.unsigned("commit_timestamp")?
    } else {
        0
    };
    let binlogs = c.array("binlog_files", |c| field_binlog(c, shape))?;
    let deltalogs = c.array("deltalog_files", |c| field_binlog(c, shape))?;
    let statslogs = c.array("statslog_files", |c| field_binlog(c, shape))?;
    let bm25_statslogs = c.array("bm25_statslog_files", |c| field_binlog(c, shape))?;
    let index_files = c.array("index_files", |c| index_file(c, shape))?;
    let text_index_files = by_field(c, "text_index_files", text_stats)?;
    let json_key_index_files = by_field(c, "json_key_index_files", json_stats)?;
    Ok(SegmentDescription {
        segment_id,
        partition_id,
        segment_level,
        channel_name,
        binlogs,
        deltalogs,
        statslogs,
        bm25_statslogs,
        text_index_files,
        json_key_index_files,
        index_files,
        num_of_rows,
        start_position,
        dml_position,
        storage_version,
        is_sorted,
        manifest_path: String::new(),
        commit_timestamp,
    })
}

/// An all-empty record is how a missing position is written.
fn position(c: &mut Cursor<'_>, field: &'static str) -> Result<Option<MsgPosition>> {
    let position = MsgPosition {
        channel_name: c.string(field)?,
        msg_id: c.bytes(field)?,
        msg_group: c.string(field)?,
        timestamp: c.unsigned(field)?,
        wal_name: 0,
    };
    Ok((position != MsgPosition::default()).then_some(position))
}

fn field_binlog(c: &mut Cursor<'_>, shape: Shape) -> Result<FieldBinlog> {
    let field_id = c.long("field_id")?;
    let (child_fields, format) = if shape.has_column_groups() {
        (
            c.array("child_fields", |c| c.long("child_fields"))?,
            c.string("format")?,
        )
    } else {
        (Vec::new(), String::new())
    };
    Ok(FieldBinlog {
        field_id,
        binlogs: c.array("binlogs", binlog)?,
        child_fields,
        format,
    })
}

fn binlog(c: &mut Cursor<'_>) -> Result<Binlog> {
    Ok(Binlog {
        entries_num: c.long("entries_num")?,
        timestamp_from: c.unsigned("timestamp_from")?,
        timestamp_to: c.unsigned("timestamp_to")?,
        log_path: c.string("log_path")?,
        log_size: c.long("log_size")?,
        log_id: c.long("log_id")?,
        memory_size: c.long("memory_size")?,
        field_null_counts: BTreeMap::new(),
    })
}

fn index_file(c: &mut Cursor<'_>, shape: Shape) -> Result<IndexFilePathInfo> {
    Ok(IndexFilePathInfo {
        segment_id: c.long("index segment_id")?,
        field_id: c.long("index field_id")?,
        index_id: c.long("index_id")?,
        build_id: c.long("build_id")?,
        index_name: c.string("index_name")?,
        index_params: c.array("index_params", |c| {
            Ok(KeyValuePair {
                key: c.string("index_params")?,
                value: c.string("index_params")?,
            })
        })?,
        index_file_paths: c.array("index_file_paths", |c| c.string("index_file_paths"))?,
        serialized_size: c.unsigned("serialized_size")?,
        index_version: c.long("index_version")?,
        num_rows: c.long("num_rows")?,
        current_index_version: c.int("current_index_version")?,
        mem_size: c.unsigned("mem_size")?,
        current_scalar_index_version: if shape.has_scalar_version() {
            c.int("current_scalar_index_version")?
        } else {
            0
        },
        index_store_path_version: if shape.has_store_path_version() {
            c.int("index_store_path_version")?
        } else {
            0
        },
    })
}

fn by_field<T>(
    c: &mut Cursor<'_>,
    field: &'static str,
    mut stats: impl FnMut(&mut Cursor<'_>) -> Result<T>,
) -> Result<BTreeMap<i64, T>> {
    let mut out = BTreeMap::new();
    c.array(field, |c| {
        let at = c.at();
        let id = c.long("field_id")?;
        let value = stats(c)?;
        match out.insert(id, value) {
            None => Ok(()),
            Some(_) => Err(c.fail(at, field, format!("field {id} is there twice"))),
        }
    })?;
    Ok(out)
}

fn text_stats(c: &mut Cursor<'_>) -> Result<TextIndexStats> {
    Ok(TextIndexStats {
        field_id: c.long("text stats field_id")?,
        version: c.long("text stats version")?,
        files: c.array("text stats files", |c| c.string("text stats files"))?,
        log_size: c.long("text stats log_size")?,
        memory_size: c.long("text stats memory_size")?,
        build_id: c.long("text stats build_id")?,
        current_scalar_index_version: 0,
    })
}

fn json_stats(c: &mut Cursor<'_>) -> Result<JsonKeyStats> {
    Ok(JsonKeyStats {
        field_id: c.long("json stats field_id")?,
        version: c.long("json stats version")?,
        files: c.array("json stats files", |c| c.string("json stats files"))?,
        log_size: c.long("json stats log_size")?,
        memory_size: c.long("json stats memory_size")?,
        build_id: c.long("json stats build_id")?,
        json_key_stats_data_format: c.long("json_key_stats_data_format")?,
    })
}
