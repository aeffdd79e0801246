//! Inputs made from the format's own structure: nearly right, with one thing that lies.

use falconer::engine::format::json;
use falconer::engine::format::manifest::Shape;
use prost_reflect::{Kind, MessageDescriptor};

use super::chance::{Chance, NUMBERS};
use super::mutate::{hostile, odd_text, varint};

/// One field in this many lies about its length or its kind.
const LIES: usize = 40;

fn zigzag(out: &mut Vec<u8>, value: i64) {
    varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

fn number(chance: &mut Chance) -> i64 {
    if chance.once_in(3) {
        *chance.pick(&NUMBERS)
    } else {
        chance.below(1_000) as i64
    }
}

/// An Avro writer that sometimes lies.
struct Avro {
    chance: Chance,
    out: Vec<u8>,
    /// Values that may still be written.
    left: usize,
}

impl Avro {
    fn lies(&mut self) -> bool {
        self.chance.once_in(LIES)
    }

    fn longs(&mut self, n: usize) {
        for _ in 0..n {
            let value = number(&mut self.chance);
            zigzag(&mut self.out, value);
        }
    }

    fn int(&mut self) {
        let value = if self.lies() {
            number(&mut self.chance)
        } else {
            self.chance.below(100) as i64
        };
        zigzag(&mut self.out, value);
    }

    fn text(&mut self) {
        let text = if self.chance.once_in(6) {
            odd_text(&mut self.chance)
        } else {
            format!("files/insert_log/1/2/3/{}", self.chance.below(9))
        };
        if self.lies() {
            let wrong = hostile(&mut self.chance);
            varint(&mut self.out, wrong);
        } else {
            zigzag(&mut self.out, text.len() as i64);
        }
        self.out.extend_from_slice(text.as_bytes());
    }

    fn boolean(&mut self) {
        let byte = if self.lies() { 2 } else { self.chance.below(2) };
        self.out.push(byte as u8);
    }

    fn array(&mut self, item: fn(&mut Self, Shape), shape: Shape) {
        for _ in 0..self.chance.below(3) {
            let count = self.chance.below(4).min(self.left);
            self.left -= count;
            if count == 0 && !self.lies() {
                break;
            }
            let outer = std::mem::take(&mut self.out);
            for _ in 0..count {
                item(self, shape);
            }
            let body = std::mem::replace(&mut self.out, outer);
            if self.lies() {
                let wrong = hostile(&mut self.chance);
                varint(&mut self.out, wrong);
            } else if self.chance.once_in(2) {
                zigzag(&mut self.out, count as i64);
            } else {
                zigzag(&mut self.out, -(count as i64));
                let size = if self.lies() {
                    number(&mut self.chance)
                } else {
                    body.len() as i64
                };
                zigzag(&mut self.out, size);
            }
            self.out.extend_from_slice(&body);
        }
        self.out.push(0);
    }

    fn log(&mut self, _: Shape) {
        self.longs(3);
        self.text();
        self.longs(3);
    }

    fn logs(&mut self, shape: Shape) {
        self.longs(1);
        if shape == Shape::V4 {
            self.array(|a, _| a.longs(1), shape);
            self.text();
        }
        self.array(Self::log, shape);
    }

    fn pair(&mut self, _: Shape) {
        self.text();
        self.text();
    }

    fn index(&mut self, shape: Shape) {
        self.longs(4);
        self.text();
        self.array(Self::pair, shape);
        self.array(|a, _| a.text(), shape);
        self.longs(3);
        self.int();
        self.longs(1);
        if shape != Shape::V1Early {
            self.int();
        }
        if shape >= Shape::V2 {
            self.int();
        }
    }

    fn stats(&mut self, shape: Shape) {
        self.longs(3);
        self.array(|a, _| a.text(), shape);
        self.longs(3);
    }

    fn json_stats(&mut self, shape: Shape) {
        self.stats(shape);
        self.longs(1);
    }

    fn position(&mut self) {
        self.text();
        self.text();
        self.text();
        self.longs(1);
    }
}

/// A manifest of a shape.
pub fn manifest(chance: &mut Chance, shape: Shape) -> Vec<u8> {
    let mut a = Avro {
        chance: chance.clone(),
        out: Vec::new(),
        left: 60,
    };
    a.longs(2);
    a.int();
    a.text();
    a.longs(1);
    a.position();
    a.position();
    a.longs(1);
    a.boolean();
    if shape >= Shape::V3 {
        a.longs(1);
    }
    for _ in 0..4 {
        a.array(Avro::logs, shape);
    }
    a.array(Avro::index, shape);
    a.array(Avro::stats, shape);
    a.array(Avro::json_stats, shape);
    let mut out = a.out;
    *chance = a.chance;
    if chance.once_in(10) {
        let at = chance.below(out.len() + 1);
        out.truncate(at);
    }
    out
}

/// A protobuf message of this name: fields of the right kind most of the time, unknown ones, groups, nesting.
pub fn message(chance: &mut Chance, name: &str) -> Vec<u8> {
    let of = json::descriptor(name).expect("a message of the descriptors");
    let mut out = Vec::new();
    let mut left = 80;
    fields(chance, &of, &mut out, 0, &mut left);
    out
}

fn fields(
    chance: &mut Chance,
    of: &MessageDescriptor,
    out: &mut Vec<u8>,
    depth: usize,
    left: &mut usize,
) {
    let all: Vec<_> = of.fields().collect();
    for _ in 0..chance.below(all.len().min(12) + 2) {
        if *left == 0 {
            return;
        }
        *left -= 1;
        if all.is_empty() || chance.once_in(LIES) {
            strange(chance, out);
            continue;
        }
        let field = chance.pick(&all);
        let tag = u64::from(field.number()) << 3;
        match field.kind() {
            Kind::Message(inner) if depth < 6 => {
                let mut body = Vec::new();
                fields(chance, &inner, &mut body, depth + 1, left);
                len(chance, out, tag, &body);
            }
            Kind::String | Kind::Bytes | Kind::Message(_) => {
                let text = if chance.once_in(10) {
                    vec![0xff; chance.below(4)]
                } else {
                    odd_text(chance).into_bytes()
                };
                len(chance, out, tag, &text);
            }
            Kind::Fixed64 | Kind::Sfixed64 | Kind::Double => {
                varint(out, tag | 1);
                out.extend_from_slice(&hostile(chance).to_le_bytes());
            }
            Kind::Fixed32 | Kind::Sfixed32 | Kind::Float => {
                varint(out, tag | 5);
                out.extend_from_slice(&hostile(chance).to_le_bytes()[..4]);
            }
            _ if field.is_list() && chance.once_in(2) => {
                let mut body = Vec::new();
                for _ in 0..chance.below(8) {
                    varint(&mut body, hostile(chance));
                }
                len(chance, out, tag, &body);
            }
            _ => {
                varint(out, tag);
                varint(out, number(chance) as u64);
            }
        }
    }
}

fn len(chance: &mut Chance, out: &mut Vec<u8>, tag: u64, body: &[u8]) {
    varint(out, tag | 2);
    let said = if chance.once_in(LIES) {
        hostile(chance)
    } else {
        body.len() as u64
    };
    varint(out, said);
    out.extend_from_slice(body);
}

/// A record that no message has.
fn strange(chance: &mut Chance, out: &mut Vec<u8>) {
    match chance.below(5) {
        0 => {
            // Groups as deep as they may be, and deeper.
            let deep = chance.below(150);
            out.extend(std::iter::repeat_n(0x0b, deep));
            out.extend(std::iter::repeat_n(
                0x0c,
                deep - usize::from(deep > 0 && chance.once_in(4)),
            ));
        }
        1 => {
            // One message in another, as deep as they may be, and deeper: field 1 of field 1 of field 1 …
            let mut body = vec![0x0a, 0];
            for _ in 0..chance.below(150) {
                let mut outer = vec![0x0a];
                varint(&mut outer, body.len() as u64);
                outer.extend_from_slice(&body);
                body = outer;
            }
            out.extend_from_slice(&body);
        }
        2 => {
            varint(out, hostile(chance));
            varint(out, hostile(chance));
        }
        3 => {
            let tag = (chance.below(3_000) as u64 + 1) << 3;
            let text = odd_text(chance);
            len(chance, out, tag, text.as_bytes());
        }
        _ => out.push(chance.next() as u8),
    }
}

/// Words put together with `glue`: paths, keys, addresses.
pub fn joined(chance: &mut Chance, words: &[&str], glue: &str) -> Vec<u8> {
    let mut out = String::new();
    for n in 0..=chance.below(9) {
        if n > 0 && !chance.once_in(LIES) {
            out.push_str(glue);
        }
        match chance.below(6) {
            0 | 1 => out.push_str(&number(chance).to_string()),
            2 if chance.once_in(4) => out.push_str(&odd_text(chance)),
            _ => out.push_str(chance.pick::<&str>(words)),
        }
    }
    out.into_bytes()
}

/// An Avro container whose block is damaged while the lengths around it are right.
pub fn container(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let seed = chance.pick(seeds);
    let marker = b"0123456789abcdef";
    let Some(first) = seed.windows(16).position(|w| w == marker) else {
        return seed.clone();
    };
    let (header, rest) = seed.split_at(first + 16);
    let mut body = &rest[..rest.len().saturating_sub(16)];
    for _ in 0..2 {
        // The count, and the old length.
        let end = body.iter().position(|b| *b < 0x80).map_or(0, |at| at + 1);
        body = &body[end..];
    }
    let block = super::mutate::damaged(chance, &[body.to_vec()]);
    let mut out = header.to_vec();
    zigzag(&mut out, 1);
    zigzag(&mut out, block.len() as i64);
    out.extend_from_slice(&block);
    out.extend_from_slice(marker);
    out
}
