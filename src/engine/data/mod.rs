//! The data path of the channels that we own: takes their messages in, and knows what is not in objects yet (`spec/lifecycle.md` §4, §I.3).
//!
//! ```text
//! log open → one Flush message for each left-over of the old architecture → messages in order → reports under the log's term
//! ```
//!
//! - **Upgrade.** Segments that a data coordinator of the old architecture allocated have no owner any more: when a channel is opened they
//!   are found, and one Flush message for each is appended before anything of the log is taken in. What is consumed flushes them by the
//!   normal path. Crashed anywhere, the next opening appends again, and the second flush changes nothing (I4.1 to I4.3). A seek position
//!   is not needed for that: our log is read from its own beginning, never from a position of another log.
//! - **Reports** carry the term of the log and are turned away when it is not the channel's any more ([`reports`]).
//! - **L0 segments** hold nobody up (I4.5): no node serves queries here, so no stop waits for segments to be moved away, and closing a
//!   log waits for what is being appended only. A left-over is never of level 0: such segments are made flushed.
//!
//! Not done here yet: inserts and deletes are not taken in, so nothing is ever unsynced.

pub mod reports;

use std::sync::Arc;

use async_trait::async_trait;
use prost::Message as _;

use super::broadcast::Consumer;
use super::error::Result;
use super::format::codec::is_tombstone;
use super::format::keys::{Family, Key, ParsedKey};
use super::format::message::{Draft, Stored, header};
use super::format::pb::data::SegmentInfo;
use super::format::pb::messages::{FlushMessageHeader, MessageType};
use super::format::pb::msg::MsgPosition;
use super::format::vchannel::ChannelName;
use super::ids::{CollectionId, PartitionId, SegmentId, Term, VChannel};
use super::meta::{RangeOpts, Span};
use super::model::segments::{Report, is_left_over};
use super::plan::execute::Executor;
use super::plan::retry::calm;
use super::wal::Wal;
use reports::{Reports, Saved};

/// Messages appended together.
const TOGETHER: usize = 256;

/// The data path. The executor must own the root as long as it is used.
pub struct DataPath {
    executor: Arc<Executor>,
    reports: Reports,
}

impl DataPath {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(executor: &Arc<Executor>) -> Arc<Self> {
        let executor = executor.within(&executor.scope().child("data path"));
        Arc::new(Self {
            reports: Reports::new(executor.clone()),
            executor,
        })
    }

    /// The left-overs on a physical channel: channel and ids.
    async fn left_overs(
        &self,
        pchannel: &str,
    ) -> Result<Vec<(VChannel, CollectionId, PartitionId, SegmentId)>> {
        let roots = self.executor.roots();
        let (reader, clock) = (self.executor.reader(), self.executor.clock());
        let mut span = Span::prefix(&Family::Segment.prefix(roots));
        let mut found = Vec::new();
        loop {
            let page = calm(&**clock, || reader.range(&span, RangeOpts::default())).await?;
            for kv in &page.kvs {
                let ParsedKey::Known(Key::Segment(c, p, s)) = Key::parse(roots, &kv.key.0) else {
                    continue;
                };
                if is_tombstone(Family::Segment, &kv.value) {
                    continue;
                }
                let info = match SegmentInfo::decode(&*kv.value) {
                    Ok(info) => info,
                    Err(e) => {
                        // Whose it is cannot be told: it is shown as undecodable, and holds nobody else up.
                        tracing::warn!(key = %kv.key, error = %e, "a segment record cannot be read");
                        continue;
                    }
                };
                let here = ChannelName::parse(&info.insert_channel).pchannel() == pchannel;
                if here && is_left_over(&info) {
                    found.push((VChannel(info.insert_channel), c, p, s));
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => span = span.after(&last.key),
                _ => return Ok(found),
            }
        }
    }
}

#[async_trait]
impl Consumer for DataPath {
    async fn begin(&self, log: &dyn Wal) -> Result<()> {
        let found = self.left_overs(log.pchannel()).await?;
        for some in found.chunks(TOGETHER) {
            let flush = some.iter().map(|(channel, c, p, s)| {
                let header = FlushMessageHeader {
                    collection_id: c.0,
                    partition_id: p.0,
                    segment_id: s.0,
                };
                // Milvus's body of this type has no fields.
                Draft::new(MessageType::Flush, &header, Vec::new()).on(channel)
            });
            log.append(flush.collect()).await?;
        }
        Ok(())
    }

    async fn take(&self, term: Term, message: &Stored) -> Result<()> {
        if message.kind() == Some(MessageType::Flush) {
            let of: FlushMessageHeader = header(&message.message)?;
            let (c, p) = (CollectionId(of.collection_id), PartitionId(of.partition_id));
            self.reports
                .save(&Saved {
                    channel: message.vchannel(),
                    term,
                    segment: (c, p, SegmentId(of.segment_id)),
                    what: Report::Flushed,
                    at: message.tick,
                })
                .await?;
        }
        Ok(())
    }

    fn unsynced(&self, _: &VChannel) -> Option<MsgPosition> {
        None
    }
}
