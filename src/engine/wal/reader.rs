//! A cursor over a log.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::log::{Shared, closed};
use super::{End, Reader};
use crate::engine::error::Result;
use crate::engine::format::message::Stored;
use crate::engine::ids::MessageId;

/// Reads a segment at a time. Its place is what the log keeps for it.
pub(super) struct LogReader {
    shared: Arc<Shared>,
    slot: u64,
    next: MessageId,
    segment: Option<Arc<Vec<Stored>>>,
    end: watch::Receiver<End>,
}

impl LogReader {
    pub fn new(shared: Arc<Shared>, from: MessageId) -> Result<Self> {
        Ok(Self {
            slot: shared.need(from)?,
            end: shared.end.subscribe(),
            next: from,
            segment: None,
            shared,
        })
    }

    fn in_hand(&self) -> Option<Stored> {
        let segment = self.segment.as_ref()?;
        let at = self.next.0.checked_sub(segment.first()?.id.0)?;
        segment.get(usize::try_from(at).ok()?).cloned()
    }
}

#[async_trait]
impl Reader for LogReader {
    async fn next(&mut self) -> Result<Stored> {
        loop {
            // Marked before the look, so that what is appended during it is seen.
            let ended = self.end.borrow_and_update().ended.clone();
            if let Some(message) = self.try_next().await? {
                return Ok(message);
            }
            if let Some(ended) = ended {
                return Err(ended);
            }
            self.end
                .changed()
                .await
                .map_err(|_| closed(&self.shared.pchannel))?;
        }
    }

    async fn try_next(&mut self) -> Result<Option<Stored>> {
        self.shared.needs_from(self.slot, Some(self.next));
        if self.in_hand().is_none() {
            self.segment = self.shared.segment(self.next).await?;
        }
        let message = self.in_hand();
        if let Some(message) = &message {
            self.next = MessageId(message.id.0 + 1);
        }
        Ok(message)
    }

    fn at(&self) -> MessageId {
        self.next
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.shared.needs_from(self.slot, None);
    }
}
