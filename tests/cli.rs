//! The command line as a person and a script meet it: help, tables, JSON, exit codes, one line for each error, and the whole main
//! job on an embedded store and a local folder, a killed process in the middle of it included.
//!
//! Texts are compared with the files in `tests/cli/`; `SNAPSHOTS=overwrite cargo test --test cli` writes them anew.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use snapbox::{Data, assert_data_eq};

const KINDS: [&str; 16] = [
    "databases",
    "collections",
    "partitions",
    "segments",
    "channels",
    "indexes",
    "segment-indexes",
    "snapshots",
    "jobs",
    "tasks",
    "sessions",
    "aliases",
    "replicas",
    "config",
    "undecodable",
    "keys",
];
const FORMATS: [&str; 5] = ["table", "wide", "json", "yaml", "jsonl"];

/// A home of its own: no configuration, no environment of whoever runs the tests.
struct Home(tempfile::TempDir);

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_falconer"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.0.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env("COLUMNS", "100")
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        said(self.command(args).output().expect("the binary runs"))
    }

    /// On the captured keyspace.
    fn dump(&self, args: &[&str]) -> Said {
        let dump = lab();
        let mut all = vec!["--dump", dump.to_str().unwrap()];
        all.extend(args);
        self.run(&all)
    }

    fn json(&self, args: &[&str]) -> Value {
        let said = self.run(args);
        assert_eq!(said.code, Some(0), "{args:?}: {}{}", said.out, said.err);
        serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", said.out))
    }
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

fn lab() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/etcd.jsonl.gz")
}

fn saved(name: &str) -> Data {
    Data::read_from(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/cli")
            .join(name),
        None,
    )
}

/// Exit code, one line that names `parts`, nothing on standard output.
fn refused(said: &Said, code: i32, parts: &[&str]) {
    assert_eq!(said.code, Some(code), "{}{}", said.out, said.err);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(said.err.starts_with("falconer: "), "{}", said.err);
    for part in parts {
        assert!(said.err.contains(part), "{part:?} is not in: {}", said.err);
    }
}

#[test]
fn help_of_every_command() {
    let home = Home::new();
    let mut all = String::new();
    for command in [
        "",
        "get",
        "describe",
        "collection",
        "collection create",
        "collection drop",
        "collection truncate",
        "partition",
        "partition create",
        "partition drop",
        "index",
        "index create",
        "index drop",
        "snapshot",
        "snapshot create",
        "snapshot list",
        "snapshot describe",
        "snapshot verify",
        "snapshot pins",
        "snapshot pin",
        "snapshot unpin",
        "snapshot drop",
        "restore",
        "restore start",
        "restore watch",
        "restore list",
        "restore retry",
        "restore cancel",
        "export",
        "export start",
        "export list",
        "export cancel",
        "gc",
        "gc plan",
        "gc run",
        "gc orphans",
        "gc orphans plan",
        "gc orphans run",
        "gc pause",
        "gc resume",
        "gc tickets",
        "quarantine",
        "quarantine list",
        "quarantine restore",
        "quarantine purge",
        "doctor",
        "demo",
        "init",
        "config",
        "completions",
    ] {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("-h");
        let said = home.run(&args);
        assert_eq!(said.code, Some(0), "{command}: {}", said.err);
        assert_eq!(said.err, "");
        // The flags that every command shares are shown once, with the first.
        let own = match said.out.find("\nCluster:") {
            Some(at) if !command.is_empty() => &said.out[..at],
            _ => &said.out,
        };
        writeln!(all, "$ falconer {command} -h\n{}\n", own.trim_end()).unwrap();
    }
    assert_data_eq!(all, saved("help.txt"));
}

#[test]
fn every_kind_in_every_format() {
    let home = Home::new();
    for kind in KINDS {
        let mut counts = Vec::new();
        for format in FORMATS {
            let said = home.dump(&["get", kind, "-o", format]);
            assert_eq!(said.code, Some(0), "{kind} {format}: {}", said.err);
            assert_eq!(said.err, "", "{kind} {format}");
            counts.push(match format {
                "json" => {
                    let all: Value = serde_json::from_str(&said.out).expect(kind);
                    assert_eq!(all["kind"], kind);
                    assert!(all["revision"].is_i64(), "{all}");
                    all["items"].as_array().expect(kind).len()
                }
                "jsonl" => said
                    .out
                    .lines()
                    .map(|l| serde_json::from_str::<Value>(l).expect(kind))
                    .filter(Value::is_object)
                    .count(),
                "yaml" => {
                    assert!(
                        said.out.starts_with(&format!("kind: {kind}\n")),
                        "{}",
                        said.out
                    );
                    continue;
                }
                _ => {
                    let heads = said.out.lines().next().expect("a head line");
                    assert_eq!(heads, heads.to_uppercase());
                    said.out.lines().count() - 1
                }
            });
        }
        assert!(
            counts.windows(2).all(|w| w[0] == w[1]),
            "{kind}: {counts:?}"
        );
        let empty = ["snapshots", "jobs", "undecodable", "config"].contains(&kind);
        assert_eq!(counts[0] == 0, empty, "{kind}: {counts:?}");
    }
}

#[test]
fn tables_of_the_captured_cluster() {
    let home = Home::new();
    let said = home.dump(&["get", "databases"]);
    assert_data_eq!(said.out, saved("databases.txt"));
    let sorted = home
        .dump(&["get", "collections", "-s", "-rows", "-o", "jsonl"])
        .out;
    let rows: Vec<i64> = sorted
        .lines()
        .map(|l| {
            serde_json::from_str::<Value>(l).unwrap()["rows"]
                .as_i64()
                .unwrap()
        })
        .collect();
    assert!(
        rows.len() > 5 && rows.is_sorted_by(|a, b| a >= b),
        "{rows:?}"
    );
    let said = home.dump(&["get", "partitions", "-c", "analytics/books", "-o", "jsonl"]);
    assert_data_eq!(said.out, saved("partitions.jsonl"));
    let all = home.dump(&["get", "collections"]).out;
    let some = home.dump(&["get", "collections", "-f", "analytics"]).out;
    let rest = home.dump(&["get", "collections", "-f", "!analytics"]).out;
    let count = |text: &str| text.lines().count() - 1;
    assert!(count(&some) > 0 && count(&rest) > 0);
    assert_eq!(count(&all), count(&some) + count(&rest));
}

/// A script that reads ids must never lose a digit of one, and must find tomorrow what it found today.
#[test]
fn the_shape_of_json_is_stable() {
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), shape(v))).collect(),
            Value::Array(items) => Value::Array(items.first().map(shape).into_iter().collect()),
            Value::String(text) if text.len() > 15 && text.bytes().all(|b| b.is_ascii_digit()) => {
                "id".into()
            }
            Value::String(_) => "text".into(),
            Value::Number(n) => {
                assert!(
                    n.as_f64().unwrap().abs() < 9e15,
                    "{n} is not exact in every reader"
                );
                "number".into()
            }
            Value::Bool(_) => "bool".into(),
            Value::Null => Value::Null,
        }
    }
    let home = Home::new();
    let mut all = String::new();
    for kind in [
        "databases",
        "collections",
        "partitions",
        "segments",
        "channels",
        "indexes",
        "sessions",
    ] {
        let said = home.dump(&["get", kind, "-o", "json"]);
        let value: Value = serde_json::from_str(&said.out).expect(kind);
        all.push_str(&serde_json::to_string_pretty(&shape(&value)).unwrap());
        all.push('\n');
    }
    assert_data_eq!(all, saved("shapes.json").raw());
}

#[test]
fn describe_shows_fields_keys_and_values() {
    let home = Home::new();
    let said = home.dump(&["describe", "collection", "analytics/books"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    for part in [
        "Keys",
        "root-coord/database/collection-info",
        "VarChar max_length=200",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let said = home.dump(&["describe", "collections", "an_books", "-o", "json"]);
    let value: Value = serde_json::from_str(&said.out).expect("JSON");
    let keys = value["keys"].as_array().unwrap();
    assert!(keys.len() > 5);
    assert!(
        keys.iter()
            .all(|k| k["mod_revision"].is_i64() && k["value"].is_object()),
        "{keys:?}"
    );
}

#[test]
fn exit_codes() {
    let home = Home::new();
    let said = home.run(&["--no-such-flag"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    refused(
        &home.dump(&["get", "nonsense"]),
        2,
        &["nonsense", "use one of databases"],
    );
    refused(
        &home.dump(&["get", "segments", "-s", "nonsense"]),
        2,
        &["nonsense", "sort by one of"],
    );
    refused(
        &home.dump(&["describe", "collection", "nobody"]),
        3,
        &["nobody", "falconer get collections"],
    );
    refused(
        &home.dump(&["snapshot", "describe", "nobody"]),
        3,
        &["nobody"],
    );
    let ambiguous = home.dump(&["describe", "partition", "_default"]);
    refused(
        &ambiguous,
        2,
        &[
            "_default",
            "analytics/books/_default",
            "the whole path or the id",
        ],
    );

    let missing = home.path("missing.jsonl");
    refused(
        &home.run(&["--dump", missing.to_str().unwrap(), "get", "keys"]),
        3,
        &["missing.jsonl"],
    );
    let broken = home.path("broken.jsonl");
    let good = r#"{"key_b64":"YnktZGV2L21ldGEveA==","value_b64":"","mod_revision":7}"#;
    std::fs::write(&broken, format!("{good}\n{good}\nnot JSON\n")).unwrap();
    refused(
        &home.run(&["--dump", broken.to_str().unwrap(), "get", "keys"]),
        7,
        &["line 3", "broken.jsonl"],
    );

    // A port that was free a moment ago: nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let begun = now();
    let said = home.run(&["--etcd", &format!("http://{free}"), "get", "collections"]);
    let took = begun.elapsed();
    refused(&said, 5, &[&free.to_string()]);
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_dump_is_never_written() {
    let home = Home::new();
    for verb in [
        &["snapshot", "create", "analytics/books", "x"][..],
        &["snapshot", "drop", "x"],
        &["restore", "start", "x", "y"],
        &["gc", "run"],
        &["demo"],
    ] {
        refused(&home.dump(verb), 4, &["a dump is read-only", "--write"]);
    }
    // A plan writes nothing, but what it says lies in the bucket too.
    let plan = ["snapshot", "create", "analytics/books", "x", "--plan"];
    refused(&home.dump(&plan), 9, &["without a bucket", "--bucket"]);
    refused(&home.dump(&["gc", "plan"]), 9, &["without a bucket"]);
    refused(&home.dump(&["restore", "watch", "1"]), 3, &["no job 1"]);
}

#[test]
fn completions_for_three_shells() {
    let home = Home::new();
    for (shell, sign) in [
        ("bash", "_falconer()"),
        ("zsh", "#compdef falconer"),
        ("fish", "complete -c falconer"),
    ] {
        let said = home.run(&["completions", shell]);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
        assert!(
            said.out.contains(sign) && said.out.contains("snapshot"),
            "{shell}"
        );
    }
    assert_eq!(home.run(&["completions", "nosuch"]).code, Some(2));
}

#[test]
fn config_says_where_a_value_comes_from_and_no_secret() {
    let home = Home::new();
    let secret = "Quite-Secret-9Z";
    for format in FORMATS {
        let output = home
            .command(&[
                "--etcd",
                "http://127.0.0.1:1",
                "--etcd-user",
                "root",
                "--bucket",
                "s3://b/files",
                "--s3-endpoint",
                "http://127.0.0.1:2",
                "--access-key",
                "someone",
                "config",
                "-o",
                format,
            ])
            .env("FALCONER_ETCD_PASSWORD", secret)
            .env("FALCONER_SECRET_KEY", secret)
            .output()
            .unwrap();
        let said = said(output);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(
            !said.out.contains(secret) && !said.err.contains(secret),
            "{}",
            said.out
        );
        for part in ["etcd.endpoints", "http://127.0.0.1:1", "--etcd"] {
            assert!(said.out.contains(part), "{format}: {part}: {}", said.out);
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = Home::new();
    let dump = lab();
    let mut child = home
        .command(&[
            "--dump",
            dump.to_str().unwrap(),
            "get",
            "keys",
            "-o",
            "wide",
        ])
        .spawn()
        .unwrap();
    let mut one = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut one).unwrap();
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), err.as_str()), (Some(0), ""));
}

/// `restore watch` that says nothing more than `-o jsonl` does; killed by its own handle.
fn watch(home: &Home, job: &str) -> Child {
    home.command(&["restore", "watch", job, "-o", "jsonl"])
        .spawn()
        .unwrap()
}

#[allow(
    clippy::disallowed_methods,
    reason = "how long a program may take is measured in real time"
)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn count(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { count(&path) } else { 1 })
        .sum()
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return out;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap_or_default();
            out.push((path, bytes));
        }
    }
    out.sort();
    out
}

/// Rows, log files and bytes of a collection's segments, as far as a restore keeps them.
fn contents(home: &Home, collection: &str) -> Vec<String> {
    let all = home.json(&["get", "segments", "-c", collection, "-o", "json"]);
    let mut out: Vec<String> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s["state"] != "Growing" && s["state"] != "Dropped")
        .map(|s| {
            format!(
                "{} {} {} {} {}",
                s["level"], s["rows"], s["size"], s["deletes"], s["files"]
            )
        })
        .collect();
    out.sort();
    out
}

/// The snapshot `mine` is pinned, cannot be dropped, is verified, and is free again.
fn pinned_verified_and_unpinned(home: &Home) {
    let pin = ["snapshot", "pin", "mine", "--ttl", "2h", "--owner", "anna"];
    let said = home.run(&[&pin[..], &["--reason", "audit"]].concat());
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    for wrong in ["31d", "", "soon"] {
        let said = home.run(&["snapshot", "pin", "mine", "--owner", "b", "--ttl", wrong]);
        assert_ne!(said.code, Some(0), "{wrong}: {}", said.out);
    }
    let drop = home.run(&["snapshot", "drop", "mine", "--confirm", "mine"]);
    assert_eq!(drop.code, Some(4), "{}", drop.out);
    assert!(drop.err.contains("of anna, 1h59m left"), "{}", drop.err);
    let list = home.run(&["snapshot", "pins"]);
    assert!(list.out.contains("anna") && list.out.contains("audit"));
    let left = list.out.lines().find(|l| l.contains("anna")).unwrap();
    assert!(
        left.contains("  1h59m ") && !left.contains(" left"),
        "{left}"
    );
    let pins = home.json(&["snapshot", "pins", "mine", "-o", "json"]);
    assert_eq!(pins["items"].as_array().unwrap().len(), 1, "{pins}");
    let id = pins["items"][0]["id"].as_str().unwrap();
    let verified = home.run(&["snapshot", "verify", "mine", "--deep"]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.out, verified.err);
    assert!(verified.out.contains("all there"), "{}", verified.out);
    let looked = home.run(&["--read-only", "snapshot", "verify", "mine"]);
    assert_eq!(looked.code, Some(0), "{}{}", looked.out, looked.err);
    assert!(looked.err.contains("not kept"), "{}", looked.err);
    let told = home.json(&["snapshot", "describe", "mine", "-o", "json"]);
    assert_eq!(told["verified"]["deep"], true, "{told}");
    assert_eq!(told["pins"][0]["owner"], "anna");
    assert!(told["state_since"].as_str().is_some());
    let frees = &told["files"]["dropping_frees"];
    assert!(frees["at_once"]["bytes"].as_u64() > Some(0), "{told}");
    assert!(frees["kept_by_live_segments"]["bytes"].as_u64() > Some(0));
    let said = home.run(&["snapshot", "unpin", "mine", id]);
    assert_eq!(said.code, Some(2), "wants a yes: {}", said.err);
    let said = home.run(&["snapshot", "unpin", "mine", id, "--yes"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let pins = home.json(&["snapshot", "pins", "mine", "-o", "json"]);
    assert_eq!(pins["items"], serde_json::json!([]));
}

#[test]
fn the_main_job_from_demo_to_collection() {
    let home = Home::new();
    let said = home.run(&["demo"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    for part in [
        "2 databases, 4 collections",
        "falconer get channels",
        "the next start resumes it",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let again = home.run(&["demo"]);
    assert_eq!(again.code, Some(4));
    assert!(
        again
            .err
            .lines()
            .last()
            .unwrap()
            .contains("the store is empty"),
        "{}",
        again.err
    );

    // The demo's restore was left behind by its process. It is held back, so it is there to be killed in the middle.
    let jobs = home.json(&["restore", "list", "-o", "json"]);
    let ours = jobs["jobs"].as_array().unwrap();
    assert_eq!(ours.len(), 1, "{jobs}");
    let job = ours[0]["id"]
        .as_str()
        .expect("an id is a string")
        .to_owned();
    let bucket = home.path("data/falconer/default/bucket/files/insert_log");
    let before = files(&bucket);
    assert!(before.len() > 100, "{}", before.len());
    let mut child = watch(&home, &job);
    let begun = now();
    while count(&bucket) == before.len() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the restore ended before it copied anything"
        );
        assert!(
            begun.elapsed() < Duration::from_mins(2),
            "nothing was copied"
        );
        std::thread::yield_now();
    }
    // Who holds the file is named, with the one thing that can be done about it.
    let held = home.run(&["snapshot", "create", "images", "never"]);
    let pid = format!("pid={}", child.id());
    refused(
        &held,
        4,
        &[&pid, "; give the order to that process, or end it"],
    );
    for other in ["attach", "--write"] {
        assert!(!held.err.contains(other), "a second fix: {}", held.err);
    }
    child.kill().unwrap();
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    child.wait().unwrap();
    assert!(err.contains("resumed: the process that ran it"), "{err}");
    let half = home.json(&["get", "collections", "-o", "json"]);
    assert_eq!(
        half["items"].as_array().unwrap().len(),
        4,
        "half a restore is never visible"
    );

    let said = home.run(&["restore", "watch", &job, "--rate", "0"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert!(
        said.err.contains("resumed: the process that ran it"),
        "{}",
        said.err
    );
    assert!(said.out.contains("Verified"), "{}", said.out);
    for (path, bytes) in &before {
        assert_eq!(
            &std::fs::read(path).unwrap(),
            bytes,
            "{} is a source",
            path.display()
        );
    }

    // create → list → describe → restore → compare → drop → collect
    let said = home.run(&[
        "snapshot",
        "create",
        "images",
        "mine",
        "--description",
        "by hand",
    ]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let taken = home.run(&["snapshot", "create", "images", "mine"]);
    assert_eq!(taken.code, Some(4), "{}{}", taken.out, taken.err);
    let list = home.json(&["snapshot", "list", "images", "-o", "json"]);
    let names: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|s| s["name"].as_str())
        .collect();
    assert!(
        names.contains(&"mine") && names.contains(&"last_week"),
        "{names:?}"
    );
    let told = home.run(&["snapshot", "describe", "mine"]);
    assert_eq!(told.code, Some(0), "{}", told.err);
    assert!(told.out.contains("by hand"), "{}", told.out);
    pinned_verified_and_unpinned(&home);
    let plan = home.json(&[
        "restore",
        "start",
        "mine",
        "analytics/images_2",
        "--plan",
        "-o",
        "json",
    ]);
    assert!(
        plan["hash"].as_str().is_some_and(|h| h.len() == 64),
        "{plan}"
    );
    let said = home.run(&[
        "restore",
        "start",
        "mine",
        "analytics/images_2",
        "--rate",
        "64MiB",
    ]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let copy = contents(&home, "analytics/images_2");
    assert!(!copy.is_empty());
    assert_eq!(copy, contents(&home, "images"));
    let exists = home.run(&["restore", "start", "mine", "analytics/images_2"]);
    assert_eq!(exists.code, Some(4), "{}{}", exists.out, exists.err);

    // The name has to be typed: --yes is not enough, and a wrong word is worse.
    for wrong in [
        &["snapshot", "drop", "mine"][..],
        &["snapshot", "drop", "mine", "--yes"],
    ] {
        refused(
            &home.run(wrong),
            2,
            &["needs a confirmation", "--confirm mine"],
        );
    }
    refused(
        &home.run(&["snapshot", "drop", "mine", "--confirm", "yours"]),
        2,
        &["not confirmed"],
    );
    let said = home.run(&["snapshot", "drop", "mine", "--confirm", "mine"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert_eq!(home.run(&["snapshot", "describe", "mine"]).code, Some(3));

    let plan = home.run(&["gc", "plan"]);
    assert_eq!(plan.code, Some(0), "{}{}", plan.out, plan.err);
    let sources = contents(&home, "images");
    let said = home.run(&["gc", "run", "--confirm", "collect"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert_eq!(contents(&home, "images"), sources);
    assert_eq!(contents(&home, "analytics/images_2"), copy);
    let doctor = home.run(&["doctor", "--deep", "-o", "json"]);
    let report: Value = serde_json::from_str(&doctor.out).expect("JSON");
    assert!(
        report["checks"].as_array().is_some_and(|c| !c.is_empty()),
        "{report}"
    );
}

/// Defects D5 and D56: one contract for lists; counts, bytes, ages and what is protected are told.
#[test]
fn snapshots_are_listed_counted_and_dated() {
    let home = Home::new();
    let said = home.run(&["demo"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let list = |args: &[&str]| -> Vec<Value> {
        let all = home.json(&[args, &["-o", "json"]].concat());
        all["items"].as_array().unwrap().clone()
    };
    let all = list(&["snapshot", "list"]);
    let ids =
        |rows: &[Value]| -> Vec<String> { rows.iter().map(|r| r["id"].to_string()).collect() };
    assert_eq!(
        ids(&all),
        ids(&list(&["get", "snapshots"])),
        "everything, both ways"
    );
    let mut by_collection = std::collections::BTreeMap::<String, usize>::new();
    for row in &all {
        let of = row["collection"].as_str().unwrap().to_owned();
        *by_collection.entry(of).or_default() += 1;
    }
    assert!(all.len() >= 3 && by_collection.len() >= 2, "{all:?}");
    for (collection, many) in &by_collection {
        let narrowed = list(&["snapshot", "list", collection]);
        assert_eq!(narrowed.len(), *many, "{collection}");
        assert!(
            narrowed
                .iter()
                .all(|row| row["collection"] == collection.as_str())
        );
    }
    // A collection that is not there is an error, and so is one without a name: neither is everything.
    for wrong in ["nowhere", ""] {
        let said = home.run(&["snapshot", "list", wrong]);
        assert_eq!(said.code, Some(3), "{wrong:?}: {}{}", said.out, said.err);
    }
    let committed = all.iter().find(|row| row["state"] == "Committed").unwrap();
    let name = committed["name"].as_str().unwrap();
    let of = committed["collection"].as_str().unwrap();
    let full = format!("{of}/{name}");
    let told = home.json(&["snapshot", "describe", &full, "-o", "json"]);
    let number = |at: &str| {
        let found = told
            .pointer(at)
            .unwrap_or_else(|| panic!("{at} in {told:#}"));
        found.as_u64().unwrap_or_else(|| panic!("{at}: {found}"))
    };
    for at in ["/files/segments", "/files/rows", "/files/bytes"] {
        assert!(number(at) > 0, "{at}");
    }
    assert!(told["state_for"].as_str().is_some(), "its age: {told:#}");
    let references = home.json(&["gc", "references", "-o", "json"]);
    let entries = references["snapshots"].as_array().unwrap();
    let entry = entries.iter().find(|e| e["name"] == name).unwrap();
    assert_eq!(
        entry["references"]["segments"].as_u64(),
        Some(number("/files/segments")),
        "protected segments: {entry}"
    );
}

/// A question needs a terminal: without one nothing is assumed, and nothing hangs.
#[test]
fn a_question_without_a_terminal_is_an_error() {
    let home = Home::new();
    let mut child = home
        .command(&["snapshot", "drop", "nobody"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Whatever is piped in is not an answer.
    let _ = child.stdin.take().unwrap().write_all(b"nobody\n");
    let output = child.wait_with_output().unwrap();
    refused(&said(output), 3, &["nobody"]);
}

#[test]
fn jsonl_tells_the_end_of_a_job() {
    let home = Home::new();
    let child = home.command(&["demo", "-o", "jsonl"]).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let lines: Vec<Value> = BufReader::new(&output.stdout[..])
        .lines()
        .map(|l| serde_json::from_str(&l.unwrap()).expect("a JSON line"))
        .collect();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(lines.last().unwrap()["state"], "verified", "{lines:?}");
}

/// The whole life of a collection in a fresh embedded store, by commands alone.
#[test]
fn ddl_from_the_command_line() {
    let home = Home::new();
    let file = home.path("books.json");
    let schema = serde_json::json!({
        "shards": 2,
        "dynamic": true,
        "fields": [
            {"name": "id", "type": "int64", "primary": true, "auto_id": true},
            {"name": "tags", "type": "array", "element": "varchar", "max_length": 32, "max_capacity": 16},
        ],
    });
    std::fs::write(&file, schema.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let vector = ["--field", "v:float_vector:8"];
    let create = [["collection", "create"], ["books", "--schema"]].concat();
    let create = [&create[..], &[file], &vector].concat();
    let planned = home.json(&[&create[..], &["--plan", "-o", "json"]].concat());
    assert_eq!(planned["danger"], "low");
    let made = home.run(&create);
    assert_eq!(made.code, Some(0), "{}{}", made.out, made.err);
    let again = home.run(&create);
    assert_eq!(again.code, Some(4), "{}", again.err);
    assert!(again.err.contains("books exists"), "{}", again.err);
    let bad = home.run(&["collection", "create", "x", "--field", "id:int64"]);
    assert_eq!(bad.code, Some(4), "{}", bad.err);
    assert!(bad.err.contains("primary key"), "{}", bad.err);

    let done = |args: &[&str]| {
        let said = home.run(args);
        assert_eq!(said.code, Some(0), "{args:?}: {}{}", said.out, said.err);
    };
    done(&["partition", "create", "books", "y2026"]);
    done(&[
        "index", "create", "books", "v", "--type", "HNSW", "--metric", "L2", "--param", "M=16",
    ]);
    let got = home.json(&["get", "partitions", "-c", "books", "-o", "json"]);
    assert_eq!(got["items"].as_array().map(Vec::len), Some(2), "{got}");
    let untyped = home.run(&["collection", "truncate", "books", "--yes"]);
    assert_eq!(untyped.code, Some(2), "{}", untyped.err);
    assert!(untyped.err.contains("--confirm books"), "{}", untyped.err);
    done(&["collection", "truncate", "books", "--confirm", "books"]);
    done(&["partition", "drop", "books", "y2026", "--confirm", "y2026"]);
    done(&["index", "drop", "books", "v", "--yes"]);
    done(&["collection", "drop", "books", "--confirm", "books"]);
    let got = home.json(&["get", "collections", "-o", "json"]);
    assert_eq!(got["items"].as_array().map(Vec::len), Some(0), "{got}");
    // The name is free again.
    done(&create);
}
