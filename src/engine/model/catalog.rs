//! The live catalog: persistent maps joined from keys, published as an immutable snapshot.

use crate::engine::ids::MetaRev;

/// Everything known of a cluster at one revision.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The revision it stands at.
    pub rev: MetaRev,
}
