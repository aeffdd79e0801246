//! Insert logs: a field a file in storage V1 (Parquet inside an event), a column group a file in storage V2 (Parquet).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{Field, Limits, Rows, Schema};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::binlog::{V1_MAGIC, V1Header, v1_events};
use crate::engine::format::parquet::{Column, ColumnReader, Table};
use crate::engine::ids::FieldId;

/// Event type of rows.
const INSERT: i8 = 1;

/// The Parquet files inside a log: one for each event of a storage V1 file of this kind, the file itself otherwise.
pub fn tables(file: &str, bytes: &Bytes, event: i8, limits: Limits) -> Result<Vec<Table>> {
    if !bytes.starts_with(&V1_MAGIC) {
        return Ok(vec![Table::open(file, bytes.clone(), limits)?]);
    }
    let header = V1Header::parse(file, bytes)?;
    v1_events(file, bytes, &header)?
        .into_iter()
        .map(|found| {
            if found.kind != event {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "an event of type {} stands where {event} belongs",
                        found.kind
                    ),
                )
                .with("file", file)
                .with("offset", found.payload.start));
            }
            Table::open(file, bytes.slice(found.payload), limits)
        })
        .collect()
}

/// One column through several Parquet files.
struct Through {
    file: Arc<str>,
    readers: VecDeque<ColumnReader>,
}

impl Through {
    fn read(&mut self, field: &Field, rows: usize) -> Result<Column> {
        let mut out = field.empty();
        while out.len() < rows {
            let Some(reader) = self.readers.front_mut() else {
                break;
            };
            let found = reader.read(rows - out.len())?;
            if found.is_empty() {
                self.readers.pop_front();
                continue;
            }
            let found = field.shaped(&self.file, found)?;
            let all = 0..found.len();
            if !out.append(&found, all) {
                return Err(Error::new(ErrorKind::Internal, "a column of another shape"));
            }
        }
        out.tidy();
        Ok(out)
    }
}

/// Reads the rows of one log: the files of all its fields or column groups, which hold the same rows.
pub struct LogReader {
    schema: Arc<Schema>,
    columns: Vec<Option<Through>>,
    rows: u64,
}

impl LogReader {
    /// `files` are name and bytes; `field` is the id of a storage V1 file's one field. Fields of the schema that no file has get
    /// their default value, or null: they were added later. The system fields and the key must be there.
    pub fn open(
        schema: Arc<Schema>,
        files: Vec<(String, Option<FieldId>, Bytes)>,
        limits: Limits,
    ) -> Result<Self> {
        let mut columns: Vec<Option<Through>> = schema.fields.iter().map(|_| None).collect();
        let mut rows = None;
        for (name, only, bytes) in files {
            let v1 = bytes.starts_with(&V1_MAGIC);
            let found = tables(&name, &bytes, INSERT, limits)?;
            let file: Arc<str> = name.as_str().into();
            let mut count = 0u64;
            for table in &found {
                count = count.saturating_add(table.footer().rows);
                for (at, field) in schema.fields.iter().enumerate() {
                    let leaf = if v1 {
                        (only == Some(field.id)).then_some(0)
                    } else {
                        leaf_of(table, field)
                    };
                    let Some(leaf) = leaf else { continue };
                    let reader = table.column(leaf)?;
                    let through = columns[at].get_or_insert_with(|| Through {
                        file: file.clone(),
                        readers: VecDeque::new(),
                    });
                    if through.file != file {
                        return Err(Error::new(
                            ErrorKind::Corrupt,
                            format!(
                                "field {} {} is in two files of one log",
                                field.id, field.name
                            ),
                        )
                        .with("file", &name)
                        .with("other", &through.file));
                    }
                    through.readers.push_back(reader);
                }
            }
            match &rows {
                None => rows = Some((count, name)),
                Some((known, _)) if *known == count => {}
                Some((known, other)) => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("two files of one log have {count} and {known} rows"),
                    )
                    .with("file", &name)
                    .with("other", other));
                }
            }
        }
        for (field, column) in schema.fields.iter().zip(&columns) {
            let may_lack = field.nullable || field.default.is_some() || field.dynamic;
            if column.is_none() && !may_lack && rows.is_some() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("no file holds field {} {}", field.id, field.name),
                )
                .with("file", rows.as_ref().map_or("", |(_, name)| name.as_str())));
            }
        }
        Ok(Self {
            schema,
            columns,
            rows: rows.map_or(0, |(count, _)| count),
        })
    }

    /// Rows of the log, by its footers.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Up to `most` more rows; `None` after the last.
    pub fn batch(&mut self, most: usize) -> Result<Option<Rows>> {
        let mut columns: Vec<Option<Column>> = Vec::new();
        let mut len = None;
        for (field, column) in self.schema.fields.iter().zip(&mut self.columns) {
            let found = column
                .as_mut()
                .map(|through| through.read(field, most))
                .transpose()?;
            if let Some(found) = &found {
                len = len.or(Some(found.len()));
            }
            columns.push(found);
        }
        let len = len.unwrap_or(0);
        if len == 0 {
            return Ok(None);
        }
        let columns = self
            .schema
            .fields
            .iter()
            .zip(columns)
            .map(|(field, column)| column.unwrap_or_else(|| super::json::absent(field, len)))
            .collect();
        Rows::new(self.schema.clone(), columns).map(Some)
    }
}

/// The column of a field: by its id; by the id as a name, as the newest writer names columns.
fn leaf_of(table: &Table, field: &Field) -> Option<usize> {
    let footer = table.footer();
    footer.by_field(field.id.0).or_else(|| {
        // Only where the file has no ids at all: a name may be another field's id.
        let no_ids = footer.leaves.iter().all(|leaf| leaf.field_id.is_none());
        no_ids
            .then(|| footer.by_name(&field.id.0.to_string()))
            .flatten()
    })
}
