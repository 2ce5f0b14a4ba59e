//! Which proofs outlive this process?
//!
//! Where there is a pepper, a check that saw a key proven leaves a memo of it
//! ([`Memos::note`]); the memos are put beside their rows a second later, from where
//! every replica learns of them, and after a restart nobody asks bcrypt. The first
//! check of a key after a pepper was replaced does the same.
//!
//! Losing a memo costs one bcrypt, so nothing is done to keep one at all costs: while
//! the database is away they wait in memory, and beyond a bound they are let go.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::interval;

use crate::key::PresentedKey;
use crate::record::KeyRecord;
use crate::store::{NewMemo, Store};
use crate::verify::memo::Peppers;
use crate::writing::Writing;

/// How memos are written down.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often.
    pub interval: Duration,
    /// How long one batch may take before it is left for the next time.
    pub timeout: Duration,
    /// How many may wait, 250 bytes each.
    pub bound: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), timeout: Duration::from_secs(5), bound: 10_000 }
    }
}

/// Rows per statement: few enough that they are locked for milliseconds.
const BATCH: usize = 500;

/// The memos not written down yet. Cheap to clone.
#[derive(Clone)]
pub struct Memos(Arc<Shared>);

struct Shared {
    peppers: Peppers,
    options: Options,
    waiting: Mutex<Vec<NewMemo>>,
    writing: Writing,
}

impl Memos {
    /// Memos by the first of these peppers.
    #[must_use]
    pub fn new(peppers: Peppers, options: Options) -> Self {
        let writing = Writing::of("memos");
        Self(Arc::new(Shared { peppers, options, waiting: Mutex::default(), writing }))
    }

    /// Takes note that `presented` was proven against this row. Half a microsecond, so it is for the first check
    /// that sees it ([`crate::replica::Entry::take_memo_due`]).
    pub fn note(&self, record: &KeyRecord, presented: PresentedKey<'_>) {
        if let (Some(memo), Some(hash)) = (self.0.peppers.memo(record, presented), record.hash) {
            let mut waiting = self.lock();
            if waiting.len() < self.0.options.bound {
                waiting.push(NewMemo { id: record.id, hash, memo });
            }
        }
    }

    /// What came of writing them.
    #[must_use]
    pub fn writing(&self) -> &Writing {
        &self.0.writing
    }

    /// Writes down what was noted every [`Options::interval`], for ever.
    pub async fn run(self, store: Arc<dyn Store>) {
        let mut ticks = interval(self.0.options.interval);
        loop {
            ticks.tick().await;
            self.flush(store.as_ref()).await;
        }
    }

    /// Writes down what was noted. What cannot be is kept for the next time.
    ///
    /// # Cancel safety
    ///
    /// What is being written when it is dropped may not be: one bcrypt more.
    pub async fn flush(&self, store: &dyn Store) {
        loop {
            let batch: Vec<_> = {
                let mut waiting = self.lock();
                let from = waiting.len().saturating_sub(BATCH);
                waiting.drain(from..).collect()
            };
            if batch.is_empty() || !self.write(store, &batch).await {
                return;
            }
        }
    }

    async fn write(&self, store: &dyn Store, batch: &[NewMemo]) -> bool {
        let write = store.write_memos(batch);
        let written = self.0.writing.attempt(batch.len(), self.0.options.timeout, write).await.is_some();
        if !written {
            self.lock().extend_from_slice(batch);
        }
        written
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<NewMemo>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
