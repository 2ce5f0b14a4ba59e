//! Tests repeated requests and concurrent changes over HTTP, on both stores.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use crate::manage::{Manage, is_problem, owner};
use crate::support::world::string;
use crate::support::{Ask, Backend, Server, World, on_every_store};

on_every_store![
    a_repeated_request_changes_nothing_and_shows_the_same_key,
    without_its_pepper_a_key_is_not_shown_again,
    concurrent_requests_with_one_idempotency_key_make_one_change,
    a_failed_request_releases_its_idempotency_key,
    another_body_or_a_running_request_is_refused,
    of_concurrent_changes_of_one_version_one_succeeds,
    a_version_stays_while_servers_write,
];

fn pepper(world: &World) -> String {
    let file = world.db.dir().join("pepper");
    world.db.json(&["pepper", "new", file.to_str().expect("UTF-8")]);
    file.to_str().expect("UTF-8").to_owned()
}

fn body(page: &crate::support::http::Page) -> Value {
    serde_json::from_str(&page.body).expect("JSON")
}

const AGAIN: &[&str] = &["idempotency-key: one-0001"];

fn a_repeated_request_changes_nothing_and_shows_the_same_key(world: &World) {
    let (key, file) = (owner(world), pepper(world));
    let manage = Manage::with(&world.db, "127.0.0.1:0", &["--pepper-file", &file]);
    let create = format!("/v1/tenants/{}/keys", world.acme.id);
    let first = manage.send(&key, "POST", &create, r#"{"name":"ci"}"#, AGAIN);
    assert_eq!((first.status, first.headers.get("idempotency-replayed")), (201, None), "{}", first.body);
    let made = body(&first);
    // The name of the tenant, which is part of the prefix, may change meanwhile.
    manage.change(&key, "PATCH", &format!("/v1/tenants/{}", world.acme.id), &json!({ "name": "Other" }));
    let rows = world.db.json(&["audit", "verify"])["rows"].clone();
    // Another process returns the same response.
    let other = Manage::with(&world.db, "127.0.0.1:0", &["--pepper-file", &file]);
    for manage in [&manage, &other] {
        let again = manage.send(&key, "POST", &create, r#"{"name":"ci"}"#, AGAIN);
        assert_eq!((again.status, body(&again)), (201, made.clone()));
        assert_eq!(again.headers["idempotency-replayed"], "true");
        for header in ["etag", "location"] {
            assert_eq!(again.headers[header], first.headers[header]);
        }
    }
    assert_eq!(world.db.json(&["audit", "verify"])["rows"], rows);
    let secret = string(&made, "key");
    assert_eq!(Server::on(&world.db).start().row(Ask::with_key(&secret)), "200 ok");
    let rotate = format!("/v1/keys/{}/rotate", string(&made, "id"));
    let rotated = body(&manage.send(&key, "POST", &rotate, r#"{"grace":"1h"}"#, AGAIN));
    let again = body(&manage.send(&key, "POST", &rotate, r#"{"grace":"1h"}"#, AGAIN));
    assert_eq!(rotated, again);
    assert_ne!(rotated["new"]["key"], made["key"], "for another path");
    let admin = body(&manage.send(&key, "POST", "/v1/admin_keys", r#"{"name":"k"}"#, AGAIN));
    assert_eq!(body(&manage.send(&key, "POST", "/v1/admin_keys", r#"{"name":"k"}"#, AGAIN)), admin);
    assert_eq!(manage.json("/v1/whoami", &string(&admin, "key"))["name"], "k");
    // For another management key it is a different request.
    let page = manage.send(&string(&admin, "key"), "POST", &create, r#"{"name":"ci"}"#, AGAIN);
    assert_ne!(body(&page)["id"], made["id"]);
    let everything = match world.db.backend {
        Backend::Postgres => world.db.everything(),
        Backend::Sqlite => {
            world.db.text("SELECT group_concat(answer) FROM tenantgate_idempotency").expect("answers")
        }
    };
    for issued in [&secret, &string(&rotated["new"], "key"), &string(&admin, "key")] {
        assert!(
            !everything.contains(issued.rsplit_once('_').expect("a key").1),
            "a secret is in the database"
        );
    }
}

fn without_its_pepper_a_key_is_not_shown_again(world: &World) {
    let key = owner(world);
    let create = format!("/v1/tenants/{}/keys", world.acme.id);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let first = body(&manage.send(&key, "POST", &create, "", AGAIN));
    assert!(first["key"].is_string());
    let mut again = body(&manage.send(&key, "POST", &create, "", AGAIN));
    assert_eq!((&again["key"], &again["code"]), (&Value::Null, &"secret_not_replayable".into()));
    again["key"] = first["key"].clone();
    again.as_object_mut().expect("an object").remove("code");
    assert_eq!(again, first);
    let file = pepper(world);
    let rotate = format!("/v1/keys/{}/rotate", world.live.id);
    let with = Manage::with(&world.db, "127.0.0.1:0", &["--pepper-file", &file]);
    assert!(body(&with.send(&key, "POST", &rotate, "", AGAIN))["new"]["key"].is_string());
    let again = body(&manage.send(&key, "POST", &rotate, "", AGAIN));
    assert_eq!(
        (&again["new"]["key"], &again["new"]["code"]),
        (&Value::Null, &"secret_not_replayable".into())
    );
}

fn concurrent_requests_with_one_idempotency_key_make_one_change(world: &World) {
    let (key, file) = (owner(world), pepper(world));
    let manage = Manage::with(&world.db, "127.0.0.1:0", &["--pepper-file", &file]);
    let create = format!("/v1/tenants/{}/keys", world.acme.id);
    let before = world.db.json(&["key", "list"]).as_array().map(Vec::len);
    let pages: Vec<_> = thread::scope(|scope| {
        let ask = || manage.send(&key, "POST", &create, r#"{"name":"ci"}"#, AGAIN);
        let all: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        all.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let mut made = BTreeSet::new();
    for page in &pages {
        match page.status {
            201 => assert!(made.insert(page.body.clone()) || made.len() == 1),
            409 => is_problem(page, 409, "request_running"),
            other => panic!("{other}: {}", page.body),
        }
    }
    assert_eq!(made.len(), 1, "{pages:?}");
    let after = world.db.json(&["key", "list"]).as_array().map(Vec::len);
    assert_eq!(after, before.map(|n| n + 1));
}

fn a_failed_request_releases_its_idempotency_key(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let body = r#"{"name":"a","plan":"gold"}"#;
    is_problem(&manage.send(&key, "POST", "/v1/tenants", body, AGAIN), 422, "unprocessable");
    world.db.json(&["plan", "create", "gold"]);
    assert_eq!(manage.send(&key, "POST", "/v1/tenants", body, AGAIN).status, 201);
    assert_eq!(manage.send(&key, "POST", "/v1/tenants", body, AGAIN).status, 201);
    is_problem(&manage.send(&key, "POST", "/v1/tenants", body, &[]), 409, "refused");
    let count = world.db.text("SELECT CAST(count(*) AS text) FROM tenantgate_idempotency");
    assert_eq!(count.as_deref(), Some("1"));
    for bad in ["idempotency-key: ", "idempotency-key: a b", &format!("idempotency-key: {}", "x".repeat(256))]
    {
        is_problem(&manage.send(&key, "POST", "/v1/tenants", body, &[bad]), 400, "invalid_request");
    }
}

fn another_body_or_a_running_request_is_refused(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let plan = r#"{"name":"gold"}"#;
    assert_eq!(manage.send(&key, "POST", "/v1/plans", plan, AGAIN).status, 201);
    is_problem(
        &manage.send(&key, "POST", "/v1/plans", r#"{"name":"blue"}"#, AGAIN),
        422,
        "idempotency_key_reused",
    );
    let running = "UPDATE tenantgate_idempotency SET answer = NULL";
    world.db.sql(running);
    let page = manage.send(&key, "POST", "/v1/plans", plan, AGAIN);
    is_problem(&page, 409, "request_running");
    assert_eq!(page.headers["retry-after"], "1");
    // After two minutes, the process of an unfinished request counts as dead, and the request is made again.
    world.db.sql("UPDATE tenantgate_idempotency SET started_at = '2026-01-01T00:00:00.000000Z'");
    is_problem(&manage.send(&key, "POST", "/v1/plans", plan, AGAIN), 409, "refused");
    assert_eq!(manage.send(&key, "POST", "/v1/plans", r#"{"name":"blue"}"#, AGAIN).status, 201);
    // After a day, the response is deleted.
    world.db.sql("UPDATE tenantgate_idempotency SET started_at = '2026-01-01T00:00:00.000000Z'");
    assert_eq!(manage.send(&key, "POST", "/v1/plans", r#"{"name":"red"}"#, AGAIN).status, 201);
}

fn of_concurrent_changes_of_one_version_one_succeeds(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let admin_key = string(&manage.change(&key, "POST", "/v1/admin_keys", &json!({ "name": "k" })), "id");
    manage.change(&key, "POST", "/v1/plans", &json!({ "name": "gold" }));
    let rule = string(&manage.change(&key, "POST", "/v1/routes", &json!({ "path": "/a" })), "id");
    for (path, body) in [
        (format!("/v1/tenants/{}", world.acme.id), r#"{"name":"N{}"}"#),
        ("/v1/plans/gold".to_owned(), r#"{"total_limit":"{}/DAY"}"#),
        (format!("/v1/routes/{rule}"), r#"{"name":"n{}"}"#),
        (format!("/v1/admin_keys/{admin_key}"), r#"{"name":"k{}"}"#),
    ] {
        let tag = manage.get(&path, &key).headers["etag"].clone();
        assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
        let tag = format!("if-match: {tag}");
        let statuses: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = (1..=6)
                .map(|n: u32| {
                    let (manage, key, path, tag) = (&manage, &key, &path, &tag);
                    let body = body.replace("{}", &n.to_string());
                    scope.spawn(move || manage.send(key, "PATCH", path, &body, &[tag]).status)
                })
                .collect();
            all.into_iter().map(|one| one.join().expect("an answer")).collect()
        });
        let count = |status| statuses.iter().filter(|one| **one == status).count();
        assert_eq!((count(200), count(412)), (1, 5), "{path}: {statuses:?}");
        let now = manage.get(&path, &key).headers["etag"].clone();
        assert_ne!(tag, format!("if-match: {now}"));
        let same = manage.send(&key, "PATCH", &path, "{}", &[&format!("if-match: \"x\", {now}")]);
        assert_eq!((same.status, &same.headers["etag"]), (200, &now));
        for (header, status) in [("if-match: *", 200), ("if-match: \"x\"", 412), ("if-match: x", 400)] {
            assert_eq!(manage.send(&key, "PATCH", &path, "{}", &[header]).status, status, "{path} {header}");
        }
        let weak = format!("if-match: W/{now}");
        is_problem(&manage.send(&key, "PATCH", &path, "{}", &[&weak]), 412, "precondition_failed");
    }
    for (method, path) in [
        ("POST", format!("/v1/tenants/{}/suspend", world.acme.id)),
        ("POST", format!("/v1/tenants/{}/activate", world.acme.id)),
        ("POST", format!("/v1/keys/{}/rotate", world.live.id)),
        ("POST", format!("/v1/keys/{}/revoke", world.live.id)),
        ("POST", format!("/v1/keys/{}/disable", world.live.id)),
        ("DELETE", "/v1/plans/gold".into()),
        ("DELETE", format!("/v1/routes/{rule}")),
        ("POST", format!("/v1/admin_keys/{admin_key}/revoke")),
        ("POST", "/v1/routes".into()),
        ("POST", "/v1/tenants".into()),
    ] {
        let body = match path.as_str() {
            "/v1/routes" => r#"{"path":"/z"}"#,
            "/v1/tenants" => r#"{"name":"z"}"#,
            _ => "",
        };
        is_problem(&manage.send(&key, method, &path, body, &["if-match: \"x\""]), 412, "precondition_failed");
    }
}

fn a_version_stays_while_servers_write(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let path = format!("/v1/keys/{}", world.live.id);
    let tag = manage.send(&key, "PATCH", &path, "{}", &[]).headers["etag"].clone();
    world.db.sql("UPDATE api_keys SET last_used_at = '2026-01-01T00:00:00.000000Z'");
    let same = manage.send(&key, "PATCH", &path, "{}", &[&format!("if-match: {tag}")]);
    assert_eq!((same.status, &same.headers["etag"]), (200, &tag));
    let changed = manage.send(&key, "PATCH", &path, r#"{"name":"x"}"#, &[&format!("if-match: {tag}")]);
    assert!(changed.status == 200 && changed.headers["etag"] != tag);
}
