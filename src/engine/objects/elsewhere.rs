//! Another store, named by a URI, opened with what this one was opened with. A bundle's URI never holds a secret: credentials are
//! those of the profile where the server is the same, else those that the environment gives this process.

use std::sync::Arc;

use super::{ObjectRead, ObjectWrite, Place, bad_key, open};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::ObjectKey;
use crate::engine::profile::{Elsewhere, ObjectKind, ObjectProfile, REQUEST_TIMEOUT, S3Profile};

const OWN: &str = "the profile's credentials";

impl ObjectRead {
    /// The store that `there` names. Makes no request and no folder.
    pub fn elsewhere(&self, there: &Elsewhere) -> Result<Self> {
        if let Elsewhere::Folder(dir) = there
            && !dir.is_dir()
        {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("folder {} does not exist", dir.display()),
            )
            .fix("check the path after file://"));
        }
        match self.profile_of(there)? {
            None => Ok(self.clone()),
            Some(profile) => open(&profile).map(|(read, _)| read),
        }
    }

    /// The same store with another root.
    #[must_use]
    pub fn rooted(&self, root: &str) -> Self {
        Self {
            place: Arc::new(Place {
                root: root.to_owned(),
                ..(*self.place).clone()
            }),
            ..self.clone()
        }
    }

    /// Whose credentials open `there`.
    pub fn credentials_for(&self, there: &Elsewhere) -> &'static str {
        let own = self.place.profile.as_ref().map(|p| &p.kind);
        match (own, there) {
            (_, Elsewhere::Folder(_)) => "no credentials",
            (_, Elsewhere::Here) | (Some(ObjectKind::Gcs { .. }), Elsewhere::Gcs { .. }) => OWN,
            (Some(ObjectKind::S3(own)), Elsewhere::S3 { endpoint, .. })
                if is_at(own, endpoint.as_deref()) =>
            {
                OWN
            }
            (Some(ObjectKind::Azure { account: mine, .. }), Elsewhere::Azure { account, .. })
                if account.as_ref().is_none_or(|a| a == mine) =>
            {
                OWN
            }
            (_, Elsewhere::S3 { .. }) => "the environment's AWS_… credentials",
            (_, Elsewhere::Gcs { .. }) => "the environment's GOOGLE_… credentials",
            (_, Elsewhere::Azure { .. }) => "the environment's AZURE_… credentials",
        }
    }

    /// Under which key of this store something lies that `there` and `prefix` name, if they name this very store.
    pub fn here(&self, there: &Elsewhere, prefix: &str) -> Option<String> {
        let own = self.place.profile.as_ref().map(|p| &p.kind);
        let same = match (own, there) {
            (_, Elsewhere::Here) => true,
            (Some(ObjectKind::S3(own)), Elsewhere::S3 { endpoint, bucket }) => {
                own.bucket == *bucket && is_at(own, endpoint.as_deref())
            }
            (Some(ObjectKind::Gcs { bucket: own, .. }), Elsewhere::Gcs { bucket }) => own == bucket,
            (
                Some(ObjectKind::Azure {
                    account: mine,
                    container: own,
                    ..
                }),
                Elsewhere::Azure { account, container },
            ) => own == container && account.as_ref().is_none_or(|a| a == mine),
            (Some(ObjectKind::Local { dir, .. }), Elsewhere::Folder(folder)) => {
                let below = folder.strip_prefix(dir).ok()?.to_str()?;
                let key = format!("{below}/{prefix}");
                return Some(key.trim_matches('/').to_owned());
            }
            _ => false,
        };
        same.then(|| prefix.to_owned())
    }

    /// Whether keys are absolute paths, as Milvus writes them to local storage.
    pub fn is_absolute(&self) -> bool {
        self.place.absolute.is_some()
    }

    /// A key below the folder or bucket that this store is: absolute where its keys are.
    pub fn key(&self, below: &str) -> Result<ObjectKey> {
        let key = self.key_of(below.trim_matches('/'));
        if below.trim_matches('/').is_empty() {
            return Err(bad_key(&key, "it is empty"));
        }
        self.path(&key)?;
        Ok(key)
    }

    /// `None`: this very store.
    fn profile_of(&self, there: &Elsewhere) -> Result<Option<ObjectProfile>> {
        let own = self.place.profile.as_ref().map(|p| &p.kind);
        let kind = match there {
            Elsewhere::Here => return Ok(None),
            Elsewhere::Folder(dir) => ObjectKind::Local {
                dir: dir.clone(),
                absolute: false,
            },
            Elsewhere::S3 { endpoint, bucket } => {
                ObjectKind::S3(s3(own, endpoint.as_deref(), bucket))
            }
            Elsewhere::Gcs { bucket } => {
                let (json, endpoint) = match own {
                    Some(ObjectKind::Gcs {
                        credential_json,
                        endpoint,
                        ..
                    }) => (credential_json.clone(), endpoint.clone()),
                    _ => (None, None),
                };
                ObjectKind::Gcs {
                    bucket: bucket.clone(),
                    credential_json: json,
                    endpoint,
                    request_timeout: REQUEST_TIMEOUT,
                }
            }
            Elsewhere::Azure { account, container } => azure(own, account.as_deref(), container)?,
        };
        let root = String::new();
        Ok(Some(ObjectProfile { kind, root }))
    }
}

/// Whether the own server is the one at `endpoint`; without one it is.
fn is_at(own: &S3Profile, endpoint: Option<&str>) -> bool {
    fn host(url: &str) -> &str {
        let url = url.trim_end_matches('/');
        url.split_once("://").map_or(url, |(_, host)| host)
    }
    endpoint.is_none_or(|e| own.endpoint.as_deref().is_some_and(|o| host(o) == host(e)))
}

/// Own credentials only for the own server: they are never sent anywhere else.
fn s3(own: Option<&ObjectKind>, endpoint: Option<&str>, bucket: &str) -> S3Profile {
    match own {
        Some(ObjectKind::S3(own)) if is_at(own, endpoint) => S3Profile {
            bucket: bucket.to_owned(),
            ..own.clone()
        },
        _ => S3Profile {
            endpoint: endpoint.map(str::to_owned),
            bucket: bucket.to_owned(),
            region: std::env::var("AWS_REGION")
                .or_else(|_| std::env::var("AWS_DEFAULT_REGION"))
                .unwrap_or_default(),
            credentials: None,
            virtual_host: false,
            ca: None,
            request_timeout: REQUEST_TIMEOUT,
        },
    }
}

fn azure(own: Option<&ObjectKind>, account: Option<&str>, container: &str) -> Result<ObjectKind> {
    if let Some(ObjectKind::Azure {
        account: mine,
        key,
        endpoint,
        request_timeout,
        ..
    }) = own
        && account.is_none_or(|a| a == mine)
    {
        return Ok(ObjectKind::Azure {
            account: mine.clone(),
            key: key.clone(),
            container: container.to_owned(),
            endpoint: endpoint.clone(),
            request_timeout: *request_timeout,
        });
    }
    let named = account
        .map(str::to_owned)
        .or_else(|| std::env::var("AZURE_STORAGE_ACCOUNT_NAME").ok());
    let account = named.ok_or_else(|| {
        Error::new(ErrorKind::Config, "the URI names no Azure account")
            .fix("write azure://ACCOUNT.blob.core.windows.net/CONTAINER/…, or set AZURE_STORAGE_ACCOUNT_NAME")
    })?;
    Ok(ObjectKind::Azure {
        account,
        key: None,
        container: container.to_owned(),
        endpoint: None,
        request_timeout: REQUEST_TIMEOUT,
    })
}

impl ObjectWrite {
    /// The store that `there` names. Makes no request; a folder is made.
    pub fn elsewhere(&self, there: &Elsewhere) -> Result<Self> {
        match self.read.profile_of(there)? {
            None => Ok(self.clone()),
            Some(profile) => {
                let (_, write) = open(&profile)?;
                Ok(write.with_limits(self.limits))
            }
        }
    }
}
