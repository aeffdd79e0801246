//! Watches: a commit wakes them, the log feeds them. What a watch delivers never depends on what it was awake for, so a
//! slow one loses nothing and holds nothing in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use futures::StreamExt;
use futures::stream;
use tokio::sync::watch::Receiver;

use super::core::{Core, Db, POLL, upgrade};
use super::mvcc::{self, Changes};
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaRev;
use crate::engine::meta::{Span, WatchBatch, WatchStream};

/// Changes read from the log at a time.
const CHUNK: usize = 1024;

struct Watch {
    core: Weak<Core>,
    clock: Arc<dyn Clock>,
    head: Receiver<i64>,
    is_follower: bool,
    span: Span,
    /// The next revision to read from the log.
    next: i64,
    /// Highest revision that the consumer knows to be complete.
    told: i64,
    ready: VecDeque<WatchBatch>,
    done: bool,
}

/// Opens a watch. The first read happens here, so that a compacted start is an error of the call.
pub async fn open(core: &Arc<Core>, span: Span, from: MetaRev) -> Result<WatchStream> {
    let mut watch = Watch {
        core: Arc::downgrade(core),
        clock: Arc::clone(&core.clock),
        head: core.head.subscribe(),
        is_follower: matches!(core.db, Db::Follower(_)),
        span,
        next: from.0,
        told: from.0 - 1,
        ready: VecDeque::new(),
        done: false,
    };
    watch.fill().await?;
    Ok(stream::unfold(watch, step).boxed())
}

async fn step(mut watch: Watch) -> Option<(Result<WatchBatch>, Watch)> {
    if watch.done {
        return None;
    }
    let item = watch.next_batch().await;
    watch.done = item.is_err();
    Some((item, watch))
}

impl Watch {
    async fn next_batch(&mut self) -> Result<WatchBatch> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                self.told = batch.rev.0;
                return Ok(batch);
            }
            let complete = self.next - 1;
            if complete > self.told {
                self.told = complete;
                return Ok(WatchBatch {
                    rev: MetaRev(complete),
                    events: Vec::new(),
                });
            }
            self.wait().await?;
            self.fill().await?;
        }
    }

    /// Waits until there may be something above `next`.
    async fn wait(&mut self) -> Result<()> {
        if self.is_follower {
            self.clock.sleep(POLL).await;
            return Ok(());
        }
        let next = self.next;
        match self.head.wait_for(|head| *head >= next).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                ErrorKind::Cancelled,
                "metadata store was closed",
            )),
        }
    }

    async fn fill(&mut self) -> Result<()> {
        let core = upgrade(&self.core)?;
        let (span, from) = (self.span.clone(), self.next);
        let Changes { batches, upto } = core
            .read(move |txn| mvcc::changes(txn, &span, from, CHUNK))
            .await?;
        self.ready.extend(batches);
        // a start in the future stays where it is
        self.next = self.next.max(upto + 1);
        Ok(())
    }
}
