//! The physical channels of a root: one log each, opened when it is first needed. Who holds the log owns the channel; there is no other
//! assignment (`spec/lifecycle.md` §2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message as _;
use tokio::sync::watch;

use super::Wal;
use super::log::Log;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::{Family, Key, ParsedKey};
use crate::engine::format::pb::streaming::CChannelMeta;
use crate::engine::format::vchannel::{ChannelName, control};
use crate::engine::ids::{MetaKey, Term, Tso, VChannel};
use crate::engine::meta::scope::Scope;
use crate::engine::meta::{Cond, RangeOpts, Span, Write};
use crate::engine::plan::execute::Executor;
use crate::engine::plan::ledger::Swap;
use crate::engine::plan::retry::calm;

/// The logs that are open, by physical channel.
pub type OpenLogs = Arc<BTreeMap<String, Arc<dyn Wal>>>;

/// The term that holds the log of a physical channel, and that it still does as a condition: the channel's record moves with its owner
/// and with nothing else. `None` when nobody ever took it.
pub async fn holder(executor: &Executor, pchannel: &str) -> Result<Option<(Term, Cond)>> {
    let key = Key::PChannel(pchannel.to_owned()).to_key(executor.roots());
    let reader = executor.reader();
    let found = calm(&**executor.clock(), || reader.get(&key)).await?;
    found
        .map(|kv| {
            let term = super::term::of(Some(&kv.value)).map_err(|e| e.with("key", &key))?;
            Ok((term, Cond::At(key, kv.mod_rev)))
        })
        .transpose()
}

/// The root's channels. The executor must own the root as long as they are used. A clone is the same ones.
#[derive(Clone)]
pub struct Channels {
    executor: Arc<Executor>,
    /// On whose behalf logs are open: they outlive whoever needed them first.
    home: Arc<Executor>,
    open: watch::Sender<OpenLogs>,
    /// One opening at a time: two in one process would fence each other.
    gate: Arc<tokio::sync::Mutex<()>>,
    control: Arc<Mutex<Option<VChannel>>>,
}

impl Channels {
    /// None is open yet.
    pub fn new(executor: Arc<Executor>) -> Arc<Self> {
        Arc::new(Self {
            home: executor.clone(),
            executor,
            open: watch::Sender::new(OpenLogs::default()),
            gate: Arc::default(),
            control: Arc::default(),
        })
    }

    /// The same on behalf of another. What is opened by it stays open.
    #[must_use]
    pub fn within(&self, scope: &Scope) -> Self {
        Self {
            executor: self.executor.within(scope),
            ..self.clone()
        }
    }

    /// The logs that are open, as they are opened.
    pub fn open(&self) -> watch::Receiver<OpenLogs> {
        self.open.subscribe()
    }

    /// Our term on a physical channel; `None` when its log is not open, or has ended.
    #[must_use]
    pub fn term(&self, pchannel: &str) -> Option<Term> {
        let open = self.open.borrow();
        let log = open.get(pchannel)?;
        let alive = log.end().borrow().ended.is_none();
        alive.then(|| log.term())
    }

    /// The log of a physical channel. One that has ended is opened again, under the next term.
    pub async fn log(&self, pchannel: &str) -> Result<Arc<dyn Wal>> {
        let _gate = self.executor.scope().wait(self.gate.lock()).await?;
        let held = self.open.borrow().get(pchannel).cloned();
        if let Some(log) = held.filter(|log| log.end().borrow().ended.is_none()) {
            return Ok(log);
        }
        let scope = self.home.scope();
        let scope = scope.begun_by(self.executor.scope(), format!("log of {pchannel}"));
        let log: Arc<dyn Wal> = Log::open(self.home.within(&scope), pchannel).await?;
        self.open.send_modify(|open| {
            let mut all = (**open).clone();
            all.insert(pchannel.to_owned(), log.clone());
            *open = Arc::new(all);
        });
        Ok(log)
    }

    /// The log that a virtual channel, or the control channel, is a name on.
    pub async fn of(&self, vchannel: &VChannel) -> Result<Arc<dyn Wal>> {
        match ChannelName::parse(&vchannel.0) {
            ChannelName::Plain(name) => Err(Error::new(
                ErrorKind::Invalid,
                format!("{name:?} is no virtual channel: its physical channel cannot be told"),
            )),
            name => self.log(name.pchannel()).await,
        }
    }

    /// Every physical channel that records speak of: those with a log of ours, and those of stored virtual channels, whatever number
    /// is configured (#50905).
    pub async fn known(&self) -> Result<BTreeSet<String>> {
        let (executor, roots) = (&self.executor, self.executor.roots());
        let base = executor.keys().wals();
        let mut found = BTreeSet::new();
        for key in self.keys(&Span::prefix(&base)).await? {
            let rest = key.0.strip_prefix(&base.bytes()[..]).unwrap_or_default();
            let name = rest.split(|b| *b == b'/').next().unwrap_or_default();
            found.extend(std::str::from_utf8(name).map(str::to_owned));
        }
        for family in [Family::ChannelCheckpoint, Family::ChannelRemoval] {
            for key in self.keys(&Span::prefix(&family.prefix(roots))).await? {
                if let ParsedKey::Known(Key::ChannelCheckpoint(v) | Key::ChannelRemoval(v)) =
                    Key::parse(roots, &key.0)
                {
                    let name = ChannelName::parse(&v.0);
                    if !matches!(name, ChannelName::Plain(_)) {
                        found.insert(name.pchannel().to_owned());
                    }
                }
            }
        }
        Ok(found)
    }

    async fn keys(&self, span: &Span) -> Result<Vec<MetaKey>> {
        let (reader, clock) = (self.executor.reader(), self.executor.clock());
        let (mut span, mut out) = (span.clone(), Vec::new());
        loop {
            let opts = RangeOpts {
                keys_only: true,
                ..RangeOpts::default()
            };
            let page = calm(&**clock, || reader.range(&span, opts)).await?;
            out.extend(page.kvs.into_iter().map(|kv| kv.key));
            match out.last() {
                Some(last) if page.more => span = span.after(last),
                _ => return Ok(out),
            }
        }
    }

    /// The control channel: the recorded one, or, in a root that has none yet, the one on `pchannel`, which is recorded.
    pub async fn control(&self, pchannel: &str) -> Result<VChannel> {
        let held = self.lock_control().clone();
        if let Some(held) = held {
            return Ok(held);
        }
        let (reader, clock) = (self.executor.reader(), self.executor.clock());
        let roots = self.executor.roots();
        let key = Key::ControlChannel(false).to_key(roots);
        let hosted = loop {
            let mut record = calm(&**clock, || reader.get(&key)).await?;
            if record.is_none() {
                // Some builds wrote it with a trailing slash (`spec/layout.md` §5.1).
                let slashed = Key::ControlChannel(true).to_key(roots);
                record = calm(&**clock, || reader.get(&slashed)).await?;
            }
            if let Some(kv) = record {
                let meta = CChannelMeta::decode(&*kv.value)
                    .ok()
                    .filter(|m| !m.pchannel.is_empty());
                let meta = meta.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!(
                            "record {} does not say where the control channel is",
                            kv.key
                        ),
                    )
                })?;
                break meta.pchannel;
            }
            let meta = CChannelMeta {
                pchannel: pchannel.to_owned(),
            };
            let writes = vec![Write::put(key.clone(), meta.encode_to_vec())];
            // Refused or done, it is there afterwards.
            self.executor
                .swap(&mut Swap::new(vec![Cond::Absent(key.clone())], writes))
                .await?;
        };
        let channel = control(&hosted);
        *self.lock_control() = Some(channel.clone());
        Ok(channel)
    }

    /// The latest time tick of a virtual channel: whatever is appended to it from now on is above it. `NotFound` when its log is not open
    /// here, or has ended (§4 rule 6): who asks then goes by the time that it wants itself.
    pub fn latest(&self, vchannel: &VChannel) -> Result<Tso> {
        let pchannel = ChannelName::parse(&vchannel.0).pchannel();
        let open = self.open.borrow();
        let end = open.get(pchannel).map(|log| log.end().borrow().clone());
        match end {
            Some(end) if end.ended.is_none() => Ok(end.tick),
            held => {
                let why = held.and_then(|end| end.ended);
                let e = Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "the log of {vchannel} is not open here, so its latest time is not known"
                    ),
                );
                Err(match why {
                    Some(why) => e.caused_by(why),
                    None => e,
                })
            }
        }
    }

    fn lock_control(&self) -> std::sync::MutexGuard<'_, Option<VChannel>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every log.
    pub async fn close(&self) {
        let _gate = self.gate.lock().await;
        let open = self.open.borrow().clone();
        for log in open.values() {
            log.close().await;
        }
    }
}
