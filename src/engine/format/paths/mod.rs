//! Every object Milvus keeps in the bucket, as one type, in both directions (`spec/layout.md` §7.2, §7.5, §7.6).
//!
//! `B/`, the root before every path, is `minio.rootPath` (possibly empty, possibly holding a word such as `insert_log`)
//! or an absolute `localStorage.path`. It is taken off and put back as a whole, so that its content never matters and a
//! leading `/` survives. An object that fits no shape exactly is [`ParsedPath::Unknown`]: never guessed at, and so never
//! deleted (law 5).

mod check;
mod manifest;
mod rewrite;
mod text;

use crate::engine::ids::{
    BuildId, CollectionId, FieldId, LogId, ObjectKey, PartitionId, SegmentId, SnapshotId, TaskId,
    VChannel,
};
pub use check::{Location, check};
pub use manifest::{ManifestPath, SegmentBase, StorageManifest};
pub use rewrite::{Target, rewrite, rewrite_manifest};
use text::{Parts, join_root, parse, strip_root};

/// What [`ObjPath::parse`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedPath {
    /// An object of a known class.
    Known(ObjPath),
    /// Outside the root, or of no class listed here.
    Unknown,
}

impl ParsedPath {
    /// The path, when it is known.
    #[must_use]
    pub fn known(self) -> Option<ObjPath> {
        match self {
            Self::Known(path) => Some(path),
            Self::Unknown => None,
        }
    }
}

/// Areas of the bucket whose inside is not described: known to be Milvus's, not ours to touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// `wp/`: Woodpecker's WAL.
    Woodpecker,
    /// `ngram_log/`: index building.
    NgramLog,
    /// `raw_datas/`: index building.
    RawData,
    /// `external_refresh_results/`
    ExternalRefresh,
    /// `__explore_temp__/`, at the bucket's own root.
    ExploreTemp,
}

impl Opaque {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Woodpecker => "wp",
            Self::NgramLog => "ngram_log",
            Self::RawData => "raw_datas",
            Self::ExternalRefresh => "external_refresh_results",
            Self::ExploreTemp => "__explore_temp__",
        }
    }
}

/// A field's index files, placed by build: text indexes and JSON key indexes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldIndexFile {
    /// The build.
    pub build: BuildId,
    /// Version of the build.
    pub version: i64,
    /// The collection.
    pub collection: CollectionId,
    /// The partition.
    pub partition: PartitionId,
    /// The segment.
    pub segment: SegmentId,
    /// The field.
    pub field: FieldId,
    /// The rest of the path.
    pub file: String,
}

/// A vector or scalar index file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IndexFile {
    /// The build.
    pub build: BuildId,
    /// Version of the build.
    pub version: i64,
    /// The partition.
    pub partition: PartitionId,
    /// The segment.
    pub segment: SegmentId,
    /// The file's name, from `SegmentIndex.index_file_keys`.
    pub file: String,
}

/// An object's place below the root.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjPath {
    /// `insert_log/{c}/{p}/{s}/{field or group}/{log}`
    InsertLog(CollectionId, PartitionId, SegmentId, FieldId, LogId),
    /// `stats_log/{c}/{p}/{s}/{pk field}/{log}`; log 1 is the merged file.
    StatsLog(CollectionId, PartitionId, SegmentId, FieldId, LogId),
    /// `delta_log/{c}/{p}/{s}/{log}`: no field level.
    DeltaLog(CollectionId, PartitionId, SegmentId, LogId),
    /// `bm25_stats/{c}/{p}/{s}/{field}/{log}`
    Bm25Log(CollectionId, PartitionId, SegmentId, FieldId, LogId),
    /// `insert_log/{c}/{p}/{s}/_metadata/manifest-{version}.avro`
    SegmentManifest(CollectionId, PartitionId, SegmentId, i64),
    /// `insert_log/{c}/{p}/{s}/_data/{file}`
    SegmentData(CollectionId, PartitionId, SegmentId, String),
    /// `insert_log/{c}/{p}/{s}/_delta/{log}`
    SegmentDelta(CollectionId, PartitionId, SegmentId, LogId),
    /// `insert_log/{c}/{p}/{s}/_stats/{file}`
    SegmentStats(CollectionId, PartitionId, SegmentId, String),
    /// `insert_log/{c}/{p}/{s}/_index/{file}`
    SegmentIndex(CollectionId, PartitionId, SegmentId, String),
    /// `insert_log/{c}/{p}/lobs/{field}/_data/{file}`
    Lob(CollectionId, PartitionId, FieldId, String),
    /// `index_files/{build}/{version}/{p}/{s}/{file}`
    IndexFile(IndexFile),
    /// `index_v1/{c}/{p}/{s}/{build}/{version}/{file}`
    IndexFileV1(CollectionId, IndexFile),
    /// `text_log/{build}/{version}/{c}/{p}/{s}/{field}/{file}`
    TextLog(FieldIndexFile),
    /// `json_key_index_log/{build}/{version}/{c}/{p}/{s}/{field}/{file}`
    JsonKeyIndex(FieldIndexFile),
    /// `json_stats/{data format}/{build}/{version}/{c}/{p}/{s}/{field}/{file}`
    JsonStats(i64, FieldIndexFile),
    /// `part_stats/{c}/{p}/{vchannel}/{version}`
    PartitionStats(CollectionId, PartitionId, VChannel, i64),
    /// `analyze_stats/{task}/{version}/{c}/{p}/{field}/centroids`
    AnalyzeCentroids(TaskId, i64, CollectionId, PartitionId, FieldId),
    /// `analyze_stats/{task}/{version}/{c}/{p}/{field}/{s}/offset_mapping`
    AnalyzeOffsets(TaskId, i64, CollectionId, PartitionId, FieldId, SegmentId),
    /// `snapshots/{c}/metadata/{snapshot}.json`
    SnapshotMetadata(CollectionId, SnapshotId),
    /// `snapshots/{c}/manifests/{snapshot}/{s}.avro`
    SnapshotManifest(CollectionId, SnapshotId, SegmentId),
    /// Milvus's, but not described.
    Opaque(Opaque, String),
}

/// What an object belongs to, as far as its path says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The collection. Build-rooted index paths do not name it.
    pub collection: Option<CollectionId>,
    /// The partition.
    pub partition: Option<PartitionId>,
    /// The segment.
    pub segment: Option<SegmentId>,
    /// The index build.
    pub build: Option<BuildId>,
    /// The snapshot.
    pub snapshot: Option<SnapshotId>,
}

impl ObjPath {
    /// Reads a whole key. `root` is `B/` with or without its trailing slash.
    #[must_use]
    pub fn parse(root: &str, key: &str) -> ParsedPath {
        let found = key
            .strip_prefix("__explore_temp__/")
            .and_then(|rest| {
                Parts(rest)
                    .rest()
                    .map(|rest| Self::Opaque(Opaque::ExploreTemp, rest))
            })
            .or_else(|| strip_root(root, key).and_then(parse));
        found.map_or(ParsedPath::Unknown, ParsedPath::Known)
    }

    /// The whole key under `root`.
    #[must_use]
    pub fn to_key(&self, root: &str) -> ObjectKey {
        let below = self.to_string();
        ObjectKey(match self {
            Self::Opaque(Opaque::ExploreTemp, _) => below,
            _ => join_root(root, &below),
        })
    }

    /// What it belongs to.
    #[must_use]
    pub fn owner(&self) -> Owner {
        let segment = |c: &CollectionId, p: &PartitionId, s: &SegmentId| Owner {
            collection: Some(*c),
            partition: Some(*p),
            segment: Some(*s),
            ..Owner::default()
        };
        match self {
            Self::InsertLog(c, p, s, ..)
            | Self::StatsLog(c, p, s, ..)
            | Self::DeltaLog(c, p, s, _)
            | Self::Bm25Log(c, p, s, ..)
            | Self::SegmentManifest(c, p, s, _)
            | Self::SegmentData(c, p, s, _)
            | Self::SegmentDelta(c, p, s, _)
            | Self::SegmentStats(c, p, s, _)
            | Self::SegmentIndex(c, p, s, _)
            | Self::AnalyzeOffsets(_, _, c, p, _, s) => segment(c, p, s),
            Self::Lob(c, p, ..)
            | Self::PartitionStats(c, p, ..)
            | Self::AnalyzeCentroids(_, _, c, p, _) => Owner {
                collection: Some(*c),
                partition: Some(*p),
                ..Owner::default()
            },
            Self::IndexFile(f) => Owner {
                partition: Some(f.partition),
                segment: Some(f.segment),
                build: Some(f.build),
                ..Owner::default()
            },
            Self::IndexFileV1(c, f) => Owner {
                build: Some(f.build),
                ..segment(c, &f.partition, &f.segment)
            },
            Self::TextLog(f) | Self::JsonKeyIndex(f) | Self::JsonStats(_, f) => Owner {
                build: Some(f.build),
                ..segment(&f.collection, &f.partition, &f.segment)
            },
            Self::SnapshotMetadata(c, id) => Owner {
                collection: Some(*c),
                snapshot: Some(*id),
                ..Owner::default()
            },
            Self::SnapshotManifest(c, id, s) => Owner {
                collection: Some(*c),
                snapshot: Some(*id),
                segment: Some(*s),
                ..Owner::default()
            },
            Self::Opaque(..) => Owner::default(),
        }
    }
}
