//! From a change in real etcd to the changed cell on the screen: a segment's row count is put, and the console's own loop
//! ([`ui::drive`]) draws on a screen in memory that says when the new number stands in it. The clock starts before the put is
//! sent, so that the way to etcd and its commit count.
//!
//! What the engine waits on purpose is taken off: it publishes when nothing has changed for [`QUIET`], at the latest after
//! [`WINDOW`]. A change alone waits exactly the former; among a stream of others it waits up to the latter.
//!
//! ```text
//! tools/bench change
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and the hand that changes a cluster writes to it"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::cluster::Cluster;
use common::support::lab::LabKey;
use common::support::servers::{Etcd, EtcdVersion};
use common::{ms, quantile, row, runtime, sized};
use crossterm::event::{Event as Term, KeyCode, KeyEvent, KeyModifiers};
use etcd_client::KvClient;
use falconer::engine::Engine;
use falconer::engine::format::wire::Patch;
use falconer::engine::handle::{Conn, Handle};
use falconer::engine::live::{QUIET, WINDOW};
use falconer::ui::term::Screen;
use falconer::ui::theme::{Depth, Look};
use falconer::ui::{Options, drive};
use ratatui::backend::TestBackend;
use ratatui::{Frame, Terminal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// Changes that are not looked at, before the measured ones.
const WARM: usize = 10;
/// Pause of the stream of other changes.
const STREAM: Duration = Duration::from_millis(4);

const LOOK: Look = Look {
    depth: Depth::True,
    light: false,
    ascii: false,
};

fn main() {
    let etcd = Etcd::start(EtcdVersion::V35);
    let runtime = runtime();
    let base = Cluster::base();
    runtime.block_on(etcd.load(&base));
    let target = a_segment(&base);
    runtime.block_on(measure(&etcd, &target, "the captured cluster"));

    let many = sized(100_000, 2_000);
    let cluster = Cluster::read();
    let numbers: Vec<usize> = (0..many).collect();
    for some in numbers.chunks(1_000) {
        let batch: Vec<LabKey> = some
            .iter()
            .flat_map(|n| cluster.segment(*n, false))
            .collect();
        runtime.block_on(etcd.load(&batch));
    }
    runtime.block_on(measure(&etcd, &target, &format!("{many} segments")));
}

/// The segment with the lowest id: it stands in the first line of the list.
fn a_segment(keys: &[LabKey]) -> LabKey {
    let mut segments: Vec<&LabKey> = keys
        .iter()
        .filter(|k| k.key.starts_with(b"by-dev/meta/datacoord-meta/s/"))
        .collect();
    segments.sort_by_key(|k| k.key.rsplit(|b| *b == b'/').next().map(<[u8]>::to_vec));
    segments[0].clone()
}

async fn measure(etcd: &Etcd, target: &LabKey, place: &str) {
    let handle = Engine::open(
        common::profile(&etcd.endpoint()),
        common::clock(),
        common::entropy(),
    )
    .await
    .expect("an engine");
    handle
        .conn
        .clone()
        .wait_for(|c| matches!(c, Conn::Live { .. }))
        .await
        .expect("the engine lives");
    let console = Console::open(&handle);
    let kv = etcd.client().await.kv_client();
    let samples = sized(300, 20);

    let alone = changes(&console, kv.clone(), target, samples, 1_000_000).await;
    report(&format!("change → cell, alone, {place}"), alone, QUIET);

    let stop = Arc::new(AtomicBool::new(false));
    let stream = tokio::spawn(other_changes(kv.clone(), stop.clone()));
    let among = changes(&console, kv, target, samples, 2_000_000).await;
    stop.store(true, Ordering::SeqCst);
    let others = stream.await.expect("the stream of changes");
    println!("{place}: {others} other changes meanwhile");
    report(
        &format!("change → cell, among others, {place}"),
        among,
        WINDOW,
    );
}

fn report(what: &str, mut times: Vec<Duration>, window: Duration) {
    let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    let beyond = |t: Duration| ms(t) - ms(window);
    println!(
        "{what}: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, window {} ms",
        ms(p50),
        ms(p99),
        ms(quantile(&mut times, 1.0)),
        window.as_millis()
    );
    row(
        &format!("{what}, p99 beyond the window of {} ms", window.as_millis()),
        &format!("{:.1} ms (p50 {:.1} ms)", beyond(p99), beyond(p50)),
        Some(("≤ 50 ms", beyond(p99) <= 50.0)),
    );
}

/// Puts one row count after the other and waits for each to be seen.
async fn changes(
    console: &Console,
    mut kv: KvClient,
    target: &LabKey,
    samples: usize,
    first: u64,
) -> Vec<Duration> {
    let mut times = Vec::with_capacity(samples);
    for i in 0..WARM + samples {
        let rows = first + i as u64;
        let mut patch = Patch::parse(&target.value).expect("a captured segment");
        patch.set_integer(5, rows);
        let value = patch.finish();
        console.wanted.send_replace(grouped(rows));
        let start = Instant::now();
        kv.put(target.key.clone(), value, None)
            .await
            .expect("a put");
        let seen = console.seen(&grouped(rows)).await;
        if i >= WARM {
            times.push(seen.saturating_duration_since(start));
        }
        // Changes that come in step with the frames would flatter or spoil every one of them alike.
        tokio::time::sleep(Duration::from_millis(40 + (i as u64 * 7) % 37)).await;
    }
    times
}

/// Somebody else's changes all the time: checkpoints of channels, as a busy cluster writes them.
async fn other_changes(mut kv: KvClient, stop: Arc<AtomicBool>) -> usize {
    let checkpoints: Vec<LabKey> = Cluster::base()
        .into_iter()
        .filter(|k| k.key.starts_with(b"by-dev/meta/datacoord-meta/channel-cp/"))
        .collect();
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        let key = &checkpoints[count % checkpoints.len()];
        let mut patch = Patch::parse(&key.value).expect("a captured checkpoint");
        let ts = patch.integer(4).unwrap_or(0);
        patch.set_integer(4, ts + count as u64);
        kv.put(key.key.clone(), patch.finish(), None)
            .await
            .expect("a put");
        count += 1;
        tokio::time::sleep(STREAM).await;
    }
    count
}

/// `1,000,123`, as the list shows a count.
fn grouped(n: u64) -> String {
    falconer::ui::text::grouped(n.cast_signed())
}

/// The console's loop on a thread of its own, as in the program, with the list of segments on screen.
struct Console {
    wanted: watch::Sender<String>,
    seen: watch::Receiver<(String, Instant)>,
    /// Closing it ends the console.
    _keys: UnboundedSender<Term>,
}

impl Console {
    fn open(handle: &Handle) -> Self {
        let (wanted, looked_for) = watch::channel(String::new());
        let (found, seen) = watch::channel((String::new(), Instant::now()));
        let (keys, typed) = unbounded_channel();
        let handle = handle.clone();
        std::thread::spawn(move || run(&handle, Memory::new(looked_for, found), typed));
        keys.send(Term::Key(KeyEvent::new(
            KeyCode::Char('3'),
            KeyModifiers::NONE,
        )))
        .expect("the console lives");
        Self {
            wanted,
            seen,
            _keys: keys,
        }
    }

    async fn seen(&self, text: &str) -> Instant {
        let mut seen = self.seen.clone();
        let found = tokio::time::timeout(
            Duration::from_secs(20),
            seen.wait_for(|(found, _)| found == text),
        )
        .await;
        match found {
            Ok(Ok(found)) => found.1,
            _ => panic!("{text} does not come on screen"),
        }
    }
}

fn run(handle: &Handle, mut screen: Memory, mut keys: UnboundedReceiver<Term>) {
    runtime().block_on(async {
        drive(handle, &mut screen, &mut keys, LOOK, Options::default())
            .await
            .expect("the console");
    });
}

/// A screen of 160×50 cells that looks for a text after each frame.
struct Memory {
    terminal: Terminal<TestBackend>,
    wanted: watch::Receiver<String>,
    found: watch::Sender<(String, Instant)>,
}

impl Memory {
    fn new(wanted: watch::Receiver<String>, found: watch::Sender<(String, Instant)>) -> Self {
        Self {
            terminal: Terminal::new(TestBackend::new(160, 50)).expect("a screen in memory"),
            wanted,
            found,
        }
    }

    fn shows(&self, text: &str) -> bool {
        let buffer = self.terminal.backend().buffer();
        let width = buffer.area.width as usize;
        buffer.content.chunks(width).any(|line| {
            let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.contains(text)
        })
    }
}

impl Screen for Memory {
    fn draw(&mut self, render: &mut dyn FnMut(&mut Frame)) -> std::io::Result<()> {
        self.terminal
            .draw(|frame| render(frame))
            .map_err(std::io::Error::other)?;
        let wanted = self.wanted.borrow().clone();
        if !wanted.is_empty() && self.found.borrow().0 != wanted && self.shows(&wanted) {
            self.found.send_replace((wanted, Instant::now()));
        }
        Ok(())
    }

    fn size(&self) -> std::io::Result<(u16, u16)> {
        Ok((160, 50))
    }

    fn copy(&mut self, _: &str) -> std::io::Result<()> {
        Ok(())
    }

    fn suspend(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn clear(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
