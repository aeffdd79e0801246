//! Errors that only an operator can clear: a right, a full store, a source that cannot be read. On its way forward a job keeps what it
//! has and waits for him; on its way back it goes on with the rest, and says in the end what stays.

use futures::FutureExt;
use futures::stream::{self, StreamExt};

use super::cx::{Beside, JobCx, cut};
use super::drive::again;
use super::restore_pin::{HeldPin, Pinned, set_pin};
use super::restore_plan::some_of;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{ObjectKey, UnixMs};

/// Objects deleted at once.
const DELETES: usize = 16;

/// Objects that could not be deleted, each with the reason.
pub(super) type Kept = Vec<(ObjectKey, Error)>;

/// Whether the runner may take the step again by itself: what passes is tried again, and a lost fence is waited for.
pub(super) fn passes(cx: &JobCx, e: &Error) -> bool {
    again(e) || cx.bears(e) || matches!(e.kind(), ErrorKind::Fenced | ErrorKind::Cancelled)
}

/// Keeps everything, the snapshot pinned, until the operator says *retry* or *cancel*, or the time is over. Nobody renews the pin then: it
/// is set to the end at once, so that the snapshot is safe also while no Falconer runs. Answers what is said to the operator, and the end.
pub(super) async fn stuck(
    cx: &JobCx,
    of: Pinned,
    pin: &mut Option<HeldPin>,
    why: &Error,
) -> Result<(Error, UnixMs)> {
    let until = HeldPin::until_stuck(cx.clock.now());
    if let Some(pin) = pin {
        let longer = HeldPin { until, ..*pin };
        set_pin(cx, of, longer).await?;
        *pin = longer;
    }
    let copies = cx.files().read();
    let what = match copies.failing {
        0 | 1 => String::new(),
        n => format!("{n} files would not copy; the first: "),
    };
    let why = Error::new(why.kind(), format!("{what}{why}"));
    cx.note(format!("stuck until {}: {why}", until.utc()));
    Ok((why, until))
}

/// Keeps in mind what could not be taken back, so that the other steps are taken all the same. What may pass is the runner's
/// business.
pub(super) fn left(cx: &JobCx, all: &mut Vec<String>, what: &str, e: Error) -> Result<()> {
    if passes(cx, &e) {
        return Err(e);
    }
    let text = cut(format!("{what}: {e}"));
    cx.note(format!("undo: left behind: {text}"));
    all.push(text);
    Ok(())
}

/// As [`left`], of the pin.
pub(super) fn pin_left(
    cx: &JobCx,
    all: &mut Vec<String>,
    (of, pin): (Pinned, HeldPin),
    e: Error,
) -> Result<()> {
    let what = format!(
        "pin {} of {of}, which ends by itself at {}",
        pin.id,
        pin.until.utc()
    );
    left(cx, all, &what, e)
}

/// The end of an undo: an error that names what stays.
pub(super) fn nothing_left(all: &[String]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("left behind: {}", all.join("; ")),
    )
    .fix("clear the cause, then remove what is named here"))
}

/// Deletes these objects of the cluster's own store, or of the one `beside` it. Answers how many went, and what did not.
pub(super) async fn delete_all(
    cx: &JobCx,
    beside: Option<&Beside>,
    keys: impl IntoIterator<Item = ObjectKey>,
) -> Result<(usize, Kept)> {
    let mut deletes = stream::iter(keys)
        .map(|key| {
            async move {
                let done = match beside {
                    None => cx.delete_object(&key).await,
                    Some(beside) => beside.delete_object(&key).await,
                };
                (done, key)
            }
            .boxed()
        })
        .buffer_unordered(DELETES);
    let (mut gone, mut kept) = (0, Vec::new());
    while let Some((done, key)) = deletes.next().await {
        match done {
            Ok(there) => gone += usize::from(there),
            Err(e) if passes(cx, &e) => return Err(e),
            Err(e) => kept.push((key, e)),
        }
    }
    Ok((gone, kept))
}

/// Which objects stay, and why the first one does.
pub(super) fn kept_in_words(kept: Kept) -> Option<(String, Error)> {
    let names: Vec<&str> = kept.iter().map(|(key, _)| key.0.as_str()).collect();
    let what = format!("{} objects: {}", names.len(), some_of(&names));
    kept.into_iter().next().map(|(_, e)| (what, e))
}
