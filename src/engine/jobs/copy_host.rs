//! The pool's view of the world: copies go through the executor, under the fence, from wherever the source lies to wherever the
//! copies belong.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::copy::{CopyFile, CopyHost};
use super::cx::{Beside, JobCx};
use super::restore_bundle;
use super::restore_source::{Reads, prefixes};
use crate::engine::clock::{Clock, Entropy};
use crate::engine::error::{Error, Result};
use crate::engine::format::bundle::Relocation;
use crate::engine::ids::ObjectKey;
use crate::engine::objects::{ObjectRead, Origin};

/// Where a job's sources lie.
#[derive(Clone)]
pub(super) struct Sources {
    pub objects: ObjectRead,
    /// From the keys that the job names to those of the store; `None` where they are the same.
    pub moved: Option<Relocation>,
}

impl Sources {
    /// The cluster's own store, or the bundle with this metadata URI.
    pub fn of(own: &ObjectRead, outside: Option<&str>) -> Result<Self> {
        match outside {
            Some(uri) => restore_bundle::sources(own, uri),
            None => Ok(Self {
                objects: own.clone(),
                moved: None,
            }),
        }
    }

    /// The key in the store.
    pub fn key(&self, named: &ObjectKey) -> Result<ObjectKey> {
        match &self.moved {
            None => Ok(named.clone()),
            Some(moved) => moved.path(&named.0).map(ObjectKey),
        }
    }
}

/// Fills in sizes and entity tags by listing; answers what is missing.
/// `outside`: the bundle that the sources lie in.
pub(super) async fn sizes(
    reads: &Reads<'_>,
    outside: Option<&str>,
    files: &mut [CopyFile],
) -> Result<Vec<ObjectKey>> {
    let sources = Sources::of(reads.objects, outside)?;
    let wanted = files.iter().map(|f| sources.key(&f.from));
    let wanted = wanted.collect::<Result<Vec<ObjectKey>>>()?;
    let reads = Reads {
        objects: &sources.objects,
        ..*reads
    };
    let there = reads
        .list_tagged(prefixes(sources.objects.root(), &wanted))
        .await?;
    let mut missing = BTreeSet::new();
    for (file, key) in files.iter_mut().zip(&wanted) {
        match there.get(key) {
            Some((size, etag)) => (file.size, file.etag) = (*size, etag.clone()),
            None => {
                missing.insert(file.from.clone());
            }
        }
    }
    Ok(missing.into_iter().collect())
}

/// The pool's world.
pub(super) struct Host<'a> {
    pub cx: &'a JobCx,
    pub sources: &'a Sources,
    /// Where the copies belong, if not into the cluster's own store.
    pub beside: Option<&'a Beside>,
}

#[async_trait]
impl CopyHost for Host<'_> {
    async fn copy(&self, file: &CopyFile) -> Result<()> {
        let key = self.sources.key(&file.from)?;
        let origin = Origin {
            key: &key,
            ..file.origin()
        };
        let objects = &self.sources.objects;
        let copied = match self.beside {
            None => self.cx.copy_object(objects, origin, &file.to).await,
            Some(beside) => beside.copy_object(objects, origin, &file.to).await,
        };
        copied.map(drop)
    }

    fn note(&self, text: String) {
        self.cx.note(text);
    }

    fn parallel(&self) -> u32 {
        self.cx.parallel()
    }

    fn throttle(&self) -> Option<u64> {
        self.cx.throttle()
    }

    fn began(&self, file: &CopyFile) {
        self.cx.files().began(&file.to.0, file.size);
    }

    fn failed(&self, file: &CopyFile, why: &Error) {
        self.cx.files().failed(&file.from.0, why);
    }

    fn gave_up(&self, file: &CopyFile) {
        self.cx.files().left(&file.from.0, &file.to.0, true);
    }

    fn copied(&self, file: &CopyFile) {
        self.cx.files().done(&file.from.0, &file.to.0);
        self.cx.progress().file(file.size);
    }

    fn cancelled(&self) -> bool {
        self.cx.cancel.is_cancelled()
    }

    fn clock(&self) -> &dyn Clock {
        &*self.cx.clock
    }

    fn entropy(&self) -> &dyn Entropy {
        &*self.cx.entropy
    }
}
