//! What a deletion would take: records as they were read, objects by name. Read when it is needed, for what goes and for nothing else:
//! the names of a million live objects would not fit.

use std::collections::{BTreeMap, BTreeSet};

use super::gc_scan::{Scan, pages};
use super::restore_source::Reads;
use crate::engine::error::Result;
use crate::engine::format::binlog;
use crate::engine::format::codec::{Decoded, decode};
use crate::engine::format::keys::{Family, Key, LogKind};
use crate::engine::format::paths::{
    FieldIndexFile, IndexFile, ManifestPath, ObjPath, ParsedPath, SegmentBase,
};
use crate::engine::format::pb;
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, MetaKey, MetaRev, ObjectKey, PartitionId, SegmentId,
};
use crate::engine::meta::{KeyValue, Span};
use crate::engine::model::references::mark;

/// How objects are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// By name, to delete them.
    Keys,
    /// By eight bytes, to find them in a listing.
    Marks,
}

/// A record that a delete would remove, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Key.
    pub key: MetaKey,
    /// Its revision.
    pub rev: MetaRev,
}

impl Seen {
    pub(super) fn of(kv: &KeyValue) -> Self {
        Self {
            key: kv.key.clone(),
            rev: kv.mod_rev,
        }
    }
}

/// What belongs to one segment or build: its records, the main one last, and its objects.
#[derive(Clone, Debug, Default)]
pub struct Belongings {
    /// Records, in the order they are deleted. Not filled for [`Names::Marks`].
    pub records: Vec<Seen>,
    /// Objects by name, for [`Names::Keys`].
    pub objects: BTreeSet<ObjectKey>,
    /// Objects by [`mark`], for [`Names::Marks`].
    pub marks: Vec<u64>,
    /// The folder of which every object belongs to it (storage V3).
    pub folder: Option<SegmentBase>,
    /// Objects that the record names although their path says that they are another's: never deleted with it.
    pub strangers: BTreeSet<ObjectKey>,
    /// A record that cannot be read: then nothing of it is taken (law 5).
    pub unreadable: Option<String>,
}

pub(super) type Place = (CollectionId, PartitionId, SegmentId);

impl Belongings {
    fn doubt(&mut self, why: String) {
        self.unreadable.get_or_insert(why);
    }

    /// Whether it names an object.
    #[must_use]
    pub fn has_objects(&self) -> bool {
        !self.objects.is_empty() || !self.marks.is_empty() || self.folder.is_some()
    }
}

/// Reads belongings.
struct Reader<'a> {
    root: &'a str,
    bucket: &'a str,
    names: Names,
}

impl Reader<'_> {
    fn record(&self, mine: &mut Belongings, kv: &KeyValue) {
        if self.names == Names::Keys {
            mine.records.push(Seen::of(kv));
        }
    }

    fn object(&self, mine: &mut Belongings, key: ObjectKey) {
        match self.names {
            Names::Keys => {
                mine.objects.insert(key);
            }
            Names::Marks => mine.marks.push(mark(&key)),
        }
    }

    /// A whole key that a segment's record names: the segment's own only if its path says so too.
    fn take(&self, mine: &mut Belongings, of: Place, key: &str) {
        let key = ObjectKey(key.to_owned());
        if is_own(self.root, of, &key) {
            self.object(mine, key);
        } else {
            mine.strangers.insert(key);
        }
    }

    /// What the segment's own record says.
    fn segment(&self, mine: &mut Belongings, of: Place, info: &pb::data::SegmentInfo) {
        let (c, _, s) = of;
        let packed = info.manifest_path.trim_start().starts_with('{');
        if packed {
            match folder(self.root, self.bucket, info) {
                // Only a folder that names this very segment is its own.
                Some(base) if base.2 == s && base.0 == c => mine.folder = Some(base),
                _ => mine.doubt(format!(
                    "segment {s}: manifest path {:?} is not its folder",
                    info.manifest_path
                )),
            }
        } else if !info.manifest_path.is_empty() {
            self.take(mine, of, &info.manifest_path);
        }
        // Lists inside the record itself (before 2.2) win over the log records; both are taken.
        for (kind, list) in [
            (LogKind::Insert, &info.binlogs),
            (LogKind::Stats, &info.statslogs),
            (LogKind::Delta, &info.deltalogs),
            (LogKind::Bm25, &info.bm25statslogs),
        ] {
            for log in list {
                self.logs(mine, kind, of, log);
            }
        }
        if !packed {
            for (whole, key) in field_files(self.root, of, info) {
                match whole {
                    Some(whole) => self.take(mine, of, &whole),
                    None => self.object(mine, key),
                }
            }
        }
    }

    fn logs(&self, mine: &mut Belongings, kind: LogKind, of: Place, log: &pb::data::FieldBinlog) {
        match binlog::objects(kind, of, log) {
            Ok(paths) => {
                for (path, _) in paths {
                    self.object(mine, path.to_key(self.root));
                }
            }
            Err(e) => mine.doubt(format!("segment {}: {e}", of.2)),
        }
    }

    /// A segment index row's files.
    fn row(&self, mine: &mut Belongings, of: Place, build: BuildId, row: &pb::index::SegmentIndex) {
        for name in &row.index_file_keys {
            let file = IndexFile {
                build,
                version: row.index_version,
                partition: of.1,
                segment: of.2,
                file: name.clone(),
            };
            let path = match row.index_store_path_version {
                0 => ObjPath::IndexFile(file),
                _ => ObjPath::IndexFileV1(of.0, file),
            };
            self.object(mine, path.to_key(self.root));
        }
    }
}

/// Whether a key that a segment's record names says itself that it is the segment's.
pub(super) fn is_own(root: &str, (c, _, s): Place, key: &ObjectKey) -> bool {
    let owner = ObjPath::parse(root, &key.0)
        .known()
        .map(|path| path.owner());
    owner.is_some_and(|of| of.collection == Some(c) && of.segment == Some(s))
}

/// The folder of a packed manifest path; `None` when it does not name one.
pub(super) fn folder(
    root: &str,
    bucket: &str,
    info: &pb::data::SegmentInfo,
) -> Option<SegmentBase> {
    let path = ManifestPath::parse(&info.manifest_path).ok()?;
    SegmentBase::parse(root, bucket, &path.base_path)
}

/// Text and JSON index files that a segment's record names (`spec/layout.md` §7.3): the name as it stands there when it is a whole key, and
/// the key that a bare name means.
pub(super) fn field_files(
    root: &str,
    (c, p, s): Place,
    info: &pb::data::SegmentInfo,
) -> Vec<(Option<String>, ObjectKey)> {
    let at = |(build, version, field): (i64, i64, i64), file: &str| FieldIndexFile {
        build: BuildId(build),
        version,
        collection: c,
        partition: p,
        segment: s,
        field: FieldId(field),
        file: file.to_owned(),
    };
    let whole = |file: &String| {
        let known =
            file.contains('/') && matches!(ObjPath::parse(root, file), ParsedPath::Known(_));
        known.then(|| file.clone())
    };
    let text = info.text_stats_logs.values().flat_map(|stats| {
        let ids = (stats.build_id, stats.version, stats.field_id);
        stats
            .files
            .iter()
            .map(move |file| (file, ObjPath::TextLog(at(ids, file))))
    });
    let json = info.json_key_stats.values().flat_map(|stats| {
        let ids = (stats.build_id, stats.version, stats.field_id);
        stats.files.iter().map(move |file| {
            let path = match stats.json_key_stats_data_format {
                0 | 1 => ObjPath::JsonKeyIndex(at(ids, file)),
                format => ObjPath::JsonStats(format, at(ids, file)),
            };
            (file, path)
        })
    });
    text.chain(json)
        .map(|(file, path)| (whole(file), path.to_key(root)))
        .collect()
}

/// What segments and rows own. One whose main record is gone, or has moved since the scan, is not in it; nor a segment of which an index
/// row has.
#[derive(Debug, Default)]
pub struct Owned {
    /// Of segments, with the rows and files of their indexes.
    pub segments: BTreeMap<SegmentId, Belongings>,
    /// Of index rows.
    pub builds: BTreeMap<BuildId, Belongings>,
}

/// Records are asked for one by one up to so many of a collection; above it its whole family is read, page by page.
const ONE_BY_ONE: usize = 64;

/// Reads what these own, as it is now.
pub async fn owned(
    reads: &Reads<'_>,
    scan: &Scan,
    segments: &BTreeSet<SegmentId>,
    builds: &BTreeSet<BuildId>,
    names: Names,
) -> Result<Owned> {
    let reader = Reader {
        root: reads.objects.root(),
        bucket: reads.objects.bucket(),
        names,
    };
    let mut out = Owned::default();
    let mut rows: BTreeMap<MetaKey, (Key, MetaRev)> = BTreeMap::new();
    let with_segments = segments.iter().flat_map(|id| scan.world.builds_of(*id));
    for id in builds.iter().copied().chain(with_segments) {
        if let Some((key, rev)) = scan.row(id) {
            rows.insert(key.to_key(reads.roots), (key, rev));
        }
    }
    each(reads, rows, |kv, key| {
        let Key::SegmentIndex(c, p, s, build) = key else {
            return;
        };
        let mut mine = Belongings::default();
        match decode::<pb::index::SegmentIndex>(&key, &kv.value) {
            Decoded::Value(row) => reader.row(&mut mine, (c, p, s), build, &row),
            Decoded::Tombstone => {}
            Decoded::Undecodable { reason } => {
                mine.doubt(format!("record {} cannot be read: {reason}", kv.key));
            }
        }
        reader.record(&mut mine, &kv);
        out.builds.insert(build, mine);
    })
    .await?;
    let mut mains: BTreeMap<MetaKey, (Key, MetaRev)> = BTreeMap::new();
    for id in segments {
        if let Some((key, rev)) = scan.segment(*id) {
            mains.insert(key.to_key(reads.roots), (key, rev));
        }
    }
    let mut last: BTreeMap<SegmentId, KeyValue> = BTreeMap::new();
    each(reads, mains, |kv, key| {
        let Key::Segment(c, p, s) = key else {
            return;
        };
        let mut mine = Belongings::default();
        match decode::<pb::data::SegmentInfo>(&key, &kv.value) {
            Decoded::Value(info) => reader.segment(&mut mine, (c, p, s), &info),
            Decoded::Tombstone => {}
            Decoded::Undecodable { reason } => {
                mine.doubt(format!("record {} cannot be read: {reason}", kv.key));
            }
        }
        // Rows and files of its indexes go with a segment.
        for build in scan.world.builds_of(s) {
            // One that moved takes the segment with it: it was judged by all of them.
            let Some(row) = out.builds.get(&build) else {
                return;
            };
            mine.records.extend(row.records.iter().cloned());
            mine.objects.extend(row.objects.iter().cloned());
            mine.marks.extend(&row.marks);
            if let Some(why) = &row.unreadable {
                mine.doubt(why.clone());
            }
        }
        out.segments.insert(s, mine);
        if names == Names::Keys {
            // Only key and revision are of use.
            let value = bytes::Bytes::new();
            last.insert(s, KeyValue { value, ..kv });
        }
    })
    .await?;
    out.builds.retain(|id, _| builds.contains(id));
    logs(reads, scan, &reader, &mut out.segments).await?;
    // Its own record goes last.
    for (segment, kv) in last {
        if let Some(mine) = out.segments.get_mut(&segment) {
            reader.record(mine, &kv);
        }
    }
    Ok(out)
}

/// Reads these records of one family, those that still are at their revision.
async fn each(
    reads: &Reads<'_>,
    wanted: BTreeMap<MetaKey, (Key, MetaRev)>,
    mut take: impl FnMut(KeyValue, Key) + Send,
) -> Result<()> {
    let mut by_collection: BTreeMap<(Family, CollectionId), BTreeMap<MetaKey, (Key, MetaRev)>> =
        BTreeMap::new();
    for (at, (key, rev)) in wanted {
        if let Key::SegmentIndex(c, ..) | Key::Segment(c, ..) = key {
            by_collection
                .entry((key.family(), c))
                .or_default()
                .insert(at, (key, rev));
        }
    }
    for ((family, collection), mut some) in by_collection {
        if some.len() > ONE_BY_ONE {
            let span = Span::prefix(&family.under(reads.roots, &[collection.0]));
            pages(reads.meta, &span, |kv| {
                if let Some((key, rev)) = some.remove(&kv.key)
                    && kv.mod_rev == rev
                {
                    take(kv, key);
                }
            })
            .await?;
            continue;
        }
        for (at, (key, rev)) in some {
            if let Some(kv) = reads.meta.get(&at).await?.filter(|kv| kv.mod_rev == rev) {
                take(kv, key);
            }
        }
    }
    Ok(())
}

/// Adds what the log records of these segments name.
async fn logs(
    reads: &Reads<'_>,
    scan: &Scan,
    reader: &Reader<'_>,
    all: &mut BTreeMap<SegmentId, Belongings>,
) -> Result<()> {
    let mut by_collection: BTreeMap<CollectionId, Vec<[i64; 3]>> = BTreeMap::new();
    for id in all.keys() {
        if let Some((Key::Segment(c, p, s), _)) = scan.segment(*id) {
            by_collection.entry(c).or_default().push([c.0, p.0, s.0]);
        }
    }
    for (collection, some) in by_collection {
        for family in [
            Family::Binlog,
            Family::Statslog,
            Family::Deltalog,
            Family::Bm25log,
        ] {
            let spans: Vec<Span> = if some.len() > ONE_BY_ONE {
                vec![Span::prefix(&family.under(reads.roots, &[collection.0]))]
            } else {
                let under = |ids: &[i64; 3]| Span::prefix(&family.under(reads.roots, ids));
                some.iter().map(under).collect()
            };
            for span in spans {
                pages(reads.meta, &span, |kv| log(reads, reader, all, &kv)).await?;
            }
        }
    }
    Ok(())
}

fn log(
    reads: &Reads<'_>,
    reader: &Reader<'_>,
    all: &mut BTreeMap<SegmentId, Belongings>,
    kv: &KeyValue,
) {
    let Some(key) = Key::parse(reads.roots, &kv.key.0).known() else {
        return;
    };
    let Key::Log(kind, c, p, s, _) = key else {
        return;
    };
    let Some(mine) = all.get_mut(&s) else {
        return;
    };
    match decode::<pb::data::FieldBinlog>(&key, &kv.value) {
        Decoded::Value(log) => {
            reader.record(mine, kv);
            // With a storage manifest the ids in it are placeholders.
            if mine.folder.is_none() {
                reader.logs(mine, kind, (c, p, s), &log);
            }
        }
        Decoded::Tombstone => reader.record(mine, kv),
        Decoded::Undecodable { reason } => {
            mine.doubt(format!("record {} cannot be read: {reason}", kv.key));
        }
    }
}
