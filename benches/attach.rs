//! Attaching to a large cluster in real etcd: from [`Engine::open`] to [`Conn::Live`], against a bare paginated range over the
//! same keys with the same client library, whose answers are counted and thrown away. Then the memory that a segment takes.
//!
//! ```text
//! tools/bench attach
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and the hand that fills a cluster writes to it"
)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::cluster::Cluster;
use common::support::lab::LabKey;
use common::support::servers::{Etcd, EtcdVersion};
use common::{cpu, list, median, resident, row, runtime, sized};
use etcd_client::{Client, ConnectOptions, GetOptions};
use falconer::engine::Engine;
use falconer::engine::format::keys::Roots;
use falconer::engine::handle::{Conn, Handle};
use falconer::engine::ids::{MetaKey, MetaRev};
use falconer::engine::meta::{DEFAULT_PAGE, Event, KeyValue};
use falconer::engine::model::catalog::Catalog;

/// Repetitions of each side.
const REPEAT: usize = 5;
/// Segments put into etcd at once.
const LOADED_AT_ONCE: usize = 100;

/// Names an endpoint for the child process that measures memory.
const CHILD: &str = "FALCONER_BENCH_ATTACH_CHILD";

fn main() {
    match std::env::var(CHILD).ok().as_deref() {
        Some("catalog") => return memory_of_the_catalog(),
        Some(endpoint) => return memory_of_an_attach(endpoint),
        None => {}
    }
    for version in EtcdVersion::ALL {
        measure(version);
    }
    let (before, after, segments) = in_a_child("catalog");
    row(
        "memory of the catalog alone, a segment",
        &per_segment(after - before, segments),
        None,
    );
}

fn segments() -> usize {
    sized(100_000, 2_000)
}

fn measure(version: EtcdVersion) {
    let name = match version {
        EtcdVersion::V34 => "etcd 3.4",
        EtcdVersion::V35 => "etcd 3.5",
    };
    let etcd = Etcd::start(version);
    let endpoint = etcd.endpoint();
    let runtime = runtime();
    let loading = Instant::now();
    let keys = runtime.block_on(load(&etcd, &Cluster::read()));
    println!(
        "{name}: {} segments, {keys} keys loaded in {:.1} s",
        segments(),
        loading.elapsed().as_secs_f64()
    );

    let (mut bare, mut engine, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut spent = Duration::ZERO;
    for _ in 0..REPEAT {
        let (there, bytes, took) = runtime.block_on(bare_range(&endpoint));
        assert_eq!(there, keys, "the bare range sees every key");
        if bare.is_empty() {
            println!("{name}: {there} keys, {bytes} bytes of keys and values");
        }
        bare.push(took);
        let before = cpu();
        let (handle, took) = runtime.block_on(attach(&endpoint));
        spent += cpu().saturating_sub(before);
        check(&handle, keys);
        engine.push(took);
        ratios.push(took.as_secs_f64() / bare[bare.len() - 1].as_secs_f64());
        runtime.block_on(ended(handle));
    }
    println!("{name}: bare range {}", list(&bare));
    println!("{name}: attach     {}", list(&engine));
    println!(
        "{name}: attach uses {:.3} s of processor time each",
        spent.as_secs_f64() / REPEAT as f64
    );
    let ratio = median(&engine).as_secs_f64() / median(&bare).as_secs_f64();
    ratios.sort_by(f64::total_cmp);
    row(
        &format!(
            "attach to {} segments ({keys} keys) in {name} ÷ bare range",
            segments()
        ),
        &format!(
            "{ratio:.2} ({:.2} s ÷ {:.2} s; pairs {:.2} to {:.2})",
            median(&engine).as_secs_f64(),
            median(&bare).as_secs_f64(),
            ratios[0],
            ratios[ratios.len() - 1],
        ),
        Some(("≤ 1.3", ratio <= 1.3)),
    );
    let (before, after, segments) = in_a_child(&endpoint);
    row(
        &format!("memory of a live attach in {name}, a segment"),
        &per_segment(after - before, segments),
        None,
    );
}

fn per_segment(grown: u64, segments: u64) -> String {
    format!(
        "{:.2} KiB ({} MiB for {segments})",
        grown as f64 / segments as f64 / 1024.0,
        grown >> 20
    )
}

/// Fills a server with the captured keyspace and the copies. Answers how many keys it holds under the root.
async fn load(etcd: &Etcd, cluster: &Cluster) -> usize {
    let base = Cluster::base();
    etcd.load(&base).await;
    let mut keys = base.len();
    let all: Vec<usize> = (0..segments()).collect();
    for some in all.chunks(LOADED_AT_ONCE) {
        let batch: Vec<LabKey> = some
            .iter()
            .flat_map(|n| cluster.segment(*n, true))
            .collect();
        keys += batch.len();
        etcd.load(&batch).await;
    }
    keys
}

/// Pages as large as the engine's, one after the other, nothing kept: the number of keys, their bytes, and the time.
async fn bare_range(endpoint: &str) -> (usize, usize, Duration) {
    let start = Instant::now();
    let client = Client::connect([endpoint], Some(ConnectOptions::new()))
        .await
        .expect("a client");
    let mut kv = client.kv_client().max_decoding_message_size(1 << 30);
    let (mut from, end) = (b"by-dev/".to_vec(), b"by-dev0".to_vec());
    let (mut keys, mut bytes) = (0, 0);
    loop {
        let options = GetOptions::new()
            .with_range(end.clone())
            .with_limit(i64::try_from(DEFAULT_PAGE).expect("a small number"));
        let answer = kv.get(from, Some(options)).await.expect("a page");
        keys += answer.kvs().len();
        bytes += answer
            .kvs()
            .iter()
            .map(|kv| kv.key().len() + kv.value().len())
            .sum::<usize>();
        match answer.kvs().last() {
            Some(last) if answer.more() => {
                from = last.key().to_vec();
                from.push(0);
            }
            _ => break,
        }
    }
    (keys, bytes, start.elapsed())
}

async fn attach(endpoint: &str) -> (Handle, Duration) {
    let profile = common::profile(endpoint);
    let start = Instant::now();
    let handle = Engine::open(profile, common::clock(), common::entropy())
        .await
        .expect("an engine");
    let mut conn = handle.conn.clone();
    conn.wait_for(|c| matches!(c, Conn::Live { .. }))
        .await
        .expect("the engine lives");
    (handle, start.elapsed())
}

fn check(handle: &Handle, keys: usize) {
    let catalog = handle.catalog.borrow();
    assert_eq!(catalog.keys.len(), keys, "the catalog knows every key");
    assert!(catalog.segment_count() > segments());
    assert!(catalog.undecodable.is_empty());
}

/// Lets go, and waits until the engine's task has let go too.
async fn ended(handle: Handle) {
    let mut conn = handle.conn.clone();
    drop(handle);
    while conn.changed().await.is_ok() {}
}

// ---- memory, each time in a process of its own --------------------------------------------------------------------

/// Resident bytes before and after, and the number of segments, as a child process says them.
fn in_a_child(what: &str) -> (u64, u64, u64) {
    let exe = std::env::current_exe().expect("this program");
    let out = Command::new(exe)
        .env(CHILD, what)
        .output()
        .expect("a child process");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "the child failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let mut numbers = text
        .split_whitespace()
        .map(|n| n.parse::<u64>().expect("a number"));
    let mut next = || numbers.next().expect("three numbers");
    (next(), next(), next())
}

fn memory_of_an_attach(endpoint: &str) {
    let runtime = runtime();
    let before = resident();
    let (handle, _) = runtime.block_on(attach(endpoint));
    let segments = handle.catalog.borrow().segment_count();
    println!("{before} {} {segments}", resident());
}

/// The same keys through [`Catalog::apply`], without a connection, a reflector or pages. Half a dozen keys are in flight at a
/// time, so that what was allocated on the way does not count.
fn memory_of_the_catalog() {
    let cluster = Cluster::read();
    let roots = Roots::default();
    let mut catalog = Catalog::default();
    let mut rev = 0;
    let before = resident();
    let mut take = |keys: Vec<LabKey>| {
        let events: Vec<Event> = keys
            .into_iter()
            .map(|k| {
                rev += 1;
                Event::Put(KeyValue {
                    key: MetaKey(k.key.into()),
                    value: k.value.into(),
                    create_rev: MetaRev(rev),
                    mod_rev: MetaRev(rev),
                    version: 1,
                    lease: 0,
                })
            })
            .collect();
        catalog.apply(&roots, &events);
    };
    take(Cluster::base());
    for n in 0..segments() {
        take(cluster.segment(n, true));
    }
    println!("{before} {} {}", resident(), catalog.segment_count());
}
