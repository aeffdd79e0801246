//! THE write path. Nothing else in the program holds a [`MetaWriter`] or an [`ObjectWrite`].
//!
//! A [`Change`] is cut into chunks that fit a transaction. Each chunk is ONE transaction: fence, the caller's conditions, the
//! revision of everything it replaces, its writes, the pre-image, the audit entry and the step marker. So there is no moment at
//! which a change has happened without its record, and no doubt afterwards whether it has (laws 2 and 3).

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::chunk::{Chunk, Shape};
use super::fence::Fence;
use super::journal::{
    Audit, AuditKey, Before, JobRecord, Keys, Mark, Order, Ordered, from_json, json,
};
use super::retry::{Backoff, Doubt, TRIES, calm};
use crate::engine::clock::{Clock, Entropy};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, MetaKey, MetaRev};
use crate::engine::meta::scope::Scope;
use crate::engine::meta::{
    Cond, KeyValue, MetaReader, MetaWriter, Outcome, Page, RangeOpts, Span, Txn, Write,
};
use crate::engine::objects::{ObjectRead, ObjectWrite};
use crate::engine::profile::Roots;

/// One logical change of a job's step.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Unique within the job: the step marker's name, of letters, digits and `._:-`. The same name with the same job is
    /// the same change.
    pub name: String,
    /// What must hold. Conditions on keys that are written go with their write, all others with the first chunk; later chunks
    /// rest on the marker of the one before.
    pub conds: Vec<Cond>,
    /// What is written, in order. A key at most once.
    pub writes: Vec<Write>,
    /// Must fit one transaction; `Limit` if it cannot.
    pub atomic: bool,
}

/// A change that has happened, now or before a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Revision of its last chunk.
    pub rev: MetaRev,
    /// It had happened before: the marker was there.
    pub before: bool,
}

/// Consecutive ids, taken from the cluster's own allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First.
    pub first: i64,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// The ids, in order.
    pub fn iter(self) -> impl Iterator<Item = i64> {
        (0..i64::from(self.count)).map(move |i| self.first + i)
    }
}

/// On whose behalf something is written.
#[derive(Clone, Debug)]
pub struct Who {
    /// The job.
    pub job: JobId,
    /// The plan that was confirmed.
    pub plan: String,
    /// The epoch under which the job's state was read: nothing is written for it under another one. `None`: under any of ours.
    pub epoch: Option<u64>,
}

/// What an [`Executor`] is made of.
pub struct Parts {
    /// Metadata, with the right to write.
    pub meta: MetaWriter,
    /// Objects, with the right to write.
    pub objects: ObjectWrite,
    /// Key roots.
    pub roots: Roots,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// `user@host pid 123`: for owner, journal and audit.
    pub actor: String,
    /// An absent id allocator is created: only in an embedded root, where no Milvus can have ids of its own.
    pub embedded: bool,
}

/// The one writer, bound to a scope: each [`within`](Self::within) is the same writer on behalf of another.
pub struct Executor {
    pub(super) meta: MetaWriter,
    pub(super) fence: Fence,
    core: Arc<Core>,
}

/// What the writer is, on whose behalf soever.
pub struct Core {
    pub(super) objects: ObjectWrite,
    pub(super) roots: Roots,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) actor: String,
    pub(super) embedded: bool,
    pub(super) keys: Keys,
    pub(super) ids: tokio::sync::Mutex<super::ids::Floor>,
}

impl std::ops::Deref for Executor {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Executor {
    /// Makes no request.
    pub fn new(parts: Parts) -> Arc<Self> {
        let fence = Fence::new(
            parts.meta.clone(),
            parts.clock.clone(),
            parts.entropy.clone(),
            &parts.roots,
            parts.actor.clone(),
        );
        Arc::new(Self {
            meta: parts.meta,
            fence,
            core: Arc::new(Core {
                keys: Keys::new(&parts.roots),
                objects: parts.objects,
                roots: parts.roots,
                clock: parts.clock,
                entropy: parts.entropy,
                actor: parts.actor,
                embedded: parts.embedded,
                ids: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// The same on behalf of another.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Arc<Self> {
        Arc::new(Self {
            meta: self.meta.within(scope),
            fence: self.fence.within(scope),
            core: self.core.clone(),
        })
    }

    /// The same for what must end once it has begun ([`Scope::detached`]).
    #[must_use]
    pub fn detached(&self, what: &str) -> Arc<Self> {
        self.within(&self.scope().detached(what))
    }

    /// On whose behalf.
    pub fn scope(&self) -> &Scope {
        self.meta.scope()
    }

    /// The right to write.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Our own keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Reads of the metadata.
    pub fn reader(&self) -> MetaReader {
        self.meta.reader()
    }

    /// Reads of the objects.
    pub fn objects(&self) -> &ObjectRead {
        self.objects.read()
    }

    /// Key roots.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Randomness.
    pub fn entropy(&self) -> &Arc<dyn Entropy> {
        &self.entropy
    }

    /// Who we are, for records.
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// Whether this is an embedded root, which no Milvus shares.
    pub fn embedded(&self) -> bool {
        self.embedded
    }

    /// Makes `change` happen, or finds that it has. `Conflict` names the key that moved; `Fenced` says by whom.
    pub async fn commit(&self, who: &Who, change: &Change) -> Result<Committed> {
        self.make(who, change, false).await
    }

    /// Like [`commit`](Self::commit), for records that the job itself made and that nobody else writes: what they held before
    /// is not kept, or a record written a hundred times would be kept a hundred times.
    pub async fn commit_own(&self, who: &Who, change: &Change) -> Result<Committed> {
        self.make(who, change, true).await
    }

    async fn make(&self, who: &Who, change: &Change, own: bool) -> Result<Committed> {
        validate(change)?;
        super::forbidden::check(self.roots(), &change.writes)?;
        let shape = Shape::new(change, own);
        let digest = digest(&change.writes);
        let (mut at, mut number, mut last) = (0, 0, None::<(MetaKey, MetaRev)>);
        let marks = self.marks(who, change).await?;
        let mut head = marks.rev;
        for kv in marks.kvs {
            let mark: Mark = from_json(&kv.key, &kv.value)?;
            if mark.last {
                return Ok(Committed {
                    rev: kv.mod_rev,
                    before: true,
                });
            }
            if mark.digest != digest {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!(
                        "change {} of job {} was half done, and is now built with other writes",
                        change.name, who.job
                    ),
                ));
            }
            (at, number, last) = (mark.to, number + 1, Some((kv.key, kv.mod_rev)));
        }
        let mut checked = number > 0;
        let mut rest: Option<Arc<Self>> = None;
        loop {
            let me = rest.as_deref().unwrap_or(self);
            let chunk = me.cut(&shape, at, number).await?;
            let done = chunk.to == change.writes.len();
            if change.atomic && !(done && at == 0) {
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!(
                        "change {} has {} writes and must be one transaction; {} fit",
                        change.name,
                        change.writes.len(),
                        chunk.to - at
                    ),
                ));
            }
            if !done && !checked {
                me.hold_all(&shape, chunk.to).await?;
                checked = true;
            }
            let rev = me
                .settle(who, &shape, &chunk, &digest, last.as_ref(), head)
                .await?;
            if done {
                return Ok(Committed { rev, before: false });
            }
            last = Some((self.keys.mark(who.job, &change.name, number), rev));
            (at, number, head) = (chunk.to, number + 1, rev);
            // A change is whole or not begun, as long as we live: the rest of it does not end with who asked.
            rest = Some(self.detached("finish a change"));
        }
    }

    async fn marks(&self, who: &Who, change: &Change) -> Result<Page> {
        let span = Span::prefix(&self.keys.marks_of(who.job, &change.name));
        calm(&*self.clock, || self.meta.range_all(&span)).await
    }

    /// One chunk to its end: committed, refused, and unknown settled by the marker.
    async fn settle(
        &self,
        who: &Who,
        shape: &Shape<'_>,
        chunk: &Chunk,
        digest: &str,
        last: Option<&(MetaKey, MetaRev)>,
        head: MetaRev,
    ) -> Result<MetaRev> {
        let change = shape.change;
        let mark = self.keys.mark(who.job, &change.name, chunk.number);
        if chunk.apart {
            self.store_parts(who, shape, chunk).await?;
        }
        let mut backoff = Backoff::new(TRIES);
        let mut doubt = Doubt::default();
        loop {
            let me = doubt.go_on(self);
            me.fence.renew_if_due().await?;
            let txn = self.transaction(who, shape, chunk, digest, last, head)?;
            match me.meta.txn(txn.clone()).await {
                Ok(Outcome::Committed { rev }) => {
                    self.fence.prove();
                    return Ok(rev);
                }
                Ok(Outcome::Refused { seen, .. }) => {
                    // Our own marker: an earlier try of this chunk went through after all.
                    if let Some(kv) = seen.iter().find(|kv| kv.key == mark) {
                        return Ok(kv.mod_rev);
                    }
                    return Err(me.refused(change, &txn, &seen).await?);
                }
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown => {
                    doubt.arises(self, &e);
                    let me = doubt.go_on(self);
                    let found = calm(&*self.clock, || me.meta.get(&mark))
                        .await
                        .map_err(|_| e.clone())?;
                    if let Some(kv) = found {
                        return Ok(kv.mod_rev);
                    }
                    // It can still arrive late; then the marker refuses the next try, and settles it.
                    if !backoff.again(&*self.clock).await {
                        return Err(e);
                    }
                }
                Err(e) if e.is_transient() => {
                    if !backoff.again(&*self.clock).await {
                        return Err(doubt.instead_of(e));
                    }
                }
                Err(e) => return Err(doubt.instead_of(e)),
            }
        }
    }

    fn transaction(
        &self,
        who: &Who,
        shape: &Shape<'_>,
        chunk: &Chunk,
        digest: &str,
        last: Option<&(MetaKey, MetaRev)>,
        head: MetaRev,
    ) -> Result<Txn> {
        let change = shape.change;
        let mut conds = self.fence.conds_at(who.epoch)?;
        conds.push(Cond::Absent(self.keys.mark(
            who.job,
            &change.name,
            chunk.number,
        )));
        conds.extend(last.map(|(key, rev)| Cond::At(key.clone(), *rev)));
        let writes = &change.writes[chunk.from..chunk.to];
        if chunk.number == 0 {
            conds.extend(shape.apart.iter().map(|cond| (*cond).clone()));
        }
        // A value comparison is not implied by the pre-image's revision; the two others are.
        for (on, old) in shape.on[chunk.from..chunk.to].iter().zip(&chunk.before) {
            for cond in on {
                if let Some(why) = broken_before(cond, old) {
                    return Err(conflict(change, why));
                }
            }
        }
        conds.extend(chunk.before.iter().map(|b| match &b.old {
            None => Cond::Absent(b.key.clone()),
            Some((rev, _)) => Cond::At(b.key.clone(), *rev),
        }));
        let mark = Mark {
            from: chunk.from,
            to: chunk.to,
            last: chunk.to == change.writes.len(),
            digest: digest.to_owned(),
        };
        let audit = Audit {
            at: self.clock.now(),
            actor: self.actor.clone(),
            job: who.job,
            plan: who.plan.clone(),
            change: change.name.clone(),
            keys: writes
                .iter()
                .zip(&chunk.before)
                .map(|(w, b)| audit_key(w, b))
                .collect(),
        };
        let mut all = writes.to_vec();
        all.push(Write::put(
            self.keys.mark(who.job, &change.name, chunk.number),
            json(&mark)?,
        ));
        if let Some(pre) = chunk.pre_image(shape.own).filter(|_| !chunk.apart) {
            all.push(Write::put(
                self.keys.pre(who.job, &change.name, chunk.number),
                pre.encode()?,
            ));
        }
        all.push(Write::put(
            self.keys.audit(head, who.job, &change.name, chunk.number),
            json(&audit)?,
        ));
        Ok(Txn { conds, writes: all })
    }

    /// A pre-image that does not fit goes ahead, in parts. It is still proved: the chunk's transaction holds only while the key
    /// is at the revision that was stored.
    async fn store_parts(&self, who: &Who, shape: &Shape<'_>, chunk: &Chunk) -> Result<()> {
        let Some(pre) = chunk.pre_image(shape.own) else {
            return Ok(());
        };
        let pre = pre.encode()?;
        let size = (self.meta.limits().bytes / 2).max(1);
        for (part, bytes) in pre.chunks(size).enumerate() {
            let key = self
                .keys
                .pre_part(who.job, &shape.change.name, chunk.number, part);
            self.note(&[Write::put(key, bytes.to_vec())]).await?;
        }
        Ok(())
    }

    /// Writes our own records: needs ownership, but no silence of coordinators. The same writes may be sent again.
    pub async fn note(&self, writes: &[Write]) -> Result<MetaRev> {
        self.note_if(&[], writes).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                "a record was refused without a condition",
            )
        })
    }

    /// Asks something of a job that another process runs: the one write that needs no ownership, of one key of its own beside the
    /// job's record. `Conflict` when the job has ended or is gone.
    pub async fn order(&self, job: JobId, order: Order) -> Result<()> {
        let (at, random) = (self.clock.now(), self.entropy.next_u64());
        let key = self.keys.order(job, at, random);
        let by = self.actor.clone();
        let value = json(&Ordered { by, order })?;
        let mut backoff = Backoff::new(TRIES);
        let mut doubt = Doubt::default();
        loop {
            let me = doubt.go_on(self);
            let record = self.keys.job(job);
            let record = calm(&*self.clock, || me.meta.get(&record)).await?;
            let Some(kv) = record else {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("job {job} is not in the journal any more"),
                )
                .fix("list the jobs"));
            };
            let known: JobRecord = from_json(&kv.key, &kv.value)?;
            if known.state.rests() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("job {job} is {:?} by now", known.state).to_lowercase(),
                )
                .fix("look at it again"));
            }
            let txn = Txn {
                conds: vec![Cond::At(kv.key, kv.mod_rev)],
                writes: vec![Write::put(key.clone(), value.clone())],
            };
            // The same key and value again is the same order, so an unknown outcome is tried again.
            match me.meta.txn(txn).await {
                Ok(Outcome::Committed { .. }) => return Ok(()),
                Ok(Outcome::Refused { .. }) => {}
                Err(e) if e.is_transient() => {}
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown => doubt.arises(self, &e),
                Err(e) => return Err(doubt.instead_of(e)),
            }
            if !backoff.again(&*self.clock).await {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("job {job} moves too fast to be told anything"),
                )
                .fix("try again"));
            }
        }
    }

    /// Like [`note`](Self::note), under conditions of the caller; `None` when one of them did not hold. Sending again after an
    /// unknown outcome is right only if the conditions do not turn false by the writes themselves.
    pub async fn note_if(&self, conds: &[Cond], writes: &[Write]) -> Result<Option<MetaRev>> {
        super::forbidden::check(&self.roots, writes)?;
        let mut backoff = Backoff::new(TRIES);
        let mut doubt = Doubt::default();
        loop {
            let me = doubt.go_on(self);
            me.fence.renew_if_due().await?;
            let mut all = self.fence.own_conds()?;
            all.extend_from_slice(conds);
            let txn = Txn {
                conds: all,
                writes: writes.to_vec(),
            };
            match me.meta.txn(txn).await {
                Ok(Outcome::Committed { rev }) => return Ok(Some(rev)),
                Ok(Outcome::Refused { .. }) => {
                    if !me.fence.owned().await? {
                        return Err(self.fence.lost());
                    }
                    return Ok(None);
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

    async fn refused(&self, change: &Change, txn: &Txn, seen: &[KeyValue]) -> Result<Error> {
        if let Some(fenced) = self.fence.why().await? {
            return Ok(fenced);
        }
        for cond in &txn.conds {
            if let Some(key) = cond_key(cond) {
                if let Some(why) = broken(cond, seen.iter().find(|kv| kv.key == *key)) {
                    return Ok(conflict(change, why));
                }
            } else {
                let span = match cond {
                    Cond::NoneUnder(prefix) => Span::prefix(prefix),
                    Cond::NoneIn(span) => span.clone(),
                    _ => continue,
                };
                let opts = RangeOpts {
                    limit: 1,
                    ..RangeOpts::default()
                };
                let page = calm(&*self.clock, || self.meta.range(&span, opts)).await?;
                if let Some(kv) = page.kvs.first() {
                    return Ok(conflict(
                        change,
                        format!(
                            "key {} should not exist and does, at revision {}",
                            kv.key, kv.mod_rev
                        ),
                    ));
                }
            }
        }
        Ok(conflict(
            change,
            "a condition did not hold, and holds again now".to_owned(),
        ))
    }
}

fn validate(change: &Change) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if change.name.is_empty() || !change.name.chars().all(plain) {
        return Err(Error::new(
            ErrorKind::Internal,
            format!(
                "{:?} cannot name a change: letters, digits and ._:- can",
                change.name
            ),
        ));
    }
    let mut keys = BTreeSet::new();
    match change.writes.iter().find(|w| !keys.insert(w.key())) {
        Some(twice) => Err(Error::new(
            ErrorKind::Internal,
            format!("change {} writes {} twice", change.name, twice.key()),
        )),
        None => Ok(()),
    }
}

fn digest(writes: &[Write]) -> String {
    let mut hash = Sha256::new();
    for write in writes {
        let (key, value) = match write {
            Write::Put { key, value, .. } => (key, Some(value)),
            Write::Delete(key) => (key, None),
        };
        hash.update((key.0.len() as u64).to_be_bytes());
        hash.update(&key.0);
        hash.update([u8::from(value.is_some())]);
        hash.update((value.map_or(0, bytes::Bytes::len) as u64).to_be_bytes());
        hash.update(value.map_or(&[][..], |v| v));
    }
    super::hex(&hash.finalize())
}

fn audit_key(write: &Write, before: &Before) -> AuditKey {
    AuditKey {
        key: before.key.text(),
        old: before.old.as_ref().map(|(rev, _)| *rev),
        what: match write {
            Write::Put { value, .. } => format!("put {} bytes", value.len()),
            Write::Delete(_) => "delete".to_owned(),
        },
    }
}

/// The key of a single-key condition.
pub(super) fn cond_key(cond: &Cond) -> Option<&MetaKey> {
    match cond {
        Cond::Absent(key) | Cond::At(key, _) | Cond::ValueIs(key, _) => Some(key),
        Cond::NoneUnder(_) | Cond::NoneIn(_) => None,
    }
}

/// Why `cond` does not hold over what stands under its key.
pub(super) fn broken(cond: &Cond, now: Option<&KeyValue>) -> Option<String> {
    broken_at(cond, now.map(|kv| (kv.mod_rev, &kv.value[..])))
}

fn broken_before(cond: &Cond, before: &Before) -> Option<String> {
    broken_at(cond, before.old.as_ref().map(|(rev, v)| (*rev, &v[..])))
}

fn broken_at(cond: &Cond, now: Option<(MetaRev, &[u8])>) -> Option<String> {
    match (cond, now) {
        (Cond::Absent(key), Some((rev, _))) => Some(format!(
            "key {key} should not exist and does, at revision {rev}"
        )),
        (Cond::At(key, want), Some((rev, _))) if rev != *want => {
            Some(format!("key {key} has moved from revision {want} to {rev}"))
        }
        (Cond::ValueIs(key, want), Some((rev, value))) if value != &want[..] => {
            Some(format!("key {key} has another value, at revision {rev}"))
        }
        (Cond::At(key, _) | Cond::ValueIs(key, _), None) => Some(format!("key {key} is gone")),
        _ => None,
    }
}

pub(super) fn conflict(change: &Change, why: String) -> Error {
    Error::new(ErrorKind::Conflict, why)
        .with("change", &change.name)
        .fix("look again, and make a new plan")
}
