//! Snapshot create, drop and restore in a root that is ours: said on the control channel before the first step, so that DDL of the same
//! collection waits for them, and the log tells of them (§II.2 rule 6). The broadcast ends when the job rests.
//!
//! In any other root nothing is said: its channels are a Milvus's.

use super::cx::JobCx;
use super::ddl_look::Look;
use super::source::find_snapshot;
use crate::engine::coordinator::{mark, orders};
use crate::engine::error::Result;
use crate::engine::format::pb::messages::MessageType;
use crate::engine::ids::CollectionId;
use crate::engine::model::broadcast::ResourceKeys;
use crate::engine::plan::Intent;

/// What is said, and the keys that it holds; `None` when the collection or the snapshot is gone: the job's own step says so.
async fn wanted(cx: &JobCx, intent: &Intent) -> Result<Option<(ResourceKeys, orders::Said)>> {
    let look = Look {
        meta: &cx.meta,
        roots: &cx.roots,
    };
    Ok(match intent {
        Intent::CreateSnapshot {
            collection,
            name,
            description,
            protection_secs,
            ..
        } => {
            let of = look.named(*collection).await?;
            of.map(|(database, of)| {
                let keys = ResourceKeys::of_collection(&database, &of).with_snapshot(name);
                let said = orders::Said::CreateSnapshot {
                    collection: *collection,
                    name: name.clone(),
                    description: description.clone(),
                    protection_secs: *protection_secs,
                };
                (keys, said)
            })
        }
        Intent::DropSnapshot { snapshot } => {
            let Some((_, info)) = find_snapshot(&cx.meta, &cx.roots, *snapshot).await? else {
                return Ok(None);
            };
            let collection = CollectionId(info.collection_id);
            // A snapshot outlives its collection while it is pinned: then its own name is all there is to hold.
            let keys = match look.named(collection).await? {
                Some((database, of)) => ResourceKeys::beside_collection(&database, &of),
                None => ResourceKeys::new([]),
            };
            let said = orders::Said::DropSnapshot {
                collection,
                name: info.name.clone(),
            };
            Some((keys.with_snapshot(&info.name), said))
        }
        Intent::Restore {
            snapshot,
            database,
            collection,
        } => {
            let Some((_, info)) = find_snapshot(&cx.meta, &cx.roots, *snapshot).await? else {
                return Ok(None);
            };
            let said = orders::Said::RestoreSnapshot {
                name: info.name,
                source: CollectionId(info.collection_id),
                job: cx.job,
            };
            Some((ResourceKeys::of_collection(database, collection), said))
        }
        _ => None,
    })
}

/// Says it, once: the broadcast of a job that was taken up again is found by the job.
pub(super) async fn announce(cx: &JobCx, intent: &Intent) -> Result<()> {
    let kind = match intent {
        Intent::CreateSnapshot { .. } => MessageType::CreateSnapshot,
        Intent::DropSnapshot { .. } => MessageType::DropSnapshot,
        Intent::Restore { .. } => MessageType::RestoreSnapshot,
        _ => return Ok(()),
    };
    if mark::read(&cx.meta, &*cx.clock, cx.keys()).await?.is_none() {
        return Ok(());
    }
    let service = cx.service().await?;
    if service.broadcaster.begun_by(cx.job, kind).await?.is_some() {
        return Ok(());
    }
    let Some((keys, said)) = wanted(cx, intent).await? else {
        return Ok(());
    };
    // As long as the job is not told to stop. What is broadcast then does not end with it.
    let waiting = service.broadcaster.within(cx.scope());
    let guard = waiting.lock(keys).await?;
    let order = orders::said(&service.control, &said);
    service
        .broadcaster
        .broadcast(cx.who(), guard, order)
        .await?;
    Ok(())
}
