//! How a value is encoded, by key family and never by looking at the bytes (`spec/layout.md` §11 item 4).
//!
//! One exception comes before the family: a RootCoord deletion up to 2.6.14 is the three-byte [`TOMBSTONE`].

use std::borrow::Cow;
use std::io::Read as _;

use prost::Message;

use super::keys::{Family, Key};
use crate::engine::error::{Error, ErrorKind};

/// What RootCoord writes instead of deleting (`spec/layout.md` §2.6). Not protobuf: test for it first.
pub const TOMBSTONE: [u8; 3] = [0xE2, 0x9B, 0xBC];

/// What the TiKV metastore stores for an empty value.
pub const TIKV_EMPTY: &[u8] = b"__milvus_reserved_empty_tikv_value_DO_NOT_USE";

/// Bytes that a zstd frame may become for each of its own, and beside them: ids of one cluster shrink by ten, and three bytes
/// of a hostile frame would become 128 KiB.
const UNPACKED: (u64, u64) = (1_000, 1 << 20);

/// Largest window a frame may ask for: it is reserved before the first byte is read. Milvus's encoder asks for 8 MiB.
const WINDOW: u64 = 32 << 20;

/// A value's encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// A protobuf message; its full name. Empty bytes are a message with every field at its default.
    Proto(&'static str),
    /// A zstd frame of a protobuf message; its full name.
    ZstdProto(&'static str),
    /// A JSON object, or nothing.
    Json,
    /// UTF-8 text.
    Text,
    /// A decimal number as text.
    Decimal,
    /// 8 bytes, big-endian, Unix nanoseconds.
    BigEndianNanos,
    /// No value: the key says it all.
    Empty,
    /// Not described; shown by size.
    Opaque,
}

/// A value decoded as `M`.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded<M> {
    /// The message. Unknown fields are gone from it: never write it back (law 1).
    Value(M),
    /// Deleted by RootCoord; treat the key as absent.
    Tombstone,
    /// Bytes that are not what the key promises. Becomes a visible row, not an error.
    Undecodable {
        /// Why, for the row.
        reason: String,
    },
}

impl<M> Decoded<M> {
    /// The message, when there is one.
    pub fn value(self) -> Option<M> {
        match self {
            Self::Value(m) => Some(m),
            _ => None,
        }
    }
}

/// Whether `value` under a key of `family` is a deletion.
#[must_use]
pub fn is_tombstone(family: Family, value: &[u8]) -> bool {
    value == TOMBSTONE && family.has_tombstones()
}

/// Decodes a protobuf value. `M` must be the message of [`Key::codec`].
#[must_use]
pub fn decode<M: Message + Default>(key: &Key, value: &[u8]) -> Decoded<M> {
    if is_tombstone(key.family(), value) {
        return Decoded::Tombstone;
    }
    let body = match unwrap(key.codec(), value) {
        Ok(body) => body,
        Err(reason) => return Decoded::Undecodable { reason },
    };
    match M::decode(&*body) {
        Ok(message) => Decoded::Value(message),
        Err(cause) => Decoded::Undecodable {
            reason: cause.to_string(),
        },
    }
}

/// The protobuf bytes inside a value: unpacked when the codec says zstd, as they are otherwise.
pub fn unwrap(codec: Codec, value: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let value = if value == TIKV_EMPTY { &[] } else { value };
    match codec {
        Codec::ZstdProto(_) => unpack(value).map(Cow::Owned),
        _ => Ok(Cow::Borrowed(value)),
    }
}

fn unpack(frame: &[u8]) -> Result<Vec<u8>, String> {
    let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(frame, WINDOW)
        .map_err(|cause| format!("not a zstd frame: {cause}"))?;
    let most = frame.len() as u64 * UNPACKED.0 + UNPACKED.1;
    let mut out = Vec::new();
    decoder
        .take(most + 1)
        .read_to_end(&mut out)
        .map_err(|cause| format!("a broken zstd frame: {cause}"))?;
    if out.len() as u64 > most {
        return Err(format!(
            "a zstd frame that unpacks to more than {most} bytes"
        ));
    }
    Ok(out)
}

/// A text value as a number: `session/id`, versions, `K/` excluded.
pub fn decimal(value: &[u8]) -> Result<i64, Error> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the value is not a decimal number")
                .with("value", String::from_utf8_lossy(value))
        })
}
