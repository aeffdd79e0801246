//! Columns of segments, channels, indexes and builds.

use crate::engine::ids::PartitionScope;
use crate::engine::model::data::{Channel, IndexDef, Segment, SegmentIndex};
use crate::engine::model::health::{self, channels};
use crate::engine::model::resource::{Cell, Column, Tone, Unit};
use crate::engine::model::rows::View;
use crate::engine::model::totals::{BuildTotals, Totals, state as seg};

use super::{
    age, badge_cell, collection_cell, columns, count, id, named, shared, state, text, time, tone,
};

columns! { SEGMENTS, segment, Segment:
    id "ID" Id (20, 18) "Segment id" => |_, s| id(s.id.0);
    collection "COLLECTION" Text (24, 8) "Collection" => |v, s| collection_cell(v, s.collection);
    partition "PARTITION" Text (16, 8) "Partition; ALL on an L0 whose deletes apply to every partition, which every partition's list shows; -1? where that is illegal" => partition;
    state "STATE" State (9, 7) "SegmentState" => |_, s| named(s.state);
    level "LEVEL" Text (6, 5) "SegmentLevel; Legacy behaves as L1" => |_, s| text(s.level.text());
    rows "ROWS" Count (12, 6) "Rows, deletes not taken off" => |_, s| Cell::Count(s.rows);
    size "SIZE" Bytes (10, 6) "Log bytes as recorded: not always the objects' size" => |_, s| Cell::Bytes(s.bytes());
    deletes "DELETES" Count (9, 7) "Entries of its delta logs" => |_, s| count(s.delta.entries);
    files "FILES" Count (6, 5) "Log files" => |_, s| count(s.files());
    index "INDEX" State (12, 6) "Builds finished of builds recorded" => index_state;
    marks "MARKS" Text (20, 6) "OLD-ARCH, hidden, importing, sorted, compacted, empty, manifest" => marks;
    shard "SHARD" Text (30, 8) wide "Virtual channel" => |_, s| shared(&s.channel);
    storage "STORAGE" Text (7, 7) wide "Storage version" => |_, s| text(format!("V{}", s.storage_version.max(1)));
    dropped "DROPPED" Age (9, 7) wide "Time since it was dropped" => |v, s| age(v, s.dropped_at.map(crate::engine::ids::UnixNs::to_ms));
    parents "FROM" Text (24, 6) wide "Segments it was compacted from" => |_, s| text(
        s.compaction_from.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    start "START (UTC)" Time (20, 16) wide "Start position" => |_, s| time(s.start);
    dml "LAST (UTC)" Time (20, 16) wide "Last consumed position" => |_, s| time(s.dml);
    partition_id "PARTITION ID" Id (20, 18) wide "Partition id" => |_, s| id(s.partition.0);
}

columns! { CHANNELS, channel, Channel:
    name "CHANNEL" Text (36, 16) "Virtual channel" => |_, c| text(c.name.0.clone());
    collection "COLLECTION" Text (24, 8) "Collection" => |v, c| c.collection.map_or(Cell::None, |id| collection_cell(v, id));
    checkpoint "CHECKPOINT (UTC)" Time (20, 16) "Everything before it is in segments; DROPPED for the mark of a dropped channel" => |_, c| match c.checkpoint {
        Some(tso) if tso.is_dropped() => state("DROPPED", Tone::Dim),
        Some(tso) => tso.time().map_or(state("unset", Tone::Warn), Cell::Time),
        None => Cell::None,
    };
    lag "LAG" Age (9, 6) "Checkpoint against now" => |v, c| health::lag(v, c).map_or(Cell::None, Cell::Age);
    state "STATE" State (24, 14) "ok, or what is wrong, worst first: FROZEN, NO-OWNER, L0 PILE-UP and others, which ? and the detail view explain" => |v, c| {
        match badge_cell(channels::badges(v, c)) {
            Cell::None => state("ok", Tone::Good),
            words => words,
        }
    };
    behind "BEHIND" Age (9, 6) "Checkpoint against the newest real checkpoint of any channel" => |v, c| health::behind(v, c).map_or(Cell::None, Cell::Age);
    mark "MARK" Text (12, 7) "Removal mark: non-removed, removed or missing" => |_, c| text(c.mark.clone().unwrap_or_else(|| "missing".into()));
    recovery "RECOVERY" State (9, 8) wide "Recovery state of the streaming node" => |_, c| c.recovery.map_or(Cell::None, named);
    owner "OWNER" Text (16, 6) "Node and term that have the log, or the node that watches" => |_, c| match (&c.owner, c.watch) {
        (Some(owner), _) => text(channels::owner_words(owner)),
        (None, Some((node, _))) if node.0 == i64::MIN => text("unassigned"),
        (None, Some((node, watch))) => text(format!("{node} {}", watch.text())),
        (None, None) => Cell::None,
    };
    segments "SEGMENTS" Count (9, 5) "Segments that are not dropped" => |v, c| count(sums(v, c).healthy());
    growing "GROWING" Count (8, 7) "Growing segments" => |v, c| count(sums(v, c).by_state[2]);
    l0 "L0" Count (5, 3) "Written L0 segments that queries load with the channel" => |v, c| count(v.catalog.l0_on(&c.name.0).segments);
    gap "DELETE GAP" Age (10, 8) "Delete checkpoint behind the checkpoint: how long the oldest L0 has waited for compaction" => |v, c| channels::gap(v, c).map_or(Cell::None, Cell::Age);
    l0_size "L0 SIZE" Bytes (10, 6) wide "Log bytes of those L0 segments, as recorded" => |v, c| Cell::Bytes(v.catalog.l0_on(&c.name.0).bytes);
    l0_oldest "OLDEST L0 (UTC)" Time (20, 16) wide "First position of the oldest of them" => |v, c| v.catalog.l0_on(&c.name.0).oldest.map_or(Cell::None, |(at, _)| time(at));
    delete_cp "DELETE CP (UTC)" Time (20, 16) wide "Deletes older than this are in the logs of every segment" => |v, c| channels::delete_checkpoint(v, c).map_or(Cell::None, time);
    assignment "PCHANNEL" State (12, 8) wide "PChannelMetaState of its physical channel" => |_, c| c.owner.as_ref().map_or(Cell::None, |owner| named(owner.state));
    rows "ROWS" Count (12, 6) wide "Rows of sealed and flushed segments" => |v, c| Cell::Count(sums(v, c).rows);
}

columns! { INDEXES, index, IndexDef:
    name "NAME" Text (24, 8) "Name" => |_, i| shared(&i.name);
    collection "COLLECTION" Text (24, 8) "Collection" => |v, i| collection_cell(v, i.collection);
    field "FIELD" Text (20, 6) "Field" => field_name;
    r#type "TYPE" Text (14, 6) "index_type" => |_, i| text(i.index_type.clone());
    metric "METRIC" Text (9, 6) "metric_type" => |_, i| text(i.metric.clone());
    state "STATE" State (11, 7) "Worst state of its builds; DELETED waits for collection" => |v, i| definition_state(v, i);
    builds "BUILDS" Text (12, 7) "Builds finished of builds recorded" => |v, i| {
        let b = built(v, i);
        text(format!("{}/{}", b.by_state[3], b.builds()))
    };
    rows "ROWS" Count (12, 6) "Rows of finished builds" => |v, i| Cell::Count(built(v, i).rows);
    size "SIZE" Bytes (10, 6) "Bytes of its files" => |v, i| Cell::Bytes(built(v, i).bytes);
    id "ID" Id (20, 18) wide "Index id" => |_, i| id(i.id.0);
    created "CREATED (UTC)" Time (20, 16) wide "Creation" => |_, i| time(i.created);
    params "PARAMETERS" Text (40, 10) wide "Index parameters" => |_, i| text(
        i.params.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "));
}

columns! { BUILDS, build, SegmentIndex:
    build "BUILD" Id (20, 18) "Build id" => |_, b| id(b.build.0);
    collection "COLLECTION" Text (24, 8) "Collection" => |v, b| collection_cell(v, b.collection);
    index "INDEX" Text (20, 6) "Index" => |v, b| v.catalog.indexes.get(&(b.collection, b.index))
        .map_or_else(|| text(format!("{} (gone)", b.index)), |i| shared(&i.name));
    segment "SEGMENT" Id (20, 18) "Segment" => |_, b| id(b.segment.0);
    state "STATE" State (11, 7) "IndexState; DELETED waits for collection" => |_, b| {
        if b.deleted { state("DELETED", Tone::Dim) } else { named(b.state) }
    };
    rows "ROWS" Count (12, 6) "Rows" => |_, b| Cell::Count(b.rows);
    files "FILES" Count (6, 5) "Files; none for small segments and FLAT" => |_, b| count(b.files);
    size "SIZE" Bytes (10, 6) "Bytes" => |_, b| Cell::Bytes(b.bytes);
    created "CREATED (UTC)" Time (20, 16) "Creation" => |_, b| time(crate::engine::ids::Tso::from_ms(b.created.to_ms()));
    reason "REASON" Text (40, 8) "Why it failed" => |_, b| text(b.fail_reason.clone());
}

fn partition(view: &View<'_>, s: &Segment) -> Cell {
    match s.scope() {
        Some(PartitionScope::ALL) => return Cell::Text("ALL".into()),
        // Only deletes may be about every partition (`spec/lifecycle.md` §12 rule 8).
        None => return state(format!("{}?", s.partition), Tone::Bad),
        Some(_) if s.partition.0 == 0 => return Cell::Text("–".into()),
        Some(_) => {}
    }
    match view.catalog.partitions.get(&(s.collection, s.partition)) {
        Some(p) => shared(&p.name),
        None => text(format!("{} (gone)", s.partition)),
    }
}

fn marks(view: &View<'_>, s: &Segment) -> Cell {
    let set = [
        (health::segments::is_old_arch(view.catalog, s), "OLD-ARCH"),
        (s.invisible, "hidden"),
        (s.importing, "importing"),
        (s.sorted, "sorted"),
        (s.compacted, "compacted"),
        (s.manifest.is_some(), "manifest"),
        (
            s.rows == 0 && !s.is_l0() && s.state.number == seg::FLUSHED,
            "empty",
        ),
    ];
    let mut out = String::new();
    for (_, name) in set.iter().filter(|(on, _)| *on) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(name);
    }
    text(out)
}

fn index_state(view: &View<'_>, s: &Segment) -> Cell {
    let (mut all, mut done, mut failed) = (0, 0, 0);
    for b in view.catalog.builds_of(s.id).filter(|b| !b.deleted) {
        all += 1;
        done += u32::from(b.state.number == 3);
        failed += u32::from(b.state.number == 4);
    }
    if all == 0 {
        return Cell::None;
    }
    let tone = match (failed, done == all) {
        (1.., _) => Tone::Bad,
        (0, true) => Tone::Good,
        (0, false) => Tone::Busy,
    };
    state(format!("{done}/{all}"), tone)
}

fn sums(view: &View<'_>, c: &Channel) -> Totals {
    let all = &view.catalog.sums.channels;
    all.get(c.name.0.as_str()).copied().unwrap_or_default()
}

fn built(view: &View<'_>, i: &IndexDef) -> BuildTotals {
    let key = (i.collection, i.id);
    view.catalog
        .sums
        .indexes
        .get(&key)
        .copied()
        .unwrap_or_default()
}

fn definition_state(view: &View<'_>, i: &IndexDef) -> Cell {
    if i.deleted {
        return state("DELETED", Tone::Dim);
    }
    let b = built(view, i);
    let text = match b.by_state {
        [.., 0, 0, 0] if b.builds() == b.by_state[3] => "Finished",
        _ if b.by_state[4] > 0 => "Failed",
        _ if b.by_state[5] > 0 => "Retry",
        _ => "InProgress",
    };
    state(text, tone(text))
}

fn field_name(view: &View<'_>, i: &IndexDef) -> Cell {
    let field = view
        .catalog
        .collections
        .get(&i.collection)
        .and_then(|c| c.fields.iter().find(|f| f.id == i.field));
    match field {
        Some(f) => text(f.name.clone()),
        None => text(i.field.to_string()),
    }
}
