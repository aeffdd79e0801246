//! Tasks of the coordinators and foreign jobs as rows of one shape (`spec/layout.md` §3.9 to §3.12).

use crate::engine::format::codec::{self, Decoded};
use crate::engine::format::keys::Key;
use crate::engine::format::pb;
use crate::engine::ids::{
    CollectionId, JobId, MetaRev, NodeId, TaskId, Tso, UnixMs, UnixNs, UnixSecs,
};
use crate::engine::meta::KeyValue;
use crate::engine::model::data::{Enum, Task};
use crate::engine::model::names;

/// A time that is one: not 0, not the largest value, not outside the calendar (law 10).
fn real(ms: UnixMs) -> Option<UnixMs> {
    (Tso::from_ms(ms).time() == Some(ms)).then_some(ms)
}

fn secs(s: i64) -> Option<UnixMs> {
    real(UnixSecs(s).to_ms())
}

fn millis(ms: i64) -> Option<UnixMs> {
    real(UnixMs(ms))
}

fn nanos(ns: u64) -> Option<UnixMs> {
    real(UnixNs(i64::try_from(ns).ok()?).to_ms())
}

fn text_time(text: &str) -> Option<UnixMs> {
    let at: jiff::Timestamp = text.parse().ok()?;
    real(UnixMs(at.as_millisecond()))
}

fn node(id: i64) -> Option<NodeId> {
    (id > 0).then_some(NodeId(id))
}

fn ids(list: &[i64]) -> String {
    let mut out = String::new();
    for (i, id) in list.iter().take(4).enumerate() {
        if i > 0 {
            out.push(' ');
        }
        out.push_str(&id.to_string());
    }
    if list.len() > 4 {
        out.push_str(" …");
    }
    out
}

struct Draft {
    id: i64,
    kind: &'static str,
    state: Enum,
    collection: i64,
    reason: String,
}

impl Draft {
    fn task(self, kv: &KeyValue) -> Task {
        Task {
            id: TaskId(self.id),
            kind: self.kind,
            state: self.state,
            detail: String::new(),
            job: None,
            collection: CollectionId(self.collection),
            node: None,
            progress: None,
            reason: self.reason,
            started: None,
            ended: None,
            key: kv.key.clone(),
            rev: MetaRev(kv.mod_rev.0),
        }
    }
}

/// The task under `key`. `Ok(None)` when the key holds none.
pub(super) fn task(key: &Key, kv: &KeyValue) -> Result<Option<Task>, String> {
    macro_rules! value {
        ($ty:ty) => {
            match codec::decode::<$ty>(key, &kv.value) {
                Decoded::Value(value) => value,
                Decoded::Tombstone => return Ok(None),
                Decoded::Undecodable { reason } => return Err(reason),
            }
        };
    }
    let draft = |kind, id, state, collection, reason| {
        Draft {
            id,
            kind,
            state,
            collection,
            reason,
        }
        .task(kv)
    };
    let task = match key {
        Key::CopySegmentJob(id) => {
            let v = value!(pb::data::CopySegmentJob);
            let state = names::copy_job_state(v.state);
            Task {
                detail: format!("{} → {}", v.snapshot_name, v.collection_name),
                job: Some(*id),
                progress: Some((v.copied_segments, v.total_segments)),
                started: nanos(v.start_ts),
                ended: nanos(v.complete_ts),
                ..draft("copy-segment-job", id.0, state, v.collection_id, v.reason)
            }
        }
        Key::CopySegmentTask(id) => {
            let v = value!(pb::data::CopySegmentTask);
            let state = names::copy_task_state(v.state);
            let targets: Vec<i64> = v.id_mappings.iter().map(|m| m.target_segment_id).collect();
            Task {
                detail: ids(&targets),
                job: Some(JobId(v.job_id)),
                node: node(v.node_id),
                started: nanos(v.created_ts),
                ended: nanos(v.complete_ts),
                ..draft("copy-segment-task", id.0, state, v.collection_id, v.reason)
            }
        }
        Key::CompactionTask { trigger, plan, .. } => {
            let v = value!(pb::data::CompactionTask);
            let state = names::compaction_state(v.state);
            let kind = names::compaction_type(v.r#type).text();
            Task {
                detail: format!(
                    "{kind}: {} → {}",
                    ids(&v.input_segments),
                    ids(&v.result_segments)
                ),
                job: Some(JobId(*trigger)),
                node: node(v.node_id),
                started: secs(v.start_time),
                ended: secs(v.end_time),
                ..draft("compaction", plan.0, state, v.collection_id, v.fail_reason)
            }
        }
        Key::StatsTask(id) => {
            let v = value!(pb::index::StatsTask);
            let state = names::job_state(v.state);
            Task {
                detail: format!(
                    "{} of {}",
                    names::stats_job(v.sub_job_type).text(),
                    v.segment_id
                ),
                node: node(v.node_id),
                ..draft("stats", id.0, state, v.collection_id, v.fail_reason)
            }
        }
        Key::AnalyzeTask(id) => {
            let v = value!(pb::index::AnalyzeTask);
            let state = names::job_state(v.state);
            Task {
                detail: format!("field {} {}", v.field_id, v.field_name),
                node: node(v.node_id),
                ..draft("analyze", id.0, state, v.collection_id, v.fail_reason)
            }
        }
        Key::ImportJob(id) => {
            let v = value!(pb::data::ImportJob);
            let state = names::import_job_state(v.state);
            Task {
                detail: format!("{} files into {}", v.files.len(), v.collection_name),
                job: Some(*id),
                started: text_time(&v.create_time),
                ended: text_time(&v.complete_time),
                ..draft("import-job", id.0, state, v.collection_id, v.reason)
            }
        }
        Key::PreImportTask(id) => {
            let v = value!(pb::data::PreImportTask);
            let state = names::import_task_state(v.state);
            Task {
                detail: format!("{} files", v.file_stats.len()),
                job: Some(JobId(v.job_id)),
                node: node(v.node_id),
                started: text_time(&v.created_time),
                ended: text_time(&v.complete_time),
                ..draft("preimport-task", id.0, state, v.collection_id, v.reason)
            }
        }
        Key::ImportTask(id) => {
            let v = value!(pb::data::ImportTaskV2);
            let state = names::import_task_state(v.state);
            Task {
                detail: ids(&v.segment_i_ds),
                job: Some(JobId(v.job_id)),
                node: node(v.node_id),
                started: text_time(&v.created_time),
                ended: text_time(&v.complete_time),
                ..draft("import-task", id.0, state, v.collection_id, v.reason)
            }
        }
        Key::LegacyImportTask(id) => {
            let v = value!(pb::data::ImportTaskInfo);
            let at = v.state.unwrap_or_default();
            let state = names::import_state(at.state_code);
            Task {
                detail: format!("{} files, {} rows", v.files.len(), at.row_count),
                node: node(v.datanode_id),
                started: secs(v.create_ts),
                ..draft(
                    "bulk-insert",
                    id.0,
                    state,
                    v.collection_id,
                    at.error_message,
                )
            }
        }
        Key::RefreshJob(id) => {
            let v = value!(pb::data::ExternalCollectionRefreshJob);
            let state = names::job_state(v.state);
            Task {
                detail: v.collection_name,
                job: Some(*id),
                progress: Some((v.progress, 100)),
                started: millis(v.start_time),
                ended: millis(v.end_time),
                ..draft("refresh-job", id.0, state, v.collection_id, v.fail_reason)
            }
        }
        Key::RefreshTask(id) => {
            let v = value!(pb::data::ExternalCollectionRefreshTask);
            let state = names::job_state(v.state);
            Task {
                job: Some(JobId(v.job_id)),
                node: node(v.node_id),
                progress: Some((v.progress, 100)),
                ..draft("refresh-task", id.0, state, v.collection_id, v.fail_reason)
            }
        }
        Key::ExportSnapshotJob(id) => {
            let v = value!(pb::data::ExportSnapshotJob);
            let state = names::export_state(v.state);
            let ms = |n: u64| i64::try_from(n).ok().and_then(millis);
            Task {
                detail: v.snapshot_name,
                job: Some(*id),
                progress: Some((v.copied_files, v.total_files)),
                started: ms(v.start_time),
                ended: ms(v.end_time),
                ..draft("export-job", id.0, state, v.collection_id, v.reason)
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(task))
}
