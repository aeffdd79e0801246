//! The real servers that the other tests lean on: each really starts, checks who asks, keeps what it was given, and
//! ends by its pid.

mod support;

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, TlsOptions};
use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions};

use support::lab;
use support::process::{PATIENCE, block_on, wait_until};
use support::s3::{self, S3};
use support::servers::{Etcd, EtcdVersion, Nobody, Tls};

#[test]
fn the_captured_cluster_is_whole() {
    let keys = lab::etcd();
    assert_eq!(keys.len(), 1_710);
    assert!(keys.windows(2).all(|w| w[0].key < w[1].key), "key order");
    let sessions = keys.iter().filter(|k| k.is_session()).count();
    assert_eq!(sessions, 8);
    assert_eq!(lab::etcd_without_sessions().len(), keys.len() - sessions);
    assert!(
        keys.iter().all(|k| k.is_session() == (k.lease != 0)),
        "sessions and only sessions have a lease"
    );

    let listing = lab::listing();
    let objects = lab::objects();
    assert_eq!(objects.len(), 1_301);
    let listed: Vec<(&str, usize)> = {
        let mut all: Vec<_> = listing
            .iter()
            .map(|o| (o.key.as_str(), usize::try_from(o.size).expect("a size")))
            .collect();
        all.sort_unstable();
        all
    };
    let unpacked: Vec<(&str, usize)> = objects
        .iter()
        .map(|(key, bytes)| (key.as_str(), bytes.len()))
        .collect();
    assert_eq!(listed, unpacked, "objects are those of the listing");

    let truth = lab::truth();
    let databases = truth["databases"].as_object().expect("databases");
    assert_eq!(databases.len(), 2);
}

#[test]
fn etcd_3_4_keeps_a_key_over_stop_and_kill() {
    block_on(keeps_a_key_over_stop_and_kill(EtcdVersion::V34));
}

#[test]
fn etcd_3_5_keeps_a_key_over_stop_and_kill() {
    block_on(keeps_a_key_over_stop_and_kill(EtcdVersion::V35));
}

#[allow(
    clippy::disallowed_methods,
    reason = "the server is under test, not the engine"
)]
async fn keeps_a_key_over_stop_and_kill(version: EtcdVersion) {
    let mut etcd = Etcd::start(version);
    let port = etcd.port();
    let said = etcd.client().await.status().await.expect("a status");
    let wanted = match version {
        EtcdVersion::V34 => "3.4.",
        EtcdVersion::V35 => "3.5.",
    };
    assert!(said.version().starts_with(wanted), "{}", said.version());
    etcd.client()
        .await
        .put("bird", "peregrine", None)
        .await
        .expect("a put");

    for ends in [Etcd::stop, Etcd::kill] {
        let pid = etcd.pid();
        ends(&mut etcd);
        assert!(!is_running(pid), "pid {pid} has ended");
        etcd.restart();
        assert_eq!(etcd.port(), port);
        assert_ne!(etcd.pid(), pid);
        assert_eq!(value(&etcd, "bird").await.as_deref(), Some("peregrine"));
    }

    let pid = etcd.pid();
    let data = etcd.data_dir();
    drop(etcd);
    assert!(!is_running(pid), "pid {pid} has ended");
    assert!(!data.exists(), "its data is gone");
}

async fn value(etcd: &Etcd, key: &str) -> Option<String> {
    let answer = etcd.client().await.get(key, None).await.expect("a get");
    answer
        .kvs()
        .first()
        .map(|kv| kv.value_str().expect("text").to_owned())
}

/// A process that ended but was not reaped yet counts as running: its holder must have reaped it.
fn is_running(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

/// What a client without the right papers gets: an error, in time.
async fn refused(etcd: &Etcd, options: ConnectOptions) -> String {
    let options = options
        .with_connect_timeout(PATIENCE)
        .with_timeout(PATIENCE);
    let mut client = match Client::connect([etcd.endpoint()], Some(options)).await {
        Ok(client) => client,
        Err(e) => return e.to_string(),
    };
    match client.get("bird", None).await {
        Ok(answer) => panic!("{} let it in: {answer:?}", etcd.endpoint()),
        Err(e) => e.to_string(),
    }
}

fn ca(etcd: &Etcd) -> TlsOptions {
    let pem = std::fs::read(&etcd.certs().expect("TLS is on").ca).expect("the authority");
    TlsOptions::new().ca_certificate(Certificate::from_pem(pem))
}

#[tokio::test]
#[allow(
    clippy::disallowed_methods,
    reason = "the server is under test, not the engine"
)]
async fn etcd_with_tls_lets_in_who_checks_it() {
    for version in EtcdVersion::ALL {
        let etcd = Etcd::options(version).tls(Tls::ServerOnly).start();
        assert!(etcd.endpoint().starts_with("https://127.0.0.1:"));
        let mut client = etcd.client().await;
        client.put("bird", "merlin", None).await.expect("a put");
        assert_eq!(value(&etcd, "bird").await.as_deref(), Some("merlin"));
        // Another authority: the client must not trust this server.
        let stranger = Etcd::options(version).tls(Tls::ServerOnly).start();
        refused(&etcd, ConnectOptions::new().with_tls(ca(&stranger))).await;
    }
}

#[tokio::test]
#[allow(
    clippy::disallowed_methods,
    reason = "the server is under test, not the engine"
)]
async fn etcd_3_4_with_mutual_tls_wants_a_client_certificate() {
    let etcd = Etcd::options(EtcdVersion::V34).tls(Tls::Mutual).start();
    let mut client = etcd.client().await;
    client.put("bird", "hobby", None).await.expect("a put");
    assert_eq!(value(&etcd, "bird").await.as_deref(), Some("hobby"));
    refused(&etcd, ConnectOptions::new().with_tls(ca(&etcd))).await;
}

#[tokio::test]
#[allow(
    clippy::disallowed_methods,
    reason = "the server is under test, not the engine"
)]
async fn etcd_with_authentication_wants_user_and_password() {
    for version in EtcdVersion::ALL {
        let mut etcd = Etcd::options(version).root_password("s3cret").start();
        let mut client = etcd.client().await;
        client.put("bird", "kestrel", None).await.expect("a put");
        let said = refused(&etcd, ConnectOptions::new()).await;
        assert!(said.contains("user name is empty"), "{said}");
        let said = refused(&etcd, ConnectOptions::new().with_user("root", "wrong")).await;
        assert!(said.contains("authentication failed"), "{said}");
        // It is part of the data, so it holds after a restart too.
        etcd.restart();
        assert_eq!(value(&etcd, "bird").await.as_deref(), Some("kestrel"));
        refused(&etcd, ConnectOptions::new()).await;
    }
}

#[tokio::test]
async fn a_client_with_one_dead_endpoint_reaches_the_live_one() {
    let etcd = Etcd::start(EtcdVersion::V35);
    let nobody = Nobody::new();
    etcd.load(&lab::etcd()[..300]).await;
    let mut client = Client::connect([nobody.endpoint(), etcd.endpoint()], None)
        .await
        .expect("a client");
    let all = GetOptions::new().with_prefix().with_count_only();
    // The balancer may first try the dead one; what counts is that it gets through.
    let mut counted = None;
    for _ in 0..10 {
        if let Ok(answer) = client.get(lab::ROOT, Some(all.clone())).await {
            counted = Some(answer.count());
            break;
        }
    }
    assert_eq!(counted, Some(300));
}

#[tokio::test]
async fn etcd_takes_the_captured_keyspace() {
    let keys = lab::etcd();
    for version in EtcdVersion::ALL {
        let etcd = Etcd::start(version);
        etcd.load(&keys).await;
        let everything = GetOptions::new().with_all_keys();
        let answer = etcd
            .client()
            .await
            .get("", Some(everything))
            .await
            .expect("a range");
        let same = answer
            .kvs()
            .iter()
            .map(|kv| (kv.key(), kv.value()))
            .eq(keys.iter().map(|k| (&k.key[..], &k.value[..])));
        assert!(same, "{version:?} gives back every key with its value");
        assert!(answer.kvs().iter().all(|kv| kv.lease() == 0));
    }
}

#[test]
fn a_frozen_server_does_not_answer_and_a_thawed_one_does() {
    let etcd = Etcd::start(EtcdVersion::V35);
    let ask = || {
        block_on(async {
            let limits = ConnectOptions::new().with_timeout(Duration::from_millis(300));
            let client = Client::connect([etcd.endpoint()], Some(limits)).await;
            match client {
                Ok(mut client) => client.get("bird", None).await.is_ok(),
                Err(_) => false,
            }
        })
    };
    assert!(wait_until(PATIENCE, ask));
    etcd.freeze();
    assert!(!ask());
    etcd.thaw();
    assert!(wait_until(PATIENCE, ask));
}

/// Ends this process's copy of itself, not its servers, and sees the servers end all the same.
#[test]
fn a_server_ends_with_its_test_even_if_that_is_killed() {
    const PID_FILE: &str = "FALCONER_TEST_PID_FILE";
    if let Some(file) = std::env::var_os(PID_FILE) {
        let etcd = Etcd::start(EtcdVersion::V35);
        std::fs::write(file, etcd.pid().to_string()).expect("the pid");
        std::process::abort();
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("pid");
    let me = std::env::current_exe().expect("this test binary");
    let ended = std::process::Command::new(me)
        .args([
            "--exact",
            "a_server_ends_with_its_test_even_if_that_is_killed",
        ])
        .env(PID_FILE, &file)
        .env("TMPDIR", dir.path())
        .output()
        .expect("this test binary again");
    assert!(!ended.status.success(), "it aborted");
    let pid = std::fs::read_to_string(&file).expect("it had a server");
    let pid = pid.parse().expect("a pid");
    assert!(
        wait_until(PATIENCE, || !is_running(pid)),
        "etcd pid {pid} outlived its test"
    );
}

#[tokio::test]
#[allow(
    clippy::disallowed_methods,
    reason = "the server is under test, not the engine"
)]
async fn s3_keeps_objects_and_checks_who_asks() {
    let s3 = s3::shared();
    s3.create_bucket("birds");
    let store = s3.bucket("birds");
    let path = ObjectPath::from("falcons/peregrine");
    store.put(&path, "390 km/h".into()).await.expect("a put");
    let got = store.get(&path).await.expect("a get");
    assert_eq!(got.bytes().await.expect("its bytes"), "390 km/h");

    let once = PutOptions::from(PutMode::Create);
    let again = store.put_opts(&path, "0 km/h".into(), once).await;
    assert!(
        matches!(again, Err(object_store::Error::AlreadyExists { .. })),
        "{again:?}"
    );
    let missing = s3.bucket("no-such-bucket").head(&path).await;
    assert!(
        matches!(missing, Err(object_store::Error::NotFound { .. })),
        "{missing:?}"
    );

    let stranger = AmazonS3Builder::new()
        .with_endpoint(&s3.url)
        .with_region(s3::REGION)
        .with_access_key_id(&s3.access_key)
        .with_secret_access_key("wrong")
        .with_bucket_name("birds")
        .with_allow_http(true)
        .build()
        .expect("a client");
    let refused = stranger.get(&path).await.expect_err("a wrong secret");
    assert!(
        matches!(refused, object_store::Error::PermissionDenied { .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn s3_takes_the_captured_objects() {
    let s3 = s3::shared();
    s3.create_bucket(lab::BUCKET);
    s3.upload(lab::BUCKET, lab::objects().iter().cloned()).await;
    let store = s3.bucket(lab::BUCKET);
    let mut listed: Vec<(String, u64)> = store
        .list(None)
        .map_ok(|meta| (meta.location.to_string(), meta.size))
        .try_collect()
        .await
        .expect("a listing");
    listed.sort_unstable();
    let mut wanted: Vec<(String, u64)> = lab::listing()
        .into_iter()
        .map(|object| (object.key, object.size))
        .collect();
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
}

#[tokio::test]
#[allow(
    clippy::disallowed_methods,
    reason = "the server is under test, not the engine"
)]
async fn s3_keeps_objects_over_a_kill() {
    let mut s3 = S3::start();
    s3.create_bucket("birds");
    let path = ObjectPath::from("falcons/gyr");
    let store = s3.bucket("birds");
    store.put(&path, "white".into()).await.expect("a put");
    let pid = s3.pid();
    s3.kill();
    assert!(!is_running(pid));
    s3.restart();
    let got = store.get(&path).await.expect("a get");
    assert_eq!(got.bytes().await.expect("its bytes"), "white");
}
