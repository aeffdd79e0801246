//! Copying inside a real S3 server, as a restore does it, against `rclone copy` from one prefix of a bucket to another: the same
//! objects, as many copies at once. Both list the source and the target; we do so to know the sizes and to prove that every
//! copy is there in full, as a restore's own steps do.
//!
//! ```text
//! tools/bench copy
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and the hand that fills a bucket writes to it"
)]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use common::support::lab;
use common::support::s3::{self, S3};
use common::{list, median, row, runtime, sized};
use falconer::engine::clock::{Clock, Entropy};
use falconer::engine::error::Result;
use falconer::engine::ids::ObjectKey;
use falconer::engine::jobs::copy::{self, CopyFile, CopyHost, Done, Ran, SLICE};
use falconer::engine::meta::MetaWriter;
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::objects;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::profile::{ObjectKind, ObjectProfile, REQUEST_TIMEOUT, Roots, S3Profile};
use futures::TryStreamExt;

const BUCKET: &str = "a-bucket";
/// Copies at once on both sides: a job's default.
const TRANSFERS: u32 = 16;

/// One measurement: the same objects, copied by each side in turn.
struct Case {
    name: &'static str,
    repeat: usize,
    /// How often one file at a time: it takes as many times longer.
    single: usize,
}

fn main() {
    let server = S3::start();
    server.create_bucket(BUCKET);
    let runtime = runtime();
    let rclone =
        common::support::process::program("FALCONER_BENCH_RCLONE", "rclone/rclone", "rclone");
    let ours = Ours::open(&server);
    let cases = [
        Case {
            name: "small",
            repeat: sized(5, 2),
            single: 1,
        },
        // Each copy takes as much disk again.
        Case {
            name: "large",
            repeat: 2,
            single: 1,
        },
    ];
    for case in cases {
        let source = format!("files/{}", case.name);
        let bytes = runtime.block_on(fill(&server, &source, case.name == "large"));
        let files = runtime.block_on(ours.list(&source)).len();
        let what = format!("{files} {} objects, {} MiB", case.name, bytes >> 20);
        println!("{what}, {TRANSFERS} copies at once");
        measure(&case, &what, |side, i| {
            let target = format!("files/{}-{}-{i}", case.name, side.name());
            let took = match side {
                Side::Rclone => rclone_copy(&rclone, &server, &source, &target),
                Side::Engine => runtime.block_on(ours.copy(&source, &target, TRANSFERS)),
                Side::Single => runtime.block_on(ours.copy(&source, &target, 1)),
            };
            runtime.block_on(ours.compare(&source, &target, files));
            took
        });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Rclone,
    Engine,
    /// One file after the other, as Milvus copies the files of a segment.
    Single,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Rclone => "rclone",
            Self::Engine => "engine",
            Self::Single => "single",
        }
    }
}

fn measure(case: &Case, what: &str, mut run: impl FnMut(Side, usize) -> Duration) {
    let (mut theirs, mut engine, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..case.repeat {
        // The order changes, so that neither side always meets a server that is still busy with the other's writes.
        let mut pair = [Duration::ZERO; 2];
        for side in [i % 2, 1 - i % 2] {
            pair[side] = run([Side::Rclone, Side::Engine][side], i);
        }
        theirs.push(pair[0]);
        engine.push(pair[1]);
        ratios.push(pair[1].as_secs_f64() / pair[0].as_secs_f64());
    }
    let single: Vec<Duration> = (0..case.single).map(|i| run(Side::Single, i)).collect();
    println!("rclone copy {}", list(&theirs));
    println!("engine copy {}", list(&engine));
    println!("one file at a time {}", list(&single));
    let secs = |times: &[Duration]| median(times).as_secs_f64();
    let ratio = secs(&engine) / secs(&theirs);
    ratios.sort_by(f64::total_cmp);
    row(
        &format!("restore's copy of {what} on SeaweedFS ÷ rclone copy, {TRANSFERS} at once"),
        &format!(
            "{ratio:.2} ({:.2} s ÷ {:.2} s; pairs {:.2} to {:.2})",
            secs(&engine),
            secs(&theirs),
            ratios[0],
            ratios[ratios.len() - 1],
        ),
        Some(("≤ 1.0", ratio <= 1.0)),
    );
    row(
        &format!("the same ÷ one file at a time ({what})"),
        &format!(
            "{:.2} ({:.2} s ÷ {:.2} s)",
            secs(&engine) / secs(&single),
            secs(&engine),
            secs(&single)
        ),
        None,
    );
}

/// 10,000 objects as large as the captured bucket's, or 50 of 64 MiB. Answers their bytes.
async fn fill(server: &S3, source: &str, large: bool) -> usize {
    let listing = lab::listing();
    let sizes: Vec<usize> = if large {
        vec![64 << 20; sized(50, 3)]
    } else {
        (0..sized(10_000, 200))
            .map(|i| usize::try_from(listing[i % listing.len()].size).expect("a small object"))
            .collect()
    };
    let most = sizes.iter().copied().max().unwrap_or_default();
    let noise: Vec<u8> = (0..most)
        .map(|i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let noise = Bytes::from(noise);
    let objects = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| (format!("{source}/{}/{i}", i % 16), noise.slice(..*size)));
    server.upload(BUCKET, objects).await;
    sizes.iter().sum()
}

fn rclone_copy(program: &std::path::Path, server: &S3, source: &str, target: &str) -> Duration {
    let start = Instant::now();
    let out = Command::new(program)
        .args([
            "copy",
            &format!(":s3:{BUCKET}/{source}"),
            &format!(":s3:{BUCKET}/{target}"),
        ])
        .args(["--config", "", "--s3-provider", "SeaweedFS"])
        .args(["--s3-endpoint", &server.url, "--s3-region", s3::REGION])
        .args(["--s3-access-key-id", &server.access_key])
        .args(["--s3-secret-access-key", &server.secret_key])
        .args(["--s3-force-path-style=true", "--s3-no-check-bucket"])
        .args(["--transfers", &TRANSFERS.to_string()])
        .args(["--checkers", &TRANSFERS.to_string()])
        .args([
            "--server-side-across-configs",
            "--retries",
            "1",
            "--stats",
            "0",
            "-q",
        ])
        .output()
        .expect("rclone can be started");
    let took = start.elapsed();
    assert!(
        out.status.success(),
        "rclone failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    took
}

/// The engine's side: the copy pool over the executor, which is the one writer, under its fence.
struct Ours {
    executor: Arc<Executor>,
    parallel: AtomicU32,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Ours {
    fn open(server: &S3) -> Self {
        let (clock, entropy) = (common::clock(), common::entropy());
        let (_, write) = objects::open(&ObjectProfile {
            kind: ObjectKind::S3(S3Profile {
                endpoint: Some(server.url.clone()),
                bucket: BUCKET.to_owned(),
                region: s3::REGION.to_owned(),
                credentials: Some((server.access_key.clone(), server.secret_key.clone().into())),
                virtual_host: false,
                ca: None,
                request_timeout: REQUEST_TIMEOUT,
            }),
            root: "files".to_owned(),
        })
        .expect("the store");
        let meta = EmbeddedStore::memory_with(clock.clone()).expect("a store in memory");
        let executor = Executor::new(Parts {
            meta: MetaWriter::new(Arc::new(meta), &Scope::root(clock.clone(), "test")),
            objects: write,
            roots: Roots::default(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            actor: "bench".to_owned(),
            embedded: true,
        });
        Self {
            executor,
            parallel: AtomicU32::new(TRANSFERS),
            clock,
            entropy,
        }
    }

    async fn list(&self, prefix: &str) -> BTreeMap<ObjectKey, u64> {
        self.executor
            .objects()
            .list(&prefix.into(), None)
            .map_ok(|meta| (meta.key, meta.size))
            .try_collect()
            .await
            .expect("a listing")
    }

    /// Lists the source, copies, lists the target.
    async fn copy(&self, source: &str, target: &str, parallel: u32) -> Duration {
        self.parallel.store(parallel, Ordering::Relaxed);
        // Nobody renews the lease while rclone copies.
        self.executor.fence().acquire().await.expect("the fence");
        let start = Instant::now();
        let files: Vec<CopyFile> = self
            .executor
            .objects()
            .list(&source.into(), None)
            .map_ok(|meta| CopyFile {
                to: ObjectKey(meta.key.0.replacen(source, target, 1)),
                from: meta.key,
                size: meta.size,
                etag: meta.etag,
                group: 0,
            })
            .try_collect()
            .await
            .expect("a listing");
        let mut done = Done::default();
        loop {
            match copy::run(self, &files, &mut done, SLICE).await {
                Ok(Ran::All) => break,
                Ok(Ran::More) => {}
                other => panic!("the copy pool: {other:?}"),
            }
        }
        let there = self.list(target).await;
        let proved = Done::from_listing(&files, &there);
        assert_eq!(proved.count() as usize, files.len(), "every copy is whole");
        let took = start.elapsed();
        self.executor.fence().release().await;
        took
    }

    /// Whether a target holds what the source holds.
    async fn compare(&self, source: &str, target: &str, files: usize) {
        let sizes = |all: BTreeMap<ObjectKey, u64>, prefix: &str| {
            all.into_iter()
                .map(|(key, size)| (key.0.replacen(prefix, "", 1), size))
                .collect::<BTreeMap<_, _>>()
        };
        let copies = sizes(self.list(target).await, target);
        assert_eq!(copies.len(), files);
        assert!(
            copies == sizes(self.list(source).await, source),
            "{target} differs"
        );
    }
}

#[async_trait]
impl CopyHost for Ours {
    async fn copy(&self, file: &CopyFile) -> Result<()> {
        self.executor
            .copy_object(None, self.executor.objects(), file.origin(), &file.to)
            .await
            .map(drop)
    }

    fn note(&self, text: String) {
        println!("note: {text}");
    }

    fn parallel(&self) -> u32 {
        self.parallel.load(Ordering::Relaxed)
    }

    fn throttle(&self) -> Option<u64> {
        None
    }

    fn copied(&self, _: &CopyFile) {}

    fn cancelled(&self) -> bool {
        false
    }

    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn entropy(&self) -> &dyn Entropy {
        &*self.entropy
    }
}
