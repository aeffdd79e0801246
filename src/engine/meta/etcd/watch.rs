//! Watching etcd: whole revisions, each once, and a stream that is known to be alive.
//!
//! Two facts of the server shape this file:
//!
//! - A watch that starts exactly at the compacted revision is accepted, although the tombstones of that revision are
//!   already gone. So we ask from one revision earlier and drop what was not asked for: then etcd answers "compacted".
//! - The answer to a progress request overtakes events in servers before 3.4.25 and 3.5.8 (etcd #15220). There it proves
//!   that the server is alive and nothing else; only the server's own, rarer progress notice is in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, WatchOptions, WatchResponse};
use futures::future::{Either, select};
use futures::{FutureExt, StreamExt, stream};

use super::fail::{self, Op};
use super::{Shared, bounds, kv_of};
use crate::engine::clock::Clock;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::meta::{Event, Span, WatchBatch, WatchStream, check};

/// After events, the server is soon asked how far it has come, so that a reader learns when it has caught up.
const SETTLED: Duration = Duration::from_millis(100);
/// Then every so often, to know that it lives.
const PING: Duration = Duration::from_secs(5);
/// A server that says nothing for this long is taken for gone.
const SILENT: Duration = Duration::from_secs(20);
/// Largest message, bytes. Larger backlogs come in fragments.
const LARGEST_MESSAGE: usize = 1 << 30;

/// Whether every version answers progress requests in order.
pub fn all_ordered(versions: &[Option<String>]) -> bool {
    versions
        .iter()
        .all(|v| v.as_deref().is_some_and(is_ordered))
}

fn is_ordered(version: &str) -> bool {
    let mut numbers = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        (major, minor, _) => (major, minor) >= (3, 6),
    }
}

struct Watch {
    raw: etcd_client::WatchStream,
    clock: Arc<dyn Clock>,
    endpoint: String,
    id: i64,
    ordered_progress: bool,
    /// Everything up to here was handed over or lies before the start.
    told: i64,
    /// A revision whose other half is still to come.
    open: Option<WatchBatch>,
    ready: VecDeque<WatchBatch>,
    /// Since the last message.
    heard: Duration,
    /// Whether the server was asked since the last event.
    pinged: bool,
    done: bool,
}

/// Opens a watch on the endpoint that answered last.
pub async fn open(shared: &Arc<Shared>, span: Span, from: MetaRev) -> Result<WatchStream> {
    let (start, end) = bounds(&span);
    let options = WatchOptions::new()
        .with_range(end)
        .with_start_revision((from.0 - 1).max(1))
        .with_progress_notify()
        .with_fragment();
    let mut refreshed = false;
    let (raw, first) = loop {
        let (start, options) = (start.clone(), options.clone());
        let (raw, first) = shared
            .call(Op::Read, &move |client: Client| {
                let (start, options) = (start.clone(), options.clone());
                async move {
                    let mut raw = client
                        .watch_client()
                        .max_decoding_message_size(LARGEST_MESSAGE)
                        .watch(start, Some(options))
                        .await?;
                    let first = raw.message().await?;
                    Ok((raw, first))
                }
                .boxed()
            })
            .await?;
        // a token that has run out shows as a refused watch, not as a failed call
        if !refreshed && first.as_ref().is_some_and(is_refused) && shared.refresh_tokens().await {
            refreshed = true;
            continue;
        }
        break (raw, first);
    };
    let node = &shared.nodes[shared.current.load(std::sync::atomic::Ordering::Relaxed)];
    let mut watch = Watch {
        raw,
        clock: Arc::clone(&shared.clock),
        endpoint: node.name.clone(),
        id: 0,
        ordered_progress: shared.ordered_progress,
        told: from.0 - 1,
        open: None,
        ready: VecDeque::new(),
        heard: shared.clock.mono(),
        pinged: false,
        done: false,
    };
    let Some(first) = first else {
        return Err(watch.closed());
    };
    if is_refused(&first) {
        return Err(fail::denied(first.cancel_reason(), node));
    }
    watch.id = first.watch_id();
    watch.take(first)?;
    Ok(stream::unfold(watch, step).boxed())
}

fn is_refused(response: &WatchResponse) -> bool {
    let reason = response.cancel_reason();
    response.canceled()
        && (reason.contains("permission denied") || reason.contains("invalid auth token"))
}

async fn step(mut watch: Watch) -> Option<(Result<WatchBatch>, Watch)> {
    if watch.done {
        return None;
    }
    let item = watch.next_batch().await;
    watch.done = item.is_err();
    Some((item, watch))
}

impl Watch {
    async fn next_batch(&mut self) -> Result<WatchBatch> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let quiet = self.clock.mono().saturating_sub(self.heard);
            if quiet >= SILENT {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!(
                        "etcd {} is silent: no word on the watch for {} s",
                        self.endpoint,
                        quiet.as_secs()
                    ),
                )
                .fix("check the network and etcd's health"));
            }
            let timer = self.clock.sleep(if self.pinged { PING } else { SETTLED });
            let heard = match select(std::pin::pin!(self.raw.message()), timer).await {
                Either::Left((message, _)) => Some(message),
                Either::Right(_) => None,
            };
            match heard {
                Some(message) => self.message(message)?,
                None => self.ping().await?,
            }
        }
    }

    async fn ping(&mut self) -> Result<()> {
        self.pinged = true;
        // the queue to the server holds a hundred requests: it cannot be full of pings
        self.raw.request_progress().await.map_err(|_| self.closed())
    }

    fn message(
        &mut self,
        message: Result<Option<WatchResponse>, etcd_client::Error>,
    ) -> Result<()> {
        match message {
            Ok(Some(response)) => {
                self.heard = self.clock.mono();
                self.take(response)
            }
            Ok(None) => Err(self.closed()),
            Err(e) => Err(Error::new(
                ErrorKind::Unreachable,
                format!(
                    "the watch on etcd {} broke: {}",
                    self.endpoint,
                    fail::words(&e)
                ),
            )
            .fix("check etcd.endpoints and that etcd is up")),
        }
    }

    fn closed(&self) -> Error {
        Error::new(
            ErrorKind::Unreachable,
            format!("etcd {} ended the watch", self.endpoint),
        )
        .fix("check that etcd is up and has a leader")
    }

    fn take(&mut self, response: WatchResponse) -> Result<()> {
        if response.canceled() || response.compact_revision() > 0 {
            return Err(self.cancelled(&response));
        }
        let response = response.0;
        if response.created {
            return Ok(());
        }
        if response.events.is_empty() {
            let at = response.header.map_or(0, |h| h.revision);
            // the server's own notice carries the watch's id, the answer to a request does not
            let in_order = response.watch_id == self.id || self.ordered_progress;
            if in_order && self.open.is_none() {
                self.told = self.told.max(at);
            }
            self.ready.push_back(WatchBatch {
                rev: MetaRev(self.told),
                events: Vec::new(),
            });
            return Ok(());
        }
        self.pinged = false;
        for event in response.events {
            self.event(event)?;
        }
        if !response.fragment {
            self.flush();
        }
        Ok(())
    }

    fn event(&mut self, raw: etcd_client::proto::PbEvent) -> Result<()> {
        let is_delete = raw.r#type == EventType::Delete as i32;
        let Some(kv) = raw.kv else {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("etcd {} sent an event without a key", self.endpoint),
            ));
        };
        let rev = kv.mod_revision;
        // before the start, or seen already
        if rev <= self.told {
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|open| open.rev.0 != rev) {
            self.flush();
        }
        let event = if is_delete {
            Event::Delete(MetaKey(kv.key.into()), MetaRev(rev))
        } else {
            Event::Put(kv_of(etcd_client::KeyValue(kv)))
        };
        let open = self.open.get_or_insert_with(|| WatchBatch {
            rev: MetaRev(rev),
            events: Vec::new(),
        });
        open.events.push(event);
        Ok(())
    }

    fn flush(&mut self) {
        if let Some(batch) = self.open.take() {
            self.told = batch.rev.0;
            self.ready.push_back(batch);
        }
    }

    fn cancelled(&self, response: &WatchResponse) -> Error {
        let oldest = response.compact_revision();
        if oldest > 0 {
            return check::compacted("watch from", MetaRev(self.told + 1), Some(MetaRev(oldest)));
        }
        Error::new(
            ErrorKind::Unreachable,
            format!(
                "etcd {} cancelled the watch: {}",
                self.endpoint,
                response.cancel_reason()
            ),
        )
        .fix("check that etcd is up and has a leader")
    }
}

impl Shared {
    /// Authenticates again where a password is in use. True if a token was renewed.
    async fn refresh_tokens(&self) -> bool {
        let node = &self.nodes[self.current.load(std::sync::atomic::Ordering::Relaxed)];
        if !node.has_user() || node.password_unused() {
            return false;
        }
        match node.client(&*self.clock).await {
            Ok(client) => client.refresh_token().await.is_ok(),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_trusted_only_where_it_was_repaired() {
        for (version, ordered) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.4.36", true),
            ("3.5.1", false),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.6.0", true),
            ("4.0.0", true),
            ("3.3.27", false),
            ("rubbish", false),
        ] {
            assert_eq!(is_ordered(version), ordered, "{version}");
        }
        let both = [Some("3.5.16".to_owned()), Some("3.4.23".to_owned())];
        assert!(!all_ordered(&both));
        assert!(all_ordered(&both[..1]));
        assert!(!all_ordered(&[None]));
    }
}
