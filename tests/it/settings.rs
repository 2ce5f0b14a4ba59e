//! Checks that every option of `serve` is also an environment variable and has its effect.

use crate::support::ask::KEY_HEADER;
use crate::support::cli::{DATABASE_URL, run_in};
use crate::support::postgres::PASSWORD;
use crate::support::{Ask, Client, Server, World};

#[test]
fn every_option_has_its_variable() {
    let world = World::somewhere();
    let socket = format!("unix:{}", world.db.dir().join("env.sock").display());
    let server = Server::plan(world.db.dir(), &[])
        .env(DATABASE_URL, world.db.url())
        .env("TENANTGATE_LISTEN", &format!("127.0.0.1:0,{socket}"))
        .listeners(2)
        .env("TENANTGATE_OPS_LISTEN", "127.0.0.1:0")
        .env("TENANTGATE_KEY_HEADER", "x-api-key")
        .env("TENANTGATE_ACCEPT_BEARER", "true")
        .env("TENANTGATE_PUBLIC", "GET /status,HEAD /status")
        .env("TENANTGATE_ON_UNAVAILABLE", "error")
        .env("TENANTGATE_MAX_STALENESS", "1m")
        .env("TENANTGATE_SYNC_INTERVAL", "20ms")
        .env("TENANTGATE_REFLECTION", "off")
        .env("TENANTGATE_LOG_LEVEL", "debug")
        .env("TENANTGATE_LOG_FORMAT", "json")
        .start();
    assert_eq!(server.row(Ask::get("/v1").header("x-api-key", &world.live.text)), "200 ok");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 missing");
    let bearer = format!("Bearer {}", world.live.text);
    assert_eq!(Client::to(&socket).check(Ask::get("/v1").authorization(&bearer)).row(), "200 ok");
    assert_eq!(server.row(Ask::get("/status")), "200 public");
    assert_eq!(server.row(Ask::get("/docs")), "401 missing");
    assert!(server.client().reflected().is_err());
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = '' WHERE key_prefix = '{}'", world.other.prefix));
    let ask = Ask::get("/v1").header("x-api-key", &world.other.text);
    server.row_becomes("503 unavailable", crate::support::PATIENCE, ask.clone());
    assert!(server.check(ask).is_error_response());
    let log = server.stderr.lines();
    assert!(log.iter().all(|line| line.starts_with('{')), "JSON, every line: {log:#?}");
    let levels: Vec<_> = log.iter().filter(|line| line.contains("\"DEBUG\"")).collect();
    assert!(!levels.is_empty(), "debug is on: {log:#?}");
}

#[test]
fn an_option_takes_precedence_over_its_variable() {
    let world = World::somewhere();
    let server = Server::on(&world.db)
        .args(&["--key-header", KEY_HEADER, "--log-format", "text"])
        .env("TENANTGATE_KEY_HEADER", "x-api-key")
        .env("TENANTGATE_LOG_FORMAT", "json")
        .start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert!(server.stderr.lines().iter().all(|line| !line.starts_with('{')));
}

#[test]
fn help_shows_the_variables_but_not_the_value_of_the_database_url() {
    let world = World::somewhere();
    let url = format!("postgres://u:{PASSWORD}@localhost/db");
    let help = run_in(world.db.dir(), &[(DATABASE_URL, &url)], &["serve", "--help"]).ok();
    let options = [
        "listen",
        "ops-listen",
        "key-header",
        "accept-bearer",
        "public",
        "on-unavailable",
        "max-staleness",
        "sync-interval",
        "tls-cert",
        "tls-key",
        "client-ca",
        "reflection",
        "log-level",
        "log-format",
    ];
    for option in options {
        let variable = format!("TENANTGATE_{}", option.to_uppercase().replace('-', "_"));
        assert!(help.contains(&format!("--{option}")) && help.contains(&variable), "{option}: {help}");
    }
    assert!(help.contains(DATABASE_URL) && help.contains("--check-config"), "{help}");
    for command in [&["--help"][..], &["-h"], &["key", "create", "--help"], &["help", "serve"]] {
        run_in(world.db.dir(), &[(DATABASE_URL, &url)], command).ok();
    }
}
