//! The snapshots of the demo, and what two dead processes left of theirs.

use prost::Message;

use super::scene::Cast;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb::data::{SnapshotInfo, SnapshotState};
use crate::engine::format::wire::Patch;
use crate::engine::ids::{CollectionId, ObjectKey, SegmentId, SnapshotId, UnixMs};
use crate::engine::jobs::cx::JobCx;
use crate::engine::meta::{Cond, KeyValue, Span, Write};
use crate::engine::plan::Intent;
use crate::engine::plan::execute::Change;

const MINUTE: i64 = 60_000;
/// Its creator died so long ago; after 60 minutes garbage collection takes it (`spec/snapshot.md` §6.3).
const HALF_MADE_AGO: i64 = 20 * MINUTE;
const PINNED_FOR: i64 = 6 * 60 * MINUTE;
/// Name of the snapshot that nobody finished.
const HALF_MADE: &str = "before_upgrade";

/// Whose snapshot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// `analytics.metrics`
    Metrics,
    /// `analytics.books`
    Books,
    /// `default.images`
    Images,
}

/// A snapshot that a real job makes.
pub struct Wanted {
    /// Its name.
    pub name: &'static str,
    of: Of,
    description: &'static str,
    protection_secs: u64,
}

/// The first is restored and pinned, the last is half dropped.
pub const SNAPSHOTS: [Wanted; 3] = [
    Wanted {
        name: "nightly",
        of: Of::Metrics,
        description: "every night, kept from compaction for a week",
        protection_secs: 7 * 86_400,
    },
    Wanted {
        name: "release_1",
        of: Of::Books,
        description: "what release 1 went out with",
        protection_secs: 0,
    },
    Wanted {
        name: "last_week",
        of: Of::Images,
        description: "no longer needed",
        protection_secs: 0,
    },
];

impl Wanted {
    /// What an operator would want.
    pub fn intent(&self, cast: &Cast) -> Intent {
        Intent::CreateSnapshot {
            collection: self.of.collection(cast),
            name: self.name.into(),
            description: self.description.into(),
            protection_secs: self.protection_secs,
            operation: None,
        }
    }
}

impl Of {
    fn collection(self, cast: &Cast) -> CollectionId {
        match self {
            Self::Metrics => cast.metrics,
            Self::Books => cast.books,
            Self::Images => cast.images,
        }
    }
}

/// A snapshot's record by name.
pub async fn record(cx: &JobCx, cast: &Cast, name: &str) -> Result<(SnapshotId, KeyValue)> {
    let gone = || {
        Error::new(
            ErrorKind::NotFound,
            format!("snapshot {name} of the demo is gone"),
        )
    };
    let wanted = SNAPSHOTS.iter().find(|w| w.name == name).ok_or_else(gone)?;
    let under = Family::Snapshot.under(&cx.roots, &[wanted.of.collection(cast).0]);
    let page = cx.meta.range_all(&Span::prefix(&under)).await?;
    for kv in page.kvs {
        if let Ok(info) = SnapshotInfo::decode(kv.value.clone())
            && info.name == name
        {
            return Ok((SnapshotId(info.id), kv));
        }
    }
    Err(gone())
}

/// One edit of a record that stands.
async fn edit(cx: &JobCx, name: &str, kv: &KeyValue, value: Vec<u8>) -> Result<()> {
    cx.commit(Change {
        name: name.into(),
        conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
        writes: vec![Write::put(kv.key.clone(), value)],
        atomic: true,
    })
    .await?;
    Ok(())
}

/// Somebody reads the first snapshot: it cannot be dropped (`spec/snapshot.md` §3.8).
pub async fn pin(cx: &JobCx, cast: &Cast, now: UnixMs) -> Result<()> {
    let (_, kv) = record(cx, cast, SNAPSHOTS[0].name).await?;
    let mut patch = Patch::parse(&kv.value)?;
    let mut pins = patch.packed(11).unwrap_or_default();
    let pin = cast.pin.cast_unsigned();
    if pins.contains(&pin) {
        return Ok(());
    }
    pins.push(pin);
    patch.set_packed(11, &pins);
    patch.set_map_integer(12, pin, (now.0 + PINNED_FOR).cast_unsigned());
    edit(cx, "pin", &kv, patch.finish()).await
}

/// As a creator leaves it that died before its second put: the record PENDING, one manifest of several, no metadata JSON
/// (`spec/snapshot.md` §3.2).
pub async fn pending(cx: &JobCx, cast: &Cast, now: UnixMs) -> Result<()> {
    let (id, kv) = record(cx, cast, SNAPSHOTS[2].name).await?;
    let mut patch = Patch::parse(&kv.value)?;
    patch.set_bytes(1, HALF_MADE.as_bytes());
    patch.set_integer(2, cast.pending.cast_unsigned());
    patch.set_bytes(3, b"its creator died");
    patch.set_bytes(7, b"");
    patch.set_integer(8, SnapshotState::Pending as u64);
    patch.set_integer(9, (now.0 - HALF_MADE_AGO).cast_unsigned());
    let half_made = SnapshotId(cast.pending);
    let key = Key::Snapshot(cast.images, half_made).to_key(&cx.roots);
    cx.commit(Change {
        name: "pending".into(),
        conds: vec![Cond::Absent(key.clone())],
        writes: vec![Write::put(key, patch.finish())],
        atomic: true,
    })
    .await?;
    let manifests = manifests(cx, cast.images, id).await?;
    if let Some((from, segment)) = manifests.first() {
        let to = ObjPath::SnapshotManifest(cast.images, half_made, *segment);
        let manifest = cx.objects.get(from).await?;
        cx.put_object(&to.to_key(cx.objects.root()), manifest)
            .await?;
    }
    Ok(())
}

/// As a dropper leaves it that died on its way: the record DELETING, the first manifest gone, the rest still there
/// (`spec/snapshot.md` §3.5).
pub async fn deleting(cx: &JobCx, cast: &Cast) -> Result<()> {
    let (id, kv) = record(cx, cast, SNAPSHOTS[2].name).await?;
    let mut patch = Patch::parse(&kv.value)?;
    if patch.integer(8) != Some(SnapshotState::Deleting as u64) {
        // Listed while nothing is deleted: the step may run twice, and only one manifest may go.
        patch.set_integer(8, SnapshotState::Deleting as u64);
        edit(cx, "deleting", &kv, patch.finish()).await?;
    }
    let manifests = manifests(cx, cast.images, id).await?;
    if manifests.len() > 1
        && let Some((first, _)) = manifests.first()
    {
        cx.delete_object(first).await?;
    }
    Ok(())
}

/// The manifests that a committed snapshot lists, in its order.
async fn manifests(
    cx: &JobCx,
    of: CollectionId,
    id: SnapshotId,
) -> Result<Vec<(ObjectKey, SegmentId)>> {
    use futures::StreamExt;
    let root = cx.objects.root();
    let any = ObjPath::SnapshotManifest(of, id, SegmentId(0)).to_key(root);
    let folder = any.0.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut listing = cx.objects.list(&ObjectKey(folder.to_owned()), None);
    let mut out = Vec::new();
    while let Some(object) = listing.next().await {
        let key = object?.key;
        if let Some(ObjPath::SnapshotManifest(_, _, segment)) = ObjPath::parse(root, &key.0).known()
        {
            out.push((key, segment));
        }
    }
    Ok(out)
}
