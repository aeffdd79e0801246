//! The engine: everything that knows a cluster, and nothing that knows a terminal.

pub mod clock;
pub mod error;
pub mod format;
pub mod ids;
pub mod meta;
pub mod model;
pub mod objects;
pub mod profile;
