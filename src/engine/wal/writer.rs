//! The one task that writes a log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Appended;
use super::log::{Shared, closed};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::hex;
use crate::engine::format::message::{Draft, Stored, encode_segment};
use crate::engine::ids::{MessageId, MetaRev, ObjectKey, Tso};
use crate::engine::meta::{Cond, KeyValue, Write};
use crate::engine::model::log::{Head, Segment};
use crate::engine::plan::journal::{from_json, json};
use crate::engine::plan::ledger::{Swap, Swapped};

/// Messages and bytes of one segment, roughly: what waits beyond them goes into the next one.
const MESSAGES: usize = 4_096;
const BYTES: usize = 4 << 20;
/// Index keys deleted at once.
const DELETES: usize = 32;
/// Between looks at a store that does not tell whether our write happened.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

type Answer<T> = oneshot::Sender<Result<T>>;

/// What the writer is asked for.
pub(super) enum Ask {
    Append(Vec<Draft>, Answer<Vec<Appended>>),
    Tick(Answer<Tso>),
    Truncate(MessageId, Answer<MessageId>),
}

impl Ask {
    /// Nobody waits for it any more, so it need not happen.
    fn is_left(&self) -> bool {
        match self {
            Self::Append(_, answer) => answer.is_closed(),
            Self::Tick(answer) => answer.is_closed(),
            Self::Truncate(_, answer) => answer.is_closed(),
        }
    }

    fn refuse(self, why: Error) {
        // Who has left hears nothing.
        match self {
            Self::Append(_, answer) => drop(answer.send(Err(why))),
            Self::Tick(answer) => drop(answer.send(Err(why))),
            Self::Truncate(_, answer) => drop(answer.send(Err(why))),
        }
    }
}

/// Appends and ticks that become one movement of the head.
#[derive(Default)]
struct Batch {
    asks: Vec<Ask>,
    drafts: usize,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, ask: Ask) {
        if let Ask::Append(drafts, _) = &ask {
            self.drafts += drafts.len();
            self.bytes += drafts
                .iter()
                .map(|d| d.message().payload.len() + 256)
                .sum::<usize>();
        }
        self.asks.push(ask);
    }

    fn refuse(self, why: &Error) {
        for ask in self.asks {
            ask.refuse(why.clone());
        }
    }

    fn is_full(&self) -> bool {
        self.drafts >= MESSAGES || self.bytes >= BYTES || self.asks.len() >= MESSAGES
    }
}

/// What a movement of the head puts into the index.
struct Made {
    head: Head,
    messages: Vec<Stored>,
    segment: Option<Segment>,
    bytes: usize,
}

/// Owns the head: nothing else in this process moves it.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// Revision of the head's last write.
    rev: MetaRev,
    /// Cut off, and not yet removed.
    left: Vec<Segment>,
    /// Written by us, and certainly not in the index.
    garbage: Vec<ObjectKey>,
    /// What older owners left has been looked for.
    listed: bool,
    stop: CancellationToken,
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        rev: MetaRev,
        left: Vec<Segment>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            shared,
            rev,
            left,
            garbage: Vec::new(),
            listed: false,
            stop,
        }
    }

    /// Until the log is closed, dropped, or another's.
    pub async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let mut kept: Option<Ask> = None;
        let why = loop {
            let ask = if let Some(ask) = kept.take() {
                Some(ask)
            } else {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => None,
                    ask = asked.recv() => ask,
                }
            };
            let Some(ask) = ask.filter(|_| !self.stop.is_cancelled()) else {
                break closed(&self.shared.pchannel);
            };
            let done = match ask {
                Ask::Truncate(below, answer) => {
                    let (told, ended) = split(self.truncate(below).await);
                    let _ = answer.send(told);
                    ended
                }
                ask => {
                    // Whoever wants to append now may join.
                    tokio::task::yield_now().await;
                    let mut batch = Batch::default();
                    batch.add(ask);
                    while !batch.is_full() {
                        match asked.try_recv() {
                            Ok(ask @ Ask::Truncate(..)) => kept = Some(ask),
                            Ok(ask) => {
                                batch.add(ask);
                                continue;
                            }
                            Err(_) => {}
                        }
                        break;
                    }
                    batch.asks.retain(|ask| !ask.is_left());
                    self.commit(batch).await
                }
            };
            if let Some(why) = done {
                break why;
            }
        };
        self.shared.publish(Some(why.clone()));
        asked.close();
        if let Some(ask) = kept {
            ask.refuse(why.clone());
        }
        while let Some(ask) = asked.recv().await {
            ask.refuse(why.clone());
        }
    }

    /// Makes a batch durable and answers everybody in it. The reason when the log has ended.
    async fn commit(&mut self, batch: Batch) -> Option<Error> {
        if batch.asks.is_empty() {
            return None;
        }
        let made = match self.make(&batch.asks).await {
            Ok(made) => made,
            Err(e) => {
                batch.refuse(&e);
                return None;
            }
        };
        let tick = made.head.tick;
        match self.swap(&made.head, made.segment.as_ref()).await {
            Ok(()) => {
                self.shared.index().moved(made.head, made.segment);
                let mut ids = made.messages.iter().map(|m| Appended {
                    id: m.id,
                    tick: m.tick,
                });
                let mut answers: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
                for ask in batch.asks {
                    match ask {
                        Ask::Append(drafts, answer) => {
                            let own: Vec<Appended> = ids.by_ref().take(drafts.len()).collect();
                            answers.push(Box::new(move || drop(answer.send(Ok(own)))));
                        }
                        // The whole batch becomes durable at once: its last tick covers all of it.
                        Ask::Tick(answer) => {
                            answers.push(Box::new(move || drop(answer.send(Ok(tick)))));
                        }
                        Ask::Truncate(..) => {}
                    }
                }
                drop(ids);
                if !made.messages.is_empty() {
                    self.shared.remember(made.messages, made.bytes);
                }
                // Readers see it before its writer hears of it: who was answered can read.
                self.shared.publish(None);
                for answer in answers {
                    answer();
                }
                None
            }
            Err(e) => {
                // Only a certain failure leaves garbage: an object whose swap may still arrive may be part of the log.
                if e.told.kind() != ErrorKind::OutcomeUnknown {
                    self.garbage.extend(made.segment.map(|s| s.object));
                }
                let Failed { told, ended } = e;
                batch.refuse(&told);
                ended
            }
        }
    }

    /// Gives ids and ticks, and writes the object. Nothing is part of the log yet.
    async fn make(&mut self, asks: &[Ask]) -> Result<Made> {
        let shared = &self.shared;
        let drafts: Vec<&Draft> = asks
            .iter()
            .filter_map(|ask| match ask {
                Ask::Append(drafts, _) => Some(drafts),
                _ => None,
            })
            .flatten()
            .collect();
        let before = shared.index().head().clone();
        let (head, from) = before.appended(drafts.len(), shared.executor.clock().now())?;
        let mut messages = Vec::with_capacity(drafts.len());
        for (draft, i) in drafts.into_iter().zip(0_u64..) {
            let tick = Tso(from.0 + i);
            let place = i64::try_from(i).unwrap_or(i64::MAX);
            messages.push(Stored {
                id: MessageId(before.next.0 + place),
                tick,
                message: draft.clone().stamp(shared.term, tick),
            });
        }
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
            return Ok(Made {
                head,
                messages,
                segment: None,
                bytes: 0,
            });
        };
        let body = Bytes::from(encode_segment(&messages)?);
        let segment = Segment {
            object: shared.object(first.id, shared.executor.entropy().next_u64()),
            first: first.id,
            last: last.id,
            from: first.tick,
            to: last.tick,
            term: shared.term,
            bytes: body.len() as u64,
            sha256: hex(&Sha256::digest(&body)),
        };
        let bytes = body.len();
        if let Err(e) = shared.executor.put_object(&segment.object, body).await {
            self.garbage.push(segment.object);
            // Without an index entry it is not appended, whatever became of the object.
            return Err(match e.kind() {
                ErrorKind::OutcomeUnknown => {
                    Error::new(ErrorKind::Unreachable, e.what()).caused_by(e.clone())
                }
                _ => e,
            });
        }
        Ok(Made {
            head,
            messages,
            segment: Some(segment),
            bytes,
        })
    }

    /// Moves the head, as long as it takes to know whether it moved.
    async fn swap(&mut self, head: &Head, segment: Option<&Segment>) -> Result<(), Failed> {
        let shared = self.shared.clone();
        let keys = shared.executor.keys();
        let head_key = keys.wal_head(&shared.pchannel);
        let mut writes = Vec::with_capacity(2);
        // First the segment: it still stands when a later owner has moved the head on.
        if let Some(segment) = segment {
            let key = keys.wal_segment(&shared.pchannel, segment.first);
            writes.push(Write::put(key, json(segment).map_err(Failed::now)?));
        }
        writes.push(Write::put(
            head_key.clone(),
            json(head).map_err(Failed::now)?,
        ));
        let mut swap = Swap::new(vec![Cond::At(head_key.clone(), self.rev)], writes);
        let mut pause = PAUSE.0;
        loop {
            match shared.executor.swap(&mut swap).await {
                Ok(Swapped::Done(rev)) => {
                    self.rev = rev;
                    return Ok(());
                }
                Ok(Swapped::Refused(seen)) => {
                    let found = seen.iter().find(|kv| kv.key == head_key);
                    return Err(self.deposed(found, swap.in_doubt(), head));
                }
                Err(e) if swap.in_doubt() && e.kind() != ErrorKind::Fenced => {
                    if self.stop.is_cancelled() {
                        return Err(Failed::end(e));
                    }
                    shared.end.send_modify(|end| end.trouble = Some(e));
                    tokio::select! {
                        () = shared.executor.clock().sleep(pause) => {}
                        () = self.stop.cancelled() => {}
                    }
                    pause = (pause * 2).min(PAUSE.1);
                }
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    let told = if swap.in_doubt() {
                        // Another owner of the root may even have cut it off by now.
                        Error::new(ErrorKind::OutcomeUnknown, e.what()).caused_by(e.clone())
                    } else {
                        e.clone()
                    };
                    return Err(Failed {
                        told,
                        ended: Some(e),
                    });
                }
                Err(e) => return Err(Failed::now(e)),
            }
        }
    }

    /// Another owner has moved the head.
    fn deposed(&self, found: Option<&KeyValue>, in_doubt: bool, ours: &Head) -> Failed {
        let pchannel = &self.shared.pchannel;
        let fenced = |what: String| {
            Error::new(ErrorKind::Fenced, what)
                .fix("nothing more is written to it here; open it again to own it")
        };
        let Some(kv) = found else {
            return Failed::end(fenced(format!("the head of the log of {pchannel} is gone")));
        };
        let now: Head = match from_json(&kv.key, &kv.value) {
            Ok(now) => now,
            Err(e) => return Failed::end(e),
        };
        let ended = fenced(format!(
            "the log of {pchannel} has another owner: term {} after our {}",
            now.term, self.shared.term
        ));
        // It may have happened, been taken over and been cut off since.
        if in_doubt && now.first >= ours.next && ours.next > ours.first {
            let unknown = Error::new(ErrorKind::OutcomeUnknown, ended.what());
            return Failed {
                told: unknown,
                ended: Some(ended),
            };
        }
        Failed::end(ended)
    }

    /// Cuts, and removes what is cut and what failed appends left.
    async fn truncate(&mut self, below: MessageId) -> Result<MessageId, Failed> {
        let to = self.shared.cut_at(below);
        let head = self.shared.index().head().clone();
        if to > head.first {
            let head = head.cut(to);
            self.swap(&head, None).await?;
            let cut = self.shared.index().cut(head);
            self.left.extend(cut);
            self.shared.publish(None);
        }
        self.sweep().await.map_err(Failed::now)?;
        Ok(to)
    }

    /// Objects first, their index keys last: a crash between leaves keys below the head, which the next owner takes up.
    async fn sweep(&mut self) -> Result<()> {
        let shared = self.shared.clone();
        let (executor, pchannel) = (&shared.executor, &shared.pchannel);
        if !self.listed {
            let known: BTreeSet<ObjectKey> = {
                let index = shared.index();
                let all = index.segments().chain(&self.left);
                all.map(|s| s.object.clone()).collect()
            };
            // Only terms below ours: their owners can add nothing to the index any more, so what is not in it now never will be.
            let found: Vec<_> = executor
                .objects()
                .list(&shared.folder(), None)
                .try_collect()
                .await?;
            let lost = found.into_iter().map(|o| o.key).filter(|key| {
                shared.term_of(key).is_some_and(|term| term < shared.term) && !known.contains(key)
            });
            self.garbage.extend(lost);
            self.listed = true;
        }
        while let Some(object) = self.garbage.last() {
            executor.delete_object(object).await?;
            self.garbage.pop();
        }
        while !self.left.is_empty() {
            let some = self.left.len().min(DELETES);
            for segment in &self.left[..some] {
                executor.delete_object(&segment.object).await?;
            }
            let keys = self.left[..some].iter();
            let writes =
                keys.map(|s| Write::Delete(executor.keys().wal_segment(pchannel, s.first)));
            executor
                .swap(&mut Swap::new(Vec::new(), writes.collect()))
                .await?;
            self.left.drain(..some);
        }
        Ok(())
    }
}

/// Why a movement of the head failed.
struct Failed {
    /// What the callers hear.
    told: Error,
    /// The log has ended by it.
    ended: Option<Error>,
}

impl Failed {
    fn now(told: Error) -> Self {
        Self { told, ended: None }
    }

    fn end(why: Error) -> Self {
        Self {
            told: why.clone(),
            ended: Some(why),
        }
    }
}

fn split<T>(done: Result<T, Failed>) -> (Result<T>, Option<Error>) {
    match done {
        Ok(done) => (Ok(done), None),
        Err(Failed { told, ended }) => (Err(told), ended),
    }
}
