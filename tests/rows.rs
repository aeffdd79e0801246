//! Rows: the files of a real Milvus 2.3.5 read back, our own files read by ourselves and by another reader, and what is done
//! with rows in memory.

#![allow(
    clippy::cast_possible_wrap,
    reason = "timestamps are stored as signed numbers"
)]

#[path = "rows/input.rs"]
mod input;
#[path = "support/lab.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod lab;
#[path = "rows/make.rs"]
mod make;
#[path = "rows/order.rs"]
mod order;
#[path = "rows/real.rs"]
mod real;
#[path = "rows/round.rs"]
mod round;
#[path = "rows/scan.rs"]
mod scan;
