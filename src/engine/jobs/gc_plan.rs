//! What one garbage collection pass would take, and what keeps the rest: the executor's own verdicts without its last step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures::TryStreamExt;
use serde::Serialize;

use super::gc_scan::{Belongings, Scan};
use super::restore_source::Reads;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::{ObjPath, ParsedPath};
use crate::engine::format::vchannel;
use crate::engine::ids::{
    BuildId, CollectionId, MetaRev, ObjectKey, SegmentId, SnapshotId, VChannel,
};
use crate::engine::model::gc::{self, Rule, Verdict};
use crate::engine::model::holds::{Hold, Owner, Reason};
use crate::engine::model::text::bytes;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// One thing that a rule looks at. Sorts in the order it is worked on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Item {
    /// A segment.
    Segment(SegmentId),
    /// An index row.
    Build(BuildId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A channel checkpoint.
    Checkpoint(VChannel),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(id) => write!(f, "segment {id}"),
            Self::Build(id) => write!(f, "index build {id}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Checkpoint(channel) => write!(f, "checkpoint of {channel}"),
        }
    }
}

impl Item {
    /// Its verdict.
    #[must_use]
    pub fn verdict(&self, scan: &Scan) -> Verdict {
        match self {
            Self::Segment(id) => gc::segment(&scan.world, *id),
            Self::Build(id) => gc::build(&scan.world, *id),
            Self::Snapshot(id) => gc::snapshot(&scan.world, *id),
            Self::Checkpoint(channel) => gc::checkpoint(&scan.world, channel),
        }
    }

    /// The collection it belongs to, if anything says so.
    #[must_use]
    pub fn collection(&self, scan: &Scan) -> Option<CollectionId> {
        match self {
            Self::Segment(id) => scan.world.segments.get(id).map(|s| s.collection),
            Self::Build(id) => scan.world.builds.get(id).map(|b| b.collection),
            Self::Snapshot(id) => scan.snapshots.get(id).map(|(c, _)| *c),
            Self::Checkpoint(channel) => vchannel::collection(channel),
        }
    }
}

/// Which part of the cluster a pass looks at.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// One collection only.
    pub collection: Option<CollectionId>,
    /// These rules only; all when empty.
    pub rules: BTreeSet<Rule>,
}

impl Filter {
    /// Of an intent. A rule that does not exist is an error, not an empty pass.
    pub fn of(intent: &Intent) -> Result<Self> {
        let Intent::Gc { collection, rules } = intent else {
            return Err(Error::new(ErrorKind::Internal, "not a garbage collection"));
        };
        let rules = rules
            .iter()
            .map(|name| {
                Rule::of(name).ok_or_else(|| {
                    let known: Vec<&str> = Rule::ALL.iter().map(|r| r.name()).collect();
                    Error::new(ErrorKind::Invalid, format!("there is no rule {name:?}"))
                        .fix(format!("use one of {}", known.join(", ")))
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            collection: *collection,
            rules,
        })
    }

    /// Whether a rule runs.
    #[must_use]
    pub fn wants(&self, rule: Rule) -> bool {
        self.rules.is_empty() || self.rules.contains(&rule)
    }
}

/// Everything that could be collected, in order; live things included, they say why they stay.
#[must_use]
pub fn items(scan: &Scan, filter: &Filter) -> Vec<Item> {
    let segments = scan.segments.keys().copied().map(Item::Segment);
    // Rows of a segment go with it.
    let builds = scan
        .world
        .builds
        .values()
        .filter(|row| {
            !matches!(
                gc::segment(&scan.world, row.segment),
                Verdict::Collect { .. }
            )
        })
        .map(|row| Item::Build(row.build));
    let snapshots = scan.snapshots.keys().copied().map(Item::Snapshot);
    let checkpoints = scan.checkpoints.keys().cloned().map(Item::Checkpoint);
    segments
        .chain(builds)
        .chain(snapshots)
        .chain(checkpoints)
        .filter(|item| filter.collection.is_none() || item.collection(scan) == filter.collection)
        .collect()
}

/// Things, objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Segments, rows, snapshots or checkpoints.
    pub items: u64,
    /// Objects that exist.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The outcome of a pass that deletes nothing.
#[derive(Clone, Debug, Default)]
pub struct Simulation {
    /// What would go, in order.
    pub collect: Vec<(Item, Rule)>,
    /// By rule. [`Rule::Orphan`] counts objects that nobody claims; they are reported only.
    pub by_rule: BTreeMap<Rule, Tally>,
    /// What stays although it is not live, by reason; a thing counts under its first reason.
    pub kept: BTreeMap<Reason, Tally>,
    /// Examples for each reason: what and who.
    pub examples: BTreeMap<Reason, Vec<(String, Hold)>>,
    /// Orphans by name, some of them.
    pub orphans: Vec<(ObjectKey, u64)>,
    /// Bytes of all objects listed.
    pub bytes: u64,
    /// Objects of kinds that nobody here knows: always kept.
    pub unknown: Tally,
}

/// Names kept for the eye.
const SAMPLES: usize = 20;

impl Simulation {
    fn keep(&mut self, what: impl FnOnce() -> String, holds: &[Hold], bytes: Option<u64>) {
        let Some(first) = holds.iter().find(|h| h.reason != Reason::Live) else {
            return;
        };
        let tally = self.kept.entry(first.reason).or_default();
        if let Some(bytes) = bytes {
            tally.objects += 1;
            tally.bytes += bytes;
            return;
        }
        tally.items += 1;
        let list = self.examples.entry(first.reason).or_default();
        if list.len() < SAMPLES {
            list.push((what(), first.clone()));
        }
    }
}

/// Judges every record, then every object in the bucket.
pub async fn simulate(reads: &Reads<'_>, scan: &Scan, filter: &Filter) -> Result<Simulation> {
    let mut out = Simulation::default();
    let mut goes: BTreeMap<ObjectKey, Rule> = BTreeMap::new();
    let mut folders: Vec<(String, Rule)> = Vec::new();
    let mut snapshots: BTreeMap<SnapshotId, Rule> = BTreeMap::new();
    for item in items(scan, filter) {
        match item.verdict(scan) {
            Verdict::Keep(holds) => out.keep(|| item.to_string(), &holds, None),
            Verdict::Collect { rule } if filter.wants(rule) => {
                if let Some(mine) = belongings(scan, &item) {
                    goes.extend(mine.objects.iter().map(|key| (key.clone(), rule)));
                    folders.extend(mine.folders.iter().map(|f| (format!("{}/", f.0), rule)));
                }
                if let Item::Snapshot(id) = &item {
                    snapshots.insert(*id, rule);
                }
                out.by_rule.entry(rule).or_default().items += 1;
                out.collect.push((item, rule));
            }
            Verdict::Collect { .. } => {}
        }
    }
    let root = reads.objects.root();
    let mut listed = reads.objects.list(&ObjectKey(root.to_owned()), None);
    while let Some(object) = listed.try_next().await? {
        out.bytes += object.size;
        let path = ObjPath::parse(root, &object.key.0);
        let owner = match &path {
            ParsedPath::Known(path) => path.owner(),
            ParsedPath::Unknown => Owner::default(),
        };
        let rule = goes
            .get(&object.key)
            .copied()
            .or_else(|| owner.snapshot.and_then(|id| snapshots.get(&id).copied()))
            .or_else(|| {
                let inside =
                    |(folder, _): &&(String, Rule)| object.key.0.starts_with(folder.as_str());
                folders.iter().find(inside).map(|(_, rule)| *rule)
            });
        if let Some(rule) = rule {
            let tally = out.by_rule.entry(rule).or_default();
            tally.objects += 1;
            tally.bytes += object.size;
            continue;
        }
        if matches!(
            path,
            ParsedPath::Unknown | ParsedPath::Known(ObjPath::Opaque(..))
        ) {
            out.unknown.objects += 1;
            out.unknown.bytes += object.size;
            continue;
        }
        if filter.collection.is_some() && owner.collection != filter.collection {
            continue;
        }
        match gc::object(&scan.world, &owner, &object.key, object.modified) {
            Verdict::Keep(holds) => out.keep(String::new, &holds, Some(object.size)),
            // An object of a record that goes, but which the record does not name: the record's rule does not take it, and
            // without the record it is an orphan.
            Verdict::Collect { .. } => {
                let tally = out.by_rule.entry(Rule::Orphan).or_default();
                tally.items += 1;
                tally.objects += 1;
                tally.bytes += object.size;
                if out.orphans.len() < SAMPLES {
                    out.orphans.push((object.key, object.size));
                }
            }
        }
    }
    Ok(out)
}

/// Records and objects of an item; snapshots and checkpoints have theirs elsewhere.
#[must_use]
pub fn belongings<'a>(scan: &'a Scan, item: &Item) -> Option<&'a Belongings> {
    match item {
        Item::Segment(id) => scan.segments.get(id),
        Item::Build(id) => scan.builds.get(id),
        Item::Snapshot(_) | Item::Checkpoint(_) => None,
    }
}

/// Deletions shown one by one in a plan; the rest is counted.
const SHOWN: usize = 500;

/// The plan that an operator sees.
pub fn plan(intent: &Intent, scan: &Scan, found: &Simulation, rev: MetaRev) -> Plan {
    let mut steps = vec![format!(
        "everything is judged as of {}; each record is read again right before its objects are deleted",
        scan.world.now.utc()
    )];
    for (rule, tally) in &found.by_rule {
        let verb = if rule.deletes() {
            "delete"
        } else {
            "report, not delete,"
        };
        steps.push(format!(
            "{}: {verb} {} with {} objects, {}",
            rule.name(),
            tally.items,
            tally.objects,
            bytes(tally.bytes)
        ));
    }
    let mut warnings: Vec<String> = found
        .kept
        .iter()
        .map(|(reason, tally)| {
            let example = found
                .examples
                .get(reason)
                .and_then(|list| list.first())
                .map_or_else(String::new, |(what, hold)| format!(", e.g. {what}: {hold}"));
            format!(
                "kept because {}: {} records, {} objects of {}{example}",
                reason.code(),
                tally.items,
                tally.objects,
                bytes(tally.bytes)
            )
        })
        .collect();
    warnings.extend(
        scan.unreadable
            .iter()
            .take(SHOWN)
            .map(|why| format!("blocks collection: {why}")),
    );
    if found.unknown.objects > 0 {
        warnings.push(format!(
            "{} objects of {} are of kinds that are never touched",
            found.unknown.objects,
            bytes(found.unknown.bytes)
        ));
    }
    let deleting = found.by_rule.iter().filter(|(rule, _)| rule.deletes());
    let (deletes, delete_bytes) =
        deleting.fold((0, 0), |(n, b), (_, t)| (n + t.objects, b + t.bytes));
    Plan {
        intent: intent.clone(),
        title: format!(
            "garbage collection: {} records, {deletes} objects, {}",
            found.collect.len(),
            bytes(delete_bytes)
        ),
        checks: vec![Check {
            name: "references are read".into(),
            failed: None,
            detail: if scan.unreadable.is_empty() {
                format!("{} snapshots", scan.snapshots.len())
            } else {
                format!(
                    "{} cannot be read; what they may refer to is kept",
                    scan.unreadable.len()
                )
            },
        }],
        steps,
        changes: changes(scan, found),
        objects: ObjectChange {
            deletes,
            delete_bytes,
            samples: samples(scan, found),
            ..ObjectChange::default()
        },
        warnings,
        undo: "none: deleted objects are gone".into(),
        danger: Danger::High,
        type_to_confirm: Some("collect".into()),
        based_on: rev,
        rests_on: Vec::new(),
        hash: String::new(),
    }
}

fn changes(scan: &Scan, found: &Simulation) -> Vec<KeyChange> {
    let gone = |key: String, what: String| KeyChange {
        key,
        before: Some(what),
        after: None,
    };
    let mut out = Vec::new();
    for (item, rule) in &found.collect {
        if out.len() >= SHOWN {
            out.push(gone(
                "…".into(),
                format!("{} more", found.collect.len() - SHOWN),
            ));
            break;
        }
        let what = rule.name().to_owned();
        let seen = match item {
            Item::Segment(id) => scan.segments.get(id).and_then(|b| b.records.last()),
            Item::Build(id) => scan.builds.get(id).and_then(|b| b.records.last()),
            Item::Snapshot(id) => scan.snapshots.get(id).map(|(_, seen)| seen),
            Item::Checkpoint(channel) => scan.checkpoints.get(channel),
        };
        out.extend(seen.map(|seen| gone(seen.key.text(), what)));
    }
    out
}

fn samples(scan: &Scan, found: &Simulation) -> Vec<String> {
    found
        .collect
        .iter()
        .filter_map(|(item, _)| belongings(scan, item))
        .flat_map(|mine| &mine.objects)
        .take(SAMPLES)
        .map(|key| key.0.clone())
        .collect()
}
