//! Segments joined with their logs (`spec/layout.md` §3.2, §3.3). Every log key leaves its own contribution, so that a later
//! change or delete of one key keeps the sums right, and logs may arrive before their segment.

use std::sync::Arc;

use crate::engine::format::codec;
use crate::engine::format::keys::{Key, LogKind};
use crate::engine::format::pb;
use crate::engine::format::wire;
use crate::engine::ids::{CollectionId, FieldId, MetaRev, PartitionId, SegmentId, Tso, UnixNs};
use crate::engine::meta::KeyValue;
use crate::engine::model::catalog::{Catalog, SegmentKey};
use crate::engine::model::data::{LogSum, Segment};
use crate::engine::model::names;

/// What one log key adds to its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine::model) struct LogPiece {
    kind: LogKind,
    field: FieldId,
    sum: LogSum,
    rev: MetaRev,
}

/// A segment as stored: its own key's part, and its logs' parts.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::engine::model) struct SegmentEntry {
    /// The joined row.
    pub(in crate::engine::model) row: Segment,
    /// Revision of the segment's own key.
    own_rev: MetaRev,
    /// Logs in the segment's own value: inline lists (before 2.2), or the summary of 3.0 when there are no log keys.
    own: Option<Box<OwnLogs>>,
    logs: Vec<LogPiece>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OwnLogs {
    /// Lists inside the value; they win over the log keys (`spec/layout.md` §3.3).
    inline: [Option<LogSum>; 4],
    /// `stats` (tag 38): all there is when no log key is written any more.
    summary: Option<[LogSum; 4]>,
}

const fn place(kind: LogKind) -> usize {
    match kind {
        LogKind::Insert => 0,
        LogKind::Delta => 1,
        LogKind::Stats => 2,
        LogKind::Bm25 => 3,
    }
}

fn add(slot: &mut LogSum, kind: usize, sum: LogSum) {
    slot.files = slot.files.saturating_add(sum.files);
    slot.bytes = slot.bytes.saturating_add(sum.bytes);
    // Each field of an insert log repeats the rows; each delta log adds deletes.
    slot.entries = if kind == 1 {
        slot.entries.saturating_add(sum.entries)
    } else {
        slot.entries.max(sum.entries)
    };
}

impl SegmentEntry {
    fn join(&mut self) {
        let mut sums = [LogSum::default(); 4];
        let mut rev = self.own_rev;
        for piece in &self.logs {
            let at = place(piece.kind);
            add(&mut sums[at], at, piece.sum);
            rev = rev.max(piece.rev);
        }
        if let Some(own) = &self.own {
            if let (Some(summary), true) = (own.summary, self.logs.is_empty()) {
                sums = summary;
            }
            for (slot, inline) in sums.iter_mut().zip(own.inline) {
                if let Some(inline) = inline {
                    *slot = inline;
                }
            }
        }
        [
            self.row.insert,
            self.row.delta,
            self.row.stats,
            self.row.bm25,
        ] = sums;
        self.row.rev = rev;
    }
}

/// Sums a `FieldBinlog` without building it: this runs once for each of a million keys.
fn log_sum(value: &[u8]) -> Result<LogSum, wire::Malformed> {
    let mut sum = LogSum::default();
    for record in wire::records(value) {
        let record = record?;
        if record.tag != 2 || record.wire != wire::WireType::Len {
            continue;
        }
        sum.files += 1;
        for inner in wire::records(record.payload) {
            let inner = inner?;
            match inner.tag {
                1 => sum.entries = sum.entries.saturating_add(count(&inner)),
                5 => sum.bytes = sum.bytes.saturating_add(count(&inner)),
                _ => {}
            }
        }
    }
    Ok(sum)
}

/// A stored int64 that counts something: negative reads as 0.
fn count(record: &wire::Raw<'_>) -> u64 {
    let raw = record.integer().unwrap_or(0);
    if i64::try_from(raw).is_ok() { raw } else { 0 }
}

fn inline(kind: usize, lists: &[pb::data::FieldBinlog]) -> Option<LogSum> {
    if lists.is_empty() {
        return None;
    }
    let mut total = LogSum::default();
    for list in lists {
        let mut sum = LogSum::default();
        for log in &list.binlogs {
            sum.files += 1;
            let u = |n: i64| u64::try_from(n).unwrap_or(0);
            sum.entries = sum.entries.saturating_add(u(log.entries_num));
            sum.bytes = sum.bytes.saturating_add(u(log.log_size));
        }
        add(&mut total, kind, sum);
    }
    Some(total)
}

fn summary(info: &pb::data::SegmentInfo) -> Option<[LogSum; 4]> {
    let stats = info.stats.as_ref()?;
    let u = |n: i64| u64::try_from(n).unwrap_or(0);
    let n = |n: i64| u32::try_from(n).unwrap_or(0);
    Some([
        LogSum {
            files: n(stats.insert_binlog_count),
            entries: u(info.num_of_rows),
            bytes: u(stats.insert_binlog_size),
        },
        LogSum {
            files: n(stats.delta_binlog_count),
            entries: u(stats.delete_num_rows),
            bytes: u(stats.delta_binlog_size),
        },
        LogSum {
            bytes: u(stats.stats_binlog_size),
            ..LogSum::default()
        },
        LogSum::default(),
    ])
}

impl Catalog {
    /// Learns a segment's own key.
    pub(super) fn learn_segment(
        &mut self,
        key: &Key,
        id: SegmentKey,
        kv: &KeyValue,
    ) -> Result<(), String> {
        let info: pb::data::SegmentInfo = match codec::decode(key, &kv.value) {
            codec::Decoded::Value(info) => info,
            codec::Decoded::Tombstone => return Ok(()),
            codec::Decoded::Undecodable { reason } => return Err(reason),
        };
        let ts = |p: &Option<pb::msg::MsgPosition>| p.as_ref().map_or(0, |p| p.timestamp);
        let inline = [
            inline(0, &info.binlogs),
            inline(1, &info.deltalogs),
            inline(2, &info.statslogs),
            inline(3, &info.bm25statslogs),
        ];
        let summary = summary(&info);
        let own = (summary.is_some() || inline.iter().any(Option::is_some))
            .then(|| Box::new(OwnLogs { inline, summary }));
        let (start, dml) = (ts(&info.start_position), ts(&info.dml_position));
        let row = Segment {
            id: id.0,
            collection: id.1,
            partition: id.2,
            channel: self.channel_name(&info.insert_channel),
            state: names::segment_state(info.state),
            level: names::segment_level(info.level),
            rows: info.num_of_rows,
            storage_version: info.storage_version,
            insert: LogSum::default(),
            delta: LogSum::default(),
            stats: LogSum::default(),
            bm25: LogSum::default(),
            start: Tso(start),
            dml: Tso(dml),
            dropped_at: i64::try_from(info.dropped_at)
                .ok()
                .filter(|ns| *ns > 0)
                .map(UnixNs),
            compacted: info.compacted,
            compaction_from: info.compaction_from.into_iter().map(SegmentId).collect(),
            importing: info.is_importing,
            invisible: info.is_invisible,
            by_streaming: info.is_created_by_streaming,
            sorted: info.is_sorted,
            namespace_sorted: info.is_sorted_by_namespace,
            by_compaction: info.created_by_compaction,
            fake: info.is_fake,
            commit_ts: Tso(info.commit_timestamp),
            manifest: (!info.manifest_path.is_empty()).then(|| info.manifest_path.into()),
            rev: kv.mod_rev,
        };
        let logs = match self.segments.get(&id) {
            Some(old) => old.logs.clone(),
            None => self.loose_logs.remove(&id).unwrap_or_default(),
        };
        let mut entry = SegmentEntry {
            row,
            own_rev: kv.mod_rev,
            own,
            logs,
        };
        entry.join();
        self.set_segment(id, Some(entry));
        Ok(())
    }

    /// Forgets a segment's own key; its logs stay, loose.
    pub(super) fn forget_segment(&mut self, id: SegmentKey) {
        if let Some(old) = self.set_segment(id, None)
            && !old.logs.is_empty()
        {
            self.loose_logs.insert(id, old.logs.clone());
        }
    }

    /// Learns a log key.
    pub(super) fn learn_log(
        &mut self,
        kind: LogKind,
        id: SegmentKey,
        field: FieldId,
        kv: &KeyValue,
    ) -> Result<(), String> {
        let sum = log_sum(&kv.value).map_err(|bad| bad.to_string())?;
        let piece = LogPiece {
            kind,
            field,
            sum,
            rev: kv.mod_rev,
        };
        self.edit_logs(id, |logs| {
            match logs.binary_search_by_key(&(kind, field), |p| (p.kind, p.field)) {
                Ok(at) => logs[at] = piece,
                Err(at) => logs.insert(at, piece),
            }
        });
        Ok(())
    }

    /// Forgets a log key.
    pub(super) fn forget_log(&mut self, kind: LogKind, id: SegmentKey, field: FieldId) {
        self.edit_logs(id, |logs| {
            logs.retain(|p| (p.kind, p.field) != (kind, field));
        });
    }

    fn edit_logs(&mut self, id: SegmentKey, edit: impl FnOnce(&mut Vec<LogPiece>)) {
        if let Some(entry) = self.segments.get_mut(&id) {
            let entry = Arc::make_mut(entry);
            self.sums.segment(&entry.row, false);
            // Most segments are no L0: only those are copied.
            let before = entry.row.is_l0().then(|| entry.row.clone());
            edit(&mut entry.logs);
            entry.join();
            self.sums.segment(&entry.row, true);
            if let Some(before) = before {
                let after = entry.row.clone();
                self.note_l0(id, &before, false);
                self.note_l0(id, &after, true);
            }
        } else if let Some(logs) = self.loose_logs.get_mut(&id) {
            edit(logs);
            if logs.is_empty() {
                self.loose_logs.remove(&id);
            }
        } else {
            let mut logs = Vec::new();
            edit(&mut logs);
            if !logs.is_empty() {
                self.loose_logs.insert(id, logs);
            }
        }
    }

    fn set_segment(
        &mut self,
        id: SegmentKey,
        entry: Option<SegmentEntry>,
    ) -> Option<Arc<SegmentEntry>> {
        let old = match &entry {
            Some(_) => self.segments.get(&id).cloned(),
            None => self.segments.remove(&id),
        };
        if let Some(old) = &old {
            let s = &old.row;
            self.sums.segment(s, false);
            self.note_l0(id, s, false);
            self.illegal.remove(&id);
            let same_channel = entry.as_ref().is_some_and(|e| e.row.channel == s.channel);
            if !same_channel {
                self.unlink_channel(&s.channel, id);
            }
            if entry.is_none() {
                self.segments_of.remove(&(s.collection, id.0, id.2));
            }
        }
        if let Some(mut entry) = entry {
            entry.logs.shrink_to_fit();
            let s = &entry.row;
            self.sums.segment(s, true);
            self.note_l0(id, s, true);
            if s.scope().is_none() {
                self.illegal.insert(id);
            }
            self.segments_of.insert((s.collection, id.0, id.2));
            self.segments_on
                .entry(s.channel.clone())
                .or_default()
                .insert(id);
            self.segments.insert(id, Arc::new(entry));
        }
        old
    }

    fn unlink_channel(&mut self, channel: &Arc<str>, id: SegmentKey) {
        let gone = match self.segments_on.get_mut(channel) {
            Some(ids) => {
                ids.remove(&id);
                ids.is_empty()
            }
            None => false,
        };
        if gone {
            self.segments_on.remove(channel);
        }
    }

    /// One copy of a channel's name for all of its segments.
    fn channel_name(&self, name: &str) -> Arc<str> {
        self.segments_on
            .get_key_value(name)
            .map_or_else(|| Arc::from(name), |(known, _)| known.clone())
    }
}

/// The identity of a segment's keys.
pub(super) fn segment_key(c: CollectionId, p: PartitionId, s: SegmentId) -> SegmentKey {
    (s, c, p)
}
