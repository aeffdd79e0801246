//! A change of collections, partitions or index definitions: keys, checks, one broadcast, and a look at what it came to.
//!
//! ids → broadcast (keys held, checks made under them) → wait for its callbacks → the snapshots of a dropped collection, by a broadcast
//! of their own → read back. Once the broadcast is persisted it happens, whoever stops waiting: there is no way back, and a job that is
//! cancelled later goes on to its end.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::ddl_look::{CREATED, Look, Target};
use super::ddl_plan::{allowed, collection_of, index_info, none_ahead, plan, room_for};
use super::restore::reads;
use super::{Job, Lock, Next, PlanCx};
use crate::engine::broadcast::Order;
use crate::engine::coordinator::Service;
use crate::engine::coordinator::orders::{self, Making, Named};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb::common::SegmentState;
use crate::engine::format::pb::data::{SegmentInfo, SnapshotInfo, SnapshotState};
use crate::engine::format::pb::messages::MessageType;
use crate::engine::format::vchannel::compose;
use crate::engine::ids::{BroadcastId, CollectionId, IndexId, PartitionId, VChannel};
use crate::engine::meta::Span;
use crate::engine::model::broadcast::ResourceKeys;
use crate::engine::model::ddl::{TRUNCATING, is_pinned};
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::{Ddl as Change, Intent, Plan};

/// How long a broadcast may wait before the job says for what.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// The kind.
pub struct Ddl;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    change: Change,
    step: Step,
    /// Ids of what is made, in order: collection, its partitions; or a partition; or an index.
    ids: Vec<i64>,
    /// Database and name, once they are held.
    named: Option<(String, String)>,
    broadcast: Option<BroadcastId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    Ids,
    Broadcast,
    Wait,
    Snapshots,
    WaitSnapshots,
    Verify,
    Undone,
}

impl State {
    fn kind(&self) -> MessageType {
        match (self.step, &self.change) {
            (Step::Snapshots | Step::WaitSnapshots, _) => MessageType::DropSnapshotsByCollection,
            (_, Change::CreateCollection { .. }) => MessageType::CreateCollection,
            (_, Change::DropCollection { .. }) => MessageType::DropCollection,
            (_, Change::TruncateCollection { .. }) => MessageType::TruncateCollection,
            (_, Change::CreatePartition { .. }) => MessageType::CreatePartition,
            (_, Change::DropPartition { .. }) => MessageType::DropPartition,
            (_, Change::CreateIndex { .. }) => MessageType::CreateIndex,
            (_, Change::DropIndex { .. }) => MessageType::DropIndex,
        }
    }

    fn to(mut self, step: Step) -> Self {
        self.step = step;
        self
    }

    fn collection(&self) -> Option<CollectionId> {
        collection_of(&self.change).or_else(|| self.ids.first().copied().map(CollectionId))
    }

    fn id(&self) -> Result<CollectionId> {
        self.collection()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no collection id was taken"))
    }
}

fn look(cx: &JobCx) -> Look<'_> {
    Look {
        meta: &cx.meta,
        roots: &cx.roots,
    }
}

fn named(target: &Target) -> Named<'_> {
    Named {
        db: target.db,
        database: &target.database,
        id: target.id,
        name: &target.name,
        channels: &target.channels,
    }
}

fn moved(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conflict, what).fix("look at it again, and make a new plan")
}

#[async_trait]
impl Job for Ddl {
    const KIND: JobKind = JobKind::Ddl;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        plan(cx, intent).await
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::Ddl {
                change: Change::CreateCollection { database, name, .. },
            } => vec![Lock::alone(format!("target:{database}:{name}"))],
            Intent::Ddl { change } => collection_of(change)
                .map(|id| Lock::alone(format!("collection:{id}")))
                .into_iter()
                .collect(),
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match &plan.intent {
            Intent::Ddl { change } => Ok(State {
                change: change.clone(),
                step: Step::Ids,
                ids: Vec::new(),
                named: None,
                broadcast: None,
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a DDL")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        state.collection()
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        match state.step {
            Step::Ids => {
                let wanted = match &state.change {
                    Change::CreateCollection { spec, .. } => 1 + spec.partition_names()?.len(),
                    Change::CreatePartition { .. } | Change::CreateIndex { .. } => 1,
                    _ => 0,
                };
                if wanted > 0 {
                    let n = u32::try_from(wanted).unwrap_or(u32::MAX);
                    state.ids = cx.take_ids(n).await?.iter().collect();
                }
                Ok(Next::Step(state.to(Step::Broadcast)))
            }
            Step::Broadcast => broadcast(cx, state).await,
            Step::Wait => {
                wait(cx, &state).await?;
                let drops = matches!(state.change, Change::DropCollection { .. });
                let next = if drops { Step::Snapshots } else { Step::Verify };
                Ok(Next::Published(state.to(next)))
            }
            Step::Snapshots => snapshots(cx, state).await,
            Step::WaitSnapshots => {
                wait(cx, &state).await?;
                Ok(Next::Step(state.to(Step::Verify)))
            }
            Step::Verify => {
                verify(cx, &state).await?;
                Ok(Next::Verified(state))
            }
            Step::Undone => Err(Error::new(ErrorKind::Internal, "a step of an undone job")),
        }
    }

    /// Before the broadcast is persisted there is nothing to take back. Afterwards it happens: the job goes on with it.
    async fn undo(&self, cx: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        let service = match cx.service().await {
            Ok(service) => service,
            // Nothing was ever begun in a root that is not ours.
            Err(e) if e.kind() == ErrorKind::Unsupported && state.broadcast.is_none() => {
                return Ok(Next::Undone(state.to(Step::Undone)));
            }
            Err(e) => return Err(e),
        };
        let begun = match state.broadcast {
            Some(id) => Some(id),
            None => service.broadcaster.begun_by(cx.job, state.kind()).await?,
        };
        let Some(id) = begun else {
            return Ok(Next::Undone(state.to(Step::Undone)));
        };
        cx.note(format!(
            "broadcast {id} is persisted, so it happens: it cannot be taken back"
        ));
        state.broadcast = Some(id);
        if matches!(state.step, Step::Ids | Step::Broadcast) {
            state.step = Step::Wait;
        }
        Ok(Next::Published(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let drops = matches!(state.change, Change::DropCollection { .. });
        let all = if drops { 6 } else { 4 };
        let id = state
            .broadcast
            .map_or_else(String::new, |id| format!(" {id}"));
        let (text, done) = match state.step {
            Step::Ids => ("take ids".into(), 0),
            Step::Broadcast => ("hold the name, check, broadcast".into(), 1),
            Step::Wait => (format!("wait for broadcast{id}"), 2),
            Step::Snapshots => ("drop its snapshots".into(), 3),
            Step::WaitSnapshots => (format!("wait for broadcast{id}"), 4),
            Step::Verify => ("read it back".into(), all - 1),
            Step::Undone => ("taken back".into(), 0),
        };
        (text, done, all)
    }
}

/// Database and name that the keys are made of.
async fn name_of(cx: &JobCx, state: &State) -> Result<(String, String)> {
    if let Change::CreateCollection { database, name, .. } = &state.change {
        return Ok((database.clone(), name.clone()));
    }
    let target = look(cx).target(state.id()?).await?;
    Ok((target.database, target.name))
}

async fn broadcast(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let service = cx.service().await?;
    // Begun before a crash, and not journaled.
    if let Some(id) = service.broadcaster.begun_by(cx.job, state.kind()).await? {
        state.broadcast = Some(id);
        if state.named.is_none() {
            state.named = name_of(cx, &state).await.ok();
        }
        return Ok(Next::Step(state.to(Step::Wait)));
    }
    let (database, name) = name_of(cx, &state).await?;
    let keys = ResourceKeys::of_collection(&database, &name);
    // As long as the job is not told to stop. What is broadcast then does not end with it.
    let waiting = service.broadcaster.within(cx.scope());
    let guard = waiting.lock(keys).await?;
    let order = prepare(cx, &service, &state, (&database, &name)).await?;
    let ticket = service
        .broadcaster
        .broadcast(cx.who(), guard, order)
        .await?;
    state.broadcast = Some(ticket.id());
    state.named = Some((database, name));
    Ok(Next::Step(state.to(Step::Wait)))
}

/// The message, after the checks have held once more under the keys.
async fn prepare(
    cx: &JobCx,
    service: &Service,
    state: &State,
    (database, name): (&str, &str),
) -> Result<Order> {
    let control = &service.control;
    if let Change::CreateCollection { spec, .. } = &state.change {
        let id = state.id()?;
        let (db, _) = room_for(&reads(cx), database, name).await?;
        let schema = spec.schema(database, name)?;
        let partitions: Vec<(PartitionId, String)> = state.ids[1..]
            .iter()
            .copied()
            .map(PartitionId)
            .zip(spec.partition_names()?)
            .collect();
        let physical = service.place(spec.shard_count()?)?;
        let channels: Vec<(VChannel, String)> = (0..)
            .zip(physical)
            .map(|(shard, p)| (compose(&p, id, shard), p))
            .collect();
        return Ok(orders::create_collection(
            control,
            &Making {
                named: Named {
                    db,
                    database,
                    id,
                    name,
                    channels: &[],
                },
                schema: &schema,
                partitions: &partitions,
                channels: &channels,
            },
        ));
    }
    let target = look(cx).target(state.id()?).await?;
    if (target.database.as_str(), target.name.as_str()) != (database, name) {
        return Err(moved(format!(
            "collection {name} became {}/{} meanwhile",
            target.database, target.name
        )));
    }
    let mut checks = allowed(&state.change, &target);
    if matches!(state.change, Change::TruncateCollection { .. }) {
        let segments = look(cx).segments(target.id).await?;
        checks.push(none_ahead(&segments, cx.clock.now()));
    }
    if let Some(bad) = checks.into_iter().find(|c| c.failed.is_some()) {
        let why = bad.failed.unwrap_or_default();
        return Err(moved(format!("{}: {why}", bad.name)));
    }
    let at = named(&target);
    Ok(match &state.change {
        Change::CreateCollection { .. } => {
            return Err(Error::new(ErrorKind::Internal, "made above"));
        }
        Change::DropCollection { .. } => orders::drop_collection(control, &at),
        Change::TruncateCollection { .. } => orders::truncate_collection(control, &at),
        Change::CreatePartition { name, .. } => {
            let id = PartitionId(state.ids.first().copied().unwrap_or_default());
            orders::create_partition(control, &at, id, name)
        }
        Change::DropPartition { name, .. } => {
            let gone = || moved(format!("partition {name} is gone"));
            let id = target.partition(name).ok_or_else(gone)?;
            orders::drop_partition(control, &at, id, name)
        }
        Change::CreateIndex {
            field,
            name,
            params,
            ..
        } => {
            let mut info = index_info(&target, field, name, params)?;
            info.index_id = state.ids.first().copied().unwrap_or_default();
            orders::create_index(control, target.db, info)
        }
        Change::DropIndex { name, .. } => {
            let gone = || moved(format!("index {name} is gone"));
            let id = target.index(name).ok_or_else(gone)?.index_id;
            orders::drop_index(control, target.id, IndexId(id))
        }
    })
}

/// Until its callbacks have succeeded and its tombstone is persisted. What it waits for is said now and then.
async fn wait(cx: &JobCx, state: &State) -> Result<()> {
    let service = cx.service().await?;
    let id = state
        .broadcast
        .ok_or_else(|| Error::new(ErrorKind::Internal, "no broadcast was begun"))?;
    let Some(ticket) = service.broadcaster.ticket(id) else {
        // Not among the unfinished ones: finished.
        return Ok(());
    };
    let done = ticket.done();
    tokio::pin!(done);
    let mut told = None;
    loop {
        tokio::select! {
            done = &mut done => return done.map(|_| ()),
            () = cx.clock.sleep(PATIENCE) => {}
        }
        let shown = service.broadcaster.shown();
        if let Some(it) = shown.into_iter().find(|s| s.id == id) {
            let kind = std::mem::discriminant(&it.waiting);
            if told != Some(kind) {
                told = Some(kind);
                cx.note(format!("broadcast {id} waits for: {}", it.waiting));
            }
        }
    }
}

async fn snapshots_of(cx: &JobCx, id: CollectionId) -> Result<Vec<SnapshotInfo>> {
    let all = look(cx).under::<SnapshotInfo>(Family::Snapshot, id).await?;
    let alive = all.into_iter().map(|(_, s)| s);
    Ok(alive
        .filter(|s| s.state() != SnapshotState::Deleting)
        .collect())
}

/// The snapshots of a collection that is gone: those without a pin go, by a broadcast of their own, so that a pin that is put on
/// meanwhile is seen in the same order by everybody.
async fn snapshots(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let id = state.id()?;
    let service = cx.service().await?;
    if let Some(begun) = service.broadcaster.begun_by(cx.job, state.kind()).await? {
        state.broadcast = Some(begun);
        return Ok(Next::Step(state.to(Step::WaitSnapshots)));
    }
    let now = cx.clock.now();
    let found = snapshots_of(cx, id).await?;
    for kept in found.iter().filter(|s| is_pinned(s, now)) {
        cx.note(format!("snapshot {} is pinned and stays", kept.name));
    }
    if found.iter().all(|s| is_pinned(s, now)) {
        return Ok(Next::Step(state.to(Step::Verify)));
    }
    let (database, name) = state.named.clone().unwrap_or_default();
    let keys = ResourceKeys::beside_collection(&database, &name);
    let guard = service.broadcaster.lock(keys).await?;
    let order = orders::drop_snapshots(&service.control, id);
    let ticket = service
        .broadcaster
        .broadcast(cx.who(), guard, order)
        .await?;
    state.broadcast = Some(ticket.id());
    Ok(Next::Step(state.to(Step::WaitSnapshots)))
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
        .fix("look at the broadcasts and at the records with: falconer describe")
}

fn healthy(segment: &SegmentInfo) -> bool {
    segment.state != SegmentState::Dropped as i32
}

/// Everything again, from the store.
async fn verify(cx: &JobCx, state: &State) -> Result<()> {
    let id = state.id()?;
    let look = look(cx);
    let service = cx.service().await?;
    match &state.change {
        Change::DropCollection { .. } => {
            if let Some((_, kv, _)) = look.own(id).await? {
                return Err(wrong(format!("key {} is there again", kv.key)));
            }
            for family in [
                Family::Partition,
                Family::Field,
                Family::Function,
                Family::StructField,
                Family::Replica,
            ] {
                let span = Span::prefix(&family.under(&cx.roots, &[id.0]));
                if let Some(kv) = cx.meta.range_all(&span).await?.kvs.first() {
                    return Err(wrong(format!("key {} is left of the collection", kv.key)));
                }
            }
            if let Some(left) = look.segments(id).await?.iter().find(|s| healthy(s)) {
                return Err(wrong(format!(
                    "segment {} of the collection is not dropped",
                    left.id
                )));
            }
            let now = cx.clock.now();
            if let Some(left) = snapshots_of(cx, id)
                .await?
                .iter()
                .find(|s| !is_pinned(s, now))
            {
                cx.note(format!(
                    "snapshot {} has no pin and is left: drop it by itself",
                    left.name
                ));
            }
            Ok(())
        }
        Change::CreateCollection { name, .. } => {
            let target = look.target(id).await?;
            if target.info.state != CREATED || target.name != *name || target.fields.is_empty() {
                return Err(wrong(format!("collection {id} is not whole")));
            }
            for channel in &target.channels {
                let mark = Key::ChannelRemoval(channel.clone()).to_key(&cx.roots);
                if service.checkpoints.get(channel).is_none() || cx.meta.get(&mark).await?.is_none()
                {
                    return Err(wrong(format!(
                        "channel {channel} has no checkpoint or no mark"
                    )));
                }
            }
            cx.note(format!("collection {name} has id {id}"));
            Ok(())
        }
        Change::TruncateCollection { .. } => {
            let target = look.target(id).await?;
            if target.info.properties.iter().any(|p| p.key == TRUNCATING) {
                return Err(wrong(format!("property {TRUNCATING} is still there")));
            }
            let ticks = target.channels.iter().zip(&target.info.shard_infos);
            let ticks: BTreeMap<&str, u64> = ticks
                .map(|(v, shard)| (v.0.as_str(), shard.last_truncate_time_tick))
                .collect();
            for segment in look.segments(id).await?.iter().filter(|s| healthy(s)) {
                let last = segment.dml_position.as_ref().map_or(0, |p| p.timestamp);
                let tick = ticks
                    .get(segment.insert_channel.as_str())
                    .copied()
                    .unwrap_or(0);
                if last != 0 && last <= tick {
                    return Err(wrong(format!(
                        "segment {} is of before the truncate",
                        segment.id
                    )));
                }
            }
            Ok(())
        }
        Change::CreatePartition { name, .. } => {
            let there = look.target(id).await?.partition(name);
            there
                .map(|_| ())
                .ok_or_else(|| wrong(format!("partition {name} is not there")))
        }
        Change::DropPartition { name, .. } => match look.target(id).await?.partition(name) {
            Some(_) => Err(wrong(format!("partition {name} is still there"))),
            None => Ok(()),
        },
        Change::CreateIndex { .. } => {
            let wanted = state.ids.first().copied().unwrap_or_default();
            let target = look.target(id).await?;
            let there = target.indexes.contains_key(&IndexId(wanted));
            there
                .then_some(())
                .ok_or_else(|| wrong(format!("index {wanted} is not there")))
        }
        Change::DropIndex { name, .. } => match look.target(id).await?.index(name) {
            Some(_) => Err(wrong(format!("index {name} is still there"))),
            None => Ok(()),
        },
    }
}
