//! Words that a screen puts beside a row, each with the one line that explains it. Help, detail views and lists read this one table.

use super::catalog::Catalog;
use super::health::{channels, segments};
use super::resource::{Kind, Scope, Tone};
use super::rows::{RowRef, View};

/// A word and what it means.
#[derive(Debug, PartialEq, Eq)]
pub struct Badge {
    /// As shown.
    pub name: &'static str,
    /// How serious.
    pub tone: Tone,
    /// One line.
    pub help: &'static str,
}

macro_rules! badges {
    ($($(#[$doc:meta])* $kind:ident { $($id:ident $name:literal $tone:ident $help:literal;)* })*) => {$(
        $(#[$doc])*
        pub mod $kind {
            use super::{Badge, Tone};
            $(#[doc = $help] pub static $id: Badge = Badge { name: $name, tone: Tone::$tone, help: $help };)*
            /// Every one, worst first.
            pub static ALL: &[&Badge] = &[$(&$id),*];
        }
    )*};
}

badges! {
    /// Of channels (`spec/lifecycle.md` §D.3).
    channel {
        FROZEN "FROZEN" Bad "Its checkpoint is more than 10 minutes behind the newest one: flush-all does not end";
        NO_OWNER "NO-OWNER" Bad "No registered node has the log of its physical channel: nothing is taken in";
        DELETE_CP_LAG "DELETE-CP LAG" Warn "Its oldest L0 is more than 30 minutes older than its checkpoint: L0 compaction is stuck";
        L0_PILE_UP "L0 PILE-UP" Warn "100 L0 segments or more wait for compaction: each is loaded with the channel";
        NO_CHECKPOINT "NO-CHECKPOINT" Warn "A collection uses it, and it has no checkpoint: never flushed, or never taken over";
        UNSET "UNSET" Warn "Its checkpoint is 0: no position was ever reported";
        FUTURE "FUTURE" Warn "Its checkpoint lies in the future: the clock of its writer is wrong";
        NOT_A_TIME "NOT-A-TIME" Warn "Its checkpoint is no time that a clock could have given";
        LEGACY_WATCH_KEY "LEGACY-WATCH-KEY" Warn "A key of the channel manager that 2.6 no longer has; shown, never written";
        REASSIGNING "REASSIGNING" Busy "Its physical channel is changing hands";
        DROPPED "DROPPED" Dim "Its checkpoint is the mark of a dropped channel, which is no time";
        GC_PENDING "GC-PENDING" Dim "Its collection is gone; its keys wait for garbage collection";
    }
    /// Of segments (`spec/lifecycle.md` §D.3).
    segment {
        NO_PARTITION "-1?" Bad "It has rows and says that it is about every partition, which only deletes can be: its record is damaged";
        OLD_ARCH "OLD-ARCH" Warn "Not flushed, and allocated before the upgrade to 2.6: nobody but the opening of its channel flushes it";
    }
    /// Of collections (`spec/lifecycle.md` §1 (e), §11 (e)).
    collection {
        DAMAGED "DAMAGED" Bad "A part of it is missing or contradicts another";
        LEAK "LEAK?" Warn "It has no record, and something of it is not even marked as dropped: nothing will take it by itself";
        IMPORTING "IMPORTING" Busy "It has no record, and segments of it are being filled: a restore or an import makes it, or made half of it";
        TRUNCATING "TRUNCATING" Busy "A truncate is under way: it is not compacted meanwhile";
        GC_PENDING "GC-PENDING" Dim "It has no record; what is left is marked as dropped and waits for garbage collection";
        HELD "HELD" Dim "It has no record; snapshots keep what is left";
    }
    /// Of broadcasts (`spec/lifecycle.md` §II.8).
    broadcast {
        APPEND_UNRECOVERABLE "APPEND-UNRECOVERABLE" Bad "An append fails for a reason that trying again does not cure; the task keeps its keys";
        STOPPED "STOPPED" Bad "It does not go on by itself: its record cannot be read or was changed by somebody else";
        KEY_CONFLICT "KEY-CONFLICT" Bad "Another unfinished record holds one of its keys: a Milvus refuses to start with both";
        CALLBACK_RETRY "CALLBACK-RETRY" Bad "Its callback has failed more than 10 times; the error stands beside it";
        CHECKPOINT_WAIT "CHECKPOINT-WAIT" Bad "It waits longer than 10 minutes for a channel's checkpoint, and holds its keys meanwhile";
        STUCK "STUCK" Warn "It is older than two minutes; what it waits for stands beside it";
        BLOCKING "BLOCKING" Warn "Others wait for its keys";
    }
}

/// Every badge of a kind, worst first.
#[must_use]
pub fn all(kind: Kind) -> &'static [&'static Badge] {
    match kind {
        Kind::Collections => collection::ALL,
        Kind::Segments => segment::ALL,
        Kind::Channels => channel::ALL,
        Kind::Broadcasts => broadcast::ALL,
        _ => &[],
    }
}

/// The badges of a row, worst first.
#[must_use]
pub fn of(view: &View<'_>, row: RowRef<'_>) -> Vec<&'static Badge> {
    match row {
        RowRef::Collection(row) => {
            let set = [
                (!row.damage.is_empty(), &collection::DAMAGED),
                (row.is_truncating(), &collection::TRUNCATING),
            ];
            let set = set.into_iter().filter(|(on, _)| *on);
            set.map(|(_, badge)| badge).collect()
        }
        RowRef::Leftover(id) => {
            let left = view.leftover(id).unwrap_or_default();
            let mut all = collection::ALL.iter().copied();
            all.find(|b| b.name == left.verdict().0)
                .into_iter()
                .collect()
        }
        RowRef::Segment(row) => segments::badges(view, row),
        RowRef::Channel(row) => channels::badges(view, row),
        RowRef::Broadcast(row) => row.badges(view),
        _ => Vec::new(),
    }
}

/// What stands over a list of a kind, where something is to be said of all of it.
#[must_use]
pub fn header(catalog: &Catalog, kind: Kind, scope: &Scope) -> Option<String> {
    match kind {
        Kind::Segments => segments::header(catalog, scope),
        _ => None,
    }
}
