//! Milvus's persisted formats: bytes to types and back. Pure: no I/O, no clock, no async.
//!
//! [`pb`] reads values and authors new ones. It drops fields it does not know, so an **existing** value is never
//! rewritten through it: that is [`wire`]'s work (law 1).

pub mod binlog;
pub mod broadcast;
pub mod bundle;
pub mod codec;
pub mod decode;
pub mod fingerprint;
pub mod json;
pub mod keys;
pub mod manifest;
pub mod mask;
pub mod message;
pub mod parquet;
pub mod paths;
pub mod pb;
pub mod position;
pub mod rows;
pub mod session;
pub mod snapshot;
pub mod time;
pub mod vchannel;
pub mod wire;

/// Hexadecimal, lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
            // Writing into a string cannot fail.
            let _ = write!(s, "{b:02x}");
            s
        })
}
