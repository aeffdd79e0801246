//! What a bundle must be, and one that was moved as a whole.

use std::collections::BTreeMap;

use bytes::Bytes;
use falconer::engine::format::bundle::parse_metadata_uri;
use falconer::engine::format::{manifest, pb, snapshot};
use falconer::engine::plan::Intent;

use super::faults::World;
use super::snapshots::{self as lab, Made, ROOT};

/// Objects by key.
pub type Files = BTreeMap<String, Bytes>;

/// Where [`put_moved`] puts one.
pub const MOVED: &str = "moved/here";

/// Everything of a bundle, by key below its root; and the root.
pub fn bundle(objects: &Files) -> (String, Files) {
    let metadata = objects
        .keys()
        .find(|k| k.contains("exports/") && k.contains("/metadata/"))
        .expect("a bundle's metadata");
    let (root, ..) = parse_metadata_uri(metadata).expect("its place");
    let below = objects.iter().filter_map(|(key, bytes)| {
        let rest = key.strip_prefix(&root)?.strip_prefix('/')?;
        Some((rest.to_owned(), bytes.clone()))
    });
    let below = below.collect();
    (root, below)
}

/// A bundle holds everything that its snapshot refers to and nothing else, and every path in it leads into it.
pub fn whole(made: &Made, source: &Files, objects: &Files, uri: &str) {
    let (root, inside) = bundle(objects);
    let (c, s) = (made.of, made.id);
    let name = format!("snapshots/{c}/metadata/{s}.json");
    let json = &inside[&name];
    let metadata = snapshot::read_metadata(&format!("{root}/{name}"), json).unwrap();
    assert_eq!(metadata.layout(), pb::data::SnapshotLayout::SelfContained);
    let info = metadata.snapshot_info.as_ref().unwrap();
    assert_eq!(info.state(), pb::data::SnapshotState::Pending);
    assert!(info.pin_ids.is_empty() && info.pin_expire_at_ms.is_empty());
    assert_eq!(info.s3_location, uri);
    assert_eq!(
        info.channel_seek_positions,
        made.metadata
            .snapshot_info
            .as_ref()
            .unwrap()
            .channel_seek_positions
    );
    assert_eq!(metadata.collection, made.metadata.collection);
    assert_eq!(metadata.indexes, made.metadata.indexes);
    assert_eq!(metadata.segment_ids, made.metadata.segment_ids);
    assert_eq!(metadata.build_ids, made.metadata.build_ids);
    let manifests = metadata.manifest_list.iter().map(|key| {
        let bytes = &inside[key.strip_prefix(&root).unwrap().trim_start_matches('/')];
        (key.clone(), manifest::read(key, bytes, 4).unwrap())
    });
    // Joining checks each path against the bundle.
    let read = snapshot::join(
        &format!("{root}/{name}"),
        metadata.clone(),
        manifests.collect(),
    );
    let read = read.unwrap();
    let mut data: Files = inside.clone();
    data.retain(|key, _| key.starts_with("files/"));
    let mut named = 0;
    for (segment, original) in read.segments.iter().zip(&made.segments) {
        let paths = |s: &pb::data::SegmentDescription| {
            let lists = [&s.binlogs, &s.statslogs, &s.deltalogs, &s.bm25_statslogs];
            let logs = lists.into_iter().flatten().flat_map(|f| &f.binlogs);
            let mut all: Vec<String> = logs.map(|l| l.log_path.clone()).collect();
            all.extend(
                s.index_files
                    .iter()
                    .flat_map(|f| f.index_file_paths.clone()),
            );
            all
        };
        for (path, from) in paths(segment).iter().zip(paths(original)) {
            let below = path.strip_prefix(&format!("{root}/files/")).unwrap();
            assert_eq!(format!("{ROOT}/{below}"), from);
            let copy = data
                .remove(&format!("files/{below}"))
                .unwrap_or_else(|| panic!("{path}"));
            assert!(copy == source[&from], "{path}");
            named += 1;
        }
        assert_eq!(segment.num_of_rows, original.num_of_rows);
    }
    assert!(named >= 18, "{named}");
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "nothing more"
    );
    let others = inside.keys().filter(|k| !k.starts_with("files/")).count();
    assert_eq!(
        others,
        1 + made.segments.len(),
        "no staging is left: {:?}",
        inside.keys()
    );
}

/// Puts the files of a bundle where nobody exported them to.
pub async fn put_moved(world: &World, inside: &Files) {
    for (key, bytes) in inside {
        let key = format!("{MOVED}/{key}");
        lab::put_object(world, &key.as_str().into(), bytes.to_vec()).await;
    }
}

/// Restores from there.
pub fn from_bundle(made: &Made, name: &str) -> Intent {
    Intent::RestoreBundle {
        uri: format!("{MOVED}/snapshots/{}/metadata/{}.json", made.of, made.id),
        database: "default".into(),
        collection: name.into(),
    }
}
