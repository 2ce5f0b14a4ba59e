//! Faults by writers: late commits, mass changes, rollbacks, and writes without notification.

use std::time::Duration;

use super::checker::lateness;
use super::history::Sort;
use super::play::{Plan, insert, set};
use super::stage::{Stage, on_each_stage};
use crate::support::world::quick_hash;
use crate::support::{Backend, World, eventually, tell};

on_each_stage!(
    notifications_are_lost,
    a_transaction_lingers_in_another_database_of_the_cluster,
    a_transaction_commits_late,
    revocations_are_rolled_back,
    tenants_are_suspended_and_deleted_with_all_they_have,
    many_keys_are_revoked_at_once,
    tables_are_to_be_truncated,
    rows_are_damaged,
    a_look_waits_while_a_key_is_about_to_expire,
);

/// Removes the notification from the function of a trigger.
const MUTE: &str = "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('tenantgate_key_changed'::regproc),
    'PERFORM pg_notify(''tenantgate_change'', '''');', ''); END $$";

/// The next poll follows after at most 50 ms; the rest is for a loaded machine.
const A_TICK: Duration = Duration::from_millis(500);

fn notifications_are_lost(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    play.sql_here(MUTE);
    let mute =
        "SELECT (prosrc NOT LIKE '%pg_notify%')::text FROM pg_proc WHERE proname = 'tenantgate_key_changed'";
    assert_eq!(stage.here().text(mute).as_deref(), Some("true"));
    for _ in 0..5 {
        play.revokes_and_sees("victim");
        play.restore("victim");
        play.shows("victim", "200 ok");
    }
    let history = play.history.clone();
    let log = play.ends("no notifications");
    let late: Vec<Duration> =
        history.transactions.iter().map(|change| lateness(&history, &log, change)).collect();
    assert!(late.iter().all(|late| *late <= A_TICK), "within a tick: {late:?}");
}

fn a_transaction_lingers_in_another_database_of_the_cluster(stage: &Stage) {
    let elsewhere = stage.here().neighbour();
    let mut play = Plan::on(stage).begin();
    let mut lingering = elsewhere.session();
    lingering.sql("CREATE TABLE work (n int); BEGIN; INSERT INTO work VALUES (1)");
    for _ in 0..3 {
        play.revokes_and_sees("victim");
        play.restore("victim");
        play.shows("victim", "200 ok");
    }
    lingering.sql("COMMIT");
    play.ends("a transaction that lingers elsewhere");
}

fn a_transaction_commits_late(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    let mut late = stage.origin().session();
    late.sql(&format!("BEGIN; {}", set("victim", "revoked_at = now()")));
    // Other transactions commit meanwhile, so that its id is old when it commits.
    for _ in 0..4 {
        play.revokes_and_sees("second");
        play.restore("second");
        play.shows("second", "200 ok");
    }
    play.goes_on_for(Duration::from_secs(1));
    play.commit_in(&mut late, &[("victim", "401 revoked")]);
    play.shows("victim", "401 revoked");
    play.ends("a late commit");
}

fn revocations_are_rolled_back(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    let revoke = |key| set(key, "revoked_at = now()");
    for _ in 0..10 {
        play.sql(&format!("BEGIN; {}; ROLLBACK", revoke("steady")));
        play.sql(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; COMMIT", revoke("steady2")));
        let one_of_two =
            format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT", revoke("steady"), revoke("victim"));
        play.commit(&one_of_two, &[("victim", "401 revoked")]);
        play.restore("victim");
    }
    play.shows("victim", "200 ok");
    play.ends("rolled back");
}

fn tenants_are_suspended_and_deleted_with_all_they_have(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    for status in ["suspended", "deleted", "pending_provisioning"] {
        play.fickle_becomes(status, "403 tenant_inactive");
        play.shows("fickle2", "403 tenant_inactive");
        play.fickle_becomes("active", "200 ok");
        play.shows("fickle", "200 ok");
    }
    play.commit("DELETE FROM tenants WHERE db_schema_name = 'doomed'", &[("doomed", "401 unknown")]);
    play.shows("doomed", "401 unknown");
    play.commit(&insert("late", "calm"), &[("late", "200 ok")]);
    play.shows("late", "200 ok");
    play.ends("tenants");
}

/// The limit for a hundred thousand changed rows in a release build.
const MASS: Duration = Duration::from_secs(1);

/// How long they may take here. A build for tests on a busy machine is slower, but then a first load of the same rows
/// is slower as well: a few of those.
fn mass(first_load: Duration) -> Duration {
    if cfg!(debug_assertions) { (5 * MASS).max(4 * first_load) } else { MASS }
}

/// Unknown keys, each with its own hash.
fn many_keys(number: u32) -> String {
    let hash = quick_hash("nobody has it");
    format!(
        "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id)
         SELECT left('{hash}', 29) || left(md5(n::text), 30) || 'u', 'llmk_mass-' || n, t.id
         FROM generate_series(1, {number}) n, tenants t WHERE t.db_schema_name = 'calm'"
    )
}

/// A hundred thousand keys, and fewer in a region: a subscriber takes rows one by one, each with its triggers.
fn many_keys_are_revoked_at_once(stage: &Stage) {
    let on_stage = Plan::on(stage);
    let number = if matches!(stage, Stage::Region(_)) { 10_000 } else { 100_000 };
    stage.origin().sql(&many_keys(number));
    let starting = std::time::Instant::now();
    let mut play = on_stage.begin();
    let most = mass(starting.elapsed());
    // The poll that reads them takes long: the data may become stale, without other effects.
    let mass = "UPDATE api_keys SET revoked_at = now()
        WHERE key_prefix LIKE 'llmk_mass-%' OR key_prefix IN ('llmk_play-victim', 'llmk_play-second')";
    play.fault(Sort::Doubtful, |play| {
        play.commit(mass, &[("victim", "401 revoked"), ("second", "401 revoked")]);
    });
    play.shows("victim", "401 revoked");
    play.shows("second", "401 revoked");
    play.mend(|_| ());
    assert!(play.server.metric(&["replica_damaged_rows"]) < 1.0, "all of them are keys");
    let history = play.history.clone();
    let log = play.ends("many keys revoked at once");
    let late = lateness(&history, &log, &history.transactions[0]);
    tell(&format!("faults: {number} keys revoked in one commit, in force {} ms after it", late.as_millis()));
    assert!(late <= most, "in force after {late:?}, with {most:?} allowed");
}

fn tables_are_to_be_truncated(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    for sql in ["TRUNCATE api_keys", "TRUNCATE tenants CASCADE", "TRUNCATE tenants, api_keys"] {
        for database in [stage.here(), stage.origin()] {
            let said = database.refuses(sql);
            assert!(said.contains("is refused"), "{sql}: {said}");
        }
    }
    play.revokes_and_sees("victim");
    play.ends("refused TRUNCATEs");
}

fn rows_are_damaged(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    let prefix = "WHERE key_prefix = 'llmk_play-victim'";
    let hash = stage.origin().text(&format!("SELECT hashed_key FROM api_keys {prefix}")).expect("never null");
    for damaged in ["$2x$04$", "$2b$31$", "é"] {
        play.commit(&set("victim", &format!("hashed_key = '{damaged}'")), &[("victim", "503 unavailable")]);
        play.shows("victim", "503 unavailable");
        assert!(play.server.metric(&["replica_damaged_rows"]) > 0.0);
        play.commit(&set("victim", &format!("hashed_key = '{hash}'")), &[("victim", "200 ok")]);
        play.shows("victim", "200 ok");
    }
    let schema = |from: &str, to: &str| {
        format!("UPDATE tenants SET db_schema_name = '{to}' WHERE db_schema_name = '{from}'")
    };
    let both = |row| [("fickle", row), ("fickle2", row)];
    play.commit(&schema("fickle", "No schema"), &both("503 unavailable"));
    play.shows("fickle", "503 unavailable");
    play.commit(&schema("No schema", "fickle"), &both("200 ok"));
    play.shows("fickle", "200 ok");
    play.says("WARN", "damaged row of api_keys");
    play.says("WARN", "damaged row of tenants");
    play.ends("damaged rows");
}

/// A lock like that of a migration: polls wait, and known keys continue to work.
#[test]
fn a_table_is_locked() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut play = Plan::in_database(&world.db).nobody_expires().begin();
    let mut migration = world.db.session();
    play.fault(Sort::Doubtful, |_| migration.sql("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"));
    play.shows("nobody", "503 unavailable");
    play.goes_on_for(Duration::from_secs(2));
    migration.sql(&set("victim", "revoked_at = now()"));
    play.mend(|play| play.commit_in(&mut migration, &[("victim", "401 revoked")]));
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.ends("a locked table");
}

/// A poll that waited for a lock must not count the wait as a difference of the clocks.
fn a_look_waits_while_a_key_is_about_to_expire(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    let mut migration = stage.here().session();
    let expires_soon = || {
        let left = "SELECT (expires_at - clock_timestamp() < interval '2.2 s')::text FROM api_keys
            WHERE key_prefix = 'llmk_play-brief'";
        stage.here().text(left).as_deref() == Some("true")
    };
    eventually("there are two seconds left", Duration::from_secs(5), || {
        if expires_soon() { Ok(()) } else { Err(()) }
    });
    play.fault(Sort::Doubtful, |_| migration.sql("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"));
    play.goes_on_for(Duration::from_millis(1_500));
    play.mend(|_| migration.sql("COMMIT"));
    play.shows("brief", "401 expired");
    play.ends("a key that expires just after a look that waited");
}
