//! Putting a pin on a snapshot (`spec/snapshot.md` §3.8): draw an id, write it into the snapshot's record, look. Whose it is stands
//! beside, written in the same transaction.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::cx::JobCx;
use super::pins::{self, TRIES};
use super::snapshot_drop::{collection_of, gone};
use super::snapshot_notes::{self, PinNote};
use super::source::{find_snapshot, snapshot_at};
use super::{Job, Lock, Next, PlanCx};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::pb::data::{SnapshotInfo, SnapshotState};
use crate::engine::ids::{CollectionId, PinId, SnapshotId, UnixMs};
use crate::engine::meta::{Cond, KeyValue, Write};
use crate::engine::model::data::Pin;
use crate::engine::model::jobs::JobKind;
use crate::engine::model::text;
use crate::engine::plan::execute::Change;
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};

/// Milvus's proxy allows 30 days, seconds.
const TTL_MAX: u64 = 2_592_000;
/// Bytes of an owner or a reason.
const WORDS: usize = 255;

/// The kind.
pub struct PinSnapshot;

/// What is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    snapshot: SnapshotId,
    of: CollectionId,
    ttl_secs: u64,
    owner: String,
    reason: String,
    /// Drawn in the first step, with the end of its time.
    drawn: Option<(PinId, Option<UnixMs>)>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Draw,
    Pin,
    Look,
    Undone,
}

fn said(owner: &str, reason: &str) -> std::result::Result<(), String> {
    if owner.trim().is_empty() {
        return Err("nobody is named: whoever wants to drop it must know whom to ask".into());
    }
    match [owner, reason]
        .iter()
        .find(|words| words.len() > WORDS || words.chars().any(char::is_control))
    {
        Some(words) => Err(format!(
            "{words:?} is longer than {WORDS} bytes or holds a control character"
        )),
        None => Ok(()),
    }
}

/// Why a record in this state takes no pin.
fn not_committed(info: &SnapshotInfo) -> Option<String> {
    match info.state() {
        SnapshotState::Committed | SnapshotState::Unknown => None,
        other => Some(format!("it is {}", other.as_str_name())),
    }
}

pub(super) fn shown(info: &SnapshotInfo, more: Option<&str>, now: UnixMs) -> String {
    let mut lines = vec![format!("name: {}", info.name)];
    let one = |pin: &Pin| format!("pin {}: {}", pin.id, pin.left(now));
    lines.extend(pins::of(info).iter().map(one));
    lines.extend(more.map(str::to_owned));
    lines.join("\n")
}

#[async_trait]
impl Job for PinSnapshot {
    const KIND: JobKind = JobKind::PinSnapshot;
    type State = State;

    async fn plan(&self, cx: &PlanCx, intent: &Intent) -> Result<Plan> {
        let Intent::PinSnapshot {
            snapshot,
            ttl_secs,
            owner,
            reason,
        } = intent
        else {
            return Err(Error::new(ErrorKind::Internal, "not a pin"));
        };
        let (kv, info) = find_snapshot(&cx.meta, &cx.roots, *snapshot)
            .await?
            .ok_or_else(|| gone(*snapshot))?;
        let now = cx.clock.now();
        let held = pins::held(&cx.meta, &cx.roots, &info).await?;
        let time = match ttl_secs {
            0 => "until it is taken off".to_owned(),
            secs => format!("for {}", text::age(secs.saturating_mul(1000))),
        };
        let check = |name: &str, failed: Option<String>, detail: String| Check {
            name: name.into(),
            failed,
            detail,
        };
        let already = |h| format!("already on it: {}", pins::words(h, now));
        let mut warnings: Vec<String> = held.iter().map(already).collect();
        if *ttl_secs == 0 {
            warnings.push(
                "it never ends by itself: what the snapshot keeps is kept until somebody takes it off"
                    .into(),
            );
        }
        let added = format!("pin (new id): {time}, {owner}");
        Ok(Plan {
            intent: intent.clone(),
            title: format!("pin snapshot {} {time}", info.name),
            checks: vec![
                check(
                    "the snapshot is committed",
                    not_committed(&info),
                    info.state().as_str_name().to_owned(),
                ),
                check(
                    "the time is within its limit",
                    (*ttl_secs > TTL_MAX).then(|| {
                        format!("{ttl_secs} s; Milvus allows {TTL_MAX}, 30 days, or 0 for ever")
                    }),
                    time,
                ),
                check(
                    "it says whose it is",
                    said(owner, reason).err(),
                    owner.clone(),
                ),
            ],
            steps: vec![
                "draw an id".into(),
                "write it into the snapshot's record, and whose it is beside it".into(),
                "read it back".into(),
            ],
            changes: vec![KeyChange {
                key: kv.key.text(),
                before: Some(shown(&info, None, now)),
                after: Some(shown(&info, Some(&added), now)),
            }],
            objects: ObjectChange::default(),
            warnings,
            undo: "take the pin off".into(),
            danger: Danger::Low,
            type_to_confirm: None,
            based_on: kv.mod_rev,
            rests_on: vec![(kv.key.text(), kv.mod_rev)],
            hash: String::new(),
        })
    }

    /// A drop has its snapshot alone; restores, pins and others share it.
    fn locks(&self, plan: &Plan) -> Vec<Lock> {
        match &plan.intent {
            Intent::PinSnapshot { snapshot, .. } => {
                vec![Lock::shared(format!("snapshot:{snapshot}"))]
            }
            _ => Vec::new(),
        }
    }

    fn begin(&self, plan: &Plan) -> Result<State> {
        match (&plan.intent, collection_of(plan)) {
            (
                Intent::PinSnapshot {
                    snapshot,
                    ttl_secs,
                    owner,
                    reason,
                },
                Some(of),
            ) => Ok(State {
                snapshot: *snapshot,
                of,
                ttl_secs: *ttl_secs,
                owner: owner.clone(),
                reason: reason.clone(),
                drawn: None,
                step: Step::Draw,
            }),
            _ => Err(Error::new(ErrorKind::Internal, "not a pin")),
        }
    }

    fn collection(&self, state: &State) -> Option<CollectionId> {
        Some(state.of)
    }

    async fn step(&self, cx: &JobCx, mut state: State) -> Result<Next<State>> {
        match state.step {
            Step::Draw => {
                let (_, info) = found(cx, &state).await?;
                let mut id = pins::draw(&*cx.entropy);
                while info.pin_ids.contains(&id.0) {
                    id = pins::draw(&*cx.entropy);
                }
                let ms = i64::try_from(state.ttl_secs.saturating_mul(1000)).unwrap_or(i64::MAX);
                let until = UnixMs(cx.clock.now().0.saturating_add(ms));
                state.drawn = Some((id, (state.ttl_secs > 0).then_some(until)));
                state.step = Step::Pin;
                Ok(Next::Step(state))
            }
            Step::Pin => {
                pin(cx, &state).await?;
                state.step = Step::Look;
                Ok(Next::Published(state))
            }
            Step::Look => {
                let (id, until) = state.drawn()?;
                let (_, info) = found(cx, &state).await?;
                let there = pins::of(&info).into_iter().find(|p| p.id == id);
                if there.is_some_and(|p| p.expires == until) {
                    let left = until.map_or("never expires".into(), UnixMs::utc);
                    cx.note(format!("pin {id}: {left}"));
                    return Ok(Next::Verified(state));
                }
                Err(Error::new(
                    ErrorKind::Conflict,
                    format!("pin {id} is not on snapshot {} any more", info.name),
                )
                .fix("somebody took it off: pin it again if it is still needed"))
            }
            Step::Undone => Err(Error::new(ErrorKind::Internal, "a step of an undone job")),
        }
    }

    /// The marker of the pin's own transaction decides: taken here without a write, it refuses that transaction should it still
    /// be on its way; found here, the pin has been put on, and is taken off.
    async fn undo(&self, cx: &JobCx, mut state: State, _: &Error) -> Result<Next<State>> {
        if let Some((id, _)) = state.drawn
            && cx.commit(named(PIN)).await?.before
        {
            off(cx, &state, id).await?;
        }
        state.step = Step::Undone;
        Ok(Next::Undone(state))
    }

    fn describe(&self, state: &State) -> (String, u32, u32) {
        let (text, done) = match state.step {
            Step::Draw => ("draw an id", 0),
            Step::Pin => ("write it into the record", 1),
            Step::Look => ("read it back", 2),
            Step::Undone => ("taken back", 0),
        };
        (text.into(), done, 3)
    }
}

/// Name of the change that puts it on.
const PIN: &str = "pin";

fn named(name: &str) -> Change {
    Change {
        name: name.into(),
        ..Change::default()
    }
}

impl State {
    fn drawn(&self) -> Result<(PinId, Option<UnixMs>)> {
        self.drawn
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no pin was drawn"))
    }
}

/// The record, which must be one that takes pins.
async fn found(cx: &JobCx, state: &State) -> Result<(KeyValue, SnapshotInfo)> {
    let (kv, info) = snapshot_at(&cx.meta, &cx.roots, state.of, state.snapshot)
        .await?
        .ok_or_else(|| gone(state.snapshot))?;
    match not_committed(&info) {
        None => Ok((kv, info)),
        Some(why) => Err(Error::new(
            ErrorKind::Conflict,
            format!("snapshot {} cannot be pinned: {why}", info.name),
        )
        .fix("choose another snapshot")),
    }
}

async fn pin(cx: &JobCx, state: &State) -> Result<()> {
    let (id, until) = state.drawn()?;
    let note = PinNote {
        owner: state.owner.clone(),
        reason: state.reason.clone(),
        at: cx.clock.now(),
        actor: cx.actor().to_owned(),
        job: cx.job,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let (kv, _) = found(cx, state).await?;
        let put = cx
            .commit(Change {
                name: PIN.into(),
                conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
                writes: vec![
                    Write::put(kv.key.clone(), pins::put_on(&kv, id, until)?),
                    snapshot_notes::pinned(cx, state.snapshot, id, &note)?,
                ],
                atomic: true,
            })
            .await;
        match put {
            // Another pin came or went: look again.
            Err(e) if e.kind() == ErrorKind::Conflict && tries < TRIES => {}
            done => return done.map(|_| ()),
        }
    }
}

/// Takes it off again, with its note.
async fn off(cx: &JobCx, state: &State, id: PinId) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        let Some((kv, _)) = snapshot_at(&cx.meta, &cx.roots, state.of, state.snapshot).await?
        else {
            return Ok(());
        };
        let Some(value) = pins::take_off(&kv, &[id].into())? else {
            return Ok(());
        };
        let gone = cx
            .commit(Change {
                name: format!("off-{}", kv.mod_rev),
                conds: vec![Cond::At(kv.key.clone(), kv.mod_rev)],
                writes: vec![
                    Write::put(kv.key, value),
                    Write::Delete(cx.keys().pin_note(state.snapshot, id)),
                ],
                atomic: true,
            })
            .await;
        match gone {
            Err(e) if e.kind() == ErrorKind::Conflict && tries < TRIES => {}
            done => return done.map(|_| ()),
        }
    }
}
