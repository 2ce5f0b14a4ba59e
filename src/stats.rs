//! Counters, gauges and histograms for operators.
//!
//! Counting takes one atomic addition and no lock. Each of the first eight threads writes to a cache line of its own,
//! so that they do not slow each other down. Metric names and output formats belong to `telemetry`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// The number of threads that can count without sharing a cache line.
pub(crate) const STRIPES: usize = 8;

/// A number in its own cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

/// A number that only grows. Each thread adds to one of its stripes.
#[derive(Debug, Default)]
pub struct Counter([Stripe; STRIPES]);

impl Counter {
    /// Adds one.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0[stripe()].0.fetch_add(n, Relaxed);
    }

    /// Returns the sum over all threads.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.load(Relaxed)).sum()
    }
}

/// Returns the index of the stripe of this thread.
pub(crate) fn stripe() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OURS: usize = THREADS.fetch_add(1, Relaxed) % STRIPES;
    }
    OURS.with(|ours| *ours)
}

/// A number that can go up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Returns the last number set, 0 at first.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A histogram of durations, with buckets that double from 4 µs to 4 s.
#[derive(Debug, Default)]
pub struct Histogram([HistogramStripe; STRIPES]);

/// The durations that the threads of one stripe recorded.
#[derive(Debug, Default)]
#[repr(align(128))]
struct HistogramStripe {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

const BUCKETS: usize = 22;

impl Histogram {
    /// Records a duration.
    pub fn record(&self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let part = &self.0[stripe()];
        part.buckets[bucket_of(nanos)].fetch_add(1, Relaxed);
        part.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// Returns the sum of all durations in seconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a sum for display, for which 53 bits are enough")]
    pub fn sum_seconds(&self) -> f64 {
        self.0.iter().map(|part| part.sum_nanos.load(Relaxed)).sum::<u64>() as f64 / 1e9
    }

    /// Returns each bucket's inclusive upper bound in seconds, and the number of durations in this bucket alone (not
    /// cumulative).
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
    fn a_duration_falls_into_the_lowest_bucket_that_holds_it() {
        for (micros, bucket) in
            [(0, 0), (4, 0), (5, 1), (8, 1), (9, 2), (4_000_000, 20), (u64::MAX / 1000, 21)]
        {
            assert_eq!(bucket_of(micros * 1000), bucket, "{micros} µs");
            assert!(upper_bound(bucket) * 1e6 >= f64::from(u32::try_from(micros).unwrap_or(u32::MAX)));
        }
    }

    #[test]
    fn additions_of_many_threads_are_counted_once() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1_000).for_each(|_| counter.add_one()));
            }
        });
        assert_eq!(counter.value(), 20_000);
    }

    #[test]
    fn the_sum_and_the_buckets_agree_with_what_was_recorded() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(3));
        histogram.record(Duration::from_millis(270));
        assert!((histogram.sum_seconds() - 0.270_003).abs() < 1e-9);
        assert_eq!(histogram.buckets().map(|(_, n)| n).sum::<u64>(), 2);
    }
}
