//! The embedded store: the shared suite, and what only a file can do.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use falconer::engine::clock::{Clock, Entropy, ManualClock, SeededEntropy, SystemClock};
use falconer::engine::error::ErrorKind;
use falconer::engine::ids::{KeyPrefix, MetaRev, UnixMs};
use falconer::engine::meta::embedded::{EmbeddedReader, EmbeddedStore};
use falconer::engine::meta::{MetaRead, MetaWrite, Outcome, RangeOpts, Span, Write};

use crate::conformance::{commit, conformance, head, key, next_change, put, writes};
use crate::model_store::Model;

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

#[tokio::test]
async fn the_model_keeps_the_laws() {
    conformance(&Model::new(), 1).await;
}

#[tokio::test]
async fn memory_keeps_the_laws() {
    conformance(&EmbeddedStore::memory().unwrap(), 2).await;
}

#[tokio::test]
async fn a_file_keeps_the_laws() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_file(&dir.path().join("meta.redb"), clock()).unwrap();
    conformance(&store, 3).await;
}

#[tokio::test]
async fn a_file_is_private_and_survives_closing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/meta.redb");
    let store = EmbeddedStore::open_file(&path, clock()).unwrap();
    let rev = commit(&store, writes(vec![put("a", "1")])).await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(store);
    let store = EmbeddedStore::open_file(&path, clock()).unwrap();
    assert_eq!(head(&store).await, rev);
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "1");
    let mut watch = store.watch(Span::all(), MetaRev(2)).await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().unwrap().rev, rev);
    // closing ends the watch with a reason
    drop(store);
    let end = next_change(&mut watch).await.unwrap().unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Cancelled, "{end}");
}

#[tokio::test]
async fn other_files_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.txt");
    std::fs::write(
        &text,
        "not a database, but long enough to be looked at\n".repeat(200),
    )
    .unwrap();
    let err = EmbeddedStore::open_file(&text, clock()).err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Corrupt, "{err}");
    assert!(err.to_string().contains("notes.txt"), "{err}");
    let err = EmbeddedReader::open_file(&dir.path().join("none"), clock())
        .err()
        .unwrap();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");

    let newer = dir.path().join("newer.redb");
    drop(EmbeddedStore::open_file(&newer, clock()).unwrap());
    {
        let table = redb::TableDefinition::<&str, i64>::new("meta");
        let db = redb::Database::create(&newer).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(table).unwrap().insert("format", 2).unwrap();
        txn.commit().unwrap();
    }
    for err in [
        EmbeddedStore::open_file(&newer, clock()).err().unwrap(),
        EmbeddedReader::open_file(&newer, clock()).err().unwrap(),
    ] {
        assert_eq!(err.kind(), ErrorKind::Unsupported, "{err}");
        assert!(err.to_string().contains("format 2"), "{err}");
    }
}

#[tokio::test]
async fn a_dump_is_read_only_and_keeps_its_revisions() {
    let source = EmbeddedStore::memory().unwrap();
    for i in 0..5 {
        commit(
            &source,
            writes(vec![put("d/a", i.to_string()), put(format!("d/{i}"), "x")]),
        )
        .await;
    }
    let page = source.range_all(&Span::all()).await.unwrap();
    let dump = EmbeddedReader::dump(&page.kvs, Some(MetaRev(99))).unwrap();
    let copy = dump.range_all(&Span::all()).await.unwrap();
    assert_eq!(copy.kvs, page.kvs);
    assert_eq!(copy.rev, MetaRev(99));
    assert_eq!(dump.status().await.unwrap().server, "dump");
    let err = dump.watch(Span::all(), MetaRev(50)).await.err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Compacted, "{err}");

    let target = EmbeddedStore::memory().unwrap();
    target.load(page.kvs.clone(), None).await.unwrap();
    assert_eq!(target.range_all(&Span::all()).await.unwrap().kvs, page.kvs);
    assert_eq!(
        commit(&target, writes(vec![put("d/a", "new")])).await,
        page.rev.next()
    );
    let err = target.load(page.kvs, None).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err}");
}

#[tokio::test]
async fn a_lease_runs_out_when_it_is_not_renewed() {
    let manual = Arc::new(ManualClock::at(UnixMs(1_700_000_000_000)));
    let store = EmbeddedStore::memory_with(manual.clone()).unwrap();
    let lease = store.grant(Duration::from_secs(10)).await.unwrap();
    let bound = Write::Put {
        key: key("lock"),
        value: "me".into(),
        lease,
    };
    let rev = commit(&store, writes(vec![bound])).await;
    let mut watch = store.watch(Span::all(), rev.next()).await.unwrap();
    manual.advance(Duration::from_secs(9));
    store.keep_alive(lease).await.unwrap();
    manual.advance(Duration::from_secs(9));
    assert!(store.get(&key("lock")).await.unwrap().is_some());
    manual.advance(Duration::from_secs(2));
    // a watch hears it although nobody asks
    let batch = next_change(&mut watch).await.unwrap().unwrap();
    assert_eq!((batch.rev, batch.events.len()), (rev.next(), 1));
    assert!(store.get(&key("lock")).await.unwrap().is_none());
    let err = store.keep_alive(lease).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
}

#[tokio::test]
async fn a_new_writer_ends_all_leases() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let store = EmbeddedStore::open_file(&path, clock()).unwrap();
    let lease = store.grant(Duration::from_mins(10)).await.unwrap();
    let bound = Write::Put {
        key: key("lock"),
        value: "me".into(),
        lease,
    };
    let rev = commit(&store, writes(vec![bound, put("data", "1")])).await;
    drop(store);
    let store = EmbeddedStore::open_file(&path, clock()).unwrap();
    let page = store
        .range(&Span::all(), RangeOpts::default())
        .await
        .unwrap();
    assert_eq!(page.kvs.len(), 1);
    assert_eq!(page.rev, rev.next(), "its end is a change like any other");
    assert_ne!(store.grant(Duration::from_secs(1)).await.unwrap(), lease);
}

// --- other processes -------------------------------------------------------------------------------------------------

/// Set in a child: what it does. The child is this test program again, asked for one test.
const ROLE: &str = "FALCONER_META_CHILD";

struct Peer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Peer {
    fn start(role: &str, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "embedded::child_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .env("FALCONER_META_FILE", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line that the child means for us; `None` when it has ended. A line without its end was cut off by the kill.
    fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                return None;
            }
            if let Some((_, ours)) = line.trim_end().split_once("##") {
                return Some(ours.to_owned());
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "##{line}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the body of the child processes. Without the variable it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let path = std::env::var("FALCONER_META_FILE").unwrap();
    let store = EmbeddedStore::open_file(Path::new(&path), clock());
    match role.as_str() {
        "commit" => {
            let store = store.unwrap();
            tell("open");
            let mut n = head(&store).await.0;
            loop {
                n += 1;
                // five keys that must agree, and one key that only grows
                let text = n.to_string();
                let mut all: Vec<_> = (0..5).map(|i| put(format!("crash/{i}"), &text)).collect();
                all.push(put(format!("log/{n:012}"), "x".repeat(700)));
                let rev = commit(&store, writes(all)).await;
                tell(&rev.to_string());
            }
        }
        "hold" => {
            let store = store.unwrap();
            tell("open");
            let mut line = String::new();
            while std::io::stdin().read_line(&mut line).unwrap() > 0 {
                let rev = commit(&store, writes(vec![put("held", line.trim())])).await;
                tell(&rev.to_string());
                line.clear();
            }
        }
        other => panic!("unknown role {other}"),
    }
}

#[tokio::test]
async fn acknowledged_transactions_survive_kill_9() {
    const ROUNDS: usize = 25;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let entropy = SeededEntropy::new(0xdead);
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let mut peer = Peer::start("commit", &path);
        assert_eq!(peer.line().as_deref(), Some("open"), "round {round}");
        // after some acknowledgements, and then in the middle of whatever it does next
        for _ in 0..entropy.next_u64() % 40 {
            acknowledged = peer.line().unwrap().parse().unwrap();
        }
        for _ in 0..entropy.next_u64() % 20_000 {
            std::hint::spin_loop();
        }
        peer.child.kill().unwrap();
        while let Some(line) = peer.line() {
            acknowledged = line.parse().unwrap();
        }
        drop(peer);

        let store = EmbeddedStore::open_file(&path, clock()).unwrap();
        let last = head(&store).await;
        assert!(
            last.0 >= acknowledged,
            "round {round}: {last} < {acknowledged}"
        );
        assert!(last.0 <= acknowledged + 1, "one transaction was under way");
        let span = Span::prefix(&KeyPrefix::new("crash"));
        let crash = store.range_all(&span).await.unwrap().kvs;
        for kv in &crash {
            assert_eq!(kv.mod_rev, last, "round {round}: a torn transaction");
            assert_eq!(kv.value, last.to_string(), "round {round}");
        }
        let grown = store
            .range_all(&Span::prefix(&KeyPrefix::new("log")))
            .await
            .unwrap();
        assert_eq!(
            i64::try_from(grown.kvs.len()).unwrap(),
            last.0 - 1,
            "round {round}: none lost"
        );
        // and the log tells the same story
        let mut watch = store.watch(span, MetaRev(2)).await.unwrap();
        for rev in 2..=last.0 {
            let batch = next_change(&mut watch).await.unwrap().unwrap();
            assert_eq!((batch.rev.0, batch.events.len()), (rev, 5));
        }
    }
    assert!(acknowledged > 20, "the children did write: {acknowledged}");
}

#[tokio::test]
async fn a_second_process_is_told_who_holds_the_file_and_reads_along() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let mut peer = Peer::start("hold", &path);
    assert_eq!(peer.line().as_deref(), Some("open"));

    let err = EmbeddedStore::open_file(&path, clock()).err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Busy, "{err}");
    assert!(
        err.to_string()
            .contains(&format!("pid {}", peer.child.id())),
        "{err}"
    );
    assert!(err.to_string().contains("meta"), "{err}");
    assert!(err.to_string().contains("since 20"), "{err}");

    let reader = EmbeddedReader::open_file(&path, clock()).unwrap();
    let holder = reader.holder().unwrap();
    assert_eq!((holder.pid, holder.alive), (peer.child.id(), Some(true)));
    let from = head(&reader).await.next();
    let mut watch = reader.watch(Span::all(), from).await.unwrap();
    for i in 0..20 {
        writeln!(peer.child.stdin.as_mut().unwrap(), "{i}").unwrap();
        let rev: i64 = peer.line().unwrap().parse().unwrap();
        // acknowledged there, visible here
        let held = reader.get(&key("held")).await.unwrap().unwrap();
        assert_eq!(
            (held.value.as_ref(), held.mod_rev.0),
            (i.to_string().as_bytes(), rev)
        );
        let batch = next_change(&mut watch).await.unwrap().unwrap();
        assert_eq!(batch.rev.0, rev);
    }
    // it is killed: what was acknowledged stays readable, and the next process may write
    peer.child.kill().unwrap();
    peer.child.wait().unwrap();
    assert_eq!(reader.get(&key("held")).await.unwrap().unwrap().value, "19");
    assert_eq!(reader.holder().unwrap().alive, Some(false));
    let left = std::fs::read(&path).unwrap();
    let late = EmbeddedReader::open_file(&path, clock()).unwrap();
    assert!(
        std::fs::read(&path).unwrap() == left,
        "who only reads does not close the file in the dead writer's stead"
    );
    assert_eq!(late.get(&key("held")).await.unwrap().unwrap().value, "19");
    let store = EmbeddedStore::open_file(&path, clock()).unwrap();
    let rev = commit(&store, writes(vec![put("held", "mine")])).await;
    let batch = next_change(&mut watch).await.unwrap().unwrap();
    assert_eq!(batch.rev, rev, "the reader follows the new writer");
    let outcome = store
        .txn(writes(vec![Write::Delete(key("held"))]))
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }));
    drop(store);
    assert!(reader.holder().is_none(), "a clean end leaves no holder");
}
