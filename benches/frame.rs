//! Frame time over a million rows (law 9: at most 8 ms at the 99th percentile), and what is computed off the draw path.
//!
//! ```text
//! tools/bench frame
//! ```
#![allow(
    clippy::duplicate_mod,
    reason = "the console of the tests brings its own captured cluster"
)]

mod common;
#[path = "../tests/console/mod.rs"]
mod console;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::{ms, quantile, row, sized};
use console::{Console, DARK, NOW, keyspace, place};
use crossterm::event::Event as Term;
use falconer::engine::clock::Clock;
use falconer::engine::format::keys::Roots;
use falconer::engine::ids::MetaRev;
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::catalog::Catalog;
use falconer::ui::app::Msg;
use falconer::ui::frame;
use ratatui::Terminal;
use ratatui::backend::{CrosstermBackend, TestBackend};

const ROWS: usize = 1_000_000;
const FRAMES: usize = 2_000;
const GOAL: Duration = Duration::from_millis(8);

fn rows() -> usize {
    sized(ROWS, 30_000)
}

/// The captured cluster with its flushed segments repeated under new ids until there are a million.
fn million() -> Catalog {
    let keys = keyspace();
    let mut catalog = Catalog::default();
    let all: Vec<Event> = keys.iter().cloned().map(Event::Put).collect();
    catalog.apply(&Roots::default(), &all);
    let segments: Vec<&KeyValue> = keys
        .iter()
        .filter(|k| k.key.text().contains("/datacoord-meta/s/"))
        .collect();
    let rev = catalog.rev.0;
    let mut batch = Vec::with_capacity(10_000);
    for i in 0..rows() {
        let from = segments[i % segments.len()];
        let text = from.key.text();
        let (parent, old) = text.rsplit_once('/').expect("a segment key");
        let old: u64 = old.parse().expect("a segment id");
        let new = 480_000_000_000_000_000 + i as u64 * 7_919 % 1_000_003 * 1_000;
        let mut value = from.value.to_vec();
        // Field 1 is the id: a varint of as many bytes in both, so that the rest stays where it is.
        let (was, is) = (varint(old), varint(new));
        assert_eq!(was.len(), is.len());
        assert_eq!(value[1..=was.len()], was[..]);
        value[1..=was.len()].copy_from_slice(&is);
        batch.push(Event::Put(KeyValue {
            key: format!("{parent}/{new}").into(),
            value: value.into(),
            mod_rev: MetaRev(rev + 1 + i64::try_from(i).expect("a small number")),
            ..(*from).clone()
        }));
        if batch.len() == 10_000 {
            catalog.apply(&Roots::default(), &batch);
            batch.clear();
        }
    }
    catalog.apply(&Roots::default(), &batch);
    catalog
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn report(what: &str, mut times: Vec<Duration>) -> (Duration, Duration) {
    let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    println!(
        "{what:<44} n {:>5}  p50 {:>8.3} ms  p99 {:>8.3} ms  max {:>8.3} ms",
        times.len(),
        ms(p50),
        ms(p99),
        ms(quantile(&mut times, 1.0))
    );
    (p50, p99)
}

fn with_goal(what: &str, (p50, p99): (Duration, Duration)) {
    let what = format!("{what} over {} rows, p99", rows());
    let value = format!("{:.2} ms (p50 {:.2} ms)", ms(p99), ms(p50));
    row(&what, &value, Some(("≤ 8 ms", p99 <= GOAL)));
}

fn main() {
    let clock = common::clock();
    let start = clock.mono();
    let catalog = Arc::new(million());
    println!(
        "{} segments made in {:.1} s",
        catalog.segment_count(),
        (clock.mono().saturating_sub(start)).as_secs_f64()
    );
    let mut c = Console::empty((200, 60), DARK, place(None));
    c.feed(Msg::Catalog(Arc::clone(&catalog)));
    c.live();
    c.press("3");
    assert!(c.app.history.page().table.len() >= rows());

    // What runs on another thread when the order, the filter or the catalog changes.
    let world = c.app.world(NOW);
    for (what, filter, sort) in [
        ("rows by id", "", (0, false)),
        ("rows by row count, descending", "", (5, true)),
        ("rows by collection (text)", "", (1, false)),
        ("rows that hold \"growing\"", "growing", (0, false)),
    ] {
        let mut query = c
            .app
            .history
            .page()
            .table
            .rows
            .as_ref()
            .expect("rows")
            .query
            .clone();
        filter.clone_into(&mut query.filter);
        query.sort = sort;
        let times = (0..3)
            .map(|_| {
                let from = clock.mono();
                black_box(falconer::ui::rows::compute(
                    &world,
                    &query,
                    &AtomicBool::new(false),
                ));
                clock.mono().saturating_sub(from)
            })
            .collect();
        report(&format!("off the draw path: {what}"), times);
    }

    scroll(&mut c, clock.as_ref());
    keys_to_bytes(&mut c, clock.as_ref());
}

const KEYS: &str = "<down><pgdn><pgdn><up><end><pgup><home><pgdn>";

/// Drawing alone, on 160×50 cells in memory, with a scrolled page each time.
fn scroll(c: &mut Console, clock: &dyn Clock) {
    c.resize(160, 50);
    let mut terminal = Terminal::new(TestBackend::new(160, 50)).expect("a screen in memory");
    let keys = console::parse(KEYS);
    let mut frames = Vec::with_capacity(FRAMES);
    for i in 0..FRAMES {
        c.feed(Msg::Term(Term::Key(keys[i % keys.len()])));
        let from = clock.mono();
        terminal
            .draw(|f| frame::view(&c.app, f, NOW))
            .expect("drawn");
        frames.push(clock.mono().saturating_sub(from));
    }
    let times = report("frame (160×50 in memory)", frames);
    with_goal("frame of 160×50 cells while scrolling", times);
}

/// A key, its update, the drawing and the bytes for the terminal, all of it.
fn keys_to_bytes(c: &mut Console, clock: &dyn Clock) {
    c.resize(200, 60);
    let mut terminal = Terminal::with_options(
        CrosstermBackend::new(std::io::BufWriter::with_capacity(1 << 16, std::io::sink())),
        ratatui::TerminalOptions {
            viewport: ratatui::Viewport::Fixed(ratatui::layout::Rect::new(0, 0, 200, 60)),
        },
    )
    .expect("a terminal in memory");
    let keys = console::parse(KEYS);
    let mut updates = Vec::with_capacity(FRAMES);
    let mut frames = Vec::with_capacity(FRAMES);
    let mut both = Vec::with_capacity(FRAMES);
    for i in 0..FRAMES {
        let from = clock.mono();
        c.feed(Msg::Term(Term::Key(keys[i % keys.len()])));
        let updated = clock.mono();
        terminal
            .draw(|f| frame::view(&c.app, f, NOW))
            .expect("drawn");
        let drawn = clock.mono();
        updates.push(updated.saturating_sub(from));
        frames.push(drawn.saturating_sub(updated));
        both.push(drawn.saturating_sub(from));
    }
    report("update for a key", updates);
    report("frame (view, diff, escape codes)", frames);
    let times = report("key to bytes on the terminal", both);
    with_goal("key → bytes for a terminal of 200×60 cells", times);
}
