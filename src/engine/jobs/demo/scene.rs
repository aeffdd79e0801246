//! What the demo shows: the seed under new ids, its times moved to now, and a state for every screen to tell of. Pure: the same
//! ids and the same moment give the same bytes, so that a resumed job writes what it began to write.

use bytes::Bytes;
use prost::Message;

use super::ids::{IdMap, relabel};
use super::seed::Seed;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::codec::Codec;
use crate::engine::format::keys::{Key, LogKind};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb::common::SegmentState;
use crate::engine::format::pb::data::{FieldBinlog, SegmentLevel};
use crate::engine::format::wire::{Malformed, Patch};
use crate::engine::ids::{
    CollectionId, FieldId, LogId, ObjectKey, PartitionId, SegmentId, Tso, UnixMs, VChannel,
};

/// `analytics.books`: one shard, dynamic fields.
const BOOKS: i64 = 470_660_334_431_903_499;
/// `analytics.metrics`: two shards, deletes, loaded.
const METRICS: i64 = 470_660_334_431_903_094;
/// `default.images`: two shards, binary vectors, indexed.
const IMAGES: i64 = 470_660_334_431_902_987;
/// Dropped in the demo: only its channel and its segment are left.
const GONE: i64 = 470_660_334_431_903_544;
/// Books' only segment; the shape of the growing ones.
const BOOKS_SEGMENT: i64 = 470_660_334_431_903_508;
/// Metrics' two compaction results.
const RESULTS: [i64; 2] = [470_660_334_431_703_183, 470_660_334_431_703_184];
/// The channel whose checkpoint stands still.
const LAGGING: &str = "by-dev-_14_";

/// Ids beyond those of the seed.
pub const EXTRA: u32 = 8;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Ids that later steps need by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// `analytics.books`
    pub books: CollectionId,
    /// `analytics.metrics`
    pub metrics: CollectionId,
    /// `default.images`
    pub images: CollectionId,
    /// The dropped collection.
    pub gone: CollectionId,
    /// The snapshot that nobody finished.
    pub pending: i64,
    /// The pin.
    pub pin: i64,
}

/// All that is written.
#[derive(Debug)]
pub struct Scene {
    /// Objects, first of all: no record ever names a file that is not there.
    pub objects: Vec<(ObjectKey, Bytes)>,
    /// Records that nobody reads without those of `heads`.
    pub children: Vec<(Key, Vec<u8>)>,
    /// Databases, collections and aliases.
    pub heads: Vec<(Key, Vec<u8>)>,
    /// Who is who.
    pub cast: Cast,
}

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Flushed,
    Sealed,
    Flushing,
    Importing,
    /// Minutes since it was dropped.
    Dropped(i64),
}

/// Roles of the metrics segments that the captured cluster had compacted away, by the last digits of their ids. Those that stay
/// dropped are the parents of the two results; half of them are past the 3 h that garbage collection waits
/// (`dataCoord.gc.dropTolerance`, `spec/lifecycle.md` §I.10).
const ROLES: [(i64, Role); 16] = [
    (3_102, Role::Dropped(5 * 60)),
    (3_103, Role::Dropped(5 * 60)),
    (3_129, Role::Dropped(4 * 60)),
    (3_130, Role::Dropped(4 * 60)),
    (3_148, Role::Dropped(95)),
    (3_149, Role::Dropped(95)),
    (3_167, Role::Dropped(40)),
    (3_169, Role::Dropped(40)),
    (3_198, Role::Flushed),
    (3_199, Role::Flushed),
    (3_218, Role::Flushed),
    (3_217, Role::Flushed),
    (3_237, Role::Sealed),
    (3_236, Role::Flushed),
    (3_262, Role::Flushing),
    (3_263, Role::Importing),
];

fn role(key: &Key) -> Role {
    let Key::Segment(collection, _, segment) = key else {
        return Role::Flushed;
    };
    match collection.0 {
        METRICS => ROLES
            .iter()
            .find(|(digits, _)| segment.0 % 10_000 == *digits)
            .map_or(Role::Flushed, |(_, role)| *role),
        GONE => Role::Dropped(4 * 60),
        IMAGES if segment.0 % 10_000 == 2_995 => Role::Dropped(6 * 60),
        IMAGES if segment.0 % 10_000 == 2_996 => Role::Dropped(50),
        _ => Role::Flushed,
    }
}

struct Painter<'a> {
    ids: &'a IdMap,
    now: UnixMs,
}

/// Draws it.
pub fn draw(seed: &Seed, ids: &IdMap, now: UnixMs, object_root: &str) -> Result<Scene> {
    let painter = Painter { ids, now };
    let extra = ids.after();
    let cast = Cast {
        books: CollectionId(ids.id(BOOKS)),
        metrics: CollectionId(ids.id(METRICS)),
        images: CollectionId(ids.id(IMAGES)),
        gone: CollectionId(ids.id(GONE)),
        pending: extra + 4,
        pin: extra + 5,
    };
    let mut scene = Scene {
        objects: Vec::new(),
        children: Vec::new(),
        heads: Vec::new(),
        cast,
    };
    for (key, bytes) in &seed.objects {
        scene.objects.push(ids.object(key, bytes, object_root)?);
    }
    for (number, (key, value)) in (0..).zip(&seed.keys) {
        if Painter::is_left_out(seed, key) {
            continue;
        }
        let value = match key.codec() {
            Codec::Proto(_) => ids.value(value)?,
            _ => value.clone(),
        };
        let value = painter.paint(number, key, value)?;
        let new = ids.key(key)?;
        match key {
            Key::Database(_) | Key::Collection(..) | Key::Alias(..) => {
                scene.heads.push((new, value));
            }
            _ => scene.children.push((new, value)),
        }
    }
    let growing = [
        (BOOKS, "by-dev-_15_", extra),
        (METRICS, "by-dev-_13_", extra + 1),
    ];
    for (collection, pchannel, id) in growing {
        let record = painter.growing(seed, collection, pchannel, id)?;
        scene.children.push(record);
    }
    painter.level_zero(seed, &mut scene, extra + 2, extra + 3, object_root)?;
    Ok(scene)
}

impl Painter<'_> {
    fn tso(&self, ago: i64) -> u64 {
        Tso::from_ms(UnixMs(self.now.0 - ago)).0
    }

    /// The dropped collection has no record of its own any more, and a segment that is still being made no index.
    fn is_left_out(seed: &Seed, key: &Key) -> bool {
        match key {
            Key::Collection(_, c) | Key::Partition(c, _) | Key::Field(c, _) => c.0 == GONE,
            Key::SegmentIndex(_, _, segment, _) => seed.keys.iter().any(|(k, _)| {
                matches!(k, Key::Segment(_, _, s) if s == segment)
                    && matches!(role(k), Role::Sealed | Role::Flushing | Role::Importing)
            }),
            _ => false,
        }
    }

    fn paint(&self, number: i64, key: &Key, value: Vec<u8>) -> Result<Vec<u8>> {
        if let Key::ChannelRemoval(channel) = key {
            return Ok(if is_of(channel, GONE) {
                b"removed".to_vec()
            } else {
                value
            });
        }
        let mut patch = Patch::parse(&value)?;
        match key {
            Key::Database(_) => {
                let made = UnixMs(self.now.0 - 40 * DAY).to_ns();
                patch.set_integer(5, made.0.cast_unsigned());
            }
            Key::Collection(..) | Key::Partition(..) | Key::Alias(..) | Key::FieldIndex(..) => {
                patch.set_integer(3, self.tso(30 * DAY));
            }
            Key::ChannelCheckpoint(channel) => {
                patch.set_integer(4, self.checkpoint(channel, number));
            }
            Key::Segment(..) => {
                let begin = 30 * HOUR - number % 40 * 10 * MINUTE;
                self.segment(key, &mut patch, begin)?;
            }
            _ => return Ok(value),
        }
        Ok(patch.finish())
    }

    fn checkpoint(&self, channel: &VChannel, number: i64) -> u64 {
        if is_of(channel, GONE) {
            return Tso::DROPPED.0;
        }
        if channel.0.starts_with(LAGGING) {
            return self.tso(3 * HOUR);
        }
        self.tso(2_000 + number % 7 * 900)
    }

    fn segment(&self, key: &Key, patch: &mut Patch<'_>, begin: i64) -> Result<()> {
        let role = role(key);
        let (begin, end) = match role {
            Role::Sealed | Role::Flushing => (2 * HOUR, 5 * MINUTE),
            _ => (begin, begin - 30 * MINUTE),
        };
        let at = |ago: i64| {
            let tso = self.tso(ago);
            move |position: &mut Patch<'_>| -> Result<(), Malformed> {
                position.set_integer(4, tso);
                Ok(())
            }
        };
        patch.nested(9, at(begin))?;
        patch.nested(10, at(end))?;
        patch.set_integer(8, self.tso(end));
        let (state, dropped) = match role {
            Role::Flushed => (SegmentState::Flushed, None),
            Role::Sealed => (SegmentState::Sealed, None),
            Role::Flushing => (SegmentState::Flushing, None),
            Role::Importing => (SegmentState::Importing, None),
            Role::Dropped(minutes) => {
                let at = UnixMs(self.now.0 - minutes * MINUTE);
                (SegmentState::Dropped, Some(at.to_ns().0.cast_unsigned()))
            }
        };
        patch.set_integer(6, state as u64);
        patch.set_integer(16, dropped.unwrap_or(0));
        patch.set_integer(17, u64::from(role == Role::Importing));
        if dropped.is_none() {
            patch.set_integer(19, 0);
        }
        if let Key::Segment(_, _, id) = key
            && RESULTS.contains(&id.0)
        {
            self.parents(patch)?;
        }
        Ok(())
    }

    /// A compaction result has the parents that are still dropped, not those that live again.
    fn parents(&self, patch: &mut Patch<'_>) -> Result<()> {
        let revived: Vec<u64> = ROLES
            .iter()
            .filter(|(_, role)| !matches!(role, Role::Dropped(_)))
            .map(|(digits, _)| {
                self.ids
                    .id(METRICS / 10_000 * 10_000 + digits)
                    .cast_unsigned()
            })
            .collect();
        let mut parents = patch
            .packed(15)
            .ok_or_else(|| odd("the parents of a segment"))?;
        parents.retain(|p| !revived.contains(p));
        patch.set_packed(15, &parents);
        Ok(())
    }

    /// A segment that takes rows now: no log yet.
    fn growing(
        &self,
        seed: &Seed,
        collection: i64,
        pchannel: &str,
        id: i64,
    ) -> Result<(Key, Vec<u8>)> {
        let (old, shape) = segment_of(seed, BOOKS_SEGMENT)?;
        let channel = seed.keys.iter().find_map(|(k, _)| match k {
            Key::ChannelCheckpoint(c) if c.0.starts_with(pchannel) => Some(self.ids.text(&c.0)),
            _ => None,
        });
        let channel = channel.ok_or_else(|| odd("a channel"))?;
        let Some(partition) = seed.keys.iter().find_map(|(k, _)| match k {
            Key::Partition(c, p) if c.0 == collection => Some(*p),
            _ => None,
        }) else {
            return Err(odd("a partition"));
        };
        let value = self.ids.value(shape)?;
        let mut patch = Patch::parse(&value)?;
        self.segment(old, &mut patch, 20 * MINUTE)?;
        let partition = PartitionId(self.ids.id(partition.0));
        let collection = CollectionId(self.ids.id(collection));
        patch.set_integer(1, id.cast_unsigned());
        patch.set_integer(2, collection.0.cast_unsigned());
        patch.set_integer(3, partition.0.cast_unsigned());
        patch.set_bytes(4, channel.as_bytes());
        patch.set_integer(5, 0);
        patch.set_integer(6, SegmentState::Growing as u64);
        for position in [9, 10] {
            patch.nested(position, |p| {
                p.set_bytes(1, channel.as_bytes());
                Ok(())
            })?;
        }
        patch.nested(10, |p| {
            p.set_integer(4, self.tso(4_000));
            Ok(())
        })?;
        let key = Key::Segment(collection, partition, SegmentId(id));
        Ok((key, patch.finish()))
    }

    /// Deletes that no compaction has applied yet: an L0 segment with a delta log of its own, a copy of a real one.
    fn level_zero(
        &self,
        seed: &Seed,
        scene: &mut Scene,
        id: i64,
        log: i64,
        root: &str,
    ) -> Result<()> {
        let (of, shape) = segment_of(seed, RESULTS[1])?;
        let Key::Segment(_, _, source) = of else {
            return Err(odd("a segment"));
        };
        let value = self.ids.value(shape)?;
        let mut patch = Patch::parse(&value)?;
        self.segment(of, &mut patch, HOUR)?;
        let own = |tag| patch.integer(tag).unwrap_or_default().cast_signed();
        let (c, p) = (CollectionId(own(2)), PartitionId(own(3)));
        let segment = SegmentId(id);
        patch.set_integer(1, id.cast_unsigned());
        patch.set_integer(5, 0);
        patch.set_integer(14, 0);
        patch.clear(15);
        patch.set_integer(20, SegmentLevel::L0 as u64);
        scene
            .children
            .push((Key::Segment(c, p, segment), patch.finish()));

        let logs = seed.keys.iter().find_map(|(k, v)| match k {
            Key::Log(LogKind::Delta, _, _, s, _) if s == source => Some(v),
            _ => None,
        });
        let logs = logs.ok_or_else(|| odd("a delta log"))?;
        let first = FieldBinlog::decode(&logs[..])
            .ok()
            .and_then(|f| f.binlogs.first().map(|b| b.log_id))
            .ok_or_else(|| odd("a delta log"))?;
        let mut patch = Patch::parse(logs)?;
        patch.each(2, |binlog| {
            binlog.set_integer(6, log.cast_unsigned());
            Ok(())
        })?;
        let key = Key::Log(LogKind::Delta, c, p, segment, FieldId(0));
        scene.children.push((key, patch.finish()));

        let new_source = SegmentId(self.ids.id(source.0));
        let from = ObjPath::DeltaLog(c, p, new_source, LogId(first)).to_key(root);
        let to = ObjPath::DeltaLog(c, p, segment, LogId(log)).to_key(root);
        let bytes = scene
            .objects
            .iter()
            .find(|(k, _)| *k == from)
            .map(|(_, b)| b.clone());
        let bytes = bytes.ok_or_else(|| odd("the file of a delta log"))?;
        let bytes = relabel(&bytes, |old| if old == new_source.0 { id } else { old });
        scene.objects.push((to, bytes));
        Ok(())
    }
}

fn odd(what: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the built-in seed of the demo lacks {what}"),
    )
}

fn segment_of(seed: &Seed, id: i64) -> Result<(&Key, &[u8])> {
    seed.keys
        .iter()
        .find(|(k, _)| matches!(k, Key::Segment(_, _, s) if s.0 == id))
        .map(|(k, v)| (k, &v[..]))
        .ok_or_else(|| odd("a segment"))
}

fn is_of(channel: &VChannel, collection: i64) -> bool {
    crate::engine::format::vchannel::collection(channel) == Some(CollectionId(collection))
}
