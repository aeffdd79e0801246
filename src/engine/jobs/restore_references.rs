//! What a restore asks of the reference index: whether its source is known whole, and whether a snapshot refers to what it would write
//! or delete.

use super::cx::JobCx;
use super::references::{self, Keeper};
use super::restore::reads;
use super::restore_map::Source;
use super::restore_source::Reads;
use super::restore_state::Range;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::codec::{Decoded, decode};
use crate::engine::format::keys::{Family, Key};
use crate::engine::format::paths::ObjPath;
use crate::engine::format::pb::data::{SnapshotInfo, SnapshotState};
use crate::engine::ids::{ObjectKey, UnixMs};
use crate::engine::model::facts::Reference;
use crate::engine::model::references::{Entry, Extent, Record, References, Status};

/// The source, once the index says that its references are loaded whole. The index learns what this reading came to: what cannot be
/// restored from must not be collected either.
pub(super) fn loaded(
    reads: &Reads<'_>,
    keeper: &Keeper,
    record: &Record,
    read: Result<Source>,
    now: UnixMs,
) -> Result<(Source, std::sync::Arc<References>)> {
    let read = read.and_then(|source| Ok((references::of_source(reads.objects, &source)?, source)));
    let source = match read {
        // It says nothing about the snapshot.
        Err(e) if e.is_transient() => return Err(e),
        Err(e) => {
            keeper.took(record, Err(e.to_string()), now);
            return Err(e);
        }
        Ok((refs, source)) => {
            keeper.took(record, Ok(refs), now);
            source
        }
    };
    match keeper.reference(record) {
        Reference::Loaded(refs) if refs.extent == Extent::Files => Ok((source, refs)),
        Reference::Failed(why) => Err(unknown(record, &why)),
        Reference::Loaded(_) | Reference::NotLoaded => Err(unknown(record, "not read yet")),
    }
}

fn unknown(record: &Record, why: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "what snapshot {} ({}) refers to is not known: {why}",
            record.name, record.id
        ),
    )
    .fix("look at falconer gc references, and plan again")
}

/// What snapshots refer to among the ids that a restore took. The ids are new, so nothing may: an allocator that was set back would
/// have given them twice.
pub(super) struct Held {
    /// A snapshot of the target collection itself that is not known: then everything may be referred to.
    doubt: Option<String>,
    by: Vec<Entry>,
}

impl Held {
    /// Asks the index, and reads what it does not know of the target collection: a snapshot of another collection that is not known
    /// holds that collection alone.
    pub async fn of(cx: &JobCx, keeper: &Keeper, ids: Range) -> Result<Self> {
        let mut doubt = None;
        let mut records = Vec::new();
        for kv in reads(cx).under(Family::Snapshot, &[ids.first]).await?.kvs {
            let key = Key::parse(&cx.roots, &kv.key.0).known();
            match key.map(|key| decode::<SnapshotInfo>(&key, &kv.value)) {
                Some(Decoded::Value(info)) => match info.state() {
                    SnapshotState::Deleting => {}
                    SnapshotState::Pending => {
                        doubt = Some(format!("snapshot {} of it is being made", info.name));
                    }
                    _ => records.push(Record::of(&info)),
                },
                Some(Decoded::Tombstone) => {}
                Some(Decoded::Undecodable { .. }) | None => {
                    doubt = Some(format!("record {} cannot be read", kv.key));
                }
            }
        }
        let wanted = records.iter().map(|r| (r.clone(), Extent::Files)).collect();
        keeper.read(&cx.objects, wanted, cx.clock.now()).await?;
        for record in &records {
            if !matches!(keeper.reference(record), Reference::Loaded(_)) {
                doubt = Some(unknown(record, "its files cannot be read").to_string());
            }
        }
        let end = ids.first.saturating_add(i64::from(ids.count));
        let by = keeper.now().referring(ids.first..end).cloned().collect();
        Ok(Self { doubt, by })
    }

    /// Refuses ids that a snapshot refers to.
    pub fn refuse(&self) -> Result<()> {
        let who = match (&self.doubt, self.by.first()) {
            (None, None) => return Ok(()),
            (Some(doubt), _) => doubt.clone(),
            (None, Some(entry)) => named(entry),
        };
        Err(Error::new(
            ErrorKind::Conflict,
            format!("ids that were just taken are in use: {who}"),
        )
        .fix("the id allocator was set back: repair it first"))
    }

    /// Why an object must not be deleted.
    pub fn keeps(&self, root: &str, key: &ObjectKey) -> Option<Error> {
        let why = self.doubt.clone().or_else(|| {
            let owner = ObjPath::parse(root, &key.0).known()?.owner();
            let refers = |entry: &&Entry| match &entry.status {
                Status::Loaded { refs, .. } => {
                    let segment = owner.segment;
                    segment.is_some_and(|id| refs.segments().binary_search(&id).is_ok())
                        || owner
                            .build
                            .is_some_and(|id| refs.builds().binary_search(&id).is_ok())
                }
                _ => true,
            };
            self.by.iter().find(refers).map(named)
        })?;
        Some(Error::new(ErrorKind::Conflict, why))
    }
}

fn named(entry: &Entry) -> String {
    let record = &entry.record;
    format!(
        "snapshot {} ({}) of collection {} refers to it",
        record.name, record.id, record.collection
    )
}
