//! Tests that terms, plans and rules reach exports, the audit log and servers.

use prost_types::value::Kind;
use serde_json::Value;
use tenantgate::config;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use tenantgate::store::{Change, Changes, SnapshotRow};

use super::key_with;
use crate::support::world::string;
use crate::support::{Ask, PATIENCE, Server, World, eventually, on_every_store, runtime, wait};

on_every_store![
    exported_keys_can_be_imported,
    every_change_is_in_the_audit_log,
    every_change_reaches_the_servers,
    the_database_rejects_invalid_values,
    a_running_server_applies_changes,
];

fn exported_keys_can_be_imported(world: &World) {
    world.db.json(&["plan", "create", "gold"]);
    let made = key_with(
        world,
        &["--scopes", "a b", "--networks", "10.0.0.0/8", "--plan", "gold", "--label", "a=b, c"],
    );
    let none = key_with(world, &["--scopes", ""]);
    world.db.json(&["key", "disable", &string(&made, "id")]);
    world.db.json(&["tenant", "update", &world.acme.id, "--plan", "gold"]);
    for file in ["keys.csv", "keys.jsonl"] {
        let path = world.db.dir().join(file);
        let path = path.to_str().expect("plain");
        world.db.cli(&["key", "export", path, "--with-hashes"]).ok();
        let shown = |key: &Value| world.db.json(&["key", "show", &string(key, "id")]);
        let (before, nothing) = (shown(&made), shown(&none));
        world.db.sql(&format!(
            "DELETE FROM api_keys WHERE id IN ('{}', '{}')",
            string(&made, "id"),
            string(&none, "id")
        ));
        let report = world.db.json(&["key", "import", path]);
        assert_eq!(report["imported"], 2, "{report}");
        let (mut after, after_nothing) = (shown(&made), shown(&none));
        // The memo is not exported.
        for name in ["memo", "memo_pepper"] {
            after[name] = before[name].clone();
        }
        assert_eq!(after, before, "{file}");
        assert_eq!(after_nothing["scopes"], nothing["scopes"], "{file}");
    }
    let tenants = world.db.cli(&["tenant", "export"]).ok();
    assert!(tenants.contains(",gold,"), "{tenants}");
    let rows = world.db.dir().join("bad.jsonl");
    let row = |more: &str| {
        format!(
            r#"{{"hashed_key":"$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232","key_prefix":"llmk_new","tenant_id":"{}",{more}}}"#,
            world.acme.id
        )
    };
    for (more, said) in [
        (r#""scopes":"a b*""#, "position 4"),
        (r#""networks":"10.0.0.1/8""#, "10.0.0.0/8"),
        (r#""plan":"silver""#, "no plan"),
        (r#""labels":{"A":"x"}"#, "lower-case"),
    ] {
        std::fs::write(&rows, row(more)).expect("a file");
        let run = world.db.cli(&["key", "import", rows.to_str().expect("plain")]);
        assert!(run.code == Some(1) && run.stderr.contains(said), "{more}: {run:#?}");
    }
}

fn every_change_is_in_the_audit_log(world: &World) {
    world.db.json(&["plan", "create", "gold"]);
    world.db.json(&["plan", "update", "gold", "--request-limit", "1/DAY"]);
    world.db.json(&["key", "update", &world.live.id, "--scopes", "a", "--plan", "gold"]);
    world.db.json(&["key", "disable", &world.live.id]);
    world.db.json(&["key", "enable", &world.live.id]);
    world.db.json(&["key", "enable", &world.live.id]);
    world.db.json(&["key", "update", &world.live.id, "--no-plan"]);
    world.db.json(&["tenant", "update", &world.acme.id, "--name", "New"]);
    world.db.json(&["plan", "delete", "gold"]);
    let rule = world.db.json(&["route", "add", "--path", "/a"]);
    world.db.json(&["route", "remove", &string(&rule, "id")]);
    let file = world.db.dir().join("routes.json");
    std::fs::write(&file, r#"[{"path":"/a"}]"#).expect("a file");
    for _ in 0..2 {
        world.db.json(&["route", "apply", file.to_str().expect("plain")]);
    }
    let log = world.db.json(&["audit", "list", "--limit", "11"]);
    let actions: Vec<_> =
        log.as_array().expect("an array").iter().map(|entry| string(entry, "action")).collect();
    assert_eq!(
        actions,
        [
            "plan.create",
            "plan.update",
            "key.update",
            "key.disable",
            "key.enable",
            "key.update",
            "tenant.update",
            "plan.delete",
            "route.add",
            "route.remove",
            "route.apply",
        ]
    );
    assert_eq!(log[2]["after"]["scopes"], "a");
    assert_eq!(
        (&log[1]["before"]["request_limit"], &log[1]["after"]["request_limit"]),
        (&Value::Null, &"1/DAY".into())
    );
    assert_eq!(log[7]["after"], Value::Null);
    world.db.json(&["audit", "verify"]);
}

fn every_change_reaches_the_servers(world: &World) {
    // The session is closed at the end of the block.
    let _context = runtime().enter();
    let store = config::store(world.db.url()).expect("a store");
    let mut session = wait(store.session()).expect("a session");
    wait(session.load(&mut |_| {})).expect("a load");
    let mut changes = || match wait(session.changes()).expect("changes") {
        Changes::Rows(rows, _) => rows,
        Changes::Everything => panic!("everything"),
    };
    let about = |change: &Change| match change {
        Change::Now(SnapshotRow::Key(key, _, profile)) => {
            format!(
                "key {} {:?} {:?} {}",
                key.prefix,
                profile.scopes.as_deref(),
                profile.plan.as_deref(),
                key.disabled
            )
        }
        Change::Now(SnapshotRow::Tenant(tenant)) => format!("tenant {:?}", tenant.plan.as_deref()),
        Change::Now(SnapshotRow::Plan(plan)) => format!("plan {} {:?}", plan.name, plan.limits[0].as_deref()),
        Change::Now(SnapshotRow::Route(route)) => {
            format!("route {} {:?} {}", route.path, route.scopes.as_deref(), route.shadow)
        }
        Change::NoPlan(name) => format!("no plan {name}"),
        Change::NoRoute(_) => "no route".to_owned(),
        other => format!("{other:?}"),
    };
    let prefix = &world.live.prefix;
    for (args, expected) in [
        (vec!["plan", "create", "gold", "--request-limit", "7/DAY"], "plan gold Some(\"7/DAY\")".to_owned()),
        (
            vec!["key", "update", prefix, "--scopes", "a b", "--plan", "gold"],
            format!("key {prefix} Some(\"a b\") Some(\"gold\") false"),
        ),
        (vec!["key", "disable", prefix], format!("key {prefix} Some(\"a b\") Some(\"gold\") true")),
        (vec!["key", "update", prefix, "--no-plan"], format!("key {prefix} Some(\"a b\") None true")),
        (vec!["tenant", "update", &world.acme.id, "--plan", "gold"], "tenant Some(\"gold\")".to_owned()),
        (vec!["tenant", "update", &world.acme.id, "--no-plan"], "tenant None".to_owned()),
        (vec!["plan", "delete", "gold"], "no plan gold".to_owned()),
        (
            vec!["route", "add", "--path", "/a", "--scopes", "x", "--shadow", "--name", "r"],
            "route /a Some(\"x\") true".to_owned(),
        ),
        (vec!["route", "remove", "r"], "no route".to_owned()),
    ] {
        world.db.cli(&args).ok();
        assert_eq!(changes().iter().map(about).collect::<Vec<_>>(), [expected], "{args:?}");
    }
    // Names and labels have no effect on a server.
    world.db.json(&["key", "update", prefix, "--label", "a=b", "--name", "x"]);
    assert!(changes().is_empty());
    world.db.json(&["plan", "create", "last"]);
    world.db.json(&["route", "add", "--path", "/last"]);
    let mut loaded = Vec::new();
    let mut session = wait(store.session()).expect("a session");
    wait(session.load(&mut |row| loaded.push(about(&Change::Now(row))))).expect("a load");
    for expected in ["plan last None", "route /last None false"] {
        assert!(loaded.iter().any(|row| row == expected), "{expected}: {loaded:?}");
    }
    assert!(loaded.contains(&format!("key {prefix} Some(\"a b\") None true")), "{loaded:?}");
}

fn the_database_rejects_invalid_values(world: &World) {
    for sql in [
        "UPDATE api_keys SET scopes = 'a,b'",
        "UPDATE api_keys SET networks = ''",
        "UPDATE api_keys SET networks = 'everywhere'",
        "UPDATE api_keys SET plan = 'nobody'",
        "UPDATE api_keys SET labels = '[]'",
        "UPDATE tenants SET plan = 'nobody'",
        "INSERT INTO tenantgate_plan (name) VALUES ('Gold')",
        "INSERT INTO tenantgate_plan (name, total_limit) VALUES ('gold', '1/day')",
        "INSERT INTO tenantgate_plan (name, total_limit) VALUES ('gold', '-1/DAY')",
        "INSERT INTO tenantgate_plan (name, total_limit) VALUES ('gold', '4294967296/DAY')",
        "INSERT INTO tenantgate_plan (name, total_limit) VALUES ('gold', '01/DAY')",
        "INSERT INTO tenantgate_plan (name, total_limit) VALUES ('gold', '/DAY')",
        "INSERT INTO tenantgate_route (path) VALUES ('a')",
        "INSERT INTO tenantgate_route (path, host) VALUES ('/a', 'A.example')",
        "INSERT INTO tenantgate_route (path, method) VALUES ('/a', 'get it')",
        "INSERT INTO tenantgate_route (path, mode) VALUES ('/a', 'off')",
        "INSERT INTO tenantgate_route (path, scopes) VALUES ('/a', 'a&b')",
        "INSERT INTO tenantgate_route (path, mode, scopes) VALUES ('/a', 'public', 'a')",
    ] {
        world.db.refuses(sql);
    }
    world.db.sql("INSERT INTO tenantgate_plan (name, total_limit) VALUES ('gold', '4294967295/DAY')");
    world.db.sql(
        "INSERT INTO tenantgate_route (path, host) VALUES ('/a', '*.example.com'), ('/b', '[2001:db8::1]')",
    );
}

/// Returns a field of the metadata of a response.
fn told(server: &Server, request: &Ask, field: &str) -> String {
    fn text(value: &Kind) -> String {
        match value {
            Kind::StringValue(text) => text.clone(),
            Kind::NumberValue(number) => number.to_string(),
            Kind::StructValue(limit) => {
                let field = |name: &str| limit.fields[name].kind.as_ref().map(text).unwrap_or_default();
                format!("{}/{}", field("requests_per_unit"), field("unit"))
            }
            other => panic!("not expected here: {other:?}"),
        }
    }
    let mut client = AuthorizationClient::new(server.client().channel());
    let answer = wait(client.check(request.request())).expect("an answer").into_inner();
    let metadata = answer.dynamic_metadata.expect("metadata");
    metadata.fields.get(field).and_then(|value| value.kind.as_ref()).map(text).unwrap_or_default()
}

fn a_running_server_applies_changes(world: &World) {
    let server = Server::on(&world.db).start();
    let asked = |path: &str| Ask::get(path).key(&world.live.text).from("192.0.2.7");
    let becomes = |field: &str, expected: &str| {
        eventually(&format!("{field} {expected}"), PATIENCE, || {
            let told = told(&server, &asked("/v1/items"), field);
            if told == expected { Ok(()) } else { Err(told) }
        });
    };
    let prefix = &world.live.prefix;
    for (args, reason) in [
        (vec!["key", "update", prefix, "--scopes", "items.read"], "ok"),
        (vec!["route", "add", "--path", "/v1/items", "--scopes", "items.write", "--name", "write"], "scope"),
        (vec!["key", "update", prefix, "--scopes", "items.*"], "ok"),
        (vec!["key", "update", prefix, "--networks", "198.51.100.0/24"], "network"),
        (vec!["key", "update", prefix, "--networks", "198.51.100.0/24 192.0.2.0/24"], "ok"),
        (vec!["key", "update", prefix, "--not-before", "2099-01-01T00:00:00Z"], "not_yet_valid"),
        (vec!["key", "disable", prefix], "disabled"),
        (vec!["key", "enable", prefix], "not_yet_valid"),
        (vec!["key", "update", prefix, "--not-before", "2020-01-01T00:00:00Z", "--scopes", ""], "scope"),
    ] {
        world.db.cli(&args).ok();
        becomes("reason", reason);
    }
    assert_eq!(told(&server, &asked("/v1/other"), "reason"), "ok", "no rule matches it");
    assert_eq!(told(&server, &asked("/v1//items"), "reason"), "path_ambiguous");
    world.db.json(&["route", "remove", "write", "--wait"]);
    becomes("reason", "ok");
    world.db.json(&["plan", "create", "gold", "--request-limit", "100/MINUTE"]);
    world.db.json(&["tenant", "update", &world.acme.id, "--plan", "gold"]);
    becomes("request_limit", "100/MINUTE");
    world.db.json(&["plan", "update", "gold", "--request-limit", "0/DAY", "--wait"]);
    becomes("request_limit", "0/DAY");
    world.db.json(&["plan", "create", "own", "--request-limit", "7/HOUR"]);
    world.db.json(&["key", "update", prefix, "--plan", "own", "--wait"]);
    becomes("request_limit", "7/HOUR");
    becomes("plan", "own");
}
