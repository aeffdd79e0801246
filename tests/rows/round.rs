//! What we write is read again: by us, and by a reader that shares no code with ours.

use bytes::Bytes;
use falconer::engine::format::binlog::{DeltaForm, delta_form};
use falconer::engine::format::rows::bloom::Bloom;
use falconer::engine::format::rows::delta::{self, DeltaReader};
use falconer::engine::format::rows::insert::LogReader;
use falconer::engine::format::rows::write::{GroupFile, LogWriter, groups};
use falconer::engine::format::rows::{Limits, PrimaryKey, Rows, Values, stats};
use falconer::engine::ids::{CollectionId, FieldId, PartitionId, SegmentId, Tso};
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;

use crate::make;

fn written(rows: &Rows, parts: usize) -> Vec<GroupFile> {
    let mut writer = LogWriter::new(rows.schema().clone(), &groups(rows)).unwrap();
    let step = (rows.len() / parts).max(1);
    for from in (0..rows.len()).step_by(step) {
        writer
            .write(&rows.slice(from..(from + step).min(rows.len())))
            .unwrap();
    }
    writer.finish().unwrap()
}

fn read(
    schema: &std::sync::Arc<falconer::engine::format::rows::Schema>,
    files: &[GroupFile],
    most: usize,
) -> Rows {
    let files = files
        .iter()
        .map(|f| {
            (
                format!("group {}", f.group.id),
                Some(f.group.id),
                f.bytes.clone(),
            )
        })
        .collect();
    let mut reader = LogReader::open(schema.clone(), files, Limits::default()).unwrap();
    let mut out = Rows::empty(schema.clone());
    while let Some(batch) = reader.batch(most).unwrap() {
        assert!(batch.len() <= most);
        out.append(&batch).unwrap();
    }
    assert_eq!(reader.rows(), out.len() as u64);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Every type, null or not, in batches of any length.
    #[test]
    fn rows_of_every_type_come_back(text: bool, parts in 1usize..4, most in 1usize..40, rows in any::<bool>().prop_flat_map(|text| make::rows(text, 30))) {
        let _ = text;
        let files = written(&rows, parts);
        if rows.is_empty() {
            prop_assert!(files.is_empty());
        } else {
            prop_assert_eq!(&read(rows.schema(), &files, most), &rows);
        }
    }

    #[test]
    fn deletes_come_back_in_every_form(
        text: bool,
        deletes in prop::collection::vec((any::<i64>(), "\\PC{0,9}", any::<u64>()), 1..40),
        most in 1usize..50,
    ) {
        let deletes: Vec<(PrimaryKey, Tso)> = deletes
            .into_iter()
            .map(|(n, t, at)| (if text { PrimaryKey::Text(t) } else { PrimaryKey::Int(n) }, Tso(at)))
            .collect();
        for form in [DeltaForm::V1Json, DeltaForm::V1MultiField, DeltaForm::Parquet] {
            let of = (CollectionId(1), PartitionId(-1), SegmentId(3));
            let bytes: Bytes = delta::write(form, of, &deletes, Tso(9)).unwrap().into();
            prop_assert_eq!(delta_form(&bytes), Some(form));
            let mut reader = DeltaReader::open("delta", &bytes, Limits::default()).unwrap();
            let mut found = Vec::new();
            while let Some(batch) = reader.batch(most).unwrap() {
                found.extend(batch);
            }
            prop_assert_eq!(&found, &deletes);
        }
    }

    #[test]
    fn statistics_come_back_and_know_every_key(text: bool, keys in prop::collection::vec((any::<i64>(), "\\PC{0,9}"), 1..200)) {
        let keys: Vec<PrimaryKey> = keys
            .into_iter()
            .map(|(n, t)| if text { PrimaryKey::Text(t) } else { PrimaryKey::Int(n) })
            .collect();
        let mut bloom = Bloom::blocked(keys.len());
        for key in &keys { bloom.add(key); }
        let made = stats::Stats {
            field: FieldId(100),
            min: keys.iter().min().unwrap().clone(),
            max: keys.iter().max().unwrap().clone(),
            bloom,
        };
        prop_assert!(keys.iter().all(|k| made.may_have(k)));
        prop_assert_eq!(&stats::read("one", &stats::write(&made)).unwrap(), std::slice::from_ref(&made));
        let both = [made.clone(), made];
        prop_assert_eq!(stats::read("1", &stats::write_merged(&both)).unwrap(), both);
    }
}

/// The library's own low-level reader finds our columns by id, type and value, and what Milvus wants in the footer.
#[test]
fn another_reader_reads_our_files() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let rows = loop {
        let rows = make::rows(false, 40)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        if rows.len() > 20 {
            break rows;
        }
    };
    let files = written(&rows, 2);
    let all: Vec<String> = files
        .iter()
        .map(|f| {
            f.group
                .fields
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",")
        })
        .collect();
    for file in &files {
        let reader = SerializedFileReader::new(file.bytes.clone()).unwrap();
        let meta = reader.metadata().file_metadata();
        let value = |key: &str| {
            let found = meta
                .key_value_metadata()
                .unwrap()
                .iter()
                .find(|kv| kv.key == key);
            found
                .unwrap_or_else(|| panic!("no {key}"))
                .value
                .clone()
                .unwrap()
        };
        assert_eq!(value("storage_version"), "1.0.0");
        assert_eq!(value("group_field_id_list"), all.join(";"));
        let mut offset = 0;
        let sizes = value("row_group_metadata");
        let sizes: Vec<&str> = sizes.split(';').collect();
        assert_eq!(sizes.len(), reader.num_row_groups());
        for (i, group) in sizes.iter().enumerate() {
            let parts: Vec<i64> = group.split('|').map(|n| n.parse().unwrap()).collect();
            assert!(parts[0] > 0);
            assert_eq!(
                parts[1..],
                [reader.metadata().row_group(i).num_rows(), offset]
            );
            offset += parts[1];
        }
        assert_eq!(offset as usize, rows.len());
        let ids: Vec<i64> = meta
            .schema_descr()
            .root_schema()
            .get_fields()
            .iter()
            .map(|f| i64::from(f.get_basic_info().id()))
            .collect();
        let wanted: Vec<i64> = file.group.fields.iter().map(|f| f.0).collect();
        assert_eq!(ids, wanted, "field ids in the schema");
        for (row, found) in reader.get_row_iter(None).unwrap().enumerate() {
            let found = found.unwrap();
            for ((name, value), id) in found.get_column_iter().zip(&file.group.fields) {
                let field = rows.schema().fields.iter().find(|f| f.id == *id).unwrap();
                assert_eq!(*name, field.name);
                let column = rows.column(*id).unwrap();
                let theirs = value.to_string();
                let ours = match &column.values {
                    _ if column.is_null(row) => "null".to_owned(),
                    Values::Int64(v) => v[row].to_string(),
                    Values::Int32(v) => v[row].to_string(),
                    Values::Int16(v) => v[row].to_string(),
                    Values::Int8(v) => v[row].to_string(),
                    Values::Bool(v) => v[row].to_string(),
                    Values::Text(v) => format!("\"{}\"", String::from_utf8_lossy(v.get(row))),
                    // Floats are printed in forms of their own, byte strings as lists.
                    _ => continue,
                };
                assert_eq!(theirs, ours, "{name} row {row}");
            }
        }
    }
}

/// A file of more than one row group: closed when its columns take a megabyte.
#[test]
fn large_logs_have_several_row_groups() {
    let many: Vec<(i64, i64)> = (0..200_000).map(|i| (i * 3, 1_000 + i / 1_000)).collect();
    let rows = make::small(&many);
    let files = written(&rows, 7);
    assert_eq!(files.len(), 2, "short fields and the vector");
    assert_eq!(
        files.iter().map(|f| f.group.id.0).collect::<Vec<_>>(),
        [0, 101]
    );
    for file in &files {
        assert_eq!(file.rows, 200_000);
        assert_eq!(file.range, (Tso(1_000), Tso(1_199)));
        let reader = SerializedFileReader::new(file.bytes.clone()).unwrap();
        assert!(reader.num_row_groups() > 1);
    }
    assert_eq!(read(rows.schema(), &files, 8_192), rows);
    // Fewer fields, without opening the others.
    let only = rows.schema().only(|f| f.id.0 == 100);
    let some = read(&only, &files[..1], 1_000);
    assert_eq!(some.keys().unwrap(), rows.keys().unwrap());
}

#[test]
fn a_field_that_came_later_has_its_default_or_null() {
    let rows = make::small(&[(1, 10), (2, 20)]);
    let files = written(&rows, 1);
    let mut later = make::collection(false);
    later.fields.retain(|f| {
        f.name == "defaulted" || f.name == "Int32_108" || f.is_dynamic || f.field_id == 100
    });
    let schema = falconer::engine::format::rows::Schema::of(&later).unwrap();
    let found = read(&schema, &files[..1], 10);
    let row = falconer::engine::format::rows::json::row(&found, 1);
    assert_eq!(row["defaulted"], -7);
    assert!(row["Int32_108"].is_null());
    assert_eq!(row["$meta"], serde_json::json!({}));
    assert_eq!(row["pk"], "2");
    // A field that cannot be absent is a damaged segment.
    later.fields.push(make::field(
        900,
        "must",
        falconer::engine::format::pb::schema::DataType::Int8,
    ));
    let schema = falconer::engine::format::rows::Schema::of(&later).unwrap();
    let files = files
        .iter()
        .map(|f| ("f".to_owned(), Some(f.group.id), f.bytes.clone()))
        .collect();
    let e = LogReader::open(schema, files, Limits::default())
        .err()
        .unwrap();
    assert!(
        e.to_string().contains("no file holds field 900 must"),
        "{e}"
    );
}
