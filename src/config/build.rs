//! From layered values to the engine's profile.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use url::Url;

use super::bucket;
use super::keys::{self, nearest};
use super::origin::{Layers, Origin, Value, without_password};
use super::{Resolved, Sources};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::model::facts::Tolerances;
use crate::engine::profile::{
    Access, EtcdProfile, MetaProfile, ObjectKind, ObjectProfile, Profile, Roots, S3Profile,
    TlsProfile,
};

/// Cloud providers of `minio.cloudProvider` (`spec/layout.md` §10.2).
const PROVIDERS: [&str; 7] = [
    "aws",
    "gcp",
    "aliyun",
    "azure",
    "tencent",
    "huawei",
    "gcpnative",
];

/// Milvus's placeholder for certificates that nobody filled in.
const PLACEHOLDER: &str = "/path/to/";

pub(super) fn build(sources: Sources) -> Result<Resolved> {
    let mut layers = Layers::new(sources.layers.clone());
    let mut notes = sources.notes.clone();
    metastore(&mut layers)?;
    let roots = roots(&mut layers)?;
    let told_etcd = layers
        .written("etcd.endpoints")
        .is_some_and(|v| !v.text.trim().is_empty());

    let (meta, name) = if let Some((file, origin)) = &sources.dump {
        layers.show("dump", file.display(), origin.clone());
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned());
        (
            MetaProfile::Dump { file: file.clone() },
            name.unwrap_or_default(),
        )
    } else if told_etcd {
        let etcd = etcd(&mut layers, &sources.around.cwd)?;
        if layers.switch("etcd.use.embed")? {
            notes.push(
                "etcd.use.embed is true: this etcd runs inside Milvus and answers only while Milvus runs".into(),
            );
        }
        let name = etcd.endpoints.first().map(|e| without_password(e));
        (MetaProfile::Etcd(etcd), name.unwrap_or_default())
    } else {
        let store = sources
            .profile_name
            .clone()
            .unwrap_or_else(|| "default".into());
        if store.contains(['/', '\\']) || store.starts_with('.') {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "profile {store:?} has no etcd, so it is an embedded store, and its name must be a folder's name"
                ),
            ));
        }
        let folder = data_dir(&sources, &mut layers).join(store);
        (
            MetaProfile::Embedded {
                file: folder.join("meta.redb"),
            },
            "embedded".to_owned(),
        )
    };
    let embedded = match &meta {
        MetaProfile::Embedded { file } => file.parent().map(Path::to_owned),
        _ => None,
    };
    let objects = objects(&mut layers, &meta, embedded.as_deref(), &sources.around.cwd)?;
    // The embedded store is a redb file and a folder; any other bucket may be a cluster's.
    let ours_alone = embedded.is_some() && is_local(objects.as_ref());
    let access = access(&sources, &meta, ours_alone, &mut layers)?;
    Ok(Resolved {
        profile: Profile {
            name: sources.profile_name.clone().unwrap_or(name),
            meta,
            objects,
            roots,
            access,
            gc: tolerances(&mut layers)?,
        },
        origins: layers.into_settings(),
        color: sources.color.clone(),
        notes,
        sources,
    })
}

/// What Milvus's own collector waits for (`spec/snapshot.md` §7): tolerances in seconds, the snapshot's timeout in minutes.
fn tolerances(layers: &mut Layers) -> Result<Tolerances> {
    Ok(Tolerances {
        drop_ms: layers.span_ms("dataCoord.gc.dropTolerance", 1_000)?,
        missing_ms: layers.span_ms("dataCoord.gc.missingTolerance", 1_000)?,
        pending_ms: layers.span_ms("dataCoord.snapshot.pendingTimeout", 60_000)?,
    })
}

fn is_local(objects: Option<&ObjectProfile>) -> bool {
    objects.is_some_and(|o| {
        matches!(
            o.kind,
            ObjectKind::Local {
                absolute: false,
                ..
            }
        )
    })
}

fn metastore(layers: &mut Layers) -> Result<()> {
    let value = layers.get("metastore.type");
    match value.text.as_str() {
        "etcd" | "" => Ok(()),
        "tikv" => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{}: metastore.type is tikv; this build reads etcd only", value.origin),
        )
        .fix("point --etcd at a cluster that keeps its metadata in etcd, or open an etcd dump with --dump")),
        _ => Err(value.wrong("metastore.type", "etcd")),
    }
}

fn roots(layers: &mut Layers) -> Result<Roots> {
    let mut path = |name: &'static str, may_be_empty: bool| {
        let value = layers.get(name);
        let text = value.text.trim_matches('/').to_owned();
        if text.is_empty() && !may_be_empty {
            return Err(value.error(name, "is empty"));
        }
        if text
            .split('/')
            .any(|part| part.is_empty() && !text.is_empty() || part == "..")
        {
            return Err(value.wrong(name, "a path"));
        }
        Ok(text)
    };
    Ok(Roots {
        root: path("etcd.rootPath", false)?,
        meta: path("etcd.metaSubPath", false)?,
        kv: path("etcd.kvSubPath", false)?,
    })
}

fn data_dir(sources: &Sources, layers: &mut Layers) -> PathBuf {
    let (dir, origin) = sources
        .data_dir
        .clone()
        .unwrap_or_else(|| (sources.around.data_dir.clone(), Origin::Default));
    layers.show("data_dir", dir.display(), origin);
    dir
}

fn access(
    sources: &Sources,
    meta: &MetaProfile,
    ours_alone: bool,
    layers: &mut Layers,
) -> Result<Access> {
    let (readonly, origin) = if sources.flags.read_only {
        (true, Origin::Flag("--read-only"))
    } else if sources.flags.write {
        (false, Origin::Flag("--write"))
    } else if let Some((readonly, origin)) = sources.readonly.clone() {
        (readonly, origin)
    } else {
        (!ours_alone, Origin::Default)
    };
    if matches!(meta, MetaProfile::Dump { .. }) {
        if !readonly && origin != Origin::Default {
            return Err(Error::new(
                ErrorKind::Config,
                format!("{origin}: a dump can only be read"),
            )
            .fix("leave it out, or load the dump into an etcd of its own"));
        }
        layers.show("readonly", true, Origin::Default);
        return Ok(Access::ReadOnly);
    }
    layers.show("readonly", readonly, origin);
    Ok(if readonly {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    })
}

fn etcd(layers: &mut Layers, cwd: &Path) -> Result<EtcdProfile> {
    let tls_on = layers.switch("etcd.ssl.enabled")?;
    let value = layers.get("etcd.endpoints");
    let scheme = if tls_on { "https" } else { "http" };
    let mut endpoints = Vec::new();
    for one in value
        .text
        .split(',')
        .map(str::trim)
        .filter(|e| !e.is_empty())
    {
        let full = if one.contains("://") {
            one.to_owned()
        } else {
            format!("{scheme}://{one}")
        };
        let fine = Url::parse(&full)
            .is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.host_str().is_some());
        if !fine {
            return Err(value.wrong("etcd.endpoints", "host:port or http(s)://host:port"));
        }
        endpoints.push(full.trim_end_matches('/').to_owned());
    }
    if endpoints.is_empty() {
        return Err(value.error("etcd.endpoints", "is empty"));
    }
    let https = endpoints
        .iter()
        .filter(|e| e.starts_with("https://"))
        .count();
    if https != 0 && https != endpoints.len() {
        return Err(value.error("etcd.endpoints", "mixes http and https"));
    }
    // An endpoint that says http:// was written for this connection; a milvus.yaml's switch only speaks for Milvus.
    let switch = layers_origin(layers, "etcd.ssl.enabled");
    if tls_on && https == 0 && !matches!(switch, Origin::MilvusYaml { .. }) {
        return Err(layers.get("etcd.ssl.enabled").error(
            "etcd.ssl.enabled",
            format!(
                "is true, but etcd.endpoints ({}) says http://",
                value.origin
            ),
        ));
    }
    let tls = if https > 0 {
        let tls = TlsProfile {
            ca: file(layers, "etcd.ssl.tlsCACert", cwd)?,
            cert: file(layers, "etcd.ssl.tlsCert", cwd)?,
            key: file(layers, "etcd.ssl.tlsKey", cwd)?,
            domain: None,
        };
        if tls.cert.is_some() != tls.key.is_some() {
            let missing = if tls.cert.is_some() {
                "etcd.ssl.tlsKey"
            } else {
                "etcd.ssl.tlsCert"
            };
            let other = if tls.cert.is_some() {
                "etcd.ssl.tlsCert"
            } else {
                "etcd.ssl.tlsKey"
            };
            return Err(layers
                .get(other)
                .error(other, format!("is set, but {missing} is not")));
        }
        Some(tls)
    } else {
        None
    };
    Ok(EtcdProfile {
        endpoints,
        user: etcd_user(layers)?,
        tls,
        request_timeout: layers.millis("etcd.requestTimeout")?,
        dial_timeout: layers.millis("etcd.dialTimeout")?,
    })
}

/// `etcd.auth.*`: used when somebody switched it on. Whether the server wants it is for the store to find out.
fn etcd_user(layers: &mut Layers) -> Result<Option<(String, SecretString)>> {
    if !layers.switch("etcd.auth.enabled")? {
        return Ok(None);
    }
    let user = layers.get("etcd.auth.userName");
    let password = layers.get("etcd.auth.password");
    if user.text.is_empty() {
        let on = layers.get("etcd.auth.enabled");
        return Err(on.error(
            "etcd.auth.enabled",
            "is true, but etcd.auth.userName is empty",
        ));
    }
    if password.text.is_empty() {
        return Err(user
            .error(
                "etcd.auth.userName",
                "is set, but etcd.auth.password is empty",
            )
            .fix("give --etcd-password-file or $FALCONER_ETCD_PASSWORD"));
    }
    Ok(Some((user.text, password.text.into())))
}

/// A file that a key names. Milvus's placeholders count as nothing; a missing file is an error.
fn file(layers: &mut Layers, name: &'static str, cwd: &Path) -> Result<Option<PathBuf>> {
    let value = layers.get(name);
    if value.text.is_empty() || value.text.starts_with(PLACEHOLDER) {
        return Ok(None);
    }
    let written = Path::new(&value.text);
    let mut places = vec![cwd.join(written)];
    // Milvus runs in the parent of its `configs` folder, and its relative names start there.
    if let Origin::MilvusYaml { path, .. } = &value.origin {
        places.extend(
            path.ancestors()
                .skip(1)
                .take(2)
                .map(|dir| dir.join(written)),
        );
    }
    match places.iter().find(|p| p.is_file()) {
        Some(found) => Ok(Some(found.clone())),
        None => Err(value.error(name, format!("names {}, which does not exist", value.text))),
    }
}

fn objects(
    layers: &mut Layers,
    meta: &MetaProfile,
    embedded: Option<&Path>,
    cwd: &Path,
) -> Result<Option<ObjectProfile>> {
    // Our own word for a folder goes before every Milvus key of a lower or equal source.
    let folder = layers.written(bucket::FOLDER).cloned();
    if let Some(folder) = folder.filter(|f| !f.text.is_empty()) {
        let dir = cwd.join(&folder.text);
        layers.show(
            bucket::FOLDER,
            format!("file://{}", dir.display()),
            folder.origin.clone(),
        );
        if embedded.is_none() && !dir.is_dir() {
            return Err(folder.error(
                bucket::FOLDER,
                format!("names folder {}, which does not exist", dir.display()),
            ));
        }
        return Ok(Some(ObjectProfile {
            kind: ObjectKind::Local {
                dir,
                absolute: false,
            },
            root: object_root(layers)?,
        }));
    }
    if let Some(home) = embedded
        && !told_by_us(layers, "minio.bucketName")
    {
        let dir = home.join("bucket");
        layers.show(
            bucket::FOLDER,
            format!("file://{}", dir.display()),
            Origin::Default,
        );
        return Ok(Some(ObjectProfile {
            kind: ObjectKind::Local {
                dir,
                absolute: false,
            },
            root: "files".into(),
        }));
    }
    let told = [
        "minio.bucketName",
        "minio.address",
        "common.storageType",
        "localStorage.path",
    ]
    .iter()
    .any(|key| layers.written(key).is_some());
    if matches!(meta, MetaProfile::Dump { .. }) && !told {
        return Ok(None);
    }
    let storage = layers.get("common.storageType");
    match storage.text.as_str() {
        "local" => local(layers).map(Some),
        "remote" | "minio" | "opendal" => remote(layers, cwd).map(Some),
        _ => Err(storage.wrong("common.storageType", "remote, minio, opendal or local")),
    }
}

/// Whether a flag, our own variable or a profile names it: what an embedded store listens to.
fn told_by_us(layers: &Layers, key: &str) -> bool {
    layers.written(key).is_some_and(|v| match &v.origin {
        Origin::Flag(_) | Origin::ProfileFile { .. } => true,
        Origin::Env(name) => name.starts_with("FALCONER_"),
        _ => false,
    })
}

fn object_root(layers: &mut Layers) -> Result<String> {
    let value = layers.get("minio.rootPath");
    let parts: Vec<&str> = value
        .text
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(value.wrong("minio.rootPath", "a path inside the bucket"));
    }
    Ok(parts.join("/"))
}

fn local(layers: &mut Layers) -> Result<ObjectProfile> {
    let value = layers.get("localStorage.path");
    let dir = PathBuf::from(value.text.trim_end_matches('/'));
    if !dir.is_absolute() {
        return Err(value.wrong("localStorage.path", "an absolute path"));
    }
    Ok(ObjectProfile {
        root: dir.display().to_string(),
        kind: ObjectKind::Local {
            dir,
            absolute: true,
        },
    })
}

fn remote(layers: &mut Layers, cwd: &Path) -> Result<ObjectProfile> {
    let root = object_root(layers)?;
    let bucket = layers.get("minio.bucketName");
    if bucket.text.is_empty() {
        return Err(bucket.error("minio.bucketName", "is empty"));
    }
    let provider = layers.get("minio.cloudProvider");
    if !provider.text.is_empty() && !PROVIDERS.contains(&provider.text.as_str()) {
        let error = provider.wrong(
            "minio.cloudProvider",
            &format!("one of {}", PROVIDERS.join(", ")),
        );
        return Err(match nearest(&provider.text, &PROVIDERS) {
            Some(near) => error.fix(format!("did you mean {near:?}?")),
            None => error,
        });
    }
    let iam = layers.switch("minio.useIAM")?;
    let request_timeout = layers.millis("minio.requestTimeoutMs")?;
    let bucket = bucket.text;
    let kind = match provider.text.as_str() {
        "azure" => azure(layers, bucket, iam, request_timeout)?,
        "gcpnative" => {
            let json = layers.get("minio.gcpCredentialJSON").text;
            ObjectKind::Gcs {
                bucket,
                credential_json: (!json.is_empty() && !iam).then(|| json.into()),
                endpoint: cloud_endpoint(layers, "storage.googleapis.com")?,
                request_timeout,
            }
        }
        // The S3 side of Google takes HMAC keys only; an identity speaks the native protocol.
        "gcp" if iam => ObjectKind::Gcs {
            bucket,
            credential_json: None,
            endpoint: cloud_endpoint(layers, "storage.googleapis.com")?,
            request_timeout,
        },
        other => ObjectKind::S3(s3(layers, cwd, other, bucket, iam, request_timeout)?),
    };
    Ok(ObjectProfile { kind, root })
}

fn azure(
    layers: &mut Layers,
    container: String,
    iam: bool,
    request_timeout: std::time::Duration,
) -> Result<ObjectKind> {
    let account = layers.get("minio.accessKeyID");
    if account.origin == Origin::Default || account.text.is_empty() {
        return Err(account
            .error("minio.accessKeyID", "must name the storage account")
            .fix("give --access-key, or set minio.accessKeyID"));
    }
    let key = if iam {
        None
    } else {
        Some(secret_of(layers, &account)?)
    };
    let address = layers.get("minio.address");
    let endpoint = if address.origin == Origin::Default || address.text == "core.windows.net" {
        None
    } else if address.text.contains("://") {
        Some(address.text)
    } else {
        Some(format!("https://{}.blob.{}", account.text, address.text))
    };
    Ok(ObjectKind::Azure {
        account: account.text,
        key,
        container,
        endpoint,
        request_timeout,
    })
}

/// An endpoint that is not the cloud's public one.
fn cloud_endpoint(layers: &mut Layers, public: &str) -> Result<Option<String>> {
    let address = layers.get("minio.address");
    let host = address.text.split("://").last().unwrap_or_default();
    if address.origin == Origin::Default || host.trim_end_matches(":443") == public {
        return Ok(None);
    }
    endpoint(layers).map(Some)
}

/// `minio.address`, `minio.port` and `minio.useSSL` as one URL. An address with a scheme says it all; one with a colon
/// ignores the port (`spec/layout.md` §10.2).
fn endpoint(layers: &mut Layers) -> Result<String> {
    let address = layers.get("minio.address");
    let wrong = || address.wrong("minio.address", "a host, host:port or http(s)://host:port");
    if address.text.contains("://") {
        let fine = Url::parse(&address.text)
            .is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.host_str().is_some());
        if !fine {
            return Err(wrong());
        }
        return Ok(address.text.trim_end_matches('/').to_owned());
    }
    let scheme = if layers.switch("minio.useSSL")? {
        "https"
    } else {
        "http"
    };
    let url = if address.text.contains(':') {
        format!("{scheme}://{}", address.text)
    } else {
        let port = layers.get("minio.port");
        match port.text.trim().parse::<u16>() {
            Ok(number) if number > 0 => format!("{scheme}://{}:{number}", address.text),
            _ => return Err(port.wrong("minio.port", "a port from 1 to 65535")),
        }
    };
    match Url::parse(&url) {
        Ok(parsed) if parsed.host_str().is_some_and(|h| !h.is_empty()) => Ok(url),
        _ => Err(wrong()),
    }
}

fn s3(
    layers: &mut Layers,
    cwd: &Path,
    provider: &str,
    bucket: String,
    iam: bool,
    request_timeout: std::time::Duration,
) -> Result<S3Profile> {
    let mut region = layers.get("minio.region").text;
    let nobody_said_where = layers.written("minio.address").is_none();
    let endpoint = if provider == "gcp" && nobody_said_where {
        Some("https://storage.googleapis.com".to_owned())
    } else if nobody_said_where && (iam || !region.is_empty()) {
        // A region or a cloud identity without an address means AWS, not Milvus's default on this machine.
        None
    } else {
        Some(endpoint(layers)?)
    };
    if region.is_empty()
        && let Some(found) = endpoint.as_deref().and_then(region_of_host)
    {
        region = found;
        layers.show(
            "minio.region",
            &region,
            layers_origin(layers, "minio.address"),
        );
    }
    let credentials = if iam {
        None
    } else {
        let id = layers.get("minio.accessKeyID");
        let secret = secret_of(layers, &id)?;
        Some((id.text, secret))
    };
    // Both refuse path style (`spec/layout.md` §10.2).
    let virtual_host =
        layers.switch("minio.useVirtualHost")? || matches!(provider, "aliyun" | "tencent");
    let secure = endpoint.as_ref().is_none_or(|e| e.starts_with("https://"));
    Ok(S3Profile {
        endpoint,
        bucket,
        region,
        credentials,
        virtual_host,
        ca: if secure {
            file(layers, "minio.ssl.tlsCACert", cwd)?
        } else {
            None
        },
        request_timeout,
    })
}

fn layers_origin(layers: &Layers, name: &str) -> Origin {
    layers
        .written(name)
        .map_or(Origin::Default, |v| v.origin.clone())
}

/// `s3.eu-west-1.amazonaws.com` names its region.
fn region_of_host(endpoint: &str) -> Option<String> {
    let url = Url::parse(endpoint).ok()?;
    let rest = url.host_str()?.strip_suffix(".amazonaws.com")?;
    let region = rest
        .strip_prefix("s3.")
        .or_else(|| rest.strip_prefix("s3-"))?;
    (region.contains('-') && !region.contains('.')).then(|| region.to_owned())
}

/// The secret that belongs to an access key. Milvus's default secret only fits Milvus's default key.
fn secret_of(layers: &mut Layers, id: &Value) -> Result<SecretString> {
    let secret = layers.get("minio.secretAccessKey");
    let default_id = keys::known("minio.accessKeyID").map_or("", |k| k.default);
    if secret.text.is_empty() || (secret.origin == Origin::Default && id.text != default_id) {
        return Err(id
            .error(
                "minio.accessKeyID",
                "is set, but minio.secretAccessKey is not",
            )
            .fix("give --secret-key-file or $FALCONER_SECRET_KEY, or set minio.useIAM"));
    }
    Ok(secret.text.into())
}
