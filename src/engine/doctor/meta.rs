//! Checks of the metadata store: endpoints, space, coordinators, clock, id allocator, versions.

use std::collections::BTreeSet;

use super::{Check, Patient};
use crate::engine::error::{ErrorKind, Result};
use crate::engine::format::keys::{Family, Key, ParsedKey};
use crate::engine::format::{codec, pb, time};
use crate::engine::ids::{MetaKey, Tso, UnixMs, UnixNs};
use crate::engine::meta::{KeyValue, MetaStatus, RangeOpts, Span};

/// etcd's own default quota; a cluster may have set more, so this only warns.
const QUOTA: u64 = 2 << 30;
/// Milvus saves its clock windows up to 3 s ahead.
const AHEAD_MS: u64 = 10_000;
/// A live cluster's window never stands this long.
const BEHIND_MS: u64 = 60_000;
/// What lies further ahead than ten years was written by no clock: a sentinel, or not a time at all (law 10).
const NO_CLOCK_MS: u64 = 10 * 365 * 86_400_000;
/// 2019-01-01: no Milvus is older, so a machine that believes in an earlier day has no clock.
const FIRST_MILVUS: UnixMs = UnixMs(1_546_300_800_000);

/// The store answers, endpoint by endpoint, takes our identity and has space.
pub(super) async fn store(p: &Patient<'_>) -> Vec<Check> {
    let status = match p.meta.status().await {
        Ok(status) => status,
        Err(e) if e.kind() == ErrorKind::Denied => {
            return vec![Check::from_error(
                "etcd",
                &e,
                "check etcd.auth.userName and etcd.auth.password",
            )];
        }
        Err(e) => {
            return vec![Check::from_error(
                "etcd",
                &e,
                "check etcd.endpoints, and that etcd is up",
            )];
        }
    };
    let down: Vec<String> = status
        .members
        .iter()
        .filter_map(|m| {
            m.answer
                .as_ref()
                .err()
                .map(|why| format!("{}: {why}", m.endpoint))
        })
        .collect();
    let up = status.members.len() - down.len();
    let line = format!("{} at revision {}", status.server, status.rev);
    let reach = if down.is_empty() {
        let leader = status.members.iter().find(|m| m.leader);
        Check::ok(
            "etcd",
            match (status.members.len(), leader) {
                (0 | 1, _) => line,
                (n, Some(leader)) => format!("{line}, {n} endpoints, leader {}", leader.endpoint),
                (n, None) => format!("{line}, {n} endpoints"),
            },
        )
    } else if up == 0 {
        Check::fail("etcd", format!("no endpoint answers: {}", down.join("; ")))
            .fix("check etcd.endpoints, and that etcd is up")
            .items(down)
    } else {
        Check::warn("etcd", format!("{line}, but not every endpoint answers"))
            .fix("check etcd.endpoints, and the members that do not answer")
            .items(down)
    };
    vec![reach, space(&status)]
}

fn space(status: &MetaStatus) -> Check {
    const NAME: &str = "etcd space";
    let size = status.db_bytes.map(|b| format!("{} MiB", b >> 20));
    if !status.alarms.is_empty() {
        return Check::fail(
            NAME,
            format!(
                "alarm {}: etcd takes no more writes",
                status.alarms.join(", ")
            ),
        )
        .fix("compact and defragment etcd, raise its quota-backend-bytes, then disarm the alarm");
    }
    match (status.db_bytes, size) {
        (Some(bytes), Some(size)) if bytes > QUOTA / 10 * 8 && status.server.starts_with("etcd") => {
            Check::warn(
                NAME,
                format!("{size}, over 80 % of etcd's default quota of 2048 MiB"),
            )
            .fix("compare with etcd's quota-backend-bytes; compact and defragment before it is reached")
        }
        (Some(_), Some(size)) => Check::ok(NAME, size),
        _ => Check::skipped(NAME, format!("{} does not say its size", status.server)),
    }
}

/// One registered process.
struct Session {
    key: MetaKey,
    role: String,
    is_coordinator: bool,
    lease: i64,
    version: String,
    address: String,
}

async fn sessions(p: &Patient<'_>) -> Result<Vec<Session>> {
    let span = Span::prefix(&Family::Session.prefix(p.roots));
    let page = p.meta.range_all(&span).await?;
    Ok(page.kvs.iter().filter_map(|kv| session(p, kv)).collect())
}

fn session(p: &Patient<'_>, kv: &KeyValue) -> Option<Session> {
    let Some(Key::Session(role, node)) = parsed(p, kv) else {
        return None;
    };
    let json: serde_json::Value = serde_json::from_slice(&kv.value).unwrap_or_default();
    let text = |name: &str| json[name].as_str().unwrap_or("?").to_owned();
    Some(Session {
        key: kv.key.clone(),
        is_coordinator: role.is_coordinator(),
        role: match node {
            Some(id) => format!("{}-{id}", role.name()),
            None => role.name().to_owned(),
        },
        lease: kv.lease,
        version: text("Version"),
        address: text("Address"),
    })
}

pub(super) fn parsed(p: &Patient<'_>, kv: &KeyValue) -> Option<Key> {
    match Key::parse(p.roots, &kv.key.0) {
        ParsedKey::Known(key) => Some(key),
        ParsedKey::Unknown => None,
    }
}

/// Who is alive. Any coordinator session, even a left-over one, forbids writing (`spec/layout.md` §1.4).
pub(super) async fn coordinators(p: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "coordinators";
    let all = match sessions(p).await {
        Ok(all) => all,
        Err(e) => return vec![Check::from_error(NAME, &e, "check etcd.endpoints")],
    };
    let nodes = all.iter().filter(|s| !s.is_coordinator).count();
    let (left, alive): (Vec<&Session>, Vec<&Session>) = all
        .iter()
        .filter(|s| s.is_coordinator)
        .partition(|s| s.lease == 0);
    if !left.is_empty() {
        let keys = left
            .iter()
            .map(|s| format!("{} ({} {})", s.key, s.address, s.version))
            .collect();
        return vec![
            Check::warn(
                NAME,
                format!(
                    "{} coordinator sessions have no lease: left over, they look alive for ever and forbid writing",
                    left.len()
                ),
            )
            .fix("once no coordinator runs, delete these session keys with etcdctl")
            .items(keys),
        ];
    }
    if alive.is_empty() {
        return vec![Check::ok(
            NAME,
            format!("none is alive ({nodes} other sessions): writing is possible"),
        )];
    }
    let names: Vec<String> = alive
        .iter()
        .map(|s| format!("{} {} at {}", s.role, s.version, s.address))
        .collect();
    let versions: BTreeSet<&str> = alive.iter().map(|s| s.version.as_str()).collect();
    let detail = format!(
        "alive: {}; {nodes} other sessions; observing and planning only",
        names.join(", ")
    );
    vec![if versions.len() > 1 {
        Check::warn(NAME, detail).fix("coordinators of different versions: is an upgrade stuck?")
    } else {
        Check::ok(NAME, detail)
    }]
}

/// Versions and forms that occur.
pub(super) async fn versions(p: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "versions";
    let found = async {
        let all = sessions(p).await?;
        let mut milvus: BTreeSet<String> = all
            .into_iter()
            .map(|s| s.version)
            .filter(|v| v != "?")
            .collect();
        if let Some(key) = Family::SessionVersion.single(p.roots)
            && let Some(kv) = p.meta.get(&key).await?
        {
            milvus.insert(String::from_utf8_lossy(&kv.value).into_owned());
        }
        let opts = RangeOpts {
            limit: 500,
            ..RangeOpts::default()
        };
        let span = Span::prefix(&Family::Segment.prefix(p.roots));
        let page = p.meta.range(&span, opts).await?;
        let mut storage: BTreeSet<i64> = BTreeSet::new();
        for kv in &page.kvs {
            if let Some(key) = parsed(p, kv)
                && let Some(info) = codec::decode::<pb::data::SegmentInfo>(&key, &kv.value).value()
            {
                storage.insert(info.storage_version);
            }
        }
        let copies = Span::prefix(&Family::TimestampedCopy.prefix(p.roots));
        let one = RangeOpts {
            limit: 1,
            keys_only: true,
            ..RangeOpts::default()
        };
        let copies = !p.meta.range(&copies, one).await?.kvs.is_empty();
        Ok((milvus, storage, page.more, copies))
    };
    let found: Result<_> = found.await;
    let (milvus, storage, more, copies) = match found {
        Ok(found) => found,
        Err(e) => return vec![Check::from_error(NAME, &e, "check etcd.endpoints")],
    };
    let list = |items: Vec<String>, none: &str| {
        if items.is_empty() {
            none.to_owned()
        } else {
            items.join(", ")
        }
    };
    let storage = list(
        storage
            .iter()
            .map(|v| format!("V{}", (*v).max(1)))
            .collect(),
        "none",
    );
    vec![Check::ok(
        NAME,
        format!(
            "Milvus {}; segment storage {storage}{}; timestamped copies of RootCoord: {}",
            list(milvus.into_iter().collect(), "not named by any session"),
            if more {
                " among the first 500 segments"
            } else {
                ""
            },
            if copies { "yes (up to 2.6.14)" } else { "no" },
        ),
    )]
}

/// Our clock against the newest moments the cluster wrote. Sentinels are not times (law 10).
pub(super) async fn clock(p: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "clock";
    let now = p.clock.now();
    let believable = |at: &UnixMs| now < FIRST_MILVUS || at.since(now) <= NO_CLOCK_MS;
    let found = async {
        let window = match Family::TsoAllocator.single(p.roots) {
            Some(key) => p.meta.get(&key).await?,
            None => None,
        };
        let window = window
            .and_then(|kv| time::read_window(&kv.value))
            .map(UnixNs::to_ms)
            .filter(believable);
        let span = Span::prefix(&Family::ChannelCheckpoint.prefix(p.roots));
        let page = p.meta.range(&span, RangeOpts::default()).await?;
        let newest = page
            .kvs
            .iter()
            .filter_map(|kv| {
                let key = parsed(p, kv)?;
                let at = codec::decode::<pb::msg::MsgPosition>(&key, &kv.value).value()?;
                Tso(at.timestamp).time().filter(believable)
            })
            .max();
        let alive = sessions(p)
            .await?
            .iter()
            .any(|s| s.is_coordinator && s.lease != 0);
        Ok((window, newest, alive))
    };
    let found: Result<_> = found.await;
    let (window, newest, alive) = match found {
        Ok(found) => found,
        Err(e) => return vec![Check::from_error(NAME, &e, "check etcd.endpoints")],
    };
    vec![verdict(NAME, now, window, newest, alive)]
}

fn verdict(
    name: &'static str,
    now: UnixMs,
    window: Option<UnixMs>,
    newest: Option<UnixMs>,
    alive: bool,
) -> Check {
    const FIX: &str = "set this machine's clock (NTP): leases, expiry and lag are computed from it";
    let Some(last) = window.max(newest) else {
        return Check::skipped(name, "the cluster has not written a time yet");
    };
    let ahead = last.since(now);
    if ahead > AHEAD_MS {
        return Check::warn(
            name,
            format!(
                "this machine is {} s behind what the cluster wrote ({})",
                ahead / 1000,
                last.utc()
            ),
        )
        .fix(FIX);
    }
    if alive && now.since(last) > BEHIND_MS {
        return Check::warn(
            name,
            format!(
                "a coordinator is alive, but its clock window ended {} s ago ({})",
                now.since(last) / 1000,
                last.utc()
            ),
        )
        .fix(FIX);
    }
    Check::ok(
        name,
        format!("newest moment in the metadata: {}", last.utc()),
    )
}

/// Families whose keys end in an id from the cluster's allocator.
const WITH_IDS: [Family; 8] = [
    Family::Collection,
    Family::Partition,
    Family::Segment,
    Family::SegmentIndex,
    Family::Snapshot,
    Family::CopySegmentJob,
    Family::ImportJob,
    Family::FieldIndex,
];

/// The allocator's window stands above every id in use; else Milvus would give an id out twice.
pub(super) async fn allocator(p: &Patient<'_>) -> Vec<Check> {
    const NAME: &str = "id allocator";
    let found = async {
        let mut newest = 0;
        for family in WITH_IDS {
            let mut span = Span::prefix(&family.prefix(p.roots));
            loop {
                let opts = RangeOpts {
                    keys_only: true,
                    ..RangeOpts::default()
                };
                let page = p.meta.range(&span, opts).await?;
                for kv in &page.kvs {
                    newest = newest.max(last_number(&kv.key));
                }
                match page.kvs.last() {
                    Some(last) if page.more => span = span.after(&last.key),
                    _ => break,
                }
            }
        }
        let window = match Family::IdAllocator.single(p.roots) {
            Some(key) => p.meta.get(&key).await?,
            None => None,
        };
        Ok((newest, window))
    };
    let found: Result<(i64, Option<KeyValue>)> = found.await;
    let (newest, window) = match found {
        Ok(found) => found,
        Err(e) => return vec![Check::from_error(NAME, &e, "check etcd.endpoints")],
    };
    let place = Family::IdAllocator
        .single(p.roots)
        .map_or_else(String::new, |k| k.to_string());
    let end = window.as_ref().and_then(|kv| time::read_window(&kv.value));
    vec![match (end, newest) {
        (None, 0) => Check::skipped(NAME, "no id has been given out yet"),
        (None, newest) => Check::fail(
            NAME,
            format!("{place} is missing or unreadable, but id {newest} is in use"),
        )
        .fix("check etcd.kvSubPath; without this key no new id is safe"),
        (Some(end), newest) => {
            let floor = time::compose(end.to_ms(), 0);
            if u64::try_from(newest).unwrap_or(0) < floor.0 {
                Check::ok(
                    NAME,
                    format!("window ends {}, above id {newest}", end.to_ms().utc()),
                )
            } else {
                Check::fail(
                    NAME,
                    format!(
                        "{place} ends {}, below id {newest} that is in use: Milvus may give ids out twice",
                        end.to_ms().utc()
                    ),
                )
                .fix("the metadata was restored over another cluster's: move the allocator forward before Milvus starts")
            }
        }
    }]
}

fn last_number(key: &MetaKey) -> i64 {
    let tail = key.0.rsplit(|b| *b == b'/').next().unwrap_or_default();
    std::str::from_utf8(tail)
        .ok()
        .and_then(|t| t.parse().ok())
        .unwrap_or(0)
}
