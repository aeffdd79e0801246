//! Schemas with every type, and rows of them.

use std::sync::Arc;

use falconer::engine::format::pb::common::KeyValuePair;
use falconer::engine::format::pb::schema::{
    CollectionSchema, DataType, FieldSchema, ValueField, value_field,
};
use falconer::engine::format::rows::{
    Column, Field, ROW_ID, Rows, Schema, TIMESTAMP, Values, json,
};
use proptest::prelude::*;
use serde_json::{Value, json};

pub fn field(id: i64, name: &str, data_type: DataType) -> FieldSchema {
    FieldSchema {
        field_id: id,
        name: name.into(),
        data_type: data_type as i32,
        ..FieldSchema::default()
    }
}

pub fn param(mut field: FieldSchema, key: &str, value: &str) -> FieldSchema {
    field.type_params.push(KeyValuePair {
        key: key.into(),
        value: value.into(),
    });
    field
}

/// Every type, each once as it is and once nullable. `text` says the type of the primary key.
pub fn collection(text: bool) -> CollectionSchema {
    use DataType::{
        Array, ArrayOfVector, BFloat16Vector, BinaryVector, Bool, Double, Float, Float16Vector,
        FloatVector, Int8, Int8Vector, Int16, Int32, Int64, Json, SparseFloatVector, VarChar,
    };
    let mut fields = vec![if text {
        param(field(100, "pk", VarChar), "max_length", "64")
    } else {
        field(100, "pk", Int64)
    }];
    fields[0].is_primary_key = true;
    let mut id = 101;
    for kind in [
        Bool,
        Int8,
        Int16,
        Int32,
        Int64,
        Float,
        Double,
        VarChar,
        Json,
        FloatVector,
        BinaryVector,
        Float16Vector,
        BFloat16Vector,
        Int8Vector,
        SparseFloatVector,
        ArrayOfVector,
    ] {
        for nullable in [false, true] {
            let mut made = field(id, &format!("{}_{id}", kind.as_str_name()), kind);
            made.nullable = nullable;
            if made.name.contains("Vector") {
                made = param(made, "dim", "8");
            }
            if kind == ArrayOfVector {
                made.element_type = FloatVector as i32;
            }
            id += 1;
            fields.push(made);
        }
    }
    for element in [Bool, Int8, Int32, Int64, Float, Double, VarChar] {
        let mut made = field(id, &format!("Array_{id}"), Array);
        made.element_type = element as i32;
        made.nullable = element == Int64;
        id += 1;
        fields.push(param(made, "max_capacity", "4"));
    }
    let mut with_default = field(id, "defaulted", Int32);
    with_default.default_value = Some(ValueField {
        data: Some(value_field::Data::IntData(-7)),
    });
    fields.push(with_default);
    let mut dynamic = field(id + 1, "$meta", Json);
    dynamic.is_dynamic = true;
    fields.push(dynamic);
    CollectionSchema {
        name: "all".into(),
        fields,
        enable_dynamic_field: true,
        ..CollectionSchema::default()
    }
}

fn item(kind: DataType) -> BoxedStrategy<Value> {
    match kind {
        DataType::Bool => any::<bool>().prop_map(Value::from).boxed(),
        DataType::Int8 => any::<i8>().prop_map(Value::from).boxed(),
        DataType::Int16 => any::<i16>().prop_map(Value::from).boxed(),
        DataType::Int32 => any::<i32>().prop_map(Value::from).boxed(),
        DataType::Int64 => any::<i64>().prop_map(|v| v.to_string().into()).boxed(),
        DataType::Float => (-1e30f32..1e30)
            .prop_map(|v| v.to_string().parse::<f64>().unwrap().into())
            .boxed(),
        DataType::Double => (-1e300f64..1e300).prop_map(Value::from).boxed(),
        _ => "\\PC{0,12}".prop_map(Value::from).boxed(),
    }
}

/// Values of a field, as JSON that is written back the same.
pub fn values(field: &Field) -> BoxedStrategy<Value> {
    let list =
        |kind: DataType, n: usize| prop::collection::vec(item(kind), n).prop_map(Value::from);
    let there = match field.data_type {
        DataType::Json if field.dynamic => {
            prop::collection::btree_map("[a-z]{1,4}", any::<i32>(), 0..3)
                .prop_map(|m| json!(m))
                .boxed()
        }
        DataType::Json => prop_oneof![
            prop::collection::btree_map("[a-z]{1,4}", any::<bool>(), 0..3).prop_map(|m| json!(m)),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,9}".prop_map(Value::from),
        ]
        .boxed(),
        DataType::Array => prop::collection::vec(item(field.element_type), 0..=4)
            .prop_map(Value::from)
            .boxed(),
        DataType::FloatVector => list(DataType::Float, 8).boxed(),
        // Small integers are exact in 16 bits of either kind.
        DataType::Float16Vector | DataType::BFloat16Vector => {
            prop::collection::vec(-100i32..100, 8)
                .prop_map(|v| v.into_iter().map(f64::from).map(Value::from).collect())
                .boxed()
        }
        DataType::BinaryVector => prop::collection::vec(any::<u8>(), 1)
            .prop_map(Value::from)
            .boxed(),
        DataType::Int8Vector => list(DataType::Int8, 8).boxed(),
        DataType::SparseFloatVector => {
            prop::collection::btree_map(0u32..1_000_000, -1000i16..1000, 0..5)
                .prop_map(|m| {
                    m.into_iter()
                        .map(|(i, v)| (i.to_string(), Value::from(f64::from(v))))
                        .collect::<serde_json::Map<_, _>>()
                        .into()
                })
                .boxed()
        }
        DataType::ArrayOfVector => prop::collection::vec(list(DataType::Float, 8), 0..4)
            .prop_map(Value::from)
            .boxed(),
        other => item(other),
    };
    if field.nullable {
        prop_oneof![1 => Just(Value::Null), 3 => there].boxed()
    } else {
        there
    }
}

/// Up to `most` rows with every type.
pub fn rows(text: bool, most: usize) -> impl Strategy<Value = Rows> {
    let schema = Schema::of(&collection(text)).unwrap();
    rows_of(schema, most)
}

pub fn rows_of(schema: Arc<Schema>, most: usize) -> impl Strategy<Value = Rows> {
    (0..=most).prop_flat_map(move |len| {
        let schema = schema.clone();
        let columns: Vec<_> = schema
            .fields
            .iter()
            .map(|f| {
                let field = f.clone();
                prop::collection::vec(values(f), len)
                    .prop_map(move |v| json::column(&field, &v).unwrap())
                    .boxed()
            })
            .collect();
        columns.prop_map(move |columns| Rows::new(schema.clone(), columns).unwrap())
    })
}

/// Rows of `pk` and one vector, made from numbers.
pub fn small(rows: &[(i64, i64)]) -> Rows {
    let mut pk = field(100, "pk", DataType::Int64);
    pk.is_primary_key = true;
    let v = param(field(101, "v", DataType::FloatVector), "dim", "2");
    let schema = Schema::of(&CollectionSchema {
        fields: vec![pk, v],
        ..CollectionSchema::default()
    })
    .unwrap();
    let columns = schema
        .fields
        .iter()
        .map(|f| match f.id {
            ROW_ID => Column::of(Values::Int64((0..rows.len() as i64).collect())),
            TIMESTAMP => Column::of(Values::Int64(rows.iter().map(|(_, ts)| *ts).collect())),
            id if id.0 == 100 => {
                Column::of(Values::Int64(rows.iter().map(|(pk, _)| *pk).collect()))
            }
            _ => Column::of(Values::Fixed {
                width: 8,
                data: rows
                    .iter()
                    .flat_map(|(pk, ts)| [*pk as f32, *ts as f32])
                    .flat_map(f32::to_le_bytes)
                    .collect(),
            }),
        })
        .collect();
    Rows::new(schema, columns).unwrap()
}
