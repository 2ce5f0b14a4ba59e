//! Tests how soon changes by any SQL apply in a running server.

use std::time::{Duration, Instant};

use crate::support::ask::Ask;
use crate::support::database::Session;
use crate::support::world::{SLOW, quick_hash};
use crate::support::{Backend, PATIENCE, Server, World, eventually, runtime, tell, wait};

/// The promised delay on a healthy server with Postgres.
const PROMISED: Duration = Duration::from_millis(100);

/// The limit on a loaded test machine.
const AT_MOST: Duration = Duration::from_secs(1);

/// After a lost session.
const AFTER_A_LOSS: Duration = Duration::from_secs(2);

/// Commits the statements. Returns the time until the row is the wanted one.
#[track_caller]
fn takes_effect(server: &Server, session: &mut Session, sql: &str, ask: &Ask, wanted: &str) -> Duration {
    session.sql(sql);
    server.row_becomes(wanted, AT_MOST, ask.clone())
}

#[test]
fn every_change_by_sql_takes_effect() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let (live, acme) = (&world.live.prefix, &world.acme.id);
    let texts = ["llmk_new_NewSecret01", "llmk_live_OtherSecret02", "llmk_moved_MovedSecret03"];
    let [new_hash, other_hash, moved_hash] = texts.map(quick_hash);
    let [new, other, moved] = texts.map(Ask::with_key);
    let (key, back) = (Ask::with_key(&world.live.text), quick_hash(&world.live.text));
    let on_key = |set: &str| format!("UPDATE api_keys SET {set} WHERE key_prefix = '{live}'");
    let on_tenant = |set: &str| format!("UPDATE tenants SET {set} WHERE id = '{acme}'");
    let insert = format!(
        "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) VALUES ('{new_hash}', 'llmk_new', '{acme}')"
    );
    let changes: [(&str, String, &Ask, &str); 20] = [
        ("insert", insert, &new, "200 ok"),
        ("revoke", on_key("revoked_at = now()"), &key, "401 revoked"),
        ("take the revocation back", on_key("revoked_at = NULL"), &key, "200 ok"),
        ("expire", on_key("expires_at = now()"), &key, "401 expired"),
        ("prolong", on_key("expires_at = now() + interval '1 day'"), &key, "200 ok"),
        ("suspend", on_tenant("status = 'suspended'"), &key, "403 tenant_inactive"),
        ("activate", on_tenant("status = 'active'"), &key, "200 ok"),
        ("mark deleted", on_tenant("status = 'deleted'"), &key, "403 tenant_inactive"),
        ("activate again", on_tenant("status = 'active'"), &key, "200 ok"),
        ("damage the schema name", on_tenant("db_schema_name = 'Damaged'"), &key, "503 unavailable"),
        ("rename the schema", on_tenant("db_schema_name = 'renamed'"), &key, "200 ok"),
        ("change the hash", on_key(&format!("hashed_key = '{other_hash}'")), &key, "401 mismatch"),
        ("the new hash's key", "SELECT 1".to_owned(), &other, "200 ok"),
        ("change the hash back", on_key(&format!("hashed_key = '{back}'")), &key, "200 ok"),
        (
            "move to a suspended tenant",
            on_key(&format!("tenant_id = '{}'", world.sleepy.id)),
            &key,
            "403 tenant_inactive",
        ),
        ("move back", on_key(&format!("tenant_id = '{acme}'")), &key, "200 ok"),
        (
            "change prefix and hash",
            on_key(&format!("key_prefix = 'llmk_moved', hashed_key = '{moved_hash}'")),
            &key,
            "401 unknown",
        ),
        ("the new prefix's key", "SELECT 1".to_owned(), &moved, "200 ok"),
        ("delete", "DELETE FROM api_keys WHERE key_prefix = 'llmk_moved'".to_owned(), &moved, "401 unknown"),
        ("delete the tenant", format!("DELETE FROM tenants WHERE id = '{acme}'"), &new, "401 unknown"),
    ];
    let mut slowest = Duration::ZERO;
    for (what, sql, ask, wanted) in &changes {
        let took = takes_effect(&server, &mut session, sql, ask, wanted);
        slowest = slowest.max(took);
        assert!(took <= AT_MOST, "{what}: {took:?}");
    }
    tell(&format!("sync: {} kinds of change by SQL, the slowest in effect after {slowest:?}", changes.len()));
}

#[test]
fn a_revocation_holds_within_the_promised_time() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let key = Ask::with_key(&world.live.text);
    let change = |set: &str| {
        format!("UPDATE api_keys SET revoked_at = {set} WHERE key_prefix = '{}'", world.live.prefix)
    };
    assert_eq!(server.row(key.clone()), "200 ok");
    let mut times: Vec<Duration> = (0..25)
        .flat_map(|_| [("now()", "401 revoked"), ("NULL", "200 ok")])
        .map(|(set, wanted)| takes_effect(&server, &mut session, &change(set), &key, wanted))
        .collect();
    times.sort_unstable();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    tell(&format!("sync: {} revocations and back, median {median:?}, slowest {slowest:?}", times.len()));
    assert!(median <= PROMISED, "the median is {median:?}: {times:?}");
    assert!(slowest <= AT_MOST, "the slowest took {slowest:?}: {times:?}");
}

#[test]
fn new_values_travel_upstream() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let header = |name: &str| server.check(Ask::with_key(&world.live.text)).headers()[name].to_owned();
    session.sql(&format!(
        "UPDATE tenants SET name = 'Renamed', db_schema_name = 'renamed' WHERE id = '{}'",
        world.acme.id
    ));
    eventually("the new name and schema", AT_MOST, || {
        let seen = (header("x-llmcore-tenant-name"), header("x-llmcore-tenant-schema"));
        if seen == ("Renamed".to_owned(), "renamed".to_owned()) { Ok(()) } else { Err(seen) }
    });
    let id = "99999999-9999-4999-8999-999999999999";
    session.sql(&format!("UPDATE api_keys SET id = '{id}' WHERE key_prefix = '{}'", world.live.prefix));
    eventually("the new key id", AT_MOST, || {
        let seen = header("x-llmcore-key-id");
        if seen == id { Ok(()) } else { Err(seen) }
    });
}

#[test]
fn rolled_back_changes_have_no_effect() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let revoke = |key: &str| format!("UPDATE api_keys SET revoked_at = now() WHERE key_prefix = '{key}';");
    let (live, other) = (&world.live, &world.other);
    session.sql(&format!("BEGIN; {} ROLLBACK", revoke(&live.prefix)));
    let savepoint = format!(
        "BEGIN; SAVEPOINT s; {} ROLLBACK TO s; {} COMMIT",
        revoke(&live.prefix),
        revoke(&other.prefix)
    );
    takes_effect(&server, &mut session, &savepoint, &Ask::with_key(&other.text), "401 revoked");
    assert_eq!(server.row(Ask::with_key(&live.text)), "200 ok");
}

#[test]
fn an_open_transaction_delays_no_other_change_and_is_not_lost() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let (mut slow, mut quick) = (world.db.session(), world.db.session());
    let revoke = |key: &str| format!("UPDATE api_keys SET revoked_at = now() WHERE key_prefix = '{key}'");
    let (live, other) = (Ask::with_key(&world.live.text), Ask::with_key(&world.other.text));
    slow.sql("BEGIN");
    slow.sql(&revoke(&world.live.prefix));
    takes_effect(&server, &mut quick, &revoke(&world.other.prefix), &other, "401 revoked");
    assert_eq!(server.row(live.clone()), "200 ok", "not committed, not in effect");
    takes_effect(&server, &mut slow, "COMMIT", &live, "401 revoked");
}

#[test]
fn a_replication_role_does_not_bypass_the_change_log() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    session.sql("SET session_replication_role = replica");
    let revoke = format!("UPDATE api_keys SET revoked_at = now() WHERE key_prefix = '{}'", world.live.prefix);
    takes_effect(&server, &mut session, &revoke, &Ask::with_key(&world.live.text), "401 revoked");
}

#[test]
fn every_replica_sees_every_change() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let servers = [(); 3].map(|()| Server::on(&world.db).start());
    let key = Ask::with_key(&world.live.text);
    for (set, wanted) in [("now()", "401 revoked"), ("NULL", "200 ok"), ("now()", "401 revoked")] {
        world.db.sql(&format!(
            "UPDATE api_keys SET revoked_at = {set} WHERE key_prefix = '{}'",
            world.live.prefix
        ));
        for server in &servers {
            server.row_becomes(wanted, AT_MOST, key.clone());
        }
    }
}

#[test]
fn many_rows_in_one_commit_apply_at_once() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let hash = quick_hash("llmk_bulk1_BulkSecret01");
    session.sql(&format!(
        "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) \
         SELECT CASE n WHEN 1 THEN '{hash}' ELSE '{hash}' || n END, 'llmk_bulk' || n, '{}' FROM generate_series(1, 10000) n",
        world.acme.id
    ));
    server.row_becomes("200 ok", PATIENCE, Ask::with_key("llmk_bulk1_BulkSecret01"));
    let suspend = format!("UPDATE tenants SET status = 'suspended' WHERE id = '{}'", world.acme.id);
    let took = takes_effect(
        &server,
        &mut session,
        &suspend,
        &Ask::with_key("llmk_bulk1_BulkSecret01"),
        "403 tenant_inactive",
    );
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "403 tenant_inactive");
    session.sql("DELETE FROM api_keys WHERE key_prefix LIKE 'llmk_bulk%'");
    let gone = server.row_becomes("401 unknown", AT_MOST, Ask::with_key("llmk_bulk1_BulkSecret01"));
    assert_eq!(server.row(Ask::with_key("llmk_bulk10000_BulkSecret01")), "401 unknown", "all or none");
    tell(&format!("sync: 10000 keys suspended after {took:?}, deleted after {gone:?}"));
}

#[test]
fn a_lost_session_is_replaced_and_misses_nothing() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let (live, other) = (Ask::with_key(&world.live.text), Ask::with_key(&world.other.text));
    assert_eq!(server.row(live.clone()), "200 ok");
    for (set, wanted) in [("now()", "401 revoked"), ("NULL", "200 ok")] {
        world.db.end_all_sessions();
        assert_eq!(server.row(other.clone()), "200 ok", "the old state is used meanwhile");
        world.db.sql(&format!(
            "UPDATE api_keys SET revoked_at = {set} WHERE key_prefix = '{}'",
            world.live.prefix
        ));
        server.row_becomes(wanted, AFTER_A_LOSS, live.clone());
    }
}

#[test]
fn a_proof_in_progress_is_discarded_if_the_row_changes() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let changes = [
        ("revoked_at = now()".to_owned(), "401 revoked"),
        ("expires_at = now()".to_owned(), "401 expired"),
        (format!("hashed_key = '{}'", quick_hash("another key")), "401 mismatch"),
    ];
    for (set, wanted) in changes {
        world.slow_down();
        let server = Server::on(&world.db).start();
        let mut session = world.db.session();
        let (client, ask) = (server.client().clone(), Ask::with_key(SLOW));
        let flight = runtime().spawn(async move { (client.ask(ask).await, Instant::now()) });
        server.wait_until_proving(Ask::with_key(SLOW));
        session.sql(&format!("UPDATE api_keys SET {set} WHERE id = '{}'", world.live.id));
        let committed = Instant::now();
        let (answer, at) = wait(flight).expect("no panic");
        let row = answer.expect("an answer").row();
        let late = at.saturating_duration_since(committed) > 5 * PROMISED;
        assert!(!late || row != "200 ok", "{set}: allowed {:?} after the commit", at - committed);
        server.row_becomes(wanted, PATIENCE, Ask::with_key(SLOW));
        for _ in 0..20 {
            assert_eq!(server.row(Ask::with_key(SLOW)), wanted, "{set}: once rejected, always rejected");
        }
    }
}

#[test]
fn on_sqlite_a_command_beside_the_server_takes_effect() {
    let world = World::on(Backend::Sqlite).expect("always there");
    let server = Server::on(&world.db).start();
    let (live, acme) = (&world.live, &world.acme.id);
    let key = Ask::with_key(&live.text);
    let commands: [(&[&str], &str); 5] = [
        (&["tenant", "suspend", acme], "403 tenant_inactive"),
        (&["tenant", "activate", acme], "200 ok"),
        (&["tenant", "delete", acme, "--yes"], "403 tenant_inactive"),
        (&["tenant", "activate", acme], "200 ok"),
        (&["key", "revoke", &live.id], "401 revoked"),
    ];
    let mut slowest = Duration::ZERO;
    for (command, wanted) in commands {
        world.db.json(command);
        slowest = slowest.max(server.row_becomes(wanted, AT_MOST, key.clone()));
    }
    let made = world.db.json(&["key", "create", acme]);
    let made = made["key"].as_str().expect("a key");
    slowest = slowest.max(server.row_becomes("200 ok", AT_MOST, Ask::with_key(made)));
    world.db.sql(&format!("DELETE FROM api_keys WHERE key_prefix = '{}'", world.other.prefix));
    slowest = slowest.max(server.row_becomes("401 unknown", AT_MOST, Ask::with_key(&world.other.text)));
    tell(&format!("sync: changes beside a server on SQLite, the slowest in effect after {slowest:?}"));
}
