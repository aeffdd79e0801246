//! Whether bucket and root are those of this cluster (`spec/oncall.md` rule 16). Against a wrong bucket every object is missing, and
//! a missing object is no reason to keep a record: a pass would forget all that it may collect.

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::gc_scan::{Belongings, Scan};
use super::restore_source::Reads;
use crate::engine::error::{ErrorKind, Result};
use crate::engine::ids::ObjectKey;
use crate::engine::plan::Check;

/// Segments that are looked for before the bucket is called a stranger's.
const PROBES: usize = 256;
/// At once.
const HEADS: usize = 16;

/// Fails unless something of a segment that has a record is there. Holds when no record names an object.
pub async fn own_bucket(reads: &Reads<'_>, scan: &Scan) -> Result<Check> {
    let dropped = |id| scan.world.segments.get(id).is_none_or(|s| s.dropped);
    let (gone, live): (Vec<_>, Vec<_>) = scan
        .segments
        .iter()
        .filter(|(_, mine)| !mine.objects.is_empty() || !mine.folders.is_empty())
        .partition(|(id, _)| dropped(id));
    let all = gone.len() + live.len();
    // Live ones first: their objects must be there.
    let probes = live.into_iter().chain(gone).map(|(_, mine)| mine);
    let probes: Vec<&Belongings> = probes.take(PROBES).collect();
    let asked = probes.len();
    let first = probes.first().and_then(|mine| sample(mine)).cloned();
    let looks: Vec<_> = probes
        .into_iter()
        .map(|mine| there(reads, mine).boxed())
        .collect();
    let mut found = stream::iter(looks).buffer_unordered(HEADS);
    let mut failed = first.map(|first| {
        format!(
            "nothing of {asked} segments, of {all} that have files, is in bucket {:?} under root {:?}, not even {first}: is this the \
             cluster's bucket? Compare minio.bucketName and minio.rootPath with its configuration",
            reads.objects.bucket(),
            reads.objects.root(),
        )
    });
    while let Some(there) = found.try_next().await? {
        if there {
            failed = None;
            break;
        }
    }
    Ok(Check {
        name: "the bucket is this cluster's".into(),
        detail: if failed.is_none() {
            format!("{all} segments have files")
        } else {
            String::new()
        },
        failed,
    })
}

/// The object that a pass would delete last: a pass that was cut short has left it.
fn sample(mine: &Belongings) -> Option<&ObjectKey> {
    mine.objects.last().or_else(|| mine.folders.first())
}

async fn there(reads: &Reads<'_>, mine: &Belongings) -> Result<bool> {
    if let Some(folder) = mine.folders.first() {
        let mut listed = reads.objects.list(folder, None);
        if listed.try_next().await?.is_some() {
            return Ok(true);
        }
    }
    let Some(key) = mine.objects.last() else {
        return Ok(false);
    };
    match reads.objects.head(key).await {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
