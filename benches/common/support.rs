//! The parts of the tests' support that benchmarks use: the captured cluster and real servers.

#[path = "../../tests/support/certs.rs"]
pub mod certs;
#[path = "../../tests/support/lab.rs"]
pub mod lab;
#[path = "../../tests/support/process.rs"]
pub mod process;
#[path = "../../tests/support/s3.rs"]
pub mod s3;
#[path = "../../tests/support/servers.rs"]
pub mod servers;
