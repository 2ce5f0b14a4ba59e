//! Tests every row of the outcome table over gRPC.
//!
//! `support::verified_response` compares for every single response what belongs to a row: status, code, body, headers and
//! metadata keys. Here the tests check which row applies, in which order, and its values.

use std::collections::BTreeMap;

use crate::support::ask::KEY_HEADER;
use crate::support::verified_response::{IDENTITY, UNPROVEN};
use crate::support::world::{Key, Tenant, quick_hash};
use crate::support::{Ask, Backend, PATIENCE, Server, World, eventually, on_every_store};

on_every_store![
    each_condition_gets_its_row,
    nothing_is_revealed_before_possession_is_proven,
    proof_comes_before_the_state_of_key_and_tenant,
    an_allowed_request_carries_its_tenant_upstream,
    a_tenant_name_travels_percent_encoded,
    the_metadata_has_the_expiry_of_an_expiring_key,
    the_first_proof_is_remembered,
    decision_ids_are_never_the_same,
    hashes_of_every_accepted_kind_are_accepted,
];

fn each_condition_gets_its_row(world: &World) {
    let server = Server::on(&world.db).start();
    let rows = [
        ("200 public", Ask::get("/health")),
        ("401 missing", Ask::get("/v1/items")),
        ("401 missing", Ask::with_key("")),
        ("401 malformed", Ask::with_key("llmk_short_1234567")),
        ("401 unknown", Ask::with_key("llmk_nobody_12345678")),
        ("401 mismatch", Ask::with_key(&world.live.with_wrong_secret())),
        ("401 revoked", Ask::with_key(&world.revoked.text)),
        ("401 expired", Ask::with_key(&world.expired.text)),
        ("403 tenant_inactive", Ask::with_key(&world.of_sleepy.text)),
        ("403 tenant_inactive", Ask::with_key(&world.of_newborn.text)),
        ("403 tenant_inactive", Ask::with_key(&world.of_gone.text)),
        ("200 ok", Ask::with_key(&world.live.text)),
        ("200 ok", Ask::with_key(&world.issued.text)),
    ];
    for (wanted, ask) in rows {
        assert_eq!(server.row(ask.clone()), wanted, "{ask:?}");
    }
}

fn nothing_is_revealed_before_possession_is_proven(world: &World) {
    let server = Server::on(&world.db).start();
    for key in [&world.live, &world.revoked, &world.expired, &world.of_sleepy, &world.of_gone] {
        let answer = server.check(Ask::with_key(&key.with_wrong_secret()));
        assert_eq!(answer.row(), "401 mismatch", "{key:?}");
        assert_eq!(answer.meta_names(), UNPROVEN, "{key:?}");
    }
}

fn proof_comes_before_the_state_of_key_and_tenant(world: &World) {
    world.db.json(&["key", "revoke", &world.of_sleepy.id]);
    world.db.json(&["key", "revoke", &world.expired.id]);
    let server = Server::on(&world.db).start();
    // The state of the key (row 4) precedes that of the tenant (row 5).
    assert_eq!(server.row(Ask::with_key(&world.of_sleepy.text)), "401 revoked");
    assert_eq!(server.row(Ask::with_key(&world.expired.text)), "401 revoked");
    // The metadata has the identity of every proven key.
    let whom: [(&Key, &Tenant, &str); 4] = [
        (&world.revoked, &world.acme, "active"),
        (&world.of_newborn, &world.newborn, "pending_provisioning"),
        (&world.of_sleepy, &world.sleepy, "suspended"),
        (&world.of_gone, &world.gone, "deleted"),
    ];
    for (key, tenant, status) in whom {
        let answer = server.check(Ask::with_key(&key.text));
        let said = ["key_id", "key_prefix", "tenant_id", "tenant_name", "tenant_schema", "tenant_status"]
            .map(|name| answer.meta(name));
        assert_eq!(
            said,
            [&key.id, &key.prefix, &tenant.id, &tenant.name, &tenant.schema, status],
            "{answer:#?}"
        );
    }
}

fn an_allowed_request_carries_its_tenant_upstream(world: &World) {
    let server = Server::on(&world.db).start();
    let forged =
        IDENTITY.iter().fold(Ask::with_key(&world.live.text), |ask, name| ask.header(name, "forged"));
    let answer = server.check(forged);
    let wanted = BTreeMap::from([
        ("x-llmcore-key-id", world.live.id.as_str()),
        ("x-llmcore-tenant-id", world.acme.id.as_str()),
        ("x-llmcore-tenant-name", "Acme%20Corp"),
        ("x-llmcore-tenant-schema", world.acme.schema.as_str()),
    ]);
    assert_eq!(answer.headers(), wanted);
    assert_eq!(answer.removed(), [KEY_HEADER]);
    assert_eq!(answer.meta("tenant_status"), "active");
    assert_eq!(answer.meta("tenant_name"), "Acme Corp", "metadata is not percent-encoded");
    assert_eq!(answer.metadata.get("key_expires_at"), None, "no field means that it never expires");
}

fn a_tenant_name_travels_percent_encoded(world: &World) {
    let server = Server::on(&world.db).start();
    let names = [
        ("100% \"Ünïted\" ~!", "100%25%20\"%C3%9Cn%C3%AFted\"%20~!"),
        ("日本", "%E6%97%A5%E6%9C%AC"),
        ("a%20b", "a%2520b"),
    ];
    for (number, (name, header)) in names.iter().enumerate() {
        let schema = format!("tenant_{number}");
        let tenant = world.db.json(&["tenant", "create", name, "--schema", &schema]);
        let tenant = tenant["id"].as_str().expect("an id");
        world.db.sql(&format!(
            "UPDATE api_keys SET tenant_id = (SELECT id FROM tenants WHERE db_schema_name = '{schema}') \
             WHERE key_prefix = '{}'",
            world.live.prefix
        ));
        let ask = Ask::with_key(&world.live.text);
        let answer = eventually("the key's new tenant", PATIENCE, || {
            let answer = server.check(ask.clone());
            if answer.meta("tenant_id") == tenant { Ok(answer) } else { Err(answer.metadata) }
        });
        assert_eq!(answer.headers()["x-llmcore-tenant-name"], *header);
        assert_eq!(answer.meta("tenant_name"), *name);
        assert_eq!(answer.meta("tenant_schema"), schema);
    }
}

fn the_metadata_has_the_expiry_of_an_expiring_key(world: &World) {
    let server = Server::on(&world.db).start();
    let answer = server.check(Ask::with_key(&world.issued.text));
    let said = chrono::DateTime::parse_from_rfc3339(answer.meta("key_expires_at")).expect("RFC 3339");
    let shown = world.db.json(&["key", "show", &world.issued.id]);
    let shown = chrono::DateTime::parse_from_rfc3339(shown["expires_at"].as_str().expect("a time"))
        .expect("RFC 3339");
    assert_eq!(said, shown);
}

fn the_first_proof_is_remembered(world: &World) {
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let hashed = server.bcrypts();
    assert_eq!(hashed, 1);
    for _ in 0..50 {
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    }
    assert_eq!(server.bcrypts(), hashed, "a known key costs no bcrypt after its first proof");
}

fn decision_ids_are_never_the_same(world: &World) {
    let server = Server::on(&world.db).start();
    let asks = [Ask::get("/"), Ask::get("/v1"), Ask::with_key("!"), Ask::with_key(&world.live.text)];
    let ids =
        asks.iter().cycle().take(100).map(|ask| server.check(ask.clone()).meta("decision_id").to_owned());
    let ids: std::collections::BTreeSet<String> = ids.collect();
    assert_eq!(ids.len(), 100);
}

fn hashes_of_every_accepted_kind_are_accepted(world: &World) {
    let hash = quick_hash(&world.live.text);
    let bare = hash.strip_prefix("$2b$").expect("of kind 2b");
    for kind in ["2a", "2b", "2y"] {
        let prefix = &world.live.prefix;
        world
            .db
            .sql(&format!("UPDATE api_keys SET hashed_key = '${kind}${bare}' WHERE key_prefix = '{prefix}'"));
        let server = Server::on(&world.db).start();
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "{kind}");
        assert_eq!(server.row(Ask::with_key(&world.live.with_wrong_secret())), "401 mismatch", "{kind}");
    }
}

#[test]
fn expiry_is_exact_and_infinity_is_never() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let mut session = world.db.session();
    let key = Ask::with_key(&world.live.text);
    let mut expires_at = |moment: &str, wanted: &str| {
        let prefix = &world.live.prefix;
        session.sql(&format!("UPDATE api_keys SET expires_at = {moment} WHERE key_prefix = '{prefix}'"));
        server.row_becomes(wanted, PATIENCE, key.clone());
    };
    for past in ["now() - interval '1 millisecond'", "now()", "'-infinity'"] {
        expires_at("now() + interval '1 hour'", "200 ok");
        expires_at(past, "401 expired");
    }
    for future in ["now() + interval '1 hour'", "'infinity'", "'294276-12-31 23:59:59+00'", "NULL"] {
        expires_at("now()", "401 expired");
        expires_at(future, "200 ok");
    }
    for never in ["'infinity'", "NULL"] {
        expires_at("now()", "401 expired");
        expires_at(never, "200 ok");
        assert_eq!(server.check(key.clone()).metadata.get("key_expires_at"), None, "{never}");
    }
}

#[test]
fn a_key_expires_by_itself_while_the_server_runs() {
    let world = World::somewhere();
    let key = world.db.json(&["key", "create", &world.acme.id, "--expires-in", "2s"]);
    let key = key["key"].as_str().expect("a key");
    let server = Server::on(&world.db).start();
    let first = server.row(Ask::with_key(key));
    assert!(["200 ok", "401 expired"].contains(&first.as_str()), "{first}");
    server.row_becomes("401 expired", std::time::Duration::from_secs(5), Ask::with_key(key));
}
