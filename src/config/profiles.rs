//! Named profiles: `[profiles.NAME]` in one TOML file. A key that is not known is an error, because a misspelt
//! `readonly` would open production for writing.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::bucket;
use super::keys;
use super::origin::{Layer, Origin, Value};
use crate::engine::error::{Error, ErrorKind, Result};

/// A profile as written.
#[derive(Default)]
pub(super) struct FileProfile {
    /// Its name.
    pub(super) name: String,
    /// Milvus's keys that it sets.
    pub(super) layer: Layer,
    /// Milvus's configuration beside it.
    pub(super) milvus_yaml: Option<(PathBuf, Origin)>,
    /// An etcd dump.
    pub(super) dump: Option<(PathBuf, Origin)>,
    /// Folder of the embedded store.
    pub(super) data_dir: Option<(PathBuf, Origin)>,
    /// Colour of the header.
    pub(super) color: Option<String>,
    /// Whether it opens read only.
    pub(super) readonly: Option<(bool, Origin)>,
}

/// Our key, the Milvus key it sets, and what it holds.
const KEYS: &[(&str, &str, Holds)] = &[
    ("etcd", "etcd.endpoints", Holds::Texts),
    ("etcd_user", "etcd.auth.userName", Holds::Text),
    ("etcd_password", "etcd.auth.password", Holds::Text),
    ("etcd_password_file", "etcd.auth.password", Holds::Secret),
    ("etcd_ca", "etcd.ssl.tlsCACert", Holds::Path),
    ("etcd_cert", "etcd.ssl.tlsCert", Holds::Path),
    ("etcd_key", "etcd.ssl.tlsKey", Holds::Path),
    ("etcd_timeout_ms", "etcd.requestTimeout", Holds::Number),
    ("root", "etcd.rootPath", Holds::Text),
    ("meta_sub_path", "etcd.metaSubPath", Holds::Text),
    ("kv_sub_path", "etcd.kvSubPath", Holds::Text),
    ("bucket", "", Holds::Bucket),
    ("s3_endpoint", "minio.address", Holds::Text),
    ("s3_ca", "minio.ssl.tlsCACert", Holds::Path),
    ("s3_timeout_ms", "minio.requestTimeoutMs", Holds::Number),
    ("region", "minio.region", Holds::Text),
    ("access_key", "minio.accessKeyID", Holds::Text),
    ("secret_key", "minio.secretAccessKey", Holds::Text),
    ("secret_key_file", "minio.secretAccessKey", Holds::Secret),
    (
        "gcp_credential_file",
        "minio.gcpCredentialJSON",
        Holds::Secret,
    ),
    ("use_iam", "minio.useIAM", Holds::Switch),
    ("virtual_host", "minio.useVirtualHost", Holds::Switch),
    ("cloud_provider", "minio.cloudProvider", Holds::Text),
    ("milvus_yaml", "", Holds::Path),
    ("dump", "", Holds::Path),
    ("data_dir", "", Holds::Path),
    ("color", "", Holds::Text),
    ("readonly", "", Holds::Switch),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Text,
    Texts,
    Number,
    Switch,
    /// A file or folder, relative to the configuration file.
    Path,
    /// A file that holds a secret, relative to the configuration file.
    Secret,
    Bucket,
}

/// Reads the profile `wanted`, or the one that `default_profile` names; `None` when neither is given. A missing file is an error
/// only when a profile was asked for.
pub(super) fn read(
    file: &Path,
    wanted: Option<(&str, &Origin)>,
    must_exist: bool,
) -> Result<Option<FileProfile>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => {
            return match wanted {
                None => Ok(None),
                Some((name, origin)) => Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "{origin}: profile {name:?} is asked for, but {} does not exist",
                        file.display()
                    ),
                )
                .fix(format!(
                    "write [profiles.{name}] into that file, or name the file in $FALCONER_CONFIG"
                ))),
            };
        }
        Err(e) => {
            return Err(Error::new(
                ErrorKind::Config,
                format!("{} cannot be read: {e}", file.display()),
            ));
        }
    };
    Reader { file, text: &text }.read(wanted)
}

struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn read(&self, wanted: Option<(&str, &Origin)>) -> Result<Option<FileProfile>> {
        let document = DeTable::parse(self.text).map_err(|e| {
            let line = e.span().map_or(1, |s| self.line(s.start));
            let why = e.message().split_whitespace().collect::<Vec<_>>().join(" ");
            self.error(line, &why)
        })?;
        let mut default = None;
        let mut profiles = None;
        for (key, value) in document.get_ref() {
            match (&**key.get_ref(), value.get_ref()) {
                ("default_profile", DeValue::String(name)) => {
                    default = Some((name.to_string(), self.line(key.span().start)));
                }
                ("profiles", DeValue::Table(table)) => profiles = Some(table),
                ("default_profile", _) => return Err(self.wrong(key, "a profile's name")),
                ("profiles", _) => return Err(self.wrong(key, "tables [profiles.NAME]")),
                (other, _) => {
                    return Err(self.unknown(key, other, &["default_profile", "profiles"]));
                }
            }
        }
        // Every profile is checked, so that a slip shows before the night it is needed.
        let mut all = Vec::new();
        for (name, value) in profiles.into_iter().flatten() {
            let DeValue::Table(table) = value.get_ref() else {
                return Err(self.wrong(name, "a table"));
            };
            all.push((name.get_ref().to_string(), table));
            self.check(table)?;
        }
        let (name, from) = match (wanted, default) {
            (Some((name, origin)), _) => (name.to_owned(), origin.to_string()),
            (None, Some((name, line))) => (name, format!("{}:{line}", self.file.display())),
            (None, None) => return Ok(None),
        };
        let Some((_, table)) = all.iter().find(|(n, _)| *n == name) else {
            let names: Vec<&str> = all.iter().map(|(n, _)| n.as_str()).collect();
            let error = Error::new(
                ErrorKind::Config,
                format!("{from}: {} has no profile {name:?}", self.file.display()),
            );
            return Err(match keys::nearest(&name, &names) {
                Some(near) => error.fix(format!("did you mean {near:?}?")),
                None if names.is_empty() => error.fix(format!("write [profiles.{name}]")),
                None => error.fix(format!("it has: {}", names.join(", "))),
            });
        };
        self.profile(&name, table).map(Some)
    }

    /// Keys and types of one profile.
    fn check(&self, table: &DeTable<'_>) -> Result<()> {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let Some((_, _, holds)) = KEYS.iter().find(|(k, ..)| *k == name) else {
                let all: Vec<&str> = KEYS.iter().map(|(k, ..)| *k).collect();
                return Err(self.unknown(key, name, &all));
            };
            match (holds, value.get_ref()) {
                (Holds::Switch, DeValue::Boolean(_))
                | (Holds::Number, DeValue::Integer(_))
                | (
                    Holds::Text | Holds::Texts | Holds::Path | Holds::Secret | Holds::Bucket,
                    DeValue::String(_),
                ) => {}
                (Holds::Texts, DeValue::Array(items))
                    if items
                        .iter()
                        .all(|i| matches!(i.get_ref(), DeValue::String(_))) => {}
                (Holds::Switch, _) => return Err(self.wrong(key, "true or false")),
                (Holds::Number, _) => return Err(self.wrong(key, "a whole number")),
                (Holds::Texts, _) => return Err(self.wrong(key, "a text or a list of texts")),
                _ => return Err(self.wrong(key, "a text in quotes")),
            }
        }
        Ok(())
    }

    fn profile(&self, name: &str, table: &DeTable<'_>) -> Result<FileProfile> {
        let mut profile = FileProfile {
            name: name.to_owned(),
            ..FileProfile::default()
        };
        for (key, value) in table {
            let ours: &str = key.get_ref();
            let Some((_, milvus, holds)) = KEYS.iter().find(|(k, ..)| *k == ours) else {
                continue;
            };
            let origin = Origin::ProfileFile {
                path: self.file.to_owned(),
                line: self.line(key.span().start),
            };
            let text = plain(value.get_ref());
            let path = || {
                self.file
                    .parent()
                    .map_or(PathBuf::from(&text), |p| p.join(&text))
            };
            match ours {
                "milvus_yaml" => profile.milvus_yaml = Some((path(), origin)),
                "dump" => profile.dump = Some((path(), origin)),
                "data_dir" => profile.data_dir = Some((path(), origin)),
                "color" => profile.color = Some(text),
                "readonly" => profile.readonly = Some((text == "true", origin)),
                "bucket" => bucket::set(&mut profile.layer, &text, &origin)?,
                _ => {
                    let text = match holds {
                        Holds::Path => path().display().to_string(),
                        Holds::Secret => secret_file(&path(), &origin, ours)?,
                        _ => text,
                    };
                    let implied = match ours {
                        "etcd_user" => Some("etcd.auth.enabled"),
                        "etcd_ca" | "etcd_cert" => Some("etcd.ssl.enabled"),
                        _ => None,
                    };
                    if let Some(implied) = implied {
                        profile.layer.insert(
                            implied,
                            Value {
                                text: "true".into(),
                                origin: origin.clone(),
                            },
                        );
                    }
                    profile.layer.insert(milvus, Value { text, origin });
                }
            }
        }
        Ok(profile)
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.get(..offset).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }

    fn error(&self, line: usize, why: &str) -> Error {
        Error::new(
            ErrorKind::Config,
            format!("{}:{line}: {why}", self.file.display()),
        )
    }

    fn wrong<T: AsRef<str>>(&self, key: &Spanned<T>, wanted: &str) -> Error {
        let line = self.line(key.span().start);
        self.error(
            line,
            &format!("{} must be {wanted}", key.get_ref().as_ref()),
        )
    }

    fn unknown<T: AsRef<str>>(&self, key: &Spanned<T>, name: &str, all: &[&str]) -> Error {
        let line = self.line(key.span().start);
        let error = self.error(line, &format!("unknown key {name:?}"));
        match keys::nearest(name, all) {
            Some(near) => error.fix(format!("did you mean {near:?}?")),
            None => error.fix(format!("known keys: {}", all.join(", "))),
        }
    }
}

/// The text of a checked value.
fn plain(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Array(items) => items
            .iter()
            .map(|i| plain(i.get_ref()))
            .collect::<Vec<_>>()
            .join(","),
        _ => String::new(),
    }
}

/// The secret in a file, without the line end that editors add.
pub(super) fn secret_file(file: &Path, origin: &Origin, name: &str) -> Result<String> {
    std::fs::read_to_string(file)
        .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
        .map_err(|e| {
            Error::new(
                ErrorKind::Config,
                format!("{origin}: {name} {} cannot be read: {e}", file.display()),
            )
        })
}
