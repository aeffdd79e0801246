//! The hybrid of runs and packed bits that holds levels, dictionary indexes and booleans.

/// A place in such a sequence. The bytes are handed to each call, so that the page can own them.
#[derive(Clone, Debug)]
pub(super) struct Hybrid {
    at: usize,
    end: usize,
    width: u8,
    run: Run,
}

#[derive(Clone, Copy, Debug)]
enum Run {
    Done,
    Same { value: u32, left: u64 },
    Packed { bit: u64, left: u64 },
}

impl Hybrid {
    /// Over `bytes[at..end]`, values of `width` bits (at most 32).
    pub fn new(at: usize, end: usize, width: u8) -> Self {
        Self {
            at,
            end,
            width: width.min(32),
            run: Run::Done,
        }
    }

    /// Bits that levels up to `most` take.
    pub fn width_of(most: u16) -> u8 {
        (16 - most.leading_zeros()) as u8
    }

    fn head(&mut self, bytes: &[u8]) -> Option<()> {
        let mut head = 0u64;
        let mut shift = 0;
        loop {
            let byte = *bytes.get(self.at..self.end)?.first()?;
            self.at += 1;
            head |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 35 {
                return None;
            }
        }
        if head & 1 == 0 {
            let wide = usize::from(self.width).div_ceil(8);
            let raw = bytes.get(self.at..self.end)?.get(..wide)?;
            self.at += wide;
            let value = raw
                .iter()
                .rev()
                .fold(0u32, |sum, b| (sum << 8) | u32::from(*b));
            self.run = Run::Same {
                value,
                left: head >> 1,
            };
        } else {
            let groups = head >> 1;
            let there = (self.end - self.at) as u64;
            // Some writers cut the last group at the last value.
            let taken = groups.checked_mul(u64::from(self.width))?.min(there);
            let values = match self.width {
                0 => groups.checked_mul(8)?,
                width => (groups.checked_mul(8)?).min(there * 8 / u64::from(width)),
            };
            self.run = Run::Packed {
                bit: self.at as u64 * 8,
                left: values,
            };
            self.at += usize::try_from(taken).ok()?;
        }
        Some(())
    }

    /// The next value and how often it comes in a row, at most `most` times. `None` when the bytes end or lie.
    pub fn next(&mut self, bytes: &[u8], most: u64) -> Option<(u32, u64)> {
        loop {
            match &mut self.run {
                Run::Same { value, left } if *left > 0 => {
                    let count = (*left).min(most);
                    *left -= count;
                    return Some((*value, count));
                }
                Run::Packed { bit, left } if *left > 0 => {
                    *left -= 1;
                    let value = bits(bytes, *bit, self.width)?;
                    *bit += u64::from(self.width);
                    return Some((value, 1));
                }
                _ => self.head(bytes)?,
            }
        }
    }
}

/// `width` bits at bit `at`, the lowest first.
fn bits(bytes: &[u8], at: u64, width: u8) -> Option<u32> {
    let first = usize::try_from(at / 8).ok()?;
    let shift = at % 8;
    let needed = (usize::from(width) + shift as usize).div_ceil(8);
    let raw = bytes.get(first..first + needed)?;
    let mut word = 0u64;
    for (i, byte) in raw.iter().enumerate() {
        word |= u64::from(*byte) << (8 * i);
    }
    let mask = (1u64 << width) - 1;
    u32::try_from((word >> shift) & mask).ok()
}
