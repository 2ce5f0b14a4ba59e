//! Keeps the replica in step with the database.
//!
//! One task owns it. It opens a session, looks at everything once, then waits
//! for a hint or the tick and asks what changed since its last look. A hint only
//! wakes it early: the tick alone is enough, so a lost hint costs one tick and
//! never correctness.
//!
//! ```text
//!            ┌───────────── back-off ◄──────────── any error, any doubt ◄─┐
//!            ▼                                                            │
//!         connect ──► load everything ──► publish ──► wait (hint | tick) ─┤
//!                          ▲                  ▲              │            │
//!                          │                  └── rows ── changes ────────┘
//!                          └──────────── everything ─────────┘
//! ```
//!
//! While it has no session the snapshot goes on serving, and its age says so.
//! This module knows nothing of SQL, Envoy or what a decision is made of.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::snapshot::Reload;
use super::{Replica, Snapshot};
use crate::clock::{Clock, Timestamp};
use crate::decision::Freshness;
use crate::store::{CONNECT_TIMEOUT, Change, Changes, Look, Row, Session, Store, StoreError};
use crate::supervise::{Panicked, caught};

/// How the replica is kept true.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long to wait for a hint before looking anyway. This bounds how late a change is seen.
    pub interval: Duration,
    /// How long a look at what changed may take before the session counts as lost.
    pub poll_timeout: Duration,
    /// How long a look at everything may take.
    pub load_timeout: Duration,
    /// How old a snapshot may be to be served.
    pub max_staleness: Duration,
    /// Whether to bring an old schema up to date.
    pub migrate: bool,
}

impl Default for Options {
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

/// Why there is no session any more, if that is our own fault.
const PANICKED: &str = "the replica panicked";
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
/// A load that took longer is caught up with before it is used.
const LONG_LOAD: Duration = Duration::from_millis(500);
/// Beyond this, somebody's clock is wrong.
const CLOCKS_MAY_DIFFER: Duration = Duration::from_secs(2);
/// A lost session must be made good within two seconds of the database's return.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

/// The task that writes the replica.
pub struct Sync {
    replica: Replica,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    options: Options,
    /// Whether we have looked at a database ourselves. What is known before that came from the snapshot file.
    loaded: bool,
    /// Snapshots that readers may still be looking at: whoever lets go of the last reference to a million keys
    /// has work to do, and that should be us.
    retired: Vec<Arc<Snapshot>>,
    /// Whether the clock here and the database's were too far apart at the last look.
    clocks_differ: bool,
    /// What was said last about not having the database, so that it is said once.
    lost: Option<String>,
}

impl Sync {
    /// A task for this replica and store.
    #[must_use]
    pub fn new(replica: Replica, store: Arc<dyn Store>, clock: Arc<dyn Clock>, options: Options) -> Self {
        let (loaded, retired, clocks_differ, lost) = (false, Vec::new(), false, None);
        Self { replica, store, clock, options, loaded, retired, clocks_differ, lost }
    }

    /// Keeps the replica true until the program ends.
    ///
    /// Returns only if that can never succeed: the tables prove too old before anything was loaded.
    pub async fn run(mut self) -> StoreError {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let generation = self.replica.snapshot().generation;
            let ended = caught(self.follow()).await;
            self.replica.set_connected(false);
            let error = match ended {
                Ok(Ok(never)) => match never {},
                Ok(Err(error)) => error,
                // A doubt like any other: what is known is served, and grows old, until everything was loaded.
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
            self.say_lost(&error);
            sleep(back_off).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
    }

    /// Lives through one session.
    async fn follow(&mut self) -> Result<std::convert::Infallible, StoreError> {
        self.check_schema().await?;
        let mut session = within(CONNECT_TIMEOUT, "connect", self.store.session()).await?;
        loop {
            self.load(session.as_mut()).await?;
            self.follow_changes(session.as_mut()).await?;
        }
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let version = within(CONNECT_TIMEOUT, "connect", self.store.schema_version()).await?;
        // Who has known the tables does not make them again in what stands in their place.
        let replaced = self.loaded && version.current == 0;
        if version.check().is_err() && !replaced && (self.options.migrate || self.store.embedded()) {
            // No limit: a migration that is cut off is one that starts again.
            let applied = self.store.migrate().await?;
            info!(?applied, "schema brought up to date");
            return Ok(());
        }
        version.check()
    }

    /// Looks at everything.
    async fn load(&mut self, session: &mut dyn Session) -> Result<(), StoreError> {
        let asked = self.ask();
        let mut reload = self.replica.snapshot().reload(self.replica.peppers());
        let mut damaged = Damaged::default();
        let mut sink = |row| {
            damaged.look_at(&row);
            reload.add(row);
        };
        let look = within(self.options.load_timeout, "load", session.load(&mut sink)).await?;
        let asked = self.answered(asked);
        self.compare_clocks(&asked, &look);
        let known = self.known();
        doubt(known.as_ref(), &self.replica.snapshot(), &reload, &look)?;
        damaged.say();
        let next = reload.finish();
        self.look_for_lost_changes(known, &next, &look, session).await?;
        let Some((next, look, asked)) = self.catch_up(next, look, asked, session).await? else {
            return Box::pin(self.load(session)).await;
        };
        self.accept(next, look, &asked);
        self.replica.stats().loads.add_one();
        Ok(())
    }

    /// A load that took long is old when it is done: what changed meanwhile is applied before it is used. `None` if
    /// that cannot be told.
    async fn catch_up(
        &self,
        mut next: Snapshot,
        mut look: Look,
        mut asked: Asked,
        session: &mut dyn Session,
    ) -> Result<Option<(Snapshot, Look, Asked)>, StoreError> {
        while asked.answered.saturating_sub(asked.uptime) > LONG_LOAD {
            let again = self.ask();
            match within(self.options.poll_timeout, "poll", session.changes()).await? {
                Changes::Everything => return Ok(None),
                Changes::Rows(rows, newer) => {
                    (look, asked) = (newer, self.answered(again));
                    if !rows.is_empty() {
                        next = next.changed(rows, self.replica.peppers());
                    }
                }
            }
        }
        Ok(Some((next, look, asked)))
    }

    fn ask(&self) -> Asked {
        let uptime = self.clock.uptime();
        Asked { uptime, answered: uptime, wall: self.clock.now() }
    }

    fn answered(&self, asked: Asked) -> Asked {
        Asked { answered: self.clock.uptime(), ..asked }
    }

    /// The last good look: ours, or the one that the snapshot file is of as long as it may be served.
    fn known(&self) -> Option<Look> {
        let freshness = self.replica.freshness(self.clock.as_ref(), self.options.max_staleness);
        let serving = matches!(freshness, Freshness::Fresh | Freshness::Stale);
        (self.loaded || serving).then(|| self.replica.look())
    }

    /// The database is the truth wherever it is and even if it forgot something, but operators have to know: what it
    /// forgot may be a revocation.
    async fn look_for_lost_changes(
        &self,
        known: Option<Look>,
        next: &Snapshot,
        look: &Look,
        session: &mut dyn Session,
    ) -> Result<(), StoreError> {
        let Some(known) = known else { return Ok(()) };
        let moved = !known.place.is_empty() && known.place != look.place;
        if moved {
            self.replica.stats().moved.add_one();
            let (from, to) = (&known.place, &look.place);
            warn!(
                "the database has moved from {from} to {to} (a restore, a failover or a replica?), it is followed there"
            );
        }
        let forgot = known.newest_change.is_some()
            && !within(self.options.poll_timeout, "poll", session.has(&known)).await?;
        let revived = if moved { next.revived_since(&self.replica.snapshot()) } else { 0 };
        if forgot || revived > 0 {
            self.replica.stats().went_back.add_one();
            error!(
                "the database went back: a change it had is gone (a failover or a restore?), check what was \
                 revoked or suspended of late ({revived} keys and tenants are in force again)"
            );
        }
        Ok(())
    }

    /// One line when the wall clock here and the database's come to differ, and one when they agree again.
    fn compare_clocks(&mut self, asked: &Asked, look: &Look) {
        let Some(database) = look.now else { return };
        let ahead = asked.wall.since(database);
        let behind = database.since(self.clock.now());
        self.replica.set_clock_skew(ahead, behind);
        let differ = ahead.max(behind) > CLOCKS_MAY_DIFFER;
        if differ && !self.clocks_differ {
            warn!(
                ?ahead,
                ?behind,
                "the clock here differs from the database's, keys expire by the later one: mend it"
            );
        } else if !differ && self.clocks_differ {
            info!("the clock here agrees with the database's again");
        }
        self.clocks_differ = differ;
    }

    fn accept(&mut self, next: Snapshot, look: Look, asked: &Asked) {
        let (keys, tenants) = (next.key_count(), next.tenant_count());
        // The snapshot before its age: a fresh age on an empty snapshot would make every key unknown.
        self.publish(next);
        self.replica.looked(asked.uptime, asked.answered, look);
        self.replica.set_connected(true);
        self.replica.tell();
        self.replica.tell_of_mark();
        self.loaded = true;
        if self.lost.take().is_some() {
            info!(keys, tenants, "the database is there, everything loaded");
        } else {
            debug!(keys, tenants, "everything loaded");
        }
    }

    fn publish(&mut self, next: Snapshot) {
        self.retired.push(self.replica.publish(next));
    }

    /// Looks at what changed, again and again. Returns when everything must be looked at again.
    async fn follow_changes(&mut self, session: &mut dyn Session) -> Result<(), StoreError> {
        loop {
            // Whether a hint came or the tick passed is all the same.
            if let Ok(hint) = timeout(self.options.interval, session.hint()).await {
                hint?;
            }
            self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
            let asked = self.ask();
            match within(self.options.poll_timeout, "poll", session.changes()).await? {
                Changes::Everything => return Ok(()),
                Changes::Rows(rows, look) => self.apply(rows, look, &self.answered(asked)),
            }
        }
    }

    fn apply(&mut self, rows: Vec<Change>, look: Look, asked: &Asked) {
        self.replica.stats().polls.add_one();
        self.compare_clocks(asked, &look);
        let marked = rows.iter().any(Change::is_mark);
        if !rows.is_empty() {
            debug!(rows = rows.len(), "applying changes");
            let mut damaged = Damaged::default();
            rows.iter().filter_map(Change::row).for_each(|row| damaged.look_at(row));
            damaged.say();
            self.replica.stats().changed_rows.add(rows.len() as u64);
            let next = self.replica.snapshot().changed(rows, self.replica.peppers());
            self.publish(next);
        }
        self.replica.looked(asked.uptime, asked.answered, look);
        self.replica.tell();
        if marked {
            self.replica.tell_of_mark();
        }
    }

    /// One line for each change of state, not one for each try.
    fn say_lost(&mut self, error: &StoreError) {
        self.replica.stats().lost.add_one();
        // How exactly a database cannot be reached changes from try to try, and is no news.
        let gone = matches!(error, StoreError::Unavailable(why) if why != PANICKED)
            || matches!(error, StoreError::Locked(_));
        let state = if gone { String::new() } else { error.to_string() };
        if state == PANICKED {
            error!(part = "replica", "a part of the server panicked and is restarted");
        } else if self.lost.as_ref() == Some(&state) {
            debug!(%error, "the database is still not there");
        } else if matches!(error, StoreError::Credentials(_)) {
            error!(%error, "the database refuses the password or the role, known keys are served while it does");
        } else if !self.loaded {
            warn!(%error, "no database yet, trying again");
        } else if gone {
            warn!(%error, "lost the database, known keys are served while it is gone");
        } else {
            error!(%error, "the database is not what it was, known keys are served until that is mended");
        }
        self.lost = Some(state);
    }
}

/// When a look was asked for, and answered.
#[derive(Clone, Copy)]
struct Asked {
    uptime: Duration,
    answered: Duration,
    wall: Timestamp,
}

/// Refuses a look that cannot be at the database we knew.
fn doubt(known: Option<&Look>, before: &Snapshot, now: &Reload, look: &Look) -> Result<(), StoreError> {
    let doubt = |why: &str| Err(StoreError::WrongDatabase(why.to_owned()));
    match known {
        Some(known) if known.identity != look.identity => doubt(&format!(
            "the address leads to another database now: its tenantgate_identity is {}, ours is {}; if that is meant, \
             restart serve (and remove its --snapshot-file)",
            look.identity, known.identity
        )),
        Some(_) if !now.has_keys() && before.key_count() > 0 => {
            doubt("the database shows no keys at all, though it had some")
        }
        _ => Ok(()),
    }
}

/// Names the rows that can serve no request, so that somebody mends them.
#[derive(Default)]
struct Damaged(Vec<Row>);

impl Damaged {
    /// A table full of them needs no line for each.
    const LINES: usize = 100;

    fn look_at(&mut self, row: &Row) {
        if row.is_damaged() && self.0.len() < Self::LINES {
            self.0.push(row.clone());
        }
    }

    fn say(self) {
        for row in self.0 {
            match row {
                Row::Key(k, _, profile) => {
                    let why = profile.compile().err();
                    let why =
                        why.map_or_else(|| "hashed_key, key_prefix or expires_at".into(), |d| d.to_string());
                    warn!(key.id = %k.id.0, key.prefix = %k.prefix, why, "damaged row of api_keys, it lets nobody in until it is mended");
                }
                Row::Tenant(t) => {
                    warn!(tenant.id = %t.id.0, "damaged row of tenants (name, db_schema_name or plan), its keys get 503 until it is mended");
                }
                Row::Plan(p) => {
                    let why = p.compile().err().map(|error| error.to_string());
                    warn!(
                        plan = p.name,
                        why, "damaged row of tenantgate_plan, keys on it get 503 until it is fixed"
                    );
                }
                Row::Route(r) => {
                    let why = r.compile().err().map(|damage| damage.to_string());
                    warn!(route.id = %r.id.0, why, "damaged row of tenantgate_route, what it may be for gets 503 until it is fixed");
                }
            }
        }
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
