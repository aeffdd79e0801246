//! Collecting one thing: read again, objects first, record last (law 5).

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::belongings::{Names, Seen, owned};
use super::cx::JobCx;
use super::gc_plan::{Filter, Item};
use super::gc_scan::{Scan, pages};
use super::gc_snapshots;
use super::quarantine::{self, Aside};
use super::restore::reads;
use super::restore_source::hex;
use crate::engine::error::{ErrorKind, Result};
use crate::engine::format::codec::{Decoded, decode};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb;
use crate::engine::ids::{CollectionId, DbId, IndexId, MetaKey, MetaRev, ObjectKey, UnixMs};
use crate::engine::meta::{Cond, Span, Write};
use crate::engine::model::gc::{Rule, Verdict, is_fresh};
use crate::engine::model::orphans::Tally;
use crate::engine::model::quarantine::Yard;
use crate::engine::plan::execute::Change;

/// An item's fate in this pass.
pub(super) enum Fate {
    Collected { rule: Rule, gone: Tally },
    Kept,
    Failed,
    Moved,
}

/// Collects one item, if it still may go.
pub(super) async fn collect(
    cx: &JobCx,
    found: &Scan,
    filter: &Filter,
    item: &Item,
) -> Result<Fate> {
    let Verdict::Collect { rule } = item.verdict(found) else {
        return Ok(Fate::Kept);
    };
    if !filter.takes(rule) {
        return Ok(Fate::Kept);
    }
    match item {
        Item::Segment(_) | Item::Build(_) => owner(cx, found, filter, item, rule).await,
        Item::Index(collection, id) => definition(cx, found, item, (*collection, *id), rule).await,
        Item::Snapshot(id) => gc_snapshots::collect(cx, found, filter, item, *id, rule).await,
        Item::Pins(id) => gc_snapshots::unpin(cx, found, *id, rule).await,
        Item::Checkpoint(channel) => {
            let Some(seen) = found.checkpoints.get(channel) else {
                return Ok(Fate::Kept);
            };
            let Some(collection) = item.collection(found) else {
                return Ok(Fate::Kept);
            };
            // The mark of a dropped channel is of no use without it (§11 rule 1, I11.1).
            let mut mine = vec![seen.clone()];
            mine.extend(found.removed.get(channel).cloned());
            if !unmoved(cx, &mine).await? {
                return Ok(Fate::Moved);
            }
            let Some(mut conds) = collection_gone(cx, found, collection).await? else {
                return Ok(Fate::Moved);
            };
            let segments = Family::Segment.under(&cx.roots, &[collection.0]);
            conds.push(Cond::NoneUnder(segments));
            let left = reads(cx).under(Family::Segment, &[collection.0]).await?;
            if !left.kvs.is_empty() {
                return Ok(Fate::Moved);
            }
            forgotten(cx, item, &mine, conds, rule, Tally::default()).await
        }
    }
}

/// A segment or an index row with everything that it owns.
async fn owner(cx: &JobCx, found: &Scan, filter: &Filter, item: &Item, rule: Rule) -> Result<Fate> {
    let Some(collection) = item.collection(found) else {
        return Ok(Fate::Kept);
    };
    let (mut segments, mut builds) = (BTreeSet::new(), BTreeSet::new());
    match item {
        Item::Segment(id) => drop(segments.insert(*id)),
        Item::Build(id) => drop(builds.insert(*id)),
        _ => return Ok(Fate::Kept),
    }
    // Its records, as they are now; one that has moved since it was judged is not among them.
    let mut mine = owned(&reads(cx), found, &segments, &builds, Names::Keys).await?;
    let mine = match item {
        Item::Segment(id) => mine.segments.remove(id),
        Item::Build(id) => mine.builds.remove(id),
        _ => None,
    };
    let Some(mine) = mine else {
        return Ok(Fate::Moved);
    };
    if let Some(why) = &mine.unreadable {
        cx.note(format!("kept: {item}, because {why}"));
        return Ok(Fate::Kept);
    }
    let judged_by = judged_by(cx, found, item);
    if !all_hold(cx, &judged_by).await? || !same_snapshots(cx, found, collection).await? {
        return Ok(Fate::Moved);
    }
    for key in &mine.strangers {
        cx.note(format!("kept: {key}, which {item} names, is not its own"));
    }
    let root = cx.objects.root();
    let began = cx.clock.now();
    let mut objects: Vec<ObjectKey> = mine.objects.iter().cloned().collect();
    if let Some(folder) = mine.folder {
        let folder = ObjectKey(folder.to_path(root));
        objects.extend(reads(cx).list(&folder).await?.into_keys());
    }
    // A snapshot may name a file of another segment: then this one stays whole.
    let named = objects.iter().find(|key| {
        let path = ObjPath::parse(root, &key.0).known();
        let of = path.map(|path| path.owner()).unwrap_or_default();
        !found.world.held_file(&of, key).is_empty()
    });
    if let Some(key) = named {
        cx.note(format!("kept: {item}, because a snapshot refers to {key}"));
        return Ok(Fate::Kept);
    }
    let gone = match remove(cx, filter, rule, item, &objects, began).await? {
        Removed::All(gone) => gone,
        Removed::Failed => return Ok(Fate::Failed),
        Removed::TooOld => return Ok(Fate::Moved),
    };
    let mut conds = snapshot_conds(cx, found, collection);
    conds.extend(judged_by);
    forgotten(cx, item, &mine.records, conds, rule, gone).await
}

/// A deleted index definition, once no row needs it any more.
async fn definition(
    cx: &JobCx,
    found: &Scan,
    item: &Item,
    (collection, id): (CollectionId, IndexId),
    rule: Rule,
) -> Result<Fate> {
    let Some(seen) = found.definitions.get(&(collection, id)) else {
        return Ok(Fate::Kept);
    };
    let mut used = false;
    let span = Span::prefix(&Family::SegmentIndex.under(&cx.roots, &[collection.0]));
    pages(&cx.meta, &span, |kv| {
        let row = Key::parse(&cx.roots, &kv.key.0)
            .known()
            .map(|key| decode::<pb::index::SegmentIndex>(&key, &kv.value));
        // One that cannot be read may be its.
        used |= !matches!(row, Some(Decoded::Value(row)) if row.index_id != id.0);
    })
    .await?;
    if used {
        return Ok(Fate::Moved);
    }
    forgotten(
        cx,
        item,
        std::slice::from_ref(seen),
        Vec::new(),
        rule,
        Tally::default(),
    )
    .await
}

/// The last step: the records go, if nothing has moved.
pub(super) async fn forgotten(
    cx: &JobCx,
    item: &Item,
    records: &[Seen],
    conds: Vec<Cond>,
    rule: Rule,
    gone: Tally,
) -> Result<Fate> {
    Ok(if forget(cx, item, records, conds).await? {
        Fate::Collected { rule, gone }
    } else {
        Fate::Moved
    })
}

/// Where the collection's own record would be.
fn collection_keys(found: &Scan, collection: CollectionId) -> Vec<Key> {
    let mut keys: Vec<Key> = found
        .databases
        .iter()
        .map(|db| Key::Collection(DbId(*db), collection))
        .collect();
    keys.push(Key::LegacyCollection(collection));
    keys
}

/// Conditions that nobody knows the collection; nothing when somebody does by now.
pub(super) async fn collection_gone(
    cx: &JobCx,
    found: &Scan,
    collection: CollectionId,
) -> Result<Option<Vec<Cond>>> {
    let mut conds = Vec::new();
    for key in collection_keys(found, collection) {
        let full = key.to_key(&cx.roots);
        match cx.meta.get(&full).await? {
            None => conds.push(Cond::Absent(full)),
            Some(kv) if reads(cx).record(&key).await?.is_none() => {
                conds.push(Cond::At(kv.key, kv.mod_rev));
            }
            Some(_) => return Ok(None),
        }
    }
    Ok(Some(conds))
}

/// Whether records are as they were when they were judged.
pub(super) async fn unmoved(cx: &JobCx, records: &[Seen]) -> Result<bool> {
    for seen in records {
        let now = cx.meta.get(&seen.key).await?;
        if now.is_none_or(|kv| kv.mod_rev != seen.rev) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What an index row's verdict rests on beside the row: its definition and its segment, each absent or as it was.
fn judged_by(cx: &JobCx, found: &Scan, item: &Item) -> Vec<Cond> {
    let Item::Build(id) = item else {
        return Vec::new();
    };
    let (Some((Key::SegmentIndex(c, p, s, _), _)), Some(facts)) =
        (found.row(*id), found.world.builds.get(id))
    else {
        return Vec::new();
    };
    let cond = |key: Key, rev: Option<MetaRev>| {
        let key = key.to_key(&cx.roots);
        rev.map_or(Cond::Absent(key.clone()), |rev| Cond::At(key, rev))
    };
    let definition = found.definitions.get(&(c, facts.index));
    let segment = Key::Segment(c, p, s);
    let seen = found.segment(s).filter(|(key, _)| *key == segment);
    vec![
        cond(Key::FieldIndex(c, facts.index), definition.map(|d| d.rev)),
        cond(segment, seen.map(|(_, rev)| rev)),
    ]
}

/// Whether conditions of these two kinds hold now.
pub(super) async fn all_hold(cx: &JobCx, conds: &[Cond]) -> Result<bool> {
    for cond in conds {
        let (key, want) = match cond {
            Cond::At(key, rev) => (key, Some(*rev)),
            Cond::Absent(key) => (key, None),
            _ => continue,
        };
        if cx.meta.get(key).await?.map(|kv| kv.mod_rev) != want {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the snapshots of a collection are those whose references were read.
pub(super) async fn same_snapshots(
    cx: &JobCx,
    found: &Scan,
    collection: CollectionId,
) -> Result<bool> {
    let now = reads(cx).under(Family::Snapshot, &[collection.0]).await?;
    let now: BTreeMap<MetaKey, _> = now.kvs.into_iter().map(|kv| (kv.key, kv.mod_rev)).collect();
    Ok(now == found.snapshots_of(collection))
}

/// The same, as conditions of the deleting transaction; above a few snapshots the check before must do.
fn snapshot_conds(cx: &JobCx, found: &Scan, collection: CollectionId) -> Vec<Cond> {
    let known = found.snapshots_of(collection);
    if known.is_empty() {
        return vec![Cond::NoneUnder(
            Family::Snapshot.under(&cx.roots, &[collection.0]),
        )];
    }
    known
        .into_iter()
        .take(16)
        .map(|(key, rev)| Cond::At(key, rev))
        .collect()
}

/// How a deletion of objects went.
pub(super) enum Removed {
    /// So many were there.
    All(Tally),
    /// One could not be deleted.
    Failed,
    /// The look that found them is too old.
    TooOld,
}

/// Deletes objects that were looked up at `began`. Missing ones are fine.
pub(super) async fn remove(
    cx: &JobCx,
    filter: &Filter,
    rule: Rule,
    item: &Item,
    objects: &[ObjectKey],
    began: UnixMs,
) -> Result<Removed> {
    if filter.quarantine {
        let yard = Yard::of(cx.objects.root());
        let name = item.to_string().replace(' ', "-");
        let aside = quarantine::all_aside(cx, &yard, &name, rule.name(), objects, began).await?;
        return Ok(match aside {
            Aside::All(moved) => Removed::All(moved),
            Aside::Stays(why) => {
                cx.note(format!("kept: {item}, because {why}"));
                Removed::Failed
            }
            Aside::TooOld => Removed::TooOld,
        });
    }
    // A request for a folder, not one for each of its files.
    let folders: BTreeSet<ObjectKey> = objects
        .iter()
        .filter_map(|key| Some(ObjectKey(key.0.rsplit_once('/')?.0.to_owned())))
        .collect();
    let sizes = reads(cx).list_all(folders).await?;
    let mut gone = Tally::default();
    for key in objects {
        cx.paced(0).await?;
        if !is_fresh(began, cx.clock.now()) {
            return Ok(Removed::TooOld);
        }
        match cx.delete_object(key).await {
            Ok(true) => {
                let bytes = sizes.get(key).copied().unwrap_or_default();
                gone.add(bytes);
                cx.progress().file(bytes);
            }
            Ok(false) => {}
            // The fence decides for all of it.
            Err(e) if matches!(e.kind(), ErrorKind::Fenced | ErrorKind::Cancelled) => {
                return Err(e);
            }
            Err(e) => {
                cx.note(format!("kept: {item}, because {e}"));
                return Ok(Removed::Failed);
            }
        }
    }
    Ok(Removed::All(gone))
}

/// Deletes records, the main one last; `false` when one of them, or what it rests on, has moved: then they stay. The change is named
/// after its keys: what is left after a crash is another change.
async fn forget(cx: &JobCx, item: &Item, records: &[Seen], mut conds: Vec<Cond>) -> Result<bool> {
    let mut hash = Sha256::new();
    for seen in records {
        hash.update(&seen.key.0);
        hash.update(seen.rev.0.to_be_bytes());
        conds.push(Cond::At(seen.key.clone(), seen.rev));
    }
    let name = hex(&hash.finalize()[..8]);
    let kind = match item {
        Item::Segment(_) => "segment",
        Item::Build(_) => "build",
        Item::Index(..) => "index",
        Item::Snapshot(_) => "snapshot",
        Item::Checkpoint(_) => "checkpoint",
        Item::Pins(_) => "pins",
    };
    let change = Change {
        name: format!("{kind}-{name}"),
        conds,
        writes: records
            .iter()
            .map(|seen| Write::Delete(seen.key.clone()))
            .collect(),
        atomic: false,
    };
    match cx.commit(change).await {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::Conflict => {
            cx.note(format!("kept for now: {item}, because {e}"));
            Ok(false)
        }
        Err(e) => Err(e),
    }
}
