//! Structs generated from `assets/proto`, one module per protobuf package, and the descriptors of the same files.
//!
//! Decoding with these structs **drops unknown fields**. Use them to read, and to author a value that did not exist
//! before; rewrite existing values with [`wire`](super::wire) (law 1).

#![allow(clippy::all, clippy::pedantic, missing_docs)]

mod generated {
    include!(concat!(env!("OUT_DIR"), "/milvus.rs"));
}

pub use generated::milvus::proto::*;

/// Serialized `google.protobuf.FileDescriptorSet` of every file in `assets/proto`.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/milvus.fds"));
