//! Compares the replica with the database after every poll, under random writes.
//!
//! The real sync task follows a real database while many writers act at random: transactions of many rows, savepoints,
//! rollbacks, pauses before the commit, cascades, suspended and renamed tenants, reused prefixes, disabled foreign
//! keys, uses of keys, pruning of the change log at the horizon, a replica that pauses, and a transaction that stays
//! open in another database. Scopes, networks, plans and rules change, too, some of them to values that cannot be read.
//! After every poll the replica is compared with the database, row by row, and its decisions on random requests with
//! those of a slow implementation of the contract ([`judged`]).
//!
//! # Why the comparison is exact
//!
//! The database changes during a comparison, and a statement cannot read it as of the snapshot of another one. The
//! comparison therefore uses a history. A poll states its Postgres snapshot S
//! ([`SyncPoint::position`](tenantgate::store::SyncPoint)). A trigger of the test writes every version of every row
//! into a table `history` together with its transaction ([`history`]). Versions of one row are ordered by `seq`,
//! because each writer had to wait for the lock of the one before. Once all writers have ended, every transaction in
//! the table has committed, and the state as of S is, for each row, the newest version whose transaction S sees. This
//! needs no pause, covers every poll, and uses nothing that is under test: neither the change log nor the difference of
//! two snapshots.
//!
//! That the history is correct is also checked: during the run, statements compare the whole history with both tables
//! under the snapshot of each statement.
//!
//! SQLite has one writer at a time. There the replica polls on demand, also within a transaction, and is compared with
//! what can be read then.
//!
//! # How to run it for longer
//!
//! `TENANTGATE_MODEL_SECONDS=600` sets the duration, `TENANTGATE_MODEL_SEED=7` changes the random choices. A seed
//! determines what each writer does, not how the writers interleave.

pub(crate) mod dice;
mod history;
mod judged;
mod sqlite;
mod state;
mod witness;
mod writers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenantgate::clock::SystemClock;
use tenantgate::replica::Replica;
use tenantgate::replica::sync::{Sync, SyncOptions};
use tenantgate::store::Store;
use tenantgate::store::postgres::PostgresStore;
use tenantgate::store::sqlite::SqliteStore;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::dice::Dice;
use self::history::History;
use self::judged::Judged;
use self::state::State;
use self::witness::{How, Pace, Taken, Witness};
use self::writers::{Stop, connect, run};
use crate::support::database::Session as Connection;
use crate::support::postgres::Cluster;
use crate::support::region::subscribe;
use crate::support::{Backend, Database, PATIENCE, runtime, tell, wait};

/// The minimum number of compared polls.
const COMPARISONS: usize = 1200;

/// The length of a round, which starts with a new replica.
const LOOKS_IN_A_ROUND: usize = 150;

const WRITERS: u64 = 8;

const SEED: u64 = 3;

/// Counts of events, so that a run without events does not pass.
#[derive(Debug, Default)]
struct Tally {
    comparisons: usize,
    /// Loads, except the first of each round.
    reloads: usize,
    /// Polls with changes.
    changes: usize,
    /// Comparisons that would have failed if the replica had not changed since the last poll.
    moves: usize,
    committed: u64,
    rolled_back: u64,
    refused: u64,
    pruned: u64,
    audits: u64,
    judged: Judged,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.comparisons += other.comparisons;
        self.reloads += other.reloads;
        self.changes += other.changes;
        self.moves += other.moves;
        self.committed += other.committed;
        self.rolled_back += other.rolled_back;
        self.refused += other.refused;
        self.pruned += other.pruned;
        self.audits += other.audits;
    }

    /// Compares a poll with the database at its instant.
    #[track_caller]
    fn compare(&mut self, state: &State, look: &Taken, before: Option<&Taken>, dice: &mut Dice) {
        let differences = state.differs_from(&look.held);
        let (number, how, as_of) = (self.comparisons, look.how, &look.as_of);
        assert!(
            differences.is_empty(),
            "comparison {number}, {how:?} as of {as_of}: {} differences\n{}",
            differences.len(),
            differences.join("\n")
        );
        self.judged.compare(dice, state, &look.held);
        self.comparisons += 1;
        self.reloads += usize::from(look.how == How::Load && before.is_some());
        self.changes += usize::from(matches!(look.how, How::Changes { rows: 1.. }));
        self.moves += usize::from(before.is_some_and(|before| !state.differs_from(&before.held).is_empty()));
    }
}

/// Prints how to reproduce a failure.
struct Seed(u64);

impl Seed {
    fn chosen() -> Self {
        Self(number("TENANTGATE_MODEL_SEED").unwrap_or(SEED))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tell(&format!("model: TENANTGATE_MODEL_SEED={} failed", self.0));
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var_os(variable)?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{variable} must be a number, not {}", text.display())))
}

fn start_sync(witness: Witness, replica: Replica) -> tokio::task::AbortHandle {
    // The witness decides when to poll; the tick only has to be later.
    let options = SyncOptions { interval: Duration::from_hours(1), ..SyncOptions::default() };
    let sync = Sync::new(replica, Arc::new(witness), Arc::new(SystemClock), options);
    runtime().spawn(sync.run()).abort_handle()
}

#[test]
fn on_postgres_every_poll_equals_the_database_at_its_instant() {
    let databases = (Database::empty(Backend::Postgres), Database::empty(Backend::Postgres));
    let (Some(database), Some(elsewhere)) = databases else { return };
    let seed = Seed::chosen();
    let at_least = Duration::from_secs(number("TENANTGATE_MODEL_SECONDS").unwrap_or(0));
    let store: Arc<dyn Store> = Arc::new(PostgresStore::new(database.url()).unwrap());
    wait(store.migrate()).unwrap();
    database.sql(history::SETUP);
    database.sql(writers::ANCHOR);
    let (start, mut tally) = (Instant::now(), Tally::default());
    for round in 0.. {
        let places = Places { written: database.url(), read: database.url(), elsewhere: elsewhere.url() };
        wait(play(&store, &places, &seed, round, &mut tally));
        if tally.comparisons >= COMPARISONS && start.elapsed() >= at_least {
            break;
        }
    }
    tell(&format!("model: Postgres, seed {}, {:?}: {tally:?}, no difference", seed.0, start.elapsed()));
    assert!(tally.moves > tally.comparisons / 4, "too few polls found changes: {tally:?}");
    assert!(tally.reloads > 0 && tally.pruned > 0 && tally.rolled_back > 0, "{tally:?}");
    assert!(tally.committed > tally.refused, "the writers conflicted: {tally:?}");
    tally.judged.covers_all_but(&["scope", "ok, rule_shadow true"]);
}

/// The same with writers at the publisher, and a replica on a subscriber of logical replication.
#[test]
fn on_a_subscriber_every_poll_equals_the_database_at_its_instant() {
    let (Some(publisher), Some(elsewhere)) = (Cluster::publisher(), Database::empty(Backend::Postgres))
    else {
        return;
    };
    publisher.admin("CREATE DATABASE own");
    let origin = Database::at(Backend::Postgres, &publisher.url("own"));
    let database = Database::empty(Backend::Postgres).expect("the cluster exists");
    let store: Arc<dyn Store> = Arc::new(PostgresStore::new(database.url()).unwrap());
    origin.cli(&["migrate", "--publication"]).ok();
    wait(store.migrate()).unwrap();
    database.sql(history::SETUP);
    origin.sql(writers::ANCHOR);
    subscribe(&database, &origin, "model", "tenantgate");
    let (seed, mut tally) = (Seed::chosen(), Tally::default());
    let places = Places { written: origin.url(), read: database.url(), elsewhere: elsewhere.url() };
    for round in 0..2 {
        wait(play(&store, &places, &seed, round, &mut tally));
    }
    database.sql("DROP SUBSCRIPTION model");
    tell(&format!("model: a subscriber, seed {}: {tally:?}, no difference", seed.0));
    assert!(tally.changes > 0 && tally.pruned > 0 && tally.rolled_back > 0, "{tally:?}");
}

/// The databases for the writers, for the replica, and for the transaction that stays open.
struct Places<'a> {
    written: &'a str,
    read: &'a str,
    elsewhere: &'a str,
}

impl Places<'_> {
    /// Waits until all writes are readable, without writers.
    async fn settle(&self) {
        const ROWS: &str =
            "SELECT coalesce((SELECT md5(string_agg(k::text, ',' ORDER BY id)) FROM api_keys k), '')
            || coalesce((SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM tenants t), '')
            || coalesce((SELECT md5(string_agg(p::text, ',' ORDER BY name)) FROM tenantgate_plan p), '')
            || coalesce((SELECT md5(string_agg(r::text, ',' ORDER BY id)) FROM tenantgate_route r), '')";
        let (mut there, mut here) = (connect(self.written).await, connect(self.read).await);
        let start = Instant::now();
        loop {
            let rows = |session| sqlx::query_scalar::<_, String>(ROWS).fetch_one(session);
            let (written, read) =
                (rows(&mut there).await.expect("rows"), rows(&mut here).await.expect("rows"));
            if written == read {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the subscriber does not catch up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Runs a round: writers write, a replica polls, and then its polls are compared.
async fn play(store: &Arc<dyn Store>, places: &Places<'_>, Seed(seed): &Seed, round: u64, tally: &mut Tally) {
    places.settle().await;
    let mut session = connect(places.read).await;
    run(&mut session, history::BEGIN_ANEW).await.expect("nobody writes");
    let stop = Stop::default();
    let (written, url) = (|| places.written.to_owned(), || places.read.to_owned());
    let dice = |player| Dice::of(*seed, round, player);
    let mut crowd = JoinSet::new();
    for writer in 0..WRITERS {
        crowd.spawn(writers::write(written(), dice(writer), stop.clone()));
    }
    crowd.spawn(writers::prune(url(), dice(100), stop.clone()));
    crowd.spawn(writers::audit(url(), dice(101), stop.clone()));
    crowd.spawn(writers::linger(places.elsewhere.to_owned(), dice(102), stop.clone()));

    let (replica, looks) = (Replica::default(), Arc::default());
    let witness = Witness::of(Arc::clone(store), &replica, &looks, Pace::Random(dice(103)));
    let sync = start_sync(witness, replica.clone());
    looks.reach(LOOKS_IN_A_ROUND).await;
    stop.now();
    while let Some(ended) = crowd.join_next().await {
        tally.add(&ended.expect("nobody panics"));
    }
    places.settle().await;
    // One poll may have been in progress when the last writer ended, so the next one is awaited.
    looks.reach(looks.count() + 2).await;
    sync.abort();

    let history = History::read(&mut session).await;
    let (mut before, mut dice) = (None, dice(104));
    let taken = looks.take();
    for look in &taken {
        let state = history.at(&history::Instant::parse(&look.as_of));
        tally.compare(&state, look, before, &mut dice);
        before = Some(look);
    }
    assert_eq!(replica.stats().went_back.value(), 0, "the database never lost a change");
}

/// The number of transactions on SQLite, each with a poll in its middle and one after it.
const TRANSACTIONS: usize = 400;

#[test]
fn on_sqlite_every_poll_equals_the_database_at_its_instant() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    let seed = Seed::chosen();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::new(database.url()).unwrap());
    wait(store.migrate()).unwrap();
    database.sql(writers::ANCHOR);
    let (mut writer, mut reader) = (database.session(), database.session());
    let (replica, looks, permits) = (Replica::default(), Arc::default(), Arc::new(Semaphore::new(0)));
    let witness = Witness::of(store, &replica, &looks, Pace::Told(Arc::clone(&permits)));
    let sync = start_sync(witness, replica);
    let (mut dice, mut tally) = (Dice::of(seed.0, 0, 0), Tally::default());
    let (mut before, mut asking) = (None, Dice::of(seed.0, 0, 1));
    wait(looks.reach(1));
    for _ in 0..TRANSACTIONS {
        let commit = begin(&mut writer, &mut dice, &mut tally);
        for end in [None, Some(commit)] {
            tally.pruned += end.map_or(0, |end| finish(&mut writer, &mut dice, end, &mut tally));
            let next = looks.count() + 1;
            permits.add_permits(1);
            wait(looks.reach(next));
            let look = looks.take().pop().expect("just taken");
            tally.compare(&sqlite::state(&mut reader), &look, before.as_ref(), &mut asking);
            before = Some(look);
        }
    }
    sync.abort();
    tell(&format!("model: SQLite, seed {}: {tally:?}, no difference", seed.0));
    assert!(tally.moves > TRANSACTIONS / 4, "too few polls found changes: {tally:?}");
    assert!(tally.reloads > 0 && tally.pruned > 0 && tally.rolled_back > 0, "{tally:?}");
    tally.judged.covers_all_but(&["damaged_route"]);
}

/// Starts a transaction. Returns whether to commit it.
fn begin(writer: &mut Connection, dice: &mut Dice, tally: &mut Tally) -> bool {
    writer.sql("BEGIN IMMEDIATE");
    for mut statement in writers::statements(dice) {
        if dice.one_in(3) {
            statement = statement.replace(" ON CONFLICT DO NOTHING", "");
            statement = statement.replace("INSERT INTO", "INSERT OR REPLACE INTO");
            statement = statement.replace("UPDATE api_keys", "UPDATE OR REPLACE api_keys");
            statement = statement.replace("UPDATE tenants", "UPDATE OR REPLACE tenants");
        }
        // A rejected statement changes nothing, and the others of its transaction stay.
        tally.refused += u64::from(writer.run(&statement).is_err());
    }
    !dice.one_in(5)
}

/// Ends a transaction, and sometimes prunes changes. Returns their number.
fn finish(writer: &mut Connection, dice: &mut Dice, commit: bool, tally: &mut Tally) -> u64 {
    writer.sql(if commit { "COMMIT" } else { "ROLLBACK" });
    tally.committed += u64::from(commit);
    tally.rolled_back += u64::from(!commit);
    let prune = "DELETE FROM tenantgate_change WHERE id % 3 <> 0";
    if dice.one_in(9) { writer.run(prune).expect("nobody else writes") } else { 0 }
}
