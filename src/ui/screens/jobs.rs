//! The panel under the list of our jobs.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::engine::ids::UnixMs;
use crate::engine::model::resource::RowId;
use crate::ui::app::App;
use crate::ui::document::{self, Line};
use crate::ui::job_words::{FEW, files, lines};
use crate::ui::theme::Role;

/// The selected job under the list, with the notes that fit.
pub fn draw_panel(app: &App, area: Rect, buf: &mut Buffer, now: UnixMs) {
    let theme = app.theme;
    let rule = "─".repeat(area.width as usize);
    buf.set_stringn(
        area.x,
        area.y,
        rule,
        area.width as usize,
        theme.role(Role::Dim),
    );
    let Some(RowId::Job(id)) = app.target() else {
        return;
    };
    let Some(job) = app.jobs.jobs.iter().find(|j| j.id == id) else {
        return;
    };
    let inner = Rect::new(area.x, area.y + 1, area.width, area.height - 1);
    let mut left = lines(app, job, now);
    if inner.width < 110 {
        // The newest note and the error matter more than the counters when there is little room.
        if let Some(note) = job.notes.last() {
            left.push(Line::field("note", note.clone()));
        }
        document::draw(
            &left,
            left.len().saturating_sub(inner.height as usize),
            None,
            inner,
            buf,
            theme,
        );
        return;
    }
    left.extend(files(job, FEW));
    let half = inner.width / 2;
    document::draw(
        &left,
        0,
        None,
        Rect {
            width: half,
            ..inner
        },
        buf,
        theme,
    );
    let keep = inner.height as usize - 1;
    let mut notes = vec![Line::heading("Notes")];
    let skip = job.notes.len().saturating_sub(keep);
    notes.extend(job.notes.iter().skip(skip).map(Line::text));
    let right = Rect::new(inner.x + half, inner.y, inner.width - half, inner.height);
    document::draw(&notes, 0, None, right, buf, theme);
}
