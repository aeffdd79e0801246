//! One garbage collection pass: scan, then item by item in a fixed order, objects first, record last (law 5).
//!
//! The cut-off is fixed in the first step. Right before an item's objects are deleted its records and the snapshots of its
//! collection are read again; if one has moved since the scan, everything is scanned anew. A record stays when one of its
//! objects could not be deleted. What is deleted was judged by [`model::gc`](crate::engine::model::gc), the same functions as in the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::gc_collect::{Fate, collect};
use super::gc_objects;
use super::gc_plan::{Filter, Item, plan, simulate, takes};
use super::gc_scan::{Need, Scan, Wants, scan};
use super::gc_verify;
use super::identity::own_bucket;
use super::references::Keeper;
use super::restore::reads;
use super::restore_source::Reads;
use super::tickets::{self, Leave};
use super::{Job, Lock, Next, PlanCx, quarantine};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, UnixMs};
use crate::engine::model::gc::{Rule, is_fresh};
use crate::engine::model::holds::Tolerances;
use crate::engine::model::jobs::JobKind;
use crate::engine::model::orphans::Tally;
use crate::engine::model::quarantine::Yard;
use crate::engine::model::text::bytes;
use crate::engine::plan::journal::Keys;
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
    /// Objects are moved aside, not deleted.
    #[serde(default)]
    pub quarantine: bool,
    /// Fixed in the first step; 0 before.
    pub cutoff: UnixMs,
    /// Those of the process that began it.
    #[serde(default)]
    pub tolerances: Option<Tolerances>,
    /// Everything up to here has been looked at.
    pub after: Option<Item>,
    /// Collected, by rule: items and objects.
    pub collected: BTreeMap<String, (u64, u64)>,
    /// Bytes of those objects.
    #[serde(default)]
    pub bytes: BTreeMap<String, u64>,
    /// Kept because an object could not be deleted, in the last round.
    pub failed: u64,
    /// Scans because something moved.
    pub rescans: u32,
    /// Something was collected since the last scan.
    pub dirty: bool,
    /// Collections that something of was collected.
    #[serde(default)]
    pub touched: BTreeSet<CollectionId>,
    /// Every record has been looked at; objects without a record of their own come next.
    #[serde(default)]
    pub objects: Option<gc_objects::Place>,
    /// Everything has been looked at.
    pub swept: bool,
}

impl State {
    pub(super) fn count(&mut self, rule: Rule, collection: Option<CollectionId>, gone: Tally) {
        let tally = self.collected.entry(rule.name().to_owned()).or_default();
        tally.0 += 1;
        tally.1 += gone.objects;
        *self.bytes.entry(rule.name().to_owned()).or_default() += gone.bytes;
        self.touched.extend(collection);
    }

    /// Something that was judged has moved: everything is read anew.
    pub(super) fn moved(&mut self) -> Result<()> {
        self.rescans += 1;
        if self.rescans > RESCANS {
            return Err(Error::new(
                ErrorKind::Conflict,
                "records keep moving under the garbage collection",
            )
            .fix("run it when no other job is writing"));
        }
        Ok(())
    }
}

/// What one scan comes to.
pub(super) struct Pass {
    pub(super) scan: Scan,
    pub(super) filter: Filter,
    /// What goes, in order.
    todo: Vec<Item>,
}

/// The machine.
#[derive(Default)]
pub struct Gc {
    tolerances: Tolerances,
    keeper: Keeper,
    /// By job: jobs of one process only.
    cache: Mutex<BTreeMap<i64, Arc<Pass>>>,
    /// Jobs whose bucket this process has made sure of.
    own: Mutex<BTreeSet<i64>>,
}

impl Gc {
    /// With the cluster's own tolerances, and the references that the engine keeps.
    #[must_use]
    pub fn new(tolerances: Tolerances, keeper: Keeper) -> Self {
        Self {
            tolerances,
            keeper,
            ..Self::default()
        }
    }

    /// The references that it judges by.
    #[must_use]
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    pub(super) fn keep(&self, job: i64, found: Option<Arc<Pass>>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Some(found) => cache.insert(job, found),
            None => cache.remove(&job),
        };
    }

    fn forget(&self, job: i64) {
        self.keep(job, None);
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.remove(&job);
    }

    async fn pass(&self, cx: &JobCx, state: &State) -> Result<Arc<Pass>> {
        let job = cx.job.0;
        let known = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.get(&job).cloned()
        };
        if let Some(known) = known
            && is_fresh(known.scan.read, cx.clock.now())
        {
            return Ok(known);
        }
        let filter = Filter::of(&Intent::Gc {
            collection: state.collection,
            rules: state.rules.iter().cloned().collect(),
            quarantine: state.quarantine,
        })?;
        let reads = reads(cx);
        let wants = Wants {
            cutoff: state.cutoff,
            tolerances: state.tolerances.unwrap_or(self.tolerances),
            me: Some(cx.job),
            need: Need::Candidates,
        };
        let scan = scan(&reads, &self.keeper, &*cx.clock, wants).await?;
        for why in &scan.unreadable {
            cx.note(format!("kept: {why}"));
        }
        // Before anything is deleted, by this process too: every object would be missing from a wrong bucket, and every record
        // forgotten.
        let made_sure = {
            let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.contains(&job)
        };
        if !made_sure {
            if let Some(why) = own_bucket(&reads, &scan).await?.failed {
                let yard = Yard::of(cx.objects.root());
                // Of a pass that was cut short the last objects may all lie aside: then its own index tells.
                if !state.quarantine || !quarantine::has_index(cx, &yard).await? {
                    return Err(Error::new(ErrorKind::Conflict, why)
                        .fix("name the cluster's own bucket and root, then plan again"));
                }
            }
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.insert(job);
        }
        let found = Arc::new(Pass {
            todo: takes(&scan, &filter),
            scan,
            filter,
        });
        self.keep(job, Some(found.clone()));
        Ok(found)
    }

    async fn sweep(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        let pass = self.pass(cx, &state).await?;
        let from = state
            .after
            .as_ref()
            .map_or(0, |after| pass.todo.partition_point(|item| item <= after));
        for (worked, item) in pass.todo[from..].iter().enumerate() {
            cx.check_cancel()?;
            if worked >= BATCH {
                return Ok(Next::Step(state));
            }
            match tickets::leave(cx, state.collection, item.collection(&pass.scan)).await? {
                Leave::Go => {}
                Leave::Not(ticket) => {
                    cx.note(format!("kept: {ticket}"));
                    state.after = Some(item.clone());
                    continue;
                }
                Leave::Waited => {
                    // What was read before the pause is as old as the pause.
                    self.keep(cx.job.0, None);
                    return Ok(Next::Step(state));
                }
            }
            match collect(cx, &pass.scan, &pass.filter, item).await? {
                Fate::Kept => {}
                Fate::Collected { rule, gone } => {
                    state.dirty = true;
                    // Without a pin nothing is missing that anything refers to.
                    let of = item.collection(&pass.scan);
                    state.count(rule, of.filter(|_| rule != Rule::ExpiredPin), gone);
                }
                Fate::Failed => state.failed += 1,
                Fate::Moved => {
                    self.keep(cx.job.0, None);
                    state.moved()?;
                    // The same item is looked at again, with new eyes.
                    return Ok(Next::Step(state));
                }
            }
            state.after = Some(item.clone());
        }
        if state.dirty && waits(&pass.scan) {
            // What waited for the last segment or the last row to go may go now: one more round.
            self.keep(cx.job.0, None);
            state.dirty = false;
            state.after = None;
            state.failed = 0;
            return Ok(Next::Step(state));
        }
        if pass.todo.iter().any(|item| matches!(item, Item::Pins(_))) {
            // This pass itself has moved records that it would take for somebody else's work.
            self.keep(cx.job.0, None);
        }
        state.objects = Some(gc_objects::Place::default());
        Ok(Next::Step(state))
    }

    fn end(&self, cx: &JobCx, mut state: State) -> Next<State> {
        self.forget(cx.job.0);
        state.swept = true;
        for (rule, (items, objects)) in &state.collected {
            cx.note(if rule == Rule::ExpiredPin.name() {
                format!("{rule}: taken off {items} snapshots")
            } else {
                let freed = state.bytes.get(rule).copied().unwrap_or_default();
                format!(
                    "{rule}: {items} collected with {objects} objects, {}",
                    bytes(freed)
                )
            });
        }
        if state.failed > 0 {
            cx.note(format!(
                "{} records stay because an object of theirs could not be deleted",
                state.failed
            ));
        }
        Next::Published(state)
    }
}

/// Whether something stays only until others are gone.
fn waits(scan: &Scan) -> bool {
    let world = &scan.world;
    let gone = |c: CollectionId| !world.collections.contains(&c);
    !world.deleted_indexes.is_empty()
        || scan
            .checkpoints
            .keys()
            .filter_map(crate::engine::format::vchannel::collection)
            .any(gone)
}

#[async_trait]
impl Job for Gc {
    const KIND: JobKind = JobKind::Gc;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let reads = Reads {
            meta: &cx.meta,
            objects: &cx.objects,
            roots: &cx.roots,
        };
        let mut filter = Filter::of(intent)?;
        let cutoff = cx.clock.now();
        let keys = Keys::new(&cx.roots);
        let (paused, tickets) = tickets::check(&cx.meta, &keys, filter.collection, cutoff).await?;
        filter.tickets = tickets;
        let wants = Wants {
            cutoff,
            tolerances: self.tolerances,
            me: None,
            need: if filter.wants(Rule::Orphan) {
                Need::All
            } else {
                Need::Candidates
            },
        };
        let found = scan(&reads, &self.keeper, &*cx.clock, wants).await?;
        let simulated = simulate(&reads, &found, &filter, &*cx.clock).await?;
        let mut plan = plan(&reads, intent, &found, &filter, &simulated);
        plan.checks.push(own_bucket(&reads, &found).await?);
        plan.checks.push(paused);
        Ok(plan)
    }

    fn locks(&self, _: &Plan) -> Vec<Lock> {
        vec![Lock::alone("gc")]
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        Filter::of(&plan.intent)?;
        match &plan.intent {
            Intent::Gc {
                collection,
                rules,
                quarantine,
            } => Ok(State {
                collection: *collection,
                rules: rules.iter().cloned().collect(),
                quarantine: *quarantine,
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
            if state.quarantine {
                quarantine::close(cx, &Yard::of(cx.objects.root())).await?;
            }
            return gc_verify::verify(cx, state).await;
        }
        if state.cutoff == UnixMs(0) {
            state.cutoff = cx.clock.now();
            state.tolerances = Some(self.tolerances);
            self.pass(cx, &state).await?;
            if state.quarantine {
                quarantine::open(cx, "garbage collection", state.collection).await?;
            }
            return Ok(Next::Step(state));
        }
        if state.objects.is_none() {
            return self.sweep(cx, state).await;
        }
        let pass = self.pass(cx, &state).await?;
        match gc_objects::sweep(cx, &pass, &mut state).await? {
            gc_objects::Swept::All => Ok(self.end(cx, state)),
            gc_objects::Swept::Some => Ok(Next::Step(state)),
            gc_objects::Swept::Moved => {
                self.keep(cx.job.0, None);
                state.moved()?;
                Ok(Next::Step(state))
            }
        }
    }

    /// What is collected is gone, each item whole or not at all: there is nothing to take back.
    async fn undo(&self, cx: &JobCx, state: State, _: &Error) -> Result<Next<State>> {
        self.forget(cx.job.0);
        if state.quarantine && state.cutoff != UnixMs(0) {
            quarantine::close(cx, &Yard::of(cx.objects.root())).await?;
        }
        cx.note("items collected so far stay collected; one that was cut short keeps its record, and the next pass goes on with it");
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
