//! Who holds this prefix, and how true is that?
//!
//! Every key and tenant in memory. One task ([`sync`]) writes: it builds the next
//! [`Snapshot`] beside the one in use and swaps it in whole, so a reader sees
//! either all of a transaction or nothing of it, and never waits.
//!
//! A row that changes becomes a new [`Entry`]. It inherits the verdict of bcrypt
//! only if key, tenant and hash are what the verdict was on.
//!
//! This module knows nothing of SQL, Envoy or what a decision is made of.

pub mod announce;
pub mod prune;
pub mod sync;
mod table;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use self::table::{Keyed, Table};
use crate::clock::{Clock, Timestamp};
use crate::decision::Freshness;
use crate::key::KeyId;
use crate::record::KeyRecord;
use crate::stats::Count;
use crate::store::{Change, Row};
use crate::tenant::{Tenant, TenantId};
use crate::verify::{Provable, Proven};

/// Without a good look for this long the replica is stale. A healthy one looks every 50 ms.
pub const STALE_AFTER: Duration = Duration::from_secs(1);

/// A key as the replica has it.
#[derive(Debug)]
pub struct Entry {
    record: KeyRecord,
    proven: Proven,
    /// When it was last used, in microseconds; 0 for not since it came here.
    used_at: AtomicI64,
    /// Whether somebody already promised to write that down.
    use_noted: AtomicBool,
}

impl Entry {
    /// A row that nobody has proven a key against.
    #[must_use]
    pub fn new(record: KeyRecord) -> Self {
        Self { record, proven: Proven::new(), used_at: AtomicI64::new(0), use_noted: AtomicBool::new(false) }
    }

    /// The row.
    #[must_use]
    pub fn record(&self) -> &KeyRecord {
        &self.record
    }

    /// Takes note of a use. Returns whether the caller is the one who must see to it that it is written down:
    /// the first since [`Entry::forget_note`].
    #[must_use]
    pub fn note_use(&self, now: Timestamp) -> bool {
        // A busy key is written once a second, not once a request.
        if now.0 > self.used_at.load(Relaxed).saturating_add(1_000_000) {
            self.used_at.fetch_max(now.0, Relaxed);
        }
        !self.use_noted.load(Relaxed) && !self.use_noted.swap(true, Relaxed)
    }

    /// From now on the next use is somebody else's to write down.
    pub fn forget_note(&self) {
        self.use_noted.store(false, Relaxed);
    }

    /// The last use.
    #[must_use]
    pub fn last_use(&self) -> (KeyId, Timestamp) {
        (self.record.id, Timestamp(self.used_at.load(Relaxed)))
    }

    /// Takes over the verdict on `before`, if it is on the same key, tenant and hash. Returns whether it is.
    pub fn inherit(&self, before: &Self) -> bool {
        let (old, new) = (&before.record, &self.record);
        let same = (old.id, old.tenant_id, old.hash) == (new.id, new.tenant_id, new.hash);
        if let Some(seal) = before.proven.get().filter(|_| same) {
            let _ = self.proven.set(*seal);
        }
        same
    }
}

impl Provable for Entry {
    fn record(&self) -> &KeyRecord {
        &self.record
    }

    fn proven(&self) -> &Proven {
        &self.proven
    }
}

impl Keyed for Entry {
    fn key(&self) -> &[u8] {
        self.record.prefix.as_bytes()
    }
}

impl Keyed for Tenant {
    fn key(&self) -> &[u8] {
        self.id.0.as_bytes()
    }
}

/// All keys and tenants as of one instant of the database.
#[derive(Clone, Debug)]
pub struct Snapshot {
    keys: Table<Entry>,
    tenants: Table<Tenant>,
    /// Rows that can serve no request.
    pub damaged: usize,
    /// Counts the snapshots of this process; 0 is the empty one before the first load.
    pub generation: u64,
}

impl Snapshot {
    /// The key under a prefix.
    #[must_use]
    pub fn key(&self, prefix: &str) -> Option<&Arc<Entry>> {
        self.keys.get(prefix.as_bytes())
    }

    /// A tenant.
    #[must_use]
    pub fn tenant(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.get(id.0.as_bytes()).map(AsRef::as_ref)
    }

    /// How many keys there are.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// How many tenants there are.
    #[must_use]
    pub fn tenant_count(&self) -> usize {
        self.tenants.len()
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.keys.iter()
    }

    fn empty() -> Self {
        Self { keys: Table::new(Vec::new()), tenants: Table::new(Vec::new()), damaged: 0, generation: 0 }
    }

    /// The snapshot of a whole look; rows that were here before keep what was proven about them.
    fn loaded(&self, rows: Rows) -> Self {
        let damaged = rows.0.iter().filter(|row| row.is_damaged()).count();
        let (mut keys, mut tenants) = (Vec::new(), Vec::new());
        for row in rows.0 {
            match row {
                Row::Key(record) => keys.push(self.heir(record)),
                Row::Tenant(tenant) => tenants.push(Arc::new(tenant)),
            }
        }
        let (keys, tenants) = (Table::new(keys), Table::new(tenants));
        Self { keys, tenants, damaged, generation: self.generation + 1 }
    }

    /// The entry of a row; it inherits what was proven about the one before it.
    fn heir(&self, record: KeyRecord) -> Arc<Entry> {
        let entry = Entry::new(record);
        if let Some(before) = self.keys.get(entry.key()) {
            entry.inherit(before);
        }
        Arc::new(entry)
    }

    /// The snapshot after these changes.
    fn changed(&self, changes: Vec<Change>) -> Self {
        let mut next = Self { generation: self.generation + 1, ..self.clone() };
        for change in changes {
            next.apply(change);
        }
        if next.keys.outgrown() {
            next.keys = Table::new(next.keys.iter().cloned().collect());
        }
        if next.tenants.outgrown() {
            next.tenants = Table::new(next.tenants.iter().cloned().collect());
        }
        next
    }

    fn apply(&mut self, change: Change) {
        self.damaged -= usize::from(self.damaged_before(&change));
        self.damaged += usize::from(change.row().is_some_and(Row::is_damaged));
        match change {
            Change::Now(Row::Key(record)) => self.keys.put(self.heir(record)),
            Change::Now(Row::Tenant(tenant)) => self.tenants.put(Arc::new(tenant)),
            Change::NoKey(prefix) => self.keys.remove(prefix.as_bytes()),
            Change::NoTenant(id) => self.tenants.remove(id.0.as_bytes()),
        }
    }

    /// Whether the row that a change is about was damaged until now.
    fn damaged_before(&self, change: &Change) -> bool {
        let key = |prefix: &str| self.key(prefix).is_some_and(|entry| entry.record.is_damaged());
        let tenant = |id| self.tenant(id).is_some_and(|tenant| !tenant.is_sound());
        match change {
            Change::Now(Row::Key(record)) => key(&record.prefix),
            Change::NoKey(prefix) => key(prefix),
            Change::Now(Row::Tenant(next)) => tenant(next.id),
            Change::NoTenant(id) => tenant(*id),
        }
    }
}

/// The rows of a whole look.
#[derive(Debug, Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn has_keys(&self) -> bool {
        self.0.iter().any(|row| matches!(row, Row::Key(_)))
    }
}

/// What keeping the replica true costs, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Looks at everything.
    pub loads: Count,
    /// Looks at what changed.
    pub polls: Count,
    /// Rows that changed.
    pub changed_rows: Count,
    /// Sessions that were lost.
    pub lost: Count,
    /// Times that the database came back without a change it had had.
    pub went_back: Count,
}

/// The replica: cheap to clone, read by all, written by [`sync`] alone.
#[derive(Clone)]
pub struct Replica(Arc<Shared>);

struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// Uptime in milliseconds when the last good look was asked for; `u64::MAX`: never.
    looked_at: AtomicU64,
    /// The database's clock less the uptime, in microseconds; `i64::MIN`: unknown.
    database_clock: AtomicI64,
    connected: AtomicBool,
    position: Mutex<String>,
    generation: watch::Sender<u64>,
    marks: watch::Sender<u64>,
    stats: Stats,
}

impl Default for Replica {
    fn default() -> Self {
        Self(Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            looked_at: AtomicU64::new(u64::MAX),
            database_clock: AtomicI64::new(i64::MIN),
            connected: AtomicBool::new(false),
            position: Mutex::default(),
            generation: watch::Sender::new(0),
            marks: watch::Sender::new(0),
            stats: Stats::default(),
        }))
    }
}

impl Replica {
    /// The snapshot in use. Do not hold it across an await.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.0.snapshot.load()
    }

    /// Tells of every new generation, for who waits for one.
    #[must_use]
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// How old the snapshot is: the time since its last good look was asked for. Nothing before the first load.
    #[must_use]
    pub fn age(&self, clock: &dyn Clock) -> Option<Duration> {
        match self.0.looked_at.load(Relaxed) {
            u64::MAX => None,
            millis => Some(clock.uptime().saturating_sub(Duration::from_millis(millis))),
        }
    }

    /// How true the snapshot is.
    #[must_use]
    pub fn freshness(&self, clock: &dyn Clock, max_staleness: Duration) -> Freshness {
        match self.age(clock) {
            None => Freshness::NeverLoaded,
            Some(age) if age <= STALE_AFTER.min(max_staleness) => Freshness::Fresh,
            Some(age) if age <= max_staleness => Freshness::Stale,
            Some(_) => Freshness::TooOld,
        }
    }

    /// The latest that the wall clock here or the clock of the database says it is: a clock set back revives
    /// no expired key.
    #[must_use]
    pub fn now(&self, clock: &dyn Clock) -> Timestamp {
        match self.0.database_clock.load(Relaxed) {
            i64::MIN => clock.now(),
            ahead => clock.now().max(Timestamp(ahead).after(clock.uptime())),
        }
    }

    /// Whether the database answered the last time it was asked.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.0.connected.load(Relaxed)
    }

    /// What keeping it true costs.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// How far the snapshot is, in words of the database's own. Empty before the first load.
    #[must_use]
    pub fn position(&self) -> String {
        self.0.position.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a snapshot into use.
    fn publish(&self, next: Snapshot, position: &str) {
        self.0.snapshot.store(Arc::new(next));
        self.set_position(position);
    }

    /// Tells of every mark, and of every look at everything, which may have passed over some.
    #[must_use]
    pub fn marks(&self) -> watch::Receiver<u64> {
        self.0.marks.subscribe()
    }

    fn tell_of_mark(&self) {
        self.0.marks.send_modify(|marks| *marks += 1);
    }

    /// Wakes who waits for a generation, once everything about it is in place.
    fn tell(&self) {
        let generation = self.snapshot().generation;
        self.0.generation.send_if_modified(|told| std::mem::replace(told, generation) != generation);
    }

    /// The snapshot in use is as good as one of this position.
    fn set_position(&self, position: &str) {
        position.clone_into(&mut self.0.position.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A good look was asked for at uptime `asked` and has been taken account of.
    fn looked(&self, asked: Duration, database_now: Option<Timestamp>) {
        if let Some(now) = database_now {
            self.0.database_clock.store(now.before(asked).0, Relaxed);
        }
        self.0.looked_at.store(u64::try_from(asked.as_millis()).unwrap_or(u64::MAX - 1), Relaxed);
    }

    fn set_connected(&self, connected: bool) {
        self.0.connected.store(connected, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::ManualClock;
    use crate::record::SecretHash;
    use crate::verify::memo::Sealer;

    const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

    fn record(prefix: &str) -> KeyRecord {
        KeyRecord {
            id: KeyId(Uuid::from_u128(1)),
            tenant_id: TenantId(Uuid::from_u128(2)),
            prefix: prefix.into(),
            hash: SecretHash::parse(HASH),
            expires_at: None,
            revoked: false,
        }
    }

    fn proven_after(change: impl FnOnce(&mut KeyRecord)) -> bool {
        let rows = Rows(vec![Row::Key(record("llmk_a"))]);
        let before = Snapshot::empty().loaded(rows);
        let seal = Sealer::random().unwrap().seal(&record("llmk_a"), &SecretHash::parse(HASH).unwrap(), b"x");
        before.key("llmk_a").unwrap().proven().set(seal).unwrap();
        let mut next = record("llmk_a");
        change(&mut next);
        let after = before.changed(vec![Change::Now(Row::Key(next))]);
        after.key("llmk_a").unwrap().proven().get().is_some()
    }

    #[test]
    fn a_verdict_survives_a_change_of_state_and_no_change_of_key_tenant_or_hash() {
        assert!(proven_after(|_| ()));
        assert!(proven_after(|r| r.revoked = true));
        assert!(proven_after(|r| r.expires_at = Some(Timestamp(5))));
        assert!(!proven_after(|r| r.id = KeyId(Uuid::from_u128(9))));
        assert!(!proven_after(|r| r.tenant_id = TenantId(Uuid::from_u128(9))));
        assert!(!proven_after(|r| r.hash = SecretHash::parse(&HASH.replace("$12$", "$10$"))));
        assert!(!proven_after(|r| r.hash = None));
    }

    #[test]
    fn freshness_follows_the_age_of_the_last_good_look() {
        let (replica, clock) = (Replica::default(), ManualClock::default());
        let bound = Duration::from_mins(5);
        assert_eq!(replica.freshness(&clock, bound), Freshness::NeverLoaded);
        replica.looked(clock.uptime(), None);
        for (advance_ms, expected) in [
            (0, Freshness::Fresh),
            (1_000, Freshness::Fresh),
            (1, Freshness::Stale),
            (298_999, Freshness::Stale),
            (1, Freshness::TooOld),
        ] {
            clock.advance(Duration::from_millis(advance_ms));
            assert_eq!(replica.freshness(&clock, bound), expected, "{:?}", clock.uptime());
        }
        replica.looked(clock.uptime(), None);
        assert_eq!(replica.freshness(&clock, bound), Freshness::Fresh);
    }

    #[test]
    fn a_wall_clock_set_back_does_not_set_back_the_time_of_judgement() {
        let (replica, clock) = (Replica::default(), ManualClock::at(Timestamp(1_000)));
        assert_eq!(replica.now(&clock), Timestamp(1_000));
        replica.looked(clock.uptime(), Some(Timestamp(5_000)));
        clock.advance(Duration::from_micros(10));
        assert_eq!(replica.now(&clock), Timestamp(5_010));
        clock.set_wall(Timestamp(9_000));
        assert_eq!(replica.now(&clock), Timestamp(9_000));
        clock.set_wall(Timestamp(0));
        assert_eq!(replica.now(&clock), Timestamp(5_010));
    }

    #[test]
    fn the_first_use_since_the_last_writing_is_for_the_caller_to_see_to() {
        let entry = Entry::new(record("llmk_a"));
        assert!(entry.note_use(Timestamp(10_000_000)));
        assert!(!entry.note_use(Timestamp(12_000_000)));
        assert_eq!(entry.last_use().1, Timestamp(12_000_000));
        entry.forget_note();
        assert!(entry.note_use(Timestamp(11_000_000)));
        assert_eq!(entry.last_use().1, Timestamp(12_000_000));
    }
}
