//! Index definitions, index builds and snapshots (`spec/layout.md` §3.12, §3.14).

use std::sync::Arc;

use crate::engine::format::codec::{self, Decoded};
use crate::engine::format::keys::Key;
use crate::engine::format::{mask, pb};
use crate::engine::ids::{FieldId, IndexId, PartitionId, PinId, Tso, UnixMs, UnixSecs, VChannel};
use crate::engine::meta::KeyValue;
use crate::engine::model::catalog::Catalog;
use crate::engine::model::data::{IndexDef, Pin, SegmentIndex, Snapshot};
use crate::engine::model::names;

fn params(list: Vec<pb::common::KeyValuePair>) -> Vec<(String, String)> {
    list.into_iter()
        .map(|p| {
            let value = mask::text(&p.value).into_owned();
            (p.key, value)
        })
        .collect()
}

fn param(list: &[(String, String)], name: &str) -> String {
    list.iter()
        .find(|(k, _)| k == name)
        .map_or_else(String::new, |(_, v)| v.clone())
}

/// `None` for 0 and for the largest values: they are marks, not moments (law 10).
fn moment(ms: i64) -> Option<UnixMs> {
    (ms > 0 && Tso::from_ms(UnixMs(ms)).time() == Some(UnixMs(ms))).then_some(UnixMs(ms))
}

impl Catalog {
    /// Learns an index, a build or a snapshot. `Ok(false)` when the key is none.
    pub(super) fn learn_index(&mut self, key: &Key, kv: &KeyValue) -> Result<bool, String> {
        macro_rules! value {
            ($ty:ty) => {
                match codec::decode::<$ty>(key, &kv.value) {
                    Decoded::Value(value) => value,
                    Decoded::Tombstone => return Ok(true),
                    Decoded::Undecodable { reason } => return Err(reason),
                }
            };
        }
        let rev = kv.mod_rev;
        match key {
            Key::FieldIndex(c, id) => {
                let index = value!(pb::index::FieldIndex);
                let info = index.index_info.unwrap_or_default();
                let all = params(info.index_params);
                let row = IndexDef {
                    id: *id,
                    collection: *c,
                    field: FieldId(info.field_id),
                    name: info.index_name.into(),
                    index_type: param(&all, "index_type"),
                    metric: param(&all, "metric_type"),
                    params: all,
                    deleted: index.deleted,
                    created: Tso(index.create_time),
                    rev,
                };
                self.indexes.insert((*c, *id), Arc::new(row));
            }
            Key::SegmentIndex(c, p, s, b) => {
                let index = value!(pb::index::SegmentIndex);
                let row = SegmentIndex {
                    build: *b,
                    index: IndexId(index.index_id),
                    collection: *c,
                    partition: *p,
                    segment: *s,
                    state: names::index_state(index.state),
                    rows: index.num_rows,
                    files: u32::try_from(index.index_file_keys.len()).unwrap_or(u32::MAX),
                    bytes: index.serialize_size,
                    deleted: index.deleted,
                    fail_reason: index.fail_reason,
                    created: UnixSecs(i64::try_from(index.create_time).unwrap_or(0)),
                    rev,
                };
                let place = (*b, *c, *p, *s);
                self.forget_build(place);
                self.sums.build(&row, true);
                self.builds_of.insert((*s, *b, *c, *p));
                self.builds_for
                    .insert((row.collection, row.index, *b, *p, *s));
                self.builds.insert(place, Arc::new(row));
            }
            Key::Snapshot(c, id) => {
                let info = value!(pb::data::SnapshotInfo);
                let pins = info
                    .pin_ids
                    .iter()
                    .map(|pin| Pin {
                        id: PinId(*pin),
                        expires: info.pin_expire_at_ms.get(pin).copied().and_then(moment),
                    })
                    .collect();
                let row = Snapshot {
                    id: *id,
                    collection: *c,
                    name: info.name.into(),
                    description: info.description,
                    state: names::snapshot_state(info.state),
                    create_ts: Tso(u64::try_from(info.create_ts).unwrap_or(0)),
                    pending_since: moment(info.pending_start_time),
                    protected_until: i64::try_from(info.compaction_expire_time)
                        .ok()
                        .filter(|s| *s > 0)
                        .map(UnixSecs),
                    partitions: info.partition_ids.into_iter().map(PartitionId).collect(),
                    boundary: info
                        .channel_seek_positions
                        .into_iter()
                        .map(|p| (VChannel(p.channel_name), Tso(p.timestamp)))
                        .collect(),
                    pins,
                    location: info.s3_location,
                    rev,
                };
                self.snapshots_of.insert((*c, *id));
                self.snapshots.insert((*id, *c), Arc::new(row));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Forgets an index, a build or a snapshot.
    pub(super) fn forget_index(&mut self, key: &Key) {
        match key {
            Key::FieldIndex(c, id) => {
                self.indexes.remove(&(*c, *id));
            }
            Key::SegmentIndex(c, p, s, b) => self.forget_build((*b, *c, *p, *s)),
            Key::Snapshot(c, id) => {
                self.snapshots_of.remove(&(*c, *id));
                self.snapshots.remove(&(*id, *c));
            }
            _ => {}
        }
    }

    fn forget_build(&mut self, place: crate::engine::model::catalog::BuildKey) {
        if let Some(old) = self.builds.remove(&place) {
            let (b, c, p, s) = place;
            self.sums.build(&old, false);
            self.builds_of.remove(&(s, b, c, p));
            self.builds_for
                .remove(&(old.collection, old.index, b, p, s));
        }
    }
}
