//! The first screen in numbers.

use serde::Serialize;

use crate::engine::ids::{MetaRev, UnixMs};

use super::health::{self, Severity};
use super::jobs::JobState;
use super::names;
use super::rows::View;

/// How many in a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateCount {
    /// The state's name, or its number.
    pub state: String,
    /// How many.
    pub count: u64,
}

/// Everything the first screen counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// Revision.
    pub rev: MetaRev,
    /// Keys, bytes of keys, bytes of values.
    pub keys: (u64, u64, u64),
    /// Databases.
    pub databases: u64,
    /// Collections in every state, and the loaded ones.
    pub collections: (u64, u64),
    /// Partitions.
    pub partitions: u64,
    /// Segments by state, those that are there.
    pub segments: Vec<StateCount>,
    /// Rows of sealed and flushed segments.
    pub rows: i64,
    /// Entries of delta logs.
    pub deletes: u64,
    /// Bytes of segments that are not dropped: insert, delta, statistics, BM25.
    pub log_bytes: [u64; 4],
    /// Bytes of index files.
    pub index_bytes: u64,
    /// Bytes of dropped segments.
    pub dropped_bytes: u64,
    /// Log files.
    pub files: u64,
    /// Index builds by state.
    pub builds: Vec<StateCount>,
    /// Channels, of them dropped.
    pub channels: (u64, u64),
    /// Newest real checkpoint.
    pub newest_checkpoint: Option<UnixMs>,
    /// Largest lag of a channel that is in use, ms.
    pub worst_lag: Option<u64>,
    /// Largest distance to the newest checkpoint of a channel that is in use, ms.
    pub worst_behind: Option<u64>,
    /// Snapshots by state.
    pub snapshots: Vec<StateCount>,
    /// Our jobs: running, ended.
    pub jobs: (u64, u64),
    /// Broadcasts: under way, over.
    pub broadcasts: (u64, u64),
    /// Coordinators' tasks.
    pub tasks: u64,
    /// Sessions, of them coordinators.
    pub sessions: (u64, u64),
    /// Values that could not be read.
    pub undecodable: u64,
    /// Findings: bad, warnings, infos.
    pub faults: (u64, u64, u64),
}

fn states(counts: &[u32], name: fn(i32) -> super::data::Enum) -> Vec<StateCount> {
    let mut out = Vec::new();
    for (i, count) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        let last = i + 1 == counts.len();
        let state = if last {
            "other".to_owned()
        } else {
            name(i32::try_from(i).unwrap_or(i32::MAX))
                .text()
                .into_owned()
        };
        let count = u64::from(*count);
        out.push(StateCount { state, count });
    }
    out
}

/// Counts. Walks channels, snapshots, jobs and sessions; segments are summed already.
#[must_use]
pub fn overview(view: &View<'_>) -> Overview {
    let c = view.catalog;
    let all = &c.sums.all;
    let (key_bytes, value_bytes) = c.keys.bytes();
    let in_use = || {
        c.channels.values().filter(|ch| {
            ch.collection
                .is_some_and(|id| c.collections.contains_key(&id))
        })
    };
    let mut snapshot_states = [0u32; 5];
    for s in c.snapshots.values() {
        let at = usize::try_from(s.state.number).map_or(4, |n| n.min(4));
        snapshot_states[at] += 1;
    }
    let faults = health::faults(view);
    let of = |severity| faults.iter().filter(|f| f.severity == severity).count() as u64;
    let running = |s: JobState| !s.ended();
    Overview {
        rev: c.rev,
        keys: (c.keys.len() as u64, key_bytes, value_bytes),
        databases: c.databases.len() as u64,
        collections: (
            c.collections.len() as u64,
            c.loads.values().filter(|l| l.status.number == 2).count() as u64,
        ),
        partitions: c.partitions.len() as u64,
        segments: states(&all.by_state, names::segment_state),
        rows: all.rows,
        deletes: all.deletes,
        log_bytes: all.bytes,
        index_bytes: c.sums.builds.bytes,
        dropped_bytes: all.dropped_bytes,
        files: all.files,
        builds: states(&c.sums.builds.by_state, names::index_state),
        channels: (
            c.channels.len() as u64,
            c.channels
                .values()
                .filter(|ch| {
                    ch.checkpoint
                        .is_some_and(crate::engine::ids::Tso::is_dropped)
                })
                .count() as u64,
        ),
        newest_checkpoint: c.newest_checkpoint(view.now),
        worst_lag: in_use().filter_map(|ch| health::lag(view, ch)).max(),
        worst_behind: in_use().filter_map(|ch| health::behind(view, ch)).max(),
        snapshots: states(&snapshot_states, names::snapshot_state),
        jobs: {
            let n = view.jobs.jobs.iter().filter(|j| running(j.state)).count();
            (n as u64, (view.jobs.jobs.len() - n) as u64)
        },
        broadcasts: {
            let over = c.broadcasts.values().filter(|b| b.is_over()).count();
            ((c.broadcasts.len() - over) as u64, over as u64)
        },
        tasks: c.tasks.len() as u64,
        sessions: (
            c.sessions.len() as u64,
            c.sessions.values().filter(|s| s.coordinator).count() as u64,
        ),
        undecodable: c.undecodable.len() as u64,
        faults: (of(Severity::Bad), of(Severity::Warn), of(Severity::Info)),
    }
}
