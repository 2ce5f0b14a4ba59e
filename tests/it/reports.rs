//! Tests the reports about keys that need attention, as text, JSON and CSV.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{World, on_every_store};

on_every_store![
    every_selector_finds_its_keys,
    several_selectors_find_the_union,
    without_selectors_all_criteria_apply,
    a_report_has_one_shape,
    a_spreadsheet_gets_no_formulas,
    more_keys_than_a_page_are_all_reported,
];

/// Prefix to findings.
fn found(world: &World, args: &[&str]) -> BTreeMap<String, Vec<String>> {
    let report = world.db.json(&[&["report", "keys"], args].concat());
    let rows = report.as_array().unwrap_or_else(|| panic!("no array: {report}"));
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned();
    rows.iter()
        .map(|row| {
            let findings = row["findings"].as_array().expect("an array").iter().map(text).collect();
            (text(&row["key_prefix"]), findings)
        })
        .collect()
}

fn prefixes(world: &World, args: &[&str]) -> Vec<String> {
    found(world, args).into_keys().collect()
}

/// SQL for an instant some days from now.
fn days(world: &World, days: i64) -> String {
    let at = chrono::DateTime::parse_from_rfc3339(
        world.db.json(&["tenant", "create", &format!("Now {days}")])["created_at"]
            .as_str()
            .expect("an instant"),
    );
    let at = at.expect("RFC 3339") + chrono::TimeDelta::days(days);
    at.to_utc().format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn every_selector_finds_its_keys(world: &World) {
    let all = ["llmk_gone", "llmk_live", "llmk_newborn", "llmk_other", "llmk_sleepy", &world.issued.prefix];
    let mut all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.sort();
    assert_eq!(prefixes(world, &["--never-used"]), all, "neither revoked nor expired keys");
    assert_eq!(prefixes(world, &["--unused-for", "1d"]), Vec::<String>::new(), "all keys were created today");
    world.db.sql(&format!(
        "UPDATE api_keys SET created_at = '{0}' WHERE key_prefix = 'llmk_other';
         UPDATE api_keys SET created_at = '{0}', last_used_at = '{1}' WHERE key_prefix = 'llmk_live'",
        days(world, -100),
        days(world, -50),
    ));
    assert_eq!(prefixes(world, &["--unused-for", "90d"]), ["llmk_other"]);
    assert_eq!(prefixes(world, &["--unused-for", "7w"]), ["llmk_live", "llmk_other"]);
    assert!(!prefixes(world, &["--never-used"]).contains(&"llmk_live".to_owned()));
    assert_eq!(prefixes(world, &["--expiring-within", "89d"]), Vec::<String>::new());
    assert_eq!(prefixes(world, &["--expiring-within", "91d"]), [world.issued.prefix.as_str()]);
    assert!(!prefixes(world, &["--without-expiry"]).contains(&world.issued.prefix));
    assert_eq!(prefixes(world, &["--without-expiry"]).len(), 5);
    assert_eq!(prefixes(world, &["--without-memo"]).len(), 6);
    assert_eq!(prefixes(world, &["--cost-below", "12"]).len(), 5, "all but the issued one have a cost of 4");
    assert_eq!(prefixes(world, &["--cost-below", "13"]).len(), 6);
    assert_eq!(prefixes(world, &[&world.sleepy.name, "--never-used"]), ["llmk_sleepy"]);
    world.db.cli(&["report", "keys", "Nobody"]).refused();
    for bad in
        [["--unused-for", "90"], ["--expiring-within", "soon"], ["--cost-below", "99"], ["--cost-below", "x"]]
    {
        world.db.cli(&[&["report", "keys"], &bad[..]].concat()).usage();
    }
}

fn several_selectors_find_the_union(world: &World) {
    let both = found(world, &["--without-expiry", "--expiring-within", "100d"]);
    assert_eq!(both.len(), 6);
    assert_eq!(
        (&both["llmk_live"][..], &both[&world.issued.prefix][..]),
        (&["without_expiry".to_owned()][..], &["expiring".to_owned()][..])
    );
}

fn without_selectors_all_criteria_apply(world: &World) {
    let all = found(world, &[]);
    assert_eq!(all["llmk_live"], ["never_used", "without_expiry", "without_memo", "low_cost"]);
    assert_eq!(all[&world.issued.prefix], ["never_used", "without_memo"]);
}

fn a_report_has_one_shape(world: &World) {
    let report = world.db.json(&["report", "keys", "--cost-below", "5"]);
    let names: Vec<_> = report[0].as_object().expect("an object").keys().map(String::as_str).collect();
    let wanted = [
        "cost",
        "created_at",
        "expires_at",
        "findings",
        "id",
        "key_prefix",
        "last_used_at",
        "name",
        "tenant_id",
        "tenant_schema",
    ];
    assert_eq!((names.as_slice(), &report[0]["cost"]), (&wanted[..], &4.into()));
    for (output, nothing) in [
        ("json", "[]\n"),
        (
            "csv",
            "id,key_prefix,name,tenant_id,tenant_schema,created_at,expires_at,last_used_at,cost,findings\n",
        ),
        ("text", "no findings\n"),
    ] {
        let said = world.db.cli(&["report", "keys", "--unused-for", "1d", "-o", output]).ok();
        assert_eq!(said, nothing);
        let full = world.db.cli(&["report", "keys", "-o", output]).ok();
        assert!(!full.contains("$2") && !full.contains("Secret"), "neither hash nor secret: {full}");
        assert!(full.contains("llmk_live") && full.contains("without_expiry"), "{full}");
    }
    for command in [&["key", "list"][..], &["key", "create", &world.acme.id], &["audit", "list"]] {
        let before = world.db.json(&["key", "list"]);
        let said = world.db.cli(&[command, &["-o", "csv"]].concat()).usage();
        assert!(said.contains("report"), "{said}");
        assert_eq!(
            world.db.json(&["key", "list"]),
            before,
            "nothing is changed if the result cannot be shown"
        );
    }
}

fn a_spreadsheet_gets_no_formulas(world: &World) {
    for name in ["=HYPERLINK(\"http://evil\")", "+1", "-1", "@SUM(1)", "a,\"b\""] {
        let command = ["key", "create", &world.acme.id, &format!("--name={name}")];
        world.db.cli(&command).ok();
    }
    let csv = world.db.cli(&["report", "keys", "--never-used", "-o", "csv"]).ok();
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines.len(), 1 + 6 + 5);
    for cell in ["\"'=HYPERLINK(\"\"http://evil\"\")\"", "'+1", "'-1", "'@SUM(1)", "\"a,\"\"b\"\"\""] {
        assert!(csv.contains(&format!(",{cell},")), "{cell}: {csv}");
    }
}

fn more_keys_than_a_page_are_all_reported(world: &World) {
    let hash = "$2b$04$su2b.vqz4TpZE4efb02CmOdFIwDrm2LI8KtSjA93JDkMtHMX4hmb2";
    let tenant = &world.acme.id;
    let numbers = "WITH RECURSIVE n (n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM n WHERE n < 3499)";
    // The hash has a different salt, so that it is unique.
    world.db.sql(&format!(
        "{numbers} INSERT INTO api_keys (hashed_key, key_prefix, tenant_id)
         SELECT replace('{hash}', 'su2b', CAST(n AS text)), 'llmk_many' || CAST(n AS text), '{tenant}' FROM n"
    ));
    assert_eq!(found(world, &["--never-used"]).len(), 2_506);
}
