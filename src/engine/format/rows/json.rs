//! Values as JSON: for people and scripts to read, and to insert.
//!
//! 64-bit integers are written as strings, as all ids are: most JSON readers would round them. Both are read.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::{bf16, f16};
use prost::Message;
use serde_json::{Map, Number, Value};

use super::{Field, Rows};
use crate::engine::format::hex;
use crate::engine::format::parquet::{Column, Values};
use crate::engine::format::pb::schema::{
    BoolArray, DataType, DoubleArray, FloatArray, IntArray, LongArray, ScalarField, StringArray,
    scalar_field, value_field,
};

/// A row as an object, in the schema's order.
#[must_use]
pub fn row(rows: &Rows, i: usize) -> Map<String, Value> {
    let fields = rows.schema().fields.iter().zip(rows.columns());
    fields
        .map(|(field, column)| (field.name.clone(), value(field, column, i)))
        .collect()
}

/// A float in its shortest form, not in that of the double around it.
fn float(v: f32) -> Value {
    number(v.to_string().parse().unwrap_or(f64::from(v)))
}

fn number(v: f64) -> Value {
    // JSON has no words for these.
    Number::from_f64(v).map_or_else(|| Value::from(v.to_string()), Value::Number)
}

/// The value at row `i`.
#[must_use]
pub fn value(field: &Field, column: &Column, i: usize) -> Value {
    if column.is_null(i) || i >= column.len() {
        return Value::Null;
    }
    match &column.values {
        Values::Bool(v) => v[i].into(),
        Values::Int8(v) => v[i].into(),
        Values::Int16(v) => v[i].into(),
        Values::Int32(v) => v[i].into(),
        Values::Int64(v) => v[i].to_string().into(),
        Values::Float(v) => float(v[i]),
        Values::Double(v) => number(v[i]),
        Values::Text(v) => String::from_utf8_lossy(v.get(i)).into(),
        Values::Binary(v) => blob(field, v.get(i)),
        Values::Fixed { width, data } => vector(field.data_type, &data[i * width..(i + 1) * width]),
        Values::List { ends, items } => {
            let start = i.checked_sub(1).map_or(0, |before| ends[before]);
            let Values::Fixed { width, data } = &items.values else {
                return Value::Null;
            };
            let one = |n: usize| vector(field.element_type, &data[n * width..(n + 1) * width]);
            (start..ends[i]).map(one).collect()
        }
    }
}

/// Bytes whose meaning is not known, or that are not what they should be.
fn opaque(raw: &[u8]) -> Value {
    format!("0x{}", hex(raw)).into()
}

fn blob(field: &Field, raw: &[u8]) -> Value {
    match field.data_type {
        DataType::Json => serde_json::from_slice(raw)
            .unwrap_or_else(|_| std::str::from_utf8(raw).map_or_else(|_| opaque(raw), Value::from)),
        DataType::SparseFloatVector => {
            let (pairs, rest) = raw.as_chunks::<8>();
            if !rest.is_empty() {
                return opaque(raw);
            }
            let pair = |pair: &[u8; 8]| {
                let (index, v) = pair.split_at(4);
                let bytes = |part: &[u8]| part.try_into().unwrap_or_default();
                (
                    u32::from_le_bytes(bytes(index)).to_string(),
                    float(f32::from_le_bytes(bytes(v))),
                )
            };
            Value::Object(pairs.iter().map(pair).collect())
        }
        DataType::Array => match ScalarField::decode(raw).map(|f| f.data) {
            Ok(Some(data)) => array(data),
            // An array without items may be no bytes at all.
            Ok(None) if raw.is_empty() => Value::Array(Vec::new()),
            _ => opaque(raw),
        },
        _ => opaque(raw),
    }
}

fn array(data: scalar_field::Data) -> Value {
    use scalar_field::Data;
    match data {
        Data::BoolData(v) => v.data.into(),
        Data::IntData(v) => v.data.into(),
        Data::LongData(v) => v.data.iter().map(|n| Value::from(n.to_string())).collect(),
        Data::FloatData(v) => v.data.into_iter().map(float).collect(),
        Data::DoubleData(v) => v.data.into_iter().map(number).collect(),
        Data::StringData(v) => v.data.into(),
    }
}

fn vector(of: DataType, raw: &[u8]) -> Value {
    match of {
        DataType::FloatVector => {
            let (items, _) = raw.as_chunks::<4>();
            items
                .iter()
                .map(|b| float(f32::from_le_bytes(*b)))
                .collect()
        }
        DataType::Float16Vector => {
            let (items, _) = raw.as_chunks::<2>();
            items
                .iter()
                .map(|b| float(f16::from_le_bytes(*b).to_f32()))
                .collect()
        }
        DataType::BFloat16Vector => {
            let (items, _) = raw.as_chunks::<2>();
            items
                .iter()
                .map(|b| float(bf16::from_le_bytes(*b).to_f32()))
                .collect()
        }
        DataType::Int8Vector => raw.iter().map(|b| Value::from(b.cast_signed())).collect(),
        _ => raw.iter().map(|b| Value::from(*b)).collect(),
    }
}

/// A value in one line of at most `most` characters: text as it is, vectors and documents cut.
#[must_use]
pub fn brief(value: &Value, most: usize) -> String {
    let whole = match value {
        Value::String(text) => text.clone(),
        Value::Null => "null".to_owned(),
        Value::Array(items) if items.len() > 4 && most < usize::MAX => {
            let short = |item: &Value| match item.as_f64() {
                Some(v) if !item.is_i64() && !item.is_u64() => format!("{v:.4}"),
                _ => item.to_string(),
            };
            let first: Vec<String> = items.iter().take(3).map(short).collect();
            format!("[{}, … {}]", first.join(", "), items.len())
        }
        other => other.to_string(),
    };
    let shown: String = whole
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match shown.char_indices().nth(most.saturating_sub(1)) {
        Some((at, _)) if shown.chars().nth(most).is_some() => format!("{}…", &shown[..at]),
        _ => shown,
    }
}

/// A column of a field that a row, or a file, does not give: its default, an empty document for the dynamic field, else null.
#[must_use]
pub fn absent(field: &Field, len: usize) -> Column {
    let mut out = field.empty();
    let default = default_of(field);
    for _ in 0..len {
        if default.is_none() || push(field, &mut out, default.as_ref()).is_err() {
            out.values.push_nulls(1);
        }
    }
    out.valid = (default.is_none() && len > 0).then(|| vec![false; len]);
    out
}

fn default_of(field: &Field) -> Option<Value> {
    use value_field::Data;
    if field.dynamic {
        return Some(Value::Object(Map::new()));
    }
    Some(match field.default.as_ref()? {
        Data::BoolData(v) => (*v).into(),
        Data::IntData(v) | Data::DateData(v) => (*v).into(),
        Data::LongData(v) | Data::TimestamptzData(v) | Data::TimeData(v) => (*v).into(),
        Data::FloatData(v) => float(*v),
        Data::DoubleData(v) => number(*v),
        Data::StringData(v) => v.as_str().into(),
        Data::BytesData(v) => match serde_json::from_slice(v) {
            Ok(document) => document,
            Err(_) => STANDARD.encode(v).into(),
        },
    })
}

/// Adds a value; nothing stands for the default, or null. `Err` says what is wrong with it, without the field's name.
pub(super) fn push(
    field: &Field,
    column: &mut Column,
    value: Option<&Value>,
) -> Result<(), String> {
    let default;
    let value = match value.filter(|v| !v.is_null()) {
        Some(value) => value,
        None => match default_of(field) {
            Some(found) => {
                default = found;
                &default
            }
            None if field.nullable => {
                let len = column.len();
                column.values.push_nulls(1);
                column
                    .valid
                    .get_or_insert_with(|| vec![true; len])
                    .push(false);
                return Ok(());
            }
            None => {
                return Err("is missing, and the field has no default and cannot be null".into());
            }
        },
    };
    there(field, &mut column.values, value)?;
    if let Some(valid) = &mut column.valid {
        valid.push(true);
    }
    Ok(())
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn integer<T: TryFrom<i64>>(value: &Value) -> Result<T, String> {
    let number = match value {
        Value::Number(n) => n.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.and_then(|n| T::try_from(n).ok()).ok_or_else(|| {
        format!(
            "is {}, not a {}-bit integer",
            shown(value),
            size_of::<T>() * 8
        )
    })
}

fn real(value: &Value) -> Result<f64, String> {
    value
        .as_f64()
        .ok_or_else(|| format!("is {}, not a number", shown(value)))
}

fn single(value: &Value) -> Result<f32, String> {
    let v = real(value)? as f32;
    v.is_finite()
        .then_some(v)
        .ok_or_else(|| format!("is {}, beyond a 32-bit float", shown(value)))
}

fn items(value: &Value) -> Result<&Vec<Value>, String> {
    value
        .as_array()
        .ok_or_else(|| format!("is {}, not a list", shown(value)))
}

fn there(field: &Field, values: &mut Values, value: &Value) -> Result<(), String> {
    match values {
        Values::Bool(out) => {
            out.push(
                value
                    .as_bool()
                    .ok_or_else(|| format!("is {}, neither true nor false", shown(value)))?,
            );
        }
        Values::Int8(out) => out.push(integer(value)?),
        Values::Int16(out) => out.push(integer(value)?),
        Values::Int32(out) => out.push(integer(value)?),
        Values::Int64(out) => out.push(integer(value)?),
        Values::Float(out) => out.push(single(value)?),
        Values::Double(out) => out.push(real(value)?),
        Values::Text(out) => {
            let text = value
                .as_str()
                .ok_or_else(|| format!("is {}, not a text", shown(value)))?;
            if let Some(most) = field.max_length.filter(|most| text.len() > *most) {
                return Err(format!(
                    "has {} bytes, more than max_length={most}",
                    text.len()
                ));
            }
            out.push(text.as_bytes());
        }
        Values::Binary(out) => out.push(&blob_from(field, value)?),
        Values::Fixed { data, .. } => vector_from(field.data_type, field.dim, value, data)?,
        Values::List {
            ends,
            items: column,
        } => {
            let Values::Fixed { data, .. } = &mut column.values else {
                return Err("is of a type that cannot be inserted".into());
            };
            let before = data.len();
            for item in items(value)? {
                if let Err(why) = vector_from(field.element_type, field.dim, item, data) {
                    data.truncate(before);
                    return Err(format!("has a vector that {why}"));
                }
            }
            ends.push(column.len());
        }
    }
    Ok(())
}

fn blob_from(field: &Field, value: &Value) -> Result<Vec<u8>, String> {
    match field.data_type {
        DataType::Json if field.dynamic && !value.is_object() => {
            Err(format!("is {}, not an object", shown(value)))
        }
        DataType::Json => Ok(value.to_string().into_bytes()),
        DataType::Array => array_from(field, value),
        DataType::SparseFloatVector => sparse_from(value),
        other => Err(format!(
            "is of type {}, which cannot be inserted",
            other.as_str_name()
        )),
    }
}

fn array_from(field: &Field, value: &Value) -> Result<Vec<u8>, String> {
    use scalar_field::Data;
    let list = items(value)?;
    if let Some(most) = field.max_capacity.filter(|most| list.len() > *most) {
        return Err(format!(
            "has {} items, more than max_capacity={most}",
            list.len()
        ));
    }
    macro_rules! each {
        ($read:expr) => {
            list.iter().map($read).collect::<Result<Vec<_>, String>>()?
        };
    }
    let data = match field.element_type {
        DataType::Bool => Data::BoolData(BoolArray {
            data: each!(|v| v
                .as_bool()
                .ok_or_else(|| format!("holds {}, neither true nor false", shown(v)))),
        }),
        DataType::Int8 => Data::IntData(IntArray {
            data: each!(|v| integer::<i8>(v).map(i32::from)),
        }),
        DataType::Int16 => Data::IntData(IntArray {
            data: each!(|v| integer::<i16>(v).map(i32::from)),
        }),
        DataType::Int32 => Data::IntData(IntArray {
            data: each!(integer::<i32>),
        }),
        DataType::Int64 => Data::LongData(LongArray {
            data: each!(integer::<i64>),
        }),
        DataType::Float => Data::FloatData(FloatArray {
            data: each!(single),
        }),
        DataType::Double => Data::DoubleData(DoubleArray { data: each!(real) }),
        DataType::String | DataType::VarChar => Data::StringData(StringArray {
            data: each!(|v| match v.as_str() {
                Some(t) if field.max_length.is_none_or(|most| t.len() <= most) => Ok(t.to_owned()),
                Some(t) => Err(format!("holds a text of {} bytes", t.len())),
                None => Err(format!("holds {}, not a text", shown(v))),
            }),
        }),
        other => {
            return Err(format!(
                "is an array of {}, which cannot be inserted",
                other.as_str_name()
            ));
        }
    };
    Ok(ScalarField { data: Some(data) }.encode_to_vec())
}

/// `{"index": value, …}` or `{"indices": […], "values": […]}`; kept in the order of the indexes.
fn sparse_from(value: &Value) -> Result<Vec<u8>, String> {
    let object = value
        .as_object()
        .ok_or_else(|| format!("is {}, not an object of index and value", shown(value)))?;
    let mut pairs = BTreeMap::new();
    let mut add = |index: Option<u32>, v: &Value| {
        let index = index
            .filter(|i| *i < u32::MAX)
            .ok_or("has an index that is not below 2^32 - 1")?;
        match pairs.insert(index, single(v)?) {
            Some(_) => Err(format!("has index {index} twice")),
            None => Ok(()),
        }
    };
    match (object.get("indices"), object.get("values")) {
        (Some(indices), Some(values)) if object.len() == 2 => {
            let (indices, values) = (items(indices)?, items(values)?);
            if indices.len() != values.len() {
                return Err(format!(
                    "has {} indices and {} values",
                    indices.len(),
                    values.len()
                ));
            }
            for (index, v) in indices.iter().zip(values) {
                add(index.as_u64().and_then(|i| u32::try_from(i).ok()), v)?;
            }
        }
        _ => {
            for (index, v) in object {
                add(index.parse().ok(), v)?;
            }
        }
    }
    Ok(pairs
        .into_iter()
        .flat_map(|(index, v)| [index.to_le_bytes(), v.to_le_bytes()].concat())
        .collect())
}

/// Adds a vector's bytes, or nothing.
fn vector_from(of: DataType, dim: usize, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let list = items(value)?;
    let wanted = if of == DataType::BinaryVector {
        dim.div_ceil(8)
    } else {
        dim
    };
    if list.len() != wanted {
        let unit = if of == DataType::BinaryVector {
            "bytes"
        } else {
            "dimensions"
        };
        return Err(format!("has {} {unit}, not {wanted}", list.len()));
    }
    let before = out.len();
    for item in list {
        let added = match of {
            DataType::FloatVector => single(item).map(|v| out.extend(v.to_le_bytes())),
            DataType::Float16Vector => single(item).and_then(|v| {
                let v = f16::from_f32(v);
                v.is_finite()
                    .then(|| out.extend(v.to_le_bytes()))
                    .ok_or_else(|| format!("holds {}, beyond a 16-bit float", shown(item)))
            }),
            DataType::BFloat16Vector => {
                single(item).map(|v| out.extend(bf16::from_f32(v).to_le_bytes()))
            }
            DataType::Int8Vector => integer::<i8>(item).map(|v| out.push(v.cast_unsigned())),
            _ => integer::<u8>(item).map(|v| out.push(v)),
        };
        if let Err(why) = added {
            out.truncate(before);
            return Err(why);
        }
    }
    Ok(())
}

/// A column of these values. `Err` says what is wrong with one, without the field's name.
pub fn column(field: &Field, values: &[Value]) -> Result<Column, String> {
    let mut out = field.empty();
    for value in values {
        push(field, &mut out, Some(value))?;
    }
    out.tidy();
    Ok(out)
}
