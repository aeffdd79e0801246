//! Which stored numbers are moments (law 10, `spec/layout.md` §8).
//!
//! Milvus uses five units in one value and marks "unset", "never" and "dropped" with numbers of the same type. Only
//! [`Moment::At`] may enter a lag, a minimum or a date.

use crate::engine::ids::{Tso, UnixMs, UnixNs, UnixSecs};

/// A stored time, told apart from the marks that look like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// 0: never written.
    Unset,
    /// The largest value of the type: dropped, or never expires.
    Max,
    /// Later than now by more than [`SKEW_MS`].
    Future(UnixMs),
    /// Not between 2019-01-01 and 9999-12-31.
    OutOfRange,
    /// A real moment.
    At(UnixMs),
}

/// A clock may run ahead of ours by this many ms before its "now" counts as the future.
pub const SKEW_MS: i64 = 60_000;

impl Moment {
    /// The moment, when it is one.
    #[must_use]
    pub fn at(self) -> Option<UnixMs> {
        match self {
            Self::At(ms) => Some(ms),
            _ => None,
        }
    }

    /// A TSO as stored.
    #[must_use]
    pub fn of_tso(tso: Tso, now: UnixMs) -> Self {
        match tso {
            Tso::UNSET => Self::Unset,
            Tso::DROPPED => Self::Max,
            tso => tso
                .time()
                .map_or(Self::OutOfRange, |ms| Self::against(ms, now)),
        }
    }

    /// Unix milliseconds as stored; `i64::MAX` and `u64::MAX` read as `i64` are marks.
    #[must_use]
    pub fn of_ms(ms: UnixMs, now: UnixMs) -> Self {
        Self::of_number(ms.0, ms, now)
    }

    /// Unix nanoseconds as stored.
    #[must_use]
    pub fn of_ns(ns: UnixNs, now: UnixMs) -> Self {
        Self::of_number(ns.0, ns.to_ms(), now)
    }

    /// Unix seconds as stored.
    #[must_use]
    pub fn of_secs(secs: UnixSecs, now: UnixMs) -> Self {
        Self::of_number(secs.0, secs.to_ms(), now)
    }

    fn of_number(raw: i64, ms: UnixMs, now: UnixMs) -> Self {
        match raw {
            0 => Self::Unset,
            i64::MAX | -1 => Self::Max,
            _ => Tso::from_ms(ms)
                .time()
                .filter(|t| *t == ms)
                .map_or(Self::OutOfRange, |ms| Self::against(ms, now)),
        }
    }

    fn against(ms: UnixMs, now: UnixMs) -> Self {
        if ms.0 > now.0.saturating_add(SKEW_MS) {
            Self::Future(ms)
        } else {
            Self::At(ms)
        }
    }
}

/// The logical part of a TSO.
#[must_use]
pub fn logical(tso: Tso) -> u32 {
    (tso.0 & 0x3_ffff) as u32
}

/// A TSO from its two parts; `logical` is cut to 18 bits.
#[must_use]
pub fn compose(ms: UnixMs, logical: u32) -> Tso {
    Tso(Tso::from_ms(ms).0 | u64::from(logical & 0x3_ffff))
}

/// When an id was allocated: ids are TSO-shaped (`spec/layout.md` §1.5). `None` for small ids made by hand.
#[must_use]
pub fn of_id(id: i64) -> Option<UnixMs> {
    u64::try_from(id).ok().and_then(|raw| Tso(raw).time())
}

/// The value of an allocator key: 8 bytes, big-endian, Unix nanoseconds of the saved window's end.
#[must_use]
pub fn read_window(value: &[u8]) -> Option<UnixNs> {
    let raw: [u8; 8] = value.try_into().ok()?;
    i64::try_from(u64::from_be_bytes(raw)).ok().map(UnixNs)
}

/// The bytes of an allocator key; a window before 1970 is written as 0.
#[must_use]
pub fn write_window(end: UnixNs) -> [u8; 8] {
    u64::try_from(end.0).unwrap_or(0).to_be_bytes()
}
