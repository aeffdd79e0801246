//! `init`, `collection …`, `partition …`, `index …`: DDL in a root of Falconer's own.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::handle::Handle;
use crate::engine::model::schema::{CollectionSpec, FieldSpec};
use crate::engine::plan::{Ddl, Intent};

use super::verbs::collection;
use super::{ApplyArgs, jobs};

/// `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Physical channels: what all virtual channels share. Cannot be changed later.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub channels: u32,
    /// How to apply.
    #[command(flatten)]
    pub apply: ApplyArgs,
}

/// `collection …`.
#[derive(Debug, Subcommand)]
pub enum CollectionCommand {
    /// Create one.
    Create(Box<CreateArgs>),
    /// Drop one: all rows, its partitions and indexes, and the snapshots that no pin keeps.
    Drop {
        /// Name, `database/name` or id.
        collection: String,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Take all rows out of one. Schema, partitions, indexes and snapshots stay.
    Truncate {
        /// Name, `database/name` or id.
        collection: String,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
}

/// `collection create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name, or `database/name`.
    pub name: String,
    /// A field: `NAME:TYPE[:DIM or LENGTH][:pk][:auto][:null]`, e.g. `id:int64:pk`, `title:varchar:256`, `v:float_vector:768`.
    #[arg(long = "field", value_name = "FIELD")]
    pub fields: Vec<String>,
    /// A JSON file with everything that can be said of it; flags add to it and win. `docs/cli.md` has one.
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
    /// Database, when the name does not say it.
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// Virtual channels, 1 to 16 [default: 1].
    #[arg(long, value_name = "N")]
    pub shards: Option<u32>,
    /// strong, session, bounded or eventually [default: bounded].
    #[arg(long, value_name = "LEVEL")]
    pub consistency: Option<String>,
    /// Rows are spread over partitions by this field.
    #[arg(long, value_name = "FIELD")]
    pub partition_key: Option<String>,
    /// So many of them [default: 16].
    #[arg(long, value_name = "N")]
    pub partitions: Option<u32>,
    /// Takes fields that the schema does not name.
    #[arg(long)]
    pub dynamic: bool,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// A property, e.g. `collection.ttl.seconds=3600`.
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = pair)]
    pub properties: Vec<(String, String)>,
    /// How to apply.
    #[command(flatten)]
    pub apply: ApplyArgs,
}

/// `partition …`.
#[derive(Debug, Subcommand)]
pub enum PartitionCommand {
    /// Create one.
    Create {
        /// Collection: name, `database/name` or id.
        collection: String,
        /// Its name.
        name: String,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Drop one with all its rows.
    Drop {
        /// Collection: name, `database/name` or id.
        collection: String,
        /// Its name.
        name: String,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
}

/// `index …`.
#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Define one on a field.
    Create {
        /// Collection: name, `database/name` or id.
        collection: String,
        /// Field.
        field: String,
        /// Its name [default: the field's].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Index type, e.g. HNSW, IVF_FLAT, AUTOINDEX, INVERTED.
        #[arg(long = "type", value_name = "TYPE")]
        kind: String,
        /// How vectors are compared: L2, IP, COSINE, HAMMING, JACCARD, BM25.
        #[arg(long, value_name = "METRIC")]
        metric: Option<String>,
        /// What the type takes, e.g. `M=16`.
        #[arg(long = "param", value_name = "KEY=VALUE", value_parser = pair)]
        params: Vec<(String, String)>,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
    /// Take one away: searches that need it fail until there is another.
    Drop {
        /// Collection: name, `database/name` or id.
        collection: String,
        /// Its name.
        name: String,
        /// How to apply.
        #[command(flatten)]
        apply: ApplyArgs,
    },
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The file's spec with the flags on top.
fn spec(args: &CreateArgs) -> Result<CollectionSpec> {
    let mut spec = match &args.schema {
        None => CollectionSpec::default(),
        Some(file) => {
            let bad = |what: &str| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("schema file {} {what}", file.display()),
                )
            };
            let text = std::fs::read_to_string(file)
                .map_err(|e| bad("cannot be read").caused_by(e).fix("correct --schema"))?;
            serde_json::from_str(&text).map_err(|e| {
                bad(&format!("does not describe a collection: {e}"))
                    .fix("docs/cli.md shows one under: collection create")
            })?
        }
    };
    for field in &args.fields {
        spec.fields.push(FieldSpec::parse(field)?);
    }
    if let Some(key) = &args.partition_key {
        let mut fields = spec.fields.iter_mut();
        let field = fields.find(|f| f.name == *key).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("there is no field {key}"))
                .fix("name one of the fields with --partition-key")
        })?;
        field.partition_key = true;
    }
    spec.shards = args.shards.or(spec.shards);
    spec.partitions = args.partitions.or(spec.partitions);
    spec.dynamic |= args.dynamic;
    spec.consistency = args.consistency.clone().or(spec.consistency);
    spec.description = args.description.clone().unwrap_or(spec.description);
    spec.properties.extend(args.properties.iter().cloned());
    Ok(spec)
}

async fn change(
    handle: &mut Handle,
    change: Ddl,
    apply: &ApplyArgs,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    jobs::apply(handle, Intent::Ddl { change }, apply, out).await
}

/// `init`.
pub async fn init(
    handle: &mut Handle,
    args: &InitArgs,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let intent = Intent::Init {
        channels: args.channels,
    };
    jobs::apply(handle, intent, &args.apply, out).await
}

/// `collection …`.
pub async fn collections(
    handle: &mut Handle,
    command: CollectionCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    match command {
        CollectionCommand::Create(args) => {
            let (database, name) = match (args.name.split_once('/'), &args.database) {
                (Some((db, name)), None) => (db.to_owned(), name.to_owned()),
                (None, db) => (
                    db.clone().unwrap_or_else(|| "default".into()),
                    args.name.clone(),
                ),
                (Some(_), Some(_)) => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{} names a database, and --database another", args.name),
                    )
                    .fix("drop one of them"));
                }
            };
            let wanted = Ddl::CreateCollection {
                database,
                name,
                spec: spec(&args)?,
            };
            change(handle, wanted, &args.apply, out).await
        }
        CollectionCommand::Drop {
            collection: name,
            apply,
        } => {
            let collection = collection(handle, &name)?;
            change(handle, Ddl::DropCollection { collection }, &apply, out).await
        }
        CollectionCommand::Truncate {
            collection: name,
            apply,
        } => {
            let collection = collection(handle, &name)?;
            change(handle, Ddl::TruncateCollection { collection }, &apply, out).await
        }
    }
}

/// `partition …`.
pub async fn partitions(
    handle: &mut Handle,
    command: PartitionCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let (wanted, apply) = match command {
        PartitionCommand::Create {
            collection: of,
            name,
            apply,
        } => {
            let collection = collection(handle, &of)?;
            (Ddl::CreatePartition { collection, name }, apply)
        }
        PartitionCommand::Drop {
            collection: of,
            name,
            apply,
        } => {
            let collection = collection(handle, &of)?;
            (Ddl::DropPartition { collection, name }, apply)
        }
    };
    change(handle, wanted, &apply, out).await
}

/// `index …`.
pub async fn indexes(
    handle: &mut Handle,
    command: IndexCommand,
    out: &mut (dyn Write + Send),
) -> Result<u8> {
    let (wanted, apply) = match command {
        IndexCommand::Create {
            collection: of,
            field,
            name,
            kind,
            metric,
            params,
            apply,
        } => {
            let collection = collection(handle, &of)?;
            let mut params: BTreeMap<String, String> = params.into_iter().collect();
            params.insert("index_type".into(), kind);
            params.extend(metric.map(|metric| ("metric_type".into(), metric)));
            let name = name.unwrap_or_default();
            let wanted = Ddl::CreateIndex {
                collection,
                field,
                name,
                params,
            };
            (wanted, apply)
        }
        IndexCommand::Drop {
            collection: of,
            name,
            apply,
        } => {
            let collection = collection(handle, &of)?;
            (Ddl::DropIndex { collection, name }, apply)
        }
    };
    change(handle, wanted, &apply, out).await
}

impl CollectionCommand {
    /// How it is applied.
    pub const fn apply(&self) -> &ApplyArgs {
        match self {
            Self::Create(args) => &args.apply,
            Self::Drop { apply, .. } | Self::Truncate { apply, .. } => apply,
        }
    }
}

impl PartitionCommand {
    /// How it is applied.
    pub const fn apply(&self) -> &ApplyArgs {
        match self {
            Self::Create { apply, .. } | Self::Drop { apply, .. } => apply,
        }
    }
}

impl IndexCommand {
    /// How it is applied.
    pub const fn apply(&self) -> &ApplyArgs {
        match self {
            Self::Create { apply, .. } | Self::Drop { apply, .. } => apply,
        }
    }
}
