//! Tests reading keys, usage, the audit log and servers over HTTP, on both stores.

use serde_json::{Value, json};
use tenantgate::permission::Permission;

use crate::manage::{Manage, is_problem, key_with, owner};
use crate::support::world::string;
use crate::support::{Ask, PATIENCE, Server, World, eventually, on_every_store};

on_every_store![
    keys_are_those_of_the_command_line,
    filters_of_keys_are_those_of_the_command_line,
    a_key_of_some_tenants_reads_only_their_objects,
    usage_adds_up_by_day_key_and_reason,
    the_audit_log_is_read_in_pages,
    servers_are_listed_with_their_progress,
    invalid_parameters_are_named,
    explanations_and_tests_equal_those_of_the_commands,
];

/// Returns the objects of all pages of a list.
fn all(manage: &Manage, path: &str, key: &str) -> Vec<Value> {
    let (mut items, mut token) = (Vec::new(), String::new());
    let with = if path.contains('?') { '&' } else { '?' };
    loop {
        let page = manage.json(&format!("{path}{with}page_size=2&page_token={token}"), key);
        let part = page["items"].as_array().expect("items").clone();
        assert!(part.len() <= 2);
        items.extend(part);
        token = string(&page, "next_page_token");
        if token.is_empty() {
            return items;
        }
    }
}

/// Sorts the same objects by creation.
fn by_creation(list: Value) -> Vec<Value> {
    let Value::Array(mut list) = list else { panic!("no list: {list}") };
    list.sort_by_key(|key| (string(key, "created_at"), string(key, "id")));
    list
}

fn keys_are_those_of_the_command_line(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let listed = by_creation(world.db.json(&["key", "list"]));
    assert!(listed.len() > 3);
    assert_eq!(all(&manage, "/v1/keys", &key), listed);
    assert_eq!(manage.json("/v1/keys", &key), json!({ "items": listed, "next_page_token": "" }));
    let of_acme = by_creation(world.db.json(&["key", "list", "--tenant", &world.acme.id]));
    for path in [
        format!("/v1/tenants/{}/keys", world.acme.id),
        format!("/v1/tenants/{}/keys", world.acme.schema),
        format!("/v1/keys?tenant={}", world.acme.schema),
    ] {
        assert_eq!(all(&manage, &path, &key), of_acme, "{path}");
    }
    let mut one = of_acme[0].clone();
    one.as_object_mut().expect("an object").remove("tenant_schema");
    let by_id = format!("/v1/keys/{}", string(&one, "id"));
    assert_eq!(manage.json(&by_id, &key), one);
    assert_eq!(manage.json(&format!("/v1/keys/{}", string(&one, "key_prefix")), &key), one);
    // The version does not change when the key is used.
    let tag = manage.get(&by_id, &key).headers["etag"].clone();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    let id = string(&one, "id");
    world.db.sql(&format!("UPDATE api_keys SET last_used_at = '2026-01-01 00:00:00+00' WHERE id = '{id}'"));
    assert_eq!(manage.get(&by_id, &key).headers["etag"], tag);
    world.db.json(&["key", "update", &id, "--name", "another"]);
    assert_ne!(manage.get(&by_id, &key).headers["etag"], tag);
    world.db.sql(&format!(
        "UPDATE api_keys SET last_used_at = {} WHERE id = '{}'",
        if world.db.url().starts_with("sqlite") { "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')" } else { "now()" },
        world.live.id
    ));
    let live = of_acme.iter().filter(|key| key["status"] == "active").count();
    let impact = manage.json(&format!("/v1/tenants/{}/impact", world.acme.id), &key);
    assert_eq!(impact, json!({ "live_keys": live, "used_last_day": 1 }));
    for path in ["/v1/keys/llmk_nobody", "/v1/tenants/Acme%20Corp/keys", "/v1/keys?tenant=nobody"] {
        is_problem(&manage.get(path, &key), 404, "not_found");
    }
}

fn filters_of_keys_are_those_of_the_command_line(world: &World) {
    let key = owner(world);
    for args in [
        &[
            "--name",
            "Nightly Import",
            "--scopes",
            "models.read files.*",
            "--label",
            "env=prod",
            "--label",
            "a/b=c d",
        ][..],
        &["--name", "nightly export", "--expires-at", "2030-01-01T00:00:00Z", "--label", "env=prod"],
    ] {
        world.db.json(&[&["key", "create", &world.acme.id], args].concat());
    }
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    for (query, args) in [
        ("status=active", &["--status", "active"][..]),
        ("status=revoked", &["--status", "revoked"]),
        ("name=NIGHT", &["--name", "NIGHT"]),
        ("scope=files.*", &["--scope", "files.*"]),
        ("label=env%3Dprod", &["--label", "env=prod"]),
        ("label=env%3Dprod&label=a%2Fb%3Dc%20d", &["--label", "env=prod", "--label", "a/b=c d"]),
        ("expires_before=2031-01-01T00:00:00Z", &["--expires-before", "2031-01-01T00:00:00Z"]),
        ("unused_for=1h", &["--unused-for", "1h"]),
        ("name=nothing+like+it", &["--name", "nothing like it"]),
    ] {
        let wanted = by_creation(world.db.json(&[&["key", "list"], args].concat()));
        assert_eq!(all(&manage, &format!("/v1/keys?{query}"), &key), wanted, "{query}");
    }
}

fn a_key_of_some_tenants_reads_only_their_objects(world: &World) {
    let permissions =
        [Permission::KeysRead, Permission::UsageRead, Permission::AuditRead, Permission::TenantsRead];
    let few = key_with(world, "few", &permissions, Some(vec![world.sleepy.id.clone()]));
    let server = Server::on(&world.db).start();
    server.check(Ask::with_key(&world.live.text));
    server.check(Ask::with_key(&world.of_sleepy.text));
    server.check(Ask::get("/v1"));
    crate::usage::stop(server);
    world.db.json(&["tenant", "update", &world.acme.id, "--name", "Acme 2"]);
    world.db.json(&["tenant", "update", &world.sleepy.id, "--name", "Sleepy 2"]);
    world.db.json(&["key", "update", &world.live.id, "--name", "of Acme"]);
    world.db.json(&["key", "update", &world.of_sleepy.id, "--name", "of Sleepy"]);
    world.db.json(&["plan", "create", "gold"]);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let of_sleepy = by_creation(world.db.json(&["key", "list", "--tenant", &world.sleepy.id]));
    assert_eq!(all(&manage, "/v1/keys", &few), of_sleepy);
    for path in [
        format!("/v1/keys/{}", world.live.id),
        format!("/v1/keys/{}/usage", world.live.id),
        format!("/v1/keys?tenant={}", world.acme.id),
        format!("/v1/usage?tenant={}", world.acme.id),
        format!("/v1/usage?key={}", world.live.id),
        format!("/v1/tenants/{}/keys", world.acme.id),
        format!("/v1/tenants/{}/impact", world.acme.id),
    ] {
        is_problem(&manage.get(&path, &few), 404, "not_found");
    }
    let reasons = all(&manage, "/v1/usage?group_by=reason", &few);
    assert_eq!(reasons.iter().map(|row| string(row, "reason")).collect::<Vec<_>>(), ["tenant_inactive"]);
    let changed = all(&manage, "/v1/audit", &few);
    let actions: Vec<_> = changed.iter().map(|row| (string(row, "action"), string(row, "subject"))).collect();
    assert_eq!(
        actions[actions.len() - 2..],
        [
            ("tenant.update".to_owned(), world.sleepy.id.clone()),
            ("key.update".to_owned(), world.of_sleepy.id.clone())
        ]
    );
    for row in &changed {
        let text = row.to_string();
        assert!(
            !text.contains(&world.acme.id) && !text.contains("gold") && !text.contains("admin_key"),
            "{text}"
        );
    }
}

fn usage_adds_up_by_day_key_and_reason(world: &World) {
    let key = owner(world);
    let server = Server::on(&world.db).start();
    for _ in 0..3 {
        server.check(Ask::with_key(&world.live.text));
    }
    server.check(Ask::with_key(&world.revoked.text));
    server.check(Ask::get("/v1"));
    crate::usage::stop(server);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let rows = |query: &str| all(&manage, &format!("/v1/usage?{query}"), &key);
    let sums = |query: &str, name: &str| -> Vec<(String, u64)> {
        rows(query)
            .iter()
            .map(|row| (string(row, name), row["requests"].as_u64().expect("a number")))
            .collect()
    };
    let own = |reason: &str, n: u64| (reason.to_owned(), n);
    assert_eq!(
        sums("group_by=reason&from=2026-01-01", "reason"),
        [own("missing", 1), own("ok", 3), own("revoked", 1)]
    );
    let total: u64 = sums("from=2026-01-01", "day").iter().map(|(_, n)| n).sum();
    assert_eq!(total, 5);
    let nobody = "00000000-0000-0000-0000-000000000000";
    let mut of_keys = [own(nobody, 1), own(&world.live.id, 3), own(&world.revoked.id, 1)];
    of_keys.sort();
    assert_eq!(sums("group_by=key&from=2026-01-01", "key_id"), of_keys);
    let by_key = rows("group_by=key&from=2026-01-01");
    let live = by_key.iter().find(|row| row["key_id"] == world.live.id.as_str()).expect("the use is counted");
    assert_eq!(live["tenant_id"], world.acme.id.as_str());
    assert_eq!((&live["day"], &live["reason"]), (&Value::Null, &Value::Null));
    let one = format!("/v1/keys/{}/usage?group_by=reason", world.live.id);
    assert_eq!(
        all(&manage, &one, &key),
        all(&manage, &format!("/v1/usage?key={}&group_by=reason", world.live.id), &key)
    );
    assert_eq!(
        sums(&format!("tenant={}&group_by=reason&from=2026-01-01", world.acme.schema), "reason").len(),
        2
    );
    assert_eq!(rows("from=2025-01-01&to=2025-12-31"), [Value::Null; 0]);
    // A token contains only the position of the next page.
    let page = manage.json("/v1/usage?group_by=reason&page_size=1&from=2026-01-01", &key);
    let token = string(&page, "next_page_token");
    for other in ["group_by=key", "group_by=reason&from=2026-01-02"] {
        let page = manage.get(&format!("/v1/usage?{other}&page_token={token}"), &key);
        is_problem(&page, 400, "invalid_request");
    }
}

fn the_audit_log_is_read_in_pages(world: &World) {
    let key = owner(world);
    world.db.json(&["key", "update", &world.live.id, "--name", "one"]);
    world.db.json(&["--actor", "mary", "key", "update", &world.live.id, "--name", "two"]);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let log = |args: &[&str]| match world.db.json(&[&["audit", "list"], args].concat()) {
        Value::Array(rows) => rows,
        other => panic!("no list: {other}"),
    };
    assert_eq!(all(&manage, "/v1/audit", &key), log(&[]));
    assert_eq!(all(&manage, "/v1/audit?actor=mary", &key), log(&["--actor", "mary"]));
    let of_key = format!("/v1/audit?subject={}", world.live.id);
    assert_eq!(all(&manage, &of_key, &key), log(&["--subject", &world.live.id]));
    assert!(all(&manage, "/v1/audit?since=2100-01-01T00:00:00Z", &key).is_empty());
}

fn servers_are_listed_with_their_progress(world: &World) {
    let key = owner(world);
    let server = Server::on(&world.db).start();
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let list = eventually("the server has a heartbeat", PATIENCE, || {
        let list = all(&manage, "/v1/replicas", &key);
        if list.is_empty() { Err("nobody") } else { Ok(list) }
    });
    for name in ["id", "name", "seen_at", "serves_until"] {
        assert!(list[0][name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {list:?}");
    }
    drop(server);
}

fn invalid_parameters_are_named(world: &World) {
    let key = owner(world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    for (path, pointers) in [
        ("/v1/keys?status=odd&expires_before=soon&unused_for=x&scope=a%20b&label=x", 5),
        ("/v1/usage?from=yesterday&to=2026-13-01&group_by=hour", 3),
        ("/v1/usage?from=2026-02-01&to=2026-01-01", 1),
        ("/v1/audit?since=x&until=y", 2),
        ("/v1/keys?colour=red&page_size=0", 2),
        ("/v1/replicas?x=1", 1),
        ("/v1/keys/llmk_x?x=1", 1),
    ] {
        let page = manage.get(path, &key);
        is_problem(&page, 400, "invalid_request");
        let body: Value = serde_json::from_str(&page.body).expect("JSON");
        assert_eq!(body["errors"].as_array().map(Vec::len), Some(pointers), "{path}: {body}");
    }
    // Invalid page tokens.
    let page = manage.json("/v1/keys?page_size=1", &key);
    let token = string(&page, "next_page_token");
    let bound = token.split('.').next().expect("a fingerprint");
    for place in ["eA", "eCB5", "MjAyNi0wMS0wMVQwMDowMDowMFogeA"] {
        is_problem(
            &manage.get(&format!("/v1/keys?page_size=1&page_token={bound}.{place}"), &key),
            400,
            "invalid_request",
        );
    }
}

fn explanations_and_tests_equal_those_of_the_commands(world: &World) {
    let key = owner(world);
    let few = key_with(
        world,
        "few",
        &[Permission::KeysRead, Permission::RoutesRead],
        Some(vec![world.sleepy.id.clone()]),
    );
    world.db.json(&["key", "update", &world.live.id, "--scopes", "models.read"]);
    world.db.json(&[
        "route",
        "add",
        "--host",
        "api.example.com",
        "--path",
        "/v1/{model}/**",
        "--scopes",
        "models.write",
    ]);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let prefix = &world.live.prefix;
    let request = json!({
        "method": "POST",
        "host": "api.example.com",
        "path": "/v1/large/run",
        "key_prefix": prefix,
        "context": { "tenantgate.mode": "required" },
    });
    let asked =
        ["--method", "POST", "--host", "api.example.com", "--path", "/v1/large/run", "--key-prefix", prefix];
    let context = ["--context", "tenantgate.mode=required"];
    let tested = world.db.json(&[&["route", "test"], &asked[..], &context].concat());
    assert_eq!(tested["outcome"], "scope");
    assert_eq!(manage.change(&key, "POST", "/v1/routes/test", &request), tested);
    let at = "2027-01-31T00:00:00Z";
    let mut wanted = world
        .db
        .json(&[&["explain", "--at", at, "--client-address", "192.0.2.1"], &asked[..], &context].concat());
    let mut request = request;
    request["at"] = at.into();
    request["client_address"] = "192.0.2.1".into();
    let mut explained = manage.change(&key, "POST", "/v1/explain", &request);
    for object in [&mut wanted, &mut explained] {
        object["key"]["last_used_at"] = Value::Null;
    }
    assert_eq!(explained, wanted);
    assert!(explained["cases"][0]["outcome"]["reason"].is_string());
    // Without a key, the explanation is about a request without one.
    let nobody = manage.change(&key, "POST", "/v1/explain", &json!({}));
    assert_eq!(nobody["cases"][0]["outcome"]["reason"], "missing");
    // A key of another tenant is treated as missing; a whole key is rejected.
    for path in ["/v1/explain", "/v1/routes/test"] {
        let body = |prefix: &str| json!({ "method": "GET", "path": "/a", "key_prefix": prefix }).to_string();
        for prefix in [prefix.as_str(), "llmk_nobody"] {
            is_problem(&manage.send(&few, "POST", path, &body(prefix), &[]), 404, "not_found");
        }
        let page = manage.send(&key, "POST", path, &body(&world.live.text), &[]);
        is_problem(&page, 400, "invalid_request");
        assert!(!page.body.contains(&world.live.text), "{}", page.body);
    }
    for (body, pointers) in [
        (
            json!({ "client_address": "x", "at": "soon", "context": { "a": 1 }, "path": "/\n", "colour": 1 }),
            5,
        ),
        (json!({ "method": "GET", "path": "--database-url=sqlite:///tmp/x" }), 0),
    ] {
        let page = manage.send(&key, "POST", "/v1/explain", &body.to_string(), &[]);
        let said: Value = serde_json::from_str(&page.body).expect("JSON");
        assert_eq!(said["errors"].as_array().map_or(0, Vec::len), pointers, "{said}");
    }
}
