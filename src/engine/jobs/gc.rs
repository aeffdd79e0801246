//! One garbage collection pass: scan, then item by item in a fixed order, objects first, record last (law 5).
//!
//! The cut-off is fixed in the first step. Right before an item's objects are deleted its records and the snapshots of its
//! collection are read again; if one has moved since the scan, everything is scanned anew. A record stays when one of its
//! objects could not be deleted. What is deleted was judged by [`model::gc`](crate::engine::model::gc), the same functions as in the plan.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cx::JobCx;
use super::gc_plan::{Filter, Item, belongings, items, plan, simulate};
use super::gc_scan::{Belongings, Scan, Seen, scan};
use super::identity::own_bucket;
use super::restore::reads;
use super::restore_source::{Reads, hex};
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::ObjPath;
use crate::engine::ids::{CollectionId, DbId, MetaKey, ObjectKey, SnapshotId, UnixMs};
use crate::engine::meta::{Cond, Write};
use crate::engine::model::gc::{Rule, Verdict};
use crate::engine::model::holds::Tolerances;
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Intent, Plan};

/// Items worked on between two journal entries.
const BATCH: usize = 32;
/// Times that everything is scanned again because something moved.
const RESCANS: u32 = 50;

/// What is journaled.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// One collection only.
    pub collection: Option<CollectionId>,
    /// Names of rules; all when empty.
    pub rules: Vec<String>,
    /// Fixed in the first step; 0 before.
    pub cutoff: UnixMs,
    /// Everything up to here has been looked at.
    pub after: Option<Item>,
    /// Collected, by rule: items and objects.
    pub collected: BTreeMap<String, (u64, u64)>,
    /// Kept because an object could not be deleted.
    pub failed: u64,
    /// Scans because something moved.
    pub rescans: u32,
    /// Something was collected since the last scan.
    pub dirty: bool,
    /// Every item has been looked at.
    pub swept: bool,
}

/// The machine.
#[derive(Default)]
pub struct Gc {
    cache: Mutex<BTreeMap<i64, Arc<Scan>>>,
}

/// An item's fate in this pass.
enum Fate {
    Collected { rule: Rule, objects: u64 },
    Kept,
    Failed,
    Moved,
}

impl Gc {
    fn cached(&self, job: i64) -> Option<Arc<Scan>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(&job).cloned()
    }

    fn keep(&self, job: i64, found: Option<Arc<Scan>>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Some(found) => {
                cache.insert(job, found);
            }
            None => {
                cache.remove(&job);
            }
        }
    }

    async fn scan(&self, cx: &JobCx, cutoff: UnixMs) -> Result<Arc<Scan>> {
        if let Some(found) = self.cached(cx.job.0) {
            return Ok(found);
        }
        let found = scan(&reads(cx), cutoff, Tolerances::default(), Some(cx.job)).await?;
        for why in &found.unreadable {
            cx.note(format!("kept: {why}"));
        }
        let found = Arc::new(found);
        self.keep(cx.job.0, Some(found.clone()));
        Ok(found)
    }

    async fn sweep(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let filter = Filter::of(&Intent::Gc {
            collection: state.collection,
            rules: state.rules.iter().cloned().collect(),
        })?;
        let found = self.scan(cx, state.cutoff).await?;
        let todo: Vec<Item> = items(&found, &filter)
            .into_iter()
            .filter(|item| state.after.as_ref().is_none_or(|after| item > after))
            .collect();
        let mut worked = 0;
        for item in todo {
            cx.check_cancel()?;
            if worked >= BATCH {
                return Ok(Next::Step(state));
            }
            // A checkpoint may go once the last segment has: look again.
            if state.dirty && matches!(item, Item::Checkpoint(_)) {
                self.keep(cx.job.0, None);
                state.dirty = false;
                return Ok(Next::Step(state));
            }
            match collect(cx, &found, &filter, &item).await? {
                Fate::Kept => {}
                Fate::Collected { rule, objects } => {
                    worked += 1;
                    state.dirty = true;
                    let tally = state.collected.entry(rule.name().to_owned()).or_default();
                    tally.0 += 1;
                    tally.1 += objects;
                }
                Fate::Failed => {
                    worked += 1;
                    state.failed += 1;
                }
                Fate::Moved => {
                    self.keep(cx.job.0, None);
                    state.rescans += 1;
                    if state.rescans > RESCANS {
                        return Err(Error::new(
                            ErrorKind::Conflict,
                            "records keep moving under the garbage collection",
                        )
                        .fix("run it when no other job is writing"));
                    }
                    // The same item is looked at again, with new eyes.
                    return Ok(Next::Step(state));
                }
            }
            state.after = Some(item);
        }
        state.swept = true;
        for (rule, (items, objects)) in &state.collected {
            cx.note(format!("{rule}: {items} collected with {objects} objects"));
        }
        if state.failed > 0 {
            cx.note(format!(
                "{} records stay because an object of theirs could not be deleted",
                state.failed
            ));
        }
        Ok(Next::Published(state))
    }
}

#[async_trait]
impl Job for Gc {
    const KIND: JobKind = JobKind::Gc;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let reads = Reads {
            meta: &*cx.meta,
            objects: &cx.objects,
            roots: &cx.roots,
        };
        let filter = Filter::of(intent)?;
        let cutoff = cx.clock.now();
        let found = scan(&reads, cutoff, Tolerances::default(), None).await?;
        let simulated = simulate(&reads, &found, &filter).await?;
        let mut plan = plan(intent, &found, &simulated, found.rev);
        plan.checks.push(own_bucket(&reads, &found).await?);
        Ok(plan)
    }

    fn locks(&self, _: &Plan) -> Vec<Lock> {
        vec![Lock::alone("gc")]
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        Filter::of(&plan.intent)?;
        match &plan.intent {
            Intent::Gc { collection, rules } => Ok(State {
                collection: *collection,
                rules: rules.iter().cloned().collect(),
                ..State::default()
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a garbage collection")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        state.collection
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        if state.swept {
            self.keep(cx.job.0, None);
            return verify(cx, state).await;
        }
        if state.cutoff == UnixMs(0) {
            state.cutoff = cx.clock.now();
            let found = self.scan(cx, state.cutoff).await?;
            // Before anything is deleted: every object would be missing from a wrong bucket, and every record forgotten.
            if let Some(why) = own_bucket(&reads(cx), &found).await?.failed {
                return Err(Error::new(ErrorKind::Conflict, why)
                    .fix("name the cluster's own bucket and root, then plan again"));
            }
            return Ok(Next::Step(state));
        }
        self.sweep(cx, state).await
    }

    /// What is collected is gone, each item whole or not at all: there is nothing to take back.
    async fn undo(&self, cx: &JobCx, state: State, _: &Error) -> Result<Next<State>> {
        self.keep(cx.job.0, None);
        cx.note("items collected so far stay collected; all others are untouched");
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let items: u64 = state.collected.values().map(|(items, _)| items).sum();
        if state.swept {
            (format!("checking, {items} collected"), 1, 2)
        } else {
            (format!("collecting, {items} so far"), 0, 2)
        }
    }
}

/// Collects one item, if it still may go.
async fn collect(cx: &JobCx, found: &Scan, filter: &Filter, item: &Item) -> Result<Fate> {
    let Verdict::Collect { rule } = item.verdict(found) else {
        return Ok(Fate::Kept);
    };
    if !filter.wants(rule) || !rule.deletes() {
        return Ok(Fate::Kept);
    }
    match item {
        Item::Segment(_) | Item::Build(_) => {
            let (Some(mine), Some(collection)) = (belongings(found, item), item.collection(found))
            else {
                return Ok(Fate::Kept);
            };
            let judged_by = judged_by(cx, found, item, mine);
            if !unmoved(cx, &mine.records).await?
                || !all_hold(cx, &judged_by).await?
                || !same_snapshots(cx, found, collection).await?
            {
                return Ok(Fate::Moved);
            }
            for key in &mine.strangers {
                cx.note(format!("kept: {key}, which {item:?} names, is not its own"));
            }
            let mut objects: Vec<ObjectKey> = mine.objects.iter().cloned().collect();
            for folder in &mine.folders {
                objects.extend(reads(cx).list(folder).await?.into_keys());
            }
            // A snapshot may name a file of another segment: then this one stays whole.
            if let Some(key) = objects
                .iter()
                .find(|key| !found.world.held_file(key).is_empty())
            {
                cx.note(format!("kept: {item}, because a snapshot refers to {key}"));
                return Ok(Fate::Kept);
            }
            let Some(gone) = remove(cx, item, &objects).await? else {
                return Ok(Fate::Failed);
            };
            let mut conds = snapshot_conds(cx, found, collection);
            conds.extend(judged_by);
            if !forget(cx, item, &mine.records, conds).await? {
                return Ok(Fate::Moved);
            }
            Ok(Fate::Collected {
                rule,
                objects: gone,
            })
        }
        Item::Snapshot(id) => snapshot(cx, found, item, *id, rule).await,
        Item::Checkpoint(channel) => {
            let Some(seen) = found.checkpoints.get(channel) else {
                return Ok(Fate::Kept);
            };
            let Some(collection) = item.collection(found) else {
                return Ok(Fate::Kept);
            };
            if !unmoved(cx, std::slice::from_ref(seen)).await? {
                return Ok(Fate::Moved);
            }
            let segments = Family::Segment.under(&cx.roots, &[collection.0]);
            let mut conds = vec![Cond::NoneUnder(segments)];
            for key in collection_keys(found, collection) {
                let full = key.to_key(&cx.roots);
                match cx.meta.get(&full).await? {
                    None => conds.push(Cond::Absent(full)),
                    Some(kv) if reads(cx).record(&key).await?.is_none() => {
                        conds.push(Cond::At(kv.key, kv.mod_rev));
                    }
                    Some(_) => return Ok(Fate::Moved),
                }
            }
            let left = reads(cx).under(Family::Segment, &[collection.0]).await?;
            if !left.kvs.is_empty() {
                return Ok(Fate::Moved);
            }
            if !forget(cx, item, std::slice::from_ref(seen), conds).await? {
                return Ok(Fate::Moved);
            }
            Ok(Fate::Collected { rule, objects: 0 })
        }
    }
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

/// A snapshot's files by listing, so that nothing needs to be readable; its record last (defect D4).
async fn snapshot(
    cx: &JobCx,
    found: &Scan,
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
    let root = cx.objects.root();
    let json = ObjPath::SnapshotMetadata(*collection, id).to_key(root);
    let base = json
        .0
        .strip_suffix(&format!("metadata/{id}.json"))
        .unwrap_or_default()
        .to_owned();
    // The listing ends in a slash: an id that another begins with is another folder.
    let folder = ObjectKey(format!("{base}manifests/{id}"));
    let mut objects: Vec<ObjectKey> = reads(cx).list(&folder).await?.into_keys().collect();
    objects.retain(|key| {
        matches!(
            ObjPath::parse(root, &key.0).known(),
            Some(ObjPath::SnapshotManifest(c, of, _)) if c == *collection && of == id
        )
    });
    objects.push(json);
    let Some(gone) = remove(cx, item, &objects).await? else {
        return Ok(Fate::Failed);
    };
    if !forget(cx, item, std::slice::from_ref(seen), Vec::new()).await? {
        return Ok(Fate::Moved);
    }
    Ok(Fate::Collected {
        rule,
        objects: gone,
    })
}

/// Whether records are as they were when they were judged.
async fn unmoved(cx: &JobCx, records: &[Seen]) -> Result<bool> {
    for seen in records {
        let now = cx.meta.get(&seen.key).await?;
        if now.is_none_or(|kv| kv.mod_rev != seen.rev) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What an index row's verdict rests on beside the row: its definition and its segment, each absent or as it was.
fn judged_by(cx: &JobCx, found: &Scan, item: &Item, mine: &Belongings) -> Vec<Cond> {
    let Item::Build(id) = item else {
        return Vec::new();
    };
    let row = mine.records.last();
    let key = row.and_then(|seen| Key::parse(&cx.roots, &seen.key.0).known());
    let (Some(Key::SegmentIndex(c, p, s, _)), Some(facts)) = (key, found.world.builds.get(id))
    else {
        return Vec::new();
    };
    [Key::FieldIndex(c, facts.index), Key::Segment(c, p, s)]
        .map(|key| key.to_key(&cx.roots))
        .map(|key| match found.judged_by.get(&key) {
            Some(rev) => Cond::At(key, *rev),
            None => Cond::Absent(key),
        })
        .into()
}

/// Whether conditions of these two kinds hold now.
async fn all_hold(cx: &JobCx, conds: &[Cond]) -> Result<bool> {
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
async fn same_snapshots(cx: &JobCx, found: &Scan, collection: CollectionId) -> Result<bool> {
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

/// Deletes objects; `None` when one could not be deleted, which keeps the record. Missing ones are fine.
async fn remove(cx: &JobCx, item: &Item, objects: &[ObjectKey]) -> Result<Option<u64>> {
    let mut gone = 0;
    for key in objects {
        match cx.delete_object(key).await {
            Ok(there) => gone += u64::from(there),
            // The fence decides for all of it.
            Err(e) if matches!(e.kind(), ErrorKind::Fenced | ErrorKind::Cancelled) => {
                return Err(e);
            }
            Err(e) => {
                cx.note(format!("kept: {item}, because {e}"));
                return Ok(None);
            }
        }
    }
    Ok(Some(gone))
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
        Item::Snapshot(_) => "snapshot",
        Item::Checkpoint(_) => "checkpoint",
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
            cx.note(format!("kept for now: {item:?}, because {e}"));
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Nothing that was collected is still there, and every live snapshot still has all its objects.
async fn verify(cx: &JobCx, state: State) -> Result<Next<State>> {
    let found = scan(
        &reads(cx),
        state.cutoff,
        Tolerances::default(),
        Some(cx.job),
    )
    .await?;
    let mut missing = Vec::new();
    for facts in &found.world.snapshots {
        if let crate::engine::model::holds::Reference::Loaded(refs) = &facts.reference {
            let there = reads(cx)
                .list_all(super::restore_source::prefixes(
                    cx.objects.root(),
                    refs.files.iter(),
                ))
                .await?;
            missing.extend(
                refs.files
                    .iter()
                    .filter(|key| !there.contains_key(*key))
                    .map(|key| format!("{key} of snapshot {}", facts.name)),
            );
        }
    }
    if missing.is_empty() {
        return Ok(Next::Verified(state));
    }
    for text in &missing {
        cx.note(format!("missing: {text}"));
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!(
            "{} objects of live snapshots are missing after the pass, first {}",
            missing.len(),
            missing.first().map_or("", String::as_str)
        ),
    )
    .fix("they may have been missing before: compare with the bucket's history"))
}
