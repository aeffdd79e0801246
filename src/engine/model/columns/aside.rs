//! Columns of what we keep beside the root: pauses of garbage collection, and what was moved aside.

use crate::engine::model::quarantine::{KEEP_DAYS, Quarantine};
use crate::engine::model::resource::{Cell, Column, Tone, Unit};
use crate::engine::model::rows::View;
use crate::engine::model::tickets::Ticket;

use super::{age, collection_cell, columns, count, id, state, text};

columns! { TICKETS, ticket, Ticket:
    ticket "TICKET" Text (14, 11) "What gc resume is given" => |_, t| text(t.id.clone());
    owner "OWNER" Text (24, 8) "Who asked for it" => |_, t| text(t.owner.clone());
    scope "SCOPE" Text (24, 8) "Collection, or everything" => |v, t| t.collection.map_or(Cell::Text("everything".into()), |c| collection_cell(v, c));
    left "LEFT" Age (9, 5) "Time left" => |v, t| if t.is_live(v.now) && t.until.0 != i64::MAX { Cell::Age(t.until.since(v.now)) } else { Cell::None };
    reason "REASON" Text (40, 10) "Why" => |_, t| text(t.reason.clone());
    state "STATE" State (8, 6) "paused, or over" => |v, t| if t.is_live(v.now) { state("paused", Tone::Warn) } else { state("over", Tone::Dim) };
    until "UNTIL (UTC)" Time (20, 16) "It ends by itself then" => |_, t| if t.until.0 == i64::MAX { Cell::None } else { Cell::Time(t.until) };
    since "SINCE (UTC)" Time (20, 16) wide "Begin" => |_, t| if t.since.0 == 0 { Cell::None } else { Cell::Time(t.since) };
}

columns! { QUARANTINE, quarantine, Quarantine:
    title "WHAT" Text (30, 12) "What moved it aside" => |_, q| text(q.title.clone());
    job "JOB" Id (20, 18) "What quarantine restore is given" => |_, q| id(q.job.0);
    state "STATE" State (10, 7) "filling, kept, or due for a purge after 7 days" => |v, q| match q.due(KEEP_DAYS) {
        None => state("filling", Tone::Busy),
        Some(at) if at <= v.now => state("due", Tone::Dim),
        Some(_) => state("kept", Tone::Good),
    };
    objects "OBJECTS" Count (10, 7) "Objects that lie there" => |_, q| count(q.objects);
    bytes "BYTES" Bytes (10, 6) "Their bytes" => |_, q| Cell::Bytes(q.bytes);
    until "KEPT UNTIL (UTC)" Time (20, 16) "A purge with the default of 7 days takes it from then on" => |_, q| q.due(KEEP_DAYS).map_or(Cell::None, Cell::Time);
    moved "MOVED (UTC)" Time (20, 16) "When the last of it had moved" => |_, q| Cell::Time(q.closed.unwrap_or(q.opened));
    age "AGE" Age (9, 5) "Since it was moved" => |v, q| age(v, q.closed);
    restored "PUT BACK" Count (9, 5) wide "Objects that were put back" => |_, q| count(q.restored);
    collection "COLLECTION" Text (24, 8) wide "Scope" => |v, q| q.collection.map_or(Cell::None, |c| collection_cell(v, c));
    actor "BY" Text (30, 8) wide "Who let it run" => |_, q| text(q.actor.clone());
}
