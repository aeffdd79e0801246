//! The pin that keeps a snapshot while a restore or an export reads it (`spec/snapshot.md` §3.8): in the snapshot's own record, where
//! Milvus looks, patched so that every other field stays as it is (law 1).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::drive::again;
use super::pins;
use super::restore::reads;
use crate::engine::clock::Entropy;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::pb;
use crate::engine::format::wire::Patch;
use crate::engine::ids::{CollectionId, PinId, SnapshotId, UnixMs};
use crate::engine::meta::{Cond, Write};
use crate::engine::plan::execute::Change;

/// How long a pin lasts without its job.
pub const PIN_TTL: Duration = Duration::from_hours(1);
/// It is renewed when less than this is left.
pub const PIN_RENEW: Duration = Duration::from_mins(40);
/// Between looks whether it is due.
const PIN_LOOK: Duration = Duration::from_mins(1);
/// How long a job that is stuck waits for its operator, and its pin with it.
pub const PIN_STUCK: Duration = Duration::from_hours(24);

/// A pin of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPin {
    /// Its id: 63 random bits (`spec/snapshot.md` §3.8).
    pub id: i64,
    /// When it ends.
    pub until: UnixMs,
}

impl HeldPin {
    /// A new one.
    #[must_use]
    pub fn draw(entropy: &dyn Entropy, now: UnixMs) -> Self {
        Self {
            id: pins::draw(entropy).0,
            until: in_ms(now, PIN_TTL),
        }
    }

    /// The same for another hour.
    #[must_use]
    pub fn renewed(self, now: UnixMs) -> Self {
        Self {
            until: in_ms(now, PIN_TTL),
            ..self
        }
    }

    /// When a job that is stuck now is taken back.
    #[must_use]
    pub fn until_stuck(now: UnixMs) -> UnixMs {
        in_ms(now, PIN_STUCK)
    }
}

fn in_ms(now: UnixMs, after: Duration) -> UnixMs {
    UnixMs(
        now.0
            .saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)),
    )
}

/// Which snapshot a job reads: what its record lies under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pinned(pub CollectionId, pub SnapshotId);

impl Pinned {
    /// Its record's key.
    pub fn key(self) -> Key {
        Key::Snapshot(self.0, self.1)
    }

    /// Its record is not there any more.
    pub fn gone(self) -> Error {
        Error::new(ErrorKind::NotFound, format!("{self} is gone")).fix("choose another snapshot")
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot {} of collection {}", self.1, self.0)
    }
}

/// Adds the pin to the snapshot's record, or renews it; every other field stays as it is (law 1).
pub(super) async fn set_pin(cx: &JobCx, of: Pinned, pin: HeldPin) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_set(cx, of, pin).await {
            // Another pin came or went: look again. A snapshot that is being dropped answers with an error of its own.
            Err(e)
                if e.kind() == ErrorKind::Conflict
                    && e.context(MOVED).is_some()
                    && tries < pins::TRIES => {}
            done => return done,
        }
    }
}

async fn try_set(cx: &JobCx, of: Pinned, pin: HeldPin) -> Result<()> {
    let kv = reads(cx).record(&of.key()).await?;
    let kv = kv.ok_or_else(|| of.gone())?;
    let patch = Patch::parse(&kv.value)?;
    let committed = patch.integer(8).unwrap_or(0);
    if committed != 0 && committed != pb::data::SnapshotState::Committed as u64 {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("{of} is not committed: it is being created or dropped"),
        )
        .fix("choose another snapshot"));
    }
    let value = pins::put_on(&kv, PinId(pin.id), Some(pin.until))?;
    cx.commit(Change {
        name: format!("pin-{}", pin.until.0),
        conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
        writes: vec![Write::put(kv.key.clone(), value)],
        atomic: true,
    })
    .await
    .map_err(moved)?;
    Ok(())
}

/// Context of a conflict that is worth another look.
const MOVED: &str = "moved";

fn moved(e: Error) -> Error {
    if e.kind() == ErrorKind::Conflict {
        e.with(MOVED, "snapshot record")
    } else {
        e
    }
}

/// Renews the pin when it is due, and answers how it stands. The new end is in the change's name, so that a repeated renewal is a new
/// change.
pub(super) async fn keep_pin(
    cx: &JobCx,
    of: Pinned,
    pin: Option<HeldPin>,
) -> Result<Option<HeldPin>> {
    Ok(match pin {
        Some(pin) => Some(renew_if_due(cx, of, pin).await?),
        None => None,
    })
}

async fn renew_if_due(cx: &JobCx, of: Pinned, pin: HeldPin) -> Result<HeldPin> {
    let now = cx.clock.now();
    if pin.until.since(now) > PIN_RENEW.as_millis() as u64 {
        return Ok(pin);
    }
    let renewed = pin.renewed(now);
    set_pin(cx, of, renewed).await?;
    Ok(renewed)
}

/// Does `work`, and renews the pin meanwhile: the copy of one large object may take longer than a pin lasts. A snapshot that is gone,
/// or dropped, ends the work. `pin` is true in every case.
pub(super) async fn while_pinned<T>(
    cx: &JobCx,
    of: Pinned,
    pin: &mut Option<HeldPin>,
    work: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = cx.clock.sleep(PIN_LOOK) => {}
        }
        let Some(held) = *pin else { continue };
        tokio::select! {
            biased;
            // Not awaited any more: it is renewed once more, or not; whoever takes the pin off finds it either way.
            done = &mut work => return done,
            renewed = renew_if_due(cx, of, held) => match renewed {
                Ok(renewed) => *pin = Some(renewed),
                // Not now: there are many more looks before it ends.
                Err(e) if again(&e) => {}
                Err(e) => return Err(e),
            },
        }
    }
}

/// Removes the pin. A snapshot that is gone needs none.
pub(super) async fn release_pin(cx: &JobCx, of: Pinned, pin: Option<HeldPin>) -> Result<()> {
    let Some(pin) = pin else {
        return Ok(());
    };
    let mut tries = 0;
    loop {
        tries += 1;
        match try_release(cx, of, pin).await {
            Err(e) if e.kind() == ErrorKind::Conflict && tries < pins::TRIES => {}
            done => return done,
        }
    }
}

async fn try_release(cx: &JobCx, of: Pinned, pin: HeldPin) -> Result<()> {
    let Some(kv) = reads(cx).record(&of.key()).await? else {
        return Ok(());
    };
    let Some(value) = pins::take_off(&kv, &[PinId(pin.id)].into())? else {
        return Ok(());
    };
    cx.commit(Change {
        name: format!("unpin-{}", kv.mod_rev),
        conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
        writes: vec![Write::put(kv.key.clone(), value)],
        atomic: true,
    })
    .await?;
    Ok(())
}
