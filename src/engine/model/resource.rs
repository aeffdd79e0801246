//! The resource registry: every listable kind, its columns and its rows. The console, the CLI and the JSON output are three
//! readers of this one table, so a new kind is one entry here.

use crate::engine::ids::{
    BuildId, CollectionId, DbId, IndexId, JobId, MetaKey, PartitionId, ReplicaId, SegmentId,
    SnapshotId, UnixMs,
};

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
    /// A coordinator's task, by key.
    Task(MetaKey),
    /// A session.
    Session(String),
    /// An alias: database and name.
    Alias(DbId, String),
    /// A replica.
    Replica(ReplicaId),
    /// A raw key (also configuration and undecodable values).
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
