//! Milvus's configuration keys that decide where a cluster is, their defaults, and how spellings are compared
//! (`spec/layout.md` §10).

/// A key with Milvus's default.
#[derive(Debug)]
pub(super) struct Key {
    /// Milvus's dotted name.
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    pub(super) secret: bool,
}

const fn key(name: &'static str, default: &'static str) -> Key {
    Key {
        name,
        default,
        secret: false,
    }
}

const fn secret(name: &'static str, default: &'static str) -> Key {
    Key {
        name,
        default,
        secret: true,
    }
}

/// Every key that is read. Anything else in a milvus.yaml is not ours to judge.
pub(super) const KEYS: &[Key] = &[
    key("etcd.endpoints", "localhost:2379"),
    key("etcd.rootPath", "by-dev"),
    key("etcd.metaSubPath", "meta"),
    key("etcd.kvSubPath", "kv"),
    key("etcd.ssl.enabled", "false"),
    key("etcd.ssl.tlsCACert", ""),
    key("etcd.ssl.tlsCert", ""),
    key("etcd.ssl.tlsKey", ""),
    // 3.0 defaults to true with etcdadmin; every earlier line to false. Only what somebody wrote is used.
    key("etcd.auth.enabled", "false"),
    key("etcd.auth.userName", ""),
    secret("etcd.auth.password", ""),
    key("etcd.use.embed", "false"),
    key("etcd.requestTimeout", "10000"),
    key("etcd.dialTimeout", "5000"),
    key("metastore.type", "etcd"),
    key("common.storageType", "remote"),
    key("localStorage.path", "/var/lib/milvus/data"),
    key("minio.address", "localhost"),
    key("minio.port", "9000"),
    key("minio.accessKeyID", "minioadmin"),
    secret("minio.secretAccessKey", "minioadmin"),
    key("minio.useSSL", "false"),
    key("minio.ssl.tlsCACert", ""),
    key("minio.bucketName", "a-bucket"),
    key("minio.rootPath", "files"),
    key("minio.useIAM", "false"),
    key("minio.cloudProvider", "aws"),
    secret("minio.gcpCredentialJSON", ""),
    key("minio.region", ""),
    key("minio.useVirtualHost", "false"),
    key("minio.requestTimeoutMs", "10000"),
    key("dataCoord.gc.dropTolerance", "10800"),
    key("dataCoord.gc.missingTolerance", "86400"),
    key("dataCoord.snapshot.pendingTimeout", "60"),
];

/// Finds a key by Milvus's dotted name.
pub(super) fn known(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// Finds the key that a spelling means.
pub(super) fn by_spelling(spelling: &str) -> Option<&'static Key> {
    let wanted = normalised(spelling);
    KEYS.iter().find(|k| normalised(k.name) == wanted)
}

/// Milvus's way to compare keys of every source: lower case, without a leading `milvus.`, without `/`, `_` and `.`.
pub(super) fn normalised(spelling: &str) -> String {
    let lower = spelling.to_lowercase();
    lower
        .strip_prefix("milvus.")
        .unwrap_or(&lower)
        .chars()
        .filter(|c| !matches!(c, '/' | '_' | '.'))
        .collect()
}

/// The name of `all` that a person most likely meant, if one is near.
pub(super) fn nearest<'a>(typed: &str, all: &[&'a str]) -> Option<&'a str> {
    all.iter()
        .map(|name| (distance(&typed.to_lowercase(), &name.to_lowercase()), *name))
        .min()
        .filter(|(far, name)| *far <= 1 + name.len() / 3)
        .map(|(_, name)| name)
}

/// Single-character edits from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
