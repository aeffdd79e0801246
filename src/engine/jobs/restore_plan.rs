//! What must hold before a restore may begin, and what it would do: looked at by the plan, and once more by the job's first step.

use std::collections::BTreeMap;

use prost::Message;

use super::copy::CopyFile;
use super::copy_host::sizes;
use super::references::Keeper;
use super::restore_bundle;
use super::restore_checks as checks;
use super::restore_map::{Blueprint, Given, Source, draw, ids_needed};
use super::restore_names::name_is_free;
use super::restore_references::loaded;
use super::restore_source::Reads;
pub use super::restore_watch::record_fits;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::bundle::parse_metadata_uri;
use crate::engine::format::codec::is_tombstone;
use crate::engine::format::keys::Family;
use crate::engine::format::pb;
use crate::engine::ids::{
    CollectionId, DbId, KeyPrefix, MetaKey, MetaRev, ObjectKey, SnapshotId, UnixMs,
};
use crate::engine::meta::{RangeOpts, Span};
use crate::engine::model::references::Record;
use crate::engine::model::schema::check_name;
use crate::engine::model::text;
use crate::engine::plan::journal::Keys;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// Missing objects named one by one in a plan; the rest is counted.
const NAMED: usize = 1_000;
/// Names in one error: it is journaled, and written into each watchable record.
const IN_ERROR: usize = 100;
/// The check that the reference index answers.
const REFERENCES: &str = "references of the snapshot are loaded";

/// Everything found out.
#[derive(Debug, Default)]
pub struct Survey {
    /// Checks, in order.
    pub checks: Vec<Check>,
    /// Target database, when it exists.
    pub db: Option<DbId>,
    /// The snapshot's collection.
    pub of: CollectionId,
    /// The snapshot, when it can be read.
    pub source: Option<Source>,
    /// Its objects, sized; only when all are there.
    pub files: Vec<CopyFile>,
    /// Keys and revisions it rests on.
    pub rests_on: Vec<(String, MetaRev)>,
    /// Revision of the snapshot's record.
    pub rev: MetaRev,
    /// What may surprise.
    pub warnings: Vec<String>,
    /// The picture with made-up ids: for counting only.
    pub sketch: Option<Blueprint>,
}

impl Survey {
    fn check(&mut self, name: &str, outcome: Result<String>) -> bool {
        let (failed, detail) = match outcome {
            Ok(detail) => (None, detail),
            Err(e) => (Some(e.to_string()), String::new()),
        };
        let good = failed.is_none();
        self.checks.push(Check {
            name: name.to_owned(),
            failed,
            detail,
        });
        good
    }

    /// The first failure as an error.
    pub fn refuse(&self) -> Result<()> {
        match self.checks.iter().find(|c| c.failed.is_some()) {
            None => Ok(()),
            Some(check) => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{}: {}",
                    check.name,
                    check.failed.as_deref().unwrap_or_default()
                ),
            )
            .fix("plan the restore again")),
        }
    }
}

pub(super) fn refuse(what: impl Into<String>, fix: &str) -> Error {
    Error::new(ErrorKind::Conflict, what).fix(fix.to_owned())
}

/// From where to where.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The metadata of a bundle instead.
    pub from: Option<&'a str>,
    /// Target database, by name.
    pub database: &'a str,
    /// Target collection.
    pub name: &'a str,
}

/// Looks at everything. An error means that looking itself failed; what does not hold is a failed check.
pub async fn survey(
    reads: &Reads<'_>,
    keeper: &Keeper,
    now: UnixMs,
    wanted: Wanted<'_>,
) -> Result<Survey> {
    let Wanted {
        snapshot,
        from,
        database,
        name,
    } = wanted;
    let mut out = Survey::default();
    let named = valid_name(name);
    out.check("target name is well formed", named);
    let db = database_record(reads, database).await?;
    match &db {
        Some((id, _, key)) => {
            out.db = Some(*id);
            out.rests_on.extend(key.clone());
            out.check("target database exists", Ok(format!("{database} ({id})")));
            match name_is_free(reads, *id, name, None).await {
                Ok(_) => out.check(
                    "target name is free",
                    Ok(format!("{name} is no collection and no alias")),
                ),
                Err(e) if e.is_transient() => return Err(e),
                Err(e) => out.check("target name is free", Err(e)),
            };
        }
        None => {
            out.check(
                "target database exists",
                Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no database {database}"),
                )
                .fix("create it in Milvus, or choose another")),
            );
        }
    }
    out.check("no streaming service", no_streaming(reads).await?);
    if let Some(uri) = from {
        let source = match restore_bundle::open(reads, uri).await {
            Ok(source) => source,
            Err(e) if e.is_transient() => return Err(e),
            Err(e) => {
                out.check("the bundle is readable", Err(e));
                return Ok(out);
            }
        };
        out.of = CollectionId(source.record.collection_id);
        out.check("the bundle is readable", Ok(uri.to_owned()));
        let known = restore_bundle::channels_known(reads, &source).await?;
        out.check("its channels are this cluster's", known);
        let db = db.as_ref().map(|(_, info, _)| info);
        contents(reads, &mut out, source, db, wanted).await?;
        return Ok(out);
    }
    let record = match reads.snapshot(snapshot).await {
        Ok(kv) => kv,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            out.check("snapshot exists", Err(e));
            return Ok(out);
        }
        Err(e) => return Err(e),
    };
    out.rev = record.mod_rev;
    out.rests_on.push((record.key.text(), record.mod_rev));
    let info = match pb::data::SnapshotInfo::decode(record.value.clone()) {
        Ok(info) => info,
        Err(e) => {
            let e = Error::new(
                ErrorKind::Corrupt,
                format!("snapshot record {} cannot be decoded", record.key),
            )
            .caused_by(e);
            out.check("snapshot is committed", Err(e));
            return Ok(out);
        }
    };
    out.of = CollectionId(info.collection_id);
    if !out.check("snapshot is committed", committed(&info)) {
        return Ok(out);
    }
    let of = Record::of(&info);
    let read = reads.read_source(info).await;
    let (source, refs) = match loaded(reads, keeper, &of, read, now) {
        Ok(loaded) => loaded,
        Err(e) if e.is_transient() => return Err(e),
        Err(e) => {
            out.check(REFERENCES, Err(e));
            return Ok(out);
        }
    };
    let known = format!(
        "format version {}: {} segments, {} builds, {} files",
        source.metadata.format_version,
        refs.segments().len(),
        refs.builds().len(),
        refs.files
    );
    out.check(REFERENCES, Ok(known));
    let db = db.as_ref().map(|(_, info, _)| info);
    contents(reads, &mut out, source, db, wanted).await?;
    Ok(out)
}

/// The checks of what the snapshot holds.
async fn contents(
    reads: &Reads<'_>,
    out: &mut Survey,
    source: Source,
    db: Option<&pb::etcd::DatabaseInfo>,
    wanted: Wanted<'_>,
) -> Result<()> {
    out.check("storage versions are known", checks::storage(&source));
    let (known, unsure) = checks::indexes(reads, &source).await?;
    out.check("index versions can be loaded", known);
    out.warnings.extend(unsure);
    out.check(
        "encryption matches the database",
        checks::encryption(&source, db),
    );
    out.check("not an external collection", checks::external(&source));
    out.check(
        "nothing of it is new to this version",
        checks::understood(&source),
    );
    let given = Given {
        db: out.db.unwrap_or_default(),
        db_name: wanted.database.to_owned(),
        name: wanted.name.to_owned(),
        first_id: 1,
        now: UnixMs(0),
        starts: BTreeMap::new(),
    };
    match draw(
        &source,
        &given,
        reads.objects.root(),
        reads.objects.bucket(),
    ) {
        Err(e) => {
            out.check("partitions, channels and paths map", Err(e));
        }
        Ok(sketch) => {
            out.check(
                "partitions, channels and paths map",
                Ok(format!(
                    "{} partitions, {} channels, {} records",
                    source
                        .metadata
                        .collection
                        .as_ref()
                        .map_or(0, |c| c.partitions.len()),
                    sketch.channels.len(),
                    sketch.children.len() + 1
                )),
            );
            let fits = record_fits(sketch.segments.len());
            out.check("the job's record fits one value", fits);
            let mut files = sketch.files.clone();
            let missing = sizes(reads, source.outside.as_deref(), &mut files).await?;
            if missing.is_empty() {
                let bytes: u64 = files.iter().map(|f| f.size).sum();
                out.check(
                    "all objects are there",
                    Ok(format!("{} objects, {}", files.len(), text::bytes(bytes))),
                );
                out.files = files;
                out.check("the store has room", checks::room(reads, bytes));
                // Of a bundle, its own strict reading is all there is: notes are this cluster's.
                if source.outside.is_none() {
                    let whole = checks::whole(reads, &source, &out.files).await?;
                    out.check("the snapshot is whole", whole);
                }
            } else {
                absent(out, &missing, files.len());
            }
            warn(out, &source);
            out.sketch = Some(sketch);
        }
    }
    out.source = Some(source);
    Ok(())
}

/// Names for an error, which the job's record keeps: not more than it can hold.
pub(super) fn some_of<T: AsRef<str>>(names: &[T]) -> String {
    let more = names.len().saturating_sub(IN_ERROR);
    let tail = if more > 0 {
        format!(", and {more} more")
    } else {
        String::new()
    };
    let named: Vec<&str> = names.iter().take(IN_ERROR).map(AsRef::as_ref).collect();
    format!("{}{tail}", named.join(", "))
}

/// One failed check for each missing object, so that all of them are named.
fn absent(out: &mut Survey, missing: &[ObjectKey], all: usize) {
    for key in missing.iter().take(NAMED) {
        out.check(
            "object is there",
            Err(
                Error::new(ErrorKind::NotFound, format!("object {key} is missing"))
                    .fix("bring it back from a backup of the bucket, or use another snapshot"),
            ),
        );
    }
    let more = missing.len().saturating_sub(NAMED);
    let tail = if more > 0 {
        format!(", {more} more than are named here")
    } else {
        String::new()
    };
    out.check(
        "all objects are there",
        Err(refuse(
            format!("{} of {all} objects are missing{tail}", missing.len()),
            "bring them back from a backup of the bucket, or use another snapshot",
        )),
    );
}

/// Milvus's rule for names (`spec/snapshot.md` §3.3), on exactly what is stored.
fn valid_name(name: &str) -> Result<String> {
    check_name("collection", name).map(|()| name.to_owned())
}

pub(super) type Database = (DbId, pb::etcd::DatabaseInfo, Option<(String, MetaRev)>);

/// A database by name. A root from before databases has only the default one, without a record.
pub(super) async fn database_record(reads: &Reads<'_>, name: &str) -> Result<Option<Database>> {
    let page = reads.family(Family::Database).await?;
    let empty = page.kvs.is_empty();
    for kv in page.kvs {
        if is_tombstone(Family::Database, &kv.value) {
            continue;
        }
        let Ok(info) = pb::etcd::DatabaseInfo::decode(kv.value.clone()) else {
            continue;
        };
        if info.name == name && info.state == pb::etcd::DatabaseState::DatabaseCreated as i32 {
            let id = DbId(info.id);
            return Ok(Some((id, info, Some((kv.key.text(), kv.mod_rev)))));
        }
    }
    let default = empty && name == "default";
    Ok(default.then(|| (DbId(1), pb::etcd::DatabaseInfo::default(), None)))
}

/// A vchannel that the streaming service does not know freezes for ever (`spec/layout.md` §5.3): refused until it can be registered.
async fn no_streaming(reads: &Reads<'_>) -> Result<Result<String>> {
    // Ours: its channels are found by the records of their virtual ones.
    if let Some(kv) = reads.meta.get(&Keys::new(reads.roots).root()).await? {
        return Ok(Ok(format!("the channels are ours ({})", kv.key)));
    }
    let base = [
        reads.roots.root.as_str(),
        reads.roots.meta.as_str(),
        "streamingcoord-meta",
    ];
    let prefix = KeyPrefix::new(
        &base
            .iter()
            .map(|p| p.trim_matches('/'))
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join("/"),
    );
    let opts = RangeOpts {
        limit: 1,
        keys_only: true,
        ..RangeOpts::default()
    };
    let page = reads.meta.range(&Span::prefix(&prefix), opts).await?;
    Ok(match page.kvs.first() {
        None => Ok("no key under streamingcoord-meta".into()),
        Some(kv) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("this cluster has a streaming service ({}): new channels written offline would never be served", kv.key),
        )
        .fix("restore through Milvus itself, or into a cluster without the streaming service (up to 2.5)")),
    })
}

fn committed(info: &pb::data::SnapshotInfo) -> Result<String> {
    let what = match info.state {
        0 | 2 => return Ok(format!("{} ({})", info.name, info.id)),
        1 => "is still being created".to_owned(),
        3 => "is being dropped".to_owned(),
        other => format!("is in the unknown state {other}"),
    };
    Err(refuse(
        format!("snapshot {} {what}", info.name),
        "choose another snapshot",
    ))
}

fn warn(out: &mut Survey, source: &Source) {
    let harmless: Vec<&str> = source
        .unknown
        .iter()
        .map(String::as_str)
        .filter(|member| !checks::is_content(member))
        .collect();
    if !harmless.is_empty() {
        out.warnings.push(format!(
            "the snapshot's metadata has members that this version does not know and leaves out: {}",
            harmless.join(", ")
        ));
    }
    let l0 = pb::data::SegmentLevel::L0 as i32;
    let empty: Vec<String> = source
        .segments
        .iter()
        .filter(|s| s.segment_level != l0 && s.num_of_rows == 0)
        .map(|s| s.segment_id.to_string())
        .collect();
    if !empty.is_empty() {
        out.warnings.push(format!(
            "segments without rows, which some versions of Milvus fail to load: {}",
            empty.join(", ")
        ));
    }
    let uneven = source.segments.iter().filter(|s| uneven(s)).count();
    if uneven > 0 {
        out.warnings.push(format!(
            "{uneven} segments have different numbers of insert and stats logs; Milvus may refuse to save them again until they are compacted"
        ));
    }
    let boundary: Vec<String> = source
        .record
        .channel_seek_positions
        .iter()
        .filter_map(|p| {
            let at = crate::engine::ids::Tso(p.timestamp).time()?;
            Some(format!("{} at {}", p.channel_name, at.utc()))
        })
        .collect();
    if !boundary.is_empty() {
        out.warnings.push(format!(
            "rows that were not persisted at the snapshot's boundary are not in it: {}",
            boundary.join(", ")
        ));
    }
    out.warnings.push(
        "the restored collection is not loaded; load it after the coordinators have started".into(),
    );
}

/// `spec/layout.md` §3.2: without parents and without the compound stats log, Milvus wants equal counts.
fn uneven(segment: &pb::data::SegmentDescription) -> bool {
    let compound = segment
        .statslogs
        .iter()
        .flat_map(|f| &f.binlogs)
        .any(|b| b.log_id == 1 || b.log_path.ends_with("/1"));
    match (segment.binlogs.first(), segment.statslogs.first()) {
        (Some(a), Some(b)) => !compound && a.binlogs.len() != b.binlogs.len(),
        _ => false,
    }
}

/// The plan that an operator sees.
pub async fn plan(
    reads: &Reads<'_>,
    keeper: &Keeper,
    now: UnixMs,
    intent: &Intent,
) -> Result<Plan> {
    let (snapshot, from, database, collection) = match intent {
        Intent::Restore {
            snapshot,
            database,
            collection,
        } => (*snapshot, None, database, collection),
        Intent::RestoreBundle {
            uri,
            database,
            collection,
        } => {
            // What may hold a password is not even planned: a plan is shown.
            parse_metadata_uri(uri)?;
            (SnapshotId(0), Some(uri.as_str()), database, collection)
        }
        _ => return Err(Error::new(ErrorKind::Internal, "not a restore")),
    };
    let wanted = Wanted {
        snapshot,
        from,
        database,
        name: collection,
    };
    let found = survey(reads, keeper, now, wanted).await?;
    let label = found.source.as_ref().map_or_else(
        || from.map_or_else(|| snapshot.to_string(), str::to_owned),
        |s| {
            let of = s
                .metadata
                .collection
                .as_ref()
                .and_then(|c| c.schema.as_ref());
            format!("{}@{}", of.map_or("?", |s| s.name.as_str()), s.record.name)
        },
    );
    let bytes: u64 = found.files.iter().map(|f| f.size).sum();
    let ids = found
        .source
        .as_ref()
        .map(ids_needed)
        .transpose()?
        .unwrap_or(0);
    let records = found.sketch.as_ref().map_or(0, |b| b.children.len() + 1);
    Ok(Plan {
        intent: intent.clone(),
        title: format!("restore {label} → {database}.{collection}"),
        steps: vec![
            match from {
                None => "pin the snapshot for one hour, renewed while the job runs".into(),
                Some(_) => "read the bundle; nothing keeps others from deleting it".to_owned(),
            },
            format!("take {ids} new ids from the cluster's allocator"),
            "record the job where Milvus's own tools see it".into(),
            format!(
                "copy {} objects ({}) {}",
                found.files.len(),
                text::bytes(bytes),
                from.map_or("inside the store", |_| "from the bundle")
            ),
            "list every copied object and compare its size".into(),
            format!(
                "write {} records, invisible without the collection's own",
                records.saturating_sub(1)
            ),
            format!("publish {database}.{collection} in one transaction"),
            "read everything back and compare it with the snapshot".into(),
            "release the snapshot".into(),
        ],
        changes: changes(&found, database, collection),
        objects: ObjectChange {
            copies: found.files.len() as u64,
            copy_bytes: bytes,
            samples: found
                .files
                .iter()
                .take(5)
                .map(|f| f.from.0.clone())
                .collect(),
            ..ObjectChange::default()
        },
        checks: found.checks,
        warnings: found.warnings,
        undo: format!(
            "drop {database}.{collection} in Milvus; until it is published, cancelling the job takes everything back"
        ),
        danger: Danger::Low,
        type_to_confirm: None,
        based_on: found.rev,
        rests_on: found.rests_on,
        hash: String::new(),
    })
}

/// The collection's record in full, the others by family: ids are not known before they are taken.
fn changes(found: &Survey, database: &str, name: &str) -> Vec<KeyChange> {
    let (Some(source), Some(sketch)) = (&found.source, &found.sketch) else {
        return Vec::new();
    };
    let Some(description) = &source.metadata.collection else {
        return Vec::new();
    };
    let mut lines = vec![
        format!("name: {name}"),
        format!("database: {database}"),
        format!("shards: {}", description.num_shards),
        format!("consistency level: {}", description.consistency_level),
    ];
    lines.extend(description.properties.iter().map(|p| {
        format!(
            "property {}: {}",
            p.key,
            crate::engine::format::mask::text(&p.value)
        )
    }));
    let mut out = vec![KeyChange {
        key: format!(
            "root-coord/database/collection-info/{}/<new>",
            found.db.unwrap_or_default()
        ),
        before: None,
        after: Some(lines.join("\n")),
    }];
    let mut count: BTreeMap<Family, usize> = BTreeMap::new();
    for (key, _) in &sketch.children {
        *count.entry(key.family()).or_default() += 1;
    }
    out.extend(count.into_iter().map(|(family, n)| KeyChange {
        key: format!("{}/<new>/…", family.path()),
        before: None,
        after: Some(format!("{n} records: {}", family.title())),
    }));
    if source.outside.is_some() {
        return out;
    }
    out.push(KeyChange {
        key: MetaKey::from(format!(
            "datacoord-meta/snapshot/{}/{}",
            found.of,
            source.id()
        ))
        .text(),
        before: Some(format!("pins: {}", source.record.pin_ids.len())),
        after: Some(format!(
            "pins: {} while the job runs",
            source.record.pin_ids.len() + 1
        )),
    });
    out
}
