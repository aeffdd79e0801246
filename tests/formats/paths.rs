//! Object paths in both directions, their rewriting, and the storage V1 header.

use std::collections::BTreeMap;

use falconer::engine::error::ErrorKind;
use falconer::engine::format::binlog::{self, DeltaForm, V1Header};
use falconer::engine::format::codec;
use falconer::engine::format::keys::{Key, LogKind};
use falconer::engine::format::paths::{
    FieldIndexFile, IndexFile, Location, ManifestPath, ObjPath, Opaque, ParsedPath, SegmentBase,
    StorageManifest, Target, check, rewrite, rewrite_manifest,
};
use falconer::engine::format::pb;
use proptest::prelude::*;

use super::lab;

#[test]
fn every_lab_object_is_known_or_named() {
    let mut unknown = Vec::new();
    for object in lab::BUCKET.iter() {
        match ObjPath::parse("files", &object.key) {
            ParsedPath::Known(path) => assert_eq!(path.to_key("files").0, object.key),
            ParsedPath::Unknown => unknown.push(object.key.as_str()),
        }
    }
    // The source file of a bulk insert: the operator's, not Milvus's.
    assert_eq!(unknown, ["import/rows.json"]);
}

/// The log-id rule against reality: every log of a live segment is an object of the listing.
#[test]
fn log_records_lead_to_objects_that_exist() {
    let listed: BTreeMap<&str, u64> = lab::BUCKET
        .iter()
        .map(|o| (o.key.as_str(), o.size))
        .collect();
    let (mut found, mut stats_sizes) = (0, 0);
    for (key, entry) in lab::known() {
        let Key::Log(kind, c, p, s, _) = key else {
            continue;
        };
        let logs: pb::data::FieldBinlog = codec::decode(&key, &entry.value).value().unwrap();
        for (path, log) in binlog::objects(kind, (c, p, s), &logs).unwrap() {
            let Some(size) = listed.get(path.to_key("files").0.as_str()) else {
                panic!("{path} is in the metadata but not in the bucket");
            };
            found += 1;
            if kind == LogKind::Stats {
                assert_eq!(*size, u64::try_from(log.log_size).unwrap());
                stats_sizes += 1;
            }
        }
    }
    assert!(found > 1000 && stats_sizes > 100, "{found} {stats_sizes}");
}

#[test]
fn index_file_keys_lead_to_objects_that_exist() {
    let listed: std::collections::BTreeSet<&str> =
        lab::BUCKET.iter().map(|o| o.key.as_str()).collect();
    let mut found = 0;
    for (key, entry) in lab::known() {
        let Key::SegmentIndex(_, partition, segment, build) = key else {
            continue;
        };
        let index: pb::index::SegmentIndex = codec::decode(&key, &entry.value).value().unwrap();
        for file in index.index_file_keys {
            let version = index.index_version;
            let path = ObjPath::IndexFile(IndexFile {
                build,
                version,
                partition,
                segment,
                file,
            });
            assert!(listed.contains(path.to_key("files").0.as_str()), "{path}");
            found += 1;
        }
    }
    assert_eq!(found, 76);
}

fn every_shape() -> Vec<(&'static str, ObjPath)> {
    let (c, p, s) = (1.into(), 2.into(), 3.into());
    let field_index = |file: &str| FieldIndexFile {
        build: 8.into(),
        version: 1,
        collection: c,
        partition: p,
        segment: s,
        field: 101.into(),
        file: file.into(),
    };
    let index = IndexFile {
        build: 8.into(),
        version: 1,
        partition: p,
        segment: s,
        file: "HNSW".into(),
    };
    vec![
        (
            "insert_log/1/2/3/100/9",
            ObjPath::InsertLog(c, p, s, 100.into(), 9.into()),
        ),
        (
            "stats_log/1/2/3/100/1",
            ObjPath::StatsLog(c, p, s, 100.into(), 1.into()),
        ),
        ("delta_log/1/2/3/9", ObjPath::DeltaLog(c, p, s, 9.into())),
        (
            "delta_log/1/-1/3/9",
            ObjPath::DeltaLog(c, (-1).into(), s, 9.into()),
        ),
        (
            "bm25_stats/1/2/3/102/9",
            ObjPath::Bm25Log(c, p, s, 102.into(), 9.into()),
        ),
        (
            "insert_log/1/2/3/_metadata/manifest-4.avro",
            ObjPath::SegmentManifest(c, p, s, 4),
        ),
        (
            "insert_log/1/2/3/_data/0_ab.parquet",
            ObjPath::SegmentData(c, p, s, "0_ab.parquet".into()),
        ),
        (
            "insert_log/1/2/3/_delta/9",
            ObjPath::SegmentDelta(c, p, s, 9.into()),
        ),
        (
            "insert_log/1/2/3/_stats/bloom_filter.100/7",
            ObjPath::SegmentStats(c, p, s, "bloom_filter.100/7".into()),
        ),
        (
            "insert_log/1/2/3/_index/x/y",
            ObjPath::SegmentIndex(c, p, s, "x/y".into()),
        ),
        (
            "insert_log/1/2/lobs/103/_data/f.vx",
            ObjPath::Lob(c, p, 103.into(), "f.vx".into()),
        ),
        (
            "index_files/8/1/2/3/HNSW",
            ObjPath::IndexFile(index.clone()),
        ),
        ("index_v1/1/2/3/8/1/HNSW", ObjPath::IndexFileV1(c, index)),
        (
            "text_log/8/1/1/2/3/101/f0",
            ObjPath::TextLog(field_index("f0")),
        ),
        (
            "json_key_index_log/8/1/1/2/3/101/f0",
            ObjPath::JsonKeyIndex(field_index("f0")),
        ),
        (
            "json_stats/3/8/1/1/2/3/101/shredding_data/0",
            ObjPath::JsonStats(3, field_index("shredding_data/0")),
        ),
        (
            "part_stats/1/2/p_0_1v0/77",
            ObjPath::PartitionStats(c, p, "p_0_1v0".into(), 77),
        ),
        (
            "analyze_stats/5/1/1/2/101/centroids",
            ObjPath::AnalyzeCentroids(5.into(), 1, c, p, 101.into()),
        ),
        (
            "analyze_stats/5/1/1/2/101/3/offset_mapping",
            ObjPath::AnalyzeOffsets(5.into(), 1, c, p, 101.into(), s),
        ),
        (
            "snapshots/1/metadata/6.json",
            ObjPath::SnapshotMetadata(c, 6.into()),
        ),
        (
            "snapshots/1/manifests/6/3.avro",
            ObjPath::SnapshotManifest(c, 6.into(), s),
        ),
        ("wp/a/b", ObjPath::Opaque(Opaque::Woodpecker, "a/b".into())),
        (
            "external_refresh_results/x",
            ObjPath::Opaque(Opaque::ExternalRefresh, "x".into()),
        ),
    ]
}

/// Roots that break a reader which searches for words or trims slashes.
const ROOTS: [&str; 6] = [
    "files",
    "",
    "insert_log",
    "a/insert_log/1/2/3",
    "/var/lib/milvus/data",
    "/",
];

#[test]
fn every_shape_under_every_root() {
    for root in ROOTS {
        for (text, path) in every_shape() {
            let key = path.to_key(root);
            let expected = match root {
                "" => text.to_owned(),
                "/" => format!("/{text}"),
                _ => format!("{root}/{text}"),
            };
            assert_eq!(key.0, expected);
            assert_eq!(
                ObjPath::parse(root, &key.0),
                ParsedPath::Known(path.clone()),
                "{root} {text}"
            );
            assert_eq!(path.to_string(), text);
        }
    }
    assert_eq!(
        ObjPath::parse("files", "__explore_temp__/coord_1/attempt_2"),
        ParsedPath::Known(ObjPath::Opaque(
            Opaque::ExploreTemp,
            "coord_1/attempt_2".into()
        ))
    );
    assert_eq!(
        ObjPath::Opaque(Opaque::ExploreTemp, "coord_1".into())
            .to_key("files")
            .0,
        "__explore_temp__/coord_1"
    );
}

#[test]
fn near_misses_are_unknown() {
    for text in [
        "insert_log/1/2/3/100",
        "insert_log/1/2/3/100/",
        "insert_log/1/2/3/100/9/10",
        "insert_log/1/2/3/100/09",
        "insert_log/1/2/x/100/9",
        "insert_log/1/2/3/_metadata/manifest-1.json",
        "insert_log/1/2/3/_metadata/manifest-01.avro",
        "insert_log/1/2/3/_other/x",
        "insert_log/1/2/3/_data/",
        "insert_log/1/2/3/_data/../x",
        "insert_log/1/2/lobs/103/f.vx",
        "delta_log/1/2/3/100/9",
        "index_files/8/1/2/3",
        "index_files/8/1/2/3/a//b",
        "snapshots/1/metadata/6.avro",
        "snapshots/1/metadata/6.json/x",
        "snapshots/1/manifests/6/3.json",
        "statslog/1/2/3/100/1",
        "insert_logs/1/2/3/100/9",
        "",
        "files",
    ] {
        assert_eq!(ObjPath::parse("", text), ParsedPath::Unknown, "{text}");
    }
    for (root, key) in [
        ("files", "filesX/delta_log/1/2/3/9"),
        ("files", "delta_log/1/2/3/9"),
        ("/a", "a/delta_log/1/2/3/9"),
    ] {
        assert_eq!(
            ObjPath::parse(root, key),
            ParsedPath::Unknown,
            "{root} {key}"
        );
    }
}

#[test]
fn rewriting_follows_the_table_under_every_root() {
    let to = Target {
        collection: 11.into(),
        partition: 12.into(),
        segment: 13.into(),
        builds: [(8.into(), 88.into())].into(),
    };
    let expect: BTreeMap<&str, &str> = [
        ("insert_log/1/2/3/100/9", "insert_log/11/12/13/100/9"),
        ("stats_log/1/2/3/100/1", "stats_log/11/12/13/100/1"),
        ("delta_log/1/2/3/9", "delta_log/11/12/13/9"),
        ("delta_log/1/-1/3/9", "delta_log/11/12/13/9"),
        ("bm25_stats/1/2/3/102/9", "bm25_stats/11/12/13/102/9"),
        (
            "insert_log/1/2/3/_metadata/manifest-4.avro",
            "insert_log/11/12/13/_metadata/manifest-4.avro",
        ),
        (
            "insert_log/1/2/3/_data/0_ab.parquet",
            "insert_log/11/12/13/_data/0_ab.parquet",
        ),
        ("insert_log/1/2/3/_delta/9", "insert_log/11/12/13/_delta/9"),
        (
            "insert_log/1/2/3/_stats/bloom_filter.100/7",
            "insert_log/11/12/13/_stats/bloom_filter.100/7",
        ),
        (
            "insert_log/1/2/3/_index/x/y",
            "insert_log/11/12/13/_index/x/y",
        ),
        (
            "insert_log/1/2/lobs/103/_data/f.vx",
            "insert_log/11/12/lobs/103/_data/f.vx",
        ),
        ("index_files/8/1/2/3/HNSW", "index_files/88/1/12/13/HNSW"),
        ("index_v1/1/2/3/8/1/HNSW", "index_v1/11/12/13/88/1/HNSW"),
        ("text_log/8/1/1/2/3/101/f0", "text_log/88/1/11/12/13/101/f0"),
        (
            "json_key_index_log/8/1/1/2/3/101/f0",
            "json_key_index_log/88/1/11/12/13/101/f0",
        ),
        (
            "json_stats/3/8/1/1/2/3/101/shredding_data/0",
            "json_stats/3/88/1/11/12/13/101/shredding_data/0",
        ),
    ]
    .into();
    let mut refused = 0;
    for (text, path) in every_shape() {
        if let Some(target) = expect.get(text) {
            let moved = rewrite(&path, &to).unwrap();
            for root in ROOTS {
                let key = moved.to_key(root).0;
                assert!(
                    key.ends_with(target) && key.starts_with(root),
                    "{root} {key}"
                );
            }
            assert_eq!(moved.to_string(), *target);
            let owner = moved.owner();
            assert!(
                owner.segment.is_none_or(|s| s.0 == 13)
                    && owner.collection.is_none_or(|c| c.0 == 11)
            );
        } else {
            assert_eq!(
                rewrite(&path, &to).unwrap_err().kind(),
                ErrorKind::Unsupported,
                "{text}"
            );
            refused += 1;
        }
    }
    assert_eq!((expect.len(), refused), (16, 7));
    let lost = rewrite(
        &ObjPath::parse("", "index_files/9/1/2/3/HNSW")
            .known()
            .unwrap(),
        &to,
    )
    .unwrap_err();
    assert!(lost.to_string().contains("build=9"), "{lost}");
}

#[test]
fn manifest_references_move_with_their_segment() {
    let to = Target {
        collection: 11.into(),
        partition: 12.into(),
        segment: 13.into(),
        ..Target::default()
    };
    let moved = |text: &str, root: &str, bucket: &str| {
        rewrite_manifest(&StorageManifest::parse(text).unwrap(), root, bucket, &to)
            .map(|m| m.to_string())
    };
    assert_eq!(
        moved(
            r#"{"ver":3,"base_path":"files/insert_log/1/2/3"}"#,
            "files",
            "a-bucket"
        )
        .unwrap(),
        r#"{"ver":3,"base_path":"files/insert_log/11/12/13"}"#
    );
    // 2.6 wrote the bucket in front.
    assert_eq!(
        moved(
            r#"{"ver":3,"base_path":"a-bucket/files/insert_log/1/2/3"}"#,
            "files",
            "a-bucket"
        )
        .unwrap(),
        r#"{"ver":3,"base_path":"files/insert_log/11/12/13"}"#
    );
    assert_eq!(
        moved(
            r#"{"ver":1,"base_path":"/data/insert_log/1/2/3","more":{"a":1}}"#,
            "/data",
            ""
        )
        .unwrap(),
        r#"{"ver":1,"base_path":"/data/insert_log/11/12/13","more":{"a":1}}"#
    );
    assert_eq!(
        moved("files/insert_log/1/2/3/0/manifest", "files", "b").unwrap(),
        "files/insert_log/11/12/13/0/manifest"
    );
    assert!(moved("other/insert_log/1/2/3/0/manifest", "files", "b").is_err());
    assert!(
        moved(
            r#"{"ver":3,"base_path":"files/insert_log/1/2"}"#,
            "files",
            "b"
        )
        .is_err()
    );
    assert!(StorageManifest::parse(r#"{"ver":"x"}"#).is_err());

    let packed = ManifestPath::new(2, "a<b>&c");
    assert_eq!(
        packed.to_string(),
        r#"{"ver":2,"base_path":"a\u003cb\u003e\u0026c"}"#
    );
    assert_eq!(ManifestPath::parse(&packed.to_string()).unwrap(), packed);
    assert_eq!(
        ManifestPath::new(2, "b").file(),
        "b/_metadata/manifest-2.avro"
    );
    assert_eq!(
        SegmentBase(1.into(), 2.into(), 3.into()).to_path(""),
        "insert_log/1/2/3"
    );
}

#[test]
fn paths_from_files_are_checked_before_use() {
    for good in ["files/a/b", "/var/lib/x", "a", "files/with:colon"] {
        assert_eq!(check(good).unwrap(), Location::Key, "{good}");
    }
    for good in [
        "s3://bucket/key",
        "minio://h:9000/b/k",
        "https://h/b/k",
        "gs://b/k",
        "az://c/k",
        "azure://a.blob.x/c/k",
    ] {
        assert!(matches!(check(good).unwrap(), Location::Uri(_)), "{good}");
    }
    for bad in [
        "",
        "a/../b",
        "./a",
        "a/.",
        "a//b",
        "a/",
        "ftp://h/k",
        "s3://u:p@h/k",
        "s3://u@h/k",
        "s3:///k",
        "https://h/k?x=1",
        "https://h/k#f",
        "file:///etc",
        "https://h/a/../k",
        "://x",
    ] {
        let error = check(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{bad}");
        assert!(!error.to_string().contains("u:p"), "{error}");
    }
}

/// A V1 file with one event, as the stream writer makes it.
fn v1_file(extras: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = binlog::V1_MAGIC.to_vec();
    let length = 81 + i32::try_from(extras.len()).unwrap();
    out.extend(77u64.to_le_bytes());
    out.push(0);
    out.extend(length.to_le_bytes());
    out.extend((4 + length).to_le_bytes());
    for id in [1i64, 2, 3, 100] {
        out.extend(id.to_le_bytes());
    }
    out.extend(5u64.to_le_bytes());
    out.extend(6u64.to_le_bytes());
    out.extend(5i32.to_le_bytes());
    out.extend([52, 16, 16, 16, 16, 16, 16, 16]);
    out.extend(i32::try_from(extras.len()).unwrap().to_le_bytes());
    out.extend(extras.as_bytes());
    out.extend(78u64.to_le_bytes());
    out.push(1);
    out.extend((33 + i32::try_from(payload.len()).unwrap()).to_le_bytes());
    out.extend((-1i32).to_le_bytes());
    out.extend([1; 16]);
    out.extend(payload);
    out
}

#[test]
fn a_v1_header_is_read_and_its_errors_name_the_offset() {
    let file = v1_file(r#"{"original_size":"123","nullable":false}"#, b"PAR1data");
    let header = V1Header::parse("f", &file).unwrap();
    assert_eq!(
        (
            header.collection.0,
            header.partition.0,
            header.segment.0,
            header.field.0
        ),
        (1, 2, 3, 100)
    );
    assert_eq!(
        (
            header.written.0,
            header.range.0.0,
            header.range.1.0,
            header.data_type
        ),
        (77, 5, 6, 5)
    );
    assert_eq!(header.original_size(), Some(123));
    let events = binlog::v1_events("f", &file, &header).unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].kind, &file[events[0].payload.clone()]),
        (1, &b"PAR1data"[..])
    );

    for cut in 0..header.events_at {
        assert!(V1Header::parse("f", &file[..cut]).is_err(), "cut at {cut}");
    }
    let short = &file[..file.len() - 1];
    let error = binlog::v1_events("f", short, &header).unwrap_err();
    assert!(
        error.to_string().contains("file=f") && error.context("offset").is_some(),
        "{error}"
    );
    let mut wrong = file.clone();
    wrong[13] ^= 1;
    assert_eq!(
        V1Header::parse("f", &wrong).unwrap_err().context("offset"),
        Some("13")
    );
    wrong = file.clone();
    wrong[0] = 0;
    assert_eq!(
        V1Header::parse("f", &wrong).unwrap_err().context("offset"),
        Some("0")
    );

    assert_eq!(binlog::delta_form(&file), Some(DeltaForm::V1Json));
    assert_eq!(
        binlog::delta_form(&v1_file(r#"{"version":"MULTI_FIELD"}"#, b"")),
        Some(DeltaForm::V1MultiField)
    );
    assert_eq!(binlog::delta_form(b"PAR1..."), Some(DeltaForm::Parquet));
    assert_eq!(binlog::delta_form(b"???"), None);
    let secret = v1_file(r#"{"edek":"x"}"#, b"");
    let header = V1Header::parse("f", &secret).unwrap();
    assert!(header.is_encrypted() && binlog::v1_events("f", &secret, &header).is_err());
}

#[test]
fn old_records_with_whole_paths_give_the_same_object() {
    let of = (1.into(), 2.into(), 3.into());
    let record = |log: pb::data::Binlog| pb::data::FieldBinlog {
        field_id: 100,
        binlogs: vec![log],
        ..Default::default()
    };
    let new = record(pb::data::Binlog {
        log_id: 9,
        ..Default::default()
    });
    let old = record(pb::data::Binlog {
        log_path: "root/insert_log/1/2/3/100/9".into(),
        ..Default::default()
    });
    let path = |r: &pb::data::FieldBinlog| {
        binlog::objects(LogKind::Insert, of, r).map(|v| v[0].0.to_string())
    };
    assert_eq!(path(&new).unwrap(), "insert_log/1/2/3/100/9");
    assert_eq!(path(&old).unwrap(), path(&new).unwrap());
    assert!(
        path(&record(pb::data::Binlog::default()))
            .unwrap_err()
            .to_string()
            .contains("segment=3")
    );
    assert!(
        path(&record(pb::data::Binlog {
            log_path: "a/b".into(),
            ..Default::default()
        }))
        .is_err()
    );
}

proptest! {
    #[test]
    fn any_path_survives_the_round_trip(
        ids in proptest::array::uniform6(any::<i64>()), root in "(/?[a-z_]{1,8}(/[a-z0-9_]{1,4}){0,2})?",
        file in "[a-zA-Z0-9_.-]{0,5}[a-z](/[a-z0-9]{1,4})?", turn in 0usize..12
    ) {
        let [a, b, c, d, e, f] = ids;
        let index = IndexFile { build: a.into(), version: b, partition: c.into(), segment: d.into(), file: file.clone() };
        let field = FieldIndexFile {
            build: a.into(), version: b, collection: c.into(), partition: d.into(), segment: e.into(), field: f.into(),
            file: file.clone(),
        };
        let (ca, pb, sc) = (a.into(), b.into(), c.into());
        let path = match turn {
            0 => ObjPath::InsertLog(ca, pb, sc, d.into(), e.into()),
            1 => ObjPath::StatsLog(ca, pb, sc, d.into(), e.into()),
            2 => ObjPath::DeltaLog(ca, pb, sc, d.into()),
            3 => ObjPath::Bm25Log(ca, pb, sc, d.into(), e.into()),
            4 => ObjPath::SegmentManifest(ca, pb, sc, d),
            5 => ObjPath::SegmentData(ca, pb, sc, file),
            6 => ObjPath::Lob(ca, pb, c.into(), file),
            7 => ObjPath::IndexFile(index),
            8 => ObjPath::IndexFileV1(e.into(), index),
            9 => ObjPath::TextLog(field),
            10 => ObjPath::JsonStats(f, field),
            _ => ObjPath::SnapshotManifest(ca, b.into(), sc),
        };
        let key = path.to_key(&root);
        prop_assert_eq!(ObjPath::parse(&root, &key.0), ParsedPath::Known(path));
    }

    #[test]
    fn a_parsed_path_is_written_back_as_it_was(tail in "[a-z0-9/._-]{0,40}") {
        for head in ["insert_log/1/2/", "index_files/1/", "json_stats/1/2/", "snapshots/", "analyze_stats/1/1/", ""] {
            let text = format!("{head}{tail}");
            if let ParsedPath::Known(path) = ObjPath::parse("", &text) {
                prop_assert_eq!(path.to_key("").0, text);
            }
        }
    }
}
