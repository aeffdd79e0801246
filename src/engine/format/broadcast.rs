//! The WAL message inside a broadcast task: what it is about, without its secrets (`spec/layout.md` §6).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message as _;

use super::decode::{Item, Node, nodes};
use super::{json, pb};

/// Property keys of a message.
pub(super) const TYPE: &str = "_t";
pub(super) const BROADCAST_HEADER: &str = "_bh";
pub(super) const HEADER: &str = "_h";
pub(super) const TIME_TICK: &str = "_tt";
const REPLICATE_HEADER: &str = "_rh";
const CIPHER_HEADER: &str = "_ch";

/// The type of a message, by its `_t` property (decimal). `Err` holds a number this version has no name for.
pub fn message_type(
    message: &pb::messages::Message,
) -> Option<Result<pb::messages::MessageType, i32>> {
    let number: i32 = message.properties.get(TYPE)?.parse().ok()?;
    Some(pb::messages::MessageType::try_from(number).map_err(|_| number))
}

/// The header every broadcast message has: id, channels, locks.
#[must_use]
pub fn broadcast_header(message: &pb::messages::Message) -> Option<pb::messages::BroadcastHeader> {
    let bytes = BASE64
        .decode(message.properties.get(BROADCAST_HEADER)?)
        .ok()?;
    pb::messages::BroadcastHeader::decode(&*bytes).ok()
}

/// What a message is about, as the header of its type says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// `collection_id`; `None` for none.
    pub collection: Option<i64>,
    /// Name of the snapshot, the index or the alias.
    pub name: Option<String>,
}

/// What the header of the message's own type tells; nothing for a type that this version does not know.
#[must_use]
pub fn about(message: &pb::messages::Message) -> About {
    let header = || {
        let kind = message_type(message)?.ok()?;
        let bytes = BASE64.decode(message.properties.get(HEADER)?).ok()?;
        json::decode(&type_header(kind), &bytes).ok()
    };
    let Some(header) = header() else {
        return About::default();
    };
    let name = |field: &str| {
        let value = header.get_field_by_name(field)?;
        value.as_str().filter(|t| !t.is_empty()).map(str::to_owned)
    };
    About {
        collection: header
            .get_field_by_name("collection_id")
            .and_then(|id| id.as_i64())
            .filter(|id| *id > 0),
        name: ["name", "snapshot_name", "index_name", "alias"]
            .into_iter()
            .find_map(name),
    }
}

fn type_header(kind: pb::messages::MessageType) -> String {
    format!("milvus.proto.messages.{}MessageHeader", kind.as_str_name())
}

/// The time tick of a message: base 36.
#[must_use]
pub fn time_tick(message: &pb::messages::Message) -> Option<u64> {
    u64::from_str_radix(message.properties.get(TIME_TICK)?, 36).ok()
}

/// Puts decoded headers in place of their base64, and hides what may hold a secret: the payload (a user's password
/// hash, an external spec) and headers that cannot be decoded.
pub(super) fn explain(fields: &mut [Node], task: &[u8]) {
    let Ok(task) = pb::streaming::BroadcastTask::decode(task) else {
        return;
    };
    let Some(message) = task.message else { return };
    let Some(Node {
        value: Item::Message(inner),
        ..
    }) = fields.iter_mut().find(|n| n.tag == 1)
    else {
        return;
    };
    let kind = message_type(&message);
    for node in inner {
        match (&mut node.value, node.tag) {
            (payload, 1) => {
                *payload = Item::Text(format!("{} bytes, not shown", message.payload.len()));
            }
            (Item::Map(properties), 2) => {
                for (name, value) in properties {
                    if let Some(better) = property(name, &message, kind) {
                        *value = better;
                    }
                }
            }
            _ => {}
        }
    }
}

fn property(
    name: &str,
    message: &pb::messages::Message,
    kind: Option<Result<pb::messages::MessageType, i32>>,
) -> Option<Item> {
    let package = "milvus.proto.messages.";
    let message_name = match name {
        TYPE => {
            let Some(Ok(kind)) = kind else { return None };
            return Some(Item::Enum {
                name: kind.as_str_name().to_owned(),
                number: kind as i32,
            });
        }
        BROADCAST_HEADER => format!("{package}BroadcastHeader"),
        REPLICATE_HEADER => format!("{package}ReplicateHeader"),
        CIPHER_HEADER => format!("{package}CipherHeader"),
        HEADER => match kind {
            Some(Ok(kind)) => type_header(kind),
            _ => return Some(Item::Masked),
        },
        _ => return None,
    };
    let decoded = message
        .properties
        .get(name)
        .and_then(|text| BASE64.decode(text).ok())
        .and_then(|bytes| json::decode(&message_name, &bytes).ok());
    Some(decoded.map_or(Item::Masked, |header| Item::Message(nodes(&header))))
}
