mod support;
use falconer::engine::format::{keys::*, pb};
use support::snapshots::*;
#[tokio::test]
async fn probe() {
    let w = lab_world().await;
    for (k, info) in family::<pb::etcd::CollectionInfo>(&*w.meta, Family::Collection).await {
        let Key::Collection(db, c) = k else { continue };
        if info.state != 0 {
            println!("{db} {c} state {}", info.state);
            continue;
        }
        let m = make(&w, db, c, 900 + c.0 % 1000, "p", 1000).await;
        println!(
            "{db} {c} {} segs {} deltas {} idxfiles {} rows {} objs {}",
            info.schema.unwrap().name,
            m.segments.len(),
            m.segments
                .iter()
                .filter(|s| !s.deltalogs.is_empty())
                .count(),
            m.segments
                .iter()
                .flat_map(|s| &s.index_files)
                .map(|f| f.index_file_paths.len())
                .sum::<usize>(),
            m.segments.iter().map(|s| s.num_of_rows).sum::<i64>(),
            m.segments
                .iter()
                .map(|s| s
                    .binlogs
                    .iter()
                    .chain(&s.deltalogs)
                    .chain(&s.statslogs)
                    .map(|f| f.binlogs.len())
                    .sum::<usize>())
                .sum::<usize>()
        );
    }
    let segs = family::<pb::data::SegmentInfo>(&*w.meta, Family::Segment).await;
    let mut by = std::collections::BTreeMap::new();
    for (_, s) in segs {
        *by.entry((s.state, s.dropped_at > 0, s.compacted))
            .or_insert(0) += 1;
        if s.state == 6 {
            println!(
                "dropped {} c {} at {} ch {} dml {:?} from {:?}",
                s.id,
                s.collection_id,
                s.dropped_at,
                s.insert_channel,
                s.dml_position.map(|p| p.timestamp),
                s.compaction_from
            );
        }
    }
    println!("{by:?}");
    for (k, v) in all(&*w.meta, "by-dev/meta/datacoord-meta/channel-removal").await {
        println!("{k} {v:?}");
    }
}
