//! Column chunks to columns, a batch at a time.

use std::sync::Arc;

use bytes::Bytes;

use super::Limits;
use super::chunk::{Chunk, Fault, empty};
use super::column::Column;
use super::footer::{Footer, Leaf, Physical};
use crate::engine::error::{Error, ErrorKind, Result};

/// A whole Parquet file.
#[derive(Clone, Debug)]
pub struct Table {
    file: Arc<str>,
    bytes: Bytes,
    footer: Arc<Footer>,
    limits: Limits,
}

impl Table {
    /// Reads the footer. `file` is named in errors.
    pub fn open(file: &str, bytes: Bytes, limits: Limits) -> Result<Self> {
        let footer = Footer::parse(file, &bytes)?;
        Ok(Self {
            file: file.into(),
            bytes,
            footer: Arc::new(footer),
            limits,
        })
    }

    /// What the footer says.
    #[must_use]
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// A reader of column `leaf` (its place in [`Footer::leaves`]), through all row groups.
    pub fn column(&self, leaf: usize) -> Result<ColumnReader> {
        let found = self.footer.leaves.get(leaf).cloned();
        let found = found.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the file has no such column").with("file", &self.file)
        })?;
        let unsupported =
            |why: String| Err(Error::new(ErrorKind::Unsupported, why).with("file", &self.file));
        if !found.plain {
            return unsupported(format!(
                "column {} is neither of values nor of lists of values",
                found.name
            ));
        }
        if found.physical == Physical::Int96 {
            return unsupported(format!("column {} is of type INT96", found.name));
        }
        Ok(ColumnReader {
            table: self.clone(),
            leaf,
            of: found,
            group: 0,
            chunk: None,
        })
    }
}

/// Reads one column in order.
#[derive(Debug)]
pub struct ColumnReader {
    table: Table,
    leaf: usize,
    of: Leaf,
    group: usize,
    chunk: Option<Chunk>,
}

impl ColumnReader {
    /// The column.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.of
    }

    /// Up to `rows` more rows, as they are stored: [`Values::Int32`](super::Values::Int32) for all small integers,
    /// [`Values::Binary`](super::Values::Binary) for text. Fewer only at the end.
    pub fn read(&mut self, rows: usize) -> Result<Column> {
        let mut out = empty(&self.of);
        while self.ready()? {
            let room = self.table.limits.batch.saturating_sub(out.bytes());
            let Some(chunk) = &mut self.chunk else { break };
            let done = chunk.more(&self.of, &mut out, rows, room);
            let at = chunk.offset();
            match done {
                Ok(true) => break,
                Ok(false) => {}
                Err(fault) => return Err(self.told(fault, at)),
            }
        }
        out.tidy();
        Ok(out)
    }

    /// Whether a page with values is at hand; goes on to the next page, and the next row group.
    fn ready(&mut self) -> Result<bool> {
        loop {
            if let Some(chunk) = &mut self.chunk {
                if chunk.has_values() {
                    return Ok(true);
                }
                if chunk.has_pages() {
                    chunk.next_page(
                        &self.table.file,
                        &self.table.bytes,
                        &self.of,
                        &self.table.limits,
                    )?;
                    continue;
                }
                if chunk.rows_left() > 0 {
                    let at = chunk.offset();
                    return Err(self.told(Fault::Rows, at));
                }
                self.chunk = None;
            }
            let Some(group) = self.table.footer.groups.get(self.group) else {
                return Ok(false);
            };
            self.group += 1;
            self.chunk = group
                .chunks
                .get(self.leaf)
                .map(|found| Chunk::new(found, group.rows));
        }
    }

    fn told(&self, fault: Fault, at: u64) -> Error {
        let (kind, why) = match fault {
            Fault::Values => (
                ErrorKind::Corrupt,
                "a page's values end too early, or one is not in its dictionary",
            ),
            Fault::Rows => (
                ErrorKind::Corrupt,
                "a column has other rows than its row group",
            ),
            Fault::Room => (
                ErrorKind::Limit,
                "the rows of one batch take more memory than is given to them",
            ),
        };
        Error::new(kind, why)
            .with("file", &self.table.file)
            .with("offset", at)
            .with("column", &self.of.name)
    }
}
