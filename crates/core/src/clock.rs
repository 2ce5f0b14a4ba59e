//! Instants, and the trait of a clock.
//!
//! Two clocks, because they fail differently. The *wall* says when a key
//! expires; it can be set, also back. The *uptime* (`CLOCK_BOOTTIME`) says how
//! old the replica is; it cannot be set and goes on counting while the machine
//! is suspended. Everything that asks for either gets a [`Clock`], so that a
//! test can hold time still.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, Timelike as _};

/// An instant in microseconds since 1970-01-01T00:00:00Z, the resolution of Postgres' `timestamptz`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Before every other instant: what `-infinity` means.
    pub const MIN: Self = Self(i64::MIN);

    /// Reads RFC 3339.
    #[must_use]
    pub fn parse_rfc_3339(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|t| Self(t.timestamp_micros()))
    }

    /// Reads RFC 3339, or SQL's spelling of the same (a blank for the `T`, no zone: UTC).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain =
            || chrono::NaiveDateTime::parse_from_str(&text.replacen('T', " ", 1), "%Y-%m-%d %H:%M:%S%.f");
        Self::parse_rfc_3339(text).or_else(|| plain().ok().map(|t| Self(t.and_utc().timestamp_micros())))
    }

    /// Reads RFC 3339, or what Postgres writes (`2027-01-31 00:00:00+00`). An instant without a zone is not one.
    #[must_use]
    pub fn parse_zoned(text: &str) -> Option<Self> {
        let plain = || DateTime::parse_from_str(&text.replacen('T', " ", 1), "%Y-%m-%d %H:%M:%S%.f%#z");
        Self::parse_rfc_3339(text).or_else(|| plain().ok().map(|t| Self(t.timestamp_micros())))
    }

    /// This instant and `span` more; the end of time where there is none.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    /// This instant less `span`.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// The number of its day (UTC) since 1970-01-01.
    #[must_use]
    pub fn day(self) -> i64 {
        self.0.div_euclid(86_400_000_000)
    }

    /// How long after `earlier` this is; nothing if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Timestamp {
    /// Writes what [`fmt::Display`] shows, in ASCII.
    pub fn write_rfc_3339(self, to: &mut Vec<u8>) {
        const FIRST: i64 = -62_167_219_200_000_000;
        const LAST: i64 = 253_402_300_799_999_999;
        let time = DateTime::from_timestamp_micros(self.0.clamp(FIRST, LAST)).unwrap_or_default();
        let (year, micros) = (time.year().unsigned_abs(), time.timestamp_subsec_micros());
        for (number, digits, mark) in [
            (year, 4, b'-'),
            (time.month(), 2, b'-'),
            (time.day(), 2, b'T'),
            (time.hour(), 2, b':'),
            (time.minute(), 2, b':'),
            (time.second(), 2, b'.'),
            (micros, 6, b'Z'),
        ] {
            let place = |place| u8::try_from(number / 10_u32.pow(place) % 10).unwrap_or(0);
            to.extend((0..digits).rev().map(|at| b'0' + place(at)));
            to.push(mark);
        }
    }
}

/// RFC 3339 in UTC with microseconds: always as long, so that text sorts as time does. Years past 9999,
/// which RFC 3339 cannot spell, read as the last instant of 9999.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(27);
        self.write_rfc_3339(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Tells the time.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// Time since the machine started, suspension included; never set, never back.
    fn uptime(&self) -> Duration;
    /// Which start of the machine the uptime counts from; empty if that cannot be told.
    fn boot(&self) -> String {
        String::new()
    }
}

/// What both clocks said at one moment: a clock that stands still.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    now: Timestamp,
    uptime: Duration,
}

impl Moment {
    /// What they say.
    pub fn of(clock: &dyn Clock) -> Self {
        Self { now: clock.now(), uptime: clock.uptime() }
    }
}

impl Clock for Moment {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn uptime(&self) -> Duration {
        self.uptime
    }
}

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<(Timestamp, Duration)>);

impl ManualClock {
    /// A clock that shows `now` and no uptime.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self(Mutex::new((now, Duration::ZERO)))
    }

    /// Moves both clocks on.
    pub fn advance(&self, span: Duration) {
        let mut time = self.lock();
        *time = (time.0.after(span), time.1 + span);
    }

    /// Sets the wall clock alone.
    pub fn set_wall(&self, now: Timestamp) {
        self.lock().0 = now;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Timestamp, Duration)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.lock().0
    }

    fn uptime(&self) -> Duration {
        self.lock().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_read_as_postgres_writes_it_and_needs_a_zone() {
        let noon = Timestamp::parse_rfc_3339("2027-01-31T12:00:00Z");
        for text in [
            "2027-01-31 12:00:00+00",
            "2027-01-31 14:00:00.000+02",
            "2027-01-31T17:30:00+05:30",
            "2027-01-31 12:00:00Z",
        ] {
            assert_eq!(Timestamp::parse_zoned(text), noon, "{text}");
        }
        for text in ["2027-01-31 12:00:00", "2027-01-31T12:00:00", "2027-01-31", "12:00:00+00"] {
            assert_eq!(Timestamp::parse_zoned(text), None, "{text}");
        }
    }

    #[test]
    fn reads_what_it_writes_and_what_sql_writes() {
        for (text, shown) in [
            ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00.000000Z"),
            ("2026-11-23T12:00:00+02:00", "2026-11-23T10:00:00.000000Z"),
            ("2026-11-23 10:00:00", "2026-11-23T10:00:00.000000Z"),
            ("2026-11-23T10:00:00.250", "2026-11-23T10:00:00.250000Z"),
            ("2026-11-23T10:00:00.000001Z", "2026-11-23T10:00:00.000001Z"),
        ] {
            assert_eq!(Timestamp::parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(Timestamp::parse("tomorrow"), None);
    }

    #[test]
    fn shows_instants_that_rfc_3339_cannot_spell_as_the_nearest_it_can() {
        assert_eq!(Timestamp(i64::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp::MIN.to_string(), "0000-01-01T00:00:00.000000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp(i64::MAX).after(Duration::from_secs(1)), Timestamp(i64::MAX));
        assert_eq!(Timestamp(5).since(Timestamp(7)), Duration::ZERO);
    }
}
