//! Channel names (`spec/layout.md` §2.4).
//!
//! vchannel = `{pchannel}_{collectionID}v{shard}`; control channel = `{pchannel}_vcchan`. The pchannel may itself hold
//! `_` and digits, so the split is at the **last** `_` whose rest has the right shape.

use crate::engine::ids::{CollectionId, VChannel};

const CONTROL: &str = "_vcchan";

/// The parts of a channel name, borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelName<'a> {
    /// A collection's shard.
    Shard {
        /// The physical channel.
        pchannel: &'a str,
        /// The collection.
        collection: CollectionId,
        /// Shard number, from 0.
        shard: u32,
    },
    /// The channel that carries cluster-wide DDL.
    Control {
        /// The physical channel.
        pchannel: &'a str,
    },
    /// No such ending: a pchannel, or a name of some other maker.
    Plain(&'a str),
}

impl<'a> ChannelName<'a> {
    /// Takes a name apart.
    #[must_use]
    pub fn parse(name: &'a str) -> Self {
        if let Some(pchannel) = name.strip_suffix(CONTROL) {
            return Self::Control { pchannel };
        }
        shard(name).unwrap_or(Self::Plain(name))
    }

    /// The physical channel: the name without its ending.
    #[must_use]
    pub fn pchannel(self) -> &'a str {
        match self {
            Self::Shard { pchannel, .. } | Self::Control { pchannel } | Self::Plain(pchannel) => {
                pchannel
            }
        }
    }
}

fn shard(name: &str) -> Option<ChannelName<'_>> {
    let (pchannel, rest) = name.rsplit_once('_')?;
    let (collection, shard) = rest.split_once('v')?;
    if !digits(collection) || !digits(shard) {
        return None;
    }
    Some(ChannelName::Shard {
        pchannel,
        collection: CollectionId(collection.parse().ok()?),
        shard: shard.parse().ok()?,
    })
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The vchannel of a shard.
#[must_use]
pub fn compose(pchannel: &str, collection: CollectionId, shard: u32) -> VChannel {
    VChannel(format!("{pchannel}_{collection}v{shard}"))
}

/// The control channel hosted by `pchannel`.
#[must_use]
pub fn control(pchannel: &str) -> VChannel {
    VChannel(format!("{pchannel}{CONTROL}"))
}

/// The collection a vchannel belongs to.
#[must_use]
pub fn collection(name: &VChannel) -> Option<CollectionId> {
    match ChannelName::parse(&name.0) {
        ChannelName::Shard { collection, .. } => Some(collection),
        _ => None,
    }
}
