//! From a profile to stores. The only place, with [`mod`](super), that constructs one; a read-only attach never holds a
//! writer, not even for a moment (law 2).

use std::path::Path;
use std::sync::Arc;

use super::clock::Clock;
use super::dump;
use super::error::{Error, ErrorKind, Result};
use super::handle::{Place, TO_WRITE};
use super::meta::embedded::{EmbeddedReader, EmbeddedStore};
use super::meta::etcd::EtcdStore;
use super::meta::scope::Scope;
use super::meta::scoped::Scoped;
use super::meta::{MetaRead, MetaReader, MetaWrite, MetaWriter};
use super::objects::{self, ObjectRead, ObjectWrite};
use super::profile::{Access, EtcdProfile, MetaProfile, Profile};

/// Metadata, as far as the attach may go.
#[derive(Clone)]
pub enum Meta {
    /// Read only.
    Read(MetaReader),
    /// Also write.
    Write(MetaReader, MetaWriter),
}

impl Meta {
    fn of(read: Arc<dyn MetaRead>, scope: &Scope) -> Self {
        Self::Read(Scoped::new(read, scope))
    }

    fn both(read: Arc<dyn MetaRead>, write: Arc<dyn MetaWrite>, scope: &Scope) -> Self {
        Self::Write(Scoped::new(read, scope), Scoped::new(write, scope))
    }

    /// The right to read, on behalf of `scope`.
    #[must_use]
    pub fn read(&self, scope: &Scope) -> MetaReader {
        match self {
            Self::Read(read) | Self::Write(read, _) => read.within(scope),
        }
    }
}

/// Objects, as far as the attach may go.
#[derive(Clone)]
pub enum Objects {
    /// None.
    None,
    /// Read only.
    Read(ObjectRead),
    /// Also write.
    Write(ObjectRead, ObjectWrite),
}

impl Objects {
    /// The right to read.
    #[must_use]
    pub fn read(&self) -> Option<&ObjectRead> {
        match self {
            Self::None => None,
            Self::Read(read) | Self::Write(read, _) => Some(read),
        }
    }
}

/// A store that is open, or one that must be connected to.
pub enum Source {
    /// Open, and followed.
    Open(Meta),
    /// Will not change.
    Fixed(MetaReader),
    /// To be connected.
    Etcd(EtcdProfile, Access),
}

/// What a profile comes to.
pub struct Attached {
    /// Metadata.
    pub source: Source,
    /// Objects.
    pub objects: Objects,
    /// For the header.
    pub place: Place,
    /// The metadata is ours alone: no Milvus can have ids of its own in it.
    pub is_embedded: bool,
}

/// Opens what can be opened without a network; blocks for a few milliseconds on a file, longer on a large dump. A metadata file that
/// another process has open is `Busy`, or with `along` read along with it.
pub fn attach(
    profile: &Profile,
    clock: &Arc<dyn Clock>,
    scope: &Scope,
    along: bool,
) -> Result<Attached> {
    let roots = &profile.roots;
    let under = [roots.root.as_str(), roots.meta.as_str()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    let mut to_write = TO_WRITE;
    let mut read_only = match profile.access {
        Access::ReadOnly => Some("the profile is read-only".to_owned()),
        Access::ReadWrite => None,
    };
    let (source, attach, meta, is_embedded) = match &profile.meta {
        MetaProfile::Embedded { file } => {
            let opened = embedded(file, profile.access, clock, scope, along)?;
            if let Some(held) = opened.1 {
                read_only = Some(held.without_fix().to_string());
                to_write = "give the order to that process, or end it";
            }
            let text = format!("file {} {under}", file.display());
            (Source::Open(opened.0), "embedded", text, true)
        }
        MetaProfile::Memory => {
            let store = EmbeddedStore::memory_with(clock.clone())?;
            let meta = of_store(store, profile.access, scope)?;
            (
                Source::Open(meta),
                "embedded",
                format!("memory {under}"),
                true,
            )
        }
        MetaProfile::Etcd(etcd) => {
            let text = format!("etcd {} {under}", masked(&etcd.endpoints));
            let source = Source::Etcd(etcd.clone(), profile.access);
            (source, "cluster", text, false)
        }
        MetaProfile::Dump { file } => {
            let store = EmbeddedReader::dump(&dump::read(file)?, None)?;
            read_only = Some("a dump is read-only".to_owned());
            let text = format!("dump {} {under}", file.display());
            (
                Source::Fixed(Scoped::new(Arc::new(store), scope)),
                "dump",
                text,
                false,
            )
        }
    };
    let objects = match &profile.objects {
        None => Objects::None,
        Some(profile) => {
            let (read, write) = objects::open(profile)?;
            if read_only.is_none() {
                Objects::Write(read, write)
            } else {
                Objects::Read(read)
            }
        }
    };
    if matches!(objects, Objects::None) && read_only.is_none() {
        read_only = Some("no bucket is configured".to_owned());
    }
    let bucket = objects
        .read()
        .map_or_else(|| "none".to_owned(), ObjectRead::describe);
    let place = Place {
        profile: profile.name.clone(),
        attach,
        meta,
        bucket,
        read_only,
        to_write,
    };
    Ok(Attached {
        source,
        objects,
        place,
        is_embedded,
    })
}

/// Opens the file to write, or reads along when another process writes it; then says who.
fn embedded(
    file: &Path,
    access: Access,
    clock: &Arc<dyn Clock>,
    scope: &Scope,
    along: bool,
) -> Result<(Meta, Option<Error>)> {
    if access == Access::ReadOnly {
        let reader = EmbeddedReader::open_file(file, clock.clone())?;
        return Ok((Meta::of(Arc::new(reader), scope), None));
    }
    match EmbeddedStore::open_file(file, clock.clone()) {
        Ok(store) => Ok((of_store(store, access, scope)?, None)),
        Err(e) if e.kind() == ErrorKind::Busy && along => {
            let reader = EmbeddedReader::open_file(file, clock.clone())?;
            Ok((Meta::of(Arc::new(reader), scope), Some(e)))
        }
        Err(e) => Err(e),
    }
}

fn of_store(store: EmbeddedStore, access: Access, scope: &Scope) -> Result<Meta> {
    let reader: Arc<dyn MetaRead> = Arc::new(store.reader()?);
    Ok(match access {
        Access::ReadOnly => Meta::of(reader, scope),
        Access::ReadWrite => Meta::both(reader, Arc::new(store), scope),
    })
}

/// Connects to etcd once.
pub async fn connect(
    etcd: &EtcdProfile,
    access: Access,
    clock: &Arc<dyn Clock>,
    scope: &Scope,
) -> Result<Meta> {
    let store = Box::pin(EtcdStore::connect(etcd, clock.clone()));
    let store = scope.wait(store).await??;
    Ok(match access {
        Access::ReadOnly => Meta::of(Arc::new(store), scope),
        Access::ReadWrite => Meta::both(Arc::new(store.clone()), Arc::new(store), scope),
    })
}

/// Endpoints without the credentials somebody may have put into a URL (law 11).
fn masked(endpoints: &[String]) -> String {
    let shown: Vec<_> = endpoints
        .iter()
        .map(|e| super::format::mask::text(e))
        .collect();
    shown.join(",")
}

/// The error of a request that needs a store which is not there yet.
pub fn not_connected(why: Option<&Error>) -> Error {
    let e = Error::new(
        ErrorKind::Unreachable,
        "the metadata store is not connected yet",
    );
    match why {
        Some(why) => e.caused_by(why.clone()),
        None => e,
    }
}
