//! What makes two readings of a snapshot the same, wherever its files lie (`spec/snapshot.md` §3.9). The spec names the parts and
//! their order; whether Milvus counts the items of a list is not known, so a fingerprint of ours is compared only with one of ours.

use prost::Message;
use sha2::{Digest, Sha256};

use super::hex;
use super::pb::data::{SegmentDescription, SnapshotMetadata};

const TAG: &[u8] = b"milvus-snapshot-fingerprint-v1";

/// Byte strings after their length, numbers alone, both big-endian u64.
struct Digester(Sha256);

impl Digester {
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    /// In no order of their own.
    fn sorted<T: Ord>(&mut self, mut items: Vec<T>, each: impl Fn(&mut Self, &T)) {
        items.sort_unstable();
        for item in &items {
            each(self, item);
        }
    }
}

/// SHA-256, 64 hexadecimal digits, over the snapshot without its pins and without where it says it lies. `segments` with their
/// manifest paths; paths should be relative to where the snapshot is, so that a moved bundle stays the same.
#[must_use]
pub fn snapshot(metadata: &SnapshotMetadata, segments: &[SegmentDescription]) -> String {
    let mut out = Digester(Sha256::new());
    out.bytes(TAG);
    out.number(u64::try_from(metadata.layout).unwrap_or(0));
    let mut info = metadata.snapshot_info.clone().unwrap_or_default();
    info.pin_ids.clear();
    info.pin_expire_at_ms.clear();
    info.s3_location.clear();
    out.bytes(&info.encode_to_vec());
    out.bytes(
        &metadata
            .collection
            .clone()
            .unwrap_or_default()
            .encode_to_vec(),
    );
    let tails = metadata.manifest_list.iter().map(|path| {
        let at = path.rfind("snapshots/").unwrap_or(0);
        path.get(at..).unwrap_or_default()
    });
    out.sorted(tails.collect(), |out, path| {
        out.bytes(path.as_bytes());
    });
    out.sorted(metadata.segment_ids.clone(), |out, id| {
        out.number(id.cast_unsigned());
    });
    out.sorted(metadata.build_ids.clone(), |out, id| {
        out.number(id.cast_unsigned());
    });
    out.sorted(
        segments.iter().map(Message::encode_to_vec).collect(),
        |out, s| out.bytes(s),
    );
    let indexes = metadata.indexes.iter().map(Message::encode_to_vec);
    out.sorted(indexes.collect(), |out, i| {
        out.bytes(i);
    });
    hex(&out.0.finalize())
}

/// The same over what an export will do: version, snapshot, target, and each file's source key, kind, target key and size.
#[must_use]
pub fn plan<'a>(
    snapshot: &str,
    target: &str,
    files: impl IntoIterator<Item = (&'a str, &'a str, u64)>,
) -> String {
    let mut out = Digester(Sha256::new());
    for text in ["1", snapshot, target] {
        out.bytes(text.as_bytes());
    }
    for (from, to, size) in files {
        for text in [from, "file", to, &size.to_string()] {
            out.bytes(text.as_bytes());
        }
    }
    hex(&out.0.finalize())
}
