//! Taking pins off a snapshot (`spec/snapshot.md` §3.8): one by its id, or all whose time is over. One that is gone already is a
//! success, as it is for Milvus.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::pins::{self, By, Held, TRIES};
use super::snapshot_drop::{collection_of, gone};
use super::snapshot_pin::shown;
use super::source::{find_snapshot, snapshot_at};
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::pb::data::SnapshotInfo;
use crate::engine::ids::{CollectionId, PinId, SnapshotId};
use crate::engine::meta::{Cond, Write};
use crate::engine::model::jobs::JobKind;
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// Pins taken off at once: they go in one transaction.
const AT_ONCE: usize = 48;

/// The kind.
pub struct UnpinSnapshot;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    snapshot: SnapshotId,
    of: CollectionId,
    /// `None` = all whose time is over.
    pin: Option<PinId>,
    /// Chosen in the first step.
    pins: BTreeSet<PinId>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Choose,
    Take,
    Look,
    Undone,
}

/// How much confirmation it takes, and what to say.
fn danger(held: &Held) -> (Danger, String) {
    match &held.by {
        By::Owner(note) => (
            Danger::Medium,
            format!(
                "{} pinned it at {} ({})",
                note.owner,
                note.at.utc(),
                note.actor
            ),
        ),
        By::Job(words, true) => (
            Danger::High,
            format!(
                "{words} is running and reads the snapshot: without the pin it can be dropped under it"
            ),
        ),
        By::Job(words, false) => (Danger::Medium, format!("{words} has ended and left it")),
        By::Unknown => (
            Danger::High,
            "nobody knows whose it is: Milvus records no owner, and no job of a known kind has it"
                .into(),
        ),
    }
}

fn without(info: &SnapshotInfo, gone: &BTreeSet<PinId>) -> SnapshotInfo {
    let mut after = info.clone();
    after.pin_ids.retain(|id| !gone.contains(&PinId(*id)));
    after
}

#[async_trait]
impl Job for UnpinSnapshot {
    const KIND: JobKind = JobKind::UnpinSnapshot;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let Intent::UnpinSnapshot { snapshot, pin } = intent else {
            return Err(Error::new(ErrorKind::Internal, "not an unpin"));
        };
        let (kv, info) = find_snapshot(&cx.meta, &cx.roots, *snapshot)
            .await?
            .ok_or_else(|| gone(*snapshot))?;
        let now = cx.clock.now();
        let held = pins::held(&cx.meta, &cx.roots, &info).await?;
        let meant: Vec<&Held> = match pin {
            Some(pin) => held.iter().filter(|h| h.pin.id == *pin).collect(),
            None => held.iter().filter(|h| !h.pin.is_active(now)).collect(),
        };
        let mut risk = Danger::Low;
        let mut warnings = Vec::new();
        for one in meant.iter().filter(|h| h.pin.is_active(now)) {
            let (found, words) = danger(one);
            risk = risk.max(found);
            warnings.push(words);
        }
        let ids: BTreeSet<PinId> = meant.iter().map(|h| h.pin.id).collect();
        let left = held
            .iter()
            .filter(|h| h.pin.is_active(now) && !ids.contains(&h.pin.id))
            .count();
        if meant.is_empty() {
            warnings.push(match pin {
                Some(pin) => format!("there is no pin {pin}: nothing will be done"),
                None => "no pin's time is over: nothing will be done".into(),
            });
        } else {
            warnings.push(match left {
                0 => "no pin is left then: the snapshot can be dropped".into(),
                n => format!("{n} pins are left then"),
            });
        }
        let what = match pin {
            Some(pin) => format!("pin {pin}"),
            None => "expired pins".into(),
        };
        Ok(Plan {
            intent: intent.clone(),
            title: format!("take {what} off snapshot {}", info.name),
            checks: vec![Check {
                name: "the pins can be read".into(),
                failed: None,
                detail: format!("{} on it, {} meant", held.len(), ids.len()),
            }],
            steps: meant.iter().map(|h| pins::words(h, now)).collect(),
            changes: vec![KeyChange {
                key: kv.key.text(),
                before: Some(shown(&info, None, now)),
                after: Some(shown(&without(&info, &ids), None, now)),
            }],
            objects: ObjectChange::default(),
            warnings,
            undo: "pin it again: under another id".into(),
            danger: risk,
            type_to_confirm: (risk == Danger::High).then(|| info.name.clone()),
            based_on: kv.mod_rev,
            rests_on: vec![(kv.key.text(), kv.mod_rev)],
            hash: String::new(),
        })
    }

    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::UnpinSnapshot { snapshot, .. } => {
                vec![Lock::shared(format!("snapshot:{snapshot}"))]
            }
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match (&plan.intent, collection_of(plan)) {
            (Intent::UnpinSnapshot { snapshot, pin }, Some(of)) => Ok(State {
                snapshot: *snapshot,
                of,
                pin: *pin,
                pins: BTreeSet::new(),
                step: Step::Choose,
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not an unpin")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        Some(state.of)
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        match state.step {
            Step::Choose => {
                let now = cx.clock.now();
                let there = there(cx, &state).await?;
                state.pins = if let Some(pin) = state.pin {
                    [pin].into()
                } else {
                    let over = there.iter().filter(|p| !p.is_active(now));
                    if over.clone().count() > AT_ONCE {
                        cx.note(format!("more than {AT_ONCE} are over: run it again"));
                    }
                    over.take(AT_ONCE).map(|p| p.id).collect()
                };
                state.step = Step::Take;
                Ok(Next::Step(state))
            }
            Step::Take => {
                let n = take(cx, &state).await?;
                cx.note(match n {
                    0 if state.pin.is_none() && state.pins.is_empty() => {
                        "no pin's time is over".to_owned()
                    }
                    0 => "it is not on the snapshot any more".to_owned(),
                    n => format!("{n} taken off"),
                });
                state.step = Step::Look;
                Ok(Next::Published(state))
            }
            Step::Look => {
                let there = there(cx, &state).await?;
                match there.iter().find(|p| state.pins.contains(&p.id)) {
                    None => Ok(Next::Verified(state)),
                    Some(pin) => Err(Error::new(
                        ErrorKind::Conflict,
                        format!("pin {} is on the snapshot again", pin.id),
                    )
                    .fix("the job that owns it renewed it: stop that job first")),
                }
            }
            Step::Undone => Err(Error::new(ErrorKind::Internal, "a step of an undone job")),
        }
    }

    /// The marker of the one transaction decides: found, the pins are off and that stays; taken here, they are not and never
    /// will be.
    async fn undo(&self, cx: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        let mine = Change {
            name: TAKE.into(),
            ..Change::default()
        };
        if state.step == Step::Take && cx.commit(mine).await?.before {
            state.step = Step::Look;
            return Ok(Next::Published(state));
        }
        state.step = Step::Undone;
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, done) = match state.step {
            Step::Choose => ("look which are meant", 0),
            Step::Take => ("take them out of the record", 1),
            Step::Look => ("read it back", 2),
            Step::Undone => ("taken back", 0),
        };
        (text.into(), done, 3)
    }
}

/// Name of the change that takes them off.
const TAKE: &str = "unpin";

/// The pins that are there; none when the snapshot is gone.
async fn there(cx: &JobCx, state: &State) -> Result<Vec<crate::engine::model::data::Pin>> {
    let found = snapshot_at(&cx.meta, &cx.roots, state.of, state.snapshot).await?;
    Ok(found.map(|(_, info)| pins::of(&info)).unwrap_or_default())
}

/// Takes the chosen ones off, with their notes; answers how many were there.
async fn take(cx: &JobCx, state: &State) -> Result<usize> {
    let mut tries = 0;
    loop {
        tries += 1;
        let Some((kv, info)) = snapshot_at(&cx.meta, &cx.roots, state.of, state.snapshot).await?
        else {
            return Ok(0);
        };
        let Some(value) = pins::take_off(&kv, &state.pins)? else {
            return Ok(0);
        };
        let is_meant = |id: &&i64| state.pins.contains(&PinId(**id));
        let found = info.pin_ids.iter().filter(is_meant).count();
        let note = |pin: &PinId| Write::Delete(cx.keys().pin_note(state.snapshot, *pin));
        let mut writes = vec![Write::put(kv.key.clone(), value)];
        writes.extend(state.pins.iter().map(note));
        let done = cx
            .commit(Change {
                name: TAKE.into(),
                conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
                writes,
                atomic: true,
            })
            .await;
        match done {
            Err(e) if e.kind() == ErrorKind::Conflict && tries < TRIES => {}
            done => return done.map(|_| found),
        }
    }
}
