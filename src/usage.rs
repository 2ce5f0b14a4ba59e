//! When was a key last used?
//!
//! Checks only make a note in memory ([`Usage::touch`]): the key's entry keeps
//! the instant, and the first use since the last writing puts the entry on a
//! list. The list is written down every half minute and when the program stops.
//! While the database is away it stays in memory; it can never be longer than
//! there are keys, and nothing a check does waits for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{interval, timeout};
use tracing::{debug, warn};

use crate::clock::Timestamp;
use crate::replica::Entry;
use crate::stats::Count;
use crate::store::Store;

/// How uses are written down.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often: a use is written down at most this late.
    pub interval: Duration,
    /// How long one batch may take before it is left for the next time.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), timeout: Duration::from_secs(5) }
    }
}

/// Keys per statement: few enough that their rows are locked for milliseconds.
const BATCH: usize = 1_000;

/// What writing uses down costs, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches written.
    pub written: Count,
    /// Batches that could not be written, and wait for the next time.
    pub failed: Count,
}

/// The uses not written down yet. Cheap to clone.
#[derive(Clone, Default)]
pub struct Usage(Arc<Shared>);

#[derive(Default)]
struct Shared {
    noted: Mutex<Vec<Arc<Entry>>>,
    stats: Stats,
}

impl Usage {
    /// Takes note that a key was used and the request allowed.
    pub fn touch(&self, entry: &Arc<Entry>, now: Timestamp) {
        if entry.note_use(now) {
            self.lock().push(Arc::clone(entry));
        }
    }

    /// What it costs.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Writes down what was noted every [`Options::interval`], for ever.
    pub async fn run(self, store: Arc<dyn Store>, options: Options) {
        let mut ticks = interval(options.interval);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.flush(store.as_ref(), options).await;
        }
    }

    /// Writes down what was noted. Returns how many keys could not be and are kept for the next time.
    pub async fn flush(&self, store: &dyn Store, options: Options) -> usize {
        let entries = std::mem::take(&mut *self.lock());
        let mut kept = 0;
        for batch in entries.chunks(BATCH) {
            kept += self.write(store, options, batch).await;
        }
        kept
    }

    /// Returns how many keys it could not write.
    async fn write(&self, store: &dyn Store, options: Options, batch: &[Arc<Entry>]) -> usize {
        let mut uses: Vec<_> = batch.iter().map(|entry| entry.take_use()).collect();
        uses.sort_unstable();
        // A key that changed meanwhile may be here as two entries; the database wants each row once.
        uses.reverse();
        uses.dedup_by_key(|(id, _)| *id);
        let error = match timeout(options.timeout, store.touch_keys(&uses)).await {
            Ok(Ok(())) => {
                self.0.stats.written.add_one();
                debug!(keys = uses.len(), "last_used_at written");
                return 0;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", options.timeout),
        };
        self.0.stats.failed.add_one();
        warn!(error, keys = uses.len(), "last_used_at could not be written, trying again later");
        for entry in batch {
            // Noted again, unless a check did so in the meantime.
            if entry.note_use(Timestamp::MIN) {
                self.lock().push(Arc::clone(entry));
            }
        }
        uses.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Entry>>> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
