//! Where the logs may be cut.

use std::collections::BTreeMap;

use super::Inner;
use crate::engine::error::Result;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::MessageId;

impl Inner {
    /// Below every checkpoint of the log's channels and every copy of an unfinished task; the log itself sees to its readers, the follower
    /// among them.
    pub(super) async fn truncate(&self) -> Result<BTreeMap<String, MessageId>> {
        let logs = self.parts.channels.open().borrow().clone();
        let mut cut = BTreeMap::new();
        for (pchannel, log) in logs.iter() {
            let end = log.end().borrow().clone();
            if end.ended.is_some() {
                continue;
            }
            let below = self.parts.checkpoints.cut_below(pchannel, end.next);
            if let Some(below) = below.and_then(|below| self.unfinished(pchannel, below)) {
                cut.insert(pchannel.clone(), log.truncate(below).await?);
            }
        }
        Ok(cut)
    }

    /// The lowest of `below` and the copies on this log that unfinished tasks have; `None` while one has a copy whose place is not known.
    fn unfinished(&self, pchannel: &str, below: MessageId) -> Option<MessageId> {
        let state = self.state();
        let mut lowest = below;
        for cell in state.tasks.values() {
            for copy in cell
                .task()
                .copies()
                .iter()
                .filter(|c| ChannelName::parse(&c.channel.0).pchannel() == pchannel)
            {
                lowest = lowest.min(copy.appended?.0);
            }
        }
        Some(lowest)
    }
}
