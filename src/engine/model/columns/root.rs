//! Columns of databases, collections, partitions and aliases.

use crate::engine::ids::CollectionId;
use crate::engine::model::data::{Alias, Collection, Database, Partition};
use crate::engine::model::health;
use crate::engine::model::leftover::Standing;
use crate::engine::model::resource::{Cell, Column, Tone, Unit};
use crate::engine::model::rows::View;
use crate::engine::model::totals::Totals;

use super::{collection_cell, columns, count, id, named, shared, state, text, time};

columns! { DATABASES, database, Database:
    name "NAME" Text (24, 8) "Name" => |_, d| shared(&d.name);
    id "ID" Id (20, 4) "Database id; 1 is default" => |_, d| id(d.id.0);
    state "STATE" State (10, 7) "DatabaseState" => |_, d| named(d.state);
    collections "COLLECTIONS" Count (11, 5) "Collections in every state" => |v, d| count(
        v.collections_in(d.id).count());
    rows "ROWS" Count (14, 6) "Rows of sealed and flushed segments" => |v, d| Cell::Count(
        v.collections_in(d.id).map(|c| totals(v, c).rows).sum());
    size "SIZE" Bytes (10, 6) "Log bytes of segments that are not dropped, as recorded" => |v, d| Cell::Bytes(
        v.collections_in(d.id).map(|c| totals(v, c).live_bytes()).sum());
    created "CREATED (UTC)" Time (20, 16) "Creation" => |_, d| time(d.created);
    properties "PROPERTIES" Text (30, 8) wide "Properties, secrets masked" => |_, d| pairs(&d.properties);
}

columns! { COLLECTIONS, collection, Collection:
    name "NAME" Text (28, 10) "Name" => |_, c| shared(&c.name);
    database "DATABASE" Text (16, 7) "Database" => |v, c| Cell::Shared(v.catalog.database_name(c.db));
    state "STATE" State (10, 7) "CollectionState; or DAMAGED, TRUNCATING, and of one without a record LEAK?, HELD, GC-PENDING" => |_, c| {
        if !c.damage.is_empty() {
            state("DAMAGED", Tone::Bad)
        } else if c.is_truncating() {
            state("TRUNCATING", Tone::Busy)
        } else {
            named(c.state)
        }
    };
    rows "ROWS" Count (14, 6) "Rows of sealed and flushed segments, deletes not taken off" => |v, c| Cell::Count(totals(v, c).rows);
    size "SIZE" Bytes (10, 6) "Log bytes of segments that are not dropped, as recorded" => |v, c| Cell::Bytes(totals(v, c).live_bytes());
    segments "SEGMENTS" Count (9, 5) "Segments that are not dropped" => |v, c| count(totals(v, c).healthy());
    loaded "LOAD" State (10, 6) "Load state" => |v, c| v.catalog.loads.get(&c.id).map_or(
        state("NotLoad", Tone::Dim), |l| named(l.status));
    lag "WORST LAG" Age (10, 6) "Oldest checkpoint of its channels against now; dropped channels do not count" => |v, c| {
        health::worst_lag(v, c.id).map_or(Cell::None, Cell::Age)
    };
    partitions "PARTS" Count (6, 5) "Partitions" => |v, c| count(v.catalog.partitions_of(c.id).count());
    shards "SHARDS" Count (6, 6) "Shards" => |_, c| count(c.shards);
    indexes "INDEXES" Count (7, 7) "Index definitions not deleted" => |v, c| count(
        v.catalog.indexes_of(c.id).filter(|i| !i.deleted).count());
    snapshots "SNAPS" Count (6, 5) "Snapshots" => |v, c| count(v.catalog.snapshots_of(c.id).count());
    id "ID" Id (20, 18) "Collection id" => |_, c| id(c.id.0);
    growing "GROWING" Count (8, 7) wide "Growing segments" => |v, c| count(totals(v, c).by_state[2]);
    dropped "DROPPED" Count (8, 7) wide "Dropped segments, waiting for collection" => |v, c| count(totals(v, c).by_state[6]);
    hidden "HIDDEN" Count (7, 6) wide "Segments hidden from queries" => |v, c| count(totals(v, c).hidden);
    l0 "L0" Count (5, 3) wide "L0 segments" => |v, c| count(totals(v, c).l0);
    deletes "DELETES" Count (10, 7) wide "Entries of delta logs; one delete may be recorded on several segments" => |v, c| count(totals(v, c).deletes);
    fields "FIELDS" Count (6, 6) wide "User fields" => |_, c| count(c.fields.iter().filter(|f| f.id.0 >= 100).count());
    consistency "CONSISTENCY" Text (11, 8) wide "ConsistencyLevel" => |_, c| text(c.consistency.text());
    aliases "ALIASES" Text (20, 7) wide "Aliases" => |_, c| text(c.aliases.join(" "));
    created "CREATED (UTC)" Time (20, 16) wide "Creation" => |_, c| time(c.created);
    hidden_rows "HIDDEN ROWS" Count (12, 6) wide "Rows of segments hidden from queries" => |v, c| Cell::Count(totals(v, c).hidden_rows);
    meta "META" Text (15, 8) wide "live, dropped-in-root, or no-record: only left-overs name it" => |_, c| Cell::Text(Standing::of(c).name().into());
    damage "DAMAGE" Text (30, 6) wide "What is missing or contradicts itself; of one without a record, what remains" => |_, c| text(c.damage.join("; "));
}

columns! { PARTITIONS, partition, Partition:
    name "NAME" Text (24, 8) "Name" => |_, p| shared(&p.name);
    collection "COLLECTION" Text (24, 10) "Collection" => |v, p| collection_cell(v, p.collection);
    state "STATE" State (10, 7) "PartitionState" => |_, p| named(p.state);
    rows "ROWS" Count (14, 6) "Rows of sealed and flushed segments" => |v, p| Cell::Count(part(v, p).rows);
    size "SIZE" Bytes (10, 6) "Log bytes of segments that are not dropped, as recorded" => |v, p| Cell::Bytes(part(v, p).live_bytes());
    segments "SEGMENTS" Count (9, 5) "Segments that are not dropped" => |v, p| count(part(v, p).healthy());
    loaded "LOAD" State (10, 6) "Load state" => load_of_partition;
    id "ID" Id (20, 18) "Partition id" => |_, p| id(p.id.0);
    created "CREATED (UTC)" Time (20, 16) wide "Creation" => |_, p| time(p.created);
}

columns! { ALIASES, alias, Alias:
    name "ALIAS" Text (28, 10) "Alias" => |_, a| shared(&a.name);
    database "DATABASE" Text (16, 7) "Database" => |v, a| Cell::Shared(v.catalog.database_name(a.db));
    collection "COLLECTION" Text (28, 10) "What it stands for" => |v, a| collection_cell(v, a.collection);
    state "STATE" State (10, 7) "AliasState; DANGLING when the collection is gone" => |v, a| {
        if v.catalog.collections.contains_key(&a.collection) { named(a.state) } else { state("DANGLING", Tone::Warn) }
    };
    created "CREATED (UTC)" Time (20, 16) "Creation" => |_, a| time(a.created);
}

/// A collection that has no record: what its left-overs tell.
pub(in crate::engine::model) fn leftover(view: &View<'_>, of: CollectionId, column: usize) -> Cell {
    let Some(left) = view.leftover(of) else {
        return Cell::None;
    };
    let sums = totals_of(view, of);
    match COLLECTIONS.get(column).map_or("", |c| c.id) {
        "name" => state(of.to_string(), Tone::Dim),
        "state" => {
            let (word, tone) = left.verdict();
            state(word, tone)
        }
        "rows" => Cell::Count(sums.rows),
        "size" => Cell::Bytes(sums.live_bytes()),
        "segments" => count(sums.healthy()),
        "partitions" => count(left.partitions),
        "indexes" => count(left.open_indexes),
        "snapshots" => count(left.snapshots),
        "id" => id(of.0),
        "growing" => count(sums.by_state[2]),
        "dropped" => count(left.dropped),
        "hidden" => count(sums.hidden),
        "hidden_rows" => Cell::Count(sums.hidden_rows),
        "l0" => count(sums.l0),
        "deletes" => count(sums.deletes),
        "meta" => Cell::Text(Standing::NoRecord.name().into()),
        "damage" => text(left.words()),
        _ => Cell::None,
    }
}

fn totals(view: &View<'_>, c: &Collection) -> Totals {
    totals_of(view, c.id)
}

fn totals_of(view: &View<'_>, id: CollectionId) -> Totals {
    let all = &view.catalog.sums.collections;
    all.get(&id).copied().unwrap_or_default()
}

fn part(view: &View<'_>, p: &Partition) -> Totals {
    let key = (p.collection, p.id);
    view.catalog
        .sums
        .partitions
        .get(&key)
        .copied()
        .unwrap_or_default()
}

fn load_of_partition(view: &View<'_>, p: &Partition) -> Cell {
    let Some(load) = view.catalog.loads.get(&p.collection) else {
        return state("NotLoad", Tone::Dim);
    };
    match load.partitions.iter().find(|(id, _)| *id == p.id) {
        Some((_, status)) => named(*status),
        // 2.2 and 2.3 load a whole collection without a key for each partition.
        None if load.load_type.number == 2 && load.partitions.is_empty() => named(load.status),
        None => state("NotLoad", Tone::Dim),
    }
}

fn pairs(list: &[(String, String)]) -> Cell {
    let all: Vec<String> = list.iter().map(|(k, v)| format!("{k}={v}")).collect();
    text(all.join(" "))
}
