//! The one action table. Keys, help, footer and palette are derived from it; a test finds duplicates and gaps.

mod action;
mod key;
mod place;

use crossterm::event::KeyCode;

pub use action::Action;
pub use key::Key;
use key::{ch, code, ctrl};
pub use place::{Context, Group};

use crate::engine::model::resource::Kind;
use crate::engine::plan::Danger;

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The action.
    pub action: Action,
    /// Stable name.
    pub id: &'static str,
    /// What it does, for help and palette.
    pub title: &'static str,
    /// Keys; may be empty for what only the palette reaches.
    pub keys: &'static [Key],
    /// Where.
    pub contexts: &'static [Context],
    /// Group.
    pub group: Group,
    /// How hard to reverse what it can lead to.
    pub danger: Option<Danger>,
    /// Word in the footer; empty keeps it out.
    pub hint: &'static str,
}

const ANY: &[Context] = &Context::ALL;
const LIST: &[Context] = &[Context::List];
const DETAIL: &[Context] = &[Context::Detail];
const ROWS: &[Context] = &[Context::List, Context::Detail];

const fn look(
    action: Action,
    id: &'static str,
    title: &'static str,
    keys: &'static [Key],
    contexts: &'static [Context],
    group: Group,
    hint: &'static str,
) -> Entry {
    Entry {
        action,
        id,
        title,
        keys,
        contexts,
        group,
        danger: None,
        hint,
    }
}

const fn go(kind: Kind, id: &'static str, title: &'static str, keys: &'static [Key]) -> Entry {
    look(Action::Go(kind), id, title, keys, ANY, Group::Go, "")
}

const fn act(
    action: Action,
    id: &'static str,
    title: &'static str,
    keys: &'static [Key],
    contexts: &'static [Context],
    danger: Danger,
    hint: &'static str,
) -> Entry {
    Entry {
        action,
        id,
        title,
        keys,
        contexts,
        group: Group::Act,
        danger: Some(danger),
        hint,
    }
}

/// Every action there is. The footer shows them in this order.
pub const ACTIONS: &[Entry] = &[
    look(
        Action::Open,
        "open",
        "Open the selected line",
        &[code(KeyCode::Enter)],
        ANY,
        Group::Look,
        "open",
    ),
    look(
        Action::Back,
        "back",
        "Up: close, clear the filter, or go back",
        &[code(KeyCode::Esc), code(KeyCode::Backspace)],
        ANY,
        Group::Go,
        "",
    ),
    look(
        Action::Describe,
        "describe",
        "Fields, raw value and related objects",
        &[ch('v')],
        LIST,
        Group::Look,
        "detail",
    ),
    look(
        Action::NextSection,
        "next-section",
        "Next section: fields, related, raw value, files",
        &[code(KeyCode::Tab)],
        DETAIL,
        Group::Look,
        "section",
    ),
    look(
        Action::PrevSection,
        "previous-section",
        "Previous section",
        &[code(KeyCode::BackTab)],
        DETAIL,
        Group::Look,
        "",
    ),
    act(
        Action::Demo,
        "demo",
        "Build a small living demo cluster in the empty embedded store",
        &[ch('D')],
        ANY,
        Danger::Low,
        "demo",
    ),
    act(
        Action::CreateSnapshot,
        "create-snapshot",
        "Create a snapshot of the collection",
        &[ch('c')],
        ROWS,
        Danger::Low,
        "snapshot",
    ),
    act(
        Action::Restore,
        "restore",
        "Restore the snapshot into a new collection",
        &[ch('R')],
        ROWS,
        Danger::Low,
        "restore",
    ),
    act(
        Action::Export,
        "export",
        "Copy the snapshot out with all its data, as a bundle",
        &[ch('E')],
        ROWS,
        Danger::Low,
        "export",
    ),
    act(
        Action::RestoreBundle,
        "restore-bundle",
        "Restore an exported bundle into a new collection",
        &[ch('B')],
        ANY,
        Danger::Low,
        "",
    ),
    act(
        Action::Drop,
        "drop",
        "Drop the snapshot",
        &[ch('d')],
        ROWS,
        Danger::High,
        "drop",
    ),
    act(
        Action::Pin,
        "pin",
        "Pin the snapshot against being dropped",
        &[ch('p')],
        ROWS,
        Danger::Low,
        "pin",
    ),
    act(
        Action::Unpin,
        "unpin",
        "Take a pin off the snapshot",
        &[ch('P')],
        ROWS,
        Danger::High,
        "",
    ),
    act(
        Action::Verify,
        "verify-snapshot",
        "Verify the snapshot: objects, sizes, rows",
        &[ch('V')],
        ROWS,
        Danger::Low,
        "",
    ),
    act(
        Action::CancelJob,
        "cancel-job",
        "Stop the job and take back what it did",
        &[ch('x')],
        ROWS,
        Danger::Medium,
        "cancel",
    ),
    act(
        Action::Retry,
        "retry-job",
        "Try again what failed, of a job that is stuck",
        &[ch('r')],
        ROWS,
        Danger::Low,
        "retry",
    ),
    act(
        Action::Faster,
        "faster",
        "More copies at once for the job",
        &[ch('+'), ch('=')],
        ROWS,
        Danger::Low,
        "faster",
    ),
    act(
        Action::Slower,
        "slower",
        "Fewer copies at once for the job",
        &[ch('-')],
        ROWS,
        Danger::Low,
        "slower",
    ),
    act(
        Action::Tighten,
        "tighten",
        "Set or halve the job's limit of bytes or objects",
        &[ch('<')],
        ROWS,
        Danger::Low,
        "",
    ),
    act(
        Action::Loosen,
        "loosen",
        "Double or lift the job's limit",
        &[ch('>')],
        ROWS,
        Danger::Low,
        "",
    ),
    act(
        Action::Gc,
        "gc-plan",
        "Plan one garbage collection pass",
        &[ch('g')],
        ANY,
        Danger::High,
        "gc",
    ),
    act(
        Action::Orphans,
        "orphans-plan",
        "Plan a scan for objects that nobody owns, and move them aside",
        &[ch('o')],
        ANY,
        Danger::Medium,
        "",
    ),
    act(
        Action::PauseGc,
        "gc-pause",
        "Pause garbage collection, with a reason and an end",
        &[ch('z')],
        ANY,
        Danger::Low,
        "",
    ),
    act(
        Action::ResumeGc,
        "gc-resume",
        "End a pause of garbage collection",
        &[ch('Z')],
        ANY,
        Danger::Medium,
        "",
    ),
    act(
        Action::PutBack,
        "quarantine-restore",
        "Put back what a job moved aside",
        &[ch('U')],
        ROWS,
        Danger::Low,
        "",
    ),
    act(
        Action::Purge,
        "quarantine-purge",
        "Delete for good what was moved aside long enough ago",
        &[ch('X')],
        ANY,
        Danger::High,
        "",
    ),
    look(
        Action::Filter,
        "filter",
        "Filter: text, or !text for its opposite",
        &[ch('/')],
        LIST,
        Group::Look,
        "filter",
    ),
    look(
        Action::Faults,
        "faults-only",
        "Only rows that are not well",
        &[ch('!')],
        LIST,
        Group::Look,
        "faults",
    ),
    look(
        Action::Sort,
        "sort",
        "Sort by the next column",
        &[ch('s')],
        LIST,
        Group::Look,
        "sort",
    ),
    look(
        Action::Reverse,
        "reverse",
        "Reverse the order",
        &[ch('S')],
        LIST,
        Group::Look,
        "",
    ),
    look(
        Action::Mark,
        "mark",
        "Mark or unmark the line",
        &[ch(' ')],
        LIST,
        Group::Look,
        "",
    ),
    look(
        Action::Unmark,
        "unmark-all",
        "Forget all marks",
        &[ch('u')],
        LIST,
        Group::Look,
        "",
    ),
    look(
        Action::Copy,
        "copy",
        "Copy the name, id or value",
        &[ch('y')],
        ANY,
        Group::Look,
        "copy",
    ),
    look(
        Action::CopyView,
        "copy-view",
        "Copy the view as Markdown",
        &[ch('Y')],
        ANY,
        Group::Look,
        "",
    ),
    look(
        Action::Rows,
        "rows",
        "The first rows of the segment, from its files",
        &[ch('w')],
        ROWS,
        Group::Look,
        "",
    ),
    look(
        Action::Doctor,
        "doctor",
        "Check the health of stores, formats and references",
        &[ch('H')],
        ANY,
        Group::Look,
        "",
    ),
    look(
        Action::Up,
        "up",
        "Line up",
        &[code(KeyCode::Up), ch('k')],
        ANY,
        Group::Move,
        "",
    ),
    look(
        Action::Down,
        "down",
        "Line down",
        &[code(KeyCode::Down), ch('j')],
        ANY,
        Group::Move,
        "",
    ),
    look(
        Action::PageUp,
        "page-up",
        "Page up",
        &[code(KeyCode::PageUp), ctrl('b')],
        ANY,
        Group::Move,
        "",
    ),
    look(
        Action::PageDown,
        "page-down",
        "Page down",
        &[code(KeyCode::PageDown), ctrl('f')],
        ANY,
        Group::Move,
        "",
    ),
    look(
        Action::Top,
        "top",
        "First line",
        &[code(KeyCode::Home)],
        ANY,
        Group::Move,
        "",
    ),
    look(
        Action::Bottom,
        "bottom",
        "Last line",
        &[code(KeyCode::End), ch('G')],
        ANY,
        Group::Move,
        "",
    ),
    look(
        Action::Left,
        "left",
        "Columns to the left",
        &[code(KeyCode::Left), ch('h')],
        LIST,
        Group::Move,
        "",
    ),
    look(
        Action::Right,
        "right",
        "Columns to the right",
        &[code(KeyCode::Right), ch('l')],
        LIST,
        Group::Move,
        "",
    ),
    look(
        Action::Older,
        "history-back",
        "Back in history",
        &[ch('[')],
        ANY,
        Group::Go,
        "",
    ),
    look(
        Action::Newer,
        "history-forward",
        "Forward in history",
        &[ch(']')],
        ANY,
        Group::Go,
        "",
    ),
    look(
        Action::Overview,
        "overview",
        "Overview",
        &[ch('1')],
        ANY,
        Group::Go,
        "",
    ),
    go(Kind::Collections, "collections", "Collections", &[ch('2')]),
    go(Kind::Segments, "segments", "Segments", &[ch('3')]),
    go(Kind::Channels, "channels", "Channels", &[ch('4')]),
    go(Kind::Indexes, "indexes", "Indexes", &[ch('5')]),
    go(Kind::Snapshots, "snapshots", "Snapshots", &[ch('6')]),
    go(Kind::Jobs, "jobs", "Jobs", &[ch('7')]),
    go(Kind::Sessions, "sessions", "Sessions", &[ch('8')]),
    go(Kind::Keys, "keys", "Raw keys", &[ch('9')]),
    go(Kind::Databases, "databases", "Databases", &[ch('0')]),
    go(Kind::Partitions, "partitions", "Partitions", &[]),
    go(
        Kind::Tickets,
        "tickets",
        "Pauses of garbage collection",
        &[],
    ),
    go(Kind::Quarantine, "quarantine", "What was moved aside", &[]),
    go(
        Kind::Broadcasts,
        "broadcasts",
        "DDL on its way: what it waits for, whom it blocks",
        &[ch('b')],
    ),
    go(Kind::Tasks, "tasks", "Tasks of the coordinators", &[]),
    go(
        Kind::SegmentIndexes,
        "segment-indexes",
        "Index builds of segments",
        &[],
    ),
    go(Kind::Aliases, "aliases", "Aliases", &[]),
    go(Kind::Replicas, "replicas", "Replicas", &[]),
    go(Kind::Config, "config", "Dynamic configuration", &[]),
    go(
        Kind::Undecodable,
        "undecodable",
        "Values that could not be read",
        &[],
    ),
    look(
        Action::Palette,
        "palette",
        "Go anywhere, do anything, find any name or id",
        &[ch(':'), ctrl('p')],
        ANY,
        Group::Console,
        "go",
    ),
    look(
        Action::Help,
        "help",
        "Keys and words of this page",
        &[ch('?')],
        ANY,
        Group::Console,
        "help",
    ),
    look(
        Action::Redraw,
        "redraw",
        "Paint the screen again",
        &[ctrl('l')],
        ANY,
        Group::Console,
        "",
    ),
    look(
        Action::Suspend,
        "suspend",
        "Back to the shell; fg returns",
        &[ctrl('z')],
        ANY,
        Group::Console,
        "",
    ),
    look(
        Action::Quit,
        "quit",
        "Quit",
        &[ch('q'), ctrl('c')],
        ANY,
        Group::Console,
        "quit",
    ),
];

/// The action of a key in a context.
#[must_use]
pub fn action(key: Key, context: Context) -> Option<Action> {
    ACTIONS
        .iter()
        .find(|e| e.contexts.contains(&context) && e.keys.contains(&key))
        .map(|e| e.action)
}

/// The table's line for an action.
#[must_use]
pub fn entry(action: Action) -> Option<&'static Entry> {
    ACTIONS.iter().find(|e| e.action == action)
}

impl Entry {
    /// Its keys in one text: `↑ k`.
    #[must_use]
    pub fn key_text(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        keys.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn no_key_means_two_things_in_one_place() {
        for context in Context::ALL {
            let mut seen: HashMap<Key, &str> = HashMap::new();
            for entry in ACTIONS.iter().filter(|e| e.contexts.contains(&context)) {
                for key in entry.keys {
                    if let Some(other) = seen.insert(*key, entry.id) {
                        panic!("{key} is both {other} and {} in {context:?}", entry.id);
                    }
                }
            }
        }
    }

    #[test]
    fn every_action_is_named_once_explained_and_reachable() {
        let mut ids = HashSet::new();
        let mut actions = HashSet::new();
        for entry in ACTIONS {
            assert!(ids.insert(entry.id), "{} twice", entry.id);
            assert!(actions.insert(entry.action), "{:?} twice", entry.action);
            assert!(entry.title.len() > 3, "{} has no title", entry.id);
            assert!(!entry.contexts.is_empty(), "{} is nowhere", entry.id);
            assert!(
                entry.id.chars().all(|c| c.is_ascii_lowercase() || c == '-'),
                "{}",
                entry.id
            );
            for key in entry.keys {
                for context in entry.contexts {
                    assert_eq!(action(*key, *context), Some(entry.action));
                }
            }
            // Only lists of kinds may be without a key: the palette reaches them.
            assert!(
                !entry.keys.is_empty() || matches!(entry.action, Action::Go(_)),
                "{} has no key",
                entry.id
            );
        }
    }

    #[test]
    fn every_number_leads_somewhere() {
        for c in '0'..='9' {
            assert!(action(ch(c), Context::Overview).is_some(), "{c}");
        }
    }

    #[test]
    fn what_writes_says_how_dangerous_it_is() {
        for entry in ACTIONS {
            assert_eq!(
                entry.danger.is_some(),
                entry.group == Group::Act,
                "{}",
                entry.id
            );
        }
    }
}
