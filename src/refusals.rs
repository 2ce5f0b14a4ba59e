//! Records rejections by decision id, for the page of `manage`.
//!
//! A rejected client gets a decision id and no reason. [`Refusals::note`] records the reason, the time and the proven
//! key; rows are written every few seconds. The number a minute is limited per key, and separately for unproven
//! requests, so that a client that is rejected in a loop, or an attacker, cannot displace the rejections of others.
//! Allowed requests cost nothing here.
//!
//! Depends on: the store and `batch_writer`; no message of Envoy.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use crate::batch_writer::{BatchWriter, Buffer, Schedule};
use crate::clock::Timestamp;
use crate::decision::Decision;
use crate::key::KeyId;
use crate::store::{Refusal, Store, StoreError};

/// The default interval of writes. Short, because operators look up a rejection soon after it happened.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// The maximum number of recorded rejections a minute of one key.
const OF_ONE_KEY: u32 = 10;

/// The maximum number of recorded rejections a minute of all proven keys. With [`UNPROVEN`], at most some 30 MB of rows
/// a day.
const PROVEN: u32 = 240;

/// The maximum number of recorded rejections a minute without a proven key, which any client can cause.
const UNPROVEN: u32 = 60;

/// The maximum number of rows that wait while the database is unavailable: half an hour of them.
const WAITING: usize = 9_000;

const MINUTE: i64 = 60_000_000;

/// Collects and writes refusals. Cheap to clone.
pub type Refusals = BatchWriter<Entries>;

/// The rejections that are not written yet, and how many were recorded in the current minute.
#[derive(Default)]
pub struct Entries(Mutex<Recorded>);

#[derive(Default)]
struct Recorded {
    minute: i64,
    proven: u32,
    unproven: u32,
    by_key: HashMap<KeyId, u32>,
    waiting: Vec<Refusal>,
}

impl Refusals {
    /// Creates an empty recorder.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self::of(Entries::default(), schedule)
    }

    /// Records a decision if it is a rejection.
    pub fn note(&self, decision: &Decision<'_>, decision_id: Uuid, at: Timestamp) {
        let (reason, identity) = match decision {
            Decision::Allow(_) => return,
            Decision::Deny(denial) => (denial.reason.as_str(), denial.identity),
            Decision::Unable(fault, identity) => (fault.as_str(), *identity),
        };
        let key = identity.map_or(KeyId(Uuid::nil()), |identity| identity.key.id);
        self.buffer().note(Refusal { decision_id, at, reason, key });
    }
}

impl Entries {
    fn note(&self, refusal: Refusal) {
        let mut recorded = self.lock();
        recorded.turn(refusal.at);
        if recorded.waiting.len() < WAITING && recorded.has_room(refusal.key) {
            recorded.waiting.push(refusal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorded {
    /// Resets the counts when a new minute begins.
    fn turn(&mut self, now: Timestamp) {
        let minute = now.0.div_euclid(MINUTE);
        if self.minute != minute {
            let waiting = std::mem::take(&mut self.waiting);
            *self = Self { minute, waiting, ..Self::default() };
        }
    }

    /// Counts a rejection. Returns whether it is recorded.
    fn has_room(&mut self, key: KeyId) -> bool {
        if key.0.is_nil() {
            self.unproven = self.unproven.saturating_add(1);
            return self.unproven <= UNPROVEN;
        }
        if self.proven >= PROVEN {
            return false;
        }
        let of_key = self.by_key.entry(key).or_default();
        *of_key = of_key.saturating_add(1);
        let room = *of_key <= OF_ONE_KEY;
        self.proven += u32::from(room);
        room
    }
}

impl Buffer for Entries {
    type Row = Refusal;
    const NAME: &'static str = "refusals";
    const BATCH: usize = 500;

    fn take(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.lock().waiting)
    }

    fn put_back(&self, rows: Vec<Refusal>) {
        let mut recorded = self.lock();
        let room = WAITING.saturating_sub(recorded.waiting.len());
        recorded.waiting.extend(rows.into_iter().take(room));
    }

    async fn write(&self, store: &dyn Store, batch: &[Refusal]) -> Result<Vec<Refusal>, StoreError> {
        store.write_refusals(batch).await?;
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(entries: &Entries, key: u128, at: i64, times: usize) {
        for _ in 0..times {
            let (decision_id, key) = (Uuid::from_u128(7), KeyId(Uuid::from_u128(key)));
            entries.note(Refusal { decision_id, at: Timestamp(at), reason: "revoked", key });
        }
    }

    #[test]
    fn one_key_and_requests_without_one_displace_no_other_key() {
        let entries = Entries::default();
        note(&entries, 0, 1, 1_000);
        note(&entries, 1, 2, 1_000);
        note(&entries, 2, 3, 1);
        let of = |rows: &[Refusal], key: u128| rows.iter().filter(|row| row.key.0.as_u128() == key).count();
        let rows = entries.take();
        assert_eq!((of(&rows, 0), of(&rows, 1), of(&rows, 2)), (60, 10, 1));
        note(&entries, 1, MINUTE - 1, 1);
        assert!(entries.take().is_empty(), "the same minute");
        note(&entries, 1, MINUTE, 1);
        assert_eq!(entries.take().len(), 1, "the next one");
    }

    #[test]
    fn memory_is_bounded_by_minute_and_while_the_database_is_away() {
        let entries = Entries::default();
        for key in 1..1_000 {
            note(&entries, key, 1, 1);
        }
        let rows = entries.take();
        assert_eq!(rows.len(), 240);
        assert!(entries.lock().by_key.len() <= 240);
        for _ in 0..100 {
            entries.put_back(rows.clone());
        }
        assert_eq!(entries.take().len(), WAITING);
    }
}
