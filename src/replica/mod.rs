//! The replica: the copy of all rows in memory, and its age.
//!
//! One task ([`sync`]) writes it: it builds the next [`Snapshot`] and then swaps it for the current one, so a reader
//! sees all of a transaction or none of it, and never waits.
//!
//! A row that changes becomes a new [`KeyEntry`]. It keeps the result of bcrypt only if the id, the tenant and the hash
//! of the key are unchanged.
//!
//! Depends on: the traits of `store`. It knows neither SQL nor Envoy, and makes no decisions.

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

pub use self::entry::KeyEntry;
pub use self::profiles::{Interned, ResponseParts};
pub use self::snapshot::{Difference, PlanEntry, ResponseCache, Snapshot, TenantEntry};
use crate::clock::{Clock, Timestamp};
use crate::decision::Freshness;
use crate::stats::Counter;
use crate::store::SyncPoint;
use crate::verify::memo::Peppers;

/// The snapshot is stale if the last successful poll is older than this. Usually there is a poll every 50 ms.
pub const STALE_AFTER: Duration = Duration::from_secs(1);

/// Counters of the synchronization, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Loads of all rows.
    pub loads: Counter,
    /// Polls of the change log.
    pub polls: Counter,
    /// Changes applied from the change log.
    pub changed_rows: Counter,
    /// Panics of the sync task.
    pub panics: Counter,
    /// Sessions that were lost, or could not be opened.
    pub lost: Counter,
    /// Times that the database was found in another place, such as another cluster.
    pub moved: Counter,
    /// Times that the database had lost a change that this replica had seen.
    pub went_back: Counter,
    /// Snapshot files written.
    pub kept: Counter,
    /// Snapshot files that could not be written.
    pub not_kept: Counter,
}

/// The last successful poll.
#[derive(Clone, Debug)]
pub struct Synced {
    /// The uptime of this machine at its start, in milliseconds. Negative if the machine has booted since.
    pub uptime_ms: i64,
    /// The clock of the database minus the uptime, in microseconds; `None` if unknown.
    pub database_clock: Option<i64>,
    /// A snapshot that is at least as new as the poll.
    pub snapshot: Arc<Snapshot>,
}

/// The replica. Cheap to clone. Only [`sync`] and the snapshot file write it.
#[derive(Clone)]
pub struct Replica(Arc<Shared>);

struct Shared {
    peppers: Peppers,
    snapshot: ArcSwap<Snapshot>,
    /// The uptime at the start of the last successful poll, in milliseconds. Negative if that was before the machine
    /// booted (from the snapshot file); `i64::MIN` before the first load.
    synced_at: AtomicI64,
    /// The database's clock minus the uptime, in microseconds; `i64::MIN` if unknown.
    database_clock: AtomicI64,
    /// The wall clock of this machine minus the database's, in microseconds.
    clock_skew: AtomicI64,
    connected: AtomicBool,
    /// The state of the database at the last successful poll.
    sync_point: Mutex<SyncPoint>,
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
    /// Creates an empty replica that can verify memos made with `peppers`.
    #[must_use]
    pub fn new(peppers: Peppers) -> Self {
        Self(Arc::new(Shared {
            peppers,
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            synced_at: AtomicI64::new(i64::MIN),
            database_clock: AtomicI64::new(i64::MIN),
            clock_skew: AtomicI64::new(0),
            connected: AtomicBool::new(false),
            sync_point: Mutex::default(),
            generation: watch::Sender::new(0),
            marks: watch::Sender::new(0),
            stats: Stats::default(),
        }))
    }

    /// Returns the peppers whose memos it can verify.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.0.peppers
    }

    /// Returns the current snapshot. Must not be held across an await.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.0.snapshot.load()
    }

    /// Returns the freshness and the snapshot, read in this order: if a snapshot is published in between, it is newer
    /// than the freshness says, never older. Must not be held across an await.
    #[must_use]
    pub fn view(&self, clock: &dyn Clock, max_staleness: Duration) -> (Freshness, Guard<Arc<Snapshot>>) {
        (self.freshness(clock, max_staleness), self.snapshot())
    }

    /// Returns the last successful poll, with a snapshot that is at least as new. `None` before the first load.
    #[must_use]
    pub fn synced(&self) -> Option<Synced> {
        let uptime_ms = self.0.synced_at.load(Acquire);
        let clock = self.0.database_clock.load(Relaxed);
        let database_clock = (clock != i64::MIN).then_some(clock);
        (uptime_ms != i64::MIN).then(|| Synced {
            uptime_ms,
            database_clock,
            snapshot: self.0.snapshot.load_full(),
        })
    }

    /// Returns a channel with the generation of the latest published snapshot.
    #[must_use]
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Returns the age of the snapshot: the time since the start of the last successful poll. `None` before the first
    /// load.
    #[must_use]
    pub fn age(&self, clock: &dyn Clock) -> Option<Duration> {
        match self.0.synced_at.load(Acquire) {
            i64::MIN => None,
            at => Some(Duration::from_millis(u64::try_from(millis(clock.uptime()) - at).unwrap_or(0))),
        }
    }

    /// Returns how current the snapshot is.
    #[must_use]
    pub fn freshness(&self, clock: &dyn Clock, max_staleness: Duration) -> Freshness {
        match self.age(clock) {
            None => Freshness::NeverLoaded,
            Some(age) if age <= STALE_AFTER.min(max_staleness) => Freshness::Fresh,
            Some(age) if age <= max_staleness => Freshness::Stale,
            Some(_) => Freshness::TooOld,
        }
    }

    /// Returns the later of this machine's wall clock and the database's clock, so that setting one of them back
    /// does not make an expired key valid again.
    #[must_use]
    pub fn now(&self, clock: &dyn Clock) -> Timestamp {
        match self.0.database_clock.load(Relaxed) {
            i64::MIN => clock.now(),
            ahead => clock.now().max(Timestamp(ahead).after(clock.uptime())),
        }
    }

    /// Returns whether the database answered the last poll.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.0.connected.load(Relaxed)
    }

    /// Returns the counters of the synchronization.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Returns how far this machine's wall clock is ahead of the database's, in microseconds; negative if it is
    /// behind.
    #[must_use]
    pub fn clock_skew_micros(&self) -> i64 {
        self.0.clock_skew.load(Relaxed)
    }

    /// Returns the state of the database at the last successful poll; the default before the first one.
    #[must_use]
    pub fn sync_point(&self) -> SyncPoint {
        self.0.sync_point.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes a snapshot, and returns the previous one.
    fn publish(&self, next: Snapshot) -> Arc<Snapshot> {
        self.0.snapshot.swap(Arc::new(next))
    }

    fn set_clock_skew(&self, ahead: Duration, behind: Duration) {
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        self.0.clock_skew.store(micros(ahead) - micros(behind), Relaxed);
    }

    /// Returns a channel that changes at every mark in the change log, and at every load, which may have skipped
    /// marks.
    #[must_use]
    pub fn marks(&self) -> watch::Receiver<u64> {
        self.0.marks.subscribe()
    }

    fn notify_marks(&self) {
        self.0.marks.send_modify(|marks| *marks += 1);
    }

    /// Notifies the tasks that wait for a generation. Called after the snapshot and its age were updated.
    fn notify_generation(&self) {
        let generation = self.snapshot().generation;
        self.0.generation.send_if_modified(|told| std::mem::replace(told, generation) != generation);
    }

    /// Records a successful poll that started at uptime `asked` and was answered at `answered`. The current snapshot
    /// must already contain its changes.
    ///
    /// The age of the snapshot counts from the start, and the database's clock from the answer. A slow poll therefore
    /// makes the snapshot older, but does not make keys expire too early.
    fn record_sync(&self, asked: Duration, answered: Duration, point: SyncPoint) {
        let ahead = point.now.map(|now| now.before(answered));
        self.set_sync_point(point, ahead, millis(asked));
    }

    /// Publishes a snapshot from the snapshot file, whose last poll was `age` ago.
    fn restored(&self, snapshot: Snapshot, point: SyncPoint, age: Duration, uptime: Duration) {
        self.publish(snapshot);
        let ahead = point.now.map(|now| now.after(age).before(uptime));
        self.set_sync_point(point, ahead, millis(uptime) - millis(age));
        self.notify_generation();
    }

    fn set_sync_point(&self, point: SyncPoint, database_clock: Option<Timestamp>, at: i64) {
        if let Some(ahead) = database_clock {
            self.0.database_clock.store(ahead.0, Relaxed);
        }
        *self.0.sync_point.lock().unwrap_or_else(PoisonError::into_inner) = point;
        // `Release`: a reader that sees this age also sees the snapshot that was published before.
        self.0.synced_at.store(at, Release);
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
    use crate::store::SnapshotRow;

    thread_local! {
        static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    /// A log writer that appends to the buffer of the calling thread.
    struct Lines;

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            LINES.with_borrow_mut(|lines| lines.extend(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the lines that this thread has logged since the last call, as level and message without fields. The
    /// first call starts the recording.
    pub(super) fn logged() -> Vec<String> {
        static START: Once = Once::new();
        START.call_once(|| {
            let lines = tracing_subscriber::fmt().with_max_level(Level::INFO).with_writer(|| Lines).json();
            let _ = tracing::subscriber::set_global_default(lines.finish());
        });
        let lines = String::from_utf8(LINES.take()).unwrap();
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            format!("{}: {}", text(&line["level"]), text(&line["fields"]["message"]))
        };
        lines.lines().map(line).collect()
    }

    impl Replica {
        /// Publishes a snapshot of exactly these rows, as if they had just been loaded.
        pub(crate) fn sees(&self, rows: Vec<SnapshotRow>, clock: &dyn Clock) {
            let mut reload = self.snapshot().reload(self.peppers());
            for row in rows {
                reload.add(row);
            }
            let _ = self.publish(reload.finish());
            self.record_sync(clock.uptime(), clock.uptime(), SyncPoint::default());
            self.notify_generation();
        }
    }

    #[test]
    fn freshness_depends_on_the_age_of_the_last_successful_poll() {
        let (replica, clock) = (Replica::default(), ManualClock::default());
        let bound = Duration::from_mins(5);
        assert_eq!(replica.freshness(&clock, bound), Freshness::NeverLoaded);
        replica.record_sync(clock.uptime(), clock.uptime(), SyncPoint::default());
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
        replica.record_sync(clock.uptime(), clock.uptime(), SyncPoint::default());
        assert_eq!(replica.freshness(&clock, bound), Freshness::Fresh);
    }

    #[test]
    fn a_slow_poll_makes_the_snapshot_older_but_not_the_time_later() {
        let (replica, clock) = (Replica::default(), ManualClock::at(Timestamp(1_000)));
        let asked = clock.uptime();
        clock.advance(Duration::from_secs(2));
        let point = SyncPoint { now: Some(Timestamp(1_500_000)), ..SyncPoint::default() };
        replica.record_sync(asked, clock.uptime(), point);
        assert_eq!(replica.age(&clock), Some(Duration::from_secs(2)));
        assert_eq!(replica.now(&clock), Timestamp(2_001_000), "the wall clock of this machine");
    }

    #[test]
    fn setting_the_wall_clock_back_does_not_set_the_time_of_decisions_back() {
        let (replica, clock) = (Replica::default(), ManualClock::at(Timestamp(1_000)));
        assert_eq!(replica.now(&clock), Timestamp(1_000));
        replica.record_sync(
            clock.uptime(),
            clock.uptime(),
            SyncPoint { now: Some(Timestamp(5_000)), ..SyncPoint::default() },
        );
        clock.advance(Duration::from_micros(10));
        assert_eq!(replica.now(&clock), Timestamp(5_010));
        clock.set_wall(Timestamp(9_000));
        assert_eq!(replica.now(&clock), Timestamp(9_000));
        clock.set_wall(Timestamp(0));
        assert_eq!(replica.now(&clock), Timestamp(5_010));
    }
}
