//! Every id of the seed becomes a fresh one from the allocator: in keys, values, channel names, object keys and the headers
//! of the files. So nothing of the demo can stand above the allocator's window, whatever the machine's clock says (law 4).

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use super::seed::{OBJECT_ROOT, Seed};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::binlog::V1_MAGIC;
use crate::engine::format::keys::{Key, Roots};
use crate::engine::format::paths::{ObjPath, Target, rewrite};
use crate::engine::format::wire::{Patch, WireType, records};
use crate::engine::ids::{BuildId, CollectionId, ObjectKey, PartitionId, SegmentId};

/// Smaller numbers are counts, field ids and enums.
const SMALLEST: i64 = 1_000_000_000_000_000;
/// Offsets of collection, partition and segment in a V1 file (`spec/layout.md` §7.4).
const HEADER_IDS: [usize; 3] = [21, 29, 37];

/// Old ids in order, and the first of as many new ones.
#[derive(Clone, Debug)]
pub struct IdMap {
    old: Vec<i64>,
    first: i64,
}

impl IdMap {
    /// The ids in the seed's keys: databases, collections, partitions, segments, indexes, builds, replicas.
    #[must_use]
    pub fn of(seed: &Seed, first: i64) -> Self {
        let roots = Roots::default();
        let mut old = BTreeSet::new();
        for (key, _) in &seed.keys {
            let text = key.to_key(&roots).text();
            let ids = text.split('/').filter_map(|p| p.parse::<i64>().ok());
            old.extend(ids.filter(|id| *id >= SMALLEST));
        }
        Self {
            old: old.into_iter().collect(),
            first,
        }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.old.len()).unwrap_or(u32::MAX)
    }

    /// The id after the mapped ones: for what the seed does not have.
    #[must_use]
    pub fn after(&self) -> i64 {
        self.first + i64::from(self.count())
    }

    /// The new id of an old one; other numbers stay.
    #[must_use]
    pub fn id(&self, old: i64) -> i64 {
        match self.old.binary_search(&old) {
            Ok(at) => self.first + i64::try_from(at).unwrap_or_default(),
            Err(_) => old,
        }
    }

    /// A text with decimal ids in it: a key, a channel name.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let plain = rest.bytes().take_while(|b| !b.is_ascii_digit()).count();
            let (head, tail) = rest.split_at(digits.max(plain));
            match head.parse::<i64>() {
                Ok(id) if id >= SMALLEST => out.push_str(&self.id(id).to_string()),
                _ => out.push_str(head),
            }
            rest = tail;
        }
        out
    }

    /// The key with new ids.
    pub fn key(&self, key: &Key) -> Result<Key> {
        let roots = Roots::default();
        let text = self.text(&key.to_key(&roots).text());
        Key::parse(&roots, text.as_bytes())
            .known()
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{text} is no key any more")))
    }

    /// A protobuf value with new ids, at any depth. An old id is a 59-bit number: no other field of the seed holds it by chance.
    pub fn value(&self, value: &[u8]) -> Result<Vec<u8>> {
        let mut patch = Patch::parse(value)?;
        let tags: BTreeSet<u32> = records(value)
            .filter_map(|r| r.ok().map(|r| r.tag))
            .collect();
        for tag in tags {
            if let Some(old) = patch.integer(tag) {
                let new = self.id(old.cast_signed());
                if new != old.cast_signed() {
                    patch.set_integer(tag, new.cast_unsigned());
                }
                continue;
            }
            let parts: Vec<Vec<u8>> = patch.all(tag).map(<[u8]>::to_vec).collect();
            let new = parts
                .iter()
                .map(|part| self.part(part))
                .collect::<Result<Vec<_>>>()?;
            if new != parts {
                patch.clear(tag);
                for part in new {
                    patch.append(tag, &part);
                }
            }
        }
        Ok(patch.finish())
    }

    /// The payload of a length-delimited field: a packed list of ids, a message, a text, or bytes that stay.
    fn part(&self, part: &[u8]) -> Result<Vec<u8>> {
        if let Some(ids) = packed(part).filter(|ids| ids.iter().all(|id| self.id(*id) != *id)) {
            let mut list = Patch::parse(&[])?;
            let ids: Vec<u64> = ids.iter().map(|id| self.id(*id).cast_unsigned()).collect();
            list.set_packed(1, &ids);
            return Ok(list.bytes(1).unwrap_or_default().to_vec());
        }
        // A message before a text: replacing inside a message would break the lengths around it.
        let is_message = !part.is_empty()
            && records(part)
                .all(|r| r.is_ok_and(|r| matches!(r.wire, WireType::Varint | WireType::Len)));
        if is_message {
            let new = self.value(part)?;
            if new != part {
                return Ok(new);
            }
        }
        if let Ok(text) = std::str::from_utf8(part) {
            return Ok(self.text(text).into_bytes());
        }
        Ok(part.to_vec())
    }

    /// An object with new ids in its key and, if it is a V1 file, in its header.
    pub fn object(&self, key: &str, bytes: &Bytes, root: &str) -> Result<(ObjectKey, Bytes)> {
        let path = ObjPath::parse(OBJECT_ROOT, key).known().ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                format!("seed object {key} is of no known class"),
            )
        })?;
        let owner = path.owner();
        let target = Target {
            collection: CollectionId(self.id(owner.collection.unwrap_or_default().0)),
            partition: PartitionId(self.id(owner.partition.unwrap_or_default().0)),
            segment: SegmentId(self.id(owner.segment.unwrap_or_default().0)),
            builds: owner
                .build
                .map(|b| (b, BuildId(self.id(b.0))))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
        };
        let key = rewrite(&path, &target)?.to_key(root);
        Ok((key, relabel(bytes, |id| self.id(id))))
    }
}

/// A V1 file whose header names other ids; anything else as it is.
#[must_use]
pub fn relabel(bytes: &Bytes, new: impl Fn(i64) -> i64) -> Bytes {
    if !bytes.starts_with(&V1_MAGIC) {
        return bytes.clone();
    }
    let mut out = BytesMut::from(&bytes[..]);
    for at in HEADER_IDS {
        if let Some(place) = out.get_mut(at..at + 8)
            && let Ok(old) = <[u8; 8]>::try_from(&*place)
        {
            place.copy_from_slice(&new(i64::from_le_bytes(old)).to_le_bytes());
        }
    }
    out.freeze()
}

/// The integers of a packed list; `None` when the bytes are no such list.
fn packed(part: &[u8]) -> Option<Vec<i64>> {
    let mut list = Patch::parse(&[]).ok()?;
    list.append(1, part);
    let ids = list.packed(1)?;
    (!ids.is_empty()).then(|| ids.into_iter().map(u64::cast_signed).collect())
}
