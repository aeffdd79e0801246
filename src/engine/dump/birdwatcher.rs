//! birdwatcher's backups of an etcd keyspace, `bw_etcd_ALL.*.bak.gz`: what Milvus's maintainers ask every user for.
//!
//! Inside gzip, records of eight bytes of length (little endian) and as many bytes. First a header with the version. Version 1: then
//! one record a key to the end. Version 2: parts, each a header, its records, and a record without bytes; one part holds the keys, the
//! others what the servers said of themselves. Neither has revisions: all keys stand at revision 1, and ages of changes are unknown.

use std::io::{BufRead, Read as _};

use bytes::Bytes;
use prost::Message;

use super::LINE;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::meta::KeyValue;

/// Bytes of a header: names and counts.
const HEADER: u64 = 1 << 20;

#[derive(Clone, PartialEq, Message)]
struct BackupHeader {
    #[prost(int32, tag = "1")]
    version: i32,
    #[prost(int64, tag = "4")]
    entries: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PartHeader {
    #[prost(int32, tag = "1")]
    part_type: i32,
    #[prost(bytes = "bytes", tag = "3")]
    extra: Bytes,
}

/// `common.KeyDataPair`; the key as bytes, because nothing forces a key to be text.
#[derive(Clone, PartialEq, Message)]
struct KeyDataPair {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    data: Bytes,
}

/// Whether a file that begins so is such a backup: the length of a small header, and the header's first field.
pub(super) fn is_backup(head: &[u8]) -> bool {
    let (Some(length), Some(tag)) = (head.first_chunk::<8>(), head.get(8)) else {
        return false;
    };
    (1..HEADER).contains(&u64::from_le_bytes(*length)) && *tag == 0x08
}

/// The keys of a backup. `Corrupt` with the number of the bad record, or the version that nobody knows.
pub(super) fn read(mut from: impl BufRead) -> Result<Vec<KeyValue>> {
    let mut records = Records {
        from: &mut from,
        read: 0,
    };
    let header: BackupHeader = match records.next(HEADER)? {
        Some(bytes) => records.decoded(&bytes)?,
        None => return Err(records.bad("the header is missing")),
    };
    let (found, said) = match header.version {
        1 => (records.keys()?, Some(header.entries)),
        2 => records.part_with_keys()?,
        other => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the backup is of version {other}"),
            )
            .fix("Falconer reads birdwatcher's versions 1 and 2"));
        }
    };
    if let Some(said) = said.filter(|said| *said > 0 && usize::try_from(*said) != Ok(found.len())) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the backup was cut short or damaged: {} of {said} keys",
                found.len()
            ),
        )
        .fix("take another one"));
    }
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Corrupt, "the backup holds no key"));
    }
    Ok(found)
}

struct Records<'a, R> {
    from: &'a mut R,
    read: u64,
}

impl<R: BufRead> Records<'_, R> {
    fn bad(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!("record {} of the backup: {what}", self.read + 1),
        )
    }

    /// The next record, `None` at the end of the file.
    fn next(&mut self, most: u64) -> Result<Option<Vec<u8>>> {
        let ends = self.from.fill_buf().map(<[u8]>::is_empty);
        if ends.map_err(|e| self.bad("it cannot be read").caused_by(e))? {
            return Ok(None);
        }
        let mut length = [0; 8];
        let got = self.from.read_exact(&mut length);
        got.map_err(|e| self.bad("its length is cut off").caused_by(e))?;
        let length = u64::from_le_bytes(length);
        if length > most {
            return Err(self.bad(&format!("{length} bytes, more than any has")));
        }
        // Grows with what is there, not with what is promised.
        let mut bytes = Vec::new();
        let got = self.from.by_ref().take(length).read_to_end(&mut bytes);
        let got = got.map_err(|e| self.bad("it cannot be read").caused_by(e))?;
        if (got as u64) < length {
            return Err(self.bad("it is cut off"));
        }
        self.read += 1;
        Ok(Some(bytes))
    }

    fn decoded<M: Message + Default>(&self, bytes: &[u8]) -> Result<M> {
        M::decode(bytes).map_err(|e| {
            let what = format!("record {} of the backup is not its kind", self.read);
            Error::new(ErrorKind::Corrupt, what).caused_by(e)
        })
    }

    /// Keys to the end of the part or of the file.
    fn keys(&mut self) -> Result<Vec<KeyValue>> {
        let mut out = Vec::new();
        while let Some(bytes) = self.next(LINE)? {
            if bytes.is_empty() {
                break;
            }
            let pair: KeyDataPair = self.decoded(&bytes)?;
            out.push(KeyValue {
                key: MetaKey(pair.key),
                value: pair.data,
                create_rev: MetaRev(1),
                mod_rev: MetaRev(1),
                version: 1,
                lease: 0,
            });
        }
        Ok(out)
    }

    /// The keys and how many there should be. What comes after them is not read.
    fn part_with_keys(&mut self) -> Result<(Vec<KeyValue>, Option<i64>)> {
        #[derive(serde::Deserialize)]
        struct Extra {
            cnt: String,
        }
        while let Some(bytes) = self.next(HEADER)? {
            let header: PartHeader = self.decoded(&bytes)?;
            // Of a session: its line, then metrics and default metrics (2), or its configuration or metrics (4, 5).
            let beside = match header.part_type {
                1 => {
                    let extra = serde_json::from_slice::<Extra>(&header.extra);
                    let count = extra.ok().and_then(|extra| extra.cnt.parse().ok());
                    return Ok((self.keys()?, count));
                }
                2 => 2,
                4 | 5 => 1,
                other => return Err(self.bad(&format!("part of unknown kind {other}"))),
            };
            while self.next(LINE)?.is_some_and(|session| !session.is_empty()) {
                for _ in 0..beside {
                    self.next(LINE)?;
                }
            }
        }
        Ok((Vec::new(), None))
    }
}
