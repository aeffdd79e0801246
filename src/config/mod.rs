//! Where is my cluster: `flags > environment > named profile > milvus.yaml > etcd's dynamic configuration > default`.
//! Every value knows its origin, every error names file, line and key.
//!
//! Inside Milvus the dynamic configuration in etcd stands above environment and files (`spec/layout.md` §10.1). Here it
//! only fills what nobody told us, because what a person wrote for *this* console must win; where the two differ for a key
//! that a milvus.yaml or Milvus's own variable sets, [`Resolved::notes`] says so, since the cluster then uses another value than the file.

mod bucket;
mod build;
mod env;
mod etcd;
mod flags;
mod keys;
mod origin;
mod profiles;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use flags::Flags;
pub use origin::{MASK, Origin, Setting};

use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::profile::Profile;
use origin::{Layer, Value};
use profiles::FileProfile;

/// What the machine says: nothing in this module asks it directly.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The working directory: relative paths of flags and variables start here.
    pub cwd: PathBuf,
    /// Our configuration file unless `$FALCONER_CONFIG` names one.
    pub config_file: PathBuf,
    /// Folder of the embedded stores unless `--data-dir` or `$FALCONER_HOME` names one.
    pub data_dir: PathBuf,
}

impl Surroundings {
    /// Those of this process: `~/.config/falconer/config.toml` and `~/.local/share/falconer` on Linux.
    pub fn of_process() -> Result<Self> {
        let cwd = std::env::current_dir().map_err(|e| {
            Error::new(ErrorKind::Config, "there is no working directory").caused_by(e)
        })?;
        let places = directories::ProjectDirs::from("", "", "falconer");
        let folder =
            |found: Option<&Path>, or: &str| found.map_or_else(|| cwd.join(or), Path::to_owned);
        Ok(Self {
            env: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
            config_file: folder(
                places.as_ref().map(directories::ProjectDirs::config_dir),
                ".falconer",
            )
            .join("config.toml"),
            data_dir: folder(
                places.as_ref().map(directories::ProjectDirs::data_dir),
                ".falconer",
            ),
            cwd,
        })
    }
}

/// The answer.
#[derive(Clone)]
pub struct Resolved {
    /// What the engine is opened with.
    pub profile: Profile,
    /// Every setting that decided it, with its origin; secrets masked.
    pub origins: Vec<Setting>,
    /// The header colour of the named profile.
    pub color: Option<String>,
    /// What a person should know: a value that was not used, a difference to what the cluster uses.
    pub notes: Vec<String>,
    sources: Sources,
}

/// Everything that was read, kept so that etcd's configuration can be laid under it.
#[derive(Clone)]
struct Sources {
    flags: Flags,
    around: Surroundings,
    layers: Vec<Layer>,
    profile_name: Option<String>,
    dump: Option<(PathBuf, Origin)>,
    data_dir: Option<(PathBuf, Origin)>,
    readonly: Option<(bool, Origin)>,
    color: Option<String>,
    notes: Vec<String>,
}

/// The door.
pub struct Config;

impl Config {
    /// Finds the cluster. Reads files, never the network.
    pub fn resolve(flags: &Flags, around: &Surroundings) -> Result<Resolved> {
        let mut notes = Vec::new();
        let var = |name: &str| around.env.get(name).filter(|v| !v.is_empty());
        let path = |text: &str| around.cwd.join(text);

        let flag_layer = from_flags(flags, around)?;
        let env_layer = env::layer(&around.env, &mut notes)?;

        let wanted = match (&flags.profile, var("FALCONER_PROFILE")) {
            (Some(name), _) => Some((name.as_str(), Origin::Flag("--profile"))),
            (None, Some(name)) => Some((name.as_str(), Origin::Env("FALCONER_PROFILE".into()))),
            (None, None) => None,
        };
        let named_file = var("FALCONER_CONFIG").map(|f| path(f));
        let file = profiles::read(
            named_file.as_deref().unwrap_or(&around.config_file),
            wanted.as_ref().map(|(name, origin)| (*name, origin)),
            named_file.is_some(),
        )?
        .unwrap_or_default();

        note_hidden(&file, &env_layer, &mut notes);
        let from_env =
            |name: &str| var(name).map(|text| (path(text), Origin::Env(name.to_owned())));
        let from_flag = |value: &Option<PathBuf>, name: &'static str| {
            value
                .as_ref()
                .map(|p| (around.cwd.join(p), Origin::Flag(name)))
        };
        let yaml_place = from_flag(&flags.milvus_yaml, "--milvus-yaml")
            .or_else(|| from_env("FALCONER_MILVUS_YAML"))
            .or(file.milvus_yaml)
            .or_else(|| from_env("MILVUSCONF"));
        let yaml_layer = match &yaml_place {
            Some((place, origin)) => yaml::layer(place, origin)?,
            None => Layer::new(),
        };
        let dump = if flags.etcd.is_empty() {
            from_flag(&flags.dump, "--dump")
                .or_else(|| from_env("FALCONER_DUMP"))
                .or(file.dump)
        } else {
            None
        };
        let sources = Sources {
            layers: vec![flag_layer, env_layer, file.layer, yaml_layer],
            profile_name: Some(file.name).filter(|n| !n.is_empty()),
            dump,
            data_dir: from_flag(&flags.data_dir, "--data-dir")
                .or_else(|| from_env("FALCONER_HOME"))
                .or(file.data_dir),
            readonly: file.readonly,
            color: file.color,
            notes,
            flags: flags.clone(),
            around: around.clone(),
        };
        build::build(sources)
    }
}

impl Resolved {
    /// Where the dynamic configuration lies in this etcd: every key that starts with this (`spec/layout.md` §10.3, no
    /// slash at the end, as Milvus reads it).
    pub fn etcd_config_prefix(&self) -> String {
        format!("{}/config", self.profile.roots.root)
    }

    /// Lays etcd's dynamic configuration under what was resolved: keys and values as read under
    /// [`Resolved::etcd_config_prefix`]. Only `minio.*`, `common.storageType`, `localStorage.path` and `dataCoord.{gc,snapshot}.*` are taken; where
    /// etcd is was needed to read them.
    pub fn with_etcd_config(self, pairs: &[(String, String)]) -> Result<Self> {
        let prefix = self.etcd_config_prefix();
        let mut sources = self.sources;
        let layer = etcd::layer(&prefix, pairs, &sources.layers, &mut sources.notes);
        sources.layers.push(layer);
        build::build(sources)
    }
}

/// A variable left in the environment goes before the profile that was chosen: that must not go unseen.
fn note_hidden(file: &FileProfile, env: &Layer, notes: &mut Vec<String>) {
    for (key, value) in &file.layer {
        if let Some(other) = env.get(key).filter(|other| other.text != value.text) {
            notes.push(format!(
                "{key}: {} is used, not {} of profile {:?}",
                other.origin, value.origin, file.name
            ));
        }
    }
}

/// The layer of the command line.
fn from_flags(flags: &Flags, around: &Surroundings) -> Result<Layer> {
    let mut layer = Layer::new();
    let mut put = |key: &'static str, text: Option<String>, flag: &'static str| {
        if let Some(text) = text {
            let origin = Origin::Flag(flag);
            layer.insert(key, Value { text, origin });
        }
    };
    let file = |p: &Option<PathBuf>| p.as_ref().map(|p| around.cwd.join(p).display().to_string());
    let secret = |p: &Option<PathBuf>, flag: &'static str| {
        p.as_ref()
            .map(|p| profiles::secret_file(&around.cwd.join(p), &Origin::Flag(flag), "file"))
            .transpose()
    };
    let some = |given: bool| given.then(|| "true".to_owned());
    let endpoints = (!flags.etcd.is_empty()).then(|| flags.etcd.join(","));
    put("etcd.endpoints", endpoints, "--etcd");
    put("etcd.auth.userName", flags.etcd_user.clone(), "--etcd-user");
    put(
        "etcd.auth.enabled",
        some(flags.etcd_user.is_some()),
        "--etcd-user",
    );
    put(
        "etcd.auth.password",
        secret(&flags.etcd_password_file, "--etcd-password-file")?,
        "--etcd-password-file",
    );
    put("etcd.ssl.tlsCACert", file(&flags.etcd_ca), "--etcd-ca");
    put("etcd.ssl.tlsCert", file(&flags.etcd_cert), "--etcd-cert");
    put("etcd.ssl.tlsKey", file(&flags.etcd_key), "--etcd-key");
    put(
        "etcd.ssl.enabled",
        some(flags.etcd_ca.is_some()),
        "--etcd-ca",
    );
    put(
        "etcd.ssl.enabled",
        some(flags.etcd_cert.is_some()),
        "--etcd-cert",
    );
    put("etcd.rootPath", flags.root.clone(), "--root");
    put(
        "etcd.metaSubPath",
        flags.meta_sub_path.clone(),
        "--meta-sub-path",
    );
    put("etcd.kvSubPath", flags.kv_sub_path.clone(), "--kv-sub-path");
    put("minio.address", flags.s3_endpoint.clone(), "--s3-endpoint");
    put("minio.region", flags.region.clone(), "--region");
    put(
        "minio.accessKeyID",
        flags.access_key.clone(),
        "--access-key",
    );
    put(
        "minio.secretAccessKey",
        secret(&flags.secret_key_file, "--secret-key-file")?,
        "--secret-key-file",
    );
    if let Some(text) = &flags.bucket {
        bucket::set(&mut layer, text, &Origin::Flag("--bucket"))?;
    }
    Ok(layer)
}
