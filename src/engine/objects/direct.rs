//! The few S3 requests that the client library has no call for: copying from another bucket, copying a part, listing uploads that
//! were never finished. The library signs them and sends them: credentials, endpoint, TLS and proxy are its own.
//!
//! Each is sent once. A copy is repeated by whoever asked for it, who then also hears of each `503 SlowDown`; the library's own
//! repetition would hide three of four.

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ClientOptions, Error, Result};
use std::time::Duration;
use url::Url;

use super::attempts::CountingConnector;
use super::errors::{ERROR_BODY, NO_SUCCESS, element};
use super::open::region;
use crate::engine::profile::S3Profile;

const STORE: &str = "S3";
/// Uploads asked for at once; a server may give fewer.
const PAGE: &str = "1000";

/// A bucket of an S3 server.
#[derive(Debug)]
pub(super) struct Direct {
    /// The library's own client of it.
    pub(super) store: Arc<AmazonS3>,
    http: HttpClient,
    bucket: String,
    region: String,
    virtual_host: bool,
    realm: Realm,
}

/// Which server, and as whom. Between buckets of one realm the server copies by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Realm {
    endpoint: Option<String>,
    /// Access key id; `None` is the environment's identity.
    identity: Option<String>,
}

/// An upload that was begun and neither completed nor aborted.
pub(super) struct Upload {
    pub(super) path: Path,
    pub(super) id: String,
    /// As the server wrote it, RFC 3339.
    pub(super) since: String,
}

impl Direct {
    pub(super) fn new(
        store: Arc<AmazonS3>,
        options: &ClientOptions,
        profile: &S3Profile,
    ) -> Result<Self> {
        let endpoint = profile.endpoint.as_deref();
        Ok(Self {
            store,
            http: CountingConnector.connect(options)?,
            bucket: profile.bucket.clone(),
            region: region(profile).to_owned(),
            virtual_host: profile.virtual_host,
            realm: Realm {
                endpoint: endpoint.map(|e| e.trim_end_matches('/').to_owned()),
                identity: profile.credentials.as_ref().map(|(id, _)| id.clone()),
            },
        })
    }

    /// Whether the server of this bucket can be told to copy from that one.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.realm == other.realm
    }

    /// Copies one object in one request. The entity tag that the server gave the copy, if it said so.
    pub(super) async fn copy(
        &self,
        source: (&Self, &Path),
        target: &Path,
    ) -> Result<Option<String>> {
        let headers = [("x-amz-copy-source", source.0.name_of(source.1).await?)];
        let body = self.send(Method::PUT, target, &[], &headers).await?;
        Ok(element(&body, "ETag"))
    }

    /// Copies bytes `range` of an object as part `index` of an upload. `tag`: only while the source has this entity tag, so that
    /// no object is put together from two states of its source.
    pub(super) async fn copy_part(
        &self,
        source: (&Self, &Path),
        tag: Option<&str>,
        range: &Range<u64>,
        (target, upload, index): (&Path, &str, usize),
    ) -> Result<PartId> {
        let mut headers = vec![
            ("x-amz-copy-source", source.0.name_of(source.1).await?),
            (
                "x-amz-copy-source-range",
                format!("bytes={}-{}", range.start, range.end - 1),
            ),
        ];
        headers.extend(tag.map(|tag| ("x-amz-copy-source-if-match", tag.to_owned())));
        let query = [
            ("partNumber", (index + 1).to_string()),
            ("uploadId", upload.to_owned()),
        ];
        let body = self.send(Method::PUT, target, &query, &headers).await?;
        match element(&body, "ETag") {
            Some(content_id) => Ok(PartId { content_id }),
            None => Err(said(format!("{ERROR_BODY}{body}"))),
        }
    }

    /// Uploads below `prefix` that were never finished.
    pub(super) async fn uploads(&self, prefix: &str) -> Result<Vec<Upload>> {
        let mut found = Vec::new();
        let (mut key, mut id) = (String::new(), String::new());
        loop {
            let mut query = vec![
                ("uploads", String::new()),
                ("prefix", prefix.to_owned()),
                ("max-uploads", PAGE.to_owned()),
            ];
            if !key.is_empty() {
                query.push(("key-marker", key.clone()));
                query.push(("upload-id-marker", id.clone()));
            }
            let body = self
                .send(Method::GET, &Path::default(), &query, &[])
                .await?;
            for part in body.split("<Upload>").skip(1) {
                let (Some(path), Some(id)) = (element(part, "Key"), element(part, "UploadId"))
                else {
                    return Err(said(format!("{ERROR_BODY}{part}")));
                };
                found.push(Upload {
                    path: Path::parse(path).map_err(|e| said(e.to_string()))?,
                    id,
                    since: element(part, "Initiated").unwrap_or_default(),
                });
            }
            let next = element(&body, "NextKeyMarker").unwrap_or_default();
            let more = element(&body, "IsTruncated").is_some_and(|t| t == "true");
            // A server that says "more" without saying where would be asked for ever.
            if !more || next.is_empty() || next == key {
                return Ok(found);
            }
            key = next;
            id = element(&body, "NextUploadIdMarker").unwrap_or_default();
        }
    }

    /// Gives up an upload. One that is gone was what was asked for.
    pub(super) async fn abort(&self, path: &Path, upload: &str) -> Result<()> {
        match self.store.abort_multipart(path, &upload.to_owned()).await {
            Err(Error::NotFound { .. }) => Ok(()),
            done => done,
        }
    }

    /// `bucket/key` as a copy names its source, percent-encoded as in a request's own path.
    async fn name_of(&self, path: &Path) -> Result<String> {
        let url = self.url(path).await?;
        let key = url.path().trim_start_matches('/');
        Ok(if self.virtual_host {
            format!("{}/{key}", self.bucket)
        } else {
            key.to_owned()
        })
    }

    /// Where the library would send a request about `path`.
    async fn url(&self, path: &Path) -> Result<Url> {
        let mut url = self
            .store
            .signed_url(Method::GET, path, Duration::from_secs(1))
            .await?;
        url.set_query(None);
        Ok(url)
    }

    /// One request without a body; the body of a good answer. What is not one becomes the error that the library would have made
    /// of it, so that there is one diagnosis.
    async fn send(
        &self,
        method: Method,
        path: &Path,
        query: &[(&str, String)],
        headers: &[(&'static str, String)],
    ) -> Result<String> {
        let mut url = self.url(path).await?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method;
        *request.uri_mut() = url.as_str().parse().map_err(generic)?;
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(generic)?;
            request.headers_mut().insert(*name, value);
        }
        let credential = self.store.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let answer = self.http.execute(request).await.map_err(generic)?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(generic)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if !status.is_success() {
            let line = format!("{NO_SUCCESS}{}: {body}", status.as_str());
            return Err(match status {
                StatusCode::NOT_FOUND => Error::NotFound {
                    path: path.to_string(),
                    source: line.into(),
                },
                _ => said(line),
            });
        }
        // S3 answers 200 before a copy is done; a failure after that is in the body.
        if body.contains("<Error>") {
            return Err(said(format!("{ERROR_BODY}{body}")));
        }
        Ok(body)
    }
}

fn said(line: String) -> Error {
    generic_boxed(line.into())
}

fn generic(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    generic_boxed(Box::new(e))
}

fn generic_boxed(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic {
        store: STORE,
        source,
    }
}
