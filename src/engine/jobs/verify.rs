//! Reading back what was published, as a stranger would: from the store, not from what the job remembers. *Completed* is not
//! *verified* (law 7, rule 10 of `spec/oncall.md` §7).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use super::restore_map::{Blueprint, SegmentPlan, Source};
use super::restore_source::{Reads, prefixes};
use crate::engine::error::Result;
use crate::engine::format::keys::{Family, Key, LogKind};
use crate::engine::format::pb;
use crate::engine::ids::{MetaKey, ObjectKey, SegmentId};
use crate::engine::model::text;

/// What was compared, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What holds.
    pub passed: Vec<String>,
    /// What does not.
    pub failed: Vec<String>,
}

impl Report {
    fn say(&mut self, what: &str, problems: Vec<String>) {
        if problems.is_empty() {
            self.passed.push(what.to_owned());
        } else {
            self.failed.extend(problems);
        }
    }
}

/// The families under a collection's id.
const FAMILIES: [Family; 11] = [
    Family::Partition,
    Family::Field,
    Family::StructField,
    Family::Function,
    Family::FieldIndex,
    Family::Segment,
    Family::Binlog,
    Family::Statslog,
    Family::Deltalog,
    Family::Bm25log,
    Family::SegmentIndex,
];

/// Compares a restored collection with its snapshot.
pub async fn restored(reads: &Reads<'_>, source: &Source, blueprint: &Blueprint) -> Result<Report> {
    let mut report = Report::default();
    let stored = stored(reads, blueprint).await?;
    report.say(
        &format!("{} records as written", blueprint.children.len() + 1),
        records(
            reads,
            blueprint.children.iter().chain([&blueprint.head]),
            &stored,
        ),
    );
    let head = stored.get(&blueprint.head.0.to_key(reads.roots));
    report.say(
        "name, shards, consistency level and properties",
        attributes(source, head),
    );
    let mut rows = 0;
    let mut problems = Vec::new();
    for (description, plan) in source.segments.iter().zip(&blueprint.segments) {
        rows += description.num_of_rows;
        segment(reads, description, plan, &stored, &mut problems);
    }
    report.say(
        &format!(
            "rows, deletes and indexes of {} segments ({rows} rows)",
            source.segments.len()
        ),
        problems,
    );
    let (bytes, problems) = objects(reads, blueprint).await?;
    report.say(
        &format!(
            "{} objects of {}",
            blueprint.files.len(),
            text::bytes(bytes)
        ),
        problems,
    );
    Ok(report)
}

/// Every record that belongs to the target, as it stands now.
async fn stored(reads: &Reads<'_>, blueprint: &Blueprint) -> Result<BTreeMap<MetaKey, Bytes>> {
    let mut out = BTreeMap::new();
    for family in FAMILIES {
        let page = reads.under(family, &[blueprint.collection.0]).await?;
        out.extend(page.kvs.into_iter().map(|kv| (kv.key, kv.value)));
    }
    let single = blueprint
        .channels
        .iter()
        .flat_map(|(_, to)| {
            [
                Key::ChannelCheckpoint(to.clone()),
                Key::ChannelRemoval(to.clone()),
            ]
        })
        .chain([blueprint.head.0.clone()]);
    for key in single {
        if let Some(kv) = reads.record(&key).await? {
            out.insert(kv.key, kv.value);
        }
    }
    Ok(out)
}

/// What somebody did to records that a restore has written and not published yet: each that is gone, differs, or is not of it.
pub(super) async fn unpublished(reads: &Reads<'_>, blueprint: &Blueprint) -> Result<Vec<String>> {
    let stored = stored(reads, blueprint).await?;
    Ok(records(reads, blueprint.children.iter(), &stored))
}

fn records<'a>(
    reads: &Reads<'_>,
    written: impl Iterator<Item = &'a (Key, Vec<u8>)>,
    stored: &BTreeMap<MetaKey, Bytes>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expected = BTreeSet::new();
    for (key, value) in written {
        let key = key.to_key(reads.roots);
        match stored.get(&key) {
            None => problems.push(format!("record {key} is missing")),
            Some(found) if found[..] != value[..] => {
                problems.push(format!("record {key} is not as written"));
            }
            Some(_) => {}
        }
        expected.insert(key);
    }
    problems.extend(
        stored
            .keys()
            .filter(|key| !expected.contains(key))
            .map(|key| format!("record {key} was not written by this restore")),
    );
    problems
}

fn attributes(source: &Source, head: Option<&Bytes>) -> Vec<String> {
    let Some(value) = head else {
        return vec!["the collection's record is missing".into()];
    };
    let info = match pb::etcd::CollectionInfo::decode(value.clone()) {
        Ok(info) => info,
        Err(e) => return vec![format!("the collection's record cannot be decoded: {e}")],
    };
    let Some(description) = &source.metadata.collection else {
        return vec!["the snapshot describes no collection".into()];
    };
    let mut problems = Vec::new();
    let mut differ = |what: &str, want: String, have: String| {
        if want != have {
            problems.push(format!("{what} is {have}, the snapshot says {want}"));
        }
    };
    differ(
        "the number of shards",
        description.num_shards.to_string(),
        info.shards_num.to_string(),
    );
    if description.consistency_level != 0 {
        differ(
            "the consistency level",
            description.consistency_level.to_string(),
            info.consistency_level.to_string(),
        );
    }
    let kept: BTreeMap<&str, &str> = info
        .properties
        .iter()
        .map(|p| (p.key.as_str(), p.value.as_str()))
        .collect();
    for p in &description.properties {
        differ(
            &format!("property {}", p.key),
            p.value.clone(),
            kept.get(p.key.as_str()).map_or("absent", |v| *v).to_owned(),
        );
    }
    if let (Some(want), Some(have)) = (&description.schema, &info.schema) {
        differ(
            "the dynamic field flag",
            want.enable_dynamic_field.to_string(),
            have.enable_dynamic_field.to_string(),
        );
        differ(
            "the description",
            want.description.clone(),
            have.description.clone(),
        );
    }
    problems
}

/// Entries of a segment's logs of one kind, by field, as stored now.
fn logs(
    reads: &Reads<'_>,
    plan: &SegmentPlan,
    kind: LogKind,
    fields: impl Iterator<Item = i64>,
    stored: &BTreeMap<MetaKey, Bytes>,
) -> (i64, usize) {
    let t = &plan.target;
    let fields: BTreeSet<i64> = fields.collect();
    let mut sum = 0;
    let mut files = 0;
    for field in fields {
        let key = Key::Log(kind, t.collection, t.partition, t.segment, field.into());
        let Some(value) = stored.get(&key.to_key(reads.roots)) else {
            continue;
        };
        if let Ok(log) = pb::data::FieldBinlog::decode(value.clone()) {
            sum += log.binlogs.iter().map(|b| b.entries_num).sum::<i64>();
            files += log.binlogs.len();
        }
    }
    (sum, files)
}

fn segment(
    reads: &Reads<'_>,
    source: &pb::data::SegmentDescription,
    plan: &SegmentPlan,
    stored: &BTreeMap<MetaKey, Bytes>,
    problems: &mut Vec<String>,
) {
    let t = &plan.target;
    let key = Key::Segment(t.collection, t.partition, t.segment).to_key(reads.roots);
    let mut say =
        |text: String| problems.push(format!("segment {} ← {}: {text}", t.segment, plan.source));
    let Some(info) = stored
        .get(&key)
        .and_then(|v| pb::data::SegmentInfo::decode(v.clone()).ok())
    else {
        say("no readable record".into());
        return;
    };
    if info.num_of_rows != source.num_of_rows {
        say(format!(
            "{} rows, the snapshot has {}",
            info.num_of_rows, source.num_of_rows
        ));
    }
    for (kind, list) in [
        (LogKind::Insert, &source.binlogs),
        (LogKind::Stats, &source.statslogs),
        (LogKind::Delta, &source.deltalogs),
        (LogKind::Bm25, &source.bm25_statslogs),
    ] {
        let want = (
            list.iter()
                .flat_map(|f| &f.binlogs)
                .map(|b| b.entries_num)
                .sum::<i64>(),
            list.iter().map(|f| f.binlogs.len()).sum::<usize>(),
        );
        let have = logs(reads, plan, kind, list.iter().map(|f| f.field_id), stored);
        if want != have {
            say(format!(
                "{kind:?} logs hold {} entries in {} files, the snapshot has {} in {}",
                have.0, have.1, want.0, want.1
            ));
        }
    }
    // Rows by the logs themselves: each field of a V1 segment holds every row.
    if let Some(first) = source
        .binlogs
        .first()
        .filter(|_| source.storage_version == 0)
    {
        let rows: i64 = first.binlogs.iter().map(|b| b.entries_num).sum();
        if rows != info.num_of_rows {
            say(format!(
                "{} rows, but its insert logs hold {rows}",
                info.num_of_rows
            ));
        }
    }
    let below =
        Family::SegmentIndex.under(reads.roots, &[t.collection.0, t.partition.0, t.segment.0]);
    let have = stored.keys().filter(|k| below.holds(k)).count();
    if have != source.index_files.len() {
        say(format!(
            "{have} index rows, the snapshot has {}",
            source.index_files.len()
        ));
    }
}

async fn objects(reads: &Reads<'_>, blueprint: &Blueprint) -> Result<(u64, Vec<String>)> {
    let there = reads
        .list_all(prefixes(
            reads.objects.root(),
            blueprint.files.iter().map(|f| &f.to),
        ))
        .await?;
    let mut problems = Vec::new();
    let mut bytes = 0;
    let mut expected: BTreeSet<&ObjectKey> = BTreeSet::new();
    let by_group: BTreeMap<u32, SegmentId> = (0..)
        .zip(&blueprint.segments)
        .map(|(i, s)| (i, s.target.segment))
        .collect();
    for file in &blueprint.files {
        expected.insert(&file.to);
        let segment = by_group.get(&file.group).copied().unwrap_or_default();
        match there.get(&file.to) {
            Some(size) if *size == file.size => bytes += size,
            Some(size) => problems.push(format!(
                "object {} of segment {segment} has {size} bytes, not {}",
                file.to, file.size
            )),
            None => problems.push(format!(
                "object {} of segment {segment} is missing",
                file.to
            )),
        }
    }
    problems.extend(
        there
            .keys()
            .filter(|key| !expected.contains(key))
            .map(|key| format!("object {key} was not written by this restore")),
    );
    Ok((bytes, problems))
}
