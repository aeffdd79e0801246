//! What a snapshot create would do (`spec/snapshot.md` §3.2, §3.3, §4): every check with its result, what is inside, and plainly
//! what is not.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::presence::{Presence, look};
use super::restore_map;
use super::restore_source::Reads;
use super::select::{Selection, select};
use super::snapshot_contents::wanted;
use super::snapshot_notes::{self, Made};
use super::source::Source;
use super::{PlanCx, awareness};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::pb::data::{SegmentDescription, SnapshotInfo, SnapshotState};
use crate::engine::ids::{CollectionId, ObjectKey, SnapshotId, Tso, UnixMs};
use crate::engine::model::text;
use crate::engine::plan::journal::Keys;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// `proxy.maxNameLength`; also of an operation's name.
const NAME_BYTES: usize = 255;
/// `dataCoord.snapshot` limit of compaction protection, seconds.
pub(super) const PROTECTION_MAX: u64 = 604_800;
/// Segments named in a warning.
const NAMED: usize = 10;

/// What is wanted.
pub(super) struct Order<'a> {
    pub collection: CollectionId,
    pub name: &'a str,
    pub description: &'a str,
    pub protection_secs: u64,
    pub operation: Option<&'a str>,
}

impl<'a> Order<'a> {
    pub fn of(intent: &'a Intent) -> Result<Self> {
        match intent {
            Intent::CreateSnapshot {
                collection,
                name,
                description,
                protection_secs,
                operation,
            } => Ok(Self {
                collection: *collection,
                name,
                description,
                protection_secs: *protection_secs,
                operation: operation.as_deref(),
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a snapshot create")),
        }
    }
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

/// What an order with an operation's name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    /// Not given before, as far as anything of it is left.
    New,
    /// Given before and carried out: by this snapshot.
    Done(SnapshotId, Made),
    /// Given before, for something else or not carried out: why it cannot be repeated.
    Clash(String),
}

/// Whether the order was given before (§3.2, hazard "callback retry"): a caller that never heard the answer asks again.
pub(super) fn replay(
    source: &Source,
    makers: &BTreeMap<SnapshotId, Made>,
    order: &Order<'_>,
) -> Replay {
    let Some(operation) = order.operation else {
        return Replay::New;
    };
    let same = |made: &Made| made.operation.as_deref() == Some(operation);
    for info in &source.snapshots {
        let id = SnapshotId(info.id);
        let Some(made) = makers.get(&id).filter(|made| same(made)) else {
            continue;
        };
        return match info.state() {
            SnapshotState::Committed if info.name == order.name => Replay::Done(id, made.clone()),
            SnapshotState::Committed => Replay::Clash(format!(
                "operation {operation} made snapshot {}, not {}",
                info.name, order.name
            )),
            other => Replay::Clash(format!(
                "operation {operation} began snapshot {}, which is {}: job {}",
                info.name,
                other.as_str_name(),
                made.job
            )),
        };
    }
    Replay::New
}

/// Who has the name.
pub(super) fn taken(source: &Source, name: &str) -> Option<String> {
    let other = source.snapshots.iter().find(|s| s.name == name)?;
    Some(format!(
        "snapshot {} of this collection has it, in state {}",
        other.id,
        other.state().as_str_name()
    ))
}

/// Every object of the selected segments, those included that storage manifests declare, and which are there.
pub(super) async fn present(
    reads: &Reads<'_>,
    segments: &[SegmentDescription],
) -> Result<(BTreeMap<ObjectKey, i64>, Presence)> {
    let mut source = restore_map::Source {
        segments: segments.to_vec(),
        ..restore_map::Source::default()
    };
    reads.declare(&mut source, &mut Sha256::new()).await?;
    let root = reads.objects.root();
    let wanted = wanted(&source, root)?;
    let found = look(reads.objects, root, &wanted).await?;
    Ok((wanted, found))
}

/// Why the collection cannot be snapshotted so that it can be restored (defect D33).
fn unrestorable(source: &Source, selection: &Selection) -> Option<String> {
    if !source.schema.external_source.is_empty() {
        return Some("its data lies outside the cluster: its segments cannot be copied".into());
    }
    let unknown = selection
        .segments
        .iter()
        .find(|s| ![0, 2, 3].contains(&s.storage_version))?;
    Some(format!(
        "segment {} is of storage version {}, which this version does not know",
        unknown.segment_id, unknown.storage_version
    ))
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
    if !selection.partial.is_empty() {
        let ids: Vec<i64> = selection.partial.iter().map(|(id, _)| *id).collect();
        let rows: i64 = selection.partial.iter().map(|(_, rows)| rows).sum();
        out.push(format!(
            "outside, not on disk yet: {rows} rows of {} segments that are inside ({})",
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

fn shown(source: &Source, order: &Order<'_>, selection: &Selection) -> String {
    let rows: i64 = selection.segments.iter().map(|s| s.num_of_rows).sum();
    format!(
        "name: {}\ndescription: {}\nstate: Committed\npartitions: {}\nsegments: {}\nrows before deletes: {rows}\nchannels: {}",
        order.name,
        order.description,
        source.partitions.len(),
        selection.segments.len(),
        selection.boundary.len()
    )
}

/// An order that was carried out already: the plan of nothing.
fn done(intent: &Intent, source: &Source, order: &Order<'_>, id: SnapshotId, made: &Made) -> Plan {
    let named = &source.schema.name;
    Plan {
        intent: intent.clone(),
        title: format!(
            "snapshot {named}@{}, which this operation has made",
            order.name
        ),
        checks: vec![check(
            "the operation was carried out",
            None,
            format!("snapshot {id}, by job {} at {}", made.job, made.at.utc()),
        )],
        steps: vec!["read the snapshot back and compare".into()],
        changes: Vec::new(),
        objects: ObjectChange::default(),
        warnings: vec!["nothing is made: the order was given and carried out before".into()],
        undo: "nothing to undo".into(),
        danger: Danger::Low,
        type_to_confirm: None,
        based_on: source.rev,
        rests_on: vec![(source.key.0.text(), source.key.1)],
        hash: String::new(),
    }
}

/// The plan of a create.
pub(super) async fn plan(cx: &PlanCx, intent: &Intent) -> Result<Plan> {
    let order = Order::of(intent)?;
    let (collection, name) = (order.collection, order.name);
    let source = Source::read(&cx.meta, &cx.roots, collection).await?;
    let makers = snapshot_notes::makers(&cx.meta, &Keys::new(&cx.roots)).await?;
    let clash = match replay(&source, &makers, &order) {
        Replay::Done(id, made) => return Ok(done(intent, &source, &order, id, &made)),
        Replay::Clash(why) => Some(why),
        Replay::New => None,
    };
    let root = cx.objects.root();
    let selection = select(&source, root)?;
    let reads = Reads {
        meta: &cx.meta,
        objects: &cx.objects,
        roots: &cx.roots,
    };
    let (wanted, found) = present(&reads, &selection.segments).await?;
    let named = &source.schema.name;
    let protection = (order.protection_secs > PROTECTION_MAX).then(|| {
        format!(
            "{} s; Milvus allows {PROTECTION_MAX}",
            order.protection_secs
        )
    });
    let mut warnings = warnings(&source, &selection);
    warnings.extend(awareness::warning(cx).await?);
    let mut checks = vec![
        check(
            "the name is allowed",
            check_name(name).err(),
            format!("{name:?}"),
        ),
        check(
            "the name is free in its collection",
            taken(&source, name),
            format!("{} snapshots", source.snapshots.len()),
        ),
        check(
            "compaction protection is within its limit",
            protection,
            format!("{} s", order.protection_secs),
        ),
        check(
            "the collection is created",
            None,
            format!("{}.{named}, id {collection}", source.database),
        ),
        check(
            "what it holds can be restored",
            unrestorable(&source, &selection),
            format!("{} segments", selection.segments.len()),
        ),
        check(
            "every channel has a boundary",
            None,
            format!("{} channels", selection.boundary.len()),
        ),
        check(
            "every referenced object is there",
            found.complaint(),
            format!("{} objects, {}", wanted.len(), text::bytes(found.bytes())),
        ),
    ];
    if let Some(operation) = order.operation {
        let bad = (operation.is_empty() || operation.len() > NAME_BYTES)
            .then(|| format!("an operation's name has 1 to {NAME_BYTES} bytes"));
        checks.push(check("the operation is new", bad.or(clash), operation));
    }
    Ok(Plan {
        intent: intent.clone(),
        title: format!("snapshot {named}@{name}"),
        checks,
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
            after: Some(shown(&source, &order, &selection)),
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

/// The record as it is first written.
pub(super) fn record(
    id: SnapshotId,
    order: &Order<'_>,
    source: &Source,
    now: UnixMs,
) -> SnapshotInfo {
    let expire = match order.protection_secs {
        0 => 0,
        secs => u64::try_from(now.to_secs().0)
            .unwrap_or(0)
            .saturating_add(secs),
    };
    SnapshotInfo {
        name: order.name.to_owned(),
        id: id.0,
        description: order.description.to_owned(),
        collection_id: order.collection.0,
        partition_ids: source.partitions.keys().copied().collect(),
        state: SnapshotState::Pending as i32,
        pending_start_time: now.0,
        compaction_expire_time: expire,
        ..SnapshotInfo::default()
    }
}
