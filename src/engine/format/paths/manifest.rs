//! Where a storage V2 or V3 segment's own manifest is (`spec/layout.md` §7.5, `spec/snapshot.md` §2.2).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Parts, join_root, strip_root};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, PartitionId, SegmentId};

/// `SegmentInfo.manifest_path`: which manifest version of a V3 segment is live. Higher-numbered files may be uncommitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPath {
    /// Version of the manifest file.
    pub ver: i64,
    /// The segment's folder, without a trailing slash.
    pub base_path: String,
    /// Members this version does not know; kept.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl ManifestPath {
    /// Version `ver` of the segment in `base_path`.
    #[must_use]
    pub fn new(ver: i64, base_path: impl Into<String>) -> Self {
        Self {
            ver,
            base_path: base_path.into(),
            extra: serde_json::Map::new(),
        }
    }

    /// Reads the stored text. A fraction, or an integer beyond 64 bits, among the members that are not known is refused: it would not be
    /// written back digit for digit (law 1).
    pub fn parse(text: &str) -> Result<Self> {
        let found: Self = serde_json::from_str(text).map_err(|cause| {
            Error::new(
                ErrorKind::Corrupt,
                "the segment's manifest_path is not {\"ver\":…,\"base_path\":…}",
            )
            .with("manifest_path", text)
            .caused_by(cause)
        })?;
        if found.extra.values().any(has_fraction) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the segment's manifest_path has a member whose number cannot be kept as it is",
            )
            .with("manifest_path", text)
            .fix("use a newer Falconer"));
        }
        Ok(found)
    }

    /// The manifest file's key.
    #[must_use]
    pub fn file(&self) -> String {
        format!("{}/_metadata/manifest-{}.avro", self.base_path, self.ver)
    }
}

fn has_fraction(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Number(n) => n.is_f64(),
        serde_json::Value::Array(items) => items.iter().any(has_fraction),
        serde_json::Value::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}

/// The stored text, as Go's JSON encoder writes it: `<`, `>`, `&` and the two line separators escaped.
impl fmt::Display for ManifestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        for c in text.chars() {
            match c {
                '<' => f.write_str("\\u003c")?,
                '>' => f.write_str("\\u003e")?,
                '&' => f.write_str("\\u0026")?,
                '\u{2028}' => f.write_str("\\u2028")?,
                '\u{2029}' => f.write_str("\\u2029")?,
                c => fmt::Write::write_char(f, c)?,
            }
        }
        Ok(())
    }
}

/// An entry of a snapshot's `storagev2_manifest_list`: V2 names an object, V3 a folder and a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageManifest {
    /// A plain object key.
    Object(String),
    /// A packed descriptor.
    Packed(ManifestPath),
}

impl StorageManifest {
    /// Reads the stored text; packed when it is a JSON object.
    pub fn parse(text: &str) -> Result<Self> {
        if text.trim_start().starts_with('{') {
            ManifestPath::parse(text).map(Self::Packed)
        } else {
            Ok(Self::Object(text.to_owned()))
        }
    }
}

impl fmt::Display for StorageManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(key) => f.write_str(key),
            Self::Packed(packed) => packed.fmt(f),
        }
    }
}

/// The folder of a V3 segment: `{root}/insert_log/{c}/{p}/{s}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentBase(pub CollectionId, pub PartitionId, pub SegmentId);

impl SegmentBase {
    /// Reads a `base_path`. `bucket` is taken off when the path starts with it: 2.6 wrote it there.
    #[must_use]
    pub fn parse(root: &str, bucket: &str, base_path: &str) -> Option<Self> {
        Self::read(root, base_path).or_else(|| {
            let rest = base_path
                .strip_prefix(bucket)
                .filter(|_| !bucket.is_empty())?;
            Self::read(root, rest.strip_prefix('/')?)
        })
    }

    fn read(root: &str, base_path: &str) -> Option<Self> {
        let mut p = Parts(strip_root(root, base_path)?.strip_prefix("insert_log/")?);
        Some(Self(p.id()?, p.id()?, p.last_id()?))
    }

    /// The folder that a key lies in, whatever the rest of the key is; `None` for what lies in no segment's folder.
    #[must_use]
    pub fn above(root: &str, key: &str) -> Option<Self> {
        let mut p = Parts(strip_root(root, key)?.strip_prefix("insert_log/")?);
        Some(Self(p.id()?, p.id()?, p.id()?))
    }

    /// The folder under `root`, without a trailing slash.
    #[must_use]
    pub fn to_path(self, root: &str) -> String {
        join_root(
            root,
            &format!("insert_log/{}/{}/{}", self.0, self.1, self.2),
        )
    }
}
