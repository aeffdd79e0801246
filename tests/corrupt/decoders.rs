//! The readers, and what must hold when one of them takes an input.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use falconer::config::{Config, Flags, Surroundings};
use falconer::engine::dump;
use falconer::engine::format::binlog::{V1Header, delta_form, v1_events};
use falconer::engine::format::decode::{Explained, explain};
use falconer::engine::format::keys::{Key, Roots};
use falconer::engine::format::manifest::{self, Shape};
use falconer::engine::format::paths::{
    ObjPath, SegmentBase, StorageManifest, Target, check, rewrite, rewrite_manifest,
};
use falconer::engine::format::pb::data::SegmentDescription;
use falconer::engine::format::vchannel::ChannelName;
use falconer::engine::format::wire::{Patch, records};
use falconer::engine::format::{session::Session, snapshot};
use falconer::engine::ids::{
    BuildId, CollectionId, MetaKey, MetaRev, ObjectKey, PartitionId, SegmentId, UnixMs,
};
use falconer::engine::jobs::copy::Done;
use falconer::engine::jobs::restore_v3;
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::broadcast::BroadcastsView;
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::jobs::JobsView;
use falconer::engine::model::overview::overview;
use falconer::engine::model::references::Index;
use falconer::engine::model::resource::{self, Kind, Scope, View};
use falconer::engine::plan::journal::{Audit, JobRecord, Mark, Owner, PreImage, from_json};

use super::mutate::{damaged, reshaped};
use super::{Answer, Decoder, Meter, generate, reason, refused, rows, seeds};

/// Every reader.
pub const ALL: &[Decoder] = &[
    Decoder {
        name: "manifest",
        what: "segment manifests of a snapshot, all five shapes",
        seeds: seeds::manifests,
        generate: |chance, _| {
            let shapes = [
                Shape::V1Early,
                Shape::V1Late,
                Shape::V2,
                Shape::V3,
                Shape::V4,
            ];
            let place = chance.below(5);
            let mut out = vec![[1, 1, 2, 3, 4][place]];
            out.extend(generate::manifest(chance, shapes[place]));
            out
        },
        run: manifest,
        memory: (400, 16 * 1024),
    },
    Decoder {
        name: "metadata",
        what: "a snapshot's metadata JSON, and its join with manifests",
        seeds: seeds::metadata,
        generate: reshaped,
        run: metadata,
        memory: (400, 64 * 1024),
    },
    Decoder {
        name: "value",
        what: "etcd values of every family: taken apart, and as catalog rows",
        seeds: seeds::values,
        generate: |chance, seeds| {
            use falconer::engine::format::codec::Codec;
            let place = chance.below(seeds::keys().len());
            match seeds::keys()[place].1.codec() {
                Codec::Proto(name) => {
                    let mut out = vec![place as u8];
                    out.extend(generate::message(chance, name));
                    out
                }
                Codec::ZstdProto(name) => {
                    let mut out = vec![place as u8];
                    let body = generate::message(chance, name);
                    out.extend(seeds::zstd(&body));
                    out
                }
                _ => {
                    let mut out = vec![place as u8];
                    let seed = chance.pick(seeds)[1..].to_vec();
                    out.extend(reshaped(chance, &[seed]));
                    out
                }
            }
        },
        run: value,
        // A frame may ask for a window of 32 MiB before its first byte.
        memory: (2_000, 40 << 20),
    },
    Decoder {
        name: "wire",
        what: "protobuf records that are rewritten without being known",
        seeds: seeds::messages,
        generate: |chance, _| {
            let names = [
                "milvus.proto.data.SegmentInfo",
                "milvus.proto.data.SnapshotInfo",
                "milvus.proto.etcd.CollectionInfo",
            ];
            let name = *chance.pick(&names);
            generate::message(chance, name)
        },
        run: wire,
        memory: (400, 16 * 1024),
    },
    Decoder {
        name: "binlog",
        what: "headers and events of storage V1 files",
        seeds: seeds::binlogs,
        generate: damaged,
        run: binlog,
        memory: (200, 16 * 1024),
    },
    Decoder {
        name: "rows",
        what: "insert logs, V1 and V2, as rows of five schemas",
        seeds: rows::inserts,
        generate: damaged,
        run: rows::insert,
        memory: (2_000, 4 << 20),
    },
    Decoder {
        name: "delta",
        what: "delta logs of every form",
        seeds: rows::deltas,
        generate: damaged,
        run: rows::delta,
        memory: (2_000, 2 << 20),
    },
    Decoder {
        name: "key-stats",
        what: "primary-key statistics, JSON and binary",
        seeds: rows::key_stats,
        generate: reshaped,
        run: rows::stats,
        memory: (400, 64 * 1024),
    },
    Decoder {
        name: "parquet",
        what: "Parquet of other writers, as rows to insert",
        seeds: rows::foreign,
        generate: damaged,
        run: rows::parquet,
        memory: (4_000, 8 << 20),
    },
    Decoder {
        name: "json-rows",
        what: "JSON lines, as rows to insert",
        seeds: rows::lines,
        generate: reshaped,
        run: rows::json,
        memory: (400, 256 * 1024),
    },
    Decoder {
        name: "storage-manifest",
        what: "a storage V3 segment's own manifest",
        seeds: seeds::storage_manifests,
        generate: generate::container,
        run: storage_manifest,
        memory: (800, 64 * 1024),
    },
    Decoder {
        name: "key",
        what: "etcd keys, under five roots",
        seeds: seeds::key_texts,
        generate: |chance, _| {
            generate::joined(
                chance,
                &[
                    "by-dev",
                    "meta",
                    "kv",
                    "gid",
                    "root-coord",
                    "datacoord-meta",
                    "s",
                    "binlog",
                    "snapshots",
                    "snapshot",
                    "fields",
                    "database",
                    "collection-info",
                    "credential",
                    "session",
                    "datacoord-4",
                    "channel-cp",
                    "dml_0_1v0",
                    "streamingnode-meta",
                    "wal",
                    "vchannel",
                    "schema",
                    "segment-index",
                    "_ts9",
                    "compaction-task",
                ],
                "/",
            )
        },
        run: key,
        memory: (16, 1024),
    },
    Decoder {
        name: "path",
        what: "object keys and the paths that snapshot files name",
        seeds: seeds::paths,
        generate: |chance, _| {
            generate::joined(
                chance,
                &[
                    "files",
                    "insert_log",
                    "stats_log",
                    "delta_log",
                    "index_files",
                    "index_v1",
                    "text_log",
                    "json_stats",
                    "json_key_index_log",
                    "part_stats",
                    "analyze_stats",
                    "centroids",
                    "snapshots",
                    "manifests",
                    "metadata",
                    "lobs",
                    "_data",
                    "_metadata",
                    "manifest-4.avro",
                    "3.avro",
                    "9.json",
                    "s3:",
                    "",
                    "..",
                    "user@host",
                ],
                "/",
            )
        },
        run: path,
        memory: (64, 8 * 1024),
    },
    Decoder {
        name: "manifest-path",
        what: "packed manifest text of a segment",
        seeds: seeds::manifest_paths,
        generate: reshaped,
        run: manifest_path,
        memory: (400, 16 * 1024),
    },
    Decoder {
        name: "address",
        what: "addresses and roots of the command line",
        seeds: seeds::addresses,
        generate: |chance, _| {
            let mut out = vec![chance.below(7) as u8];
            out.extend(generate::joined(
                chance,
                &[
                    "s3",
                    "az",
                    "gs",
                    "file",
                    "http",
                    "https",
                    "://",
                    ":",
                    "@",
                    "[::1]",
                    "127.0.0.1",
                    "2379",
                    "a-bucket",
                    "?",
                    "#",
                    "%zz",
                    " ",
                ],
                "/",
            ));
            out
        },
        run: address,
        memory: (400, 256 * 1024),
    },
    Decoder {
        name: "yaml",
        what: "milvus.yaml",
        seeds: seeds::yamls,
        generate: |chance, _| {
            let mut out = Vec::new();
            for _ in 0..chance.below(20) {
                out.extend(std::iter::repeat_n(b' ', chance.below(4) * 2));
                out.extend(generate::joined(
                    chance,
                    &[
                        "minio", "etcd", "port", "- a", "[", "{", "]", "&a", "*a", "<<", "\"", "|",
                        ">", "!!int", "?", "#", "~",
                    ],
                    ": ",
                ));
                out.push(b'\n');
            }
            out
        },
        run: yaml,
        memory: (800, 256 * 1024),
    },
    Decoder {
        name: "dump",
        what: "dumps of an etcd keyspace, plain and gzip",
        seeds: seeds::dumps,
        generate: |chance, seeds| {
            use std::io::Write as _;
            let plain = if chance.once_in(2) {
                reshaped(chance, &seeds[..1])
            } else {
                damaged(chance, &seeds[..2])
            };
            if chance.once_in(2) {
                return plain;
            }
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&plain).expect("memory takes it");
            packed.finish().expect("memory takes it")
        },
        run: read_dump,
        // gzip makes a thousand bytes of one, and a key with its value is in use as text and as bytes.
        memory: (6_000, 512 * 1024),
    },
    Decoder {
        name: "backup",
        what: "birdwatcher's backups of an etcd keyspace",
        seeds: seeds::backups,
        generate: damaged,
        run: read_dump,
        memory: (6_000, 512 * 1024),
    },
    Decoder {
        name: "journal",
        what: "records of our own journal",
        seeds: seeds::journal,
        generate: |chance, seeds| {
            let place = chance.below(seeds.len());
            let mut out = vec![place as u8];
            out.extend(reshaped(chance, &[seeds[place][1..].to_vec()]));
            out
        },
        run: journal,
        // What was copied out of order is kept as runs, and in memory as numbers: at most sixteen million.
        memory: (400, 80 << 20),
    },
];

fn manifest(input: &[u8], meter: &mut Meter) -> Answer {
    let Some((version, bytes)) = input.split_first() else {
        return Answer::Refused;
    };
    let version = i32::from((*version).cast_signed());
    match meter.run(|| manifest::read("m.avro", bytes, version)) {
        Ok(segment) => {
            // What was read can be written, and reads as the same.
            let written =
                manifest::write_v4(&segment).expect("a segment that was read can be written");
            let again =
                manifest::read("m.avro", &written, manifest::CURRENT).expect("what we wrote reads");
            assert_eq!(again, manifest::as_stored(&segment));
            Answer::Read
        }
        Err(e) => {
            assert_eq!(e.context("file"), Some("m.avro"), "{e}");
            refused(&e)
        }
    }
}

fn metadata(input: &[u8], meter: &mut Meter) -> Answer {
    let file = "files/snapshots/1/metadata/900.json";
    let metadata = match meter.run(|| snapshot::read_metadata(file, input)) {
        Ok(metadata) => metadata,
        Err(e) => {
            assert_eq!(e.context("file"), Some(file), "{e}");
            return refused(&e);
        }
    };
    meter
        .run(|| snapshot::unknown_members(file, input))
        .expect("it was read a moment ago");
    if let Err(e) = meter.run(|| snapshot::segment_ids(file, &metadata)) {
        refused(&e);
    }
    let manifests: Vec<_> = metadata
        .manifest_list
        .iter()
        .enumerate()
        .map(|(i, key)| {
            let name = key.rsplit('/').next().unwrap_or_default();
            let id = name.trim_end_matches(".avro").parse().unwrap_or(i as i64);
            let segment = SegmentDescription {
                segment_id: id,
                ..SegmentDescription::default()
            };
            (key.clone(), segment)
        })
        .collect();
    match meter.run(|| snapshot::join(file, metadata, manifests)) {
        Ok(_) => Answer::Read,
        Err(e) => refused(&e),
    }
}

fn value(input: &[u8], meter: &mut Meter) -> Answer {
    let Some((place, bytes)) = input.split_first() else {
        return Answer::Refused;
    };
    let Some((_, key)) = seeds::keys().get(usize::from(*place)) else {
        return Answer::Refused;
    };
    let explained = meter.run(|| explain(key, bytes));
    let answer = match &explained {
        Explained::Undecodable { reason: why } => {
            reason(why);
            Answer::Refused
        }
        _ => Answer::Read,
    };
    // For the screen and for `-o json`.
    serde_json::to_string(&explained).expect("what was taken apart can be shown");
    let roots = Roots::default();
    let kv = KeyValue {
        key: key.to_key(&roots),
        value: bytes.to_vec().into(),
        create_rev: MetaRev(1),
        mod_rev: MetaRev(1),
        version: 1,
        lease: 0,
    };
    let mut catalog = Catalog::default();
    let events = [Event::Put(kv)];
    meter.run(|| catalog.apply(&roots, &events));
    for row in catalog.undecodable.values() {
        reason(&row.reason);
    }
    shown(&catalog);
    answer
}

/// Everything that a screen or a subcommand asks of a catalog.
fn shown(catalog: &Catalog) {
    let jobs = JobsView::default();
    let view = View {
        catalog,
        jobs: &jobs,
        broadcasts: &BroadcastsView::default(),
        references: &Index::default(),
        now: UnixMs(1_796_000_000_000),
    };
    for kind in Kind::ALL {
        for id in resource::ids(&view, *kind, &Scope::default()) {
            for column in 0..kind.spec().columns.len() {
                let _ = resource::cell(&view, &id, column);
            }
            let _ = resource::detail(&view, &id);
            let _ = resource::json(&view, &id);
            let _ = resource::related(&view, &id);
        }
    }
    let _ = overview(&view);
}

fn wire(input: &[u8], meter: &mut Meter) -> Answer {
    let parsed = meter.run(|| Patch::parse(input));
    let mut patch = match parsed {
        Ok(patch) => patch,
        Err(bad) => {
            assert!(bad.offset <= input.len(), "{bad}");
            assert!(records(input).any(|r| r.is_err()));
            reason(&bad.to_string());
            return Answer::Refused;
        }
    };
    assert_eq!(patch.finish(), input, "nothing was changed");
    let (others, edited) = meter.run(|| {
        let others: Vec<Vec<u8>> = records(input)
            .flatten()
            .filter(|r| r.tag != 3 && r.tag != 5)
            .map(|r| r.whole.to_vec())
            .collect();
        patch.set_integer(3, 7);
        patch.set_packed(5, &[1, u64::MAX]);
        (others, patch.finish())
    });
    let again = Patch::parse(&edited).expect("what was edited parses");
    assert_eq!(again.integer(3), Some(7));
    assert_eq!(again.packed(5), Some(vec![1, u64::MAX]));
    let left: Vec<Vec<u8>> = records(&edited)
        .flatten()
        .filter(|r| r.tag != 3 && r.tag != 5)
        .map(|r| r.whole.to_vec())
        .collect();
    assert_eq!(left, others, "every other record keeps its bytes");
    let mut nested = Patch::parse(input).expect("as before");
    meter.run(|| {
        let _ = nested.nested(2, |inner| {
            inner.set_bytes(1, b"x");
            Ok(())
        });
        let _ = nested.each(4, |inner| {
            inner.clear(1);
            Ok(())
        });
        nested.set_map_integer(12, 1, 2);
        nested.remove_map_integer(12, 1);
    });
    Patch::parse(&nested.finish()).expect("what was edited parses");
    Answer::Read
}

fn binlog(input: &[u8], meter: &mut Meter) -> Answer {
    meter.run(|| delta_form(input));
    let header = match meter.run(|| V1Header::parse("log", input)) {
        Ok(header) => header,
        Err(e) => {
            assert!(e.context("offset").is_some(), "{e}");
            return refused(&e);
        }
    };
    let _ = (header.original_size(), header.is_encrypted());
    match meter.run(|| v1_events("log", input, &header)) {
        Ok(events) => {
            assert!(
                events
                    .iter()
                    .all(|e| input.get(e.payload.clone()).is_some())
            );
            Answer::Read
        }
        Err(e) => refused(&e),
    }
}

fn storage_manifest(input: &[u8], meter: &mut Meter) -> Answer {
    let file = ObjectKey("files/insert_log/1/2/3/_metadata/manifest-4.avro".into());
    match meter.run(|| restore_v3::declared(&file, "files/insert_log/1/2/3", input)) {
        Ok(declared) => {
            for key in declared.files.iter().chain(&declared.folders) {
                assert!(key.0.starts_with("files/insert_log/1/2/"), "{key}");
                check(&key.0).expect("a declared file is a usable key");
            }
            Answer::Read
        }
        Err(e) => {
            assert!(e.to_string().contains(&file.0), "{e}");
            refused(&e)
        }
    }
}

fn key(input: &[u8], meter: &mut Meter) -> Answer {
    static ROOTS: OnceLock<Vec<Roots>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        [
            ("by-dev", "meta", "kv"),
            ("", "meta", "kv"),
            ("a/b", "", ""),
            ("", "", ""),
            ("meta", "meta", "meta"),
        ]
        .map(|(root, meta, kv)| Roots {
            root: root.into(),
            meta: meta.into(),
            kv: kv.into(),
        })
        .into()
    });
    let mut answer = Answer::Refused;
    for roots in roots {
        if let Some(key) = meter.run(|| Key::parse(roots, input)).known() {
            assert_eq!(
                key.to_key(roots),
                MetaKey(input.to_vec().into()),
                "{roots:?}"
            );
            answer = Answer::Read;
        }
    }
    answer
}

fn target() -> &'static Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(|| Target {
        collection: CollectionId(11),
        partition: PartitionId(12),
        segment: SegmentId(13),
        builds: [(BuildId(4), BuildId(14))].into(),
    })
}

fn path(input: &[u8], meter: &mut Meter) -> Answer {
    let Ok(text) = std::str::from_utf8(input) else {
        return Answer::Refused;
    };
    let mut answer = Answer::Refused;
    for root in ["files", "", "/var/lib/milvus", "files/insert_log/"] {
        let Some(path) = meter.run(|| ObjPath::parse(root, text)).known() else {
            continue;
        };
        assert_eq!(path.to_key(root).0, text, "root {root:?}");
        match meter.run(|| rewrite(&path, target())) {
            Ok(to) => assert_eq!(ObjPath::parse(root, &to.to_key(root).0).known(), Some(to)),
            Err(e) => drop(refused(&e)),
        }
        answer = Answer::Read;
    }
    match meter.run(|| check(text)) {
        Ok(_) => answer = Answer::Read,
        Err(e) => {
            let said = e.to_string();
            let place = text.split_once("://").map_or("", |(_, rest)| rest);
            if let Some((user, _)) = place.split_once('@')
                && user.len() > 3
                && user.bytes().all(|b| b.is_ascii_alphabetic())
            {
                let shown = said.contains(&format!("://{user}@"));
                assert!(!shown, "a user in an error: {said}");
            }
            refused(&e);
        }
    }
    let _ = meter.run(|| ChannelName::parse(text).pchannel().len());
    answer
}

fn manifest_path(input: &[u8], meter: &mut Meter) -> Answer {
    let Ok(text) = std::str::from_utf8(input) else {
        return Answer::Refused;
    };
    match meter.run(|| StorageManifest::parse(text)) {
        Ok(found) => {
            let shown = found.to_string();
            assert_eq!(
                StorageManifest::parse(&shown).expect("as we write it"),
                found
            );
            for (root, bucket) in [("files", "a-bucket"), ("", ""), ("/var/lib/milvus", "")] {
                if let StorageManifest::Packed(packed) = &found {
                    let _ = meter.run(|| SegmentBase::parse(root, bucket, &packed.base_path));
                }
                if let Err(e) = meter.run(|| rewrite_manifest(&found, root, bucket, target())) {
                    refused(&e);
                }
            }
            Answer::Read
        }
        Err(e) => refused(&e),
    }
}

/// A folder of this thread alone: some readers take files.
fn folder() -> PathBuf {
    thread_local! {
        static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
    }
    FOLDER.with_borrow_mut(|folder| {
        let made = folder.get_or_insert_with(|| {
            let shared = std::path::Path::new("/dev/shm");
            let parent = if shared.is_dir() {
                shared.to_owned()
            } else {
                std::env::temp_dir()
            };
            tempfile::tempdir_in(parent).expect("a folder for temporary files")
        });
        made.path().to_owned()
    })
}

fn surroundings() -> Surroundings {
    let here = folder();
    Surroundings {
        config_file: here.join("none.toml"),
        data_dir: here.join("data"),
        cwd: here,
        ..Surroundings::default()
    }
}

fn address(input: &[u8], meter: &mut Meter) -> Answer {
    let Some((flag, text)) = input.split_first() else {
        return Answer::Refused;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return Answer::Refused;
    };
    let mut flags = Flags {
        bucket: Some("s3://a-bucket/files".into()),
        s3_endpoint: Some("http://127.0.0.1:9000".into()),
        access_key: Some("a".into()),
        ..Flags::default()
    };
    let text = text.to_owned();
    match flag % 7 {
        0 => flags.bucket = Some(text),
        1 => flags.etcd = text.split(',').map(str::to_owned).collect(),
        2 => flags.s3_endpoint = Some(text),
        3 => flags.root = Some(text),
        4 => flags.meta_sub_path = Some(text),
        5 => flags.kv_sub_path = Some(text),
        _ => flags.region = Some(text),
    }
    resolve(&flags, meter)
}

fn resolve(flags: &Flags, meter: &mut Meter) -> Answer {
    let around = surroundings();
    match meter.run(|| Config::resolve(flags, &around)) {
        Ok(_) => Answer::Read,
        Err(e) => refused(&e),
    }
}

fn yaml(input: &[u8], meter: &mut Meter) -> Answer {
    let file = folder().join("m.yaml");
    fs::write(&file, input).expect("a file can be written");
    let flags = Flags {
        milvus_yaml: Some(file),
        ..Flags::default()
    };
    resolve(&flags, meter)
}

fn read_dump(input: &[u8], meter: &mut Meter) -> Answer {
    match meter.run(|| dump::parse(input, input.len() as u64)) {
        Ok(kvs) => {
            assert!(!kvs.is_empty());
            Answer::Read
        }
        Err(e) => refused(&e),
    }
}

fn journal(input: &[u8], meter: &mut Meter) -> Answer {
    let Some((kind, bytes)) = input.split_first() else {
        return Answer::Refused;
    };
    let at = MetaKey::from("falconer/by-dev/job/7");
    let read = meter.run(|| match kind % 7 {
        0 => from_json::<JobRecord>(&at, bytes).map(|record| drop(record.info())),
        1 => from_json::<Mark>(&at, bytes).map(drop),
        2 => from_json::<Audit>(&at, bytes).map(drop),
        3 => from_json::<Owner>(&at, bytes).map(drop),
        4 => PreImage::decode(bytes).map(drop),
        5 => from_json::<Done>(&at, bytes).map(drop),
        _ => {
            let _ = Session::parse(bytes).map_err(|why| reason(&why));
            from_json::<u64>(&at, bytes).map(drop)
        }
    });
    if kind % 7 == 4
        && let Ok(pre) = PreImage::decode(bytes)
    {
        let again = pre.encode().expect("what was read can be written");
        assert_eq!(PreImage::decode(&again).expect("what we wrote reads"), pre);
    }
    match read {
        Ok(()) => Answer::Read,
        Err(e) => refused(&e),
    }
}

/// The reader of this name.
pub fn named(name: &str) -> Option<&'static Decoder> {
    ALL.iter().find(|d| d.name == name)
}
