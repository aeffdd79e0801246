//! The pool's view of the world: copies go through the executor, under the fence, from wherever the source lies to wherever the
//! copies belong.

use async_trait::async_trait;

use super::copy::{CopyFile, CopyHost};
use super::cx::{Beside, JobCx};
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
    /// The cluster's own store.
    pub fn own(cx: &JobCx) -> Self {
        Self {
            objects: cx.objects.clone(),
            moved: None,
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
