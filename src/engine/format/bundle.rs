//! The self-contained bundle that an export writes and an external restore reads (`spec/snapshot.md` §2.1, §2.7, §3.9).
//!
//! ```text
//! T = {target}/exports/{uuid}
//! T/snapshots/{c}/metadata/{s}.json          the commit mark, written last
//! T/snapshots/{c}/manifests/{s}/{segment}.avro
//! T/files/{key without the cluster's root}
//! T/_staging/metadata.json                   removed at the end
//! ```
//!
//! A bundle may be moved to another folder, bucket or provider as a whole: the place it is read from is taken from where its
//! metadata is, and every path inside is put there ([`Relocation`]).

use std::path::PathBuf;

use super::hex;
use super::manifest;
use super::paths::{Location, ObjPath, SegmentBase, StorageManifest, check};
use super::pb::data::{
    SegmentDescription, SnapshotLayout, SnapshotMetadata, StorageV2SegmentManifest,
};
use super::snapshot::{build_ids, manifest_key, metadata_key, pending_form};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, ObjectKey, SegmentId, SnapshotId};
use crate::engine::profile::Elsewhere;

/// Storage version of segments whose files a manifest of their own lists.
const STORAGE_V3: i64 = 3;

/// Where a bundle lies in its store: `T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    root: String,
}

fn join(root: &str, below: &str) -> String {
    match root.trim_end_matches('/') {
        "" if !root.starts_with('/') => below.to_owned(),
        root => format!("{root}/{below}"),
    }
}

/// 16 random bytes as a UUID of version 4.
#[must_use]
pub fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

/// The metadata of a bundle, and its manifests with their keys.
pub type Contents = (SnapshotMetadata, Vec<(ObjectKey, Vec<u8>)>);

impl Bundle {
    /// A new one below `prefix`, named by a UUID.
    #[must_use]
    pub fn new(prefix: &str, uuid: &str) -> Self {
        Self {
            root: join(prefix, &format!("exports/{uuid}")),
        }
    }

    /// One that lies at `root`.
    #[must_use]
    pub fn at(root: &str) -> Self {
        Self {
            root: root.trim_end_matches('/').to_owned(),
        }
    }

    /// `T`, without a trailing slash.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// `T/files`: what the cluster's root is for its data.
    #[must_use]
    pub fn files(&self) -> String {
        join(&self.root, "files")
    }

    /// The metadata JSON.
    #[must_use]
    pub fn metadata(&self, collection: CollectionId, snapshot: SnapshotId) -> ObjectKey {
        metadata_key(&self.root, collection, snapshot)
    }

    /// Where the metadata is written first.
    #[must_use]
    pub fn staging(&self) -> ObjectKey {
        ObjectKey(join(&self.root, "_staging/metadata.json"))
    }

    /// What the bundle's own metadata and manifests hold, from a snapshot whose paths lie under `root`. Every path of the segments
    /// must be whole. `uri` is the metadata's, as others will read it. Manifests with their keys, in the order of `manifest_list`.
    pub fn contents(
        &self,
        metadata: &SnapshotMetadata,
        segments: &[SegmentDescription],
        (root, bucket): (&str, &str),
        uri: &str,
    ) -> Result<Contents> {
        let Some(info) = &metadata.snapshot_info else {
            return Err(Error::new(
                ErrorKind::Internal,
                "a snapshot without its record cannot be exported",
            ));
        };
        let (collection, snapshot) = (CollectionId(info.collection_id), SnapshotId(info.id));
        let moved = Relocation::new(root, &self.files());
        let mut inside = segments.to_vec();
        let mut manifests = Vec::with_capacity(inside.len());
        for segment in &mut inside {
            moved.segment(segment, bucket)?;
            if segment.storage_version >= STORAGE_V3 {
                // Placeholders: the segment's own manifest names its files.
                segment.binlogs.clear();
            }
            let id = SegmentId(segment.segment_id);
            let key = manifest_key(&self.root, collection, snapshot, id);
            manifests.push((key, manifest::write_v4(segment)?));
        }
        let mut info = pending_form(info);
        uri.clone_into(&mut info.s3_location);
        let with_manifest = inside.iter().filter(|s| !s.manifest_path.is_empty());
        let mut out = SnapshotMetadata {
            format_version: manifest::CURRENT,
            snapshot_info: Some(info),
            collection: metadata.collection.clone(),
            indexes: metadata.indexes.clone(),
            manifest_list: manifests.iter().map(|(key, _)| key.0.clone()).collect(),
            storagev2_manifest_list: with_manifest
                .map(|s| StorageV2SegmentManifest {
                    segment_id: s.segment_id,
                    manifest: s.manifest_path.clone(),
                })
                .collect(),
            segment_ids: inside.iter().map(|s| s.segment_id).collect(),
            build_ids: build_ids(&inside).into_iter().map(|b| b.0).collect(),
            ..SnapshotMetadata::default()
        };
        out.set_layout(SnapshotLayout::SelfContained);
        Ok((out, manifests))
    }
}

/// Puts paths that lie under one root under another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocation {
    from: String,
    to: String,
}

impl Relocation {
    /// From below `from` to below `to`.
    #[must_use]
    pub fn new(from: &str, to: &str) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
        }
    }

    /// The way back.
    #[must_use]
    pub fn back(&self) -> Self {
        Self::new(&self.to, &self.from)
    }

    /// One path.
    pub fn path(&self, path: &str) -> Result<String> {
        let bare = self.from.trim_end_matches('/');
        let below = if bare.is_empty() && !self.from.starts_with('/') {
            Some(path)
        } else {
            path.strip_prefix(bare).and_then(|p| p.strip_prefix('/'))
        };
        below.map(|below| join(&self.to, below)).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "a self-contained snapshot names a path outside its bundle",
            )
            .with("path", super::mask::text(path))
            .with("bundle", super::mask::text(&self.from))
            .fix("export it again")
        })
    }

    /// Every path of a segment that may be opened. Text and JSON files of V3 segments are only names in their manifest.
    pub fn segment(&self, segment: &mut SegmentDescription, bucket: &str) -> Result<()> {
        let lists = [
            &mut segment.binlogs,
            &mut segment.deltalogs,
            &mut segment.statslogs,
            &mut segment.bm25_statslogs,
        ];
        let is_v3 = segment.storage_version >= STORAGE_V3;
        for (i, list) in lists.into_iter().enumerate() {
            if i == 0 && is_v3 {
                continue;
            }
            let logs = list.iter_mut().flat_map(|f| &mut f.binlogs);
            for log in logs.filter(|l| !l.log_path.is_empty()) {
                log.log_path = self.path(&log.log_path)?;
            }
        }
        let indexes = segment.index_files.iter_mut();
        let mut files: Vec<&mut String> = indexes.flat_map(|f| &mut f.index_file_paths).collect();
        if !is_v3 {
            files.extend(
                segment
                    .text_index_files
                    .values_mut()
                    .flat_map(|t| &mut t.files),
            );
            files.extend(
                segment
                    .json_key_index_files
                    .values_mut()
                    .flat_map(|j| &mut j.files),
            );
        }
        for file in files {
            *file = self.path(file)?;
        }
        if !segment.manifest_path.is_empty() {
            segment.manifest_path = self.manifest(&segment.manifest_path, bucket)?;
        }
        Ok(())
    }

    /// `manifest_path`, of V2 or V3. `bucket`: 2.6 wrote it before base paths.
    fn manifest(&self, text: &str, bucket: &str) -> Result<String> {
        Ok(match StorageManifest::parse(text)? {
            StorageManifest::Object(key) => self.path(&key)?,
            StorageManifest::Packed(mut packed) => {
                packed.base_path = match SegmentBase::parse(&self.from, bucket, &packed.base_path) {
                    Some(base) => base.to_path(&self.to),
                    None => self.path(&packed.base_path)?,
                };
                packed.to_string()
            }
        })
    }
}

/// A bundle whose metadata says that it lies elsewhere than it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    all: Relocation,
    files: Relocation,
}

impl Moved {
    /// Looks where the metadata `file` was found and where it thinks it is. `None`: at its place, empty, or no bundle.
    pub fn find(file: &str, metadata: &SnapshotMetadata) -> Result<Option<Self>> {
        let (Some(info), SnapshotLayout::SelfContained) =
            (&metadata.snapshot_info, metadata.layout())
        else {
            return Ok(None);
        };
        let (collection, id) = (CollectionId(info.collection_id), SnapshotId(info.id));
        let tail = ObjPath::SnapshotMetadata(collection, id).to_string();
        let misplaced = |what: &str| {
            Error::new(
                ErrorKind::Corrupt,
                format!("a self-contained snapshot's {what} is not at its own place in the bundle"),
            )
            .with("file", file)
            .fix("a bundle may be moved, but only as a whole: keep snapshots/…/metadata/….json and files/ side by side")
        };
        let found = file
            .strip_suffix(&tail)
            .ok_or_else(|| misplaced("metadata"))?;
        let Some(first) = metadata.manifest_list.first() else {
            return Ok(None);
        };
        let folder = format!("snapshots/{collection}/manifests/{id}/");
        let recorded = first
            .rfind(&folder)
            .and_then(|at| first.get(..at))
            .ok_or_else(|| misplaced("manifest"))?;
        if recorded == found {
            return Ok(None);
        }
        let bare = |root: &str| root.strip_suffix('/').unwrap_or(root).to_owned();
        let (from, to) = (Bundle::at(&bare(recorded)), Bundle::at(&bare(found)));
        Ok(Some(Self {
            all: Relocation::new(from.root(), to.root()),
            files: Relocation::new(&from.files(), &to.files()),
        }))
    }

    /// The paths of the metadata.
    pub fn metadata(&self, metadata: &mut SnapshotMetadata, bucket: &str) -> Result<()> {
        for path in &mut metadata.manifest_list {
            *path = self.all.path(path)?;
        }
        for entry in &mut metadata.storagev2_manifest_list {
            if !entry.manifest.is_empty() {
                entry.manifest = self.files.manifest(&entry.manifest, bucket)?;
            }
        }
        Ok(())
    }

    /// The paths of a segment as its manifest holds it: without `manifest_path`, which is the metadata's.
    pub fn segment(&self, segment: &mut SegmentDescription, bucket: &str) -> Result<()> {
        self.files.segment(segment, bucket)
    }
}

/// A place as it may be shown: without user, password, query and fragment.
fn shown(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match text.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => super::mask::text(text).into_owned(),
    }
}

fn bad(text: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("{:?} is no place for a bundle: {why}", shown(text)),
    )
    .fix("write a key of the own bucket, s3://bucket/prefix, http(s)://host/bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder")
}

/// A place as the operator writes it: the store, and the prefix in it. Credentials have no place in it.
pub fn parse_place(text: &str) -> Result<(Elsewhere, String)> {
    let trimmed = text.trim_end_matches('/');
    if let Some(path) = trimmed.strip_prefix("file://") {
        if !path.starts_with('/') {
            return Err(bad(text, "the folder is not absolute"));
        }
        check(path).map_err(|e| bad(text, e.what()))?;
        return Ok((Elsewhere::Folder(PathBuf::from(path)), String::new()));
    }
    let uri = match check(trimmed).map_err(|e| bad(text, e.what()))? {
        Location::Key => return Ok((Elsewhere::Here, trimmed.to_owned())),
        Location::Uri(uri) => uri,
    };
    let host = uri.host_str().unwrap_or_default().to_owned();
    // As written: parsing would encode what it finds odd.
    let (_, rest) = trimmed.split_once("://").unwrap_or_default();
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    if path.split('/').any(str::is_empty) && !path.is_empty() {
        return Err(bad(text, "it has an empty component"));
    }
    let first = || {
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if bucket.is_empty() {
            Err(bad(text, "the bucket's name is missing"))
        } else {
            Ok((bucket.to_owned(), prefix.to_owned()))
        }
    };
    let authority = match uri.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.clone(),
    };
    Ok(match uri.scheme() {
        "s3" => (
            Elsewhere::S3 {
                endpoint: None,
                bucket: host,
            },
            path.to_owned(),
        ),
        "gs" | "gcs" => (Elsewhere::Gcs { bucket: host }, path.to_owned()),
        "az" | "azure" if host.contains(".blob.") => {
            let (container, prefix) = first()?;
            let account = host.split('.').next().map(str::to_owned);
            (Elsewhere::Azure { account, container }, prefix)
        }
        "az" | "azure" => (
            Elsewhere::Azure {
                account: None,
                container: host,
            },
            path.to_owned(),
        ),
        scheme => {
            let (bucket, prefix) = first()?;
            let scheme = if scheme == "minio" { "https" } else { scheme };
            let endpoint = Some(format!("{scheme}://{authority}"));
            (Elsewhere::S3 { endpoint, bucket }, prefix)
        }
    })
}

/// A metadata URI as the operator writes it: the place of the bundle, and which snapshot it is.
pub fn parse_metadata_uri(text: &str) -> Result<(String, CollectionId, SnapshotId)> {
    let wrong = || {
        bad(
            text,
            "it must end in snapshots/{collection id}/metadata/{snapshot id}.json",
        )
    };
    let at = text.rfind("snapshots/").ok_or_else(wrong)?;
    let (place, tail) = text.split_at(at);
    match ObjPath::parse("", tail).known() {
        Some(ObjPath::SnapshotMetadata(collection, snapshot))
            if place.is_empty() || place.ends_with('/') =>
        {
            let place = place.strip_suffix('/').unwrap_or(place).to_owned();
            if !place.is_empty() {
                // Also here, where it is only taken apart: what holds a password goes no further.
                parse_place(&place)?;
            }
            Ok((place, collection, snapshot))
        }
        _ => Err(wrong()),
    }
}
