//! Verdicts: pure functions of the catalog and the time, used alike by screens, the CLI and the executor (law 6). Every rule
//! has a name that can be asked for.

pub mod broadcasts;
pub mod channels;
pub mod segments;

use std::collections::BTreeSet;

use crate::engine::ids::UnixMs;

use super::data::Snapshot;
use super::jobs::JobState;
use super::quarantine::KEEP_DAYS;
use super::resource::{Cell, RowId, Tone};
use super::rows::View;

pub use channels::{behind, channel_state, lag, worst_lag};

/// A channel this far behind the newest real checkpoint is frozen: flush-all will not end (`spec/lifecycle.md` §3 (e)).
pub const FROZEN_MS: u64 = 10 * 60_000;
/// A snapshot PENDING for longer lost its maker (`spec/oncall.md` §5.2).
pub const PENDING_MS: u64 = 5 * 60_000;
/// A snapshot that has not been read for longer is worth a word.
pub const UNREAD_MS: u64 = 60_000;
/// A running job that has not moved for longer is stuck.
pub const STUCK_MS: u64 = 2 * 60_000;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it.
    Warn,
    /// Wrong.
    Bad,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident $name:literal $help:literal;)*) => {
        /// A rule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule { $(#[doc = $help] $rule),* }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$rule),*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$rule => $name),* }
            }

            /// What it looks for.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$rule => $help),* }
            }
        }
    };
}

rules! {
    ChannelFrozen "channel-frozen" "A channel's checkpoint is far behind the newest one";
    ChannelCheckpoint "channel-checkpoint" "A channel in use has no checkpoint, an unset one, or one from the future";
    CheckpointsStale "checkpoints-stale" "Even the newest checkpoint is old: nothing is consumed, or this is an old dump";
    ChannelLeftover "channel-leftover" "Keys of a channel whose collection is gone";
    ChannelOwner "channel-owner" "A channel in use whose log no registered node has";
    DeletesPileUp "deletes-pile-up" "L0 segments of a channel pile up, or their compaction is stuck";
    LegacyWatchKey "legacy-watch-key" "Keys of the channel manager that 2.6 no longer has";
    BroadcastAppend "broadcast-append-unrecoverable" "An append of a broadcast fails for a reason that trying again does not cure";
    BroadcastStopped "broadcast-stopped" "A broadcast that does not go on by itself";
    BroadcastCallback "broadcast-callback-retry" "The callback of a broadcast has failed more than 10 times";
    BroadcastConflict "broadcast-key-conflict" "Two unfinished broadcasts hold the same key";
    BroadcastCheckpoint "broadcast-checkpoint-wait" "A broadcast waits for long for a channel's checkpoint, and holds its keys";
    BroadcastStuck "broadcast-stuck" "A broadcast is not over after two minutes";
    BroadcastBlocking "broadcast-blocking" "Others wait for the keys of a broadcast";
    LogNotTaken "log-not-taken" "Messages of a channel that we own cannot be taken in";
    CoordinatorAlive "coordinator-alive" "A coordinator is registered: nothing can be written";
    SessionWithoutLease "session-without-lease" "A session that nobody renews and that will not go by itself";
    CollectionDamaged "collection-damaged" "A collection with missing or contradicting parts";
    Undecodable "undecodable" "A value that cannot be read";
    SnapshotPending "snapshot-pending" "A snapshot in PENDING for too long";
    SnapshotDeleting "snapshot-deleting" "A snapshot whose deletion has not ended";
    ReferencesUnknown "references-unknown" "A snapshot's references are not known: nothing of its collection can be deleted";
    TaskFailed "task-failed" "A task of a coordinator has failed";
    BuildFailed "build-failed" "An index has failed builds";
    SegmentPartition "segment-partition" "A segment with rows that says it is about every partition";
    SegmentsOldArch "segments-old-arch" "Growing or sealed segments of the architecture before 2.6";
    CollectionLeftover "collection-leftover" "Keys of a collection that has no record, and that nobody has marked as dropped";
    TruncateLeftover "truncate-left-over" "A collection is marked as being truncated, and no truncate is under way";
    SegmentsDropped "segments-dropped" "Dropped segments wait for collection and hold bytes";
    LogsWithoutSegment "logs-without-segment" "Log keys without their segment's key";
    AliasDangling "alias-dangling" "An alias of a collection that is gone";
    GcPaused "gc-paused" "Garbage collection is paused by a ticket of ours";
    QuarantineDue "quarantine-due" "What was moved aside more than a week ago still fills the bucket";
    JobFailed "job-failed" "One of our jobs has failed";
    JobStuck "job-stuck" "One of our jobs has not moved for a while";
}

/// A finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The rule.
    pub rule: Rule,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about; `None` for the cluster.
    pub subject: Option<RowId>,
    /// Since when, as far as it is known.
    pub since: Option<UnixMs>,
    /// What was found.
    pub reason: String,
    /// What to do, or what will happen by itself.
    pub next: &'static str,
}

/// A snapshot's state with the tone its age gives it.
#[must_use]
pub fn snapshot_state(view: &View<'_>, s: &Snapshot) -> Cell {
    let tone = match s.state.number {
        1 if pending_ms(view, s).is_some_and(|ms| ms > PENDING_MS) => Tone::Warn,
        1 => Tone::Busy,
        2 => Tone::Good,
        _ => Tone::Warn,
    };
    Cell::State(s.state.text(), tone)
}

fn pending_ms(view: &View<'_>, s: &Snapshot) -> Option<u64> {
    (s.state.number == 1).then(|| s.pending_since.map_or(0, |at| view.now.since(at)))
}

/// Every finding, worst first. Walks channels, sessions, snapshots, tasks, collections and jobs, never the segments.
#[must_use]
pub fn faults(view: &View<'_>) -> Vec<Fault> {
    let mut out = Vec::new();
    channels::faults(view, &mut out);
    broadcasts::faults(view, &mut out);
    segments::faults(view, &mut out);
    sessions(view, &mut out);
    collections(view, &mut out);
    snapshots(view, &mut out);
    references(view, &mut out);
    tasks(view, &mut out);
    jobs(view, &mut out);
    pauses(view, &mut out);
    let c = view.catalog;
    for row in c.undecodable.values() {
        out.push(Fault {
            rule: Rule::Undecodable,
            severity: Severity::Bad,
            subject: Some(RowId::Undecodable(row.key.clone())),
            since: None,
            reason: format!("{} cannot be read: {}", row.key, row.reason),
            next: "look at the raw value; nothing that depends on it will be deleted",
        });
    }
    if c.headless_segments() > 0 {
        out.push(Fault {
            rule: Rule::LogsWithoutSegment,
            severity: Severity::Warn,
            subject: None,
            since: None,
            reason: format!(
                "{} segments have log keys but no key of their own",
                c.headless_segments()
            ),
            next: "left behind by an interrupted clean-up; garbage collection lists their objects",
        });
    }
    out.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.rule.cmp(&b.rule)));
    out
}

fn sessions(view: &View<'_>, out: &mut Vec<Fault>) {
    for s in view.catalog.sessions.values() {
        let subject = Some(RowId::Session(s.name.to_string()));
        if s.coordinator {
            out.push(Fault {
                rule: Rule::CoordinatorAlive,
                severity: Severity::Info,
                subject: subject.clone(),
                since: None,
                reason: format!("{} is registered at {}", s.name, s.address),
                next: "stop the coordinators before anything is written",
            });
        }
        if s.lease == 0 {
            out.push(Fault {
                rule: Rule::SessionWithoutLease,
                severity: Severity::Warn,
                subject,
                since: None,
                reason: format!(
                    "{} has no lease, so it does not go when its process does",
                    s.name
                ),
                next: "make sure that the process is gone; a restored dump leaves such keys",
            });
        }
    }
}

fn collections(view: &View<'_>, out: &mut Vec<Fault>) {
    let c = view.catalog;
    for row in c.collections.values().filter(|row| !row.damage.is_empty()) {
        out.push(Fault {
            rule: Rule::CollectionDamaged,
            severity: Severity::Bad,
            subject: Some(RowId::Collection(row.id)),
            since: row.created.time(),
            reason: format!("{}: {}", row.name, row.damage.join("; ")),
            next: "Milvus 2.6.6 to 2.6.11 leaves this after a crash while creating; do not load it",
        });
    }
    for row in c.collections.values().filter(|row| row.is_truncating()) {
        let mut all = c.broadcasts.values();
        let is_under_way = all.any(|b| {
            b.collection == Some(row.id) && !b.is_over() && b.kind == "TruncateCollection"
        });
        if !is_under_way {
            out.push(Fault {
                rule: Rule::TruncateLeftover,
                severity: Severity::Warn,
                subject: Some(RowId::Collection(row.id)),
                since: None,
                reason: format!(
                    "{} is marked as being truncated, and no truncate is under way",
                    row.name
                ),
                next: "compaction of it stands still as long as the mark is there",
            });
        }
    }
    let at_work: BTreeSet<_> = c
        .tasks
        .values()
        .filter(|t| t.is_under_way())
        .map(|t| t.collection)
        .collect();
    for (id, left) in view.leftovers() {
        if !left.is_open() || at_work.contains(&id) {
            continue;
        }
        out.push(Fault {
            rule: Rule::CollectionLeftover,
            severity: Severity::Warn,
            subject: Some(RowId::Collection(id)),
            since: None,
            reason: format!("collection {id} has no record, but {}", left.words()),
            next: "nobody has marked all of it as dropped: gc plan says what a pass would take",
        });
    }
    for (id, totals) in &c.sums.collections {
        let n = totals.by_state[6];
        if n > 0 {
            out.push(Fault {
                rule: Rule::SegmentsDropped,
                severity: Severity::Info,
                subject: Some(RowId::Collection(*id)),
                since: None,
                reason: format!(
                    "{n} dropped segments of {} hold {}",
                    c.collection_name(*id),
                    super::text::bytes(totals.dropped_bytes)
                ),
                next: "collected after the tolerance, unless a snapshot holds them",
            });
        }
    }
    for row in c.aliases.values() {
        if !c.collections.contains_key(&row.collection) {
            out.push(Fault {
                rule: Rule::AliasDangling,
                severity: Severity::Warn,
                subject: Some(RowId::Alias(row.db, row.name.to_string())),
                since: row.created.time(),
                reason: format!(
                    "alias {} stands for {}, which is gone",
                    row.name, row.collection
                ),
                next: "drop or move the alias",
            });
        }
    }
    for ((collection, index), totals) in &c.sums.indexes {
        if totals.by_state[4] > 0 {
            out.push(Fault {
                rule: Rule::BuildFailed,
                severity: Severity::Bad,
                subject: Some(RowId::Index(*collection, *index)),
                since: None,
                reason: format!(
                    "{} builds of index {index} of {} have failed",
                    totals.by_state[4],
                    c.collection_name(*collection)
                ),
                next: "the reason stands beside each build",
            });
        }
    }
}

fn snapshots(view: &View<'_>, out: &mut Vec<Fault>) {
    for s in view.catalog.snapshots.values() {
        let subject = Some(RowId::Snapshot(s.id));
        match s.state.number {
            1 => {
                let Some(ms) = pending_ms(view, s).filter(|ms| *ms > PENDING_MS) else {
                    continue;
                };
                out.push(Fault {
                    rule: Rule::SnapshotPending,
                    severity: Severity::Warn,
                    subject,
                    since: s.pending_since,
                    reason: format!("{} is PENDING for {}", s.name, super::text::age(ms)),
                    next: "its maker died; drop it, it blocks compaction of its collection",
                });
            }
            3 => out.push(Fault {
                rule: Rule::SnapshotDeleting,
                severity: Severity::Warn,
                subject,
                since: None,
                reason: format!("{} is DELETING; its files may be left", s.name),
                next: "drop it again: objects go first, the record last",
            }),
            _ => {}
        }
    }
}

fn references(view: &View<'_>, out: &mut Vec<Fault>) {
    for blocked in super::blocked::blocked(view) {
        if !blocked.failed && view.now.since(blocked.since) < UNREAD_MS {
            continue;
        }
        out.push(Fault {
            rule: Rule::ReferencesUnknown,
            severity: if blocked.failed {
                Severity::Warn
            } else {
                Severity::Info
            },
            subject: blocked.snapshots.first().map(|id| RowId::Snapshot(*id)),
            since: Some(blocked.since),
            reason: format!(
                "nothing of {} can be collected, {} dropped segments with {} wait: {}",
                view.catalog.collection_name(blocked.collection),
                blocked.segments,
                super::text::bytes(blocked.bytes),
                blocked.reason
            ),
            next: "it is read again by itself; repair the file, or drop the snapshot",
        });
    }
}

fn tasks(view: &View<'_>, out: &mut Vec<Fault>) {
    for t in view.catalog.tasks.values() {
        let failed = matches!(
            t.state.name,
            "Failed" | "failed" | "timeout" | "FailedAndCleaned"
        );
        if failed {
            out.push(Fault {
                rule: Rule::TaskFailed,
                severity: Severity::Warn,
                subject: Some(RowId::Task(t.key.clone())),
                since: t.ended.or(t.started),
                reason: format!("{} {}: {}", t.kind, t.id, t.reason),
                next: "read the reason; the coordinator may try again by itself",
            });
        }
    }
}

fn pauses(view: &View<'_>, out: &mut Vec<Fault>) {
    for t in view.jobs.tickets.iter().filter(|t| t.is_live(view.now)) {
        out.push(Fault {
            rule: Rule::GcPaused,
            severity: Severity::Warn,
            subject: Some(RowId::Ticket(t.id.clone())),
            since: Some(t.since).filter(|at| at.0 > 0),
            reason: t.to_string(),
            next: "it ends by itself; Z, or falconer gc resume, ends it now",
        });
    }
    for q in &view.jobs.quarantine {
        let is_due = q.due(KEEP_DAYS).is_some_and(|at| at <= view.now);
        if is_due && q.objects > 0 {
            out.push(Fault {
                rule: Rule::QuarantineDue,
                severity: Severity::Info,
                subject: Some(RowId::Quarantine(q.job)),
                since: q.closed,
                reason: format!(
                    "{} objects, {}, lie aside since job {} moved them",
                    q.objects,
                    super::text::bytes(q.bytes),
                    q.job
                ),
                next: "X, or falconer quarantine purge, deletes them for good",
            });
        }
    }
}

fn jobs(view: &View<'_>, out: &mut Vec<Fault>) {
    for j in &view.jobs.jobs {
        let subject = Some(RowId::Job(j.id));
        if j.state == JobState::Failed {
            out.push(Fault {
                rule: Rule::JobFailed,
                severity: Severity::Bad,
                subject,
                since: j.ended,
                reason: format!("{}: {}", j.title, j.error.as_deref().unwrap_or("no reason")),
                next: "what it made has been taken back, or is labelled",
            });
        } else if j.state == JobState::Stuck {
            out.push(Fault {
                rule: Rule::JobStuck,
                severity: Severity::Bad,
                subject,
                since: Some(j.moved),
                reason: format!("{}: {}", j.title, j.error.as_deref().unwrap_or("no reason")),
                next: "clear the cause and retry it, or cancel it; it is taken back by itself later",
            });
        } else if !j.state.ended() && view.now.since(j.moved) > STUCK_MS {
            out.push(Fault {
                rule: Rule::JobStuck,
                severity: Severity::Warn,
                subject,
                since: Some(j.moved),
                reason: format!("{} stands in {}", j.title, j.step),
                next: "look at the store it waits for, or cancel it",
            });
        }
    }
}
