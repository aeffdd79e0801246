//! The fields of a collection, as far as rows need them.

use std::sync::Arc;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::parquet::{Blobs, Column, Values};
use crate::engine::format::pb::schema::{
    CollectionSchema, DataType, FieldSchema, ValueField, value_field,
};
use crate::engine::ids::FieldId;

/// System field: the row's own id.
pub const ROW_ID: FieldId = FieldId(0);
/// System field: the TSO of its insert.
pub const TIMESTAMP: FieldId = FieldId(1);

/// How the values of a field lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its type")]
pub enum Shape {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Float,
    Double,
    Text,
    Binary,
    /// So many bytes a row.
    Fixed(usize),
    /// Vectors of so many bytes, any number a row.
    FixedList(usize),
}

/// A field.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its id.
    pub id: FieldId,
    /// Its name; `struct[name]` inside a struct array.
    pub name: String,
    /// `schema.DataType`.
    pub data_type: DataType,
    /// Of array items.
    pub element_type: DataType,
    /// Dimension of vectors.
    pub dim: usize,
    /// `max_length` in bytes, of text.
    pub max_length: Option<usize>,
    /// `max_capacity` of arrays.
    pub max_capacity: Option<usize>,
    /// Primary key.
    pub primary: bool,
    /// The server makes its values.
    pub auto_id: bool,
    /// May be null.
    pub nullable: bool,
    /// Holds what the schema has no field for.
    pub dynamic: bool,
    /// Partition key.
    pub partition_key: bool,
    /// A function makes its values.
    pub function_output: bool,
    /// For rows that do not give one.
    pub default: Option<value_field::Data>,
    /// How values lie in memory.
    pub shape: Shape,
}

/// Fields in the order of their ids, system fields first.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// The fields.
    pub fields: Vec<Field>,
    /// The dynamic field is on.
    pub dynamic: bool,
}

impl Field {
    fn system(id: FieldId, name: &str) -> Self {
        Self {
            id,
            name: name.into(),
            data_type: DataType::Int64,
            element_type: DataType::None,
            dim: 0,
            max_length: None,
            max_capacity: None,
            primary: false,
            auto_id: false,
            nullable: false,
            dynamic: false,
            partition_key: false,
            function_output: false,
            default: None,
            shape: Shape::Int64,
        }
    }

    fn of(stored: &FieldSchema, name: String) -> Result<Self> {
        let fail = |kind: ErrorKind, why: String| {
            Error::new(kind, why).with("field", format!("{} {name}", stored.field_id))
        };
        let number = |key: &str| {
            let found = stored.type_params.iter().find(|p| p.key == key);
            found.map(|p| {
                p.value.parse::<usize>().map_err(|_| {
                    fail(
                        ErrorKind::Corrupt,
                        format!("{key} is no number: {}", p.value),
                    )
                })
            })
        };
        let data_type = DataType::try_from(stored.data_type).map_err(|_| {
            fail(
                ErrorKind::Unsupported,
                format!("data type {} is not known here", stored.data_type),
            )
        })?;
        let dim = number("dim").transpose()?;
        let vector = || match dim {
            Some(dim) if (1..=1 << 20).contains(&dim) => Ok(dim),
            Some(dim) => Err(fail(
                ErrorKind::Corrupt,
                format!("a dimension of {dim} is impossible"),
            )),
            None => Err(fail(
                ErrorKind::Corrupt,
                "a vector field has no dimension".into(),
            )),
        };
        let element_type = DataType::try_from(stored.element_type).unwrap_or(DataType::None);
        let width = |of: DataType, dim: usize| match of {
            DataType::FloatVector => Some(dim * 4),
            DataType::Float16Vector | DataType::BFloat16Vector => Some(dim * 2),
            DataType::Int8Vector => Some(dim),
            DataType::BinaryVector => Some(dim.div_ceil(8)),
            _ => None,
        };
        let shape = match data_type {
            DataType::Bool => Shape::Bool,
            DataType::Int8 => Shape::Int8,
            DataType::Int16 => Shape::Int16,
            DataType::Int32 => Shape::Int32,
            DataType::Int64 | DataType::Timestamptz => Shape::Int64,
            DataType::Float => Shape::Float,
            DataType::Double => Shape::Double,
            DataType::String | DataType::VarChar | DataType::Text => Shape::Text,
            DataType::Array | DataType::Json | DataType::Geometry | DataType::SparseFloatVector => {
                Shape::Binary
            }
            DataType::ArrayOfVector => {
                let dim = vector()?;
                let width = width(element_type, dim).ok_or_else(|| {
                    fail(
                        ErrorKind::Corrupt,
                        "an array of vectors does not say of which".into(),
                    )
                })?;
                Shape::FixedList(width)
            }
            other => match width(other, if dim.is_some() { vector()? } else { 0 }) {
                Some(0) => {
                    return Err(fail(
                        ErrorKind::Corrupt,
                        "a vector field has no dimension".into(),
                    ));
                }
                Some(width) => Shape::Fixed(width),
                None => {
                    return Err(fail(
                        ErrorKind::Unsupported,
                        format!("rows of type {} are not known here", other.as_str_name()),
                    ));
                }
            },
        };
        Ok(Self {
            id: FieldId(stored.field_id),
            data_type,
            element_type,
            dim: dim.unwrap_or(0),
            max_length: number("max_length").transpose()?,
            max_capacity: number("max_capacity").transpose()?,
            primary: stored.is_primary_key,
            auto_id: stored.auto_id,
            nullable: stored.nullable,
            dynamic: stored.is_dynamic,
            partition_key: stored.is_partition_key,
            function_output: stored.is_function_output,
            default: stored
                .default_value
                .as_ref()
                .and_then(|v: &ValueField| v.data.clone()),
            shape,
            name,
        })
    }

    /// Whether it is a vector of any kind: a column group of its own.
    #[must_use]
    pub fn is_vector(&self) -> bool {
        matches!(
            self.data_type,
            DataType::BinaryVector
                | DataType::FloatVector
                | DataType::Float16Vector
                | DataType::BFloat16Vector
                | DataType::SparseFloatVector
                | DataType::Int8Vector
                | DataType::ArrayOfVector
        )
    }

    /// A column of it, without rows.
    #[must_use]
    pub fn empty(&self) -> Column {
        let fixed = |width| Values::Fixed {
            width,
            data: Vec::new(),
        };
        Column::of(match self.shape {
            Shape::Bool => Values::Bool(Vec::new()),
            Shape::Int8 => Values::Int8(Vec::new()),
            Shape::Int16 => Values::Int16(Vec::new()),
            Shape::Int32 => Values::Int32(Vec::new()),
            Shape::Int64 => Values::Int64(Vec::new()),
            Shape::Float => Values::Float(Vec::new()),
            Shape::Double => Values::Double(Vec::new()),
            Shape::Text => Values::Text(Blobs::default()),
            Shape::Binary => Values::Binary(Blobs::default()),
            Shape::Fixed(width) => fixed(width),
            Shape::FixedList(width) => Values::List {
                ends: Vec::new(),
                items: Box::new(Column::of(fixed(width))),
            },
        })
    }

    /// `column`, as a file stores it, in this field's shape. `file` is named in errors.
    pub fn shaped(&self, file: &str, column: Column) -> Result<Column> {
        let Column { values, valid } = column;
        let fail = |row: usize, why: String| {
            Error::new(ErrorKind::Corrupt, why)
                .with("file", file)
                .with("field", format!("{} {}", self.id, self.name))
                .with("row", row)
        };
        let there = |i: usize| {
            valid
                .as_ref()
                .is_none_or(|v| v.get(i).copied().unwrap_or(false))
        };
        if !self.nullable
            && let Some(row) = valid
                .as_ref()
                .and_then(|v| v.iter().position(|there| !there))
        {
            return Err(fail(row, "a field that cannot be null is null".into()));
        }
        macro_rules! narrowed {
            ($from:expr, $type:ty) => {
                $from
                    .iter()
                    .enumerate()
                    .map(|(row, v)| {
                        <$type>::try_from(*v)
                            .map_err(|_| fail(row, format!("{v} is no {}", stringify!($type))))
                    })
                    .collect::<Result<Vec<_>>>()?
            };
        }
        let values = match (self.shape, values) {
            (Shape::Bool, v @ Values::Bool(_))
            | (Shape::Int8, v @ Values::Int8(_))
            | (Shape::Int16, v @ Values::Int16(_))
            | (Shape::Int32, v @ Values::Int32(_))
            | (Shape::Int64, v @ Values::Int64(_))
            | (Shape::Float, v @ Values::Float(_))
            | (Shape::Double, v @ Values::Double(_))
            | (Shape::Text, v @ Values::Text(_))
            | (Shape::Binary, v @ Values::Binary(_)) => v,
            (Shape::Int8, Values::Int32(v)) => Values::Int8(narrowed!(v, i8)),
            (Shape::Int16, Values::Int32(v)) => Values::Int16(narrowed!(v, i16)),
            (Shape::Text, Values::Binary(v)) => {
                let bad = (0..v.len()).find(|i| std::str::from_utf8(v.get(*i)).is_err());
                if let Some(row) = bad {
                    return Err(fail(row, "a text is not UTF-8".into()));
                }
                Values::Text(v)
            }
            (Shape::Binary, Values::Text(v)) => Values::Binary(v),
            (Shape::Fixed(width), Values::Fixed { width: w, data }) if width == w => {
                Values::Fixed { width, data }
            }
            // Nullable vectors are stored with their length, so that a null takes no room.
            (Shape::Fixed(width), Values::Binary(v)) => {
                let mut data = Vec::new();
                for row in 0..v.len() {
                    let value = v.get(row);
                    match (there(row), value.len()) {
                        (true, n) if n == width => data.extend_from_slice(value),
                        (true, n) => {
                            return Err(fail(row, format!("a vector has {n} bytes, not {width}")));
                        }
                        (false, _) => data.resize(data.len() + width, 0),
                    }
                }
                Values::Fixed { width, data }
            }
            (Shape::FixedList(width), Values::List { ends, items }) => {
                let items = match items.values {
                    Values::Fixed { width: w, data } if w == width && items.valid.is_none() => {
                        Values::Fixed { width: w, data }
                    }
                    Values::Binary(v) if items.valid.is_none() => {
                        let mut data = Vec::new();
                        for i in 0..v.len() {
                            if v.get(i).len() != width {
                                return Err(fail(
                                    0,
                                    format!("a vector of an array has not {width} bytes"),
                                ));
                            }
                            data.extend_from_slice(v.get(i));
                        }
                        Values::Fixed { width, data }
                    }
                    _ => {
                        return Err(fail(
                            0,
                            format!("an array's vectors have not {width} bytes"),
                        ));
                    }
                };
                Values::List {
                    ends,
                    items: Box::new(Column::of(items)),
                }
            }
            (shape, found) => {
                return Err(fail(
                    0,
                    format!("the file holds {}, the field is {shape:?}", kind_of(&found)),
                ));
            }
        };
        let mut out = Column { values, valid };
        out.tidy();
        Ok(out)
    }
}

fn kind_of(values: &Values) -> String {
    match values {
        Values::Fixed { width, .. } => format!("values of {width} bytes"),
        Values::List { items, .. } => format!("lists of {}", kind_of(&items.values)),
        Values::Bool(_) => "booleans".into(),
        Values::Int8(_) | Values::Int16(_) | Values::Int32(_) => "32-bit integers".into(),
        Values::Int64(_) => "64-bit integers".into(),
        Values::Float(_) => "32-bit floats".into(),
        Values::Double(_) => "64-bit floats".into(),
        Values::Text(_) | Values::Binary(_) => "byte strings".into(),
    }
}

impl Schema {
    /// The fields of a collection; the system fields are added when they are missing.
    pub fn of(stored: &CollectionSchema) -> Result<Arc<Self>> {
        let mut fields = Vec::new();
        for field in &stored.fields {
            fields.push(Field::of(field, field.name.clone())?);
        }
        for array in &stored.struct_array_fields {
            for field in &array.fields {
                let name = if field.name.contains('[') {
                    field.name.clone()
                } else {
                    format!("{}[{}]", array.name, field.name)
                };
                fields.push(Field::of(field, name)?);
            }
        }
        for (id, name) in [(ROW_ID, "RowID"), (TIMESTAMP, "Timestamp")] {
            if !fields.iter().any(|f| f.id == id) {
                fields.push(Field::system(id, name));
            }
        }
        fields.sort_by_key(|f| f.id);
        if let Some(twice) = fields.windows(2).find(|w| w[0].id == w[1].id) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("two fields have the id {}", twice[0].id),
            ));
        }
        Ok(Arc::new(Self {
            fields,
            dynamic: stored.enable_dynamic_field,
        }))
    }

    /// Some of the fields, in their own order.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&Field) -> bool) -> Arc<Self> {
        Arc::new(Self {
            fields: self.fields.iter().filter(|f| keep(f)).cloned().collect(),
            dynamic: self.dynamic,
        })
    }

    /// The place of a field.
    #[must_use]
    pub fn position(&self, id: FieldId) -> Option<usize> {
        self.fields.iter().position(|f| f.id == id)
    }

    /// A field by its name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// The primary key.
    pub fn primary(&self) -> Result<&Field> {
        self.fields.iter().find(|f| f.primary).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                "the collection's schema has no primary key",
            )
        })
    }
}
