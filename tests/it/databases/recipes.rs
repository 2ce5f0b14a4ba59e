//! The recipes of `docs/guides/moving-databases.md` that are about a whole cluster, under a running server.

use super::moved::{own, server_through};
use super::{KEY, count};
use crate::support::link::Link;
use crate::support::postgres::Cluster;
use crate::support::{Ask, Backend, Database, PATIENCE, eventually};

fn own_in(cluster: &Cluster) -> Database {
    Database::at(Backend::Postgres, &cluster.url("own"))
}

/// Returns the server's counters of moves, alarms and loads.
fn seen(server: &crate::support::Server) -> [u64; 3] {
    [
        "tenantgate_database_moves_total",
        "tenantgate_replica_went_back_total",
        "tenantgate_replica_loads_total",
    ]
    .map(|name| count(server, name))
}

#[test]
fn a_cluster_that_is_restored_to_an_instant_is_followed_with_the_alarm() {
    let Some(cluster) = Cluster::private() else { return };
    let database = own(&cluster);
    let backup = cluster.back_up();
    let link = Link::to(cluster.port());
    let server = server_through(&link, &cluster);
    let key = Ask::with_key(KEY);
    // After the base backup, before the instant.
    database.cli(&["tenant", "create", "Late"]).ok();
    let instant = database.text("SELECT clock_timestamp()::text").expect("an instant");
    database.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
    assert_eq!(server.row(key.clone()), "401 revoked");
    cluster.archives_everything();
    link.cut();
    cluster.stop();
    let restored = backup.restored_to(&instant);
    link.lead_to(restored.port());
    server.row_becomes("200 ok", PATIENCE, key.clone());
    // It is the same cluster at an earlier time: the database has not moved, but a change is lost.
    assert_eq!(seen(&server), [0, 1, 2], "{}", server.stderr.text());
    assert!(server.stderr.text().contains("the database went back"));
    let there = own_in(&restored);
    assert_eq!(there.json(&["tenant", "show", "tenant_late"])["status"], "active");
    there.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
    assert_eq!(server.row(key), "401 revoked");
    let said = there.cli(&["doctor"]);
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert_eq!(there.cli(&["audit", "verify"]).code, Some(0));
}

#[test]
fn a_cluster_that_is_upgraded_is_followed_without_an_alarm() {
    let Some(cluster) = Cluster::oldest() else { return };
    let database = own(&cluster);
    cluster.use_up_transactions(2_000);
    let link = Link::to(cluster.port());
    let server = server_through(&link, &cluster);
    let key = Ask::with_key(KEY);
    assert_eq!(server.row(key.clone()), "200 ok");
    database.cli(&["tenant", "create", "Late"]).ok();
    link.cut();
    let upgraded = cluster.upgraded();
    link.lead_to(upgraded.port());
    eventually("it is followed", PATIENCE, || match seen(&server) {
        [1, 0, 2] => Ok(()),
        other => Err((other, server.stderr.text())),
    });
    assert_eq!(server.row(key.clone()), "200 ok");
    let there = own_in(&upgraded);
    there.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
    assert_eq!(server.row(key), "401 revoked");
    let said = there.cli(&["doctor"]);
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert!(there.json(&["migrate"])["mended"].is_null(), "nothing was lost");
    assert_eq!(there.cli(&["audit", "verify"]).code, Some(0));
}
