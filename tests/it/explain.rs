//! Compares the command `explain` with a real server.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::cli::run_in;
use crate::support::{Ask, Server, World, on_every_store};

/// Runs `explain` and returns its JSON.
fn explain(world: &World, args: &[&str]) -> Value {
    world.db.json(&[&["explain", "--path", "/v1"], args].concat())
}

/// Creates a file with this content.
fn file(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.db.dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Returns `presented: HTTP reason, row` of each case.
fn cases(said: &Value) -> Vec<String> {
    let case = |case: &Value| {
        let held: Vec<_> =
            case["rows"].as_array().unwrap().iter().filter(|row| row["state"] == "held").collect();
        assert_eq!(held.len(), 1, "one row is the answer: {said}");
        let outcome = &case["outcome"];
        let http = outcome["http_status"].as_u64().map_or("-".into(), |http| http.to_string());
        let (presented, reason) = (case["presented"].as_str().unwrap(), outcome["reason"].as_str().unwrap());
        format!("{presented}: {http} {reason}, row {}", held[0]["row"])
    };
    said["cases"].as_array().unwrap().iter().map(case).collect()
}

on_every_store!(
    a_prefix_is_explained_for_the_right_secret_and_for_a_wrong_one,
    the_explanation_equals_the_answer_of_a_server,
    the_explanation_equals_the_answer_in_shadow_mode,
    the_mode_of_a_tenant_is_considered_as_in_a_server,
    a_damaged_row_is_explained_as_such,
    a_past_time_is_explained_as_far_as_the_row_contains_it,
    the_terms_of_a_key_are_explained_as_a_server_applies_them,
    a_refusal_says_what_in_the_request_decided,
);

fn a_refusal_says_what_in_the_request_decided(world: &World) {
    world.db.json(&["route", "add", "--path", "/v1/{x}", "--scopes", "a.read | b", "--name", "read"]);
    world.db.json(&["key", "update", &world.live.prefix, "--scopes", "c"]);
    let because = |args: &[&str]| {
        let said = world.db.json(&[&["explain", "--key-prefix", &world.live.prefix], args].concat());
        let rows = said["cases"][0]["rows"].as_array().unwrap().clone();
        let held = rows.iter().find(|row| row["state"] == "held").expect("one row is the answer");
        held["because"].as_str().unwrap_or_default().to_owned()
    };
    let scope = because(&["--path", "/v1/x", "--context", "tenantgate.scopes=d"]);
    assert_eq!(scope, r#"scopes "c"; rule read needs "a.read | b", tenantgate.scopes needs "d""#);
    assert_eq!(because(&["--path", "/v1/../x"]), "a dot segment at position 6");
    assert!(because(&["--path", "/v1/x", "--context", "tenantgate.mode=off"]).starts_with("tenantgate.mode"));
}

fn the_terms_of_a_key_are_explained_as_a_server_applies_them(world: &World) {
    world.db.json(&["plan", "create", "gold", "--request-limit", "100/MINUTE"]);
    world.db.json(&["route", "add", "--path", "/v1/{x}", "--scopes", "a.read | b", "--name", "read"]);
    world.db.json(&["route", "add", "--path", "/v1/open", "--mode", "optional", "--host", "a.example.com"]);
    let server = Server::on(&world.db).args(&["--route-default", "deny"]).start();
    let mut seen = Vec::new();
    for (update, method, host, path, address, context) in [
        (&["--all-scopes"][..], "GET", "", "/v1/x", None, None),
        (&["--scopes", "a.*"], "GET", "", "/v1/x", None, None),
        (&["--scopes", "c"], "GET", "", "/v1/x", None, None),
        (&["--scopes", "c"], "GET", "a.example.com", "/v1/open", None, None),
        (&["--scopes", "c"], "GET", "a.example.com", "/v1/open/", None, Some("tenantgate.scopes=d")),
        (&["--scopes", "c"], "GET", "", "/v1/x", None, Some("tenantgate.mode=never")),
        (&["--scopes", "c"], "GET", "", "/other", None, None),
        (&["--scopes", "c"], "GET", "", "/v1/../other", None, None),
        (&["--scopes", "b", "--networks", "192.0.2.0/24"], "POST", "", "/v1/x", Some("192.0.2.7"), None),
        (&["--plan", "gold"], "GET", "", "/v1/x", Some("::ffff:192.0.2.7"), None),
        (&["--plan", "gold"], "GET", "", "/v1/x", Some("198.51.100.7"), None),
        (&["--plan", "gold"], "GET", "", "/v1/x", None, None),
        (&["--any-network", "--not-before", "2999-01-01T00:00:00Z"], "GET", "", "/v1/x", None, None),
    ] {
        world.db.json(&[&["key", "update", &world.live.id, "--wait"], update].concat());
        let key = file(world, "key", &world.live.text);
        let mut request = vec!["--method", method, "--path", path, "--host", host];
        request.extend(address.iter().flat_map(|address| ["--client-address", address]));
        request.extend(context.iter().flat_map(|context| ["--context", context]));
        let policy = ["--route-default", "deny", "--key-file", key.to_str().unwrap()];
        let said = world.db.json(&[&["explain"], &policy[..], &request].concat());
        let outcome = &said["cases"][0]["outcome"];
        let target = ["check", "--target", &server.grpc[0], "--key", &world.live.text];
        let answer = world.db.cli(&[&["-o", "json"], &target[..], &request].concat());
        let answer: Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!(outcome["reason"], answer["metadata"]["reason"], "{request:?}: {said} {answer}");
        assert_eq!(outcome["body"], answer["body"], "{request:?}: {said} {answer}");
        assert_eq!(outcome["allowed"], answer["allowed"], "{request:?}: {said} {answer}");
        seen.push(outcome["reason"].as_str().unwrap().to_owned());
        if seen.len() == 10 {
            let limit = serde_json::json!({"requests_per_unit": 100, "unit": "MINUTE"});
            assert_eq!(answer["metadata"]["request_limit"], limit);
            assert_eq!(answer["metadata"]["scopes"], serde_json::json!(["b"]));
        }
    }
    let expected = [
        "ok",
        "ok",
        "scope",
        "ok",
        "scope",
        "unavailable",
        "route",
        "path_ambiguous",
        "ok",
        "ok",
        "network",
        "network",
        "not_yet_valid",
    ];
    assert_eq!(seen, expected);
}

fn a_prefix_is_explained_for_the_right_secret_and_for_a_wrong_one(world: &World) {
    let wrong = "a wrong secret: 401 mismatch, row 4";
    for (key, right) in [
        (&world.live, "the right secret: - ok, row 7"),
        (&world.revoked, "the right secret: 401 revoked, row 4"),
        (&world.expired, "the right secret: 401 expired, row 4"),
        (&world.of_sleepy, "the right secret: 403 tenant_inactive, row 5"),
        (&world.of_newborn, "the right secret: 403 tenant_inactive, row 5"),
        (&world.of_gone, "the right secret: 403 tenant_inactive, row 5"),
    ] {
        let said = explain(world, &["--key-prefix", &key.prefix]);
        assert_eq!(cases(&said), [right, wrong], "{said}");
        assert_eq!(said["key"]["id"], key.id.as_str());
    }
    let said = explain(world, &["--key-prefix", "llmk_nobody"]);
    assert_eq!((cases(&said), &said["key"]), (vec!["any secret: 401 unknown, row 4".into()], &Value::Null));
    let said = explain(world, &[]);
    assert_eq!(cases(&said), ["no key: 401 missing, row 2"]);
    let said = world.db.json(&["explain", "--path", "/docs?q", "--key-prefix", &world.revoked.prefix]);
    assert_eq!(cases(&said), ["the right secret: - public, row 1", "a wrong secret: - public, row 1"]);
}

fn the_explanation_equals_the_answer_of_a_server(world: &World) {
    let server = Server::on(&world.db).start();
    let texts = [
        world.live.text.clone(),
        world.live.with_wrong_secret(),
        world.revoked.text.clone(),
        world.expired.text.clone(),
        world.of_sleepy.text.clone(),
        "llmk_nobody_12345678".into(),
        "llmk_x".into(),
        String::new(),
    ];
    for text in &texts {
        is_as_explained(world, &server, text, &[]);
    }
}

/// Compares a server's answer for this key with the explanation for these arguments.
#[track_caller]
fn is_as_explained(world: &World, server: &Server, text: &str, args: &[&str]) -> String {
    let file = file(world, "key", &format!("{text}\n"));
    let said = explain(world, &[&["--key-file", file.to_str().unwrap()], args].concat());
    let answer = server.check(Ask::get("/v1").key(text));
    let outcome = &said["cases"][0]["outcome"];
    let http = outcome["http_status"].as_u64().unwrap_or(200);
    assert_eq!(format!("{http} {}", outcome["reason"].as_str().unwrap()), answer.row(), "{said}");
    assert_eq!(outcome["allowed"], http == 200, "{said}");
    assert_eq!(outcome["code"], answer.code(), "{said}");
    assert_eq!(outcome["body"].as_str().unwrap_or_default(), answer.body(), "{said}");
    let would_deny = answer.metadata.get("would_deny").map(String::as_str);
    assert_eq!(outcome["would_deny"].as_str(), would_deny, "{said}");
    assert_eq!(said["cases"].as_array().unwrap().len(), 1);
    [answer.row().as_str(), would_deny.unwrap_or_default()].join(" ").trim_end().to_owned()
}

fn the_explanation_equals_the_answer_in_shadow_mode(world: &World) {
    world.db.sql("UPDATE api_keys SET hashed_key = '$2x$04$' WHERE key_prefix = 'llmk_other'");
    let server = Server::on(&world.db).args(&["--mode", "shadow"]).start();
    for (text, expected) in [
        (world.live.text.clone(), "200 ok"),
        (world.live.with_wrong_secret(), "200 shadow mismatch"),
        (world.revoked.text.clone(), "200 shadow revoked"),
        (world.expired.text.clone(), "200 shadow expired"),
        (world.of_sleepy.text.clone(), "200 shadow tenant_inactive"),
        (world.other.text.clone(), "200 shadow unavailable"),
        ("llmk_nobody_12345678".into(), "200 shadow unknown"),
        ("llmk_x".into(), "200 shadow malformed"),
        (String::new(), "200 shadow missing"),
    ] {
        assert_eq!(is_as_explained(world, &server, &text, &["--mode", "shadow"]), expected);
    }
    let said = explain(world, &["--key-prefix", &world.other.prefix, "--mode", "shadow"]);
    assert_eq!(cases(&said), ["any secret: - shadow, row 6"], "the table is unchanged");
    assert_eq!(said["cases"][0]["outcome"]["cause"], "damaged_row");
}

fn the_mode_of_a_tenant_is_considered_as_in_a_server(world: &World) {
    world.db.json(&["tenant", "mode", &world.sleepy.id, "shadow"]);
    world.db.json(&["tenant", "mode", &world.acme.id, "enforce"]);
    for (mode, of_nobody) in [("enforce", "401 mismatch"), ("shadow", "200 shadow mismatch")] {
        let server = Server::on(&world.db).args(&["--mode", mode]).start();
        for (text, expected) in [
            (world.of_sleepy.text.clone(), "200 shadow tenant_inactive"),
            (world.of_sleepy.with_wrong_secret(), of_nobody),
            (world.revoked.text.clone(), "401 revoked"),
            (world.revoked.with_wrong_secret(), of_nobody),
        ] {
            assert_eq!(is_as_explained(world, &server, &text, &["--mode", mode]), expected, "{mode}");
        }
    }
    let said = explain(world, &["--key-prefix", &world.of_sleepy.prefix]);
    let wrong = "a wrong secret: 401 mismatch, row 4";
    assert_eq!(cases(&said), ["the right secret: - shadow, row 5", wrong]);
    assert_eq!(said["cases"][0]["outcome"]["would_deny"], "tenant_inactive");
    assert_eq!(said["cases"][1]["outcome"]["would_deny"], Value::Null);
}

fn a_damaged_row_is_explained_as_such(world: &World) {
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = 'plain' WHERE id = '{}'", world.live.id));
    let said = explain(world, &["--key-prefix", &world.live.prefix]);
    assert_eq!(cases(&said), ["any secret: 503 unavailable, row 6"]);
    assert_eq!(said["cases"][0]["outcome"]["cause"], "damaged_row");
    world.db.sql(&format!("UPDATE tenants SET db_schema_name = 'no schema' WHERE id = '{}'", world.acme.id));
    let said = explain(world, &["--key-prefix", &world.other.prefix]);
    assert_eq!(cases(&said)[0], "the right secret: 503 unavailable, row 6");
}

fn a_past_time_is_explained_as_far_as_the_row_contains_it(world: &World) {
    let at = |key: &str, at: &str| cases(&explain(world, &["--key-prefix", key, "--at", at])).remove(0);
    let revoked = &world.revoked.prefix;
    world.db.sql(&format!(
        "UPDATE api_keys SET created_at = '2026-01-01T00:00:00.000000Z', revoked_at = '2026-03-01T00:00:00.000000Z', \
         expires_at = '2026-06-01T00:00:00.000000Z' WHERE key_prefix = '{revoked}'"
    ));
    assert_eq!(at(revoked, "2025-12-31T23:59:59Z"), "any secret: 401 unknown, row 4");
    assert_eq!(at(revoked, "2026-02-01T00:00:00Z"), "the right secret: - ok, row 7");
    assert_eq!(at(revoked, "2026-03-01T00:00:00Z"), "the right secret: 401 revoked, row 4");
    world.db.sql(&format!("UPDATE api_keys SET revoked_at = NULL WHERE key_prefix = '{revoked}'"));
    assert_eq!(at(revoked, "2026-05-31T23:59:59Z"), "the right secret: - ok, row 7");
    assert_eq!(at(revoked, "2026-06-01T00:00:00Z"), "the right secret: 401 expired, row 4");
}

#[test]
fn without_a_required_memo_no_secret_passes() {
    let world = World::somewhere();
    let pepper = world.db.dir().join("pepper");
    world.db.cli(&["pepper", "new", pepper.to_str().unwrap()]).ok();
    let args =
        ["--key-prefix", &world.live.prefix, "--pepper-file", pepper.to_str().unwrap(), "--memo", "required"];
    let said = explain(&world, &args);
    assert_eq!(cases(&said), ["any secret: 401 mismatch, row 4"]);
    assert!(said["notes"].to_string().contains("memos are required"), "{said}");
}

#[test]
fn a_key_is_verified_by_its_memo_or_by_bcrypt() {
    let world = World::somewhere();
    let pepper = world.db.dir().join("pepper");
    let pepper = pepper.to_str().unwrap();
    world.db.cli(&["pepper", "new", pepper]).ok();
    let issued = world.db.json(&["key", "create", &world.acme.id, "--pepper-file", pepper]);
    let key = file(&world, "key", issued["key"].as_str().unwrap());
    for (args, how) in
        [(vec!["--pepper-file", pepper], "without bcrypt"), (vec![], "bcrypt verified the key")]
    {
        let said = explain(&world, &[vec!["--key-file", key.to_str().unwrap()], args].concat());
        assert_eq!(cases(&said), ["this key: - ok, row 7"]);
        assert!(said["notes"].to_string().contains(how), "{said}");
    }
}

#[test]
fn the_options_of_serve_are_considered() {
    let world = World::somewhere();
    let key = file(&world, "key", &world.live.text);
    let key = key.to_str().unwrap();
    let bearer = explain(&world, &["--key-file", key, "--bearer"]);
    assert_eq!(cases(&bearer), ["no key: 401 missing, row 2"]);
    assert!(bearer["notes"].to_string().contains("--accept-bearer"), "{bearer}");
    let bearer = explain(&world, &["--key-file", key, "--bearer", "--accept-bearer"]);
    assert_eq!(cases(&bearer), ["this key: - ok, row 7"]);
    let public = explain(&world, &["--public", "GET /v1"]);
    assert_eq!(cases(&public), ["no key: - public, row 1"]);
    let env = [("TENANTGATE_PUBLIC", "POST /x,GET /v1"), ("LLMCORE_AUTH_DATABASE_URL", world.db.url())];
    let said = run_in(world.db.dir(), &env, &["explain", "--path", "/v1", "-o", "json"]).json();
    assert_eq!(cases(&said), ["no key: - public, row 1"]);
    world.db.cli(&["explain", "--public", "nonsense"]).usage();
    let env = [("TENANTGATE_MODE", "shadow"), ("LLMCORE_AUTH_DATABASE_URL", world.db.url())];
    let said = run_in(world.db.dir(), &env, &["explain", "-o", "json"]).json();
    assert_eq!(cases(&said), ["no key: - shadow, row 2"]);
    let said = world.db.cli(&["explain", "--mode", "open"]).usage();
    assert!(said.contains(r#"--mode: invalid value "open": expected enforce or shadow"#), "{said}");
}

#[test]
fn a_whole_key_is_not_accepted_as_prefix_and_not_repeated() {
    let world = World::somewhere();
    let said = world.db.cli(&["explain", "--key-prefix", &world.live.text]).usage();
    assert!(said.contains("--key-file"), "{said}");
    world.db.cli(&["explain", "--key-prefix", "llmk_!"]).usage();
    world.db.cli(&["explain", "--key-file", "/nowhere"]).usage();
}

#[test]
fn text_output_has_a_table_of_conditions_and_the_answer() {
    let world = World::somewhere();
    let said = world.db.cli(&["explain", "--path", "/v1", "--key-prefix", &world.revoked.prefix]).ok();
    for wanted in ["THE RIGHT SECRET", "the key is revoked", "held", "not reached", "revoked_at ", "code 16"]
    {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    assert!(said.contains(r#"the right secret: 401 {"detail":"Invalid API key"}"#), "{said}");
    let args = ["explain", "--path", "/v1", "--key-prefix", &world.revoked.prefix, "--mode", "shadow"];
    let said = world.db.cli(&args).ok();
    assert!(said.contains("the right secret: allowed in shadow mode, would be rejected: revoked"), "{said}");
}
