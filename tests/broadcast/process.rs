//! A process that owns the root, and what its callbacks do where a crash cannot take it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use falconer::engine::broadcast::{
    Acked, AllAcked, Broadcaster, Callbacks, Consumer, Order, Parts,
};
use falconer::engine::clock::{Clock, SeededEntropy};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::message::{Draft, Stored, position};
use falconer::engine::format::pb::messages::{
    DropCollectionMessageHeader, MessageType, ResourceDomain,
};
use falconer::engine::format::pb::msg::MsgPosition;
use falconer::engine::ids::{JobId, MessageId, MetaKey, Term, Tso, VChannel};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWrite, MetaWriter, Write};
use falconer::engine::model::broadcast::{Resource, ResourceKeys, TombstoneLimits};
use falconer::engine::objects::ObjectWrite;
use falconer::engine::plan::execute::{Change, Executor, Parts as ExecutorParts, Who};
use falconer::engine::profile::Roots;
use falconer::engine::wal::channels::Channels;
use falconer::engine::wal::checkpoints::{Checkpoints, Report};

pub const P0: &str = "by-dev-rootcoord-dml_0";
pub const P1: &str = "by-dev-rootcoord-dml_1";
/// Shards of three collections, on two physical channels.
pub const SHARDS: [&str; 4] = [
    "by-dev-rootcoord-dml_0_7v0",
    "by-dev-rootcoord-dml_1_7v1",
    "by-dev-rootcoord-dml_0_8v0",
    "by-dev-rootcoord-dml_1_9v0",
];
pub const LIMITS: TombstoneLimits = TombstoneLimits {
    count: 3,
    age: Duration::from_hours(24),
};

/// What happened outside of the stores; a crash does not take it back.
#[derive(Default)]
pub struct Book {
    /// Callbacks of one channel that succeeded.
    pub once: BTreeMap<(i64, String), usize>,
    /// Callbacks of all, in order: begun, ended.
    pub calls: Vec<(i64, bool)>,
    /// The next callbacks fail.
    pub fail_once: usize,
    pub fail_all: usize,
    /// Data that is not in objects yet.
    pub unsynced: BTreeMap<VChannel, MsgPosition>,
    /// The last message of each channel that the data path took in.
    pub taken: BTreeMap<VChannel, MsgPosition>,
    /// A callback of all that began before the callback of one of its channels had succeeded.
    pub too_early: BTreeSet<i64>,
}

pub type Shared = Arc<Mutex<Book>>;

struct Effects {
    executor: Arc<Executor>,
    book: Shared,
}

pub fn effect_key(id: i64) -> MetaKey {
    format!("by-dev/meta/test-effect/{id}").into()
}

fn made_to_fail() -> Error {
    Error::new(ErrorKind::Unreachable, "a callback made to fail")
}

#[async_trait]
impl Callbacks for Effects {
    async fn ack_once(&self, acked: &Acked) -> Result<()> {
        tokio::task::yield_now().await;
        let mut book = self.book.lock().unwrap();
        if book.fail_once > 0 {
            book.fail_once -= 1;
            return Err(made_to_fail());
        }
        *book
            .once
            .entry((acked.id.0, acked.channel.0.clone()))
            .or_default() += 1;
        Ok(())
    }

    async fn ack_all(&self, all: &AllAcked) -> Result<()> {
        {
            let mut book = self.book.lock().unwrap();
            let all_called = all
                .copies
                .iter()
                .all(|(v, _)| book.once.contains_key(&(all.id.0, v.0.clone())));
            if !all_called {
                book.too_early.insert(all.id.0);
            }
            book.calls.push((all.id.0, false));
            if book.fail_all > 0 {
                book.fail_all -= 1;
                return Err(made_to_fail());
            }
        }
        let change = Change {
            name: "effect".into(),
            writes: vec![Write::put(effect_key(all.id.0), "done")],
            atomic: true,
            ..Change::default()
        };
        self.executor.commit(&all.who, &change).await?;
        self.book.lock().unwrap().calls.push((all.id.0, true));
        Ok(())
    }
}

struct Data(Shared);

#[async_trait]
impl Consumer for Data {
    async fn take(&self, _: Term, message: &Stored) -> Result<()> {
        let mut book = self.0.lock().unwrap();
        let taken = book.taken.entry(message.vchannel()).or_default();
        if taken.timestamp < message.tick.0 {
            *taken = message.position();
        }
        Ok(())
    }

    fn unsynced(&self, channel: &VChannel) -> Option<MsgPosition> {
        self.0.lock().unwrap().unsynced.get(channel).cloned()
    }
}

pub struct Process {
    pub executor: Arc<Executor>,
    pub channels: Arc<Channels>,
    pub checkpoints: Arc<Checkpoints>,
    pub broadcaster: Broadcaster,
    pub control: VChannel,
}

pub fn passes(e: &Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown
}

pub async fn again<T>(mut call: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    loop {
        match call().await {
            Err(e) if passes(&e) => {}
            done => return done,
        }
    }
}

impl Process {
    pub async fn start(
        meta: Arc<dyn MetaWrite>,
        objects: ObjectWrite,
        clock: Arc<dyn Clock>,
        book: &Shared,
    ) -> Result<Self> {
        let executor = Executor::new(ExecutorParts {
            meta: MetaWriter::new(meta, &Scope::root(clock.clone(), "test")),
            objects,
            roots: Roots::default(),
            clock,
            entropy: Arc::new(SeededEntropy::new(11)),
            actor: "tester pid 11".into(),
            embedded: true,
        });
        again(async || executor.fence().acquire().await).await?;
        let channels = Channels::new(executor.clone());
        let control = again(async || channels.control(P0).await).await?;
        let checkpoints = again(async || Checkpoints::load(executor.clone()).await).await?;
        // Opening again takes the logs of the first try over.
        let broadcaster = again(async || {
            Broadcaster::open(Parts {
                executor: executor.clone(),
                channels: channels.clone(),
                checkpoints: checkpoints.clone(),
                callbacks: Arc::new(Effects {
                    executor: executor.clone(),
                    book: book.clone(),
                }),
                consumer: Arc::new(Data(book.clone())),
                tombstones: LIMITS,
            })
            .await
        })
        .await?;
        Ok(Self {
            executor,
            channels,
            checkpoints,
            broadcaster,
            control,
        })
    }

    pub fn who() -> Who {
        Who {
            job: JobId(5),
            plan: "tested".into(),
            epoch: None,
        }
    }

    /// Marks and first checkpoints.
    pub async fn create_channels(&self) -> Result<()> {
        let first = SHARDS.map(|v| (v.into(), position(&v.into(), MessageId(1), Tso(1))));
        again(async || self.checkpoints.create(first.to_vec()).await).await
    }

    /// A report of the channel's owner.
    pub async fn report(&self, channel: &VChannel, position: MsgPosition) -> Result<usize> {
        let log = self.channels.of(channel).await?;
        let report = Report {
            channel: channel.clone(),
            position,
            term: log.term(),
        };
        let refused = self
            .checkpoints
            .update(vec![report], |p| self.channels.term(p))
            .await?;
        Ok(refused.len())
    }

    pub async fn quiet(&self, label: &str) {
        let mut changed = self.broadcaster.changed();
        let all_done = async {
            while !self.broadcaster.shown().is_empty() {
                changed.changed().await.unwrap();
            }
        };
        tokio::select! {
            () = all_done => return,
            () = self.executor.clock().sleep(Duration::from_mins(7)) => {}
        }
        let stuck: Vec<String> = self
            .broadcaster
            .shown()
            .iter()
            .map(|s| format!("{} {}: {}", s.id, s.kind, s.waiting))
            .collect();
        panic!(
            "{label}: still unfinished: {stuck:?}, troubles {:?}",
            self.broadcaster.troubles()
        );
    }

    pub async fn end(self) {
        self.broadcaster.close().await;
        self.channels.close().await;
        self.executor.fence().release().await;
    }
}

pub fn order(channels: Vec<VChannel>, ack_sync_up: bool) -> Order {
    let header = DropCollectionMessageHeader {
        collection_id: 7,
        db_id: 1,
    };
    Order {
        draft: Draft::new(MessageType::DropCollection, &header, b"body".to_vec()),
        channels,
        ack_sync_up,
    }
}

pub fn collection(name: &str, shared: bool) -> (Resource, bool) {
    (
        Resource::new(ResourceDomain::CollectionName, format!("default:{name}")),
        shared,
    )
}

pub fn exclusive(name: &str) -> ResourceKeys {
    ResourceKeys::new([collection(name, false)])
}
