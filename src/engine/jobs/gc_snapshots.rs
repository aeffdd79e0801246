//! Collecting what belongs to snapshots: files and record of one that is not wanted any more, and pins whose time is over.

use std::collections::BTreeSet;

use super::belongings::Seen;
use super::cx::JobCx;
use super::gc_collect::{Fate, Removed, collection_gone, forgotten, remove, unmoved};
use super::gc_plan::{Filter, Item};
use super::gc_scan::Scan;
use super::pins;
use super::restore::reads;
use super::snapshot_drop::as_deleting;
use super::snapshot_notes;
use crate::engine::error::{ErrorKind, Result};
use crate::engine::format::paths::ObjPath;
use crate::engine::ids::{CollectionId, ObjectKey, PinId, SnapshotId};
use crate::engine::meta::{Cond, Write};
use crate::engine::model::facts::snapshot_state;
use crate::engine::model::gc::Rule;
use crate::engine::model::orphans::Tally;
use crate::engine::plan::execute::Change;

/// Pins taken off at once, with their notes: they go in one transaction.
const AT_ONCE: usize = 48;

/// One that was never committed, one that is being dropped, or one whose collection is gone.
pub(super) async fn collect(
    cx: &JobCx,
    found: &Scan,
    filter: &Filter,
    item: &Item,
    id: SnapshotId,
    rule: Rule,
) -> Result<Fate> {
    let Some((collection, seen)) = found.snapshots.get(&id) else {
        return Ok(Fate::Kept);
    };
    if !unmoved(cx, std::slice::from_ref(seen)).await? {
        return Ok(Fate::Moved);
    }
    let marked = if rule == Rule::CollectionGone {
        match mark(cx, found, *collection, id, seen).await? {
            Some(seen) => seen,
            None => return Ok(Fate::Moved),
        }
    } else {
        seen.clone()
    };
    files(cx, filter, item, (*collection, id), &marked, rule).await
}

/// Says in its record that it is being dropped, before any of its files goes: whoever finds it half gone knows why. Nothing when it, or
/// its collection, has moved.
async fn mark(
    cx: &JobCx,
    found: &Scan,
    collection: CollectionId,
    id: SnapshotId,
    seen: &Seen,
) -> Result<Option<Seen>> {
    let Some(mut conds) = collection_gone(cx, found, collection).await? else {
        return Ok(None);
    };
    let kv = cx.meta.get(&seen.key).await?;
    let Some(kv) = kv.filter(|kv| kv.mod_rev == seen.rev) else {
        return Ok(None);
    };
    conds.push(Cond::At(kv.key.clone(), kv.mod_rev));
    let change = Change {
        name: format!("gone-{id}-{}", kv.mod_rev),
        conds,
        writes: vec![
            Write::put(kv.key.clone(), as_deleting(&kv)?),
            snapshot_notes::since(cx, id, snapshot_state::DELETING)?,
        ],
        atomic: true,
    };
    let rev = match cx.commit(change).await {
        Ok(done) => done.rev,
        Err(e) if e.kind() == ErrorKind::Conflict => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(Some(Seen { key: kv.key, rev }))
}

/// A snapshot's files by listing, so that nothing needs to be readable; its record last (defect D4).
async fn files(
    cx: &JobCx,
    filter: &Filter,
    item: &Item,
    (collection, id): (CollectionId, SnapshotId),
    seen: &Seen,
    rule: Rule,
) -> Result<Fate> {
    let root = cx.objects.root();
    let json = ObjPath::SnapshotMetadata(collection, id).to_key(root);
    let base = json
        .0
        .strip_suffix(&format!("metadata/{id}.json"))
        .unwrap_or_default()
        .to_owned();
    // The listing ends in a slash: an id that another begins with is another folder.
    let folder = ObjectKey(format!("{base}manifests/{id}"));
    let began = cx.clock.now();
    let mut objects: Vec<ObjectKey> = reads(cx).list(&folder).await?.into_keys().collect();
    objects.retain(|key| {
        matches!(
            ObjPath::parse(root, &key.0).known(),
            Some(ObjPath::SnapshotManifest(c, of, _)) if c == collection && of == id
        )
    });
    objects.push(json);
    let gone = match remove(cx, filter, rule, item, &objects, began).await? {
        Removed::All(gone) => gone,
        Removed::Failed => return Ok(Fate::Failed),
        Removed::TooOld => return Ok(Fate::Moved),
    };
    // Our own notes beside it go before it, so that none is left; nobody has pinned what is being collected.
    let notes = snapshot_notes::forget(cx, id).await?;
    if !notes.is_empty() {
        cx.commit(Change {
            name: format!("notes-of-{id}"),
            writes: notes,
            atomic: true,
            ..Change::default()
        })
        .await?;
    }
    forgotten(cx, item, std::slice::from_ref(seen), Vec::new(), rule, gone).await
}

/// Takes off the pins whose time was over at the cut-off, with our notes on them. The record's revision is the condition: a pin that was
/// put on or renewed meanwhile is looked at again.
pub(super) async fn unpin(cx: &JobCx, found: &Scan, id: SnapshotId, rule: Rule) -> Result<Fate> {
    let Some((_, seen)) = found.snapshots.get(&id) else {
        return Ok(Fate::Kept);
    };
    let over: Vec<PinId> = found.world.expired_pins(id).collect();
    let mut rev = seen.rev;
    for some in over.chunks(AT_ONCE) {
        let kv = cx.meta.get(&seen.key).await?;
        let Some(kv) = kv.filter(|kv| kv.mod_rev == rev) else {
            return Ok(Fate::Moved);
        };
        let some: BTreeSet<PinId> = some.iter().copied().collect();
        let Some(value) = pins::take_off(&kv, &some)? else {
            continue;
        };
        let mut writes = vec![Write::put(kv.key.clone(), value)];
        writes.extend(
            some.iter()
                .map(|pin| Write::Delete(cx.keys().pin_note(id, *pin))),
        );
        let change = Change {
            name: format!("pins-{id}-{rev}"),
            conds: vec![Cond::At(kv.key, rev)],
            writes,
            atomic: true,
        };
        rev = match cx.commit(change).await {
            Ok(done) => done.rev,
            Err(e) if e.kind() == ErrorKind::Conflict => return Ok(Fate::Moved),
            Err(e) => return Err(e),
        };
    }
    Ok(Fate::Collected {
        rule,
        gone: Tally::default(),
    })
}
