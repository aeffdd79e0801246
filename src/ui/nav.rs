//! Pages and the way between them: where one is, how one came there, and what each page remembers.

use std::sync::Arc;

use crate::engine::error::Error;
use crate::engine::handle::RawValue;
use crate::engine::ids::{MetaRev, SegmentId};
use crate::engine::model::resource::{Kind, RowId, Scope};

use super::document::Line;
use super::table::Table;

/// A place that can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The overview.
    Overview,
    /// A list.
    List(Kind, Scope),
    /// One thing.
    Detail(Kind, RowId),
    /// The answer of the health check.
    Doctor,
    /// The first rows of a segment.
    Rows(SegmentId),
}

/// Something asked of the engine for a page.
#[derive(Clone, Debug, Default)]
pub enum Remote<T> {
    /// Not asked.
    #[default]
    Idle,
    /// Asked, by number; what was there before stays on screen.
    Asked(u64, Option<T>),
    /// Answered.
    Got(T),
    /// Refused.
    Failed(Error),
}

impl<T> Remote<T> {
    /// What there is to show.
    pub const fn shown(&self) -> Option<&T> {
        match self {
            Self::Got(v) | Self::Asked(_, Some(v)) => Some(v),
            _ => None,
        }
    }

    /// Whether this question is the one that is open.
    pub const fn awaits(&self, id: u64) -> bool {
        matches!(self, Self::Asked(open, _) if *open == id)
    }

    /// Marks it as asked, keeping the old answer on screen.
    pub fn ask(&mut self, id: u64) {
        let old = match std::mem::take(self) {
            Self::Got(v) | Self::Asked(_, Some(v)) => Some(v),
            _ => None,
        };
        *self = Self::Asked(id, old);
    }
}

/// The raw value of a page about a key, with its lines made once.
#[derive(Clone, Debug)]
pub struct RawPage {
    /// The value.
    pub value: Arc<RawValue>,
    /// The decoded tree, a line a leaf.
    pub lines: Arc<[Line]>,
}

/// A page of the history.
#[derive(Clone, Debug)]
pub struct Page {
    /// Where.
    pub place: Place,
    /// Names of the pages one came through, this one last.
    pub crumbs: Vec<String>,
    /// The list, if it is one.
    pub table: Table,
    /// Line under the cursor of a detail view or the overview.
    pub line: usize,
    /// First line shown.
    pub top: usize,
    /// The cursor has been put where one would look first.
    pub entered: bool,
    /// Raw value of a page about a key.
    pub raw: Remote<RawPage>,
    /// Tree of a snapshot's files, or of the health check.
    pub tree: Remote<Arc<[Line]>>,
    /// Revision of the thing when it was asked about: asked again when it has moved.
    pub asked_at: MetaRev,
}

impl Page {
    /// A page without a past.
    #[must_use]
    pub fn new(place: Place, crumbs: Vec<String>) -> Self {
        let table = match &place {
            Place::List(kind, _) => Table::new(*kind),
            _ => Table::default(),
        };
        Self {
            place,
            crumbs,
            table,
            line: 0,
            top: 0,
            entered: false,
            raw: Remote::Idle,
            tree: Remote::Idle,
            asked_at: MetaRev(0),
        }
    }
}

/// Pages, as in a browser.
#[derive(Clone, Debug)]
pub struct History {
    pages: Vec<Page>,
    at: usize,
}

/// More than anybody goes back; the oldest is forgotten.
const KEPT: usize = 64;

impl Default for History {
    fn default() -> Self {
        Self {
            pages: vec![Page::new(Place::Overview, vec!["Overview".to_owned()])],
            at: 0,
        }
    }
}

impl History {
    /// The page on screen.
    #[must_use]
    pub fn page(&self) -> &Page {
        &self.pages[self.at]
    }

    /// The page on screen.
    pub fn page_mut(&mut self) -> &mut Page {
        &mut self.pages[self.at]
    }

    /// Every page that is remembered.
    pub fn pages_mut(&mut self) -> impl Iterator<Item = &mut Page> {
        self.pages.iter_mut()
    }

    /// Goes to a new page; what lay ahead is forgotten.
    pub fn push(&mut self, page: Page) {
        self.pages.truncate(self.at + 1);
        // A list that is not on screen is computed again when one returns: a million ids a page are not worth keeping.
        self.pages[self.at].table.forget_rows();
        self.pages.push(page);
        if self.pages.len() > KEPT {
            self.pages.remove(0);
        }
        self.at = self.pages.len() - 1;
    }

    /// Goes back; whether there was somewhere to go.
    pub fn older(&mut self) -> bool {
        let can = self.at > 0;
        if can {
            self.pages[self.at].table.forget_rows();
            self.at -= 1;
        }
        can
    }

    /// Goes forward; whether there was somewhere to go.
    pub fn newer(&mut self) -> bool {
        let can = self.at + 1 < self.pages.len();
        if can {
            self.pages[self.at].table.forget_rows();
            self.at += 1;
        }
        can
    }

    /// Whether one can go back.
    #[must_use]
    pub const fn has_older(&self) -> bool {
        self.at > 0
    }

    /// Whether one can go forward.
    #[must_use]
    pub fn has_newer(&self) -> bool {
        self.at + 1 < self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_behaves_as_in_a_browser_and_stays_bounded() {
        let mut history = History::default();
        assert!(!history.older());
        for kind in [Kind::Segments, Kind::Channels] {
            history.push(Page::new(Place::List(kind, Scope::default()), vec![]));
        }
        assert!(history.older());
        assert_eq!(
            history.page().place,
            Place::List(Kind::Segments, Scope::default())
        );
        assert!(history.newer());
        assert!(!history.newer());
        assert!(history.older());
        history.push(Page::new(Place::Doctor, vec![]));
        assert!(!history.has_newer());
        for _ in 0..1000 {
            history.push(Page::new(Place::Overview, vec![]));
        }
        assert!(history.pages.len() <= KEPT);
        assert_eq!(history.page().place, Place::Overview);
    }

    #[test]
    fn a_question_asked_again_keeps_the_old_answer_on_screen() {
        let mut remote = Remote::Got(1);
        remote.ask(7);
        assert_eq!(remote.shown(), Some(&1));
        assert!(remote.awaits(7) && !remote.awaits(6));
    }
}
