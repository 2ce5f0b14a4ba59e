//! Sends hostile bodies and paths to management over HTTP.

use serde_json::Value;

use crate::manage::{Manage, is_problem, owner};
use crate::support::world::string;
use crate::support::{World, on_every_store};

on_every_store![
    bodies_that_are_not_json_objects_are_rejected,
    large_and_deep_bodies_are_rejected_early,
    unusual_spellings_of_paths_reach_nothing,
    texts_are_escaped_wherever_they_are_written,
    texts_that_the_database_cannot_hold_are_mistakes_of_the_request,
    bodies_in_another_coding_are_rejected,
    an_existing_schema_is_a_conflict,
];

fn bodies_that_are_not_json_objects_are_rejected(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    for body in
        ["", "{", "null", "[]", "7", "\"x\"", "{} {}", "\u{feff}{}", "{\"name\":\"a\",\"name\":\"b\"}"]
    {
        let page = manage.send(&key, "POST", "/v1/tenants", body, &[]);
        is_problem(&page, 400, "invalid_request");
    }
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json-patch+json",
    ] {
        let header = format!("content-type: {media}");
        for (method, path) in
            [("POST", "/v1/tenants".to_owned()), ("PATCH", format!("/v1/keys/{}", world.live.id))]
        {
            let page = manage.send(&key, method, &path, "{}", &[&header]);
            is_problem(&page, 415, "unsupported_media_type");
        }
    }
    let page = manage.send(&key, "POST", "/v1/plans", "{}", &["content-type: application/merge-patch+json"]);
    is_problem(&page, 415, "unsupported_media_type");
    for (method, path) in [
        ("PUT", "/v1/tenants"),
        ("DELETE", "/v1/whoami"),
        ("POST", "/v1/plans/gold"),
        ("GET", "/v1/keys/x/revoke"),
    ] {
        let page = manage.send(&key, method, path, "", &[]);
        is_problem(&page, 405, "method_not_allowed");
        assert!(!page.headers["allow"].is_empty());
    }
}

fn large_and_deep_bodies_are_rejected_early(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let text = |bytes: usize| format!(r#"{{"name":"{}"}}"#, "x".repeat(bytes));
    is_problem(&manage.send(&key, "POST", "/v1/tenants", &text(2 << 20), &[]), 413, "body_too_large");
    // A body of exactly 1 MiB is read.
    let fits = (1 << 20) - text(0).len();
    is_problem(&manage.send(&key, "POST", "/v1/tenants", &text(fits), &[]), 400, "invalid_request");
    is_problem(&manage.send(&key, "POST", "/v1/tenants", &text(fits + 1), &[]), 413, "body_too_large");
    for deep in
        ["[".repeat(500_000), "{\"a\":".repeat(100_000), format!("{}1{}", "[".repeat(200), "]".repeat(200))]
    {
        let page = manage.send(&key, "PUT", "/v1/routes", &deep, &["if-match: *"]);
        is_problem(&page, 400, "invalid_request");
        assert!(page.body.len() < 2_000, "{}", page.body);
    }
    let many: Vec<_> = (0..50_000).map(|n| format!("\"f{n}\":1")).collect();
    let page = manage.send(&key, "POST", "/v1/tenants", &format!("{{{}}}", many.join(",")), &[]);
    is_problem(&page, 400, "invalid_request");
    let body: Value = serde_json::from_str(&page.body).expect("JSON");
    assert!(body["errors"].as_array().is_some_and(|errors| errors.len() <= 101), "the response is short");
    // A client without permission is rejected before its body is read.
    let viewer = string(&world.db.json(&["admin-key", "create", "v", "--role", "viewer"]), "key");
    is_problem(&manage.send(&viewer, "POST", "/v1/tenants", "{", &[]), 403, "missing_permission");
}

fn unusual_spellings_of_paths_reach_nothing(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let id = &world.live.id;
    let before = world.db.json(&["key", "show", id]);
    for path in [
        format!("/v1//keys/{id}/revoke"),
        format!("/v1/keys//{id}/revoke"),
        format!("/v1/keys/{id}//revoke"),
        format!("/v1/keys/{id}/revoke/"),
        format!("/v1/./keys/{id}/revoke"),
        format!("/v1/%2e/keys/{id}/revoke"),
        format!("/v1/tenants/%2e%2e/keys/{id}/revoke"),
        format!("/v1/tenants/../keys/{id}/revoke"),
        format!("/v1/keys/{id}%2frevoke"),
        format!("/v1/keys/{id}%00/revoke"),
        format!("/v1/keys/{id}%0a/revoke"),
        format!("/v1/keys/%20{id}/revoke"),
        "/v1/keys/%00/revoke".into(),
        "/v1/keys/%ff/revoke".into(),
        format!("/v1/keys/{}/revoke", world.live.text),
        format!("/v1/keys/{}/revoke", "x".repeat(5_000)),
        "/v1/keys/'%20OR%20true--/revoke".into(),
        "/v1/keys/%25/revoke".into(),
        format!("/V1/keys/{id}/revoke"),
    ] {
        let page = manage.send(&key, "POST", &path, "", &[]);
        assert!([400, 404, 405].contains(&page.status), "{path}: {} {}", page.status, page.body);
        assert!(!page.body.contains(&world.live.text), "{}", page.body);
    }
    for path in [format!("/v1/keys/{id}/revoke?force=1"), format!("/v1/keys/{id}/revoke?")] {
        let status = manage.send(&key, "POST", &path, "", &["if-match: \"x\""]).status;
        assert_eq!(status, if path.ends_with('?') { 412 } else { 400 }, "{path}");
    }
    assert_eq!(world.db.json(&["key", "show", id]), before);
    assert!(!manage.stderr.text().contains(&world.live.text));
}

fn texts_that_the_database_cannot_hold_are_mistakes_of_the_request(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    for query in ["keys?name=%00", "audit?actor=%00", "audit?subject=a%00", "usage?tenant=%00"] {
        is_problem(&manage.get(&format!("/v1/{query}"), &key), 400, "invalid_request");
    }
    let body = serde_json::json!({ "name": "x", "tenants": ["\u{0}"] }).to_string();
    is_problem(&manage.send(&key, "POST", "/v1/admin_keys", &body, &[]), 422, "unprocessable");
    for path in ["keys/%ff", "tenants/%ff", "plans/%c3%28"] {
        is_problem(&manage.get(&format!("/v1/{path}"), &key), 404, "not_found");
    }
    let cookie = crate::page::sign_in(&manage, &key);
    for (path, status) in [
        ("/keys?q=%00", 200),
        ("/audit?actor=%00", 200),
        ("/audit?subject=%00", 200),
        ("/keys/%ff", 404),
        ("/tenants/%ff", 404),
        ("/login/%ff", 404),
    ] {
        assert_eq!(crate::page::get(&manage, path, &cookie).status, status, "{path}");
    }
    // A row that another program wrote: the other rows are still listed.
    world.db.sql("UPDATE api_keys SET created_at = 'infinity' WHERE key_prefix = 'llmk_live'");
    let (mut found, mut token) = (0, String::new());
    loop {
        let page = manage.json(&format!("/v1/keys?page_size=1&page_token={token}"), &key);
        found += page["items"].as_array().expect("a list").len();
        token = string(&page, "next_page_token");
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, world.db.json(&["key", "list"]).as_array().expect("a list").len());
}

fn bodies_in_another_coding_are_rejected(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let send = |headers: &[&str]| manage.send(&key, "POST", "/v1/tenants", r#"{"name":"New Ltd"}"#, headers);
    for headers in [
        &["content-type: application/json", "content-encoding: gzip"][..],
        &["content-type: application/json; charset=utf-16"],
    ] {
        is_problem(&send(headers), 415, "unsupported_media_type");
    }
    let typed = send(&["content-type: application/json; charset=\"UTF-8\"", "content-encoding: identity"]);
    assert_eq!(typed.status, 201, "{}", typed.body);
}

fn an_existing_schema_is_a_conflict(world: &World) {
    if world.db.backend == crate::support::Backend::Sqlite {
        return;
    }
    world.db.sql("CREATE SCHEMA tenant_taken");
    world.db.sql("CREATE TABLE tenant_taken.t (id int)");
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let page = manage.send(&key, "POST", "/v1/tenants", r#"{"name":"Taken"}"#, &[]);
    is_problem(&page, 409, "refused");
    assert!(page.body.contains("exists and is not empty"), "{}", page.body);
}

fn texts_are_escaped_wherever_they_are_written(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let at = format!("/v1/keys/{}", world.live.id);
    for name in ["<script>alert(1)</script>", "'; DROP TABLE tenants; --", "ü\u{202e}😀", "%00", "${jndi:x}"]
    {
        let body = serde_json::json!({ "name": name, "labels": { "a": name } });
        let after = manage.change(&key, "PATCH", &at, &body);
        assert_eq!((&after["name"], &after["labels"]["a"]), (&name.into(), &name.into()));
    }
    for name in ["a\u{0}b", "a\nb", &world.live.text, "\u{7f}"] {
        let body = serde_json::json!({ "name": name }).to_string();
        is_problem(&manage.send(&key, "PATCH", &at, &body, &[]), 400, "invalid_request");
        let body = serde_json::json!({ "reason": name }).to_string();
        is_problem(&manage.send(&key, "POST", &format!("{at}/revoke"), &body, &[]), 400, "invalid_request");
        let body =
            serde_json::json!({ "path": format!("/{name}"), "scopes": name, "name": name }).to_string();
        is_problem(&manage.send(&key, "POST", "/v1/routes", &body, &[]), 400, "invalid_request");
    }
    let field = serde_json::json!({ "a\u{0}\n<b>": 1 }).to_string();
    is_problem(&manage.send(&key, "PATCH", &at, &field, &[]), 400, "invalid_request");
    let confirm = serde_json::json!({ "confirm": "\u{0}" }).to_string();
    is_problem(
        &manage.send(&key, "POST", &format!("/v1/tenants/{}/delete", world.acme.id), &confirm, &[]),
        422,
        "unprocessable",
    );
    world.db.json(&["audit", "verify"]);
}
