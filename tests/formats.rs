//! The format room against a real Milvus 2.3.5 keyspace and bucket, and against generated input.

// Avro and protobuf write unsigned numbers as signed ones on purpose; `c p s f` are the layout's own letters.
#![allow(clippy::cast_possible_wrap, clippy::many_single_char_names)]

#[path = "formats/avro.rs"]
mod avro;
#[path = "formats/keys.rs"]
mod keys;
#[path = "formats/lab.rs"]
mod lab;
#[path = "formats/lossless.rs"]
mod lossless;
#[path = "formats/manifest.rs"]
mod manifest;
#[path = "formats/objects.rs"]
mod objects;
#[path = "formats/paths.rs"]
mod paths;
#[path = "formats/snapshot.rs"]
mod snapshot;
#[path = "formats/values.rs"]
mod values;
