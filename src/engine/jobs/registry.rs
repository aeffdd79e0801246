//! The kinds of job a runner knows, with their state types erased.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::cx::JobCx;
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::CollectionId;
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::{Intent, Plan};

/// A [`Job`] whose state is JSON.
#[async_trait]
pub(super) trait Kind: Send + Sync {
    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan>;
    fn locks(&self, plan: &Plan) -> Vec<Lock>;
    fn begin(&self, plan: &Plan) -> Result<Value>;
    fn collection(&self, state: &Value) -> Option<CollectionId>;
    async fn step(&self, cx: &JobCx, state: &Value) -> Result<Next<Value>>;
    async fn undo(&self, cx: &JobCx, state: &Value, why: &Error) -> Result<Next<Value>>;
    fn describe(&self, state: &Value) -> Option<(String, u32, u32)>;
}

struct Erased<J>(J);

fn read<J: Job>(state: &Value) -> Result<J::State> {
    serde_json::from_value(state.clone()).map_err(|e| {
        Error::new(
            ErrorKind::Corrupt,
            "the journaled state of this job cannot be read",
        )
        .caused_by(e)
        .fix("continue it with the Falconer version that began it")
    })
}

fn write<S: Serialize>(state: &S) -> Result<Value> {
    serde_json::to_value(state).map_err(|e| {
        Error::new(ErrorKind::Internal, "a job's state cannot be journaled").caused_by(e)
    })
}

fn erase<S: Serialize>(next: Next<S>) -> Result<Next<Value>> {
    Ok(match next {
        Next::Step(s) => Next::Step(write(&s)?),
        Next::Published(s) => Next::Published(write(&s)?),
        Next::Verified(s) => Next::Verified(write(&s)?),
        Next::Stuck(s, e, until) => Next::Stuck(write(&s)?, e, until),
        Next::Undo(s, e) => Next::Undo(write(&s)?, e),
        Next::Undone(s) => Next::Undone(write(&s)?),
    })
}

#[async_trait]
impl<J: Job> Kind for Erased<J> {
    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        self.0.plan(cx, intent).await
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        self.0.locks(plan)
    }

    fn begin(&self, plan: &Plan) -> Result<Value> {
        write(&self.0.begin(plan)?)
    }

    fn collection(&self, state: &Value) -> Option<CollectionId> {
        self.0.collection(&read::<J>(state).ok()?)
    }

    async fn step(&self, cx: &JobCx, state: &Value) -> Result<Next<Value>> {
        erase(self.0.step(cx, read::<J>(state)?).await?)
    }

    async fn undo(&self, cx: &JobCx, state: &Value, why: &Error) -> Result<Next<Value>> {
        erase(self.0.undo(cx, read::<J>(state)?, why).await?)
    }

    fn describe(&self, state: &Value) -> Option<(String, u32, u32)> {
        Some(self.0.describe(&read::<J>(state).ok()?))
    }
}

/// What a runner can do.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<JobKind, Arc<dyn Kind>>,
}

impl Registry {
    /// Adds a kind; a second one of the same kind replaces the first.
    #[must_use]
    pub fn with<J: Job + 'static>(mut self, job: J) -> Self {
        self.kinds.insert(J::KIND, Arc::new(Erased(job)));
        self
    }

    pub(super) fn get(&self, kind: JobKind) -> Result<Arc<dyn Kind>> {
        self.kinds.get(&kind).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("jobs of kind {kind:?} are not known to this build"),
            )
        })
    }
}

/// The kind of job that answers an intent; `None` for what the runner does itself.
#[must_use]
pub const fn kind_of(intent: &Intent) -> Option<JobKind> {
    match intent {
        Intent::CreateSnapshot { .. } => Some(JobKind::CreateSnapshot),
        Intent::DropSnapshot { .. } => Some(JobKind::DropSnapshot),
        Intent::PinSnapshot { .. } => Some(JobKind::PinSnapshot),
        Intent::UnpinSnapshot { .. } => Some(JobKind::UnpinSnapshot),
        Intent::VerifySnapshot { .. } => Some(JobKind::VerifySnapshot),
        Intent::Restore { .. } | Intent::RestoreBundle { .. } => Some(JobKind::Restore),
        Intent::Export { .. } => Some(JobKind::Export),
        Intent::Gc { .. } => Some(JobKind::Gc),
        Intent::Orphans { .. } => Some(JobKind::Orphans),
        Intent::QuarantineRestore { .. } => Some(JobKind::QuarantineRestore),
        Intent::QuarantinePurge { .. } => Some(JobKind::QuarantinePurge),
        Intent::Demo => Some(JobKind::Demo),
        Intent::Ddl { .. } => Some(JobKind::Ddl),
        Intent::CancelJob { .. }
        | Intent::PauseGc { .. }
        | Intent::ResumeGc { .. }
        | Intent::Init { .. } => None,
    }
}
