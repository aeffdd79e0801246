//! The broadcaster, the acknowledgement by checkpoints and the checkpoints themselves: scenarios, every fault at every store operation,
//! a long random run against a model, and real servers.

mod support;

#[path = "broadcast/process.rs"]
mod process;
#[path = "broadcast/rules.rs"]
mod rules;
#[path = "broadcast/run.rs"]
mod run;
#[path = "broadcast/sweep.rs"]
mod sweep;
