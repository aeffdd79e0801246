//! One column of one row group: its pages in turn.

use super::Limits;
use super::column::{Blobs, Column, Values};
use super::footer::{self, Leaf, Physical};
use super::levels::Hybrid;
use super::page::{Header, Kind, PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY, unpack};
use super::thrift::Cursor;
use crate::engine::error::{Error, ErrorKind, Result};

/// What can be wrong with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Values,
    Rows,
    /// More memory than is given.
    Room,
}

#[derive(Debug)]
pub(super) struct Chunk {
    at: u64,
    end: u64,
    codec: i32,
    /// Values of pages that were not opened yet.
    values_left: u64,
    rows_left: u64,
    dictionary: Option<Values>,
    page: Option<Page>,
}

#[derive(Debug)]
struct Page {
    offset: u64,
    data: Vec<u8>,
    /// Values, nulls included, not read yet.
    left: u64,
    rep: Option<Hybrid>,
    def: Option<Hybrid>,
    /// Levels of the next value of a list.
    peeked: Option<(u32, u32)>,
    values: Source,
}

#[derive(Debug)]
enum Source {
    Plain { at: usize, bit: u8 },
    Index(Hybrid),
    Flags(Hybrid),
}

/// A column of no rows, as this leaf stores them.
pub(super) fn empty(of: &Leaf) -> Column {
    let items = match of.physical {
        Physical::Bool => Values::Bool(Vec::new()),
        Physical::Int32 => Values::Int32(Vec::new()),
        Physical::Int64 | Physical::Int96 => Values::Int64(Vec::new()),
        Physical::Float => Values::Float(Vec::new()),
        Physical::Double => Values::Double(Vec::new()),
        Physical::Bytes => Values::Binary(Blobs::default()),
        Physical::Fixed(width) => Values::Fixed {
            width,
            data: Vec::new(),
        },
    };
    let nullable = |can: bool| can.then(Vec::new);
    if of.is_list() {
        Column {
            values: Values::List {
                ends: Vec::new(),
                items: Box::new(Column {
                    values: items,
                    valid: nullable(of.max_def > of.item_def),
                }),
            },
            valid: nullable(of.item_def > 1),
        }
    } else {
        Column {
            values: items,
            valid: nullable(of.max_def > 0),
        }
    }
}

impl Chunk {
    pub fn new(of: &footer::Chunk, rows: u64) -> Self {
        Self {
            at: of.bytes.start,
            end: of.bytes.end,
            codec: of.codec,
            values_left: of.values,
            rows_left: rows,
            dictionary: None,
            page: None,
        }
    }

    pub fn offset(&self) -> u64 {
        self.page.as_ref().map_or(self.at, |page| page.offset)
    }

    pub fn has_values(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page.left > 0)
    }

    pub fn has_pages(&self) -> bool {
        self.values_left > 0
    }

    pub fn rows_left(&self) -> u64 {
        self.rows_left
    }

    /// Opens the next page that has something.
    pub fn next_page(
        &mut self,
        file: &str,
        whole: &[u8],
        of: &Leaf,
        limits: &Limits,
    ) -> Result<()> {
        let start = usize::try_from(self.at).unwrap_or(usize::MAX);
        let end = usize::try_from(self.end).unwrap_or(usize::MAX);
        let mut cursor = Cursor {
            file,
            bytes: whole.get(start..end).unwrap_or_default(),
            at: 0,
            base: self.at,
        };
        if cursor.bytes.is_empty() {
            return Err(cursor.fail("a column ends before its last value"));
        }
        let header = Header::parse(&mut cursor)?;
        let packed = usize::try_from(header.packed)
            .ok()
            .and_then(|n| cursor.at.checked_add(n))
            .and_then(|to| cursor.bytes.get(cursor.at..to));
        let Some(packed) = packed else {
            return Err(cursor.fail("a page is longer than its column"));
        };
        let offset = self.at;
        let open = |packed: &[u8], stated: u64, codec: i32| {
            unpack(file, offset, codec, packed, stated, limits)
        };
        match header.kind {
            Kind::Other => {}
            Kind::Dictionary => {
                if self.dictionary.is_some() || !matches!(header.encoding, PLAIN | PLAIN_DICTIONARY)
                {
                    return Err(cursor.fail("a column has a dictionary where none belongs"));
                }
                let data = open(packed, header.unpacked, self.codec)?;
                let mut column = empty(of);
                let values = match &mut column.values {
                    Values::List { items, .. } => &mut items.values,
                    other => other,
                };
                let mut source = Source::Plain { at: 0, bit: 0 };
                let read = source.copy(&data, None, values, header.values, usize::MAX);
                read.map_err(|_| cursor.fail("a dictionary is cut short"))?;
                self.dictionary = Some(std::mem::replace(values, Values::Bool(Vec::new())));
            }
            Kind::Data | Kind::DataV2 { .. } => {
                if header.values > self.values_left {
                    return Err(cursor.fail("a column's pages have more values than the column"));
                }
                let page = match header.kind {
                    Kind::DataV2 {
                        def,
                        rep,
                        packed: is_packed,
                    } => {
                        let levels = rep.checked_add(def).filter(|n| *n <= packed.len());
                        let Some(levels) = levels else {
                            return Err(cursor.fail("a page's levels are longer than the page"));
                        };
                        let codec = if is_packed { self.codec } else { 0 };
                        let stated = header.unpacked.checked_sub(levels as u64);
                        let stated = stated.ok_or_else(|| {
                            cursor.fail("a page's levels are longer than the page")
                        })?;
                        let mut data = packed[..levels].to_vec();
                        data.extend(open(&packed[levels..], stated, codec)?);
                        Page::begin(data, &header, offset, of, Some((rep, def)))
                    }
                    _ => Page::begin(
                        open(packed, header.unpacked, self.codec)?,
                        &header,
                        offset,
                        of,
                        None,
                    ),
                };
                let page = page.map_err(|(unsupported, why)| {
                    if unsupported {
                        Error::new(ErrorKind::Unsupported, why)
                            .with("file", file)
                            .with("column", &of.name)
                            .fix("write the file with plain or dictionary encoding")
                    } else {
                        cursor.fail(why)
                    }
                })?;
                self.values_left -= header.values;
                self.page = Some(page);
            }
        }
        self.at += (cursor.at + packed.len()) as u64;
        Ok(())
    }

    /// Adds values of the open page until `out` has `rows` rows. Answers whether it has them, each one whole.
    pub fn more(
        &mut self,
        of: &Leaf,
        out: &mut Column,
        rows: usize,
        room: usize,
    ) -> Result<bool, Fault> {
        let Some(page) = &mut self.page else {
            return Ok(false);
        };
        let dictionary = self.dictionary.as_ref();
        if of.is_list() {
            return page.lists(dictionary, of, out, (rows, room), &mut self.rows_left);
        }
        let wanted = (rows.saturating_sub(out.len())) as u64;
        let took = page.flat(dictionary, of, out, wanted.min(page.left), room)?;
        self.rows_left = self.rows_left.checked_sub(took).ok_or(Fault::Rows)?;
        Ok(out.len() >= rows)
    }
}

impl Page {
    /// Finds levels and values in a page. `Err` says whether it is unsupported or corrupt.
    fn begin(
        data: Vec<u8>,
        header: &Header,
        offset: u64,
        of: &Leaf,
        v2: Option<(usize, usize)>,
    ) -> Result<Self, (bool, String)> {
        let short = || (false, "a page's levels are cut short".to_owned());
        let mut at = 0usize;
        let mut levels = |most: u16, encoding: i32, known: Option<usize>| {
            if most == 0 {
                at += known.unwrap_or(0);
                return Ok(None);
            }
            if known.is_none() && encoding != RLE {
                return Err((
                    true,
                    "levels are packed in bits, as was given up in 2013".to_owned(),
                ));
            }
            let length = if let Some(length) = known {
                length
            } else {
                let length = le32(&data, at).ok_or_else(short)?;
                at += 4;
                length
            };
            let end = at
                .checked_add(length)
                .filter(|end| *end <= data.len())
                .ok_or_else(short)?;
            let found = Hybrid::new(at, end, Hybrid::width_of(most));
            at = end;
            Ok(Some(found))
        };
        let rep = levels(of.max_rep, header.level_encodings.1, v2.map(|(rep, _)| rep))?;
        let def = levels(of.max_def, header.level_encodings.0, v2.map(|(_, def)| def))?;
        let values = match header.encoding {
            PLAIN => Source::Plain { at, bit: 0 },
            PLAIN_DICTIONARY | RLE_DICTIONARY => {
                // A page of nulls alone may have no byte here.
                let width = data.get(at).copied().unwrap_or(0);
                if width > 32 {
                    return Err((
                        false,
                        "a page's dictionary indexes have more than 32 bits".into(),
                    ));
                }
                Source::Index(Hybrid::new((at + 1).min(data.len()), data.len(), width))
            }
            RLE if of.physical == Physical::Bool => {
                let length = le32(&data, at).ok_or_else(short)?;
                let end = (at + 4)
                    .checked_add(length)
                    .filter(|end| *end <= data.len())
                    .ok_or_else(short)?;
                Source::Flags(Hybrid::new(at + 4, end, 1))
            }
            other => {
                return Err((
                    true,
                    format!("values are encoded as {}", encoding_name(other)),
                ));
            }
        };
        Ok(Self {
            offset,
            data,
            left: header.values,
            rep,
            def,
            peeked: None,
            values,
        })
    }

    fn flat(
        &mut self,
        dictionary: Option<&Values>,
        of: &Leaf,
        out: &mut Column,
        most: u64,
        mut room: usize,
    ) -> Result<u64, Fault> {
        let mut left = most;
        while left > 0 {
            let (there, count) = match &mut self.def {
                None => (true, left),
                Some(def) => {
                    let (level, count) = def.next(&self.data, left).ok_or(Fault::Values)?;
                    if level > u32::from(of.max_def) {
                        return Err(Fault::Values);
                    }
                    (level == u32::from(of.max_def), count)
                }
            };
            let before = out.values.bytes();
            if there {
                self.values
                    .copy(&self.data, dictionary, &mut out.values, count, room)?;
            } else {
                push_nulls(&mut out.values, count, room)?;
            }
            room = room.saturating_sub(out.values.bytes() - before);
            if let Some(valid) = &mut out.valid {
                valid.resize(out.values.len(), there);
            }
            left -= count;
            self.left -= count;
        }
        Ok(most)
    }

    /// Rows of lists. A row may go on in the next page; it has ended when the next value begins another.
    fn lists(
        &mut self,
        dictionary: Option<&Values>,
        of: &Leaf,
        out: &mut Column,
        (rows, mut room): (usize, usize),
        rows_left: &mut u64,
    ) -> Result<bool, Fault> {
        let Values::List { ends, items } = &mut out.values else {
            return Err(Fault::Values);
        };
        while self.left > 0 {
            let (rep, def) = if let Some(levels) = self.peeked {
                levels
            } else {
                let level = |of: &mut Option<Hybrid>| match of {
                    Some(levels) => levels.next(&self.data, 1).map(|(level, _)| level),
                    None => Some(0),
                };
                let rep = level(&mut self.rep).ok_or(Fault::Values)?;
                (rep, level(&mut self.def).ok_or(Fault::Values)?)
            };
            self.peeked = Some((rep, def));
            if rep > u32::from(of.max_rep) || def > u32::from(of.max_def) {
                return Err(Fault::Values);
            }
            if rep == 0 {
                if ends.len() >= rows {
                    return Ok(true);
                }
                *rows_left = rows_left.checked_sub(1).ok_or(Fault::Rows)?;
                ends.push(items.len());
                if let Some(valid) = &mut out.valid {
                    valid.push(def + 1 >= u32::from(of.item_def));
                }
            } else if ends.is_empty() || def < u32::from(of.item_def) {
                return Err(Fault::Values);
            }
            if def >= u32::from(of.item_def) {
                let there = def == u32::from(of.max_def);
                let before = items.values.bytes();
                if there {
                    self.values
                        .copy(&self.data, dictionary, &mut items.values, 1, room)?;
                } else {
                    push_nulls(&mut items.values, 1, room)?;
                }
                room = room.saturating_sub(items.values.bytes() - before);
                if let Some(valid) = &mut items.valid {
                    valid.push(there);
                }
                if let Some(end) = ends.last_mut() {
                    *end = items.len();
                }
            }
            self.peeked = None;
            self.left -= 1;
        }
        Ok(false)
    }
}

fn push_nulls(values: &mut Values, count: u64, room: usize) -> Result<(), Fault> {
    let each = match values {
        Values::Fixed { width, .. } => *width,
        _ => 8,
    };
    let count = usize::try_from(count).map_err(|_| Fault::Room)?;
    if count.checked_mul(each).is_none_or(|bytes| bytes > room) {
        return Err(Fault::Room);
    }
    values.push_nulls(count);
    Ok(())
}

impl Source {
    /// Adds `count` values, of at most `room` bytes.
    fn copy(
        &mut self,
        data: &[u8],
        dictionary: Option<&Values>,
        out: &mut Values,
        count: u64,
        room: usize,
    ) -> Result<(), Fault> {
        match self {
            Self::Plain { at, bit } => {
                let count = usize::try_from(count).map_err(|_| Fault::Values)?;
                plain(data, at, bit, out, count).ok_or(Fault::Values)
            }
            Self::Index(indexes) => {
                let dictionary = dictionary.ok_or(Fault::Values)?;
                let mut left = count;
                let begin = out.bytes();
                while left > 0 {
                    let (index, times) = indexes.next(data, left).ok_or(Fault::Values)?;
                    let index = index as usize;
                    let each = match dictionary {
                        Values::Text(b) | Values::Binary(b) => b.get(index).len() + 8,
                        Values::Fixed { width, .. } => *width,
                        _ => 8,
                    };
                    let times = usize::try_from(times).map_err(|_| Fault::Room)?;
                    let more = each.checked_mul(times).ok_or(Fault::Room)?;
                    if (out.bytes() - begin).saturating_add(more) > room {
                        return Err(Fault::Room);
                    }
                    if !out.push_from(dictionary, index, times) {
                        return Err(Fault::Values);
                    }
                    left -= times as u64;
                }
                Ok(())
            }
            Self::Flags(flags) => {
                let Values::Bool(out) = out else {
                    return Err(Fault::Values);
                };
                let mut left = count;
                while left > 0 {
                    let (flag, times) = flags.next(data, left).ok_or(Fault::Values)?;
                    let times = usize::try_from(times).map_err(|_| Fault::Room)?;
                    if times > room {
                        return Err(Fault::Room);
                    }
                    out.extend(std::iter::repeat_n(flag == 1, times));
                    left -= times as u64;
                }
                Ok(())
            }
        }
    }
}

fn plain(data: &[u8], at: &mut usize, bit: &mut u8, out: &mut Values, count: usize) -> Option<()> {
    macro_rules! numbers {
        ($out:ident, $type:ty) => {{
            const WIDTH: usize = size_of::<$type>();
            let end = at.checked_add(count.checked_mul(WIDTH)?)?;
            let (raw, _) = data.get(*at..end)?.as_chunks::<WIDTH>();
            $out.extend(raw.iter().map(|b| <$type>::from_le_bytes(*b)));
            *at = end;
        }};
    }
    match out {
        Values::Bool(out) => {
            for _ in 0..count {
                let byte = *data.get(*at)?;
                out.push(byte >> *bit & 1 == 1);
                *bit += 1;
                if *bit == 8 {
                    *bit = 0;
                    *at += 1;
                }
            }
        }
        Values::Int32(out) => numbers!(out, i32),
        Values::Int64(out) => numbers!(out, i64),
        Values::Float(out) => numbers!(out, f32),
        Values::Double(out) => numbers!(out, f64),
        Values::Fixed { width, data: out } => {
            let end = at.checked_add(count.checked_mul(*width)?)?;
            out.extend_from_slice(data.get(*at..end)?);
            *at = end;
        }
        Values::Binary(out) => {
            for _ in 0..count {
                let length = le32(data, *at)?;
                let start = *at + 4;
                let end = start.checked_add(length)?;
                out.push(data.get(start..end)?);
                *at = end;
            }
        }
        _ => return None,
    }
    Some(())
}

fn le32(data: &[u8], at: usize) -> Option<usize> {
    let raw = data.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*raw)).ok()
}

fn encoding_name(encoding: i32) -> String {
    match encoding {
        4 => "BIT_PACKED".into(),
        5 => "DELTA_BINARY_PACKED".into(),
        6 => "DELTA_LENGTH_BYTE_ARRAY".into(),
        7 => "DELTA_BYTE_ARRAY".into(),
        9 => "BYTE_STREAM_SPLIT".into(),
        other => other.to_string(),
    }
}
