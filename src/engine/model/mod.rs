//! The read model: what the keys mean. Pure: no I/O, no clock (time is a parameter), no tokio.

pub mod blocked;
pub mod broadcast;
pub mod catalog;
pub mod checkpoint;
pub mod columns;
pub mod data;
pub mod detail;
pub mod facts;
pub mod find;
pub mod gc;
pub mod health;
pub mod holds;
mod ingest;
pub mod jobs;
pub mod keyindex;
pub mod log;
mod lookup;
pub mod names;
pub mod overview;
pub mod references;
pub mod related;
pub mod resource;
pub mod rows;
pub mod text;
pub mod totals;
pub mod view;
