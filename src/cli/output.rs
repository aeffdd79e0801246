//! Everything that is printed: tables from the resource registry, JSON and YAML from the same rows.

mod references;

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::Setting;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::{Place, RawValue};
use crate::engine::model::catalog::Catalog;
use crate::engine::model::jobs::{JobInfo, JobKind, JobsView};
use crate::engine::model::resource::{self, Cell, Kind, RowId, Unit, View};
use crate::engine::plan::Plan;

use super::Format;
pub use references::references;

/// Raw keys that `describe` reads at most.
pub const RAW_KEYS: usize = 64;

/// A write to standard output failed: a closed pipe is not worth a word.
pub fn write_failed(e: std::io::Error) -> Error {
    let kind = if e.kind() == std::io::ErrorKind::BrokenPipe {
        ErrorKind::Cancelled
    } else {
        ErrorKind::Internal
    };
    Error::new(kind, "the output cannot be written").caused_by(e)
}

/// Bytes as they are.
pub fn raw(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(write_failed)
}

/// A cell as the console would show it.
fn show(cell: &Cell) -> Cow<'_, str> {
    resource::text(cell)
}

pub(super) fn line(out: &mut dyn Write, text: &str) -> Result<()> {
    writeln!(out, "{text}").map_err(write_failed)
}

/// A document in one of the structured formats.
fn document(out: &mut dyn Write, value: &Value, format: Format) -> Result<()> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("not YAML: {e}")))?,
        Format::Jsonl => value.to_string(),
        _ => serde_json::to_string_pretty(value)
            .map_err(|e| Error::new(ErrorKind::Internal, "not JSON").caused_by(e))?,
    };
    line(out, text.trim_end())
}

/// Columns padded to their widest cell; numbers to the right. Terminal width is not looked at: a pipe has none.
fn table(out: &mut dyn Write, heads: &[(String, bool)], rows: &[Vec<String>]) -> Result<()> {
    let width = |text: &str| unicode_width::UnicodeWidthStr::width(text);
    let mut widths: Vec<usize> = heads.iter().map(|(h, _)| width(h)).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(width(cell));
        }
    }
    let all = std::iter::once(heads.iter().map(|(h, _)| h.clone()).collect::<Vec<_>>())
        .chain(rows.iter().cloned());
    for row in all {
        let mut text = String::new();
        for (i, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[i].saturating_sub(width(cell)));
            if heads[i].1 {
                text.push_str(&pad);
                text.push_str(cell);
            } else {
                text.push_str(cell);
                text.push_str(&pad);
            }
            text.push_str("  ");
        }
        line(out, text.trim_end())?;
    }
    Ok(())
}

/// Rows of a kind.
pub fn rows(
    out: &mut dyn Write,
    view: &View<'_>,
    kind: Kind,
    mut ids: Vec<RowId>,
    filter: Option<&str>,
    sort: Option<&str>,
    format: Format,
) -> Result<()> {
    let spec = kind.spec();
    if let Some(filter) = filter {
        let (wanted, text) = filter
            .strip_prefix('!')
            .map_or((true, filter), |rest| (false, rest));
        ids.retain(|id| {
            let hit =
                (0..spec.columns.len()).any(|c| show(&resource::cell(view, id, c)).contains(text));
            hit == wanted
        });
    }
    let (column, descending) = match sort {
        None => spec.sort,
        Some(name) => {
            let (name, descending) = name
                .strip_prefix('-')
                .map_or((name, false), |rest| (rest, true));
            let column = spec
                .columns
                .iter()
                .position(|c| c.id == name)
                .ok_or_else(|| {
                    let names: Vec<&str> = spec.columns.iter().map(|c| c.id).collect();
                    Error::new(
                        ErrorKind::Invalid,
                        format!("{} has no column {name:?}", spec.name),
                    )
                    .fix(format!("sort by one of {}", names.join(", ")))
                })?;
            (column, descending)
        }
    };
    let mut keyed: Vec<_> = ids
        .into_iter()
        .map(|id| (resource::cell(view, &id, column), id))
        .collect();
    keyed.sort_by(|(a, x), (b, y)| resource::order(a, b, descending).then_with(|| x.cmp(y)));
    let ids = keyed.into_iter().map(|(_, id)| id);
    match format {
        Format::Table | Format::Wide => {
            let shown: Vec<usize> = (0..spec.columns.len())
                .filter(|c| format == Format::Wide || !spec.columns[*c].wide)
                .collect();
            let heads: Vec<(String, bool)> = shown
                .iter()
                .map(|c| {
                    let column = &spec.columns[*c];
                    let right = matches!(
                        column.unit,
                        Unit::Id | Unit::Count | Unit::Bytes | Unit::Age
                    );
                    (column.title.to_uppercase(), right)
                })
                .collect();
            let cells: Vec<Vec<String>> = ids
                .map(|id| {
                    shown
                        .iter()
                        .map(|c| show(&resource::cell(view, &id, *c)).into_owned())
                        .collect()
                })
                .collect();
            table(out, &heads, &cells)
        }
        Format::Jsonl => {
            for id in ids {
                document(out, &resource::json(view, &id), Format::Jsonl)?;
            }
            Ok(())
        }
        Format::Json | Format::Yaml => {
            let items: Vec<Value> = ids.map(|id| resource::json(view, &id)).collect();
            document(
                out,
                &json!({ "kind": spec.name, "revision": view.catalog.rev, "items": items }),
                format,
            )
        }
    }
}

/// Rows of several kinds: tables one below the other, or one document.
pub fn kinds<const N: usize>(
    out: &mut dyn Write,
    view: &View<'_>,
    parts: [(Kind, Vec<RowId>); N],
    format: Format,
) -> Result<()> {
    if matches!(format, Format::Json | Format::Yaml) {
        let mut all = serde_json::Map::new();
        all.insert("revision".into(), json!(view.catalog.rev));
        for (kind, ids) in parts {
            let items: Vec<Value> = ids.iter().map(|id| resource::json(view, id)).collect();
            all.insert(kind.spec().name.into(), json!(items));
        }
        return document(out, &Value::Object(all), format);
    }
    for (at, (kind, ids)) in parts.into_iter().enumerate() {
        if at > 0 && matches!(format, Format::Table | Format::Wide) {
            line(out, "")?;
        }
        rows(out, view, kind, ids, None, None, format)?;
    }
    Ok(())
}

/// One thing in full.
pub fn detail(
    out: &mut dyn Write,
    view: &View<'_>,
    row: &RowId,
    raw: &[Arc<RawValue>],
    format: Format,
) -> Result<()> {
    if !matches!(format, Format::Table | Format::Wide) {
        let keys: Vec<Value> = raw.iter().map(|r| raw_json(r)).collect();
        return document(
            out,
            &json!({ "object": resource::json(view, row), "keys": keys }),
            format,
        );
    }
    for (section, fields) in resource::detail(view, row) {
        line(out, section)?;
        for (name, cell) in fields {
            line(out, &format!("  {name:<24}  {}", show(&cell)))?;
        }
    }
    line(out, "Keys")?;
    for value in raw {
        line(
            out,
            &format!(
                "  {}  rev {}  version {}  {}",
                value.key, value.revs.1, value.revs.2, value.family
            ),
        )?;
        match &value.decoded {
            Ok(tree) if format == Format::Wide => print_tree(out, tree, 4)?,
            Ok(_) => {}
            Err(why) => line(out, &format!("    unreadable: {why}"))?,
        }
    }
    Ok(())
}

fn raw_json(raw: &RawValue) -> Value {
    let mut value = json!({
        "key": raw.key.text(), "family": raw.family,
        "create_revision": raw.revs.0, "mod_revision": raw.revs.1, "version": raw.revs.2, "lease": raw.revs.3,
    });
    match &raw.decoded {
        Ok(tree) => value["value"] = tree.clone(),
        Err(why) => value["undecodable"] = json!(why),
    }
    value
}

/// What was done at once.
pub fn settled(out: &mut dyn Write, what: &str, format: Format) -> Result<()> {
    match format {
        Format::Table | Format::Wide => line(out, what),
        _ => document(out, &json!({ "done": what }), format),
    }
}

/// A plan.
pub fn plan(out: &mut dyn Write, plan: &Plan, format: Format) -> Result<()> {
    if !matches!(format, Format::Table | Format::Wide) {
        let value = serde_json::to_value(plan)
            .map_err(|e| Error::new(ErrorKind::Internal, "not JSON").caused_by(e))?;
        return document(out, &value, format);
    }
    line(out, &plan.title)?;
    line(out, "Checks")?;
    for check in &plan.checks {
        match &check.failed {
            None => line(out, &format!("  ok    {}: {}", check.name, check.detail))?,
            Some(why) => line(out, &format!("  FAIL  {}: {why}", check.name))?,
        }
    }
    section(out, "Steps", &plan.steps)?;
    let o = &plan.objects;
    if o.puts + o.copies + o.deletes > 0 {
        line(out, "Objects")?;
        let size = |n: u64| show(&Cell::Bytes(n)).into_owned();
        line(
            out,
            &format!(
                "  {} written, {} copied ({}), {} deleted ({})",
                o.puts,
                o.copies,
                size(o.copy_bytes),
                o.deletes,
                size(o.delete_bytes)
            ),
        )?;
        for sample in o.samples.iter().take(if format == Format::Wide {
            usize::MAX
        } else {
            5
        }) {
            line(out, &format!("    {sample}"))?;
        }
    }
    if !plan.changes.is_empty() {
        line(out, "Keys")?;
        for change in &plan.changes {
            let mark = match (&change.before, &change.after) {
                (None, _) => "+",
                (_, None) => "-",
                _ => "~",
            };
            line(out, &format!("  {mark} {}", change.key))?;
            if format == Format::Wide {
                for text in change.before.iter().flat_map(|b| b.lines()) {
                    line(out, &format!("      - {text}"))?;
                }
                for text in change.after.iter().flat_map(|a| a.lines()) {
                    line(out, &format!("      + {text}"))?;
                }
            }
        }
    }
    section(out, "Note", &plan.warnings)?;
    line(out, &format!("Undo\n  {}", plan.undo))?;
    let verdict = if plan.applicable() {
        "can be applied"
    } else {
        "cannot be applied: see the failed checks"
    };
    line(
        out,
        &format!(
            "This plan {verdict}. Based on revision {}, hash {}",
            plan.based_on,
            short(&plan.hash)
        ),
    )
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn section(out: &mut dyn Write, title: &str, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    line(out, title)?;
    lines
        .iter()
        .try_for_each(|text| line(out, &format!("  {text}")))
}

/// One line about a running job.
pub fn progress_line(info: &JobInfo) -> String {
    let p = &info.progress;
    let size = |n: u64| show(&Cell::Bytes(n)).into_owned();
    let mut parts = vec![format!(
        "{}: {} ({}/{})",
        info.title, info.step, info.steps.0, info.steps.1
    )];
    if p.files.1 > 0 {
        parts.push(format!("{}/{} files", p.files.0, p.files.1));
        parts.push(format!("{} of {}", size(p.bytes.0), size(p.bytes.1)));
        if p.rate > 0.0 {
            parts.push(format!("{}/s", size(p.rate as u64)));
        }
        if let Some(eta) = p.eta_ms {
            parts.push(format!("{} left", show(&Cell::Age(eta))));
        }
        if let Some(longest) = info.copies.running.first() {
            let name = longest.object.rsplit('/').next().unwrap_or_default();
            let took = show(&Cell::Age(longest.took_ms)).into_owned();
            parts.push(format!("…/{name} for {took}"));
        }
        if info.copies.failing > 0 {
            parts.push(format!("{} failing", info.copies.failing));
        }
    }
    parts.join("  ")
}

/// A job that has ended, or stands somewhere.
pub fn job(out: &mut dyn Write, info: &JobInfo, format: Format) -> Result<()> {
    if !matches!(format, Format::Table | Format::Wide) {
        let value = serde_json::to_value(info)
            .map_err(|e| Error::new(ErrorKind::Internal, "not JSON").caused_by(e))?;
        return document(out, &value, format);
    }
    line(
        out,
        &format!("{}  {:?}  job {}", info.title, info.state, info.id),
    )?;
    if let Some(how) = &info.recovered {
        line(out, &format!("  {how}"))?;
    }
    for note in &info.notes {
        line(out, &format!("  {note}"))?;
    }
    for file in &info.copies.failed {
        let (object, tries, error) = (&file.object, file.tries, &file.error);
        line(
            out,
            &format!("  not copied: {object} ({tries} tries): {error}"),
        )?;
    }
    if let Some(error) = &info.error {
        line(out, &format!("  error: {error}"))?;
    }
    Ok(())
}

/// What the demo made, and three commands to go on with.
pub fn built(out: &mut dyn Write, catalog: &Catalog, jobs: &JobsView, place: &Place) -> Result<()> {
    let is_restore = |j: &JobInfo| j.kind == JobKind::Restore && !j.state.ended();
    let restoring = jobs.jobs.iter().any(|j| is_restore(j));
    line(
        out,
        &format!(
            "{}: {} databases, {} collections, {} segments, {} channels, {} snapshots",
            place.meta,
            catalog.databases.len(),
            catalog.collections.len(),
            catalog.segment_count(),
            catalog.channels.len(),
            catalog.snapshots.len(),
        ),
    )?;
    line(out, "Look next, with the same flags:")?;
    line(
        out,
        "  falconer                              the console; the restore goes on in it",
    )?;
    line(
        out,
        "  falconer get channels -s -lag         one lags, one is dropped",
    )?;
    line(
        out,
        "  falconer snapshot describe nightly    what a snapshot holds",
    )?;
    if restoring {
        line(
            out,
            "A restore has begun. It stops with this process; the next start resumes it.",
        )?;
    }
    Ok(())
}

/// Single findings of a check that a table shows.
const FINDINGS: usize = 20;

/// A doctor's report: one line a check, what to do under those that need it, and the count.
pub fn doctor(out: &mut dyn Write, report: &Value, format: Format) -> Result<()> {
    let checks = report["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    let longest = checks.iter().map(|c| text(c, "name").len()).max();
    let width = longest.unwrap_or(0);
    let indent = " ".repeat("FAIL  ".len() + width + 2);
    for check in checks {
        let mark = match check["status"].as_str() {
            Some("fail") => "FAIL",
            Some("skipped") => "skip",
            Some(other) => other,
            None => "?",
        };
        let (name, detail) = (text(check, "name"), text(check, "detail"));
        line(out, &format!("{mark:<4}  {name:<width$}  {detail}"))?;
        let items = check["items"].as_array().map_or(&[][..], Vec::as_slice);
        let shown = if format == Format::Wide {
            items.len()
        } else {
            FINDINGS
        };
        for item in items.iter().take(shown) {
            line(out, &format!("{indent}- {}", scalar(item)))?;
        }
        if let Some(more) = items.len().checked_sub(shown).filter(|n| *n > 0) {
            line(out, &format!("{indent}- and {more} more: -o wide"))?;
        }
        if let Some(fix) = check["fix"].as_str() {
            line(out, &format!("{indent}fix: {fix}"))?;
        }
    }
    let count = |status: &str| checks.iter().filter(|c| c["status"] == status).count();
    line(
        out,
        &format!(
            "{} checks: {} ok, {} to look at, {} failed, {} not made",
            checks.len(),
            count("ok"),
            count("warn"),
            count("fail"),
            count("skipped")
        ),
    )
}

/// Pins, a line each.
pub fn pins(out: &mut dyn Write, pins: &Value, format: Format) -> Result<()> {
    let rows = pins.as_array().map_or(&[][..], Vec::as_slice);
    match format {
        Format::Table | Format::Wide => {
            let mut names = vec!["snapshot", "collection", "id", "owner", "left", "reason"];
            if format == Format::Wide {
                names.extend(["expires", "made", "by", "snapshot_id"]);
            }
            let heads: Vec<(String, bool)> = names
                .iter()
                .map(|n| (n.to_uppercase(), *n == "id"))
                .collect();
            let cell = |row: &Value, name: &str| match &row[name] {
                Value::Null => String::new(),
                // The heading says it.
                value if name == "left" => {
                    let left = scalar(value);
                    left.strip_suffix(" left").unwrap_or(&left).to_owned()
                }
                value => scalar(value),
            };
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|row| names.iter().map(|name| cell(row, name)).collect())
                .collect();
            table(out, &heads, &cells)
        }
        Format::Jsonl => rows.iter().try_for_each(|row| document(out, row, format)),
        _ => document(out, &json!({ "kind": "pins", "items": rows }), format),
    }
}

/// A tree.
pub fn tree(out: &mut dyn Write, value: &Value, format: Format) -> Result<()> {
    match format {
        Format::Table | Format::Wide => print_tree(out, value, 0),
        _ => document(out, value, format),
    }
}

fn print_tree(out: &mut dyn Write, value: &Value, indent: usize) -> Result<()> {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                if inner.is_object() || inner.is_array() {
                    line(out, &format!("{pad}{name}"))?;
                    print_tree(out, inner, indent + 2)?;
                } else {
                    let size = inner.as_u64().filter(|n| name == "bytes" && *n >= 1024);
                    let size = size.map(|n| format!("  ({})", show(&Cell::Bytes(n))));
                    let size = size.unwrap_or_default();
                    line(out, &format!("{pad}{name:<24}  {}{size}", scalar(inner)))?;
                }
            }
            Ok(())
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(map) if map.values().all(|v| !v.is_object() && !v.is_array()) => {
                        let cells: Vec<String> = map
                            .iter()
                            .filter(|(_, v)| !v.is_null() && v.as_str() != Some(""))
                            .map(|(k, v)| format!("{k}={}", scalar(v)))
                            .collect();
                        line(out, &format!("{pad}- {}", cells.join("  ")))?;
                    }
                    Value::Object(_) | Value::Array(_) => {
                        line(out, &format!("{pad}-"))?;
                        print_tree(out, item, indent + 2)?;
                    }
                    _ => line(out, &format!("{pad}- {}", scalar(item)))?,
                }
            }
            Ok(())
        }
        _ => line(out, &format!("{pad}{}", scalar(value))),
    }
}

fn scalar(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// The resolved configuration.
pub fn settings(out: &mut dyn Write, settings: &[Setting], format: Format) -> Result<()> {
    if matches!(format, Format::Table | Format::Wide) {
        let heads = [
            ("KEY".to_owned(), false),
            ("VALUE".to_owned(), false),
            ("FROM".to_owned(), false),
        ];
        let rows: Vec<Vec<String>> = settings
            .iter()
            .map(|s| vec![s.key.to_string(), s.value.clone(), s.origin.to_string()])
            .collect();
        return table(out, &heads, &rows);
    }
    let items: Vec<Value> = settings
        .iter()
        .map(
            |s| json!({ "key": s.key.to_string(), "value": s.value, "from": s.origin.to_string() }),
        )
        .collect();
    document(out, &json!(items), format)
}
