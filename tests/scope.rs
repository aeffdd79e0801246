//! Seed 7: every catalog call has a scope (`spec/lifecycle.md` §7, I7.1 to I7.4).

mod support;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use falconer::engine::clock::{Clock, SeededEntropy};
use falconer::engine::error::{ErrorKind, Result};
use falconer::engine::format::pb::msg::MsgPosition;
use falconer::engine::ids::{
    JobId, KeyPrefix, MessageId, MetaKey, MetaRev, ObjectKey, UnixMs, VChannel,
};
use falconer::engine::meta::scope::{DETACHED, Scope};
use falconer::engine::meta::{
    Cond, Limits, MetaRead, MetaReader, MetaStatus, MetaWrite, MetaWriter, Outcome, Page,
    RangeOpts, Span, Txn, WatchStream, Write,
};
use falconer::engine::model::tickets::Ticket;
use falconer::engine::objects::from_store;
use falconer::engine::plan::execute::{Change, Executor, Parts, Who};
use falconer::engine::plan::journal::Order;
use falconer::engine::plan::ledger::Swap;
use falconer::engine::wal::channels::Channels;
use falconer::engine::wal::checkpoints::{Checkpoints, Report};
use futures::StreamExt;
use object_store::memory::InMemory;
use support::faults::VirtualClock;
use support::mem::MemStore;
use support::snapshots::{ETCD, roots};
use tracing::Subscriber;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

const NOW: UnixMs = UnixMs(1_790_000_000_000);
const P0: &str = "by-dev-rootcoord-dml_0";
const SHARD: &str = "by-dev-rootcoord-dml_0_7v0";

/// What the next calls come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mood {
    #[default]
    Well,
    /// No call is answered.
    Silent,
    /// A write happens, and is not answered.
    Mute,
}

/// Counts the calls that reach the store.
struct Counted {
    inner: MemStore,
    calls: AtomicUsize,
    mood: Mutex<Mood>,
}

impl Counted {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemStore::new(ETCD),
            calls: AtomicUsize::new(0),
            mood: Mutex::default(),
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    async fn call<T>(&self, write: bool, done: impl Future<Output = Result<T>>) -> Result<T> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Silent => std::future::pending().await,
            Mood::Mute if write => {
                // The next calls are answered again.
                self.set(Mood::Well);
                let _ = done.await;
                std::future::pending().await
            }
            Mood::Well | Mood::Mute => done.await,
        }
    }
}

#[async_trait]
impl MetaRead for Counted {
    async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        self.call(false, self.inner.range(span, opts)).await
    }

    async fn watch(&self, _: Span, _: MetaRev) -> Result<WatchStream> {
        self.call(false, async { Ok(futures::stream::pending().boxed()) })
            .await
    }

    async fn status(&self) -> Result<MetaStatus> {
        self.call(false, self.inner.status()).await
    }
}

#[async_trait]
impl MetaWrite for Counted {
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let write = !txn.writes.is_empty();
        self.call(write, self.inner.txn(txn)).await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn compact(&self, rev: MetaRev) -> Result<()> {
        self.call(true, self.inner.compact(rev)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<i64> {
        self.call(false, self.inner.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: i64) -> Result<()> {
        self.call(false, self.inner.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: i64) -> Result<()> {
        self.call(true, self.inner.revoke(lease)).await
    }
}

struct World {
    store: Arc<Counted>,
    clock: Arc<VirtualClock>,
    root: Scope,
    executor: Arc<Executor>,
}

async fn world() -> World {
    let (store, clock) = (Counted::new(), VirtualClock::at(NOW));
    let root = Scope::root(clock.clone(), "engine");
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(store.clone(), &root),
        objects: from_store(Arc::new(InMemory::new()), "files").1,
        roots: roots(),
        clock: clock.clone(),
        entropy: Arc::new(SeededEntropy::new(7)),
        actor: "tester pid 7".into(),
        embedded: true,
    });
    executor.fence().acquire().await.unwrap();
    World {
        store,
        clock,
        root,
        executor,
    }
}

impl World {
    fn calls(&self) -> falconer::engine::meta::book::Calls {
        self.root.book().read(self.clock.mono())
    }
}

fn who() -> Who {
    Who {
        job: JobId(7),
        plan: "p".into(),
        epoch: None,
    }
}

fn key(name: &str) -> MetaKey {
    format!("by-dev/meta/test/{name}").as_str().into()
}

fn change(name: &str) -> Change {
    Change {
        name: name.into(),
        writes: vec![Write::put(key(name), "x")],
        ..Change::default()
    }
}

fn position(tick: u64) -> MsgPosition {
    MsgPosition {
        channel_name: SHARD.into(),
        msg_id: MessageId(1).0.to_le_bytes().to_vec(),
        timestamp: tick,
        ..MsgPosition::default()
    }
}

fn ticket() -> Ticket {
    Ticket {
        id: "gc-1".into(),
        owner: "me".into(),
        reason: String::new(),
        collection: None,
        since: NOW,
        until: UnixMs(NOW.0 + 1),
    }
}

/// I7.1: every call that may change something answers `Cancelled`, and nothing reaches the store.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_one_that_was_cancelled_before() {
    let world = world().await;
    let channels = Channels::new(world.executor.clone());
    let checkpoints = Checkpoints::load(world.executor.clone()).await.unwrap();
    let log = channels.log(P0).await.unwrap();
    // Everything is allowed and nothing is due: only the scope is in the way.
    world.executor.fence().check().await.unwrap();
    let gone = world.root.child("request 1: gone");
    gone.cancel();
    let e = &world.executor.within(&gone);
    let (channels, checkpoints) = (&channels.within(&gone), &checkpoints.within(&gone));
    let vchannel: VChannel = SHARD.into();
    let report = || Report {
        channel: vchannel.clone(),
        position: position(5),
        term: log.term(),
    };
    let object: ObjectKey = "files/x".into();
    let before = world.store.calls();
    let mut cases: Vec<(&str, Result<()>)> = Vec::new();
    macro_rules! asked {
        ($name:literal, $call:expr) => {
            cases.push(($name, $call.await.map(|_| ())));
        };
    }
    asked!("commit", e.commit(&who(), &change("a")));
    asked!("commit_own", e.commit_own(&who(), &change("a")));
    asked!("note", e.note(&[Write::put(key("n"), "x")]));
    asked!(
        "note_if",
        e.note_if(&[Cond::Absent(key("n"))], &[Write::put(key("n"), "x")])
    );
    asked!("order", e.order(JobId(3), Order::Cancel));
    asked!(
        "swap",
        e.swap(&mut Swap::new(vec![], vec![Write::put(key("s"), "x")]))
    );
    asked!("take_ids", e.take_ids(&who(), 1));
    asked!("pause", e.pause(&ticket(), "p"));
    asked!("resume", e.resume("gc-1", MetaRev(3), "p"));
    asked!("put_object", e.put_object(&object, "x".into()));
    asked!("delete_object", e.delete_object(&object));
    asked!(
        "update",
        checkpoints.update(vec![report()], |_| Some(log.term()))
    );
    asked!("mark_dropped", checkpoints.mark_dropped(&vchannel));
    asked!(
        "create",
        checkpoints.create(vec![(vchannel.clone(), position(1))])
    );
    asked!("log", channels.log("by-dev-rootcoord-dml_1"));
    asked!("control", channels.control(P0));
    for (name, came_to) in &cases {
        let e = came_to.as_ref().expect_err(name);
        assert_eq!(e.kind(), ErrorKind::Cancelled, "{name}: {e}");
        assert!(e.to_string().contains("request 1: gone"), "{name}: {e}");
    }
    assert_eq!(world.store.calls(), before, "something was sent");
    assert!(checkpoints.get(&vchannel).is_none(), "memory was changed");
    // A root that is not ours is not taken either.
    world.executor.fence().release().await;
    let before = world.store.calls();
    let refused = e.fence().acquire().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Cancelled, "{refused}");
    assert_eq!(world.store.calls(), before, "something was sent");
    assert!(world.calls().cancelled >= 8, "{:?}", world.calls());
    assert_eq!(world.calls().unknown, 0);
    drop(log);
}

/// Cancelled while a write is under way: it is settled by its marker, whatever became of it, and told as it is.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_cut_off_is_settled_not_guessed() {
    for mood in [Mood::Mute, Mood::Silent] {
        let world = world().await;
        let scope = world.root.child("request 2: cut off");
        let e = world.executor.within(&scope);
        let writing = tokio::spawn(async move { e.commit(&who(), &change("a")).await });
        // Its transaction is the call that is not answered.
        while !world.calls().open.iter().any(|c| c.op == "txn") {
            tokio::task::yield_now().await;
        }
        world.store.set(mood);
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        scope.cancel();
        tokio::task::yield_now().await;
        world.store.set(Mood::Well);
        let done = writing.await.unwrap();
        let done = done.unwrap_or_else(|e| panic!("{mood:?}: {e}"));
        assert!(!done.before, "{mood:?}");
        let there = world.store.inner.get(&key("a")).await.unwrap();
        assert_eq!(there.map(|kv| kv.version), Some(1), "{mood:?}: once");
        assert_eq!(world.calls().unknown, 1, "{mood:?}");
        // The next decision of the same caller is not taken.
        let e = world.executor.within(&scope);
        let next = e.commit(&who(), &change("b")).await.unwrap_err();
        assert_eq!(next.kind(), ErrorKind::Cancelled);
    }
}

/// Nobody can tell for longer than the settling may take: it stays unknown, and is never told as failed.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_settled_stays_unknown() {
    let world = world().await;
    let scope = world.root.child("request 3: cut off");
    let e = world.executor.within(&scope);
    let writing = tokio::spawn(async move { e.commit(&who(), &change("a")).await });
    while !world.calls().open.iter().any(|c| c.op == "txn") {
        tokio::task::yield_now().await;
    }
    world.store.set(Mood::Silent);
    for _ in 0..5 {
        tokio::task::yield_now().await;
    }
    scope.cancel();
    let begun = world.clock.mono();
    let e = writing.await.unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::OutcomeUnknown, "{e}");
    assert!(world.clock.mono() <= begun + DETACHED * 2, "it had no end");
    world.store.set(Mood::Well);
    // The same change again finds out, and happens once.
    let again = world.executor.commit(&who(), &change("a")).await.unwrap();
    assert!(again.rev.0 > 0);
    let there = world.store.inner.get(&key("a")).await.unwrap();
    assert_eq!(there.map(|kv| kv.version), Some(1));
}

/// The caller's own time is another error than a store that is slow.
#[tokio::test(start_paused = true)]
async fn two_deadlines_are_two_errors() {
    let world = world().await;
    let reader = MetaReader::new(world.store.clone(), &world.root);
    world.store.set(Mood::Silent);
    let short = world
        .root
        .child("request 4: hasty")
        .at_most(Duration::from_secs(2));
    let e = reader.within(&short).get(&key("a")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DeadlineExceeded, "{e}");
    assert!(e.to_string().contains("request 4: hasty"), "{e}");
    assert!(!e.is_transient(), "trying again would not help");
    // A child cannot have more time than its parent.
    assert!(
        short
            .child("part")
            .at_most(Duration::from_hours(1))
            .is_over()
    );
    world.store.set(Mood::Well);
    let before = world.store.calls();
    let e = reader.within(&short).get(&key("a")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DeadlineExceeded, "{e}");
    assert_eq!(world.store.calls(), before, "nothing is sent after it");
    assert_eq!(world.calls().deadline_exceeded, 2);
}

/// Whoever waits for a lock that another holds gives up with its scope.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_lock_ends_with_the_scope() {
    let world = world().await;
    // A taking of ids that hangs in the store holds the lock.
    world.store.set(Mood::Silent);
    let holder = world
        .executor
        .within(&world.root.child("request 5: holder"));
    let holding = tokio::spawn(async move { holder.take_ids(&who(), 1).await });
    while world.calls().open.is_empty() {
        tokio::task::yield_now().await;
    }
    let scope = world
        .root
        .child("request 6: waits")
        .at_most(Duration::from_secs(3));
    let before = world.store.calls();
    let e = world
        .executor
        .within(&scope)
        .take_ids(&who(), 1)
        .await
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DeadlineExceeded, "{e}");
    assert_eq!(world.store.calls(), before);
    holding.abort();
}

/// Calls under way are there to be seen: what, where, for how long, on whose behalf.
#[tokio::test(start_paused = true)]
async fn calls_under_way_are_shown() {
    let world = world().await;
    world.store.set(Mood::Silent);
    let scope = world
        .root
        .child("job 470 drop snapshot nightly: delete files");
    let reader = world.executor.within(&scope).reader();
    let asking = tokio::spawn(async move {
        let span = Span::prefix(&KeyPrefix::new("by-dev/meta/snapshot"));
        reader.range(&span, RangeOpts::default()).await
    });
    world.clock.sleep(Duration::from_secs(4)).await;
    let seen = world.calls();
    let [call] = &seen.open[..] else {
        panic!("{seen:?}");
    };
    assert_eq!(call.op, "range");
    assert_eq!(call.key, "by-dev/meta/snapshot/");
    assert_eq!(&*call.origin, "job 470 drop snapshot nightly: delete files");
    assert_eq!(call.age, Duration::from_secs(4));
    // Dropped by whoever waits: that is a cancellation too.
    asking.abort();
    let _ = asking.await;
    let seen = world.calls();
    assert!(seen.open.is_empty(), "{seen:?}");
    assert_eq!(seen.cancelled, 1);
}

/// I7.3: when the engine stops, everything in the background ends within the grace, also what is detached and not answered.
#[tokio::test(start_paused = true)]
async fn a_stop_ends_all_catalog_work_within_the_grace() {
    let world = world().await;
    world.store.set(Mood::Silent);
    let mut tasks = Vec::new();
    for i in 0..4 {
        let e = world
            .executor
            .within(&world.root.child(format!("loop {i}")));
        tasks.push(tokio::spawn(async move {
            let name = format!("c{i}");
            drop(e.commit(&who(), &change(&name)).await);
        }));
        let reader = world.executor.reader();
        tasks.push(tokio::spawn(async move {
            drop(reader.watch(Span::all(), MetaRev(1)).await);
        }));
        let e = world.executor.detached("clean up");
        tasks.push(tokio::spawn(async move {
            drop(e.note(&[Write::put(key("d"), "x")]).await);
        }));
    }
    while world.calls().open.len() < tasks.len() {
        tokio::task::yield_now().await;
    }
    let begun = world.clock.mono();
    world.root.stop(DETACHED).await;
    assert!(world.clock.mono() <= begun + DETACHED, "it took longer");
    assert!(world.calls().open.is_empty());
    let calls = world.store.calls();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(world.store.calls(), calls, "asked after the stop");
    let late = world.executor.note(&[Write::put(key("z"), "x")]).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(world.store.calls(), calls);
}

/// A watch ends with its scope, and says so.
#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_its_scope() {
    let world = world().await;
    let scope = world.root.child("loop: following");
    let reader = MetaReader::new(world.store.clone(), &scope);
    let mut watch = reader.watch(Span::all(), MetaRev(1)).await.unwrap();
    scope.cancel();
    let said = watch.next().await.expect("a reason").unwrap_err();
    assert_eq!(said.kind(), ErrorKind::Cancelled);
    assert!(watch.next().await.is_none());
}

/// Who is above whom, of spans.
#[derive(Clone, Default)]
struct Traces(Arc<Mutex<Vec<Traced>>>);

/// A span and those above it.
type Traced = (String, Vec<String>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Traces {
    fn on_new_span(
        &self,
        attrs: &tracing::span::Attributes<'_>,
        id: &tracing::span::Id,
        ctx: Context<'_, S>,
    ) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                write!(self.0, "{}={value:?} ", field.name()).unwrap();
            }
        }
        let mut text = Text(format!("{} ", attrs.metadata().name()));
        attrs.record(&mut text);
        let span = ctx.span(id).unwrap();
        span.extensions_mut().insert(text.0.clone());
        let above = span.scope().skip(1);
        let above = above
            .map(|s| s.extensions().get::<String>().cloned().unwrap_or_default())
            .collect();
        self.0.lock().unwrap().push((text.0, above));
    }
}

/// I7.4: each catalog call's span has the request's span above it, also of what the request began and does not wait for.
#[tokio::test(start_paused = true)]
async fn traces_lead_to_who_asked() {
    let traces = Traces::default();
    // Of the whole process: one of this thread alone would miss what other threads were first to reach.
    let subscriber = tracing_subscriber::registry().with(traces.clone());
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let world = world().await;
    let request = world.root.child("request 9: apply");
    world
        .executor
        .within(&request)
        .commit(&who(), &change("traced-a"))
        .await
        .unwrap();
    let jobs = world.root.child("jobs");
    let job = jobs.begun_by(&request, "job 12");
    let step = job.child("job 12: step copy");
    let e = world.executor.within(&step);
    let (put, gone) = (
        Write::put(key("traced-n"), "x"),
        Write::Delete(key("traced-n")),
    );
    e.note(&[put]).await.unwrap();
    e.detached("clean up").note(&[gone]).await.unwrap();
    let seen = traces.0.lock().unwrap().clone();
    let ours = |name: &str| name.starts_with("meta ") && name.contains("traced-");
    let calls: Vec<_> = seen.iter().filter(|(name, _)| ours(name)).collect();
    assert!(calls.len() >= 4, "{seen:?}");
    for (call, above) in calls {
        assert!(
            above.iter().any(|a| a.contains("request 9: apply")),
            "{call} is below {above:?} only"
        );
    }
    // Yet the job does not end with the request.
    request.cancel();
    assert!(!step.is_over() && request.is_over());
}
