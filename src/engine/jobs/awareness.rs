//! Whether the Milvus of this cluster knows what a snapshot is: its own garbage collection and compaction heed snapshots from 3.0.

use super::PlanCx;
use crate::engine::error::Result;
use crate::engine::format::keys::Family;
use crate::engine::format::session::Session;
use crate::engine::meta::Span;

/// What to say before a snapshot is made for a Milvus that will not heed it; `None` when it will, or when there is none.
pub async fn warning(cx: &PlanCx) -> Result<Option<String>> {
    let mut versions: Vec<String> = Vec::new();
    if let Some(key) = Family::SessionVersion.single(&cx.roots)
        && let Some(kv) = cx.meta.get(&key).await?
    {
        versions.push(String::from_utf8_lossy(&kv.value).into_owned());
    }
    let sessions = Span::prefix(&Family::Session.prefix(&cx.roots));
    for kv in cx.meta.range_all(&sessions).await?.kvs {
        versions.extend(Session::parse(&kv.value).ok().map(|s| s.version));
    }
    let known = versions.iter().filter_map(|v| Some((major(v)?, v)));
    let who = match known.min() {
        Some((3.., _)) => return Ok(None),
        Some((_, version)) => format!("Milvus {version} does not know snapshots"),
        // Milvus runs on etcd; a store of our own has none that would wake up.
        None if !cx.meta.status().await?.server.starts_with("etcd") => return Ok(None),
        None => "the version of this cluster's Milvus is not recorded; before 3.0 it does not know snapshots".into(),
    };
    Ok(Some(format!(
        "{who}: once it runs again, its own garbage collection and compaction may delete segments that the snapshot refers to, \
         dataCoord.gc.dropTolerance after they are dropped; restore before that, or keep a copy of the bucket"
    )))
}

/// `2.6.8`, `v3.0.0-beta` → 2, 3.
fn major(version: &str) -> Option<u64> {
    let version = version.trim();
    let digits = version.strip_prefix('v').unwrap_or(version);
    digits.split('.').next()?.parse().ok()
}
