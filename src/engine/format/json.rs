//! protojson with proto field names, and the descriptors behind it (`spec/snapshot.md` §2.2).

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, ReflectMessage,
    SerializeOptions,
};

use super::pb;
use crate::engine::error::{Error, ErrorKind, Result};

static POOL: LazyLock<Result<DescriptorPool>> = LazyLock::new(|| {
    DescriptorPool::decode(pb::DESCRIPTOR_SET).map_err(|cause| {
        Error::new(
            ErrorKind::Internal,
            "the embedded protobuf descriptors do not decode",
        )
        .caused_by(cause)
    })
});

/// 64-bit numbers quoted, enums by name, defaults left out, names as in the `.proto` files.
const OPTIONS: SerializeOptions = SerializeOptions::new()
    .stringify_64_bit_integers(true)
    .use_enum_numbers(false)
    .use_proto_field_name(true)
    .skip_default_fields(true);

/// The descriptor of a message, e.g. `milvus.proto.data.SegmentInfo`.
pub fn descriptor(full_name: &str) -> Result<MessageDescriptor> {
    POOL.as_ref()
        .map_err(Clone::clone)?
        .get_message_by_name(full_name)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                "no such message in the embedded descriptors",
            )
            .with("message", full_name)
        })
}

/// Decodes any message; unknown fields are kept.
pub fn decode(full_name: &str, bytes: &[u8]) -> Result<DynamicMessage> {
    DynamicMessage::decode(descriptor(full_name)?, bytes).map_err(|cause| {
        Error::new(
            ErrorKind::Corrupt,
            "the value is not the message its key promises",
        )
        .with("message", full_name)
        .caused_by(cause)
    })
}

/// A message as indented JSON, the same message always as the same text: members in field order, map keys sorted.
/// Fields unknown to this version are not in it: protojson has no place for them.
pub fn print(message: &DynamicMessage) -> Result<String> {
    let mut value = to_value(message)?;
    sort_maps(&message.descriptor(), &mut value);
    serde_json::to_string_pretty(&value).map_err(|cause| {
        Error::new(ErrorKind::Internal, "a message did not print as JSON").caused_by(cause)
    })
}

/// Maps come out of memory in no order of their own. Numeric keys sort as numbers.
fn sort_maps(of: &MessageDescriptor, value: &mut serde_json::Value) {
    let serde_json::Value::Object(members) = value else {
        return;
    };
    for (name, member) in members {
        let Some(field) = of.get_field_by_name(name) else {
            continue;
        };
        let kind = field.kind();
        if let (true, serde_json::Value::Object(entries), Kind::Message(entry)) =
            (field.is_map(), &mut *member, &kind)
        {
            let text = entry.map_entry_key_field().kind() == Kind::String;
            let mut sorted: Vec<_> = std::mem::take(entries).into_iter().collect();
            sorted.sort_by_cached_key(|(key, _)| {
                let number = if text { None } else { key.parse::<i128>().ok() };
                (number, key.clone())
            });
            entries.extend(sorted);
            if let Kind::Message(inner) = entry.map_entry_value_field().kind() {
                entries.values_mut().for_each(|v| sort_maps(&inner, v));
            }
            continue;
        }
        let Kind::Message(inner) = &kind else {
            continue;
        };
        match member {
            serde_json::Value::Array(items) => items.iter_mut().for_each(|v| sort_maps(inner, v)),
            one => sort_maps(inner, one),
        }
    }
}

/// A message as a JSON value.
pub fn to_value(message: &DynamicMessage) -> Result<serde_json::Value> {
    message
        .serialize_with_options(serde_json::value::Serializer, &OPTIONS)
        .map_err(|cause| {
            Error::new(ErrorKind::Internal, "a message did not print as JSON").caused_by(cause)
        })
}

/// Reads protojson. Members this version does not know are ignored, as Milvus does; 64-bit numbers may be bare or
/// quoted; names may be proto or lowerCamel. The error names the byte offset.
pub fn parse(full_name: &str, text: &[u8]) -> Result<DynamicMessage> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(descriptor(full_name)?, &mut reader, &options)
        .and_then(|message| reader.end().map(|()| message))
        .map_err(|cause| {
            Error::new(ErrorKind::Corrupt, "not the JSON form of its message")
                .with("message", full_name)
                .with("offset", offset(text, &cause))
                .caused_by(cause)
        })
}

/// What a JSON text says that the descriptors have no place for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unplaced {
    /// Paths of members without a field, e.g. `collection.schema.fields[1].new_flag`. Reading drops them.
    pub members: Vec<String>,
    /// Paths and names of enum values without a number. Reading would turn them into the default.
    pub enums: Vec<(String, String)>,
}

/// Looks for what [`parse`] would drop in silence.
pub fn unplaced(full_name: &str, text: &[u8]) -> Result<Unplaced> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|cause| {
        Error::new(ErrorKind::Corrupt, "not JSON")
            .with("offset", offset(text, &cause))
            .caused_by(cause)
    })?;
    let mut found = Unplaced::default();
    walk(
        &Kind::Message(descriptor(full_name)?),
        &value,
        "",
        &mut found,
    );
    Ok(found)
}

fn walk(kind: &Kind, value: &serde_json::Value, path: &str, found: &mut Unplaced) {
    match (kind, value) {
        (_, serde_json::Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                walk(kind, item, &format!("{path}[{i}]"), found);
            }
        }
        (Kind::Enum(desc), serde_json::Value::String(name))
            if desc.get_value_by_name(name).is_none() =>
        {
            found.enums.push((path.to_owned(), name.clone()));
        }
        (Kind::Message(desc), serde_json::Value::Object(members)) if desc.is_map_entry() => {
            let inner = desc.map_entry_value_field().kind();
            for (name, member) in members {
                walk(&inner, member, &format!("{path}[{name}]"), found);
            }
        }
        (Kind::Message(desc), serde_json::Value::Object(members)) => {
            for (name, member) in members {
                let at = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match desc
                    .get_field_by_name(name)
                    .or_else(|| desc.get_field_by_json_name(name))
                {
                    Some(field) => walk(&field.kind(), member, &at, found),
                    None => found.members.push(at),
                }
            }
        }
        _ => {}
    }
}

/// serde_json counts lines and columns from 1; column 0 is the line's beginning.
fn offset(text: &[u8], cause: &serde_json::Error) -> usize {
    let before: usize = text
        .split_inclusive(|b| *b == b'\n')
        .take(cause.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + cause.column().saturating_sub(1)).min(text.len())
}

/// A generated struct as a dynamic message of `full_name`.
pub fn lift<M: Message>(full_name: &str, value: &M) -> Result<DynamicMessage> {
    let mut message = DynamicMessage::new(descriptor(full_name)?);
    message.transcode_from(value).map_err(|cause| {
        Error::new(ErrorKind::Internal, "a struct and its descriptor disagree")
            .with("message", full_name)
            .caused_by(cause)
    })?;
    Ok(message)
}

/// A dynamic message as a generated struct.
pub fn lower<M: Message + Default>(message: &DynamicMessage) -> Result<M> {
    message.transcode_to().map_err(|cause| {
        Error::new(ErrorKind::Internal, "a struct and its descriptor disagree").caused_by(cause)
    })
}
