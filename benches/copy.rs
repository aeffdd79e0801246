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
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use common::support::lab;
use common::support::s3::{self, S3};
use common::{list, median, row, runtime, sized};
use falconer::engine::clock::{Clock, Entropy};
use falconer::engine::error::{ErrorKind, Result};
use falconer::engine::ids::ObjectKey;
use falconer::engine::jobs::copy::{self, CopyFile, CopyHost, Done, Ran, SLICE};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::objects;
use falconer::engine::plan::execute::{Executor, Parts};
use falconer::engine::profile::{ObjectKind, ObjectProfile, REQUEST_TIMEOUT, Roots, S3Profile};
use futures::TryStreamExt;

const BUCKET: &str = "a-bucket";
const SOURCE: &str = "files/source";
/// Copies at once on both sides: a job's default.
const TRANSFERS: u32 = 16;
const REPEAT: usize = 5;
/// Sizes of the large objects, MiB; each several times.
const LARGE: [usize; 4] = [8, 16, 32, 64];

fn main() {
    let server = S3::start();
    server.create_bucket(BUCKET);
    let runtime = runtime();
    let bytes = runtime.block_on(fill(&server));
    let rclone =
        common::support::process::program("FALCONER_BENCH_RCLONE", "rclone/rclone", "rclone");
    let ours = runtime.block_on(Ours::open(&server));
    let files = runtime.block_on(ours.list(SOURCE)).len();
    println!(
        "{files} objects, {} MiB, {TRANSFERS} copies at once",
        bytes >> 20
    );

    let (mut theirs, mut engine, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..REPEAT {
        // The order changes, so that neither side always meets a server that is still busy with the other's writes.
        let mut took = [Duration::ZERO; 2];
        for side in [i % 2, 1 - i % 2] {
            took[side] = if side == 0 {
                rclone_copy(&rclone, &server, &format!("files/rclone-{i}"))
            } else {
                runtime.block_on(ours.copy(&format!("files/engine-{i}")))
            };
        }
        runtime.block_on(ours.compare(&format!("files/rclone-{i}"), files));
        runtime.block_on(ours.compare(&format!("files/engine-{i}"), files));
        theirs.push(took[0]);
        engine.push(took[1]);
        ratios.push(took[1].as_secs_f64() / took[0].as_secs_f64());
    }
    println!("rclone copy {}", list(&theirs));
    println!("engine copy {}", list(&engine));
    let ratio = median(&engine).as_secs_f64() / median(&theirs).as_secs_f64();
    ratios.sort_by(f64::total_cmp);
    row(
        &format!(
            "restore's copy of {files} objects, {} MiB, on SeaweedFS ÷ rclone copy, {TRANSFERS} at once",
            bytes >> 20
        ),
        &format!(
            "{ratio:.2} ({:.2} s ÷ {:.2} s; pairs {:.2} to {:.2})",
            median(&engine).as_secs_f64(),
            median(&theirs).as_secs_f64(),
            ratios[0],
            ratios[ratios.len() - 1],
        ),
        Some(("≤ 1.0", ratio <= 1.0)),
    );
}

/// Objects as large as the captured bucket's, and some large ones. Answers their bytes.
async fn fill(server: &S3) -> usize {
    let listing = lab::listing();
    let small = (0..sized(2_000, 100)).map(|i| {
        let at = &listing[i % listing.len()];
        let size = usize::try_from(at.size).expect("a small object");
        (format!("{SOURCE}/insert_log/{}/{i}", i % 16), size)
    });
    let large =
        (0..sized(16, 4)).map(|i| (format!("{SOURCE}/large/{i}"), LARGE[i % LARGE.len()] << 20));
    let mut bytes = 0;
    // One after the other for the large ones: they are held in memory.
    let noise: Vec<u8> = (0..LARGE[LARGE.len() - 1] << 20)
        .map(|i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let noise = Bytes::from(noise);
    let (small, large): (Vec<_>, Vec<_>) = (small.collect(), large.collect());
    for group in [small, large] {
        for some in group.chunks(200) {
            bytes += some.iter().map(|(_, size)| size).sum::<usize>();
            let objects = some.iter().map(|(key, size)| (key, noise.slice(..*size)));
            server.upload(BUCKET, objects).await;
        }
    }
    bytes
}

fn rclone_copy(program: &std::path::Path, server: &S3, target: &str) -> Duration {
    let start = Instant::now();
    let out = Command::new(program)
        .args([
            "copy",
            &format!(":s3:{BUCKET}/{SOURCE}"),
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
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Ours {
    async fn open(server: &S3) -> Self {
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
            meta: Arc::new(meta),
            objects: write,
            roots: Roots::default(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            actor: "bench".to_owned(),
            embedded: true,
        });
        executor.fence().acquire().await.expect("the fence");
        Self {
            executor,
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
    async fn copy(&self, target: &str) -> Duration {
        let start = Instant::now();
        let files: Vec<CopyFile> = self
            .list(SOURCE)
            .await
            .into_iter()
            .map(|(from, size)| CopyFile {
                to: ObjectKey(from.0.replacen(SOURCE, target, 1)),
                from,
                size,
                group: 0,
            })
            .collect();
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
        start.elapsed()
    }

    /// Whether a target holds what the source holds.
    async fn compare(&self, target: &str, files: usize) {
        let sizes = |all: BTreeMap<ObjectKey, u64>, prefix: &str| {
            all.into_iter()
                .map(|(key, size)| (key.0.replacen(prefix, "", 1), size))
                .collect::<BTreeMap<_, _>>()
        };
        let copies = sizes(self.list(target).await, target);
        assert_eq!(copies.len(), files);
        assert!(
            copies == sizes(self.list(SOURCE).await, SOURCE),
            "{target} differs"
        );
    }
}

#[async_trait]
impl CopyHost for Ours {
    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<()> {
        self.executor.copy_once(from, to).await
    }

    async fn size(&self, key: &ObjectKey) -> Result<Option<u64>> {
        match self.executor.objects().head(key).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn parallel(&self) -> u32 {
        TRANSFERS
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
