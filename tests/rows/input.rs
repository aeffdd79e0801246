//! Rows that people bring.

use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::error::ErrorKind;
use falconer::engine::format::pb::schema::{CollectionSchema, DataType};
use falconer::engine::format::rows::input::{JsonLines, ParquetRows, complete};
use falconer::engine::format::rows::{Limits, Rows, Schema, json};
use falconer::engine::ids::Tso;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use proptest::prelude::*;

use crate::make;

fn lines(schema: &Schema, text: &str) -> falconer::engine::error::Result<Vec<Rows>> {
    let mut reader = JsonLines::new("rows.jsonl", schema, text.as_bytes());
    let mut out = Vec::new();
    while let Some(rows) = reader.batch(2)? {
        out.push(rows);
    }
    Ok(out)
}

fn plain() -> Arc<Schema> {
    let mut id = make::field(100, "id", DataType::Int64);
    id.is_primary_key = true;
    let mut note = make::param(
        make::field(102, "note", DataType::VarChar),
        "max_length",
        "5",
    );
    note.nullable = true;
    Schema::of(&CollectionSchema {
        fields: vec![
            id,
            make::param(make::field(101, "v", DataType::FloatVector), "dim", "2"),
            note,
        ],
        ..CollectionSchema::default()
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// What is shown can be inserted again.
    #[test]
    fn what_is_shown_can_be_read(rows in any::<bool>().prop_flat_map(|text| make::rows(text, 12))) {
        let given = falconer::engine::format::rows::input::given(rows.schema());
        let mut text = String::new();
        for i in 0..rows.len() {
            let mut row = json::row(&rows, i);
            row.retain(|name, _| given.named(name).is_some());
            text += &serde_json::Value::from(row).to_string();
            text.push('\n');
        }
        let mut again = Rows::empty(given.clone());
        for part in lines(rows.schema(), &text).unwrap() {
            again.append(&part).unwrap();
        }
        prop_assert_eq!(again.len(), rows.len());
        for field in &given.fields {
            prop_assert_eq!(again.column(field.id), rows.column(field.id), "{}", field.name);
        }
    }
}

#[test]
fn errors_name_the_line_the_field_and_the_reason() {
    let schema = plain();
    let cases = [
        (
            "{\"id\": 1, \"v\": [1, 2]}\n{\"id\": 2, \"v\": [1]}",
            "line 2: field v has 1 dimensions, not 2",
        ),
        (
            "\n\n{\"id\": \"x\", \"v\": [1, 2]}",
            "line 3: field id is \"x\", not a 64-bit integer",
        ),
        ("{\"v\": [1, 2]}", "line 1: field id is missing"),
        ("{\"id\": 1, \"v\": [1, 1e39]}", "beyond a 32-bit float"),
        (
            "{\"id\": 1, \"v\": [1, null]}",
            "field v is null, not a number",
        ),
        (
            "{\"id\": 1, \"v\": [1, 2], \"note\": \"123456\"}",
            "has 6 bytes, more than max_length=5",
        ),
        (
            "{\"id\": 1, \"v\": [1, 2], \"other\": 1}",
            "the collection has no field other, and no dynamic field",
        ),
        ("[1]", "line 1 is not a JSON object"),
        ("{", "line 1 is not JSON"),
    ];
    for (text, wanted) in cases {
        let e = lines(&schema, text).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains(wanted), "{text}: {e}");
        assert!(e.context("file").is_some());
    }
}

#[test]
fn a_key_that_the_server_makes_is_not_given() {
    let mut whole = make::collection(true);
    whole
        .fields
        .retain(|f| matches!(f.field_id, 100) || f.is_dynamic);
    whole.fields[0].auto_id = true;
    let schema = Schema::of(&whole).unwrap();
    let e = lines(&schema, "{\"pk\": \"a\"}").unwrap_err();
    assert!(
        e.to_string()
            .contains("field pk is not given, the server makes it"),
        "{e}"
    );
    let found = lines(
        &schema,
        "{\"colour\": \"red\", \"$meta\": {\"size\": 1}}\n{}\n",
    )
    .unwrap();
    let rows = complete(&found[0], &schema, 700, Tso(9)).unwrap();
    let row = json::row(&rows, 1);
    assert_eq!(
        (
            row["RowID"].as_str(),
            row["pk"].as_str(),
            row["Timestamp"].as_str()
        ),
        (Some("701"), Some("701"), Some("9"))
    );
    assert_eq!(
        json::row(&rows, 0)["$meta"],
        serde_json::json!({"size": 1, "colour": "red"})
    );
    assert_eq!(row["$meta"], serde_json::json!({}));
}

/// A file of another writer: lists of floats, text, doubles, an extra column.
fn foreign(dim: usize) -> Bytes {
    let message = "message schema {
        required int64 id;
        required group v (LIST) { repeated group list { required float element; } }
        optional binary note (STRING);
        required double extra;
    }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(message).unwrap());
    let mut file = SerializedFileWriter::new(
        Vec::new(),
        schema,
        Arc::new(WriterProperties::builder().build()),
    )
    .unwrap();
    for base in [0i64, 3] {
        let mut group = file.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int64Type>()
            .write_batch(&[base, base + 1, base + 2], None, None)
            .unwrap();
        column.close().unwrap();
        let floats: Vec<f32> = (0..3 * dim).map(|i| i as f32 / 2.0).collect();
        let reps: Vec<i16> = (0..3 * dim).map(|i| i16::from(i % dim > 0)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<FloatType>()
            .write_batch(&floats, Some(&vec![1; 3 * dim]), Some(&reps))
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(
                &[ByteArray::from("one"), ByteArray::from("two")],
                Some(&[1, 0, 1]),
                None,
            )
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<DoubleType>()
            .write_batch(&[0.5, 1.5, 2.5], None, None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.into_inner().unwrap().into()
}

#[test]
fn parquet_of_another_writer() {
    let mut whole = CollectionSchema {
        fields: {
            let mut id = make::field(100, "id", DataType::Int64);
            id.is_primary_key = true;
            let mut note = make::param(
                make::field(102, "note", DataType::VarChar),
                "max_length",
                "5",
            );
            note.nullable = true;
            let mut meta = make::field(103, "$meta", DataType::Json);
            meta.is_dynamic = true;
            vec![
                id,
                make::param(make::field(101, "v", DataType::FloatVector), "dim", "4"),
                note,
                meta,
            ]
        },
        enable_dynamic_field: true,
        ..CollectionSchema::default()
    };
    let schema = Schema::of(&whole).unwrap();
    let mut reader =
        ParquetRows::open("rows.parquet", &schema, foreign(4), Limits::default()).unwrap();
    let mut out = Vec::new();
    while let Some(rows) = reader.batch(4).unwrap() {
        for i in 0..rows.len() {
            out.push(serde_json::Value::from(json::row(&rows, i)));
        }
    }
    assert_eq!(out.len(), 6);
    assert_eq!(
        out[4],
        serde_json::json!({"id": "4", "v": [2.0, 2.5, 3.0, 3.5], "note": null, "$meta": {"extra": 1.5}})
    );
    let mut reader =
        ParquetRows::open("rows.parquet", &schema, foreign(3), Limits::default()).unwrap();
    let e = reader.batch(4).unwrap_err();
    assert!(
        e.to_string()
            .contains("row 0: field v has 3 dimensions, not 4"),
        "{e}"
    );
    whole.fields.pop();
    let schema = Schema::of(&whole).unwrap();
    let mut reader =
        ParquetRows::open("rows.parquet", &schema, foreign(4), Limits::default()).unwrap();
    let e = reader.batch(4).unwrap_err();
    assert!(e.to_string().contains("no field extra"), "{e}");
}
