//! THE write path. Nothing else in the program holds a [`MetaWrite`](crate::engine::meta::MetaWrite)
//! or an [`ObjectWrite`](crate::engine::objects::ObjectWrite).

use crate::engine::ids::MetaRev;
use crate::engine::meta::{Cond, Write};

/// One logical change of a job's step.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Unique within the job: the step marker's name. The same name with the same job is the same change.
    pub name: String,
    /// What must hold, in the first chunk; later chunks rest on the marker of the one before.
    pub conds: Vec<Cond>,
    /// What is written, in order.
    pub writes: Vec<Write>,
    /// Must fit one transaction; `Limit` if it cannot.
    pub atomic: bool,
}

/// A change that has happened, now or before a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Revision of its last chunk.
    pub rev: MetaRev,
    /// It had happened before: the marker was there.
    pub before: bool,
}

/// Consecutive ids, taken from the cluster's own allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First.
    pub first: i64,
    /// How many.
    pub count: u32,
}
