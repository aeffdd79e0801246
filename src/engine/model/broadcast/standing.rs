//! Where a broadcast stands (§II.8): exactly where this process drives it, and otherwise as far as its record and the records of its
//! channels tell. A record does not tell which copies are appended, nor who waits in a coordinator's memory.

use serde_json::{Value, json};

use super::keys::{Resource, ResourceKeys};
use super::record::{Broadcast, Target};
use super::view::{Shown, Waiting};
use crate::engine::format::pb::messages::ResourceDomain;
use crate::engine::ids::{BroadcastId, Tso, UnixMs};
use crate::engine::model::badges::{Badge, broadcast as badge};
use crate::engine::model::detail::Section;
use crate::engine::model::health::{FROZEN_MS, STUCK_MS, channels};
use crate::engine::model::resource::{Cell, Tone};
use crate::engine::model::rows::View;
use crate::engine::model::text::age;

/// More failures of one callback than this are no accident (§II.8).
pub const RETRIES: u32 = 10;

impl Broadcast {
    /// As this process drives it.
    #[must_use]
    pub fn own<'a>(&self, view: &View<'a>) -> Option<&'a Shown> {
        view.broadcasts.tasks.iter().find(|t| t.id == self.id)
    }

    /// Since when it is under way; nothing once it is over.
    #[must_use]
    pub fn since(&self, view: &View<'_>) -> Option<UnixMs> {
        if self.is_over() {
            return None;
        }
        self.own(view).map(|own| own.since).or(self.begun)
    }

    /// How many copies are appended: at least so many, and whether it is exactly so many.
    #[must_use]
    pub fn appended(&self, view: &View<'_>) -> (usize, bool) {
        match self.own(view) {
            Some(own) => (own.channels.iter().filter(|c| c.1).count(), true),
            // The fast acknowledgement comes after the last append, an observed one after its own.
            None => (self.acked(), self.acked() == self.targets.len()),
        }
    }

    /// Unfinished others that have a key in common with it which they cannot share, and that key.
    pub fn conflicts<'a>(
        &'a self,
        view: &View<'a>,
    ) -> impl Iterator<Item = (BroadcastId, &'a Resource)> {
        let others = view.catalog.broadcasts.values();
        let others = others.filter(move |o| o.id != self.id && !o.is_over() && !self.is_over());
        others.filter_map(move |o| self.keys.conflict(&o.keys).map(|over| (o.id, over)))
    }

    /// How many wait for its keys: what this process knows, or else the later records.
    #[must_use]
    pub fn blocks(&self, view: &View<'_>) -> usize {
        match self.own(view) {
            Some(own) => own.blocks,
            None => self.conflicts(view).filter(|(id, _)| *id > self.id).count(),
        }
    }

    /// What it waits for; nothing once it is over.
    #[must_use]
    pub fn waiting(&self, view: &View<'_>) -> Option<Waiting> {
        if self.is_over() {
            return None;
        }
        if let Some(own) = self.own(view) {
            return Some(own.waiting.clone());
        }
        if let Some(damage) = self.damage.first() {
            return Some(Waiting::Stopped((*damage).to_owned()));
        }
        let open: Vec<&Target> = self.targets.iter().filter(|t| t.acked.is_none()).collect();
        let Some(first) = open.first() else {
            let mut before: Vec<BroadcastId> = self.conflicts(view).map(|(id, _)| id).collect();
            before.retain(|id| *id < self.id);
            return Some(if before.is_empty() {
                Waiting::Callback(0, None)
            } else {
                Waiting::Order(before)
            });
        };
        if self.ack_sync_up {
            return Some(self.slowest(view, &open, first));
        }
        let trouble = |t: &&&Target| channels::trouble(view, &t.channel.0).is_some();
        let worst = open.iter().find(trouble).unwrap_or(&open[0]);
        let why = channels::trouble(view, &worst.channel.0);
        Some(if self.acked() == 0 && open.len() > 1 {
            let why = why.unwrap_or_else(|| {
                format!(
                    "or to another of its {}; its record does not tell",
                    open.len()
                )
            });
            Waiting::Append(worst.channel.clone(), Some(why))
        } else if self.acked() == 0 {
            Waiting::Append(worst.channel.clone(), why)
        } else {
            Waiting::Ack(worst.channel.clone(), why)
        })
    }

    /// With the flag: the open channel whose checkpoint is farthest behind.
    fn slowest(&self, view: &View<'_>, open: &[&Target], first: &Target) -> Waiting {
        let Some(tick) = self.reference() else {
            return Waiting::Ack(
                first.channel.clone(),
                channels::trouble(view, &first.channel.0),
            );
        };
        let behind = open.iter().filter(|t| !t.control).filter_map(|t| {
            let at = checkpoint(view, t);
            at.is_none_or(|at| at < tick).then_some((at, *t))
        });
        match behind.min_by_key(|(at, t)| (*at, &t.channel)) {
            Some((at, target)) => Waiting::Checkpoint {
                channel: target.channel.clone(),
                tick,
                at,
            },
            None if first.control => Waiting::Ack(
                first.channel.clone(),
                channels::trouble(view, &first.channel.0),
            ),
            None => Waiting::Ack(
                first.channel.clone(),
                Some("its checkpoint has passed the message".into()),
            ),
        }
    }

    /// The tick that checkpoints are held against: of a copy that is known, or else of its id, which is older than every copy.
    fn reference(&self) -> Option<Tso> {
        self.tick().or_else(|| self.begun.map(Tso::from_ms))
    }

    /// What is to be said of it in a word, worst first.
    #[must_use]
    pub fn badges(&self, view: &View<'_>) -> Vec<&'static Badge> {
        let mut out = Vec::new();
        let Some(waiting) = self.waiting(view) else {
            return out;
        };
        let own = self.own(view);
        let ms = self.since(view).map_or(0, |at| view.now.since(at));
        if own.is_some_and(|own| own.unrecoverable) {
            out.push(&badge::APPEND_UNRECOVERABLE);
        }
        if matches!(waiting, Waiting::Stopped(_)) {
            out.push(&badge::STOPPED);
        }
        if own.is_none() && self.holds_keys() && self.holds_against(view).is_some() {
            out.push(&badge::KEY_CONFLICT);
        }
        let retries = own.map_or(0, |own| own.retries);
        if matches!(waiting, Waiting::Callback(..)) && retries > RETRIES {
            out.push(&badge::CALLBACK_RETRY);
        }
        if matches!(waiting, Waiting::Checkpoint { .. }) && ms > FROZEN_MS {
            out.push(&badge::CHECKPOINT_WAIT);
        } else if ms > STUCK_MS {
            out.push(&badge::STUCK);
        }
        if self.blocks(view) > 0 {
            out.push(&badge::BLOCKING);
        }
        out
    }

    /// Another unfinished record that holds the same key: Milvus does not start with two (§II.6 rule 2).
    #[must_use]
    pub fn holds_against<'a>(&'a self, view: &View<'a>) -> Option<(BroadcastId, &'a Resource)> {
        let holds = |id| {
            let other = view.catalog.broadcasts.get(&id);
            other.is_some_and(|o| o.holds_keys())
        };
        let mut all = self.conflicts(view);
        all.find(|(id, _)| holds(*id))
    }

    /// The collection or database that it is about, as a path.
    #[must_use]
    pub fn place(&self, view: &View<'_>) -> String {
        let named = |domain: ResourceDomain| {
            let mut keys = self.keys.iter();
            keys.find(|(r, _)| r.domain == domain as i32 && !r.key.is_empty())
                .map(|(r, _)| r.key.replacen(':', "/", 1))
        };
        let known = self.collection.and_then(|id| {
            let row = view.catalog.collections.get(&id)?;
            Some(format!(
                "{}/{}",
                view.catalog.database_name(row.db),
                row.name
            ))
        });
        named(ResourceDomain::CollectionName)
            .or(known)
            .or_else(|| self.collection.map(|id| id.to_string()))
            .or_else(|| named(ResourceDomain::DbName))
            .unwrap_or_default()
    }

    /// What it does to what, in words.
    #[must_use]
    pub fn title(&self, view: &View<'_>) -> String {
        let mut out = if self.kind.is_empty() {
            "a broadcast of no type".to_owned()
        } else {
            self.kind.clone().into_owned()
        };
        if let Some(about) = &self.about {
            out = format!("{out} {about}");
        }
        match self.place(view) {
            place if place.is_empty() => out,
            place => format!("{out} of {place}"),
        }
    }

    /// Sections of the detail view.
    #[must_use]
    pub fn sections(&self, view: &View<'_>) -> Vec<Section> {
        let mut out = Vec::new();
        let text = |t: String| Cell::Text(t.into());
        if let Some(own) = self.own(view) {
            let mut rows = vec![("waiting for".to_owned(), text(own.waiting.to_string()))];
            rows.push(("failed tries".into(), Cell::Count(i64::from(own.retries))));
            if own.job.0 != 0 {
                rows.push(("asked for by job".into(), Cell::Id(own.job.0)));
            }
            out.push(("Driven by this process", rows));
        }
        let channels = self.targets.iter().map(|t| {
            let (words, tone) = self.target_words(view, t);
            (t.channel.0.clone(), Cell::State(words.into(), tone))
        });
        out.push(("Where it goes", channels.collect()));
        let mut keys: Vec<(String, Cell)> = self
            .keys
            .iter()
            .map(|(resource, shared)| {
                let how = if shared { "shared" } else { "alone" };
                let words = if self.holds_keys() {
                    format!("{how}: {}", excludes(resource, shared))
                } else {
                    format!("{how}, no longer held")
                };
                (resource.to_string(), text(words))
            })
            .collect();
        for (id, over) in self.conflicts(view) {
            let how = if id > self.id { "waits" } else { "goes first" };
            keys.push((format!("broadcast {id}"), text(format!("{how}: {over}"))));
        }
        if let Some(own) = self.own(view).filter(|own| own.blocks > 0) {
            let n = own.blocks;
            keys.push(("waiting now".into(), text(format!("{n} operations"))));
        }
        out.push(("Keys", keys));
        if !self.damage.is_empty() {
            let rows = self
                .damage
                .iter()
                .map(|d| ("damage".to_owned(), text((*d).into())));
            out.push(("Damage", rows.collect()));
        }
        out
    }

    /// One channel: appended, its checkpoint against the message, acked or not.
    fn target_words(&self, view: &View<'_>, t: &Target) -> (String, Tone) {
        let at = |tick: Tso| tick.time().map(UnixMs::utc);
        if let Some(tick) = t.acked {
            let words = match at(tick) {
                Some(at) => format!("ACKED · appended {at}"),
                None => "ACKED".to_owned(),
            };
            return (words, Tone::Good);
        }
        if self.is_over() {
            return ("over".into(), Tone::Dim);
        }
        let own = self.own(view);
        let appended = own.and_then(|own| own.channels.iter().find(|c| c.0 == t.channel));
        let mut words = vec![match appended {
            Some((_, true, _)) => "WAITING · appended".to_owned(),
            Some((_, false, _)) => "WAITING · not appended".to_owned(),
            None => "WAITING".to_owned(),
        }];
        let mut tone = Tone::Busy;
        if t.control {
            words.push("control channel: acked when it is seen".into());
        } else if let Some(cp) = checkpoint(view, t) {
            words.push(match cp.time() {
                Some(at) => format!("checkpoint {}", at.utc()),
                None if cp.is_dropped() => "dropped: that satisfies the wait".into(),
                None => "checkpoint unset".into(),
            });
            let behind = self.reference().and_then(Tso::time).zip(cp.time());
            if let Some((message, cp)) = behind.filter(|(message, cp)| cp < message) {
                words.push(format!("{} behind the message", age(message.since(cp))));
                tone = Tone::Warn;
            }
        } else {
            words.push("no checkpoint".into());
        }
        if let Some(why) = channels::trouble(view, &t.channel.0) {
            words.push(why);
            tone = Tone::Bad;
        }
        (words.join(" · "), tone)
    }

    /// What no column holds.
    #[must_use]
    pub fn json(&self, view: &View<'_>) -> Vec<(&'static str, Value)> {
        let own = self.own(view);
        let channels: Vec<Value> = self
            .targets
            .iter()
            .map(|t| {
                let appended = own.and_then(|own| own.channels.iter().find(|c| c.0 == t.channel));
                let tick = t.acked.filter(|tick| tick.time().is_some());
                let cp = checkpoint(view, t);
                json!({
                    "channel": t.channel,
                    "control": t.control,
                    "appended": appended.map(|c| c.1).or_else(|| t.acked.map(|_| true)),
                    "acked": t.acked.is_some(),
                    "tick": tick.map(|t| t.0.to_string()),
                    "tick_utc": tick.and_then(Tso::time).map(UnixMs::utc),
                    "checkpoint": cp.and_then(Tso::time).map(UnixMs::utc),
                    "dropped": cp.is_some_and(Tso::is_dropped),
                })
            })
            .collect();
        let keys: Vec<Value> = self
            .keys
            .iter()
            .map(|(r, shared)| json!({ "resource": r.to_string(), "shared": shared }))
            .collect();
        let conflicts: Vec<Value> = self
            .conflicts(view)
            .map(|(id, over)| json!({ "broadcast": id.to_string(), "over": over.to_string() }))
            .collect();
        vec![
            (
                "collection_id",
                self.collection.map(|id| id.to_string()).into(),
            ),
            ("channels", channels.into()),
            ("held_keys", keys.into()),
            ("conflicts", conflicts.into()),
            ("driven_here", own.is_some().into()),
            (
                "job",
                own.filter(|o| o.job.0 != 0)
                    .map(|o| o.job.to_string())
                    .into(),
            ),
            ("damage", self.damage.clone().into()),
        ]
    }
}

fn checkpoint(view: &View<'_>, t: &Target) -> Option<Tso> {
    let row = view.catalog.channels.get(&t.channel)?;
    row.checkpoint.filter(|cp| *cp != Tso::UNSET)
}

/// Which operations a held key keeps out (§II.2 rule 6).
fn excludes(resource: &Resource, shared: bool) -> &'static str {
    match (ResourceDomain::try_from(resource.domain), shared) {
        (Ok(ResourceDomain::CollectionName), false) => {
            "create, drop, alter, truncate, partition and index operations on it wait"
        }
        (Ok(ResourceDomain::CollectionName), true) => "operations that want it alone wait",
        (Ok(ResourceDomain::DbName), false) => "every operation in the database waits",
        (Ok(ResourceDomain::DbName), true) => "drop, alter and rename across the database wait",
        (Ok(ResourceDomain::Cluster), false) => "every operation of the cluster waits",
        (Ok(ResourceDomain::Cluster), true) => "changes of the replication wait",
        (Ok(ResourceDomain::Privilege), _) => "users, roles and grants wait",
        (Ok(ResourceDomain::SnapshotName), _) => "other operations on the snapshot wait",
        _ => "operations on it wait",
    }
}

/// Keys in a cell: alone first, without the shared cluster key that every broadcast holds.
#[must_use]
pub fn key_words(keys: &ResourceKeys) -> String {
    let mut words: Vec<(bool, String)> = keys
        .iter()
        .filter(|(r, shared)| !(*shared && r.domain == ResourceDomain::Cluster as i32))
        .map(|(r, shared)| {
            let name = if r.key.is_empty() {
                r.to_string()
            } else {
                r.key.replacen(':', "/", 1)
            };
            (
                shared,
                format!("{} {}", if shared { "S" } else { "X" }, name.trim_end()),
            )
        })
        .collect();
    words.sort();
    let words: Vec<String> = words.into_iter().map(|(_, w)| w).collect();
    words.join(" · ")
}

/// The tone of what it waits for.
#[must_use]
pub fn tone(view: &View<'_>, b: &Broadcast) -> Tone {
    let worst = b.badges(view).iter().map(|badge| badge.tone).max();
    worst.unwrap_or(if b.is_over() { Tone::Dim } else { Tone::Busy })
}
