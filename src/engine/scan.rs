//! The rows of a segment, read from the files that its records name, in whatever state the cluster is. Only reads: one log in
//! memory at a time, and a few of its rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::error::{Error, ErrorKind, Result};
use super::format::binlog;
use super::format::keys::LogKind;
use super::format::pb::data::{FieldBinlog, SegmentInfo};
use super::format::rows::delta::DeltaReader;
use super::format::rows::insert::LogReader;
use super::format::rows::{Deletes, Limits, ROW_ID, Rows, Schema, TIMESTAMP, json as row_json};
use super::ids::{FieldId, PartitionId, PartitionScope, SegmentId, Tso, UnixMs};
use super::jobs::source;
use super::model::catalog::Catalog;
use super::objects::ObjectRead;
use super::serve::Server;

/// Rows that are decoded at once.
const BATCH: usize = 1_024;
/// Files fetched at once.
const AT_ONCE: usize = 8;
/// A larger file is refused: it would be held in memory. Milvus closes an insert log at 64 MiB.
const LARGEST: i64 = 1 << 30;

/// Which rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Of this segment.
    pub segment: SegmentId,
    /// These fields, by name or id; all of the collection's and the timestamp when empty.
    pub fields: Vec<String>,
    /// At most so many; `None` = all.
    pub limit: Option<u64>,
    /// Without the deleted ones: by the segment's own delta logs, and the L0 segments of its channel.
    pub deletes: bool,
}

/// Some rows, in order.
pub type Found = Arc<Vec<Map<String, Value>>>;

/// What was counted on the way.
#[derive(Default)]
struct Counts {
    read: u64,
    deleted: u64,
    shown: u64,
    range: Option<(Tso, Tso)>,
    whole: bool,
}

/// Reads; answers what was counted, with the rows when nobody takes them.
pub async fn run(server: &Server, scan: &Scan, sink: Option<mpsc::Sender<Found>>) -> Result<Value> {
    let objects = server.objects.read().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "no bucket is attached: rows lie in it",
        )
        .fix("name the bucket too, e.g. --bucket s3://NAME/ROOT or --bucket file:///FOLDER")
    })?;
    let catalog = server.catalog.borrow().clone();
    let place = place(&catalog, scan.segment)?;
    let mut wanted = vec![(place.1, scan.segment)];
    if scan.deletes {
        wanted.extend(level_zero(&catalog, scan.segment));
    }
    let (schema, mut segments) =
        source::segments_of(&server.meta, &server.roots, place.0, &wanted).await?;
    let segment = segments
        .remove(&scan.segment.0)
        .ok_or_else(|| gone(scan.segment))?;
    if !segment.manifest_path.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "segment {} is of storage V3, whose rows are not read yet",
                scan.segment
            ),
        )
        .fix("look at its manifest with `falconer describe segment`"));
    }
    let all = Schema::of(&schema)?;
    let shown = chosen(&all, &scan.fields)?;
    let mut deletes = Deletes::default();
    let mut entries = 0;
    if scan.deletes {
        entries += deletes_of(objects, &segment, &mut deletes).await?;
        for other in segments.values() {
            entries += deletes_of(objects, other, &mut deletes).await?;
        }
    }
    let mut reading = Reading {
        objects,
        segment: &segment,
        // The key and the time of a row decide whether it is deleted.
        schema: all.only(|f| f.primary || f.id == TIMESTAMP || shown.position(f.id).is_some()),
        shown,
        scan,
        deletes,
        sink,
        kept: Vec::new(),
        counts: Counts::default(),
    };
    reading.all().await?;
    let counts = &reading.counts;
    let moment = |tso: Tso| json!({ "tso": tso.0.to_string(), "utc": tso.time().map(UnixMs::utc) });
    let mut out = json!({
        "segment": scan.segment.to_string(),
        "collection": catalog.collection_name(place.0).to_string(),
        "collection_id": place.0.to_string(),
        "partition_id": place.1.to_string(),
        "storage_version": segment.storage_version,
        "sorted": segment.is_sorted,
        "rows_recorded": segment.num_of_rows,
        "rows_read": counts.read,
        "whole": counts.whole,
        "rows_shown": counts.shown,
        "first": counts.range.map(|(from, _)| moment(from)),
        "last": counts.range.map(|(_, to)| moment(to)),
    });
    if let Some(map) = out.as_object_mut() {
        if scan.deletes {
            map.insert("rows_deleted".into(), counts.deleted.into());
            map.insert("delete_entries".into(), entries.into());
            map.insert("delete_segments".into(), segments.len().into());
        }
        // A page shows the rows first: they are what one came for.
        if reading.sink.is_none() {
            map.shift_insert(0, "rows".into(), std::mem::take(&mut reading.kept).into());
        }
    }
    Ok(out)
}

fn gone(segment: SegmentId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("segment {segment} does not exist"),
    )
    .fix("list them with `falconer get segments`")
}

/// Collection and partition of the segment.
fn place(catalog: &Catalog, id: SegmentId) -> Result<(super::ids::CollectionId, PartitionId)> {
    let mut places = catalog.segment_places(id).map(|((_, c, p), _)| (c, p));
    let found = places.next().ok_or_else(|| gone(id))?;
    match places.next() {
        None => Ok(found),
        Some(other) => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "segment {id} has records under collection {} and under {}",
                found.0, other.0
            ),
        )
        .fix("remove the record that is wrong")),
    }
}

/// L0 segments whose deletes reach the segment: of its channel, and of its partition or of all.
fn level_zero(catalog: &Catalog, id: SegmentId) -> Vec<(PartitionId, SegmentId)> {
    let Some(of) = catalog.segment(id) else {
        return Vec::new();
    };
    catalog
        .segments_on(&of.channel)
        .filter(|s| {
            s.id != id && s.is_l0() && s.dropped_at.is_none() && s.collection == of.collection
        })
        .filter(|s| {
            PartitionScope::of(s.partition, true).is_some_and(|scope| scope.covers(of.partition))
        })
        .map(|s| (s.partition, s.id))
        .collect()
}

/// The fields to show, as they were named; else the collection's, and the timestamp behind them.
fn chosen(all: &Arc<Schema>, names: &[String]) -> Result<Arc<Schema>> {
    let fields = if names.is_empty() {
        let (system, mut fields): (Vec<_>, Vec<_>) = all
            .fields
            .iter()
            .cloned()
            .partition(|f| f.id == ROW_ID || f.id == TIMESTAMP);
        fields.extend(system.into_iter().filter(|f| f.id == TIMESTAMP));
        fields
    } else {
        let known = |name: &String| {
            let found = all
                .fields
                .iter()
                .find(|f| f.name == *name || f.id.to_string() == *name);
            found.cloned().ok_or_else(|| {
                let known: Vec<&str> = all.fields.iter().map(|f| f.name.as_str()).collect();
                Error::new(
                    ErrorKind::Invalid,
                    format!("the collection has no field {name}"),
                )
                .fix(format!("use some of {}", known.join(", ")))
            })
        };
        names.iter().map(known).collect::<Result<_>>()?
    };
    Ok(Arc::new(Schema {
        fields,
        dynamic: all.dynamic,
    }))
}

async fn fetch(
    objects: &ObjectRead,
    files: Vec<(String, FieldId, i64)>,
) -> Result<Vec<(String, Option<FieldId>, Bytes)>> {
    stream::iter(files)
        .map(|(name, field, size)| async move {
            if size > LARGEST {
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("object {name} has {size} bytes, more than are held in memory"),
                ));
            }
            let bytes = objects.get(&name.as_str().into()).await?;
            Ok((name, Some(field), bytes))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// The objects of some log records, each list by the place of the log in its record.
fn logs(
    objects: &ObjectRead,
    kind: LogKind,
    segment: &SegmentInfo,
    of: &[&FieldBinlog],
) -> Result<Vec<Vec<(String, FieldId, i64)>>> {
    let ids = (
        segment.collection_id.into(),
        segment.partition_id.into(),
        segment.id.into(),
    );
    let mut out: BTreeMap<usize, Vec<(String, FieldId, i64)>> = BTreeMap::new();
    for record in of {
        for (i, (path, log)) in binlog::objects(kind, ids, record)?.into_iter().enumerate() {
            let key = path.to_key(objects.root()).0;
            out.entry(i)
                .or_default()
                .push((key, FieldId(record.field_id), log.log_size));
        }
    }
    Ok(out.into_values().collect())
}

/// Adds the deletes of a segment's delta logs; answers how many entries they have.
async fn deletes_of(
    objects: &ObjectRead,
    segment: &SegmentInfo,
    into: &mut Deletes,
) -> Result<u64> {
    let records: Vec<&FieldBinlog> = segment.deltalogs.iter().collect();
    let mut entries = 0;
    for files in logs(objects, LogKind::Delta, segment, &records)? {
        for (name, _, bytes) in fetch(objects, files).await? {
            let mut reader = DeltaReader::open(&name, &bytes, Limits::default())?;
            while let Some(batch) = reader.batch(BATCH)? {
                entries += batch.len() as u64;
                for (key, at) in batch {
                    into.add(key, at);
                }
                tokio::task::yield_now().await;
            }
        }
    }
    Ok(entries)
}

/// For a page: vectors and documents in a few words each.
fn shortened(mut row: Map<String, Value>) -> Value {
    for value in row.values_mut() {
        if value.is_array() || value.is_object() {
            *value = row_json::brief(value, 60).into();
        }
    }
    row.into()
}

struct Reading<'a> {
    objects: &'a ObjectRead,
    segment: &'a SegmentInfo,
    schema: Arc<Schema>,
    shown: Arc<Schema>,
    scan: &'a Scan,
    deletes: Deletes,
    sink: Option<mpsc::Sender<Found>>,
    kept: Vec<Value>,
    counts: Counts,
}

impl Reading<'_> {
    async fn all(&mut self) -> Result<()> {
        let needed: Vec<&FieldBinlog> = self
            .segment
            .binlogs
            .iter()
            .filter(|log| {
                let has = |id: i64| self.schema.position(FieldId(id)).is_some();
                // A group that does not list its fields must be opened.
                let unknown = self.segment.storage_version >= 2 && log.child_fields.is_empty();
                unknown || has(log.field_id) || log.child_fields.iter().any(|id| has(*id))
            })
            .collect();
        for files in logs(self.objects, LogKind::Insert, self.segment, &needed)? {
            let files = fetch(self.objects, files).await?;
            let mut reader = LogReader::open(self.schema.clone(), files, Limits::default())?;
            // A few rows are asked for, a few are read.
            let at_once = self
                .scan
                .limit
                .map_or(BATCH, |n| (n as usize).clamp(16, BATCH));
            while let Some(batch) = reader.batch(at_once)? {
                if !self.take(batch).await? {
                    return Ok(());
                }
            }
        }
        self.counts.whole = true;
        Ok(())
    }

    /// Hands rows on. `false` when no more are wanted.
    async fn take(&mut self, rows: Rows) -> Result<bool> {
        let rows = match self.segment.commit_timestamp {
            0 => rows,
            at => rows.committed(Tso(at)),
        };
        if let Some((from, to)) = rows.time_range()? {
            let known = self.counts.range.unwrap_or((from, to));
            self.counts.range = Some((known.0.min(from), known.1.max(to)));
        }
        let read = rows.len() as u64;
        let alive = rows.filter(&rows.alive(&self.deletes, None)?);
        self.counts.read += read;
        self.counts.deleted += read - alive.len() as u64;
        let left = self.scan.limit.map_or(u64::MAX, |n| n - self.counts.shown);
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(alive.len());
        let found = alive.project(&self.shown)?;
        let found: Vec<Map<String, Value>> = (0..take).map(|i| row_json::row(&found, i)).collect();
        self.counts.shown += take as u64;
        match &self.sink {
            Some(sink) if !found.is_empty() => {
                if sink.send(Arc::new(found)).await.is_err() {
                    return Ok(false);
                }
            }
            Some(_) => {}
            None => self.kept.extend(found.into_iter().map(shortened)),
        }
        tokio::task::yield_now().await;
        Ok(self.scan.limit.is_none_or(|most| self.counts.shown < most))
    }
}
