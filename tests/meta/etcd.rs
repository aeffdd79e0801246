//! Real etcd of both generations: the shared suite, and what only a server on a network can do.

use std::sync::Arc;
use std::time::Duration;

use falconer::engine::clock::{Clock, SystemClock};
use falconer::engine::error::{Error, ErrorKind};
use falconer::engine::ids::{KeyPrefix, MetaRev, UnixMs};
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::{
    Cond, Event, MetaRead, MetaWrite, Outcome, RangeOpts, Span, Txn, Write,
};
use falconer::engine::profile::{EtcdProfile, TlsProfile};
use futures::StreamExt;
use futures::future::BoxFuture;
use secrecy::SecretString;
use tokio::io::AsyncWriteExt;

use crate::conformance::{commit, conformance, head, key, next_change, put, soon, writes};
use crate::support::process::{PATIENCE, wait_until};
use crate::support::servers::{Etcd, EtcdVersion, Nobody, Tls};

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

async fn store(etcd: &Etcd) -> EtcdStore {
    let profile = EtcdProfile::plain([etcd.endpoint()]);
    EtcdStore::connect(&profile, clock()).await.unwrap()
}

#[tokio::test]
async fn etcd_3_4_keeps_the_laws() {
    let etcd = Etcd::start(EtcdVersion::V34);
    let store = store(&etcd).await;
    assert!(
        store
            .status()
            .await
            .unwrap()
            .server
            .starts_with("etcd 3.4.")
    );
    conformance(&store, 34).await;
}

#[tokio::test]
async fn etcd_3_5_keeps_the_laws() {
    let etcd = Etcd::start(EtcdVersion::V35);
    let store = store(&etcd).await;
    assert!(
        store
            .status()
            .await
            .unwrap()
            .server
            .starts_with("etcd 3.5.")
    );
    conformance(&store, 35).await;
}

/// Time that passes twenty times as fast, for deadlines that a test would not wait for.
struct Hurried(SystemClock);

const HURRY: u32 = 20;

impl Clock for Hurried {
    fn now(&self) -> UnixMs {
        self.0.now()
    }

    fn mono(&self) -> Duration {
        self.0.mono() * HURRY
    }

    fn sleep(&self, how_long: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(how_long / HURRY)
    }
}

fn profile(etcd: &Etcd) -> EtcdProfile {
    let tls = etcd.certs().map(|certs| TlsProfile {
        ca: Some(certs.ca.clone()),
        ..TlsProfile::default()
    });
    EtcdProfile {
        tls,
        ..EtcdProfile::plain([etcd.endpoint()])
    }
}

async fn refusal(profile: &EtcdProfile) -> Error {
    match EtcdStore::connect(profile, clock()).await {
        Ok(_) => panic!("connected with {profile:?}"),
        Err(e) => e,
    }
}

/// Kind and words of a message.
#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

async fn reads_writes_and_watches(store: &EtcdStore) {
    let from = head(store).await.next();
    let mut watch = store.watch(Span::all(), from).await.unwrap();
    for i in 0..8 {
        let rev = commit(store, writes(vec![put("f", i.to_string())])).await;
        let kv = store.get(&key("f")).await.unwrap().unwrap();
        assert_eq!(
            (kv.value.as_ref(), kv.mod_rev),
            (i.to_string().as_bytes(), rev)
        );
        assert_eq!(next_change(&mut watch).await.unwrap().unwrap().rev, rev);
    }
    let lease = store.grant(Duration::from_secs(30)).await.unwrap();
    store.keep_alive(lease).await.unwrap();
    store.revoke(lease).await.unwrap();
}

#[tokio::test]
async fn a_dead_endpoint_costs_an_attempt_and_no_result() {
    let etcd = Etcd::start(EtcdVersion::V35);
    let nobody = Nobody::new();
    let nobody2 = Nobody::new();
    let orders = [
        vec![nobody.endpoint(), etcd.endpoint()],
        vec![etcd.endpoint(), nobody.endpoint()],
        vec![nobody.endpoint(), nobody2.endpoint(), etcd.endpoint()],
    ];
    for endpoints in orders {
        let profile = EtcdProfile::plain(endpoints.clone());
        let store = EtcdStore::connect(&profile, clock()).await.unwrap();
        reads_writes_and_watches(&store).await;
        let status = store.status().await.unwrap();
        for (member, endpoint) in status.members.iter().zip(&endpoints) {
            assert_eq!(&member.endpoint, endpoint);
            let alive = *endpoint == etcd.endpoint();
            assert_eq!((member.answer.is_ok(), member.leader), (alive, alive));
        }
    }
    let err = refusal(&EtcdProfile::plain([nobody.endpoint(), nobody2.endpoint()])).await;
    let (a, b) = (nobody.endpoint(), nobody2.endpoint());
    says(
        &err,
        ErrorKind::Unreachable,
        &[&a, &b, "etcd.endpoints", "refused"],
    );
    says(
        &refusal(&EtcdProfile::plain([a.clone()])).await,
        ErrorKind::Unreachable,
        &[&a, "etcd.endpoints"],
    );
    let none: [&str; 0] = [];
    says(
        &refusal(&EtcdProfile::plain(none)).await,
        ErrorKind::Config,
        &["etcd.endpoints"],
    );
}

/// Freezes it and waits until every thread of it stands still.
fn freeze(etcd: &Etcd) {
    etcd.freeze();
    let tasks = format!("/proc/{}/task", etcd.pid());
    let is_still = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // the state follows the command's name, which is in brackets
        stat.rsplit(") ")
            .next()
            .is_none_or(|rest| rest.starts_with('T'))
    };
    let all_still = || {
        let mut tasks = std::fs::read_dir(&tasks).unwrap();
        tasks.all(|task| is_still(task.unwrap()))
    };
    assert!(wait_until(PATIENCE, all_still), "etcd does not stop");
}

#[tokio::test]
async fn an_endpoint_that_hangs_or_dies() {
    let mut etcd = Etcd::start(EtcdVersion::V34);
    let hung = Etcd::start(EtcdVersion::V34);
    freeze(&hung);
    let mut profile = EtcdProfile::plain([hung.endpoint(), etcd.endpoint()]);
    profile.request_timeout = Duration::from_millis(400);
    let store = EtcdStore::connect(&profile, clock()).await.unwrap();
    reads_writes_and_watches(&store).await;

    // it hangs while it is asked: a read is safe to repeat, a write may have happened
    let mut watch = store
        .watch(Span::all(), head(&store).await.next())
        .await
        .unwrap();
    freeze(&etcd);
    let err = store.txn(writes(vec![put("g", "1")])).await.unwrap_err();
    says(&err, ErrorKind::OutcomeUnknown, &["400 ms", "marker"]);
    let err = store.get(&key("g")).await.unwrap_err();
    says(
        &err,
        ErrorKind::Unreachable,
        &[&etcd.endpoint(), &hung.endpoint()],
    );
    etcd.thaw();
    // nobody but the store itself can tell, and the watch tells the same
    let mut last = head(&store).await;
    let mut happened = false;
    last = last.max(commit(&store, writes(vec![put("after", "1")])).await);
    loop {
        let batch = next_change(&mut watch).await.unwrap().unwrap();
        happened |= batch.events.iter().any(|e| e.key() == &key("g"));
        if batch.rev >= last {
            break;
        }
    }
    assert_eq!(store.get(&key("g")).await.unwrap().is_some(), happened);

    // it dies: the watch says so, and a write that could not be sent did not happen
    etcd.kill();
    let err = next_change(&mut watch).await.unwrap().unwrap_err();
    says(&err, ErrorKind::Unreachable, &[&etcd.endpoint()]);
    hung.thaw();
    drop(hung);
    let err = loop {
        let err = store.txn(writes(vec![put("h", "1")])).await.unwrap_err();
        if err.kind() != ErrorKind::OutcomeUnknown {
            break err;
        }
    };
    says(&err, ErrorKind::Unreachable, &["refused"]);
    etcd.restart();
    let store = EtcdStore::connect(&EtcdProfile::plain([etcd.endpoint()]), clock())
        .await
        .unwrap();
    assert!(store.get(&key("h")).await.unwrap().is_none());
    assert_eq!(store.get(&key("g")).await.unwrap().is_some(), happened);
}

/// The leader dies under a writer and a watcher: every write is committed once, refused, or settled by reading, and the
/// watch, taken up where it ended, tells the same story.
#[tokio::test]
async fn a_leader_of_three_dies() {
    let mut three = Etcd::three(EtcdVersion::V35);
    let endpoints = three.each_ref().map(Etcd::endpoint);
    let mut profile = EtcdProfile::plain(endpoints.clone());
    profile.request_timeout = Duration::from_secs(2);
    let store = EtcdStore::connect(&profile, clock()).await.unwrap();
    let before = head(&store).await;
    let mut watch = store.watch(Span::all(), before.next()).await.unwrap();

    let mut last = commit(&store, writes(vec![put("w", "start")])).await;
    let (mut written, mut seen, mut unknown) = (Vec::new(), Vec::new(), 0);
    written.push((last, "start".to_owned()));
    for i in 0..40 {
        if i == 12 {
            let status = store.status().await.unwrap();
            assert_eq!(status.members.iter().filter(|m| m.leader).count(), 1);
            let leader = status.members.iter().position(|m| m.leader).unwrap();
            three[leader].kill();
        }
        let value = i.to_string();
        // An election takes about a second. What is sent again must not happen twice, so each write names what it replaces.
        let next = Txn {
            conds: vec![Cond::At(key("w"), last)],
            writes: vec![put("w", &value)],
        };
        last = loop {
            match store.txn(next.clone()).await {
                Ok(Outcome::Committed { rev }) => break rev,
                Ok(Outcome::Refused { seen, .. }) => {
                    let [held] = &seen[..] else {
                        panic!("{seen:?}")
                    };
                    assert_eq!(held.value, value.as_bytes(), "somebody else wrote");
                    break held.mod_rev;
                }
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown => unknown += 1,
                Err(e) => says(&e, ErrorKind::Unreachable, &["etcd.endpoints"]),
            }
            clock().sleep(Duration::from_millis(50)).await;
        };
        written.push((last, value));
    }
    while seen.len() < written.len() {
        let from = seen
            .last()
            .map_or(before, |(rev, _): &(MetaRev, String)| *rev);
        match next_change(&mut watch).await {
            Some(Ok(batch)) => {
                for event in &batch.events {
                    if let Event::Put(kv) = event {
                        seen.push((batch.rev, String::from_utf8_lossy(&kv.value).into_owned()));
                    }
                }
            }
            _ => watch = store.watch(Span::all(), from.next()).await.unwrap(),
        }
    }
    assert_eq!(seen, written, "{unknown} outcomes were unknown");
    for etcd in three.iter_mut().filter(|e| !e.is_running()) {
        etcd.restart();
    }
    let status = store.status().await.unwrap();
    assert!(status.members.iter().all(|m| m.answer.is_ok()));
    assert_eq!(status.members.iter().filter(|m| m.leader).count(), 1);
}

#[tokio::test]
async fn a_silent_watch_is_noticed() {
    let etcd = Etcd::start(EtcdVersion::V34);
    let hurried = Arc::new(Hurried(SystemClock::new()));
    let mut profile = profile(&etcd);
    profile.request_timeout *= HURRY;
    profile.dial_timeout *= HURRY;
    let store = EtcdStore::connect(&profile, hurried).await.unwrap();
    let from = head(&store).await;
    let mut watch = store.watch(Span::all(), from.next()).await.unwrap();
    // an idle watch says that it lives, for longer than the limit
    for _ in 0..8 {
        let beat = soon(watch.next()).await.unwrap().unwrap();
        assert!(beat.events.is_empty());
        assert_eq!(
            beat.rev, from,
            "3.4.23 does not prove more than was asked for"
        );
    }
    freeze(&etcd);
    let err = next_change(&mut watch).await.unwrap().unwrap_err();
    says(&err, ErrorKind::Unreachable, &["silent", &etcd.endpoint()]);
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn tls_with_a_server_certificate() {
    let etcd = Etcd::options(EtcdVersion::V35).tls(Tls::ServerOnly).start();
    let good = profile(&etcd);
    let store = EtcdStore::connect(&good, clock()).await.unwrap();
    reads_writes_and_watches(&store).await;
    let tls = good.tls.clone().unwrap();
    let with = |change: fn(&mut TlsProfile)| {
        let mut tls = tls.clone();
        change(&mut tls);
        EtcdProfile {
            tls: Some(tls),
            ..good.clone()
        }
    };

    // without a scheme, as milvus.yaml has it
    let bare = EtcdProfile {
        endpoints: vec![format!("localhost:{}", etcd.port())],
        ..good.clone()
    };
    EtcdStore::connect(&bare, clock()).await.unwrap();

    let other = Etcd::options(EtcdVersion::V35).tls(Tls::ServerOnly).start();
    let mut wrong_ca = good.clone();
    wrong_ca.tls = profile(&other).tls;
    says(
        &refusal(&wrong_ca).await,
        ErrorKind::Config,
        &["etcd.ssl.tlsCACert", "authority"],
    );
    let wrong_name = with(|tls| tls.domain = Some("etcd.example".into()));
    says(
        &refusal(&wrong_name).await,
        ErrorKind::Config,
        &["subject alternative names"],
    );
    let no_ca = with(|tls| tls.ca = None);
    says(
        &refusal(&no_ca).await,
        ErrorKind::Config,
        &["etcd.ssl.tlsCACert"],
    );
    let missing = with(|tls| tls.ca = Some("/none/ca.pem".into()));
    says(
        &refusal(&missing).await,
        ErrorKind::Config,
        &["etcd.ssl.tlsCACert", "/none/ca.pem"],
    );
    let half = with(|tls| tls.cert = Some("/none/client.pem".into()));
    says(
        &refusal(&half).await,
        ErrorKind::Config,
        &["etcd.ssl.tlsCert", "etcd.ssl.tlsKey"],
    );
    let not_pem = with(|tls| tls.ca = Some("Cargo.toml".into()));
    says(
        &refusal(&not_pem).await,
        ErrorKind::Config,
        &["etcd.ssl.tlsCACert", "PEM"],
    );

    // plain to a TLS port, TLS to a plain port, and a scheme that contradicts
    let plain = EtcdProfile::plain([format!("127.0.0.1:{}", etcd.port())]);
    says(
        &refusal(&plain).await,
        ErrorKind::Unreachable,
        &["etcd.ssl.enabled"],
    );
    let plain_etcd = Etcd::start(EtcdVersion::V34);
    let mut too_much = good.clone();
    too_much.endpoints = vec![format!("127.0.0.1:{}", plain_etcd.port())];
    says(
        &refusal(&too_much).await,
        ErrorKind::Config,
        &["etcd.ssl.enabled"],
    );
    too_much.endpoints = vec![plain_etcd.endpoint()];
    says(
        &refusal(&too_much).await,
        ErrorKind::Config,
        &["etcd.ssl.enabled", "http"],
    );
    let https = EtcdProfile::plain([etcd.endpoint()]);
    says(
        &refusal(&https).await,
        ErrorKind::Config,
        &["etcd.ssl.enabled"],
    );
}

#[tokio::test]
async fn tls_with_both_certificates() {
    for version in EtcdVersion::ALL {
        let etcd = Etcd::options(version).tls(Tls::Mutual).start();
        let certs = etcd.certs().unwrap().clone();
        let without = profile(&etcd);
        let mut good = without.clone();
        good.tls = Some(TlsProfile {
            ca: Some(certs.ca.clone()),
            cert: Some(certs.client_cert.clone()),
            key: Some(certs.client_key.clone()),
            domain: None,
        });
        let store = EtcdStore::connect(&good, clock()).await.unwrap();
        reads_writes_and_watches(&store).await;
        says(
            &refusal(&without).await,
            ErrorKind::Config,
            &["client certificate", "etcd.ssl.tlsCert", "etcd.ssl.tlsKey"],
        );
        // a certificate of somebody else's authority
        let other = Etcd::options(version).tls(Tls::Mutual).start();
        let stranger = other.certs().unwrap();
        let mut wrong = good.clone();
        wrong.tls = Some(TlsProfile {
            ca: Some(certs.ca.clone()),
            cert: Some(stranger.client_cert.clone()),
            key: Some(stranger.client_key.clone()),
            domain: None,
        });
        says(
            &refusal(&wrong).await,
            ErrorKind::Config,
            &["etcd.ssl.tlsCert"],
        );
        let mut mixed = good.clone();
        mixed.tls = Some(TlsProfile {
            ca: Some(certs.ca.clone()),
            cert: Some(certs.client_cert.clone()),
            key: Some(stranger.client_key.clone()),
            domain: None,
        });
        says(
            &refusal(&mixed).await,
            ErrorKind::Config,
            &["etcd.ssl.tlsCert", "etcd.ssl.tlsKey"],
        );
    }
}

#[tokio::test]
async fn user_and_password() {
    for version in EtcdVersion::ALL {
        let mut etcd = Etcd::options(version).root_password("se-cret").start();
        let with = |user: &str, password: &str| EtcdProfile {
            user: Some((user.to_owned(), SecretString::from(password))),
            ..profile(&etcd)
        };
        let good = with("root", "se-cret");
        let keys = ["etcd.auth.userName", "etcd.auth.password"];
        for wrong in [with("root", "other"), with("nobody", "se-cret")] {
            let err = refusal(&wrong).await;
            says(&err, ErrorKind::Denied, &keys);
            assert!(!err.to_string().contains("other"), "{err}");
        }
        says(&refusal(&profile(&etcd)).await, ErrorKind::Denied, &keys);
        let store = EtcdStore::connect(&good, clock()).await.unwrap();
        reads_writes_and_watches(&store).await;
        assert!(store.status().await.unwrap().notes.is_empty());

        // a restart forgets every token: reads, writes and watches ask for a new one
        etcd.restart();
        let from = head(&store).await;
        etcd.restart();
        let mut watch = store.watch(Span::all(), from.next()).await.unwrap();
        etcd.restart();
        let err = next_change(&mut watch).await.unwrap().unwrap_err();
        says(&err, ErrorKind::Unreachable, &[]);
        reads_writes_and_watches(&store).await;
    }
}

#[tokio::test]
async fn a_password_that_the_server_does_not_want_is_a_note() {
    let etcd = Etcd::start(EtcdVersion::V34);
    let profile = EtcdProfile {
        user: Some(("root".into(), SecretString::from("se-cret"))),
        ..profile(&etcd)
    };
    let store = EtcdStore::connect(&profile, clock()).await.unwrap();
    reads_writes_and_watches(&store).await;
    let notes = store.status().await.unwrap().notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("etcd.auth.enabled"), "{notes:?}");
    assert!(!notes[0].contains("se-cret"));
}

#[tokio::test]
async fn a_large_range_comes_in_one_message() {
    let etcd = Etcd::start(EtcdVersion::V34);
    let store = store(&etcd).await;
    let value = vec![b'x'; 1_400_000];
    for i in 0..30 {
        commit(
            &store,
            writes(vec![Write::put(key(format!("big/{i:02}")), value.clone())]),
        )
        .await;
    }
    let span = Span::prefix(&KeyPrefix::new("big"));
    let page = store.range(&span, RangeOpts::default()).await.unwrap();
    let bytes: usize = page.kvs.iter().map(|kv| kv.value.len()).sum();
    assert_eq!((page.kvs.len(), bytes, page.more), (30, 42_000_000, false));
    // and the backlog of a watch, in fragments or not, revision by revision
    let mut watch = store.watch(span, MetaRev(2)).await.unwrap();
    for kv in &page.kvs {
        let batch = next_change(&mut watch).await.unwrap().unwrap();
        assert_eq!(batch.events, [Event::Put(kv.clone())]);
    }
}

#[tokio::test]
async fn a_full_database_is_named() {
    let etcd = Etcd::options(EtcdVersion::V34)
        .arg("--quota-backend-bytes=8388608")
        .start();
    let store = store(&etcd).await;
    let mut refused = None;
    for i in 0..40 {
        let txn = writes(vec![Write::put(
            key(format!("fill/{i}")),
            vec![b'x'; 1_000_000],
        )]);
        if let Err(e) = store.txn(txn).await {
            refused = Some(e);
            break;
        }
    }
    says(
        &refused.unwrap(),
        ErrorKind::Full,
        &["NOSPACE", "defragment", "quota-backend-bytes"],
    );
    let status = store.status().await.unwrap();
    assert_eq!(status.alarms, ["NOSPACE"]);
    assert!(status.db_bytes.unwrap() > 8_000_000);
    assert!(
        store.get(&key("fill/0")).await.unwrap().is_some(),
        "reading goes on"
    );
}

#[tokio::test]
async fn what_is_not_etcd_is_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    let err = refusal(&EtcdProfile::plain([format!("127.0.0.1:{port}")])).await;
    says(
        &err,
        ErrorKind::Unreachable,
        &[&port.to_string(), "etcd.endpoints"],
    );
    server.abort();
}

/// A backlog larger than a message comes in fragments, cut anywhere: a revision is whole all the same.
#[tokio::test]
async fn a_revision_is_whole_though_its_messages_are_not() {
    for version in EtcdVersion::ALL {
        let etcd = Etcd::start(version);
        let store = store(&etcd).await;
        let value = vec![b'x'; 9_000];
        let mut expected = Vec::new();
        for n in 0..12 {
            let all = (0..120).map(|i| Write::put(key(format!("w/{n}/{i:03}")), value.clone()));
            expected.push(commit(&store, writes(all.collect())).await);
        }
        let mut watch = store.watch(Span::all(), MetaRev(2)).await.unwrap();
        for rev in expected {
            let batch = next_change(&mut watch).await.unwrap().unwrap();
            assert_eq!((batch.rev, batch.events.len()), (rev, 120));
        }
    }
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_runs_out() {
    let etcd = Etcd::start(EtcdVersion::V34);
    let store = store(&etcd).await;
    let lease = store.grant(Duration::from_secs(1)).await.unwrap();
    let bound = Write::Put {
        key: key("lock"),
        value: "me".into(),
        lease,
    };
    let rev = commit(&store, writes(vec![bound])).await;
    let mut watch = store.watch(Span::all(), rev.next()).await.unwrap();
    let batch = next_change(&mut watch).await.unwrap().unwrap();
    assert_eq!(batch.events, [Event::Delete(key("lock"), rev.next())]);
    let err = store.keep_alive(lease).await.unwrap_err();
    says(&err, ErrorKind::NotFound, &[]);
}

/// Milvus's own etcd user often has its root path and nothing else.
#[tokio::test]
async fn a_user_with_few_rights() {
    let etcd = Etcd::options(EtcdVersion::V35)
        .root_password("se-cret")
        .start();
    let mut auth = etcd.client().await.auth_client();
    auth.user_add("milvus", "mil-vus", None).await.unwrap();
    auth.role_add("by-dev").await.unwrap();
    let rights = etcd_client::Permission::read_write("by-dev/").with_prefix();
    auth.role_grant_permission("by-dev", rights).await.unwrap();
    auth.user_grant_role("milvus", "by-dev").await.unwrap();
    let profile = EtcdProfile {
        user: Some(("milvus".into(), SecretString::from("mil-vus"))),
        ..profile(&etcd)
    };
    let store = EtcdStore::connect(&profile, clock()).await.unwrap();
    let rev = commit(&store, writes(vec![put("by-dev/a", "1")])).await;
    let span = Span::prefix(&KeyPrefix::new("by-dev"));
    let mut watch = store.watch(span, rev).await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().unwrap().rev, rev);
    assert!(
        store
            .status()
            .await
            .unwrap()
            .server
            .starts_with("etcd 3.5.")
    );

    let keys = ["etcd.auth.userName", "role"];
    says(
        &store.get(&key("other")).await.unwrap_err(),
        ErrorKind::Denied,
        &keys,
    );
    let txn = writes(vec![put("other", "1")]);
    says(&store.txn(txn).await.unwrap_err(), ErrorKind::Denied, &keys);
    let refused = store.watch(Span::all(), rev).await.err().unwrap();
    says(&refused, ErrorKind::Denied, &keys);
}
