//! The resource registry: every listable kind, its columns and its rows. The console, the CLI and the JSON output are three
//! readers of this one table, so a new kind is one entry here.

use crate::engine::ids::{
    BroadcastId, BuildId, CollectionId, DbId, IndexId, JobId, MetaKey, PartitionId, ReplicaId,
    SegmentId, SnapshotId, UnixMs,
};

pub use super::columns::cell;
pub use super::detail::{detail, json, keys};
pub use super::find::find;
pub use super::related::{Link, related};
pub use super::rows::{RowRef, View, each, ids, list, rev, row};
pub use super::text::{cmp, order, text};

/// A listable kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Databases.
    Databases,
    /// Collections.
    Collections,
    /// Partitions.
    Partitions,
    /// Segments.
    Segments,
    /// Virtual channels.
    Channels,
    /// Index definitions.
    Indexes,
    /// Index builds of segments.
    SegmentIndexes,
    /// Snapshots.
    Snapshots,
    /// Our jobs.
    Jobs,
    /// Pauses of garbage collection.
    Tickets,
    /// What was moved aside.
    Quarantine,
    /// Broadcasts of the streaming coordinator.
    Broadcasts,
    /// Coordinator tasks, and foreign jobs.
    Tasks,
    /// Sessions.
    Sessions,
    /// Aliases.
    Aliases,
    /// Replicas.
    Replicas,
    /// Dynamic configuration.
    Config,
    /// Values that could not be read.
    Undecodable,
    /// Raw keys.
    Keys,
}

/// What identifies a row; selection and marks hold this, never an index.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowId {
    /// A database.
    Database(DbId),
    /// A collection.
    Collection(CollectionId),
    /// A partition.
    Partition(CollectionId, PartitionId),
    /// A segment.
    Segment(SegmentId),
    /// A channel.
    Channel(String),
    /// An index definition.
    Index(CollectionId, IndexId),
    /// An index build.
    SegmentIndex(BuildId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// One of our jobs.
    Job(JobId),
    /// A pause of garbage collection, by name.
    Ticket(String),
    /// What a job moved aside.
    Quarantine(JobId),
    /// A broadcast.
    Broadcast(BroadcastId),
    /// A coordinator's task, by key.
    Task(MetaKey),
    /// A session.
    Session(String),
    /// An alias: database and name.
    Alias(DbId, String),
    /// A replica.
    Replica(ReplicaId),
    /// An override of the configuration, by key.
    Config(MetaKey),
    /// A value that could not be read, by key.
    Undecodable(MetaKey),
    /// A raw key.
    Key(MetaKey),
}

/// How a column's values read, and how they align.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Text, left.
    Text,
    /// A decimal id, right.
    Id,
    /// A count, right, grouped.
    Count,
    /// Bytes, right, binary units.
    Bytes,
    /// A moment, shown in UTC.
    Time,
    /// Time since a moment, right.
    Age,
    /// A state with a tone.
    State,
}

/// A column of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Stable name in JSON and `--columns`.
    pub id: &'static str,
    /// Header.
    pub title: &'static str,
    /// Unit.
    pub unit: Unit,
    /// Cells it would like, and the fewest it can live with.
    pub width: (u16, u16),
    /// Only shown with `-o wide` or on a wide screen.
    pub wide: bool,
    /// What it means, for `?` and the docs.
    pub help: &'static str,
}

/// A kind's entry.
#[derive(Clone, Copy, Debug)]
pub struct KindSpec {
    /// The kind.
    pub kind: Kind,
    /// Plural name: `segments`.
    pub name: &'static str,
    /// Other names the palette and `get` accept: `segment`, `seg`.
    pub aliases: &'static [&'static str],
    /// Title on screen.
    pub title: &'static str,
    /// Columns in order; the first identifies the row to a human.
    pub columns: &'static [Column],
    /// Column to sort by at first, and whether descending.
    pub sort: (usize, bool),
    /// One line of help.
    pub help: &'static str,
}

/// How serious a cell is: the theme turns it into a colour and, without colour, a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tone {
    /// Nothing to say.
    Plain,
    /// Less important.
    Dim,
    /// Good.
    Good,
    /// In movement.
    Busy,
    /// Look at it.
    Warn,
    /// Wrong.
    Bad,
}

/// A value in a table: typed, so that sorting never parses text.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing there.
    None,
    /// Text.
    Text(std::borrow::Cow<'static, str>),
    /// Shared text.
    Shared(std::sync::Arc<str>),
    /// An id.
    Id(i64),
    /// A count.
    Count(i64),
    /// Bytes.
    Bytes(u64),
    /// A moment.
    Time(UnixMs),
    /// Milliseconds since.
    Age(u64),
    /// A state: text and tone.
    State(std::borrow::Cow<'static, str>, Tone),
}

/// What a listing is limited to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Of one database.
    pub database: Option<DbId>,
    /// Of one collection.
    pub collection: Option<CollectionId>,
    /// Of one partition.
    pub partition: Option<PartitionId>,
    /// Of one channel.
    pub channel: Option<String>,
    /// Of one segment.
    pub segment: Option<SegmentId>,
    /// Keys under this prefix text.
    pub prefix: Option<String>,
}

macro_rules! kinds {
    ($($kind:ident $name:literal [$($alias:literal),*] $title:literal $columns:path, sort $col:literal $desc:literal, $help:literal;)*) => {
        impl Kind {
            /// Every kind, in the order of the menu.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The registry's entry.
            #[must_use]
            pub fn spec(self) -> &'static KindSpec {
                match self {
                    $(Self::$kind => {
                        static SPEC: KindSpec = KindSpec {
                            kind: Kind::$kind,
                            name: $name,
                            aliases: &[$($alias),*],
                            title: $title,
                            columns: $columns,
                            sort: ($col, $desc),
                            help: $help,
                        };
                        &SPEC
                    })*
                }
            }
        }
    };
}

kinds! {
    Databases "databases" ["database", "db", "dbs"] "Databases"
        super::columns::root::DATABASES, sort 0 false,
        "Databases and what they hold";
    Collections "collections" ["collection", "coll", "col", "c"] "Collections"
        super::columns::root::COLLECTIONS, sort 0 false,
        "Collections with rows, bytes, load state and the worst channel";
    Partitions "partitions" ["partition", "part", "p"] "Partitions"
        super::columns::root::PARTITIONS, sort 0 false,
        "Partitions of collections";
    Segments "segments" ["segment", "seg", "s"] "Segments"
        super::columns::data::SEGMENTS, sort 0 false,
        "Segments with their logs joined";
    Channels "channels" ["channel", "chan", "ch", "vchannels", "vchannel"] "Channels"
        super::columns::data::CHANNELS, sort 3 true,
        "Virtual channels: checkpoint, lag, removal mark, owner";
    Indexes "indexes" ["index", "idx", "indices"] "Indexes"
        super::columns::data::INDEXES, sort 0 false,
        "Index definitions and how far their builds are";
    SegmentIndexes "segment-indexes" ["segment-index", "builds", "build", "sidx"] "Segment indexes"
        super::columns::data::BUILDS, sort 0 false,
        "Index builds, one for each segment and index";
    Snapshots "snapshots" ["snapshot", "snap", "snaps"] "Snapshots"
        super::columns::tasks::SNAPSHOTS, sort 5 true,
        "Snapshots of every collection in every state";
    Jobs "jobs" ["job", "j"] "Jobs"
        super::columns::tasks::JOBS, sort 8 true,
        "Our own jobs: snapshot, restore, drop, collection of garbage";
    Tickets "tickets" ["ticket", "pauses", "pause"] "GC tickets"
        super::columns::aside::TICKETS, sort 6 false,
        "Who has paused garbage collection, why and until when";
    Quarantine "quarantine" ["quarantines", "aside"] "Quarantine"
        super::columns::aside::QUARANTINE, sort 2 true,
        "What was moved aside instead of deleted, and until when it can be put back";
    Broadcasts "broadcasts" ["broadcast", "bcast", "ddl"] "Broadcasts"
        super::columns::broadcasts::BROADCASTS, sort 2 true,
        "DDL on its way through the channels: what each waits for, which keys it holds, whom it blocks";
    Tasks "tasks" ["task", "t"] "Tasks"
        super::columns::tasks::TASKS, sort 7 true,
        "Tasks of the coordinators: compaction, statistics, import, copies";
    Sessions "sessions" ["session", "nodes", "node"] "Sessions"
        super::columns::tasks::SESSIONS, sort 0 false,
        "Registered coordinators and nodes: a coordinator here blocks every write";
    Aliases "aliases" ["alias"] "Aliases"
        super::columns::root::ALIASES, sort 0 false,
        "Aliases and what they stand for";
    Replicas "replicas" ["replica", "rep"] "Replicas"
        super::columns::tasks::REPLICAS, sort 0 false,
        "Replicas of loaded collections";
    Config "config" ["configuration", "conf"] "Configuration"
        super::columns::tasks::CONFIG, sort 0 false,
        "Overrides of the configuration file kept in the metadata";
    Undecodable "undecodable" ["damaged", "bad"] "Undecodable values"
        super::columns::tasks::UNDECODABLE, sort 0 false,
        "Values that could not be read, with the reason";
    Keys "keys" ["key", "raw", "etcd"] "Keys"
        super::columns::tasks::KEYS, sort 0 false,
        "Every key of the metadata, raw";
}

impl Kind {
    /// The kind of a name or alias; case does not matter.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.iter().copied().find(|kind| {
            let spec = kind.spec();
            spec.name == name || spec.aliases.contains(&name.as_str())
        })
    }

    /// The index of a column by its stable name.
    #[must_use]
    pub fn column(self, id: &str) -> Option<usize> {
        self.spec().columns.iter().position(|c| c.id == id)
    }
}

impl RowId {
    /// The kind it belongs to.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Database(_) => Kind::Databases,
            Self::Collection(_) => Kind::Collections,
            Self::Partition(..) => Kind::Partitions,
            Self::Segment(_) => Kind::Segments,
            Self::Channel(_) => Kind::Channels,
            Self::Index(..) => Kind::Indexes,
            Self::SegmentIndex(_) => Kind::SegmentIndexes,
            Self::Snapshot(_) => Kind::Snapshots,
            Self::Job(_) => Kind::Jobs,
            Self::Ticket(_) => Kind::Tickets,
            Self::Quarantine(_) => Kind::Quarantine,
            Self::Broadcast(_) => Kind::Broadcasts,
            Self::Task(_) => Kind::Tasks,
            Self::Session(_) => Kind::Sessions,
            Self::Alias(..) => Kind::Aliases,
            Self::Replica(_) => Kind::Replicas,
            Self::Config(_) => Kind::Config,
            Self::Undecodable(_) => Kind::Undecodable,
            Self::Key(_) => Kind::Keys,
        }
    }

    /// The id as one would paste it elsewhere.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Database(id) => id.to_string(),
            Self::Collection(id) => id.to_string(),
            Self::Partition(_, id) => id.to_string(),
            Self::Segment(id) => id.to_string(),
            Self::Channel(name)
            | Self::Session(name)
            | Self::Alias(_, name)
            | Self::Ticket(name) => name.clone(),
            Self::Index(_, id) => id.to_string(),
            Self::SegmentIndex(id) => id.to_string(),
            Self::Snapshot(id) => id.to_string(),
            Self::Job(id) | Self::Quarantine(id) => id.to_string(),
            Self::Replica(id) => id.to_string(),
            Self::Broadcast(id) => id.to_string(),
            Self::Task(key) | Self::Config(key) | Self::Undecodable(key) | Self::Key(key) => {
                key.text()
            }
        }
    }
}
