//! A proxy before a real S3 server that answers wrongly on purpose. One request a connection, both ways in HTTP/1.1.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Refused before it reaches the server: 503 SlowDown.
    SlowDown,
    /// Refused before it reaches the server: 403 AccessDenied.
    Denied,
    /// Refused before it reaches the server, with this status and this code.
    Refused(&'static str, &'static str),
    /// The connection is reset before the server sees anything.
    Reset,
    /// The server carries it out, and the connection is reset before the answer.
    ResetAfter,
    /// The answer trickles: a pause before it and one in its middle.
    Slow,
    /// The head is whole, the body ends in its middle.
    Truncated,
    /// `Content-Length` is half of the body, and only that half comes.
    Short,
    /// `Content-Length` is more than the body.
    Long,
}

/// One request as the script sees it.
pub struct Seen<'a> {
    /// Requests before it, since the script was set.
    pub n: usize,
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Asks the server to copy by itself.
    pub copies: bool,
    /// Requests under way, this one among them.
    pub now: usize,
    /// All of its head, as it was sent.
    pub head: &'a str,
}

type Script = Box<dyn Fn(&Seen<'_>) -> Option<Wrong> + Send + Sync>;

/// A running proxy. It ends with its runtime.
pub struct Proxy {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    script: Mutex<Script>,
    seen: AtomicUsize,
    hurt: AtomicUsize,
    now: AtomicUsize,
}

impl Proxy {
    /// Before the server on this port of loopback; passes everything on until told otherwise.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from(([127, 0, 0, 1], port)),
            script: Mutex::new(Box::new(|_| None)),
            seen: AtomicUsize::new(0),
            hurt: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = serving.clone();
                tokio::spawn(async move {
                    let now = shared.now.fetch_add(1, Ordering::SeqCst) + 1;
                    let _ = shared.serve(client, now).await;
                    shared.now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { url, shared }
    }

    /// From here on requests go wrong as the script says.
    pub fn script(&self, script: impl Fn(&Seen<'_>) -> Option<Wrong> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
        self.shared.seen.store(0, Ordering::SeqCst);
        self.shared.hurt.store(0, Ordering::SeqCst);
    }

    /// Everything is passed on again. Answers how many requests went wrong.
    pub fn heal(&self) -> usize {
        *self.shared.script.lock().unwrap() = Box::new(|_| None);
        self.hurt()
    }

    /// Requests that went wrong since the script was set.
    pub fn hurt(&self) -> usize {
        self.shared.hurt.load(Ordering::SeqCst)
    }
}

impl Shared {
    async fn serve(&self, mut client: TcpStream, now: usize) -> std::io::Result<()> {
        let Some((head, body)) = message(&mut client, true).await? else {
            return Ok(());
        };
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut words = text.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let wrong = {
            let n = self.seen.fetch_add(1, Ordering::SeqCst);
            let script = self.script.lock().unwrap();
            script(&Seen {
                n,
                method,
                target,
                copies: header(&head, "x-amz-copy-source").is_some(),
                now,
                head: &text,
            })
        };
        if wrong.is_some() {
            self.hurt.fetch_add(1, Ordering::SeqCst);
        }
        match wrong {
            Some(Wrong::SlowDown) => {
                return refuse(client, method, "503 Service Unavailable", "SlowDown").await;
            }
            Some(Wrong::Denied) => {
                return refuse(client, method, "403 Forbidden", "AccessDenied").await;
            }
            Some(Wrong::Refused(status, code)) => {
                return refuse(client, method, status, code).await;
            }
            Some(Wrong::Reset) => return reset(&client),
            _ => {}
        }
        let mut server = TcpStream::connect(self.upstream).await?;
        server.write_all(&closing(&text)).await?;
        server.write_all(&body).await?;
        let has_body = method != "HEAD";
        let Some((mut head, body)) = message(&mut server, has_body).await? else {
            return reset(&client);
        };
        if has_body {
            head = with_length(&head, body.len());
        }
        match wrong {
            Some(Wrong::ResetAfter) => return reset(&client),
            Some(Wrong::Slow) => {
                pause(Duration::from_millis(400)).await;
                client.write_all(&head).await?;
                let (first, rest) = body.split_at(body.len() / 2);
                client.write_all(first).await?;
                client.flush().await?;
                pause(Duration::from_millis(400)).await;
                client.write_all(rest).await?;
            }
            Some(Wrong::Truncated) => {
                client.write_all(&head).await?;
                client.write_all(&body[..body.len() / 2]).await?;
            }
            Some(Wrong::Short) if !body.is_empty() => {
                let half = body.len() / 2;
                client.write_all(&with_length(&head, half)).await?;
                client.write_all(&body[..half]).await?;
            }
            Some(Wrong::Long) if !body.is_empty() => {
                client
                    .write_all(&with_length(&head, body.len() + 100))
                    .await?;
                client.write_all(&body).await?;
            }
            _ => {
                client.write_all(&head).await?;
                client.write_all(&body).await?;
            }
        }
        client.shutdown().await
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a server that is slow is slow in real time"
)]
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Head with its empty line, and body. `None` when the other side closed without a word.
async fn message(
    from: &mut TcpStream,
    has_body: bool,
) -> std::io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(end);
    let length = header(&bytes, "content-length").and_then(|v| v.parse::<usize>().ok());
    match length {
        _ if !has_body => body.clear(),
        Some(length) => {
            while body.len() < length {
                if from.read_buf(&mut body).await? == 0 {
                    break;
                }
            }
        }
        // An answer without a length ends with its connection; a request without one has no body.
        None if bytes.starts_with(b"HTTP/") => while from.read_buf(&mut body).await? > 0 {},
        None => {}
    }
    Ok(Some((bytes, body)))
}

fn header(head: &[u8], name: &str) -> Option<String> {
    String::from_utf8_lossy(head).lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name)
            .then(|| value.trim().to_owned())
    })
}

/// The head with one header in place of those of its name.
fn replaced(head: &str, name: &str, value: &str) -> Vec<u8> {
    let mut out = String::new();
    for line in head.trim_end_matches("\r\n").split("\r\n") {
        let key = line.split(':').next().unwrap_or_default();
        if !key.eq_ignore_ascii_case(name) {
            out.push_str(line);
            out.push_str("\r\n");
        }
    }
    for part in [name, ": ", value, "\r\n\r\n"] {
        out.push_str(part);
    }
    out.into_bytes()
}

/// As HTTP/1.0, in which a server neither keeps the connection nor sends its answer in chunks.
fn closing(head: &str) -> Vec<u8> {
    let head = head.replacen(" HTTP/1.1\r\n", " HTTP/1.0\r\n", 1);
    replaced(&head, "Connection", "close")
}

fn with_length(head: &[u8], length: usize) -> Vec<u8> {
    replaced(
        &String::from_utf8_lossy(head).replacen("HTTP/1.0", "HTTP/1.1", 1),
        "Content-Length",
        &length.to_string(),
    )
}

async fn refuse(
    mut client: TcpStream,
    method: &str,
    status: &str,
    code: &str,
) -> std::io::Result<()> {
    let mut body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>made to fail</Message></Error>"
    );
    let length = body.len();
    if method == "HEAD" {
        body.clear();
    }
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(body.as_bytes()).await?;
    client.shutdown().await
}

/// Closes with RST instead of FIN: what was not read yet is thrown away at both ends.
fn reset(client: &TcpStream) -> std::io::Result<()> {
    client.set_zero_linger()
}
