//! The engine: everything that knows a cluster, and nothing that knows a terminal.

pub mod clock;
pub mod doctor;
pub mod error;
pub mod format;
pub mod handle;
pub mod ids;
pub mod jobs;
pub mod meta;
pub mod model;
pub mod objects;
pub mod plan;
pub mod profile;
