//! Falconer: a terminal console with an embedded engine for Milvus-format clusters.

pub mod engine;
