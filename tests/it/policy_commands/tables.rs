//! Tests plans and rules.

use serde_json::{Value, json};

use super::key_with;
use crate::support::cli::{DATABASE_URL, run_in};
use crate::support::world::string;
use crate::support::{World, on_every_store};

on_every_store![
    plans_are_made_changed_and_deleted_unless_they_are_used,
    rules_are_added_listed_and_removed,
    a_table_of_rules_is_applied_whole_or_not_at_all,
    a_rule_is_tested_with_a_key,
    a_table_of_rules_is_checked,
];

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
    // By the options of `serve`.
    let deny = ["--path", "/v2", "--route-default", "deny", "--key-prefix", &reader];
    assert_eq!((&test(&deny)["outcome"], &test(&deny[..2])["outcome"]), (&"route".into(), &"missing".into()));
    assert_eq!(test(&["--path", "/v1/a%2Fb", "--encoded-slash", "keep"])["outcome"], "missing");
    assert_eq!(test(&["--path", "/v1/a;b", "--path-parameters", "keep"])["outcome"], "missing");
    assert_eq!(test(&["--path", "/v1/open", "--public", "GET /v1/open"])["outcome"], "public");
    let variable = [(DATABASE_URL, world.db.url()), ("TENANTGATE_PUBLIC", "GET /v1/a,GET /v1/open")];
    let args = ["route", "test", "--host", "a", "--path", "/v1/open", "-o", "json"];
    assert_eq!(run_in(world.db.dir(), &variable, &args).json()["outcome"], "public");
    // The option that decides is named, and what is not considered.
    let option = |args: &[&str]| test(args)["option"].clone();
    assert_eq!(option(&["--path", "/v1/open", "--public", "GET /v1/open"]), "--public");
    assert_eq!(option(&deny), "--route-default");
    assert_eq!((option(&deny[..2]), option(&["--path", "/v1/models"])), (Value::Null, Value::Null));
    let told = test(&["--path", "/v1/models", "--key-prefix", &reader]);
    assert_eq!(told["not_considered"], json!(["networks", "plan", "tenant"]));
    let args = [
        "route",
        "test",
        "--host",
        "a",
        "--path",
        "/v1/open",
        "--key-prefix",
        &reader,
        "--public",
        "GET /v1/open",
    ];
    let shown = world.db.cli(&args).ok();
    assert!(shown.contains("by the option --public") && shown.contains("networks, plan, tenant"), "{shown}");
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
    world.db.json(&["route", "add", "--path", "/v1/a", "--method", "PUT", "--name", "put"]);
    world.db.json(&["route", "add", "--path", "/v1/b%2Fc", "--name", "escaped"]);
    let details = |args: &[&str], finding: &str, rule: &str| {
        let checked = world.db.json(&[&["route", "list", "--check"], args].concat());
        let all = checked["findings"].as_array().expect("an array");
        let of_rule = all.iter().filter(|found| found["finding"] == finding && found["rule"] == rule);
        of_rule.map(|found| string(found, "detail")).collect::<Vec<_>>()
    };
    let falls = "requests with a method other than GET and PUT go to the rule wide";
    assert_eq!(details(&[], "falls_through", "narrow"), [falls]);
    assert_eq!(details(&[], "never_wins", "escaped").len(), 1);
    assert_eq!(details(&["--encoded-slash", "keep"], "never_wins", "escaped"), [""; 0]);
    let public = ["--public", "GET /v1/a"];
    assert!(details(&public, "overridden", "narrow")[0].contains("GET requests"), "by --public");
    assert_eq!(details(&[], "overridden", "narrow"), [""; 0]);
}
