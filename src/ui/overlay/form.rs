//! The few questions before a plan: what a snapshot is to be called, where a restore goes.

use crossterm::event::{Event, KeyCode, KeyModifiers};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use tui_input::Input;

use crate::engine::handle::Request;
use crate::engine::ids::{CollectionId, JobId, SnapshotId};
use crate::engine::model::data::Pin;
use crate::engine::model::resource::Tone;
use crate::engine::model::text::seconds;
use crate::engine::plan::Intent;
use crate::ui::app::{App, Asked, Effect};
use crate::ui::text;
use crate::ui::theme::Role;

use super::{draw_input, edit, hints, popup};

/// What is being asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A new snapshot of this collection.
    Snapshot(CollectionId),
    /// A restore of this snapshot.
    Restore(SnapshotId),
    /// A pin on this snapshot.
    Pin(SnapshotId),
    /// Pins of this snapshot to be taken off; the first ones, to be chosen by number.
    Unpin(SnapshotId, [Option<Pin>; LISTED]),
    /// An export of this snapshot.
    Export(SnapshotId),
    /// A pause of garbage collection, of this collection or of everything.
    Pause(Option<CollectionId>),
    /// What this job moved aside.
    PutBack(JobId),
    /// What was moved aside long enough ago.
    Purge,
    /// A restore of what lies in a bundle.
    Bundle,
}

/// Pins that the form lists.
pub const LISTED: usize = 6;

/// What stands for every pin whose time is over.
const EXPIRED: &str = "expired";

/// One question.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name.
    pub label: &'static str,
    /// What may stand there.
    pub help: &'static str,
    /// What stands there.
    pub input: Input,
}

/// The form.
#[derive(Clone, Debug)]
pub struct Form {
    /// Heading.
    pub title: String,
    /// About.
    pub about: About,
    /// Questions.
    pub fields: Vec<Field>,
    /// The one under the cursor.
    pub focus: usize,
    /// What is wrong with the answers.
    pub wrong: Option<String>,
}

impl Form {
    /// Asks for a snapshot's name, words and protection.
    #[must_use]
    pub fn snapshot(collection: CollectionId, name: &str, suggestion: String) -> Self {
        Self {
            title: format!("Snapshot of {name}"),
            about: About::Snapshot(collection),
            fields: vec![
                Field {
                    label: "Name",
                    help: "unique in the collection; letters, digits, _ and $",
                    input: Input::new(suggestion),
                },
                Field {
                    label: "Description",
                    help: "for whoever finds it later; may be empty",
                    input: Input::default(),
                },
                Field {
                    label: "Protection",
                    help: "keep its segments from compaction for: 0, 600, 10m, 2h, 7d",
                    input: Input::new("0".to_owned()),
                },
            ],
            focus: 0,
            wrong: None,
        }
    }

    /// Asks where a snapshot is restored to.
    #[must_use]
    pub fn restore(snapshot: SnapshotId, name: &str, database: String, target: String) -> Self {
        Self {
            title: format!("Restore of {name}"),
            about: About::Restore(snapshot),
            fields: vec![
                Field {
                    label: "Database",
                    help: "must exist",
                    input: Input::new(database),
                },
                Field {
                    label: "Collection",
                    help: "a new name: neither a collection nor an alias",
                    input: Input::new(target),
                },
            ],
            focus: 0,
            wrong: None,
        }
    }

    /// Asks how long a snapshot is kept from being dropped, for whom and what for.
    #[must_use]
    pub fn pin(snapshot: SnapshotId, name: &str) -> Self {
        Self {
            title: format!("Pin of {name}"),
            about: About::Pin(snapshot),
            fields: vec![
                Field {
                    label: "Time",
                    help: "600, 10m, 2h, 7d, at most 30d; 0 = until taken off",
                    input: Input::new("2h".to_owned()),
                },
                Field {
                    label: "Owner",
                    help: "who needs it: whoever wants to drop it asks there",
                    input: Input::default(),
                },
                Field {
                    label: "Reason",
                    help: "what for; may be empty",
                    input: Input::default(),
                },
            ],
            focus: 0,
            wrong: None,
        }
    }

    /// Asks which of `pins` is taken off.
    #[must_use]
    pub fn unpin(snapshot: SnapshotId, name: &str, pins: &[Pin]) -> Self {
        let mut listed = [None; LISTED];
        for (place, pin) in listed.iter_mut().zip(pins) {
            *place = Some(*pin);
        }
        let suggestion = if pins.len() == 1 { "1" } else { EXPIRED };
        let suggestion = suggestion.to_owned();
        Self {
            title: format!("Unpin {name}"),
            about: About::Unpin(snapshot, listed),
            fields: vec![Field {
                label: "Pin",
                help: "its number below, its id, or: expired, for all that are over",
                input: Input::new(suggestion),
            }],
            focus: 0,
            wrong: None,
        }
    }

    /// The pins to choose from, a line each.
    fn listed(&self) -> Vec<String> {
        let About::Unpin(_, pins) = &self.about else {
            return Vec::new();
        };
        let end = |pin: &Pin| {
            let at = pin.expires.map(|at| format!("until {}", at.utc()));
            at.unwrap_or_else(|| "never expires".to_owned())
        };
        let pins = pins.iter().flatten().zip(1..);
        pins.map(|(pin, n)| format!("{n}  {}  {}", pin.id, end(pin)))
            .collect()
    }

    /// Asks where a snapshot is copied to.
    #[must_use]
    pub fn export(snapshot: SnapshotId, name: &str) -> Self {
        Self {
            title: format!("Export of {name}"),
            about: About::Export(snapshot),
            fields: vec![Field {
                label: "Target",
                help: "a key of the own bucket, s3://…, https://…, file:///…",
                input: Input::default(),
            }],
            focus: 0,
            wrong: None,
        }
    }

    /// Asks for a bundle and where it is restored to. `suggestion`: one that is known, or nothing.
    #[must_use]
    pub fn bundle(suggestion: String) -> Self {
        Self {
            title: "Restore from a bundle".to_owned(),
            about: About::Bundle,
            fields: vec![
                Field {
                    label: "Bundle",
                    help: "URI of its metadata: …/snapshots/ID/metadata/ID.json",
                    input: Input::new(suggestion),
                },
                Field {
                    label: "Database",
                    help: "must exist",
                    input: Input::new("default".to_owned()),
                },
                Field {
                    label: "Collection",
                    help: "a new name: neither a collection nor an alias",
                    input: Input::default(),
                },
            ],
            focus: 0,
            wrong: None,
        }
    }

    /// Asks for how long garbage collection is paused, and why.
    #[must_use]
    pub fn pause(scope: Option<(CollectionId, String)>) -> Self {
        let (about, of) = match scope {
            Some((id, name)) => (Some(id), format!(" of {name}")),
            None => (None, String::new()),
        };
        Self {
            title: format!("Pause garbage collection{of}"),
            about: About::Pause(about),
            fields: vec![
                Field {
                    label: "For",
                    help: "it ends by itself: 30m, 2h, 7d",
                    input: Input::new("2h".to_owned()),
                },
                Field {
                    label: "Reason",
                    help: "for whoever finds it at night",
                    input: Input::default(),
                },
            ],
            focus: 0,
            wrong: None,
        }
    }

    /// Asks what is put back.
    #[must_use]
    pub fn put_back(job: JobId) -> Self {
        Self {
            title: format!("Put back what job {job} moved aside"),
            about: About::PutBack(job),
            fields: vec![Field {
                label: "Prefix",
                help: "only objects whose key begins so; all when empty",
                input: Input::default(),
            }],
            focus: 0,
            wrong: None,
        }
    }

    /// Asks how old what is deleted must be.
    #[must_use]
    pub fn purge() -> Self {
        Self {
            title: "Delete what was moved aside".to_owned(),
            about: About::Purge,
            fields: vec![Field {
                label: "Older than",
                help: "days",
                input: Input::new(crate::engine::model::quarantine::KEEP_DAYS.to_string()),
            }],
            focus: 0,
            wrong: None,
        }
    }

    fn value(&self, i: usize) -> String {
        self.fields
            .get(i)
            .map(|f| f.input.value().trim().to_owned())
            .unwrap_or_default()
    }

    /// The intent, or which answer is wrong and why. What the cluster thinks of it is the plan's business.
    pub fn intent(&self) -> Result<Intent, (usize, String)> {
        let required = |i: usize, what: &str| {
            let value = self.value(i);
            if value.is_empty() {
                Err((i, format!("{what} is missing")))
            } else {
                Ok(value)
            }
        };
        match self.about {
            About::Snapshot(collection) => Ok(Intent::CreateSnapshot {
                collection,
                name: required(0, "the name")?,
                description: self.value(1),
                protection_secs: match self.value(2).as_str() {
                    "" => Some(0),
                    typed => seconds(typed),
                }
                .ok_or_else(|| {
                    (
                        2,
                        "protection is a number of seconds, or 10m, 2h, 7d".to_owned(),
                    )
                })?,
                operation: None,
            }),
            About::Pin(snapshot) => Ok(Intent::PinSnapshot {
                snapshot,
                ttl_secs: seconds(&self.value(0)).ok_or_else(|| {
                    (
                        0,
                        "the time is a number of seconds, or 10m, 2h, 7d; 0 = for ever".to_owned(),
                    )
                })?,
                owner: required(1, "the owner")?,
                reason: self.value(2),
            }),
            About::Unpin(snapshot, listed) => {
                let typed = required(0, "the pin")?;
                let numbered = typed.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
                let pin =
                    match numbered.and_then(|n| listed.get(n).copied().flatten()) {
                        Some(pin) => Some(pin.id),
                        None if typed == EXPIRED => None,
                        None => Some(typed.parse().map_err(|_| {
                            (0, format!("a number below, a pin's id, or {EXPIRED}"))
                        })?),
                    };
                Ok(Intent::UnpinSnapshot { snapshot, pin })
            }
            About::Export(snapshot) => Ok(Intent::Export {
                snapshot,
                target: required(0, "the target")?,
            }),
            About::Bundle => Ok(Intent::RestoreBundle {
                uri: required(0, "the bundle's URI")?,
                database: required(1, "the database")?,
                collection: required(2, "the collection's name")?,
            }),
            About::Restore(snapshot) => Ok(Intent::Restore {
                snapshot,
                database: required(0, "the database")?,
                collection: required(1, "the collection's name")?,
            }),
            About::Pause(collection) => Ok(Intent::PauseGc {
                collection,
                secs: seconds(&required(0, "the time")?)
                    .ok_or_else(|| (0, "the time is like 30m, 2h, 7d".to_owned()))?,
                reason: required(1, "the reason")?,
            }),
            About::PutBack(job) => Ok(Intent::QuarantineRestore {
                job,
                prefix: self.value(0),
            }),
            About::Purge => Ok(Intent::QuarantinePurge {
                days: self
                    .value(0)
                    .parse()
                    .map_err(|_| (0, "a number of days".to_owned()))?,
            }),
        }
    }
}

/// Keys of the form.
pub fn event(
    app: &mut App,
    mut form: Box<Form>,
    event: &Event,
    out: &mut Vec<Effect>,
) -> Option<Box<Form>> {
    let key = event
        .as_key_event()
        .filter(|k| k.is_press() || k.is_repeat());
    let count = form.fields.len().max(1);
    match key.map(|k| (k.code, k.modifiers.contains(KeyModifiers::CONTROL))) {
        Some((KeyCode::Esc, _) | (KeyCode::Char('c'), true)) => return None,
        Some((KeyCode::Tab | KeyCode::Down, _)) => form.focus = (form.focus + 1) % count,
        Some((KeyCode::BackTab | KeyCode::Up, _)) => {
            form.focus = (form.focus + count - 1) % count;
        }
        Some((KeyCode::Enter, _)) if form.focus + 1 < form.fields.len() => form.focus += 1,
        Some((KeyCode::Enter, _)) => match form.intent() {
            Ok(intent) => {
                app.ask(Asked::Plan, Request::Plan(intent), out);
                return None;
            }
            Err((field, why)) => {
                form.focus = field;
                form.wrong = Some(why);
            }
        },
        _ => {
            let focus = form.focus;
            if let Some(field) = form.fields.get_mut(focus) {
                edit(&mut field.input, event);
                form.wrong = None;
            }
        }
    }
    Some(form)
}

/// Draws it.
pub fn draw(app: &App, form: &Form, area: Rect, buf: &mut Buffer) -> Option<Position> {
    let theme = app.theme;
    let listed = form.listed();
    let height = 2 * form.fields.len() as u16 + 6 + listed.len() as u16;
    let inner = popup((72, height), &form.title, area, buf, theme);
    let mut cursor = None;
    let count = form.fields.len() as u16;
    let label = 13.min(inner.width / 3);
    for (i, field) in form.fields.iter().enumerate() {
        let y = inner.y + 1 + 2 * i as u16;
        if y >= inner.y + inner.height {
            break;
        }
        let focus = i == form.focus;
        let style = theme.role(if focus { Role::Sorted } else { Role::Dim });
        buf.set_stringn(
            inner.x,
            y,
            text::fit(field.label, label),
            label as usize,
            style,
        );
        let at = Rect::new(inner.x + label, y, inner.width.saturating_sub(label), 1);
        let position = draw_input(&field.input, at, theme.role(Role::Text), buf);
        if focus {
            cursor = position;
        }
        if y + 1 < inner.y + inner.height {
            buf.set_stringn(
                at.x,
                y + 1,
                text::fit(field.help, at.width),
                at.width as usize,
                theme.role(Role::Dim),
            );
        }
    }
    for (line, y) in listed.iter().zip(inner.y + 1 + 2 * count..) {
        if y < inner.y + inner.height {
            let shown = text::fit(line, inner.width.saturating_sub(label));
            buf.set_stringn(
                inner.x + label,
                y,
                shown,
                inner.width as usize,
                theme.role(Role::Text),
            );
        }
    }
    if inner.height > 2 {
        if let Some(wrong) = &form.wrong {
            buf.set_stringn(
                inner.x,
                inner.y + inner.height - 2,
                text::fit(wrong, inner.width),
                inner.width as usize,
                theme.tone(Tone::Bad),
            );
        }
        let foot = Rect::new(inner.x, inner.y + inner.height - 1, inner.width, 1);
        hints(
            &[
                ("Enter", "next, then plan"),
                ("Tab", "next field"),
                ("Esc", "leave"),
            ],
            foot,
            buf,
            theme,
        );
    }
    cursor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::PinId;

    #[test]
    fn a_form_says_which_answer_is_missing() {
        let mut form = Form::restore(SnapshotId(7), "nightly", "default".into(), String::new());
        assert_eq!(form.intent().map_err(|e| e.0), Err(1));
        form.fields[1].input = Input::new(" books_copy ".into());
        assert_eq!(
            form.intent(),
            Ok(Intent::Restore {
                snapshot: SnapshotId(7),
                database: "default".into(),
                collection: "books_copy".into(),
            })
        );
    }

    #[test]
    fn an_export_needs_a_place_and_a_bundle_a_name_too() {
        let mut form = Form::export(SnapshotId(7), "nightly");
        assert_eq!(form.intent().map_err(|e| e.0), Err(0));
        form.fields[0].input = Input::new("s3://b/p".into());
        let export = Intent::Export {
            snapshot: SnapshotId(7),
            target: "s3://b/p".into(),
        };
        assert_eq!(form.intent(), Ok(export));
        let mut form = Form::bundle(String::new());
        assert_eq!(form.intent().map_err(|e| e.0), Err(0));
        form.fields[0].input = Input::new("s3://b/p/snapshots/1/metadata/2.json".into());
        assert_eq!(form.intent().map_err(|e| e.0), Err(2));
        form.fields[2].input = Input::new("back".into());
        let restore = Intent::RestoreBundle {
            uri: "s3://b/p/snapshots/1/metadata/2.json".into(),
            database: "default".into(),
            collection: "back".into(),
        };
        assert_eq!(form.intent(), Ok(restore));
    }

    #[test]
    fn a_pin_needs_a_time_and_an_owner_and_an_unpin_a_pin() {
        let mut form = Form::pin(SnapshotId(7), "nightly");
        assert_eq!(form.intent().map_err(|e| e.0), Err(1));
        form.fields[1].input = Input::new("anna".into());
        form.fields[0].input = Input::new(String::new());
        assert_eq!(form.intent().map_err(|e| e.0), Err(0), "no time is no time");
        form.fields[0].input = Input::new("7d".into());
        assert_eq!(
            form.intent(),
            Ok(Intent::PinSnapshot {
                snapshot: SnapshotId(7),
                ttl_secs: 604_800,
                owner: "anna".into(),
                reason: String::new(),
            })
        );
        let pin = |typed: &str| {
            let pins = [90, 80].map(|id| Pin {
                id: PinId(id),
                expires: None,
            });
            let mut form = Form::unpin(SnapshotId(7), "nightly", &pins);
            assert_eq!(form.listed()[1], "2  80  never expires");
            form.fields[0].input = Input::new(typed.into());
            form.intent().map_err(|e| e.0)
        };
        let off = |pin| {
            Ok(Intent::UnpinSnapshot {
                snapshot: SnapshotId(7),
                pin,
            })
        };
        assert_eq!(pin("2"), off(Some(PinId(80))));
        assert_eq!(pin("90"), off(Some(PinId(90))));
        assert_eq!(pin("9"), off(Some(PinId(9))));
        assert_eq!(pin("expired"), off(None));
        assert_eq!(pin("all"), Err(0));
        assert_eq!(pin(""), Err(0));
    }
}
