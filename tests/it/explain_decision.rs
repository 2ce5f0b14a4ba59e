//! Tests `explain` with the id of a decision, and through Envoy.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::ask::KEY_HEADER;
use crate::support::cli::command;
use crate::support::envoy::Envoy;
use crate::support::link::free_port;
use crate::support::{Ask, Database, PATIENCE, Server, World};

/// Writes the server's log up to this decision into a file.
fn log_of(world: &World, server: &Server, id: &str) -> PathBuf {
    server.stderr.wait_for(&format!("a line about {id}"), PATIENCE, |lines| {
        lines.iter().any(|line| line.contains(id)).then_some(())
    });
    written(world, "log", &server.stderr.text())
}

fn written(world: &World, name: &str, text: &str) -> PathBuf {
    let file = world.db.dir().join(name);
    std::fs::write(&file, text).unwrap();
    file
}

/// Explains a decision from a log.
fn explain(world: &World, id: &str, log: &Path) -> Value {
    world.db.json(&["explain", "--decision-id", id, "--log", log.to_str().unwrap()])
}

fn outcomes(said: &Value) -> Vec<&str> {
    said["cases"].as_array().unwrap().iter().map(|case| case["outcome"]["reason"].as_str().unwrap()).collect()
}

#[test]
fn a_decision_is_found_in_the_log_and_its_key_decided_for_that_time() {
    let world = World::somewhere();
    for format in ["text", "json"] {
        let server =
            Server::on(&world.db).args(&["--log-format", format]).env("TENANTGATE_LOG_LEVEL", "info");
        let server = server.start_unready();
        server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&world.revoked.text));
        let answer = server.check(Ask::with_key(&world.revoked.text));
        let id = answer.meta("decision_id");
        let said = explain(&world, id, &log_of(&world, &server, id));
        let logged = &said["decision"]["logged"];
        assert_eq!(logged.as_array().map(Vec::len), Some(1), "{said}");
        assert_eq!(
            (&logged[0]["reason"], &logged[0]["row"], &logged[0]["key_prefix"]),
            (&json!("revoked"), &json!(4), &json!(world.revoked.prefix))
        );
        assert_eq!(said["judged_at"], said["decision"]["made_at"]);
        assert_eq!(outcomes(&said), ["revoked", "mismatch"]);
    }
}

#[test]
fn past_and_present_values_are_distinguished() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let answer = server.check(Ask::with_key(&world.of_sleepy.text));
    let id = answer.meta("decision_id");
    let log = log_of(&world, &server, id);
    world.db.json(&["tenant", "activate", &world.sleepy.id]);
    let said = explain(&world, id, &log);
    assert_eq!(said["decision"]["logged"][0]["reason"], "tenant_inactive");
    assert_eq!(outcomes(&said), ["ok", "mismatch"]);
    assert!(said["notes"].to_string().contains("old values of a row are not stored"), "{said}");
}

#[test]
fn an_unproven_decision_names_no_key() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let answer = server.check(Ask::with_key(&world.live.with_wrong_secret()));
    let id = answer.meta("decision_id");
    let log = log_of(&world, &server, id);
    let said = explain(&world, id, &log);
    assert_eq!(said["decision"]["logged"][0]["reason"], "mismatch");
    assert!(outcomes(&said).is_empty() && said["notes"].to_string().contains("--key-prefix"), "{said}");
    let args =
        ["explain", "--decision-id", id, "--log", log.to_str().unwrap(), "--key-prefix", &world.live.prefix];
    assert_eq!(outcomes(&world.db.json(&args)), ["ok", "mismatch"]);
}

#[test]
fn a_request_that_passed_in_shadow_mode_is_found_with_its_would_be_reason() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--mode", "shadow"]).start();
    let answer = server.check(Ask::with_key(&world.revoked.text));
    let id = answer.meta("decision_id");
    let log = log_of(&world, &server, id);
    let said = explain(&world, id, &log);
    let logged = &said["decision"]["logged"][0];
    assert_eq!((&logged["reason"], &logged["would_deny"]), (&json!("shadow"), &json!("revoked")), "{said}");
    assert_eq!((&logged["row"], &logged["cause"]), (&json!(4), &Value::Null), "{said}");
    assert_eq!(outcomes(&said), ["revoked", "mismatch"]);
    assert!(said["notes"].to_string().contains("--mode"), "{said}");
    let args = ["explain", "--decision-id", id, "--log", log.to_str().unwrap(), "--mode", "shadow"];
    let said = world.db.json(&args);
    assert_eq!(outcomes(&said), ["shadow", "shadow"]);
    assert!(!said["notes"].to_string().contains("--mode"), "{said}");
}

#[test]
fn without_a_log_the_id_gives_the_time_and_the_commands_to_run() {
    let world = World::somewhere();
    let id = "018bcfe5-687b-7abc-8def-0123456789ab";
    let said = world.db.cli(&["explain", "--decision-id", id]).ok();
    for wanted in ["2023-11-14T22:13:20.123", "--since @1699999940", "--until @1700000060", "--log -"] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let empty = written(&world, "empty", "nothing\n");
    let said = world.db.cli(&["explain", "--decision-id", id, "--log", empty.to_str().unwrap()]).refused();
    assert!(said.contains("50 rejections a second"), "{said}");
    world.db.cli(&["explain", "--decision-id", "550e8400-e29b-41d4-a716-446655440000"]).usage();
    world.db.cli(&["explain", "--log", "-"]).usage();
    let line = format!(
        "x decision.id={id} decision=\"unable\" reason=\"too_old\" key.prefix={}\n",
        world.live.prefix
    );
    let mut child = command(world.db.dir())
        .args(["explain", "-o", "json", "--decision-id", id, "--log", "-", "--database-url", world.db.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let said: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said["decision"]["logged"][0]["source"], "-:1");
    // The key was created after that; a server with old data reports its age first.
    assert_eq!(outcomes(&said), ["unavailable"], "{said}");
}

#[test]
fn a_decision_is_found_in_envoys_access_log() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    envoy.send("POST", "/v1/chat", &[(KEY_HEADER, &world.of_sleepy.text)]);
    let line = envoy.logged("/v1/chat");
    let id = line["decision_id"].as_str().unwrap();
    let said = explain(&world, id, &written(&world, "access", &format!("{line}\n")));
    let logged = &said["decision"]["logged"][0];
    for (field, wanted) in
        [("reason", "tenant_inactive"), ("method", "POST"), ("path", "/v1/chat"), ("status", "403")]
    {
        assert_eq!(logged[field], wanted, "{said}");
    }
    assert_eq!(outcomes(&said), ["tenant_inactive", "mismatch"]);
}

/// Sends a request through Envoy. Returns `answered_by http_status as_explained`.
fn through(database: &Database, url: &str, args: &[&str]) -> String {
    let said = database.json(&[&["explain", "--through", url], args].concat());
    let through = &said["through"];
    let by = through["answered_by"].as_str().unwrap();
    format!("{by} {} {}", through["http_status"], through["as_explained"])
}

#[test]
fn a_request_through_envoy_shows_who_answered_and_whether_as_explained() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    envoy.finds_tenantgate(true);
    let url = format!("http://{}", envoy.address);
    let key = |text: &str| written(&world, "key", text).to_str().unwrap().to_owned();
    let rows = [
        (world.live.text.clone(), "upstream 200 true"),
        (world.live.with_wrong_secret(), "tenantgate 401 true"),
        (world.of_sleepy.text.clone(), "tenantgate 403 true"),
        ("llmk_x".into(), "tenantgate 401 true"),
    ];
    for (text, expected) in &rows {
        assert_eq!(through(&world.db, &url, &["--path", "/v1", "--key-file", &key(text)]), *expected);
    }
    assert_eq!(through(&world.db, &url, &["--path", "/v1"]), "tenantgate 401 true");
    assert_eq!(through(&world.db, &url, &["--path", "/v1", "--method", "HEAD"]), "tenantgate 401 true");
    assert_eq!(through(&world.db, &url, &[]), "upstream 200 true", "GET / is public");
    assert_eq!(through(&world.db, &url, &["--path", "/v1/a%2fb"]), "envoy 400 false");
    let other = Database::sqlite(None);
    other.cli(&["migrate"]).ok();
    let live = key(&world.live.text);
    assert_eq!(through(&other, &url, &["--path", "/v1", "--key-file", &live]), "upstream 200 false");
    drop(server);
    assert_eq!(through(&world.db, &url, &["--path", "/v1"]), "envoy 503 false");
    let gone = format!("postgres://x@127.0.0.1:{}/x", free_port());
    let run = Database::at(crate::support::Backend::Postgres, &gone).cli(&["explain", "--through", &url]);
    assert_eq!(run.code, Some(3), "{run:#?}");
    assert!(run.stdout.contains("503 from envoy") && run.stderr.contains("unavailable"), "{run:#?}");
    world.db.cli(&["explain", "--through", &format!("http://127.0.0.1:{}", free_port())]).unavailable();
}
