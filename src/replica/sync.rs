//! The task that synchronizes the replica with the database.
//!
//! It opens a session and loads all rows. Then it waits for a hint or the tick, and polls the change log. A hint only
//! wakes it early; a lost hint delays changes by at most one tick.
//!
//! ```text
//!            ┌───────────── back-off ◄──────── any error, wrong database ─┐
//!            ▼                                                            │
//!         connect ──► load everything ──► publish ──► wait (hint | tick) ─┤
//!                          ▲                  ▲              │            │
//!                          │                  └── rows ── changes ────────┘
//!                          └──────────── everything ─────────┘
//! ```
//!
//! Without a session, the server continues to use the snapshot, whose age grows.
//!
//! Depends on: the traits of `store`. It knows neither SQL nor Envoy, and makes no decisions.

mod problems;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use self::problems::{
    DamagedRows, OutageLog, changed_rules, log_damaged_rules, log_missing_plans, named_plan,
};
use super::snapshot::Reload;
use super::{Replica, Snapshot};
use crate::clock::{Clock, Timestamp};
use crate::decision::Freshness;
use crate::store::{CONNECT_TIMEOUT, Change, Changes, Session, Store, StoreError, SyncPoint};
use crate::supervise::{Panicked, caught};

/// Options of the synchronization.
#[derive(Clone, Copy, Debug)]
pub struct SyncOptions {
    /// The tick: how long to wait for a hint before polling. Bounds the delay until a change is applied.
    pub interval: Duration,
    /// The timeout of a poll, after which the session counts as lost.
    pub poll_timeout: Duration,
    /// The timeout of loading all rows.
    pub load_timeout: Duration,
    /// The maximum age of a snapshot that is served.
    pub max_staleness: Duration,
    /// Whether to migrate an old database schema.
    pub migrate: bool,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(50),
            poll_timeout: Duration::from_secs(2),
            load_timeout: Duration::from_mins(1),
            max_staleness: Duration::from_mins(5),
            migrate: false,
        }
    }
}

/// The message of the error after a panic of this task.
const PANICKED: &str = "the replica panicked";
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
/// After a load that took longer, the changes since are applied before the snapshot is published.
const LONG_LOAD: Duration = Duration::from_millis(500);
/// The greatest difference between two clocks that is normal.
const CLOCKS_MAY_DIFFER: Duration = Duration::from_secs(2);
/// The longest pause between attempts. Changes must be applied again within two seconds after the database is back,
/// also on a machine without free CPU, where an attempt takes longer than this.
const LONGEST_BACK_OFF: Duration = Duration::from_millis(500);

/// The task that synchronizes the replica.
pub struct Sync {
    replica: Replica,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    options: SyncOptions,
    /// Whether this process has loaded from the database. Before that, the snapshot is empty or from the snapshot
    /// file.
    loaded: bool,
    /// Replaced snapshots that readers may still hold. Dropping the last reference to a million keys takes time, so
    /// this task does it and not a request.
    retired: Vec<Arc<Snapshot>>,
    /// Whether the clocks of this machine and the database differed too much at the last poll.
    clocks_differ: bool,
    /// What was logged since the database was lost; `None` if connected.
    lost: Option<OutageLog>,
}

impl Sync {
    /// Creates the task of this replica and store.
    #[must_use]
    pub fn new(replica: Replica, store: Arc<dyn Store>, clock: Arc<dyn Clock>, options: SyncOptions) -> Self {
        let (loaded, retired, clocks_differ, lost) = (false, Vec::new(), false, None);
        Self { replica, store, clock, options, loaded, retired, clocks_differ, lost }
    }

    /// Synchronizes forever.
    ///
    /// Returns only if the schema is too old, or is in another place, before the first load.
    pub async fn run(mut self) -> StoreError {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let generation = self.replica.snapshot().generation;
            let ended = caught(self.follow()).await;
            self.replica.set_connected(false);
            let error = match ended {
                Ok(Ok(never)) => match never {},
                Ok(Err(error)) => error,
                // As for any other error, the snapshot is served while it ages, until the next load.
                Err(Panicked) => {
                    self.replica.stats().panics.add_one();
                    StoreError::Unavailable(PANICKED.to_owned())
                }
            };
            let old = matches!(error, StoreError::OldSchema { .. } | StoreError::Elsewhere { .. });
            if old && !self.loaded {
                return error;
            }
            if self.replica.snapshot().generation > generation {
                back_off = FIRST_BACK_OFF;
            }
            self.replica.stats().lost.add_one();
            self.lost.get_or_insert_default().log(&error, self.loaded, self.clock.uptime());
            sleep(back_off).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
    }

    /// Opens a session and synchronizes until it ends.
    async fn follow(&mut self) -> Result<std::convert::Infallible, StoreError> {
        let mut session = self.open_session().await?;
        loop {
            self.load(session.as_mut()).await?;
            self.follow_changes(session.as_mut()).await?;
        }
    }

    /// Opens a session, after a migration of an old schema if that is wanted.
    async fn open_session(&self) -> Result<Box<dyn Session>, StoreError> {
        let open = || within(CONNECT_TIMEOUT, "connect", self.store.session());
        match open().await {
            // A server that has loaded does not create the tables again in an empty database that took the place of
            // its own.
            Err(StoreError::OldSchema { current, .. })
                if !(self.loaded && current == 0) && (self.options.migrate || self.store.embedded()) =>
            {
                // Without a timeout, because a migration that is interrupted starts from the beginning.
                let applied = self.store.migrate().await?;
                info!(?applied, "schema brought up to date");
                open().await
            }
            opened => opened,
        }
    }

    /// Loads all rows and publishes the snapshot; again, if the change log lost what was committed during a long load.
    async fn load(&mut self, session: &mut dyn Session) -> Result<(), StoreError> {
        while !self.load_once(session).await? {}
        Ok(())
    }

    /// Loads all rows. Returns whether the snapshot is current and was published.
    async fn load_once(&mut self, session: &mut dyn Session) -> Result<bool, StoreError> {
        let asked = self.ask();
        let mut reload = self.replica.snapshot().reload(self.replica.peppers());
        let (mut damaged, mut named) = (DamagedRows::default(), HashSet::new());
        let mut sink = |row| {
            if reload.finds_damaged(&row) {
                damaged.add(&row);
            }
            if let Some(plan) = row.plan().filter(|plan| !named.contains(*plan)) {
                named.insert(Box::from(plan));
            }
            reload.add(row);
        };
        let point = within(self.options.load_timeout, "load", session.load(&mut sink)).await?;
        let asked = self.answered(asked);
        self.compare_clocks(&asked, &point);
        let known = self.known();
        check_identity(known.as_ref(), &self.replica.snapshot(), &reload, &point)?;
        damaged.log();
        let next = reload.finish();
        log_missing_plans(&next, named);
        log_damaged_rules(&Snapshot::empty(), &next, &HashSet::new());
        self.check_for_lost_changes(known, &next, &point, session).await?;
        let Some((next, point, asked)) = self.catch_up(next, point, asked, session).await? else {
            return Ok(false);
        };
        self.accept(next, point, &asked);
        self.replica.stats().loads.add_one();
        Ok(true)
    }

    /// After a long load, applies the changes that were committed meanwhile, so that the snapshot is current when it
    /// is published. `None` if the change log does not have them all.
    async fn catch_up(
        &self,
        mut next: Snapshot,
        mut point: SyncPoint,
        mut asked: PollTimes,
        session: &mut dyn Session,
    ) -> Result<Option<(Snapshot, SyncPoint, PollTimes)>, StoreError> {
        while asked.answered.saturating_sub(asked.uptime) > LONG_LOAD {
            let again = self.ask();
            match within(self.options.poll_timeout, "poll", session.changes()).await? {
                Changes::Everything => return Ok(None),
                Changes::Rows(rows, newer) => {
                    (point, asked) = (newer, self.answered(again));
                    if !rows.is_empty() {
                        next = next.changed(rows, self.replica.peppers());
                    }
                }
            }
        }
        Ok(Some((next, point, asked)))
    }

    fn ask(&self) -> PollTimes {
        let uptime = self.clock.uptime();
        PollTimes { uptime, answered: uptime, wall: self.clock.now() }
    }

    fn answered(&self, asked: PollTimes) -> PollTimes {
        PollTimes { answered: self.clock.uptime(), ..asked }
    }

    /// Returns the state of the database at the last successful poll, by this process or, while it may be served, by
    /// the one that wrote the snapshot file.
    fn known(&self) -> Option<SyncPoint> {
        let freshness = self.replica.freshness(self.clock.as_ref(), self.options.max_staleness);
        let serving = matches!(freshness, Freshness::Fresh | Freshness::Stale);
        (self.loaded || serving).then(|| self.replica.sync_point())
    }

    /// Logs and counts if the database has moved, or has lost changes. Its state is used in any case, but operators
    /// must know, because a lost change may be a revocation.
    async fn check_for_lost_changes(
        &self,
        known: Option<SyncPoint>,
        next: &Snapshot,
        point: &SyncPoint,
        session: &mut dyn Session,
    ) -> Result<(), StoreError> {
        let Some(known) = known else { return Ok(()) };
        let moved = !known.place.is_empty() && known.place != point.place;
        if moved {
            self.replica.stats().moved.add_one();
            let (from, to) = (&known.place, &point.place);
            warn!(
                "the database has moved from {from} to {to} (a restore, a failover or a replica?), continuing there"
            );
        }
        let forgot = known.newest_change.is_some()
            && !within(self.options.poll_timeout, "poll", session.has(&known)).await?;
        // A restore within the database makes other tables.
        let replaced = !known.tables.is_empty() && known.tables != point.tables;
        let revived = if moved || replaced || forgot {
            next.revived_since(&self.replica.snapshot(), self.replica.now(self.clock.as_ref()))
        } else {
            0
        };
        if forgot || revived > 0 {
            self.replica.stats().went_back.add_one();
            error!(
                "the database went back: it has lost a change (a failover or a restore?), check what was revoked or \
                 suspended recently ({revived} keys and tenants are active again)"
            );
        }
        Ok(())
    }

    /// Records the difference of the wall clocks of this machine and the database. Logs one line when it becomes too
    /// great, and one when it is normal again.
    fn compare_clocks(&mut self, asked: &PollTimes, point: &SyncPoint) {
        let Some(database) = point.now else { return };
        let ahead = asked.wall.since(database);
        let behind = database.since(self.clock.now());
        self.replica.set_clock_skew(ahead, behind);
        let differ = ahead.max(behind) > CLOCKS_MAY_DIFFER;
        if differ && !self.clocks_differ {
            warn!(
                ?ahead,
                ?behind,
                "the clock here differs from the database's, keys expire by the later one: check NTP"
            );
        } else if !differ && self.clocks_differ {
            info!("the clock here agrees with the database's again");
        }
        self.clocks_differ = differ;
    }

    fn accept(&mut self, next: Snapshot, point: SyncPoint, asked: &PollTimes) {
        let (keys, tenants) = (next.key_count(), next.tenant_count());
        // The snapshot is published before its age: with a new age, an empty snapshot would make every key unknown.
        self.publish(next);
        self.replica.record_sync(asked.uptime, asked.answered, point);
        self.replica.set_connected(true);
        self.replica.notify_generation();
        self.replica.notify_marks();
        self.loaded = true;
        if self.lost.take().is_some() {
            info!(keys, tenants, "connected to the database, everything loaded");
        } else {
            debug!(keys, tenants, "everything loaded");
        }
    }

    fn publish(&mut self, next: Snapshot) {
        self.retired.push(self.replica.publish(next));
    }

    /// Polls the change log at every hint and tick. Returns when all rows must be loaded again.
    async fn follow_changes(&mut self, session: &mut dyn Session) -> Result<(), StoreError> {
        loop {
            // A hint and the tick have the same effect.
            if let Ok(hint) = timeout(self.options.interval, session.hint()).await {
                hint?;
            }
            self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
            let asked = self.ask();
            match within(self.options.poll_timeout, "poll", session.changes()).await? {
                Changes::Everything => return Ok(()),
                Changes::Rows(rows, point) => self.apply(rows, point, &self.answered(asked)),
            }
        }
    }

    fn apply(&mut self, rows: Vec<Change>, point: SyncPoint, asked: &PollTimes) {
        self.replica.stats().polls.add_one();
        self.compare_clocks(asked, &point);
        let marked = rows.iter().any(Change::is_mark);
        if !rows.is_empty() {
            debug!(rows = rows.len(), "applying changes");
            let (snapshot, mut damaged) = (self.replica.snapshot(), DamagedRows::default());
            let now = rows.iter().filter_map(Change::row);
            now.filter(|row| snapshot.finds_damaged(row)).for_each(|row| damaged.add(row));
            damaged.log();
            let named =
                rows.iter().filter_map(|change| named_plan(change, &snapshot)).map(Box::from).collect();
            let rules = changed_rules(&rows);
            self.replica.stats().changed_rows.add(rows.len() as u64);
            let next = snapshot.changed(rows, self.replica.peppers());
            log_missing_plans(&next, named);
            log_damaged_rules(&snapshot, &next, &rules);
            self.publish(next);
        }
        self.replica.record_sync(asked.uptime, asked.answered, point);
        self.replica.notify_generation();
        if marked {
            self.replica.notify_marks();
        }
    }
}

/// When a load or poll started and was answered.
#[derive(Clone, Copy)]
struct PollTimes {
    uptime: Duration,
    answered: Duration,
    wall: Timestamp,
}

/// Rejects a load that seems to be from another database than the known one.
fn check_identity(
    known: Option<&SyncPoint>,
    before: &Snapshot,
    now: &Reload,
    point: &SyncPoint,
) -> Result<(), StoreError> {
    let wrong = |why: &str| Err(StoreError::WrongDatabase(why.to_owned()));
    match known {
        Some(known) if known.identity != point.identity => wrong(&format!(
            "the address leads to another database now: its tenantgate_identity is {}, expected {}; if that is \
             intended, restart serve (and remove its --snapshot-file)",
            point.identity, known.identity
        )),
        Some(_) if !now.has_keys() && before.key_count() > 0 => {
            wrong("the database shows no keys at all, though it had some")
        }
        _ => Ok(()),
    }
}

async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(StoreError::Unavailable(format!("no answer to {what} within {limit:?}"))))
}

#[cfg(test)]
pub(crate) mod tests;
