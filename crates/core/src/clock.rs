//! Timestamps, and a trait for clocks.
//!
//! There are two clocks, because they fail differently. The *wall clock* decides when a key expires; an administrator
//! can set it, also backwards. The *uptime* (`CLOCK_BOOTTIME`) measures the age of the snapshot; it cannot be set,
//! and continues while the machine is suspended. Code that needs the time takes a [`Clock`], so that tests control
//! it.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, Timelike as _};

/// The number of microseconds in a day.
pub const MICROS_PER_DAY: i64 = 86_400_000_000;

/// An instant in microseconds since 1970-01-01T00:00:00Z, the resolution of Postgres' `timestamptz`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The earliest instant; stands for `-infinity`.
    pub const MIN: Self = Self(i64::MIN);

    /// Parses RFC 3339. `None` if `text` is invalid.
    #[must_use]
    pub fn parse_rfc_3339(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|t| Self(t.timestamp_micros()))
    }

    /// Parses RFC 3339 or SQL's form (a space instead of the `T`; without a zone it is UTC). `None` if `text` is
    /// invalid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain =
            || chrono::NaiveDateTime::parse_from_str(&text.replacen('T', " ", 1), "%Y-%m-%d %H:%M:%S%.f");
        Self::parse_rfc_3339(text).or_else(|| plain().ok().map(|t| Self(t.and_utc().timestamp_micros())))
    }

    /// Parses RFC 3339 or the form of Postgres (`2027-01-31 00:00:00+00`). `None` if `text` is invalid or has no
    /// zone.
    #[must_use]
    pub fn parse_zoned(text: &str) -> Option<Self> {
        let plain = || DateTime::parse_from_str(&text.replacen('T', " ", 1), "%Y-%m-%d %H:%M:%S%.f%#z");
        Self::parse_rfc_3339(text).or_else(|| plain().ok().map(|t| Self(t.timestamp_micros())))
    }

    /// Adds `span`; saturates at the latest instant.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    /// Subtracts `span`; saturates at the earliest instant.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// Returns its day (UTC), in days since 1970-01-01.
    #[must_use]
    pub fn day(self) -> i64 {
        self.0.div_euclid(MICROS_PER_DAY)
    }

    /// Returns the time since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Timestamp {
    /// Appends the text of [`fmt::Display`], which is ASCII.
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

/// RFC 3339 in UTC with microseconds, always 27 characters, so that texts sort as instants do. Instants outside the
/// years 0 to 9999, which RFC 3339 cannot represent, are shown as the nearest one that it can.
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

/// A source of both times.
pub trait Clock: Send + Sync {
    /// Returns the time of the wall clock.
    fn now(&self) -> Timestamp;
    /// Returns the time since the machine booted, suspension included. It never goes back.
    fn uptime(&self) -> Duration;
    /// Returns the id of the machine's current boot, from which the uptime counts; empty if unknown.
    fn boot(&self) -> String {
        String::new()
    }
}

/// A clock that always returns the times at which it was created.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    now: Timestamp,
    uptime: Duration,
}

impl Moment {
    /// Reads both times of `clock`.
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

/// A clock for tests: its times change only on request.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<(Timestamp, Duration)>);

impl ManualClock {
    /// Creates a clock whose wall clock is at `now` and whose uptime is zero.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self(Mutex::new((now, Duration::ZERO)))
    }

    /// Advances both times by `span`.
    pub fn advance(&self, span: Duration) {
        let mut time = self.lock();
        *time = (time.0.after(span), time.1 + span);
    }

    /// Sets the wall clock, and leaves the uptime.
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
    fn parse_zoned_accepts_the_form_of_postgres_and_requires_a_zone() {
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
    fn parse_accepts_rfc_3339_and_the_form_of_sql() {
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
    fn instants_outside_rfc_3339_are_shown_as_the_nearest_one_inside() {
        assert_eq!(Timestamp(i64::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp::MIN.to_string(), "0000-01-01T00:00:00.000000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp(i64::MAX).after(Duration::from_secs(1)), Timestamp(i64::MAX));
        assert_eq!(Timestamp(5).since(Timestamp(7)), Duration::ZERO);
    }
}
