//! Reports of those who consume a channel: each under the term of the log they read (`spec/lifecycle.md` §2 rules 2 and 3, §I.3).
//!
//! A report is turned away when its term is not the channel's. That it still is when the report is applied is a condition of the same
//! transaction, on the channel's own record: between the look and the write nobody can take the log unseen (I2.1, I2.2).

use std::sync::Arc;

use prost::Message as _;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::codec::is_tombstone;
use crate::engine::format::keys::{Family, Key, ParsedKey};
use crate::engine::format::pb::data::FieldBinlog;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{
    CollectionId, PartitionId, SegmentId, Term, Tso, UnixMs, UnixNs, VChannel,
};
use crate::engine::meta::{Cond, KeyValue, Span, Write};
use crate::engine::model::ddl;
use crate::engine::model::segments::{Report, reported};
use crate::engine::plan::execute::Executor;
use crate::engine::plan::ledger::{Swap, Swapped};
use crate::engine::plan::retry::{Backoff, TRIES, calm};
use crate::engine::wal::channels::holder;

/// What has become of a segment, as the one says who consumes its channel.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Its virtual channel.
    pub channel: VChannel,
    /// The term under which the reporter holds the channel's log.
    pub term: Term,
    /// The segment.
    pub segment: (CollectionId, PartitionId, SegmentId),
    /// What is reported.
    pub what: Report,
    /// The tick of the message that says so.
    pub at: Tso,
}

/// Writes between two looks at the owner. Milvus's own transactions have at most 64 operations.
const CHUNK: usize = 48;

/// Applies reports.
pub struct Reports {
    executor: Arc<Executor>,
}

impl Reports {
    /// The executor must own the root as long as it is used.
    #[must_use]
    pub fn new(executor: Arc<Executor>) -> Self {
        Self { executor }
    }

    /// That `term` holds the channel's log, as a condition; `NotFound` (`ErrChannelNotFound`) when it does not.
    async fn owned(&self, channel: &VChannel, term: Term) -> Result<Cond> {
        let pchannel = ChannelName::parse(&channel.0).pchannel();
        match holder(&self.executor, pchannel).await? {
            Some((now, cond)) if now == term => Ok(cond),
            held => {
                let now = held.map_or_else(
                    || "nobody owns the channel".to_owned(),
                    |(now, _)| format!("the owner is term {now}"),
                );
                let what = format!("report of term {term} refused, {now}");
                Err(Error::new(ErrorKind::NotFound, what).with("channel", channel))
            }
        }
    }

    async fn read(&self, span: &Span) -> Result<Vec<KeyValue>> {
        let reader = self.executor.reader();
        let clock = self.executor.clock();
        Ok(calm(&**clock, || reader.range_all(span)).await?.kvs)
    }

    /// Applies a report; whether it changed anything. A segment that is gone needs no flush any more. `NotFound` when the term is not the
    /// channel's; `Corrupt` when the record or a log list cannot be read: nothing is decided on top of it.
    pub async fn save(&self, saved: &Saved) -> Result<bool> {
        let roots = self.executor.roots();
        let (c, p, s) = saved.segment;
        let key = Key::Segment(c, p, s).to_key(roots);
        let mut backoff = Backoff::new(TRIES);
        loop {
            let owned = self.owned(&saved.channel, saved.term).await?;
            let found = self.read(&Span::key(&key)).await?;
            let Some(kv) = found.first() else {
                return Ok(false);
            };
            if is_tombstone(Family::Segment, &kv.value) {
                return Ok(false);
            }
            let under = Family::Binlog.under(roots, &[c.0, p.0, s.0]);
            let logs = self.read(&Span::prefix(&under)).await?;
            let logs = logs
                .iter()
                .filter(|kv| !is_tombstone(Family::Binlog, &kv.value))
                .map(|kv| {
                    let corrupt = |e| unreadable(kv).caused_by(e);
                    FieldBinlog::decode(&*kv.value).map_err(corrupt)
                });
            let logs: Vec<FieldBinlog> = logs.collect::<Result<_>>()?;
            let next = reported(&kv.value, &logs, saved.what, moment(saved.at))
                .map_err(|e| unreadable(kv).caused_by(e))?;
            let Some(next) = next else {
                return Ok(false);
            };
            let conds = vec![Cond::At(kv.key.clone(), kv.mod_rev), owned];
            let writes = vec![Write::put(kv.key.clone(), next)];
            match self.executor.swap(&mut Swap::new(conds, writes)).await? {
                Swapped::Done(_) => return Ok(true),
                // The segment or the owner has moved: look again.
                Swapped::Refused(_) => {
                    if !backoff.again(&**self.executor.clock()).await {
                        return Err(Error::new(
                            ErrorKind::Busy,
                            format!("segment {s} is moved by somebody else all the time"),
                        )
                        .fix("let one process own the root"));
                    }
                }
            }
        }
    }

    /// The channel is dropped: its segments, its mark, its sentinel (§3 rule 5). Again is nothing; after a crash it goes on where it was.
    pub async fn drop_channel(&self, channel: &VChannel, term: Term, at: Tso) -> Result<()> {
        let roots = self.executor.roots();
        let mut backoff = Backoff::new(TRIES);
        loop {
            let owned = self.owned(channel, term).await?;
            let records = self.records(channel).await?;
            let plain: Vec<ddl::Record> = records
                .iter()
                .map(|(key, kv)| (key.clone(), kv.value.to_vec()))
                .collect();
            let effect = ddl::drop_channel(&plain, channel, moment(at))
                .map_err(|e| Error::new(ErrorKind::Corrupt, e.to_string()))?;
            if effect.is_empty() {
                return Ok(());
            }
            let mut moved = false;
            for some in effect.chunks(CHUNK) {
                let mut conds = vec![owned.clone()];
                let mut writes = Vec::with_capacity(some.len());
                for write in some {
                    let key = write.key().to_key(roots);
                    let old = records.iter().find(|(k, _)| k == write.key());
                    conds.push(old.map_or_else(
                        || Cond::Absent(key.clone()),
                        |(_, kv)| Cond::At(key.clone(), kv.mod_rev),
                    ));
                    writes.push(match write {
                        ddl::Write::Put(_, value) => Write::put(key, value.clone()),
                        ddl::Write::Delete(_) => Write::Delete(key),
                    });
                }
                let done = self.executor.swap(&mut Swap::new(conds, writes)).await?;
                if matches!(done, Swapped::Refused(_)) {
                    moved = true;
                    break;
                }
            }
            if moved && !backoff.again(&**self.executor.clock()).await {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("channel {channel} is changed by somebody else all the time"),
                )
                .fix("let one process own the root"));
            }
        }
    }

    /// What a drop of the channel looks at.
    async fn records(&self, channel: &VChannel) -> Result<Vec<(Key, KeyValue)>> {
        let roots = self.executor.roots();
        let segments = match ChannelName::parse(&channel.0) {
            ChannelName::Shard { collection, .. } => Family::Segment.under(roots, &[collection.0]),
            _ => Family::Segment.prefix(roots),
        };
        let mark = Key::ChannelRemoval(channel.clone()).to_key(roots);
        let checkpoint = Key::ChannelCheckpoint(channel.clone()).to_key(roots);
        let spans = [
            Span::prefix(&segments),
            Span::key(&mark),
            Span::key(&checkpoint),
        ];
        let mut out = Vec::new();
        for span in &spans {
            for kv in self.read(span).await? {
                if let ParsedKey::Known(key) = Key::parse(roots, &kv.key.0) {
                    out.push((key, kv));
                }
            }
        }
        Ok(out)
    }
}

/// A tick as the moment of a drop: the same whenever the message is taken in again.
fn moment(at: Tso) -> UnixNs {
    let ms = at.time().unwrap_or(UnixMs(0)).0;
    UnixNs(ms.saturating_mul(1_000_000))
}

fn unreadable(kv: &KeyValue) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "record {} cannot be read, so its segment is not flushed",
            kv.key
        ),
    )
    .fix("look at it with `falconer key`, and repair it")
}
