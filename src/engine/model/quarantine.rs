//! What was moved aside instead of deleted: where it lies, and what is remembered of it. Pure.
//!
//! ```text
//! falconer-quarantine/{root}/{job}/{original key}          the object, byte for byte
//! falconer-quarantine/{root}/{job}.index/{name}.jsonl      one line an object that was to be moved: key, size, tag, time, rule
//! ```
//!
//! The listing of the first is the truth about what lies there; the index says why, and when the object was last written. The record
//! in the metadata store ([`Quarantine`]) exists before the first object moves.

use serde::{Deserialize, Serialize};

use crate::engine::ids::{CollectionId, JobId, ObjectKey, UnixMs};

/// The first part of every key of ours in the bucket.
pub const FOLDER: &str = "falconer-quarantine";
/// How long things are kept unless somebody says otherwise, days.
pub const KEEP_DAYS: u32 = 7;
/// A day, ms.
pub const DAY_MS: i64 = 86_400_000;

/// The place for one Milvus root: beside it. Where the root is the whole bucket (`minio.rootPath` is empty) or a folder that nothing
/// may be written beside (`localStorage.path`), the place is below it, under a name that no path of Milvus begins with
/// (`spec/layout.md` §7.2) and that [`ObjPath::parse`](crate::engine::format::paths::ObjPath::parse) calls unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Yard {
    base: String,
    absolute: bool,
}

impl Yard {
    /// For a root as [`ObjectRead::root`](crate::engine::objects::ObjectRead::root) gives it.
    #[must_use]
    pub fn of(root: &str) -> Self {
        let bare = root.trim_end_matches('/');
        let (base, absolute) = match bare.strip_prefix('/') {
            Some(_) => (format!("{bare}/{FOLDER}/-"), true),
            None if bare.is_empty() => (format!("{FOLDER}/-"), false),
            None => (format!("{FOLDER}/{bare}"), false),
        };
        Self { base, absolute }
    }

    /// Everything of this root.
    #[must_use]
    pub fn all(&self) -> ObjectKey {
        ObjectKey(self.base.clone())
    }

    /// Whether a key lies in here, of whatever root.
    #[must_use]
    pub fn holds(&self, key: &ObjectKey) -> bool {
        let top = if self.absolute {
            self.base.trim_end_matches("/-")
        } else {
            FOLDER
        };
        key.0
            .strip_prefix(top)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// What one job moved; without the trailing slash, as listings want it.
    #[must_use]
    pub fn job(&self, job: JobId) -> ObjectKey {
        ObjectKey(format!("{}/{job}", self.base))
    }

    /// Where the job keeps this object.
    #[must_use]
    pub fn aside(&self, job: JobId, key: &ObjectKey) -> ObjectKey {
        ObjectKey(format!(
            "{}/{job}/{}",
            self.base,
            key.0.trim_start_matches('/')
        ))
    }

    /// Where an object that lies aside came from.
    #[must_use]
    pub fn original(&self, job: JobId, aside: &ObjectKey) -> Option<ObjectKey> {
        let rest = aside.0.strip_prefix(&self.base)?.strip_prefix('/')?;
        let rest = rest.strip_prefix(&job.to_string())?.strip_prefix('/')?;
        let slash = if self.absolute { "/" } else { "" };
        (!rest.is_empty()).then(|| ObjectKey(format!("{slash}{rest}")))
    }

    /// The job that something in here belongs to: an object that lies aside, or an index file.
    #[must_use]
    pub fn job_of(&self, key: &ObjectKey) -> Option<JobId> {
        let rest = key.0.strip_prefix(&self.base)?.strip_prefix('/')?;
        let (name, _) = rest.split_once('/')?;
        let number = name.strip_suffix(".index").unwrap_or(name);
        number.parse().ok().map(JobId)
    }

    /// Behind everything of a job, in key order, and before everything of the next one.
    #[must_use]
    pub fn behind(&self, job: JobId) -> ObjectKey {
        // The character after the slash, which no name of a folder or an index ends with.
        ObjectKey(format!("{}/{job}0", self.base))
    }

    /// All index files of a job.
    #[must_use]
    pub fn indexes(&self, job: JobId) -> ObjectKey {
        ObjectKey(format!("{}/{job}.index", self.base))
    }

    /// One of them.
    #[must_use]
    pub fn index(&self, job: JobId, name: &str) -> ObjectKey {
        ObjectKey(format!("{}/{job}.index/{name}.jsonl", self.base))
    }
}

/// One object that is to be moved or deleted: a line of an index file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its key.
    pub key: ObjectKey,
    /// Bytes, as listed.
    pub size: u64,
    /// The server's tag, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// When it was last written.
    pub modified: UnixMs,
    /// The rule by which it goes.
    pub rule: String,
}

/// What is remembered of a job that moved things aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The job.
    pub job: JobId,
    /// What it was, in one line.
    pub title: String,
    /// Who let it run.
    pub actor: String,
    /// Its scope.
    #[serde(default)]
    pub collection: Option<CollectionId>,
    /// When the first thing was about to move.
    pub opened: UnixMs,
    /// When the last one had moved. Before that nothing of it is purged or put back.
    #[serde(default)]
    pub closed: Option<UnixMs>,
    /// Objects that were moved here.
    #[serde(default)]
    pub objects: u64,
    /// Their bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Objects that were put back.
    #[serde(default)]
    pub restored: u64,
}

impl Quarantine {
    /// From when on a purge of what is older than so many days takes it; `None` while it is being filled.
    #[must_use]
    pub fn due(&self, days: u32) -> Option<UnixMs> {
        let age = i64::from(days).saturating_mul(DAY_MS);
        self.closed.map(|at| UnixMs(at.0.saturating_add(age)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::paths::{ObjPath, ParsedPath};

    #[test]
    fn keys_go_there_and_back_and_never_look_like_milvus_own() {
        let job = JobId(470_660_334_431_990_001);
        for (root, key) in [
            ("files", "files/insert_log/1/2/3/100/5"),
            ("", "insert_log/1/2/3/100/5"),
            ("a/insert_log/b/", "a/insert_log/b/index_files/1/2/3/4/x"),
            ("/data/milvus", "/data/milvus/insert_log/1/2/3/100/5"),
        ] {
            let yard = Yard::of(root);
            let key = ObjectKey::from(key);
            let aside = yard.aside(job, &key);
            assert_eq!(yard.original(job, &aside), Some(key.clone()), "{root}");
            assert_eq!(yard.original(JobId(47), &aside), None, "{root}");
            assert!(yard.holds(&aside) && !yard.holds(&key), "{root}");
            assert_eq!(
                ObjPath::parse(root, &aside.0),
                ParsedPath::Unknown,
                "{root}"
            );
            let index = yard.index(job, "batch-00000001");
            assert_eq!(
                ObjPath::parse(root, &index.0),
                ParsedPath::Unknown,
                "{root}"
            );
            assert_eq!(
                yard.original(job, &index),
                None,
                "an index is no object: {root}"
            );
        }
    }

    #[test]
    fn what_is_being_filled_is_never_due() {
        let mut q = Quarantine {
            job: JobId(1),
            title: String::new(),
            actor: String::new(),
            collection: None,
            opened: UnixMs(5),
            closed: None,
            objects: 0,
            bytes: 0,
            restored: 0,
        };
        assert_eq!(q.due(0), None);
        q.closed = Some(UnixMs(10));
        assert_eq!(q.due(7), Some(UnixMs(10 + 7 * DAY_MS)));
    }
}
