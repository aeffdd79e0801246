//! A strict, bounded reader of Parquet: what Milvus writes (`spec/layout.md` §7.4, §7.5) and what people bring to insert.
//!
//! Why not a library: input may be damaged or hostile, and must then be refused with one line that names file and offset,
//! without a panic and without an allocation that a length in the file chooses. Here nothing is reserved because a header
//! says so: memory follows the bytes that are really there, up to [`Limits`], and values come in batches.
//!
//! Read: one level of lists, PLAIN, dictionary and RLE values, data pages V1 and V2; no compression, zstd, snappy, gzip.
//! Anything else is [`Unsupported`](crate::engine::error::ErrorKind::Unsupported), never guessed at.

mod chunk;
mod column;
mod footer;
mod levels;
mod page;
mod read;
mod thrift;

pub use column::{Blobs, Column, Values};
pub use footer::{Footer, Leaf, Physical};
pub use read::{ColumnReader, Table};

/// What one file may make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one page, unpacked.
    pub page: usize,
    /// Bytes of one column of one batch: a dictionary can say a long value a million times in a few bytes.
    pub batch: usize,
}

impl Default for Limits {
    /// A page of the widest vectors that Milvus allows (32,768 × 4 bytes, 1,024 rows) has 128 MiB.
    fn default() -> Self {
        Self {
            page: 256 << 20,
            batch: 256 << 20,
        }
    }
}
