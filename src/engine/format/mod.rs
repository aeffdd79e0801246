//! Milvus's persisted formats: bytes to types and back. Pure: no I/O, no clock, no async.
//!
//! [`pb`] reads values and authors new ones. It drops fields it does not know, so an **existing** value is never
//! rewritten through it: that is [`wire`]'s work (law 1).

pub mod binlog;
pub mod broadcast;
pub mod codec;
pub mod decode;
pub mod json;
pub mod keys;
pub mod manifest;
pub mod mask;
pub mod paths;
pub mod pb;
pub mod position;
pub mod session;
pub mod snapshot;
pub mod time;
pub mod vchannel;
pub mod wire;
