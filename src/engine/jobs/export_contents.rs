//! What an export writes beside the copies: the manifests and the metadata of the bundle, and how they are compared.

use bytes::Bytes;

use super::cx::{Beside, JobCx};
use super::export_state::State;
use super::restore_map::Source;
use super::restore_source::Reads;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::bundle::{Contents, Relocation};
use crate::engine::format::fingerprint;
use crate::engine::format::pb::data::{SegmentDescription, SnapshotMetadata};
use crate::engine::ids::ObjectKey;
use crate::engine::objects::ObjectRead;

/// Reads of another store.
pub(super) fn at<'a>(cx: &'a JobCx, objects: &'a ObjectRead) -> Reads<'a> {
    Reads {
        meta: &cx.meta,
        objects,
        roots: &cx.roots,
    }
}

/// Manifests and metadata.
pub(super) fn contents(
    cx: &JobCx,
    state: &State,
    source: &Source,
    segments: &[SegmentDescription],
) -> Result<Contents> {
    let own = (cx.objects.root(), cx.objects.bucket());
    // The record in the metadata store is the newer one: names and boundary are the same, and it is what is being exported.
    let metadata = &source.metadata;
    let bundle = state.bundle(cx)?;
    bundle.contents(metadata, segments, own, &state.uri())
}

/// The snapshot's fingerprint, its paths relative to where its data lies: below the root of `objects`.
pub(super) fn fingerprint_of(
    metadata: &SnapshotMetadata,
    segments: &[SegmentDescription],
    objects: &ObjectRead,
) -> Result<String> {
    let here = Relocation::new(objects.root(), "");
    let mut inside = segments.to_vec();
    for segment in &mut inside {
        here.segment(segment, objects.bucket())?;
        if segment.storage_version >= 3 {
            segment.binlogs.clear();
        }
    }
    Ok(fingerprint::snapshot(metadata, &inside))
}

/// Writes an object and reads it back.
pub(super) async fn put_and_compare(
    beside: &Beside,
    key: &ObjectKey,
    bytes: Vec<u8>,
) -> Result<()> {
    let bytes = Bytes::from(bytes);
    beside.put_object(key, bytes.clone()).await?;
    if beside.read().get(key).await? == bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("object {key} does not hold what was just written to it"),
    )
    .fix("check the object store's health"))
}
