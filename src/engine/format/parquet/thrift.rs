//! Thrift's compact protocol, as far as Parquet's metadata needs it.

use crate::engine::error::{Error, ErrorKind, Result};

/// Structs in structs; Parquet's own are five deep.
const DEEPEST: u32 = 24;

/// Where we are in a file's metadata. `base` is the offset of `bytes` in the file, for errors.
pub(super) struct Cursor<'a> {
    pub file: &'a str,
    pub bytes: &'a [u8],
    pub at: usize,
    pub base: u64,
}

/// The type of a field or of a list's items.
pub(super) type Kind = u8;
pub(super) const I32: Kind = 5;
pub(super) const I64: Kind = 6;
pub(super) const BINARY: Kind = 8;
pub(super) const LIST: Kind = 9;
pub(super) const STRUCT: Kind = 12;
const TRUE: Kind = 1;
const FALSE: Kind = 2;

impl<'a> Cursor<'a> {
    pub fn fail(&self, why: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, why)
            .with("file", self.file)
            .with("offset", self.base + self.at as u64)
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = self.bytes.get(self.at).copied();
        let byte = byte.ok_or_else(|| self.fail("the Parquet metadata is cut short"))?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            out |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err(self.fail("a number in the Parquet metadata has more than 64 bits"))
    }

    fn zigzag(&mut self) -> Result<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// The next field of a struct: its id and type; `None` at the end. `last` is kept by the caller.
    pub fn field(&mut self, last: &mut i16) -> Result<Option<(i16, Kind)>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        let delta = i16::from(byte >> 4);
        let id = if delta == 0 {
            i16::try_from(self.zigzag()?).ok()
        } else {
            last.checked_add(delta)
        };
        *last =
            id.ok_or_else(|| self.fail("a field number of the Parquet metadata is impossible"))?;
        Ok(Some((*last, byte & 0x0F)))
    }

    /// A number, of the width that it is declared with.
    pub fn number(&mut self, kind: Kind) -> Result<i64> {
        match kind {
            3 => Ok(i64::from(self.byte()?.cast_signed())),
            4 | I32 | I64 => self.zigzag(),
            _ => Err(self.fail("a number of the Parquet metadata has another type")),
        }
    }

    pub fn i32(&mut self, kind: Kind) -> Result<i32> {
        let n = self.number(kind)?;
        i32::try_from(n)
            .map_err(|_| self.fail("a number of the Parquet metadata has more than 32 bits"))
    }

    /// A size or a count: never below 0.
    pub fn size(&mut self, kind: Kind) -> Result<u64> {
        let n = self.number(kind)?;
        u64::try_from(n).map_err(|_| self.fail("a size in the Parquet metadata is below 0"))
    }

    pub fn boolean(&self, kind: Kind) -> Result<bool> {
        match kind {
            TRUE => Ok(true),
            FALSE => Ok(false),
            _ => Err(self.fail("a flag of the Parquet metadata has another type")),
        }
    }

    pub fn binary(&mut self, kind: Kind) -> Result<&'a [u8]> {
        if kind != BINARY {
            return Err(self.fail("a text of the Parquet metadata has another type"));
        }
        let length = self.varint()?;
        let found = usize::try_from(length)
            .ok()
            .and_then(|n| self.at.checked_add(n))
            .and_then(|end| self.bytes.get(self.at..end));
        let found =
            found.ok_or_else(|| self.fail("a text of the Parquet metadata is cut short"))?;
        self.at += found.len();
        Ok(found)
    }

    pub fn text(&mut self, kind: Kind) -> Result<String> {
        let found = self.binary(kind)?;
        match std::str::from_utf8(found) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.fail("a text of the Parquet metadata is not UTF-8")),
        }
    }

    /// The head of a list: how many items, of what type. Each item takes a byte or more, so the count is no larger than the rest.
    pub fn list(&mut self, kind: Kind) -> Result<(usize, Kind)> {
        if kind != LIST && kind != 10 {
            return Err(self.fail("a list of the Parquet metadata has another type"));
        }
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            n => u64::from(n),
        };
        match usize::try_from(count) {
            Ok(n) if n <= self.bytes.len() - self.at => Ok((n, head & 0x0F)),
            _ => Err(self.fail("a list of the Parquet metadata is longer than the file")),
        }
    }

    pub fn structs(&mut self, kind: Kind) -> Result<usize> {
        let (count, items) = self.list(kind)?;
        if count > 0 && items != STRUCT {
            return Err(self.fail("a list of the Parquet metadata holds another type"));
        }
        Ok(count)
    }

    pub fn skip(&mut self, kind: Kind) -> Result<()> {
        self.skip_below(kind, 0)
    }

    fn skip_below(&mut self, kind: Kind, depth: u32) -> Result<()> {
        if depth > DEEPEST {
            return Err(self.fail("the Parquet metadata is nested too deep"));
        }
        match kind {
            TRUE | FALSE => {}
            3 => drop(self.byte()?),
            4 | I32 | I64 => drop(self.varint()?),
            7 => {
                for _ in 0..8 {
                    self.byte()?;
                }
            }
            BINARY => drop(self.binary(kind)?),
            LIST | 10 => {
                let (count, items) = self.list(kind)?;
                for _ in 0..count {
                    // Booleans take a byte in a list.
                    let items = if matches!(items, TRUE | FALSE) {
                        3
                    } else {
                        items
                    };
                    self.skip_below(items, depth + 1)?;
                }
            }
            11 => {
                let count = self.varint()?;
                if count > 0 {
                    let kinds = self.byte()?;
                    if count > (self.bytes.len() - self.at) as u64 {
                        return Err(
                            self.fail("a map of the Parquet metadata is longer than the file")
                        );
                    }
                    for _ in 0..count {
                        for kind in [kinds >> 4, kinds & 0x0F] {
                            let kind = if matches!(kind, TRUE | FALSE) {
                                3
                            } else {
                                kind
                            };
                            self.skip_below(kind, depth + 1)?;
                        }
                    }
                }
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_below(kind, depth + 1)?;
                }
            }
            _ => return Err(self.fail("the Parquet metadata has a value of no known type")),
        }
        Ok(())
    }
}
