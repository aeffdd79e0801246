//! Page headers, and the bytes behind them.

use std::io::Read;

use super::Limits;
use super::thrift::{Cursor, STRUCT};
use crate::engine::error::{Error, ErrorKind, Result};

pub(super) const PLAIN: i32 = 0;
pub(super) const PLAIN_DICTIONARY: i32 = 2;
pub(super) const RLE: i32 = 3;
pub(super) const RLE_DICTIONARY: i32 = 8;

/// What a page is.
pub(super) enum Kind {
    Dictionary,
    Data,
    /// Levels stand before the compressed part, with these lengths.
    DataV2 {
        def: usize,
        rep: usize,
        packed: bool,
    },
    /// Of no use here.
    Other,
}

pub(super) struct Header {
    pub kind: Kind,
    pub values: u64,
    pub encoding: i32,
    /// Of the levels of a V1 page.
    pub level_encodings: (i32, i32),
    pub unpacked: u64,
    pub packed: u64,
}

impl Header {
    pub fn parse(c: &mut Cursor<'_>) -> Result<Self> {
        let mut out = Self {
            kind: Kind::Other,
            values: 0,
            encoding: PLAIN,
            level_encodings: (RLE, RLE),
            unpacked: 0,
            packed: 0,
        };
        let mut last = 0;
        let mut page = None;
        while let Some((id, kind)) = c.field(&mut last)? {
            match id {
                1 => page = Some(c.i32(kind)?),
                2 => out.unpacked = c.size(kind)?,
                3 => out.packed = c.size(kind)?,
                5 | 7 | 8 if kind == STRUCT => out.detail(c, id)?,
                _ => c.skip(kind)?,
            }
        }
        out.kind = match (page, out.kind) {
            (Some(0), _) => Kind::Data,
            (Some(1), _) => Kind::Other,
            (Some(2), _) => Kind::Dictionary,
            (Some(3), v2 @ Kind::DataV2 { .. }) => v2,
            _ => return Err(c.fail("a page is of no known kind")),
        };
        Ok(out)
    }

    fn detail(&mut self, c: &mut Cursor<'_>, of: i16) -> Result<()> {
        let (mut def, mut rep, mut packed) = (0, 0, true);
        let mut last = 0;
        while let Some((id, kind)) = c.field(&mut last)? {
            match (of, id) {
                (_, 1) => self.values = c.size(kind)?,
                (5 | 7, 2) | (8, 4) => self.encoding = c.i32(kind)?,
                (5, 3) => self.level_encodings.0 = c.i32(kind)?,
                (5, 4) => self.level_encodings.1 = c.i32(kind)?,
                (8, 5) => def = c.size(kind)?,
                (8, 6) => rep = c.size(kind)?,
                (8, 7) => packed = c.boolean(kind)?,
                _ => c.skip(kind)?,
            }
        }
        if of == 8 {
            let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            self.kind = Kind::DataV2 {
                def: size(def),
                rep: size(rep),
                packed,
            };
        }
        Ok(())
    }
}

/// Unpacks a page. What comes out is counted, not what the header promises.
pub(super) fn unpack(
    file: &str,
    at: u64,
    codec: i32,
    packed: &[u8],
    stated: u64,
    limits: &Limits,
) -> Result<Vec<u8>> {
    let corrupt = |why: &str| {
        Error::new(ErrorKind::Corrupt, why)
            .with("file", file)
            .with("offset", at)
    };
    let stated = usize::try_from(stated)
        .ok()
        .filter(|n| *n <= limits.page)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Limit,
                format!(
                    "a page has {stated} bytes unpacked, more than {} are not held",
                    limits.page
                ),
            )
            .with("file", file)
            .with("offset", at)
        })?;
    let out = match codec {
        0 => packed.to_vec(),
        1 => {
            // Snappy's own head states a length, and the library reserves it: three bytes make 64 at most.
            if snap::raw::decompress_len(packed).ok() != Some(stated)
                || stated > packed.len().saturating_mul(64)
            {
                return Err(corrupt("a snappy page is not as long as it says"));
            }
            let out = snap::raw::Decoder::new().decompress_vec(packed);
            out.map_err(|e| corrupt("a snappy page cannot be unpacked").caused_by(e))?
        }
        2 => read_at_most(flate2::read::MultiGzDecoder::new(packed), stated)
            .map_err(|e| corrupt("a gzip page cannot be unpacked").caused_by(e))?,
        6 => zstd::stream::read::Decoder::with_buffer(packed)
            .and_then(|mut reader| {
                reader.window_log_max(27)?;
                read_at_most(reader, stated)
            })
            .map_err(|e| corrupt("a zstd page cannot be unpacked").caused_by(e))?,
        other => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("pages are packed with codec {}", codec_name(other)),
            )
            .with("file", file)
            .fix("write the file with zstd, snappy, gzip or no compression"));
        }
    };
    if out.len() != stated {
        return Err(corrupt("a page is not as long as its header says"));
    }
    Ok(out)
}

/// One byte more than stated tells a page that is too long from one that is right.
fn read_at_most(reader: impl Read, stated: usize) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(stated as u64 + 1).read_to_end(&mut out)?;
    Ok(out)
}

fn codec_name(codec: i32) -> String {
    match codec {
        3 => "LZO".into(),
        4 => "BROTLI".into(),
        5 => "LZ4".into(),
        7 => "LZ4_RAW".into(),
        other => other.to_string(),
    }
}
