//! Whether a path found in a file may be used at all (`spec/snapshot.md` §2.7).

use url::Url;

use crate::engine::error::{Error, ErrorKind, Result};

/// Where a well-formed path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A key of the snapshot's own bucket, or an absolute local path.
    Key,
    /// Another bucket.
    Uri(Url),
}

const SCHEMES: [&str; 8] = ["s3", "minio", "gs", "gcs", "az", "azure", "http", "https"];

/// Checks a path that a snapshot file names. A key may hold no empty, `.` or `..` component (a leading `/` is an
/// absolute local path); a URI must have a known scheme and a host, and no user, query or fragment.
pub fn check(path: &str) -> Result<Location> {
    let bad = |why: &str| {
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("a path of the snapshot is not usable: {why}"),
        )
        .with("path", super::super::mask::text(path))
        .fix("the snapshot's files were damaged or not written by Milvus: take a new snapshot"))
    };
    if path.is_empty() {
        return bad("it is empty");
    }
    if path.contains("://") {
        let Ok(uri) = Url::parse(path) else {
            return bad("it is not a URI");
        };
        if !SCHEMES.contains(&uri.scheme()) {
            return bad("its scheme is not that of an object store");
        }
        if uri.host_str().is_none_or(str::is_empty) {
            return bad("it names no host");
        }
        if !uri.username().is_empty() || uri.password().is_some() {
            return bad("it holds a user or password");
        }
        if uri.query().is_some() || uri.fragment().is_some() {
            return bad("it has a query or a fragment");
        }
        // Url::parse resolves dot components; look at the text itself.
        if path.split('/').any(|part| matches!(part, "." | "..")) {
            return bad("it has a '.' or '..' component");
        }
        return Ok(Location::Uri(uri));
    }
    let components = path.strip_prefix('/').unwrap_or(path);
    if components.split('/').any(|part| matches!(part, "." | "..")) {
        return bad("it has a '.' or '..' component");
    }
    if components.split('/').any(str::is_empty) {
        return bad("it has an empty component");
    }
    Ok(Location::Key)
}
