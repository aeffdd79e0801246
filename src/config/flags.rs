//! The flags that say where the cluster is.

use std::path::PathBuf;

use clap::Args;

/// Where the cluster is. Without any: an embedded store that needs no server. No flag takes a secret: those come from a
/// file or the environment.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub struct Flags {
    /// Named profile of the configuration file.
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// etcd endpoints, comma separated or repeated.
    #[arg(long, global = true, value_name = "URL", value_delimiter = ',')]
    pub etcd: Vec<String>,
    /// etcd user; the password comes from `--etcd-password-file` or `FALCONER_ETCD_PASSWORD`.
    #[arg(long, global = true, value_name = "USER")]
    pub etcd_user: Option<String>,
    /// File with the etcd password.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
    /// Authority that signed etcd's certificate (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Our certificate for etcd (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_cert: Option<PathBuf>,
    /// The key of our certificate (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,
    /// Root path in etcd (`etcd.rootPath`).
    #[arg(long, global = true, value_name = "PATH")]
    pub root: Option<String>,
    /// Metadata below the root (`etcd.metaSubPath`).
    #[arg(long, global = true, value_name = "PATH")]
    pub meta_sub_path: Option<String>,
    /// Allocators below the root (`etcd.kvSubPath`).
    #[arg(long, global = true, value_name = "PATH")]
    pub kv_sub_path: Option<String>,
    /// `s3://bucket/root`, `az://container/root`, `gs://bucket/root`, `file:///folder`, or a bucket's name.
    #[arg(long, global = true, value_name = "URL")]
    pub bucket: Option<String>,
    /// S3 endpoint, `http://host:port` (`minio.address`).
    #[arg(long, global = true, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// S3 region (`minio.region`).
    #[arg(long, global = true, value_name = "REGION")]
    pub region: Option<String>,
    /// S3 access key id; the secret comes from `--secret-key-file` or `FALCONER_SECRET_KEY`.
    #[arg(long, global = true, value_name = "ID")]
    pub access_key: Option<String>,
    /// File with the S3 secret key.
    #[arg(long, global = true, value_name = "FILE")]
    pub secret_key_file: Option<PathBuf>,
    /// Milvus's configuration: `milvus.yaml` (with `user.yaml` beside it), or its folder.
    #[arg(long, global = true, value_name = "FILE")]
    pub milvus_yaml: Option<PathBuf>,
    /// An etcd dump in JSON lines or a birdwatcher backup, plain or gzip; read only.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "etcd")]
    pub dump: Option<PathBuf>,
    /// Folder of the embedded store.
    #[arg(long, global = true, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Build no writer at all.
    #[arg(long, global = true, conflicts_with = "write")]
    pub read_only: bool,
    /// Allow writing to a real cluster (still: plan, confirmation, fence).
    #[arg(long, global = true)]
    pub write: bool,
}
