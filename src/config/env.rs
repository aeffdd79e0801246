//! The environment: Milvus's own names, compared as Milvus does, and ours.

use std::collections::BTreeMap;

use super::bucket;
use super::keys;
use super::origin::{Layer, Origin, Value};
use crate::engine::error::Result;

/// Our variables and the keys they set. Those that are no Milvus key are read by name where they are needed.
pub(super) const OURS: &[(&str, &str)] = &[
    ("FALCONER_ETCD", "etcd.endpoints"),
    ("FALCONER_ETCD_USER", "etcd.auth.userName"),
    ("FALCONER_ETCD_PASSWORD", "etcd.auth.password"),
    ("FALCONER_ETCD_CA", "etcd.ssl.tlsCACert"),
    ("FALCONER_ETCD_CERT", "etcd.ssl.tlsCert"),
    ("FALCONER_ETCD_KEY", "etcd.ssl.tlsKey"),
    ("FALCONER_ROOT", "etcd.rootPath"),
    ("FALCONER_META_SUB_PATH", "etcd.metaSubPath"),
    ("FALCONER_KV_SUB_PATH", "etcd.kvSubPath"),
    ("FALCONER_S3_ENDPOINT", "minio.address"),
    ("FALCONER_REGION", "minio.region"),
    ("FALCONER_ACCESS_KEY", "minio.accessKeyID"),
    ("FALCONER_SECRET_KEY", "minio.secretAccessKey"),
    ("FALCONER_GCP_CREDENTIAL_JSON", "minio.gcpCredentialJSON"),
];

/// Reads every variable that names a key. Ours go before Milvus's, `MILVUS_CONF_…` before the plain name.
pub(super) fn layer(env: &BTreeMap<String, String>, notes: &mut Vec<String>) -> Result<Layer> {
    let mut found: BTreeMap<&'static str, (u8, Value)> = BTreeMap::new();
    for (name, text) in env {
        let upper = name.to_uppercase();
        let (rank, key) = if let Some((_, key)) = OURS.iter().find(|(ours, _)| *ours == upper) {
            (0, keys::known(key))
        } else if let Some(rest) = upper.strip_prefix("MILVUS_CONF_") {
            (1, keys::by_spelling(rest))
        } else {
            (2, keys::by_spelling(name))
        };
        let Some(key) = key else { continue };
        // Kubernetes gives every container MINIO_PORT=tcp://10.0.0.1:9000 when a service is called minio.
        if key.name == "minio.port" && text.starts_with("tcp://") {
            notes.push(format!(
                "${name} is a Kubernetes service link, not a port; not used"
            ));
            continue;
        }
        let value = Value {
            text: text.clone(),
            origin: Origin::Env(name.clone()),
        };
        match found.get(key.name) {
            Some((held, _)) if *held <= rank => {}
            _ => {
                found.insert(key.name, (rank, value));
            }
        }
    }
    let mut layer: Layer = found.into_iter().map(|(k, (_, v))| (k, v)).collect();
    for (name, user) in [
        ("FALCONER_ETCD_USER", "etcd.auth.enabled"),
        ("FALCONER_ETCD_CA", "etcd.ssl.enabled"),
        ("FALCONER_ETCD_CERT", "etcd.ssl.enabled"),
    ] {
        if env.contains_key(name) {
            layer.insert(
                user,
                Value {
                    text: "true".into(),
                    origin: Origin::Env(name.into()),
                },
            );
        }
    }
    if let Some(text) = env.get("FALCONER_BUCKET") {
        bucket::set(&mut layer, text, &Origin::Env("FALCONER_BUCKET".into()))?;
    }
    Ok(layer)
}
