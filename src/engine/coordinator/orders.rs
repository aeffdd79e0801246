//! The messages of DDL: made by who asks, read by what carries them out, with Milvus's types, headers and bodies (`spec/layout.md` §6).

use std::collections::BTreeMap;

use prost::Message as _;

use crate::engine::broadcast::{AllAcked, Order};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::message::{Draft, header, position};
use crate::engine::format::pb::index::{FieldIndex, IndexInfo};
use crate::engine::format::pb::messages::{
    CreateCollectionMessageHeader, CreateIndexMessageBody, CreateIndexMessageHeader,
    CreatePartitionMessageHeader, CreateSnapshotMessageHeader, DropCollectionMessageHeader,
    DropIndexMessageHeader, DropPartitionMessageHeader, DropSnapshotMessageHeader,
    DropSnapshotsByCollectionMessageHeader, Message, MessageType, RestoreSnapshotMessageHeader,
    TruncateCollectionMessageHeader,
};
use crate::engine::format::pb::msg::{
    CreateCollectionRequest, CreatePartitionRequest, DropCollectionRequest, DropPartitionRequest,
};
use crate::engine::format::pb::schema::CollectionSchema;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{CollectionId, DbId, IndexId, JobId, PartitionId, Tso, VChannel};
use crate::engine::model::ddl::NewCollection;
use crate::engine::model::schema::CONSISTENCY;

/// A collection as an operation knows it.
#[derive(Clone, Debug)]
pub struct Named<'a> {
    /// Database.
    pub db: DbId,
    /// Its name.
    pub database: &'a str,
    /// Id.
    pub id: CollectionId,
    /// Its name.
    pub name: &'a str,
    /// Virtual channels, by shard.
    pub channels: &'a [VChannel],
}

/// A collection that is to be: whole schema, partitions, channels with their physical ones.
#[derive(Clone, Debug)]
pub struct Making<'a> {
    /// Who it is. Its `channels` are not looked at.
    pub named: Named<'a>,
    /// Whole, with the properties and the consistency level.
    pub schema: &'a CollectionSchema,
    /// Partitions, the default one first.
    pub partitions: &'a [(PartitionId, String)],
    /// Virtual channels with their physical ones, by shard.
    pub channels: &'a [(VChannel, String)],
}

impl Named<'_> {
    /// To the control channel and every channel of the collection.
    fn order(&self, control: &VChannel, draft: Draft, ack_sync_up: bool) -> Order {
        let all = std::iter::once(control).chain(self.channels);
        Order {
            draft,
            channels: all.cloned().collect(),
            ack_sync_up,
        }
    }
}

/// To the control channel alone.
fn control_only(control: &VChannel, draft: Draft) -> Order {
    Order {
        draft,
        channels: vec![control.clone()],
        ack_sync_up: false,
    }
}

/// Creates a collection.
#[must_use]
pub fn create_collection(control: &VChannel, new: &Making<'_>) -> Order {
    let named = &new.named;
    let head = CreateCollectionMessageHeader {
        collection_id: named.id.0,
        partition_ids: new.partitions.iter().map(|(id, _)| id.0).collect(),
        db_id: named.db.0,
    };
    let body = CreateCollectionRequest {
        db_name: named.database.to_owned(),
        collection_name: named.name.to_owned(),
        db_id: named.db.0,
        collection_id: named.id.0,
        schema: new.schema.encode_to_vec(),
        virtual_channel_names: new.channels.iter().map(|(v, _)| v.0.clone()).collect(),
        physical_channel_names: new.channels.iter().map(|(_, p)| p.clone()).collect(),
        partition_i_ds: new.partitions.iter().map(|(id, _)| id.0).collect(),
        partition_names: new
            .partitions
            .iter()
            .map(|(_, name)| name.clone())
            .collect(),
    };
    let channels: Vec<VChannel> = new.channels.iter().map(|(v, _)| v.clone()).collect();
    let named = Named {
        channels: &channels,
        ..named.clone()
    };
    let draft = Draft::new(MessageType::CreateCollection, &head, body.encode_to_vec());
    named.order(control, draft, false)
}

/// Drops a collection: its channels are acknowledged by their checkpoints.
#[must_use]
pub fn drop_collection(control: &VChannel, named: &Named<'_>) -> Order {
    let head = DropCollectionMessageHeader {
        collection_id: named.id.0,
        db_id: named.db.0,
    };
    let body = DropCollectionRequest {
        db_name: named.database.to_owned(),
        collection_name: named.name.to_owned(),
        db_id: named.db.0,
        collection_id: named.id.0,
    };
    let draft = Draft::new(MessageType::DropCollection, &head, body.encode_to_vec());
    named.order(control, draft, true)
}

/// Drops the snapshots of a collection that no pin keeps.
#[must_use]
pub fn drop_snapshots(control: &VChannel, collection: CollectionId) -> Order {
    let head = DropSnapshotsByCollectionMessageHeader {
        collection_id: collection.0,
    };
    let draft = Draft::new(MessageType::DropSnapshotsByCollection, &head, Vec::new());
    control_only(control, draft)
}

/// Takes all rows out of a collection: its channels are acknowledged by their checkpoints.
#[must_use]
pub fn truncate_collection(control: &VChannel, named: &Named<'_>) -> Order {
    let head = TruncateCollectionMessageHeader {
        db_id: named.db.0,
        collection_id: named.id.0,
        segment_ids: Vec::new(),
    };
    let draft = Draft::new(MessageType::TruncateCollection, &head, Vec::new());
    named.order(control, draft, true)
}

/// Creates a partition.
#[must_use]
pub fn create_partition(
    control: &VChannel,
    named: &Named<'_>,
    id: PartitionId,
    name: &str,
) -> Order {
    let head = CreatePartitionMessageHeader {
        collection_id: named.id.0,
        partition_id: id.0,
    };
    let body = CreatePartitionRequest {
        db_name: named.database.to_owned(),
        collection_name: named.name.to_owned(),
        partition_name: name.to_owned(),
        db_id: named.db.0,
        collection_id: named.id.0,
        partition_id: id.0,
    };
    let draft = Draft::new(MessageType::CreatePartition, &head, body.encode_to_vec());
    named.order(control, draft, false)
}

/// Drops a partition.
#[must_use]
pub fn drop_partition(control: &VChannel, named: &Named<'_>, id: PartitionId, name: &str) -> Order {
    let head = DropPartitionMessageHeader {
        collection_id: named.id.0,
        partition_id: id.0,
    };
    let body = DropPartitionRequest {
        db_name: named.database.to_owned(),
        collection_name: named.name.to_owned(),
        partition_name: name.to_owned(),
        db_id: named.db.0,
        collection_id: named.id.0,
        partition_id: id.0,
    };
    let draft = Draft::new(MessageType::DropPartition, &head, body.encode_to_vec());
    named.order(control, draft, false)
}

/// Creates an index definition.
#[must_use]
pub fn create_index(control: &VChannel, db: DbId, info: IndexInfo) -> Order {
    let head = CreateIndexMessageHeader {
        db_id: db.0,
        collection_id: info.collection_id,
        field_id: info.field_id,
        index_id: info.index_id,
        index_name: info.index_name.clone(),
    };
    let body = CreateIndexMessageBody {
        field_index: Some(FieldIndex {
            index_info: Some(info),
            ..FieldIndex::default()
        }),
    };
    let draft = Draft::new(MessageType::CreateIndex, &head, body.encode_to_vec());
    control_only(control, draft)
}

/// Drops index definitions.
#[must_use]
pub fn drop_index(control: &VChannel, collection: CollectionId, index: IndexId) -> Order {
    let head = DropIndexMessageHeader {
        collection_id: collection.0,
        index_ids: vec![index.0],
    };
    let draft = Draft::new(MessageType::DropIndex, &head, Vec::new());
    control_only(control, draft)
}

/// A snapshot's operation, as it is said of a job that does it.
#[derive(Clone, Debug)]
pub enum Said {
    /// A create.
    CreateSnapshot {
        /// Of this collection.
        collection: CollectionId,
        /// Name.
        name: String,
        /// Description.
        description: String,
        /// Seconds of compaction protection.
        protection_secs: u64,
    },
    /// A drop.
    DropSnapshot {
        /// Of this collection.
        collection: CollectionId,
        /// Name.
        name: String,
    },
    /// A restore.
    RestoreSnapshot {
        /// Name.
        name: String,
        /// Collection that it was made of.
        source: CollectionId,
        /// Our job.
        job: JobId,
    },
}

/// To the control channel: a job of ours does it, and the callback waits for the job's end.
#[must_use]
pub fn said(control: &VChannel, what: &Said) -> Order {
    let draft = match what {
        Said::CreateSnapshot {
            collection,
            name,
            description,
            protection_secs,
        } => Draft::new(
            MessageType::CreateSnapshot,
            &CreateSnapshotMessageHeader {
                collection_id: collection.0,
                name: name.clone(),
                description: description.clone(),
                compaction_protection_seconds: i64::try_from(*protection_secs).unwrap_or(i64::MAX),
            },
            Vec::new(),
        ),
        Said::DropSnapshot { collection, name } => Draft::new(
            MessageType::DropSnapshot,
            &DropSnapshotMessageHeader {
                name: name.clone(),
                collection_id: collection.0,
            },
            Vec::new(),
        ),
        Said::RestoreSnapshot { name, source, job } => Draft::new(
            MessageType::RestoreSnapshot,
            &RestoreSnapshotMessageHeader {
                snapshot_name: name.clone(),
                source_collection_id: source.0,
                job_id: job.0,
                ..RestoreSnapshotMessageHeader::default()
            },
            Vec::new(),
        ),
    };
    control_only(control, draft)
}

// ---- read back -----------------------------------------------------------------------------------------------------

fn body<M: prost::Message + Default>(message: &Message) -> Result<M> {
    M::decode(&*message.payload).map_err(|e| {
        Error::new(ErrorKind::Corrupt, "the message's body cannot be read").caused_by(e)
    })
}

/// The tick that orders it: the control channel's. `Corrupt` for a record of an old Milvus that does not say it.
pub(super) fn tick(all: &AllAcked) -> Result<Tso> {
    let control = |v: &VChannel| matches!(ChannelName::parse(&v.0), ChannelName::Control { .. });
    let found = all.copies.iter().find(|(v, _)| control(v));
    found
        .map(|(_, at)| at.tick)
        .filter(|tick| *tick != Tso::UNSET)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("broadcast {} has no time on the control channel", all.id),
            )
        })
}

/// The collection that a message creates, with the places of its copies.
pub(super) fn new_collection(all: &AllAcked) -> Result<NewCollection> {
    let head: CreateCollectionMessageHeader = header(&all.message)?;
    let body: CreateCollectionRequest = body(&all.message)?;
    let mut schema = CollectionSchema::decode(&*body.schema).map_err(|e| {
        Error::new(ErrorKind::Corrupt, "the message's schema cannot be read").caused_by(e)
    })?;
    let (level, properties): (Vec<_>, Vec<_>) = std::mem::take(&mut schema.properties)
        .into_iter()
        .partition(|p| p.key == CONSISTENCY);
    let starts = all.copies.iter().filter_map(|(v, at)| {
        let ChannelName::Shard { pchannel, .. } = ChannelName::parse(&v.0) else {
            return None;
        };
        Some((pchannel.to_owned(), position(v, at.id?, at.tick).msg_id))
    });
    let ids = body.partition_i_ds.into_iter().map(PartitionId);
    let channels = body.virtual_channel_names.into_iter().map(VChannel);
    Ok(NewCollection {
        db: DbId(head.db_id),
        id: CollectionId(head.collection_id),
        schema,
        partitions: ids.zip(body.partition_names).collect(),
        channels: channels.zip(body.physical_channel_names).collect(),
        starts: starts.collect::<BTreeMap<_, _>>(),
        consistency: level
            .first()
            .and_then(|p| p.value.parse().ok())
            .unwrap_or(0),
        properties,
        created: tick(all)?,
    })
}

/// Collection, database, partition and its name.
pub(super) fn new_partition(
    message: &Message,
) -> Result<(CollectionId, DbId, PartitionId, String)> {
    let head: CreatePartitionMessageHeader = header(message)?;
    let body: CreatePartitionRequest = body(message)?;
    Ok((
        CollectionId(head.collection_id),
        DbId(body.db_id),
        PartitionId(head.partition_id),
        body.partition_name,
    ))
}

/// The index that a message creates.
pub(super) fn new_index(message: &Message) -> Result<IndexInfo> {
    let body: CreateIndexMessageBody = body(message)?;
    let info = body.field_index.and_then(|index| index.index_info);
    info.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the message holds no index"))
}
