//! Checks that shadow mode passes all requests without an identity and reports what enforcing would reject.

use std::time::Duration;

use serde_json::Value;

use crate::support::envoy::Envoy;
use crate::support::{Ask, Backend, PATIENCE, Server, World, eventually, on_every_store};

on_every_store![
    every_rejection_passes_without_identity_and_is_counted,
    the_mode_of_a_tenant_applies_at_once_and_only_to_proven_keys,
    the_report_shows_client_request_and_reason,
];

/// `--mode shadow`, with a short flush interval of the report.
fn shadow(world: &World) -> Server {
    Server::on(&world.db).args(&["--mode", "shadow"]).start()
}

fn every_rejection_passes_without_identity_and_is_counted(world: &World) {
    world.db.sql("UPDATE api_keys SET hashed_key = '$2x$04$' WHERE key_prefix = 'llmk_other'");
    let server = shadow(world);
    for (would_deny, ask) in [
        ("missing", Ask::get("/v1")),
        ("malformed", Ask::with_key("sk-12345678")),
        ("unknown", Ask::with_key("llmk_nobody_12345678")),
        ("mismatch", Ask::with_key(&world.live.with_wrong_secret())),
        ("revoked", Ask::with_key(&world.revoked.text)),
        ("expired", Ask::with_key(&world.expired.text)),
        ("tenant_inactive", Ask::with_key(&world.of_sleepy.text)),
        ("unavailable", Ask::with_key(&world.other.text)),
    ] {
        let answer = server.check(ask);
        assert_eq!(answer.row(), "200 shadow", "{would_deny}");
        assert_eq!((answer.meta("would_deny"), answer.meta("shadow")), (would_deny, "true"));
        let reason = format!("reason=\"{would_deny}\"");
        assert!((server.metric(&["tenantgate_shadow_total{", &reason]) - 1.0).abs() < f64::EPSILON);
    }
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert_eq!(server.row(Ask::get("/docs")), "200 public");
    assert!((server.metric(&["tenantgate_shadow_mode"]) - 1.0).abs() < f64::EPSILON);
    assert!(server.metric(&["decision=\"deny\""]).abs() < f64::EPSILON);
    assert!(server.metric(&["decision=\"unable\""]).abs() < f64::EPSILON);
    let ready: Value = serde_json::from_str(&server.http("/readyz").body).expect("JSON");
    assert_eq!(ready["authentication"], "shadow");
    let said = server.stderr.text();
    assert!(said.contains("shadow mode: no request is rejected"), "{said}");
    assert!(said.contains("would be refused") && said.contains("would_deny=\"revoked\""), "{said}");
    assert!(!said.contains(&world.revoked.text), "{said}");
}

fn the_mode_of_a_tenant_applies_at_once_and_only_to_proven_keys(world: &World) {
    let server = Server::on(&world.db).start();
    let (sleepy, revoked) = (Ask::with_key(&world.of_sleepy.text), Ask::with_key(&world.revoked.text));
    assert_eq!(server.row(sleepy.clone()), "403 tenant_inactive");
    let shown = world.db.json(&["tenant", "mode", &world.sleepy.id, "shadow", "--wait"]);
    assert_eq!(shown["mode"], "shadow");
    server.row_becomes("200 shadow", Duration::from_secs(1), sleepy.clone());
    assert_eq!(server.row(Ask::with_key(&world.of_sleepy.with_wrong_secret())), "401 mismatch");
    assert_eq!(server.row(Ask::get("/v1")), "401 missing");
    assert_eq!(server.row(revoked.clone()), "401 revoked", "another tenant's");
    let shown = world.db.json(&["tenant", "mode", &world.sleepy.id, "inherit", "--wait"]);
    assert_eq!(shown["mode"], Value::Null);
    server.row_becomes("403 tenant_inactive", Duration::from_secs(1), sleepy);

    let audited = world.db.json(&["audit", "list", "--subject", &world.sleepy.id]);
    let row = audited.as_array().expect("an array").iter().find(|row| row["action"] == "tenant.mode");
    assert_eq!(row.expect("the report is written")["after"]["mode"], "shadow");

    world.db.json(&["tenant", "mode", &world.acme.id, "enforce"]);
    let server = shadow(world);
    assert_eq!(server.row(revoked), "401 revoked");
    assert_eq!(server.row(Ask::with_key(&world.live.with_wrong_secret())), "200 shadow");
}

fn the_report_shows_client_request_and_reason(world: &World) {
    let mut server = shadow(world);
    for (path, agent) in [("/v1/users/42?q=1", "=cmd()"), ("/v1/users/43", "=cmd()"), ("/v1", "curl/8")] {
        server.check(Ask::get(path).raw("user-agent", agent).from("192.0.2.77"));
    }
    server.check(Ask::with_key(&world.revoked.text).from("2001:db8:1:2345::1"));
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    let report = world.db.json(&["report", "shadow"]);
    let row = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let cells = ["reason", "network", "user_agent", "method", "path", "key_prefix"].map(text);
        format!("{} {}", row["requests"], cells.join(" "))
    };
    let mut rows: Vec<_> = report.as_array().expect("an array").iter().map(row).collect();
    assert_eq!(rows.remove(0), "2 missing 192.0.2.0/24 =cmd() GET /v1/users/* -");
    assert_eq!(
        rows,
        [
            "1 missing 192.0.2.0/24 curl/8 GET /v1 -",
            "1 revoked 2001:db8:1:2300::/56  GET /v1/items llmk_revoked"
        ]
    );
    let csv = world.db.cli(&["report", "shadow", "-o", "csv"]).ok();
    assert!(csv.contains("missing,192.0.2.0/24,'=cmd(),GET,/v1/users/*,,2,"), "{csv}");
    let text = world.db.cli(&["report", "shadow"]).ok();
    assert!(text.starts_with("REQUESTS") && text.contains("192.0.2.0/24"), "{text}");
    // The next server adds to the same rows.
    let mut server = shadow(world);
    server.check(Ask::get("/v1").raw("user-agent", "curl/8").from("192.0.2.9"));
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    let again = world.db.json(&["report", "shadow", "--since", "1d"]);
    assert!(
        again
            .as_array()
            .expect("an array")
            .iter()
            .map(row)
            .any(|row| row == "2 missing 192.0.2.0/24 curl/8 GET /v1 -"),
        "{again}"
    );
}

#[test]
fn a_server_that_cannot_write_the_report_logs_it_once_and_continues() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.sql("DROP TABLE tenantgate_shadow_report");
    let mut server = shadow(&world);
    assert_eq!(server.row(Ask::get("/v1")), "200 shadow");
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    assert!(server.stderr.text().contains("the shadow report could not be written"));
}

#[test]
fn csv_is_only_for_reports() {
    let world = World::somewhere();
    let run = world.db.cli(&["tenant", "list", "-o", "csv"]);
    run.usage();
}

#[test]
fn behind_envoy_a_request_without_a_key_reaches_the_upstream_without_identity() {
    let world = World::somewhere();
    let server = shadow(&world);
    let Some(envoy) = Envoy::before(&server)
        .with("{exact: authorization, ignore_case: true}", "{exact: user-agent, ignore_case: true}")
        .start()
    else {
        return;
    };
    let forged = [
        ("x-llmcore-tenant-id", world.acme.id.as_str()),
        ("x-llmcore-tenant-name", "Acme"),
        ("x-llmcore-tenant-schema", "tenant_acme_corp"),
        ("x-llmcore-key-id", world.live.id.as_str()),
        ("user-agent", "old-client/1"),
    ];
    for key in [None, Some(world.live.with_wrong_secret()), Some(world.revoked.text.clone())] {
        let mut headers = forged.to_vec();
        headers.extend(key.as_deref().map(|key| ("x-llmcore-api-key", key)));
        let outcome = envoy.send("GET", "/v1/models", &headers);
        assert_eq!(outcome.page.status, 200, "{outcome:#?}");
        let seen = outcome.seen.expect("the request reached the upstream");
        assert!(seen.names("x-llmcore-").is_empty(), "{seen:#?}");
    }
    let proven = envoy.send("GET", "/proven", &[("x-llmcore-api-key", &world.live.text)]);
    let seen = proven.seen.expect("the request reached the upstream");
    assert_eq!(seen.values("x-llmcore-tenant-id"), [world.acme.id.as_str()]);
    assert_eq!(envoy.logged("/v1/models")["reason"], "shadow");
    let mut server = server;
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    eventually("the report has Envoy's client", PATIENCE, || {
        let report = world.db.json(&["report", "shadow"]);
        let rows = report.as_array().expect("an array");
        let ours =
            rows.iter().filter(|row| row["user_agent"] == "old-client/1" && row["network"] == "127.0.0.0/24");
        if ours.count() == 3 { Ok(()) } else { Err(report) }
    });
}
