//! Cells as text, and their order.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::resource::Cell;

/// How a cell reads: counts grouped, bytes in binary units, ages like `3m12s`, moments in UTC.
#[must_use]
pub fn text(cell: &Cell) -> Cow<'_, str> {
    match cell {
        Cell::None => Cow::Borrowed(""),
        Cell::Text(t) | Cell::State(t, _) => Cow::Borrowed(t),
        Cell::Shared(t) => Cow::Borrowed(t),
        Cell::Id(n) => Cow::Owned(n.to_string()),
        Cell::Count(n) => Cow::Owned(grouped(*n)),
        Cell::Bytes(n) => Cow::Owned(bytes(*n)),
        Cell::Time(at) => Cow::Owned(at.utc()),
        Cell::Age(ms) => Cow::Owned(age(*ms)),
    }
}

/// `1,234,567`.
#[must_use]
pub fn grouped(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if n < 0 {
        out.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.5 MiB`; bytes below 1024 without a fraction.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut unit = 0;
    let mut value = n as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    // 1023.96 would read as "1024.0" of the smaller unit.
    if value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `812ms`, `41s`, `3m12s`, `5h07m`, `12d04h`.
#[must_use]
pub fn age(ms: u64) -> String {
    let secs = ms / 1000;
    match secs {
        0 => format!("{ms}ms"),
        1..60 => format!("{secs}s"),
        60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        3600..86_400 => format!("{}h{:02}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d{:02}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// `90`, `90s`, `10m`, `2h`, `7d` in seconds: the reverse of [`age`], as a person types it.
#[must_use]
pub fn seconds(typed: &str) -> Option<u64> {
    let typed = typed.trim();
    let digits = typed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &typed[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(factor)
}

/// The order of two rows by a column: nothing last, whichever way.
#[must_use]
pub fn order(a: &Cell, b: &Cell, descending: bool) -> Ordering {
    match (a, b) {
        (Cell::None, Cell::None) => Ordering::Equal,
        (Cell::None, _) => Ordering::Greater,
        (_, Cell::None) => Ordering::Less,
        (a, b) if descending => cmp(b, a),
        (a, b) => cmp(a, b),
    }
}

/// The order of two cells of one column: numbers by value, text without case, states by tone and then text, nothing last.
#[must_use]
pub fn cmp(a: &Cell, b: &Cell) -> Ordering {
    fn rank(cell: &Cell) -> u8 {
        match cell {
            Cell::None => 3,
            Cell::Id(_) | Cell::Count(_) | Cell::Bytes(_) | Cell::Time(_) | Cell::Age(_) => 0,
            Cell::Text(_) | Cell::Shared(_) => 1,
            Cell::State(..) => 2,
        }
    }
    fn number(cell: &Cell) -> i128 {
        match cell {
            Cell::Id(n) | Cell::Count(n) => i128::from(*n),
            Cell::Bytes(n) | Cell::Age(n) => i128::from(*n),
            Cell::Time(at) => i128::from(at.0),
            _ => 0,
        }
    }
    fn words(cell: &Cell) -> &str {
        match cell {
            Cell::Text(t) | Cell::State(t, _) => t,
            Cell::Shared(t) => t,
            _ => "",
        }
    }
    fn fold(a: &str, b: &str) -> Ordering {
        let lower = |s: &str| s.chars().flat_map(char::to_lowercase).collect::<Vec<_>>();
        if a.is_ascii() && b.is_ascii() {
            let (x, y) = (a.bytes(), b.bytes());
            x.map(|c| c.to_ascii_lowercase())
                .cmp(y.map(|c| c.to_ascii_lowercase()))
                .then_with(|| a.cmp(b))
        } else {
            lower(a).cmp(&lower(b)).then_with(|| a.cmp(b))
        }
    }
    match (a, b) {
        (Cell::State(.., tone), Cell::State(.., other)) => {
            tone.cmp(other).then_with(|| fold(words(a), words(b)))
        }
        _ => rank(a)
            .cmp(&rank(b))
            .then_with(|| number(a).cmp(&number(b)))
            .then_with(|| fold(words(a), words(b))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(-1_234_567), "-1,234,567");
        assert_eq!(grouped(i64::MIN), "-9,223,372,036,854,775,808");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(age(999), "999ms");
        assert_eq!(age(192_000), "3m12s");
        assert_eq!(age(18_420_000), "5h07m");
        assert_eq!(age(12 * 86_400_000 + 4 * 3_600_000), "12d04h");
    }

    #[test]
    fn order_is_by_value_and_nothing_comes_last() {
        assert_eq!(cmp(&Cell::Count(9), &Cell::Count(10)), Ordering::Less);
        assert_eq!(cmp(&Cell::None, &Cell::Count(-5)), Ordering::Greater);
        let text = |t: &'static str| Cell::Text(t.into());
        assert_eq!(cmp(&text("apple"), &text("Banana")), Ordering::Less);
    }

    #[test]
    fn a_time_reads_like_a_person_writes_it() {
        assert_eq!(seconds("600"), Some(600));
        assert_eq!(seconds(" 10m "), Some(600));
        assert_eq!(seconds("2h"), Some(7200));
        assert_eq!(seconds("7d"), Some(604_800));
        for bad in [
            "",
            "ten",
            "10y",
            "-1",
            "1.5h",
            "99999999999999999999",
            "9999999999999999d",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
