//! How often, and how long?
//!
//! Numbers that machines count up and operators read. Counting takes one atomic
//! addition, on a line of the cache that no other thread writes while there are few
//! of them, and no lock; what the numbers are called and how they are shown is
//! not known here.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// How many threads count without being in each other's way.
const STRIPES: usize = 8;

/// A number of its own line of the cache: threads that count on different ones do not wait for each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

/// A number that only grows. Every thread adds to one of its parts.
#[derive(Debug, Default)]
pub struct Count([Stripe; STRIPES]);

impl Count {
    /// Adds one.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0[stripe()].0.fetch_add(n, Relaxed);
    }

    /// Reads it.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.load(Relaxed)).sum()
    }
}

/// The part that this thread adds to.
fn stripe() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OURS: usize = THREADS.fetch_add(1, Relaxed) % STRIPES;
    }
    OURS.with(|ours| *ours)
}

/// A number that is set.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
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
pub struct Spread([Part; STRIPES]);

/// What one thread, or a few, have taken note of.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Part {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

const BUCKETS: usize = 22;

impl Spread {
    /// Takes note of a duration.
    pub fn record(&self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let part = &self.0[stripe()];
        part.buckets[bucket_of(nanos)].fetch_add(1, Relaxed);
        part.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// The sum of all durations in seconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a sum for display; 53 bits of it are plenty")]
    pub fn sum_seconds(&self) -> f64 {
        self.0.iter().map(|part| part.sum_nanos.load(Relaxed)).sum::<u64>() as f64 / 1e9
    }

    /// Each bucket's upper bound in seconds, inclusive, and how many durations fell into it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let count = |i: usize| self.0.iter().map(|part| part.buckets[i].load(Relaxed)).sum();
        (0..BUCKETS).map(move |i| (upper_bound(i), count(i)))
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
    fn what_many_threads_counted_is_counted_once() {
        let count = Count::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1_000).for_each(|_| count.add_one()));
            }
        });
        assert_eq!(count.value(), 20_000);
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
