//! The files that a storage V3 manifest declares (`spec/layout.md` §7.5): what a restore must copy, no more and no less.

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::manifest::container::{Container, Datum, MAGIC};
use crate::engine::ids::ObjectKey;

/// Files, and folders of which every object counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Objects.
    pub files: Vec<ObjectKey>,
    /// Index artefacts: the manifest names a path that may be one object or a folder.
    pub folders: Vec<ObjectKey>,
}

/// Reads the manifest `file` of the segment folder `base` (no trailing slash).
pub fn declared(file: &ObjectKey, base: &str, bytes: &[u8]) -> Result<Declared> {
    if !bytes.starts_with(MAGIC) {
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
    let container = Container::read(&file.0, bytes)?;
    let record = container.record()?;
    let mut out = Declared::default();
    let mut file_at = |folder: &str, path: &str| -> Result<()> {
        out.files.push(
            place(base, folder, path)
                .ok_or_else(|| bad(format!("path {path:?} leaves the segment's folder")))?,
        );
        Ok(())
    };
    for group in list(&record, "column_groups") {
        for part in list(group, "files") {
            file_at("_data", text(part, "path"))?;
        }
    }
    for log in list(&record, "delta_logs") {
        file_at("_delta", text(log, "path"))?;
    }
    if let Some(Datum::Map(stats)) = record.get("stats") {
        for (_, entry) in stats {
            for path in list(entry, "paths") {
                file_at("_stats", path.text().unwrap_or_default())?;
            }
        }
    }
    for lob in list(&record, "lob_files") {
        let path = text(lob, "path");
        let (partition, _) = base
            .rsplit_once('/')
            .ok_or_else(|| bad(format!("{base} is not a segment's folder")))?;
        file_at_partition(partition, path, &mut out)
            .ok_or_else(|| bad(format!("LOB path {path:?} is not usable")))?;
    }
    for index in list(&record, "indexes") {
        let path = text(index, "path");
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

fn list<'a, 'b>(record: &'b Datum<'a>, name: &str) -> &'b [Datum<'a>] {
    record.get(name).map_or(&[], Datum::items)
}

fn text<'a>(record: &Datum<'a>, name: &str) -> &'a str {
    record.get(name).and_then(Datum::text).unwrap_or_default()
}
