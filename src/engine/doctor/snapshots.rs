//! Every object that committed snapshots refer to, read from their own files: snapshots keep objects that no live segment names.

use futures::StreamExt;

use super::Patient;
use super::meta::parsed;
use super::references::{Reference, is_committed, metadata_key};
use crate::engine::error::{ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::{Location, StorageManifest, check};
use crate::engine::format::{codec, manifest, pb, snapshot};
use crate::engine::ids::ObjectKey;
use crate::engine::meta::Span;
use crate::engine::objects::ObjectRead;

/// Segment manifests read at once.
const AT_ONCE: usize = 8;
/// From here on a segment's manifest names its files; the snapshot only has placeholders.
const STORAGE_V3: i64 = 3;

/// References, and what could not be read.
#[derive(Default)]
struct Found {
    references: Vec<Reference>,
    problems: Vec<String>,
}

/// What every committed snapshot needs. A file of a snapshot that is missing is a reference too, and so it is named with the rest.
pub(super) async fn references(
    p: &Patient<'_>,
    objects: &ObjectRead,
) -> Result<(Vec<Reference>, Vec<String>)> {
    let page = p
        .meta
        .range_all(&Span::prefix(&Family::Snapshot.prefix(p.roots)))
        .await?;
    let mut found = Found::default();
    for kv in &page.kvs {
        let Some(key) = parsed(p, kv) else { continue };
        let Key::Snapshot(c, id) = key else { continue };
        // A record that cannot be read is reported with the records of segments.
        if let Some(info) = codec::decode::<pb::data::SnapshotInfo>(&key, &kv.value).value()
            && is_committed(&info)
        {
            let file = metadata_key(objects.root(), c, id, &info);
            found.one(objects, &file, &info.name).await?;
        }
    }
    Ok((found.references, found.problems))
}

impl Found {
    async fn one(&mut self, objects: &ObjectRead, file: &ObjectKey, name: &str) -> Result<()> {
        let by = format!("snapshot {name}");
        self.add(&file.0, &by);
        let Some(bytes) = self.file(objects.get(file).await, &by)? else {
            return Ok(());
        };
        let metadata = match snapshot::read_metadata(&file.0, &bytes) {
            Ok(metadata) => metadata,
            Err(e) => {
                self.problems.push(format!("{by}: {e}"));
                return Ok(());
            }
        };
        for entry in &metadata.storagev2_manifest_list {
            match StorageManifest::parse(&entry.manifest) {
                Ok(StorageManifest::Object(key)) => self.add(&key, &by),
                Ok(StorageManifest::Packed(packed)) => self.add(&packed.file(), &by),
                Err(e) => self.problems.push(format!("{by}: {e}")),
            }
        }
        let version = metadata.format_version;
        let mut read = futures::stream::iter(metadata.manifest_list)
            .map(|path| async move {
                let bytes = objects.get(&ObjectKey(path.clone())).await;
                (path, bytes)
            })
            .buffered(AT_ONCE);
        while let Some((path, bytes)) = read.next().await {
            self.add(&path, &by);
            let Some(bytes) = self.file(bytes, &by)? else {
                continue;
            };
            match manifest::read(&path, &bytes, version) {
                Ok(segment) => self.segment(&segment, &by),
                Err(e) => self.problems.push(format!("{by}: {e}")),
            }
        }
        Ok(())
    }

    /// The bytes; `None` when the object is missing, which its reference already tells.
    fn file(&mut self, got: Result<bytes::Bytes>, by: &str) -> Result<Option<bytes::Bytes>> {
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == ErrorKind::Invalid => {
                self.problems.push(format!("{by}: {e}"));
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn segment(&mut self, segment: &pb::data::SegmentDescription, by: &str) {
        let by = format!("segment {} of {by}", segment.segment_id);
        let lists = [
            &segment.binlogs,
            &segment.deltalogs,
            &segment.statslogs,
            &segment.bm25_statslogs,
        ];
        for log in lists.into_iter().flatten().flat_map(|f| &f.binlogs) {
            // Placeholders of a segment with a manifest of its own.
            if !log.log_path.is_empty() {
                self.add(&log.log_path, &by);
            }
        }
        for path in segment.index_files.iter().flat_map(|f| &f.index_file_paths) {
            self.add(path, &by);
        }
        if segment.storage_version < STORAGE_V3 {
            let text = segment.text_index_files.values().flat_map(|t| &t.files);
            let json = segment.json_key_index_files.values().flat_map(|j| &j.files);
            for path in text.chain(json) {
                self.add(path, &by);
            }
        }
    }

    fn add(&mut self, path: &str, by: &str) {
        match check(path) {
            Ok(Location::Key) => self.references.push(Reference {
                key: ObjectKey(path.to_owned()),
                by: by.to_owned(),
            }),
            Ok(Location::Uri(uri)) => self.problems.push(format!(
                "{by}: {uri} lies in another bucket and was not looked at"
            )),
            Err(e) => self.problems.push(format!("{by}: {e}")),
        }
    }
}
