//! One scan of the bucket for objects that nobody owns: list on, judge, write down a batch, read again what it rests on, move it aside.
//!
//! The cut-off is fixed in the first step. The listing's position is journaled after each batch; a batch is written down, as an index
//! file, before its first object moves, so that a crash leaves nothing that nobody knows of. A listing or a picture of the metadata
//! older than [`OLDEST`] is thrown away and made anew (`spec/oncall.md` rule 13).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::orphans_plan::{Scope, is_newer, line, ours, plan, too_old};
use super::orphans_scan::{Seen, Wants, again, look};
use super::quarantine::{self, Outcome, aside, destroy, put_index, read_index, settle};
use super::references::Keeper;
use super::restore::reads;
use super::restore_source::Reads;
use super::{Job, Lock, Next, PlanCx, tickets};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::ObjPath;
use crate::engine::ids::{CollectionId, ObjectKey, UnixMs};
use crate::engine::model::holds::Tolerances;
use crate::engine::model::jobs::JobKind;
use crate::engine::model::orphans::{Report, Rule, Tally, Verdict, judge, newest_of, prefix};
use crate::engine::model::quarantine::{Entry, Yard};
use crate::engine::model::text::bytes;
use crate::engine::objects::ObjectMeta;
use crate::engine::plan::{Intent, Plan};

/// Objects written down and moved between two journal entries.
const BATCH: usize = 512;
/// Objects listed between two journal entries when nothing is found.
const PAGE: u64 = 100_000;
/// Time between two journal entries while listing.
const SLICE: Duration = Duration::from_secs(5);
/// A listing, and what is known of the cluster, are believed for so long.
pub const OLDEST: Duration = Duration::from_mins(30);
/// Times that everything is looked at anew because something moved.
const REPEATS: u32 = 200;
/// Reasons told one by one; the rest is counted.
const TOLD: u64 = 20;

/// What is journaled.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Only objects of this collection.
    pub collection: Option<CollectionId>,
    /// Only these prefixes; all when empty.
    pub prefixes: Vec<String>,
    /// Delete instead of moving aside.
    pub delete: bool,
    /// Fixed in the first step; 0 before.
    pub cutoff: UnixMs,
    /// Those of the process that began it.
    #[serde(default)]
    pub tolerances: Option<Tolerances>,
    /// Which of the walks goes on.
    pub walk: usize,
    /// Everything up to here, in this walk, is done.
    pub after: Option<ObjectKey>,
    /// Written down, and on its way.
    pub batch: Option<Batch>,
    /// Batches written down so far: names their index files.
    pub batches: u64,
    /// What was found.
    pub report: Report,
    /// What went, by rule.
    pub gone: BTreeMap<Rule, Tally>,
    /// What was to go and stayed: it had an owner by then, was written again, or could not be moved.
    pub stayed: Tally,
    /// Times that everything was looked at anew because something had moved.
    pub repeats: u32,
    /// The whole bucket has been walked.
    pub swept: bool,
}

/// Orphans written down in an index file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Its number.
    pub number: u64,
    /// The position once it is done; the walk ends with it when absent.
    pub to: Option<ObjectKey>,
    /// What was listed since the last position.
    pub report: Report,
    /// When it was listed.
    pub listed: UnixMs,
}

impl State {
    fn scope(&self) -> Scope {
        Scope {
            collection: self.collection,
            prefixes: self.prefixes.clone(),
            delete: self.delete,
        }
    }

    /// The part up to `to` is done; the walk itself when absent.
    fn pass(&mut self, to: Option<ObjectKey>, report: Report, walks: usize) {
        self.report.merge(report);
        self.after = to;
        if self.after.is_none() {
            self.walk += 1;
            self.swept = self.walk >= walks;
        }
    }

    fn all_gone(&self) -> Tally {
        crate::engine::model::orphans::sum(self.gone.values())
    }
}

/// A listing under way. Only a hint: a process that takes the job up lists on from the journaled position.
struct Walk {
    listed: BoxStream<'static, Result<ObjectMeta>>,
    /// The position it has come to.
    at: (usize, Option<ObjectKey>),
    begun: Duration,
}

/// What a process has in memory of one job.
pub(super) struct Mind {
    pub seen: Seen,
    read: Duration,
    walk: Option<Walk>,
}

/// That of all jobs, and what every look begins with.
#[derive(Default)]
pub(super) struct Minds {
    pub tolerances: Tolerances,
    pub keeper: Keeper,
    of: Mutex<BTreeMap<i64, Mind>>,
}

impl Minds {
    /// With the cluster's own tolerances, and the references that the engine keeps.
    pub fn new(tolerances: Tolerances, keeper: Keeper) -> Self {
        Self {
            tolerances,
            keeper,
            of: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Mind>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a plan sees.
    pub async fn look(&self, reads: &Reads<'_>, cutoff: UnixMs) -> Result<Seen> {
        let wants = Wants {
            cutoff,
            tolerances: self.tolerances,
            me: None,
        };
        look(reads, &self.keeper, cutoff, wants).await
    }

    /// What is known, by the tolerances that the job began with; and whether it was read anew, because it was too old or unknown here.
    pub async fn take(
        &self,
        cx: &JobCx,
        cutoff: UnixMs,
        tolerances: Option<Tolerances>,
    ) -> Result<(Mind, bool)> {
        let kept = self.lock().remove(&cx.job.0);
        let now = cx.clock.mono();
        if let Some(mut mind) = kept
            && now.saturating_sub(mind.read) < OLDEST
        {
            let stale = |w: &Walk| now.saturating_sub(w.begun) >= OLDEST;
            mind.walk = mind.walk.filter(|w| !stale(w));
            return Ok((mind, false));
        }
        let wants = Wants {
            cutoff,
            tolerances: tolerances.unwrap_or(self.tolerances),
            me: Some(cx.job),
        };
        let seen = look(&reads(cx), &self.keeper, cx.clock.now(), wants).await?;
        for why in &seen.unreadable {
            cx.note(format!("kept: {why}"));
        }
        let mind = Mind {
            seen,
            read: now,
            walk: None,
        };
        Ok((mind, true))
    }

    pub fn keep(&self, cx: &JobCx, mind: Mind) {
        self.lock().insert(cx.job.0, mind);
    }

    pub fn forget(&self, cx: &JobCx) {
        self.lock().remove(&cx.job.0);
    }
}

/// The machine.
#[derive(Default)]
pub struct Orphans {
    minds: Minds,
}

impl Orphans {
    /// With the cluster's own tolerances, and the references that the engine keeps.
    #[must_use]
    pub fn new(tolerances: Tolerances, keeper: Keeper) -> Self {
        Self {
            minds: Minds::new(tolerances, keeper),
        }
    }

    async fn begin(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        state.cutoff = cx.clock.now();
        state.tolerances = Some(self.minds.tolerances);
        let mind = self.mind(cx, &state).await?;
        quarantine::open(cx, &title(&state), state.collection).await?;
        self.minds.keep(cx, mind);
        Ok(Next::Step(state))
    }

    /// With every look, by this process too: against a wrong bucket or wrong metadata everything is an orphan.
    async fn mind(&self, cx: &JobCx, state: &State) -> Result<Mind> {
        let (mind, is_new) = self.minds.take(cx, state.cutoff, state.tolerances).await?;
        if is_new {
            for check in ours(&reads(cx), &mind.seen).await? {
                if let Some(why) = check.failed {
                    return Err(Error::new(ErrorKind::Conflict, why)
                        .fix("name the cluster's own bucket and roots, then plan again"));
                }
            }
        }
        Ok(mind)
    }

    /// Lists on until a batch is full, the slice ends, or the walk does.
    async fn list_on(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let (waited, tickets) = tickets::wait(cx, state.collection).await?;
        if waited {
            // What was read before the pause is as old as the pause.
            self.minds.forget(cx);
        }
        let mut mind = self.mind(cx, &state).await?;
        mind.seen.known.tickets = tickets;
        let scope = state.scope();
        let root = cx.objects.root().to_owned();
        let yard = Yard::of(&root);
        let walks = scope.walks(&root);
        let Some(from) = walks.get(state.walk) else {
            state.swept = true;
            return Ok(Next::Step(state));
        };
        let here = (state.walk, state.after.clone());
        let begun = cx.clock.mono();
        let mut walk = match mind.walk.take().filter(|w| w.at == here) {
            Some(walk) => walk,
            None => Walk {
                listed: cx.objects.list(from, state.after.as_ref()),
                at: here,
                begun,
            },
        };
        let listed = cx.clock.now();
        let (mut report, mut found, mut count) = (Report::default(), Vec::new(), 0);
        let mut to = state.after.clone();
        loop {
            let late = cx.clock.mono().saturating_sub(begun) >= SLICE && count > 0;
            if found.len() >= BATCH || count >= PAGE || late {
                break;
            }
            let Some(object) = walk.listed.try_next().await? else {
                to = None;
                break;
            };
            count += 1;
            if let Some(verdict) = scope.judge(&mind.seen.known, &root, &yard, &object) {
                report.count(prefix(&root, &object.key), object.size, &verdict);
                if scope.delete && is_newer(&verdict) {
                    let known = ObjPath::parse(&root, &object.key.0).known();
                    let id = known.and_then(|path| newest_of(&path));
                    let why = too_old(&mind.seen, id.unwrap_or_default(), &object.key);
                    return Err(Error::new(ErrorKind::Conflict, why)
                        .fix("bring the metadata up to date, or wait until the cluster has made something newer"));
                }
                if let Verdict::Orphan(rule) = verdict {
                    found.push(entry(&object, rule));
                }
            }
            to = Some(object.key);
        }
        cx.check_cancel()?;
        if let Some(to) = &to {
            walk.at.1 = Some(to.clone());
            mind.walk = Some(walk);
        }
        self.minds.keep(cx, mind);
        if found.is_empty() {
            state.pass(to, report, walks.len());
            return Ok(Next::Step(state));
        }
        let number = state.batches + 1;
        put_index(cx, &yard, &name(number), &found).await?;
        state.batches = number;
        state.batch = Some(Batch {
            number,
            to,
            report,
            listed,
        });
        Ok(Next::Step(state))
    }

    /// Moves what was written down, as far as it still is an orphan.
    async fn carry(&self, cx: &JobCx, mut state: State, batch: Batch) -> Result<Next<State>> {
        let root = cx.objects.root().to_owned();
        let yard = Yard::of(&root);
        let entries = read_index(&cx.objects, &yard.index(cx.job, &name(batch.number))).await?;
        let (waited, tickets) = tickets::wait(cx, state.collection).await?;
        let age = Duration::from_millis(cx.clock.now().since(batch.listed));
        if waited || age >= OLDEST {
            return self.drop_batch(cx, state, &entries, &yard).await;
        }
        let mut mind = self.mind(cx, &state).await?;
        mind.seen.known.tickets = tickets;
        let Some(owned) = again(&reads(cx), &mut mind.seen, cx.job, &entries).await? else {
            // A snapshot has come or gone: nothing that was read before counts.
            cx.note("looked at anew: a snapshot has come, gone or moved");
            state.repeats += 1;
            if state.repeats > REPEATS {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "snapshots keep moving under the orphan scan",
                )
                .fix("run it when no other job is writing"));
            }
            return self.drop_batch(cx, state, &entries, &yard).await;
        };
        let mut todo = Vec::with_capacity(entries.len());
        let mut spared = Vec::new();
        for (entry, owned) in entries.iter().zip(owned) {
            let path = ObjPath::parse(&root, &entry.key.0);
            match judge(&mind.seen.known, &path, &entry.key, entry.modified) {
                Verdict::Orphan(rule) if !owned => todo.push((entry, rule)),
                Verdict::Keep(hold) => spared.push((entry, hold.to_string())),
                Verdict::Orphan(_) => spared.push((entry, "it has a record by now".to_owned())),
            }
        }
        self.minds.keep(cx, mind);
        for (entry, why) in spared {
            let before = if state.delete {
                Outcome::Missing
            } else {
                settle(cx, &yard, entry).await?
            };
            match Rule::of(&entry.rule).filter(|_| matches!(before, Outcome::Done(_))) {
                // By an earlier try of this very step.
                Some(rule) => {
                    let done = Outcome::Done(entry.size);
                    cx.note(format!(
                        "moved aside before this was known: {}: {why}",
                        entry.key
                    ));
                    tally(cx, &mut state, entry, rule, &done);
                }
                None => stays(cx, &mut state, entry, &why),
            }
        }
        let at_once = (cx.parallel() as usize).max(1);
        let mut handled = 0;
        for part in todo.chunks(at_once) {
            // Before each item, as far as one can speak of that with many at once.
            let (waited, tickets) = tickets::wait(cx, state.collection).await?;
            let held = |entry: &Entry| {
                let path = ObjPath::parse(&root, &entry.key.0).known();
                let of = path.and_then(|path| path.owner().collection);
                let now = cx.clock.now();
                crate::engine::model::tickets::on(&tickets, of, now).map(ToString::to_string)
            };
            let age = Duration::from_millis(cx.clock.now().since(batch.listed));
            if waited || age >= OLDEST {
                let rest: Vec<Entry> = todo[handled..].iter().map(|(e, _)| (*e).clone()).collect();
                return self.drop_batch(cx, state, &rest, &yard).await;
            }
            handled += part.len();
            let delete = state.delete;
            let (yard, held) = (&yard, &held);
            let moves: Vec<_> = part
                .iter()
                .map(|(entry, rule)| {
                    async move {
                        let outcome = match held(entry) {
                            Some(why) => Outcome::Stays(why),
                            None if delete => destroy(cx, entry).await?,
                            None => aside(cx, yard, entry).await?,
                        };
                        Ok::<_, Error>((*entry, *rule, outcome))
                    }
                    .boxed()
                })
                .collect();
            let done: Vec<_> = stream::iter(moves)
                .buffer_unordered(at_once)
                .try_collect()
                .await?;
            for (entry, rule, outcome) in done {
                tally(cx, &mut state, entry, rule, &outcome);
            }
        }
        state.batch = None;
        let walks = state.scope().walks(&root).len();
        state.pass(batch.to, batch.report, walks);
        Ok(Next::Step(state))
    }

    /// Throws a batch away: what of it has gone already is counted, the rest is listed and judged again from the last position.
    async fn drop_batch(
        &self,
        cx: &JobCx,
        mut state: State,
        entries: &[Entry],
        yard: &Yard,
    ) -> Result<Next<State>> {
        self.minds.forget(cx);
        for entry in entries {
            let outcome = if state.delete {
                match quarantine::look(cx, &entry.key).await? {
                    None => Outcome::Done(entry.size),
                    Some(_) => continue,
                }
            } else {
                settle(cx, yard, entry).await?
            };
            if let (Outcome::Done(_), Some(rule)) = (&outcome, Rule::of(&entry.rule)) {
                let verdict = Verdict::Orphan(rule);
                let by = prefix(cx.objects.root(), &entry.key);
                state.report.count(by, entry.size, &verdict);
                tally(cx, &mut state, entry, rule, &outcome);
            }
        }
        state.batch = None;
        Ok(Next::Step(state))
    }
}

fn entry(object: &ObjectMeta, rule: Rule) -> Entry {
    Entry {
        key: object.key.clone(),
        size: object.size,
        etag: object.etag.clone(),
        modified: object.modified,
        rule: rule.name().to_owned(),
    }
}

fn name(number: u64) -> String {
    format!("batch-{number:08}")
}

fn title(state: &State) -> String {
    let verb = if state.delete {
        "deleted"
    } else {
        "moved aside"
    };
    format!("orphans {verb}")
}

fn tally(cx: &JobCx, state: &mut State, entry: &Entry, rule: Rule, outcome: &Outcome) {
    match outcome {
        Outcome::Done(bytes) => {
            state.gone.entry(rule).or_default().add(*bytes);
            cx.progress().file(*bytes);
        }
        Outcome::Missing => {}
        Outcome::Stays(why) => stays(cx, state, entry, why),
    }
}

fn stays(cx: &JobCx, state: &mut State, entry: &Entry, why: &str) {
    state.stayed.add(entry.size);
    if state.stayed.objects <= TOLD {
        cx.note(format!("kept: {}: {why}", entry.key));
    }
}

#[async_trait]
impl Job for Orphans {
    const KIND: JobKind = JobKind::Orphans;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        plan(cx, intent, &self.minds).await
    }

    fn locks(&self, _: &Plan) -> Vec<Lock> {
        vec![Lock::alone("gc")]
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        let scope = Scope::of(&plan.intent)?;
        Ok(State {
            collection: scope.collection,
            prefixes: scope.prefixes,
            delete: scope.delete,
            ..State::default()
        })
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        state.collection
    }

    async fn step(&self, cx: &JobCx, state: State) -> Result<Next<State>> {
        if state.cutoff == UnixMs(0) {
            return self.begin(cx, state).await;
        }
        if !state.swept {
            let next = match state.batch.clone() {
                Some(batch) => self.carry(cx, state, batch).await?,
                None => self.list_on(cx, state).await?,
            };
            return Ok(match next {
                Next::Step(state) if state.swept => {
                    tell(cx, &state);
                    Next::Published(state)
                }
                next => next,
            });
        }
        self.minds.forget(cx);
        verify(cx, state).await
    }

    /// What lies aside stays there, and can be put back; what was on its way is settled first.
    async fn undo(&self, cx: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        self.minds.forget(cx);
        let yard = Yard::of(cx.objects.root());
        if let Some(batch) = state.batch.take() {
            let index = yard.index(cx.job, &name(batch.number));
            if !state.delete {
                for entry in read_index(&cx.objects, &index).await? {
                    settle(cx, &yard, &entry).await?;
                }
            }
            return Ok(Next::Step(state));
        }
        if state.cutoff != UnixMs(0) {
            let there = quarantine::close(cx, &yard).await?;
            if there.objects > 0 {
                cx.note(format!(
                    "{} objects of {} lie aside; put them back with: falconer quarantine restore {}",
                    there.objects,
                    bytes(there.bytes),
                    cx.job
                ));
            }
        }
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let gone = state.all_gone();
        let listed = state.report.all();
        let verb = if state.delete {
            "deleted"
        } else {
            "moved aside"
        };
        if state.swept {
            let text = format!("checking, {} objects {verb}", gone.objects);
            return (text, 1, 2);
        }
        let at = state
            .after
            .as_ref()
            .map_or_else(String::new, |key| format!(", at {}", prefix_of(key)));
        let text = format!("{} listed, {} {verb}{at}", listed.objects, gone.objects);
        (text, 0, 2)
    }
}

/// The folder that the walk has come to.
fn prefix_of(key: &ObjectKey) -> &str {
    key.0.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The report, by rule and by prefix.
fn tell(cx: &JobCx, state: &State) {
    let all = state.report.all();
    cx.note(format!(
        "listed {} objects of {}",
        all.objects,
        bytes(all.bytes)
    ));
    for (rule, by) in &state.report.orphans {
        cx.note(format!("{}: found {}", rule.name(), line(by)));
    }
    for (rule, tally) in &state.gone {
        let verb = if state.delete {
            "deleted"
        } else {
            "moved aside"
        };
        cx.note(format!(
            "{}: {verb} {} objects, {}",
            rule.name(),
            tally.objects,
            bytes(tally.bytes)
        ));
    }
    for (reason, by) in &state.report.kept {
        cx.note(format!("kept because {}: {}", reason.code(), line(by)));
    }
    if state.stayed.objects > 0 {
        cx.note(format!(
            "{} objects of {} were to go and stayed",
            state.stayed.objects,
            bytes(state.stayed.bytes)
        ));
    }
}

/// What lies aside is what was moved: as many objects, as many bytes. Then the record is closed.
async fn verify(cx: &JobCx, state: State) -> Result<Next<State>> {
    let yard = Yard::of(cx.objects.root());
    let there = quarantine::close(cx, &yard).await?;
    let gone = state.all_gone();
    if state.delete || there == gone {
        return Ok(Next::Verified(state));
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!(
            "{} objects of {} lie aside, and {} of {} were moved there",
            there.objects,
            bytes(there.bytes),
            gone.objects,
            bytes(gone.bytes)
        ),
    )
    .fix(format!(
        "compare the index files under {} with the listing",
        yard.indexes(cx.job)
    )))
}
