//! Insert logs of storage V2: a Parquet file for each column group, as Milvus 2.6's packed writer makes them
//! (`spec/layout.md` §7.5).
//!
//! Each file carries `storage_version`, the fields of **all** groups of the log and the size of each of its row groups: Milvus
//! refuses to open one without them. Columns have the field's id, by which they are found again, and its name.

use std::sync::Arc;

use ::parquet::basic::{Compression, LogicalType, Repetition, Type as Stored, ZstdLevel};
use ::parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType,
    FloatType, Int32Type, Int64Type,
};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::types::{Type, TypePtr};
use bytes::Bytes;

use super::{Field, Rows, Schema, Shape};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::parquet::{Blobs, Column, Values};
use crate::engine::format::pb::schema::DataType;
use crate::engine::ids::{FieldId, Tso};

/// A row group is closed when its columns take this much memory: `DEFAULT_MAX_ROW_GROUP_SIZE` of milvus-storage.
const ROW_GROUP: usize = 1 << 20;
/// A field this wide on average has a group of its own: `PackedFieldSizeThreshold`.
const WIDE: usize = 1024;
/// Group of everything short, system fields included: `DefaultShortColumnGroupID`.
const SHORT: i64 = 0;

/// Fields that share a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its id: 0 for the short fields, the field's own id otherwise.
    pub id: FieldId,
    /// Its fields.
    pub fields: Vec<FieldId>,
}

/// A file of one group.
#[derive(Clone, Debug)]
pub struct GroupFile {
    /// The group.
    pub group: Group,
    /// The Parquet file.
    pub bytes: Bytes,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of its columns in memory: `Binlog.memory_size`.
    pub memory: u64,
    /// Nulls of each field that has some: `Binlog.field_null_counts`.
    pub nulls: Vec<(FieldId, i64)>,
    /// First and last insert.
    pub range: (Tso, Tso),
}

/// Which fields go together, by the rows that are written: vectors and texts alone, wide fields alone, the rest in group 0.
#[must_use]
pub fn groups(rows: &Rows) -> Vec<Group> {
    let mut short = Group {
        id: FieldId(SHORT),
        fields: Vec::new(),
    };
    let mut out = Vec::new();
    for (field, column) in rows.schema().fields.iter().zip(rows.columns()) {
        let wide = !rows.is_empty() && column.bytes() / rows.len() >= WIDE && field.id.0 >= 100;
        if field.is_vector() || field.data_type == DataType::Text || wide {
            out.push(Group {
                id: field.id,
                fields: vec![field.id],
            });
        } else {
            short.fields.push(field.id);
        }
    }
    out.insert(0, short);
    out
}

/// How a column is named and stored in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    name: String,
    id: Option<i32>,
    nullable: bool,
    data_type: Option<DataType>,
    /// Whether values repeat enough for a dictionary.
    dictionary: bool,
}

impl Leaf {
    pub fn new(name: &str, id: Option<i32>, nullable: bool) -> Self {
        Self {
            name: name.into(),
            id,
            nullable,
            data_type: None,
            dictionary: false,
        }
    }

    fn of(field: &Field) -> Self {
        // Keys and row ids differ in every row, vectors too: a dictionary of them is only work.
        let unique = field.primary || field.id == super::ROW_ID || field.is_vector();
        let dictionary = !unique && !matches!(field.shape, Shape::Float | Shape::Double);
        Self {
            name: field.name.clone(),
            id: i32::try_from(field.id.0).ok(),
            nullable: field.nullable,
            data_type: Some(field.data_type),
            dictionary,
        }
    }

    fn stored(&self, values: &Values) -> Result<Type, ParquetError> {
        let repetition = if self.nullable {
            Repetition::OPTIONAL
        } else {
            Repetition::REQUIRED
        };
        let leaf = |kind: Stored| {
            Type::primitive_type_builder(&self.name, kind)
                .with_repetition(repetition)
                .with_id(self.id)
        };
        let int = |bit_width| Some(LogicalType::integer(bit_width, true));
        match values {
            Values::Bool(_) => leaf(Stored::BOOLEAN).build(),
            Values::Int8(_) => leaf(Stored::INT32).with_logical_type(int(8)).build(),
            Values::Int16(_) => leaf(Stored::INT32).with_logical_type(int(16)).build(),
            Values::Int32(_) => leaf(Stored::INT32).build(),
            Values::Int64(_) => leaf(Stored::INT64).build(),
            Values::Float(_) => leaf(Stored::FLOAT).build(),
            Values::Double(_) => leaf(Stored::DOUBLE).build(),
            Values::Text(_) => leaf(Stored::BYTE_ARRAY)
                .with_logical_type(Some(LogicalType::String))
                .build(),
            Values::Binary(_) => leaf(Stored::BYTE_ARRAY).build(),
            // A null of fixed length would take its room: nullable vectors are stored with their length.
            Values::Fixed { .. } if self.nullable => leaf(Stored::BYTE_ARRAY).build(),
            Values::Fixed { width, .. } => leaf(Stored::FIXED_LEN_BYTE_ARRAY)
                .with_length(length(*width)?)
                .build(),
            Values::List { items, .. } => {
                let Values::Fixed { width, .. } = &items.values else {
                    return Err(ParquetError::General("a list of other than vectors".into()));
                };
                let element = Type::primitive_type_builder("element", Stored::FIXED_LEN_BYTE_ARRAY)
                    .with_repetition(Repetition::REQUIRED)
                    .with_length(length(*width)?)
                    .build()?;
                let list = Type::group_type_builder("list")
                    .with_repetition(Repetition::REPEATED)
                    .with_fields(vec![Arc::new(element)])
                    .build()?;
                Type::group_type_builder(&self.name)
                    .with_repetition(repetition)
                    .with_logical_type(Some(LogicalType::List))
                    .with_id(self.id)
                    .with_fields(vec![Arc::new(list)])
                    .build()
            }
        }
    }
}

fn length(width: usize) -> Result<i32, ParquetError> {
    i32::try_from(width).map_err(|_| ParquetError::General("a vector is too wide".into()))
}

fn failed(e: ParquetError) -> Error {
    Error::new(ErrorKind::Internal, "rows cannot be written as Parquet").caused_by(e)
}

/// The files of one log.
pub struct LogWriter {
    schema: Arc<Schema>,
    groups: Vec<GroupWriter>,
    rows: u64,
    range: Option<(Tso, Tso)>,
}

struct GroupWriter {
    group: Group,
    at: Vec<usize>,
    file: SerializedFileWriter<Vec<u8>>,
    waiting: Vec<Column>,
    /// Memory, rows and first row of each row group.
    written: Vec<(usize, u64, u64)>,
    rows: u64,
    memory: u64,
    nulls: Vec<i64>,
}

impl LogWriter {
    /// Files for these groups, as [`groups`] tells them for the first rows.
    pub fn new(schema: Arc<Schema>, of: &[Group]) -> Result<Self> {
        let list: Vec<String> = of
            .iter()
            .map(|g| {
                let ids: Vec<String> = g.fields.iter().map(ToString::to_string).collect();
                ids.join(",")
            })
            .collect();
        let list = list.join(";");
        let groups = of
            .iter()
            .map(|group| {
                let mut leaves = Vec::new();
                let mut at = Vec::new();
                for id in &group.fields {
                    let place = schema.position(*id).ok_or_else(|| {
                        Error::new(
                            ErrorKind::Internal,
                            "a column group names a field that is not there",
                        )
                        .with("field", id)
                    })?;
                    at.push(place);
                    leaves.push((
                        Leaf::of(&schema.fields[place]),
                        schema.fields[place].empty(),
                    ));
                }
                let mut file = open(&leaves).map_err(failed)?;
                file.append_key_value_metadata(KeyValue::new(
                    "group_field_id_list".to_owned(),
                    list.clone(),
                ));
                Ok(GroupWriter {
                    group: group.clone(),
                    at,
                    file,
                    nulls: vec![0; leaves.len()],
                    waiting: leaves.into_iter().map(|(_, column)| column).collect(),
                    written: Vec::new(),
                    rows: 0,
                    memory: 0,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            schema,
            groups,
            rows: 0,
            range: None,
        })
    }

    /// Adds rows.
    pub fn write(&mut self, rows: &Rows) -> Result<()> {
        if *rows.schema() != self.schema {
            return Err(Error::new(
                ErrorKind::Internal,
                "rows of another schema cannot be written",
            ));
        }
        if let Some((from, to)) = rows.time_range()? {
            self.range = Some(
                self.range
                    .map_or((from, to), |(a, b)| (a.min(from), b.max(to))),
            );
        }
        for group in &mut self.groups {
            let columns: Vec<&Column> = group
                .at
                .iter()
                .filter_map(|i| rows.columns().get(*i))
                .collect();
            group.add(&columns, rows.len())?;
        }
        self.rows += rows.len() as u64;
        Ok(())
    }

    /// Bytes that are in the files so far, and in memory for them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.groups
            .iter()
            .map(|g| g.file.bytes_written() + g.waiting.iter().map(Column::bytes).sum::<usize>())
            .sum()
    }

    /// The files. Without rows there are none.
    pub fn finish(self) -> Result<Vec<GroupFile>> {
        let Some(range) = self.range else {
            return Ok(Vec::new());
        };
        self.groups.into_iter().map(|g| g.finish(range)).collect()
    }
}

impl GroupWriter {
    fn add(&mut self, columns: &[&Column], len: usize) -> Result<()> {
        for (nulls, column) in self.nulls.iter_mut().zip(columns) {
            *nulls += i64::try_from(column.nulls()).unwrap_or(i64::MAX);
        }
        let each = columns.iter().map(|c| c.bytes()).sum::<usize>() / len.max(1) + 1;
        let mut from = 0;
        while from < len {
            let held: usize = self.waiting.iter().map(Column::bytes).sum();
            let room = (ROW_GROUP.saturating_sub(held) / each).max(1);
            let to = (from + room).min(len);
            for (waiting, column) in self.waiting.iter_mut().zip(columns) {
                if !waiting.append(column, from..to) {
                    return Err(Error::new(ErrorKind::Internal, "a column of another type"));
                }
            }
            from = to;
            if from < len || self.waiting.iter().map(Column::bytes).sum::<usize>() >= ROW_GROUP {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let rows = self.waiting.first().map_or(0, Column::len) as u64;
        if rows == 0 {
            return Ok(());
        }
        let memory: usize = self.waiting.iter().map(Column::bytes).sum();
        row_group(&mut self.file, &self.waiting).map_err(failed)?;
        self.written.push((memory, rows, self.rows));
        self.rows += rows;
        self.memory += memory as u64;
        for column in &mut self.waiting {
            *column = column.empty();
        }
        Ok(())
    }

    fn finish(mut self, range: (Tso, Tso)) -> Result<GroupFile> {
        self.flush()?;
        let sizes: Vec<String> = self
            .written
            .iter()
            .map(|(m, n, at)| format!("{m}|{n}|{at}"))
            .collect();
        for (key, value) in [
            ("row_group_metadata", sizes.join(";")),
            ("storage_version", "1.0.0".into()),
        ] {
            self.file
                .append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        let nulls = self.group.fields.iter().copied().zip(self.nulls);
        Ok(GroupFile {
            rows: self.rows,
            memory: self.memory,
            nulls: nulls.filter(|(_, n)| *n > 0).collect(),
            bytes: self.file.into_inner().map_err(failed)?.into(),
            group: self.group,
            range,
        })
    }
}

/// A file of these columns in one row group: delta logs.
pub(super) fn flat_file(columns: Vec<(Leaf, Column)>) -> Result<Vec<u8>> {
    let mut file = open(&columns).map_err(failed)?;
    let columns: Vec<Column> = columns.into_iter().map(|(_, column)| column).collect();
    row_group(&mut file, &columns).map_err(failed)?;
    file.into_inner().map_err(failed)
}

fn open(leaves: &[(Leaf, Column)]) -> Result<SerializedFileWriter<Vec<u8>>, ParquetError> {
    let fields: Vec<TypePtr> = leaves
        .iter()
        .map(|(leaf, column)| leaf.stored(&column.values).map(Arc::new))
        .collect::<Result<_, _>>()?;
    let schema = Type::group_type_builder("schema")
        .with_fields(fields)
        .build()?;
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_dictionary_enabled(false)
        .set_offset_index_disabled(true)
        .set_statistics_enabled(EnabledStatistics::Chunk);
    for (leaf, column) in leaves {
        let path = || ::parquet::schema::types::ColumnPath::new(vec![leaf.name.clone()]);
        if leaf.dictionary {
            properties = properties.set_column_dictionary_enabled(path(), true);
        }
        // The least and the greatest of vectors or documents say nothing.
        if matches!(
            column.values,
            Values::Fixed { .. } | Values::Binary(_) | Values::List { .. }
        ) {
            properties = properties.set_column_statistics_enabled(path(), EnabledStatistics::None);
        }
    }
    SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties.build()))
}

fn row_group(
    file: &mut SerializedFileWriter<Vec<u8>>,
    columns: &[Column],
) -> Result<(), ParquetError> {
    let mut group = file.next_row_group()?;
    for column in columns {
        let Some(mut writer) = group.next_column()? else {
            return Err(ParquetError::General("a column too many".into()));
        };
        write_column(&mut writer, column)?;
        writer.close()?;
    }
    group.close()?;
    Ok(())
}

/// Values that are there, and definition levels where the column can be null.
fn write_column(
    writer: &mut SerializedColumnWriter<'_>,
    column: &Column,
) -> Result<(), ParquetError> {
    use ::parquet::column::writer::ColumnWriter;
    if let Values::List { ends, items } = &column.values {
        return write_lists(writer, column, ends, items);
    }
    let can_be_null = match writer.untyped() {
        ColumnWriter::FixedLenByteArrayColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
        ColumnWriter::ByteArrayColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
        ColumnWriter::BoolColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
        ColumnWriter::Int32ColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
        ColumnWriter::Int64ColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
        ColumnWriter::Int96ColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
        ColumnWriter::FloatColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
        ColumnWriter::DoubleColumnWriter(w) => w.get_descriptor().max_def_level() > 0,
    };
    let levels: Option<Vec<i16>> = can_be_null.then(|| match &column.valid {
        Some(valid) => valid.iter().map(|there| i16::from(*there)).collect(),
        None => vec![1; column.len()],
    });
    let levels = levels.as_deref();
    macro_rules! numbers {
        ($kind:ty, $values:expr) => {{
            match &column.valid {
                None => writer.typed::<$kind>().write_batch($values, levels, None)?,
                Some(valid) => {
                    let there: Vec<_> = $values
                        .iter()
                        .zip(valid)
                        .filter(|(_, t)| **t)
                        .map(|(v, _)| *v)
                        .collect();
                    writer.typed::<$kind>().write_batch(&there, levels, None)?
                }
            }
        }};
    }
    match &column.values {
        Values::Bool(v) => numbers!(BoolType, v),
        Values::Int8(v) => numbers!(
            Int32Type,
            &v.iter().map(|n| i32::from(*n)).collect::<Vec<_>>()
        ),
        Values::Int16(v) => numbers!(
            Int32Type,
            &v.iter().map(|n| i32::from(*n)).collect::<Vec<_>>()
        ),
        Values::Int32(v) => numbers!(Int32Type, v),
        Values::Int64(v) => numbers!(Int64Type, v),
        Values::Float(v) => numbers!(FloatType, v),
        Values::Double(v) => numbers!(DoubleType, v),
        Values::Text(v) | Values::Binary(v) => {
            let values = byte_arrays(v, |i| !column.is_null(i));
            writer
                .typed::<ByteArrayType>()
                .write_batch(&values, levels, None)?
        }
        Values::Fixed { width, data } => {
            let whole = Bytes::copy_from_slice(data);
            let there = (0..column.len())
                .filter(|i| !column.is_null(*i))
                .map(|i| ByteArray::from(whole.slice(i * width..(i + 1) * width)));
            if can_be_null {
                let values: Vec<ByteArray> = there.collect();
                writer
                    .typed::<ByteArrayType>()
                    .write_batch(&values, levels, None)?
            } else {
                let values: Vec<FixedLenByteArray> = there.map(FixedLenByteArray::from).collect();
                writer
                    .typed::<FixedLenByteArrayType>()
                    .write_batch(&values, levels, None)?
            }
        }
        Values::List { .. } => 0,
    };
    Ok(())
}

fn byte_arrays(values: &Blobs, there: impl Fn(usize) -> bool) -> Vec<ByteArray> {
    let whole = Bytes::copy_from_slice(values.whole());
    (0..values.len())
        .filter(|i| there(*i))
        .map(|i| ByteArray::from(whole.slice(values.range(i))))
        .collect()
}

fn write_lists(
    writer: &mut SerializedColumnWriter<'_>,
    column: &Column,
    ends: &[usize],
    items: &Column,
) -> Result<(), ParquetError> {
    let Values::Fixed { width, data } = &items.values else {
        return Err(ParquetError::General("a list of other than vectors".into()));
    };
    let whole = Bytes::copy_from_slice(data);
    let writer = writer.typed::<FixedLenByteArrayType>();
    let there = writer.get_descriptor().max_def_level();
    let (mut defs, mut reps, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut start = 0;
    for (row, end) in ends.iter().enumerate() {
        if column.is_null(row) || start == *end {
            // One level below an item is a list without any; a null has none at all.
            defs.push(if column.is_null(row) { 0 } else { there - 1 });
            reps.push(0);
        }
        for (n, item) in (start..*end).enumerate() {
            defs.push(there);
            reps.push(i16::from(n > 0));
            values.push(FixedLenByteArray::from(ByteArray::from(
                whole.slice(item * width..(item + 1) * width),
            )));
        }
        start = *end;
    }
    writer.write_batch(&values, Some(&defs), Some(&reps))?;
    Ok(())
}
