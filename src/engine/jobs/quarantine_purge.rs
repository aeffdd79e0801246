//! Deleting for good what was moved aside long enough ago: each object is judged once more, objects first, the record last.

use async_trait::async_trait;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::orphans::Minds;
use super::orphans_plan::ours;
use super::orphans_scan::again;
use super::quarantine::{lying, record};
use super::references::Keeper;
use super::restore::reads;
use super::restore_source::Reads;
use super::tickets::{self, Leave};
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::ObjPath;
use crate::engine::ids::{CollectionId, JobId, MetaRev, ObjectKey, UnixMs};
use crate::engine::meta::{Cond, MetaReader, Span, Write};
use crate::engine::model::holds::Tolerances;
use crate::engine::model::jobs::JobKind;
use crate::engine::model::orphans::{ByPrefix, Known, Tally, Verdict, judge, prefix, sum};
use crate::engine::model::quarantine::{Entry, Quarantine, Yard};
use crate::engine::model::text::bytes;
use crate::engine::objects::ObjectRead;
use crate::engine::plan::execute::Change;
use crate::engine::plan::journal::{Keys, from_json, json};
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// Objects deleted between two journal entries.
const BATCH: usize = 512;
/// Names kept for the eye, and kept objects told one by one.
const SAMPLES: usize = 20;

/// What is journaled.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Older than so many days.
    pub days: u32,
    /// Fixed in the first step; 0 before.
    pub cutoff: UnixMs,
    /// Those of the process that began it.
    #[serde(default)]
    pub tolerances: Option<Tolerances>,
    /// What goes, in order.
    pub due: Vec<JobId>,
    /// How many of them are done.
    pub done: usize,
    /// Everything of the one at hand has been judged: its record is next.
    #[serde(default)]
    pub emptied: bool,
    /// Everything up to here, of the one at hand, is done.
    pub after: Option<ObjectKey>,
    /// Deleted, by prefix.
    pub gone: ByPrefix,
    /// Kept: something refers to it by now.
    pub kept: Tally,
    /// Times that everything was looked at anew.
    pub repeats: u32,
}

/// The machine.
#[derive(Default)]
pub struct QuarantinePurge {
    minds: Minds,
}

/// All records, oldest first. One that cannot be read is left out: it is never due.
async fn records(meta: &MetaReader, keys: &Keys) -> Result<Vec<(Quarantine, MetaRev)>> {
    let page = meta.range_all(&Span::prefix(&keys.quarantines())).await?;
    let read = page.kvs.iter();
    Ok(read
        .filter_map(|kv| Some((from_json(&kv.key, &kv.value).ok()?, kv.mod_rev)))
        .collect())
}

/// Why an object that lies aside must not go: something owns it or refers to it by now. Its age is that of the quarantine.
fn needed(known: &Known, root: &str, original: &ObjectKey) -> Option<String> {
    let path = ObjPath::parse(root, &original.0);
    match judge(known, &path, original, UnixMs(1)) {
        Verdict::Orphan(_) => None,
        Verdict::Keep(hold) => Some(hold.to_string()),
    }
}

impl QuarantinePurge {
    /// With the cluster's own tolerances, and the references that the engine keeps.
    #[must_use]
    pub fn new(tolerances: Tolerances, keeper: Keeper) -> Self {
        Self {
            minds: Minds::new(tolerances, keeper),
        }
    }

    async fn batch(&self, cx: &JobCx, mut state: State, job: JobId) -> Result<Next<State>> {
        if state.emptied {
            return ended(cx, state, job).await;
        }
        if state.after.is_none()
            && let Some(why) = elsewhere(&cx.objects, &cx.meta, cx.keys(), job).await?
        {
            return Err(Error::new(ErrorKind::Conflict, why)
                .fix("name the cluster's own bucket and root, then plan again"));
        }
        let (waited, tickets) = tickets::wait(cx, None).await?;
        if waited {
            self.minds.forget(cx);
        }
        let root = cx.objects.root().to_owned();
        let yard = Yard::of(&root);
        let mut listed = cx.objects.list(&yard.job(job), state.after.as_ref());
        let (mut entries, mut to) = (Vec::new(), None);
        while let Some(object) = listed.try_next().await? {
            let Some(original) = yard.original(job, &object.key) else {
                continue;
            };
            entries.push(Entry {
                key: original,
                size: object.size,
                etag: None,
                modified: UnixMs(1),
                rule: String::new(),
            });
            if entries.len() >= BATCH {
                to = Some(object.key);
                break;
            }
        }
        drop(listed);
        let (mut mind, _) = self.minds.take(cx, state.cutoff, state.tolerances).await?;
        mind.seen.known.tickets = tickets;
        let Some(owned) = again(&reads(cx), &mut mind.seen, cx.job, &entries).await? else {
            state.repeats += 1;
            if state.repeats > 200 {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "snapshots keep moving under the purge",
                )
                .fix("run it when no other job is writing"));
            }
            return Ok(Next::Step(state));
        };
        for (entry, owned) in entries.iter().zip(owned) {
            let why = needed(&mind.seen.known, &root, &entry.key)
                .or_else(|| owned.then(|| "it has a record by now".to_owned()));
            if let Some(why) = why {
                state.kept.add(entry.size);
                if state.kept.objects <= SAMPLES as u64 {
                    cx.note(format!(
                        "kept aside, put it back with `falconer quarantine restore {job}`: {}: {why}",
                        entry.key
                    ));
                }
                continue;
            }
            let of = ObjPath::parse(&root, &entry.key.0).known();
            match tickets::leave(cx, None, of.and_then(|path| path.owner().collection)).await? {
                Leave::Go => {}
                Leave::Waited => {
                    // From the position on, with new eyes; what went so far is gone and is not listed again.
                    self.minds.forget(cx);
                    return Ok(Next::Step(state));
                }
                Leave::Not(ticket) => {
                    state.kept.add(entry.size);
                    if state.kept.objects <= SAMPLES as u64 {
                        cx.note(format!("kept aside: {}: {ticket}", entry.key));
                    }
                    continue;
                }
            }
            cx.paced(0).await?;
            cx.delete_object(&yard.aside(job, &entry.key)).await?;
            let by = prefix(&root, &entry.key).to_owned();
            state.gone.entry(by).or_default().add(entry.size);
            cx.progress().file(entry.size);
        }
        self.minds.keep(cx, mind);
        state.emptied = to.is_none();
        state.after = to;
        Ok(Next::Step(state))
    }
}

/// Why this is not the bucket that a job moved things aside in: neither an object nor an index file of it is here. A record must not be
/// forgotten because of that.
async fn elsewhere(
    objects: &ObjectRead,
    meta: &MetaReader,
    keys: &Keys,
    job: JobId,
) -> Result<Option<String>> {
    let yard = Yard::of(objects.root());
    for folder in [yard.job(job), yard.indexes(job)] {
        let mut listed = objects.list(&folder, None);
        if listed.try_next().await?.is_some() {
            return Ok(None);
        }
    }
    let of = match record(meta, keys, job).await {
        Ok((of, _)) => of,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok((of.objects > 0).then(|| {
        format!(
            "job {job} moved {} objects aside, and nothing of it is in {}: is this the cluster's bucket?",
            of.objects,
            objects.describe()
        )
    }))
}

/// Nothing of a job is left to judge: its record goes, or says what stays.
async fn ended(cx: &JobCx, mut state: State, job: JobId) -> Result<Next<State>> {
    finish(cx, &Yard::of(cx.objects.root()), job).await?;
    state.emptied = false;
    state.done += 1;
    if state.done >= state.due.len() {
        tell(cx, &state);
        return Ok(Next::Published(state));
    }
    Ok(Next::Step(state))
}

fn tell(cx: &JobCx, state: &State) {
    for (prefix, tally) in &state.gone {
        cx.note(format!(
            "{prefix}: deleted {} objects, {}",
            tally.objects,
            bytes(tally.bytes)
        ));
    }
    if state.kept.objects > 0 {
        cx.note(format!(
            "{} objects of {} stay aside: something refers to them",
            state.kept.objects,
            bytes(state.kept.bytes)
        ));
    }
}

/// The record goes once nothing lies there, its index before it; else it says what is left.
async fn finish(cx: &JobCx, yard: &Yard, job: JobId) -> Result<()> {
    let (mut of, kv) = match record(&cx.meta, cx.keys(), job).await {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let there = lying(&cx.objects, yard, job).await?;
    let write = if there.objects == 0 {
        for index in reads(cx).list(&yard.indexes(job)).await?.into_keys() {
            cx.paced(0).await?;
            cx.delete_object(&index).await?;
        }
        Write::Delete(kv.key.clone())
    } else {
        of.objects = there.objects;
        of.bytes = there.bytes;
        Write::put(kv.key.clone(), json(&of)?)
    };
    let change = Change {
        name: format!("purged-{job}"),
        conds: vec![Cond::At(kv.key, kv.mod_rev)],
        writes: vec![write],
        atomic: true,
    };
    cx.commit(change).await.map(drop)
}

#[async_trait]
impl Job for QuarantinePurge {
    const KIND: JobKind = JobKind::QuarantinePurge;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let Intent::QuarantinePurge { days } = intent else {
            return Err(Error::new(ErrorKind::Internal, "not a purge"));
        };
        let keys = Keys::new(&cx.roots);
        let now = cx.clock.now();
        let reads = Reads {
            meta: &cx.meta,
            objects: &cx.objects,
            roots: &cx.roots,
        };
        let (paused, tickets) = tickets::check(&cx.meta, &keys, None, now).await?;
        let all = records(&cx.meta, &keys).await?;
        let is_due = |q: &Quarantine| q.due(*days).is_some_and(|at| at <= now);
        let (due, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|(q, _)| is_due(q));
        let mut seen = self.minds.look(&reads, now).await?;
        seen.known.tickets = tickets;
        let root = cx.objects.root();
        let yard = Yard::of(root);
        let (mut gone, mut kept) = (ByPrefix::new(), Tally::default());
        let (mut samples, mut warnings, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        let mut elsewhere = None;
        for (of, _) in &due {
            if elsewhere.is_none() {
                elsewhere = self::elsewhere(&cx.objects, &cx.meta, &keys, of.job).await?;
            }
            let mut listed = cx.objects.list(&yard.job(of.job), None);
            while let Some(object) = listed.try_next().await? {
                let Some(original) = yard.original(of.job, &object.key) else {
                    continue;
                };
                if let Some(why) = needed(&seen.known, root, &original) {
                    kept.add(object.size);
                    if warnings.len() < SAMPLES {
                        warnings.push(format!("stays aside: {original}: {why}"));
                    }
                    continue;
                }
                let by = prefix(root, &original).to_owned();
                gone.entry(by).or_default().add(object.size);
                if samples.len() < SAMPLES {
                    samples.push(object.key.0);
                }
            }
            changes.push(KeyChange {
                key: keys.quarantine(of.job).text(),
                before: Some(format!(
                    "{}\nmoved aside: {}",
                    of.title,
                    of.closed.map_or_else(String::new, UnixMs::utc)
                )),
                after: None,
            });
        }
        for (of, _) in &later {
            let when = of.due(*days).map_or_else(
                || "its job has not ended".to_owned(),
                |at| format!("until {}", at.utc()),
            );
            warnings.push(format!("not yet: job {} ({}), {when}", of.job, of.title));
        }
        let total = sum(gone.values());
        let [bucket, metadata] = ours(&reads, &seen).await?;
        Ok(Plan {
            intent: intent.clone(),
            title: format!(
                "quarantine: delete {} objects, {}, that {} jobs moved aside {days} days ago or earlier",
                total.objects,
                bytes(total.bytes),
                due.len()
            ),
            checks: vec![
                bucket,
                metadata,
                Check {
                    name: "the bucket is the one that they were moved in".into(),
                    failed: elsewhere,
                    detail: format!("{} objects", total.objects + kept.objects),
                },
                Check {
                    name: "something is old enough".into(),
                    failed: due
                        .is_empty()
                        .then(|| format!("nothing was moved aside {days} days ago or earlier")),
                    detail: format!("{} jobs", due.len()),
                },
                paused,
            ],
            steps: vec![
                "judge each object once more: what something refers to by now stays".into(),
                format!("delete {}", super::orphans_plan::line(&gone)),
                "objects first, index files next, the record last".into(),
            ],
            changes,
            objects: ObjectChange {
                deletes: total.objects,
                delete_bytes: total.bytes,
                samples,
                ..ObjectChange::default()
            },
            warnings,
            undo: "none: deleted objects are gone".into(),
            danger: Danger::High,
            type_to_confirm: Some("purge".into()),
            based_on: seen.rev,
            // What was shown is what goes: `begin` takes the jobs from here.
            rests_on: due
                .iter()
                .map(|(q, rev)| (keys.quarantine(q.job).text(), *rev))
                .collect(),
            hash: String::new(),
        })
    }

    fn locks(&self, _: &Plan) -> Vec<Lock> {
        vec![Lock::alone("quarantine")]
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match &plan.intent {
            Intent::QuarantinePurge { days } => Ok(State {
                days: *days,
                due: plan
                    .rests_on
                    .iter()
                    .filter_map(|(key, _)| key.rsplit('/').next()?.parse().ok())
                    .collect(),
                ..State::default()
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a purge")),
        }
    }

    fn collection(&self, _: &State) -> Option<CollectionId> {
        None
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        cx.check_cancel()?;
        if state.cutoff == UnixMs(0) {
            state.cutoff = cx.clock.now();
            state.tolerances = Some(self.minds.tolerances);
            return Ok(Next::Step(state));
        }
        if let Some(job) = state.due.get(state.done).copied() {
            return self.batch(cx, state, job).await;
        }
        self.minds.forget(cx);
        verify(cx, state).await
    }

    async fn undo(&self, cx: &JobCx, state: State, _: &Error) -> Result<Next<State>> {
        self.minds.forget(cx);
        tell(cx, &state);
        cx.note("what was deleted so far is gone; the rest lies aside as before");
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let gone = sum(state.gone.values());
        let all = u32::try_from(state.due.len()).unwrap_or(u32::MAX);
        let done = u32::try_from(state.done).unwrap_or(u32::MAX);
        (
            format!("{} objects deleted", gone.objects),
            done,
            all.max(1),
        )
    }
}

/// Of each job that is done either the record says what is left, or nothing is.
async fn verify(cx: &JobCx, state: State) -> Result<Next<State>> {
    let yard = Yard::of(cx.objects.root());
    for job in &state.due {
        let there = lying(&cx.objects, &yard, *job).await?;
        if there.objects > 0 && cx.meta.get(&cx.keys().quarantine(*job)).await?.is_none() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} objects of job {job} lie aside without a record",
                    there.objects
                ),
            )
            .fix("put them back: falconer quarantine restore JOB lists them by name"));
        }
    }
    Ok(Next::Verified(state))
}
