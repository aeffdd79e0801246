//! Intent → [`Plan`] → shown → confirmed → executed: the one write path (law 2). This file is what a screen or a CLI sees of it.

pub mod blobs;
mod chunk;
pub mod execute;
pub mod fence;
mod forbidden;
pub mod ids;
pub mod journal;
pub mod ledger;
mod past;
pub mod retry;
pub mod tickets;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub(crate) use crate::engine::format::hex;
use crate::engine::ids::{CollectionId, JobId, MetaRev, PinId, SnapshotId};
use crate::engine::model::schema::CollectionSpec;

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "intent", rename_all = "kebab-case")]
pub enum Intent {
    /// Create a snapshot (`spec/snapshot.md` §3.2, §4).
    CreateSnapshot {
        /// Of this collection.
        collection: CollectionId,
        /// Name, checked exactly as stored (§3.3).
        name: String,
        /// Description.
        description: String,
        /// Seconds of compaction protection, 0 for none.
        protection_secs: u64,
        /// The caller's own name for this order: given twice, it makes one snapshot. `None` = an order like any other.
        #[serde(default)]
        operation: Option<String>,
    },
    /// Drop a snapshot (§3.5).
    DropSnapshot {
        /// This one.
        snapshot: SnapshotId,
    },
    /// Keep a snapshot from being dropped for a while (§3.8).
    PinSnapshot {
        /// This one.
        snapshot: SnapshotId,
        /// Seconds; 0 = until it is taken off.
        ttl_secs: u64,
        /// Who needs the snapshot.
        owner: String,
        /// What for; may be empty.
        reason: String,
    },
    /// Take a pin off.
    UnpinSnapshot {
        /// Of this snapshot.
        snapshot: SnapshotId,
        /// This pin; `None` = every one whose time is over.
        pin: Option<PinId>,
    },
    /// Read a snapshot back and compare it with the bucket.
    VerifySnapshot {
        /// This one.
        snapshot: SnapshotId,
        /// Also count rows and open the files.
        deep: bool,
    },
    /// Restore a snapshot into a new collection (§5).
    Restore {
        /// This one.
        snapshot: SnapshotId,
        /// Target database, by name.
        database: String,
        /// Target collection: must not exist, neither as a name nor as an alias.
        collection: String,
    },
    /// Restore from a self-contained bundle into a new collection (§2.7, §5).
    RestoreBundle {
        /// The bundle's metadata JSON. Never with credentials.
        uri: String,
        /// As of a restore.
        database: String,
        /// As of a restore.
        collection: String,
    },
    /// Copy a snapshot with all its data to a place of its own (§3.9).
    Export {
        /// This one.
        snapshot: SnapshotId,
        /// Below this key or URI. Never with credentials.
        target: String,
    },
    /// One garbage collection pass (§6).
    Gc {
        /// Only this collection; all when absent.
        collection: Option<CollectionId>,
        /// Only these rules; all when empty.
        rules: BTreeSet<String>,
        /// Move objects aside instead of deleting them.
        #[serde(default)]
        quarantine: bool,
    },
    /// One scan of the bucket for objects that nobody owns.
    Orphans {
        /// Only objects whose path names this collection; all when absent.
        collection: Option<CollectionId>,
        /// Only these prefixes below the root, e.g. `insert_log`; all when empty.
        prefixes: BTreeSet<String>,
        /// Delete them instead of moving them aside.
        delete: bool,
    },
    /// Put back what a job moved aside.
    QuarantineRestore {
        /// By this job.
        job: JobId,
        /// Only objects whose original key begins with this text.
        prefix: String,
    },
    /// Delete what was moved aside so many days ago or earlier.
    QuarantinePurge {
        /// Age in days.
        days: u32,
    },
    /// Pause our garbage collection.
    PauseGc {
        /// Only of this collection.
        collection: Option<CollectionId>,
        /// For so long.
        secs: u64,
        /// Why.
        reason: String,
    },
    /// End a pause.
    ResumeGc {
        /// This one; the only one when absent.
        ticket: Option<String>,
    },
    /// Stop a job and take back what it did.
    CancelJob {
        /// This one.
        job: JobId,
    },
    /// Build the demo cluster in an empty embedded store.
    Demo,
    /// Make an empty root Falconer's own.
    Init {
        /// Physical channels.
        channels: u32,
    },
    /// Change collections, partitions or index definitions of a root of our own.
    Ddl {
        /// How.
        change: Ddl,
    },
}

/// A change of collections, partitions or index definitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ddl", rename_all = "kebab-case")]
pub enum Ddl {
    /// Create a collection.
    CreateCollection {
        /// Database, by name.
        database: String,
        /// Its name: neither a collection's nor an alias's.
        name: String,
        /// What it is to be.
        spec: CollectionSpec,
    },
    /// Drop a collection with all its data, and the snapshots of it that no pin keeps.
    DropCollection {
        /// This one.
        collection: CollectionId,
    },
    /// Take all rows out of a collection.
    TruncateCollection {
        /// This one.
        collection: CollectionId,
    },
    /// Create a partition.
    CreatePartition {
        /// In this collection.
        collection: CollectionId,
        /// Its name.
        name: String,
    },
    /// Drop a partition with all its data.
    DropPartition {
        /// In this collection.
        collection: CollectionId,
        /// Its name.
        name: String,
    },
    /// Define an index on a field.
    CreateIndex {
        /// In this collection.
        collection: CollectionId,
        /// The field, by name.
        field: String,
        /// Its name; the field's when empty.
        name: String,
        /// `index_type`, `metric_type` and what they take.
        params: BTreeMap<String, String>,
    },
    /// Take an index definition away.
    DropIndex {
        /// In this collection.
        collection: CollectionId,
        /// Its name.
        name: String,
    },
}

/// How hard it is to reverse, hence how much confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Danger {
    /// Adds something; undone by dropping it. Enter.
    Low,
    /// Changes or removes something that can be made again. `y`.
    Medium,
    /// Removes data. Type the name.
    High,
}

/// One check made while planning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked, e.g. `target name is free`.
    pub name: String,
    /// `None` = it holds; else why not.
    pub failed: Option<String>,
    /// What was seen.
    pub detail: String,
}

/// One key that will be written, for the diff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// The key, relative to the meta root.
    pub key: String,
    /// Decoded value now, one field a line; `None` = absent.
    pub before: Option<String>,
    /// Decoded value afterwards; `None` = deleted.
    pub after: Option<String>,
}

/// What happens to objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectChange {
    /// Written.
    pub puts: u64,
    /// Copied inside the store.
    pub copies: u64,
    /// Bytes copied.
    pub copy_bytes: u64,
    /// Deleted.
    pub deletes: u64,
    /// Bytes deleted.
    pub delete_bytes: u64,
    /// Some of the keys, for the eye.
    pub samples: Vec<String>,
}

/// What would happen, in full, before anything does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The intent it answers.
    pub intent: Intent,
    /// One line.
    pub title: String,
    /// Preflight. A plan with a failed check cannot be applied.
    pub checks: Vec<Check>,
    /// What will be done, in order, in words.
    pub steps: Vec<String>,
    /// Metadata diff, as far as it is known before ids are taken.
    pub changes: Vec<KeyChange>,
    /// Object operations.
    pub objects: ObjectChange,
    /// What is left out or may surprise (rows outside the boundary, …).
    pub warnings: Vec<String>,
    /// How to undo it.
    pub undo: String,
    /// Danger.
    pub danger: Danger,
    /// What must be typed when danger is high.
    pub type_to_confirm: Option<String>,
    /// The metadata revision it was made at.
    pub based_on: MetaRev,
    /// Keys it rests on, with their revisions: apply refuses when one has moved.
    pub rests_on: Vec<(String, MetaRev)>,
    /// Hash over everything above; what `apply` is given.
    pub hash: String,
}

impl Plan {
    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| c.failed.is_some())
    }

    /// The plan with its hash: SHA-256 over everything else in it.
    pub fn sealed(mut self) -> crate::engine::error::Result<Self> {
        use sha2::Digest;
        self.hash.clear();
        let bytes = journal::json(&self)?;
        self.hash = hex(&sha2::Sha256::digest(&bytes));
        Ok(self)
    }

    /// Whether it may be applied.
    #[must_use]
    pub fn applicable(&self) -> bool {
        self.failures().next().is_none()
    }
}
