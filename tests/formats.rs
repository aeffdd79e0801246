//! The format room against a real Milvus 2.3.5 keyspace and bucket, and against generated input.

#[path = "formats/keys.rs"]
mod keys;
#[path = "formats/lab.rs"]
mod lab;
#[path = "formats/lossless.rs"]
mod lossless;
#[path = "formats/paths.rs"]
mod paths;
#[path = "formats/values.rs"]
mod values;
