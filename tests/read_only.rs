//! What an attach without the right to write still does: it plans, it shows the jobs of others, it reads a file along while
//! another process writes it; and it says why, and how to allow it, when it is told to write. And what it says never holds a secret.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use falconer::config::{Config, Flags, Surroundings};
use falconer::engine::Engine;
use falconer::engine::clock::{SystemClock, SystemEntropy};
use falconer::engine::error::{Error, ErrorKind};
use falconer::engine::handle::{Conn, Handle, Reply, Request};
use falconer::engine::ids::CollectionId;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::jobs::JobState;
use falconer::engine::plan::{Intent, Plan};
use falconer::engine::profile::{Access, MetaProfile, ObjectKind, ObjectProfile, Profile, Roots};
use support::lab::{self, LabKey};
use support::servers::Nobody;

async fn open(profile: Profile) -> Handle {
    let clock = Arc::new(SystemClock::new());
    Engine::open(profile, clock, Arc::new(SystemEntropy))
        .await
        .expect("the engine opens")
}

/// Waits, a minute at most.
#[allow(
    clippy::disallowed_methods,
    reason = "a test that hangs must end, in real time"
)]
async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_mins(1), work).await {
        Ok(done) => done,
        Err(e) => panic!("{what}: {e}"),
    }
}

async fn whole(handle: &mut Handle) {
    let wait = handle
        .conn
        .wait_for(|c| matches!(c, Conn::Live { .. } | Conn::Static { .. }));
    within("the first listing", wait).await.expect("conn");
}

/// The captured keys as a dump in JSON lines.
fn dump(dir: &Path, keys: &[LabKey]) -> PathBuf {
    let lines: Vec<String> = keys
        .iter()
        .map(|k| {
            format!(
                r#"{{"key_b64":"{}","value_b64":"{}","mod_revision":{},"lease":{}}}"#,
                BASE64_STANDARD.encode(&k.key),
                BASE64_STANDARD.encode(&k.value),
                k.mod_revision,
                k.lease
            )
        })
        .collect();
    let file = dir.join("etcd.jsonl");
    std::fs::write(&file, lines.join("\n")).expect("a dump");
    file
}

/// The captured objects as a bucket in a folder.
fn bucket(dir: &Path) -> ObjectProfile {
    let dir = dir.join("bucket");
    for (key, bytes) in lab::objects() {
        let path = dir.join(key);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        std::fs::write(path, bytes).expect("an object");
    }
    ObjectProfile {
        kind: ObjectKind::Local {
            dir,
            absolute: false,
        },
        root: lab::OBJECT_ROOT.into(),
    }
}

fn profile(file: PathBuf, objects: Option<ObjectProfile>) -> Profile {
    Profile {
        name: "dump".into(),
        meta: MetaProfile::Dump { file },
        objects,
        roots: Roots::default(),
        access: Access::ReadOnly,
        gc: Tolerances::default(),
    }
}

fn books(handle: &Handle) -> CollectionId {
    let catalog = handle.catalog.borrow();
    let found = catalog.collections.values().find(|c| &*c.name == "books");
    found.expect("books is in the capture").id
}

fn snapshot_of(collection: CollectionId) -> Intent {
    Intent::CreateSnapshot {
        collection,
        name: "nightly".into(),
        description: String::new(),
        protection_secs: 0,
        operation: None,
    }
}

async fn planned(handle: &Handle, intent: Intent) -> Result<Arc<Plan>, Error> {
    match handle.request(Request::Plan(intent)).await? {
        Reply::Planned(plan) => Ok(plan),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_with_its_bucket_plans_and_refuses_to_apply() {
    let dir = tempfile::tempdir().unwrap();
    let objects = bucket(dir.path());
    let file = dump(dir.path(), &lab::etcd_without_sessions());
    let mut handle = open(profile(file, Some(objects.clone()))).await;
    whole(&mut handle).await;

    let plan = planned(&handle, snapshot_of(books(&handle))).await.unwrap();
    let failed: Vec<_> = plan.failures().collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(plan.objects.puts > 1, "{:?}", plan.objects);
    assert_eq!(plan.hash.len(), 64);
    let hash = plan.hash.clone();
    let typed = String::new();
    let refused = handle.request(Request::Apply { hash, typed }).await;
    let line = refused.expect_err("a dump takes no writes").to_string();
    for part in [
        "nothing can be written here",
        "a dump is read-only",
        "--write",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }

    let rules = std::collections::BTreeSet::new();
    let collection = None;
    let gc = planned(
        &handle,
        Intent::Gc {
            collection,
            rules,
            quarantine: false,
        },
    )
    .await;
    assert!(
        gc.unwrap().title.contains("collect"),
        "the pass is simulated"
    );

    // The same cluster with its coordinators alive: everything else is planned, the fence's check says who is in the way.
    let file = dump(dir.path(), &lab::etcd());
    let mut alive = open(profile(file, Some(objects))).await;
    whole(&mut alive).await;
    let plan = planned(&alive, snapshot_of(books(&alive))).await.unwrap();
    let failed: Vec<_> = plan.failures().collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].name, "no coordinator is registered");
    let why = failed[0].failed.as_deref().unwrap_or_default();
    assert!(why.contains("by-dev/meta/session/"), "{why}");
}

#[tokio::test]
async fn a_dump_without_a_bucket_says_what_a_plan_would_need() {
    let mut handle = open(profile(lab::path("etcd.jsonl.gz"), None)).await;
    whole(&mut handle).await;
    let refused = planned(&handle, snapshot_of(books(&handle))).await;
    let refused = refused.expect_err("there is nothing to plan with");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let line = refused.to_string();
    assert!(line.contains("without a bucket"), "{line}");
    assert!(line.contains("--bucket"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_file_along_sees_the_jobs_of_who_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |access| Profile {
        name: "file".into(),
        meta: MetaProfile::Embedded {
            file: dir.path().join("meta.redb"),
        },
        objects: Some(ObjectProfile {
            kind: ObjectKind::Local {
                dir: dir.path().join("bucket"),
                absolute: false,
            },
            root: "files".into(),
        }),
        roots: Roots::default(),
        access,
        gc: Tolerances::default(),
    };
    let mut writer = open(at(Access::ReadWrite)).await;
    whole(&mut writer).await;
    let mut reader = open(at(Access::ReadOnly)).await;
    whole(&mut reader).await;
    let known = reader.jobs.wait_for(|j| j.known);
    assert!(within("the journal", known).await.unwrap().jobs.is_empty());

    let plan = planned(&writer, Intent::Demo).await.unwrap();
    let order = Request::Apply {
        hash: plan.hash.clone(),
        typed: plan.type_to_confirm.clone().unwrap_or_default(),
    };
    let Reply::Accepted(job) = writer.request(order).await.unwrap() else {
        panic!("the demo is accepted");
    };
    let ended = |jobs: &Arc<falconer::engine::model::jobs::JobsView>| {
        jobs.jobs.iter().any(|j| j.id == job && j.state.ended())
    };
    let seen = within("the end of the job", reader.jobs.wait_for(ended)).await;
    let state = seen
        .unwrap()
        .jobs
        .iter()
        .find(|j| j.id == job)
        .map(|j| j.state);
    assert_eq!(state, Some(JobState::Verified));
    let cancel = reader.request(Request::Cancel(job)).await;
    let line = cancel.expect_err("it is not ours").to_string();
    assert!(line.contains("--write"), "{line}");
    let catalog = reader.catalog.wait_for(|c| c.collections.len() >= 4);
    within("the demo's collections", catalog).await.unwrap();
}

/// Law 11: a profile full of secrets, and everything that is said of it.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_profile_is_ever_said() {
    const SECRET: &str = "hunter2-hunter2";
    let nobody = Nobody::new();
    let endpoint = nobody.endpoint();
    let address = endpoint.trim_start_matches("http://");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(
        &file,
        format!(
            "default_profile = \"p\"\n[profiles.p]\netcd = \"http://root:{SECRET}@{address},http://other:{SECRET}@{address}\"\netcd_user = \"u\"\netcd_password = \"{SECRET}\"\naccess_key = \"a\"\nsecret_key = \"{SECRET}\"\ns3_endpoint = \"http://root:{SECRET}@{address}\"\nbucket = \"b\"\n"
        ),
    )
    .unwrap();
    let around = Surroundings {
        config_file: file,
        cwd: dir.path().into(),
        data_dir: dir.path().into(),
        ..Surroundings::default()
    };
    let found = Config::resolve(&Flags::default(), &around).unwrap();
    let mut said = vec![
        ("Debug of the profile", format!("{:?}", found.profile)),
        ("notes", found.notes.join("\n")),
    ];
    for format in [
        falconer::cli::Format::Table,
        falconer::cli::Format::Json,
        falconer::cli::Format::Yaml,
    ] {
        let args = falconer::cli::OutputArgs { output: format };
        let command = falconer::cli::Command::Config(args);
        let mut out = Vec::new();
        falconer::cli::run_offline(&command, &found.origins, &mut out).unwrap();
        said.push(("config", String::from_utf8(out).unwrap()));
    }
    let mut handle = open(found.profile.clone()).await;
    said.push(("place", format!("{:?}", handle.place)));
    let failed = handle
        .conn
        .wait_for(|c| matches!(c, Conn::Connecting { why: Some(_), .. }));
    let conn = within("a failed connect", failed).await.unwrap().clone();
    said.push(("conn", format!("{conn:?}")));
    if let Conn::Connecting { why: Some(why), .. } = &conn {
        said.push(("conn's line", why.to_string()));
    }
    let doctor = handle.request(Request::Doctor { deep: true }).await;
    said.push(("doctor without a store", format!("{doctor:?}")));

    // With a store to examine, the doctor gets as far as the bucket that does not answer.
    let store = Profile {
        meta: MetaProfile::Dump {
            file: lab::path("etcd.jsonl.gz"),
        },
        ..found.profile
    };
    let mut handle = open(store).await;
    whole(&mut handle).await;
    let report = handle.request(Request::Doctor { deep: true }).await;
    let report = format!("{:?}", report.expect("a report"));
    assert!(report.contains("bucket"), "{report}");
    said.push(("doctor", report));
    for (what, text) in &said {
        assert!(!text.contains(SECRET), "{what}: {text}");
    }
    assert!(said[0].1.contains("********"), "{}", said[0].1);
}
