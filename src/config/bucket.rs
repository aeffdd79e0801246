//! `--bucket`: one word for where the objects are.

use super::origin::{Layer, Origin, Value, without_password};
use crate::engine::error::{Error, ErrorKind, Result};

/// Our key for a folder that stands for a bucket.
pub(super) const FOLDER: &str = "bucket";

/// Sets the keys that `text` means: `s3://bucket/root`, `az://container/root`, `gs://bucket/root`, `file:///folder`, or
/// a bucket's name. A root is only set when one is written (`s3://bucket/` writes an empty one).
pub(super) fn set(layer: &mut Layer, text: &str, origin: &Origin) -> Result<()> {
    let text = text.trim();
    let mut put = |key: &'static str, text: &str| {
        let value = Value {
            text: text.to_owned(),
            origin: origin.clone(),
        };
        layer.insert(key, value);
    };
    let wrong = |why: &str| {
        Error::new(
            ErrorKind::Config,
            format!("{origin}: {:?} is no bucket: {why}", without_password(text)),
        )
        .fix("write s3://bucket/root, az://container/root, gs://bucket/root, file:///folder or a bucket's name")
    };
    let Some((scheme, rest)) = text.split_once("://") else {
        if text.is_empty() || text.contains(['/', '\\', ' ', ':']) {
            return Err(wrong("neither a name nor a URL"));
        }
        put(FOLDER, "");
        put("minio.bucketName", text);
        put("common.storageType", "remote");
        return Ok(());
    };
    if scheme == "file" {
        if rest.is_empty() {
            return Err(wrong("the folder is missing"));
        }
        put(FOLDER, rest);
        return Ok(());
    }
    let provider = match scheme {
        "s3" => None,
        "az" | "azure" => Some("azure"),
        "gs" => Some("gcpnative"),
        _ => return Err(wrong(&format!("{scheme}:// is not known"))),
    };
    let (bucket, root) = match rest.split_once('/') {
        Some((bucket, root)) => (bucket, Some(root)),
        None => (rest, None),
    };
    if bucket.is_empty() {
        return Err(wrong("the bucket's name is missing"));
    }
    // An empty folder hides one of a lower source.
    put(FOLDER, "");
    put("minio.bucketName", bucket);
    put("common.storageType", "remote");
    if let Some(provider) = provider {
        put("minio.cloudProvider", provider);
    }
    if let Some(root) = root {
        put("minio.rootPath", root.trim_matches('/'));
    }
    Ok(())
}
