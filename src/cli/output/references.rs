//! What snapshots refer to, as text and as a tree.

use std::io::Write;

use serde_json::{Value, json};

use super::{document, line, table};
use crate::cli::Format;
use crate::engine::error::Result;
use crate::engine::ids::CollectionId;
use crate::engine::model::blocked::{Blocked, blocked};
use crate::engine::model::detail::status;
use crate::engine::model::references::{Entry, Status};
use crate::engine::model::resource::View;
use crate::engine::model::text;

/// What is known of snapshots' references, and what waits for it. Answers 7 when a snapshot cannot be read.
pub fn references(
    out: &mut dyn Write,
    view: &View<'_>,
    of: Option<CollectionId>,
    format: Format,
) -> Result<u8> {
    let entries: Vec<&Entry> = view
        .references
        .entries()
        .filter(|e| of.is_none_or(|c| c == e.record.collection))
        .collect();
    let blocked: Vec<Blocked> = blocked(view)
        .into_iter()
        .filter(|b| of.is_none_or(|c| c == b.collection))
        .collect();
    let failed = blocked.iter().any(|b| b.failed);
    let code = if failed { 7 } else { 0 };
    if !matches!(format, Format::Table | Format::Wide) {
        let snapshots: Vec<Value> = entries
            .iter()
            .map(|e| {
                json!({
                    "id": e.record.id,
                    "name": &*e.record.name,
                    "collection_id": e.record.collection,
                    "references": status(e),
                })
            })
            .collect();
        let tree = json!({ "loaded": view.references.is_loaded(), "snapshots": snapshots, "blocked": blocked });
        document(out, &tree, format)?;
        return Ok(code);
    }
    let heads = [
        "SNAPSHOT",
        "COLLECTION",
        "STATE",
        "SEGMENTS",
        "BUILDS",
        "FILES",
        "REASON",
    ];
    let heads: Vec<(String, bool)> = heads
        .into_iter()
        .enumerate()
        .map(|(i, head)| (head.to_owned(), (3..6).contains(&i)))
        .collect();
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|e| {
            let (state, numbers, reason) = match &e.status {
                Status::NotLoaded => ("not read", None, String::new()),
                Status::Loaded { refs, .. } => {
                    let all = [refs.segments().len(), refs.builds().len()];
                    let files = usize::try_from(refs.files).unwrap_or(usize::MAX);
                    ("loaded", Some([all[0], all[1], files]), String::new())
                }
                Status::Failed {
                    reason,
                    tries,
                    since,
                    ..
                } => {
                    let since = since.utc();
                    (
                        "FAILED",
                        None,
                        format!("{reason} (since {since}, tries: {tries})"),
                    )
                }
            };
            let number =
                |i: usize| numbers.map_or_else(|| "–".into(), |n: [usize; 3]| n[i].to_string());
            vec![
                e.record.name.to_string(),
                view.catalog
                    .collection_name(e.record.collection)
                    .to_string(),
                state.to_owned(),
                number(0),
                number(1),
                number(2),
                reason,
            ]
        })
        .collect();
    table(out, &heads, &rows)?;
    for b in &blocked {
        line(
            out,
            &format!(
                "garbage of {} is kept since {}: {} dropped segments with {} wait",
                view.catalog.collection_name(b.collection),
                b.since.utc(),
                b.segments,
                text::bytes(b.bytes),
            ),
        )?;
    }
    Ok(code)
}
