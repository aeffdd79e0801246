//! Whether the catalog agrees with itself: every secondary index and every sum against the rows that it is made of (`spec/lifecycle.md`
//! I10.2, I10.3, I11.3). A difference is a defect of Falconer, never of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::Catalog;
use super::ingest::l0::L0;
use super::totals::Sums;
use crate::engine::ids::Tso;

impl Catalog {
    /// What does not agree, one line each; nothing in a sound catalog. Walks everything.
    #[must_use]
    pub fn integrity(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut same = |what: &str, is_same: bool| {
            if !is_same {
                out.push(format!("{what} does not agree with its rows"));
            }
        };
        let rows = || self.segments.iter();
        let of: BTreeSet<_> = rows().map(|((s, c, p), _)| (*c, *s, *p)).collect();
        same(
            "segments by collection",
            of.iter().eq(self.segments_of.iter()),
        );
        let on: BTreeSet<_> = rows()
            .map(|(key, e)| (e.row.channel.clone(), *key))
            .collect();
        let indexed = self
            .segments_on
            .iter()
            .flat_map(|(name, keys)| keys.iter().map(|key| (name.clone(), *key)));
        same("segments by channel", on.iter().cloned().eq(indexed));
        same(
            "channels with segments",
            self.segments_on.values().all(|keys| !keys.is_empty()),
        );
        let moved = rows()
            .all(|((s, c, p), e)| (e.row.id, e.row.collection, e.row.partition) == (*s, *c, *p));
        same("places of segments", moved);
        same(
            "logs without a segment",
            self.loose_logs
                .iter()
                .all(|(key, logs)| !logs.is_empty() && !self.segments.contains_key(key)),
        );
        same("L0 segments by channel", self.l0_anew() == self.l0_now());
        let illegal = rows().filter(|(_, e)| e.row.scope().is_none());
        same(
            "segments of no partition",
            illegal.map(|(key, _)| key).eq(self.illegal.iter()),
        );
        let mut sums = Sums::default();
        for entry in self.segments.values() {
            sums.segment(&entry.row, true);
        }
        for build in self.builds.values() {
            sums.build(build, true);
        }
        same("sums", sums == self.sums);

        let channels: BTreeSet<_> = self
            .channels
            .values()
            .filter_map(|c| Some((c.collection?, c.name.clone())))
            .collect();
        same(
            "channels by collection",
            channels.iter().eq(self.channels_of.iter()),
        );
        let times: BTreeSet<_> = self
            .channels
            .values()
            .filter_map(|c| {
                Some((
                    c.checkpoint.filter(|at| at.time().is_some())?,
                    c.name.clone(),
                ))
            })
            .collect();
        same("checkpoints", times.iter().eq(self.checkpoints.iter()));
        same(
            "keys of channels",
            self.channel_pieces.keys().eq(self.channels.keys()),
        );
        let collections: BTreeSet<_> = self.collections.values().map(|c| (c.db, c.id)).collect();
        same(
            "collections by database",
            collections.iter().eq(self.collections_in.iter()),
        );
        let aliases: BTreeSet<_> = self
            .aliases
            .iter()
            .map(|((db, name), a)| (a.collection, *db, name.clone()))
            .collect();
        same(
            "aliases by collection",
            aliases.iter().eq(self.aliases_of.iter()),
        );
        let snapshots: BTreeSet<_> = self.snapshots.keys().map(|(s, c)| (*c, *s)).collect();
        same(
            "snapshots by collection",
            snapshots.iter().eq(self.snapshots_of.iter()),
        );
        let builds: BTreeSet<_> = self
            .builds
            .keys()
            .map(|(b, c, p, s)| (*s, *b, *c, *p))
            .collect();
        same("builds by segment", builds.iter().eq(self.builds_of.iter()));
        let builds: BTreeSet<_> = self
            .builds
            .iter()
            .map(|((b, c, p, s), row)| (*c, row.index, *b, *p, *s))
            .collect();
        same("builds by index", builds.iter().eq(self.builds_for.iter()));
        out
    }

    fn l0_now(&self) -> BTreeMap<String, L0> {
        let all = self.l0_on.iter();
        all.map(|(name, l0)| (name.to_string(), l0.sum())).collect()
    }

    /// From the rows, as a channel's view counts them.
    fn l0_anew(&self) -> BTreeMap<String, L0> {
        let mut out: BTreeMap<String, L0> = BTreeMap::new();
        for ((id, ..), entry) in self.segments.iter().filter(|(_, e)| e.row.is_written_l0()) {
            let row = &entry.row;
            let slot = out.entry(row.channel.to_string()).or_default();
            slot.segments += 1;
            slot.bytes = slot.bytes.wrapping_add(row.bytes());
            let at = row.first_position();
            if at != Tso::UNSET && slot.oldest.is_none_or(|oldest| (at, *id) < oldest) {
                slot.oldest = Some((at, *id));
            }
        }
        out
    }
}
