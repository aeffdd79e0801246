//! The laws, over every pair of stores that a root can be on.

use std::sync::Arc;

use falconer::engine::clock::{Clock, SystemClock};
use falconer::engine::error::{ErrorKind, Result};
use falconer::engine::format::keys::Key;
use falconer::engine::format::message::Stored;
use falconer::engine::format::pb::streaming::{PChannelMeta, PChannelMetaState};
use falconer::engine::ids::{KeyPrefix, MessageId, ObjectKey, UnixMs};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{MetaRead, MetaWrite, MetaWriter, Span, Txn, Write};
use falconer::engine::objects::{ObjectWrite, PutMode, from_store};
use falconer::engine::profile::Roots;
use falconer::engine::wal::log::Log;
use falconer::engine::wal::{Appended, Wal};
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use prost::Message as _;

use crate::support::faults::VirtualClock;
use crate::support::mem::MemStore;
use crate::support::s3;
use crate::support::servers::{Etcd, EtcdVersion};
use crate::support::snapshots::ETCD;
use crate::{PCHANNEL, draft, owner};

const FOLDER: &str = "files/falconer/by-dev/wal/by-dev-rootcoord-dml_0";

pub async fn all(log: &dyn Wal, from: MessageId) -> Result<Vec<Stored>> {
    let mut reader = log.read_from(from)?;
    let mut out = Vec::new();
    while let Some(message) = reader.try_next().await? {
        out.push(message);
    }
    Ok(out)
}

async fn index_keys(meta: &dyn MetaRead) -> usize {
    let prefix = KeyPrefix::new(&format!("falconer/by-dev/wal/{PCHANNEL}/segment"));
    meta.range_all(&Span::prefix(&prefix))
        .await
        .unwrap()
        .kvs
        .len()
}

async fn objects_of(objects: &ObjectWrite) -> Vec<ObjectKey> {
    let found: Vec<_> = objects
        .read()
        .list(&FOLDER.into(), None)
        .try_collect()
        .await
        .unwrap();
    found.into_iter().map(|o| o.key).collect()
}

async fn holds_everywhere(meta: Arc<dyn MetaWrite>, objects: ObjectWrite, clock: Arc<dyn Clock>) {
    let executor = owner(meta.clone(), objects.clone(), clock).await.unwrap();
    let log = Log::open(executor.clone(), PCHANNEL).await.unwrap();
    assert_eq!(log.term().0, 1);

    // Durable, consecutive, in the order of one call.
    let one = log.append(vec![draft("a"), draft("b")]).await.unwrap();
    assert_eq!(one.iter().map(|a| a.id.0).collect::<Vec<_>>(), [1, 2]);
    assert!(one[0].tick < one[1].tick);

    // Together: a hundred appends at once need far fewer objects.
    let before = objects_of(&objects).await.len();
    let bodies: Vec<String> = (0..100).map(|i| format!("c{i}")).collect();
    let appends = bodies.iter().map(|body| log.append(vec![draft(body)]));
    let done: Vec<Appended> = join_all(appends)
        .await
        .into_iter()
        .map(|a| a.unwrap()[0])
        .collect();
    assert!(
        objects_of(&objects).await.len() - before <= 10,
        "group commit"
    );
    let read = all(&*log, MessageId(1)).await.unwrap();
    assert_eq!(read.len(), 102);
    for (i, message) in read.iter().enumerate() {
        assert_eq!(message.id.0, i64::try_from(i).unwrap() + 1);
        assert!(i == 0 || read[i - 1].tick < message.tick);
        assert_eq!(message.term(), Some(log.term()));
    }
    for (body, at) in bodies.iter().zip(&done) {
        let message = &read[(at.id.0 - 1) as usize];
        assert_eq!(
            (message.tick, &message.message.payload[..]),
            (at.tick, body.as_bytes())
        );
    }

    // A time tick without a message.
    let tick = log.tick().await.unwrap();
    assert!(tick >= read[101].tick);
    let later = log.append(vec![draft("d")]).await.unwrap()[0];
    assert!(later.tick > tick && later.id.0 == 103);

    // Following: a reader at the end hears of the next message.
    let mut tail = log.read_from(MessageId(104)).unwrap();
    assert_eq!(tail.try_next().await.unwrap(), None);
    let (next, sent) = tokio::join!(tail.next(), log.append(vec![draft("e")]));
    assert_eq!(next.unwrap().id, sent.unwrap()[0].id);

    // Cut no further than a reader needs.
    let mut slow = log.read_from(MessageId(2)).unwrap();
    let keys = index_keys(&*meta).await;
    assert_eq!(log.truncate(MessageId(104)).await.unwrap(), MessageId(1));
    assert_eq!(index_keys(&*meta).await, keys);
    assert_eq!(slow.next().await.unwrap().id.0, 2);
    for id in 3..=103 {
        assert_eq!(slow.next().await.unwrap().id.0, id);
    }
    assert_eq!(log.truncate(MessageId(104)).await.unwrap(), MessageId(103));
    drop(slow);
    assert_eq!(log.truncate(MessageId(104)).await.unwrap(), MessageId(104));
    assert_eq!(
        log.read_from(MessageId(103)).err().unwrap().kind(),
        ErrorKind::Compacted
    );
    assert_eq!(
        (index_keys(&*meta).await, objects_of(&objects).await.len()),
        (1, 1)
    );

    // What no index names is garbage, and only that goes; what is not one of our names stays.
    let lost = format!("{FOLDER}/{:020}-{:020}-{:016x}", 1, 105, 42);
    for name in [lost.as_str(), &format!("{FOLDER}/notes.txt")] {
        objects
            .put(&name.into(), "x".into(), PutMode::Overwrite)
            .await
            .unwrap();
    }

    // Another owner: the older one can add nothing.
    let next = Log::open(executor.clone(), PCHANNEL).await.unwrap();
    assert_eq!(next.term().0, 2);
    let refused = log.append(vec![draft("late")]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    assert!(
        refused.to_string().contains("term 2 after our 1"),
        "{refused}"
    );
    assert_eq!(log.tick().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(
        log.truncate(MessageId(104)).await.unwrap_err().kind(),
        ErrorKind::Fenced
    );
    let after = next.append(vec![draft("f")]).await.unwrap()[0];
    assert!(after.id.0 == 105 && after.tick > later.tick);
    assert_eq!(next.truncate(MessageId(104)).await.unwrap(), MessageId(104));
    let left = objects_of(&objects).await;
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.iter().any(|k| k.0.ends_with("notes.txt")) && !left.iter().any(|k| k.0 == lost));
    let bodies: Vec<_> = all(&*next, MessageId(104)).await.unwrap();
    assert_eq!(
        bodies
            .iter()
            .map(|m| &m.message.payload[..])
            .collect::<Vec<_>>(),
        [b"e", b"f"]
    );

    // As Milvus's own record tells it.
    let key = Key::PChannel(PCHANNEL.into()).to_key(&Roots::default());
    let record = PChannelMeta::decode(&*meta.get(&key).await.unwrap().unwrap().value).unwrap();
    assert_eq!(record.state(), PChannelMetaState::PchannelMetaStateAssigned);
    assert_eq!(
        record.channel.map(|c| (c.name, c.term)),
        Some((PCHANNEL.to_owned(), 2))
    );

    // Everything cut: the numbers go on.
    assert_eq!(
        next.truncate(MessageId(1_000)).await.unwrap(),
        MessageId(106)
    );
    next.close().await;
    assert_eq!(
        next.append(vec![draft("g")]).await.unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    executor.fence().release().await;
    executor.fence().acquire().await.unwrap();
    let third = Log::open(executor, PCHANNEL).await.unwrap();
    assert!(all(&*third, MessageId(106)).await.unwrap().is_empty());
    let last = third.append(vec![draft("h")]).await.unwrap()[0];
    assert!(last.id.0 == 106 && last.tick > after.tick);
}

#[tokio::test]
async fn in_memory() {
    let clock = Arc::new(SystemClock::new());
    let meta = Arc::new(EmbeddedStore::memory_with(clock.clone()).unwrap());
    let (_, objects) = from_store(Arc::new(InMemory::new()), "files");
    holds_everywhere(meta, objects, clock).await;
}

#[tokio::test]
async fn in_a_file_and_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock::new());
    let meta = EmbeddedStore::open_file(&dir.path().join("meta.redb"), clock.clone()).unwrap();
    let folder = Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap());
    let (_, objects) = from_store(folder, "files");
    holds_everywhere(Arc::new(meta), objects, clock).await;
}

#[tokio::test]
async fn on_real_etcd_and_s3() {
    let etcd = Etcd::start(EtcdVersion::V35);
    let clock = Arc::new(SystemClock::new());
    let meta = EtcdStore::connect(&etcd.profile(), clock.clone())
        .await
        .unwrap();
    let server = s3::shared();
    server.create_bucket("wal");
    let (_, objects) = from_store(Arc::new(server.bucket("wal")), "files");
    holds_everywhere(Arc::new(meta), objects, clock).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_gives_no_smaller_tick() {
    let meta: Arc<dyn MetaWrite> = Arc::new(MemStore::new(ETCD));
    let (_, objects) = from_store(Arc::new(InMemory::new()), "files");
    let mut last = None;
    for now in [1_790_000_000_000, 1_600_000_000_000, 1_790_000_000_001] {
        let executor = owner(meta.clone(), objects.clone(), VirtualClock::at(UnixMs(now)))
            .await
            .unwrap();
        let log = Log::open(executor.clone(), PCHANNEL).await.unwrap();
        let tick = log.append(vec![draft("x")]).await.unwrap()[0].tick;
        assert!(last.is_none_or(|last| last < tick), "{last:?} {tick:?}");
        last = Some(tick);
        executor.fence().release().await;
    }
    assert_eq!(last.unwrap().time(), Some(UnixMs(1_790_000_000_001)));
}

#[tokio::test]
async fn a_channel_of_a_milvus_is_not_taken() {
    let meta: Arc<dyn MetaWrite> = Arc::new(EmbeddedStore::memory().unwrap());
    let (_, objects) = from_store(Arc::new(InMemory::new()), "files");
    let key = Key::PChannel(PCHANNEL.into()).to_key(&Roots::default());
    let writes = vec![Write::put(
        key.clone(),
        PChannelMeta::default().encode_to_vec(),
    )];
    meta.txn(Txn {
        conds: vec![],
        writes,
    })
    .await
    .unwrap();
    let executor =
        falconer::engine::plan::execute::Executor::new(falconer::engine::plan::execute::Parts {
            meta: MetaWriter::new(
                meta.clone(),
                &Scope::root(Arc::new(SystemClock::new()).clone(), "test"),
            ),
            objects,
            roots: Roots::default(),
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(falconer::engine::clock::SeededEntropy::new(1)),
            actor: "tester".into(),
            embedded: false,
        });
    executor.fence().acquire().await.unwrap();
    let refused = Log::open(executor, PCHANNEL).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
}

#[tokio::test]
async fn damage_is_said_and_nothing_is_made_up() {
    let meta: Arc<dyn MetaWrite> = Arc::new(EmbeddedStore::memory().unwrap());
    let (_, objects) = from_store(Arc::new(InMemory::new()), "files");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let executor = owner(meta.clone(), objects.clone(), clock).await.unwrap();
    let log = Log::open(executor.clone(), PCHANNEL).await.unwrap();
    log.append(vec![draft("a")]).await.unwrap();
    log.append(vec![draft("b")]).await.unwrap();
    log.close().await;
    let first = objects_of(&objects).await.remove(0);
    let bytes = objects.read().get(&first).await.unwrap();
    let mut broken = bytes.to_vec();
    *broken.last_mut().unwrap() ^= 1;
    objects
        .put(&first, broken.into(), PutMode::Overwrite)
        .await
        .unwrap();
    let log = Log::open(executor.clone(), PCHANNEL).await.unwrap();
    let e = all(&*log, MessageId(1)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert_eq!(all(&*log, MessageId(2)).await.unwrap().len(), 1);
    log.close().await;

    let prefix = KeyPrefix::new(&format!("falconer/by-dev/wal/{PCHANNEL}/segment"));
    let keys = meta.range_all(&Span::prefix(&prefix)).await.unwrap().kvs;
    let writes = vec![Write::Delete(keys[1].key.clone())];
    meta.txn(Txn {
        conds: vec![],
        writes,
    })
    .await
    .unwrap();
    let e = Log::open(executor, PCHANNEL).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
}
