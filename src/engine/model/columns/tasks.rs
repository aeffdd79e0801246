//! Columns of snapshots, jobs, tasks, sessions, replicas, configuration, undecodable values and raw keys.

use crate::engine::ids::{CollectionId, MetaKey, UnixMs};
use crate::engine::model::data::{ConfigItem, Replica, Session, Snapshot, Task, Undecodable};
use crate::engine::model::health;
use crate::engine::model::jobs::{JobInfo, JobKind, JobState};
use crate::engine::model::keyindex::KeyMeta;
use crate::engine::model::references::{Extent, Status};
use crate::engine::model::resource::{Cell, Column, Tone, Unit};
use crate::engine::model::rows::View;

use super::{age, collection_cell, columns, count, id, named, shared, state, text, time};

columns! { SNAPSHOTS, snapshot, Snapshot:
    name "NAME" Text (28, 10) "Name, unique in its collection" => |_, s| shared(&s.name);
    collection "COLLECTION" Text (24, 8) "Source collection" => |v, s| collection_cell(v, s.collection);
    state "STATE" State (10, 8) "SnapshotState; PENDING for long means that its maker died" => |v, s| health::snapshot_state(v, s);
    references "REFS" State (8, 6) "Whether it is known what it refers to: before that, nothing of its collection is deleted" => |v, s| references(v, s);
    boundary "BOUNDARY (UTC)" Time (20, 16) "Lowest boundary of its channels: rows after it may be outside" => |_, s| time(s.create_ts);
    age "AGE" Age (9, 6) "Since the boundary" => |v, s| age(v, s.create_ts.time());
    pins "PINS" Count (5, 4) "Pins whose time is not over: it cannot be dropped" => |v, s| count(s.pins.iter().filter(|p| p.is_active(v.now)).count());
    partitions "PARTS" Count (6, 5) "Partitions" => |_, s| count(s.partitions.len());
    id "ID" Id (20, 18) "Snapshot id" => |_, s| id(s.id.0);
    pending "PENDING FOR" Age (11, 8) wide "Time in PENDING" => |v, s| if s.state.number == 1 { age(v, s.pending_since) } else { Cell::None };
    protected "PROTECTED UNTIL" Time (20, 16) wide "End of compaction protection" => |_, s| s.protected_until
        .map_or(Cell::None, |t| Cell::Time(t.to_ms()));
    location "LOCATION" Text (50, 12) wide "Key of the metadata file" => |_, s| text(s.location.clone());
    description "DESCRIPTION" Text (30, 8) wide "Description" => |_, s| text(s.description.clone());
}

/// Only committed snapshots refer to anything, and without a bucket nobody can know to what.
fn references(view: &View<'_>, s: &Snapshot) -> Cell {
    match view.references.get(s.id).map(|entry| &entry.status) {
        None => Cell::None,
        Some(Status::NotLoaded) => state("reading", Tone::Busy),
        Some(Status::Loaded { refs, .. }) if refs.extent == Extent::Ids => state("ids", Tone::Busy),
        Some(Status::Loaded { .. }) => state("loaded", Tone::Good),
        Some(Status::Failed { .. }) => state("FAILED", Tone::Bad),
    }
}

columns! { JOBS, job, JobInfo:
    title "JOB" Text (40, 16) "What it does" => |_, j| text(j.title.clone());
    kind "KIND" Text (15, 8) "Kind" => |_, j| Cell::Text(kind_name(j.kind).into());
    state "STATE" State (10, 8) "Completed is not yet Verified" => |_, j| job_state(j.state);
    step "STEP" Text (30, 8) "Where it stands" => |_, j| text(j.step.clone());
    progress "DONE" Text (8, 5) "Steps, or bytes when they are known" => |_, j| text(percent(j));
    bytes "BYTES" Bytes (10, 6) "Bytes done" => |_, j| if j.progress.bytes == (0, 0) { Cell::None } else { Cell::Bytes(j.progress.bytes.0) };
    rate "RATE" Text (11, 6) "Bytes a second" => |_, j| if j.progress.rate > 0.0 && !j.state.ended() {
        text(format!("{}/s", crate::engine::model::text::bytes(j.progress.rate as u64)))
    } else { Cell::None };
    eta "LEFT" Age (9, 5) "Time left at that rate" => |_, j| j.progress.eta_ms.filter(|_| !j.state.ended()).map_or(Cell::None, Cell::Age);
    started "STARTED (UTC)" Time (20, 16) "Begin" => |_, j| Cell::Time(j.started);
    took "TOOK" Age (9, 5) "From begin to end, or until now" => |v, j| Cell::Age(j.ended.unwrap_or(v.now).since(j.started));
    rows "ROWS" Count (12, 6) "Rows in what it makes" => |_, j| if j.progress.rows == 0 { Cell::None } else { count(j.progress.rows) };
    moved "MOVED" Age (9, 5) "Since its last movement" => |v, j| if j.state.ended() { Cell::None } else { age(v, Some(j.moved)) };
    error "ERROR" Text (50, 8) "The first true error" => |_, j| text(j.error.clone().unwrap_or_default());
    id "ID" Id (20, 18) wide "Job id" => |_, j| id(j.id.0);
    files "FILES" Text (14, 6) wide "Files done of all" => |_, j| text(of(j.progress.files));
    failing "FAILING" Count (8, 7) wide "Files that would not copy, and are not there yet" => |_, j| if j.copies.failing == 0 { Cell::None } else { count(j.copies.failing) };
    segments "SEGMENTS" Text (10, 6) wide "Segments done of all" => |_, j| text(of(j.progress.segments));
    ended "ENDED (UTC)" Time (20, 16) wide "End" => |_, j| j.ended.map_or(Cell::None, Cell::Time);
    collection "COLLECTION" Text (24, 8) wide "Collection" => |v, j| j.collection.map_or(Cell::None, |c| collection_cell(v, c));
}

columns! { TASKS, task, Task:
    id "ID" Id (20, 18) "Task, job or plan id" => |_, t| id(t.id.0);
    kind "KIND" Text (18, 8) "What kind" => |_, t| Cell::Text(t.kind.into());
    detail "DETAIL" Text (40, 10) "What it works on" => |_, t| text(t.detail.clone());
    state "STATE" State (12, 8) "Its own state" => |_, t| named(t.state);
    collection "COLLECTION" Text (24, 8) "Collection" => |v, t| if t.collection == CollectionId(0) { Cell::None } else { collection_cell(v, t.collection) };
    progress "DONE" Text (10, 5) "Done of all" => |_, t| t.progress.map_or(Cell::None, |(a, b)| text(format!("{a}/{b}")));
    node "NODE" Id (6, 4) "Node" => |_, t| t.node.map_or(Cell::None, |n| id(n.0));
    started "STARTED (UTC)" Time (20, 16) "Begin" => |_, t| t.started.map_or(Cell::None, Cell::Time);
    took "TOOK" Age (9, 6) "From begin to end, or until now" => |v, t| took(t, v.now);
    reason "REASON" Text (50, 8) "Why it failed" => |_, t| text(t.reason.clone());
    job "JOB" Id (20, 18) wide "Job or trigger it belongs to" => |_, t| t.job.map_or(Cell::None, |j| id(j.0));
    ended "ENDED (UTC)" Time (20, 16) wide "End" => |_, t| t.ended.map_or(Cell::None, Cell::Time);
}

columns! { SESSIONS, session, Session:
    name "SESSION" Text (24, 10) "Key's last part" => |_, s| shared(&s.name);
    role "ROLE" Text (14, 8) "Role" => |_, s| text(s.role.clone());
    server "SERVER" Id (8, 6) "ServerID" => |_, s| id(s.server.0);
    state "STATE" State (16, 8) "alive, stopping, or NO LEASE: nobody renews it" => |_, s| {
        if s.lease == 0 { state("NO LEASE", Tone::Warn) } else if s.stopping { state("stopping", Tone::Busy) } else { state("alive", Tone::Good) }
    };
    address "ADDRESS" Text (24, 12) "Address" => |_, s| text(s.address.clone());
    host "HOST" Text (20, 8) "HostName" => |_, s| text(s.host.clone());
    version "VERSION" Text (12, 6) "Version" => |_, s| text(s.version.clone());
    blocks "WRITES" Text (8, 6) "A coordinator keeps every writer out" => |_, s| Cell::Text(if s.coordinator { "blocked" } else { "" }.into());
    lease "LEASE" Id (20, 8) wide "Lease; 0 = none" => |_, s| id(s.lease);
}

columns! { REPLICAS, replica, Replica:
    id "ID" Id (20, 18) "Replica id" => |_, r| id(r.id.0);
    collection "COLLECTION" Text (24, 8) "Collection" => |v, r| collection_cell(v, r.collection);
    group "RESOURCE GROUP" Text (26, 10) "Resource group" => |_, r| text(r.resource_group.clone());
    nodes "NODES" Text (24, 5) "Nodes, those of past sessions included" => |_, r| text(
        r.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    load "LOAD" State (10, 6) "Load state of the collection" => |v, r| v.catalog.loads.get(&r.collection).map_or(Cell::None, |l| named(l.status));
}

columns! { CONFIG, config, ConfigItem:
    name "NAME" Text (44, 16) "Name as written" => |_, c| shared(&c.name);
    value "VALUE" Text (60, 10) "Value, secrets masked" => |_, c| text(c.value.clone());
    rev "REVISION" Id (12, 8) "Last revision" => |_, c| id(c.rev.0);
}

columns! { UNDECODABLE, undecodable, Undecodable:
    key "KEY" Text (60, 20) "Key" => |_, u| text(u.key.text());
    reason "REASON" State (50, 16) "Why it cannot be read" => |_, u| state(u.reason.clone(), Tone::Bad);
    size "SIZE" Bytes (10, 6) "Bytes of the value" => |_, u| Cell::Bytes(u64::from(u.len));
    rev "REVISION" Id (12, 8) "Last revision" => |_, u| id(u.rev.0);
}

columns! { KEYS, key, (&MetaKey, &KeyMeta):
    key "KEY" Text (70, 24) "Key" => |_, (k, _)| text(k.text());
    family "FAMILY" Text (26, 10) "What it is" => |_, (_, m)| m.family.map_or(Cell::None, |f| Cell::Text(f.title().into()));
    size "SIZE" Bytes (10, 6) "Bytes of the value" => |_, (_, m)| Cell::Bytes(u64::from(m.len));
    rev "REVISION" Id (12, 8) "Last revision" => |_, (_, m)| id(m.mod_rev.0);
    state "STATE" State (9, 6) "DELETED when the value is RootCoord's tombstone" => |_, (_, m)| if m.tombstone { state("DELETED", Tone::Dim) } else { Cell::None };
    version "VERSION" Count (8, 7) wide "Writes since creation" => |_, (_, m)| count(m.version);
    created "CREATED AT" Id (12, 8) wide "Revision of creation" => |_, (_, m)| id(m.create_rev.0);
    lease "LEASE" Id (20, 6) wide "Lease" => |v, (k, m)| if m.leased { id(v.catalog.keys.lease(k)) } else { Cell::None };
}

/// A job kind in words.
pub(in crate::engine::model) const fn kind_name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::CreateSnapshot => "create-snapshot",
        JobKind::DropSnapshot => "drop-snapshot",
        JobKind::PinSnapshot => "pin-snapshot",
        JobKind::UnpinSnapshot => "unpin-snapshot",
        JobKind::VerifySnapshot => "verify-snapshot",
        JobKind::Restore => "restore",
        JobKind::Export => "export",
        JobKind::Gc => "gc",
        JobKind::Orphans => "orphans",
        JobKind::QuarantineRestore => "quarantine-restore",
        JobKind::QuarantinePurge => "quarantine-purge",
        JobKind::Demo => "demo",
        JobKind::Ddl => "ddl",
    }
}

fn job_state(s: JobState) -> Cell {
    let (text, tone) = match s {
        JobState::Pending => ("Pending", Tone::Busy),
        JobState::Running => ("Running", Tone::Busy),
        JobState::Stuck => ("Stuck", Tone::Bad),
        JobState::Undoing => ("Undoing", Tone::Warn),
        JobState::Completed => ("Completed", Tone::Busy),
        JobState::Verified => ("Verified", Tone::Good),
        JobState::Failed => ("Failed", Tone::Bad),
        JobState::Cancelled => ("Cancelled", Tone::Dim),
    };
    state(text, tone)
}

/// A task that is over but has no end of its own took nobody knows how long.
fn took(t: &Task, now: UnixMs) -> Cell {
    match (t.started, t.ended.or(t.is_under_way().then_some(now))) {
        (Some(start), Some(end)) => Cell::Age(end.since(start)),
        _ => Cell::None,
    }
}

fn percent(j: &JobInfo) -> String {
    if j.state == JobState::Verified {
        return "100%".into();
    }
    let (done, all) = match (j.progress.bytes, j.steps) {
        ((done, all), _) if all > 0 => (done, all),
        (_, (done, all)) => (u64::from(done), u64::from(all)),
    };
    if all == 0 {
        return String::new();
    }
    let percent = u128::from(done) * 100 / u128::from(all);
    format!("{}%", percent.min(100))
}

fn of((done, all): (u64, u64)) -> String {
    if all == 0 {
        String::new()
    } else {
        format!("{done}/{all}")
    }
}
