//! Writes memos, which save bcrypt after a restart and on other replicas.
//!
//! With a pepper, the first check that proves a key creates a memo ([`MemoWriter::note`]). It is written beside the row
//! of the key a second later; every replica reads it from there. The first check of a key after the writing pepper was
//! replaced creates a new memo.
//!
//! A lost memo costs one bcrypt. While the database is unavailable, memos wait in memory, up to a bound; memos beyond
//! it are dropped.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::batch_writer::{BatchWriter, Buffer, Schedule};
use crate::key::PresentedKey;
use crate::record::KeyRecord;
use crate::store::{NewMemo, Store, StoreError};
use crate::verify::memo::Peppers;

/// The default interval.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The maximum number of memos in memory, 250 bytes each.
const BOUND: usize = 10_000;

/// Writes memos. Cheap to clone.
pub type MemoWriter = BatchWriter<Memos>;

/// Memos that are not written yet.
pub struct Memos {
    peppers: Peppers,
    waiting: Mutex<Vec<NewMemo>>,
}

impl MemoWriter {
    /// Creates a writer whose memos use the first of these peppers. Without peppers it creates no memos.
    #[must_use]
    pub fn new(peppers: Peppers, schedule: Schedule) -> Self {
        Self::of(Memos { peppers, waiting: Mutex::default() }, schedule)
    }

    /// Creates a memo of `presented`, which was proven against this row. It takes half a microsecond, so only the first
    /// check that can create one calls it ([`crate::replica::KeyEntry::take_memo_due`]).
    pub fn note(&self, record: &KeyRecord, presented: PresentedKey<'_>) {
        let memos = self.buffer();
        if let (Some(memo), Some(hash)) = (memos.peppers.memo(record, presented), record.hash) {
            memos.add([NewMemo { id: record.id, hash, memo }]);
        }
    }
}

impl Memos {
    fn add(&self, memos: impl IntoIterator<Item = NewMemo>) {
        let mut waiting = self.lock();
        let room = BOUND.saturating_sub(waiting.len());
        waiting.extend(memos.into_iter().take(room));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<NewMemo>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer for Memos {
    type Row = NewMemo;
    const NAME: &'static str = "memos";
    const BATCH: usize = 500;

    fn take(&self) -> Vec<NewMemo> {
        std::mem::take(&mut *self.lock())
    }

    fn put_back(&self, memos: Vec<NewMemo>) {
        self.add(memos);
    }

    async fn write(&self, store: &dyn Store, batch: &[NewMemo]) -> Result<Vec<NewMemo>, StoreError> {
        store.write_memos(batch).await?;
        Ok(Vec::new())
    }
}
