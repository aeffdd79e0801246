//! What an object store's failure means and which configuration key changes it.

use std::error::Error as StdError;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use super::{Family, Place};
use crate::engine::error::{Error, ErrorKind};

/// Longest piece of a server's own words that is repeated.
const QUOTE: usize = 160;

/// How the client begins the line about an answer that is not a success, and about one whose body says so.
pub(super) const NO_SUCCESS: &str = "Server returned non-2xx status code: ";
pub(super) const ERROR_BODY: &str = "Server returned error response: ";

/// The cause of a failure, as far as the server or the network named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    NoSuchObject,
    NoSuchBucket,
    AccessDenied,
    WrongSecret,
    UnknownAccessKey,
    ExpiredToken,
    NoIdentity,
    WrongRegion(Option<String>),
    ClockSkew,
    TooLargeToCopy,
    Exists,
    Busy,
    Refused,
    UnknownHost,
    Tls,
    Timeout,
    Broken,
    NoSpace,
    NotSupported,
    BadKey,
    ServerError,
    Other,
}

/// A cause and one line of detail without secrets.
#[derive(Clone, Debug)]
pub(super) struct Diagnosis {
    pub(super) cause: Cause,
    pub(super) detail: String,
    /// The server answered that it does not take this request (400, 405), for a reason that has no name here.
    pub(super) rejected: bool,
}

/// Looks through the error and everything below it.
pub(super) fn diagnose(e: &object_store::Error) -> Diagnosis {
    let mut answer = None;
    let mut bare_redirect = false;
    let mut http: Option<HttpErrorKind> = None;
    let mut os: Option<(io::ErrorKind, String)> = None;
    let mut last = String::new();
    let mut everything = String::new();
    let mut below: Option<&(dyn StdError + 'static)> = Some(e);
    while let Some(at) = below {
        let line = at.to_string();
        if answer.is_none() {
            answer = Answer::parse(&line);
        }
        bare_redirect |= line.starts_with("Received redirect without LOCATION");
        if let Some(h) = at.downcast_ref::<HttpError>() {
            http = Some(h.kind());
        }
        if let Some(i) = at.downcast_ref::<io::Error>() {
            os = Some((i.kind(), line.clone()));
        }
        everything.push_str(&line);
        everything.push(' ');
        last = line;
        below = at.source();
    }
    if let Some(answer) = answer {
        let cause = answer.cause(e);
        return Diagnosis {
            rejected: cause == Cause::Other && matches!(answer.status, 400 | 405),
            cause,
            detail: answer.describe(),
        };
    }
    if bare_redirect {
        return Diagnosis {
            cause: Cause::WrongRegion(None),
            detail: "the server sends us to another region".into(),
            rejected: false,
        };
    }
    let (cause, detail) = match e {
        object_store::Error::NotFound { .. } => (Cause::NoSuchObject, "it does not exist".into()),
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            (Cause::Exists, "it exists already".into())
        }
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => {
            (Cause::AccessDenied, "the server refused us".into())
        }
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            (Cause::NotSupported, "this store cannot do it".into())
        }
        object_store::Error::InvalidPath { .. } => (Cause::BadKey, quote(&last)),
        _ => network(http, os, &everything.to_lowercase(), &last),
    };
    Diagnosis {
        cause,
        detail,
        rejected: false,
    }
}

/// The cause of a failure below HTTP, or of a local folder.
fn network(
    http: Option<HttpErrorKind>,
    os: Option<(io::ErrorKind, String)>,
    lower: &str,
    last: &str,
) -> (Cause, String) {
    if lower.contains("169.254.169.254") || lower.contains("metadata.google.internal") {
        return (
            Cause::NoIdentity,
            "no credentials are configured and this machine has no cloud identity".into(),
        );
    }
    let tls = ["certificate", "tls", "ssl", "invalidcontenttype"];
    if http.is_some() && (lower.contains("dns error") || lower.contains("failed to lookup")) {
        return (Cause::UnknownHost, "the host name is not known".into());
    }
    if http.is_some() && tls.iter().any(|word| lower.contains(word)) {
        return (Cause::Tls, format!("TLS failed: {}", quote(last)));
    }
    if http == Some(HttpErrorKind::Timeout) {
        return (Cause::Timeout, "no answer in time".into());
    }
    let Some((kind, said)) = os else {
        let cause = match http {
            Some(HttpErrorKind::Connect) => Cause::Refused,
            Some(_) => Cause::Broken,
            None => Cause::Other,
        };
        return (cause, quote(last));
    };
    let cause = match kind {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable => Cause::Refused,
        io::ErrorKind::TimedOut => Cause::Timeout,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Cause::AccessDenied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cause::NoSpace,
        io::ErrorKind::NotFound if http.is_none() => Cause::NoSuchObject,
        _ if http.is_some() => Cause::Broken,
        _ => Cause::Other,
    };
    (cause, quote(&said))
}

/// What a server said: HTTP status, and the error document if it sent one.
struct Answer {
    status: u16,
    code: String,
    message: String,
    region: Option<String>,
}

impl Answer {
    /// Reads the line in which the client reports an answer that is not a success.
    fn parse(line: &str) -> Option<Self> {
        let (status, body) = if let Some(rest) = line.strip_prefix(NO_SUCCESS) {
            let (status, body) = rest.split_once(": ").unwrap_or((rest, ""));
            (status.get(..3)?.parse().ok()?, body)
        } else {
            (200, line.strip_prefix(ERROR_BODY)?)
        };
        let message = element(body, "Message")
            .or_else(|| field(body, "message"))
            .unwrap_or_default();
        Some(Self {
            status,
            code: element(body, "Code")
                .or_else(|| field(body, "reason"))
                .unwrap_or_default(),
            message,
            region: element(body, "Region").filter(|r| !r.is_empty()),
        })
    }

    fn cause(&self, e: &object_store::Error) -> Cause {
        let says = |part: &str| self.message.to_lowercase().contains(part);
        match self.code.as_str() {
            "NoSuchBucket"
            | "ContainerNotFound"
            | "ContainerBeingDeleted"
            | "InvalidBucketName" => Cause::NoSuchBucket,
            "notFound" if says("bucket") => Cause::NoSuchBucket,
            "NoSuchKey" | "BlobNotFound" | "notFound" => Cause::NoSuchObject,
            "SignatureDoesNotMatch" | "AuthenticationFailed" => Cause::WrongSecret,
            "InvalidAccessKeyId" => Cause::UnknownAccessKey,
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => Cause::ExpiredToken,
            "RequestTimeTooSkewed" | "RequestExpired" => Cause::ClockSkew,
            "AuthorizationHeaderMalformed" if self.region.is_some() || says("region") => {
                Cause::WrongRegion(self.region.clone())
            }
            "PermanentRedirect" | "IllegalLocationConstraintException" => {
                Cause::WrongRegion(self.region.clone())
            }
            "SlowDown" | "ServerBusy" | "TooManyRequests" | "RequestLimitExceeded" => Cause::Busy,
            "EntityTooLarge" => Cause::TooLargeToCopy,
            "InvalidRequest" if says("copy source is larger") => Cause::TooLargeToCopy,
            "RequestTimeout" => Cause::Timeout,
            "AccessDenied"
            | "AccountIsDisabled"
            | "AuthorizationFailure"
            | "AuthorizationPermissionMismatch"
            | "AllAccessDisabled" => Cause::AccessDenied,
            _ => match (e, self.status) {
                (object_store::Error::NotFound { .. }, _) | (_, 404) => Cause::NoSuchObject,
                (object_store::Error::AlreadyExists { .. }, _) | (_, 409 | 412) => Cause::Exists,
                (_, 401 | 403) => Cause::AccessDenied,
                (_, 301 | 307) => Cause::WrongRegion(None),
                (_, 408) => Cause::Timeout,
                (_, 429) => Cause::Busy,
                (_, 501) => Cause::NotSupported,
                (_, 500..) => Cause::ServerError,
                _ => Cause::Other,
            },
        }
    }

    fn describe(&self) -> String {
        let mut out = format!("the server answered {}", self.status);
        if !self.code.is_empty() {
            out.push(' ');
            out.push_str(&quote(&self.code));
        }
        if !self.message.is_empty() {
            out.push_str(": ");
            out.push_str(quote(&self.message).trim_end_matches('.'));
        }
        out
    }
}

/// The text of the first `<name>` of an error document.
pub(super) fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(
        text.trim()
            .replace("&quot;", "\"")
            .replace("&apos;", "'")
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&amp;", "&"),
    )
}

/// The first text value of `name` anywhere in a JSON error document.
fn field(body: &str, name: &str) -> Option<String> {
    fn search(value: &serde_json::Value, name: &str) -> Option<String> {
        match value {
            serde_json::Value::Object(map) => map
                .get(name)
                .and_then(|v| v.as_str().map(str::to_owned))
                .or_else(|| map.values().find_map(|v| search(v, name))),
            serde_json::Value::Array(list) => list.iter().find_map(|v| search(v, name)),
            _ => None,
        }
    }
    search(&serde_json::from_str(body).ok()?, name)
}

/// One short line of somebody else's words.
fn quote(text: &str) -> String {
    let mut out: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = out.char_indices().nth(QUOTE) {
        out.truncate(cut);
        out.push('…');
    }
    out
}

impl Cause {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchObject => ErrorKind::NotFound,
            Self::NoSuchBucket | Self::WrongRegion(_) | Self::Tls => ErrorKind::Config,
            Self::AccessDenied
            | Self::WrongSecret
            | Self::UnknownAccessKey
            | Self::ExpiredToken
            | Self::NoIdentity
            | Self::ClockSkew => ErrorKind::Denied,
            Self::TooLargeToCopy | Self::NoSpace => ErrorKind::Limit,
            Self::Exists => ErrorKind::Conflict,
            Self::NotSupported => ErrorKind::Unsupported,
            Self::BadKey => ErrorKind::Invalid,
            Self::Busy
            | Self::Refused
            | Self::UnknownHost
            | Self::Timeout
            | Self::Broken
            | Self::ServerError
            | Self::Other => ErrorKind::Unreachable,
        }
    }

    /// What to change, in the names of the store's family.
    fn advice(&self, family: Family) -> Option<String> {
        if family != Family::Remote {
            return self.local_advice();
        }
        Some(match self {
            Self::NoSuchObject => {
                "if every object is missing, check minio.bucketName and minio.rootPath".into()
            }
            Self::NoSuchBucket => {
                "set minio.bucketName to a bucket of this server, or minio.address to the server that has it".into()
            }
            Self::AccessDenied => {
                "grant this action to the identity of minio.accessKeyID, or check minio.bucketName"
                    .into()
            }
            Self::WrongSecret => "check minio.secretAccessKey: it is not the secret of minio.accessKeyID".into(),
            Self::UnknownAccessKey => {
                "check minio.accessKeyID, and that minio.address is the server that knows it".into()
            }
            Self::ExpiredToken => "renew the temporary credentials in the environment".into(),
            Self::NoIdentity => {
                "set minio.accessKeyID and minio.secretAccessKey, or give the environment an identity (minio.useIAM)".into()
            }
            Self::WrongRegion(Some(region)) => format!("set minio.region to {region}"),
            Self::WrongRegion(None) => "set minio.region to the bucket's region".into(),
            Self::ClockSkew => "set this machine's clock: the server's differs too much".into(),
            Self::TooLargeToCopy => "copy it with the store's own tool".into(),
            Self::Busy => "lower the concurrency and try again".into(),
            Self::Refused => "check minio.address and minio.port, and that the server is up".into(),
            Self::UnknownHost => "check the host name in minio.address".into(),
            Self::Tls => {
                "check minio.useSSL, and minio.ssl.tlsCACert for a private authority".into()
            }
            Self::Timeout => {
                "check minio.address and the network, or raise minio.requestTimeoutMs".into()
            }
            Self::Broken => "check the network to minio.address, and minio.useSSL".into(),
            Self::ServerError => "look at the log of the server at minio.address".into(),
            Self::NotSupported | Self::BadKey | Self::Exists | Self::NoSpace | Self::Other => {
                return None;
            }
        })
    }

    fn local_advice(&self) -> Option<String> {
        match self {
            Self::NoSuchObject => Some(
                "if every object is missing, check the folder (localStorage.path or --bucket)"
                    .into(),
            ),
            Self::AccessDenied => Some(
                "check the owner and the rights of the folder (localStorage.path or --bucket)"
                    .into(),
            ),
            Self::NoSpace => {
                Some("free space on the disk of the folder (localStorage.path or --bucket)".into())
            }
            _ => None,
        }
    }
}

impl Diagnosis {
    /// The finished error. `doing` is a participle, e.g. `reading`.
    pub(super) fn into_error(self, doing: &str, thing: &str, place: &Place) -> Error {
        let error = Error::new(
            self.cause.kind(),
            format!("{doing} {thing} failed: {}", self.detail),
        );
        self.finish(error, place)
    }

    /// The finished error of a write that may have happened (law 3).
    pub(super) fn into_unknown(self, doing: &str, thing: &str, place: &Place) -> Error {
        let error = Error::new(
            ErrorKind::OutcomeUnknown,
            format!(
                "{doing} {thing} may or may not have happened: {}",
                self.detail
            ),
        );
        self.finish(error, place)
    }

    fn finish(self, mut error: Error, place: &Place) -> Error {
        error = error.with("bucket", &place.bucket);
        if !place.endpoint.is_empty() {
            error = error.with("endpoint", &place.endpoint);
        }
        if self.cause == Cause::NoSuchObject && !place.root.is_empty() {
            error = error.with("root", &place.root);
        }
        match self.cause.advice(place.family) {
            Some(advice) => error.fix(advice),
            None => error,
        }
    }
}
