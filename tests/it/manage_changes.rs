//! Tests changes over HTTP on both stores: they have the effect of the commands, for management keys with the
//! permission.

use serde_json::{Value, json};
use tenantgate::permission::Permission;

use crate::manage::{Manage, is_problem, key_with, owner};
use crate::support::world::string;
use crate::support::{Ask, Backend, PATIENCE, Server, World, eventually, on_every_store};

on_every_store![
    a_scenario_has_the_same_result_by_commands_and_over_http,
    a_patch_keeps_what_it_does_not_name_and_clears_null,
    all_mistakes_of_a_body_are_reported_at_once,
    the_table_of_routes_is_replaced_only_in_a_known_version,
    a_key_created_by_the_client_is_accepted,
    a_management_key_cannot_grant_more_than_it_has,
    every_change_is_an_audit_row_with_its_request,
    a_change_can_wait_for_servers,
];

/// Removes the fields of an object that differ between runs.
fn plain(mut object: Value) -> Value {
    const CHANCE: [&str; 9] = [
        "id",
        "tenant_id",
        "created_at",
        "expires_at",
        "revoked_at",
        "disabled_at",
        "key",
        "key_prefix",
        "memo_pepper",
    ];
    match &mut object {
        Value::Object(fields) => {
            for name in CHANCE {
                if let Some(value) = fields.get_mut(name) {
                    *value = if value.is_null() { Value::Null } else { "…".into() };
                }
            }
            for value in fields.values_mut() {
                *value = plain(value.take());
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| *value = plain(value.take())),
        _ => {}
    }
    object
}

/// A way to make changes.
trait Way {
    fn change(&self, args: &[&str], method: &str, path: &str, body: Value) -> Value;
}

struct Commands<'w>(&'w World);

impl Way for Commands<'_> {
    fn change(&self, args: &[&str], _: &str, _: &str, _: Value) -> Value {
        self.0.db.json(args)
    }
}

struct Http<'m>(&'m Manage, String);

impl Way for Http<'_> {
    fn change(&self, _: &[&str], method: &str, path: &str, body: Value) -> Value {
        let page = self.0.send(&self.1, method, path, &body.to_string(), &[]);
        assert!((200..300).contains(&page.status), "{method} {path}: {} {}", page.status, page.body);
        if page.status == 204 { Value::Null } else { serde_json::from_str(&page.body).expect("JSON") }
    }
}

/// Makes changes of a tenant, its keys, plans and rules. Returns the objects.
fn scenario(way: &dyn Way, name: &str) -> Vec<Value> {
    let mut said = Vec::new();
    let mut step = |args: &[&str], method: &str, path: &str, body: Value| {
        let object = way.change(args, method, path, body);
        said.push(plain(object.clone()));
        object
    };
    let (plan, schema) = (format!("plan-{name}"), format!("tenant_{name}"));
    let limits = json!({ "name": plan, "request_limit": "5/MINUTE" });
    step(&["plan", "create", &plan, "--request-limit", "5/MINUTE"], "POST", "/v1/plans", limits);
    let path = format!("/v1/plans/{plan}");
    let args = ["plan", "update", &plan, "--no-request-limit", "--total-limit", "7/DAY"];
    step(&args, "PATCH", &path, json!({ "request_limit": null, "total_limit": "7/DAY" }));
    let tenant = step(&["tenant", "create", name], "POST", "/v1/tenants", json!({ "name": name }));
    let id = string(&tenant, "id");
    let at = format!("/v1/tenants/{id}");
    let args = ["tenant", "update", &id, "--name", "Another", "--plan", &plan];
    step(&args, "PATCH", &at, json!({ "name": "Another", "plan": plan }));
    for verb in ["suspend", "activate"] {
        step(&["tenant", verb, &schema], "POST", &format!("/v1/tenants/{schema}/{verb}"), json!({}));
    }
    let args = [
        "key",
        "create",
        &id,
        "--name",
        "ci",
        "--expires-in",
        "9d",
        "--scopes",
        "a b.*",
        "--label",
        "team=x",
    ];
    let body = json!({ "name": "ci", "expires_in": "9d", "scopes": "a b.*", "labels": { "team": "x" } });
    let key = string(&step(&args, "POST", &format!("{at}/keys"), body), "id");
    let at_key = format!("/v1/keys/{key}");
    let args =
        ["key", "update", &key, "--all-scopes", "--networks", "192.0.2.0/24", "--remove-label", "team"];
    let body = json!({ "scopes": null, "networks": "192.0.2.0/24", "labels": { "team": null } });
    step(&args, "PATCH", &at_key, body);
    for verb in ["disable", "enable"] {
        step(&["key", verb, &key], "POST", &format!("{at_key}/{verb}"), json!({}));
    }
    let args = ["key", "rotate", &key, "--grace", "1h"];
    let rotated = step(&args, "POST", &format!("{at_key}/rotate"), json!({ "grace": "1h" }));
    let new = string(&rotated["new"], "id");
    let args = ["key", "revoke", &new, "--reason", "leaked"];
    step(&args, "POST", &format!("/v1/keys/{new}/revoke"), json!({ "reason": "leaked" }));
    let (host, path) = (format!("{name}.example.com"), "/v1/{model}/**");
    let args = ["route", "add", "--host", &host, "--path", path, "--scopes", "a b | c", "--name", name];
    let body = json!({ "host": host, "path": path, "scopes": "a b | c", "name": name });
    let rule = string(&step(&args, "POST", "/v1/routes", body), "id");
    let removed = step(&["route", "remove", &rule], "DELETE", &format!("/v1/routes/{rule}"), json!({}));
    assert!(removed.is_null() || removed["name"] == name);
    let body = json!({ "confirm": schema });
    step(&["tenant", "delete", &id, "--yes"], "POST", &format!("{at}/delete"), body);
    // DELETE responds without a body, the command with the deleted object.
    said.retain(|object| {
        !object.is_null() && object.get("host").is_none_or(|_| object["scopes"] != "a b | c")
    });
    said
}

fn a_scenario_has_the_same_result_by_commands_and_over_http(world: &World) {
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let http = Http(&manage, owner(world));
    let text = |said: Vec<Value>, name: &str| Value::from(said).to_string().replace(name, "NAME");
    let by_commands = text(scenario(&Commands(world), "acorn"), "acorn");
    assert_eq!(by_commands, text(scenario(&http, "birch"), "birch"));
    assert_eq!(by_commands, text(scenario(&Http(&manage, http.1.clone()), "cedar"), "cedar"));
    world.db.json(&["audit", "verify"]);
}

fn a_patch_keeps_what_it_does_not_name_and_clears_null(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    world.db.json(&["plan", "create", "gold"]);
    let path = format!("/v1/keys/{}", world.live.prefix);
    let whole = json!({ "name": "a", "scopes": "x", "networks": "192.0.2.1", "plan": "gold",
        "not_before": "2020-01-01T00:00:00Z", "expires_at": "2099-01-01T00:00:00Z", "labels": { "a": "1", "b": "2" } });
    let first = manage.change(&key, "PATCH", &path, &whole);
    assert_eq!(first["networks"], "192.0.2.1/32");
    assert_eq!(manage.change(&key, "PATCH", &path, &json!({})), first);
    for (patch, field, value) in [
        (json!({ "labels": { "b": null, "c": "3" } }), "labels", json!({ "a": "1", "c": "3" })),
        (json!({ "name": null }), "name", Value::Null),
        (json!({ "scopes": null }), "scopes", Value::Null),
        (json!({ "scopes": "" }), "scopes", "".into()),
        (json!({ "networks": null }), "networks", Value::Null),
        (json!({ "plan": null }), "plan", Value::Null),
        (json!({ "not_before": null }), "not_before", Value::Null),
        (json!({ "expires_at": null }), "expires_at", Value::Null),
        (json!({ "labels": null }), "labels", Value::Null),
    ] {
        let before = manage.change(&key, "PATCH", &path, &json!({}));
        let after = manage.change(&key, "PATCH", &path, &patch);
        assert_eq!(after[field], value, "{patch}");
        for (name, value) in after.as_object().expect("an object").iter().filter(|(name, _)| *name != field) {
            assert_eq!(&before[name], value, "{patch} changes {name}");
        }
        assert_eq!(after, world.db.json(&["key", "show", &world.live.id]));
    }
    let rule =
        manage.change(&key, "POST", "/v1/routes", &json!({ "path": "/a", "scopes": "x", "name": "one" }));
    let path = format!("/v1/routes/{}", string(&rule, "id"));
    let moved = manage.change(&key, "PATCH", &path, &json!({ "path": "/b/{id}", "scopes": null }));
    assert_eq!(
        (&moved["id"], &moved["path"], &moved["scopes"]),
        (&rule["id"], &"/b/{id}".into(), &Value::Null)
    );
    assert_eq!(world.db.json(&["route", "list"]), json!([moved]));
    manage.change(&key, "POST", "/v1/routes", &json!({ "path": "/c" }));
    let page = manage.send(&key, "PATCH", &path, r#"{"path":"/c"}"#, &[]);
    is_problem(&page, 409, "conflict");
}

/// Returns the sorted pointers of the errors of a problem document.
fn pointers(body: &str) -> Vec<String> {
    let body: Value = serde_json::from_str(body).expect("JSON");
    let errors = body["errors"].as_array().expect("errors");
    let mut pointers: Vec<_> = errors.iter().map(|error| string(error, "pointer")).collect();
    pointers.sort();
    pointers
}

fn all_mistakes_of_a_body_are_reported_at_once(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let (keys, live) = (format!("/v1/tenants/{}/keys", world.acme.id), format!("/v1/keys/{}", world.live.id));
    let bad = r#"{"name":"","scopes":["a"],"networks":[],"plan":"A","labels":{"A":"1","b":2,"c=d":"x"},
        "not_before":"soon","expires_in":"1y","hashed_key":"x","key_prefix":"x","colour":1}"#;
    let wanted = [
        "/colour",
        "/expires_in",
        "/hashed_key",
        "/key_prefix",
        "/labels/A",
        "/labels/b",
        "/labels/c=d",
        "/name",
        "/networks",
        "/not_before",
        "/plan",
        "/scopes",
    ];
    let page = manage.send(&key, "POST", &keys, bad, &[]);
    is_problem(&page, 400, "invalid_request");
    assert_eq!(pointers(&page.body), wanted);
    for (method, path, body, status, pointer) in [
        ("POST", "/v1/tenants", "{}", 400, "/name"),
        ("POST", "/v1/tenants", r#"{"name":"a","db_schema_name":"pg_x"}"#, 400, "/db_schema_name"),
        ("POST", "/v1/tenants", r#"{"name":"a","status":"asleep"}"#, 400, "/status"),
        ("POST", "/v1/tenants", r#"{"name":"a","plan":"none"}"#, 422, "/plan"),
        ("POST", &keys, r#"{"expires_at":"2099-01-01T00:00:00Z","expires_in":"1d"}"#, 422, "/expires_in"),
        ("POST", &keys, r#"{"expires_at":"2001-01-01T00:00:00Z"}"#, 422, "/expires_at"),
        ("POST", &keys, r#"{"expires_in":"1d","not_before":"2099-01-01T00:00:00Z"}"#, 422, "/not_before"),
        ("POST", &keys, r#"{"plan":"none"}"#, 422, "/plan"),
        ("POST", &keys, r#"{"key_prefix":"llmk_x"}"#, 422, "/hashed_key"),
        ("PATCH", &live, r#"{"expires_in":"1d","not_before":"2099-01-01T00:00:00Z"}"#, 422, "/not_before"),
        ("PATCH", &live, r#"{"networks":""}"#, 400, "/networks"),
        ("PATCH", &live, r#"{"key_prefix":"llmk_x"}"#, 400, "/key_prefix"),
        ("POST", "/v1/routes", r#"{"path":"a"}"#, 400, "/path"),
        ("POST", "/v1/routes", r#"{"path":"/a","mode":"public","scopes":"x"}"#, 400, "/scopes"),
        ("POST", "/v1/plans", r#"{"name":"a","total_limit":"5"}"#, 400, "/total_limit"),
        ("POST", "/v1/admin_keys", r#"{"name":"a","permissions":[]}"#, 400, "/permissions"),
        ("POST", "/v1/admin_keys", r#"{"name":"a","permissions":["keys:eat"]}"#, 400, "/permissions/0"),
        (
            "POST",
            "/v1/admin_keys",
            r#"{"name":"a","role":"owner","permissions":["keys:read"]}"#,
            422,
            "/role",
        ),
        ("POST", "/v1/admin_keys", r#"{"name":"a","tenants":["nobody"]}"#, 422, "/tenants"),
    ] {
        let page = manage.send(&key, method, path, body, &[]);
        let code = if status == 400 { "invalid_request" } else { "unprocessable" };
        is_problem(&page, status, code);
        assert_eq!(pointers(&page.body), [pointer], "{method} {path} {body}: {}", page.body);
    }
    let page = manage.send(
        &key,
        "POST",
        &format!("/v1/tenants/{}/delete", world.acme.id),
        r#"{"confirm":"x"}"#,
        &[],
    );
    is_problem(&page, 422, "unprocessable");
    for (path, body) in [
        ("/v1/tenants", format!(r#"{{"name":"b","db_schema_name":"{}"}}"#, world.acme.schema)),
        (&format!("/v1/tenants/{}/keys", world.gone.id), String::new()),
        (&format!("/v1/keys/{}/rotate", world.revoked.id), String::new()),
        (&format!("/v1/keys/{}/enable", world.revoked.id), String::new()),
        ("/v1/admin_keys", r#"{"name":"owner of all"}"#.to_owned()),
    ] {
        assert_eq!(manage.send(&key, "POST", path, &body, &[]).status, 409, "{path} {body}");
    }
}

fn the_table_of_routes_is_replaced_only_in_a_known_version(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    manage.change(&key, "POST", "/v1/routes", &json!({ "path": "/a" }));
    let read = manage.get("/v1/routes", &key);
    let tag = format!("if-match: {}", read.headers["etag"]);
    let table = r#"[{"path":"/a","scopes":"x"},{"path":"/b"}]"#;
    is_problem(&manage.send(&key, "PUT", "/v1/routes", table, &[]), 428, "precondition_required");
    let dry = manage.send(&key, "PUT", "/v1/routes?dry_run=true", table, &[&tag]);
    let difference: Value = serde_json::from_str(&dry.body).expect("JSON");
    assert_eq!((dry.status, &difference["dry_run"]), (200, &true.into()));
    assert_eq!(dry.headers["etag"], read.headers["etag"]);
    let done = manage.send(&key, "PUT", "/v1/routes", table, &[&tag]);
    let mut said: Value = serde_json::from_str(&done.body).expect("JSON");
    assert_eq!((done.status, said["changed"].as_array().map(Vec::len)), (200, Some(1)));
    assert_eq!((&said["unchanged"], &said["dry_run"]), (&0.into(), &false.into()));
    // The difference is the same, except for the ids of new rules.
    for object in [&mut said, &mut difference.clone()] {
        object["dry_run"] = Value::Null;
    }
    assert_eq!(manage.get("/v1/routes", &key).headers["etag"], done.headers["etag"]);
    is_problem(&manage.send(&key, "PUT", "/v1/routes", "[]", &[&tag]), 412, "precondition_failed");
    // The response of GET is a table that can be sent with PUT.
    let (again, tag) = (manage.get("/v1/routes", &key), format!("if-match: {}", done.headers["etag"]));
    let same = manage.send(&key, "PUT", "/v1/routes", &again.body, &[&tag]);
    let same: Value = serde_json::from_str(&same.body).expect("JSON");
    assert_eq!((&same["unchanged"], &same["added"]), (&2.into(), &json!([])), "{same}");
    let page = manage.send(&key, "PUT", "/v1/routes", r#"[{"path":"a"},{"x":1},7]"#, &[&tag]);
    is_problem(&page, 400, "invalid_request");
    assert_eq!(pointers(&page.body), ["/0/path", "/1/path", "/1/x", "/2"]);
    let part = r#"{"items":[],"next_page_token":"abc"}"#;
    is_problem(&manage.send(&key, "PUT", "/v1/routes", part, &[&tag]), 400, "invalid_request");
    is_problem(&manage.send(&key, "PUT", "/v1/routes?dry=1", "[]", &[&tag]), 400, "invalid_request");
}

fn a_key_created_by_the_client_is_accepted(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let hash = world
        .db
        .text(&format!("SELECT hashed_key FROM api_keys WHERE id = '{}'", world.other.id))
        .expect("a hash");
    world.db.sql(&format!("DELETE FROM api_keys WHERE id = '{}'", world.other.id));
    let path = format!("/v1/tenants/{}/keys", world.acme.schema);
    let body = json!({ "hashed_key": hash, "key_prefix": world.other.prefix, "name": "moved" });
    let made = manage.change(&key, "POST", &path, &body);
    assert_eq!((&made["key"], &made["key_prefix"]), (&Value::Null, &world.other.prefix.as_str().into()));
    assert_eq!(Server::on(&world.db).start().row(Ask::with_key(&world.other.text)), "200 ok");
    is_problem(&manage.send(&key, "POST", &path, &body.to_string(), &[]), 409, "refused");
    assert!(!made.to_string().contains(&hash));
}

fn a_management_key_cannot_grant_more_than_it_has(world: &World) {
    let few = key_with(
        world,
        "few",
        &[Permission::KeysRead, Permission::AdminKeysRead, Permission::AdminKeysWrite],
        Some(vec![world.acme.id.clone()]),
    );
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let child = manage.change(&few, "POST", "/v1/admin_keys", &json!({ "name": "child" }));
    assert_eq!(
        (&child["permissions"], &child["tenants"]),
        (&json!(["keys:read", "admin_keys:read", "admin_keys:write"]), &json!([world.acme.id]))
    );
    let at = format!("/v1/admin_keys/{}", string(&child, "id"));
    for (method, path, body) in [
        ("POST", "/v1/admin_keys", json!({ "name": "a", "role": "owner" })),
        ("POST", "/v1/admin_keys", json!({ "name": "a", "permissions": ["keys:write"] })),
        ("POST", "/v1/admin_keys", json!({ "name": "a", "tenants": [world.sleepy.id] })),
        ("POST", "/v1/admin_keys", json!({ "name": "a", "tenants": ["nobody"] })),
        ("PATCH", &at, json!({ "permissions": ["keys:write"] })),
        ("PATCH", &at, json!({ "tenants": null })),
    ] {
        is_problem(&manage.send(&few, method, path, &body.to_string(), &[]), 403, "exceeds_own_authority");
    }
    let narrow = manage.change(&few, "PATCH", &at, &json!({ "permissions": ["keys:read"], "name": "kid" }));
    assert_eq!((&narrow["permissions"], &narrow["name"]), (&json!(["keys:read"]), &"kid".into()));
    // The key of the child passes with the remaining authority, and ends with its creator.
    let secret = string(&child, "key");
    assert_eq!(manage.json("/v1/whoami", &secret)["permissions"], json!(["keys:read"]));
    owner(world);
    for path in ["/v1/admin_keys/owner%20of%20all", "/v1/admin_keys/nobody"] {
        is_problem(&manage.send(&few, "POST", &format!("{path}/revoke"), "", &[]), 404, "not_found");
    }
    let revoked = manage.change(&few, "POST", &format!("{at}/revoke"), &json!({}));
    assert_eq!(revoked["status"], "revoked");
    is_problem(&manage.get("/v1/whoami", &secret), 401, "unauthorized");
}

fn every_change_is_an_audit_row_with_its_request(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let prefix = key.rsplit_once('_').expect("a key").0;
    for (method, path, body, action) in [
        ("PATCH", format!("/v1/tenants/{}", world.acme.id), r#"{"name":"x"}"#, "tenant.update"),
        ("POST", format!("/v1/keys/{}/disable", world.live.id), "", "key.disable"),
        ("POST", "/v1/plans".into(), r#"{"name":"gold"}"#, "plan.create"),
        ("DELETE", "/v1/plans/gold".into(), "", "plan.delete"),
        ("POST", "/v1/routes".into(), r#"{"path":"/a"}"#, "route.add"),
        ("POST", "/v1/admin_keys".into(), r#"{"name":"k"}"#, "admin_key.create"),
        ("PATCH", "/v1/admin_keys/{}".into(), r#"{"name":"l"}"#, "admin_key.update"),
    ] {
        let list = world.db.json(&["admin-key", "list"]);
        let newest = list.as_array().and_then(|keys| keys.last()).expect("a key");
        let page = manage.send(&key, method, &path.replace("{}", &string(newest, "id")), body, &[]);
        assert!((200..300).contains(&page.status), "{path}: {}", page.body);
        let row = &world.db.json(&["audit", "list", "--limit", "1"])[0];
        assert_eq!(row["action"], action);
        assert_eq!(row["request_id"], page.headers["x-request-id"].as_str());
        assert_eq!(row["address"], "127.0.0.1");
        assert_eq!(row["actor"], format!("owner of all ({prefix})"));
    }
    let head = world.db.json(&["audit", "verify"])["rows"].clone();
    let same = format!("/v1/keys/{}/disable", world.live.id);
    manage.change(&key, "POST", &same, &json!({}));
    manage.send(&key, "POST", &format!("/v1/keys/{}/enable", world.revoked.id), "", &[]);
    assert_eq!(world.db.json(&["audit", "verify"])["rows"], head, "a change without effect has no row");
}

fn a_change_can_wait_for_servers(world: &World) {
    let (key, manage) = (owner(world), Manage::on(&world.db, "127.0.0.1:0"));
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    eventually("the server has a heartbeat", PATIENCE, || {
        let list = manage.json("/v1/replicas", &key)["items"].clone();
        if list.as_array().is_some_and(|list| list.len() == 1) { Ok(()) } else { Err(list) }
    });
    let path = format!("/v1/keys/{}/disable", world.live.id);
    let page = manage.send(&key, "POST", &path, "", &["prefer: respond-async, wait=20"]);
    let body: Value = serde_json::from_str(&page.body).expect("JSON");
    assert_eq!(
        (page.status, &body["applied"], &body["status"]),
        (200, &json!({ "replicas": 1 }), &"disabled".into())
    );
    assert_eq!((page.headers["preference-applied"].as_str(), body.get("pending")), ("wait=20", None));
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 disabled");
    let now = match world.db.backend {
        Backend::Postgres => "now() + interval '1 hour'",
        Backend::Sqlite => "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 hour')",
    };
    let applied = if world.db.backend == Backend::Postgres { "'1:1:'::pg_snapshot" } else { "0" };
    world.db.sql(&format!(
        "INSERT INTO tenantgate_replica (id, name, applied, seen_at, serves_until)
         VALUES ('00000000-0000-4000-8000-00000000dead', 'far away', {applied}, {now}, {now})"
    ));
    for (method, path, body, status) in [
        ("POST", format!("/v1/keys/{}/enable", world.live.id), "", 202),
        ("POST", "/v1/plans".into(), r#"{"name":"gold"}"#, 201),
        ("DELETE", "/v1/plans/gold".into(), "", 202),
    ] {
        let page = manage.send(&key, method, &path, body, &["prefer: wait=0"]);
        let body: Value = serde_json::from_str(&page.body).expect("JSON");
        assert_eq!((page.status, &body["pending"][0]["name"]), (status, &"far away".into()), "{path}");
        assert!(body["pending"][0]["seen_at"].is_string() && body["applied"]["replicas"].is_number());
    }
}

#[test]
fn the_role_admin_has_the_privileges_for_every_change() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let key = owner(&world);
    let prefix = world.db.with_roles();
    let manage = Manage::on(&world.db.seen_by(&format!("{prefix}_admin")), "127.0.0.1:0");
    scenario(&Http(&manage, key.clone()), "narrow");
    let page = manage.send(&key, "POST", "/v1/admin_keys", r#"{"name":"k"}"#, &["idempotency-key: 1"]);
    let made: Value = serde_json::from_str(&page.body).expect("JSON");
    let at = format!("/v1/admin_keys/{}", string(&made, "id"));
    manage.change(&key, "PATCH", &at, &json!({ "name": "l", "role": "viewer", "expires_in": "1d" }));
    is_problem(
        &manage.send(&key, "POST", "/v1/admin_keys", r#"{"name":"l"}"#, &["idempotency-key: 2"]),
        409,
        "refused",
    );
    manage.change(&key, "PATCH", &at, &json!({ "tenants": [world.acme.id] }));
    manage.change(&key, "POST", &format!("{at}/revoke"), &json!({}));
}
