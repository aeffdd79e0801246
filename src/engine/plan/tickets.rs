//! Writing pauses of garbage collection. The one write that needs no ownership of the root: a pause that could only be asked for once
//! the running pass had ended would be of no use. It touches nothing but our own key, so a living coordinator does not matter either;
//! a running pass reads the tickets before each item.

use super::execute::Executor;
use super::journal::{Audit, AuditKey, Keys, from_json, json};
use super::retry::{Backoff, Doubt, TRIES, calm};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, MetaRev};
use crate::engine::meta::{Cond, MetaReader, Outcome, RangeOpts, Span, Txn, Write};
use crate::engine::model::tickets::Ticket;

/// All tickets with the revisions of their records. One that cannot be read pauses everything (law 5).
pub async fn tickets(meta: &MetaReader, keys: &Keys) -> Result<Vec<(Ticket, MetaRev)>> {
    let prefix = keys.tickets();
    let page = meta.range_all(&Span::prefix(&prefix)).await?;
    let read = page.kvs.into_iter().map(|kv| {
        let ticket = from_json::<Ticket>(&kv.key, &kv.value).unwrap_or_else(|e| {
            let id = String::from_utf8_lossy(&kv.key.0[prefix.bytes().len()..]);
            Ticket::unreadable(&id, e.what())
        });
        (ticket, kv.mod_rev)
    });
    Ok(read.collect())
}

impl Executor {
    /// Writes a ticket, and reads it back: what is not there pauses nothing.
    pub async fn pause(&self, ticket: &Ticket, plan: &str) -> Result<()> {
        let key = self.keys.ticket(&ticket.id);
        let value = json(ticket)?;
        let put = Write::put(key.clone(), value.clone());
        self.unowned(vec![Cond::Absent(key.clone())], put, plan, None)
            .await?;
        let there = calm(&*self.clock, || self.meta.get(&key)).await?;
        if there.is_some_and(|kv| kv.value == value) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::OutcomeUnknown,
            format!("ticket {} was written and is not there", ticket.id),
        )
        .fix("look with: falconer gc tickets"))
    }

    /// Takes a ticket away as it was read, and looks that it is gone (`spec/oncall.md` rule 22).
    pub async fn resume(&self, id: &str, rev: MetaRev, plan: &str) -> Result<()> {
        let key = self.keys.ticket(id);
        let gone = Write::Delete(key.clone());
        self.unowned(vec![Cond::At(key.clone(), rev)], gone, plan, Some(rev))
            .await?;
        match calm(&*self.clock, || self.meta.get(&key)).await? {
            None => Ok(()),
            Some(kv) => Err(Error::new(
                ErrorKind::Conflict,
                format!("ticket {id} is there again, at revision {}", kv.mod_rev),
            )
            .fix("look with: falconer gc tickets")),
        }
    }

    /// One write of our own with its audit entry, under its own conditions only. An unknown outcome is sent again: the conditions
    /// refuse the second one, and the caller reads back what stands there.
    async fn unowned(
        &self,
        conds: Vec<Cond>,
        write: Write,
        plan: &str,
        old: Option<MetaRev>,
    ) -> Result<()> {
        let span = Span::key(write.key());
        let head = calm(&*self.clock, || {
            self.meta.range(&span, RangeOpts::default())
        })
        .await?
        .rev;
        let what = match &write {
            Write::Put { value, .. } => format!("put {} bytes", value.len()),
            Write::Delete(_) => "delete".to_owned(),
        };
        let audit = Audit {
            at: self.clock.now(),
            actor: self.actor.clone(),
            job: JobId(0),
            plan: plan.to_owned(),
            change: "ticket".to_owned(),
            keys: vec![AuditKey {
                key: write.key().text(),
                old,
                what,
            }],
        };
        let name = format!("ticket-{:08x}", self.entropy.next_u64() >> 32);
        let record = Write::put(self.keys.audit(head, JobId(0), &name, 0), json(&audit)?);
        let txn = Txn {
            conds,
            writes: vec![write, record],
        };
        let mut backoff = Backoff::new(TRIES);
        let mut doubt = Doubt::default();
        loop {
            match doubt.go_on(self).meta.txn(txn.clone()).await {
                Ok(Outcome::Committed { .. }) => return Ok(()),
                // An earlier try of ours may have gone through: the caller looks.
                Ok(Outcome::Refused { .. }) if doubt.is_there() => return Ok(()),
                Ok(Outcome::Refused { .. }) => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        "the ticket has moved since the plan was made",
                    )
                    .fix("look with: falconer gc tickets"));
                }
                Err(e) if e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown => {
                    if e.kind() == ErrorKind::OutcomeUnknown {
                        doubt.arises(self, &e);
                    }
                    if !backoff.again(&*self.clock).await {
                        return Err(doubt.instead_of(e));
                    }
                }
                Err(e) => return Err(doubt.instead_of(e)),
            }
        }
    }
}
