//! The catalog over the captured cluster: order of arrival, taking things back, and the registry over every row.

mod support;

#[path = "model/beside.rs"]
mod beside;
#[path = "model/broadcasts.rs"]
mod broadcasts;
#[path = "model/levels.rs"]
mod levels;

use std::collections::BTreeMap;

use bytes::Bytes;
use falconer::engine::format::keys::Roots;
use falconer::engine::ids::{MetaKey, MetaRev, UnixMs};
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::broadcast::BroadcastsView;
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::health;
use falconer::engine::model::jobs::JobsView;
use falconer::engine::model::overview::overview;
use falconer::engine::model::references::Index;
use falconer::engine::model::resource::{self, Cell, Kind, Link, Scope, View};
use proptest::prelude::*;
use support::lab;

fn keyspace() -> Vec<KeyValue> {
    lab::etcd()
        .into_iter()
        .map(|k| KeyValue {
            key: MetaKey(Bytes::from(k.key)),
            value: Bytes::from(k.value),
            create_rev: MetaRev(k.create_revision),
            mod_rev: MetaRev(k.mod_revision),
            version: k.version,
            lease: k.lease,
        })
        .collect()
}

fn from_scratch(keys: &[KeyValue]) -> Catalog {
    let events: Vec<Event> = keys.iter().cloned().map(Event::Put).collect();
    let mut catalog = Catalog::default();
    catalog.apply(&Roots::default(), &events);
    catalog
}

/// The capture was taken then.
const TAKEN: UnixMs = UnixMs(1_795_427_098_540);

/// Without a bucket nothing is known of any snapshot's files.
fn unread() -> &'static Index {
    static NONE: std::sync::OnceLock<Index> = std::sync::OnceLock::new();
    NONE.get_or_init(Index::default)
}

/// This process drives no broadcast.
fn idle() -> &'static BroadcastsView {
    static NONE: std::sync::OnceLock<BroadcastsView> = std::sync::OnceLock::new();
    NONE.get_or_init(BroadcastsView::default)
}

fn view<'a>(catalog: &'a Catalog, jobs: &'a JobsView) -> View<'a> {
    View {
        catalog,
        jobs,
        broadcasts: idle(),
        references: unread(),
        now: TAKEN,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Any order and any batching of the same writes, with writes that are taken back in between, is the same catalog.
    #[test]
    fn the_order_of_arrival_does_not_matter(
        seed in any::<u64>(),
        cuts in prop::collection::vec(1usize..200, 1..40),
        victims in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60),
    ) {
        let keys = keyspace();
        let mut last: BTreeMap<MetaKey, KeyValue> = keys.iter().map(|kv| (kv.key.clone(), kv.clone())).collect();

        // A script for each key: perhaps another key's value first, then its own; perhaps a deletion at the end.
        let mut scripts: Vec<Vec<Event>> = keys.iter().map(|kv| vec![Event::Put(kv.clone())]).collect();
        for (at, from) in &noise {
            let (at, from) = (at.index(keys.len()), from.index(keys.len()));
            let wrong = KeyValue {
                value: keys[from].value.clone(),
                mod_rev: MetaRev(keys[at].mod_rev.0 - 1),
                ..keys[at].clone()
            };
            scripts[at].insert(0, Event::Put(wrong));
        }
        for at in &victims {
            let at = at.index(keys.len());
            let rev = MetaRev(keys[at].mod_rev.0 + 1);
            scripts[at].push(Event::Delete(keys[at].key.clone(), rev));
            last.remove(&keys[at].key);
        }
        let mut order: Vec<usize> = scripts.iter().enumerate().flat_map(|(i, s)| vec![i; s.len()]).collect();
        let mut state = seed | 1;
        for i in (1..order.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(i, (state % (i as u64 + 1)) as usize);
        }
        let mut taken = vec![0; scripts.len()];
        let events: Vec<Event> = order.into_iter().map(|i| {
            taken[i] += 1;
            scripts[i][taken[i] - 1].clone()
        }).collect();

        let mut shuffled = Catalog::default();
        let mut rest = events.as_slice();
        for cut in cuts.iter().cycle() {
            let (batch, more) = rest.split_at((*cut).min(rest.len()));
            shuffled.apply(&Roots::default(), batch);
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        let kept: Vec<KeyValue> = last.into_values().collect();
        let mut plain = from_scratch(&kept);
        plain.rev = shuffled.rev;
        prop_assert_eq!(&shuffled.sums, &plain.sums);
        prop_assert_eq!(&shuffled.keys, &plain.keys);
        prop_assert_eq!(&shuffled.collections, &plain.collections);
        prop_assert_eq!(&shuffled.channels, &plain.channels);
        prop_assert!(shuffled == plain);
    }
}

#[test]
fn a_stale_event_changes_nothing() {
    let keys = keyspace();
    let catalog = from_scratch(&keys);
    let mut again = catalog.clone();
    let old: Vec<Event> = keys
        .iter()
        .map(|kv| {
            Event::Put(KeyValue {
                value: Bytes::from_static(b"\xff\xff"),
                mod_rev: MetaRev(kv.mod_rev.0 - 1),
                ..kv.clone()
            })
        })
        .collect();
    again.apply(&Roots::default(), &old);
    assert!(again == catalog);
}

#[test]
fn deleting_every_key_leaves_nothing() {
    let keys = keyspace();
    let mut catalog = from_scratch(&keys);
    let gone: Vec<Event> = keys
        .iter()
        .map(|kv| Event::Delete(kv.key.clone(), MetaRev(i64::MAX)))
        .collect();
    catalog.apply(&Roots::default(), &gone);
    let mut empty = Catalog::default();
    empty.rev = catalog.rev;
    assert!(catalog == empty, "{catalog:#?}");
}

#[test]
fn every_real_value_is_read() {
    let catalog = from_scratch(&keyspace());
    assert_eq!(catalog.keys.len(), 1710);
    assert!(catalog.undecodable.is_empty(), "{:?}", catalog.undecodable);
    assert_eq!(catalog.headless_segments(), 0);
}

#[test]
fn a_broken_value_becomes_a_row_and_goes_when_it_is_mended() {
    let keys = keyspace();
    let mut catalog = from_scratch(&keys);
    let whole = catalog.clone();
    let victim = keys
        .iter()
        .find(|kv| kv.key.text().contains("datacoord-meta/s/"))
        .expect("a segment");
    let broken = KeyValue {
        value: Bytes::from_static(b"\x0a\xff"),
        mod_rev: MetaRev(catalog.rev.0 + 1),
        ..victim.clone()
    };
    catalog.apply(&Roots::default(), &[Event::Put(broken)]);
    assert_eq!(catalog.undecodable.len(), 1);
    assert_eq!(catalog.segment_count(), whole.segment_count() - 1);
    assert_eq!(catalog.headless_segments(), 1, "its logs stay, loose");
    let mended = KeyValue {
        mod_rev: MetaRev(catalog.rev.0 + 1),
        ..victim.clone()
    };
    catalog.apply(&Roots::default(), &[Event::Put(mended)]);
    assert!(catalog.undecodable.is_empty());
    assert_eq!(catalog.sums, whole.sums);
}

#[test]
fn the_registry_answers_for_every_row() {
    let catalog = from_scratch(&keyspace());
    let jobs = JobsView::default();
    every_row_answers(&view(&catalog, &jobs));
}

/// Whatever is listed has cells, a detail view, JSON, keys, links that lead somewhere, and is found by its id.
fn every_row_answers(view: &View<'_>) {
    let catalog = view.catalog;
    for kind in Kind::ALL {
        let spec = kind.spec();
        assert_eq!(spec.kind, *kind);
        assert_eq!(Kind::parse(spec.name), Some(*kind));
        for alias in spec.aliases {
            assert_eq!(Kind::parse(alias), Some(*kind), "{alias}");
        }
        assert!(spec.sort.0 < spec.columns.len());
        let ids = resource::ids(view, *kind, &Scope::default());
        for (column, _) in spec.columns.iter().enumerate() {
            let sorted = resource::list(view, *kind, &Scope::default(), Some((column, true)));
            assert_eq!(sorted.len(), ids.len());
        }
        for id in &ids {
            assert_eq!(id.kind(), *kind);
            assert!(resource::row(view, id).is_some(), "{id:?}");
            assert_ne!(resource::cell(view, id, 0), Cell::None, "{id:?}");
            let keys = resource::keys(view, id);
            assert!(!keys.is_empty(), "{id:?}");
            for key in &keys {
                assert!(catalog.keys.get(key).is_some());
            }
            assert!(!resource::detail(view, id).is_empty());
            assert!(resource::json(view, id).is_object());
            for (label, link) in resource::related(view, id) {
                match link {
                    Link::Row(to) => assert!(resource::row(view, &to).is_some(), "{label}"),
                    Link::List(kind, scope) => {
                        assert!(!resource::ids(view, kind, &scope).is_empty(), "{label}");
                    }
                }
            }
            if *kind != Kind::Keys {
                let found = resource::find(view, *kind, &id.text());
                assert!(
                    found.as_ref().is_ok_and(|f| f == id)
                        || *kind == Kind::Partitions
                        || *kind == Kind::Aliases,
                    "{id:?}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn names_are_found_and_ambiguity_lists_the_candidates() {
    let catalog = from_scratch(&keyspace());
    let jobs = JobsView::default();
    let view = view(&catalog, &jobs);
    let books = resource::find(&view, Kind::Collections, "default/books").expect("default/books");
    let other =
        resource::find(&view, Kind::Collections, "analytics/books").expect("analytics/books");
    assert_ne!(books, other);
    let both = resource::find(&view, Kind::Collections, "books").expect_err("two books");
    assert!(
        both.what().contains("analytics/books") && both.what().contains("default/books"),
        "{both}"
    );
    let none = resource::find(&view, Kind::Collections, "nothing").expect_err("nothing");
    assert_eq!(none.kind(), falconer::engine::error::ErrorKind::NotFound);
    assert!(resource::find(&view, Kind::Partitions, "default/books/_default").is_ok());
    let alias = catalog.aliases.values().next().expect("an alias");
    let through = resource::find(&view, Kind::Collections, &alias.name).expect("by alias");
    assert_eq!(through, resource::RowId::Collection(alias.collection));
}

#[test]
fn an_old_or_strange_checkpoint_never_enters_a_lag() {
    use prost::Message as _;
    let keys = keyspace();
    let mut catalog = from_scratch(&keys);
    let jobs = JobsView::default();
    let before = overview(&view(&catalog, &jobs));
    let real = catalog.channels.values().next().expect("a channel").clone();
    for (n, timestamp) in [
        0,
        u64::MAX,
        u64::MAX - 1,
        1 << 18,
        (TAKEN.0 as u64 + 86_400_000) << 18,
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!(
            "by-dev-rootcoord-dml_0_{}v{n}",
            real.collection.expect("its collection")
        );
        let value = falconer::engine::format::pb::msg::MsgPosition {
            timestamp,
            ..Default::default()
        };
        let rev = MetaRev(catalog.rev.0 + 1);
        let put = KeyValue {
            key: MetaKey::from(format!("by-dev/meta/datacoord-meta/channel-cp/{name}")),
            value: Bytes::from(value.encode_to_vec()),
            create_rev: rev,
            mod_rev: rev,
            version: 1,
            lease: 0,
        };
        catalog.apply(&Roots::default(), &[Event::Put(put)]);
    }
    let after = overview(&view(&catalog, &jobs));
    assert_eq!(after.newest_checkpoint, before.newest_checkpoint);
    assert_eq!(after.worst_lag, before.worst_lag);
    assert_eq!(after.worst_behind, before.worst_behind);
    let states: Vec<&str> = catalog
        .channels
        .values()
        .map(|c| health::channel_state(&view(&catalog, &jobs), c).0)
        .collect();
    assert!(states.contains(&"UNSET") && states.contains(&"DROPPED"));
    assert!(states.contains(&"FUTURE") && states.contains(&"NOT-A-TIME"));
}
