//! Compiles `assets/proto/*.proto` into Rust structs and one file descriptor set.
//!
//! The structs give typed reading; the descriptor set, embedded in the binary, gives generic decoding and protojson.
//! `PROTOC` comes from `.cargo/config.toml` (a shim that finds the vendored compiler).

use std::{env, io, path::PathBuf};

const PACKAGES: [&str; 12] = [
    "common",
    "data",
    "etcd",
    "index",
    "internal",
    "messages",
    "milvus",
    "msg",
    "query",
    "rg",
    "schema",
    "streaming",
];

fn main() -> io::Result<()> {
    let root = PathBuf::from("assets/proto");
    let files: Vec<PathBuf> = PACKAGES
        .iter()
        .map(|name| root.join(format!("{name}.proto")))
        .collect();
    let out = PathBuf::from(
        env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?,
    );

    println!("cargo::rerun-if-changed=assets/proto");
    println!("cargo::rerun-if-env-changed=PROTOC");
    prost_build::Config::new()
        // Ordered maps: the same value always encodes to the same bytes.
        .btree_map(["."])
        .file_descriptor_set_path(out.join("milvus.fds"))
        .include_file("milvus.rs")
        .compile_protos(&files, &[root])
}
