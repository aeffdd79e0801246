//! Pauses of garbage collection: their plans, and the look that every pass takes before each item.

use std::time::Duration;

use super::cx::JobCx;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, MetaRev, UnixMs};
use crate::engine::meta::MetaReader;
use crate::engine::model::tickets::{LONGEST_SECS, REASON, SHORTEST_SECS, Ticket, on, on_pass};
use crate::engine::plan::journal::Keys;
pub use crate::engine::plan::tickets::tickets as read;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// Longest wait of a paused pass without a look.
const LOOK: Duration = Duration::from_secs(5);

/// What a pass may do with an item now.
pub enum Leave {
    /// Go on.
    Go,
    /// It waited: everything that it had read is old.
    Waited,
    /// Not this item, because of this ticket.
    Not(Box<Ticket>),
}

/// Waits for the end of a ticket that pauses a whole pass over `scope`; answers whether it had to, and the live tickets: a pass judges as of
/// its cut-off, when one that is over by now was not.
pub async fn wait(cx: &JobCx, scope: Option<CollectionId>) -> Result<(bool, Vec<Ticket>)> {
    let mut waited = false;
    loop {
        cx.check_cancel()?;
        let all = read(&cx.meta, cx.keys()).await?;
        let at = cx.clock.now();
        let live = |t: &Ticket| t.is_live(at);
        let tickets: Vec<Ticket> = all.into_iter().map(|(t, _)| t).filter(live).collect();
        let Some(ticket) = on_pass(&tickets, scope, at) else {
            return Ok((waited, tickets));
        };
        cx.note(format!("waiting: {ticket}"));
        waited = true;
        let left = Duration::from_millis(ticket.until.since(at).max(1));
        cx.clock.sleep(left.min(LOOK)).await;
    }
}

/// Looks before one item: `item` is its collection, absent when nobody knows which.
pub async fn leave(
    cx: &JobCx,
    scope: Option<CollectionId>,
    item: Option<CollectionId>,
) -> Result<Leave> {
    let (waited, tickets) = wait(cx, scope).await?;
    Ok(match on(&tickets, item, cx.clock.now()) {
        _ if waited => Leave::Waited,
        Some(ticket) => Leave::Not(Box::new(ticket.clone())),
        None => Leave::Go,
    })
}

/// The check of every pass's plan.
pub async fn check(
    meta: &MetaReader,
    keys: &Keys,
    scope: Option<CollectionId>,
    now: UnixMs,
) -> Result<(Check, Vec<Ticket>)> {
    let tickets: Vec<Ticket> = read(meta, keys)
        .await?
        .into_iter()
        .map(|(t, _)| t)
        .collect();
    let live = tickets.iter().filter(|t| t.is_live(now)).count();
    let failed = on_pass(&tickets, scope, now)
        .map(|t| format!("{t}; wait, or: falconer gc resume {}", t.id));
    let check = Check {
        name: "garbage collection is not paused".into(),
        detail: match (&failed, live) {
            (Some(_), _) => String::new(),
            (None, 0) => "no ticket".into(),
            (None, n) => format!("{n} tickets of single collections: theirs stays"),
        },
        failed,
    };
    Ok((check, tickets))
}

/// The plan of a pause or of its end.
pub async fn plan(meta: &MetaReader, keys: &Keys, intent: &Intent, now: UnixMs) -> Result<Plan> {
    let all = read(meta, keys).await?;
    let mut intent = intent.clone();
    if let Intent::ResumeGc { ticket } = &mut intent {
        // What is shown is what ends, also when another has come in its place by then.
        *ticket = Some(find(&all, ticket.as_deref())?.0.id.clone());
    }
    let (title, key, before, after, checks, warnings, danger) = match &intent {
        Intent::PauseGc {
            collection,
            secs,
            reason,
        } => {
            validate(*secs, reason)?;
            let until = end(now, *secs);
            let what = collection.map_or_else(String::new, |c| format!(" of collection {c}"));
            (
                format!("pause garbage collection{what} until {}", until.utc()),
                keys.ticket("…").text(),
                None,
                Some(format!("reason: {reason}\nuntil: {}", until.utc())),
                Vec::new(),
                all.iter()
                    .filter(|(t, _)| t.is_live(now))
                    .map(|(t, _)| format!("already: {t}"))
                    .collect::<Vec<_>>(),
                Danger::Low,
            )
        }
        Intent::ResumeGc { ticket } => {
            let (ticket, _) = find(&all, ticket.as_deref())?;
            (
                format!("end the pause of {}", ticket.owner),
                keys.ticket(&ticket.id).text(),
                Some(ticket.to_string()),
                None,
                Vec::new(),
                vec![format!(
                    "make sure that {} no longer needs it: {}",
                    ticket.owner, ticket.reason
                )],
                Danger::Medium,
            )
        }
        _ => return Err(Error::new(ErrorKind::Internal, "not a pause")),
    };
    Ok(Plan {
        title,
        checks,
        steps: vec![
            "write our own record; nothing in the Milvus root changes".into(),
            "read it back".into(),
        ],
        changes: vec![KeyChange { key, before, after }],
        objects: ObjectChange::default(),
        warnings: warnings
            .into_iter()
            .chain([
                "binds Falconer's own passes only: Milvus keeps its pause in memory, set it there too if a coordinator runs".into(),
            ])
            .collect(),
        undo: match &intent {
            Intent::PauseGc { .. } => "falconer gc resume".into(),
            _ => "pause it again".into(),
        },
        intent,
        danger,
        type_to_confirm: None,
        based_on: MetaRev(0),
        rests_on: Vec::new(),
        hash: String::new(),
    })
}

/// When a pause that begins now ends.
#[must_use]
pub fn end(now: UnixMs, secs: u64) -> UnixMs {
    let ms = i64::try_from(secs.saturating_mul(1_000)).unwrap_or(i64::MAX);
    UnixMs(now.0.saturating_add(ms))
}

fn validate(secs: u64, reason: &str) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorKind::Invalid, what));
    if !(SHORTEST_SECS..=LONGEST_SECS).contains(&secs) {
        return bad(format!(
            "a pause of {secs} s: give one minute to 30 days, e.g. 2h"
        ));
    }
    if reason.trim().is_empty() {
        return bad(
            "a pause needs a reason: whoever finds it at night must know whom it serves".into(),
        );
    }
    if reason.len() > REASON {
        return bad(format!(
            "the reason has {} bytes, at most {REASON} fit",
            reason.len()
        ));
    }
    Ok(())
}

/// The ticket of that name; the only one when no name is given.
pub fn find<'a>(all: &'a [(Ticket, MetaRev)], id: Option<&str>) -> Result<&'a (Ticket, MetaRev)> {
    let names = || {
        let names: Vec<String> = all
            .iter()
            .map(|(t, _)| format!("{} ({})", t.id, t.owner))
            .collect();
        names.join(", ")
    };
    let found = match id {
        Some(id) => all.iter().find(|(t, _)| t.id == id),
        None if all.len() > 1 => {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("there are {} tickets", all.len()),
            )
            .fix(format!("name one: {}", names())));
        }
        None => all.first(),
    };
    found.ok_or_else(|| match id {
        Some(id) if !all.is_empty() => {
            Error::new(ErrorKind::NotFound, format!("there is no ticket {id}"))
                .fix(format!("name one of: {}", names()))
        }
        _ => Error::new(
            ErrorKind::NotFound,
            "garbage collection is not paused by us",
        ),
    })
}
