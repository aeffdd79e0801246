//! One life on etcd and SeaweedFS: a root that is somebody's is refused, an empty one becomes ours, a drop is killed in its middle and
//! finished by the next process, and nothing is left.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use falconer::engine::Engine;
use falconer::engine::clock::{Clock, SystemClock, SystemEntropy};
use falconer::engine::format::keys::{Family, Key};
use falconer::engine::format::pb;
use falconer::engine::handle::{Conn, Reply, Request};
use falconer::engine::ids::{CollectionId, SegmentId, Tso, UnixMs};
use falconer::engine::meta::etcd::EtcdStore;
use falconer::engine::meta::{MetaRead, MetaWrite};
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::{JobKind, JobState};
use falconer::engine::profile::{
    Access, MetaProfile, ObjectKind, ObjectProfile, Profile, REQUEST_TIMEOUT, Roots, S3Profile,
};
use prost::Message;

use super::run::gc;
use crate::support::lab::LabKey;
use crate::support::s3;
use crate::support::servers::{Etcd, EtcdVersion};
use crate::support::snapshots::{all, family, roots};

/// So many that a drop takes dozens of transactions.
const SEGMENTS: i64 = 1_200;

struct Place {
    etcd: Etcd,
    url: String,
    dir: tempfile::TempDir,
}

impl Place {
    fn command(&self, root: &str, bucket: &str, args: &[&str]) -> Command {
        let secret = self.dir.path().join("secret");
        std::fs::write(&secret, s3::SECRET_KEY).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_falconer"));
        command
            .args(["--write", "--etcd", &self.etcd.endpoint(), "--root", root])
            .args(["--bucket", bucket, "--s3-endpoint", &self.url])
            .args(["--access-key", s3::ACCESS_KEY, "--secret-key-file"])
            .arg(secret)
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, root: &str, bucket: &str, args: &[&str]) -> (Option<i32>, String) {
        let said = self.command(root, bucket, args).output().unwrap();
        let text = [said.stdout, said.stderr].concat();
        (
            said.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn ours(&self, args: &[&str]) -> String {
        let (code, text) = self.run("by-dev", "s3://ddl/files", args);
        assert_eq!(code, Some(0), "{args:?}: {text}");
        text
    }

    fn profile(&self) -> Profile {
        Profile {
            name: "servers".into(),
            meta: MetaProfile::Etcd(self.etcd.profile()),
            objects: Some(ObjectProfile {
                kind: ObjectKind::S3(S3Profile {
                    endpoint: Some(self.url.clone()),
                    bucket: "ddl".into(),
                    region: String::new(),
                    credentials: Some((s3::ACCESS_KEY.into(), s3::SECRET_KEY.into())),
                    virtual_host: false,
                    ca: None,
                    request_timeout: REQUEST_TIMEOUT,
                }),
                root: "files".into(),
            }),
            roots: Roots::default(),
            access: Access::ReadWrite,
            // What is dropped may go at once.
            gc: Tolerances {
                drop_ms: 0,
                ..Tolerances::default()
            },
        }
    }
}

fn key(key: String, value: Vec<u8>) -> LabKey {
    LabKey {
        key: key.into_bytes(),
        value,
        create_revision: 0,
        mod_revision: 0,
        version: 0,
        lease: 0,
    }
}

async fn dropped(meta: &dyn MetaWrite) -> usize {
    let all = family::<pb::data::SegmentInfo>(meta, Family::Segment).await;
    all.iter().filter(|(_, s)| s.state == 6).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_is_killed_in_its_middle_is_finished_by_the_next_process() {
    let etcd = Etcd::start(EtcdVersion::V34);
    let s3 = s3::shared();
    s3.create_bucket("ddl");
    let place = Place {
        etcd,
        url: s3.url.clone(),
        dir: tempfile::tempdir().unwrap(),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = EtcdStore::connect(&place.etcd.profile(), clock.clone())
        .await
        .unwrap();

    // Somebody's: by a key, by an object.
    place
        .etcd
        .load(&[key("theirs/kv/gid/idTimestamp".into(), vec![0; 8])])
        .await;
    let (code, text) = place.run("theirs", "s3://ddl/files", &["init", "--yes"]);
    assert!(
        code == Some(4) && text.contains("theirs/kv/gid/idTimestamp"),
        "{code:?} {text}"
    );
    s3.upload(
        "ddl",
        [("other/insert_log/1", bytes::Bytes::from_static(b"x"))],
    )
    .await;
    let (code, text) = place.run("by-dev", "s3://ddl/other", &["init", "--yes"]);
    assert!(
        code == Some(4) && text.contains("other/insert_log/1"),
        "{code:?} {text}"
    );
    // Not ours yet.
    let make = [
        "collection",
        "create",
        "books",
        "--field",
        "id:int64:pk",
        "--field",
        "v:float_vector:8",
        "--shards",
        "2",
    ];
    let (code, text) = place.run("theirs", "s3://ddl/files", &make);
    assert!(
        code == Some(4) && text.contains("falconer init"),
        "{code:?} {text}"
    );
    place.ours(&["init", "--channels", "3", "--yes"]);
    let before = all(&store, "by-dev/").await;
    place.ours(&make);

    let (record, info) = family::<pb::etcd::CollectionInfo>(&store, Family::Collection)
        .await
        .remove(0);
    let id = CollectionId(info.id);
    let (partition, _) = family::<pb::etcd::PartitionInfo>(&store, Family::Partition)
        .await
        .remove(0);
    let Key::Partition(_, partition) = partition else {
        panic!()
    };
    let segments: Vec<LabKey> = (0..SEGMENTS)
        .map(|n| {
            let channel = &info.virtual_channel_names[usize::try_from(n % 2).unwrap()];
            let segment = pb::data::SegmentInfo {
                id: info.id + 1_000 + n,
                collection_id: info.id,
                partition_id: partition.0,
                insert_channel: channel.clone(),
                num_of_rows: 10,
                state: 4,
                level: 2,
                dml_position: Some(pb::msg::MsgPosition {
                    channel_name: channel.clone(),
                    timestamp: Tso::from_ms(UnixMs(clock.now().0 - 1_000)).0,
                    ..Default::default()
                }),
                ..Default::default()
            };
            let at = Key::Segment(id, partition, SegmentId(segment.id)).to_key(&roots());
            key(at.text(), segment.encode_to_vec())
        })
        .collect();
    place.etcd.load(&segments).await;

    let mut child = place
        .command(
            "by-dev",
            "s3://ddl/files",
            &["collection", "drop", "books", "--confirm", "books"],
        )
        .spawn()
        .unwrap();
    let some = loop {
        let some = dropped(&store).await;
        if some > 0 {
            break some;
        }
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "the drop ended before it could be killed: {ended:?}"
        );
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let left = dropped(&store).await;
    println!("killed with {some} to {left} of {SEGMENTS} segments dropped");
    assert!(left < usize::try_from(SEGMENTS).unwrap(), "in its middle");
    assert!(
        store.get(&record.to_key(&roots())).await.unwrap().is_some(),
        "its record stands"
    );

    // The next process takes it up by itself, once the dead one's lease has run out.
    let mut handle = Engine::open(place.profile(), clock.clone(), Arc::new(SystemEntropy))
        .await
        .unwrap();
    let finished = handle.jobs.wait_for(|view| {
        let drop = view
            .jobs
            .iter()
            .find(|j| j.kind == JobKind::Ddl && j.title.starts_with("drop"));
        drop.is_some_and(|j| j.state.ended())
    });
    let patience = clock.sleep(Duration::from_mins(3));
    tokio::select! {
        done = finished => {
            let job = done.unwrap().jobs.iter().find(|j| j.title.starts_with("drop")).cloned().unwrap();
            assert_eq!(job.state, JobState::Verified, "{:?} {:?}", job.error, job.notes);
            assert!(job.recovered.is_some(), "it was taken up");
        }
        () = patience => panic!("the drop was not taken up: {:?}", handle.broadcasts.borrow()),
    }
    assert_eq!(dropped(&store).await, usize::try_from(SEGMENTS).unwrap());
    assert!(
        store.get(&record.to_key(&roots())).await.unwrap().is_none(),
        "its record is gone"
    );
    for (_, cp) in family::<pb::msg::MsgPosition>(&store, Family::ChannelCheckpoint).await {
        assert_eq!(cp.timestamp, u64::MAX, "{}", cp.channel_name);
    }

    // I11.1: one pass, and the root is as it was, but for what broadcasts and channels keep for their time.
    drop(
        handle
            .conn
            .wait_for(|c| matches!(c, Conn::Live { .. }))
            .await
            .unwrap(),
    );
    let Reply::Planned(plan) = handle.request(Request::Plan(gc())).await.unwrap() else {
        panic!()
    };
    let apply = Request::Apply {
        hash: plan.hash.clone(),
        typed: plan.type_to_confirm.clone().unwrap_or_default(),
    };
    let Reply::Accepted(job) = handle.request(apply).await.unwrap() else {
        panic!()
    };
    let ended = handle
        .jobs
        .wait_for(|view| view.jobs.iter().any(|j| j.id == job && j.state.ended()))
        .await
        .unwrap();
    let pass = ended.jobs.iter().find(|j| j.id == job).unwrap();
    assert_eq!(pass.state, JobState::Verified, "{:?}", pass.error);
    drop(ended);
    let left: Vec<String> = all(&store, "by-dev/")
        .await
        .into_keys()
        .filter(|k| !before.contains_key(k) && !k.contains("/streamingcoord-meta/"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}
