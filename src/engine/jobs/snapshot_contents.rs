//! What a snapshot holds, as its own files tell it: every object that it refers to, by kind, and what else refers to each. Only
//! reads.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use futures::stream::{self, StreamExt};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::presence::{Presence, checksum, look};
use super::references;
use super::restore_files::sources_of;
use super::restore_map::Source;
use super::restore_source::{Reads, hex};
use super::snapshot_drop::own_objects;
use crate::engine::error::Result;
use crate::engine::format::codec::{Decoded, decode};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb::data::{SegmentInfo, SnapshotInfo, SnapshotState};
use crate::engine::format::pb::index::SegmentIndex;
use crate::engine::format::snapshot::{Side, Weight, metadata_key};
use crate::engine::ids::{BuildId, CollectionId, ObjectKey, SegmentId, SnapshotId};
use crate::engine::model::facts::DROPPED;
use crate::engine::model::references::{Extent, Record, References};
use crate::engine::objects::ObjectRead;

/// Metadata files of other snapshots read at once.
const AT_ONCE: usize = 16;

/// Objects with their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many.
    pub files: u64,
    /// Bytes as listed.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// A snapshot with its objects.
pub struct Contents {
    /// Its files, read strictly.
    pub source: Source,
    /// Every object that it refers to, with the segment that does.
    pub wanted: BTreeMap<ObjectKey, i64>,
    /// Which of them are there.
    pub found: Presence,
    /// Its manifests and its metadata, with their bytes.
    pub own: Vec<(ObjectKey, u64)>,
}

/// Where the record says its metadata is; before it is committed, where it will be.
#[must_use]
pub fn location(root: &str, info: &SnapshotInfo) -> ObjectKey {
    if info.s3_location.is_empty() {
        metadata_key(root, CollectionId(info.collection_id), SnapshotId(info.id))
    } else {
        ObjectKey(info.s3_location.clone())
    }
}

/// Every object that the segments of a snapshot refer to, with the segment that does.
pub(super) fn wanted(source: &Source, root: &str) -> Result<BTreeMap<ObjectKey, i64>> {
    let mut out = BTreeMap::new();
    for segment in &source.segments {
        let declared = source.declared.get(&SegmentId(segment.segment_id));
        for path in sources_of(segment, declared.map(Vec::as_slice), root)? {
            out.insert(path.to_key(root), segment.segment_id);
        }
    }
    Ok(out)
}

/// What the objects of each segment weigh.
#[must_use]
pub fn weigh(wanted: &BTreeMap<ObjectKey, i64>, found: &Presence) -> BTreeMap<SegmentId, Weight> {
    let mut sums: BTreeMap<SegmentId, (Weight, Sha256, Sha256)> = BTreeMap::new();
    for (key, segment) in wanted {
        let Some(size) = found.sizes.get(key) else {
            continue;
        };
        let (weight, sizes, contents) = sums.entry(SegmentId(*segment)).or_default();
        weight.objects += 1;
        weight.bytes += size;
        entry(sizes, key, &size.to_be_bytes());
        if let Some(sum) = found.checksums.get(key) {
            weight.summed += 1;
            entry(contents, key, sum.as_bytes());
        }
    }
    let close = |(id, (mut weight, sizes, contents)): (SegmentId, (Weight, Sha256, Sha256))| {
        weight.digest = hex(&sizes.finalize()[..8]);
        if weight.summed > 0 {
            weight.checksums = hex(&contents.finalize()[..8]);
        }
        (id, weight)
    };
    sums.into_iter().map(close).collect()
}

fn entry(hash: &mut Sha256, key: &ObjectKey, value: &[u8]) {
    hash.update(key.0.as_bytes());
    hash.update([0]);
    hash.update(value);
}

/// Over the checksums of a snapshot's manifests, as the bucket gives them now; empty when one has none.
pub(super) async fn manifest_sums(objects: &ObjectRead, manifests: &[String]) -> Result<String> {
    let keys: BTreeSet<ObjectKey> = manifests.iter().map(|key| ObjectKey(key.clone())).collect();
    let folders: BTreeSet<ObjectKey> = keys
        .iter()
        .filter_map(|key| key.0.rsplit_once('/'))
        .map(|(folder, _)| ObjectKey(folder.to_owned()))
        .collect();
    let (mut hash, mut summed) = (Sha256::new(), 0);
    for folder in folders {
        let mut listed = objects.list(&folder, None);
        while let Some(meta) = listed.next().await {
            let meta = meta?;
            if let Some(sum) = checksum(meta.etag.as_deref()).filter(|_| keys.contains(&meta.key)) {
                summed += 1;
                entry(&mut hash, &meta.key, sum.as_bytes());
            }
        }
    }
    let all = summed > 0 && summed == keys.len();
    Ok(if all {
        hex(&hash.finalize()[..8])
    } else {
        String::new()
    })
}

/// What is not as it was when the snapshot was made, a line for each segment. One of which objects are missing is told elsewhere.
pub(super) async fn changed(
    objects: &ObjectRead,
    side: &Side,
    manifests: &[String],
    wanted: &BTreeMap<ObjectKey, i64>,
    found: &Presence,
) -> Result<Vec<String>> {
    let now = weigh(wanted, found);
    let lost: BTreeSet<i64> = found.missing.iter().map(|(_, s)| *s).collect();
    let mut out = Vec::new();
    let mut rewritten = Vec::new();
    for (segment, then) in &side.segments {
        let now = now.get(segment).cloned().unwrap_or_default();
        if lost.contains(&segment.0) {
            continue;
        }
        if !now.same_sizes(then) {
            out.push(format!(
                "segment {segment}: its {} objects hold {} bytes; {} and {} when the snapshot was made",
                now.objects, now.bytes, then.objects, then.bytes
            ));
        } else if now.same_contents(then) == Some(false) {
            rewritten.push(format!(
                "segment {segment}: an object of it is as large as when the snapshot was made, with other contents by its checksum"
            ));
        }
    }
    let told = !rewritten.is_empty()
        && !side.manifests.is_empty()
        && manifest_sums(objects, manifests).await? == side.manifests;
    if told {
        out.extend(rewritten);
    }
    Ok(out)
}

impl Contents {
    /// Reads it. An error names the file that cannot be read.
    pub async fn read(reads: &Reads<'_>, info: SnapshotInfo) -> Result<Self> {
        let root = reads.objects.root();
        let (of, id) = (CollectionId(info.collection_id), SnapshotId(info.id));
        let source = reads.read_source(info).await?;
        let wanted = wanted(&source, root)?;
        let found = look(reads.objects, root, &wanted).await?;
        Ok(Self {
            own: own_objects(reads.objects, of, id).await?,
            source,
            wanted,
            found,
        })
    }

    /// Objects and bytes of each kind.
    #[must_use]
    pub fn by_kind(&self, root: &str) -> BTreeMap<&'static str, Tally> {
        let mut out: BTreeMap<&'static str, Tally> = BTreeMap::new();
        for (key, size) in &self.found.sizes {
            let path = ObjPath::parse(root, &key.0).known();
            let kind = path.as_ref().map_or("other", kind);
            out.entry(kind).or_default().add(*size);
        }
        out
    }

    /// Bytes of its manifests and metadata.
    #[must_use]
    pub fn own_bytes(&self) -> u64 {
        self.own.iter().map(|(_, size)| size).sum()
    }
}

const fn kind(path: &ObjPath) -> &'static str {
    match path {
        ObjPath::InsertLog(..) | ObjPath::SegmentData(..) => "insert",
        ObjPath::DeltaLog(..) | ObjPath::SegmentDelta(..) => "delta",
        ObjPath::StatsLog(..) | ObjPath::SegmentStats(..) => "stats",
        ObjPath::Bm25Log(..) => "bm25",
        ObjPath::IndexFile(..) | ObjPath::IndexFileV1(..) | ObjPath::SegmentIndex(..) => "index",
        ObjPath::TextLog(..) => "text_index",
        ObjPath::JsonKeyIndex(..) | ObjPath::JsonStats(..) => "json_stats",
        ObjPath::SegmentManifest(..) => "storage_manifest",
        ObjPath::Lob(..) => "lob",
        _ => "other",
    }
}

/// Whose else its objects are.
#[derive(Clone, Debug, Default)]
pub struct Share {
    /// Nobody's: dropping the snapshot makes them collectable.
    pub exclusive: Tally,
    /// Of a segment that is not dropped.
    pub live: Tally,
    /// Of another snapshot, and of no such segment.
    pub snapshots: Tally,
    /// The other snapshots that share some.
    pub names: BTreeSet<String>,
    /// Why `exclusive` cannot be told; then nothing counts as exclusive (law 5).
    pub doubt: Option<String>,
}

/// Segments and builds that are in use, as their records say.
#[derive(Default)]
struct Live {
    segments: BTreeSet<SegmentId>,
    builds: BTreeSet<BuildId>,
    known_builds: BTreeSet<BuildId>,
    doubt: Option<String>,
}

impl Live {
    async fn read(reads: &Reads<'_>, of: CollectionId) -> Result<Self> {
        let mut out = Self::default();
        for kv in reads.under(Family::Segment, &[of.0]).await?.kvs {
            let key = Key::parse(reads.roots, &kv.key.0).known();
            let Some(key @ Key::Segment(_, _, id)) = key else {
                continue;
            };
            match decode::<SegmentInfo>(&key, &kv.value) {
                Decoded::Value(info) if info.state != DROPPED => {
                    out.segments.insert(id);
                }
                Decoded::Value(_) | Decoded::Tombstone => {}
                Decoded::Undecodable { reason } => {
                    out.doubt = Some(format!("record {} cannot be read: {reason}", kv.key));
                }
            }
        }
        for kv in reads.under(Family::SegmentIndex, &[of.0]).await?.kvs {
            let key = Key::parse(reads.roots, &kv.key.0).known();
            let Some(key @ Key::SegmentIndex(_, _, segment, build)) = key else {
                continue;
            };
            out.known_builds.insert(build);
            match decode::<SegmentIndex>(&key, &kv.value) {
                Decoded::Value(row) if !row.deleted && out.segments.contains(&segment) => {
                    out.builds.insert(build);
                }
                Decoded::Value(_) | Decoded::Tombstone => {}
                Decoded::Undecodable { reason } => {
                    out.doubt = Some(format!("record {} cannot be read: {reason}", kv.key));
                }
            }
        }
        Ok(out)
    }

    /// As garbage collection judges it: a file of a build by its row, every other by its segment.
    fn holds(&self, segment: Option<SegmentId>, build: Option<BuildId>) -> bool {
        match (segment, build) {
            (_, Some(build)) if self.known_builds.contains(&build) => self.builds.contains(&build),
            (Some(segment), _) => self.segments.contains(&segment),
            // Shared by the segments of a partition (LOBs).
            (None, _) => !self.segments.is_empty(),
        }
    }
}

/// What another snapshot refers to, by ids: so it holds whole segments and builds (`spec/snapshot.md` §3.6).
struct Other {
    name: String,
    refs: References,
}

impl Other {
    fn holds(&self, segment: Option<SegmentId>, build: Option<BuildId>) -> bool {
        match (segment, build) {
            (None, None) => true,
            (segment, build) => {
                segment.is_some_and(|s| self.refs.segments().binary_search(&s).is_ok())
                    || build.is_some_and(|b| self.refs.builds().binary_search(&b).is_ok())
            }
        }
    }
}

async fn other(reads: &Reads<'_>, info: SnapshotInfo) -> Result<Other> {
    let record = Record::of(&info);
    let mut refs = references::read(reads.objects, &record, Extent::Ids).await?;
    if refs.builds().is_empty() {
        // From before the JSON listed them (defect D60), or without any.
        refs = references::read(reads.objects, &record, Extent::Files).await?;
    }
    Ok(Other {
        name: info.name,
        refs,
    })
}

/// Looks who else refers to the objects of `contents`: segment records, and the other snapshots of its collection. An error means
/// that a store did not answer; what cannot be read is a doubt.
pub async fn share(reads: &Reads<'_>, contents: &Contents) -> Result<Share> {
    let root = reads.objects.root();
    let record = &contents.source.record;
    let of = CollectionId(record.collection_id);
    let live = Live::read(reads, of).await?;
    let mut out = Share {
        doubt: live.doubt.clone(),
        ..Share::default()
    };
    let mut infos = Vec::new();
    for kv in reads.under(Family::Snapshot, &[of.0]).await?.kvs {
        let key = Key::parse(reads.roots, &kv.key.0).known();
        let Some(key @ Key::Snapshot(_, id)) = key else {
            continue;
        };
        match decode::<SnapshotInfo>(&key, &kv.value) {
            Decoded::Value(info) if id.0 != record.id => match info.state() {
                SnapshotState::Pending => {
                    out.doubt = Some(format!("snapshot {} is being made", info.name));
                }
                SnapshotState::Deleting => {}
                _ => infos.push(info),
            },
            Decoded::Value(_) | Decoded::Tombstone => {}
            Decoded::Undecodable { reason } => {
                out.doubt = Some(format!("record {} cannot be read: {reason}", kv.key));
            }
        }
    }
    let read = infos.into_iter().map(|info| {
        let name = info.name.clone();
        async move { (name, other(reads, info).await) }.boxed()
    });
    let read: Vec<(String, Result<Other>)> = stream::iter(read).buffered(AT_ONCE).collect().await;
    let mut others = Vec::new();
    for (name, found) in read {
        match found {
            Ok(found) => others.push(found),
            Err(e) if e.is_transient() => return Err(e),
            Err(e) => out.doubt = Some(format!("snapshot {name} cannot be read: {e}")),
        }
    }
    for (key, size) in &contents.found.sizes {
        let owner = ObjPath::parse(root, &key.0)
            .known()
            .map(|path| path.owner());
        let owner = owner.unwrap_or_default();
        let stranger = owner.collection.is_some_and(|c| c != of);
        if stranger || live.holds(owner.segment, owner.build) {
            out.live.add(*size);
            continue;
        }
        let mut sharing = others
            .iter()
            .filter(|o| o.holds(owner.segment, owner.build))
            .peekable();
        if sharing.peek().is_some() {
            out.snapshots.add(*size);
            out.names.extend(sharing.map(|o| o.name.clone()));
        } else {
            out.exclusive.add(*size);
        }
    }
    if out.doubt.is_some() {
        out.exclusive = Tally::default();
    }
    Ok(out)
}
