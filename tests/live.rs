//! A console that stays open while the store under it dies and comes back: it says since when and why what it shows is old,
//! it catches up by itself, it never shows a row that was not there, and it ends equal to a fresh listing.
#![allow(
    clippy::disallowed_methods,
    reason = "what another client does to the store is done past the engine"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use falconer::engine::Engine;
use falconer::engine::clock::{Clock as _, SystemClock, SystemEntropy};
use falconer::engine::error::ErrorKind;
use falconer::engine::handle::{Conn, Handle, Reply, Request};
use falconer::engine::ids::{MetaKey, MetaRev};
use falconer::engine::live::WINDOW;
use falconer::engine::meta::MetaRead;
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::{Event, RangeOpts, Span};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::profile::{Access, EtcdProfile, MetaProfile, Profile, Roots};
use support::lab::{self, LabKey};
use support::servers::{Etcd, EtcdVersion, Nobody};

async fn open(endpoint: String) -> Handle {
    let profile = Profile {
        name: "live".into(),
        meta: MetaProfile::Etcd(EtcdProfile {
            endpoints: vec![endpoint],
            user: None,
            tls: None,
            request_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(2),
        }),
        objects: None,
        roots: Roots::default(),
        access: Access::ReadOnly,
        gc: Tolerances::default(),
    };
    Engine::open(
        profile,
        Arc::new(SystemClock::new()),
        Arc::new(SystemEntropy),
    )
    .await
    .expect("the engine opens")
}

#[allow(
    clippy::disallowed_methods,
    reason = "a test that hangs must end, in real time"
)]
async fn until(handle: &mut Handle, what: &str, holds: impl Fn(&Conn) -> bool) -> Conn {
    let waiting = async {
        loop {
            let conn = handle.conn.borrow_and_update().clone();
            if holds(&conn) {
                return conn;
            }
            handle.conn.changed().await.expect("the engine runs");
        }
    };
    match tokio::time::timeout(Duration::from_mins(1), waiting).await {
        Ok(conn) => conn,
        Err(e) => panic!("not {what}: {e}: {:?}", handle.conn.borrow()),
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a test that hangs must end, in real time"
)]
async fn until_rev(handle: &mut Handle, rev: i64) -> Arc<Catalog> {
    let waiting = async {
        loop {
            let catalog = handle.catalog.borrow_and_update().clone();
            if catalog.rev.0 >= rev {
                return catalog;
            }
            handle.catalog.changed().await.expect("the engine runs");
        }
    };
    match tokio::time::timeout(Duration::from_mins(1), waiting).await {
        Ok(catalog) => catalog,
        Err(e) => panic!("not at revision {rev}: {e}: {:?}", handle.conn.borrow()),
    }
}

/// Every key with its revision, as one published catalog has it.
type Keys = BTreeMap<MetaKey, MetaRev>;

fn keys(catalog: &Catalog) -> Keys {
    catalog
        .keys
        .under("")
        .map(|(key, meta)| (key.clone(), meta.mod_rev))
        .collect()
}

/// Keeps every catalog that is published, as long as it lives.
struct Witness {
    seen: Arc<Mutex<Vec<(MetaRev, Keys)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Witness {
    fn of(handle: &Handle) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut catalog, out) = (handle.catalog.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while catalog.changed().await.is_ok() {
                let now = catalog.borrow_and_update().clone();
                out.lock().expect("seen").push((now.rev, keys(&now)));
            }
        });
        Self { seen, task }
    }

    fn end(self) -> Vec<(MetaRev, Keys)> {
        self.task.abort();
        std::mem::take(&mut self.seen.lock().expect("seen"))
    }
}

async fn fresh(endpoint: &str) -> (Catalog, EtcdStore) {
    let profile = EtcdProfile::plain([endpoint]);
    let store = EtcdStore::connect(&profile, Arc::new(SystemClock::new()))
        .await
        .expect("etcd answers");
    let span = Span::prefix(&falconer::engine::ids::KeyPrefix::new("by-dev"));
    let page = store.range_all(&span).await.expect("a listing");
    let mut catalog = Catalog::default();
    let events: Vec<Event> = page.kvs.into_iter().map(Event::Put).collect();
    catalog.apply(&Roots::default(), &events);
    catalog.rev = page.rev;
    (catalog, store)
}

/// Every published catalog must be the store as it stood at some one revision.
async fn judge(store: &EtcdStore, published: &[(MetaRev, Keys)]) {
    let span = Span::prefix(&falconer::engine::ids::KeyPrefix::new("by-dev"));
    let mut checked = 0;
    for (rev, shown) in published {
        let mut stood = Keys::new();
        let mut rest = Some(span.clone());
        while let Some(span) = rest.take() {
            let opts = RangeOpts {
                at: Some(*rev),
                keys_only: true,
                limit: 0,
            };
            let page = store.range(&span, opts).await.expect("history");
            if page.more {
                rest = page.kvs.last().map(|last| span.after(&last.key));
            }
            stood.extend(page.kvs.into_iter().map(|kv| (kv.key, kv.mod_rev)));
        }
        let phantom: Vec<&MetaKey> = shown.keys().filter(|k| !stood.contains_key(k)).collect();
        assert_eq!(
            phantom,
            Vec::<&MetaKey>::new(),
            "shown at {rev}, but not there"
        );
        assert_eq!(shown, &stood, "shown at {rev}");
        checked += 1;
    }
    assert!(checked > 3, "only {checked} catalogs were published");
}

fn segments() -> Vec<LabKey> {
    lab::etcd()
        .into_iter()
        .filter(|k| k.key.starts_with(b"by-dev/meta/datacoord-meta/"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_etcd_makes_the_screen_stale_and_it_catches_up_by_itself() {
    let mut server = Etcd::start(EtcdVersion::V34);
    server.load(&lab::etcd()).await;
    let endpoint = server.endpoint();
    let mut handle = open(endpoint.clone()).await;
    let mut notices = handle.notices.subscribe();
    let witness = Witness::of(&handle);
    until(&mut handle, "live", |c| matches!(c, Conn::Live { .. })).await;
    assert_eq!(keys(&handle.catalog.borrow()).len(), 1710);

    // Changes that are seen as they happen.
    let victims = segments();
    let mut client = server.client().await;
    let mut head = 0;
    for k in victims.iter().take(20) {
        let done = client
            .delete(k.key.clone(), None)
            .await
            .expect("a deletion");
        head = done.header().expect("a header").revision();
    }
    let now = until_rev(&mut handle, head).await;
    assert_eq!(now.keys.len(), 1710 - 20);

    // The power goes.
    let before = SystemClock::new().now();
    server.kill();
    let stale = until(&mut handle, "stale", |c| matches!(c, Conn::Stale { .. })).await;
    let Conn::Stale { since, why, .. } = stale else {
        unreachable!("until() said so");
    };
    assert!(
        since.since(before) < 60_000 && since >= before,
        "{since:?} after {before:?}"
    );
    assert_eq!(why.kind(), ErrorKind::Unreachable, "{why}");
    assert!(
        why.to_string().contains(&server.port().to_string()),
        "{why} names the endpoint"
    );
    assert_eq!(
        handle.catalog.borrow().keys.len(),
        1710 - 20,
        "what was shown stays"
    );

    // It comes back, and has changed before anybody looked.
    server.restart();
    let mut client = server.client().await;
    for k in victims.iter().take(10) {
        client
            .put(k.key.clone(), k.value.clone(), None)
            .await
            .expect("a put");
    }
    for k in victims.iter().skip(20).take(10) {
        let done = client
            .delete(k.key.clone(), None)
            .await
            .expect("a deletion");
        head = done.header().expect("a header").revision();
    }
    until(&mut handle, "live again", |c| {
        matches!(c, Conn::Live { .. })
    })
    .await;
    until_rev(&mut handle, head).await;

    let (fresh, store) = fresh(&endpoint).await;
    let mut shown = Catalog::clone(&handle.catalog.borrow());
    shown.rev = fresh.rev;
    assert!(shown == fresh, "the catalog differs from a fresh listing");
    judge(&store, &witness.end()).await;

    let mut told = Vec::new();
    while let Ok(notice) = notices.try_recv() {
        told.push((notice.bad, notice.text));
    }
    assert!(
        told.iter()
            .any(|(bad, text)| *bad && text.starts_with("stale")),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|(bad, text)| !bad && text.starts_with("connected again")),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_was_compacted_meanwhile_is_listed_again() {
    let mut server = Etcd::start(EtcdVersion::V34);
    server.load(&lab::etcd()).await;
    let endpoint = server.endpoint();
    let mut handle = open(endpoint.clone()).await;
    until(&mut handle, "live", |c| matches!(c, Conn::Live { .. })).await;

    // Frozen, so that the engine cannot see the changes before they are compacted away.
    server.kill();
    until(&mut handle, "stale", |c| matches!(c, Conn::Stale { .. })).await;
    let gate = handle.catalog.borrow().rev;
    server.restart();
    let mut client = server.client().await;
    let mut head = 0;
    for k in segments().iter().take(30) {
        let done = client
            .delete(k.key.clone(), None)
            .await
            .expect("a deletion");
        head = done.header().expect("a header").revision();
    }
    client.compact(head, None).await.expect("a compaction");
    until_rev(&mut handle, head).await;
    until(&mut handle, "live again", |c| {
        matches!(c, Conn::Live { .. })
    })
    .await;
    assert!(MetaRev(head) > gate);
    let (fresh, _) = fresh(&endpoint).await;
    let mut shown = Catalog::clone(&handle.catalog.borrow());
    shown.rev = fresh.rev;
    assert!(shown == fresh, "the catalog differs from a fresh listing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_a_few_pictures_and_not_one_for_each_change() {
    let server = Etcd::start(EtcdVersion::V34);
    server.load(&lab::etcd()).await;
    let mut handle = open(server.endpoint()).await;
    until(&mut handle, "live", |c| matches!(c, Conn::Live { .. })).await;
    let witness = Witness::of(&handle);
    let mut client = server.client().await;
    let clock = SystemClock::new();
    let mut head = 0;
    let victims = segments();
    for k in victims.iter().take(500) {
        let done = client
            .delete(k.key.clone(), None)
            .await
            .expect("a deletion");
        head = done.header().expect("a header").revision();
    }
    let catalog = until_rev(&mut handle, head).await;
    let took = clock.mono();
    assert_eq!(catalog.keys.len(), 1710 - 500);
    let published = witness.end();
    // A window each, and a few for pauses of the machine longer than the quiet time.
    let most = took.as_millis() / WINDOW.as_millis() + 2;
    let pauses = took.as_millis() / falconer::engine::live::QUIET.as_millis();
    assert!(
        (published.len() as u128) <= most.max(pauses),
        "{} pictures in {took:?}",
        published.len()
    );
    let shown: BTreeSet<MetaRev> = published.iter().map(|(rev, _)| *rev).collect();
    assert_eq!(shown.len(), published.len(), "the same picture twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_it_says_why_and_answers_every_request() {
    let nobody = Nobody::new();
    let mut handle = open(nobody.endpoint()).await;
    let conn = until(&mut handle, "refused", |c| {
        matches!(c, Conn::Connecting { why: Some(_), .. })
    })
    .await;
    let Conn::Connecting { why: Some(why), .. } = conn else {
        unreachable!("until() said so");
    };
    assert_eq!(why.kind(), ErrorKind::Unreachable, "{why}");
    let answer = handle
        .request(Request::Raw(MetaKey::from("by-dev/meta/x")))
        .await;
    assert_eq!(answer.expect_err("no store").kind(), ErrorKind::Unreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_key_is_answered_decoded() {
    let server = Etcd::start(EtcdVersion::V34);
    server.load(&lab::etcd()).await;
    let mut handle = open(server.endpoint()).await;
    until(&mut handle, "live", |c| matches!(c, Conn::Live { .. })).await;
    let key = segments()
        .into_iter()
        .find(|k| k.key.starts_with(b"by-dev/meta/datacoord-meta/s/"))
        .expect("a segment");
    let id = String::from_utf8_lossy(&key.key)
        .rsplit('/')
        .next()
        .map(str::to_owned);
    let key = MetaKey(key.key.into());
    let Reply::Raw(raw) = handle.request(Request::Raw(key)).await.expect("an answer") else {
        panic!("another answer");
    };
    assert_eq!(raw.family, "data.SegmentInfo");
    let decoded = raw.decoded.as_ref().expect("decoded");
    assert_eq!(decoded["ID"].as_str(), id.as_deref());
    let gone = handle
        .request(Request::Raw(MetaKey::from("by-dev/meta/nothing")))
        .await;
    let Reply::Raw(gone) = gone.expect("an answer") else {
        panic!("another answer");
    };
    assert!(gone.value.is_none() && gone.decoded.is_err());
    let plan = Request::Plan(falconer::engine::plan::Intent::Demo);
    let refused = handle.request(plan).await.expect_err("read-only");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}
