//! The object store. Knows keys and bytes, never what they mean. Reading and writing are separate capabilities: only `plan`
//! is handed an [`ObjectWrite`] (law 2).

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};

use super::error::{Error, ErrorKind, Result};
use super::ids::{ObjectKey, UnixMs};
use super::profile::ObjectProfile;

mod attempts;
mod copy;
mod direct;
mod elsewhere;
mod errors;
mod folder;
mod open;
mod space;

pub use copy::{Copied, CopyLimits, How, Origin, Unfinished};
pub use open::open;

use attempts::{Trail, watched};
use direct::Direct;
use errors::{Cause, Diagnosis, diagnose};

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
    native: Native,
}

/// The right to write. Cannot be made from an [`ObjectRead`].
#[derive(Clone)]
pub struct ObjectWrite {
    read: ObjectRead,
    limits: CopyLimits,
    /// A copy was as it should be and had another entity tag: its tags are no checksums, whatever they look like.
    opaque_tags: Arc<std::sync::atomic::AtomicBool>,
}

/// What a store can do with its own objects without their bytes passing through here.
#[derive(Clone)]
enum Native {
    /// The client's own copy, of any size; with the patience that it needs.
    Store(Arc<dyn ObjectStore>),
    /// S3: also between buckets, and part by part.
    S3(Arc<Direct>),
    /// The file system.
    Folder(Arc<object_store::local::LocalFileSystem>),
}

/// Which configuration keys an error names, and who sorts a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// S3, Azure, Google: `minio.*`; the server lists in key order.
    Remote,
    /// A folder: `localStorage.path` or `--bucket`; we sort.
    Local,
    /// Memory; we sort.
    Memory,
}

/// What an error and a header need to say where.
#[derive(Clone, Debug)]
struct Place {
    /// Bucket, container or folder.
    bucket: String,
    /// Endpoint, masked; empty for local and memory.
    endpoint: String,
    /// `minio.rootPath` or `localStorage.path`.
    root: String,
    /// Prefix cut from keys when they are absolute local paths.
    absolute: Option<String>,
    family: Family,
    /// What it was opened with, so that another bucket of the same server can be; masked in every print.
    profile: Option<ObjectProfile>,
}

impl Place {
    fn plain(bucket: &str, root: String, family: Family) -> Self {
        Self {
            bucket: bucket.to_owned(),
            endpoint: String::new(),
            root,
            absolute: None,
            family,
            profile: None,
        }
    }

    fn remote(bucket: &str, endpoint: &str, root: String) -> Self {
        Self {
            endpoint: without_credentials(endpoint),
            ..Self::plain(bucket, root, Family::Remote)
        }
    }
}

/// An endpoint as it may be shown: user, password and query cut.
fn without_credentials(endpoint: &str) -> String {
    let Ok(mut url) = url::Url::parse(endpoint) else {
        return endpoint
            .split('@')
            .next_back()
            .unwrap_or_default()
            .to_owned();
    };
    if url.set_username("").is_ok() && url.set_password(None).is_ok() {
        url.set_query(None);
    }
    url.as_str().trim_end_matches('/').to_owned()
}

impl ObjectRead {
    /// `minio.rootPath` or `localStorage.path`: the first part of every key Milvus writes.
    pub fn root(&self) -> &str {
        &self.place.root
    }

    /// Bucket, container or folder: 2.6 wrote it before the base paths of manifest segments.
    pub fn bucket(&self) -> &str {
        &self.place.bucket
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
        match self.store.head(&path).await {
            Ok(meta) => Ok(self.meta(meta)),
            Err(e) => {
                let mut found = diagnose(&e);
                // The answer to HEAD has no error document: one byte is asked for to hear the reason.
                if self.place.family == Family::Remote
                    && matches!(
                        found.cause,
                        Cause::NoSuchObject
                            | Cause::AccessDenied
                            | Cause::WrongRegion(None)
                            | Cause::Other
                    )
                    && let Err(e) = self.store.get_range(&path, 0..1).await
                {
                    found = diagnose(&e);
                }
                Err(self.error("reading the size of", key, found))
            }
        }
    }

    /// The whole object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Bytes> {
        let path = self.path(key)?;
        let got = self
            .store
            .get_opts(&path, GetOptions::default())
            .await
            .map_err(|e| self.error("reading", key, diagnose(&e)))?;
        got.bytes()
            .await
            .map_err(|e| self.error("reading", key, diagnose(&e)))
    }

    /// Bytes `range` of an object.
    pub async fn get_range(&self, key: &ObjectKey, range: std::ops::Range<u64>) -> Result<Bytes> {
        let path = self.path(key)?;
        self.store
            .get_range(&path, range)
            .await
            .map_err(|e| self.error("reading", key, diagnose(&e)))
    }

    /// Every object whose key starts with `prefix` and a slash; everything when `prefix` is empty. In the server's order,
    /// which is key order on S3, Azure and Google; in key order on a folder and in memory. `after` resumes behind that
    /// key in the same order. Pages are fetched as the stream is read.
    pub fn list(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let paths = self
            .prefix_path(prefix)
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
        let inner = if self.place.family == Family::Remote {
            inner
        } else {
            in_key_order(inner)
        };
        let me = self.clone();
        let prefix = prefix.clone();
        inner
            .map(move |item| {
                item.map(|m| me.meta(m))
                    .map_err(|e| me.listing_error(&prefix, &e))
            })
            .boxed()
    }

    /// Whether the bucket answers and lets us list; the first object under `prefix`, if there is one. One request.
    pub async fn probe(&self, prefix: &ObjectKey) -> Result<Option<ObjectMeta>> {
        self.list(prefix, None).next().await.transpose()
    }

    fn listing_error(&self, prefix: &ObjectKey, e: &object_store::Error) -> Error {
        let thing = if prefix.0.is_empty() {
            "the bucket".to_owned()
        } else {
            format!("objects under {prefix}")
        };
        diagnose(e).into_error("listing", &thing, &self.place)
    }

    fn meta(&self, meta: object_store::ObjectMeta) -> ObjectMeta {
        ObjectMeta {
            key: self.key_of(meta.location.as_ref()),
            size: meta.size,
            etag: meta.e_tag,
            modified: UnixMs(meta.last_modified.timestamp_millis()),
        }
    }

    /// The key of a path inside the store.
    fn key_of(&self, relative: &str) -> ObjectKey {
        ObjectKey(match &self.place.absolute {
            Some(base) => format!("{base}/{relative}"),
            None => relative.to_owned(),
        })
    }

    /// The path of one object: exactly this key, nothing that merely resolves to it.
    fn path(&self, key: &ObjectKey) -> Result<Path> {
        let path = self.prefix_path(key)?;
        if path.as_ref().is_empty() || key.0.ends_with('/') {
            return Err(bad_key(key, "it names a folder, not an object"));
        }
        Ok(path)
    }

    fn prefix_path(&self, key: &ObjectKey) -> Result<Path> {
        let relative = match &self.place.absolute {
            None => key.0.as_str(),
            Some(base) => match key.0.strip_prefix(base.as_str()) {
                Some("") => "",
                Some(rest) if rest.starts_with('/') => &rest[1..],
                _ if key.0.is_empty() => "",
                _ => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("object {key} lies outside {base}"),
                    )
                    .fix("check localStorage.path"));
                }
            },
        };
        if relative.starts_with('/') {
            return Err(bad_key(key, "it starts with a slash")
                .fix("check minio.rootPath and common.storageType"));
        }
        Path::parse(relative).map_err(|e| bad_key(key, &e.to_string()))
    }

    fn error(&self, doing: &str, key: &ObjectKey, found: Diagnosis) -> Error {
        found.into_error(doing, &format!("object {key}"), &self.place)
    }
}

fn bad_key(key: &ObjectKey, why: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("object key {:?} is not well formed: {why}", key.0),
    )
}

/// A whole listing, sorted: what a folder returns has no order, and resuming needs one.
fn in_key_order(
    inner: BoxStream<'static, object_store::Result<object_store::ObjectMeta>>,
) -> BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
    futures::stream::once(async move {
        let mut all = inner.try_collect::<Vec<_>>().await?;
        all.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok::<_, object_store::Error>(futures::stream::iter(all.into_iter().map(Ok)))
    })
    .try_flatten()
    .boxed()
}

impl ObjectWrite {
    /// The right to read the same store.
    pub fn read(&self) -> &ObjectRead {
        &self.read
    }

    /// Writes a whole object. `OutcomeUnknown` when the server may have taken it (law 3): look before trying again.
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
        let (done, trail) =
            watched(self.read.store.put_opts(&path, bytes.into(), mode.into())).await;
        done.map(|_| ())
            .map_err(|e| self.write_error("writing", key, &e, &trail))
    }

    /// Removes exactly one object. `Ok(false)` when it was not there; S3 does not say, so there it is always `Ok(true)`.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one room that writes objects"
    )]
    pub async fn delete(&self, key: &ObjectKey) -> Result<bool> {
        let path = self.read.path(key)?;
        let (done, trail) = watched(self.read.store.delete(&path)).await;
        let Err(e) = done else { return Ok(true) };
        // A missing object is what was asked for; a missing bucket is not.
        if matches!(e, object_store::Error::NotFound { .. })
            && diagnose(&e).cause == Cause::NoSuchObject
        {
            return Ok(false);
        }
        Err(self.write_error("deleting", key, &e, &trail))
    }

    /// Decides between "did not happen" and "unknown". Only proof makes it the former.
    fn write_error(
        &self,
        doing: &str,
        key: &ObjectKey,
        e: &object_store::Error,
        trail: &Trail,
    ) -> Error {
        let found = diagnose(e);
        let thing = format!("object {key}");
        let place = &self.read.place;
        let certain = match &found.cause {
            // After a doubtful attempt, "it exists" may be our own doing, and "it is missing" of a delete too.
            Cause::Exists | Cause::NoSuchObject => !trail.had_doubt(),
            Cause::AccessDenied | Cause::NoSpace | Cause::NotSupported | Cause::BadKey
                if place.family != Family::Remote =>
            {
                true
            }
            cause => trail.proves_nothing_changed(*cause == Cause::Busy),
        };
        if certain {
            found.into_error(doing, &thing, place)
        } else {
            found.into_unknown(doing, &thing, place)
        }
    }
}

/// Wraps a ready store: in memory, or a decorator that fails on purpose. `root` as [`ObjectRead::root`].
pub fn from_store(store: Arc<dyn ObjectStore>, root: &str) -> (ObjectRead, ObjectWrite) {
    let place = Place::plain("memory", root.to_owned(), Family::Memory);
    capabilities(store.clone(), Native::Store(store), place)
}

fn capabilities(
    store: Arc<dyn ObjectStore>,
    native: Native,
    place: Place,
) -> (ObjectRead, ObjectWrite) {
    let read = ObjectRead {
        store,
        place: Arc::new(place),
        native,
    };
    let limits = CopyLimits::default();
    let write = ObjectWrite {
        read: read.clone(),
        limits,
        opaque_tags: Arc::default(),
    };
    (read, write)
}
