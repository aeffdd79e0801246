//! Real objects: what a Milvus 2.3.5 wrote into its bucket.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::LazyLock;

use falconer::engine::format::binlog::{self, DeltaForm, V1Header};
use falconer::engine::format::paths::{ObjPath, ParsedPath};
use flate2::read::GzDecoder;

use super::lab;

static OBJECTS: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/objects.tar.gz");
    let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let mut all = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let name = entry
                .path()
                .unwrap()
                .to_string_lossy()
                .trim_start_matches("./")
                .to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            all.insert(name, bytes);
        }
    }
    assert_eq!(all.len(), lab::BUCKET.len());
    all
});

#[test]
fn every_log_file_has_the_header_its_path_promises() {
    let (mut inserts, mut deltas, mut slices) = (0, 0, 0);
    for (key, bytes) in OBJECTS.iter() {
        let ParsedPath::Known(path) = ObjPath::parse("files", key) else {
            continue;
        };
        let Ok(header) = V1Header::parse(key, bytes) else {
            assert!(
                matches!(path, ObjPath::StatsLog(..)),
                "{key} is not a storage V1 file"
            );
            assert!(
                serde_json::from_slice::<serde_json::Value>(bytes).is_ok(),
                "{key} is not JSON"
            );
            continue;
        };
        assert!(
            header.original_size().is_some() && !header.is_encrypted(),
            "{key}"
        );
        let events = binlog::v1_events(key, bytes, &header).unwrap();
        assert!(!events.is_empty(), "{key}");
        for event in &events {
            let payload = &bytes[event.payload.clone()];
            assert!(
                payload.starts_with(b"PAR1") && payload.ends_with(b"PAR1"),
                "{key}: not Parquet"
            );
        }
        assert_eq!(
            events.last().unwrap().payload.end,
            bytes.len(),
            "{key}: the last event ends the file"
        );
        let segment = Some(header.segment);
        assert_eq!(path.owner().segment, segment, "{key}");
        match path {
            ObjPath::InsertLog(c, p, _, f, _) => {
                assert_eq!(
                    (header.collection, header.partition, header.field),
                    (c, p, f),
                    "{key}"
                );
                assert!(events.iter().all(|e| e.kind == 1));
                inserts += 1;
            }
            ObjPath::DeltaLog(c, p, ..) => {
                assert_eq!((header.collection, header.partition), (c, p), "{key}");
                assert!(events.iter().all(|e| e.kind == 2));
                assert_eq!(binlog::delta_form(bytes), Some(DeltaForm::V1Json));
                deltas += 1;
            }
            ObjPath::IndexFile(index) => {
                assert_eq!(header.partition, index.partition, "{key}");
                assert!(events.iter().all(|e| e.kind == 7));
                slices += 1;
            }
            other => panic!("{other} is a storage V1 file"),
        }
    }
    assert_eq!((inserts, deltas, slices), (917, 117, 76));
}
