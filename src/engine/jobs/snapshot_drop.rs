//! Snapshot drop (`spec/snapshot.md` §3.5): record DELETING, its own objects, the record last. Data that the snapshot references
//! is not touched: it belongs to the collection, or to the collector.

use async_trait::async_trait;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::restore_source::Reads;
use super::snapshot_contents::{Contents, share};
use super::snapshot_undo::remove_objects;
use super::source::{family_of, find_snapshot};
use super::{Job, Lock, Next, PlanCx, pins, snapshot_notes, snapshot_verify};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb::data::{
    CopySegmentJob, CopySegmentJobState, ExportSnapshotJob, ExportSnapshotJobState, SnapshotInfo,
    SnapshotState,
};
use crate::engine::format::snapshot::{manifest_key, metadata_key};
use crate::engine::ids::{CollectionId, ObjectKey, SegmentId, SnapshotId};
use crate::engine::meta::{Cond, KeyValue, MetaReader, Write};
use crate::engine::model::ddl;
use crate::engine::model::jobs::JobKind;
use crate::engine::model::text;
use crate::engine::objects::ObjectRead;
use crate::engine::plan::execute::Change;
use crate::engine::plan::journal::PreImage;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};
use crate::engine::profile::Roots;

/// Objects named in the plan.
const NAMED: usize = 10;

/// The kind.
pub struct DropSnapshot;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    snapshot: SnapshotId,
    collection: Option<CollectionId>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Mark,
    Objects,
    Record,
    Verify,
}

/// Milvus's own jobs that read it.
async fn readers(meta: &MetaReader, roots: &Roots, info: &SnapshotInfo) -> Result<Option<String>> {
    for (_, job) in family_of::<CopySegmentJob>(meta, roots, Family::CopySegmentJob).await? {
        let ended = matches!(
            job.state(),
            CopySegmentJobState::CopySegmentJobCompleted
                | CopySegmentJobState::CopySegmentJobFailed
        );
        // Old records do not name the source collection: the name alone must do then.
        let same = job.source_collection_id == 0 || job.source_collection_id == info.collection_id;
        if !ended && !job.external && same && job.snapshot_name == info.name {
            return Ok(Some(format!(
                "restore job {} reads it ({})",
                job.job_id,
                job.state().as_str_name()
            )));
        }
    }
    for (_, job) in family_of::<ExportSnapshotJob>(meta, roots, Family::ExportSnapshotJob).await? {
        let ended = matches!(
            job.state(),
            ExportSnapshotJobState::ExportSnapshotJobCompleted
                | ExportSnapshotJobState::ExportSnapshotJobFailed
        );
        if !ended && job.collection_id == info.collection_id && job.snapshot_name == info.name {
            return Ok(Some(format!(
                "export job {} reads it ({})",
                job.job_id,
                job.state().as_str_name()
            )));
        }
    }
    Ok(None)
}

pub(super) fn gone(id: SnapshotId) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {id} does not exist"))
        .fix("list the snapshots")
}

/// What a drop gives back, in words.
async fn frees(cx: &PlanCx, info: &SnapshotInfo) -> Result<String> {
    let what = "source data is not touched; files that only this snapshot kept become collectable";
    if snapshot_verify::unfinished(info).is_some() {
        return Ok(what.into());
    }
    let reads = Reads {
        meta: &cx.meta,
        objects: &cx.objects,
        roots: &cx.roots,
    };
    let contents = match Contents::read(&reads, info.clone()).await {
        Ok(contents) => contents,
        Err(e) if e.is_transient() => return Err(e),
        Err(e) => return Ok(format!("{what}: how much cannot be told, because {e}")),
    };
    let share = share(&reads, &contents).await?;
    Ok(match &share.doubt {
        Some(why) => format!("{what}: how much cannot be told, because {why}"),
        None => format!(
            "{what}: {} in {} files; {} stay with live segments, {} with other snapshots",
            text::bytes(share.exclusive.bytes),
            share.exclusive.files,
            text::bytes(share.live.bytes),
            text::bytes(share.snapshots.bytes)
        ),
    })
}

/// The snapshot's own objects, with their bytes.
pub(super) async fn own_objects(
    objects: &ObjectRead,
    collection: CollectionId,
    id: SnapshotId,
) -> Result<Vec<(ObjectKey, u64)>> {
    let root = objects.root();
    let probe = manifest_key(root, collection, id, SegmentId(0)).0;
    let mut listed = objects.list(
        &ObjectKey(probe.trim_end_matches("/0.avro").to_owned()),
        None,
    );
    let mut out = Vec::new();
    while let Some(meta) = listed.next().await {
        let meta = meta?;
        out.push((meta.key, meta.size));
    }
    match objects.head(&metadata_key(root, collection, id)).await {
        Ok(meta) => out.push((meta.key, meta.size)),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(out)
}

fn shown(info: &SnapshotInfo) -> String {
    format!(
        "name: {}\nstate: {}\ncollection: {}\nlocation: {}",
        info.name,
        info.state().as_str_name(),
        info.collection_id,
        info.s3_location
    )
}

#[async_trait]
impl Job for DropSnapshot {
    const KIND: JobKind = JobKind::DropSnapshot;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let Intent::DropSnapshot { snapshot } = intent else {
            return Err(Error::new(ErrorKind::Internal, "not a snapshot drop"));
        };
        let (kv, info) = find_snapshot(&cx.meta, &cx.roots, *snapshot)
            .await?
            .ok_or_else(|| gone(*snapshot))?;
        let collection = CollectionId(info.collection_id);
        let own = own_objects(&cx.objects, collection, *snapshot).await?;
        let check = |name: &str, failed: Option<String>, detail: String| Check {
            name: name.into(),
            failed,
            detail,
        };
        let foreign = foreign_location(&info, cx.objects.root());
        let now = cx.clock.now();
        let held = pins::held(&cx.meta, &cx.roots, &info).await?;
        let active: Vec<String> = held
            .iter()
            .filter(|h| h.pin.is_active(now))
            .map(|h| pins::words(h, now))
            .collect();
        let mut warnings = vec![frees(cx, &info).await?];
        if info.state() == SnapshotState::Pending {
            warnings.push("it was never committed: a create was cut off, or still runs".into());
        }
        Ok(Plan {
            intent: intent.clone(),
            title: format!("drop snapshot {} of collection {collection}", info.name),
            checks: vec![
                check(
                    "it is not pinned",
                    (!active.is_empty()).then(|| {
                        format!(
                            "{}; see `snapshot pins`, take off with `snapshot unpin`",
                            active.join("; ")
                        )
                    }),
                    format!("{} pins recorded", info.pin_ids.len()),
                ),
                check(
                    "nothing reads it",
                    readers(&cx.meta, &cx.roots, &info).await?,
                    "restore and export jobs of Milvus".into(),
                ),
                check(
                    "its files are where its id says",
                    foreign,
                    info.s3_location.clone(),
                ),
            ],
            steps: vec![
                "set the record to DELETING".into(),
                format!("delete {} manifests and JSON objects", own.len()),
                "delete the record".into(),
                "look that nothing is left".into(),
            ],
            changes: vec![KeyChange {
                key: kv.key.text(),
                before: Some(shown(&info)),
                after: None,
            }],
            objects: ObjectChange {
                deletes: own.len() as u64,
                delete_bytes: own.iter().map(|(_, size)| size).sum(),
                samples: own
                    .iter()
                    .take(NAMED)
                    .map(|(key, _)| key.0.clone())
                    .collect(),
                ..ObjectChange::default()
            },
            warnings,
            undo: "none once objects are deleted; the data itself stays".into(),
            danger: Danger::High,
            type_to_confirm: Some(info.name.clone()),
            based_on: kv.mod_rev,
            rests_on: vec![(kv.key.text(), kv.mod_rev)],
            hash: String::new(),
        })
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::DropSnapshot { snapshot } => {
                let mut locks = vec![Lock::alone(format!("snapshot:{snapshot}"))];
                // A create has its collection alone: what it makes is not dropped under its hands. Drops may run together.
                locks
                    .extend(collection_of(plan).map(|of| Lock::shared(format!("collection:{of}"))));
                locks
            }
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match &plan.intent {
            Intent::DropSnapshot { snapshot } => Ok(State {
                snapshot: *snapshot,
                collection: None,
                step: Step::Mark,
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a snapshot drop")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        state.collection
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        match state.step {
            Step::Mark => mark(cx, state).await,
            Step::Objects => {
                let own = own_objects(&cx.objects, state.place()?, state.snapshot).await?;
                cx.progress().totals(0, own.len() as u64, 0);
                cx.progress().set_done(0, 0, 0);
                let root = cx.objects.root().to_owned();
                // An error here keeps the record: what is left can still be found by it.
                remove_objects(cx, &root, state.place()?, state.snapshot).await?;
                state.step = Step::Record;
                Ok(Next::Step(state))
            }
            Step::Record => {
                let key = Key::Snapshot(state.place()?, state.snapshot).to_key(&cx.roots);
                if let Some(kv) = cx.meta.get(&key).await? {
                    let mut writes = vec![Write::Delete(key.clone())];
                    writes.extend(snapshot_notes::forget(cx, state.snapshot).await?);
                    cx.commit(Change {
                        name: "record".into(),
                        conds: vec![Cond::At(key, kv.mod_rev)],
                        writes,
                        atomic: true,
                    })
                    .await?;
                }
                state.step = Step::Verify;
                Ok(Next::Published(state))
            }
            Step::Verify => {
                let left = own_objects(&cx.objects, state.place()?, state.snapshot).await?;
                let record = find_snapshot(&cx.meta, &cx.roots, state.snapshot).await?;
                match (left.first(), record) {
                    (None, None) => Ok(Next::Verified(state)),
                    (Some((key, _)), _) => Err(Error::new(
                        ErrorKind::Conflict,
                        format!("object {key} is there again"),
                    )
                    .fix("somebody else writes into this snapshot's folder")),
                    (None, Some((kv, _))) => Err(Error::new(
                        ErrorKind::Conflict,
                        format!("key {} is there again", kv.key),
                    )
                    .fix("a coordinator wrote it back: drop it again")),
                }
            }
        }
    }

    /// Before any object went, the mark is taken off again. Afterwards there is no way back: the record stays DELETING, and says so.
    async fn undo(&self, cx: &JobCx, state: State, _: &Error) -> Result<Next<State>> {
        if state.step != Step::Mark {
            cx.note("objects of the snapshot are gone already: its record stays in state DELETING; drop it again");
            return Ok(Next::Undone(state));
        }
        let Some((kv, info)) = find_snapshot(&cx.meta, &cx.roots, state.snapshot).await? else {
            return Ok(Next::Undone(state));
        };
        let Some(kept) = cx.meta.get(&cx.keys().pre(cx.job, "mark", 0)).await? else {
            return Ok(Next::Undone(state));
        };
        let entries = PreImage::decode(&kept.value)?.entries;
        let before = entries.into_iter().find(|e| e.key == kv.key);
        if let Some((_, value)) = before.and_then(|b| b.old)
            && info.state() == SnapshotState::Deleting
        {
            cx.commit(Change {
                name: "unmark".into(),
                conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
                writes: vec![Write::put(kv.key, value)],
                atomic: true,
            })
            .await?;
        }
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, done) = match state.step {
            Step::Mark => ("set the record to DELETING", 0),
            Step::Objects => ("delete manifests and JSON", 1),
            Step::Record => ("delete the record", 2),
            Step::Verify => ("look that nothing is left", 3),
        };
        (text.into(), done, 4)
    }
}

impl State {
    fn place(&self) -> Result<CollectionId> {
        self.collection.ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                "the snapshot's collection is not known",
            )
        })
    }
}

/// The collection that the plan's record stands under (`…/snapshot/{collection}/{snapshot}`).
pub(super) fn collection_of(plan: &Plan) -> Option<CollectionId> {
    let (key, _) = plan.rests_on.first()?;
    key.rsplit('/').nth(1)?.parse().ok().map(CollectionId)
}

/// A location that is not the one of this id: something else than this snapshot would be deleted, or nothing.
fn foreign_location(info: &SnapshotInfo, root: &str) -> Option<String> {
    let want = metadata_key(root, CollectionId(info.collection_id), SnapshotId(info.id));
    (!info.s3_location.is_empty() && info.s3_location != want.0).then(|| {
        format!(
            "the record says {}, {want} is expected: check minio.rootPath",
            info.s3_location
        )
    })
}

async fn mark(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let (kv, info) = find_snapshot(&cx.meta, &cx.roots, state.snapshot)
        .await?
        .ok_or_else(|| gone(state.snapshot))?;
    let now = cx.clock.now();
    let held = pins::held(&cx.meta, &cx.roots, &info).await?;
    let busy = match held.iter().find(|h| h.pin.is_active(now)) {
        Some(pin) => Some(format!("it is pinned: {}", pins::words(pin, now))),
        None => readers(&cx.meta, &cx.roots, &info).await?,
    };
    if let Some(why) = busy {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("snapshot {} cannot be dropped: {why}", info.name),
        )
        .fix("wait for them to end"));
    }
    state.collection = Some(CollectionId(info.collection_id));
    if info.state() != SnapshotState::Deleting {
        let value = as_deleting(&kv)?;
        cx.commit(Change {
            name: "mark".into(),
            conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
            writes: vec![
                Write::put(kv.key, value),
                snapshot_notes::since(cx, state.snapshot, SnapshotState::Deleting as i32)?,
            ],
            atomic: true,
        })
        .await?;
    }
    state.step = Step::Objects;
    Ok(Next::Step(state))
}

/// The record in state DELETING. Pins whose time is over may be left on it: they go.
pub(super) fn as_deleting(kv: &KeyValue) -> Result<Vec<u8>> {
    Ok(ddl::snapshot_deleting(&kv.value)?)
}
