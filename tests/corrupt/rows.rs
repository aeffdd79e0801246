//! Readers of rows: sound files of every form, and what must hold of an answer.

use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::format::binlog::DeltaForm;
use falconer::engine::format::pb::common::KeyValuePair;
use falconer::engine::format::pb::schema::{CollectionSchema, DataType, FieldSchema};
use falconer::engine::format::rows::bloom::Bloom;
use falconer::engine::format::rows::delta::{self, DeltaReader};
use falconer::engine::format::rows::input::{JsonLines, ParquetRows, complete};
use falconer::engine::format::rows::insert::LogReader;
use falconer::engine::format::rows::write::{LogWriter, groups};
use falconer::engine::format::rows::{
    Limits, PrimaryKey, Rows, Schema, json as row_json, stats as key_statistics,
};
use falconer::engine::ids::{CollectionId, FieldId, PartitionId, SegmentId, Tso};
use parquet::basic::Compression;
use parquet::data_type::{
    ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type,
};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;

use super::{Answer, Meter, lab, refused};

/// Small, so that a file which asks for more is seen to.
const LIMITS: Limits = Limits {
    page: 64 * 1024,
    batch: 64 * 1024,
};
/// A file may say that it has any number of nulls; they are read a few at a time, and not to the end here.
const ENOUGH: usize = 20_000;

fn field(id: i64, name: &str, data_type: DataType) -> FieldSchema {
    FieldSchema {
        field_id: id,
        name: name.into(),
        data_type: data_type as i32,
        ..FieldSchema::default()
    }
}

fn with(mut field: FieldSchema, key: &str, value: &str) -> FieldSchema {
    field.type_params.push(KeyValuePair {
        key: key.into(),
        value: value.into(),
    });
    field
}

fn schema(fields: Vec<FieldSchema>) -> Arc<Schema> {
    Schema::of(&CollectionSchema {
        fields,
        enable_dynamic_field: true,
        ..CollectionSchema::default()
    })
    .expect("a sound schema")
}

/// One of every shape.
fn whole() -> Arc<Schema> {
    let mut pk = field(100, "pk", DataType::Int64);
    pk.is_primary_key = true;
    let mut text = field(102, "text", DataType::VarChar);
    text.nullable = true;
    let mut vectors = with(field(105, "vs", DataType::ArrayOfVector), "dim", "2");
    vectors.element_type = DataType::FloatVector as i32;
    let mut dynamic = field(106, "$meta", DataType::Json);
    dynamic.is_dynamic = true;
    schema(vec![
        pk,
        field(101, "small", DataType::Int8),
        text,
        with(field(103, "v", DataType::FloatVector), "dim", "2"),
        with(
            field(104, "sparse", DataType::SparseFloatVector),
            "dim",
            "2",
        ),
        vectors,
        dynamic,
    ])
}

/// What a storage V1 file may be read as: the field of the file is 100.
fn single(selector: u8) -> (Arc<Schema>, FieldId) {
    let mut of = match selector % 4 {
        0 => field(100, "f", DataType::Int64),
        1 => field(100, "f", DataType::VarChar),
        2 => with(field(100, "f", DataType::FloatVector), "dim", "2"),
        _ => field(100, "f", DataType::Bool),
    };
    of.is_primary_key = true;
    (
        schema(vec![of]).only(|f| f.id == FieldId(100)),
        FieldId(100),
    )
}

fn sample() -> Rows {
    let schema = whole();
    let text: Vec<String> = (0..9)
        .map(|i| {
            let text = if i % 3 == 0 { "null".into() } else { format!("\"t{}\"", i % 2) };
            format!(
                "{{\"pk\": {i}, \"small\": {}, \"text\": {text}, \"v\": [{i}, 0.5], \"sparse\": {{\"{i}\": 1}}, \"vs\": [[1, 2], [3, {i}]], \"x\": {i}}}\n",
                i % 5
            )
        })
        .collect();
    let given = JsonLines::new("seed", &schema, text.concat().as_bytes())
        .batch(100)
        .expect("sound")
        .expect("rows");
    complete(&given, &schema, 1, Tso(9)).expect("complete")
}

/// The selector of [`insert`] before the file: 4 and above for the whole schema.
pub fn inserts() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let rows = sample();
    let mut writer = LogWriter::new(rows.schema().clone(), &groups(&rows)).expect("a writer");
    writer.write(&rows).expect("rows");
    for file in writer.finish().expect("files") {
        out.push([&[4], &file.bytes[..]].concat());
    }
    for (key, bytes) in lab::objects() {
        let kind = key.split('/').nth(1).unwrap_or_default();
        if out.len() < 12 && bytes.len() < 4_000 && kind == "insert_log" {
            out.push([&[out.len() as u8 % 4], &bytes[..]].concat());
        }
    }
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::ZSTD(parquet::basic::ZstdLevel::default()),
        ] {
            for (selector, message) in [
                (0, "message m { required int64 f = 100; }"),
                (1, "message m { required binary f (STRING) = 100; }"),
                (1, "message m { optional binary f (STRING) = 100; }"),
                (2, "message m { required fixed_len_byte_array(8) f = 100; }"),
                (4, "message m { required int32 small = 101; }"),
            ] {
                out.push(
                    [
                        &[selector],
                        &other_writer(message, version, compression)[..],
                    ]
                    .concat(),
                );
            }
        }
    }
    out
}

/// A file of another writer: plain or dictionary, V1 or V2 pages.
fn other_writer(message: &str, version: WriterVersion, compression: Compression) -> Vec<u8> {
    let schema = Arc::new(parquet::schema::parser::parse_message_type(message).expect("a message"));
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_compression(compression)
        // Version 2 of the library's writer packs numbers in deltas otherwise, which is not read here.
        .set_dictionary_enabled(true)
        .set_data_page_row_count_limit(20)
        .set_write_batch_size(10)
        .build();
    let mut file = SerializedFileWriter::new(Vec::new(), schema.clone(), Arc::new(properties))
        .expect("a writer");
    let mut group = file.next_row_group().expect("a group");
    while let Some(mut column) = group.next_column().expect("a column") {
        use parquet::column::writer::ColumnWriter;
        let levels = |max: i16| {
            (max > 0).then(|| {
                (0..50)
                    .map(|i| i16::from(i % 7 > 0) * max)
                    .collect::<Vec<i16>>()
            })
        };
        match column.untyped() {
            ColumnWriter::Int64ColumnWriter(w) => {
                let values: Vec<i64> = (0..50).map(|i| i % 9).collect();
                w.write_batch(&values, None, None).expect("values");
            }
            ColumnWriter::Int32ColumnWriter(_) => {
                let values: Vec<i32> = (0..50).map(|i| i % 9).collect();
                column
                    .typed::<Int32Type>()
                    .write_batch(&values, None, None)
                    .expect("values");
            }
            ColumnWriter::ByteArrayColumnWriter(w) => {
                let defs = levels(w.get_descriptor().max_def_level());
                let there = defs
                    .as_ref()
                    .map_or(50, |d| d.iter().filter(|d| **d > 0).count());
                let values: Vec<ByteArray> = (0..there)
                    .map(|i| ByteArray::from(format!("t{}", i % 6).into_bytes()))
                    .collect();
                column
                    .typed::<ByteArrayType>()
                    .write_batch(&values, defs.as_deref(), None)
                    .expect("values");
            }
            ColumnWriter::FixedLenByteArrayColumnWriter(_) => {
                let values: Vec<FixedLenByteArray> = (0..50u8)
                    .map(|i| FixedLenByteArray::from(ByteArray::from(vec![i % 11; 8])))
                    .collect();
                column
                    .typed::<FixedLenByteArrayType>()
                    .write_batch(&values, None, None)
                    .expect("values");
            }
            ColumnWriter::FloatColumnWriter(_) => {
                let values: Vec<f32> = (0..100u8).map(f32::from).collect();
                let defs = vec![1; 100];
                let reps: Vec<i16> = (0..100).map(|i| i16::from(i % 2 > 0)).collect();
                column
                    .typed::<FloatType>()
                    .write_batch(&values, Some(&defs), Some(&reps))
                    .expect("values");
            }
            _ => panic!("a column of another type"),
        }
        column.close().expect("a column");
    }
    group.close().expect("a group");

    file.into_inner().expect("a file")
}

pub fn insert(input: &[u8], meter: &mut Meter) -> Answer {
    let Some((selector, bytes)) = input.split_first() else {
        return Answer::Refused;
    };
    let bytes = Bytes::copy_from_slice(bytes);
    let (schema, only) = if *selector < 4 {
        single(*selector)
    } else {
        // Only the fields that the file has: each group is a file of its own.
        let whole = whole();
        let footer = meter.run(|| falconer::engine::format::parquet::Footer::parse("log", &bytes));
        let ids: Vec<i64> = footer
            .iter()
            .flat_map(|f| &f.leaves)
            .filter_map(|l| l.field_id.map(i64::from))
            .collect();
        (whole.only(|f| ids.contains(&f.id.0)), FieldId(100))
    };
    let read = meter.run(|| {
        let mut reader = LogReader::open(schema, vec![("log".into(), Some(only), bytes)], LIMITS)?;
        let mut count = 0;
        let mut last = None;
        while count < ENOUGH
            && let Some(batch) = reader.batch(256)?
        {
            count += batch.len();
            last = Some(batch);
        }
        Ok(last)
    });
    match read {
        Ok(last) => {
            // What was read can be shown.
            if let Some(rows) = last {
                for i in 0..rows.len().min(3) {
                    assert_eq!(row_json::row(&rows, i).len(), rows.schema().fields.len());
                }
            }
            Answer::Read
        }
        Err(e) => refused(&e),
    }
}

pub fn deltas() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = lab::objects()
        .iter()
        .filter(|(key, bytes)| key.contains("/delta_log/") && bytes.len() < 4_000)
        .take(2)
        .map(|(_, bytes)| bytes.to_vec())
        .collect();
    assert!(!out.is_empty());
    let of = (CollectionId(1), PartitionId(2), SegmentId(3));
    for form in [
        DeltaForm::V1Json,
        DeltaForm::V1MultiField,
        DeltaForm::Parquet,
    ] {
        for key in [PrimaryKey::Int(7), PrimaryKey::Text("seven".into())] {
            let deletes: Vec<(PrimaryKey, Tso)> =
                (0..5).map(|i| (key.clone(), Tso(100 + i))).collect();
            out.push(delta::write(form, of, &deletes, Tso(9)).expect("a log"));
        }
    }
    out
}

pub fn delta(input: &[u8], meter: &mut Meter) -> Answer {
    let bytes = Bytes::copy_from_slice(input);
    let read = meter.run(|| {
        let mut reader = DeltaReader::open("log", &bytes, LIMITS)?;
        let mut count = 0;
        while count < ENOUGH
            && let Some(batch) = reader.batch(256)?
        {
            count += batch.len();
        }
        Ok(())
    });
    match read {
        Ok(()) => Answer::Read,
        Err(e) => refused(&e),
    }
}

pub fn key_stats() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    for key in [PrimaryKey::Int(7), PrimaryKey::Text("seven".into())] {
        let mut bloom = Bloom::blocked(3);
        bloom.add(&key);
        let made = key_statistics::Stats {
            field: FieldId(100),
            min: key.clone(),
            max: key.clone(),
            bloom,
        };
        out.push(key_statistics::write(&made));
        out.push(key_statistics::write_merged(&[made.clone(), made]));
        // The newest branch's binary form.
        let mut binary = b"mpkstats".to_vec();
        for word in [
            1u32,
            1,
            if matches!(key, PrimaryKey::Int(_)) {
                5
            } else {
                21
            },
            100,
        ] {
            binary.extend(word.to_le_bytes());
        }
        binary.resize(64, 0);
        let mut head = [1u32.to_le_bytes(), 5u32.to_le_bytes()].concat();
        let mut keys = Vec::new();
        match &key {
            PrimaryKey::Int(n) => head.extend([n.to_le_bytes(), n.to_le_bytes()].concat()),
            PrimaryKey::Text(text) => {
                for _ in 0..2 {
                    keys.extend((text.len() as u32).to_le_bytes());
                    keys.extend(text.as_bytes());
                }
                head.extend((keys.len() as u32).to_le_bytes());
            }
        }
        head.resize(64, 0);
        binary.extend(head);
        binary.extend(keys);
        binary.extend([0xA5; 64]);
        out.push(binary);
    }
    let real = lab::objects()
        .iter()
        .find(|(key, bytes)| key.contains("/stats_log/") && bytes.len() < 3_000);
    out.extend(real.map(|(_, bytes)| bytes.to_vec()));
    out
}

pub fn stats(input: &[u8], meter: &mut Meter) -> Answer {
    match meter.run(|| key_statistics::read("stats", input)) {
        Ok(found) => {
            for one in &found {
                let _ = (one.may_have(&one.min), one.may_have(&PrimaryKey::Int(3)));
            }
            // What was read can be written, and reads as the same.
            let again = key_statistics::read("again", &key_statistics::write_merged(&found))
                .expect("what we wrote reads");
            assert_eq!(again.len(), found.len());
            for (a, b) in again.iter().zip(&found) {
                assert_eq!((&a.min, &a.max, a.field), (&b.min, &b.max, b.field));
            }
            Answer::Read
        }
        Err(e) => refused(&e),
    }
}

pub fn foreign() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let list = "message m { required group v (LIST) { repeated group list { required float element; } } }";
        for message in [
            list,
            "message m { required int64 pk; }",
            "message m { optional binary text (STRING); required int32 small; }",
        ] {
            out.push(other_writer(message, version, Compression::UNCOMPRESSED));
        }
    }
    out
}

pub fn parquet(input: &[u8], meter: &mut Meter) -> Answer {
    let bytes = Bytes::copy_from_slice(input);
    let mut all = field(100, "pk", DataType::Int64);
    all.is_primary_key = true;
    all.nullable = true;
    let mut text = field(102, "text", DataType::VarChar);
    text.nullable = true;
    let mut small = field(103, "small", DataType::Int32);
    small.nullable = true;
    let mut v = with(field(101, "v", DataType::FloatVector), "dim", "2");
    v.nullable = true;
    let schema = schema(vec![all, v, text, small]);
    let read = meter.run(|| {
        let mut reader = ParquetRows::open("rows", &schema, bytes, LIMITS)?;
        let mut count = 0;
        while count < ENOUGH
            && let Some(batch) = reader.batch(256)?
        {
            count += batch.len();
        }
        Ok(())
    });
    match read {
        Ok(()) => Answer::Read,
        Err(e) => refused(&e),
    }
}

pub fn lines() -> Vec<Vec<u8>> {
    vec![
        b"{\"pk\": 1, \"small\": 2, \"text\": null, \"v\": [1, 2.5], \"sparse\": {\"7\": 0.5}, \"vs\": [[1, 2]], \"x\": {\"y\": [true]}}\n".to_vec(),
        b"{\"pk\": \"9007199254740993\", \"small\": -3, \"text\": \"a\", \"v\": [1e3, 0], \"sparse\": {\"indices\": [1, 2], \"values\": [1, 2]}, \"vs\": []}\n\n{\"pk\": 2}".to_vec(),
    ]
}

pub fn json(input: &[u8], meter: &mut Meter) -> Answer {
    let schema = whole();
    let read = meter.run(|| {
        let mut reader = JsonLines::new("rows", &schema, input);
        let mut last = None;
        while let Some(batch) = reader.batch(16)? {
            last = Some(batch);
        }
        Ok(last)
    });
    match read {
        Ok(last) => {
            if let Some(rows) = last {
                let whole =
                    complete(&rows, &schema, 1, Tso(9)).expect("rows that were read are complete");
                assert_eq!(whole.len(), rows.len());
            }
            Answer::Read
        }
        Err(e) => refused(&e),
    }
}
