//! What is known of a snapshot that Milvus's record has no place for: who made it, since when it is in its state, when it was
//! last verified, whose each pin is. Kept under our own prefix (law 4), each written in the transaction of the change that it is
//! about, and deleted with the snapshot's record. A missing one is never an error: Milvus makes snapshots and pins too.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use crate::engine::error::Result;
use crate::engine::ids::{JobId, KeyPrefix, MetaKey, PinId, SnapshotId, UnixMs};
use crate::engine::meta::{MetaReader, Span, Write};
use crate::engine::plan::execute::Change;
use crate::engine::plan::journal::{Keys, json};

/// Who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The caller's name for the order, if it gave one.
    pub operation: Option<String>,
    /// By this job of ours.
    pub job: JobId,
    /// On behalf of: `user@host pid 123`.
    pub actor: String,
    /// When its record was written.
    pub at: UnixMs,
}

/// Since when the record is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// SnapshotState's number; of use only while the record is still in it.
    pub state: i32,
    /// When it came into it.
    pub at: UnixMs,
}

/// Whose a pin is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinNote {
    /// Who needs the snapshot, as the operator said.
    pub owner: String,
    /// What for; may be empty.
    pub reason: String,
    /// When it was made.
    pub at: UnixMs,
    /// Who gave the order: `user@host pid 123`.
    pub actor: String,
    /// The job that made it.
    pub job: JobId,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When.
    pub at: UnixMs,
    /// By this job of ours.
    pub job: Option<JobId>,
    /// Rows were counted and files opened too.
    pub deep: bool,
    /// Segments.
    pub segments: u64,
    /// Their rows, deletes not taken off.
    pub rows: i64,
    /// Objects they refer to.
    pub objects: u64,
    /// Bytes of those that are there.
    pub bytes: u64,
    /// Whether sizes were compared with those at the creation: only snapshots of ours record them.
    pub sized: bool,
    /// How many things are wrong.
    pub wrong: u64,
    /// The first of them.
    pub problems: Vec<String>,
}

impl Verified {
    /// In one line.
    #[must_use]
    pub fn text(&self) -> String {
        let how = if self.deep { ", deep" } else { "" };
        match self.wrong {
            0 => format!("whole at {}{how}", self.at.utc()),
            n => format!("NOT whole at {}{how}: {n} problems", self.at.utc()),
        }
    }
}

const MADE: &str = "made";
const SINCE: &str = "since";
const VERIFIED: &str = "verified";

/// All notes of one snapshot.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Who made it.
    pub made: Option<Made>,
    /// Since when it is in its state.
    pub since: Option<Since>,
    /// The last verification.
    pub verified: Option<Verified>,
    /// Whose its pins are; some may be of pins that are gone.
    pub pins: BTreeMap<PinId, PinNote>,
    /// Every key, known or not.
    pub keys: Vec<MetaKey>,
}

/// A note that a newer version wrote reads as absent: nothing but words depends on it.
fn note<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

/// Reads all notes of a snapshot.
pub async fn read(meta: &MetaReader, keys: &Keys, id: SnapshotId) -> Result<Notes> {
    let under = keys.under_snapshot(id);
    let page = meta.range_all(&Span::prefix(&under)).await?;
    let mut out = Notes::default();
    for kv in page.kvs {
        let name = String::from_utf8_lossy(&kv.key.0[under.bytes().len()..]).into_owned();
        match name.split_once('/') {
            None if name == MADE => out.made = note(&kv.value),
            None if name == SINCE => out.since = note(&kv.value),
            None if name == VERIFIED => out.verified = note(&kv.value),
            Some(("pin", pin)) => {
                if let (Ok(pin), Some(found)) = (pin.parse(), note(&kv.value)) {
                    out.pins.insert(pin, found);
                }
            }
            _ => {}
        }
        out.keys.push(kv.key);
    }
    Ok(out)
}

/// Who made which snapshot, of all that are known.
pub async fn makers(meta: &MetaReader, keys: &Keys) -> Result<BTreeMap<SnapshotId, Made>> {
    let all: KeyPrefix = keys.snapshots();
    let page = meta.range_all(&Span::prefix(&all)).await?;
    let made = page.kvs.into_iter().filter_map(|kv| {
        let name = std::str::from_utf8(&kv.key.0[all.bytes().len()..]).ok()?;
        let id = name.strip_suffix(MADE)?.strip_suffix('/')?.parse().ok()?;
        Some((id, note(&kv.value)?))
    });
    Ok(made.collect())
}

/// Says who made it, in the transaction that writes its record.
pub(super) fn made(cx: &JobCx, id: SnapshotId, operation: Option<&str>) -> Result<Write> {
    let made = Made {
        operation: operation.map(str::to_owned),
        job: cx.job,
        actor: cx.actor().to_owned(),
        at: cx.clock.now(),
    };
    Ok(Write::put(cx.keys().snapshot_note(id, MADE), json(&made)?))
}

/// Says since when it is in `state`, in the transaction that sets it.
pub(super) fn since(cx: &JobCx, id: SnapshotId, state: i32) -> Result<Write> {
    let at = cx.clock.now();
    let key = cx.keys().snapshot_note(id, SINCE);
    Ok(Write::put(key, json(&Since { state, at })?))
}

/// Keeps what a verification found. The last one counts.
pub(super) fn verified(cx: &JobCx, id: SnapshotId, found: &Verified) -> Result<Write> {
    Ok(Write::put(
        cx.keys().snapshot_note(id, VERIFIED),
        json(found)?,
    ))
}

/// Says whose a pin is, in the transaction that puts it on.
pub(super) fn pinned(cx: &JobCx, id: SnapshotId, pin: PinId, of: &PinNote) -> Result<Write> {
    Ok(Write::put(cx.keys().pin_note(id, pin), json(of)?))
}

/// Notes that fit the transaction which deletes the record.
const TOGETHER: usize = 40;

/// The deletes of all notes, for the transaction that deletes the record. More than it can hold are deleted right away: pins can
/// be many, and the record must not stay because of them.
pub(super) async fn forget(cx: &JobCx, id: SnapshotId) -> Result<Vec<Write>> {
    let mut keys = read(&cx.meta, cx.keys(), id).await?.keys;
    let rest = keys.split_off(keys.len().min(TOGETHER));
    for some in rest.chunks(TOGETHER) {
        // Named after what it deletes: what is left after a crash is another change.
        let first = some.first().map(MetaKey::text).unwrap_or_default();
        let name = first.rsplit('/').next().unwrap_or_default();
        cx.commit(Change {
            name: format!("notes-{name}"),
            writes: some.iter().cloned().map(Write::Delete).collect(),
            atomic: true,
            ..Change::default()
        })
        .await?;
    }
    Ok(keys.into_iter().map(Write::Delete).collect())
}
