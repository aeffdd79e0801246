//! Reading what snapshots refer to, and the one place where it is kept: the engine's own task, a plan and a pass fill and ask the same
//! [`Keeper`]. Only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::restore_files::sources_of;
use super::restore_map::Source;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::{ObjPath, SegmentBase, StorageManifest};
use crate::engine::format::{manifest, pb, snapshot};
use crate::engine::ids::{BuildId, ObjectKey, SegmentId, SnapshotId, UnixMs};
use crate::engine::model::facts::Reference;
use crate::engine::model::references::{Collecting, Extent, Index, Record, References, Status};
use crate::engine::objects::ObjectRead;

/// Manifests read at once.
const READS: usize = 16;
/// Snapshots read at once, when each is one small file.
const SNAPSHOTS: usize = 8;

/// The reference index of one attach. Clones share it.
#[derive(Clone)]
pub struct Keeper(Arc<watch::Sender<Arc<Index>>>);

impl Default for Keeper {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Arc::default()).0))
    }
}

impl Keeper {
    /// As it is now, and as it becomes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Index>> {
        self.0.subscribe()
    }

    /// As it is now.
    #[must_use]
    pub fn now(&self) -> Arc<Index> {
        self.0.borrow().clone()
    }

    /// Takes in the records of the committed snapshots, all of them.
    pub fn follow(&self, records: impl IntoIterator<Item = Record>, now: UnixMs) {
        self.0
            .send_if_modified(|index| Arc::make_mut(index).follow(records, now));
    }

    /// Reads these, as far as each says, and keeps what comes of it. A snapshot that is known that far already is not read again.
    ///
    /// The error is that of a store that does not answer. It says nothing about a snapshot, but is kept as a failure too: until it
    /// has been read, nothing is known.
    pub async fn read(
        &self,
        objects: &ObjectRead,
        wanted: Vec<(Record, Extent)>,
        now: UnixMs,
    ) -> Result<()> {
        self.0.send_if_modified(|index| {
            let index = Arc::make_mut(index);
            let new = wanted.iter().filter(|(record, _)| index.learn(record, now));
            new.count() > 0
        });
        let known = self.now();
        let wanted: Vec<_> = wanted
            .into_iter()
            .filter(|(record, extent)| !is_known(&known, record, *extent))
            .collect();
        // Manifests are read many at once already.
        let whole = wanted.iter().any(|(_, extent)| *extent == Extent::Files);
        let reads: Vec<_> = wanted
            .into_iter()
            .map(|(record, extent)| {
                async move {
                    let read = read(objects, &record, extent).await;
                    (record, read)
                }
                .boxed()
            })
            .collect();
        let mut reads = stream::iter(reads).buffer_unordered(if whole { 1 } else { SNAPSHOTS });
        let mut silent = None;
        while let Some((record, read)) = reads.next().await {
            let (read, error) = match read {
                Ok(refs) => (Ok(refs), None),
                Err(e) => (Err(e.to_string()), Some(e)),
            };
            self.0.send_modify(|index| {
                Arc::make_mut(index).took(&record, read, now);
            });
            if let Some(e) = error.filter(Error::is_transient) {
                silent = Some(e);
                break;
            }
        }
        silent.map_or(Ok(()), Err)
    }

    /// Takes in what a strict reading of a snapshot by somebody else came to: a restore reads all of it anyway.
    pub fn took(
        &self,
        record: &Record,
        read: std::result::Result<References, String>,
        now: UnixMs,
    ) {
        self.0.send_modify(|index| {
            let index = Arc::make_mut(index);
            index.learn(record, now);
            index.took(record, read, now);
        });
    }

    /// What verdicts see of a snapshot.
    #[must_use]
    pub fn reference(&self, record: &Record) -> Reference {
        let index = self.0.borrow();
        match index.get(record.id) {
            Some(entry) if entry.record.location == record.location => entry.reference(),
            _ => Reference::NotLoaded,
        }
    }
}

fn is_known(index: &Index, record: &Record, extent: Extent) -> bool {
    index.get(record.id).is_some_and(|entry| {
        entry.record.location == record.location
            && matches!(&entry.status, Status::Loaded { refs, .. } if refs.extent >= extent)
    })
}

/// Reads a snapshot's files, at least as far as `extent`, strictly: any doubt is an error that names the file. A JSON from before ids
/// were listed gives them by the names of its manifests (defect D60).
pub async fn read(objects: &ObjectRead, record: &Record, extent: Extent) -> Result<References> {
    let (location, metadata) = metadata(objects, record).await?;
    let mut all = Collecting::default();
    // The JSON's own lists first: they hold even where a manifest says less.
    for id in snapshot::segment_ids(&location.0, &metadata)? {
        all.segment(id);
    }
    for id in &metadata.build_ids {
        all.build(BuildId(*id));
    }
    if extent == Extent::Ids && !metadata.manifest_list.is_empty() {
        return Ok(all.done(Extent::Ids));
    }
    elsewhere(objects, &location, &metadata, record.id, &mut all);
    manifests(objects, &location, &metadata, &mut |segment| {
        one(objects, segment, &mut all)
    })
    .await?;
    Ok(all.done(Extent::Files))
}

/// The snapshot's own files that do not lie under its own id: whoever looks at them by their names takes them for another's.
fn elsewhere(
    objects: &ObjectRead,
    location: &ObjectKey,
    metadata: &pb::data::SnapshotMetadata,
    id: SnapshotId,
    all: &mut Collecting,
) {
    let root = objects.root();
    let manifests = metadata.manifest_list.iter().map(String::as_str);
    for key in manifests.chain([location.0.as_str()]) {
        let owner = ObjPath::parse(root, key).known().map(|path| path.owner());
        if owner.is_none_or(|owner| owner.snapshot != Some(id)) {
            all.object(&ObjectKey(key.to_owned()));
        }
    }
}

/// What a snapshot that was read strictly and whole refers to: what [`read`] finds as far as [`Extent::Files`], without reading again.
pub fn of_source(objects: &ObjectRead, source: &Source) -> Result<References> {
    let mut all = Collecting::default();
    let location = ObjectKey(source.record.s3_location.clone());
    elsewhere(objects, &location, &source.metadata, source.id(), &mut all);
    for id in &source.metadata.build_ids {
        all.build(BuildId(*id));
    }
    for segment in &source.segments {
        one(objects, segment, &mut all)?;
    }
    Ok(all.done(Extent::Files))
}

/// Calls `each` with the name of every object that a snapshot's manifests name; of a V3 segment with its storage manifest's.
pub async fn names(
    objects: &ObjectRead,
    record: &Record,
    each: &mut (dyn FnMut(ObjectKey) + Send),
) -> Result<()> {
    let (location, metadata) = metadata(objects, record).await?;
    let root = objects.root();
    manifests(objects, &location, &metadata, &mut |segment| {
        let declared = match storage(objects, segment)? {
            Some((base, ver)) => {
                let path = ObjPath::SegmentManifest(base.0, base.1, base.2, ver);
                each(path.to_key(root));
                Some([].as_slice())
            }
            None => None,
        };
        let paths = sources_of(segment, declared, root)?;
        for path in &paths {
            each(path.to_key(root));
        }
        Ok(())
    })
    .await
}

async fn metadata(
    objects: &ObjectRead,
    record: &Record,
) -> Result<(ObjectKey, pb::data::SnapshotMetadata)> {
    let location = if record.location.is_empty() {
        snapshot::metadata_key(objects.root(), record.collection, record.id)
    } else {
        ObjectKey(record.location.to_string())
    };
    let json = objects.get(&location).await?;
    let metadata = snapshot::read_metadata(&location.0, &json)?;
    Ok((location, metadata))
}

fn corrupt(file: &str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, why).with("file", file).fix(
        "the snapshot's files are damaged or mixed up: restore them from a backup of the bucket, or drop the snapshot",
    )
}

/// Every manifest, each forgotten once it is counted: a snapshot of a hundred thousand segments takes no more than one of ten.
async fn manifests(
    objects: &ObjectRead,
    location: &ObjectKey,
    metadata: &pb::data::SnapshotMetadata,
    each: &mut (dyn FnMut(&pb::data::SegmentDescription) -> Result<()> + Send),
) -> Result<()> {
    let storage: BTreeMap<i64, &str> = metadata
        .storagev2_manifest_list
        .iter()
        .map(|m| (m.segment_id, m.manifest.as_str()))
        .collect();
    let version = metadata.format_version;
    let reads: Vec<_> = metadata
        .manifest_list
        .iter()
        .map(|key| {
            async move {
                let bytes = objects.get(&ObjectKey(key.clone())).await?;
                manifest::read(key, &bytes, version).map(|segment| (key, segment))
            }
            .boxed()
        })
        .collect();
    let mut reads = stream::iter(reads).buffered(READS);
    let mut found = BTreeSet::new();
    while let Some((key, mut segment)) = reads.try_next().await? {
        let id = segment.segment_id;
        if !key.ends_with(&format!("/{id}.avro")) {
            return Err(corrupt(
                key,
                format!("the manifest holds segment {id}, its name says otherwise"),
            ));
        }
        if !found.insert(id) {
            return Err(corrupt(key, format!("segment {id} is in two manifests")));
        }
        if let Some(path) = storage.get(&id) {
            (*path).clone_into(&mut segment.manifest_path);
        }
        each(&segment)?;
    }
    let listed: BTreeSet<i64> = metadata.segment_ids.iter().copied().collect();
    if let Some(id) = storage.keys().find(|id| !found.contains(*id)) {
        return Err(corrupt(
            &location.0,
            format!("storagev2_manifest_list names segment {id}, which has no manifest"),
        ));
    }
    match listed.symmetric_difference(&found).next() {
        Some(id) if !listed.is_empty() => Err(corrupt(
            &location.0,
            format!("segment_ids and the manifests differ in segment {id}"),
        )),
        _ => Ok(()),
    }
}

/// A V3 segment's folder and the version of its storage manifest.
fn storage(
    objects: &ObjectRead,
    segment: &pb::data::SegmentDescription,
) -> Result<Option<(SegmentBase, i64)>> {
    if segment.manifest_path.is_empty() {
        return Ok(None);
    }
    let StorageManifest::Packed(packed) = StorageManifest::parse(&segment.manifest_path)? else {
        return Ok(None);
    };
    let base = SegmentBase::parse(objects.root(), objects.bucket(), &packed.base_path);
    match base {
        Some(base) => Ok(Some((base, packed.ver))),
        None => Err(corrupt(
            &packed.base_path,
            format!(
                "segment {}: its base_path is not a segment's folder below root {:?}",
                segment.segment_id,
                objects.root()
            ),
        )),
    }
}

/// What one segment's manifest refers to.
fn one(
    objects: &ObjectRead,
    segment: &pb::data::SegmentDescription,
    all: &mut Collecting,
) -> Result<()> {
    let root = objects.root();
    all.segment(SegmentId(segment.segment_id));
    // Everything below a V3 segment's folder names that segment in its path; only what the record itself lists is left to take in. Its
    // LOBs are shared with the whole partition and belong to nobody that any rule could collect.
    let base = storage(objects, segment)?;
    if let Some((base, _)) = base {
        all.segment(base.2);
    }
    let declared = base.map(|_| [].as_slice());
    for path in sources_of(segment, declared, root)? {
        if let ObjPath::Opaque(..) = path {
            continue;
        }
        all.file(&path, root);
    }
    for index in &segment.index_files {
        all.build(BuildId(index.build_id));
    }
    for stats in segment.text_index_files.values() {
        all.build(BuildId(stats.build_id));
    }
    for stats in segment.json_key_index_files.values() {
        all.build(BuildId(stats.build_id));
    }
    Ok(())
}
