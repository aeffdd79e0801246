//! What a failed call means: whether something may have happened, whether another endpoint may be asked, what the operator can do.

use std::time::Duration;

use etcd_client::Error as Raw;
use tonic::{Code, ConnectError, Status};

use super::connect::Node;
use crate::engine::error::{Error, ErrorKind};
use crate::engine::ids::MetaRev;
use crate::engine::meta::check;

/// What the call would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads; asking again is harmless.
    Read,
    /// Reads at a revision that may be gone.
    ReadAt(MetaRev),
    /// Writes; once sent, only the server knows.
    Write,
}

/// A failed attempt.
#[derive(Debug)]
pub struct Verdict {
    /// The error to report.
    pub error: Error,
    /// Whether another endpoint may be asked.
    pub try_next: bool,
    /// Whether a connection that worked was found broken, so that the same endpoint deserves a second attempt.
    pub broken: bool,
}

impl Verdict {
    /// The request never left this machine.
    pub fn not_sent(error: Error) -> Self {
        let try_next = error.kind() == ErrorKind::Unreachable;
        Self {
            error,
            try_next,
            broken: false,
        }
    }

    /// The error when every endpoint was tried.
    pub fn over_all(self, endpoints: &str, tried: usize) -> Error {
        if tried < 2 || self.error.kind() != ErrorKind::Unreachable {
            return self.error;
        }
        let what = format!("none of {tried} etcd endpoints answered ({endpoints})");
        let error = Error::new(ErrorKind::Unreachable, what).caused_by(self.error.clone());
        match self.error.advice() {
            Some(advice) => error.fix(advice.to_owned()),
            None => error,
        }
    }
}

/// Nothing came back in time.
pub fn timed_out(op: Op, node: &Node, limit: Duration) -> Verdict {
    let text = format!(
        "etcd {} did not answer within {} ms",
        node.name,
        limit.as_millis()
    );
    lost(op, text, false, node)
}

/// A call whose answer is missing: harmless for a read, unknown for a write.
fn lost(op: Op, text: String, broken: bool, node: &Node) -> Verdict {
    let (kind, fix, try_next) = match op {
        Op::Write => (
            ErrorKind::OutcomeUnknown,
            "read the step's marker before anything else: the write may have happened",
            false,
        ),
        Op::Read | Op::ReadAt(_) => (
            ErrorKind::Unreachable,
            "check etcd.endpoints and that etcd is up",
            true,
        ),
    };
    // a server that wants TLS hangs up on a plain hello
    let fix = if broken && node.may_want_tls() {
        format!("{fix}; if it wants TLS, set etcd.ssl.enabled")
    } else {
        fix.to_owned()
    };
    Verdict {
        error: Error::new(kind, text).fix(fix),
        try_next,
        broken,
    }
}

fn status_of(raw: &Raw) -> Option<&Status> {
    match raw {
        Raw::GRpcStatus(status) => Some(status),
        _ => None,
    }
}

/// Whether the server says that it does not use passwords.
pub fn is_auth_off(raw: &Raw) -> bool {
    status_of(raw).is_some_and(|s| s.message().contains("authentication is not enabled"))
}

/// The whole chain of causes in one line: gRPC hides the TLS alert three levels down.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    // a status prints its insides; its message is the readable part
    let mut text = match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut source = error.source();
    while let Some(e) = source {
        let line = e.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        source = e.source();
    }
    text
}

/// A failure in readable words.
pub fn words(raw: &Raw) -> String {
    status_of(raw).map_or_else(|| chain(raw), |status| chain(status))
}

/// Whether the connection was never made, so that nothing was sent.
fn never_connected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(e) = source {
        if e.is::<ConnectError>() {
            return true;
        }
        source = e.source();
    }
    false
}

/// Judges a failed call.
pub fn verdict(raw: Raw, op: Op, node: &Node) -> Verdict {
    let Some(status) = status_of(&raw) else {
        return other(raw, op, node);
    };
    if never_connected(status) {
        return Verdict::not_sent(connecting(raw, node));
    }
    let message = status.message().to_owned();
    let final_ = |error: Error| Verdict {
        error,
        try_next: false,
        broken: false,
    };
    if let Some(error) = tls_alert(&chain(status), node) {
        return final_(error);
    }
    let at = |error: Error| error.with("endpoint", &node.name);
    match status.code() {
        Code::OutOfRange if message.contains("compacted") => {
            let asked = if let Op::ReadAt(rev) = op {
                rev
            } else {
                MetaRev(0)
            };
            final_(check::compacted("read at", asked, None))
        }
        Code::OutOfRange if message.contains("future revision") => {
            let asked = if let Op::ReadAt(rev) = op {
                rev
            } else {
                MetaRev(0)
            };
            final_(check::future(asked, None))
        }
        Code::OutOfRange => final_(at(Error::new(
            ErrorKind::Limit,
            format!("etcd's answer is too large: {message}"),
        )
        .fix("ask for smaller pages"))),
        Code::ResourceExhausted | Code::InvalidArgument | Code::DataLoss => {
            final_(at(refusal(&message, status.code())))
        }
        Code::PermissionDenied | Code::Unauthenticated => final_(at(denied(&message, node))),
        Code::FailedPrecondition if message.contains("authentication is not enabled") => {
            final_(at(Error::new(
                ErrorKind::Conflict,
                "etcd's authentication was switched off",
            )
            .fix("connect again")))
        }
        Code::NotFound => final_(at(Error::new(ErrorKind::NotFound, message))),
        Code::Unimplemented => final_(at(Error::new(
            ErrorKind::Unsupported,
            "the server does not speak etcd's v3 protocol",
        )
        .fix("check etcd.endpoints: another service may listen there"))),
        // the check for a leader comes before the request is looked at
        Code::Unavailable if message.ends_with("etcdserver: no leader") => Verdict {
            error: at(Error::new(ErrorKind::Unreachable, "etcd has no leader")
                .fix("bring back a majority of its members")),
            try_next: true,
            broken: false,
        },
        _ => {
            let text = format!(
                "the connection to etcd {} failed: {}",
                node.name,
                chain(status)
            );
            let broken = std::error::Error::source(status).is_some();
            // its alert is lost when the hang-up overtakes it
            if broken && node.may_want_certificate() {
                return final_(
                    Error::new(
                        ErrorKind::Config,
                        format!(
                            "etcd {} hung up right after the TLS handshake, as servers do that want another client certificate",
                            node.name
                        ),
                    )
                    .fix("set or correct etcd.ssl.tlsCert and etcd.ssl.tlsKey"),
                );
            }
            lost(op, text, broken, node)
        }
    }
}

/// A refusal that the server gave before it did anything.
fn refusal(message: &str, code: Code) -> Error {
    if message.contains("database space exceeded") {
        // Nothing can be written until then, not even that a job is taken back: it waits, and goes on.
        return Error::new(
            ErrorKind::Full,
            "etcd's database is full, its alarm NOSPACE is raised",
        )
        .fix("compact and defragment etcd, then clear the alarm (etcdctl alarm disarm), or raise quota-backend-bytes");
    }
    if message.contains("too many requests") {
        return Error::new(
            ErrorKind::Unreachable,
            "etcd is overloaded: too many requests",
        )
        .fix("try again later");
    }
    if message.contains("too large")
        || message.contains("larger than max")
        || message.contains("too many operations")
        || message.contains("length too large")
    {
        return Error::new(
            ErrorKind::Limit,
            format!("request is over etcd's limit: {message}"),
        )
        .fix("split it, or raise etcd's --max-request-bytes and --max-txn-ops");
    }
    if message.contains("user name is empty") || message.contains("authentication failed") {
        return denied_text(message);
    }
    match code {
        Code::DataLoss => Error::new(
            ErrorKind::Corrupt,
            format!("etcd reports corruption: {message}"),
        )
        .fix("stop writing and restore the etcd member that differs"),
        Code::ResourceExhausted => Error::new(
            ErrorKind::Limit,
            format!("etcd has no room for the request: {message}"),
        )
        .fix("look at etcd's log"),
        _ => Error::new(
            ErrorKind::Invalid,
            format!("etcd refused the request: {message}"),
        ),
    }
}

fn denied_text(message: &str) -> Error {
    if message.contains("user name is empty") {
        Error::new(
            ErrorKind::Denied,
            "etcd wants a user and a password, none is configured",
        )
        .fix("set etcd.auth.enabled, etcd.auth.userName and etcd.auth.password")
    } else if message.contains("authentication failed") {
        Error::new(ErrorKind::Denied, "etcd refused the user or the password")
            .fix("correct etcd.auth.userName and etcd.auth.password")
    } else {
        Error::new(ErrorKind::Denied, format!("etcd refused: {message}"))
            .fix("correct etcd.auth.userName and etcd.auth.password, or grant the user's role the root path's keys")
    }
}

/// A refusal for want of identity or rights.
pub fn denied(message: &str, node: &Node) -> Error {
    if node.has_user() {
        denied_text(message)
    } else {
        Error::new(
            ErrorKind::Denied,
            format!("etcd wants a user and a password, none is configured ({message})"),
        )
        .fix("set etcd.auth.enabled, etcd.auth.userName and etcd.auth.password")
    }
}

/// Failures that are no gRPC status.
fn other(raw: Raw, op: Op, node: &Node) -> Verdict {
    match raw {
        Raw::InvalidArgs(_) | Raw::InvalidUri(_) | Raw::TransportError(_) => Verdict {
            error: connecting(raw, node),
            try_next: false,
            broken: false,
        },
        Raw::LeaseKeepAliveError(text) if text.contains("not found") => Verdict {
            error: Error::new(
                ErrorKind::NotFound,
                "the lease does not exist, it has run out or was revoked",
            ),
            try_next: false,
            broken: false,
        },
        raw => {
            let text = format!("the call to etcd {} failed: {}", node.name, chain(&raw));
            lost(op, text, false, node)
        }
    }
}

/// The error of a connection that could not be made.
pub fn connecting(raw: Raw, node: &Node) -> Error {
    let text = words(&raw);
    if let Some(error) = tls_alert(&text, node) {
        return error;
    }
    if let Some(status) = status_of(&raw) {
        match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => {
                return denied_text(status.message()).with("endpoint", &node.name);
            }
            Code::Unimplemented => {
                return Error::new(
                    ErrorKind::Unsupported,
                    format!("what listens on {} is not etcd", node.name),
                )
                .fix("correct etcd.endpoints");
            }
            _ => {}
        }
    }
    if matches!(raw, Raw::InvalidArgs(_) | Raw::InvalidUri(_)) {
        return Error::new(
            ErrorKind::Config,
            format!("etcd endpoint {} is not valid", node.name),
        )
        .caused_by(raw)
        .fix("correct etcd.endpoints");
    }
    if matches!(raw, Raw::TransportError(_)) && !text.contains("connect") {
        return Error::new(
            ErrorKind::Config,
            format!("cannot set up TLS for etcd {}: {text}", node.name),
        )
        .fix("check that etcd.ssl.tlsCert and etcd.ssl.tlsKey belong together and are PEM");
    }
    // a plain server may answer the TLS hello with a reset instead of a readable alert
    let is_hang_up = text.contains("reset by peer") || text.contains("broken pipe");
    if is_hang_up && !text.contains("tcp connect error") && node.may_want_certificate() {
        return no_tls(node);
    }
    let mut fix = "check etcd.endpoints and that etcd is up".to_owned();
    if text.contains("http2 error") || text.contains("frame") {
        fix.push_str("; it may want TLS: etcd.ssl.enabled");
    }
    Error::new(
        ErrorKind::Unreachable,
        format!(
            "cannot connect to etcd {}: {}",
            node.name,
            last_cause(&text)
        ),
    )
    .fix(fix)
}

/// The most telling end of a chain of causes.
fn last_cause(chain: &str) -> &str {
    chain
        .find("tcp connect error")
        .map_or(chain, |i| &chain[i..])
}

fn no_tls(node: &Node) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "TLS with etcd {} failed: the server speaks no TLS on this port",
            node.name
        ),
    )
    .fix("set etcd.ssl.enabled to false, or correct the port in etcd.endpoints")
}

/// Which of the three TLS settings is wrong, as far as the alert tells.
fn tls_alert(text: &str, node: &Node) -> Option<Error> {
    let error = |what: &str, fix: &str| {
        Some(
            Error::new(
                ErrorKind::Config,
                format!("TLS with etcd {} failed: {what}", node.name),
            )
            .fix(fix),
        )
    };
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        return error(
            "the server's certificate is not signed by the configured authority",
            "correct etcd.ssl.tlsCACert",
        );
    }
    if text.contains("NotValidForName") || text.contains("not valid for name") {
        return error(
            "the server's certificate does not name this host in its subject alternative names",
            "use a host name of the certificate in etcd.endpoints, or set the TLS domain of the profile",
        );
    }
    if text.contains("invalid peer certificate") {
        let what = format!(
            "the server's certificate is not accepted ({})",
            text.rsplit("invalid peer certificate: ")
                .next()
                .unwrap_or_default()
        );
        return error(
            &what,
            "renew the server's certificate, or correct this machine's clock",
        );
    }
    if text.contains("CertificateRequired") || text.contains("certificate required") {
        return error(
            "the server wants a client certificate",
            "set etcd.ssl.tlsCert and etcd.ssl.tlsKey",
        );
    }
    if [
        "BadCertificate",
        "UnknownCA",
        "CertificateUnknown",
        "CertificateExpired",
        "DecryptError",
    ]
    .iter()
    .any(|alert| text.contains(alert))
    {
        return error(
            "the server does not accept our client certificate",
            "correct etcd.ssl.tlsCert and etcd.ssl.tlsKey: the server's --trusted-ca-file must have signed them",
        );
    }
    if text.contains("corrupt message") || text.contains("tls handshake eof") {
        return Some(no_tls(node));
    }
    if text.contains("KeyMismatch") || text.contains("keys may not be consistent") {
        return error(
            "certificate and key do not belong together",
            "correct etcd.ssl.tlsCert and etcd.ssl.tlsKey",
        );
    }
    None
}
