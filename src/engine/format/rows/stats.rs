//! Primary-key statistics: least and greatest key and a bloom filter, one object for each insert log and one for the segment
//! (`stats_log/…/1`, a list). JSON; the newest branch also writes a binary form, which is read.

use serde_json::{Map, Value};

use super::bloom::Bloom;
use super::{PrimaryKey, Rows};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::parquet::Values;
use crate::engine::format::pb::schema::DataType;
use crate::engine::ids::FieldId;

/// First bytes of the binary form.
const BINARY: &[u8] = b"mpkstats";
/// Bytes of its head, and of each entry's.
const HEAD: usize = 64;
/// Bytes of a block of a filter in it.
const BLOCK: usize = 64;

/// What is known of the keys of some rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The primary key's field.
    pub field: FieldId,
    /// Least key; the empty one of its type when there is no row.
    pub min: PrimaryKey,
    /// Greatest key.
    pub max: PrimaryKey,
    /// Which keys may be there.
    pub bloom: Bloom,
}

impl Stats {
    /// Of these rows; `None` without rows: Milvus makes no statistics of nothing.
    pub fn of(rows: &Rows) -> Result<Option<Self>> {
        let field = rows.schema().primary()?.id;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut out = Self {
            field,
            min: rows.key(0)?,
            max: rows.key(0)?,
            bloom: Bloom::blocked(rows.len()),
        };
        if let Values::Int64(keys) = &rows.keys()?.values {
            for key in keys {
                out.bloom.add(&PrimaryKey::Int(*key));
            }
            if let (Some(min), Some(max)) = (keys.iter().min(), keys.iter().max()) {
                out.min = PrimaryKey::Int(*min);
                out.max = PrimaryKey::Int(*max);
            }
            return Ok(Some(out));
        }
        for i in 0..rows.len() {
            let key = rows.key(i)?;
            out.bloom.add(&key);
            if key < out.min {
                out.min = key;
            } else if key > out.max {
                out.max = key;
            }
        }
        Ok(Some(out))
    }

    /// Whether the key may be among these rows; `false` is certain.
    #[must_use]
    pub fn may_have(&self, key: &PrimaryKey) -> bool {
        (&self.min..=&self.max).contains(&key) && self.bloom.may_have(key)
    }

    fn to_value(&self) -> Value {
        let key = |key: &PrimaryKey| match key {
            PrimaryKey::Int(n) => Value::from(*n),
            PrimaryKey::Text(text) => Value::from(text.as_str()),
        };
        // Milvus's reader takes `max` and `min` of a number key from here too, and fails without them.
        let (kind, min, max) = match (&self.min, &self.max) {
            (PrimaryKey::Int(min), PrimaryKey::Int(max)) => (DataType::Int64, *min, *max),
            _ => (DataType::VarChar, 0, 0),
        };
        let mut out = Map::new();
        out.insert("fieldID".into(), self.field.0.into());
        out.insert("max".into(), max.into());
        out.insert("min".into(), min.into());
        out.insert("bfType".into(), self.bloom.kind().into());
        out.insert("bf".into(), self.bloom.to_json());
        out.insert("pkType".into(), (kind as i64).into());
        out.insert("maxPk".into(), key(&self.max));
        out.insert("minPk".into(), key(&self.min));
        Value::Object(out)
    }
}

/// The bytes of one log's statistics.
#[must_use]
pub fn write(stats: &Stats) -> Vec<u8> {
    stats.to_value().to_string().into_bytes()
}

/// The bytes of a segment's merged statistics: one entry for each of its logs.
#[must_use]
pub fn write_merged(stats: &[Stats]) -> Vec<u8> {
    Value::Array(stats.iter().map(Stats::to_value).collect())
        .to_string()
        .into_bytes()
}

/// Reads either form, one entry or many. A filter that is not of its kind's form becomes "always true", as in Milvus.
pub fn read(file: &str, bytes: &[u8]) -> Result<Vec<Stats>> {
    if bytes.starts_with(BINARY) {
        return binary(file, bytes);
    }
    let parsed: Value = serde_json::from_slice(bytes)
        .map_err(|e| corrupt(file, "the statistics are not JSON").caused_by(e))?;
    match &parsed {
        Value::Array(all) => all.iter().map(|one| entry(file, one)).collect(),
        one => Ok(vec![entry(file, one)?]),
    }
}

fn corrupt(file: &str, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, why).with("file", file)
}

fn entry(file: &str, stored: &Value) -> Result<Stats> {
    let number = |name: &str| stored.get(name).and_then(Value::as_i64);
    let field = number("fieldID").ok_or_else(|| corrupt(file, "statistics without a field id"))?;
    let kind = number("pkType")
        .filter(|k| *k > 0)
        .unwrap_or(DataType::Int64 as i64);
    let key = |name: &str, old: &str| {
        let found = stored.get(name).filter(|v| !v.is_null());
        let found = match (kind, found) {
            (5, Some(v)) => v.as_i64().map(PrimaryKey::Int),
            (5, None) => number(old).map(PrimaryKey::Int),
            (20 | 21, Some(v)) => v.as_str().map(|t| PrimaryKey::Text(t.to_owned())),
            (20 | 21, None) => Some(PrimaryKey::Text(String::new())),
            _ => None,
        };
        found.ok_or_else(|| {
            corrupt(
                file,
                "statistics whose least or greatest key is not of the key's type",
            )
        })
    };
    let bloom_kind = number("bfType").unwrap_or(3);
    let bloom = stored
        .get("bf")
        .and_then(|bf| Bloom::from_json(bloom_kind, bf));
    Ok(Stats {
        field: FieldId(field),
        min: key("minPk", "min")?,
        max: key("maxPk", "max")?,
        bloom: bloom.unwrap_or(Bloom::AlwaysTrue),
    })
}

fn binary(file: &str, bytes: &[u8]) -> Result<Vec<Stats>> {
    let fail = |at: usize, why: &str| corrupt(file, why).with("offset", at);
    let word = |at: usize| -> Result<u32> {
        let raw = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
        raw.map(|b| u32::from_le_bytes(*b))
            .ok_or_else(|| fail(at, "the statistics are cut short"))
    };
    let long = |at: usize| -> Result<i64> {
        let raw = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
        raw.map(|b| i64::from_le_bytes(*b))
            .ok_or_else(|| fail(at, "the statistics are cut short"))
    };
    let version = word(8)?;
    if version != 1 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("statistics of version {version} are not known here"),
        )
        .with("file", file));
    }
    let (entries, kind) = (word(12)?, word(16)?);
    let field = FieldId(i64::from(word(20)?.cast_signed()));
    let mut at = HEAD;
    let mut out = Vec::new();
    for _ in 0..entries {
        let (blocks, k) = (word(at)? as usize, word(at + 4)?);
        let mut body = at + HEAD;
        let text = |from: usize| -> Result<(PrimaryKey, usize)> {
            let start = from + 4;
            let end = start.saturating_add(word(from)? as usize);
            let raw = bytes
                .get(start..end)
                .ok_or_else(|| fail(from, "the statistics are cut short"))?;
            let text = std::str::from_utf8(raw).map_err(|_| fail(start, "a key is not UTF-8"))?;
            Ok((PrimaryKey::Text(text.to_owned()), end))
        };
        let (min, max) = match kind {
            5 => (
                PrimaryKey::Int(long(at + 8)?),
                PrimaryKey::Int(long(at + 16)?),
            ),
            21 => {
                let size = word(at + 8)? as usize;
                let (min, next) = text(body)?;
                let (max, _) = text(next)?;
                body = body.saturating_add(size);
                (min, max)
            }
            _ => return Err(fail(16, "a primary key is neither a number nor a text")),
        };
        let end = blocks.checked_mul(BLOCK).and_then(|n| body.checked_add(n));
        let raw = end
            .and_then(|end| bytes.get(body..end))
            .filter(|raw| !raw.is_empty());
        let raw = raw.ok_or_else(|| fail(body, "the statistics are cut short"))?;
        out.push(Stats {
            field,
            min,
            max,
            bloom: Bloom::from_blocks(k, raw)
                .ok_or_else(|| fail(at, "a bloom filter has an impossible number of hashes"))?,
        });
        at = body + raw.len();
    }
    Ok(out)
}
