//! Pauses of garbage collection: no job, because a job needs the root, and the pass that is to wait may have it.

use super::Inner;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::jobs::tickets;
use crate::engine::model::tickets::Ticket;
use crate::engine::plan::{Intent, Plan};

impl Inner {
    pub(super) async fn plan_ticket(&self, intent: &Intent) -> Result<Plan> {
        let executor = &self.executor;
        let now = executor.clock().now();
        tickets::plan(&executor.reader(), executor.keys(), intent, now).await
    }

    /// Writes it; answers what is so now.
    pub(super) async fn settle_ticket(&self, plan: &Plan) -> Result<String> {
        let executor = &self.executor;
        match &plan.intent {
            Intent::PauseGc {
                collection,
                secs,
                reason,
            } => {
                let now = executor.clock().now();
                let owner = executor.actor();
                let ticket = Ticket {
                    id: format!("gc-{:08x}", executor.entropy().next_u64() >> 32),
                    // The process that writes it is gone the next moment.
                    owner: owner.split(" pid ").next().unwrap_or(owner).to_owned(),
                    reason: reason.trim().to_owned(),
                    collection: *collection,
                    since: now,
                    until: tickets::end(now, *secs),
                };
                executor.pause(&ticket, &plan.hash).await?;
                Ok(ticket.to_string())
            }
            Intent::ResumeGc { ticket } => {
                let all = tickets::read(&executor.reader(), executor.keys()).await?;
                let (ticket, rev) = tickets::find(&all, ticket.as_deref())?;
                executor.resume(&ticket.id, *rev, &plan.hash).await?;
                let left: Vec<String> = all
                    .iter()
                    .filter(|(t, _)| t.id != ticket.id && t.is_live(executor.clock().now()))
                    .map(|(t, _)| t.to_string())
                    .collect();
                let rest = if left.is_empty() {
                    "garbage collection is not paused by us any more".to_owned()
                } else {
                    format!("still: {}", left.join("; "))
                };
                Ok(format!("ticket {} is gone; {rest}", ticket.id))
            }
            _ => Err(Error::new(ErrorKind::Internal, "not a pause")),
        }
    }
}
