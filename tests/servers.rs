//! The real servers that the other tests lean on: each really starts, checks who asks, keeps what it was given, and
//! ends by its pid.

mod support;

use support::lab;
use support::servers::{Etcd, EtcdVersion};

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

#[tokio::test]
async fn etcd_3_4_keeps_a_key_over_stop_and_kill() {
    keeps_a_key_over_stop_and_kill(EtcdVersion::V34).await;
}

#[tokio::test]
async fn etcd_3_5_keeps_a_key_over_stop_and_kill() {
    keeps_a_key_over_stop_and_kill(EtcdVersion::V35).await;
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
