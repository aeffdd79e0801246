//! Copying: each way on the stores it is for, what a crash leaves of it, and the pool that makes many.

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use falconer::engine::clock::{Clock, Entropy, SeededEntropy, SystemClock};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::ids::{ObjectKey, UnixMs};
use falconer::engine::jobs::copy::{self, CopyFile, CopyHost, Done, Ran, Slice};
use falconer::engine::objects::{
    Copied, CopyLimits, How, ObjectRead, ObjectWrite, Origin, PutMode, from_store, open,
};
use falconer::engine::profile::{ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile};
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore as _;
use support::faults::{FaultObjects, Faults, Mode, VirtualClock};
use support::proxy::{Proxy, Seen, Wrong};
use support::s3;

const NOW: UnixMs = UnixMs(1_788_600_000_000);
const MIB: u64 = 1 << 20;
/// S3's smallest parts, so that a test needs no 5 GiB.
const SMALL: CopyLimits = CopyLimits {
    whole: 5 * MIB,
    part: 5 * MIB,
    buffer: 5 * MIB,
};

type Store = (ObjectRead, ObjectWrite);

fn small((read, write): Store) -> Store {
    (read, write.with_limits(SMALL))
}

fn bucket(name: &str) -> Store {
    bucket_at(&s3::shared().url, name)
}

/// A bucket of the shared server, reached at `url`.
fn bucket_at(url: &str, name: &str) -> Store {
    s3::shared().create_bucket(name);
    let kind = ObjectKind::S3(S3Profile {
        endpoint: Some(url.to_owned()),
        bucket: name.to_owned(),
        region: String::new(),
        credentials: Some((s3::ACCESS_KEY.to_owned(), s3::SECRET_KEY.into())),
        virtual_host: false,
        ca: None,
        request_timeout: REQUEST_TIMEOUT,
    });
    let root = "files".to_owned();
    small(open(&ObjectProfile { kind, root }).expect("a store"))
}

fn folder(dir: &Path, absolute: bool) -> Store {
    let kind = ObjectKind::Local {
        dir: dir.to_owned(),
        absolute,
    };
    let root = "files".to_owned();
    small(open(&ObjectProfile { kind, root }).expect("a store"))
}

fn memory() -> Store {
    small(from_store(Arc::new(InMemory::new()), "files"))
}

/// Bytes that no part repeats.
fn noise(size: u64) -> Bytes {
    (0..size)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect::<Vec<u8>>()
        .into()
}

async fn put(store: &Store, key: &str, bytes: Bytes) {
    store
        .1
        .put(&key.into(), bytes, PutMode::Overwrite)
        .await
        .unwrap_or_else(|e| panic!("{key}: {e}"));
}

/// Copies as a job does: with the size and the tag of a listing.
async fn copy(from: &Store, a: &str, to: &Store, b: &str) -> Result<Copied> {
    let key: ObjectKey = a.into();
    let meta = from.0.head(&key).await?;
    let origin = Origin {
        key: &key,
        size: meta.size,
        etag: meta.etag.as_deref(),
    };
    let clock = SystemClock::new();
    to.1.copy_from(&clock, &from.0, origin, &b.into()).await
}

/// Copies, and compares every byte.
async fn copied(from: &Store, to: &Store, size: u64) -> Copied {
    let bytes = noise(size);
    let (a, b) = (format!("files/from/{size}"), format!("files/to/{size}"));
    put(from, &a, bytes.clone()).await;
    let done = copy(from, &a, to, &b)
        .await
        .unwrap_or_else(|e| panic!("{size}: {e}"));
    assert!(
        to.0.get(&b.as_str().into()).await.unwrap() == bytes,
        "{size}"
    );
    nothing_left(to).await;
    done
}

async fn nothing_left(store: &Store) {
    let left = store.1.unfinished(&"files".into()).await.unwrap();
    assert_eq!(left.unwrap_or_default(), []);
}

#[tokio::test]
async fn a_server_copies_by_itself_whole_and_in_parts() {
    let (one, two) = (bucket("copy-one"), bucket("copy-two"));
    for (from, to) in [(&one, &one), (&one, &two)] {
        for size in [0, 1, 70_000, 5 * MIB] {
            let done = copied(from, to, size).await;
            assert_eq!(done.how, How::Server, "{size}");
        }
        // The server's entity tag of a small object is its MD5.
        assert!(copied(from, to, 70_000).await.checksum);
        for size in [5 * MIB + 1, 12 * MIB + 3] {
            assert_eq!(copied(from, to, size).await.how, How::Parts, "{size}");
        }
    }
    let e = copy_missing(&one, &two).await;
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    assert!(e.what().contains("files/none"), "{e}");
}

async fn proxy() -> Proxy {
    let port = s3::shared().url.rsplit(':').next().unwrap().parse();
    Proxy::before(port.unwrap()).await
}

/// Whatever the server says when it will not copy by itself: the bytes arrive all the same, and no upload is left behind.
#[tokio::test]
async fn a_server_that_refuses_to_copy_is_served_through_here() {
    let proxy = proxy().await;
    let one = bucket_at(&proxy.url, "copy-refused");
    let two = bucket_at(&proxy.url, "copy-refused-too");
    let refusals = [
        ("501 Not Implemented", "NotImplemented"),
        ("400 Bad Request", "InvalidArgument"),
        ("405 Method Not Allowed", "MethodNotAllowed"),
        ("403 Forbidden", "AccessDenied"),
    ];
    for (status, code) in refusals {
        for to in [&one, &two] {
            for size in [70_000, 5 * MIB + 1] {
                proxy.script(move |s| s.copies.then_some(Wrong::Refused(status, code)));
                let done = copied(&one, to, size).await;
                assert_eq!(done.how, How::Through, "{status}: {size}");
                assert!(proxy.hurt() > 0, "{status}: {size}");
            }
        }
    }
    // Its own limit is a lower one: part by part.
    let whole = |s: &Seen<'_>| s.copies && !s.target.contains("partNumber");
    proxy.script(move |s| whole(s).then_some(Wrong::Refused("400 Bad Request", "EntityTooLarge")));
    assert_eq!(copied(&one, &one, 70_001).await.how, How::Parts);
    // What may not be read either is refused in the end, and nothing is begun.
    proxy.script(|s| (s.copies || s.method == "GET").then_some(Wrong::Denied));
    let e = copy(&one, "files/from/70000", &two, "files/denied").await;
    let e = e.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
    proxy.heal();
    nothing_left(&two).await;
    let none = two.0.head(&"files/denied".into()).await;
    assert_eq!(none.unwrap_err().kind(), ErrorKind::NotFound);
}

/// Copies inside one store, as fast as it bears.
struct Pool<'a> {
    store: &'a Store,
    clock: SystemClock,
    entropy: SeededEntropy,
    copied: AtomicU32,
    notes: std::sync::Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl CopyHost for Pool<'_> {
    async fn copy(&self, file: &CopyFile) -> Result<()> {
        let (read, write) = self.store;
        let made = write.copy_from(&self.clock, read, file.origin(), &file.to);
        made.await.map(drop)
    }
    fn note(&self, text: String) {
        self.notes.lock().unwrap().push(text);
    }
    fn parallel(&self) -> u32 {
        32
    }
    fn throttle(&self) -> Option<u64> {
        None
    }
    fn copied(&self, _: &CopyFile) {
        self.copied.fetch_add(1, Ordering::SeqCst);
    }
    fn cancelled(&self) -> bool {
        false
    }
    fn clock(&self) -> &dyn Clock {
        &self.clock
    }
    fn entropy(&self) -> &dyn Entropy {
        &self.entropy
    }
}

/// A real server that bears four copies at once, and says so in either way: each file arrives, and few are refused.
#[tokio::test]
async fn a_real_server_that_asks_for_less_is_given_less() {
    let proxy = proxy().await;
    let store = bucket_at(&proxy.url, "copy-busy");
    put(&store, "files/a", noise(3_000)).await;
    let from: ObjectKey = "files/a".into();
    let etag = store.0.head(&from).await.unwrap().etag;
    let refusals = [
        ("503 Slow Down", "SlowDown"),
        ("429 Too Many Requests", "TooManyRequests"),
    ];
    for (status, code) in refusals {
        // The first ones in any case: on a slow machine nothing may ever run beside something else.
        proxy.script(move |s| {
            let full = s.copies && (s.now > 4 || s.n < 3);
            full.then_some(Wrong::Refused(status, code))
        });
        let files: Vec<CopyFile> = (0..300)
            .map(|i| CopyFile {
                from: from.clone(),
                to: format!("files/{code}/{i}").as_str().into(),
                size: 3_000,
                etag: etag.clone(),
                group: 0,
            })
            .collect();
        let host = Pool {
            store: &store,
            clock: SystemClock::new(),
            entropy: SeededEntropy::new(1),
            copied: AtomicU32::new(0),
            notes: std::sync::Mutex::default(),
        };
        let mut done = Done::default();
        let all = Slice {
            files: u32::MAX,
            time: Duration::MAX,
        };
        let ran = copy::run(&host, &files, &mut done, all).await.unwrap();
        assert_eq!((ran, done.count()), (Ran::All, 300), "{code}");
        assert_eq!(host.copied.load(Ordering::SeqCst), 300, "each file once");
        let refused = proxy.heal();
        assert!((3..150).contains(&refused), "{code}: {refused} refusals");
        let notes = host.notes.lock().unwrap();
        let said = notes.iter().filter(|n| n.contains(code)).count();
        assert!(said > 0, "the reason is kept: {notes:?}");
    }
}

async fn copy_missing(from: &Store, to: &Store) -> Error {
    let key = "files/none".into();
    let origin = Origin {
        key: &key,
        size: 1,
        etag: None,
    };
    let clock = SystemClock::new();
    let target = "files/x".into();
    let made = to.1.copy_from(&clock, &from.0, origin, &target);
    made.await.unwrap_err()
}

#[tokio::test]
async fn between_stores_it_goes_through_here() {
    let dir = tempfile::tempdir().unwrap();
    let (s3, folder, memory) = (bucket("copy-through"), folder(dir.path(), false), memory());
    let pairs = [
        (&s3, &folder),
        (&folder, &s3),
        (&memory, &s3),
        (&s3, &memory),
        (&memory, &folder),
    ];
    for (from, to) in pairs {
        for size in [0, 1, 5 * MIB, 5 * MIB + 1, 15 * MIB, 16 * MIB + 7] {
            assert_eq!(copied(from, to, size).await.how, How::Through, "{size}");
        }
        let e = copy_missing(from, to).await;
        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    }
}

#[tokio::test]
async fn a_folder_copies_files_that_share_nothing() {
    for absolute in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = folder(dir.path(), absolute);
        let base = if absolute {
            dir.path().display().to_string()
        } else {
            "files".to_owned()
        };
        let key = |tail: &str| format!("{base}/{tail}");
        let file = |tail: &str| {
            let inside = if absolute { tail.to_owned() } else { key(tail) };
            dir.path().join(inside)
        };
        let bytes = noise(3 * MIB);
        put(&store, &key("a/1"), bytes.clone()).await;
        let done = copy(&store, &key("a/1"), &store, &key("new/b/2"))
            .await
            .unwrap();
        println!("on this file system a copy is {:?}", done.how);
        assert!(matches!(done.how, How::Reflink | How::File), "{done:?}");
        let inode = |tail| std::fs::metadata(file(tail)).unwrap().ino();
        assert_ne!(inode("a/1"), inode("new/b/2"), "no hard link");
        // As Milvus writes its local storage: in place.
        std::fs::write(file("a/1"), b"other").unwrap();
        let twin = store.0.get(&key("new/b/2").as_str().into()).await.unwrap();
        assert!(twin == bytes);
        // The file was listed with another size than it has: no copy gets the name.
        let source = key("a/1").as_str().into();
        let origin = Origin {
            key: &source,
            size: 6,
            etag: None,
        };
        let target = key("c").as_str().into();
        let clock = SystemClock::new();
        let e = store
            .1
            .copy_from(&clock, &store.0, origin, &target)
            .await
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
        assert_eq!(
            store.0.head(&target).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        let left = store
            .1
            .unfinished(&base.as_str().into())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(left, []);
    }
}

/// Every operation of a copy through here fails once: what was begun is aborted, and doing it again makes it whole.
#[tokio::test]
async fn a_copy_that_fails_leaves_no_upload_behind() {
    let target = bucket("copy-fails");
    let inner = Arc::new(InMemory::new());
    let plain = small(from_store(inner.clone(), "files"));
    let bytes = noise(16 * MIB);
    put(&plain, "files/a", bytes.clone()).await;
    let mut failed = 0;
    for i in 0.. {
        let faults = Faults::at(i, Mode::FailBefore);
        let store = FaultObjects::new(inner.clone(), faults.clone());
        let source = small(from_store(Arc::new(store), "files"));
        match copy(&source, "files/a", &target, "files/b").await {
            Ok(_) => break,
            Err(e) => assert!(e.is_transient(), "{i}: {e}"),
        }
        failed += 1;
        nothing_left(&target).await;
        let there = target.0.head(&"files/b".into()).await;
        assert_eq!(there.unwrap_err().kind(), ErrorKind::NotFound, "{i}");
    }
    // Two looks at the source and four parts.
    assert_eq!(failed, 6);
    assert!(target.0.get(&"files/b".into()).await.unwrap() == bytes);
}

#[tokio::test]
async fn an_object_that_changes_while_it_is_copied_is_not_copied() {
    let (s3, memory) = (bucket("copy-changes"), memory());
    put(&s3, "files/a", noise(12 * MIB)).await;
    let key = "files/a".into();
    for (to, size) in [(&s3, 11 * MIB), (&memory, 11 * MIB), (&memory, 3)] {
        let origin = Origin {
            key: &key,
            size,
            etag: None,
        };
        let clock = SystemClock::new();
        let target = "files/b".into();
        let made = to.1.copy_from(&clock, &s3.0, origin, &target);
        let e = made.await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
        assert!(e.what().contains("changed while it was copied"), "{e}");
        nothing_left(to).await;
    }
}

/// What a crash leaves: no listing shows it, and it can be given up one by one.
#[tokio::test]
async fn what_a_crash_leaves_is_found_and_given_up() {
    let store = bucket("copy-crash");
    let server = s3::shared().bucket("copy-crash");
    #[allow(
        clippy::disallowed_methods,
        reason = "the crash that this test is about"
    )]
    let begin = async |path: &str| {
        let path = object_store::path::Path::from(path);
        let id = server.create_multipart(&path).await.unwrap();
        let part = vec![7u8; 5 << 20].into();
        server.put_part(&path, &id, 0, part).await.unwrap();
        id
    };
    let mut ids = vec![
        begin("files/new/1/big").await,
        begin("files/new/1/big").await,
    ];
    let other = begin("files/newer/1").await;
    put(&store, "files/new/1/done", Bytes::from_static(b"x")).await;
    let found = store
        .1
        .unfinished(&"files/new".into())
        .await
        .unwrap()
        .unwrap();
    let mut seen: Vec<String> = found.iter().map(|u| u.id.clone()).collect();
    ids.sort();
    seen.sort();
    assert_eq!(seen, ids);
    assert!(
        found.iter().all(|u| u.key.0 == "files/new/1/big"),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .all(|u| u.since.is_some_and(|t| t.0 > NOW.0 - 1_000_000_000_000))
    );
    for upload in &found {
        store.1.give_up(upload).await.unwrap();
        // Twice is no error.
        store.1.give_up(upload).await.unwrap();
    }
    let left = store.1.unfinished(&"files".into()).await.unwrap().unwrap();
    assert_eq!(
        left.iter().map(|u| u.id.clone()).collect::<Vec<_>>(),
        [other]
    );
    assert!(store.0.head(&"files/new/1/done".into()).await.is_ok());

    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path(), false);
    put(&store, "files/new/1", Bytes::from_static(b"x")).await;
    std::fs::write(dir.path().join("files/new/2#12300000001"), b"half").unwrap();
    std::fs::write(dir.path().join("files/new/3#x"), b"a name of its own").unwrap();
    let found = store
        .1
        .unfinished(&"files/new".into())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].key.0, "files/new/2");
    let mut wrong = found[0].clone();
    wrong.id = "1".into();
    assert_eq!(
        store.1.give_up(&wrong).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    store.1.give_up(&found[0]).await.unwrap();
    store.1.give_up(&found[0]).await.unwrap();
    assert!(dir.path().join("files/new/3#x").exists());
    assert!(dir.path().join("files/new/1").exists());
    assert!(!dir.path().join("files/new/2#12300000001").exists());
    assert_eq!(memory().1.unfinished(&"files".into()).await.unwrap(), None);
}

/// A server that refuses everything over so many copies at once, and counts.
struct Busy {
    clock: Arc<VirtualClock>,
    entropy: SeededEntropy,
    bears: u32,
    now: AtomicU32,
    most: AtomicU32,
    refused: AtomicU32,
    served: AtomicU32,
    notes: std::sync::Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl CopyHost for Busy {
    async fn copy(&self, file: &CopyFile) -> Result<()> {
        let running = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.clock.sleep(Duration::from_millis(20)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        if running > self.bears {
            self.refused.fetch_add(1, Ordering::SeqCst);
            let what = format!(
                "copying object {} failed: the server answered 503 SlowDown",
                file.from
            );
            return Err(Error::new(ErrorKind::Unreachable, what));
        }
        self.served.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn note(&self, text: String) {
        self.notes.lock().unwrap().push(text);
    }
    fn parallel(&self) -> u32 {
        64
    }
    fn throttle(&self) -> Option<u64> {
        None
    }
    fn copied(&self, _: &CopyFile) {}
    fn cancelled(&self) -> bool {
        false
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn entropy(&self) -> &dyn Entropy {
        &self.entropy
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_less_is_given_less_and_refuses_few() {
    // The keys hold the numbers of a refusal; only the server's words count.
    let files: Vec<CopyFile> = (0..4_000)
        .map(|i| CopyFile {
            from: format!("files/503/429/a{i}").as_str().into(),
            to: format!("files/b{i}").as_str().into(),
            size: 1,
            etag: None,
            group: 0,
        })
        .collect();
    let clock = VirtualClock::at(NOW);
    let host = Busy {
        clock: clock.clone(),
        entropy: SeededEntropy::new(1),
        bears: 10,
        now: AtomicU32::new(0),
        most: AtomicU32::new(0),
        refused: AtomicU32::new(0),
        served: AtomicU32::new(0),
        notes: std::sync::Mutex::default(),
    };
    let mut done = Done::default();
    let all = Slice {
        files: u32::MAX,
        time: Duration::MAX,
    };
    let begun = clock.mono();
    let ran = copy::run(&host, &files, &mut done, all).await.unwrap();
    assert_eq!((ran, done.count()), (Ran::All, 4_000));
    let read = |n: &AtomicU32| n.load(Ordering::SeqCst);
    assert_eq!(read(&host.served), 4_000, "every file once");
    assert_eq!(read(&host.most), 64, "it began with all that was asked for");
    let refused = read(&host.refused);
    assert!(
        (54..400).contains(&refused),
        "{refused} refusals for 4,000 files"
    );
    // Ten at once of 20 ms each is 8 s: backing off must not mean stopping.
    let took = clock.mono().saturating_sub(begun);
    assert!(took < Duration::from_secs(24), "{took:?}");
    let notes = host.notes.lock().unwrap();
    assert_eq!(notes.len(), 11, "{notes:?}");
    assert!(
        notes[0].contains("failed tries: copying object files/503/429/a"),
        "{}",
        notes[0]
    );
    assert!(notes[10].contains("more files were copied after failed tries"));
}

/// What can never succeed is said with its reason and the number of tries.
#[tokio::test(start_paused = true)]
async fn a_copy_that_never_succeeds_keeps_its_reason() {
    let clock = VirtualClock::at(NOW);
    let host = Busy {
        clock,
        entropy: SeededEntropy::new(1),
        bears: 0,
        now: AtomicU32::new(0),
        most: AtomicU32::new(0),
        refused: AtomicU32::new(0),
        served: AtomicU32::new(0),
        notes: std::sync::Mutex::default(),
    };
    let files = [CopyFile {
        from: "files/a".into(),
        to: "files/b".into(),
        size: 1,
        etag: None,
        group: 0,
    }];
    let mut done = Done::default();
    let e = copy::run(&host, &files, &mut done, copy::SLICE)
        .await
        .unwrap_err();
    assert_eq!(e.context("tries"), Some("8"), "{e}");
    assert!(
        e.what().contains("files/a") && e.what().contains("503 SlowDown"),
        "{e}"
    );
    assert_eq!(host.refused.load(Ordering::SeqCst), 8);
}
