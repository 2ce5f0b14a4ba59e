//! Tests terms of keys, plans and rules with the commands, on both stores.

use prost_types::value::Kind;
use serde_json::{Value, json};
use tenantgate::config;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use tenantgate::store::{Change, Changes, Row};

use crate::support::world::string;
use crate::support::{Ask, PATIENCE, Server, World, eventually, on_every_store, runtime, wait};

on_every_store![
    a_key_is_created_and_changed_with_all_its_terms,
    invalid_values_are_rejected_with_their_option,
    a_key_must_be_valid_before_it_expires,
    a_disabled_key_can_be_enabled_and_a_revoked_one_cannot,
    rotation_keeps_what_a_key_may_do,
    keys_are_filtered_and_paged_by_id,
    several_keys_are_revoked_or_none,
    all_keys_of_a_tenant_are_revoked_once_that_is_confirmed,
    a_tenants_name_and_plan_change,
    plans_are_made_changed_and_deleted_unless_they_are_used,
    rules_are_added_listed_and_removed,
    a_table_of_rules_is_applied_whole_or_not_at_all,
    a_rule_is_tested_with_a_key,
    a_table_of_rules_is_checked,
    exported_keys_can_be_imported,
    every_change_is_in_the_audit_log,
    every_change_reaches_the_servers,
    the_database_rejects_invalid_values,
    a_running_server_applies_changes,
];

fn key_with(world: &World, args: &[&str]) -> Value {
    world.db.json(&[&["key", "create", &world.acme.id], args].concat())
}

fn a_key_is_created_and_changed_with_all_its_terms(world: &World) {
    world.db.json(&["plan", "create", "gold"]);
    let made = key_with(
        world,
        &[
            "--scopes",
            "models.read  invoices:* models.read",
            "--networks",
            "192.0.2.0/24 2001:db8::1",
            "--plan",
            "gold",
            "--label",
            "team=billing",
            "--label",
            "env=a b",
            "--not-before",
            "2099-01-01T00:00:00Z",
        ],
    );
    let shown = world.db.json(&["key", "show", &string(&made, "id")]);
    for key in [&made, &shown] {
        assert_eq!(key["scopes"], "models.read invoices:*");
        assert_eq!(key["networks"], "192.0.2.0/24 2001:db8::1/128");
        assert_eq!((&key["plan"], &key["disabled_at"]), (&"gold".into(), &Value::Null));
        assert_eq!(key["labels"], json!({ "team": "billing", "env": "a b" }));
        assert_eq!(key["not_before"], "2099-01-01T00:00:00.000000Z");
    }
    assert_eq!(shown["status"], "not_yet_valid");
    let update = |args: &[&str]| world.db.json(&[&["key", "update", &string(&made, "id")], args].concat());
    let changed = update(&[
        "--name",
        "new",
        "--not-before",
        "2020-01-01T00:00:00Z",
        "--scopes",
        "",
        "--any-network",
        "--no-plan",
        "--label",
        "team=ops",
        "--remove-label",
        "env",
        "--expires-in",
        "1d",
    ]);
    assert_eq!(
        (&changed["name"], &changed["scopes"], &changed["status"]),
        (&"new".into(), &"".into(), &"active".into())
    );
    assert_eq!((&changed["networks"], &changed["plan"]), (&Value::Null, &Value::Null));
    assert_eq!(changed["labels"], json!({ "team": "ops" }));
    assert!(changed["expires_at"].is_string());
    let free = update(&["--all-scopes", "--no-expiry", "--remove-label", "team"]);
    assert_eq!(
        (&free["scopes"], &free["expires_at"], &free["labels"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(world.db.json(&["key", "show", &string(&made, "id")]), free);
    world.db.cli(&["key", "update", &string(&made, "id")]).usage();
    let old = world.db.json(&["key", "show", &world.live.id]);
    for name in ["scopes", "networks", "plan", "labels", "disabled_at", "not_before"] {
        assert_eq!(old[name], Value::Null, "{name}");
    }
}

fn invalid_values_are_rejected_with_their_option(world: &World) {
    for (args, said) in [
        (["--scopes", "a b*"], "position 4"),
        (["--scopes", "a é"], "position 3"),
        (["--networks", "10.0.0.1/8"], "10.0.0.0/8"),
        (["--networks", ""], "at least one network"),
        (["--networks", "10.0.0.0/8 x"], "position 12"),
        (["--plan", "Gold"], "position 1"),
        (["--label", "team"], "position 5"),
        (["--label", "Team=x"], "position 1"),
        (["--not-before", "tomorrow"], "RFC 3339"),
    ] {
        for command in [["create", &world.acme.id], ["update", &world.live.id]] {
            let error = world.db.cli(&[&["key"][..], &command, &args].concat()).usage();
            assert!(error.contains(said), "{args:?}: {error}");
        }
    }
    for (args, said) in [
        (["plan", "create", "gold", "--request-limit", "5/minute"], "position 3"),
        (["plan", "create", "gold", "--input-limit", "4294967296/DAY"], "position 1"),
        (["route", "add", "--path", "/a/{X}", "--shadow"], "position"),
        (["route", "add", "--path=/a", "--host", "a b"], "position 2"),
        (["route", "add", "--path=/a", "--scopes", "a |"], "position"),
        (["route", "add", "--path=/a", "--scopes", "a.*"], "without *"),
        (["route", "add", "--path=/a", "--mode", "off"], "public"),
        (["route", "add", "--path=/a", "--method", "get it"], "position"),
    ] {
        let error = world.db.cli(&args).usage();
        assert!(error.contains(said), "{args:?}: {error}");
    }
    let public = ["route", "add", "--path", "/a", "--mode", "public", "--scopes", "a"];
    world.db.cli(&public).usage();
    world.db.cli(&["key", "update", &world.live.id, "--plan", "gold"]).refused();
    key_refused(world, &["--plan", "gold"]);
}

#[track_caller]
fn key_refused(world: &World, args: &[&str]) -> String {
    world.db.cli(&[&["key", "create", &world.acme.id], args].concat()).refused()
}

fn a_key_must_be_valid_before_it_expires(world: &World) {
    let late = ["--not-before", "2099-01-02T00:00:00Z", "--expires-at", "2099-01-02T00:00:00Z"];
    assert!(key_refused(world, &late).contains("later expiry"));
    let update = ["key", "update", &world.issued.id, "--not-before", "2999-01-01T00:00:00Z"];
    world.db.cli(&update).refused();
    world.db.json(&["key", "update", &world.live.id, "--not-before", "2999-01-01T00:00:00Z"]);
}

fn a_disabled_key_can_be_enabled_and_a_revoked_one_cannot(world: &World) {
    let disabled = world.db.json(&["key", "disable", &world.live.prefix]);
    assert_eq!(disabled["status"], "disabled");
    assert_eq!(world.db.json(&["key", "disable", &world.live.id]), disabled, "the first time remains");
    assert!(world.db.cli(&["key", "rotate", &world.live.id]).refused().contains("disabled"));
    let enabled = world.db.json(&["key", "enable", &world.live.id]);
    assert_eq!((&enabled["status"], &enabled["disabled_at"]), (&"active".into(), &Value::Null));
    for verb in ["disable", "enable"] {
        assert!(world.db.cli(&["key", verb, &world.revoked.id]).refused().contains("revoked"), "{verb}");
    }
}

fn rotation_keeps_what_a_key_may_do(world: &World) {
    world.db.json(&["plan", "create", "gold"]);
    let made = key_with(
        world,
        &["--scopes", "a b", "--networks", "10.0.0.0/8", "--plan", "gold", "--label", "a=b", "--name", "n"],
    );
    let rotated = world.db.json(&["key", "rotate", &string(&made, "id"), "--grace", "1h"]);
    for name in ["scopes", "networks", "plan", "labels", "name", "not_before"] {
        assert_eq!(rotated["new"][name], made[name], "{name}");
        assert_eq!(rotated["old"][name], made[name], "{name}");
    }
    let again = world.db.cli(&["key", "rotate", &string(&made, "id")]).refused();
    assert!(again.contains(&string(&rotated["new"], "key_prefix")), "{again}");
}

fn prefixes(list: &Value) -> Vec<String> {
    list.as_array().expect("an array").iter().map(|key| string(key, "key_prefix")).collect()
}

fn keys_are_filtered_and_paged_by_id(world: &World) {
    let a = key_with(
        world,
        &["--name", "Billing Robot", "--scopes", "a b:*", "--label", "x.y/z=1", "--label", "q=2"],
    );
    let b = key_with(
        world,
        &["--name", "other 100%", "--expires-in", "10d", "--not-before", "2020-01-01T00:00:00Z"],
    );
    let later = key_with(world, &["--not-before", "2099-01-01T00:00:00Z"]);
    world.db.json(&["key", "disable", &world.other.id]);
    let list = |args: &[&str]| prefixes(&world.db.json(&[&["key", "list"], args].concat()));
    let (a, b, later) = (string(&a, "key_prefix"), string(&b, "key_prefix"), string(&later, "key_prefix"));
    assert_eq!(list(&["--name", "billing r"]), [a.as_str()]);
    assert_eq!(list(&["--name", "0%"]), [b.as_str()]);
    assert_eq!(list(&["--scope", "b:*"]), [a.as_str()]);
    assert_eq!(list(&["--scope", "b"]), Vec::<String>::new());
    assert_eq!(list(&["--label", "x.y/z=1", "--label", "q=2"]), [a.as_str()]);
    assert_eq!(list(&["--label", "x.y/z=1", "--label", "q=3"]), Vec::<String>::new());
    assert_eq!(list(&["--status", "disabled"]), [world.other.prefix.as_str()]);
    assert_eq!(list(&["--status", "revoked"]), [world.revoked.prefix.as_str()]);
    assert_eq!(list(&["--status", "expired"]), [world.expired.prefix.as_str()]);
    assert_eq!(list(&["--status", "not_yet_valid"]), [later]);
    let active = list(&["--status", "active", "--tenant", &world.acme.schema]);
    assert!(
        active.contains(&a) && active.contains(&b) && !active.contains(&world.other.prefix),
        "{active:?}"
    );
    let soon = list(&["--status", "active", "--expires-before", "2027-06-01T00:00:00Z"]);
    assert!(soon.contains(&b) && !soon.contains(&world.live.prefix), "{soon:?}");
    assert_eq!(list(&["--unused-for", "1d"]), Vec::<String>::new());
    assert_eq!(list(&["--unused-for", "0s"]).len(), list(&[]).len());
    let all = world.db.json(&["key", "list"]);
    let ids: Vec<_> = all.as_array().expect("an array").iter().map(|key| string(key, "id")).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    let rest = world.db.json(&["key", "list", "--after", &ids[1], "--limit", "2"]);
    assert_eq!(rest.as_array().expect("an array"), &all.as_array().expect("an array")[2..4]);
    for key in all.as_array().expect("an array") {
        let tenant = world.db.json(&["tenant", "show", &string(key, "tenant_id")]);
        assert_eq!(key["tenant_schema"], tenant["db_schema_name"]);
    }
    for bad in [["--status", "alive"], ["--after", "x"], ["--limit", "0"], ["--scope", "a b"]] {
        world.db.cli(&[&["key", "list"][..], &bad].concat()).usage();
    }
}

fn several_keys_are_revoked_or_none(world: &World) {
    let both = ["key", "revoke", &world.live.id, "llmk_nobody"];
    world.db.cli(&both).refused();
    assert_eq!(world.db.json(&["key", "show", &world.live.id])["status"], "active");
    let revoked =
        world.db.json(&["key", "revoke", &world.other.id, &world.live.prefix, "--reason", "leaked"]);
    assert_eq!(prefixes(&revoked), [world.other.prefix.clone(), world.live.prefix.clone()]);
    for key in revoked.as_array().expect("an array") {
        assert_eq!((&key["status"], &key["revocation_reason"]), (&"revoked".into(), &"leaked".into()));
    }
    assert!(world.db.json(&["key", "revoke", &world.issued.id]).is_object());
    world.db.cli(&["key", "revoke"]).usage();
}

fn all_keys_of_a_tenant_are_revoked_once_that_is_confirmed(world: &World) {
    let all = ["key", "revoke", "--tenant", &world.acme.id, "--all"];
    let said = world.db.cli(&all).usage();
    assert!(said.contains("--yes") && said.contains("last day"), "{said}");
    assert_eq!(world.db.json(&["key", "show", &world.live.id])["status"], "active");
    let revoked = world.db.json(&[&all[..], &["--yes"]].concat());
    assert!(prefixes(&revoked).contains(&world.live.prefix));
    assert!(!prefixes(&revoked).contains(&world.of_sleepy.prefix));
    let left = world.db.json(&["key", "list", &world.acme.id]);
    assert!(left.as_array().expect("an array").iter().all(|key| key["status"] == "revoked"), "{left}");
    assert_eq!(world.db.json(&[&all[..], &["--yes"]].concat()), json!([]));
    world.db.cli(&["key", "revoke", "--tenant", &world.acme.id]).usage();
    world.db.cli(&["key", "revoke", "--all", "--yes"]).usage();
}

fn a_tenants_name_and_plan_change(world: &World) {
    let update = |args: &[&str]| world.db.json(&[&["tenant", "update", &world.acme.id], args].concat());
    world.db.json(&["plan", "create", "gold"]);
    let changed = update(&["--name", "Acme & Sons", "--plan", "gold"]);
    assert_eq!((&changed["name"], &changed["plan"]), (&"Acme & Sons".into(), &"gold".into()));
    assert_eq!(world.db.json(&["tenant", "show", &world.acme.id]), changed);
    assert_eq!(update(&["--no-plan"])["plan"], Value::Null);
    world.db.cli(&["tenant", "update", &world.acme.id, "--plan", "silver"]).refused();
    world.db.cli(&["tenant", "update", &world.acme.id, "--name", ""]).usage();
    world.db.cli(&["tenant", "update", &world.acme.id]).usage();
    world.db.cli(&["tenant", "update", "nobody", "--name", "x"]).refused();
}

fn plans_are_made_changed_and_deleted_unless_they_are_used(world: &World) {
    let gold =
        world.db.json(&["plan", "create", "gold", "--request-limit", "100/MINUTE", "--total-limit", "0/DAY"]);
    let limits = |plan: &Value| {
        ["request_limit", "total_limit", "input_limit", "output_limit"]
            .map(|name| plan[name].as_str().map(str::to_owned))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(limits(&gold), [text("100/MINUTE"), text("0/DAY"), None, None]);
    let changed =
        world.db.json(&["plan", "update", "gold", "--no-request-limit", "--output-limit", "4294967295/YEAR"]);
    assert_eq!(limits(&changed), [None, text("0/DAY"), None, text("4294967295/YEAR")]);
    assert_eq!(world.db.json(&["plan", "list"]), json!([changed]));
    world.db.cli(&["plan", "create", "gold"]).refused();
    world.db.cli(&["plan", "update", "silver", "--no-request-limit"]).refused();
    world.db.cli(&["plan", "update", "gold"]).usage();
    world.db.json(&["key", "update", &world.live.id, "--plan", "gold"]);
    world.db.json(&["tenant", "update", &world.sleepy.id, "--plan", "gold"]);
    let shown = world.db.json(&["plan", "show", "gold"]);
    assert_eq!((&shown["keys"], &shown["tenants"]), (&1.into(), &1.into()));
    let said = world.db.cli(&["plan", "delete", "gold"]).refused();
    assert!(said.contains("1 tenants and 1 keys"), "{said}");
    world.db.refuses("DELETE FROM tenantgate_plan");
    world.db.json(&["key", "update", &world.live.id, "--no-plan"]);
    world.db.json(&["tenant", "update", &world.sleepy.id, "--no-plan"]);
    assert_eq!(world.db.json(&["plan", "delete", "gold"])["name"], "gold");
    assert_eq!(world.db.json(&["plan", "list"]), json!([]));
    world.db.cli(&["plan", "delete", "gold"]).refused();
    world.db.cli(&["plan", "show", "gold"]).refused();
}

fn rules_are_added_listed_and_removed(world: &World) {
    let add = |args: &[&str]| world.db.cli(&[&["route", "add"], args, &["-o", "json"]].concat());
    let rule = add(&[
        "--path",
        "/v1/{model}/**",
        "--host",
        "API.example.com",
        "--method",
        "POST",
        "--scopes",
        "a  b|c",
        "--name",
        "run",
    ])
    .json();
    assert_eq!(
        (&rule["host"], &rule["scopes"], &rule["mode"], &rule["shadow"]),
        (&"api.example.com".into(), &"a b | c".into(), &"required".into(), &false.into())
    );
    let twin = add(&["--path", "/v1/{other}/**", "--host", "api.example.com", "--method", "POST"]).refused();
    assert!(twin.contains("run"), "{twin}");
    assert!(add(&["--path", "/v2", "--name", "run"]).refused().contains("run"));
    let shadow = add(&["--path", "/v2", "--shadow", "--scopes", "a"]).json();
    let list = world.db.json(&["route", "list"]);
    assert_eq!(list.as_array().map(Vec::len), Some(2));
    assert!([&rule, &shadow].iter().all(|rule| list.as_array().expect("an array").contains(rule)), "{list}");
    assert_eq!(world.db.json(&["route", "remove", "run"]), rule);
    assert_eq!(world.db.json(&["route", "remove", &string(&shadow, "id")]), shadow);
    world.db.cli(&["route", "remove", "run"]).refused();
    assert_eq!(world.db.json(&["route", "list"]), json!([]));
}

fn a_table_of_rules_is_applied_whole_or_not_at_all(world: &World) {
    let file = world.db.dir().join("routes.json");
    let apply = |table: &Value, args: &[&str]| {
        std::fs::write(&file, table.to_string()).expect("a file");
        let name = file.to_str().expect("plain");
        world.db.cli(&[&["route", "apply", name], args, &["-o", "json"]].concat())
    };
    let counts = |difference: &Value| {
        let len = |name: &str| difference[name].as_array().map(Vec::len);
        (
            len("added"),
            len("removed"),
            len("changed"),
            difference["unchanged"].as_u64(),
            difference["dry_run"].as_bool(),
        )
    };
    let table = json!([{ "path": "/a", "name": "one" }, { "path": "/b", "name": "two", "scopes": "x" }, { "path": "/c/{id}" }]);
    assert_eq!(
        counts(&apply(&table, &["--dry-run"]).json()),
        (Some(3), Some(0), Some(0), Some(0), Some(true))
    );
    assert_eq!(world.db.json(&["route", "list"]), json!([]));
    assert_eq!(counts(&apply(&table, &[]).json()), (Some(3), Some(0), Some(0), Some(0), Some(false)));
    let listed = world.db.json(&["route", "list"]);
    assert_eq!(counts(&apply(&listed, &[]).json()), (Some(0), Some(0), Some(0), Some(3), Some(false)));
    // Names are exchanged, a parameter is renamed.
    let next = json!([{ "path": "/a", "name": "two" }, { "path": "/b", "name": "one", "scopes": "x" }, { "path": "/c/{user}" }]);
    let difference = apply(&next, &[]).json();
    assert_eq!(counts(&difference), (Some(1), Some(1), Some(2), Some(0), Some(false)));
    assert_eq!(difference["changed"][0]["before"]["id"], difference["changed"][0]["after"]["id"]);
    let before = world.db.json(&["route", "list"]);
    for (bad, said) in [
        (json!([{ "path": "/x" }, { "path": "/a/{1}" }]), "rule 2: path"),
        (
            json!([{ "path": "/x/{a}" }, { "path": "/x/{b}" }]),
            "rule 2: host, method and path are those of rule 1",
        ),
        (json!([{ "path": "/x", "name": "n" }, { "path": "/y", "name": "n" }]), "the name is that of rule 1"),
        (json!([{ "path": "/x", "needs": "a" }]), "unknown field"),
        (json!({ "path": "/x" }), "not a table"),
    ] {
        let error = apply(&bad, &[]).usage();
        assert!(error.contains(said), "{bad}: {error}");
    }
    assert_eq!(world.db.json(&["route", "list"]), before);
    assert_eq!(counts(&apply(&json!([]), &[]).json()), (Some(0), Some(3), Some(0), Some(0), Some(false)));
}

fn a_rule_is_tested_with_a_key(world: &World) {
    world.db.json(&["route", "add", "--path", "/v1/**", "--scopes", "read", "--name", "all"]);
    world.db.json(&[
        "route",
        "add",
        "--path",
        "/v1/models",
        "--method",
        "GET",
        "--scopes",
        "models",
        "--name",
        "models",
    ]);
    let reader = string(&key_with(world, &["--scopes", "read"]), "key_prefix");
    let test = |args: &[&str]| world.db.json(&[&["route", "test", "--host", "a.example"], args].concat());
    let told = test(&["--path", "/v1/models?x=1", "--key-prefix", &reader]);
    assert_eq!((&told["rule"]["name"], &told["next"][0]["name"]), (&"models".into(), &"all".into()));
    let why = r#"segment 2 of its path, "models", is more specific than "**" of the next rule"#;
    assert_eq!(told["why"], why);
    assert_eq!(
        (&told["outcome"], &told["needs"], &told["mode"]),
        (&"scope".into(), &json!(["models"]), &"required".into())
    );
    assert_eq!(test(&["--path", "/v1/models", "--method", "POST", "--key-prefix", &reader])["outcome"], "ok");
    assert_eq!(test(&["--path", "/v1/models", "--key-prefix", &world.live.prefix])["outcome"], "ok");
    assert_eq!(test(&["--path", "/v1/models", "--key-prefix", &world.revoked.prefix])["outcome"], "revoked");
    assert_eq!(test(&["--path", "/v1/models"])["outcome"], "missing");
    assert_eq!(test(&["--path", "/v1//models"])["outcome"], "path_ambiguous");
    let none = test(&["--path", "/v2", "--context", "tenantgate.scopes=read x", "--key-prefix", &reader]);
    assert_eq!((&none["rule"], &none["outcome"]), (&Value::Null, &"scope".into()));
    assert_eq!(
        test(&["--path", "/v2", "--context", "tenantgate.mode=maybe"])["outcome"],
        "bad_route_context"
    );
}

fn a_table_of_rules_is_checked(world: &World) {
    world.db.json(&["route", "add", "--path", "/v1/**", "--name", "wide"]);
    world.db.json(&[
        "route",
        "add",
        "--path",
        "/v1/a",
        "--method",
        "GET",
        "--scopes",
        "nobody.has",
        "--name",
        "narrow",
    ]);
    for tenant in [&world.acme, &world.sleepy, &world.newborn, &world.gone] {
        world.db.cli(&["key", "revoke", "--tenant", &tenant.id, "--all", "--yes"]).ok();
    }
    key_with(world, &["--scopes", "unneeded"]);
    let checked = world.db.json(&["route", "list", "--check"]);
    assert_eq!(checked["routes"], world.db.json(&["route", "list"]));
    let found: Vec<_> =
        checked["findings"].as_array().expect("an array").iter().map(|f| string(f, "finding")).collect();
    for finding in ["falls_through", "unmet_needs", "unneeded_scope"] {
        assert!(found.iter().any(|name| name == finding), "{finding}: {checked}");
    }
}

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
        Change::Now(Row::Key(key, _, profile)) => {
            format!(
                "key {} {:?} {:?} {}",
                key.prefix,
                profile.scopes.as_deref(),
                profile.plan.as_deref(),
                key.disabled
            )
        }
        Change::Now(Row::Tenant(tenant)) => format!("tenant {:?}", tenant.plan.as_deref()),
        Change::Now(Row::Plan(plan)) => format!("plan {} {:?}", plan.name, plan.limits[0].as_deref()),
        Change::Now(Row::Route(route)) => {
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
