//! A name or an id, as a person types it, to a row.

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaKey;

use super::resource::{Kind, RowId, Scope};
use super::rows::{RowRef, View, each};

/// Other names are not read beyond this many rows of candidates in a message.
const SHOWN: usize = 8;

/// The row that `text` names: its id, its name, or its path (`database/collection`, `collection/partition`,
/// `database/collection/snapshot` …). A collection may also be named by an alias. `NotFound`, or `Invalid` with the
/// candidates when several rows have that name.
pub fn find(view: &View<'_>, kind: Kind, text: &str) -> Result<RowId> {
    let mut by_id = Vec::new();
    let mut by_name: Vec<(RowId, String)> = Vec::new();
    if matches!(kind, Kind::Keys | Kind::Config | Kind::Undecodable) {
        let key = MetaKey::from(text);
        let direct = match kind {
            Kind::Keys => RowId::Key(key),
            Kind::Config => RowId::Config(key),
            _ => RowId::Undecodable(key),
        };
        if super::rows::row(view, &direct).is_some() {
            return Ok(direct);
        }
    }
    each(view, kind, &Scope::default(), |row| {
        let id = row.id();
        if id.text() == text {
            by_id.push(id);
            return;
        }
        let path = path(view, row);
        if path == text || ends_with_parts(&path, text) {
            by_name.push((id, path));
        }
    });
    by_id.dedup();
    if let [one] = by_id.as_slice() {
        return Ok(one.clone());
    }
    // A whole path beats a part of another one.
    if let Some(at) = by_name.iter().position(|(_, path)| path == text)
        && by_name.iter().filter(|(_, path)| path == text).count() == 1
    {
        return Ok(by_name.swap_remove(at).0);
    }
    match by_name.len() {
        1 => Ok(by_name.swap_remove(0).0),
        0 if kind == Kind::Collections => by_alias(view, text),
        0 => Err(missing(kind, text)),
        n => {
            let mut names: Vec<String> = by_name
                .iter()
                .take(SHOWN)
                .map(|(id, path)| format!("{path} ({})", id.text()))
                .collect();
            if n > SHOWN {
                names.push(format!("and {} more", n - SHOWN));
            }
            Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{text:?} names {n} {}: {}",
                    kind.spec().name,
                    names.join(", ")
                ),
            )
            .fix("give the whole path or the id"))
        }
    }
}

fn missing(kind: Kind, text: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no {text:?} among the {}", kind.spec().name),
    )
    .fix(format!(
        "list them with `falconer get {}`",
        kind.spec().name
    ))
}

fn by_alias(view: &View<'_>, text: &str) -> Result<RowId> {
    let mut found: Vec<RowId> = view
        .catalog
        .aliases
        .values()
        .filter(|a| {
            let path = format!("{}/{}", view.catalog.database_name(a.db), a.name);
            path == text || *a.name == *text
        })
        .map(|a| RowId::Collection(a.collection))
        .collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(missing(Kind::Collections, text)),
        many => Err(Error::new(
            ErrorKind::Invalid,
            format!("alias {text:?} exists in {} databases", many.len()),
        )
        .fix("write database/alias")),
    }
}

/// Whether `text` is the last parts of `path`.
fn ends_with_parts(path: &str, text: &str) -> bool {
    path.strip_suffix(text)
        .is_some_and(|head| head.ends_with('/'))
}

/// The full name of a row.
fn path(view: &View<'_>, row: RowRef<'_>) -> String {
    let c = view.catalog;
    let collection = |id| {
        let name = c.collection_name(id);
        match c.collections.get(&id) {
            Some(row) => format!("{}/{name}", c.database_name(row.db)),
            None => name.to_string(),
        }
    };
    match row {
        RowRef::Database(r) => r.name.to_string(),
        RowRef::Collection(r) => format!("{}/{}", c.database_name(r.db), r.name),
        RowRef::Leftover(id) => id.to_string(),
        RowRef::Partition(r) => format!("{}/{}", collection(r.collection), r.name),
        RowRef::Index(r) => format!("{}/{}", collection(r.collection), r.name),
        RowRef::Snapshot(r) => format!("{}/{}", collection(r.collection), r.name),
        RowRef::Alias(r) => format!("{}/{}", c.database_name(r.db), r.name),
        RowRef::Config(r) => r.name.to_string(),
        RowRef::Broadcast(r) => r.title(view),
        RowRef::Task(r) => r.id.to_string(),
        RowRef::Job(r) => r.title.clone(),
        RowRef::Segment(_)
        | RowRef::Channel(_)
        | RowRef::SegmentIndex(_)
        | RowRef::Session(_)
        | RowRef::Ticket(_)
        | RowRef::Quarantine(_)
        | RowRef::Replica(_)
        | RowRef::Undecodable(_)
        | RowRef::Key(..) => row.id().text(),
    }
}
