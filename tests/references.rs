//! What snapshots refer to: read strictly, kept while attached, tried again, and shown with what waits for it.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use falconer::engine::Engine;
use falconer::engine::clock::SeededEntropy;
use falconer::engine::error::ErrorKind;
use falconer::engine::format::{manifest, pb};
use falconer::engine::handle::{Conn, Handle};
use falconer::engine::ids::{BuildId, ObjectKey, SegmentId, UnixMs};
use falconer::engine::jobs::references::{Keeper, read};
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::model::blocked::blocked;
use falconer::engine::model::broadcast::BroadcastsView;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::health::{self, Rule};
use falconer::engine::model::references::{Extent, Index, Record, Status};
use falconer::engine::model::resource::View;
use falconer::engine::profile::{Access, MetaProfile, ObjectKind, ObjectProfile, Profile, Roots};
use support::faults::{Faults, VirtualClock, World};
use support::snapshots::{self as lab, Made, NOW, ROOT, all, collection, lab_world, make, objects};

const ID: i64 = 470_660_334_431_990_001;

fn record(made: &Made) -> Record {
    Record {
        id: made.id,
        collection: made.of,
        name: "nightly".into(),
        location: format!("{ROOT}/snapshots/{}/metadata/{}.json", made.of, made.id)
            .as_str()
            .into(),
    }
}

async fn world(limit: usize) -> (World, Made) {
    let world = lab_world().await;
    let (db, of) = collection(&*world.meta, "books").await;
    let made = make(&world, db, of, ID, "nightly", limit).await;
    (world, made)
}

fn named(made: &Made) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for s in &made.segments {
        let logs = [&s.binlogs, &s.statslogs, &s.deltalogs, &s.bm25_statslogs];
        let logs = logs.into_iter().flatten().flat_map(|f| &f.binlogs);
        out.extend(logs.map(|b| b.log_path.clone()));
        out.extend(
            s.index_files
                .iter()
                .flat_map(|f| f.index_file_paths.clone()),
        );
    }
    out
}

#[tokio::test(start_paused = true)]
async fn a_json_from_before_ids_is_read_from_its_manifests() {
    let (world, made) = world(4).await;
    let stores = world.open(&Faults::none(), ROOT);
    let key = record(&made).location.to_string();
    let json = objects(&*world.objects).await[&key].clone();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    for member in ["segment_ids", "build_ids"] {
        assert!(json.as_object_mut().unwrap().remove(member).is_some());
    }
    lab::put_object(&world, &key.as_str().into(), json.to_string().into_bytes()).await;

    let ids = read(&stores.read, &record(&made), Extent::Ids)
        .await
        .unwrap();
    let segments: BTreeSet<SegmentId> = made
        .segments
        .iter()
        .map(|s| SegmentId(s.segment_id))
        .collect();
    assert!(ids.segments().iter().copied().eq(segments.clone()));
    assert_eq!(
        (ids.extent, ids.builds().len()),
        (Extent::Ids, 0),
        "and allow nothing"
    );

    let files = read(&stores.read, &record(&made), Extent::Files)
        .await
        .unwrap();
    assert!(files.segments().iter().copied().eq(segments));
    let builds: BTreeSet<BuildId> = made
        .segments
        .iter()
        .flat_map(|s| &s.index_files)
        .map(|f| BuildId(f.build_id))
        .collect();
    assert!(!builds.is_empty());
    assert!(files.builds().iter().copied().eq(builds));
    assert_eq!(files.files as usize, named(&made).len());
    assert_eq!(files.extent, Extent::Files);
}

/// `spec/snapshot.md` §4.3: deltas of a compaction descendant lie in a segment that the JSON does not list.
#[tokio::test(start_paused = true)]
async fn a_file_of_a_segment_that_is_not_listed_holds_that_segment() {
    let (world, made) = world(1).await;
    let stores = world.open(&Faults::none(), ROOT);
    let mut segment = made.segments[0].clone();
    let stranger = 470_660_334_431_777_777;
    segment.deltalogs.push(pb::data::FieldBinlog {
        binlogs: vec![pb::data::Binlog {
            log_path: format!("{ROOT}/delta_log/{}/1/{stranger}/5", made.of),
            log_id: 5,
            ..Default::default()
        }],
        ..Default::default()
    });
    let key = ObjectKey(made.metadata.manifest_list[0].clone());
    let bytes = manifest::write_v4(&manifest::as_stored(&segment)).unwrap();
    lab::put_object(&world, &key, bytes).await;
    let of = |extent| {
        let (read, record) = (stores.read.clone(), record(&made));
        async move { super_read(&read, &record, extent).await }
    };
    assert!(!of(Extent::Ids).await.contains(&SegmentId(stranger)));
    assert!(of(Extent::Files).await.contains(&SegmentId(stranger)));
}

async fn super_read(
    objects: &falconer::engine::objects::ObjectRead,
    record: &Record,
    extent: Extent,
) -> Vec<SegmentId> {
    read(objects, record, extent)
        .await
        .unwrap()
        .segments()
        .to_vec()
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_says_which_file_and_is_known_again_once_it_is_whole() {
    let (world, made) = world(2).await;
    let stores = world.open(&Faults::none(), ROOT);
    let bad = made.metadata.manifest_list[1].clone();
    let whole = objects(&*world.objects).await[&bad].clone();
    // Cut behind the last boolean: the very file that Milvus would read as "nothing referenced".
    lab::put_object(
        &world,
        &bad.as_str().into(),
        whole[..whole.len() / 2].to_vec(),
    )
    .await;
    let keeper = Keeper::default();
    let ask = |extent| vec![(record(&made), extent)];
    keeper
        .read(&stores.read, ask(Extent::Ids), NOW)
        .await
        .unwrap();
    let state = |keeper: &Keeper| keeper.now().get(made.id).unwrap().status.clone();
    assert!(matches!(state(&keeper), Status::Loaded { refs, .. } if refs.extent == Extent::Ids));
    keeper
        .read(&stores.read, ask(Extent::Files), NOW)
        .await
        .unwrap();
    let Status::Failed {
        reason,
        since,
        tries,
        ..
    } = state(&keeper)
    else {
        panic!("{:?}", state(&keeper));
    };
    assert!(reason.contains(&bad), "{reason}");
    assert_eq!((since, tries), (NOW, 1));
    let later = UnixMs(NOW.0 + 60_000);
    keeper
        .read(&stores.read, ask(Extent::Files), later)
        .await
        .unwrap();
    assert!(matches!(
        state(&keeper),
        Status::Failed {
            since: NOW,
            tries: 2,
            ..
        }
    ));
    lab::put_object(&world, &bad.as_str().into(), whole.to_vec()).await;
    keeper
        .read(&stores.read, ask(Extent::Files), later)
        .await
        .unwrap();
    assert!(matches!(state(&keeper), Status::Loaded { when, .. } if when == later));

    // Two manifests of one segment, one that names another segment, one less than the JSON lists: none of them is a doubt to live with.
    let json = record(&made).location.to_string();
    let text = objects(&*world.objects).await[&json].clone();
    let edit = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        change(&mut json);
        json.to_string().into_bytes()
    };
    let first = made.metadata.manifest_list[0].clone();
    let broken: [Vec<u8>; 3] = [
        edit(&|j| j["manifest_list"][1] = first.clone().into()),
        edit(&|j| drop(j["manifest_list"].as_array_mut().unwrap().pop())),
        edit(&|j| j["segment_ids"][0] = "7".into()),
    ];
    for bytes in broken {
        lab::put_object(&world, &json.as_str().into(), bytes).await;
        let e = read(&stores.read, &record(&made), Extent::Files)
            .await
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    }
}

/// What a store in memory holds, as files that an engine of its own can open.
async fn on_disk(world: &World, dir: &Path) -> Profile {
    let file = dir.join("meta.redb");
    let clock = VirtualClock::at(NOW);
    let store = EmbeddedStore::open_file(&file, clock).unwrap();
    for (key, value) in all(&*world.meta, "by-dev/").await {
        lab::put(&store, &key.as_str().into(), value.to_vec()).await;
    }
    drop(store);
    for (key, bytes) in objects(&*world.objects).await {
        write(dir, &key, &bytes);
    }
    Profile {
        name: "references".into(),
        meta: MetaProfile::Embedded { file },
        objects: Some(ObjectProfile {
            kind: ObjectKind::Local {
                dir: dir.join("objects"),
                absolute: false,
            },
            root: ROOT.into(),
        }),
        roots: Roots::default(),
        access: Access::ReadOnly,
        gc: Tolerances::default(),
    }
}

fn write(dir: &Path, key: &str, bytes: &Bytes) {
    let path = dir.join("objects").join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

async fn until(handle: &Handle, is: impl FnMut(&Arc<Index>) -> bool) -> Arc<Index> {
    handle
        .references
        .clone()
        .wait_for(is)
        .await
        .unwrap()
        .clone()
}

fn faults(handle: &Handle) -> BTreeMap<&'static str, String> {
    let (catalog, jobs) = (
        handle.catalog.borrow().clone(),
        handle.jobs.borrow().clone(),
    );
    let references = handle.references.borrow().clone();
    let view = View {
        catalog: &catalog,
        jobs: &jobs,
        broadcasts: &BroadcastsView::default(),
        references: &references,
        now: handle.clock.now(),
    };
    health::faults(&view)
        .into_iter()
        .filter(|f| f.rule == Rule::ReferencesUnknown)
        .map(|f| (f.rule.name(), f.reason))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn while_attached_the_index_is_read_tried_again_and_says_what_waits() {
    let seed = lab::small_seed(&[lab::FLUSHED[0], lab::FLUSHED[1], lab::COMPACTED[0]]).await;
    let world = seed.world();
    let (db, of) = collection(&*world.meta, "metrics").await;
    let made = make(&world, db, of, ID, "nightly", 2).await;
    let dir = tempfile::tempdir().unwrap();
    let profile = on_disk(&world, dir.path()).await;
    let bad = made.metadata.manifest_list[0].clone();
    let whole = objects(&*world.objects).await[&bad].clone();
    write(dir.path(), &bad, &whole.slice(..whole.len() / 2));

    let clock = VirtualClock::at(NOW);
    let entropy = Arc::new(SeededEntropy::new(1));
    let mut handle = Engine::open(profile, clock, entropy).await.unwrap();
    let live = |c: &Conn| matches!(c, Conn::Live { .. });
    handle.conn.wait_for(live).await.unwrap();
    let failed = until(&handle, |i| i.is_settled()).await;
    assert!(!failed.is_loaded());
    let Status::Failed { reason, .. } = &failed.get(made.id).unwrap().status else {
        panic!("a cut manifest");
    };
    assert!(reason.contains(&bad), "{reason}");
    let fault = faults(&handle).remove("references-unknown").unwrap();
    assert!(
        fault.contains("metrics")
            && fault.contains("nightly")
            && fault.contains("dropped segments with"),
        "{fault}"
    );
    let (catalog, jobs) = (
        handle.catalog.borrow().clone(),
        handle.jobs.borrow().clone(),
    );
    let cost = blocked(&View {
        catalog: &catalog,
        jobs: &jobs,
        broadcasts: &BroadcastsView::default(),
        references: &failed,
        now: NOW,
    });
    assert_eq!((cost.len(), cost[0].collection), (1, of));
    assert!(
        cost[0].failed && cost[0].segments > 0 && cost[0].bytes > 0,
        "{cost:?}"
    );

    write(dir.path(), &bad, &whole);
    let loaded = until(&handle, |i| i.is_loaded()).await;
    let Status::Loaded { refs, .. } = &loaded.get(made.id).unwrap().status else {
        panic!("it is whole again");
    };
    assert_eq!(refs.segments().len(), 2);
    assert_eq!(refs.files as usize, named(&made).len());
    assert_eq!(faults(&handle), BTreeMap::new());
}
