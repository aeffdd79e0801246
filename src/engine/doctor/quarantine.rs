//! What lies aside and has no record: it comes back only if somebody knows of it.

use std::collections::BTreeMap;

use futures::TryStreamExt;

use super::{Check, Patient};
use crate::engine::error::Result;
use crate::engine::ids::{JobId, ObjectKey};
use crate::engine::meta::Span;
use crate::engine::model::quarantine::Yard;
use crate::engine::objects::ObjectRead;
use crate::engine::plan::journal::Keys;

const NAME: &str = "quarantine";
/// Folders looked at, a request each.
const FOLDERS: usize = 32;

pub(super) async fn records(p: &Patient<'_>) -> Vec<Check> {
    let Some(objects) = p.objects else {
        return vec![Check::skipped(NAME, "no bucket is attached")];
    };
    match look(p, objects).await {
        Ok(check) => vec![check],
        Err(e) => vec![Check::from_error(NAME, &e, "check minio.address")],
    }
}

async fn look(p: &Patient<'_>, objects: &ObjectRead) -> Result<Check> {
    let (folders, all) = folders(objects).await?;
    // Read after the folders: a record is written before anything moves.
    let keys = Keys::new(p.roots);
    let mut lost = folders.clone();
    for kv in p
        .meta
        .range_all(&Span::prefix(&keys.quarantines()))
        .await?
        .kvs
    {
        lost.retain(|job, _| keys.quarantine(*job) != kv.key);
    }
    let seen = match (folders.len(), all) {
        (0, _) => return Ok(Check::ok(NAME, "nothing lies aside")),
        (1, true) => "things of one job lie aside".to_owned(),
        (n, true) => format!("things of {n} jobs lie aside"),
        (n, false) => format!("the first {n} jobs whose things lie aside were looked at"),
    };
    if lost.is_empty() {
        return Ok(Check::ok(NAME, format!("{seen}, each with its record")));
    }
    let items = lost
        .iter()
        .map(|(job, first)| format!("job {job}: {first}"))
        .collect();
    Ok(
        Check::warn(NAME, format!("{seen}, {} without a record", lost.len()))
            .fix("the metadata is older than the bucket: see falconer quarantine list JOB, put back with falconer quarantine restore JOB")
            .items(items),
    )
}

/// The jobs that have something aside, each with one object; whether that is all of them. Leaps from folder to folder.
async fn folders(objects: &ObjectRead) -> Result<(BTreeMap<JobId, ObjectKey>, bool)> {
    let yard = Yard::of(objects.root());
    let (mut found, mut after) = (BTreeMap::new(), None);
    while found.len() < FOLDERS {
        let mut listed = objects.list(&yard.all(), after.as_ref());
        let next = listed.try_next().await?;
        let Some((job, key)) = next.and_then(|o| Some((yard.job_of(&o.key)?, o.key))) else {
            return Ok((found, true));
        };
        after = Some(yard.behind(job));
        if found.insert(job, key).is_some() {
            break;
        }
    }
    Ok((found, false))
}
