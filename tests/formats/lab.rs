//! The lab's files: a whole etcd keyspace and the listing of its bucket.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine as _;
use falconer::engine::format::keys::{Key, ParsedKey, Roots};
use flate2::read::GzDecoder;

pub struct Entry {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

pub struct Object {
    pub key: String,
    pub size: u64,
}

fn lines(name: &str) -> Vec<serde_json::Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/lab")
        .join(name);
    let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    BufReader::new(GzDecoder::new(file))
        .lines()
        .map(|l| serde_json::from_str(&l.unwrap()).unwrap())
        .collect()
}

pub static ETCD: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let bytes = |v: &serde_json::Value| {
        base64::engine::general_purpose::STANDARD
            .decode(v.as_str().unwrap())
            .unwrap()
    };
    let all: Vec<Entry> = lines("etcd.jsonl.gz")
        .iter()
        .map(|l| Entry {
            key: bytes(&l["key_b64"]),
            value: bytes(&l["value_b64"]),
        })
        .collect();
    assert_eq!(all.len(), 1710, "the lab's keyspace");
    all
});

pub static BUCKET: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let all: Vec<Object> = lines("bucket.jsonl.gz")
        .iter()
        .map(|l| Object {
            key: l["key"].as_str().unwrap().to_owned(),
            size: l["size"].as_u64().unwrap(),
        })
        .collect();
    assert_eq!(all.len(), 1301, "the lab's bucket");
    all
});

/// Every lab entry with its key parsed; a key that is not known fails the test.
pub fn known() -> Vec<(Key, &'static Entry)> {
    let roots = Roots::default();
    ETCD.iter()
        .map(|e| match Key::parse(&roots, &e.key) {
            ParsedKey::Known(key) => (key, e),
            ParsedKey::Unknown => panic!("unknown key {}", String::from_utf8_lossy(&e.key)),
        })
        .collect()
}
