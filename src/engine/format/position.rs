//! Positions in the write-ahead log (`spec/layout.md` §3.5, §3.7).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::pb::common::WalName;
use super::pb::msg::MsgPosition;
use crate::engine::ids::Tso;

/// Whether this is the mark of a dropped channel. It is sticky: nothing may overwrite it, and nobody may seek to it.
#[must_use]
pub fn is_dropped(position: &MsgPosition) -> bool {
    Tso(position.timestamp).is_dropped()
}

/// A message id for the eye: a number for RocksMQ and Kafka, base64 for the others. A position without a WAL name (before
/// 2.6) of 8 bytes is one of the first two; ask the cluster's `mq.type` to be sure.
#[must_use]
pub fn message_id(position: &MsgPosition) -> String {
    let bytes = position.msg_id.as_slice();
    match (position.wal_name(), <[u8; 8]>::try_from(bytes)) {
        (WalName::RocksMq | WalName::Kafka | WalName::Unknown, Ok(raw)) => {
            i64::from_le_bytes(raw).to_string()
        }
        _ if bytes.is_empty() => String::new(),
        _ => BASE64.encode(bytes),
    }
}
