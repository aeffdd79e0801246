//! Taking a snapshot's own records and objects back (`spec/snapshot.md` §3.5): the record says so first, objects go, the record
//! last.

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::cx::JobCx;
use super::snapshot_notes;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::pb::data::SnapshotState;
use crate::engine::format::snapshot::{manifest_key, metadata_key};
use crate::engine::format::wire::Patch;
use crate::engine::ids::{CollectionId, ObjectKey, SegmentId, SnapshotId};
use crate::engine::meta::{Cond, Write};
use crate::engine::plan::execute::Change;

/// Tag of `SnapshotInfo`.
const STATE: u32 = 8;
/// Looks at a record that others move at the same time.
const LOOKS: u32 = 8;

/// Removes a snapshot that was never published; `false` when it was: then nothing is touched.
pub(super) async fn take_back(
    cx: &JobCx,
    collection: CollectionId,
    id: SnapshotId,
) -> Result<bool> {
    if !condemn(cx, collection, id).await? {
        return Ok(false);
    }
    let root = cx.objects.root().to_owned();
    remove_objects(cx, &root, collection, id).await?;
    let key = Key::Snapshot(collection, id).to_key(&cx.roots);
    if let Some(kv) = cx.meta.get(&key).await? {
        let mut writes = vec![Write::Delete(key.clone())];
        writes.extend(snapshot_notes::forget(cx, id).await?);
        cx.commit(Change {
            name: "take-back".into(),
            conds: vec![Cond::At(key, kv.mod_rev)],
            writes,
            atomic: true,
        })
        .await?;
    }
    Ok(true)
}

/// Sets our record to DELETING; `false` when it is no longer PENDING but stands. The record's revision moves with it, so that a
/// commit that arrives late is refused and cannot publish a snapshot whose files are gone.
async fn condemn(cx: &JobCx, collection: CollectionId, id: SnapshotId) -> Result<bool> {
    let key = Key::Snapshot(collection, id).to_key(&cx.roots);
    let mut tries = 0;
    loop {
        tries += 1;
        let Some(kv) = cx.meta.get(&key).await? else {
            return Ok(true);
        };
        let mut patch = Patch::parse(&kv.value)?;
        match patch.integer(STATE) {
            Some(s) if s == SnapshotState::Deleting as u64 => return Ok(true),
            Some(s) if s == SnapshotState::Pending as u64 => {}
            _ => return Ok(false),
        }
        patch.set_integer(STATE, SnapshotState::Deleting as u64);
        let value = patch.finish();
        let marked = cx
            .commit(Change {
                name: format!("condemn-{}", kv.mod_rev),
                conds: vec![Cond::At(key.clone(), kv.mod_rev)],
                writes: vec![Write::put(key.clone(), value)],
                atomic: true,
            })
            .await;
        match marked {
            Err(e) if e.kind() == ErrorKind::Conflict && tries < LOOKS => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(true),
        }
    }
}

/// Removes all manifests under the snapshot's own folder, then the JSON. Returns how many objects went.
pub(super) async fn remove_objects(
    cx: &JobCx,
    root: &str,
    collection: CollectionId,
    id: SnapshotId,
) -> Result<u64> {
    let probe = manifest_key(root, collection, id, SegmentId(0)).0;
    let folder = probe.trim_end_matches("/0.avro").to_owned();
    let mut listed = cx.objects.list(&ObjectKey(folder), None);
    let mut keys = Vec::new();
    while let Some(meta) = listed.next().await {
        keys.push(meta?.key);
    }
    let deletes = keys.into_iter().map(|key| {
        async move {
            let was_there = cx.delete_object(&key).await?;
            cx.progress().file(0);
            Ok::<_, Error>(u64::from(was_there))
        }
        .boxed()
    });
    let mut deletes = stream::iter(deletes.collect::<Vec<_>>()).buffer_unordered(cx.at_once());
    let mut gone = 0;
    while let Some(one) = deletes.try_next().await? {
        gone += one;
    }
    // Last: without the JSON Milvus's own collector would not know of manifests that are left.
    if cx
        .delete_object(&metadata_key(root, collection, id))
        .await?
    {
        gone += 1;
        cx.progress().file(0);
    }
    Ok(gone)
}
