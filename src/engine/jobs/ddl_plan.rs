//! What a DDL would do, and whether it may: the checks are made while planning, and once more under the broadcast's keys.

use std::collections::BTreeMap;

use super::PlanCx;
use super::ddl_look::{CREATED, Look, Target};
use super::restore_names::name_is_free;
use super::restore_plan::database_record;
use super::restore_source::Reads;
use crate::engine::coordinator::mark;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::pb::common::KeyValuePair;
use crate::engine::format::pb::data::{SegmentInfo, SnapshotInfo};
use crate::engine::format::pb::index::IndexInfo;
use crate::engine::format::pb::schema::{CollectionSchema, DataType, FieldSchema};
use crate::engine::ids::{CollectionId, DbId, IndexId, MetaRev, PartitionId, Tso, UnixMs};
use crate::engine::model::catalog::Catalog;
use crate::engine::model::ddl::{DEFAULT_PARTITION, TRUNCATING, is_pinned};
use crate::engine::model::quarantine::DAY_MS;
use crate::engine::model::schema::{CollectionSpec, PARTITIONS, check_name, is_vector};
use crate::engine::model::text;
use crate::engine::plan::{Check, Danger, Ddl, Intent, KeyChange, ObjectChange, Plan};

/// Which collection it changes; `None` = one that is to be.
pub(super) const fn collection_of(change: &Ddl) -> Option<CollectionId> {
    match change {
        Ddl::CreateCollection { .. } => None,
        Ddl::DropCollection { collection }
        | Ddl::TruncateCollection { collection }
        | Ddl::CreatePartition { collection, .. }
        | Ddl::DropPartition { collection, .. }
        | Ddl::CreateIndex { collection, .. }
        | Ddl::DropIndex { collection, .. } => Some(*collection),
    }
}

fn check(name: &str, failed: Option<String>, detail: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        failed,
        detail: detail.into(),
    }
}

/// A check from a look that may itself fail: what passes by itself is no verdict.
fn checked(name: &str, result: Result<String>) -> Result<Check> {
    match result {
        Ok(detail) => Ok(check(name, None, detail)),
        Err(e) if e.is_transient() => Err(e),
        Err(e) => Ok(check(name, Some(e.to_string()), "")),
    }
}

/// The database of a collection that is to be, and whether the name is free in it.
pub(super) async fn room_for(
    reads: &Reads<'_>,
    database: &str,
    name: &str,
) -> Result<(DbId, Option<(String, MetaRev)>)> {
    let Some((db, _, key)) = database_record(reads, database).await? else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no database {database}"),
        )
        .fix("list the databases"));
    };
    name_is_free(reads, db, name, None).await?;
    Ok((db, key))
}

/// The index that an order describes, on the fields as they stand. Its id is still to be given.
pub(super) fn index_info(
    target: &Target,
    field: &str,
    name: &str,
    params: &BTreeMap<String, String>,
) -> Result<IndexInfo> {
    let invalid = |what: String, fix: &str| Err(Error::new(ErrorKind::Invalid, what).fix(fix));
    let Some(of) = target.field(field) else {
        return invalid(
            format!("collection {} has no field {field}", target.name),
            "describe the collection",
        );
    };
    let name = if name.is_empty() { field } else { name };
    check_name("index", name)?;
    if let Some(other) = target.index(name) {
        return invalid(
            format!("index {name} exists, on field {}", other.field_id),
            "choose another name, or drop it first",
        );
    }
    if let Some(other) = target.indexes.values().find(|i| i.field_id == of.field_id) {
        return invalid(
            format!("field {field} has index {} already", other.index_name),
            "drop that one first",
        );
    }
    let Some(kind) = params.get("index_type") else {
        return invalid(
            "no index type is given".into(),
            "give one, e.g. --type HNSW",
        );
    };
    metric(of, params.get("metric_type").map(String::as_str))?;
    let list: Vec<KeyValuePair> = params
        .iter()
        .map(|(key, value)| KeyValuePair {
            key: key.clone(),
            value: value.clone(),
        })
        .collect();
    Ok(IndexInfo {
        collection_id: target.id.0,
        field_id: of.field_id,
        index_name: name.to_owned(),
        type_params: of.type_params.clone(),
        is_auto_index: kind == "AUTOINDEX",
        user_index_params: list.clone(),
        index_params: list,
        ..IndexInfo::default()
    })
}

fn metric(field: &FieldSchema, metric: Option<&str>) -> Result<()> {
    let allowed: &[&str] = match field.data_type() {
        DataType::BinaryVector => &["HAMMING", "JACCARD", "SUBSTRUCTURE", "SUPERSTRUCTURE"],
        DataType::SparseFloatVector => &["IP", "BM25"],
        of if is_vector(of) => &["L2", "IP", "COSINE"],
        _ => &[],
    };
    let fits = match metric {
        Some(metric) => allowed.contains(&metric),
        None => allowed.is_empty(),
    };
    if fits {
        return Ok(());
    }
    let fix = if allowed.is_empty() {
        "drop --metric: the field is no vector".to_owned()
    } else {
        format!(
            "give one of {}, e.g. --metric {}",
            allowed.join(", "),
            allowed[0]
        )
    };
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "field {} of type {} cannot be compared by {}",
            field.name,
            field.data_type().as_str_name(),
            metric.unwrap_or("nothing")
        ),
    )
    .fix(fix))
}

/// What must hold of a collection for the change.
pub(super) fn allowed(change: &Ddl, target: &Target) -> Vec<Check> {
    let state = target.info.state();
    let standing = (target.info.state != CREATED).then(|| {
        format!(
            "it is {}: an operation on it is not finished",
            state.as_str_name()
        )
    });
    let mut out = vec![check(
        "the collection stands",
        standing,
        format!("{}/{} ({})", target.database, target.name, target.id),
    )];
    let truncating = target.info.properties.iter().any(|p| p.key == TRUNCATING);
    out.push(check(
        "no truncate is under way",
        truncating
            .then(|| "its property collection.on.truncating stands: see the broadcasts".into()),
        "",
    ));
    let none = |failed: bool, why: String| failed.then_some(why);
    match change {
        Ddl::CreateCollection { .. } | Ddl::TruncateCollection { .. } => {}
        Ddl::DropCollection { .. } => out.push(check(
            "no alias points at it",
            none(
                !target.aliases.is_empty(),
                format!("aliases {}: take them off first", target.aliases.join(", ")),
            ),
            "",
        )),
        Ddl::CreatePartition { name, .. } => {
            let failed = check_name("partition", name).err().map(|e| e.to_string());
            out.push(check("the name is well formed", failed, name.as_str()));
            out.push(check(
                "the name is free",
                none(
                    target.partition(name).is_some(),
                    format!("partition {name} exists"),
                ),
                format!("{} partitions", target.partitions.len()),
            ));
            let by_key = target.fields.iter().any(|f| f.is_partition_key);
            out.push(check(
                "partitions can be made by hand",
                none(
                    by_key,
                    "the collection has a partition key, which makes them".into(),
                ),
                "",
            ));
            let full = target.partitions.len() >= PARTITIONS as usize;
            out.push(check(
                "there is room",
                none(
                    full,
                    format!("{PARTITIONS} partitions are all that a collection may have"),
                ),
                "",
            ));
        }
        Ddl::DropPartition { name, .. } => {
            let id = target.partition(name);
            out.push(check(
                "the partition exists",
                none(
                    id.is_none(),
                    format!("collection {} has no partition {name}", target.name),
                ),
                id.map_or_else(String::new, |id| id.to_string()),
            ));
            let default = name == DEFAULT_PARTITION;
            out.push(check(
                "it is not the default partition",
                none(
                    default,
                    "the default partition goes with its collection only".into(),
                ),
                "",
            ));
            let by_key = target.fields.iter().any(|f| f.is_partition_key);
            out.push(check(
                "partitions can be dropped by hand",
                none(
                    by_key,
                    "the collection has a partition key, which spreads rows over them".into(),
                ),
                "",
            ));
            let loaded = id.is_some_and(|id| target.loaded_partitions.contains(&id));
            out.push(check(
                "it is not loaded",
                none(loaded, "queries use it: release it first".into()),
                "",
            ));
        }
        Ddl::CreateIndex {
            field,
            name,
            params,
            ..
        } => {
            let made = index_info(target, field, name, params);
            out.push(check(
                "the index can be defined",
                made.err().map(|e| e.to_string()),
                field.as_str(),
            ));
        }
        Ddl::DropIndex { name, .. } => {
            let index = target.index(name);
            out.push(check(
                "the index exists",
                none(
                    index.is_none(),
                    format!("collection {} has no index {name}", target.name),
                ),
                "",
            ));
            let vector = index.is_some_and(|i| {
                let mut fields = target.fields.iter();
                fields.any(|f| f.field_id == i.field_id && is_vector(f.data_type()))
            });
            out.push(check(
                "no query needs it",
                none(
                    vector && target.loaded,
                    "the collection is loaded, and its vectors are searched by it: release it first".into(),
                ),
                "",
            ));
        }
    }
    out
}

/// A segment that a truncate would leave, because it is dated ahead of every tick that a message can get now.
pub(super) fn none_ahead(segments: &[SegmentInfo], now: UnixMs) -> Check {
    let latest = Tso::from_ms(UnixMs(now.0.saturating_add(DAY_MS)));
    let last = |s: &SegmentInfo| {
        s.dml_position
            .as_ref()
            .map_or(Tso::UNSET, |p| Tso(p.timestamp))
    };
    let found = segments.iter().find(|s| last(s) > latest);
    check(
        "no row is dated ahead of the clock",
        found.map(|s| {
            format!(
                "segment {} is, by more than a day, and would stay: correct this machine's clock",
                s.id
            )
        }),
        "",
    )
}

/// Rows, segments and bytes that go, as the catalog has them.
fn lost(catalog: &Catalog, of: CollectionId, partition: Option<PartitionId>) -> String {
    let (mut rows, mut bytes, mut count) = (0_u64, 0_u64, 0_u64);
    for segment in catalog.segments_of(of) {
        if segment.state.name != "Dropped" && partition.is_none_or(|p| segment.partition == p) {
            rows += u64::try_from(segment.rows).unwrap_or(0);
            bytes += segment.bytes();
            count += 1;
        }
    }
    format!(
        "{rows} rows in {count} segments, {}, are lost; the collector removes their files after 3 h",
        text::bytes(bytes)
    )
}

/// The plan.
pub(super) async fn plan(cx: &PlanCx, intent: &Intent) -> Result<Plan> {
    let Intent::Ddl { change } = intent else {
        return Err(Error::new(ErrorKind::Internal, "not a DDL"));
    };
    let refusal = mark::refusal(&cx.meta, &*cx.clock, &cx.roots, cx.embedded).await?;
    let mut plan = Plan {
        intent: intent.clone(),
        title: String::new(),
        checks: vec![check(
            "the root is Falconer's own",
            refusal.map(|e| e.to_string()),
            "",
        )],
        steps: Vec::new(),
        changes: Vec::new(),
        objects: ObjectChange::default(),
        warnings: Vec::new(),
        undo: String::new(),
        danger: Danger::Low,
        type_to_confirm: None,
        based_on: cx.catalog.rev,
        rests_on: Vec::new(),
        hash: String::new(),
    };
    match change {
        Ddl::CreateCollection {
            database,
            name,
            spec,
        } => creating(cx, &mut plan, database, name, spec).await?,
        other => {
            let look = Look {
                meta: &cx.meta,
                roots: &cx.roots,
            };
            let id = collection_of(other).unwrap_or_default();
            let target = look.target(id).await?;
            plan.checks.extend(allowed(other, &target));
            if matches!(other, Ddl::TruncateCollection { .. }) {
                let segments = look.segments(id).await?;
                plan.checks.push(none_ahead(&segments, cx.clock.now()));
            }
            plan.rests_on.push((target.key.0.text(), target.key.1));
            changing(cx, &mut plan, other, &target);
        }
    }
    Ok(plan)
}

async fn creating(
    cx: &PlanCx,
    plan: &mut Plan,
    database: &str,
    name: &str,
    spec: &CollectionSpec,
) -> Result<()> {
    let reads = Reads {
        meta: &cx.meta,
        objects: &cx.objects,
        roots: &cx.roots,
    };
    plan.title = format!("create collection {database}/{name}");
    let schema = spec.schema(database, name);
    let words = |s: &CollectionSchema| {
        let fields = s.fields.iter().filter(|f| f.field_id >= 100);
        let fields: Vec<String> = fields
            .map(|f| format!("{} {}", f.name, f.data_type().as_str_name()))
            .collect();
        fields.join(", ")
    };
    plan.checks.push(checked(
        "the schema is one",
        schema.as_ref().map(words).map_err(Clone::clone),
    )?);
    let room = room_for(&reads, database, name).await;
    if let Ok((_, Some(key))) = &room {
        plan.rests_on.push(key.clone());
    }
    let room =
        room.map(|(db, _)| format!("{name} is no collection and no alias of {database} ({db})"));
    plan.checks.push(checked("the name is free", room)?);
    let (shards, partitions) = (
        spec.shard_count().unwrap_or(1),
        spec.partition_names().map_or(0, |n| n.len()),
    );
    plan.steps = vec![
        format!("hold {database}:{name}, take ids"),
        format!("broadcast CreateCollection to the control channel and {shards} new channels"),
        "each channel: its mark and its first checkpoint".into(),
        format!(
            "write {partitions} partitions and the fields, the collection's record last: it is there at once, whole"
        ),
        "read it back".into(),
    ];
    plan.changes.push(KeyChange {
        key: "root-coord/database/collection-info/<db>/<new>".into(),
        before: None,
        after: schema.ok().map(|s| words(&s).replace(", ", "\n")),
    });
    plan.undo = format!("falconer collection drop {database}/{name}");
    Ok(())
}

fn changing(cx: &PlanCx, plan: &mut Plan, change: &Ddl, target: &Target) {
    let full = format!("{}/{}", target.database, target.name);
    let held = format!("hold {}:{}, look again", target.database, target.name);
    let to = |what: &str, flag: &str| {
        format!(
            "broadcast {what} to the control channel and {} channels{flag}",
            target.channels.len()
        )
    };
    let by_checkpoint = "; each acknowledges when its checkpoint has reached the message";
    let own = KeyChange {
        key: target.key.0.text(),
        before: Some(format!("name: {}\nstate: Created", target.name)),
        after: None,
    };
    match change {
        Ddl::CreateCollection { .. } => {}
        Ddl::DropCollection { .. } => {
            plan.title = format!("drop collection {full}");
            plan.steps = vec![
                held,
                to("DropCollection", by_checkpoint),
                "set the collection to Dropping".into(),
                "each channel: its segments dropped, its mark set to removed, its checkpoint to the sentinel".into(),
                "load state, index definitions, partitions, fields, the collection's record last".into(),
                "broadcast DropSnapshotsByCollection: those that no pin keeps are deleted".into(),
                "look that nothing is left".into(),
            ];
            plan.warnings.push(lost(&cx.catalog, target.id, None));
            let now = cx.clock.now();
            let (kept, gone): (Vec<_>, Vec<_>) =
                target.snapshots.iter().partition(|s| is_pinned(s, now));
            let names = |list: &[&SnapshotInfo]| {
                list.iter()
                    .map(|s| s.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            if !gone.is_empty() {
                plan.warnings.push(format!(
                    "{} snapshots go with it: {}",
                    gone.len(),
                    names(&gone)
                ));
            }
            if !kept.is_empty() {
                plan.warnings.push(format!(
                    "{} pinned snapshots stay: {}",
                    kept.len(),
                    names(&kept)
                ));
            }
            if target.loaded {
                plan.warnings
                    .push("it is loaded: its load state goes with it".into());
            }
            plan.changes.push(own);
            plan.undo = "none; from a snapshot that is pinned: falconer restore start".into();
            plan.danger = Danger::High;
            plan.type_to_confirm = Some(target.name.clone());
        }
        Ddl::TruncateCollection { .. } => {
            plan.title = format!("truncate collection {full}");
            plan.steps = vec![
                held,
                to("TruncateCollection", by_checkpoint),
                format!("set {TRUNCATING}: no compaction meanwhile"),
                "each channel: segments whose last row is not after the message are dropped".into(),
                format!("take {TRUNCATING} off, keep each shard's time"),
                "look that nothing of before is left".into(),
            ];
            plan.warnings.push(lost(&cx.catalog, target.id, None));
            if !target.snapshots.is_empty() {
                plan.warnings.push(format!(
                    "{} snapshots keep what they refer to",
                    target.snapshots.len()
                ));
            }
            plan.changes.push(KeyChange {
                after: Some(format!(
                    "name: {}\nstate: Created\nshards: last truncate time",
                    target.name
                )),
                ..own
            });
            plan.undo = "none; from a snapshot: falconer restore start".into();
            plan.danger = Danger::High;
            plan.type_to_confirm = Some(target.name.clone());
        }
        Ddl::CreatePartition { name, .. } => {
            plan.title = format!("create partition {name} of {full}");
            plan.steps = vec![
                held,
                to("CreatePartition", ""),
                "write its record".into(),
                "read it back".into(),
            ];
            plan.changes.push(KeyChange {
                key: format!("root-coord/partitions/{}/<new>", target.id),
                before: None,
                after: Some(format!("name: {name}")),
            });
            plan.undo = format!("falconer partition drop {full} {name}");
        }
        Ddl::DropPartition { name, .. } => {
            plan.title = format!("drop partition {name} of {full}");
            plan.steps = vec![
                held,
                to("DropPartition", ""),
                "drop its segments, and deletes that are for it alone; its record last".into(),
                "look that nothing is left".into(),
            ];
            let id = target.partition(name);
            plan.warnings.push(lost(&cx.catalog, target.id, id));
            plan.changes.push(KeyChange {
                key: format!(
                    "root-coord/partitions/{}/{}",
                    target.id,
                    id.map_or_else(String::new, |id| id.to_string())
                ),
                before: Some(format!("name: {name}")),
                after: None,
            });
            plan.undo = "none; from a snapshot: falconer restore start".into();
            plan.danger = Danger::High;
            plan.type_to_confirm = Some(name.clone());
        }
        Ddl::CreateIndex {
            field,
            name,
            params,
            ..
        } => {
            let name = if name.is_empty() { field } else { name };
            plan.title = format!("create index {name} on {full}.{field}");
            plan.steps = vec![
                held,
                "broadcast CreateIndex to the control channel".into(),
                "write its definition".into(),
                "read it back".into(),
            ];
            plan.changes.push(KeyChange {
                key: format!("field-index/{}/<new>", target.id),
                before: None,
                after: Some(
                    params
                        .iter()
                        .map(|(k, v)| format!("{k}: {v}"))
                        .collect::<Vec<_>>()
                        .join("\n"),
                ),
            });
            plan.warnings
                .push("it is a definition: index nodes build the files once they run".into());
            plan.undo = format!("falconer index drop {full} {name}");
        }
        Ddl::DropIndex { name, .. } => {
            plan.title = format!("drop index {name} of {full}");
            plan.steps = vec![
                held,
                "broadcast DropIndex to the control channel".into(),
                "mark its definition as deleted; the collector removes rows, files and definition"
                    .into(),
                "look that it is so".into(),
            ];
            let id = target
                .index(name)
                .map_or(IndexId(0), |i| IndexId(i.index_id));
            plan.changes.push(KeyChange {
                key: format!("field-index/{}/{id}", target.id),
                before: Some(format!("name: {name}")),
                after: Some(format!("name: {name}\ndeleted: true")),
            });
            plan.undo = "create it again; its files are built anew".into();
            plan.danger = Danger::Medium;
        }
    }
}
