//! Corrupt input: every reader of bytes that others wrote, sound inputs, damage, and what must hold of each answer.
//!
//! `tests/hostile.rs` flips every bit and cuts at every byte; `examples/fuzz.rs` makes inputs by the million. Both use this.
#![allow(
    clippy::cast_possible_wrap,
    reason = "Avro and protobuf write unsigned numbers as signed ones on purpose"
)]
#![allow(dead_code, reason = "the test and the program each use their own part")]

#[path = "../formats/avro.rs"]
pub mod avro;
pub mod chance;
pub mod decoders;
pub mod generate;
#[path = "../support/lab.rs"]
pub mod lab;
pub mod mutate;
pub mod rows;
pub mod seeds;
#[path = "../support/storage.rs"]
pub mod storage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use chance::Chance;
use falconer::engine::error::{Error, ErrorKind};

/// Longest line that an error may be: it stands in a table and in a log.
const LINE: usize = 16_000;

/// What became of one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was read.
    Read,
    /// It was refused, with a reason.
    Refused,
}

/// Counts what the reader under test allocates; what checks its answer is not counted.
#[derive(Default)]
pub struct Meter {
    /// Most bytes in use at once.
    pub peak: u64,
    /// Bytes that were asked for, in all.
    pub total: u64,
}

impl Meter {
    pub fn run<T>(&mut self, reader: impl FnOnce() -> T) -> T {
        let mut out = None;
        let info = allocation_counter::measure(|| out = Some(reader()));
        self.peak = self.peak.max(info.bytes_max);
        self.total += info.bytes_total;
        out.expect("it ran")
    }
}

/// A reader, its inputs, and the memory it may take.
pub struct Decoder {
    pub name: &'static str,
    pub what: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub generate: fn(&mut Chance, &[Vec<u8>]) -> Vec<u8>,
    /// Panics when something does not hold.
    pub run: fn(&[u8], &mut Meter) -> Answer,
    /// Bytes in use at once: so many for each byte of input, and so many beside them.
    pub memory: (u64, u64),
}

impl Decoder {
    /// Runs one input. `Err` says what does not hold: a panic, memory over its bound.
    pub fn try_one(&self, input: &[u8]) -> Result<(Answer, Meter), String> {
        let mut meter = Meter::default();
        let answer = catch_unwind(AssertUnwindSafe(|| (self.run)(input, &mut meter)))
            .map_err(|panic| words(&*panic))?;
        let (each, beside) = self.memory;
        let bound = each * input.len() as u64 + beside;
        if meter.peak > bound {
            return Err(format!(
                "{} bytes in use for {} bytes of input, the bound is {bound}",
                meter.peak,
                input.len()
            ));
        }
        Ok((answer, meter))
    }

    /// Input `index` of the run with this seed.
    pub fn input(&self, seed: u64, index: u64, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut chance = Chance::of(seed, index);
        let mut input = if chance.once_in(2) {
            mutate::damaged(&mut chance, seeds)
        } else {
            (self.generate)(&mut chance, seeds)
        };
        input.truncate(mutate::LONGEST);
        input
    }

    /// Every bit of every byte flipped, and a cut at every byte, of each input. Answers how many were run.
    pub fn every_byte(&self, inputs: &[Vec<u8>]) -> Result<u64, Failure> {
        let mut runs = 0;
        let mut one = |input: &[u8]| {
            runs += 1;
            self.try_one(input).map(|_| ()).map_err(|why| Failure {
                input: input.to_vec(),
                why,
            })
        };
        for sound in inputs {
            one(sound)?;
            let mut bytes = sound.clone();
            for at in 0..bytes.len() {
                one(&sound[..at])?;
                for bit in 0..8 {
                    bytes[at] ^= 1 << bit;
                    one(&bytes)?;
                    bytes[at] ^= 1 << bit;
                }
            }
        }
        Ok(runs)
    }
}

/// An input for which something does not hold.
#[derive(Debug)]
pub struct Failure {
    pub input: Vec<u8>,
    pub why: String,
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without words"))
}

/// A refusal must be one readable line, and not our own fault.
pub fn refused(e: &Error) -> Answer {
    assert!(
        matches!(
            e.kind(),
            ErrorKind::Corrupt
                | ErrorKind::Unsupported
                | ErrorKind::Config
                | ErrorKind::Invalid
                | ErrorKind::Limit
        ),
        "the error of a bad input is of kind {:?}: {e}",
        e.kind()
    );
    reason(&e.to_string());
    Answer::Refused
}

/// A reason must be one readable line.
pub fn reason(text: &str) {
    assert!(text.len() >= 8, "not a reason: {text:?}");
    assert!(
        text.len() <= LINE,
        "{} bytes are no line: {text:.200}…",
        text.len()
    );
    assert!(
        !text.chars().any(char::is_control),
        "a line with control characters: {text:?}"
    );
}

/// Where inputs are kept that once failed.
pub fn regressions() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corrupt/regressions")
}
