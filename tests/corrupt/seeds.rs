//! Sound inputs, from which damage starts: the captured cluster's own values, and made ones for what it lacks.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use falconer::engine::format::json;
use falconer::engine::format::keys::{Family, Key, Roots};
use falconer::engine::format::manifest::Shape;
use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, Value};

use super::avro::{Blocks, Encoder};
use super::{lab, storage};

/// A key of every family that can have a value, with its codec's message. `None` where a family has no key of its own.
pub fn keys() -> &'static [(Family, Key)] {
    static KEYS: OnceLock<Vec<(Family, Key)>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let roots = Roots::default();
        let tails = [
            "",
            "/1",
            "/1/2",
            "/1/2/3",
            "/1/2/3/4",
            "/a",
            "/a/b",
            "/a/b/c",
            "/1/a",
            "/1/dml_0_1v0",
            "/datacoord",
            "/dml_0_1v0",
            "/1/2/dml_0_1v0",
            "/1/2/dml_0_1v0/4",
            "/MixCompaction/1/2",
            "/minio.bucketName",
            "/dml_0/consume-checkpoint",
            "/dml_0/vchannel/dml_0_1v0",
            "/dml_0/vchannel/dml_0_1v0/schema/7",
            "/dml_0/segment-assign/4",
            "/dml_0/salvage-checkpoint/a",
            "/root-coord/fields/1/100_ts9",
        ];
        let mut found = Vec::new();
        for family in Family::ALL {
            let folder = family.prefix(&roots);
            let folder = String::from_utf8_lossy(folder.bytes()).into_owned();
            let key = tails.iter().find_map(|tail| {
                let text = format!("{}{tail}", folder.trim_end_matches('/'));
                Key::parse(&roots, text.as_bytes())
                    .known()
                    .filter(|key| key.family() == *family)
            });
            found.push((
                *family,
                key.unwrap_or_else(|| panic!("no key of {family:?}")),
            ));
        }
        found
    })
}

/// A value of a family: its place in [`keys`], then its bytes.
pub fn values() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut real: BTreeMap<Family, Vec<Vec<u8>>> = BTreeMap::new();
    for entry in lab::etcd() {
        if let Some(key) = Key::parse(&Roots::default(), &entry.key).known()
            && entry.value.len() < 4_096
        {
            real.entry(key.family()).or_default().push(entry.value);
        }
    }
    for (place, (family, key)) in keys().iter().enumerate() {
        let mut of = real.remove(family).unwrap_or_default();
        // The captured cluster has hundreds of some: the shortest, the longest and one between.
        of.sort_by_key(Vec::len);
        of.dedup();
        let kept = [0, of.len() / 2, of.len().saturating_sub(1)];
        let mut kept: Vec<Vec<u8>> = kept.iter().filter_map(|i| of.get(*i).cloned()).collect();
        kept.dedup();
        kept.extend(made(key));
        out.extend(kept.into_iter().map(|value| tagged(place, &value)));
    }
    out
}

/// The values that are plain protobuf.
pub fn messages() -> Vec<Vec<u8>> {
    use falconer::engine::format::codec::Codec;
    let is_message = |value: &Vec<u8>| {
        let (_, key) = &keys()[usize::from(value[0])];
        matches!(key.codec(), Codec::Proto(_)) && value[1..] != [0xE2, 0x9B, 0xBC]
    };
    let of = values().into_iter().filter(is_message);
    of.map(|value| value[1..].to_vec()).collect()
}

fn tagged(place: usize, value: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::try_from(place).expect("fewer than 256 families")];
    out.extend_from_slice(value);
    out
}

/// A value with every field that its message has.
fn made(key: &Key) -> Option<Vec<u8>> {
    use falconer::engine::format::codec::Codec;
    Some(match key.codec() {
        Codec::Proto(name) => full(name).encode_to_vec(),
        Codec::ZstdProto(name) => zstd(&full(name).encode_to_vec()),
        Codec::Json => br#"{"ServerID":7,"ServerName":"datacoord","Address":"10.0.0.1:13333","Version":"2.6.4","LeaseID":7587862094934103040,"ServerLabels":{"a":"1"}}"#.to_vec(),
        Codec::Text => b"value".to_vec(),
        Codec::Decimal => b"42".to_vec(),
        Codec::BigEndianNanos => 1_796_000_000_000_000_000_u64.to_be_bytes().to_vec(),
        Codec::Empty | Codec::Opaque => return None,
    })
}

/// A zstd frame of raw blocks: enough for a reader, and damage finds its way to every part of it.
pub fn zstd(body: &[u8]) -> Vec<u8> {
    // Magic, a window of 8 MiB as Milvus's encoder asks for, blocks of type 0.
    let mut out = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x68];
    let head = |size: usize, last: bool| ((size as u32) << 3 | u32::from(last)).to_le_bytes();
    let (first, second) = body.split_at(body.len() / 2);
    out.extend_from_slice(&head(first.len(), false)[..3]);
    out.extend_from_slice(first);
    out.extend_from_slice(&head(second.len(), true)[..3]);
    out.extend_from_slice(second);
    out
}

/// A message with every field set, nested ones three deep.
pub fn full(name: &str) -> DynamicMessage {
    filled(
        &json::descriptor(name).expect("a message of the descriptors"),
        0,
    )
}

fn filled(of: &MessageDescriptor, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    for field in of.fields() {
        let nested = matches!(field.kind(), Kind::Message(_));
        if nested && !field.is_map() && depth >= 3 {
            continue;
        }
        let value = if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                continue;
            };
            let key = match entry.map_entry_key_field().kind() {
                Kind::String => MapKey::String("k".into()),
                Kind::Int32 => MapKey::I32(7),
                Kind::Uint64 => MapKey::U64(7),
                _ => MapKey::I64(7),
            };
            let value = entry.map_entry_value_field().kind();
            Value::Map([(key, one(&value, depth))].into_iter().collect())
        } else if field.is_list() {
            Value::List(vec![one(&field.kind(), depth)])
        } else {
            one(&field.kind(), depth)
        };
        message.set_field(&field, value);
    }
    message
}

fn one(kind: &Kind, depth: usize) -> Value {
    match kind {
        Kind::Double => Value::F64(1.5),
        Kind::Float => Value::F32(1.5),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(7),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(470_660_334_431_903_094),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(7),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(470_660_334_431_903_094),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String("files/a".into()),
        Kind::Bytes => Value::Bytes(vec![1, 2, 3].into()),
        Kind::Enum(of) => Value::EnumNumber(of.values().last().map_or(0, |v| v.number())),
        Kind::Message(of) => Value::Message(filled(of, depth + 1)),
    }
}

/// Manifests of all five shapes in both block forms: the format version, then the bytes.
pub fn manifests() -> Vec<Vec<u8>> {
    let shapes = [
        (Shape::V1Early, 1),
        (Shape::V1Late, 1),
        (Shape::V2, 2),
        (Shape::V3, 3),
        (Shape::V4, 4),
    ];
    let mut out = Vec::new();
    for (shape, version) in shapes {
        for (blocks, n) in [
            (Blocks::Plain, 1),
            (Blocks::Sized(2), 3),
            (Blocks::Sized(100), 0),
        ] {
            let encoder = Encoder { shape, blocks };
            let mut bytes = vec![version];
            bytes.extend(encoder.manifest(&segment(n)));
            out.push(bytes);
        }
    }
    out
}

/// A segment with `n` items in every list.
fn segment(n: usize) -> falconer::engine::format::pb::data::SegmentDescription {
    use falconer::engine::format::pb::data::SegmentDescription;
    let mut whole: SegmentDescription =
        json::lower(&full("milvus.proto.data.SegmentDescription")).expect("one message, two forms");
    whole.manifest_path.clear();
    whole
        .index_files
        .iter_mut()
        .for_each(|f| f.segment_id = whole.segment_id);
    let lists = [
        &mut whole.binlogs,
        &mut whole.deltalogs,
        &mut whole.statslogs,
        &mut whole.bm25_statslogs,
    ];
    for list in lists {
        *list = list.iter().cycle().take(n).cloned().collect();
    }
    whole.index_files = whole.index_files.iter().cycle().take(n).cloned().collect();
    if n == 0 {
        whole.text_index_files.clear();
        whole.json_key_index_files.clear();
    }
    whole
}

/// The metadata JSON of snapshots: the newest form with every member, a plain one, one of the first version.
pub fn metadata() -> Vec<Vec<u8>> {
    let whole = json::print(&full("milvus.proto.data.SnapshotMetadata")).expect("a message prints");
    let plain = r#"{"format_version":4,"snapshot_info":{"name":"s","id":"900","collection_id":"1","partition_ids":["2"],"create_ts":"461099999990000000","state":"SnapshotStatePending","pending_start_time":"1787300000000","channel_seek_positions":[{"channel_name":"dml_0_1v0","msgID":"AQID","timestamp":"461099999990000000","WAL_name":"WoodPecker"}]},"collection":{"schema":{"name":"books","fields":[{"fieldID":"100","name":"id","is_primary_key":true,"data_type":"Int64"}],"properties":[{"key":"collection.ttl.seconds","value":"3600"}]},"num_partitions":"1","num_shards":"1","consistency_level":"Bounded","partitions":{"_default":"2"},"virtual_channel_names":["dml_0_1v0"]},"manifest_list":["files/snapshots/1/manifests/900/100.avro"],"storagev2_manifest_list":[{"segment_id":"100","manifest":"{\"ver\":3,\"base_path\":\"files/insert_log/1/2/100\"}"}],"segment_ids":["100"],"build_ids":["301"],"layout":"SnapshotLayoutReferenced"}"#;
    let first = r#"{"format_version":1,"snapshot_info":{"id":"900","collection_id":"1"},"collection":{},"manifest_list":["files/snapshots/1/manifests/900/100.avro"]}"#;
    vec![whole.into_bytes(), plain.into(), first.into()]
}

/// Storage manifests: a file of every kind; a schema that refers to itself.
pub fn storage_manifests() -> Vec<Vec<u8>> {
    vec![storage::manifest(), storage::recursive()]
}

/// Headers of storage V1 files, with an event behind each: real ones cut short, and a made one.
pub fn binlogs() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    for (key, bytes) in lab::objects() {
        let kind = key.split('/').nth(1).unwrap_or_default();
        if out.len() < 6 && bytes.len() < 3_000 && !kind.contains("stats") {
            out.push(bytes.to_vec());
        }
    }
    assert!(out.len() > 2, "the captured cluster has small log files");
    out
}

/// Keys of the captured cluster, a few of each family, and made ones for the families that it lacks.
pub fn key_texts() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut seen: BTreeMap<Family, usize> = BTreeMap::new();
    let roots = Roots::default();
    for entry in lab::etcd() {
        if let Some(key) = Key::parse(&roots, &entry.key).known() {
            let n = seen.entry(key.family()).or_default();
            *n += 1;
            if *n <= 2 {
                out.push(entry.key);
            }
        }
    }
    out.extend(keys().iter().map(|(_, key)| key.to_key(&roots).0.to_vec()));
    out
}

/// Object keys: real ones of every folder, and one of each shape that the captured bucket lacks.
pub fn paths() -> Vec<Vec<u8>> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut out: Vec<Vec<u8>> = Vec::new();
    for (key, _) in lab::objects() {
        let n = seen
            .entry(key.split('/').nth(1).unwrap_or_default().to_owned())
            .or_default();
        *n += 1;
        if *n <= 3 {
            out.push(key.clone().into_bytes());
        }
    }
    let made = [
        "files/insert_log/1/2/3/_metadata/manifest-4.avro",
        "files/insert_log/1/2/3/_data/0_aa.parquet",
        "files/insert_log/1/2/3/_delta/7",
        "files/insert_log/1/2/3/_stats/bloom_filter.100/1",
        "files/insert_log/1/2/3/_index/301",
        "files/insert_log/1/2/lobs/100/_data/f.vx",
        "files/index_v1/1/2/3/4/5/HNSW",
        "files/bm25_stats/1/2/3/101/7",
        "files/text_log/4/5/1/2/3/101/f",
        "files/json_key_index_log/4/5/1/2/3/101/f",
        "files/json_stats/2/4/5/1/2/3/101/shared_key_index/f",
        "files/part_stats/1/2/dml_0_1v0/7",
        "files/analyze_stats/9/1/1/2/101/centroids",
        "files/analyze_stats/9/1/1/2/101/3/offset_mapping",
        "files/snapshots/1/metadata/9.json",
        "files/snapshots/1/manifests/9/3.avro",
        "files/wp/x/y",
        "__explore_temp__/a",
        "s3://bucket/files/insert_log/1/2/3/4/5",
        "https://user:pass@host:9000/b/k?q=1#f",
        "minio://10.0.0.1:9000/a-bucket/files/x",
    ];
    out.extend(made.iter().map(|p| p.as_bytes().to_vec()));
    out
}

/// What stands in `manifest_path`.
pub fn manifest_paths() -> Vec<Vec<u8>> {
    [
        r#"{"ver":3,"base_path":"files/insert_log/1/2/3"}"#,
        r#"{"ver":3,"base_path":"a-bucket/files/insert_log/1/2/3","extra":{"a":[1]}}"#,
        r#"{"ver":-1,"base_path":"/var/lib/milvus/insert_log/1/2/3"}"#,
        "files/insert_log/1/2/3/_metadata/manifest-4.avro",
    ]
    .iter()
    .map(|p| p.as_bytes().to_vec())
    .collect()
}

/// Addresses as they are given on the command line: which flag, then its text.
pub fn addresses() -> Vec<Vec<u8>> {
    [
        (0, "s3://a-bucket/files"),
        (0, "az://container/root"),
        (0, "gs://bucket"),
        (0, "file:///var/lib/milvus"),
        (0, "a-bucket"),
        (1, "http://127.0.0.1:2379"),
        (1, "https://user:secret@[::1]:2379,10.0.0.1:2379"),
        (2, "http://127.0.0.1:9000"),
        (2, "minio:9000"),
        (3, "by-dev"),
        (4, "meta"),
        (5, "kv"),
        (6, "us-east-1"),
    ]
    .iter()
    .map(|(flag, text)| {
        let mut out = vec![*flag];
        out.extend_from_slice(text.as_bytes());
        out
    })
    .collect()
}

/// Milvus's configuration file.
pub fn yamls() -> Vec<Vec<u8>> {
    vec![
        b"etcd:\n  endpoints:\n    - localhost:2379\n  rootPath: by-dev\n  ssl:\n    enabled: false\nminio:\n  address: localhost\n  port: 9000\n  bucketName: a-bucket\n  rootPath: files\n  accessKeyID: minioadmin\n  useSSL: false\ncommon:\n  storageType: remote\n".to_vec(),
        b"minio: {address: \"h\", port: 0123, bucketName: 'b', rootPath: ~}\nlocalStorage:\n  path: /var/lib/milvus\n&a b: *a\n---\nx: |\n  y\n".to_vec(),
    ]
}

/// Dumps, plain and packed.
pub fn dumps() -> Vec<Vec<u8>> {
    let mut plain = Vec::new();
    for entry in lab::etcd().iter().step_by(300) {
        let line = serde_json::json!({
            "key_b64": BASE64_STANDARD.encode(&entry.key),
            "value_b64": BASE64_STANDARD.encode(&entry.value),
            "mod_revision": entry.mod_revision,
            "create_revision": entry.create_revision,
            "version": entry.version,
            "lease": entry.lease,
        });
        plain.extend_from_slice(line.to_string().as_bytes());
        plain.push(b'\n');
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&plain).expect("memory takes it");
    let short = br#"{"key_b64":"YQ==","value_b64":"","mod_revision":7}"#.to_vec();
    let packed = packed.finish().expect("memory takes it");
    vec![short, plain, packed]
}

/// birdwatcher's backups, of both versions.
pub fn backups() -> Vec<Vec<u8>> {
    fn record(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend(bytes);
    }
    let entries: Vec<_> = lab::etcd().into_iter().step_by(300).collect();
    let pairs: Vec<Vec<u8>> = entries
        .iter()
        .map(|entry| {
            falconer::engine::format::pb::common::KeyDataPair {
                key: String::from_utf8_lossy(&entry.key).into_owned(),
                data: entry.value.clone(),
            }
            .encode_to_vec()
        })
        .collect();
    let count = u8::try_from(pairs.len()).expect("few");
    let (mut first, mut second) = (Vec::new(), Vec::new());
    record(&mut first, &[0x08, 1, 0x20, count]);
    record(&mut second, &[0x08, 2]);
    for part in [&[0x08, 4][..], b"{}", b"x=1", b""] {
        record(&mut second, part);
    }
    let extra = format!(r#"{{"cnt":"{count}"}}"#);
    let mut header = vec![0x08, 1, 0x1a, extra.len() as u8];
    header.extend(extra.as_bytes());
    record(&mut second, &header);
    for pair in &pairs {
        record(&mut first, pair);
        record(&mut second, pair);
    }
    record(&mut second, b"");
    vec![first, second]
}

/// Records of our own journal: which kind, then its bytes.
pub fn journal() -> Vec<Vec<u8>> {
    use falconer::engine::ids::{JobId, MetaRev, UnixMs};
    use falconer::engine::plan::journal::{Audit, AuditKey, Before, Mark, Owner, PreImage, json};
    let job = br#"{"id":"470660334431990100","kind":"restore","intent":{"intent":"restore","snapshot":"470660334431990001","database":"default","collection":"copy"},"plan":"00ff","actor":"u@h pid 1","title":"restore a","state":"running","step":"copy","steps":[2,9],"progress":{"segments":[1,2],"files":[3,4],"bytes":[5,6],"rate":1.5,"eta_ms":null},"collection":null,"machine":{"step":"Copy","done":[1,2]},"locks":["falconer/by-dev/lock/gc"],"started":1790000000000,"moved":1790000000001,"ended":null,"error":null,"cancelled":false,"notes":["a"],"recovered":null,"rate":null}"#;
    let mark = Mark {
        from: 0,
        to: 9,
        last: true,
        digest: "00ff".into(),
    };
    let audit = Audit {
        at: UnixMs(1_790_000_000_000),
        actor: "u@h".into(),
        job: JobId(7),
        plan: "00ff".into(),
        change: "publish".into(),
        keys: vec![AuditKey {
            key: "by-dev/meta/x".into(),
            old: Some(MetaRev(3)),
            what: "delete".into(),
        }],
    };
    let owner = Owner {
        token: "00ff".into(),
        epoch: 3,
        actor: "u@h".into(),
        since: UnixMs(1),
    };
    let pre = PreImage {
        entries: vec![
            Before {
                key: "a".into(),
                old: Some((MetaRev(1), b"value\n".to_vec().into())),
            },
            Before {
                key: "b".into(),
                old: None,
            },
        ],
    };
    let done = br#"{"cursor":3,"runs":[[5,2],[9,1]],"credit":-7}"#;
    let kinds: [Vec<u8>; 7] = [
        job.to_vec(),
        json(&mark).expect("ours").to_vec(),
        json(&audit).expect("ours").to_vec(),
        json(&owner).expect("ours").to_vec(),
        pre.encode().expect("ours"),
        done.to_vec(),
        b"42".to_vec(),
    ];
    kinds
        .into_iter()
        .enumerate()
        .map(|(kind, bytes)| tagged(kind, &bytes))
        .collect()
}
