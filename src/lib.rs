//! # Falconer
//!
//! *Birdwatchers look. A falconer handles the bird.*
//!
//! A terminal console with an embedded engine for Milvus-format clusters. It shows collections, segments, channel checkpoints,
//! snapshots and restore jobs live, and creates, restores, verifies and drops snapshots and collects garbage: against a real
//! cluster's etcd and bucket with every coordinator down, or on an embedded store that needs no server.
//!
//! ## Three ways to attach, one engine
//!
//! | attach | metadata | objects | what it may do |
//! |---|---|---|---|
//! | embedded (default) | redb file or memory | local folder or memory | everything |
//! | cluster | etcd | S3 and compatible, Azure, GCS, local folder | everything while no coordinator lives and our fence holds; otherwise observe and plan |
//! | dump | an etcd dump, in memory | optional | read only |
//!
//! ## Rooms
//!
//! ```text
//! main            argv → profile → runtime → ui or cli → exit code
//! cli             every screen and verb as a subcommand
//! config          where is my cluster; every value knows its origin
//! engine          the only door for ui and cli is engine::Handle
//!   ids error clock          names, one error type, injected time and randomness
//!   meta objects             stores: they know bytes, never what the bytes mean
//!   format                   bytes ⇄ types, pure
//!   model                    plain data, catalog, holds, verdicts, registry: pure
//!   plan                     Intent → Plan → execute → journal: the one write path; the ledger of what runs
//!   wal                      logs of the channels that we own, their checkpoints
//!   broadcast                one message to many channels, then callbacks
//!   data                     takes in what the logs carry, reports under a log's term
//!   coordinator              that a root is ours; opens log, checkpoints and broadcaster; what a broadcast does
//!   jobs                     snapshot, restore, gc, copy pool: step machines
//! ui              event loop, update(), keymap, theme, virtual table, overlays, screens
//! ```
//!
//! Dependencies point one way, and `tests/architecture.rs` reads the sources to keep it so:
//!
//! ```text
//! ids, error, clock ← format ← model ← plan ← wal ← broadcast ← data ← coordinator ← jobs ← engine (Handle) ← ui, cli ← main
//!       meta (traits), objects: know bytes only; constructed only in engine
//! ```
//!
//! ## Laws
//!
//! Numbered invariants; comments and tests refer to them.
//!
//! 1. **Lossless.** A value that is rewritten keeps every field we do not know ([`engine::format::wire`]).
//! 2. **One write path.** Intent → plan → diff → confirmation → fences → compare-and-swap with pre-image, audit entry and step
//!    marker in the same transaction → journal. No prefix delete exists. What runs because of such a change and moves with every
//!    message (a log's index, a broadcast's record, a checkpoint) is a compare-and-swap on its own revision under the same fence
//!    ([`engine::plan::ledger`]): the record is its own marker.
//! 3. **Three outcomes.** Committed, refused, or unknown; the step marker settles the unknown. Objects too.
//! 4. **Fence.** No write into a Milvus root while any coordinator session key exists, or without our own lease and epoch.
//!    A session key is never created. New ids come from the cluster's own allocator key, moved forward, never back.
//! 5. **Never delete on doubt.** Unreadable, unknown, unanswered: keep, and show what it costs. Objects go first, the record last.
//! 6. **Verdicts are pure functions** in [`engine::model`], used alike by simulator, screen and executor.
//! 7. **Jobs are step machines.** Journaled after each step, idempotent, resumed or undone after a crash, published at once at the
//!    end. *Completed* is not *Verified*.
//! 8. **Live views**: watch first, list by pages, merge by revision, publish an immutable snapshot. Errors are shown.
//! 9. **The screen never waits.** `update` is synchronous and total; drawing cannot mutate; idle costs nothing.
//! 10. **Sentinels are not times.** 0, `u64::MAX` and the future never enter a lag, a minimum or a date.
//! 11. **Secrets** are masked in every screen, log, dump and bundle.
//! 12. **Deterministic inside.** Clock and randomness are injected; `clippy.toml` bans the direct calls.

pub mod cli;
pub mod config;
pub mod engine;
pub mod ui;
