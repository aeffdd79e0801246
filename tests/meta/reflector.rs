//! The reflector against a source that misbehaves in every way its laws allow, and against etcd that is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use falconer::engine::clock::{Clock, Entropy, ManualClock, SeededEntropy, SystemClock};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::ids::{KeyPrefix, MetaKey, MetaRev, UnixMs};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::reflector::{Reflector, ReflectorEvent};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{
    Event, KeyValue, MetaRead, MetaReader, MetaStatus, MetaWrite, Page, RangeOpts, Span, Txn,
    WatchBatch, WatchStream, Write,
};
use falconer::engine::profile::EtcdProfile;
use futures::{StreamExt, stream};
use proptest::prelude::*;
use tokio::sync::mpsc::Receiver;

use crate::conformance::{commit, head, key, put, soon, writes};
use crate::model_store::Model;
use crate::support::servers::{Etcd, EtcdVersion};

fn rows() -> Span {
    Span::prefix(&KeyPrefix::new("row"))
}

/// How often, in a thousand, each thing goes wrong.
#[derive(Clone, Debug)]
struct Faults {
    range_error: u64,
    half_page: u64,
    watch_error: u64,
    compact: u64,
    drop: u64,
    end: u64,
    twice: u64,
    stall: u64,
    /// Whether progress marks are delivered.
    marks: bool,
}

/// A store that is written all the time and whose connection is bad, until both have had enough.
struct Scripted {
    model: Model,
    chance: SeededEntropy,
    faults: Faults,
    faults_left: AtomicU32,
    writes_left: AtomicU32,
    /// Errors handed out.
    failures: AtomicU32,
}

impl Scripted {
    fn pick(&self, n: u64) -> u64 {
        self.chance.next_u64() % n
    }

    fn strikes(&self, per_mille: u64) -> bool {
        let hit = self.pick(1000) < per_mille;
        hit && self
            .faults_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    fn is_over(&self) -> bool {
        self.writes_left.load(Ordering::SeqCst) == 0 && self.faults_left.load(Ordering::SeqCst) == 0
    }

    fn lost(&self, what: &str) -> Error {
        self.failures.fetch_add(1, Ordering::SeqCst);
        Error::new(ErrorKind::Unreachable, what)
    }

    /// Others write, in the span and beside it, and somebody compacts.
    async fn others(&self) {
        for _ in 0..self.pick(4) {
            let left = self
                .writes_left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            let Ok(left) = left else {
                // the last word: what is not used up now would never end the run
                if self.pick(20) == 0 {
                    self.faults_left.store(0, Ordering::SeqCst);
                }
                return;
            };
            let mut txn = Txn::default();
            let mut taken = BTreeSet::new();
            for _ in 0..=self.pick(4) {
                let place = if self.pick(5) == 0 { "other" } else { "row" };
                let k = key(format!("{place}/{:02}", self.pick(40)));
                if taken.insert(k.clone()) {
                    txn.writes.push(if self.pick(3) == 0 {
                        Write::Delete(k)
                    } else {
                        Write::put(k, left.to_string())
                    });
                }
            }
            commit(&self.model, txn).await;
            if self.strikes(self.faults.compact) {
                let newest = head(&self.model).await;
                let back = i64::try_from(self.pick(3)).unwrap();
                let upto = MetaRev((newest.0 - back).max(1));
                self.model.compact(upto).await.unwrap();
            }
        }
    }
}

#[derive(Clone)]
struct Source(Arc<Scripted>);

#[async_trait]
impl MetaRead for Source {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        self.0.others().await;
        if self.0.strikes(self.0.faults.range_error) {
            return Err(self.0.lost("range"));
        }
        let mut page = self.0.model.range(span, opts).await?;
        let full = page.kvs.len();
        if full > 1 && self.0.strikes(self.0.faults.half_page) {
            let half = 1 + self.0.pick(u64::try_from(full - 1).unwrap());
            page.kvs.truncate(usize::try_from(half).unwrap());
            page.more = true;
        }
        // the answer is old before it arrives, and the watch may overtake it
        self.0.others().await;
        for _ in 0..self.0.pick(4) {
            tokio::task::yield_now().await;
        }
        Ok(page)
    }

    async fn watch(&self, span: Span, from: MetaRev) -> Result<WatchStream> {
        self.0.others().await;
        if self.0.strikes(self.0.faults.watch_error) {
            return Err(self.0.lost("watch"));
        }
        let inner = self.0.model.watch(span, from).await?;
        let state = (self.clone(), inner, None::<WatchBatch>, false);
        let step = |(source, mut inner, mut last, ended)| async move {
            if ended {
                return None;
            }
            let item = Self::next(&source, &mut inner, &mut last).await?;
            let ended = item.is_err();
            Some((item, (source, inner, last, ended)))
        };
        Ok(stream::unfold(state, step).boxed())
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.0.model.status().await
    }
}

impl Source {
    async fn next(
        source: &Self,
        inner: &mut WatchStream,
        last: &mut Option<WatchBatch>,
    ) -> Option<Result<WatchBatch>> {
        let script = &source.0;
        loop {
            if script.strikes(script.faults.drop) {
                return Some(Err(script.lost("dropped")));
            }
            if script.strikes(script.faults.end) {
                script.failures.fetch_add(1, Ordering::SeqCst);
                return None;
            }
            if script.strikes(script.faults.stall) {
                futures::future::pending::<()>().await;
            }
            if script.strikes(script.faults.twice)
                && let Some(again) = last.clone()
            {
                return Some(Ok(again));
            }
            match inner.next().await? {
                Ok(batch) if batch.events.is_empty() && !script.faults.marks => {}
                Ok(batch) => {
                    *last = Some(batch.clone());
                    return Some(Ok(batch));
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// A consumer that does what consumers do, and checks every step against history.
#[derive(Default)]
struct Consumer {
    map: BTreeMap<MetaKey, KeyValue>,
    /// Where each key was last deleted: nothing older may come back.
    gone: BTreeMap<MetaKey, MetaRev>,
    is_live: bool,
    stale: u32,
    last: MetaRev,
}

impl Consumer {
    fn apply(&mut self, batch: WatchBatch) {
        for event in batch.events {
            match event {
                Event::Put(kv) => {
                    let gone = self.gone.get(&kv.key).copied().unwrap_or_default();
                    assert!(gone < kv.mod_rev, "{} came back from the dead", kv.key);
                    let old = self.map.insert(kv.key.clone(), kv.clone());
                    if let Some(old) = old {
                        assert!(old.mod_rev < kv.mod_rev, "{} went back", kv.key);
                    }
                }
                Event::Delete(k, rev) => {
                    let old = self.map.remove(&k);
                    let old = old.unwrap_or_else(|| panic!("{k} deleted out of nowhere"));
                    assert!(old.mod_rev <= rev, "{k} deleted before it was written");
                    self.gone.insert(k, rev);
                }
            }
        }
    }

    fn check(&mut self, event: ReflectorEvent, model: &Model) {
        let truth = |rev: MetaRev| {
            let mut all = model.truth(rev);
            all.retain(|k, _| rows().contains(k));
            all
        };
        match event {
            ReflectorEvent::Batch(batch) => {
                for event in &batch.events {
                    if let Event::Put(kv) = event {
                        let written = model.changes(kv.mod_rev);
                        let row = (kv.key.clone(), Some(kv.clone()));
                        assert!(written.contains(&row), "{kv:?} never existed");
                    }
                }
                let rev = batch.rev;
                assert!(!batch.events.is_empty());
                self.apply(batch);
                if self.is_live {
                    assert!(rev > self.last, "revisions grow while live");
                    assert_eq!(self.map, truth(rev), "at {rev}");
                    self.last = rev;
                }
            }
            ReflectorEvent::Live { rev, .. } => {
                assert_eq!(self.map, truth(rev), "live at {rev}");
                self.is_live = true;
                self.last = rev;
            }
            ReflectorEvent::Stale { .. } => {
                self.stale += 1;
                self.is_live = false;
            }
            ReflectorEvent::Relist { why } => assert_eq!(why.kind(), ErrorKind::Compacted),
            ReflectorEvent::Syncing { .. } | ReflectorEvent::Connecting { .. } => {}
        }
    }
}

async fn survives(seed: u64, faults: Faults, initial: u32, writes: u32, page: usize) {
    let scripted = Arc::new(Scripted {
        model: Model::new(),
        chance: SeededEntropy::new(seed),
        faults,
        faults_left: AtomicU32::new(30),
        writes_left: AtomicU32::new(initial),
        failures: AtomicU32::new(0),
    });
    while scripted.writes_left.load(Ordering::SeqCst) > 0 {
        scripted.others().await;
    }
    scripted.faults_left.store(30, Ordering::SeqCst);
    scripted.writes_left.store(writes, Ordering::SeqCst);
    let mut events = Reflector::new(
        bound(Arc::new(Source(scripted.clone()))),
        rows(),
        Arc::new(ManualClock::at(UnixMs(1_700_000_000_000))),
        Arc::new(SeededEntropy::new(seed)),
    )
    .page(page)
    .start();
    let mut consumer = Consumer::default();
    let follow = async {
        loop {
            let event = events.recv().await.expect("the reflector never gives up");
            let live = match &event {
                ReflectorEvent::Live { rev, .. } => Some(*rev),
                _ => None,
            };
            consumer.check(event, &scripted.model);
            if let Some(rev) = live
                && scripted.is_over()
                && rev >= head(&scripted.model).await
                // every failure is told; the last may be on its way
                && consumer.stale >= scripted.failures.load(Ordering::SeqCst)
            {
                break;
            }
        }
    };
    soon(follow).await;
    let end = scripted.model.range_all(&rows()).await.unwrap();
    let map: Vec<_> = consumer.map.into_values().collect();
    assert_eq!(map, end.kvs);
}

fn faults() -> impl Strategy<Value = Faults> {
    let rate = || prop_oneof![2 => Just(0_u64), 3 => 0_u64..80, 1 => 0_u64..400];
    let rates = (
        rate(),
        rate(),
        rate(),
        rate(),
        rate(),
        rate(),
        rate(),
        rate(),
    );
    (rates, any::<bool>()).prop_map(
        |((range_error, half_page, watch_error, compact, drop, end, twice, stall), marks)| Faults {
            range_error,
            half_page,
            watch_error,
            compact,
            drop,
            end,
            twice,
            stall,
            marks,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// A failing case prints its seed and its faults.
    #[test]
    fn the_map_ends_equal_and_never_shows_what_was_not(
        seed in any::<u64>(),
        faults in faults(),
        initial in 0_u32..80,
        writes in 0_u32..150,
        page in 1_usize..30,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(survives(seed, faults, initial, writes, page));
    }
}

// --- real stores -----------------------------------------------------------------------------------------------------

async fn until_live(
    events: &mut Receiver<ReflectorEvent>,
    consumer: &mut Consumer,
    rev: MetaRev,
) -> Vec<Error> {
    until(events, consumer, |c, _| c.is_live && c.last >= rev).await
}

async fn until(
    events: &mut Receiver<ReflectorEvent>,
    consumer: &mut Consumer,
    done: impl Fn(&Consumer, &[Error]) -> bool,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let follow = async {
        loop {
            match events.recv().await.unwrap() {
                ReflectorEvent::Batch(batch) => {
                    consumer.last = consumer.last.max(batch.rev);
                    consumer.apply(batch);
                }
                ReflectorEvent::Live { rev, .. } => {
                    consumer.is_live = true;
                    consumer.last = consumer.last.max(rev);
                }
                ReflectorEvent::Stale { why, .. } => {
                    consumer.is_live = false;
                    errors.push(why);
                }
                _ => {}
            }
            if done(consumer, &errors) {
                return;
            }
        }
    };
    soon(follow).await;
    errors
}

fn reflector(source: Arc<dyn MetaRead>) -> Receiver<ReflectorEvent> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    Reflector::new(
        bound(source),
        rows(),
        clock,
        Arc::new(SeededEntropy::new(1)),
    )
    .start()
}

fn bound(source: Arc<dyn MetaRead>) -> MetaReader {
    let clock = Arc::new(SystemClock::new());
    MetaReader::new(source, &Scope::root(clock, "test"))
}

#[tokio::test]
async fn an_embedded_store_is_followed() {
    let store = Arc::new(EmbeddedStore::memory().unwrap());
    commit(
        &*store,
        writes(vec![put("row/a", "1"), put("row/b", "1"), put("z", "1")]),
    )
    .await;
    let mut events = reflector(store.clone());
    let mut consumer = Consumer::default();
    let rev = head(&*store).await;
    assert!(until_live(&mut events, &mut consumer, rev).await.is_empty());
    assert_eq!(consumer.map.len(), 2);
    let rev = commit(
        &*store,
        writes(vec![Write::Delete(key("row/a")), put("row/c", "1")]),
    )
    .await;
    assert!(until_live(&mut events, &mut consumer, rev).await.is_empty());
    let names: Vec<_> = consumer.map.keys().map(MetaKey::text).collect();
    assert_eq!(names, ["row/b", "row/c"]);
    // a revision that does not touch the span still moves the mark
    let rev = commit(&*store, writes(vec![put("z", "2")])).await;
    assert!(until_live(&mut events, &mut consumer, rev).await.is_empty());
}

/// Writers write while etcd is killed and restarted on its data; each knows what it ever tried to write.
async fn killed_and_restarted(version: EtcdVersion) {
    let mut etcd = Etcd::start(version);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut profile = EtcdProfile::plain([etcd.endpoint()]);
    profile.request_timeout = Duration::from_secs(2);
    let store = Arc::new(EtcdStore::connect(&profile, clock.clone()).await.unwrap());
    for i in 0..300 {
        commit(&*store, writes(vec![put(format!("row/old/{i:03}"), "old")])).await;
    }
    let tried = Arc::new(Mutex::new(BTreeSet::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for w in 0..3_u64 {
        let (store, tried, stop) = (store.clone(), tried.clone(), stop.clone());
        writers.push(tokio::spawn(async move {
            let entropy = SeededEntropy::new(w);
            let mut unknown = 0;
            for n in 0_u64.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let k = format!("row/{w}/{}", entropy.next_u64() % 20);
                let old = key(format!("row/old/{:03}", entropy.next_u64() % 300));
                let value = format!("{w}-{n}");
                tried.lock().unwrap().insert((k.clone(), value.clone()));
                let txn = if n % 3 == 0 {
                    writes(vec![put(&k, &value), Write::Delete(old)])
                } else {
                    writes(vec![put(&k, &value)])
                };
                match store.txn(txn).await {
                    Ok(_) => {}
                    Err(e) => {
                        let lost = [ErrorKind::OutcomeUnknown, ErrorKind::Unreachable];
                        assert!(lost.contains(&e.kind()), "{e:?}");
                        unknown += 1;
                        tokio::task::yield_now().await;
                    }
                }
            }
            unknown
        }));
    }
    let mut events = reflector(store.clone());
    let mut consumer = Consumer::default();
    let mut errors = Vec::new();
    for _ in 0..4 {
        // live and moving, then the power goes
        let goal = MetaRev(consumer.last.0 + 60);
        errors.extend(until_live(&mut events, &mut consumer, goal).await);
        tokio::task::block_in_place(|| etcd.kill());
        errors.extend(until(&mut events, &mut consumer, |_, errors| !errors.is_empty()).await);
        tokio::task::block_in_place(|| etcd.restart());
        let goal = MetaRev(consumer.last.0 + 1);
        errors.extend(until_live(&mut events, &mut consumer, goal).await);
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    // what was under way at the end settles with one more write
    let last = loop {
        match store.txn(writes(vec![put("row/end", "1")])).await {
            Ok(falconer::engine::meta::Outcome::Committed { rev }) => break rev,
            _ => tokio::task::yield_now().await,
        }
    };
    errors.extend(until_live(&mut events, &mut consumer, last).await);
    assert!(errors.len() >= 4, "each kill is told: {errors:?}");
    assert!(
        errors.iter().all(|e| e.kind() == ErrorKind::Unreachable),
        "{errors:?}"
    );
    let truth = store.range_all(&rows()).await.unwrap();
    let map: Vec<_> = consumer.map.values().cloned().collect();
    assert_eq!(map, truth.kvs);
    let tried = tried.lock().unwrap();
    for kv in map {
        let value = String::from_utf8(kv.value.to_vec()).unwrap();
        assert!(
            value == "old" || kv.key.text() == "row/end" || tried.contains(&(kv.key.text(), value)),
            "{} was never written so",
            kv.key
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_3_4_is_killed_under_writes() {
    killed_and_restarted(EtcdVersion::V34).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_3_5_is_killed_under_writes() {
    killed_and_restarted(EtcdVersion::V35).await;
}

#[tokio::test]
async fn a_gap_that_was_compacted_away_is_listed_again() {
    let mut etcd = Etcd::start(EtcdVersion::V34);
    let store = Arc::new(
        EtcdStore::connect(
            &EtcdProfile::plain([etcd.endpoint()]),
            Arc::new(SystemClock::new()),
        )
        .await
        .unwrap(),
    );
    let all: Vec<_> = (0..50).map(|i| put(format!("row/{i:02}"), "1")).collect();
    let rev = commit(&*store, writes(all)).await;
    let mut events = reflector(store.clone());
    let mut consumer = Consumer::default();
    until_live(&mut events, &mut consumer, rev).await;
    // the reflector cannot run between the kill and the compaction: this runtime has one thread, and all calls block it
    etcd.kill();
    etcd.restart();
    let port = etcd.endpoint();
    let rev = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let profile = EtcdProfile::plain([port]);
            let other = EtcdStore::connect(&profile, Arc::new(SystemClock::new()))
                .await
                .unwrap();
            let gone = (0..20)
                .map(|i| Write::Delete(key(format!("row/{i:02}"))))
                .collect();
            commit(&other, writes(gone)).await;
            commit(&other, writes(vec![put("row/30", "2"), put("row/99", "2")])).await;
            let rev = commit(&other, writes(vec![put("elsewhere", "2")])).await;
            other.compact(rev).await.unwrap();
            rev
        })
    })
    .join()
    .unwrap();
    consumer.is_live = false;
    let errors = until_live(&mut events, &mut consumer, rev).await;
    let kinds: Vec<_> = errors.iter().map(Error::kind).collect();
    assert!(kinds.contains(&ErrorKind::Compacted), "{errors:?}");
    let truth = store.range_all(&rows()).await.unwrap();
    assert_eq!(
        consumer.map.values().cloned().collect::<Vec<_>>(),
        truth.kvs
    );
    assert_eq!(truth.kvs.len(), 31);
}
