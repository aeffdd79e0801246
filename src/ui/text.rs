//! Numbers, times and widths as text: pure, used by every screen.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::engine::ids::UnixMs;

pub use crate::engine::model::text::{age, bytes, grouped};

/// A count of anything, grouped.
#[must_use]
pub fn count(n: impl TryInto<i64>) -> String {
    grouped(n.try_into().unwrap_or(i64::MAX))
}

/// The time of day in UTC: `14:02:11`.
#[must_use]
pub fn clock(at: UnixMs) -> String {
    let s = at.0.div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60)
}

/// Cells that `s` takes at most.
#[must_use]
pub fn width(s: &str) -> u16 {
    u16::try_from(s.width()).unwrap_or(u16::MAX)
}

/// Cells of a letter; a control character counts as one, as it does in [`width`].
fn cells(c: char) -> u16 {
    c.width().unwrap_or(1) as u16
}

/// `s` in at most `max` cells, with `…` at the end when something was cut.
#[must_use]
pub fn fit(s: &str, max: u16) -> String {
    if width(s) <= max {
        return s.to_owned();
    }
    if max == 0 {
        return String::new();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in s.chars() {
        let w = cells(c);
        if used + w > max - 1 {
            break;
        }
        used += w;
        out.push(c);
    }
    out.push('…');
    out
}

/// `s` in at most `max` cells, cut in the middle: the ends of keys and ids tell them apart.
#[must_use]
pub fn fit_middle(s: &str, max: u16) -> String {
    if width(s) <= max {
        return s.to_owned();
    }
    if max < 5 {
        return fit(s, max);
    }
    let keep = max - 1;
    let head = keep.div_ceil(3);
    let mut tail = String::new();
    let mut used = 0;
    for c in s.chars().rev() {
        let w = cells(c);
        if used + w > keep - head {
            break;
        }
        used += w;
        tail.insert(0, c);
    }
    let mut out = fit(s, head + 1);
    out.push_str(&tail);
    out
}

/// `s` in lines of at most `max` cells, broken at spaces where there are any.
#[must_use]
pub fn wrap(s: &str, max: u16) -> Vec<String> {
    let max = max.max(1);
    let mut lines = Vec::new();
    for paragraph in s.lines() {
        let mut line = String::new();
        for word in paragraph.split_inclusive(' ') {
            let mut word = word.to_owned();
            if width(&line) + width(word.trim_end()) > max && !line.trim().is_empty() {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
            }
            while width(word.trim_end()) > max {
                let mut head = String::new();
                for c in word.chars() {
                    let w = cells(c);
                    if !head.is_empty() && width(&head) + w > max {
                        break;
                    }
                    head.push(c);
                }
                word.drain(..head.len());
                lines.push(head);
            }
            line.push_str(&word);
        }
        lines.push(line.trim_end().to_owned());
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

/// One line of eighths, the newest at the right; all zero is a flat line.
#[must_use]
pub fn spark(values: &[u64], cells: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let skip = values.len().saturating_sub(cells);
    let shown = &values[skip..];
    let max = shown.iter().copied().max().unwrap_or(0).max(1);
    let pad = cells.saturating_sub(shown.len());
    std::iter::repeat_n(BARS[0], pad)
        .chain(shown.iter().map(|v| {
            if *v == 0 {
                BARS[0]
            } else {
                // The smallest non-zero value must stand above the ground line.
                BARS[1 + (((*v * 6) / max) as usize).min(6)]
            }
        }))
        .collect()
}

/// A bar of `cells` cells, `done` of `all`.
#[must_use]
pub fn bar(done: u64, all: u64, cells: u16) -> String {
    let full = if all == 0 {
        0
    } else {
        ((u128::from(done.min(all)) * u128::from(cells)) / u128::from(all)) as usize
    };
    let mut out = "━".repeat(full);
    out.push_str(&"░".repeat(cells as usize - full));
    out
}

/// A percentage that is 100 only when it is all of it.
#[must_use]
pub fn percent(done: u64, all: u64) -> String {
    if all == 0 {
        return "–".to_owned();
    }
    let tenths = (u128::from(done.min(all)) * 1000 / u128::from(all)) as u64;
    format!("{}.{}%", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(clock(UnixMs(1_700_000_000_000)), "22:13:20");
        assert_eq!(percent(999_999, 1_000_000), "99.9%");
        assert_eq!(percent(5, 0), "–");
    }

    #[test]
    fn text_never_outgrows_its_cells() {
        for s in [
            "",
            "a",
            "abcdef",
            "日本語の名前",
            "a日b本c",
            "\u{1b}[31mred",
        ] {
            for max in 0..12 {
                assert!(width(&fit(s, max)) <= max, "{s:?} {max}");
                assert!(width(&fit_middle(s, max)) <= max, "{s:?} {max}");
            }
            for max in 2..12 {
                assert!(wrap(s, max).iter().all(|l| width(l) <= max), "{s:?} {max}");
            }
        }
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit_middle("datacoord-meta/s/448", 9), "dat…s/448");
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
    }

    #[test]
    fn sparks_and_bars_fill_exactly() {
        assert_eq!(spark(&[0, 1, 1000], 5), "▁▁▁▂█");
        assert_eq!(spark(&[], 3), "▁▁▁");
        assert_eq!(bar(1, 2, 4), "━━░░");
        assert_eq!(bar(9, 2, 4), "━━━━");
        assert_eq!(bar(0, 0, 2), "░░");
    }
}
