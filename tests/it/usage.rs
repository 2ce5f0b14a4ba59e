//! Tests that requests are counted by day, key and reason, that each count is written once, and how long counts are
//! kept.

use std::time::Duration;

use tenantgate::clock::{Clock as _, SystemClock};
use tenantgate::key::KeyId;
use tenantgate::store::postgres::PostgresStore;
use tenantgate::store::sqlite::SqliteStore;
use tenantgate::store::{Store, Used};
use tenantgate::usage::NOBODY;
use uuid::Uuid;

use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, on_every_store, wait};

on_every_store![
    every_decision_counts_under_its_reason_and_its_proven_key,
    requests_that_pass_in_shadow_mode_are_counted,
    two_servers_add_to_the_same_rows,
    a_server_with_counting_disabled_writes_nothing,
    counts_are_kept_for_the_configured_time,
    the_report_adds_up_by_day_key_or_reason,
    the_report_of_a_tenant_contains_only_its_keys,
];

const NIL: &str = "00000000-0000-0000-0000-000000000000";

fn store(database: &Database) -> Box<dyn Store> {
    if database.url().starts_with("sqlite") {
        Box::new(SqliteStore::new(database.url()).unwrap())
    } else {
        Box::new(PostgresStore::new(database.url()).unwrap())
    }
}

pub(crate) fn stop(mut server: Server) {
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
}

/// Returns the rows of all days, one text each.
fn counted(world: &World) -> Vec<String> {
    let sql = "SELECT CAST(key_id AS text) || ' ' || reason || ' ' || sum(requests) FROM tenantgate_usage
               GROUP BY key_id, reason";
    let mut rows: Vec<_> = world.db.texts(sql).into_iter().flatten().collect();
    rows.sort();
    rows
}

fn sorted<const N: usize>(mut rows: [String; N]) -> Vec<String> {
    rows.sort();
    rows.into()
}

fn every_decision_counts_under_its_reason_and_its_proven_key(world: &World) {
    world.db.sql("UPDATE api_keys SET hashed_key = '$2x$04$' WHERE key_prefix = 'llmk_other'");
    let server = Server::on(&world.db).start();
    for ask in [
        Ask::get("/docs"),
        Ask::get("/v1"),
        Ask::with_key("sk-12345678"),
        Ask::with_key("llmk_nobody_12345678"),
        Ask::with_key(&world.live.with_wrong_secret()),
        Ask::with_key(&world.live.text),
        Ask::with_key(&world.live.text),
        Ask::with_key(&world.revoked.text),
        Ask::with_key(&world.expired.text),
        Ask::with_key(&world.of_sleepy.text),
        Ask::with_key(&world.other.text),
    ] {
        server.check(ask);
    }
    assert_eq!(counted(world), [""; 0], "nothing is written per check");
    let written = "tenantgate_usage_flushes_total{result=\"written\"}";
    assert!(server.metric(&[written]).abs() < f64::EPSILON);
    stop(server);
    let expected = [
        format!("{NIL} public 1"),
        format!("{NIL} missing 1"),
        format!("{NIL} malformed 1"),
        format!("{NIL} unknown 1"),
        format!("{NIL} mismatch 1"),
        format!("{NIL} unavailable 1"),
        format!("{} ok 2", world.live.id),
        format!("{} revoked 1", world.revoked.id),
        format!("{} expired 1", world.expired.id),
        format!("{} tenant_inactive 1", world.of_sleepy.id),
    ];
    assert_eq!(counted(world), sorted(expected));
    // Around midnight, the rows of two days are summed, but never another day.
    let days = world.db.texts("SELECT CAST(max(day) AS text) FROM tenantgate_usage");
    assert_eq!(days, [Some(SystemClock.now().to_string()[..10].to_owned())]);
}

fn requests_that_pass_in_shadow_mode_are_counted(world: &World) {
    let server = Server::on(&world.db).args(&["--mode", "shadow"]).start();
    server.check(Ask::get("/v1"));
    server.check(Ask::with_key(&world.revoked.text));
    server.check(Ask::with_key(&world.live.text));
    stop(server);
    let expected = [
        format!("{NIL} shadow 1"),
        format!("{} shadow 1", world.revoked.id),
        format!("{} ok 1", world.live.id),
    ];
    assert_eq!(counted(world), sorted(expected));
}

fn two_servers_add_to_the_same_rows(world: &World) {
    let servers = [Server::on(&world.db).start(), Server::on(&world.db).start()];
    for (server, times) in servers.iter().zip([2, 3]) {
        (0..times).for_each(|_| drop(server.check(Ask::with_key(&world.live.text))));
        server.check(Ask::get("/v1"));
    }
    for server in &servers {
        server.signal("TERM");
    }
    for mut server in servers {
        assert_eq!(server.exit_code(PATIENCE), Some(0));
    }
    assert_eq!(counted(world), sorted([format!("{} ok 5", world.live.id), format!("{NIL} missing 2")]));
}

fn a_server_with_counting_disabled_writes_nothing(world: &World) {
    let server = Server::on(&world.db).args(&["--usage-retention", "0"]).start();
    server.check(Ask::with_key(&world.live.text));
    server.check(Ask::get("/v1"));
    stop(server);
    assert_eq!(counted(world), [""; 0]);
}

fn counts_are_kept_for_the_configured_time(world: &World) {
    let (store, today) = (store(&world.db), SystemClock.now().day());
    let used = |ago: i64, requests| Used { day: today - ago, key: NOBODY, reason: "ok", requests };
    let all: Vec<_> = (0..=100).rev().map(|ago| used(ago, 1)).collect();
    wait(store.add_usage(&all)).unwrap();
    wait(store.add_usage(&[used(40, 6), Used { key: KeyId(Uuid::from_u128(1)), ..used(40, 1) }])).unwrap();
    let count = |world: &World| {
        let sql = "SELECT CAST(count(*) AS text) || ' ' || sum(requests) FROM tenantgate_usage";
        world.db.texts(sql).remove(0)
    };
    assert_eq!(count(world), Some("102 108".into()));
    wait(store.prune_usage(Duration::from_hours(40 * 24))).unwrap();
    assert_eq!(count(world), Some("42 48".into()), "today and the forty days before");
    wait(store.prune_usage(Duration::from_hours(39 * 24))).unwrap();
    assert_eq!(count(world), Some("40 40".into()));
}

/// Creates counts of today and of five days ago: without a key, of two keys of a tenant, of one key of another tenant,
/// and of a deleted key.
fn fill(world: &World) -> [String; 2] {
    let now = SystemClock.now();
    let key = |id: &str| KeyId(Uuid::parse_str(id).unwrap());
    let used = |ago: i64, key, reason, requests| Used { day: now.day() - ago, key, reason, requests };
    let all = [
        used(5, NOBODY, "missing", 7),
        used(5, key(&world.live.id), "ok", 20),
        used(0, key(&world.live.id), "ok", 2),
        used(0, key(&world.revoked.id), "revoked", 1),
        used(0, key(&world.of_sleepy.id), "tenant_inactive", 4),
        used(0, KeyId(Uuid::from_u128(1)), "ok", 3),
    ];
    wait(store(&world.db).add_usage(&all)).unwrap();
    [Duration::from_hours(5 * 24), Duration::ZERO].map(|ago| now.before(ago).to_string()[..10].to_owned())
}

/// Returns the rows of a report, each with its subject and its number.
fn report(world: &World, args: &[&str]) -> Vec<String> {
    let rows = world.db.json(&[&["report", "usage"], args].concat());
    let cell = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap_or("-").to_owned();
    let row = |row: &serde_json::Value| {
        let cells = ["day", "key_id", "key_prefix", "reason"].map(|name| cell(row, name));
        format!("{} {}", cells.join(" "), row["requests"])
    };
    rows.as_array().expect("an array").iter().map(row).collect()
}

fn the_report_adds_up_by_day_key_or_reason(world: &World) {
    assert_eq!(world.db.cli(&["report", "usage"]).ok(), "no requests were counted\n");
    assert_eq!(world.db.json(&["report", "usage", "--by", "key"]), serde_json::json!([]));
    let [before, today] = fill(world);
    assert_eq!(report(world, &[]), [format!("{before} - - - 27"), format!("{today} - - - 10")]);
    assert_eq!(report(world, &["--since", "4d"]), [format!("{today} - - - 10")]);
    assert_eq!(report(world, &["--since", "5d", "--by", "day"]).len(), 2, "the first day is complete");
    let reasons = ["ok 25", "missing 7", "tenant_inactive 4", "revoked 1"];
    assert_eq!(report(world, &["--by", "reason"]), reasons.map(|reason| format!("- - - {reason}")));
    let keys = [
        format!("- {} llmk_live - 22", world.live.id),
        format!("- {NIL} - - 7"),
        format!("- {} llmk_sleepy - 4", world.of_sleepy.id),
        format!("- {} - - 3", Uuid::from_u128(1)),
        format!("- {} llmk_revoked - 1", world.revoked.id),
    ];
    assert_eq!(report(world, &["--by", "key"]), keys);
    let rows = world.db.json(&["report", "usage", "--by", "key"]);
    assert_eq!(rows[0]["tenant_id"], world.acme.id.as_str());
    let text = world.db.cli(&["report", "usage", "--by", "key"]).ok();
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["llmk_live", "22", "█".repeat(40).as_str()]);
    assert_eq!(lines[1][..3], ["(no", "key)", "7"]);
    let csv = world.db.cli(&["report", "usage", "-o", "csv"]).ok();
    let expected =
        format!("day,tenant_id,key_id,key_prefix,reason,requests\n{before},,,,,27\n{today},,,,,10\n");
    assert_eq!(csv, expected);
}

fn the_report_of_a_tenant_contains_only_its_keys(world: &World) {
    let [before, today] = fill(world);
    let acme = world.acme.id.as_str();
    assert_eq!(report(world, &[acme]), [format!("{before} - - - 20"), format!("{today} - - - 3")]);
    assert_eq!(report(world, &[acme, "--by", "reason"]), ["- - - ok 22", "- - - revoked 1"]);
    assert_eq!(report(world, &[acme, "--by", "key"]).len(), 2);
    assert_eq!(report(world, &[&world.sleepy.id, "--by", "reason"]), ["- - - tenant_inactive 4"]);
    world.db.cli(&["report", "usage", "tenant_nobody"]).refused();
    world.db.cli(&["report", "usage", "--by", "path"]).usage();
}

/// Returns the names of the partitions.
fn months(world: &World) -> Vec<String> {
    let sql = "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'tenantgate_usage'::regclass AND c.relname <> 'tenantgate_usage_default' ORDER BY 1";
    world.db.texts(sql).into_iter().flatten().collect()
}

#[test]
fn monthly_partitions_are_created_ahead_and_dropped() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (store, today) = (store(&world.db), SystemClock.now().day());
    let used = |day: i64| Used { day, key: NOBODY, reason: "ok", requests: 1 };
    assert_eq!(months(&world), [""; 0]);
    let month = |offset: &str| {
        let sql = "SELECT 'tenantgate_usage_' || to_char(date_trunc('month', now() AT TIME ZONE 'UTC')";
        world.db.text(&format!("{sql} {offset}, 'YYYY_MM')")).unwrap()
    };
    let (this, next) = (month(""), month("+ interval '1 month'"));
    wait(store.add_usage(&[used(today)])).unwrap();
    assert_eq!(months(&world), [this.clone(), next.clone()]);
    let fill = format!("SELECT array_to_string(reloptions, ' ') FROM pg_class WHERE relname = '{this}'");
    assert_eq!(world.db.text(&fill).as_deref(), Some("fillfactor=70"));
    // 2020-01-31, 2020-02-01, and a day in the future, which comes from a wrong clock.
    wait(store.add_usage(&[used(18_292), used(18_293), used(today + 3_000)])).unwrap();
    let all = ["tenantgate_usage_2020_01", "tenantgate_usage_2020_02", &this, &next];
    assert_eq!(months(&world), all);
    let tomorrow =
        "SELECT sum(requests)::text FROM tenantgate_usage WHERE day = (now() AT TIME ZONE 'UTC')::date + 1";
    assert_eq!(world.db.text(tomorrow).as_deref(), Some("1"));
    wait(store.prune_usage(Duration::from_hours(400 * 24))).unwrap();
    assert_eq!(months(&world), [this, next]);
    world.db.sql("SELECT tenantgate_prune_usage(interval '0')");
    let left = world.db.text("SELECT sum(requests)::text FROM tenantgate_usage");
    assert_eq!(left.as_deref(), Some("2"), "today stays");
}

#[test]
fn the_roles_can_count_read_and_prune_but_no_more() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let today = SystemClock.now().day();
    let used = Used { day: today, key: NOBODY, reason: "ok", requests: 2 };
    // A partition that existed before the roles gets the new owner, too.
    wait(store(&world.db).add_usage(&[used, Used { day: 18_292, ..used }])).unwrap();
    let prefix = world.db.with_roles();
    let serve = world.db.seen_by(&format!("{prefix}_serve"));
    wait(store(&serve).add_usage(&[used, Used { day: 18_322, ..used }])).unwrap();
    wait(store(&serve).prune_usage(Duration::from_hours(400 * 24))).unwrap();
    assert_eq!(months(&world).len(), 2);
    let parts = months(&world);
    for sql in [
        "SELECT FROM tenantgate_usage",
        "INSERT INTO tenantgate_usage VALUES (current_date, gen_random_uuid(), 'ok', 1)",
        "DELETE FROM tenantgate_usage",
        &format!("SELECT FROM {}", parts[0]),
        &format!("DROP TABLE {}", parts[0]),
    ] {
        let said = serve.refuses(sql);
        assert!(said.contains("permission denied") || said.contains("must be owner"), "{sql}: {said}");
    }
    let admin = world.db.seen_by(&format!("{prefix}_admin"));
    assert_eq!(admin.text("SELECT sum(requests)::text FROM tenantgate_usage").as_deref(), Some("4"));
    for sql in ["UPDATE tenantgate_usage SET requests = 0", "SELECT tenantgate_prune_usage(interval '0')"] {
        assert!(admin.refuses(sql).contains("permission denied"), "{sql}");
    }
}

#[test]
fn a_server_that_cannot_write_its_counts_logs_it_and_continues() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.sql("DROP TABLE tenantgate_usage");
    let mut server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert_eq!(server.http("/readyz").status, 200);
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    let said = server.stderr.text();
    assert!(said.contains("usage could not be written, trying again later"), "{said}");
    assert!(said.contains("usage since the last flush could not be written, it is lost"), "{said}");
}
