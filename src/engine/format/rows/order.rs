//! Sorting by primary key and merging what is sorted (`spec/lifecycle.md` §8, I8.4).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::table::{Deletes, Rows, compare};
use crate::engine::error::Result;
use crate::engine::format::parquet::{Column, Values};

/// Places of the rows in the order of their keys; equal keys stay in their order.
pub fn by_key(rows: &Rows) -> Result<Vec<u32>> {
    let keys = rows.keys()?;
    let mut order: Vec<u32> = (0u32..).take(rows.len()).collect();
    match &keys.values {
        // The common case: the key goes with its place, so that sorting reads memory in order.
        Values::Int64(keys) => {
            let mut pairs: Vec<(i64, u32)> = keys.iter().copied().zip(0u32..).collect();
            pairs.sort_unstable();
            order.clear();
            order.extend(pairs.into_iter().map(|(_, i)| i));
        }
        _ => order.sort_by(|a, b| compare(keys, *a as usize, keys, *b as usize)),
    }
    Ok(order)
}

/// Whether keys never go down.
pub fn is_sorted(rows: &Rows) -> Result<bool> {
    let keys = rows.keys()?;
    Ok((1..rows.len()).all(|i| compare(keys, i - 1, keys, i) != Ordering::Greater))
}

/// Sorted by primary key, without the deleted ones.
pub fn sorted(rows: &Rows, deletes: &Deletes) -> Result<Rows> {
    let mut order = by_key(rows)?;
    if !deletes.is_empty() {
        let alive = rows.alive(deletes, None)?;
        order.retain(|i| alive[*i as usize]);
    }
    Ok(rows.take(&order))
}

/// Merges inputs that are each sorted, a batch at a time. `next(i)` gives the next batch of input `i`; `None` ends it. Of equal
/// keys the input with the smaller number comes first. One batch of each input is in memory, and the batch that is being built.
pub struct Merge<F> {
    next: F,
    inputs: Vec<Option<(Rows, usize)>>,
    waiting: BinaryHeap<Reverse<Head>>,
    primed: bool,
    schema: Option<std::sync::Arc<super::Schema>>,
}

struct Head {
    key: Key,
    input: usize,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Int(i64),
    Text(Vec<u8>),
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.key, self.input).cmp(&(&other.key, other.input))
    }
}

fn key_of(keys: &Column, i: usize) -> Key {
    match &keys.values {
        Values::Int64(keys) => Key::Int(keys.get(i).copied().unwrap_or(0)),
        Values::Text(keys) => Key::Text(keys.get(i).to_vec()),
        _ => Key::Int(0),
    }
}

impl<F: FnMut(usize) -> Result<Option<Rows>>> Merge<F> {
    /// Of so many inputs.
    pub fn new(inputs: usize, next: F) -> Self {
        Self {
            next,
            inputs: vec![None; inputs],
            waiting: BinaryHeap::new(),
            primed: false,
            schema: None,
        }
    }

    fn refill(&mut self, input: usize) -> Result<()> {
        while let Some(rows) = (self.next)(input)? {
            self.schema.get_or_insert_with(|| rows.schema().clone());
            if !rows.is_empty() {
                let key = key_of(rows.keys()?, 0);
                self.inputs[input] = Some((rows, 0));
                self.waiting.push(Reverse(Head { key, input }));
                return Ok(());
            }
        }
        self.inputs[input] = None;
        Ok(())
    }

    /// The next `most` rows; fewer at the end, `None` after it.
    pub fn batch(&mut self, most: usize) -> Result<Option<Rows>> {
        if !self.primed {
            self.primed = true;
            for input in 0..self.inputs.len() {
                self.refill(input)?;
            }
        }
        let Some(schema) = self.schema.clone() else {
            return Ok(None);
        };
        let mut out = Rows::empty(schema);
        while out.len() < most {
            let Some(Reverse(head)) = self.waiting.pop() else {
                break;
            };
            let Some((rows, from)) = self.inputs[head.input].take() else {
                break;
            };
            let keys = rows.keys()?;
            // As long as this input is the least, its rows go over in one piece.
            let limit = self.waiting.peek().map(|Reverse(other)| other);
            let mut to = from + 1;
            while to < rows.len() && out.len() + (to - from) < most {
                let next = Head {
                    key: key_of(keys, to),
                    input: head.input,
                };
                if limit.is_some_and(|other| next.cmp(other) == Ordering::Greater) {
                    break;
                }
                to += 1;
            }
            out.append_part(&rows, from..to)?;
            if to < rows.len() {
                let key = key_of(keys, to);
                self.inputs[head.input] = Some((rows, to));
                self.waiting.push(Reverse(Head {
                    key,
                    input: head.input,
                }));
            } else {
                self.refill(head.input)?;
            }
        }
        Ok((!out.is_empty()).then_some(out))
    }
}
