//! Earlier versions of what is in use: objects without a record of their own, found by listing and judged one by one
//! (`spec/snapshot.md` §6.1: text index, JSON index, JSON stats and analyze files).
//!
//! A tree of an older data format is never taken as a whole (defect D65): each file in it is asked about with its own segment.

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::gc::{Pass, State};
use super::gc_collect::{all_hold, same_snapshots};
use super::gc_scan::Scan;
use super::quarantine::{Aside, all_aside};
use super::tickets::{self, Leave};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::paths::{ObjPath, Owner};
use crate::engine::ids::{ObjectKey, TaskId};
use crate::engine::meta::Cond;
use crate::engine::model::gc::{self, Rule, Verdict, is_fresh};
use crate::engine::model::orphans::Tally;
use crate::engine::model::quarantine::Yard;
use crate::engine::model::references::mark;

/// Objects deleted, and objects listed, between two journal entries.
const BATCH: (u64, u64) = (256, 100_000);

/// Where a sweep stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The rule whose prefix is listed; the first when absent.
    pub rule: Option<Rule>,
    /// Everything up to this key has been looked at.
    pub after: Option<ObjectKey>,
}

/// What a part of a sweep came to.
pub(super) enum Swept {
    /// Nothing is left.
    All,
    /// Go on.
    Some,
    /// Something moved.
    Moved,
}

/// Rules that begin at an object.
fn rules() -> impl Iterator<Item = Rule> {
    Rule::ALL.into_iter().filter(|rule| rule.prefix().is_some())
}

/// Whether anything could be superseded at all: else nothing needs to be listed.
fn concerns(scan: &Scan, rule: Rule) -> bool {
    let world = &scan.world;
    match rule {
        Rule::AnalyzeFile => !world.analyze.is_empty(),
        _ => world.segments.values().any(|s| !s.field_indexes.is_empty()),
    }
}

/// Takes the next part of the sweep.
pub(super) async fn sweep(cx: &JobCx, pass: &Pass, state: &mut State) -> Result<Swept> {
    let place = state.objects.clone().unwrap_or_default();
    let todo = rules()
        .skip_while(|rule| place.rule.is_some_and(|at| *rule != at))
        .filter(|rule| pass.filter.wants(*rule) && concerns(&pass.scan, *rule));
    for rule in todo {
        let after = place.after.clone().filter(|_| place.rule == Some(rule));
        let mut at = Place {
            rule: Some(rule),
            after,
        };
        let part = one(cx, pass, state, rule, &mut at).await;
        state.objects = Some(at);
        match part? {
            Swept::All => {}
            other => return Ok(other),
        }
    }
    Ok(Swept::All)
}

async fn one(
    cx: &JobCx,
    pass: &Pass,
    state: &mut State,
    rule: Rule,
    at: &mut Place,
) -> Result<Swept> {
    let root = cx.objects.root();
    let Some(prefix) = rule.prefix() else {
        return Ok(Swept::All);
    };
    let folder = [root.trim_end_matches('/'), prefix]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    let began = cx.clock.now();
    let (mut gone, mut seen) = (0, 0);
    let mut listed = cx.objects.list(&ObjectKey(folder), at.after.as_ref());
    while let Some(object) = listed.try_next().await? {
        cx.check_cancel()?;
        if gone >= BATCH.0 || seen >= BATCH.1 || !is_fresh(began, cx.clock.now()) {
            return Ok(Swept::Some);
        }
        seen += 1;
        let path = ObjPath::parse(root, &object.key.0);
        let verdict = gc::object(&pass.scan.world, &path, &object.key, object.modified);
        if verdict == (Verdict::Collect { rule })
            && let Some(path) = path.known()
        {
            let owner = path.owner();
            if pass.filter.collection.is_none() || owner.collection == pass.filter.collection {
                let Some(conds) = judged_by(cx, &pass.scan, &path, &owner) else {
                    return Ok(Swept::Moved);
                };
                let Some(collection) = owner.collection else {
                    continue;
                };
                if !all_hold(cx, &conds).await?
                    || !same_snapshots(cx, &pass.scan, collection).await?
                {
                    return Ok(Swept::Moved);
                }
                let leave = tickets::leave(cx, pass.filter.collection, Some(collection)).await?;
                match leave {
                    Leave::Go => {}
                    // What was read before the pause is as old as the pause.
                    Leave::Waited => return Ok(Swept::Moved),
                    Leave::Not(ticket) => {
                        cx.note(format!("kept: {ticket}"));
                        at.after = Some(object.key);
                        continue;
                    }
                }
                cx.paced(0).await?;
                let gone_now = if pass.filter.quarantine {
                    let yard = Yard::of(root);
                    // One index file an object: superseded files are few.
                    let name = format!("{}-{:016x}", rule.name(), mark(&object.key));
                    let keys = [object.key.clone()];
                    let now = cx.clock.now();
                    match all_aside(cx, &yard, &name, rule.name(), &keys, now).await? {
                        Aside::All(moved) => Ok(moved.objects > 0),
                        Aside::Stays(why) => Err(Error::new(ErrorKind::Conflict, why)),
                        Aside::TooOld => return Ok(Swept::Moved),
                    }
                } else {
                    cx.delete_object(&object.key).await
                };
                match gone_now {
                    Ok(there) => {
                        gone += 1;
                        let mut tally = Tally::default();
                        if there {
                            tally.add(object.size);
                            cx.progress().file(object.size);
                        }
                        state.count(rule, Some(collection), tally);
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::Fenced | ErrorKind::Cancelled) => {
                        return Err(e);
                    }
                    Err(e) => {
                        state.failed += 1;
                        cx.note(format!("kept: {}, because {e}", object.key));
                    }
                }
            }
        }
        at.after = Some(object.key);
    }
    Ok(Swept::All)
}

/// The record that names the later version, as it was when it was judged.
fn judged_by(cx: &JobCx, scan: &Scan, path: &ObjPath, owner: &Owner) -> Option<Vec<Cond>> {
    let at = |(key, rev): (Key, _)| vec![Cond::At(key.to_key(&cx.roots), rev)];
    match path {
        ObjPath::AnalyzeCentroids(task, ..) | ObjPath::AnalyzeOffsets(task, ..) => {
            scan.analyze_task(TaskId(task.0)).map(at)
        }
        _ => scan.segment(owner.segment?).map(at),
    }
}
