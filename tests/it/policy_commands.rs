//! Tests terms of keys, plans and rules with the commands, on both stores.

mod effects;
mod tables;

use serde_json::{Value, json};

use crate::support::world::string;
use crate::support::{World, on_every_store};

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
