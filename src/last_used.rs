//! Writes when a key was last used.
//!
//! A check only updates memory ([`LastUsed::touch`]): the entry of the key stores the instant, and the first use since
//! the last flush adds the entry to a list. The list is written every half minute and when the server stops. While the
//! database is unavailable the list stays in memory; it is never longer than the number of keys. No check waits for it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::info;

use crate::batch_writer::{BatchWriter, Buffer, Schedule};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::replica::KeyEntry;
use crate::store::{Store, StoreError};

/// The default interval: a use is written at most this much later.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// Writes uses of keys. Cheap to clone.
pub type LastUsed = BatchWriter<Uses>;

/// The keys whose last use is not written yet.
#[derive(Default)]
pub struct Uses(Mutex<Vec<Arc<KeyEntry>>>);

impl LastUsed {
    /// Creates a writer without uses.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self::of(Uses::default(), schedule)
    }

    /// Records that a key was used for a request that was allowed.
    pub fn touch(&self, entry: &Arc<KeyEntry>, now: Timestamp) {
        self.buffer().touch(entry, now);
    }
}

impl Uses {
    fn touch(&self, entry: &Arc<KeyEntry>, now: Timestamp) {
        if entry.record_use(now) {
            self.lock().push(Arc::clone(entry));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<KeyEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer for Uses {
    type Row = Arc<KeyEntry>;
    const NAME: &'static str = "last_used_at";
    const BATCH: usize = 1_000;

    fn take(&self) -> Vec<Arc<KeyEntry>> {
        let entries = std::mem::take(&mut *self.lock());
        for entry in &entries {
            entry.dequeue_use();
        }
        entries
    }

    fn put_back(&self, entries: Vec<Arc<KeyEntry>>) {
        for entry in &entries {
            // Does nothing if a check used the key meanwhile and has added it to the list.
            self.touch(entry, Timestamp::MIN);
        }
    }

    async fn write(
        &self,
        store: &dyn Store,
        batch: &[Arc<KeyEntry>],
    ) -> Result<Vec<Arc<KeyEntry>>, StoreError> {
        let mut uses: Vec<_> = batch.iter().map(|entry| entry.last_use()).collect();
        uses.sort_unstable();
        // A key that changed meanwhile may have two entries; the database needs each row once, with the later use.
        uses.reverse();
        uses.dedup_by_key(|(id, _)| *id);
        let touched = store.touch_keys(&uses).await?;
        log_first_uses(batch, &touched.first);
        let locked: HashSet<_> = touched.locked.iter().collect();
        Ok(batch.iter().filter(|entry| locked.contains(&entry.record().id)).map(Arc::clone).collect())
    }
}

/// Logs the first use of each key. Of all servers, only one logs it.
fn log_first_uses(batch: &[Arc<KeyEntry>], first: &[KeyId]) {
    let first: HashSet<_> = first.iter().collect();
    let mut logged = HashSet::new();
    for record in batch.iter().map(|entry| entry.record()) {
        if first.contains(&record.id) && logged.insert(record.id) {
            let (key, tenant) = (record.id.0, record.tenant_id.0);
            info!(
                target: "tenantgate::audit",
                { key.id = %key, key.prefix = %record.prefix, tenant.id = %tenant },
                "first use"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::record::KeyRecord;
    use crate::tenant::TenantId;

    fn entry() -> Arc<KeyEntry> {
        let (id, tenant_id) = (KeyId(Uuid::new_v4()), TenantId(Uuid::nil()));
        let prefix = "llmk_demo".into();
        Arc::new(KeyEntry::new(KeyRecord::new(id, tenant_id, prefix, None)))
    }

    #[test]
    fn uses_that_were_not_written_are_kept_once_with_the_latest_instant() {
        let (uses, tried, untried) = (Uses::default(), entry(), entry());
        uses.touch(&tried, Timestamp(5_000_000));
        uses.touch(&untried, Timestamp(5_000_000));
        for outage in 1..=5_i64 {
            let entries = uses.take();
            // A check uses one of them during the attempt to write.
            uses.touch(&tried, Timestamp(5_000_000 + outage * 2_000_000));
            uses.put_back(entries);
            assert_eq!(uses.lock().len(), 2, "the list does not grow during an outage");
        }
        assert_eq!(tried.last_use().1, Timestamp(15_000_000));
    }
}
