//! Corrupt input: every bit flipped and a cut at every byte of a corpus, lengths that lie, everything that ever failed. No panic,
//! bounded memory, one clear line each time. The long run is `cargo run --release --example fuzz` (`docs/reliability.md`).

#![allow(
    clippy::cast_possible_wrap,
    reason = "Avro writes unsigned numbers as signed ones on purpose"
)]

mod corrupt;

use std::fs;
use std::io::Write as _;

use corrupt::decoders::{ALL, named};
use corrupt::{Answer, Decoder};

fn decoder(name: &str) -> &'static Decoder {
    named(name).unwrap_or_else(|| panic!("no reader {name}"))
}

/// Every bit and every cut of the inputs that are short enough for an ordinary run; the program does all of them.
fn every_byte(name: &str, longest: usize) {
    let decoder = decoder(name);
    let mut inputs = (decoder.seeds)();
    inputs.retain(|input| input.len() <= longest);
    assert!(!inputs.is_empty(), "{name}: nothing to damage");
    for sound in &inputs {
        if !matches!(name, "key" | "path" | "manifest-path" | "yaml" | "address") {
            let (answer, _) = decoder
                .try_one(sound)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let text = String::from_utf8_lossy(sound);
            assert_eq!(
                answer,
                Answer::Read,
                "{name}: a sound input is read: {text:?}"
            );
        }
    }
    match decoder.every_byte(&inputs) {
        Ok(runs) => println!("{name}: {runs} damaged inputs"),
        Err(failure) => panic!("{name}: {}: {:?}", failure.why, failure.input),
    }
}

#[test]
fn every_bit_and_every_cut_of_a_manifest() {
    every_byte("manifest", 1_200);
    every_byte("storage-manifest", 2_600);
}

#[test]
fn every_bit_and_every_cut_of_a_metadata_file() {
    every_byte("metadata", 1_200);
}

#[test]
fn every_bit_and_every_cut_of_an_etcd_value() {
    every_byte("value", 200);
    every_byte("wire", 120);
}

#[test]
fn every_bit_and_every_cut_of_a_log_file() {
    every_byte("binlog", 1_500);
}

#[test]
fn every_bit_and_every_cut_of_names_and_records() {
    for name in ["key", "path", "manifest-path", "address", "journal"] {
        every_byte(name, 700);
    }
    every_byte("dump", 100);
    every_byte("yaml", 150);
}

/// A few thousand inputs of each reader, of a seed of today: the long run is the program's.
#[test]
fn a_sample_of_what_the_long_run_makes() {
    for decoder in ALL {
        let seeds = (decoder.seeds)();
        for index in 0..500 {
            let input = decoder.input(20_261_123, index, &seeds);
            if let Err(why) = decoder.try_one(&input) {
                panic!("{} input {index}: {why}: {input:?}", decoder.name);
            }
        }
    }
}

#[test]
fn what_once_failed_is_refused_or_read() {
    let mut replayed = 0;
    for entry in fs::read_dir(corrupt::regressions()).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        if file.extension().is_none_or(|e| e != "bin") {
            continue;
        }
        let (reader, _) = name.rsplit_once('-').expect("READER-SUM.bin");
        let reader = decoder(reader);
        // What a reader builds once, the schemas of a format, is not of any input: it must be there before memory is counted.
        let _ = reader.try_one(&(reader.seeds)()[0]);
        if let Err(why) = reader.try_one(&fs::read(&file).unwrap()) {
            panic!("{}: {why}", file.display());
        }
        replayed += 1;
    }
    assert!(replayed > 0, "what failed while this was built is kept");
}

/// Answers the words of the refusal.
fn refused(name: &str, input: &[u8]) {
    let (answer, _) = decoder(name)
        .try_one(input)
        .unwrap_or_else(|why| panic!("{name}: {why}"));
    assert_eq!(answer, Answer::Refused, "{name}");
}

#[test]
fn lengths_that_lie_take_no_memory() {
    use corrupt::mutate::varint;
    let zigzag = |n: i64| {
        let mut out = Vec::new();
        varint(&mut out, ((n << 1) ^ (n >> 63)).cast_unsigned());
        out
    };
    // A manifest up to its first list, then a list that says it has this many items.
    let mut head = vec![4];
    head.extend([0; 5]);
    head.extend([0; 8]);
    head.extend([0, 0, 0]);
    for count in [
        1 << 20,
        1 << 31,
        1 << 40,
        i64::MAX,
        -1,
        -(1 << 40),
        i64::MIN,
    ] {
        let mut input = head.clone();
        input.extend(zigzag(count));
        refused("manifest", &input);
        input.extend(zigzag(i64::MAX));
        refused("manifest", &input);
        // The same in a storage manifest's header.
        let mut input = b"Obj\x01".to_vec();
        input.extend(zigzag(count));
        refused("storage-manifest", &input);
    }
    // A record of records of nothing: two to the power of thirty values in a file without a byte of them.
    let mut schema = r#"{"type":"record","name":"R0","fields":[]}"#.to_owned();
    for level in 1..30 {
        schema = format!(
            r#"{{"type":"record","name":"R{level}","fields":[{{"name":"a","type":{schema}}},{{"name":"b","type":"R{}"}}]}}"#,
            level - 1
        );
    }
    let mut input = b"Obj\x01".to_vec();
    input.extend(zigzag(1));
    for text in ["avro.schema", &schema] {
        input.extend(zigzag(text.len() as i64));
        input.extend(text.as_bytes());
    }
    input.push(0);
    input.extend([7; 16]);
    input.extend(zigzag(1));
    input.extend(zigzag(0));
    input.extend([7; 16]);
    refused("storage-manifest", &input);
}

#[test]
fn nesting_ends_before_the_stack_does() {
    let open = "[".repeat(60_000);
    refused("metadata", open.as_bytes());
    refused("metadata", format!(r#"{{"collection":{open}"#).as_bytes());
    refused("manifest-path", format!("{{{open}").as_bytes());
    refused("wire", &vec![0x0b; 60_000]);
    let mut yaml = String::new();
    for depth in 0..3_000 {
        yaml.push_str(&" ".repeat(depth % 40));
        yaml.push_str("- ");
    }
    refused(
        "yaml",
        format!("minio: {}", "{a: ".repeat(3_000)).as_bytes(),
    );
    refused("yaml", format!("minio:\n  a: {open}").as_bytes());
    let _ = decoder("yaml").try_one(yaml.as_bytes()).unwrap();
}

#[test]
fn what_is_packed_does_not_become_a_bomb() {
    // 256 MiB of nothing in a quarter of a megabyte.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let nothing = vec![b' '; 1 << 20];
    for _ in 0..256 {
        packed.write_all(&nothing).unwrap();
    }
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 300_000, "{}", packed.len());
    refused("dump", &packed);
    // A zstd frame of blocks that repeat one byte 128 KiB long, four bytes each.
    let place = corrupt::seeds::keys()
        .iter()
        .position(|(family, _)| format!("{family:?}") == "CollectionTarget")
        .unwrap();
    let mut frame = vec![place as u8, 0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x68];
    for _ in 0..2_000 {
        let head = ((128 * 1024_u32) << 3 | 2).to_le_bytes();
        frame.extend([head[0], head[1], head[2], 0]);
    }
    refused("value", &frame);
    // One that asks for a window of half a gigabyte.
    refused(
        "value",
        &[place as u8, 0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x98, 1, 0, 0],
    );
}
