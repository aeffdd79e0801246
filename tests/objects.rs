//! One suite over every object store: memory, a folder with relative keys, a folder with absolute keys, a real S3 server.
//! Then what each failure is called, and which key it tells to change.

mod support;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use falconer::engine::clock::SystemClock;
use falconer::engine::error::{Error, ErrorKind};
use falconer::engine::format::bundle::parse_place;
use falconer::engine::ids::ObjectKey;
use falconer::engine::objects::{
    Copied, How, ObjectMeta, ObjectRead, ObjectWrite, Origin, PutMode, open,
};
use falconer::engine::profile::{ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use support::s3;
use support::servers::Nobody;

fn s3_profile(endpoint: &str, bucket: &str) -> S3Profile {
    S3Profile {
        endpoint: Some(endpoint.to_owned()),
        bucket: bucket.to_owned(),
        region: String::new(),
        credentials: Some((s3::ACCESS_KEY.to_owned(), s3::SECRET_KEY.into())),
        virtual_host: false,
        ca: None,
        request_timeout: REQUEST_TIMEOUT,
    }
}

fn open_s3(profile: S3Profile) -> (ObjectRead, ObjectWrite) {
    open(&ObjectProfile {
        kind: ObjectKind::S3(profile),
        root: "files".into(),
    })
    .expect("a store")
}

/// A bucket of its own on the shared server.
fn real_s3(bucket: &str) -> (ObjectRead, ObjectWrite) {
    let server = s3::shared();
    server.create_bucket(bucket);
    open_s3(s3_profile(&server.url, bucket))
}

fn folder(dir: PathBuf, absolute: bool) -> (ObjectRead, ObjectWrite) {
    open(&ObjectProfile {
        kind: ObjectKind::Local { dir, absolute },
        root: "files".into(),
    })
    .expect("a store")
}

fn memory() -> (ObjectRead, ObjectWrite) {
    open(&ObjectProfile {
        kind: ObjectKind::Memory,
        root: "files".into(),
    })
    .expect("a store")
}

/// One copy inside a store, of an object that a listing said has `size` bytes.
async fn copy(
    write: &ObjectWrite,
    key: &ObjectKey,
    size: u64,
    to: &ObjectKey,
) -> Result<Copied, Error> {
    let etag = None;
    let origin = Origin { key, size, etag };
    write
        .copy_from(&SystemClock::new(), write.read(), origin, to)
        .await
}

/// The laws of a store. `base` stands before every key: `files`, or the absolute folder.
async fn suite(read: &ObjectRead, write: &ObjectWrite, base: &str) {
    let key = |tail: &str| ObjectKey(format!("{base}/{tail}"));
    assert_eq!(read.root(), base);

    // Bytes go in and come out, whole and in part.
    let body = Bytes::from_static(b"0123456789");
    let one = key("insert_log/1/2/3/100/4");
    write
        .put(&one, body.clone(), PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(read.get(&one).await.unwrap(), body);
    assert_eq!(read.get_range(&one, 3..7).await.unwrap(), "3456");
    let meta = read.head(&one).await.unwrap();
    assert_eq!((meta.key.clone(), meta.size), (one.clone(), 10));
    assert!(meta.modified.0 > 1_600_000_000_000, "{:?}", meta.modified);
    write
        .put(&one, Bytes::from_static(b"new"), PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(read.get(&one).await.unwrap(), "new");
    let empty = key("delta_log/1/2/3/5");
    write
        .put(&empty, Bytes::new(), PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(read.head(&empty).await.unwrap().size, 0);
    assert_eq!(read.get(&empty).await.unwrap(), "");

    // A put that may not replace does not.
    let only = key("snapshots/1/metadata/9.json");
    write
        .put(&only, Bytes::from_static(b"first"), PutMode::Create)
        .await
        .unwrap();
    let e = write
        .put(&only, Bytes::from_static(b"second"), PutMode::Create)
        .await
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    assert_eq!(read.get(&only).await.unwrap(), "first");

    // A missing object is NotFound everywhere, and the line names it, the bucket and what to check.
    let gone = key("insert_log/1/2/3/100/none");
    for e in [
        read.get(&gone).await.unwrap_err(),
        read.head(&gone).await.unwrap_err(),
        read.get_range(&gone, 0..1).await.unwrap_err(),
        copy(write, &gone, 1, &key("x/y")).await.unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
        one_line(
            &e,
            &[&gone.0, "bucket=", "if every object is missing, check"],
        );
    }

    // A copy is the same bytes, and stays when the source is written again or goes.
    let twin = key("insert_log/7/8/9/100/4");
    copy(write, &one, 3, &twin).await.unwrap();
    assert_eq!(read.get(&twin).await.unwrap(), "new");
    write
        .put(&one, Bytes::from_static(b"newer"), PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(read.get(&twin).await.unwrap(), "new");
    assert!(write.delete(&one).await.unwrap());
    assert_eq!(read.get(&twin).await.unwrap(), "new");
    assert_eq!(
        read.head(&one).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    // Deleting twice is no error; nothing else went with it.
    write.delete(&one).await.unwrap();
    assert_eq!(read.get(&only).await.unwrap(), "first");

    odd_keys(read, write, base).await;
    listing(read, write, base).await;
}

/// Keys that trap an encoder come back as they were written, and none of them is another.
async fn odd_keys(read: &ObjectRead, write: &ObjectWrite, base: &str) {
    let odd = [
        "a b",
        "a%20b",
        "a+b",
        "a=b&c",
        "ü/ß/世界",
        "a%2Fb",
        "q?x=1",
        "h#h",
        "it's (1)",
        "~t",
        "semi;colon",
        "comma,",
        "at@",
        "star*",
        "[x]",
        "{y}",
        "$z",
        "!n",
        "a.b",
        "a:b",
    ];
    let key = |tail: &str| ObjectKey(format!("{base}/odd/{tail}"));
    for name in odd {
        let bytes = Bytes::from(name.as_bytes().to_vec());
        write
            .put(&key(name), bytes, PutMode::Overwrite)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for name in odd {
        assert_eq!(
            read.get(&key(name)).await.unwrap(),
            name.as_bytes(),
            "{name}"
        );
        let copied = ObjectKey(format!("{base}/odd-copy/{name}"));
        copy(write, &key(name), name.len() as u64, &copied)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(read.get(&copied).await.unwrap(), name.as_bytes(), "{name}");
    }
    let mut listed = keys(read, &ObjectKey(format!("{base}/odd")), None).await;
    listed.sort();
    let mut wanted: Vec<ObjectKey> = odd.iter().map(|n| key(n)).collect();
    wanted.sort();
    assert_eq!(listed, wanted);
    for name in odd {
        assert!(write.delete(&key(name)).await.unwrap(), "{name}");
    }
    assert_eq!(
        keys(read, &ObjectKey(format!("{base}/odd")), None).await,
        []
    );

    // What would resolve to something else is refused before anything is sent.
    for bad in [
        "../up",
        "a/../b",
        "a//b",
        "./a",
        "a/.",
        "tail/",
        "line\nbreak",
    ] {
        let e = read.get(&key(bad)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{bad}: {e}");
        let e = write.delete(&key(bad)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{bad}: {e}");
    }
}

/// Pages, order, prefixes that end at a slash, and resuming at any key.
async fn listing(read: &ObjectRead, write: &ObjectWrite, base: &str) {
    const COUNT: usize = 2_500;
    let name = |i: usize| ObjectKey(format!("{base}/many/{i:05}/{}", i * 7));
    stream::iter(0..COUNT)
        .map(|i| {
            let write = write.clone();
            async move {
                write
                    .put(&name(i), Bytes::from(vec![b'x'; i % 3]), PutMode::Overwrite)
                    .await
            }
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await
        .unwrap();
    let trap = ObjectKey(format!("{base}/many-more/1"));
    write
        .put(&trap, Bytes::from_static(b"t"), PutMode::Overwrite)
        .await
        .unwrap();

    let prefix = ObjectKey(format!("{base}/many"));
    let all: Vec<ObjectMeta> = read.list(&prefix, None).try_collect().await.unwrap();
    let wanted: Vec<ObjectKey> = (0..COUNT).map(name).collect();
    assert_eq!(
        all.iter().map(|m| m.key.clone()).collect::<Vec<_>>(),
        wanted
    );
    assert!(
        all.iter()
            .enumerate()
            .all(|(i, m)| m.size == (i % 3) as u64)
    );
    assert!(
        read.list(&ObjectKey(format!("{base}/man")), None)
            .next()
            .await
            .is_none()
    );
    assert!(read.probe(&prefix).await.unwrap().is_some());

    // Behind every 500th key, and behind a key that does not exist.
    for i in [0, 1, 499, 999, 1_000, 1_001, 2_498, 2_499] {
        let rest = keys(read, &prefix, Some(&wanted[i])).await;
        assert_eq!(rest, wanted[i + 1..], "behind {i}");
    }
    let between = ObjectKey(format!("{base}/many/01234/0"));
    assert_eq!(keys(read, &prefix, Some(&between)).await, wanted[1_234..]);

    // The whole store, and nothing twice.
    let everything = keys(read, &ObjectKey::default(), None).await;
    let mut once = everything.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), everything.len());
    assert!(once.contains(&trap) && once.contains(&wanted[2_499]));
}

async fn keys(read: &ObjectRead, prefix: &ObjectKey, after: Option<&ObjectKey>) -> Vec<ObjectKey> {
    read.list(prefix, after)
        .map_ok(|m| m.key)
        .try_collect()
        .await
        .unwrap()
}

fn one_line(e: &Error, parts: &[&str]) {
    let line = e.to_string();
    assert!(!line.contains('\n'), "{line}");
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing in: {line}");
    }
    for secret in [s3::SECRET_KEY, "wrong-secret-987"] {
        assert!(!line.contains(secret), "{line}");
    }
}

#[tokio::test]
async fn memory_keeps_the_laws() {
    let (read, write) = memory();
    suite(&read, &write, "files").await;
}

#[tokio::test]
async fn a_folder_keeps_the_laws() {
    let dir = tempfile::tempdir().unwrap();
    let (read, write) = folder(dir.path().join("made/on/open"), false);
    suite(&read, &write, "files").await;
    assert!(dir.path().join("made/on/open/files/many/00000/0").is_file());
}

#[tokio::test]
async fn a_folder_with_absolute_keys_keeps_the_laws() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("data");
    std::fs::create_dir(&base).unwrap();
    let (read, write) = folder(base.clone(), true);
    suite(&read, &write, &base.display().to_string()).await;
    assert!(base.join("many/00000/0").is_file());

    for outside in [
        "/etc/passwd",
        "files/x",
        &format!("{}base/x", base.display()),
    ] {
        let e = read.get(&ObjectKey(outside.to_owned())).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        one_line(&e, &[outside, "localStorage.path"]);
    }
}

#[tokio::test]
async fn a_real_s3_server_keeps_the_laws() {
    let (read, write) = real_s3("laws");
    suite(&read, &write, "files").await;
}

/// The order of a listing is the server's own where a folder's name begins a file's name; resuming follows it and loses nothing.
#[tokio::test]
async fn resuming_loses_nothing_where_names_begin_alike() {
    let (read, write) = real_s3("alike");
    let names = ["a", "a b/1", "a-/1", "a.txt", "a/1", "a/2/3", "a0", "ab"];
    // On a file system, and on this server, `a` cannot be an object and a folder.
    let names = &names[1..];
    for name in names {
        write
            .put(
                &ObjectKey(format!("files/{name}")),
                Bytes::from_static(b"x"),
                PutMode::Overwrite,
            )
            .await
            .unwrap();
    }
    let prefix = ObjectKey("files".into());
    let all = keys(&read, &prefix, None).await;
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!(sorted.len(), names.len());
    for (i, key) in all.iter().enumerate() {
        let rest = keys(&read, &prefix, Some(key)).await;
        assert_eq!(rest, all[i + 1..], "behind {key}");
    }
}

#[test]
fn the_folder_of_a_real_milvus_is_never_made() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("not/here");
    let e = open(&ObjectProfile {
        kind: ObjectKind::Local {
            dir: missing.clone(),
            absolute: true,
        },
        root: missing.display().to_string(),
    })
    .err()
    .unwrap();
    assert_eq!(e.kind(), ErrorKind::Config);
    one_line(&e, &[&missing.display().to_string(), "localStorage.path"]);
    assert!(!missing.exists());
}

/// Reads, lists, writes and deletes against one wrong profile.
async fn failures(profile: S3Profile) -> Vec<(&'static str, Error)> {
    let (read, write) = open_s3(profile);
    let key = ObjectKey("files/a/1".into());
    vec![
        ("get", read.get(&key).await.unwrap_err()),
        ("head", read.head(&key).await.unwrap_err()),
        (
            "list",
            read.probe(&ObjectKey("files".into())).await.unwrap_err(),
        ),
        (
            "put",
            write
                .put(&key, Bytes::from_static(b"x"), PutMode::Overwrite)
                .await
                .unwrap_err(),
        ),
        (
            "copy",
            copy(&write, &key, 1, &"files/b".into()).await.unwrap_err(),
        ),
        ("delete", write.delete(&key).await.unwrap_err()),
    ]
}

#[tokio::test]
async fn a_wrong_secret_names_its_key() {
    let server = s3::shared();
    server.create_bucket("wrong-secret");
    let mut profile = s3_profile(&server.url, "wrong-secret");
    profile.credentials = Some((s3::ACCESS_KEY.into(), "wrong-secret-987".into()));
    for (what, e) in failures(profile).await {
        assert_eq!(e.kind(), ErrorKind::Denied, "{what}: {e}");
        one_line(
            &e,
            &[
                "minio.secretAccessKey",
                "bucket=wrong-secret",
                &server.url,
                "SignatureDoesNotMatch",
            ],
        );
    }
}

#[tokio::test]
async fn an_unknown_access_key_names_its_key() {
    let server = s3::shared();
    server.create_bucket("unknown-access");
    let mut profile = s3_profile(&server.url, "unknown-access");
    profile.credentials = Some(("nobody".into(), s3::SECRET_KEY.into()));
    for (what, e) in failures(profile).await {
        assert_eq!(e.kind(), ErrorKind::Denied, "{what}: {e}");
        one_line(&e, &["minio.accessKeyID", "InvalidAccessKeyId"]);
    }
}

#[tokio::test]
async fn a_wrong_bucket_names_its_key_and_is_not_a_missing_object() {
    let server = s3::shared();
    let (read, _) = open_s3(s3_profile(&server.url, "no-such-bucket"));
    let key = ObjectKey("files/a/1".into());
    // This server makes a bucket for the first put and forgives a delete, so only what reads can fail.
    for e in [
        read.get(&key).await.unwrap_err(),
        read.head(&key).await.unwrap_err(),
        read.probe(&"files".into()).await.unwrap_err(),
        read.probe(&ObjectKey::default()).await.unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::Config, "{e}");
        one_line(
            &e,
            &["minio.bucketName", "bucket=no-such-bucket", "NoSuchBucket"],
        );
    }
    // Elsewhere a write into no bucket is refused, and that is no missing object either.
    let answer = error_document("404 Not Found", "NoSuchBucket", "");
    let script = Script::start(vec![answer; 3]).await;
    let (_, scripted) = open_s3(s3_profile(&script.url, "no-such-bucket"));
    for e in [
        scripted.delete(&key).await.unwrap_err(),
        copy(&scripted, &key, 1, &"files/b".into())
            .await
            .unwrap_err(),
        scripted
            .put(&key, Bytes::new(), PutMode::Overwrite)
            .await
            .unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::Config, "{e}");
        one_line(&e, &["minio.bucketName"]);
    }
}

#[tokio::test]
async fn a_wrong_port_names_its_key_and_nothing_was_written() {
    let nobody = Nobody::new();
    for (what, e) in failures(s3_profile(&nobody.endpoint(), "a-bucket")).await {
        // Every attempt was refused at the door, so a write certainly did not happen.
        assert_eq!(e.kind(), ErrorKind::Unreachable, "{what}: {e}");
        one_line(&e, &["minio.address", "minio.port", &nobody.endpoint()]);
    }
}

#[tokio::test]
async fn an_unknown_host_names_its_key() {
    for (what, e) in failures(s3_profile("http://no-such-host.invalid:9000", "a-bucket")).await {
        assert_eq!(e.kind(), ErrorKind::Unreachable, "{what}: {e}");
        one_line(&e, &["host name", "minio.address"]);
    }
}

#[tokio::test]
async fn tls_towards_a_plain_port_names_its_key() {
    let server = s3::shared();
    let https = server.url.replace("http://", "https://");
    for (what, e) in failures(s3_profile(&https, "a-bucket")).await {
        one_line(&e, &["minio.useSSL"]);
        assert!(e.kind() == ErrorKind::Config, "{what}: {:?} {e}", e.kind());
    }
}

/// A server that answers each request with the next line of its script, and then with silence.
struct Script {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Script {
    async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (log, all) = (seen.clone(), heads.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answers.clone(), log.clone(), all.clone()));
            }
        });
        Self { url, seen, heads }
    }

    /// Whole heads, in small letters.
    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    answers: Arc<Mutex<VecDeque<String>>>,
    seen: Arc<Mutex<Vec<String>>>,
    heads: Arc<Mutex<Vec<String>>>,
) {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
        let length: usize = text
            .lines()
            .find_map(|l| l.strip_prefix("content-length: ")?.trim().parse().ok())
            .unwrap_or(0);
        while buffer.len() < head + length {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        buffer.drain(..head + length);
        seen.lock()
            .unwrap()
            .push(text.lines().next().unwrap_or_default().to_owned());
        heads.lock().unwrap().push(text);
        let answer = answers.lock().unwrap().pop_front();
        match answer {
            // The connection is cut after the request was read: nobody knows what became of it.
            Some(cut) if cut == "CUT" => return,
            Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
            None => std::future::pending().await,
        }
    }
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"e\"\r\n\r\n{body}",
        body.len()
    )
}

fn error_document(status: &str, code: &str, rest: &str) -> String {
    answer(
        status,
        &format!(
            "<?xml version=\"1.0\"?>\n<Error>\n <Code>{code}</Code><Message>Said\n so.</Message>{rest}</Error>"
        ),
    )
}

async fn put_against(answers: Vec<String>, mode: PutMode) -> (Result<(), Error>, Vec<String>) {
    let script = Script::start(answers).await;
    let mut profile = s3_profile(&script.url, "a-bucket");
    profile.request_timeout = Duration::from_millis(300);
    let (_, write) = open_s3(profile);
    let done = write
        .put(&"files/x".into(), Bytes::from_static(b"body"), mode)
        .await;
    (done, script.seen())
}

#[tokio::test]
async fn each_refusal_is_told_apart_and_names_its_key() {
    let table = [
        (
            "403 Forbidden",
            "AccessDenied",
            "",
            ErrorKind::Denied,
            "grant this action",
        ),
        (
            "403 Forbidden",
            "RequestTimeTooSkewed",
            "",
            ErrorKind::Denied,
            "clock",
        ),
        (
            "400 Bad Request",
            "ExpiredToken",
            "",
            ErrorKind::Denied,
            "temporary credentials",
        ),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            "<Region>eu-west-3</Region>",
            ErrorKind::Config,
            "set minio.region to eu-west-3",
        ),
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            "",
            ErrorKind::Config,
            "minio.region",
        ),
        (
            "404 Not Found",
            "NoSuchBucket",
            "",
            ErrorKind::Config,
            "minio.bucketName",
        ),
        (
            "404 Not Found",
            "NoSuchKey",
            "",
            ErrorKind::NotFound,
            "minio.rootPath",
        ),
        (
            "501 Not Implemented",
            "NotImplemented",
            "",
            ErrorKind::Unreachable,
            "minio.address",
        ),
    ];
    for (status, code, rest, kind, says) in table {
        let retried = if status.starts_with('5') { 4 } else { 1 };
        let script = Script::start(vec![error_document(status, code, rest); retried]).await;
        let (read, _) = open_s3(s3_profile(&script.url, "a-bucket"));
        let e = read.get(&"files/x".into()).await.unwrap_err();
        if code == "NotImplemented" {
            assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
            continue;
        }
        assert_eq!(e.kind(), kind, "{code}: {e}");
        one_line(&e, &["files/x", "bucket=a-bucket", &script.url, says]);
    }
}

#[tokio::test]
async fn head_learns_the_reason_by_asking_for_a_byte() {
    let script = Script::start(vec![
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".into(),
        error_document("403 Forbidden", "SignatureDoesNotMatch", ""),
    ])
    .await;
    let (read, _) = open_s3(s3_profile(&script.url, "a-bucket"));
    let e = read.head(&"files/x".into()).await.unwrap_err();
    one_line(&e, &["minio.secretAccessKey"]);
    assert!(script.seen()[1].starts_with("get "), "{:?}", script.seen());
}

#[tokio::test]
async fn a_put_without_an_answer_is_unknown() {
    let (done, seen) = put_against(vec![], PutMode::Overwrite).await;
    let e = done.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::OutcomeUnknown, "{e}");
    one_line(
        &e,
        &[
            "files/x",
            "may or may not have happened",
            "minio.requestTimeoutMs",
        ],
    );
    assert!(seen.len() > 1, "replacing is repeated: {seen:?}");

    let (done, seen) = put_against(vec![], PutMode::Create).await;
    assert_eq!(done.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(seen.len(), 1, "creating is not: {seen:?}");
}

#[tokio::test]
async fn a_refused_put_did_not_happen_and_slow_down_did_not_either() {
    let denied = error_document("403 Forbidden", "AccessDenied", "");
    let (done, _) = put_against(vec![denied.clone()], PutMode::Overwrite).await;
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Denied);

    let slow = error_document("503 Slow Down", "SlowDown", "");
    let (done, seen) = put_against(vec![slow; 4], PutMode::Overwrite).await;
    let e = done.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unreachable, "{e}");
    one_line(&e, &["SlowDown", "lower the concurrency"]);
    assert_eq!(seen.len(), 4);

    // A cut after the request, and then a refusal: the first one may have been carried out.
    let (done, _) = put_against(vec!["CUT".into(), denied], PutMode::Overwrite).await;
    assert_eq!(done.unwrap_err().kind(), ErrorKind::OutcomeUnknown);

    let broken = error_document("500 Internal Server Error", "InternalError", "");
    let (done, _) = put_against(vec![broken; 4], PutMode::Overwrite).await;
    assert_eq!(done.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn exists_after_a_cut_may_be_our_own_object() {
    let exists = error_document("412 Precondition Failed", "PreconditionFailed", "");
    let (done, _) = put_against(vec![exists.clone()], PutMode::Create).await;
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Conflict);

    let broken = error_document("500 Internal Server Error", "InternalError", "");
    let (done, seen) = put_against(vec![broken, exists], PutMode::Create).await;
    assert_eq!(done.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_repeated_put_that_succeeds_is_done() {
    let slow = error_document("503 Slow Down", "SlowDown", "");
    let (done, seen) = put_against(
        vec![slow, "CUT".into(), answer("200 OK", "")],
        PutMode::Overwrite,
    )
    .await;
    done.unwrap();
    assert_eq!(seen.len(), 3);
}

/// Each refusal is heard by whoever paces the copies, not hidden behind repetitions; and S3's late failure is one.
#[tokio::test]
async fn a_copy_is_sent_once_and_a_failure_inside_a_200_is_a_failure() {
    let slow = error_document("503 Slow Down", "SlowDown", "");
    let late = error_document("200 OK", "InternalError", "");
    let kinds = [ErrorKind::Unreachable, ErrorKind::OutcomeUnknown];
    for (answer, kind) in [slow, late].into_iter().zip(kinds) {
        let script = Script::start(vec![answer; 4]).await;
        let (_, write) = open_s3(s3_profile(&script.url, "a-bucket"));
        let e = copy(&write, &"files/x y".into(), 1, &"files/y".into())
            .await
            .unwrap_err();
        assert_eq!(e.kind(), kind, "{e}");
        one_line(&e, &["files/x y", "the server answered"]);
        assert_eq!(script.seen(), ["put /a-bucket/files/y http/1.1"]);
    }
}

#[tokio::test]
async fn virtual_host_style_puts_the_bucket_into_the_host() {
    let script = Script::start(vec![answer("200 OK", "hello")]).await;
    let port = script.url.rsplit(':').next().unwrap();
    // Every name under localhost is loopback, by RFC 6761 and by the system's resolver.
    let mut profile = s3_profile(&format!("http://localhost:{port}"), "a-bucket");
    profile.virtual_host = true;
    let (read, _) = open_s3(profile);
    match read.get(&"files/x".into()).await {
        Ok(_) => assert_eq!(script.seen(), ["get /files/x http/1.1"]),
        // A resolver without that rule says so about the right name; nothing else may go wrong.
        Err(e) => one_line(&e, &["host name"]),
    }
}

#[tokio::test]
async fn azure_and_google_speak_to_their_endpoints() {
    let answers = vec![answer(
        "404 Not Found",
        "<Error><Code>ContainerNotFound</Code><Message>m</Message></Error>",
    )];
    let script = Script::start(answers).await;
    let (read, _) = azure(&script.url, "a-container");
    let e = read.get(&"files/x".into()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Config, "{e}");
    one_line(&e, &["a-container", "minio.bucketName"]);
    assert_eq!(
        script.seen(),
        ["get /devstoreaccount1/a-container/files/x http/1.1"]
    );

    let script = Script::start(vec![answer(
        "404 Not Found",
        "{\"error\":{\"code\":404,\"message\":\"The specified bucket does not exist.\",\"errors\":[{\"reason\":\"notFound\"}]}}",
    )])
    .await;
    let (read, _) = google(&script.url, "g-bucket");
    let e = read.get(&"files/x".into()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Config, "{e}");
    one_line(&e, &["g-bucket", "minio.bucketName"]);
    assert_eq!(script.seen().len(), 1);
}

/// Answers a HEAD: an object of so many bytes.
fn there(size: usize) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\netag: \"e\"\r\nlast-modified: Mon, 12 Oct 2009 17:50:00 GMT\r\n\r\n"
    )
}

/// Answers with an entity tag that looks like a checksum.
fn tagged(status: &str, tag: char, body: &str, range: bool) -> String {
    let tag = tag.to_string().repeat(32);
    let size = body.len();
    let range = if range {
        format!("content-range: bytes 0-{}/{size}\r\n", size - 1)
    } else {
        String::new()
    };
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {size}\r\netag: \"{tag}\"\r\n{range}last-modified: Mon, 12 Oct 2009 17:50:00 GMT\r\n\r\n{body}"
    )
}

/// Two tags that look like checksums and differ: the bytes decide, and once they were equal those tags are not asked any more.
#[tokio::test]
async fn tags_that_differ_are_settled_by_reading() {
    let (key, to): (ObjectKey, ObjectKey) = ("files/x".into(), "files/y".into());
    let tag = "a".repeat(32);
    let etag = Some(tag.as_str());
    let origin = || Origin {
        key: &key,
        size: 5,
        etag,
    };
    let clock = SystemClock::new();
    let whole = || tagged("200 OK", 'a', "hello", false);
    let part = |tag, body| tagged("206 Partial Content", tag, body, true);
    let head = tagged("200 OK", 'b', "hello", false);
    let head = head.strip_suffix("hello").unwrap();
    let put = || tagged("200 OK", 'b', "", false);
    for (arrived, is_good) in [("hello", true), ("hullo", false)] {
        let source = Script::start(vec![whole(), part('a', "hello"), whole()]).await;
        let target = vec![
            put(),
            head.to_owned(),
            part('b', arrived),
            put(),
            head.to_owned(),
        ];
        let target = Script::start(target).await;
        let (read, _) = open_s3(s3_profile(&source.url, "from"));
        let (_, write) = open_s3(s3_profile(&target.url, "to"));
        let done = write.copy_from(&clock, &read, origin(), &to).await;
        if !is_good {
            let e = done.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
            one_line(&e, &["files/y", "files/x", "other bytes"]);
            continue;
        }
        assert!(!done.unwrap().checksum);
        assert_eq!((source.seen().len(), target.seen().len()), (2, 3));
        let again = write.copy_from(&clock, &read, origin(), &to).await;
        assert!(!again.unwrap().checksum);
        assert_eq!((source.seen().len(), target.seen().len()), (3, 5));
    }
}

fn azure(url: &str, container: &str) -> (ObjectRead, ObjectWrite) {
    let profile = ObjectProfile {
        kind: ObjectKind::Azure {
            account: "devstoreaccount1".into(),
            key: Some("c2VjcmV0".into()),
            container: container.into(),
            endpoint: Some(format!("{url}/devstoreaccount1")),
            request_timeout: REQUEST_TIMEOUT,
        },
        root: "files".into(),
    };
    open(&profile).unwrap()
}

fn google(url: &str, bucket: &str) -> (ObjectRead, ObjectWrite) {
    // What a test server of Google's storage takes instead of a signed key.
    let json = format!(
        "{{\"gcs_base_url\":\"{url}\",\"disable_oauth\":true,\"client_email\":\"\",\"private_key\":\"\",\"private_key_id\":\"\"}}"
    );
    let profile = ObjectProfile {
        kind: ObjectKind::Gcs {
            bucket: bucket.into(),
            credential_json: Some(json.into()),
            endpoint: Some(url.to_owned()),
            request_timeout: REQUEST_TIMEOUT,
        },
        root: "files".into(),
    };
    open(&profile).unwrap()
}

/// What was asked for; Google's client writes the `/` of a key as `%2f`.
fn plain(script: &Script) -> Vec<String> {
    let lines = script.seen().into_iter();
    lines.map(|line| line.replace("%2f", "/")).collect()
}

/// Between providers an object goes through here; inside one bucket the provider copies it; and where it will not, it goes through
/// here too. Each copy is compared by what the target says of it.
#[tokio::test]
async fn objects_come_from_and_go_to_azure_and_google() {
    type Opened = fn(&str, &str) -> (ObjectRead, ObjectWrite);
    let body = Bytes::from_static(b"hello");
    let key: ObjectKey = "files/x".into();
    let to: ObjectKey = "files/y".into();
    let made = async |source: &ObjectRead, target: &ObjectWrite| {
        let (key, size, etag) = (&key, 5, None);
        let origin = Origin { key, size, etag };
        let clock = SystemClock::new();
        target.copy_from(&clock, source, origin, &to).await
    };
    let providers: [(Opened, &str, &str); 2] = [
        (azure, "/devstoreaccount1/c", "x-ms-copy-source"),
        (google, "/c", "x-goog-copy-source"),
    ];
    for (opened, base, own) in providers {
        // Out of here.
        let (read, write) = memory();
        write
            .put(&key, body.clone(), PutMode::Overwrite)
            .await
            .unwrap();
        let script = Script::start(vec![answer("201 Created", ""), there(5)]).await;
        let done = made(&read, &opened(&script.url, "c").1).await.unwrap();
        assert_eq!(done.how, How::Through, "{base}");
        let put = format!("put {base}/files/y http/1.1");
        let head = format!("head {base}/files/y http/1.1");
        assert_eq!(plain(&script), [put.clone(), head.clone()]);
        // Another size at the target is no copy.
        let script = Script::start(vec![answer("201 Created", ""), there(4)]).await;
        let e = made(&read, &opened(&script.url, "c").1).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
        one_line(&e, &["files/y has 4 bytes", "files/x has 5"]);
        // Into here.
        let (read, write) = memory();
        let script = Script::start(vec![format!("{}hello", there(5))]).await;
        let done = made(&opened(&script.url, "c").0, &write).await.unwrap();
        assert_eq!(done.how, How::Through, "{base}");
        assert_eq!(plain(&script), [format!("get {base}/files/x http/1.1")]);
        assert_eq!(read.get(&to).await.unwrap(), body);
        // Inside.
        let script = Script::start(vec![answer("202 Accepted", ""), there(5)]).await;
        let (read, write) = opened(&script.url, "c");
        let done = made(&read, &write).await.unwrap();
        assert_eq!(done.how, How::Server, "{base}");
        assert_eq!(plain(&script), [put.clone(), head.clone()]);
        assert!(script.heads()[0].contains(own), "{:?}", script.heads());
        // Inside, refused.
        let refusal = error_document("400 Bad Request", "InvalidOperation", "");
        let through = vec![
            refusal,
            format!("{}hello", there(5)),
            answer("201 Created", ""),
            there(5),
        ];
        let script = Script::start(through).await;
        let (read, write) = opened(&script.url, "c");
        let done = made(&read, &write).await.unwrap();
        assert_eq!(done.how, How::Through, "{base}");
        let get = format!("get {base}/files/x http/1.1");
        assert_eq!(plain(&script), [put.clone(), get, put, head]);
        // Another bucket of the same server, by URI: with the same credentials, at the same place.
        let script = Script::start(vec![format!("{}hello", there(5))]).await;
        let (read, _) = opened(&script.url, "c");
        let there = match base {
            "/c" => "gs://other/deep".to_owned(),
            _ => "azure://devstoreaccount1.blob.core.windows.net/other/deep".to_owned(),
        };
        let (there, prefix) = parse_place(&there).unwrap();
        assert_eq!(prefix, "deep");
        let other = read.elsewhere(&there).unwrap();
        assert_eq!(other.get(&"deep/x".into()).await.unwrap(), body);
        let base = base.replace("/c", "/other");
        assert_eq!(plain(&script), [format!("get {base}/deep/x http/1.1")]);
    }
}

/// S3: a copy that is done and yet another one.
#[tokio::test]
async fn a_copy_of_another_size_is_no_copy() {
    let done = "<CopyObjectResult><ETag>\"f\"</ETag></CopyObjectResult>";
    let script = Script::start(vec![answer("200 OK", done), there(4)]).await;
    let (_, write) = open_s3(s3_profile(&script.url, "a-bucket"));
    let made = copy(&write, &"files/x".into(), 5, &"files/y".into()).await;
    let e = made.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    one_line(&e, &["files/y has 4 bytes", "files/x has 5"]);
}

#[test]
fn a_credential_document_is_never_repeated() {
    let e = open(&ObjectProfile {
        kind: ObjectKind::Gcs {
            bucket: "g".into(),
            credential_json: Some("{\"private_key\": \"wrong-secret-987\"}".into()),
            endpoint: None,
            request_timeout: REQUEST_TIMEOUT,
        },
        root: String::new(),
    })
    .err()
    .unwrap();
    assert_eq!(e.kind(), ErrorKind::Config);
    one_line(&e, &["bucket=g"]);
    let shown = format!(
        "{:?}",
        s3_profile("http://user:wrong-secret-987@h:1", "b").credentials
    );
    assert!(!shown.contains(s3::SECRET_KEY), "{shown}");
    let (read, _) = open_s3(s3_profile("http://user:wrong-secret-987@h:1", "b"));
    assert_eq!(read.describe(), "b/files at http://h:1");
}

/// Keys of one run, by first path element: what a person sees of a bucket.
#[tokio::test]
async fn the_captured_bucket_is_read_from_a_real_server_as_it_was() {
    let server = s3::shared();
    server.create_bucket("captured");
    let objects = support::lab::objects();
    server
        .upload(
            "captured",
            objects.iter().map(|(k, b)| (k.as_str(), b.clone())),
        )
        .await;
    let (read, _) = open_s3(s3_profile(&server.url, "captured"));
    let listed: BTreeMap<String, u64> = read
        .list(&ObjectKey::default(), None)
        .map_ok(|m| (m.key.0, m.size))
        .try_collect()
        .await
        .unwrap();
    let wanted: BTreeMap<String, u64> = objects
        .iter()
        .map(|(k, b)| (k.clone(), b.len() as u64))
        .collect();
    assert_eq!(listed.len(), 1_301);
    let differ: Vec<_> = wanted
        .iter()
        .filter(|(k, size)| listed.get(*k) != Some(size))
        .collect();
    assert_eq!(differ, Vec::<(&String, &u64)>::new());
}
