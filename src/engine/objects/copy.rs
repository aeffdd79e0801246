//! Copying an object, inside a store and between two of them.
//!
//! | from → to | how | compared afterwards |
//! |---|---|---|
//! | S3 → S3, one server and identity | `CopyObject`, also between buckets; above [`CopyLimits::whole`] `UploadPartCopy` | size, entity tag if it is a checksum |
//! | Azure, Google: inside a bucket | the store's own copy | size |
//! | folder → folder | reflink, else `copy_file_range` | size, before the copy has its name |
//! | any → any | through here: ranged reads into a multipart upload, at most [`BUFFERS`] MiB in memory | size, entity tag if it is a checksum |
//!
//! Two tags that look like checksums and differ are a broken copy, or a store that encrypts and puts something else there. The bytes tell:
//! the first such pair is read, and once they were equal the tags of these two stores are not asked any more.
//!
//! A server that refuses to copy by itself, but not because it is busy or the source is missing, is served through here: it may not know
//! the request, or ask for more rights than reading and writing. An upload that fails is aborted; one
//! that a crash left is found by [`ObjectWrite::unfinished`].

use std::io;
use std::ops::Range;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStoreExt, PutMultipartOptions};
use tokio::sync::Semaphore;

use super::attempts::{Trail, watched};
use super::direct::Direct;
use super::errors::{Cause, diagnose};
use super::{Native, ObjectMeta, ObjectRead, ObjectWrite, folder};
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{ObjectKey, UnixMs};

/// MiB that copies through this process hold at once, all together.
const BUFFERS: u32 = 256;
/// Parts of one object that the server copies at once.
const PARTS: usize = 8;
/// Parts of one upload that S3 takes.
const MOST_PARTS: u64 = 10_000;
/// Tries of one part, and the first wait between them; it doubles.
const TRIES: u32 = 5;
const WAIT: Duration = Duration::from_millis(200);

static MEMORY: Semaphore = Semaphore::const_new(BUFFERS as usize);

/// Sizes at which a copy takes another way. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimits {
    /// Largest object that S3 copies in one request.
    pub whole: u64,
    /// One part of a larger one, at least 5 MiB.
    pub part: u64,
    /// One part of an object that goes through here, at least 5 MiB.
    pub buffer: u64,
}

impl Default for CopyLimits {
    fn default() -> Self {
        Self {
            whole: 5 << 30,
            part: 512 << 20,
            buffer: 8 << 20,
        }
    }
}

/// What is to be copied, as a listing showed it.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Its key.
    pub key: &'a ObjectKey,
    /// Bytes.
    pub size: u64,
    /// Its entity tag, if known.
    pub etag: Option<&'a str>,
}

/// Which way the bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    /// The server copied it in one request.
    Server,
    /// The server copied it part by part.
    Parts,
    /// The file system shares its blocks.
    Reflink,
    /// The kernel copied it.
    File,
    /// It went through this process.
    Through,
}

/// A copy that is there, and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Which way.
    pub how: How,
    /// The checksums are equal; else the sizes are, and the store gives no checksum.
    pub checksum: bool,
}

/// An upload or copy that was begun and never finished, for example because of a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The object that it would have become.
    pub key: ObjectKey,
    /// The store's name of it: an upload id, or a file.
    pub id: String,
    /// Since when, as far as the store says.
    pub since: Option<UnixMs>,
}

/// An entity tag that is the MD5 of the content: 32 hexadecimal digits. Tags of multipart uploads, of encrypted objects and of other
/// stores than S3 are not comparable.
fn checksum(tag: &str) -> Option<String> {
    let tag = tag.trim_matches('"');
    let is_md5 = tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit());
    is_md5.then(|| tag.to_ascii_lowercase())
}

/// Whether the checksums are equal; `None` when there are not two.
fn same_checksum(a: Option<&str>, b: Option<&str>) -> Option<bool> {
    Some(checksum(a?)? == checksum(b?)?)
}

/// Parts of an object of `size` bytes, none larger than needed.
fn parts(size: u64, part: u64) -> Vec<Range<u64>> {
    let part = part.max(size.div_ceil(MOST_PARTS)).max(1);
    (0..size.div_ceil(part))
        .map(|i| i * part..size.min((i + 1) * part))
        .collect()
}

impl ObjectRead {
    /// Whether both are the same store, opened once.
    fn is(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.store), Arc::as_ptr(&other.store))
    }

    /// Bytes `range`, of the object that has this entity tag.
    async fn read_part(
        &self,
        path: &Path,
        range: &Range<u64>,
        etag: Option<&str>,
    ) -> object_store::Result<Bytes> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: etag.map(str::to_owned),
            ..GetOptions::default()
        };
        self.store.get_opts(path, options).await?.bytes().await
    }
}

/// What a way came to: the entity tag that the store gave the copy, if it said so.
type Done = (How, Option<String>);
/// A failure at the store, and whether an attempt may have been carried out.
type Refused = (object_store::Error, Arc<Trail>);

impl ObjectWrite {
    /// The same with other limits: a test has no 5 GiB.
    #[must_use]
    pub fn with_limits(mut self, limits: CopyLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The limits.
    pub fn limits(&self) -> CopyLimits {
        self.limits
    }

    /// Makes `to` a copy of `from` in `source`, which may be this store or any other, and compares them. One try: copying again is
    /// the same as once. `NotFound` names the source; `Conflict` when it changed meanwhile; `Corrupt` when the copy ends with
    /// another size.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one room that writes objects"
    )]
    pub async fn copy_from(
        &self,
        clock: &dyn Clock,
        source: &ObjectRead,
        from: Origin<'_>,
        to: &ObjectKey,
    ) -> Result<Copied> {
        let paths = (&source.path(from.key)?, &self.read.path(to)?);
        let own = source.is(&self.read);
        let (how, tag) = match (&source.native, &self.read.native) {
            (Native::Folder(a), Native::Folder(b)) => {
                // Compared before it was given its name.
                return Ok(Copied {
                    how: self.in_folder((a, b), from, paths).await?,
                    checksum: false,
                });
            }
            (Native::S3(a), Native::S3(b)) if b.is_beside(a) => {
                match self.by_server(clock, (a, b), source, from, paths).await? {
                    Ok(done) => done,
                    Err((e, _)) if wants_another_way(&e, own) => {
                        self.through(source, from, to, paths).await?
                    }
                    Err(refused) => return Err(self.copy_error(from.key, &refused)),
                }
            }
            (_, Native::Store(store)) if own => {
                let (done, trail) = watched(store.copy(paths.0, paths.1)).await;
                match done {
                    Ok(()) => (How::Server, None),
                    Err(e) if wants_another_way(&e, own) => {
                        self.through(source, from, to, paths).await?
                    }
                    Err(e) => return Err(self.copy_error(from.key, &(e, trail))),
                }
            }
            _ => self.through(source, from, to, paths).await?,
        };
        if same_checksum(from.etag, tag.as_deref()) == Some(true) {
            let checksum = true;
            return Ok(Copied { how, checksum });
        }
        let there = self.read.head(to).await?;
        if there.size != from.size {
            return Err(wrong_size(from, to, there.size));
        }
        let same = same_checksum(from.etag, there.etag.as_deref());
        if same == Some(false) && !self.opaque_tags.load(Ordering::Relaxed) {
            self.same_bytes(source, from, to, paths).await?;
            self.opaque_tags.store(true, Ordering::Relaxed);
        }
        let checksum = same == Some(true);
        Ok(Copied { how, checksum })
    }

    /// Reads both. `Corrupt` when they differ.
    async fn same_bytes(
        &self,
        source: &ObjectRead,
        from: Origin<'_>,
        to: &ObjectKey,
        (path, target): (&Path, &Path),
    ) -> Result<()> {
        let held = from.size.min(self.limits.buffer).div_ceil(1 << 20).max(1);
        let held = u32::try_from(held * 2).unwrap_or(BUFFERS).min(BUFFERS);
        let _memory = MEMORY.acquire_many(held).await;
        for range in parts(from.size, self.limits.buffer) {
            let ours = self.read.read_part(target, &range, None);
            let theirs = source.read_part(path, &range, from.etag);
            let (theirs, ours) = futures::join!(theirs, ours);
            let theirs = theirs.map_err(|e| match diagnose(&e) {
                why if why.cause == Cause::Exists => changed(from),
                why => source.error("reading", from.key, why),
            })?;
            let ours = ours.map_err(|e| self.read.error("reading", to, diagnose(&e)))?;
            if theirs != ours {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("copy {to} is as large as {} and has other bytes", from.key),
                )
                .fix("copy it again; if that comes back, check the target's disks"));
            }
        }
        Ok(())
    }

    async fn in_folder(
        &self,
        stores: (&LocalFileSystem, &LocalFileSystem),
        from: Origin<'_>,
        paths: (&Path, &Path),
    ) -> Result<How> {
        let file = |store: &LocalFileSystem, path| {
            store
                .path_to_filesystem(path)
                .map_err(|e| self.copy_error(from.key, &(e, Arc::default())))
        };
        let (a, b) = (file(stores.0, paths.0)?, file(stores.1, paths.1)?);
        let size = from.size;
        let shared = blocking(move || folder::copy(&a, &b, size))
            .await
            .map_err(|e| self.file_error("copying", from.key, e))?;
        Ok(if shared { How::Reflink } else { How::File })
    }

    /// By the server, in one request or in parts.
    async fn by_server(
        &self,
        clock: &dyn Clock,
        (a, b): (&Direct, &Direct),
        source: &ObjectRead,
        from: Origin<'_>,
        paths: (&Path, &Path),
    ) -> Result<Result<Done, Refused>> {
        if from.size <= self.limits.whole {
            let (done, trail) = watched(b.copy((a, paths.0), paths.1)).await;
            match done {
                Ok(tag) => return Ok(Ok((How::Server, tag))),
                // This server's limit is a lower one.
                Err(e) if diagnose(&e).cause == Cause::TooLargeToCopy => {}
                Err(e) => return Ok(Err((e, trail))),
            }
        }
        let now = unchanged(source, from).await?;
        let tag = now.etag.as_deref();
        let copying = self.in_parts(clock, (a, b), (paths.0, tag), from.size, paths.1);
        let (done, trail) = watched(copying).await;
        Ok(match done {
            Ok(tag) => Ok((How::Parts, tag)),
            Err(e) if diagnose(&e).cause == Cause::Exists => return Err(changed(from)),
            Err(e) => Err((e, trail)),
        })
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the one room that writes objects"
    )]
    async fn in_parts(
        &self,
        clock: &dyn Clock,
        (a, b): (&Direct, &Direct),
        (source, tag): (&Path, Option<&str>),
        size: u64,
        target: &Path,
    ) -> object_store::Result<Option<String>> {
        let upload = b.store.create_multipart(target).await?;
        let copied = async {
            let ranges = parts(size, self.limits.part);
            let parts = stream::iter(ranges.into_iter().enumerate())
                .map(|(index, range)| {
                    let part = (target, upload.as_str(), index);
                    one_part(clock, (a, b), (source, tag), range, part)
                })
                .buffered(PARTS)
                .try_collect()
                .await?;
            b.store.complete_multipart(target, &upload, parts).await
        }
        .await;
        match copied {
            Ok(put) => Ok(put.e_tag),
            Err(e) => {
                // If not even this is answered, `unfinished` finds it.
                let _ = b.abort(target, &upload).await;
                Err(e)
            }
        }
    }

    /// Through this process.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one room that writes objects"
    )]
    async fn through(
        &self,
        source: &ObjectRead,
        from: Origin<'_>,
        to: &ObjectKey,
        (path, target): (&Path, &Path),
    ) -> Result<Done> {
        let part = self.limits.buffer.max(from.size.div_ceil(MOST_PARTS));
        // One part is sent while the next one is read.
        let held = from.size.min(2 * part).div_ceil(1 << 20).max(1);
        let held = u32::try_from(held).unwrap_or(BUFFERS).min(BUFFERS);
        let _memory = MEMORY.acquire_many(held).await;
        let reading = |e: &object_store::Error| source.error("reading", from.key, diagnose(e));
        if from.size <= part {
            let bytes = source.get(from.key).await?;
            if bytes.len() as u64 != from.size {
                return Err(changed(from));
            }
            let mode = object_store::PutMode::Overwrite;
            let sending = self.read.store.put_opts(target, bytes.into(), mode.into());
            let (sent, trail) = watched(sending).await;
            return match sent {
                Ok(put) => Ok((How::Through, put.e_tag)),
                Err(e) => Err(self.write_error("writing", to, &e, &trail)),
            };
        }
        let now = unchanged(source, from).await?;
        let tag = now.etag.as_deref();
        let sending = async {
            let store = &self.read.store;
            let begun = store.put_multipart_opts(target, PutMultipartOptions::default());
            let mut upload = begun.await.map_err(Broken::Writing)?;
            let sent = feed(&mut *upload, source, path, tag, &parts(from.size, part)).await;
            if sent.is_err() {
                // As above.
                let _ = upload.abort().await;
            }
            sent
        };
        let (sent, trail) = watched(sending).await;
        match sent {
            Ok(tag) => Ok((How::Through, tag)),
            Err(Broken::Reading(e)) if diagnose(&e).cause == Cause::Exists => Err(changed(from)),
            Err(Broken::Reading(e)) => Err(reading(&e)),
            Err(Broken::Writing(e)) => Err(self.write_error("writing", to, &e, &trail)),
        }
    }

    fn copy_error(&self, from: &ObjectKey, (e, trail): &Refused) -> Error {
        self.write_error("copying", from, e, trail)
    }

    fn file_error(&self, doing: &str, key: &ObjectKey, e: io::Error) -> Error {
        if e.kind() == io::ErrorKind::InvalidData {
            return Error::new(
                ErrorKind::Corrupt,
                format!("{doing} object {key} failed: {e}"),
            )
            .fix("check that nothing writes to it, and the disk");
        }
        let e = object_store::Error::Generic {
            store: "folder",
            source: Box::new(e),
        };
        self.write_error(doing, key, &e, &Trail::default())
    }

    /// Uploads and copies below `prefix` that were begun and never finished: a crash leaves them, no listing shows them, and a server
    /// keeps and charges their parts for ever. `None`: this store has no such question (Azure drops what was not committed after a
    /// week; Google needs a rule of the bucket's life cycle). Some may belong to a living process: the caller must know.
    pub async fn unfinished(&self, prefix: &ObjectKey) -> Result<Option<Vec<Unfinished>>> {
        let path = self.read.prefix_path(prefix)?;
        match &self.read.native {
            Native::Store(_) => Ok(None),
            Native::S3(direct) => {
                let below = if path.as_ref().is_empty() {
                    String::new()
                } else {
                    format!("{path}/")
                };
                let found = direct
                    .uploads(&below)
                    .await
                    .map_err(|e| self.read.listing_error(prefix, &e))?;
                let found = found.into_iter().map(|u| Unfinished {
                    key: self.read.key_of(u.path.as_ref()),
                    id: u.id,
                    since: u
                        .since
                        .parse::<jiff::Timestamp>()
                        .ok()
                        .map(|t| UnixMs(t.as_millisecond())),
                });
                Ok(Some(found.collect()))
            }
            Native::Folder(store) => {
                let inside = |at: &str| {
                    let file =
                        Path::parse(at).map_err(|e| super::bad_key(prefix, &e.to_string()))?;
                    let file = store
                        .path_to_filesystem(&file)
                        .map_err(|e| self.read.listing_error(prefix, &e))?;
                    Ok::<_, Error>(file.parent().map(FsPath::to_owned).unwrap_or_default())
                };
                let (base, folder) = (inside("x")?, inside(&format!("{path}/x"))?);
                let found = blocking(move || folder::unfinished(&folder))
                    .await
                    .map_err(|e| self.file_error("listing", prefix, e))?;
                let found = found.into_iter().filter_map(|(file, modified)| {
                    let relative = file.strip_prefix(&base).ok()?.to_str()?.to_owned();
                    let (whole, _) = relative.rsplit_once('#')?;
                    let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
                    Some(Unfinished {
                        key: self.read.key_of(whole),
                        id: file.file_name()?.to_str()?.to_owned(),
                        since: i64::try_from(since.as_millis()).ok().map(UnixMs),
                    })
                });
                Ok(Some(found.collect()))
            }
        }
    }

    /// Gives one of them up. One that is gone is no error.
    pub async fn give_up(&self, which: &Unfinished) -> Result<()> {
        let path = self.read.path(&which.key)?;
        match &self.read.native {
            Native::Store(_) => Ok(()),
            Native::S3(direct) => {
                let (done, trail) = watched(direct.abort(&path, &which.id)).await;
                done.map_err(|e| self.write_error("aborting the upload of", &which.key, &e, &trail))
            }
            Native::Folder(store) => {
                let file = store
                    .path_to_filesystem(&path)
                    .map_err(|e| self.copy_error(&which.key, &(e, Arc::default())))?;
                let name = file
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                // Nothing but a staged file of this very object.
                if !which.id.starts_with(&format!("{name}#")) || !folder::is_staged(&which.id) {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{:?} is no unfinished copy of {}", which.id, which.key),
                    ));
                }
                let file = file.with_file_name(&which.id);
                match blocking(move || std::fs::remove_file(file)).await {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        Err(self.file_error("removing the unfinished copy of", &which.key, e))
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Which side of a copy through this process failed.
enum Broken {
    Reading(object_store::Error),
    Writing(object_store::Error),
}

/// Reads part after part and sends each while the next is read.
async fn feed(
    upload: &mut dyn MultipartUpload,
    source: &ObjectRead,
    path: &Path,
    tag: Option<&str>,
    ranges: &[Range<u64>],
) -> Result<Option<String>, Broken> {
    let mut ranges = ranges.iter();
    let Some(first) = ranges.next() else {
        return Err(Broken::Reading(object_store::Error::Generic {
            store: "copy",
            source: "an object without parts".into(),
        }));
    };
    let mut ready = source.read_part(path, first, tag).await;
    loop {
        let bytes = ready.map_err(Broken::Reading)?;
        let sending = upload.put_part(bytes.into());
        let Some(next) = ranges.next() else {
            sending.await.map_err(Broken::Writing)?;
            break;
        };
        let (sent, read) = futures::join!(sending, source.read_part(path, next, tag));
        sent.map_err(Broken::Writing)?;
        ready = read;
    }
    let put = upload.complete().await.map_err(Broken::Writing)?;
    Ok(put.e_tag)
}

/// One part, tried again while the server asks for patience: what is copied already must not be copied again for it.
async fn one_part(
    clock: &dyn Clock,
    (a, b): (&Direct, &Direct),
    (source, tag): (&Path, Option<&str>),
    range: Range<u64>,
    part: (&Path, &str, usize),
) -> object_store::Result<PartId> {
    let mut tries = 0;
    loop {
        tries += 1;
        match b.copy_part((a, source), tag, &range, part).await {
            Err(e) if tries < TRIES && diagnose(&e).cause.kind() == ErrorKind::Unreachable => {
                clock.sleep(WAIT * (1 << (tries - 1))).await;
            }
            done => return done,
        }
    }
}

/// Whether the server cannot or will not do it, and we may. Between buckets it may know only one of them, or not let us read there; and
/// copying may want more rights than reading and writing do (tags, access control lists).
fn wants_another_way(e: &object_store::Error, own: bool) -> bool {
    let found = diagnose(e);
    match found.cause {
        Cause::NotSupported | Cause::TooLargeToCopy | Cause::AccessDenied => true,
        Cause::NoSuchBucket | Cause::WrongRegion(_) => !own,
        _ => found.rejected,
    }
}

/// The source as it is now; `Conflict` when it is not what was listed.
async fn unchanged(source: &ObjectRead, from: Origin<'_>) -> Result<ObjectMeta> {
    let now = source.head(from.key).await?;
    if now.size == from.size {
        Ok(now)
    } else {
        Err(changed(from))
    }
}

fn changed(from: Origin<'_>) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("object {} changed while it was copied", from.key),
    )
    .fix("find out what writes to it, and copy it again")
}

fn wrong_size(from: Origin<'_>, to: &ObjectKey, size: u64) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "copy {to} has {size} bytes, its source {} has {}",
            from.key, from.size
        ),
    )
    .fix("the object store is not telling the truth: check its health before anything else")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
}
