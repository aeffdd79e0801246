//! Law 1: rewriting a value keeps everything that was not meant.

use falconer::engine::format::codec::{Codec, is_tombstone};
use falconer::engine::format::json;
use falconer::engine::format::pb;
use falconer::engine::format::wire::{Patch, WireType, records, write_varint};
use proptest::prelude::*;
use prost::Message;
use prost_reflect::{Cardinality, DynamicMessage, Kind, ReflectMessage, Value};

use super::lab;

/// Fields from a Milvus of next year, one of each wire type.
fn future_fields() -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, wire) in [(5000u64, 0u64), (5001, 1), (5002, 2), (5003, 5), (5004, 3)] {
        write_varint(&mut out, tag << 3 | wire);
        match wire {
            0 => write_varint(&mut out, u64::MAX),
            1 => out.extend([1; 8]),
            2 => out.extend([3, b'n', b'e', b'w']),
            5 => out.extend([2; 4]),
            _ => {
                out.extend([0x08, 0x01]);
                write_varint(&mut out, tag << 3 | 4);
            }
        }
    }
    out
}

fn others(bytes: &[u8], tag: u32) -> Vec<Vec<u8>> {
    records(bytes)
        .map(Result::unwrap)
        .filter(|r| r.tag != tag)
        .map(|r| r.whole.to_vec())
        .collect()
}

/// Changes one singular field that the descriptor knows; returns its tag and the new value.
fn change(message: &DynamicMessage, patch: &mut Patch<'_>, turn: usize) -> Option<(u32, Value)> {
    let singular: Vec<_> = message
        .descriptor()
        .fields()
        .filter(|f| f.cardinality() != Cardinality::Repeated && f.containing_oneof().is_none())
        .filter(|f| {
            matches!(
                f.kind(),
                Kind::Int64 | Kind::Uint64 | Kind::String | Kind::Bool
            )
        })
        .collect();
    let field = singular.get(turn % singular.len().max(1))?;
    let tag = field.number();
    Some(match (field.kind(), message.get_field(field).as_ref()) {
        (Kind::Int64, Value::I64(v)) => {
            let new = v.wrapping_sub(1_000_001);
            patch.set_integer(tag, new as u64);
            (tag, Value::I64(new))
        }
        (Kind::Uint64, Value::U64(v)) => {
            let new = v.wrapping_add(7);
            patch.set_integer(tag, new);
            (tag, Value::U64(new))
        }
        (Kind::String, Value::String(v)) => {
            let new = format!("{v}-changed");
            patch.set_bytes(tag, new.as_bytes());
            (tag, Value::String(new))
        }
        (_, Value::Bool(v)) => {
            patch.set_integer(tag, u64::from(!v));
            (tag, Value::Bool(!v))
        }
        (kind, value) => panic!("{kind:?} {value:?}"),
    })
}

#[test]
fn every_lab_value_keeps_all_but_the_changed_field() {
    let mut checked = 0;
    for (turn, (key, entry)) in lab::known().into_iter().enumerate() {
        let Codec::Proto(name) = key.codec() else {
            continue;
        };
        if is_tombstone(key.family(), &entry.value) {
            continue;
        }
        assert_eq!(
            Patch::parse(&entry.value).unwrap().finish(),
            entry.value,
            "no-op on {key:?}"
        );

        let mut value = entry.value.clone();
        value.extend(future_fields());
        let before = json::decode(name, &value).unwrap();
        assert_eq!(
            before.unknown_fields().count(),
            5,
            "{key:?} holds fields the descriptors miss"
        );

        let mut patch = Patch::parse(&value).unwrap();
        let (tag, new) = change(&before, &mut patch, turn)
            .unwrap_or_else(|| panic!("nothing to change in {name}"));
        assert!(patch.is_dirty());
        let written = patch.finish();
        assert_eq!(others(&written, tag), others(&value, tag), "{key:?}");

        let after = json::decode(name, &written).unwrap();
        assert_eq!(
            after.get_field_by_number(tag).unwrap().as_ref(),
            &new,
            "{key:?} tag {tag}"
        );
        for field in before.descriptor().fields().filter(|f| f.number() != tag) {
            assert_eq!(
                after.get_field(&field),
                before.get_field(&field),
                "{key:?} {}",
                field.name()
            );
        }
        assert_eq!(
            after.unknown_fields().cloned().collect::<Vec<_>>(),
            before.unknown_fields().cloned().collect::<Vec<_>>()
        );
        checked += 1;
    }
    // 1,710 keys less 3 allocators, 9 session keys, 15 credentials, 15 removal marks and 2 tombstones.
    assert_eq!(checked, 1666);
}

#[test]
fn nested_edits_touch_only_their_own_record() {
    let segment = pb::data::SegmentInfo {
        id: 9,
        insert_channel: "ch".into(),
        start_position: Some(pb::msg::MsgPosition {
            channel_name: "ch".into(),
            timestamp: 5,
            ..Default::default()
        }),
        compaction_from: vec![1, 2],
        manifest_path: "{}".into(),
        ..Default::default()
    };
    let mut bytes = segment.encode_to_vec();
    bytes.extend(future_fields());
    let mut patch = Patch::parse(&bytes).unwrap();
    patch
        .nested(9, |p| {
            p.set_integer(4, 77);
            Ok(())
        })
        .unwrap();
    patch
        .nested(10, |p| {
            p.set_bytes(1, b"dml");
            Ok(())
        })
        .unwrap();
    patch.set_packed(15, &[1, 2, 3]);
    patch.set_integer(6, pb::common::SegmentState::Dropped as u64);
    let out = patch.finish();
    let read = pb::data::SegmentInfo::decode(&*out).unwrap();
    assert_eq!(read.start_position.unwrap().timestamp, 77);
    assert_eq!(read.dml_position.unwrap().channel_name, "dml");
    assert_eq!(read.compaction_from, [1, 2, 3]);
    assert_eq!(read.state, pb::common::SegmentState::Dropped as i32);
    assert!(out.ends_with(&future_fields()));
    let tags: Vec<u32> = records(&out).map(|r| r.unwrap().tag).collect();
    assert_eq!(
        tags,
        [1, 4, 6, 9, 10, 15, 32, 5000, 5001, 5002, 5003, 5004],
        "records keep their order"
    );
}

#[test]
fn maps_and_repeated_fields_are_edited_in_place() {
    let info = pb::data::SnapshotInfo {
        id: 3,
        pin_ids: vec![10, 11],
        pin_expire_at_ms: [(10, 100), (11, 0)].into(),
        ..Default::default()
    };
    let bytes = info.encode_to_vec();
    let mut patch = Patch::parse(&bytes).unwrap();
    assert_eq!(patch.packed(11), Some(vec![10, 11]));
    patch.set_map_integer(12, 10, 100);
    assert!(!patch.is_dirty(), "the same value is no change");
    patch.set_map_integer(12, 12, 0);
    patch.remove_map_integer(12, 10);
    patch.set_packed(11, &[11, 12]);
    let read = pb::data::SnapshotInfo::decode(&*patch.finish()).unwrap();
    assert_eq!(read.pin_ids, [11, 12]);
    assert_eq!(read.pin_expire_at_ms, [(11, 0), (12, 0)].into());

    let mut patch = Patch::parse(&bytes).unwrap();
    patch.set_packed(11, &[]);
    patch.clear(12);
    let read = pb::data::SnapshotInfo::decode(&*patch.finish()).unwrap();
    assert!(read.pin_ids.is_empty() && read.pin_expire_at_ms.is_empty());
    assert_eq!(read.id, 3);
}

#[test]
fn unpacked_lists_and_duplicates_read_as_protobuf_says() {
    // compactionFrom unpacked, state given twice.
    let bytes = [0x78, 5, 0x30, 1, 0x78, 6, 0x30, 4];
    let mut patch = Patch::parse(&bytes).unwrap();
    assert_eq!(patch.packed(15), Some(vec![5, 6]));
    assert_eq!(patch.integer(6), Some(4));
    patch.set_integer(6, 6);
    assert_eq!(patch.finish(), [0x78, 5, 0x78, 6, 0x30, 6]);
}

#[test]
fn broken_bytes_are_named_with_their_offset() {
    for (bytes, offset) in [
        (&[0x08][..], 1),
        (&[0x08, 0x80], 1),
        (&[0x12, 0x05, 1, 2], 2),
        (&[0x00, 0x01], 0),
        (&[0x0c], 0),
        (&[0x0f], 0),
        (&[0x08, 1, 0x0b, 0x08, 1, 0x14], 6),
        (&[0x0b, 0x08, 1], 3),
        (
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
            1,
        ),
        (&[0x0d, 1, 2, 3], 1),
    ] {
        let bad = Patch::parse(bytes).unwrap_err();
        assert_eq!(bad.offset, offset, "{bytes:x?}: {bad}");
    }
}

/// Any valid message: records of every wire type, tags in any order, varints longer than needed.
fn message(depth: u32) -> BoxedStrategy<Vec<u8>> {
    let tag = prop_oneof![1u64..40, 1u64..(1 << 29)];
    let long = any::<bool>();
    let record = (
        tag,
        long,
        any::<u64>(),
        proptest::collection::vec(any::<u8>(), 0..12),
        0..5u8,
    );
    let flat = record.prop_map(|(tag, long, n, bytes, wire)| {
        let mut out = Vec::new();
        let wire_bits = [0, 1, 2, 5, 2][wire as usize];
        varint(&mut out, tag << 3 | wire_bits, long);
        match wire_bits {
            0 => varint(&mut out, n, long),
            1 => out.extend(n.to_le_bytes()),
            5 => out.extend((n as u32).to_le_bytes()),
            _ => {
                varint(&mut out, bytes.len() as u64, long);
                out.extend(bytes);
            }
        }
        out
    });
    let one: BoxedStrategy<Vec<u8>> = if depth == 0 {
        flat.boxed()
    } else {
        let nested =
            (1u64..40, message(depth - 1), any::<bool>()).prop_map(|(tag, inner, group)| {
                let mut out = Vec::new();
                varint(&mut out, tag << 3 | if group { 3 } else { 2 }, false);
                if group {
                    out.extend(inner);
                    varint(&mut out, tag << 3 | 4, false);
                } else {
                    varint(&mut out, inner.len() as u64, true);
                    out.extend(inner);
                }
                out
            });
        prop_oneof![3 => flat, 1 => nested].boxed()
    };
    proptest::collection::vec(one, 0..6)
        .prop_map(|parts| parts.concat())
        .boxed()
}

/// A varint, with one needless group when `long` and there is room.
fn varint(out: &mut Vec<u8>, value: u64, long: bool) {
    write_varint(out, value);
    if long && value < 1 << 56 {
        let last = out.len() - 1;
        out[last] |= 0x80;
        out.push(0);
    }
}

proptest! {
    #[test]
    fn a_patch_that_changes_nothing_gives_the_input(bytes in message(2)) {
        let mut patch = Patch::parse(&bytes).unwrap();
        prop_assert_eq!(patch.finish(), bytes.clone());
        // Visiting nested messages without an edit is no change either.
        for tag in 1..40 {
            let _ = patch.each(tag, |_| Ok(()));
            if let Some(v) = patch.packed(tag).filter(|v| !v.is_empty()) {
                patch.set_packed(tag, &v);
            }
        }
        prop_assert_eq!(patch.finish(), bytes);
    }

    #[test]
    fn setting_one_field_leaves_all_other_records_alone(
        bytes in message(1), tag in 1u32..40, value in any::<u64>(), text in "[a-z]{0,9}"
    ) {
        let mut patch = Patch::parse(&bytes).unwrap();
        patch.set_integer(tag, value);
        let out = patch.finish();
        prop_assert_eq!(others(&out, tag), others(&bytes, tag));
        prop_assert_eq!(Patch::parse(&out).unwrap().integer(tag).unwrap_or(0), value);

        let mut patch = Patch::parse(&bytes).unwrap();
        patch.set_bytes(tag, text.as_bytes());
        let out = patch.finish();
        prop_assert_eq!(others(&out, tag), others(&bytes, tag));
        let again = Patch::parse(&out).unwrap();
        prop_assert_eq!(again.bytes(tag).unwrap_or(b""), text.as_bytes());
    }

    #[test]
    fn the_parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        for record in records(&bytes).flatten() {
            prop_assert!(record.wire != WireType::Group || record.whole.len() > record.payload.len());
        }
    }
}
