//! Reads, compare-and-swap, leases and health: the one place that calls etcd's write functions (law 2).

use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, GetOptions, PutOptions, Txn as RawTxn,
    TxnOp, TxnOpResponse,
};
use futures::FutureExt;
use futures::future::join_all;

use super::fail::Op;
use super::{Shared, bounds, connect::Node, fail, kv_of};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::ids::MetaRev;
use crate::engine::meta::{
    Cond, DEFAULT_PAGE, Member, MetaStatus, Outcome, Page, RangeOpts, Span, Txn, Write, check,
};

/// Largest answer taken, bytes. etcd sends a range as one message, whatever its size.
const LARGEST_ANSWER: usize = 1 << 30;

/// A key that no server has: asked for the revision alone.
const NO_KEY: &[u8] = &[0];

fn revision(header: Option<&etcd_client::ResponseHeader>) -> MetaRev {
    MetaRev(header.map_or(0, etcd_client::ResponseHeader::revision))
}

impl Shared {
    /// The first read: the server answers, and knows us.
    pub async fn probe(&self) -> Result<MetaRev> {
        let result = self
            .call(Op::Read, &|client: Client| {
                async move {
                    let options = GetOptions::new().with_limit(1).with_keys_only();
                    client.kv_client().get(NO_KEY, Some(options)).await
                }
                .boxed()
            })
            .await;
        match result {
            Ok(answer) => Ok(revision(answer.header())),
            // a role that covers the root path only is enough for us
            Err(e)
                if e.kind() == ErrorKind::Denied
                    && e.what().contains("permission denied")
                    && self.is_known() =>
            {
                Ok(MetaRev(0))
            }
            Err(e) => Err(e),
        }
    }

    fn is_known(&self) -> bool {
        self.nodes.iter().any(Node::has_user)
    }

    pub async fn range(&self, span: &Span, opts: RangeOpts) -> Result<Page> {
        let limit = if opts.limit == 0 {
            DEFAULT_PAGE
        } else {
            opts.limit
        };
        // an empty end would mean "one key" to etcd: ask for a key that cannot be there instead
        let (start, end) = if span.is_empty() {
            (NO_KEY.to_vec(), None)
        } else {
            let (start, end) = bounds(span);
            (start, Some(end))
        };
        let op = opts.at.map_or(Op::Read, Op::ReadAt);
        let mut answer = self
            .call(op, &|client: Client| {
                let mut options =
                    GetOptions::new().with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
                if let Some(end) = &end {
                    options = options.with_range(end.clone());
                }
                if let Some(at) = opts.at {
                    options = options.with_revision(at.0);
                }
                if opts.keys_only {
                    options = options.with_keys_only();
                }
                let start = start.clone();
                async move {
                    client
                        .kv_client()
                        .max_decoding_message_size(LARGEST_ANSWER)
                        .get(start, Some(options))
                        .await
                }
                .boxed()
            })
            .await?;
        let kvs = if span.is_empty() {
            Vec::new()
        } else {
            answer.take_kvs()
        };
        Ok(Page {
            more: answer.more() && !span.is_empty(),
            rev: opts.at.unwrap_or(revision(answer.header())),
            kvs: kvs.into_iter().map(kv_of).collect(),
        })
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the one door to etcd's transactions"
    )]
    pub async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let request = request(&txn);
        let answer = self
            .call(Op::Write, &|client: Client| {
                let request = request.clone();
                async move {
                    client
                        .kv_client()
                        .max_decoding_message_size(LARGEST_ANSWER)
                        .txn(request)
                        .await
                }
                .boxed()
            })
            .await?;
        let rev = revision(answer.header());
        if answer.succeeded() {
            return Ok(Outcome::Committed { rev });
        }
        let seen = answer
            .op_responses()
            .into_iter()
            .filter_map(|r| match r {
                TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next().map(kv_of),
                _ => None,
            })
            .collect();
        Ok(Outcome::Refused { rev, seen })
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the one door to etcd's compaction"
    )]
    pub async fn compact(&self, rev: MetaRev) -> Result<()> {
        let result = self
            .call(Op::ReadAt(rev), &|client: Client| {
                async move { client.kv_client().compact(rev.0, None).await }.boxed()
            })
            .await;
        match result {
            Err(e) if e.kind() != ErrorKind::Compacted => Err(e),
            // already forgotten
            _ => Ok(()),
        }
    }

    pub async fn grant(&self, ttl: Duration) -> Result<i64> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let answer = self
            .call(Op::Write, &|client: Client| {
                async move { client.lease_client().grant(seconds.max(1), None).await }.boxed()
            })
            .await?;
        Ok(answer.id())
    }

    pub async fn keep_alive(&self, lease: i64) -> Result<()> {
        // renewing twice is harmless, hence a read in the eyes of a lost answer
        let ttl = self
            .call(Op::Read, &|client: Client| {
                async move {
                    let (mut keeper, mut answers) = client.lease_client().keep_alive(lease).await?;
                    keeper.keep_alive().await?;
                    Ok(answers.message().await?.map_or(0, |a| a.ttl()))
                }
                .boxed()
            })
            .await?;
        if ttl > 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!("lease {lease} does not exist, it has run out or was revoked"),
        ))
    }

    pub async fn revoke(&self, lease: i64) -> Result<()> {
        self.call(Op::Write, &|client: Client| {
            async move { client.lease_client().revoke(lease).await }.boxed()
        })
        .await?;
        Ok(())
    }

    /// The version of every endpoint, `None` where it is not known.
    pub async fn versions(&self) -> Vec<Option<String>> {
        join_all(self.nodes.iter().map(|node| async {
            let (answer, _) = self.ask_status(node).await;
            answer.ok().map(|s| s.version().to_owned())
        }))
        .await
    }

    async fn ask_status(
        &self,
        node: &Node,
    ) -> (Result<etcd_client::StatusResponse, Error>, Duration) {
        let before = self.clock.mono();
        let answer = self
            .attempt(node, Op::Read, &|client: Client| {
                async move { client.maintenance_client().status().await }.boxed()
            })
            .await
            .map_err(|v| v.error);
        (answer, self.clock.mono().saturating_sub(before))
    }

    pub async fn status(&self) -> Result<MetaStatus> {
        let answers = join_all(self.nodes.iter().map(|node| self.ask_status(node))).await;
        let mut status = MetaStatus::default();
        let mut failure = None;
        for (node, (answer, took)) in self.nodes.iter().zip(answers) {
            let mut member = Member {
                endpoint: node.name.clone(),
                answer: Ok(took),
                leader: false,
            };
            match answer {
                Ok(answer) => {
                    member.leader = answer
                        .header()
                        .is_some_and(|h| h.member_id() == answer.leader());
                    status.rev = status.rev.max(revision(answer.header()));
                    status.server = format!("etcd {}", answer.version());
                    let bytes = u64::try_from(answer.db_size()).unwrap_or(0);
                    status.db_bytes = Some(status.db_bytes.unwrap_or(0).max(bytes));
                    status.notes.extend(answer.errors().iter().cloned());
                }
                Err(e) => {
                    member.answer = Err(e.to_string());
                    failure = Some(e);
                }
            }
            if node.password_unused() {
                status.notes.push(format!(
                    "{} does not ask for the configured user and password (etcd.auth.enabled)",
                    node.name
                ));
            }
            status.members.push(member);
        }
        if let Some(e) = failure
            && status.members.iter().all(|m| m.answer.is_err())
        {
            return Err(fail::Verdict::not_sent(e).over_all(&self.endpoints(), self.nodes.len()));
        }
        status.alarms = self.alarms().await?;
        Ok(status)
    }

    async fn alarms(&self) -> Result<Vec<String>> {
        let answer = self
            .call(Op::Read, &|client: Client| {
                async move {
                    client
                        .maintenance_client()
                        .alarm(AlarmAction::Get, AlarmType::None, None)
                        .await
                }
                .boxed()
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            // only root may ask where authentication is on
            Err(e) if e.kind() == ErrorKind::Denied => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let name = |alarm| match alarm {
            AlarmType::None => None,
            AlarmType::Nospace => Some("NOSPACE".to_owned()),
            AlarmType::Corrupt => Some("CORRUPT".to_owned()),
        };
        Ok(answer
            .alarms()
            .iter()
            .filter_map(|a| name(a.alarm()))
            .collect())
    }
}

/// The transaction in etcd's terms. The reads of a refusal come back in the order of [`check::named_keys`].
fn request(txn: &Txn) -> RawTxn {
    let when: Vec<Compare> = txn.conds.iter().filter_map(compare).collect();
    let then: Vec<TxnOp> = txn.writes.iter().map(operation).collect();
    let otherwise: Vec<TxnOp> = check::named_keys(&txn.conds)
        .into_iter()
        .map(|key| TxnOp::get(key.0.as_ref(), None))
        .collect();
    RawTxn::new().when(when).and_then(then).or_else(otherwise)
}

fn compare(cond: &Cond) -> Option<Compare> {
    Some(match cond {
        Cond::Absent(key) => Compare::version(key.0.as_ref(), CompareOp::Equal, 0),
        Cond::At(key, rev) => Compare::mod_revision(key.0.as_ref(), CompareOp::Equal, rev.0),
        Cond::ValueIs(key, value) => {
            Compare::value(key.0.as_ref(), CompareOp::Equal, value.as_ref())
        }
        Cond::NoneUnder(prefix) => none_in(&Span::prefix(prefix))?,
        Cond::NoneIn(span) => none_in(span)?,
    })
}

/// A compare over a span holds when it holds for every key of it; version 0 holds for none, so the span must be empty.
fn none_in(span: &Span) -> Option<Compare> {
    if span.is_empty() {
        return None;
    }
    let (start, end) = bounds(span);
    Some(Compare::version(start, CompareOp::Equal, 0).with_range(end))
}

fn operation(write: &Write) -> TxnOp {
    match write {
        Write::Put { key, value, lease } => {
            let options = (*lease != 0).then(|| PutOptions::new().with_lease(*lease));
            TxnOp::put(key.0.as_ref(), value.as_ref(), options)
        }
        Write::Delete(key) => TxnOp::delete(key.0.as_ref(), None),
    }
}
