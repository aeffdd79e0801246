//! What became of each HTTP attempt of one write. The store's client retries by itself and reports only the last
//! failure; whether an *earlier* attempt may have been carried out decides between "did not happen" and "unknown"
//! (law 3), so every attempt is counted where it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

tokio::task_local! {
    static TRAIL: Arc<Trail>;
}

/// The attempts of one write, by what they prove.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// The server said no (3xx, 4xx), or was never reached: this attempt changed nothing.
    harmless: AtomicU32,
    /// 503: a real S3 server says "slow down" before it acts, a proxy may say it after.
    busy: AtomicU32,
    /// Anything else: it may have been carried out.
    doubtful: AtomicU32,
}

impl Trail {
    /// Whether the attempts, the last one answered `busy_is_refusal`, prove that nothing changed.
    pub(super) fn proves_nothing_changed(&self, busy_is_refusal: bool) -> bool {
        let busy = self.busy.load(Ordering::Relaxed);
        self.doubtful.load(Ordering::Relaxed) == 0
            && (busy == 0 || busy_is_refusal)
            && busy + self.harmless.load(Ordering::Relaxed) > 0
    }

    /// Whether an attempt before the last one may have been carried out.
    pub(super) fn had_doubt(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed) + self.busy.load(Ordering::Relaxed) > 0
    }

    fn count(&self, outcome: &Result<HttpResponse, HttpError>) {
        let counter = match outcome {
            Ok(answer) => match answer.status().as_u16() {
                503 => &self.busy,
                429 | 300..=407 | 409..=499 => &self.harmless,
                200..=299 => return,
                _ => &self.doubtful,
            },
            Err(e) if e.kind() == HttpErrorKind::Connect => &self.harmless,
            Err(_) => &self.doubtful,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs one store operation and counts its attempts.
pub(super) async fn watched<F: Future>(operation: F) -> (F::Output, Arc<Trail>) {
    let trail = Arc::new(Trail::default());
    let out = TRAIL.scope(trail.clone(), operation).await;
    (out, trail)
}

/// Makes HTTP clients that count.
#[derive(Debug, Default)]
pub(super) struct CountingConnector;

impl HttpConnector for CountingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Counting(inner)))
    }
}

#[derive(Debug)]
struct Counting(HttpClient);

#[async_trait]
impl HttpService for Counting {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let outcome = self.0.execute(request).await;
        // Outside of a watched write there is nobody to tell.
        let _ = TRAIL.try_with(|trail| trail.count(&outcome));
        outcome
    }
}
