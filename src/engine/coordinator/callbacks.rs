//! What a broadcast does, by its type. Each callback may run again at any point: what is done is left out (`model::ddl`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::effects::{Effects, own, under};
use super::orders;
use crate::engine::broadcast::{Acked, AllAcked, Callbacks};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::broadcast::message_type;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::message::{header, position};
use crate::engine::format::pb::messages::{
    DropCollectionMessageHeader, DropIndexMessageHeader, DropPartitionMessageHeader,
    DropSnapshotsByCollectionMessageHeader, Message, MessageType, TruncateCollectionMessageHeader,
};
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{CollectionId, DbId, IndexId, JobId, PartitionId, Tso, UnixNs, VChannel};
use crate::engine::meta::Span;
use crate::engine::model::ddl;
use crate::engine::plan::execute::{Executor, Who};
use crate::engine::plan::journal::{JobRecord, from_json};
use crate::engine::plan::retry::calm;
use crate::engine::wal::checkpoints::Checkpoints;

/// The DDL.
pub(super) struct Ddl {
    effects: Effects,
    checkpoints: Arc<Checkpoints>,
    /// Counts jobs that have come to rest.
    rested: watch::Sender<u64>,
}

/// Between two looks at a job that nobody tells of.
const LOOK: Duration = Duration::from_secs(5);

/// Everything of a collection but its segments and their files, which the collector removes.
const CHILDREN: [Family; 9] = [
    Family::Partition,
    Family::Field,
    Family::StructField,
    Family::Function,
    Family::FieldIndex,
    Family::PartitionLoad,
    Family::Replica,
    Family::CollectionLoad,
    Family::CollectionTarget,
];

fn kind(message: &Message) -> Result<MessageType> {
    let number = match message_type(message) {
        Some(Ok(kind)) => return Ok(kind),
        Some(Err(number)) => number.to_string(),
        None => "none".into(),
    };
    Err(unsupported(&number))
}

/// It keeps its keys, and says so: what it would have to do is not known, and skipping it would be a lie.
fn unsupported(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("broadcasts of type {what} are not carried out by this version"),
    )
    .fix("finish it with the program that began it")
}

impl Ddl {
    pub fn new(
        executor: Arc<Executor>,
        checkpoints: Arc<Checkpoints>,
        rested: watch::Sender<u64>,
    ) -> Self {
        Self {
            effects: Effects { executor },
            checkpoints,
            rested,
        }
    }

    /// What a job of ours does: over when the job rests, or is not in the journal any more.
    async fn job_rests(&self, all: &AllAcked, kind: MessageType) -> Result<()> {
        if all.asked_by == JobId(0) {
            return Err(unsupported(kind.as_str_name()));
        }
        let executor = &self.effects.executor;
        let (reader, clock) = (executor.reader(), executor.clock());
        let key = executor.keys().job(all.asked_by);
        let mut rested = self.rested.subscribe();
        loop {
            rested.borrow_and_update();
            let Some(kv) = calm(&**clock, || reader.get(&key)).await? else {
                return Ok(());
            };
            let record: JobRecord = from_json(&kv.key, &kv.value)?;
            if record.state.rests() {
                return Ok(());
            }
            // The sender lives as long as this; the pause is for a job that rested while nobody here drove it.
            tokio::select! {
                _ = rested.changed() => {}
                () = clock.sleep(LOOK) => {}
            }
        }
    }

    fn now(&self) -> UnixNs {
        self.effects.executor.clock().now().to_ns()
    }

    fn own(&self, db: DbId, collection: CollectionId) -> Vec<Span> {
        own(self.effects.executor.roots(), db, collection)
    }

    fn under(&self, collection: CollectionId, families: &[Family]) -> Vec<Span> {
        under(self.effects.executor.roots(), collection, families)
    }

    fn key(&self, key: &Key) -> Span {
        Span::key(&key.to_key(self.effects.executor.roots()))
    }

    async fn create_collection(&self, all: &AllAcked) -> Result<()> {
        let new = orders::new_collection(all)?;
        let mut spans = self.own(new.db, new.id);
        spans.extend(self.under(new.id, &CHILDREN));
        for (channel, _) in &new.channels {
            spans.push(self.key(&Key::ChannelRemoval(channel.clone())));
            spans.push(self.key(&Key::ChannelCheckpoint(channel.clone())));
        }
        let make = |records: &[ddl::Record]| Ok(ddl::create_collection(records, &new));
        self.effects.apply(&all.who, "create", &spans, make).await
    }

    /// From here on nobody uses it: an operation that is planned against it is refused.
    async fn begin_drop(&self, who: &Who, message: &Message) -> Result<()> {
        let head: DropCollectionMessageHeader = header(message)?;
        let id = CollectionId(head.collection_id);
        let spans = self.own(DbId(head.db_id), id);
        let begin = |records: &[ddl::Record]| ddl::begin_drop(records, id);
        self.effects.apply(who, "dropping", &spans, begin).await
    }

    /// Channels first, the collection's own key last: while it stands, a crash finds everything again by it.
    async fn drop_collection(&self, all: &AllAcked) -> Result<()> {
        let head: DropCollectionMessageHeader = header(&all.message)?;
        let id = CollectionId(head.collection_id);
        self.begin_drop(&all.who, &all.message).await?;
        for (channel, shard) in shards(all) {
            self.drop_channel(all, id, channel, shard).await?;
        }
        let mut spans = self.own(DbId(head.db_id), id);
        spans.extend(self.under(id, &CHILDREN));
        let drop = |records: &[ddl::Record]| ddl::drop_collection(records, id);
        self.effects
            .apply(&all.who, "collection", &spans, drop)
            .await
    }

    async fn drop_channel(
        &self,
        all: &AllAcked,
        collection: CollectionId,
        channel: &VChannel,
        shard: u32,
    ) -> Result<()> {
        let mut spans = self.under(collection, &[Family::Segment]);
        spans.push(self.key(&Key::ChannelRemoval(channel.clone())));
        let drop = |records: &[ddl::Record]| {
            let mut writes = ddl::drop_channel(records, channel, self.now())?;
            // Its one writer is below: memory and record move together.
            writes.retain(|w| !matches!(w.key(), Key::ChannelCheckpoint(_)));
            Ok(writes)
        };
        let what = format!("channel-{shard}");
        self.effects.apply(&all.who, &what, &spans, drop).await?;
        self.checkpoints.mark_dropped(channel).await?;
        self.checkpoints.note_removed(channel);
        Ok(())
    }

    async fn drop_snapshots(&self, all: &AllAcked) -> Result<()> {
        let head: DropSnapshotsByCollectionMessageHeader = header(&all.message)?;
        let id = CollectionId(head.collection_id);
        let spans = self.under(id, &[Family::Snapshot]);
        let now = self.effects.executor.clock().now();
        let drop = |records: &[ddl::Record]| ddl::drop_snapshots(records, id, now);
        self.effects
            .apply(&all.who, "snapshots", &spans, drop)
            .await
    }

    async fn begin_truncate(&self, acked: &Acked) -> Result<()> {
        let head: TruncateCollectionMessageHeader = header(&acked.message)?;
        let id = CollectionId(head.collection_id);
        let spans = self.own(DbId(head.db_id), id);
        let begin = |records: &[ddl::Record]| ddl::begin_truncate(records, id);
        self.effects
            .apply(&acked.who, "truncating", &spans, begin)
            .await
    }

    async fn truncate(&self, all: &AllAcked) -> Result<()> {
        let head: TruncateCollectionMessageHeader = header(&all.message)?;
        let id = CollectionId(head.collection_id);
        let ticks: BTreeMap<VChannel, Tso> = all
            .copies
            .iter()
            .filter(|(v, _)| shard_of(v).is_some())
            .map(|(v, at)| (v.clone(), at.tick))
            .collect();
        // However the channels were acknowledged: what is dropped below must be in objects (§1 rule 6).
        for (channel, tick) in &ticks {
            self.checkpoints.wait(channel, *tick).await;
        }
        let mut spans = self.own(DbId(head.db_id), id);
        spans.extend(self.under(id, &[Family::Segment]));
        let end = |records: &[ddl::Record]| ddl::end_truncate(records, id, &ticks, self.now());
        self.effects.apply(&all.who, "truncate", &spans, end).await
    }

    async fn create_partition(&self, all: &AllAcked) -> Result<()> {
        let (id, db, partition, name) = orders::new_partition(&all.message)?;
        let created = orders::tick(all)?;
        let mut spans = self.own(db, id);
        spans.push(self.key(&Key::Partition(id, partition)));
        let make = |records: &[ddl::Record]| {
            Ok(ddl::create_partition(
                records, id, partition, &name, created,
            ))
        };
        self.effects
            .apply(&all.who, "partition", &spans, make)
            .await
    }

    async fn drop_partition(&self, all: &AllAcked) -> Result<()> {
        let head: DropPartitionMessageHeader = header(&all.message)?;
        let (id, partition) = (
            CollectionId(head.collection_id),
            PartitionId(head.partition_id),
        );
        let mut spans = self.under(id, &[Family::Segment]);
        spans.push(self.key(&Key::PartitionLoad(id, partition)));
        spans.push(self.key(&Key::Partition(id, partition)));
        let drop =
            |records: &[ddl::Record]| ddl::drop_partition(records, id, partition, self.now());
        self.effects
            .apply(&all.who, "partition", &spans, drop)
            .await
    }

    async fn create_index(&self, all: &AllAcked) -> Result<()> {
        let info = orders::new_index(&all.message)?;
        let created = orders::tick(all)?;
        let spans = self.under(CollectionId(info.collection_id), &[Family::FieldIndex]);
        let make = |records: &[ddl::Record]| Ok(ddl::create_index(records, info, created));
        self.effects.apply(&all.who, "index", &spans, make).await
    }

    async fn drop_index(&self, all: &AllAcked) -> Result<()> {
        let head: DropIndexMessageHeader = header(&all.message)?;
        let id = CollectionId(head.collection_id);
        let ids: Vec<IndexId> = head.index_ids.into_iter().map(IndexId).collect();
        let spans = self.under(id, &[Family::FieldIndex]);
        let drop = |records: &[ddl::Record]| ddl::drop_indexes(records, id, Some(&ids));
        self.effects.apply(&all.who, "index", &spans, drop).await
    }
}

fn shard_of(channel: &VChannel) -> Option<u32> {
    match ChannelName::parse(&channel.0) {
        ChannelName::Shard { shard, .. } => Some(shard),
        _ => None,
    }
}

/// The data channels, with their shards.
fn shards(all: &AllAcked) -> impl Iterator<Item = (&VChannel, u32)> {
    all.copies
        .iter()
        .filter_map(|(v, _)| Some((v, shard_of(v)?)))
}

#[async_trait]
impl Callbacks for Ddl {
    async fn ack_once(&self, acked: &Acked) -> Result<()> {
        match (kind(&acked.message)?, acked.control) {
            (MessageType::CreateCollection, false) => {
                let Some(id) = acked.at.id else {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("the copy on {} has no place", acked.channel),
                    ));
                };
                // The channel begins with the message that makes it.
                let first = position(&acked.channel, id, acked.at.tick);
                self.checkpoints
                    .create(vec![(acked.channel.clone(), first)])
                    .await
            }
            (MessageType::DropCollection, true) => {
                self.begin_drop(&acked.who, &acked.message).await
            }
            (MessageType::TruncateCollection, true) => self.begin_truncate(acked).await,
            _ => Ok(()),
        }
    }

    async fn ack_all(&self, all: &AllAcked) -> Result<()> {
        match kind(&all.message)? {
            MessageType::CreateCollection => self.create_collection(all).await,
            MessageType::DropCollection => self.drop_collection(all).await,
            MessageType::TruncateCollection => self.truncate(all).await,
            MessageType::CreatePartition => self.create_partition(all).await,
            MessageType::DropPartition => self.drop_partition(all).await,
            MessageType::CreateIndex => self.create_index(all).await,
            MessageType::DropIndex => self.drop_index(all).await,
            MessageType::DropSnapshotsByCollection => self.drop_snapshots(all).await,
            kind @ (MessageType::CreateSnapshot
            | MessageType::DropSnapshot
            | MessageType::RestoreSnapshot) => self.job_rests(all, kind).await,
            other => Err(unsupported(other.as_str_name())),
        }
    }
}
