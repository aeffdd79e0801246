//! Rows into files: what Milvus's format costs over a bare Parquet write of the same rows with the same compression, in one process and one
//! run. Bare is the library's own column writer over values that are already in its types, in one row group, without ids or statistics of
//! keys. Ours splits column groups and row groups of a megabyte, writes the footer that Milvus wants, and (second line) sorts by primary key
//! and makes the key statistics too.
//!
//! ```text
//! tools/bench rows
//! ```
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_possible_wrap, reason = "small numbers")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{list, median, row, sized};
use falconer::engine::format::pb::common::KeyValuePair;
use falconer::engine::format::pb::schema::{CollectionSchema, DataType, FieldSchema};
use falconer::engine::format::rows::insert::LogReader;
use falconer::engine::format::rows::write::{GroupFile, LogWriter, groups};
use falconer::engine::format::rows::{
    Blobs, Column, Deletes, Limits, Rows, Schema, Values, order, stats,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{
    ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, Int64Type,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;

const DIM: usize = 128;
const REPEAT: usize = 5;

fn schema() -> Arc<Schema> {
    let field = |id, name: &str, data_type: DataType| FieldSchema {
        field_id: id,
        name: name.into(),
        data_type: data_type as i32,
        is_primary_key: id == 100,
        ..FieldSchema::default()
    };
    let mut vector = field(103, "v", DataType::FloatVector);
    vector.type_params.push(KeyValuePair {
        key: "dim".into(),
        value: DIM.to_string(),
    });
    Schema::of(&CollectionSchema {
        fields: vec![
            field(100, "pk", DataType::Int64),
            field(101, "title", DataType::VarChar),
            field(102, "price", DataType::Double),
            vector,
        ],
        ..CollectionSchema::default()
    })
    .expect("a schema")
}

/// Keys in no order, short texts, vectors of random floats in -1..1: the bytes that compress worst, as embeddings do.
fn sample(count: usize) -> Rows {
    let mut state = 1u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let keys: Vec<i64> = (0..count).map(|_| next() as i64).collect();
    let mut titles = Blobs::default();
    for _ in 0..count {
        titles.push(format!("title {} of {}", next() % 5_000, next() % 90).as_bytes());
    }
    let prices: Vec<f64> = (0..count)
        .map(|_| (next() % 100_000) as f64 / 100.0)
        .collect();
    let data: Vec<u8> = (0..count * DIM)
        .flat_map(|_| ((next() % 2_000_000) as f32 / 1e6 - 1.0).to_le_bytes())
        .collect();
    let columns = vec![
        Column::of(Values::Int64((0..count as i64).collect())),
        Column::of(Values::Int64(
            (0..count as i64).map(|i| 1_000 + i / 1_000).collect(),
        )),
        Column::of(Values::Int64(keys)),
        Column::of(Values::Text(titles)),
        Column::of(Values::Double(prices)),
        Column::of(Values::Fixed {
            width: DIM * 4,
            data,
        }),
    ];
    Rows::new(schema(), columns).expect("rows")
}

/// The same values in the library's types, made before the clock runs.
struct Bare {
    numbers: [Vec<i64>; 3],
    titles: Vec<ByteArray>,
    prices: Vec<f64>,
    vectors: Vec<FixedLenByteArray>,
}

impl Bare {
    fn of(rows: &Rows) -> Self {
        let ints = |i: usize| match &rows.columns()[i].values {
            Values::Int64(v) => v.clone(),
            _ => panic!("integers"),
        };
        let (Values::Text(titles), Values::Double(prices), Values::Fixed { data, .. }) = (
            &rows.columns()[3].values,
            &rows.columns()[4].values,
            &rows.columns()[5].values,
        ) else {
            panic!("the columns of the sample");
        };
        let whole = Bytes::from(data.clone());
        Self {
            numbers: [ints(0), ints(1), ints(2)],
            titles: titles.iter().map(|t| ByteArray::from(t.to_vec())).collect(),
            prices: prices.clone(),
            vectors: (0..rows.len())
                .map(|i| {
                    FixedLenByteArray::from(ByteArray::from(
                        whole.slice(i * DIM * 4..(i + 1) * DIM * 4),
                    ))
                })
                .collect(),
        }
    }

    fn write(&self) -> Vec<u8> {
        let message = format!(
            "message m {{ required int64 a; required int64 b; required int64 c; required binary d (STRING); required double e; \
             required fixed_len_byte_array({}) f; }}",
            DIM * 4
        );
        let schema =
            Arc::new(parquet::schema::parser::parse_message_type(&message).expect("a message"));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("a level")))
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let mut file =
            SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).expect("a writer");
        let mut group = file.next_row_group().expect("a group");
        for numbers in &self.numbers {
            let mut column = group.next_column().expect("next").expect("a column");
            column
                .typed::<Int64Type>()
                .write_batch(numbers, None, None)
                .expect("values");
            column.close().expect("closed");
        }
        let mut column = group.next_column().expect("next").expect("a column");
        column
            .typed::<ByteArrayType>()
            .write_batch(&self.titles, None, None)
            .expect("values");
        column.close().expect("closed");
        let mut column = group.next_column().expect("next").expect("a column");
        column
            .typed::<DoubleType>()
            .write_batch(&self.prices, None, None)
            .expect("values");
        column.close().expect("closed");
        let mut column = group.next_column().expect("next").expect("a column");
        column
            .typed::<FixedLenByteArrayType>()
            .write_batch(&self.vectors, None, None)
            .expect("values");
        column.close().expect("closed");
        group.close().expect("closed");
        file.into_inner().expect("a file")
    }
}

fn write(rows: &Rows) -> Vec<GroupFile> {
    let mut writer = LogWriter::new(rows.schema().clone(), &groups(rows)).expect("a writer");
    writer.write(rows).expect("rows");
    writer.finish().expect("files")
}

fn timed<T>(run: impl Fn() -> T) -> (Vec<Duration>, T) {
    let mut out = None;
    let times = (0..REPEAT)
        .map(|_| {
            let began = Instant::now();
            out = Some(run());
            began.elapsed()
        })
        .collect();
    (times, out.expect("it ran"))
}

fn main() {
    let count = sized(100_000, 2_000);
    let rows = sample(count);
    let bare = Bare::of(&rows);
    let _ = (bare.write(), write(&rows)); // once, so that neither pays for first pages
    let (bare_times, file) = timed(|| bare.write());
    let (write_times, files) = timed(|| write(&rows));
    let (sort_times, _) = timed(|| {
        let sorted = order::sorted(&rows, &Deletes::default()).expect("sorted");
        let statistics = stats::Stats::of(&sorted)
            .expect("keys")
            .map(|s| stats::write(&s));
        (write(&sorted), statistics)
    });
    let (read_times, read) = timed(|| {
        let files = files
            .iter()
            .map(|f| (f.group.id.to_string(), Some(f.group.id), f.bytes.clone()))
            .collect();
        let mut reader =
            LogReader::open(rows.schema().clone(), files, Limits::default()).expect("a reader");
        let mut count = 0;
        while let Some(batch) = reader.batch(8_192).expect("a batch") {
            count += batch.len();
        }
        count
    });
    assert_eq!(read, count);
    println!(
        "{count} rows of 6 columns, vectors of {DIM} floats, {} bytes in memory",
        rows.bytes()
    );
    println!("bare write     {}", list(&bare_times));
    println!("write          {}", list(&write_times));
    println!("sort, stats, write {}", list(&sort_times));
    println!("read           {}", list(&read_times));
    let ratio =
        |times: &[Duration]| median(times).as_secs_f64() / median(&bare_times).as_secs_f64();
    let rate = |times: &[Duration]| count as f64 / median(times).as_secs_f64();
    let ours: usize = files.iter().map(|f| f.bytes.len()).sum();
    row(
        "rows: storage V2 write / bare Parquet write",
        &format!(
            "{:.2} ({:.0} rows/s)",
            ratio(&write_times),
            rate(&write_times)
        ),
        Some(("≤ 1.5", ratio(&write_times) <= 1.5)),
    );
    row(
        "rows: sort, key statistics and storage V2 write / bare Parquet write",
        &format!(
            "{:.2} ({:.0} rows/s)",
            ratio(&sort_times),
            rate(&sort_times)
        ),
        Some(("≤ 1.5", ratio(&sort_times) <= 1.5)),
    );
    row(
        "rows: read back / bare Parquet write",
        &format!(
            "{:.2} ({:.0} rows/s)",
            ratio(&read_times),
            rate(&read_times)
        ),
        None,
    );
    row(
        "rows: bytes of the files / bare file",
        &format!("{:.3}", ours as f64 / file.len() as f64),
        None,
    );
}
