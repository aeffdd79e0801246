//! A strict reader of bare Avro data (`spec/snapshot.md` §2.3).
//!
//! Milvus's own reader turns an early end into empty lists and ignores what follows the datum; `apache-avro` reads a
//! missing boolean as null and ignores block sizes. Here every one of these is an error with its offset.

use crate::engine::error::{Error, ErrorKind, Result};

pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

/// The head of a block of a list.
pub(super) struct Block {
    pub items: u64,
    start: usize,
    begin: usize,
    size: Option<i64>,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, at: 0 }
    }

    pub fn fail(&self, at: usize, field: &str, why: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, why)
            .with("file", self.file)
            .with("offset", at)
            .with("field", field)
            .fix("the segment manifest is damaged or of another format version: do not restore from this snapshot")
    }

    /// How far the reader came.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn long(&mut self, field: &str) -> Result<i64> {
        let start = self.at;
        let mut raw = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.fail(start, field, "the manifest is cut short inside a number"));
            };
            if shift == 63 && byte > 1 {
                break;
            }
            self.at += 1;
            raw |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed());
            }
        }
        Err(self.fail(start, field, "a number of more than 64 bits"))
    }

    pub fn int(&mut self, field: &str) -> Result<i32> {
        let start = self.at;
        let value = self.long(field)?;
        i32::try_from(value).map_err(|_| self.fail(start, field, "an int of more than 32 bits"))
    }

    /// Timestamps and sizes are written as the signed number with the same bits.
    pub fn unsigned(&mut self, field: &str) -> Result<u64> {
        self.long(field).map(|v| v as u64)
    }

    pub fn boolean(&mut self, field: &str) -> Result<bool> {
        let start = self.at;
        match self.bytes.get(start) {
            Some(0) => self.at += 1,
            Some(1) => {
                self.at += 1;
                return Ok(true);
            }
            Some(_) => return Err(self.fail(start, field, "a boolean that is neither 0 nor 1")),
            None => {
                return Err(self.fail(start, field, "the manifest is cut short before a boolean"));
            }
        }
        Ok(false)
    }

    pub fn bytes(&mut self, field: &str) -> Result<Vec<u8>> {
        self.slice(field).map(<[u8]>::to_vec)
    }

    pub fn string(&mut self, field: &str) -> Result<String> {
        let start = self.at;
        let bytes = self.slice(field)?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| self.fail(start, field, "text that is not UTF-8"))
    }

    /// Text, borrowed.
    pub fn text(&mut self, field: &str) -> Result<&'a str> {
        let start = self.at;
        let bytes = self.slice(field)?;
        std::str::from_utf8(bytes).map_err(|_| self.fail(start, field, "text that is not UTF-8"))
    }

    /// Exactly `n` bytes.
    pub fn raw(&mut self, n: usize, field: &str) -> Result<&'a [u8]> {
        match self.bytes[self.at..].split_at_checked(n) {
            Some((taken, _)) => {
                self.at += n;
                Ok(taken)
            }
            None => Err(self.fail(self.at, field, "the manifest is cut short")),
        }
    }

    /// A length and that many bytes.
    pub fn slice(&mut self, field: &str) -> Result<&'a [u8]> {
        let start = self.at;
        let len = self.long(field)?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(len) {
            Ok(len) if len <= left => self.raw(len, field),
            Ok(_) => Err(self.fail(
                start,
                field,
                "the manifest is cut short inside text or bytes",
            )),
            Err(_) => Err(self.fail(start, field, "a negative length")),
        }
    }

    /// Blocks of items: a positive count, or a negative count and the block's size in bytes, which must be right.
    pub fn array<T>(
        &mut self,
        field: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut out = Vec::new();
        while let Some(block) = self.block(field)? {
            for _ in 0..block.items {
                out.push(item(self)?);
            }
            self.end_block(&block, field)?;
        }
        Ok(out)
    }

    /// The head of the next block; `None` at the list's end.
    pub fn block(&mut self, field: &str) -> Result<Option<Block>> {
        let start = self.at;
        let count = self.long(field)?;
        if count == 0 {
            return Ok(None);
        }
        let size = if count < 0 {
            Some(self.long(field)?)
        } else {
            None
        };
        let items = count.unsigned_abs();
        let left = (self.bytes.len() - self.at) as u64;
        // An item has at least one byte: a larger count is damage, and must not reserve memory.
        if items > left {
            return Err(self.fail(
                start,
                field,
                "a block with more items than the file has bytes",
            ));
        }
        if size.is_some_and(|size| u64::try_from(size).map_or(true, |size| size > left)) {
            return Err(self.fail(start, field, "a block size beyond the end of the file"));
        }
        Ok(Some(Block {
            items,
            start,
            begin: self.at,
            size,
        }))
    }

    /// After the last item of a block.
    pub fn end_block(&self, block: &Block, field: &str) -> Result<()> {
        let used = (self.at - block.begin) as u64;
        if block.size.is_some_and(|size| size.unsigned_abs() != used) {
            return Err(self.fail(
                block.start,
                field,
                "a block whose size is not that of its items",
            ));
        }
        Ok(())
    }

    /// Nothing may follow the datum.
    pub fn end(&self) -> Result<()> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(self.fail(
                self.at,
                "end",
                format!("{} bytes follow the manifest", self.bytes.len() - self.at),
            ))
        }
    }
}
