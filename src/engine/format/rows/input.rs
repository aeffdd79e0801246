//! Rows that people bring: JSON lines and Parquet. They give the fields that a client gives; row id, timestamp and keys that the
//! server makes are added by [`complete`].

use std::io::BufRead;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Field, Limits, ROW_ID, Rows, Schema, Shape, TIMESTAMP, json};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::parquet::{Blobs, Column, ColumnReader, Table, Values};
use crate::engine::ids::Tso;

/// Bytes of a line: a row of the widest vectors, written as text, has about one.
const LINE: usize = 64 << 20;

/// The fields that a client gives.
#[must_use]
pub fn given(schema: &Schema) -> Arc<Schema> {
    schema.only(|f| {
        f.id != ROW_ID && f.id != TIMESTAMP && !(f.primary && f.auto_id) && !f.function_output
    })
}

/// Adds row ids from `first`, one timestamp, and the keys that the server makes, which are the row ids.
pub fn complete(rows: &Rows, schema: &Arc<Schema>, first: i64, at: Tso) -> Result<Rows> {
    let len = rows.len();
    let ids: Vec<i64> = (first..).take(len).collect();
    let columns = schema
        .fields
        .iter()
        .map(|field| {
            if let Some(found) = rows.column(field.id) {
                return Ok(found.clone());
            }
            match (field.id, field.shape) {
                (ROW_ID, _) => Ok(Column::of(Values::Int64(ids.clone()))),
                (TIMESTAMP, _) => Ok(Column::of(Values::Int64(vec![at.0.cast_signed(); len]))),
                _ if field.function_output => Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "field {} is made by a function, which is not run here",
                        field.name
                    ),
                )),
                (_, Shape::Int64) => Ok(Column::of(Values::Int64(ids.clone()))),
                (_, Shape::Text) => {
                    let mut out = Blobs::default();
                    for id in &ids {
                        out.push(id.to_string().as_bytes());
                    }
                    Ok(Column::of(Values::Text(out)))
                }
                _ => Err(Error::new(ErrorKind::Internal, "a key of no known type")),
            }
        })
        .collect::<Result<_>>()?;
    Rows::new(schema.clone(), columns)
}

/// Puts rows together, value by value.
struct Builder {
    schema: Arc<Schema>,
    columns: Vec<Column>,
    dynamic: Option<usize>,
    /// The fields that are not to be given.
    made: Vec<String>,
}

impl Builder {
    fn new(whole: &Schema) -> Self {
        let schema = given(whole);
        let made = whole
            .fields
            .iter()
            .filter(|f| schema.position(f.id).is_none());
        Self {
            columns: schema.fields.iter().map(Field::empty).collect(),
            dynamic: schema.fields.iter().position(|f| f.dynamic),
            made: made.map(|f| f.name.clone()).collect(),
            schema,
        }
    }

    /// Adds a row, or says what is wrong with it and adds nothing.
    fn add(&mut self, mut row: Map<String, Value>) -> Result<(), String> {
        if let Some(made) = self.made.iter().find(|name| row.contains_key(*name)) {
            return Err(format!("field {made} is not given, the server makes it"));
        }
        let mut extra = Map::new();
        if let Some(at) = self.dynamic
            && let Some(whole) = row.remove(&self.schema.fields[at].name)
        {
            match whole {
                Value::Object(found) => extra = found,
                other => {
                    return Err(format!(
                        "field {} is {other}, not an object",
                        self.schema.fields[at].name
                    ));
                }
            }
        }
        let before = self.columns.first().map_or(0, Column::len);
        for at in 0..self.columns.len() {
            let field = &self.schema.fields[at];
            if self.dynamic == Some(at) {
                continue;
            }
            let value = row.remove(&field.name);
            if let Err(why) = json::push(field, &mut self.columns[at], value.as_ref()) {
                self.back_to(before);
                return Err(format!("field {} {why}", self.schema.fields[at].name));
            }
        }
        if let Some(at) = self.dynamic {
            extra.extend(row);
            if let Err(why) = json::push(
                &self.schema.fields[at],
                &mut self.columns[at],
                Some(&extra.into()),
            ) {
                self.back_to(before);
                return Err(format!("field {} {why}", self.schema.fields[at].name));
            }
        } else if let Some(name) = row.keys().next() {
            let why = format!("the collection has no field {name}, and no dynamic field");
            self.back_to(before);
            return Err(why);
        }
        Ok(())
    }

    fn back_to(&mut self, len: usize) {
        let rows: Vec<u32> = (0u32..).take(len).collect();
        for column in &mut self.columns {
            if column.len() > len {
                *column = column.take(&rows);
            }
        }
    }

    fn finish(&mut self) -> Result<Option<Rows>> {
        let columns: Vec<Column> = self
            .columns
            .iter_mut()
            .zip(&self.schema.fields)
            .map(|(column, field)| {
                let mut found = std::mem::replace(column, field.empty());
                found.tidy();
                found
            })
            .collect();
        let rows = Rows::new(self.schema.clone(), columns)?;
        Ok((!rows.is_empty()).then_some(rows))
    }
}

/// Rows of a file with one JSON object a line. Empty lines are skipped.
pub struct JsonLines<R> {
    name: String,
    reader: R,
    builder: Builder,
    line: u64,
}

impl<R: BufRead> JsonLines<R> {
    /// `name` is said in errors.
    pub fn new(name: &str, schema: &Schema, reader: R) -> Self {
        Self {
            name: name.to_owned(),
            reader,
            builder: Builder::new(schema),
            line: 0,
        }
    }

    /// Up to `most` more rows, of the fields that are [`given`]; `None` after the last.
    pub fn batch(&mut self, most: usize) -> Result<Option<Rows>> {
        let mut text = Vec::new();
        let mut added = 0;
        while added < most {
            text.clear();
            self.line += 1;
            let limit = LINE as u64 + 1;
            let read = std::io::Read::take(&mut self.reader, limit).read_until(b'\n', &mut text);
            let read = read.map_err(|e| self.wrong("cannot be read").caused_by(e))?;
            if read == 0 {
                break;
            }
            if text.len() > LINE {
                return Err(self.wrong("is longer than 64 MiB"));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let row = match serde_json::from_slice(&text) {
                Ok(Value::Object(row)) => row,
                Ok(_) => return Err(self.wrong("is not a JSON object")),
                Err(e) => return Err(self.wrong("is not JSON").caused_by(e)),
            };
            if let Err(why) = self.builder.add(row) {
                return Err(self.wrong(&format!(": {why}")));
            }
            added += 1;
        }
        self.builder.finish()
    }

    fn wrong(&self, why: &str) -> Error {
        let space = if why.starts_with(':') { "" } else { " " };
        Error::new(
            ErrorKind::Invalid,
            format!("line {}{space}{why}", self.line),
        )
        .with("file", &self.name)
        .fix("correct the line; no row of the file from it on was taken")
    }
}

/// Rows of a Parquet file: columns by their names, lists for vectors and arrays, text for JSON. Further columns go into the
/// dynamic field.
pub struct ParquetRows {
    name: String,
    columns: Vec<(String, bool, ColumnReader)>,
    builder: Builder,
    row: u64,
}

impl ParquetRows {
    /// `name` is said in errors.
    pub fn open(name: &str, schema: &Schema, bytes: Bytes, limits: Limits) -> Result<Self> {
        let table = Table::open(name, bytes, limits)?;
        let builder = Builder::new(schema);
        let mut columns = Vec::new();
        for (at, leaf) in table.footer().leaves.iter().enumerate() {
            if matches!(leaf.converted, Some(5 | 12 | 13 | 14)) && !leaf.is_list() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "column {} is a decimal or a wide unsigned number",
                        leaf.name
                    ),
                )
                .with("file", name)
                .fix("store it as a signed integer, a float or a text"));
            }
            let text = leaf.converted == Some(0);
            columns.push((leaf.name.clone(), text, table.column(at)?));
        }
        Ok(Self {
            name: name.to_owned(),
            columns,
            builder,
            row: 0,
        })
    }

    /// Up to `most` more rows, of the fields that are [`given`]; `None` after the last.
    pub fn batch(&mut self, most: usize) -> Result<Option<Rows>> {
        let mut read = Vec::new();
        for (name, text, reader) in &mut self.columns {
            read.push((name.clone(), *text, reader.read(most)?));
        }
        let len = read.first().map_or(0, |(_, _, column)| column.len());
        if let Some(rows) = self.direct(&read, len)? {
            self.row += rows.len() as u64;
            return Ok((!rows.is_empty()).then_some(rows));
        }
        for i in 0..len {
            let mut row = Map::new();
            for (name, text, column) in &read {
                let field = self.builder.schema.named(name);
                let value = plain(field, *text, column, i);
                let value =
                    value.and_then(|v| if v.is_null() { None } else { Some(Ok(v)) }.transpose());
                match value {
                    Ok(Some(value)) => {
                        row.insert(name.clone(), value);
                    }
                    Ok(None) => {}
                    Err(why) => return Err(self.wrong(&format!("field {name} {why}"))),
                }
            }
            if let Err(why) = self.builder.add(row) {
                return Err(self.wrong(&why));
            }
            self.row += 1;
        }
        self.builder.finish()
    }

    /// The whole batch at once, where every column already has the form of its field.
    fn direct(&self, read: &[(String, bool, Column)], len: usize) -> Result<Option<Rows>> {
        let schema = &self.builder.schema;
        if read.iter().any(|(name, _, _)| schema.named(name).is_none()) {
            return Ok(None);
        }
        let mut columns = Vec::new();
        for field in &schema.fields {
            let found = read.iter().find(|(name, _, _)| *name == field.name);
            let Some((_, _, column)) = found else {
                if field.nullable || field.default.is_some() || field.dynamic {
                    columns.push(json::absent(field, len));
                    continue;
                }
                return Ok(None);
            };
            let same = match (field.shape, &column.values) {
                (Shape::Bool, Values::Bool(_))
                | (Shape::Int32, Values::Int32(_))
                | (Shape::Int64, Values::Int64(_))
                | (Shape::Float, Values::Float(_))
                | (Shape::Double, Values::Double(_)) => Some(column.clone()),
                (Shape::Fixed(width), Values::List { ends, items }) => {
                    floats(field, width, ends, items)
                }
                _ => None,
            };
            match same {
                Some(same) if column.valid.is_none() => columns.push(same),
                _ => return Ok(None),
            }
        }
        Rows::new(schema.clone(), columns).map(Some)
    }

    fn wrong(&self, why: &str) -> Error {
        Error::new(ErrorKind::Invalid, format!("row {}: {why}", self.row))
            .with("file", &self.name)
            .fix("correct the row; no row of the file from it on was taken")
    }
}

/// Lists of floats that all have the field's dimension.
fn floats(field: &Field, width: usize, ends: &[usize], items: &Column) -> Option<Column> {
    use crate::engine::format::pb::schema::DataType;
    let Values::Float(floats) = &items.values else {
        return None;
    };
    let even = ends
        .iter()
        .enumerate()
        .all(|(i, end)| *end == (i + 1) * field.dim);
    if field.data_type != DataType::FloatVector
        || !even
        || items.valid.is_some()
        || !floats.iter().all(|f| f.is_finite())
    {
        return None;
    }
    let data: Vec<u8> = floats.iter().flat_map(|f| f.to_le_bytes()).collect();
    Some(Column::of(Values::Fixed { width, data }))
}

/// A value of a foreign file as JSON.
fn plain(field: Option<&Field>, text: bool, column: &Column, i: usize) -> Result<Value, String> {
    if column.is_null(i) {
        return Ok(Value::Null);
    }
    Ok(match &column.values {
        Values::Bool(v) => v[i].into(),
        Values::Int8(v) => v[i].into(),
        Values::Int16(v) => v[i].into(),
        Values::Int32(v) => v[i].into(),
        Values::Int64(v) => v[i].into(),
        Values::Float(v) => json_number(f64::from(v[i]))?,
        Values::Double(v) => json_number(v[i])?,
        Values::Text(v) | Values::Binary(v) => {
            let raw = v.get(i);
            let found = std::str::from_utf8(raw).map_err(|_| "is not UTF-8")?;
            // Documents and sparse vectors come as JSON text, a text stays one.
            match field.map(|f| f.shape) {
                Some(Shape::Binary | Shape::Fixed(_) | Shape::FixedList(_)) => {
                    serde_json::from_str(found).map_err(|_| "is not JSON")?
                }
                Some(_) => found.into(),
                None if text => found.into(),
                None => return Err("is neither a field nor a text".into()),
            }
        }
        Values::Fixed { .. } => {
            return Err("is of fixed length, which no field is inserted from".into());
        }
        Values::List { ends, items } => {
            let start = i.checked_sub(1).map_or(0, |before| ends[before]);
            let one = |n| plain(None, true, items, n);
            (start..ends[i])
                .map(one)
                .collect::<Result<Vec<_>, _>>()?
                .into()
        }
    })
}

fn json_number(v: f64) -> Result<Value, String> {
    serde_json::Number::from_f64(v)
        .map(Value::Number)
        .ok_or_else(|| format!("is {v}, which is no number"))
}
