//! What a person can ask for: the first column of the action table.

use crate::engine::model::resource::Kind;

/// What a person can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Leave.
    Quit,
    /// Stop until the shell continues us.
    Suspend,
    /// Paint everything again.
    Redraw,
    /// Show the keys.
    Help,
    /// Type where to go or what to do.
    Palette,
    /// Up one level.
    Back,
    /// Older page.
    Older,
    /// Newer page.
    Newer,
    /// The overview.
    Overview,
    /// The list of a kind.
    Go(Kind),
    /// Line up.
    Up,
    /// Line down.
    Down,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// First line.
    Top,
    /// Last line.
    Bottom,
    /// Columns to the left.
    Left,
    /// Columns to the right.
    Right,
    /// Open what is selected.
    Open,
    /// Straight to fields, values and related things.
    Describe,
    /// Type a filter.
    Filter,
    /// Only rows that are not well.
    Faults,
    /// Next sort column.
    Sort,
    /// Reverse the order.
    Reverse,
    /// Mark or unmark.
    Mark,
    /// Forget the marks.
    Unmark,
    /// Next section of a detail view.
    NextSection,
    /// Previous section.
    PrevSection,
    /// Copy the name, id or value.
    Copy,
    /// Copy the view as Markdown.
    CopyView,
    /// Plan a snapshot.
    CreateSnapshot,
    /// Plan a restore.
    Restore,
    /// Plan an export.
    Export,
    /// Plan a restore from a bundle.
    RestoreBundle,
    /// Plan a drop.
    Drop,
    /// Plan a pin.
    Pin,
    /// Plan to take pins off.
    Unpin,
    /// Plan a look whether a snapshot is whole.
    Verify,
    /// Plan a garbage collection pass.
    Gc,
    /// Plan a scan for objects that nobody owns.
    Orphans,
    /// Pause garbage collection.
    PauseGc,
    /// End a pause.
    ResumeGc,
    /// Plan to put back what was moved aside.
    PutBack,
    /// Plan to delete what was moved aside.
    Purge,
    /// Plan the end of a job.
    CancelJob,
    /// Try again what failed, of a job that is stuck.
    Retry,
    /// More copies at once.
    Faster,
    /// Fewer copies at once.
    Slower,
    /// Raise the byte limit.
    Loosen,
    /// Set or lower the byte limit.
    Tighten,
    /// The first rows of a segment.
    Rows,
    /// Check the health of everything.
    Doctor,
    /// Build the demo.
    Demo,
}
