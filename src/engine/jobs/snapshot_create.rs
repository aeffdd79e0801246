//! Snapshot create (`spec/snapshot.md` §3.2, §4): record PENDING, manifests, metadata JSON, record COMMITTED. A crash anywhere
//! leaves a PENDING record that Milvus's own collector would clean too; we resume it, or take it back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::awareness;
use super::cx::JobCx;
use super::presence::look;
use super::select::{Selection, metadata, objects, select};
use super::snapshot_undo::{remove_objects, take_back};
use super::source::{Source, find_snapshot};
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::manifest;
use crate::engine::format::pb::data::{SnapshotInfo, SnapshotMetadata, SnapshotState};
use crate::engine::format::snapshot::{join, metadata_key, read_metadata, write_metadata};
use crate::engine::format::wire::Patch;
use crate::engine::ids::{CollectionId, MetaKey, ObjectKey, SnapshotId, Tso, UnixMs};
use crate::engine::meta::{Cond, Write};
use crate::engine::model::jobs::JobKind;
use crate::engine::model::text;
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan, hex};

/// `proxy.maxNameLength`.
const NAME_BYTES: usize = 255;
/// `dataCoord.snapshot` limit of compaction protection, seconds.
const PROTECTION_MAX: u64 = 604_800;
/// Milvus collects a PENDING record after an hour: a living creator says that it lives.
const RENEW: Duration = Duration::from_mins(10);
/// Selections tried when the metadata moves under the job.
const TURNS: u32 = 3;
/// Segments named in a warning.
const NAMED: usize = 10;

/// The kind.
pub struct CreateSnapshot;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    collection: CollectionId,
    name: String,
    description: String,
    protection_secs: u64,
    /// Taken in the first step.
    id: Option<SnapshotId>,
    step: Step,
    /// SHA-256 of the metadata JSON that was written.
    digest: String,
    turn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Ids,
    Pending,
    Write,
    Commit,
    Verify,
    Undone,
}

/// The rules of §3.3, on exactly what is stored. Milvus checks a trimmed copy and stores the original; we refuse instead.
pub fn check_name(name: &str) -> std::result::Result<(), String> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let other = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    if name.is_empty() {
        return Err("it is empty".into());
    }
    if name.len() > NAME_BYTES {
        return Err(format!(
            "it has {} bytes, {NAME_BYTES} are allowed",
            name.len()
        ));
    }
    if !name.chars().next().is_some_and(first) {
        return Err("it must begin with a letter of a to z, A to Z, or _".into());
    }
    match name.chars().find(|c| !other(*c)) {
        Some(bad) => Err(format!(
            "{bad:?} is not allowed: letters, digits, _ and $ are"
        )),
        None => Ok(()),
    }
}

fn check(name: &str, failed: Option<String>, detail: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        failed,
        detail: detail.into(),
    }
}

fn some_of(ids: &[i64]) -> String {
    let named: Vec<String> = ids.iter().take(NAMED).map(ToString::to_string).collect();
    let more = if ids.len() > NAMED {
        format!(" and {} more", ids.len() - NAMED)
    } else {
        String::new()
    };
    format!("{}{more}", named.join(", "))
}

fn warnings(source: &Source, selection: &Selection) -> Vec<String> {
    let mut out =
        vec!["a snapshot does not flush: rows that are not on disk yet are outside".to_owned()];
    for p in &selection.boundary {
        let at = Tso(p.timestamp).time().map_or(
            "its very beginning (no checkpoint, no data)".to_owned(),
            UnixMs::utc,
        );
        out.push(format!("channel {}: everything up to {at}", p.channel_name));
    }
    let mut reasons: Vec<&str> = selection
        .outside
        .iter()
        .map(|(_, _, why)| why.as_str())
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    for why in reasons {
        let of: Vec<&(i64, i64, String)> = selection
            .outside
            .iter()
            .filter(|(_, _, w)| w == why)
            .collect();
        let ids: Vec<i64> = of.iter().map(|(id, _, _)| *id).collect();
        let rows: i64 = of.iter().map(|(_, rows, _)| rows).sum();
        out.push(format!(
            "outside, {why}: {} segments with {rows} rows ({})",
            ids.len(),
            some_of(&ids)
        ));
    }
    if !selection.beyond.is_empty() {
        out.push(format!(
            "inside as a whole, though they also hold rows from after the boundary: {} segments ({})",
            selection.beyond.len(),
            some_of(&selection.beyond)
        ));
    }
    let v3 = selection
        .segments
        .iter()
        .filter(|s| s.storage_version >= 3)
        .count();
    if v3 > 0 {
        out.push(format!("{v3} segments list their files in a manifest of their own: the manifest is checked here, its files are not"));
    }
    if source
        .info
        .properties
        .iter()
        .any(|p| p.key == "cipher.ezID")
    {
        out.push(
            "the collection is encrypted: the snapshot can be restored only where its key is"
                .into(),
        );
    }
    out
}

#[async_trait]
impl Job for CreateSnapshot {
    const KIND: JobKind = JobKind::CreateSnapshot;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let Intent::CreateSnapshot {
            collection,
            name,
            description,
            protection_secs,
        } = intent
        else {
            return Err(Error::new(ErrorKind::Internal, "not a snapshot create"));
        };
        let source = Source::read(&*cx.meta, &cx.roots, *collection).await?;
        let root = cx.objects.root();
        let selection = select(&source, root)?;
        let wanted = objects(&selection.segments);
        let found = look(&cx.objects, root, &wanted).await?;
        let named = &source.schema.name;
        let taken = taken(&source, name);
        let protection = (*protection_secs > PROTECTION_MAX)
            .then(|| format!("{protection_secs} s; Milvus allows {PROTECTION_MAX}"));
        let bytes = found.bytes();
        let mut warnings = warnings(&source, &selection);
        warnings.extend(awareness::warning(cx).await?);
        let record = record(
            &State::new(*collection, name, description, *protection_secs),
            &source,
            cx.clock.now(),
        );
        Ok(Plan {
            intent: intent.clone(),
            title: format!("snapshot {named}@{name}"),
            checks: vec![
                check(
                    "the name is allowed",
                    check_name(name).err(),
                    format!("{name:?}"),
                ),
                check(
                    "the name is free in its collection",
                    taken,
                    format!("{} snapshots", source.snapshots.len()),
                ),
                check(
                    "compaction protection is within its limit",
                    protection,
                    format!("{protection_secs} s"),
                ),
                check(
                    "the collection is created",
                    None,
                    format!("{}.{named}, id {collection}", source.database),
                ),
                check(
                    "every channel has a boundary",
                    None,
                    format!("{} channels", selection.boundary.len()),
                ),
                check(
                    "every referenced object is there",
                    found.complaint(),
                    format!("{} objects, {}", wanted.len(), text::bytes(bytes)),
                ),
            ],
            steps: vec![
                "take an id, write the record as PENDING".into(),
                format!(
                    "write {} segment manifests, then the metadata JSON",
                    selection.segments.len()
                ),
                "set the record to COMMITTED in one transaction".into(),
                "read everything back and compare".into(),
            ],
            changes: vec![KeyChange {
                key: format!("datacoord-meta/snapshot/{collection}/(new id)"),
                before: None,
                after: Some(shown(&record, &selection)),
            }],
            objects: ObjectChange {
                puts: selection.segments.len() as u64 + 1,
                samples: vec![format!(
                    "{root}/snapshots/{collection}/metadata/(new id).json"
                )],
                ..ObjectChange::default()
            },
            warnings,
            undo: "drop the snapshot".into(),
            danger: Danger::Low,
            type_to_confirm: None,
            based_on: source.rev,
            rests_on: vec![(source.key.0.text(), source.key.1)],
            hash: String::new(),
        })
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::CreateSnapshot { collection, .. } => {
                vec![Lock::alone(format!("collection:{collection}"))]
            }
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match &plan.intent {
            Intent::CreateSnapshot {
                collection,
                name,
                description,
                protection_secs,
            } => Ok(State::new(*collection, name, description, *protection_secs)),
            _ => Err(Error::new(ErrorKind::Internal, "not a snapshot create")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        Some(state.collection)
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        match state.step {
            Step::Ids => {
                state.id = Some(SnapshotId(cx.take_ids(1).await?.first));
                state.step = Step::Pending;
                Ok(Next::Step(state))
            }
            Step::Pending => pending(cx, state).await,
            Step::Write => write(cx, state).await,
            Step::Commit => commit(cx, state).await,
            Step::Verify => {
                verify(cx, &state).await?;
                Ok(Next::Verified(state))
            }
            Step::Undone => Err(Error::new(ErrorKind::Internal, "a step of an undone job")),
        }
    }

    /// Objects first, the record last: while the record is there, everything under it can be found. A record that is COMMITTED
    /// keeps its files: the commit's outcome may have been unknown when the job turned back.
    async fn undo(&self, cx: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        if let Some(id) = state.id
            && !take_back(cx, state.collection, id).await?
        {
            cx.note(format!(
                "snapshot {id} was published before it could be taken back, and stays; drop it if it is not wanted"
            ));
            state.step = Step::Verify;
            return Ok(Next::Published(state));
        }
        state.step = Step::Undone;
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, done) = match state.step {
            Step::Ids => ("take an id", 0),
            Step::Pending => ("write the record as PENDING", 1),
            Step::Write => ("write manifests and metadata", 2),
            Step::Commit => ("set the record to COMMITTED", 3),
            Step::Verify => ("read everything back", 4),
            Step::Undone => ("taken back", 0),
        };
        (text.into(), done, 5)
    }
}

impl State {
    fn new(collection: CollectionId, name: &str, description: &str, protection_secs: u64) -> Self {
        Self {
            collection,
            name: name.to_owned(),
            description: description.to_owned(),
            protection_secs,
            id: None,
            step: Step::Ids,
            digest: String::new(),
            turn: 0,
        }
    }

    fn id(&self) -> Result<SnapshotId> {
        self.id
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no snapshot id was taken"))
    }
}

fn taken(source: &Source, name: &str) -> Option<String> {
    let other = source.snapshots.iter().find(|s| s.name == name)?;
    Some(format!(
        "snapshot {} of this collection has it, in state {}",
        other.id,
        other.state().as_str_name()
    ))
}

/// The record as it is first written.
fn record(state: &State, source: &Source, now: UnixMs) -> SnapshotInfo {
    let expire = match state.protection_secs {
        0 => 0,
        secs => u64::try_from(now.to_secs().0)
            .unwrap_or(0)
            .saturating_add(secs),
    };
    SnapshotInfo {
        name: state.name.clone(),
        id: state.id.map_or(0, |id| id.0),
        description: state.description.clone(),
        collection_id: state.collection.0,
        partition_ids: source.partitions.keys().copied().collect(),
        state: SnapshotState::Pending as i32,
        pending_start_time: now.0,
        compaction_expire_time: expire,
        ..SnapshotInfo::default()
    }
}

fn shown(record: &SnapshotInfo, selection: &Selection) -> String {
    let rows: i64 = selection.segments.iter().map(|s| s.num_of_rows).sum();
    format!(
        "name: {}\ndescription: {}\nstate: Committed\npartitions: {}\nsegments: {}\nrows before deletes: {rows}\nchannels: {}",
        record.name,
        record.description,
        record.partition_ids.len(),
        selection.segments.len(),
        selection.boundary.len()
    )
}

async fn pending(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let source = Source::read(&*cx.meta, &cx.roots, state.collection).await?;
    let id = state.id()?;
    let key = Key::Snapshot(state.collection, id).to_key(&cx.roots);
    // Not when it is our own record, written before a crash.
    if source.snapshots.iter().all(|s| s.id != id.0)
        && let Some(why) = taken(&source, &state.name)
    {
        return Err(
            Error::new(ErrorKind::Conflict, why).fix("take another name, or drop that snapshot")
        );
    }
    let record = record(&state, &source, cx.clock.now());
    cx.commit(Change {
        name: "pending".into(),
        conds: vec![
            Cond::Absent(key.clone()),
            Cond::At(source.key.0.clone(), source.key.1),
        ],
        writes: vec![Write::put(key, record.encode_to_vec())],
        atomic: true,
    })
    .await?;
    state.step = Step::Write;
    Ok(Next::Step(state))
}

/// As [`own`], and still PENDING: somebody who drops it or has dropped it must not find it alive again.
async fn own_pending(
    cx: &JobCx,
    state: &State,
) -> Result<(MetaKey, crate::engine::meta::KeyValue, SnapshotInfo)> {
    let (key, kv, info) = own(cx, state).await?;
    if info.state() == SnapshotState::Pending {
        return Ok((key, kv, info));
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "record {key} became {} while the snapshot was made",
            info.state().as_str_name()
        ),
    )
    .fix("somebody else dropped it: make a new plan"))
}

/// Our record as it stands, with the conditions that it has not moved.
async fn own(
    cx: &JobCx,
    state: &State,
) -> Result<(MetaKey, crate::engine::meta::KeyValue, SnapshotInfo)> {
    let id = state.id()?;
    let key = Key::Snapshot(state.collection, id).to_key(&cx.roots);
    let gone = || {
        Error::new(
            ErrorKind::Conflict,
            format!("the PENDING record {key} was removed while the snapshot was made"),
        )
        .fix("a coordinator collected it: make a new plan")
    };
    match find_snapshot(&*cx.meta, &cx.roots, id).await? {
        Some((kv, info)) => Ok((key, kv, info)),
        None => Err(gone()),
    }
}

/// What would be written now: the metadata object's bytes, with the selection they come from.
async fn build(cx: &JobCx, state: &State) -> Result<(Vec<u8>, SnapshotMetadata, Selection)> {
    let (_, _, record) = own_pending(cx, state).await?;
    let source = Source::read(&*cx.meta, &cx.roots, state.collection).await?;
    let root = cx.objects.root();
    let selection = select(&source, root)?;
    let metadata = metadata(&source, &selection, &record, root);
    Ok((write_metadata(&metadata)?, metadata, selection))
}

/// Over everything that would be written, but for the time that a living creator moves on.
fn digest(metadata: &SnapshotMetadata, selection: &Selection) -> Result<String> {
    let mut metadata = metadata.clone();
    if let Some(info) = &mut metadata.snapshot_info {
        info.pending_start_time = 0;
    }
    let mut hash = Sha256::new();
    hash.update(canonical(&write_metadata(&metadata)?)?);
    for segment in &selection.segments {
        hash.update(manifest::write_v4(segment)?);
    }
    Ok(hex(&hash.finalize()))
}

/// The same content as the same bytes: the printer writes maps in no order of its own.
fn canonical(json: &[u8]) -> Result<Vec<u8>> {
    fn sort(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(members) => {
                members.sort_keys();
                members.values_mut().for_each(sort);
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(sort),
            _ => {}
        }
    }
    let unreadable =
        |e| Error::new(ErrorKind::Internal, "the metadata just written is not JSON").caused_by(e);
    let mut value = serde_json::from_slice(json).map_err(unreadable)?;
    sort(&mut value);
    serde_json::to_vec(&value).map_err(unreadable)
}

async fn write(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let (json, metadata, selection) = build(cx, &state).await?;
    let root = cx.objects.root().to_owned();
    let wanted = objects(&selection.segments);
    let found = look(&cx.objects, &root, &wanted).await?;
    found.require()?;
    let segments = selection.segments.len() as u64;
    cx.progress().totals(segments, segments + 1, 0);
    cx.progress().set_done(0, 0, 0);
    let mut renewed = cx.clock.mono();
    for (segment, key) in selection.segments.iter().zip(&metadata.manifest_list) {
        cx.check_cancel()?;
        if cx.clock.mono().saturating_sub(renewed) >= RENEW {
            renew(cx, &state).await?;
            renewed = cx.clock.mono();
        }
        let bytes = manifest::write_v4(segment)?;
        let size = bytes.len() as u64;
        cx.put_object(&ObjectKey(key.clone()), Bytes::from(bytes))
            .await?;
        cx.progress().segment();
        cx.progress().file(size);
    }
    // Last: the JSON says that all manifests are there.
    let key = metadata_key(&root, state.collection, state.id()?);
    cx.put_object(&key, Bytes::from(json.clone())).await?;
    cx.progress().file(json.len() as u64);
    state.digest = digest(&metadata, &selection)?;
    state.step = Step::Commit;
    Ok(Next::Step(state))
}

/// Moves `pending_start_time` on, so that nobody collects a record whose creator lives.
async fn renew(cx: &JobCx, state: &State) -> Result<()> {
    let (key, kv, _) = own_pending(cx, state).await?;
    let now = cx.clock.now();
    let mut patch = Patch::parse(&kv.value)?;
    patch.set_integer(9, now.0.cast_unsigned());
    let value = patch.finish();
    cx.commit(Change {
        name: format!("renew-{}", kv.mod_rev),
        conds: vec![Cond::At(key.clone(), kv.mod_rev)],
        writes: vec![Write::put(key, value)],
        atomic: true,
    })
    .await?;
    Ok(())
}

async fn commit(cx: &JobCx, mut state: State) -> Result<Next<State>> {
    let (key, kv, info) = own(cx, &state).await?;
    if info.state() == SnapshotState::Committed {
        // The transaction went through before a crash.
        state.step = Step::Verify;
        return Ok(Next::Published(state));
    }
    // A coordinator may have come and gone since the manifests were written: what it compacted away must not be in them.
    let (_, metadata, selection) = build(cx, &state).await?;
    if digest(&metadata, &selection)? != state.digest {
        if state.turn + 1 >= TURNS {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the collection keeps changing while its snapshot is made",
            )
            .fix("make sure that nothing writes to this root, and try again"));
        }
        cx.note("the collection changed while its snapshot was made: selecting again");
        // The record moves on first: an earlier commit that arrives late must not find it as it was.
        renew(cx, &state).await?;
        let root = cx.objects.root().to_owned();
        remove_objects(cx, &root, state.collection, state.id()?).await?;
        state.turn += 1;
        state.step = Step::Write;
        return Ok(Next::Step(state));
    }
    let Some(written) = metadata.snapshot_info else {
        return Err(Error::new(
            ErrorKind::Internal,
            "metadata without its record",
        ));
    };
    let record = SnapshotInfo {
        state: SnapshotState::Committed as i32,
        s3_location: metadata_key(cx.objects.root(), state.collection, state.id()?).0,
        pending_start_time: info.pending_start_time,
        ..written
    };
    cx.commit(Change {
        name: format!("commit-{}", state.turn),
        conds: vec![Cond::At(key.clone(), kv.mod_rev)],
        writes: vec![Write::put(key, record.encode_to_vec())],
        atomic: true,
    })
    .await?;
    state.step = Step::Verify;
    Ok(Next::Published(state))
}

/// Everything again, from the stores: record, JSON, manifests, and each referenced object.
async fn verify(cx: &JobCx, state: &State) -> Result<()> {
    let (_, _, info) = own(cx, state).await?;
    let wrong = |what: String| {
        Error::new(ErrorKind::Corrupt, what).fix("drop this snapshot and make a new one")
    };
    if info.state() != SnapshotState::Committed {
        return Err(wrong("the record is not COMMITTED".into()));
    }
    let file = ObjectKey(info.s3_location.clone());
    let metadata = read_metadata(&file.0, &cx.objects.get(&file).await?)?;
    let mut manifests = Vec::with_capacity(metadata.manifest_list.len());
    for key in &metadata.manifest_list {
        let bytes = cx.objects.get(&ObjectKey(key.clone())).await?;
        manifests.push((
            key.clone(),
            manifest::read(key, &bytes, metadata.format_version)?,
        ));
    }
    let snapshot = join(&file.0, metadata, manifests)?;
    let inside = snapshot.metadata.snapshot_info.as_ref();
    if inside.map(|i| (&i.channel_seek_positions, &i.partition_ids, i.id))
        != Some((&info.channel_seek_positions, &info.partition_ids, info.id))
    {
        return Err(wrong(format!("{file} does not belong to its record")));
    }
    let wanted = objects(&snapshot.segments);
    let found = look(&cx.objects, cx.objects.root(), &wanted).await?;
    found.require()?;
    cx.note(format!(
        "{} segments, {} objects, {}, all there",
        snapshot.segments.len(),
        wanted.len(),
        text::bytes(found.bytes())
    ));
    Ok(())
}
