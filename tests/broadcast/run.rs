//! A long random run against a model: broadcasts, appends, checkpoints, drops, truncations, callers that leave, callbacks that fail,
//! restarts, crashes, and store operations that fail before, after, or take the process with them. After every step the invariants
//! are read from the stores with Milvus's protobufs; at the end of each episode everything must come to rest.
//!
//! `FALCONER_MODEL_STEPS` is the number of steps, `FALCONER_MODEL_SEED` the first seed; each episode prints its own when it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use falconer::engine::clock::{Clock, Entropy, SeededEntropy};
use falconer::engine::error::ErrorKind;
use falconer::engine::format::keys::Family;
use falconer::engine::format::message::Draft;
use falconer::engine::format::pb::messages::{
    BroadcastHeader, FlushMessageHeader, MessageType, ResourceDomain,
};
use falconer::engine::format::pb::msg::MsgPosition;
use falconer::engine::format::pb::streaming::{BroadcastTask, BroadcastTaskState, PChannelMeta};
use falconer::engine::ids::{KeyPrefix, MetaRev, Term, VChannel};
use falconer::engine::meta::{KeyValue, Limits, Span};
use falconer::engine::model::broadcast::{Resource, ResourceKeys};
use falconer::engine::profile::Roots;
use falconer::engine::wal::checkpoints::Report;
use object_store::memory::InMemory;
use prost::Message as _;
use tokio::task::JoinHandle;

use crate::process::{P0, P1, Process, SHARDS, Shared, collection, effect_key, order};
use crate::support::faults::{Faults, Mode, World};
use crate::support::mem::MemStore;
use crate::support::snapshots::{NOW, ROOT};

/// Steps of one world.
const EPISODE: usize = 400;
const STEPS: u64 = 100_000;
/// Store operations of one process life among which the faulty one is drawn.
const REACH: u64 = 600;

/// What the callers heard.
#[derive(Default)]
struct Heard {
    /// Created for certain.
    created: BTreeSet<i64>,
    done: BTreeSet<i64>,
    /// Orders whose answer nobody heard: each may have made a task.
    open: usize,
    /// Channels whose drop was acknowledged.
    dropped: BTreeSet<String>,
}

/// What the stores held at the last look.
#[derive(Default)]
struct Seen {
    rev: MetaRev,
    acked: BTreeMap<i64, Vec<bool>>,
    keys: BTreeMap<i64, ResourceKeys>,
    checkpoints: BTreeMap<String, u64>,
    terms: BTreeMap<String, i64>,
}

struct Life {
    process: Arc<Process>,
    faults: Arc<Faults>,
    spawned: Vec<JoinHandle<()>>,
}

struct Sim {
    random: SeededEntropy,
    world: World,
    book: Shared,
    heard: Arc<Mutex<Heard>>,
    seen: Seen,
    label: String,
    lives: usize,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let limits = Limits {
            ops: 128,
            bytes: 1 << 20,
        };
        Self {
            random: SeededEntropy::new(seed),
            world: World::new(
                Arc::new(MemStore::new(limits)),
                Arc::new(InMemory::new()),
                NOW,
            ),
            book: Shared::default(),
            heard: Arc::default(),
            seen: Seen::default(),
            label: format!("seed {seed}"),
            lives: 0,
        }
    }

    fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn pick<T: Clone>(&self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()].clone()
    }

    async fn start(&mut self, faulty: bool) -> Life {
        loop {
            self.lives += 1;
            let faults = if faulty && self.below(5) > 0 {
                let modes = [
                    Mode::FailBefore,
                    Mode::FailAfter,
                    Mode::CrashBefore,
                    Mode::CrashAfter,
                ];
                Faults::at(
                    usize::try_from(self.below(REACH)).unwrap(),
                    self.pick(&modes),
                )
            } else {
                Faults::none()
            };
            let stores = self.world.open(&faults, ROOT);
            let starting = async {
                let process = Process::start(
                    stores.meta.clone(),
                    stores.write.clone(),
                    stores.clock.clone(),
                    &self.book,
                )
                .await?;
                process.create_channels().await?;
                Ok::<_, falconer::engine::error::Error>(process)
            };
            tokio::select! {
                biased;
                () = faults.crashed() => {}
                started = starting => {
                    let process = Arc::new(started.unwrap_or_else(|e| panic!("{}: starting: {e}", self.label)));
                    return Life { process, faults, spawned: Vec::new() };
                }
            }
            self.world.bury().await;
        }
    }

    /// The process is gone.
    async fn crash(&mut self, mut life: Life) {
        life.faults.kill();
        for task in &life.spawned {
            task.abort();
        }
        for task in life.spawned.drain(..) {
            if let Err(e) = task.await {
                assert!(e.is_cancelled(), "{}: {e}", self.label);
            }
        }
        life.process.broadcaster.close().await;
        self.world.bury().await;
    }

    fn spawn(life: &mut Life, work: impl Future<Output = ()> + Send + 'static) {
        life.spawned.push(tokio::spawn(work));
    }

    fn keys(&self) -> ResourceKeys {
        let mut wanted = Vec::new();
        for _ in 0..=self.below(2) {
            wanted.push(collection(
                self.pick(&["books", "films", "songs"]),
                self.below(3) == 0,
            ));
        }
        if self.below(25) == 0 {
            wanted.push((Resource::new(ResourceDomain::Cluster, ""), false));
        }
        ResourceKeys::new(wanted)
    }

    fn broadcast(&self, life: &mut Life) {
        let mut channels: Vec<VChannel> = SHARDS
            .iter()
            .filter(|_| self.below(2) == 0)
            .map(|v| (*v).into())
            .collect();
        channels.push(life.process.control.clone());
        let (keys, flag, at_once) = (self.keys(), self.below(2) == 0, self.below(4) == 0);
        let (process, heard) = (life.process.clone(), self.heard.clone());
        Self::spawn(life, async move {
            let b = &process.broadcaster;
            let guard = if at_once {
                b.try_lock(keys)
            } else {
                b.lock(keys).await
            };
            let Ok(guard) = guard else { return };
            heard.lock().unwrap().open += 1;
            match b
                .broadcast(&Process::who(), guard, order(channels, flag))
                .await
            {
                Ok(ticket) => {
                    let id = ticket.id().0;
                    {
                        let mut heard = heard.lock().unwrap();
                        heard.open -= 1;
                        heard.created.insert(id);
                    }
                    if ticket.done().await.is_ok() {
                        heard.lock().unwrap().done.insert(id);
                    }
                }
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown => {}
                Err(_) => heard.lock().unwrap().open -= 1,
            }
        });
    }

    async fn step(&mut self, life: &mut Life) {
        let v: VChannel = self.pick(&SHARDS).into();
        let process = life.process.clone();
        match self.below(100) {
            0..30 => self.broadcast(life),
            30..45 => Self::spawn(life, async move {
                let draft =
                    Draft::new(MessageType::Flush, &FlushMessageHeader::default(), vec![7]).on(&v);
                if let Ok(log) = process.channels.of(&v).await {
                    let _ = log.append(vec![draft]).await;
                }
            }),
            45..51 => Self::spawn(
                life,
                async move { drop(process.broadcaster.truncate().await) },
            ),
            51..54 => Self::spawn(
                life,
                async move { drop(process.broadcaster.collect().await) },
            ),
            54..60 => {
                let label = self.label.clone();
                let position = self.book.lock().unwrap().taken.get(&v).cloned();
                Self::spawn(life, async move {
                    let Some(mut position) = position else { return };
                    position.timestamp += 1;
                    let Some(now) = process.channels.term(P0) else {
                        return;
                    };
                    let report = Report {
                        channel: v,
                        position,
                        term: Term(now.0 + 1_000),
                    };
                    let refused = process
                        .checkpoints
                        .update(vec![report], |p| process.channels.term(p))
                        .await;
                    assert_eq!(refused.map_or(1, |r| r.len()), 1, "{label}: I2.1");
                });
            }
            60..68 => self.report(life, v),
            68..70 => {
                let heard = self.heard.clone();
                // Some channels live for the whole episode.
                if v.0 == SHARDS[1] || v.0 == SHARDS[2] {
                    Self::spawn(life, async move {
                        if process.checkpoints.mark_dropped(&v).await.is_ok() {
                            heard.lock().unwrap().dropped.insert(v.0);
                        }
                    });
                }
            }
            70..76 => {
                self.book.lock().unwrap().fail_once += usize::try_from(self.below(4)).unwrap();
            }
            76..80 => {
                self.book.lock().unwrap().fail_all += usize::try_from(self.below(3)).unwrap();
            }
            80..84 => {
                if let Some(at) = process.checkpoints.get(&v) {
                    self.book.lock().unwrap().unsynced.insert(v, at);
                }
            }
            84..90 => {
                self.book.lock().unwrap().unsynced.remove(&v);
                self.report(life, v);
            }
            90..96 => {
                if !life.spawned.is_empty() {
                    let at = usize::try_from(self.below(life.spawned.len() as u64)).unwrap();
                    life.spawned[at].abort();
                }
            }
            96..98 => life.faults.kill(),
            _ => {
                // An orderly end, and the next process.
                let ending = async {
                    process.broadcaster.close().await;
                    process.channels.close().await;
                };
                tokio::select! {
                    biased;
                    () = life.faults.crashed() => {}
                    () = ending => life.faults.kill(),
                }
            }
        }
        let clock = self.world.clock.clone();
        let pause = Duration::from_millis(self.below(40));
        tokio::select! {
            biased;
            () = life.faults.crashed() => {}
            () = clock.sleep(pause) => {}
        }
        life.spawned.retain(|task| !task.is_finished());
    }

    /// What the data path took in and has written, unless some of it is not.
    fn report(&self, life: &mut Life, v: VChannel) {
        let position = {
            let book = self.book.lock().unwrap();
            match book.unsynced.get(&v) {
                Some(_) => None,
                None => book.taken.get(&v).cloned(),
            }
        };
        let process = life.process.clone();
        if let Some(position) = position {
            Self::spawn(
                life,
                async move { drop(process.report(&v, position).await) },
            );
        }
    }

    async fn range(&self, prefix: KeyPrefix) -> (Vec<KeyValue>, MetaRev) {
        let page = self
            .world
            .meta
            .range_all(&Span::prefix(&prefix))
            .await
            .unwrap();
        (page.kvs, page.rev)
    }

    /// The invariants that hold at every moment.
    async fn look(&mut self) {
        let roots = Roots::default();
        let (records, rev) = self.range(Family::BroadcastTask.prefix(&roots)).await;
        if rev == self.seen.rev {
            return;
        }
        self.seen.rev = rev;
        let (checkpoints, _) = self.range(Family::ChannelCheckpoint.prefix(&roots)).await;
        let (channels, _) = self.range(Family::PChannel.prefix(&roots)).await;
        let label = &self.label;
        let mut stored: BTreeMap<String, u64> = BTreeMap::new();
        for kv in &checkpoints {
            let at = MsgPosition::decode(&*kv.value)
                .unwrap_or_else(|e| panic!("{label}: {}: {e}", kv.key));
            let before = self
                .seen
                .checkpoints
                .get(&at.channel_name)
                .copied()
                .unwrap_or(0);
            assert!(
                at.timestamp >= before,
                "{label}: I3.1 {} fell to {}",
                at.channel_name,
                at.timestamp
            );
            stored.insert(at.channel_name, at.timestamp);
        }
        for v in &self.heard.lock().unwrap().dropped {
            assert_eq!(stored.get(v), Some(&u64::MAX), "{label}: I3.2 {v}");
        }
        let book = self.book.lock().unwrap();
        let mut held: Vec<(i64, ResourceKeys)> = Vec::new();
        for kv in &records {
            let task = BroadcastTask::decode(&*kv.value).unwrap();
            let properties = &task
                .message
                .as_ref()
                .unwrap_or_else(|| panic!("{label}: II-8"))
                .properties;
            let header = base64::engine::general_purpose::STANDARD
                .decode(&properties["_bh"])
                .unwrap();
            let header = BroadcastHeader::decode(&*header).unwrap();
            let id = i64::try_from(header.broadcast_id).unwrap();
            let keys = ResourceKeys::from_pb(&header.resource_keys);
            self.seen.keys.entry(id).or_insert_with(|| keys.clone());
            let acked: Vec<bool> = task
                .acked_checkpoints
                .iter()
                .map(|c| c.time_tick != 0)
                .collect();
            let bits: Vec<bool> = task.acked_vchannel_bitmap.iter().map(|b| *b != 0).collect();
            assert_eq!(acked, bits, "{label}: {id}");
            if let Some(before) = self.seen.acked.get(&id) {
                assert!(
                    before.iter().zip(&acked).all(|(b, n)| *n || !*b),
                    "{label}: II-5 {id} shrank"
                );
            }
            for ((v, at), _) in header
                .vchannels
                .iter()
                .zip(&task.acked_checkpoints)
                .zip(&acked)
                .filter(|(_, a)| **a)
            {
                assert!(
                    book.once.contains_key(&(id, v.clone())),
                    "{label}: II-5 {id} {v} acked without its callback"
                );
                if header.ack_sync_up && !v.ends_with("_vcchan") {
                    assert!(
                        stored[v] >= at.time_tick,
                        "{label}: I1.3 {id} {v}: {} < {}",
                        stored[v],
                        at.time_tick
                    );
                }
            }
            match task.state() {
                BroadcastTaskState::Pending => {
                    for (other, theirs) in &held {
                        assert!(
                            keys.conflict(theirs).is_none(),
                            "{label}: II-1 {id} and {other}"
                        );
                    }
                    held.push((id, keys));
                }
                BroadcastTaskState::Tombstone => {
                    assert!(acked.iter().all(|a| *a), "{label}: II-3 {id}");
                    assert!(
                        book.calls.contains(&(id, true)),
                        "{label}: tombstone of {id} before its callback"
                    );
                }
                other => panic!("{label}: state {other:?}"),
            }
            self.seen.acked.insert(id, acked);
        }
        assert!(
            book.too_early.is_empty(),
            "{label}: II-3 {:?}",
            book.too_early
        );
        for kv in channels {
            let channel = PChannelMeta::decode(&*kv.value).unwrap().channel.unwrap();
            let before = self
                .seen
                .terms
                .insert(channel.name.clone(), channel.term)
                .unwrap_or(0);
            assert!(channel.term >= before, "{label}: I2.3 {}", channel.name);
        }
        self.seen.checkpoints = stored;
    }

    /// Everything comes to rest, with exactly one effect for each task.
    async fn rest(&mut self, life: Life) {
        let process = &life.process;
        {
            let mut book = self.book.lock().unwrap();
            (book.fail_once, book.fail_all) = (0, 0);
            book.unsynced.clear();
        }
        for v in SHARDS.map(VChannel::from) {
            let taken = self.book.lock().unwrap().taken.get(&v).cloned();
            if let Some(taken) = taken {
                process.report(&v, taken).await.unwrap();
            }
        }
        process.quiet(&self.label).await;
        // Waiters that were let go by the last one may have begun another.
        for task in life.spawned {
            let _ = task.await;
        }
        process.quiet(&self.label).await;
        process.broadcaster.collect().await.unwrap();
        assert!(
            process.broadcaster.tombstones() <= crate::process::LIMITS.count,
            "{}: II-7",
            self.label
        );
        let everything = ResourceKeys::new([(Resource::new(ResourceDomain::Cluster, ""), false)]);
        drop(
            process
                .broadcaster
                .try_lock(everything)
                .unwrap_or_else(|e| panic!("{}: {e}", self.label)),
        );
        self.look().await;
        let label = &self.label;
        let (effects, _) = self.range(KeyPrefix::new("by-dev/meta/test-effect")).await;
        assert!(
            effects.iter().all(|kv| kv.version == 1),
            "{label}: II-4 an effect twice"
        );
        {
            let heard = self.heard.lock().unwrap();
            for id in &heard.created {
                assert!(
                    effects.iter().any(|kv| kv.key == effect_key(*id)),
                    "{label}: II-4 {id} has no effect"
                );
            }
            assert!(
                effects.len() <= heard.created.len() + heard.open,
                "{label}: effects made up"
            );
            assert!(heard.done.is_subset(&heard.created), "{label}");
        }
        for v in SHARDS.map(VChannel::from) {
            let held = process.checkpoints.get(&v).unwrap();
            assert_eq!(
                held.timestamp, self.seen.checkpoints[&v.0],
                "{label}: I3.5 {v}"
            );
        }
        self.order();
        self.copies(process).await;
        process.broadcaster.close().await;
        process.channels.close().await;
        process.executor.fence().release().await;
    }

    /// II-2 of the callbacks: those of conflicting tasks do not overlap, and go in the order of the ids.
    fn order(&self) {
        let book = self.book.lock().unwrap();
        let mut spans: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
        for (at, (id, _)) in book.calls.iter().enumerate() {
            spans.entry(*id).or_insert((at, at)).1 = at;
        }
        for (a, (_, end)) in &spans {
            for (b, (begin, _)) in spans.range(a + 1..) {
                let both = self.seen.keys.get(a).zip(self.seen.keys.get(b));
                if both.is_some_and(|(a, b)| a.conflict(b).is_some()) {
                    assert!(end < begin, "{}: II-2 callbacks of {a} and {b}", self.label);
                }
            }
        }
    }

    /// Each copy once, and on every channel the ticks of conflicting tasks in the order of their ids.
    async fn copies(&self, process: &Process) {
        let mut last: BTreeMap<String, Vec<(i64, u64)>> = BTreeMap::new();
        let mut found = BTreeSet::new();
        for pchannel in [P0, P1] {
            let log = process.channels.log(pchannel).await.unwrap();
            let first = log.end().borrow().first;
            let mut reader = log.read_from(first).unwrap();
            let mut before = 0;
            while let Some(message) = reader.try_next().await.unwrap() {
                assert!(message.tick.0 > before, "{}: ticks", self.label);
                before = message.tick.0;
                let Some(header) = message.broadcast() else {
                    continue;
                };
                let id = i64::try_from(header.broadcast_id).unwrap();
                let v = message.vchannel().0;
                assert!(
                    found.insert((id, v.clone())),
                    "{}: {id} twice on {v}",
                    self.label
                );
                for (other, _) in last.get(&v).into_iter().flatten() {
                    let both = self.seen.keys.get(other).zip(self.seen.keys.get(&id));
                    if both.is_some_and(|(a, b)| a.conflict(b).is_some()) {
                        assert!(
                            *other < id,
                            "{}: II-2 {other} before {id} on {v}",
                            self.label
                        );
                    }
                }
                last.entry(v).or_default().push((id, message.tick.0));
            }
        }
    }
}

async fn episode(seed: u64, steps: usize) -> (usize, usize) {
    let mut sim = Sim::new(seed);
    let mut life = sim.start(true).await;
    for _ in 0..steps {
        sim.step(&mut life).await;
        sim.look().await;
        if life.faults.is_dead() {
            sim.crash(life).await;
            sim.look().await;
            life = sim.start(true).await;
        }
    }
    // The last process has no fault.
    sim.crash(life).await;
    let life = sim.start(false).await;
    let lives = sim.lives;
    sim.rest(life).await;
    let tasks = sim.heard.lock().unwrap().created.len();
    (tasks, lives)
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(otherwise)
}

/// A quarter of the steps, so that a machine's cores share them.
async fn quarter(n: u64) {
    let steps = usize::try_from(number("FALCONER_MODEL_STEPS", STEPS) / 4).unwrap();
    let first = number("FALCONER_MODEL_SEED", u64::from(std::process::id()) << 20);
    let mut seed = first.wrapping_add(n << 40);
    let (mut done, mut tasks, mut lives) = (0, 0, 0);
    while done < steps {
        let some = EPISODE.min(steps - done);
        println!(
            "episode: FALCONER_MODEL_STEPS={} FALCONER_MODEL_SEED={seed}",
            4 * some
        );
        let (t, l) = episode(seed, some).await;
        (done, tasks, lives) = (done + some, tasks + t, lives + l);
        seed = seed.wrapping_add(1);
    }
    println!("{done} steps, {tasks} broadcasts, {lives} processes");
    assert!(
        tasks * 20 > done,
        "{tasks} broadcasts in {done} steps prove little"
    );
}

#[tokio::test(start_paused = true)]
async fn the_invariants_hold_after_every_step_1() {
    quarter(0).await;
}

#[tokio::test(start_paused = true)]
async fn the_invariants_hold_after_every_step_2() {
    quarter(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_invariants_hold_after_every_step_3() {
    quarter(2).await;
}

#[tokio::test(start_paused = true)]
async fn the_invariants_hold_after_every_step_4() {
    quarter(3).await;
}
