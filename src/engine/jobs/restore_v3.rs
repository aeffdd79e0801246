//! The files that a storage V3 manifest declares (`spec/layout.md` §7.5): what a restore must copy, no more and no less.

use apache_avro::Reader;
use apache_avro::types::Value;

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::ObjectKey;

/// Files, and folders of which every object counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Objects.
    pub files: Vec<ObjectKey>,
    /// Index artefacts: the manifest names a path that may be one object or a folder.
    pub folders: Vec<ObjectKey>,
}

/// Avro object container, the encoding since March 2026.
const CONTAINER: &[u8] = b"Obj\x01";

/// Reads the manifest `file` of the segment folder `base` (no trailing slash).
pub fn declared(file: &ObjectKey, base: &str, bytes: &[u8]) -> Result<Declared> {
    if !bytes.starts_with(CONTAINER) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("storage manifest {file} is in an encoding from before March 2026, which this build does not read"),
        )
        .fix("compact the segment with a newer Milvus, then take a new snapshot"));
    }
    let bad = |why: String| {
        Error::new(
            ErrorKind::Corrupt,
            format!("storage manifest {file}: {why}"),
        )
        .fix("the file is damaged: restore it from a backup of the bucket, or take a new snapshot")
    };
    let mut reader = Reader::new(bytes).map_err(|e| bad(e.to_string()))?;
    let record = reader
        .next()
        .ok_or_else(|| bad("it holds no record".into()))?
        .map_err(|e| bad(e.to_string()))?;
    if reader.next().is_some() {
        return Err(bad("it holds more than one record".into()));
    }
    let mut out = Declared::default();
    let mut file_at = |folder: &str, path: &str| -> Result<()> {
        out.files.push(
            place(base, folder, path)
                .ok_or_else(|| bad(format!("path {path:?} leaves the segment's folder")))?,
        );
        Ok(())
    };
    for group in items(field(&record, "column_groups")) {
        for part in items(field(group, "files")) {
            file_at("_data", text(field(part, "path")).unwrap_or_default())?;
        }
    }
    for log in items(field(&record, "delta_logs")) {
        file_at("_delta", text(field(log, "path")).unwrap_or_default())?;
    }
    if let Some(Value::Map(stats)) = field(&record, "stats").map(plain) {
        for entry in stats.values() {
            for path in items(field(entry, "paths")) {
                file_at("_stats", text(Some(path)).unwrap_or_default())?;
            }
        }
    }
    for lob in items(field(&record, "lob_files")) {
        let path = text(field(lob, "path")).unwrap_or_default();
        let (partition, _) = base
            .rsplit_once('/')
            .ok_or_else(|| bad(format!("{base} is not a segment's folder")))?;
        file_at_partition(partition, path, &mut out)
            .ok_or_else(|| bad(format!("LOB path {path:?} is not usable")))?;
    }
    for index in items(field(&record, "indexes")) {
        let path = text(field(index, "path")).unwrap_or_default();
        if path.is_empty() {
            continue;
        }
        let folder = place(base, "_index", path)
            .ok_or_else(|| bad(format!("index path {path:?} leaves the segment's folder")))?;
        out.folders.push(folder);
    }
    Ok(out)
}

/// `{base}/{folder}/{path}`, unless the path is absolute (external tables), empty or climbs out.
fn place(base: &str, folder: &str, path: &str) -> Option<ObjectKey> {
    usable(path).then(|| ObjectKey(format!("{base}/{folder}/{path}")))
}

fn file_at_partition(partition: &str, path: &str, out: &mut Declared) -> Option<()> {
    let path = path.strip_prefix("../lobs/").unwrap_or(path);
    usable(path).then(|| {
        out.files
            .push(ObjectKey(format!("{partition}/lobs/{path}")));
    })
}

fn usable(path: &str) -> bool {
    !path.contains("://") && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn plain(value: &Value) -> &Value {
    match value {
        Value::Union(_, inner) => plain(inner),
        other => other,
    }
}

fn field<'a>(record: &'a Value, name: &str) -> Option<&'a Value> {
    match plain(record) {
        Value::Record(fields) => fields.iter().find(|(n, _)| n == name).map(|(_, v)| v),
        _ => None,
    }
}

fn items(value: Option<&Value>) -> &[Value] {
    match value.map(plain) {
        Some(Value::Array(items)) => items,
        _ => &[],
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    match value.map(plain) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}
