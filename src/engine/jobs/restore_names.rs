//! Is a collection name free, and what keeps it so until a transaction (defect D58).

use prost::Message;

use super::restore_source::Reads;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::codec::is_tombstone;
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb;
use crate::engine::ids::{CollectionId, DbId, MetaKey};
use crate::engine::meta::{Cond, Span};

/// Proves that no collection and no alias of the database has the name, and answers the conditions that keep it so.
///
/// Names are not keys, so the proof is a listing: every collection record of the database at the revision seen, and none
/// between them. Up to [`LISTED`] collections that fits one transaction; above, the fence alone guarantees it (no coordinator
/// and no other Falconer may write), and the listing is as fresh as can be.
pub(super) async fn name_is_free(
    reads: &Reads<'_>,
    db: DbId,
    name: &str,
    except: Option<CollectionId>,
) -> Result<Vec<Cond>> {
    let taken = |what: &str, key: &MetaKey| {
        Error::new(
            ErrorKind::Conflict,
            format!("{what} {name} exists in the database"),
        )
        .with("key", key)
        .fix("choose another name, or drop it first")
    };
    let mut conds = Vec::new();
    for key in alias_keys(db, name) {
        match reads.meta.get(&key.to_key(reads.roots)).await? {
            None => conds.push(Cond::Absent(key.to_key(reads.roots))),
            Some(kv) if is_tombstone(key.family(), &kv.value) => {
                conds.push(Cond::At(kv.key, kv.mod_rev));
            }
            Some(kv) => return Err(taken("alias", &kv.key)),
        }
    }
    let mut families = vec![Family::Collection.under(reads.roots, &[db.0])];
    if db.0 <= 1 {
        families.push(Family::LegacyCollection.prefix(reads.roots));
        families.push(Family::Collection.under(reads.roots, &[1 - db.0]));
    }
    let mut gaps = Vec::new();
    for prefix in families {
        let mut span = Span::prefix(&prefix);
        for kv in reads.meta.range_all(&span).await?.kvs {
            let key = Key::parse(reads.roots, &kv.key.0).known();
            let id = match key {
                Some(Key::Collection(_, c) | Key::LegacyCollection(c)) => Some(c),
                _ => None,
            };
            if id.is_some() && id == except {
                continue;
            }
            if collection_name(key.as_ref(), &kv.value)?.as_deref() == Some(name) {
                return Err(taken("collection", &kv.key));
            }
            gaps.push(Cond::NoneIn(Span {
                start: span.start.clone(),
                end: Some(kv.key.0.clone()),
            }));
            gaps.push(Cond::At(kv.key.clone(), kv.mod_rev));
            span = span.after(&kv.key);
        }
        gaps.push(Cond::NoneIn(span));
    }
    if gaps.len() <= 2 * LISTED {
        conds.extend(gaps);
    }
    Ok(conds)
}

/// Collections of a database up to which [`name_is_free`] answers a condition each.
pub const LISTED: usize = 20;

fn alias_keys(db: DbId, name: &str) -> Vec<Key> {
    let mut keys = vec![Key::Alias(db, name.to_owned())];
    if db.0 <= 1 {
        keys.push(Key::LegacyAlias(name.to_owned()));
        keys.push(Key::OldestAlias(name.to_owned()));
    }
    keys
}

/// A collection's name; `None` for a tombstone. A record that cannot be read may hold the name: an error.
fn collection_name(key: Option<&Key>, value: &[u8]) -> Result<Option<String>> {
    let unreadable = || {
        Error::new(
            ErrorKind::Corrupt,
            "a collection record cannot be read, so its name cannot be compared",
        )
        .fix("repair or remove that record first")
    };
    let key = key.ok_or_else(unreadable)?;
    if is_tombstone(key.family(), value) {
        return Ok(None);
    }
    let info = pb::etcd::CollectionInfo::decode(value).map_err(|_| unreadable())?;
    Ok(info.schema.map(|s| s.name))
}
