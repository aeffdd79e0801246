//! The object store. Knows keys and bytes, never what they mean. Reading and writing are separate capabilities: only `plan`
//! is handed an [`ObjectWrite`] (law 2).

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};

use super::error::{Error, ErrorKind, Result};
use super::ids::{ObjectKey, UnixMs};
use super::profile::{ObjectKind, ObjectProfile};

/// What a listing says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key as Milvus writes it.
    pub key: ObjectKey,
    /// Bytes.
    pub size: u64,
    /// The server's entity tag, if it has one.
    pub etag: Option<String>,
    /// When the server says it was last written.
    pub modified: UnixMs,
}

/// Whether a put may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Fails with [`ErrorKind::Conflict`] when the object exists. Advisory: some real servers accept the header and
    /// overwrite (lab README), so nothing that must be exclusive may rest on it.
    Create,
    /// Replaces.
    Overwrite,
}

/// The right to read.
#[derive(Clone)]
pub struct ObjectRead {
    store: Arc<dyn ObjectStore>,
    place: Arc<Place>,
}

/// The right to write. Cannot be made from an [`ObjectRead`].
#[derive(Clone)]
pub struct ObjectWrite {
    read: ObjectRead,
}

/// What an error and a header need to say where.
#[derive(Debug)]
struct Place {
    /// Bucket, container or folder.
    bucket: String,
    /// Endpoint, masked; empty for local and memory.
    endpoint: String,
    /// `minio.rootPath` or `localStorage.path`.
    root: String,
    /// Prefix cut from keys when they are absolute local paths.
    absolute: Option<String>,
}

impl ObjectRead {
    /// `minio.rootPath` or `localStorage.path`: the first part of every key Milvus writes.
    pub fn root(&self) -> &str {
        &self.place.root
    }

    /// Bucket, endpoint and root in one line without secrets.
    pub fn describe(&self) -> String {
        let Place {
            bucket,
            endpoint,
            root,
            ..
        } = &*self.place;
        if endpoint.is_empty() {
            format!("{bucket}/{root}")
        } else {
            format!("{bucket}/{root} at {endpoint}")
        }
    }

    /// Size, tag and time of one object; `NotFound` when it is missing.
    pub async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let path = self.path(key)?;
        let meta = self
            .store
            .head(&path)
            .await
            .map_err(|e| self.error("reading the size of", key, e))?;
        Ok(self.meta(meta))
    }

    /// The whole object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Bytes> {
        let path = self.path(key)?;
        let got = self
            .store
            .get_opts(&path, GetOptions::default())
            .await
            .map_err(|e| self.error("reading", key, e))?;
        got.bytes().await.map_err(|e| self.error("reading", key, e))
    }

    /// Bytes `range` of an object.
    pub async fn get_range(&self, key: &ObjectKey, range: std::ops::Range<u64>) -> Result<Bytes> {
        let path = self.path(key)?;
        self.store
            .get_range(&path, range)
            .await
            .map_err(|e| self.error("reading", key, e))
    }

    /// Every object whose key starts with `prefix` and a slash; everything when `prefix` is empty. In key order on S3,
    /// in no order on a local folder. `after` resumes behind that key.
    pub fn list(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let paths = self
            .path(prefix)
            .and_then(|p| Ok((p, after.map(|k| self.path(k)).transpose()?)));
        let (path, offset) = match paths {
            Ok(both) => both,
            Err(e) => return futures::stream::once(async move { Err(e) }).boxed(),
        };
        let scope = (!path.as_ref().is_empty()).then_some(&path);
        let inner = match &offset {
            Some(offset) => self.store.list_with_offset(scope, offset),
            None => self.store.list(scope),
        };
        let me = self.clone();
        let prefix = prefix.clone();
        inner
            .map(move |item| {
                item.map(|m| me.meta(m))
                    .map_err(|e| me.error("listing", &prefix, e))
            })
            .boxed()
    }

    fn meta(&self, meta: object_store::ObjectMeta) -> ObjectMeta {
        let relative = meta.location.to_string();
        let key = match &self.place.absolute {
            Some(base) => ObjectKey(format!("{base}/{relative}")),
            None => ObjectKey(relative),
        };
        ObjectMeta {
            key,
            size: meta.size,
            etag: meta.e_tag,
            modified: UnixMs(meta.last_modified.timestamp_millis()),
        }
    }

    fn path(&self, key: &ObjectKey) -> Result<Path> {
        let relative = match &self.place.absolute {
            Some(base) => match key.0.strip_prefix(base.as_str()) {
                Some(rest) => rest.trim_start_matches('/'),
                None => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("object {key} lies outside {base}"),
                    )
                    .fix("check localStorage.path"));
                }
            },
            None => key.0.trim_end_matches('/'),
        };
        Path::parse(relative).map_err(|e| {
            Error::new(
                ErrorKind::Invalid,
                format!("object key {key:?} is not well formed"),
            )
            .caused_by(e)
        })
    }

    fn error(&self, doing: &str, key: &ObjectKey, e: object_store::Error) -> Error {
        let kind = match &e {
            object_store::Error::NotFound { .. } => ErrorKind::NotFound,
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => ErrorKind::Conflict,
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => ErrorKind::Denied,
            object_store::Error::NotImplemented { .. }
            | object_store::Error::NotSupported { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Unreachable,
        };
        Error::new(kind, format!("{doing} object {key} failed"))
            .with("bucket", &self.place.bucket)
            .with("endpoint", &self.place.endpoint)
            .caused_by(e)
    }
}

impl ObjectWrite {
    /// The right to read the same store.
    pub fn read(&self) -> &ObjectRead {
        &self.read
    }

    /// Writes a whole object.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one room that writes objects"
    )]
    pub async fn put(&self, key: &ObjectKey, bytes: Bytes, mode: PutMode) -> Result<()> {
        let path = self.read.path(key)?;
        let mode = match mode {
            PutMode::Create => object_store::PutMode::Create,
            PutMode::Overwrite => object_store::PutMode::Overwrite,
        };
        let done = self
            .read
            .store
            .put_opts(&path, bytes.into(), mode.into())
            .await;
        done.map(|_| ())
            .map_err(|e| self.read.error("writing", key, e))
    }

    /// Copies inside the store. `NotFound` names the source.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one room that writes objects"
    )]
    pub async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<()> {
        let (source, target) = (self.read.path(from)?, self.read.path(to)?);
        self.read
            .store
            .copy(&source, &target)
            .await
            .map_err(|e| self.read.error("copying", from, e))
    }

    /// Removes exactly one object. `Ok(false)` when it was not there.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one room that writes objects"
    )]
    pub async fn delete(&self, key: &ObjectKey) -> Result<bool> {
        let path = self.read.path(key)?;
        match self.read.store.delete(&path).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.read.error("deleting", key, e)),
        }
    }
}

/// Wraps a ready store: in memory, or a decorator that fails on purpose. `root` as [`ObjectRead::root`].
pub fn from_store(store: Arc<dyn ObjectStore>, root: &str) -> (ObjectRead, ObjectWrite) {
    let place = Place {
        bucket: "memory".into(),
        endpoint: String::new(),
        root: root.to_owned(),
        absolute: None,
    };
    let read = ObjectRead {
        store,
        place: Arc::new(place),
    };
    (read.clone(), ObjectWrite { read })
}

/// Opens the store of a profile. Makes no request.
pub fn open(profile: &ObjectProfile) -> Result<(ObjectRead, ObjectWrite)> {
    let root = profile.root.clone();
    let (store, place): (Arc<dyn ObjectStore>, Place) = match &profile.kind {
        ObjectKind::Memory => (
            Arc::new(object_store::memory::InMemory::new()),
            Place {
                bucket: "memory".into(),
                endpoint: String::new(),
                root,
                absolute: None,
            },
        ),
        ObjectKind::Local { dir, absolute } => {
            let named = dir.display().to_string();
            std::fs::create_dir_all(dir).map_err(|e| {
                Error::new(
                    ErrorKind::Config,
                    format!("folder {named} cannot be used as a bucket"),
                )
                .caused_by(e)
            })?;
            let store =
                object_store::local::LocalFileSystem::new_with_prefix(dir).map_err(|e| {
                    Error::new(
                        ErrorKind::Config,
                        format!("folder {named} cannot be opened"),
                    )
                    .caused_by(e)
                })?;
            let absolute = absolute.then(|| named.trim_end_matches('/').to_owned());
            (
                Arc::new(store),
                Place {
                    bucket: named,
                    endpoint: String::new(),
                    root,
                    absolute,
                },
            )
        }
        ObjectKind::S3(_) | ObjectKind::Azure { .. } | ObjectKind::Gcs { .. } => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this kind of object store is not built in yet",
            ));
        }
    };
    let read = ObjectRead {
        store,
        place: Arc::new(place),
    };
    Ok((read.clone(), ObjectWrite { read }))
}
