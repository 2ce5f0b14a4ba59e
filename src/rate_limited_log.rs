//! A limit on repeated log lines.
//!
//! A flood of bad requests must not become a flood of log lines. The metrics count every event; of the log lines only
//! the first few in each second (or minute) are written, and the next one says how many were left out.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Clock;

/// Allows a number of lines a second, or one a minute. Shared by all threads; takes no lock.
pub struct RateLimitedLog {
    clock: Arc<dyn Clock>,
    lines: u64,
    /// The length of a period in seconds.
    period: u64,
    /// The number of the period being counted, and the events in it so far.
    number: AtomicU64,
    events: AtomicU64,
}

impl RateLimitedLog {
    /// Creates a log of at most `lines` lines a second.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, lines: u64) -> Self {
        Self { clock, lines, period: 1, number: AtomicU64::new(u64::MAX), events: AtomicU64::new(0) }
    }

    /// Creates a log of one line a minute, for a state that lasts.
    #[must_use]
    pub fn once_a_minute(clock: Arc<dyn Clock>) -> Self {
        Self { period: 60, ..Self::new(clock, 1) }
    }

    /// Calls `write` with the number of lines left out before, unless this period already had its lines.
    pub fn write(&self, write: impl FnOnce(u64)) {
        let now = self.clock.uptime().as_secs() / self.period;
        let left_out = if self.number.swap(now, Relaxed) == now {
            0
        } else {
            self.events.swap(0, Relaxed).saturating_sub(self.lines)
        };
        if self.events.fetch_add(1, Relaxed) < self.lines {
            write(left_out);
        }
    }
}

impl fmt::Debug for RateLimitedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitedLog").field("lines", &self.lines).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_flood_of_events_writes_few_lines_and_the_next_line_counts_the_others() {
        let clock = Arc::new(ManualClock::default());
        let log = RateLimitedLog::new(Arc::<ManualClock>::clone(&clock), 50);
        let mut written = Vec::new();
        (0..1_000).for_each(|_| log.write(|left_out| written.push(left_out)));
        assert_eq!(written, [0; 50]);
        clock.advance(Duration::from_secs(1));
        log.write(|left_out| written.push(left_out));
        log.write(|left_out| written.push(left_out));
        assert_eq!(written[50..], [950, 0]);
    }

    #[test]
    fn a_state_that_lasts_is_one_line_a_minute() {
        let clock = Arc::new(ManualClock::default());
        let log = RateLimitedLog::once_a_minute(Arc::<ManualClock>::clone(&clock));
        let mut written = Vec::new();
        for _ in 0..121 {
            log.write(|left_out| written.push(left_out));
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(written, [0, 59, 59]);
    }
}
