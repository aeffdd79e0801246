//! The read model: what the keys mean. Pure: no I/O, no clock (time is a parameter), no tokio.

pub mod catalog;
pub mod data;
pub mod gc;
pub mod holds;
mod ingest;
pub mod jobs;
pub mod keyindex;
pub mod names;
pub mod resource;
pub mod totals;
