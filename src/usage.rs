//! When was a key last used?
//!
//! Checks only make a note in memory ([`Usage::touch`]): the key's entry keeps
//! the instant, and the first use since the last writing puts the entry on a
//! list. The list is written down every half minute and when the program stops.
//! While the database is away it stays in memory; it can never be longer than
//! there are keys, and nothing a check does waits for it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::interval;
use tracing::info;

use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::replica::Entry;
use crate::store::Store;
use crate::writing::Writing;

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

/// The uses not written down yet. Cheap to clone.
#[derive(Clone)]
pub struct Usage(Arc<Shared>);

struct Shared {
    noted: Mutex<Vec<Arc<Entry>>>,
    writing: Writing,
}

impl Default for Usage {
    fn default() -> Self {
        Self(Arc::new(Shared { noted: Mutex::default(), writing: Writing::of("last_used_at") }))
    }
}

impl Usage {
    /// Takes note that a key was used and the request allowed.
    pub fn touch(&self, entry: &Arc<Entry>, now: Timestamp) {
        if entry.note_use(now) {
            self.lock().push(Arc::clone(entry));
        }
    }

    /// What came of writing them.
    #[must_use]
    pub fn writing(&self) -> &Writing {
        &self.0.writing
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
    ///
    /// # Cancel safety
    ///
    /// What is not written yet is noted again.
    pub async fn flush(&self, store: &dyn Store, options: Options) -> usize {
        let mut unwritten = Unwritten { entries: std::mem::take(&mut *self.lock()), usage: self };
        for entry in &unwritten.entries {
            entry.forget_note();
        }
        while !unwritten.entries.is_empty() {
            let from = unwritten.entries.len().saturating_sub(BATCH);
            if !self.write(store, options, &unwritten.entries[from..]).await {
                break;
            }
            unwritten.entries.truncate(from);
        }
        unwritten.entries.iter().map(|entry| entry.record().id).collect::<HashSet<_>>().len()
    }

    async fn write(&self, store: &dyn Store, options: Options, batch: &[Arc<Entry>]) -> bool {
        let mut uses: Vec<_> = batch.iter().map(|entry| entry.last_use()).collect();
        uses.sort_unstable();
        // A key that changed meanwhile may be here as two entries; the database wants each row once.
        uses.reverse();
        uses.dedup_by_key(|(id, _)| *id);
        let write = store.touch_keys(&uses);
        let Some(first) = self.0.writing.attempt(uses.len(), options.timeout, write).await else {
            return false;
        };
        tell_first_uses(batch, &first);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Entry>>> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line for each key that nobody had ever used, for those who watch out for that: once, whichever server it
/// was used on.
fn tell_first_uses(batch: &[Arc<Entry>], first: &[KeyId]) {
    let first: HashSet<_> = first.iter().collect();
    let mut told = HashSet::new();
    for record in batch.iter().map(|entry| entry.record()) {
        if first.contains(&record.id) && told.insert(record.id) {
            let (key, tenant) = (record.id.0, record.tenant_id.0);
            info!(
                target: "tenantgate::audit",
                { key.id = %key, key.prefix = %record.prefix, tenant.id = %tenant },
                "first use"
            );
        }
    }
}

/// Entries that are being written down; those that are left when it is dropped are noted again.
struct Unwritten<'a> {
    entries: Vec<Arc<Entry>>,
    usage: &'a Usage,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        for entry in self.entries.drain(..) {
            // A check that used it in the meantime has put it on the list itself.
            if entry.note_use(Timestamp::MIN) {
                self.usage.lock().push(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::record::{ExpiresAt, KeyRecord};
    use crate::tenant::TenantId;

    fn entry() -> Arc<Entry> {
        let (id, tenant_id) = (KeyId(Uuid::new_v4()), TenantId(Uuid::nil()));
        let prefix = "llmk_demo".into();
        Arc::new(Entry::new(KeyRecord {
            id,
            tenant_id,
            prefix,
            hash: None,
            expires_at: ExpiresAt::NEVER,
            revoked: false,
            not_before: Timestamp::MIN,
            disabled: false,
        }))
    }

    #[test]
    fn what_is_not_written_is_noted_again_and_only_once() {
        let (usage, tried, untried) = (Usage::default(), entry(), entry());
        usage.touch(&tried, Timestamp(5_000_000));
        usage.touch(&untried, Timestamp(5_000_000));
        for outage in 1..=5_i64 {
            let entries = std::mem::take(&mut *usage.lock());
            for entry in &entries {
                entry.forget_note();
            }
            // A check uses one of them while the database is being asked.
            usage.touch(&tried, Timestamp(5_000_000 + outage * 2_000_000));
            drop(Unwritten { entries, usage: &usage });
            assert_eq!(usage.lock().len(), 2, "a database that is away makes the list no longer");
        }
        assert_eq!(tried.last_use().1, Timestamp(15_000_000));
    }
}
