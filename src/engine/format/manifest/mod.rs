//! Segment manifests of a snapshot: one bare Avro datum a file (`spec/snapshot.md` §2.3 to §2.6).
//!
//! Reading is our own strict cursor over every shape that was ever written. Writing is always V4, through
//! `apache-avro`, without a container.

pub mod container;
mod cursor;
mod read;
mod schema;
mod write;

pub use read::read;
pub use schema::{Shape, schema};
pub use write::write_v4;

use super::pb::data::SegmentDescription;
use crate::engine::error::{Error, ErrorKind, Result};

/// The format version that is written.
pub const CURRENT: i32 = 4;

/// The shapes a format version may have. Version 1 has two that only the content tells apart.
pub fn shapes(format_version: i32) -> Result<&'static [Shape]> {
    Ok(match format_version {
        0 | 1 => &[Shape::V1Early, Shape::V1Late],
        2 => &[Shape::V2],
        3 => &[Shape::V3],
        4 => &[Shape::V4],
        newer if newer > CURRENT => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("snapshot format version {newer} is newer than {CURRENT}, the newest this Falconer reads"),
            )
            .fix("use a newer Falconer"));
        }
        wrong => {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{wrong} is not a snapshot format version"),
            )
            .fix("the snapshot's metadata file is damaged: take a new snapshot"));
        }
    })
}

/// `segment` as a V4 manifest holds it. Lost in every version: the WAL name of positions, per-field null counts, a text
/// index's scalar version, a position that is present but empty. The manifest path travels in the metadata JSON.
#[must_use]
pub fn as_stored(segment: &SegmentDescription) -> SegmentDescription {
    let mut out = segment.clone();
    out.manifest_path = String::new();
    for position in [&mut out.start_position, &mut out.dml_position] {
        if let Some(p) = position {
            p.wal_name = 0;
            if *p == super::pb::msg::MsgPosition::default() {
                *position = None;
            }
        }
    }
    let lists = [
        &mut out.binlogs,
        &mut out.deltalogs,
        &mut out.statslogs,
        &mut out.bm25_statslogs,
    ];
    for log in lists.into_iter().flatten().flat_map(|f| &mut f.binlogs) {
        log.field_null_counts.clear();
    }
    for stats in out.text_index_files.values_mut() {
        stats.current_scalar_index_version = 0;
    }
    out
}
