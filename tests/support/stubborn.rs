//! A store that denies what it is told to deny, for as long as it is told, and what an operator sees of a job that meets it.

#![allow(
    clippy::disallowed_methods,
    reason = "a store that stands in front of another passes every call on"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use falconer::engine::format::pb;
use falconer::engine::ids::JobId;
use falconer::engine::jobs::runner::RunnerHandle;
use falconer::engine::model::jobs::JobInfo;
use futures::stream::{BoxStream, StreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use prost::Message as _;

use super::faults::World;
use super::snapshots::{Made, NOW};

/// The store.
pub struct Stubborn {
    /// What it stands before, which denies nothing.
    pub inner: Arc<dyn ObjectStore>,
    /// Objects that are neither copied nor read.
    pub refused: Mutex<BTreeSet<String>>,
    /// Part of the keys that are not written.
    pub unwritable: Mutex<Option<String>>,
    /// Part of the keys that are not deleted.
    pub undeletable: Mutex<Option<String>>,
    /// What was copied.
    pub copies: Mutex<Vec<String>>,
}

/// The same world behind such a store.
pub fn stubborn(world: &World) -> (World, Arc<Stubborn>) {
    let store = Arc::new(Stubborn {
        inner: world.objects.clone(),
        refused: Mutex::default(),
        unwritable: Mutex::default(),
        undeletable: Mutex::default(),
        copies: Mutex::default(),
    });
    let world = World::new(world.meta.clone(), store.clone(), NOW);
    (world, store)
}

fn denied(what: &str, at: &Path) -> object_store::Error {
    object_store::Error::PermissionDenied {
        path: at.to_string(),
        source: format!("the policy of this bucket denies {what} here").into(),
    }
}

fn meant(part: &Mutex<Option<String>>, at: &Path) -> bool {
    let part = part.lock().unwrap();
    part.as_ref()
        .is_some_and(|p| at.as_ref().contains(p.as_str()))
}

impl fmt::Debug for Stubborn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stubborn")
    }
}

impl fmt::Display for Stubborn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stubborn")
    }
}

#[async_trait]
impl ObjectStore for Stubborn {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        if meant(&self.unwritable, at) {
            return Err(denied("s3:PutObject", at));
        }
        self.inner.put_opts(at, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if self.refused.lock().unwrap().contains(at.as_ref()) {
            return Err(denied("s3:GetObject", at));
        }
        self.inner.get_opts(at, options).await
    }

    async fn get_ranges(
        &self,
        at: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let kept = self.undeletable.lock().unwrap().clone();
        let asked = locations.map(move |at| match (at, &kept) {
            (Ok(at), Some(kept)) if at.as_ref().contains(kept.as_str()) => {
                Err(denied("s3:DeleteObject", &at))
            }
            (at, _) => at,
        });
        self.inner.delete_stream(asked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        if self.refused.lock().unwrap().contains(from.as_ref()) {
            return Err(denied("s3:GetObject", from));
        }
        self.copies.lock().unwrap().push(from.to_string());
        self.inner.copy_opts(from, to, options).await
    }
}

/// Waits until a job is as wanted.
pub async fn seen(
    runner: &RunnerHandle,
    job: JobId,
    what: &str,
    is: impl Fn(&JobInfo) -> bool,
) -> Arc<JobInfo> {
    let mut view = runner.view.clone();
    let waiting = async {
        loop {
            let found = view
                .borrow_and_update()
                .jobs
                .iter()
                .find(|j| j.id == job)
                .cloned();
            match found {
                Some(info) if is(&info) => return info,
                _ => view.changed().await.unwrap(),
            }
        }
    };
    match tokio::time::timeout(Duration::from_mins(10), waiting).await {
        Ok(info) => info,
        Err(late) => panic!("{what} not seen, {late}: {:?}", runner.view.borrow().jobs),
    }
}

/// The logs of its segments.
pub fn paths(made: &Made) -> Vec<String> {
    let s = &made.segments;
    let logs = s.iter().flat_map(|s| s.binlogs.iter().chain(&s.deltalogs));
    logs.flat_map(|f| &f.binlogs)
        .map(|b| b.log_path.clone())
        .collect()
}

/// Its pins with their ends.
pub async fn pins(world: &World, made: &Made) -> BTreeMap<i64, u64> {
    let kv = world.meta.get(&made.key).await.unwrap().unwrap();
    let record = pb::data::SnapshotInfo::decode(kv.value).unwrap();
    record
        .pin_expire_at_ms
        .iter()
        .map(|(id, at)| (*id, *at as u64))
        .collect()
}
