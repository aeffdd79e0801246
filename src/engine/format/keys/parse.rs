//! Bytes to [`Key`].

use crate::engine::ids::{NodeId, TaskId, Tso, VChannel};

use super::{Key, Leftover, LogKind, ParsedKey, Role, Roots, WoodpeckerRoot};

impl Key {
    /// Reads a whole key, roots included.
    #[must_use]
    pub fn parse(roots: &Roots, key: &[u8]) -> ParsedKey {
        match std::str::from_utf8(key)
            .ok()
            .and_then(|text| parse(roots, text))
        {
            Some(key) => ParsedKey::Known(key),
            None => ParsedKey::Unknown,
        }
    }
}

fn parse(roots: &Roots, text: &str) -> Option<Key> {
    if let Some(below_root) = below(text, &roots.root) {
        if let Some(rest) = below(below_root, &roots.meta)
            && let Some(key) = meta(rest)
        {
            return Some(key);
        }
        if let Some(rest) = below(below_root, &roots.kv)
            && let Some(key) = allocator(rest)
        {
            return Some(key);
        }
        let (head, rest) = below_root.split_once('/')?;
        if rest.is_empty() {
            return None;
        }
        match head {
            "config" => return Some(Key::Config(rest.to_owned())),
            "woodpecker" => {
                return Some(Key::Woodpecker(WoodpeckerRoot::UnderRoot, rest.to_owned()));
            }
            "wp" => return Some(Key::Woodpecker(WoodpeckerRoot::Wp, rest.to_owned())),
            _ => {}
        }
    }
    let rest = text
        .strip_prefix("woodpecker/")
        .filter(|rest| !rest.is_empty())?;
    Some(Key::Woodpecker(WoodpeckerRoot::TopLevel, rest.to_owned()))
}

fn below<'a>(text: &'a str, part: &str) -> Option<&'a str> {
    if part.is_empty() {
        Some(text)
    } else {
        text.strip_prefix(part)?.strip_prefix('/')
    }
}

fn allocator(rest: &str) -> Option<Key> {
    Some(match rest {
        "gid/idTimestamp" => Key::IdAllocator,
        "gid/timestamp" => Key::TsoAllocator,
        "querycoord-id-allocator/idTimestamp" => Key::QueryIdAllocator,
        _ => return None,
    })
}

/// The parts of a path, left to right. Each must be there and be non-empty.
struct Parts<'a>(Option<&'a str>);

impl<'a> Parts<'a> {
    fn part(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        let (part, rest) = match rest.split_once('/') {
            Some((part, rest)) => (part, Some(rest)),
            None => (rest, None),
        };
        self.0 = rest;
        (!part.is_empty()).then_some(part)
    }

    fn name(&mut self) -> Option<String> {
        self.part().map(str::to_owned)
    }

    fn channel(&mut self) -> Option<VChannel> {
        self.name().map(VChannel)
    }

    fn id<T: From<i64>>(&mut self) -> Option<T> {
        number(self.part()?).map(T::from)
    }

    /// The key, unless something is left over.
    fn end(&self, key: Key) -> Option<Key> {
        self.0.is_none().then_some(key)
    }
}

/// A decimal as Go prints it: no sign but a needed minus, no padding.
pub(in crate::engine::format) fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let padded = digits.len() > 1 && digits.starts_with('0');
    if padded || text == "-0" || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// As [`number`], for the few unsigned ones.
pub(in crate::engine::format) fn unsigned(text: &str) -> Option<u64> {
    if (text.len() > 1 && text.starts_with('0')) || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn meta(text: &str) -> Option<Key> {
    let (head, rest) = text.split_once('/')?;
    let mut p = Parts(Some(rest));
    let key = match head {
        "datacoord-meta" => return data_coord(rest),
        "segment-index" => Key::SegmentIndex(p.id()?, p.id()?, p.id()?, p.id()?),
        "field-index" => Key::FieldIndex(p.id()?, p.id()?),
        "root-coord" => return root_coord(rest),
        "snapshots" => return copy(rest),
        "session" => return session(rest),
        "channelwatch" => Key::ChannelWatch(p.id()?, p.channel()?),
        "importtask" => Key::LegacyImportTask(p.id()?),
        "querycoord-collection-loadinfo" => Key::CollectionLoad(p.id()?),
        "querycoord-partition-loadinfo" => Key::PartitionLoad(p.id()?, p.id()?),
        "querycoord-replica" => Key::Replica(p.id()?, p.id()?),
        "queryCoord-ResourceGroup" => Key::ResourceGroup(p.name()?),
        "queryCoord-Collection-Target" => Key::CollectionTarget(p.id()?),
        "queryCoord-ReplicaMeta" => return rest_of(rest, Key::LegacyReplica),
        "streamingcoord-meta" => return streaming_coord(rest),
        "streamingnode-meta" => return streaming_node(rest.strip_prefix("wal/")?),
        "flushed-segment" => return left(rest, Leftover::FlushedSegment),
        "segmentRefer" => return left(rest, Leftover::SegmentRefer),
        "querycoord-handoff" => return left(rest, Leftover::Handoff),
        "queryCoord-segmentMeta" => return left(rest, Leftover::QuerySegmentMeta),
        "queryCoord-sealedSegmentChangeInfo" => return left(rest, Leftover::SealedSegmentChange),
        "queryCoord-collectionMeta" => return left(rest, Leftover::QueryCollectionMeta),
        "queryCoord-partitionMeta" => return left(rest, Leftover::QueryPartitionMeta),
        _ => return None,
    };
    p.end(key)
}

fn rest_of(rest: &str, make: impl FnOnce(String) -> Key) -> Option<Key> {
    (!rest.is_empty()).then(|| make(rest.to_owned()))
}

fn left(rest: &str, which: Leftover) -> Option<Key> {
    rest_of(rest, |rest| Key::Leftover(which, rest))
}

fn session(rest: &str) -> Option<Key> {
    if rest.is_empty() || rest.contains('/') {
        return None;
    }
    Some(match rest {
        "id" => Key::SessionNextId,
        "version" => Key::SessionVersion,
        _ => match rest
            .rsplit_once('-')
            .map(|(role, id)| (role, unsigned(id).and_then(|id| i64::try_from(id).ok())))
        {
            Some((role, Some(id))) if !role.is_empty() => {
                Key::Session(Role::of(role), Some(NodeId(id)))
            }
            _ => Key::Session(Role::of(rest), None),
        },
    })
}

fn copy(rest: &str) -> Option<Key> {
    let (of, ts) = rest.rsplit_once("_ts")?;
    let of = root_coord(of.strip_prefix("root-coord/")?)?;
    Some(Key::TimestampedCopy(Box::new(of), Tso(unsigned(ts)?)))
}

fn root_coord(text: &str) -> Option<Key> {
    if text == "file_resource_version" {
        return Some(Key::RootFileResourceVersion);
    }
    let (head, rest) = text.split_once('/')?;
    let mut p = Parts(Some(rest));
    let key = match head {
        "fields" => Key::Field(p.id()?, p.id()?),
        "partitions" => Key::Partition(p.id()?, p.id()?),
        "database" => match p.part()? {
            "collection-info" => Key::Collection(p.id()?, p.id()?),
            "db-info" => Key::Database(p.id()?),
            "aliases" => Key::Alias(p.id()?, p.name()?),
            _ => return None,
        },
        "collection" => Key::LegacyCollection(p.id()?),
        "struct-array-fields" => Key::StructField(p.id()?, p.id()?),
        "functions" => Key::Function(p.id()?, p.id()?),
        "aliases" => Key::LegacyAlias(p.name()?),
        "collection-alias" => Key::OldestAlias(p.name()?),
        "credential" => match p.part()? {
            "users" => Key::User(p.name()?),
            "roles" => Key::UserRole(p.name()?),
            "user-role-mapping" => Key::RoleOfUser(p.name()?, p.name()?),
            "grantee-privileges" => Key::Grantee {
                role: p.name()?,
                object_type: p.name()?,
                object: p.name()?,
            },
            "grantee-id" => Key::GranteePrivilege(p.name()?, p.name()?),
            _ => return None,
        },
        "privilege-group" => Key::PrivilegeGroup(p.name()?),
        "file_resource_info" => Key::RootFileResource(p.id()?),
        _ => return None,
    };
    p.end(key)
}

fn data_coord(text: &str) -> Option<Key> {
    if text == "file_resource_version" {
        return Some(Key::FileResourceVersion);
    }
    let (head, rest) = text.split_once('/')?;
    let mut p = Parts(Some(rest));
    let mut log = |kind| Some(Key::Log(kind, p.id()?, p.id()?, p.id()?, p.id()?));
    let key = match head {
        "binlog" => log(LogKind::Insert)?,
        "statslog" => log(LogKind::Stats)?,
        "deltalog" => log(LogKind::Delta)?,
        "bm25log" => log(LogKind::Bm25)?,
        "s" => Key::Segment(p.id()?, p.id()?, p.id()?),
        "channel-cp" => Key::ChannelCheckpoint(p.channel()?),
        "channel-removal" => Key::ChannelRemoval(p.channel()?),
        "import-job" => Key::ImportJob(p.id()?),
        "preimport-task" => Key::PreImportTask(p.id()?),
        "import-task" => Key::ImportTask(p.id()?),
        "compaction-task" => Key::CompactionTask {
            type_name: p.name()?,
            trigger: p.id()?,
            plan: p.id::<TaskId>()?,
        },
        "compaction-target" => Key::CompactionTarget(p.id()?),
        "analyze-task" => Key::AnalyzeTask(p.id()?),
        "stats-task" => Key::StatsTask(p.id()?),
        "partition-stats" => Key::PartitionStats(p.id()?, p.id()?, p.channel()?, p.id()?),
        "current-partition-stats-version" => {
            Key::PartitionStatsVersion(p.id()?, p.id()?, p.channel()?)
        }
        "file_resource" => Key::FileResource(p.id()?),
        "file_resource_info" => Key::FileResourceInfo(p.id()?),
        "snapshot" => Key::Snapshot(p.id()?, p.id()?),
        "copy-segment-job" => Key::CopySegmentJob(p.id()?),
        "copy-segment-task" => Key::CopySegmentTask(p.id()?),
        "external-collection-refresh-job" => Key::RefreshJob(p.id()?),
        "external-collection-refresh-task" => Key::RefreshTask(p.id()?),
        "export-snapshot-job" => Key::ExportSnapshotJob(p.id()?),
        "global-segment-expire" => return left(rest, Leftover::GlobalSegmentExpire),
        _ => return None,
    };
    p.end(key)
}

fn streaming_coord(text: &str) -> Option<Key> {
    match text {
        "version" => return Some(Key::StreamingVersion(false)),
        "version/" => return Some(Key::StreamingVersion(true)),
        "cchannel" => return Some(Key::ControlChannel(false)),
        "cchannel/" => return Some(Key::ControlChannel(true)),
        "replicate-configuration" => return Some(Key::ReplicateConfiguration),
        _ => {}
    }
    let (head, rest) = text.split_once('/')?;
    let mut p = Parts(Some(rest));
    let key = match head {
        "pchannel" => Key::PChannel(p.name()?),
        "broadcast-task" => Key::BroadcastTask(unsigned(p.part()?)?),
        "replicating-pchannel" => Key::ReplicatingPChannel(p.name()?),
        _ => return None,
    };
    p.end(key)
}

fn streaming_node(text: &str) -> Option<Key> {
    let mut p = Parts(Some(text));
    let pchannel = p.name()?;
    let key = match p.part()? {
        "consume-checkpoint" => Key::WalCheckpoint(pchannel),
        "vchannel" => {
            let vchannel = p.channel()?;
            if p.0.is_none() {
                Key::WalVChannel(pchannel, vchannel)
            } else if p.part()? == "schema" {
                Key::WalSchema(pchannel, vchannel, Tso(unsigned(p.part()?)?))
            } else {
                return None;
            }
        }
        "segment-assign" => Key::WalSegment(pchannel, p.id()?),
        "salvage-checkpoint" => Key::SalvageCheckpoint(pchannel, p.name()?),
        _ => return None,
    };
    p.end(key)
}
