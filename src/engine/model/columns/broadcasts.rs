//! Columns of broadcasts (`spec/lifecycle.md` §II.8). What decides at night stands first: at 80 columns there is room for four.

use crate::engine::model::broadcast::{Broadcast, key_words, tone};
use crate::engine::model::resource::{Cell, Column, Tone, Unit};
use crate::engine::model::rows::View;

use super::{age, badge_cell, columns, count, id, named, state, text};

columns! { BROADCASTS, broadcast, Broadcast:
    r#type "TYPE" State (24, 14) "MessageType; as serious as what is wrong with it" => |v, b| state(b.kind.clone(), tone(v, b));
    collection "ON" Text (28, 10) "Collection or database that it is about" => |v, b| dim(b, b.place(v));
    age "AGE" Age (9, 6) "Since it began, by its note or its id; nothing once it is over" => |v, b| age(v, b.since(v));
    waiting "WAITING FOR" Text (60, 38) "What it waits for: exact where this process drives it, else what the records tell" => |v, b| match b.waiting(v) {
        Some(waiting) => state(waiting.to_string(), tone(v, b)),
        None => state("over", Tone::Dim),
    };
    acked "ACKED" Text (10, 7) "Channels that have acknowledged it, of all; then each in the order of its header" => |_, b| dim(b, acked(b));
    state "STATE" State (12, 9) "BroadcastTaskState; TOMBSTONE = over, kept to recognise what comes late" => |_, b| named(b.state);
    badges "BADGES" State (24, 8) "What is wrong with it, in words that ? and the detail view explain" => |v, b| badge_cell(b.badges(v));
    blocks "BLOCKS" Count (6, 6) "Who waits for its keys: operations where this process drives it, else later records" => |v, b| match b.blocks(v) {
        0 => Cell::None,
        n => count(n),
    };
    mode "MODE" Text (11, 8) "FAST-ACK: acked after the last append. ACK-SYNC-UP: each channel when its checkpoint has reached the message" => |_, b| dim(b, mode(b).to_owned());
    appended "APPENDED" Text (9, 8) wide "Copies in the logs, of all; ≥ where only the acks tell of them" => |v, b| dim(b, appended(v, b));
    retries "RETRIES" Count (7, 7) wide "Failed tries of the step that it is in; known where this process drives it" => |v, b| b.own(v).map_or(Cell::None, |own| count(own.retries));
    keys "KEYS" Text (40, 12) wide "What it holds: X alone, S shared; each holds the cluster, shared, too" => |_, b| dim(b, key_words(&b.keys));
    id "ID" Id (20, 18) "Broadcast id; it grows in the order of conflicting broadcasts" => |_, b| id(b.id.0);
    about "ABOUT" Text (24, 8) wide "Snapshot, index or alias that it is about" => |_, b| dim(b, b.about.clone().unwrap_or_default());
}

/// A finished one speaks softly.
fn dim(b: &Broadcast, t: String) -> Cell {
    match text(t) {
        Cell::Text(t) if b.is_over() => state(t, Tone::Dim),
        cell => cell,
    }
}

const fn mode(b: &Broadcast) -> &'static str {
    if b.ack_sync_up {
        "ACK-SYNC-UP"
    } else {
        "FAST-ACK"
    }
}

fn acked(b: &Broadcast) -> String {
    let (n, of) = (b.acked(), b.targets.len());
    if of == 0 || of > 8 || n == of {
        return format!("{n}/{of}");
    }
    let bits = b
        .targets
        .iter()
        .map(|t| if t.acked.is_some() { '1' } else { '0' });
    format!("{n}/{of} {}", bits.collect::<String>())
}

fn appended(view: &View<'_>, b: &Broadcast) -> String {
    let of = b.targets.len();
    match b.appended(view) {
        (n, true) => format!("{n}/{of}"),
        (0, false) => format!("?/{of}"),
        (n, false) => format!("≥{n}/{of}"),
    }
}
