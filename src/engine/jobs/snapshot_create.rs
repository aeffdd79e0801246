//! Snapshot create (`spec/snapshot.md` §3.2, §4): record PENDING, manifests, metadata JSON, record COMMITTED. A crash anywhere
//! leaves a PENDING record that Milvus's own collector would clean too; we resume it, or take it back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cx::JobCx;
use super::drive::again;
use super::restore::reads;
use super::select::{Selection, metadata, select};
use super::snapshot_contents::{manifest_sums, weigh};
pub use super::snapshot_plan::check_name;
use super::snapshot_plan::{Order, Replay, present, record, replay, taken};
use super::snapshot_undo::{remove_objects, take_back};
use super::snapshot_verify::{examine, keep, tell};
use super::source::{Source, snapshot_at};
use super::{Job, Lock, Next, PlanCx, snapshot_notes, snapshot_plan};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::manifest;
use crate::engine::format::pb::data::{SnapshotInfo, SnapshotMetadata, SnapshotState};
use crate::engine::format::snapshot::{Side, metadata_key, with_side, write_metadata};
use crate::engine::format::wire::Patch;
use crate::engine::ids::{CollectionId, MetaKey, ObjectKey, SnapshotId, UnixMs};
use crate::engine::meta::{Cond, KeyValue, Write};
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Intent, Plan, hex};

/// Milvus collects a PENDING record after an hour, and our console calls it forgotten after five minutes: a living creator says
/// that it lives (defect D62).
const RENEW: Duration = Duration::from_mins(2);
/// Selections tried when the metadata moves under the job.
const TURNS: u32 = 3;

/// The kind.
pub struct CreateSnapshot;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    collection: CollectionId,
    name: String,
    description: String,
    protection_secs: u64,
    #[serde(default)]
    operation: Option<String>,
    /// Taken in the first step.
    id: Option<SnapshotId>,
    /// It was made by the same operation before: nothing of it is this job's to take back.
    #[serde(default)]
    replay: bool,
    step: Step,
    /// SHA-256 of the metadata JSON that was written.
    digest: String,
    turn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Ids,
    Pending,
    Write,
    Commit,
    Verify,
    Undone,
}

#[async_trait]
impl Job for CreateSnapshot {
    const KIND: JobKind = JobKind::CreateSnapshot;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        snapshot_plan::plan(cx, intent).await
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::CreateSnapshot { collection, .. } => {
                vec![Lock::alone(format!("collection:{collection}"))]
            }
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        Ok(State::new(&Order::of(&plan.intent)?))
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        Some(state.collection)
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        match state.step {
            Step::Ids => {
                if let Some(id) = made_before(cx, &state).await? {
                    cx.note(format!(
                        "snapshot {id} was made by this operation before: nothing is made"
                    ));
                    state.id = Some(id);
                    state.replay = true;
                    state.step = Step::Verify;
                    return Ok(Next::Published(state));
                }
                state.id = Some(SnapshotId(cx.take_ids(1).await?.first));
                state.step = Step::Pending;
                Ok(Next::Step(state))
            }
            Step::Pending => pending(cx, state).await,
            Step::Write => write(cx, state).await,
            Step::Commit => commit(cx, state).await,
            Step::Verify => {
                verify(cx, &state).await?;
                Ok(Next::Verified(state))
            }
            Step::Undone => Err(Error::new(ErrorKind::Internal, "a step of an undone job")),
        }
    }

    /// Objects first, the record last: while the record is there, everything under it can be found. A record that is COMMITTED
    /// keeps its files: the commit's outcome may have been unknown when the job turned back.
    async fn undo(&self, cx: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        if let Some(id) = state.id
            && !state.replay
            && !take_back(cx, state.collection, id).await?
        {
            cx.note(format!(
                "snapshot {id} was published before it could be taken back, and stays; drop it if it is not wanted"
            ));
            state.step = Step::Verify;
            return Ok(Next::Published(state));
        }
        state.step = Step::Undone;
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, done) = match state.step {
            Step::Ids => ("take an id", 0),
            Step::Pending => ("write the record as PENDING", 1),
            Step::Write => ("write manifests and metadata", 2),
            Step::Commit => ("set the record to COMMITTED", 3),
            Step::Verify => ("read everything back", 4),
            Step::Undone => ("taken back", 0),
        };
        (text.into(), done, 5)
    }
}

impl State {
    fn new(order: &Order<'_>) -> Self {
        Self {
            collection: order.collection,
            name: order.name.to_owned(),
            description: order.description.to_owned(),
            protection_secs: order.protection_secs,
            operation: order.operation.map(str::to_owned),
            id: None,
            replay: false,
            step: Step::Ids,
            digest: String::new(),
            turn: 0,
        }
    }

    fn order(&self) -> Order<'_> {
        Order {
            collection: self.collection,
            name: &self.name,
            description: &self.description,
            protection_secs: self.protection_secs,
            operation: self.operation.as_deref(),
        }
    }

    fn id(&self) -> Result<SnapshotId> {
        self.id
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no snapshot id was taken"))
    }
}

/// The snapshot that a journaled create works on, once it has an id: garbage collection keeps it while the job has not ended,
/// however long its creator is silent.
#[must_use]
pub fn works_on(machine: &serde_json::Value) -> Option<SnapshotId> {
    serde_json::from_value::<State>(machine.clone()).ok()?.id
}

/// The snapshot that this very operation has made: the order was given twice.
async fn made_before(cx: &JobCx, state: &State) -> Result<Option<SnapshotId>> {
    if state.operation.is_none() {
        return Ok(None);
    }
    let source = Source::read(&cx.meta, &cx.roots, state.collection).await?;
    let makers = snapshot_notes::makers(&cx.meta, cx.keys()).await?;
    match replay(&source, &makers, &state.order()) {
        Replay::New => Ok(None),
        Replay::Done(id, _) => Ok(Some(id)),
        Replay::Clash(why) => {
            Err(Error::new(ErrorKind::Conflict, why).fix("give the operation another name"))
        }
    }
}

async fn pending(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let source = Source::read(&cx.meta, &cx.roots, state.collection).await?;
    let id = state.id()?;
    let key = Key::Snapshot(state.collection, id).to_key(&cx.roots);
    // Not when it is our own record, written before a crash.
    if source.snapshots.iter().all(|s| s.id != id.0)
        && let Some(why) = taken(&source, &state.name)
    {
        return Err(
            Error::new(ErrorKind::Conflict, why).fix("take another name, or drop that snapshot")
        );
    }
    let record = record(id, &state.order(), &source, cx.clock.now());
    let made = snapshot_notes::made(cx, id, state.operation.as_deref())?;
    cx.commit(Change {
        name: "pending".into(),
        conds: vec![
            Cond::Absent(key.clone()),
            Cond::At(source.key.0.clone(), source.key.1),
        ],
        writes: vec![Write::put(key, record.encode_to_vec()), made],
        atomic: true,
    })
    .await?;
    state.step = Step::Write;
    Ok(Next::Step(state))
}

/// As [`own`], and still PENDING: somebody who drops it or has dropped it must not find it alive again.
async fn own_pending(cx: &JobCx, state: &State) -> Result<(MetaKey, KeyValue, SnapshotInfo)> {
    let (key, kv, info) = own(cx, state).await?;
    if info.state() == SnapshotState::Pending {
        return Ok((key, kv, info));
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "record {key} became {} while the snapshot was made",
            info.state().as_str_name()
        ),
    )
    .fix("somebody else dropped it: make a new plan"))
}

/// Our record as it stands, with the conditions that it has not moved.
async fn own(cx: &JobCx, state: &State) -> Result<(MetaKey, KeyValue, SnapshotInfo)> {
    let id = state.id()?;
    let key = Key::Snapshot(state.collection, id).to_key(&cx.roots);
    let gone = || {
        Error::new(
            ErrorKind::Conflict,
            format!("the PENDING record {key} was removed while the snapshot was made"),
        )
        .fix("a coordinator collected it: make a new plan")
    };
    match snapshot_at(&cx.meta, &cx.roots, state.collection, id).await? {
        Some((kv, info)) => Ok((key, kv, info)),
        None => Err(gone()),
    }
}

/// What would be written now: the metadata object's bytes, with the selection they come from.
async fn build(cx: &JobCx, state: &State) -> Result<(Vec<u8>, SnapshotMetadata, Selection)> {
    let (_, _, record) = own_pending(cx, state).await?;
    let source = Source::read(&cx.meta, &cx.roots, state.collection).await?;
    let root = cx.objects.root();
    let selection = select(&source, root)?;
    let metadata = metadata(&source, &selection, &record, root);
    Ok((write_metadata(&metadata)?, metadata, selection))
}

/// Over everything that would be written, but for the time that a living creator moves on.
fn digest(metadata: &SnapshotMetadata, selection: &Selection) -> Result<String> {
    let mut metadata = metadata.clone();
    if let Some(info) = &mut metadata.snapshot_info {
        info.pending_start_time = 0;
    }
    let mut hash = Sha256::new();
    hash.update(canonical(&write_metadata(&metadata)?)?);
    for segment in &selection.segments {
        hash.update(manifest::write_v4(segment)?);
    }
    Ok(hex(&hash.finalize()))
}

/// The same content as the same bytes: the printer writes maps in no order of its own.
fn canonical(json: &[u8]) -> Result<Vec<u8>> {
    fn sort(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(members) => {
                members.sort_keys();
                members.values_mut().for_each(sort);
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(sort),
            _ => {}
        }
    }
    let unreadable =
        |e| Error::new(ErrorKind::Internal, "the metadata just written is not JSON").caused_by(e);
    let mut value = serde_json::from_slice(json).map_err(unreadable)?;
    sort(&mut value);
    serde_json::to_vec(&value).map_err(unreadable)
}

/// Does `work`, and says meanwhile that the record's creator lives. A record that is gone or dropped ends the work.
async fn living<T>(
    cx: &JobCx,
    state: &State,
    work: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    tokio::pin!(work);
    renew_if_due(cx, state).await?;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = cx.clock.sleep(RENEW) => match renew(cx, state).await {
                // Not now: the next one will do. Its outcome does not matter, a record that moved is read again.
                Err(e) if again(&e) => {}
                done => done?,
            },
        }
    }
}

async fn write(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    state.digest = living(cx, &state, written(cx, &state)).await?;
    state.step = Step::Commit;
    Ok(Next::Step(state))
}

/// Writes manifests and metadata; answers the digest of what was selected.
async fn written(cx: &JobCx, state: &State) -> Result<String> {
    let (json, metadata, selection) = build(cx, state).await?;
    let root = cx.objects.root().to_owned();
    let segments = selection.segments.len() as u64;
    cx.progress().totals(segments, segments + 1, 0);
    cx.progress().set_done(0, 0, 0);
    let puts = selection.segments.iter().zip(&metadata.manifest_list);
    let puts = puts.map(|(segment, key)| {
        async move {
            cx.check_cancel()?;
            let bytes = manifest::write_v4(segment)?;
            let size = bytes.len() as u64;
            cx.put_object(&ObjectKey(key.clone()), Bytes::from(bytes))
                .await?;
            cx.progress().segment();
            cx.progress().file(size);
            Ok::<_, Error>(())
        }
        .boxed()
    });
    let mut puts = stream::iter(puts.collect::<Vec<_>>()).buffer_unordered(cx.at_once());
    let put_all = async {
        while let Some(()) = puts.try_next().await? {}
        Ok::<_, Error>(())
    };
    let reads = reads(cx);
    let look = async {
        let (wanted, found) = present(&reads, &selection.segments).await?;
        found.require()?;
        Ok::<_, Error>((wanted, found))
    };
    // Side by side: a listing takes as long as half the puts. Manifests of objects that are missing are taken back, as after any failure.
    let ((wanted, found), ()) = tokio::try_join!(look, put_all)?;
    drop(puts);
    // Last: the JSON says that all manifests are there.
    let side = Side {
        segments: weigh(&wanted, &found),
        manifests: manifest_sums(&cx.objects, &metadata.manifest_list).await?,
    };
    let json = with_side(&json, &side)?;
    let size = json.len() as u64;
    let key = metadata_key(&root, state.collection, state.id()?);
    cx.put_object(&key, Bytes::from(json)).await?;
    cx.progress().file(size);
    digest(&metadata, &selection)
}

/// As [`renew`], when the last sign of life is old: after a crash, or after a long wait.
async fn renew_if_due(cx: &JobCx, state: &State) -> Result<()> {
    let (_, _, info) = own_pending(cx, state).await?;
    let silent = cx.clock.now().since(UnixMs(info.pending_start_time));
    if u128::from(silent) < RENEW.as_millis() {
        return Ok(());
    }
    renew(cx, state).await
}

/// Moves `pending_start_time` on, so that nobody collects a record whose creator lives.
async fn renew(cx: &JobCx, state: &State) -> Result<()> {
    let (key, kv, _) = own_pending(cx, state).await?;
    let now = cx.clock.now();
    let mut patch = Patch::parse(&kv.value)?;
    patch.set_integer(9, now.0.cast_unsigned());
    let value = patch.finish();
    cx.commit_own(Change {
        name: format!("renew-{}", kv.mod_rev),
        conds: vec![Cond::At(key.clone(), kv.mod_rev)],
        writes: vec![Write::put(key, value)],
        atomic: true,
    })
    .await?;
    Ok(())
}

async fn commit(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let (_, _, info) = own(cx, &state).await?;
    if info.state() == SnapshotState::Committed {
        // The transaction went through before a crash.
        state.step = Step::Verify;
        return Ok(Next::Published(state));
    }
    // A coordinator may have come and gone since the manifests were written: what it compacted away must not be in them.
    let (_, metadata, selection) = living(cx, &state, build(cx, &state)).await?;
    if digest(&metadata, &selection)? != state.digest {
        if state.turn + 1 >= TURNS {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the collection keeps changing while its snapshot is made",
            )
            .fix("make sure that nothing writes to this root, and try again"));
        }
        cx.note("the collection changed while its snapshot was made: selecting again");
        // The record moves on first: an earlier commit that arrives late must not find it as it was.
        renew(cx, &state).await?;
        let root = cx.objects.root().to_owned();
        remove_objects(cx, &root, state.collection, state.id()?).await?;
        state.turn += 1;
        state.step = Step::Write;
        return Ok(Next::Step(state));
    }
    // As it is after the last sign of life.
    let (key, kv, info) = own_pending(cx, &state).await?;
    let Some(written) = metadata.snapshot_info else {
        return Err(Error::new(
            ErrorKind::Internal,
            "metadata without its record",
        ));
    };
    let record = SnapshotInfo {
        state: SnapshotState::Committed as i32,
        s3_location: metadata_key(cx.objects.root(), state.collection, state.id()?).0,
        pending_start_time: info.pending_start_time,
        ..written
    };
    cx.commit(Change {
        name: format!("commit-{}", state.turn),
        conds: vec![Cond::At(key.clone(), kv.mod_rev)],
        writes: vec![
            Write::put(key, record.encode_to_vec()),
            snapshot_notes::since(cx, state.id()?, SnapshotState::Committed as i32)?,
        ],
        atomic: true,
    })
    .await?;
    state.step = Step::Verify;
    Ok(Next::Published(state))
}

/// Everything again, from the stores: record, JSON, manifests, and each referenced object. The result is kept.
async fn verify(cx: &JobCx, state: &State) -> Result<()> {
    let (_, _, info) = own(cx, state).await?;
    if info.state() != SnapshotState::Committed {
        return Err(
            Error::new(ErrorKind::Corrupt, "the record is not COMMITTED")
                .fix("drop this snapshot and make a new one"),
        );
    }
    let mut found = examine(&reads(cx), info, false, cx.clock.now()).await?;
    found.job = Some(cx.job);
    keep(cx, state.id()?, &found).await?;
    tell(cx, &found)
}
