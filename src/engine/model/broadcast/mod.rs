//! A broadcast as a value: one message to many channels, then callbacks (`spec/lifecycle.md` §1, chapter II). Pure; `engine::broadcast`
//! drives it.
//!
//! ```text
//! (locked) → PENDING → appended on every channel → each channel acked by its own callback → callback of all → TOMBSTONE → removed
//! ```

mod keys;
mod locks;
mod record;
mod standing;
mod task;
mod tombstones;
mod view;

pub use keys::{Resource, ResourceKeys};
pub use locks::{Locks, Turn};
pub use record::{Broadcast, Target};
pub use standing::{RETRIES, key_words, tone};
pub use task::{AckedAt, Copy, Task, TaskState};
pub use tombstones::{TombstoneLimits, Tombstones};
pub use view::{BroadcastsView, Shown, Waiting};
