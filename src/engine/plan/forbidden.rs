//! Keys of a Milvus root that are never written, whoever asks: what stands there is only shown, or deleted.

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Key, ParsedKey, Roots};
use crate::engine::meta::Write;

/// `Internal` for a write that a Milvus would take for something that does not exist: a session (a live coordinator or node), or a
/// watch key of the channel manager that 2.6 no longer has (`spec/lifecycle.md` I2.4).
pub(super) fn check(roots: &Roots, writes: &[Write]) -> Result<()> {
    let bad = writes.iter().find_map(|write| match write {
        Write::Put { key, .. } => match Key::parse(roots, &key.0) {
            ParsedKey::Known(Key::Session(..)) => Some((key, "a session")),
            ParsedKey::Known(Key::ChannelWatch(..)) => Some((key, "a watch key")),
            _ => None,
        },
        Write::Delete(_) => None,
    });
    match bad {
        None => Ok(()),
        Some((key, what)) => Err(Error::new(
            ErrorKind::Internal,
            format!("{key}: {what} is never written by Falconer"),
        )),
    }
}
