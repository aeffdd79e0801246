//! What the integration tests share: the captured cluster in `tests/lab/` and real servers on loopback.
//!
//! A test binary says `mod support;` and uses the parts it needs.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod bundles;
pub mod certs;
pub mod faults;
pub mod lab;
pub mod mem;
pub mod place;
pub mod process;
pub mod proxy;
pub mod s3;
pub mod same;
pub mod servers;
pub mod snapshots;
pub mod sound;
pub mod storage;
pub mod stubborn;
