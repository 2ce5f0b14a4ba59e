//! Checks that a standby and a foreign database are recognized, whatever they answer.

use crate::support::link::Link;
use crate::support::postgres::Cluster;
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, eventually};

const OURS: &str = "llmk_ours_OurSecret0123";
const THEIRS: &str = "llmk_theirs_TheirSecret0123";

/// A cluster of its own with the database `own`, in which this key is valid.
fn cluster_with(key: &str) -> Option<Cluster> {
    let cluster = Cluster::private()?;
    cluster.admin("CREATE DATABASE own");
    let database = Database::at(Backend::Postgres, &cluster.url("own"));
    database.cli(&["migrate"]).ok();
    let (hash, prefix) = (quick_hash(key), key.rsplit_once('_').expect("a prefix").0);
    database.sql(&format!(
        "INSERT INTO tenants (name, db_schema_name) VALUES ('Own', 'own'); \
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) SELECT '{hash}', '{prefix}', id FROM tenants"
    ));
    Some(cluster)
}

#[test]
fn a_database_that_is_replaced_by_another_one_is_not_used() {
    let (Some(ours), Some(theirs)) = (cluster_with(OURS), cluster_with(THEIRS)) else { return };
    let link = Link::to(ours.port());
    let url = ours.url("own").replace(&format!(":{}/", ours.port()), &format!(":{}/", link.port()));
    let server = Server::on(&Database::at(Backend::Postgres, &url)).start();
    assert_eq!(server.row(Ask::with_key(OURS)), "200 ok");
    link.lead_to(theirs.port());
    // An unknown key gets 503 once the data is stale, and it stays stale.
    server.row_becomes("503 unavailable", PATIENCE, Ask::with_key(THEIRS));
    eventually("the log says that this is another database", PATIENCE, || {
        let log = server.stderr.lines();
        let said =
            log.iter().any(|line| line.contains("another database") || line.contains("system identifier"));
        if said { Ok(()) } else { Err(log) }
    });
    assert_eq!(server.row(Ask::with_key(THEIRS)), "503 unavailable", "never theirs");
    assert_eq!(server.row(Ask::with_key(OURS)), "200 ok", "and our key passes up to the staleness limit");
    link.lead_to(ours.port());
    server.row_becomes("401 unknown", PATIENCE, Ask::with_key(THEIRS));
    assert_eq!(server.row(Ask::with_key(OURS)), "200 ok");
}

#[test]
fn a_standby_is_not_used_until_it_is_promoted() {
    let Some(cluster) = cluster_with(OURS) else { return };
    cluster.stop();
    cluster.becomes_a_standby();
    assert!(cluster.start());
    let database = Database::at(Backend::Postgres, &cluster.url("own"));
    let server = Server::on(&database).start_unready();
    eventually("the log says that this is a standby", PATIENCE, || {
        let log = server.stderr.lines();
        if log.iter().any(|line| line.contains("standby")) { Ok(()) } else { Err(log) }
    });
    assert_eq!(server.row(Ask::with_key(OURS)), "503 unavailable");
    assert_eq!(server.http("/readyz").status, 503);
    cluster.admin("SELECT pg_promote()");
    server.wait_until_ready();
    assert_eq!(server.row(Ask::with_key(OURS)), "200 ok");
}

#[test]
fn after_a_failover_that_lost_a_change_the_new_primary_counts_and_an_alarm_is_raised() {
    let Some(primary) = cluster_with(OURS) else { return };
    let promoted = primary.twin();
    let link = Link::to(primary.port());
    let url = primary.url("own").replace(&format!(":{}/", primary.port()), &format!(":{}/", link.port()));
    let server = Server::on(&Database::at(Backend::Postgres, &url)).start();
    let key = Ask::with_key(OURS);
    assert_eq!(server.row(key.clone()), "200 ok");
    Database::at(Backend::Postgres, &primary.url("own")).sql("UPDATE api_keys SET revoked_at = now()");
    server.row_becomes("401 revoked", PATIENCE, key.clone());
    // The revocation was not on the standby when it was promoted.
    link.lead_to(promoted.port());
    server.row_becomes("200 ok", PATIENCE, key);
    eventually("an alarm in the log", PATIENCE, || {
        let log = server.stderr.lines();
        if log.iter().any(|line| line.contains("ERROR")) { Ok(()) } else { Err(log) }
    });
    let words = ["failover", "regress", "rewound", "lost_change", "went_back"];
    let raised: f64 = words.iter().map(|word| server.metric(&[word])).sum();
    assert!(raised > 0.0, "an alarm in the metrics: {}", server.http("/metrics").body);
}
