//! A large cluster made of the captured one: its flushed segments again and again under new ids, each with everything that
//! Milvus keeps for it.

use std::collections::BTreeMap;

use falconer::engine::format::keys::{Key, LogKind, ParsedKey, Roots};
use falconer::engine::format::wire::Patch;
use falconer::engine::ids::{BuildId, SegmentId};

use super::support::lab::{self, LabKey};

/// First id of the copies: above every id of the capture.
const FIRST_ID: i64 = 480_000_000_000_000_000;
/// Ids that one copy may take: its own, its build's, its log files'.
const IDS: i64 = 100;

/// The keys of one captured segment: its own, insert log of each field, statistics log, delete log, one index build.
struct Template {
    keys: Vec<(Key, Vec<u8>)>,
}

/// The captured keyspace without sessions, and generated segments.
pub struct Cluster {
    templates: Vec<Template>,
    roots: Roots,
}

impl Cluster {
    pub fn read() -> Self {
        let roots = Roots::default();
        let mut found: BTreeMap<SegmentId, Template> = BTreeMap::new();
        for LabKey { key, value, .. } in lab::etcd() {
            let ParsedKey::Known(key) = Key::parse(&roots, &key) else {
                continue;
            };
            let (Key::Segment(_, _, id)
            | Key::Log(_, _, _, id, _)
            | Key::SegmentIndex(_, _, id, _)) = key
            else {
                continue;
            };
            let template = found.entry(id).or_insert_with(|| Template { keys: vec![] });
            // Some segments have several indexes; the first stands for all.
            if !matches!(key, Key::SegmentIndex(..)) || template.builds() == 0 {
                template.keys.push((key, value));
            }
        }
        let templates: Vec<Template> = found.into_values().filter(Template::is_whole).collect();
        assert!(
            templates.len() > 50,
            "only {} whole segments",
            templates.len()
        );
        Self { templates, roots }
    }

    /// What is there before the first copy.
    pub fn base() -> Vec<LabKey> {
        lab::etcd_without_sessions()
    }

    /// The keys of copy `n`, as written by one flush. Only the segment's own key where `whole` is false.
    pub fn segment(&self, n: usize, whole: bool) -> Vec<LabKey> {
        let template = &self.templates[n % self.templates.len()];
        let first = FIRST_ID + i64::try_from(n).expect("a small number") * IDS;
        let (id, build) = (SegmentId(first), BuildId(first + 1));
        let mut next_log = first + 2;
        template
            .keys
            .iter()
            .filter(|(key, _)| whole || matches!(key, Key::Segment(..)))
            .map(|(key, value)| {
                let mut patch = Patch::parse(value).expect("a captured value is protobuf");
                let key = match key {
                    Key::Segment(c, p, _) => {
                        patch.set_integer(1, first as u64);
                        Key::Segment(*c, *p, id)
                    }
                    Key::SegmentIndex(c, p, _, _) => {
                        patch.set_integer(3, first as u64);
                        patch.set_integer(6, build.0 as u64);
                        Key::SegmentIndex(*c, *p, id, build)
                    }
                    Key::Log(kind, c, p, _, field) => {
                        patch
                            .each(2, |log| {
                                log.set_integer(6, next_log as u64);
                                next_log += 1;
                                Ok(())
                            })
                            .expect("a captured log list");
                        Key::Log(*kind, *c, *p, id, *field)
                    }
                    other => unreachable!("not of a segment: {other:?}"),
                };
                LabKey {
                    key: key.to_bytes(&self.roots),
                    value: patch.finish(),
                    create_revision: 0,
                    mod_revision: 0,
                    version: 0,
                    lease: 0,
                }
            })
            .collect()
    }
}

impl Template {
    fn builds(&self) -> usize {
        self.count(|key| matches!(key, Key::SegmentIndex(..)))
    }

    fn logs(&self, kind: LogKind) -> usize {
        self.count(|key| matches!(key, Key::Log(k, ..) if *k == kind))
    }

    fn count(&self, is: impl Fn(&Key) -> bool) -> usize {
        self.keys.iter().filter(|(key, _)| is(key)).count()
    }

    fn is_whole(&self) -> bool {
        self.count(|key| matches!(key, Key::Segment(..))) == 1
            && self.logs(LogKind::Insert) >= 5
            && self.logs(LogKind::Stats) == 1
            && self.logs(LogKind::Delta) == 1
            && self.builds() == 1
    }
}
