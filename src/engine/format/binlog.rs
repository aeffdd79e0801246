//! Log records to objects, and the header of a storage V1 file (`spec/layout.md` §3.3, §7.4).

use std::ops::Range;

use super::keys::{LogKind, number};
use super::paths::ObjPath;
use super::pb::data::{Binlog, FieldBinlog};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{CollectionId, FieldId, LogId, PartitionId, SegmentId, Tso};

/// Log id of the merged stats file.
pub const COMPOUND_STATS: LogId = LogId(1);

/// The log id of a record. In etcd `log_path` is empty and `logID` set; before 2.2 the path was whole and its last
/// element is the id, which is how Milvus reads it too.
pub fn log_id(log: &Binlog) -> Result<LogId> {
    if log.log_path.is_empty() {
        return if log.log_id == 0 {
            Err(Error::new(
                ErrorKind::Corrupt,
                "a log record has neither a log id nor a path",
            ))
        } else {
            Ok(LogId(log.log_id))
        };
    }
    log.log_path
        .rsplit('/')
        .next()
        .and_then(number)
        .map(LogId)
        .ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "a log path does not end in a log id")
                .with("log_path", &log.log_path)
        })
}

/// The object of one log. `field` is the `FieldBinlog`'s id (a column group's in storage V2), never a child field's.
#[must_use]
pub fn object(
    kind: LogKind,
    (collection, partition, segment): (CollectionId, PartitionId, SegmentId),
    field: FieldId,
    log: LogId,
) -> ObjPath {
    match kind {
        LogKind::Insert => ObjPath::InsertLog(collection, partition, segment, field, log),
        LogKind::Stats => ObjPath::StatsLog(collection, partition, segment, field, log),
        LogKind::Delta => ObjPath::DeltaLog(collection, partition, segment, log),
        LogKind::Bm25 => ObjPath::Bm25Log(collection, partition, segment, field, log),
    }
}

/// Every object of a log record, in order. Not for segments with a manifest: their ids are placeholders.
pub fn objects(
    kind: LogKind,
    of: (CollectionId, PartitionId, SegmentId),
    logs: &FieldBinlog,
) -> Result<Vec<(ObjPath, &Binlog)>> {
    logs.binlogs
        .iter()
        .map(|log| {
            let id =
                log_id(log).map_err(|e| e.with("segment", of.2).with("field", logs.field_id))?;
            Ok((object(kind, of, FieldId(logs.field_id), id), log))
        })
        .collect()
}

/// First bytes of a storage V1 file.
pub const V1_MAGIC: [u8; 4] = [0xBC, 0xFA, 0xFF, 0x00];
const FIXED_END: usize = 85;
const DESCRIPTOR: i8 = 0;
const EVENT_HEADER: usize = 17;
const EVENT_FIXED: usize = 33;
/// Lengths of the fixed parts of each event type.
const POST_HEADERS: [u8; 8] = [52, 16, 16, 16, 16, 16, 16, 16];

/// The descriptor of a storage V1 file: what every insert, stats-less delta and index slice begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct V1Header {
    /// When it was written.
    pub written: Tso,
    /// The collection.
    pub collection: CollectionId,
    /// The partition.
    pub partition: PartitionId,
    /// The segment.
    pub segment: SegmentId,
    /// The field; -1 in delta logs.
    pub field: FieldId,
    /// First and last row timestamp; both 0 in stream-written files.
    pub range: (Tso, Tso),
    /// `schema.DataType` of the payload.
    pub data_type: i32,
    /// `original_size`, `nullable`, `version`, `edek` … as found.
    pub extras: serde_json::Map<String, serde_json::Value>,
    /// Offset of the first event.
    pub events_at: usize,
}

impl V1Header {
    /// Reads the header. `bytes` may be the first part of the file, as long as the descriptor is in it. `file` is named
    /// in errors, with the offset.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let r = Reader { file, bytes };
        if r.array::<4>(0)? != V1_MAGIC {
            return r.bad(0, "the magic of a storage V1 file is missing");
        }
        if i8::from_le_bytes(r.array(12)?) != DESCRIPTOR {
            return r.bad(12, "the first event is not a descriptor");
        }
        let length = i32::from_le_bytes(r.array(13)?);
        let extra = i32::from_le_bytes(r.array(81)?);
        let expected = usize::try_from(extra)
            .ok()
            .and_then(|n| n.checked_add(FIXED_END));
        // Counted from offset 4, behind the magic.
        let stated = usize::try_from(length).ok().and_then(|n| n.checked_add(4));
        let (Some(events_at), true) = (expected, expected == stated) else {
            return r.bad(13, "the descriptor's length does not match its parts");
        };
        let extras_raw = r.slice(FIXED_END..events_at)?;
        let extras = match serde_json::from_slice(extras_raw) {
            Ok(serde_json::Value::Object(map)) => map,
            _ if extras_raw.is_empty() => serde_json::Map::new(),
            _ => return r.bad(FIXED_END, "the descriptor's extras are not a JSON object"),
        };
        let i64_at = |at: usize| r.array(at).map(i64::from_le_bytes);
        let tso_at = |at: usize| r.array(at).map(|b| Tso(u64::from_le_bytes(b)));
        Ok(Self {
            written: tso_at(4)?,
            collection: CollectionId(i64_at(21)?),
            partition: PartitionId(i64_at(29)?),
            segment: SegmentId(i64_at(37)?),
            field: FieldId(i64_at(45)?),
            range: (tso_at(53)?, tso_at(61)?),
            data_type: i32::from_le_bytes(r.array(69)?),
            extras,
            events_at,
        })
    }

    /// Whether everything after the header is one encrypted blob.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.extras.contains_key("edek")
    }

    /// Size of the rows before compression, from the extras.
    #[must_use]
    pub fn original_size(&self) -> Option<u64> {
        match self.extras.get("original_size")? {
            serde_json::Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        }
    }
}

/// What a storage V1 file of one event is made with.
#[derive(Clone, Debug)]
pub struct V1Head {
    /// When it is written.
    pub written: Tso,
    /// The collection.
    pub collection: CollectionId,
    /// The partition.
    pub partition: PartitionId,
    /// The segment.
    pub segment: SegmentId,
    /// The field; -1 in delta logs.
    pub field: FieldId,
    /// First and last row timestamp.
    pub range: (Tso, Tso),
    /// `schema.DataType` of the payload.
    pub data_type: i32,
    /// Event type: 1 insert, 2 delete.
    pub event: i8,
    /// `original_size` and what else belongs there.
    pub extras: serde_json::Map<String, serde_json::Value>,
}

impl V1Head {
    /// The file around a payload.
    pub fn file(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let extras = serde_json::Value::Object(self.extras.clone()).to_string();
        let size = |n: usize| {
            i32::try_from(n).map_err(|_| {
                Error::new(ErrorKind::Limit, "a storage V1 file holds less than 2 GiB")
                    .fix("write shorter logs")
            })
        };
        let first = FIXED_END + extras.len();
        let mut out = Vec::with_capacity(first + EVENT_FIXED + payload.len());
        out.extend(V1_MAGIC);
        out.extend(self.written.0.to_le_bytes());
        out.extend(DESCRIPTOR.to_le_bytes());
        out.extend(size(first - 4)?.to_le_bytes());
        out.extend(size(first)?.to_le_bytes());
        for id in [
            self.collection.0,
            self.partition.0,
            self.segment.0,
            self.field.0,
        ] {
            out.extend(id.to_le_bytes());
        }
        let (from, to) = self.range;
        out.extend(from.0.to_le_bytes());
        out.extend(to.0.to_le_bytes());
        out.extend(self.data_type.to_le_bytes());
        out.extend(POST_HEADERS);
        out.extend(size(extras.len())?.to_le_bytes());
        out.extend(extras.as_bytes());
        let length = EVENT_FIXED + payload.len();
        out.extend(self.written.0.to_le_bytes());
        out.extend(self.event.to_le_bytes());
        out.extend(size(length)?.to_le_bytes());
        out.extend(size(first + length)?.to_le_bytes());
        out.extend(from.0.to_le_bytes());
        out.extend(to.0.to_le_bytes());
        out.extend(payload);
        Ok(out)
    }
}

/// One event of a storage V1 file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Event {
    /// Event type: 1 insert, 2 delete, 7 index slice.
    pub kind: i8,
    /// The Parquet file inside, as a range of the whole file.
    pub payload: Range<usize>,
}

/// The events of a whole storage V1 file, by their lengths: the stored "next position" is -1 in streamed files.
pub fn v1_events(file: &str, bytes: &[u8], header: &V1Header) -> Result<Vec<V1Event>> {
    let r = Reader { file, bytes };
    if header.is_encrypted() {
        return Err(Error::new(ErrorKind::Unsupported, "the file is encrypted").with("file", file));
    }
    let mut events = Vec::new();
    let mut at = header.events_at;
    while at < bytes.len() {
        let kind = i8::from_le_bytes(r.array(at + 8)?);
        let length = i32::from_le_bytes(r.array(at + 9)?);
        let length = match usize::try_from(length) {
            Ok(n) if n >= EVENT_FIXED => n,
            _ => return r.bad(at + EVENT_HEADER - 8, "an event's length is impossible"),
        };
        r.slice(at..at + length)?;
        events.push(V1Event {
            kind,
            payload: at + EVENT_FIXED..at + length,
        });
        at += length;
    }
    Ok(events)
}

/// How a delta log is written; found by looking, never from the storage version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaForm {
    /// V1 file with one JSON text a row.
    V1Json,
    /// V1 file with `pk` and `ts` columns.
    V1MultiField,
    /// Plain Parquet.
    Parquet,
}

/// Looks at the beginning of a delta log. `None` for none of the known forms.
#[must_use]
pub fn delta_form(bytes: &[u8]) -> Option<DeltaForm> {
    if bytes.starts_with(b"PAR1") {
        return Some(DeltaForm::Parquet);
    }
    let header = V1Header::parse("", bytes).ok()?;
    let multi = header
        .extras
        .get("version")
        .and_then(serde_json::Value::as_str)
        == Some("MULTI_FIELD");
    Some(if multi {
        DeltaForm::V1MultiField
    } else {
        DeltaForm::V1Json
    })
}

struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bad<T>(&self, at: usize, why: &str) -> Result<T> {
        Err(Error::new(ErrorKind::Corrupt, why)
            .with("file", self.file)
            .with("offset", at))
    }

    fn slice(&self, range: Range<usize>) -> Result<&'a [u8]> {
        let start = range.start;
        match self.bytes.get(range) {
            Some(bytes) => Ok(bytes),
            None => self.bad(start.min(self.bytes.len()), "the file is cut short"),
        }
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.slice(at..at + N)?;
        bytes
            .try_into()
            .or_else(|_| self.bad(at, "the file is cut short"))
    }
}
