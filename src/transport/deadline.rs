//! The time by which a waiting call is answered.
//!
//! Envoy sends its timeout (`grpc-timeout`). Without a response in time it may allow the request
//! (`failure_mode_allow`). Calls that wait are therefore answered before the timeout. The margin covers queueing before
//! the call was read, and scheduling delay. A client that sends many wrong secrets causes both. The margin grows by
//! recently measured lateness.
//!
//! Calls that are answered at once have no deadline, and read no clock for it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// The smallest and the largest margin, without lateness.
const MARGIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// The deadline of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    /// When the response must be sent.
    pub(super) answer_by: Instant,
    /// When the caller gives up; `None` without `grpc-timeout`.
    given_up: Option<Instant>,
}

impl Deadline {
    /// Returns the deadline of a call that starts to wait `now`: `min(timeout - margin, most)` from now, or `most`
    /// without `grpc-timeout`. The margin is `clamp(timeout / 4, 5 ms, 500 ms) + min(lateness, timeout / 2)`.
    pub(super) fn of(headers: &HeaderMap, most: Duration, lateness: &Lateness, now: Instant) -> Self {
        let timeout = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
        let margin = |of: Duration| (of / 4).clamp(MARGIN.0, MARGIN.1) + lateness.recent(now).min(of / 2);
        let left = timeout.map_or(most, |timeout| timeout.saturating_sub(margin(timeout)).min(most));
        Self { answer_by: now + left, given_up: timeout.and_then(|timeout| now.checked_add(timeout)) }
    }

    /// Returns how late a response is that is sent `now`; zero if it is in time.
    pub(super) fn late_by(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.answer_by)
    }

    /// Returns whether the caller has given up.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.given_up.is_some_and(|given_up| now >= given_up)
    }

    /// Returns whether more than half of the margin is used up.
    pub(super) fn is_close(&self, now: Instant) -> bool {
        self.given_up.is_some_and(|given_up| {
            2 * self.late_by(now) > given_up.saturating_duration_since(self.answer_by)
        })
    }
}

/// How late responses were recently: the greatest delay, which is halved every [`HALVED_EVERY`].
#[derive(Debug)]
pub(super) struct Lateness {
    began: Instant,
    /// The delay in microseconds in the lower half, and the second in which it was seen in the upper half.
    seen: AtomicU64,
}

/// The number of seconds after which a delay counts half.
const HALVED_EVERY: u64 = 10;

/// A longer delay counts as this one, so that one pause of the whole machine is forgotten within a minute.
const LONGEST: Duration = Duration::from_secs(1);

impl Lateness {
    /// Creates a value without lateness.
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, seen: AtomicU64::new(0) }
    }

    /// Records that a response was this late.
    pub(super) fn note(&self, late: Duration, now: Instant) {
        let second = self.second(now);
        let micros = u64::try_from(late.min(LONGEST).as_micros()).unwrap_or(0);
        // An error means that the delay is not greater.
        let _ = self.seen.fetch_update(Relaxed, Relaxed, |seen| {
            (micros > remaining(seen, second)).then_some(second << u32::BITS | micros)
        });
    }

    /// Returns how late responses were recently.
    fn recent(&self, now: Instant) -> Duration {
        Duration::from_micros(remaining(self.seen.load(Relaxed), self.second(now)))
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }
}

/// Returns what is left of a delay in this second.
fn remaining(seen: u64, second: u64) -> u64 {
    let (at, micros) = (seen >> u32::BITS, seen & u64::from(u32::MAX));
    micros >> (second.saturating_sub(at) / HALVED_EVERY).min(u64::from(u32::BITS))
}

/// Parses `grpc-timeout`: 1 to 8 digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(amount.saturating_mul(60))),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const MOST: Duration = Duration::from_secs(10);

    fn headers(timeout: Option<&'static str>) -> HeaderMap {
        let timeout = timeout.map(|timeout| (http::HeaderName::from_static("grpc-timeout"), timeout));
        timeout.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn grpc_timeouts_are_parsed_as_the_protocol_defines_them() {
        for (text, expected) in [
            ("200m", Some(Duration::from_millis(200))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_hours(99_999_999))),
            ("5M", Some(Duration::from_mins(5))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("m", None),
            ("123456789m", None),
            ("-1m", None),
            ("1.5S", None),
            ("5", None),
            ("5é", None),
        ] {
            assert_eq!(grpc_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn the_deadline_is_before_grpc_timeout_and_within_the_limit() {
        let now = Instant::now();
        let due = |timeout, late: u64| {
            let lateness = Lateness::new(now);
            lateness.note(Duration::from_millis(late), now);
            (Deadline::of(&headers(timeout), MOST, &lateness, now).answer_by - now).as_millis()
        };
        for (timeout, expected, after_120_ms) in [
            (None, 10_000, 10_000),
            (Some("soon"), 10_000, 10_000),
            (Some("1H"), 10_000, 10_000),
            (Some("2S"), 1_500, 1_380),
            (Some("200m"), 150, 50),
            (Some("100m"), 75, 25),
            (Some("10m"), 5, 0),
            (Some("1m"), 0, 0),
        ] {
            assert_eq!((due(timeout, 0), due(timeout, 120)), (expected, after_120_ms), "{timeout:?}");
        }
    }

    #[test]
    fn a_response_is_close_or_over_only_with_a_grpc_timeout() {
        let now = Instant::now();
        let of = |timeout| Deadline::of(&headers(timeout), MOST, &Lateness::new(now), now);
        let told = of(Some("200m"));
        for (after, late, close, over) in [
            (0, 0, false, false),
            (150, 0, false, false),
            (170, 20, false, false),
            (180, 30, true, false),
            (200, 50, true, true),
        ] {
            let at = now + Duration::from_millis(after);
            let seen = (told.late_by(at).as_millis(), told.is_close(at), told.is_over(at));
            assert_eq!(seen, (late, close, over), "{after}");
        }
        let at = now + 2 * MOST;
        assert!(!of(None).is_over(at) && !of(None).is_close(at) && of(None).late_by(at) == MOST);
    }

    #[test]
    fn the_greatest_delay_counts_and_is_forgotten_within_minutes() {
        let began = Instant::now();
        let lateness = Lateness::new(began);
        let at = |seconds| began + Duration::from_secs(seconds);
        let recent = |seconds| lateness.recent(at(seconds)).as_millis();
        assert_eq!(recent(0), 0);
        lateness.note(Duration::from_millis(80), at(3));
        lateness.note(Duration::from_millis(20), at(4));
        assert_eq!((recent(4), recent(12), recent(13), recent(23)), (80, 80, 40, 20));
        lateness.note(Duration::from_millis(30), at(23));
        assert_eq!((recent(23), recent(33), recent(10_000)), (30, 15, 0));
        lateness.note(Duration::from_mins(5), at(10_000));
        assert_eq!((recent(10_000), recent(10_060)), (1_000, 15), "a pause of the machine");
    }
}
