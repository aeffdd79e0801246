//! Whether a Milvus process was there since: between two Falconer processes a coordinator can come and go unseen, with the catalog in
//! memory. Each process of Milvus takes its server id from `session/id` (`spec/layout.md` §1.2), so that key tells.

use serde::{Deserialize, Serialize};

use super::restore_source::Reads;
use crate::engine::error::Result;
use crate::engine::format::keys::Key;
use crate::engine::ids::MetaRev;
use crate::engine::meta::Cond;
use crate::engine::profile::Roots;

/// `session/id` as it stood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milvus {
    /// Last revision of the key, 0 without one.
    rev: MetaRev,
    /// Its value: the next server id.
    next: String,
}

impl Milvus {
    /// As it stands.
    pub(super) async fn seen(reads: &Reads<'_>) -> Result<Self> {
        let found = reads
            .meta
            .get(&Key::SessionNextId.to_key(reads.roots))
            .await?;
        Ok(found.map_or_else(Self::default, |kv| Self {
            rev: kv.mod_rev,
            next: String::from_utf8_lossy(&kv.value).into_owned(),
        }))
    }

    /// What keeps it so for one transaction.
    pub(super) fn unmoved(&self, roots: &Roots) -> Cond {
        let key = Key::SessionNextId.to_key(roots);
        match self.rev {
            MetaRev(0) => Cond::Absent(key),
            rev => Cond::At(key, rev),
        }
    }

    /// For a note.
    pub(super) fn words(&self) -> String {
        format!(
            "a Milvus process registered at revision {} (next server id {})",
            self.rev, self.next
        )
    }
}
