//! What the benchmarks share: sizes, quantiles, memory, and the rows of the table that `tools/bench` prints at the end.
#![allow(dead_code, reason = "each benchmark takes its own part")]

pub mod cluster;
pub mod support;

use std::sync::Arc;
use std::time::Duration;

use falconer::engine::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use falconer::engine::model::facts::Tolerances;
use falconer::engine::profile::{
    Access, EtcdProfile, MetaProfile, Profile, REQUEST_TIMEOUT, Roots,
};

/// `full`, or `small` when `tools/bench --small` only tries whether everything runs.
pub fn sized(full: usize, small: usize) -> usize {
    if is_small() { small } else { full }
}

pub fn is_small() -> bool {
    std::env::var_os("FALCONER_BENCH_SMALL").is_some()
}

/// A line of the table: what was measured, the value, the goal if there is one, and whether it was met.
pub fn row(what: &str, value: &str, goal: Option<(&str, bool)>) {
    let (goal, met) = match goal {
        Some((goal, true)) => (goal, "met"),
        Some((goal, false)) => (goal, "missed"),
        None => ("", ""),
    };
    let small = if is_small() { " (small)" } else { "" };
    println!("| {what}{small} | {value} | {goal} | {met} |");
}

/// The value below which this share of `times` lies.
pub fn quantile(times: &mut [Duration], share: f64) -> Duration {
    assert!(!times.is_empty(), "nothing was measured");
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share).round() as usize]
}

pub fn median(times: &[Duration]) -> Duration {
    quantile(&mut times.to_vec(), 0.5)
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// `12.345 s` each.
pub fn list(times: &[Duration]) -> String {
    let texts: Vec<String> = times
        .iter()
        .map(|t| format!("{:.3}", t.as_secs_f64()))
        .collect();
    format!("{} s", texts.join(" "))
}

/// Resident memory of this process, bytes.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux's /proc");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("resident pages in statm");
    pages * page_size()
}

fn page_size() -> u64 {
    let out = std::process::Command::new("getconf")
        .arg("PAGESIZE")
        .output()
        .expect("getconf can be started");
    String::from_utf8_lossy(&out.stdout)
        .trim()
        .parse()
        .expect("a page size")
}

/// Processor time of this process, user and system.
pub fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux's /proc");
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    // Linux shows its ticks as hundredths of a second whatever the kernel counts in.
    Duration::from_millis(ticks * 10)
}

pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

pub fn entropy() -> Arc<dyn Entropy> {
    Arc::new(SystemEntropy)
}

/// An attach to a plain etcd, read only, without a bucket.
pub fn profile(endpoint: &str) -> Profile {
    Profile {
        name: "bench".to_owned(),
        meta: MetaProfile::Etcd(EtcdProfile {
            endpoints: vec![endpoint.to_owned()],
            user: None,
            tls: None,
            request_timeout: REQUEST_TIMEOUT,
            dial_timeout: Duration::from_secs(5),
        }),
        objects: None,
        roots: Roots::default(),
        access: Access::ReadOnly,
        gc: Tolerances::default(),
    }
}

/// As `#[tokio::main]` does, without its attribute on a benchmark's `main`.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
