//! What a step may touch: reads of everything, writes only through the executor.

use std::sync::Arc;

use crate::engine::clock::{Clock, Entropy};
use crate::engine::ids::JobId;
use crate::engine::meta::MetaRead;
use crate::engine::objects::ObjectRead;
use crate::engine::profile::Roots;

/// The world of one job.
#[derive(Clone)]
pub struct JobCx {
    /// The job.
    pub job: JobId,
    /// Reads of the metadata.
    pub meta: Arc<dyn MetaRead>,
    /// Reads of the objects.
    pub objects: ObjectRead,
    /// Key roots.
    pub roots: Roots,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Set when the job is asked to stop: a step looks at it between its own parts.
    pub cancel: tokio_util::sync::CancellationToken,
}
