//! THE write path. Nothing else in the program holds a [`MetaWrite`] or an [`ObjectWrite`].
//!
//! A [`Change`] is cut into chunks that fit a transaction. Each chunk is ONE transaction: fence, the caller's conditions, the
//! revision of everything it replaces, its writes, the pre-image, the audit entry and the step marker. So there is no moment at
//! which a change has happened without its record, and no doubt afterwards whether it has (laws 2 and 3).

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use super::fence::Fence;
use super::journal::{Audit, AuditKey, Before, Keys, Mark, PreImage, from_json, json};
use super::retry::{Backoff, TRIES, calm};
use crate::engine::clock::{Clock, Entropy};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, MetaKey, MetaRev};
use crate::engine::meta::{
    Cond, KeyValue, MetaRead, MetaWrite, Outcome, Page, RangeOpts, Span, Txn, Write,
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

/// Milvus itself never sends more operations into its root at once (`spec/layout.md` §0.6).
const MILVUS_OPS: usize = 64;
/// Room for framing in a transaction's bytes.
const SLACK: usize = 8 * 1024;
/// Pre-images read at once.
const READS: usize = 16;

/// What an [`Executor`] is made of.
pub struct Parts {
    /// Metadata, with the right to write.
    pub meta: Arc<dyn MetaWrite>,
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

/// The one writer.
pub struct Executor {
    pub(super) meta: Arc<dyn MetaWrite>,
    pub(super) objects: ObjectWrite,
    pub(super) roots: Roots,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) actor: String,
    pub(super) embedded: bool,
    pub(super) keys: Keys,
    pub(super) fence: Fence,
    pub(super) ids: tokio::sync::Mutex<super::ids::Floor>,
}

/// The writes `from..to` of a change with what they replace.
struct Chunk {
    number: u32,
    from: usize,
    to: usize,
    before: Vec<Before>,
    /// The pre-image does not fit beside the writes: it goes ahead in parts.
    apart: bool,
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
            keys: Keys::new(&parts.roots),
            meta: parts.meta,
            objects: parts.objects,
            roots: parts.roots,
            clock: parts.clock,
            entropy: parts.entropy,
            actor: parts.actor,
            embedded: parts.embedded,
            fence,
            ids: tokio::sync::Mutex::default(),
        })
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
    pub fn reader(&self) -> Arc<dyn MetaRead> {
        self.meta.clone()
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

    /// Makes `change` happen, or finds that it has. `Conflict` names the key that moved; `Fenced` says by whom.
    pub async fn commit(&self, who: &Who, change: &Change) -> Result<Committed> {
        validate(change)?;
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
        loop {
            let chunk = self.cut(change, at, number).await?;
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
                self.hold_all(change, chunk.to).await?;
                checked = true;
            }
            let rev = self
                .settle(who, change, &chunk, &digest, last.as_ref(), head)
                .await?;
            if done {
                return Ok(Committed { rev, before: false });
            }
            last = Some((self.keys.mark(who.job, &change.name, number), rev));
            (at, number, head) = (chunk.to, number + 1, rev);
        }
    }

    async fn marks(&self, who: &Who, change: &Change) -> Result<Page> {
        let span = Span::prefix(&self.keys.marks_of(who.job, &change.name));
        calm(&*self.clock, || self.meta.range_all(&span)).await
    }

    /// Takes as many writes as fit, and reads what they replace.
    async fn cut(&self, change: &Change, from: usize, number: u32) -> Result<Chunk> {
        let limits = self.meta.limits();
        let ops = limits.ops.min(MILVUS_OPS);
        let apart: usize = change
            .conds
            .iter()
            .filter(|c| written(change, c).is_none())
            .count();
        // Fence (5 session spans, owner, epoch), marker, marker before; and marker, pre-image, audit entry.
        let free = if number == 0 { apart } else { 0 };
        let room = ops.saturating_sub(9 + free).min(ops.saturating_sub(3));
        if room == 0 {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "change {} has {apart} conditions; a transaction takes {ops}",
                    change.name
                ),
            ));
        }
        let upto = change.writes.len().min(from + room);
        let before = self.read_before(change, &change.writes[from..upto]).await?;
        let bytes = limits.bytes.saturating_sub(SLACK);
        let mut used: usize = change
            .conds
            .iter()
            .filter(|_| number == 0)
            .map(cond_bytes)
            .sum();
        let mut to = from;
        for (write, old) in change.writes[from..upto].iter().zip(&before) {
            used += write_bytes(write) + old.old.as_ref().map_or(0, |(_, v)| v.len());
            if used > bytes {
                break;
            }
            to += 1;
        }
        if to > from || from == change.writes.len() {
            let before = before.into_iter().take(to - from).collect();
            return Ok(Chunk {
                number,
                from,
                to,
                before,
                apart: false,
            });
        }
        let alone = &change.writes[from];
        if write_bytes(alone) > bytes {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "the value for {} has {} bytes; a transaction takes {bytes}",
                    alone.key(),
                    write_bytes(alone)
                ),
            ));
        }
        let before = before.into_iter().take(1).collect();
        Ok(Chunk {
            number,
            from,
            to: from + 1,
            before,
            apart: true,
        })
    }

    /// What stands under the keys now. A key that the change says is absent is not read: the condition proves it.
    async fn read_before(&self, change: &Change, writes: &[Write]) -> Result<Vec<Before>> {
        let absent: BTreeSet<&MetaKey> = change
            .conds
            .iter()
            .filter_map(|c| match c {
                Cond::Absent(key) => Some(key),
                _ => None,
            })
            .collect();
        let wanted: Vec<(MetaKey, bool)> = writes
            .iter()
            .map(|w| (w.key().clone(), absent.contains(w.key())))
            .collect();
        let reads = wanted.into_iter().map(|(key, known)| async move {
            let old = if known {
                None
            } else {
                let now = calm(&*self.clock, || self.meta.get(&key)).await?;
                now.map(|kv| (kv.mod_rev, kv.value))
            };
            Ok::<_, Error>(Before { key, old })
        });
        stream::iter(reads).buffered(READS).try_collect().await
    }

    /// Before the first of several chunks: everything that later chunks will ask must hold already now.
    async fn hold_all(&self, change: &Change, from: usize) -> Result<()> {
        let later: BTreeSet<&MetaKey> = change.writes[from..].iter().map(Write::key).collect();
        let mut conds = Vec::new();
        for cond in &change.conds {
            if let Some(key) = cond_key(cond).filter(|k| later.contains(k)) {
                conds.push((key.clone(), cond.clone()));
            }
        }
        let checks = conds.into_iter().map(|(key, cond)| async move {
            let now = calm(&*self.clock, || self.meta.get(&key)).await?;
            Ok::<_, Error>(broken(&cond, now.as_ref()))
        });
        let mut checks = stream::iter(checks).buffer_unordered(READS);
        while let Some(why) = checks.next().await {
            if let Some(why) = why? {
                return Err(conflict(change, why));
            }
        }
        Ok(())
    }

    /// One chunk to its end: committed, refused, and unknown settled by the marker.
    async fn settle(
        &self,
        who: &Who,
        change: &Change,
        chunk: &Chunk,
        digest: &str,
        last: Option<&(MetaKey, MetaRev)>,
        head: MetaRev,
    ) -> Result<MetaRev> {
        let mark = self.keys.mark(who.job, &change.name, chunk.number);
        if chunk.apart {
            self.store_parts(who, change, chunk).await?;
        }
        let mut backoff = Backoff::new(TRIES);
        loop {
            self.fence.renew_if_due().await?;
            let txn = self.transaction(who, change, chunk, digest, last, head)?;
            match self.meta.txn(txn.clone()).await {
                Ok(Outcome::Committed { rev }) => {
                    self.fence.prove();
                    return Ok(rev);
                }
                Ok(Outcome::Refused { seen, .. }) => {
                    // Our own marker: an earlier try of this chunk went through after all.
                    if let Some(kv) = seen.iter().find(|kv| kv.key == mark) {
                        return Ok(kv.mod_rev);
                    }
                    return Err(self.refused(change, &txn, &seen).await?);
                }
                Err(e) if e.kind() == ErrorKind::OutcomeUnknown => {
                    let found = calm(&*self.clock, || self.meta.get(&mark))
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
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn transaction(
        &self,
        who: &Who,
        change: &Change,
        chunk: &Chunk,
        digest: &str,
        last: Option<&(MetaKey, MetaRev)>,
        head: MetaRev,
    ) -> Result<Txn> {
        let mut conds = self.fence.conds_at(who.epoch)?;
        conds.push(Cond::Absent(self.keys.mark(
            who.job,
            &change.name,
            chunk.number,
        )));
        conds.extend(last.map(|(key, rev)| Cond::At(key.clone(), *rev)));
        let writes = &change.writes[chunk.from..chunk.to];
        for cond in &change.conds {
            match written(change, cond) {
                None if chunk.number == 0 => conds.push(cond.clone()),
                // A value comparison is not implied by the pre-image's revision; the two others are.
                Some(at) if (chunk.from..chunk.to).contains(&at) => {
                    let old = &chunk.before[at - chunk.from];
                    if let Some(why) = broken_before(cond, old) {
                        return Err(conflict(change, why));
                    }
                }
                _ => {}
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
        if !chunk.apart && !chunk.before.is_empty() {
            let pre = PreImage {
                entries: chunk.before.clone(),
            };
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
    async fn store_parts(&self, who: &Who, change: &Change, chunk: &Chunk) -> Result<()> {
        let pre = PreImage {
            entries: chunk.before.clone(),
        }
        .encode()?;
        let size = (self.meta.limits().bytes / 2).max(1);
        for (part, bytes) in pre.chunks(size).enumerate() {
            let key = self
                .keys
                .pre_part(who.job, &change.name, chunk.number, part);
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

    /// Like [`note`](Self::note), under conditions of the caller; `None` when one of them did not hold. Sending again after an
    /// unknown outcome is right only if the conditions do not turn false by the writes themselves.
    pub async fn note_if(&self, conds: &[Cond], writes: &[Write]) -> Result<Option<MetaRev>> {
        let mut backoff = Backoff::new(TRIES);
        loop {
            self.fence.renew_if_due().await?;
            let mut all = self.fence.own_conds()?;
            all.extend_from_slice(conds);
            let txn = Txn {
                conds: all,
                writes: writes.to_vec(),
            };
            match self.meta.txn(txn).await {
                Ok(Outcome::Committed { rev }) => return Ok(Some(rev)),
                Ok(Outcome::Refused { .. }) => {
                    if !self.fence.owned().await? {
                        return Err(self.fence.lost());
                    }
                    return Ok(None);
                }
                Err(e) if e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown => {
                    if !backoff.again(&*self.clock).await {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
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
fn cond_key(cond: &Cond) -> Option<&MetaKey> {
    match cond {
        Cond::Absent(key) | Cond::At(key, _) | Cond::ValueIs(key, _) => Some(key),
        Cond::NoneUnder(_) | Cond::NoneIn(_) => None,
    }
}

/// Which write of the change a condition is about.
fn written(change: &Change, cond: &Cond) -> Option<usize> {
    let key = cond_key(cond)?;
    change.writes.iter().position(|w| w.key() == key)
}

/// Why `cond` does not hold over what stands under its key.
fn broken(cond: &Cond, now: Option<&KeyValue>) -> Option<String> {
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

fn conflict(change: &Change, why: String) -> Error {
    Error::new(ErrorKind::Conflict, why)
        .with("change", &change.name)
        .fix("look again, and make a new plan")
}

fn cond_bytes(cond: &Cond) -> usize {
    32 + match cond {
        Cond::Absent(key) | Cond::At(key, _) => key.0.len(),
        Cond::ValueIs(key, value) => key.0.len() + value.len(),
        Cond::NoneUnder(prefix) => 2 * prefix.bytes().len(),
        Cond::NoneIn(span) => span.start.len() + span.end.as_ref().map_or(0, bytes::Bytes::len),
    }
}

/// A write with its condition, its line in the pre-image and its line in the audit; a key is asked for once more when refused.
fn write_bytes(write: &Write) -> usize {
    let value = match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete(_) => 0,
    };
    value + 6 * write.key().0.len() + 256
}
