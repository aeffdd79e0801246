//! Edits of single fields, everything else untouched.

use std::borrow::Cow;

use super::{Malformed, Raw, WireType, read_varint, records, write_varint};

fn varint_record(tag: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(12);
    write_varint(&mut out, u64::from(tag) << 3);
    write_varint(&mut out, value);
    out
}

fn len_record(tag: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 12);
    write_varint(&mut out, u64::from(tag) << 3 | 2);
    write_varint(&mut out, payload.len() as u64);
    out.extend_from_slice(payload);
    out
}

#[derive(Clone, Debug)]
struct Part<'a> {
    tag: u32,
    wire: WireType,
    bytes: Cow<'a, [u8]>,
    /// Where the payload starts in `bytes`, and its length.
    payload: (usize, usize),
}

impl<'a> Part<'a> {
    fn of(raw: &Raw<'a>) -> Self {
        let start = raw.payload.as_ptr() as usize - raw.whole.as_ptr() as usize;
        Self {
            tag: raw.tag,
            wire: raw.wire,
            bytes: Cow::Borrowed(raw.whole),
            payload: (start, raw.payload.len()),
        }
    }

    fn new(tag: u32, wire: WireType, bytes: Vec<u8>, payload_len: usize) -> Self {
        let start = bytes.len() - payload_len;
        Self {
            tag,
            wire,
            bytes: Cow::Owned(bytes),
            payload: (start, payload_len),
        }
    }

    fn varint(tag: u32, value: u64) -> Self {
        let bytes = varint_record(tag, value);
        let key = varint_len(u64::from(tag) << 3);
        let len = bytes.len() - key;
        Self::new(tag, WireType::Varint, bytes, len)
    }

    fn len(tag: u32, payload: &[u8]) -> Self {
        Self::new(tag, WireType::Len, len_record(tag, payload), payload.len())
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[self.payload.0..self.payload.0 + self.payload.1]
    }

    fn integer(&self) -> Option<u64> {
        let raw = Raw {
            tag: self.tag,
            wire: self.wire,
            payload: self.payload(),
            whole: &self.bytes,
            offset: 0,
        };
        raw.integer()
    }
}

fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// A message being edited.
#[derive(Clone, Debug)]
pub struct Patch<'a> {
    parts: Vec<Part<'a>>,
    dirty: bool,
}

impl<'a> Patch<'a> {
    /// Cuts `bytes` into records.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let parts = records(bytes)
            .map(|r| r.map(|raw| Part::of(&raw)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            parts,
            dirty: false,
        })
    }

    /// Whether anything was changed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The message's bytes.
    #[must_use]
    pub fn finish(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.parts.iter().map(|p| p.bytes.len()).sum());
        for part in &self.parts {
            out.extend_from_slice(&part.bytes);
        }
        out
    }

    /// The integer of a singular field: the last record counts, as in every protobuf reader.
    #[must_use]
    pub fn integer(&self, tag: u32) -> Option<u64> {
        self.parts
            .iter()
            .rev()
            .find(|p| p.tag == tag)
            .and_then(Part::integer)
    }

    /// The payload of a singular length-delimited field: the last record counts.
    #[must_use]
    pub fn bytes(&self, tag: u32) -> Option<&[u8]> {
        self.parts
            .iter()
            .rev()
            .find(|p| p.tag == tag && p.wire == WireType::Len)
            .map(Part::payload)
    }

    /// Payloads of all length-delimited records of `tag`, in order.
    pub fn all(&self, tag: u32) -> impl Iterator<Item = &[u8]> {
        self.parts
            .iter()
            .filter(move |p| p.tag == tag && p.wire == WireType::Len)
            .map(Part::payload)
    }

    /// Sets a singular integer, bool or enum field. 0 removes the field, as proto3 writers do.
    pub fn set_integer(&mut self, tag: u32, value: u64) {
        if value == 0 {
            self.clear(tag);
        } else if self.integer(tag) != Some(value) {
            self.replace_singular(tag, Part::varint(tag, value));
        }
    }

    /// Sets a singular string or bytes field. Empty removes the field, as proto3 writers do.
    pub fn set_bytes(&mut self, tag: u32, value: &[u8]) {
        if value.is_empty() {
            self.clear(tag);
        } else if self.bytes(tag) != Some(value) {
            self.replace_singular(tag, Part::len(tag, value));
        }
    }

    /// Sets a singular message field to `value`, present even when empty.
    pub fn set_message(&mut self, tag: u32, value: &[u8]) {
        if self.all(tag).count() != 1 || self.bytes(tag) != Some(value) {
            self.replace_singular(tag, Part::len(tag, value));
        }
    }

    /// Sets a repeated integer field, packed, in the place of its first record. Empty removes the field.
    pub fn set_packed(&mut self, tag: u32, values: &[u64]) {
        if self.packed(tag).as_deref() == Some(values) {
            return;
        }
        let mut payload = Vec::new();
        for &value in values {
            write_varint(&mut payload, value);
        }
        let place = self.parts.iter().position(|p| p.tag == tag);
        self.clear(tag);
        if !values.is_empty() {
            let at = place.unwrap_or_else(|| self.place_for(tag));
            self.parts.insert(at, Part::len(tag, &payload));
            self.dirty = true;
        }
    }

    /// The values of a repeated integer field, packed or not; `None` when a record is not such a list.
    #[must_use]
    pub fn packed(&self, tag: u32) -> Option<Vec<u64>> {
        let mut out = Vec::new();
        for part in self.parts.iter().filter(|p| p.tag == tag) {
            if part.wire == WireType::Len {
                let mut rest = part.payload();
                while !rest.is_empty() {
                    let (value, n) = read_varint(rest)?;
                    out.push(value);
                    rest = &rest[n..];
                }
            } else {
                out.push(part.integer()?);
            }
        }
        Some(out)
    }

    /// Adds one element to a repeated message or string field, after the elements that are there.
    pub fn append(&mut self, tag: u32, payload: &[u8]) {
        let at = self.place_for(tag);
        self.parts.insert(at, Part::len(tag, payload));
        self.dirty = true;
    }

    /// Removes every record of `tag`.
    pub fn clear(&mut self, tag: u32) {
        let before = self.parts.len();
        self.parts.retain(|p| p.tag != tag);
        self.dirty |= self.parts.len() != before;
    }

    /// Removes the records of `tag` that `keep` refuses. `keep` sees each payload.
    pub fn retain(&mut self, tag: u32, mut keep: impl FnMut(&[u8]) -> bool) {
        let before = self.parts.len();
        self.parts
            .retain(|p| p.tag != tag || p.wire != WireType::Len || keep(p.payload()));
        self.dirty |= self.parts.len() != before;
    }

    /// Edits a singular nested message; creates it when absent. With several records the last is edited:
    /// readers merge them, and the last value of a field wins.
    pub fn nested(
        &mut self,
        tag: u32,
        edit: impl FnOnce(&mut Patch<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if let Some(at) = self
            .parts
            .iter()
            .rposition(|p| p.tag == tag && p.wire == WireType::Len)
        {
            self.edit_at(at, edit)
        } else {
            let mut fresh = Patch {
                parts: Vec::new(),
                dirty: false,
            };
            edit(&mut fresh)?;
            if fresh.dirty {
                let at = self.place_for(tag);
                self.parts.insert(at, Part::len(tag, &fresh.finish()));
                self.dirty = true;
            }
            Ok(())
        }
    }

    /// Edits each element of a repeated message field.
    pub fn each(
        &mut self,
        tag: u32,
        mut edit: impl FnMut(&mut Patch<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        for at in 0..self.parts.len() {
            if self.parts[at].tag == tag && self.parts[at].wire == WireType::Len {
                self.edit_at(at, &mut edit)?;
            }
        }
        Ok(())
    }

    /// Sets one entry of a `map<int64, int64>`; a zero value is written, because presence matters in a map.
    pub fn set_map_integer(&mut self, tag: u32, key: u64, value: u64) {
        let mut entry = varint_record(1, key);
        entry.extend(varint_record(2, value));
        let found = self.parts.iter().rposition(|p| {
            p.tag == tag && p.wire == WireType::Len && map_key(p.payload()) == Some(key)
        });
        match found {
            Some(at) if map_value(self.parts[at].payload()) == Some(value) => {}
            Some(at) => {
                self.parts[at] = Part::len(tag, &entry);
                self.dirty = true;
            }
            None => self.append(tag, &entry),
        }
    }

    /// Removes the entries with `key` from a map with integer keys.
    pub fn remove_map_integer(&mut self, tag: u32, key: u64) {
        self.retain(tag, |payload| map_key(payload) != Some(key));
    }

    fn edit_at(
        &mut self,
        at: usize,
        edit: impl FnOnce(&mut Patch<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let part = &self.parts[at];
        let shift = part.payload.0;
        let mut inner = Patch::parse(part.payload()).map_err(|bad| Malformed {
            offset: bad.offset + shift,
            reason: bad.reason,
        })?;
        edit(&mut inner)?;
        if inner.dirty {
            let tag = part.tag;
            let payload = inner.finish();
            self.parts[at] = Part::len(tag, &payload);
            self.dirty = true;
        }
        Ok(())
    }

    /// Puts `part` where the last record of its tag is and drops the others; a new field goes to its place.
    fn replace_singular(&mut self, tag: u32, part: Part<'a>) {
        if let Some(last) = self.parts.iter().rposition(|p| p.tag == tag) {
            self.parts[last] = part;
            let mut at = 0;
            self.parts.retain(|p| {
                let keep = at == last || p.tag != tag;
                at += 1;
                keep
            });
        } else {
            let at = self.place_for(tag);
            self.parts.insert(at, part);
        }
        self.dirty = true;
    }

    /// After the last record of `tag`, else before the first record with a higher tag, else at the end.
    fn place_for(&self, tag: u32) -> usize {
        if let Some(last) = self.parts.iter().rposition(|p| p.tag == tag) {
            return last + 1;
        }
        self.parts
            .iter()
            .position(|p| p.tag > tag)
            .unwrap_or(self.parts.len())
    }
}

fn map_key(entry: &[u8]) -> Option<u64> {
    map_part(entry, 1)
}

fn map_value(entry: &[u8]) -> Option<u64> {
    map_part(entry, 2)
}

/// A missing key or value of a map entry is the type's default, here 0.
fn map_part(entry: &[u8], tag: u32) -> Option<u64> {
    let mut found = Some(0);
    for record in records(entry) {
        let record = record.ok()?;
        if record.tag == tag {
            found = record.integer();
        }
    }
    found
}
