//! What is to be said of channels: how far they are behind, who owns them, what piles up (`spec/lifecycle.md` §2, §3, §5, §6).

use super::{FROZEN_MS, Fault, Rule, Severity};
use crate::engine::format::time::Moment;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{CollectionId, Tso};
use crate::engine::model::badges::{Badge, channel as badge};
use crate::engine::model::data::{Channel, PChannel};
use crate::engine::model::resource::{RowId, Tone};
use crate::engine::model::rows::View;
use crate::engine::model::text::{age, bytes};
use crate::engine::model::totals::Totals;

/// So many L0 segments on one channel are a pile: Milvus compacts them at 30 delta logs (`spec/lifecycle.md` §6 (e)).
pub const PILE_UP: usize = 100;
/// A delete checkpoint farther behind than three L0 lifetimes of 10 minutes (§5 (e)).
pub const GAP_MS: u64 = 3 * 10 * 60_000;

/// Checkpoint against now; `None` for a channel without a real one (law 10).
#[must_use]
pub fn lag(view: &View<'_>, c: &Channel) -> Option<u64> {
    let at = Moment::of_tso(c.checkpoint?, view.now).at()?;
    Some(view.now.since(at))
}

/// Checkpoint against the newest real checkpoint.
#[must_use]
pub fn behind(view: &View<'_>, c: &Channel) -> Option<u64> {
    let at = Moment::of_tso(c.checkpoint?, view.now).at()?;
    Some(view.catalog.newest_checkpoint(view.now)?.since(at))
}

/// The largest lag over the channels of a collection.
#[must_use]
pub fn worst_lag(view: &View<'_>, id: CollectionId) -> Option<u64> {
    view.catalog
        .channels_of(id)
        .filter_map(|c| lag(view, c))
        .max()
}

/// A channel's verdict in one word.
#[must_use]
pub fn channel_state(view: &View<'_>, c: &Channel) -> (&'static str, Tone) {
    let orphan = c
        .collection
        .is_some_and(|id| !view.catalog.collections.contains_key(&id));
    let Some(checkpoint) = c.checkpoint else {
        return match (orphan, c.listed) {
            (true, _) => ("GC-PENDING", Tone::Dim),
            (false, true) => ("NO-CHECKPOINT", Tone::Warn),
            (false, false) => ("ok", Tone::Good),
        };
    };
    match Moment::of_tso(checkpoint, view.now) {
        Moment::Max if orphan => ("GC-PENDING", Tone::Dim),
        Moment::Max => ("DROPPED", Tone::Dim),
        _ if orphan => ("GC-PENDING", Tone::Dim),
        Moment::Unset => ("UNSET", Tone::Warn),
        Moment::Future(_) => ("FUTURE", Tone::Warn),
        Moment::OutOfRange => ("NOT-A-TIME", Tone::Warn),
        Moment::At(_) if behind(view, c).is_some_and(|ms| ms > FROZEN_MS) => ("FROZEN", Tone::Bad),
        Moment::At(_) => ("ok", Tone::Good),
    }
}

/// `PChannelMetaState` numbers.
mod assignment {
    pub(super) const ASSIGNING: i32 = 2;
    pub(super) const ASSIGNED: i32 = 3;
}

/// Owner and term of a physical channel: a node by its number, a Falconer by its name.
#[must_use]
pub fn owner_words(owner: &PChannel) -> String {
    match owner.node {
        None => format!("none, term {}", owner.term),
        Some(node) if node.0 > 0 => format!("{node} term {}", owner.term),
        Some(_) if owner.address.is_empty() => format!("? term {}", owner.term),
        Some(_) => format!("{} term {}", owner.address, owner.term),
    }
}

/// Why nobody takes messages of a channel in, in words; nothing when somebody does, or when the channel is not a streaming one.
#[must_use]
pub fn trouble(view: &View<'_>, channel: &str) -> Option<String> {
    let pchannel = ChannelName::parse(channel).pchannel();
    ownership(view, pchannel).map(|(_, words)| words)
}

/// The badge and the words for what is wrong with the ownership of a physical channel.
fn ownership(view: &View<'_>, pchannel: &str) -> Option<(&'static Badge, String)> {
    if !view.catalog.streams() {
        return None;
    }
    let Some(owner) = view.catalog.pchannel(pchannel) else {
        return Some((&badge::NO_OWNER, format!("no node has {pchannel}")));
    };
    let node = owner.node.filter(|node| node.0 > 0);
    match owner.state.number {
        assignment::ASSIGNED => {
            // With nobody registered at all, the cluster is down as a whole: that is said once, elsewhere.
            let sessions = &view.catalog.sessions;
            let gone = |node| !sessions.is_empty() && !sessions.values().any(|s| s.server == node);
            let node = node.filter(|node| gone(*node))?;
            let words = format!("its owner, node {node}, is not registered");
            Some((&badge::NO_OWNER, words))
        }
        assignment::ASSIGNING => {
            let words = format!("{pchannel} changes hands: {}", owner_words(owner));
            Some((&badge::REASSIGNING, words))
        }
        _ => Some((
            &badge::NO_OWNER,
            format!("{pchannel} is {}", owner.state.text()),
        )),
    }
}

/// Whether a collection uses it: it is listed, and not dropped.
fn in_use(view: &View<'_>, c: &Channel) -> bool {
    let alive = |id| view.catalog.collections.contains_key(&id);
    let dropped = c.checkpoint.is_some_and(Tso::is_dropped);
    c.listed && !dropped && c.collection.is_some_and(alive)
}

/// The words beside a channel, worst first.
#[must_use]
pub fn badges(view: &View<'_>, c: &Channel) -> Vec<&'static Badge> {
    let mut out: Vec<&'static Badge> = Vec::new();
    let (state, _) = channel_state(view, c);
    out.extend(badge::ALL.iter().find(|b| b.name == state));
    if in_use(view, c) {
        let pchannel = ChannelName::parse(&c.name.0).pchannel();
        out.extend(ownership(view, pchannel).map(|(badge, _)| badge));
        let l0 = view.catalog.l0_on(&c.name.0);
        if l0.segments >= PILE_UP {
            out.push(&badge::L0_PILE_UP);
        }
        if gap(view, c).is_some_and(|ms| ms > GAP_MS) {
            out.push(&badge::DELETE_CP_LAG);
        }
    }
    if c.watch.is_some() && view.catalog.streams() {
        out.push(&badge::LEGACY_WATCH_KEY);
    }
    out.sort_by_key(|b| std::cmp::Reverse(b.tone));
    out
}

/// Where deletes of a channel begin that are not in every segment's own logs: the oldest L0, or else the checkpoint
/// (`spec/lifecycle.md` §5). `None` without either.
#[must_use]
pub fn delete_checkpoint(view: &View<'_>, c: &Channel) -> Option<Tso> {
    if c.checkpoint.is_some_and(Tso::is_dropped) {
        return None;
    }
    let oldest = view.catalog.l0_on(&c.name.0).oldest.map(|(at, _)| at);
    let at = oldest.or(c.checkpoint)?;
    at.time().map(|_| at)
}

/// How far the delete checkpoint is behind the checkpoint, ms; nothing where it is not behind, or either is no time.
#[must_use]
pub fn gap(view: &View<'_>, c: &Channel) -> Option<u64> {
    let cp = Moment::of_tso(c.checkpoint?, view.now).at()?;
    let deletes = Moment::of_tso(delete_checkpoint(view, c)?, view.now).at()?;
    Some(cp.since(deletes)).filter(|ms| *ms > 0)
}

/// Findings about channels.
pub(super) fn faults(view: &View<'_>, out: &mut Vec<Fault>) {
    let newest = view.catalog.newest_checkpoint(view.now);
    if let Some(at) = newest.filter(|at| view.now.since(*at) > FROZEN_MS) {
        out.push(Fault {
            rule: Rule::CheckpointsStale,
            severity: Severity::Warn,
            subject: None,
            since: Some(at),
            reason: format!(
                "the newest checkpoint of any channel is {} old",
                age(view.now.since(at))
            ),
            next: "see whether a data or streaming node is alive",
        });
    }
    for c in view.catalog.channels.values() {
        beside(view, c, out);
        let subject = Some(RowId::Channel(c.name.0.clone()));
        let since = c.checkpoint.and_then(Tso::time);
        let (rule, severity, reason, next) = match channel_state(view, c).0 {
            "FROZEN" => (
                Rule::ChannelFrozen,
                Severity::Bad,
                format!(
                    "{} is {} behind the newest checkpoint",
                    c.name,
                    age(behind(view, c).unwrap_or(0))
                ),
                "find the node that owns it; flush-all waits for it",
            ),
            "GC-PENDING" => {
                let left = c
                    .collection
                    .and_then(|id| view.catalog.sums.collections.get(&id))
                    .map_or(0, Totals::segments);
                let why = if left > 0 {
                    format!("{left} segment keys are left")
                } else {
                    "nothing else of it is left".to_owned()
                };
                (
                    Rule::ChannelLeftover,
                    Severity::Info,
                    format!("{} belongs to a collection that is gone; {why}", c.name),
                    "Milvus removes it once no segment key of the collection is left",
                )
            }
            state @ ("NO-CHECKPOINT" | "UNSET" | "FUTURE" | "NOT-A-TIME") => (
                Rule::ChannelCheckpoint,
                Severity::Warn,
                format!("{} has the checkpoint state {state}", c.name),
                "wait for its first flush, or look at the clock of its writer",
            ),
            _ => continue,
        };
        out.push(Fault {
            rule,
            severity,
            subject,
            since,
            reason,
            next,
        });
    }
}

/// Findings about who has a channel's log, and about the L0 segments that wait on it.
fn beside(view: &View<'_>, c: &Channel, out: &mut Vec<Fault>) {
    let fault = |rule, severity, reason, next| Fault {
        rule,
        severity,
        subject: Some(RowId::Channel(c.name.0.clone())),
        since: None,
        reason,
        next,
    };
    if in_use(view, c)
        && let Some((found, why)) = ownership(view, ChannelName::parse(&c.name.0).pchannel())
        && found.tone == Tone::Bad
    {
        out.push(fault(
            Rule::ChannelOwner,
            Severity::Bad,
            format!("{}: {why}", c.name),
            "start a streaming node, or see why the coordinator assigns the channel to none",
        ));
    }
    let all = badges(view, c);
    let has = |b: &Badge| all.iter().any(|found| found.name == b.name);
    if has(&badge::L0_PILE_UP) || has(&badge::DELETE_CP_LAG) {
        let l0 = view.catalog.l0_on(&c.name.0);
        let oldest = l0
            .oldest
            .map_or_else(String::new, |(_, id)| format!("; the oldest is {id}"));
        let gap = gap(view, c).map_or_else(String::new, |ms| format!(", {} behind", age(ms)));
        out.push(fault(
            Rule::DeletesPileUp,
            Severity::Warn,
            format!(
                "{} L0 segments with {} wait on {}{gap}{oldest}",
                l0.segments,
                bytes(l0.bytes),
                c.name
            ),
            "see the compaction tasks; whoever loads the channel loads them all",
        ));
    }
    if has(&badge::LEGACY_WATCH_KEY) {
        out.push(fault(
            Rule::LegacyWatchKey,
            Severity::Info,
            format!("{} has a watch key of the old channel manager", c.name),
            "nobody reads it any more; Falconer never writes one",
        ));
    }
}
