//! Milvus's record of a physical channel: who owns it, under which term (`spec/layout.md` §5.1).

use prost::Message as _;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::pb::streaming::{
    PChannelAssignmentLog, PChannelMeta, PChannelMetaState, StreamingNodeInfo,
};
use crate::engine::format::wire::Patch;
use crate::engine::ids::{Term, UnixMs};

/// Fields of `PChannelMeta` and of its `PChannelInfo`.
const CHANNEL: u32 = 1;
const NODE: u32 = 2;
const STATE: u32 = 3;
const HISTORIES: u32 = 4;
const ASSIGNED_AT: u32 = 5;
const NAME: u32 = 1;
const TERM: u32 = 2;

/// The record's term; 0 when there is no record.
pub(super) fn of(record: Option<&[u8]>) -> Result<Term> {
    let Some(bytes) = record else {
        return Ok(Term(0));
    };
    let meta = PChannelMeta::decode(bytes).map_err(|e| corrupt().caused_by(e))?;
    Ok(Term(meta.channel.map_or(0, |c| c.term)))
}

/// The record while the channel changes hands: the owner so far goes to the histories.
pub(super) fn assigning(
    record: Option<&[u8]>,
    pchannel: &str,
    term: Term,
    actor: &str,
    now: UnixMs,
) -> Result<Vec<u8>> {
    let bytes = record.unwrap_or_default();
    let before = PChannelMeta::decode(bytes).map_err(|e| corrupt().caused_by(e))?;
    let mut patch = Patch::parse(bytes).map_err(|_| corrupt())?;
    let mut info = Patch::parse(patch.bytes(CHANNEL).unwrap_or_default()).map_err(|_| corrupt())?;
    info.set_bytes(NAME, pchannel.as_bytes());
    info.set_integer(TERM, u64::try_from(term.0).unwrap_or(0));
    let info = info.finish();
    if let (PChannelMetaState::PchannelMetaStateAssigned, Some(old)) =
        (before.state(), before.channel)
    {
        let log = PChannelAssignmentLog {
            term: old.term,
            node: before.node,
            access_mode: old.access_mode,
        };
        patch.append(HISTORIES, &log.encode_to_vec());
    }
    // No server id: we never register a session. The address says who it is.
    let node = StreamingNodeInfo {
        server_id: 0,
        address: actor.to_owned(),
    };
    patch.set_message(CHANNEL, &info);
    patch.set_message(NODE, &node.encode_to_vec());
    patch.set_integer(STATE, PChannelMetaState::PchannelMetaStateAssigning as u64);
    patch.set_integer(ASSIGNED_AT, u64::try_from(now.to_secs().0).unwrap_or(0));
    Ok(patch.finish())
}

/// The same record once the log is ours: no former owner has anything left to give up.
pub(super) fn assigned(assigning: &[u8]) -> Result<Vec<u8>> {
    let mut patch = Patch::parse(assigning).map_err(|_| corrupt())?;
    patch.set_integer(STATE, PChannelMetaState::PchannelMetaStateAssigned as u64);
    patch.clear(HISTORIES);
    Ok(patch.finish())
}

fn corrupt() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the channel's record cannot be read, so its term is not known",
    )
    .fix("look at it with `falconer key`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_term_grows_and_unknown_fields_stay() {
        let first = assigned(&assigning(None, "p", Term(1), "me", UnixMs(5_000)).unwrap()).unwrap();
        let mut patch = Patch::parse(&first).unwrap();
        patch.set_integer(99, 42);
        let stored = patch.finish();
        let next = assigning(Some(&stored), "p", Term(2), "you", UnixMs(9_000)).unwrap();
        let meta = PChannelMeta::decode(&*next).unwrap();
        assert_eq!(meta.state(), PChannelMetaState::PchannelMetaStateAssigning);
        assert_eq!(
            meta.channel.as_ref().map(|c| (c.name.as_str(), c.term)),
            Some(("p", 2))
        );
        assert_eq!(
            meta.histories.iter().map(|h| h.term).collect::<Vec<_>>(),
            [1]
        );
        assert_eq!(meta.node.map(|n| n.address), Some("you".into()));
        assert_eq!(meta.last_assign_timestamp_seconds, 9);
        assert_eq!(of(Some(&next)).unwrap(), Term(2));
        let done = assigned(&next).unwrap();
        assert_eq!(Patch::parse(&done).unwrap().integer(99), Some(42));
        assert!(PChannelMeta::decode(&*done).unwrap().histories.is_empty());
        assert!(of(Some(b"\xff")).is_err());
    }
}
