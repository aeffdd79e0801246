//! What Falconer writes is Milvus's own format, end to end: a life of a root through the command line, then every key and value that
//! stands there is read again as a stranger's would be: by its key family, with Milvus's descriptors, member by member, and as a dump.
//! Nothing unknown, nothing undecodable, no member without a name, and the same bytes when it is written again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use falconer::engine::clock::SystemClock;
use falconer::engine::format::broadcast::message_type;
use falconer::engine::format::codec::{self, Codec};
use falconer::engine::format::json;
use falconer::engine::format::keys::{Family, Key, ParsedKey, Roots};
use falconer::engine::format::pb::streaming::BroadcastTask;
use falconer::engine::meta::embedded::EmbeddedReader;
use falconer::engine::meta::{KeyValue, MetaRead, Span};
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

/// A life: every verb that writes, in an order in which each has something to do.
const LIFE: &[&str] = &[
    "demo",
    "snapshot create analytics/books before --yes",
    "snapshot pin before --ttl 1h --owner me --yes",
    "restore start before analytics/books_copy --yes",
    "snapshot create analytics/books_copy again --yes",
    "snapshot drop again --confirm again",
    "collection create birds --field id:int64:pk --field v:float_vector:8 --shards 2 --yes",
    "collection create bees --field id:varchar:64:pk --field v:float_vector:8 --dynamic --yes",
    "partition create birds y2026 --yes",
    "partition create birds y2025 --yes",
    "index create birds v --type HNSW --metric L2 --param M=16 --yes",
    "index create bees v --type FLAT --metric IP --yes",
    "collection truncate birds --confirm birds",
    "partition drop birds y2025 --confirm y2025",
    "index drop birds v --yes",
    "collection drop analytics/books_copy --confirm books_copy",
    "collection drop bees --confirm bees",
    "gc run --confirm collect",
];

/// Key families that such a life fills.
const FAMILIES: usize = 20;

struct Home(tempfile::TempDir);

impl Home {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_falconer"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.0.path())
            .env("XDG_DATA_HOME", self.0.path())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{args:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }
}

/// Every key of the store that the program left.
async fn every(home: &Home) -> Vec<KeyValue> {
    let file = home.0.path().join("falconer/default/meta.redb");
    let reader = EmbeddedReader::open_file(&file, Arc::new(SystemClock::new())).unwrap();
    reader.range_all(&Span::all()).await.unwrap().kvs
}

/// Names of members that hold something without a name, at any depth.
fn nameless(at: &str, message: &DynamicMessage, out: &mut Vec<String>) {
    for field in message.unknown_fields() {
        out.push(format!("{at}: field {}", field.number()));
    }
    for (field, value) in message.fields() {
        let at = format!("{at}.{}", field.name());
        let values: Vec<&Value> = match value {
            Value::List(list) => list.iter().collect(),
            Value::Map(map) => map.values().collect(),
            one => vec![one],
        };
        for value in values {
            match value {
                Value::Message(inner) => nameless(&at, inner, out),
                Value::EnumNumber(number) => {
                    let kind = field.kind();
                    let known = kind
                        .as_enum()
                        .is_some_and(|e| e.get_value(*number).is_some());
                    if !known {
                        out.push(format!("{at}: no name for {number}"));
                    }
                }
                _ => {}
            }
        }
    }
}

/// What is wrong with one value, read as its key family says.
fn wrong(key: &Key, value: &[u8]) -> Vec<String> {
    if codec::is_tombstone(key.family(), value) {
        return Vec::new();
    }
    match key.codec() {
        Codec::Proto(name) => proto(name, value),
        Codec::ZstdProto(name) => match codec::unwrap(key.codec(), value) {
            Ok(bytes) => proto(name, &bytes),
            Err(e) => vec![e],
        },
        Codec::Json if value.is_empty() => Vec::new(),
        Codec::Json => match serde_json::from_slice::<serde_json::Map<_, _>>(value) {
            Ok(_) => Vec::new(),
            Err(e) => vec![e.to_string()],
        },
        Codec::Text | Codec::Decimal => match (std::str::from_utf8(value), key.codec()) {
            (Ok(text), Codec::Decimal) if text.parse::<u64>().is_err() => {
                vec![format!("{text:?} is not a number")]
            }
            (Ok(_), _) => Vec::new(),
            (Err(e), _) => vec![e.to_string()],
        },
        Codec::BigEndianNanos if value.len() != 8 => vec!["not eight bytes".into()],
        Codec::Empty if !value.is_empty() => vec!["not empty".into()],
        Codec::Opaque => vec!["a family that nobody describes".into()],
        Codec::BigEndianNanos | Codec::Empty => Vec::new(),
    }
}

/// What is wrong with the message inside a broadcast's record: its header, by its type, and its body.
fn wrong_message(value: &[u8]) -> Vec<String> {
    let task = BroadcastTask::decode(value).unwrap();
    let message = task.message.unwrap_or_default();
    let Some(Ok(kind)) = message_type(&message) else {
        return vec!["a message of no type".into()];
    };
    let header = message.properties.get("_h").map(|h| BASE64.decode(h));
    let Some(Ok(header)) = header else {
        return vec!["a message without a header".into()];
    };
    let kind = kind.as_str_name();
    let mut out = proto(
        &format!("milvus.proto.messages.{kind}MessageHeader"),
        &header,
    );
    let body = match kind {
        "CreateIndex" => Some("milvus.proto.messages.CreateIndexMessageBody".to_owned()),
        "CreateCollection" | "DropCollection" | "CreatePartition" | "DropPartition" => {
            Some(format!("milvus.proto.msg.{kind}Request"))
        }
        _ => None,
    };
    match body {
        Some(name) => out.extend(proto(&name, &message.payload)),
        None if message.payload.is_empty() => {}
        None => out.push(format!("a body that nobody describes, of {kind}")),
    }
    out
}

fn proto(name: &str, value: &[u8]) -> Vec<String> {
    match json::decode(name, value) {
        Ok(message) => {
            let mut out = Vec::new();
            nameless(name, &message, &mut out);
            if message.descriptor().full_name() != name {
                out.push("another message".into());
            }
            out
        }
        Err(e) => vec![e.to_string()],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_reads_as_a_milvus_wrote_it() {
    let home = Home(tempfile::tempdir().unwrap());
    for line in LIFE {
        let args: Vec<&str> = line.split(' ').collect();
        home.run(&args);
    }
    let roots = Roots::default();
    let kvs = every(&home).await;
    let (mut bad, mut families) = (Vec::new(), BTreeMap::new());
    for kv in &kvs {
        let text = kv.key.text();
        if text.starts_with("falconer/by-dev/") {
            continue;
        }
        match Key::parse(&roots, &kv.key.0) {
            ParsedKey::Known(key) => {
                *families.entry(key.family()).or_insert(0) += 1;
                let mut found = wrong(&key, &kv.value);
                if key.family() == Family::BroadcastTask {
                    found.extend(wrong_message(&kv.value));
                }
                bad.extend(found.into_iter().map(|why| format!("{text}: {why}")));
            }
            ParsedKey::Unknown => bad.push(format!("{text}: of no family")),
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(families.len() >= FAMILIES, "{families:?}");

    // The same as a dump, through the reader that is used for strangers' clusters.
    let mut dump = String::new();
    for kv in &kvs {
        let line = serde_json::json!({
            "key_b64": BASE64.encode(&kv.key.0),
            "value_b64": BASE64.encode(&kv.value),
            "mod_revision": kv.mod_rev.0,
        });
        writeln!(dump, "{line}").unwrap();
    }
    let file = home.0.path().join("dump.jsonl");
    std::fs::write(&file, dump).unwrap();
    let of = |kind: &str| -> Vec<serde_json::Value> {
        let args = ["--dump", file.to_str().unwrap(), "get", kind, "-o", "json"];
        let all: serde_json::Value = serde_json::from_str(&home.run(&args)).unwrap();
        all["items"].as_array().unwrap().clone()
    };
    assert_eq!(of("undecodable"), Vec::<serde_json::Value>::new());
    for kind in [
        "collections",
        "segments",
        "channels",
        "snapshots",
        "indexes",
    ] {
        assert!(!of(kind).is_empty(), "{kind}");
    }
}
