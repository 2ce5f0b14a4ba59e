//! Faults between a publisher and its subscriber: the region goes on with what it has, and catches up.
//!
//! The server cannot tell a publisher that is away from a quiet day, so it stays fresh.

use std::time::Duration;

use super::history::Sort;
use super::play::{Plan, set};
use super::stage::Way;
use crate::support::link::Link;
use crate::support::postgres::Cluster;
use crate::support::{Backend, Database, Region};

/// Long enough for data to become stale, if it did.
const A_WHILE: Duration = Duration::from_millis(1_500);

/// A publisher that may be killed, with a region that is not touched by that.
fn with_a_publisher_of_its_own() -> Option<(Cluster, Region)> {
    let publisher = Cluster::publisher()?;
    publisher.admin("CREATE DATABASE own");
    let origin = Database::at(Backend::Postgres, &publisher.url("own"));
    Some((publisher, Region::between(origin, Region::subscriber()?)))
}

fn way(region: &Region) -> Way<'_> {
    Way::between(&region.origin, &region.copy)
}

#[test]
fn the_publisher_is_killed_and_started_again() {
    let Some((publisher, region)) = with_a_publisher_of_its_own() else { return };
    let mut play = Plan::along(way(&region)).begin();
    play.revokes_and_sees("second");
    publisher.kill();
    play.goes_on_for(A_WHILE);
    play.shows("nobody", "401 unknown");
    play.shows("steady", "200 ok");
    assert!(publisher.start());
    play.acts_along(way(&region));
    play.revokes_and_sees("victim");
    play.fickle_becomes("suspended", "403 tenant_inactive");
    play.shows("fickle", "403 tenant_inactive");
    play.ends("the publisher killed");
}

#[test]
fn the_publisher_is_lost_and_the_region_promoted() {
    let Some((publisher, region)) = with_a_publisher_of_its_own() else { return };
    let mut play = Plan::along(way(&region)).begin();
    play.revokes_and_sees("second");
    publisher.kill();
    play.goes_on_for(A_WHILE);
    region.promote();
    play.acts_on(&region.copy);
    play.revokes_and_sees("victim");
    region.copy.cli(&["tenant", "create", "New"]).ok();
    play.shows("second", "401 revoked");
    play.ends("the region promoted");
}

#[test]
fn the_network_between_them_swallows_every_byte() {
    let Some(origin) = Region::publisher() else { return };
    let (link, seen) = Link::before(&origin);
    let region = Region::between(seen, Region::subscriber().expect("as there is a publisher"));
    let mut play = Plan::along(Way::between(&origin, &region.copy)).begin();
    let (arrives, ()) = play.act(|play| {
        link.freeze();
        play.sql(&set("victim", "revoked_at = now()"));
        play.goes_on_for(A_WHILE);
        play.shows("victim", "200 ok");
        play.shows("nobody", "401 unknown");
        link.mend();
        play.arrives();
    });
    play.history.commit(arrives, &[("victim", "401 revoked")]);
    play.shows("victim", "401 revoked");
    play.ends("the network between publisher and subscriber");
}

#[test]
fn the_worker_of_the_subscription_is_ended() {
    let Some(region) = Region::shared() else { return };
    let mut play = Plan::along(way(&region)).begin();
    for _ in 0..3 {
        play.sql_here(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_subscription s JOIN pg_subscription ON oid = subid
             WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid IS NOT NULL",
        );
        play.revokes_and_sees("victim");
        play.restore("victim");
        play.shows("victim", "200 ok");
    }
    play.ends("the worker of the subscription ended");
}

/// A lock like that of a migration of the region: replication waits for it, and polls do.
#[test]
fn a_table_of_the_subscriber_is_locked() {
    let Some(region) = Region::shared() else { return };
    let mut play = Plan::along(way(&region)).nobody_expires().begin();
    let mut migration = region.copy.session();
    play.fault(Sort::Doubtful, |_| migration.sql("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"));
    let (arrives, ()) = play.act(|play| {
        play.sql(&set("victim", "revoked_at = now()"));
        play.shows("nobody", "503 unavailable");
        play.shows("steady", "200 ok");
        migration.sql("COMMIT");
        play.arrives();
    });
    play.history.outage_ends(arrives);
    play.history.commit(arrives, &[("victim", "401 revoked")]);
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.ends("a locked table of the subscriber");
}
