//! The captured cluster in `tests/lab/`: a real Milvus 2.3.5 with two databases, its whole etcd keyspace and all
//! its objects. Etcd root `by-dev`, bucket `a-bucket`, object root `files`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;

/// Root of every key that Milvus wrote.
pub const ROOT: &str = "by-dev";
/// Bucket that the objects came from.
pub const BUCKET: &str = "a-bucket";
/// First part of every object's key.
pub const OBJECT_ROOT: &str = "files";

/// One key of the captured keyspace, as etcd answered it.
#[derive(Clone, Debug)]
pub struct LabKey {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    /// 0 = no lease. Only sessions have one, and a dump that is loaded again loses it.
    pub lease: i64,
}

impl LabKey {
    /// True for what a live coordinator or node registers; `session/id` is a counter, not a session.
    pub fn is_session(&self) -> bool {
        self.key.starts_with(b"by-dev/meta/session/") && self.key != b"by-dev/meta/session/id"
    }
}

/// One object of the captured listing.
#[derive(Clone, Debug, Deserialize)]
pub struct LabObject {
    pub key: String,
    /// Bytes.
    pub size: u64,
    pub etag: String,
    /// RFC 3339.
    pub last_modified: String,
}

/// Path of a file in `tests/lab/`, for what is handed to a program under test.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/lab")
        .join(name)
}

fn open(name: &str) -> GzDecoder<File> {
    let path = path(name);
    match File::open(&path) {
        Ok(file) => GzDecoder::new(file),
        Err(e) => panic!(
            "{}: {e}: the captured cluster is part of the repository: check it out again",
            path.display()
        ),
    }
}

fn lines(name: &str) -> impl Iterator<Item = String> {
    BufReader::new(open(name))
        .lines()
        .map(move |line| line.unwrap_or_else(|e| panic!("tests/lab/{name}: {e}")))
}

#[derive(Deserialize)]
struct EtcdLine {
    key_b64: String,
    value_b64: String,
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    lease: i64,
}

/// The whole keyspace in key order, sessions included.
pub fn etcd() -> Vec<LabKey> {
    static KEYS: OnceLock<Vec<LabKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        lines("etcd.jsonl.gz")
            .map(|line| {
                let l: EtcdLine = serde_json::from_str(&line).expect("a line of the etcd dump");
                LabKey {
                    key: BASE64_STANDARD.decode(l.key_b64).expect("key_b64"),
                    value: BASE64_STANDARD.decode(l.value_b64).expect("value_b64"),
                    create_revision: l.create_revision,
                    mod_revision: l.mod_revision,
                    version: l.version,
                    lease: l.lease,
                }
            })
            .collect()
    })
    .clone()
}

/// The keyspace as an operator finds it when every coordinator is down and its lease has run out. With the
/// sessions loaded, the fence rightly refuses every write.
pub fn etcd_without_sessions() -> Vec<LabKey> {
    let mut keys = etcd();
    keys.retain(|k| !k.is_session());
    keys
}

/// Every object with its bytes, by key (`files/…`). Unpacked once a test binary, 17 MB.
pub fn objects() -> &'static [(String, Bytes)] {
    static OBJECTS: OnceLock<Vec<(String, Bytes)>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let mut archive = tar::Archive::new(open("objects.tar.gz"));
        let mut objects = Vec::new();
        for entry in archive.entries().expect("tests/lab/objects.tar.gz") {
            let mut entry = entry.expect("an entry of objects.tar.gz");
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = entry.path().expect("a path").into_owned();
            let name = name.to_str().expect("object keys are UTF-8");
            let key = name.trim_start_matches("./").to_owned();
            let mut bytes = Vec::new();
            entry
                .read_to_end(&mut bytes)
                .expect("the bytes of an object");
            objects.push((key, Bytes::from(bytes)));
        }
        objects.sort_by(|a, b| a.0.cmp(&b.0));
        objects
    })
}

/// The bucket's listing as the server gave it, with sizes and etags.
pub fn listing() -> Vec<LabObject> {
    lines("bucket.jsonl.gz")
        .map(|line| serde_json::from_str(&line).expect("a line of the bucket listing"))
        .collect()
}

/// What the server itself said of its databases, collections, segments and indexes just before the capture.
pub fn truth() -> Value {
    serde_json::from_reader(open("truth.json.gz")).expect("tests/lab/truth.json.gz")
}
