//! The doctor on the captured cluster: quiet when all is well, and naming exactly what was broken.

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use falconer::engine::clock::{Clock, SystemClock};
use falconer::engine::doctor::{self, DoctorReport, Patient, Status};
use falconer::engine::error::Result;
use falconer::engine::format::keys::{Key, Roots};
use falconer::engine::format::{manifest, pb, snapshot};
use falconer::engine::ids::{
    CollectionId, MetaKey, MetaRev, ObjectKey, SegmentId, SnapshotId, UnixMs, VChannel,
};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::scope::Scope;
use falconer::engine::meta::{
    KeyValue, MetaRead, MetaReader, MetaStatus, MetaWrite, Page, RangeOpts, Span, Txn, WatchStream,
    Write,
};
use falconer::engine::objects::{ObjectRead, ObjectWrite, PutMode, open};
use falconer::engine::profile::{
    EtcdProfile, ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile,
};
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;

use support::servers::{Etcd, EtcdVersion};
use support::{lab, s3};

/// Stands at a moment; waits really, so that deadlines hold.
struct At(UnixMs, SystemClock);

impl Clock for At {
    fn now(&self) -> UnixMs {
        self.0
    }
    fn mono(&self) -> Duration {
        self.1.mono()
    }
    fn sleep(&self, how_long: Duration) -> BoxFuture<'static, ()> {
        self.1.sleep(how_long)
    }
}

fn at(ms: i64) -> At {
    At(UnixMs(ms), SystemClock::new())
}

/// Just after the capture: the allocator's window, read from the capture itself.
fn after_capture() -> At {
    let window = lab::etcd()
        .into_iter()
        .find(|k| k.key == b"by-dev/kv/gid/timestamp")
        .expect("the TSO window")
        .value;
    let ns = u64::from_be_bytes(window.try_into().expect("8 bytes"));
    at(i64::try_from(ns / 1_000_000).unwrap() + 1_000)
}

struct Lab {
    reader: MetaReader,
    meta: EmbeddedStore,
    read: ObjectRead,
    write: ObjectWrite,
    roots: Roots,
    clock: At,
}

/// How the captured session keys are loaded.
enum Sessions {
    None,
    LeftOver,
}

fn bound(store: impl MetaRead + 'static) -> MetaReader {
    let scope = Scope::root(Arc::new(SystemClock::new()), "test");
    MetaReader::new(Arc::new(store), &scope)
}

impl Lab {
    async fn load(sessions: Sessions) -> Self {
        let (read, write) = open(&ObjectProfile {
            kind: ObjectKind::Memory,
            root: lab::OBJECT_ROOT.into(),
        })
        .unwrap();
        Self::load_into(sessions, read, write).await
    }

    async fn load_into(sessions: Sessions, read: ObjectRead, write: ObjectWrite) -> Self {
        let meta = EmbeddedStore::memory().unwrap();
        let keys = match sessions {
            Sessions::None => lab::etcd_without_sessions(),
            Sessions::LeftOver => lab::etcd(),
        };
        let kvs = keys
            .into_iter()
            .map(|k| KeyValue {
                key: MetaKey(k.key.into()),
                value: k.value.into(),
                create_rev: MetaRev(k.create_revision),
                mod_rev: MetaRev(k.mod_revision),
                version: k.version,
                lease: 0,
            })
            .collect();
        meta.load(kvs, None).await.unwrap();
        stream::iter(lab::objects())
            .map(|(key, bytes)| write.put_owned(key, bytes))
            .buffer_unordered(16)
            .try_collect::<()>()
            .await
            .unwrap();
        Self {
            reader: bound(meta.reader().unwrap()),
            meta,
            read,
            write,
            roots: Roots::default(),
            clock: after_capture(),
        }
    }

    fn patient(&self) -> Patient<'_> {
        Patient {
            meta: &self.reader,
            objects: Some(&self.read),
            roots: &self.roots,
            clock: &self.clock,
        }
    }

    async fn run(&self) -> DoctorReport {
        doctor::run(&self.patient()).await
    }

    async fn put(&self, key: &Key, value: Vec<u8>) {
        let txn = Txn {
            conds: Vec::new(),
            writes: vec![Write::put(key.to_key(&self.roots), value)],
        };
        self.meta.txn(txn).await.unwrap();
    }
}

/// A put whose future owns what it needs.
trait PutOwned {
    fn put_owned(&self, key: &str, bytes: &Bytes) -> BoxFuture<'static, Result<()>>;
}

impl PutOwned for ObjectWrite {
    fn put_owned(&self, key: &str, bytes: &Bytes) -> BoxFuture<'static, Result<()>> {
        let (me, key, bytes) = (self.clone(), ObjectKey(key.to_owned()), bytes.clone());
        Box::pin(async move { me.put(&key, bytes, PutMode::Overwrite).await })
    }
}

fn s3_objects(endpoint: &str, bucket: &str, secret: &str) -> ObjectProfile {
    ObjectProfile {
        kind: ObjectKind::S3(S3Profile {
            endpoint: Some(endpoint.to_owned()),
            bucket: bucket.to_owned(),
            region: String::new(),
            credentials: Some((s3::ACCESS_KEY.into(), secret.into())),
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        }),
        root: "files".into(),
    }
}

fn expect(report: &DoctorReport, name: &str, status: Status, parts: &[&str]) {
    let check = report
        .check(name)
        .unwrap_or_else(|| panic!("no check {name}: {report:#?}"));
    assert_eq!(check.status, status, "{check:#?}");
    let text = format!(
        "{} {} {}",
        check.detail,
        check.fix.clone().unwrap_or_default(),
        check.items.join(" ")
    );
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {check:#?}");
    }
    assert!(!text.contains('\n'), "{text}");
    if status == Status::Fail {
        assert!(check.fix.is_some(), "a failure says what to do: {check:#?}");
    }
}

#[tokio::test]
async fn the_captured_cluster_is_well() {
    let lab = Lab::load(Sessions::None).await;
    let report = doctor::run_deep(&lab.patient(), &[]).await;
    assert!(!report.failed(), "{report:#?}");
    expect(&report, "etcd", Status::Ok, &["redb memory"]);
    expect(&report, "root path", Status::Ok, &["by-dev/meta"]);
    expect(
        &report,
        "coordinators",
        Status::Ok,
        &["none is alive", "writing is possible"],
    );
    expect(&report, "clock", Status::Ok, &["2026-"]);
    expect(
        &report,
        "id allocator",
        Status::Ok,
        &["above id 4706603344"],
    );
    expect(
        &report,
        "versions",
        Status::Ok,
        &["V1", "timestamped copies of RootCoord: yes"],
    );
    expect(&report, "bucket", Status::Ok, &["memory/files"]);
    expect(&report, "object root", Status::Ok, &[]);
    expect(&report, "right bucket", Status::Ok, &["5 segments"]);
    expect(&report, "snapshots", Status::Skipped, &["none"]);
    expect(&report, "write permission", Status::Skipped, &["not tried"]);
    expect(&report, "references", Status::Ok, &["all there"]);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["checks"][0]["status"], "ok");
    assert!(json["checks"][0]["took_ms"].is_u64());
}

#[tokio::test]
async fn objects_deleted_by_hand_are_named_one_by_one() {
    let lab = Lab::load(Sessions::None).await;
    let patient = lab.patient();
    let (references, problems) = doctor::references(&patient, "files").await.unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    // Nothing that a live segment owns is forgotten: what is left over belongs to dropped segments and imports.
    let live: std::collections::BTreeSet<String> = references
        .iter()
        .filter_map(|r| r.by.rsplit(' ').next().map(str::to_owned))
        .collect();
    let forgotten: Vec<&String> = lab::objects()
        .iter()
        .map(|(k, _)| k)
        .filter(|k| k.split('/').any(|part| live.contains(part)))
        .filter(|k| !references.iter().any(|r| r.key.0 == **k))
        .collect();
    assert!(live.len() > 40, "{}", live.len());
    assert_eq!(forgotten, Vec::<&String>::new());
    let pick = |part: &str| {
        references
            .iter()
            .find(|r| r.key.0.contains(part))
            .unwrap()
            .clone()
    };
    let gone = [
        pick("/insert_log/"),
        pick("/stats_log/"),
        pick("/delta_log/"),
        pick("/index_files/"),
    ];
    for r in &gone {
        assert!(lab.write.delete(&r.key).await.unwrap());
    }
    // An object that nothing refers to may go without a word.
    let unused = lab::objects()
        .iter()
        .map(|(k, _)| ObjectKey(k.clone()))
        .find(|k| !references.iter().any(|r| r.key == *k))
        .expect("an object without a reference");
    lab.write.delete(&unused).await.unwrap();

    let report = doctor::run_deep(&patient, &[]).await;
    let check = report.check("references").unwrap();
    assert_eq!(check.status, Status::Fail);
    let mut wanted: Vec<String> = gone
        .iter()
        .map(|r| format!("{} (needed by {})", r.key, r.by))
        .collect();
    wanted.sort();
    assert_eq!(check.items, wanted);
    expect(&report, "references", Status::Fail, &["4 of", "missing"]);

    // References that the caller brings along are looked for as well.
    let more = [doctor::Reference {
        key: "files/insert_log/1/2/3/100/4".into(),
        by: "snapshot nightly".into(),
    }];
    let report = doctor::run_deep(&patient, &more).await;
    expect(
        &report,
        "references",
        Status::Fail,
        &["files/insert_log/1/2/3/100/4 (needed by snapshot nightly)"],
    );
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_called_complete() {
    let lab = Lab::load(Sessions::None).await;
    let page = lab.meta.range_all(&Span::all()).await.unwrap();
    let bad = page
        .kvs
        .iter()
        .find(|kv| kv.key.text().contains("/datacoord-meta/s/"))
        .unwrap();
    let txn = Txn {
        conds: Vec::new(),
        writes: vec![Write::put(bad.key.clone(), vec![0xff, 0xff, 0xff])],
    };
    lab.meta.txn(txn).await.unwrap();
    let report = doctor::run_deep(&lab.patient(), &[]).await;
    expect(
        &report,
        "references",
        Status::Warn,
        &["cannot be read", &bad.key.text()],
    );
}

#[tokio::test]
async fn another_bucket_and_another_root_are_told_apart() {
    let mut lab = Lab::load(Sessions::None).await;
    let full = lab.read.clone();
    // An empty bucket.
    let kind = || ObjectKind::Memory;
    let (empty, write) = open(&ObjectProfile {
        kind: kind(),
        root: "files".into(),
    })
    .unwrap();
    lab.read = empty.clone();
    let report = lab.run().await;
    expect(
        &report,
        "object root",
        Status::Fail,
        &["the bucket is empty", "minio.bucketName", "minio.rootPath"],
    );
    expect(
        &report,
        "right bucket",
        Status::Fail,
        &["none of 5", "minio.bucketName", "files/insert_log/"],
    );
    // Another cluster's bucket: it looks alike.
    write
        .put(
            &"files/insert_log/1/2/3/100/4".into(),
            Bytes::new(),
            PutMode::Create,
        )
        .await
        .unwrap();
    let report = lab.run().await;
    expect(&report, "object root", Status::Ok, &[]);
    expect(
        &report,
        "right bucket",
        Status::Fail,
        &["none of 5", "minio.rootPath"],
    );
    // The right bucket, the wrong root in etcd.
    lab.read = full;
    lab.roots.root = "by-prod".into();
    let report = lab.run().await;
    expect(
        &report,
        "root path",
        Status::Fail,
        &["by-prod/meta", "by-dev/meta", "etcd.rootPath"],
    );
    assert_eq!(report.check("root path").unwrap().items, ["by-dev/meta"]);
}

#[tokio::test]
async fn roots_are_found_without_a_scan() {
    let mut lab = Lab::load(Sessions::None).await;
    let session = |root: &str| MetaKey::from(format!("{root}/meta/session/id"));
    for root in ["a/deep/root", "zz", "by-dev2"] {
        let write = Write::put(session(root), "1");
        lab.meta
            .txn(Txn {
                conds: vec![],
                writes: vec![write],
            })
            .await
            .unwrap();
    }
    for i in 0..20 {
        let write = Write::put(MetaKey::from(format!("m{i}")), "not a folder");
        lab.meta
            .txn(Txn {
                conds: vec![],
                writes: vec![write],
            })
            .await
            .unwrap();
    }
    lab.roots.root = "none".into();
    let report = lab.run().await;
    assert_eq!(
        report.check("root path").unwrap().items,
        ["by-dev/meta", "by-dev2/meta", "zz/meta", "a/deep/root/meta"]
    );

    let empty = EmbeddedStore::memory().unwrap();
    let empty = bound(empty);
    let patient = Patient {
        meta: &empty,
        objects: None,
        roots: &lab.roots,
        clock: &lab.clock,
    };
    let report = doctor::run(&patient).await;
    assert!(!report.failed(), "{report:#?}");
    expect(&report, "root path", Status::Skipped, &["empty"]);
    expect(&report, "bucket", Status::Skipped, &["no bucket"]);
    expect(&report, "id allocator", Status::Skipped, &[]);
}

#[tokio::test]
async fn sessions_without_a_lease_are_left_over() {
    let lab = Lab::load(Sessions::LeftOver).await;
    let report = lab.run().await;
    expect(
        &report,
        "coordinators",
        Status::Warn,
        &[
            "no lease",
            "forbid writing",
            "by-dev/meta/session/rootcoord",
            "2.3.5",
        ],
    );
    expect(&report, "versions", Status::Ok, &["Milvus 2.3.5"]);
}

#[tokio::test]
async fn a_live_coordinator_is_named_and_its_clock_compared() {
    let mut lab = Lab::load(Sessions::None).await;
    let lease = lab.meta.grant(Duration::from_mins(10)).await.unwrap();
    let key = MetaKey::from("by-dev/meta/session/mixcoord");
    let value =
        br#"{"ServerID":7,"ServerName":"mixcoord","Address":"10.0.0.5:53100","Version":"3.0.0"}"#;
    let write = Write::Put {
        key,
        value: Bytes::from_static(value),
        lease,
    };
    lab.meta
        .txn(Txn {
            conds: vec![],
            writes: vec![write],
        })
        .await
        .unwrap();
    let report = lab.run().await;
    expect(
        &report,
        "coordinators",
        Status::Ok,
        &["alive: mixcoord 3.0.0 at 10.0.0.5:53100", "planning only"],
    );
    expect(&report, "clock", Status::Ok, &[]);
    let captured = lab.clock.0.0;
    lab.clock = at(captured + 3_600_000);
    expect(
        &lab.run().await,
        "clock",
        Status::Warn,
        &["3601 s ago", "NTP"],
    );
    lab.clock = at(captured - 3_600_000);
    expect(
        &lab.run().await,
        "clock",
        Status::Warn,
        &["behind what the cluster wrote", "NTP"],
    );
}

#[tokio::test]
async fn sentinels_and_the_far_future_say_nothing_of_a_clock() {
    const TEN_YEARS_MS: u64 = 10 * 365 * 86_400_000;
    let mut lab = Lab::load(Sessions::None).await;
    let checkpoint = |number: u8, timestamp: u64| {
        let channel = format!("by-dev-rootcoord-dml_{number}_470660334431902643v0");
        let value = pb::msg::MsgPosition {
            channel_name: channel.clone(),
            timestamp,
            ..Default::default()
        };
        (
            Key::ChannelCheckpoint(VChannel(channel)),
            value.encode_to_vec(),
        )
    };
    let now = u64::try_from(lab.clock.0.0).unwrap();
    // A dropped channel, the same with a logical part that differs, and what no clock wrote.
    for (number, timestamp) in [
        (1, u64::MAX),
        (2, u64::MAX - 7),
        (3, 0),
        (4, (now + 5 * TEN_YEARS_MS) << 18),
    ] {
        let (key, value) = checkpoint(number, timestamp);
        lab.put(&key, value).await;
    }
    expect(&lab.run().await, "clock", Status::Ok, &["2026-"]);
    // A machine that has lost its clock stands in 1970, where everything is far ahead: that is worth a word.
    lab.clock = at(1_000);
    expect(
        &lab.run().await,
        "clock",
        Status::Warn,
        &["behind what the cluster wrote", "NTP"],
    );
}

#[tokio::test]
async fn an_allocator_below_the_ids_in_use_fails() {
    let lab = Lab::load(Sessions::None).await;
    lab.put(
        &Key::IdAllocator,
        1_600_000_000_000_000_000_u64.to_be_bytes().to_vec(),
    )
    .await;
    expect(
        &lab.run().await,
        "id allocator",
        Status::Fail,
        &["by-dev/kv/gid/idTimestamp", "2020-09-13", "twice"],
    );
    lab.put(&Key::IdAllocator, b"short".to_vec()).await;
    expect(
        &lab.run().await,
        "id allocator",
        Status::Fail,
        &["unreadable", "etcd.kvSubPath"],
    );
}

#[tokio::test]
async fn snapshots_whose_files_are_gone_are_named() {
    let lab = Lab::load(Sessions::None).await;
    let info = |name: &str, id: i64, state: pb::data::SnapshotState| pb::data::SnapshotInfo {
        name: name.into(),
        id,
        collection_id: 9,
        state: state as i32,
        ..Default::default()
    };
    let key = |id: i64| Key::Snapshot(CollectionId(9), SnapshotId(id));
    for (name, id) in [("good", 1), ("headless", 2), ("torn", 3)] {
        lab.put(
            &key(id),
            info(name, id, pb::data::SnapshotState::Committed).encode_to_vec(),
        )
        .await;
    }
    lab.put(
        &key(4),
        info("pending", 4, pb::data::SnapshotState::Pending).encode_to_vec(),
    )
    .await;
    for id in [1, 3] {
        let manifest = format!("files/snapshots/9/manifests/{id}/77.avro");
        let json = format!("{{\"format_version\":4,\"manifest_list\":[\"{manifest}\"]}}");
        let file = ObjectKey(format!("files/snapshots/9/metadata/{id}.json"));
        lab.write
            .put(&file, json.into(), PutMode::Create)
            .await
            .unwrap();
        if id == 1 {
            lab.write
                .put(&manifest.into(), Bytes::from_static(b"x"), PutMode::Create)
                .await
                .unwrap();
        }
    }
    let report = lab.run().await;
    expect(
        &report,
        "snapshots",
        Status::Fail,
        &["3 of 3 committed", "2 missing"],
    );
    assert_eq!(
        report.check("snapshots").unwrap().items,
        [
            "files/snapshots/9/metadata/2.json (needed by snapshot headless)",
            "files/snapshots/9/manifests/3/77.avro (needed by snapshot torn)",
        ]
    );
    let deep = doctor::run_deep(&lab.patient(), &[]).await;
    expect(
        &deep,
        "references",
        Status::Fail,
        &["files/snapshots/9/metadata/2.json (needed by snapshot headless)"],
    );
}

/// A whole committed snapshot of one segment that no record names any more, with all its files.
async fn keep_a_snapshot(lab: &Lab) -> [ObjectKey; 4] {
    let log = |path: &str| pb::data::FieldBinlog {
        field_id: 100,
        binlogs: vec![pb::data::Binlog {
            log_path: path.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let (data, index) = (
        "files/insert_log/9/8/77/100/5",
        "files/index_files/6/1/8/77/HNSW",
    );
    let segment = pb::data::SegmentDescription {
        segment_id: 77,
        partition_id: 8,
        channel_name: "by-dev-rootcoord-dml_0_9v0".into(),
        num_of_rows: 3,
        binlogs: vec![log(data)],
        index_files: vec![pb::index::IndexFilePathInfo {
            segment_id: 77,
            build_id: 6,
            index_file_paths: vec![index.into()],
            ..Default::default()
        }],
        ..Default::default()
    };
    let info = pb::data::SnapshotInfo {
        name: "nightly".into(),
        id: 5,
        collection_id: 9,
        state: pb::data::SnapshotState::Committed as i32,
        ..Default::default()
    };
    let manifest = snapshot::manifest_key("files", CollectionId(9), SnapshotId(5), SegmentId(77));
    let json = snapshot::metadata_key("files", CollectionId(9), SnapshotId(5));
    let metadata = pb::data::SnapshotMetadata {
        format_version: 4,
        snapshot_info: Some(snapshot::pending_form(&info)),
        collection: Some(pb::data::CollectionDescription {
            schema: Some(pb::schema::CollectionSchema {
                name: "books".into(),
                fields: vec![pb::schema::FieldSchema::default()],
                ..Default::default()
            }),
            ..Default::default()
        }),
        manifest_list: vec![manifest.0.clone()],
        segment_ids: vec![77],
        build_ids: vec![6],
        layout: pb::data::SnapshotLayout::Referenced as i32,
        ..Default::default()
    };
    for (key, bytes) in [
        (manifest.clone(), manifest::write_v4(&segment).unwrap()),
        (json.clone(), snapshot::write_metadata(&metadata).unwrap()),
        (data.into(), b"rows".to_vec()),
        (index.into(), b"graph".to_vec()),
    ] {
        lab.write
            .put(&key, bytes.into(), PutMode::Create)
            .await
            .unwrap();
    }
    lab.put(
        &Key::Snapshot(CollectionId(9), SnapshotId(5)),
        info.encode_to_vec(),
    )
    .await;
    [json, manifest, data.into(), index.into()]
}

#[tokio::test]
async fn what_only_a_snapshot_keeps_is_looked_for_too() {
    let lab = Lab::load(Sessions::None).await;
    let [json, manifest, data, index] = keep_a_snapshot(&lab).await;
    let report = doctor::run_deep(&lab.patient(), &[]).await;
    expect(
        &report,
        "snapshots",
        Status::Ok,
        &["1 of 1 committed", "1 of 1 manifests"],
    );
    expect(&report, "references", Status::Ok, &["all there"]);

    let named = |key: &ObjectKey, by: &str| format!("{key} (needed by {by})");
    for (key, by) in [
        (&index, "segment 77 of snapshot nightly"),
        (&data, "segment 77 of snapshot nightly"),
        (&manifest, "snapshot nightly"),
    ] {
        lab.write.delete(key).await.unwrap();
        let report = doctor::run_deep(&lab.patient(), &[]).await;
        expect(&report, "references", Status::Fail, &[&named(key, by)]);
    }
    // Without its manifest nobody knows what a snapshot keeps: the manifest itself is what is named.
    let report = doctor::run_deep(&lab.patient(), &[]).await;
    assert_eq!(
        report.check("references").unwrap().items,
        [named(&manifest, "snapshot nightly")]
    );

    lab.write
        .put(&manifest, Bytes::from_static(b"torn"), PutMode::Overwrite)
        .await
        .unwrap();
    let report = doctor::run_deep(&lab.patient(), &[]).await;
    expect(
        &report,
        "references",
        Status::Warn,
        &["cannot be read", &manifest.0],
    );
    lab.write.delete(&json).await.unwrap();
    let report = doctor::run_deep(&lab.patient(), &[]).await;
    expect(
        &report,
        "references",
        Status::Fail,
        &[&named(&json, "snapshot nightly")],
    );
}

#[tokio::test]
async fn on_real_etcd_and_real_s3_it_ends_within_two_seconds() {
    let etcd = Etcd::start(EtcdVersion::V34);
    etcd.load(&lab::etcd_without_sessions()).await;
    let server = s3::shared();
    server.create_bucket("doctor-both");
    server
        .upload(
            "doctor-both",
            lab::objects().iter().map(|(k, b)| (k.as_str(), b.clone())),
        )
        .await;
    let (read, _) = open(&s3_objects(&server.url, "doctor-both", s3::SECRET_KEY)).unwrap();
    let clock = Arc::new(after_capture());
    let profile = EtcdProfile::plain([etcd.endpoint()]);
    let meta = EtcdStore::connect(&profile, Arc::new(SystemClock::new()))
        .await
        .unwrap();
    let roots = Roots::default();
    let meta = bound(meta);
    let patient = Patient {
        meta: &meta,
        objects: Some(&read),
        roots: &roots,
        clock: &*clock,
    };
    let start = clock.mono();
    let report = doctor::run(&patient).await;
    let took = clock.mono().saturating_sub(start);
    assert!(!report.failed(), "{report:#?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    expect(&report, "etcd", Status::Ok, &["etcd 3.4"]);
    expect(&report, "etcd space", Status::Ok, &["MiB"]);
    expect(&report, "right bucket", Status::Ok, &["5 segments"]);
    let deep = doctor::run_deep(&patient, &[]).await;
    expect(&deep, "references", Status::Ok, &["all there"]);

    let elsewhere = Roots {
        root: "prod".into(),
        ..Roots::default()
    };
    let patient = Patient {
        roots: &elsewhere,
        ..patient
    };
    let report = doctor::run(&patient).await;
    expect(
        &report,
        "root path",
        Status::Fail,
        &["this store has by-dev/meta", "etcd.rootPath"],
    );
}

/// A store that never answers.
struct Silent;

#[async_trait]
impl MetaRead for Silent {
    async fn range(&self, _: &Span, _: RangeOpts) -> Result<Page> {
        std::future::pending().await
    }
    async fn watch(&self, _: Span, _: MetaRev) -> Result<WatchStream> {
        std::future::pending().await
    }
    async fn status(&self) -> Result<MetaStatus> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn two_seconds_whatever_the_servers_do() {
    let nobody = support::servers::Nobody::new();
    let (read, _) = open(&ObjectProfile {
        kind: ObjectKind::S3(S3Profile {
            endpoint: Some(nobody.endpoint()),
            bucket: "a-bucket".into(),
            region: String::new(),
            credentials: Some(("a".into(), "b".into())),
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        }),
        root: "files".into(),
    })
    .unwrap();
    let roots = Roots::default();
    let clock = SystemClock::new();
    let silent = bound(Silent);
    let patient = Patient {
        meta: &silent,
        objects: Some(&read),
        roots: &roots,
        clock: &clock,
    };
    let start = clock.mono();
    let report = doctor::run(&patient).await;
    let took = clock.mono().saturating_sub(start);
    assert!(took < Duration::from_secs(2), "{took:?}");
    expect(
        &report,
        "etcd",
        Status::Fail,
        &["no answer", "etcd.endpoints"],
    );
    expect(&report, "root path", Status::Fail, &["etcd.endpoints"]);
    expect(&report, "bucket", Status::Fail, &["minio.address"]);
    expect(&report, "clock", Status::Skipped, &["no answer"]);
}

#[tokio::test]
async fn on_a_real_s3_server_it_is_as_sure_and_as_quick() {
    let server = s3::shared();
    server.create_bucket("doctor");
    let profile = |secret: &str| s3_objects(&server.url, "doctor", secret);
    let (read, write) = open(&profile(s3::SECRET_KEY)).unwrap();
    let mut lab = Lab::load_into(Sessions::None, read, write).await;
    let start = lab.clock.mono();
    let report = lab.run().await;
    let took = lab.clock.mono().saturating_sub(start);
    assert!(!report.failed(), "{report:#?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let deep = doctor::run_deep(&lab.patient(), &[]).await;
    expect(&deep, "references", Status::Ok, &["all there"]);

    lab.read = open(&profile("wrong")).unwrap().0;
    let report = lab.run().await;
    expect(
        &report,
        "bucket",
        Status::Fail,
        &["SignatureDoesNotMatch", "minio.secretAccessKey"],
    );
}
