//! Throws inputs at every reader of bytes that others wrote (`docs/reliability.md`):
//!
//! ```text
//! cargo run --release --example fuzz -- --count 10000000            # every reader
//! cargo run --release --example fuzz -- --count 10000000 manifest   # one of them
//! cargo run --release --example fuzz -- --every-byte                # every bit and every cut of the whole corpus
//! cargo run --release --example fuzz -- --seed 7 --from 4242 --count 1 --show manifest
//! ```
//!
//! An input that fails is made as small as it gets and written to `tests/corrupt/regressions/`, which `tests/hostile.rs` replays.

#[path = "../tests/corrupt/mod.rs"]
mod corrupt;

use std::process::ExitCode;

use corrupt::decoders::ALL;
use corrupt::{Answer, Decoder, Failure, mutate, regressions};
use falconer::engine::clock::{Clock, SystemClock};

struct Wanted {
    count: u64,
    seed: u64,
    from: u64,
    every_byte: bool,
    show: bool,
    names: Vec<String>,
}

fn wanted() -> Result<Wanted, String> {
    let mut wanted = Wanted {
        count: 100_000,
        seed: 1,
        from: 0,
        every_byte: false,
        show: false,
        names: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || {
            let text = args.next().unwrap_or_default();
            text.parse()
                .map_err(|_| format!("{arg} {text}: not a number"))
        };
        match arg.as_str() {
            "--count" => wanted.count = number()?,
            "--seed" => wanted.seed = number()?,
            "--from" => wanted.from = number()?,
            "--every-byte" => wanted.every_byte = true,
            "--show" => wanted.show = true,
            name if ALL.iter().any(|d| d.name == name) => wanted.names.push(arg),
            other => {
                let names: Vec<&str> = ALL.iter().map(|d| d.name).collect();
                return Err(format!(
                    "{other}: not known; readers are {}",
                    names.join(", ")
                ));
            }
        }
    }
    Ok(wanted)
}

fn main() -> ExitCode {
    let wanted = match wanted() {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("fuzz: {why}");
            return ExitCode::from(2);
        }
    };
    // A panic is an answer here, and is told with its input.
    std::panic::set_hook(Box::new(|_| {}));
    let clock = SystemClock::new();
    println!("| reader | inputs | read | refused | a second | most memory at once | bound |");
    println!("|---|---|---|---|---|---|---|");
    let mut failed = false;
    for decoder in ALL {
        if !wanted.names.is_empty() && !wanted.names.iter().any(|n| n == decoder.name) {
            continue;
        }
        let began = clock.mono();
        let seeds = (decoder.seeds)();
        if wanted.every_byte {
            match decoder.every_byte(&seeds) {
                Ok(runs) => {
                    let took = clock.mono().saturating_sub(began).as_secs_f64();
                    println!(
                        "| {} | {runs} (every bit, every cut) | | | {:.0} | | |",
                        decoder.name,
                        runs as f64 / took
                    );
                }
                Err(failure) => {
                    failed = true;
                    keep(decoder, &failure, "every byte");
                }
            }
            continue;
        }
        let (mut read, mut refused, mut most, mut worst) = (0u64, 0u64, 0, 0);
        for index in wanted.from..wanted.from + wanted.count {
            let input = decoder.input(wanted.seed, index, &seeds);
            if wanted.show {
                println!("{index}: {:?}", String::from_utf8_lossy(&input));
            }
            match decoder.try_one(&input) {
                Ok((answer, meter)) => {
                    match answer {
                        Answer::Read => read += 1,
                        Answer::Refused => refused += 1,
                    }
                    if meter.peak > most {
                        (most, worst) = (meter.peak, input.len());
                    }
                }
                Err(why) => {
                    failed = true;
                    let place = format!(
                        "--seed {} --from {index} --count 1 {}",
                        wanted.seed, decoder.name
                    );
                    keep(decoder, &Failure { input, why }, &place);
                    break;
                }
            }
        }
        let took = clock.mono().saturating_sub(began).as_secs_f64();
        println!(
            "| {} | {} | {read} | {refused} | {:.0} | {most} bytes for an input of {worst} | {} × input + {} |",
            decoder.name,
            read + refused,
            (read + refused) as f64 / took,
            decoder.memory.0,
            decoder.memory.1
        );
    }
    if !wanted.every_byte {
        println!(
            "\nseed {}, inputs {} to {} of each reader",
            wanted.seed,
            wanted.from,
            wanted.from + wanted.count
        );
    }
    ExitCode::from(u8::from(failed))
}

fn keep(decoder: &Decoder, failure: &Failure, place: &str) {
    let fails = &mut |input: &[u8]| decoder.try_one(input).is_err();
    let small = mutate::shrunk(&failure.input, fails);
    let why = decoder
        .try_one(&small)
        .err()
        .unwrap_or_else(|| failure.why.clone());
    // A name from its content: the same input is kept once.
    let sum = small.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, b| {
        (sum ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    });
    let file = regressions().join(format!("{}-{:08x}.bin", decoder.name, sum as u32));
    eprintln!(
        "FAILED {} ({place}): {why}\n  {} bytes: {:?}\n  kept as {}",
        decoder.name,
        small.len(),
        String::from_utf8_lossy(&small),
        file.display()
    );
    if let Err(e) = std::fs::write(&file, &small) {
        eprintln!("  {}: {e}", file.display());
    }
}
