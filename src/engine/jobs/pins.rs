//! Pins of a snapshot (`spec/snapshot.md` §3.8): in its own record, where Milvus looks, patched so that every other field stays as
//! it is (law 1). Milvus does not say whose a pin is; our own notes do, and the records of jobs that pin.

use std::collections::BTreeSet;

use super::snapshot_notes::{self, PinNote};
use super::source::family_of;
use crate::engine::clock::Entropy;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Family;
use crate::engine::format::pb::data::{
    CopySegmentJob, CopySegmentJobState, ExportSnapshotJob, ExportSnapshotJobState, SnapshotInfo,
};
use crate::engine::format::wire::Patch;
use crate::engine::ids::{PinId, SnapshotId, UnixMs};
use crate::engine::meta::{KeyValue, MetaReader};
use crate::engine::model::data::Pin;
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::journal::{JobRecord, Keys};
use crate::engine::profile::Roots;

/// Tags of `SnapshotInfo`.
const PINS: u32 = 11;
const PIN_EXPIRY: u32 = 12;
/// Tries against others that change the record at the same time.
pub(super) const TRIES: u32 = 8;

/// A new id: 63 random bits, never 0 (§3.8).
pub(super) fn draw(entropy: &dyn Entropy) -> PinId {
    PinId(i64::try_from(entropy.next_u64() >> 1).unwrap_or(1).max(1))
}

/// All pins of a record, those whose time is over too. An end that is not positive is none.
#[must_use]
pub fn of(info: &SnapshotInfo) -> Vec<Pin> {
    let end = |pin: i64| info.pin_expire_at_ms.get(&pin).copied();
    let pin = |id: &i64| Pin {
        id: PinId(*id),
        expires: end(*id).filter(|at| *at > 0).map(UnixMs),
    };
    info.pin_ids.iter().map(pin).collect()
}

/// The record with the pin on it, or with its end moved. `until`: `None` = it stays until it is taken off.
pub(super) fn put_on(kv: &KeyValue, pin: PinId, until: Option<UnixMs>) -> Result<Vec<u8>> {
    let mut patch = Patch::parse(&kv.value)?;
    let mut pins = known(&patch, kv)?;
    let id = pin.0.cast_unsigned();
    if !pins.contains(&id) {
        pins.push(id);
        patch.set_packed(PINS, &pins);
    }
    match until {
        Some(until) => patch.set_map_integer(PIN_EXPIRY, id, until.0.cast_unsigned()),
        None => patch.remove_map_integer(PIN_EXPIRY, id),
    }
    Ok(patch.finish())
}

/// The record without these pins; `None` when it has none of them.
pub(super) fn take_off(kv: &KeyValue, gone: &BTreeSet<PinId>) -> Result<Option<Vec<u8>>> {
    let mut patch = Patch::parse(&kv.value)?;
    let pins = known(&patch, kv)?;
    let is_gone = |id: &u64| gone.contains(&PinId(id.cast_signed()));
    if !pins.iter().any(is_gone) {
        return Ok(None);
    }
    let rest: Vec<u64> = pins.into_iter().filter(|id| !is_gone(id)).collect();
    patch.set_packed(PINS, &rest);
    for pin in gone {
        patch.remove_map_integer(PIN_EXPIRY, pin.0.cast_unsigned());
    }
    Ok(Some(patch.finish()))
}

fn known(patch: &Patch<'_>, kv: &KeyValue) -> Result<Vec<u64>> {
    patch.packed(PINS).ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!("pins of {} cannot be read", kv.key),
        )
        .fix("look at the key's raw value: field 11 is not a list of integers")
    })
}

/// Who put a pin on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Somebody who said so.
    Owner(PinNote),
    /// A job: in words, and whether it has not ended.
    Job(String, bool),
    /// Nobody knows: Milvus does not record it.
    Unknown,
}

impl By {
    /// In words.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Owner(note) => &note.owner,
            Self::Job(words, _) => words,
            Self::Unknown => "unknown",
        }
    }

    /// What for.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Owner(note) => &note.reason,
            Self::Job(_, true) => "reads the snapshot",
            Self::Job(_, false) => "left behind by a job that has ended",
            Self::Unknown => "",
        }
    }

    /// Taking it off may pull the snapshot away from under somebody: nobody said who needs it, or a job reads it now.
    #[must_use]
    pub const fn is_foreign(&self) -> bool {
        matches!(self, Self::Unknown | Self::Job(_, true))
    }
}

/// A pin with who put it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The pin.
    pub pin: Pin,
    /// Who.
    pub by: By,
}

/// Whose pins may be, read once for any number of snapshots.
pub struct Pinners {
    jobs: Vec<(PinId, String, bool)>,
}

impl Pinners {
    /// Reads the jobs that pin: ours, and Milvus's restores and exports.
    pub async fn read(meta: &MetaReader, roots: &Roots) -> Result<Self> {
        let mut jobs = Vec::new();
        // Ours first: a restore or an export of ours leaves a record of Milvus's kind too, with the same pin.
        for kv in super::runner::records(meta, &Keys::new(roots)).await?.0 {
            let Ok(job) = serde_json::from_slice::<JobRecord>(&kv.value) else {
                continue;
            };
            let pin = job
                .machine
                .get("pin")
                .and_then(|pin| pin.get("id")?.as_i64());
            if let (JobKind::Restore | JobKind::Export, Some(pin)) = (job.kind, pin) {
                let words = format!("job {}: {}", job.id, job.title);
                jobs.push((PinId(pin), words, !job.state.ended()));
            }
        }
        for (_, job) in family_of::<CopySegmentJob>(meta, roots, Family::CopySegmentJob).await? {
            let open = !matches!(
                job.state(),
                CopySegmentJobState::CopySegmentJobCompleted
                    | CopySegmentJobState::CopySegmentJobFailed
            );
            let words = format!("restore job {} of Milvus", job.job_id);
            jobs.push((PinId(job.pin_id), words, open));
        }
        for (_, job) in
            family_of::<ExportSnapshotJob>(meta, roots, Family::ExportSnapshotJob).await?
        {
            let open = !matches!(
                job.state(),
                ExportSnapshotJobState::ExportSnapshotJobCompleted
                    | ExportSnapshotJobState::ExportSnapshotJobFailed
            );
            let words = format!("export job {} of Milvus", job.job_id);
            jobs.push((PinId(job.pin_id), words, open));
        }
        Ok(Self { jobs })
    }

    /// The pins of a snapshot, with who put them on.
    pub async fn held(
        &self,
        meta: &MetaReader,
        roots: &Roots,
        info: &SnapshotInfo,
    ) -> Result<Vec<Held>> {
        let notes = snapshot_notes::read(meta, &Keys::new(roots), SnapshotId(info.id)).await?;
        let held = of(info).into_iter().map(|pin| Held {
            pin,
            by: self.by(pin.id, &notes),
        });
        Ok(held.collect())
    }

    fn by(&self, pin: PinId, notes: &snapshot_notes::Notes) -> By {
        if let Some(note) = notes.pins.get(&pin) {
            return By::Owner(note.clone());
        }
        let job = self.jobs.iter().find(|(id, ..)| *id == pin);
        job.map_or(By::Unknown, |(_, words, open)| {
            By::Job(words.clone(), *open)
        })
    }
}

/// The pins of a snapshot, with who put them on.
pub async fn held(meta: &MetaReader, roots: &Roots, info: &SnapshotInfo) -> Result<Vec<Held>> {
    if info.pin_ids.is_empty() {
        return Ok(Vec::new());
    }
    Pinners::read(meta, roots)
        .await?
        .held(meta, roots, info)
        .await
}

/// A pin in words: whose, and how long.
#[must_use]
pub fn words(held: &Held, now: UnixMs) -> String {
    format!(
        "pin {} of {}, {}",
        held.pin.id,
        held.by.text(),
        held.pin.left(now)
    )
}
