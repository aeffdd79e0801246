//! Values: decoded by family, shown as trees, secrets hidden.

use std::collections::BTreeMap;

use falconer::engine::format::codec::{self, Codec, Decoded, TOMBSTONE};
use falconer::engine::format::decode::{Explained, Item, explain};
use falconer::engine::format::keys::{Family, Key, Role};
use falconer::engine::format::session::Session;
use falconer::engine::format::time::{self, Moment};
use falconer::engine::format::{mask, pb, position};
use falconer::engine::ids::{Tso, UnixMs, UnixNs, UnixSecs};
use prost::Message;

use super::lab;

#[test]
fn every_lab_value_decodes_and_the_tombstones_are_seen() {
    let mut tombstones = Vec::new();
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, entry) in lab::known() {
        let outcome = match explain(&key, &entry.value) {
            Explained::Fields(_) => "fields",
            Explained::Json(_) => "json",
            Explained::Text(_) => "text",
            Explained::Nanos(_) => "nanos",
            Explained::Empty => "empty",
            Explained::Tombstone => {
                tombstones.push(key);
                "tombstone"
            }
            bad @ (Explained::Opaque(_) | Explained::Undecodable { .. }) => {
                panic!("{key:?}: {bad:?}")
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    assert_eq!(tombstones.len(), 2, "{tombstones:?}");
    assert!(tombstones.iter().any(|k| matches!(k, Key::Database(_))));
    assert!(
        tombstones
            .iter()
            .any(|k| matches!(k, Key::TimestampedCopy(of, _) if matches!(**of, Key::Database(_))))
    );
    assert_eq!(outcomes["nanos"], 3);
    assert_eq!(outcomes["json"], 10, "8 sessions, 2 users");
    assert_eq!(outcomes["empty"], 4, "3 roles, 1 role of a user");
}

#[test]
fn lab_messages_have_no_field_we_do_not_know() {
    for (key, entry) in lab::known() {
        if let Explained::Fields(fields) = explain(&key, &entry.value) {
            let text = format!("{fields:?}");
            assert!(!text.contains("Unknown("), "{key:?}: {text}");
        }
    }
}

#[test]
fn decoded_messages_agree_with_their_keys() {
    let mut collections = 0;
    for (key, entry) in lab::known() {
        match &key {
            Key::Segment(c, p, s) => {
                let v: pb::data::SegmentInfo = codec::decode(&key, &entry.value).value().unwrap();
                assert_eq!((v.collection_id, v.partition_id, v.id), (c.0, p.0, s.0));
                assert!(
                    v.binlogs.is_empty(),
                    "logs are never in the segment's own value"
                );
            }
            Key::Log(.., f) => {
                let v: pb::data::FieldBinlog = codec::decode(&key, &entry.value).value().unwrap();
                assert!(entry.value.is_empty() || v.field_id == f.0);
                assert!(
                    v.binlogs
                        .iter()
                        .all(|b| b.log_path.is_empty() && b.log_id != 0)
                );
            }
            Key::SegmentIndex(c, p, s, b) => {
                let v: pb::index::SegmentIndex = codec::decode(&key, &entry.value).value().unwrap();
                assert_eq!(
                    (v.collection_id, v.partition_id, v.segment_id, v.build_id),
                    (c.0, p.0, s.0, b.0)
                );
            }
            Key::Field(_, f) => {
                let v: pb::schema::FieldSchema = codec::decode(&key, &entry.value).value().unwrap();
                assert_eq!(v.field_id, f.0);
                assert!(!v.name.is_empty());
            }
            Key::Collection(db, c) => {
                let v: pb::etcd::CollectionInfo =
                    codec::decode(&key, &entry.value).value().unwrap();
                assert_eq!((v.db_id, v.id), (db.0, c.0));
                assert!(
                    v.schema.unwrap().fields.is_empty(),
                    "fields live under their own prefix"
                );
                collections += 1;
            }
            Key::LegacyImportTask(id) => {
                let v: pb::data::ImportTaskInfo =
                    codec::decode(&key, &entry.value).value().unwrap();
                assert_eq!(v.id, id.0);
                assert_eq!(v.files, ["import/rows.json"]);
                assert_eq!(v.collection_name, "imported");
                assert_eq!(
                    v.state.unwrap().state_code(),
                    pb::common::ImportState::ImportCompleted
                );
            }
            _ => {}
        }
    }
    assert_eq!(collections, 9);
}

#[test]
fn a_tombstone_counts_only_where_root_coord_writes_one() {
    let db = Key::Database(5.into());
    assert_eq!(
        codec::decode::<pb::etcd::DatabaseInfo>(&db, &TOMBSTONE),
        Decoded::Tombstone
    );
    let copy = Key::TimestampedCopy(Box::new(db), Tso(9));
    assert_eq!(explain(&copy, &TOMBSTONE), Explained::Tombstone);
    let segment = Key::Segment(1.into(), 2.into(), 3.into());
    assert!(matches!(
        codec::decode::<pb::data::SegmentInfo>(&segment, &TOMBSTONE),
        Decoded::Undecodable { .. }
    ));
}

#[test]
fn bytes_that_do_not_decode_become_a_reason() {
    let cases: [(Key, &[u8]); 6] = [
        (Key::Segment(1.into(), 2.into(), 3.into()), b"\x08"),
        (Key::CollectionTarget(1.into()), b"not zstd"),
        (Key::Session(Role::Proxy, None), b"{\"ServerID\":"),
        (Key::IdAllocator, b"1234567"),
        (Key::SessionNextId, b"x1"),
        (Key::ChannelRemoval("v".into()), b"\xff"),
    ];
    for (key, value) in cases {
        let Explained::Undecodable { reason } = explain(&key, value) else {
            panic!("{key:?}")
        };
        assert!(!reason.is_empty());
    }
}

#[test]
fn a_target_is_unpacked_before_it_is_read() {
    let target = pb::query::CollectionTarget {
        collection_id: 7,
        channel_targets: vec![pb::query::ChannelTarget {
            channel_name: "ch".into(),
            growing_segment_i_ds: (0..5000).collect(),
            ..Default::default()
        }],
        version: 99,
    };
    let plain = target.encode_to_vec();
    let frame =
        ruzstd::encoding::compress_to_vec(&*plain, ruzstd::encoding::CompressionLevel::Fastest);
    assert!(frame.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]));
    let key = Key::CollectionTarget(7.into());
    assert!(matches!(key.codec(), Codec::ZstdProto(_)));
    assert_eq!(codec::decode(&key, &frame), Decoded::Value(target));
    let Explained::Fields(fields) = explain(&key, &frame) else {
        panic!()
    };
    assert_eq!(fields[0].name, "collectionID");
    let cut = &frame[..frame.len() - 3];
    assert!(matches!(
        codec::decode::<pb::query::CollectionTarget>(&key, cut),
        Decoded::Undecodable { .. }
    ));
}

#[test]
fn unknown_tags_and_enum_numbers_are_shown() {
    let mut bytes = pb::data::SegmentInfo {
        id: 3,
        state: 42,
        ..Default::default()
    }
    .encode_to_vec();
    bytes.extend([0xFA, 0x07, 0x03, b'a', b'b', b'c']); // tag 127, length-delimited
    let shown = explain(&Key::Segment(1.into(), 2.into(), 3.into()), &bytes);
    let text = serde_json::to_value(&shown).unwrap();
    assert_eq!(text["ID"], "3");
    assert_eq!(text["state"], "42");
    assert_eq!(text["tag 127 (len)"], "6 bytes kept as they are");
}

#[test]
fn json_form_is_protojson() {
    let job = pb::data::CopySegmentJob {
        job_id: 470_660_334_431_502_351,
        state: pb::data::CopySegmentJobState::CopySegmentJobExecuting as i32,
        external: true,
        id_mappings: vec![pb::data::CopySegmentIdMapping {
            source_segment_id: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    let shown = explain(&Key::CopySegmentJob(1.into()), &job.encode_to_vec());
    assert_eq!(
        serde_json::to_value(&shown).unwrap(),
        serde_json::json!({
            "job_id": "470660334431502351",
            "state": "CopySegmentJobExecuting",
            "id_mappings": [{"source_segment_id": "1"}],
            "external": true
        })
    );
}

#[test]
fn secrets_never_show() {
    let secret = "SECRET-VALUE";
    let kv = |key: &str, value: &str| pb::common::KeyValuePair {
        key: key.into(),
        value: value.into(),
    };
    let job = pb::data::CopySegmentJob {
        external_spec: format!("{{\"accessKey\":\"{secret}\"}}"),
        snapshot_s3_location: format!("https://user:{secret}@host/bucket/key"),
        options: vec![kv("secret_access_key", secret), kv("copy_index", "true")],
        ..Default::default()
    };
    let replication = pb::streaming::ReplicateConfigurationMeta {
        replicate_configuration: Some(pb::common::ReplicateConfiguration {
            clusters: vec![pb::common::MilvusCluster {
                cluster_id: "c1".into(),
                connection_param: Some(pb::common::ConnectionParam {
                    uri: "https://c1:19530".into(),
                    token: secret.into(),
                }),
                pchannels: vec![],
            }],
            cross_cluster_topology: vec![],
        }),
        ..Default::default()
    };
    let collection = pb::etcd::CollectionInfo {
        schema: Some(pb::schema::CollectionSchema {
            external_spec: secret.into(),
            ..Default::default()
        }),
        properties: vec![
            kv("collection.external_spec", secret),
            kv("mmap.enabled", "true"),
        ],
        ..Default::default()
    };
    let user = format!(
        "{{\"encrypted_password\":\"{secret}\",\"sha256_password\":\"{secret}\",\"is_super\":true}}"
    );
    let header = pb::messages::RestoreSnapshotMessageHeader {
        snapshot_name: "snap".into(),
        external_spec: secret.into(),
        ..Default::default()
    };
    let base64 =
        |bytes: Vec<u8>| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let task = pb::streaming::BroadcastTask {
        message: Some(pb::messages::Message {
            payload: secret.as_bytes().to_vec(),
            properties: [
                ("_t".to_owned(), "39".to_owned()),
                ("_h".to_owned(), base64(header.encode_to_vec())),
                (
                    "_bh".to_owned(),
                    base64(
                        pb::messages::BroadcastHeader {
                            broadcast_id: 5,
                            ..Default::default()
                        }
                        .encode_to_vec(),
                    ),
                ),
            ]
            .into(),
        }),
        ..Default::default()
    };
    let cases: Vec<(Key, Vec<u8>, &str)> = vec![
        (
            Key::CopySegmentJob(1.into()),
            job.encode_to_vec(),
            "copy_index",
        ),
        (
            Key::ReplicateConfiguration,
            replication.encode_to_vec(),
            "https://c1:19530",
        ),
        (
            Key::Collection(1.into(), 2.into()),
            collection.encode_to_vec(),
            "mmap.enabled",
        ),
        (Key::User("u".into()), user.into_bytes(), "is_super"),
        (
            Key::BroadcastTask(5),
            task.encode_to_vec(),
            "RestoreSnapshot",
        ),
        (
            Key::Config("minio.secretAccessKey".into()),
            secret.as_bytes().to_vec(),
            mask::MASK,
        ),
        (
            Key::Config("miniogcpcredentialjson".into()),
            secret.as_bytes().to_vec(),
            mask::MASK,
        ),
    ];
    for (key, value, kept) in cases {
        let shown = explain(&key, &value);
        let text = serde_json::to_string(&shown).unwrap();
        assert!(
            !text.contains(secret) && !format!("{shown:?}").contains(secret),
            "{key:?}: {text}"
        );
        assert!(
            !text.contains(&base64(secret.as_bytes().to_vec())),
            "{key:?}: {text}"
        );
        assert!(text.contains(kept), "{key:?} lost {kept}: {text}");
    }
    let Explained::Fields(fields) = explain(&Key::BroadcastTask(5), &task.encode_to_vec()) else {
        panic!()
    };
    assert!(
        format!("{fields:?}").contains("snap"),
        "the header is decoded"
    );
    for plain in ["key", "name", "max_length", "partition_key", "mqtype"] {
        assert!(!mask::is_secret(plain), "{plain}");
    }
}

#[test]
fn real_password_hashes_are_masked() {
    for (key, entry) in lab::known() {
        if key.family() == Family::User {
            let text = serde_json::to_string(&explain(&key, &entry.value)).unwrap();
            assert!(
                text.contains("encrypted_password") && !text.contains("$2a$"),
                "{text}"
            );
        }
    }
}

#[test]
fn marks_are_not_moments() {
    let now = UnixMs(1_790_000_000_000);
    assert_eq!(Moment::of_tso(Tso(0), now), Moment::Unset);
    assert_eq!(Moment::of_tso(Tso(u64::MAX), now), Moment::Max);
    assert_eq!(Moment::of_tso(Tso(5), now), Moment::OutOfRange);
    assert_eq!(Moment::of_tso(Tso::from_ms(now), now), Moment::At(now));
    let ahead = UnixMs(now.0 + time::SKEW_MS + 1);
    assert_eq!(
        Moment::of_tso(Tso::from_ms(ahead), now),
        Moment::Future(ahead)
    );
    assert_eq!(Moment::of_tso(Tso::from_ms(ahead), now).at(), None);
    assert_eq!(Moment::of_ns(UnixNs(0), now), Moment::Unset);
    assert_eq!(
        Moment::of_ns(UnixNs(1_789_000_000_000_000_000), now),
        Moment::At(UnixMs(1_789_000_000_000))
    );
    // A nanosecond count read as milliseconds is not a date.
    assert_eq!(
        Moment::of_ms(UnixMs(1_789_000_000_000_000_000), now),
        Moment::OutOfRange
    );
    assert_eq!(Moment::of_ms(UnixMs(-1), now), Moment::Max);
    assert_eq!(Moment::of_secs(UnixSecs(i64::MAX), now), Moment::Max);
    assert_eq!(
        Moment::of_secs(UnixSecs(1_789_000_000), now),
        Moment::At(UnixMs(1_789_000_000_000))
    );

    let tso = time::compose(now, 17);
    assert_eq!((tso.time(), time::logical(tso)), (Some(now), 17));
    assert_eq!(time::of_id(tso.0 as i64), Some(now));
    assert_eq!(time::of_id(100), None);
}

#[test]
fn allocator_windows_are_big_endian_nanoseconds() {
    for (key, entry) in lab::known() {
        if let Explained::Nanos(end) = explain(&key, &entry.value) {
            let text = end.to_ms().utc();
            assert!(text.starts_with("2026-"), "{key:?} {text}");
            assert_eq!(time::write_window(end).as_slice(), entry.value);
        }
    }
    assert_eq!(time::read_window(&[0; 7]), None);
}

#[test]
fn broadcast_headers_are_read() {
    let mut message = pb::messages::Message::default();
    assert_eq!(
        falconer::engine::format::broadcast::message_type(&message),
        None
    );
    message.properties.insert("_t".into(), "47000".into());
    assert_eq!(
        falconer::engine::format::broadcast::message_type(&message),
        Some(Err(47000))
    );
    message.properties.insert("_t".into(), "40".into());
    assert_eq!(
        falconer::engine::format::broadcast::message_type(&message),
        Some(Ok(pb::messages::MessageType::CreateSnapshot))
    );
    message.properties.insert("_tt".into(), "zz".into());
    assert_eq!(
        falconer::engine::format::broadcast::time_tick(&message),
        Some(35 * 36 + 35)
    );
}

#[test]
fn masked_items_serialize_as_the_mask() {
    assert_eq!(
        serde_json::to_string(&Item::Masked).unwrap(),
        format!("\"{}\"", mask::MASK)
    );
}

#[test]
fn lab_sessions_are_read_exactly() {
    let mut seen = 0;
    for (key, entry) in lab::known() {
        let Key::Session(role, id) = &key else {
            continue;
        };
        let session = Session::parse(&entry.value).unwrap();
        assert_eq!(session.server_name, role.name());
        assert_eq!(session.version, "2.3.5");
        assert_eq!(id.is_none(), role.is_coordinator());
        assert!(session.lease_id > 1 << 53, "{}", session.lease_id);
        assert!(
            entry
                .value
                .windows(19)
                .any(|w| w == session.lease_id.to_string().as_bytes()),
            "no digit was rounded"
        );
        seen += 1;
    }
    assert_eq!(seen, 8);
    let labelled =
        Session::parse(br#"{"ServerLabels":{"STREAMING-EMBEDDED":"1"},"New":{}}"#).unwrap();
    assert!(labelled.is_streaming_embedded());
    assert!(Session::parse(b"[1]x").is_err());
}

#[test]
fn positions_show_their_message_ids() {
    let p = |wal_name, msg_id: &[u8]| pb::msg::MsgPosition {
        msg_id: msg_id.to_vec(),
        wal_name,
        ..Default::default()
    };
    assert_eq!(position::message_id(&p(1, &7i64.to_le_bytes())), "7");
    assert_eq!(position::message_id(&p(0, &7i64.to_le_bytes())), "7");
    assert_eq!(position::message_id(&p(2, &[1, 2, 3])), "AQID");
    assert_eq!(
        position::message_id(&p(4, &7i64.to_le_bytes())),
        "BwAAAAAAAAA="
    );
    assert_eq!(position::message_id(&p(0, &[])), "");
    let dropped = pb::msg::MsgPosition {
        timestamp: u64::MAX,
        ..Default::default()
    };
    assert!(position::is_dropped(&dropped) && !position::is_dropped(&p(0, &[])));
}
