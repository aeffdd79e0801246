//! Delta logs: deleted keys with the time of the delete, in the four forms that Milvus has written (`spec/layout.md` §7.4).

use bytes::Bytes;
use serde_json::Value;

use super::insert::tables;
use super::write::{Leaf, flat_file};
use super::{Limits, PrimaryKey};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::binlog::{DeltaForm, V1Head, delta_form};
use crate::engine::format::parquet::{Blobs, Column, ColumnReader, Table, Values};
use crate::engine::format::pb::schema::DataType;
use crate::engine::ids::{CollectionId, FieldId, PartitionId, SegmentId, Tso};

/// Event type of deletes.
const DELETE: i8 = 2;

/// Reads a delta log, a batch at a time.
pub struct DeltaReader {
    file: String,
    parts: std::collections::VecDeque<Part>,
    row: u64,
}

/// One Parquet file: keys and times, or lines that hold both.
struct Part {
    keys: ColumnReader,
    times: Option<ColumnReader>,
}

impl DeltaReader {
    /// Of any form: it is found by looking.
    pub fn open(file: &str, bytes: &Bytes, limits: Limits) -> Result<Self> {
        let form = delta_form(bytes).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                "a delta log begins like none of the known forms",
            )
            .with("file", file)
            .with("offset", 0)
        })?;
        let parts = tables(file, bytes, DELETE, limits)?
            .iter()
            .map(|table| match form {
                DeltaForm::V1Json => Ok(Part {
                    keys: table.column(0)?,
                    times: None,
                }),
                DeltaForm::V1MultiField | DeltaForm::Parquet => {
                    let (key, time) = places(file, table)?;
                    Ok(Part {
                        keys: table.column(key)?,
                        times: Some(table.column(time)?),
                    })
                }
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            file: file.to_owned(),
            parts,
            row: 0,
        })
    }

    /// Up to `most` more deletes; `None` after the last.
    pub fn batch(&mut self, most: usize) -> Result<Option<Vec<(PrimaryKey, Tso)>>> {
        while let Some(part) = self.parts.front_mut() {
            let found = part.keys.read(most)?;
            let from = part
                .times
                .as_mut()
                .map(|times| times.read(most))
                .transpose()?;
            if found.is_empty() {
                self.parts.pop_front();
                continue;
            }
            let mut out = Vec::with_capacity(found.len());
            for i in 0..found.len() {
                let delete = match &from {
                    None => line(&found, i),
                    Some(times) => pair(&found, times, i),
                };
                out.push(delete.ok_or_else(|| {
                    Error::new(ErrorKind::Corrupt, "a delete is not a key and a time")
                        .with("file", &self.file)
                        .with("row", self.row + i as u64)
                })?);
            }
            self.row += out.len() as u64;
            return Ok(Some(out));
        }
        Ok(None)
    }
}

/// Columns of key and time: by field id (0 and 1), by name, or the first two.
fn places(file: &str, table: &Table) -> Result<(usize, usize)> {
    let footer = table.footer();
    let by_id = footer.by_field(0).zip(footer.by_field(1));
    let by_name = footer.by_name("pk").zip(footer.by_name("ts"));
    let found = by_id
        .or(by_name)
        .or((footer.leaves.len() == 2).then_some((0, 1)));
    found.ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            "a delta log has no columns of key and time",
        )
        .with("file", file)
    })
}

fn pair(keys: &Column, times: &Column, i: usize) -> Option<(PrimaryKey, Tso)> {
    if keys.is_null(i) || times.is_null(i) {
        return None;
    }
    let key = match &keys.values {
        Values::Int64(keys) => PrimaryKey::Int(*keys.get(i)?),
        Values::Binary(keys) => PrimaryKey::Text(std::str::from_utf8(keys.get(i)).ok()?.to_owned()),
        _ => return None,
    };
    match &times.values {
        Values::Int64(times) => Some((key, Tso(times.get(i)?.cast_unsigned()))),
        _ => None,
    }
}

/// One JSON text, or `key,time` of the first versions.
fn line(lines: &Column, i: usize) -> Option<(PrimaryKey, Tso)> {
    let Values::Binary(texts) = &lines.values else {
        return None;
    };
    let text = std::str::from_utf8(texts.get(i)).ok()?;
    if lines.is_null(i) {
        return None;
    }
    if let Some((key, time)) = text.split_once(',')
        && let (Ok(key), Ok(time)) = (key.trim().parse(), time.trim().parse())
    {
        return Some((PrimaryKey::Int(key), Tso(time)));
    }
    let stored: Value = serde_json::from_str(text).ok()?;
    let time = Tso(stored.get("ts")?.as_u64()?);
    let key = match (
        stored.get("pkType").and_then(Value::as_i64),
        stored.get("pk")?,
    ) {
        (Some(20 | 21), Value::String(text)) => PrimaryKey::Text(text.clone()),
        (Some(5) | None, Value::Number(n)) => PrimaryKey::Int(n.as_i64()?),
        _ => return None,
    };
    Some((key, time))
}

/// The bytes of a delta log. `of` goes into the head of the storage V1 forms, `written` too. Without deletes there is no log.
pub fn write(
    form: DeltaForm,
    of: (CollectionId, PartitionId, SegmentId),
    deletes: &[(PrimaryKey, Tso)],
    written: Tso,
) -> Result<Vec<u8>> {
    let first = deletes
        .first()
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "a delta log without deletes"))?;
    let text = matches!(first.0, PrimaryKey::Text(_));
    if deletes
        .iter()
        .any(|(key, _)| matches!(key, PrimaryKey::Text(_)) != text)
    {
        return Err(Error::new(
            ErrorKind::Invalid,
            "a delta log has keys of one type",
        ));
    }
    let (from, to) = deletes
        .iter()
        .fold((first.1, first.1), |(from, to), (_, at)| {
            (from.min(*at), to.max(*at))
        });
    let times = || Values::Int64(deletes.iter().map(|(_, at)| at.0.cast_signed()).collect());
    let keys = || {
        let mut texts = Blobs::default();
        let mut numbers = Vec::new();
        for (key, _) in deletes {
            match key {
                PrimaryKey::Text(text) => texts.push(text.as_bytes()),
                PrimaryKey::Int(n) => numbers.push(*n),
            }
        }
        if text {
            Values::Text(texts)
        } else {
            Values::Int64(numbers)
        }
    };
    let key_type = if text {
        DataType::VarChar
    } else {
        DataType::Int64
    };
    let columns = || {
        vec![
            (Leaf::new("pk", Some(0), false), Column::of(keys())),
            (Leaf::new("ts", Some(1), false), Column::of(times())),
        ]
    };
    let mut head = V1Head {
        written,
        collection: of.0,
        partition: of.1,
        segment: of.2,
        field: FieldId(-1),
        range: (from, to),
        data_type: DataType::String as i32,
        event: DELETE,
        extras: serde_json::Map::new(),
    };
    let parquet = match form {
        DeltaForm::Parquet => return flat_file(columns()),
        DeltaForm::V1MultiField => {
            head.data_type = key_type as i32;
            let size: usize = columns().iter().map(|(_, c)| c.bytes()).sum();
            head.extras
                .insert("original_size".into(), size.to_string().into());
            head.extras.insert("version".into(), "MULTI_FIELD".into());
            flat_file(columns())?
        }
        DeltaForm::V1Json => {
            let mut lines = Blobs::default();
            for (key, at) in deletes {
                let key = match key {
                    PrimaryKey::Int(n) => Value::from(*n),
                    PrimaryKey::Text(text) => Value::from(text.as_str()),
                };
                let line = serde_json::json!({ "pk": key, "ts": at.0, "pkType": key_type as i32 });
                lines.push(line.to_string().as_bytes());
            }
            head.extras
                .insert("original_size".into(), lines.bytes().to_string().into());
            flat_file(vec![(
                Leaf::new("val", None, false),
                Column::of(Values::Text(lines)),
            )])?
        }
    };
    head.file(&parquet)
}
