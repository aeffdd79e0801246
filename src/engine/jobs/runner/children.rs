//! Jobs on behalf of jobs: planned, checked and journaled like those of an operator.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Inner, RunnerHandle};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, KeyPrefix};
use crate::engine::jobs::cx::Children;
use crate::engine::meta::{Event, Span};
use crate::engine::model::catalog::Catalog;
use crate::engine::model::jobs::JobInfo;
use crate::engine::plan::Intent;

struct OfRunner(RunnerHandle);

/// The runner as its own jobs see it.
pub(super) fn of(inner: &Arc<Inner>) -> Arc<dyn Children> {
    let view = inner.board.subscribe();
    let broadcasts = inner.coordinator.view();
    let inner = inner.clone();
    Arc::new(OfRunner(RunnerHandle {
        inner,
        view,
        broadcasts,
    }))
}

#[async_trait]
impl Children for OfRunner {
    async fn begin(&self, parent: JobId, intent: Intent, rate: Option<u64>) -> Result<JobId> {
        let inner = &self.0.inner;
        if let Some(job) = inner.board.child(parent, &intent) {
            return Ok(job);
        }
        let plan = self.0.plan(intent, self.catalog().await?).await?;
        if let Some(check) = plan.failures().next() {
            let why = check.failed.clone().unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{}: {}: {why}", plan.title, check.name),
            ));
        }
        inner.clone().begin(&plan, rate).await
    }

    async fn ended(&self, job: JobId) -> Result<Arc<JobInfo>> {
        self.0.ended(job).await
    }
}

impl OfRunner {
    /// The cluster as it is now: a job has no screen that follows it.
    async fn catalog(&self) -> Result<Arc<Catalog>> {
        let executor = &self.0.inner.executor;
        let roots = executor.roots();
        let span = if roots.root.is_empty() {
            Span::all()
        } else {
            Span::prefix(&KeyPrefix::new(&roots.root))
        };
        let page = executor.reader().range_all(&span).await?;
        let events: Vec<Event> = page.kvs.into_iter().map(Event::Put).collect();
        let mut catalog = Catalog::default();
        catalog.apply(roots, &events);
        catalog.rev = page.rev;
        Ok(Arc::new(catalog))
    }
}
