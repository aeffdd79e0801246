//! That a root is ours, with its channels: without this nothing opens a log on it. A Milvus that shares a root owns its channels, and two
//! owners of a channel lose data.

use serde::{Deserialize, Serialize};

use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key, ParsedKey};
use crate::engine::ids::{MetaKey, UnixMs};
use crate::engine::meta::{Cond, MetaReader, RangeOpts, Span, Write};
use crate::engine::plan::execute::Executor;
use crate::engine::plan::journal::{Keys, from_json, json};
use crate::engine::plan::retry::calm;
use crate::engine::profile::Roots;

/// `rootCoord.dmlChannelNum`.
pub const CHANNELS: u32 = 16;

/// The mark (`falconer/{rootPath}/root`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Physical channels: `{prefix}-rootcoord-dml_{n}`.
    pub channels: u32,
    /// What their names begin with.
    pub prefix: String,
    /// Who made it.
    pub maker: String,
    /// When.
    pub at: UnixMs,
    /// Falconer's version.
    pub version: String,
}

impl Mark {
    /// Of a root that becomes ours now.
    #[must_use]
    pub fn new(roots: &Roots, channels: u32, maker: &str, at: UnixMs) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let prefix: String = roots.root.trim_matches('/').chars().collect();
        let prefix: String = prefix
            .chars()
            .map(|c| if plain(c) { c } else { '-' })
            .collect();
        Self {
            channels,
            prefix: if prefix.is_empty() {
                "by-dev".into()
            } else {
                prefix
            },
            maker: maker.to_owned(),
            at,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// A physical channel by its number.
    #[must_use]
    pub fn pchannel(&self, n: u32) -> String {
        format!("{}-rootcoord-dml_{n}", self.prefix)
    }

    /// All of them.
    pub fn pchannels(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.channels).map(|n| self.pchannel(n))
    }
}

/// The root's mark.
pub async fn read(meta: &MetaReader, clock: &dyn Clock, keys: &Keys) -> Result<Option<Mark>> {
    let key = keys.root();
    let kv = calm(clock, || meta.get(&key)).await?;
    kv.map(|kv| from_json(&kv.key, &kv.value)).transpose()
}

/// Why nothing may own the channels of this root; `None` when it is ours, or, being embedded, becomes ours with the first use.
pub async fn refusal(
    meta: &MetaReader,
    clock: &dyn Clock,
    roots: &Roots,
    embedded: bool,
) -> Result<Option<Error>> {
    let keys = Keys::new(roots);
    if read(meta, clock, &keys).await?.is_some() {
        return Ok(None);
    }
    if !embedded {
        return Ok(Some(
            Error::new(
                ErrorKind::Unsupported,
                format!("root {:?} is not Falconer's own, so a Milvus owns its channels", roots.root),
            )
            .fix("make this change through Milvus; a root of Falconer's own is made with: falconer init"),
        ));
    }
    Ok(foreign_channel(meta, clock, roots, &keys)
        .await?
        .map(|key| {
            Error::new(
                ErrorKind::Conflict,
                format!("channel record {key} is a Milvus's: its log is elsewhere"),
            )
            .fix("this store is a copy of a cluster; make this change in a store of Falconer's own")
        }))
}

/// A channel that a Milvus has assigned: a record without a log of ours.
async fn foreign_channel(
    meta: &MetaReader,
    clock: &dyn Clock,
    roots: &Roots,
    keys: &Keys,
) -> Result<Option<MetaKey>> {
    let span = Span::prefix(&Family::PChannel.prefix(roots));
    for kv in calm(clock, || meta.range_all(&span)).await?.kvs {
        let ParsedKey::Known(Key::PChannel(name)) = Key::parse(roots, &kv.key.0) else {
            return Ok(Some(kv.key));
        };
        let head = keys.wal_head(&name);
        if calm(clock, || meta.get(&head)).await?.is_none() {
            return Ok(Some(kv.key));
        }
    }
    Ok(None)
}

/// The mark, made if it may be. The executor must own the root.
pub(super) async fn stand(executor: &Executor) -> Result<Mark> {
    let (reader, clock) = (executor.reader(), executor.clock());
    if let Some(why) = refusal(&reader, &**clock, executor.roots(), executor.embedded()).await? {
        return Err(why);
    }
    let key = executor.keys().root();
    let mark = Mark::new(executor.roots(), CHANNELS, executor.actor(), clock.now());
    let put = Write::put(key.clone(), json(&mark)?);
    // Refused: it stands, made before or by a try of ours that went unheard.
    executor.note_if(&[Cond::Absent(key)], &[put]).await?;
    read(&reader, &**clock, executor.keys())
        .await?
        .ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "the root's mark is gone again").fix("try again")
        })
}

/// What stands in a root that is to become ours and is not: the first key, if there is one. Our own journal does not count.
pub async fn occupant(
    meta: &MetaReader,
    clock: &dyn Clock,
    span: &Span,
) -> Result<Option<MetaKey>> {
    let opts = RangeOpts {
        limit: 1,
        keys_only: true,
        ..RangeOpts::default()
    };
    let page = calm(clock, || meta.range(span, opts)).await?;
    Ok(page.kvs.into_iter().next().map(|kv| kv.key))
}
