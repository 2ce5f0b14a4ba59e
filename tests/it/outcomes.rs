//! Compares all outcomes with one committed table.
//!
//! `outcomes.txt` has a line for every way a Check can end: what the client gets, what Envoy gets, and what metadata
//! and metrics show. A new outcome, a changed text or a renamed label needs a change of that file. `UPDATE_SNAPSHOTS=1
//! cargo test --test it outcomes` rewrites it.

use std::collections::BTreeMap;

use crate::support::http::samples;
use crate::support::link::free_port;
use crate::support::postgres::PASSWORD;
use crate::support::table;
use crate::support::{Ask, Backend, Database, Server, VerifiedResponse, World, on_every_store};

on_every_store![every_outcome_is_in_the_committed_table];

const HEAD: [&str; 7] = ["outcome", "HTTP", "code", "as", "body", "reason", "metric"];

fn every_outcome_is_in_the_committed_table(world: &World) {
    damage(world);
    let limited = limit(world);
    let [disabled, early, elsewhere, reader] = limited.each_ref().map(String::as_str);
    let nowhere = format!("postgres://tenantgate:{PASSWORD}@127.0.0.1:{}/db", free_port());
    let nowhere = Database::at(Backend::Postgres, &nowhere);
    let serving = Server::on(&world.db).arg("--accept-bearer").start();
    let erring = Server::on(&world.db).args(&["--on-unavailable", "error"]).start();
    let shadow = Server::on(&world.db).args(&["--mode", "shadow"]).start();
    let denying = Server::on(&world.db).args(&["--route-default", "deny"]).start();
    let starting = Server::on(&nowhere).start_unready();
    let live = &world.live.text;
    let bearer = format!("Bearer {live}");
    let asks = [
        ("public path", &serving, Ask::get("/docs")),
        ("no key", &serving, Ask::get("/v1")),
        ("empty key", &serving, Ask::with_key("")),
        ("not a key", &serving, Ask::with_key("sk-12345678")),
        ("two keys in one header", &serving, Ask::with_key(&format!("{live},{live}"))),
        (
            "two key headers",
            &serving,
            Ask::get("/v1").raw("x-llmcore-api-key", live).raw("x-llmcore-api-key", live),
        ),
        ("key header and bearer key", &serving, Ask::with_key(live).authorization(&bearer)),
        ("unknown prefix", &serving, Ask::with_key("llmk_nobody_12345678")),
        ("wrong secret", &serving, Ask::with_key(&world.live.with_wrong_secret())),
        ("revoked key", &serving, Ask::with_key(&world.revoked.text)),
        ("expired key", &serving, Ask::with_key(&world.expired.text)),
        ("tenant suspended", &serving, Ask::with_key(&world.of_sleepy.text)),
        ("tenant pending_provisioning", &serving, Ask::with_key(&world.of_newborn.text)),
        ("tenant deleted", &serving, Ask::with_key(&world.of_gone.text)),
        ("damaged row", &serving, Ask::with_key(&world.other.text)),
        ("damaged row, --on-unavailable=error", &erring, Ask::with_key(&world.other.text)),
        ("never loaded", &starting, Ask::with_key(live)),
        ("never loaded, public path", &starting, Ask::get("/docs")),
        ("never loaded, no key", &starting, Ask::get("/v1")),
        ("never loaded, not a key", &starting, Ask::with_key("sk-12345678")),
        ("shadow mode, no key", &shadow, Ask::get("/v1")),
        ("shadow mode, not a key", &shadow, Ask::with_key("sk-12345678")),
        ("shadow mode, unknown prefix", &shadow, Ask::with_key("llmk_nobody_12345678")),
        ("shadow mode, wrong secret", &shadow, Ask::with_key(&world.live.with_wrong_secret())),
        ("shadow mode, revoked key", &shadow, Ask::with_key(&world.revoked.text)),
        ("shadow mode, expired key", &shadow, Ask::with_key(&world.expired.text)),
        ("shadow mode, tenant suspended", &shadow, Ask::with_key(&world.of_sleepy.text)),
        ("shadow mode, damaged row", &shadow, Ask::with_key(&world.other.text)),
        ("shadow mode, public path", &shadow, Ask::get("/docs")),
        ("shadow mode, live key", &shadow, Ask::with_key(live)),
        ("disabled key", &serving, Ask::with_key(disabled)),
        ("key that is not valid yet", &serving, Ask::with_key(early)),
        ("address outside of the networks", &serving, Ask::with_key(elsewhere)),
        ("scope that is not granted", &serving, Ask::get("/rules/write").key(reader)),
        ("scope that is not granted, rule in shadow mode", &serving, Ask::get("/rules/try").key(reader)),
        ("scope that is granted", &serving, Ask::get("/rules/read").key(reader)),
        ("no key where it is optional", &serving, Ask::get("/rules/open")),
        ("no key where a rule is public", &serving, Ask::get("/rules/free")),
        ("ambiguous path", &serving, Ask::get("/rules/../v1").key(live)),
        ("no rule, --route-default=deny", &denying, Ask::with_key(live)),
        ("live key", &serving, Ask::with_key(live)),
        ("live bearer key", &serving, Ask::get("/v1").authorization(&bearer)),
    ];
    let rows = asks.map(|(outcome, server, ask)| {
        let before = decisions(server);
        let answer = server.check(ask);
        row(outcome, &answer, &risen(&before, &decisions(server)))
    });
    let rows = [vec![HEAD.map(str::to_owned)], rows.to_vec()].concat();
    table::compare("outcomes.txt", &table::render(&rows), &format!("on {:?}", world.db.backend));
}

/// Damages the hash of `other`.
fn damage(world: &World) {
    world.db.sql(&format!(
        "UPDATE api_keys SET hashed_key = '$2x$04$' WHERE key_prefix = '{}'",
        world.other.prefix
    ));
}

/// Adds rules, and returns keys that may not do everything.
fn limit(world: &World) -> [String; 4] {
    for rule in [
        ["--path=/rules/read", "--scopes=read"].as_slice(),
        &["--path=/rules/write", "--scopes=write"],
        &["--path=/rules/try", "--scopes=write", "--shadow"],
        &["--path=/rules/open", "--mode=optional"],
        &["--path=/rules/free", "--mode=public"],
    ] {
        world.db.json(&[&["route", "add"], rule].concat());
    }
    let made = |terms: &str| world.db.json(&["key", "create", &world.acme.id, terms]);
    let text = |key: &serde_json::Value| key["key"].as_str().expect("a key").to_owned();
    let disabled = made("--all-scopes");
    world.db.json(&["key", "disable", disabled["id"].as_str().expect("an id")]);
    let others = ["--not-before=2999-01-01T00:00:00Z", "--networks=192.0.2.0/24", "--scopes=read"];
    let [early, elsewhere, reader] = others.map(|terms| text(&made(terms)));
    [text(&disabled), early, elsewhere, reader]
}

/// The counters of decisions and of their causes of failure.
fn decisions(server: &Server) -> BTreeMap<String, f64> {
    let mut all = samples(&server.http("/metrics").body);
    all.retain(|name, _| name.contains("reason=") || name.contains("cause="));
    all
}

/// Returns the counters that one answer changed.
fn risen(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> String {
    let moved = after.iter().filter(|(name, value)| **value > before.get(*name).copied().unwrap_or_default());
    moved.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
}

fn row(outcome: &str, answer: &VerifiedResponse, metric: &str) -> [String; 7] {
    let kind = match (answer.http_status(), answer.is_error_response()) {
        (200, _) => "ok_response",
        (_, false) => "denied_response",
        (_, true) => "error_response",
    };
    let cells = [
        outcome,
        &answer.http_status().to_string(),
        &answer.code().to_string(),
        kind,
        answer.body(),
        answer.reason(),
        metric,
    ];
    cells.map(str::to_owned)
}
