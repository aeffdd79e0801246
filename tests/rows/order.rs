//! Sort, merge, select, split (I8.4: keys never go down; the rows are the old ones less the deleted).

use falconer::engine::format::rows::order::{self, Merge};
use falconer::engine::format::rows::{Deletes, PrimaryKey, Rows};
use falconer::engine::ids::Tso;
use proptest::prelude::*;

use crate::make::{rows, small};

/// Rows as texts: a multiset that can be compared.
fn multiset(rows: &Rows) -> Vec<String> {
    let mut all: Vec<String> = (0..rows.len())
        .map(|i| {
            serde_json::Value::from(falconer::engine::format::rows::json::row(rows, i)).to_string()
        })
        .collect();
    all.sort();
    all
}

fn pairs() -> impl Strategy<Value = Vec<(i64, i64)>> {
    prop::collection::vec((-20i64..20, 1i64..50), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn sorting_keeps_every_row_that_is_not_deleted(found in pairs(), deleted in prop::collection::vec((-20i64..20, 1u64..50), 0..30)) {
        let rows = small(&found);
        let mut deletes = Deletes::default();
        for (key, at) in &deleted {
            deletes.add(PrimaryKey::Int(*key), Tso(*at));
        }
        let sorted = order::sorted(&rows, &deletes).unwrap();
        prop_assert!(order::is_sorted(&sorted).unwrap());
        // The model: a plain loop over pairs.
        let gone = |key: i64, ts: i64| deleted.iter().any(|(k, at)| *k == key && (ts as u64) < *at);
        let kept: Vec<(usize, (i64, i64))> = found.iter().copied().enumerate().filter(|(_, (k, t))| !gone(*k, *t)).collect();
        prop_assert_eq!(sorted.len(), kept.len());
        let places: Vec<u32> = kept.iter().map(|(i, _)| *i as u32).collect();
        prop_assert_eq!(multiset(&sorted), multiset(&rows.take(&places)));
        // Equal keys stay in their order.
        let again = order::sorted(&sorted, &Deletes::default()).unwrap();
        prop_assert_eq!(again, sorted);
    }

    #[test]
    fn sorting_rows_of_every_type(text: bool, found in any::<bool>().prop_flat_map(|t| rows(t, 25))) {
        let _ = text;
        let sorted = order::sorted(&found, &Deletes::default()).unwrap();
        prop_assert!(order::is_sorted(&sorted).unwrap());
        prop_assert_eq!(multiset(&sorted), multiset(&found));
    }

    /// Merging sorted inputs, each in batches, is sorting all of it.
    #[test]
    fn merging_is_sorting(inputs in prop::collection::vec(pairs(), 0..5), give in 1usize..9, most in 1usize..30) {
        let inputs: Vec<Rows> = inputs.iter().map(|i| order::sorted(&small(i), &Deletes::default()).unwrap()).collect();
        let mut at = vec![0; inputs.len()];
        let mut merge = Merge::new(inputs.len(), |i| {
            let from = at[i];
            let to = (from + give).min(inputs[i].len());
            at[i] = to;
            Ok((from < to).then(|| inputs[i].slice(from..to)))
        });
        let mut whole = Rows::empty(small(&[]).schema().clone());
        let mut merged = whole.clone();
        while let Some(batch) = merge.batch(most).unwrap() {
            prop_assert!(batch.len() <= most);
            merged.append(&batch).unwrap();
        }
        for input in &inputs {
            whole.append(input).unwrap();
        }
        prop_assert_eq!(merged, order::sorted(&whole, &Deletes::default()).unwrap());
    }

    #[test]
    fn parts_are_the_whole(found in rows(true, 30), bytes in 1usize..20_000) {
        let parts = found.split(bytes);
        let mut again = Rows::empty(found.schema().clone());
        for part in &parts {
            prop_assert!(!part.is_empty());
            again.append(part).unwrap();
        }
        prop_assert_eq!(again, found);
    }
}

/// Only what was inserted by then, and not deleted by then.
#[test]
fn rows_at_a_time() {
    let rows = small(&[(1, 10), (2, 20), (1, 30), (3, 40)]);
    let mut deletes = Deletes::default();
    deletes.add(PrimaryKey::Int(1), Tso(25));
    deletes.add(PrimaryKey::Int(3), Tso(40));
    let at = |ts: Option<u64>| rows.alive(&deletes, ts.map(Tso)).unwrap();
    assert_eq!(
        at(None),
        [false, true, true, true],
        "an upsert's own delete does not take its row"
    );
    assert_eq!(at(Some(20)), [true, true, false, false]);
    assert_eq!(at(Some(30)), [false, true, true, false]);
    assert_eq!(rows.filter(&at(None)).len(), 3);
}
