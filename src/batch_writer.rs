//! Writes rows that may wait to the database, in batches, with a timeout, and retries later.
//!
//! Requests add rows to a [`Buffer`] in memory and never wait for the database. A background task takes them at every
//! interval. Rows that could not be written go back into the buffer and are retried at the next interval. An outage is
//! logged once, not at every attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{interval, timeout};
use tracing::{debug, warn};

use crate::stats::Counter;
use crate::store::{Store, StoreError};

/// When batches are written.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The pause between two flushes.
    pub interval: Duration,
    /// The timeout of one batch.
    pub timeout: Duration,
}

impl Schedule {
    /// Flushes at this interval, with a timeout of 5 s a batch.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self { interval, timeout: Duration::from_secs(5) }
    }
}

/// Rows in memory that a [`BatchWriter`] writes.
pub trait Buffer: Send + Sync + 'static {
    /// One row.
    type Row: Send + Sync;
    /// The name of the rows in the log.
    const NAME: &'static str;
    /// The number of rows in one statement. Small enough that the statement locks them for milliseconds.
    const BATCH: usize;

    /// Takes all rows out of the buffer. Rows that were not written come back through [`Buffer::put_back`].
    fn take(&self) -> Vec<Self::Row>;

    /// Puts rows back that were taken and not written.
    fn put_back(&self, rows: Vec<Self::Row>);

    /// Writes one batch. Returns the rows of it that another session has locked, to be written later.
    fn write(
        &self,
        store: &dyn Store,
        batch: &[Self::Row],
    ) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;
}

/// The results of writing, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches written.
    pub written: Counter,
    /// Batches that failed and will be retried.
    pub failed: Counter,
}

/// Writes the rows of a buffer. Cheap to clone.
pub struct BatchWriter<B>(Arc<Shared<B>>);

struct Shared<B> {
    buffer: B,
    schedule: Schedule,
    stats: Stats,
    /// Whether the last attempt failed.
    failing: AtomicBool,
}

impl<B> Clone for BatchWriter<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Buffer> BatchWriter<B> {
    /// Creates a writer of this buffer.
    pub(crate) fn of(buffer: B, schedule: Schedule) -> Self {
        let failing = AtomicBool::new(false);
        Self(Arc::new(Shared { buffer, schedule, stats: Stats::default(), failing }))
    }

    /// Returns the buffer.
    pub(crate) fn buffer(&self) -> &B {
        &self.0.buffer
    }

    /// Returns the results so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Flushes the buffer at every interval, forever.
    pub async fn run(self, store: Arc<dyn Store>) {
        let mut ticks = interval(self.0.schedule.interval);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.flush(store.as_ref(), self.0.schedule.timeout).await;
        }
    }

    /// Writes all rows of the buffer until a batch fails or takes longer than `within`. Returns the number of rows that
    /// were not written, of a failed batch or locked by another session; they are in the buffer again.
    ///
    /// # Cancel safety
    ///
    /// Rows that were not written go back into the buffer. A batch whose result is not known yet may be written twice.
    pub async fn flush(&self, store: &dyn Store, within: Duration) -> usize {
        let mut taken = Taken { rows: self.0.buffer.take(), locked: Vec::new(), buffer: &self.0.buffer };
        while !taken.rows.is_empty() {
            let from = taken.rows.len().saturating_sub(B::BATCH);
            let Some(locked) = self.attempt(store, &taken.rows[from..], within).await else { break };
            taken.locked.extend(locked);
            taken.rows.truncate(from);
        }
        taken.rows.len() + taken.locked.len()
    }

    /// Writes a batch. Returns the rows of it that are locked, or nothing if it failed.
    async fn attempt(&self, store: &dyn Store, batch: &[B::Row], within: Duration) -> Option<Vec<B::Row>> {
        let Shared { buffer, stats, failing, .. } = &*self.0;
        let (name, rows) = (B::NAME, batch.len());
        let (error, rows, locked) = match timeout(within, buffer.write(store, batch)).await {
            Ok(Ok(locked)) => {
                stats.written.add_one();
                debug!(rows = rows - locked.len(), "{name} written");
                if locked.is_empty() {
                    failing.store(false, Relaxed);
                    return Some(locked);
                }
                ("another session has locked them".to_owned(), locked.len(), Some(locked))
            }
            Ok(Err(error)) => (error.to_string(), rows, None),
            Err(_) => (format!("no response within {within:?}"), rows, None),
        };
        if locked.is_none() {
            stats.failed.add_one();
        }
        if failing.swap(true, Relaxed) {
            debug!(error, rows, "{name} still cannot be written");
        } else {
            warn!(error, rows, "{name} could not be written, trying again later");
        }
        locked
    }
}

/// Rows that are being written. When it is dropped, the rest goes back into the buffer: after a failed batch, a panic
/// of the store, or a cancelled flush.
struct Taken<'a, B: Buffer> {
    rows: Vec<B::Row>,
    locked: Vec<B::Row>,
    buffer: &'a B,
}

impl<B: Buffer> Drop for Taken<'_, B> {
    fn drop(&mut self) {
        self.rows.append(&mut self.locked);
        if !self.rows.is_empty() {
            self.buffer.put_back(std::mem::take(&mut self.rows));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;

    use super::*;
    use crate::replica::sync::tests::Script;

    /// How the database responds to one batch.
    enum Response {
        Ok,
        /// All rows but this one are written.
        Locked(u32),
        Error,
        Silence,
    }

    /// Numbers, in batches of two.
    struct Numbers {
        waiting: Mutex<Vec<u32>>,
        responses: Mutex<Vec<Response>>,
        written: Mutex<Vec<u32>>,
    }

    impl Buffer for Numbers {
        type Row = u32;
        const NAME: &'static str = "numbers";
        const BATCH: usize = 2;

        fn take(&self) -> Vec<u32> {
            std::mem::take(&mut *self.waiting.lock().unwrap())
        }

        fn put_back(&self, rows: Vec<u32>) {
            self.waiting.lock().unwrap().extend(rows);
        }

        async fn write(&self, _: &dyn Store, batch: &[u32]) -> Result<Vec<u32>, StoreError> {
            let response = self.responses.lock().unwrap().remove(0);
            match response {
                Response::Ok => self.written.lock().unwrap().extend(batch),
                Response::Locked(row) => {
                    let written = batch.iter().filter(|&&number| number != row);
                    self.written.lock().unwrap().extend(written);
                    return Ok(vec![row]);
                }
                Response::Error => return Err(StoreError::Unavailable("gone".into())),
                Response::Silence => pending().await,
            }
            Ok(Vec::new())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_batches_stay_in_the_buffer_and_are_written_by_the_next_flush() {
        use Response::{Error, Ok, Silence};
        let numbers = Numbers {
            waiting: Mutex::new(vec![1, 2, 3, 4, 5]),
            responses: Mutex::new(vec![Ok, Error, Ok, Silence, Ok]),
            written: Mutex::default(),
        };
        let (store, within) = (Script::default(), Duration::from_secs(5));
        let writer = BatchWriter::of(numbers, Schedule::every(Duration::from_secs(1)));
        assert_eq!(writer.flush(&store, within).await, 3, "the second batch fails");
        assert_eq!(writer.flush(&store, within).await, 1, "the next one times out");
        assert_eq!(writer.flush(&store, within).await, 0);
        assert_eq!(*writer.buffer().written.lock().unwrap(), [4, 5, 2, 3, 1]);
        assert_eq!((writer.stats().written.value(), writer.stats().failed.value()), (3, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_locked_row_delays_no_other_and_is_written_by_the_next_flush() {
        use Response::{Locked, Ok, Silence};
        let numbers = Numbers {
            waiting: Mutex::new(vec![1, 2, 3, 4, 5]),
            responses: Mutex::new(vec![Locked(4), Ok, Ok, Locked(4), Silence, Ok]),
            written: Mutex::default(),
        };
        let (store, within) = (Script::default(), Duration::from_secs(5));
        let writer = BatchWriter::of(numbers, Schedule::every(Duration::from_secs(1)));
        assert_eq!(writer.flush(&store, within).await, 1);
        assert_eq!(*writer.buffer().written.lock().unwrap(), [5, 2, 3, 1]);
        writer.buffer().put_back(vec![6, 7]);
        assert_eq!(*writer.buffer().waiting.lock().unwrap(), [4, 6, 7]);
        writer.buffer().waiting.lock().unwrap().rotate_left(1);
        assert_eq!(writer.flush(&store, within).await, 2, "the locked row, and the batch without a response");
        assert_eq!(*writer.buffer().waiting.lock().unwrap(), [6, 4]);
        assert_eq!(writer.flush(&store, within).await, 0);
        assert_eq!(writer.stats().failed.value(), 1, "a locked row is no failure of its batch");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_flush_loses_no_row() {
        let numbers = Numbers {
            waiting: Mutex::new(vec![1, 2, 3]),
            responses: Mutex::new(vec![Response::Silence]),
            written: Mutex::default(),
        };
        let (store, within) = (Script::default(), Duration::from_secs(5));
        let writer = BatchWriter::of(numbers, Schedule::every(Duration::from_secs(1)));
        let cancelled = timeout(Duration::from_secs(1), writer.flush(&store, within)).await;
        assert!(cancelled.is_err());
        assert_eq!(*writer.buffer().waiting.lock().unwrap(), [1, 2, 3]);
    }
}
