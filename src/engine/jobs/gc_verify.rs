//! After a pass: every snapshot of a collection that something was taken from still has all its objects.

use std::collections::BTreeSet;

use prost::Message;

use super::Next;
use super::cx::JobCx;
use super::gc::State;
use super::references::names;
use super::restore::reads;
use super::restore_source::prefixes;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb;
use crate::engine::ids::ObjectKey;
use crate::engine::model::references::{Record, refers};

/// Missing objects named.
const NAMED: usize = 100;

/// Looks at each. Nothing of a pass can be taken back: what is missing is said.
pub(super) async fn verify(cx: &JobCx, state: State) -> Result<Next<State>> {
    let (mut missing, mut first) = (0_u64, None);
    for collection in &state.touched {
        let found = reads(cx).under(Family::Snapshot, &[collection.0]).await?;
        for kv in found.kvs {
            let Some(Key::Snapshot(c, id)) = Key::parse(&cx.roots, &kv.key.0).known() else {
                continue;
            };
            // A record that cannot be read held its whole collection.
            let Ok(info) = pb::data::SnapshotInfo::decode(kv.value) else {
                continue;
            };
            if !refers(info.state) {
                continue;
            }
            let record = Record {
                id,
                collection: c,
                name: info.name.as_str().into(),
                location: info.s3_location.as_str().into(),
            };
            for key in absent(cx, &record).await? {
                if missing < NAMED as u64 {
                    cx.note(format!("missing: {key} of snapshot {}", info.name));
                }
                missing += 1;
                first.get_or_insert(key);
            }
        }
    }
    let Some(first) = first else {
        return Ok(Next::Verified(state));
    };
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("{missing} objects of live snapshots are missing after the pass, first {first}"),
    )
    .fix("they may have been missing before: compare with the bucket's history"))
}

/// Objects that a snapshot names and that are not there. One that cannot be read held its collection: nothing was taken from it.
async fn absent(cx: &JobCx, record: &Record) -> Result<BTreeSet<ObjectKey>> {
    let mut wanted: BTreeSet<ObjectKey> = BTreeSet::new();
    let read = names(&cx.objects, record, &mut |key| {
        wanted.insert(key);
    })
    .await;
    match read {
        Ok(()) => {}
        Err(e) if e.is_transient() => return Err(e),
        Err(_) => return Ok(BTreeSet::new()),
    }
    for prefix in prefixes(cx.objects.root(), wanted.iter()) {
        if wanted.is_empty() {
            break;
        }
        let mut listed = cx.objects.list(&prefix, None);
        while let Some(object) = futures::TryStreamExt::try_next(&mut listed).await? {
            wanted.remove(&object.key);
        }
    }
    Ok(wanted)
}
