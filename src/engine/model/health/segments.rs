//! Findings about segments: those that nobody will flush, and those that contradict themselves (`spec/lifecycle.md` §4, §12).

use super::{Fault, Rule, Severity};
use crate::engine::ids::CollectionId;
use crate::engine::model::badges::{Badge, segment as badge};
use crate::engine::model::catalog::Catalog;
use crate::engine::model::data::Segment;
use crate::engine::model::resource::{RowId, Scope};
use crate::engine::model::rows::View;
use crate::engine::model::totals::state;

/// Not flushed, and allocated by the data coordinator of 2.5 or older, where channels are streamed now.
#[must_use]
pub fn is_old_arch(catalog: &Catalog, s: &Segment) -> bool {
    let unflushed = matches!(
        s.state.number,
        state::GROWING | state::SEALED | state::FLUSHING
    );
    unflushed && !s.by_streaming && !s.is_l0() && !s.importing && catalog.streams()
}

/// The words beside a segment, worst first.
#[must_use]
pub fn badges(view: &View<'_>, s: &Segment) -> Vec<&'static Badge> {
    let mut out = Vec::new();
    if s.scope().is_none() {
        out.push(&badge::NO_PARTITION);
    }
    if is_old_arch(view.catalog, s) {
        out.push(&badge::OLD_ARCH);
    }
    out
}

/// What stands over a list of segments: how many of the old architecture are left.
#[must_use]
pub fn header(catalog: &Catalog, scope: &Scope) -> Option<String> {
    let n = match scope.collection {
        Some(id) => catalog.sums.collections.get(&id)?.old_arch,
        None => catalog.sums.all.old_arch,
    };
    (n > 0 && catalog.streams()).then(|| format!("{n} legacy growing or sealed segments remain"))
}

/// Findings about segments. Those of a partition below zero are known by name: they are looked up where there are any.
pub(super) fn faults(view: &View<'_>, out: &mut Vec<Fault>) {
    let c = view.catalog;
    let n = c.sums.all.old_arch;
    if n > 0 && c.streams() {
        out.push(Fault {
            rule: Rule::SegmentsOldArch,
            severity: Severity::Warn,
            subject: None,
            since: None,
            reason: format!("{n} growing or sealed segments were allocated before the upgrade to 2.6"),
            next: "the streaming node flushes them when it opens their channel; if it did, look at its log",
        });
    }
    for (id, collection) in c.illegal() {
        out.push(Fault {
            rule: Rule::SegmentPartition,
            severity: Severity::Bad,
            subject: Some(RowId::Segment(id)),
            since: None,
            reason: format!(
                "segment {id} of {} has rows and no partition",
                c.collection_name(collection)
            ),
            next: "only deletes may be about every partition: its record is damaged, nothing reads its rows",
        });
    }
}

impl Catalog {
    /// Segments whose partition is illegal.
    fn illegal(&self) -> impl Iterator<Item = (crate::engine::ids::SegmentId, CollectionId)> {
        self.illegal.iter().map(|(s, c, _)| (*s, *c))
    }
}
