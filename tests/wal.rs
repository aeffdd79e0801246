//! The write-ahead log: its laws on memory, on files and on real servers, and every fault at every store operation.

mod support;

#[path = "wal/laws.rs"]
mod laws;
#[path = "wal/sweep.rs"]
mod sweep;

use std::sync::Arc;

use falconer::engine::clock::{Clock, SeededEntropy};
use falconer::engine::format::message::Draft;
use falconer::engine::format::pb::messages::{FlushMessageHeader, MessageType};
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaWrite, MetaWriter};
use falconer::engine::objects::ObjectWrite;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::profile::Roots;

pub(crate) const PCHANNEL: &str = "by-dev-rootcoord-dml_0";
pub(crate) const VCHANNEL: &str = "by-dev-rootcoord-dml_0_7v0";

/// A process that owns the root.
pub(crate) async fn owner(
    meta: Arc<dyn MetaWrite>,
    objects: ObjectWrite,
    clock: Arc<dyn Clock>,
) -> falconer::engine::error::Result<Arc<Executor>> {
    let executor = Executor::new(Parts {
        meta: MetaWriter::new(meta, &Scope::root(clock.clone(), "test")),
        objects,
        roots: Roots::default(),
        clock,
        entropy: Arc::new(SeededEntropy::new(7)),
        actor: "tester pid 7".into(),
        embedded: true,
    });
    executor.fence().acquire().await?;
    Ok(executor)
}

/// A message that is told apart by its body.
pub(crate) fn draft(body: &str) -> Draft {
    let header = FlushMessageHeader {
        collection_id: 7,
        partition_id: 8,
        segment_id: 9,
    };
    Draft::new(MessageType::Flush, &header, body.as_bytes().to_vec()).on(&VCHANNEL.into())
}
