//! Tickets that pause garbage collection: who, why, until when. Pure; they are written and read elsewhere.
//!
//! Milvus keeps its own pause in the memory of its coordinator and stores it nowhere (`spec/oncall.md` §5.14): these are ours, and they
//! bind our passes only. They survive restarts and crashes, and end by themselves.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::holds::{Hold, Reason};
use crate::engine::ids::{CollectionId, UnixMs};

/// Shortest and longest pause, seconds. A pause for ever is a bucket that grows for ever, and nobody remembers why.
pub const SHORTEST_SECS: u64 = 60;
/// 30 days.
pub const LONGEST_SECS: u64 = 30 * 86_400;
/// Bytes of a reason.
pub const REASON: usize = 400;

/// One pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Its name: what `gc resume` is given.
    pub id: String,
    /// Who asked for it: `user@host`.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// Only this collection; everything when absent.
    pub collection: Option<CollectionId>,
    /// Since when.
    pub since: UnixMs,
    /// It ends by itself then.
    pub until: UnixMs,
}

impl Ticket {
    /// A record that cannot be read may have meant everything, so it does (law 5).
    #[must_use]
    pub fn unreadable(id: &str, why: &str) -> Self {
        Self {
            id: id.to_owned(),
            owner: "somebody".to_owned(),
            reason: format!("the ticket cannot be read: {why}"),
            collection: None,
            since: UnixMs(0),
            until: UnixMs(i64::MAX),
        }
    }

    /// Whether it still pauses something.
    #[must_use]
    pub fn is_live(&self, now: UnixMs) -> bool {
        self.until > now
    }

    /// Whether it keeps things of this collection. What nobody can name a collection of may belong to any.
    #[must_use]
    pub fn keeps(&self, collection: Option<CollectionId>) -> bool {
        match (self.collection, collection) {
            (Some(mine), Some(of)) => mine == of,
            _ => true,
        }
    }

    /// As a reason to keep something.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold {
            reason: Reason::Paused,
            by: format!("ticket {} of {} ({})", self.id, self.owner, self.reason),
            until: Some(self.until).filter(|at| at.0 != i64::MAX),
        }
    }
}

/// Who, why and until when, in one clause.
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.collection {
            Some(c) => write!(f, "garbage collection of collection {c} is paused")?,
            None => f.write_str("garbage collection is paused")?,
        }
        write!(f, " by {}", self.owner)?;
        if self.until.0 != i64::MAX {
            write!(f, " until {}", self.until.utc())?;
        }
        write!(f, ": {} (ticket {})", self.reason, self.id)
    }
}

/// The live ticket that keeps things of this collection and ends last.
#[must_use]
pub fn on(tickets: &[Ticket], collection: Option<CollectionId>, now: UnixMs) -> Option<&Ticket> {
    tickets
        .iter()
        .filter(|t| t.is_live(now) && t.keeps(collection))
        .max_by_key(|t| t.until)
}

/// The live ticket that pauses a whole pass over `scope` and ends last: one for everything, or one for the very collection that the
/// pass is limited to. A pass over everything goes on around the ticket of a collection.
#[must_use]
pub fn on_pass(tickets: &[Ticket], scope: Option<CollectionId>, now: UnixMs) -> Option<&Ticket> {
    tickets
        .iter()
        .filter(|t| t.is_live(now) && (t.collection.is_none() || t.collection == scope))
        .max_by_key(|t| t.until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(collection: Option<i64>, until: i64) -> Ticket {
        Ticket {
            id: format!("t{until}"),
            owner: "ann@host".into(),
            reason: "rescue".into(),
            collection: collection.map(CollectionId),
            since: UnixMs(1),
            until: UnixMs(until),
        }
    }

    #[test]
    fn a_ticket_holds_what_it_names_and_what_nobody_can_name() {
        let (all, of_7) = (ticket(None, 100), ticket(Some(7), 200));
        let both = [all.clone(), of_7.clone()];
        let now = UnixMs(50);
        assert_eq!(on(&both, Some(CollectionId(7)), now), Some(&of_7));
        assert_eq!(on(&both, Some(CollectionId(8)), now), Some(&all));
        assert_eq!(
            on(std::slice::from_ref(&of_7), Some(CollectionId(8)), now),
            None
        );
        assert_eq!(on(std::slice::from_ref(&of_7), None, now), Some(&of_7));
        // At its end it is over.
        assert_eq!(on(&both, Some(CollectionId(8)), UnixMs(100)), None);
    }

    #[test]
    fn a_pass_over_everything_goes_on_around_one_collection() {
        let of_7 = [ticket(Some(7), 200)];
        let now = UnixMs(50);
        assert_eq!(on_pass(&of_7, None, now), None);
        assert!(on_pass(&of_7, Some(CollectionId(7)), now).is_some());
        assert_eq!(on_pass(&of_7, Some(CollectionId(8)), now), None);
        assert!(on_pass(&[ticket(None, 60)], Some(CollectionId(8)), now).is_some());
    }

    #[test]
    fn an_unreadable_ticket_pauses_everything_and_names_no_end() {
        let t = Ticket::unreadable("x", "bad json");
        assert!(t.is_live(UnixMs(i64::MAX - 1)) && t.keeps(Some(CollectionId(1))));
        assert_eq!(t.hold().until, None);
        assert!(!t.to_string().contains("until"), "{t}");
    }
}
