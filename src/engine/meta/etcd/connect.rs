//! Endpoints and the clients to them.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use futures::future::{Either, select};
use secrecy::{ExposeSecret, SecretString};

use super::fail;
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::profile::{EtcdProfile, TlsProfile};

/// Half-open connections are found by a ping every 10 s that must be answered within 5 s.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// One endpoint.
pub struct Node {
    /// As configured, without credentials.
    pub name: String,
    url: String,
    options: ConnectOptions,
    user: Option<(String, SecretString)>,
    dial_timeout: Duration,
    state: Mutex<State>,
    /// One task connects, the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    password_unused: bool,
    has_answered: bool,
}

/// The endpoints of a profile, not yet connected.
pub async fn nodes(profile: &EtcdProfile) -> Result<Vec<Node>> {
    if profile.endpoints.is_empty() {
        return Err(
            Error::new(ErrorKind::Config, "no etcd endpoint is configured")
                .fix("set etcd.endpoints"),
        );
    }
    let tls = match &profile.tls {
        Some(tls) => Some(tls_options(tls).await?),
        None => None,
    };
    profile
        .endpoints
        .iter()
        .map(|endpoint| node(profile, endpoint, tls.as_ref()))
        .collect()
}

fn node(profile: &EtcdProfile, endpoint: &str, tls: Option<&TlsOptions>) -> Result<Node> {
    let endpoint = endpoint.trim();
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
    // credentials in the URL are not sent and must not be shown
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = host.trim_end_matches('/');
    let wrong = |what: &str, fix: &str| {
        Error::new(ErrorKind::Config, format!("etcd endpoint {host}: {what}")).fix(fix)
    };
    match (scheme, tls) {
        ("" | "http", None) | ("" | "https", Some(_)) => {}
        ("http", Some(_)) => {
            return Err(wrong(
                "http, but TLS is configured",
                "write https:// in etcd.endpoints or set etcd.ssl.enabled to false",
            ));
        }
        ("https", None) => {
            return Err(wrong(
                "https, but TLS is not configured",
                "set etcd.ssl.enabled and etcd.ssl.tlsCACert",
            ));
        }
        _ => {
            return Err(wrong(
                "unknown scheme",
                "write host:port, http:// or https:// in etcd.endpoints",
            ));
        }
    }
    if host.is_empty() {
        return Err(wrong("no host", "set etcd.endpoints"));
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{host}");
    let mut options = ConnectOptions::new()
        .with_connect_timeout(profile.dial_timeout)
        .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(tls) = tls {
        options = options.with_tls(tls.clone());
    }
    Ok(Node {
        name: url.clone(),
        url,
        options,
        user: profile.user.clone(),
        dial_timeout: profile.dial_timeout,
        state: Mutex::default(),
        connecting: tokio::sync::Mutex::new(()),
    })
}

impl Node {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server did not want the password.
    pub fn password_unused(&self) -> bool {
        self.state().password_unused
    }

    /// Notes that the server answered a call.
    pub fn answered(&self) {
        self.state().has_answered = true;
    }

    /// Whether the endpoint is plain and has not answered yet.
    pub fn may_want_tls(&self) -> bool {
        self.url.starts_with("http:") && !self.state().has_answered
    }

    /// Whether the endpoint has TLS and has not answered yet.
    pub fn may_want_certificate(&self) -> bool {
        self.url.starts_with("https:") && !self.state().has_answered
    }

    /// Whether a password is configured.
    pub fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// The client; the first call connects when a password is configured, else the first request does.
    pub async fn client(&self, clock: &dyn Clock) -> Result<Client> {
        if let Some(client) = &self.state().client {
            return Ok(client.clone());
        }
        let _one = self.connecting.lock().await;
        if let Some(client) = &self.state().client {
            return Ok(client.clone());
        }
        let work = std::pin::pin!(self.connect());
        let (client, password_unused) = match select(work, clock.sleep(self.dial_timeout)).await {
            Either::Left((done, _)) => done?,
            Either::Right(_) => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!(
                        "etcd {} did not answer within {} ms",
                        self.name,
                        self.dial_timeout.as_millis()
                    ),
                )
                .fix("check etcd.endpoints, the network and etcd.dialTimeout"));
            }
        };
        let mut state = self.state();
        state.client = Some(client.clone());
        state.password_unused = password_unused;
        Ok(client)
    }

    async fn connect(&self) -> Result<(Client, bool)> {
        let open =
            async |options: ConnectOptions| Client::connect([&self.url], Some(options)).await;
        let plain = self.options.clone();
        let Some((user, password)) = &self.user else {
            let client = open(plain).await.map_err(|e| fail::connecting(e, self))?;
            return Ok((client, false));
        };
        let with_user = plain
            .clone()
            .with_user(user.clone(), password.expose_secret());
        match open(with_user).await {
            Ok(client) => Ok((client, false)),
            // milvus.yaml often names a user for a server that does not ask for one
            Err(e) if fail::is_auth_off(&e) => {
                let client = open(plain).await.map_err(|e| fail::connecting(e, self))?;
                Ok((client, true))
            }
            Err(e) => Err(fail::connecting(e, self)),
        }
    }
}

async fn tls_options(tls: &TlsProfile) -> Result<TlsOptions> {
    let mut options = match &tls.ca {
        Some(path) => {
            let pem = pem(path, "etcd.ssl.tlsCACert", "CERTIFICATE").await?;
            TlsOptions::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => TlsOptions::new().with_native_roots(),
    };
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let cert = pem(cert, "etcd.ssl.tlsCert", "CERTIFICATE").await?;
            let key = pem(key, "etcd.ssl.tlsKey", "PRIVATE KEY").await?;
            options = options.identity(Identity::from_pem(cert, key));
        }
        (None, None) => {}
        (cert, _) => {
            let (have, need) = if cert.is_some() {
                ("etcd.ssl.tlsCert", "etcd.ssl.tlsKey")
            } else {
                ("etcd.ssl.tlsKey", "etcd.ssl.tlsCert")
            };
            return Err(
                Error::new(ErrorKind::Config, format!("{have} is set without {need}"))
                    .fix(format!("set {need}, or neither")),
            );
        }
    }
    if let Some(domain) = &tls.domain {
        options = options.domain_name(domain);
    }
    Ok(options)
}

async fn pem(path: &Path, key: &'static str, holds: &str) -> Result<Vec<u8>> {
    let text = tokio::fs::read(path).await.map_err(|e| {
        Error::new(ErrorKind::Config, format!("cannot read the file of {key}"))
            .with("file", path.display())
            .caused_by(e)
            .fix(format!("correct {key}"))
    })?;
    let marker = format!("{holds}-----");
    if !String::from_utf8_lossy(&text).contains(&marker) {
        return Err(Error::new(
            ErrorKind::Config,
            format!("the file of {key} holds no PEM {}", holds.to_lowercase()),
        )
        .with("file", path.display())
        .fix(format!("correct {key}")));
    }
    Ok(text)
}
