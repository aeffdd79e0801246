//! What one garbage collection pass would take, and what keeps the rest: the executor's own verdicts without its last step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures::TryStreamExt;
use serde::Serialize;

use super::belongings::{Names, owned};
use super::gc_scan::Scan;
use super::restore_source::Reads;
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::paths::{ObjPath, ParsedPath, SegmentBase};
use crate::engine::format::vchannel;
use crate::engine::ids::{
    BuildId, CollectionId, IndexId, ObjectKey, SegmentId, SnapshotId, VChannel,
};
use crate::engine::model::data::Pin;
use crate::engine::model::gc::{self, Rule, Verdict};
use crate::engine::model::holds::{Hold, Owner, Reason};
use crate::engine::model::kept;
use crate::engine::model::references::mark;
use crate::engine::model::text::{age, bytes};
use crate::engine::model::tickets::{self, Ticket};
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// One thing that a rule looks at. Sorts in the order it is worked on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Item {
    /// A segment.
    Segment(SegmentId),
    /// An index row.
    Build(BuildId),
    /// An index definition.
    Index(CollectionId, IndexId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A channel checkpoint.
    Checkpoint(VChannel),
    /// The pins of a snapshot whose time is over. Last: this moves a record that other verdicts rest on.
    Pins(SnapshotId),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(id) => write!(f, "segment {id}"),
            Self::Build(id) => write!(f, "index build {id}"),
            Self::Index(c, id) => write!(f, "index {id} of collection {c}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Checkpoint(channel) => write!(f, "checkpoint of {channel}"),
            Self::Pins(id) => write!(f, "expired pins of snapshot {id}"),
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
            Self::Index(c, id) => gc::index(&scan.world, *c, *id),
            Self::Snapshot(id) if scan.world.is_collection_gone(*id) => {
                kept::collection_gone(&scan.world, *id)
            }
            Self::Snapshot(id) => gc::snapshot(&scan.world, *id),
            Self::Checkpoint(channel) => gc::checkpoint(&scan.world, channel),
            Self::Pins(id) => kept::pins(&scan.world, *id),
        }
    }

    /// The collection it belongs to, if anything says so.
    #[must_use]
    pub fn collection(&self, scan: &Scan) -> Option<CollectionId> {
        match self {
            Self::Segment(id) => scan.world.segments.get(id).map(|s| s.collection),
            Self::Build(id) => scan.world.builds.get(id).map(|b| b.collection),
            Self::Index(c, _) => Some(*c),
            Self::Snapshot(id) | Self::Pins(id) => scan.snapshots.get(id).map(|(c, _)| *c),
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
    /// Objects are moved aside, not deleted.
    pub quarantine: bool,
    /// Pauses, for the plan: a pass looks before each item.
    pub tickets: Vec<Ticket>,
}

impl Filter {
    /// Of an intent. A rule that does not exist is an error, not an empty pass.
    pub fn of(intent: &Intent) -> Result<Self> {
        let Intent::Gc {
            collection,
            rules,
            quarantine,
        } = intent
        else {
            return Err(Error::new(ErrorKind::Internal, "not a garbage collection"));
        };
        let mut rules = rules
            .iter()
            .map(|name| {
                Rule::of(name).ok_or_else(|| {
                    let known: Vec<&str> = Rule::ALL.iter().map(|r| r.name()).collect();
                    Error::new(ErrorKind::Invalid, format!("there is no rule {name:?}"))
                        .fix(format!("use one of {}", known.join(", ")))
                })
            })
            .collect::<Result<BTreeSet<Rule>>>()?;
        // What the one begins a pass that was cut short ends by the other.
        if rules.contains(&Rule::CollectionGone) {
            rules.insert(Rule::DeletingSnapshot);
        }
        Ok(Self {
            collection: *collection,
            rules,
            quarantine: *quarantine,
            tickets: Vec::new(),
        })
    }

    /// Whether a rule runs, or reports.
    #[must_use]
    pub fn wants(&self, rule: Rule) -> bool {
        self.rules.is_empty() || self.rules.contains(&rule)
    }

    /// Whether a pass takes by it.
    #[must_use]
    pub fn takes(&self, rule: Rule) -> bool {
        rule.deletes() && self.wants(rule) && (!rule.by_name() || self.rules.contains(&rule))
    }
}

/// Everything that a rule looks at, in the order it is worked on; live things included, they say why they stay.
fn each(scan: &Scan) -> impl Iterator<Item = Item> + '_ {
    let world = &scan.world;
    let segments = world.segments.keys().copied().map(Item::Segment);
    let builds = world.builds.keys().copied().map(Item::Build);
    let indexes = scan.definitions.keys().map(|(c, id)| Item::Index(*c, *id));
    let snapshots = scan.snapshots.keys().copied().map(Item::Snapshot);
    let checkpoints = scan.checkpoints.keys().cloned().map(Item::Checkpoint);
    let over = |id: &SnapshotId| world.expired_pins(*id).next().is_some();
    let pins = scan.snapshots.keys().copied().filter(over).map(Item::Pins);
    segments
        .chain(builds)
        .chain(indexes)
        .chain(snapshots)
        .chain(checkpoints)
        .chain(pins)
}

/// Everything with its verdict, within a filter. Rows of a segment that goes are not among them: they go with it.
pub fn judged<'a>(
    scan: &'a Scan,
    filter: &'a Filter,
) -> impl Iterator<Item = (Item, Verdict)> + 'a {
    each(scan)
        .filter(|item| filter.collection.is_none() || item.collection(scan) == filter.collection)
        .filter_map(|item| {
            let verdict = item.verdict(scan);
            let with_segment = match (&item, &verdict) {
                (Item::Build(id), Verdict::Collect { .. }) => scan
                    .world
                    .builds
                    .get(id)
                    .is_some_and(|row| gc::segment(&scan.world, row.segment).collects()),
                _ => false,
            };
            (!with_segment).then_some((item, verdict))
        })
}

/// What a pass takes, in order.
#[must_use]
pub fn takes(scan: &Scan, filter: &Filter) -> Vec<Item> {
    judged(scan, filter)
        .filter(|(_, verdict)| match verdict {
            Verdict::Collect { rule } => filter.takes(*rule),
            Verdict::Keep(_) => false,
        })
        .map(|(item, _)| item)
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
    /// What is only said, because its rule is not asked for by name.
    pub reported: Vec<Item>,
    /// By rule. [`Rule::Orphan`] counts objects that nobody claims; they are reported only.
    pub by_rule: BTreeMap<Rule, Tally>,
    /// What stays although it is not live, by reason; a thing counts under its first reason.
    pub kept: BTreeMap<Reason, Tally>,
    /// Examples for each reason: what and who.
    pub examples: BTreeMap<Reason, Vec<(String, Hold)>>,
    /// Objects that go, some of them.
    pub samples: Vec<String>,
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

/// Judges every record, then every object in the bucket. What it holds does not grow with the objects that stay; each that goes takes
/// 16 bytes.
pub async fn simulate(
    reads: &Reads<'_>,
    scan: &Scan,
    filter: &Filter,
    clock: &dyn Clock,
) -> Result<Simulation> {
    let mut out = Simulation::default();
    let goes = records(reads, scan, filter, &mut out).await?;
    let root = reads.objects.root();
    let began = clock.now();
    let mut listed = reads.objects.list(&ObjectKey(root.to_owned()), None);
    while let Some(object) = listed.try_next().await? {
        // A verdict of an old listing is worth nothing, and the clock is cheap.
        if !gc::is_fresh(began, clock.now()) {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "listing the bucket takes longer than {}: what it says first is too old by its end",
                    age(gc::LISTING_MS.unsigned_abs())
                ),
            )
            .fix("plan for one collection or for the rules that need no listing, e.g. --rule dropped-segment"));
        }
        out.bytes += object.size;
        let path = ObjPath::parse(root, &object.key.0);
        if let Some(rule) = goes.rule(root, &path, &object.key) {
            let tally = out.by_rule.entry(rule).or_default();
            tally.objects += 1;
            tally.bytes += object.size;
            if filter.takes(rule) && out.samples.len() < SAMPLES {
                out.samples.push(object.key.0);
            }
            continue;
        }
        let known = match &path {
            ParsedPath::Known(ObjPath::Opaque(..)) | ParsedPath::Unknown => {
                out.unknown.objects += 1;
                out.unknown.bytes += object.size;
                continue;
            }
            ParsedPath::Known(known) => known,
        };
        let owner = known.owner();
        if filter.collection.is_some() && owner.collection != filter.collection {
            continue;
        }
        // Most objects of a bucket; their verdict would be put into words for nobody.
        if scan.world.is_live(&owner) && gc::superseded(&scan.world, known).is_none() {
            continue;
        }
        match gc::object(&scan.world, &path, &object.key, object.modified) {
            Verdict::Keep(holds) => out.keep(String::new, &holds, Some(object.size)),
            // An object of a record that goes, but which the record does not name: the record's rule does not take it, and
            // without the record it is an orphan.
            Verdict::Collect { rule } => {
                let rule = if rule.prefix().is_some() {
                    rule
                } else {
                    Rule::Orphan
                };
                if !filter.wants(rule) {
                    continue;
                }
                let tally = out.by_rule.entry(rule).or_default();
                tally.items += 1;
                tally.objects += 1;
                tally.bytes += object.size;
                if rule == Rule::Orphan && out.orphans.len() < SAMPLES {
                    out.orphans.push((object.key, object.size));
                } else if rule != Rule::Orphan && out.samples.len() < SAMPLES {
                    out.samples.push(object.key.0);
                }
            }
        }
    }
    Ok(out)
}

/// Objects that go with a record.
#[derive(Default)]
struct Goes {
    /// By [`mark`], sorted. A wrong match would be counted, not deleted.
    marks: Vec<(u64, Rule)>,
    folders: BTreeMap<SegmentId, (SegmentBase, Rule)>,
    snapshots: BTreeMap<SnapshotId, Rule>,
}

impl Goes {
    fn rule(&self, root: &str, path: &ParsedPath, key: &ObjectKey) -> Option<Rule> {
        if !self.marks.is_empty() {
            let mark = mark(key);
            let at = self.marks.partition_point(|(m, _)| *m < mark);
            if let Some((found, rule)) = self.marks.get(at)
                && *found == mark
            {
                return Some(*rule);
            }
        }
        let owner = match path {
            ParsedPath::Known(known) => known.owner(),
            ParsedPath::Unknown => Owner::default(),
        };
        if let Some(rule) = owner.snapshot.and_then(|id| self.snapshots.get(&id)) {
            return Some(*rule);
        }
        if self.folders.is_empty() {
            return None;
        }
        // What lies in the folder goes with it, known or not.
        let base = SegmentBase::above(root, &key.0)?;
        let (mine, rule) = self.folders.get(&base.2)?;
        (*mine == base).then_some(*rule)
    }
}

/// Judges the records, and reads the names of what goes.
async fn records(
    reads: &Reads<'_>,
    scan: &Scan,
    filter: &Filter,
    out: &mut Simulation,
) -> Result<Goes> {
    let mut goes = Goes::default();
    let (mut segments, mut builds) = (BTreeSet::new(), BTreeSet::new());
    for (item, verdict) in judged(scan, filter) {
        match verdict {
            Verdict::Keep(holds) => out.keep(|| item.to_string(), &holds, None),
            Verdict::Collect { rule }
                if filter.wants(rule)
                    && let Some(ticket) =
                        tickets::on(&filter.tickets, item.collection(scan), scan.world.now) =>
            {
                out.keep(|| item.to_string(), &[ticket.hold()], None);
            }
            Verdict::Collect { rule } if filter.wants(rule) => {
                match &item {
                    Item::Segment(id) => drop(segments.insert(*id)),
                    Item::Build(id) => drop(builds.insert(*id)),
                    Item::Snapshot(id) => drop(goes.snapshots.insert(*id, rule)),
                    Item::Index(..) | Item::Checkpoint(_) | Item::Pins(_) => {}
                }
                out.by_rule.entry(rule).or_default().items += 1;
                if filter.takes(rule) {
                    out.collect.push((item, rule));
                } else {
                    out.reported.push(item);
                }
            }
            Verdict::Collect { .. } => {}
        }
    }
    let mine = owned(reads, scan, &segments, &builds, Names::Marks).await?;
    let mut doubtful = BTreeMap::new();
    for (id, mine) in mine.segments {
        if let Some(why) = mine.unreadable {
            doubtful.insert(Item::Segment(id), why);
            continue;
        }
        let rule = Rule::DroppedSegment;
        goes.marks
            .extend(mine.marks.iter().map(|mark| (*mark, rule)));
        if let Some(base) = mine.folder {
            goes.folders.insert(id, (base, rule));
        }
    }
    for (id, mine) in mine.builds {
        if let Some(why) = mine.unreadable {
            doubtful.insert(Item::Build(id), why);
            continue;
        }
        let rule = Rule::SegmentIndex;
        goes.marks
            .extend(mine.marks.iter().map(|mark| (*mark, rule)));
    }
    goes.marks.sort_unstable();
    goes.marks.dedup();
    if !doubtful.is_empty() {
        // It would go, but what it owns cannot be read.
        out.collect.retain(|(item, rule)| {
            let Some(why) = doubtful.get(item) else {
                return true;
            };
            if let Some(tally) = out.by_rule.get_mut(rule) {
                tally.items -= 1;
            }
            let hold = Hold {
                reason: Reason::UnreadableRecord,
                by: why.clone(),
                until: None,
            };
            let tally = out.kept.entry(hold.reason).or_default();
            tally.items += 1;
            let list = out.examples.entry(hold.reason).or_default();
            if list.len() < SAMPLES {
                list.push((item.to_string(), hold));
            }
            false
        });
    }
    Ok(goes)
}

/// Deletions shown one by one in a plan; the rest is counted.
const SHOWN: usize = 500;

/// The plan that an operator sees.
pub fn plan(
    reads: &Reads<'_>,
    intent: &Intent,
    scan: &Scan,
    filter: &Filter,
    found: &Simulation,
) -> Plan {
    let aside = filter.quarantine;
    let tolerances = scan.world.tolerances;
    let mut steps = vec![
        format!(
            "everything is judged as of {}; each record is read again right before its objects are deleted",
            scan.world.now.utc()
        ),
        format!(
            "dropped things stay for {}, objects without a record for {}, snapshots in the making for {}",
            age(tolerances.drop_ms.unsigned_abs()),
            age(tolerances.missing_ms.unsigned_abs()),
            age(tolerances.pending_ms.unsigned_abs()),
        ),
    ];
    for (rule, tally) in &found.by_rule {
        if *rule == Rule::ExpiredPin {
            steps.push(format!(
                "{}: take them off {} snapshots",
                rule.name(),
                tally.items
            ));
            continue;
        }
        let verb = if filter.takes(*rule) && aside {
            "move aside"
        } else if filter.takes(*rule) {
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
    if let Some(first) = found.reported.first() {
        warnings.push(format!(
            "{} snapshots of collections that are gone, e.g. {first}: a Milvus that runs its collector drops them, unless they are pinned; \
             this pass does only with --rule {}",
            found.reported.len(),
            Rule::CollectionGone.name()
        ));
    }
    if found.unknown.objects > 0 {
        warnings.push(format!(
            "{} objects of {} are of kinds that are never touched",
            found.unknown.objects,
            bytes(found.unknown.bytes)
        ));
    }
    let deleting = found
        .by_rule
        .iter()
        .filter(|(rule, _)| filter.takes(**rule));
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
        changes: changes(reads, scan, found),
        objects: ObjectChange {
            deletes,
            delete_bytes,
            copies: if aside { deletes } else { 0 },
            copy_bytes: if aside { delete_bytes } else { 0 },
            samples: found.samples.clone(),
            ..ObjectChange::default()
        },
        warnings,
        undo: if aside {
            "falconer quarantine restore JOB brings the objects back, not the records".into()
        } else {
            "none: deleted objects are gone".into()
        },
        danger: Danger::High,
        type_to_confirm: Some("collect".into()),
        based_on: scan.rev,
        rests_on: Vec::new(),
        hash: String::new(),
    }
}

fn changes(reads: &Reads<'_>, scan: &Scan, found: &Simulation) -> Vec<KeyChange> {
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
        let key = match item {
            Item::Segment(id) => scan.segment(*id).map(|(key, _)| key.to_key(reads.roots)),
            Item::Build(id) => scan.row(*id).map(|(key, _)| key.to_key(reads.roots)),
            Item::Index(c, id) => scan
                .definitions
                .get(&(*c, *id))
                .map(|seen| seen.key.clone()),
            Item::Snapshot(id) => scan.snapshots.get(id).map(|(_, seen)| seen.key.clone()),
            Item::Checkpoint(channel) => scan.checkpoints.get(channel).map(|seen| seen.key.clone()),
            Item::Pins(id) => {
                out.extend(without_pins(scan, *id));
                continue;
            }
        };
        out.extend(key.map(|key| gone(key.text(), rule.name().to_owned())));
    }
    out
}

/// The record stays: only its pins go.
fn without_pins(scan: &Scan, id: SnapshotId) -> Option<KeyChange> {
    let (_, seen) = scan.snapshots.get(&id)?;
    let snapshot = scan.world.snapshot(id)?;
    let now = scan.world.now;
    let say = |pins: Vec<String>| match pins.len() {
        0 => "no pins".to_owned(),
        _ => pins.join("\n"),
    };
    let pins = || snapshot.pins.iter();
    let words = |pin: &Pin| format!("pin {}, {}", pin.id, pin.left(now));
    Some(KeyChange {
        key: seen.key.text(),
        before: Some(say(pins().map(words).collect())),
        after: Some(say(pins()
            .filter(|pin| pin.is_active(now))
            .map(words)
            .collect())),
    })
}
