//! The records of one restored segment: its own, its logs, its index rows.

use std::collections::BTreeMap;

use prost::Message;

use super::restore_files::typed;
use super::restore_map::{Given, SegmentPlan, corrupt};
use crate::engine::error::Result;
use crate::engine::format::keys::{Key, LogKind};
use crate::engine::format::paths::{ObjPath, StorageManifest, rewrite, rewrite_manifest};
use crate::engine::format::pb;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{BuildId, FieldId, IndexId, VChannel};

/// Writes one segment's records.
pub(super) struct SegmentWriter<'a> {
    pub source: &'a pb::data::SegmentDescription,
    pub plan: &'a SegmentPlan,
    pub channels: &'a [(VChannel, VChannel)],
    pub indexes: &'a BTreeMap<i64, IndexId>,
    pub infos: &'a [pb::index::IndexInfo],
    pub given: &'a Given,
    pub root: &'a str,
    pub bucket: &'a str,
}

impl SegmentWriter<'_> {
    pub fn write(&self, out: &mut Vec<(Key, Vec<u8>)>) -> Result<()> {
        let t = &self.plan.target;
        let info = self.info()?;
        out.push((
            Key::Segment(t.collection, t.partition, t.segment),
            info.encode_to_vec(),
        ));
        let lists = [
            (LogKind::Insert, &self.source.binlogs),
            (LogKind::Stats, &self.source.statslogs),
            (LogKind::Delta, &self.source.deltalogs),
            (LogKind::Bm25, &self.source.bm25_statslogs),
        ];
        for (kind, list) in lists {
            for (field, log) in merged(list)? {
                out.push((
                    Key::Log(kind, t.collection, t.partition, t.segment, FieldId(field)),
                    log.encode_to_vec(),
                ));
            }
        }
        for file in &self.source.index_files {
            out.push(self.index_row(file)?);
        }
        Ok(())
    }

    fn channel(&self) -> Result<&VChannel> {
        self.channels
            .iter()
            .find(|(from, _)| from.0 == self.source.channel_name)
            .map(|(_, to)| to)
            .ok_or_else(|| {
                corrupt(format!(
                    "segment {} lies on channel {}, which the snapshot does not list",
                    self.source.segment_id, self.source.channel_name
                ))
            })
    }

    fn position(
        &self,
        source: Option<&pb::msg::MsgPosition>,
        channel: &VChannel,
    ) -> Option<pb::msg::MsgPosition> {
        let source = source.filter(|p| **p != pb::msg::MsgPosition::default())?;
        let wal = match source.wal_name {
            // Manifests lose the WAL's name; the channel's start has it.
            0 => match ChannelName::parse(&channel.0) {
                ChannelName::Shard { pchannel, .. } => {
                    self.given.starts.get(pchannel).map_or(0, |s| s.wal)
                }
                _ => 0,
            },
            wal => wal,
        };
        Some(pb::msg::MsgPosition {
            channel_name: channel.0.clone(),
            wal_name: wal,
            ..source.clone()
        })
    }

    fn info(&self) -> Result<pb::data::SegmentInfo> {
        let (s, t) = (self.source, &self.plan.target);
        let channel = self.channel()?;
        let manifest_path = if s.manifest_path.is_empty() {
            String::new()
        } else {
            let manifest = StorageManifest::parse(&s.manifest_path)?;
            rewrite_manifest(&manifest, self.root, self.bucket, t)?.to_string()
        };
        let text_stats_logs = s
            .text_index_files
            .iter()
            .map(|(field, stats)| Ok((*field, self.text(stats)?)))
            .collect::<Result<_>>()?;
        let json_key_stats = s
            .json_key_index_files
            .iter()
            .map(|(field, stats)| Ok((*field, self.json(stats)?)))
            .collect::<Result<_>>()?;
        Ok(pb::data::SegmentInfo {
            id: t.segment.0,
            collection_id: t.collection.0,
            partition_id: t.partition.0,
            insert_channel: channel.0.clone(),
            num_of_rows: s.num_of_rows,
            state: pb::common::SegmentState::Flushed as i32,
            max_row_num: s.num_of_rows,
            last_expire_time: u64::MAX,
            start_position: self.position(s.start_position.as_ref(), channel),
            dml_position: self.position(s.dml_position.as_ref(), channel),
            level: s.segment_level,
            storage_version: s.storage_version,
            is_sorted: s.is_sorted,
            text_stats_logs,
            json_key_stats,
            manifest_path,
            commit_timestamp: s.commit_timestamp,
            ..Default::default()
        })
    }

    fn new_build(&self, source: i64) -> Result<i64> {
        self.plan
            .target
            .builds
            .get(&BuildId(source))
            .map(|b| b.0)
            .ok_or_else(|| corrupt(format!("build {source} has no new id")))
    }

    /// A file list in the form the source had it: rewritten when full, unchanged when relative.
    fn text(&self, stats: &pb::data::TextIndexStats) -> Result<pb::data::TextIndexStats> {
        let files = stats
            .files
            .iter()
            .map(|file| {
                if file.contains("text_log/") {
                    let to = rewrite(&typed(self.root, file)?, &self.plan.target)?;
                    Ok(to.to_key(self.root).0)
                } else {
                    Ok(file.clone())
                }
            })
            .collect::<Result<_>>()?;
        Ok(pb::data::TextIndexStats {
            build_id: self.new_build(stats.build_id)?,
            files,
            ..stats.clone()
        })
    }

    /// JSON file lists are stored relative to the field's folder.
    fn json(&self, stats: &pb::data::JsonKeyStats) -> Result<pb::data::JsonKeyStats> {
        let files = stats
            .files
            .iter()
            .map(|file| {
                if !(file.contains("json_stats/") || file.contains("json_key_index_log/")) {
                    return Ok(file.clone());
                }
                match typed(self.root, file)? {
                    ObjPath::JsonStats(_, f) | ObjPath::JsonKeyIndex(f) => Ok(f.file),
                    other => Err(corrupt(format!("{other} is not a JSON statistics file"))),
                }
            })
            .collect::<Result<_>>()?;
        Ok(pb::data::JsonKeyStats {
            build_id: self.new_build(stats.build_id)?,
            files,
            ..stats.clone()
        })
    }

    /// A finished index row; file keys are names only.
    fn index_row(&self, file: &pb::index::IndexFilePathInfo) -> Result<(Key, Vec<u8>)> {
        let t = &self.plan.target;
        let index = self
            .indexes
            .get(&file.index_id)
            .or_else(|| {
                let info = self
                    .infos
                    .iter()
                    .find(|i| i.index_name == file.index_name && i.field_id == file.field_id)?;
                self.indexes.get(&info.index_id)
            })
            .copied()
            .ok_or_else(|| {
                corrupt(format!(
                    "segment {} has files of index {} ({}), which the snapshot does not define",
                    self.source.segment_id, file.index_name, file.index_id
                ))
            })?;
        let build = BuildId(self.new_build(file.build_id)?);
        let index_file_keys = file
            .index_file_paths
            .iter()
            .map(|path| match typed(self.root, path)? {
                ObjPath::IndexFile(f) | ObjPath::IndexFileV1(_, f) => Ok(f.file),
                other => Err(corrupt(format!("{other} is not an index file"))),
            })
            .collect::<Result<Vec<_>>>()?;
        let now = u64::try_from(self.given.now.to_secs().0).unwrap_or(0);
        let index_type = file
            .index_params
            .iter()
            .find(|p| p.key == "index_type")
            .map(|p| p.value.clone())
            .unwrap_or_default();
        let row = pb::index::SegmentIndex {
            collection_id: t.collection.0,
            partition_id: t.partition.0,
            segment_id: t.segment.0,
            num_rows: file.num_rows,
            index_id: index.0,
            build_id: build.0,
            index_version: file.index_version,
            state: pb::common::IndexState::Finished as i32,
            index_file_keys,
            create_time: now,
            serialize_size: file.serialized_size,
            current_index_version: file.current_index_version,
            finished_time: now,
            mem_size: file.mem_size,
            current_scalar_index_version: file.current_scalar_index_version,
            index_type,
            index_store_path_version: file.index_store_path_version,
            ..Default::default()
        };
        Ok((
            Key::SegmentIndex(t.collection, t.partition, t.segment, build),
            row.encode_to_vec(),
        ))
    }
}

/// One record a field, paths off, ids on (`spec/layout.md` §3.3): deltas of descendants share a field with the segment's own.
fn merged(list: &[pb::data::FieldBinlog]) -> Result<BTreeMap<i64, pb::data::FieldBinlog>> {
    let mut out: BTreeMap<i64, pb::data::FieldBinlog> = BTreeMap::new();
    for field in list {
        let into = out
            .entry(field.field_id)
            .or_insert_with(|| pb::data::FieldBinlog {
                binlogs: Vec::new(),
                ..field.clone()
            });
        for log in &field.binlogs {
            let log_id = match log.log_id {
                0 => log
                    .log_path
                    .rsplit('/')
                    .next()
                    .and_then(|name| name.parse().ok())
                    .ok_or_else(|| corrupt(format!("log {:?} has no id", log.log_path)))?,
                id => id,
            };
            into.binlogs.push(pb::data::Binlog {
                log_path: String::new(),
                log_id,
                ..log.clone()
            });
        }
    }
    Ok(out)
}
