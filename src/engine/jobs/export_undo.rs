//! Taking an export back: the bundle, then the pin, then the label. Everything lies below a prefix that is the job's own.

use super::Next;
use super::cx::JobCx;
use super::export_contents::at;
use super::export_record::tell;
use super::export_state::{State, Step};
use super::obstacles::{Kept, delete_all, kept_in_words, left, nothing_left, pin_left};
use super::restore_pin::release_pin;
use crate::engine::error::{Error, Result};
use crate::engine::format::pb::data::ExportSnapshotJobState;
use crate::engine::ids::{ObjectKey, UnixMs};

/// One step back.
pub(super) async fn step(cx: &JobCx, mut state: State, why: &Error) -> Result<Next<State>> {
    match state.step {
        Step::UndoObjects => {
            // Without a prefix nothing was written.
            if !state.uuid.is_empty() {
                match remove(cx, &state).await {
                    Ok((gone, kept)) => {
                        cx.note(format!("undo: {gone} objects removed"));
                        if let Some((what, e)) = kept_in_words(kept) {
                            left(cx, &mut state.left, &what, e)?;
                        }
                    }
                    Err(e) => {
                        let what = format!("bundle {}", state.uri_root());
                        left(cx, &mut state.left, &what, e)?;
                    }
                }
            }
            Ok(Next::Step(state.to(Step::UndoPin)))
        }
        Step::UndoPin => {
            let of = state.source();
            if let (Err(e), Some(pin)) = (release_pin(cx, of, state.pin).await, state.pin) {
                pin_left(cx, &mut state.left, (of, pin), e)?;
            }
            Ok(Next::Step(state.to(Step::UndoRecord)))
        }
        Step::UndoRecord => {
            // Without a start there was no record.
            if state.started != UnixMs::default() {
                let failed = ExportSnapshotJobState::ExportSnapshotJobFailed;
                if let Err(e) = tell(cx, &state, failed, &why.to_string()).await {
                    let what = format!("export job {}, still Executing", cx.job);
                    left(cx, &mut state.left, &what, e)?;
                }
            }
            nothing_left(&state.left)?;
            Ok(Next::Undone(state))
        }
        _ => Ok(Next::Step(state.to(Step::UndoObjects))),
    }
}

/// The commit mark first: nobody must find it beside half a bundle.
async fn remove(cx: &JobCx, state: &State) -> Result<(usize, Kept)> {
    let (beside, bundle) = (state.beside(cx)?, state.bundle(cx)?);
    let mark = bundle.metadata(state.of, state.snapshot);
    let was = beside.delete_object(&mark).await?;
    let root: ObjectKey = bundle.root().into();
    beside.give_up_unfinished(&root).await?;
    let found = at(cx, beside.read()).list(&root).await?;
    let (gone, kept) = delete_all(cx, Some(&beside), found.into_keys()).await?;
    Ok((gone + usize::from(was), kept))
}
