//! Moving objects aside instead of deleting them, so that no crash loses one.
//!
//! The record comes first, then for each batch the index file that says what is to move, then object by object: copy, compare the
//! size, delete the original. At any moment an object is in its own place, aside, or both; a step that is taken again finds which.

use std::collections::BTreeMap;

use futures::TryStreamExt;

use super::cx::JobCx;
use super::restore::reads;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, JobId, MetaRev, ObjectKey, UnixMs};
use crate::engine::meta::{KeyValue, MetaReader, Write};
use crate::engine::model::gc::is_fresh;
use crate::engine::model::orphans::{ByPrefix, Tally, prefix, sum};
use crate::engine::model::quarantine::{Entry, KEEP_DAYS, Quarantine, Yard};
use crate::engine::objects::{ObjectMeta, ObjectRead, Origin};
use crate::engine::plan::execute::Change;
use crate::engine::plan::journal::{Keys, from_json, json};
use crate::engine::profile::Roots;

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is aside, or deleted; so many bytes.
    Done(u64),
    /// Somebody else has taken it.
    Missing,
    /// It stays, because of this: not what was listed any more, or it cannot be moved.
    Stays(String),
}

/// Milliseconds that a store may round a time by: HTTP headers carry whole seconds, listings do not.
const ROUNDED: i64 = 1_000;

/// Opens the record, before anything moves.
pub async fn open(cx: &JobCx, title: &str, collection: Option<CollectionId>) -> Result<()> {
    let record = Quarantine {
        job: cx.job,
        title: title.to_owned(),
        actor: cx.actor().to_owned(),
        collection,
        opened: cx.clock.now(),
        closed: None,
        objects: 0,
        bytes: 0,
        restored: 0,
    };
    let key = cx.keys().quarantine(cx.job);
    if cx.meta.get(&key).await?.is_some() {
        return Ok(());
    }
    let change = Change {
        name: "quarantine-open".into(),
        writes: vec![Write::put(key, json(&record)?)],
        ..Change::default()
    };
    cx.commit_own(change).await.map(drop)
}

/// Closes the record with what lies there; without anything there and without an index it goes.
pub async fn close(cx: &JobCx, yard: &Yard) -> Result<Tally> {
    let there = lying(&cx.objects, yard, cx.job).await?;
    let key = cx.keys().quarantine(cx.job);
    let Some(kv) = cx.meta.get(&key).await? else {
        return Ok(there);
    };
    let mut record: Quarantine = from_json(&key, &kv.value)?;
    let indexes = reads(cx).list(&yard.indexes(cx.job)).await?;
    let write = if there.objects == 0 && indexes.is_empty() {
        Write::Delete(key)
    } else {
        record.objects = there.objects;
        record.bytes = there.bytes;
        // A step that is taken again must write what it wrote before.
        record.closed = Some(record.closed.unwrap_or_else(|| cx.clock.now()));
        Write::put(key, json(&record)?)
    };
    let change = Change {
        name: "quarantine-close".into(),
        writes: vec![write],
        ..Change::default()
    };
    cx.commit_own(change).await?;
    Ok(there)
}

/// What a job has lying aside: the listing is the truth.
pub async fn lying(objects: &ObjectRead, yard: &Yard, job: JobId) -> Result<Tally> {
    let mut listed = objects.list(&yard.job(job), None);
    let mut out = Tally::default();
    while let Some(object) = listed.try_next().await? {
        out.add(object.size);
    }
    Ok(out)
}

/// Whether an index file of the job is in this bucket: then it is the one that the job began in.
pub async fn has_index(cx: &JobCx, yard: &Yard) -> Result<bool> {
    let mut listed = cx.objects.list(&yard.indexes(cx.job), None);
    Ok(listed.try_next().await?.is_some())
}

/// The record of a job, as it stands now.
pub async fn record(meta: &MetaReader, keys: &Keys, job: JobId) -> Result<(Quarantine, KeyValue)> {
    let key = keys.quarantine(job);
    let kv = meta.get(&key).await?.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("job {job} has nothing in quarantine"),
        )
        .fix("list what there is: falconer quarantine list")
    })?;
    let record = from_json(&key, &kv.value)?;
    Ok((record, kv))
}

/// The record of a job and its revision; what lies in the bucket when there is no record: metadata that was put back from a backup has
/// none, and what was moved aside must not be lost for that.
pub async fn found(
    meta: &MetaReader,
    objects: &ObjectRead,
    keys: &Keys,
    job: JobId,
) -> Result<(Quarantine, MetaRev)> {
    let missing = match record(meta, keys, job).await {
        Ok((record, kv)) => return Ok((record, kv.mod_rev)),
        Err(e) if e.kind() == ErrorKind::NotFound => e,
        Err(e) => return Err(e),
    };
    let there = lying(objects, &Yard::of(objects.root()), job).await?;
    if there.objects == 0 {
        return Err(missing);
    }
    let lost = Quarantine {
        job,
        title: "its record is gone".into(),
        actor: "unknown".into(),
        collection: None,
        opened: UnixMs(0),
        closed: Some(UnixMs(0)),
        objects: there.objects,
        bytes: there.bytes,
        restored: 0,
    };
    Ok((lost, MetaRev(0)))
}

/// Names shown of what lies there.
const NAMED: usize = 200;

/// The record of a job, what lies there by prefix, and some of the names.
pub async fn tree(
    meta: &MetaReader,
    objects: &ObjectRead,
    roots: &Roots,
    job: JobId,
) -> Result<serde_json::Value> {
    let (record, rev) = found(meta, objects, &Keys::new(roots), job).await?;
    let is_known = rev > MetaRev(0);
    let yard = Yard::of(objects.root());
    let (mut by, mut names) = (ByPrefix::new(), Vec::new());
    let mut listed = objects.list(&yard.job(job), None);
    while let Some(object) = listed.try_next().await? {
        let Some(original) = yard.original(job, &object.key) else {
            continue;
        };
        let prefix = prefix(objects.root(), &original).to_owned();
        by.entry(prefix).or_default().add(object.size);
        if names.len() < NAMED {
            names.push(original.0);
        }
    }
    let all = sum(by.values());
    Ok(serde_json::json!({
        "job": record.job,
        "title": record.title,
        "actor": record.actor,
        "moved_from": is_known.then(|| record.opened.utc()),
        "moved_until": record.closed.filter(|_| is_known).map(UnixMs::utc),
        "purged_after_7_days_from": record.due(KEEP_DAYS).filter(|_| is_known).map(UnixMs::utc),
        "lies_under": yard.job(job),
        "objects": all.objects,
        "bytes": all.bytes,
        "restored": record.restored,
        "by_prefix": by,
        "names": names,
        "names_left_out": all.objects.saturating_sub(NAMED as u64),
    }))
}

/// Writes an index file. What an earlier try of the same step wrote stays in it: that may have been moved already.
pub async fn put_index(cx: &JobCx, yard: &Yard, name: &str, entries: &[Entry]) -> Result<()> {
    let key = yard.index(cx.job, name);
    let mut all: BTreeMap<ObjectKey, Entry> = read_index(&cx.objects, &key)
        .await?
        .into_iter()
        .map(|e| (e.key.clone(), e))
        .collect();
    all.extend(entries.iter().map(|e| (e.key.clone(), e.clone())));
    let mut bytes = Vec::new();
    for entry in all.values() {
        bytes.extend_from_slice(&json(entry)?);
        bytes.push(b'\n');
    }
    cx.put_object(&key, bytes.into()).await
}

/// Reads one; empty when there is none.
pub async fn read_index(objects: &ObjectRead, key: &ObjectKey) -> Result<Vec<Entry>> {
    let bytes = match objects.get(key).await {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            serde_json::from_slice(line).map_err(|e| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("index file {key} cannot be read"),
                )
                .caused_by(e)
                .fix("the objects themselves are listed by: falconer quarantine list JOB")
            })
        })
        .collect()
}

/// Size, tag and time; `None` when it is not there.
pub async fn look(cx: &JobCx, key: &ObjectKey) -> Result<Option<ObjectMeta>> {
    match cx.objects.head(key).await {
        Ok(there) => Ok(Some(there)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// An object as a copy begins.
pub fn origin(of: &ObjectMeta) -> Origin<'_> {
    Origin {
        key: &of.key,
        size: of.size,
        etag: of.etag.as_deref(),
    }
}

/// Why an object is not the one that was listed.
fn differs(now: &ObjectMeta, entry: &Entry) -> Option<String> {
    let tags = (&now.etag, &entry.etag);
    let same = now.size == entry.size
        && !matches!(tags, (Some(a), Some(b)) if a != b)
        && now.modified.0 <= entry.modified.0.saturating_add(ROUNDED);
    (!same).then(|| format!("{} was written again since it was listed", entry.key))
}

/// Whether the job as a whole has to stop: the fence, the order to stop, a store that does not answer or lets nobody in.
fn ends(e: &Error) -> bool {
    e.is_transient()
        || matches!(
            e.kind(),
            ErrorKind::Fenced
                | ErrorKind::Cancelled
                | ErrorKind::OutcomeUnknown
                | ErrorKind::Denied
        )
}

/// Moves one object aside. May be called again after a crash at any point.
pub async fn aside(cx: &JobCx, yard: &Yard, entry: &Entry) -> Result<Outcome> {
    let to = yard.aside(cx.job, &entry.key);
    let Some(there) = look(cx, &entry.key).await? else {
        return gone(cx, yard, entry).await;
    };
    if let Some(why) = differs(&there, entry) {
        // What was listed lies aside since an earlier try, and something else stands in its place: both stay.
        return Ok(match look(cx, &to).await? {
            Some(kept) => Outcome::Done(kept.size),
            None => Outcome::Stays(why),
        });
    }
    cx.paced(there.size).await?;
    if let Err(e) = cx.copy_object(&cx.objects, origin(&there), &to).await {
        if ends(&e) {
            return Err(e);
        }
        leave(cx, yard, entry).await?;
        return Ok(Outcome::Stays(e.to_string()));
    }
    // The copy stands and was compared: only now may the original go.
    cx.delete_object(&entry.key).await?;
    Ok(Outcome::Done(entry.size))
}

/// An object that is not in its place: aside since an earlier try, or nowhere.
async fn gone(cx: &JobCx, yard: &Yard, entry: &Entry) -> Result<Outcome> {
    let kept = look(cx, &yard.aside(cx.job, &entry.key)).await?;
    Ok(kept.map_or(Outcome::Missing, |kept| Outcome::Done(kept.size)))
}

/// Finds out what an earlier try did, and moves nothing: an object that is in its place stays, without a second one aside.
pub async fn settle(cx: &JobCx, yard: &Yard, entry: &Entry) -> Result<Outcome> {
    match look(cx, &entry.key).await? {
        Some(there) if differs(&there, entry).is_none() => {
            leave(cx, yard, entry).await?;
            Ok(Outcome::Stays("it was not moved".into()))
        }
        Some(_) => {
            let kept = look(cx, &yard.aside(cx.job, &entry.key)).await?;
            let stays = || Outcome::Stays("it was written again".into());
            Ok(kept.map_or_else(stays, |kept| Outcome::Done(kept.size)))
        }
        None => gone(cx, yard, entry).await,
    }
}

/// The object stays in its place: a copy that an earlier try made goes, if the object is still the one that was copied.
async fn leave(cx: &JobCx, yard: &Yard, entry: &Entry) -> Result<()> {
    let to = yard.aside(cx.job, &entry.key);
    let there = look(cx, &entry.key).await?;
    if there.is_some_and(|there| differs(&there, entry).is_none()) && look(cx, &to).await?.is_some()
    {
        cx.delete_object(&to).await?;
    }
    Ok(())
}

/// Deletes one object for good.
pub async fn destroy(cx: &JobCx, entry: &Entry) -> Result<Outcome> {
    // What is gone was deleted by an earlier try: it was there when the index was written.
    let Some(there) = look(cx, &entry.key).await? else {
        return Ok(Outcome::Done(entry.size));
    };
    if let Some(why) = differs(&there, entry) {
        return Ok(Outcome::Stays(why));
    }
    cx.paced(0).await?;
    match cx.delete_object(&entry.key).await {
        Ok(_) => Ok(Outcome::Done(entry.size)),
        Err(e) if ends(&e) => Err(e),
        Err(e) => Ok(Outcome::Stays(e.to_string())),
    }
}

/// What became of the objects of one thing.
pub enum Aside {
    /// All that exist are aside.
    All(Tally),
    /// One stays, for this reason.
    Stays(String),
    /// The listing that they were judged by is too old.
    TooOld,
}

/// Moves everything of one collected thing aside, under an index file of that name. What was moved, or why one of them could not be.
pub async fn all_aside(
    cx: &JobCx,
    yard: &Yard,
    name: &str,
    rule: &str,
    objects: &[ObjectKey],
    began: UnixMs,
) -> Result<Aside> {
    let mut entries = Vec::with_capacity(objects.len());
    for key in objects {
        if let Some(there) = look(cx, key).await? {
            entries.push(Entry {
                key: key.clone(),
                size: there.size,
                etag: there.etag,
                modified: there.modified,
                rule: rule.to_owned(),
            });
        }
    }
    if entries.is_empty() {
        return Ok(Aside::All(Tally::default()));
    }
    put_index(cx, yard, name, &entries).await?;
    let mut moved = Tally::default();
    for entry in &entries {
        // Each waits for its turn; a verdict of an old listing is worth nothing.
        if !is_fresh(began, cx.clock.now()) {
            return Ok(Aside::TooOld);
        }
        match aside(cx, yard, entry).await? {
            Outcome::Done(bytes) => moved.add(bytes),
            Outcome::Missing => {}
            Outcome::Stays(why) => return Ok(Aside::Stays(why)),
        }
    }
    Ok(Aside::All(moved))
}
