//! One suite, run against the model, both embedded forms and real etcd. Each law gets a fresh span of keys, so that the
//! store may already hold others.

use std::collections::BTreeMap;
use std::time::Duration;

use falconer::engine::clock::{Entropy, SeededEntropy};
use falconer::engine::error::ErrorKind;
use falconer::engine::ids::{KeyPrefix, MetaKey, MetaRev};
use falconer::engine::meta::{
    Cond, Event, KeyValue, MetaRead, MetaWrite, Outcome, RangeOpts, Span, Txn, WatchBatch,
    WatchStream, Write, check,
};
use futures::StreamExt;

use crate::model_store::Model;

/// Longest that a test waits for something that must happen.
const SOON: Duration = Duration::from_secs(20);

pub fn key(text: impl AsRef<str>) -> MetaKey {
    MetaKey::from(text.as_ref())
}

pub fn put(k: impl AsRef<str>, v: impl AsRef<str>) -> Write {
    Write::put(key(k), v.as_ref().to_owned())
}

pub fn writes(writes: Vec<Write>) -> Txn {
    Txn {
        conds: vec![],
        writes,
    }
}

pub async fn commit(store: &dyn MetaWrite, txn: Txn) -> MetaRev {
    match store.txn(txn).await.unwrap() {
        Outcome::Committed { rev } => rev,
        Outcome::Refused { .. } => panic!("refused without a condition"),
    }
}

pub async fn head(store: &dyn MetaRead) -> MetaRev {
    let nothing = Span::key(&key("\u{1}no such key"));
    store
        .range(&nothing, RangeOpts::default())
        .await
        .unwrap()
        .rev
}

fn at(rev: MetaRev) -> RangeOpts {
    RangeOpts {
        at: Some(rev),
        ..RangeOpts::default()
    }
}

/// The next item of a watch that changes something.
pub async fn next_change(
    watch: &mut WatchStream,
) -> Option<Result<WatchBatch, falconer::engine::error::Error>> {
    let change = async {
        loop {
            match watch.next().await {
                Some(Ok(batch)) if batch.events.is_empty() => {}
                other => return other,
            }
        }
    };
    soon(change).await
}

/// What must come, or the test fails instead of hanging.
#[allow(
    clippy::disallowed_methods,
    reason = "the test's own patience, not the engine's time"
)]
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what)
        .await
        .expect("it did not happen in time")
}

fn texts(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| kv.key.text()).collect()
}

/// Every law. `seed` is printed by the caller.
pub async fn conformance(store: &dyn MetaWrite, seed: u64) {
    revisions(store).await;
    history(store).await;
    paging(store).await;
    edges(store).await;
    conditions(store).await;
    malformed(store).await;
    limits(store).await;
    watches(store).await;
    leases(store).await;
    compaction(store).await;
    random(store, seed).await;
}

async fn revisions(store: &dyn MetaWrite) {
    let before = head(store).await;
    let rev = commit(store, writes(vec![put("rev/a", "1"), put("rev/b", "1")])).await;
    assert_eq!(rev, before.next(), "one revision a transaction");
    let page = store
        .range(&Span::prefix(&KeyPrefix::new("rev")), RangeOpts::default())
        .await
        .unwrap();
    assert_eq!(page.rev, rev, "a read sees what was committed before it");
    for kv in &page.kvs {
        assert_eq!((kv.create_rev, kv.mod_rev, kv.version), (rev, rev, 1));
    }
    let second = commit(store, writes(vec![put("rev/a", "2")])).await;
    let a = store.get(&key("rev/a")).await.unwrap().unwrap();
    assert_eq!((a.create_rev, a.mod_rev, a.version), (rev, second, 2));
    // nothing written, nothing deleted, nothing allowed: no revision
    assert_eq!(commit(store, Txn::default()).await, second);
    let nothing = writes(vec![Write::Delete(key("rev/none"))]);
    assert_eq!(commit(store, nothing).await, second);
    let refused = Txn {
        conds: vec![Cond::Absent(key("rev/a"))],
        writes: vec![put("rev/c", "1")],
    };
    assert!(matches!(
        store.txn(refused).await.unwrap(),
        Outcome::Refused { rev, .. } if rev == second
    ));
    assert_eq!(head(store).await, second);
    // made again after a delete: counted from the start
    commit(store, writes(vec![Write::Delete(key("rev/a"))])).await;
    assert!(store.get(&key("rev/a")).await.unwrap().is_none());
    let third = commit(store, writes(vec![put("rev/a", "3")])).await;
    let a = store.get(&key("rev/a")).await.unwrap().unwrap();
    assert_eq!((a.create_rev, a.mod_rev, a.version), (third, third, 1));
}

async fn history(store: &dyn MetaWrite) {
    let span = Span::prefix(&KeyPrefix::new("hist"));
    let mut expected: Vec<(MetaRev, Vec<(String, String)>)> = Vec::new();
    let mut now = BTreeMap::new();
    for i in 0..20_u32 {
        let name = format!("hist/{}", i % 5);
        let txn = if i % 7 == 3 {
            now.remove(&name);
            writes(vec![
                Write::Delete(key(&name)),
                put("hist/tick", i.to_string()),
            ])
        } else {
            now.insert(name.clone(), i.to_string());
            writes(vec![
                put(&name, i.to_string()),
                put("hist/tick", i.to_string()),
            ])
        };
        now.insert("hist/tick".into(), i.to_string());
        let rev = commit(store, txn).await;
        expected.push((rev, now.clone().into_iter().collect()));
    }
    for (rev, rows) in &expected {
        let page = store.range(&span, at(*rev)).await.unwrap();
        assert_eq!(page.rev, *rev);
        let got: Vec<_> = page
            .kvs
            .iter()
            .map(|kv| (kv.key.text(), String::from_utf8(kv.value.to_vec()).unwrap()))
            .collect();
        assert_eq!(&got, rows, "as it stood at {rev}");
        // and in pages of two
        let mut paged = Vec::new();
        let mut rest = span.clone();
        loop {
            let opts = RangeOpts {
                limit: 2,
                keys_only: true,
                ..at(*rev)
            };
            let page = store.range(&rest, opts).await.unwrap();
            assert!(page.kvs.iter().all(|kv| kv.value.is_empty()));
            paged.extend(texts(&page.kvs));
            if !page.more {
                break;
            }
            assert_eq!(page.kvs.len(), 2);
            rest = rest.after(&page.kvs[1].key);
        }
        assert_eq!(paged, rows.iter().map(|r| r.0.clone()).collect::<Vec<_>>());
    }
    let future = MetaRev(head(store).await.0 + 1);
    let err = store.range(&span, at(future)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
    let err = store.range(&span, at(MetaRev(0))).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
}

async fn paging(store: &dyn MetaWrite) {
    const KEYS: usize = 12_345;
    let names: Vec<String> = (0..KEYS).map(|i| format!("page/{i:06}")).collect();
    for chunk in names.chunks(128) {
        commit(store, writes(chunk.iter().map(|n| put(n, n)).collect())).await;
    }
    let span = Span::prefix(&KeyPrefix::new("page"));
    let page = store.range(&span, RangeOpts::default()).await.unwrap();
    assert_eq!((page.kvs.len(), page.more), (10_000, true));
    let rest = span.after(&page.kvs[9_999].key);
    // what is written between two pages at one revision is not in the second
    commit(store, writes(vec![put("page/999999", "late")])).await;
    let page2 = store.range(&rest, at(page.rev)).await.unwrap();
    assert_eq!((page2.kvs.len(), page2.more), (KEYS - 10_000, false));
    let whole = store.range_all(&span).await.unwrap();
    assert_eq!(whole.kvs.len(), KEYS + 1);
    assert_eq!(texts(&whole.kvs)[..KEYS], names);
    let exact = RangeOpts {
        limit: KEYS + 1,
        keys_only: true,
        at: None,
    };
    let page = store.range(&span, exact).await.unwrap();
    assert_eq!((page.kvs.len(), page.more), (KEYS + 1, false));
}

async fn edges(store: &dyn MetaWrite) {
    let raw = |bytes: &'static [u8]| MetaKey(bytes.into());
    let keys = [
        raw(b"edge\xfe"),
        raw(b"edge\xfe\xff"),
        raw(b"edge\xff"),
        raw(b"edge\xff\x00"),
        raw(b"edge\xff\xff"),
        raw(b"edgf"),
        raw(b"\xff\xff"),
        raw(b"\xff\xff\xff"),
    ];
    let all = keys.iter().map(|k| Write::put(k.clone(), "v")).collect();
    commit(store, writes(all)).await;
    let span = |start: &'static [u8], end: Option<&'static [u8]>| Span {
        start: start.into(),
        end: end.map(Into::into),
    };
    let count = async |span: Span| {
        let page = store.range(&span, RangeOpts::default()).await.unwrap();
        assert!(page.kvs.iter().all(|kv| span.contains(&kv.key)));
        page.kvs.len()
    };
    assert_eq!(count(span(b"edge\xff", Some(b"edgf"))).await, 3);
    assert_eq!(count(span(b"edge\xfe", Some(b"edge\xff"))).await, 2);
    assert_eq!(count(span(b"\xff\xff", None)).await, 2);
    assert_eq!(count(Span::key(&keys[2])).await, 1);
    assert_eq!(count(Span::key(&raw(b"edge"))).await, 0);
    assert_eq!(count(span(b"edge", Some(b"edgg")).after(&keys[4])).await, 1);
    // nothing lies in these
    for empty in [
        span(b"edge\xff", Some(b"edge\xff")),
        span(b"z", Some(b"a")),
        span(b"", Some(b"")),
        span(b"edge", Some(b"")),
    ] {
        assert_eq!(count(empty.clone()).await, 0, "{empty:?}");
        let txn = Txn {
            conds: vec![Cond::NoneIn(empty.clone())],
            writes: vec![],
        };
        let outcome = store.txn(txn).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }), "{empty:?}");
        let err = store.watch(empty, MetaRev(1)).await.err().unwrap();
        assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
    }
    let everything = store.range_all(&Span::all()).await.unwrap();
    assert!(everything.kvs.is_sorted_by_key(|kv| kv.key.clone()));
    let from_start = store
        .range_all(&span(b"", Some(b"edge\xff")))
        .await
        .unwrap();
    assert_eq!(from_start.kvs.last().unwrap().key, keys[1]);
    assert_eq!(from_start.kvs[0].key, everything.kvs[0].key);
}

async fn conditions(store: &dyn MetaWrite) {
    let rev = commit(store, writes(vec![put("cond/a", "1"), put("cond/e", "")])).await;
    let prefix = |p: &str| Cond::NoneUnder(KeyPrefix::new(p));
    let span = |a: &str, b: &str| {
        Cond::NoneIn(Span {
            start: key(a).0,
            end: Some(key(b).0),
        })
    };
    let value = |k: &str, v: &str| Cond::ValueIs(key(k), v.to_owned().into());
    let cases = [
        (Cond::Absent(key("cond/none")), true),
        (Cond::Absent(key("cond/a")), false),
        (Cond::At(key("cond/a"), rev), true),
        (Cond::At(key("cond/a"), rev.next()), false),
        (Cond::At(key("cond/none"), rev), false),
        (value("cond/a", "1"), true),
        (value("cond/a", "2"), false),
        (value("cond/a", ""), false),
        (value("cond/e", ""), true),
        (value("cond/none", ""), false),
        (prefix("cond/a"), true), // the key itself is not under `cond/a/`
        (prefix("cond"), false),
        (prefix("cond/none"), true),
        (span("cond/b", "cond/e"), true),
        (span("cond/b", "cond/f"), false),
        (span("cond/a", "cond/b"), false),
    ];
    for (i, (cond, holds)) in cases.iter().enumerate() {
        let marker = format!("cond-marks/{i}");
        let txn = Txn {
            // a condition that holds beside it: all must hold
            conds: vec![Cond::At(key("cond/e"), rev), cond.clone()],
            writes: vec![put(&marker, "x"), put("cond-marks/second", i.to_string())],
        };
        let before = head(store).await;
        match store.txn(txn).await.unwrap() {
            Outcome::Committed { rev } => {
                assert!(holds, "{cond:?} must not hold");
                assert_eq!(rev, before.next());
                assert!(store.get(&key(&marker)).await.unwrap().is_some());
            }
            Outcome::Refused { rev, seen } => {
                assert!(!holds, "{cond:?} must hold");
                assert_eq!(rev, before, "a refusal makes no revision");
                assert!(store.get(&key(&marker)).await.unwrap().is_none());
                let named = match cond {
                    Cond::Absent(k) | Cond::At(k, _) | Cond::ValueIs(k, _) => Some(k),
                    _ => None,
                };
                let mut expected = vec!["cond/e".to_owned()];
                if named == Some(&key("cond/a")) {
                    expected.push("cond/a".to_owned());
                }
                assert_eq!(texts(&seen), expected, "what is seen of {cond:?}");
                assert!(seen.iter().all(|kv| kv.mod_rev == MetaRev(kv.mod_rev.0)));
            }
        }
    }
}

async fn malformed(store: &dyn MetaWrite) {
    let before = head(store).await;
    let empty = MetaKey::default();
    for txn in [
        writes(vec![put("bad/a", "1"), Write::Delete(key("bad/a"))]),
        writes(vec![put("bad/a", "1"), put("bad/a", "2")]),
        writes(vec![Write::put(empty.clone(), "x")]),
        writes(vec![Write::Delete(empty.clone())]),
        Txn {
            conds: vec![Cond::At(key("bad/a"), MetaRev(0))],
            writes: vec![],
        },
        Txn {
            conds: vec![Cond::Absent(empty)],
            writes: vec![],
        },
    ] {
        let err = store.txn(txn.clone()).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Invalid, "{txn:?}: {err}");
    }
    let orphan = Write::Put {
        key: key("bad/lease"),
        value: "x".into(),
        lease: 0x7fff_ffff,
    };
    let err = store.txn(writes(vec![orphan])).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
    assert_eq!(head(store).await, before);
}

async fn limits(store: &dyn MetaWrite) {
    let limits = store.limits();
    assert_eq!(limits.ops, 128);
    let many = |n: usize| {
        let keys = (0..n).map(|i| format!("limit/{i}"));
        Txn {
            conds: keys.clone().map(|k| Cond::Absent(key(k))).collect(),
            writes: keys.map(|k| put(k, "x")).collect(),
        }
    };
    let err = store.txn(many(129)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Limit, "{err}");
    let full = store.txn(many(128)).await.unwrap();
    assert!(matches!(full, Outcome::Committed { .. }), "{full:?}");
    let refused = store.txn(many(128)).await.unwrap();
    assert!(matches!(&refused, Outcome::Refused { seen, .. } if seen.len() == 128));

    let sized = |bytes: usize| writes(vec![Write::put(key("limit/big"), vec![b'x'; bytes])]);
    let mut largest = limits.bytes;
    while check::encoded_len(&sized(largest)) > limits.bytes {
        largest -= 1;
    }
    assert!(largest > 1535 * 1024, "1,535 KiB pass, and {largest} bytes");
    commit(store, sized(1535 * 1024)).await;
    commit(store, sized(largest)).await;
    let big = store.get(&key("limit/big")).await.unwrap().unwrap();
    assert_eq!(big.value.len(), largest);
    let err = store.txn(sized(largest + 1)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Limit, "{err}");
    let err = store.txn(sized(1537 * 1024)).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Limit, "{err}");

    // many values that are too much together, each small
    let chunk = limits.bytes / 128;
    let together = writes(
        (0..128)
            .map(|i| Write::put(key(format!("limit/{i}")), vec![b'y'; chunk]))
            .collect(),
    );
    let err = store.txn(together).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Limit, "{err}");
    commit(store, writes(vec![Write::Delete(key("limit/big"))])).await;
}

async fn watches(store: &dyn MetaWrite) {
    let span = Span::prefix(&KeyPrefix::new("watch"));
    let start = head(store).await;
    let r1 = commit(
        store,
        writes(vec![put("watch/a", "1"), put("watch/b", "1")]),
    )
    .await;
    commit(store, writes(vec![put("elsewhere", "1")])).await;
    let r2 = commit(
        store,
        writes(vec![
            Write::Delete(key("watch/a")),
            put("watch/c", "1"),
            put("elsewhere", "2"),
        ]),
    )
    .await;
    let mut old = store.watch(span.clone(), start.next()).await.unwrap();
    let mut middle = store.watch(span.clone(), r2).await.unwrap();
    let mut ahead = store.watch(span.clone(), MetaRev(r2.0 + 2)).await.unwrap();
    let r3 = commit(store, writes(vec![put("watch/a", "2")])).await;
    let r4 = commit(
        store,
        writes(vec![put("watch/b", "2"), Write::Delete(key("watch/c"))]),
    )
    .await;
    let shape = |batch: &WatchBatch| {
        let text = |e: &Event| match e {
            Event::Put(kv) => {
                assert_eq!(kv.mod_rev, batch.rev);
                format!("+{}={}", kv.key, String::from_utf8_lossy(&kv.value))
            }
            Event::Delete(k, rev) => {
                assert_eq!(*rev, batch.rev);
                format!("-{k}")
            }
        };
        (batch.rev, batch.events.iter().map(text).collect::<Vec<_>>())
    };
    let expected = [
        (r1, vec!["+watch/a=1".to_owned(), "+watch/b=1".into()]),
        (r2, vec!["-watch/a".to_owned(), "+watch/c=1".into()]),
        (r3, vec!["+watch/a=2".to_owned()]),
        (r4, vec!["+watch/b=2".to_owned(), "-watch/c".into()]),
    ];
    for (watch, skip) in [(&mut old, 0), (&mut middle, 1), (&mut ahead, 3)] {
        for want in &expected[skip..] {
            let batch = next_change(watch).await.unwrap().unwrap();
            assert_eq!(&shape(&batch), want);
        }
    }
    let recreated = store.get(&key("watch/a")).await.unwrap().unwrap();
    assert_eq!((recreated.create_rev, recreated.version), (r3, 1));
    // a revision as large as a transaction may be stays one batch
    let value = vec![b'v'; store.limits().bytes / 128 - 64];
    let big: Vec<_> = (0..128)
        .map(|i| Write::put(key(format!("watch/big/{i:03}")), value.clone()))
        .collect();
    let r5 = commit(store, writes(big)).await;
    let after = commit(store, writes(vec![put("watch/z", "1")])).await;
    for watch in [&mut old, &mut ahead] {
        let batch = next_change(watch).await.unwrap().unwrap();
        assert_eq!((batch.rev, batch.events.len()), (r5, 128));
        let batch = next_change(watch).await.unwrap().unwrap();
        assert_eq!(batch.rev, after);
    }
    let err = store.watch(span, MetaRev(0)).await.err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
}

async fn leases(store: &dyn MetaWrite) {
    let lease = store.grant(Duration::from_secs(30)).await.unwrap();
    let other = store.grant(Duration::from_secs(30)).await.unwrap();
    assert_ne!(lease, other);
    let bound = |k: &str, lease: i64| Write::Put {
        key: key(k),
        value: "x".into(),
        lease,
    };
    let txn = writes(vec![
        bound("lease/a", lease),
        bound("lease/b", lease),
        bound("lease/c", other),
        bound("lease/d", lease),
    ]);
    commit(store, txn).await;
    assert_eq!(
        store.get(&key("lease/a")).await.unwrap().unwrap().lease,
        lease
    );
    // written again without it: no longer bound
    commit(store, writes(vec![put("lease/d", "free")])).await;
    store.keep_alive(lease).await.unwrap();
    let before = head(store).await;
    store.revoke(lease).await.unwrap();
    let page = store
        .range(
            &Span::prefix(&KeyPrefix::new("lease")),
            RangeOpts::default(),
        )
        .await
        .unwrap();
    assert_eq!(texts(&page.kvs), ["lease/c", "lease/d"]);
    assert_eq!(page.rev, before.next(), "the keys disappear together");
    for err in [
        store.keep_alive(lease).await.unwrap_err(),
        store.revoke(lease).await.unwrap_err(),
        store
            .txn(writes(vec![bound("lease/e", lease)]))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
    }
    store.revoke(other).await.unwrap();
    assert!(store.get(&key("lease/c")).await.unwrap().is_none());
}

async fn compaction(store: &dyn MetaWrite) {
    let span = Span::prefix(&KeyPrefix::new("compact"));
    let r1 = commit(
        store,
        writes(vec![put("compact/a", "1"), put("compact/b", "1")]),
    )
    .await;
    let r2 = commit(store, writes(vec![put("compact/a", "2")])).await;
    let r3 = commit(store, writes(vec![Write::Delete(key("compact/b"))])).await;
    let r4 = commit(store, writes(vec![put("compact/a", "4")])).await;
    let err = store.compact(r4.next()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
    store.compact(r3).await.unwrap();
    store.compact(r3).await.unwrap();
    store.compact(r1).await.unwrap();
    for gone in [r1, r2] {
        let err = store.range(&span, at(gone)).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Compacted, "{err}");
    }
    let page = store.range(&span, at(r3)).await.unwrap();
    assert_eq!(texts(&page.kvs), ["compact/a"]);
    assert_eq!(page.kvs[0].value, "2");
    let page = store.range(&span, at(r4)).await.unwrap();
    assert_eq!(page.kvs[0].value, "4");
    assert_eq!(page.kvs[0].create_rev, r1);
    // the changes of r3 itself are gone too: a server may have dropped its tombstones
    for gone in [r2, r3] {
        let err = match store.watch(span.clone(), gone).await {
            Err(err) => err,
            Ok(mut watch) => next_change(&mut watch).await.unwrap().unwrap_err(),
        };
        assert_eq!(err.kind(), ErrorKind::Compacted, "{err}");
    }
    let mut watch = store.watch(span, r4).await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().unwrap().rev, r4);
}

/// Random operations on the store and on a model that starts from the same content.
async fn random(store: &dyn MetaWrite, seed: u64) {
    let model = Model::new();
    let entropy = SeededEntropy::new(seed);
    let pick = |n: u64| usize::try_from(entropy.next_u64() % n).unwrap();
    let span = Span::prefix(&KeyPrefix::new("random"));
    let offset = head(store).await.0 - head(&model).await.0;
    let start = head(store).await.next();
    let mine = |rev: MetaRev| MetaRev(rev.0 - offset);
    let shift = |mut kv: KeyValue| {
        kv.create_rev = mine(kv.create_rev);
        kv.mod_rev = mine(kv.mod_rev);
        kv
    };
    let mut watched = store.watch(span.clone(), start).await.unwrap();
    let mut modelled = model.watch(span.clone(), mine(start)).await.unwrap();
    let mut oldest = start.0 - 1;
    for step in 0..400 {
        let say = |what: &str| format!("seed {seed}, step {step}: {what}");
        let name = |n| key(format!("random/{n:02}"));
        let (mut txn, mut twin) = (Txn::default(), Txn::default());
        for _ in 0..pick(3) {
            let k = name(pick(12));
            let now = store.get(&k).await.unwrap();
            let (theirs, ours) = match (pick(6), now) {
                (0, _) => (Cond::Absent(k.clone()), Cond::Absent(k)),
                (1, Some(kv)) => (
                    Cond::At(k.clone(), kv.mod_rev),
                    Cond::At(k, mine(kv.mod_rev)),
                ),
                (2, Some(kv)) => (
                    Cond::ValueIs(k.clone(), kv.value.clone()),
                    Cond::ValueIs(k, kv.value),
                ),
                (3, _) => {
                    let gap = Span {
                        start: k.0,
                        end: Some(name(pick(12)).0),
                    };
                    (Cond::NoneIn(gap.clone()), Cond::NoneIn(gap))
                }
                _ => {
                    let p = Cond::NoneUnder(KeyPrefix::new(&k.text()));
                    (p.clone(), p)
                }
            };
            txn.conds.push(theirs);
            twin.conds.push(ours);
        }
        let mut taken = std::collections::BTreeSet::new();
        for _ in 0..pick(5) {
            let k = name(pick(12));
            if taken.insert(k.clone()) {
                let write = if pick(3) == 0 {
                    Write::Delete(k)
                } else {
                    Write::put(k, format!("{step}-{}", pick(4)))
                };
                txn.writes.push(write);
            }
        }
        twin.writes.clone_from(&txn.writes);
        let theirs = match store.txn(txn).await.unwrap() {
            Outcome::Committed { rev } => Outcome::Committed { rev: mine(rev) },
            Outcome::Refused { rev, seen } => Outcome::Refused {
                rev: mine(rev),
                seen: seen.into_iter().map(shift).collect(),
            },
        };
        assert_eq!(theirs, model.txn(twin).await.unwrap(), "{}", say("outcome"));
        let newest = head(store).await.0;
        let back = entropy.next_u64() % u64::try_from(newest - oldest + 1).unwrap();
        let rev = MetaRev(newest - i64::try_from(back).unwrap());
        let opts = RangeOpts {
            at: Some(rev),
            limit: 1 + pick(15),
            keys_only: false,
        };
        let got = store.range(&span, opts).await.unwrap();
        let want = model
            .range(
                &span,
                RangeOpts {
                    at: Some(mine(rev)),
                    ..opts
                },
            )
            .await
            .unwrap();
        let kvs: Vec<_> = got.kvs.into_iter().map(shift).collect();
        assert_eq!((&kvs, got.more), (&want.kvs, want.more), "{}", say("range"));
        if step % 50 == 49 && step < 200 {
            // catch the watches up first: what is compacted is no longer promised
            let upto = rev.0.max(oldest);
            drain(&mut watched, &mut modelled, newest, offset, &say("watch")).await;
            store.compact(MetaRev(upto)).await.unwrap();
            model.compact(mine(MetaRev(upto))).await.unwrap();
            oldest = oldest.max(upto);
        }
    }
    let end = commit(store, writes(vec![put("random/end", "1")])).await;
    commit(&model, writes(vec![put("random/end", "1")])).await;
    drain(
        &mut watched,
        &mut modelled,
        end.0,
        offset,
        &format!("seed {seed}, the end"),
    )
    .await;
}

/// Both watches up to revision `upto` of the store: the same changes in the same order.
async fn drain(
    theirs: &mut WatchStream,
    model: &mut WatchStream,
    upto: i64,
    offset: i64,
    what: &str,
) {
    loop {
        let want = soon(model.next()).await;
        let want = want.unwrap().unwrap();
        if !want.events.is_empty() {
            let got = next_change(theirs).await.unwrap().unwrap();
            assert_eq!(got.rev.0 - offset, want.rev.0, "{what}");
            let names = |b: &WatchBatch| {
                let name = |e: &Event| match e {
                    Event::Put(kv) => (kv.key.clone(), Some((kv.value.clone(), kv.version))),
                    Event::Delete(k, _) => (k.clone(), None),
                };
                b.events.iter().map(name).collect::<Vec<_>>()
            };
            assert_eq!(names(&got), names(&want), "{what} at {}", got.rev);
        }
        if want.rev.0 + offset >= upto {
            return;
        }
    }
}
