//! Faults of Postgres itself: it dies, restarts, or is replaced by another server.

use std::time::Duration;

use super::history::Sort;
use super::play::{Plan, Play, cast_sql, set};
use crate::support::postgres::Cluster;
use crate::support::{Backend, Database, PATIENCE, World, eventually};

/// A private cluster with an empty database.
fn own() -> Option<(Cluster, Database)> {
    let cluster = Cluster::private()?;
    cluster.admin("CREATE DATABASE own");
    let database = own_in(&cluster);
    database.cli(&["migrate"]).ok();
    Some((cluster, database))
}

fn own_in(cluster: &Cluster) -> Database {
    Database::at(Backend::Postgres, &cluster.url("own"))
}

/// The cluster stops right after a revocation, and comes back in this way.
fn goes_and_comes(play: &mut Play, database: &Database, go: impl FnOnce(), come: impl FnOnce()) {
    play.revoke("victim");
    play.fault(Sort::Cut, |_| go());
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    play.mend(|_| come());
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.acts_on(database);
    play.fickle_becomes("suspended", "403 tenant_inactive");
    play.shows("fickle", "403 tenant_inactive");
}

#[test]
fn postgres_is_killed_and_started_again() {
    let Some((cluster, database)) = own() else { return };
    let mut play = Plan::on(&database).begin();
    goes_and_comes(&mut play, &database, || cluster.kill(), || assert!(cluster.start()));
    play.ends("Postgres killed");
}

#[test]
fn postgres_is_restarted_gracefully() {
    let Some((cluster, database)) = own() else { return };
    let mut play = Plan::on(&database).begin();
    goes_and_comes(&mut play, &database, || cluster.stop(), || assert!(cluster.start()));
    play.ends("Postgres restarted");
}

/// Waits until the standby has everything from the primary.
fn catches_up(primary: &Database, standby: &Database) {
    let end = primary.text("SELECT pg_current_wal_lsn()::text").expect("a position");
    let there = format!("SELECT (pg_last_wal_replay_lsn() >= '{end}')::text");
    eventually("the standby has caught up", PATIENCE, || match standby.text(&there) {
        Some(yes) if yes == "true" => Ok(()),
        other => Err(other),
    });
}

#[test]
fn a_complete_standby_is_promoted() {
    let Some((primary, database)) = own() else { return };
    let standby = primary.standby();
    let mut play = Plan::on(&database).begin();
    play.revokes_and_sees("victim");
    catches_up(&database, &own_in(&standby));
    play.fault(Sort::Cut, |_| primary.kill());
    play.link.lead_to(standby.port());
    play.says("ERROR", "the database is a standby");
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    assert!(play.server.http("/readyz").body.contains("stale"), "not ready on a standby");
    play.mend(|_| standby.admin("SELECT pg_promote()"));
    play.shows("nobody", "401 unknown");
    play.shows("victim", "401 revoked");
    play.acts_on(&own_in(&standby));
    play.restore("victim");
    play.shows("victim", "200 ok");
    play.revokes_and_sees("second");
    assert!(play.server.metric(&["replica_went_back_total"]) < 1.0, "nothing was lost, nothing is alarming");
    play.ends("failover with everything");
}

/// The standby loses its primary.
fn falls_behind(standby: &Cluster) {
    standby.admin("ALTER SYSTEM SET primary_conninfo = ''");
    standby.admin("SELECT pg_reload_conf()");
    eventually("the standby has no primary", PATIENCE, || {
        let followed = own_in(standby).texts("SELECT status FROM pg_stat_wal_receiver");
        if followed.is_empty() { Ok(()) } else { Err(followed) }
    });
}

#[test]
fn a_standby_without_the_last_revocation_is_promoted() {
    let Some((primary, database)) = own() else { return };
    let standby = primary.standby();
    let mut play = Plan::on(&database).begin();
    play.revokes_and_sees("second");
    catches_up(&database, &own_in(&standby));
    falls_behind(&standby);
    play.revokes_and_sees("victim");
    play.fault(Sort::Cut, |_| primary.kill());
    // The new primary is now the database, and it does not have the revocation.
    let (takes_over, ()) = play.act(|play| {
        standby.admin("SELECT pg_promote()");
        play.link.lead_to(standby.port());
    });
    play.history.outage_ends(takes_over);
    play.history.commit(takes_over, &[("victim", "200 ok")]);
    play.shows("victim", "200 ok");
    play.says("ERROR", "the database went back");
    let alarms = play.server.metric(&["replica_went_back_total"]);
    assert!((0.5..1.5).contains(&alarms), "one alarm is expected, not {alarms}");
    play.shows("second", "401 revoked");
    play.acts_on(&own_in(&standby));
    play.revokes_and_sees("victim");
    play.ends("failover without the last revocation");
}

#[test]
fn the_address_leads_to_an_empty_and_to_a_foreign_database() {
    let (Some(world), Some(strangers)) = (World::on(Backend::Postgres), Cluster::private()) else { return };
    let mut play = Plan::on(&world.db).begin();
    let home = world.db.port();
    strangers.admin(&format!("CREATE DATABASE {}", world.db.name()));
    play.cut_off(|link| link.lead_to(strangers.port()));
    play.revoke("victim");
    play.says("ERROR", "the database schema is at version 0");
    play.shows("nobody", "503 unavailable");
    // The foreign database has keys with the same prefixes: revoked ones are valid here, and the reverse.
    let theirs = Database::at(Backend::Postgres, &strangers.url(world.db.name()));
    theirs.cli(&["migrate"]).ok();
    theirs.sql(&format!(
        "{}; {}; {}",
        cast_sql(),
        set("steady", "revoked_at = now()"),
        set("revoked", "revoked_at = NULL")
    ));
    play.says("ERROR", "the address leads to another database");
    play.shows("steady", "200 ok");
    play.goes_on_for(Duration::from_secs(1));
    play.mend(|play| play.link.lead_to(home));
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.ends("another database");
}
