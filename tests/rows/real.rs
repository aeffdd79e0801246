//! What a real Milvus 2.3.5 wrote, against what it said of itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use bytes::Bytes;
use falconer::engine::format::binlog::{self, DeltaForm, V1Header, v1_events};
use falconer::engine::format::keys::{Key, LogKind, ParsedKey, Roots};
use falconer::engine::format::pb::common::SegmentState;
use falconer::engine::format::pb::data::{FieldBinlog, SegmentInfo};
use falconer::engine::format::pb::schema::{CollectionSchema, FieldSchema};
use falconer::engine::format::rows::delta::{self, DeltaReader};
use falconer::engine::format::rows::insert::LogReader;
use falconer::engine::format::rows::{
    Deletes, Limits, PrimaryKey, Rows, Schema, json, order, stats,
};
use falconer::engine::ids::{CollectionId, FieldId, Tso};
use prost::Message;
use serde_json::Value;

use crate::lab;

/// The lab's records that rows need.
#[derive(Default)]
struct Lab {
    fields: BTreeMap<CollectionId, Vec<FieldSchema>>,
    segments: BTreeMap<i64, SegmentInfo>,
}

static OBJECTS: LazyLock<HashMap<&'static str, Bytes>> = LazyLock::new(|| {
    lab::objects()
        .iter()
        .map(|(k, b)| (k.as_str(), b.clone()))
        .collect()
});

fn lab() -> Lab {
    let roots = Roots::default();
    let mut out = Lab::default();
    let mut logs = Vec::new();
    for entry in lab::etcd() {
        match Key::parse(&roots, &entry.key) {
            // A tombstone is a deletion.
            _ if entry.value == [0xE2, 0x9B, 0xBC] => {}
            ParsedKey::Known(Key::Field(c, _)) => {
                let field = FieldSchema::decode(&entry.value[..]).unwrap();
                out.fields.entry(c).or_default().push(field);
            }
            ParsedKey::Known(Key::Segment(_, _, s)) => {
                out.segments
                    .insert(s.0, SegmentInfo::decode(&entry.value[..]).unwrap());
            }
            ParsedKey::Known(Key::Log(kind, _, _, s, _)) if !entry.value.is_empty() => {
                logs.push((kind, s, FieldBinlog::decode(&entry.value[..]).unwrap()));
            }
            _ => {}
        }
    }
    for (kind, s, log) in logs {
        let Some(segment) = out.segments.get_mut(&s.0) else {
            continue;
        };
        match kind {
            LogKind::Insert => segment.binlogs.push(log),
            LogKind::Delta => segment.deltalogs.push(log),
            LogKind::Stats => segment.statslogs.push(log),
            LogKind::Bm25 => {}
        }
    }
    out
}

fn path(kind: LogKind, segment: &SegmentInfo, log: &FieldBinlog) -> Vec<String> {
    let of = (
        segment.collection_id.into(),
        segment.partition_id.into(),
        segment.id.into(),
    );
    binlog::objects(kind, of, log)
        .unwrap()
        .iter()
        .map(|(path, _)| path.to_key("files").to_string())
        .collect()
}

impl Lab {
    fn schema(&self, collection: i64, dynamic: bool) -> std::sync::Arc<Schema> {
        Schema::of(&CollectionSchema {
            fields: self.fields[&CollectionId(collection)].clone(),
            enable_dynamic_field: dynamic,
            ..CollectionSchema::default()
        })
        .unwrap()
    }

    /// Every row of a segment, a hundred at a time.
    fn rows(&self, segment: &SegmentInfo) -> Rows {
        let schema = self.schema(segment.collection_id, true);
        let mut out = Rows::empty(schema.clone());
        let count = segment.binlogs[0].binlogs.len();
        for i in 0..count {
            let files = segment
                .binlogs
                .iter()
                .map(|log| {
                    let name = path(LogKind::Insert, segment, log).swap_remove(i);
                    let bytes = OBJECTS[name.as_str()].clone();
                    (name, Some(FieldId(log.field_id)), bytes)
                })
                .collect();
            let mut reader = LogReader::open(schema.clone(), files, Limits::default()).unwrap();
            let mut read = 0;
            while let Some(batch) = reader.batch(100).unwrap() {
                assert!(batch.len() <= 100);
                read += batch.len() as u64;
                out.append(&batch).unwrap();
            }
            assert_eq!(read, reader.rows());
        }
        out
    }

    fn deletes(segment: &SegmentInfo) -> (Deletes, usize) {
        let mut out = Deletes::default();
        let mut count = 0;
        for log in &segment.deltalogs {
            for name in path(LogKind::Delta, segment, log) {
                let mut reader =
                    DeltaReader::open(&name, &OBJECTS[name.as_str()], Limits::default()).unwrap();
                while let Some(batch) = reader.batch(7).unwrap() {
                    count += batch.len();
                    for (key, at) in batch {
                        out.add(key, at);
                    }
                }
            }
        }
        (out, count)
    }
}

/// Every flushed segment that the server listed: as many rows as it said, row ids and keys without a repeat, timestamps in the
/// log records' range, and the statistics know each key.
#[test]
fn every_segment_has_the_rows_that_the_server_counted() {
    let lab = lab();
    let truth = lab::truth();
    let mut checked = 0;
    let mut total = 0;
    for (_, db) in truth["databases"].as_object().unwrap() {
        for (name, collection) in db["collections"].as_object().unwrap() {
            let infos = collection["persistent_segment_info"]["infos"].as_array();
            for info in infos.into_iter().flatten() {
                let id: i64 = info["segmentID"].as_str().unwrap().parse().unwrap();
                let said: usize = info["num_rows"].as_str().unwrap().parse().unwrap();
                let Some(segment) = lab
                    .segments
                    .get(&id)
                    .filter(|s| s.state == SegmentState::Flushed as i32)
                else {
                    continue;
                };
                let rows = lab.rows(segment);
                assert_eq!(rows.len(), said, "{name} segment {id}");
                total += said;
                checked += 1;
                let keys: BTreeSet<PrimaryKey> =
                    (0..rows.len()).map(|i| rows.key(i).unwrap()).collect();
                let (from, to) = rows.time_range().unwrap().unwrap();
                let log = &segment.binlogs[0].binlogs;
                assert_eq!(from.0, log.iter().map(|b| b.timestamp_from).min().unwrap());
                assert_eq!(to.0, log.iter().map(|b| b.timestamp_to).max().unwrap());
                let known: Vec<stats::Stats> = segment
                    .statslogs
                    .iter()
                    .flat_map(|log| path(LogKind::Stats, segment, log))
                    .flat_map(|name| stats::read(&name, &OBJECTS[name.as_str()]).unwrap())
                    .collect();
                assert!(!known.is_empty());
                for key in &keys {
                    assert!(
                        known.iter().any(|s| s.may_have(key)),
                        "{name} {key} is in no filter of segment {id}"
                    );
                }
                // A filter that says yes to all would pass the line before; 2.3 made them for one yes in twenty.
                let strangers = (0..2_000).filter(|n| {
                    let key = match keys.first().unwrap() {
                        PrimaryKey::Int(first) => PrimaryKey::Int(first + 1 + n * 7),
                        PrimaryKey::Text(first) => PrimaryKey::Text(format!("{first}-{n}")),
                    };
                    !keys.contains(&key) && known.iter().any(|s| s.may_have(&key))
                });
                assert!(
                    strangers.count() < 200,
                    "the filters of segment {id} say yes to strangers"
                );
            }
        }
    }
    assert_eq!(
        (checked, total),
        (45, 50_775),
        "segments and rows of the lab"
    );
}

/// `count(*)` of the loaded collections that have no growing rows: flushed rows less those deleted before it was asked. Deletes
/// that were not flushed are in no file, so the files may hold more rows than the server counted, never fewer.
#[test]
fn deletes_take_rows_away_as_the_server_counted() {
    let lab = lab();
    let mut alive = BTreeMap::new();
    let mut deleted = 0;
    for segment in lab
        .segments
        .values()
        .filter(|s| s.state == SegmentState::Flushed as i32)
    {
        let (deletes, entries) = Lab::deletes(segment);
        let said: i64 = segment
            .deltalogs
            .iter()
            .flat_map(|l| &l.binlogs)
            .map(|b| b.entries_num)
            .sum();
        assert_eq!(
            entries as i64, said,
            "delta entries of segment {}",
            segment.id
        );
        deleted += entries;
        let rows = lab.rows(segment);
        let kept = rows.filter(&rows.alive(&deletes, None).unwrap());
        *alive.entry(segment.collection_id).or_insert(0) += kept.len();
        // Sorting with the deletes applied gives the same rows, in order.
        let sorted = order::sorted(&rows, &deletes).unwrap();
        assert!(order::is_sorted(&sorted).unwrap());
        assert_eq!(sorted.len(), kept.len());
    }
    assert_eq!(deleted, 654, "delete entries of the lab");
    let truth = lab::truth();
    let count = |db: &str, name: &str| {
        let c = &truth["databases"][db]["collections"][name];
        let id: i64 = c["describe"]["collectionID"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        (id, c["count_star"].as_u64().unwrap() as usize)
    };
    let (metrics, said) = count("analytics", "metrics");
    assert_eq!(alive[&metrics], said, "metrics");
    let (users, said) = count("default", "users");
    assert_eq!(alive[&users], said, "users");
    let (books, said) = count("default", "books");
    let have = alive[&books];
    assert!(
        have >= said && have - said <= 200,
        "books: {have} in the files, {said} counted, 200 deletes never flushed"
    );
}

#[test]
fn values_of_every_type_are_what_was_inserted() {
    let lab = lab();
    let mut types = BTreeSet::new();
    for segment in lab
        .segments
        .values()
        .filter(|s| s.state == SegmentState::Flushed as i32)
    {
        let rows = lab.rows(segment);
        let schema = rows.schema().clone();
        for (field, column) in schema.fields.iter().zip(rows.columns()) {
            types.insert(field.data_type.as_str_name());
            for i in 0..rows.len().min(20) {
                let value = json::value(field, column, i);
                match field.name.as_str() {
                    "emb" | "face" | "v" | "sig" | "x" | "bits" => {
                        let list = value.as_array().unwrap();
                        let wanted = if field.name == "bits" {
                            field.dim / 8
                        } else {
                            field.dim
                        };
                        assert_eq!(list.len(), wanted);
                        assert!(list.iter().all(Value::is_number));
                    }
                    "meta" | "$meta" => assert!(value.is_object(), "{value}"),
                    "codes" => assert!(
                        value
                            .as_array()
                            .unwrap()
                            .iter()
                            .all(|v| v.is_number() || v.is_string()),
                        "{value}"
                    ),
                    "year" => assert!((1900..=2030).contains(&value.as_i64().unwrap()), "{value}"),
                    "active" => assert!(value.is_boolean()),
                    _ => assert!(!value.is_null()),
                }
            }
        }
    }
    let want = [
        "Array",
        "BinaryVector",
        "Bool",
        "Double",
        "Float",
        "FloatVector",
        "Int16",
        "Int32",
        "Int64",
        "Int8",
        "JSON",
        "VarChar",
    ];
    assert_eq!(types.into_iter().collect::<Vec<_>>(), want);
}

/// The head that we write is the head that Milvus wrote, but for the parts that name file and time.
#[test]
fn a_delta_log_is_written_as_milvus_writes_it() {
    let (name, theirs) = OBJECTS
        .iter()
        .find(|(name, _)| name.contains("/delta_log/"))
        .unwrap();
    let head = V1Header::parse(name, theirs).unwrap();
    let mut reader = DeltaReader::open(name, theirs, Limits::default()).unwrap();
    let mut deletes = Vec::new();
    while let Some(batch) = reader.batch(1_000).unwrap() {
        deletes.extend(batch);
    }
    let of = (head.collection, head.partition, head.segment);
    let ours = delta::write(DeltaForm::V1Json, of, &deletes, head.written).unwrap();
    let mine = V1Header::parse("ours", &ours).unwrap();
    assert_eq!(mine.extras, head.extras);
    assert_eq!(
        (mine.field, mine.data_type, mine.written),
        (head.field, head.data_type, head.written)
    );
    assert_eq!(mine.range.0.max(mine.range.1), mine.range.1);
    let events = (
        v1_events(name, theirs, &head).unwrap(),
        v1_events("ours", &ours, &mine).unwrap(),
    );
    assert_eq!(events.0[0].kind, events.1[0].kind);
    assert_eq!(ours[4..13], theirs[4..13]);
    assert_eq!(ours[69..81], theirs[69..81]);
    let mut again = DeltaReader::open("ours", &ours.into(), Limits::default()).unwrap();
    assert_eq!(again.batch(1_000_000).unwrap().unwrap(), deletes);
    assert!(deletes.iter().all(|(_, at)| *at > Tso(0)));
}
