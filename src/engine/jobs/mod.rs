//! Jobs are step machines (law 7): the state is journaled after each step, each step is idempotent, a crash at any point
//! resumes or undoes. This file is the contract between a job and its runner.

mod announce;
mod awareness;
pub mod belongings;
mod board;
pub mod copy;
mod copy_host;
pub mod cx;
pub mod ddl;
mod ddl_look;
mod ddl_plan;
pub mod demo;
mod drive;
pub mod export;
mod export_contents;
mod export_files;
mod export_plan;
mod export_record;
pub mod export_state;
mod export_undo;
pub mod filebook;
pub mod gc;
mod gc_collect;
pub mod gc_objects;
pub mod gc_plan;
pub mod gc_scan;
mod gc_snapshots;
mod gc_verify;
mod gc_work;
pub mod identity;
mod locks;
pub mod meter;
mod obstacles;
pub mod orphans;
mod orphans_plan;
pub mod orphans_scan;
mod pace;
pub mod pins;
pub mod planner;
pub mod presence;
pub mod quarantine;
pub mod quarantine_purge;
pub mod quarantine_restore;
pub mod references;
pub mod registry;
pub mod restore;
mod restore_bundle;
mod restore_checks;
mod restore_copy;
mod restore_files;
pub mod restore_map;
mod restore_names;
pub mod restore_pin;
pub mod restore_plan;
mod restore_records;
mod restore_references;
mod restore_since;
pub mod restore_source;
pub mod restore_state;
mod restore_undo;
pub mod restore_v3;
mod restore_watch;
pub mod runner;
pub mod select;
pub mod snapshot_contents;
pub mod snapshot_create;
pub mod snapshot_drop;
pub mod snapshot_notes;
pub mod snapshot_pin;
mod snapshot_plan;
mod snapshot_undo;
pub mod snapshot_unpin;
pub mod snapshot_verify;
pub mod source;
pub mod tickets;
pub mod verify;

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::clock::Clock;
use super::error::{Error, Result};
use super::ids::{CollectionId, UnixMs};
use super::meta::MetaReader;
use super::model::catalog::Catalog;
use super::model::jobs::JobKind;
use super::objects::ObjectRead;
use super::plan::{Intent, Plan};
use super::profile::Roots;

/// What a step came to. The runner journals the state before it takes the next step.
pub enum Next<S> {
    /// Go on with this state.
    Step(S),
    /// Everything is published; the next steps only verify. The state is journaled and the job is *Completed*.
    Published(S),
    /// Checked: the job is *Verified*.
    Verified(S),
    /// It cannot go on for this reason, which the operator may clear. What is there is kept until the time given: then, or when
    /// somebody cancels, it is taken back; when somebody says *retry*, the step is taken again with this state.
    Stuck(S, Error, UnixMs),
    /// Take back what was done, because of this error; [`Job::undo`] runs until it answers `Undone`.
    Undo(S, Error),
    /// Everything is taken back: *Failed* (or *Cancelled*, if that was the reason).
    Undone(S),
}

/// What planning may look at. It cannot write.
#[derive(Clone)]
pub struct PlanCx {
    /// Reads of the metadata. Preferred over the catalog: a plan rests on one revision.
    pub meta: MetaReader,
    /// Reads of the objects.
    pub objects: ObjectRead,
    /// Key roots.
    pub roots: Roots,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The read model as the operator saw it.
    pub catalog: Arc<Catalog>,
    /// The metadata is ours alone: no Milvus shares it.
    pub embedded: bool,
}

/// What a job keeps others from, in this process and in every other: written with the job's record, removed with its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Letters, digits and `._:-$`, e.g. `snapshot:470660334431902643`, `target:default:books`.
    pub name: String,
    /// Others may share it; nobody may have it alone meanwhile.
    pub shared: bool,
}

impl Lock {
    /// Nobody else may have it.
    pub fn alone(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            shared: false,
        }
    }

    /// Others may read along.
    pub fn shared(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            shared: true,
        }
    }
}

/// A kind of job.
#[async_trait]
pub trait Job: Send + Sync {
    /// Its kind.
    const KIND: JobKind;
    /// What is journaled. There is no second copy in memory: a resumed job has only this.
    type State: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

    /// Says what would happen. The runner adds the fence check and seals the hash ([`Plan::hash`] may be left empty).
    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan>;

    /// What the job excludes others from. Names used so far: `collection:{id}`, `snapshot:{id}`, `snapshot-name:{collection
    /// id}:{name}`, `target:{database}:{collection}`, `gc`, `quarantine`.
    fn locks(&self, plan: &Plan) -> Vec<Lock>;

    /// The state before the first step, journaled with the job's record before anything else is written. No I/O here.
    fn begin(&self, plan: &Plan) -> Result<Self::State>;

    /// The collection it makes or works on, for the screen.
    fn collection(&self, state: &Self::State) -> Option<CollectionId>;

    /// Takes one step. Must be idempotent: after a crash it runs again with the same state. A transient error
    /// ([`Error::is_transient`]) or an unknown outcome makes the runner take the same step again after a back-off; any other
    /// error is treated as `Undo`.
    async fn step(&self, cx: &cx::JobCx, state: Self::State) -> Result<Next<Self::State>>;

    /// Takes back one step, idempotent too.
    async fn undo(
        &self,
        cx: &cx::JobCx,
        state: Self::State,
        why: &Error,
    ) -> Result<Next<Self::State>>;

    /// One line for the screen about where it stands.
    fn describe(&self, state: &Self::State) -> (String, u32, u32);
}
