//! Words that a screen puts beside a row, each with the one line that explains it. Help, detail views and lists read this one table.

use super::health::channels;
use super::resource::{Kind, Tone};
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
        Kind::Channels => channel::ALL,
        Kind::Broadcasts => broadcast::ALL,
        _ => &[],
    }
}

/// The badges of a row, worst first.
#[must_use]
pub fn of(view: &View<'_>, row: RowRef<'_>) -> Vec<&'static Badge> {
    match row {
        RowRef::Channel(row) => channels::badges(view, row),
        RowRef::Broadcast(row) => row.badges(view),
        _ => Vec::new(),
    }
}
