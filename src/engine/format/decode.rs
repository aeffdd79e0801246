//! Any value as a tree of named fields, for detail views and `-o json|yaml`. Secrets are masked in the tree itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage, Value as Dynamic};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::codec::{Codec, is_tombstone, unwrap};
use super::keys::Key;
use super::{broadcast, json, mask, time};
use crate::engine::ids::UnixNs;

/// A value taken apart.
#[derive(Clone, Debug, PartialEq)]
pub enum Explained {
    /// A protobuf message.
    Fields(Vec<Node>),
    /// A JSON document, secrets masked.
    Json(serde_json::Value),
    /// Text, secrets masked.
    Text(String),
    /// An allocator's window end.
    Nanos(UnixNs),
    /// No bytes.
    Empty,
    /// Deleted by RootCoord (`spec/layout.md` §2.6).
    Tombstone,
    /// Bytes of a kind that is not described; their number.
    Opaque(usize),
    /// Bytes that are not what the key promises.
    Undecodable {
        /// Why.
        reason: String,
    },
}

/// One field of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The proto name, or `tag N (wiretype)` for a field this version does not know.
    pub name: String,
    /// Field number; 0 for entries that Falconer adds, such as a decoded header.
    pub tag: u32,
    /// The content.
    pub value: Item,
}

/// Content of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A 64-bit signed integer.
    Int(i64),
    /// A 32-bit integer.
    Short(i64),
    /// A 64-bit unsigned integer.
    Uint(u64),
    /// A float.
    Float(f64),
    /// A bool.
    Bool(bool),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// An enum value; the name is the number when it has none.
    Enum {
        /// Its name.
        name: String,
        /// Its number.
        number: i32,
    },
    /// A nested message.
    Message(Vec<Node>),
    /// A repeated field.
    List(Vec<Item>),
    /// A map, sorted by key.
    Map(Vec<(String, Item)>),
    /// A secret.
    Masked,
    /// Content of a field this version does not know: its size in bytes, key included.
    Unknown(usize),
}

/// Takes the value of `key` apart.
#[must_use]
pub fn explain(key: &Key, value: &[u8]) -> Explained {
    if is_tombstone(key.family(), value) {
        return Explained::Tombstone;
    }
    let codec = key.codec();
    let body = match unwrap(codec, value) {
        Ok(body) => body,
        Err(reason) => return Explained::Undecodable { reason },
    };
    let bad = |reason: &str| Explained::Undecodable {
        reason: reason.to_owned(),
    };
    match codec {
        Codec::Proto(name) | Codec::ZstdProto(name) => match json::decode(name, &body) {
            Ok(message) => {
                let mut fields = nodes(&message);
                if matches!(key, Key::BroadcastTask(_)) {
                    broadcast::explain(&mut fields, &body);
                }
                Explained::Fields(fields)
            }
            Err(cause) => Explained::Undecodable {
                reason: cause.to_string(),
            },
        },
        _ if body.is_empty() => Explained::Empty,
        Codec::Json => match serde_json::from_slice(&body) {
            Ok(mut document) => {
                mask::json(&mut document);
                Explained::Json(document)
            }
            Err(cause) => Explained::Undecodable {
                reason: format!("not JSON: {cause}"),
            },
        },
        Codec::Text => match (key, std::str::from_utf8(&body)) {
            (_, Err(_)) => bad("not UTF-8 text"),
            (Key::Config(name), Ok(_)) if mask::is_secret(name) => {
                Explained::Text(mask::MASK.to_owned())
            }
            (_, Ok(text)) => Explained::Text(mask::text(text).into_owned()),
        },
        Codec::Decimal => match std::str::from_utf8(&body) {
            Ok(text) if text.trim().parse::<i64>().is_ok() => Explained::Text(text.to_owned()),
            _ => bad("not a decimal number"),
        },
        Codec::BigEndianNanos => time::read_window(&body).map_or_else(
            || bad("not 8 bytes of big-endian nanoseconds"),
            Explained::Nanos,
        ),
        Codec::Empty | Codec::Opaque => Explained::Opaque(body.len()),
    }
}

/// The fields of a message, in the order of their numbers; unknown ones last.
pub(super) fn nodes(message: &DynamicMessage) -> Vec<Node> {
    let mut out: Vec<Node> = message
        .fields()
        .map(|(field, value)| Node {
            name: field.name().to_owned(),
            tag: field.number(),
            value: if mask::is_secret(field.name()) {
                Item::Masked
            } else {
                item(value, &field.kind())
            },
        })
        .collect();
    mask_pair(message, &mut out);
    out.extend(message.unknown_fields().map(|unknown| {
        let mut raw = Vec::new();
        unknown.encode(&mut raw);
        Node {
            name: format!(
                "tag {} ({})",
                unknown.number(),
                wire_name(unknown.wire_type())
            ),
            tag: unknown.number(),
            value: Item::Unknown(raw.len()),
        }
    }));
    out
}

fn wire_name(wire: prost::encoding::WireType) -> &'static str {
    use prost::encoding::WireType as W;
    match wire {
        W::Varint => "varint",
        W::SixtyFourBit => "fixed64",
        W::LengthDelimited => "len",
        W::StartGroup | W::EndGroup => "group",
        W::ThirtyTwoBit => "fixed32",
    }
}

/// A `KeyValuePair` whose key names a secret loses its value.
fn mask_pair(message: &DynamicMessage, fields: &mut [Node]) {
    if message.descriptor().full_name() != "milvus.proto.common.KeyValuePair" {
        return;
    }
    let secret = fields
        .iter()
        .any(|n| n.tag == 1 && matches!(&n.value, Item::Text(k) if mask::is_secret(k)));
    if secret {
        for node in fields.iter_mut().filter(|n| n.tag == 2) {
            node.value = Item::Masked;
        }
    }
}

fn item(value: &Dynamic, kind: &Kind) -> Item {
    match value {
        Dynamic::Bool(v) => Item::Bool(*v),
        Dynamic::I32(v) => Item::Short(i64::from(*v)),
        Dynamic::I64(v) => Item::Int(*v),
        Dynamic::U32(v) => Item::Short(i64::from(*v)),
        Dynamic::U64(v) => Item::Uint(*v),
        Dynamic::F32(v) => Item::Float(f64::from(*v)),
        Dynamic::F64(v) => Item::Float(*v),
        Dynamic::String(v) => Item::Text(mask::text(v).into_owned()),
        Dynamic::Bytes(v) => Item::Bytes(v.to_vec()),
        Dynamic::EnumNumber(number) => Item::Enum {
            name: kind
                .as_enum()
                .and_then(|e| e.get_value(*number))
                .map_or_else(|| number.to_string(), |v| v.name().to_owned()),
            number: *number,
        },
        Dynamic::Message(m) => Item::Message(nodes(m)),
        Dynamic::List(items) => Item::List(items.iter().map(|v| item(v, kind)).collect()),
        Dynamic::Map(entries) => map(entries, kind),
    }
}

fn map(entries: &std::collections::HashMap<MapKey, Dynamic>, kind: &Kind) -> Item {
    let value_kind = kind
        .as_message()
        .map(|entry| entry.map_entry_value_field().kind());
    let mut rows: Vec<(MapKey, Item)> = entries
        .iter()
        .map(|(key, value)| {
            let secret = matches!(key, MapKey::String(name) if mask::is_secret(name));
            let shown = if secret {
                Item::Masked
            } else {
                item(value, value_kind.as_ref().unwrap_or(kind))
            };
            (key.clone(), shown)
        })
        .collect();
    rows.sort_by(|(a, _), (b, _)| key_order(a, b));
    Item::Map(
        rows.into_iter()
            .map(|(key, value)| (key_text(&key), value))
            .collect(),
    )
}

fn key_order(a: &MapKey, b: &MapKey) -> std::cmp::Ordering {
    match (a, b) {
        (MapKey::I64(a), MapKey::I64(b)) => a.cmp(b),
        (MapKey::I32(a), MapKey::I32(b)) => a.cmp(b),
        (MapKey::U64(a), MapKey::U64(b)) => a.cmp(b),
        (MapKey::U32(a), MapKey::U32(b)) => a.cmp(b),
        _ => key_text(a).cmp(&key_text(b)),
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

/// As protojson writes it, plus unknown tags: 64-bit integers as strings, enums by name, bytes in base64.
impl Serialize for Explained {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fields(fields) => serialize_fields(fields, s),
            Self::Json(document) => document.serialize(s),
            Self::Text(text) => s.serialize_str(text),
            Self::Nanos(ns) => s.collect_str(&ns.0),
            Self::Empty => s.serialize_unit(),
            Self::Tombstone => note(s, "tombstone", &true),
            Self::Opaque(bytes) => note(s, "opaque_bytes", bytes),
            Self::Undecodable { reason } => note(s, "undecodable", reason),
        }
    }
}

fn note<S: Serializer>(s: S, name: &str, value: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(1))?;
    map.serialize_entry(name, value)?;
    map.end()
}

fn serialize_fields<S: Serializer>(fields: &[Node], s: S) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(fields.len()))?;
    for node in fields {
        map.serialize_entry(&node.name, &node.value)?;
    }
    map.end()
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Int(v) => s.collect_str(v),
            Self::Uint(v) => s.collect_str(v),
            Self::Short(v) => s.serialize_i64(*v),
            Self::Float(v) => s.serialize_f64(*v),
            Self::Bool(v) => s.serialize_bool(*v),
            Self::Text(v) => s.serialize_str(v),
            Self::Bytes(v) => s.serialize_str(&BASE64.encode(v)),
            Self::Enum { name, .. } => s.serialize_str(name),
            Self::Message(fields) => serialize_fields(fields, s),
            Self::List(items) => {
                let mut seq = s.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Self::Map(entries) => {
                let mut map = s.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Self::Masked => s.serialize_str(mask::MASK),
            Self::Unknown(bytes) => s.serialize_str(&format!("{bytes} bytes kept as they are")),
        }
    }
}
