//! How much room a store has left, where it can tell.

use super::{Family, ObjectRead};

impl ObjectRead {
    /// Bytes that this process can still write; `None` where the store does not say: every one but a folder.
    pub fn free_space(&self) -> Option<u64> {
        if self.place.family != Family::Local {
            return None;
        }
        free(&self.place.bucket)
    }
}

#[cfg(unix)]
fn free(folder: &str) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(not(unix))]
fn free(_folder: &str) -> Option<u64> {
    None
}
