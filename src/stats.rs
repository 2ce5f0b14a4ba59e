//! How often, and how long?
//!
//! Numbers that machines count up and operators read. Counting takes one atomic
//! addition and no lock; what the numbers are called and how they are shown is
//! not known here.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows, or one that is set.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes one away.
    pub fn take_one(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Reads it.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How durations are spread: buckets that double from 4 µs to 4 s.
#[derive(Debug, Default)]
pub struct Spread {
    buckets: [Count; BUCKETS],
    sum_nanos: Count,
}

const BUCKETS: usize = 22;

impl Spread {
    /// Takes note of a duration.
    pub fn record(&self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)].add_one();
        self.sum_nanos.add(nanos);
    }

    /// The sum of all durations in seconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a sum for display; 53 bits of it are plenty")]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_nanos.value() as f64 / 1e9
    }

    /// Each bucket's upper bound in seconds, inclusive, and how many durations fell into it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(i, count)| (upper_bound(i), count.value()))
    }
}

fn bucket_of(nanos: u64) -> usize {
    let above_4_us = nanos.saturating_sub(1) / 4_000;
    ((u64::BITS - above_4_us.leading_zeros()) as usize).min(BUCKETS - 1)
}

#[expect(clippy::cast_precision_loss, reason = "small powers of two are exact")]
fn upper_bound(bucket: usize) -> f64 {
    if bucket == BUCKETS - 1 { f64::INFINITY } else { (4_u64 << bucket) as f64 / 1e6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        for (micros, bucket) in
            [(0, 0), (4, 0), (5, 1), (8, 1), (9, 2), (4_000_000, 20), (u64::MAX / 1000, 21)]
        {
            assert_eq!(bucket_of(micros * 1000), bucket, "{micros} µs");
            assert!(upper_bound(bucket) * 1e6 >= f64::from(u32::try_from(micros).unwrap_or(u32::MAX)));
        }
    }

    #[test]
    fn the_sum_and_the_buckets_agree_with_what_was_recorded() {
        let spread = Spread::default();
        spread.record(Duration::from_micros(3));
        spread.record(Duration::from_millis(270));
        assert!((spread.sum_seconds() - 0.270_003).abs() < 1e-9);
        assert_eq!(spread.buckets().map(|(_, n)| n).sum::<u64>(), 2);
    }
}
