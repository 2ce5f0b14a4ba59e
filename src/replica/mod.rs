//! The replica: all keys and tenants in memory, and how fresh they are.
//!
//! One task ([`sync`]) writes: it builds the next [`Snapshot`] beside the one in use and swaps it in whole, so a reader
//! sees either all of a transaction or nothing of it, and never waits.
//!
//! A row that changes becomes a new [`Entry`]. It inherits the verdict of bcrypt
//! only if key, tenant and hash are what the verdict was on.
//!
//! This module knows nothing of SQL, Envoy or what a decision is made of.

mod entry;
pub mod heartbeat;
mod profiles;
pub mod prune;
mod snapshot;
pub mod snapshot_file;
pub mod sync;
mod table;

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

pub use self::entry::Entry;
pub use self::profiles::Interned;
pub use self::snapshot::{Difference, PlanEntry, ResponseCache, Snapshot, TenantEntry};
use crate::clock::{Clock, Timestamp};
use crate::decision::Freshness;
use crate::stats::Counter;
use crate::store::Look;
use crate::verify::memo::Peppers;

/// Without a good look for this long the replica is stale. A healthy one looks every 50 ms.
pub const STALE_AFTER: Duration = Duration::from_secs(1);

/// What keeping the replica true costs, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Looks at everything.
    pub loads: Counter,
    /// Looks at what changed.
    pub polls: Counter,
    /// Rows that changed.
    pub changed_rows: Counter,
    /// Looks that ended in a panic.
    pub panics: Counter,
    /// Sessions that were lost.
    pub lost: Counter,
    /// Times that the same database was found in another place.
    pub moved: Counter,
    /// Times that the database came back without a change it had had.
    pub went_back: Counter,
    /// Snapshots written to the file.
    pub kept: Counter,
    /// Snapshots that could not be.
    pub not_kept: Counter,
}

/// The replica: cheap to clone, read by all, written by [`sync`] alone.
#[derive(Clone)]
pub struct Replica(Arc<Shared>);

struct Shared {
    peppers: Peppers,
    snapshot: ArcSwap<Snapshot>,
    /// Uptime in milliseconds when the last good look was asked for, negative for one from before the machine
    /// started; `i64::MIN`: never.
    looked_at: AtomicI64,
    /// The database's clock less the uptime, in microseconds; `i64::MIN`: unknown.
    database_clock: AtomicI64,
    /// How far the wall clock here is from the database's, in microseconds.
    clock_skew: AtomicI64,
    connected: AtomicBool,
    /// What was said of the last good look.
    look: Mutex<Look>,
    generation: watch::Sender<u64>,
    marks: watch::Sender<u64>,
    stats: Stats,
}

impl Default for Replica {
    fn default() -> Self {
        Self::new(Peppers::default())
    }
}

impl Replica {
    /// An empty replica that understands the memos of these peppers.
    #[must_use]
    pub fn new(peppers: Peppers) -> Self {
        Self(Arc::new(Shared {
            peppers,
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            looked_at: AtomicI64::new(i64::MIN),
            database_clock: AtomicI64::new(i64::MIN),
            clock_skew: AtomicI64::new(0),
            connected: AtomicBool::new(false),
            look: Mutex::default(),
            generation: watch::Sender::new(0),
            marks: watch::Sender::new(0),
            stats: Stats::default(),
        }))
    }

    /// The peppers whose memos it understands.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.0.peppers
    }

    /// The snapshot in use. Do not hold it across an await.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.0.snapshot.load()
    }

    /// How true the snapshot is, and the snapshot, in this order: one that is swapped in between is newer than
    /// was said of it, and never older. Do not hold it across an await.
    #[must_use]
    pub fn view(&self, clock: &dyn Clock, max_staleness: Duration) -> (Freshness, Guard<Arc<Snapshot>>) {
        (self.freshness(clock, max_staleness), self.snapshot())
    }

    /// The uptime of the last good look in milliseconds, the database's clock less the uptime in microseconds, and the
    /// snapshot, which is at least as new as these. `None` before the first load.
    #[must_use]
    pub fn synced(&self) -> Option<(i64, Option<i64>, Arc<Snapshot>)> {
        let at = self.0.looked_at.load(Acquire);
        let ahead = self.0.database_clock.load(Relaxed);
        let ahead = (ahead != i64::MIN).then_some(ahead);
        (at != i64::MIN).then(|| (at, ahead, self.0.snapshot.load_full()))
    }

    /// Tells of every new generation, for who waits for one.
    #[must_use]
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// How old the snapshot is: the time since its last good look was asked for. Nothing before the first load.
    #[must_use]
    pub fn age(&self, clock: &dyn Clock) -> Option<Duration> {
        match self.0.looked_at.load(Acquire) {
            i64::MIN => None,
            at => Some(Duration::from_millis(u64::try_from(millis(clock.uptime()) - at).unwrap_or(0))),
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

    /// How far the wall clock here is ahead of the database's, in microseconds; negative: behind.
    #[must_use]
    pub fn clock_skew_micros(&self) -> i64 {
        self.0.clock_skew.load(Relaxed)
    }

    /// What was said of the last good look. Says nothing before the first one.
    #[must_use]
    pub fn look(&self) -> Look {
        self.0.look.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a snapshot into use and returns the one before it.
    fn publish(&self, next: Snapshot) -> Arc<Snapshot> {
        self.0.snapshot.swap(Arc::new(next))
    }

    fn set_clock_skew(&self, ahead: Duration, behind: Duration) {
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        self.0.clock_skew.store(micros(ahead) - micros(behind), Relaxed);
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

    /// A good look was asked for at uptime `asked`, answered at `answered`, and has been taken account of: the
    /// snapshot in use is as good as it.
    ///
    /// Its age counts from when it was asked for, the database's clock from when it was answered: a look that
    /// had to wait makes the snapshot older, and no key expire too early.
    fn looked(&self, asked: Duration, answered: Duration, look: Look) {
        let ahead = look.now.map(|now| now.before(answered));
        self.set_look(look, ahead, millis(asked));
    }

    /// Takes a snapshot into use that was made before this process started, of a look that was `age` ago.
    fn restored(&self, snapshot: Snapshot, look: Look, age: Duration, uptime: Duration) {
        self.publish(snapshot);
        let ahead = look.now.map(|now| now.after(age).before(uptime));
        self.set_look(look, ahead, millis(uptime) - millis(age));
        self.tell();
    }

    fn set_look(&self, look: Look, database_clock: Option<Timestamp>, at: i64) {
        if let Some(ahead) = database_clock {
            self.0.database_clock.store(ahead.0, Relaxed);
        }
        *self.0.look.lock().unwrap_or_else(PoisonError::into_inner) = look;
        // Whoever sees this sees the snapshot that was taken into use before.
        self.0.looked_at.store(at, Release);
    }

    fn set_connected(&self, connected: bool) {
        self.0.connected.store(connected, Relaxed);
    }
}

fn millis(uptime: Duration) -> i64 {
    i64::try_from(uptime.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::sync::Once;

    use tracing::Level;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::Row;

    thread_local! {
        static SAID: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    /// Writes to where its own thread looks.
    struct Said;

    impl io::Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            SAID.with_borrow_mut(|said| said.extend(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that this thread has logged since it last asked: the level and the message, without what is
    /// said beside it. Nothing the first time.
    pub(super) fn said() -> Vec<String> {
        static LISTEN: Once = Once::new();
        LISTEN.call_once(|| {
            let lines = tracing_subscriber::fmt().with_max_level(Level::INFO).with_writer(|| Said).json();
            let _ = tracing::subscriber::set_global_default(lines.finish());
        });
        let said = String::from_utf8(SAID.take()).unwrap();
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            format!("{}: {}", text(&line["level"]), text(&line["fields"]["message"]))
        };
        said.lines().map(line).collect()
    }

    impl Replica {
        /// Has just looked, and seen these rows and no others.
        pub(crate) fn sees(&self, rows: Vec<Row>, clock: &dyn Clock) {
            let mut reload = self.snapshot().reload(self.peppers());
            for row in rows {
                reload.add(row);
            }
            let _ = self.publish(reload.finish());
            self.looked(clock.uptime(), clock.uptime(), Look::default());
            self.tell();
        }
    }

    #[test]
    fn freshness_follows_the_age_of_the_last_good_look() {
        let (replica, clock) = (Replica::default(), ManualClock::default());
        let bound = Duration::from_mins(5);
        assert_eq!(replica.freshness(&clock, bound), Freshness::NeverLoaded);
        replica.looked(clock.uptime(), clock.uptime(), Look::default());
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
        replica.looked(clock.uptime(), clock.uptime(), Look::default());
        assert_eq!(replica.freshness(&clock, bound), Freshness::Fresh);
    }

    #[test]
    fn a_look_that_had_to_wait_makes_the_snapshot_older_and_the_time_no_later() {
        let (replica, clock) = (Replica::default(), ManualClock::at(Timestamp(1_000)));
        let asked = clock.uptime();
        clock.advance(Duration::from_secs(2));
        let look = Look { now: Some(Timestamp(1_500_000)), ..Look::default() };
        replica.looked(asked, clock.uptime(), look);
        assert_eq!(replica.age(&clock), Some(Duration::from_secs(2)));
        assert_eq!(replica.now(&clock), Timestamp(2_001_000), "the wall clock here, which is right");
    }

    #[test]
    fn a_wall_clock_set_back_does_not_set_back_the_time_of_judgement() {
        let (replica, clock) = (Replica::default(), ManualClock::at(Timestamp(1_000)));
        assert_eq!(replica.now(&clock), Timestamp(1_000));
        replica.looked(
            clock.uptime(),
            clock.uptime(),
            Look { now: Some(Timestamp(5_000)), ..Look::default() },
        );
        clock.advance(Duration::from_micros(10));
        assert_eq!(replica.now(&clock), Timestamp(5_010));
        clock.set_wall(Timestamp(9_000));
        assert_eq!(replica.now(&clock), Timestamp(9_000));
        clock.set_wall(Timestamp(0));
        assert_eq!(replica.now(&clock), Timestamp(5_010));
    }
}
