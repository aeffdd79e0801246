//! Where a cluster is: what [`Engine::open`](super::Engine::open) is given once every flag, file and variable has been resolved.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::format::mask;
use super::model::facts::Tolerances;

/// Everything the engine needs to attach.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The name shown in the header.
    pub name: String,
    /// Where the metadata is.
    pub meta: MetaProfile,
    /// Where the objects are; `None` only for a dump without a bucket.
    pub objects: Option<ObjectProfile>,
    /// Key roots.
    pub roots: Roots,
    /// Whether writing is allowed at all. A read-only engine is built without a writer.
    pub access: Access,
    /// How long the cluster keeps what it has dropped: garbage collection is no quicker here.
    pub gc: Tolerances,
}

/// Read only, or also write (which still needs a plan, a confirmation and the fence).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No writer is built.
    ReadOnly,
    /// The executor gets a writer.
    ReadWrite,
}

/// The metadata store.
#[derive(Clone, Debug)]
pub enum MetaProfile {
    /// A redb file.
    Embedded {
        /// The file; made when missing.
        file: PathBuf,
    },
    /// In memory, gone at exit.
    Memory,
    /// Real etcd.
    Etcd(EtcdProfile),
    /// A dump in JSON lines (`key_b64`, `value_b64`, `mod_revision`), plain or gzip. Read only.
    Dump {
        /// The file.
        file: PathBuf,
    },
}

/// How to reach etcd.
#[derive(Clone)]
pub struct EtcdProfile {
    /// URLs, `http://` or `https://`, all members of one cluster (`etcd.endpoints`).
    pub endpoints: Vec<String>,
    /// `etcd.auth.userName` and `etcd.auth.password`.
    pub user: Option<(String, SecretString)>,
    /// `etcd.ssl.*`.
    pub tls: Option<TlsProfile>,
    /// Deadline of one call (`etcd.requestTimeout`, 10 s).
    pub request_timeout: Duration,
    /// Deadline of a connect (5 s).
    pub dial_timeout: Duration,
}

impl EtcdProfile {
    /// Plain, no password, Milvus's default deadlines (10 s a call, 5 s to connect).
    pub fn plain(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            user: None,
            tls: None,
            request_timeout: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(5),
        }
    }
}

/// TLS towards etcd. With neither `cert` nor `key` it is server-only.
#[derive(Clone, Debug, Default)]
pub struct TlsProfile {
    /// `etcd.ssl.tlsCACert`; the system's roots when absent.
    pub ca: Option<PathBuf>,
    /// `etcd.ssl.tlsCert`.
    pub cert: Option<PathBuf>,
    /// `etcd.ssl.tlsKey`.
    pub key: Option<PathBuf>,
    /// Name to expect in the server's certificate when it is not the host.
    pub domain: Option<String>,
}

/// Key roots (`spec/layout.md` §1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `etcd.rootPath`.
    pub root: String,
    /// `etcd.metaSubPath`.
    pub meta: String,
    /// `etcd.kvSubPath`.
    pub kv: String,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            root: "by-dev".into(),
            meta: "meta".into(),
            kv: "kv".into(),
        }
    }
}

/// The object store.
#[derive(Clone, Debug)]
pub struct ObjectProfile {
    /// Which kind, and how to reach it.
    pub kind: ObjectKind,
    /// `minio.rootPath` without leading and trailing slash (may be empty), or the absolute `localStorage.path` when
    /// [`ObjectKind::Local`] has `absolute` keys. What Milvus calls the chunk manager's root: `B/` in `spec/layout.md`.
    pub root: String,
}

/// A kind of object store.
#[derive(Clone)]
pub enum ObjectKind {
    /// In memory, gone at exit.
    Memory,
    /// A local folder.
    Local {
        /// The folder that stands for the bucket.
        dir: PathBuf,
        /// Keys are absolute paths, as Milvus writes them when `common.storageType` is `local`; else they are
        /// relative to `dir`, as in a bucket, so that the folder can be moved.
        absolute: bool,
    },
    /// S3 and compatible.
    S3(S3Profile),
    /// Azure blob storage.
    Azure {
        /// Account (`minio.accessKeyID`).
        account: String,
        /// Key (`minio.secretAccessKey`); `None` uses the environment's identity.
        key: Option<SecretString>,
        /// Container (`minio.bucketName`).
        container: String,
        /// Endpoint with scheme, account included, if not the public cloud.
        endpoint: Option<String>,
        /// Longest silence of the server (`minio.requestTimeoutMs`).
        request_timeout: Duration,
    },
    /// Google cloud storage, native.
    Gcs {
        /// `minio.bucketName`.
        bucket: String,
        /// `minio.gcpCredentialJSON`; `None` uses the environment's identity.
        credential_json: Option<SecretString>,
        /// Endpoint, if not the public one.
        endpoint: Option<String>,
        /// Longest silence of the server (`minio.requestTimeoutMs`).
        request_timeout: Duration,
    },
}

/// How to reach S3.
#[derive(Clone)]
pub struct S3Profile {
    /// `minio.address` and `minio.port` with scheme; `None` = AWS.
    pub endpoint: Option<String>,
    /// `minio.bucketName`.
    pub bucket: String,
    /// `minio.region`; `us-east-1` when empty.
    pub region: String,
    /// `minio.accessKeyID` and `minio.secretAccessKey`; `None` uses the environment's identity (`minio.useIAM`).
    pub credentials: Option<(String, SecretString)>,
    /// `minio.useVirtualHost`; path style otherwise.
    pub virtual_host: bool,
    /// `minio.ssl.tlsCACert`.
    pub ca: Option<PathBuf>,
    /// Longest silence of the server (`minio.requestTimeoutMs`, [`REQUEST_TIMEOUT`]).
    pub request_timeout: Duration,
}

/// A store named by the URI of a bundle. Never with credentials: see [`crate::engine::objects::ObjectRead::elsewhere`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// The cluster's own bucket or folder.
    Here,
    /// S3 and compatible.
    S3 {
        /// With scheme; `None` is the cluster's own, or AWS.
        endpoint: Option<String>,
        /// Bucket.
        bucket: String,
    },
    /// Google cloud storage.
    Gcs {
        /// Bucket.
        bucket: String,
    },
    /// Azure blob storage.
    Azure {
        /// Account; `None` is the cluster's own, or the environment's.
        account: Option<String>,
        /// Container.
        container: String,
    },
    /// A folder.
    Folder(PathBuf),
}

/// Default of `minio.requestTimeoutMs` and `etcd.requestTimeout` (`spec/layout.md` §10.2).
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

// An endpoint may carry a user and a password: none of these may be derived (law 11).

impl fmt::Debug for EtcdProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.endpoints.iter().map(|e| mask::text(e)).collect();
        f.debug_struct("EtcdProfile")
            .field("endpoints", &endpoints)
            .field("user", &self.user)
            .field("tls", &self.tls)
            .field("request_timeout", &self.request_timeout)
            .field("dial_timeout", &self.dial_timeout)
            .finish()
    }
}

impl fmt::Debug for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::Local { dir, absolute } => f
                .debug_struct("Local")
                .field("dir", dir)
                .field("absolute", absolute)
                .finish(),
            Self::S3(s3) => f.debug_tuple("S3").field(s3).finish(),
            Self::Azure {
                account,
                key,
                container,
                endpoint,
                request_timeout,
            } => f
                .debug_struct("Azure")
                .field("account", account)
                .field("key", key)
                .field("container", container)
                .field("endpoint", &endpoint.as_deref().map(mask::text))
                .field("request_timeout", request_timeout)
                .finish(),
            Self::Gcs {
                bucket,
                credential_json,
                endpoint,
                request_timeout,
            } => f
                .debug_struct("Gcs")
                .field("bucket", bucket)
                .field("credential_json", credential_json)
                .field("endpoint", &endpoint.as_deref().map(mask::text))
                .field("request_timeout", request_timeout)
                .finish(),
        }
    }
}

impl fmt::Debug for S3Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Profile")
            .field("endpoint", &self.endpoint.as_deref().map(mask::text))
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .field("credentials", &self.credentials)
            .field("virtual_host", &self.virtual_host)
            .field("ca", &self.ca)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}
