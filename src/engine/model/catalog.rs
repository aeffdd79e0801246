//! The live catalog: persistent maps joined from keys, published as an immutable snapshot. Cloning costs a few dozen pointers.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::engine::ids::{
    BroadcastId, BuildId, CollectionId, DbId, FieldId, FunctionId, IndexId, MetaKey, MetaRev,
    PartitionId, ReplicaId, SegmentId, SnapshotId, Tso, UnixMs, VChannel,
};

use crate::engine::format::keys::Roots;
use crate::engine::format::time::SKEW_MS;

use super::broadcast::Broadcast;
use super::data::{
    Alias, Channel, Collection, ConfigItem, Database, Enum, Field, IndexDef, LoadInfo, PChannel,
    Partition, Replica, Segment, SegmentIndex, Session, Snapshot, Task, Undecodable,
};
use super::ingest::channels::ChannelPieces;
use super::ingest::l0::{L0, L0s};
use super::ingest::root::{AliasLayout, InfoPiece};
use super::ingest::segments::{LogPiece, SegmentEntry};
use super::keyindex::KeyIndex;
use super::totals::Sums;

/// A segment's place: its id first. Ids are unique in a healthy cluster; in a damaged one the same id may stand in two places.
pub type SegmentKey = (SegmentId, CollectionId, PartitionId);
/// A build's place.
pub type BuildKey = (BuildId, CollectionId, PartitionId, SegmentId);

/// A piece with the revision of its key.
pub(super) type Stamped<T> = (Arc<T>, MetaRev);

/// Rows to join again at the end of a batch.
#[derive(Default)]
pub(super) struct Dirty {
    pub(super) collections: BTreeSet<CollectionId>,
    pub(super) channels: BTreeSet<VChannel>,
    pub(super) pchannels: BTreeSet<String>,
    pub(super) loads: BTreeSet<CollectionId>,
}

/// Everything known of a cluster at one revision. Two catalogs are equal when they hold the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// The revision it stands at.
    pub rev: MetaRev,
    /// The roots its keys were read with.
    pub roots: Roots,
    /// Every key without its value.
    pub keys: KeyIndex,
    /// Values that could not be read.
    pub undecodable: OrdMap<MetaKey, Arc<Undecodable>>,
    /// Sums.
    pub sums: Sums,

    /// Databases.
    pub databases: OrdMap<DbId, Arc<Database>>,
    /// Collections.
    pub collections: OrdMap<CollectionId, Arc<Collection>>,
    /// Collections by database.
    pub collections_in: OrdSet<(DbId, CollectionId)>,
    /// Partitions.
    pub partitions: OrdMap<(CollectionId, PartitionId), Arc<Partition>>,
    /// Aliases by database and name.
    pub aliases: OrdMap<(DbId, Arc<str>), Arc<Alias>>,
    pub(super) aliases_of: OrdSet<(CollectionId, DbId, Arc<str>)>,
    pub(super) infos: OrdMap<(CollectionId, Option<DbId>), Arc<InfoPiece>>,
    pub(super) fields: OrdMap<(CollectionId, FieldId), Stamped<Vec<Field>>>,
    pub(super) struct_fields: OrdMap<(CollectionId, FieldId), Stamped<Vec<Field>>>,
    pub(super) functions: OrdMap<(CollectionId, FunctionId), Stamped<(String, Enum)>>,
    pub(super) partition_pieces: OrdMap<(CollectionId, PartitionId), Arc<Partition>>,
    pub(super) alias_pieces: OrdMap<(DbId, Arc<str>, AliasLayout), Arc<Alias>>,

    pub(super) segments: OrdMap<SegmentKey, Arc<SegmentEntry>>,
    /// Logs whose segment key is not there (yet, or any more).
    pub(super) loose_logs: OrdMap<SegmentKey, Vec<LogPiece>>,
    pub(super) segments_of: OrdSet<(CollectionId, SegmentId, PartitionId)>,
    pub(super) segments_on: OrdMap<Arc<str>, OrdSet<SegmentKey>>,
    /// Segments that are about no partition that a segment of their level can be about.
    pub(super) illegal: OrdSet<SegmentKey>,
    /// Visible, written L0 segments of each channel, by their first position.
    pub(super) l0_on: OrdMap<Arc<str>, L0s>,

    /// Channels.
    pub channels: OrdMap<VChannel, Arc<Channel>>,
    /// Channels by collection.
    pub channels_of: OrdSet<(CollectionId, VChannel)>,
    /// Checkpoints that are times, oldest first.
    pub(super) checkpoints: OrdSet<(Tso, VChannel)>,
    pub(super) channel_pieces: OrdMap<VChannel, ChannelPieces>,
    /// Owners of physical channels.
    pub(super) owners: OrdMap<Arc<str>, Arc<PChannel>>,

    /// Index definitions.
    pub indexes: OrdMap<(CollectionId, IndexId), Arc<IndexDef>>,
    /// Index builds.
    pub builds: OrdMap<BuildKey, Arc<SegmentIndex>>,
    pub(super) builds_of: OrdSet<(SegmentId, BuildId, CollectionId, PartitionId)>,
    pub(super) builds_for: OrdSet<(CollectionId, IndexId, BuildId, PartitionId, SegmentId)>,
    /// Snapshots.
    pub snapshots: OrdMap<(SnapshotId, CollectionId), Arc<Snapshot>>,
    /// Snapshots by collection.
    pub snapshots_of: OrdSet<(CollectionId, SnapshotId)>,

    /// Coordinators' tasks and foreign jobs.
    pub tasks: OrdMap<MetaKey, Arc<Task>>,
    /// Broadcasts, finished ones that are still remembered included.
    pub broadcasts: OrdMap<BroadcastId, Arc<Broadcast>>,
    /// Load state.
    pub loads: OrdMap<CollectionId, Arc<LoadInfo>>,
    pub(super) load_pieces: OrdMap<CollectionId, Arc<LoadInfo>>,
    pub(super) partition_loads: OrdMap<(CollectionId, PartitionId), (Enum, MetaRev)>,
    /// Replicas.
    pub replicas: OrdMap<(ReplicaId, CollectionId), Arc<Replica>>,
    /// Sessions by their key's last part.
    pub sessions: OrdMap<Arc<str>, Arc<Session>>,
    /// Dynamic configuration.
    pub config: OrdMap<MetaKey, Arc<ConfigItem>>,
}

const LOW: i64 = i64::MIN;
const HIGH: i64 = i64::MAX;

impl Catalog {
    /// One segment.
    #[must_use]
    pub fn segment(&self, id: SegmentId) -> Option<&Segment> {
        self.segment_places(id).next().map(|(_, row)| row)
    }

    /// Every place where a segment id stands: one in a healthy cluster.
    pub fn segment_places(&self, id: SegmentId) -> impl Iterator<Item = (SegmentKey, &Segment)> {
        let all =
            (id, CollectionId(LOW), PartitionId(LOW))..=(id, CollectionId(HIGH), PartitionId(HIGH));
        self.segments
            .range(all)
            .map(|(key, entry)| (*key, &entry.row))
    }

    /// All segments by id.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.values().map(|entry| &entry.row)
    }

    /// Number of segments.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Segments of a collection, by id.
    pub fn segments_of(&self, id: CollectionId) -> impl Iterator<Item = &Segment> {
        let all = (id, SegmentId(LOW), PartitionId(LOW))..=(id, SegmentId(HIGH), PartitionId(HIGH));
        self.segments_of
            .range(all)
            .filter_map(|(c, s, p)| self.segments.get(&(*s, *c, *p)).map(|e| &e.row))
    }

    /// Segments on a channel, by id.
    pub fn segments_on(&self, channel: &str) -> impl Iterator<Item = &Segment> {
        self.segments_on
            .get(channel)
            .into_iter()
            .flat_map(|ids| ids.iter())
            .filter_map(|id| self.segments.get(id).map(|e| &e.row))
    }

    /// Segments that have logs but no key of their own: left behind by a clean-up, or cut in half.
    #[must_use]
    pub fn headless_segments(&self) -> usize {
        self.loose_logs.len()
    }

    /// Partitions of a collection.
    pub fn partitions_of(&self, id: CollectionId) -> impl Iterator<Item = &Arc<Partition>> {
        self.partitions
            .range((id, PartitionId(LOW))..=(id, PartitionId(HIGH)))
            .map(|(_, row)| row)
    }

    /// Aliases of a collection.
    pub fn aliases_of(&self, id: CollectionId) -> impl Iterator<Item = &Arc<Alias>> {
        self.aliases_of
            .range((id, DbId(LOW), Arc::from(""))..)
            .take_while(move |(c, _, _)| *c == id)
            .filter_map(|(_, db, name)| self.aliases.get(&(*db, name.clone())))
    }

    /// The record of a physical channel.
    #[must_use]
    pub fn pchannel(&self, name: &str) -> Option<&Arc<PChannel>> {
        self.owners.get(name)
    }

    /// Whether channels are owned by streaming nodes (2.6 and newer), or by Falconer: then a watch key is a left-over.
    #[must_use]
    pub fn streams(&self) -> bool {
        !self.owners.is_empty()
    }

    /// The L0 segments that a query of a channel is told of (`spec/lifecycle.md` §5 rule 1).
    #[must_use]
    pub fn l0_on(&self, channel: &str) -> L0 {
        self.l0_on.get(channel).map_or_else(L0::default, L0s::sum)
    }

    /// Channels of a collection.
    pub fn channels_of(&self, id: CollectionId) -> impl Iterator<Item = &Arc<Channel>> {
        self.channels_of
            .range((id, VChannel::default())..)
            .take_while(move |(c, _)| *c == id)
            .filter_map(|(_, name)| self.channels.get(name))
    }

    /// The newest checkpoint of any channel that is a time and not in the future: what the others are behind
    /// (`spec/lifecycle.md` §3 rule 8).
    #[must_use]
    pub fn newest_checkpoint(&self, now: UnixMs) -> Option<UnixMs> {
        let limit = Tso::from_ms(UnixMs(now.0.saturating_add(SKEW_MS)));
        self.checkpoints
            .range(..(limit, VChannel::default()))
            .next_back()
            .and_then(|(tso, _)| tso.time())
    }

    /// The oldest checkpoint that is a time, with its channel.
    #[must_use]
    pub fn oldest_checkpoint(&self) -> Option<(UnixMs, &VChannel)> {
        let (tso, name) = self.checkpoints.iter().next()?;
        Some((tso.time()?, name))
    }

    /// Index definitions of a collection, deleted ones included.
    pub fn indexes_of(&self, id: CollectionId) -> impl Iterator<Item = &Arc<IndexDef>> {
        self.indexes
            .range((id, IndexId(LOW))..=(id, IndexId(HIGH)))
            .map(|(_, row)| row)
    }

    /// Builds for a segment.
    pub fn builds_of(&self, id: SegmentId) -> impl Iterator<Item = &Arc<SegmentIndex>> {
        self.builds_of
            .range((id, BuildId(LOW), CollectionId(LOW), PartitionId(LOW))..)
            .take_while(move |(s, ..)| *s == id)
            .filter_map(|(s, b, c, p)| self.builds.get(&(*b, *c, *p, *s)))
    }

    /// Builds of an index.
    pub fn builds_for(
        &self,
        collection: CollectionId,
        index: IndexId,
    ) -> impl Iterator<Item = &Arc<SegmentIndex>> {
        let start = (
            collection,
            index,
            BuildId(LOW),
            PartitionId(LOW),
            SegmentId(LOW),
        );
        self.builds_for
            .range(start..)
            .take_while(move |(c, i, ..)| *c == collection && *i == index)
            .filter_map(|(c, _, b, p, s)| self.builds.get(&(*b, *c, *p, *s)))
    }

    /// One build.
    #[must_use]
    pub fn build(&self, id: BuildId) -> Option<&Arc<SegmentIndex>> {
        self.builds
            .range((id, CollectionId(LOW), PartitionId(LOW), SegmentId(LOW))..)
            .next()
            .filter(|(key, _)| key.0 == id)
            .map(|(_, row)| row)
    }

    /// Snapshots of a collection.
    pub fn snapshots_of(&self, id: CollectionId) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.snapshots_of
            .range((id, SnapshotId(LOW))..=(id, SnapshotId(HIGH)))
            .filter_map(|(c, s)| self.snapshots.get(&(*s, *c)))
    }

    /// One snapshot.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> Option<&Arc<Snapshot>> {
        self.snapshots
            .range((id, CollectionId(LOW))..=(id, CollectionId(HIGH)))
            .map(|(_, row)| row)
            .next()
    }

    /// A database's name; `default` for 1, which old clusters may not have recorded.
    #[must_use]
    pub fn database_name(&self, id: DbId) -> Arc<str> {
        match self.databases.get(&id) {
            Some(db) => db.name.clone(),
            None if id.0 == 1 => "default".into(),
            None => id.to_string().into(),
        }
    }

    /// A collection's name, or its id when there is no such collection.
    #[must_use]
    pub fn collection_name(&self, id: CollectionId) -> Arc<str> {
        self.collections
            .get(&id)
            .map_or_else(|| id.to_string().into(), |c| c.name.clone())
    }
}
