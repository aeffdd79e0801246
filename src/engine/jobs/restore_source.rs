//! Reading what a restore starts from: the snapshot's record, its files, the listing of its objects, the target database.
//! Everything here only reads.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use prost::Message;
use sha2::{Digest, Sha256};

use super::restore_map::Source;
use super::restore_v3;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::bundle::Moved;
use crate::engine::format::codec::is_tombstone;
pub(super) use crate::engine::format::hex;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::{ObjPath, SegmentBase, StorageManifest};
use crate::engine::format::{manifest, pb, snapshot};
use crate::engine::ids::{CollectionId, ObjectKey, SegmentId, SnapshotId};
use crate::engine::meta::{KeyValue, MetaReader, Page, Span};
use crate::engine::objects::{ObjectMeta, ObjectRead};
use crate::engine::profile::Roots;

/// The right to look.
#[derive(Clone, Copy)]
pub struct Reads<'a> {
    /// Metadata.
    pub meta: &'a MetaReader,
    /// Objects.
    pub objects: &'a ObjectRead,
    /// Key roots.
    pub roots: &'a Roots,
}

/// Manifests read at once.
const READS: usize = 16;
/// Prefixes listed at once.
const LISTS: usize = 8;

impl Reads<'_> {
    /// A whole family.
    pub async fn family(&self, family: Family) -> Result<Page> {
        self.meta
            .range_all(&Span::prefix(&family.prefix(self.roots)))
            .await
    }

    /// A family below some ids.
    pub async fn under(&self, family: Family, ids: &[i64]) -> Result<Page> {
        self.meta
            .range_all(&Span::prefix(&family.under(self.roots, ids)))
            .await
    }

    /// One record; tombstones read as absent.
    pub async fn record(&self, key: &Key) -> Result<Option<KeyValue>> {
        let found = self.meta.get(&key.to_key(self.roots)).await?;
        Ok(found.filter(|kv| !is_tombstone(key.family(), &kv.value)))
    }

    /// The snapshot's record. Its key holds the collection, so the family is searched by id.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<KeyValue> {
        let page = self.family(Family::Snapshot).await?;
        page.kvs
            .into_iter()
            .find(|kv| {
                matches!(
                    Key::parse(self.roots, &kv.key.0).known(),
                    Some(Key::Snapshot(_, found)) if found == id
                )
            })
            .ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("snapshot {id} does not exist"))
                    .fix("list the snapshots: falconer get snapshots")
            })
    }

    /// Reads the snapshot's files, strictly: any doubt is an error that names the file.
    pub async fn source(&self, record: &KeyValue) -> Result<Source> {
        let info = pb::data::SnapshotInfo::decode(record.value.clone()).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!("snapshot record {} cannot be decoded", record.key),
            )
            .caused_by(e)
        })?;
        self.read_source(info).await
    }

    /// As [`source`](Self::source), for a decoded record.
    pub async fn read_source(&self, record: pb::data::SnapshotInfo) -> Result<Source> {
        let location = match record.s3_location.as_str() {
            "" => {
                ObjPath::SnapshotMetadata(CollectionId(record.collection_id), SnapshotId(record.id))
                    .to_key(self.objects.root())
            }
            key => ObjectKey(key.to_owned()),
        };
        let json = self.objects.get(&location).await?;
        let mut hash = Sha256::new();
        hash.update(&json);
        let (metadata, segments) = self.manifests(&location, &json, &mut hash).await?;
        let mut source = Source {
            record,
            metadata,
            segments,
            declared: BTreeMap::new(),
            side: snapshot::read_side(&json),
            unknown: snapshot::unknown_members(&location.0, &json)?,
            outside: None,
            fingerprint: String::new(),
        };
        self.declare(&mut source, &mut hash).await?;
        source.fingerprint = hex(&hash.finalize());
        Ok(source)
    }

    /// The metadata JSON and all its manifests, checked against each other.
    async fn manifests(
        &self,
        location: &ObjectKey,
        json: &[u8],
        hash: &mut Sha256,
    ) -> Result<(
        pb::data::SnapshotMetadata,
        Vec<pb::data::SegmentDescription>,
    )> {
        let mut metadata = snapshot::read_metadata(&location.0, json)?;
        let bucket = self.objects.bucket();
        let moved = Moved::find(&location.0, &metadata)?;
        if let Some(moved) = &moved {
            moved.metadata(&mut metadata, bucket)?;
        }
        let keys = metadata
            .manifest_list
            .iter()
            .map(|key| ObjectKey(key.clone()))
            .collect();
        let mut manifests = Vec::with_capacity(metadata.manifest_list.len());
        for (key, bytes) in self.fetch(keys).await? {
            hash.update(&bytes);
            let mut segment = manifest::read(&key.0, &bytes, metadata.format_version)?;
            if let Some(moved) = &moved {
                moved.segment(&mut segment, bucket)?;
            }
            manifests.push((key.0, segment));
        }
        let joined = snapshot::join(&location.0, metadata, manifests)?;
        Ok((joined.metadata, joined.segments))
    }

    async fn fetch(&self, keys: Vec<ObjectKey>) -> Result<Vec<(ObjectKey, Bytes)>> {
        stream::iter(keys)
            .map(|key| async move { Ok((key.clone(), self.objects.get(&key).await?)) }.boxed())
            .buffered(READS)
            .try_collect()
            .await
    }

    /// Fills in what storage manifests declare.
    pub(super) async fn declare(&self, source: &mut Source, hash: &mut Sha256) -> Result<()> {
        let root = self.objects.root();
        let mut wanted = Vec::new();
        for segment in &source.segments {
            if segment.manifest_path.is_empty() {
                continue;
            }
            if let StorageManifest::Packed(packed) = StorageManifest::parse(&segment.manifest_path)?
            {
                let base = SegmentBase::parse(root, self.objects.bucket(), &packed.base_path)
                    .ok_or_else(|| {
                        Error::new(
                            ErrorKind::Corrupt,
                            format!(
                                "segment {}: {} is not a segment's folder below root {root:?}",
                                segment.segment_id, packed.base_path
                            ),
                        )
                    })?
                    .to_path(root);
                wanted.push((SegmentId(segment.segment_id), base, packed.ver));
            }
        }
        let files = wanted
            .iter()
            .map(|(_, base, ver)| ObjectKey(format!("{base}/_metadata/manifest-{ver}.avro")))
            .collect();
        let fetched = self.fetch(files).await?;
        for ((segment, base, _), (file, bytes)) in wanted.into_iter().zip(fetched) {
            hash.update(&bytes);
            let declared = restore_v3::declared(&file, &base, &bytes)?;
            let mut keys: BTreeSet<ObjectKey> = declared.files.into_iter().collect();
            keys.insert(file);
            for folder in declared.folders {
                let found = self.list(&folder).await?;
                if found.is_empty() {
                    // Named as a missing object, not skipped.
                    keys.insert(folder);
                } else {
                    keys.extend(found.into_keys());
                }
            }
            source.declared.insert(segment, keys.into_iter().collect());
        }
        Ok(())
    }

    /// Keys and sizes below a prefix.
    pub async fn list(&self, prefix: &ObjectKey) -> Result<BTreeMap<ObjectKey, u64>> {
        self.below(prefix, |meta| (meta.key, meta.size)).await
    }

    /// Keys and sizes below many prefixes.
    pub async fn list_all(
        &self,
        prefixes: impl IntoIterator<Item = ObjectKey>,
    ) -> Result<BTreeMap<ObjectKey, u64>> {
        self.all_below(prefixes, |meta| (meta.key, meta.size)).await
    }

    /// The same with entity tags, for those who will compare copies with them.
    pub async fn list_tagged(
        &self,
        prefixes: impl IntoIterator<Item = ObjectKey>,
    ) -> Result<BTreeMap<ObjectKey, (u64, Option<String>)>> {
        self.all_below(prefixes, |meta| (meta.key, (meta.size, meta.etag)))
            .await
    }

    async fn below<T>(
        &self,
        prefix: &ObjectKey,
        keep: fn(ObjectMeta) -> (ObjectKey, T),
    ) -> Result<BTreeMap<ObjectKey, T>> {
        self.objects
            .list(prefix, None)
            .map_ok(keep)
            .try_collect()
            .await
    }

    async fn all_below<T: Send>(
        &self,
        prefixes: impl IntoIterator<Item = ObjectKey>,
        keep: fn(ObjectMeta) -> (ObjectKey, T),
    ) -> Result<BTreeMap<ObjectKey, T>> {
        let prefixes: BTreeSet<ObjectKey> = prefixes.into_iter().collect();
        let parts: Vec<BTreeMap<ObjectKey, T>> = stream::iter(prefixes)
            .map(|prefix| async move { self.below(&prefix, keep).await }.boxed())
            .buffer_unordered(LISTS)
            .try_collect()
            .await?;
        Ok(parts.into_iter().flatten().collect())
    }
}

/// The prefixes to list to see all of these objects: the folder down to the segment or the build, never a file each.
#[must_use]
pub fn prefixes<'a>(
    root: &str,
    keys: impl IntoIterator<Item = &'a ObjectKey>,
) -> BTreeSet<ObjectKey> {
    keys.into_iter()
        .map(|key| {
            let parts: Vec<&str> = key.0.split('/').collect();
            let depth = match ObjPath::parse(root, &key.0).known() {
                // {kind}/{c}/{p}/{s}; insert_log/{c}/{p}/lobs is as deep
                Some(
                    ObjPath::InsertLog(..)
                    | ObjPath::StatsLog(..)
                    | ObjPath::DeltaLog(..)
                    | ObjPath::Bm25Log(..)
                    | ObjPath::SegmentManifest(..)
                    | ObjPath::SegmentData(..)
                    | ObjPath::SegmentDelta(..)
                    | ObjPath::SegmentStats(..)
                    | ObjPath::SegmentIndex(..)
                    | ObjPath::Lob(..),
                ) => 4,
                // {kind}/{b}, or index_v1/{c}
                Some(
                    ObjPath::IndexFile(_)
                    | ObjPath::IndexFileV1(..)
                    | ObjPath::TextLog(_)
                    | ObjPath::JsonKeyIndex(_),
                ) => 2,
                // json_stats/{format}/{b}
                Some(ObjPath::JsonStats(..)) => 3,
                _ => return parent(&key.0),
            };
            let below_root = if root.is_empty() {
                0
            } else {
                root.trim_end_matches('/').split('/').count()
            };
            ObjectKey(
                parts
                    .iter()
                    .take(below_root + depth)
                    .copied()
                    .collect::<Vec<_>>()
                    .join("/"),
            )
        })
        .collect()
}

fn parent(key: &str) -> ObjectKey {
    ObjectKey(
        key.rsplit_once('/')
            .map_or(key, |(folder, _)| folder)
            .to_owned(),
    )
}
