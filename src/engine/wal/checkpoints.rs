//! The channel checkpoints of a root, stored under Milvus's own keys by the rules of [`model::checkpoint`](crate::engine::model::checkpoint).
//!
//! Persist first, then memory; memory equals what is stored after every call that succeeds (I3.5). A write whose outcome stays unknown
//! leaves its channels *doubtful*: they are read again before anything is decided about them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;

use super::log::unmoved;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key, ParsedKey};
use crate::engine::format::pb::msg::MsgPosition;
use crate::engine::format::position::is_dropped;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::format::wire::Patch;
use crate::engine::ids::{MessageId, MetaKey, Term, Tso, VChannel};
use crate::engine::meta::scope::Scope;
use crate::engine::meta::{KeyValue, Span, Write};
use crate::engine::model::checkpoint::{Need, accepts, cut_below, dropped, need, reached};
use crate::engine::plan::execute::Executor;
use crate::engine::plan::ledger::{Swap, Swapped};
use crate::engine::plan::retry::{Backoff, TRIES, calm};

/// Checkpoints written at once: Milvus's own transactions have at most 64 operations.
const CHUNK: usize = 64;
/// Values of the removal mark.
const NON_REMOVED: &[u8] = b"non-removed";
const REMOVED: &[u8] = b"removed";
/// Fields of `MsgPosition`.
const NAME: u32 = 1;
const MESSAGE: u32 = 2;
const GROUP: u32 = 3;
const TIME: u32 = 4;
const WAL: u32 = 5;

/// A new checkpoint, as the one says who consumes the channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The virtual channel.
    pub channel: VChannel,
    /// Where it stands.
    pub position: MsgPosition,
    /// The term under which the reporter held the channel's log: a report of a former owner is turned away.
    pub term: Term,
}

/// A report that was turned away; nothing of it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The virtual channel.
    pub channel: VChannel,
    /// Why, in one line.
    pub why: String,
}

/// The checkpoints. A clone is the same ones.
#[derive(Clone)]
pub struct Checkpoints {
    executor: Arc<Executor>,
    state: Arc<Mutex<State>>,
    /// Counts changes: whoever waits for a checkpoint looks again.
    changed: watch::Sender<u64>,
    gate: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<VChannel, Held>,
    doubtful: BTreeSet<VChannel>,
    /// Channels with a removal mark, and whether it says `removed`.
    marks: BTreeMap<VChannel, bool>,
}

/// One stored checkpoint.
#[derive(Clone)]
struct Held {
    /// `Err`: it cannot be read, so nothing replaces it.
    position: Result<MsgPosition, String>,
    /// As stored; `None`: collected since, and kept here as dropped so that a late report makes no orphan.
    stored: Option<KeyValue>,
}

impl Held {
    /// The name in the value is missing in old records (#22181): the key's counts.
    fn read(channel: &VChannel, kv: KeyValue) -> Self {
        let position = MsgPosition::decode(&*kv.value).map(|p| MsgPosition {
            channel_name: channel.0.clone(),
            ..p
        });
        Self {
            position: position.map_err(|e| e.to_string()),
            stored: Some(kv),
        }
    }

    fn collected(channel: &VChannel) -> Self {
        Self {
            position: Ok(dropped(channel)),
            stored: None,
        }
    }

    fn at(&self) -> Option<&MsgPosition> {
        self.position.as_ref().ok()
    }
}

impl Checkpoints {
    /// Reads all of them.
    pub async fn load(executor: Arc<Executor>) -> Result<Arc<Self>> {
        let roots = executor.roots().clone();
        let (reader, clock) = (executor.reader(), executor.clock().clone());
        let mut state = State::default();
        for family in [Family::ChannelCheckpoint, Family::ChannelRemoval] {
            let span = Span::prefix(&family.prefix(&roots));
            for kv in calm(&*clock, || reader.range_all(&span)).await?.kvs {
                match Key::parse(&roots, &kv.key.0) {
                    ParsedKey::Known(Key::ChannelCheckpoint(v)) => {
                        let held = Held::read(&v, kv);
                        state.held.insert(v, held);
                    }
                    ParsedKey::Known(Key::ChannelRemoval(v)) => {
                        state.marks.insert(v, kv.value == REMOVED);
                    }
                    _ => {}
                }
            }
        }
        Ok(Arc::new(Self {
            executor,
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
            gate: Arc::default(),
        }))
    }

    /// The same on behalf of another.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            executor: self.executor.within(scope),
            ..self.clone()
        }
    }

    /// Waits for its turn as long as the scope lasts.
    async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        self.executor.scope().wait(self.gate.lock()).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A channel's checkpoint.
    #[must_use]
    pub fn get(&self, channel: &VChannel) -> Option<MsgPosition> {
        self.state().held.get(channel)?.at().cloned()
    }

    /// Every channel that has a readable one.
    #[must_use]
    pub fn all(&self) -> Vec<(VChannel, MsgPosition)> {
        let state = self.state();
        let all = state
            .held
            .iter()
            .filter_map(|(v, held)| Some((v.clone(), held.at()?.clone())));
        all.collect()
    }

    /// Whether everything of the channel up to `tick` is in objects, or the channel is dropped or removed.
    #[must_use]
    pub fn reached(&self, channel: &VChannel, tick: Tso) -> bool {
        let state = self.state();
        let removed = state.marks.get(channel) == Some(&true);
        removed || reached(state.held.get(channel).and_then(Held::at), tick)
    }

    /// Virtual channels of a physical one that are not dropped.
    #[must_use]
    pub fn alive_on(&self, pchannel: &str) -> usize {
        let state = self.state();
        let here = state.held.iter().filter(|(v, _)| {
            matches!(ChannelName::parse(&v.0), ChannelName::Shard { pchannel: p, .. } if p == pchannel)
        });
        let alive = here.filter(|(v, held)| {
            state.marks.get(v) != Some(&true) && !held.at().is_some_and(is_dropped)
        });
        alive.count()
    }

    /// Waits for [`reached`](Self::reached). Give up by dropping it.
    pub async fn wait(&self, channel: &VChannel, tick: Tso) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if self.reached(channel, tick) {
                return;
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// Below which message the log of `pchannel` may be cut for its channels; `None` when one of them needs all of it. `end` is its end.
    #[must_use]
    pub fn cut_below(&self, pchannel: &str, end: MessageId) -> Option<MessageId> {
        let state = self.state();
        let here = |v: &&VChannel| matches!(ChannelName::parse(&v.0), ChannelName::Shard { pchannel: p, .. } if p == pchannel);
        let names: BTreeSet<&VChannel> = state
            .held
            .keys()
            .chain(state.marks.keys())
            .filter(here)
            .collect();
        let needs = names.into_iter().map(|v| match state.held.get(v) {
            Some(held) if held.stored.is_some() => need(held.at()),
            Some(_) => Need::Nothing,
            None if state.marks.get(v) == Some(&true) => Need::Nothing,
            None => Need::Everything,
        });
        cut_below(needs, end)
    }

    /// Moves checkpoints forward. Reports of a former owner and positions that are none are turned away and told; ones that are not
    /// later are nothing. All that is accepted is stored, then counts. `owner` tells the term of a physical channel's log now.
    pub async fn update(
        &self,
        reports: Vec<Report>,
        owner: impl Fn(&str) -> Option<Term>,
    ) -> Result<Vec<Refusal>> {
        let mut refused = Vec::new();
        let mut latest: BTreeMap<VChannel, MsgPosition> = BTreeMap::new();
        for Report {
            channel,
            position,
            term,
        } in reports
        {
            let now = owner(ChannelName::parse(&channel.0).pchannel());
            let why = match now {
                Some(now) if now == term => accepts(latest.get(&channel), &position)
                    .err()
                    .map(|e| e.to_string()),
                Some(now) => Some(format!(
                    "report of term {term} refused, the owner is term {now}"
                )),
                None => Some(format!(
                    "report of term {term} refused, nobody owns the channel"
                )),
            };
            match why {
                Some(why) => refused.push(Refusal { channel, why }),
                None if accepts(latest.get(&channel), &position)? => {
                    latest.insert(channel, position);
                }
                None => {}
            }
        }
        self.write(latest, &mut refused).await?;
        Ok(refused)
    }

    /// The channel is dropped: later than every time, so no report in flight moves it (I3.2). Repeats are nothing. The key stays: garbage
    /// collection removes it when nothing of the collection is left.
    pub async fn mark_dropped(&self, channel: &VChannel) -> Result<()> {
        let mut refused = Vec::new();
        self.write([(channel.clone(), dropped(channel))].into(), &mut refused)
            .await?;
        match refused.pop() {
            Some(refusal) => {
                Err(Error::new(ErrorKind::Corrupt, refusal.why).with("channel", channel))
            }
            None => Ok(()),
        }
    }

    /// The channel's removal mark says `removed`: that alone ends every wait for it. For the one who wrote the mark.
    pub fn note_removed(&self, channel: &VChannel) {
        self.state().marks.insert(channel.clone(), true);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Channels of a new collection: the mark `non-removed`, then the first checkpoint. Twice is once, and what is dropped stays so (I2.5).
    pub async fn create(&self, channels: Vec<(VChannel, MsgPosition)>) -> Result<()> {
        let gate = self.turn().await?;
        for (channel, _) in &channels {
            if self.state().marks.contains_key(channel) {
                continue;
            }
            let key = Key::ChannelRemoval(channel.clone()).to_key(self.executor.roots());
            let reader = self.executor.reader();
            let found = calm(&**self.executor.clock(), || reader.get(&key)).await?;
            let removed = if let Some(kv) = found {
                kv.value == REMOVED
            } else {
                let mut mark = Swap::new(
                    vec![unmoved(&key, None)],
                    vec![Write::put(key.clone(), NON_REMOVED)],
                );
                // Refused: it has come to exist, which is what was wanted unless it says removed.
                match self.executor.swap(&mut mark).await? {
                    Swapped::Done(_) => false,
                    Swapped::Refused(seen) => seen.iter().any(|kv| kv.value == REMOVED),
                }
            };
            self.state().marks.insert(channel.clone(), removed);
        }
        drop(gate);
        let alive = |(v, _): &(VChannel, MsgPosition)| self.state().marks.get(v) == Some(&false);
        let first = channels
            .into_iter()
            .filter(alive)
            .filter(|(v, _)| self.get(v).is_none());
        let mut refused = Vec::new();
        self.write(first.collect(), &mut refused).await?;
        match refused.pop() {
            Some(refusal) => {
                Err(Error::new(ErrorKind::Invalid, refusal.why).with("channel", refusal.channel))
            }
            None => Ok(()),
        }
    }

    /// Stores what is later than what is held, chunk by chunk.
    async fn write(
        &self,
        mut latest: BTreeMap<VChannel, MsgPosition>,
        refused: &mut Vec<Refusal>,
    ) -> Result<()> {
        let _gate = self.turn().await?;
        let mut backoff = Backoff::new(TRIES);
        while !latest.is_empty() {
            self.refresh(latest.keys().cloned().collect()).await?;
            let mut chunk: Vec<(VChannel, Option<KeyValue>, MsgPosition)> = Vec::new();
            let mut settled = Vec::new();
            for (channel, position) in &latest {
                if chunk.len() == CHUNK {
                    break;
                }
                let held = self.state().held.get(channel).cloned();
                match held.as_ref().map(|h| &h.position) {
                    Some(Err(why)) => refused.push(Refusal {
                        channel: channel.clone(),
                        why: format!(
                            "the stored checkpoint cannot be read, so nothing replaces it: {why}"
                        ),
                    }),
                    old => match accepts(old.and_then(|p| p.as_ref().ok()), position) {
                        Ok(true) => {
                            chunk.push((
                                channel.clone(),
                                held.and_then(|h| h.stored),
                                position.clone(),
                            ));
                            continue;
                        }
                        Ok(false) => {}
                        Err(e) => refused.push(Refusal {
                            channel: channel.clone(),
                            why: e.to_string(),
                        }),
                    },
                }
                settled.push(channel.clone());
            }
            for channel in settled {
                latest.remove(&channel);
            }
            if chunk.is_empty() {
                continue;
            }
            if self.swap(&chunk).await? {
                for (channel, ..) in &chunk {
                    latest.remove(channel);
                }
            } else if !backoff.again(&**self.executor.clock()).await {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "checkpoints are moved by somebody else all the time",
                )
                .fix("let one process own the root"));
            }
        }
        Ok(())
    }

    /// One transaction; `false` when a key had moved.
    async fn swap(&self, chunk: &[(VChannel, Option<KeyValue>, MsgPosition)]) -> Result<bool> {
        let roots = self.executor.roots();
        let mut conds = Vec::with_capacity(chunk.len());
        let mut made: Vec<(MetaKey, Bytes)> = Vec::with_capacity(chunk.len());
        for (channel, stored, position) in chunk {
            let key = Key::ChannelCheckpoint(channel.clone()).to_key(roots);
            conds.push(unmoved(&key, stored.as_ref()));
            made.push((key, patched(stored.as_ref(), position)?));
        }
        let writes = made
            .iter()
            .map(|(key, value)| Write::put(key.clone(), value.clone()))
            .collect();
        self.state()
            .doubtful
            .extend(chunk.iter().map(|(v, ..)| v.clone()));
        let Swapped::Done(rev) = self.executor.swap(&mut Swap::new(conds, writes)).await? else {
            return Ok(false);
        };
        {
            let mut state = self.state();
            for ((channel, stored, _), (key, value)) in chunk.iter().zip(made) {
                let before = stored.as_ref();
                let kv = KeyValue {
                    create_rev: before.map_or(rev, |b| b.create_rev),
                    version: before.map_or(1, |b| b.version + 1),
                    mod_rev: rev,
                    lease: 0,
                    key,
                    value,
                };
                state.held.insert(channel.clone(), Held::read(channel, kv));
                state.doubtful.remove(channel);
            }
        }
        self.changed.send_modify(|n| *n += 1);
        Ok(true)
    }

    /// Reads again those whose last write may or may not have happened, or was refused.
    async fn refresh(&self, of: Vec<VChannel>) -> Result<()> {
        let reader = self.executor.reader();
        for channel in of {
            if !self.state().doubtful.contains(&channel) {
                continue;
            }
            let key = Key::ChannelCheckpoint(channel.clone()).to_key(self.executor.roots());
            let found = calm(&**self.executor.clock(), || reader.get(&key)).await?;
            let mut state = self.state();
            match found {
                Some(kv) => drop(state.held.insert(channel.clone(), Held::read(&channel, kv))),
                // It was there and is not: garbage collection took it, so the channel is long dropped.
                None if state.held.contains_key(&channel) => drop(
                    state
                        .held
                        .insert(channel.clone(), Held::collected(&channel)),
                ),
                None => {}
            }
            state.doubtful.remove(&channel);
            drop(state);
            self.changed.send_modify(|n| *n += 1);
        }
        Ok(())
    }
}

/// The stored value with the new position in it; fields that we do not know stay.
fn patched(stored: Option<&KeyValue>, position: &MsgPosition) -> Result<Bytes> {
    let before = stored.map_or(&[][..], |kv| &kv.value[..]);
    let mut patch = Patch::parse(before).map_err(|_| {
        Error::new(ErrorKind::Corrupt, "a checkpoint cannot be edited")
            .with("channel", &position.channel_name)
    })?;
    patch.set_bytes(NAME, position.channel_name.as_bytes());
    patch.set_bytes(MESSAGE, &position.msg_id);
    patch.set_bytes(GROUP, position.msg_group.as_bytes());
    patch.set_integer(TIME, position.timestamp);
    patch.set_integer(WAL, u64::try_from(position.wal_name).unwrap_or(0));
    Ok(patch.finish().into())
}
