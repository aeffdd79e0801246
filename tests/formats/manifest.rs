//! Segment manifests: every shape, both block forms, and strictness.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use falconer::engine::error::ErrorKind;
use falconer::engine::format::manifest::{Shape, as_stored, read, schema, write_v4};
use falconer::engine::format::pb::common::KeyValuePair;
use falconer::engine::format::pb::data::{
    Binlog, FieldBinlog, JsonKeyStats, SegmentDescription, TextIndexStats,
};
use falconer::engine::format::pb::index::IndexFilePathInfo;
use falconer::engine::format::pb::msg::MsgPosition;
use proptest::prelude::*;

use super::avro::{Blocks, Encoder, long};

const FORMS: [Blocks; 4] = [
    Blocks::Plain,
    Blocks::Sized(100),
    Blocks::Sized(7),
    Blocks::Sized(1),
];

fn versions() -> [(Shape, i32); 5] {
    [
        (Shape::V1Early, 1),
        (Shape::V1Late, 1),
        (Shape::V2, 2),
        (Shape::V3, 3),
        (Shape::V4, 4),
    ]
}

/// A segment with `n` items in every list.
fn segment(n: i64) -> SegmentDescription {
    let texts = |what: &str| {
        (0..n)
            .map(|i| format!("files/{what}/{i}"))
            .collect::<Vec<_>>()
    };
    let logs = |base: i64| -> Vec<FieldBinlog> {
        (0..n)
            .map(|i| FieldBinlog {
                field_id: base + i,
                child_fields: (0..n).collect(),
                format: if i % 2 == 0 {
                    "parquet".into()
                } else {
                    String::new()
                },
                binlogs: (0..(n + 1) / 2)
                    .map(|b| Binlog {
                        entries_num: b * 1000,
                        timestamp_from: 1,
                        timestamp_to: if b == 0 { u64::MAX } else { 5 },
                        log_path: format!("files/insert_log/1/2/3/{i}/{b}"),
                        log_size: 1 << 40,
                        log_id: 470_660_334_431_502_351 + b,
                        memory_size: -1,
                        ..Default::default()
                    })
                    .collect(),
            })
            .collect()
    };
    SegmentDescription {
        segment_id: 3,
        partition_id: -1,
        segment_level: 2,
        channel_name: "by-dev-rootcoord-dml_0_1v0".into(),
        num_of_rows: i64::MAX,
        start_position: Some(MsgPosition {
            channel_name: "by-dev-rootcoord-dml_0_1v0".into(),
            msg_id: vec![0, 255, 1],
            msg_group: "g".into(),
            timestamp: u64::MAX,
            wal_name: 0,
        }),
        storage_version: 2,
        is_sorted: true,
        commit_timestamp: u64::MAX - 1,
        binlogs: logs(0),
        deltalogs: logs(1000),
        statslogs: logs(2000),
        bm25_statslogs: logs(3000),
        index_files: (0..n)
            .map(|i| IndexFilePathInfo {
                segment_id: 3,
                field_id: 100 + i,
                index_id: 200 + i,
                build_id: 300 + i,
                index_name: format!("index_{i}"),
                index_params: texts("param")
                    .into_iter()
                    .map(|v| KeyValuePair {
                        key: v,
                        value: "x".into(),
                    })
                    .collect(),
                index_file_paths: texts("index_files"),
                serialized_size: u64::MAX,
                index_version: 1,
                num_rows: 3,
                current_index_version: i32::MAX,
                mem_size: 77,
                current_scalar_index_version: i32::MIN,
                index_store_path_version: 1,
            })
            .collect(),
        text_index_files: (0..n)
            .map(|i| {
                (
                    i,
                    TextIndexStats {
                        field_id: i,
                        version: 1,
                        files: texts("text"),
                        build_id: 5,
                        ..Default::default()
                    },
                )
            })
            .collect(),
        json_key_index_files: (0..n)
            .map(|i| {
                let stats = JsonKeyStats {
                    field_id: i,
                    files: texts("json"),
                    log_size: -7,
                    json_key_stats_data_format: 3,
                    ..Default::default()
                };
                (i, stats)
            })
            .collect(),
        ..Default::default()
    }
}

/// What a shape can hold of a segment.
fn limited(mut s: SegmentDescription, shape: Shape) -> SegmentDescription {
    if shape < Shape::V4 {
        for f in [
            &mut s.binlogs,
            &mut s.deltalogs,
            &mut s.statslogs,
            &mut s.bm25_statslogs,
        ]
        .into_iter()
        .flatten()
        {
            f.child_fields.clear();
            f.format.clear();
        }
    }
    if shape < Shape::V3 {
        s.commit_timestamp = 0;
    }
    for i in &mut s.index_files {
        if shape < Shape::V2 {
            i.index_store_path_version = 0;
        }
        if shape == Shape::V1Early {
            i.current_scalar_index_version = 0;
        }
    }
    s
}

/// `spec/snapshot.md` §2.6, byte for byte.
const VECTOR: [u8; 56] = [
    0x0e, 0x0a, 0x04, 0x02, 0x63, 0x06, 0x02, 0x63, 0x04, 0x01, 0x02, 0x00, 0x12, 0x00, 0x00, 0x00,
    0x00, 0x04, 0x01, 0x00, 0x01, 0x36, 0x00, 0x03, 0x04, 0x00, 0x02, 0x00, 0x0e, 0x70, 0x61, 0x72,
    0x71, 0x75, 0x65, 0x74, 0x01, 0x14, 0x06, 0x02, 0x12, 0x06, 0x70, 0x2f, 0x31, 0x14, 0x02, 0x18,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

fn vector() -> SegmentDescription {
    SegmentDescription {
        segment_id: 7,
        partition_id: 5,
        segment_level: 2,
        channel_name: "c".into(),
        num_of_rows: 3,
        start_position: Some(MsgPosition {
            channel_name: "c".into(),
            msg_id: vec![1, 2],
            timestamp: 9,
            ..Default::default()
        }),
        storage_version: 2,
        is_sorted: true,
        binlogs: vec![FieldBinlog {
            field_id: 0,
            child_fields: vec![0, 1],
            format: "parquet".into(),
            binlogs: vec![Binlog {
                entries_num: 3,
                timestamp_from: 1,
                timestamp_to: 9,
                log_path: "p/1".into(),
                log_size: 10,
                log_id: 1,
                memory_size: 12,
                ..Default::default()
            }],
        }],
        ..Default::default()
    }
}

#[test]
fn the_computed_test_vector_reads_exactly() {
    assert_eq!(read("v.avro", &VECTOR, 4).unwrap(), vector());
    let encoder = Encoder {
        shape: Shape::V4,
        blocks: Blocks::Sized(100),
    };
    assert_eq!(
        encoder.manifest(&vector()),
        VECTOR,
        "the tests' own encoder agrees with the vector"
    );
    assert_eq!(
        read("v.avro", &write_v4(&vector()).unwrap(), 4).unwrap(),
        vector()
    );
}

#[test]
fn every_shape_reads_lists_of_every_length_in_every_block_form() {
    for n in [0, 1, 2, 7, 100, 101] {
        // Lists nest: 101 of 101 would be a gigabyte of test data, so long lists are tried one by one below.
        let whole = segment(n.min(7));
        for (shape, version) in versions() {
            for blocks in FORMS {
                let bytes = Encoder { shape, blocks }.manifest(&whole);
                let back = read("m.avro", &bytes, version)
                    .unwrap_or_else(|e| panic!("{shape:?} {blocks:?} {n}: {e}"));
                assert_eq!(
                    back,
                    limited(whole.clone(), shape),
                    "{shape:?} {blocks:?} {n}"
                );
            }
        }
    }
    let empty = segment(0);
    for (shape, version) in versions().into_iter().filter(|(s, _)| *s <= Shape::V1Late) {
        let bytes = Encoder {
            shape,
            blocks: Blocks::Plain,
        }
        .manifest(&empty);
        assert_eq!(
            read("m.avro", &bytes, 0).unwrap(),
            read("m.avro", &bytes, version).unwrap(),
            "0 is read as 1"
        );
    }
}

/// Takes one list of a segment and gives it `n` items.
type Grow = fn(&mut SegmentDescription, usize);

#[test]
fn each_list_reads_at_the_block_borders() {
    let lists: [(&str, Grow); 13] = [
        ("binlog_files", |s, n| {
            s.binlogs = vec![s.binlogs[0].clone(); n];
        }),
        ("deltalog_files", |s, n| {
            s.deltalogs = vec![s.deltalogs[0].clone(); n];
        }),
        ("statslog_files", |s, n| {
            s.statslogs = vec![s.statslogs[0].clone(); n];
        }),
        ("bm25_statslog_files", |s, n| {
            s.bm25_statslogs = vec![s.bm25_statslogs[0].clone(); n];
        }),
        ("child_fields", |s, n| {
            s.binlogs[0].child_fields = (0..n as i64).collect();
        }),
        ("binlogs", |s, n| {
            s.binlogs[0].binlogs = vec![s.binlogs[0].binlogs[0].clone(); n];
        }),
        ("index_files", |s, n| {
            s.index_files = vec![s.index_files[0].clone(); n];
        }),
        ("index_params", |s, n| {
            s.index_files[0].index_params = vec![s.index_files[0].index_params[0].clone(); n];
        }),
        ("index_file_paths", |s, n| {
            s.index_files[0].index_file_paths = vec!["files/x".into(); n];
        }),
        ("text_index_files", |s, n| {
            let one = s.text_index_files[&0].clone();
            s.text_index_files = (0..n as i64).map(|i| (i, one.clone())).collect();
        }),
        ("text files", |s, n| {
            s.text_index_files.get_mut(&0).unwrap().files = vec!["f".into(); n];
        }),
        ("json_key_index_files", |s, n| {
            let one = s.json_key_index_files[&0].clone();
            s.json_key_index_files = (0..n as i64).map(|i| (i, one.clone())).collect();
        }),
        ("json files", |s, n| {
            s.json_key_index_files.get_mut(&0).unwrap().files = vec!["f".into(); n];
        }),
    ];
    for (name, grow) in lists {
        for n in [0, 1, 100, 101, 250] {
            let mut s = segment(1);
            grow(&mut s, n);
            for (shape, version) in versions() {
                for blocks in [Blocks::Plain, Blocks::Sized(100)] {
                    let bytes = Encoder { shape, blocks }.manifest(&s);
                    let back = read("m.avro", &bytes, version)
                        .unwrap_or_else(|e| panic!("{name} {n} {shape:?}: {e}"));
                    assert_eq!(
                        back,
                        limited(s.clone(), shape),
                        "{name} {n} {shape:?} {blocks:?}"
                    );
                }
            }
            assert_eq!(
                read("m.avro", &write_v4(&s).unwrap(), 4).unwrap(),
                s,
                "{name} {n}"
            );
        }
    }
}

/// `apache-avro`, with our schemas, reads what the independent encoder wrote: the schemas and the reader agree.
#[test]
fn the_library_agrees_on_every_shape() {
    for (shape, _) in versions() {
        let parsed = Schema::parse(&schema(shape)).unwrap();
        let reader = GenericDatumReader::builder(&parsed).build().unwrap();
        for blocks in FORMS {
            for n in [0, 1, 7] {
                let bytes = Encoder { shape, blocks }.manifest(&segment(n));
                let mut rest = bytes.as_slice();
                let value = reader.read_value(&mut rest).unwrap();
                assert!(rest.is_empty(), "{shape:?} {blocks:?} {n}");
                let apache_avro::types::Value::Record(fields) = value else {
                    panic!()
                };
                assert_eq!(
                    fields[0],
                    ("segment_id".to_owned(), apache_avro::types::Value::Long(3))
                );
                let expected = if shape >= Shape::V3 { 17 } else { 16 };
                assert_eq!(fields.len(), expected);
            }
        }
    }
}

#[test]
fn every_cut_and_every_extra_byte_is_an_error_that_names_file_and_offset() {
    for (shape, version) in versions() {
        for blocks in FORMS {
            let bytes = Encoder { shape, blocks }.manifest(&segment(2));
            for cut in 0..bytes.len() {
                let error = read("dir/m.avro", &bytes[..cut], version)
                    .expect_err("a cut manifest was accepted");
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert_eq!(error.context("file"), Some("dir/m.avro"));
                let offset: usize = error.context("offset").unwrap().parse().unwrap();
                assert!(offset <= cut, "{error}");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            let error = read("m.avro", &longer, version).unwrap_err();
            if shape != Shape::V1Early && shape != Shape::V1Late {
                assert_eq!(
                    error.context("offset"),
                    Some(bytes.len().to_string().as_str()),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn a_manifest_of_another_version_does_not_read() {
    for (shape, own) in versions() {
        let bytes = Encoder {
            shape,
            blocks: Blocks::Sized(100),
        }
        .manifest(&segment(2));
        for version in 1..=4 {
            assert_eq!(
                read("m.avro", &bytes, version).is_ok(),
                version == own,
                "{shape:?} as {version}"
            );
        }
    }
    assert_eq!(
        read("m", &VECTOR, 5).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert!(
        read("m", &VECTOR, 5)
            .unwrap_err()
            .to_string()
            .contains("file=m")
    );
    assert_eq!(
        read("m", &VECTOR, -1).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

fn with(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = VECTOR.to_vec();
    bytes[at] = byte;
    bytes
}

#[test]
fn damage_is_named() {
    let cases: [(Vec<u8>, &str, &str); 8] = [
        (with(18, 2), "18", "a boolean that is neither 0 nor 1"),
        (
            with(21, 0x38),
            "20",
            "a block whose size is not that of its items",
        ),
        (
            with(21, 0x34),
            "20",
            "a block whose size is not that of its items",
        ),
        (
            with(37, 0x12),
            "36",
            "a block whose size is not that of its items",
        ),
        (
            with(21, 0x7e),
            "20",
            "a block size beyond the end of the file",
        ),
        (
            with(21, 0x01),
            "20",
            "a block size beyond the end of the file",
        ),
        (with(3, 0x01), "3", "a negative length"),
        (with(4, 0xff), "3", "text that is not UTF-8"),
    ];
    for (bytes, offset, why) in cases {
        let error = read("v.avro", &bytes, 4).unwrap_err();
        assert_eq!(
            (error.context("offset"), error.what()),
            (Some(offset), why),
            "{error}"
        );
    }
    // Counts that would make a careless reader reserve memory or loop.
    for count in [i64::MAX, i64::MIN, 1 << 40] {
        let mut bytes = VECTOR[..20].to_vec();
        long(&mut bytes, count);
        long(&mut bytes, 5);
        assert!(read("v.avro", &bytes, 4).is_err());
    }
    let mut overlong = vec![0xff; 10];
    overlong.extend(VECTOR);
    assert_eq!(
        read("v.avro", &overlong, 4).unwrap_err().what(),
        "a number of more than 64 bits"
    );

    // An int field over 32 bits.
    let mut s = segment(1);
    s.index_files[0].current_index_version = 0x55;
    let good = Encoder {
        shape: Shape::V4,
        blocks: Blocks::Plain,
    }
    .manifest(&s);
    let at = good.windows(2).rposition(|w| w == [0xaa, 0x01]).unwrap();
    let mut bytes = good[..at].to_vec();
    long(&mut bytes, 1 << 33);
    bytes.extend(&good[at + 2..]);
    let error = read("m", &bytes, 4).unwrap_err();
    assert_eq!(
        (error.what(), error.context("field")),
        ("an int of more than 32 bits", Some("current_index_version"))
    );

    // One field's text index twice.
    let mut text = VECTOR[..54].to_vec();
    let one = [2, 2, 0, 0, 0, 0, 0];
    long(&mut text, 2);
    text.extend(one);
    text.extend(one);
    text.extend([0, 0]);
    let error = read("m", &text, 4).unwrap_err();
    assert_eq!(error.what(), "field 1 is there twice");
}

#[test]
fn the_two_shapes_of_version_one_are_told_apart() {
    for n in [1, 2, 3] {
        let mut s = segment(n);
        for i in &mut s.index_files {
            i.current_scalar_index_version = 2;
        }
        for blocks in FORMS {
            for shape in [Shape::V1Early, Shape::V1Late] {
                let bytes = Encoder { shape, blocks }.manifest(&s);
                let back = read("m", &bytes, 1).unwrap();
                assert_eq!(back, limited(s.clone(), shape), "{shape:?} {blocks:?} {n}");
            }
        }
    }
}

#[test]
fn what_the_format_cannot_hold_is_declared() {
    let mut s = segment(2);
    s.manifest_path = "{}".into();
    s.start_position.as_mut().unwrap().wal_name = 4;
    s.dml_position = Some(MsgPosition::default());
    s.binlogs[0].binlogs[0].field_null_counts = [(1, 2)].into();
    s.text_index_files
        .get_mut(&0)
        .unwrap()
        .current_scalar_index_version = 3;
    let back = read("m", &write_v4(&s).unwrap(), 4).unwrap();
    assert_ne!(back, s);
    assert_eq!(back, as_stored(&s));
}

fn any_text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9/_é-]{0,9}"
}

fn any_log() -> impl Strategy<Value = FieldBinlog> {
    let log =
        (any::<[i64; 4]>(), any::<[u64; 2]>(), any_text()).prop_map(|(n, ts, log_path)| Binlog {
            entries_num: n[0],
            timestamp_from: ts[0],
            timestamp_to: ts[1],
            log_path,
            log_size: n[1],
            log_id: n[2],
            memory_size: n[3],
            ..Default::default()
        });
    (
        any::<i64>(),
        proptest::collection::vec(log, 0..4),
        proptest::collection::vec(any::<i64>(), 0..4),
        any_text(),
    )
        .prop_map(|(field_id, binlogs, child_fields, format)| FieldBinlog {
            field_id,
            binlogs,
            child_fields,
            format,
        })
}

prop_compose! {
    fn any_segment()(
        n in any::<[i64; 4]>(), level in any::<i32>(), flag in any::<bool>(), ts in any::<[u64; 2]>(),
        msg_id in proptest::collection::vec(any::<u8>(), 0..5), channel_name in any_text(),
        binlogs in proptest::collection::vec(any_log(), 0..4), deltalogs in proptest::collection::vec(any_log(), 0..3),
        ids in any::<[i64; 6]>(), small in any::<[i32; 3]>(), names in proptest::collection::vec(any_text(), 0..4),
        keys in proptest::collection::btree_set(any::<i64>(), 0..4),
    ) -> SegmentDescription {
        let index = IndexFilePathInfo {
            segment_id: ids[0], field_id: ids[1], index_id: ids[2], build_id: ids[3],
            index_name: channel_name.clone(), index_file_paths: names.clone(), serialized_size: ts[0],
            index_version: ids[4], num_rows: ids[5], current_index_version: small[0], mem_size: ts[1],
            current_scalar_index_version: small[1], index_store_path_version: small[2], index_params: vec![],
        };
        let text = |f: i64| TextIndexStats { field_id: f, files: names.clone(), build_id: ids[4], ..Default::default() };
        let json = |f: i64| JsonKeyStats { field_id: f, files: names.clone(), version: ids[5], ..Default::default() };
        SegmentDescription {
            segment_id: n[0], partition_id: n[1], num_of_rows: n[2], storage_version: n[3], segment_level: level,
            is_sorted: flag, commit_timestamp: ts[1],
            dml_position: Some(MsgPosition {
                channel_name: channel_name.clone(), msg_id, timestamp: ts[0], ..Default::default()
            }),
            channel_name, binlogs, deltalogs, index_files: vec![index],
            text_index_files: keys.iter().map(|k| (*k, text(*k))).collect(),
            json_key_index_files: keys.iter().map(|k| (*k, json(*k))).collect(),
            ..Default::default()
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(segment in any_segment()) {
        let expected = as_stored(&segment);
        prop_assert_eq!(&read("m", &write_v4(&segment).unwrap(), 4).unwrap(), &expected);
        let sized = Encoder { shape: Shape::V4, blocks: Blocks::Sized(2) }.manifest(&segment);
        prop_assert_eq!(&read("m", &sized, 4).unwrap(), &expected);
    }

    #[test]
    fn damaged_bytes_never_panic(segment in any_segment(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = write_v4(&segment).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for version in 1..=4 {
            let _ = read("m", &bytes, version);
        }
    }
}
