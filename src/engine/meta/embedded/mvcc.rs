//! Numbered history over redb, which has none: four tables and the rules that tie them.
//!
//! | table | key | value |
//! |---|---|---|
//! | `head` | key | create, mod, version, lease, value: the newest version of a living key |
//! | `hist` | key, mod | create, version, lease, value: every superseded version, and a tombstone (version 0) a delete |
//! | `log` | revision, index | the key written |
//! | `meta` | name | format, head revision, compacted revision |
//!
//! A version lives in `head` or in `hist`, never in both, so that the newest value of a key is stored once. All functions block; they run on the writer's thread or on tokio's blocking pool.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::fault::{Fault, FaultResult};
use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::meta::{
    Cond, DEFAULT_PAGE, Event, KeyValue, Outcome, Page, RangeOpts, Span, Txn, WatchBatch, Write,
    check,
};

type HeadRow<'a> = (i64, i64, i64, i64, &'a [u8]);
type HistRow<'a> = (i64, i64, i64, &'a [u8]);

const HEAD: TableDefinition<&[u8], HeadRow> = TableDefinition::new("head");
const HIST: TableDefinition<(&[u8], i64), HistRow> = TableDefinition::new("hist");
const LOG: TableDefinition<(i64, u32), &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

/// The layout of the tables. A file with a higher number was written by a newer Falconer.
pub const FORMAT: i64 = 1;
/// An empty store stands at 1, as etcd's does, so that the first transaction is 2 in both.
pub const FIRST_REV: i64 = 1;

/// The three numbers of the `meta` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Layout of the tables.
    pub format: i64,
    /// Head revision.
    pub rev: i64,
    /// Highest compacted revision: state at it can be read, changes up to it are gone.
    pub compacted: i64,
}

fn marks_of(meta: &impl ReadableTable<&'static str, i64>) -> FaultResult<Marks> {
    let read = |name: &str| -> FaultResult<i64> {
        meta.get(name)?
            .map(|g| g.value())
            .ok_or_else(|| Fault::Corrupt(format!("the table meta has no row {name}")))
    };
    Ok(Marks {
        format: read("format")?,
        rev: read("rev")?,
        compacted: read("compacted")?,
    })
}

/// Makes the tables in an empty file; leaves others as they are. True if the file was empty.
pub fn init(txn: &WriteTransaction) -> FaultResult<bool> {
    let mut meta = txn.open_table(META)?;
    if meta.get("format")?.is_some() {
        return Ok(false);
    }
    meta.insert("format", FORMAT)?;
    meta.insert("rev", FIRST_REV)?;
    meta.insert("compacted", FIRST_REV)?;
    txn.open_table(HEAD)?;
    txn.open_table(HIST)?;
    txn.open_table(LOG)?;
    Ok(true)
}

/// The numbers of the `meta` table, or `None` in a file that was never initialised.
pub fn marks(txn: &ReadTransaction) -> FaultResult<Option<Marks>> {
    match txn.open_table(META) {
        Ok(meta) => marks_of(&meta).map(Some),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The head revision inside a write transaction.
pub fn marks_in(txn: &WriteTransaction) -> FaultResult<Marks> {
    marks_of(&txn.open_table(META)?)
}

fn from_head(key: &[u8], row: HeadRow, keys_only: bool) -> KeyValue {
    KeyValue {
        key: MetaKey(Bytes::copy_from_slice(key)),
        value: if keys_only {
            Bytes::new()
        } else {
            Bytes::copy_from_slice(row.4)
        },
        create_rev: MetaRev(row.0),
        mod_rev: MetaRev(row.1),
        version: row.2,
        lease: row.3,
    }
}

/// `None` for a tombstone.
fn from_hist(key: &[u8], mod_rev: i64, row: HistRow, keys_only: bool) -> Option<KeyValue> {
    (row.1 != 0).then(|| from_head(key, (row.0, mod_rev, row.1, row.2, row.3), keys_only))
}

fn head_range<'t>(
    head: &'t impl ReadableTable<&'static [u8], HeadRow<'static>>,
    span: &Span,
) -> FaultResult<redb::Range<'t, &'static [u8], HeadRow<'static>>> {
    let start = span.start.as_ref();
    Ok(match &span.end {
        Some(end) => head.range(start..end.as_ref())?,
        None => head.range(start..)?,
    })
}

/// One page of a span, at head or at an older revision.
pub fn range(txn: &ReadTransaction, span: &Span, opts: RangeOpts) -> FaultResult<Page> {
    let marks = marks_of(&txn.open_table(META)?)?;
    let at = opts.at.map_or(marks.rev, |r| r.0);
    if at > marks.rev {
        return Err(check::future(MetaRev(at), Some(MetaRev(marks.rev))).into());
    }
    if at < marks.compacted {
        return Err(
            check::compacted("read at", MetaRev(at), Some(MetaRev(marks.compacted))).into(),
        );
    }
    let limit = if opts.limit == 0 {
        DEFAULT_PAGE
    } else {
        opts.limit
    };
    let mut page = Page {
        kvs: Vec::new(),
        more: false,
        rev: MetaRev(at),
    };
    if span.is_empty() {
        return Ok(page);
    }
    let head = txn.open_table(HEAD)?;
    let mut newest = head_range(&head, span)?;
    if at == marks.rev {
        for row in newest.by_ref().take(limit.saturating_add(1)) {
            let (key, value) = row?;
            if page.kvs.len() == limit {
                page.more = true;
                break;
            }
            page.kvs
                .push(from_head(key.value(), value.value(), opts.keys_only));
        }
        return Ok(page);
    }
    let hist = txn.open_table(HIST)?;
    page_at(&hist, newest, span, at, limit, opts.keys_only, &mut page)?;
    Ok(page)
}

/// Merges the living keys that are old enough with the newest superseded version not above `at`.
fn page_at(
    hist: &impl ReadableTable<(&'static [u8], i64), HistRow<'static>>,
    newest: redb::Range<'_, &'static [u8], HeadRow<'static>>,
    span: &Span,
    at: i64,
    limit: usize,
    keys_only: bool,
    page: &mut Page,
) -> FaultResult<()> {
    let start = (span.start.as_ref(), i64::MIN);
    let old = match &span.end {
        Some(end) => hist.range(start..(end.as_ref(), i64::MIN))?,
        None => hist.range(start..)?,
    };
    let mut old = old.peekable();
    let mut newest = newest.peekable();
    // one key a turn: the smaller of the two cursors
    loop {
        // a row that cannot be read sorts first, so that the turn below meets it and reports it
        let next_old = old.peek().map(|row| match row {
            Ok((k, _)) => Bytes::copy_from_slice(k.value().0),
            Err(_) => Bytes::new(),
        });
        let next_new = newest.peek().map(|row| match row {
            Ok((k, _)) => Bytes::copy_from_slice(k.value()),
            Err(_) => Bytes::new(),
        });
        let Some(key) = [next_old, next_new].into_iter().flatten().min() else {
            return Ok(());
        };
        let mut best = None;
        while let Some(row) =
            old.next_if(|row| row.as_ref().map_or(true, |(k, _)| k.value().0 == key))
        {
            let (k, v) = row?;
            if k.value().1 <= at {
                best = from_hist(&key, k.value().1, v.value(), keys_only);
            }
        }
        if let Some(row) =
            newest.next_if(|row| row.as_ref().map_or(true, |(k, _)| k.value() == key))
        {
            let (_, v) = row?;
            if v.value().1 <= at {
                best = Some(from_head(&key, v.value(), keys_only));
            }
        }
        if let Some(kv) = best {
            if page.kvs.len() == limit {
                page.more = true;
                return Ok(());
            }
            page.kvs.push(kv);
        }
    }
}

/// Evaluates and applies a transaction inside `txn`. The caller commits only on [`Outcome::Committed`].
pub fn apply(txn: &WriteTransaction, what: &Txn) -> FaultResult<Outcome> {
    let marks = marks_in(txn)?;
    let mut head = txn.open_table(HEAD)?;
    if !all_hold(&head, &what.conds)? {
        let mut seen = Vec::new();
        for key in check::named_keys(&what.conds) {
            if let Some(kv) = get(&head, key)? {
                seen.push(kv);
            }
        }
        return Ok(Outcome::Refused {
            rev: MetaRev(marks.rev),
            seen,
        });
    }
    let rev = marks.rev + 1;
    let mut hist = txn.open_table(HIST)?;
    let mut log = txn.open_table(LOG)?;
    let mut index = 0;
    for write in &what.writes {
        if write_one(&mut head, &mut hist, write, rev)? {
            log.insert((rev, index), write.key().0.as_ref())?;
            index += 1;
        }
    }
    if index == 0 {
        return Ok(Outcome::Committed {
            rev: MetaRev(marks.rev),
        });
    }
    txn.open_table(META)?.insert("rev", rev)?;
    Ok(Outcome::Committed { rev: MetaRev(rev) })
}

fn get(
    head: &impl ReadableTable<&'static [u8], HeadRow<'static>>,
    key: &MetaKey,
) -> FaultResult<Option<KeyValue>> {
    Ok(head
        .get(key.0.as_ref())?
        .map(|row| from_head(&key.0, row.value(), false)))
}

fn all_hold(
    head: &impl ReadableTable<&'static [u8], HeadRow<'static>>,
    conds: &[Cond],
) -> FaultResult<bool> {
    for cond in conds {
        let holds = match cond {
            Cond::Absent(k) | Cond::At(k, _) | Cond::ValueIs(k, _) => {
                check::holds(cond, get(head, k)?.as_ref()).unwrap_or(false)
            }
            Cond::NoneUnder(prefix) => none_in(head, &Span::prefix(prefix))?,
            Cond::NoneIn(span) => none_in(head, span)?,
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn none_in(
    head: &impl ReadableTable<&'static [u8], HeadRow<'static>>,
    span: &Span,
) -> FaultResult<bool> {
    if span.is_empty() {
        return Ok(true);
    }
    match head_range(head, span)?.next() {
        None => Ok(true),
        Some(Ok(_)) => Ok(false),
        Some(Err(e)) => Err(e.into()),
    }
}

/// Writes one key; false when there was nothing to delete.
fn write_one(
    head: &mut Table<&'static [u8], HeadRow<'static>>,
    hist: &mut Table<(&'static [u8], i64), HistRow<'static>>,
    write: &Write,
    rev: i64,
) -> FaultResult<bool> {
    let key = write.key();
    let before = match write {
        Write::Put { .. } => get(head, key)?,
        Write::Delete(_) => match head.remove(key.0.as_ref())? {
            Some(row) => Some(from_head(&key.0, row.value(), false)),
            None => return Ok(false),
        },
    };
    if let Some(old) = &before {
        hist.insert(
            (key.0.as_ref(), old.mod_rev.0),
            (old.create_rev.0, old.version, old.lease, old.value.as_ref()),
        )?;
    }
    match write {
        Write::Put { value, lease, .. } => {
            let (create, version) = before
                .as_ref()
                .map_or((rev, 1), |old| (old.create_rev.0, old.version + 1));
            head.insert(
                key.0.as_ref(),
                (create, rev, version, *lease, value.as_ref()),
            )?;
        }
        Write::Delete(_) => {
            hist.insert((key.0.as_ref(), rev), (0, 0, 0, [].as_slice()))?;
        }
    }
    Ok(true)
}

/// Changes of the span from revision `from`, and the revision up to which they are complete.
pub struct Changes {
    /// Whole revisions, in order, none empty.
    pub batches: Vec<WatchBatch>,
    /// Everything up to here is in `batches`.
    pub upto: i64,
}

/// Reads the log from revision `from` on, at most about `max` changes (always whole revisions).
pub fn changes(txn: &ReadTransaction, span: &Span, from: i64, max: usize) -> FaultResult<Changes> {
    let marks = marks_of(&txn.open_table(META)?)?;
    if from <= marks.compacted && from > FIRST_REV {
        return Err(check::compacted(
            "watch from",
            MetaRev(from),
            Some(MetaRev(marks.compacted + 1)),
        )
        .into());
    }
    let head = txn.open_table(HEAD)?;
    let hist = txn.open_table(HIST)?;
    let log = txn.open_table(LOG)?;
    let mut out = Changes {
        batches: Vec::new(),
        upto: marks.rev,
    };
    let mut last_rev = from - 1;
    for (scanned, row) in log.range((from, 0)..)?.enumerate() {
        let (at, key) = row?;
        let (rev, _) = at.value();
        if rev != last_rev && scanned >= max {
            out.upto = rev - 1;
            break;
        }
        last_rev = rev;
        let key = MetaKey(Bytes::copy_from_slice(key.value()));
        if !span.contains(&key) {
            continue;
        }
        let event = event_of(&head, &hist, key, rev)?;
        match out.batches.last_mut() {
            Some(batch) if batch.rev.0 == rev => batch.events.push(event),
            _ => out.batches.push(WatchBatch {
                rev: MetaRev(rev),
                events: vec![event],
            }),
        }
    }
    Ok(out)
}

fn event_of(
    head: &impl ReadableTable<&'static [u8], HeadRow<'static>>,
    hist: &impl ReadableTable<(&'static [u8], i64), HistRow<'static>>,
    key: MetaKey,
    rev: i64,
) -> FaultResult<Event> {
    if let Some(row) = head.get(key.0.as_ref())?
        && row.value().1 == rev
    {
        return Ok(Event::Put(from_head(&key.0, row.value(), false)));
    }
    match hist.get((key.0.as_ref(), rev))? {
        Some(row) => Ok(match from_hist(&key.0, rev, row.value(), false) {
            Some(kv) => Event::Put(kv),
            None => Event::Delete(key, MetaRev(rev)),
        }),
        None => Err(Fault::Corrupt(format!(
            "the log names {key} at revision {rev}, no table holds that version"
        ))),
    }
}

/// Forgets what is not needed to read at `upto` or later. Nothing to do at or below the compacted revision.
pub fn compact(txn: &WriteTransaction, upto: i64) -> FaultResult<()> {
    let marks = marks_in(txn)?;
    if upto > marks.rev {
        return Err(check::future(MetaRev(upto), Some(MetaRev(marks.rev))).into());
    }
    if upto <= marks.compacted {
        return Ok(());
    }
    let mut log = txn.open_table(LOG)?;
    let mut hist = txn.open_table(HIST)?;
    // newest write of each key at or below `upto`: all older versions of that key are unreachable
    let mut newest: BTreeMap<Bytes, i64> = BTreeMap::new();
    for row in log.range(..=(upto, u32::MAX))? {
        let (at, key) = row?;
        newest.insert(Bytes::copy_from_slice(key.value()), at.value().0);
    }
    for (key, rev) in &newest {
        let key = key.as_ref();
        hist.retain_in((key, i64::MIN)..(key, *rev), |_, _| false)?;
        let is_tombstone = hist.get((key, *rev))?.is_some_and(|row| row.value().1 == 0);
        if is_tombstone {
            hist.remove((key, *rev))?;
        }
    }
    log.retain_in(..=(upto, u32::MAX), |_, _| false)?;
    txn.open_table(META)?.insert("compacted", upto)?;
    Ok(())
}

/// Fills an empty store with keys as they stood elsewhere, revisions kept. History before `rev` is unknown, hence compacted.
pub fn load(txn: &WriteTransaction, kvs: &[KeyValue], rev: Option<MetaRev>) -> FaultResult<i64> {
    let marks = marks_in(txn)?;
    let mut head = txn.open_table(HEAD)?;
    let is_used = marks.rev != FIRST_REV || head.first()?.is_some();
    if is_used {
        return Err(Fault::NotEmpty(marks.rev));
    }
    let newest = kvs.iter().map(|kv| kv.mod_rev.0).max().unwrap_or(FIRST_REV);
    let rev = rev.map_or(newest, |r| r.0.max(newest)).max(FIRST_REV);
    for kv in kvs {
        head.insert(
            kv.key.0.as_ref(),
            (
                kv.create_rev.0,
                kv.mod_rev.0,
                kv.version,
                kv.lease,
                kv.value.as_ref(),
            ),
        )?;
    }
    let mut meta = txn.open_table(META)?;
    meta.insert("rev", rev)?;
    meta.insert("compacted", rev)?;
    Ok(rev)
}

/// Every key that was written with a lease: leases end with the writer that granted them.
pub fn leased_keys(txn: &ReadTransaction) -> FaultResult<Vec<MetaKey>> {
    let head = txn.open_table(HEAD)?;
    let mut keys = Vec::new();
    for row in head.iter()? {
        let (key, value) = row?;
        if value.value().3 != 0 {
            keys.push(MetaKey(Bytes::copy_from_slice(key.value())));
        }
    }
    Ok(keys)
}
