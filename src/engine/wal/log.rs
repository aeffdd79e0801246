//! Opening a log, and what its handle, its writer and its readers share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::reader::LogReader;
use super::writer::{Ask, Writer};
use super::{Appended, End, Reader, Wal, term};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::hex;
use crate::engine::format::keys::Key;
use crate::engine::format::message::{Draft, Stored, decode_segment};
use crate::engine::ids::{MessageId, MetaKey, MetaRev, ObjectKey, Term, Tso};
use crate::engine::meta::{Cond, KeyValue, Span, Write};
use crate::engine::model::log::{Head, Index, Segment};
use crate::engine::plan::execute::Executor;
use crate::engine::plan::journal::{from_json, json};
use crate::engine::plan::ledger::{Swap, Swapped};
use crate::engine::plan::retry::{Backoff, calm};

/// Appends that may wait before a caller does.
const QUEUE: usize = 1_024;
/// Bytes of the youngest segments that are kept in memory for those who follow the log.
const RECENT: usize = 4 << 20;
/// Tries to take a log that others take too.
const CONTESTS: u32 = 8;

/// A log that we own. Dropping it ends it, after what was asked for.
pub struct Log {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What handle, writer and readers share.
pub(super) struct Shared {
    pub pchannel: String,
    pub term: Term,
    pub executor: Arc<Executor>,
    pub end: watch::Sender<End>,
    index: Mutex<Index>,
    recent: Mutex<Recent>,
    needs: Mutex<Needs>,
}

#[derive(Default)]
struct Recent {
    segments: VecDeque<(Arc<Vec<Stored>>, usize)>,
    bytes: usize,
}

/// From where on each reader needs the log, and below what nobody may begin any more.
#[derive(Default)]
struct Needs {
    readers: BTreeMap<u64, MessageId>,
    next_slot: u64,
    floor: MessageId,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Takes the log of a physical channel, or begins it, and ends every other owner's. The executor must own the root.
    ///
    /// A log that begins lies above every position that records have on the channel.
    ///
    /// `Conflict` when a Milvus owns the channel, `Busy` when others take it as often as we do, `Corrupt` when its index is damaged.
    pub async fn open(executor: Arc<Executor>, pchannel: &str) -> Result<Arc<Self>> {
        check(pchannel)?;
        let (head, rev) = take(&executor, pchannel).await?;
        // Read after the head is ours: no older owner can add to it now.
        let span = Span::prefix(&executor.keys().wal_segments(pchannel));
        let reader = executor.reader();
        let page = calm(&**executor.clock(), || reader.range_all(&span)).await?;
        let stored = page
            .kvs
            .iter()
            .map(|kv| from_json::<Segment>(&kv.key, &kv.value));
        let term = head.term;
        let (index, left) = Index::load(head, stored.collect::<Result<_>>()?)
            .map_err(|e| e.with("channel", pchannel))?;
        let end = End {
            first: index.first(),
            next: index.head().next,
            tick: index.head().tick,
            ended: None,
            trouble: None,
        };
        let shared = Arc::new(Shared {
            pchannel: pchannel.to_owned(),
            term,
            executor,
            needs: Mutex::new(Needs {
                floor: end.first,
                ..Needs::default()
            }),
            end: watch::Sender::new(end),
            index: Mutex::new(index),
            recent: Mutex::default(),
        });
        let (asks, asked) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let writer = Writer::new(shared.clone(), rev, left, stop.clone());
        let task = Mutex::new(Some(tokio::spawn(writer.run(asked))));
        Ok(Arc::new(Self {
            shared,
            asks,
            stop,
            task,
        }))
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T>>) -> Ask) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        if self.asks.send(ask(answer)).await.is_ok()
            && let Ok(answer) = answered.await
        {
            return answer;
        }
        let ended = self.shared.end.borrow().ended.clone();
        Err(ended.unwrap_or_else(|| closed(&self.shared.pchannel)))
    }
}

pub(super) fn closed(pchannel: &str) -> Error {
    Error::new(
        ErrorKind::Cancelled,
        format!("the log of {pchannel} is closed"),
    )
}

/// A name that is one part of a key.
fn check(pchannel: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !pchannel.is_empty() && pchannel.chars().all(plain) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("{pchannel:?} cannot name a physical channel: letters, digits and ._- can"),
    ))
}

/// At the revision that was read, or absent.
pub(super) fn unmoved(key: &MetaKey, kv: Option<&KeyValue>) -> Cond {
    kv.map_or_else(
        || Cond::Absent(key.clone()),
        |kv| Cond::At(key.clone(), kv.mod_rev),
    )
}

/// Moves the term up, in two steps: who crashes between them leaves a term that nobody uses.
async fn take(executor: &Executor, pchannel: &str) -> Result<(Head, MetaRev)> {
    let head_key = executor.keys().wal_head(pchannel);
    let record_key = Key::PChannel(pchannel.to_owned()).to_key(executor.roots());
    let reader = executor.reader();
    let mut backoff = Backoff::new(CONTESTS);
    loop {
        let head_kv = calm(&**executor.clock(), || reader.get(&head_key)).await?;
        let record_kv = calm(&**executor.clock(), || reader.get(&record_key)).await?;
        if head_kv.is_none() && record_kv.is_some() && !executor.embedded() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "channel {pchannel} belongs to a Milvus: it has a record and no log of ours"
                ),
            )
            .with("key", &record_key)
            .fix("write through Milvus; Falconer owns the channels of its own roots only"));
        }
        let stored = match &head_kv {
            Some(kv) => from_json(&kv.key, &kv.value)?,
            None => super::adopt::head(executor, pchannel).await?,
        };
        let record = record_kv.as_ref().map(|kv| &kv.value[..]);
        let head = stored.taken(term::of(record)?);
        let now = executor.clock().now();
        let assigning = term::assigning(record, pchannel, head.term, executor.actor(), now)?;
        let at_head = unmoved(&head_key, head_kv.as_ref());
        let mut first = Swap::new(
            vec![unmoved(&record_key, record_kv.as_ref()), at_head.clone()],
            vec![Write::put(record_key.clone(), assigning.clone())],
        );
        if let Swapped::Done(rev) = known(executor, &mut first).await? {
            let mut second = Swap::new(
                vec![at_head, Cond::At(record_key.clone(), rev)],
                vec![
                    Write::put(head_key.clone(), json(&head)?),
                    Write::put(record_key.clone(), term::assigned(&assigning)?),
                ],
            );
            if let Swapped::Done(rev) = known(executor, &mut second).await? {
                return Ok((head, rev));
            }
        }
        if !backoff.again(&**executor.clock()).await {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the log of {pchannel} is being taken by others all the time"),
            )
            .fix("let one process own the root"));
        }
    }
}

/// A swap whose doubt is given one more round: what stays unknown goes up, and opening again is safe.
async fn known(executor: &Executor, swap: &mut Swap) -> Result<Swapped> {
    match executor.swap(swap).await {
        Err(e) if e.kind() == ErrorKind::OutcomeUnknown => executor.swap(swap).await,
        done => done,
    }
}

#[async_trait]
impl Wal for Log {
    fn pchannel(&self) -> &str {
        &self.shared.pchannel
    }

    fn term(&self) -> Term {
        self.shared.term
    }

    fn end(&self) -> watch::Receiver<End> {
        self.shared.end.subscribe()
    }

    async fn append(&self, drafts: Vec<Draft>) -> Result<Vec<Appended>> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(|answer| Ask::Append(drafts, answer)).await
    }

    async fn tick(&self) -> Result<Tso> {
        self.ask(Ask::Tick).await
    }

    fn read_from(&self, from: MessageId) -> Result<Box<dyn Reader>> {
        Ok(Box::new(LogReader::new(self.shared.clone(), from)?))
    }

    async fn truncate(&self, below: MessageId) -> Result<MessageId> {
        self.ask(|answer| Ask::Truncate(below, answer)).await
    }

    async fn close(&self) {
        self.stop.cancel();
        let task = lock(&self.task).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

impl Shared {
    pub fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    /// Folder of the log's objects.
    pub fn folder(&self) -> ObjectKey {
        let parts = [
            self.executor.objects().root().trim_end_matches('/'),
            "falconer",
            self.executor.roots().root.trim_matches('/'),
            "wal",
            &self.pchannel,
        ];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        ObjectKey(parts.join("/"))
    }

    /// A segment's object: the token makes it a name that no other try ever writes.
    pub fn object(&self, first: MessageId, token: u64) -> ObjectKey {
        ObjectKey(format!(
            "{}/{:020}-{:020}-{token:016x}",
            self.folder(),
            self.term.0,
            first.0
        ))
    }

    /// The term in an object's name, when the name is one of ours.
    pub fn term_of(&self, object: &ObjectKey) -> Option<Term> {
        let name = object.0.strip_prefix(&self.folder().0)?.strip_prefix('/')?;
        let parts: Vec<&str> = name.split('-').collect();
        let [term, first, token] = parts[..] else {
            return None;
        };
        let right = term.len() == 20 && first.len() == 20 && token.len() == 16;
        let _: u64 = first.parse().ok()?;
        u64::from_str_radix(token, 16).ok()?;
        right.then(|| term.parse().ok().map(Term)).flatten()
    }

    /// Tells everybody where the log stands now.
    pub fn publish(&self, ended: Option<Error>) {
        let (first, next, tick) = {
            let index = self.index();
            (index.first(), index.head().next, index.head().tick)
        };
        self.end.send_modify(|end| {
            (end.first, end.next, end.tick, end.trouble) = (first, next, tick, None);
            end.ended = end.ended.take().or(ended);
        });
    }

    /// Keeps a young segment in memory.
    pub fn remember(&self, messages: Vec<Stored>, bytes: usize) {
        let mut recent = lock(&self.recent);
        recent.bytes += bytes;
        recent.segments.push_back((Arc::new(messages), bytes));
        while recent.bytes > RECENT && recent.segments.len() > 1 {
            let gone = recent.segments.pop_front().map_or(0, |(_, bytes)| bytes);
            recent.bytes -= gone;
        }
    }

    /// The messages of the segment that holds `id`; nothing at the end of the log.
    pub async fn segment(&self, id: MessageId) -> Result<Option<Arc<Vec<Stored>>>> {
        let segment = {
            let index = self.index();
            match index.at(id) {
                Some(segment) => segment.clone(),
                None if id >= index.head().next => return Ok(None),
                None => return Err(cut_off(&self.pchannel, id, index.first())),
            }
        };
        let young = {
            let recent = lock(&self.recent);
            let mut all = recent.segments.iter().rev();
            all.find(|(m, _)| m.first().is_some_and(|m| m.id == segment.first))
                .map(|(m, _)| m.clone())
        };
        if let Some(young) = young {
            return Ok(Some(young));
        }
        let objects = self.executor.objects();
        let bytes = calm(&**self.executor.clock(), || objects.get(&segment.object)).await?;
        let bad = |what: &str| {
            Error::new(
                ErrorKind::Corrupt,
                format!("segment {} of the log: {what}", segment.object),
            )
            .with("channel", &self.pchannel)
        };
        if hex(&Sha256::digest(&bytes)) != segment.sha256 {
            return Err(bad("its bytes are not those that were written"));
        }
        let messages = decode_segment(&bytes, segment.first)?;
        if messages.last().map(|m| m.id) != Some(segment.last) {
            return Err(bad("it does not hold the messages of its index entry"));
        }
        Ok(Some(Arc::new(messages)))
    }

    /// A new reader's slot.
    pub fn need(&self, from: MessageId) -> Result<u64> {
        let mut needs = lock(&self.needs);
        if from < needs.floor {
            return Err(cut_off(&self.pchannel, from, needs.floor));
        }
        let slot = needs.next_slot;
        needs.next_slot += 1;
        needs.readers.insert(slot, from);
        Ok(slot)
    }

    /// A reader needs nothing below `from` any more; nothing at all when it is `None`.
    pub fn needs_from(&self, slot: u64, from: Option<MessageId>) {
        let mut needs = lock(&self.needs);
        match from {
            Some(from) => needs.readers.insert(slot, from),
            None => needs.readers.remove(&slot),
        };
    }

    /// Where the log can begin when everything below `below` may go: whole segments, and none that a reader needs. No new reader
    /// begins below it from now on.
    pub fn cut_at(&self, below: MessageId) -> MessageId {
        let mut needs = lock(&self.needs);
        let needed = needs.readers.values().copied().min();
        let to = self.index().cut_at(needed.map_or(below, |n| n.min(below)));
        needs.floor = needs.floor.max(to);
        to
    }
}

fn cut_off(pchannel: &str, id: MessageId, first: MessageId) -> Error {
    Error::new(
        ErrorKind::Compacted,
        format!("message {id} of {pchannel} is cut off: the log begins at {first}"),
    )
    .fix("begin at a checkpoint that is still kept")
}
