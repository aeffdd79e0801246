//! Locks as keys: taken in the transaction of the job's record, given back in the transaction of its end. So two jobs that must
//! not meet exclude each other also across processes and crashes.

use super::Lock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{JobId, KeyPrefix, MetaKey};
use crate::engine::meta::{Cond, MetaReader, Span, Write};
use crate::engine::plan::journal::Keys;

fn holders(keys: &Keys, lock: &Lock) -> KeyPrefix {
    KeyPrefix::new(&keys.lock(&lock.name).text())
}

/// The key that this job holds.
fn held(keys: &Keys, lock: &Lock, job: JobId) -> MetaKey {
    if lock.shared {
        keys.lock(&format!("{}/{job}", lock.name))
    } else {
        keys.lock(&lock.name)
    }
}

/// What must hold to take them.
pub(super) fn conds(keys: &Keys, locks: &[Lock]) -> Vec<Cond> {
    let mut out = Vec::new();
    for lock in locks {
        out.push(Cond::Absent(keys.lock(&lock.name)));
        if !lock.shared {
            out.push(Cond::NoneUnder(holders(keys, lock)));
        }
    }
    out
}

/// Takes them.
pub(super) fn take(keys: &Keys, locks: &[Lock], job: JobId) -> Vec<Write> {
    let put = |lock| Write::put(held(keys, lock, job), job.to_string());
    locks.iter().map(put).collect()
}

/// The names as they are journaled: the keys to give back.
pub(super) fn names(keys: &Keys, locks: &[Lock], job: JobId) -> Vec<String> {
    locks.iter().map(|l| held(keys, l, job).text()).collect()
}

/// Checks names: a slash would put one lock under another.
pub(super) fn validate(locks: &[Lock]) -> Result<()> {
    let plain = |c: char| c.is_alphanumeric() || "._:-$ ".contains(c);
    match locks
        .iter()
        .find(|l| l.name.is_empty() || !l.name.chars().all(plain))
    {
        None => Ok(()),
        Some(bad) => Err(Error::new(
            ErrorKind::Internal,
            format!("{:?} cannot name a lock", bad.name),
        )),
    }
}

/// Who is in the way.
pub(super) async fn in_the_way(
    meta: &MetaReader,
    keys: &Keys,
    locks: &[Lock],
) -> Result<Option<Error>> {
    for lock in locks {
        let alone = meta.get(&keys.lock(&lock.name)).await?;
        let sharing = if lock.shared {
            None
        } else {
            let page = meta.range_all(&Span::prefix(&holders(keys, lock))).await?;
            page.kvs.into_iter().next()
        };
        if let Some(kv) = alone.or(sharing) {
            let job = String::from_utf8_lossy(&kv.value).into_owned();
            return Ok(Some(
                Error::new(ErrorKind::Busy, format!("job {job} works on {}", lock.name))
                    .with("key", &kv.key)
                    .fix("wait for it, or cancel it"),
            ));
        }
    }
    Ok(None)
}
