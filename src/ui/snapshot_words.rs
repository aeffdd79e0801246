//! A snapshot's answer in the order in which one asks at night: may it go, is it whole, what would it give back, what is in it.

use serde_json::Value;

use crate::engine::model::resource::Tone;

use super::document::{self, Line};
use super::text;

fn words<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// `462.1 KiB in 75 files`.
fn tally(value: &Value) -> Option<String> {
    let (files, bytes) = (value["files"].as_u64()?, value["bytes"].as_u64()?);
    Some(format!(
        "{} in {} files",
        text::bytes(bytes),
        text::count(files)
    ))
}

/// The lines of [`Request::SnapshotDetail`](crate::engine::handle::Request::SnapshotDetail)'s answer; any other tree as it is.
#[must_use]
pub fn lines(tree: &Value) -> Vec<Line> {
    let Some(pins) = tree["pins"].as_array() else {
        return document::tree(tree);
    };
    let mut out = Vec::new();
    state(tree, &mut out);
    held(pins, &mut out);
    verified(&tree["verified"], &mut out);
    let files = &tree["files"];
    if let Some(problem) = files["problem"].as_str() {
        out.push(Line::heading("Files"));
        out.push(Line::text(problem).tone(Tone::Bad));
    } else {
        frees(&files["dropping_frees"], &mut out);
        holds(files, &mut out);
    }
    let seeks = tree["seek_positions"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    out.push(Line::heading("Seek positions"));
    for seek in seeks {
        let at = seek["utc"].as_str().unwrap_or("its beginning");
        let line = Line::field(words(seek, "channel"), at);
        out.push(line.note(format!("TSO {}", words(seek, "tso"))));
    }
    out
}

fn state(tree: &Value, out: &mut Vec<Line>) {
    out.push(Line::heading("State"));
    let line = Line::field("state", words(tree, "state"));
    out.push(match tree["state_for"].as_str() {
        Some(age) => line.note(format!("for {age}, since {}", words(tree, "state_since"))),
        None => line,
    });
    if tree["collection_exists"] == false {
        let line = Line::field("collection", "dropped").tone(Tone::Warn);
        out.push(line.note("the snapshot can still be restored, pinned and dropped"));
    }
    if let Some(by) = tree["made"]["by"].as_str() {
        let line = Line::field("made", by);
        out.push(line.note(format!(
            "{}, job {}",
            words(&tree["made"], "at"),
            words(&tree["made"], "job")
        )));
    }
    out.push(Line::blank());
}

fn held(pins: &[Value], out: &mut Vec<Line>) {
    out.push(Line::heading("Held by"));
    if pins.is_empty() {
        out.push(Line::text("nobody: it can be dropped"));
    }
    for pin in pins {
        let tone = if pin["active"] == true {
            Tone::Plain
        } else {
            Tone::Dim
        };
        let reason = words(pin, "reason");
        let dot = if reason.is_empty() { "" } else { " · " };
        let line = Line::field(words(pin, "owner"), words(pin, "left")).tone(tone);
        out.push(line.note(format!("{reason}{dot}pin {}", words(pin, "id"))));
    }
    out.push(Line::blank());
}

fn verified(found: &Value, out: &mut Vec<Line>) {
    out.push(Line::heading("Verified"));
    if let Some(result) = found["result"].as_str() {
        let tone = if found["whole"] == true {
            Tone::Good
        } else {
            Tone::Bad
        };
        out.push(Line::text(result).tone(tone));
        let problems = found["problems"].as_array().map_or(&[][..], Vec::as_slice);
        for problem in problems.iter().filter_map(Value::as_str) {
            out.push(Line::text(problem).tone(Tone::Bad).indented(1));
        }
        if found["sizes_compared"] == false {
            out.push(Line::text(
                "its maker recorded no sizes: only presence was compared",
            ));
        }
    } else {
        out.push(Line::text("never: V does").tone(Tone::Warn));
    }
    out.push(Line::blank());
}

fn frees(found: &Value, out: &mut Vec<Line>) {
    out.push(Line::heading("Dropping it frees"));
    for (label, name, note) in [
        ("at once", "at_once", "its own manifests and metadata"),
        (
            "once collected",
            "once_collected",
            "nobody else refers to them",
        ),
        (
            "kept in use",
            "kept_by_live_segments",
            "live segments have them",
        ),
        (
            "kept elsewhere",
            "kept_by_other_snapshots",
            "other snapshots have them",
        ),
    ] {
        match tally(&found[name]) {
            Some(value) => out.push(Line::field(label, value).note(note)),
            None => out.push(
                Line::field(label, found[name].as_str().unwrap_or("not known")).tone(Tone::Warn),
            ),
        }
    }
    out.push(Line::blank());
}

fn holds(files: &Value, out: &mut Vec<Line>) {
    out.push(Line::heading("Holds"));
    let number = |name: &str| {
        let n = files[name].as_i64().unwrap_or_default();
        text::count(n.unsigned_abs())
    };
    out.push(Line::field(
        "segments",
        format!(
            "{} with {} rows, {} deletes",
            number("segments"),
            number("rows"),
            number("delete_entries")
        ),
    ));
    out.push(Line::field("indexes", number("indexes")));
    let format = format!("{}, {}", number("format_version"), words(files, "layout"));
    out.push(Line::field("format version", format));
    for (kind, found) in files["objects"].as_object().into_iter().flatten() {
        if let Some(value) = tally(found) {
            out.push(Line::field(kind.replace('_', " "), value));
        }
    }
    let missing = files["missing"].as_u64().unwrap_or_default();
    if missing > 0 {
        out.push(
            Line::field("missing", format!("{} objects", text::count(missing))).tone(Tone::Bad),
        );
        let named = files["missing_objects"].as_array();
        for key in named.into_iter().flatten().filter_map(Value::as_str) {
            out.push(Line::text(key).tone(Tone::Bad).indented(1));
        }
    }
    out.push(Line::blank());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_one_asks_first_stands_first_and_nothing_wrong_is_hidden() {
        let tree = json!({
            "state": "Committed", "state_for": "3d04h", "state_since": "2026-11-20T09:00:00Z",
            "collection_exists": false,
            "made": { "by": "anna@host pid 7", "at": "2026-11-20T09:00:00Z", "job": "9" },
            "verified": { "result": "NOT whole at noon: 1 problems", "whole": false, "sizes_compared": true,
                "problems": ["object files/a of segment 7 is missing"] },
            "pins": [{ "id": "4", "owner": "bob", "reason": "a backup", "active": true, "left": "1h59m left" }],
            "seek_positions": [{ "channel": "c0", "tso": "5", "utc": null }],
            "files": {
                "segments": 2, "rows": 3000, "delete_entries": 1, "indexes": 1, "format_version": 4, "layout": "referenced",
                "objects": { "insert": { "files": 3, "bytes": 2048 } },
                "dropping_frees": {
                    "at_once": { "files": 3, "bytes": 100 },
                    "once_collected": "not known: snapshot b is being made",
                    "kept_by_live_segments": { "files": 3, "bytes": 2048 },
                    "kept_by_other_snapshots": { "files": 0, "bytes": 0 },
                },
                "missing": 1, "missing_objects": ["files/a"],
            },
        });
        let lines = lines(&tree);
        let all: Vec<String> = lines
            .iter()
            .map(|l| format!("{}|{}|{}", l.label, l.value, l.note))
            .collect();
        let at = |part: &str| {
            let found = all.iter().position(|l| l.contains(part));
            found.unwrap_or_else(|| panic!("{part} is not in {all:#?}"))
        };
        let order = [
            "for 3d04h",
            "bob|1h59m left|a backup · pin 4",
            "NOT whole",
            "Dropping it frees",
            "Holds",
        ];
        assert!(order.map(at).is_sorted(), "{all:#?}");
        for part in [
            "collection|dropped",
            "object files/a of segment 7 is missing",
            "once collected|not known: snapshot b is being made",
            "insert|2.0 KiB in 3 files",
            "missing|1 objects",
            "c0|its beginning|TSO 5",
        ] {
            at(part);
        }
        let bad = |part: &str| lines[at(part)].tone == Tone::Bad;
        assert!(bad("NOT whole") && bad("missing|1") && bad("segment 7 is missing"));
        // Another tree stays what it is.
        assert_eq!(super::lines(&json!({"a": 1})).len(), 1);
    }
}
