//! Changes that are not in the change log: made while a trigger was missing, or by a restore under a running server.

use super::moved::own;
use super::{KEY, count};
use crate::support::postgres::Cluster;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually};

/// Waits until the server has polled often enough to have noticed everything that a poll can notice.
#[track_caller]
fn has_polled(server: &Server) {
    let polls = || server.metric(&["tenantgate_replica_polls_total"]);
    let before = polls();
    eventually("it polls", PATIENCE, || if polls() > before + 21.0 { Ok(()) } else { Err(polls()) });
}

#[test]
fn a_change_that_a_trigger_missed_is_loaded_once_migrate_mends_it() {
    for spoil in [
        "ALTER TABLE api_keys DISABLE TRIGGER tenantgate_key_updated",
        "ALTER TABLE api_keys DISABLE TRIGGER ALL",
        "DROP TRIGGER tenantgate_key_updated ON api_keys",
        "CREATE OR REPLACE FUNCTION tenantgate_key_changed() RETURNS trigger LANGUAGE plpgsql
         AS 'BEGIN RETURN NULL; END'",
    ] {
        let Some(world) = World::on(Backend::Postgres) else { return };
        misses_a_change(&world, spoil);
    }
    misses_a_change(&World::somewhere(), "DROP TRIGGER tenantgate_key_updated");
}

fn misses_a_change(world: &World, spoil: &str) {
    let server = Server::on(&world.db).start();
    let key = Ask::with_key(&world.live.text);
    world.db.sql(spoil);
    has_polled(&server);
    world.db.sql("UPDATE api_keys SET revoked_at = CURRENT_TIMESTAMP");
    has_polled(&server);
    assert_eq!(server.row(key.clone()), "200 ok", "{spoil}: nothing says that the row has changed");
    assert!(!world.db.json(&["migrate"])["mended"].is_null(), "{spoil}");
    server.row_becomes("401 revoked", PATIENCE, key);
    assert_eq!(count(&server, "tenantgate_replica_lost_sessions_total"), 0, "{spoil}");
}

#[test]
fn a_table_that_another_one_replaced_is_loaded() {
    for (backend, swap) in [
        (
            Backend::Postgres,
            "BEGIN; CREATE TABLE new (LIKE api_keys INCLUDING ALL); INSERT INTO new SELECT * FROM api_keys;
             UPDATE new SET revoked_at = now(); ALTER TABLE api_keys RENAME TO old;
             ALTER TABLE new RENAME TO api_keys; COMMIT",
        ),
        (
            Backend::Sqlite,
            "PRAGMA legacy_alter_table = on; BEGIN; CREATE TABLE new AS SELECT * FROM api_keys; UPDATE new SET revoked_at = CURRENT_TIMESTAMP;
             DROP TABLE api_keys; ALTER TABLE new RENAME TO api_keys; COMMIT",
        ),
        (
            Backend::Postgres,
            "BEGIN; ALTER TABLE api_keys DISABLE TRIGGER tenantgate_key_updated; UPDATE api_keys SET revoked_at = now();
             ALTER TABLE api_keys ENABLE ALWAYS TRIGGER tenantgate_key_updated; COMMIT",
        ),
    ] {
        let Some(world) = World::on(backend) else { return };
        let server = Server::on(&world.db).start();
        let key = Ask::with_key(&world.live.text);
        assert_eq!(server.row(key.clone()), "200 ok");
        world.db.sql(swap);
        server.row_becomes("401 revoked", PATIENCE, key);
    }
}

/// What precedes a dump that is restored into a database that exists.
const EMPTY: &str = "DROP SCHEMA public CASCADE; CREATE SCHEMA public;\n";

/// The dump of a database in which [`KEY`] is revoked and there is no other key; the key is active again afterwards.
fn dump_with_the_key_revoked(cluster: &Cluster, database: &Database, args: &[&str]) -> String {
    database.sql("UPDATE api_keys SET revoked_at = now()");
    let dump = cluster.dump("own", args);
    database.sql("UPDATE api_keys SET revoked_at = NULL");
    dump
}

#[test]
fn a_restore_in_one_transaction_under_a_running_server_is_loaded_with_the_alarm() {
    let Some(cluster) = Cluster::private() else { return };
    let database = own(&cluster);
    let dump = dump_with_the_key_revoked(&cluster, &database, &[]);
    let server = Server::on(&database).start();
    let late = database.json(&["key", "create", "tenant_own"]);
    let late = Ask::with_key(late["key"].as_str().unwrap());
    server.row_becomes("200 ok", PATIENCE, late.clone());
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    cluster.restore_over("own", &format!("BEGIN; {EMPTY}{dump}\nCOMMIT;"));
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(KEY));
    assert_eq!(server.row(late), "401 unknown");
    let log = server.stderr.text();
    assert!(
        log.contains("the tables were replaced (a restore?)") && log.contains("the database went back"),
        "{log}"
    );
    assert_eq!(count(&server, "tenantgate_replica_went_back_total"), 1, "{log}");
    // And it is followed.
    database.sql("UPDATE api_keys SET revoked_at = NULL");
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(KEY));
}

#[test]
fn a_quiet_database_that_goes_back_raises_the_alarm() {
    let Some(cluster) = Cluster::private() else { return };
    let database = own(&cluster);
    let dump = cluster.dump("own", &[]);
    let server = Server::on(&database).start();
    let key = Ask::with_key(KEY);
    database.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
    assert_eq!(server.row(key.clone()), "401 revoked");
    // The change log is empty again, an hour after the last change.
    database
        .sql("UPDATE tenantgate_change SET at = now() - interval '3h'; SELECT tenantgate_prune('1 hour')");
    assert_eq!(database.text("SELECT count(*)::text FROM tenantgate_change").as_deref(), Some("0"));
    has_polled(&server);
    cluster.restore_over("own", &format!("{EMPTY}{dump}"));
    server.row_becomes("200 ok", PATIENCE, key);
    let log = server.stderr.text();
    assert!(log.contains("(1 keys and tenants are active again)"), "{log}");
    assert_eq!(count(&server, "tenantgate_replica_went_back_total"), 1, "{log}");
}

/// A server that starts while the log is empty knows the newest change that was pruned.
#[test]
fn a_quiet_database_that_only_moves_raises_no_alarm() {
    let Some(cluster) = Cluster::private() else { return };
    let database = own(&cluster);
    database.cli(&["key", "revoke", "llmk_ours"]).ok();
    let full = cluster.dump("own", &[]);
    database
        .sql("UPDATE tenantgate_change SET at = now() - interval '3h'; SELECT tenantgate_prune('1 hour')");
    let pruned = cluster.dump("own", &[]);
    let server = Server::on(&database).start();
    for dump in [pruned, full] {
        let loads = count(&server, "tenantgate_replica_loads_total");
        cluster.restore_over("own", &format!("{EMPTY}{dump}"));
        eventually("it is loaded", PATIENCE, || match count(&server, "tenantgate_replica_loads_total") {
            now if now > loads => Ok(()),
            now => Err((now, server.stderr.text())),
        });
        has_polled(&server);
    }
    assert_eq!(server.row(Ask::with_key(KEY)), "401 revoked");
    assert_eq!(count(&server, "tenantgate_replica_went_back_total"), 0, "{}", server.stderr.text());
}
