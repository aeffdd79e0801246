//! The command line: an equal client of the engine's [`Handle`]. Every screen is a subcommand (`get KIND`), every verb too.
//! Exit codes are documented in `docs/cli.md` and made in [`exit_code`].

pub mod ddl;
pub mod gc;
mod jobs;
mod output;
mod scan;
mod verbs;

use std::io::{IsTerminal, Write};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::Flags;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::{Conn, Handle};
use crate::engine::model::jobs::JobState;

use ddl::{CollectionCommand, IndexCommand, InitArgs, PartitionCommand};
use gc::{GcCommand, OrphansCommand, QuarantineCommand};

/// See, snapshot, restore, verify and clean up a Milvus-format cluster, with every coordinator down.
///
/// Without a command: the console. Without flags: an embedded store that needs no server.
#[derive(Debug, Parser)]
#[command(name = "falconer", version, max_term_width = 110)]
pub struct Cli {
    /// Where the cluster is.
    #[command(flatten)]
    pub connect: Flags,
    /// How the console looks.
    #[command(flatten)]
    pub look: Look,
    /// What to do; the console when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Console options.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Console")]
pub struct Look {
    /// Colours: by the terminal and `NO_COLOR`, or as told.
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto)]
    pub color: ColorChoice,
    /// Dark letters on a light ground.
    #[arg(long, global = true, conflicts_with = "dark")]
    pub light: bool,
    /// Light letters on a dark ground.
    #[arg(long, global = true)]
    pub dark: bool,
    /// Draw with ASCII only.
    #[arg(long, global = true)]
    pub ascii: bool,
}

/// Colours of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// By the environment.
    Auto,
    /// At least the 16 named ones.
    Always,
    /// None; states carry marks.
    Never,
    /// Exactly the 16 named ones.
    #[value(name = "16")]
    Ansi16,
    /// Exactly the 256.
    #[value(name = "256")]
    Ansi256,
    /// 24 bits.
    True,
}

/// For the journal of our own jobs, which comes with the first listing.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// A verb.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List a kind, or one of it: `get segments --collection books -o wide`.
    Get(GetArgs),
    /// Everything known of one thing: decoded fields, related things, raw keys.
    Describe(DescribeArgs),
    /// Create, drop and truncate collections, in a root of Falconer's own.
    #[command(subcommand)]
    Collection(CollectionCommand),
    /// Create and drop partitions, in a root of Falconer's own.
    #[command(subcommand)]
    Partition(PartitionCommand),
    /// Define indexes and take them away, in a root of Falconer's own.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Create, list, describe and drop snapshots.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Restore a snapshot into a new collection.
    #[command(subcommand)]
    Restore(RestoreCommand),
    /// Copy a snapshot out with all its data, as a bundle.
    #[command(subcommand)]
    Export(ExportCommand),
    /// What garbage collection would take and why it keeps the rest; one pass of it; orphans; pauses.
    #[command(subcommand)]
    Gc(GcCommand),
    /// Rows of a segment, read from its files: `scan 4711 --fields id,title --limit 100`.
    Scan(scan::ScanArgs),
    /// What was moved aside instead of deleted: list, put back, delete for good.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Check the connection, the bucket and the references; each failure names the key to change.
    Doctor(DoctorArgs),
    /// Build a small living cluster in the embedded store.
    Demo(ApplyArgs),
    /// Make an empty root on etcd and a bucket Falconer's own. An embedded store needs none.
    Init(InitArgs),
    /// Every setting with where it came from, secrets masked.
    Config(OutputArgs),
    /// Shell completion.
    Completions {
        /// For this shell.
        shell: clap_complete::Shell,
    },
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// Aligned columns, all of them.
    Wide,
    /// One JSON document.
    Json,
    /// One JSON document a line.
    Jsonl,
    /// YAML.
    Yaml,
}

/// `-o`.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Kind: databases, collections, partitions, segments, channels, broadcasts, indexes, snapshots, jobs, sessions, keys, …
    pub kind: String,
    /// Name or id; a collection may be `database/name`.
    pub name: Option<String>,
    /// Only of this collection (name, `database/name` or id).
    #[arg(short, long)]
    pub collection: Option<String>,
    /// Only rows that contain this text; a leading `!` keeps those that do not.
    #[arg(short, long)]
    pub filter: Option<String>,
    /// Sort by this column; `-column` for descending.
    #[arg(short, long, allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Output format.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// `describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Kind.
    pub kind: String,
    /// Name or id.
    pub name: String,
    /// Output format; `table` prints sections.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// How a plan is applied.
#[derive(Clone, Debug, Args)]
pub struct ApplyArgs {
    /// Show the plan and stop.
    #[arg(long)]
    pub plan: bool,
    /// Answer the confirmation. A plan that wants a name typed still wants `--confirm NAME`.
    #[arg(short, long)]
    pub yes: bool,
    /// The text that a dangerous plan asks to be typed.
    #[arg(long, value_name = "TEXT")]
    pub confirm: Option<String>,
    /// Output format of plan and result.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// `snapshot …`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Create one.
    Create {
        /// Of this collection (name, `database/name` or id).
        collection: String,
        /// Its name: letters, digits, `_`, `$`; begins with a letter or `_`.
        name: String,
        /// Description.
        #[arg(long, default_value = "")]
        description: String,
        /// Seconds of compaction protection.
        #[arg(long, default_value_t = 0)]
        protect: u64,
        /// Your own name for this order: given again with the same name, nothing more is made, and that is a success.
        #[arg(long, value_name = "ID")]
        operation: Option<String>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// List all, or those of one collection.
    List {
        /// Of this collection.
        collection: Option<String>,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Everything known of one, its manifests and missing objects included.
    Describe {
        /// Name, `collection/name` or id.
        snapshot: String,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Look whether one is whole: every object there, sizes as they were; the result is kept.
    Verify {
        /// Name, `collection/name` or id.
        snapshot: String,
        /// Also count the rows of each segment and open every insert log.
        #[arg(long)]
        deep: bool,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// List pins: whose, what for, and the time left.
    Pins {
        /// Of this snapshot; of all when absent.
        snapshot: Option<String>,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Keep one from being dropped for a while.
    Pin {
        /// Name, `collection/name` or id.
        snapshot: String,
        /// How long: 600, 10m, 2h, 7d, at most 30d; 0 = until it is taken off.
        #[arg(long, value_name = "TIME", value_parser = time)]
        ttl: u64,
        /// Who needs it: whoever wants to drop it asks there.
        #[arg(long, value_name = "NAME")]
        owner: String,
        /// What for.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Take a pin off.
    Unpin {
        /// Name, `collection/name` or id.
        snapshot: String,
        /// The pin's id.
        #[arg(required_unless_present = "all_expired")]
        pin: Option<i64>,
        /// Every pin whose time is over.
        #[arg(long, conflicts_with = "pin")]
        all_expired: bool,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Drop one: its files first, its record last. Source data is never touched.
    Drop {
        /// Name, `collection/name` or id.
        snapshot: String,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
}

/// `restore …`.
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Restore into a new collection and stay until it is verified.
    Start {
        /// Name, `collection/name` or id. Left out with `--from`.
        #[arg(required_unless_present = "from")]
        snapshot: Option<String>,
        /// Target: `name` or `database/name`. Must not exist.
        #[arg(required_unless_present = "from")]
        target: Option<String>,
        /// A bundle instead of a snapshot: the URI of its metadata, as `export start` tells it.
        #[arg(long, value_name = "URI")]
        from: Option<String>,
        /// How its copies run.
        #[command(flatten)]
        pace: jobs::Pace,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Follow a job until it ends.
    Watch {
        /// Its id.
        job: i64,
        /// How its copies run.
        #[command(flatten)]
        pace: jobs::Pace,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// List restore jobs, ours and those of a Milvus.
    List {
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Try again what failed, of a job that is stuck: what is copied stays copied.
    Retry {
        /// Its id.
        job: i64,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Stop a job and take back what it did, also one that another process runs.
    Cancel {
        /// Its id.
        job: i64,
    },
}

/// `export …`.
#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Write a bundle and stay until it is verified. Credentials are the profile's, or the environment's for another server.
    Start {
        /// Name, `collection/name` or id.
        snapshot: String,
        /// Below this: a key of the own bucket, `s3://BUCKET/PREFIX`, `https://HOST/BUCKET/PREFIX`, `gs://…`, `az://…` or
        /// `file:///FOLDER`.
        target: String,
        /// How its copies run.
        #[command(flatten)]
        pace: jobs::Pace,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Follow a job until it ends.
    Watch {
        /// Its id.
        job: i64,
        /// How its copies run from now on.
        #[command(flatten)]
        pace: jobs::Pace,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// List export jobs, ours and those of a Milvus.
    List {
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Try again what failed, of a job that is stuck: what is copied stays copied.
    Retry {
        /// Its id.
        job: i64,
        /// Output format.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Stop a job and remove what it copied.
    Cancel {
        /// Its id.
        job: i64,
    },
}

/// `doctor`.
#[derive(Clone, Copy, Debug, Args)]
pub struct DoctorArgs {
    /// Also compare the bucket's listing with every reference, and name each missing object.
    #[arg(long)]
    pub deep: bool,
    /// Output format.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// The exit code of an error.
pub fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Internal => 1,
        ErrorKind::Invalid | ErrorKind::Config => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Conflict | ErrorKind::Fenced | ErrorKind::Busy => 4,
        ErrorKind::Unreachable | ErrorKind::DeadlineExceeded => 5,
        ErrorKind::Denied => 6,
        ErrorKind::Corrupt => 7,
        ErrorKind::OutcomeUnknown => 8,
        ErrorKind::Limit | ErrorKind::Full | ErrorKind::Compacted | ErrorKind::Unsupported => 9,
        ErrorKind::Cancelled => 130,
    }
}

/// Whether a command works without a cluster.
pub fn offline(command: &Command) -> bool {
    matches!(command, Command::Completions { .. } | Command::Config(_))
}

/// Runs a command that needs no engine.
pub fn run_offline(
    command: &Command,
    settings: &[crate::config::Setting],
    out: &mut dyn Write,
) -> Result<()> {
    match command {
        Command::Completions { shell } => {
            let mut buffer = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "falconer", &mut buffer);
            output::raw(out, &buffer)
        }
        Command::Config(args) => output::settings(out, settings, args.output),
        _ => Err(Error::new(
            ErrorKind::Internal,
            "this command needs an engine",
        )),
    }
}

/// Runs a command against an engine. `Ok(code)` is the exit code of a command that did its work but has bad news.
pub async fn run(command: Command, handle: Handle, out: &mut (dyn Write + Send)) -> Result<u8> {
    let mut handle = handle;
    ready(&mut handle).await?;
    if let Some(why) = handle
        .place
        .read_only
        .as_deref()
        .filter(|_| command.writes())
    {
        return Err(Error::new(
            ErrorKind::Fenced,
            format!("nothing can be written to {}: {why}", handle.place.meta),
        )
        .fix(handle.place.to_write));
    }
    journal(&mut handle).await;
    match command {
        Command::Get(args) => {
            verbs::known(&mut handle, &args.kind).await?;
            verbs::get(&handle, &args, out).map(|()| 0)
        }
        Command::Describe(args) => {
            verbs::known(&mut handle, &args.kind).await?;
            verbs::describe(&handle, &args, out).await.map(|()| 0)
        }
        Command::Collection(command) => ddl::collections(&mut handle, command, out).await,
        Command::Partition(command) => ddl::partitions(&mut handle, command, out).await,
        Command::Index(command) => ddl::indexes(&mut handle, command, out).await,
        Command::Init(args) => ddl::init(&mut handle, &args, out).await,
        Command::Snapshot(command) => verbs::snapshot(&mut handle, command, out).await,
        Command::Restore(command) => verbs::restore(&mut handle, command, out).await,
        Command::Export(command) => verbs::export(&mut handle, command, out).await,
        Command::Gc(command) => gc::gc(&mut handle, command, out).await,
        Command::Quarantine(command) => gc::quarantine(&mut handle, command, out).await,
        Command::Scan(args) => scan::scan(&handle, args, out).await,
        Command::Doctor(args) => verbs::doctor(&handle, args, out).await,
        Command::Demo(apply) => jobs::demo(&mut handle, &apply, out).await,
        Command::Config(_) | Command::Completions { .. } => Err(Error::new(
            ErrorKind::Internal,
            "this command needs no engine",
        )),
    }
}

/// Waits for the first complete listing; a connection that fails is an error, not an endless wait.
async fn ready(handle: &mut Handle) -> Result<()> {
    loop {
        let state = handle.conn.borrow_and_update().clone();
        match state {
            Conn::Live { .. } | Conn::Static { .. } => return Ok(()),
            Conn::Connecting {
                attempt,
                why: Some(why),
            } if attempt > 2 || !why.is_transient() => return Err(why),
            Conn::Stale { why, .. } => return Err(why),
            Conn::Connecting { .. } | Conn::Syncing { .. } => {}
        }
        if handle.conn.changed().await.is_err() {
            return Err(Error::new(
                ErrorKind::Internal,
                "the engine stopped before the first listing was complete",
            ));
        }
    }
}

impl Command {
    /// Whether it only looks: then the store is opened without a writer, a console that holds the file is not in the way, and
    /// no unfinished job is taken up. A watch is none of these: it takes up the job that nobody runs.
    #[must_use]
    pub fn reads_only(&self) -> bool {
        match self {
            Self::Get(_)
            | Self::Describe(_)
            | Self::Doctor(_)
            | Self::Scan(_)
            | Self::Config(_)
            | Self::Completions { .. }
            | Self::Snapshot(
                SnapshotCommand::List { .. }
                | SnapshotCommand::Describe { .. }
                | SnapshotCommand::Pins { .. },
            )
            | Self::Restore(RestoreCommand::List { .. })
            | Self::Export(ExportCommand::List { .. })
            | Self::Gc(
                GcCommand::Plan { .. }
                | GcCommand::References { .. }
                | GcCommand::Tickets { .. }
                | GcCommand::Orphans(OrphansCommand::Plan { .. }),
            )
            | Self::Quarantine(QuarantineCommand::List { .. }) => true,
            Self::Snapshot(
                SnapshotCommand::Create { apply, .. }
                | SnapshotCommand::Drop { apply, .. }
                | SnapshotCommand::Pin { apply, .. }
                | SnapshotCommand::Unpin { apply, .. }
                | SnapshotCommand::Verify { apply, .. },
            )
            | Self::Restore(RestoreCommand::Start { apply, .. })
            | Self::Export(ExportCommand::Start { apply, .. })
            | Self::Gc(
                GcCommand::Run { apply, .. }
                | GcCommand::Orphans(OrphansCommand::Run { apply, .. }),
            )
            | Self::Quarantine(
                QuarantineCommand::Restore { apply, .. } | QuarantineCommand::Purge { apply, .. },
            )
            | Self::Demo(apply) => apply.plan,
            Self::Collection(command) => command.apply().plan,
            Self::Partition(command) => command.apply().plan,
            Self::Index(command) => command.apply().plan,
            // Only a process that may write plans a pause or a root: nobody else could write it.
            Self::Init(_)
            | Self::Gc(GcCommand::Pause { .. } | GcCommand::Resume { .. })
            | Self::Restore(
                RestoreCommand::Watch { .. }
                | RestoreCommand::Retry { .. }
                | RestoreCommand::Cancel { .. },
            )
            | Self::Export(
                ExportCommand::Watch { .. }
                | ExportCommand::Retry { .. }
                | ExportCommand::Cancel { .. },
            ) => false,
        }
    }

    /// Whether it can do nothing without the right to write.
    fn writes(&self) -> bool {
        let follows = matches!(
            self,
            Self::Restore(RestoreCommand::Watch { pace, .. })
            | Self::Export(ExportCommand::Watch { pace, .. })
                if pace.is_unasked()
        ) || matches!(self, Self::Snapshot(SnapshotCommand::Verify { .. }));
        !self.reads_only() && !follows
    }
}

/// Waits until our own jobs are known, and says which of them are not finished: where this process may write, they go on while
/// it lives.
async fn journal(handle: &mut Handle) {
    let clock = handle.clock.clone();
    let known = async {
        while !handle.jobs.borrow_and_update().known {
            if handle.jobs.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = known => {}
        () = clock.sleep(PATIENCE) => {}
    }
    if handle.place.read_only.is_some() {
        return;
    }
    for job in &handle.jobs.borrow().jobs {
        let verb = jobs::command(job.kind);
        if job.state == JobState::Stuck {
            let _ = writeln!(
                std::io::stderr(),
                "falconer: job {0} is stuck and waits for you: {1} ({2}); `falconer {verb} retry {0}` or `falconer {verb} cancel {0}`",
                job.id,
                job.title,
                job.error.as_deref().unwrap_or_default()
            );
        } else if !job.state.ended() {
            let _ = writeln!(
                std::io::stderr(),
                "falconer: job {} is not finished and goes on while this process lives: {} ({}); follow it with `falconer {verb} watch {0}`",
                job.id,
                job.title,
                job.step
            );
        }
    }
}

/// `600`, `10m`, `2h`, `7d`, in seconds.
fn time(text: &str) -> std::result::Result<u64, String> {
    crate::engine::model::text::seconds(text)
        .ok_or_else(|| "give a number of seconds, or 10m, 2h, 7d".into())
}

/// `20MiB`, `512KiB`, `1000000`.
fn rate(text: &str) -> std::result::Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err("give a number of bytes, KiB, MiB or GiB".into()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| "give a number of bytes, KiB, MiB or GiB".into())
}

/// Whether a question can be asked.
fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
