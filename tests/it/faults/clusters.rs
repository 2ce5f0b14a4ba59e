//! Faults of Postgres itself: it dies, restarts, or is replaced by another server.

use std::time::Duration;

use super::history::Sort;
use super::play::{Plan, Play, cast_sql, set};
use super::stage::{Stage, Way, on_each_stage};
use crate::support::postgres::Cluster;
use crate::support::{Backend, Database, PATIENCE, Region, eventually};

on_each_stage!(the_address_leads_to_a_blank_database_and_to_a_strangers);

/// A private cluster with a database for the server, which may be a subscriber.
struct Own {
    /// Ends before its cluster.
    region: Option<Region>,
    database: Database,
    cluster: Cluster,
}

impl Own {
    fn one() -> Option<Self> {
        let cluster = Cluster::private()?;
        cluster.admin("CREATE DATABASE own");
        let database = own_in(&cluster);
        database.cli(&["migrate"]).ok();
        Some(Self { region: None, database, cluster })
    }

    fn region() -> Option<Self> {
        let cluster = Region::cluster_that_subscribes()?;
        cluster.admin("CREATE DATABASE own");
        let region = Region::between(Region::publisher()?, own_in(&cluster));
        Some(Self { region: Some(region), database: own_in(&cluster), cluster })
    }

    /// With acts in the database, or at its publisher.
    fn way(&self) -> Way<'_> {
        self.way_to(&self.database)
    }

    /// The same, once another database has taken its place.
    fn way_to<'a>(&'a self, database: &'a Database) -> Way<'a> {
        Way::between(self.region.as_ref().map_or(database, |region| &region.origin), database)
    }
}

fn own_in(cluster: &Cluster) -> Database {
    Database::at(Backend::Postgres, &cluster.url("own"))
}

/// The cluster stops right after a revocation, and comes back in this way.
fn goes_and_comes<'a>(play: &mut Play<'a>, own: &'a Own, go: impl FnOnce(), come: impl FnOnce()) {
    play.revoke("victim");
    play.fault(Sort::Cut, |_| go());
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    play.mend(|_| come());
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.acts_along(own.way());
    play.fickle_becomes("suspended", "403 tenant_inactive");
    play.shows("fickle", "403 tenant_inactive");
}

fn postgres_is_killed_and_started_again(own: &Own) {
    let mut play = Plan::along(own.way()).begin();
    goes_and_comes(&mut play, own, || own.cluster.kill(), || assert!(own.cluster.start()));
    play.ends("Postgres killed");
}

fn postgres_is_restarted_in_order(own: &Own) {
    let mut play = Plan::along(own.way()).begin();
    goes_and_comes(&mut play, own, || own.cluster.stop(), || assert!(own.cluster.start()));
    play.ends("Postgres restarted");
}

/// Makes two tests of each listed function, as `on_each_stage` does.
macro_rules! with_a_cluster_of_its_own {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use super::Own;

            #[test]
            fn in_one_database() {
                if let Some(own) = Own::one() {
                    super::$name(&own);
                }
            }

            #[test]
            fn in_a_region() {
                if let Some(own) = Own::region() {
                    super::$name(&own);
                }
            }
        }
    )+};
}

with_a_cluster_of_its_own!(
    postgres_is_killed_and_started_again,
    postgres_is_restarted_in_order,
    a_standby_takes_over_with_everything,
);

/// Waits until the standby has everything from the primary.
fn catches_up(primary: &Database, standby: &Database) {
    let end = primary.text("SELECT pg_current_wal_lsn()::text").expect("a position");
    let there = format!("SELECT (pg_last_wal_replay_lsn() >= '{end}')::text");
    eventually("the standby has caught up", PATIENCE, || match standby.text(&there) {
        Some(yes) if yes == "true" => Ok(()),
        other => Err(other),
    });
}

fn a_standby_takes_over_with_everything(own: &Own) {
    let standby = own.cluster.standby();
    let successor = own_in(&standby);
    let mut play = Plan::along(own.way()).begin();
    play.revokes_and_sees("victim");
    catches_up(&own.database, &successor);
    play.fault(Sort::Cut, |_| own.cluster.kill());
    play.link.lead_to(standby.port());
    play.says("ERROR", "the database is a standby");
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    assert!(play.server.http("/readyz").body.contains("stale"), "not ready on a standby");
    play.mend(|_| standby.admin("SELECT pg_promote()"));
    play.shows("nobody", "401 unknown");
    play.shows("victim", "401 revoked");
    play.acts_along(own.way_to(&successor));
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
fn a_standby_takes_over_without_the_last_revocation() {
    let Some(Own { database, cluster: primary, .. }) = Own::one() else { return };
    let standby = primary.standby();
    let successor = own_in(&standby);
    let mut play = Plan::in_database(&database).begin();
    play.revokes_and_sees("second");
    catches_up(&database, &successor);
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
    play.acts_on(&successor);
    play.revokes_and_sees("victim");
    play.ends("failover without the last revocation");
}

fn the_address_leads_to_a_blank_database_and_to_a_strangers(stage: &Stage) {
    let (name, home) = (stage.here().name(), stage.here().port());
    let strangers = Cluster::private().expect("there is another one");
    let mut play = Plan::on(stage).begin();
    strangers.admin(&format!("CREATE DATABASE {name}"));
    play.cut_off(|link| link.lead_to(strangers.port()));
    play.revoke("victim");
    play.says("ERROR", "the database schema is at version 0");
    play.shows("nobody", "503 unavailable");
    // The foreign database has keys with the same prefixes: revoked ones are valid here, and the reverse.
    let theirs = Database::at(Backend::Postgres, &strangers.url(name));
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
