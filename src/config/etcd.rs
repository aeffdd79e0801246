//! Milvus's dynamic configuration in etcd, `<root>/config/…` (`spec/layout.md` §10.3).

use std::collections::BTreeMap;

use super::keys;
use super::origin::{Layer, Origin, Value};

/// The sections that are still open once etcd has been reached.
const SECTIONS: [&str; 5] = [
    "minio.",
    "common.storageType",
    "localStorage.",
    "dataCoord.gc.",
    "dataCoord.snapshot.",
];

/// Reads the overlay. Spellings vary (`minio.bucketName`, `minio/bucketName`, `miniobucketname`); two spellings of one key
/// race inside Milvus, so that is noted and the normalised one, which Milvus itself writes since 2.6, is taken.
pub(super) fn layer(
    prefix: &str,
    pairs: &[(String, String)],
    above: &[Layer],
    notes: &mut Vec<String>,
) -> Layer {
    let mut found: BTreeMap<&'static str, (bool, Value)> = BTreeMap::new();
    for (etcd_key, text) in pairs {
        let Some(spelling) = etcd_key
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('/'))
        else {
            continue;
        };
        let Some(key) = keys::by_spelling(spelling) else {
            continue;
        };
        if !SECTIONS.iter().any(|s| key.name.starts_with(s)) {
            continue;
        }
        let is_normalised = spelling == keys::normalised(spelling);
        let value = Value {
            text: text.clone(),
            origin: Origin::EtcdConfig {
                key: etcd_key.clone(),
            },
        };
        if let Some((_, other)) = found.get(key.name)
            && other.text != *text
        {
            notes.push(format!(
                "{} is written twice in etcd with different values, as {etcd_key} and as {}; inside Milvus either may win",
                key.name, other.origin
            ));
        }
        let replace = found.get(key.name).is_none_or(|(held, _)| !*held);
        if replace {
            found.insert(key.name, (is_normalised, value));
        }
    }
    for (name, (_, value)) in &found {
        note_difference(name, value, above, notes);
    }
    found.into_iter().map(|(k, (_, v))| (k, v)).collect()
}

/// Milvus itself puts etcd above its files and its environment: a difference means the file is not what runs.
fn note_difference(name: &str, value: &Value, above: &[Layer], notes: &mut Vec<String>) {
    let Some(used) = above.iter().find_map(|l| l.get(name)) else {
        return;
    };
    let from_milvus = match &used.origin {
        Origin::MilvusYaml { .. } => true,
        Origin::Env(var) => !var.starts_with("FALCONER_"),
        _ => false,
    };
    if from_milvus && used.text != value.text {
        notes.push(format!(
            "{name} differs: {} is used here, but Milvus itself uses the one at {}",
            used.origin, value.origin
        ));
    }
}
