//! What each snapshot refers to, and whether that is known: one state per snapshot (`spec/snapshot.md` §3.6). Pure.
//!
//! Whoever asks gets "not known" until the snapshot's files have been read whole and without a doubt, and "not known" holds
//! everything that the snapshot might refer to (defects D3, D12, D60). What is known is kept as sorted numbers, never as names: a
//! file is held through the segment or the build that its path names; only files of neither (LOBs) are kept one by one, hashed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::facts::{Reference, snapshot_state};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb::data::SnapshotInfo;
use crate::engine::ids::{BuildId, CollectionId, ObjectKey, SegmentId, SnapshotId, UnixMs};

/// How far a snapshot's files were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// The ids that the metadata JSON lists. They hold; but a manifest may name a file of a segment that the JSON does not list
    /// (`spec/snapshot.md` §4.3), so nothing may be deleted on their word.
    Ids,
    /// Every manifest.
    Files,
}

/// Everything that a snapshot refers to. Eight bytes for a segment, a build or a file that belongs to neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct References {
    segments: Box<[SegmentId]>,
    builds: Box<[BuildId]>,
    loose: Box<[u64]>,
    /// Objects that the manifests name one by one; those of a storage V3 segment count through its folder.
    pub files: u64,
    /// How far it was read.
    pub extent: Extent,
}

/// A file as a number: FNV-1a, the same in every build. Two files of one mark keep each other, which harms nobody.
#[must_use]
pub fn mark(key: &ObjectKey) -> u64 {
    key.0.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl References {
    /// Segments, in order: those that it holds, and those of which it names a file.
    #[must_use]
    pub fn segments(&self) -> &[SegmentId] {
        &self.segments
    }

    /// Index, text and JSON builds, in order.
    #[must_use]
    pub fn builds(&self) -> &[BuildId] {
        &self.builds
    }

    /// [`mark`]s of files that belong to neither a segment nor a build, in order.
    #[must_use]
    pub fn loose(&self) -> &[u64] {
        &self.loose
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        (self.segments.len() + self.builds.len() + self.loose.len()) * 8
    }
}

/// References while they are read.
#[derive(Clone, Debug, Default)]
pub struct Collecting {
    segments: Vec<SegmentId>,
    builds: Vec<BuildId>,
    loose: Vec<u64>,
    files: u64,
}

impl Collecting {
    /// A segment.
    pub fn segment(&mut self, id: SegmentId) {
        self.segments.push(id);
    }

    /// A build; 0 is none.
    pub fn build(&mut self, id: BuildId) {
        if id != BuildId(0) {
            self.builds.push(id);
        }
    }

    /// A file: held through whoever its path says it belongs to.
    pub fn file(&mut self, path: &ObjPath, root: &str) {
        let owner = path.owner();
        owner.segment.into_iter().for_each(|id| self.segment(id));
        owner.build.into_iter().for_each(|id| self.build(id));
        if owner.segment.is_none() && owner.build.is_none() {
            self.loose.push(mark(&path.to_key(root)));
        }
        self.files += 1;
    }

    /// An object that is held by its name alone.
    pub fn object(&mut self, key: &ObjectKey) {
        self.loose.push(mark(key));
    }

    /// What was read, as far as it was read.
    #[must_use]
    pub fn done(self, extent: Extent) -> References {
        References {
            segments: sorted(self.segments),
            builds: sorted(self.builds),
            loose: sorted(self.loose),
            files: self.files,
            extent,
        }
    }
}

fn sorted<T: Ord>(mut all: Vec<T>) -> Box<[T]> {
    all.sort_unstable();
    all.dedup();
    all.into_boxed_slice()
}

/// A snapshot record, as far as its references depend on it. Its files never change once it is committed, so this is also what a
/// state is remembered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Id.
    pub id: SnapshotId,
    /// Collection.
    pub collection: CollectionId,
    /// Name.
    pub name: Arc<str>,
    /// Key of the metadata JSON as the record gives it; empty when it does not.
    pub location: Arc<str>,
}

impl Record {
    /// Of a snapshot's own record.
    #[must_use]
    pub fn of(info: &SnapshotInfo) -> Self {
        Self {
            id: SnapshotId(info.id),
            collection: CollectionId(info.collection_id),
            name: info.name.as_str().into(),
            location: info.s3_location.as_str().into(),
        }
    }
}

/// Whether a snapshot in this state refers to anything: only a committed one does. One in the making holds its collection by itself.
#[must_use]
pub const fn refers(state: i32) -> bool {
    matches!(state, 0 | snapshot_state::COMMITTED)
}

/// Whether a snapshot's references are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Not read yet.
    #[default]
    NotLoaded,
    /// Read without a doubt, as far as [`References::extent`] says.
    Loaded {
        /// What it refers to.
        refs: Arc<References>,
        /// When it was read.
        when: UnixMs,
    },
    /// Cannot be read. It is tried again.
    Failed {
        /// Why.
        reason: Arc<str>,
        /// When it first failed.
        since: UnixMs,
        /// How often.
        tries: u32,
        /// When it is tried again.
        again: UnixMs,
    },
}

/// One snapshot in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its record.
    pub record: Record,
    /// Whether its references are known.
    pub status: Status,
    /// When the index learned of it.
    pub seen: UnixMs,
}

impl Entry {
    /// What verdicts see.
    #[must_use]
    pub fn reference(&self) -> Reference {
        match &self.status {
            Status::NotLoaded => Reference::NotLoaded,
            Status::Loaded { refs, .. } => Reference::Loaded(refs.clone()),
            Status::Failed { reason, .. } => Reference::Failed(reason.to_string()),
        }
    }

    /// Since when nothing can be deleted because of it; `None` once its ids are known.
    #[must_use]
    pub fn blocks_since(&self) -> Option<UnixMs> {
        match &self.status {
            Status::NotLoaded => Some(self.seen),
            Status::Loaded { .. } => None,
            Status::Failed { since, .. } => Some(*since),
        }
    }
}

/// First pause before a failed snapshot is read again (`dataCoord.snapshot.refIndexLoadInterval`), ms. Each failure doubles it.
pub const RETRY_MS: i64 = 60_000;
/// The longest pause, ms.
pub const RETRY_MOST_MS: i64 = 15 * 60_000;

/// All snapshots that may refer to something.
#[derive(Clone, Debug, Default)]
pub struct Index {
    entries: BTreeMap<SnapshotId, Entry>,
    /// The snapshot records themselves have been listed: one that is not here does not exist.
    pub known: bool,
}

impl Index {
    /// Takes in the records as they are now: those of committed snapshots. What was known of a snapshot that is still where it was stays
    /// known. Answers whether anything moved.
    pub fn follow(&mut self, records: impl IntoIterator<Item = Record>, now: UnixMs) -> bool {
        let mut moved = !self.known;
        self.known = true;
        let mut next = BTreeMap::new();
        for record in records {
            let entry = match self.entries.remove(&record.id) {
                Some(entry) if entry.record == record => entry,
                Some(entry) if entry.record.location == record.location => {
                    moved = true;
                    Entry { record, ..entry }
                }
                _ => {
                    moved = true;
                    Entry {
                        record,
                        status: Status::NotLoaded,
                        seen: now,
                    }
                }
            };
            next.insert(entry.record.id, entry);
        }
        moved |= !self.entries.is_empty();
        self.entries = next;
        moved
    }

    /// Takes in one record that was just read, whatever else there is. Answers whether anything moved.
    pub fn learn(&mut self, record: &Record, now: UnixMs) -> bool {
        let stays = self
            .entries
            .get(&record.id)
            .is_some_and(|entry| entry.record.location == record.location);
        if !stays {
            let entry = Entry {
                record: record.clone(),
                status: Status::NotLoaded,
                seen: now,
            };
            self.entries.insert(record.id, entry);
        }
        !stays
    }

    /// What should be read now, and how far: ids of all before the manifests of any.
    #[must_use]
    pub fn due(&self, now: UnixMs) -> Vec<(Record, Extent)> {
        let mut out: Vec<(Record, Extent)> = self
            .entries
            .values()
            .filter_map(|entry| {
                let extent = match &entry.status {
                    Status::NotLoaded => Extent::Ids,
                    Status::Loaded { refs, .. } if refs.extent == Extent::Ids => Extent::Files,
                    Status::Failed { again, .. } if *again <= now => Extent::Files,
                    _ => return None,
                };
                Some((entry.record.clone(), extent))
            })
            .collect();
        out.sort_by_key(|(record, extent)| (*extent, record.id));
        out
    }

    /// When the next failed one is to be read again.
    #[must_use]
    pub fn next_retry(&self) -> Option<UnixMs> {
        let again = |entry: &Entry| match entry.status {
            Status::Failed { again, .. } => Some(again),
            _ => None,
        };
        self.entries.values().filter_map(again).min()
    }

    /// Takes in what reading a snapshot came to. One that is not where it was read any more is not concerned, and what is known further
    /// than this reading went stays.
    pub fn took(&mut self, record: &Record, read: Result<References, String>, now: UnixMs) {
        let Some(entry) = self.entries.get_mut(&record.id) else {
            return;
        };
        if entry.record.location != record.location {
            return;
        }
        entry.status = match (read, &entry.status) {
            (Ok(read), Status::Loaded { refs, .. }) if refs.extent > read.extent => return,
            (Ok(read), _) => Status::Loaded {
                refs: Arc::new(read),
                when: now,
            },
            (Err(reason), before) => {
                let (since, tries) = match before {
                    Status::Failed { since, tries, .. } => (*since, tries.saturating_add(1)),
                    _ => (now, 1),
                };
                let pause = RETRY_MS.saturating_mul(1 << (tries - 1).min(10));
                Status::Failed {
                    reason: reason.into(),
                    since,
                    tries,
                    again: UnixMs(now.0.saturating_add(pause.min(RETRY_MOST_MS))),
                }
            }
        };
    }

    /// A snapshot's entry.
    #[must_use]
    pub fn get(&self, id: SnapshotId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Snapshots that are known to refer to a segment or a build with one of these ids.
    pub fn referring(&self, ids: Range<i64>) -> impl Iterator<Item = &Entry> {
        fn any<T>(sorted: &[T], ids: &Range<i64>, id: impl Fn(&T) -> i64) -> bool {
            let at = sorted.partition_point(|one| id(one) < ids.start);
            sorted.get(at).is_some_and(|one| id(one) < ids.end)
        }
        self.entries
            .values()
            .filter(move |entry| match &entry.status {
                Status::Loaded { refs, .. } => {
                    any(&refs.segments, &ids, |s| s.0) || any(&refs.builds, &ids, |b| b.0)
                }
                _ => false,
            })
    }

    /// All of them, in the order of ids.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Whether the references of every snapshot are known whole: what Milvus asks as "is ref index loaded".
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.known && self.read() == self.entries.len()
    }

    /// How many have been read whole.
    #[must_use]
    pub fn read(&self) -> usize {
        let whole = |e: &&Entry| matches!(&e.status, Status::Loaded { refs, .. } if refs.extent == Extent::Files);
        self.entries.values().filter(whole).count()
    }

    /// Whether every snapshot has been looked at: nothing is left to read now but what failed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.known
            && self.entries.values().all(|e| match &e.status {
                Status::NotLoaded => false,
                Status::Loaded { refs, .. } => refs.extent == Extent::Files,
                Status::Failed { .. } => true,
            })
    }

    /// Collections of which nothing can be deleted because a snapshot of theirs is not known: since when, and by which entries.
    #[must_use]
    pub fn blocked(&self) -> BTreeMap<CollectionId, (UnixMs, Vec<&Entry>)> {
        let mut out: BTreeMap<CollectionId, (UnixMs, Vec<&Entry>)> = BTreeMap::new();
        for entry in self.entries.values() {
            if let Some(since) = entry.blocks_since() {
                let slot = out
                    .entry(entry.record.collection)
                    .or_insert((since, Vec::new()));
                slot.0 = slot.0.min(since);
                slot.1.push(entry);
            }
        }
        out
    }

    /// Bytes that what is known takes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let refs = |e: &Entry| match &e.status {
            Status::Loaded { refs, .. } => refs.heap_bytes(),
            _ => 0,
        };
        let each = std::mem::size_of::<Entry>() + std::mem::size_of::<References>();
        self.entries.values().map(|e| each + refs(e)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: i64, location: &str) -> Record {
        Record {
            id: SnapshotId(id),
            collection: CollectionId(1),
            name: "s".into(),
            location: location.into(),
        }
    }

    fn refs(extent: Extent) -> References {
        let mut all = Collecting::default();
        all.segment(SegmentId(5));
        all.build(BuildId(0));
        all.done(extent)
    }

    #[test]
    fn ids_of_all_are_read_before_the_manifests_of_any() {
        let mut index = Index::default();
        assert!(index.follow([record(1, "a"), record(2, "b")], UnixMs(10)));
        index.took(&record(1, "a"), Ok(refs(Extent::Ids)), UnixMs(11));
        let due: Vec<_> = index.due(UnixMs(12));
        let due: Vec<_> = due.iter().map(|(r, e)| (r.id.0, *e)).collect();
        assert_eq!(due, [(2, Extent::Ids), (1, Extent::Files)]);
        assert!(!index.is_settled() && !index.is_loaded());
        let blocked = index.blocked();
        let (since, who) = &blocked[&CollectionId(1)];
        assert_eq!((*since, who.len()), (UnixMs(10), 1), "the second alone");
    }

    #[test]
    fn a_failure_is_tried_again_later_and_later_and_remembers_its_first() {
        let mut index = Index::default();
        index.follow([record(1, "a")], UnixMs(0));
        let mut now = UnixMs(1_000);
        for pause in [60_000, 120_000, 240_000, 480_000, 900_000, 900_000] {
            index.took(&record(1, "a"), Err("no".into()), now);
            assert!(index.due(UnixMs(now.0 + pause - 1)).is_empty());
            assert_eq!(index.next_retry(), Some(UnixMs(now.0 + pause)));
            now = UnixMs(now.0 + pause);
            assert_eq!(index.due(now)[0].1, Extent::Files);
        }
        let Some(Status::Failed { since, tries, .. }) =
            index.get(SnapshotId(1)).map(|e| e.status.clone())
        else {
            panic!("it failed");
        };
        assert_eq!((since, tries), (UnixMs(1_000), 6));
        assert!(index.is_settled() && !index.is_loaded());
        index.took(&record(1, "a"), Ok(refs(Extent::Files)), now);
        assert!(index.is_loaded() && index.blocked().is_empty());
    }

    #[test]
    fn what_is_known_outlives_a_new_name_and_not_a_new_place() {
        let mut index = Index::default();
        index.follow([record(1, "a")], UnixMs(0));
        index.took(&record(1, "a"), Ok(refs(Extent::Files)), UnixMs(1));
        let renamed = Record {
            name: "t".into(),
            ..record(1, "a")
        };
        assert!(index.follow([renamed.clone()], UnixMs(2)));
        assert!(index.is_loaded());
        assert!(!index.follow([renamed], UnixMs(3)), "nothing moved");
        index.took(&record(1, "b"), Err("of another place".into()), UnixMs(4));
        assert!(index.is_loaded(), "a late answer of another place");
        index.took(&record(1, "a"), Ok(refs(Extent::Ids)), UnixMs(4));
        assert!(index.is_loaded(), "a reading that went less far");
        assert!(index.follow([record(1, "b")], UnixMs(5)));
        assert!(!index.is_loaded());
        assert!(index.follow([], UnixMs(6)));
        assert!(index.is_loaded(), "nothing is left to know");
    }

    #[test]
    fn who_refers_into_a_range_of_ids_is_told() {
        let mut index = Index::default();
        index.follow([record(1, "a"), record(2, "b")], UnixMs(0));
        let mut all = Collecting::default();
        all.segment(SegmentId(3));
        all.segment(SegmentId(9));
        all.build(BuildId(20));
        index.took(&record(1, "a"), Ok(all.done(Extent::Ids)), UnixMs(1));
        let who = |ids: Range<i64>| {
            index
                .referring(ids)
                .map(|e| e.record.id.0)
                .collect::<Vec<_>>()
        };
        for ids in [3..4, 9..10, 0..100, 20..21, 15..21] {
            assert_eq!(who(ids.clone()), [1], "{ids:?}");
        }
        for ids in [4..9, 10..20, 21..30, 0..3] {
            assert!(who(ids.clone()).is_empty(), "{ids:?}");
        }
    }

    #[test]
    fn a_file_is_held_through_its_owner_or_by_its_mark() {
        let path = |key: &str| ObjPath::parse("files", key).known().unwrap();
        let mut all = Collecting::default();
        all.file(&path("files/delta_log/1/2/3/4"), "files");
        all.file(&path("files/index_files/7/1/2/3/HNSW_0"), "files");
        all.file(&path("files/insert_log/1/2/lobs/100/_data/a.vx"), "files");
        let refs = all.done(Extent::Files);
        assert_eq!(refs.segments(), [SegmentId(3)]);
        assert_eq!(refs.builds(), [BuildId(7)]);
        assert_eq!(
            refs.loose(),
            [mark(&"files/insert_log/1/2/lobs/100/_data/a.vx".into())]
        );
        assert_eq!((refs.files, refs.heap_bytes()), (3, 24));
    }
}
