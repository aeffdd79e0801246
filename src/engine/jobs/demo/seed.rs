//! The seed in `assets/demo.tar.gz`: five small collections of a real Milvus 2.3.5, keys and objects (`tools/make-demo-seed`).

use std::io::Read;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Key, Roots};

const ARCHIVE: &[u8] = include_bytes!("../../../../assets/demo.tar.gz");
const KEYS: &str = "etcd.jsonl";
/// First part of the objects' keys in the archive.
pub const OBJECT_ROOT: &str = "files";

/// What the archive holds.
#[derive(Debug, Default)]
pub struct Seed {
    /// Keys with their values, in key order.
    pub keys: Vec<(Key, Vec<u8>)>,
    /// Objects by key, in key order.
    pub objects: Vec<(String, Bytes)>,
}

#[derive(Deserialize)]
struct Line {
    key: String,
    value_b64: String,
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the built-in seed of the demo is damaged: {why}"),
    )
}

/// Unpacks it; a few milliseconds.
pub fn read() -> Result<Seed> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(ARCHIVE));
    let mut seed = Seed::default();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        if name == KEYS {
            seed.keys = keys(&bytes)?;
        } else {
            seed.objects.push((name, Bytes::from(bytes)));
        }
    }
    if seed.keys.is_empty() || seed.objects.is_empty() {
        return Err(damaged("keys or objects are missing"));
    }
    Ok(seed)
}

fn keys(bytes: &[u8]) -> Result<Vec<(Key, Vec<u8>)>> {
    let roots = Roots::default();
    let text = std::str::from_utf8(bytes).map_err(damaged)?;
    text.lines()
        .map(|line| {
            let line: Line = serde_json::from_str(line).map_err(damaged)?;
            let key = Key::parse(&roots, line.key.as_bytes())
                .known()
                .ok_or_else(|| damaged(format!("key {} is of no known family", line.key)))?;
            let value = BASE64_STANDARD.decode(line.value_b64).map_err(damaged)?;
            Ok((key, value))
        })
        .collect()
}
