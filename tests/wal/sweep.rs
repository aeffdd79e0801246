//! Append, truncation and change of owner, with a fault at each store operation: what was acknowledged is there, what was refused is
//! not, nothing is made up, and nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use falconer::engine::error::{ErrorKind, Result};
use falconer::engine::ids::{MessageId, ObjectKey};
use falconer::engine::meta::Limits;
use falconer::engine::meta::Span;
use falconer::engine::wal::log::Log;
use falconer::engine::wal::{Appended, Wal};
use futures::TryStreamExt;
use object_store::memory::InMemory;

use crate::laws::all;
use crate::support::faults::{Faults, Stores, World, sweep};
use crate::support::mem::MemStore;
use crate::support::snapshots::{NOW, ROOT};
use crate::{PCHANNEL, draft, owner};

/// What the callers of one world heard.
#[derive(Default)]
struct Heard {
    next: usize,
    acked: BTreeMap<String, Appended>,
    /// Certainly not appended.
    refused: BTreeSet<String>,
    /// Begun, and no answer.
    open: BTreeSet<String>,
    cut: MessageId,
}

type Book = Arc<Mutex<Heard>>;

fn passes(e: &falconer::engine::error::Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::OutcomeUnknown
}

/// Appends one message, with a new body for each try.
async fn append(log: &Log, book: &Book) -> Result<Appended> {
    loop {
        let body = {
            let mut heard = book.lock().unwrap();
            heard.next += 1;
            let body = format!("m{}", heard.next);
            heard.open.insert(body.clone());
            body
        };
        let done = log.append(vec![draft(&body)]).await;
        let mut heard = book.lock().unwrap();
        match done {
            Ok(at) => {
                heard.open.remove(&body);
                heard.acked.insert(body, at[0]);
                return Ok(at[0]);
            }
            Err(e) => {
                if e.kind() != ErrorKind::OutcomeUnknown {
                    heard.open.remove(&body);
                    heard.refused.insert(body);
                }
                if !passes(&e) {
                    return Err(e);
                }
            }
        }
    }
}

async fn again<T>(mut call: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    loop {
        match call().await {
            Err(e) if passes(&e) => {}
            done => return done,
        }
    }
}

async fn drive(stores: &Stores, book: &Book) -> Result<()> {
    let own = || {
        owner(
            stores.meta.clone(),
            stores.write.clone(),
            stores.clock.clone(),
        )
    };
    let executor = again(async || own().await).await?;
    let log = again(async || Log::open(executor.clone(), PCHANNEL).await).await?;
    append(&log, book).await?;
    let (a, b, c) = tokio::join!(append(&log, book), append(&log, book), append(&log, book));
    let last = a?.id.max(b?.id).max(c?.id);
    again(async || log.tick().await).await?;
    // Cut all but the last.
    let cut = again(async || log.truncate(last).await).await?;
    {
        let mut heard = book.lock().unwrap();
        heard.cut = heard.cut.max(last);
    }
    assert!(cut <= last);
    append(&log, book).await?;
    // Another owner while the first still works.
    let next = again(async || Log::open(executor.clone(), PCHANNEL).await).await?;
    let late = append(&log, book).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Fenced);
    append(&next, book).await?;
    again(async || next.truncate(MessageId(0)).await).await?;
    next.close().await;
    log.close().await;
    executor.fence().release().await;
    Ok(())
}

async fn check(world: &World, book: &Book, label: &str) {
    world.bury().await;
    let stores = world.open(&Faults::none(), ROOT);
    let executor = owner(
        stores.meta.clone(),
        stores.write.clone(),
        stores.clock.clone(),
    )
    .await
    .unwrap();
    let log = Log::open(executor.clone(), PCHANNEL)
        .await
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    let first = log.end().borrow().first;
    let found = all(&*log, first)
        .await
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    {
        let heard = book.lock().unwrap();
        assert!(
            first <= heard.cut.max(MessageId(1)),
            "{label}: cut at {first}, allowed below {}",
            heard.cut
        );
        let mut bodies = BTreeSet::new();
        for (i, m) in found.iter().enumerate() {
            assert_eq!(m.id.0, first.0 + i64::try_from(i).unwrap(), "{label}");
            assert!(i == 0 || found[i - 1].tick < m.tick, "{label}: ticks");
            let body = String::from_utf8(m.message.payload.clone()).unwrap();
            assert!(
                !heard.refused.contains(&body),
                "{label}: {body} was refused and is there"
            );
            assert!(
                heard.acked.contains_key(&body) || heard.open.contains(&body),
                "{label}: {body} made up"
            );
            assert!(bodies.insert(body.clone()), "{label}: {body} twice");
            if let Some(at) = heard.acked.get(&body) {
                assert_eq!((at.id, at.tick), (m.id, m.tick), "{label}: {body}");
            }
        }
        for (body, at) in heard.acked.iter().filter(|(_, at)| at.id >= first) {
            assert!(
                bodies.contains(body),
                "{label}: {body} at {} is lost",
                at.id
            );
        }
    }
    // Nothing stays behind: objects and index are the same set.
    log.truncate(MessageId(0)).await.unwrap();
    let span = Span::prefix(&executor.keys().wal_segments(PCHANNEL));
    let keys = stores.meta.range_all(&span).await.unwrap().kvs;
    let named: BTreeSet<ObjectKey> = keys
        .iter()
        .map(|kv| {
            let segment: falconer::engine::model::log::Segment =
                serde_json::from_slice(&kv.value).unwrap();
            segment.object
        })
        .collect();
    let folder = ObjectKey(format!("{ROOT}/falconer/by-dev/wal/{PCHANNEL}"));
    let stored: Vec<_> = stores.read.list(&folder, None).try_collect().await.unwrap();
    let stored: BTreeSet<ObjectKey> = stored.into_iter().map(|o| o.key).collect();
    assert_eq!(stored, named, "{label}: objects and index");
    log.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_log_stays_sound_through_every_fault() {
    let current: Mutex<Book> = Mutex::default();
    let make = async || {
        *current.lock().unwrap() = Book::default();
        let limits = Limits {
            ops: 128,
            bytes: 1 << 20,
        };
        World::new(
            Arc::new(MemStore::new(limits)),
            Arc::new(InMemory::new()),
            NOW,
        )
    };
    let run = async |stores: &Stores| {
        let book = current.lock().unwrap().clone();
        drive(stores, &book).await
    };
    let look = async |world: &World, label: &str| {
        let book = current.lock().unwrap().clone();
        check(world, &book, label).await;
    };
    let points = sweep(ROOT, make, run, look).await;
    assert!(points > 60, "{points}");
}
