//! Whether the root path holds anything, and which roots exist when it does not. Never scans: each step asks for the first key
//! behind a folder that is already known.

use super::{Check, Patient};
use crate::engine::error::Result;
use crate::engine::format::keys::Roots;
use crate::engine::ids::{KeyPrefix, MetaKey};
use crate::engine::meta::{MetaReader, RangeOpts, Span};

/// Most questions asked while looking for other roots.
const QUESTIONS: usize = 200;
/// How many folders deep a root may lie.
const DEPTH: usize = 3;

pub(super) async fn check(p: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "root path";
    let roots = p.roots;
    let place = format!("{}/{}", roots.root, roots.meta);
    match first_under(p.meta, &place).await {
        Err(e) => vec![Check::from_error(NAME, &e, "check etcd.endpoints")],
        Ok(Some(_)) => vec![Check::ok(NAME, format!("{place} holds metadata"))],
        Ok(None) => vec![match find(p.meta, roots).await {
            Err(e) => Check::from_error(NAME, &e, "check etcd.endpoints"),
            Ok(found) if found.is_empty() => nothing(p, &place).await,
            Ok(found) => Check::fail(
                NAME,
                format!("no key under {place}; this store has {}", found.join(", ")),
            )
            .fix("set etcd.rootPath (--root) and etcd.metaSubPath to one of these")
            .items(found),
        }],
    }
}

async fn nothing(p: &Patient<'_>, place: &str) -> Check {
    const NAME: &str = "root path";
    let is_etcd = match p.meta.status().await {
        Ok(status) => status.server.starts_with("etcd"),
        Err(_) => true,
    };
    if is_etcd {
        Check::fail(
            NAME,
            format!("no key under {place}, and this etcd holds no Milvus metadata at all"),
        )
        .fix("check etcd.endpoints: is it this cluster's etcd?")
    } else {
        Check::skipped(NAME, "the store is still empty")
    }
}

/// `root/meta` of every root found.
async fn find(meta: &MetaReader, roots: &Roots) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut asked = 0;
    let mut level = vec![String::new()];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for folder in level {
            let mut start = folder.clone();
            while asked < QUESTIONS {
                asked += 1;
                let Some(key) = first_from(meta, &folder, &start).await? else {
                    break;
                };
                let below = key.get(folder.len()..).unwrap_or_default();
                let Some((name, _)) = below.split_once('/') else {
                    // A key, not a folder: go on right behind it.
                    start = format!("{key}\0");
                    continue;
                };
                let child = format!("{folder}{name}");
                // '0' follows '/': the first key behind the folder.
                start = format!("{child}0");
                match sub_path(meta, &child, roots, &mut asked).await? {
                    Some(meta_root) => found.push(meta_root),
                    None => next.push(format!("{child}/")),
                }
            }
        }
        level = next;
    }
    Ok(found)
}

/// The metadata folder of a root, if `child` is one: it has what every Milvus writes first.
async fn sub_path(
    meta: &MetaReader,
    child: &str,
    roots: &Roots,
    asked: &mut usize,
) -> Result<Option<String>> {
    for sub in [roots.meta.as_str(), "meta"] {
        for family in ["root-coord", "session"] {
            *asked += 1;
            let place = format!("{child}/{sub}");
            if first_under(meta, &format!("{place}/{family}"))
                .await?
                .is_some()
            {
                return Ok(Some(place));
            }
        }
    }
    Ok(None)
}

async fn first_under(meta: &MetaReader, folder: &str) -> Result<Option<MetaKey>> {
    first(meta, &Span::prefix(&KeyPrefix::new(folder))).await
}

/// The first key at or behind `start` that lies in `folder`, as text.
async fn first_from(meta: &MetaReader, folder: &str, start: &str) -> Result<Option<String>> {
    let mut span = if folder.is_empty() {
        Span::all()
    } else {
        Span::prefix(&KeyPrefix::new(folder))
    };
    if !start.is_empty() {
        span.start = bytes::Bytes::copy_from_slice(start.as_bytes());
    }
    Ok(first(meta, &span).await?.map(|k| k.text()))
}

async fn first(meta: &MetaReader, span: &Span) -> Result<Option<MetaKey>> {
    let opts = RangeOpts {
        limit: 1,
        keys_only: true,
        ..RangeOpts::default()
    };
    let page = meta.range(span, opts).await?;
    Ok(page.kvs.into_iter().next().map(|kv| kv.key))
}
