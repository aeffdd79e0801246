//! From a profile to a store. Makes no request.

use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::attempts::CountingConnector;
use super::direct::Direct;
use super::{Family, Native, ObjectRead, ObjectWrite, Place, capabilities};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::profile::{ObjectKind, ObjectProfile, S3Profile};

/// Deadline of a connect.
const CONNECT: Duration = Duration::from_secs(5);
/// A server-side copy answers only when it is done: at 10 MB/s, 5 GiB take nine minutes.
const COPY_SILENCE: Duration = Duration::from_mins(10);
/// Retries of one call, about 100, 200 and 400 ms apart: a server that is down is named within 2 s.
const RETRIES: usize = 3;
/// Region when `minio.region` is empty: what every S3-compatible server accepts.
const DEFAULT_REGION: &str = "us-east-1";

/// Opens the store of a profile. Makes no request. A folder that stands for a bucket is made when it is missing; the
/// folder of a real Milvus (`localStorage.path`) never is.
pub fn open(profile: &ObjectProfile) -> Result<(ObjectRead, ObjectWrite)> {
    let (mut read, mut write) = build(profile)?;
    let place = Arc::new(Place {
        profile: Some(profile.clone()),
        ..(*read.place).clone()
    });
    (read.place, write.read.place) = (place.clone(), place);
    Ok((read, write))
}

fn build(profile: &ObjectProfile) -> Result<(ObjectRead, ObjectWrite)> {
    let root = profile.root.trim_matches('/').to_owned();
    match &profile.kind {
        ObjectKind::Memory => {
            let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
            let place = Place::plain("memory", root, Family::Memory);
            Ok(capabilities(store.clone(), Native::Store(store), place))
        }
        ObjectKind::Local { dir, absolute } => local(dir, *absolute, root),
        ObjectKind::S3(s3) => {
            let endpoint = s3.endpoint.as_deref().unwrap_or("AWS");
            let place = Place::remote(&s3.bucket, endpoint, root);
            remote(place, s3.request_timeout, |silence| {
                let (store, options) = s3_store(s3, silence)?;
                let store = Arc::new(store);
                let direct = Direct::new(store.clone(), &options, s3)?;
                Ok((store, Native::S3(Arc::new(direct))))
            })
        }
        ObjectKind::Azure {
            account,
            key,
            container,
            endpoint,
            request_timeout,
        } => {
            let place = Place::remote(container, endpoint.as_deref().unwrap_or("Azure"), root);
            remote(place, *request_timeout, |silence| {
                let (key, endpoint) = (key.as_ref(), endpoint.as_deref());
                azure_store(account, key, container, endpoint, silence).map(whole)
            })
        }
        ObjectKind::Gcs {
            bucket,
            credential_json,
            endpoint,
            request_timeout,
        } => {
            let place = Place::remote(bucket, endpoint.as_deref().unwrap_or("Google"), root);
            remote(place, *request_timeout, |silence| {
                let (json, endpoint) = (credential_json.as_ref(), endpoint.as_deref());
                gcs_store(bucket, json, endpoint, silence).map(whole)
            })
        }
    }
}

/// A store and what it can do by itself.
type Built = (Arc<dyn ObjectStore>, Native);

/// A store that copies objects of any size in one request.
fn whole(store: Arc<dyn ObjectStore>) -> Built {
    (store.clone(), Native::Store(store))
}

/// A remote store twice: as patient as asked for, and with the patience of a copy.
fn remote(
    place: Place,
    silence: Duration,
    build: impl Fn(Duration) -> object_store::Result<Built>,
) -> Result<(ObjectRead, ObjectWrite)> {
    let build = |silence| build(silence).map_err(|e| refused(&place, &e));
    let (store, _) = build(silence)?;
    let (_, native) = build(silence.max(COPY_SILENCE))?;
    Ok(capabilities(store, native, place))
}

fn refused(place: &Place, cause: &(dyn std::error::Error + 'static)) -> Error {
    // The builder's own words may quote a credential document: only the part before it is repeated.
    let said = cause.to_string();
    let said = said.split(['{', '\n']).next().unwrap_or_default().trim();
    Error::new(
        ErrorKind::Config,
        format!("the object store cannot be set up: {said}"),
    )
    .with("bucket", &place.bucket)
    .with("endpoint", &place.endpoint)
    .fix("check minio.address, minio.bucketName, minio.accessKeyID and minio.secretAccessKey")
}

fn local(dir: &FsPath, absolute: bool, root: String) -> Result<(ObjectRead, ObjectWrite)> {
    let named = dir.display().to_string();
    let key = if absolute {
        "localStorage.path"
    } else {
        "--bucket"
    };
    let fail = |e: std::io::Error| {
        Error::new(
            ErrorKind::Config,
            format!("folder {named} cannot be used as a bucket: {e}"),
        )
        .fix(format!("check {key}"))
    };
    if absolute {
        std::fs::read_dir(dir).map_err(fail)?;
    } else {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    let store = LocalFileSystem::new_with_prefix(dir)
        .map_err(|e| fail(std::io::Error::other(e)))?
        .with_fsync(true);
    let store = Arc::new(store);
    let absolute = absolute.then(|| named.trim_end_matches('/').to_owned());
    let root = absolute.clone().unwrap_or(root);
    let place = Place {
        absolute,
        ..Place::plain(&named, root, Family::Local)
    };
    Ok(capabilities(store.clone(), Native::Folder(store), place))
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: RETRIES,
        retry_timeout: Duration::from_secs(30),
    }
}

/// `silence` bounds each wait for the server, not the whole transfer: a 1 GiB object may take its time.
fn client(endpoint: Option<&str>, silence: Duration) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(endpoint.is_some_and(|e| e.starts_with("http://")))
        .with_connect_timeout(CONNECT)
        .with_timeout_disabled()
        .with_read_timeout(silence)
}

fn setup(text: String) -> object_store::Error {
    object_store::Error::Generic {
        store: "object store",
        source: text.into(),
    }
}

fn s3_store(s3: &S3Profile, silence: Duration) -> object_store::Result<(AmazonS3, ClientOptions)> {
    let mut options = client(s3.endpoint.as_deref(), silence);
    if let Some(file) = &s3.ca {
        let pem = std::fs::read(file).map_err(|e| {
            setup(format!(
                "minio.ssl.tlsCACert {} cannot be read: {e}",
                file.display()
            ))
        })?;
        for certificate in Certificate::from_pem_bundle(&pem)? {
            options = options.with_root_certificate(certificate);
        }
    }
    let mut builder = match &s3.credentials {
        Some((id, secret)) => AmazonS3Builder::new()
            .with_access_key_id(id)
            .with_secret_access_key(secret.expose_secret()),
        None => environment_identity(),
    };
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(if s3.virtual_host {
            with_bucket_host(endpoint, &s3.bucket)?
        } else {
            endpoint.trim_end_matches('/').to_owned()
        });
    }
    let store = builder
        .with_bucket_name(&s3.bucket)
        .with_region(region(s3))
        .with_virtual_hosted_style_request(s3.virtual_host)
        .with_client_options(options.clone())
        .with_retry(retries())
        .with_http_connector(CountingConnector)
        // Not every S3-compatible server has the bulk form.
        .with_disable_bulk_delete(true)
        .build()?;
    Ok((store, options))
}

pub(super) fn region(s3: &S3Profile) -> &str {
    if s3.region.is_empty() {
        DEFAULT_REGION
    } else {
        &s3.region
    }
}

/// The identity that the environment gives: variables, web identity, container, machine. Only the identity is taken from
/// it; the place always comes from the profile.
fn environment_identity() -> AmazonS3Builder {
    use AmazonS3ConfigKey as Key;
    const IDENTITY: [Key; 9] = [
        Key::AccessKeyId,
        Key::SecretAccessKey,
        Key::Token,
        Key::ContainerCredentialsRelativeUri,
        Key::ContainerCredentialsFullUri,
        Key::ContainerAuthorizationTokenFile,
        Key::WebIdentityTokenFile,
        Key::RoleArn,
        Key::RoleSessionName,
    ];
    let found = AmazonS3Builder::from_env();
    IDENTITY
        .into_iter()
        .fold(AmazonS3Builder::new(), |builder, key| {
            match found.get_config_value(&key) {
                Some(value) => builder.with_config(key, value),
                None => builder,
            }
        })
}

/// `https://host` becomes `https://bucket.host`, which is what the client expects of a virtual-hosted endpoint.
fn with_bucket_host(endpoint: &str, bucket: &str) -> object_store::Result<String> {
    let mut url = Url::parse(endpoint)
        .map_err(|e| setup(format!("minio.address {endpoint} is no URL: {e}")))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let prefix = format!("{bucket}.");
    if !host.starts_with(&prefix) {
        url.set_host(Some(&format!("{prefix}{host}")))
            .map_err(|e| {
                setup(format!(
                    "minio.useVirtualHost needs a host name, not {host}: {e}"
                ))
            })?;
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn azure_store(
    account: &str,
    key: Option<&SecretString>,
    container: &str,
    endpoint: Option<&str>,
    silence: Duration,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    use AzureConfigKey as Key;
    const IDENTITY: [Key; 9] = [
        Key::ClientId,
        Key::ClientSecret,
        Key::AuthorityId,
        Key::AuthorityHost,
        Key::SasKey,
        Key::Token,
        Key::MsiEndpoint,
        Key::FederatedTokenFile,
        Key::UseAzureCli,
    ];
    let mut builder = MicrosoftAzureBuilder::new();
    if let Some(key) = key {
        builder = builder.with_access_key(key.expose_secret());
    } else {
        let found = MicrosoftAzureBuilder::from_env();
        for key in IDENTITY {
            if let Some(value) = found.get_config_value(&key) {
                builder = builder.with_config(key, value);
            }
        }
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let store = builder
        .with_account(account)
        .with_container_name(container)
        .with_client_options(client(endpoint, silence))
        .with_retry(retries())
        .with_http_connector(CountingConnector)
        .build()?;
    Ok(Arc::new(store))
}

fn gcs_store(
    bucket: &str,
    credential_json: Option<&SecretString>,
    endpoint: Option<&str>,
    silence: Duration,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    use GoogleConfigKey as Key;
    const IDENTITY: [Key; 3] = [
        Key::ServiceAccount,
        Key::ServiceAccountKey,
        Key::ApplicationCredentials,
    ];
    let mut builder = GoogleCloudStorageBuilder::new();
    if let Some(json) = credential_json {
        builder = builder.with_service_account_key(json.expose_secret());
    } else {
        let found = GoogleCloudStorageBuilder::from_env();
        for key in IDENTITY {
            if let Some(value) = found.get_config_value(&key) {
                builder = builder.with_config(key, value);
            }
        }
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    let store = builder
        .with_bucket_name(bucket)
        .with_client_options(client(endpoint, silence))
        .with_retry(retries())
        .with_http_connector(CountingConnector)
        .build()?;
    Ok(Arc::new(store))
}
