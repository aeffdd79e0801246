//! Checks of what a snapshot holds against what this version, the cluster and the store can take.

use std::collections::{BTreeMap, BTreeSet};

use super::copy::CopyFile;
use super::presence::Presence;
use super::restore_map::Source;
use super::restore_plan::{refuse, some_of};
use super::restore_source::Reads;
use super::snapshot_contents::{changed, wanted};
use super::snapshot_notes;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Family;
use crate::engine::format::pb;
use crate::engine::format::session::Session;
use crate::engine::meta::Span;
use crate::engine::model::text;
use crate::engine::plan::journal::Keys;

/// Storage versions that can be copied: V1, V2, V3.
const STORAGE: [i64; 3] = [0, 2, 3];

/// Storage versions that this version copies.
pub(super) fn storage(source: &Source) -> Result<String> {
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for segment in &source.segments {
        *counts.entry(segment.storage_version).or_default() += 1;
    }
    if let Some(unknown) = counts.keys().find(|v| !STORAGE.contains(v)) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("storage version {unknown} is unknown"),
        )
        .fix("use a newer Falconer"));
    }
    Ok(counts
        .iter()
        .map(|(version, n)| format!("{n} segments of storage version {version}"))
        .collect::<Vec<_>>()
        .join(", "))
}

/// The newest engine versions among built index files: of vector indexes, of scalar indexes.
fn newest(source: &Source) -> Option<(i32, i32)> {
    let files = source.segments.iter().flat_map(|s| &s.index_files);
    files.fold(None, |most, f| {
        let (v, s) = most.unwrap_or_default();
        Some((
            v.max(f.current_index_version),
            s.max(f.current_scalar_index_version),
        ))
    })
}

/// Both index path versions are copied. A query node refuses an index newer than its engine (`spec/layout.md` §1.2): compared with
/// those that are registered; without one there is a warning instead of a guess.
pub(super) async fn indexes(
    reads: &Reads<'_>,
    source: &Source,
) -> Result<(Result<String>, Option<String>)> {
    let mut paths: BTreeSet<i32> = BTreeSet::new();
    let files = source.segments.iter().flat_map(|s| &s.index_files);
    paths.extend(files.map(|f| f.index_store_path_version));
    if let Some(unknown) = paths.iter().find(|v| !(0..=1).contains(*v)) {
        let e = Error::new(
            ErrorKind::Unsupported,
            format!("index files are stored in path version {unknown}, which is unknown"),
        );
        return Ok((Err(e.fix("use a newer Falconer")), None));
    }
    let Some((vector, scalar)) = newest(source) else {
        return Ok((Ok("no index files".into()), None));
    };
    let has = format!("vector engine version {vector}, scalar engine version {scalar}");
    let sessions = Span::prefix(&Family::Session.prefix(reads.roots));
    let nodes: Vec<Session> = reads
        .meta
        .range_all(&sessions)
        .await?
        .kvs
        .iter()
        .filter_map(|kv| Session::parse(&kv.value).ok())
        .filter(|s| s.server_name == "querynode")
        .collect();
    let most = |of: &dyn Fn(&Session) -> i32| nodes.iter().map(of).min();
    let (Some(v), Some(s)) = (
        most(&|n| n.index_engine.most()),
        most(&|n| n.scalar_index_engine.most()),
    ) else {
        let unsure = format!(
            "no query node is registered, so nobody says whether it loads indexes of {has}; an older Milvus than the one that built them may not"
        );
        return Ok((
            Ok(format!("{has}; no query node to compare with")),
            Some(unsure),
        ));
    };
    // A node from before scalar engine versions says nothing of them, and its indexes have none.
    if vector > v || (scalar > s && s > 0) {
        let e = refuse(
            format!("index files have {has}; a registered query node loads up to {v} and {s}"),
            "upgrade the query nodes first, or restore where they are newer",
        );
        return Ok((Err(e), None));
    }
    Ok((
        Ok(format!(
            "{has}; {} query nodes load up to {v} and {s}",
            nodes.len()
        )),
        None,
    ))
}

/// Whether copies of so many bytes fit. Only a folder can tell; where copies share their blocks less is needed, but nobody promises it.
pub(super) fn room(reads: &Reads<'_>, bytes: u64) -> Result<String> {
    fits(reads.objects.free_space(), bytes)
}

fn fits(free: Option<u64>, bytes: u64) -> Result<String> {
    match free {
        None => Ok("this kind of store does not say how much it has left".into()),
        Some(free) if free >= bytes => Ok(format!(
            "{} free, {} needed",
            text::bytes(free),
            text::bytes(bytes)
        )),
        Some(free) => Err(refuse(
            format!(
                "the copies need {}, and {} are free",
                text::bytes(bytes),
                text::bytes(free)
            ),
            "free space on that disk, or restore where there is room",
        )),
    }
}

/// Whether the source is what it was when it was made, as far as its maker noted that, and what its last verification found.
pub(super) async fn whole(
    reads: &Reads<'_>,
    source: &Source,
    files: &[CopyFile],
) -> Result<Result<String>> {
    let noted = match &source.side {
        None => "its maker noted no sizes",
        Some(side) => {
            let mut found = Presence::default();
            for file in files {
                found.saw(file.from.clone(), file.size, file.etag.as_deref());
            }
            let wanted = wanted(source, reads.objects.root())?;
            let manifests = &source.metadata.manifest_list;
            let changed = changed(reads.objects, side, manifests, &wanted, &found).await?;
            if !changed.is_empty() {
                return Ok(Err(refuse(
                    format!(
                        "{} segments are not as they were: {}",
                        changed.len(),
                        some_of(&changed)
                    ),
                    "bring their objects back from a backup of the bucket, or use another snapshot",
                )));
            }
            "each segment is as its maker noted"
        }
    };
    let notes = snapshot_notes::read(reads.meta, &Keys::new(reads.roots), source.id()).await?;
    let last = match notes.verified {
        None => "never verified".to_owned(),
        Some(found) if found.wrong == 0 => format!("found {}", found.text()),
        Some(found) => {
            let first = found.problems.first().map_or("", String::as_str);
            return Ok(Err(refuse(
                format!("its last verification found it {}: {first}", found.text()),
                "mend it, then verify it again: falconer snapshot verify",
            )));
        }
    };
    Ok(Ok(format!("{noted}; {last}")))
}

fn property<'a>(list: &'a [pb::common::KeyValuePair], key: &str) -> Option<&'a str> {
    list.iter()
        .rev()
        .find(|p| p.key == key)
        .map(|p| p.value.as_str())
}

/// `spec/snapshot.md` §5.1: plain to plain, or the same encryption zone.
pub(super) fn encryption(source: &Source, db: Option<&pb::etcd::DatabaseInfo>) -> Result<String> {
    let description = source.metadata.collection.as_ref();
    let schema = description.and_then(|c| c.schema.as_ref());
    let zone = schema
        .and_then(|s| property(&s.properties, "cipher.ezID"))
        .or_else(|| description.and_then(|c| property(&c.properties, "cipher.ezID")));
    let none = Vec::new();
    let of_db = db.map_or(&none, |d| &d.properties);
    let target = property(of_db, "cipher.ezID");
    let encrypted = property(of_db, "cipher.enabled") == Some("true") || target.is_some();
    match (zone, encrypted, target) {
        (None, false, _) => Ok("neither is encrypted".into()),
        (Some(a), true, Some(b)) if a == b => Ok(format!("both in encryption zone {a}")),
        (Some(a), false, _) => Err(refuse(
            format!("the snapshot is encrypted (zone {a}), the database is not"),
            "restore into its own database",
        )),
        (None, true, _) => Err(refuse(
            "the database is encrypted, the snapshot is not",
            "restore into a database without encryption",
        )),
        (Some(a), true, b) => Err(refuse(
            format!(
                "the snapshot is in encryption zone {a}, the database in {}",
                b.unwrap_or("none")
            ),
            "restore into its own database",
        )),
    }
}

/// Data of an external table lies outside the bucket.
pub(super) fn external(source: &Source) -> Result<String> {
    let schema = source
        .metadata
        .collection
        .as_ref()
        .and_then(|c| c.schema.as_ref());
    match schema.map(|s| s.external_source.as_str()) {
        Some(place) if !place.is_empty() => Err(Error::new(
            ErrorKind::Unsupported,
            "the collection's data lies outside the cluster: its segments cannot be copied",
        )
        .fix("create the external collection again in Milvus")),
        _ => Ok("its data is in the bucket".into()),
    }
}

/// Whether a member of the metadata belongs to what a restore writes: the schema or an index definition.
pub(super) fn is_content(member: &str) -> bool {
    let below = |part: &str| {
        member
            .strip_prefix(part)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    below("collection.schema") || below("indexes")
}

/// A member that reading drops would be lost in the restored collection: a newer Milvus wrote it for a reason.
pub(super) fn understood(source: &Source) -> Result<String> {
    let lost: Vec<&str> = source
        .unknown
        .iter()
        .map(String::as_str)
        .filter(|member| is_content(member))
        .collect();
    if lost.is_empty() {
        return Ok("every member of the schema and the indexes is known".into());
    }
    Err(refuse(
        format!(
            "the schema or an index has members that this version does not know and would lose: {}",
            lost.join(", ")
        ),
        "restore it with a newer Falconer, or with the Milvus that made it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> pb::common::KeyValuePair {
        pb::common::KeyValuePair {
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn room_is_refused_by_the_last_byte() {
        assert!(fits(Some(100), 100).is_ok());
        let e = fits(Some(99), 100).unwrap_err();
        assert!(
            e.to_string().contains("the copies need 100 B, and 99 B"),
            "{e}"
        );
        assert!(fits(None, u64::MAX).is_ok(), "a store that does not say");
    }

    /// The four texts of `spec/snapshot.md` §5.1, and the two that pass.
    #[test]
    fn encryption_must_be_the_same_on_both_sides() {
        let source = |zone: Option<&str>| Source {
            metadata: pb::data::SnapshotMetadata {
                collection: Some(pb::data::CollectionDescription {
                    schema: Some(pb::schema::CollectionSchema {
                        properties: zone.map(|z| pair("cipher.ezID", z)).into_iter().collect(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Source::default()
        };
        let database = |enabled: bool, zone: Option<&str>| pb::etcd::DatabaseInfo {
            properties: enabled
                .then(|| pair("cipher.enabled", "true"))
                .into_iter()
                .chain(zone.map(|z| pair("cipher.ezID", z)))
                .collect(),
            ..Default::default()
        };
        let ask = |zone: Option<&str>, db: &pb::etcd::DatabaseInfo| {
            encryption(&source(zone), Some(db)).map_err(|e| e.to_string())
        };
        assert!(ask(None, &database(false, None)).is_ok());
        assert!(ask(Some("7"), &database(true, Some("7"))).is_ok());
        let refused = [
            (None, database(true, Some("7")), "the database is encrypted"),
            (Some("7"), database(false, None), "the database is not"),
            (Some("7"), database(true, None), "the database in none"),
            (Some("7"), database(true, Some("8")), "the database in 8"),
        ];
        for (zone, db, why) in refused {
            let said = ask(zone, &db).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
