//! Plans without the right to write: the runner plans with it, and so does an attach that may only read.

use std::sync::Arc;

use super::registry::{Registry, kind_of};
use super::{PlanCx, locks};
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::meta::scope::Scope;
use crate::engine::meta::{MetaReader, Span};
use crate::engine::model::catalog::Catalog;
use crate::engine::objects::ObjectRead;
use crate::engine::plan::execute::Executor;
use crate::engine::plan::fence::{busy, coordinator, session_spans};
use crate::engine::plan::journal::Keys;
use crate::engine::plan::{Check, Intent, Plan};
use crate::engine::profile::Roots;

/// Says what would happen.
#[derive(Clone)]
pub struct Planner {
    meta: MetaReader,
    objects: Option<ObjectRead>,
    roots: Roots,
    clock: Arc<dyn Clock>,
    registry: Registry,
    keys: Keys,
    spans: Vec<Span>,
    embedded: bool,
    /// The writer of this process: what it holds itself keeps nobody out.
    own: Option<Arc<Executor>>,
}

impl Planner {
    /// Makes no request. Without objects every plan is refused: what it would do is in the bucket.
    #[must_use]
    pub fn new(
        meta: MetaReader,
        objects: Option<ObjectRead>,
        roots: Roots,
        clock: Arc<dyn Clock>,
        registry: Registry,
    ) -> Self {
        Self {
            keys: Keys::new(&roots),
            spans: session_spans(&roots),
            meta,
            objects,
            roots,
            clock,
            registry,
            embedded: false,
            own: None,
        }
    }

    /// The same on behalf of another.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            meta: self.meta.within(scope),
            ..self.clone()
        }
    }

    /// The same for an embedded root.
    #[must_use]
    pub fn embedded(mut self, embedded: bool) -> Self {
        self.embedded = embedded;
        self
    }

    /// The same in a process that may write.
    #[must_use]
    pub fn of_writer(mut self, own: Arc<Executor>) -> Self {
        self.embedded = own.embedded();
        self.own = Some(own);
        self
    }

    /// The sealed plan of an intent that a job answers, with the checks that every job has in common.
    pub async fn plan(&self, intent: &Intent, catalog: Arc<Catalog>) -> Result<Plan> {
        let Some(kind) = kind_of(intent) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "only a process that may write can do that",
            )
            .fix("attach with the right to write: --write"));
        };
        let Some(objects) = self.objects.clone() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "nothing can be planned without a bucket: what would be read, copied and deleted lies in it",
            )
            .fix("name the bucket too, e.g. --bucket s3://NAME/ROOT or --bucket file:///FOLDER"));
        };
        let cx = PlanCx {
            meta: self.meta.clone(),
            objects,
            roots: self.roots.clone(),
            clock: self.clock.clone(),
            catalog,
            embedded: self.embedded,
        };
        let kind = self.registry.get(kind)?;
        let mut plan = kind.plan(&cx, intent).await?;
        let locks = kind.locks(&plan);
        let busy = locks::in_the_way(&self.meta, &self.keys, &locks).await?;
        let names: Vec<String> = locks.into_iter().map(|l| l.name).collect();
        plan.checks.push(Check {
            name: "no other job is in the way".into(),
            failed: busy.map(|e| e.to_string()),
            detail: names.join(", "),
        });
        plan.checks.push(self.writer().await?);
        self.fenced(plan).await
    }

    /// Whether another Falconer writes this root now: then an apply would be refused.
    async fn writer(&self) -> Result<Check> {
        let owner = self.meta.get(&self.keys.owner()).await?;
        let ours = |value: &[u8]| self.own.as_ref().is_some_and(|e| e.fence().is_ours(value));
        let other = owner.filter(|kv| !ours(&kv.value));
        Ok(Check {
            name: "no other Falconer writes this root".into(),
            detail: if other.is_none() {
                format!("{} is free, or ours", self.keys.owner())
            } else {
                String::new()
            },
            failed: other.map(|kv| busy(&self.keys, &kv.value).to_string()),
        })
    }

    /// The plan with the fence's check, sealed.
    pub(super) async fn fenced(&self, mut plan: Plan) -> Result<Plan> {
        let alive = coordinator(&self.meta, &*self.clock, &self.spans).await?;
        plan.checks.push(Check {
            name: "no coordinator is registered".into(),
            detail: if alive.is_none() {
                "no session of any coordinator".into()
            } else {
                String::new()
            },
            failed: alive.map(|e| e.to_string()),
        });
        plan.sealed()
    }
}
