//! A snapshot that lies outside the cluster, in a self-contained bundle (`spec/snapshot.md` §2.7, §5.1): found, checked, put at its
//! place if it was moved, and handed on as if it lay in the cluster's own bucket.

use std::collections::BTreeSet;

use super::copy_host::Sources;
use super::restore_map::{Source, corrupt};
use super::restore_source::Reads;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::bundle::{Bundle, Relocation, parse_metadata_uri, parse_place};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::pb::data::{SnapshotInfo, SnapshotLayout, SnapshotState};
use crate::engine::format::snapshot::read_metadata;
use crate::engine::format::vchannel::ChannelName;
use crate::engine::ids::{CollectionId, ObjectKey, SnapshotId};
use crate::engine::objects::ObjectRead;
use crate::engine::profile::Elsewhere;

/// Where the bundle of this metadata URI lies, and which snapshot it is.
fn place(own: &ObjectRead, uri: &str) -> Result<(ObjectRead, Bundle, CollectionId, SnapshotId)> {
    let (place, collection, snapshot) = parse_metadata_uri(uri)?;
    let (there, prefix) = match place.as_str() {
        "" => (Elsewhere::Here, String::new()),
        place => parse_place(place)?,
    };
    let store = own.elsewhere(&there)?;
    let prefix = match there {
        Elsewhere::Here if !prefix.is_empty() && !prefix.starts_with('/') => own.key(&prefix)?.0,
        _ => prefix,
    };
    let bundle = Bundle::at(&prefix);
    let inside = store.rooted(&bundle.files());
    Ok((inside, bundle, collection, snapshot))
}

/// Where the objects of a bundle are, for keys under the cluster's own root.
pub(super) fn sources(own: &ObjectRead, uri: &str) -> Result<Sources> {
    let (inside, bundle, ..) = place(own, uri)?;
    let moved = Relocation::new(own.root(), &bundle.files());
    Ok(Sources {
        objects: inside,
        moved: Some(moved),
    })
}

/// Reads the bundle, strictly: any doubt is an error that names the file. Its paths are those it would have under the own root.
pub(super) async fn open(reads: &Reads<'_>, uri: &str) -> Result<Source> {
    let own = reads.objects;
    let (inside, bundle, collection, snapshot) = place(own, uri)?;
    let location = bundle.metadata(collection, snapshot);
    let record = record(&inside, &location, (collection, snapshot)).await?;
    let there = Reads {
        objects: &inside,
        ..*reads
    };
    let mut source = there.read_source(record).await?;
    let home = Relocation::new(&bundle.files(), own.root());
    for segment in &mut source.segments {
        home.segment(segment, inside.bucket())?;
    }
    for key in source.declared.values_mut().flatten() {
        *key = ObjectKey(home.path(&key.0)?);
    }
    // Message ids of another cluster's log mean nothing in this one.
    source.record.channel_seek_positions.clear();
    source.outside = Some(uri.to_owned());
    Ok(source)
}

/// What stands for the record that a snapshot of the own cluster has in the metadata store.
async fn record(
    inside: &ObjectRead,
    location: &ObjectKey,
    ids: (CollectionId, SnapshotId),
) -> Result<SnapshotInfo> {
    let metadata = read_metadata(&location.0, &inside.get(location).await?)?;
    if metadata.layout() != SnapshotLayout::SelfContained {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{location} is no bundle: its data lies in the cluster that made it"),
        )
        .fix("export the snapshot there: falconer export start"));
    }
    let mut info = metadata
        .snapshot_info
        .ok_or_else(|| corrupt(format!("{location} holds no snapshot")))?;
    if (CollectionId(info.collection_id), SnapshotId(info.id)) != ids {
        return Err(corrupt(format!(
            "{location} holds snapshot {} of collection {}, its name says otherwise",
            info.id, info.collection_id
        )));
    }
    info.set_state(SnapshotState::Committed);
    location.0.clone_into(&mut info.s3_location);
    Ok(info)
}

/// A channel of a name that this cluster does not use would be served by nobody.
pub(super) async fn channels_known(reads: &Reads<'_>, source: &Source) -> Result<Result<String>> {
    let family = |channel: &str| match ChannelName::parse(channel) {
        ChannelName::Shard { pchannel, .. } => {
            let name = pchannel.rsplit_once('_').map_or(pchannel, |(name, _)| name);
            Some(name.to_owned())
        }
        _ => None,
    };
    let page = reads.family(Family::ChannelCheckpoint).await?;
    let here: BTreeSet<String> = page
        .kvs
        .iter()
        .filter_map(|kv| match Key::parse(reads.roots, &kv.key.0).known() {
            Some(Key::ChannelCheckpoint(channel)) => family(&channel.0),
            _ => None,
        })
        .collect();
    let collection = source.metadata.collection.as_ref();
    let wanted: BTreeSet<String> = collection
        .iter()
        .flat_map(|c| &c.virtual_channel_names)
        .filter_map(|name| family(name))
        .collect();
    if here.is_empty() {
        return Ok(Ok("this cluster has no channel yet to compare with".into()));
    }
    Ok(match wanted.difference(&here).next() {
        None => Ok(wanted.into_iter().collect::<Vec<_>>().join(", ")),
        Some(other) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the bundle's channels are called {other}, this cluster's {}",
                here.iter().cloned().collect::<Vec<_>>().join(", ")
            ),
        )
        .fix("restore it in a cluster with the same msgChannel.chanNamePrefix")),
    })
}
