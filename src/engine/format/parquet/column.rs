//! A column in memory: values side by side, and which of them are there.

use std::ops::Range;

/// Values of any length, in one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blobs {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl Blobs {
    /// The value at `i`; empty beyond the end.
    #[must_use]
    pub fn get(&self, i: usize) -> &[u8] {
        let start = match i {
            0 => 0,
            _ => self.ends.get(i - 1).copied().unwrap_or(self.data.len()),
        };
        let end = self.ends.get(i).copied().unwrap_or(start);
        self.data.get(start..end).unwrap_or_default()
    }

    /// One more.
    pub fn push(&mut self, value: &[u8]) {
        self.data.extend_from_slice(value);
        self.ends.push(self.data.len());
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// All values, one behind the other.
    #[must_use]
    pub fn whole(&self) -> &[u8] {
        &self.data
    }

    /// Where value `i` lies in [`Self::whole`]; nowhere beyond the end.
    #[must_use]
    pub fn range(&self, i: usize) -> Range<usize> {
        let end = self.ends.get(i).copied().unwrap_or(self.data.len());
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before));
        start.copied().unwrap_or(0).min(end)..end
    }

    /// Each value, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }
}

impl<'a> FromIterator<&'a [u8]> for Blobs {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(values: I) -> Self {
        let mut out = Self::default();
        for value in values {
            out.push(value);
        }
        out
    }
}

/// The values of a column. A null has a place here too, with 0 or nothing in it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each variant is its type")]
pub enum Values {
    Bool(Vec<bool>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    /// UTF-8, checked when it was read.
    Text(Blobs),
    /// Bytes of any length: JSON, arrays, geometry, sparse vectors.
    Binary(Blobs),
    /// So many bytes each: vectors.
    Fixed {
        width: usize,
        data: Vec<u8>,
    },
    /// Item `i` ends at `ends[i]` of `items`.
    List {
        ends: Vec<usize>,
        items: Box<Column>,
    },
}

/// Values and, if any can be absent, which are there.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The values.
    pub values: Values,
    /// One for each value; `None` when none is null.
    pub valid: Option<Vec<bool>>,
}

macro_rules! plain {
    ($values:expr, $v:ident => $do:expr, $blobs:ident => $with:expr, ($width:ident, $data:ident) => $fixed:expr, ($ends:ident, $items:ident) => $list:expr) => {
        match $values {
            Values::Bool($v) => $do,
            Values::Int8($v) => $do,
            Values::Int16($v) => $do,
            Values::Int32($v) => $do,
            Values::Int64($v) => $do,
            Values::Float($v) => $do,
            Values::Double($v) => $do,
            Values::Text($blobs) | Values::Binary($blobs) => $with,
            Values::Fixed {
                width: $width,
                data: $data,
            } => $fixed,
            Values::List {
                ends: $ends,
                items: $items,
            } => $list,
        }
    };
}

impl Values {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        plain!(self, v => v.len(), b => b.len(),
            (width, data) => data.len().checked_div(*width).unwrap_or(0), (ends, _items) => ends.len())
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        plain!(self, v => std::mem::size_of_val(v.as_slice()), b => b.bytes() + b.len() * 8,
            (_width, data) => data.len(), (ends, items) => ends.len() * 8 + items.bytes())
    }

    /// The same type, without values.
    #[must_use]
    pub fn empty(&self) -> Self {
        match self {
            Self::Bool(_) => Self::Bool(Vec::new()),
            Self::Int8(_) => Self::Int8(Vec::new()),
            Self::Int16(_) => Self::Int16(Vec::new()),
            Self::Int32(_) => Self::Int32(Vec::new()),
            Self::Int64(_) => Self::Int64(Vec::new()),
            Self::Float(_) => Self::Float(Vec::new()),
            Self::Double(_) => Self::Double(Vec::new()),
            Self::Text(_) => Self::Text(Blobs::default()),
            Self::Binary(_) => Self::Binary(Blobs::default()),
            Self::Fixed { width, .. } => Self::Fixed {
                width: *width,
                data: Vec::new(),
            },
            Self::List { items, .. } => Self::List {
                ends: Vec::new(),
                items: Box::new(Column::of(items.values.empty())),
            },
        }
    }

    /// `count` places for nulls.
    pub fn push_nulls(&mut self, count: usize) {
        let len = self.len() + count;
        plain!(self, v => v.resize(len, Default::default()), b => b.ends.resize(len, b.data.len()),
            (width, data) => data.resize(len * *width, 0), (ends, items) => ends.resize(len, items.len()));
    }

    /// Adds `count` times the value at `i` of `from`, which is of the same type. `false`, and nothing is added, when it has none there.
    #[must_use]
    pub fn push_from(&mut self, from: &Self, i: usize, count: usize) -> bool {
        macro_rules! copy {
            ($to:ident, $from:ident) => {
                match $from.get(i) {
                    Some(value) => $to.extend(std::iter::repeat_n(*value, count)),
                    None => return false,
                }
            };
        }
        match (self, from) {
            (Self::Bool(to), Self::Bool(from)) => copy!(to, from),
            (Self::Int8(to), Self::Int8(from)) => copy!(to, from),
            (Self::Int16(to), Self::Int16(from)) => copy!(to, from),
            (Self::Int32(to), Self::Int32(from)) => copy!(to, from),
            (Self::Int64(to), Self::Int64(from)) => copy!(to, from),
            (Self::Float(to), Self::Float(from)) => copy!(to, from),
            (Self::Double(to), Self::Double(from)) => copy!(to, from),
            (Self::Text(to), Self::Text(from)) | (Self::Binary(to), Self::Binary(from)) => {
                if i >= from.len() {
                    return false;
                }
                for _ in 0..count {
                    to.push(from.get(i));
                }
            }
            (
                Self::Fixed { width, data },
                Self::Fixed {
                    width: other,
                    data: from,
                },
            ) if width == other => match from.get(i * *width..(i + 1) * *width) {
                Some(value) => {
                    for _ in 0..count {
                        data.extend_from_slice(value);
                    }
                }
                None => return false,
            },
            (
                Self::List { ends, items },
                Self::List {
                    ends: from_ends,
                    items: from,
                },
            ) => {
                let Some(end) = from_ends.get(i) else {
                    return false;
                };
                let start = if i == 0 { 0 } else { from_ends[i - 1] };
                for _ in 0..count {
                    if !items.append(from, start..*end) {
                        return false;
                    }
                    ends.push(items.len());
                }
            }
            _ => return false,
        }
        true
    }
}

impl Column {
    /// A column without nulls.
    #[must_use]
    pub fn of(values: Values) -> Self {
        Self {
            values,
            valid: None,
        }
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// No row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.bytes() + self.valid.as_ref().map_or(0, Vec::len)
    }

    /// Whether row `i` is null.
    #[must_use]
    pub fn is_null(&self, i: usize) -> bool {
        self.valid
            .as_ref()
            .is_some_and(|valid| !valid.get(i).copied().unwrap_or(false))
    }

    /// Without nulls there is no list of what is there: equal columns compare equal.
    pub fn tidy(&mut self) {
        if self
            .valid
            .as_ref()
            .is_some_and(|v| v.iter().all(|there| *there))
        {
            self.valid = None;
        }
    }

    /// How many are null.
    #[must_use]
    pub fn nulls(&self) -> usize {
        self.valid
            .as_ref()
            .map_or(0, |valid| valid.iter().filter(|there| !**there).count())
    }

    /// The same type, without rows.
    #[must_use]
    pub fn empty(&self) -> Self {
        Self {
            values: self.values.empty(),
            valid: self.valid.as_ref().map(|_| Vec::new()),
        }
    }

    /// Adds rows of another column of the same type; `false` when it is not, or has not so many.
    #[must_use]
    pub fn append(&mut self, from: &Self, rows: Range<usize>) -> bool {
        if rows.end > from.len() || rows.start > rows.end {
            return false;
        }
        if self.valid.is_none() && from.valid.is_some() {
            self.valid = Some(vec![true; self.len()]);
        }
        let done = match (&mut self.values, &from.values) {
            (Values::Bool(to), Values::Bool(from)) => {
                to.extend_from_slice(&from[rows.clone()]);
                true
            }
            (Values::Int8(to), Values::Int8(from)) => {
                to.extend_from_slice(&from[rows.clone()]);
                true
            }
            (Values::Int16(to), Values::Int16(from)) => {
                to.extend_from_slice(&from[rows.clone()]);
                true
            }
            (Values::Int32(to), Values::Int32(from)) => {
                to.extend_from_slice(&from[rows.clone()]);
                true
            }
            (Values::Int64(to), Values::Int64(from)) => {
                to.extend_from_slice(&from[rows.clone()]);
                true
            }
            (Values::Float(to), Values::Float(from)) => {
                to.extend_from_slice(&from[rows.clone()]);
                true
            }
            (Values::Double(to), Values::Double(from)) => {
                to.extend_from_slice(&from[rows.clone()]);
                true
            }
            (Values::Fixed { width, data }, Values::Fixed { width: w, data: d }) if width == w => {
                data.extend_from_slice(&d[rows.start * *w..rows.end * *w]);
                true
            }
            (to, from) => rows.clone().all(|i| to.push_from(from, i, 1)),
        };
        if let Some(valid) = &mut self.valid {
            match &from.valid {
                Some(other) => valid.extend_from_slice(&other[rows]),
                None => valid.resize(self.values.len(), true),
            }
        }
        done
    }

    /// The rows at these places, in this order. A place beyond the end becomes a null.
    #[must_use]
    pub fn take(&self, rows: &[u32]) -> Self {
        let mut out = self.empty();
        macro_rules! gather {
            ($to:ident, $from:ident) => {
                $to.extend(
                    rows.iter()
                        .map(|i| $from.get(*i as usize).copied().unwrap_or_default()),
                )
            };
        }
        match (&mut out.values, &self.values) {
            (Values::Bool(to), Values::Bool(from)) => gather!(to, from),
            (Values::Int8(to), Values::Int8(from)) => gather!(to, from),
            (Values::Int16(to), Values::Int16(from)) => gather!(to, from),
            (Values::Int32(to), Values::Int32(from)) => gather!(to, from),
            (Values::Int64(to), Values::Int64(from)) => gather!(to, from),
            (Values::Float(to), Values::Float(from)) => gather!(to, from),
            (Values::Double(to), Values::Double(from)) => gather!(to, from),
            (Values::Text(to), Values::Text(from)) | (Values::Binary(to), Values::Binary(from)) => {
                to.ends.reserve(rows.len());
                for i in rows {
                    to.push(from.get(*i as usize));
                }
            }
            (Values::Fixed { width, data }, Values::Fixed { data: from, .. }) => {
                data.reserve(rows.len() * *width);
                for i in rows {
                    let start = *i as usize * *width;
                    match from.get(start..start + *width) {
                        Some(value) => data.extend_from_slice(value),
                        None => data.resize(data.len() + *width, 0),
                    }
                }
            }
            (to, from) => {
                for i in rows {
                    if !to.push_from(from, *i as usize, 1) {
                        to.push_nulls(1);
                    }
                }
            }
        }
        if let Some(valid) = &self.valid {
            out.valid = Some(
                rows.iter()
                    .map(|i| valid.get(*i as usize).copied().unwrap_or(false))
                    .collect(),
            );
        }
        out
    }
}
