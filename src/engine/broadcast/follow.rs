//! Following the logs: the data path takes the messages in, tasks are told of their copies, checkpoints move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Inner;
use super::pace::Pace;
use crate::engine::error::{Error, Result};
use crate::engine::format::message::Stored;
use crate::engine::format::pb::messages::MessageType;
use crate::engine::format::pb::msg::MsgPosition;
use crate::engine::ids::VChannel;
use crate::engine::model::checkpoint::clamped;
use crate::engine::wal::Wal;
use crate::engine::wal::checkpoints::Report;

/// Messages between two writes of the checkpoints, while there are more.
const STRIDE: usize = 512;

impl Inner {
    /// One follower a log, from the moment when it is open.
    pub(super) async fn follow_all(self: Arc<Self>) {
        let mut open = self.parts.channels.open();
        let mut followed = BTreeSet::new();
        loop {
            let logs = open.borrow_and_update().clone();
            for (pchannel, log) in logs.iter() {
                if followed.insert((pchannel.clone(), log.term())) {
                    self.spawn(self.clone().follow(log.clone()));
                }
            }
            if open.changed().await.is_err() {
                return;
            }
        }
    }

    /// Until the log ends.
    async fn follow(self: Arc<Self>, log: Arc<dyn Wal>) {
        let mut pace = Pace::new();
        while let Err(e) = self.parts.consumer.begin(&*log).await {
            if log.end().borrow().ended.is_some() {
                return;
            }
            self.troubled(&*log, Some(e));
            self.parts.executor.clock().sleep(pace.next()).await;
        }
        self.troubled(&*log, None);
        let first = log.end().borrow().first;
        let Ok(mut reader) = log.read_from(first) else {
            // Cut between the two looks: only by its own writer, on our order, so there is another follower.
            return;
        };
        let mut ends = log.end();
        let mut positions: BTreeMap<VChannel, MsgPosition> = BTreeMap::new();
        let mut taken = 0;
        let mut pace = Pace::new();
        loop {
            let ended = ends.borrow_and_update().ended.is_some();
            match reader.try_next().await {
                Ok(Some(message)) => {
                    if !self.take(&*log, &message).await {
                        return;
                    }
                    let channel = message.vchannel();
                    if self.parts.checkpoints.get(&channel).is_some() {
                        positions.insert(channel, message.position());
                    }
                    taken += 1;
                    pace.reset();
                    if taken < STRIDE {
                        continue;
                    }
                }
                Ok(None) if positions.is_empty() && !ended => {
                    let _ = ends.changed().await;
                    continue;
                }
                Ok(None) if positions.is_empty() => return,
                Ok(None) => {}
                Err(e) => {
                    self.troubled(&*log, Some(e));
                    self.parts.executor.clock().sleep(pace.next()).await;
                    continue;
                }
            }
            taken = 0;
            match self.advance(&*log, &positions).await {
                Ok(()) => {
                    positions.clear();
                    self.troubled(&*log, None);
                }
                Err(_) if ended => return,
                Err(e) => {
                    self.troubled(&*log, Some(e));
                    self.parts.executor.clock().sleep(pace.next()).await;
                }
            }
        }
    }

    /// Hands one message on; `false` when the log has ended before the data path had it: whoever follows it next begins there again. A
    /// truncation is told to its task before the data path acts on it, a drop after (§1 rule 8).
    async fn take(&self, log: &dyn Wal, message: &Stored) -> bool {
        let first = message.kind() == Some(MessageType::TruncateCollection);
        if first {
            self.observe(message);
        }
        let mut pace = Pace::new();
        while let Err(e) = self.parts.consumer.take(log.term(), message).await {
            if log.end().borrow().ended.is_some() {
                return false;
            }
            self.troubled(log, Some(e));
            self.parts.executor.clock().sleep(pace.next()).await;
        }
        if !first {
            self.observe(message);
        }
        true
    }

    fn troubled(&self, log: &dyn Wal, why: Option<Error>) {
        let name = log.pchannel();
        let mut state = self.state();
        let shows = why.is_some();
        let showed = match why {
            Some(why) => state.troubles.insert(name.to_owned(), why).is_some(),
            None => state.troubles.remove(name).is_some(),
        };
        drop(state);
        if shows || showed {
            self.seen();
        }
    }

    /// Moves the checkpoints of channels that have one: a channel that is dropped and collected must not get a new one by what is
    /// replayed (#42688).
    async fn advance(
        &self,
        log: &dyn Wal,
        positions: &BTreeMap<VChannel, MsgPosition>,
    ) -> Result<()> {
        let reports = positions.iter().map(|(channel, position)| Report {
            position: clamped(position.clone(), self.parts.consumer.unsynced(channel)),
            channel: channel.clone(),
            term: log.term(),
        });
        let channels = &self.parts.channels;
        let scope = self.parts.executor.scope();
        let scope = scope.child(format!("loop: following the log of {}", log.pchannel()));
        // Reports are turned away only when the log is another's by now, or the stored value cannot be read: both are shown elsewhere.
        self.parts
            .checkpoints
            .within(&scope)
            .update(reports.collect(), |p| channels.term(p))
            .await?;
        Ok(())
    }
}
