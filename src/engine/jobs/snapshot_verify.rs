//! Is a snapshot whole? Its files are read strictly, every object that they name is looked for, sizes are compared with those
//! at the creation; deep, rows are counted and files opened. The result is kept: *Completed* is not *Verified* (law 7), and a
//! bucket loses things later too.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::cx::{JobCx, cut};
use super::restore::reads;
use super::restore_source::Reads;
use super::snapshot_contents::{Contents, changed};
use super::snapshot_drop::{collection_of, gone};
use super::snapshot_notes::{self, Verified};
use super::source::{find_snapshot, snapshot_at};
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::binlog::V1Header;
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb::data::{SegmentDescription, SegmentLevel, SnapshotInfo};
use crate::engine::ids::{CollectionId, ObjectKey, SegmentId, SnapshotId, UnixMs};
use crate::engine::model::jobs::JobKind;
use crate::engine::model::text;
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Check, Danger, Intent, ObjectChange, Plan};

/// Problems kept in words; all are counted.
const NAMED: usize = 20;
/// Files opened at once.
const AT_ONCE: usize = 16;
/// The descriptor of a storage V1 file is in its first bytes.
const HEAD: u64 = 64 * 1024;
/// First and last bytes of a Parquet file.
const PARQUET: &[u8] = b"PAR1";

/// What is wrong, counted, the first ones in words.
#[derive(Default)]
struct Problems {
    wrong: u64,
    named: Vec<String>,
}

impl Problems {
    fn say(&mut self, what: String) {
        self.wrong += 1;
        if self.named.len() < NAMED {
            self.named.push(cut(what));
        }
    }
}

/// Looks at a snapshot. An error means that a store did not answer; what is wrong with the snapshot is in the result.
pub async fn examine(
    reads: &Reads<'_>,
    info: SnapshotInfo,
    deep: bool,
    at: UnixMs,
) -> Result<Verified> {
    let mut problems = Problems::default();
    let mut out = Verified {
        at,
        deep,
        ..Verified::default()
    };
    match Contents::read(reads, info).await {
        Err(e) if e.is_transient() => return Err(e),
        Err(e) => problems.say(e.to_string()),
        Ok(contents) => {
            out.segments = contents.source.segments.len() as u64;
            out.rows = contents.source.segments.iter().map(|s| s.num_of_rows).sum();
            out.objects = contents.wanted.len() as u64;
            out.bytes = contents.found.bytes();
            out.sized = contents.source.side.is_some();
            same_record(&contents, &mut problems);
            for (key, segment) in &contents.found.missing {
                problems.say(format!("object {key} of segment {segment} is missing"));
            }
            if let Some(side) = &contents.source.side {
                let manifests = &contents.source.metadata.manifest_list;
                let (wanted, found) = (&contents.wanted, &contents.found);
                for what in changed(reads.objects, side, manifests, wanted, found).await? {
                    problems.say(what);
                }
            }
            if deep {
                for segment in &contents.source.segments {
                    same_rows(segment, &mut problems);
                }
                open(reads, &contents, &mut problems).await?;
            }
        }
    }
    out.wrong = problems.wrong;
    out.problems = problems.named;
    Ok(out)
}

/// The JSON belongs to its record.
fn same_record(contents: &Contents, problems: &mut Problems) {
    let record = &contents.source.record;
    let inside = contents.source.metadata.snapshot_info.as_ref();
    let part = |i: &SnapshotInfo| {
        (
            i.id,
            i.collection_id,
            i.partition_ids.clone(),
            i.channel_seek_positions.clone(),
        )
    };
    if inside.map(part) != Some(part(record)) {
        problems.say(format!(
            "{} does not belong to its record: id, partitions or seek positions differ",
            record.s3_location
        ));
    }
}

/// Every field of the segment holds every row. Storage V3 counts rows in a manifest of its own, L0 segments have none.
fn same_rows(segment: &SegmentDescription, problems: &mut Problems) {
    if segment.storage_version >= 3 || segment.segment_level == SegmentLevel::L0 as i32 {
        return;
    }
    for field in &segment.binlogs {
        let rows: i64 = field.binlogs.iter().map(|b| b.entries_num).sum();
        if rows != segment.num_of_rows {
            problems.say(format!(
                "segment {} has {} rows, the insert logs of field {} have {rows}",
                segment.segment_id, segment.num_of_rows, field.field_id
            ));
        }
    }
    if segment.num_of_rows > 0 && segment.binlogs.is_empty() {
        problems.say(format!(
            "segment {} has {} rows and no insert log",
            segment.segment_id, segment.num_of_rows
        ));
    }
}

/// Opens every insert and delete log: a file of the right size may be full of anything. Index files have no form that all of them share.
async fn open(reads: &Reads<'_>, contents: &Contents, problems: &mut Problems) -> Result<()> {
    let root = reads.objects.root();
    let versions: BTreeMap<SegmentId, i64> = contents
        .source
        .segments
        .iter()
        .map(|s| (SegmentId(s.segment_id), s.storage_version))
        .collect();
    let looks = contents.found.sizes.iter().filter_map(|(key, size)| {
        let form = match ObjPath::parse(root, &key.0).known()? {
            ObjPath::InsertLog(_, _, segment, ..) => match versions.get(&segment)? {
                0 => Form::Events,
                _ => Form::Parquet,
            },
            ObjPath::DeltaLog(..) => Form::Either,
            _ => return None,
        };
        Some(async move { beginning(reads, key, *size, form).await }.boxed())
    });
    let mut looks = stream::iter(looks.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
    let mut bad = Vec::new();
    while let Some(found) = looks.try_next().await? {
        bad.extend(found);
    }
    bad.sort();
    for what in bad {
        problems.say(what);
    }
    Ok(())
}

/// How a file begins (`spec/layout.md` §7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Events, the first of which describes the file.
    Events,
    /// Parquet.
    Parquet,
    /// Deletes are of one or the other, by the version that wrote them.
    Either,
}

/// What is wrong with the beginning and the end of a file.
async fn beginning(
    reads: &Reads<'_>,
    key: &ObjectKey,
    size: u64,
    form: Form,
) -> Result<Option<String>> {
    if size == 0 {
        return Ok(Some(format!("object {key} is empty")));
    }
    let head = reads.objects.get_range(key, 0..size.min(HEAD)).await?;
    if form == Form::Events || form == Form::Either && !head.starts_with(PARQUET) {
        let header = V1Header::parse(&key.0, &head);
        return Ok(header.err().map(|e| format!("object {key}: {e}")));
    }
    let from = size.saturating_sub(PARQUET.len() as u64);
    let tail = reads.objects.get_range(key, from..size).await?;
    let whole = head.starts_with(PARQUET) && tail[..] == *PARQUET;
    Ok((!whole).then(|| format!("object {key} is no whole Parquet file")))
}

/// The kind.
pub struct VerifySnapshot;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    snapshot: SnapshotId,
    of: CollectionId,
    deep: bool,
    found: Option<Verified>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Look,
    Keep,
    Tell,
    Undone,
}

#[async_trait]
impl Job for VerifySnapshot {
    const KIND: JobKind = JobKind::VerifySnapshot;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let Intent::VerifySnapshot { snapshot, deep } = intent else {
            return Err(Error::new(ErrorKind::Internal, "not a verification"));
        };
        let (kv, info) = find_snapshot(&cx.meta, &cx.roots, *snapshot)
            .await?
            .ok_or_else(|| gone(*snapshot))?;
        let mut steps = vec![
            "read its metadata and manifests, look for every object that they name, compare sizes"
                .to_owned(),
        ];
        if *deep {
            steps.push("count the rows of each segment, open every insert and delete log".into());
        }
        steps.push("keep the result beside the snapshot's record".into());
        Ok(Plan {
            intent: intent.clone(),
            title: format!("verify snapshot {}", info.name),
            checks: vec![Check {
                name: "the snapshot is committed".into(),
                failed: unfinished(&info),
                detail: info.state().as_str_name().to_owned(),
            }],
            steps,
            changes: Vec::new(),
            objects: ObjectChange::default(),
            warnings: Vec::new(),
            undo: "nothing to undo: nothing of Milvus's is written".into(),
            danger: Danger::Low,
            type_to_confirm: None,
            based_on: kv.mod_rev,
            rests_on: vec![(kv.key.text(), kv.mod_rev)],
            hash: String::new(),
        })
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::VerifySnapshot { snapshot, .. } => {
                vec![Lock::shared(format!("snapshot:{snapshot}"))]
            }
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match (&plan.intent, collection_of(plan)) {
            (Intent::VerifySnapshot { snapshot, deep }, Some(of)) => Ok(State {
                snapshot: *snapshot,
                of,
                deep: *deep,
                found: None,
                step: Step::Look,
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a verification")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        Some(state.of)
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        match state.step {
            Step::Look => {
                let (_, info) = snapshot_at(&cx.meta, &cx.roots, state.of, state.snapshot)
                    .await?
                    .ok_or_else(|| gone(state.snapshot))?;
                let mut found = examine(&reads(cx), info, state.deep, cx.clock.now()).await?;
                found.job = Some(cx.job);
                cx.progress()
                    .totals(found.segments, found.objects, found.bytes);
                cx.progress()
                    .set_done(found.segments, found.objects, found.bytes);
                state.found = Some(found);
                state.step = Step::Keep;
                Ok(Next::Step(state))
            }
            Step::Keep => {
                keep(cx, state.snapshot, state.found()?).await?;
                state.step = Step::Tell;
                Ok(Next::Published(state))
            }
            Step::Tell => {
                tell(cx, state.found()?)?;
                Ok(Next::Verified(state))
            }
            Step::Undone => Err(Error::new(ErrorKind::Internal, "a step of an undone job")),
        }
    }

    /// Nothing was changed; a result that was kept is true.
    async fn undo(&self, _: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        state.step = Step::Undone;
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, done) = match state.step {
            Step::Look => ("read everything and compare", 0),
            Step::Keep => ("keep the result", 1),
            Step::Tell => ("tell the result", 2),
            Step::Undone => ("given up", 0),
        };
        (text.into(), done, 3)
    }
}

impl State {
    fn found(&self) -> Result<&Verified> {
        self.found
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "nothing was looked at"))
    }
}

/// Why a record in this state cannot be verified.
#[must_use]
pub fn unfinished(info: &SnapshotInfo) -> Option<String> {
    use crate::engine::format::pb::data::SnapshotState;
    match info.state() {
        SnapshotState::Committed | SnapshotState::Unknown => None,
        other => Some(format!(
            "it is {}: its files are not whole yet, or no more",
            other.as_str_name()
        )),
    }
}

/// Keeps the result beside the record, as long as there is one.
pub(super) async fn keep(cx: &JobCx, id: SnapshotId, found: &Verified) -> Result<()> {
    cx.commit(Change {
        name: "verified".into(),
        writes: vec![snapshot_notes::verified(cx, id, found)?],
        atomic: true,
        ..Change::default()
    })
    .await?;
    Ok(())
}

/// The result as notes; an error when something is wrong.
pub(super) fn tell(cx: &JobCx, found: &Verified) -> Result<()> {
    for problem in &found.problems {
        cx.note(format!("NOT whole: {problem}"));
    }
    if let Some(first) = found.problems.first() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("the snapshot is not whole, {} problems: {first}", found.wrong),
        )
        .fix("do not rely on it: bring the objects back from a backup of the bucket, or take a new snapshot"));
    }
    cx.note(format!(
        "{} segments with {} rows, {} objects, {}, all there{}",
        found.segments,
        found.rows,
        found.objects,
        text::bytes(found.bytes),
        if found.sized {
            ", each segment as large as it was"
        } else {
            "; sizes were not recorded by its maker"
        }
    ));
    Ok(())
}
