//! Tests start, health and stop of a server.

use std::time::Duration;

use serde_json::Value;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::cli::run_in;
use crate::support::client::SERVICE;
use crate::support::http;
use crate::support::world::{SLOW, string};
use crate::support::{Ask, Backend, Client, Server, World, eventually, on_every_store, runtime, wait};
use crate::waiting::is_warned_of;

/// The maximum duration of a stop.
const GOODBYE: Duration = Duration::from_secs(10);

on_every_store![
    a_check_in_flight_is_answered_before_the_server_stops,
    last_use_is_written_when_the_server_stops,
    readyz_shows_what_is_loaded,
];

fn a_check_in_flight_is_answered_before_the_server_stops(world: &World) {
    world.slow_down();
    for signal in ["TERM", "INT"] {
        let mut server = Server::on(&world.db).start();
        let (client, ask) = (server.client().clone(), Ask::with_key(SLOW));
        let flight = runtime().spawn(async move { client.ask(ask).await });
        server.wait_until_proving(Ask::with_key(SLOW));
        server.signal(signal);
        is_answered(&wait(flight).expect("no panic").expect("an answer").row());
        assert_eq!(server.exit_code(GOODBYE), Some(0), "{signal}");
        assert_eq!(server.stdout.to_the_end(GOODBYE), "", "serve prints nothing on stdout");
    }
}

fn last_use_is_written_when_the_server_stops(world: &World) {
    let last_used = |id: &str| world.db.json(&["key", "show", id])["last_used_at"].clone();
    assert_eq!(last_used(&world.live.id), Value::Null);
    let before = chrono::DateTime::parse_from_rfc3339(&string(
        &world.db.json(&["tenant", "create", "Now"]),
        "created_at",
    ));
    let mut server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert_eq!(server.row(Ask::with_key(&world.other.with_wrong_secret())), "401 mismatch");
    assert_eq!(server.row(Ask::with_key(&world.revoked.text)), "401 revoked");
    server.signal("TERM");
    assert_eq!(server.exit_code(GOODBYE), Some(0));
    let used = chrono::DateTime::parse_from_rfc3339(&string(
        &world.db.json(&["key", "show", &world.live.id]),
        "last_used_at",
    ));
    let since = used.expect("RFC 3339") - before.expect("RFC 3339");
    assert!((-1..60).contains(&since.num_seconds()), "used {since} after this test began");
    for unused in [&world.other, &world.revoked] {
        assert_eq!(last_used(&unused.id), Value::Null, "only allowed keys count as used: {unused:?}");
    }
}

#[test]
fn last_use_never_decreases_and_is_not_a_change_of_the_key() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let set = format!(
        "UPDATE api_keys SET last_used_at = now() + interval '1 day' WHERE key_prefix = '{}'",
        world.live.prefix
    );
    let logged = || world.db.everything().lines().count();
    let before = logged();
    world.db.sql(&set);
    assert_eq!(logged(), before, "the change log grows by nothing");
    let shown = || world.db.text("SELECT last_used_at::text FROM api_keys WHERE key_prefix = 'llmk_live'");
    let ahead = shown();
    let mut server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    server.signal("TERM");
    assert_eq!(server.exit_code(GOODBYE), Some(0));
    assert_eq!(shown(), ahead, "another server saw a later use");
}

#[test]
fn a_locked_row_delays_the_last_use_of_no_other_key() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut server = Server::on(&world.db).start();
    for key in [&world.live, &world.other] {
        assert_eq!(server.row(Ask::with_key(&key.text)), "200 ok");
    }
    let mut left_open = world.db.session();
    let lock = format!("BEGIN; SELECT FROM api_keys WHERE key_prefix = '{}' FOR UPDATE", world.live.prefix);
    left_open.sql(&lock);
    server.signal("TERM");
    assert_eq!(server.exit_code(GOODBYE), Some(0));
    let used = |id: &str| world.db.json(&["key", "show", id])["last_used_at"].clone();
    assert!(used(&world.other.id).is_string(), "the other key is written");
    assert_eq!(used(&world.live.id), Value::Null);
    let said = server.stderr.to_the_end(GOODBYE);
    assert!(said.contains("another session has locked them") && said.contains("rows=1"), "{said}");
}

#[test]
fn a_failed_flush_is_a_warning() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = crate::support::link::Link::before(&world.db);
    let mut server = Server::on(&seen).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    link.cut();
    server.signal("TERM");
    assert_eq!(server.exit_code(GOODBYE), Some(0));
    let said = server.stderr.to_the_end(GOODBYE);
    assert!(said.lines().any(|line| line.contains("WARN") && line.contains("last_used_at")), "{said}");
}

#[test]
fn the_command_ready_shows_readyz() {
    let world = World::somewhere();
    let ready =
        |address: &str| run_in(world.db.dir(), &[], &["ready", "-o", "json", "--ops-listen", address]);
    let server = Server::on(&world.db).start();
    let said = ready(&server.ops).json();
    assert_eq!((&said["ready"], &said["readyz"]["status"]), (&true.into(), &"ready".into()), "{said}");
    let port = server.ops.rsplit_once(':').expect("a port").1;
    run_in(world.db.dir(), &[("TENANTGATE_OPS_LISTEN", &format!("0.0.0.0:{port}"))], &["ready"]).ok();
    // A listener that is not the ops listener, and no listener at all.
    ready(&server.grpc[0]).unavailable();
    ready("127.0.0.1:1").unavailable();
    let nowhere = ["--database-url", "postgres://127.0.0.1:1/nowhere", "--ops-listen", "127.0.0.1:0"];
    let server = Server::plan(world.db.dir(), &nowhere).start_unready();
    let run = ready(&server.ops);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stdout.contains(r#""ready":false"#) && run.stdout.contains("starting"), "{run:?}");
}

fn readyz_shows_what_is_loaded(world: &World) {
    let server = Server::on(&world.db).start();
    let page = server.http("/readyz");
    let said: Value = serde_json::from_str(&page.body).expect("JSON");
    let names: Vec<&str> = said.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["authentication", "database", "keys", "snapshot_age_ms", "status", "store", "tenants"]
    );
    let store = match world.db.backend {
        Backend::Postgres => "postgres",
        Backend::Sqlite => "sqlite",
    };
    assert_eq!(
        (page.status, &said["status"], &said["store"]),
        (200, &"ready".into(), &store.into()),
        "{said}"
    );
    assert_eq!(
        (&said["authentication"], &said["database"]),
        (&"enabled".into(), &"connected".into()),
        "{said}"
    );
    assert_eq!((&said["keys"], &said["tenants"]), (&8.into(), &4.into()), "{said}");
    assert!(said["snapshot_age_ms"].as_u64().is_some_and(|age| age < 60_000), "{said}");
    assert!(page.headers["content-type"].starts_with("application/json"), "{page:?}");
    assert_eq!(server.http("/livez").status, 200);
    let metrics = server.http("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.headers["content-type"].contains("text"), "{metrics:?}");
    assert_eq!(server.http("/").status, 404);
    assert_eq!(server.http("/readyz/").status, 404);
}

#[test]
fn a_stopping_server_reports_draining() {
    let world = World::somewhere();
    world.slow_down();
    let mut server = Server::on(&world.db).start();
    let (client, ask) = (server.client().clone(), Ask::with_key(SLOW));
    let flight = runtime().spawn(async move { client.ask(ask).await });
    server.wait_until_proving(Ask::with_key(SLOW));
    server.signal("TERM");
    eventually("readyz says draining", GOODBYE, || {
        let page = http::get(&server.ops, "/readyz").map_err(|error| error.to_string())?;
        if page.status == 503 && page.body.contains("\"draining\"") { Ok(()) } else { Err(page.body) }
    });
    is_answered(&wait(flight).expect("no panic").expect("an answer").row());
    assert_eq!(server.exit_code(GOODBYE), Some(0));
}

/// A proof has the lowest priority: on a machine that is busy with other work it may not end before the server does,
/// and is then answered with 503.
fn is_answered(row: &str) {
    assert!(["200 ok", "503 unavailable"].contains(&row), "{row}");
}

#[test]
fn calls_that_wait_for_longer_than_the_stop_takes_are_answered() {
    let world = World::somewhere();
    world.slow_down();
    let mut server = Server::on(&world.db).start();
    // Each of them takes about a second of a core.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asks = (0..16 * cores).map(|n| Ask::with_key(&format!("{SLOW}{n}")));
    let flights: Vec<_> = asks
        .map(|ask| {
            let client = server.client().clone();
            runtime().spawn(async move { client.ask(ask).await })
        })
        .collect();
    server.wait_until_proving(Ask::with_key(SLOW));
    server.signal("TERM");
    let rows: Vec<_> =
        flights.into_iter().map(|flight| wait(flight).expect("no panic").expect("an answer").row()).collect();
    assert!(rows.iter().all(|row| ["401 mismatch", "503 unavailable"].contains(&row.as_str())), "{rows:?}");
    assert!(rows.iter().any(|row| row == "503 unavailable"), "{rows:?}");
    is_warned_of(&server, "deadline_too_short", "still waits while the server stops");
    assert_eq!(server.exit_code(GOODBYE), Some(0));
}

#[test]
fn health_is_available_under_both_names() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for service in ["", SERVICE] {
        assert_eq!(server.client().health(service).expect("known"), ServingStatus::Serving, "`{service}`");
    }
    assert_eq!(server.client().health("no.such.Service").expect_err("unknown").code(), Code::NotFound);
}

#[test]
fn reflection_lists_the_service_unless_switched_off() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let services = server.client().reflected().expect("reflection is on");
    for service in [SERVICE, "grpc.health.v1.Health"] {
        assert!(services.contains(&service.to_owned()), "{services:?}");
    }
    let off = Server::on(&world.db).args(&["--reflection", "off"]).start();
    assert_eq!(off.client().reflected().expect_err("off").code(), Code::Unimplemented);
}

#[test]
fn an_address_that_cannot_be_bound_is_one_clear_line() {
    let world = World::somewhere();
    let running = Server::on(&world.db).args(&["--listen", "127.0.0.1:0"]).start();
    let socket = world.db.dir().join("taken.sock");
    let live = format!("unix:{}", socket.display());
    let _on_the_socket = Server::on(&world.db).args(&["--listen", &live]).start();
    let file = world.db.dir().join("a-file");
    std::fs::write(&file, "precious").expect("written");
    let listeners = [
        running.grpc[0].clone(),
        live.clone(),
        format!("unix:{}", file.display()),
        format!("unix:{}/no/such/directory/s.sock", world.db.dir().display()),
        "unix:/proc/tenantgate.sock".to_owned(),
        "192.0.2.1:1".to_owned(),
    ];
    for listener in &listeners {
        let (code, stdout, stderr) = Server::on(&world.db).args(&["--listen", listener]).run_to_end();
        assert_eq!((code, stdout.as_str()), (Some(3), ""), "{listener}: {stderr}");
        let about: Vec<&str> =
            stderr.lines().filter(|line| line.contains(listener.trim_start_matches("unix:"))).collect();
        assert_eq!(about.len(), 1, "{listener}: {stderr}");
    }
    let args = ["--database-url", world.db.url(), "--listen", "127.0.0.1:0", "--ops-listen", &running.ops];
    let (code, _, stderr) = Server::plan(world.db.dir(), &args[..2]).args(&args[2..]).run_to_end();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains(&running.ops), "{stderr}");
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
    assert_eq!(
        Client::to(&live).check(Ask::get("/v1")).row(),
        "401 missing",
        "the socket of a running server is not removed"
    );
}

#[test]
fn a_first_load_that_does_not_end_is_not_waited_for() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut in_the_way = world.db.session();
    in_the_way.sql("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE");
    let server = Server::on(&world.db).start_unready();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "503 unavailable");
    assert_eq!(server.row(Ask::get("/docs")), "200 public");
    in_the_way.sql("COMMIT");
    server.wait_until_ready();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}

/// The load takes longer than a second, so the data is stale at once, but the server is ready.
#[test]
fn a_slow_first_load_becomes_ready() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut in_the_way = world.db.session();
    in_the_way.sql("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE");
    let server = Server::on(&world.db).start_unready();
    let waiting = "SELECT pid::text FROM pg_stat_activity WHERE wait_event_type = 'Lock'
        AND application_name = 'tenantgate' AND now() - query_start > interval '1.2 seconds'";
    eventually("the load takes more than a second", GOODBYE, || {
        let pids = world.db.texts(waiting);
        if pids.is_empty() { Err(pids) } else { Ok(()) }
    });
    in_the_way.sql("COMMIT");
    server.wait_until_ready();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}
