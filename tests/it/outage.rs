//! Tests a database that disappears, appears late, or never exists.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::client::SERVICE;
use crate::support::link::Link;
use crate::support::postgres::Cluster;
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually};

fn nobody() -> Ask {
    Ask::with_key("llmk_nobody_12345678")
}

/// Returns the HTTP status and the field `status` of `/readyz`.
fn ready(server: &Server) -> (u16, String) {
    let page = server.http("/readyz");
    let said: Value = serde_json::from_str(&page.body).expect("JSON");
    (page.status, said["status"].as_str().expect("a status").to_owned())
}

#[track_caller]
fn ready_becomes(server: &Server, http: u16, status: &str) {
    eventually(&format!("/readyz has the status {status}"), PATIENCE, || match ready(server) {
        seen if seen == (http, status.to_owned()) => Ok(()),
        seen => Err(seen),
    });
}

#[track_caller]
fn health_becomes(server: &Server, wanted: ServingStatus) {
    for service in ["", SERVICE] {
        eventually(&format!("health of `{service}` is {wanted:?}"), PATIENCE, || {
            match server.client().health(service) {
                Ok(seen) if seen == wanted => Ok(()),
                seen => Err(seen),
            }
        });
    }
}

#[test]
fn known_keys_work_without_the_database_and_unknown_ones_get_503() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&world.db);
    let server = Server::on(&seen).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    link.cut();
    server.row_becomes("503 unavailable", PATIENCE, nobody());
    ready_becomes(&server, 200, "stale");
    health_becomes(&server, ServingStatus::Serving);
    let rows = [
        ("200 public", Ask::get("/docs")),
        ("401 missing", Ask::get("/v1")),
        ("401 malformed", Ask::with_key("!")),
        ("200 ok", Ask::with_key(&world.live.text)),
        ("200 ok", Ask::with_key(&world.other.text)),
        ("401 mismatch", Ask::with_key(&world.live.with_wrong_secret())),
        ("401 revoked", Ask::with_key(&world.revoked.text)),
        ("401 expired", Ask::with_key(&world.expired.text)),
        ("403 tenant_inactive", Ask::with_key(&world.of_sleepy.text)),
        ("503 unavailable", nobody()),
    ];
    for (wanted, ask) in rows {
        assert_eq!(server.row(ask.clone()), wanted, "{ask:?}");
    }
    // Changes during the outage apply once the database is back.
    world.db.json(&["key", "revoke", &world.live.id]);
    link.mend();
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&world.live.text));
    server.row_becomes("401 unknown", PATIENCE, nobody());
    ready_becomes(&server, 200, "ready");
}

#[test]
fn beyond_the_staleness_limit_every_key_gets_503() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&world.db);
    let server = Server::on(&seen).args(&["--max-staleness", "2s"]).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    link.cut();
    server.row_becomes("503 unavailable", PATIENCE, Ask::with_key(&world.live.text));
    health_becomes(&server, ServingStatus::NotServing);
    ready_becomes(&server, 503, "stale");
    let rows = [
        ("200 public", Ask::get("/docs")),
        ("401 missing", Ask::get("/v1")),
        ("401 malformed", Ask::with_key("!")),
        ("503 unavailable", nobody()),
        ("503 unavailable", Ask::with_key(&world.live.with_wrong_secret())),
        ("503 unavailable", Ask::with_key(&world.revoked.text)),
        ("503 unavailable", Ask::with_key(&world.expired.text)),
        ("503 unavailable", Ask::with_key(&world.of_sleepy.text)),
        ("503 unavailable", Ask::with_key(&world.live.text)),
    ];
    for (wanted, ask) in rows {
        assert_eq!(server.row(ask.clone()), wanted, "{ask:?}");
    }
    assert_eq!(server.http("/livez").status, 200, "it is live, because a restart would not help");
    link.mend();
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
    health_becomes(&server, ServingStatus::Serving);
    ready_becomes(&server, 200, "ready");
}

#[test]
fn a_network_that_drops_everything_is_detected() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&world.db);
    let server = Server::on(&seen).start();
    assert_eq!(server.row(nobody()), "401 unknown");
    link.freeze();
    server.row_becomes("503 unavailable", Duration::from_secs(5), nobody());
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    link.mend();
    server.row_becomes("401 unknown", PATIENCE, nobody());
}

#[test]
fn a_server_without_a_database_answers_requests_without_keys() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&world.db);
    link.slam();
    let server = Server::on(&seen).start_unready();
    let rows = [
        ("200 public", Ask::get("/docs")),
        ("401 missing", Ask::get("/v1")),
        ("401 malformed", Ask::with_key("!")),
        ("503 unavailable", nobody()),
        ("503 unavailable", Ask::with_key(&world.live.text)),
        ("503 unavailable", Ask::with_key(&world.live.with_wrong_secret())),
        ("503 unavailable", Ask::with_key(&world.revoked.text)),
        ("503 unavailable", Ask::with_key(&world.of_sleepy.text)),
    ];
    for (wanted, ask) in rows {
        assert_eq!(server.row(ask.clone()), wanted, "{ask:?}");
    }
    health_becomes(&server, ServingStatus::NotServing);
    assert_eq!(ready(&server), (503, "starting".to_owned()));
    assert_eq!(server.http("/livez").status, 200);
    eventually("the server keeps trying", PATIENCE, || match link.attempts() {
        attempts @ 0..5 => Err(attempts),
        _ => Ok(()),
    });
    let complaints =
        server.stderr.lines().into_iter().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    let complaints: Vec<String> = complaints.collect();
    let causes: BTreeSet<_> =
        complaints.iter().filter_map(|line| line.split_once("error=")).map(|(_, error)| error).collect();
    assert_eq!(complaints.len(), causes.len(), "one line for each cause, not for each try: {complaints:#?}");
    link.mend();
    server.wait_until_ready();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    health_becomes(&server, ServingStatus::Serving);
    ready_becomes(&server, 200, "ready");
}

#[test]
fn an_old_schema_found_later_ends_the_server() {
    let Some(database) = Database::empty(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&database);
    link.cut();
    let mut server = Server::on(&seen).start_unready();
    assert_eq!(server.row(nobody()), "503 unavailable");
    link.mend();
    assert_eq!(server.exit_code(PATIENCE), Some(1));
    let said = server.stderr.to_the_end(PATIENCE);
    assert!(said.contains("tenantgate migrate"), "{said}");
}

#[test]
fn a_restarted_postgres_is_recognized() {
    let Some(cluster) = Cluster::private() else { return };
    cluster.admin("CREATE DATABASE own");
    let database = Database::at(Backend::Postgres, &cluster.url("own"));
    database.cli(&["migrate"]).ok();
    let hash = quick_hash("llmk_own_OwnSecret0123");
    database.sql(&format!(
        "INSERT INTO tenants (name, db_schema_name) VALUES ('Own', 'own'); \
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) SELECT '{hash}', 'llmk_own', id FROM tenants"
    ));
    let key = Ask::with_key("llmk_own_OwnSecret0123");
    let server = Server::on(&database).start();
    assert_eq!(server.row(key.clone()), "200 ok");
    cluster.stop();
    server.row_becomes("503 unavailable", PATIENCE, nobody());
    assert_eq!(server.row(key.clone()), "200 ok");
    database.cli(&["key", "list"]).unavailable();
    assert!(cluster.start());
    server.row_becomes("401 unknown", PATIENCE, nobody());
    database.sql("UPDATE tenants SET status = 'suspended'");
    server.row_becomes("403 tenant_inactive", PATIENCE, key);
}
