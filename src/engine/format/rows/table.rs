//! Rows as columns of equal length, and what is done with them: select, split, delete.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::schema::{Schema, TIMESTAMP};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::parquet::{Column, Values};
use crate::engine::ids::{FieldId, Tso};

/// A primary key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is its type")]
pub enum PrimaryKey {
    Int(i64),
    Text(String),
}

impl std::fmt::Display for PrimaryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(n) => write!(f, "{n}"),
            Self::Text(t) => f.write_str(t),
        }
    }
}

/// Deleted keys, each with its latest delete. A row is deleted when its insert is **before** that: an upsert deletes and
/// inserts at one timestamp, and its new row stays (Milvus's compaction compares the same way).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletes(HashMap<PrimaryKey, Tso>);

impl Deletes {
    /// Notes a delete.
    pub fn add(&mut self, key: PrimaryKey, at: Tso) {
        let latest = self.0.entry(key).or_insert(at);
        *latest = at.max(*latest);
    }

    /// Distinct keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The latest delete of a key.
    #[must_use]
    pub fn of(&self, key: &PrimaryKey) -> Option<Tso> {
        self.0.get(key).copied()
    }

    /// Each key and its latest delete, by key.
    #[must_use]
    pub fn sorted(&self) -> Vec<(PrimaryKey, Tso)> {
        let mut all: Vec<_> = self.0.iter().map(|(k, at)| (k.clone(), *at)).collect();
        all.sort_unstable();
        all
    }
}

/// Rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    schema: Arc<Schema>,
    columns: Vec<Column>,
    len: usize,
}

impl Rows {
    /// Columns in the schema's order.
    pub fn new(schema: Arc<Schema>, columns: Vec<Column>) -> Result<Self> {
        let fail = |why: String| Err(Error::new(ErrorKind::Corrupt, why));
        if columns.len() != schema.fields.len() {
            return fail(format!(
                "{} columns for {} fields",
                columns.len(),
                schema.fields.len()
            ));
        }
        let len = columns.first().map_or(0, Column::len);
        for (field, column) in schema.fields.iter().zip(&columns) {
            if column.len() != len {
                return fail(format!(
                    "field {} {} has {} rows, field {} has {len}",
                    field.id,
                    field.name,
                    column.len(),
                    schema.fields[0].id
                ));
            }
            if std::mem::discriminant(&column.values)
                != std::mem::discriminant(&field.empty().values)
            {
                return fail(format!(
                    "field {} {} has values of another type",
                    field.id, field.name
                ));
            }
        }
        Ok(Self {
            schema,
            columns,
            len,
        })
    }

    /// No rows.
    #[must_use]
    pub fn empty(schema: Arc<Schema>) -> Self {
        let columns = schema.fields.iter().map(super::Field::empty).collect();
        Self {
            schema,
            columns,
            len: 0,
        }
    }

    /// The fields.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Columns, in the schema's order.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in memory, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.columns.iter().map(Column::bytes).sum()
    }

    /// A field's column.
    #[must_use]
    pub fn column(&self, id: FieldId) -> Option<&Column> {
        self.schema.position(id).and_then(|at| self.columns.get(at))
    }

    fn internal(what: &str) -> Error {
        Error::new(ErrorKind::Internal, format!("the rows have no {what}"))
    }

    /// Insert times.
    pub fn timestamps(&self) -> Result<&[i64]> {
        match self.column(TIMESTAMP).map(|c| &c.values) {
            Some(Values::Int64(times)) => Ok(times),
            _ => Err(Self::internal("Timestamp field")),
        }
    }

    /// When row `i` was inserted.
    pub fn time(&self, i: usize) -> Result<Tso> {
        let found = self.timestamps()?.get(i).copied();
        found
            .map(|ts| Tso(ts.cast_unsigned()))
            .ok_or_else(|| Self::internal("such row"))
    }

    /// The column of the primary key.
    pub fn keys(&self) -> Result<&Column> {
        let id = self.schema.primary()?.id;
        self.column(id).ok_or_else(|| Self::internal("primary key"))
    }

    /// The primary key of row `i`.
    pub fn key(&self, i: usize) -> Result<PrimaryKey> {
        match &self.keys()?.values {
            Values::Int64(keys) => keys.get(i).map(|k| PrimaryKey::Int(*k)),
            Values::Text(keys) if i < keys.len() => Some(PrimaryKey::Text(
                String::from_utf8_lossy(keys.get(i)).into_owned(),
            )),
            _ => None,
        }
        .ok_or_else(|| Self::internal("primary key of a known type"))
    }

    /// First and last insert; `None` without rows.
    pub fn time_range(&self) -> Result<Option<(Tso, Tso)>> {
        let times = self.timestamps()?.iter().map(|t| Tso(t.cast_unsigned()));
        Ok(times.fold(None, |range, t| match range {
            None => Some((t, t)),
            Some((from, to)) => Some((from.min(t), to.max(t))),
        }))
    }

    /// The rows at these places, in this order.
    #[must_use]
    pub fn take(&self, rows: &[u32]) -> Self {
        Self {
            schema: self.schema.clone(),
            columns: self
                .columns
                .iter()
                .map(|c| c.take(rows))
                .map(tidy)
                .collect(),
            len: rows.len(),
        }
    }

    /// A part of them.
    #[must_use]
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let mut out = Self::empty(self.schema.clone());
        // Same schema: appending cannot fail.
        let _ = out.append_part(self, rows);
        out
    }

    /// Adds rows of the same schema.
    pub fn append(&mut self, more: &Self) -> Result<()> {
        self.append_part(more, 0..more.len)
    }

    /// Adds some rows of the same schema.
    pub fn append_part(&mut self, more: &Self, rows: Range<usize>) -> Result<()> {
        if self.schema != more.schema || rows.end > more.len || rows.start > rows.end {
            return Err(Error::new(
                ErrorKind::Internal,
                "rows of another schema cannot be added",
            ));
        }
        for (to, from) in self.columns.iter_mut().zip(&more.columns) {
            if !to.append(from, rows.clone()) {
                return Err(Self::internal("such column"));
            }
            to.tidy();
        }
        self.len += rows.len();
        Ok(())
    }

    /// As Milvus sees the rows of a segment with a commit timestamp: inserted at it, or later.
    #[must_use]
    pub fn committed(mut self, at: Tso) -> Self {
        let times = self.schema.position(TIMESTAMP);
        if let Some(column) = times.and_then(|i| self.columns.get_mut(i))
            && let Values::Int64(times) = &mut column.values
        {
            for time in times {
                *time = time.cast_unsigned().max(at.0).cast_signed();
            }
        }
        self
    }

    /// Which rows are not deleted, and were there at `at` (inserted at it or before); `None` = now.
    pub fn alive(&self, deletes: &Deletes, at: Option<Tso>) -> Result<Vec<bool>> {
        let times = self.timestamps()?;
        let mut out = Vec::with_capacity(self.len);
        for (i, time) in times.iter().enumerate() {
            let time = Tso(time.cast_unsigned());
            let deleted = !deletes.is_empty()
                && deletes
                    .of(&self.key(i)?)
                    .is_some_and(|delete| time < delete && at.is_none_or(|at| delete <= at));
            out.push(!deleted && at.is_none_or(|at| time <= at));
        }
        Ok(out)
    }

    /// Without the fields that `schema` has not.
    pub fn project(&self, schema: &Arc<Schema>) -> Result<Self> {
        let columns = schema
            .fields
            .iter()
            .map(|f| {
                self.column(f.id)
                    .cloned()
                    .ok_or_else(|| Self::internal("such field"))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            schema: schema.clone(),
            columns,
            len: self.len,
        })
    }

    /// The rows that `keep` says, in their order.
    #[must_use]
    pub fn filter(&self, keep: &[bool]) -> Self {
        if keep.len() == self.len && keep.iter().all(|k| *k) {
            return self.clone();
        }
        let rows: Vec<u32> = (0u32..)
            .zip(keep)
            .filter(|(_, keep)| **keep)
            .map(|(i, _)| i)
            .collect();
        self.take(&rows)
    }

    /// Cuts them into parts of about `bytes` bytes each, at least one row in each.
    #[must_use]
    pub fn split(&self, bytes: usize) -> Vec<Self> {
        if self.len == 0 {
            return Vec::new();
        }
        let each = (self.bytes() / self.len).max(1);
        let step = (bytes / each).max(1);
        (0..self.len)
            .step_by(step)
            .map(|from| self.slice(from..(from + step).min(self.len)))
            .collect()
    }
}

fn tidy(mut column: Column) -> Column {
    column.tidy();
    column
}

/// Compares the keys of two rows. Both columns are of the primary key of one collection.
pub(super) fn compare(a: &Column, i: usize, b: &Column, j: usize) -> Ordering {
    match (&a.values, &b.values) {
        (Values::Int64(a), Values::Int64(b)) => a.get(i).cmp(&b.get(j)),
        (Values::Text(a), Values::Text(b)) => a.get(i).cmp(b.get(j)),
        _ => Ordering::Equal,
    }
}
