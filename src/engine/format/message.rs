//! WAL messages and the objects that hold them (`spec/layout.md` §6): bytes ⇄ types.
//!
//! The envelope is Milvus's own: a payload, and text properties under its keys with its numbers and encodings, so that what our log
//! or a broadcast's record holds decodes with Milvus's protobufs. Message ids have the form of RocksMQ's, the one WAL of Milvus whose
//! ids are plain numbers: base 36 in text, 8 bytes little-endian in a position.
//!
//! A segment object is `FALCWAL1`, then for each message its length (u32, little-endian) and its envelope.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message as _;

use super::broadcast::{
    BROADCAST_HEADER, HEADER, TIME_TICK, TYPE, broadcast_header, message_type, time_tick,
};
use super::pb::common::{MessageId as PbMessageId, WalName};
use super::pb::messages::{BroadcastHeader, Message, MessageType};
use super::pb::msg::MsgPosition;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{BroadcastId, MessageId, Term, Tso, VChannel};

const VERSION: &str = "_v";
const VCHANNEL: &str = "_vc";
const WAL_TERM: &str = "_wt";
/// The message is its own last confirmed one: in our log a message is written when all before it are.
const CONFIRMED: &str = "_lcs";
/// Payloads are the message's own body, not a legacy one.
const V2: &str = "2";

const MAGIC: &[u8; 8] = b"FALCWAL1";

/// A message before it has a place in a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft(Message);

impl Draft {
    /// Of a type, with the header that belongs to the type (`CreateCollectionMessageHeader`, …) and a body.
    pub fn new(kind: MessageType, header: &impl prost::Message, body: Vec<u8>) -> Self {
        let mut message = Message {
            payload: body,
            ..Message::default()
        };
        let mut set = |key: &str, value: String| message.properties.insert(key.to_owned(), value);
        set(VERSION, V2.to_owned());
        set(TYPE, (kind as i32).to_string());
        set(HEADER, BASE64.encode(header.encode_to_vec()));
        Self(message)
    }

    /// The message that a broadcast's record keeps: for all its channels, on none yet.
    #[must_use]
    pub fn broadcast(mut self, header: &BroadcastHeader) -> Self {
        let text = BASE64.encode(header.encode_to_vec());
        self.0.properties.insert(BROADCAST_HEADER.to_owned(), text);
        self
    }

    /// For one virtual channel.
    #[must_use]
    pub fn on(mut self, vchannel: &VChannel) -> Self {
        self.0
            .properties
            .insert(VCHANNEL.to_owned(), vchannel.0.clone());
        self
    }

    /// A message as a broadcast's record keeps it. Every property stays, known or not.
    #[must_use]
    pub fn from_message(message: Message) -> Self {
        Self(message)
    }

    /// As it is now.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.0
    }

    /// The channel it goes to; empty for one that belongs to the physical channel itself.
    #[must_use]
    pub fn vchannel(&self) -> VChannel {
        vchannel_of(&self.0)
    }

    /// With its time tick and its writer's term: what is stored.
    #[must_use]
    pub fn stamp(mut self, term: Term, tick: Tso) -> Message {
        let mut set = |key: &str, value: String| self.0.properties.insert(key.to_owned(), value);
        set(TIME_TICK, base36(tick.0));
        set(WAL_TERM, base36(u64::try_from(term.0).unwrap_or(0)));
        set(CONFIRMED, String::new());
        self.0
    }
}

/// A message at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its place.
    pub id: MessageId,
    /// Its time tick.
    pub tick: Tso,
    /// The envelope.
    pub message: Message,
}

impl Stored {
    /// `Corrupt` when the envelope has no time tick.
    pub fn new(id: MessageId, message: Message) -> Result<Self> {
        let tick = time_tick(&message).map(Tso).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("message {id} has no time tick"))
        })?;
        Ok(Self { id, tick, message })
    }

    /// Its type; `None` for one that this version has no name for.
    #[must_use]
    pub fn kind(&self) -> Option<MessageType> {
        message_type(&self.message)?.ok()
    }

    /// Its virtual channel; empty for one of the physical channel itself.
    #[must_use]
    pub fn vchannel(&self) -> VChannel {
        vchannel_of(&self.message)
    }

    /// The term of its writer.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        let text = self.message.properties.get(WAL_TERM)?;
        i64::from_str_radix(text, 36).ok().map(Term)
    }

    /// What makes it a copy of a broadcast.
    #[must_use]
    pub fn broadcast(&self) -> Option<BroadcastHeader> {
        broadcast_header(&self.message)
    }

    /// The position right behind it: what a channel that has taken it in seeks to.
    #[must_use]
    pub fn position(&self) -> MsgPosition {
        position(&self.vchannel(), self.id, self.tick)
    }
}

fn vchannel_of(message: &Message) -> VChannel {
    VChannel(
        message
            .properties
            .get(VCHANNEL)
            .cloned()
            .unwrap_or_default(),
    )
}

/// The header of a type, e.g. `TruncateCollectionMessageHeader`; `Corrupt` when it is missing or is not one.
pub fn header<H: prost::Message + Default>(message: &Message) -> Result<H> {
    let bytes = message
        .properties
        .get(HEADER)
        .map(|text| BASE64.decode(text));
    match bytes {
        Some(Ok(bytes)) => H::decode(&*bytes).ok(),
        _ => None,
    }
    .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the message's header cannot be read"))
}

/// The id of a broadcast, as our own numbers go.
#[must_use]
pub fn broadcast_id(header: &BroadcastHeader) -> BroadcastId {
    BroadcastId(i64::try_from(header.broadcast_id).unwrap_or(i64::MAX))
}

/// A seek position. `channel` is the virtual channel.
#[must_use]
pub fn position(channel: &VChannel, id: MessageId, tick: Tso) -> MsgPosition {
    MsgPosition {
        channel_name: channel.0.clone(),
        msg_id: id.0.to_le_bytes().to_vec(),
        msg_group: String::new(),
        timestamp: tick.0,
        wal_name: WalName::RocksMq.into(),
    }
}

/// The message id of a position, when it is one of our log's form.
#[must_use]
pub fn id_of(position: &MsgPosition) -> Option<MessageId> {
    let bytes = <[u8; 8]>::try_from(position.msg_id.as_slice()).ok()?;
    Some(MessageId(i64::from_le_bytes(bytes)))
}

/// A message id as records hold it.
#[must_use]
pub fn to_pb(id: MessageId) -> PbMessageId {
    PbMessageId {
        id: base36(u64::try_from(id.0).unwrap_or(0)),
        wal_name: WalName::RocksMq.into(),
    }
}

/// A message id from a record; `None` when it is not a number.
#[must_use]
pub fn from_pb(id: &PbMessageId) -> Option<MessageId> {
    i64::from_str_radix(&id.id, 36).ok().map(MessageId)
}

/// As Go's `strconv.FormatUint(n, 36)`.
fn base36(mut n: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((n % 36) as u32, 36).unwrap_or('0'));
        n /= 36;
        if n == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// The object that holds these messages, in order.
pub fn encode_segment(messages: &[Stored]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    for stored in messages {
        let len = u32::try_from(stored.message.encoded_len()).map_err(|_| {
            Error::new(
                ErrorKind::Limit,
                "a message of 4 GiB or more cannot be written",
            )
        })?;
        out.extend_from_slice(&len.to_le_bytes());
        stored.message.encode(&mut out).map_err(|e| {
            Error::new(ErrorKind::Internal, "a message cannot be encoded").caused_by(e)
        })?;
    }
    Ok(out)
}

/// The messages of a segment whose first one is `first`.
pub fn decode_segment(bytes: &[u8], first: MessageId) -> Result<Vec<Stored>> {
    let bad = |what: &str| {
        Error::new(
            ErrorKind::Corrupt,
            format!("segment of message {first}: {what}"),
        )
    };
    let mut rest = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| bad("it does not begin as a segment does"))?;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (len, tail) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| bad("a length is cut short"))?;
        let len =
            usize::try_from(u32::from_le_bytes(*len)).map_err(|_| bad("a length is too large"))?;
        let (body, tail) = tail
            .split_at_checked(len)
            .ok_or_else(|| bad("a message is cut short"))?;
        let message =
            Message::decode(body).map_err(|e| bad("a message cannot be read").caused_by(e))?;
        let at = i64::try_from(out.len()).map_err(|_| bad("too many messages"))?;
        out.push(Stored::new(MessageId(first.0 + at), message)?);
        rest = tail;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::pb::messages::TruncateCollectionMessageHeader;
    use proptest::prelude::*;

    fn draft(body: Vec<u8>) -> Draft {
        let header = TruncateCollectionMessageHeader {
            db_id: 1,
            collection_id: 7,
            segment_ids: vec![3, 4],
        };
        Draft::new(MessageType::TruncateCollection, &header, body)
    }

    #[test]
    fn properties_are_milvus_s() {
        let header = BroadcastHeader {
            broadcast_id: 99,
            vchannels: vec!["p_vcchan".into(), "p_7v0".into()],
            resource_keys: Vec::new(),
            ack_sync_up: true,
        };
        let stored = draft(vec![1])
            .broadcast(&header)
            .on(&"p_7v0".into())
            .stamp(Term(37), Tso(1 << 40));
        let p = &stored.properties;
        assert_eq!(p["_v"], "2");
        assert_eq!(p["_t"], "38");
        assert_eq!(p["_vc"], "p_7v0");
        assert_eq!(p["_wt"], "11");
        assert_eq!(p["_tt"], "e13wu1og");
        assert_eq!(u64::from_str_radix(&p["_tt"], 36), Ok(1 << 40));
        assert_eq!(p["_lcs"], "");
        let stored = Stored::new(MessageId(5), stored).unwrap();
        assert_eq!(stored.kind(), Some(MessageType::TruncateCollection));
        assert_eq!((stored.tick, stored.term()), (Tso(1 << 40), Some(Term(37))));
        assert_eq!(stored.broadcast(), Some(header));
        let own: TruncateCollectionMessageHeader = super::header(&stored.message).unwrap();
        assert_eq!((own.collection_id, own.segment_ids), (7, vec![3, 4]));
    }

    proptest! {
        #[test]
        fn numbers_and_segments_round_trip(n in any::<u64>(), id in 1..i64::MAX, bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..9)) {
            prop_assert_eq!(u64::from_str_radix(&base36(n), 36), Ok(n));
            prop_assert_eq!(from_pb(&to_pb(MessageId(id))), Some(MessageId(id)));
            prop_assert_eq!(id_of(&position(&"v".into(), MessageId(id), Tso(1))), Some(MessageId(id)));
            let first = MessageId(id / 2);
            let stored: Vec<Stored> = bodies.into_iter().zip(0..).map(|(body, i)| {
                Stored::new(MessageId(first.0 + i), draft(body).stamp(Term(1), Tso(n / 2 + i as u64))).unwrap()
            }).collect();
            let bytes = encode_segment(&stored).unwrap();
            prop_assert_eq!(decode_segment(&bytes, first).unwrap(), stored);
            for cut in 0..bytes.len() {
                // Cut at a message's end it is a shorter segment: the index holds its digest.
                let _ = decode_segment(&bytes[..cut], first);
            }
        }
    }
}
