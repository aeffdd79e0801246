//! Rewriting a protobuf value without knowing all of it (law 1).
//!
//! The top level is cut into records (tag, wire type, bytes). An edit replaces, adds or removes the records of one
//! tag; every other record keeps its bytes and its place. A message that was not edited comes out as it went in, even
//! when its encoding is unusual (long varints, records out of order, repeated singular fields, groups).

mod patch;

use std::fmt;

use crate::engine::error::{Error, ErrorKind};
pub use patch::Patch;

/// Bytes that are not protobuf, with the place where that shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in the bytes given to the parser.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not a protobuf message: {} at byte {}",
            self.reason, self.offset
        )
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for Error {
    fn from(bad: Malformed) -> Self {
        Self::new(ErrorKind::Corrupt, bad.to_string())
    }
}

/// How a record's payload is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireType {
    /// Integers, bools, enums.
    Varint,
    /// 8 bytes.
    Fixed64,
    /// Strings, bytes, messages, packed lists, map entries.
    Len,
    /// A group, kept whole.
    Group,
    /// 4 bytes.
    Fixed32,
}

impl fmt::Display for WireType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Varint => "varint",
            Self::Fixed64 => "fixed64",
            Self::Len => "len",
            Self::Group => "group",
            Self::Fixed32 => "fixed32",
        })
    }
}

/// Deeper groups than this are refused: protobuf libraries stop at 100.
const MAX_GROUP_DEPTH: u8 = 100;
const MAX_TAG: u64 = (1 << 29) - 1;

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bad<T>(&self, reason: &'static str) -> Result<T, Malformed> {
        Err(Malformed {
            offset: self.at,
            reason,
        })
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for (i, &byte) in self.bytes[self.at..].iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                return self.bad("a varint over 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        self.bad(if self.bytes.len() - self.at < 10 {
            "a varint cut short"
        } else {
            "a varint over 64 bits"
        })
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Malformed> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n <= left => {
                let taken = &self.bytes[self.at..self.at + n];
                self.at += n;
                Ok(taken)
            }
            _ => self.bad("a length beyond the end"),
        }
    }

    fn record(&mut self, depth: u8) -> Result<Raw<'a>, Malformed> {
        let start = self.at;
        let key = self.varint()?;
        let number = key >> 3;
        if number == 0 || number > MAX_TAG {
            self.at = start;
            return self.bad("a tag outside 1 to 2^29-1");
        }
        let body = self.at;
        let (wire, payload) = match key & 7 {
            0 => {
                self.varint()?;
                (WireType::Varint, &self.bytes[body..self.at])
            }
            1 => (WireType::Fixed64, self.take(8)?),
            2 => {
                let len = self.varint()?;
                (WireType::Len, self.take(len)?)
            }
            3 => {
                let end = self.group(number, depth)?;
                (WireType::Group, &self.bytes[body..end])
            }
            5 => (WireType::Fixed32, self.take(4)?),
            4 => {
                self.at = start;
                return self.bad("a group end without its start");
            }
            _ => {
                self.at = start;
                return self.bad("an unknown wire type");
            }
        };
        Ok(Raw {
            tag: number as u32,
            wire,
            payload,
            whole: &self.bytes[start..self.at],
            offset: start,
        })
    }

    /// Reads to the group's end mark; returns the offset where the content ends.
    fn group(&mut self, number: u64, depth: u8) -> Result<usize, Malformed> {
        if depth >= MAX_GROUP_DEPTH {
            return self.bad("groups nested too deep");
        }
        loop {
            let before = self.at;
            let key = self.varint()?;
            if key & 7 == 4 {
                return if key >> 3 == number {
                    Ok(before)
                } else {
                    self.bad("the end of another group")
                };
            }
            self.at = before;
            self.record(depth + 1)?;
        }
    }
}

/// One record of a message.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Field number.
    pub tag: u32,
    /// Framing.
    pub wire: WireType,
    /// Payload without key and length.
    pub payload: &'a [u8],
    /// Key, length and payload.
    pub whole: &'a [u8],
    /// Where the record starts.
    pub offset: usize,
}

impl Raw<'_> {
    /// The payload as an integer; `None` for lengths and groups.
    #[must_use]
    pub fn integer(&self) -> Option<u64> {
        match self.wire {
            WireType::Varint => read_varint(self.payload).map(|(v, _)| v),
            WireType::Fixed64 => self.payload.try_into().ok().map(u64::from_le_bytes),
            WireType::Fixed32 => self
                .payload
                .try_into()
                .ok()
                .map(|b| u64::from(u32::from_le_bytes(b))),
            WireType::Len | WireType::Group => None,
        }
    }
}

/// Walks the records of a message without allocating. After an error it ends.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Raw<'_>, Malformed>> {
    let mut cursor = Cursor { bytes, at: 0 };
    std::iter::from_fn(move || {
        if cursor.at >= cursor.bytes.len() {
            return None;
        }
        let record = cursor.record(0);
        if record.is_err() {
            cursor.at = cursor.bytes.len();
        }
        Some(record)
    })
}

/// A varint at the start of `bytes`, and its length.
#[must_use]
pub fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut cursor = Cursor { bytes, at: 0 };
    let value = cursor.varint().ok()?;
    Some((value, cursor.at))
}

/// Appends `value` as a varint.
pub fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
