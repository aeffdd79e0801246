//! One broadcast's record, and the rules of its acknowledgements (§1, §II.4).
//!
//! A channel is acked, in memory and in the record, only after **its own** callback has succeeded and the record is written. Whoever
//! drives a task is alone with it; everything that is told from outside (an append's place, an observation, a checkpoint) is kept here
//! and looked at again in every round, so that nothing told can be missed.

use prost::Message as _;

use super::keys::ResourceKeys;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::broadcast::{broadcast_header, message_type};
use crate::engine::format::message::{Draft, broadcast_id, from_pb, to_pb};
use crate::engine::format::pb::messages::{BroadcastHeader, Message, MessageType};
use crate::engine::format::pb::streaming::{AckedCheckpoint, BroadcastTask, BroadcastTaskState};
use crate::engine::format::vchannel::ChannelName;
use crate::engine::format::wire::Patch;
use crate::engine::ids::{BroadcastId, MessageId, Tso, VChannel};

/// Fields of `BroadcastTask`.
const STATE: u32 = 2;
const BITMAP: u32 = 3;
const CHECKPOINTS: u32 = 4;

/// Milvus's state of a task; DONE is the absence of the record, and the deprecated WAIT_ACK is read as PENDING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// To be appended and acknowledged; holds its keys.
    Pending,
    /// Came from another cluster: appended there, holds no keys.
    Replicated,
    /// Finished; kept to recognise what comes late.
    Tombstone,
}

/// Where an acknowledged copy is. Records of old versions do not know: a tick of 0 is not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckedAt {
    /// Its id.
    pub id: Option<MessageId>,
    /// Its time tick; 0 = unknown.
    pub tick: Tso,
}

/// The task's message on one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The channel.
    pub channel: VChannel,
    /// The control channel: it orders the callbacks, and has no data behind it.
    pub control: bool,
    /// Where it was appended or first seen.
    pub appended: Option<(MessageId, Tso)>,
    /// It came back out of the log.
    pub observed: bool,
    /// Acknowledged: its own callback has succeeded and the record says so.
    pub acked: Option<AckedAt>,
}

/// One broadcast.
#[derive(Clone, Debug)]
pub struct Task {
    id: BroadcastId,
    header: BroadcastHeader,
    message: Message,
    state: TaskState,
    copies: Vec<Copy>,
    /// The record as stored: fields that we do not know stay in it.
    stored: Vec<u8>,
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("broadcast record: {}", what.into()),
    )
}

impl Task {
    /// A new one. `draft` has a type, a header and a body; `channels` are where it goes, each once.
    pub fn new(
        id: BroadcastId,
        draft: Draft,
        channels: &[VChannel],
        keys: &ResourceKeys,
        ack_sync_up: bool,
    ) -> Result<Self> {
        let mut seen = std::collections::BTreeSet::new();
        if channels.is_empty() || !channels.iter().all(|c| !c.0.is_empty() && seen.insert(c)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a broadcast goes to at least one channel, and to each one once",
            ));
        }
        let header = BroadcastHeader {
            broadcast_id: u64::try_from(id.0).map_err(|_| corrupt("a negative id"))?,
            vchannels: channels.iter().map(|c| c.0.clone()).collect(),
            resource_keys: keys.to_pb(),
            ack_sync_up,
        };
        let task = BroadcastTask {
            message: Some(draft.broadcast(&header).message().clone()),
            state: BroadcastTaskState::Pending.into(),
            acked_vchannel_bitmap: vec![0; channels.len()],
            acked_checkpoints: vec![AckedCheckpoint::default(); channels.len()],
        };
        Self::read(&task.encode_to_vec())
    }

    /// From a record. `Corrupt` when what must be known is not: the message, its header, its channels, the state.
    pub fn read(stored: &[u8]) -> Result<Self> {
        let record =
            BroadcastTask::decode(stored).map_err(|e| corrupt("it cannot be read").caused_by(e))?;
        let state = match record.state() {
            BroadcastTaskState::Pending | BroadcastTaskState::WaitAck => TaskState::Pending,
            BroadcastTaskState::Replicated => TaskState::Replicated,
            BroadcastTaskState::Tombstone => TaskState::Tombstone,
            BroadcastTaskState::Unknown | BroadcastTaskState::Done => {
                return Err(corrupt(format!(
                    "state {} is none of a stored task",
                    record.state
                )));
            }
        };
        let message = record.message.ok_or_else(|| corrupt("it has no message"))?;
        let header = broadcast_header(&message)
            .ok_or_else(|| corrupt("its message has no broadcast header"))?;
        if header.vchannels.is_empty() {
            return Err(corrupt("it names no channel"));
        }
        let copies = header.vchannels.iter().enumerate().map(|(i, name)| {
            let at = record.acked_checkpoints.get(i).filter(|c| c.time_tick != 0);
            let bit = record.acked_vchannel_bitmap.get(i).is_some_and(|b| *b != 0);
            let acked = match at {
                Some(at) => Some(AckedAt {
                    id: at.message_id.as_ref().and_then(from_pb),
                    tick: Tso(at.time_tick),
                }),
                None => bit.then_some(AckedAt {
                    id: None,
                    tick: Tso::UNSET,
                }),
            };
            Copy {
                channel: VChannel(name.clone()),
                control: matches!(ChannelName::parse(name), ChannelName::Control { .. }),
                appended: acked.and_then(|a| Some((a.id?, a.tick))),
                observed: false,
                acked,
            }
        });
        Ok(Self {
            id: broadcast_id(&header),
            copies: copies.collect(),
            header,
            message,
            state,
            stored: stored.to_vec(),
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> BroadcastId {
        self.id
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.state
    }

    /// What is broadcast.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Its type; `None` for one that this version has no name for.
    #[must_use]
    pub fn kind(&self) -> Option<MessageType> {
        message_type(&self.message)?.ok()
    }

    /// What it excludes others from. A replicated task holds nothing.
    #[must_use]
    pub fn keys(&self) -> ResourceKeys {
        ResourceKeys::from_pb(&self.header.resource_keys)
    }

    /// Whether a data channel is acknowledged only when its checkpoint has reached the message.
    #[must_use]
    pub fn ack_sync_up(&self) -> bool {
        self.header.ack_sync_up
    }

    /// Its copies, in the order of the header.
    #[must_use]
    pub fn copies(&self) -> &[Copy] {
        &self.copies
    }

    /// The record as it is stored, or as it would be first.
    #[must_use]
    pub fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// What is appended to the `i`th channel.
    #[must_use]
    pub fn draft(&self, i: usize) -> Draft {
        Draft::from_message(self.message.clone()).on(&self.copies[i].channel)
    }

    /// The copy on `channel` is at this place. The first one counts: a second copy, appended by one who did not know of the first, has a
    /// later tick and must not act at it. `Invalid` for a channel that the task does not go to.
    pub fn placed(
        &mut self,
        channel: &VChannel,
        id: MessageId,
        tick: Tso,
        observed: bool,
    ) -> Result<()> {
        let copy = self
            .copies
            .iter_mut()
            .find(|c| c.channel == *channel)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("broadcast {} does not go to channel {channel}", self.id),
                )
            })?;
        copy.observed |= observed;
        if copy.acked.is_none() && copy.appended.is_none_or(|(_, first)| tick < first) {
            copy.appended = Some((id, tick));
        }
        Ok(())
    }

    /// Copies that have no place yet: to be appended. None of a replicated task.
    #[must_use]
    pub fn to_append(&self) -> Vec<usize> {
        let open = |c: &Copy| c.appended.is_none() && c.acked.is_none();
        match self.state {
            TaskState::Pending => (0..self.copies.len())
                .filter(|i| open(&self.copies[*i]))
                .collect(),
            TaskState::Replicated | TaskState::Tombstone => Vec::new(),
        }
    }

    /// Copies whose callback is due. Without the flag: as soon as **all** are appended (the fast acknowledgement), or when one came back
    /// out of the log. With it: a data channel when `reached(channel, tick)`, the control channel when it came back.
    #[must_use]
    pub fn due(&self, reached: impl Fn(&VChannel, Tso) -> bool) -> Vec<usize> {
        if self.state == TaskState::Tombstone {
            return Vec::new();
        }
        let all = self.state == TaskState::Pending
            && self
                .copies
                .iter()
                .all(|c| c.appended.is_some() || c.acked.is_some());
        let due = |c: &Copy| match c.appended {
            _ if c.acked.is_some() => false,
            None => false,
            Some((_, tick)) if self.ack_sync_up() && !c.control => reached(&c.channel, tick),
            Some(_) => c.observed || (all && !self.ack_sync_up()),
        };
        (0..self.copies.len())
            .filter(|i| due(&self.copies[*i]))
            .collect()
    }

    /// The record with these copies acknowledged too. Nothing changes until [`now`](Self::now) is told that it is written.
    pub fn acking(&self, done: &[usize]) -> Result<Vec<u8>> {
        let mut next = self.clone();
        for i in done {
            let copy = &mut next.copies[*i];
            let (id, tick) = copy.appended.ok_or_else(|| {
                Error::new(
                    ErrorKind::Internal,
                    format!(
                        "broadcast {}: {} acknowledged before it was appended",
                        self.id, copy.channel
                    ),
                )
            })?;
            copy.acked.get_or_insert(AckedAt { id: Some(id), tick });
        }
        next.encode(BroadcastTaskState::Pending)
    }

    /// The record as a tombstone. `Internal` before every copy is acknowledged.
    pub fn burying(&self) -> Result<Vec<u8>> {
        if !self.all_acked() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("broadcast {} is not acknowledged everywhere", self.id),
            ));
        }
        self.encode(BroadcastTaskState::Tombstone)
    }

    fn encode(&self, state: BroadcastTaskState) -> Result<Vec<u8>> {
        let mut patch = Patch::parse(&self.stored).map_err(|_| corrupt("it cannot be edited"))?;
        let state = match (state, self.state) {
            (BroadcastTaskState::Pending, TaskState::Replicated) => BroadcastTaskState::Replicated,
            (state, _) => state,
        };
        let bitmap: Vec<u8> = self
            .copies
            .iter()
            .map(|c| u8::from(c.acked.is_some()))
            .collect();
        let before: Vec<Vec<u8>> = patch.all(CHECKPOINTS).map(<[u8]>::to_vec).collect();
        patch.clear(CHECKPOINTS);
        for (i, copy) in self.copies.iter().enumerate() {
            let kept = before
                .get(i)
                .filter(|b| AckedCheckpoint::decode(&b[..]).is_ok_and(|c| c.time_tick != 0));
            let made = match (kept, copy.acked) {
                (Some(kept), _) => kept.clone(),
                (None, Some(AckedAt { id: Some(id), tick })) => AckedCheckpoint {
                    message_id: Some(to_pb(id)),
                    // All before it is written: it is its own last confirmed one.
                    last_confirmed_message_id: Some(to_pb(id)),
                    time_tick: tick.0,
                }
                .encode_to_vec(),
                (None, _) => Vec::new(),
            };
            patch.append(CHECKPOINTS, &made);
        }
        patch.set_bytes(BITMAP, &bitmap);
        patch.set_integer(STATE, state as u64);
        Ok(patch.finish())
    }

    /// `record` is written: it counts now. What was told from outside stays.
    pub fn now(&mut self, record: Vec<u8>) -> Result<()> {
        let next = Self::read(&record)?;
        self.state = next.state;
        for (copy, next) in self.copies.iter_mut().zip(next.copies) {
            copy.acked = next.acked;
            copy.appended = copy
                .acked
                .and_then(|a| Some((a.id?, a.tick)))
                .or(copy.appended);
        }
        self.stored = record;
        Ok(())
    }

    /// Whether every copy is acknowledged.
    #[must_use]
    pub fn all_acked(&self) -> bool {
        self.copies.iter().all(|c| c.acked.is_some())
    }

    /// How many are.
    #[must_use]
    pub fn acked_count(&self) -> usize {
        self.copies.iter().filter(|c| c.acked.is_some()).count()
    }

    /// Whether it takes its place among the callbacks: the control channel is acknowledged, or everything is. Asked of the state, so it
    /// cannot be missed.
    #[must_use]
    pub fn joins(&self) -> bool {
        self.all_acked() || self.copies.iter().any(|c| c.control && c.acked.is_some())
    }

    /// The control channel's tick, by which callbacks are ordered; the smallest of all where there is none.
    #[must_use]
    pub fn order(&self) -> Tso {
        let ticks = |control: bool| {
            let of = self.copies.iter().filter(move |c| c.control == control);
            of.filter_map(|c| c.acked.map(|a| a.tick)).min()
        };
        ticks(true).or_else(|| ticks(false)).unwrap_or(Tso::DROPPED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::pb::messages::DropCollectionMessageHeader;

    fn task(flag: bool) -> Task {
        let header = DropCollectionMessageHeader::default();
        let draft = Draft::new(MessageType::DropCollection, &header, vec![5]);
        let channels = ["p_vcchan".into(), "p_7v0".into(), "q_7v1".into()];
        Task::new(
            BroadcastId(44),
            draft,
            &channels,
            &ResourceKeys::new([]),
            flag,
        )
        .unwrap()
    }

    fn place(task: &mut Task, i: usize, tick: u64, observed: bool) {
        let channel = task.copies()[i].channel.clone();
        task.placed(
            &channel,
            MessageId(i64::try_from(tick).unwrap()),
            Tso(tick),
            observed,
        )
        .unwrap();
    }

    fn ack(task: &mut Task, which: &[usize]) {
        let record = task.acking(which).unwrap();
        task.now(record).unwrap();
    }

    #[test]
    fn a_fast_ack_comes_with_the_last_append() {
        let mut t = task(false);
        assert_eq!(t.to_append(), [0, 1, 2]);
        place(&mut t, 0, 10, false);
        place(&mut t, 2, 12, false);
        assert_eq!((t.to_append(), t.due(|_, _| false)), (vec![1], vec![]));
        place(&mut t, 0, 10, true);
        assert_eq!(
            t.due(|_, _| false),
            [0],
            "seen in the log before the last append"
        );
        place(&mut t, 1, 11, false);
        assert_eq!(t.due(|_, _| false), [0, 1, 2]);
        assert_eq!(t.acked_count(), 0);
        ack(&mut t, &[1]);
        assert_eq!((t.acked_count(), t.joins()), (1, false));
        ack(&mut t, &[0]);
        assert!(t.joins() && !t.all_acked() && t.burying().is_err());
        assert_eq!(t.order(), Tso(10));
        ack(&mut t, &[2]);
        let buried = t.burying().unwrap();
        t.now(buried).unwrap();
        assert_eq!(
            (t.state(), t.due(|_, _| true)),
            (TaskState::Tombstone, vec![])
        );
    }

    #[test]
    fn with_the_flag_only_the_checkpoint_acks() {
        let mut t = task(true);
        for i in 0..3 {
            place(&mut t, i, 10 + i as u64, false);
        }
        assert!(t.due(|_, _| false).is_empty(), "I1.1");
        for i in 0..3 {
            place(&mut t, i, 10 + i as u64, true);
        }
        assert_eq!(
            t.due(|_, _| false),
            [0],
            "the control channel by being seen"
        );
        assert_eq!(t.due(|c, tick| c.0 == "q_7v1" && tick == Tso(12)), [0, 2]);
    }

    #[test]
    fn the_first_copy_counts_and_acked_never_changes() {
        let mut t = task(false);
        for i in 0..3 {
            place(&mut t, i, 50, false);
        }
        place(&mut t, 1, 70, true);
        place(&mut t, 1, 40, true);
        assert_eq!(t.copies()[1].appended, Some((MessageId(40), Tso(40))));
        ack(&mut t, &[1]);
        place(&mut t, 1, 30, true);
        ack(&mut t, &[1, 2]);
        let again = Task::read(t.stored()).unwrap();
        assert_eq!(
            again.copies()[1].acked,
            Some(AckedAt {
                id: Some(MessageId(40)),
                tick: Tso(40)
            })
        );
        assert_eq!(again.copies()[0].acked, None);
        assert!(
            t.placed(&"other".into(), MessageId(1), Tso(1), true)
                .is_err()
        );
    }

    #[test]
    fn records_of_milvus_are_read_and_keep_what_we_do_not_know() {
        let made = task(true);
        let mut patch_bytes = Patch::parse(made.stored()).unwrap();
        patch_bytes.set_integer(STATE, BroadcastTaskState::WaitAck as u64);
        patch_bytes.clear(CHECKPOINTS);
        patch_bytes.set_bytes(BITMAP, &[0, 1]);
        patch_bytes.set_integer(77, 9);
        let mut t = Task::read(&patch_bytes.finish()).unwrap();
        assert_eq!(t.state(), TaskState::Pending);
        assert_eq!(
            t.copies()
                .iter()
                .map(|c| c.acked.map(|a| a.tick))
                .collect::<Vec<_>>(),
            [None, Some(Tso::UNSET), None]
        );
        assert_eq!(t.to_append(), [0, 2]);
        place(&mut t, 0, 5, true);
        ack(&mut t, &[0]);
        let record = Patch::parse(t.stored()).unwrap();
        assert_eq!(
            (record.integer(77), record.integer(STATE)),
            (Some(9), Some(1))
        );
        assert_eq!(record.bytes(BITMAP), Some(&[1, 1, 0][..]));
        assert_eq!(
            BroadcastTask::decode(t.stored())
                .unwrap()
                .acked_checkpoints
                .len(),
            3
        );
        assert!(Task::read(b"").is_err() && Task::read(b"\x10\x01").is_err());
    }
}
