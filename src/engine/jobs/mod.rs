//! Jobs are step machines (law 7): the state is journaled after each step, each step is idempotent, a crash at any point
//! resumes or undoes. This file is the contract between a job and its runner.

pub mod copy;
pub mod cx;
pub mod restore_map;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Error, Result};
use super::model::jobs::JobKind;

/// What a step came to. The runner journals the state before it takes the next step.
pub enum Next<S> {
    /// Go on with this state.
    Step(S),
    /// Everything is published; the next steps only verify. The state is journaled and the job is *Completed*.
    Published(S),
    /// Checked: the job is *Verified*.
    Verified(S),
    /// Take back what was done, because of this error; [`Job::undo`] runs until it answers `Undone`.
    Undo(S, Error),
    /// Everything is taken back: *Failed* (or *Cancelled*, if that was the reason).
    Undone(S),
}

/// A kind of job.
#[async_trait]
pub trait Job: Send + Sync {
    /// Its kind.
    const KIND: JobKind;
    /// What is journaled. There is no second copy in memory: a resumed job has only this.
    type State: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

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
