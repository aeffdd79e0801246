//! [`Key`] to bytes.

use std::fmt::Write as _;

use crate::engine::ids::{KeyPrefix, MetaKey};

use super::family::area_prefix;
use super::{Key, Leftover, LogKind, Roots, WoodpeckerRoot};

impl Leftover {
    /// The prefix, without a trailing slash.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::FlushedSegment => "flushed-segment",
            Self::SegmentRefer => "segmentRefer",
            Self::Handoff => "querycoord-handoff",
            Self::QuerySegmentMeta => "queryCoord-segmentMeta",
            Self::SealedSegmentChange => "queryCoord-sealedSegmentChangeInfo",
            Self::QueryCollectionMeta => "queryCoord-collectionMeta",
            Self::QueryPartitionMeta => "queryCoord-partitionMeta",
            Self::GlobalSegmentExpire => "datacoord-meta/global-segment-expire",
        }
    }
}

impl LogKind {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Insert, Self::Stats, Self::Delta, Self::Bm25];
}

impl Key {
    /// The whole key, roots included.
    #[must_use]
    pub fn to_key(&self, roots: &Roots) -> MetaKey {
        MetaKey::from(self.text(roots))
    }

    /// The whole key's bytes, roots included.
    #[must_use]
    pub fn to_bytes(&self, roots: &Roots) -> Vec<u8> {
        self.text(roots).into_bytes()
    }

    /// The keys below this one, e.g. a vchannel's schemas.
    #[must_use]
    pub fn children(&self, roots: &Roots) -> KeyPrefix {
        KeyPrefix::new(&self.text(roots))
    }

    fn text(&self, roots: &Roots) -> String {
        if let Self::Woodpecker(WoodpeckerRoot::TopLevel, rest) = self {
            return format!("woodpecker/{rest}");
        }
        let mut out = area_prefix(self.family().area(), roots);
        if out.capacity() < out.len() + 96 {
            out.reserve(96);
        }
        self.write_below(&mut out);
        out
    }

    /// The path below the area. Writing to a String cannot fail, so the results are dropped.
    fn write_below(&self, out: &mut String) {
        if let Self::TimestampedCopy(of, ts) = self {
            out.push_str("snapshots/");
            of.write_below(out);
            let _ = write!(out, "_ts{}", ts.0);
            return;
        }
        out.push_str(match self {
            Self::Woodpecker(WoodpeckerRoot::Wp, _) => "wp",
            Self::Leftover(which, _) => which.path(),
            _ => self.family().path(),
        });
        let _ = self.write_tail(out);
    }

    fn write_tail(&self, out: &mut String) -> std::fmt::Result {
        match self {
            Self::IdAllocator
            | Self::TsoAllocator
            | Self::QueryIdAllocator
            | Self::SessionNextId
            | Self::SessionVersion
            | Self::RootFileResourceVersion
            | Self::FileResourceVersion
            | Self::ReplicateConfiguration
            | Self::TimestampedCopy(..) => Ok(()),
            Self::StreamingVersion(slash) | Self::ControlChannel(slash) => {
                if *slash {
                    out.push('/');
                }
                Ok(())
            }
            Self::Config(rest)
            | Self::Woodpecker(_, rest)
            | Self::Leftover(_, rest)
            | Self::LegacyAlias(rest)
            | Self::OldestAlias(rest)
            | Self::User(rest)
            | Self::UserRole(rest)
            | Self::PrivilegeGroup(rest)
            | Self::ResourceGroup(rest)
            | Self::LegacyReplica(rest)
            | Self::PChannel(rest)
            | Self::ReplicatingPChannel(rest) => write!(out, "/{rest}"),
            Self::Session(role, None) => write!(out, "/{}", role.name()),
            Self::Session(role, Some(id)) => write!(out, "/{}-{id}", role.name()),
            Self::Database(db) => write!(out, "/{db}"),
            Self::Collection(db, c) => write!(out, "/{db}/{c}"),
            Self::LegacyCollection(c) | Self::CollectionLoad(c) | Self::CollectionTarget(c) => {
                write!(out, "/{c}")
            }
            Self::Partition(c, p) | Self::PartitionLoad(c, p) => write!(out, "/{c}/{p}"),
            Self::Field(c, f) | Self::StructField(c, f) => write!(out, "/{c}/{f}"),
            Self::Function(c, f) => write!(out, "/{c}/{f}"),
            Self::Alias(db, alias) => write!(out, "/{db}/{alias}"),
            Self::RoleOfUser(a, b) | Self::GranteePrivilege(a, b) => write!(out, "/{a}/{b}"),
            Self::Grantee {
                role,
                object_type,
                object,
            } => write!(out, "/{role}/{object_type}/{object}"),
            Self::RootFileResource(id)
            | Self::FileResource(id)
            | Self::FileResourceInfo(id)
            | Self::CompactionTarget(id) => write!(out, "/{id}"),
            Self::Segment(c, p, s) => write!(out, "/{c}/{p}/{s}"),
            Self::Log(_, c, p, s, f) => write!(out, "/{c}/{p}/{s}/{f}"),
            Self::ChannelCheckpoint(v) | Self::ChannelRemoval(v) => write!(out, "/{v}"),
            Self::ChannelWatch(node, v) => write!(out, "/{node}/{v}"),
            Self::ImportJob(id)
            | Self::CopySegmentJob(id)
            | Self::RefreshJob(id)
            | Self::ExportSnapshotJob(id) => write!(out, "/{id}"),
            Self::PreImportTask(id)
            | Self::ImportTask(id)
            | Self::LegacyImportTask(id)
            | Self::AnalyzeTask(id)
            | Self::StatsTask(id)
            | Self::CopySegmentTask(id)
            | Self::RefreshTask(id) => write!(out, "/{id}"),
            Self::CompactionTask {
                type_name,
                trigger,
                plan,
            } => write!(out, "/{type_name}/{trigger}/{plan}"),
            Self::PartitionStats(c, p, v, version) => write!(out, "/{c}/{p}/{v}/{version}"),
            Self::PartitionStatsVersion(c, p, v) => write!(out, "/{c}/{p}/{v}"),
            Self::Snapshot(c, id) => write!(out, "/{c}/{id}"),
            Self::FieldIndex(c, id) => write!(out, "/{c}/{id}"),
            Self::SegmentIndex(c, p, s, b) => write!(out, "/{c}/{p}/{s}/{b}"),
            Self::Replica(c, id) => write!(out, "/{c}/{id}"),
            Self::BroadcastTask(id) => write!(out, "/{id}"),
            Self::WalCheckpoint(pchannel) => write!(out, "/{pchannel}/consume-checkpoint"),
            Self::WalVChannel(pchannel, v) => write!(out, "/{pchannel}/vchannel/{v}"),
            Self::WalSchema(pchannel, v, tick) => {
                write!(out, "/{pchannel}/vchannel/{v}/schema/{}", tick.0)
            }
            Self::WalSegment(pchannel, s) => write!(out, "/{pchannel}/segment-assign/{s}"),
            Self::SalvageCheckpoint(pchannel, cluster) => {
                write!(out, "/{pchannel}/salvage-checkpoint/{cluster}")
            }
        }
    }
}

/// A configuration key as every source of Milvus is normalised: lower case, without `milvus.` in front, without `/`, `_`
/// and `.` (`spec/layout.md` §10.1). Two spellings with the same result are the same setting, and race.
#[must_use]
pub fn normalise_config(name: &str) -> String {
    let lower = name.to_lowercase();
    let bare = lower.strip_prefix("milvus.").unwrap_or(&lower);
    bare.chars()
        .filter(|c| !matches!(c, '/' | '_' | '.'))
        .collect()
}
