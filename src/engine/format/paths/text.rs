//! [`ObjPath`] to text and back, root excluded.

use std::fmt;

use super::{FieldIndexFile, IndexFile, ObjPath, Opaque};
use crate::engine::format::keys::number;
use crate::engine::ids::{FieldId, SegmentId, SnapshotId, VChannel};

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
pub(super) fn strip_root<'a>(root: &str, key: &'a str) -> Option<&'a str> {
    let bare = root.trim_end_matches('/');
    if bare.is_empty() && !root.starts_with('/') {
        return Some(key);
    }
    key.strip_prefix(bare)?.strip_prefix('/')
}

pub(super) fn join_root(root: &str, below: &str) -> String {
    let bare = root.trim_end_matches('/');
    if bare.is_empty() && !root.starts_with('/') {
        below.to_owned()
    } else {
        format!("{bare}/{below}")
    }
}

pub(super) struct Parts<'a>(pub(super) &'a str);

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

    pub(super) fn id<T: From<i64>>(&mut self) -> Option<T> {
        number(self.folder()?).map(T::from)
    }

    pub(super) fn last_id<T: From<i64>>(&mut self) -> Option<T> {
        number(self.0).map(T::from)
    }

    /// Everything left, when it is a clean relative path.
    pub(super) fn rest(&self) -> Option<String> {
        let clean = self
            .0
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
        clean.then(|| self.0.to_owned())
    }
}

pub(super) fn parse(below: &str) -> Option<ObjPath> {
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
