//! Whether bucket and root are those of this cluster (`spec/oncall.md` rule 16). Against a wrong bucket every object is missing, and
//! a missing object is no reason to keep a record: a pass would forget all that it may collect.

use std::collections::BTreeSet;

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::belongings::{Belongings, Names, owned};
use super::gc_scan::Scan;
use super::restore_source::Reads;
use crate::engine::error::{ErrorKind, Result};
use crate::engine::ids::{ObjectKey, SegmentId};
use crate::engine::plan::Check;

/// Segments that are looked for before the bucket is called a stranger's.
const PROBES: usize = 256;
/// Segments whose records are read at a time until so many have files.
const CHUNK: usize = 64;
/// Objects asked for at once.
const HEADS: usize = 16;

/// Fails unless something of a segment that has a record is there. Holds when no record names an object.
pub async fn own_bucket(reads: &Reads<'_>, scan: &Scan) -> Result<Check> {
    // Live ones first: their objects must be there.
    let of = |dropped: bool| {
        scan.world
            .segments
            .values()
            .filter(move |s| s.dropped == dropped)
            .map(|s| s.id)
    };
    let all: Vec<SegmentId> = of(false).chain(of(true)).collect();
    let (mut asked, mut first) = (0, None);
    for some in all.chunks(CHUNK) {
        let some: BTreeSet<SegmentId> = some.iter().copied().collect();
        let mine = owned(reads, scan, &some, &BTreeSet::new(), Names::Keys).await?;
        let probes: Vec<&Belongings> = mine
            .segments
            .values()
            .filter(|mine| mine.has_objects())
            .collect();
        asked += probes.len();
        if first.is_none() {
            first = probes.first().and_then(|mine| sample(mine, reads));
        }
        let looks: Vec<_> = probes
            .into_iter()
            .map(|mine| there(reads, mine).boxed())
            .collect();
        let mut found = stream::iter(looks).buffer_unordered(HEADS);
        while let Some(there) = found.try_next().await? {
            if there {
                return Ok(check(None, all.len()));
            }
        }
        if asked >= PROBES {
            break;
        }
    }
    let failed = first.map(|first| {
        format!(
            "nothing of {asked} segments that have files is in bucket {:?} under root {:?}, not even {first}: is this the cluster's \
             bucket? Compare minio.bucketName and minio.rootPath with its configuration",
            reads.objects.bucket(),
            reads.objects.root(),
        )
    });
    Ok(check(failed, all.len()))
}

fn check(failed: Option<String>, all: usize) -> Check {
    Check {
        name: "the bucket is this cluster's".into(),
        detail: if failed.is_none() {
            format!("{all} segment records")
        } else {
            String::new()
        },
        failed,
    }
}

/// The object that a pass would delete last: a pass that was cut short has left it.
fn sample(mine: &Belongings, reads: &Reads<'_>) -> Option<ObjectKey> {
    let folder = || Some(ObjectKey(mine.folder?.to_path(reads.objects.root())));
    mine.objects.last().cloned().or_else(folder)
}

async fn there(reads: &Reads<'_>, mine: &Belongings) -> Result<bool> {
    if let Some(folder) = mine.folder {
        let folder = ObjectKey(folder.to_path(reads.objects.root()));
        let mut listed = reads.objects.list(&folder, None);
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
