//! Broadcasts as a screen shows them: from records alone, and joined with what this process drives (`spec/lifecycle.md` §1 (e), §II.8).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use falconer::engine::format::keys::Roots;
use falconer::engine::format::pb::etcd::CollectionInfo;
use falconer::engine::format::pb::messages::{
    BroadcastHeader, DropCollectionMessageHeader, Message, ResourceDomain, ResourceKey,
    TruncateCollectionMessageHeader,
};
use falconer::engine::format::pb::msg::MsgPosition;
use falconer::engine::format::pb::streaming::{
    AckedCheckpoint, BroadcastTask, PChannelInfo, PChannelMeta, StreamingNodeInfo,
};
use falconer::engine::ids::{
    BroadcastId, CollectionId, JobId, MetaKey, MetaRev, PartitionId, Tso, UnixMs, VChannel,
};
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::broadcast::{BroadcastsView, ResourceKeys, Shown, Waiting};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::health::{self, Fault, Rule};
use falconer::engine::model::jobs::JobsView;
use falconer::engine::model::resource::{self, Cell, Kind, Link, RowId, Scope, Tone, View};
use prost::Message as _;

use super::{TAKEN, every_row_answers, from_scratch, keyspace, unread};

pub(super) const MINUTE: i64 = 60_000;
const PENDING: i32 = 1;
const REPLICATED: i32 = 4;
const TOMBSTONE: i32 = 5;

/// A broadcast as a Milvus records it.
pub(super) struct Record {
    /// `MessageType`.
    pub(super) kind: i32,
    id: u64,
    state: i32,
    flag: bool,
    channels: Vec<String>,
    acked: Vec<u64>,
    keys: Vec<ResourceKey>,
    collection: i64,
}

fn key(domain: ResourceDomain, name: &str, shared: bool) -> ResourceKey {
    ResourceKey {
        domain: domain.into(),
        key: name.into(),
        shared,
    }
}

/// An id as the allocator gives it, so long before the capture was taken.
fn id_before(ms: i64, n: u64) -> u64 {
    Tso::from_ms(UnixMs(TAKEN.0 - ms)).0 + n
}

impl Record {
    fn value(&self) -> Vec<u8> {
        let header = BroadcastHeader {
            broadcast_id: self.id,
            vchannels: self.channels.clone(),
            resource_keys: self.keys.clone(),
            ack_sync_up: self.flag,
        };
        // A truncate's header has the two the other way round.
        let own = match self.kind {
            38 => TruncateCollectionMessageHeader {
                collection_id: self.collection,
                db_id: 1,
                segment_ids: vec![],
            }
            .encode_to_vec(),
            _ => DropCollectionMessageHeader {
                collection_id: self.collection,
                db_id: 1,
            }
            .encode_to_vec(),
        };
        let mut message = Message {
            payload: b"secret".to_vec(),
            ..Message::default()
        };
        let mut set = |k: &str, v: String| message.properties.insert(k.into(), v);
        set("_t", self.kind.to_string());
        set("_bh", BASE64_STANDARD.encode(header.encode_to_vec()));
        set("_h", BASE64_STANDARD.encode(own));
        let checkpoint = |tick: &u64| AckedCheckpoint {
            time_tick: *tick,
            ..AckedCheckpoint::default()
        };
        BroadcastTask {
            message: Some(message),
            state: self.state,
            acked_vchannel_bitmap: self.acked.iter().map(|t| u8::from(*t > 0)).collect(),
            acked_checkpoints: self.acked.iter().map(checkpoint).collect(),
        }
        .encode_to_vec()
    }
}

pub(super) struct Scene {
    pub(super) catalog: Catalog,
    broadcasts: BroadcastsView,
    jobs: JobsView,
    /// A collection of the capture, its name, and its two channels.
    pub(super) books: (CollectionId, String, Vec<VChannel>),
}

impl Scene {
    pub(super) fn new() -> Self {
        let catalog = from_scratch(&keyspace());
        let row = catalog.collections.values().find(|c| c.vchannels.len() > 1);
        let row = row.expect("a collection with two shards");
        let name = format!("default:{}", row.name);
        Self {
            books: (row.id, name, row.vchannels.clone()),
            catalog,
            broadcasts: BroadcastsView::default(),
            jobs: JobsView::default(),
        }
    }

    pub(super) fn put(&mut self, key: &str, value: Vec<u8>) {
        let rev = MetaRev(self.catalog.rev.0 + 1);
        let kv = KeyValue {
            key: MetaKey::from(format!("by-dev/meta/{key}")),
            value: Bytes::from(value),
            create_rev: rev,
            mod_rev: rev,
            version: 1,
            lease: 0,
        };
        self.catalog.apply(&Roots::default(), &[Event::Put(kv)]);
    }

    pub(super) fn delete(&mut self, key: &str) {
        let rev = MetaRev(self.catalog.rev.0 + 1);
        let key = MetaKey::from(format!("by-dev/meta/{key}"));
        self.catalog
            .apply(&Roots::default(), &[Event::Delete(key, rev)]);
    }

    /// A partition of the collection.
    pub(super) fn partition(&self) -> PartitionId {
        let mut all = self.catalog.partitions_of(self.books.0);
        all.next().expect("a partition").id
    }

    /// The collection's record as the capture has it.
    pub(super) fn collection_info(&self) -> CollectionInfo {
        let end = format!("/{}", self.books.0);
        let mut keys = keyspace().into_iter();
        let kv = keys.find(|kv| {
            let key = kv.key.text();
            key.contains("collection-info/") && key.ends_with(&end)
        });
        CollectionInfo::decode(kv.expect("its key").value).expect("its record")
    }

    /// A drop of the collection: to the control channel and its two channels, alone on its name.
    pub(super) fn drop_of(&self, id: u64, state: i32, flag: bool, acked: &[u64]) -> Record {
        let mut channels = vec!["by-dev-rootcoord-dml_0_vcchan".to_owned()];
        channels.extend(self.books.2.iter().take(2).map(|c| c.0.clone()));
        Record {
            kind: 6,
            id,
            state,
            flag,
            channels,
            acked: acked.to_vec(),
            keys: vec![
                key(ResourceDomain::CollectionName, &self.books.1, false),
                key(ResourceDomain::DbName, "default", true),
            ],
            collection: self.books.0.0,
        }
    }

    pub(super) fn broadcast(&mut self, record: &Record) -> RowId {
        let key = format!("streamingcoord-meta/broadcast-task/{}", record.id);
        self.put(&key, record.value());
        RowId::Broadcast(BroadcastId(record.id.cast_signed()))
    }

    pub(super) fn checkpoint(&mut self, channel: usize, timestamp: u64) {
        let name = self.books.2[channel].0.clone();
        let position = MsgPosition {
            timestamp,
            ..MsgPosition::default()
        };
        self.put(
            &format!("datacoord-meta/channel-cp/{name}"),
            position.encode_to_vec(),
        );
    }

    pub(super) fn view(&self) -> View<'_> {
        View {
            catalog: &self.catalog,
            jobs: &self.jobs,
            broadcasts: &self.broadcasts,
            references: unread(),
            now: TAKEN,
        }
    }

    fn cell(&self, id: &RowId, column: &str) -> Cell {
        let at = Kind::Broadcasts.column(column).expect("a column");
        resource::cell(&self.view(), id, at)
    }

    fn text(&self, id: &RowId, column: &str) -> String {
        resource::text(&self.cell(id, column)).into_owned()
    }

    fn faults(&self, rule: Rule) -> Vec<Fault> {
        let all = health::faults(&self.view());
        all.into_iter().filter(|f| f.rule == rule).collect()
    }
}

pub(super) fn tick(before: i64) -> u64 {
    Tso::from_ms(UnixMs(TAKEN.0 - before)).0
}

#[test]
fn a_stuck_drop_says_what_it_blocks_since_when() {
    let mut scene = Scene::new();
    let record = scene.drop_of(id_before(47 * MINUTE, 1), PENDING, false, &[0, 0, 0]);
    let id = scene.broadcast(&record);
    let name = scene.books.1.replace(':', "/");
    assert_eq!(scene.text(&id, "type"), "DropCollection");
    assert_eq!(scene.text(&id, "collection"), name);
    assert_eq!(scene.cell(&id, "age"), Cell::Age(47 * MINUTE as u64));
    assert_eq!(scene.text(&id, "acked"), "0/3 000");
    assert_eq!(scene.text(&id, "appended"), "?/3");
    assert_eq!(scene.text(&id, "mode"), "FAST-ACK");
    assert_eq!(scene.text(&id, "keys"), format!("X {name} · S default"));
    assert_eq!(scene.text(&id, "badges"), "STUCK");
    assert!(
        scene
            .text(&id, "waiting")
            .starts_with("append to by-dev-rootcoord-dml_0_vcchan")
    );
    let stuck = scene.faults(Rule::BroadcastStuck);
    assert_eq!(stuck.len(), 1);
    let words = format!("DDL is blocked 47m00s by DropCollection of {name}");
    assert!(stuck[0].reason.starts_with(&words), "{}", stuck[0].reason);
    assert_eq!(stuck[0].subject, Some(id.clone()));
    // What its keys keep out stands in the detail view, and nothing of the payload does.
    let all = format!(
        "{:?} {}",
        resource::detail(&scene.view(), &id),
        resource::json(&scene.view(), &id)
    );
    assert!(all.contains("truncate, partition and index operations on it wait"));
    assert!(!all.contains("secret"));
    every_row_answers(&scene.view());
}

#[test]
fn with_the_flag_the_slowest_channel_is_named_and_a_dropped_one_does_not_count() {
    let mut scene = Scene::new();
    let at = tick(15 * MINUTE);
    let record = scene.drop_of(id_before(15 * MINUTE, 2), PENDING, true, &[at, 0, 0]);
    let id = scene.broadcast(&record);
    scene.checkpoint(0, tick(16 * MINUTE));
    scene.checkpoint(1, tick(40 * MINUTE));
    let slowest = scene.books.2[1].clone();
    let words = format!("checkpoint of {slowest}, 25m00s behind");
    assert_eq!(scene.text(&id, "waiting"), words);
    assert_eq!(scene.text(&id, "mode"), "ACK-SYNC-UP");
    assert_eq!(scene.text(&id, "badges"), "CHECKPOINT-WAIT");
    let late = scene.faults(Rule::BroadcastCheckpoint);
    assert!(late[0].reason.contains(&slowest.0) && late[0].reason.contains("15m00s"));
    // The sentinel is no time: it satisfies the wait, and the other one is the slowest now.
    scene.checkpoint(1, u64::MAX);
    let words = format!("checkpoint of {}, 1m00s behind", scene.books.2[0]);
    assert_eq!(scene.text(&id, "waiting"), words);
    let json = resource::json(&scene.view(), &id);
    let channels = json["channels"].as_array().expect("channels");
    assert_eq!(channels[2]["checkpoint"], serde_json::Value::Null);
    assert_eq!(channels[2]["dropped"], true);
    assert!(!json.to_string().contains("584"), "{json}");
    // Both have passed it: the ack itself is missing.
    scene.checkpoint(0, tick(MINUTE));
    assert!(
        scene
            .text(&id, "waiting")
            .ends_with("its checkpoint has passed the message")
    );
    assert_eq!(scene.text(&id, "badges"), "STUCK");
}

#[test]
fn whose_node_is_gone_is_said_where_it_waits() {
    let mut scene = Scene::new();
    let at = tick(5 * MINUTE);
    let record = scene.drop_of(id_before(5 * MINUTE, 3), PENDING, false, &[at, at, 0]);
    let id = scene.broadcast(&record);
    let channel = scene.books.2[1].0.clone();
    assert_eq!(
        scene.text(&id, "waiting"),
        format!("acknowledgement of {channel}")
    );
    let pchannel = channel.rsplit_once('_').expect("a vchannel").0.to_owned();
    let meta = |state, node| PChannelMeta {
        channel: Some(PChannelInfo {
            name: pchannel.clone(),
            term: 7,
            ..PChannelInfo::default()
        }),
        node: Some(StreamingNodeInfo {
            server_id: node,
            address: "falconer on here".into(),
        }),
        state,
        ..PChannelMeta::default()
    };
    let path = format!("streamingcoord-meta/pchannel/{pchannel}");
    scene.put(&path, meta(3, 991).encode_to_vec());
    let waiting = scene.text(&id, "waiting");
    assert!(
        waiting.ends_with(": its owner, node 991, is not registered"),
        "{waiting}"
    );
    scene.put(&path, meta(4, 991).encode_to_vec());
    let waiting = scene.text(&id, "waiting");
    assert!(waiting.ends_with("is UNAVAILABLE"), "{waiting}");
    // A Falconer registers no session.
    scene.put(&path, meta(3, 0).encode_to_vec());
    assert_eq!(
        scene.text(&id, "waiting"),
        format!("acknowledgement of {channel}")
    );
    let row = RowId::Channel(channel);
    let owner = Kind::Channels.column("owner").expect("a column");
    let owner = resource::cell(&scene.view(), &row, owner);
    assert_eq!(resource::text(&owner), "falconer on here term 7");
}

#[test]
fn two_holders_of_one_key_are_a_finding_and_a_replicated_one_waits_in_order() {
    let mut scene = Scene::new();
    let (first, second) = (id_before(MINUTE, 1), id_before(MINUTE, 2));
    let at = tick(MINUTE);
    scene.broadcast(&scene.drop_of(first, PENDING, false, &[at, at, at]));
    let id = scene.broadcast(&scene.drop_of(second, REPLICATED, false, &[at, at, at]));
    assert_eq!(
        scene.text(&id, "waiting"),
        format!("callback of broadcast {first}")
    );
    let earlier = RowId::Broadcast(BroadcastId(first.cast_signed()));
    assert_eq!(scene.text(&earlier, "waiting"), "callback, attempt 1");
    assert_eq!(scene.text(&earlier, "appended"), "3/3");
    assert_eq!(scene.cell(&earlier, "blocks"), Cell::Count(1));
    assert_eq!(scene.text(&earlier, "badges"), "BLOCKING");
    assert!(scene.faults(Rule::BroadcastConflict).is_empty());
    scene.broadcast(&scene.drop_of(second, PENDING, false, &[at, at, at]));
    let conflict = scene.faults(Rule::BroadcastConflict);
    assert_eq!(conflict.len(), 1, "said once");
    assert!(conflict[0].reason.contains(&first.to_string()));
    assert!(scene.text(&id, "badges").starts_with("KEY-CONFLICT"));
}

#[test]
fn what_is_over_speaks_softly_and_stands_last() {
    let mut scene = Scene::new();
    let at = tick(30 * MINUTE);
    let over =
        scene.broadcast(&scene.drop_of(id_before(90 * MINUTE, 1), TOMBSTONE, false, &[at, at, at]));
    let young = scene.broadcast(&scene.drop_of(id_before(MINUTE, 2), PENDING, false, &[0, 0, 0]));
    let old =
        scene.broadcast(&scene.drop_of(id_before(9 * MINUTE, 3), REPLICATED, false, &[0, 0, 0]));
    let view = scene.view();
    let sort = Kind::Broadcasts.spec().sort;
    let all = resource::list(&view, Kind::Broadcasts, &Scope::default(), Some(sort));
    assert_eq!(all, [old, young, over.clone()]);
    for (i, column) in Kind::Broadcasts.spec().columns.iter().enumerate() {
        match resource::cell(&view, &over, i) {
            Cell::None | Cell::Id(_) => {}
            cell => assert!(
                matches!(cell, Cell::State(_, Tone::Dim)),
                "{} {cell:?}",
                column.id
            ),
        }
    }
    assert!(
        health::faults(&view)
            .iter()
            .all(|f| f.subject != Some(over.clone()))
    );
    assert_eq!(
        resource::json(&view, &over)["age_ms"],
        serde_json::Value::Null
    );
}

#[test]
fn links_lead_between_channel_broadcast_and_collection() {
    let mut scene = Scene::new();
    let id = scene.broadcast(&scene.drop_of(id_before(MINUTE, 1), PENDING, false, &[0, 0, 0]));
    let view = scene.view();
    let from = resource::related(&view, &id);
    let channel = RowId::Channel(scene.books.2[0].0.clone());
    assert!(from.iter().any(|(_, to)| *to == Link::Row(channel.clone())));
    assert!(
        from.iter()
            .any(|(_, to)| *to == Link::Row(RowId::Collection(scene.books.0)))
    );
    for back in [channel, RowId::Collection(scene.books.0)] {
        let lists = resource::related(&view, &back).into_iter();
        let found = lists.filter_map(|(_, to)| match to {
            Link::List(Kind::Broadcasts, scope) => {
                Some(resource::ids(&view, Kind::Broadcasts, &scope))
            }
            _ => None,
        });
        assert_eq!(found.collect::<Vec<_>>(), [vec![id.clone()]], "{back:?}");
    }
    let found = resource::find(&view, Kind::Broadcasts, &id.text()).expect("by its id");
    assert_eq!(found, id);
}

#[test]
fn where_this_process_drives_it_what_it_says_counts() {
    let mut scene = Scene::new();
    let record = scene.drop_of(id_before(3 * MINUTE, 1), PENDING, false, &[0, 0, 0]);
    let id = scene.broadcast(&record);
    let channels = record
        .channels
        .iter()
        .map(|c| (VChannel(c.clone()), true, false));
    scene.broadcasts.tasks.push(Shown {
        id: BroadcastId(record.id.cast_signed()),
        kind: "DropCollection".into(),
        keys: ResourceKeys::from_pb(&record.keys),
        ack_sync_up: false,
        channels: channels.collect(),
        waiting: Waiting::Callback(11, Some("the bucket is full".into())),
        retries: 11,
        unrecoverable: false,
        since: UnixMs(TAKEN.0 - MINUTE),
        job: JobId(0),
        blocks: 2,
    });
    assert_eq!(scene.text(&id, "appended"), "3/3");
    assert_eq!(
        scene.text(&id, "waiting"),
        "callback, attempt 12: the bucket is full"
    );
    assert_eq!(scene.cell(&id, "retries"), Cell::Count(11));
    assert_eq!(scene.cell(&id, "age"), Cell::Age(MINUTE as u64));
    assert_eq!(scene.text(&id, "badges"), "CALLBACK-RETRY · BLOCKING");
    assert_eq!(scene.faults(Rule::BroadcastCallback).len(), 1);
    let own = &mut scene.broadcasts.tasks[0];
    own.waiting = Waiting::Append(
        VChannel(record.channels[1].clone()),
        Some("no such log".into()),
    );
    own.unrecoverable = true;
    assert!(
        scene
            .text(&id, "badges")
            .starts_with("APPEND-UNRECOVERABLE")
    );
    assert_eq!(scene.faults(Rule::BroadcastAppend).len(), 1);
    every_row_answers(&scene.view());
}

#[test]
fn a_record_that_is_half_read_is_shown_with_what_is_wrong() {
    let mut scene = Scene::new();
    let mut record = scene.drop_of(id_before(MINUTE, 1), PENDING, false, &[0, 0, 0]);
    record.channels.clear();
    let id = scene.broadcast(&record);
    assert_eq!(scene.text(&id, "waiting"), "repair: it names no channel");
    assert_eq!(scene.faults(Rule::BroadcastStopped).len(), 1);
    let bare = BroadcastTask {
        state: 77,
        ..BroadcastTask::default()
    };
    scene.put(
        "streamingcoord-meta/broadcast-task/12",
        bare.encode_to_vec(),
    );
    let bare = RowId::Broadcast(BroadcastId(12));
    assert_eq!(scene.text(&bare, "state"), "77");
    assert_eq!(scene.text(&bare, "waiting"), "repair: it has no message");
    assert_eq!(
        scene.cell(&bare, "age"),
        Cell::None,
        "an id that no allocator gave is no time"
    );
    assert_eq!(scene.text(&bare, "badges"), "STOPPED");
    every_row_answers(&scene.view());
}
