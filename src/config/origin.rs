//! Values that know where they come from, in layers of falling priority.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::keys::{self, Key};
use crate::engine::error::{Error, ErrorKind, Result};

/// What stands for a secret wherever it would be shown (law 11).
pub const MASK: &str = "•••";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag, e.g. `--etcd`.
    Flag(&'static str),
    /// An environment variable.
    Env(String),
    /// A named profile of our configuration file.
    ProfileFile {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// A file of Milvus's configuration.
    MilvusYaml {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// Milvus's dynamic configuration in etcd.
    EtcdConfig {
        /// The whole etcd key.
        key: String,
    },
    /// Milvus's or our default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Env(name) => write!(f, "${name}"),
            Self::ProfileFile { path, line } | Self::MilvusYaml { path, line } => {
                write!(f, "{}:{line}", path.display())
            }
            Self::EtcdConfig { key } => write!(f, "etcd {key}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One resolved setting, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Milvus's dotted name, or our own without a dot.
    pub key: &'static str,
    /// The value; [`MASK`] for a secret.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// A value as somebody wrote it.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// One source.
pub(super) type Layer = BTreeMap<&'static str, Value>;

/// All sources, highest priority first, and what was read from them.
pub(super) struct Layers {
    layers: Vec<Layer>,
    seen: BTreeMap<&'static str, Setting>,
}

impl Layers {
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        Self {
            layers,
            seen: BTreeMap::new(),
        }
    }

    /// The settings that were read, in the order of their names, ours first.
    pub(super) fn into_settings(self) -> Vec<Setting> {
        let mut all: Vec<Setting> = self.seen.into_values().collect();
        all.sort_by_key(|s| (s.key.contains('.'), s.key));
        all
    }

    /// What somebody wrote for `name`, without noting that it was read.
    pub(super) fn written(&self, name: &str) -> Option<&Value> {
        self.layers.iter().find_map(|layer| layer.get(name))
    }

    /// What somebody wrote for `name`, or its default.
    pub(super) fn get(&mut self, name: &'static str) -> Value {
        let key = keys::known(name);
        let value = self.written(name).cloned().unwrap_or_else(|| Value {
            text: key.map_or(String::new(), |k| k.default.to_owned()),
            origin: Origin::Default,
        });
        self.note(name, key, &value);
        value
    }

    /// Notes a setting of our own.
    pub(super) fn show(&mut self, name: &'static str, text: impl fmt::Display, origin: Origin) {
        let value = Value {
            text: text.to_string(),
            origin,
        };
        self.note(name, keys::known(name), &value);
    }

    fn note(&mut self, name: &'static str, key: Option<&Key>, value: &Value) {
        let hide = key.is_some_and(|k| k.secret) && !value.text.is_empty();
        let setting = Setting {
            key: name,
            value: if hide {
                MASK.to_owned()
            } else {
                without_password(&value.text)
            },
            origin: value.origin.clone(),
        };
        self.seen.insert(name, setting);
    }

    /// A switch, read as Go reads one.
    pub(super) fn switch(&mut self, name: &'static str) -> Result<bool> {
        let value = self.get(name);
        truth(&value.text).ok_or_else(|| value.wrong(name, "true or false"))
    }

    /// A length of time in units of `unit_ms` milliseconds, as Milvus reads it: a whole number, 0 for none. Answers milliseconds.
    pub(super) fn span_ms(&mut self, name: &'static str, unit_ms: i64) -> Result<i64> {
        let value = self.get(name);
        let number = value.text.trim().parse::<i64>().ok().filter(|n| *n >= 0);
        number
            .and_then(|n| n.checked_mul(unit_ms))
            .ok_or_else(|| value.wrong(name, "a whole number that is not below 0"))
    }

    /// Milliseconds.
    pub(super) fn millis(&mut self, name: &'static str) -> Result<std::time::Duration> {
        let value = self.get(name);
        match value.text.trim().parse::<u64>() {
            Ok(ms) if ms > 0 => Ok(std::time::Duration::from_millis(ms)),
            _ => Err(value.wrong(name, "a number of milliseconds above 0")),
        }
    }
}

impl Value {
    /// The error of a value that cannot be used.
    pub(super) fn wrong(&self, name: &str, wanted: &str) -> Error {
        let secret = keys::known(name).is_some_and(|k| k.secret);
        let shown = if secret {
            MASK.to_owned()
        } else {
            without_password(&self.text)
        };
        Error::new(
            ErrorKind::Config,
            format!("{}: {name} is {shown:?}, not {wanted}", self.origin),
        )
    }

    pub(super) fn error(&self, name: &str, why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Config, format!("{}: {name} {why}", self.origin))
    }
}

/// A switch as Go's `strconv.ParseBool` reads it.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Cuts `user:password@` out of every URL of a comma-separated list.
pub(super) fn without_password(text: &str) -> String {
    text.split(',')
        .map(|one| match (one.find("://"), one.rfind('@')) {
            (Some(scheme), Some(at)) if at > scheme => {
                format!("{}{MASK}{}", &one[..scheme + 3], &one[at..])
            }
            _ => one.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}
