//! Every object Milvus keeps in the bucket, as one type, in both directions (`spec/layout.md` §7.2, §7.5, §7.6).
//!
//! `B/`, the root before every path, is `minio.rootPath` (possibly empty, possibly holding a word such as `insert_log`)
//! or an absolute `localStorage.path`. It is taken off and put back as a whole, so that its content never matters and a
//! leading `/` survives. An object that fits no shape exactly is [`ParsedPath::Unknown`]: never guessed at, and so never
//! deleted (law 5).

mod check;
mod manifest;
mod rewrite;

use std::fmt;

use super::keys::number;
use crate::engine::ids::{
    BuildId, CollectionId, FieldId, LogId, ObjectKey, PartitionId, SegmentId, SnapshotId, TaskId,
    VChannel,
};
pub use check::{Location, check};
pub use manifest::{ManifestPath, SegmentBase, StorageManifest};
pub use rewrite::{Target, rewrite, rewrite_manifest};

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

/// The path below the root.
impl fmt::Display for ObjPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InsertLog(c, p, s, field, log) => {
                write!(f, "insert_log/{c}/{p}/{s}/{field}/{log}")
            }
            Self::StatsLog(c, p, s, field, log) => write!(f, "stats_log/{c}/{p}/{s}/{field}/{log}"),
            Self::DeltaLog(c, p, s, log) => write!(f, "delta_log/{c}/{p}/{s}/{log}"),
            Self::Bm25Log(c, p, s, field, log) => write!(f, "bm25_stats/{c}/{p}/{s}/{field}/{log}"),
            Self::SegmentManifest(c, p, s, version) => {
                write!(
                    f,
                    "insert_log/{c}/{p}/{s}/_metadata/manifest-{version}.avro"
                )
            }
            Self::SegmentData(c, p, s, file) => write!(f, "insert_log/{c}/{p}/{s}/_data/{file}"),
            Self::SegmentDelta(c, p, s, log) => write!(f, "insert_log/{c}/{p}/{s}/_delta/{log}"),
            Self::SegmentStats(c, p, s, file) => write!(f, "insert_log/{c}/{p}/{s}/_stats/{file}"),
            Self::SegmentIndex(c, p, s, file) => write!(f, "insert_log/{c}/{p}/{s}/_index/{file}"),
            Self::Lob(c, p, field, file) => {
                write!(f, "insert_log/{c}/{p}/lobs/{field}/_data/{file}")
            }
            Self::IndexFile(i) => {
                write!(
                    f,
                    "index_files/{}/{}/{}/{}/{}",
                    i.build, i.version, i.partition, i.segment, i.file
                )
            }
            Self::IndexFileV1(c, i) => {
                write!(
                    f,
                    "index_v1/{c}/{}/{}/{}/{}/{}",
                    i.partition, i.segment, i.build, i.version, i.file
                )
            }
            Self::TextLog(i) => write!(f, "text_log/{i}"),
            Self::JsonKeyIndex(i) => write!(f, "json_key_index_log/{i}"),
            Self::JsonStats(format, i) => write!(f, "json_stats/{format}/{i}"),
            Self::PartitionStats(c, p, v, version) => write!(f, "part_stats/{c}/{p}/{v}/{version}"),
            Self::AnalyzeCentroids(task, version, c, p, field) => {
                write!(
                    f,
                    "analyze_stats/{task}/{version}/{c}/{p}/{field}/centroids"
                )
            }
            Self::AnalyzeOffsets(task, version, c, p, field, s) => {
                write!(
                    f,
                    "analyze_stats/{task}/{version}/{c}/{p}/{field}/{s}/offset_mapping"
                )
            }
            Self::SnapshotMetadata(c, id) => write!(f, "snapshots/{c}/metadata/{id}.json"),
            Self::SnapshotManifest(c, id, s) => write!(f, "snapshots/{c}/manifests/{id}/{s}.avro"),
            Self::Opaque(area, rest) => write!(f, "{}/{rest}", area.prefix()),
        }
    }
}

impl fmt::Display for FieldIndexFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}/{}/{}/{}/{}",
            self.build,
            self.version,
            self.collection,
            self.partition,
            self.segment,
            self.field,
            self.file
        )
    }
}

/// The key below the root, or `None` when it is elsewhere.
fn strip_root<'a>(root: &str, key: &'a str) -> Option<&'a str> {
    let bare = root.trim_end_matches('/');
    if bare.is_empty() && !root.starts_with('/') {
        return Some(key);
    }
    key.strip_prefix(bare)?.strip_prefix('/')
}

fn join_root(root: &str, below: &str) -> String {
    let bare = root.trim_end_matches('/');
    if bare.is_empty() && !root.starts_with('/') {
        below.to_owned()
    } else {
        format!("{bare}/{below}")
    }
}

struct Parts<'a>(&'a str);

impl<'a> Parts<'a> {
    fn part(&mut self) -> Option<&'a str> {
        let (part, rest) = self.0.split_once('/').unwrap_or((self.0, ""));
        self.0 = rest;
        (!part.is_empty()).then_some(part)
    }

    /// A part that must be followed by another.
    fn folder(&mut self) -> Option<&'a str> {
        let (part, rest) = self.0.split_once('/')?;
        self.0 = rest;
        (!part.is_empty()).then_some(part)
    }

    fn id<T: From<i64>>(&mut self) -> Option<T> {
        number(self.folder()?).map(T::from)
    }

    fn last_id<T: From<i64>>(&mut self) -> Option<T> {
        number(self.0).map(T::from)
    }

    /// Everything left, when it is a clean relative path.
    fn rest(&self) -> Option<String> {
        let clean = self
            .0
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
        clean.then(|| self.0.to_owned())
    }
}

fn parse(below: &str) -> Option<ObjPath> {
    let mut p = Parts(below);
    Some(match p.folder()? {
        "insert_log" => return insert_log(p),
        "stats_log" => ObjPath::StatsLog(p.id()?, p.id()?, p.id()?, p.id()?, p.last_id()?),
        "delta_log" => ObjPath::DeltaLog(p.id()?, p.id()?, p.id()?, p.last_id()?),
        "bm25_stats" => ObjPath::Bm25Log(p.id()?, p.id()?, p.id()?, p.id()?, p.last_id()?),
        "index_files" => ObjPath::IndexFile(IndexFile {
            build: p.id()?,
            version: p.id()?,
            partition: p.id()?,
            segment: p.id()?,
            file: p.rest()?,
        }),
        "index_v1" => {
            let (collection, partition, segment) = (p.id()?, p.id()?, p.id()?);
            let (build, version) = (p.id()?, p.id()?);
            ObjPath::IndexFileV1(
                collection,
                IndexFile {
                    build,
                    version,
                    partition,
                    segment,
                    file: p.rest()?,
                },
            )
        }
        "text_log" => ObjPath::TextLog(field_index(p)?),
        "json_key_index_log" => ObjPath::JsonKeyIndex(field_index(p)?),
        "json_stats" => ObjPath::JsonStats(p.id()?, field_index(p)?),
        "part_stats" => {
            let (c, partition) = (p.id()?, p.id()?);
            ObjPath::PartitionStats(c, partition, VChannel(p.folder()?.to_owned()), p.last_id()?)
        }
        "analyze_stats" => return analyze(p),
        "snapshots" => return snapshot(p),
        "wp" => ObjPath::Opaque(Opaque::Woodpecker, p.rest()?),
        "ngram_log" => ObjPath::Opaque(Opaque::NgramLog, p.rest()?),
        "raw_datas" => ObjPath::Opaque(Opaque::RawData, p.rest()?),
        "external_refresh_results" => ObjPath::Opaque(Opaque::ExternalRefresh, p.rest()?),
        _ => return None,
    })
}

fn insert_log(mut p: Parts<'_>) -> Option<ObjPath> {
    let (c, partition) = (p.id()?, p.id()?);
    let segment = p.folder()?;
    if segment == "lobs" {
        let field = p.id()?;
        return (p.folder()? == "_data")
            .then(|| p.rest())
            .flatten()
            .map(|f| ObjPath::Lob(c, partition, field, f));
    }
    let s = SegmentId(number(segment)?);
    Some(match p.folder()? {
        "_metadata" => {
            let version = p.0.strip_prefix("manifest-")?.strip_suffix(".avro")?;
            ObjPath::SegmentManifest(c, partition, s, number(version)?)
        }
        "_data" => ObjPath::SegmentData(c, partition, s, p.rest()?),
        "_delta" => ObjPath::SegmentDelta(c, partition, s, p.last_id()?),
        "_stats" => ObjPath::SegmentStats(c, partition, s, p.rest()?),
        "_index" => ObjPath::SegmentIndex(c, partition, s, p.rest()?),
        field => ObjPath::InsertLog(c, partition, s, FieldId(number(field)?), p.last_id()?),
    })
}

fn field_index(mut p: Parts<'_>) -> Option<FieldIndexFile> {
    Some(FieldIndexFile {
        build: p.id()?,
        version: p.id()?,
        collection: p.id()?,
        partition: p.id()?,
        segment: p.id()?,
        field: p.id()?,
        file: p.rest()?,
    })
}

fn analyze(mut p: Parts<'_>) -> Option<ObjPath> {
    let (task, version, c, partition, field) = (p.id()?, p.id()?, p.id()?, p.id()?, p.id()?);
    if p.0 == "centroids" {
        return Some(ObjPath::AnalyzeCentroids(
            task, version, c, partition, field,
        ));
    }
    let s = p.id()?;
    (p.0 == "offset_mapping").then_some(ObjPath::AnalyzeOffsets(
        task, version, c, partition, field, s,
    ))
}

fn snapshot(mut p: Parts<'_>) -> Option<ObjPath> {
    let c = p.id()?;
    match p.part()? {
        "metadata" => Some(ObjPath::SnapshotMetadata(
            c,
            SnapshotId(number(p.0.strip_suffix(".json")?)?),
        )),
        "manifests" => {
            let id = p.id()?;
            Some(ObjPath::SnapshotManifest(
                c,
                id,
                SegmentId(number(p.0.strip_suffix(".avro")?)?),
            ))
        }
        _ => None,
    }
}
