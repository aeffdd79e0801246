//! What every store refuses before it does anything (M7), so that the embedded store and etcd say no to the same
//! transactions.

use std::collections::HashSet;

use super::{Cond, KeyValue, Limits, MetaRev, RangeOpts, Span, Txn, Write};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaKey;

/// What an etcd server with default flags accepts: `--max-txn-ops` 128 and `--max-request-bytes` 1.5 MiB, less 512 bytes for
/// the envelope that the server puts around the request before it measures it.
pub const ETCD_LIMITS: Limits = Limits {
    ops: 128,
    bytes: 1_572_864 - 512,
};

/// Refuses a transaction that is malformed ([`ErrorKind::Invalid`]) or over `limits` ([`ErrorKind::Limit`]).
pub fn txn(txn: &Txn, limits: Limits) -> Result<()> {
    for (name, count) in [
        ("conditions", txn.conds.len()),
        ("writes", txn.writes.len()),
    ] {
        if count > limits.ops {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "transaction has {count} {name}, the store takes {}",
                    limits.ops
                ),
            )
            .fix("split the transaction into smaller chunks"));
        }
    }
    let mut written = HashSet::with_capacity(txn.writes.len());
    for write in &txn.writes {
        key(write.key())?;
        if !written.insert(write.key()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("transaction writes the key {} twice", write.key()),
            ));
        }
    }
    for cond in &txn.conds {
        match cond {
            Cond::Absent(k) | Cond::ValueIs(k, _) => key(k)?,
            Cond::At(k, rev) => {
                key(k)?;
                if rev.0 < 1 {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("no key was ever written at revision {rev}, asked for {k}"),
                    )
                    .fix("use the condition Absent for a key that must not exist"));
                }
            }
            Cond::NoneUnder(_) | Cond::NoneIn(_) => {}
        }
    }
    let bytes = encoded_len(txn);
    if bytes > limits.bytes {
        let largest = txn
            .writes
            .iter()
            .max_by_key(|w| write_len(w))
            .map(|w| w.key().text())
            .unwrap_or_default();
        return Err(Error::new(
            ErrorKind::Limit,
            format!(
                "transaction of {bytes} bytes is over the store's limit of {}",
                limits.bytes
            ),
        )
        .with("largest_key", largest)
        .fix("split it, or make the value smaller"));
    }
    Ok(())
}

fn key(key: &MetaKey) -> Result<()> {
    if key.0.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "a key may not be empty"));
    }
    Ok(())
}

/// Refuses revisions that never existed.
pub fn range(opts: RangeOpts) -> Result<()> {
    match opts.at {
        Some(at) if at.0 < 1 => Err(Error::new(
            ErrorKind::Invalid,
            format!("revision {at} does not exist, they begin at 1"),
        )),
        _ => Ok(()),
    }
}

/// Refuses a watch that could never deliver anything.
pub fn watch(span: &Span, from: MetaRev) -> Result<()> {
    if from.0 < 1 {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("cannot watch from revision {from}, they begin at 1"),
        ));
    }
    if span.is_empty() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "cannot watch an empty span of keys",
        ));
    }
    Ok(())
}

/// The error for a revision that was compacted away (`oldest` = first one that can still be read, when known).
pub fn compacted(what: &str, asked: MetaRev, oldest: Option<MetaRev>) -> Error {
    let error = Error::new(
        ErrorKind::Compacted,
        format!("cannot {what} revision {asked}, it is compacted away"),
    )
    .fix("list again at the newest revision");
    match oldest {
        Some(oldest) => error.with("oldest", oldest),
        None => error,
    }
}

/// The error for a revision that is not yet there.
pub fn future(asked: MetaRev, head: Option<MetaRev>) -> Error {
    let error = Error::new(
        ErrorKind::Invalid,
        format!("revision {asked} is in the future"),
    );
    match head {
        Some(head) => error.with("head", head),
        None => error,
    }
}

/// The keys of the single-key conditions, each once, in order: what a refusal reports.
pub fn named_keys(conds: &[Cond]) -> Vec<&MetaKey> {
    let mut seen = HashSet::new();
    conds
        .iter()
        .filter_map(|c| match c {
            Cond::Absent(k) | Cond::At(k, _) | Cond::ValueIs(k, _) => Some(k),
            Cond::NoneUnder(_) | Cond::NoneIn(_) => None,
        })
        .filter(|k| seen.insert(*k))
        .collect()
}

/// Whether a single-key condition holds for the key as it stands. `None` for conditions over a span.
pub fn holds(cond: &Cond, current: Option<&KeyValue>) -> Option<bool> {
    match cond {
        Cond::Absent(_) => Some(current.is_none()),
        Cond::At(_, rev) => Some(current.is_some_and(|kv| kv.mod_rev == *rev)),
        Cond::ValueIs(_, value) => Some(current.is_some_and(|kv| kv.value == *value)),
        Cond::NoneUnder(_) | Cond::NoneIn(_) => None,
    }
}

/// Bytes of the etcd `TxnRequest` that this transaction becomes: conditions, writes, and one read a named key for a refusal.
/// Tags and lengths are those of etcd's `rpc.proto`; every field of it has a number below 16 except `range_end` of a compare.
pub fn encoded_len(txn: &Txn) -> usize {
    let conds: usize = txn.conds.iter().map(|c| message(cond_len(c))).sum();
    let writes: usize = txn
        .writes
        .iter()
        .map(|w| message(message(write_len(w))))
        .sum();
    let reads: usize = named_keys(&txn.conds)
        .iter()
        .map(|k| message(message(bytes(k.0.len()))))
        .sum();
    conds + writes + reads
}

fn cond_len(cond: &Cond) -> usize {
    // result and target: two enums of two bytes each, less when they are 0
    match cond {
        Cond::Absent(k) => 4 + bytes(k.0.len()) + 2,
        Cond::At(k, rev) => 4 + bytes(k.0.len()) + 1 + varint(rev.0),
        Cond::ValueIs(k, value) => 4 + bytes(k.0.len()) + bytes(value.len()),
        Cond::NoneUnder(prefix) => 4 + 2 * (bytes(prefix.bytes().len()) + 1) + 2,
        Cond::NoneIn(span) => {
            let end = span.end.as_ref().map_or(1, bytes::Bytes::len);
            4 + bytes(span.start.len().max(1)) + bytes(end) + 1 + 2
        }
    }
}

fn write_len(write: &Write) -> usize {
    match write {
        Write::Put { key, value, lease } => {
            bytes(key.0.len())
                + bytes(value.len())
                + if *lease == 0 { 0 } else { 1 + varint(*lease) }
        }
        Write::Delete(key) => bytes(key.0.len()),
    }
}

fn bytes(len: usize) -> usize {
    1 + varint(i64::try_from(len).unwrap_or(i64::MAX)) + len
}

fn message(len: usize) -> usize {
    bytes(len)
}

fn varint(v: i64) -> usize {
    let bits = 64 - (v.cast_unsigned() | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}
