//! Damage: what a broken disk, a cut upload, a wrong version or a hostile hand does to a stored value.

use serde_json::Value;

use super::chance::{Chance, NUMBERS};

/// Longest input that is made.
pub const LONGEST: usize = 64 * 1024;

/// One to four wounds to a copy of one of `seeds`.
pub fn damaged(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = chance.pick(seeds).clone();
    for _ in 0..=chance.below(4) {
        wound(chance, &mut bytes, seeds);
    }
    bytes.truncate(LONGEST);
    bytes
}

fn wound(chance: &mut Chance, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let len = bytes.len();
    let at = chance.below(len + 1);
    let some = |chance: &mut Chance| chance.below(len - at + 1).min(chance.below(32) + 1);
    match chance.below(12) {
        0 | 1 if at < len => bytes[at] ^= 1 << chance.below(8),
        2 if at < len => bytes[at] = chance.next() as u8,
        3 if at < len => bytes[at] = *chance.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'/', b'{']),
        4 => bytes.truncate(at),
        5 => {
            let n = some(chance);
            bytes.drain(at..at + n);
        }
        6 => {
            let n = some(chance);
            let again = bytes[at..at + n].to_vec();
            let times = if chance.once_in(50) { 400 } else { 1 };
            let more = again.repeat(times);
            bytes.splice(at..at, more);
        }
        7 => {
            // The tail of another one.
            let other = chance.pick(seeds);
            let from = chance.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        8 => {
            // A length or a count that lies.
            let mut number = Vec::new();
            varint(&mut number, hostile(chance));
            let n = chance.below(3).min(len - at);
            bytes.splice(at..at + n, number);
        }
        9 => {
            let number = hostile(chance).to_le_bytes();
            let n = [1, 2, 4, 8][chance.below(4)].min(len - at);
            bytes.splice(at..at + n, number[..n].to_vec());
        }
        10 => digits(chance, bytes),
        _ => {
            let n = chance.below(9);
            let noise: Vec<u8> = (0..n).map(|_| chance.next() as u8).collect();
            bytes.splice(at..at, noise);
        }
    }
}

pub fn hostile(chance: &mut Chance) -> u64 {
    let number = *chance.pick(&NUMBERS);
    if chance.once_in(2) {
        // As Avro writes it.
        ((number << 1) ^ (number >> 63)) as u64
    } else {
        number as u64
    }
}

pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Another number in a place of text where a number stands.
fn digits(chance: &mut Chance, bytes: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|i| bytes[*i].is_ascii_digit() && (*i == 0 || !bytes[i - 1].is_ascii_digit()))
        .collect();
    if starts.is_empty() {
        return;
    }
    let start = *chance.pick(&starts);
    let end = (start..bytes.len())
        .find(|i| !bytes[*i].is_ascii_digit())
        .unwrap_or(bytes.len());
    bytes.splice(start..end, odd_number(chance).into_bytes());
}

fn odd_number(chance: &mut Chance) -> String {
    match chance.below(8) {
        0 => "18446744073709551615".into(),
        1 => "9223372036854775808".into(),
        2 => "1e400".into(),
        3 => "-0".into(),
        4 => "1.5".into(),
        5 => "007".into(),
        _ => chance.pick(&NUMBERS).to_string(),
    }
}

/// JSON that is JSON, with members that are not what they were.
pub fn reshaped(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(chance.pick(seeds).as_slice()) else {
        return damaged(chance, seeds);
    };
    for _ in 0..=chance.below(3) {
        reshape(chance, &mut value);
    }
    value.to_string().into_bytes()
}

fn reshape(chance: &mut Chance, value: &mut Value) {
    let deeper = !chance.once_in(4);
    match value {
        Value::Object(members) if deeper && !members.is_empty() => {
            let at = chance.below(members.len());
            let name = members.keys().nth(at).cloned().unwrap_or_default();
            match chance.below(12) {
                0 => drop(members.remove(&name)),
                1 => {
                    let other = members[&name].clone();
                    members.insert(odd_text(chance), other);
                }
                _ => reshape(chance, &mut members[&name]),
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = chance.below(items.len());
            match chance.below(8) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[at].clone()),
                _ => reshape(chance, &mut items[at]),
            }
        }
        other => *other = odd(chance, 0),
    }
}

fn odd(chance: &mut Chance, depth: usize) -> Value {
    match chance.below(12) {
        0 => Value::Null,
        1 => Value::Bool(true),
        2 | 3 => (*chance.pick(&NUMBERS)).into(),
        4 => u64::MAX.into(),
        5 => 1.5e300.into(),
        6 => odd_number(chance).into(),
        7 | 8 => odd_text(chance).into(),
        9 if depth < 3 => Value::Array(
            (0..chance.below(3))
                .map(|_| odd(chance, depth + 1))
                .collect(),
        ),
        10 if depth < 3 => {
            let one = odd(chance, depth + 1);
            Value::Object([(odd_text(chance), one)].into_iter().collect())
        }
        _ if chance.once_in(20) => {
            // As deep as it may be, and deeper.
            (0..chance.below(300)).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
        }
        _ => Value::Object(serde_json::Map::new()),
    }
}

pub fn odd_text(chance: &mut Chance) -> String {
    match chance.below(8) {
        0 => String::new(),
        1 => "\u{1b}[31m\n\r\0".into(),
        2 => "é".repeat(chance.below(600)),
        3 => "../..//.".into(),
        4 => "s3://user:secret@host/b?q#f".into(),
        5 => "AQID=".into(),
        _ => {
            let n = chance.below(12);
            (0..n)
                .map(|_| char::from(b' ' + chance.below(94) as u8))
                .collect()
        }
    }
}

/// The smallest part of `input` that still fails, by taking pieces away and then making bytes plain.
pub fn shrunk(input: &[u8], fails: &mut dyn FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut tries = 20_000_u32;
    let mut size = best.len().div_ceil(2).max(1);
    loop {
        let (mut at, mut less) = (0, false);
        while at < best.len() && tries > 0 {
            let mut smaller = best.clone();
            smaller.drain(at..(at + size).min(best.len()));
            tries -= 1;
            if fails(&smaller) {
                (best, less) = (smaller, true);
            } else {
                at += size;
            }
        }
        if tries == 0 || (size == 1 && !less) {
            break;
        }
        size = if less { size } else { size.div_ceil(2) };
    }
    for at in 0..best.len() {
        let mut plainer = best.clone();
        plainer[at] = 0;
        if tries > 0 && plainer != best && fails(&plainer) {
            best = plainer;
        }
        tries = tries.saturating_sub(1);
    }
    best
}
