//! A console on the captured cluster without a terminal: keys go in as text, effects are carried out at once by an engine
//! that answers from the capture, and the screen comes out as letters.
#![allow(dead_code, reason = "each user takes its own part")]

#[path = "../support/lab.rs"]
pub mod lab;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use crossterm::event::{Event as Term, KeyCode, KeyEvent, KeyModifiers};
use falconer::engine::error::{Error, ErrorKind, Result};
use falconer::engine::format::codec::Codec;
use falconer::engine::format::keys::{Key, ParsedKey, Roots};
use falconer::engine::format::{codec, json, mask};
use falconer::engine::handle::{Conn, Place, RawValue, Reply, Request, TO_WRITE};
use falconer::engine::ids::{JobId, MetaKey, MetaRev, UnixMs};
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::jobs::{
    Copies, Copying, FileError, JobInfo, JobKind, JobState, JobsView, Progress,
};
use falconer::engine::plan::{Check, Danger, Intent, KeyChange, ObjectChange, Plan};
use falconer::ui::app::{App, Effect, Msg, update};
use falconer::ui::picture;
use falconer::ui::rows;
use falconer::ui::theme::{Depth, Look};

/// Four seconds after the capture was taken.
pub const NOW: UnixMs = UnixMs(1_795_427_102_540);

pub fn keyspace() -> Vec<KeyValue> {
    lab::etcd()
        .into_iter()
        .map(|k| KeyValue {
            key: MetaKey(Bytes::from(k.key)),
            value: Bytes::from(k.value),
            create_rev: MetaRev(k.create_revision),
            mod_rev: MetaRev(k.mod_revision),
            version: k.version,
            lease: k.lease,
        })
        .collect()
}

pub fn catalog(keys: &[KeyValue]) -> Catalog {
    let events: Vec<Event> = keys.iter().cloned().map(Event::Put).collect();
    let mut catalog = Catalog::default();
    catalog.apply(&Roots::default(), &events);
    catalog
}

pub const DARK: Look = Look {
    depth: Depth::True,
    light: false,
    ascii: false,
};
pub const BARE: Look = Look {
    depth: Depth::None,
    light: false,
    ascii: true,
};

pub fn place(read_only: Option<&str>) -> Arc<Place> {
    Arc::new(Place {
        profile: "staging".to_owned(),
        attach: "cluster",
        meta: "etcd http://127.0.0.1:2379 by-dev/meta".to_owned(),
        bucket: "a-bucket/files at http://127.0.0.1:9000".to_owned(),
        read_only: read_only.map(str::to_owned),
        to_write: TO_WRITE,
    })
}

/// A restore on its way and one that failed.
pub fn jobs() -> Arc<JobsView> {
    let running = JobInfo {
        id: JobId(450_000_000_000_000_101),
        kind: JobKind::Restore,
        title: "restore hello_milvus@nightly → hello_again".to_owned(),
        state: JobState::Running,
        step: "copying files".to_owned(),
        steps: (4, 9),
        progress: Progress {
            segments: (3, 8),
            files: (412, 1_301),
            bytes: (7_340_032, 17_825_792),
            rate: 1_572_864.0,
            eta_ms: Some(6_700),
            rows: 3_000,
        },
        collection: None,
        started: UnixMs(NOW.0 - 9_000),
        moved: UnixMs(NOW.0 - 300),
        ended: None,
        error: None,
        notes: vec![
            "8 segments, 1,301 files, 17.0 MiB".to_owned(),
            "ids 450000000000000200 to 450000000000000263 taken".to_owned(),
        ],
        recovered: None,
        copies: Copies {
            parallel: 16,
            limit: None,
            pace: None,
            running: vec![Copying {
                object: "files/insert_log/450000000000000200/450000000000000201/450000000000000202/101/450000000000000007".to_owned(),
                bytes: 1_048_576,
                took_ms: 700,
            }],
            slowest: Some(Copying {
                object: "files/index_files/450000000000000210/1/450000000000000201/450000000000000202/HNSW_0".to_owned(),
                bytes: 4_194_304,
                took_ms: 2_900,
            }),
            failed: vec![FileError {
                object: "files/delta_log/450000000000000001/450000000000000002/450000000000000003/9".to_owned(),
                error: "copying object was refused: 503 SlowDown".to_owned(),
                tries: 2,
                given_up: false,
            }],
            failing: 1,
        },
        until: None,
    };
    let failed = JobInfo {
        id: JobId(450_000_000_000_000_090),
        kind: JobKind::Restore,
        title: "restore books@weekly → books_old".to_owned(),
        state: JobState::Failed,
        step: "verify".to_owned(),
        steps: (8, 9),
        progress: Progress::default(),
        collection: None,
        started: UnixMs(NOW.0 - 7_200_000),
        moved: UnixMs(NOW.0 - 7_100_000),
        ended: Some(UnixMs(NOW.0 - 7_100_000)),
        error: Some(
            "object files/insert_log/4/5/6/100/7 is missing; restore the bucket first".to_owned(),
        ),
        notes: vec!["everything that it made has been taken back".to_owned()],
        recovered: Some(
            "undone: the target's name was taken while the console was away".to_owned(),
        ),
        copies: Copies::default(),
        until: None,
    };
    Arc::new(JobsView {
        known: true,
        jobs: vec![Arc::new(running), Arc::new(failed)],
        ..JobsView::default()
    })
}

pub fn plan(intent: Intent) -> Plan {
    let (danger, word) = match &intent {
        Intent::DropSnapshot { .. } => (Danger::High, Some("nightly".to_owned())),
        Intent::CancelJob { .. } => (Danger::Medium, None),
        _ => (Danger::Low, None),
    };
    Plan {
        title: "create snapshot nightly of hello_milvus".to_owned(),
        intent,
        checks: vec![
            Check {
                name: "no coordinator is alive".to_owned(),
                failed: None,
                detail: "no session key".to_owned(),
            },
            Check {
                name: "name is free".to_owned(),
                failed: None,
                detail: "3 snapshots of this collection".to_owned(),
            },
        ],
        steps: vec![
            "write the PENDING record".to_owned(),
            "write 8 manifests and the metadata file".to_owned(),
            "turn the record to COMMITTED".to_owned(),
        ],
        changes: vec![KeyChange {
            key: "datacoord-meta/snapshot/445/446".to_owned(),
            before: None,
            after: Some("name: nightly\nstate: PENDING".to_owned()),
        }],
        objects: ObjectChange {
            puts: 9,
            samples: vec!["files/snapshots/445/metadata/446.json".to_owned()],
            ..ObjectChange::default()
        },
        warnings: vec!["3,000 rows are newer than the boundary and stay out".to_owned()],
        undo: "drop the snapshot".to_owned(),
        danger,
        type_to_confirm: word,
        based_on: MetaRev(9_000),
        rests_on: vec![],
        hash: "abc".to_owned(),
    }
}

/// The console and the engine that answers it.
pub struct Console {
    pub app: App,
    pub now: UnixMs,
    pub raw: Arc<HashMap<MetaKey, KeyValue>>,
    pub asked: Vec<String>,
    pub copied: Vec<String>,
    pub quit: bool,
    /// What `Plan` answers instead of a plan.
    pub refuse_plan: Option<Error>,
    /// What `Apply` answers instead of a job.
    pub refuse_apply: Option<Error>,
    /// Leave questions open.
    pub silent: bool,
}

impl Console {
    /// On the captured cluster, with jobs, live.
    pub fn lab(size: (u16, u16), look: Look) -> Self {
        let mut console = Self::captured(size, look, place(None));
        console.feed(Msg::Jobs(jobs()));
        console.live();
        console
    }

    /// On the captured cluster and nothing else.
    fn captured(size: (u16, u16), look: Look, place: Arc<Place>) -> Self {
        type Whole = (Arc<Catalog>, Arc<HashMap<MetaKey, KeyValue>>);
        static LAB: OnceLock<Whole> = OnceLock::new();
        let (whole, raw) = LAB.get_or_init(|| {
            let keys = keyspace();
            let whole = Arc::new(catalog(&keys));
            let raw = keys.into_iter().map(|k| (k.key.clone(), k)).collect();
            (whole, Arc::new(raw))
        });
        let mut console = Self::empty(size, look, place);
        console.raw = Arc::clone(raw);
        console.feed(Msg::Catalog(Arc::clone(whole)));
        console
    }

    /// On nothing.
    pub fn empty(size: (u16, u16), look: Look, place: Arc<Place>) -> Self {
        Self {
            app: App::new(place, look, size),
            now: NOW,
            raw: Arc::default(),
            asked: Vec::new(),
            copied: Vec::new(),
            quit: false,
            refuse_plan: None,
            refuse_apply: None,
            silent: false,
        }
    }

    pub fn live(&mut self) {
        let rev = self.app.catalog.rev;
        self.feed(Msg::Conn(Conn::Live {
            rev,
            heard: UnixMs(self.now.0 - 300),
        }));
    }

    pub fn feed(&mut self, msg: Msg) {
        let effects = update(&mut self.app, msg, self.now);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Quit => self.quit = true,
            Effect::Copy(text) => self.copied.push(text),
            Effect::Suspend | Effect::Redraw => {}
            Effect::Compute(order) => {
                let rows = rows::compute(&order.world, &order.query, &AtomicBool::new(false));
                self.feed(Msg::Rows(order.id, rows));
            }
            Effect::Ask(id, request) => {
                self.asked.push(format!("{request:?}"));
                if !self.silent {
                    let reply = self.answer(request);
                    self.feed(Msg::Reply(id, reply));
                }
            }
        }
    }

    fn answer(&self, request: Request) -> Result<Reply> {
        Ok(match request {
            Request::Plan(intent) => match &self.refuse_plan {
                Some(error) => return Err(error.clone()),
                None => Reply::Planned(Arc::new(plan(intent))),
            },
            Request::Apply { .. } => match &self.refuse_apply {
                Some(error) => return Err(error.clone()),
                None => Reply::Accepted(JobId(450_000_000_000_000_101)),
            },
            Request::Raw(key) => Reply::Raw(Arc::new(self.raw_value(key))),
            Request::SnapshotDetail(_) | Request::Doctor { .. } => Reply::Tree(Arc::new(
                serde_json::json!({"etcd": "reachable in 2 ms", "objects": {"missing": []}}),
            )),
            _ => Reply::Done,
        })
    }

    fn raw_value(&self, key: MetaKey) -> RawValue {
        let found = self.raw.get(&key);
        let roots = Roots::default();
        let (family, decoded) = match (Key::parse(&roots, &key.0), found) {
            (ParsedKey::Known(k), Some(kv)) => {
                (k.family().title().to_owned(), decoded(&k, &kv.value))
            }
            _ => (
                "unknown".to_owned(),
                Err("not a key that Milvus is known to write".to_owned()),
            ),
        };
        RawValue {
            value: found.map(|kv| kv.value.clone()),
            revs: found.map_or((MetaRev(0), MetaRev(0), 0, 0), |kv| {
                (kv.create_rev, kv.mod_rev, kv.version, kv.lease)
            }),
            family,
            decoded,
            key,
        }
    }

    /// Presses keys: letters as they are, others as `<enter>`, `<esc>`, `<down>`, `<c-p>` …
    pub fn press(&mut self, keys: &str) -> &mut Self {
        for event in parse(keys) {
            self.feed(Msg::Term(Term::Key(event)));
        }
        self
    }

    pub fn resize(&mut self, width: u16, height: u16) -> &mut Self {
        self.feed(Msg::Term(Term::Resize(width, height)));
        self
    }

    pub fn screen(&self) -> String {
        picture::plain(&picture::render(&self.app, self.now))
    }

    pub fn styled(&self) -> String {
        picture::styled(&picture::render(&self.app, self.now))
    }
}

fn decoded(key: &Key, value: &[u8]) -> std::result::Result<serde_json::Value, String> {
    let codec = key.codec();
    let body = codec::unwrap(codec, value)?;
    let (Codec::Proto(name) | Codec::ZstdProto(name)) = codec else {
        return Ok(serde_json::Value::String(
            String::from_utf8_lossy(&body).into_owned(),
        ));
    };
    let mut tree = json::decode(name, &body)
        .and_then(|m| json::to_value(&m))
        .map_err(|e| e.to_string())?;
    mask::json(&mut tree);
    Ok(tree)
}

/// An error as the engine makes them.
pub fn error(what: &str) -> Error {
    Error::new(ErrorKind::Conflict, what).fix("plan again")
}

pub fn parse(keys: &str) -> Vec<KeyEvent> {
    let mut out = Vec::new();
    let mut rest = keys;
    while let Some(c) = rest.chars().next() {
        let named = rest
            .strip_prefix('<')
            .and_then(|r| r.split_once('>'))
            .and_then(|(name, after)| named(name).map(|key| (key, after)));
        if let Some((key, after)) = named {
            out.push(key);
            rest = after;
        } else {
            out.push(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE));
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn named(name: &str) -> Option<KeyEvent> {
    let plain = |code| Some(KeyEvent::new(code, KeyModifiers::NONE));
    if let Some(letter) = name.strip_prefix("c-").and_then(|l| l.chars().next()) {
        return Some(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
    }
    match name {
        "enter" => plain(KeyCode::Enter),
        "esc" => plain(KeyCode::Esc),
        "bs" => plain(KeyCode::Backspace),
        "tab" => plain(KeyCode::Tab),
        "s-tab" => plain(KeyCode::BackTab),
        "up" => plain(KeyCode::Up),
        "down" => plain(KeyCode::Down),
        "left" => plain(KeyCode::Left),
        "right" => plain(KeyCode::Right),
        "pgup" => plain(KeyCode::PageUp),
        "pgdn" => plain(KeyCode::PageDown),
        "home" => plain(KeyCode::Home),
        "end" => plain(KeyCode::End),
        "space" => plain(KeyCode::Char(' ')),
        "lt" => plain(KeyCode::Char('<')),
        _ => None,
    }
}

/// The picture of the README: the segments of the captured cluster, as `--dump tests/lab/etcd.jsonl.gz` shows them.
pub fn picture_svg() -> String {
    let place = Place {
        profile: "etcd.jsonl.gz".into(),
        attach: "dump",
        meta: "dump etcd.jsonl.gz by-dev/meta".into(),
        bucket: "none".into(),
        read_only: Some("a dump is read-only".into()),
        to_write: TO_WRITE,
    };
    let mut console = Console::captured((130, 34), DARK, Arc::new(place));
    let rev = console.app.catalog.rev;
    console.feed(Msg::Conn(Conn::Static { rev }));
    console.press("3<down><down>");
    let title = "Segments of a captured Milvus cluster in Falconer";
    picture::svg(&picture::render(&console.app, console.now), title)
}
