//! Putting back what a job moved aside: never over an object that exists.
//!
//! A batch is journaled after all its places were found free, and before the first copy: so an object that stands in its place later,
//! with the same size, is our own copy of an earlier try, and anything else is somebody's.

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::quarantine::{found, look, lying, origin, record};
use super::restore::reads;
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, JobId, MetaRev, ObjectKey, UnixMs};
use crate::engine::meta::{Cond, Write};
use crate::engine::model::jobs::JobKind;
use crate::engine::model::orphans::Tally;
use crate::engine::model::quarantine::Yard;
use crate::engine::model::text::bytes;
use crate::engine::objects::ObjectRead;
use crate::engine::plan::execute::Change;
use crate::engine::plan::journal::{Keys, json};
use crate::engine::plan::{Check, Danger, Intent, ObjectChange, Plan};

/// Objects put back between two journal entries.
const BATCH: usize = 256;
/// Names kept for the eye, and places asked about while planning.
const SAMPLES: usize = 20;
/// Conflicts told one by one.
const TOLD: u64 = 20;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// What this job moved aside.
    pub of: JobId,
    /// Only what began with this.
    pub prefix: String,
    /// Everything up to here, aside, is done.
    pub after: Option<ObjectKey>,
    /// Being put back.
    pub batch: Option<Batch>,
    /// Put back.
    pub done: Tally,
    /// Left aside: something stands in its place.
    pub taken: Tally,
    /// Everything was looked at.
    pub swept: bool,
}

/// Objects whose places were free.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    /// Original keys and bytes.
    pub files: Vec<(ObjectKey, u64)>,
    /// The position once they are back; the end when absent.
    pub to: Option<ObjectKey>,
}

/// The machine.
pub struct QuarantineRestore;

/// What lies aside of a job and began with `prefix`, as originals: at most `limit` behind `after`. With the position, absent at the end.
async fn aside(
    objects: &ObjectRead,
    of: JobId,
    prefix: &str,
    after: Option<&ObjectKey>,
    limit: usize,
) -> Result<(Vec<(ObjectKey, u64)>, Option<ObjectKey>)> {
    let yard = Yard::of(objects.root());
    let mut listed = objects.list(&yard.job(of), after);
    let mut out = Vec::new();
    while let Some(object) = listed.try_next().await? {
        if let Some(original) = yard.original(of, &object.key)
            && original.0.starts_with(prefix)
        {
            out.push((original, object.size));
            if out.len() >= limit {
                return Ok((out, Some(object.key)));
            }
        }
    }
    Ok((out, None))
}

impl QuarantineRestore {
    async fn list_on(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let (found, to) = aside(
            &cx.objects,
            state.of,
            &state.prefix,
            state.after.as_ref(),
            BATCH,
        )
        .await?;
        let at_once = (cx.parallel() as usize).max(1);
        let looks: Vec<_> = found
            .into_iter()
            .map(|(key, size)| {
                async move { Ok::<_, Error>((look(cx, &key).await?.is_some(), key, size)) }.boxed()
            })
            .collect();
        let places: Vec<(bool, ObjectKey, u64)> =
            stream::iter(looks).buffered(at_once).try_collect().await?;
        let mut batch = Batch {
            to,
            ..Batch::default()
        };
        for (is_taken, key, size) in places {
            if is_taken {
                taken(cx, &mut state, &key, size);
            } else {
                batch.files.push((key, size));
            }
        }
        state.batch = Some(batch);
        Ok(Next::Step(state))
    }

    async fn put_back(&self, cx: &JobCx, mut state: State, batch: Batch) -> Result<Next<State>> {
        let at_once = (cx.parallel() as usize).max(1);
        let of = state.of;
        let moves: Vec<_> = batch
            .files
            .iter()
            .map(|(key, size)| {
                async move { Ok::<_, Error>((key, *size, one(cx, of, key, *size).await?)) }.boxed()
            })
            .collect();
        let done: Vec<(&ObjectKey, u64, bool)> = stream::iter(moves)
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        for (key, size, is_back) in done {
            if is_back {
                state.done.add(size);
                cx.progress().file(size);
            } else {
                taken(cx, &mut state, key, size);
            }
        }
        state.batch = None;
        state.swept = batch.to.is_none();
        state.after = batch.to;
        if state.swept {
            cx.note(format!(
                "{} objects of {} are back in their places",
                state.done.objects,
                bytes(state.done.bytes)
            ));
            if state.taken.objects > 0 {
                cx.note(format!(
                    "{} objects of {} stay aside: something stands in their places",
                    state.taken.objects,
                    bytes(state.taken.bytes)
                ));
            }
            return Ok(Next::Published(state));
        }
        Ok(Next::Step(state))
    }
}

fn taken(cx: &JobCx, state: &mut State, key: &ObjectKey, size: u64) {
    state.taken.add(size);
    if state.taken.objects <= TOLD {
        cx.note(format!("left aside: {key} exists, and is not overwritten"));
    }
}

/// Puts one object back; `false` when something else stands in its place.
async fn one(cx: &JobCx, of: JobId, key: &ObjectKey, size: u64) -> Result<bool> {
    let yard = Yard::of(cx.objects.root());
    let from = yard.aside(of, key);
    let kept = look(cx, &from).await?;
    match (look(cx, key).await?, kept) {
        // An earlier try came as far as the end.
        (Some(there), None) if there.size == size => Ok(true),
        // Its place was free when the batch was journaled: this is our copy.
        (Some(there), Some(_)) if there.size == size => {
            cx.delete_object(&from).await?;
            Ok(true)
        }
        (Some(_), _) => Ok(false),
        (None, None) => Err(Error::new(
            ErrorKind::Corrupt,
            format!("object {key} is neither in its place nor aside as {from}"),
        )
        .fix("compare with the bucket's history: somebody else has removed it")),
        (None, Some(kept)) => {
            cx.paced(size).await?;
            cx.copy_object(&cx.objects, origin(&kept), key).await?;
            cx.delete_object(&from).await?;
            Ok(true)
        }
    }
}

async fn drop_index(cx: &JobCx, yard: &Yard, of: JobId) -> Result<()> {
    for index in reads(cx).list(&yard.indexes(of)).await?.into_keys() {
        cx.delete_object(&index).await?;
    }
    Ok(())
}

/// Brings the record up to date with what lies there still; without anything it goes, its index first.
async fn settle(cx: &JobCx, of: JobId, restored: u64) -> Result<Tally> {
    let yard = Yard::of(cx.objects.root());
    let there = lying(&cx.objects, &yard, of).await?;
    let (mut record, kv) = match record(&cx.meta, cx.keys(), of).await {
        Ok(found) => found,
        // Gone by an earlier try of this step, or before this job.
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if there.objects == 0 {
                drop_index(cx, &yard, of).await?;
            }
            return Ok(there);
        }
        Err(e) => return Err(e),
    };
    let write = if there.objects == 0 {
        drop_index(cx, &yard, of).await?;
        Write::Delete(kv.key.clone())
    } else {
        record.objects = there.objects;
        record.bytes = there.bytes;
        record.restored += restored;
        Write::put(kv.key.clone(), json(&record)?)
    };
    let change = Change {
        name: "quarantine-restored".into(),
        conds: vec![Cond::At(kv.key, kv.mod_rev)],
        writes: vec![write],
        atomic: true,
    };
    cx.commit(change).await?;
    Ok(there)
}

#[async_trait]
impl Job for QuarantineRestore {
    const KIND: JobKind = JobKind::QuarantineRestore;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let Intent::QuarantineRestore { job, prefix } = intent else {
            return Err(Error::new(
                ErrorKind::Internal,
                "not a restore from quarantine",
            ));
        };
        let keys = Keys::new(&cx.roots);
        let (record, rev) = found(&cx.meta, &cx.objects, &keys, *job).await?;
        let (mut all, mut first, mut after) = (Tally::default(), Vec::new(), None);
        loop {
            let (part, to) = aside(&cx.objects, *job, prefix, after.as_ref(), 10_000).await?;
            for (key, size) in part {
                all.add(size);
                if first.len() < SAMPLES {
                    first.push(key);
                }
            }
            match to {
                Some(to) => after = Some(to),
                None => break,
            }
        }
        let mut taken = 0;
        for key in &first {
            match cx.objects.head(key).await {
                Ok(_) => taken += 1,
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let mut warnings = vec![
            "what has no record is an orphan again: a Milvus that starts, and our next scan, take it after its tolerance unless \
             something refers to it by then"
                .to_owned(),
        ];
        if taken > 0 {
            warnings.push(format!(
                "of the first {} objects {taken} exist in their places: they are not overwritten, their copies stay aside",
                first.len()
            ));
        }
        Ok(Plan {
            intent: intent.clone(),
            title: format!(
                "quarantine: put back {} objects, {}, of job {job} ({})",
                all.objects,
                bytes(all.bytes),
                record.title
            ),
            checks: vec![
                Check {
                    name: "the job that moved them has ended".into(),
                    failed: record
                        .closed
                        .is_none()
                        .then(|| format!("job {job} still moves things aside; wait for it")),
                    detail: if rev > MetaRev(0) {
                        record.closed.map_or_else(String::new, UnixMs::utc)
                    } else {
                        record.title.clone()
                    },
                },
                Check {
                    name: "something lies there".into(),
                    failed: (all.objects == 0)
                        .then(|| format!("nothing of job {job} begins with {prefix:?}")),
                    detail: format!("{} objects", all.objects),
                },
            ],
            steps: vec![
                "find the place of each object free, or leave it aside".into(),
                "copy it back, compare its size, then remove the copy aside".into(),
            ],
            changes: Vec::new(),
            objects: ObjectChange {
                copies: all.objects,
                copy_bytes: all.bytes,
                samples: first.into_iter().map(|key| key.0).collect(),
                ..ObjectChange::default()
            },
            warnings,
            undo: "move them aside again: falconer gc orphans run".into(),
            danger: Danger::Low,
            type_to_confirm: None,
            based_on: rev,
            rests_on: vec![(keys.quarantine(*job).text(), rev)],
            hash: String::new(),
        })
    }

    /// No pass may run beside it: what is back is an orphan until something refers to it.
    fn locks(&self, _: &Plan) -> Vec<Lock> {
        vec![Lock::alone("quarantine"), Lock::shared("gc")]
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match &plan.intent {
            Intent::QuarantineRestore { job, prefix } => Ok(State {
                of: *job,
                prefix: prefix.clone(),
                after: None,
                batch: None,
                done: Tally::default(),
                taken: Tally::default(),
                swept: false,
            }),
            _ => Err(Error::new(
                ErrorKind::Internal,
                "not a restore from quarantine",
            )),
        }
    }

    fn collection(&self, _: &State) -> Option<CollectionId> {
        None
    }

    async fn step(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        if state.swept {
            // Each copy was compared with its source; what is left aside must be what was found taken, or out of scope.
            let there = settle(cx, state.of, state.done.objects).await?;
            if state.prefix.is_empty() && there != state.taken {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "{} objects lie aside, {} were left there",
                        there.objects, state.taken.objects
                    ),
                )
                .fix("look with: falconer quarantine list, and run it again"));
            }
            return Ok(Next::Verified(state));
        }
        cx.check_cancel()?;
        match state.batch.clone() {
            Some(batch) => self.put_back(cx, state, batch).await,
            None => self.list_on(cx, state).await,
        }
    }

    /// An object is in its place, aside, or both: none is lost, and nothing is taken from its place again.
    async fn undo(&self, cx: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        if let Some(batch) = state.batch.take() {
            for (key, size) in &batch.files {
                // Only what was copied already is finished: a second copy would look like somebody else's object.
                if look(cx, key).await?.is_some() && one(cx, state.of, key, *size).await? {
                    state.done.add(*size);
                }
            }
            return Ok(Next::Step(state));
        }
        settle(cx, state.of, state.done.objects).await?;
        cx.note("objects put back so far stay; the others lie aside");
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let text = format!("{} objects are back", state.done.objects);
        (text, u32::from(state.swept), 2)
    }
}
