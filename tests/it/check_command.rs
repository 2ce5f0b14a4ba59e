//! Tests the command `check` against a real server.

use serde_json::{Value, json};

use crate::support::ask::KEY_HEADER;
use crate::support::cli::{Run, run_in};
use crate::support::link::free_port;
use crate::support::verified_response::{IDENTITY, UNPROVEN};
use crate::support::{Server, World};

/// The fields of every printed answer.
const SHAPE: [&str; 6] = ["allowed", "body", "headers_removed", "headers_set", "http_status", "metadata"];

fn ask(world: &World, target: &str, args: &[&str]) -> Run {
    run_in(world.db.dir(), &[], &[&["check", "--output", "json", "--target", target], args].concat())
}

/// Returns the JSON on stdout for any exit code.
fn printed(run: &Run) -> Value {
    let printed: Value =
        serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"));
    assert_eq!(names(&printed), SHAPE, "{run:#?}");
    printed
}

fn names(object: &Value) -> Vec<&str> {
    object.as_object().unwrap_or_else(|| panic!("no object: {object}")).keys().map(String::as_str).collect()
}

#[test]
fn an_allowed_request_exits_with_0() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let run = ask(&world, &server.grpc[0], &["--path", "/v1", "--key", &world.live.text]);
    let said = printed(&run);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_eq!(
        (&said["allowed"], &said["http_status"], &said["body"]),
        (&json!(true), &json!(200), &Value::Null)
    );
    assert_eq!(names(&said["headers_set"]), IDENTITY);
    assert_eq!(said["headers_set"]["x-llmcore-tenant-id"], world.acme.id.as_str());
    assert_eq!(said["headers_removed"], json!([KEY_HEADER]));
    assert_eq!((&said["metadata"]["decision"], &said["metadata"]["reason"]), (&json!("allow"), &json!("ok")));
    assert_eq!(said["metadata"]["tenant_schema"], world.acme.schema.as_str());
}

#[test]
fn a_rejected_request_is_printed_and_exits_with_1() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let rows: [(&[&str], u16, &str, &str); 6] = [
        (&[], 401, "missing", r#"{"detail":"Missing API key"}"#),
        (&["--key", "llmk_x"], 401, "malformed", r#"{"detail":"Invalid API key format"}"#),
        (&["--key", "llmk_nobody_12345678"], 401, "unknown", r#"{"detail":"Invalid API key"}"#),
        (&["--key", &world.revoked.text], 401, "revoked", r#"{"detail":"Invalid API key"}"#),
        (
            &["--key", &world.of_sleepy.text],
            403,
            "tenant_inactive",
            r#"{"detail":"Tenant account is inactive"}"#,
        ),
        (&["--key", &world.live.with_wrong_secret()], 401, "mismatch", r#"{"detail":"Invalid API key"}"#),
    ];
    for (args, http, reason, body) in rows {
        let args = [&["--path", "/v1/items"], args].concat();
        let run = ask(&world, &server.grpc[0], &args);
        let said = printed(&run);
        assert_eq!(run.code, Some(1), "{run:#?}");
        assert_eq!((&said["allowed"], &said["http_status"]), (&json!(false), &json!(http)), "{run:#?}");
        assert_eq!((&said["body"], &said["metadata"]["reason"]), (&json!(body), &json!(reason)), "{run:#?}");
        assert_eq!(said["headers_removed"], json!([]), "{run:#?}");
        assert_eq!(said["headers_set"]["x-llmcore-decision-id"], said["metadata"]["decision_id"], "{run:#?}");
    }
}

#[test]
fn method_path_and_headers_are_sent_as_given() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let target = &server.grpc[0];
    let by_default = printed(&ask(&world, target, &[]));
    assert_eq!(by_default["metadata"]["reason"], "public", "the default is GET /");
    assert_eq!(names(&by_default["metadata"]), UNPROVEN);
    assert_eq!(by_default["headers_set"], json!({}));
    let bearer = format!("Authorization: Bearer {}", world.live.text);
    let key = format!("x-llmcore-api-key: {}", world.live.text);
    let rows: [(&[&str], &str); 6] = [
        (&["--path", "/docs"], "public"),
        (&["--method", "POST"], "missing"),
        (&["--path", "/v1/items", "--method", "HEAD"], "missing"),
        (&["--path", "/v1/items", "--header", &key], "ok"),
        (&["--path", "/v1/items", "--header", &bearer, "--header", "accept: */*"], "ok"),
        (&["--path", "/v1/items", "--header", &bearer, "--key", &world.live.text], "malformed"),
    ];
    for (args, reason) in rows {
        assert_eq!(printed(&ask(&world, target, args))["metadata"]["reason"], reason, "{args:?}");
    }
}

#[test]
fn without_a_listener_it_exits_with_3() {
    let world = World::somewhere();
    ask(&world, &format!("127.0.0.1:{}", free_port()), &["--key", &world.live.text]).unavailable();
    ask(&world, &format!("unix:{}/nobody.sock", world.db.dir().display()), &[]).unavailable();
    // A listener that does not speak gRPC.
    let server = Server::on(&world.db).start();
    ask(&world, &server.ops, &[]).unavailable();
}

#[test]
fn a_unix_socket_is_a_target() {
    let world = World::somewhere();
    let socket = format!("unix:{}", world.db.dir().join("check.sock").display());
    let _server = Server::on(&world.db).args(&["--listen", &socket]).start();
    let run = ask(&world, &socket, &["--path", "/v1", "--key", &world.live.text]);
    assert_eq!((run.code, printed(&run)["allowed"].clone()), (Some(0), json!(true)), "{run:#?}");
}

#[test]
fn text_output_has_the_same_content() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let said = run_in(
        world.db.dir(),
        &[],
        &["check", "--target", &server.grpc[0], "--path", "/v1", "--key", &world.live.text],
    )
    .ok();
    assert!(said.contains(&world.acme.id) && said.contains("200"), "{said}");
    let run = run_in(world.db.dir(), &[], &["check", "--target", &server.grpc[0], "--path", "/v1"]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("401") && run.stdout.contains("Missing API key"), "{run:#?}");
}

#[test]
fn an_invalid_target_is_a_usage_error() {
    let world = World::somewhere();
    for target in ["", "nonsense", "ftp://127.0.0.1:1", "127.0.0.1:port", "unix:"] {
        ask(&world, target, &[]).usage();
    }
}
