//! The export as others watch it: Milvus's own `ExportSnapshotJob` (`spec/snapshot.md` §1.2). Its `external_spec`, where Milvus keeps
//! credentials in clear, stays empty.

use prost::Message;

use super::cx::{JobCx, cut};
use super::export::State;
use crate::engine::error::Result;
use crate::engine::format::keys::Key;
use crate::engine::format::pb::data::{ExportSnapshotJob, ExportSnapshotJobState};
use crate::engine::ids::UnixMs;
use crate::engine::meta::Write;
use crate::engine::plan::execute::Change;

/// `dataCoord.snapshot.exportJobTimeout`, ms: after it Milvus gives the job up if it should find it.
const TIMEOUT_MS: i64 = 43_200_000;
/// Bytes of a reason, as Milvus cuts it.
const REASON: usize = 1_024;

fn ms(at: UnixMs) -> u64 {
    u64::try_from(at.0).unwrap_or(0)
}

/// Writes the record as the state says.
pub(super) async fn tell(
    cx: &JobCx,
    state: &State,
    what: ExportSnapshotJobState,
    reason: &str,
) -> Result<()> {
    use ExportSnapshotJobState as S;
    let total = state.files.max(1);
    let copied = u64::from(state.done.count());
    let progress = match what {
        S::ExportSnapshotJobCompleted => 100,
        S::ExportSnapshotJobPublishing => 99,
        _ => (5 + 90 * copied / total).min(95),
    };
    let mut reason = cut(reason.to_owned());
    while reason.len() > REASON {
        reason.pop();
    }
    let named = matches!(
        what,
        S::ExportSnapshotJobCompleted | S::ExportSnapshotJobPublishing
    );
    let now = cx.clock.now();
    let ended = matches!(
        what,
        S::ExportSnapshotJobCompleted | S::ExportSnapshotJobFailed
    );
    let record = ExportSnapshotJob {
        job_id: cx.job.0,
        snapshot_name: state.name.clone(),
        collection_id: state.of.0,
        db_name: state.db_name.clone(),
        collection_name: state.collection_name.clone(),
        target_s3_path: state.uri_root(),
        external_spec: String::new(),
        state: what as i32,
        progress: i32::try_from(progress).unwrap_or(0),
        reason,
        start_time: ms(state.started),
        end_time: if ended { ms(now) } else { 0 },
        deadline_time: ms(UnixMs(state.started.0 + TIMEOUT_MS)),
        total_files: i64::try_from(state.files).unwrap_or(0),
        copied_files: i64::try_from(copied).unwrap_or(0),
        copy_cursor: i64::from(state.done.cursor),
        plan_version: 1,
        plan_fingerprint: state.plan.clone(),
        snapshot_fingerprint: state.fingerprint.clone(),
        snapshot_metadata_uri: if named { state.uri() } else { String::new() },
        pin_id: state.pin.map_or(0, |p| p.id),
        total_bytes: i64::try_from(state.bytes).unwrap_or(0),
    };
    let key = Key::ExportSnapshotJob(cx.job).to_key(&cx.roots);
    cx.commit_own(Change {
        name: format!("tell-{}-{copied}-{}", what as i32, now.0),
        writes: vec![Write::put(key, record.encode_to_vec())],
        ..Change::default()
    })
    .await?;
    Ok(())
}
