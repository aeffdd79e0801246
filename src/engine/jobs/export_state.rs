//! What an export journals: a few facts that decide everything else.

use serde::{Deserialize, Serialize};

use super::copy::Done;
use super::cx::{Beside, JobCx};
use super::export_plan::place;
use super::restore_pin::{HeldPin, Pinned};
use crate::engine::error::Result;
use crate::engine::format::bundle::Bundle;
use crate::engine::ids::{CollectionId, SnapshotId, UnixMs};

/// Steps from the first to the last one.
pub(super) const STEPS: u32 = 9;

/// Where the machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Look at everything once more; choose the pin and the prefix.
    #[default]
    Begin,
    /// Pin the snapshot.
    Pin,
    /// Write the record that others watch.
    Record,
    /// Copy objects.
    Copy,
    /// List what was copied.
    Check,
    /// Write the manifests and the staged metadata.
    Manifests,
    /// Write the metadata in its place.
    Publish,
    /// Read the bundle as a restore would.
    Verify,
    /// Release the snapshot, tidy up.
    Unpin,
    /// Undo: objects.
    UndoObjects,
    /// Undo: the pin.
    UndoPin,
    /// Undo: say so in the record.
    UndoRecord,
}

/// What is journaled. Never a credential: `target` is a key or a URI without user, password and query.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Snapshot.
    pub snapshot: SnapshotId,
    /// Its collection.
    pub of: CollectionId,
    /// Its name.
    pub name: String,
    /// Its collection's database, by name.
    pub db_name: String,
    /// Its collection, by name.
    pub collection_name: String,
    /// Where to, as the operator wrote it.
    pub target: String,
    /// Of this export alone.
    pub uuid: String,
    /// The step to take.
    pub step: Step,
    /// Fingerprint of the snapshot as it lies in the bundle.
    pub fingerprint: String,
    /// Fingerprint of the plan, for the record.
    pub plan: String,
    /// Digest of all source objects with their sizes when planned.
    pub objects: String,
    /// The pin.
    pub pin: Option<HeldPin>,
    /// Begin.
    pub started: UnixMs,
    /// Files copied.
    pub done: Done,
    /// Files in all.
    pub files: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Rounds of copying.
    pub round: u32,
    /// What an undo could not take back, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

impl State {
    pub(super) fn to(mut self, step: Step) -> Self {
        self.step = step;
        self
    }

    /// What others read of where the bundle is: in the operator's own words.
    pub(super) fn uri_root(&self) -> String {
        Bundle::new(&self.target, &self.uuid).root().to_owned()
    }

    /// The metadata's URI.
    pub(super) fn uri(&self) -> String {
        Bundle::at(&self.uri_root())
            .metadata(self.of, self.snapshot)
            .0
    }

    /// The bundle, by keys of the store that it lies in.
    pub(super) fn bundle(&self, cx: &JobCx) -> Result<Bundle> {
        let (_, prefix) = place(&cx.objects, &self.target)?;
        Ok(Bundle::new(&prefix, &self.uuid))
    }

    /// That store.
    pub(super) fn beside(&self, cx: &JobCx) -> Result<Beside> {
        let (there, _) = place(&cx.objects, &self.target)?;
        cx.beside(&there)
    }

    /// The snapshot that is read.
    pub(super) fn source(&self) -> Pinned {
        Pinned(self.of, self.snapshot)
    }
}

impl Step {
    /// In words, and how many steps came before it; of [`STEPS`].
    pub(super) const fn words(self) -> (&'static str, u32) {
        match self {
            Self::Begin => ("reading the snapshot", 0),
            Self::Pin => ("pinning the snapshot", 1),
            Self::Record => ("recording the job", 2),
            Self::Copy => ("copying objects", 3),
            Self::Check => ("checking copied objects", 4),
            Self::Manifests => ("writing manifests", 5),
            Self::Publish => ("writing the metadata", 6),
            Self::Verify => ("reading the bundle back", 7),
            Self::Unpin => ("releasing the snapshot", 8),
            Self::UndoObjects => ("undo: removing what was copied", 0),
            Self::UndoPin => ("undo: releasing the snapshot", 0),
            Self::UndoRecord => ("undo: labelling the job", 0),
        }
    }
}
