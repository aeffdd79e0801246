//! The footer: which columns a file has, and where their pages are.

use std::ops::Range;

use super::thrift::Cursor;
use crate::engine::error::{Error, ErrorKind, Result};

/// Last bytes of a file: the footer's length and the magic.
const TAIL: usize = 8;
const MAGIC: &[u8] = b"PAR1";
/// Groups in groups.
const DEEPEST: usize = 16;

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is its type")]
pub enum Physical {
    Bool,
    Int32,
    Int64,
    Int96,
    Float,
    Double,
    Bytes,
    Fixed(usize),
}

/// A column that has values, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Name of the outermost field.
    pub name: String,
    /// `field_id` of the outermost field; where it has none, that of the leaf.
    pub field_id: Option<i32>,
    /// How values are stored.
    pub physical: Physical,
    /// `ConvertedType`, as the file says it: 0 UTF-8, 5 decimal, 11 to 14 unsigned.
    pub converted: Option<i32>,
    /// Whether the leaf is the outermost field itself or the items of a list that is.
    pub plain: bool,
    pub(super) max_def: u16,
    pub(super) max_rep: u16,
    /// Definition level from which a list has an item. Below the level before, the list itself is null.
    pub(super) item_def: u16,
}

impl Leaf {
    /// Whether a row holds a list of values.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.max_rep > 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub codec: i32,
    pub values: u64,
    pub bytes: Range<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub rows: u64,
    pub chunks: Vec<Chunk>,
}

/// What the footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Columns with values.
    pub leaves: Vec<Leaf>,
    /// Rows of all row groups.
    pub rows: u64,
    /// Key-value metadata; bytes that are not UTF-8 are replaced.
    pub metadata: Vec<(String, String)>,
    pub(super) groups: Vec<Group>,
}

#[derive(Default)]
struct Element {
    kind: Option<i32>,
    length: Option<i32>,
    repetition: i32,
    name: String,
    children: u64,
    converted: Option<i32>,
    field_id: Option<i32>,
}

impl Footer {
    /// Reads the footer of a whole file. `file` is named in errors.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let fail = |at: usize, why: &str| {
            Error::new(ErrorKind::Corrupt, why)
                .with("file", file)
                .with("offset", at)
        };
        if !bytes.starts_with(MAGIC) {
            return Err(fail(0, "the magic of a Parquet file is missing"));
        }
        let tail_at = bytes.len().saturating_sub(TAIL);
        let tail = bytes
            .last_chunk::<TAIL>()
            .filter(|_| tail_at >= MAGIC.len())
            .ok_or_else(|| fail(bytes.len(), "the Parquet file is cut short"))?;
        let (length, magic) = tail.split_at(4);
        if magic == b"PARE" {
            return Err(
                Error::new(ErrorKind::Unsupported, "the Parquet file is encrypted")
                    .with("file", file),
            );
        }
        if magic != MAGIC {
            return Err(fail(
                tail_at + 4,
                "the Parquet file does not end with its magic: it is cut short",
            ));
        }
        let length = length
            .iter()
            .rev()
            .fold(0usize, |sum, b| (sum << 8) | usize::from(*b));
        let start = tail_at
            .checked_sub(length)
            .filter(|start| *start >= MAGIC.len())
            .ok_or_else(|| fail(tail_at, "the Parquet footer is longer than the file"))?;
        let mut cursor = Cursor {
            file,
            bytes: &bytes[start..tail_at],
            at: 0,
            base: start as u64,
        };
        file_metadata(&mut cursor, start as u64)
    }

    /// The column of this field id.
    #[must_use]
    pub fn by_field(&self, field: i64) -> Option<usize> {
        let found = |leaf: &Leaf| leaf.field_id.is_some_and(|id| i64::from(id) == field);
        self.leaves.iter().position(found)
    }

    /// The column of this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<usize> {
        self.leaves.iter().position(|leaf| leaf.name == name)
    }

    /// A key's metadata.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        let found = self.metadata.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Rows of each row group.
    pub fn group_rows(&self) -> impl Iterator<Item = u64> {
        self.groups.iter().map(|g| g.rows)
    }
}

fn file_metadata(c: &mut Cursor<'_>, data_end: u64) -> Result<Footer> {
    let mut schema = Vec::new();
    let mut groups = Vec::new();
    let mut metadata = Vec::new();
    let mut rows = None;
    let mut last = 0;
    while let Some((id, kind)) = c.field(&mut last)? {
        match id {
            2 => {
                for _ in 0..c.structs(kind)? {
                    schema.push(element(c)?);
                }
            }
            3 => rows = Some(c.size(kind)?),
            4 => {
                for _ in 0..c.structs(kind)? {
                    groups.push(group(c, data_end)?);
                }
            }
            5 => {
                for _ in 0..c.structs(kind)? {
                    metadata.push(key_value(c)?);
                }
            }
            _ => c.skip(kind)?,
        }
    }
    let leaves = leaves(c, &schema)?;
    let mut sum = 0u64;
    for group in &groups {
        if group.chunks.len() != leaves.len() {
            return Err(c.fail(format!(
                "a row group has {} columns, the schema {}",
                group.chunks.len(),
                leaves.len()
            )));
        }
        for (chunk, leaf) in group.chunks.iter().zip(&leaves) {
            if leaf.max_rep == 0 && chunk.values != group.rows {
                return Err(c.fail(format!(
                    "a column has {} values in a row group of {} rows",
                    chunk.values, group.rows
                )));
            }
        }
        sum = sum
            .checked_add(group.rows)
            .ok_or_else(|| c.fail("the Parquet footer counts more rows than there are numbers"))?;
    }
    if rows.is_some_and(|rows| rows != sum) {
        return Err(c.fail("the Parquet footer counts other rows than its row groups"));
    }
    Ok(Footer {
        leaves,
        rows: sum,
        metadata,
        groups,
    })
}

fn element(c: &mut Cursor<'_>) -> Result<Element> {
    let mut out = Element::default();
    let mut last = 0;
    while let Some((id, kind)) = c.field(&mut last)? {
        match id {
            1 => out.kind = Some(c.i32(kind)?),
            2 => out.length = Some(c.i32(kind)?),
            3 => out.repetition = c.i32(kind)?,
            4 => out.name = c.text(kind)?,
            5 => out.children = c.size(kind)?,
            6 => out.converted = Some(c.i32(kind)?),
            9 => out.field_id = Some(c.i32(kind)?),
            _ => c.skip(kind)?,
        }
    }
    Ok(out)
}

fn key_value(c: &mut Cursor<'_>) -> Result<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    let mut last = 0;
    while let Some((id, kind)) = c.field(&mut last)? {
        match id {
            1 => key = String::from_utf8_lossy(c.binary(kind)?).into_owned(),
            2 => value = String::from_utf8_lossy(c.binary(kind)?).into_owned(),
            _ => c.skip(kind)?,
        }
    }
    Ok((key, value))
}

fn group(c: &mut Cursor<'_>, data_end: u64) -> Result<Group> {
    let mut out = Group {
        rows: 0,
        chunks: Vec::new(),
    };
    let mut last = 0;
    while let Some((id, kind)) = c.field(&mut last)? {
        match id {
            1 => {
                for _ in 0..c.structs(kind)? {
                    out.chunks.push(chunk(c, data_end)?);
                }
            }
            3 => out.rows = c.size(kind)?,
            _ => c.skip(kind)?,
        }
    }
    Ok(out)
}

fn chunk(c: &mut Cursor<'_>, data_end: u64) -> Result<Chunk> {
    let mut found = None;
    let mut last = 0;
    while let Some((id, kind)) = c.field(&mut last)? {
        match id {
            1 => return Err(c.fail("a column is in another file")),
            3 if kind == super::thrift::STRUCT => found = Some(column_metadata(c, data_end)?),
            _ => c.skip(kind)?,
        }
    }
    found.ok_or_else(|| c.fail("a column has no metadata"))
}

fn column_metadata(c: &mut Cursor<'_>, data_end: u64) -> Result<Chunk> {
    let (mut codec, mut values, mut size) = (0, 0, 0);
    let (mut data, mut dictionary) = (None, None);
    let mut last = 0;
    while let Some((id, kind)) = c.field(&mut last)? {
        match id {
            4 => codec = c.i32(kind)?,
            5 => values = c.size(kind)?,
            7 => size = c.size(kind)?,
            9 => data = Some(c.size(kind)?),
            11 => dictionary = Some(c.size(kind)?),
            _ => c.skip(kind)?,
        }
    }
    let data = data.ok_or_else(|| c.fail("a column does not say where its pages are"))?;
    // Old writers put 0 for "no dictionary".
    let start = dictionary
        .filter(|at| *at > 0 && *at < data)
        .unwrap_or(data);
    let end = start.checked_add(size).filter(|end| *end <= data_end);
    let end = end.ok_or_else(|| c.fail("a column's pages lie beyond the file's end"))?;
    Ok(Chunk {
        codec,
        values,
        bytes: start..end,
    })
}

/// Walks the schema, which is written depth first.
fn leaves(c: &Cursor<'_>, schema: &[Element]) -> Result<Vec<Leaf>> {
    /// A group whose children come next.
    struct Open {
        left: u64,
        def: u16,
        rep: u16,
        item_def: u16,
        /// Children that a list has by its form: exactly one.
        single: bool,
        top: Option<(String, Option<i32>)>,
    }
    let root = schema
        .first()
        .ok_or_else(|| c.fail("the Parquet file has no schema"))?;
    let mut open = vec![Open {
        left: root.children,
        def: 0,
        rep: 0,
        item_def: 0,
        single: true,
        top: None,
    }];
    let mut out = Vec::new();
    for element in &schema[1..] {
        while open.last().is_some_and(|o| o.left == 0) {
            open.pop();
        }
        let depth = open.len();
        let parent = open
            .last_mut()
            .ok_or_else(|| c.fail("the Parquet schema has more columns than its root says"))?;
        parent.left -= 1;
        let (mut def, mut rep, mut item_def) = (parent.def, parent.rep, parent.item_def);
        match element.repetition {
            0 => {}
            1 => def += 1,
            2 => {
                def += 1;
                rep += 1;
                item_def = def;
            }
            _ => return Err(c.fail("a column's repetition is of no known kind")),
        }
        let (name, field_id) = match &parent.top {
            Some((name, id)) => (name.clone(), id.or(element.field_id)),
            None => (element.name.clone(), element.field_id),
        };
        let single = parent.single;
        if element.children > 0 {
            if depth >= DEEPEST {
                return Err(c.fail("the Parquet schema is nested too deep"));
            }
            open.push(Open {
                left: element.children,
                def,
                rep,
                item_def,
                single: single && element.children == 1,
                top: Some((name, field_id)),
            });
            continue;
        }
        out.push(Leaf {
            name,
            field_id,
            physical: physical(c, element)?,
            converted: element.converted,
            plain: rep <= 1 && (depth == 1 || (single && rep == 1)),
            max_def: def,
            max_rep: rep,
            item_def,
        });
    }
    if open.iter().any(|o| o.left > 0) {
        return Err(c.fail("the Parquet schema has fewer columns than it says"));
    }
    Ok(out)
}

fn physical(c: &Cursor<'_>, element: &Element) -> Result<Physical> {
    Ok(match element.kind {
        Some(0) => Physical::Bool,
        Some(1) => Physical::Int32,
        Some(2) => Physical::Int64,
        Some(3) => Physical::Int96,
        Some(4) => Physical::Float,
        Some(5) => Physical::Double,
        Some(6) => Physical::Bytes,
        Some(7) => match element.length.map(usize::try_from) {
            Some(Ok(width)) if width > 0 => Physical::Fixed(width),
            _ => return Err(c.fail("a column of fixed length does not say how long")),
        },
        _ => return Err(c.fail("a column is of no known type")),
    })
}
