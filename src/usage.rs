//! Counts requests by day, key and reason.
//!
//! Every decision increments a count ([`Usage::count`]): that of the proven key, or that of [`NOBODY`] without one. The
//! counts are added to the table `tenantgate_usage` every half minute and when the server stops. `tenantgate report
//! usage` reads it. A crash loses what was counted since the last flush.
//!
//! Each of the first eight threads has a map of its own behind a lock of its own, on cache lines of its own. Only the
//! flush ever competes for that lock, for the time that it takes to swap an empty map in. The alternative, an atomic
//! counter in each entry of the replica, costs memory for every key, shares the cache line of a busy key between all
//! threads, and loses its count when the row of the key changes.
//!
//! A map has at most one slot for each key, reason and day since the last successful flush, and 64 bytes for each. A
//! check allocates only if its slot is new and the map is full; a new map has room for as many slots as the last one
//! held.
//!
//! Depends on: no message of Envoy.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use crate::batch_writer::{BatchWriter, Buffer, Schedule};
use crate::clock::Timestamp;
use crate::decision::{Decision, Grant};
use crate::key::KeyId;
use crate::stats::{STRIPES, stripe};
use crate::store::{Store, StoreError, Used};

/// The default interval, that of `last_used_at`.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// The key of requests without a proven key.
pub const NOBODY: KeyId = KeyId(Uuid::nil());

/// Counts requests and writes the counts. Cheap to clone.
pub type Usage = BatchWriter<Counts>;

/// The counts that are not written yet.
#[derive(Default)]
pub struct Counts {
    stripes: [Stripe; STRIPES],
    /// Counts that could not be written.
    late: Mutex<Vec<Used>>,
}

/// The counts of the threads of one stripe.
#[derive(Default)]
#[repr(align(128))]
struct Stripe(Mutex<UsageBuckets>);

type UsageBuckets = HashMap<UsageBucket, u64, BuildHasherDefault<OneNumber>>;

/// The requests that share one count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct UsageBucket {
    day: i64,
    key: Uuid,
    reason: &'static str,
}

impl Hash for UsageBucket {
    /// Writes one number. The first and last letters of any two reasons differ.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (high, low) = self.key.as_u64_pair();
        let reason = match self.reason.as_bytes() {
            [first, .., last] => u64::from(u16::from_le_bytes([*first, *last])),
            _ => 0,
        };
        state.write_u64(high.rotate_left(1) ^ low ^ self.day.cast_unsigned() ^ (reason << 32));
    }
}

/// The hasher of [`UsageBucket`]. Clients choose neither days nor reasons nor the ids of keys, so it need not resist
/// them, and takes a tenth of the instructions of the hasher of the standard library.
#[derive(Default)]
struct OneNumber(u64);

impl Hasher for OneNumber {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    /// Multiplies by the golden ratio and folds, so that both ends of the hash depend on all bits.
    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Usage {
    /// Creates an empty counter.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self::of(Counts::default(), schedule)
    }

    /// Counts requests that were decided elsewhere, the last of them at `at`; [`NOBODY`] without a proven key.
    pub fn add(&self, key: KeyId, reason: &'static str, requests: u64, at: Timestamp) {
        self.buffer().add(UsageBucket { day: at.day(), key: key.0, reason }, requests);
    }

    /// Counts a request that was decided at `now`.
    pub fn count(&self, decision: &Decision<'_>, now: Timestamp) {
        self.buffer().count(decision, now);
    }
}

impl Counts {
    fn count(&self, decision: &Decision<'_>, now: Timestamp) {
        let (reason, key) = reason_and_key(decision);
        self.add(UsageBucket { day: now.day(), key: key.unwrap_or(NOBODY).0, reason }, 1);
    }

    fn add(&self, slot: UsageBucket, requests: u64) {
        *self.stripes[stripe()].lock().entry(slot).or_insert(0) += requests;
    }

    fn late(&self) -> MutexGuard<'_, Vec<Used>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stripe {
    fn lock(&self) -> MutexGuard<'_, UsageBuckets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all counts, and holds the lock only while the maps are swapped.
    fn take(&self) -> UsageBuckets {
        let room = self.lock().len();
        let empty = UsageBuckets::with_capacity_and_hasher(room, BuildHasherDefault::default());
        std::mem::replace(&mut *self.lock(), empty)
    }
}

/// Returns the reason as metadata spells it, and the key if it was proven.
fn reason_and_key(decision: &Decision<'_>) -> (&'static str, Option<KeyId>) {
    let (reason, identity) = match decision {
        Decision::Allow(Grant::Shadow(objection)) => ("shadow", objection.identity()),
        Decision::Allow(grant) => return (grant.as_str(), grant.identity().map(|(key, _)| key.id)),
        Decision::Deny(denial) => (denial.reason.as_str(), denial.identity),
        Decision::Unable(_, identity) => ("unavailable", *identity),
    };
    (reason, identity.map(|identity| identity.key.id))
}

impl Buffer for Counts {
    type Row = Used;
    const NAME: &'static str = "usage";
    const BATCH: usize = 5_000;

    /// Takes one row for each day, key and reason, in an order that is the same on all servers, so that two servers
    /// cannot deadlock.
    fn take(&self) -> Vec<Used> {
        let mut rows = std::mem::take(&mut *self.late());
        for (UsageBucket { day, key, reason }, requests) in self.stripes.iter().flat_map(Stripe::take) {
            rows.push(Used { day, key: KeyId(key), reason, requests });
        }
        rows.sort_unstable();
        rows.dedup_by(|next, kept| {
            let same = (next.day, next.key, next.reason) == (kept.day, kept.key, kept.reason);
            kept.requests += if same { next.requests } else { 0 };
            same
        });
        rows
    }

    fn put_back(&self, rows: Vec<Used>) {
        self.late().extend(rows);
    }

    async fn write(&self, store: &dyn Store, batch: &[Used]) -> Result<Vec<Used>, StoreError> {
        store.add_usage(batch).await?;
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::MICROS_PER_DAY as DAY;
    use crate::decision::{Denial, Fault, Identity, Objection, Reason};
    use crate::record::KeyRecord;
    use crate::replica::sync::tests::Script;
    use crate::tenant::{Tenant, TenantId, TenantStatus};

    fn key() -> KeyRecord {
        KeyRecord::new(KeyId(Uuid::from_u128(7)), TenantId(Uuid::from_u128(2)), "llmk_a".into(), None)
    }

    fn deny(reason: Reason, identity: Option<Identity<'_>>) -> Decision<'_> {
        Decision::Deny(Denial { reason, identity, needs: None })
    }

    fn rows(counts: &Counts) -> Vec<(i64, u128, &'static str, u64)> {
        let row = |row: Used| (row.day, row.key.0.as_u128(), row.reason, row.requests);
        counts.take().into_iter().map(row).collect()
    }

    #[test]
    fn each_decision_is_counted_under_its_reason_and_the_proven_key() {
        let (counts, key) = (Counts::default(), key());
        let tenant = Tenant {
            id: key.tenant_id,
            name: "Acme".into(),
            schema: "tenant_acme".into(),
            status: TenantStatus::Active,
            mode: None,
            created_at: Timestamp(0),
            plan: None,
        };
        let proven = Some(Identity { key: &key, tenant: Some(&tenant) });
        let denial = Denial { reason: Reason::Scope, identity: proven, needs: None };
        for decision in [
            Decision::Allow(Grant::Tenant(&key, &tenant)),
            Decision::Allow(Grant::RuleShadow(&key, &tenant, denial)),
            Decision::Allow(Grant::Public),
            Decision::Allow(Grant::Anonymous),
            Decision::Allow(Grant::Shadow(Objection::Denied(denial))),
            Decision::Allow(Grant::Shadow(Objection::Unable(Fault::TooOld, None))),
            deny(Reason::Revoked, proven),
            deny(Reason::Mismatch, None),
            deny(Reason::Missing, None),
            Decision::Unable(Fault::DamagedRow, proven),
            Decision::Unable(Fault::TooOld, None),
        ] {
            counts.count(&decision, Timestamp(5));
        }
        let expected = [
            (0, 0, "anonymous", 1),
            (0, 0, "mismatch", 1),
            (0, 0, "missing", 1),
            (0, 0, "public", 1),
            (0, 0, "shadow", 1),
            (0, 0, "unavailable", 1),
            (0, 7, "ok", 2),
            (0, 7, "revoked", 1),
            (0, 7, "shadow", 1),
            (0, 7, "unavailable", 1),
        ];
        assert_eq!(rows(&counts), expected);
        assert_eq!(rows(&counts), [], "each is taken once");
    }

    #[test]
    fn a_new_day_begins_at_midnight_utc() {
        let counts = Counts::default();
        for at in [DAY - 1, DAY, 2 * DAY - 1, 2 * DAY, -1] {
            counts.count(&deny(Reason::Missing, None), Timestamp(at));
        }
        let expected =
            [(-1, 0, "missing", 1), (0, 0, "missing", 1), (1, 0, "missing", 2), (2, 0, "missing", 1)];
        assert_eq!(rows(&counts), expected);
    }

    #[test]
    fn requests_of_many_threads_are_counted_once_while_a_flush_takes_them() {
        let counts = Counts::default();
        let mut taken = 0;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1_000).for_each(|_| counts.count(&deny(Reason::Missing, None), Timestamp(0)));
                    })
                })
                .collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                taken += rows(&counts).iter().map(|row| row.3).sum::<u64>();
            }
        });
        let rest = rows(&counts);
        assert!(rest.len() <= 1);
        assert_eq!(taken + rest.iter().map(|row| row.3).sum::<u64>(), 20_000);
    }

    #[tokio::test]
    async fn counts_survive_a_failed_flush_and_are_not_doubled_by_the_next() {
        let (usage, script) = (Usage::new(Schedule::every(INTERVAL)), Arc::new(Script::default()));
        let missing = deny(Reason::Missing, None);
        usage.count(&missing, Timestamp(0));
        script.refuses_usage.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(usage.flush(script.as_ref(), INTERVAL).await, 1);
        usage.count(&missing, Timestamp(1));
        assert_eq!(usage.flush(script.as_ref(), INTERVAL).await, 1);
        script.refuses_usage.store(false, std::sync::atomic::Ordering::Relaxed);
        usage.count(&missing, Timestamp(2));
        assert_eq!(usage.flush(script.as_ref(), INTERVAL).await, 0);
        assert_eq!(usage.flush(script.as_ref(), INTERVAL).await, 0);
        let written = script.usage.lock().unwrap().clone();
        assert_eq!(written, [Used { day: 0, key: NOBODY, reason: "missing", requests: 3 }]);
        assert_eq!((usage.stats().written.value(), usage.stats().failed.value()), (1, 2));
    }
}
