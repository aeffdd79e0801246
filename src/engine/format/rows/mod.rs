//! Rows: what insert logs, delta logs and primary-key statistics hold (`spec/layout.md` §7.4, §7.5), as columns.
//!
//! A [`Schema`] is a collection's fields with the two system fields; [`Rows`] are columns of it, of equal length. Everything
//! here is pure and works on one batch at a time: who reads a segment asks for the next batch, who merges holds one batch of
//! each input.

pub mod bloom;
pub mod delta;
pub mod input;
pub mod insert;
pub mod json;
pub mod order;
mod schema;
pub mod stats;
mod table;
pub mod write;

pub use super::parquet::{Blobs, Column, Limits, Values};
pub use schema::{Field, ROW_ID, Schema, Shape, TIMESTAMP};
pub use table::{Deletes, PrimaryKey, Rows};
