//! The target path of a restored object (`spec/snapshot.md` §5.6, the table), by type and never by searching text.

use std::collections::BTreeMap;

use super::{
    FieldIndexFile, IndexFile, ObjPath, Parts, SegmentBase, StorageManifest, join_root, strip_root,
};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{BuildId, CollectionId, PartitionId, SegmentId};

/// Where one segment's objects go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Target collection.
    pub collection: CollectionId,
    /// Target partition; -1 stays -1 for L0 segments of all partitions.
    pub partition: PartitionId,
    /// Target segment.
    pub segment: SegmentId,
    /// New build id of each source build.
    pub builds: BTreeMap<BuildId, BuildId>,
}

impl Target {
    fn build(&self, source: BuildId) -> Result<BuildId> {
        self.builds.get(&source).copied().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "an index build has no new id in the restore plan",
            )
            .with("build", source)
            .with("segment", self.segment)
            .fix("plan the restore again from the snapshot's manifests")
        })
    }

    fn index(&self, source: &IndexFile) -> Result<IndexFile> {
        Ok(IndexFile {
            build: self.build(source.build)?,
            version: source.version,
            partition: self.partition,
            segment: self.segment,
            file: source.file.clone(),
        })
    }

    fn field_index(&self, source: &FieldIndexFile) -> Result<FieldIndexFile> {
        Ok(FieldIndexFile {
            build: self.build(source.build)?,
            version: source.version,
            collection: self.collection,
            partition: self.partition,
            segment: self.segment,
            field: source.field,
            file: source.file.clone(),
        })
    }
}

/// The path `source` gets in the target: ids of collection, partition, segment and build replaced; field, log id,
/// version and file name kept. Objects that no segment owns have no target and are an error.
pub fn rewrite(source: &ObjPath, to: &Target) -> Result<ObjPath> {
    let (c, p, s) = (to.collection, to.partition, to.segment);
    Ok(match source {
        ObjPath::InsertLog(_, _, _, field, log) => ObjPath::InsertLog(c, p, s, *field, *log),
        ObjPath::StatsLog(_, _, _, field, log) => ObjPath::StatsLog(c, p, s, *field, *log),
        ObjPath::DeltaLog(_, _, _, log) => ObjPath::DeltaLog(c, p, s, *log),
        ObjPath::Bm25Log(_, _, _, field, log) => ObjPath::Bm25Log(c, p, s, *field, *log),
        ObjPath::SegmentManifest(_, _, _, version) => ObjPath::SegmentManifest(c, p, s, *version),
        ObjPath::SegmentData(_, _, _, file) => ObjPath::SegmentData(c, p, s, file.clone()),
        ObjPath::SegmentDelta(_, _, _, log) => ObjPath::SegmentDelta(c, p, s, *log),
        ObjPath::SegmentStats(_, _, _, file) => ObjPath::SegmentStats(c, p, s, file.clone()),
        ObjPath::SegmentIndex(_, _, _, file) => ObjPath::SegmentIndex(c, p, s, file.clone()),
        ObjPath::Lob(_, _, field, file) => ObjPath::Lob(c, p, *field, file.clone()),
        ObjPath::IndexFile(file) => ObjPath::IndexFile(to.index(file)?),
        ObjPath::IndexFileV1(_, file) => ObjPath::IndexFileV1(c, to.index(file)?),
        ObjPath::TextLog(file) => ObjPath::TextLog(to.field_index(file)?),
        ObjPath::JsonKeyIndex(file) => ObjPath::JsonKeyIndex(to.field_index(file)?),
        ObjPath::JsonStats(format, file) => ObjPath::JsonStats(*format, to.field_index(file)?),
        ObjPath::PartitionStats(..)
        | ObjPath::AnalyzeCentroids(..)
        | ObjPath::AnalyzeOffsets(..)
        | ObjPath::SnapshotMetadata(..)
        | ObjPath::SnapshotManifest(..)
        | ObjPath::Opaque(..) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "an object that no segment owns cannot be restored",
            )
            .with("path", source));
        }
    })
}

/// The target of a storage manifest reference: V3 keeps its version and moves its folder, V2's plain key follows the
/// insert rule. The source's bucket, when 2.6 wrote it in front, is dropped.
pub fn rewrite_manifest(
    source: &StorageManifest,
    root: &str,
    bucket: &str,
    to: &Target,
) -> Result<StorageManifest> {
    let misplaced = |path: &str| {
        Error::new(
            ErrorKind::Corrupt,
            "a segment's manifest is not below the root's insert_log folder",
        )
        .with("path", path)
        .with("root", root)
    };
    let base = SegmentBase(to.collection, to.partition, to.segment).to_path(root);
    match source {
        StorageManifest::Packed(packed) => {
            SegmentBase::parse(root, bucket, &packed.base_path)
                .ok_or_else(|| misplaced(&packed.base_path))?;
            let mut moved = packed.clone();
            moved.base_path = base;
            Ok(StorageManifest::Packed(moved))
        }
        StorageManifest::Object(key) => {
            let rest = insert_rest(root, key).ok_or_else(|| misplaced(key))?;
            Ok(StorageManifest::Object(join_root(
                root,
                &format!(
                    "insert_log/{}/{}/{}/{rest}",
                    to.collection, to.partition, to.segment
                ),
            )))
        }
    }
}

/// What follows `insert_log/{c}/{p}/{s}/`.
fn insert_rest(root: &str, key: &str) -> Option<String> {
    let mut p = Parts(strip_root(root, key)?.strip_prefix("insert_log/")?);
    let (_, _, _) = (p.id::<i64>()?, p.id::<i64>()?, p.id::<i64>()?);
    p.rest()
}
