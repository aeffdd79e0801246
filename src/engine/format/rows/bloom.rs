//! The bloom filters of primary-key statistics, bit for bit as Milvus's libraries make them: `bits-and-blooms/bloom` v3 (basic,
//! the only one up to 2.3) and `greatroar/blobloom` over XXH3 (blocked, the default since 2.4).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};
use twox_hash::XxHash3_64;

use super::PrimaryKey;

/// `common.maxBloomFalsePositive`.
pub const FALSE_POSITIVE: f64 = 0.001;
/// Bits of a block.
const BLOCK: usize = 512;
const WORDS: usize = 16;
/// Bits for each key that a blocked filter needs, by ⌈-log₂ p / ln 2⌉ (Putze, Sanders and Singler 2010, table I).
const BITS: [u8; 35] = [
    1, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 20, 21, 23, 25, 26, 28, 30, 32, 35,
    38, 40, 44, 48, 51, 58, 64, 74, 90,
];

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bloom {
    /// `bfType` 3, and every file without the member.
    Basic {
        /// Bits.
        m: u64,
        /// Hashes.
        k: u32,
        /// 64 bits each.
        words: Vec<u64>,
    },
    /// `bfType` 4.
    Blocked {
        /// Hashes; one less is used.
        k: u32,
        /// 512 bits each.
        blocks: Vec<[u32; WORDS]>,
    },
    /// `bfType` 2, and what Milvus takes when a filter cannot be read: every key may be there.
    AlwaysTrue,
}

impl Bloom {
    /// An empty blocked filter for so many keys.
    #[must_use]
    pub fn blocked(keys: usize) -> Self {
        let n = keys.max(1) as f64;
        let rank = (-FALSE_POSITIVE.log2() / std::f64::consts::LN_2).ceil() as usize;
        let each = f64::from(BITS.get(rank).copied().unwrap_or(90));
        let blocks = ((each * n) as usize).div_ceil(BLOCK).max(1);
        let k = (blocks as f64 * BLOCK as f64 / n * std::f64::consts::LN_2).ceil();
        Self::Blocked {
            // For a handful of keys a block is far too large, and the formula asks for hundreds of hashes.
            k: (k as u32).clamp(2, 64),
            blocks: vec![[0; WORDS]; blocks],
        }
    }

    /// The number that Milvus gives the kind.
    #[must_use]
    pub fn kind(&self) -> i64 {
        match self {
            Self::AlwaysTrue => 2,
            Self::Basic { .. } => 3,
            Self::Blocked { .. } => 4,
        }
    }

    /// Notes a key. Of no effect on a filter that is always true.
    pub fn add(&mut self, key: &PrimaryKey) {
        key_bytes(key, |bytes| match self {
            Self::Basic { m, k, words } => {
                for at in basic_places(bytes, *m, *k) {
                    if let Some(word) = words.get_mut((at / 64) as usize) {
                        *word |= 1 << (at % 64);
                    }
                }
            }
            Self::Blocked { k, blocks } => {
                let hash = XxHash3_64::oneshot(bytes);
                let at = block_of(hash, blocks.len());
                if let Some(block) = blocks.get_mut(at) {
                    for bit in block_bits(hash, *k) {
                        block[(bit / 32) as usize % WORDS] |= 1 << (bit % 32);
                    }
                }
            }
            Self::AlwaysTrue => {}
        });
    }

    /// Whether the key may be there; `false` is certain.
    #[must_use]
    pub fn may_have(&self, key: &PrimaryKey) -> bool {
        let mut found = true;
        key_bytes(key, |bytes| {
            found = match self {
                Self::Basic { m, k, words } => basic_places(bytes, *m, *k).all(|at| {
                    words
                        .get((at / 64) as usize)
                        .is_some_and(|word| word >> (at % 64) & 1 == 1)
                }),
                Self::Blocked { k, blocks } => {
                    let hash = XxHash3_64::oneshot(bytes);
                    blocks
                        .get(block_of(hash, blocks.len()))
                        .is_none_or(|block| {
                            block_bits(hash, *k).all(|bit| {
                                block[(bit / 32) as usize % WORDS] >> (bit % 32) & 1 == 1
                            })
                        })
                }
                Self::AlwaysTrue => true,
            };
        });
        found
    }

    /// From Milvus's JSON. `None` when it is not of this kind's form: then every key may be there.
    #[must_use]
    pub fn from_json(kind: i64, stored: &Value) -> Option<Self> {
        let k = u32::try_from(stored.get("k")?.as_u64()?)
            .ok()
            .filter(|k| *k <= 1 << 10)?;
        match kind {
            3 => {
                let m = stored.get("m")?.as_u64().filter(|m| *m > 0)?;
                let raw = decoded(stored.get("b")?.as_str()?)?;
                let (bits, raw) = raw.split_first_chunk::<8>()?;
                let (words, _) = raw.as_chunks::<8>();
                let words: Vec<u64> = words.iter().map(|w| u64::from_be_bytes(*w)).collect();
                let has = u64::from_be_bytes(*bits);
                (has >= m && words.len() as u64 >= m.div_ceil(64)).then_some(Self::Basic {
                    m,
                    k,
                    words,
                })
            }
            4 => {
                let blocks: Option<Vec<[u32; WORDS]>> = stored
                    .get("b")?
                    .as_array()?
                    .iter()
                    .map(|block| block_from(&decoded(block.as_str()?)?))
                    .collect();
                let blocks = blocks.filter(|b| !b.is_empty())?;
                (k >= 2).then_some(Self::Blocked { k, blocks })
            }
            2 => Some(Self::AlwaysTrue),
            _ => None,
        }
    }

    /// Blocks as they lie in a binary statistics file.
    #[must_use]
    pub fn from_blocks(k: u32, raw: &[u8]) -> Option<Self> {
        let blocks: Option<Vec<_>> = raw.chunks(BLOCK / 8).map(block_from).collect();
        (2..=1 << 10)
            .contains(&k)
            .then_some(Self::Blocked { k, blocks: blocks? })
    }

    /// Milvus's JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Basic { m, k, words } => {
                let mut raw = m.to_be_bytes().to_vec();
                raw.extend(words.iter().flat_map(|w| w.to_be_bytes()));
                json!({ "m": m, "k": k, "b": URL_SAFE.encode(raw) })
            }
            Self::Blocked { k, blocks } => {
                let blocks: Vec<String> = blocks
                    .iter()
                    .map(|block| {
                        let raw: Vec<u8> = block.iter().flat_map(|w| w.to_le_bytes()).collect();
                        URL_SAFE.encode(raw)
                    })
                    .collect();
                json!({ "k": k, "b": blocks })
            }
            Self::AlwaysTrue => json!({}),
        }
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    // With and without padding: Go's library writes it, other writers leave it out.
    let bare = text.trim_end_matches('=');
    base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(bare)
        .ok()
}

fn block_from(raw: &[u8]) -> Option<[u32; WORDS]> {
    let (words, rest) = raw.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|w| u32::from_le_bytes(*w)).collect();
    rest.is_empty().then(|| words.try_into().ok()).flatten()
}

/// Numbers are hashed as 8 bytes, little-endian.
fn key_bytes(key: &PrimaryKey, mut use_it: impl FnMut(&[u8])) {
    match key {
        PrimaryKey::Int(n) => use_it(&n.to_le_bytes()),
        PrimaryKey::Text(text) => use_it(text.as_bytes()),
    }
}

fn block_of(hash: u64, blocks: usize) -> usize {
    (((hash & 0xFFFF_FFFF) * blocks as u64) >> 32) as usize
}

/// Enhanced double hashing of the two halves.
fn block_bits(hash: u64, k: u32) -> impl Iterator<Item = u32> {
    let (mut h1, mut h2) = ((hash >> 32) as u32, hash as u32);
    (1..k).map(move |i| {
        h1 = h1.wrapping_add(h2);
        h2 = h2.wrapping_add(i);
        h1 % BLOCK as u32
    })
}

fn basic_places(bytes: &[u8], m: u64, k: u32) -> impl Iterator<Item = u64> {
    let (first, second) = (murmur128(bytes, None), murmur128(bytes, Some(1)));
    let h = [first.0, first.1, second.0, second.1];
    (0..u64::from(k)).map(move |i| {
        let step = h[(2 + (((i + (i % 2)) % 4) / 2)) as usize];
        h[(i % 2) as usize].wrapping_add(i.wrapping_mul(step)) % m
    })
}

/// MurmurHash3, 128 bits, x64, seed 0, of the bytes and one more.
fn murmur128(bytes: &[u8], more: Option<u8>) -> (u64, u64) {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mut all = bytes.to_vec();
    all.extend(more);
    let (mut h1, mut h2) = (0u64, 0u64);
    let (blocks, tail) = all.as_chunks::<16>();
    let half = |raw: &[u8]| {
        raw.iter()
            .rev()
            .fold(0u64, |sum, b| (sum << 8) | u64::from(*b))
    };
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    for block in blocks {
        h1 ^= mix1(half(&block[..8]));
        h1 = h1
            .rotate_left(27)
            .wrapping_add(h2)
            .wrapping_mul(5)
            .wrapping_add(0x52dc_e729);
        h2 ^= mix2(half(&block[8..]));
        h2 = h2
            .rotate_left(31)
            .wrapping_add(h1)
            .wrapping_mul(5)
            .wrapping_add(0x3849_5ab5);
    }
    if tail.len() > 8 {
        h2 ^= mix2(half(&tail[8..]));
    }
    if !tail.is_empty() {
        h1 ^= mix1(half(&tail[..tail.len().min(8)]));
    }
    let length = all.len() as u64;
    h1 ^= length;
    h2 ^= length;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    let end = |mut k: u64| {
        k ^= k >> 33;
        k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
        k ^= k >> 33;
        k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        k ^ (k >> 33)
    };
    h1 = end(h1);
    h2 = end(h2);
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    (h1, h2)
}
