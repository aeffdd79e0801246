//! What a deletion would take: records as they were read, objects by name.

use std::collections::BTreeSet;

use crate::engine::format::paths::ObjPath;
use crate::engine::ids::{CollectionId, MetaKey, MetaRev, ObjectKey, SegmentId};
use crate::engine::meta::KeyValue;

/// A record that a delete would remove, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Key.
    pub key: MetaKey,
    /// Its revision.
    pub rev: MetaRev,
}

impl Seen {
    pub(super) fn of(kv: &KeyValue) -> Self {
        Self {
            key: kv.key.clone(),
            rev: kv.mod_rev,
        }
    }
}

/// What belongs to one segment or build: its records, the main one last, and its objects.
#[derive(Clone, Debug, Default)]
pub struct Belongings {
    /// Records, in the order they are deleted.
    pub records: Vec<Seen>,
    /// Objects by name.
    pub objects: BTreeSet<ObjectKey>,
    /// Folders of which every object belongs to it (storage V3).
    pub folders: BTreeSet<ObjectKey>,
    /// Objects that the record names although their path says that they are another's: never deleted with it.
    pub strangers: BTreeSet<ObjectKey>,
}

impl Belongings {
    /// A whole key that a segment's record names: the segment's own only if its path says so too.
    pub(super) fn take(&mut self, root: &str, (c, s): (CollectionId, SegmentId), key: &str) {
        let owner = ObjPath::parse(root, key).known().map(|path| path.owner());
        let own = owner.is_some_and(|of| of.collection == Some(c) && of.segment == Some(s));
        let list = if own {
            &mut self.objects
        } else {
            &mut self.strangers
        };
        list.insert(ObjectKey(key.to_owned()));
    }
}
