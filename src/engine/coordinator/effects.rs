//! Makes an effect of `model::ddl` happen: read what stands, compute, commit under the broadcast's id.
//!
//! An effect leaves out what is done already, so a change is named by the revision it was computed at: after a crash the rest is a
//! change of its own. What the dead process may still have under way is refused, because the keys or the epoch have moved.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key};
use crate::engine::ids::{CollectionId, DbId, MetaKey, MetaRev};
use crate::engine::meta::{Cond, Span, Write};
use crate::engine::model::ddl::{self, Record, Unreadable};
use crate::engine::plan::execute::{Change, Executor, Who};
use crate::engine::plan::retry::calm;
use crate::engine::profile::Roots;

/// Where an effect reads and writes.
#[derive(Clone)]
pub(super) struct Effects {
    pub executor: Arc<Executor>,
}

impl Effects {
    /// Makes it happen, in chunks. `Conflict` when a record moved meanwhile: the next try computes it anew.
    pub async fn apply(
        &self,
        who: &Who,
        what: &str,
        spans: &[Span],
        effect: impl FnOnce(&[Record]) -> Result<Vec<ddl::Write>, Unreadable>,
    ) -> Result<()> {
        let (reader, clock) = (self.executor.reader(), self.executor.clock());
        let roots = self.executor.roots();
        let mut records: Vec<Record> = Vec::new();
        let mut revs: BTreeMap<MetaKey, MetaRev> = BTreeMap::new();
        let mut at = MetaRev(0);
        for span in spans {
            let page = calm(&**clock, || reader.range_all(span)).await?;
            at = at.max(page.rev);
            for kv in page.kvs {
                if let Some(key) = Key::parse(roots, &kv.key.0).known() {
                    records.push((key, kv.value.to_vec()));
                }
                revs.insert(kv.key, kv.mod_rev);
            }
        }
        let writes = effect(&records).map_err(|e| {
            Error::new(ErrorKind::Corrupt, e.to_string())
                .fix("repair or remove that record; the operation goes on then")
        })?;
        if writes.is_empty() {
            return Ok(());
        }
        let mut change = Change {
            name: format!("{what}-{at}"),
            ..Change::default()
        };
        for write in writes {
            let key = write.key().to_key(roots);
            change.conds.push(match revs.get(&key) {
                Some(rev) => Cond::At(key.clone(), *rev),
                None => Cond::Absent(key.clone()),
            });
            change.writes.push(match write {
                ddl::Write::Put(_, value) => Write::put(key, value),
                ddl::Write::Delete(_) => Write::Delete(key),
            });
        }
        self.executor.commit(who, &change).await?;
        Ok(())
    }
}

/// A collection's own key, in every layout that it may have.
pub(super) fn own(roots: &Roots, db: DbId, collection: CollectionId) -> Vec<Span> {
    let mut keys = vec![Key::Collection(db, collection)];
    if db.0 <= 1 {
        keys.push(Key::Collection(DbId(1 - db.0), collection));
        keys.push(Key::LegacyCollection(collection));
    }
    keys.iter()
        .map(|key| Span::key(&key.to_key(roots)))
        .collect()
}

/// Families whose keys begin with the collection.
pub(super) fn under(roots: &Roots, collection: CollectionId, families: &[Family]) -> Vec<Span> {
    let prefix = |family: &Family| Span::prefix(&family.under(roots, &[collection.0]));
    families.iter().map(prefix).collect()
}
