//! One row in full: sections for the detail view, a stable JSON shape, and the raw keys behind it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::engine::format::keys::{Family, Key, Role};
use crate::engine::ids::{MetaKey, NodeId, PartitionScope, SnapshotId, Tso};

use super::blocked::blocked;
use super::columns::cell_of;
use super::data::{Channel, Collection, LogSum, Segment};
use super::references::{Entry, Extent, Status};
use super::resource::{Cell, RowId};
use super::rows::{RowRef, View, row};
use super::text::bytes;
use super::view::{ChannelView, Rollback};

/// A titled list of names and values.
pub type Section = (&'static str, Vec<(String, Cell)>);

/// The decoded fields of a row, in sections. Empty when the row has gone.
#[must_use]
pub fn detail(view: &View<'_>, id: &RowId) -> Vec<Section> {
    let Some(row) = row(view, id) else {
        return Vec::new();
    };
    let columns = id.kind().spec().columns;
    let mut own: Vec<(String, Cell)> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| (column.id.replace('_', " "), cell_of(view, row, i)))
        .filter(|(_, cell)| *cell != Cell::None)
        .collect();
    if row.rev().0 > 0 {
        own.push(("revision".into(), Cell::Id(row.rev().0)));
    }
    let mut out: Vec<Section> = vec![("Row", own)];
    let badges = super::badges::of(view, row).into_iter();
    let badges = badges.map(|b| (b.name.to_owned(), Cell::State(b.help.into(), b.tone)));
    push(&mut out, "Badges", badges.collect());
    match row {
        RowRef::Collection(c) => collection_sections(view, c, &mut out),
        RowRef::Leftover(id) => {
            let words = view.leftover(id).map(|left| left.words());
            let words = words.map(|w| ("remains".to_owned(), Cell::Text(w.into())));
            push(&mut out, "No record", words.into_iter().collect());
        }
        RowRef::Database(d) => push_pairs(&mut out, "Properties", &d.properties),
        RowRef::Segment(s) => {
            let logs = logs(s)
                .into_iter()
                .filter(|(_, sum)| sum.files > 0)
                .flat_map(|(name, sum)| {
                    [
                        (format!("{name} files"), Cell::Count(i64::from(sum.files))),
                        (format!("{name} entries"), count(sum.entries)),
                        (format!("{name} bytes"), Cell::Bytes(sum.bytes)),
                    ]
                })
                .collect::<Vec<_>>();
            push(&mut out, "Logs", logs);
            let mut more = Vec::new();
            if let Some(manifest) = &s.manifest {
                more.push(("manifest".into(), Cell::Shared(manifest.clone())));
            }
            if let Some(at) = s.commit_ts.time() {
                more.push(("commit".into(), Cell::Time(at)));
            }
            push(&mut out, "More", more);
        }
        RowRef::Channel(c) => {
            let tso = c.checkpoint.filter(|t| t.time().is_some());
            push(
                &mut out,
                "Raw",
                tso.map(|t| {
                    (
                        "checkpoint TSO".to_owned(),
                        Cell::Text(t.0.to_string().into()),
                    )
                })
                .into_iter()
                .collect(),
            );
            push(&mut out, "What queries see", queried(view, c).lines());
        }
        RowRef::Index(i) => push_pairs(&mut out, "Parameters", &i.params),
        RowRef::Snapshot(s) => {
            let boundary = s
                .boundary
                .iter()
                .map(|(name, tso)| (name.0.clone(), tso.time().map_or(Cell::None, Cell::Time)))
                .collect();
            push(&mut out, "Boundary", boundary);
            let pins = s
                .pins
                .iter()
                .map(|pin| {
                    (
                        format!("pin {}", pin.id),
                        Cell::Text(pin.left(view.now).into()),
                    )
                })
                .collect();
            push(&mut out, "Pins", pins);
            push(&mut out, "References", references(view, s.id));
        }
        RowRef::Broadcast(b) => out.extend(b.sections(view)),
        RowRef::Job(j) => {
            let notes = j
                .notes
                .iter()
                .chain(&j.recovered)
                .enumerate()
                .map(|(i, note)| (format!("{}", i + 1), Cell::Text(note.clone().into())))
                .collect();
            push(&mut out, "Notes", notes);
        }
        _ => {}
    }
    out
}

/// What it refers to, or why that is not known and what waits for it.
fn references(view: &View<'_>, id: SnapshotId) -> Vec<(String, Cell)> {
    let Some(entry) = view.references.get(id) else {
        return Vec::new();
    };
    let text = |name: &str, value: String| (name.to_owned(), Cell::Text(value.into()));
    let count = |n: u64| Cell::Count(i64::try_from(n).unwrap_or(i64::MAX));
    let mut out = Vec::new();
    match &entry.status {
        Status::NotLoaded => out.push(text("state", "not read yet".into())),
        Status::Loaded { refs, when } => {
            out.push(text(
                "state",
                match refs.extent {
                    Extent::Ids => "ids read; the manifests follow",
                    Extent::Files => "read whole",
                }
                .into(),
            ));
            out.push(("read (UTC)".into(), Cell::Time(*when)));
            out.push(("segments".into(), count(refs.segments().len() as u64)));
            out.push(("index builds".into(), count(refs.builds().len() as u64)));
            if refs.extent == Extent::Files {
                out.push(("files".into(), count(refs.files)));
            }
        }
        Status::Failed {
            reason,
            since,
            tries,
            again,
        } => {
            out.push(text("state", format!("cannot be read: {reason}")));
            out.push(("since (UTC)".into(), Cell::Time(*since)));
            out.push(text("tries", tries.to_string()));
            out.push(("next try (UTC)".into(), Cell::Time(*again)));
        }
    }
    let collection = entry.record.collection;
    let all = blocked(view);
    if let Some(blocked) = all.iter().find(|b| b.collection == collection) {
        out.push(text(
            "holds back",
            format!(
                "everything of {}: {} dropped segments with {} wait",
                view.catalog.collection_name(collection),
                blocked.segments,
                bytes(blocked.bytes)
            ),
        ));
    }
    out
}

/// The channel's view as a query coordinator is told it.
fn queried(view: &View<'_>, channel: &Channel) -> ChannelView {
    view.catalog
        .channel_view(channel, &BTreeSet::new(), Rollback::AsMilvus)
}

fn push(out: &mut Vec<Section>, title: &'static str, rows: Vec<(String, Cell)>) {
    if !rows.is_empty() {
        out.push((title, rows));
    }
}

fn push_pairs(out: &mut Vec<Section>, title: &'static str, pairs: &[(String, String)]) {
    let rows = pairs
        .iter()
        .map(|(k, v)| (k.clone(), Cell::Text(v.clone().into())))
        .collect();
    push(out, title, rows);
}

fn count(n: u64) -> Cell {
    Cell::Count(i64::try_from(n).unwrap_or(i64::MAX))
}

fn collection_sections(view: &View<'_>, c: &Collection, out: &mut Vec<Section>) {
    let fields = c
        .fields
        .iter()
        .map(|f| {
            let mut words = vec![f.data_type.text().into_owned()];
            if f.element_type.number != 0 {
                words.push(format!("of {}", f.element_type.text()));
            }
            words.extend(f.type_params.iter().map(|(k, v)| format!("{k}={v}")));
            for (on, word) in [
                (f.primary_key, "primary key"),
                (f.auto_id, "auto id"),
                (f.partition_key, "partition key"),
                (f.clustering_key, "clustering key"),
                (f.dynamic, "dynamic"),
                (f.nullable, "nullable"),
            ] {
                if on {
                    words.push(word.to_owned());
                }
            }
            let name = match f.parent {
                Some(parent) => format!("{} {} (in {parent})", f.id, f.name),
                None => format!("{} {}", f.id, f.name),
            };
            (name, Cell::Text(words.join(" ").into()))
        })
        .collect();
    push(out, "Fields", fields);
    let functions = c
        .functions
        .iter()
        .map(|(name, kind)| (name.clone(), Cell::Text(kind.text())))
        .collect();
    push(out, "Functions", functions);
    let channels = c
        .vchannels
        .iter()
        .map(|name| {
            let cell = view.catalog.channels.get(name).map_or(Cell::None, |ch| {
                let (text, tone) = super::health::channel_state(view, ch);
                Cell::State(text.into(), tone)
            });
            (name.0.clone(), cell)
        })
        .collect();
    push(out, "Channels", channels);
    push_pairs(out, "Properties", &c.properties);
    if let Some(load) = view.catalog.loads.get(&c.id) {
        let mut rows = vec![
            ("load type".to_owned(), Cell::Text(load.load_type.text())),
            ("replicas".to_owned(), Cell::Count(i64::from(load.replicas))),
        ];
        for (id, status) in &load.partitions {
            let name = view
                .catalog
                .partitions
                .get(&(c.id, *id))
                .map_or_else(|| id.to_string(), |p| p.name.to_string());
            rows.push((format!("partition {name}"), Cell::Text(status.text())));
        }
        push(out, "Load", rows);
    }
}

const fn logs(s: &Segment) -> [(&'static str, LogSum); 4] {
    [
        ("insert", s.insert),
        ("delta", s.delta),
        ("stats", s.stats),
        ("bm25", s.bm25),
    ]
}

/// A row as JSON: `kind`, `key` (the id to ask for it again), every column by its stable name, and the parts that no column
/// holds. Ids are strings, moments RFC 3339, ages milliseconds under `…_ms`. `null` when the row has gone.
#[must_use]
pub fn json(view: &View<'_>, id: &RowId) -> Value {
    let Some(row) = row(view, id) else {
        return Value::Null;
    };
    let mut out = Map::new();
    out.insert("kind".into(), id.kind().spec().name.into());
    out.insert("key".into(), id.text().into());
    for (i, column) in id.kind().spec().columns.iter().enumerate() {
        let (name, value) = match cell_of(view, row, i) {
            Cell::Age(ms) => (format!("{}_ms", column.id), Value::from(ms)),
            Cell::None if column.unit == super::resource::Unit::Age => {
                (format!("{}_ms", column.id), Value::Null)
            }
            cell => (column.id.to_owned(), value(cell)),
        };
        out.insert(name, value);
    }
    extras(view, row, &mut out);
    if !super::badges::all(id.kind()).is_empty() {
        let names: Vec<&str> = super::badges::of(view, row)
            .iter()
            .map(|b| b.name)
            .collect();
        out.insert("badges".into(), names.into());
    }
    if row.rev().0 > 0 {
        out.insert("revision".into(), row.rev().0.into());
    }
    Value::Object(out)
}

fn value(cell: Cell) -> Value {
    match cell {
        Cell::None => Value::Null,
        Cell::Text(t) | Cell::State(t, _) => t.into_owned().into(),
        Cell::Shared(t) => t.to_string().into(),
        Cell::Id(n) => n.to_string().into(),
        Cell::Count(n) => n.into(),
        Cell::Bytes(n) | Cell::Age(n) => n.into(),
        Cell::Time(at) => at.utc().into(),
    }
}

fn object(pairs: &[(String, String)]) -> Value {
    Value::Object(
        pairs
            .iter()
            .map(|(k, v)| (k.clone(), Value::from(v.clone())))
            .collect(),
    )
}

fn tso(t: Tso) -> Value {
    match t {
        Tso::UNSET => Value::Null,
        Tso::DROPPED => "DROPPED".into(),
        t => {
            json!({ "tso": t.0.to_string(), "utc": t.time().map(crate::engine::ids::UnixMs::utc) })
        }
    }
}

fn extras(view: &View<'_>, row: RowRef<'_>, out: &mut Map<String, Value>) {
    match row {
        RowRef::Database(d) => {
            out.insert("properties".into(), object(&d.properties));
        }
        RowRef::Collection(c) => {
            let fields: Vec<Value> = c
                .fields
                .iter()
                .map(|f| {
                    json!({
                        "id": f.id.to_string(),
                        "name": f.name,
                        "data_type": f.data_type.text(),
                        "element_type": (f.element_type.number != 0).then(|| f.element_type.text()),
                        "primary_key": f.primary_key,
                        "auto_id": f.auto_id,
                        "partition_key": f.partition_key,
                        "clustering_key": f.clustering_key,
                        "dynamic": f.dynamic,
                        "nullable": f.nullable,
                        "type_params": object(&f.type_params),
                        "parent": f.parent.map(|p| p.to_string()),
                        "description": f.description,
                    })
                })
                .collect();
            out.insert("fields".into(), fields.into());
            let functions: Vec<Value> = c
                .functions
                .iter()
                .map(|(name, kind)| json!({ "name": name, "type": kind.text() }))
                .collect();
            out.insert("functions".into(), functions.into());
            out.insert("dynamic".into(), c.dynamic.into());
            out.insert("description".into(), c.description.clone().into());
            out.insert("aliases".into(), c.aliases.clone().into());
            let names: Vec<&str> = c.vchannels.iter().map(|v| v.0.as_str()).collect();
            out.insert("vchannels".into(), names.into());
            out.insert("properties".into(), object(&c.properties));
            out.insert("schema_version".into(), c.schema_version.into());
            out.insert("damage".into(), c.damage.clone().into());
        }
        RowRef::Segment(s) => {
            let logs: Map<String, Value> = logs(s)
                .into_iter()
                .map(|(name, sum)| {
                    let value =
                        json!({ "files": sum.files, "entries": sum.entries, "bytes": sum.bytes });
                    (name.to_owned(), value)
                })
                .collect();
            out.insert("logs".into(), logs.into());
            let all = s.scope() == Some(PartitionScope::ALL);
            out.insert("all_partitions".into(), all.into());
            out.insert("collection_id".into(), s.collection.to_string().into());
            out.insert("start".into(), tso(s.start));
            out.insert("dml".into(), tso(s.dml));
            out.insert("sorted".into(), s.sorted.into());
            out.insert("hidden".into(), s.invisible.into());
            out.insert("importing".into(), s.importing.into());
            out.insert("manifest".into(), s.manifest.as_deref().into());
        }
        RowRef::Channel(c) => {
            let checkpoint = c.checkpoint.map_or(Value::Null, tso);
            out.insert("checkpoint".into(), checkpoint);
            let id = c.collection.map(|id| id.to_string());
            out.insert("collection_id".into(), id.into());
            out.insert("query_view".into(), queried(view, c).json());
        }
        RowRef::Index(i) => {
            out.insert("params".into(), object(&i.params));
            out.insert("field_id".into(), i.field.to_string().into());
            out.insert("collection_id".into(), i.collection.to_string().into());
        }
        RowRef::Snapshot(s) => {
            out.insert("collection_id".into(), s.collection.to_string().into());
            let boundary: Map<String, Value> = s
                .boundary
                .iter()
                .map(|(name, at)| (name.0.clone(), tso(*at)))
                .collect();
            out.insert("boundary_by_channel".into(), boundary.into());
            let pins: Vec<Value> = s
                .pins
                .iter()
                .map(|p| {
                    let until = p.expires.map(crate::engine::ids::UnixMs::utc);
                    json!({ "id": p.id.to_string(), "expires": until })
                })
                .collect();
            out.insert("pin_list".into(), pins.into());
            let references = view.references.get(s.id).map(status);
            out.insert("reference_index".into(), references.into());
            let ids: Vec<String> = s.partitions.iter().map(ToString::to_string).collect();
            out.insert("partition_ids".into(), ids.into());
        }
        RowRef::Broadcast(b) => {
            let more = b.json(view).into_iter();
            out.extend(more.map(|(name, value)| (name.to_owned(), value)));
        }
        RowRef::Job(j) => {
            out.insert("job".into(), serde_json::to_value(j).unwrap_or(Value::Null));
        }
        RowRef::Replica(r) => {
            let nodes: Vec<String> = r.nodes.iter().map(ToString::to_string).collect();
            out.insert("node_ids".into(), nodes.into());
        }
        RowRef::Partition(p) => {
            out.insert("collection_id".into(), p.collection.to_string().into());
            let load = view.catalog.loads.get(&p.collection);
            let kind = load.map(|l| l.load_type.text());
            out.insert("load_type".into(), kind.into());
        }
        RowRef::SegmentIndex(b) => {
            out.insert("collection_id".into(), b.collection.to_string().into());
            out.insert("index_id".into(), b.index.to_string().into());
        }
        _ => {}
    }
}

/// Whether it is known what a snapshot refers to: `state`, and with it `segments`, `builds`, `files`, `read`, or `reason`, `since`,
/// `tries`, `next_try`.
#[must_use]
pub fn status(entry: &Entry) -> Value {
    match &entry.status {
        Status::NotLoaded => json!({ "state": "not-loaded", "since": entry.seen.utc() }),
        Status::Loaded { refs, when } => json!({
            "state": "loaded",
            "extent": refs.extent,
            "segments": refs.segments().len(),
            "builds": refs.builds().len(),
            "files": refs.files,
            "read": when.utc(),
        }),
        Status::Failed {
            reason,
            since,
            tries,
            again,
        } => json!({
            "state": "failed",
            "reason": &**reason,
            "since": since.utc(),
            "tries": tries,
            "next_try": again.utc(),
        }),
    }
}

/// The raw keys behind a row, as they exist now, in order.
#[must_use]
pub fn keys(view: &View<'_>, id: &RowId) -> Vec<MetaKey> {
    let Some(row) = row(view, id) else {
        return Vec::new();
    };
    let c = view.catalog;
    let roots = &c.roots;
    let mut out: Vec<MetaKey> = Vec::new();
    let mut one = |key: &Key| {
        let key = key.to_key(roots);
        if c.keys.get(&key).is_some() {
            out.push(key);
        }
    };
    let mut trees: Vec<(Family, Vec<i64>)> = Vec::new();
    let mut channels: Vec<MetaKey> = Vec::new();
    match row {
        RowRef::Database(r) => one(&Key::Database(r.id)),
        RowRef::Collection(r) => {
            one(&Key::Collection(r.db, r.id));
            one(&Key::Collection(crate::engine::ids::DbId(0), r.id));
            one(&Key::LegacyCollection(r.id));
            for alias in c.aliases_of(r.id) {
                one(&Key::Alias(alias.db, alias.name.to_string()));
                one(&Key::LegacyAlias(alias.name.to_string()));
                one(&Key::OldestAlias(alias.name.to_string()));
            }
            one(&Key::CollectionLoad(r.id));
            for family in [
                Family::Partition,
                Family::Field,
                Family::StructField,
                Family::Function,
                Family::PartitionLoad,
                Family::FieldIndex,
                Family::Replica,
            ] {
                trees.push((family, vec![r.id.0]));
            }
        }
        RowRef::Leftover(of) => {
            one(&Key::CollectionLoad(of));
            for family in [
                Family::Partition,
                Family::PartitionLoad,
                Family::Segment,
                Family::Binlog,
                Family::Statslog,
                Family::Deltalog,
                Family::Bm25log,
                Family::SegmentIndex,
                Family::FieldIndex,
            ] {
                trees.push((family, vec![of.0]));
            }
            for channel in c.channels_of(of) {
                channels.extend(keys(view, &RowId::Channel(channel.name.0.clone())));
            }
        }
        RowRef::Partition(r) => {
            one(&Key::Partition(r.collection, r.id));
            one(&Key::PartitionLoad(r.collection, r.id));
        }
        RowRef::Segment(r) => {
            one(&Key::Segment(r.collection, r.partition, r.id));
            for family in [
                Family::Binlog,
                Family::Statslog,
                Family::Deltalog,
                Family::Bm25log,
                Family::SegmentIndex,
            ] {
                trees.push((family, vec![r.collection.0, r.partition.0, r.id.0]));
            }
        }
        RowRef::Channel(r) => {
            one(&Key::ChannelCheckpoint(r.name.clone()));
            one(&Key::ChannelRemoval(r.name.clone()));
            let pchannel =
                crate::engine::format::vchannel::ChannelName::parse(&r.name.0).pchannel();
            one(&Key::WalVChannel(pchannel.to_owned(), r.name.clone()));
            one(&Key::PChannel(pchannel.to_owned()));
            for node in r.watch.iter().map(|w| w.0) {
                one(&Key::ChannelWatch(node, r.name.clone()));
            }
        }
        RowRef::Index(r) => one(&Key::FieldIndex(r.collection, r.id)),
        RowRef::SegmentIndex(r) => {
            one(&Key::SegmentIndex(
                r.collection,
                r.partition,
                r.segment,
                r.build,
            ));
        }
        RowRef::Snapshot(r) => one(&Key::Snapshot(r.collection, r.id)),
        RowRef::Session(r) => {
            one(&Key::Session(Role::of(&r.role), None));
            let id = r.name.rsplit_once('-').and_then(|(_, id)| id.parse().ok());
            if let Some(id) = id {
                one(&Key::Session(Role::of(&r.role), Some(NodeId(id))));
            }
        }
        RowRef::Alias(r) => {
            one(&Key::Alias(r.db, r.name.to_string()));
            one(&Key::LegacyAlias(r.name.to_string()));
            one(&Key::OldestAlias(r.name.to_string()));
        }
        RowRef::Replica(r) => one(&Key::Replica(r.collection, r.id)),
        RowRef::Broadcast(r) => out.push(r.key.clone()),
        RowRef::Task(r) => out.push(r.key.clone()),
        RowRef::Config(r) => out.push(r.key.clone()),
        RowRef::Undecodable(r) => out.push(r.key.clone()),
        RowRef::Key(key, _) => out.push(key.clone()),
        RowRef::Job(_) | RowRef::Ticket(_) | RowRef::Quarantine(_) => {}
    }
    for (family, ids) in trees {
        let prefix = family.under(roots, &ids);
        out.extend(
            c.keys
                .under(&prefix.to_string())
                .map(|(key, _)| key.clone()),
        );
    }
    out.extend(channels);
    out.dedup();
    out
}
