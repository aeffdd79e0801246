//! Is every object there? A missing one is named and stops the job, it is never skipped.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::stream;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::{ObjPath, ParsedPath};
use crate::engine::ids::ObjectKey;
use crate::engine::objects::{ObjectMeta, ObjectRead};

/// Objects asked for one by one, at once.
const HEADS: usize = 16;
/// Named in one message; the number of the others follows.
const NAMED: usize = 20;

/// What a look at the bucket found.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    /// Sizes of those that are there, bytes.
    pub sizes: BTreeMap<ObjectKey, u64>,
    /// Checksums of those that the store tells ([`checksum`]).
    pub checksums: BTreeMap<ObjectKey, String>,
    /// Missing ones, with what needs them.
    pub missing: Vec<(ObjectKey, i64)>,
}

impl Presence {
    /// One that is there.
    pub fn saw(&mut self, key: ObjectKey, size: u64, etag: Option<&str>) {
        if let Some(sum) = checksum(etag) {
            self.checksums.insert(key.clone(), sum.to_owned());
        }
        self.sizes.insert(key, size);
    }

    /// Bytes of all that are there.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sizes.values().sum()
    }

    /// Each missing object with its segment, in one line; `None` when nothing is missing.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if self.missing.is_empty() {
            return None;
        }
        let mut text = format!("{} missing: ", self.missing.len());
        let named: Vec<String> = self
            .missing
            .iter()
            .take(NAMED)
            .map(|(key, segment)| format!("{key} (segment {segment})"))
            .collect();
        text.push_str(&named.join(", "));
        if self.missing.len() > NAMED {
            use std::fmt::Write as _;
            // Writing to a String cannot fail.
            let _ = write!(text, " and {} more", self.missing.len() - NAMED);
        }
        if self.sizes.is_empty() {
            text.push_str("; not one is there: do minio.bucketName and minio.rootPath name this cluster's bucket?");
        }
        Some(text)
    }

    /// The complaint as an error.
    pub fn require(&self) -> Result<()> {
        self.complaint().map_or(Ok(()), |what| {
            Err(Error::new(ErrorKind::NotFound, format!("objects {what}"))
                .fix("bring them back from a backup, or drop the segments that need them"))
        })
    }
}

/// The checksum in an entity tag: MD5 of an object that was put in one piece. Tags of any other form say nothing of the contents.
#[must_use]
pub fn checksum(etag: Option<&str>) -> Option<&str> {
    let tag = etag?.trim_matches('"');
    let is_md5 = tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit());
    is_md5.then_some(tag)
}

/// The part of a key that one listing covers: a collection's logs of one class. Other objects are asked for one by one.
fn listing(root: &str, key: &ObjectKey) -> Option<ObjectKey> {
    let ParsedPath::Known(path) = ObjPath::parse(root, &key.0) else {
        return None;
    };
    let depth = match path {
        ObjPath::InsertLog(..)
        | ObjPath::StatsLog(..)
        | ObjPath::DeltaLog(..)
        | ObjPath::Bm25Log(..)
        | ObjPath::SegmentManifest(..)
        | ObjPath::SegmentData(..)
        | ObjPath::SegmentDelta(..)
        | ObjPath::SegmentStats(..)
        | ObjPath::SegmentIndex(..)
        | ObjPath::Lob(..)
        | ObjPath::IndexFileV1(..) => 2,
        _ => return None,
    };
    let below = path.to_string();
    let head: Vec<&str> = below.split('/').take(depth).collect();
    let cut = key.0.len().checked_sub(below.len())?;
    Some(ObjectKey(format!(
        "{}{}",
        key.0.get(..cut)?,
        head.join("/")
    )))
}

/// Looks for `wanted` (key → who needs it) under the object root `root`.
pub async fn look(
    objects: &ObjectRead,
    root: &str,
    wanted: &BTreeMap<ObjectKey, i64>,
) -> Result<Presence> {
    let mut prefixes = BTreeSet::new();
    let mut single = Vec::new();
    for key in wanted.keys() {
        match listing(root, key) {
            Some(prefix) => {
                prefixes.insert(prefix);
            }
            None => single.push(key.clone()),
        }
    }
    let mut found = Presence::default();
    for prefix in prefixes {
        let mut listed = objects.list(&prefix, None);
        while let Some(meta) = listed.next().await {
            let meta = meta?;
            if wanted.contains_key(&meta.key) {
                found.saw(meta.key, meta.size, meta.etag.as_deref());
            }
        }
    }
    let heads = single.into_iter().map(|key| {
        let objects = objects.clone();
        async move {
            match objects.head(&key).await {
                Ok(meta) => Ok(Some(ObjectMeta { key, ..meta })),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        }
    });
    let mut heads = stream::iter(heads).buffer_unordered(HEADS);
    while let Some(one) = heads.next().await {
        if let Some(meta) = one? {
            found.saw(meta.key, meta.size, meta.etag.as_deref());
        }
    }
    found.missing = wanted
        .iter()
        .filter(|(key, _)| !found.sizes.contains_key(*key))
        .map(|(key, segment)| (key.clone(), *segment))
        .collect();
    Ok(found)
}
