//! Making a root ours: no job, because a job's record needs an id, and the allocator of ids is made here.

use futures::StreamExt;
use prost::Message as _;

use super::Inner;
use crate::engine::coordinator::mark::{self, Mark};
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::keys::Key;
use crate::engine::format::pb::etcd::{DatabaseInfo, DatabaseState};
use crate::engine::ids::{DbId, JobId, KeyPrefix, MetaKey, MetaRev, ObjectKey, Tso};
use crate::engine::meta::{Cond, Span, Write};
use crate::engine::plan::journal::{Audit, AuditKey, json};
use crate::engine::plan::ledger::{Swap, Swapped};
use crate::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};
use crate::engine::profile::Roots;

/// Everything that a Milvus of this root would own.
fn owned(roots: &Roots) -> Vec<KeyPrefix> {
    let trimmed = |p: &str| p.trim_matches('/').to_owned();
    match trimmed(&roots.root) {
        root if root.is_empty() => [&roots.meta, &roots.kv]
            .into_iter()
            .map(|p| KeyPrefix::new(&trimmed(p)))
            .collect(),
        root => vec![KeyPrefix::new(&root)],
    }
}

impl Inner {
    pub(super) async fn plan_init(&self, intent: &Intent) -> Result<Plan> {
        let Intent::Init { channels } = intent else {
            return Err(Error::new(ErrorKind::Internal, "not an init"));
        };
        let executor = &self.executor;
        let (reader, clock, roots) = (executor.reader(), executor.clock(), executor.roots());
        let check = |name: &str, failed: Option<String>, detail: String| Check {
            name: name.into(),
            failed,
            detail,
        };
        let stands = mark::read(&reader, &**clock, executor.keys()).await?;
        let stands = stands.map(|m| {
            let by = format!("it is ours since {}, made by {}", m.at.utc(), m.maker);
            format!("{by}, with {} channels", m.channels)
        });
        let (key, object) = (self.foreign_key().await?, self.foreign_object().await?);
        let now = clock.now();
        let made = Mark::new(roots, *channels, executor.actor(), now);
        let put = |key: String, what: String| KeyChange {
            key,
            before: None,
            after: Some(what),
        };
        Ok(Plan {
            intent: intent.clone(),
            title: format!("make root {:?} Falconer's own", roots.root),
            checks: vec![
                check("the root is nobody's", stands, "no mark".into()),
                check(
                    "it has no key",
                    key.map(|k| format!("key {k} stands in it: choose another root with --root")),
                    format!("no key under {:?}", roots.root),
                ),
                check(
                    "the bucket's root has no object",
                    object.map(|o| {
                        format!("object {o} lies in it: choose another root with --bucket s3://NAME/ROOT")
                    }),
                    executor.objects().describe(),
                ),
            ],
            steps: vec![
                "own the root".into(),
                "in one transaction, only if no key stands: the mark, the id allocator, database default".into(),
            ],
            changes: vec![
                put(
                    executor.keys().root().text(),
                    format!(
                        "channels: {} to {}\nversion: {}",
                        made.pchannel(0),
                        made.pchannel(channels.saturating_sub(1)),
                        made.version
                    ),
                ),
                put(executor.allocator_key().text(), now.utc()),
                put(
                    Key::Database(DbId(1)).to_key(roots).text(),
                    "name: default".into(),
                ),
            ],
            objects: ObjectChange::default(),
            warnings: vec![
                "no Milvus may ever use this root: it would own the same channels".into(),
            ],
            undo: "delete these keys while nothing else stands in the root".into(),
            danger: Danger::Medium,
            type_to_confirm: None,
            based_on: MetaRev(0),
            rests_on: Vec::new(),
            hash: String::new(),
        })
    }

    async fn foreign_key(&self) -> Result<Option<MetaKey>> {
        let executor = &self.executor;
        let reader = executor.reader();
        for prefix in owned(executor.roots()) {
            let span = Span::prefix(&prefix);
            let found = mark::occupant(&reader, &**executor.clock(), &span).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn foreign_object(&self) -> Result<Option<ObjectKey>> {
        let objects = self.executor.objects();
        let root = objects.root().trim_matches('/').to_owned();
        let mut listed = objects.list(&ObjectKey(root), None);
        listed.next().await.transpose().map(|o| o.map(|o| o.key))
    }

    /// Makes it, or says what has come to stand there.
    pub(super) async fn settle_init(&self, plan: &Plan) -> Result<String> {
        let _gate = self.turn().await?;
        let done = self.initialised(plan).await;
        self.give_back().await;
        done
    }

    async fn initialised(&self, plan: &Plan) -> Result<String> {
        let Intent::Init { channels } = &plan.intent else {
            return Err(Error::new(ErrorKind::Internal, "not an init"));
        };
        let executor = &self.executor;
        executor.fence().acquire().await?;
        executor.fence().check().await?;
        if let Some(object) = self.foreign_object().await? {
            return Err(taken(&format!("object {object} lies in the bucket's root")));
        }
        let (now, roots, keys) = (executor.clock().now(), executor.roots(), executor.keys());
        let mark = Mark::new(roots, *channels, executor.actor(), now);
        let database = DatabaseInfo {
            id: 1,
            name: "default".into(),
            state: DatabaseState::DatabaseCreated as i32,
            created_time: Tso::from_ms(now).0,
            ..DatabaseInfo::default()
        };
        let window = u64::try_from(now.to_ns().0).unwrap_or(0).to_be_bytes();
        let mut writes = vec![
            Write::put(keys.root(), json(&mark)?),
            Write::put(executor.allocator_key(), window.to_vec()),
            Write::put(
                Key::Database(DbId(1)).to_key(roots),
                database.encode_to_vec(),
            ),
        ];
        let audit = Audit {
            at: now,
            actor: executor.actor().to_owned(),
            job: JobId(0),
            plan: plan.hash.clone(),
            change: "init".into(),
            keys: writes
                .iter()
                .map(|w| AuditKey {
                    key: w.key().text(),
                    old: None,
                    what: "make the root ours".into(),
                })
                .collect(),
        };
        writes.push(Write::put(
            keys.audit(MetaRev(0), JobId(0), "init", 0),
            json(&audit)?,
        ));
        let mut conds = vec![Cond::Absent(keys.root())];
        conds.extend(owned(roots).into_iter().map(Cond::NoneUnder));
        match executor.swap(&mut Swap::new(conds, writes)).await? {
            Swapped::Done(_) => Ok(format!(
                "root {:?} is Falconer's own, with {channels} physical channels",
                roots.root
            )),
            Swapped::Refused(_) => Err(match self.foreign_key().await? {
                Some(key) => taken(&format!("key {key} stands in it")),
                None => taken("its mark stands"),
            }),
        }
    }
}

fn taken(why: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("the root is somebody's by now: {why}"),
    )
    .fix("choose another root")
}
